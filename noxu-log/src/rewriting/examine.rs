//! Examine: a segment that somebody could not read while the log is open, surveyed as the next open
//! would survey it.
//!
//! What is written is read only when it is needed. Rot in it is met then, and the entries that it took
//! are to be had back from other nodes, as those that an open finds: so they are made known as faulty.
//! A sealed segment, which is not what its side file says any more, is unsealed with all that follow it,
//! whose side files tell what they hold. One to which entries still come is read while its writer waits.
//!
//! # Crash argument
//! Nothing is changed on disk but the header of the segment, written again as it was, and side files,
//! which say nothing that the segments do not. They go newest first, so that sealed segments stay the
//! beginning of the log; whatever is left of them, the next open scans what has none.

use std::io::IoSlice;

use noxu_util::Lsn;

use crate::entry::ChainState;
use crate::env::OpenMode;
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared};
use crate::recovery::survey::{Head, Known, Next, Surveyed, survey};
use crate::rewriting::repair::Faulty;
use crate::segment::header::SegmentHeader;
use crate::segment::name::{log_dir, side_name};
use crate::segment::scan::SummaryBuilder;
use crate::segment::side_file::SideFile;
use crate::writing::tail_mark::Mark;

impl Log {
    /// Reads segment `number` anew, which somebody could not read. Entries that are damaged in it
    /// count as [`Log::faulty`] from then on, if they do not yet, and a damaged header is made again.
    /// False if nothing is wrong with it, or there is no such segment. Appends to it wait meanwhile for
    /// their sync.
    ///
    /// # Errors
    /// `Corrupt` and `ChainMismatch` if what stands there is another log's; `Io`, `ReadOnly`;
    /// `Poisoned`, `Closed`.
    pub fn examine(&self, number: u32) -> Result<bool> {
        let examined = self.shared.examine(number);
        // What was synced for it is durable, whatever came of it.
        self.shared.publish();
        examined
    }
}

impl Shared {
    fn examine(&self, number: u32) -> Result<bool> {
        // From here on only the last segment changes.
        let _alone = self.maintenance.lock();
        self.check_running()?;
        let (extent, others) = {
            let state = self.state.lock();
            let at = state.position_of(number);
            let extent = |segment: &Segment| (*segment.header(), *segment.last());
            let asked = state.segments.get(at).filter(|segment| segment.number() == number);
            let Some(segment) = asked else { return Ok(false) };
            if !segment.is_sealed() {
                drop(state);
                return self.examine_open(number);
            }
            let behind = state.segments.iter().skip(at + 1);
            let others = behind.take_while(|segment| segment.is_sealed());
            (extent(segment), others.map(extent).collect::<Vec<_>>())
        };
        let (header, last) = &extent;
        let (mut found, header_was_damaged) = self.survey_again(header, last)?;
        let Some(at_the_end) = found.faulty.last_mut() else { return Ok(header_was_damaged) };
        if at_the_end.last_offset.is_none()
            && let Some(side) = SideFile::read(&*self.env, &self.dir, number)?
        {
            let (end, last_offset) = (found.builder.end(), side.summary.last_offset);
            at_the_end.last_offset = Some(last_offset);
            found.builder.skip_to(at_the_end.after, last_offset, end);
        }
        let mut reopened = vec![(found.builder, found.faulty)];
        for (header, last) in &others {
            reopened.push(self.reopened(header, last)?);
        }
        let numbers = reopened.iter().rev().map(|(builder, _)| builder.header().number);
        self.remove_side_files(numbers)?;
        self.unseal(reopened);
        Ok(true)
    }

    /// The same for a segment that is not sealed, to which entries may still come.
    fn examine_open(&self, number: u32) -> Result<bool> {
        let mut writer = self.writer.lock();
        let (header, last, last_offset, end, faulty) = {
            let state = self.state.lock();
            let Some(Segment::Open(builder)) = state.segments.get(state.position_of(number)) else {
                return Ok(false);
            };
            let faulty = state.faulty.clone();
            (*builder.header(), *builder.last(), builder.last_offset(), builder.end(), faulty)
        };
        // Behind the look at where it ends: all of that is in the file then.
        drop(self.drain(&mut writer)?);
        let (head, header_was_damaged) = self.head_made_whole(&header)?;
        let mark = Mark {
            term: last.term,
            vlsn: last.vlsn,
            lsn: Lsn::new(number, last_offset),
            fingerprint: last.fingerprint,
        };
        let known = Known { mark: Some(mark), mark_readable: true, synced: last.vlsn };
        let mut found = survey(&head, &header, Next::Nothing, &known)?.faulty;
        let (known, mut listed): (Vec<_>, Vec<_>) =
            faulty.into_iter().partition(|faulty| faulty.segment == number);
        // Unlike an open, this knows where the last entry ended, unless the open did not.
        let end_is_known = known.last().is_none_or(|faulty| faulty.behind.is_some());
        if let Some(at_the_end) = found.last_mut()
            && at_the_end.behind.is_none()
            && end_is_known
        {
            at_the_end.behind = Some(end);
            at_the_end.last_offset = Some(last_offset);
        }
        if found == known {
            return Ok(header_was_damaged || !known.is_empty());
        }
        listed.extend(found);
        listed.sort_by_key(|faulty| faulty.first);
        self.relist(&mut writer, number, listed)?;
        Ok(true)
    }

    /// What a sealed segment that ends with `last` holds: as its side file says, or as the segment
    /// itself does.
    fn reopened(
        &self,
        header: &SegmentHeader,
        last: &ChainState,
    ) -> Result<(SummaryBuilder, Vec<Faulty>)> {
        match SideFile::read(&*self.env, &self.dir, header.number) {
            Ok(Some(side)) if side.summary.header == *header && side.summary.last == *last => {
                Ok((SummaryBuilder::from_summary(side.summary), Vec::new()))
            }
            Ok(_) => {
                let (found, _) = self.survey_again(header, last)?;
                Ok((found.builder, found.faulty))
            }
            Err(cause) => Err(cause),
        }
    }

    /// What a segment that ends with `last` holds, and whether its header had to be made again.
    fn survey_again(&self, header: &SegmentHeader, last: &ChainState) -> Result<(Surveyed, bool)> {
        let (head, header_was_damaged) = self.head_made_whole(header)?;
        let known = Known { mark: None, mark_readable: true, synced: last.vlsn };
        Ok((survey(&head, header, Next::Continues(*last), &known)?, header_was_damaged))
    }

    /// The head of a segment, and whether its header had to be written again.
    fn head_made_whole(&self, header: &SegmentHeader) -> Result<(Head, bool)> {
        let head = Head::read(&*self.env, &self.dir, header.number)?;
        if head.header.as_ref() == Ok(header) {
            return Ok((head, false));
        }
        let path = self.segment_path(header.number);
        let file = self.env.open(&path, OpenMode::ReadWrite);
        let file = file.map_err(|e| LogError::io("open", &path, e))?;
        let write = || {
            file.write_at(&[IoSlice::new(&header.encode())], 0)?;
            file.sync_data()
        };
        write().map_err(|e| self.poison(LogError::io("write the header of", &path, e)))?;
        Ok((head, true))
    }

    fn remove_side_files(&self, numbers: impl Iterator<Item = u32>) -> Result<()> {
        let dir = log_dir(&self.dir);
        for number in numbers {
            let path = dir.join(side_name(number));
            if self.env.exists(&path).map_err(|e| LogError::io("look for", &path, e))? {
                self.env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
                self.env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
            }
        }
        Ok(())
    }

    /// These segments, of which that is damaged, are unsealed from now on.
    fn unseal(&self, reopened: Vec<(SummaryBuilder, Vec<Faulty>)>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(first) = reopened.first().map(|(builder, _)| builder.header().number) else {
            return;
        };
        let (last_sync, last_txn_end) = state.syncs_before(first);
        let mut faulty: Vec<Faulty> = std::mem::take(&mut state.faulty);
        for (builder, damaged) in reopened {
            let number = builder.header().number;
            let at = state.position_of(number);
            faulty.retain(|known| known.segment != number);
            faulty.extend(damaged);
            state.segments[at] = Segment::Open(builder);
        }
        faulty.sort_by_key(|faulty| faulty.first);
        state.faulty = faulty;
        state.unsealable = None;
        state.follow_from(state.position_of(first), last_sync, last_txn_end);
        state.truncations += 1;
        state.check_invariants();
    }
}
