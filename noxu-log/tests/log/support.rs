//! What the log's tests share: a log in memory, and entries to fill it with.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, MemoryEnv};
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry, OpenReport};
use noxu_util::{GroupId, Term, Vlsn};

pub(crate) const DIR: &str = "/node";
pub(crate) const PUT: EntryKind = EntryKind(16);

/// A group with small segments.
pub(crate) fn group(segment_bytes: u32) -> GroupIdentity {
    GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: "tests".parse().expect("a name"),
        segment_bytes,
    }
}

/// Small buffers, so that few entries cross every border.
pub(crate) fn config() -> LogConfig {
    LogConfig { tail_bytes: 8 << 10, prefill: false, ..LogConfig::default() }
}

pub(crate) fn open(env: &Arc<dyn Env>) -> (Log, OpenReport) {
    Log::open(Arc::clone(env), Path::new(DIR), config()).expect("the log opens")
}

/// A founded log in memory.
pub(crate) fn fresh(segment_bytes: u32) -> (Arc<dyn Env>, Log) {
    let env: Arc<dyn Env> = Arc::new(MemoryEnv::default());
    let (log, _) = open(&env);
    log.found(group(segment_bytes)).expect("founded");
    (env, log)
}

/// Appends one committed entry.
pub(crate) fn put(log: &Log, term: u32, body: &[u8]) -> Vlsn {
    let entry = NewEntry::new(PUT, EntryFlags::COMMIT, body);
    log.append(Term::new(term), &[entry]).expect("appended").last
}

/// A body that tells which entry it belongs to, `len` bytes long.
pub(crate) fn body(n: u64, len: usize) -> Vec<u8> {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(len.max(8), (n % 251) as u8);
    body
}

/// Every body of the log from `from` on, read in steps of `max_bytes`.
pub(crate) fn bodies(log: &Log, from: Vlsn, max_bytes: usize) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut next = from;
    while let Some(run) = log.read(next, max_bytes).expect("readable") {
        assert_eq!(run.first, next);
        out.extend(run.entries().map(|entry| entry.body.to_vec()));
        assert_eq!(run.entries().count() as u64, run.count());
        next = run.last.next();
    }
    out
}
