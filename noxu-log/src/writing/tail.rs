//! Tail: the recent end of the log in memory, shared by the flusher and all feeders.
//!
//! Entries are encoded into an *open* buffer under the append lock. Whoever wants the bytes (the
//! flusher to write them, a feeder to ship them) freezes what is there into an immutable *piece*
//! and shares it; the rest of the buffer stays open. No byte is copied again and no lock is held
//! while pieces are used.
//!
//! # Invariants
//! - Pieces and the open buffer together hold a contiguous run that ends with the log's last entry.
//! - A piece holds whole entries of one segment.
//! - A piece leaves the tail only once it is written to its file.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use noxu_util::{Fingerprint, Lsn, NULL_LSN, NULL_VLSN, Vlsn};

use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryHeader};
use crate::writing::tail_mark::Mark;

/// Bytes allocated at once for the open buffer: with room for the headers of four bodies of 64 KiB.
const BUFFER_BYTES: usize = 260 << 10;
/// Most buffers kept for the next entries once nobody uses them any more. Given back to the
/// allocator instead, their memory would come back from the kernel page by page, each one zeroed.
const MOST_FREE: usize = 32;

/// Memory a piece costs beside its bytes; counted, so that many small pieces stay bounded too.
const PIECE_OVERHEAD: usize = size_of::<Piece>() + 64;

/// An immutable run of whole entries of one segment.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) first: Vlsn,
    /// The chain through its last entry.
    pub(crate) last: ChainState,
    /// Where its first entry stands.
    pub(crate) lsn: Lsn,
    /// Fingerprint before its first entry.
    pub(crate) before: Fingerprint,
    /// Newest sync entry before its first entry; NULL if there is none.
    pub(crate) sync_before: Vlsn,
    pub(crate) bytes: Bytes,
}

impl Piece {
    /// The mark that speaks of everything through its last entry.
    pub(crate) fn end_mark(&self) -> Mark {
        let at = offset_of(&self.bytes, self.first, self.last.vlsn);
        Mark {
            term: self.last.term,
            vlsn: self.last.vlsn,
            lsn: Lsn::new(self.lsn.segment(), self.lsn.offset() + at as u32),
            fingerprint: self.last.fingerprint,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    pieces: VecDeque<Piece>,
    /// Bytes of `pieces`, overhead included.
    bytes: usize,
    /// Bytes that `pieces` may take once written.
    limit: usize,
    open: BytesMut,
    /// Buffers whose pieces are in the tail, oldest first: the last entry in each, and what is left
    /// of it, which gives back the whole once its pieces are gone.
    used: VecDeque<(Vlsn, BytesMut)>,
    /// Buffers that nobody uses, at most [`MOST_FREE`].
    free: Vec<BytesMut>,
    open_first: Vlsn,
    open_lsn: Lsn,
    open_before: Fingerprint,
    open_sync_before: Vlsn,
    /// Pieces the flusher has not taken yet, oldest first.
    unwritten: Vec<Piece>,
}

impl Tail {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            pieces: VecDeque::new(),
            bytes: 0,
            limit,
            open: BytesMut::new(),
            used: VecDeque::new(),
            free: Vec::new(),
            open_first: NULL_VLSN,
            open_lsn: NULL_LSN,
            open_before: Fingerprint::ZERO,
            open_sync_before: NULL_VLSN,
            unwritten: Vec::new(),
        }
    }

    /// Appends one entry to the open buffer. `end` is the log's end before it, `last_sync` the
    /// newest sync entry there. The caller freezes before the first entry of a new segment.
    pub(crate) fn push(&mut self, lsn: Lsn, end: &ChainState, last_sync: Vlsn, parts: [&[u8]; 2]) {
        let bytes = parts[0].len() + parts[1].len();
        if self.open.capacity() - self.open.len() < bytes {
            self.freeze(end);
            self.renew(bytes, end.vlsn);
        }
        if self.open.is_empty() {
            self.open_first = end.vlsn.next();
            self.open_lsn = lsn;
            self.open_before = end.fingerprint;
            self.open_sync_before = last_sync;
        }
        self.open.extend_from_slice(parts[0]);
        self.open.extend_from_slice(parts[1]);
    }

    /// Makes room for `bytes` in another buffer than the present one, which holds nothing that is not
    /// in a piece and whose last entry is `last`.
    fn renew(&mut self, bytes: usize, last: Vlsn) {
        let next = if bytes > BUFFER_BYTES {
            BytesMut::with_capacity(bytes)
        } else {
            self.free.pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
        };
        let full = std::mem::replace(&mut self.open, next);
        self.used.push_back((last, full));
    }

    /// Appends a run of whole entries that is shared with somebody else.
    pub(crate) fn push_shared(
        &mut self,
        lsn: Lsn,
        end: &ChainState,
        last_sync: Vlsn,
        last: ChainState,
        bytes: Bytes,
    ) {
        self.freeze(end);
        let (first, before) = (end.vlsn.next(), end.fingerprint);
        self.push_piece(Piece { first, last, lsn, before, sync_before: last_sync, bytes });
    }

    /// Turns what is in the open buffer into a piece. `end` is the log's end.
    pub(crate) fn freeze(&mut self, end: &ChainState) {
        if self.open.is_empty() {
            return;
        }
        let piece = Piece {
            first: self.open_first,
            last: *end,
            lsn: self.open_lsn,
            before: self.open_before,
            sync_before: self.open_sync_before,
            bytes: self.open.split().freeze(),
        };
        self.push_piece(piece);
    }

    fn push_piece(&mut self, piece: Piece) {
        self.bytes += piece.bytes.len() + PIECE_OVERHEAD;
        self.unwritten.push(piece.clone());
        self.pieces.push_back(piece);
    }

    /// Hands out what has not been written, open buffer included.
    pub(crate) fn take_unwritten(&mut self, end: &ChainState) -> Vec<Piece> {
        self.freeze(end);
        std::mem::take(&mut self.unwritten)
    }

    /// Takes back what was handed out and could not be written.
    pub(crate) fn put_back(&mut self, mut pieces: Vec<Piece>) {
        pieces.append(&mut self.unwritten);
        self.unwritten = pieces;
    }

    /// Forgets the oldest pieces, as far as they are written and the limit is passed, and keeps their
    /// buffers for the next entries.
    pub(crate) fn evict(&mut self, written: Vlsn) {
        while self.bytes > self.limit
            && let Some(piece) = self.pieces.pop_front_if(|piece| piece.last.vlsn <= written)
        {
            self.bytes -= piece.bytes.len() + PIECE_OVERHEAD;
        }
        let first = self.first();
        let is_past = |last: Vlsn| first.is_none_or(|first| last < first);
        while let Some((_, mut buffer)) = self.used.pop_front_if(|(last, _)| is_past(*last)) {
            // Unless a feeder or the flusher still holds a piece of it.
            let whole = buffer.try_reclaim(BUFFER_BYTES) && buffer.capacity() == BUFFER_BYTES;
            if whole && self.free.len() < MOST_FREE {
                self.free.push(buffer);
            }
        }
    }

    /// The first entry held; `None` if none is.
    pub(crate) fn first(&self) -> Option<Vlsn> {
        match self.pieces.front() {
            Some(piece) => Some(piece.first),
            None if self.open.is_empty() => None,
            None => Some(self.open_first),
        }
    }

    /// Where the first entry held stands. Everything before it is written.
    pub(crate) fn first_lsn(&self) -> Option<Lsn> {
        match self.pieces.front() {
            Some(piece) => Some(piece.lsn),
            None if self.open.is_empty() => None,
            None => Some(self.open_lsn),
        }
    }

    /// The piece that holds `vlsn`, which the tail must hold. Freezes if it is in the open buffer.
    pub(crate) fn piece_with(&mut self, vlsn: Vlsn, end: &ChainState) -> &Piece {
        let at = self.position_of(vlsn, end);
        &self.pieces[at]
    }

    /// Pieces from the one that holds `vlsn` on, until they have `max_bytes`; at least one.
    pub(crate) fn pieces_from(
        &mut self,
        vlsn: Vlsn,
        max_bytes: usize,
        end: &ChainState,
    ) -> Vec<Piece> {
        let from = self.position_of(vlsn, end);
        let mut bytes = 0;
        let mut taken = Vec::with_capacity(4);
        for piece in self.pieces.range(from..) {
            taken.push(piece.clone());
            bytes += piece.bytes.len();
            if bytes >= max_bytes {
                return taken;
            }
        }
        if !self.open.is_empty() {
            self.freeze(end);
            taken.extend(self.pieces.back().cloned());
        }
        taken
    }

    fn position_of(&mut self, vlsn: Vlsn, end: &ChainState) -> usize {
        if !self.open.is_empty() && vlsn >= self.open_first {
            self.freeze(end);
        }
        let at = self.pieces.partition_point(|piece| piece.last.vlsn < vlsn);
        let holds = self.pieces.get(at).is_some_and(|piece| piece.first <= vlsn);
        assert!(holds, "entry {vlsn} is not in the tail, which begins at {:?}", self.first());
        at
    }

    /// Forgets everything after `last`, the new end of the log. What remains is written.
    pub(crate) fn truncate(&mut self, last: &ChainState, end: &ChainState) {
        self.freeze(end);
        self.unwritten.clear();
        for (last_in_buffer, _) in &mut self.used {
            *last_in_buffer = last.vlsn.min(*last_in_buffer);
        }
        while let Some(mut piece) = self.pieces.pop_back_if(|piece| piece.last.vlsn > last.vlsn) {
            self.bytes -= piece.bytes.len() + PIECE_OVERHEAD;
            if piece.first <= last.vlsn {
                piece.bytes.truncate(offset_of(&piece.bytes, piece.first, last.vlsn.next()));
                piece.last = *last;
                self.bytes += piece.bytes.len() + PIECE_OVERHEAD;
                self.pieces.push_back(piece);
                return;
            }
        }
    }
}

/// Offset of entry `vlsn` in verified bytes whose first entry is `first`.
pub(crate) fn offset_of(bytes: &[u8], first: Vlsn, vlsn: Vlsn) -> usize {
    let mut at = 0;
    for _ in 0..vlsn.since(first) {
        at += header_at(bytes, at).entry_bytes();
    }
    at
}

/// The header at `at` of verified bytes.
pub(crate) fn header_at(bytes: &[u8], at: usize) -> EntryHeader {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk::<ENTRY_HEADER_BYTES>)
        .and_then(EntryHeader::decode)
        .expect("the tail holds verified entries only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use noxu_util::Term;

    /// Half of a buffer.
    const LEN: usize = BUFFER_BYTES / 2;

    /// A tail that keeps nothing once it is written, and the log's end.
    struct Rig {
        tail: Tail,
        end: ChainState,
        offset: u32,
    }

    impl Rig {
        fn new() -> Self {
            Self { tail: Tail::new(0), end: ChainState::default(), offset: 0 }
        }

        /// Appends `len` bytes that all say which entry they belong to.
        fn push(&mut self, len: usize) {
            let vlsn = self.end.vlsn.next();
            let bytes = vec![vlsn.sequence() as u8; len];
            self.tail.push(Lsn::new(1, self.offset), &self.end, NULL_VLSN, [bytes.as_slice(), &[]]);
            self.offset += len as u32;
            self.end = ChainState { vlsn, term: Term::new(1), fingerprint: Fingerprint::ZERO };
        }

        /// Takes what is unwritten, as the flusher does, and drops it once it is "written".
        fn flush(&mut self) -> Vec<Piece> {
            let pieces = self.tail.take_unwritten(&self.end);
            self.tail.evict(self.end.vlsn);
            pieces
        }
    }

    #[test]
    fn a_buffer_serves_again_once_nobody_holds_a_piece_of_it() {
        let mut rig = Rig::new();
        for _ in 0..6 {
            rig.push(LEN);
        }
        drop(rig.tail.take_unwritten(&rig.end));
        rig.tail.evict(rig.end.vlsn);
        assert_eq!(rig.tail.free.len(), 2, "all but the one that is open");
        rig.push(LEN);
        assert_eq!(rig.tail.free.len(), 1);
        assert_eq!(rig.flush()[0].bytes, vec![7; LEN]);
    }

    #[test]
    fn a_piece_that_somebody_holds_never_changes() {
        let mut rig = Rig::new();
        let mut held = Vec::new();
        for round in 0..40 {
            rig.push(LEN - round);
            rig.push(LEN / 3);
            rig.push(1);
            let pieces = rig.flush();
            if round % 2 == 0 {
                held.extend(pieces);
            }
        }
        for piece in held {
            let at = |vlsn: Vlsn| vlsn.sequence() as u8;
            assert_eq!(piece.bytes[0], at(piece.first));
            assert_eq!(piece.bytes[piece.bytes.len() - 1], at(piece.last.vlsn));
            assert!(piece.bytes.is_sorted(), "entries {} to {:?}", piece.first, piece.last);
        }
    }

    #[test]
    fn buffers_kept_for_later_are_bounded_in_number_and_in_size() {
        let mut rig = Rig::new();
        rig.push(2 * BUFFER_BYTES);
        rig.push(LEN);
        drop(rig.flush());
        rig.push(LEN);
        drop(rig.flush());
        assert!(rig.tail.free.is_empty(), "the long entry's buffer is kept");
        for _ in 0..4 * MOST_FREE {
            rig.push(LEN);
        }
        drop(rig.tail.take_unwritten(&rig.end));
        rig.tail.evict(rig.end.vlsn);
        assert_eq!(rig.tail.free.len(), MOST_FREE);
        assert!(rig.tail.free.iter().all(|buffer| buffer.capacity() == BUFFER_BYTES));
    }

    #[test]
    fn buffers_of_entries_that_were_truncated_away_serve_again() {
        let mut rig = Rig::new();
        rig.push(1);
        let kept = rig.end;
        drop(rig.tail.take_unwritten(&rig.end));
        for _ in 0..6 {
            rig.push(LEN);
        }
        drop(rig.tail.take_unwritten(&rig.end));
        rig.tail.truncate(&kept, &rig.end);
        rig.end = kept;
        rig.push(LEN);
        drop(rig.flush());
        assert!(rig.tail.used.is_empty(), "{:?}", rig.tail.used.front());
    }
}
