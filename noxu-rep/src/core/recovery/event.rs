//! Event, Command: all that goes into the recovery engine and all that comes out of it.
//!
//! # Not here: their bytes in a recording (record.rs).

use std::collections::BTreeMap;
use std::fmt;

use noxu_util::{Incarnation, Name, Vlsn};

use crate::core::commits::Now;
use crate::core::recovery::decide::{Bounds, Facts, Refusal};
use crate::wire::message::Era;

/// Number of a session, never given twice by one engine. A restore's marker keeps it on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecoveryId(pub u64);

impl RecoveryId {
    /// Of a restore that no verdict asked for: the node cannot go on with what it has.
    pub const NONE: Self = Self(0);
}

/// Number of a question for facts; the answer repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce(pub u64);

/// Number of a connection with a replica, growing with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link(pub u64);

/// How a replica gets level with the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The ordinary stream goes on at `from`.
    KeepUp {
        /// First entry to send.
        from: Vlsn,
    },
    /// Entries from `from` on, after the replica has cut its own tail.
    CatchUp {
        /// First entry to send.
        from: Vlsn,
        /// Last entry that the replica keeps; `None` if nothing is cut.
        truncate_to: Option<Vlsn>,
    },
    /// The log is replaced.
    Rebuild {
        /// The session whose marker the replica found.
        resume: Option<RecoveryId>,
    },
}

/// One attempt to get a replica level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its number.
    pub id: RecoveryId,
    /// The mastership.
    pub era: Era,
    /// The way.
    pub kind: Kind,
    /// Last entry of the master's log when the session began; it does not end below.
    pub target: Vlsn,
}

/// How far a session is. Each field only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of the base that the replica has, which shows that a long copy lives.
    pub base_bytes: u64,
    /// The base is there, verified and durable.
    pub base_done: bool,
    /// Entries through it are durable in the log that the session fills, without a hole.
    pub durable: Vlsn,
}

/// Why a session failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailReason {
    /// Nothing moved for too long.
    Stalled,
    /// The connection broke.
    Disconnected,
    /// The master's log no longer holds what is needed.
    LogRecycled,
    /// The pin was over its budget.
    PinLost,
    /// The replica's disk is full.
    NoSpace,
    /// Somebody wanted it to end.
    Cancelled,
    /// Bytes did not verify.
    Corrupt,
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stalled => "nothing moved for too long",
            Self::Disconnected => "the connection broke",
            Self::LogRecycled => "the master's log no longer holds what is needed",
            Self::PinLost => "its place in the log was over the budget",
            Self::NoSpace => "no space on its disk",
            Self::Cancelled => "it was cancelled",
            Self::Corrupt => "bytes did not verify",
        })
    }
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// The replica has begun it.
    Accepted,
    /// It is this far.
    Progress(Progress),
    /// The replica has everything, through `durable`.
    Completed {
        /// End of its log, durable.
        durable: Vlsn,
    },
    /// It has ended without.
    Failed(FailReason),
}

/// What the engine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node is master, and these are the replicas, each with the incarnation that has its
    /// vote; `None` without a vote. Also when only the members change.
    Assigned {
        /// The mastership.
        era: Era,
        /// The replicas.
        members: BTreeMap<Name, Option<Incarnation>>,
    },
    /// The master's log, at least once after each change of era.
    Bounds(Bounds),
    /// A replica is connected; also said again of those that are when they become members.
    PeerUp {
        /// The replica.
        name: Name,
        /// The connection.
        link: Link,
        /// As its handshake says.
        incarnation: Incarnation,
    },
    /// A connection is gone.
    PeerGone {
        /// The replica.
        name: Name,
        /// The connection.
        link: Link,
    },
    /// A replica's answer.
    Facts {
        /// The replica.
        name: Name,
        /// The question's number.
        nonce: Nonce,
        /// What it says.
        facts: Facts,
    },
    /// Something happened to a session.
    Session {
        /// The replica.
        name: Name,
        /// The session.
        session: RecoveryId,
        /// Its mastership.
        era: Era,
        /// What.
        what: SessionEvent,
    },
    /// The stream that a session opened acknowledged entries as durable.
    DurableAck {
        /// The replica.
        name: Name,
        /// Who it was.
        incarnation: Incarnation,
        /// The session that opened the stream.
        session: RecoveryId,
        /// The stream's mastership.
        era: Era,
        /// Durable through it.
        vlsn: Vlsn,
    },
    /// The pin held the log for too long or too many bytes, and is no longer heeded.
    PinDropped {
        /// The replica.
        name: Name,
        /// The session that had it, or that opened the stream that had it.
        session: RecoveryId,
    },
    /// Time goes on. The first event of all, and then whenever
    /// [`next_deadline`](super::Recovery::next_deadline) is due.
    Tick {
        /// The time.
        now: Now,
    },
}

/// What an operator is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The replica is left as it is until it connects again.
    Refused(Refusal),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Ask for facts.
    AskFacts {
        /// The replica.
        name: Name,
        /// To be repeated by the answer.
        nonce: Nonce,
    },
    /// Begin a session; one still known of this replica is superseded.
    Start {
        /// The replica.
        name: Name,
        /// The session.
        session: Session,
    },
    /// Tell the replica that the session ends once it is durable through `cut`.
    Cut {
        /// The replica.
        name: Name,
        /// The session.
        session: RecoveryId,
        /// Where.
        cut: Vlsn,
    },
    /// End the session, or the stream that it opened.
    Cancel {
        /// The replica.
        name: Name,
        /// The session.
        session: RecoveryId,
    },
    /// Keep the log from `from` on for this replica; `from` replaces what was said before.
    Pin {
        /// The replica.
        name: Name,
        /// First entry to keep.
        from: Vlsn,
    },
    /// The log need not be kept for this replica.
    Unpin {
        /// The replica.
        name: Name,
    },
    /// Tell an operator.
    Alarm {
        /// The replica.
        name: Name,
        /// What is wrong.
        what: Alarm,
    },
}

impl Command {
    /// Whom it is about.
    pub const fn name(&self) -> &Name {
        match self {
            Self::AskFacts { name, .. }
            | Self::Start { name, .. }
            | Self::Cut { name, .. }
            | Self::Cancel { name, .. }
            | Self::Pin { name, .. }
            | Self::Unpin { name }
            | Self::Alarm { name, .. } => name,
        }
    }
}
