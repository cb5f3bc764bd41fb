//! Marker: the second stage of a group commit: when the tail mark is written and synced, and when
//! the log may therefore be called durable.
//!
//! | policy | `durable` moves | the mark is written | and synced |
//! |---|---|---|---|
//! | Strict | after the mark's sync | after the data's sync | before anybody is told |
//! | Lazy | after the data's sync | once everybody was told, if nobody is syncing it | 1 ms after a flush that no other follows, at the latest 10 ms after the first unmarked one |
//!
//! # Invariants
//! - `durable <= marked <= synced` under Strict, `marked <= synced` and `durable <= synced` always:
//!   a mark never speaks of what is not synced. Asserted in [`crate::log::State::check_invariants`] and here.
//! - Marks are synced in log order: whoever has synced data takes the marker before it lets the
//!   writer go, and what it marks is `synced`, which only grows.
//!
//! # Crash argument
//! 1. `synced` moves only after the data's sync returned, under the writer's lock.
//! 2. A mark is made of `synced` after that, so a crash at any moment leaves a mark that speaks of
//!    synced data only: recovery may take an invalid entry at or below it for damage.
//! 3. A slot is one sector and the two are written in turn: a crash in the middle of a mark's write
//!    leaves it or the one before, and the one before covers everything that was acknowledged.
//! 4. Strict: `durable` moves, and waiters and hooks are told, only after the mark's own sync. So
//!    after a crash at any call the mark covers everything that anybody was told of, and an entry
//!    above it may be cut: nobody was told of it.
//! 5. Lazy: what lies between the mark's last sync and `durable` was acknowledged and is not covered.
//!    A torn write cannot take it, because it was synced; but should it rot before the next open,
//!    that rot is taken for a torn write and cut. [`Log::mark_status`] says how much that is.
//! 6. A truncation, and whoever else moves the end of the log back, holds the writer and the marker:
//!    no mark of the old end can be written after that of the new one.

use std::sync::Arc;
use std::time::Instant;

use noxu_util::{Latencies, Vlsn};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::Result;
use crate::log::{Log, Shared};
use crate::mutant::{self, Mutant};
use crate::writing::tail_mark::{Mark, TailMark};

/// When the tail mark is written, and whether an acknowledgement waits for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MarkPolicy {
    /// Synced after the data and before anybody is told: whatever was acknowledged is never taken
    /// for a torn write. Costs a second sync, which runs beside the next batch's first. For voters.
    #[default]
    Strict,
    /// Synced a few milliseconds later, while nobody waits for it. What was acknowledged since is
    /// exempt: if it rots before the next open, it is cut as if it had never been acknowledged.
    Lazy,
}

impl std::fmt::Display for MarkPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::Lazy => "lazy",
        })
    }
}

impl std::str::FromStr for MarkPolicy {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "strict" => Ok(Self::Strict),
            "lazy" => Ok(Self::Lazy),
            other => Err(format!("{other:?} is no tail mark policy: strict or lazy")),
        }
    }
}

/// How far the tail mark protects what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkStatus {
    /// The policy in force.
    pub policy: MarkPolicy,
    /// Everything through it is covered by the mark on the disk.
    pub marked: Vlsn,
    /// Everything through it was reported as durable.
    pub durable: Vlsn,
}

impl MarkStatus {
    /// How many entries were reported as durable and are not covered: were one of them to rot before
    /// the next open, it would be cut as a torn write. 0 under Strict.
    pub fn exempt(&self) -> u64 {
        self.durable.since(self.marked.min(self.durable))
    }
}

/// How long the syncs of a log have taken since it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncLatencies {
    /// Syncs of segments by group commits.
    pub data: Latencies,
    /// Syncs of the tail mark.
    pub mark: Latencies,
}

/// Under Lazy, how many times its delay after a flush the mark is synced at the latest.
const LAZY_LIMIT: u32 = 10;

/// The right to write the tail mark.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) mark: TailMark,
}

impl Marker {
    pub(crate) const fn new(mark: TailMark) -> Self {
        Self { mark }
    }
}

impl Log {
    /// How far the tail mark protects what was acknowledged.
    pub fn mark_status(&self) -> MarkStatus {
        let state = self.shared.state.lock();
        MarkStatus {
            policy: self.shared.config.tail_mark,
            marked: state.marked,
            durable: state.durable,
        }
    }

    /// How long syncs have taken since the log was opened.
    pub fn sync_latencies(&self) -> SyncLatencies {
        SyncLatencies { data: self.shared.data_syncs.read(), mark: self.shared.mark_syncs.read() }
    }
}

impl Shared {
    /// The second stage under Strict, in this thread; returns `durable`. Called with the marker taken
    /// before the writer was let go, so that marks are made in the order of the data.
    pub(crate) fn mark_strictly(&self, marker: MutexGuard<'_, Marker>) -> Result<Vlsn> {
        // What others have synced since is marked along.
        let (synced, durable) = {
            let state = self.state.lock();
            (state.synced, state.durable)
        };
        if synced.vlsn == durable {
            return Ok(durable);
        }
        if !self.write_mark(&marker, synced)? {
            drop(marker);
            self.tell_read_only();
            return Ok(durable);
        }
        {
            let mut state = self.state.lock();
            assert!(
                state.marked >= synced.vlsn,
                "{} told of, marked {}",
                synced.vlsn,
                state.marked
            );
            state.durable = synced.vlsn;
            if cfg!(debug_assertions) {
                state.check_invariants();
            }
        }
        drop(marker);
        self.publish();
        Ok(synced.vlsn)
    }

    /// The second stage under Lazy, for which nobody waits: writes the mark, and leaves its sync to
    /// the thread that has time for it.
    pub(crate) fn mark_lazily(&self) -> Result<()> {
        // While it is being synced, the next flush writes it. Somebody who was told of the batch may have
        // closed the log.
        if let Some(marker) = self.marker.try_lock()
            && let Ok(_ours) = self.directory()
        {
            let synced = self.state.lock().synced;
            match marker.mark.write(synced) {
                // A later flush writes it.
                Err(cause) if cause.is_storage_full() => {}
                done => done.map_err(|cause| self.poison(cause))?,
            }
        }
        self.lazy_marks.note_flush();
        Ok(())
    }

    /// Writes and syncs a mark; false if there is no room for it, which makes the log read-only.
    fn write_mark(&self, marker: &Marker, synced: Mark) -> Result<bool> {
        let _ours = self.directory()?;
        match marker.mark.write(synced) {
            Err(cause) if cause.is_storage_full() => {
                self.become_read_only(&marker.mark.path());
                return Ok(false);
            }
            done => done.map_err(|cause| self.poison(cause))?,
        }
        if !mutant::is_on(Mutant::ToldBeforeMark) {
            let marked = self.mark_syncs.time(|| marker.mark.sync());
            marked.map_err(|cause| self.poison(cause))?;
        }
        let mut state = self.state.lock();
        assert!(synced.vlsn <= state.synced.vlsn, "marked {}, which is not synced", synced.vlsn);
        state.marked = synced.vlsn;
        Ok(true)
    }

    /// Tells waiters and hooks how far the log is durable. No lock is held but that of the telling.
    pub(crate) fn publish(&self) {
        // Again in a hook that syncs, whether or not a truncation waits.
        let _telling = self.publishing.read_recursive();
        let durable = self.state.lock().durable;
        self.waiters.wake_through(durable);
        let hooks = Arc::clone(&self.hooks.read().durable);
        for hook in &*hooks {
            hook(durable);
        }
    }

    /// Writes and syncs the mark if it is behind, which it is under Lazy only.
    pub(crate) fn sync_mark(&self) -> Result<()> {
        self.catch_mark_up(&self.marker.lock()).map(|_| ())
    }

    /// Writes and syncs the mark if it is behind; false if there is no room for it.
    pub(crate) fn catch_mark_up(&self, marker: &Marker) -> Result<bool> {
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        let (synced, marked) = {
            let state = self.state.lock();
            (state.synced, state.marked)
        };
        if synced.vlsn > marked { self.write_mark(marker, synced) } else { Ok(true) }
    }
}

/// The mailbox of the thread that syncs lazy marks.
#[derive(Debug, Default)]
pub(crate) struct LazyMarks {
    request: Mutex<LazyRequest>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct LazyRequest {
    /// The first flush whose mark is not synced.
    since: Option<Instant>,
    flushes: u64,
    stop: bool,
}

impl LazyMarks {
    fn note_flush(&self) {
        let mut request = self.request.lock();
        request.flushes += 1;
        if request.since.is_none() {
            request.since = Some(Instant::now());
            self.wake.notify_one();
        }
    }

    /// Whether a flush waits for its mark's sync.
    pub(crate) fn is_due(&self) -> bool {
        self.request.lock().since.is_some()
    }

    /// The mark of every flush before this call is about to be synced.
    pub(crate) fn take(&self) {
        self.request.lock().since = None;
    }

    pub(crate) fn stop(&self) {
        self.request.lock().stop = true;
        self.wake.notify_one();
    }

    /// Body of the thread.
    pub(crate) fn run(shared: &Shared) {
        let this = &shared.lazy_marks;
        let delay = shared.config.lazy_mark_delay;
        let mut request = this.request.lock();
        loop {
            if request.stop {
                return;
            }
            let Some(since) = request.since else {
                this.wake.wait(&mut request);
                continue;
            };
            let flushes = request.flushes;
            this.wake.wait_until(&mut request, since + delay);
            if request.flushes != flushes && !request.stop {
                this.wake.wait_until(&mut request, since + LAZY_LIMIT * delay);
            }
            if request.stop {
                return;
            }
            request.since = None;
            let done = MutexGuard::unlocked(&mut request, || shared.sync_mark());
            if let Err(error) = done {
                tracing::debug!(%error, "no more tail marks");
                return;
            }
        }
    }
}
