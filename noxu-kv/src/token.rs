//! CommitToken and Consistency: what a reader asks for, on any node.

use std::time::Duration;

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
