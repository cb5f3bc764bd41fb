//! Network restore: replaces the log and the state of a node that has no matchpoint with its
//! master, from the master's sealed segments, a checkpoint, and the entries after them.
//!
//! # How to call it
//! On every node with a log, register a [`provider::RestoreProvider`] for
//! [`RESTORE_SERVICE_NAME`](crate::net::dispatcher::RESTORE_SERVICE_NAME); it pins
//! the front of the log while it serves somebody. On the node that restores:
//! 1. [`session::fetch`] over a channel to the master's service. It changes nothing outside
//!    `restore/`, may run while the old log is open, and ends with everything committed there.
//!    After an error call it again with a new channel: it resumes.
//! 2. Close the old log and drop its last handle.
//! 3. [`install::install`] replaces log and state. It can be repeated.
//! 4. Open the log anew and follow the master: the syncup finds the matchpoint by itself.
//!
//! When a node starts, before it opens its log: [`install::recover`], which finishes a restore that
//! was committed, and says whether one was begun, for step 1 to resume.
//!
//! # Disk order
//! `MARKER` -> manifest -> blocks -> sync data -> bitmap of what is had -> all verified and synced
//! -> `COMMIT`, the one commit point: nothing of the old data is touched before -> restore marker in
//! the control file -> old log out, new one in, anchor, tail mark -> state machine -> entries after
//! the segments -> restore marker off -> `MARKER` removed, last. What else is in `restore/` is then
//! garbage, and is removed.
//!
//! # Not here yet
//! Several sources at once and the live lane: all comes from the master.
//! # See: docs/protocol.md#restore

mod bitmap;
pub mod install;
mod manifest;
pub mod provider;
pub mod session;

use std::path::{Path, PathBuf};

use noxu_util::Vlsn;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// What is being fetched.
    pub phase: Phase,
    /// Blocks of segments had, fetched now or earlier.
    pub blocks_done: u32,
    /// Blocks of segments in all.
    pub blocks_total: u32,
    /// Bytes that came in this session: blocks, checkpoint and entries.
    pub bytes_fetched: u64,
    /// Blocks that an earlier session had fetched.
    pub blocks_reused: u32,
    /// Blocks that the bitmap claimed wrongly: never, unless the disk lost what it had synced.
    pub false_claims: u32,
}

/// The steps of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Asking what there is.
    #[default]
    Manifest,
    /// Sealed segments.
    Segments,
    /// The state machine's checkpoint.
    Checkpoint,
    /// Entries after the sealed segments.
    Tail,
    /// All is on disk and committed.
    Committed,
}

/// What a restore brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The position before the first entry of the new log.
    pub anchor: Vlsn,
    /// The last entry of the new log.
    pub last: Vlsn,
    /// Through where the installed checkpoint goes; NULL if there was none.
    pub checkpoint: Vlsn,
    /// Sealed segments installed.
    pub segments: u32,
    /// Where entries of the old log above its commit floor were saved, if it had any.
    pub lost: Option<PathBuf>,
}

/// Where a restore keeps its files.
fn restore_dir(node_dir: &Path) -> PathBuf {
    node_dir.join("restore")
}

#[cfg(test)]
mod tests;
