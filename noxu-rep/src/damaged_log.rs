//! Damaged log: a small log, whole or with one entry that cannot be read, for this crate's tests.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv};
use noxu_log::segment::name::parse_segment_name;
use noxu_log::{EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_util::{GroupId, Term, Vlsn};

fn open(env: &FaultEnv) -> Log {
    let config = LogConfig { prefill: false, ..LogConfig::default() };
    Log::open(Arc::new(env.clone()), Path::new("/n"), config).unwrap().0
}

/// Ten entries of term 1, synced, each of which ends a transaction.
pub(crate) fn whole() -> Log {
    filled(&FaultEnv::new())
}

fn filled(env: &FaultEnv) -> Log {
    let log = open(env);
    log.found(GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: "tests".parse().unwrap(),
        segment_bytes: 1 << 20,
    })
    .unwrap();
    for n in 0..10 {
        let body = [n; 100];
        let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)];
        log.append(Term::new(1), &entry).unwrap();
    }
    log.sync_now().unwrap();
    log
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
    (open(&env), entry)
}
