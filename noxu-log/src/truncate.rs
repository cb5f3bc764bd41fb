//! Truncate: cuts the end of the log after an entry, so that a crash at any step either leaves the
//! old log with the intent to cut it, or the cut one.
//!
//! # Crash argument
//! 1. The intent (last entry kept, name of the lost-entries file) is durable before anything changes.
//!    Whoever opens the directory finds it and does steps 2 to 7 again; each can be repeated.
//! 2. The cut segment's lost entries are copied to a file that appears whole or not at all. It is
//!    only written while it does not exist, which is before the cut, when all its bytes are there.
//! 3. Segments wholly beyond the cut are moved (or removed), the newest first, so that the rest is
//!    always a prefix of the log.
//! 4. The cut segment is set to its new length and synced: bytes behind the cut are gone and can
//!    never be read as log again, whatever is appended later.
//! 5. The directories are synced.
//! 6. The tail mark is set to the cut and synced. Until then it may speak of entries that are gone,
//!    which the intent excuses.
//! 7. The intent is cleared.

use std::path::Path;

use noxu_util::{Lsn, Vlsn};

use crate::control_file::{ControlFile, TruncateIntent};
use crate::entry::{ChainState, EntryFault};
use crate::env::{Env, OpenMode, write_whole};
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared};
use crate::lost_entries::{LostHeader, LostNote, lost_path, moved_segment_path};
use crate::mutant::{self, Mutant};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, lost_dir, parse_segment_name, segment_name, side_name};
use crate::segment::scan::{SummaryBuilder, scan_entries};
use crate::tail_mark::{Mark, TailMark};

/// What becomes of the entries that a truncation cuts off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// They go to a lost-entries file of this name, with a note of what prevailed.
    Save {
        /// File name without directory and suffix; new.
        name: String,
        /// Kept in the file.
        note: LostNote,
    },
    /// They are discarded.
    Discard,
}

/// What a truncation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated {
    /// The last entry, kept.
    pub last: Vlsn,
    /// How many entries were cut off.
    pub entries: u64,
}

impl Log {
    /// Cuts the log after `vlsn`; `vlsn` itself is kept. Durable on return.
    ///
    /// # Errors
    /// `BelowCommitFloor` if entries known to be durable on a majority would go (nothing changed);
    /// `Poisoned`, `Closed`, `Io`. A failure on the way poisons the log; opening it again finishes
    /// the truncation.
    pub fn truncate_after(&self, vlsn: Vlsn, cut: Cut) -> Result<Truncated> {
        let shared = &*self.shared;
        let _alone = shared.maintenance.lock();
        shared.check_running()?;
        let mut writer = shared.writer.lock();
        let (name, note) = match cut {
            Cut::Save { name, note } => (Some(name), note),
            Cut::Discard => (None, LostNote::default()),
        };
        let (floor, anchor, end) = {
            let state = shared.state.lock();
            (
                state.settled.max(shared.control.state().commit_floor),
                state.anchor.vlsn,
                state.end.vlsn,
            )
        };
        if vlsn >= end {
            return Ok(Truncated { last: end, entries: 0 });
        }
        if vlsn < floor.max(anchor) {
            return Err(LogError::BelowCommitFloor { requested: vlsn, floor: floor.max(anchor) });
        }
        // The files must hold all that is to be saved.
        let marker = shared.drain(&mut writer)?;
        // Appends that slipped in since are cut as well; the state lock orders them.
        let intent = TruncateIntent { vlsn, lost: name };
        shared.control.update(|control| control.truncate_intent = Some(intent.clone()))?;
        {
            let mut state = shared.state.lock();
            state.truncations += 1;
            state.truncating = true;
        }
        finish_with(&*shared.env, &shared.dir, &shared.control, &marker.mark, &intent, &note)
            .map_err(|cause| shared.poison(cause))?;
        writer.current = None;
        shared.files.clear();
        shared.sides.clear();
        shared.forget_after(vlsn).map_err(|cause| shared.poison(cause))?;
        Ok(Truncated { last: vlsn, entries: end.since(vlsn) })
    }
}

impl Shared {
    /// Makes the positions, the index and the tail those of a log that ends with `vlsn`. Called with
    /// the maintenance and writer locks held.
    fn forget_after(&self, vlsn: Vlsn) -> Result<()> {
        let (anchor, cut, last_sync, last_txn_end) = {
            let state = self.state.lock();
            let kept = state.segments.partition_point(|segment| segment.header().first <= vlsn);
            let cut = kept.checked_sub(1).map(|at| *state.segments[at].header());
            let (sync, txn_end) =
                cut.map_or_else(Default::default, |cut| state.syncs_before(cut.number));
            (state.anchor.clone(), cut, sync, txn_end)
        };
        let rebuilt = match cut {
            Some(header) => Some(self.rescan(header, last_sync, last_txn_end)?),
            None => None,
        };
        let mut state = self.state.lock();
        let state = &mut *state;
        while state.segments.pop_back_if(|segment| segment.header().first > vlsn).is_some() {}
        let old_end = state.end;
        if let Some(builder) = rebuilt {
            state.end = *builder.last();
            state.last_lsn = Lsn::new(builder.header().number, builder.last_offset());
            state.last_sync = builder.last_sync();
            state.last_txn_end = builder.last_txn_end();
            state.segments.pop_back();
            state.segments.push_back(Segment::Open(builder));
        } else {
            state.end = ChainState {
                vlsn: anchor.vlsn,
                term: anchor.term,
                fingerprint: anchor.fingerprint,
            };
            state.last_lsn = anchor.lsn;
            state.last_sync = anchor.vlsn;
            state.last_txn_end = anchor.vlsn;
        }
        assert_eq!(state.end.vlsn, vlsn, "the cut log ends where it was cut");
        state.tail.truncate(&state.end, &old_end);
        state.written = vlsn;
        state.synced = state.end_mark();
        state.marked = vlsn;
        state.durable = vlsn;
        state.terms.retain(|(_, first)| *first <= vlsn);
        state.truncating = false;
        state.wakes += 1;
        self.unwritten_bytes.store(0, std::sync::atomic::Ordering::Relaxed);
        state.check_invariants();
        self.appended.notify_all();
        Ok(())
    }

    /// Reads a segment from its first entry to its end.
    fn rescan(
        &self,
        header: SegmentHeader,
        last_sync: Vlsn,
        last_txn_end: Vlsn,
    ) -> Result<SummaryBuilder> {
        let path = self.segment_path(header.number);
        let wrap = |e| LogError::io("read", &path, e);
        let mut builder = SummaryBuilder::new(header, last_sync, last_txn_end);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let len = file.len().map_err(wrap)?;
        let chain = header.chain_before();
        scan_entries(&*file, SEGMENT_HEADER_BYTES, len, chain, |offset, entry| {
            builder.push(offset, &entry.header);
        })
        .map_err(wrap)?;
        Ok(builder)
    }
}

/// Finishes a truncation that a crash had cut short: steps 2 to 7.
pub(crate) fn finish(
    env: &dyn Env,
    dir: &Path,
    control: &ControlFile,
    mark: &TailMark,
    intent: &TruncateIntent,
) -> Result<()> {
    finish_with(env, dir, control, mark, intent, &LostNote::default())
}

fn finish_with(
    env: &dyn Env,
    dir: &Path,
    control: &ControlFile,
    mark: &TailMark,
    intent: &TruncateIntent,
    note: &LostNote,
) -> Result<()> {
    let log_dir = log_dir(dir);
    let plan = Plan::find(env, dir, control, intent.vlsn)?;
    if mutant::is_on(Mutant::IntentClearedBeforeCut) {
        control.update(|control| control.truncate_intent = None)?;
    }
    if let Some(name) = &intent.lost
        && !mutant::is_on(Mutant::LostNotSaved)
    {
        let path = lost_path(dir, name);
        if !env.exists(&path).map_err(|e| LogError::io("look for", &path, e))? {
            plan.save(env, dir, name, control, note)?;
        }
    }
    for number in plan.beyond.iter().rev() {
        let path = log_dir.join(segment_name(*number));
        match &intent.lost {
            Some(name) => {
                let to = moved_segment_path(dir, name, *number);
                env.rename(&path, &to).map_err(|e| LogError::io("move", &path, e))?;
            }
            None => env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?,
        }
        let side = log_dir.join(side_name(*number));
        if env.exists(&side).map_err(|e| LogError::io("look for", &side, e))? {
            env.remove(&side).map_err(|e| LogError::io("remove", &side, e))?;
        }
    }
    if let Some(cut) = &plan.cut {
        let path = log_dir.join(segment_name(cut.number));
        let file =
            env.open(&path, OpenMode::ReadWrite).map_err(|e| LogError::io("open", &path, e))?;
        file.set_len(cut.offset.into()).map_err(|e| LogError::io("cut", &path, e))?;
        if !mutant::is_on(Mutant::CutNotSynced) {
            file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        }
    }
    if intent.lost.is_some() {
        let lost = lost_dir(dir);
        env.sync_dir(&lost).map_err(|e| LogError::io("sync directory", &lost, e))?;
    }
    env.sync_dir(&log_dir).map_err(|e| LogError::io("sync directory", &log_dir, e))?;
    if !mutant::is_on(Mutant::MarkNotMovedByTruncation) {
        mark.write(Mark {
            term: plan.kept.term,
            vlsn: plan.kept.vlsn,
            lsn: plan.kept_lsn,
            fingerprint: plan.kept.fingerprint,
        })?;
        mark.sync()?;
    }
    control.update(|control| control.truncate_intent = None)
}

/// Where a truncation cuts.
struct Plan {
    kept: ChainState,
    kept_lsn: Lsn,
    /// The last valid entry found beyond the cut.
    end: ChainState,
    /// The segment that holds the last entry kept; `None` if none is kept.
    cut: Option<CutSegment>,
    /// Segments wholly beyond the cut, oldest first.
    beyond: Vec<u32>,
}

struct CutSegment {
    number: u32,
    /// Where it is cut.
    offset: u32,
    /// Where its valid entries ended before.
    end: u32,
}

impl Plan {
    fn find(env: &dyn Env, dir: &Path, control: &ControlFile, vlsn: Vlsn) -> Result<Self> {
        let log_dir = log_dir(dir);
        let anchor = control.state().anchor;
        let before =
            ChainState { vlsn: anchor.vlsn, term: anchor.term, fingerprint: anchor.fingerprint };
        let mut plan =
            Self { kept: before, kept_lsn: anchor.lsn, end: before, cut: None, beyond: Vec::new() };
        let mut holder = None;
        let mut beyond = Vec::new();
        let names = env.list(&log_dir).map_err(|e| LogError::io("list", &log_dir, e))?;
        for number in names.iter().filter_map(|name| parse_segment_name(name)) {
            if number < anchor.next_segment() {
                continue;
            }
            match read_header(env, &log_dir, number)? {
                Some(header) if header.first <= vlsn => holder = Some(header),
                other => beyond.push((number, other)),
            }
        }
        if let Some(header) = holder {
            plan.cut(env, &log_dir, &header, vlsn)?;
        } else if vlsn != anchor.vlsn {
            return Err(not_there(anchor.next_segment(), 0, vlsn, "no segment with it".into()));
        }
        for (number, header) in beyond {
            if let Some(header) = header
                && header.chain_before() == plan.end
            {
                plan.end = last_of(env, &log_dir, &header)?;
            }
            plan.beyond.push(number);
        }
        Ok(plan)
    }

    /// Finds the cut in the segment that holds `vlsn`.
    fn cut(
        &mut self,
        env: &dyn Env,
        log_dir: &Path,
        header: &SegmentHeader,
        vlsn: Vlsn,
    ) -> Result<()> {
        let path = log_dir.join(segment_name(header.number));
        let wrap = |e| LogError::io("read", &path, e);
        let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
        let len = file.len().map_err(wrap)?;
        let mut kept = None;
        let chain = header.chain_before();
        let end = scan_entries(&*file, SEGMENT_HEADER_BYTES, len, chain, |offset, entry| {
            if entry.header.vlsn == vlsn {
                kept = Some((entry.header, offset));
            }
        })
        .map_err(wrap)?;
        let Some((entry, offset)) = kept else {
            let found = end.fault.unwrap_or(EntryFault::Header).to_string();
            return Err(not_there(header.number, end.offset, vlsn, found));
        };
        self.kept = ChainState { vlsn, term: entry.term, fingerprint: entry.fingerprint };
        self.kept_lsn = Lsn::new(header.number, offset);
        self.end = end.chain;
        self.cut = Some(CutSegment {
            number: header.number,
            offset: offset + entry.entry_bytes() as u32,
            end: end.offset,
        });
        Ok(())
    }

    /// Step 2: copies the lost entries of the cut segment.
    fn save(
        &self,
        env: &dyn Env,
        dir: &Path,
        name: &str,
        control: &ControlFile,
        note: &LostNote,
    ) -> Result<()> {
        let mut entries = Vec::new();
        if let Some(cut) = &self.cut {
            let path = log_dir(dir).join(segment_name(cut.number));
            let wrap = |e| LogError::io("read", &path, e);
            let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
            entries.resize((cut.end - cut.offset) as usize, 0);
            let read = file.read_at(&mut entries, cut.offset.into()).map_err(wrap)?;
            entries.truncate(read);
        }
        let header = LostHeader {
            group: control.state().group.map(|group| group.id).unwrap_or_default(),
            kept: self.kept,
            kept_lsn: self.kept_lsn,
            end: self.end,
            note: note.clone(),
            moved: self.beyond.clone(),
            entry_bytes: entries.len() as u64,
        };
        let mut bytes = header.encode();
        bytes.append(&mut entries);
        write_whole(env, &lost_path(dir, name), &bytes)
    }
}

/// A segment's header; `None` if it was never written (a roll cut short).
fn read_header(env: &dyn Env, log_dir: &Path, number: u32) -> Result<Option<SegmentHeader>> {
    let path = log_dir.join(segment_name(number));
    let wrap = |e| LogError::io("read", &path, e);
    let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
    let mut raw = vec![0; SEGMENT_HEADER_BYTES as usize];
    let read = file.read_at(&mut raw, 0).map_err(wrap)?;
    raw.truncate(read);
    if raw.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    SegmentHeader::decode(&raw).map(Some).map_err(|fault| LogError::Corrupt {
        segment: number,
        offset: 0,
        expected: "a segment header".into(),
        found: fault.to_string(),
    })
}

/// The last valid entry of a segment.
fn last_of(env: &dyn Env, log_dir: &Path, header: &SegmentHeader) -> Result<ChainState> {
    let path = log_dir.join(segment_name(header.number));
    let wrap = |e| LogError::io("read", &path, e);
    let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
    let len = file.len().map_err(wrap)?;
    let chain = header.chain_before();
    Ok(scan_entries(&*file, SEGMENT_HEADER_BYTES, len, chain, |_, _| {}).map_err(wrap)?.chain)
}

fn not_there(segment: u32, offset: u32, vlsn: Vlsn, found: String) -> LogError {
    LogError::Corrupt {
        segment,
        offset: offset.into(),
        expected: format!("entry {vlsn}, the last one to be kept"),
        found,
    }
}
