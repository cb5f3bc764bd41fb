//! Walk: reads the segments of a log one after the other, tells damage from change, and goes on
//! behind damage. The argument why nothing is called damage wrongly is in inspect.rs.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use noxu_util::{Fingerprint, Lsn, Term, Vlsn};

use super::{Ending, Fault, Head, Inspection, SegmentReport, SideState, View, Walk};
use crate::entry::{ChainState, ENTRY_HEADER_BYTES, Entry, EntryHeader};
use crate::env::EnvFile;
use crate::error::{LogError, Result};
use crate::reading::index::{Sample, Sampler};
use crate::recovery::resync;
use crate::segment::digest::DigestingFile;
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::segment_name;
use crate::segment::scan::{ScanEnd, scan_entries};
use crate::segment::side_file::{SideFile, SideRead};
use crate::writing::tail_mark::{Mark, MarkRead};

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// To visit entries.
    Walk,
    /// To verify entries, side files and digests.
    Verify,
    /// To say what is there: side files are believed.
    Report,
}

type Visit<'a> = dyn FnMut(Lsn, &Entry<'_>) -> ControlFlow<()> + 'a;

/// How long bytes beyond the mark must stand still to be called torn.
const STILL: Duration = Duration::from_millis(500);
/// Between two looks at something that may be changing. The one who changes it is another process,
/// so there is no event to wait for.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a log that changes all the time is looked at for a window.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a walk begins again because the log was cut.
const MOST_RESTARTS: u32 = 200;

/// One way through a log.
pub(super) struct Walker<'a> {
    log: &'a Inspection,
    mode: Mode,
    from: Vlsn,
    visit: &'a mut Visit<'a>,
    progress: &'a mut dyn FnMut(u64, u64),
    view: View,
    walk: Walk,
    /// What the next segment must continue; `None` if that is not known.
    expected: Option<ChainState>,
    /// Whether that is only what the segment itself said when it was looked at first.
    by_itself: bool,
    /// Where the walk stood before each of `walk.segments`.
    begun: Vec<(u64, u64)>,
    bytes_done: u64,
    bytes: u64,
}

/// What one look at a segment showed.
enum Look {
    /// It is as it should be.
    Whole(Box<SegmentReport>),
    /// The last segment has no header yet.
    Unwritten,
    /// The visitor had seen enough.
    Stopped,
    /// It is not the log that was walked so far.
    Rewritten,
    /// There is something that should not be there.
    Suspect(Suspicion),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Suspicion {
    fault: Fault,
    /// There is no such file.
    gone: bool,
    /// It lies at the end of the log, where the mark does not vouch for it.
    at_the_end: bool,
}

enum Step {
    Next,
    /// Segments up to this one were dropped.
    Skip(u32),
    Restart,
    End,
}

/// What a scan is to do with what it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// Visit entries and stop at the first fault.
    Visit,
    /// Visit nothing, find all faults.
    Faults,
    /// Visit entries, also behind faults.
    VisitAll,
}

impl<'a> Walker<'a> {
    pub(super) fn new(
        log: &'a Inspection,
        mode: Mode,
        from: Vlsn,
        visit: &'a mut Visit<'a>,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let walk = Walk {
            segments: Vec::new(),
            entries: 0,
            entry_bytes: 0,
            begin: Default::default(),
            end_lsn: Lsn::default(),
            end: ChainState::default(),
            faults: Vec::new(),
            ending: Ending::Clean,
            digests: 0,
            restarts: 0,
        };
        let view = log.view()?;
        let mut bytes = 0;
        for number in view.segments.iter().filter(|_| mode == Mode::Verify) {
            let file = log.open_segment(*number)?;
            bytes += file.map_or(Ok(0), |file| file.len()).unwrap_or(0);
        }
        Ok(Self {
            log,
            mode,
            from,
            visit,
            progress,
            view,
            walk,
            expected: None,
            by_itself: false,
            begun: Vec::new(),
            bytes_done: 0,
            bytes,
        })
    }

    /// Reads the whole log, or from the segment on that holds `from`.
    pub(super) fn run(mut self) -> Result<Walk> {
        let mut number = self.begin()?;
        while self.view.segments.last().is_some_and(|last| number <= *last) {
            match self.segment(number)? {
                Step::Next => number = number.saturating_add(1),
                Step::Skip(next) => number = next.max(number.saturating_add(1)),
                Step::End => return Ok(self.walk),
                Step::Restart => {
                    self.walk.restarts += 1;
                    if self.walk.restarts > MOST_RESTARTS {
                        self.walk.ending = Ending::Unsettled(Fault {
                            lsn: Lsn::new(number, 0),
                            expected: "a log that stands still".into(),
                            found: "one that is cut again and again".into(),
                            missing: None,
                        });
                        return Ok(self.walk);
                    }
                    self.view = self.log.view()?;
                    number = self.rewind()?;
                }
            }
        }
        // A log without a segment beyond its anchor, though the mark speaks of one.
        if self.walk.segments.is_empty()
            && let Some(mark) = self.mark()
            && mark.vlsn > self.walk.end.vlsn
        {
            let fault = lost_end(&mark, self.walk.end_lsn, self.walk.end.vlsn);
            self.walk.faults.push(fault);
        }
        Ok(self.walk)
    }

    /// The first segment to read; sets what it must continue.
    fn begin(&mut self) -> Result<u32> {
        let mut number = self.view.segments.first().copied().unwrap_or(1);
        self.expected = None;
        if let Some(Ok(control)) = self.view.control.as_ref().filter(|_| !self.log.is_copy) {
            let anchor = &control.anchor;
            let before = ChainState {
                vlsn: anchor.vlsn,
                term: anchor.term,
                fingerprint: anchor.fingerprint,
            };
            number = anchor.next_segment();
            (self.walk.end, self.expected) = (before, Some(before));
            self.walk.end_lsn = Lsn::new(number, 0);
        }
        // Skip the segments before the one that holds `from`.
        while let Some(next) = self.valid_header(number.saturating_add(1))? {
            if next.first > self.from || !self.view.segments.contains(&number) {
                break;
            }
            (number, self.expected) = (number.saturating_add(1), None);
        }
        Ok(number)
    }

    /// Goes back to the newest segment that still begins as it did.
    fn rewind(&mut self) -> Result<u32> {
        while let (Some(report), Some(totals)) = (self.walk.segments.pop(), self.begun.pop()) {
            (self.walk.entries, self.walk.entry_bytes) = totals;
            let number = report.header.number;
            self.walk.faults.retain(|fault| fault.lsn.segment() < number);
            if self.valid_header(number)?.is_some_and(|header| header == report.header) {
                let before = report.header.chain_before();
                (self.walk.end, self.expected) = (before, Some(before));
                self.walk.end_lsn = Lsn::new(number, SEGMENT_HEADER_BYTES);
                return Ok(number);
            }
        }
        self.walk.faults.clear();
        self.begin()
    }

    fn valid_header(&self, number: u32) -> Result<Option<SegmentHeader>> {
        let Some(file) = self.log.open_segment(number)? else { return Ok(None) };
        Ok(match self.log.head(number, &*file)? {
            Head::Valid(header) => Some(header),
            Head::Unwritten | Head::Bad(_) => None,
        })
    }

    fn mark(&self) -> Option<Mark> {
        match &self.view.mark {
            MarkRead::Valid(mark) => Some(*mark),
            MarkRead::Absent | MarkRead::Unreadable { .. } => None,
        }
    }

    fn is_last(&self, number: u32) -> bool {
        self.view.segments.last().is_none_or(|last| number >= *last)
    }

    /// Reads one segment, again and again until it is whole or what is wrong stood still.
    fn segment(&mut self, number: u32) -> Result<Step> {
        let begun = Instant::now();
        let totals = (self.walk.entries, self.walk.entry_bytes);
        let mut first_seen: Option<(Suspicion, Instant)> = None;
        for attempt in 0.. {
            let is_last = self.is_last(number);
            let suspicion = match self.look(number, is_last, Scan::Visit)? {
                Look::Whole(report) => return Ok(self.passed(*report, totals, is_last)),
                Look::Unwritten => return Ok(Step::End),
                Look::Stopped => {
                    self.walk.ending = Ending::Stopped;
                    return Ok(Step::End);
                }
                Look::Rewritten => {
                    (self.walk.entries, self.walk.entry_bytes) = totals;
                    return Ok(Step::Restart);
                }
                Look::Suspect(suspicion) => suspicion,
            };
            let before = std::mem::replace(&mut self.view, self.log.view()?);
            if let Some(Ok(control)) = &self.view.control
                && number < control.anchor.next_segment()
            {
                self.expected = None;
                return Ok(Step::Skip(control.anchor.next_segment()));
            }
            let now = Instant::now();
            let since = match &first_seen {
                Some((seen, since)) if *seen == suspicion => *since,
                _ => now,
            };
            first_seen = Some((suspicion.clone(), since));
            let unchanged = before.control_bytes == self.view.control_bytes
                && before.segments.last() == self.view.segments.last();
            let is_window = match &self.view.control {
                _ if self.log.stands_still => !self.view.is_unsettled(),
                Some(_) => attempt > 0 && unchanged && !self.view.is_unsettled(),
                // Nothing tells of a change but the segments themselves.
                None => unchanged && now.duration_since(since) >= STILL.min(PAUSE * 10),
            };
            if is_window {
                let stood_still = self.log.stands_still || now.duration_since(since) >= STILL;
                if suspicion.at_the_end {
                    if stood_still {
                        self.walk.ending = Ending::Torn(suspicion.fault);
                        return self.torn(number, totals);
                    }
                } else if is_last && self.mark().is_none() && !stood_still {
                    // Without a mark nothing says which bytes are older than the window.
                } else if let Some(step) =
                    self.damaged(number, is_last, suspicion.clone(), totals)?
                {
                    return Ok(step);
                }
            }
            if self.view.segments.last().is_none_or(|last| number > *last) {
                (self.walk.entries, self.walk.entry_bytes) = totals;
                return Ok(Step::Restart);
            }
            // A truncation or a restore that a crash cut short stands still as it is.
            let left_half_done = unchanged && self.view.is_unsettled();
            let patience = if left_half_done { STILL } else { PATIENCE };
            if now.duration_since(begun) > patience {
                self.walk.ending = Ending::Unsettled(suspicion.fault);
                return self.torn(number, totals);
            }
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
        }
        unreachable!("the loop above has no end of its own")
    }

    /// A segment was read to its end.
    fn passed(&mut self, report: SegmentReport, totals: (u64, u64), is_last: bool) -> Step {
        self.walk.end = report.last;
        self.walk.end_lsn = Lsn::new(report.header.number, report.end);
        (self.expected, self.by_itself) = (Some(report.last), false);
        self.bytes_done += report.file_bytes;
        (self.progress)(self.bytes_done, self.bytes.max(self.bytes_done));
        self.walk.segments.push(report);
        self.begun.push(totals);
        if is_last { Step::End } else { Step::Next }
    }

    /// The valid part of the last segment is all there is.
    fn torn(&mut self, number: u32, totals: (u64, u64)) -> Result<Step> {
        if let Some(file) = self.log.open_segment(number)?
            && let Head::Valid(header) = self.log.head(number, &*file)?
        {
            let file_bytes = file.len().map_err(|e| self.io(number, e))?;
            let (scanned, _) = self.scan(&*file, &header, Scan::Visit, None)?;
            let report = scanned.report(&header, file_bytes, SideState::Missing);
            self.walk.segments.push(report);
            self.begun.push(totals);
        }
        Ok(Step::End)
    }

    /// What is wrong with a segment is damage: lists all of it and goes on behind it. `None` if
    /// the log changed meanwhile.
    fn damaged(
        &mut self,
        number: u32,
        is_last: bool,
        suspicion: Suspicion,
        totals: (u64, u64),
    ) -> Result<Option<Step>> {
        let end = Some(if is_last { Step::End } else { Step::Next });
        let next = self.valid_header(number.saturating_add(1))?.filter(|_| !is_last);
        let Some(file) = self.log.open_segment(number)?.filter(|_| !suspicion.gone) else {
            let mut fault = suspicion.fault;
            fault.missing = self
                .expected
                .zip(next.as_ref())
                .map(|(after, next)| (after.vlsn.next(), next.first.prev()))
                .filter(|(first, last)| first <= last);
            self.walk.faults.push(fault);
            self.expected = None;
            return Ok(end);
        };
        let mut faults = Vec::new();
        let header = match (self.log.head(number, &*file)?, self.expected) {
            (Head::Valid(header), expected) => {
                if expected.is_some_and(|expected| expected != header.chain_before()) {
                    faults.push(suspicion.fault);
                }
                header
            }
            // Everything in a header follows from what lies before.
            (_, Some(before)) if let Some(model) = self.model(next.as_ref()) => {
                faults.push(suspicion.fault);
                SegmentHeader {
                    number,
                    first: before.vlsn.next(),
                    previous_fingerprint: before.fingerprint,
                    previous_term: before.term,
                    ..model
                }
            }
            _ => {
                let mut fault = suspicion.fault;
                fault.missing = next.map(|next| (self.walk.end.vlsn.next(), next.first.prev()));
                self.walk.faults.push(fault);
                self.expected = None;
                return Ok(end);
            }
        };
        let seen = self.walk.end;
        if self.expected != Some(header.chain_before()) && seen.vlsn < header.first {
            self.walk.end = header.chain_before();
        }
        let (scanned, more) = self.scan(&*file, &header, Scan::Faults, next.as_ref())?;
        faults.extend(more);
        let control_bytes = self.log.control_bytes()?;
        if control_bytes != self.view.control_bytes {
            self.walk.end = seen;
            return Ok(None);
        }
        let (visited, _) = self.scan(&*file, &header, Scan::VisitAll, next.as_ref())?;
        if visited.rewritten {
            (self.walk.entries, self.walk.entry_bytes) = totals;
            return Ok(Some(Step::Restart));
        }
        self.walk.faults.extend(faults);
        if visited.stopped {
            self.walk.ending = Ending::Stopped;
            return Ok(Some(Step::End));
        }
        let file_bytes = file.len().map_err(|e| self.io(number, e))?;
        let side = self.side_state(number, &header, None)?.0;
        self.passed(scanned.report(&header, file_bytes, side), totals, is_last);
        if let Some(next) = next {
            (self.expected, self.by_itself) = (Some(next.chain_before()), false);
        }
        Ok(end)
    }

    /// The header of any segment, for what is the same in all of them.
    fn model(&self, next: Option<&SegmentHeader>) -> Option<SegmentHeader> {
        next.copied().or_else(|| self.walk.segments.last().map(|report| report.header))
    }

    /// Reads a segment once.
    fn look(&mut self, number: u32, is_last: bool, scan: Scan) -> Result<Look> {
        let suspect = |fault| Suspicion { fault, gone: false, at_the_end: false };
        let Some(file) = self.log.open_segment(number)? else {
            return Ok(Look::Suspect(Suspicion {
                fault: Fault {
                    lsn: Lsn::new(number, 0),
                    expected: segment_name(number),
                    found: "no such file".into(),
                    missing: None,
                },
                gone: true,
                at_the_end: false,
            }));
        };
        let header = match self.log.head(number, &*file)? {
            Head::Valid(header) => header,
            Head::Unwritten if is_last && !self.mark_is_beyond(self.walk.end.vlsn) => {
                return Ok(Look::Unwritten);
            }
            other => {
                let found = match other {
                    Head::Bad(found) => found,
                    _ => "zeros".into(),
                };
                return Ok(Look::Suspect(suspect(Fault {
                    lsn: Lsn::new(number, 0),
                    expected: "a segment header".into(),
                    found,
                    missing: None,
                })));
            }
        };
        let before = header.chain_before();
        match self.expected {
            Some(expected) if expected == before => {}
            Some(_) if self.by_itself || !self.walk.segments.is_empty() => {
                return Ok(Look::Rewritten);
            }
            Some(expected) => {
                return Ok(Look::Suspect(suspect(Fault {
                    lsn: Lsn::new(number, 0),
                    expected: format!("a segment that continues {}", place(&expected)),
                    found: format!("one that continues {}", place(&before)),
                    missing: (expected.vlsn < before.vlsn)
                        .then(|| (expected.vlsn.next(), before.vlsn)),
                })));
            }
            None => {
                (self.walk.end, self.expected, self.by_itself) = (before, Some(before), true);
                self.walk.end_lsn = Lsn::new(number, SEGMENT_HEADER_BYTES);
            }
        }
        let file_bytes = file.len().map_err(|e| self.io(number, e))?;
        let (side_state, side) = self.side_state(number, &header, Some(file_bytes))?;
        let next = if is_last { None } else { self.valid_header(number.saturating_add(1))? };
        if self.mode == Mode::Report
            && !is_last
            && let Some(side) = &side
            && u64::from(side.summary.end) == file_bytes
            && next.is_none_or(|next| next.chain_before() == side.summary.last)
        {
            return Ok(Look::Whole(Box::new(report_of(side, file_bytes))));
        }
        let digesting = side
            .as_ref()
            .filter(|_| self.mode == Mode::Verify && !is_last)
            .map(|side| (DigestingFile::new(&*file, side.summary.end), side));
        let scanned = match &digesting {
            Some((digesting, _)) => self.scan(digesting, &header, scan, next.as_ref())?.0,
            None => self.scan(&*file, &header, scan, next.as_ref())?.0,
        };
        if scanned.rewritten {
            return Ok(Look::Rewritten);
        }
        if scanned.stopped {
            return Ok(Look::Stopped);
        }
        if let Some(fault) = scanned.fault.clone() {
            let vouched = self.mark_is_beyond(scanned.last.vlsn);
            let goes_on = self.mark().is_none() && scanned.goes_on;
            let at_the_end = is_last && !vouched && !goes_on;
            return Ok(Look::Suspect(Suspicion { fault, gone: false, at_the_end }));
        }
        let mut report = scanned.report(&header, file_bytes, side_state);
        if let Some(side) = &side {
            report.digest = Some(side.digests.segment).filter(|_| !is_last);
        }
        if let Some((digesting, side)) = digesting {
            let digests = digesting.finish().map_err(|e| self.io(number, e))?;
            self.walk.digests += 1;
            if digests != side.digests || side.summary.last != report.last {
                let (wanted, found) = (side.digests.segment, digests.segment);
                report.side = SideState::Bad(format!("digest {wanted}, the segment has {found}"));
            }
        }
        if let SideState::Bad(reason) = &report.side
            && self.mode == Mode::Verify
        {
            self.walk.faults.push(Fault {
                lsn: Lsn::new(number, 0),
                expected: "the segment's side file".into(),
                found: reason.clone(),
                missing: None,
            });
        }
        Ok(Look::Whole(Box::new(report)))
    }

    fn mark_is_beyond(&self, vlsn: Vlsn) -> bool {
        self.mark().is_some_and(|mark| mark.vlsn > vlsn)
    }

    /// The side file beside a segment, if it is the segment's own.
    fn side_state(
        &self,
        number: u32,
        header: &SegmentHeader,
        file_bytes: Option<u64>,
    ) -> Result<(SideState, Option<SideFile>)> {
        Ok(match SideFile::look(&*self.log.env, &self.log.segments_dir, number)? {
            SideRead::Missing => (SideState::Missing, None),
            SideRead::Damaged(reason) => (SideState::Bad(reason), None),
            SideRead::Valid(side) if side.summary.header != *header => {
                (SideState::Bad("that of another segment".into()), None)
            }
            SideRead::Valid(side) if file_bytes.is_some_and(|b| b < side.summary.end.into()) => {
                (SideState::Bad("that of a longer segment".into()), None)
            }
            SideRead::Valid(side) => (SideState::Valid, Some(*side)),
        })
    }

    /// Reads the entries of a segment. `next` is the header of the segment that follows, if one
    /// does and it has a valid one.
    fn scan(
        &mut self,
        file: &dyn EnvFile,
        header: &SegmentHeader,
        scan: Scan,
        next: Option<&SegmentHeader>,
    ) -> Result<(Scanned, Vec<Fault>)> {
        let number = header.number;
        let mark = self.mark();
        let is_last = self.is_last(number);
        let mut faults: Vec<Fault> = Vec::new();
        let mut scanned = Scanned::new(header);
        let (mut offset, mut chain) = (SEGMENT_HEADER_BYTES, header.chain_before());
        let seen = self.walk.end;
        let mut wrong_mark = None;
        loop {
            let len = file.len().map_err(|e| self.io(number, e))?;
            let mut told = offset;
            let end = scan_entries(file, offset, len, chain, |offset, entry| {
                if scanned.stopped || scanned.rewritten || wrong_mark.is_some() {
                    return;
                }
                let found = &entry.header;
                if let Some(mark) = &mark
                    && mark.vlsn == found.vlsn
                    && mark.fingerprint != found.fingerprint
                {
                    wrong_mark = Some((offset, found.fingerprint, mark.fingerprint));
                    return;
                }
                if scan != Scan::Faults {
                    if found.vlsn == seen.vlsn && found.fingerprint != seen.fingerprint {
                        scanned.rewritten = true;
                        return;
                    }
                    if found.vlsn > self.walk.end.vlsn {
                        self.walk.end = chain_of(found);
                        if found.vlsn >= self.from {
                            let lsn = Lsn::new(number, offset);
                            if self.walk.entries == 0 {
                                self.walk.begin = (lsn, found.vlsn);
                            }
                            self.walk.entries += 1;
                            self.walk.entry_bytes += found.entry_bytes() as u64;
                            scanned.stopped = (self.visit)(lsn, entry).is_break();
                        }
                    }
                }
                scanned.push(offset, found);
                if offset - told > 1 << 20 {
                    told = offset;
                    let done = self.bytes_done + u64::from(offset);
                    (self.progress)(done, self.bytes.max(done));
                }
            })
            .map_err(|e| self.io(number, e))?;
            if scanned.stopped || scanned.rewritten {
                break;
            }
            if let Some((offset, found, marked)) = wrong_mark {
                faults.push(Fault {
                    lsn: Lsn::new(number, offset),
                    expected: format!("fingerprint {marked}, which the tail mark names"),
                    found: format!("fingerprint {found}: another history"),
                    missing: None,
                });
                scanned.goes_on = true;
                break;
            }
            let Some(mut fault) = self.fault_at_end(file, number, &end, len, is_last, next)? else {
                break;
            };
            let resumed = self.resume(file, header, end.offset, len, &end.chain)?;
            let first = end.chain.vlsn.next();
            let last = match (&resumed, next, mark) {
                (Some((_, after)), ..) => after.vlsn,
                (None, Some(next), _) => next.first.prev(),
                (None, None, Some(mark)) => mark.vlsn.max(first),
                (None, None, None) => first,
            };
            fault.missing = (first <= last).then_some((first, last));
            scanned.goes_on |= resumed.is_some();
            faults.push(fault);
            if scan == Scan::Visit {
                break;
            }
            let Some((at, after)) = resumed else { break };
            (offset, chain) = (at, after);
            scanned.skip(at, after);
        }
        scanned.fault = faults.first().cloned();
        Ok((scanned, faults))
    }

    /// What is wrong where entries end; `None` if that is where they should end.
    fn fault_at_end(
        &self,
        file: &dyn EnvFile,
        number: u32,
        end: &ScanEnd,
        len: u64,
        is_last: bool,
        next: Option<&SegmentHeader>,
    ) -> Result<Option<Fault>> {
        let lsn = Lsn::new(number, end.offset);
        let entry = format!("entry {}", end.chain.vlsn.next());
        let fault = |expected, found| Some(Fault { lsn, expected, found, missing: None });
        let stray = has_data(file, end.offset, len).map_err(|e| self.io(number, e))?;
        if let Some(next) = next {
            if next.chain_before() == end.chain {
                let found = "other bytes behind its last entry".into();
                return Ok(fault("the end of the segment".into(), found).filter(|_| stray));
            }
            let found = match &end.fault {
                Some(found) if stray => found.to_string(),
                _ => "the end of the segment".into(),
            };
            if next.first <= end.chain.vlsn.next() {
                let expected = format!("the end after {}", place(&next.chain_before()));
                return Ok(fault(expected, format!("the end after {}", place(&end.chain))));
            }
            return Ok(fault(entry, found));
        }
        if let Some(found) = &end.fault
            && stray
        {
            return Ok(fault(entry, found.to_string()));
        }
        Ok(self
            .mark()
            .filter(|mark| is_last && mark.vlsn > end.chain.vlsn)
            .map(|mark| lost_end(&mark, lsn, end.chain.vlsn)))
    }
}

impl Walker<'_> {
    /// Where the chain goes on behind a bad place, and what it goes on from: behind the bad entry,
    /// if its header is whole, at a sample of the index, or where recovery would find it. `None` if
    /// nowhere.
    fn resume(
        &self,
        file: &dyn EnvFile,
        header: &SegmentHeader,
        bad: u32,
        len: u64,
        before: &ChainState,
    ) -> Result<Option<(u32, ChainState)>> {
        let io = |e| self.io(header.number, e);
        if let Some(entry) = header_at(file, bad.into()).map_err(io)?
            && entry.vlsn == before.vlsn.next()
            && entry.term >= before.term
        {
            let at = u64::from(bad) + entry.entry_bytes() as u64;
            // That the next one continues its fingerprint proves both.
            if goes_on_at(file, at, len, chain_of(&entry)).map_err(io)? {
                return Ok(Some((at as u32, chain_of(&entry))));
            }
        }
        let side = self.side_state(header.number, header, Some(len))?.1;
        let samples = side.iter().flat_map(|side| &side.summary.samples);
        for sample in samples.filter(|s| s.offset > bad && s.vlsn > before.vlsn.next()) {
            let (vlsn, fingerprint) = (sample.vlsn.prev(), sample.before);
            let after = ChainState { vlsn, term: before.term, fingerprint };
            if goes_on_at(file, sample.offset.into(), len, after).map_err(io)? {
                return Ok(Some((sample.offset, after)));
            }
        }
        let mut rest = vec![0; len.saturating_sub(bad.into()) as usize];
        let read = file.read_at(&mut rest, bad.into()).map_err(io)?;
        rest.truncate(read);
        let mark = self.mark();
        let ends: Vec<_> = mark
            .iter()
            .filter(|mark| mark.lsn.segment() == header.number)
            .map(Mark::chain)
            .collect();
        let resumed =
            resync::resume(&rest, before, mark.as_ref(), &ends, Vlsn::new(i64::MAX), None);
        Ok(resumed.map(|resumed| (bad + resumed.at as u32, resumed.after)))
    }

    fn io(&self, number: u32, error: io::Error) -> LogError {
        LogError::io("read", &self.log.segments_dir.join(segment_name(number)), error)
    }
}

/// What one scan of a segment found.
struct Scanned {
    last: ChainState,
    end: u32,
    entries: u64,
    terms: Vec<(Term, Vlsn)>,
    sampler: Sampler,
    /// The first fault.
    fault: Option<Fault>,
    /// Valid entries of the chain stand behind a fault.
    goes_on: bool,
    stopped: bool,
    rewritten: bool,
}

impl Scanned {
    fn new(header: &SegmentHeader) -> Self {
        Self {
            last: header.chain_before(),
            end: SEGMENT_HEADER_BYTES,
            entries: 0,
            terms: Vec::new(),
            sampler: Sampler::default(),
            fault: None,
            goes_on: false,
            stopped: false,
            rewritten: false,
        }
    }

    fn push(&mut self, offset: u32, entry: &EntryHeader) {
        self.sampler.push(Sample {
            vlsn: entry.vlsn,
            offset,
            before: Fingerprint::ZERO,
            sync_before: entry.vlsn.prev(),
        });
        if entry.term != self.last.term {
            self.terms.push((entry.term, entry.vlsn));
        }
        self.entries += 1;
        self.last = chain_of(entry);
        self.end = offset + entry.entry_bytes() as u32;
    }

    /// Passes over what cannot be read.
    fn skip(&mut self, to: u32, after: ChainState) {
        self.last = ChainState { term: self.last.term.max(after.term), ..after };
        self.end = to;
    }

    fn report(self, header: &SegmentHeader, file_bytes: u64, side: SideState) -> SegmentReport {
        SegmentReport {
            header: *header,
            last: self.last,
            end: self.end,
            file_bytes,
            entries: self.entries,
            terms: self.terms,
            index_bytes: size_of_val(self.sampler.samples()),
            side,
            digest: None,
        }
    }
}

fn report_of(side: &SideFile, file_bytes: u64) -> SegmentReport {
    let summary = &side.summary;
    SegmentReport {
        header: summary.header,
        last: summary.last,
        end: summary.end,
        file_bytes,
        entries: summary.last.vlsn.since(summary.header.first.prev()),
        terms: summary.terms.clone(),
        index_bytes: size_of_val(&summary.samples[..]),
        side: SideState::Valid,
        digest: Some(side.digests.segment),
    }
}

const fn chain_of(header: &EntryHeader) -> ChainState {
    ChainState { vlsn: header.vlsn, term: header.term, fingerprint: header.fingerprint }
}

fn place(chain: &ChainState) -> String {
    format!("entry {} of term {}, fingerprint {}", chain.vlsn, chain.term, chain.fingerprint)
}

fn header_at(file: &dyn EnvFile, at: u64) -> io::Result<Option<EntryHeader>> {
    let mut raw = [0; ENTRY_HEADER_BYTES];
    let read = file.read_at(&mut raw, at)?;
    Ok(EntryHeader::decode(&raw).filter(|_| read == raw.len()))
}

/// Whether a valid entry stands at `at` that continues `chain`.
fn goes_on_at(file: &dyn EnvFile, at: u64, len: u64, mut chain: ChainState) -> io::Result<bool> {
    let Some(header) = header_at(file, at)? else { return Ok(false) };
    if header.vlsn != chain.vlsn.next() || at + header.entry_bytes() as u64 > len {
        return Ok(false);
    }
    let mut bytes = vec![0; header.entry_bytes()];
    let read = file.read_at(&mut bytes, at)?;
    Ok(chain.check_next(&bytes[..read], u32::MAX).is_ok())
}

/// Whether anything but zeros stands in `[from, len)`.
fn has_data(file: &dyn EnvFile, from: u32, len: u64) -> io::Result<bool> {
    let mut at = u64::from(from);
    let mut buffer = vec![0; len.saturating_sub(at).min(256 << 10) as usize];
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

fn lost_end(mark: &Mark, lsn: Lsn, end: Vlsn) -> Fault {
    Fault {
        lsn,
        expected: format!("entry {}, as the tail mark says {} was synced", end.next(), mark.vlsn),
        found: "the end of the log".into(),
        missing: Some((end.next(), mark.vlsn)),
    }
}
