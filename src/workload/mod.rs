//! Workloads: what `noxu bench` and the criterion benches measure, so that both measure the same.
//!
//! - [`clients`]: closed-loop committers, as blocked threads or as handles of one thread.
//! - [`stream`]: one log to another over a channel.
//! - [`diverged`]: two logs that part at a depth, and the search for where.

pub mod clients;
pub mod diverged;
pub mod stream;

use std::path::Path;
use std::sync::Arc;

use noxu_kv::KvError;
use noxu_log::env::RealEnv;
use noxu_log::{
    DEFAULT_SEGMENT_BYTES, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, LogError, NewEntry,
};
use noxu_rep::RepError;
use noxu_util::{GroupId, Term, Vlsn};

/// Length of the random keys, in bytes.
pub const KEY_BYTES: usize = 16;
/// Length of the values, in bytes.
pub const VALUE_BYTES: usize = 100;
/// Kind of the entries in logs without a state.
pub const KIND: EntryKind = EntryKind(16);
/// Term of the entries in logs without a state.
pub const TERM: Term = Term::new(1);

/// Entries in one append where only the filling counts.
const FILL_BATCH: u64 = 256;

/// Why a workload could not be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The replication.
    #[error(transparent)]
    Rep(#[from] RepError),
    /// The store.
    #[error(transparent)]
    Store(#[from] KvError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The operating system, and what was asked of it.
    #[error("{what}: {source}")]
    System {
        /// What was asked.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// It ended otherwise than it must.
    #[error("{0}")]
    Failed(String),
}

impl WorkloadError {
    /// An error of the operating system.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::System { what, source }
    }
}

/// The result of a workload.
pub type Result<T> = std::result::Result<T, WorkloadError>;

/// A fresh log in `dir`, on real files, with the default settings.
pub fn found_log(dir: &Path, group: &GroupIdentity) -> Result<Log> {
    let (log, _) = Log::open(Arc::new(RealEnv), dir, LogConfig::default())?;
    log.found(group.clone())?;
    Ok(log)
}

/// Opens the log in `dir` again.
pub fn reopen_log(dir: &Path) -> Result<Log> {
    Ok(Log::open(Arc::new(RealEnv), dir, LogConfig::default())?.0)
}

/// A group of its own.
///
/// # Panics
/// Never: the name is one.
pub fn new_group() -> GroupIdentity {
    GroupIdentity {
        id: GroupId::random(),
        name: "bench".parse().expect("a name"),
        segment_bytes: DEFAULT_SEGMENT_BYTES,
    }
}

/// Appends `count` commits with bodies of `body_bytes` and makes them durable.
pub fn fill(log: &Log, term: Term, count: u64, body_bytes: usize) -> Result<Vlsn> {
    let mut body = vec![0; body_bytes];
    fastrand::fill(&mut body);
    let mut left = count;
    while left > 0 {
        let batch = left.min(FILL_BATCH);
        let entries: Vec<_> =
            (0..batch).map(|_| NewEntry::new(KIND, EntryFlags::COMMIT, &body)).collect();
        log.append(term, &entries)?;
        left -= batch;
    }
    Ok(log.sync_now()?)
}
