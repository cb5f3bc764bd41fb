//! Mending: what a log tells others of entries that they cannot read any more, and how it takes its
//! own back.
//!
//! # Not here: who asks whom, what an answer is worth and when a damaged tail is cut off
//! (core/repair.rs, core/node.rs); the proof that bytes belong where they go (noxu-log's chain).

use bytes::Bytes;
use noxu_log::{ChainState, EntryRun, Log, LogError};
use noxu_util::Vlsn;

use crate::core::repair::{Damage, RepairView, answer};
use crate::error::Result;
use crate::wire::election::{Mark, RepairAnswer, RepairAsk, RepairVerdict};

/// What is damaged above `checkpoint`: what the state machine still needs.
pub fn damages(log: &Log, checkpoint: Vlsn) -> Vec<Damage> {
    let above = log.faulty().into_iter().filter(|faulty| faulty.last > checkpoint);
    above
        .map(|faulty| Damage {
            first: faulty.first,
            last: faulty.last,
            before: mark(&faulty.before),
            after: mark(&faulty.after),
        })
        .collect()
}

/// The answer of `log` to a voter that asks for entries, with at most `max_bytes` of them.
///
/// # Errors
/// The log's, if what it holds turns out to be unreadable only now.
pub fn answer_ask(
    log: &Log,
    ask: &RepairAsk,
    installing: bool,
    max_bytes: usize,
) -> Result<RepairAnswer> {
    let control = log.control().state();
    let verdict = answer(&View { log, installing, uncertain: control.head_uncertain }, ask);
    let through = match verdict {
        RepairVerdict::Have => Some(ask.last),
        RepairVerdict::Part { through } => Some(through),
        RepairVerdict::Never | RepairVerdict::Silent(_) => None,
    };
    let whole = match through {
        Some(through) => entry_bytes(log, ask.first, through)?,
        None => Vec::new(),
    };
    let rest = whole.get(ask.offset as usize..).unwrap_or_default();
    Ok(RepairAnswer {
        nonce: ask.nonce,
        first: ask.first,
        verdict,
        commit_floor: control.commit_floor,
        total: whole.len() as u32,
        offset: ask.offset,
        bytes: rest[..rest.len().min(max_bytes)].to_vec(),
    })
}

/// Puts the entries of `damage` back; durable on return. False if these bytes are not they: then
/// nothing was changed.
///
/// # Errors
/// The log's own.
pub fn put_back(log: &Log, damage: &Damage, bytes: Vec<u8>) -> Result<bool> {
    let before = ChainState {
        vlsn: damage.first.prev(),
        term: damage.before.term,
        fingerprint: damage.before.fingerprint,
    };
    let max_body_bytes = log.config().max_body_bytes;
    let Ok(run) = EntryRun::verify(Bytes::from(bytes), before, max_body_bytes) else {
        return Ok(false);
    };
    match log.repair(&run) {
        Ok(()) => Ok(true),
        Err(LogError::NotFaulty { .. } | LogError::ChainMismatch { .. }) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

/// The bytes of the entries `first` through `last`, all of which `log` holds.
fn entry_bytes(log: &Log, first: Vlsn, last: Vlsn) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut next = first;
    while next <= last {
        // Cut off meanwhile: what is missing at the end does not fit at the other side either.
        let Some((header, _)) = log.header(next)? else { break };
        let Some(run) = log.read(next, header.entry_bytes())? else { break };
        let len = bytes.len() + header.entry_bytes();
        run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes.truncate(len);
        next = next.next();
    }
    Ok(bytes)
}

fn mark(chain: &ChainState) -> Mark {
    Mark { term: chain.term, fingerprint: chain.fingerprint }
}

/// A log as an answer sees it.
struct View<'a> {
    log: &'a Log,
    installing: bool,
    uncertain: bool,
}

impl RepairView for View<'_> {
    fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    fn is_installing(&self) -> bool {
        self.installing
    }

    fn anchor(&self) -> Vlsn {
        self.log.positions().anchor.vlsn
    }

    fn last(&self) -> Vlsn {
        self.log.positions().last
    }

    fn mark(&self, vlsn: Vlsn) -> Option<Mark> {
        if vlsn.is_null() {
            return Some(Mark::default());
        }
        let anchor = self.log.positions().anchor;
        if vlsn == anchor.vlsn {
            return Some(Mark { term: anchor.term, fingerprint: anchor.fingerprint });
        }
        if let Ok(Some((header, _))) = self.log.header(vlsn) {
            return Some(mark(&header.chain()));
        }
        // What follows a damaged run tells its end.
        let runs = self.log.faulty();
        runs.iter().find(|faulty| faulty.last == vlsn).map(|faulty| mark(&faulty.after))
    }

    fn is_damaged(&self, first: Vlsn, last: Vlsn) -> bool {
        self.log.faulty().iter().any(|faulty| faulty.first <= last && first <= faulty.last)
    }
}

#[cfg(test)]
mod tests {
    use noxu_util::NULL_VLSN;

    use super::*;
    use crate::damaged_log::{damaged, whole};
    use crate::wire::election::{Purpose, Silence};

    fn ask(damage: &Damage, offset: u32) -> RepairAsk {
        RepairAsk {
            purpose: Purpose::Repairing,
            nonce: 3,
            first: damage.first,
            last: damage.last,
            before: damage.before,
            after: damage.after,
            offset,
        }
    }

    #[test]
    fn a_damaged_entry_is_put_back_from_a_peer_in_pieces() {
        let ((log, _), peer) = (damaged(), whole());
        let [damage] = damages(&log, NULL_VLSN)[..] else { panic!("{:?}", log.faulty()) };
        assert_eq!((damage.first, damage.last), (Vlsn::new(5), Vlsn::new(5)));
        assert_eq!(damages(&log, Vlsn::new(5)), [], "the checkpoint holds it");
        let mut bytes = Vec::new();
        loop {
            let got = answer_ask(&peer, &ask(&damage, bytes.len() as u32), false, 50).unwrap();
            assert_eq!((got.verdict, got.nonce), (RepairVerdict::Have, 3));
            assert!(!got.bytes.is_empty() && got.bytes.len() <= 50);
            bytes.extend_from_slice(&got.bytes);
            if bytes.len() == got.total as usize {
                break;
            }
        }
        let mut wrong = bytes.clone();
        wrong[70] ^= 1;
        assert!(!put_back(&log, &damage, wrong).unwrap());
        assert!(!put_back(&log, &damage, bytes[..40].to_vec()).unwrap());
        assert_eq!(damages(&log, NULL_VLSN), [damage]);
        assert!(put_back(&log, &damage, bytes).unwrap());
        assert_eq!(damages(&log, NULL_VLSN), []);
        assert_eq!(log.positions().last_fingerprint, peer.positions().last_fingerprint);
        assert!(log.read(Vlsn::new(5), 1).unwrap().is_some());
    }

    #[test]
    fn who_has_it_damaged_too_or_replaces_its_log_keeps_silent() {
        let ((log, _), peer) = (damaged(), whole());
        let [damage] = damages(&log, NULL_VLSN)[..] else { panic!("{:?}", log.faulty()) };
        let own = answer_ask(&log, &ask(&damage, 0), false, 1 << 20).unwrap();
        assert_eq!(own.verdict, RepairVerdict::Silent(Silence::Damaged));
        let busy = answer_ask(&peer, &ask(&damage, 0), true, 1 << 20).unwrap();
        assert_eq!(busy.verdict, RepairVerdict::Silent(Silence::Installing));
        assert!(own.bytes.is_empty() && busy.bytes.is_empty());
    }
}
