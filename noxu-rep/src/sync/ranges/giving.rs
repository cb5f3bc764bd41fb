//! Giving: ranges of keys, each as it is when it is asked for. Nothing is kept for anybody.

use noxu_util::Vlsn;
use noxu_util::codec::Put;

use super::kept::put_splits;
use super::splits::splits;
use super::{MAX_PARTS, MAX_PIECE_BYTES, MAX_TOKEN_BYTES, Piece, Question, ranges};
use crate::error::{RepError, Result};
use crate::sync::method::{Offer, SyncNode, SyncProvider};

/// Fewest bytes of a value that come with a long key, so that each answer gets on.
const LEAST_BYTES: usize = 4096;

/// The ranges of one node.
pub(super) struct RangeProvider {
    node: SyncNode,
    parts: u16,
}

impl RangeProvider {
    pub(super) const fn new(node: SyncNode, parts: u16) -> Self {
        Self { node, parts }
    }
}

impl SyncProvider for RangeProvider {
    fn open(&self) -> Result<Offer> {
        let state = ranges(&*self.node.machine)?;
        let through = state.freshen()?;
        let splits = splits(state, usize::from(self.parts).clamp(1, MAX_PARTS))?;
        let mut head = Vec::new();
        put_splits(&splits, &mut head);
        Ok(Offer { id: self.node.env.entropy().max(1), through, head })
    }

    /// There is nothing to go on with that a new one would not have.
    fn resume(&self, _id: u64) -> Option<Offer> {
        None
    }

    fn read(&self, _id: u64, question: &[u8], answer: &mut Vec<u8>) -> Result<Option<Vlsn>> {
        let Question { range, had, bytes } = Question::decode(question)?;
        let state = ranges(&*self.node.machine)?;
        let mut left = bytes.min(MAX_PIECE_BYTES) as usize;
        let (mut pieces, mut is_first, mut at_end) = (Vec::new(), true, true);
        let moment = state.read(&range, &mut |key, value| {
            let cost = key.len() + Piece::OVERHEAD;
            if !is_first && cost >= left {
                at_end = false;
                return false;
            }
            // Shorter than what is here of it: then it is another one by now, and the redo brings it.
            let had = if is_first && key == range.from { had } else { 0 };
            let rest = &value[value.len().min(usize::try_from(had).unwrap_or(usize::MAX))..];
            let room = left.saturating_sub(cost).max(if is_first { LEAST_BYTES } else { 0 });
            let taken = &rest[..rest.len().min(room)];
            let goes_on = taken.len() < rest.len();
            Piece { goes_on, key, value: taken }.put(&mut pieces);
            left = left.saturating_sub(cost + taken.len());
            (is_first, at_end) = (false, !goes_on);
            !goes_on
        })?;
        if moment.token.len() > MAX_TOKEN_BYTES {
            let cause =
                format!("a token of {} bytes, at most {MAX_TOKEN_BYTES}", moment.token.len());
            return Err(RepError::state_machine(cause));
        }
        answer.put_short_bytes(&moment.token);
        answer.put_bool(at_end);
        answer.put_bytes(&pieces);
        Ok(Some(moment.vlsn))
    }

    fn release(&self, _id: u64) {}
}
