//! Status: what a node can say about itself at one moment.

use std::path::PathBuf;

use noxu_log::{GroupIdentity, MarkStatus, Positions, SyncLatencies};
pub use noxu_log::{Retention, ScrubProgress, ScrubReport, SealedSegment};
use noxu_util::{Incarnation, Lsn, Name, Term, Vlsn};

use crate::core::damage::{DamageReport, OpenDamage};
use crate::core::recovery::Projection;
pub use crate::driver::master::ReplicaStatus;
use crate::restore::{Progress, Restored, Timeline};

/// What a node does for its group at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes writes and feeds the others.
    Master,
    /// Follows a master.
    Replica,
    /// Neither: looks for a master, campaigns, mends its log, or waits for its group to be founded.
    Unknown,
    /// Replaces its log and state by a peer's.
    Restoring,
    /// Neither any more: shut down or failed.
    Stopped,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Replica => "replica",
            Self::Unknown => "unknown",
            Self::Restoring => "restoring",
            Self::Stopped => "stopped",
        })
    }
}

/// What a node has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// What it does.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The master, as far as it is known.
    pub master: Option<Name>,
    /// Where the master is reached, as far as it is known.
    pub master_address: Option<String>,
    /// Why, in words.
    pub reason: String,
}

/// A rollback that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackReport {
    /// Wall clock, milliseconds since 1970.
    pub time_ms: u64,
    /// The newest entry kept: both logs hold it.
    pub matchpoint: Vlsn,
    /// Where it begins.
    pub matchpoint_lsn: Lsn,
    /// How many entries were rolled back.
    pub entries: u64,
    /// The file that keeps them.
    pub lost_file: PathBuf,
    /// Round trips that the search for the matchpoint took.
    pub round_trips: u32,
    /// The master whose log prevailed.
    pub master: Name,
    /// Its term.
    pub master_term: Term,
}

/// The last syncup of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncupReport {
    /// Which of those since the log was opened, from 1 on.
    pub number: u64,
    /// The master.
    pub master: Name,
    /// The newest sync entry that both logs hold; NULL for a fresh replica.
    pub matchpoint: Vlsn,
    /// First VLSN streamed.
    pub start: Vlsn,
    /// Round trips it took.
    pub round_trips: u32,
}

/// What [`Node::scrub`](crate::Node::scrub) has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubSummary {
    /// How much was read, and how many damaged blocks that found.
    pub read: ScrubProgress,
    /// Blocks that were replaced by a peer's since it began.
    pub mended_blocks: u64,
    /// Runs of entries that were put back from a peer since it began.
    pub mended_runs: u64,
    /// What is damaged still: it is asked for again and again.
    pub open: Vec<OpenDamage>,
}

/// One snapshot of a node.
#[derive(Debug, Clone)]
pub struct Status {
    /// The node.
    pub name: Name,
    /// Number of its directory.
    pub incarnation: Incarnation,
    /// Its group, once it has one.
    pub group: Option<GroupIdentity>,
    /// The group's voters, as far as known.
    pub members: Vec<Name>,
    /// Whether this node is one of them: by its name and this very directory.
    pub is_voter: bool,
    /// What it does.
    pub role: Role,
    /// The reason for that, in words.
    pub reason: String,
    /// The highest term it knows.
    pub term: Term,
    /// Address of the master, if known.
    pub master: Option<String>,
    /// The log's positions.
    pub positions: Positions,
    /// How much of the log is kept, and for whom.
    pub retention: Retention,
    /// How far sealed segments were read again, and what was found damaged.
    pub scrub: ScrubReport,
    /// What was found damaged on the disk, and what became of it.
    pub damage: DamageReport,
    /// Highest VLSN known durable on a majority.
    pub dtvlsn: Vlsn,
    /// Everything through it may be seen by readers here.
    pub visible: Vlsn,
    /// Everything through it is applied.
    pub applied: Vlsn,
    /// What may never be rolled back here, as the control file has it.
    pub commit_floor: Vlsn,
    /// Why the log takes no entries, while the disk is full.
    pub read_only: Option<String>,
    /// How far the tail mark protects what was acknowledged.
    pub tail_mark: MarkStatus,
    /// How long syncs have taken since the log was opened.
    pub sync_latencies: SyncLatencies,
    /// Whether a stream from the master is open, on a replica.
    pub streaming: bool,
    /// The connected replicas, on a master.
    pub replicas: Vec<ReplicaStatus>,
    /// How each replica gets level or stays it, on a master.
    pub recoveries: Vec<(Name, Projection)>,
    /// The last syncup, on a replica.
    pub last_syncup: Option<SyncupReport>,
    /// The last rollback since the node was opened.
    pub last_rollback: Option<RollbackReport>,
    /// How far a network restore is, or was when it was fetched.
    pub restore: Option<Progress>,
    /// When it was how far; empty before the first of this process.
    pub restore_timeline: Timeline,
    /// The last network restore since the process opened the node.
    pub last_restore: Option<Restored>,
    /// The last failure of a connection.
    pub last_error: Option<String>,
}
