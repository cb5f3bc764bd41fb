//! KvError: why the store could not do what it was asked.

use noxu_rep::{RepError, Undecided};
use noxu_util::codec::CodecError;
use noxu_util::{Fingerprint, Vlsn};

use crate::token::CommitToken;

/// Result of this crate.
pub type Result<T, E = KvError> = std::result::Result<T, E>;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// Something the transaction read or wrote was changed by another one after its snapshot.
    /// Nothing was written; run the transaction again on a new snapshot.
    #[error(
        "conflict on {key}: it was written at VLSN {newer}, after the transaction's snapshot at \
         VLSN {snapshot}; run the transaction again"
    )]
    Conflict {
        /// The key, or the range, shown for people.
        key: String,
        /// VLSN of the commit that got there first.
        newer: Vlsn,
        /// The transaction's snapshot.
        snapshot: Vlsn,
    },
    /// The snapshot, cursor or transaction saw entries that have been rolled back.
    #[error("what VLSN {snapshot} showed has been rolled back")]
    RolledBack {
        /// VLSN of the snapshot.
        snapshot: Vlsn,
    },
    /// This node is not the master, so it takes no writes.
    #[error("this node is not the master; {}", master.as_ref().map_or("no master is known".to_owned(), |at| format!("the master is {at}")))]
    NotMaster {
        /// Address of the master, when known.
        master: Option<String>,
    },
    /// Too few replicas are connected for the durability asked for. Nothing was written.
    #[error("{connected} of {needed} acknowledging replicas are connected; nothing was written")]
    InsufficientReplicas {
        /// How many must be connected.
        needed: usize,
        /// How many are.
        connected: usize,
    },
    /// The commit is written, and whether it lasts is not known yet. Run no second one in its place
    /// before [`Store::outcome`](crate::Store::outcome) tells.
    #[error(
        "commit {} of term {}: {why}; it may yet become durable, or be rolled back",
        .token.vlsn,
        .token.term
    )]
    OutcomeUnknown {
        /// The commit.
        token: CommitToken,
        /// Why nobody can tell.
        why: Undecided,
    },
    /// Replication failed otherwise.
    #[error(transparent)]
    Replication(RepError),
    /// Keys have at least one byte.
    #[error("the key is empty; keys have 1 to {} bytes", crate::MAX_KEY_BYTES)]
    KeyEmpty,
    /// The key is longer than [`crate::MAX_KEY_BYTES`].
    #[error("the key has {bytes} bytes; keys have 1 to {} bytes", crate::MAX_KEY_BYTES)]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The value is longer than [`crate::MAX_VALUE_BYTES`].
    #[error("the value has {bytes} bytes; at most {} are allowed", crate::MAX_VALUE_BYTES)]
    ValueTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The transaction holds more bytes than the store's `max_transaction_bytes`.
    #[error("the transaction holds {bytes} bytes; max_transaction_bytes is {max}")]
    TransactionTooLarge {
        /// Keys and values it would hold.
        bytes: u64,
        /// The configured limit.
        max: u64,
    },
    /// Versions that a snapshot this old would need may be gone.
    #[error("VLSN {wanted} is too old to read at; the oldest is {oldest}")]
    SnapshotTooOld {
        /// The VLSN asked for.
        wanted: Vlsn,
        /// The oldest VLSN that can be read at.
        oldest: Vlsn,
    },
    /// The node has not applied that far.
    #[error("VLSN {wanted} is not applied yet; applied through {applied}")]
    SnapshotTooNew {
        /// The VLSN asked for.
        wanted: Vlsn,
        /// The position reached.
        applied: Vlsn,
    },
    /// The consistency asked for was not reached in time.
    #[error("VLSN {wanted} was not applied in time; applied through {reached}")]
    ConsistencyTimeout {
        /// The position asked for.
        wanted: Vlsn,
        /// The position reached.
        reached: Vlsn,
    },
    /// The entry a commit token names is not the one this node holds: the commit was rolled back,
    /// or the token belongs to another history.
    #[error(
        "commit {vlsn} is not in this history: {} found, fingerprint {expected} expected",
        found.map_or("a later term".to_owned(), |found| format!("fingerprint {found}"))
    )]
    Forked {
        /// VLSN of the commit.
        vlsn: Vlsn,
        /// The token's fingerprint.
        expected: Fingerprint,
        /// The log's fingerprint there; `None` if the log ends before it, in a later term.
        found: Option<Fingerprint>,
    },
    /// An entry of the log is not what this engine writes.
    #[error("entry {vlsn} of the log is damaged: {cause}")]
    BadEntry {
        /// Its VLSN.
        vlsn: Vlsn,
        /// What is wrong.
        cause: CodecError,
    },
    /// Entries did not come in the order the log has them.
    #[error("entry {found} was given to the store, {expected} expected")]
    OutOfOrder {
        /// The VLSN given.
        found: Vlsn,
        /// The VLSN that follows what is applied.
        expected: Vlsn,
    },
    /// An entry stands where none may stand.
    #[error("entry {vlsn} of kind {kind} stands inside a transaction that began at {began}")]
    InsideTransaction {
        /// Its VLSN.
        vlsn: Vlsn,
        /// Its kind.
        kind: u8,
        /// First entry of the transaction.
        began: Vlsn,
    },
    /// The kind of the entry is not known to this version.
    #[error("entry {vlsn} has kind {kind}, which this version does not know")]
    UnknownKind {
        /// Its VLSN.
        vlsn: Vlsn,
        /// Its kind.
        kind: u8,
    },
    /// The node has lost its state, and is restored. Read elsewhere.
    #[error("this node has no state before it is restored")]
    NoState,
    /// A checkpoint stream is damaged or of another version.
    #[error("the checkpoint is damaged: {cause}")]
    BadCheckpoint {
        /// What is wrong.
        cause: String,
    },
    /// A rollback below what the table holds durably was asked for.
    #[error("cannot roll back to VLSN {matchpoint}: the table is durable through {flushed}")]
    RollbackBelowFlushed {
        /// The matchpoint.
        matchpoint: Vlsn,
        /// What the table holds on disk.
        flushed: Vlsn,
    },
    /// The log does not hold the entries needed to bring the table up to a position.
    #[error("the log has no entry {wanted}, which the store needs to replay")]
    ReplayGap {
        /// The missing entry.
        wanted: Vlsn,
    },
    /// A file of the state directory is not what it should be.
    #[error("{path}: {cause}")]
    BadState {
        /// The file.
        path: String,
        /// What is wrong, with what was found and expected.
        cause: String,
    },
    /// A file of the state directory could not be used.
    #[error("{path}: {cause}")]
    Io {
        /// The file or directory.
        path: String,
        /// The cause.
        #[source]
        cause: std::io::Error,
    },
    /// The table failed.
    #[error("the table failed: {0}")]
    Table(#[from] lsm_tree::Error),
    /// The store or its node has stopped: closed, or failed earlier.
    #[error("the store has stopped: {cause}")]
    Stopped {
        /// The first failure.
        cause: String,
    },
}

impl From<RepError> for KvError {
    fn from(cause: RepError) -> Self {
        match cause {
            RepError::NotMaster { master } => Self::NotMaster { master },
            RepError::InsufficientReplicas { needed, connected, .. } => {
                Self::InsufficientReplicas { needed, connected }
            }
            RepError::OutcomeUnknown { commit, why } => {
                Self::OutcomeUnknown { token: commit.into(), why }
            }
            RepError::Stopped { cause } => Self::Stopped { cause },
            other => Self::Replication(other),
        }
    }
}

impl KvError {
    /// Whether running the same transaction again may succeed.
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
