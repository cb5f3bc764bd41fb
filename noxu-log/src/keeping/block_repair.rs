//! Block repair: replaces a damaged block of a sealed segment by the bytes it had, from a peer.
//!
//! # Crash argument
//! 1. Nothing is written before the bytes have the digest that the block had when the segment was
//!    sealed: what is written is what was there.
//! 2. It is written in place. A crash keeps any part of it. What was right in the block is written
//!    over by the same bytes, so it stays right; what was damaged is right or damaged still, and
//!    then the next scrub finds the block again.
//! 3. It is synced, then read back; only then is the block no longer counted as damaged. If the write
//!    or the sync fails it still is. That stops nothing: a sealed segment has no unsynced bytes of
//!    anybody else, and nothing that was acknowledged rests on the new ones before they are synced.
//!
//! Readers need not wait. They verify what they read from a file, so in the middle of it they see the
//! old block, which fails, or the new one; and one that failed looks again if a block was replaced
//! meanwhile.
//!
//! A segment whose file is gone altogether is made again by replacing all of its blocks.

use std::io::{ErrorKind, IoSlice};

use crate::env::OpenMode;
use crate::error::{LogError, Result};
use crate::keeping::scrub::Block;
use crate::log::Log;
use crate::segment::digest::BLOCK_BYTES;
use crate::segment::name::log_dir;

impl Log {
    /// Replaces block `block` of sealed segment `segment` by `bytes`, which must be the bytes that
    /// it had: [`BLOCK_BYTES`] of them, fewer for the last block. Durable on return. A block that is
    /// not damaged may be replaced too.
    ///
    /// # Errors
    /// `NotSealed`, `NoSuchBlock`; `WrongBlock` if the bytes have another digest, when nothing was
    /// written; `Corrupt` if nobody here knows the digests any more, or if the disk gives back other
    /// bytes than were written; `Io`, `Poisoned`, `Closed`.
    pub fn replace_block(&self, segment: u32, block: u32, bytes: &[u8]) -> Result<()> {
        let shared = &*self.shared;
        let _alone = shared.maintenance.lock();
        shared.check_running()?;
        let sealed = shared.sealed(segment).ok_or(LogError::NotSealed { segment })?;
        let side = shared.sides.open(shared, segment)?;
        let blocks = side.digests.blocks.len() as u32;
        let Some(known) = Block::all(&side).nth(block as usize) else {
            return Err(LogError::NoSuchBlock { segment, block, blocks });
        };
        let found = blake3::hash(bytes);
        if found != known.expected || bytes.len() != known.bytes as usize {
            return Err(LogError::WrongBlock { segment, block, expected: known.expected, found });
        }
        let path = shared.segment_path(segment);
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let (file, is_new) = match shared.env.open(&path, OpenMode::ReadWrite) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                (shared.env.open(&path, OpenMode::CreateNew).map_err(wrap("create"))?, true)
            }
            Err(error) => return Err(LogError::io("open", &path, error)),
        };
        file.write_at(&[IoSlice::new(bytes)], known.offset.into()).map_err(wrap("write"))?;
        if known.is_last && file.len().map_err(wrap("measure"))? > u64::from(sealed.end) {
            file.set_len(sealed.end.into()).map_err(wrap("cut"))?;
        }
        file.sync_data().map_err(wrap("sync"))?;
        if is_new {
            let dir = log_dir(&shared.dir);
            shared.env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
            shared.files.clear();
        }
        let mut buffer = vec![0; BLOCK_BYTES as usize + 1];
        let read_back = known.digest_of(&*file, &mut buffer);
        if read_back != Some(known.expected) {
            return Err(LogError::Corrupt {
                segment,
                offset: known.offset.into(),
                expected: format!("the block just written, digest {}", known.expected),
                found: read_back.map_or("nothing that can be read".into(), |d| d.to_string()),
            });
        }
        shared.scrubber.note_whole(segment, block);
        // Whoever failed on the old bytes meanwhile reads again.
        shared.state.lock().truncations += 1;
        tracing::info!(segment, block, "a block of the log was replaced");
        Ok(())
    }
}
