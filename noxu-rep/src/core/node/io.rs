//! Io: what goes into the core of a node and what comes out of it.
//!
//! # Not here: what is made of it, and the contract of the calls (core/node.rs).

use std::time::Duration;

use noxu_log::GroupIdentity;
use noxu_util::{GroupId, Name, Term, Vlsn};

use crate::core::commits::Now;
use crate::core::repair::{Damage, RepairStep};
use crate::group::Electorate;
use crate::wire::election::link::Introduction;
use crate::wire::election::{ElectionMsg, LogEnd, NodeRole, Peer, RepairAsk};
use crate::wire::handshake::{NodeKind, RejectReason};

/// How long a node waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElectionTiming {
    /// How often a master looks whether it is still in touch with a quorum.
    pub heartbeat: Duration,
    /// A master that was not heard for so long is taken for gone.
    pub failure_timeout: Duration,
    /// A voter that a master did not hear for so long is no contact any more.
    pub quorum_timeout: Duration,
    /// A round of a campaign takes at most one to two times as long, drawn each time.
    pub campaign_timeout: Duration,
    /// Between two campaigns pass one to three times as long, drawn each time; it doubles with
    /// every refusal by a better log.
    pub retry: Duration,
    /// What the doubling ends at.
    pub retry_most: Duration,
    /// How much longer a node waits for each higher priority among the voters that are there.
    pub priority_step: Duration,
    /// Between two rounds of asking for damaged entries.
    pub repair_retry: Duration,
    /// After so long an elected master gives up mending its log and makes way.
    pub repair_patience: Duration,
    /// A node that starts waits one to three times as long for a master to make itself known.
    pub startup_wait: Duration,
    /// A master whose disk did not answer for so long makes way.
    pub disk_stall: Duration,
    /// Between two messages about how this node stands.
    pub standing_pause: Duration,
}

impl Default for ElectionTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            failure_timeout: Duration::from_secs(1),
            quorum_timeout: Duration::from_secs(2),
            campaign_timeout: Duration::from_millis(300),
            retry: Duration::from_millis(50),
            retry_most: Duration::from_secs(1),
            priority_step: Duration::from_millis(50),
            repair_retry: Duration::from_millis(200),
            repair_patience: Duration::from_secs(5),
            startup_wait: Duration::from_millis(50),
            disk_stall: Duration::from_secs(10),
            standing_pause: Duration::from_millis(50),
        }
    }
}

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// Who it is.
    pub me: Peer,
    /// Where it is reached.
    pub address: String,
    /// What it is for.
    pub kind: NodeKind,
    /// The higher, the sooner it campaigns; 0 for a node that is master only to hand over.
    pub priority: u8,
    /// How long it waits for what.
    pub timing: ElectionTiming,
    /// Of its random numbers; another one in each life, or the nonces of two lives are the same.
    pub seed: u64,
    /// The group that a fresh directory may join; `None` for any.
    pub group_name: Option<Name>,
    /// What a fresh directory is to found.
    pub founding: Option<FoundingWish>,
    /// Bytes of one answer about damaged entries that are kept at most.
    pub max_repair_bytes: usize,
}

/// A group to be founded.
#[derive(Debug, Clone)]
pub struct FoundingWish {
    /// What the group will be.
    pub group: GroupIdentity,
    /// Its voters, this node included.
    pub members: Vec<Name>,
    /// Copies that make an entry durable; 0 for a majority.
    pub q_rep: u8,
    /// Votes that elect; 0 for a majority.
    pub q_elect: u8,
}

/// The group a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Which group.
    pub group: GroupIdentity,
    /// Who votes in it.
    pub electorate: Electorate,
}

/// What this node promised, as its control file has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ballot {
    /// Epoch of the group.
    pub epoch: u32,
    /// The own term.
    pub term: Term,
    /// The vote in that term.
    pub vote: Option<Name>,
}

/// A change of the control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The own term.
    pub term: Term,
    /// The vote in it.
    pub vote: Option<Name>,
    /// The end of the log is known to be complete again.
    pub clear_uncertain: bool,
}

/// What is true at the moment, as the driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is true or not whatever the others are")]
pub struct Facts {
    /// The end of the log, damaged entries counted.
    pub head: LogEnd,
    /// Whether the log, or its anchor, holds a Group entry.
    pub configured: bool,
    /// What is synced.
    pub durable: Vlsn,
    /// What this node knows to be durable on a quorum.
    pub dtvlsn: Vlsn,
    /// The same, as the control file has it.
    pub commit_floor: Vlsn,
    /// The highest acknowledgement that left in the present term.
    pub acked: Vlsn,
    /// Whether entries may be missing at the end of the log.
    pub uncertain: bool,
    /// What is damaged above the own checkpoint.
    pub damaged: Vec<Damage>,
    /// All that is damaged: the rest only others may need.
    pub faulty: Vec<Damage>,
    /// Whether the state machine needs what the log does not hold any more: only a restore helps.
    pub behind: bool,
    /// Whether the disk is full.
    pub full: bool,
    /// How long the disk has not answered.
    pub stalled_for: Duration,
    /// Whether a restore is under way that has not committed.
    pub restoring: bool,
    /// As a replica: its stream.
    pub stream: Option<StreamFacts>,
    /// As a master: when each replica was last heard, and how far it is.
    pub contacts: Vec<Contact>,
}

/// A replica's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFacts {
    /// Who feeds it.
    pub master: Name,
    /// In which term.
    pub term: Term,
    /// When the master was last heard on it.
    pub heard: Now,
}

/// A replica as its master knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Which one.
    pub peer: Peer,
    /// When it was last heard.
    pub heard: Now,
    /// What it acknowledged as durable in this term.
    pub durable: Vlsn,
}

/// Another node, as it introduced itself on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCard {
    /// Who it is.
    pub peer: Peer,
    /// What it is for.
    pub kind: NodeKind,
    /// Its priority.
    pub priority: u8,
    /// Where it is reached.
    pub address: String,
    /// Its epoch.
    pub epoch: u32,
    /// Its term.
    pub term: Term,
    /// Its group; `None` for a fresh directory.
    pub group: Option<GroupId>,
}

impl From<Introduction> for PeerCard {
    fn from(theirs: Introduction) -> Self {
        let Introduction { epoch, term, group, peer, kind, priority, address, .. } = theirs;
        Self { peer, kind, priority, address, epoch, term, group }
    }
}

/// Why a stream ended, or did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The connection broke.
    Broken,
    /// Nothing came for too long.
    Silent,
    /// The master left its mastership in order.
    Goodbye {
        /// Whom it proposed.
        successor: Option<Name>,
    },
    /// The master turned this node away.
    Refused(RejectReason),
    /// Something is wrong that dialling again may mend.
    Fault,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A message arrived, on a link whose other end is known to be `from`.
    Message {
        /// Who sent it.
        from: Peer,
        /// What it says.
        message: ElectionMsg,
    },
    /// A link opened.
    LinkUp(PeerCard),
    /// No link to this node is open any more.
    LinkDown {
        /// Which one.
        name: Name,
    },
    /// A fresh node introduced itself, before there is a group.
    Joiner {
        /// Who it is.
        peer: Peer,
        /// Where it is reached.
        address: String,
    },
    /// This fresh directory is linked with a member of a group that it may belong to.
    GroupMet,
    /// An established master would have this node follow it; answered by [`Output::TermAnswer`].
    AskTerm {
        /// Its term.
        term: Term,
        /// Its name.
        master: Name,
    },
    /// The stream is open.
    Following {
        /// The term.
        term: Term,
        /// The master.
        master: Name,
    },
    /// The stream, or the attempt to open one, ended.
    FollowEnded {
        /// Whose; `None` if it is not known.
        master: Option<Name>,
        /// Why.
        why: Ended,
    },
    /// A replica's handshake or acknowledgement had a newer term.
    TermMet {
        /// The term.
        term: Term,
        /// Who has it.
        who: Peer,
    },
    /// The term's first entries are in the log.
    TermAppended {
        /// The Term entry.
        first: Vlsn,
        /// The last of them.
        last: Vlsn,
    },
    /// The Term entry is durable on a quorum.
    TermDurable {
        /// Its term.
        term: Term,
    },
    /// The log took a step of [`Output::Mend`].
    Mended {
        /// False if the bytes did not fit.
        fitted: bool,
    },
    /// The answer to [`Output::AskHead`] came, and this node holds what it names durably, received
    /// on the stream that is open.
    HeadConfirmed {
        /// Number of the question.
        nonce: u64,
        /// The master's log end when it answered.
        head: LogEnd,
    },
    /// A replica needs entries of this log that cannot be read.
    Unreadable,
    /// A restore has everything and asks whether it may replace the log.
    RestoreReady {
        /// The master that it was fetched from.
        master: Name,
        /// Its term then.
        term: Term,
    },
    /// Another configuration is in force, or a fresh directory has joined a group.
    ConfigChanged(Membership),
    /// The node is being closed.
    Closing,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Barrier: make it durable.
    Persist(Promise),
    /// Barrier: found the group.
    Found(Membership),
    /// Barrier: belong to this group from now on.
    Adopt(Membership),
    /// From now on no acknowledgement of a term below `below` leaves.
    Fence {
        /// The own term.
        below: Term,
    },
    /// Send a message, if there is a link.
    Send {
        /// To whom.
        to: Name,
        /// What.
        message: ElectionMsg,
    },
    /// Look for a master, first at these addresses.
    Seek {
        /// Where somebody may know.
        hints: Vec<String>,
    },
    /// Follow this master; ends whatever was followed.
    Follow {
        /// Which one.
        master: Name,
        /// Where.
        address: String,
        /// In which term at least.
        term: Term,
    },
    /// Follow nobody.
    Unfollow,
    /// The answer to [`Input::AskTerm`].
    TermAnswer {
        /// The term asked for.
        term: Term,
        /// Whether to follow in it. It is durable then.
        adopted: bool,
    },
    /// Ask the master on the open stream where its log ends.
    AskHead {
        /// To be repeated by the answer.
        nonce: u64,
    },
    /// Answer this question, by [`crate::core::repair::answer`], before acknowledgements go on.
    AnswerRepair {
        /// Whom.
        to: Name,
        /// The question.
        ask: RepairAsk,
    },
    /// Have the log take a step; its end is told by [`Input::Mended`].
    Mend(RepairStep),
    /// This node is master: append the first entries of the term. Told by [`Input::TermAppended`].
    BeginMastership {
        /// The term.
        term: Term,
        /// The group's configuration, if the log does not hold it yet.
        founding: Option<Electorate>,
    },
    /// This node is master no more.
    EndMastership {
        /// Why.
        reason: String,
        /// Who is to be master next.
        successor: Option<Name>,
    },
    /// The restore may replace the log.
    PermitCommit,
    /// The restore is void.
    AbandonRestore,
    /// Tell who listens.
    Tell(StateEvent),
    /// Tell an operator.
    Alarm(String),
}

/// What a node has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEvent {
    /// What it is.
    pub role: NodeRole,
    /// Its term.
    pub term: Term,
    /// The master, as far as it is known.
    pub master: Option<Name>,
    /// Why.
    pub reason: String,
}
