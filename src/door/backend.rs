//! Backend: what the door needs of a store. The node binds it to its `Store`; tests bind it to a
//! map.

use std::time::Duration;

use bytes::Bytes;

/// What a write of a connection waits for before it is answered. Set with `NOXU DURABILITY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DurabilityName {
    /// Synced here and acknowledged as synced by a majority.
    #[default]
    Majority,
    /// Written, not synced, here and on a majority.
    WriteMajority,
    /// Received by a majority; nobody syncs.
    NoSyncMajority,
    /// Synced here and acknowledged as synced by all replicas.
    All,
    /// Synced here; no replica is waited for.
    Local,
}

impl DurabilityName {
    /// All names, for messages.
    pub const ALL_NAMES: &str = "majority, write-majority, no-sync-majority, all or local";

    /// The name as the protocol and the command line write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Majority => "majority",
            Self::WriteMajority => "write-majority",
            Self::NoSyncMajority => "no-sync-majority",
            Self::All => "all",
            Self::Local => "local",
        }
    }
}

/// A text that names no durability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a durability: expected {}", DurabilityName::ALL_NAMES)]
pub struct BadDurability {
    /// The text.
    pub found: String,
}

impl std::str::FromStr for DurabilityName {
    type Err = BadDurability;

    fn from_str(text: &str) -> Result<Self, BadDurability> {
        match text.to_ascii_lowercase().replace('_', "-").as_str() {
            "majority" => Ok(Self::Majority),
            "write-majority" => Ok(Self::WriteMajority),
            "no-sync-majority" => Ok(Self::NoSyncMajority),
            "all" => Ok(Self::All),
            "local" => Ok(Self::Local),
            _ => Err(BadDurability { found: text.to_owned() }),
        }
    }
}

/// Why a backend could not do it, by what the client can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// This node does not take writes; ask the master.
    #[error("READONLY this node is not the master, that is {}", master.as_deref().unwrap_or("not known here"))]
    NotMaster {
        /// Address of the master's door (or its name, where the address is not known).
        master: Option<String>,
    },
    /// A concurrent transaction won; try again.
    #[error("CONFLICT another transaction changed what this one read, try again")]
    Conflict {
        /// Once everything through this VLSN is applied, a new try sees what this one did not.
        newer: i64,
    },
    /// Too few replicas are connected; nothing was written.
    #[error(
        "NOREPLICAS {connected} of {needed} replicas needed are connected, nothing was written"
    )]
    InsufficientReplicas {
        /// Replicas connected.
        connected: usize,
        /// Replicas the durability asks for.
        needed: usize,
    },
    /// Written, but nobody knows yet whether it will last.
    #[error(
        "UNKNOWN {commit} is written and was not acknowledged, ask NOXU OUTCOME {commit} what became \
         of it"
    )]
    OutcomeUnknown {
        /// The commit.
        commit: Committed,
    },
    /// The request is beyond a limit or makes no sense here.
    #[error("ERR {reason}")]
    Refused {
        /// What was found and what was expected.
        reason: String,
    },
    /// The node cannot serve this now.
    #[error("LOADING {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// Where a commit stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// VLSN of the commit entry; 0 when nothing was written.
    pub vlsn: i64,
    /// Term it was written in.
    pub term: u32,
    /// Fingerprint of the log through it.
    pub fingerprint: u64,
}

impl std::fmt::Display for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { vlsn, term, fingerprint } = self;
        write!(f, "{vlsn}:{term}:{fingerprint:016x}")
    }
}

impl std::str::FromStr for Committed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let vlsn = parts.next()?.parse().ok().filter(|vlsn| *vlsn >= 0)?;
            let term = parts.next()?.parse().ok()?;
            let fingerprint = u64::from_str_radix(parts.next()?, 16).ok()?;
            Some(Self { vlsn, term, fingerprint })
        };
        parse().ok_or_else(|| format!("{text:?} is no commit: expected VLSN:TERM:FINGERPRINT"))
    }
}

/// A node's place in the group, as `ROLE` answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleReply {
    /// This node writes the log.
    Master {
        /// Last VLSN of its log.
        last: i64,
        /// Its replicas: host, port, acknowledged durable VLSN.
        replicas: Vec<(String, u16, i64)>,
    },
    /// This node follows a master.
    Replica {
        /// Host and port of the master's door, where known.
        master: Option<(String, u16)>,
        /// Whether the stream from it is up.
        connected: bool,
        /// Last VLSN of its own log.
        last: i64,
    },
}

/// A line of `INFO`: its key and its value.
pub type InfoLine = (String, String);

/// A section of `INFO`: its title and its lines.
pub type InfoSection = (&'static str, Vec<InfoLine>);

/// A commit on its way to its durability.
pub trait PendingCommit: Send {
    /// Waits until the durability is met or cannot be.
    fn wait(self: Box<Self>) -> Result<Committed, BackendError>;
}

/// A transaction: reads see one snapshot and its own writes; writes appear at commit.
pub trait Transaction {
    /// The value of a key.
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, BackendError>;
    /// Sets a key.
    fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(), BackendError>;
    /// Removes a key.
    fn delete(&mut self, key: &Bytes) -> Result<(), BackendError>;
    /// Submits the writes; returns before they are durable.
    fn commit(
        self: Box<Self>,
        durability: DurabilityName,
    ) -> Result<Box<dyn PendingCommit>, BackendError>;
}

/// A store behind a door.
pub trait Backend: Send + Sync {
    /// Values of `keys`, all as of one snapshot.
    fn read(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, BackendError>;
    /// Up to `limit` keys after `after` (from the first if `None`), in order.
    fn keys_after(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Bytes>, BackendError>;
    /// Number of keys.
    fn count(&self) -> Result<u64, BackendError>;
    /// Begins a transaction. On a replica it can read; its commit fails if it wrote.
    fn begin(&self) -> Result<Box<dyn Transaction + '_>, BackendError>;
    /// This node's place in the group.
    fn role(&self) -> RoleReply;
    /// What `INFO` prints.
    fn info(&self) -> Vec<InfoSection>;
    /// Waits until everything through `vlsn` is applied here; the VLSN reached.
    fn wait_applied(&self, vlsn: i64, timeout: Duration) -> Result<i64, BackendError>;
    /// Where the master is reached by its peers, once that is known; waits at most `timeout`.
    fn master(&self, timeout: Duration) -> Option<String>;
    /// What became of a commit: "durable", "rolled-back", "open" or "forgotten"; waits at most
    /// `timeout` while it is open.
    fn outcome(&self, commit: Committed, timeout: Duration) -> Result<&'static str, BackendError>;
    /// Makes the applied state durable; the VLSN through which it is.
    fn checkpoint(&self) -> Result<i64, BackendError>;
    /// Drops the log's front below the last checkpoint; the first VLSN kept.
    fn drop_front(&self) -> Result<i64, BackendError>;
    /// Reads all finished log files now, at most `bytes_per_second`, and takes back from other nodes what
    /// is damaged; what came of it. `goes_on` is asked after every block read; the reading ends there if
    /// it says no.
    fn scrub(
        &self,
        bytes_per_second: u64,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<InfoLine>, BackendError>;
    /// Has this node's log and state replaced by those of its peers, from now on and whatever happens
    /// meanwhile. False if that was so before.
    fn restore(&self) -> Result<bool, BackendError>;
}
