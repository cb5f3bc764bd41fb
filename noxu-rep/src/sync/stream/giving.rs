//! Giving: checkpoints that are being read for somebody.
//!
//! # Invariants
//! - A checkpoint is read once, from its front; what the other side does not have durably is held here,
//!   as far as [`MAX_HELD_BYTES`] goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use noxu_util::Vlsn;
use noxu_util::codec::Put;
use parking_lot::Mutex;

use super::{MAX_PIECE_BYTES, Question};
use crate::error::{RepError, Result};
use crate::sync::Checkpoint;
use crate::sync::method::{Offer, SyncNode, SyncProvider};

/// Most bytes held for a node that does not say what it has durably.
const MAX_HELD_BYTES: usize = 32 << 20;

/// The checkpoints of one node.
pub(super) struct StreamProvider {
    node: SyncNode,
    open: Mutex<BTreeMap<u64, Arc<Mutex<OpenCheckpoint>>>>,
}

impl StreamProvider {
    pub(super) fn new(node: SyncNode) -> Self {
        Self { node, open: Mutex::default() }
    }
}

impl SyncProvider for StreamProvider {
    fn open(&self) -> Result<Offer> {
        let checkpoint = OpenCheckpoint::new(self.node.machine.open_checkpoint()?);
        let id = self.node.env.entropy().max(1);
        let offer = checkpoint.offer(id);
        self.open.lock().insert(id, Arc::new(Mutex::new(checkpoint)));
        Ok(offer)
    }

    fn resume(&self, id: u64) -> Option<Offer> {
        let found = self.open.lock().get(&id).cloned()?;
        let offer = found.lock().offer(id);
        Some(offer)
    }

    fn read(&self, id: u64, question: &[u8], answer: &mut Vec<u8>) -> Result<Option<Vlsn>> {
        let Question { offset, bytes, durable } = Question::decode(question)?;
        let found = self.open.lock().get(&id).cloned();
        let none = || {
            let found = format!("a question about checkpoint {id} from {offset} on");
            RepError::protocol("", "one about a piece that is there", found)
        };
        let checkpoint = found.ok_or_else(none)?;
        let mut checkpoint = checkpoint.lock();
        let most = bytes.min(MAX_PIECE_BYTES) as usize;
        let (piece, is_last) = checkpoint.piece(offset, durable, most)?.ok_or_else(none)?;
        answer.put_bool(is_last);
        answer.put_bytes(piece);
        Ok(None)
    }

    fn release(&self, id: u64) {
        self.open.lock().remove(&id);
    }
}

/// A checkpoint that is being given to somebody.
struct OpenCheckpoint {
    source: Box<dyn Checkpoint>,
    /// What was read and may be asked for again, behind `forgotten` bytes that may not.
    held: Vec<u8>,
    forgotten: usize,
    /// Where in the checkpoint that begins.
    held_from: u64,
    has_ended: bool,
}

impl OpenCheckpoint {
    fn new(source: Box<dyn Checkpoint>) -> Self {
        Self { source, held: Vec::new(), forgotten: 0, held_from: 0, has_ended: false }
    }

    fn offer(&self, id: u64) -> Offer {
        let mut head = Vec::new();
        head.put_u64(self.held_from);
        Offer { id, through: self.source.vlsn(), head }
    }

    /// The `most` bytes from `offset` on, or fewer at the end, and whether they are the last; nothing
    /// below `durable` is asked for any more. `None` if that offset is not to be had.
    fn piece(&mut self, offset: u64, durable: u64, most: usize) -> Result<Option<(&[u8], bool)>> {
        let held = (self.held.len() - self.forgotten) as u64;
        let surplus = (held + most as u64).saturating_sub(MAX_HELD_BYTES as u64);
        self.forget(durable.max(self.held_from + surplus).min(offset));
        let held = self.held.len() - self.forgotten;
        let from = offset.checked_sub(self.held_from).map(|from| from as usize);
        let Some(from) = from.filter(|from| *from <= held || self.has_ended) else {
            return Ok(None);
        };
        // Questions are under way ahead of the answers: some are asked behind the end.
        let (from, end) = (self.forgotten + from.min(held), self.forgotten + from + most);
        while !self.has_ended && self.held.len() < end {
            let room = end - self.held.len();
            self.has_ended = !self.source.read(&mut self.held, room)?;
        }
        let end = end.min(self.held.len());
        Ok(Some((&self.held[from..end], self.has_ended && end == self.held.len())))
    }

    fn forget(&mut self, before: u64) {
        let held = self.held.len() - self.forgotten;
        let gone = before.saturating_sub(self.held_from).min(held as u64);
        self.held_from += gone;
        self.forgotten += gone as usize;
        // Moved as rarely as it pays.
        if self.forgotten >= self.held.len() / 2 {
            self.held.drain(..self.forgotten);
            self.forgotten = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::MemoryCheckpoint;

    fn opened(len: usize) -> (Vec<u8>, OpenCheckpoint) {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let source = MemoryCheckpoint::new(Vlsn::new(9), bytes.clone());
        (bytes, OpenCheckpoint::new(Box::new(source)))
    }

    #[test]
    fn what_is_not_durable_at_the_other_side_can_be_asked_for_again() {
        let (bytes, mut checkpoint) = opened(1000);
        let piece = |checkpoint: &mut OpenCheckpoint, offset, durable| {
            let piece = checkpoint.piece(offset, durable, 300).unwrap();
            piece.map(|(bytes, is_last)| (bytes.to_vec(), is_last))
        };
        assert_eq!(piece(&mut checkpoint, 0, 0), Some((bytes[..300].to_vec(), false)));
        assert_eq!(piece(&mut checkpoint, 300, 0), Some((bytes[300..600].to_vec(), false)));
        assert_eq!(piece(&mut checkpoint, 150, 100), Some((bytes[150..450].to_vec(), false)));
        assert_eq!(checkpoint.held_from, 100);
        assert_eq!(piece(&mut checkpoint, 99, 0), None, "it was durable there");
        assert_eq!(piece(&mut checkpoint, 601, 0), None, "what lies between was never asked for");
        assert_eq!(piece(&mut checkpoint, 600, 600), Some((bytes[600..900].to_vec(), false)));
        assert_eq!(piece(&mut checkpoint, 900, 600), Some((bytes[900..].to_vec(), true)));
        assert_eq!(piece(&mut checkpoint, 1000, 1000), Some((Vec::new(), true)));
        assert_eq!(piece(&mut checkpoint, 1300, 1000), Some((Vec::new(), true)), "asked ahead");
    }

    #[test]
    fn what_nobody_says_to_have_durably_is_held_up_to_a_limit() {
        const PIECE: usize = 1 << 20;
        let (bytes, mut checkpoint) = opened(MAX_HELD_BYTES + 3 * PIECE);
        for offset in (0..bytes.len()).step_by(PIECE) {
            let (piece, _) = checkpoint.piece(offset as u64, 0, PIECE).unwrap().unwrap();
            assert!(piece == &bytes[offset..offset + PIECE]);
            assert!(checkpoint.held.len() - checkpoint.forgotten <= MAX_HELD_BYTES);
        }
        assert_eq!(checkpoint.held_from, 3 * PIECE as u64);
        let (piece, is_last) = checkpoint.piece(3 * PIECE as u64, 0, PIECE).unwrap().unwrap();
        assert!(piece == &bytes[3 * PIECE..4 * PIECE] && !is_last);
    }
}
