//! Lost entries: what a rollback took out of the log, kept verbatim in a file of its own, so that
//! nothing a client was told of is silently gone.
//!
//! The entries of the segment that was cut are in the file itself; segments that lay wholly beyond
//! the cut are moved beside it, so that a full disk does not stand in the way of a rollback.
//!
//! ```text
//! magic 8 | version u32 | header length u32 | header | crc32c u32 of all before | entries, verbatim
//! header: group 16 | time ms u64 | kept: VLSN i64, LSN u64, term u32, fingerprint u64
//!         | own end: VLSN i64, term u32, fingerprint u64 | master: term u32, VLSN i64, fingerprint u64, name u16+text
//!         | moved segments: u32, then u32 each | entry bytes u64
//! ```
//! Little endian.

use std::path::{Path, PathBuf};

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, GroupId, Lsn, Term, Vlsn, checksum};

use crate::entry::{ChainState, Entry, EntryError};
use crate::env::{Env, read_whole};
use crate::error::{LogError, Result};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{lost_dir, segment_name};

const MAGIC: &[u8; 8] = b"NOXULOST";
const VERSION: u32 = 1;
/// Suffix of lost-entries files.
pub const LOST_SUFFIX: &str = ".nlost";
const MAX_MASTER_NAME_BYTES: usize = 255;

/// What the caller of a rollback knows of the log that prevailed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LostNote {
    /// Wall clock, in milliseconds since 1970.
    pub time_ms: u64,
    /// Name of the master whose log prevailed.
    pub master: String,
    /// Its term.
    pub master_term: Term,
    /// The last entry it named.
    pub master_vlsn: Vlsn,
    /// The fingerprint of that entry.
    pub master_fingerprint: Fingerprint,
}

/// The facts of one rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostHeader {
    /// The group.
    pub group: GroupId,
    /// The last entry kept: the matchpoint.
    pub kept: ChainState,
    /// Where it stands.
    pub kept_lsn: Lsn,
    /// The last entry lost.
    pub end: ChainState,
    /// What prevailed.
    pub note: LostNote,
    /// Segments moved beside the file, oldest first.
    pub moved: Vec<u32>,
    /// Bytes of entries in the file itself.
    pub entry_bytes: u64,
}

impl LostHeader {
    /// The bytes before the entries.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_bytes(self.group.as_bytes());
        body.put_u64(self.note.time_ms);
        body.put_vlsn(self.kept.vlsn);
        body.put_u64(self.kept_lsn.as_u64());
        body.put_u32(self.kept.term.number());
        body.put_u64(self.kept.fingerprint.as_u64());
        body.put_vlsn(self.end.vlsn);
        body.put_u32(self.end.term.number());
        body.put_u64(self.end.fingerprint.as_u64());
        body.put_u32(self.note.master_term.number());
        body.put_vlsn(self.note.master_vlsn);
        body.put_u64(self.note.master_fingerprint.as_u64());
        let name_end = self.note.master.floor_char_boundary(MAX_MASTER_NAME_BYTES);
        body.put_text(&self.note.master[..name_end]);
        body.put_u32(self.moved.len() as u32);
        for number in &self.moved {
            body.put_u32(*number);
        }
        body.put_u64(self.entry_bytes);
        let mut out = Vec::with_capacity(body.len() + 20);
        out.put_bytes(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(body.len() as u32);
        out.put_bytes(&body);
        let crc = checksum::crc(&out);
        out.put_u32(crc);
        out
    }

    /// Decodes and checks; also returns where the entries begin.
    fn decode(bytes: &[u8]) -> Result<(Self, usize), CodecError> {
        let bad = |what, found: String, expected| CodecError::OutOfRange { what, found, expected };
        let mut r = Reader::new(bytes);
        if r.bytes("magic", 8)? != MAGIC {
            return Err(bad("lost-entries magic", "another".into(), "NOXULOST"));
        }
        let version = r.u32("version")?;
        if version != VERSION {
            return Err(bad("lost-entries version", version.to_string(), "1"));
        }
        let len = r.u32("header length")? as usize;
        let body = r.bytes("header", len)?;
        let crc = r.u32("header crc")?;
        if checksum::crc(&bytes[..16 + len]) != crc {
            return Err(bad("lost-entries header crc", format!("{crc:08x}"), "the computed one"));
        }
        let mut r = Reader::new(body);
        let group = GroupId::from_bytes(r.array("group")?);
        let time_ms = r.u64("time")?;
        let kept_vlsn = r.vlsn("kept VLSN")?;
        let kept_lsn = Lsn::from_u64(r.u64("kept LSN")?);
        let kept = ChainState {
            vlsn: kept_vlsn,
            term: Term::new(r.u32("kept term")?),
            fingerprint: Fingerprint::from_u64(r.u64("kept fingerprint")?),
        };
        let end = ChainState {
            vlsn: r.vlsn("end VLSN")?,
            term: Term::new(r.u32("end term")?),
            fingerprint: Fingerprint::from_u64(r.u64("end fingerprint")?),
        };
        let note = LostNote {
            time_ms,
            master_term: Term::new(r.u32("master term")?),
            master_vlsn: r.vlsn("master VLSN")?,
            master_fingerprint: Fingerprint::from_u64(r.u64("master fingerprint")?),
            master: r.text("master", MAX_MASTER_NAME_BYTES)?.to_owned(),
        };
        let count = r.u32("moved segments")? as usize;
        if count.saturating_mul(4) > r.remaining() {
            return Err(bad("moved segments", count.to_string(), "as many as are listed"));
        }
        let moved = (0..count).map(|_| r.u32("moved segment")).collect::<Result<_, _>>()?;
        let entry_bytes = r.u64("entry bytes")?;
        r.finish("lost-entries header")?;
        Ok((Self { group, kept, kept_lsn, end, note, moved, entry_bytes }, 20 + len))
    }
}

/// Path of the lost-entries file `name` of a node directory.
pub fn lost_path(node_dir: &Path, name: &str) -> PathBuf {
    lost_dir(node_dir).join(format!("{name}{LOST_SUFFIX}"))
}

/// Path of a segment that was moved beside the lost-entries file `name`.
pub fn moved_segment_path(node_dir: &Path, name: &str, number: u32) -> PathBuf {
    lost_dir(node_dir).join(moved_segment_name(name, number))
}

fn moved_segment_name(name: &str, number: u32) -> String {
    format!("{name}-{}", segment_name(number))
}

/// A lost-entries file, read and verified.
#[derive(Debug)]
pub struct LostEntries {
    /// The facts.
    pub header: LostHeader,
    /// The entries of the cut segment, then those of each moved one.
    parts: Vec<Vec<u8>>,
}

impl LostEntries {
    /// Names of the lost-entries files of a node directory, oldest first.
    ///
    /// # Errors
    /// `Io` if the directory cannot be listed; a missing one is empty.
    pub fn list(env: &dyn Env, node_dir: &Path) -> Result<Vec<String>> {
        let dir = lost_dir(node_dir);
        if !env.exists(&dir).map_err(|e| LogError::io("look for", &dir, e))? {
            return Ok(Vec::new());
        }
        let names = env.list(&dir).map_err(|e| LogError::io("list", &dir, e))?;
        let stems = names.iter().filter_map(|name| name.strip_suffix(LOST_SUFFIX));
        Ok(stems.map(ToOwned::to_owned).collect())
    }

    /// Reads the facts of a file alone.
    pub(crate) fn read_header(env: &dyn Env, node_dir: &Path, name: &str) -> Result<LostHeader> {
        let path = lost_path(node_dir, name);
        let bytes = read_whole(env, &path)?;
        LostHeader::decode(&bytes)
            .map(|(header, _)| header)
            .map_err(|e| LogError::DamagedFile { path, reason: e.to_string() })
    }

    /// Reads the file `name` of a node directory and the segments moved beside it, and verifies
    /// every entry.
    ///
    /// # Errors
    /// `Io`; `DamagedFile` naming the place.
    pub fn read(env: &dyn Env, node_dir: &Path, name: &str) -> Result<Self> {
        Self::read_file(env, &lost_path(node_dir, name))
    }

    /// [`LostEntries::read`] of a file anywhere.
    ///
    /// # Errors
    /// As [`LostEntries::read`].
    pub fn read_file(env: &dyn Env, path: &Path) -> Result<Self> {
        let damaged =
            |path: &Path, reason: String| LogError::DamagedFile { path: path.to_owned(), reason };
        let bytes = read_whole(env, path)?;
        let (header, at) = LostHeader::decode(&bytes).map_err(|e| damaged(path, e.to_string()))?;
        let entries = bytes.get(at..at.saturating_add(header.entry_bytes as usize));
        let entries = entries.ok_or_else(|| {
            damaged(path, format!("{} bytes of entries expected", header.entry_bytes))
        })?;
        let mut chain = header.kept;
        let mut parts = vec![entries.to_vec()];
        verify_all(entries, &mut chain).map_err(|e| damaged(path, e.to_string()))?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.strip_suffix(LOST_SUFFIX).unwrap_or(name);
        for number in &header.moved {
            let path = path.with_file_name(moved_segment_name(name, *number));
            let bytes = read_whole(env, &path)?;
            let segment =
                SegmentHeader::decode(&bytes).map_err(|e| damaged(&path, e.to_string()))?;
            if segment.chain_before() != chain {
                return Err(damaged(&path, format!("does not continue entry {}", chain.vlsn)));
            }
            let mut entries = bytes[SEGMENT_HEADER_BYTES as usize..].to_vec();
            // Zeros follow the last entry of one that was filled ahead. That no entry is missing
            // there the next one tells, or the end that the header names.
            let end = match verify_all(&entries, &mut chain) {
                Ok(()) => entries.len(),
                Err(error) if chain == header.end => error.offset,
                Err(error) if entries[error.offset..].iter().all(|byte| *byte == 0) => error.offset,
                Err(error) => return Err(damaged(&path, error.to_string())),
            };
            entries.truncate(end);
            parts.push(entries);
        }
        if chain != header.end {
            let found = format!("ends with entry {}, not {}", chain.vlsn, header.end.vlsn);
            return Err(damaged(path, found));
        }
        Ok(Self { header, parts })
    }

    /// The entries, in log order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.parts.iter().flat_map(|part| crate::entry::entries_of(part))
    }
}

fn verify_all(bytes: &[u8], chain: &mut ChainState) -> Result<(), EntryError> {
    let mut offset = 0;
    while offset < bytes.len() {
        match chain.check_next(&bytes[offset..], u32::MAX) {
            Ok(entry) => offset += entry.header.entry_bytes(),
            Err(fault) => return Err(EntryError { vlsn: chain.vlsn.next(), offset, fault }),
        }
    }
    Ok(())
}
