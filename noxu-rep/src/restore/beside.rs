//! Beside: work that goes on beside the session that has begun it, and ends before that does.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::session::{RestoreHost, Work};
use crate::error::{RepError, Result};

/// Work that was begun. Whoever drops it waits for its end.
pub(super) struct Beside<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    is_over: bool,
    /// What came of it, until somebody takes it.
    outcome: Option<Result<T>>,
}

impl<T: Send + 'static> Beside<T> {
    /// Has `host` run `work`, by another thread if one is to be had, else at once. It has failed if it
    /// panics.
    pub(super) fn begin(
        host: &dyn RestoreHost,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Self {
        let (begun, left) = Self::attempt(host, work);
        if let Some(work) = left {
            work();
        }
        begun
    }

    /// The same of work that waits for the session; `None` if a thread was wanted and not to be had.
    pub(super) fn begin_waiting(
        host: &dyn RestoreHost,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Option<Self> {
        let (begun, left) = Self::attempt(host, work);
        let is_begun = left.is_none();
        // What is dropped has ended, and nobody waits for it.
        drop(left);
        is_begun.then_some(begun)
    }

    fn attempt(
        host: &dyn RestoreHost,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> (Self, Option<Work>) {
        let state = Mutex::new(State { is_over: false, outcome: None });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let end = EndOf(Arc::clone(&shared));
        let left = host.run_beside(Box::new(move || end.0.end(work())));
        (Self(shared), left)
    }
}

impl<T> Beside<T> {
    pub(super) fn is_over(&self) -> bool {
        self.0.state.lock().is_over
    }

    /// What came of it, once, if it is over.
    pub(super) fn take(&self) -> Option<Result<T>> {
        self.0.state.lock().outcome.take()
    }

    /// Waits until it is over, but no longer than that.
    pub(super) fn wait_for(&self, time: Duration) {
        let mut state = self.0.state.lock();
        self.0.changed.wait_while_for(&mut state, |state| !state.is_over, time);
    }

    /// Waits until it is over.
    pub(super) fn wait(&self) {
        self.0.changed.wait_while(&mut self.0.state.lock(), |state| !state.is_over);
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.wait();
    }
}

impl<T> Shared<T> {
    /// It is over, unless it was before.
    fn end(&self, outcome: Result<T>) {
        let mut state = self.state.lock();
        if !state.is_over {
            (state.is_over, state.outcome) = (true, Some(outcome));
            self.changed.notify_all();
        }
    }
}

/// Says that the work is over, however it ends, and if it never begins.
struct EndOf<T>(Arc<Shared<T>>);

impl<T> Drop for EndOf<T> {
    fn drop(&mut self) {
        self.0.end(Err(RepError::state_machine("a thread of a restore panicked")));
    }
}
