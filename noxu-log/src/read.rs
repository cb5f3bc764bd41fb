//! Read: runs of entries and single headers, from the tail or from files.
//!
//! The tail is read without a copy and without verification: its bytes were verified when they came
//! in. What comes from a file is verified before it is handed out, so that a feeder can never ship
//! a damaged entry. A file read that overlaps a truncation is thrown away and done again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use noxu_util::{Fingerprint, Lsn, NULL_VLSN, Term, Vlsn};
use parking_lot::Mutex;

use crate::entry::{
    ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryHeader, EntryRun, front_entry,
};
use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::index::{SAMPLE_BYTES, Sample, sample_at_or_before};
use crate::log::{Log, Segment, Shared, State};
use crate::segment::side_file::SideFile;
use crate::tail::{Piece, header_at, offset_of};

/// Where an entry is to be looked for.
enum Place {
    /// In a piece of the tail.
    Tail(Piece),
    /// In a segment's file, before offset `limit`.
    File { segment: u32, limit: u32, truncations: u64 },
}

/// The header of an entry, where it stands, and the newest sync entry before it.
#[derive(Debug, Clone, Copy)]
struct Found {
    header: EntryHeader,
    lsn: Lsn,
    before: Fingerprint,
    sync_before: Vlsn,
}

impl Log {
    /// Up to `max_bytes` of entries from `from` on, at least one entry whatever its size; `None` if
    /// the log ends before `from`. Recent entries are shared with the tail, older ones come from
    /// one verified file read.
    ///
    /// # Errors
    /// `Gap` if `from` was dropped from the front; `Corrupt` if the file does not verify.
    pub fn read(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        loop {
            let pieces = {
                let mut state = self.shared.state.lock();
                let state = &mut *state;
                if from <= state.anchor.vlsn {
                    let first = state.anchor.vlsn.next();
                    return Err(LogError::Gap { requested: from, first });
                }
                if from > state.end.vlsn {
                    return Ok(None);
                }
                let in_tail = state.tail.first().is_some_and(|first| from >= first);
                in_tail.then(|| state.tail.pieces_from(from, max_bytes, &state.end))
            };
            if let Some(pieces) = pieces {
                return Ok(Some(run_of_pieces(pieces, from, max_bytes)));
            }
            if let Some(run) = self.shared.read_file(from, max_bytes)? {
                return Ok(Some(run));
            }
        }
    }

    /// The header of entry `vlsn` and where it stands; `None` if the log does not hold it.
    ///
    /// # Errors
    /// `Corrupt` or `Io` if it must be read from a file and cannot be.
    pub fn header(&self, vlsn: Vlsn) -> Result<Option<(EntryHeader, Lsn)>> {
        Ok(self.shared.find(vlsn)?.map(|found| (found.header, found.lsn)))
    }

    /// The newest sync entry at or before `vlsn`; `None` if the log holds none there.
    ///
    /// # Errors
    /// As [`Log::header`].
    pub fn sync_at_or_before(&self, vlsn: Vlsn) -> Result<Option<(EntryHeader, Lsn)>> {
        let last = self.shared.state.lock().end.vlsn;
        let Some(found) = self.shared.find(vlsn.min(last))? else { return Ok(None) };
        if found.header.is_sync() {
            return Ok(Some((found.header, found.lsn)));
        }
        self.header(found.sync_before)
    }
}

/// Cuts pieces to the entries from `from` on, `max_bytes` of them.
fn run_of_pieces(pieces: Vec<Piece>, from: Vlsn, max_bytes: usize) -> EntryRun {
    let mut pieces = pieces.into_iter();
    let mut head = pieces.next().expect("the tail gives at least one piece");
    if head.first < from {
        let at = offset_of(&head.bytes, head.first, from.prev());
        let previous = header_at(&head.bytes, at);
        head.before = previous.fingerprint;
        head.bytes = head.bytes.slice(at + previous.entry_bytes()..);
        head.first = from;
    }
    let mut run = EntryRun {
        first: from,
        last: from.prev(),
        previous_fingerprint: head.before,
        last_fingerprint: head.before,
        last_term: Term::ZERO,
        parts: Vec::with_capacity(pieces.len() + 1),
    };
    let mut left = max_bytes;
    for mut piece in std::iter::once(head).chain(pieces) {
        if piece.bytes.len() > left {
            let Some(cut) = cut_at_entry(&piece, left, run.parts.is_empty()) else { break };
            (piece.last, left) = (cut.0, cut.1);
            piece.bytes.truncate(cut.1);
        }
        left = left.saturating_sub(piece.bytes.len());
        run.last = piece.last.vlsn;
        run.last_term = piece.last.term;
        run.last_fingerprint = piece.last.fingerprint;
        run.parts.push(piece.bytes);
        if left == 0 {
            break;
        }
    }
    run
}

/// How much of a piece fits into `max_bytes`: the chain through the last entry that does, and its
/// end; `None` if none does. With `at_least_one` the first entry always does.
fn cut_at_entry(
    piece: &Piece,
    max_bytes: usize,
    at_least_one: bool,
) -> Option<(ChainState, usize)> {
    let mut at = 0;
    let mut last = None;
    while at < piece.bytes.len() {
        let header = header_at(&piece.bytes, at);
        let end = at + header.entry_bytes();
        if end > max_bytes && !(at_least_one && at == 0) {
            break;
        }
        let chain =
            ChainState { vlsn: header.vlsn, term: header.term, fingerprint: header.fingerprint };
        last = Some((chain, end));
        at = end;
    }
    last
}

impl State {
    /// The segment that holds `vlsn`, which the log must hold.
    pub(crate) fn segment_of(&self, vlsn: Vlsn) -> &Segment {
        let at = self.segments.partition_point(|segment| segment.last().vlsn < vlsn);
        &self.segments[at]
    }

    fn place_of(&mut self, vlsn: Vlsn) -> Option<Place> {
        if vlsn <= self.anchor.vlsn || vlsn > self.end.vlsn {
            return None;
        }
        if self.tail.first().is_some_and(|first| vlsn >= first) {
            return Some(Place::Tail(self.tail.piece_with(vlsn, &self.end).clone()));
        }
        Some(self.file_place(vlsn))
    }

    fn file_place(&self, vlsn: Vlsn) -> Place {
        let segment = self.segment_of(vlsn);
        let number = segment.number();
        // The tail may hold the rest of the segment, not written yet.
        let limit = match self.tail.first_lsn() {
            Some(lsn) if lsn.segment() == number => lsn.offset(),
            _ => segment.end(),
        };
        Place::File { segment: number, limit, truncations: self.truncations }
    }
}

impl Shared {
    fn find(&self, vlsn: Vlsn) -> Result<Option<Found>> {
        loop {
            let (place, sample) = {
                let mut state = self.state.lock();
                let Some(place) = state.place_of(vlsn) else { return Ok(None) };
                let sample = match state.segment_of(vlsn) {
                    Segment::Open(builder) => sample_at_or_before(builder.samples(), vlsn).copied(),
                    Segment::Sealed(_) => None,
                };
                (place, sample)
            };
            let segment = match &place {
                Place::Tail(piece) => piece.lsn.segment(),
                Place::File { segment, .. } => *segment,
            };
            let sample = match sample {
                Some(sample) => sample,
                None => self.sealed_sample(segment, vlsn)?,
            };
            match place {
                Place::Tail(piece) => {
                    return Ok(Some(find_in_piece(&piece, &sample, vlsn, self)?));
                }
                Place::File { segment, limit, truncations } => {
                    let found = self.find_in_file(segment, limit, &sample, vlsn);
                    if self.state.lock().truncations == truncations {
                        return found.map(Some);
                    }
                }
            }
        }
    }

    /// Walks headers from the sample to `vlsn` in its file, and verifies the entry it ends on.
    fn find_in_file(&self, segment: u32, limit: u32, sample: &Sample, vlsn: Vlsn) -> Result<Found> {
        let file = self.files.open(self, segment)?;
        let window = (SAMPLE_BYTES as usize + ENTRY_HEADER_BYTES)
            .min((limit - sample.offset.min(limit)) as usize);
        let mut bytes = vec![0; window];
        self.fill(&*file, segment, sample.offset, &mut bytes)?;
        let (mut at, mut expected) = (0, sample.vlsn);
        let (mut before, mut sync_before) = (sample.before, sample.sync_before);
        let damaged = |at: usize, what: &EntryFault| {
            corrupt(segment, u64::from(sample.offset) + at as u64, vlsn, what)
        };
        loop {
            let header = bytes
                .get(at..)
                .and_then(<[u8]>::first_chunk::<ENTRY_HEADER_BYTES>)
                .and_then(EntryHeader::decode)
                .filter(|header| header.vlsn == expected)
                .ok_or_else(|| damaged(at, &EntryFault::Header))?;
            if expected == vlsn {
                let end = at + header.entry_bytes();
                if sample.offset as usize + end > limit as usize {
                    return Err(damaged(at, &EntryFault::Header));
                }
                let have = bytes.len();
                if have < end {
                    bytes.resize(end, 0);
                    self.fill(&*file, segment, sample.offset + have as u32, &mut bytes[have..])?;
                }
                let term = header.term;
                let mut chain = ChainState { vlsn: vlsn.prev(), term, fingerprint: before };
                chain.check_next(&bytes[at..end], u32::MAX).map_err(|fault| damaged(at, &fault))?;
                let lsn = Lsn::new(segment, sample.offset + at as u32);
                return Ok(Found { header, lsn, before, sync_before });
            }
            if header.is_sync() {
                sync_before = expected;
            }
            before = header.fingerprint;
            at += header.entry_bytes();
            expected = expected.next();
        }
    }

    /// One file's part of [`Log::read`]; `None` if a truncation came in between.
    fn read_file(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        let place = {
            let state = self.state.lock();
            if from > state.end.vlsn || from <= state.anchor.vlsn {
                return Ok(None);
            }
            state.file_place(from)
        };
        let Place::File { segment, limit, truncations, .. } = place else { return Ok(None) };
        let run = self.find(from).and_then(|found| match found {
            Some(found) => self.read_run(segment, limit, &found, max_bytes).map(Some),
            None => Ok(None),
        });
        if self.state.lock().truncations == truncations { run } else { Ok(None) }
    }

    fn read_run(
        &self,
        segment: u32,
        limit: u32,
        found: &Found,
        max_bytes: usize,
    ) -> Result<EntryRun> {
        let file = self.files.open(self, segment)?;
        let offset = found.lsn.offset();
        let wanted = max_bytes.max(found.header.entry_bytes()).min((limit - offset) as usize);
        let mut bytes = vec![0; wanted];
        self.fill(&*file, segment, offset, &mut bytes)?;
        // The term is checked from the first entry's own on: its predecessor is not read.
        let after = ChainState {
            vlsn: found.header.vlsn.prev(),
            term: found.header.term,
            fingerprint: found.before,
        };
        let mut chain = after;
        let mut at = 0;
        while at < bytes.len() {
            match chain.check_next(&bytes[at..], u32::MAX) {
                Ok(entry) => at += entry.header.entry_bytes(),
                // The read ends inside an entry, which the next one begins with.
                Err(EntryFault::Short { needed, .. })
                    if chain.vlsn > after.vlsn
                        && u64::from(offset) + (at + needed) as u64 <= u64::from(limit) =>
                {
                    break;
                }
                Err(fault) => {
                    let offset = u64::from(offset) + at as u64;
                    return Err(corrupt(segment, offset, chain.vlsn.next(), &fault));
                }
            }
        }
        bytes.truncate(at);
        Ok(EntryRun {
            first: after.vlsn.next(),
            last: chain.vlsn,
            previous_fingerprint: after.fingerprint,
            last_fingerprint: chain.fingerprint,
            last_term: chain.term,
            parts: vec![Bytes::from(bytes)],
        })
    }

    fn fill(&self, file: &dyn EnvFile, segment: u32, offset: u32, buf: &mut [u8]) -> Result<()> {
        let read = file
            .read_at(buf, u64::from(offset))
            .map_err(|e| LogError::io("read", &self.segment_path(segment), e))?;
        if read < buf.len() {
            return Err(LogError::Corrupt {
                segment,
                offset: u64::from(offset) + read as u64,
                expected: format!("{} more bytes", buf.len() - read),
                found: "the end of the file".into(),
            });
        }
        Ok(())
    }

    /// The sample at or before `vlsn` in a sealed segment.
    fn sealed_sample(&self, segment: u32, vlsn: Vlsn) -> Result<Sample> {
        let side = self.sides.open(self, segment)?;
        sample_at_or_before(&side.summary.samples, vlsn).copied().ok_or_else(|| LogError::Corrupt {
            segment,
            offset: 0,
            expected: format!("entry {vlsn} at or after the first sample"),
            found: format!("first entry {}", side.summary.header.first),
        })
    }
}

/// Finds `vlsn` in a tail piece, walking from the piece's start or the sample, whichever is nearer.
fn find_in_piece(piece: &Piece, sample: &Sample, vlsn: Vlsn, shared: &Shared) -> Result<Found> {
    let (mut at, mut expected, mut before, mut sync_before);
    if sample.vlsn >= piece.first {
        at = (sample.offset - piece.lsn.offset()) as usize;
        (expected, before, sync_before) = (sample.vlsn, sample.before, sample.sync_before);
    } else {
        (at, expected, before, sync_before) = (0, piece.first, piece.before, NULL_VLSN);
    }
    let walked_from = expected;
    loop {
        let entry = front_entry(&piece.bytes[at..]).expect("the tail holds verified entries only");
        if expected == vlsn {
            // Begun at the piece: what lies between the sample and the piece was not seen.
            if sync_before.is_null() && walked_from != sample.vlsn && !entry.header.is_sync() {
                sync_before = shared.sync_before_piece(sample, piece)?;
            }
            let lsn = Lsn::new(piece.lsn.segment(), piece.lsn.offset() + at as u32);
            return Ok(Found { header: entry.header, lsn, before, sync_before });
        }
        if entry.header.is_sync() {
            sync_before = expected;
        }
        before = entry.header.fingerprint;
        at += entry.header.entry_bytes();
        expected = expected.next();
    }
}

impl Shared {
    /// The newest sync entry before a piece, which begins after the sample.
    fn sync_before_piece(&self, sample: &Sample, piece: &Piece) -> Result<Vlsn> {
        let mut vlsn = piece.first.prev();
        while vlsn >= sample.vlsn {
            match self.find(vlsn)? {
                Some(found) if found.header.is_sync() => return Ok(vlsn),
                Some(found) if !found.sync_before.is_null() => return Ok(found.sync_before),
                _ => vlsn = vlsn.prev(),
            }
        }
        Ok(sample.sync_before)
    }
}

fn corrupt(segment: u32, offset: u64, vlsn: Vlsn, fault: &EntryFault) -> LogError {
    LogError::Corrupt {
        segment,
        offset,
        expected: format!("entry {vlsn}"),
        found: fault.to_string(),
    }
}

/// Open files of segments, most recently used last, so that descriptors stay bounded.
#[derive(Debug, Default)]
pub(crate) struct FileCache {
    files: Mutex<VecDeque<(u32, Arc<dyn EnvFile>)>>,
}

/// Side files in memory, most recently used last.
#[derive(Debug, Default)]
pub(crate) struct SideCache {
    sides: Mutex<VecDeque<(u32, Arc<SideFile>)>>,
}

const CACHED_FILES: usize = 16;
const CACHED_SIDES: usize = 4;

/// Looks `number` up in a small cache and moves it to the most recent place.
fn cached<T: Clone>(cache: &mut VecDeque<(u32, T)>, number: u32) -> Option<T> {
    let at = cache.iter().position(|(cached, _)| *cached == number)?;
    let hit = cache.remove(at)?;
    let value = hit.1.clone();
    cache.push_back(hit);
    Some(value)
}

fn remember<T>(cache: &mut VecDeque<(u32, T)>, number: u32, value: T, most: usize) {
    if cache.len() >= most {
        cache.pop_front();
    }
    cache.push_back((number, value));
}

impl FileCache {
    fn open(&self, shared: &Shared, number: u32) -> Result<Arc<dyn EnvFile>> {
        if let Some(file) = cached(&mut self.files.lock(), number) {
            return Ok(file);
        }
        let path = shared.segment_path(number);
        let file =
            shared.env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        remember(&mut self.files.lock(), number, Arc::clone(&file), CACHED_FILES);
        Ok(file)
    }

    /// Forgets every file: after segments were removed or renamed.
    pub(crate) fn clear(&self) {
        self.files.lock().clear();
    }
}

impl SideCache {
    /// The side file of a sealed segment, rebuilt if it is missing or damaged.
    pub(crate) fn open(&self, shared: &Shared, number: u32) -> Result<Arc<SideFile>> {
        if let Some(side) = cached(&mut self.sides.lock(), number) {
            return Ok(side);
        }
        let side = match SideFile::read(&*shared.env, &shared.dir, number)? {
            Some(side) => side,
            None => shared.rebuild_side_file(number)?,
        };
        let side = Arc::new(side);
        remember(&mut self.sides.lock(), number, Arc::clone(&side), CACHED_SIDES);
        Ok(side)
    }

    /// Forgets every side file.
    pub(crate) fn clear(&self) {
        self.sides.lock().clear();
    }
}
