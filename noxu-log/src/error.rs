//! Errors: what the log tells its caller, one variant for each thing a caller does about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_util::{Fingerprint, Vlsn};

/// Why the log could not do what was asked. Cloneable, so that a poisoned log can hand its first
/// cause to every later caller.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb: "open", "write", "sync".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The file system's answer.
        source: Arc<io::Error>,
    },
    /// A write or sync failed earlier: what is on disk is no longer known, so nothing more is
    /// written until the log is opened again and recovered.
    #[error("stopped after a failed write, open it again to recover: {cause}")]
    Poisoned {
        /// The first failure.
        cause: Arc<LogError>,
    },
    /// Another process, or another handle of this one, has the directory open.
    #[error("{path} is locked: another process has this directory open", path = .path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The directory belongs to no group yet.
    #[error("{dir} belongs to no group yet: found a group or join one first", dir = .dir.display())]
    NotFounded {
        /// The node directory.
        dir: PathBuf,
    },
    /// The directory belongs to a group already.
    #[error("{dir} belongs to {found} already, {wanted} was asked for", dir = .dir.display())]
    AlreadyFounded {
        /// The node directory.
        dir: PathBuf,
        /// The group it belongs to.
        found: String,
        /// The group asked for.
        wanted: String,
    },
    /// The entry asked for was dropped from the front of the log.
    #[error("entry {requested} is gone: this log begins at {first}")]
    Gap {
        /// The entry asked for.
        requested: Vlsn,
        /// The first entry the log holds.
        first: Vlsn,
    },
    /// The entry waited for is not in the log: a truncation has cut it off, and what stands there
    /// now, if anything does, is another one.
    #[error("entry {requested} is not in the log, which was cut off or ends after {last}")]
    CutOff {
        /// The entry waited for.
        requested: Vlsn,
        /// The last entry that the truncation kept, or the log's last one.
        last: Vlsn,
    },
    /// There is no such sealed segment: it is still growing, was dropped, or never was.
    #[error("segment {segment} is not a sealed segment of this log")]
    NotSealed {
        /// Its number.
        segment: u32,
    },
    /// A sealed segment has no such block.
    #[error("segment {segment} has {blocks} blocks, none with number {block}")]
    NoSuchBlock {
        /// Number of the segment.
        segment: u32,
        /// Number asked for, from 0.
        block: u32,
        /// Blocks it has.
        blocks: u32,
    },
    /// Bytes that were to replace a block are not the block's: nothing was written.
    #[error("block {block} of segment {segment} has digest {expected}, the bytes given {found}")]
    WrongBlock {
        /// Number of the segment.
        segment: u32,
        /// Number of the block, from 0.
        block: u32,
        /// Digest of the block.
        expected: blake3::Hash,
        /// Digest of the bytes.
        found: blake3::Hash,
    },
    /// A holder has lost its place at the front of the log: its budget ran out.
    #[error("{holder} has lost its place at entry {at}: this log begins at {first}")]
    LostPlace {
        /// Who held it.
        holder: String,
        /// The first entry that it still needed.
        at: Vlsn,
        /// The first entry the log holds.
        first: Vlsn,
    },
    /// A truncation would remove entries that a majority is known to hold.
    #[error(
        "cannot truncate after {requested}: everything through {floor} is durable on a majority"
    )]
    BelowCommitFloor {
        /// The last entry that was to be kept.
        requested: Vlsn,
        /// The commit floor.
        floor: Vlsn,
    },
    /// A log or side file holds something that it cannot hold.
    #[error("segment {segment} is damaged at offset {offset}: {expected} expected, {found} found")]
    Corrupt {
        /// Number of the segment.
        segment: u32,
        /// Byte offset in the file.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Entries that belong to the log cannot be read.
    #[error(
        "entries {first} to {last} are damaged in segment {segment} at offset {offset}: {found} \
         found; they can be repaired from a node that holds them"
    )]
    Faulty {
        /// The first one.
        first: Vlsn,
        /// The last one.
        last: Vlsn,
        /// Number of the segment.
        segment: u32,
        /// Byte offset in the file.
        offset: u64,
        /// What is there.
        found: String,
    },
    /// A repair of entries that are not damaged.
    #[error("entries {first} to {last} are not what is to be repaired here")]
    NotFaulty {
        /// The first one.
        first: Vlsn,
        /// The last one.
        last: Vlsn,
    },
    /// A repair with entries that are not those which are damaged.
    #[error("what is offered for entries {first} to {last} does not fit there: {found}")]
    Misfit {
        /// The first one that is damaged.
        first: Vlsn,
        /// The last one.
        last: Vlsn,
        /// What was offered.
        found: String,
    },
    /// The control file cannot be read, so that the node's term and vote are not known.
    #[error(
        "the control file {path} is unreadable ({reason}); this node no longer knows its term and \
         vote: restore the file from a copy made after the node's last start, or wipe the \
         directory and let the node join again",
        path = .path.display()
    )]
    ControlUnreadable {
        /// The control file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was written by a newer or foreign version.
    #[error("{path} has format version {found}, this build reads {expected}", path = .path.display())]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u16,
        /// The version this build writes and reads.
        expected: u16,
    },
    /// A file beside the log holds something that it cannot hold.
    #[error("{path} is damaged: {reason}", path = .path.display())]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A thread of the log panicked.
    #[error("the thread {thread} panicked")]
    ThreadPanicked {
        /// Its name.
        thread: String,
    },
    /// A network restore was cut short while it replaced the log.
    #[error(
        "a network restore was replacing the log in {dir}: start the node, which finishes it",
        dir = .dir.display()
    )]
    RestorePending {
        /// The node directory.
        dir: PathBuf,
    },
    /// The disk is full. Nothing was appended; the log takes entries again by itself once there is
    /// room.
    #[error(
        "the disk is full, no room to write {path}: the log is read-only until there is room again",
        path = .path.display()
    )]
    ReadOnly {
        /// What could not be written.
        path: PathBuf,
    },
    /// The log was closed.
    #[error("the log in {dir} is closed", dir = .dir.display())]
    Closed {
        /// The node directory.
        dir: PathBuf,
    },
    /// Neither a node directory nor a file of a log.
    #[error("{path} holds no log: a node directory, a folder of segments, or a file of either expected", path = .path.display())]
    NoLog {
        /// The directory or file.
        path: PathBuf,
    },
    /// An entry does not follow from the one before it.
    #[error("entry {vlsn} breaks the chain: fingerprint {expected} expected, {found} found")]
    ChainMismatch {
        /// The entry.
        vlsn: Vlsn,
        /// The fingerprint that follows from its predecessor.
        expected: Fingerprint,
        /// The fingerprint it has.
        found: Fingerprint,
    },
    /// Something is larger than its limit.
    #[error("{what} of {found} bytes is too large: at most {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// What the log's functions return.
pub type Result<T, E = LogError> = std::result::Result<T, E>;

impl LogError {
    /// The file system refused `action` on `path`.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Appends are refused, because `path` finds no room.
    pub(crate) fn read_only(path: &Path) -> Self {
        Self::ReadOnly { path: path.to_owned() }
    }

    /// What every call after this failure is answered with.
    #[must_use]
    pub fn poisoned(&self) -> Self {
        match self {
            Self::Poisoned { .. } => self.clone(),
            cause => Self::Poisoned { cause: Arc::new(cause.clone()) },
        }
    }

    /// The control file at `path` cannot be read.
    pub fn control_unreadable(path: &Path, reason: impl Into<String>) -> Self {
        Self::ControlUnreadable { path: path.to_owned(), reason: reason.into() }
    }

    /// Whether the cause is a full disk: nothing is damaged, and space may come back.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::ReadOnly { .. } => true,
            Self::Poisoned { cause } => cause.is_storage_full(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poisoned_error_keeps_its_first_cause() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let first = LogError::io("write", Path::new("/n/log/0000000001.nlog"), full);
        let later = first.poisoned().poisoned();
        let LogError::Poisoned { cause } = &later else { panic!("{later:?}") };
        assert!(matches!(**cause, LogError::Io { .. }), "{later:?}");
        assert!(later.is_storage_full());
        assert!(later.to_string().contains("/n/log/0000000001.nlog"), "{later}");
    }
}
