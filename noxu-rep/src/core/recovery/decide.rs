//! Decide: how a replica gets level with its master, from what its log looks like. First row that
//! matches; each is a test.
//!
//! S is the first entry that the master keeps, H its last; M the end of what both logs hold alike.
//!
//! | # | the replica | decision |
//! |---|---|---|
//! | 4 | shares nothing, although the master still holds what it holds and knows durable | refuse: foreign or corrupt |
//! | 5 | parts from the master at M, below what it holds and knows durable | refuse |
//! | 1 | has the marker of an unfinished restore | rebuild, resumed |
//! | 2 | could not catch up with this master before ([`Evidence::is_sticky`]) | rebuild |
//! | 3 | has an empty log | catch up from 1 if S is 1, else rebuild |
//! | 4 | shares nothing, and what it holds and knows durable is below S | rebuild |
//! | 6 | agrees up to M, and M + 1 is below S | rebuild |
//! | 7 | ends at M, and H is close | keep up |
//! | 8 | agrees up to M | catch up from M + 1, cutting what it has beyond M |
//!
//! M is the replica's end if the search found agreement there, although only a sync entry is a
//! matchpoint: what lies between the newest sync entry and the end is then no tail to be cut, and
//! rule 5 must not take it for one. A lagging replica hears of a DTVLSN beyond its own end; of what
//! is durable it *holds* no more than its log, which is what rules 4 and 5 ask about.
//!
//! The numbers are those of RECOVERY.md. What must not be touched comes first here: neither a restore that
//! was begun under another master nor failed attempts make a log that holds something durable of its
//! own less worth keeping.
//!
//! S counts the anchor, the position before the first entry kept: a replica that ends there agrees
//! with it, and M + 1 = S is no gap.
//!
//! # Not here: finding M (core/syncup.rs).
//! # See: RECOVERY.md "Decision engine"; core/rollback.rs, the replica's own table.

use std::fmt;

use noxu_util::{Incarnation, NULL_VLSN, Vlsn};

use crate::core::recovery::event::{FailReason, Kind, RecoveryId};
use crate::core::recovery::mutant::{self, Mutant};
use crate::wire::message::Era;

/// What both logs have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The replica's log holds no entry and no anchor.
    Empty,
    /// Both hold this sync entry, or this anchor.
    Matchpoint {
        /// The newest such.
        matchpoint: Vlsn,
        /// They also agree on the replica's last entry.
        to_end: bool,
    },
    /// The replica's log is not empty, and no entry of it agrees.
    Nothing,
}

/// A replica's answer to a question for facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The mastership that it has promised to follow, or follows. A bare term would not do: the
    /// terms of another epoch are others.
    pub era: Era,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// End of its log, all of it synced.
    pub durable: Vlsn,
    /// The highest of what it heard of as durable on a majority, and its commit floor.
    pub known_dtvlsn: Vlsn,
    /// What its log has in common with the master's.
    pub agreement: Agreement,
    /// The session whose restore it has begun and not finished.
    pub restore_marker: Option<RecoveryId>,
}

impl Facts {
    /// Whether no log looks like this.
    pub fn are_contradictory(&self) -> bool {
        match self.agreement {
            Agreement::Empty => !self.durable.is_null(),
            Agreement::Matchpoint { matchpoint, .. } => matchpoint > self.durable,
            Agreement::Nothing => false,
        }
    }

    /// Whether they go with a comparison after which the replica is to be fed from `start`, if it found
    /// a matchpoint.
    pub fn agree_with(&self, start: Option<Vlsn>) -> bool {
        match self.agreement {
            Agreement::Nothing => start.is_none(),
            Agreement::Empty => start.is_none_or(|start| start == NULL_VLSN.next()),
            Agreement::Matchpoint { to_end: true, .. } => start == Some(self.durable.next()),
            Agreement::Matchpoint { matchpoint, .. } => start == Some(matchpoint.next()),
        }
    }
}

/// The master's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// First entry kept; 1 for an empty log without an anchor.
    pub first: Vlsn,
    /// Last entry; NULL for an empty log.
    pub last: Vlsn,
    /// The DTVLSN.
    pub dtvlsn: Vlsn,
}

impl Bounds {
    /// Where the log ends for a replica; one without a vote is given nothing beyond DTVLSN.
    pub(super) fn end_for(&self, is_limited: bool) -> Vlsn {
        if is_limited { self.last.min(self.dtvlsn) } else { self.last }
    }
}

/// What earlier sessions with this master, in this era and of this incarnation, have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evidence {
    /// Sessions that kept or caught up and failed, since the last that completed.
    pub failed_catch_ups: u32,
    /// Sessions that failed otherwise: rebuilds, a full disk, an order. No budget bounds these, so
    /// the next one waits.
    pub failed_others: u32,
    /// The master's log did not stay long enough.
    pub log_lost: bool,
    /// The last failure.
    pub last: Option<FailReason>,
}

impl Evidence {
    /// Whether only a rebuild is left: facts, however good, do not take this back.
    pub fn is_sticky(&self, attempts: u32) -> bool {
        self.log_lost || self.failed_catch_ups >= attempts
    }

    /// A session failed. Says whether the next one is to wait.
    pub(super) fn note(&mut self, rebuild: bool, reason: FailReason) -> bool {
        self.last = Some(reason);
        self.log_lost |= matches!(reason, FailReason::LogRecycled | FailReason::PinLost);
        let no_fault_of_the_way = matches!(reason, FailReason::NoSpace | FailReason::Cancelled);
        if rebuild || no_fault_of_the_way {
            self.failed_others = self.failed_others.saturating_add(1);
            return true;
        }
        self.failed_catch_ups = self.failed_catch_ups.saturating_add(1);
        false
    }
}

/// Why a replica is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its log has nothing in common with one that reaches down to it.
    Foreign {
        /// What it holds and knows durable.
        durable: Vlsn,
    },
    /// Entries that were reported durable would be cut.
    BelowDurable {
        /// Where the logs part.
        matchpoint: Vlsn,
        /// What it holds and knows durable.
        durable: Vlsn,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { durable } => {
                write!(f, "its log has nothing in common with this one; durable {durable}")
            }
            Self::BelowDurable { matchpoint, durable } => {
                write!(f, "the logs part at {matchpoint}, durable {durable}")
            }
        }
    }
}

impl Refusal {
    /// Where the logs part, NULL if they have nothing in common; and what may not be rolled back.
    pub const fn parts(self) -> (Vlsn, Vlsn) {
        match self {
            Self::Foreign { durable } => (NULL_VLSN, durable),
            Self::BelowDurable { matchpoint, durable } => (matchpoint, durable),
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Begin a session of this kind.
    Start(Kind),
    /// Touch nothing: an operator must decide.
    Refuse(Refusal),
}

/// Where the line between keeping up and catching up is, and after how many failures neither is
/// tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Most entries that a replica may lack to keep up.
    pub small_lag: u64,
    /// Failed catch-ups that make a rebuild.
    pub attempts: u32,
}

const REBUILD: Decision = Decision::Start(Kind::Rebuild { resume: None });

/// The table.
pub fn decide(
    facts: &Facts,
    bounds: Bounds,
    evidence: Evidence,
    thresholds: Thresholds,
) -> Decision {
    let first = bounds.first.max(NULL_VLSN.next());
    if let Some(refusal) = refusal(facts, first) {
        return Decision::Refuse(refusal);
    }
    if facts.restore_marker.is_some() {
        return Decision::Start(Kind::Rebuild { resume: facts.restore_marker });
    }
    if evidence.is_sticky(thresholds.attempts) && !mutant::is_on(Mutant::EvidenceForgotten) {
        return REBUILD;
    }
    let agreed = match facts.agreement {
        Agreement::Empty if first == NULL_VLSN.next() => {
            return Decision::Start(Kind::CatchUp { from: first, truncate_to: None });
        }
        Agreement::Empty | Agreement::Nothing => return REBUILD,
        Agreement::Matchpoint { to_end: true, .. } => facts.durable,
        Agreement::Matchpoint { matchpoint, to_end: false } => matchpoint,
    };
    let from = agreed.next();
    if from < first {
        return REBUILD;
    }
    let level = agreed == facts.durable
        || mutant::is_on(Mutant::LongerIsLevel) && facts.durable >= bounds.last;
    if level && bounds.last.since(agreed) <= thresholds.small_lag {
        return Decision::Start(Kind::KeepUp { from });
    }
    let truncate_to = (agreed < facts.durable).then_some(agreed);
    Decision::Start(Kind::CatchUp { from, truncate_to })
}

/// Why nothing may be done to a replica's log, if the master keeps entries from `first` on: what it
/// holds and knows durable is not what the master has there.
fn refusal(facts: &Facts, first: Vlsn) -> Option<Refusal> {
    let durable = facts.known_dtvlsn.min(facts.durable);
    match facts.agreement {
        Agreement::Nothing if first <= durable => Some(Refusal::Foreign { durable }),
        Agreement::Matchpoint { matchpoint, to_end: false } if matchpoint < durable => {
            Some(Refusal::BelowDurable { matchpoint, durable })
        }
        Agreement::Empty | Agreement::Nothing | Agreement::Matchpoint { .. } => None,
    }
}
