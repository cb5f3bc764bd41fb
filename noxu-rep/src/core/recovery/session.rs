//! Live: one session between its command and its end.
//!
//! # States
//! Issued -Accepted-> Running -> completed or failed, which is the replica's state and no longer here
//!
//! # Invariants
//! - `target <= cut`, and the cut does not change once it is issued: what is left to do then is
//!   finite, whatever is written meanwhile.
//! - Progress only grows.
//!
//! # Not here: what a failure leaves behind (decide.rs), the pin (recovery.rs).

use noxu_util::Vlsn;

use crate::core::commits::Now;
use crate::core::recovery::event::{Kind, Progress, Session};
use crate::core::recovery::mutant::{self, Mutant};

/// Whether the replica has taken a session up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not yet.
    Issued,
    /// It has.
    Running,
}

/// A session that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    pub(super) session: Session,
    pub(super) phase: Phase,
    pub(super) progress: Progress,
    pub(super) cut: Option<Vlsn>,
    /// The replica has no vote: it is given only what is durable on a quorum.
    pub(super) is_limited: bool,
    /// Without a movement until then it has failed.
    pub(super) deadline: Now,
}

impl Live {
    /// A session that starts behind `durable`.
    pub(super) fn new(session: Session, durable: Vlsn, is_limited: bool, deadline: Now) -> Self {
        let progress = Progress { durable, ..Progress::default() };
        Self { session, phase: Phase::Issued, progress, cut: None, is_limited, deadline }
    }

    pub(super) const fn is_rebuild(&self) -> bool {
        matches!(self.session.kind, Kind::Rebuild { .. })
    }

    /// Takes what has grown. Says whether the end is nearer: while a base is copied only the base
    /// brings it nearer, however many new entries arrive beside it, and then what the cut still
    /// lacks.
    pub(super) fn advance(&mut self, to: Progress) -> bool {
        let before = self.progress;
        self.progress = Progress {
            base_bytes: before.base_bytes.max(to.base_bytes),
            base_done: before.base_done || to.base_done,
            durable: before.durable.max(to.durable),
        };
        let after = self.progress;
        if self.is_rebuild() && !before.base_done {
            return after.base_done || after.base_bytes > before.base_bytes;
        }
        after.durable > before.durable && self.cut.is_none_or(|cut| before.durable < cut)
    }

    /// Without a copy the base is what the master held at the start.
    fn base_done(&self) -> bool {
        if self.is_rebuild() {
            self.progress.base_done
        } else {
            self.progress.durable >= self.session.target
        }
    }

    /// Settles where the session ends, if it is time to: the replica is close, or has what there
    /// was at the start and will perhaps never be close.
    pub(super) fn take_cut(&mut self, last: Vlsn, small_lag: u64) -> Option<Vlsn> {
        let close = last.since(self.progress.durable) <= small_lag;
        if self.phase != Phase::Running || self.cut.is_some() || !(close || self.base_done()) {
            return None;
        }
        self.cut = Some(last.max(self.session.target));
        self.cut
    }

    /// Whether a replica that is durable through `durable` has everything.
    pub(super) fn is_complete(&self, durable: Vlsn) -> bool {
        if mutant::is_on(Mutant::CompletedAcrossGap) {
            return self.phase == Phase::Running;
        }
        let base_done = !self.is_rebuild() || self.progress.base_done;
        // The cut is not below the target, which is the base where nothing is copied.
        base_done && self.cut.is_some_and(|cut| durable >= cut)
    }

    pub(super) fn check_invariants(&self) {
        let target = self.session.target;
        assert!(self.cut.is_none_or(|cut| cut >= target), "cut {:?} below {target}", self.cut);
        assert!(self.cut.is_none() || self.phase == Phase::Running, "a cut before Accepted");
    }
}
