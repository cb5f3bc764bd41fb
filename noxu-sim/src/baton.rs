//! Baton: runs conversations that block, one at a time and in an order that the agenda decides.
//!
//! A task is a thread that runs only while it holds the baton. Where it would block it hands the
//! baton back ([`wait`]), and the world runs on until an event resumes it. So blocking code, a
//! handshake or a restore, runs unchanged and gives the same run each time.
//!
//! # Invariants
//! - At most one thread runs: the world's, or that of one task.
//! - A wait has a number, and whoever ends it names it: a timeout that comes after the frame it
//!   waited for resumes nobody.
//! - A task that was cancelled waits for nothing any more; it ends as soon as it finds out.
//!
//! # Not here: what ends a wait (network.rs, stage.rs).

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::event::Host;
use crate::mutants::Mutants;

/// A task, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(u64);

/// One wait of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    task: TaskId,
    wait: u64,
}

impl Waiter {
    /// The task that waits.
    pub const fn task(self) -> TaskId {
        self.task
    }
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} wait {}", self.task.0, self.wait)
    }
}

/// All tasks of a world. Dropped, it cancels and ends them.
pub struct Tasks {
    mutants: Mutants,
    running: BTreeMap<TaskId, Task>,
    begun: u64,
}

struct Task {
    host: Host,
    hand: Arc<Hand>,
    thread: Option<JoinHandle<()>>,
}

/// Where the baton is, between the world and one task.
struct Hand {
    task: TaskId,
    holder: Mutex<Holder>,
    passed: Condvar,
}

struct Holder {
    turn: Turn,
    /// Number of the present wait, or of the next one.
    wait: u64,
    cancelled: bool,
}

enum Turn {
    World,
    Task,
    Ended(Option<Box<dyn Any + Send>>),
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Hand>>> = const { RefCell::new(None) };
}

/// The wait that the calling task would begin now; `None` in the world's own thread.
pub fn next_wait() -> Option<Waiter> {
    CURRENT.with_borrow(|current| {
        let hand = current.as_ref()?;
        Some(Waiter { task: hand.task, wait: hand.holder.lock().wait })
    })
}

/// Whether the calling task was cancelled; false in the world's own thread.
pub fn is_cancelled() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|hand| hand.holder.lock().cancelled))
}

/// Hands the baton back until somebody resumes this wait. False if the task was cancelled.
///
/// # Panics
/// If the caller is no task.
pub fn wait() -> bool {
    let hand = CURRENT.with_borrow(Clone::clone).expect("only a task may wait");
    let mut holder = hand.holder.lock();
    if holder.cancelled {
        return false;
    }
    holder.turn = Turn::World;
    hand.passed.notify_all();
    hand.await_turn(&mut holder);
    holder.wait += 1;
    !holder.cancelled
}

impl Hand {
    fn await_turn(&self, holder: &mut parking_lot::MutexGuard<'_, Holder>) {
        while matches!(holder.turn, Turn::World) {
            self.passed.wait(holder);
        }
    }

    /// The task's thread.
    fn run(self: &Arc<Self>, mutants: Mutants, act: impl FnOnce()) {
        CURRENT.set(Some(Arc::clone(self)));
        self.await_turn(&mut self.holder.lock());
        self.holder.lock().wait += 1;
        let ended = catch_unwind(AssertUnwindSafe(|| mutants.with(act))).err();
        self.holder.lock().turn = Turn::Ended(ended);
        self.passed.notify_all();
    }
}

impl Tasks {
    /// None yet; those to come have this bug.
    pub fn new(mutants: Mutants) -> Self {
        Self { mutants, running: BTreeMap::new(), begun: 0 }
    }

    /// A task of `host` that begins when its first wait is resumed.
    ///
    /// # Panics
    /// If the operating system has no thread for it.
    pub fn spawn(&mut self, host: Host, act: impl FnOnce() + Send + 'static) -> Waiter {
        let task = TaskId(self.begun);
        self.begun += 1;
        let holder = Mutex::new(Holder { turn: Turn::World, wait: 0, cancelled: false });
        let hand = Arc::new(Hand { task, holder, passed: Condvar::new() });
        let (theirs, mutants) = (Arc::clone(&hand), self.mutants);
        let thread = std::thread::Builder::new()
            .name(format!("{host} task {}", task.0))
            .spawn(move || theirs.run(mutants, act))
            .expect("a thread for a task");
        self.running.insert(task, Task { host, hand, thread: Some(thread) });
        Waiter { task, wait: 0 }
    }

    /// Lets a task run until it waits again or ends, if it still is at this wait. A panic of the
    /// task goes on in the caller. True if it ran.
    ///
    /// # Panics
    /// If the task did.
    pub fn resume(&mut self, waiter: Waiter) -> bool {
        let Some(task) = self.running.get_mut(&waiter.task) else { return false };
        let mut holder = task.hand.holder.lock();
        if holder.wait != waiter.wait {
            return false;
        }
        holder.turn = Turn::Task;
        task.hand.passed.notify_all();
        while matches!(holder.turn, Turn::Task) {
            task.hand.passed.wait(&mut holder);
        }
        let Turn::Ended(panic) = &mut holder.turn else { return true };
        let panic = panic.take();
        drop(holder);
        if let Some(thread) = task.thread.take() {
            thread.join().expect("a task's panic is caught in the task");
        }
        self.running.remove(&waiter.task);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Ends all tasks of `host`: none of their waits ends well any more.
    pub fn cancel(&mut self, host: Host) {
        let of_host = |(id, task): (&TaskId, &Task)| (task.host == host).then_some(*id);
        let tasks: Vec<TaskId> = self.running.iter().filter_map(of_host).collect();
        for task in tasks {
            self.end(task);
        }
    }

    fn end(&mut self, id: TaskId) {
        let Some(task) = self.running.get(&id) else { return };
        let wait = {
            let mut holder = task.hand.holder.lock();
            holder.cancelled = true;
            holder.wait
        };
        self.resume(Waiter { task: id, wait });
        assert!(!self.running.contains_key(&id), "a cancelled task waits");
    }

    /// Where a task runs, if it has not ended.
    pub fn host(&self, task: TaskId) -> Option<Host> {
        self.running.get(&task).map(|task| task.host)
    }

    /// Tasks that have not ended.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        while let Some(id) = self.running.keys().next().copied() {
            // A panic in a task that is being thrown away has nobody to go to.
            drop(catch_unwind(AssertUnwindSafe(|| self.end(id))));
            self.running.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Said = Arc<Mutex<Vec<String>>>;

    fn counting(said: &Said, name: &'static str) -> impl FnOnce() + Send + use<> {
        let said = Arc::clone(said);
        move || {
            for at in 1.. {
                said.lock().push(format!("{name}{at}"));
                if !wait() {
                    said.lock().push(format!("{name} ends"));
                    return;
                }
            }
        }
    }

    #[test]
    fn tasks_run_only_when_resumed_and_only_from_the_wait_they_are_at() {
        let said = Said::default();
        let mut tasks = Tasks::new(Mutants::default());
        let a = tasks.spawn(Host(0), counting(&said, "a"));
        let b = tasks.spawn(Host(1), counting(&said, "b"));
        assert_eq!(*said.lock(), [""; 0]);
        assert!(tasks.resume(b));
        assert!(tasks.resume(a));
        assert!(!tasks.resume(a), "that wait is over");
        assert!(tasks.resume(Waiter { wait: 1, ..a }));
        tasks.cancel(Host(0));
        assert!(!tasks.resume(Waiter { wait: 2, ..a }));
        drop(tasks);
        assert_eq!(*said.lock(), ["b1", "a1", "a2", "a ends", "b ends"]);
    }

    #[test]
    #[should_panic(expected = "in the task")]
    fn a_panic_in_a_task_goes_on_in_the_world() {
        let mut tasks = Tasks::new(Mutants::default());
        let task = tasks.spawn(Host(0), || panic!("in the task"));
        tasks.resume(task);
    }

    #[test]
    fn a_task_that_never_began_ends_with_its_world() {
        let said = Said::default();
        let mut tasks = Tasks::new(Mutants::default());
        tasks.spawn(Host(0), counting(&said, "a"));
        drop(tasks);
        assert_eq!(*said.lock(), ["a1", "a ends"]);
        assert_eq!((next_wait(), is_cancelled()), (None, false));
    }
}
