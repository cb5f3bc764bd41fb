//! Outcome: a commit as whoever wrote it remembers it, and what became of it.

use std::time::Duration;

use noxu_util::{Fingerprint, Term, Vlsn};

/// Names one commit for ever: no other entry has its place and its fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitId {
    /// VLSN of the commit entry.
    pub vlsn: Vlsn,
    /// Term it was written in.
    pub term: Term,
    /// Fingerprint of the log through it.
    pub fingerprint: Fingerprint,
}

impl std::fmt::Display for CommitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of term {}", self.vlsn, self.term)
    }
}

/// What became of a commit, as far as one node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    /// A quorum holds it: it is never lost.
    Durable,
    /// It is in no history that can go on: it never counts.
    RolledBack,
    /// Neither is certain yet.
    Open,
    /// The log does not reach down to it any more, so this node cannot tell.
    Forgotten,
}

/// Why a commit was left without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// Too few acknowledgements came.
    #[error("not acknowledged within {0:?}")]
    TimedOut(Duration),
    /// The node stopped being master before they came.
    #[error("its master left before it was acknowledged ({0})")]
    MastershipEnded(String),
}
