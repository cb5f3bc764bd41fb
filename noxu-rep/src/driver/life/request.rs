//! Request: a restore that an operator asks for while the node runs.
//!
//! # Not here: what is written (restore/request.rs), the restore (following.rs).

use parking_lot::MutexGuard;

use super::Life;
use crate::error::{RepError, Result};
use crate::restore::request::request;
use crate::restore::session::is_pending;
use crate::wire::election::NodeRole;

impl Life {
    /// As [`Node::request_restore`](crate::Node::request_restore), for this life.
    ///
    /// # Errors
    /// `IsMaster`; `Stopped`, also while the next life is prepared; `Log` for the disk.
    pub fn request_restore(&self) -> Result<bool> {
        let Some(_files) = self.restore_files.try_lock() else {
            return Ok(false); // a restore is at it
        };
        {
            // Held, so that it is not elected between the look and the marker.
            let core = self.core.lock();
            if self.is_over() {
                let cause = self.failure().unwrap_or_else(|| "it was shut down".to_owned());
                return Err(RepError::Stopped { cause });
            }
            if matches!(core.role(), NodeRole::Repairing | NodeRole::Master) {
                let (node, term) = (self.config.name.clone(), core.term());
                return Err(RepError::IsMaster { node, term });
            }
            if !request(&*self.env, &self.config.dir)? {
                return Ok(false);
            }
        }
        tracing::info!(node = %self.config.name, "a restore was asked for");
        self.cut_channel();
        self.around.look_again();
        Ok(true)
    }

    /// Whether a restore was asked for or begun, and has not ended.
    ///
    /// # Errors
    /// `Log` if that cannot be found out.
    pub(crate) fn restore_pending(&self) -> Result<bool> {
        is_pending(&*self.env, &self.config.dir)
    }

    /// The right to write to the directory of a restore; waits for who has it.
    pub(in crate::driver) fn hold_restore_files(&self) -> MutexGuard<'_, ()> {
        self.restore_files.lock()
    }
}
