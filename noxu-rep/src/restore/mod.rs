//! Network restore: replaces the log and the state of a node that has no matchpoint with its
//! master, from sealed segments, the state of a node, and the entries after them.
//!
//! # How to call it
//! On every node with a log, register a [`provider::RestoreProvider`] for
//! [`RESTORE_SERVICE_NAME`](crate::net::dispatcher::RESTORE_SERVICE_NAME). On the node that restores:
//! 1. [`session::fetch`] over a channel to the master's service. It changes nothing outside
//!    `restore/`, may run while the old log is open, and ends with everything committed there.
//!    After an error call it again with a new channel: it resumes.
//! 2. Close the old log and drop its last handle.
//! 3. [`install::install`] replaces log and state. It can be repeated.
//! 4. Open the log anew and follow the master: the syncup finds the matchpoint by itself.
//!
//! When a node starts, before it opens its log: [`install::look`], and step 3 if a restore was committed.
//! One that was begun is resumed by step 1. Where there is neither, [`install::clear_up`] once the log is
//! open and nobody else has the directory.
//!
//! # What is fetched
//! *Base*: the master's sealed segments, which are the same on every node, in blocks with digests, from
//! any node that has them; and, if the front of the log is gone, the state, by a method
//! ([`crate::sync::method`]). *Live*: the entries behind the segments, from the master, into a log of their
//! own, as they are written. The master's log is pinned at what is not durable here yet, so that a slow
//! checkpoint holds none of it.
//!
//! # Disk order
//! `MARKER` -> manifest -> blocks -> sync data -> bitmap of what is had, and which segments were verified
//! since the machine was started (a killed process reads only the rest) -> all verified and synced, the
//! staged log too -> `COMMIT`, the one commit point: nothing of the old data is touched before -> restore
//! marker in the control file -> old log out, new one in, anchor, tail mark -> state machine -> restore
//! marker off -> `MARKER` removed, last. What else is in `restore/` is then garbage, and is removed.
//!
//! # See: docs/protocol.md#restore

mod base;
mod beside;
mod bitmap;
pub mod block_fetch;
pub mod install;
mod manifest;
pub mod provider;
pub(crate) mod request;
pub mod session;
mod staged;

use std::path::{Path, PathBuf};
use std::time::Duration;

use noxu_util::{Name, Vlsn};

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// What is being fetched.
    pub phase: Phase,
    /// How the state comes; `None` if it begins empty, and the log has all of it.
    pub method: Option<Name>,
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
    /// Blocks that came with a wrong digest.
    pub bad_blocks: u32,
    /// Bytes of the checkpoint had.
    pub checkpoint_bytes: u64,
    /// Of these, those that an earlier session had fetched.
    pub checkpoint_reused: u64,
    /// Entries behind the segments that came in this session.
    pub live_entries: u64,
    /// Entries that the master had more when it was last asked.
    pub behind: u64,
    /// Time since this session began to fetch.
    pub elapsed: Duration,
    /// Who gave what in this session: the master first.
    pub sources: Vec<SourceProgress>,
}

impl Progress {
    /// Bytes a second so far.
    pub fn bytes_per_second(&self) -> u64 {
        let millis = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes_fetched.saturating_mul(1000) / millis
    }

    /// How long the segments will take at this rate; `None` if nothing tells.
    pub fn time_left(&self) -> Option<Duration> {
        let fetched = self.blocks_done.checked_sub(self.blocks_reused).filter(|n| *n > 0)?;
        let left = self.blocks_total.saturating_sub(self.blocks_done);
        Some(self.elapsed * left / fetched)
    }
}

/// What one source gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProgress {
    /// Its name.
    pub name: Name,
    /// Blocks of segments.
    pub blocks: u32,
    /// Bytes of blocks and checkpoint.
    pub bytes: u64,
}

impl SourceProgress {
    fn new(name: Name) -> Self {
        Self { name, blocks: 0, bytes: 0 }
    }
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
    /// Entries after the sealed segments, until they reach what the master had at the beginning.
    Tail,
    /// All is on disk and committed.
    Committed,
}

/// When a restore was how far, since its session began to ask.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeline {
    /// When each phase was met first, in their order.
    pub phases: Vec<(Phase, Duration)>,
    /// When log and state were installed and open.
    pub installed: Option<Duration>,
}

impl Timeline {
    /// When `phase` was met first; `None` if it was not.
    pub fn began(&self, phase: Phase) -> Option<Duration> {
        self.phases.iter().find(|(met, _)| *met == phase).map(|(_, after)| *after)
    }

    /// `phase` is met, so long after the session began.
    pub(crate) fn meet(&mut self, phase: Phase, after: Duration) {
        if self.began(phase).is_none() {
            self.phases.push((phase, after));
        }
    }
}

/// What a restore brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The position before the first entry of the new log.
    pub anchor: Vlsn,
    /// The last entry of the new log.
    pub last: Vlsn,
    /// Through where the installed checkpoint goes; NULL if there was none, or if it had rotted since it was
    /// committed: then the node restores once more.
    pub checkpoint: Vlsn,
    /// Sealed segments installed.
    pub segments: u32,
    /// Where entries of the old log above its commit floor were saved, if it had any.
    pub lost: Option<PathBuf>,
}

/// Where the log in the making is while the node in `node_dir` restores: for tools that look at it from
/// outside.
pub fn staged_log(node_dir: &Path) -> PathBuf {
    restore_dir(node_dir).join(manifest::LIVE)
}

/// Where the state comes in while the node in `node_dir` restores.
pub(crate) fn state_dir(node_dir: &Path) -> PathBuf {
    restore_dir(node_dir).join(manifest::STATE)
}

/// Where a restore keeps its files.
fn restore_dir(node_dir: &Path) -> PathBuf {
    node_dir.join("restore")
}

#[cfg(test)]
mod tests;
