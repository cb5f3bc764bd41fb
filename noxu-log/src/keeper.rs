//! Keeper: the thread that seals finished segments and fills the next ones ahead.

use parking_lot::{Condvar, Mutex};

use crate::log::Shared;

/// The mailbox of the keeper thread: seals, and prepares the next segment.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    request: Mutex<KeeperRequest>,
    wake: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct KeeperRequest {
    pub(crate) seal: bool,
    pub(crate) prefill: bool,
    pub(crate) stop: bool,
}

impl Keeper {
    pub(crate) fn request_prefill(&self) {
        self.request(|request| request.prefill = true);
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
        loop {
            let task = {
                let mut request = shared.keeper.request.lock();
                while !(request.seal || request.prefill || request.stop) {
                    shared.keeper.wake.wait(&mut request);
                }
                std::mem::take(&mut *request)
            };
            if task.stop {
                return;
            }
            if task.prefill
                && shared.config.prefill
                && let Err(error) = shared.prefill()
            {
                // Only speed is lost: segments grow as they are written.
                tracing::warn!(%error, "segments cannot be filled ahead");
            }
            if task.seal
                && let Err(error) = shared.seal_finished()
            {
                tracing::warn!(%error, "a segment cannot be sealed");
            }
        }
    }

    pub(crate) fn stopping(&self) -> bool {
        self.request.lock().stop
    }
}
