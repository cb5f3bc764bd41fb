//! Segment copy: puts a sealed segment in the place of one whose blocks' digests are lost, or whose file
//! is, from a peer's.
//!
//! The digests of single blocks stand in the side file. If that is lost, and the segment is damaged, so
//! that it cannot be made again, nobody here knows them any more, and a peer's word for them is not asked
//! for: who gives the bytes would then say what proves them. But the digest of the whole segment is
//! known as long as the log is open. So all of the segment is fetched, beside the old one, and
//! believed once it has that digest.
//!
//! # Crash argument
//! 1. The copy is written under a temporary name. No open believes such a file: it removes it.
//! 2. It is synced, then read back and digested. Only if the digest is that which the segment was sealed
//!    with does it take the segment's name: what is under that name is the old file, or every byte of the
//!    right one.
//! 3. The directory is synced before the blocks no longer count as damaged.
//!
//! The side file is made again by whoever needs it, from the segment.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Log, Sealed, Shared};
use crate::segment::digest::{BLOCK_BYTES, Digests};
use crate::segment::name::{log_dir, segment_name};

impl Log {
    /// Begins to copy sealed segment `segment`, whose blocks are written in their order by
    /// [`SegmentCopy::push`].
    ///
    /// # Errors
    /// `NotSealed`; `Io`, `Poisoned`, `Closed`.
    pub fn begin_segment_copy(&self, segment: u32) -> Result<SegmentCopy> {
        let shared = Arc::clone(&self.shared);
        shared.check_running()?;
        let sealed = shared.sealed(segment).ok_or(LogError::NotSealed { segment })?;
        let path = log_dir(&shared.dir).join(format!("{}.copy", segment_name(segment)));
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let file = {
            let _ours = shared.directory()?;
            let file = shared.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap("create"))?;
            file.set_len(0).map_err(wrap("cut"))?;
            file
        };
        Ok(SegmentCopy { shared, sealed, path, file, at: 0, done: false })
    }
}

/// A copy of a segment that is being written. Dropped before [`SegmentCopy::finish`], it is removed.
#[derive(Debug)]
pub struct SegmentCopy {
    shared: Arc<Shared>,
    sealed: Sealed,
    path: PathBuf,
    file: Arc<dyn EnvFile>,
    /// Bytes written.
    at: u32,
    done: bool,
}

impl SegmentCopy {
    /// Number of the next block; `None` if all have been written.
    pub fn next_block(&self) -> Option<u32> {
        (self.at < self.sealed.end).then_some(self.at / BLOCK_BYTES)
    }

    /// Writes the next block. False if it has not the length of that block, when nothing was written.
    ///
    /// # Errors
    /// `Io`, `Closed`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        if bytes.len() as u64 != u64::from((self.sealed.end - self.at).min(BLOCK_BYTES)) {
            return Ok(false);
        }
        let _ours = self.shared.directory()?;
        let written = self.file.write_passing(&[IoSlice::new(bytes)], self.at.into());
        written.map_err(|e| LogError::io("write", &self.path, e))?;
        self.at += bytes.len() as u32;
        Ok(true)
    }

    /// Puts the copy in the segment's place. False if it is not that segment, or not all of it: then
    /// it is gone, and the segment is as it was. Durable on return.
    ///
    /// # Errors
    /// `NotSealed` if the segment was dropped or opened meanwhile; `Io`, `Poisoned`, `Closed`.
    pub fn finish(mut self) -> Result<bool> {
        if self.at != self.sealed.end {
            return Ok(false);
        }
        let shared = Arc::clone(&self.shared);
        let number = self.sealed.header.number;
        let wrap = |action, path: &std::path::Path| {
            let path = path.to_owned();
            move |e| LogError::io(action, &path, e)
        };
        {
            let _ours = shared.directory()?;
            self.file.sync_data().map_err(wrap("sync", &self.path))?;
        }
        // What the disk has, not what is left in memory of the writing.
        let _ = self.file.drop_cached(0, self.sealed.end.into());
        let found = Digests::of_file(&*self.file, self.sealed.end);
        if found.map_err(wrap("read", &self.path))?.segment != self.sealed.digest {
            return Ok(false);
        }
        let _alone = shared.maintenance.lock();
        shared.check_running()?;
        if shared.sealed(number).is_none_or(|now| now != self.sealed) {
            return Err(LogError::NotSealed { segment: number });
        }
        let path = shared.segment_path(number);
        shared.env.rename(&self.path, &path).map_err(wrap("rename", &self.path))?;
        self.done = true;
        let dir = log_dir(&shared.dir);
        shared.env.sync_dir(&dir).map_err(wrap("sync directory", &dir))?;
        shared.files.clear();
        for block in 0..self.sealed.end.div_ceil(BLOCK_BYTES) {
            shared.scrubber.note_whole(number, block);
        }
        // Whoever failed on the old bytes meanwhile reads again.
        shared.state.lock().truncations += 1;
        tracing::info!(segment = number, "a segment of the log was replaced");
        Ok(true)
    }
}

impl Drop for SegmentCopy {
    fn drop(&mut self) {
        if !self.done
            && let Ok(_ours) = self.shared.directory()
        {
            let _ = self.shared.env.remove(&self.path); // the next open does
        }
    }
}
