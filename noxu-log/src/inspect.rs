//! Inspect: reads a log directory as it stands, for tools: takes no lock and writes nothing, so it
//! works beside a running node and on a copy that was taken from one.
//!
//! The tail mark is read before the segments are listed, the control file after: whatever a running
//! node does meanwhile, the mark never speaks of more than the files hold, and the anchor explains
//! every segment that is gone.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_util::{Lsn, NULL_VLSN, Vlsn};

use crate::control_file::{ControlFile, ControlState};
use crate::entry::{ChainState, Entry};
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, parse_segment_name, segment_name, side_name};
use crate::segment::scan::{SummaryBuilder, scan_entries};
use crate::segment::side_file::{Digests, SideFile};
use crate::tail_mark::{MarkRead, TailMark};

/// A log directory opened for reading only.
#[derive(Debug)]
pub struct Inspection {
    env: Arc<dyn Env>,
    /// The directory that holds the segments.
    segments_dir: PathBuf,
    /// What the control file says; `None` if the directory has none, as a copied `log` folder.
    pub control: Option<Result<ControlState>>,
    /// What the tail mark says.
    pub mark: MarkRead,
    /// Numbers of the segments, ascending, without those that a front drop left over.
    pub segments: Vec<u32>,
}

/// One segment, as far as its files tell.
#[derive(Debug)]
pub struct SegmentReport {
    /// Its header.
    pub header: SegmentHeader,
    /// Its last valid entry; the position before the segment if it holds none.
    pub last: ChainState,
    /// Offset after its last valid entry.
    pub end: u32,
    /// Length of the file, which may have a tail of zeros.
    pub file_bytes: u64,
    /// Digest of the file, if the segment is sealed.
    pub digest: Option<blake3::Hash>,
    /// Bytes of its index: of its side file if it is sealed, in the memory of an open log if not.
    pub index_bytes: u64,
}

/// What walking the entries of a log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Entries visited.
    pub entries: u64,
    /// Their bytes.
    pub entry_bytes: u64,
    /// Where the first entry stands and its VLSN.
    pub begin: (Lsn, Vlsn),
    /// Where the valid log ends: the position after the last entry.
    pub end_lsn: Lsn,
    /// The last valid entry.
    pub end: ChainState,
    /// What stands there.
    pub ending: Ending,
}

/// What stands where the valid entries end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The end of the log: nothing, or zeros.
    Clean,
    /// The visitor had seen enough.
    Stopped,
    /// Bytes at the very end that are no entry and that the tail mark does not vouch for: a write
    /// that a crash or the copying tore, or damage to entries that were never marked as synced.
    /// Opening the log cuts them off.
    Torn(Fault),
    /// Damage: entries that were there are not, or not as they were.
    Damaged(Fault),
}

/// A place where the log is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment {} at offset {}: entry {vlsn} expected, found {reason}",
    .lsn.segment(),
    .lsn.offset()
)]
pub struct Fault {
    /// The place.
    pub lsn: Lsn,
    /// The entry that should begin there.
    pub vlsn: Vlsn,
    /// What is wrong.
    pub reason: String,
}

/// How often the unfinished end of the last segment is read again: a running node may be in the
/// middle of writing it.
const REREADS: usize = 8;

impl Inspection {
    /// Opens a node directory, or a directory that holds segment files itself.
    ///
    /// # Errors
    /// `Io` if there is no such directory or it cannot be read; `NoLog` if it holds neither segments
    /// nor a control file.
    pub fn open(env: Arc<dyn Env>, dir: &Path) -> Result<Self> {
        let names = env.list(dir).map_err(|e| LogError::io("list", dir, e))?;
        let is_node_dir = names.iter().any(|name| name == "log" || name == "control");
        let segments_dir = if is_node_dir { log_dir(dir) } else { dir.to_owned() };
        let mark = TailMark::inspect(&*env, dir)?;
        let mut segments = list_segments(&*env, &segments_dir)?;
        let control =
            names.iter().any(|name| name == "control").then(|| ControlFile::read(&*env, dir));
        if let Some(Ok(control)) = &control {
            segments.retain(|number| *number >= control.anchor.next_segment());
        }
        if !is_node_dir && segments.is_empty() {
            return Err(LogError::NoLog { path: dir.to_owned() });
        }
        Ok(Self { env, segments_dir, control, mark, segments })
    }

    /// Opens one segment file on its own.
    ///
    /// # Errors
    /// `NoLog` if the file has another name than segments have.
    pub fn open_segment_file(env: Arc<dyn Env>, path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(parse_segment_name)
            .ok_or_else(|| LogError::NoLog { path: path.to_owned() })?;
        let segments_dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let segments = vec![number];
        Ok(Self { env, segments_dir, control: None, mark: MarkRead::Absent, segments })
    }

    /// Visits the entries from `from` on, each with its place, and verifies all of them and that
    /// they continue each other; starts at the segment that holds `from`, so that the entries
    /// before it in that segment are verified too, but not visited.
    ///
    /// # Errors
    /// `Io`. Damage is no error here: see [`Walk::ending`].
    pub fn walk(
        &self,
        from: Vlsn,
        mut visit: impl FnMut(Lsn, &Entry<'_>) -> ControlFlow<()>,
    ) -> Result<Walk> {
        let mut walk = Walk {
            entries: 0,
            entry_bytes: 0,
            begin: Default::default(),
            end_lsn: Lsn::default(),
            end: ChainState::default(),
            ending: Ending::Clean,
        };
        let (mut expected, mut next_number) = (None, None);
        if let Some(Ok(control)) = &self.control {
            let anchor = &control.anchor;
            let before = ChainState {
                vlsn: anchor.vlsn,
                term: anchor.term,
                fingerprint: anchor.fingerprint,
            };
            (walk.end, expected) = (before, Some(before));
            next_number = Some(anchor.next_segment());
        }
        for (at, number) in self.segments.iter().copied().enumerate() {
            let is_last = at + 1 == self.segments.len();
            let Some(file) = self.open_segment(number)? else {
                // The running node dropped it from the front.
                (expected, next_number) = (None, None);
                continue;
            };
            if let Some(wanted) = next_number.filter(|wanted| *wanted != number) {
                let reason = format!("{} as the next file", segment_name(number));
                return Ok(walk.damaged(Lsn::new(wanted, 0), reason));
            }
            next_number = Some(number + 1);
            let header = match self.header(number, &*file)? {
                Ok(header) => header,
                Err(reason) if is_last && reason.is_unwritten => return Ok(walk),
                Err(reason) => return Ok(walk.damaged(Lsn::new(number, 0), reason.text)),
            };
            let before = header.chain_before();
            if let Some(expected) = expected.filter(|expected| *expected != before) {
                walk.end = expected;
                let reason = format!(
                    "a segment that follows entry {} of term {} with fingerprint {}, not entry {} of term {} with {}",
                    before.vlsn,
                    before.term,
                    before.fingerprint,
                    expected.vlsn,
                    expected.term,
                    expected.fingerprint
                );
                return Ok(walk.damaged(Lsn::new(number, 0), reason));
            }
            expected = None;
            let next_first = self.first_of(at + 1)?;
            if next_first.is_some_and(|first| first <= from) {
                continue;
            }
            if walk.entries == 0 {
                walk.begin = (Lsn::new(number, SEGMENT_HEADER_BYTES), header.first);
                walk.end = before;
            }
            if self.walk_segment(&*file, &header, is_last, from, &mut walk, &mut visit)?.is_break()
            {
                return Ok(walk);
            }
            expected = Some(walk.end);
        }
        self.check_against_mark(&mut walk);
        Ok(walk)
    }

    /// Walks one segment; breaks when the walk is over.
    fn walk_segment(
        &self,
        file: &dyn EnvFile,
        header: &SegmentHeader,
        is_last: bool,
        from: Vlsn,
        walk: &mut Walk,
        visit: &mut dyn FnMut(Lsn, &Entry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let number = header.number;
        let path = self.segments_dir.join(segment_name(number));
        let io = |e| LogError::io("read", &path, e);
        let (mut offset, mut chain) = (SEGMENT_HEADER_BYTES, header.chain_before());
        let mut stopped = false;
        let mut wrong_mark = None;
        for attempt in 0.. {
            let len = file.len().map_err(io)?;
            let end = scan_entries(file, offset, len, chain, |offset, entry| {
                if stopped {
                    return;
                }
                let lsn = Lsn::new(number, offset);
                if let MarkRead::Valid(mark) = &self.mark
                    && mark.vlsn == entry.header.vlsn
                    && mark.fingerprint != entry.header.fingerprint
                {
                    wrong_mark = Some((lsn, entry.header.fingerprint, mark.fingerprint));
                }
                walk.end = ChainState {
                    vlsn: entry.header.vlsn,
                    term: entry.header.term,
                    fingerprint: entry.header.fingerprint,
                };
                walk.end_lsn = Lsn::new(number, offset + entry.header.entry_bytes() as u32);
                if entry.header.vlsn >= from {
                    if walk.entries == 0 {
                        walk.begin = (lsn, entry.header.vlsn);
                    }
                    walk.entries += 1;
                    walk.entry_bytes += entry.header.entry_bytes() as u64;
                    stopped = visit(lsn, entry).is_break();
                }
            })
            .map_err(io)?;
            if let Some((lsn, found, marked)) = wrong_mark {
                walk.end.vlsn = walk.end.vlsn.prev();
                let reason =
                    format!("another history: fingerprint {found}, the tail mark says {marked}");
                *walk = walk.clone().damaged(lsn, reason);
                return Ok(ControlFlow::Break(()));
            }
            if stopped {
                walk.ending = Ending::Stopped;
                return Ok(ControlFlow::Break(()));
            }
            walk.end_lsn = Lsn::new(number, end.offset);
            let Some(fault) = end.fault else { return Ok(ControlFlow::Continue(())) };
            if !has_data(file, end.offset, len).map_err(io)?
                && (is_last || self.successor_continues(number, &end.chain)?)
            {
                return Ok(ControlFlow::Continue(()));
            }
            if is_last && (attempt < REREADS || end.offset > offset) {
                (offset, chain) = (end.offset, end.chain);
                std::thread::yield_now();
                continue;
            }
            let marked = match &self.mark {
                MarkRead::Valid(mark) => end.chain.vlsn < mark.vlsn,
                MarkRead::Absent | MarkRead::Unreadable { .. } => false,
            };
            let fault =
                Fault { lsn: walk.end_lsn, vlsn: end.chain.vlsn.next(), reason: fault.to_string() };
            walk.ending =
                if is_last && !marked { Ending::Torn(fault) } else { Ending::Damaged(fault) };
            return Ok(ControlFlow::Break(()));
        }
        unreachable!("the loop above has no end of its own")
    }

    /// Whether the segment after `number` begins where `chain` ends: then no entry is missing
    /// between them, and zeros there are the rest of a file filled ahead.
    fn successor_continues(&self, number: u32, chain: &ChainState) -> Result<bool> {
        let Some(file) = self.open_segment(number + 1)? else { return Ok(false) };
        let header = self.header(number + 1, &*file)?;
        Ok(header.map_or_else(|bad| bad.is_unwritten, |next| next.chain_before() == *chain))
    }

    fn check_against_mark(&self, walk: &mut Walk) {
        let MarkRead::Valid(mark) = &self.mark else { return };
        if walk.ending == Ending::Clean && mark.vlsn > walk.end.vlsn {
            let reason =
                format!("the end of the log; the tail mark says that {} was synced", mark.vlsn);
            *walk = walk.clone().damaged(walk.end_lsn, reason);
        }
    }

    /// The segments one by one: sealed ones from their side files, the others read in full.
    /// Stops at the first damaged one, with the damage.
    ///
    /// # Errors
    /// `Io`.
    pub fn segment_reports(&self) -> Result<(Vec<SegmentReport>, Ending)> {
        let mut reports = Vec::new();
        for (at, number) in self.segments.iter().copied().enumerate() {
            let is_last = at + 1 == self.segments.len();
            let Some(file) = self.open_segment(number)? else { continue };
            let path = self.segments_dir.join(segment_name(number));
            let file_bytes = file.len().map_err(|e| LogError::io("read", &path, e))?;
            let header = match self.header(number, &*file)? {
                Ok(header) => header,
                Err(reason) if is_last && reason.is_unwritten => continue,
                Err(reason) => {
                    let lsn = Lsn::new(number, 0);
                    let vlsn =
                        reports.last().map_or(Vlsn::new(1), |r: &SegmentReport| r.last.vlsn.next());
                    return Ok((
                        reports,
                        Ending::Damaged(Fault { lsn, vlsn, reason: reason.text }),
                    ));
                }
            };
            if let Some(side) = self.side_file(number).filter(|_| !is_last)
                && side.summary.header == header
                && u64::from(side.summary.end) == file_bytes
            {
                reports.push(SegmentReport {
                    header,
                    last: side.summary.last,
                    end: side.summary.end,
                    file_bytes,
                    digest: Some(side.digests.segment),
                    index_bytes: side.encode().len() as u64,
                });
                continue;
            }
            let mut walk = Walk {
                entries: 0,
                entry_bytes: 0,
                begin: Default::default(),
                end_lsn: Lsn::new(number, SEGMENT_HEADER_BYTES),
                end: header.chain_before(),
                ending: Ending::Clean,
            };
            let mut index = SummaryBuilder::new(header, NULL_VLSN, NULL_VLSN);
            let _ = self.walk_segment(
                &*file,
                &header,
                is_last,
                header.first,
                &mut walk,
                &mut |lsn, entry| {
                    index.push(lsn.offset(), &entry.header);
                    ControlFlow::Continue(())
                },
            )?;
            reports.push(SegmentReport {
                header,
                last: walk.end,
                end: walk.end_lsn.offset(),
                file_bytes,
                digest: None,
                index_bytes: index.sample_memory_bytes() as u64,
            });
            if walk.ending != Ending::Clean {
                return Ok((reports, walk.ending));
            }
        }
        Ok((reports, Ending::Clean))
    }

    /// Compares every sealed segment with the digests in its side file; returns how many were
    /// compared and the numbers of those that differ.
    ///
    /// # Errors
    /// `Io`.
    pub fn check_digests(&self) -> Result<(usize, Vec<u32>)> {
        let (mut compared, mut wrong) = (0, Vec::new());
        for number in self.segments.iter().copied().rev().skip(1).rev() {
            let Some(side) = self.side_file(number) else { continue };
            let Some(file) = self.open_segment(number)? else { continue };
            compared += 1;
            match Digests::of_file(&*file, side.summary.end) {
                Ok(digests) if digests == side.digests => {}
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    let path = self.segments_dir.join(segment_name(number));
                    return Err(LogError::io("read", &path, error));
                }
                _ => wrong.push(number),
            }
        }
        Ok((compared, wrong))
    }

    /// A segment's file; `None` if the running node dropped it meanwhile.
    fn open_segment(&self, number: u32) -> Result<Option<Arc<dyn EnvFile>>> {
        let path = self.segments_dir.join(segment_name(number));
        match self.env.open(&path, OpenMode::Read) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io("open", &path, error)),
        }
    }

    fn header(
        &self,
        number: u32,
        file: &dyn EnvFile,
    ) -> Result<std::result::Result<SegmentHeader, BadHeader>> {
        let path = self.segments_dir.join(segment_name(number));
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let count = file.read_at(&mut raw, 0).map_err(|e| LogError::io("read", &path, e))?;
        let is_unwritten = raw[..count].iter().all(|byte| *byte == 0);
        Ok(match SegmentHeader::decode(&raw[..count]) {
            Ok(header) if header.number == number => Ok(header),
            Ok(header) => Err(BadHeader {
                is_unwritten,
                text: format!("the header of segment {}", header.number),
            }),
            Err(fault) => Err(BadHeader { is_unwritten, text: fault.to_string() }),
        })
    }

    /// First VLSN of the segment at `at` in the list, if it has a header.
    fn first_of(&self, at: usize) -> Result<Option<Vlsn>> {
        let Some(number) = self.segments.get(at) else { return Ok(None) };
        let Some(file) = self.open_segment(*number)? else { return Ok(None) };
        Ok(self.header(*number, &*file)?.ok().map(|header| header.first))
    }

    /// The side file of a segment; `None` if it is missing or damaged: the segment tells the same.
    fn side_file(&self, number: u32) -> Option<SideFile> {
        let path = self.segments_dir.join(side_name(number));
        let bytes = crate::env::read_whole(&*self.env, &path).ok()?;
        SideFile::decode(&bytes).ok().filter(|side| side.summary.header.number == number)
    }
}

impl Walk {
    fn damaged(mut self, lsn: Lsn, reason: String) -> Self {
        self.ending = Ending::Damaged(Fault { lsn, vlsn: self.end.vlsn.next(), reason });
        self
    }
}

struct BadHeader {
    /// Nothing was ever written there.
    is_unwritten: bool,
    text: String,
}

fn list_segments(env: &dyn Env, dir: &Path) -> Result<Vec<u32>> {
    match env.list(dir) {
        Ok(names) => Ok(names.iter().filter_map(|name| parse_segment_name(name)).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LogError::io("list", dir, error)),
    }
}

/// Whether anything but zeros stands in `[from, len)`.
fn has_data(file: &dyn EnvFile, from: u32, len: u64) -> io::Result<bool> {
    let mut at = u64::from(from);
    let mut buffer = vec![0; 256 << 10];
    while at < len {
        let wanted = (len - at).min(buffer.len() as u64) as usize;
        let count = file.read_at(&mut buffer[..wanted], at)?;
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        if count == 0 {
            return Ok(false);
        }
        at += count as u64;
    }
    Ok(false)
}
