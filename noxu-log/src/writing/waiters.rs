//! Waiters: threads that sleep until the log is durable as far as each of them asked, so that a
//! sync wakes exactly those whom it satisfies.
//!
//! # Invariants
//! - Whoever is in the heap is asleep or about to be: a waiter that leaves takes its place with it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

use noxu_util::Vlsn;
use parking_lot::Mutex;

/// Threads that wait for `durable`, ordered by the VLSN they wait for.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    heap: Mutex<BinaryHeap<Reverse<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    vlsn: Vlsn,
    woken: Arc<AtomicBool>,
    thread: Thread,
}

/// A place in [`Waiters`], given back when it is dropped.
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    woken: Arc<AtomicBool>,
}

impl Waiter<'_> {
    /// Sleeps until this waiter's VLSN is reached or everybody is woken.
    pub(crate) fn park(&self) {
        while !self.woken.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Satisfied without having been woken, which is rare: a sync came between the last look at
        // `durable` and the registration.
        if !self.woken.load(Ordering::Acquire) {
            self.waiters.heap.lock().retain(|Reverse(it)| !Arc::ptr_eq(&it.woken, &self.woken));
        }
    }
}

impl Waiters {
    /// How many are asleep or about to be.
    pub(crate) fn count(&self) -> usize {
        self.heap.lock().len()
    }

    /// Enters the calling thread. It looks at `durable` once more before it parks: a sync before
    /// this call wakes nobody.
    pub(crate) fn register(&self, vlsn: Vlsn) -> Waiter<'_> {
        let woken = Arc::new(AtomicBool::new(false));
        let thread = std::thread::current();
        self.heap.lock().push(Reverse(Waiting { vlsn, woken: Arc::clone(&woken), thread }));
        Waiter { waiters: self, woken }
    }

    /// Wakes those whom `durable` satisfies.
    pub(crate) fn wake_through(&self, durable: Vlsn) {
        let mut satisfied = Vec::new();
        {
            let mut heap = self.heap.lock();
            while heap.peek().is_some_and(|first| first.0.vlsn <= durable) {
                satisfied.extend(heap.pop());
            }
        }
        // Without the lock, which the first ones woken soon want again.
        for Reverse(waiting) in satisfied {
            waiting.wake();
        }
    }

    /// Wakes everybody, to look whether the log still runs.
    pub(crate) fn wake_all(&self) {
        for Reverse(waiting) in self.heap.lock().drain() {
            waiting.wake();
        }
    }
}

impl Waiting {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.vlsn == other.vlsn
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.vlsn.cmp(&other.vlsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_that_was_satisfied_before_it_parked_leaves_nothing_behind() {
        let waiters = Waiters::default();
        let first = waiters.register(Vlsn::new(7));
        let second = waiters.register(Vlsn::new(7));
        drop(first);
        assert_eq!(waiters.heap.lock().len(), 1);
        waiters.wake_through(Vlsn::new(6));
        assert!(!second.woken.load(Ordering::Relaxed));
        waiters.wake_through(Vlsn::new(7));
        second.park();
        assert!(waiters.heap.lock().is_empty());
    }

    #[test]
    fn exactly_those_are_woken_whom_a_sync_satisfies() {
        let waiters = Waiters::default();
        let all: Vec<_> = [5, 1, 3, 9].map(|vlsn| waiters.register(Vlsn::new(vlsn))).into();
        waiters.wake_through(Vlsn::new(4));
        let woken: Vec<_> = all.iter().map(|w| w.woken.load(Ordering::Relaxed)).collect();
        assert_eq!(woken, [false, true, true, false]);
    }
}
