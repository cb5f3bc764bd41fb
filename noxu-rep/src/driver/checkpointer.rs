//! Checkpointer: has the state machine take a checkpoint when nothing else keeps the front of the log
//! from being dropped.
//!
//! A state machine that never takes one by itself would otherwise let the log grow for ever. It is
//! asked in a thread of its own: nobody's commit waits for it.

use noxu_log::Log;
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::driver::housekeeper::Housekeeper;
use crate::error::{RepError, Result};
use crate::sync::StateMachine;

/// Takes checkpoints that the log waits for.
#[derive(Default)]
pub(crate) struct Checkpointer {
    request: Mutex<Request>,
    requested: Condvar,
}

#[derive(Default)]
struct Request {
    /// What a checkpoint has to reach; NULL if none is wanted.
    wanted: Vlsn,
    stop: bool,
}

impl Checkpointer {
    /// The log could drop its front if there were a checkpoint at `vlsn`. Returns at once.
    pub(crate) fn request(&self, vlsn: Vlsn) {
        self.request.lock().wanted = vlsn;
        self.requested.notify_one();
    }

    /// The thread. A checkpoint that falls short of what was wanted is not tried again before the
    /// log asks again, which it does when something has changed; nor is one that fails, of which
    /// `failed` is told.
    pub(crate) fn run_thread(
        &self,
        log: &Log,
        machine: &dyn StateMachine,
        housekeeper: &Housekeeper,
        failed: impl Fn(&RepError),
    ) {
        loop {
            {
                let mut request = self.request.lock();
                while request.wanted.is_null() && !request.stop {
                    self.requested.wait(&mut request);
                }
                if request.stop {
                    return;
                }
                request.wanted = NULL_VLSN;
            }
            if let Err(cause) = checkpoint(log, machine, housekeeper) {
                tracing::warn!("no checkpoint, so the log keeps its front: {cause}");
                failed(&cause);
            }
        }
    }

    /// Ends [`Checkpointer::run_thread`].
    pub(crate) fn stop(&self) {
        self.request.lock().stop = true;
        self.requested.notify_all();
    }
}

/// Makes the state durable and tells the log so. Returns the VLSN through which it is.
pub(crate) fn checkpoint(
    log: &Log,
    machine: &dyn StateMachine,
    housekeeper: &Housekeeper,
) -> Result<Vlsn> {
    // Nothing below a checkpoint may be rolled back, nor below the log's front.
    housekeeper.raise_floor(Vlsn::default())?;
    let vlsn = machine.checkpoint()?;
    log.set_checkpoint(vlsn);
    Ok(vlsn)
}
