//! Scan: a sequential, verifying pass over the entries of one segment file.

use std::io;

use noxu_util::{NULL_VLSN, Term, Vlsn};

use super::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::entry::{ChainState, Entry, EntryFault, EntryHeader, EntryKind};
use crate::env::EnvFile;
use crate::reading::index::{Sample, Sampler};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Where a scan ended, and why.
#[derive(Debug)]
pub(crate) struct ScanEnd {
    /// Offset after the last valid entry.
    pub(crate) offset: u32,
    /// The chain through the last valid entry.
    pub(crate) chain: ChainState,
    /// What stands at `offset`; `None` if the range ended exactly there.
    pub(crate) fault: Option<EntryFault>,
}

/// Verifies entries of `file` from `offset` up to `limit`, continuing `chain`, and shows each to
/// `visit` with its offset. Stops at the first faulty one.
pub(crate) fn scan_entries(
    file: &dyn EnvFile,
    offset: u32,
    limit: u64,
    mut chain: ChainState,
    mut visit: impl FnMut(u32, &Entry<'_>),
) -> io::Result<ScanEnd> {
    let limit = limit.min(file.len()?);
    let mut at = u64::from(offset);
    let mut buffer = Vec::new();
    let (mut filled, mut consumed) = (0, 0);
    loop {
        let left_in_file = limit.saturating_sub(at);
        if left_in_file == 0 {
            return Ok(ScanEnd { offset: at as u32, chain, fault: None });
        }
        let unread = &buffer[consumed..filled];
        match chain.check_next(unread, u32::MAX) {
            Ok(entry) => {
                visit(at as u32, &entry);
                let bytes = entry.header.entry_bytes();
                consumed += bytes;
                at += bytes as u64;
            }
            // The buffer ends inside the entry: read on if the file has more. `needed` is checked
            // against the file's length, so a mad length allocates nothing.
            Err(EntryFault::Short { needed, .. })
                if needed as u64 <= left_in_file && unread.len() < needed =>
            {
                buffer.copy_within(consumed..filled, 0);
                filled -= consumed;
                consumed = 0;
                let wanted = (READ_BYTES.max(needed) as u64).min(left_in_file) as usize;
                if buffer.len() < wanted {
                    buffer.resize(wanted, 0);
                }
                let read = file.read_at(&mut buffer[filled..wanted], at + filled as u64)?;
                filled += read;
                if filled < needed {
                    let fault = EntryFault::Short { needed, left: filled };
                    return Ok(ScanEnd { offset: at as u32, chain, fault: Some(fault) });
                }
            }
            Err(fault) => return Ok(ScanEnd { offset: at as u32, chain, fault: Some(fault) }),
        }
    }
}

/// What is known of a segment without reading it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its header.
    pub header: SegmentHeader,
    /// Offset after its last entry.
    pub end: u32,
    /// Its last entry; the position before the segment if it holds none.
    pub last: ChainState,
    /// Offset of its last entry; 0 if it holds none.
    pub last_offset: u32,
    /// Newest sync entry at or before its end, in this segment or an earlier one.
    pub last_sync: Vlsn,
    /// Newest transaction end at or before its end, in this segment or an earlier one.
    pub last_txn_end: Vlsn,
    /// Newest Group entry in this segment; NULL if it holds none.
    pub last_group: Vlsn,
    /// Terms that begin in this segment, with their first VLSNs.
    pub terms: Vec<(Term, Vlsn)>,
    /// Index samples.
    pub(crate) samples: Vec<Sample>,
}

/// Collects a [`SegmentSummary`] entry by entry, in a scan or as the log appends.
#[derive(Debug, Clone)]
pub(crate) struct SummaryBuilder {
    header: SegmentHeader,
    last: ChainState,
    last_offset: u32,
    end: u32,
    last_sync: Vlsn,
    last_txn_end: Vlsn,
    last_group: Vlsn,
    terms: Vec<(Term, Vlsn)>,
    sampler: Sampler,
}

impl SummaryBuilder {
    /// For a segment without entries; the positions are those at the end of the one before.
    pub(crate) fn new(header: SegmentHeader, last_sync: Vlsn, last_txn_end: Vlsn) -> Self {
        Self {
            header,
            last: header.chain_before(),
            last_offset: 0,
            end: SEGMENT_HEADER_BYTES,
            last_sync,
            last_txn_end,
            last_group: NULL_VLSN,
            terms: Vec::new(),
            sampler: Sampler::default(),
        }
    }

    /// Takes the next entry, at `offset`.
    pub(crate) fn push(&mut self, offset: u32, entry: &EntryHeader) {
        debug_assert_eq!(offset, self.end, "entries are adjacent");
        debug_assert_eq!(entry.vlsn, self.last.vlsn.next(), "entries are dense");
        self.sampler.push(Sample {
            vlsn: entry.vlsn,
            offset,
            before: self.last.fingerprint,
            sync_before: self.last_sync,
        });
        if entry.term != self.last.term {
            self.terms.push((entry.term, entry.vlsn));
        }
        if entry.is_sync() {
            self.last_sync = entry.vlsn;
        }
        if entry.is_txn_end() {
            self.last_txn_end = entry.vlsn;
        }
        if entry.kind == EntryKind::GROUP {
            self.last_group = entry.vlsn;
        }
        self.last =
            ChainState { vlsn: entry.vlsn, term: entry.term, fingerprint: entry.fingerprint };
        self.last_offset = offset;
        self.end = offset + entry.entry_bytes() as u32;
    }

    /// Passes over entries that cannot be read: the next one continues `after`, at offset `end`.
    /// What they were is not known, so `last_sync` and `last_txn_end` stay where they are.
    pub(crate) fn skip_to(&mut self, after: ChainState, after_offset: u32, end: u32) {
        if after.term != self.last.term {
            self.terms.push((after.term, after.vlsn));
        }
        self.last = after;
        self.last_offset = after_offset;
        self.end = end;
        self.sampler.sample_next();
    }

    /// Sets the positions at the end of the segment before, which the builder was made without or
    /// which have become known better.
    pub(crate) fn inherit(&mut self, last_sync: Vlsn, last_txn_end: Vlsn) {
        let first = self.header.first;
        self.sampler.inherit(first, last_sync);
        if self.last_sync < first {
            self.last_sync = last_sync;
        }
        if self.last_txn_end < first {
            self.last_txn_end = last_txn_end;
        }
    }

    pub(crate) const fn header(&self) -> &SegmentHeader {
        &self.header
    }

    pub(crate) const fn end(&self) -> u32 {
        self.end
    }

    pub(crate) const fn last(&self) -> &ChainState {
        &self.last
    }

    pub(crate) const fn last_offset(&self) -> u32 {
        self.last_offset
    }

    pub(crate) const fn last_sync(&self) -> Vlsn {
        self.last_sync
    }

    pub(crate) const fn last_txn_end(&self) -> Vlsn {
        self.last_txn_end
    }

    pub(crate) const fn last_group(&self) -> Vlsn {
        self.last_group
    }

    pub(crate) fn terms(&self) -> &[(Term, Vlsn)] {
        &self.terms
    }

    pub(crate) fn samples(&self) -> &[Sample] {
        self.sampler.samples()
    }

    pub(crate) fn sample_memory_bytes(&self) -> usize {
        self.sampler.memory_bytes()
    }

    /// Goes on from a summary.
    pub(crate) fn from_summary(summary: SegmentSummary) -> Self {
        Self {
            header: summary.header,
            last: summary.last,
            last_offset: summary.last_offset,
            end: summary.end,
            last_sync: summary.last_sync,
            last_txn_end: summary.last_txn_end,
            last_group: summary.last_group,
            terms: summary.terms,
            sampler: Sampler::from_samples(summary.samples),
        }
    }

    pub(crate) fn summary(&self) -> SegmentSummary {
        SegmentSummary {
            header: self.header,
            end: self.end,
            last: self.last,
            last_offset: self.last_offset,
            last_sync: self.last_sync,
            last_txn_end: self.last_txn_end,
            last_group: self.last_group,
            terms: self.terms.clone(),
            samples: self.sampler.samples().to_vec(),
        }
    }
}
