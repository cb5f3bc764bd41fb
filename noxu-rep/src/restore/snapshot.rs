//! Snapshot: the state machine's checkpoint of a restore, on its way to the disk. It comes from one
//! source; a later session goes on where the last sync was, as long as that source keeps it.
//!
//! # Invariants
//! - What is written down as had was synced before; it is a hint, and verified before it is gone on with.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{Env, EnvFile, OpenMode};

use super::manifest::{CHECKPOINT, CheckpointPart, CommittedCheckpoint, hint};
use crate::error::Result;

/// Bytes of a checkpoint between two syncs.
const SYNC_BYTES: u64 = 8 << 20;

/// A checkpoint that is being fetched.
pub(super) struct Snapshot<'a> {
    env: &'a dyn Env,
    dir: PathBuf,
    file: Arc<dyn EnvFile>,
    /// Which it is, and how much of it is durable here.
    part: CheckpointPart,
    written: u64,
    hasher: blake3::Hasher,
    is_whole: bool,
}

impl<'a> Snapshot<'a> {
    /// What an earlier session had of one, so that its source can be asked to go on.
    pub(super) fn earlier(env: &dyn Env, dir: &Path) -> Result<Option<CheckpointPart>> {
        hint(CheckpointPart::load(env, dir))
    }

    /// Begins to fetch `part`, or goes on with it, if `first_offset` and what is on disk let it:
    /// `earlier` is what [`Snapshot::earlier`] said. `None` if what is needed before `first_offset` is
    /// not here.
    pub(super) fn begin(
        env: &'a dyn Env,
        dir: &Path,
        mut part: CheckpointPart,
        first_offset: u64,
        earlier: Option<&CheckpointPart>,
    ) -> Result<Option<Self>> {
        let path = dir.join(CHECKPOINT);
        let wrap = |e| LogError::io("open", &path, e);
        let file = env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
        let had = earlier.filter(|had| had.continues(&part) && had.durable >= first_offset);
        let (mut kept, mut hasher) = (0, blake3::Hasher::new());
        if let Some(had) = had {
            hasher = digest_front(&*file, had.durable).map_err(wrap)?;
            kept = had.durable;
            if *hasher.finalize().as_bytes() != had.digest {
                (kept, hasher) = (0, blake3::Hasher::new());
            }
        }
        if kept < first_offset {
            return Ok(None);
        }
        // What is behind it on disk belongs to nothing.
        (part.durable, part.digest) = (kept, *hasher.finalize().as_bytes());
        part.save(env, dir)?;
        file.set_len(kept).map_err(wrap)?;
        let dir = dir.to_owned();
        Ok(Some(Self { env, dir, file, part, written: kept, hasher, is_whole: false }))
    }

    /// Which it is.
    pub(super) const fn part(&self) -> &CheckpointPart {
        &self.part
    }

    /// Where the next piece begins.
    pub(super) const fn offset(&self) -> u64 {
        self.written
    }

    /// Writes the next piece.
    pub(super) fn write(&mut self, bytes: &[u8], is_last: bool) -> Result<()> {
        let path = self.dir.join(CHECKPOINT);
        self.file
            .write_at(&[IoSlice::new(bytes)], self.written)
            .map_err(|e| LogError::io("write", &path, e))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        self.is_whole = is_last;
        if is_last || self.written - self.part.durable >= SYNC_BYTES {
            self.file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
            self.part.durable = self.written;
            self.part.digest = *self.hasher.finalize().as_bytes();
            self.part.save(self.env, &self.dir)?;
        }
        Ok(())
    }

    /// What it is, once it is whole and durable.
    pub(super) fn committed(&self) -> Option<CommittedCheckpoint> {
        self.is_whole.then(|| CommittedCheckpoint {
            vlsn: self.part.vlsn,
            bytes: self.written,
            digest: *self.hasher.finalize().as_bytes(),
        })
    }

    /// It is of no use: what it holds was rolled back, or its source is gone.
    pub(super) fn discard(self) -> Result<()> {
        let Self { env, dir, .. } = self;
        CheckpointPart::remove(env, &dir)
    }
}

/// The digest of the first `len` bytes of a file, or of all if it is shorter.
fn digest_front(file: &dyn EnvFile, len: u64) -> std::io::Result<blake3::Hasher> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < len {
        let most = (len - at).min(buffer.len() as u64) as usize;
        let read = file.read_at(&mut buffer[..most], at)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hasher)
}
