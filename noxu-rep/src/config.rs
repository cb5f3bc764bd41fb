//! Config: how a node is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::{DEFAULT_SEGMENT_BYTES, LogConfig};
use noxu_util::{Name, Term};

use crate::core::feeder::StreamTiming;
use crate::driver::master::MasterLimits;
use crate::status::RollbackReport;

/// What a node is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleConfig {
    /// The master of a term that is above every term known. Until elections exist, whoever starts
    /// the node says so.
    Master {
        /// The term.
        term: Term,
    },
    /// A replica of whichever peer is master.
    Replica,
}

/// Which group a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChoice {
    /// Founds the group if the directory is fresh; the node must be its first master.
    Create {
        /// Name of the group.
        name: Name,
        /// Its voters, this node included.
        members: Vec<Name>,
        /// Length of its log segments, in bytes.
        segment_bytes: u32,
    },
    /// Belongs to the group of the directory, or of the first master it meets.
    Join {
        /// Name of the group, if only one of that name will do.
        name: Option<Name>,
    },
}

impl GroupChoice {
    /// [`GroupChoice::Create`] with the default segment size.
    pub fn create(name: Name, members: Vec<Name>) -> Self {
        Self::Create { name, members, segment_bytes: DEFAULT_SEGMENT_BYTES }
    }
}

/// Told of a rollback.
pub type RollbackHook = Arc<dyn Fn(&RollbackReport) + Send + Sync>;

/// How a node is opened.
#[derive(Clone)]
pub struct NodeConfig {
    /// Name of the node, unique in its group.
    pub name: Name,
    /// Its directory.
    pub dir: PathBuf,
    /// Address to listen on, "host:port"; port 0 for any.
    pub listen: String,
    /// Address that peers can reach it at, if not the one listened on.
    pub advertise: Option<String>,
    /// What it is to be.
    pub role: RoleConfig,
    /// Addresses of the other nodes.
    pub peers: Vec<String>,
    /// Its group.
    pub group: GroupChoice,
    /// Limits while it is master.
    pub limits: MasterLimits,
    /// How long a peer is given to answer a dial.
    pub dial_timeout: Duration,
    /// How long a shutdown of the master waits for its replicas to have everything.
    pub shutdown_grace: Duration,
    /// How long a replica that comes too early is kept waiting for a mastership.
    pub early_replica_wait: Duration,
    /// How long a voter that is away keeps its place in this node's log, within the budgets of the
    /// log's retention; one that stays away longer is restored. Default 1 day.
    pub absence_grace: Duration,
    /// The log.
    pub log: LogConfig,
    /// Called after each rollback, by a thread of the node.
    pub on_rollback: Option<RollbackHook>,
}

impl NodeConfig {
    /// A replica named `name` in `dir` that joins any group, listening on an ephemeral port of the
    /// loopback interface.
    pub fn new(name: Name, dir: impl Into<PathBuf>) -> Self {
        Self {
            name,
            dir: dir.into(),
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            role: RoleConfig::Replica,
            peers: Vec::new(),
            group: GroupChoice::Join { name: None },
            limits: MasterLimits::default(),
            dial_timeout: Duration::from_secs(3),
            shutdown_grace: Duration::from_secs(1),
            early_replica_wait: Duration::from_secs(1),
            absence_grace: Duration::from_hours(24),
            log: LogConfig::default(),
            on_rollback: None,
        }
    }
}

impl Default for MasterLimits {
    fn default() -> Self {
        Self {
            insufficient_replicas_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(5),
            max_unreplicated_bytes: 256 << 20,
            timing: StreamTiming::default(),
        }
    }
}
