//! Side file: what a sealed segment's bytes say, kept beside it so that nobody reads them again:
//! its summary, index samples and BLAKE3 digests. Can always be rebuilt from the segment.
//!
//! ```text
//! magic 8 | version u32 | segment header 64 | end u32 | last: VLSN i64, term u32, fingerprint u64, offset u32
//! | last_sync i64 | last_txn_end i64 | digest 32 | terms u32, samples u32, blocks u32
//! | terms: (u32, i64)* | samples: (VLSN i64, offset u32, fingerprint u64, sync i64)* | block digests: 32* | crc32c u32
//! ```
//! Little endian.

use std::path::Path;

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Term, checksum};

use super::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::name::{log_dir, segment_name, side_name};
use super::scan::SegmentSummary;
use crate::entry::ChainState;
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::index::Sample;
use crate::log::Sealed;

/// Bytes that one block digest covers.
pub const BLOCK_BYTES: u32 = 256 << 10;

const MAGIC: &[u8; 8] = b"NOXUSIDE";
const VERSION: u32 = 1;
const SAMPLE_BYTES_ON_DISK: usize = 28;
const TERM_BYTES_ON_DISK: usize = 12;

/// BLAKE3 digests of a sealed segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Of the whole file.
    pub segment: blake3::Hash,
    /// Of each [`BLOCK_BYTES`] block, the last one shorter.
    pub blocks: Vec<blake3::Hash>,
}

impl Digests {
    /// Reads `len` bytes of a segment file.
    pub fn of_file(file: &dyn EnvFile, len: u32) -> std::io::Result<Self> {
        let mut whole = blake3::Hasher::new();
        let mut blocks = Vec::with_capacity(len.div_ceil(BLOCK_BYTES) as usize);
        let mut block = vec![0; BLOCK_BYTES as usize];
        let mut at = 0;
        while at < len {
            let part = &mut block[..(len - at).min(BLOCK_BYTES) as usize];
            if file.read_at(part, u64::from(at))? != part.len() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            whole.update(part);
            blocks.push(blake3::hash(part));
            at += part.len() as u32;
        }
        Ok(Self { segment: whole.finalize(), blocks })
    }
}

/// A decoded side file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// What the segment holds.
    pub summary: SegmentSummary,
    /// Digests of its bytes.
    pub digests: Digests,
}

impl SideFile {
    /// The bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let summary = &self.summary;
        let mut out = Vec::new();
        out.put_bytes(MAGIC);
        out.put_u32(VERSION);
        out.put_bytes(&summary.header.encode());
        out.put_u32(summary.end);
        out.put_vlsn(summary.last.vlsn);
        out.put_u32(summary.last.term.number());
        out.put_u64(summary.last.fingerprint.as_u64());
        out.put_u32(summary.last_offset);
        out.put_vlsn(summary.last_sync);
        out.put_vlsn(summary.last_txn_end);
        out.put_bytes(self.digests.segment.as_bytes());
        out.put_u32(summary.terms.len() as u32);
        out.put_u32(summary.samples.len() as u32);
        out.put_u32(self.digests.blocks.len() as u32);
        for (term, first) in &summary.terms {
            out.put_u32(term.number());
            out.put_vlsn(*first);
        }
        for sample in &summary.samples {
            out.put_vlsn(sample.vlsn);
            out.put_u32(sample.offset);
            out.put_u64(sample.before.as_u64());
            out.put_vlsn(sample.sync_before);
        }
        for digest in &self.digests.blocks {
            out.put_bytes(digest.as_bytes());
        }
        let crc = checksum::crc(&out);
        out.put_u32(crc);
        out
    }

    /// Decodes and checks the bytes of a side file.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let bad = |what, found: String, expected| CodecError::OutOfRange { what, found, expected };
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(CodecError::Truncated { what: "side file", needed: 4, left: bytes.len() });
        };
        if checksum::crc(body) != u32::from_le_bytes(*crc) {
            return Err(bad("side file crc", "another".into(), "the crc of its bytes"));
        }
        let mut r = Reader::new(body);
        if r.bytes("magic", 8)? != MAGIC {
            return Err(bad("side file magic", "another".into(), "NOXUSIDE"));
        }
        let version = r.u32("version")?;
        if version != VERSION {
            return Err(bad("side file version", version.to_string(), "1"));
        }
        let header = r.bytes("segment header", SEGMENT_HEADER_BYTES as usize)?;
        let header = SegmentHeader::decode(header)
            .map_err(|fault| bad("segment header", fault.to_string(), "a segment header"))?;
        let end = r.u32("end")?;
        let last = ChainState {
            vlsn: r.vlsn("last VLSN")?,
            term: Term::new(r.u32("last term")?),
            fingerprint: Fingerprint::from_u64(r.u64("last fingerprint")?),
        };
        let last_offset = r.u32("last offset")?;
        let last_sync = r.vlsn("last sync")?;
        let last_txn_end = r.vlsn("last transaction end")?;
        let segment = blake3::Hash::from_bytes(r.array("digest")?);
        let counts = [r.u32("terms")?, r.u32("samples")?, r.u32("blocks")?].map(|n| n as usize);
        let [term_count, sample_count, block_count] = counts;
        let needed = term_count.saturating_mul(TERM_BYTES_ON_DISK)
            + sample_count.saturating_mul(SAMPLE_BYTES_ON_DISK)
            + block_count.saturating_mul(blake3::OUT_LEN);
        if needed != r.remaining() {
            return Err(bad("side file length", r.remaining().to_string(), "what its counts say"));
        }
        let mut terms = Vec::with_capacity(term_count);
        for _ in 0..term_count {
            terms.push((Term::new(r.u32("term")?), r.vlsn("first of term")?));
        }
        let mut samples = Vec::with_capacity(sample_count);
        for _ in 0..sample_count {
            samples.push(Sample {
                vlsn: r.vlsn("sample VLSN")?,
                offset: r.u32("sample offset")?,
                before: Fingerprint::from_u64(r.u64("sample fingerprint")?),
                sync_before: r.vlsn("sample sync")?,
            });
        }
        let mut blocks = Vec::with_capacity(block_count);
        for _ in 0..block_count {
            blocks.push(blake3::Hash::from_bytes(r.array("block digest")?));
        }
        r.finish("side file")?;
        let summary = SegmentSummary {
            header,
            end,
            last,
            last_offset,
            last_sync,
            last_txn_end,
            terms,
            samples,
        };
        Ok(Self { summary, digests: Digests { segment, blocks } })
    }

    /// Seals a finished segment: cuts its file to its end, digests it and writes its side file.
    pub(crate) fn make(env: &dyn Env, node_dir: &Path, summary: SegmentSummary) -> Result<Self> {
        let path = log_dir(node_dir).join(segment_name(summary.header.number));
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let file = env.open(&path, OpenMode::ReadWrite).map_err(wrap("open"))?;
        if file.len().map_err(wrap("measure"))? != u64::from(summary.end) {
            file.set_len(summary.end.into()).map_err(wrap("cut"))?;
            file.sync_data().map_err(wrap("sync"))?;
        }
        let digests = Digests::of_file(&*file, summary.end).map_err(wrap("read"))?;
        let side = Self { summary, digests };
        side.write(env, node_dir)?;
        Ok(side)
    }

    /// Memory that its content takes, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.summary.samples.capacity() * size_of::<Sample>()
            + self.summary.terms.capacity() * size_of::<(Term, noxu_util::Vlsn)>()
            + self.digests.blocks.capacity() * size_of::<blake3::Hash>()
    }

    /// What the log keeps in memory of the segment.
    pub(crate) const fn sealed(&self) -> Sealed {
        Sealed {
            header: self.summary.header,
            end: self.summary.end,
            last: self.summary.last,
            last_sync: self.summary.last_sync,
            last_txn_end: self.summary.last_txn_end,
            digest: self.digests.segment,
        }
    }

    /// Writes the side file of a segment: whole or not at all, durable on return.
    pub fn write(&self, env: &dyn Env, node_dir: &Path) -> Result<()> {
        let dir = log_dir(node_dir);
        let path = dir.join(side_name(self.summary.header.number));
        crate::env::write_whole(env, &path, &self.encode())
    }

    /// Reads the side file of segment `number`; `None` if it is missing or damaged, when the
    /// segment itself tells the same.
    pub fn read(env: &dyn Env, node_dir: &Path, number: u32) -> Result<Option<Self>> {
        let path = log_dir(node_dir).join(side_name(number));
        if !env.exists(&path).map_err(|e| LogError::io("look for", &path, e))? {
            return Ok(None);
        }
        let bytes = crate::env::read_whole(env, &path)?;
        match Self::decode(&bytes) {
            Ok(side) if side.summary.header.number == number => Ok(Some(side)),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "side file is damaged, to be rebuilt");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use noxu_util::{GroupId, NULL_VLSN, Vlsn};
    use proptest::prelude::*;

    fn sample() -> SideFile {
        let header = SegmentHeader {
            number: 3,
            group: GroupId::from_bytes([1; 16]),
            first: Vlsn::new(10),
            previous_fingerprint: Fingerprint::from_u64(5),
            previous_term: Term::new(1),
            segment_bytes: 4096,
        };
        let last = ChainState {
            vlsn: Vlsn::new(11),
            term: Term::new(2),
            fingerprint: Fingerprint::from_u64(6),
        };
        let samples = vec![Sample {
            vlsn: Vlsn::new(10),
            offset: 64,
            before: Fingerprint::from_u64(5),
            sync_before: NULL_VLSN,
        }];
        let summary = SegmentSummary {
            header,
            end: 200,
            last,
            last_offset: 120,
            last_sync: Vlsn::new(11),
            last_txn_end: Vlsn::new(11),
            terms: vec![(Term::new(2), Vlsn::new(11))],
            samples,
        };
        let digests = Digests { segment: blake3::hash(b"x"), blocks: vec![blake3::hash(b"x")] };
        SideFile { summary, digests }
    }

    #[test]
    fn a_side_file_reads_back_and_every_flipped_bit_is_found() {
        let bytes = sample().encode();
        assert_eq!(SideFile::decode(&bytes).unwrap(), sample());
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(SideFile::decode(&bad).is_err(), "bit {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            let _ = SideFile::decode(&bytes);
            let crc = checksum::crc(&bytes);
            bytes.put_u32(crc);
            let _ = SideFile::decode(&bytes);
        }
    }
}
