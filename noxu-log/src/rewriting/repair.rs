//! Repair: entries that belong to the log and whose content is damaged, and putting them back.
//!
//! A faulty entry was synced and may have been acknowledged, so recovery never cuts it away: it
//! counts as present in the log's positions, reading it is an error of its own, and its content
//! comes back from a node that has it. The log is the same, byte for byte, on every node, so the
//! bytes are written where they were, and the chain on both sides proves them. Of the first entries
//! of a range that nobody has all of, what stands before them is proof, and their term: where the range
//! lies within one, each of its VLSNs was given to one entry only.
//!
//! # Crash argument
//! A repair writes only inside the faulty range, and clears the zeros or rubbish behind a range that
//! ends its segment and is put back whole. A crash leaves the range faulty, shorter at its beginning, or
//! whole: whatever survives of the write is verified by the next recovery like any other byte, and what
//! says how far the range goes, the entry behind it or the tail mark, is not touched. Nothing else is
//! changed on disk.

use std::io::IoSlice;

use noxu_util::{Lsn, Vlsn};

use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryRun};
use crate::env::OpenMode;
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared, State};
use crate::segment::header::SEGMENT_HEADER_BYTES;
use crate::segment::scan::{ScanEnd, scan_entries};
use crate::writing::group_commit::Writer;

/// A run of entries that belong to the log and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faulty {
    /// First entry.
    pub first: Vlsn,
    /// Last entry.
    pub last: Vlsn,
    /// The segment that holds them, all of them.
    pub segment: u32,
    /// Where the first one begins, in bytes from the start of the segment.
    pub offset: u32,
    /// Where the last one begins; `None` if nothing tells.
    pub last_offset: Option<u32>,
    /// Where what follows the last one begins; `None` if nothing of the segment follows, so that
    /// only the entries themselves tell where they end.
    pub behind: Option<u32>,
    /// The chain up to the first one.
    pub before: ChainState,
    /// The chain through the last one, as what follows it, or the tail mark, says.
    pub after: ChainState,
    /// What stands where the first one should.
    pub found: EntryFault,
}

impl Faulty {
    /// Whether `vlsn` is one of them.
    pub fn holds(&self, vlsn: Vlsn) -> bool {
        (self.first..=self.last).contains(&vlsn)
    }
}

/// The answer to those who want to read one of them.
impl From<&Faulty> for LogError {
    fn from(faulty: &Faulty) -> Self {
        Self::Faulty {
            first: faulty.first,
            last: faulty.last,
            segment: faulty.segment,
            offset: faulty.offset.into(),
            found: faulty.found.to_string(),
        }
    }
}

impl Log {
    /// The entries that belong to the log and cannot be read, oldest first. Found when the log was
    /// opened, or by [`Log::examine`]; empty for a sound log.
    pub fn faulty(&self) -> Vec<Faulty> {
        self.shared.state.lock().faulty.clone()
    }

    /// The first of them that the state machine's checkpoint does not hold. Once it is `None` it
    /// stays so while the log is open, unless [`Log::examine`] finds more.
    pub fn first_damaged(&self) -> Option<Vlsn> {
        let state = self.shared.state.lock();
        let needed = state.faulty.iter().find(|faulty| faulty.last > state.checkpoint);
        needed.map(|faulty| faulty.first.max(state.checkpoint.next()))
    }

    /// Puts the entries of one faulty range back. Durable on return.
    ///
    /// # Errors
    /// `NotFaulty` if `run` is not exactly one of [`Log::faulty`]; `ChainMismatch` or `Misfit` if
    /// its entries do not fit between what is there, or `Io` if the segment cannot be opened (nothing
    /// changed); `Corrupt` naming another entry of the segment if that was damaged since the log was
    /// opened: the range is whole again, and the next open or [`Log::examine`] says so; `Poisoned`,
    /// `Closed`. A failed write poisons the log; the range is faulty or whole at the next open.
    pub fn repair(&self, run: &EntryRun) -> Result<()> {
        self.put_back(run, |range| range.first == run.first && range.last == run.last)
    }

    /// Puts the first entries of one faulty range back, which begins behind them from then on. Durable
    /// on return. Nothing behind them proves that they are the ones that were there; their term does,
    /// in which a VLSN is one entry in every log: that of the range on both sides.
    ///
    /// # Errors
    /// `NotFaulty` if `run` is not the beginning, and less than all, of one of [`Log::faulty`];
    /// `Misfit` if its term is not that of the range, or the range is not within one; otherwise as
    /// [`Log::repair`].
    pub fn repair_prefix(&self, run: &EntryRun) -> Result<()> {
        self.put_back(run, |range| range.first == run.first && range.last > run.last)
    }

    fn put_back(&self, run: &EntryRun, is_meant: impl Fn(&Faulty) -> bool) -> Result<()> {
        let put = self.shared.put_back(run, is_meant);
        // What was synced for it is durable, whatever came of it.
        self.shared.publish();
        put
    }
}

impl Shared {
    fn put_back(&self, run: &EntryRun, is_meant: impl Fn(&Faulty) -> bool) -> Result<()> {
        let _alone = self.maintenance.lock();
        self.check_running()?;
        // Nobody else writes meanwhile: a range at the log's end ends where appends go on.
        let mut writer = self.writer.lock();
        let faulty = self.state.lock().faulty.clone();
        let Some(range) = faulty.iter().find(|range| is_meant(range)) else {
            return Err(LogError::NotFaulty { first: run.first, last: run.last });
        };
        let end = check(self, range, run)?;
        let path = self.segment_path(range.segment);
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let file = self.env.open(&path, OpenMode::ReadWrite).map_err(wrap("open"))?;
        let parts: Vec<_> = run.parts.iter().map(|part| IoSlice::new(part)).collect();
        let is_all = run.last == range.last;
        let put_back = || {
            file.write_at(&parts, range.offset.into()).map_err(wrap("write"))?;
            let cuts = is_all && range.behind.is_none();
            if cuts && file.len().map_err(wrap("measure"))? > u64::from(end) {
                file.set_len(end.into()).map_err(wrap("cut"))?;
            }
            file.sync_data().map_err(wrap("sync"))
        };
        // Entries of the flusher may lie in the pages of this file, and the kernel reports their loss
        // only once: to us, not to the flusher's next sync.
        put_back().map_err(|cause| self.poison(cause))?;
        let rest = if is_all {
            None
        } else {
            let chain = ChainState {
                vlsn: run.last,
                term: run.last_term,
                fingerprint: run.last_fingerprint,
            };
            let limit = range.behind.map_or(u64::MAX, u64::from);
            let found = scan_entries(&*file, end, limit, chain, |_, _| {}).map_err(wrap("read"))?;
            rest_of(range, found)?
        };
        self.forget_fault(&mut writer, range, rest)
    }
}

/// What is faulty still of `range`, once a scan behind the entries that were put back has ended so;
/// `None` if the others are readable again with them.
fn rest_of(range: &Faulty, found: ScanEnd) -> Result<Option<Faulty>> {
    let ScanEnd { offset, chain, fault } = found;
    if chain.vlsn < range.last {
        return Ok(Some(Faulty {
            first: chain.vlsn.next(),
            offset,
            before: chain,
            found: fault.unwrap_or(EntryFault::Short { needed: ENTRY_HEADER_BYTES, left: 0 }),
            ..range.clone()
        }));
    }
    if chain == range.after {
        return Ok(None);
    }
    let (expected, found) = (range.after.fingerprint, chain.fingerprint);
    Err(LogError::ChainMismatch { vlsn: chain.vlsn, expected, found })
}

/// Whether the run fits into its range, on both sides as far as it reaches them; the offset behind it.
fn check(shared: &Shared, range: &Faulty, run: &EntryRun) -> Result<u32> {
    let is_all = run.last == range.last;
    let (before, after) = (range.before.term, range.after.term);
    let one_term = before == after && run.last_term == after;
    if !(is_all || one_term) {
        let found = format!("entries through term {} after one of term {before}", run.last_term);
        return Err(misfit(range, found));
    }
    let ends = [
        (range.first, range.before.fingerprint, run.previous_fingerprint),
        (range.last, range.after.fingerprint, run.last_fingerprint),
    ];
    for (vlsn, expected, found) in ends.into_iter().take(if is_all { 2 } else { 1 }) {
        if expected != found {
            return Err(LogError::ChainMismatch { vlsn, expected, found });
        }
    }
    let end = u64::from(range.offset) + run.byte_len() as u64;
    // The others are as long as a header, at least.
    let least = end + range.last.since(run.last) * ENTRY_HEADER_BYTES as u64;
    let segment_bytes = shared.state.lock().group.as_ref().map_or(0, |group| group.segment_bytes);
    let fits = match range.behind {
        Some(behind) if is_all => end == u64::from(behind),
        Some(behind) => least <= u64::from(behind),
        None => {
            least <= u64::from(segment_bytes)
                || (is_all && range.offset == SEGMENT_HEADER_BYTES && run.count() == 1)
        }
    };
    match u32::try_from(end) {
        Ok(end) if fits => Ok(end),
        _ => Err(misfit(range, format!("{} bytes of entries", run.byte_len()))),
    }
}

fn misfit(range: &Faulty, found: String) -> LogError {
    LogError::Misfit { first: range.first, last: range.last, found }
}

impl Shared {
    /// Leaves only `rest` of a repaired range in the list and reads its segment anew.
    fn forget_fault(
        &self,
        writer: &mut Writer,
        range: &Faulty,
        rest: Option<Faulty>,
    ) -> Result<()> {
        let mut faulty = self.state.lock().faulty.clone();
        if let Some(at) = faulty.iter().position(|other| other == range) {
            faulty.splice(at..=at, rest);
        }
        self.relist(writer, range.segment, faulty)
    }

    /// Makes `faulty` the list of what is, of which only what says something about segment `number`
    /// has changed, and reads that segment anew.
    ///
    /// # Errors
    /// `Corrupt` if something else of it is damaged; `Io`, `Poisoned`, `ReadOnly`.
    pub(crate) fn relist(
        &self,
        writer: &mut Writer,
        number: u32,
        faulty: Vec<Faulty>,
    ) -> Result<()> {
        let (header, (last_sync, last_txn_end)) = {
            let state = self.state.lock();
            let at = state.position_of(number);
            (*state.segments[at].header(), state.syncs_before(number))
        };
        loop {
            // What was appended since the log was opened is to be in the file.
            drop(self.drain(writer)?);
            let through = {
                let state = self.state.lock();
                let at = state.position_of(number);
                state.segments[at].last().vlsn.min(state.synced.vlsn)
            };
            let builder = self.reindex(header, last_sync, last_txn_end, &faulty, through)?;
            let mut state = self.state.lock();
            let state = &mut *state;
            let at = state.position_of(number);
            let is_last = at + 1 == state.segments.len();
            // Appended since.
            if builder.last().vlsn < state.segments[at].last().vlsn {
                continue;
            }
            if is_last {
                state.last_lsn = Lsn::new(number, builder.last_offset());
            }
            state.segments[at] = Segment::Open(builder);
            state.faulty = faulty;
            state.unsealable = None;
            state.follow_from(at, last_sync, last_txn_end);
            state.truncations += 1;
            state.check_invariants();
            return Ok(());
        }
    }
}

impl State {
    /// Sets what segment `at` and all behind it, which are unsealed, say of sync entries,
    /// transactions and terms: it was not known while entries were missing.
    pub(crate) fn follow_from(&mut self, at: usize, mut last_sync: Vlsn, mut last_txn_end: Vlsn) {
        let first = self.segments[at].header().first;
        self.terms.retain(|(_, begins)| *begins < first);
        for segment in self.segments.iter_mut().skip(at) {
            let Segment::Open(builder) = segment else { continue };
            builder.inherit(last_sync, last_txn_end);
            (last_sync, last_txn_end) = (builder.last_sync(), builder.last_txn_end());
            if self.terms.is_empty() && builder.terms().first().is_none_or(|(_, v)| *v > first) {
                self.terms.push((self.anchor.term, first));
            }
            self.terms.extend_from_slice(builder.terms());
        }
        (self.last_sync, self.last_txn_end) = (last_sync, last_txn_end);
    }
}
