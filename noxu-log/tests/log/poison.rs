//! A failed write or sync stops the log for good: nothing after it is ever reported durable.

use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::{Fault, FaultEnv, Survivors};
use noxu_log::{Cut, Log, LogConfig, LogError, Until};

use crate::rig::{append, bodies, body, dir, fill, group, open, quiet, vlsn_of};

fn is_poisoned<T>(result: &Result<T, LogError>) -> bool {
    matches!(result, Err(LogError::Poisoned { .. }))
}

#[test]
fn a_failed_write_or_sync_poisons_every_later_call() {
    for (function, fault) in
        [("sync_data", Fault::IO), ("write_at", Fault::IO), ("sync_data", Fault::NO_SPACE)]
    {
        let env = FaultEnv::new();
        let log = open(&env);
        fill(&log, 1, 3, 100);
        log.sync_now().unwrap();
        append(&log, 1, &body(4, 100)).unwrap();
        env.fail_next(function, fault);
        let first = log.sync_now().unwrap_err();
        assert!(first.to_string().contains("0000000001.nlog"), "{first}");
        // The disk works again, but nobody may trust it before recovery.
        let writes = env.calls();
        assert!(is_poisoned(&append(&log, 1, b"later")));
        assert!(is_poisoned(&log.sync_now()));
        assert!(is_poisoned(&log.write_now()));
        assert!(is_poisoned(&log.wait_durable(vlsn_of(4))));
        assert!(is_poisoned(&log.help_sync(vlsn_of(4))));
        assert!(is_poisoned(&log.truncate_after(vlsn_of(1), noxu_log::Cut::Discard)));
        assert_eq!(env.calls(), writes, "nothing was tried again");
        assert_eq!(log.positions().durable, vlsn_of(3));
        drop(log);
        for survivors in [Survivors::None, Survivors::All] {
            let log = open(&env.clone_image(survivors));
            assert!(log.positions().last >= vlsn_of(3));
            assert_eq!(bodies(&log)[..3], [1, 2, 3].map(|tag| body(tag, 100)));
        }
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_is_durable_once_a_log_was_opened_over_it() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 3, 100);
    log.sync_now().unwrap();
    fill(&log, 4, 30, 700);
    env.fail_next("sync_data", Fault::IO);
    assert!(log.sync_now().is_err());
    // The process is started again on a machine that runs on: it sees what the sync did not save.
    let running = env.kill();
    let log = open(&running);
    let seen = log.positions();
    assert!(seen.last > vlsn_of(3), "{seen:?}");
    assert_eq!(seen.durable, seen.last);
    let after = open(&running.crash_keeping(Survivors::None));
    assert_eq!(after.positions().last, seen.last);
    assert_eq!(after.faulty(), []);
}

#[test]
fn a_failure_wakes_those_who_wait_and_tells_the_hook() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 1, 10);
    log.sync_now().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_poisoned(move |cause| drop(sender.send(cause.clone())));
    std::thread::scope(|scope| {
        let reader = log.reader();
        let since = reader.moment();
        let far = std::time::Duration::from_mins(1);
        let waiting = scope.spawn(move || reader.wait(Until::Beyond(vlsn_of(5)), since, far));
        append(&log, 1, &body(2, 10)).unwrap();
        env.fail_next("sync_data", Fault::IO);
        log.request_sync();
        let cause = receiver.recv().unwrap();
        assert!(matches!(cause, LogError::Io { action: "sync", .. }), "{cause:?}");
        assert!(is_poisoned(&waiting.join().unwrap()));
    });
    assert!(is_poisoned(&log.wait_durable(vlsn_of(2))));
}

/// In the data stage, in the mark stage, and in a truncation, which holds all there is to hold.
#[test]
fn who_is_told_of_a_failure_may_do_with_the_log_whatever_everybody_may() {
    for (calls_before, truncates) in [(0, false), (1, false), (0, true), (1, true)] {
        let env = FaultEnv::new();
        let log = open(&env);
        fill(&log, 1, 3, 10);
        log.sync_now().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let inner = log.clone();
        log.on_poisoned(move |_| {
            let last = inner.positions().last;
            assert!(is_poisoned(&inner.sync_now()));
            assert!(is_poisoned(&inner.truncate_after(vlsn_of(1), Cut::Discard)));
            assert!(is_poisoned(&inner.seal_through(last)));
            inner.on_durable(|_| ());
            let closed = is_poisoned(&inner.close());
            let _ = sender.send((last, closed));
        });
        if !truncates {
            fill(&log, 4, 4, 10);
        }
        for _ in 0..calls_before {
            env.fail_next("sync_data", Fault::Slow(Duration::ZERO));
        }
        env.fail_next("sync_data", Fault::IO);
        let failing = log.clone();
        std::thread::spawn(move || {
            if truncates {
                drop(failing.truncate_after(vlsn_of(2), Cut::Discard));
            } else {
                drop(failing.sync_now());
            }
        });
        let told = receiver.recv_timeout(Duration::from_mins(1));
        let last = vlsn_of(if truncates { 3 } else { 4 });
        assert_eq!(told, Ok((last, true)), "{calls_before} syncs before, truncation: {truncates}");
    }
}

#[test]
fn entries_given_out_before_a_failure_can_still_be_read() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 3, 10);
    env.fail_next("sync_data", Fault::IO);
    log.sync_now().unwrap_err();
    assert_eq!(bodies(&log).len(), 3);
}

#[test]
fn a_failed_sync_of_the_thread_that_fills_ahead_stops_the_log_too() {
    let env = FaultEnv::new();
    let config = LogConfig { prefill: true, ..quiet() };
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_poisoned(move |cause| drop(sender.send(cause.to_string())));
    // Without a spare, the first segment itself is filled while entries are written to it.
    env.fail_next("allocate", Fault::IO); // of the reserve
    env.fail_next("allocate", Fault::NO_SPACE);
    log.found(group()).unwrap();
    while env.trace().iter().filter(|call| call.function == "remove").count() < 2 {
        std::thread::yield_now();
    }
    env.fail_next("allocate", Fault::IO); // of the reserve, once more
    env.fail_next("sync_data", Fault::IO);
    append(&log, 1, &body(1, 100)).unwrap();
    log.write_now().unwrap();
    let cause = receiver.recv_timeout(std::time::Duration::from_mins(1)).unwrap();
    assert!(cause.contains("0000000001.nlog"), "{cause}");
    assert!(is_poisoned(&log.sync_now()), "what was lost must not be called durable");
}
