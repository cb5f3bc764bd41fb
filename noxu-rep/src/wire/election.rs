//! Election messages: what nodes say to each other outside of streams, one way and without
//! promise of delivery. Whatever is lost is asked again or found out by a timeout.
//!
//! # Not here: their bytes (codec.rs), how a connection that carries them is opened (link.rs), what
//! is answered (core/election.rs, core/repair.rs), who speaks when (core/node.rs).
//! # See: docs/protocol.md#elections

use noxu_log::GroupIdentity;
use noxu_util::{Fingerprint, Incarnation, Name, Term, Vlsn};

use crate::group::Electorate;

pub(super) mod codec;
pub mod link;

pub use codec::{ELECTION_VERSION, MAX_REPAIR_BYTES};

/// The end of a log: what votes compare, by term and then by VLSN. Entries that are present but
/// damaged count as present: a node never votes as if its log were shorter than it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogEnd {
    /// Term of the last entry.
    pub term: Term,
    /// Its VLSN.
    pub vlsn: Vlsn,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl LogEnd {
    /// Which of two logs is the better one to be master with.
    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        (self.term, self.vlsn).cmp(&(other.term, other.vlsn))
    }
}

impl std::fmt::Display for LogEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of term {}", self.vlsn, self.term)
    }
}

/// A node: its name and the number of its directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its name.
    pub name: Name,
    /// Number of its directory.
    pub incarnation: Incarnation,
}

/// One message, with what every message carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionMsg {
    /// The sender's epoch of the group.
    pub epoch: u32,
    /// The sender's term, durable there.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Asks for a vote, or whether one would be given.
    VoteRequest(VoteRequest),
    /// The answer.
    VoteAnswer(VoteAnswer),
    /// The sender was elected master of its term.
    Lead {
        /// Where streams and links reach it.
        address: String,
        /// How far it is.
        phase: LeadPhase,
    },
    /// How the sender stands; sent when a link opens and when it changes.
    Standing(Standing),
    /// Asks for entries that are damaged at the sender.
    RepairAsk(RepairAsk),
    /// The answer.
    RepairAnswer(RepairAnswer),
    /// The sender leaves its mastership and proposes a successor.
    Yield {
        /// Who is to campaign at once.
        successor: Name,
    },
    /// Hands a founded group to one of its voters, whose directory is fresh.
    Founding {
        /// Which group it is.
        identity: GroupIdentity,
        /// Who votes in it.
        electorate: Electorate,
    },
    /// The receiver of [`Body::Founding`] made it durable.
    Founded,
}

impl Body {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::VoteRequest(_) => "VoteRequest",
            Self::VoteAnswer(_) => "VoteAnswer",
            Self::Lead { .. } => "Lead",
            Self::Standing(_) => "Standing",
            Self::RepairAsk(_) => "RepairAsk",
            Self::RepairAnswer(_) => "RepairAnswer",
            Self::Yield { .. } => "Yield",
            Self::Founding { .. } => "Founding",
            Self::Founded => "Founded",
        }
    }
}

/// The two rounds of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Would you? Changes nothing anywhere.
    Pre = 0,
    /// Do. A grant is a promise, durable before it is sent.
    Real = 1,
}

/// A candidate's question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRequest {
    /// Which round.
    pub phase: Phase,
    /// Number of this round, never used before; answers repeat it.
    pub nonce: u64,
    /// The term it wants to be master of. In a real round it is the sender's own.
    pub asked: Term,
    /// The end of its log.
    pub head: LogEnd,
    /// Its priority.
    pub priority: u8,
    /// Whether entries may be missing at the end of its log.
    pub uncertain: bool,
}

/// A voter's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteAnswer {
    /// The round asked about.
    pub phase: Phase,
    /// Its number.
    pub nonce: u64,
    /// The term asked for.
    pub asked: Term,
    /// Yes or no.
    pub verdict: Verdict,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes. `certain` unless entries may be missing at the end of the voter's own log, so that its
    /// comparison of the two proves nothing.
    Granted {
        /// Whether the comparison proves something.
        certain: bool,
    },
    /// No.
    Refused(Refusal),
}

/// Why a vote is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Another epoch of the group.
    Epoch,
    /// The voter's configuration does not let the candidate become master.
    NotElectable,
    /// The voter is the master, and in touch with a quorum.
    Sitting,
    /// The voter's term, which the message carries, is not below the one asked for.
    HigherTerm,
    /// The vote of this term is given to another.
    Voted,
    /// The voter hears from a master.
    HeardMaster,
    /// The voter campaigns with an equal log and precedes the candidate.
    Rival,
    /// The voter's log is better.
    BetterHead,
    /// Both logs end with one VLSN and term, and are not the same: something is broken.
    Fork,
}

/// How far an elected master is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeadPhase {
    /// It mends its log; nobody can follow it yet.
    Repairing = 0,
    /// Its term has begun in the log.
    Established = 1,
}

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// Looks for a master, or campaigns, or waits for its group to be founded.
    Unknown = 0,
    /// Follows a master.
    Replica = 1,
    /// Elected; mends its log.
    Repairing = 2,
    /// The master.
    Master = 3,
    /// Stopped.
    Detached = 4,
}

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The end of its log.
    pub head: LogEnd,
    /// What it is.
    pub role: NodeRole,
    /// The master it follows, or itself.
    pub master: Option<Name>,
    /// Its priority.
    pub priority: u8,
    /// Whether its disk is full.
    pub full: bool,
    /// Whether entries may be missing at the end of its log.
    pub uncertain: bool,
}

/// A position of a log, with what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Term of the entry.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// Why entries are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// By a master before its term begins. An answer promises never to take these entries from an
    /// older master.
    Repairing = 0,
    /// By anybody else, in the background.
    Mending = 1,
}

/// Asks for entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairAsk {
    /// What for.
    pub purpose: Purpose,
    /// Repeated by the answer.
    pub nonce: u64,
    /// First entry.
    pub first: Vlsn,
    /// Last entry.
    pub last: Vlsn,
    /// The entry before the first; zeros for VLSN 1.
    pub before: Mark,
    /// The last entry.
    pub after: Mark,
    /// How many bytes of the answer the asker has already.
    pub offset: u32,
}

/// What became of a [`RepairAsk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairAnswer {
    /// The question's.
    pub nonce: u64,
    /// First entry asked for.
    pub first: Vlsn,
    /// What the sender has of it.
    pub verdict: RepairVerdict,
    /// What the sender knows to be durable on a quorum.
    pub commit_floor: Vlsn,
    /// With [`RepairVerdict::Have`] and [`RepairVerdict::Part`]: bytes there are in all.
    pub total: u32,
    /// Where `bytes` begin among them.
    pub offset: u32,
    /// A piece of them.
    pub bytes: Vec<u8>,
}

/// What a node has of entries that are damaged elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairVerdict {
    /// All of them.
    Have,
    /// The first ones, through `through`.
    Part {
        /// The last of them.
        through: Vlsn,
    },
    /// It never had the first one, and will not have it from an older master.
    Never,
    /// It cannot say. Counts for nothing.
    Silent(Silence),
}

/// Why a node cannot say whether it ever had an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// Entries may be missing at the end of its log.
    Uncertain,
    /// Its log begins behind the entry.
    BelowAnchor,
    /// The entries are damaged there too.
    Damaged,
    /// Its log is being replaced.
    Installing,
    /// It has an entry there, and nothing proves that it is the same or another.
    Ambiguous,
}

#[cfg(test)]
mod tests;
