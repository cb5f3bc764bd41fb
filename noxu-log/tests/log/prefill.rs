//! Prefill: which segments are filled with zeros ahead of the writes, and how far.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_log::env::{Call, Env, Fault, FaultEnv};
use noxu_log::{Log, LogConfig};

use crate::rig;
use crate::support::{DIR, body, group, put};

const MIB: usize = 1 << 20;
const SEGMENT_BYTES: u32 = 8 << 20;

fn open(env: &FaultEnv) -> Log {
    let env: Arc<dyn Env> = Arc::new(env.clone());
    let config = LogConfig { sync_interval: Duration::from_hours(1), ..LogConfig::default() };
    Log::open(env, Path::new(DIR), config).expect("the log opens").0
}

fn log_file(name: &str) -> PathBuf {
    Path::new(DIR).join("log").join(name)
}

/// Number of the last call of `function` on the named file of the log; 0 if there was none.
fn last_call(env: &FaultEnv, function: &str, name: &str) -> u64 {
    let path = log_file(name);
    let is_it = |call: &Call| call.function == function && call.path == path;
    env.trace().into_iter().rev().find(is_it).map_or(0, |call| call.number)
}

/// How far the spare has been filled since the call `since`.
fn spare_bytes(env: &FaultEnv, since: u64) -> u64 {
    let path = log_file("spare");
    let is_it = |call: &Call| call.function == "allocate" && call.path == path;
    let calls = env.trace().into_iter().filter(|call| call.number > since);
    calls.filter(is_it).map(|call| call.offset).max().unwrap_or(0)
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::yield_now();
    }
}

/// Appends `bytes` in entries of `each`, and syncs each of them.
fn put_synced(log: &Log, bytes: usize, each: usize) {
    for n in 0..bytes / each {
        put(log, 1, &body(n as u64, each - 32));
        log.sync_now().expect("synced");
    }
}

#[test]
fn the_first_segment_is_filled_before_anything_is_appended() {
    let env = FaultEnv::new();
    let log = open(&env);
    log.found(group(SEGMENT_BYTES)).unwrap();
    wait_until("the spare is whole", || spare_bytes(&env, 0) == u64::from(SEGMENT_BYTES));
}

#[test]
fn with_small_syncs_the_next_segment_is_filled_two_bytes_for_each_one_written() {
    let env = FaultEnv::new();
    let log = open(&env);
    log.found(group(SEGMENT_BYTES)).unwrap();
    // Until a segment begins in a file that was filled before.
    wait_until("the spare is used", || {
        put_synced(&log, 16 << 10, 16 << 10);
        last_call(&env, "rename", "spare") > 0
    });
    let begun = last_call(&env, "rename", "spare");
    put_synced(&log, 2 * MIB, 16 << 10);
    wait_until("two bytes for each", || spare_bytes(&env, begun) >= 2 * MIB as u64);
    assert!(spare_bytes(&env, begun) <= 5 * MIB as u64);
    put_synced(&log, 3 * MIB, 16 << 10);
    wait_until("whole", || spare_bytes(&env, begun) == u64::from(SEGMENT_BYTES));
}

#[test]
fn with_long_syncs_nothing_is_filled() {
    let env = FaultEnv::new();
    let log = open(&env);
    log.found(group(SEGMENT_BYTES)).unwrap();
    put_synced(&log, 30 * MIB, MIB);
    // The keeper looks at a fill before a seal: once it has sealed, it has left the fill.
    let sealed = log_file("0000000002.nside");
    log.settle(log.positions().last);
    wait_until("sealed", || env.exists(&sealed).unwrap());
    let second = env.trace().into_iter().find(|call| call.path == log_file("0000000002.nlog"));
    let second = second.expect("three segments were written").number;
    let late = env.trace().into_iter().find(|c| c.function == "allocate" && c.number > second);
    assert!(late.is_none(), "{}", late.unwrap());
}

#[test]
fn a_fill_that_fails_leaves_the_spare_that_the_writer_was_given() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 1, 100);
    log.close().unwrap();
    drop(log);
    // Nothing is being written yet, so that the spare alone is filled, whole.
    let log = rig::open(&env);
    log.fill_ahead().unwrap();
    rig::fill(&log, 2, 2, 100);
    log.sync_now().unwrap();
    env.fail_next("allocate", Fault::NO_SPACE);
    log.fill_ahead().unwrap_err();
    rig::fill(&log, 3, 20, 1000);
    log.sync_now().unwrap();
    assert_eq!(rig::bodies(&log).len(), 20);
}

#[test]
fn a_spare_whose_name_is_gone_stops_nothing() {
    let env = FaultEnv::new();
    let log = crate::rig::open(&env);
    crate::rig::fill(&log, 1, 2, 500);
    log.sync_now().unwrap();
    log.fill_ahead().unwrap();
    env.remove(&crate::rig::dir().join("log/spare")).unwrap();
    crate::rig::fill(&log, 3, 30, 500);
    log.sync_now().unwrap();
    assert_eq!(crate::rig::bodies(&log).len(), 30);
}

/// Two threads fill ahead at once: whoever comes second must not begin the spare again that the
/// first has given to the writer, for by then it may be a segment with entries in it.
#[test]
fn two_threads_that_fill_ahead_make_one_spare() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    let hold = env.hold_next("allocate");
    std::thread::scope(|threads| {
        let first = threads.spawn(|| log.fill_ahead().unwrap());
        hold.wait_until_met();
        let second = threads.spawn(|| log.fill_ahead().unwrap());
        // Until it stands at the fill, as far as can be told: too early proves nothing, and fails
        // nothing.
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        drop(hold);
        first.join().unwrap();
        second.join().unwrap();
    });
    let begun = env.trace().into_iter();
    let begun = begun.filter(|call| call.function == "set_len" && call.path.ends_with("spare"));
    assert_eq!(begun.count(), 1, "the spare is begun once");
    rig::fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    assert_eq!(rig::bodies(&log).len(), 30);
}
