//! Rig: a log over any environment in which nothing happens by itself, and what reads it back.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::Env;
use noxu_log::{
    Appended, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, LogError, NewEntry, Result,
};
use noxu_util::{GroupId, Term, Vlsn};

/// Smallest segments there are, so that a few entries roll.
pub(crate) const SEGMENT_BYTES: u32 = 4096;

/// The node directory of every test.
pub(crate) fn dir() -> &'static Path {
    Path::new("/n1")
}

/// A configuration that does nothing by itself: no timers, no filling ahead, so that the calls made
/// to the environment are those of the test's thread, in an order that can be repeated.
pub(crate) fn quiet() -> LogConfig {
    LogConfig {
        sync_interval: Duration::from_hours(1),
        lazy_mark_delay: Duration::from_hours(1),
        prefill: false,
        scrub: None,
        recovery_threads: 1,
        ..LogConfig::default()
    }
}

pub(crate) fn group() -> GroupIdentity {
    GroupIdentity {
        id: GroupId::from_bytes(*b"a group of tests"),
        name: "tests".parse().unwrap(),
        segment_bytes: SEGMENT_BYTES,
    }
}

/// Opens the log and founds its group if it has none yet.
pub(crate) fn try_open(env: &(impl Env + Clone + 'static), config: LogConfig) -> Result<Log> {
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config)?;
    log.found(group())?;
    Ok(log)
}

pub(crate) fn open(env: &(impl Env + Clone + 'static)) -> Log {
    try_open(env, quiet()).unwrap()
}

/// A body that tells which entry it is.
pub(crate) fn body(tag: u64, len: usize) -> Vec<u8> {
    let mut body: Vec<u8> = (0..len).map(|i| (tag as usize * 31 + i) as u8).collect();
    let tag = tag.to_le_bytes();
    let prefix = tag.len().min(len);
    body[..prefix].copy_from_slice(&tag[..prefix]);
    body
}

/// Appends one entry that ends a transaction.
pub(crate) fn append(log: &Log, term: u32, body: &[u8]) -> Result<Appended> {
    let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body);
    log.append(Term::new(term), &[entry])
}

/// Appends entries `from..=to` of term 1 with bodies of `len` bytes.
pub(crate) fn fill(log: &Log, from: i64, to: i64, len: usize) {
    for vlsn in from..=to {
        let appended = append(log, 1, &body(vlsn as u64, len)).unwrap();
        assert_eq!(appended.last, vlsn_of(vlsn));
    }
}

pub(crate) const fn vlsn_of(sequence: i64) -> Vlsn {
    Vlsn::new(sequence)
}

/// An entry as a test compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) vlsn: Vlsn,
    pub(crate) term: Term,
    pub(crate) kind: EntryKind,
    pub(crate) flags: EntryFlags,
    pub(crate) body: Vec<u8>,
}

/// Everything the log holds, read `max_bytes` at a time.
pub(crate) fn read_all(log: &Log, max_bytes: usize) -> Result<Vec<Got>> {
    let mut next = log.positions().anchor.vlsn.next();
    let mut all = Vec::new();
    while let Some(run) = log.read(next, max_bytes)? {
        assert_eq!(run.first, next);
        for entry in run.entries() {
            assert_eq!(entry.header.vlsn, next);
            all.push(Got {
                vlsn: next,
                term: entry.header.term,
                kind: entry.header.kind,
                flags: entry.header.flags,
                body: entry.body.to_vec(),
            });
            next = next.next();
        }
        assert_eq!(run.last.next(), next);
    }
    Ok(all)
}

pub(crate) fn bodies(log: &Log) -> Vec<Vec<u8>> {
    read_all(log, 64 << 10).unwrap().into_iter().map(|got| got.body).collect()
}

/// Whether an error says that bytes on disk are damaged.
pub(crate) fn is_damage(error: &LogError) -> bool {
    matches!(
        error,
        LogError::Corrupt { .. }
            | LogError::Faulty { .. }
            | LogError::ChainMismatch { .. }
            | LogError::DamagedFile { .. }
            | LogError::ControlUnreadable { .. }
    )
}

/// Names of the segment files, oldest first.
pub(crate) fn segments(env: &dyn Env) -> Vec<String> {
    let mut names = env.list(&dir().join("log")).unwrap();
    names.retain(|name| Path::new(name).extension().is_some_and(|suffix| suffix == "nlog"));
    names
}
