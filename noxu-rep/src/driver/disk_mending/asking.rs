//! Asking: one peer is asked for one damaged thing, and what comes is put back if it is proven.
//!
//! # Not here: who is asked for what, and when (disk_mending.rs).

use noxu_log::{ENTRY_HEADER_BYTES, EntryHeader, Faulty, Log, LogError};

use super::super::mending::{damage_of, put_back};
use crate::core::damage::Unmended;
use crate::error::Result;
use crate::restore::block_fetch::BlockSource;
use crate::wire::restore::BLOCK_BYTES;

/// What came of asking one peer for one thing.
pub(super) enum Asked {
    Mended,
    /// Why not.
    Not(Unmended),
    /// It is not damaged any more, or no part of the log, or somebody else's to mend at the moment.
    Later,
}

/// Puts a block of a peer's in the place of ours, if it is that.
pub(super) fn replace_block(
    log: &Log,
    source: &mut BlockSource,
    segment: u32,
    block: u32,
) -> Result<Asked> {
    let Some(bytes) = source.block(segment, block)? else {
        return Ok(Asked::Not(Unmended::NobodyHasIt));
    };
    Ok(match log.replace_block(segment, block, &bytes) {
        Ok(()) => Asked::Mended,
        Err(LogError::WrongBlock { .. }) => {
            source.doubt(segment, block);
            Asked::Not(Unmended::WrongBytes)
        }
        Err(LogError::NotSealed { .. }) => Asked::Later,
        Err(cause) => Asked::Not(Unmended::Disk(cause.to_string())),
    })
}

/// Puts a whole segment of a peer's in the place of ours, if it is that.
pub(super) fn copy_segment(log: &Log, source: &mut BlockSource, segment: u32) -> Result<Asked> {
    let on_disk = |cause: LogError| match cause {
        LogError::NotSealed { .. } => Asked::Later,
        cause => Asked::Not(Unmended::Disk(cause.to_string())),
    };
    let mut copy = match log.begin_segment_copy(segment) {
        Ok(copy) => copy,
        Err(cause) => return Ok(on_disk(cause)),
    };
    while let Some(block) = copy.next_block() {
        let Some(bytes) = source.block(segment, block)? else {
            return Ok(Asked::Not(Unmended::NobodyHasIt));
        };
        match copy.push(&bytes) {
            Ok(true) => {}
            Ok(false) => return Ok(Asked::Not(Unmended::WrongBytes)),
            Err(cause) => return Ok(on_disk(cause)),
        }
    }
    Ok(match copy.finish() {
        Ok(true) => Asked::Mended,
        Ok(false) => Asked::Not(Unmended::WrongBytes),
        Err(cause) => on_disk(cause),
    })
}

/// Puts entries of a peer's sealed segment, which stand there where they stood here, in their place, if
/// they are those.
pub(super) fn fetch_entries(log: &Log, source: &mut BlockSource, faulty: &Faulty) -> Result<Asked> {
    let segment = faulty.segment;
    if source.digest(segment).is_none() {
        return Ok(Asked::Not(Unmended::NobodyHasIt));
    }
    let mut fetched = Fetched { segment, first: faulty.offset / BLOCK_BYTES, bytes: Vec::new() };
    let max_entry = log.config().max_body_bytes as usize + ENTRY_HEADER_BYTES;
    let begin = (faulty.offset % BLOCK_BYTES) as usize;
    let (mut at, mut next) = (begin, faulty.first);
    while next <= faulty.last {
        let header = match fetched.get(source, at, ENTRY_HEADER_BYTES)? {
            Ok(bytes) => bytes.first_chunk().and_then(EntryHeader::decode),
            Err(why) => return Ok(Asked::Not(why)),
        };
        let Some(header) = header.filter(|h| h.vlsn == next && h.entry_bytes() <= max_entry) else {
            return Ok(Asked::Not(fetched.doubted(source, at)));
        };
        if let Err(why) = fetched.get(source, at, header.entry_bytes())? {
            return Ok(Asked::Not(why));
        }
        at += header.entry_bytes();
        next = next.next();
    }
    let bytes = fetched.bytes[begin..at].to_vec();
    Ok(match put_back(log, &damage_of(faulty), faulty.last, bytes) {
        Ok(true) => Asked::Mended,
        Ok(false) => Asked::Not(fetched.doubted(source, begin)),
        Err(cause) => Asked::Not(Unmended::Disk(cause.to_string())),
    })
}

/// Blocks of a peer's segment, one after the other.
struct Fetched {
    segment: u32,
    /// Number of the first one.
    first: u32,
    bytes: Vec<u8>,
}

impl Fetched {
    /// `len` bytes from the first block's `at` on; or why they cannot be had.
    fn get(
        &mut self,
        source: &mut BlockSource,
        at: usize,
        len: usize,
    ) -> Result<Result<&[u8], Unmended>> {
        while self.bytes.len() < at + len {
            let whole = self.bytes.len() / BLOCK_BYTES as usize;
            if !self.bytes.len().is_multiple_of(BLOCK_BYTES as usize) {
                return Ok(Err(Unmended::WrongBytes)); // its segment ends there
            }
            match source.block(self.segment, self.first + whole as u32)? {
                Some(more) => self.bytes.extend_from_slice(&more),
                None => return Ok(Err(Unmended::NobodyHasIt)),
            }
        }
        Ok(Ok(&self.bytes[at..at + len]))
    }

    /// What stands at `at` of the first block makes no sense.
    fn doubted(&self, source: &BlockSource, at: usize) -> Unmended {
        source.doubt(self.segment, self.first + (at / BLOCK_BYTES as usize) as u32);
        Unmended::WrongBytes
    }
}
