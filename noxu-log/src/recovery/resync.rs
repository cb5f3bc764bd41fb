//! Resync: finds where the chain goes on behind an entry that cannot be read.
//!
//! A damaged entry hides where the next one begins. Three things show it, the surest first:
//! 1. The damaged entry's own header, if only its body is damaged: its length leads to the next
//!    entry, and that one continues the fingerprint in the header, which proves both.
//! 2. The tail mark: the entry after it continues the mark's fingerprint, wherever it stands.
//! 3. An entry further on with a valid checksum, a number that fits its distance (an entry takes at
//!    least 32 bytes) and a term that does not fall. Its own fingerprint cannot be checked before
//!    the entries between are back, so it counts as missing itself; what follows it is checked
//!    against it. A run that reaches the marked entry with another fingerprint is none of the log.

use noxu_util::{Fingerprint, Vlsn};

use crate::entry::{ChainState, ENTRY_HEADER_BYTES, EntryFault, EntryHeader};
use crate::tail_mark::Mark;

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

/// Looks for the place where a chain goes on that broke at `bad`, an offset in `bytes`. `before` is
/// the chain up to there. No entry beyond `last` counts as missing, and `segment_last`, if the next
/// segment tells it, is the last one here: nothing goes on behind it.
pub(crate) fn resume(
    bytes: &[u8],
    bad: usize,
    before: &ChainState,
    mark: Option<&Mark>,
    last: Vlsn,
    segment_last: Option<Vlsn>,
) -> Option<Resumed> {
    let goes_on_behind = |vlsn: Vlsn| segment_last.is_none_or(|last| vlsn < last);
    let mark = mark.filter(|mark| goes_on_behind(mark.vlsn));
    own_header(bytes, bad, before)
        .filter(|resumed| goes_on_behind(resumed.after.vlsn))
        .or_else(|| further_on(bytes, bad, before, mark, last))
}

/// 1: the header is whole, only the body is not.
fn own_header(bytes: &[u8], bad: usize, before: &ChainState) -> Option<Resumed> {
    let header = header_at(bytes, bad)?;
    if header.vlsn != before.vlsn.next() || header.term < before.term {
        return None;
    }
    let after = header.chain();
    let at = bad.checked_add(header.entry_bytes())?;
    let mut chain = after;
    chain.check_next(bytes.get(at..)?, u32::MAX).ok()?;
    Some(Resumed { after, after_offset: bad, at })
}

/// 2 and 3.
fn further_on(
    bytes: &[u8],
    bad: usize,
    before: &ChainState,
    mark: Option<&Mark>,
    last: Vlsn,
) -> Option<Resumed> {
    // Bytes that may still be hashed: what looks like many long entries must not take for ever. A
    // place that is given up is as if nothing valid followed, and more is fetched from a peer.
    let mut budget = bytes.len() * HASHED_PER_BYTE;
    (bad + 1..bytes.len().saturating_sub(ENTRY_HEADER_BYTES - 1)).find_map(|at| {
        let header = header_at(bytes, at)?;
        // Entries of 32 bytes and more lie between: a number beyond what fits is chance.
        let between = header.vlsn.sequence() - before.vlsn.sequence() - 1;
        let room = ((at - bad) / ENTRY_HEADER_BYTES) as i64;
        if !(1..=room).contains(&between) || header.term < before.term {
            return None;
        }
        if header.entry_bytes() > bytes.len() - at {
            return None;
        }
        budget = budget.checked_sub(header.entry_bytes())?;
        if let Some(mark) = mark
            && header.vlsn == mark.vlsn.next()
        {
            let after =
                ChainState { vlsn: mark.vlsn, term: mark.term, fingerprint: mark.fingerprint };
            let mut chain = after;
            chain.check_next(&bytes[at..], u32::MAX).ok()?;
            return Some(Resumed { after, after_offset: bad, at });
        }
        if header.vlsn > last {
            return None;
        }
        let end = at + valid_but_for_its_chain(&bytes[at..], &header)?;
        let after = header.chain();
        let leads_astray = mark.is_some_and(|mark| {
            fingerprint_of(&bytes[end..], after, mark.vlsn, &mut budget)
                .is_some_and(|found| found != mark.fingerprint)
        });
        (!leads_astray).then_some(Resumed { after, after_offset: at, at: end })
    })
}

/// Length of the entry at the front of `bytes`, if everything is right about it but the one thing
/// that cannot be checked: the fingerprint that it continues.
fn valid_but_for_its_chain(bytes: &[u8], header: &EntryHeader) -> Option<usize> {
    let mut chain =
        ChainState { vlsn: header.vlsn.prev(), term: header.term, fingerprint: Fingerprint::ZERO };
    match chain.check_next(bytes, u32::MAX) {
        Ok(_) | Err(EntryFault::Chain { .. }) => Some(header.entry_bytes()),
        Err(_) => None,
    }
}

/// Fingerprint of entry `vlsn`, if the chain from `chain` on reaches it.
fn fingerprint_of(
    mut bytes: &[u8],
    mut chain: ChainState,
    vlsn: Vlsn,
    budget: &mut usize,
) -> Option<Fingerprint> {
    while chain.vlsn < vlsn {
        let entry = chain.check_next(bytes, u32::MAX).ok()?;
        *budget = budget.saturating_sub(entry.header.entry_bytes());
        bytes = &bytes[entry.header.entry_bytes()..];
    }
    (chain.vlsn == vlsn).then_some(chain.fingerprint)
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
        assert_eq!(resume(&bytes, 0, &ChainState::default(), None, Vlsn::new(1 << 40), None), None);
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
            let resumed =
                resume(&bytes, 0, &chains[0], Some(&mark(at)), Vlsn::new(at as i64), None);
            let first_real = ENTRY_HEADER_BYTES + bodies[0].len();
            let resumed = resumed.unwrap();
            assert!(resumed.at > first_real, "mark at {at}: {resumed:?}");
            assert_eq!(resumed.after, chains[resumed.after.vlsn.sequence() as usize]);
        }
    }
}
