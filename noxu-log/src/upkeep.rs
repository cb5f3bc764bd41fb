//! Upkeep: a log without threads of its own, for whoever has none to spare, as a simulator has not.
//!
//! What flusher, marker and keeper would do is noted where they would find it, and done when the
//! owner of the log calls [`Log::upkeep`], in its thread. When that is, is the owner's choice: no
//! clock is looked at here. So what only a clock asks for is the owner's too: a sync of what nobody
//! wants to be durable ([`Log::request_sync`]), the front that has come of age ([`Log::retain`]),
//! reading sealed segments again ([`Log::scrub`]).

use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::log::{Log, Shared};

/// Who does what nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Background {
    /// Threads of the log.
    #[default]
    Threads,
    /// Whoever calls [`Log::upkeep`]: the log starts no thread. No call waits for another thread
    /// to make room in memory or on the disk. Hooks are called in the thread whose call brought about
    /// what they hear of; those of [`Log::on_poisoned`] by [`Log::upkeep`].
    Caller,
}

/// What waits for [`Log::upkeep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // any of them may be due at once
pub struct Pending {
    /// Somebody asked for a sync.
    pub sync: bool,
    /// Somebody asked for a write, or much is unwritten.
    pub write: bool,
    /// A flush under the lazy policy whose mark is not synced.
    pub lazy_mark: bool,
    /// The disk is full: it is to be asked now and then whether it has room again.
    pub look_for_room: bool,
    /// A segment is finished, or one found no room for its side file.
    pub seal: bool,
    /// Something has changed that may free the front.
    pub retain: bool,
    /// Segments or the reserve may have to be filled ahead.
    pub prefill: bool,
    /// The log has stopped, and the hooks have not heard of it.
    pub alarm: bool,
}

impl Pending {
    /// Whether anything is due.
    pub fn is_any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether nothing is due but to ask a full disk now and then for room.
    pub fn is_only_a_look_for_room(&self) -> bool {
        *self == Self { look_for_room: true, ..Self::default() }
    }
}

impl Log {
    /// What [`Log::upkeep`] would do now. Nothing if the log has threads, nothing but the
    /// alarm once it has stopped.
    pub fn pending(&self) -> Pending {
        let shared = &*self.shared;
        if shared.config.background == Background::Threads {
            return Pending::default();
        }
        let alarm = shared.alarm.load(Ordering::Acquire);
        if shared.check_running().is_err() {
            return Pending { alarm, ..Pending::default() };
        }
        let (write, sync) = shared.flusher.asked();
        let keeper = shared.keeper.asked();
        Pending {
            sync,
            write,
            lazy_mark: shared.lazy_marks.is_due(),
            look_for_room: shared.flusher.looks_for_room(),
            seal: keeper.seal,
            retain: keeper.retain,
            prefill: keeper.prefill,
            alarm,
        }
    }

    /// Does in this thread what is due: tells that the log has stopped, syncs the lazy marks of
    /// flushes before this call, looks for room on a full disk, writes and syncs what was asked for,
    /// fills ahead, seals, drops the front. What this itself makes due is left for the next call.
    /// No effect if the log has threads.
    ///
    /// # Errors
    /// `Poisoned` once a write or sync has failed; `Closed`. What the log can do without, such as a
    /// segment that cannot be sealed yet, is no error.
    pub fn upkeep(&self) -> Result<()> {
        let shared = &*self.shared;
        if shared.config.background == Background::Threads {
            return Ok(());
        }
        let due = self.pending();
        let done = shared.tend(due);
        shared.tell_alarm();
        done
    }
}

impl Shared {
    fn tend(&self, due: Pending) -> Result<()> {
        self.check_running()?;
        if due.lazy_mark {
            self.lazy_marks.take();
            self.sync_mark()?;
        }
        if due.look_for_room {
            self.look_for_room()?;
        }
        self.flusher.serve_caller(self)?;
        self.keeper.serve_caller(self);
        self.check_running()
    }

    /// Tells the hooks that the log has stopped. No lock is held.
    fn tell_alarm(&self) {
        if self.alarm.swap(false, Ordering::AcqRel)
            && let Some(cause) = self.poison.get()
        {
            self.poison_hooks().iter().for_each(|hook| hook(cause));
        }
    }
}
