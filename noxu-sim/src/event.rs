//! Event: what is to happen, and when.
//!
//! # Invariants
//! - Time never goes back: an event is due now or later.
//! - Events due at the same time happen in the order in which they were posted.
//!
//! # Not here: what an event does (stage.rs, and the world above it).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::baton::{self, Waiter};
use crate::network::NetEvent;

/// Time of the world since it began, in nanoseconds. No machine's clock shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl Add<Duration> for Nanos {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0 + later.as_nanos() as u64)
    }
}

impl Nanos {
    /// How long it is since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A machine of the world, by its number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub usize);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0 + 1)
    }
}

/// What is to happen.
#[derive(Debug)]
pub enum Event {
    /// Something reaches the other end of a line.
    Net(NetEvent),
    /// A task's wait is over, unless it was over before.
    Wake(Waiter),
    /// Something happened at a channel that has a listener.
    Told(Host, u64),
    /// The world's own business, on a machine or on none.
    Turn(Option<Host>, Turn),
}

/// What the world does when its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A machine takes a step, if the process of this number still runs.
    Step {
        /// Number of the process.
        life: u32,
        /// Which.
        step: Step,
    },
    /// A machine is started.
    Boot,
    /// The process of this number dies.
    Fall(u32),
    /// A client goes on.
    Client(usize),
    /// A fault comes.
    Fault(usize),
    /// It is over.
    FaultEnds(usize),
    /// Somebody looks whether the run is over.
    Look,
    /// A scenario goes on.
    Line,
}

/// What a machine does when its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The core takes an input.
    Core,
    /// The core is told the time.
    Timer,
    /// The log does its upkeep; what it syncs has taken its time by then.
    Disk,
    /// The applier applies a run.
    Apply,
    /// The housekeeper keeps house, the state is flushed, a checkpoint taken now and then.
    House,
    /// A feeder sends, or finds its replica silent.
    Feed(u64),
    /// A link is dialled.
    Dial(Host),
    /// The node that was asked to close is gone.
    Leave,
}

/// What is to happen, the next first. A clone is the same agenda.
#[derive(Clone, Default)]
pub struct Agenda {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    now: Nanos,
    posted: u64,
    queue: BinaryHeap<Reverse<Entry>>,
}

struct Entry {
    at: Nanos,
    number: u64,
    event: Event,
}

impl Entry {
    const fn key(&self) -> (Nanos, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Agenda {
    /// The time.
    pub fn now(&self) -> Nanos {
        self.shared.lock().now
    }

    /// `event` happens at `at`, or now if that has passed.
    pub fn post(&self, at: Nanos, event: Event) {
        let mut state = self.shared.lock();
        let number = state.posted;
        state.posted += 1;
        let at = at.max(state.now);
        state.queue.push(Reverse(Entry { at, number, event }));
    }

    /// `event` happens so much later.
    pub fn post_in(&self, later: Duration, event: Event) {
        let at = self.now() + later;
        self.post(at, event);
    }

    /// Goes on to the next event, if there is one.
    ///
    /// # Panics
    /// If it was due before now, which none can be.
    pub fn next(&self) -> Option<(Nanos, Event)> {
        let mut state = self.shared.lock();
        let Reverse(Entry { at, event, .. }) = state.queue.pop()?;
        assert!(at >= state.now, "{at:?} after {:?}", state.now);
        state.now = at;
        Some((at, event))
    }

    /// Lets the calling task sleep, until `at` at the latest; whoever `told` tells may wake it before
    /// with [`Event::Wake`]. False if the task was cancelled.
    ///
    /// # Panics
    /// If the caller is no task.
    pub fn sleep(&self, at: Nanos, told: impl FnOnce(Waiter)) -> bool {
        let waiter = baton::next_wait().expect("only a task may sleep");
        told(waiter);
        self.post(at, Event::Wake(waiter));
        baton::wait()
    }

    /// How much is to happen.
    pub fn len(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Whether nothing is to happen any more.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(number: usize) -> Event {
        Event::Turn(None, Turn::Client(number))
    }

    #[test]
    fn events_happen_in_order_of_time_and_then_of_posting() {
        let agenda = Agenda::default();
        for (at, number) in [(5, 1), (3, 2), (5, 3), (3, 4)] {
            agenda.post(Nanos(at), turn(number));
        }
        let mut seen = Vec::new();
        while let Some((at, event)) = agenda.next() {
            let Event::Turn(None, Turn::Client(number)) = event else { panic!("{event:?}") };
            seen.push((at.0, number));
            if number == 4 {
                agenda.post(Nanos(1), turn(5)); // what has passed happens now
                agenda.post_in(Duration::from_nanos(1), turn(6));
            }
        }
        assert_eq!(seen, [(3, 2), (3, 4), (3, 5), (4, 6), (5, 1), (5, 3)]);
        assert!(agenda.is_empty());
        assert_eq!(agenda.now(), Nanos(5));
    }
}
