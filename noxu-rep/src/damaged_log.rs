//! Damaged log: a small log, whole or with one entry that cannot be read, for this crate's tests.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv};
use noxu_log::segment::name::parse_segment_name;
use noxu_log::{
    Appended, EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, NewEntry,
};
use noxu_util::{GroupId, Term, Vlsn};

/// The log on this disk.
pub(crate) fn reopened(env: &FaultEnv) -> Log {
    let config = LogConfig { prefill: false, ..LogConfig::default() };
    Log::open(Arc::new(env.clone()), Path::new("/n"), config).unwrap().0
}

/// Ten entries of term 1, synced, each of which ends a transaction.
pub(crate) fn whole() -> Log {
    filled(&FaultEnv::new())
}

/// Sixty such entries in small segments, the finished ones sealed; and its disk.
pub(crate) fn sealed() -> (FaultEnv, Log) {
    let env = FaultEnv::new();
    let log = filled_with(&env, 4096, 60);
    log.seal_through(log.positions().last).unwrap();
    assert!(!log.sealed_segments().is_empty());
    (env, log)
}

fn filled(env: &FaultEnv) -> Log {
    filled_with(env, 1 << 20, 10)
}

fn filled_with(env: &FaultEnv, segment_bytes: u32, count: u8) -> Log {
    let log = reopened(env);
    log.found(GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: "tests".parse().unwrap(),
        segment_bytes,
    })
    .unwrap();
    for n in 0..count {
        append(&log, n);
    }
    log.sync_now().unwrap();
    log
}

/// One more, with `n` all over its body; not synced.
pub(crate) fn append(log: &Log, n: u8) -> Appended {
    let body = [n; 100];
    let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)];
    log.append(Term::new(1), &entry).unwrap()
}

/// The same with entry 5 damaged; and that entry as it was.
pub(crate) fn damaged() -> (Log, EntryRun) {
    damaged_at(Vlsn::new(5))
}

/// The same with the entry at `vlsn` damaged.
pub(crate) fn damaged_at(vlsn: Vlsn) -> (Log, EntryRun) {
    let env = FaultEnv::new();
    let log = filled(&env);
    let (header, lsn) = log.header(vlsn).unwrap().unwrap();
    let entry = log.read(vlsn, header.entry_bytes()).unwrap().unwrap();
    assert_eq!((entry.first, entry.last), (vlsn, vlsn));
    log.close().unwrap();
    drop(log);
    let names = env.list(Path::new("/n/log")).unwrap();
    let name = names.iter().find(|name| parse_segment_name(name).is_some()).unwrap();
    let path = Path::new("/n/log").join(name);
    env.corrupt(&path, u64::from(lsn.offset()) + 60, 0x10).unwrap();
    (reopened(&env), entry)
}
