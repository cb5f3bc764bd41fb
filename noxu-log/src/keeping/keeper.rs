//! Keeper: the thread that seals finished segments, drops what need not be kept of the front, and
//! fills the next segments ahead. Sleeps unless something is asked of it or comes of age. A log without
//! threads has it done by whoever calls [`crate::Log::upkeep`].

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::LogError;
use crate::log::Shared;
use crate::writing::prefill::Extent;

/// How long after a full disk had no room for a side file it is tried again.
const SEAL_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The mailbox of the keeper thread.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    request: Mutex<KeeperRequest>,
    wake: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // any of them may be asked for at once
pub(crate) struct KeeperRequest {
    pub(crate) seal: bool,
    pub(crate) prefill: bool,
    pub(crate) retain: bool,
    pub(crate) stop: bool,
}

impl Keeper {
    pub(crate) fn request_prefill(&self) {
        self.request(|request| request.prefill = true);
    }

    /// Something has changed that may free the front of the log.
    pub(crate) fn request_retention(&self) {
        self.request(|request| request.retain = true);
    }

    pub(crate) fn stop(&self) {
        self.request(|request| request.stop = true);
    }

    pub(crate) fn request(&self, set: impl FnOnce(&mut KeeperRequest)) {
        set(&mut self.request.lock());
        self.wake.notify_one();
    }

    /// Body of the keeper thread.
    pub(crate) fn run(shared: &Shared) {
        // When the front is to be looked at though nothing happens.
        let mut due: Option<Instant> = None;
        // A segment is finished and found no room for its side file.
        let mut no_room = false;
        loop {
            let task = {
                let mut request = shared.keeper.request.lock();
                while !(request.seal || request.prefill || request.retain || request.stop) {
                    match due {
                        None => shared.keeper.wake.wait(&mut request),
                        Some(due) => {
                            let waited = shared.keeper.wake.wait_until(&mut request, due);
                            request.retain |= waited.timed_out();
                            request.seal |= waited.timed_out() && no_room;
                        }
                    }
                }
                // Whoever fills in another thread looks for the stop too.
                let stop = request.stop;
                std::mem::replace(&mut *request, KeeperRequest { stop, ..Default::default() })
            };
            if task.stop {
                return;
            }
            Self::serve(shared, task, &mut due, &mut no_room);
            if no_room {
                let again = Instant::now() + SEAL_AGAIN_AFTER;
                due = Some(due.map_or(again, |due| due.min(again)));
            }
        }
    }

    /// Does what was asked for, and notes when to look at the front again, and whether a segment found
    /// no room for its side file.
    fn serve(shared: &Shared, task: KeeperRequest, due: &mut Option<Instant>, no_room: &mut bool) {
        if task.prefill
            && !shared.is_read_only()
            && let Err(error) = shared.keep_reserve()
            && !shared.keeper.stopping()
        {
            tracing::warn!(%error, "no reserve for a full disk");
        }
        if task.prefill
            && shared.config.prefill
            && let Err(error) = shared.prefill(Extent::Due)
            && !shared.keeper.stopping()
        {
            // Only speed is lost: segments grow as they are written.
            tracing::warn!(%error, "segments cannot be filled ahead");
        }
        if task.seal {
            let sealed = shared.seal_finished();
            *no_room = sealed.as_ref().is_err_and(LogError::is_storage_full);
            if let Err(error) = sealed
                && !shared.keeper.stopping()
            {
                tracing::warn!(%error, "a segment cannot be sealed");
            }
        }
        // After the sealing, which asks for it too.
        if task.retain || task.seal {
            *due = shared.retain().unwrap_or_else(|error| {
                if !shared.keeper.stopping() {
                    tracing::warn!(%error, "the front of the log cannot be dropped");
                }
                None
            });
        }
    }

    /// What is asked for.
    pub(crate) fn asked(&self) -> KeeperRequest {
        *self.request.lock()
    }

    /// Does what was asked for, where there is no thread for it.
    pub(crate) fn serve_caller(&self, shared: &Shared) {
        let task = {
            let mut request = self.request.lock();
            let stop = request.stop;
            std::mem::replace(&mut *request, KeeperRequest { stop, ..Default::default() })
        };
        // When to look again is the caller's to know.
        let (mut due, mut no_room) = (None, false);
        Self::serve(shared, task, &mut due, &mut no_room);
        if no_room {
            self.request(|request| request.seal = true);
        }
    }

    pub(crate) fn stopping(&self) -> bool {
        self.request.lock().stop
    }
}
