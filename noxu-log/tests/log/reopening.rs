//! Reopening: what recovery keeps, cuts and refuses.

use std::io::IoSlice;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors};
use noxu_log::{Cut, Log, LogConfig, LogError, MarkPolicy, ScrubConfig};
use noxu_util::{Term, Vlsn};

use crate::rig;
use crate::support::{DIR, bodies, body, config, fresh, open, put};

fn segment(number: u32) -> std::path::PathBuf {
    Path::new(DIR).join(format!("log/{number:010}.nlog"))
}

fn flip(env: &Arc<dyn Env>, path: &Path, at: u64) {
    let file = env.open(path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, at).unwrap(), 1);
    file.write_at(&[IoSlice::new(&[byte[0] ^ 0x40])], at).unwrap();
}

#[test]
fn what_was_synced_is_there_again() {
    let (env, log) = fresh(4096);
    let expected: Vec<_> = (1..=100).map(|n| body(n, 200)).collect();
    for body in &expected {
        put(&log, 1, body);
    }
    log.sync_now().unwrap();
    let before = log.positions();
    drop(log);
    let (log, report) = open(&env);
    assert_eq!(log.positions(), before);
    assert_eq!(report.torn_bytes, 0);
    assert_eq!(bodies(&log, Vlsn::new(1), 700), expected);
    assert_eq!(put(&log, 2, b"more"), Vlsn::new(101));
}

#[test]
fn a_directory_in_use_is_refused() {
    let (env, _log) = fresh(4096);
    let refused = Log::open(env, Path::new(DIR), config()).unwrap_err();
    assert!(matches!(refused, LogError::Locked { .. }), "{refused}");
}

#[test]
fn bytes_behind_the_last_synced_entry_are_cut_as_torn() {
    let (env, log) = fresh(4096);
    put(&log, 1, &body(1, 100));
    log.close().unwrap();
    drop(log);
    let file = env.open(&segment(1), OpenMode::ReadWrite).unwrap();
    let end = file.len().unwrap();
    file.write_at(&[IoSlice::new(&[0x55; 77])], end).unwrap();
    let (log, report) = open(&env);
    assert_eq!(report.torn_bytes, 77);
    assert_eq!(log.positions().last, Vlsn::new(1));
    assert_eq!(env.open(&segment(1), OpenMode::Read).unwrap().len().unwrap(), end);
    put(&log, 1, &body(2, 10));
    assert_eq!(bodies(&log, Vlsn::new(1), 1000).len(), 2);
}

#[test]
fn a_flipped_byte_in_a_synced_entry_is_kept_apart_with_its_place_and_nothing_is_changed() {
    let (env, log) = fresh(4096);
    for n in 1..=60 {
        put(&log, 1, &body(n, 100));
    }
    log.sync_now().unwrap();
    let (_, lsn) = log.header(Vlsn::new(50)).unwrap().unwrap();
    log.close().unwrap();
    drop(log);
    let path = segment(lsn.segment());
    let at = u64::from(lsn.offset()) + 40;
    flip(&env, &path, at);
    let (log, report) = open(&env);
    let place = report.faulty.iter().map(|f| (f.first, f.last, f.segment, f.offset));
    let vlsn = Vlsn::new(50);
    assert_eq!(place.collect::<Vec<_>>(), [(vlsn, vlsn, lsn.segment(), lsn.offset())]);
    assert_eq!(log.positions().last, Vlsn::new(60));
    let refused = log.read(vlsn, 100).unwrap_err();
    assert!(matches!(refused, LogError::Faulty { .. }), "{refused}");
    log.close().unwrap();
    drop(log);
    flip(&env, &path, at);
    let (log, report) = open(&env);
    assert!(report.faulty.is_empty(), "nothing was changed");
    assert_eq!(bodies(&log, Vlsn::new(1), 1000).len(), 60);
}

#[test]
fn a_lost_segment_is_named() {
    let (env, log) = fresh(4096);
    for n in 1..=100 {
        put(&log, 1, &body(n, 100));
    }
    log.close().unwrap();
    drop(log);
    env.remove(&segment(2)).unwrap();
    let refused = Log::open(Arc::clone(&env), Path::new(DIR), config()).unwrap_err();
    assert!(refused.to_string().contains("0000000002.nlog"), "{refused}");
}

#[test]
fn a_damaged_side_file_is_rebuilt() {
    let (env, log) = fresh(4096);
    for n in 1..=200 {
        put(&log, 1, &body(n, 100));
    }
    log.sync_now().unwrap();
    log.seal_through(Vlsn::new(200)).unwrap();
    let sealed = log.sealed_segments();
    assert!(sealed.len() > 3);
    log.close().unwrap();
    drop(log);
    flip(&env, &Path::new(DIR).join("log/0000000002.nside"), 100);
    env.remove(&Path::new(DIR).join("log/0000000003.nside")).unwrap();
    let (log, report) = open(&env);
    assert_eq!(report.scanned_segments, 3, "the two without a side file, and the last");
    for n in 1..=200 {
        assert!(log.header(Vlsn::new(n)).unwrap().is_some());
    }
    log.seal_through(Vlsn::new(200)).unwrap();
    assert_eq!(log.sealed_segments(), sealed);
}

#[test]
fn a_rotten_header_behind_a_sealed_segment_is_damage_even_if_the_tail_mark_is_lost_too() {
    let (env, log) = fresh(4096);
    for n in 1..=100 {
        put(&log, 1, &body(n, 100));
    }
    log.sync_now().unwrap();
    log.seal_through(Vlsn::new(100)).unwrap();
    let (before, last) = (log.positions(), log.positions().last_lsn.segment());
    assert_eq!(log.sealed_segments().last().unwrap().number + 1, last);
    log.close().unwrap();
    drop(log);
    env.remove(&Path::new(DIR).join("tail-mark")).unwrap();
    flip(&env, &segment(last), 40);
    let (log, report) = open(&env);
    assert_eq!(report.repaired_headers, [last]);
    assert!(report.head_uncertain);
    assert_eq!(log.positions().last, before.last);
    assert_eq!(bodies(&log, Vlsn::new(1), 1000).len(), 100);
}

#[test]
fn a_closed_log_writes_nothing_into_a_directory_that_somebody_else_has_opened() {
    let env = FaultEnv::new();
    let old = rig::open(&env);
    rig::fill(&old, 1, 1, 100);
    let hold = env.hold_next("sync_data");
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| old.close());
        hold.wait_until_met();
        // Closing has written what it found; this one comes too late.
        rig::fill(&old, 2, 2, 100);
        drop(hold);
        closing.join().unwrap().unwrap();
    });
    let new = rig::open(&env);
    assert_eq!(new.positions().last, Vlsn::new(1));
    rig::append(&new, 7, b"of the new one").unwrap();
    new.sync_now().unwrap();
    for refused in [old.sync_now().map(drop), old.write_now()] {
        assert!(matches!(refused, Err(LogError::Closed { .. })), "{refused:?}");
    }
    drop(old);
    drop(new);
    let new = rig::open(&env);
    assert_eq!(rig::bodies(&new)[1], b"of the new one");
}

#[test]
fn closing_waits_for_work_that_has_begun_before_it_gives_the_directory_back() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 30, 1000);
    log.sync_now().unwrap();
    std::thread::scope(|scope| {
        // The first of several side files gets its name.
        let hold = env.hold_next("rename");
        let sealing = scope.spawn(|| log.seal_through(Vlsn::new(30)));
        hold.wait_until_met();
        let closing = scope.spawn(|| log.close());
        while !matches!(rig::append(&log, 1, b"x"), Err(LogError::Closed { .. })) {
            std::thread::yield_now();
        }
        drop(hold);
        closing.join().unwrap().unwrap();
        let calls = env.calls();
        let _ = sealing.join().unwrap();
        assert_eq!(env.calls(), calls, "the directory is somebody else's by now");
    });
}

/// Calls that change something, or may.
fn writes(env: &FaultEnv) -> Vec<String> {
    let reads = ["read_at", "len", "list", "exists", "lock", "free_bytes"];
    let trace = env.trace();
    let writes = trace.iter().filter(|call| !reads.contains(&call.function));
    writes.map(ToString::to_string).collect()
}

#[test]
fn whoever_calls_a_closed_log_changes_nothing_in_its_directory() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.seal_through(Vlsn::new(9)).unwrap();
    let first = log.sealed_segments()[0].number;
    let block = noxu_log::env::read_whole(&env, &rig::dir().join("log/0000000001.nlog")).unwrap();
    log.close().unwrap();
    env.remove(&rig::dir().join("log/0000000001.nside")).unwrap();
    let before = env.digest();
    let refused = [
        ("update", log.control().update(|control| control.term = Term::new(9))),
        ("found", log.found(rig::group())),
        ("append", rig::append(&log, 1, b"x").map(drop)),
        ("sync", log.sync_now().map(drop)),
        ("write", log.write_now()),
        ("wait", log.wait_durable(Vlsn::new(30)).and_then(|()| log.write_now())),
        ("fill", log.fill_ahead()),
        ("seal", log.seal_through(Vlsn::new(30))),
        ("drop", log.drop_through(Vlsn::new(30)).map(drop)),
        ("retain", log.retain().map(drop)),
        ("truncate", log.truncate_after(Vlsn::new(29), Cut::Discard).map(drop)),
        ("replace", log.replace_block(first, 0, &block)),
    ];
    for (what, refused) in refused {
        assert!(matches!(refused, Err(LogError::Closed { .. })), "{what}: {refused:?}");
    }
    // These read; what they miss they may not make again.
    let _ = log.block_digests(first);
    let _ = log.read(Vlsn::new(1), 1 << 20);
    let _ = log.scrub(&ScrubConfig::default(), |_| ControlFlow::Continue(()));
    log.close().unwrap();
    assert_eq!(env.digest(), before);
    drop(log);
    assert_eq!(env.digest(), before);
}

#[test]
fn filling_ahead_ends_before_closing_gives_the_directory_back() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 3, 500);
    log.sync_now().unwrap();
    // Of the spare segment.
    let hold = env.hold_next("open");
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| log.fill_ahead());
        hold.wait_until_met();
        let closing = scope.spawn(|| log.close().map(|()| writes(&env).len()));
        while !matches!(rig::append(&log, 1, b"x"), Err(LogError::Closed { .. })) {
            std::thread::yield_now();
        }
        // Nothing tells that the close waits. A close that does not is found out the surer the longer
        // it is left alone; one that does passes after any time.
        std::thread::sleep(Duration::from_millis(50));
        drop(hold);
        let calls = closing.join().unwrap().unwrap();
        let filled = filling.join().unwrap();
        assert!(matches!(filled, Err(LogError::Closed { .. })), "{filled:?}");
        assert_eq!(writes(&env)[calls..], [""; 0]);
    });
}

#[test]
fn a_mark_that_comes_too_late_is_not_written_once_the_log_is_closed() {
    let env = FaultEnv::new();
    let config = LogConfig { tail_mark: MarkPolicy::Lazy, ..rig::quiet() };
    let log = rig::try_open(&env, config).unwrap();
    rig::fill(&log, 1, 1, 100);
    let (told, inner) = (Arc::new(Mutex::new(None)), log.clone());
    let (hook, disk) = (Arc::clone(&told), env.clone());
    log.on_durable(move |_| {
        inner.close().unwrap();
        hook.lock().unwrap().get_or_insert_with(|| writes(&disk).len());
    });
    log.sync_now().unwrap();
    let calls = told.lock().unwrap().expect("the hook ran");
    assert_eq!(writes(&env)[calls..], [""; 0]);
}

#[test]
fn an_entry_that_slips_in_while_the_log_is_closed_does_not_make_the_head_uncertain() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 1, 100);
    let data = env.hold_next("sync_data");
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| log.close());
        data.wait_until_met();
        let mark = env.hold_next("sync_data");
        drop(data);
        mark.wait_until_met();
        rig::fill(&log, 2, 2, 100);
        log.write_now().unwrap();
        drop(mark);
        closing.join().unwrap().unwrap();
    });
    drop(log);
    for survivors in [Survivors::All, Survivors::None] {
        let env = env.clone_image(survivors);
        let (log, report) = Log::open(Arc::new(env), rig::dir(), rig::quiet()).unwrap();
        assert!(!report.head_uncertain, "{survivors:?}");
        assert!(log.positions().last >= Vlsn::new(1));
    }
}
