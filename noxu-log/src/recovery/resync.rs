//! Resync: finds where the chain goes on behind an entry that cannot be read.
//!
//! A damaged entry hides where the next one begins. Three things show it, the surest first:
//! 1. The damaged entry's own header, if only its body is damaged: its length leads to the next
//!    entry, and that one continues the fingerprint in the header, which proves both.
//! 2. The tail mark: the entry after it continues the mark's fingerprint, wherever it stands.
//! 3. An entry further on with a valid checksum, a number that fits its distance (an entry takes at
//!    least 32 bytes) and a term that does not fall. Its own fingerprint cannot be checked before
//!    the entries between are back, so it counts as missing itself; what follows it is checked
//!    against it.
//!
//! A body may hold bytes that look like entries: somebody's copy of a log, or made so on purpose. So
//! 3 is believed only if the run leads to a place where the chain is known: the tail mark, or what
//! the next segment continues. Runs that lead nowhere count as missing, even if they are the log's own
//! between two damaged places. Only where nothing is known of the chain further on, which takes an
//! unreadable mark, is the first run believed that there is.
//!
//! Bytes made to look like many long entries would take long to look through: the work is bounded,
//! and what was not found within it counts as missing.

use std::collections::HashSet;

use noxu_util::{Fingerprint, Vlsn};

use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryHeader};
use crate::writing::tail_mark::Mark;

/// How often each byte behind a damaged entry may be hashed, on average, in search of the next one.
const HASHED_PER_BYTE: usize = 8;

/// Where the chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// The last entry that is missing, with the fingerprint that the chain goes on from.
    pub(crate) after: ChainState,
    /// Where that entry begins, in the bytes given.
    pub(crate) after_offset: usize,
    /// Where the first entry that is there again would begin, in the bytes given.
    pub(crate) at: usize,
}

/// Looks in `bytes`, at whose front a chain broke, for the place where it goes on. `before` is the
/// chain up to there, `ends` are known places of it within these bytes. No entry beyond `last` counts
/// as missing, and `segment_last`, if the next segment tells it, is the last one here: nothing goes on
/// behind it.
pub(crate) fn resume(
    bytes: &[u8],
    before: &ChainState,
    mark: Option<&Mark>,
    ends: &[ChainState],
    last: Vlsn,
    segment_last: Option<Vlsn>,
) -> Option<Resumed> {
    let goes_on_behind = |vlsn: Vlsn| segment_last.is_none_or(|last| vlsn < last);
    let mark = mark.filter(|mark| goes_on_behind(mark.vlsn));
    own_header(bytes, before)
        .filter(|resumed| goes_on_behind(resumed.after.vlsn))
        .or_else(|| Search::new(bytes, ends).further_on(before, mark, last))
}

/// 1: the header is whole, only the body is not.
fn own_header(bytes: &[u8], before: &ChainState) -> Option<Resumed> {
    let header = header_at(bytes, 0)?;
    if header.vlsn != before.vlsn.next() || header.term < before.term {
        return None;
    }
    let after = header.chain();
    let at = header.entry_bytes();
    let mut chain = after;
    chain.check_next(bytes.get(at..)?, u32::MAX).ok()?;
    Some(Resumed { after, after_offset: 0, at })
}

/// 2 and 3.
struct Search<'a> {
    bytes: &'a [u8],
    ends: &'a [ChainState],
    /// Entries of runs that are not the log's, by offset.
    strays: HashSet<usize>,
    /// Bytes that may still be verified.
    work_left: usize,
}

/// Where a run of entries leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// To a known place of the chain.
    Home,
    /// To the number of one, with another fingerprint.
    Astray,
    /// To none.
    Nowhere,
}

impl<'a> Search<'a> {
    fn new(bytes: &'a [u8], ends: &'a [ChainState]) -> Self {
        Self { bytes, ends, strays: HashSet::new(), work_left: bytes.len() * HASHED_PER_BYTE }
    }

    fn further_on(
        mut self,
        before: &ChainState,
        mark: Option<&Mark>,
        last: Vlsn,
    ) -> Option<Resumed> {
        let can_be_proven = self.ends.iter().any(|end| end.vlsn > before.vlsn);
        (1..self.bytes.len().saturating_sub(ENTRY_HEADER_BYTES - 1)).find_map(|at| {
            let header = header_at(self.bytes, at)?;
            // Entries of 32 bytes and more lie between: a number beyond what fits is chance.
            let between = header.vlsn.sequence() - before.vlsn.sequence() - 1;
            let room = (at / ENTRY_HEADER_BYTES) as i64;
            if !(1..=room).contains(&between)
                || header.term < before.term
                || header.entry_bytes() > self.bytes.len() - at
                || self.strays.contains(&at)
            {
                return None;
            }
            self.work_left = self.work_left.checked_sub(header.entry_bytes())?;
            if let Some(mark) = mark
                && header.vlsn == mark.vlsn.next()
            {
                let after = mark.chain();
                let mut chain = after;
                chain.check_next(&self.bytes[at..], u32::MAX).ok()?;
                return Some(Resumed { after, after_offset: 0, at });
            }
            if header.vlsn > last {
                return None;
            }
            let end = at + valid_but_for_its_chain(&self.bytes[at..], &header)?;
            let after = header.chain();
            let believed = match self.follow(end, after) {
                Leads::Home => true,
                Leads::Astray => false,
                Leads::Nowhere => !can_be_proven,
            };
            believed.then_some(Resumed { after, after_offset: at, at: end })
        })
    }

    /// Follows the run that goes on at `at` after `chain`.
    fn follow(&mut self, mut at: usize, mut chain: ChainState) -> Leads {
        let mut run = Vec::new();
        let leads = loop {
            if let Some(end) = self.ends.iter().find(|end| end.vlsn == chain.vlsn) {
                let is_it = end.fingerprint == chain.fingerprint;
                break if is_it { Leads::Home } else { Leads::Astray };
            }
            let next = self.bytes.get(at..).unwrap_or_default();
            let bytes = header_at(next, 0).map_or(0, |header| header.entry_bytes());
            let Some(left) = self.work_left.checked_sub(bytes.min(next.len())) else {
                break Leads::Nowhere;
            };
            self.work_left = left;
            let Ok(entry) = chain.check_next(next, u32::MAX) else { break Leads::Nowhere };
            run.push(at);
            at += entry.header.entry_bytes();
        };
        if leads != Leads::Home {
            self.strays.extend(run);
        }
        leads
    }
}

/// Length of the entry at the front of `bytes`, if everything is right about it but the one thing
/// that cannot be checked: the fingerprint that it continues.
pub(super) fn valid_but_for_its_chain(bytes: &[u8], header: &EntryHeader) -> Option<usize> {
    let mut chain =
        ChainState { vlsn: header.vlsn.prev(), term: header.term, fingerprint: Fingerprint::ZERO };
    match chain.check_next(bytes, u32::MAX) {
        Ok(_) | Err(EntryFault::Chain { .. }) => Some(header.entry_bytes()),
        Err(_) => None,
    }
}

fn header_at(bytes: &[u8], at: usize) -> Option<EntryHeader> {
    EntryHeader::decode(bytes.get(at..)?.first_chunk::<ENTRY_HEADER_BYTES>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryFlags, EntryKind, NewEntry};

    /// Entries with these bodies, and the chain before each of them and after the last.
    fn encode(bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<ChainState>) {
        let mut chain = ChainState { term: noxu_util::Term::new(1), ..ChainState::default() };
        let (mut bytes, mut chains) = (Vec::new(), vec![chain]);
        for body in bodies {
            let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body);
            let (header, _) = entry.place(chain.vlsn.next(), chain.term, chain.fingerprint);
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(body);
            chain = EntryHeader::decode(&header).unwrap().chain();
            chains.push(chain);
        }
        (bytes, chains)
    }

    #[test]
    fn what_looks_like_many_long_entries_is_given_up_in_bounded_time() {
        // Headers with lengths that fit and numbers that could be, one every 32 bytes.
        let len = 4 << 20;
        let mut bytes = vec![0; len];
        for at in (ENTRY_HEADER_BYTES..len).step_by(ENTRY_HEADER_BYTES) {
            let body_len = (len - at - ENTRY_HEADER_BYTES) as u32;
            bytes[at + 4..at + 8].copy_from_slice(&body_len.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&2u64.to_le_bytes());
            bytes[at + 16..at + 20].copy_from_slice(&1u32.to_le_bytes());
        }
        let begun = std::time::Instant::now();
        assert_eq!(
            resume(&bytes, &ChainState::default(), None, &[], Vlsn::new(1 << 40), None),
            None
        );
        // Every one of them hashed would be 275 GiB.
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }

    #[test]
    fn the_image_of_a_log_inside_a_damaged_body_is_not_taken_for_the_log() {
        // Entry 1 holds a copy of a log with the numbers that come next, and is damaged in its header.
        let (image, _) = encode(&[vec![], vec![1; 10], vec![2; 10], vec![3; 10]]);
        let second = ENTRY_HEADER_BYTES;
        let bodies = [image[second..].to_vec(), vec![4; 50], vec![5; 50], vec![6; 50]];
        let (mut bytes, chains) = encode(&bodies);
        bytes[24] ^= 1;
        let mark = |vlsn: usize| Mark {
            vlsn: chains[vlsn].vlsn,
            term: chains[vlsn].term,
            fingerprint: chains[vlsn].fingerprint,
            ..Mark::default()
        };
        for at in 2..=4 {
            let (mark, last) = (mark(at), Vlsn::new(at as i64));
            let resumed = resume(&bytes, &chains[0], Some(&mark), &[mark.chain()], last, None);
            let first_real = ENTRY_HEADER_BYTES + bodies[0].len();
            let resumed = resumed.unwrap();
            assert!(resumed.at > first_real, "mark at {at}: {resumed:?}");
            assert_eq!(resumed.after, chains[resumed.after.vlsn.sequence() as usize]);
        }
    }
}
