//! Side file: what a sealed segment's bytes say, kept beside it so that nobody reads them again:
//! its summary, index samples and BLAKE3 digests. Can always be rebuilt from the segment, because
//! nothing in it is news: a bad or missing one costs a read of the segment, never an answer.
//!
//! # When it is believed
//! Its checksum holds, what it says is possible ([`SideFile::decode`]), its header is the segment's
//! own, and what else is known of the segment agrees: its length, the position that the successor
//! begins at, and, once the log is open, the digest found then. Otherwise the segment is read and
//! verified, and the side file written anew.
//!
//! ```text
//! magic 8 | version u32 | segment header 64 | end u32 | last: VLSN i64, term u32, fingerprint u64, offset u32
//! | last_sync i64 | last_txn_end i64 | last_group i64 | clock u64 | digest 32 | terms u32, samples u32, blocks u32
//! | terms: (u32, i64)* | samples: (VLSN i64, offset u32, fingerprint u64, sync i64)* | block digests: 32* | crc32c u32
//! ```
//! Little endian.

use std::io::ErrorKind;
use std::path::Path;

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Term, checksum};

pub use super::digest::{BLOCK_BYTES, Digests};
use super::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::name::{log_dir, segment_name, side_name};
use super::scan::SegmentSummary;
use crate::entry::{CLOCK_BYTES, ChainState, ENTRY_HEADER_BYTES, EntryHeader, EntryKind};
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::Sealed;
use crate::reading::index::Sample;

const MAGIC: &[u8; 8] = b"NOXUSIDE";
const VERSION: u32 = 2;
const SAMPLE_BYTES_ON_DISK: usize = 28;
const TERM_BYTES_ON_DISK: usize = 12;

/// A decoded side file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// What the segment holds.
    pub summary: SegmentSummary,
    /// Wall clock of the master when it ended the segment's last transaction, in milliseconds since
    /// 1970; 0 if no entry tells. Says how old the segment is, and nothing that must be right.
    pub clock_ms: u64,
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
        out.put_vlsn(summary.last_group);
        out.put_u64(self.clock_ms);
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
            return Err(bad("side file version", version.to_string(), "2"));
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
        let last_group = r.vlsn("last Group entry")?;
        let clock_ms = r.u64("clock")?;
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
            last_group,
            terms,
            samples,
        };
        let side = Self { summary, clock_ms, digests: Digests { segment, blocks } };
        side.check()?;
        Ok(side)
    }

    /// Seals a finished segment: cuts its file to its end, verifies and digests it, and writes its
    /// side file.
    ///
    /// # Errors
    /// `Corrupt` if the file does not hold what was appended to it; `Io`.
    pub(crate) fn make(env: &dyn Env, node_dir: &Path, summary: SegmentSummary) -> Result<Self> {
        let path = log_dir(node_dir).join(segment_name(summary.header.number));
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let file = env.open(&path, OpenMode::ReadWrite).map_err(wrap("open"))?;
        if file.len().map_err(wrap("measure"))? > u64::from(summary.end) {
            file.set_len(summary.end.into()).map_err(wrap("cut"))?;
            file.sync_data().map_err(wrap("sync"))?;
        }
        let end = (summary.end, &summary.last);
        let mut clock = LastClock::default();
        let digests = Digests::verified(&*file, &path, &summary.header, end, |offset, entry| {
            clock.see(offset, entry);
        })?;
        let clock_ms = clock.read(&*file).map_err(wrap("read"))?;
        let side = Self { summary, clock_ms, digests };
        side.write(env, node_dir)?;
        Ok(side)
    }

    /// Memory that its content takes, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.summary.samples.capacity() * size_of::<Sample>()
            + self.summary.terms.capacity() * size_of::<(Term, noxu_util::Vlsn)>()
            + self.digests.blocks.capacity() * size_of::<blake3::Hash>()
    }

    /// Whether this is the side file of the segment as it was sealed. What it says of entries before
    /// the segment is not compared: that of the first segment kept cannot be found again, and nobody
    /// can ask for it.
    pub(crate) fn is_of(&self, sealed: &Sealed) -> bool {
        let Sealed { header, end, last, digest, .. } = sealed;
        let summary = &self.summary;
        (&summary.header, &summary.end, &summary.last, &self.digests.segment)
            == (header, end, last, digest)
    }

    /// What the log keeps in memory of the segment.
    pub(crate) const fn sealed(&self) -> Sealed {
        Sealed {
            header: self.summary.header,
            end: self.summary.end,
            last: self.summary.last,
            last_sync: self.summary.last_sync,
            last_txn_end: self.summary.last_txn_end,
            last_group: self.summary.last_group,
            clock_ms: self.clock_ms,
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
    ///
    /// # Errors
    /// `Io` if it is there and cannot be opened. One that cannot be read is damaged.
    pub fn read(env: &dyn Env, node_dir: &Path, number: u32) -> Result<Option<Self>> {
        Ok(match Self::look(env, &log_dir(node_dir), number)? {
            SideRead::Valid(side) => Some(*side),
            SideRead::Missing => None,
            SideRead::Damaged(reason) => {
                let path = log_dir(node_dir).join(side_name(number));
                tracing::warn!(reason, path = %path.display(), "side file is damaged, to be rebuilt");
                None
            }
        })
    }

    /// What stands where the side file of segment `number` should be.
    ///
    /// # Errors
    /// As [`SideFile::read`].
    pub(crate) fn look(env: &dyn Env, segments_dir: &Path, number: u32) -> Result<SideRead> {
        let path = segments_dir.join(side_name(number));
        let file = match env.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SideRead::Missing),
            Err(error) => return Err(LogError::io("open", &path, error)),
        };
        let read = file.len().and_then(|len| {
            let mut bytes = vec![0; len as usize];
            let read = file.read_at(&mut bytes, 0)?;
            bytes.truncate(read);
            Ok(bytes)
        });
        Ok(match read.map(|bytes| Self::decode(&bytes)) {
            Err(error) => SideRead::Damaged(format!("it cannot be read: {error}")),
            Ok(Err(error)) => SideRead::Damaged(error.to_string()),
            Ok(Ok(side)) if side.summary.header.number != number => {
                let other = side.summary.header.number;
                SideRead::Damaged(format!("it is the side file of segment {other}"))
            }
            Ok(Ok(side)) => SideRead::Valid(Box::new(side)),
        })
    }

    /// Whether everything it says can be true of one segment. The checksum says that it was written
    /// so; this, that no offset or count in it leads outside of the segment.
    fn check(&self) -> Result<(), CodecError> {
        let bad =
            |what, found: String, expected| Err(CodecError::OutOfRange { what, found, expected });
        let Self { summary, digests, .. } = self;
        let (first, last) = (summary.header.first, summary.last.vlsn);
        if last < first {
            return bad("last VLSN", last.to_string(), "an entry of the segment");
        }
        let header = ENTRY_HEADER_BYTES as u32;
        if summary.last_offset < SEGMENT_HEADER_BYTES
            || summary.end < header
            || summary.last_offset > summary.end - header
        {
            let found = format!("{} in {}", summary.last_offset, summary.end);
            return bad("last offset", found, "an entry before the end");
        }
        if summary.last_txn_end > summary.last_sync || summary.last_sync > last {
            let found = format!("{} and {}", summary.last_txn_end, summary.last_sync);
            return bad(
                "last transaction end and sync",
                found,
                "in this order, not beyond the end",
            );
        }
        if !summary.last_group.is_null() && !(first..=last).contains(&summary.last_group) {
            return bad("last Group entry", summary.last_group.to_string(), "one of the segment");
        }
        let mut term = summary.header.previous_term;
        let mut after = first.prev();
        for (next, begins) in &summary.terms {
            if *next <= term || *begins <= after || *begins > last {
                return bad("term", format!("{next} from {begins}"), "ascending terms");
            }
            (term, after) = (*next, *begins);
        }
        if term != summary.last.term {
            return bad("last term", summary.last.term.to_string(), "the newest in the table");
        }
        let begins = summary.samples.first();
        if begins.is_none_or(|s| (s.vlsn, s.offset) != (first, SEGMENT_HEADER_BYTES)) {
            return bad("first sample", format!("{begins:?}"), "the first entry");
        }
        for pair in summary.samples.windows(2) {
            if pair[0].vlsn >= pair[1].vlsn || pair[0].offset >= pair[1].offset {
                return bad("sample", pair[1].vlsn.to_string(), "ascending samples");
            }
        }
        for sample in &summary.samples {
            if sample.vlsn > last
                || sample.offset > summary.last_offset
                || sample.sync_before >= sample.vlsn
            {
                return bad("sample", format!("{sample:?}"), "an entry and one before it");
            }
        }
        if digests.blocks.len() != summary.end.div_ceil(BLOCK_BYTES) as usize {
            return bad("blocks", digests.blocks.len().to_string(), "one for each 256 KiB");
        }
        Ok(())
    }
}

/// What stands where a side file should be.
#[derive(Debug)]
pub(crate) enum SideRead {
    /// Nothing.
    Missing,
    /// Something else, and why.
    Damaged(String),
    /// A side file that can be one; whether it is the segment's own, others must say.
    Valid(Box<SideFile>),
}

/// Finds the wall clock of a segment's newest commit or Term entry in a pass over its headers.
#[derive(Debug, Default)]
pub(crate) struct LastClock {
    newest: Option<(u32, EntryHeader)>,
}

impl LastClock {
    /// Takes the next entry, at `offset`.
    pub(crate) fn see(&mut self, offset: u32, header: &EntryHeader) {
        let has_clock = header.is_commit() || header.kind == EntryKind::TERM;
        if has_clock && header.body_len as usize >= CLOCK_BYTES {
            self.newest = Some((offset, *header));
        }
    }

    /// The clock, in milliseconds since 1970; 0 if no entry tells.
    pub(crate) fn read(&self, file: &dyn EnvFile) -> std::io::Result<u64> {
        let Some((offset, header)) = &self.newest else { return Ok(0) };
        let mut body = [0; CLOCK_BYTES];
        let read = file.read_at(&mut body, u64::from(*offset) + ENTRY_HEADER_BYTES as u64)?;
        Ok(header.wall_clock_ms(&body[..read]).unwrap_or(0))
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
            last_group: Vlsn::new(10),
            terms: vec![(Term::new(2), Vlsn::new(11))],
            samples,
        };
        let digests = Digests { segment: blake3::hash(b"x"), blocks: vec![blake3::hash(b"x")] };
        SideFile { summary, clock_ms: 1_700_000_000_000, digests }
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
