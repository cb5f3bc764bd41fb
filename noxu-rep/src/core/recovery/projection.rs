//! Projection: what an operator is shown of each replica. Derived from the engine's state, and
//! never looked at by it.

use std::fmt;

use noxu_util::Vlsn;

use crate::core::recovery::decide::{Bounds, Refusal};
use crate::core::recovery::event::{FailReason, Kind, Progress, RecoveryId};
use crate::core::recovery::session::Live;
use crate::core::recovery::{Replica, State};

/// How far the session of a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The session.
    pub session: RecoveryId,
    /// What is there.
    pub progress: Progress,
    /// It does not end below.
    pub target: Vlsn,
    /// Where it ends, once that is settled.
    pub cut: Option<Vlsn>,
}

/// Why a replica is not level although nobody works on it right now, or why it may not stay level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its last session failed so; the next is on its way.
    Failed(FailReason),
    /// It streams, this many entries behind.
    Lagging(u64),
}

/// A replica's state in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// Not connected.
    Absent,
    /// Connected, not looked at yet.
    Unknown,
    /// Streaming, and close.
    Healthy,
    /// Entries are being sent to get it level.
    CatchingUp(Shown),
    /// Its log is being replaced.
    Rebuilding(Shown),
    /// Not level.
    Degraded(Reason),
    /// Left as it is.
    Refused(Refusal),
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Unknown => f.write_str("unknown"),
            Self::Healthy => f.write_str("healthy"),
            Self::CatchingUp(Shown { progress, target, .. }) => {
                write!(f, "catching up: durable {} of {target}", progress.durable)
            }
            Self::Rebuilding(Shown { progress, target, .. }) => {
                let Progress { base_bytes, durable, .. } = progress;
                write!(f, "rebuilding: {base_bytes} bytes copied, durable {durable} of {target}")
            }
            Self::Degraded(Reason::Failed(why)) => write!(f, "degraded: {why}"),
            Self::Degraded(Reason::Lagging(lag)) => write!(f, "degraded: {lag} entries behind"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

pub(super) fn project(replica: &Replica, bounds: Option<Bounds>, small_lag: u64) -> Projection {
    let last = bounds.map_or(noxu_util::NULL_VLSN, |bounds| bounds.last);
    match &replica.state {
        State::Absent => Projection::Absent,
        State::Asking { .. } | State::Resting { .. } => match replica.evidence.last {
            Some(reason) => Projection::Degraded(Reason::Failed(reason)),
            None => Projection::Unknown,
        },
        State::Live(live) => shown(live),
        State::Streaming { durable, .. } => match last.since(*durable) {
            lag if lag > small_lag => Projection::Degraded(Reason::Lagging(lag)),
            _ => Projection::Healthy,
        },
        State::Refused(refusal) => Projection::Refused(*refusal),
    }
}

fn shown(live: &Live) -> Projection {
    let Live { session, progress, cut, .. } = *live;
    let shown = Shown { session: session.id, progress, target: session.target, cut };
    match session.kind {
        Kind::Rebuild { .. } => Projection::Rebuilding(shown),
        Kind::KeepUp { .. } | Kind::CatchUp { .. } => Projection::CatchingUp(shown),
    }
}
