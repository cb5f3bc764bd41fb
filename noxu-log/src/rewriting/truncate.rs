//! Truncate: cuts the end of the log after an entry, so that a crash at any step either leaves the
//! old log, perhaps with the intent to cut it, or the cut one.
//!
//! # Crash argument
//! 1. The lost entries of the segment that is cut are copied, durably, under a *staged* name: nothing
//!    has happened yet, and whoever opens a log without an intent removes the copy.
//! 2. The intent (last entry kept, where the cut goes, name of the lost-entries file) is durable
//!    before the log changes. If writing it fails nobody knows whether it is, so the log stops.
//!    Whoever opens the directory finds it and does steps 3 to 9 again; each can be repeated, and
//!    none reads an entry, so that damage does not stand in the way.
//! 3. The staged copy gets its name.
//! 4. Segments wholly beyond the cut are moved (or removed), the newest first, so that the rest is
//!    always a prefix of the log.
//! 5. The side file of the cut segment goes: it would speak of what stood there before.
//! 6. The cut segment is set to its new length and synced: bytes behind the cut are gone and can
//!    never be read as log again, whatever is appended later.
//! 7. The directories are synced.
//! 8. The tail mark is set to the cut and synced. Until then it may speak of entries that are gone,
//!    which the intent excuses.
//! 9. The intent is cleared.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use noxu_util::{Lsn, Vlsn};

use crate::control_file::{ControlFile, TruncateIntent};
use crate::entry::ChainState;
use crate::env::{Env, OpenMode, sync_parent};
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared};
use crate::mutant::{self, Mutant};
use crate::rewriting::lost_entries::{LostHeader, LostNote, lost_path, moved_segment_path};
use crate::segment::name::{log_dir, lost_dir, parse_segment_name, segment_name, side_name};
use crate::writing::tail_mark::{Mark, TailMark};

/// Suffix of a lost-entries file whose truncation has not been decided on.
const STAGED_SUFFIX: &str = "staged";

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

/// Where the log was cut since it was opened. An entry is known by its VLSN only as long as none of
/// these cut it off: another may stand there since.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    done: u64,
    /// How many were done with this one, and the last entry it kept; both ascend, because one that a
    /// later one went below tells nothing any more.
    kept: Vec<(u64, Vlsn)>,
}

impl Cuts {
    /// How many truncations there were.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    fn note(&mut self, kept: Vlsn) {
        self.done += 1;
        while self.kept.pop_if(|(_, last)| *last >= kept).is_some() {}
        self.kept.push((self.done, kept));
    }

    /// The last entry kept, if one of the truncations after the first `since` has cut `vlsn` off.
    pub(crate) fn cut_off(&self, vlsn: Vlsn, since: u64) -> Option<Vlsn> {
        let (_, kept) = self.kept.iter().find(|(done, _)| *done > since)?;
        (*kept < vlsn).then_some(*kept)
    }
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
    /// `BelowCommitFloor` if entries known to be durable on a majority would go, `Faulty` if `vlsn`
    /// itself is damaged, `ReadOnly` if the disk has no room for what is to be saved (nothing
    /// changed); `Poisoned`, `Closed`, `Io`. A failure after the first
    /// change poisons the log; opening it again finishes the truncation.
    pub fn truncate_after(&self, vlsn: Vlsn, cut: Cut) -> Result<Truncated> {
        let shared = &*self.shared;
        let alone = shared.maintenance.lock();
        shared.check_running()?;
        let mut writer = shared.writer.lock();
        let (floor, anchor, end) = {
            let state = shared.state.lock();
            (
                state.settled.max(shared.control.state().commit_floor),
                state.anchor.clone(),
                state.end.vlsn,
            )
        };
        if vlsn >= end {
            return Ok(Truncated { last: end, entries: 0 });
        }
        if vlsn < floor.max(anchor.vlsn) {
            let floor = floor.max(anchor.vlsn);
            return Err(LogError::BelowCommitFloor { requested: vlsn, floor });
        }
        // The files must hold all that is to be saved. What is appended after this is cut as well;
        // the state lock orders the two.
        let marker = shared.drain(&mut writer)?;
        let mut intent = match self.header(vlsn)? {
            Some((header, lsn)) => TruncateIntent {
                kept: header.chain(),
                kept_lsn: lsn,
                cut: Lsn::new(lsn.segment(), lsn.offset() + header.entry_bytes() as u32),
                lost: None,
            },
            None => TruncateIntent {
                kept: anchor.chain(),
                kept_lsn: anchor.lsn,
                cut: Lsn::new(anchor.next_segment(), 0),
                lost: None,
            },
        };
        if let Cut::Save { name, note } = cut {
            shared.stage_lost(&intent, &name, note)?;
            intent.lost = Some(name);
        }
        // Half written it may be on the disk, and then the next open cuts off whatever is told of
        // from here on.
        let decided = shared.control.update(|it| it.truncate_intent = Some(intent.clone()));
        decided.map_err(|cause| match cause {
            LogError::Io { .. } => shared.poison(cause),
            nothing_written => nothing_written,
        })?;
        {
            let mut state = shared.state.lock();
            state.truncations += 1;
            state.truncating = true;
        }
        finish(&*shared.env, &shared.dir, &shared.control, &marker.mark, &intent)
            .map_err(|cause| shared.poison(cause))?;
        writer.current = None;
        shared.files.clear();
        shared.sides.clear();
        shared.forget_after(vlsn).map_err(|cause| shared.poison(cause))?;
        // The reserve may have gone into the lost-entries file.
        shared.keeper.request_prefill();
        drop(marker);
        drop(writer);
        drop(alone);
        // Whoever has been telling the hooks of more than is kept has done so after this.
        drop(shared.publishing.write());
        // What was not synced before, and is kept.
        shared.publish();
        Ok(Truncated { last: vlsn, entries: end.since(vlsn) })
    }
}

impl Shared {
    /// Step 1. Entries behind a damaged one are moved with their segments, not listed: nobody can
    /// verify them.
    fn stage_lost(&self, intent: &TruncateIntent, name: &str, note: LostNote) -> Result<()> {
        let (last, group, segments) = {
            let state = self.state.lock();
            let faulty = state.faulty.iter().find(|faulty| faulty.first > intent.kept.vlsn);
            let last = faulty.map_or(state.written.vlsn, |faulty| faulty.first.prev());
            let segments: Vec<_> =
                state.segments.iter().map(|s| (s.number(), s.header().first, s.end())).collect();
            (last, state.group.as_ref().map(|group| group.id).unwrap_or_default(), segments)
        };
        let (end, end_lsn) = match self.find_lost(last, intent)? {
            Some(found) => found,
            None => (intent.kept, intent.cut),
        };
        let cut = intent.cut;
        let moved = segments
            .iter()
            .filter(|(number, first, _)| {
                *first <= last
                    && (*number > cut.segment() || (*number == cut.segment() && cut.offset() == 0))
            })
            .map(|(number, ..)| *number)
            .collect();
        let mut entries = Vec::new();
        if cut.offset() > 0 {
            let until = if end_lsn.segment() == cut.segment() {
                end_lsn.offset()
            } else {
                let holder = segments.iter().find(|(number, ..)| *number == cut.segment());
                holder.map_or(cut.offset(), |(_, _, end)| *end)
            };
            entries = self.read_bytes(cut, until)?;
        }
        let header = LostHeader {
            group,
            kept: intent.kept,
            kept_lsn: intent.kept_lsn,
            end,
            note,
            moved,
            entry_bytes: entries.len() as u64,
        };
        let path = staged_path(&self.dir, name);
        let wrap = |action| {
            let path = &path;
            move |e| LogError::io(action, path, e)
        };
        let head = header.encode();
        self.write_with_reserve(&path, || {
            let file = self.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap("create"))?;
            file.set_len(0).map_err(wrap("cut"))?;
            let parts = [IoSlice::new(&head), IoSlice::new(&entries)];
            file.write_at(&parts, 0).map_err(wrap("write"))?;
            file.sync_data().map_err(wrap("sync"))?;
            sync_parent(&*self.env, &path)
        })
    }

    /// The chain through entry `last` and where it ends; `None` if nothing of it is lost.
    fn find_lost(&self, last: Vlsn, intent: &TruncateIntent) -> Result<Option<(ChainState, Lsn)>> {
        if last <= intent.kept.vlsn {
            return Ok(None);
        }
        let Some(found) = self.find(last)? else { return Ok(None) };
        let (header, lsn) = (found.header, found.lsn);
        let end = Lsn::new(lsn.segment(), lsn.offset() + header.entry_bytes() as u32);
        Ok(Some((header.chain(), end)))
    }

    /// The bytes of a segment from `from` up to offset `until`.
    fn read_bytes(&self, from: Lsn, until: u32) -> Result<Vec<u8>> {
        let path = self.segment_path(from.segment());
        let wrap = |e| LogError::io("read", &path, e);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let mut bytes = vec![0; until.saturating_sub(from.offset()) as usize];
        let read = file.read_at(&mut bytes, from.offset().into()).map_err(wrap)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Makes the positions, the index and the tail those of a log that ends with `vlsn`. Called with
    /// the maintenance and writer locks held.
    fn forget_after(&self, vlsn: Vlsn) -> Result<()> {
        let (anchor, cut, (last_sync, last_txn_end), faulty) = {
            let state = self.state.lock();
            let kept = state.segments.partition_point(|segment| segment.header().first <= vlsn);
            let cut = kept.checked_sub(1).map(|at| *state.segments[at].header());
            let mut faulty = state.faulty.clone();
            faulty.retain(|faulty| faulty.last <= vlsn);
            let before = cut.map_or_else(Default::default, |cut| state.syncs_before(cut.number));
            (state.anchor.clone(), cut, before, faulty)
        };
        let rebuilt = match cut {
            Some(header) => Some(self.reindex(header, last_sync, last_txn_end, &faulty, vlsn)?),
            None => None,
        };
        if let Some(builder) = &rebuilt
            && builder.last().vlsn != vlsn
        {
            // It went bad since it was written, and nobody has read it meanwhile.
            return Err(LogError::Corrupt {
                segment: builder.header().number,
                offset: builder.end().into(),
                expected: format!("entry {}, which was kept", builder.last().vlsn.next()),
                found: "no such entry".into(),
            });
        }
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
            state.end = anchor.chain();
            state.last_lsn = anchor.lsn;
            state.last_sync = anchor.vlsn;
            state.last_txn_end = anchor.vlsn;
        }
        assert_eq!(state.end.vlsn, vlsn, "the cut log ends where it was cut");
        state.faulty = faulty;
        state.tail.truncate(&state.end, &old_end);
        state.written = state.end_mark();
        state.synced = state.written;
        state.urgent = state.urgent.min(vlsn);
        state.marked = vlsn;
        state.durable = vlsn;
        state.terms.retain(|(_, first)| *first <= vlsn);
        state.truncating = false;
        state.cuts.note(vlsn);
        state.readers.wake_all();
        self.truncated.notify_all();
        self.waiters.wake_all();
        self.unwritten_bytes.store(0, std::sync::atomic::Ordering::Relaxed);
        state.check_invariants();
        Ok(())
    }
}

fn staged_path(dir: &Path, name: &str) -> PathBuf {
    lost_path(dir, name).with_added_extension(STAGED_SUFFIX)
}

/// Removes copies of lost entries whose truncation never came to be decided on.
pub(crate) fn remove_staged(env: &dyn Env, dir: &Path) -> Result<()> {
    let lost = lost_dir(dir);
    for name in env.list(&lost).map_err(|e| LogError::io("list", &lost, e))? {
        let path = lost.join(name);
        if path.extension() == Some(STAGED_SUFFIX.as_ref()) {
            env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Steps 3 to 9; also finishes a truncation that a crash had cut short.
pub(crate) fn finish(
    env: &dyn Env,
    dir: &Path,
    control: &ControlFile,
    mark: &TailMark,
    intent: &TruncateIntent,
) -> Result<()> {
    let log_dir = log_dir(dir);
    if mutant::is_on(Mutant::IntentClearedBeforeCut) {
        control.update(|control| control.truncate_intent = None)?;
    }
    let exists = |path: &Path| env.exists(path).map_err(|e| LogError::io("look for", path, e));
    let remove_if_there = |path: &Path| match env.remove(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LogError::io("remove", path, e)),
        _ => Ok(()),
    };
    if let Some(name) = &intent.lost {
        let staged = staged_path(dir, name);
        if exists(&staged)? && !mutant::is_on(Mutant::LostNotSaved) {
            env.rename(&staged, &lost_path(dir, name))
                .map_err(|e| LogError::io("rename", &staged, e))?;
        }
    }
    let names = env.list(&log_dir).map_err(|e| LogError::io("list", &log_dir, e))?;
    let (holder, offset) = (intent.cut.segment(), intent.cut.offset());
    if offset > 0 && !names.contains(&segment_name(holder)) {
        return Err(LogError::Corrupt {
            segment: holder,
            offset: offset.into(),
            expected: format!("{}, in which the log is to be cut", segment_name(holder)),
            found: "no such file".into(),
        });
    }
    let first_beyond = holder.saturating_add(u32::from(offset > 0));
    let beyond = names.iter().filter_map(|name| parse_segment_name(name));
    let mut beyond: Vec<u32> = beyond.filter(|number| *number >= first_beyond).collect();
    beyond.sort_unstable();
    for number in beyond.into_iter().rev() {
        let path = log_dir.join(segment_name(number));
        match &intent.lost {
            Some(name) => {
                let to = moved_segment_path(dir, name, number);
                env.rename(&path, &to).map_err(|e| LogError::io("move", &path, e))?;
            }
            None => env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?,
        }
        remove_if_there(&log_dir.join(side_name(number)))?;
    }
    if intent.cut.offset() > 0 {
        let number = intent.cut.segment();
        remove_if_there(&log_dir.join(side_name(number)))?;
        let path = log_dir.join(segment_name(number));
        let file =
            env.open(&path, OpenMode::ReadWrite).map_err(|e| LogError::io("open", &path, e))?;
        file.set_len(intent.cut.offset().into()).map_err(|e| LogError::io("cut", &path, e))?;
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
            term: intent.kept.term,
            vlsn: intent.kept.vlsn,
            lsn: intent.kept_lsn,
            fingerprint: intent.kept.fingerprint,
        })?;
        mark.sync()?;
    }
    control.update(|control| control.truncate_intent = None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_truncations_since_a_moment_the_deepest_one_counts() {
        let mut cuts = Cuts::default();
        for kept in [7, 3, 5, 5, 9] {
            cuts.note(Vlsn::new(kept));
        }
        let cut_off = |vlsn, since| cuts.cut_off(Vlsn::new(vlsn), since).map(Vlsn::sequence);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|since| cut_off(10, since)), {
            [Some(3), Some(3), Some(5), Some(5), Some(9), None]
        });
        assert_eq!([0, 2, 4].map(|since| cut_off(4, since)), [Some(3), None, None]);
        assert_eq!(cut_off(3, 0), None);
        assert_eq!(cuts.kept.len(), 3);
    }
}
