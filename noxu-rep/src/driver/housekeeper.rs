//! Housekeeper: what has to be done some time, by a thread of its own: giving up on commits whose
//! time ran out, and moving the commit floor after DTVLSN.
//!
//! # Invariants
//! - The commit floor never passes a DTVLSN known, and follows it within `FLOOR_LAG`.
//! - It sleeps unless something is due; nobody pays for it by the commit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use noxu_log::Log;
use noxu_util::Vlsn;
use parking_lot::{Condvar, Mutex};

use crate::clock::Clock;
use crate::core::commits::Now;
use crate::error::Result;

/// How long the durable commit floor may lag behind DTVLSN. A checkpoint does not wait for it: see
/// [`Housekeeper::raise_floor`].
const FLOOR_LAG: Duration = Duration::from_secs(1);

/// No expiry is due.
const NEVER: u64 = u64::MAX;

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER - 1)
}

/// Does what has to be done some time.
pub struct Housekeeper {
    log: Log,
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
    advanced: Condvar,
    /// When the next expiry is due, in nanoseconds; a look that spares most commits the lock.
    armed: AtomicU64,
    /// Held around an update of the commit floor, so that it never falls.
    floor: Mutex<Vlsn>,
}

struct State {
    dtvlsn: Vlsn,
    /// When the commit floor is to be moved.
    floor_due: Option<Duration>,
    /// When the first time runs out, or an earlier moment.
    expiry_due: Option<Duration>,
    stop: bool,
    /// Who is in [`Housekeeper::wait_dtvlsn`].
    waiting: usize,
}

impl State {
    fn due(&self) -> Option<Now> {
        match (self.expiry_due, self.floor_due) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl Housekeeper {
    /// A housekeeper of `log`, whose control file knows the commit floor.
    pub fn new(log: Log, clock: Clock) -> Self {
        let floor = log.control().state().commit_floor;
        let state =
            State { dtvlsn: floor, floor_due: None, expiry_due: None, stop: false, waiting: 0 };
        Self {
            log,
            clock,
            state: Mutex::new(state),
            changed: Condvar::new(),
            advanced: Condvar::new(),
            armed: AtomicU64::new(NEVER),
            floor: Mutex::new(floor),
        }
    }

    /// Something's time runs out at `deadline`, such as that of a pending commit.
    pub fn arm(&self, deadline: Duration) {
        if self.armed.load(Ordering::Acquire) <= nanos(deadline) {
            return;
        }
        let mut state = self.state.lock();
        if state.expiry_due.is_none_or(|due| deadline < due) {
            state.expiry_due = Some(deadline);
            self.armed.store(nanos(deadline), Ordering::Release);
            self.changed.notify_one();
        }
    }

    /// Everything through `dtvlsn` is durable on a majority.
    pub fn handle_dtvlsn(&self, dtvlsn: Vlsn) {
        let mut state = self.state.lock();
        if dtvlsn > state.dtvlsn {
            state.dtvlsn = dtvlsn;
            if state.waiting > 0 {
                self.advanced.notify_all();
            }
            if state.floor_due.is_none() {
                state.floor_due = Some(self.clock.now() + FLOOR_LAG);
                self.changed.notify_one();
            }
        }
    }

    /// Highest VLSN heard of as durable on a majority.
    pub fn dtvlsn(&self) -> Vlsn {
        self.state.lock().dtvlsn
    }

    /// Blocks until [`Housekeeper::dtvlsn`] is at or beyond `vlsn`; false if the time is up or the
    /// node stops before.
    pub fn wait_dtvlsn(&self, vlsn: Vlsn, timeout: Duration) -> bool {
        let deadline = std::time::Instant::now() + timeout;
        let mut state = self.state.lock();
        state.waiting += 1;
        while state.dtvlsn < vlsn && !state.stop {
            if self.advanced.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.waiting -= 1;
        state.dtvlsn >= vlsn
    }

    /// Makes durable that nothing at or below `vlsn`, and nothing that a majority is known to hold,
    /// may ever be rolled back. Everything through `vlsn` is on this node's disk on return.
    pub fn raise_floor(&self, vlsn: Vlsn) -> Result<()> {
        if self.log.positions().durable < vlsn {
            self.log.sync_now()?;
        }
        let target = self.dtvlsn().max(vlsn).min(self.log.positions().durable);
        let mut floor = self.floor.lock();
        if target > *floor {
            self.log.control().update(|control| {
                control.commit_floor = control.commit_floor.max(target);
            })?;
            *floor = target;
            self.log.settle(target);
        }
        Ok(())
    }

    /// Everything through `vlsn` is in the state machine's checkpoint.
    pub fn handle_checkpoint(&self, vlsn: Vlsn) {
        self.log.set_checkpoint(vlsn);
    }

    /// Does what is due; `expire(now)` gives up on commits and returns when the next one is due.
    /// Returns when something is due next.
    ///
    /// # Errors
    /// The control file's.
    pub fn step(&self, expire: impl Fn(Duration) -> Option<Duration>) -> Result<Option<Now>> {
        let mut state = self.state.lock();
        loop {
            let now = self.clock.now();
            if state.expiry_due.is_some_and(|due| due <= now) {
                state.expiry_due = None;
                // Before the look at the commits: one registered after it arms anew.
                self.armed.store(NEVER, Ordering::Release);
                drop(state);
                let next = expire(now);
                state = self.state.lock();
                // Something may have been armed meanwhile.
                state.expiry_due = next.into_iter().chain(state.expiry_due).min();
                self.armed.store(state.expiry_due.map_or(NEVER, nanos), Ordering::Release);
            } else if state.floor_due.is_some_and(|due| due <= now) {
                state.floor_due = None;
                drop(state);
                self.raise_floor(Vlsn::default())?;
                state = self.state.lock();
            } else {
                return Ok(state.due());
            }
        }
    }

    /// The thread: [`Housekeeper::step`] whenever something is due.
    ///
    /// # Errors
    /// The control file's.
    pub fn run_thread(&self, expire: impl Fn(Duration) -> Option<Duration>) -> Result<()> {
        loop {
            self.step(&expire)?;
            let mut state = self.state.lock();
            if state.stop {
                return Ok(());
            }
            // Looked up again: it may have changed since the step.
            match state.due() {
                Some(due) => {
                    let wait = due.saturating_sub(self.clock.now());
                    self.changed.wait_for(&mut state, wait);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Ends [`Housekeeper::run_thread`].
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
        self.advanced.notify_all();
    }
}
