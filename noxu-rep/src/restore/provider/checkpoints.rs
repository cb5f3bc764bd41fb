//! Checkpoints that are being given away, and those whose connection broke: a node that returns soon
//! goes on with the same one.
//!
//! # Invariants
//! - A checkpoint is read once, from its front; what the other side does not have durably is held here,
//!   as far as [`MAX_HELD_BYTES`] goes.

use std::collections::BTreeMap;
use std::time::Duration;

use noxu_util::{Fingerprint, Vlsn};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::error::Result;
use crate::sync::Checkpoint;

/// How long a checkpoint stays for a node whose connection has ended.
const KEPT_FOR: Duration = Duration::from_mins(1);

/// Most bytes held for a node that does not say what it has durably.
const MAX_HELD_BYTES: usize = 32 << 20;

/// Most checkpoints kept for nodes that are away.
const MAX_KEPT: usize = super::MAX_SESSIONS;

/// A checkpoint that is being given to somebody.
pub(super) struct OpenCheckpoint {
    pub(super) id: u64,
    /// Of the entry through which it goes.
    pub(super) fingerprint: Fingerprint,
    source: Box<dyn Checkpoint>,
    /// What was read and may be asked for again, behind `forgotten` bytes that may not.
    held: Vec<u8>,
    forgotten: usize,
    /// Where in the checkpoint that begins.
    held_from: u64,
    has_ended: bool,
}

impl OpenCheckpoint {
    pub(super) fn new(id: u64, source: Box<dyn Checkpoint>, fingerprint: Fingerprint) -> Self {
        let held = Vec::new();
        Self { id, fingerprint, source, held, forgotten: 0, held_from: 0, has_ended: false }
    }

    pub(super) fn vlsn(&self) -> Vlsn {
        self.source.vlsn()
    }

    /// The first offset that can be asked for.
    pub(super) const fn first_offset(&self) -> u64 {
        self.held_from
    }

    /// The `most` bytes from `offset` on, or fewer at the end, and whether they are the last; nothing
    /// below `durable` is asked for any more. `None` if that offset is not to be had.
    pub(super) fn chunk(
        &mut self,
        offset: u64,
        durable: u64,
        most: usize,
    ) -> Result<Option<(&[u8], bool)>> {
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

/// Those of nodes that are away.
pub struct KeptCheckpoints {
    clock: Clock,
    kept: Mutex<BTreeMap<u64, (Duration, OpenCheckpoint)>>,
}

impl KeptCheckpoints {
    /// None yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, kept: Mutex::default() }
    }

    /// Its node may return for it. Returns until when.
    pub(super) fn keep(&self, checkpoint: OpenCheckpoint) -> Duration {
        let until = self.clock.now() + KEPT_FOR;
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT
            && let Some(oldest) =
                kept.iter().min_by_key(|(_, (until, _))| *until).map(|(id, _)| *id)
        {
            kept.remove(&oldest);
        }
        kept.insert(checkpoint.id, (until, checkpoint));
        until
    }

    /// The one of this number, for its node.
    pub(super) fn take(&self, id: u64) -> Option<OpenCheckpoint> {
        self.expire();
        self.kept.lock().remove(&id).map(|(_, checkpoint)| checkpoint)
    }

    /// Gives up those for which nobody has come. Returns when the next one goes.
    pub fn expire(&self) -> Option<Duration> {
        let now = self.clock.now();
        let mut kept = self.kept.lock();
        kept.retain(|_, (until, _)| *until > now);
        kept.values().map(|(until, _)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::sync::MemoryCheckpoint;

    fn opened(len: usize) -> (Vec<u8>, OpenCheckpoint) {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let source = MemoryCheckpoint::new(Vlsn::new(9), bytes.clone());
        (bytes, OpenCheckpoint::new(7, Box::new(source), Fingerprint::from_u64(5)))
    }

    #[test]
    fn what_is_not_durable_at_the_other_side_can_be_asked_for_again() {
        let (bytes, mut checkpoint) = opened(1000);
        let chunk = |checkpoint: &mut OpenCheckpoint, offset, durable| {
            let chunk = checkpoint.chunk(offset, durable, 300).unwrap();
            chunk.map(|(bytes, is_last)| (bytes.to_vec(), is_last))
        };
        assert_eq!(chunk(&mut checkpoint, 0, 0), Some((bytes[..300].to_vec(), false)));
        assert_eq!(chunk(&mut checkpoint, 300, 0), Some((bytes[300..600].to_vec(), false)));
        assert_eq!(chunk(&mut checkpoint, 150, 100), Some((bytes[150..450].to_vec(), false)));
        assert_eq!(checkpoint.first_offset(), 100);
        assert_eq!(chunk(&mut checkpoint, 99, 0), None, "it was durable there");
        assert_eq!(chunk(&mut checkpoint, 601, 0), None, "what lies between was never asked for");
        assert_eq!(chunk(&mut checkpoint, 600, 600), Some((bytes[600..900].to_vec(), false)));
        assert_eq!(chunk(&mut checkpoint, 900, 600), Some((bytes[900..].to_vec(), true)));
        assert_eq!(chunk(&mut checkpoint, 1000, 1000), Some((Vec::new(), true)));
        assert_eq!(chunk(&mut checkpoint, 1300, 1000), Some((Vec::new(), true)), "asked ahead");
    }

    #[test]
    fn what_nobody_says_to_have_durably_is_held_up_to_a_limit() {
        const PIECE: usize = 1 << 20;
        let (bytes, mut checkpoint) = opened(MAX_HELD_BYTES + 3 * PIECE);
        for offset in (0..bytes.len()).step_by(PIECE) {
            let (piece, _) = checkpoint.chunk(offset as u64, 0, PIECE).unwrap().unwrap();
            assert!(piece == &bytes[offset..offset + PIECE]);
            assert!(checkpoint.held.len() - checkpoint.forgotten <= MAX_HELD_BYTES);
        }
        assert_eq!(checkpoint.first_offset(), 3 * PIECE as u64);
        let (piece, is_last) = checkpoint.chunk(3 * PIECE as u64, 0, PIECE).unwrap().unwrap();
        assert!(piece == &bytes[3 * PIECE..4 * PIECE] && !is_last);
    }

    #[test]
    fn a_checkpoint_is_kept_a_minute_for_its_node_and_no_other() {
        let (clock, hand) = Clock::manual();
        let kept = KeptCheckpoints::new(clock);
        kept.keep(opened(10).1);
        assert!(kept.take(8).is_none());
        hand.set(Duration::from_secs(59));
        kept.keep(kept.take(7).expect("still there"));
        hand.set(Duration::from_mins(2));
        assert_eq!(kept.expire(), None);
        assert!(kept.take(7).is_none());
    }
}
