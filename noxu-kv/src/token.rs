//! CommitToken and Consistency: what a reader asks for, on any node.

use std::time::Duration;

use noxu_rep::CommitId;
use noxu_util::{Fingerprint, Term, Vlsn};

/// Names a commit: its place in the log and the fingerprint of the history that led to it, so that
/// a node on another history can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitToken {
    /// VLSN of the commit entry.
    pub vlsn: Vlsn,
    /// Term it was written in.
    pub term: Term,
    /// Fingerprint of the log through it.
    pub fingerprint: Fingerprint,
}

impl From<CommitId> for CommitToken {
    fn from(commit: CommitId) -> Self {
        let CommitId { vlsn, term, fingerprint } = commit;
        Self { vlsn, term, fingerprint }
    }
}

impl From<CommitToken> for CommitId {
    fn from(token: CommitToken) -> Self {
        let CommitToken { vlsn, term, fingerprint } = token;
        Self { vlsn, term, fingerprint }
    }
}

/// How new a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// Whatever this node has applied.
    None,
    /// At least the commit of the token; waits up to the timeout for it. Reads one's own writes on
    /// any node.
    At(CommitToken, Duration),
}
