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
/// the chain up to there. No entry beyond `last` counts as missing.
pub(crate) fn resume(
    bytes: &[u8],
    bad: usize,
    before: &ChainState,
    mark: Option<&Mark>,
    last: Vlsn,
) -> Option<Resumed> {
    own_header(bytes, bad, before).or_else(|| further_on(bytes, bad, before, mark, last))
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
    (bad + 1..bytes.len().saturating_sub(ENTRY_HEADER_BYTES - 1)).find_map(|at| {
        let header = header_at(bytes, at)?;
        // Entries of 32 bytes and more lie between: a number beyond what fits is chance.
        let between = header.vlsn.sequence() - before.vlsn.sequence() - 1;
        let room = ((at - bad) / ENTRY_HEADER_BYTES) as i64;
        if !(1..=room).contains(&between) || header.term < before.term {
            return None;
        }
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
            fingerprint_of(&bytes[end..], after, mark.vlsn)
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
fn fingerprint_of(mut bytes: &[u8], mut chain: ChainState, vlsn: Vlsn) -> Option<Fingerprint> {
    while chain.vlsn < vlsn {
        let entry = chain.check_next(bytes, u32::MAX).ok()?;
        bytes = &bytes[entry.header.entry_bytes()..];
    }
    (chain.vlsn == vlsn).then_some(chain.fingerprint)
}

fn header_at(bytes: &[u8], at: usize) -> Option<EntryHeader> {
    EntryHeader::decode(bytes.get(at..)?.first_chunk::<ENTRY_HEADER_BYTES>()?)
}
