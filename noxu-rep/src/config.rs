//! Config: how a node is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::{DEFAULT_SEGMENT_BYTES, LogConfig};
use noxu_util::Name;

use crate::core::damage::DamageEvent;
use crate::core::feeder::StreamTiming;
use crate::core::node::ElectionTiming;
use crate::driver::master::MasterLimits;
use crate::restore::session::{RestoreLimits, default_methods};
use crate::status::{RollbackReport, StateChange};
use crate::sync::method::StateSync;
use crate::wire::handshake::NodeKind;

/// Which group a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChoice {
    /// Founds the group if the directory is fresh, once every member has introduced itself. One
    /// node of a group does; the others join.
    Create {
        /// Name of the group.
        name: Name,
        /// Its voters, this node included; each is bound to the directory it has at that moment.
        members: Vec<Name>,
        /// Length of its log segments, in bytes.
        segment_bytes: u32,
        /// Copies that make an entry durable; 0 for a majority. Together with `q_elect` more than
        /// there are members.
        q_rep: u8,
        /// Votes that elect a master; 0 for a majority. More than half of the members.
        q_elect: u8,
    },
    /// Belongs to the group of the directory, or of whoever founds one with this node or, failing
    /// that, of the first master it meets.
    Join {
        /// Name of the group, if only one of that name will do.
        name: Option<Name>,
    },
}

impl GroupChoice {
    /// [`GroupChoice::Create`] with the default segment size and majorities.
    pub fn create(name: Name, members: Vec<Name>) -> Self {
        Self::Create { name, members, segment_bytes: DEFAULT_SEGMENT_BYTES, q_rep: 0, q_elect: 0 }
    }
}

/// Told of a rollback.
pub type RollbackHook = Arc<dyn Fn(&RollbackReport) + Send + Sync>;

/// Told of what a node has become.
pub type StateListener = Arc<dyn Fn(&StateChange) + Send + Sync>;

/// Told of damage on the disk.
pub type DamageListener = Arc<dyn Fn(&DamageEvent) + Send + Sync>;

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
    /// What it is for.
    pub kind: NodeKind,
    /// The higher, the sooner it campaigns when there is no master; 0 for a node that becomes master
    /// only to hand over to another. Default 1.
    pub priority: u8,
    /// Addresses of other nodes; those of the group's voters are known to the group besides.
    pub peers: Vec<String>,
    /// Its group.
    pub group: GroupChoice,
    /// Limits while it is master.
    pub limits: MasterLimits,
    /// How long it waits for what in elections.
    pub election: ElectionTiming,
    /// How long a peer is given to answer a dial.
    pub dial_timeout: Duration,
    /// How long a shutdown of the master waits for its replicas to have everything.
    pub shutdown_grace: Duration,
    /// How long a voter that is away keeps its place in this node's log, within the budgets of the
    /// log's retention; one that stays away longer is restored. Default 1 day.
    pub absence_grace: Duration,
    /// How much of what a network restore takes.
    pub restore: RestoreLimits,
    /// By which methods this node gives its state to one that restores, and takes one if it restores
    /// itself, those it prefers first. Default [`default_methods`].
    pub sync: Vec<Arc<dyn StateSync>>,
    /// The log.
    pub log: LogConfig,
    /// Called after each rollback, by a thread of the node.
    pub on_rollback: Option<RollbackHook>,
    /// Told of each change of what the node is, in order, by one thread of its own.
    pub on_state: Option<StateListener>,
    /// Told of what is found damaged on the disk and of what becomes of it, in order, by the thread that
    /// tells `on_state`.
    pub on_damage: Option<DamageListener>,
}

impl NodeConfig {
    /// A node named `name` in `dir` that joins any group, listening on an ephemeral port of the
    /// loopback interface.
    pub fn new(name: Name, dir: impl Into<PathBuf>) -> Self {
        Self {
            name,
            dir: dir.into(),
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            kind: NodeKind::Electable,
            priority: 1,
            peers: Vec::new(),
            group: GroupChoice::Join { name: None },
            limits: MasterLimits::default(),
            election: ElectionTiming::default(),
            dial_timeout: Duration::from_secs(3),
            shutdown_grace: Duration::from_secs(1),
            absence_grace: Duration::from_hours(24),
            restore: RestoreLimits::default(),
            sync: default_methods(),
            log: LogConfig::default(),
            on_rollback: None,
            on_state: None,
            on_damage: None,
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
