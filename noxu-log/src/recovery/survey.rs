//! Survey: what one segment file holds, entry by entry, with every bad place decided on.
//!
//! A segment's header says which chain its first entry continues, so that segments are surveyed
//! independently of each other, several at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use noxu_util::{Lsn, NULL_VLSN, Vlsn};
use parking_lot::Mutex;

use super::decision::{Decision, Evidence, Stands, decide};
use super::resync::{resume, valid_but_for_its_chain};
use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryHeader};
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::rewriting::repair::Faulty;
use crate::segment::header::{HeaderFault, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, segment_name};
use crate::segment::scan::{SummaryBuilder, scan_entries};
use crate::writing::tail_mark::Mark;

/// A segment file and what its first 64 bytes say.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn EnvFile>,
    pub(crate) len: u64,
    pub(crate) header: Result<SegmentHeader, HeaderFault>,
    /// The header was never written.
    pub(crate) blank: bool,
}

impl Head {
    pub(crate) fn read(env: &dyn Env, dir: &Path, number: u32) -> Result<Self> {
        let path = log_dir(dir).join(segment_name(number));
        let file = env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        let io = |e| LogError::io("read", &path, e);
        let len = file.len().map_err(io)?;
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut raw, 0).map_err(io)?;
        let header = SegmentHeader::decode(&raw[..read]);
        let blank = raw[..read].iter().all(|byte| *byte == 0);
        Ok(Self { number, path, file, len, header, blank })
    }

    /// The bytes of the entry right behind the header, if there is one that only its chain could make
    /// another's. One of before `kept` is no entry of this segment.
    pub(crate) fn first_entry(&self, kept: Vlsn) -> Result<Option<(EntryHeader, Vec<u8>)>> {
        let io = |e| LogError::io("read", &self.path, e);
        let at = u64::from(SEGMENT_HEADER_BYTES);
        let mut raw = [0; ENTRY_HEADER_BYTES];
        if self.file.read_at(&mut raw, at).map_err(io)? < raw.len() {
            return Ok(None);
        }
        let Some(header) = EntryHeader::decode(&raw) else { return Ok(None) };
        if header.vlsn <= kept || header.entry_bytes() as u64 > self.len - at {
            return Ok(None);
        }
        let mut bytes = vec![0; header.entry_bytes()];
        let read = self.file.read_at(&mut bytes, at).map_err(io)?;
        bytes.truncate(read);
        let is_valid = valid_but_for_its_chain(&bytes, &header).is_some();
        Ok(is_valid.then_some((header, bytes)))
    }

    /// The chain through the last valid entry of a segment whose header can be read.
    pub(crate) fn end(&self, header: &SegmentHeader) -> Result<ChainState> {
        let chain = header.chain_before();
        let scan = scan_entries(&*self.file, SEGMENT_HEADER_BYTES, self.len, chain, |_, _| {});
        scan.map(|end| end.chain).map_err(|e| LogError::io("read", &self.path, e))
    }
}

/// What is known of the whole log before its segments are surveyed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The tail mark, if there is a readable one.
    pub(crate) mark: Option<Mark>,
    /// Whether the mark could be read, or was never written.
    pub(crate) mark_readable: bool,
    /// Everything through it was synced.
    pub(crate) synced: Vlsn,
}

/// What comes after a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: it is the last one.
    Nothing,
    /// A segment that continues this chain.
    Continues(ChainState),
    /// A segment whose header cannot be read.
    Unreadable,
}

impl Next {
    pub(crate) fn of(head: Option<&Head>) -> Self {
        match head.map(|head| &head.header) {
            None => Self::Nothing,
            Some(Ok(header)) => Self::Continues(header.chain_before()),
            Some(Err(_)) => Self::Unreadable,
        }
    }

    const fn chain(self) -> Option<ChainState> {
        match self {
            Self::Continues(chain) => Some(chain),
            Self::Nothing | Self::Unreadable => None,
        }
    }
}

/// What a segment holds.
#[derive(Debug)]
pub(crate) struct Surveyed {
    /// Its entries. The positions before the segment are not known to it.
    pub(crate) builder: SummaryBuilder,
    pub(crate) faulty: Vec<Faulty>,
    /// Bytes behind the end that are not zero: to be cut.
    pub(crate) stray_bytes: u64,
}

impl Surveyed {
    /// Whether an entry is there, or should be.
    pub(crate) fn holds_any(&self) -> bool {
        self.builder.last().vlsn >= self.builder.header().first
    }
}

/// Surveys the segment at `head`.
pub(crate) fn survey(
    head: &Head,
    header: &SegmentHeader,
    next: Next,
    known: &Known,
) -> Result<Surveyed> {
    let io = |e| LogError::io("read", &head.path, e);
    let mut chain = header.chain_before();
    let mut builder = SummaryBuilder::new(*header, NULL_VLSN, NULL_VLSN);
    let mut faulty = Vec::new();
    let mut offset = SEGMENT_HEADER_BYTES;
    // The last entry that must be here.
    let synced_here = next.chain().map_or(known.synced, |next| next.vlsn);
    loop {
        let mut mark_found = None;
        let end = scan_entries(&*head.file, offset, head.len, chain, |offset, entry| {
            builder.push(offset, &entry.header);
            if known.mark.is_some_and(|mark| mark.vlsn == entry.header.vlsn) {
                mark_found = Some(entry.header.fingerprint);
            }
        })
        .map_err(io)?;
        if let (Some(mark), Some(found)) = (known.mark, mark_found)
            && mark.fingerprint != found
        {
            return Err(LogError::ChainMismatch {
                vlsn: mark.vlsn,
                expected: mark.fingerprint,
                found,
            });
        }
        let whole = next.chain().is_some_and(|next| end.chain.vlsn >= next.vlsn);
        let missing = end.chain.vlsn < synced_here;
        let cut_short = EntryFault::Short {
            needed: ENTRY_HEADER_BYTES,
            left: head.len.saturating_sub(end.offset.into()) as usize,
        };
        let fault = match end.fault {
            Some(fault) if !whole => fault,
            None if missing && next != Next::Unreadable => cut_short,
            _ => break,
        };
        // Entries end before the zeros of a segment filled ahead; where, only the next one knows.
        if next == Next::Unreadable
            && stray_bytes(&*head.file, end.offset, head.len).map_err(io)? == 0
        {
            break;
        }
        let vlsn = end.chain.vlsn.next();
        let mut evidence = Evidence {
            vlsn,
            synced: synced_here,
            mark_readable: known.mark_readable,
            stands: match fault {
                EntryFault::Chain { .. } | EntryFault::Term { .. } => Stands::OtherHistory,
                _ => Stands::NoEntry,
            },
            chain_goes_on: false,
        };
        let mut resumed = None;
        if missing || !known.mark_readable {
            let limit = if known.mark_readable { synced_here } else { Vlsn::new(i64::MAX) };
            let segment_last = next.chain().map(|next| next.vlsn);
            let rest = read_rest(head, end.offset).map_err(io)?;
            // What is known of the chain further on in this segment.
            let mark = known.mark.filter(|mark| mark.lsn.segment() == head.number);
            let ends: Vec<_> = mark.iter().map(Mark::chain).chain(next.chain()).collect();
            resumed = resume(&rest, &end.chain, known.mark.as_ref(), &ends, limit, segment_last);
            evidence.chain_goes_on = resumed.is_some();
        }
        match decide(&evidence) {
            Decision::Cut => break,
            Decision::Alarm => return Err(other_history(head.number, end.offset, vlsn, &fault)),
            Decision::Faulty => {}
        }
        let gap = |after: ChainState, last_offset: Option<u32>, behind: Option<u32>| Faulty {
            first: vlsn,
            last: after.vlsn,
            segment: head.number,
            offset: end.offset,
            last_offset,
            behind,
            before: end.chain,
            after,
            found: fault.clone(),
        };
        if let Some(resumed) = resumed {
            let at = end.offset + resumed.at as u32;
            let last_offset = end.offset + resumed.after_offset as u32;
            faulty.push(gap(resumed.after, Some(last_offset), Some(at)));
            builder.skip_to(resumed.after, last_offset, at);
            chain = resumed.after;
            offset = at;
            continue;
        }
        // Nothing more of this segment: what it ended with, the next one or the mark tells.
        let through_mark = known.mark.filter(|mark| next == Next::Nothing && mark.vlsn >= vlsn);
        if let Some(mark) = &through_mark
            && mark.lsn.segment() > head.number
        {
            return Err(missing_segment(mark));
        }
        let Some(after) = next.chain().or_else(|| through_mark.as_ref().map(Mark::chain)) else {
            return Err(missing_end(head.number, end.offset, vlsn, &fault));
        };
        let last_offset = match known.mark {
            Some(mark) if mark.vlsn == after.vlsn && mark.lsn.segment() == head.number => {
                Some(mark.lsn.offset())
            }
            _ => (after.vlsn == vlsn).then_some(end.offset),
        };
        faulty.push(gap(after, last_offset, None));
        builder.skip_to(after, last_offset.unwrap_or(end.offset), end.offset);
        return Ok(Surveyed { builder, faulty, stray_bytes: 0 });
    }
    let stray_bytes = stray_bytes(&*head.file, builder.end(), head.len).map_err(io)?;
    Ok(Surveyed { builder, faulty, stray_bytes })
}

/// Surveys several segments, each as [`survey`] does, on up to `threads` threads at a time. The
/// results are in the order of `jobs`.
pub(super) fn survey_all(
    jobs: &[(&Head, SegmentHeader, Next)],
    known: &Known,
    threads: usize,
) -> Vec<Result<Surveyed>> {
    let run = |job: &(&Head, SegmentHeader, Next)| survey(job.0, &job.1, job.2, known);
    let threads = threads.min(jobs.len());
    if threads <= 1 {
        return jobs.iter().map(run).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed))
                    && let Some(job) = jobs.get(at)
                {
                    let result = run(job);
                    done.lock().push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The bytes from `offset` to the end of the segment: read only where an entry is damaged.
fn read_rest(head: &Head, offset: u32) -> std::io::Result<Vec<u8>> {
    let mut rest = vec![0; head.len.saturating_sub(u64::from(offset)) as usize];
    let read = head.file.read_at(&mut rest, offset.into())?;
    rest.truncate(read);
    Ok(rest)
}

/// Length of what stands behind `end`, up to its last byte that is not zero.
pub(crate) fn stray_bytes(file: &dyn EnvFile, end: u32, len: u64) -> std::io::Result<u64> {
    let mut stray = 0;
    let mut at = u64::from(end);
    let mut buffer = vec![0; (1 << 20).min(len.saturating_sub(at)) as usize];
    while at < len {
        let part = (len - at).min(buffer.len() as u64) as usize;
        let read = file.read_at(&mut buffer[..part], at)?;
        if read == 0 {
            break;
        }
        if let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0) {
            stray = at + last as u64 + 1 - u64::from(end);
        }
        at += read as u64;
    }
    Ok(stray)
}

fn other_history(segment: u32, offset: u32, vlsn: Vlsn, fault: &EntryFault) -> LogError {
    match fault {
        EntryFault::Chain { found, expected } => {
            LogError::ChainMismatch { vlsn, expected: *expected, found: *found }
        }
        fault => LogError::Corrupt {
            segment,
            offset: offset.into(),
            expected: format!("entry {vlsn}, which was synced"),
            found: fault.to_string(),
        },
    }
}

fn missing_segment(mark: &Mark) -> LogError {
    LogError::Corrupt {
        segment: mark.lsn.segment(),
        offset: 0,
        expected: segment_name(mark.lsn.segment()),
        found: format!("no such file, where entries through {} were synced", mark.vlsn),
    }
}

fn missing_end(segment: u32, offset: u32, vlsn: Vlsn, fault: &EntryFault) -> LogError {
    LogError::Corrupt {
        segment,
        offset: offset.into(),
        expected: format!("entry {vlsn}, which was synced"),
        found: fault.to_string(),
    }
}

/// Where the last entry of a surveyed segment stands.
pub(super) const fn last_lsn(surveyed: &Surveyed) -> Lsn {
    Lsn::new(surveyed.builder.header().number, surveyed.builder.last_offset())
}
