//! Baton: runs conversations that block, one at a time and in an order that the agenda decides.
//!
//! A task has a stack of its own and runs only while it holds the baton. Where it would block it hands
//! the baton back ([`wait`]), and the world runs on until an event resumes it. So blocking code, a
//! handshake or a restore, runs unchanged and gives the same run each time. All tasks of a world run
//! in the thread of the world: a switch costs no more than a call.
//!
//! # Invariants
//! - At most one of them runs: the world, or one task.
//! - A wait has a number, and whoever ends it names it: a timeout that comes after the frame it
//!   waited for resumes nobody.
//! - A task that was cancelled waits for nothing any more; it ends as soon as it finds out.
//!
//! # Not here: what ends a wait (network.rs, stage.rs).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use generator::{Generator, Gn};

use crate::event::Host;

/// Stack of a task in bytes; what is not touched costs nothing.
const STACK_BYTES: usize = 1 << 20;

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
#[derive(Default)]
pub struct Tasks {
    running: BTreeMap<TaskId, Task>,
    begun: u64,
    /// Of tasks that have ended: a stack is mapped once and used often.
    stacks: Vec<Body>,
}

struct Task {
    host: Host,
    state: Rc<TaskState>,
    body: Body,
}

type Body = Generator<'static, (), Option<Panic>>;

type Panic = Box<dyn Any + Send>;

/// What a task and its world both know of it.
struct TaskState {
    task: TaskId,
    /// Number of the present wait, or of the next one.
    wait: Cell<u64>,
    cancelled: Cell<bool>,
}

thread_local! {
    /// The task that holds the baton.
    static CURRENT: RefCell<Option<Rc<TaskState>>> = const { RefCell::new(None) };
}

/// The wait that the calling task would begin now; `None` in the world itself.
pub fn next_wait() -> Option<Waiter> {
    CURRENT.with_borrow(|current| {
        let state = current.as_ref()?;
        Some(Waiter { task: state.task, wait: state.wait.get() })
    })
}

/// Whether the calling task was cancelled; false in the world itself.
pub fn is_cancelled() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|state| state.cancelled.get()))
}

/// Hands the baton back until somebody resumes this wait. False if the task was cancelled.
///
/// # Panics
/// If the caller is no task.
pub fn wait() -> bool {
    let state = CURRENT.with_borrow(Clone::clone).expect("only a task may wait");
    if state.cancelled.get() {
        return false;
    }
    #[expect(deprecated, reason = "a scope cannot be handed to code that does not know of tasks")]
    generator::yield_with(None::<Panic>);
    state.wait.set(state.wait.get() + 1);
    !state.cancelled.get()
}

impl Tasks {
    /// A task of `host` that begins when its first wait is resumed.
    pub fn spawn(&mut self, host: Host, act: impl FnOnce() + Send + 'static) -> Waiter {
        let task = TaskId(self.begun);
        self.begun += 1;
        let state = Rc::new(TaskState { task, wait: Cell::new(0), cancelled: Cell::new(false) });
        let act = move || catch_unwind(AssertUnwindSafe(act)).err();
        let body = match self.stacks.pop() {
            Some(mut body) => {
                body.init_code(act);
                body
            }
            None => Gn::<()>::new_opt(STACK_BYTES / size_of::<usize>(), act),
        };
        self.running.insert(task, Task { host, state, body });
        Waiter { task, wait: 0 }
    }

    /// Lets a task run until it waits again or ends, if it still is at this wait. A panic of the
    /// task goes on in the caller. True if it ran.
    ///
    /// # Panics
    /// If the task did.
    pub fn resume(&mut self, waiter: Waiter) -> bool {
        let Some(task) = self.running.get_mut(&waiter.task) else { return false };
        if task.state.wait.get() != waiter.wait {
            return false;
        }
        if waiter.wait == 0 {
            task.state.wait.set(1);
        }
        CURRENT.set(Some(Rc::clone(&task.state)));
        let panic = task.body.resume().flatten();
        CURRENT.set(None);
        if task.body.is_done() {
            let ended = self.running.remove(&waiter.task);
            self.stacks.extend(ended.map(|task| task.body));
        }
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
        task.state.cancelled.set(true);
        let wait = task.state.wait.get();
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
    use std::sync::Arc;

    use parking_lot::Mutex;

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
        let mut tasks = Tasks::default();
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
        let mut tasks = Tasks::default();
        let task = tasks.spawn(Host(0), || panic!("in the task"));
        tasks.resume(task);
    }

    #[test]
    fn a_task_that_never_began_ends_with_its_world() {
        let said = Said::default();
        let mut tasks = Tasks::default();
        tasks.spawn(Host(0), counting(&said, "a"));
        drop(tasks);
        assert_eq!(*said.lock(), ["a1", "a ends"]);
        assert_eq!((next_wait(), is_cancelled()), (None, false));
    }
}
