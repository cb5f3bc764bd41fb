//! Many threads at once: log order is VLSN order, and everybody who waits is told the truth.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use noxu_log::env::{FaultEnv, MemoryEnv, RealEnv, Survivors};
use noxu_log::{EntryFlags, EntryKind, Log, LogConfig, NewEntry};
use noxu_util::{Term, Vlsn};

use crate::rig::{append, body, dir, group, open, quiet, read_all};

/// Batches of 1 to 3 entries from `threads` threads; every batch gets adjacent VLSNs, every thread
/// its own in ascending order, and the log holds exactly what was given out.
fn check_order(log: &Log, threads: u64, batches: u64, durable: bool) {
    let given = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let given = &given;
            scope.spawn(move || {
                let mut before = Vlsn::default();
                for batch in 0..batches {
                    let tag = thread << 32 | batch;
                    let count = 1 + (thread + batch) as usize % 3;
                    let bodies: Vec<_> = (0..count).map(|i| body(tag, 8 + 90 * i)).collect();
                    let entries: Vec<_> = bodies
                        .iter()
                        .map(|body| NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body))
                        .collect();
                    let appended = log.append(Term::new(1), &entries).unwrap();
                    assert!(appended.first > before, "a thread's batches are in order");
                    assert_eq!(appended.last.since(appended.first) as usize + 1, count);
                    before = appended.last;
                    if durable {
                        log.wait_durable(appended.last).unwrap();
                        assert!(log.positions().durable >= appended.last);
                    }
                    let mut given = given.lock().unwrap();
                    for (i, body) in bodies.into_iter().enumerate() {
                        given.insert(appended.first.plus(i as u64), body);
                    }
                }
            });
        }
    });
    log.sync_now().unwrap();
    let given = given.into_inner().unwrap();
    let found = read_all(log, 100_000).unwrap();
    assert_eq!(found.len(), given.len());
    for (got, (vlsn, body)) in found.iter().zip(&given) {
        assert_eq!((got.vlsn, &got.body), (*vlsn, body));
    }
    let mut lsn = noxu_util::NULL_LSN;
    for vlsn in given.keys() {
        let (_, next) = log.header(*vlsn).unwrap().unwrap();
        assert!(next > lsn, "log order is VLSN order");
        lsn = next;
    }
}

#[test]
fn log_order_is_vlsn_order_with_64_appenders() {
    for threads in [1, 8, 64] {
        check_order(&open(&MemoryEnv::new()), threads, 2000 / threads, false);
    }
}

#[test]
fn log_order_is_vlsn_order_with_64_committers_on_real_files() {
    let temp = tempfile::tempdir().unwrap();
    let config = LogConfig { tail_bytes: 10_000, ..LogConfig::default() };
    let env = std::sync::Arc::new(RealEnv::new());
    let (log, _) = Log::open(env.clone(), temp.path(), config.clone()).unwrap();
    log.found(group()).unwrap();
    check_order(&log, 64, 10, true);
    let expected = read_all(&log, 10_000).unwrap();
    log.close().unwrap();
    drop(log);
    let (log, report) = Log::open(env, temp.path(), config).unwrap();
    assert!(report.clean_shutdown);
    assert_eq!(read_all(&log, 10_000).unwrap(), expected);
}

#[test]
fn what_waiters_were_told_is_durable_survives_a_crash_at_any_moment() {
    for call in (30..400).step_by(17) {
        let env = FaultEnv::new();
        let log = open(&env);
        let promised = AtomicI64::new(0);
        env.crash_at(call);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (log, promised) = (log.clone(), &promised);
                scope.spawn(move || {
                    for batch in 0..200 {
                        let Ok(appended) = append(&log, 1, &body(thread << 32 | batch, 60)) else {
                            return;
                        };
                        if log.wait_durable(appended.last).is_err() {
                            return;
                        }
                        promised.fetch_max(appended.last.sequence(), Ordering::SeqCst);
                    }
                });
            }
        });
        let log = open(&env.crash_keeping(Survivors::None));
        let promised = Vlsn::new(promised.load(Ordering::SeqCst));
        assert!(log.positions().last >= promised, "{promised} was promised");
    }
}

#[test]
fn a_lone_waiter_does_not_wait_for_a_timer() {
    let config = LogConfig { sync_interval: std::time::Duration::from_hours(1), ..quiet() };
    let (log, _) = Log::open(std::sync::Arc::new(MemoryEnv::new()), dir(), config).unwrap();
    log.found(group()).unwrap();
    let last = append(&log, 1, b"lone").unwrap().last;
    log.wait_durable(last).unwrap();
    // The other way: somebody asks, and the hook tells.
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_durable(move |durable| {
        let _ = sender.send(durable);
    });
    let last = append(&log, 1, b"asked for").unwrap().last;
    log.request_sync();
    assert_eq!(receiver.recv().unwrap(), last);
}
