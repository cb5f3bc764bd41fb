//! Digest: BLAKE3 over the blocks of a sealed segment, and over the whole of it.
//!
//! Digests are what scrubbing and repair believe, so they are only ever taken of bytes that are
//! proven to be log: `Digests::verified` checks every entry in the very bytes that it digests.
//! Each byte of a segment is covered: the header's by its checksum and by what is expected of it,
//! an entry's by the checksum and by the fingerprint, which the entry after it and the successor's
//! header continue. So a damaged segment has no digests, rather than digests that bless the damage.

use std::io;
use std::io::IoSlice;
use std::path::Path;

use parking_lot::Mutex;

use super::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::scan::scan_entries;
use crate::entry::{ChainState, EntryHeader};
use crate::env::EnvFile;
use crate::error::{LogError, Result};

/// Bytes that one block digest covers.
pub const BLOCK_BYTES: u32 = 256 << 10;

/// BLAKE3 digests of a sealed segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of the whole file.
    pub segment: blake3::Hash,
    /// Of each [`BLOCK_BYTES`] block, the last one shorter.
    pub blocks: Vec<blake3::Hash>,
}

impl Digests {
    /// Digests the first `len` bytes of a file, whatever they are: to compare with digests that are
    /// known, never to become them.
    pub fn of_file(file: &dyn EnvFile, len: u32) -> io::Result<Self> {
        let digesting = DigestingFile::new(file, len);
        digesting.finish()
    }

    /// Digests a finished segment that ends at offset `end` with the entry `last`, and verifies all
    /// of it in the same pass; shows each entry to `visit` with its offset.
    ///
    /// # Errors
    /// `Corrupt` with the first place that is not as expected; `Io`.
    pub(crate) fn verified(
        file: &dyn EnvFile,
        path: &Path,
        header: &SegmentHeader,
        (end, last): (u32, &ChainState),
        mut visit: impl FnMut(u32, &EntryHeader),
    ) -> Result<Self> {
        let io = |e| LogError::io("read", path, e);
        let corrupt = |offset: u32, expected: String, found: String| LogError::Corrupt {
            segment: header.number,
            offset: offset.into(),
            expected,
            found,
        };
        let digesting = DigestingFile::new(file, end);
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let read = digesting.read_at(&mut raw, 0).map_err(io)?;
        if raw[..read] != header.encode() {
            let found = match SegmentHeader::decode(&raw[..read]) {
                Ok(other) => format!("{other:?}"),
                Err(fault) => fault.to_string(),
            };
            return Err(corrupt(0, format!("{header:?}"), found));
        }
        let (from, chain) = (SEGMENT_HEADER_BYTES, header.chain_before());
        let scanned = scan_entries(&digesting, from, end.into(), chain, |offset, entry| {
            visit(offset, &entry.header);
        })
        .map_err(io)?;
        if let Some(fault) = &scanned.fault {
            let expected = format!("entry {}", scanned.chain.vlsn.next());
            return Err(corrupt(scanned.offset, expected, fault.to_string()));
        }
        if scanned.offset != end || scanned.chain != *last {
            let place = |offset, chain: &ChainState| {
                let ChainState { vlsn, term, fingerprint } = chain;
                format!("the end at {offset} after entry {vlsn} of term {term}, {fingerprint}")
            };
            let found = place(scanned.offset, &scanned.chain);
            return Err(corrupt(scanned.offset, place(end, last), found));
        }
        digesting.finish().map_err(io)
    }
}

/// A file that digests what is read of it from the front, each byte once, in whatever steps it is
/// read.
#[derive(Debug)]
pub(crate) struct DigestingFile<'a> {
    file: &'a dyn EnvFile,
    len: u32,
    hashers: Mutex<Hashers>,
}

#[derive(Debug)]
struct Hashers {
    /// Everything before it is digested.
    at: u32,
    whole: blake3::Hasher,
    block: blake3::Hasher,
    blocks: Vec<blake3::Hash>,
}

impl Hashers {
    /// Digests `bytes`, which stand at `offset`, as far as they are new and the next ones.
    fn take(&mut self, bytes: &[u8], offset: u64, len: u32) {
        let Some(known) = u64::from(self.at).checked_sub(offset) else { return };
        let wanted = (u64::from(len) - u64::from(self.at).min(len.into())) as usize;
        let Some(mut fresh) = bytes.get(known as usize..) else { return };
        fresh = &fresh[..fresh.len().min(wanted)];
        self.whole.update(fresh);
        while !fresh.is_empty() {
            let room = (BLOCK_BYTES - self.at % BLOCK_BYTES) as usize;
            let (now, later) = fresh.split_at(fresh.len().min(room));
            self.block.update(now);
            self.at += now.len() as u32;
            if self.at.is_multiple_of(BLOCK_BYTES) {
                self.end_block();
            }
            fresh = later;
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(self.block.finalize());
        self.block.reset();
    }
}

impl<'a> DigestingFile<'a> {
    /// Digests the first `len` bytes of `file`.
    pub(crate) fn new(file: &'a dyn EnvFile, len: u32) -> Self {
        let hashers = Hashers {
            at: 0,
            whole: blake3::Hasher::new(),
            block: blake3::Hasher::new(),
            blocks: Vec::with_capacity(len.div_ceil(BLOCK_BYTES) as usize),
        };
        Self { file, len, hashers: Mutex::new(hashers) }
    }

    /// The digests; reads what was not read yet. `UnexpectedEof` if the file is shorter.
    pub(crate) fn finish(self) -> io::Result<Digests> {
        let mut hashers = self.hashers.into_inner();
        let mut buffer = Vec::new();
        while hashers.at < self.len {
            buffer.resize((self.len - hashers.at).min(BLOCK_BYTES) as usize, 0);
            let at = u64::from(hashers.at);
            if self.file.read_passing(&mut buffer, at)? != buffer.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hashers.take(&buffer, at, self.len);
        }
        if !self.len.is_multiple_of(BLOCK_BYTES) {
            hashers.end_block();
        }
        Ok(Digests { segment: hashers.whole.finalize(), blocks: hashers.blocks })
    }
}

impl EnvFile for DigestingFile<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_passing(buf, offset)?;
        self.hashers.lock().take(&buf[..read], offset, self.len);
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::env::{Env, MemoryEnv, OpenMode};

    fn file(len: usize) -> (Arc<dyn EnvFile>, Vec<u8>) {
        let env = MemoryEnv::default();
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let file = env.open(Path::new("f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
        (file, bytes)
    }

    fn expected(bytes: &[u8]) -> Digests {
        let blocks = bytes.chunks(BLOCK_BYTES as usize).map(blake3::hash).collect();
        Digests { segment: blake3::hash(bytes), blocks }
    }

    #[test]
    fn digests_are_those_of_the_blocks_at_every_length_around_a_border() {
        let block = BLOCK_BYTES as usize;
        for len in [0, 1, 64, block - 1, block, block + 1, 3 * block, 3 * block + 7] {
            let (file, bytes) = file(len);
            assert_eq!(Digests::of_file(&*file, len as u32).unwrap(), expected(&bytes), "{len}");
        }
    }

    #[test]
    fn digests_do_not_depend_on_how_the_file_is_read() {
        let (file, bytes) = file(3 * BLOCK_BYTES as usize + 1234);
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20 {
            let digesting = DigestingFile::new(&*file, bytes.len() as u32);
            for _ in 0..random.usize(0..20) {
                let offset = random.u64(0..bytes.len() as u64);
                let mut buffer = vec![0; random.usize(0..2 * BLOCK_BYTES as usize)];
                digesting.read_at(&mut buffer, offset).unwrap();
                digesting.read_at(&mut buffer, 0).unwrap();
            }
            assert_eq!(digesting.finish().unwrap(), expected(&bytes));
        }
    }

    #[test]
    fn a_file_that_is_too_short_has_no_digests() {
        let (file, bytes) = file(1000);
        let error = Digests::of_file(&*file, bytes.len() as u32 + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
