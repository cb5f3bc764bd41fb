//! Read: runs of entries and single headers, from the tail or from files.
//!
//! The tail is read without a copy and without verification: its bytes were verified when they came
//! in. What comes from a file is verified before it is handed out, so that a feeder can never ship
//! a damaged entry. A file read that overlaps a truncation, or a drop of the front that reaches it,
//! is thrown away and done again; one that would begin while files are being cut waits.

use bytes::Bytes;
use noxu_util::{Fingerprint, Lsn, Term, Vlsn};
use parking_lot::MutexGuard;

use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryHeader, EntryRun};
use crate::env::{EnvFile, PASSING_BYTES};
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared, State};
use crate::reading::index::{SAMPLE_BYTES, SAMPLE_ENTRIES, Sample, sample_at_or_before};
use crate::writing::tail::{Piece, header_at, offset_of};

/// Where an entry is to be looked for.
enum Place {
    /// In a piece of the tail.
    Tail(Piece),
    /// In a segment's file, before offset `limit`.
    File { segment: u32, limit: u32, truncations: u64 },
}

/// The header of an entry, where it stands, and the newest sync entry before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) header: EntryHeader,
    pub(crate) lsn: Lsn,
    before: Fingerprint,
    sync_before: Vlsn,
}

impl Log {
    /// Up to `max_bytes` of entries from `from` on, at least one entry whatever its size; `None` if
    /// the log ends before `from`. Recent entries are shared with the tail, older ones come from
    /// one verified file read.
    ///
    /// # Errors
    /// `Gap` if `from` was dropped from the front; `Faulty` if it is damaged, `Corrupt` if the file
    /// does not verify; `Poisoned` if a truncation failed.
    pub fn read(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        self.shared.read(from, max_bytes)
    }

    /// The same, but no entry beyond `through`, which is not below `from`.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_through(
        &self,
        from: Vlsn,
        through: Vlsn,
        max_bytes: usize,
    ) -> Result<Option<EntryRun>> {
        let run = self.read(from, max_bytes)?;
        match &run {
            Some(beyond) if beyond.last > through => {
                let within = beyond.entries().take_while(|entry| entry.header.vlsn <= through);
                let bytes = within.map(|entry| entry.header.entry_bytes()).sum();
                self.read(from, bytes)
            }
            Some(_) | None => Ok(run),
        }
    }

    /// The header of entry `vlsn` and where it stands; `None` if the log does not hold it.
    ///
    /// # Errors
    /// `Faulty`, `Corrupt` or `Io` if it must be read from a file and cannot be.
    pub fn header(&self, vlsn: Vlsn) -> Result<Option<(EntryHeader, Lsn)>> {
        Ok(self.shared.find(vlsn)?.map(|found| (found.header, found.lsn)))
    }

    /// The newest sync entry at or before `vlsn`; `None` if the log holds none there.
    ///
    /// # Errors
    /// As [`Log::header`].
    pub fn sync_at_or_before(&self, vlsn: Vlsn) -> Result<Option<(EntryHeader, Lsn)>> {
        loop {
            let (last, truncations) = {
                let state = self.shared.lock_to_read()?;
                (state.end.vlsn, state.truncations)
            };
            let sync = match self.shared.find(vlsn.min(last))? {
                Some(found) if found.header.is_sync() => Some((found.header, found.lsn)),
                Some(found) => self.header(found.sync_before)?,
                None => None,
            };
            // The two lookups speak of one log only if nothing was cut off in between.
            if self.shared.state.lock().truncations != truncations {
                continue;
            }
            return match sync {
                // What stands in the file is not what the index was made of.
                Some((header, lsn)) if !header.is_sync() => Err(LogError::Corrupt {
                    segment: lsn.segment(),
                    offset: lsn.offset().into(),
                    expected: format!("sync entry {}", header.vlsn),
                    found: "an entry that is none".into(),
                }),
                sync => Ok(sync),
            };
        }
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

    /// Whether a file read of `vlsn` that began after so many truncations read the log as it is:
    /// nothing was cut off and the entry was not dropped from the front.
    fn still_holds(&self, vlsn: Vlsn, truncations: u64) -> bool {
        self.truncations == truncations && vlsn > self.anchor.vlsn
    }

    /// Newest sync entry and transaction end before segment `number`.
    pub(crate) fn syncs_before(&self, number: u32) -> (Vlsn, Vlsn) {
        match self.position_of(number).checked_sub(1).map(|before| &self.segments[before]) {
            Some(Segment::Open(open)) => (open.last_sync(), open.last_txn_end()),
            Some(Segment::Sealed(sealed)) => (sealed.last_sync, sealed.last_txn_end),
            None => (self.anchor.vlsn, self.anchor.vlsn),
        }
    }

    fn place_of(&mut self, vlsn: Vlsn) -> Result<Option<Place>> {
        if vlsn <= self.anchor.vlsn || vlsn > self.end.vlsn {
            return Ok(None);
        }
        if let Some(faulty) = self.faulty.iter().find(|faulty| faulty.holds(vlsn)) {
            return Err(faulty.into());
        }
        if self.tail.first().is_some_and(|first| vlsn >= first) {
            return Ok(Some(Place::Tail(self.tail.piece_with(vlsn, &self.end).clone())));
        }
        Ok(Some(self.file_place(vlsn)))
    }

    fn file_place(&self, vlsn: Vlsn) -> Place {
        let segment = self.segment_of(vlsn);
        let number = segment.number();
        // The tail may hold the rest of the segment, not written yet.
        let mut limit = match self.tail.first_lsn() {
            Some(lsn) if lsn.segment() == number => lsn.offset(),
            _ => segment.end(),
        };
        // What comes next may be damaged.
        if let Some(next) = self.faulty.iter().find(|f| f.segment == number && f.first > vlsn) {
            limit = limit.min(next.offset);
        }
        Place::File { segment: number, limit, truncations: self.truncations }
    }
}

impl Shared {
    /// See [`Log::read`].
    pub(crate) fn read(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        loop {
            let pieces = {
                let mut state = self.lock_to_read()?;
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
            if let Some(run) = self.read_file(from, max_bytes)? {
                return Ok(Some(run));
            }
        }
    }

    /// The state, once no truncation is under way. After one that failed it never is again.
    fn lock_to_read(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        while state.truncating {
            self.check_running()?;
            self.truncated.wait(&mut state);
        }
        Ok(state)
    }

    pub(crate) fn find(&self, vlsn: Vlsn) -> Result<Option<Found>> {
        loop {
            let (place, sample) = {
                let mut state = self.lock_to_read()?;
                let Some(place) = state.place_of(vlsn)? else { return Ok(None) };
                let sample = match state.segment_of(vlsn) {
                    Segment::Open(builder) => sample_at_or_before(builder.samples(), vlsn).copied(),
                    Segment::Sealed(_) => None,
                };
                (place, sample)
            };
            match place {
                Place::Tail(piece) => {
                    // A walk from the piece's start gives the same, only later.
                    let far = || vlsn.since(piece.first) >= u64::from(SAMPLE_ENTRIES);
                    let sample = sample.or_else(|| {
                        let segment = piece.lsn.segment();
                        if far() { self.sealed_sample(segment, vlsn).ok() } else { None }
                    });
                    return Ok(Some(find_in_piece(&piece, sample, vlsn)));
                }
                Place::File { segment, limit, truncations } => {
                    let found = sample
                        .map_or_else(|| self.sealed_sample(segment, vlsn), Ok)
                        .and_then(|sample| self.find_in_file(segment, limit, &sample, vlsn));
                    if self.state.lock().still_holds(vlsn, truncations) {
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

    /// One file's part of [`Log::read`]; `None` if a truncation or a front drop came in between.
    fn read_file(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        let place = {
            let state = self.lock_to_read()?;
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
        if self.state.lock().still_holds(from, truncations) { run } else { Ok(None) }
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
        // What was found in another log than `limit` speaks of is thrown away by the caller.
        let left = limit.saturating_sub(offset) as usize;
        let wanted = max_bytes.max(found.header.entry_bytes()).min(left);
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
        // In bulk a feeder reads, each entry once.
        let read =
            if buf.len() >= PASSING_BYTES { EnvFile::read_passing } else { EnvFile::read_at };
        let read = read(file, buf, u64::from(offset))
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
fn find_in_piece(piece: &Piece, sample: Option<Sample>, vlsn: Vlsn) -> Found {
    let (mut at, mut expected) = (0, piece.first);
    let (mut before, mut sync_before) = (piece.before, piece.sync_before);
    if let Some(sample) = sample.filter(|sample| sample.vlsn > piece.first) {
        at = (sample.offset - piece.lsn.offset()) as usize;
        (expected, before, sync_before) = (sample.vlsn, sample.before, sample.sync_before);
    }
    loop {
        let header = header_at(&piece.bytes, at);
        if expected == vlsn {
            let lsn = Lsn::new(piece.lsn.segment(), piece.lsn.offset() + at as u32);
            return Found { header, lsn, before, sync_before };
        }
        if header.is_sync() {
            sync_before = expected;
        }
        before = header.fingerprint;
        at += header.entry_bytes();
        expected = expected.next();
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
