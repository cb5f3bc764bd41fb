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

/// Bytes allocated at once for the open buffer. Below the allocator's threshold for giving memory
/// back at each free, so that buffers are reused without page faults.
const BUFFER_BYTES: usize = 256 << 10;

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

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    pieces: VecDeque<Piece>,
    /// Bytes of `pieces`, overhead included.
    bytes: usize,
    /// Bytes that `pieces` may take once written.
    limit: usize,
    open: BytesMut,
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
            self.open = BytesMut::with_capacity(BUFFER_BYTES.max(bytes));
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

    /// Forgets the oldest pieces, as far as they are written and the limit is passed.
    pub(crate) fn evict(&mut self, written: Vlsn) {
        while self.bytes > self.limit
            && let Some(piece) = self.pieces.pop_front_if(|piece| piece.last.vlsn <= written)
        {
            self.bytes -= piece.bytes.len() + PIECE_OVERHEAD;
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
