//! RepError: everything that replication can report, sorted by what the caller will do about it.

use std::io;
use std::time::Duration;

use noxu_log::{EntryError, LogError};
use noxu_util::codec::CodecError;
use noxu_util::{Name, Term, Vlsn};

use crate::core::replica::StreamFault;

use crate::net::dispatcher::Refusal;
use crate::outcome::{CommitId, Undecided};
use crate::wire::handshake::RejectReason;

/// Result of replication calls.
pub type Result<T, E = RepError> = std::result::Result<T, E>;

/// Why a replication call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepError {
    /// The peer broke the protocol. The connection is closed; nothing else is harmed.
    #[error(transparent)]
    ProtocolError(#[from] ProtocolViolation),

    /// The network failed or the peer kept silent too long. Redial.
    #[error(transparent)]
    NetworkError(#[from] NetworkFailure),

    /// The channel was closed, by this side or in good order by the peer.
    #[error("channel to {peer} is closed")]
    Closed {
        /// The peer.
        peer: String,
    },

    /// A frame larger than the cap, refused before any memory was taken for it.
    #[error("frame of {bytes} bytes from or for {peer} is over the cap of {cap} bytes")]
    FrameTooLarge {
        /// The peer.
        peer: String,
        /// Length of the frame.
        bytes: u64,
        /// Longest frame allowed.
        cap: u64,
    },

    /// The peer does not serve this connection.
    #[error("{peer} does not serve {service}: {refusal}")]
    ServiceRefused {
        /// The peer.
        peer: String,
        /// The service asked for.
        service: String,
        /// Its answer.
        refusal: Refusal,
    },

    /// The handshake failed: the two nodes do not belong together. Typed by what is wrong.
    #[error("rejected: {0}")]
    Rejected(#[from] RejectReason),

    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {}", bind_cause(.cause))]
    Bind {
        /// The address asked for.
        address: String,
        /// What the operating system said.
        cause: io::Error,
    },

    /// Two logs agree above a VLSN at which they disagree: one of them is corrupt.
    #[error(
        "log fingerprints are not monotone: both logs agree at VLSN {agree} though they disagree at \
         {disagree} below it; one of them is corrupt"
    )]
    NonMonotone {
        /// The lower VLSN, where the logs disagree.
        disagree: Vlsn,
        /// The higher VLSN, where they agree.
        agree: Vlsn,
    },

    /// No matchpoint exists: only a network restore brings this replica back.
    #[error("no matchpoint with the master (searched down to VLSN {failed_vlsn}): needs a restore")]
    NeedsRestore {
        /// The last VLSN that was tried.
        failed_vlsn: Vlsn,
    },

    /// A replica is no longer fed, because the log's budget ran out and it lost its place: unless its
    /// own log still reaches the master's, only a network restore brings it back.
    #[error("{replica} lost its place at entry {at}: the log's front has moved to {first}")]
    LostPlace {
        /// The replica.
        replica: Name,
        /// The first entry that it had not acknowledged as durable.
        at: Vlsn,
        /// The first entry that the log holds.
        first: Vlsn,
    },

    /// The node asked for a restore ended it.
    #[error("{peer} ended the restore: {reason}")]
    RestoreRefused {
        /// The peer.
        peer: String,
        /// Its reason.
        reason: String,
    },

    /// The matchpoint lies below what a majority made durable. Nothing was touched.
    #[error(
        "refusing to roll back to VLSN {matchpoint}: entries through {commit_floor} were reported \
         durable by a majority; an operator must decide"
    )]
    RollbackBelowCommitFloor {
        /// Where the logs part.
        matchpoint: Vlsn,
        /// What may not be rolled back.
        commit_floor: Vlsn,
    },

    /// This node is not the master.
    #[error("not the master{}", master_hint(.master.as_deref()))]
    NotMaster {
        /// Address of the master, when known.
        master: Option<String>,
    },

    /// Too few replicas are connected for the policy asked for. Nothing was written.
    #[error(
        "{connected} of {needed} acknowledging replicas connected after {waited:?}; nothing was \
         written"
    )]
    InsufficientReplicas {
        /// How many must be connected.
        needed: usize,
        /// How many are.
        connected: usize,
        /// How long the call waited for more.
        waited: Duration,
    },

    /// The peer broke the rules of a stream. The connection is closed; redial and sync up anew.
    #[error(transparent)]
    Stream(#[from] StreamFault),

    /// Entries that came from a peer are damaged or belong to another history.
    #[error("{peer}: {fault}")]
    BadEntry {
        /// The peer.
        peer: String,
        /// What is wrong with which entry.
        fault: EntryError,
    },

    /// Entries of this node's log are damaged, and the master cannot tell what they were.
    #[error("entries {first} to {last} are damaged here, and {master} cannot tell what they were")]
    Damaged {
        /// The first of them.
        first: Vlsn,
        /// The last.
        last: Vlsn,
        /// The master.
        master: Name,
    },

    /// The log failed.
    #[error(transparent)]
    Log(LogError),

    /// The disk of this node is full. Nothing was written; the node takes writes again by itself once
    /// there is room, so the same write may be tried later.
    #[error("nothing was written: {0}")]
    ReadOnly(LogError),

    /// The disk of this node has no room for what a restore brings. What came stays, the old log and
    /// state too, and the restore goes on by itself once there is room.
    #[error("a restore finds no room: {0}")]
    NoRoom(#[source] Box<RepError>),

    /// The state machine failed; the node stops.
    #[error("the state machine failed: {cause}")]
    StateMachine {
        /// The engine's own error.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The node is shutting down or has stopped.
    #[error("the node has stopped: {cause}")]
    Stopped {
        /// Why.
        cause: String,
    },

    /// The directory belongs to another node or group than the configuration names.
    #[error("{dir} belongs to {what} {found}, not to {expected}")]
    WrongDirectory {
        /// The node's directory.
        dir: String,
        /// What differs: "node" or "group".
        what: &'static str,
        /// As stored there.
        found: String,
        /// As configured.
        expected: String,
    },

    /// The state machine has lost what the log no longer holds: only a network restore helps, which
    /// a replica asks for by itself.
    #[error(
        "the state machine is at VLSN {applied}, and the log begins after VLSN {anchor}: open the \
         node as a replica, so that it restores itself"
    )]
    StateBehindLog {
        /// Everything through it is applied.
        applied: Vlsn,
        /// Everything through it is gone from the log.
        anchor: Vlsn,
    },

    /// A master cannot be restored: it is what the others are restored from.
    #[error(
        "{node} is the master of term {term}, from whose log the others are restored: stop it, and \
         ask again when it follows another master"
    )]
    IsMaster {
        /// This node.
        node: Name,
        /// Its term.
        term: Term,
    },

    /// A configuration that cannot work.
    #[error("{field}: {found} found, expected {expected}")]
    BadConfig {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },

    /// The commit is written, and whether it lasts is not known yet: see
    /// [`Node::outcome`](crate::Node::outcome).
    #[error("commit {commit}: {why}; it may yet become durable, or be rolled back")]
    OutcomeUnknown {
        /// The commit.
        commit: CommitId,
        /// Why nobody can tell.
        why: Undecided,
    },
}

/// What a peer sent and what it should have sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}expected {expected}, found {found}", from_peer(.peer))]
pub struct ProtocolViolation {
    /// The peer; empty where bytes were decoded without knowing whose they are.
    pub peer: String,
    /// What the protocol allows here.
    pub expected: String,
    /// What came.
    pub found: String,
}

/// What the network did.
#[derive(Debug, thiserror::Error)]
#[error("{action} {peer}: {cause}")]
pub struct NetworkFailure {
    /// The peer.
    pub peer: String,
    /// What was being done, as in "receiving from".
    pub action: &'static str,
    /// The cause; [`io::ErrorKind::TimedOut`] when a deadline passed.
    pub cause: io::Error,
}

impl From<LogError> for RepError {
    fn from(cause: LogError) -> Self {
        match cause {
            LogError::ReadOnly { .. } => Self::ReadOnly(cause),
            cause => Self::Log(cause),
        }
    }
}

impl RepError {
    /// A [`RepError::ProtocolError`].
    pub fn protocol(
        peer: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        ProtocolViolation { peer: peer.into(), expected: expected.into(), found: found.into() }
            .into()
    }

    /// A [`RepError::NetworkError`].
    pub fn network(peer: impl Into<String>, action: &'static str, cause: io::Error) -> Self {
        NetworkFailure { peer: peer.into(), action, cause }.into()
    }

    /// A [`RepError::NetworkError`] for a peer that did not answer in time.
    pub fn silent(peer: impl Into<String>, awaited: &str, waited: Duration) -> Self {
        let cause = io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{awaited} did not arrive within {waited:?}"),
        );
        Self::network(peer, "waiting for", cause)
    }

    /// A [`RepError::StateMachine`].
    pub fn state_machine(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::StateMachine { cause: cause.into() }
    }

    /// Whether the cause is a full disk of this node, the state machine's too if its error says so: nothing
    /// is damaged, and room may come back.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::ReadOnly(cause) => cause.is_storage_full(),
            Self::NoRoom(_) => true,
            _ => self.local_causes().any(|cause| {
                let of_log = cause.downcast_ref::<LogError>();
                let of_system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
                of_log.is_some_and(LogError::is_storage_full)
                    || matches!(
                        of_system,
                        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                    )
            }),
        }
    }

    /// Whether the system refused something to this node that it may grant another time: all but that a file
    /// is gone, or is not what it was.
    pub(crate) fn is_of_the_system(&self) -> bool {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        self.local_causes().any(|cause| {
            let of_system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            of_system.is_some_and(|kind| !matches!(kind, InvalidData | NotFound | UnexpectedEof))
        })
    }

    /// What the log or the state machine of this node says, and what that was caused by.
    fn local_causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        let first: Option<&(dyn std::error::Error + 'static)> = match self {
            Self::Log(cause) | Self::ReadOnly(cause) => Some(cause),
            Self::StateMachine { cause } => Some(&**cause),
            _ => None,
        };
        std::iter::successors(first, |cause| cause.source())
    }

    /// Whether the channel is gone: closed, broken or silent.
    pub const fn is_disconnect(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::NetworkError(_))
    }

    /// Whether the peer said nothing for too long, as far as this side can tell.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::NetworkError(fault) if fault.cause.kind() == io::ErrorKind::TimedOut)
    }

    /// Names the peer in an error that was made without knowing it.
    #[must_use]
    pub fn with_peer(self, name: impl FnOnce() -> String) -> Self {
        match self {
            Self::ProtocolError(bad) if bad.peer.is_empty() => {
                Self::ProtocolError(ProtocolViolation { peer: name(), ..bad })
            }
            other => other,
        }
    }
}

/// Bytes that do not decode are a broken protocol.
impl From<CodecError> for RepError {
    fn from(bad: CodecError) -> Self {
        Self::protocol("", "a well-formed message", bad.to_string())
    }
}

fn from_peer(peer: &str) -> String {
    if peer.is_empty() { String::new() } else { format!("{peer}: ") }
}

fn master_hint(master: Option<&str>) -> String {
    master.map_or_else(|| "; the master is not known".to_owned(), |at| format!("; it is at {at}"))
}

fn bind_cause(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => "the address is in use by another process".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_peer_and_what_was_found() {
        let bad = RepError::protocol("n2", "Entry", "StartStream");
        assert_eq!(bad.to_string(), "n2: expected Entry, found StartStream");
        let bad: RepError = CodecError::Trailing { what: "Entry", extra: 3 }.into();
        let named = bad.with_peer(|| "10.0.0.7:7001".to_owned());
        assert_eq!(
            named.to_string(),
            "10.0.0.7:7001: expected a well-formed message, found 3 bytes after the end of Entry"
        );
        let bind = RepError::Bind {
            address: "127.0.0.1:7001".to_owned(),
            cause: io::ErrorKind::AddrInUse.into(),
        };
        assert_eq!(
            bind.to_string(),
            "cannot listen on 127.0.0.1:7001: the address is in use by another process"
        );
        let master = RepError::NotMaster { master: Some("h:1".to_owned()) };
        assert_eq!(master.to_string(), "not the master; it is at h:1");
    }
}
