//! Prefill: segments are filled with zeros ahead of the writes, so that a sync need not allocate
//! blocks nor change the file's length.

use std::sync::Arc;

use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Log, Shared};
use crate::segment::name::{SPARE_NAME, log_dir};

/// Bytes filled with zeros while the writer waits.
const PREFILL_STEP: u64 = 1 << 20;

impl Log {
    /// Fills the rest of the segment that is being written, and a spare one, with zeros in this
    /// thread: what the keeper thread does by itself with [`crate::LogConfig::prefill`].
    ///
    /// # Errors
    /// `Io`, which costs only speed; `Poisoned` if a sync failed, `Closed`.
    pub fn fill_ahead(&self) -> Result<()> {
        self.shared.check_running()?;
        self.shared.prefill()
    }
}

impl Shared {
    /// Fills the rest of the current segment and a spare one with zeros, so that syncs need not
    /// allocate blocks.
    pub(crate) fn prefill(&self) -> Result<()> {
        let Some(target) = self.state.lock().group.as_ref().map(|group| group.segment_bytes.into())
        else {
            return Ok(());
        };
        while !self.keeper.stopping() {
            // In steps under the writer's lock: a fill must not overtake a write and erase it.
            let (file, number) = {
                let writer = self.writer.lock();
                let Some(current) = &writer.current else { break };
                let path = self.segment_path(current.number);
                let len = current.file.len().map_err(|e| LogError::io("measure", &path, e))?;
                if len >= target {
                    break;
                }
                let step = (len + PREFILL_STEP).min(target);
                current.file.allocate(step).map_err(|e| LogError::io("fill", &path, e))?;
                (Arc::clone(&current.file), current.number)
            };
            // Entries may lie in the pages that this sync was to write, and the kernel reports their
            // loss only once: to us, not to the flusher's next sync.
            let path = self.segment_path(number);
            file.sync_data().map_err(|e| self.poison(LogError::io("sync", &path, e)))?;
        }
        if self.keeper.stopping() || self.writer.lock().spare.is_some() {
            return Ok(());
        }
        let path = log_dir(&self.dir).join(SPARE_NAME);
        let filled = self.fill_spare(&path, target);
        match filled {
            Ok(Some(file)) => self.writer.lock().spare = Some(file),
            Ok(None) => {}
            Err(error) => {
                let _ = self.env.remove(&path);
                return Err(error);
            }
        }
        Ok(())
    }

    fn fill_spare(&self, path: &std::path::Path, target: u64) -> Result<Option<Arc<dyn EnvFile>>> {
        let file = self
            .env
            .open(path, OpenMode::CreateOrOpen)
            .map_err(|e| LogError::io("create", path, e))?;
        file.set_len(0).map_err(|e| LogError::io("cut", path, e))?;
        let mut len = 0;
        while len < target {
            if self.keeper.stopping() {
                return Ok(None);
            }
            len = (len + PREFILL_STEP).min(target);
            file.allocate(len).map_err(|e| LogError::io("fill", path, e))?;
        }
        file.sync_data().map_err(|e| LogError::io("sync", path, e))?;
        Ok(Some(file))
    }
}
