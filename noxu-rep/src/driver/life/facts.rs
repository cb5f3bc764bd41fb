//! Facts: what is true of a node at one moment, for its core.

use std::sync::atomic::Ordering;
use std::time::Duration;

use noxu_log::{EntryKind, Log};
use noxu_util::Vlsn;

use super::Life;
use crate::core::node::{Facts, StreamFacts};
use crate::driver::mending::{Damages, damages};
use crate::mutant::{self, Mutant};
use crate::wire::election::{LogEnd, Mark};

impl Life {
    /// What is true now, if everything through `acked` was acknowledged on the stream that is open
    /// and the state machine has a checkpoint at `checkpoint`. The gate is held, so nobody is asked
    /// who may be waiting for it.
    pub(super) fn facts(&self, acked: Vlsn, checkpoint: Vlsn) -> Facts {
        let ballot = self.log.control().ballot();
        let positions = self.log.positions();
        let stream = self.link.lock().followed.as_ref().map(|followed| StreamFacts {
            master: followed.name.clone(),
            term: followed.term,
            heard: Duration::from_nanos(followed.heard.load(Ordering::Acquire)),
        });
        let restoring = self.public.lock().restoring;
        let stalled_for = self.log.busy_since().map_or(Duration::ZERO, |since| since.elapsed());
        let Damages { all: faulty, needed: damaged } = damages(&self.log, checkpoint);
        let mut head = LogEnd {
            term: positions.last_term,
            vlsn: positions.last,
            fingerprint: positions.last_fingerprint,
        };
        if mutant::is_on(Mutant::FaultyVotesAsShorter)
            && let Some(first) = damaged.first()
        {
            let Mark { term, fingerprint } = first.before;
            head = LogEnd { term, vlsn: first.first.prev(), fingerprint };
        }
        Facts {
            head,
            durable: positions.durable.min(head.vlsn),
            dtvlsn: self.dtvlsn(),
            commit_floor: ballot.commit_floor,
            acked,
            uncertain: ballot.head_uncertain,
            damaged,
            faulty,
            configured: self.is_configured(),
            behind: self.applier.applied() < positions.anchor.vlsn,
            full: self.log.read_only().is_some(),
            stalled_for,
            restoring,
            stream,
            contacts: self.mastership().map_or_else(Vec::new, |master| master.contacts()),
        }
    }

    /// Whether the log, or its anchor, holds a Group entry.
    fn is_configured(&self) -> bool {
        let known = self.configured.load(Ordering::Acquire);
        if !known && holds_group_entry(&self.log) {
            self.configured.store(true, Ordering::Release);
            return true;
        }
        known
    }
}

/// A log begins with the Term entries of masterships in which nothing was written; the first entry
/// that follows is the Group entry, or there is none. An entry that cannot be read may be it.
fn holds_group_entry(log: &Log) -> bool {
    let positions = log.positions();
    if !positions.anchor.group_config.is_empty() {
        return true;
    }
    let mut vlsn = positions.anchor.vlsn.next();
    while vlsn <= positions.last {
        match log.header(vlsn) {
            Ok(Some((header, _))) if header.kind == EntryKind::TERM => vlsn = vlsn.next(),
            Ok(Some((header, _))) => return header.kind == EntryKind::GROUP,
            Ok(None) => return false, // cut off meanwhile
            Err(_) => return true,
        }
    }
    false
}
