//! A log without threads: whoever opened it does what they would, and nothing happens meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use noxu_log::env::{Fault, FaultEnv, Survivors};
use noxu_log::{Background, Log, LogConfig, LogError, MarkPolicy, Pending, RetentionConfig, Until};
use noxu_util::{NULL_VLSN, Vlsn};

use crate::rig::{append, bodies, body, dir, fill, open, quiet, try_open, vlsn_of};

fn caller() -> LogConfig {
    LogConfig { background: Background::Caller, ..quiet() }
}

/// A founded log with nothing left to do.
fn idle(env: &FaultEnv, config: LogConfig) -> Log {
    let log = try_open(env, config).unwrap();
    log.upkeep().unwrap();
    assert_eq!(log.pending(), Pending::default());
    log
}

/// Does what is due until nothing is.
fn settle_down(log: &Log) {
    while log.pending().is_any() {
        log.upkeep().unwrap();
    }
}

#[test]
fn a_sync_that_was_asked_for_is_done_by_the_upkeep_and_told_of() {
    let env = FaultEnv::new();
    let log = idle(&env, caller());
    let heard = Arc::new(AtomicI64::new(0));
    let hook = Arc::clone(&heard);
    log.on_durable(move |vlsn| hook.store(vlsn.sequence(), Ordering::SeqCst));
    fill(&log, 1, 3, 100);
    assert!(!log.pending().is_any(), "nobody asked");
    let calls = env.calls();
    log.upkeep().unwrap();
    assert_eq!(env.calls(), calls, "and nothing is done");
    log.request_write();
    assert_eq!(log.pending(), Pending { write: true, ..Pending::default() });
    log.request_sync();
    assert_eq!(log.pending(), Pending { sync: true, ..Pending::default() });
    assert_eq!(log.positions().durable, NULL_VLSN);
    settle_down(&log);
    assert_eq!(log.positions().durable, vlsn_of(3));
    assert_eq!(heard.load(Ordering::SeqCst), 3);
    fill(&log, 4, 4, 100);
    log.wait_durable(vlsn_of(4)).unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), 4, "in this thread");
    assert!(matches!(log.wait_durable(vlsn_of(5)), Err(LogError::CutOff { .. })));
    let after = open(&env.clone_image(Survivors::None));
    assert_eq!(bodies(&after), [1, 2, 3, 4].map(|tag| body(tag, 100)));
}

#[test]
fn finished_segments_are_sealed_and_dropped_by_the_upkeep() {
    let retention =
        RetentionConfig { keep_bytes: 0, keep_age: Duration::ZERO, ..Default::default() };
    let log = idle(&FaultEnv::new(), LogConfig { retention, ..caller() });
    fill(&log, 1, 20, 900);
    log.sync_now().unwrap();
    log.settle(vlsn_of(20));
    assert!(log.pending().seal);
    assert!(log.sealed_segments().is_empty());
    settle_down(&log);
    let sealed = log.sealed_segments();
    assert_eq!(sealed.len(), 4);
    log.set_checkpoint(vlsn_of(20));
    assert_eq!(log.pending(), Pending { retain: true, ..Pending::default() });
    assert_eq!(log.positions().first, vlsn_of(1));
    settle_down(&log);
    assert_eq!(log.positions().anchor.vlsn, sealed[3].last);
}

#[test]
fn a_lazy_mark_is_synced_by_the_next_upkeep() {
    let env = FaultEnv::new();
    let log = idle(&env, LogConfig { tail_mark: MarkPolicy::Lazy, ..caller() });
    fill(&log, 1, 3, 100);
    log.request_sync();
    log.upkeep().unwrap();
    assert_eq!(log.mark_status().exempt(), 3, "the flush was this upkeep's own");
    assert!(log.pending().lazy_mark);
    settle_down(&log);
    assert_eq!(log.mark_status().exempt(), 0);
}

#[test]
fn an_appender_without_room_in_memory_writes_in_its_own_thread() {
    let log = idle(&FaultEnv::new(), LogConfig { max_unwritten_bytes: 3000, ..caller() });
    fill(&log, 1, 20, 1000);
    let positions = log.positions();
    assert!(positions.written >= vlsn_of(15), "{positions:?}");
    assert_eq!(positions.durable, NULL_VLSN, "written, not synced");
}

#[test]
fn a_full_disk_is_asked_for_room_by_the_upkeep() {
    for tail_mark in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        let env = FaultEnv::new();
        let log = idle(&env, LogConfig { tail_mark, max_unwritten_bytes: 3000, ..caller() });
        let (sender, told) = channel();
        log.on_read_only(move |cause| sender.send(cause.is_some()).unwrap());
        fill(&log, 1, 1, 100);
        env.set_full(true);
        let refused = (2..).find_map(|tag| append(&log, 1, &body(tag, 1000)).err()).unwrap();
        assert!(matches!(refused, LogError::ReadOnly { .. }), "{refused}");
        assert_eq!(told.try_recv(), Ok(true));
        let last = log.positions().last;
        let waited = log.wait_durable(last);
        assert!(matches!(waited, Err(LogError::ReadOnly { .. })), "nobody else looks: {waited:?}");
        for _ in 0..3 {
            log.upkeep().unwrap();
            assert!(log.pending().look_for_room && log.is_read_only());
        }
        env.set_full(false);
        assert!(log.is_read_only(), "nobody has looked");
        settle_down(&log);
        assert_eq!(log.positions().durable, last);
        assert_eq!(told.try_recv(), Ok(false));
        assert_eq!(append(&log, 1, b"taken").unwrap().last, last.next());
    }
}

#[test]
fn who_listens_for_a_failure_is_told_by_the_upkeep_and_once() {
    let env = FaultEnv::new();
    let log = idle(&env, caller());
    let (sender, told) = channel();
    let inner = log.clone();
    log.on_poisoned(move |cause| {
        // No lock of the log is held.
        let stopped = matches!(inner.upkeep(), Err(LogError::Poisoned { .. }));
        drop(sender.send((cause.to_string(), stopped, inner.positions().last)));
    });
    fill(&log, 1, 1, 100);
    env.fail_next("sync_data", Fault::IO);
    let failed = log.sync_now().unwrap_err();
    assert!(told.try_recv().is_err(), "not by a thread that may hold a lock");
    assert_eq!(log.pending(), Pending { alarm: true, ..Pending::default() });
    assert!(matches!(log.upkeep(), Err(LogError::Poisoned { .. })));
    let (cause, stopped, last) = told.try_recv().unwrap();
    assert!(failed.to_string().contains(&cause), "{failed}: {cause}");
    assert!(stopped && last == vlsn_of(1));
    assert!(!log.pending().alarm);
    log.upkeep().unwrap_err();
    assert!(told.try_recv().is_err());
    // A failure that the upkeep itself meets is told of before it returns.
    let env = FaultEnv::new();
    let log = idle(&env, caller());
    let (sender, told) = channel();
    log.on_poisoned(move |_| sender.send(()).unwrap());
    fill(&log, 1, 1, 100);
    log.request_sync();
    env.fail_next("sync_data", Fault::IO);
    log.upkeep().unwrap_err();
    assert_eq!(told.try_recv(), Ok(()));
}

#[test]
fn closing_leaves_an_orderly_end_and_nothing_to_do() {
    let env = FaultEnv::new();
    let log = idle(&env, LogConfig { tail_mark: MarkPolicy::Lazy, ..caller() });
    fill(&log, 1, 3, 100);
    log.close().unwrap();
    assert!(matches!(log.upkeep(), Err(LogError::Closed { .. })));
    let (log, report) = Log::open(Arc::new(env), dir(), caller()).unwrap();
    assert!(report.clean_shutdown);
    assert_eq!(log.positions().durable, vlsn_of(3));
}

#[test]
fn the_disk_owes_an_answer_since_the_sync_under_way_began() {
    let busy_during = |env: &FaultEnv, log: &Log, sync: &(dyn Fn() + Sync)| {
        assert_eq!(log.busy_since(), None);
        let before = Instant::now();
        let hold = env.hold_next("sync_data");
        std::thread::scope(|scope| {
            let syncing = scope.spawn(sync);
            hold.wait_until_met();
            let since = log.busy_since().expect("it is held up");
            assert!(since >= before && since <= Instant::now());
            assert_eq!(log.busy_since(), Some(since));
            drop(hold);
            syncing.join().unwrap();
        });
        assert_eq!(log.busy_since(), None);
    };
    let env = FaultEnv::new();
    let log = idle(&env, LogConfig { tail_mark: MarkPolicy::Lazy, ..caller() });
    fill(&log, 1, 1, 100);
    busy_during(&env, &log, &|| assert_eq!(log.sync_now().unwrap(), vlsn_of(1)));
    assert!(log.pending().lazy_mark);
    busy_during(&env, &log, &|| log.upkeep().unwrap());
    assert_eq!(log.mark_status().exempt(), 0, "that one was the mark's");
    fill(&log, 2, 2, 100);
    env.fail_next("sync_data", Fault::IO);
    log.sync_now().unwrap_err();
    assert_eq!(log.busy_since(), None, "a failure is an answer");
}

/// In a process of its own, where no other test's logs have threads.
#[cfg(target_os = "linux")]
#[test]
fn a_log_without_threads_starts_none() {
    const ALONE: &str = "NOXU_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "caller::a_log_without_threads_starts_none", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{alone:?}");
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let env = FaultEnv::new();
    let config = LogConfig {
        recovery_threads: 8,
        prefill: true,
        scrub: Some(noxu_log::ScrubConfig::default()),
        ..caller()
    };
    let before = threads();
    let log = idle(&env, config.clone());
    log.on_poisoned(|_| assert!(std::thread::current().name().is_none_or(|n| n != "noxu-alarm")));
    fill(&log, 1, 40, 900);
    log.wait_durable(vlsn_of(40)).unwrap();
    let reader = log.reader();
    let moment = reader.moment();
    reader.wait(Until::Beyond(Vlsn::new(39)), moment, Duration::ZERO).unwrap();
    assert_eq!(threads(), before);
    let (again, report) = {
        let env = env.clone_image(Survivors::None);
        Log::open(Arc::new(env), dir(), config.clone()).unwrap()
    };
    assert!(report.scanned_segments > 8, "{report:?}");
    assert_eq!(again.config().recovery_threads, 1);
    fill(&log, 41, 41, 900);
    env.fail_next("sync_data", Fault::IO);
    log.sync_now().unwrap_err();
    log.upkeep().unwrap_err();
    assert_eq!(threads(), before);
    // The count does tell.
    let threaded = LogConfig { background: Background::Threads, ..config };
    let env = FaultEnv::new();
    let (_log, _) = Log::open(Arc::new(env), dir(), threaded).unwrap();
    assert_eq!(threads(), before + 4);
}
