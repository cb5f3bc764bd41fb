//! Batch: what was written until some moment, on its way to the disk.

use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{Env, EnvFile};

use super::super::bitmap::Slots;
use super::super::manifest::Verified;
use crate::error::Result;

/// What was written, and what may be claimed once it is durable.
pub(super) struct Batch {
    pub(super) env: Arc<dyn Env>,
    pub(super) dir: PathBuf,
    /// The segments with bytes that are not synced.
    pub(super) files: Vec<(PathBuf, Arc<dyn EnvFile>)>,
    /// Where it is claimed, and the blocks that were here then.
    pub(super) claims: (Arc<Slots>, Vec<u8>),
    /// The segments that were verified then, if more are than were before.
    pub(super) verified: Option<Verified>,
    #[cfg(test)]
    pub(super) mutation: super::Mutation,
}

impl Batch {
    /// Syncs it, and only then claims it.
    pub(super) fn sync(self) -> Result<()> {
        #[cfg(test)]
        if self.mutation == super::Mutation::ClaimsFirst {
            self.claim()?;
            return self.sync_data();
        }
        self.sync_data()?;
        self.claim()?;
        match &self.verified {
            Some(verified) => verified.save(&*self.env, &self.dir),
            None => Ok(()),
        }
    }

    fn claim(&self) -> Result<()> {
        let (slots, had) = &self.claims;
        slots.save(had)
    }

    fn sync_data(&self) -> Result<()> {
        for (path, file) in &self.files {
            file.sync_data().map_err(|e| LogError::io("sync", path, e))?;
        }
        // The names too: a block in a file without a name is no block.
        let synced = self.env.sync_dir(&self.dir);
        Ok(synced.map_err(|e| LogError::io("sync directory", &self.dir, e))?)
    }
}
