//! A full disk: the log is read-only, loses nothing, gives no VLSN twice, and recovers by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use noxu_log::env::{Env, Fault, FaultEnv, Survivors};
use noxu_log::{
    Cut, EntryFlags, EntryKind, Log, LogConfig, LogError, LostEntries, LostNote, MarkPolicy,
    NewEntry, Result,
};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::rig::{
    Got, SEGMENT_BYTES, append, bodies, body, dir, fill, open, quiet, read_all, try_open, vlsn_of,
};

fn is_read_only<T>(result: &Result<T>) -> bool {
    matches!(result, Err(LogError::ReadOnly { .. }))
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

#[test]
fn a_full_disk_makes_the_log_read_only_until_there_is_room_again() {
    for tail_mark in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        let env = FaultEnv::new();
        let log = try_open(&env, LogConfig { tail_mark, ..quiet() }).unwrap();
        let (sender, told) = channel();
        log.on_read_only(move |cause| drop(sender.send(cause.map(ToString::to_string))));
        fill(&log, 1, 3, 100);
        log.sync_now().unwrap();
        env.set_full(true);
        // Assigned, and shipped, before anybody knows.
        append(&log, 1, &body(4, 1000)).unwrap();
        assert!(is_read_only(&log.sync_now()));
        assert!(log.is_read_only());
        let refused = append(&log, 1, &body(5, 10)).unwrap_err();
        assert!(refused.to_string().contains("0000000001.nlog"), "{refused}");
        assert_eq!(told.recv().unwrap().unwrap(), refused.to_string());
        assert_eq!(log.read_only().unwrap().to_string(), refused.to_string());
        let positions = log.positions();
        assert_eq!((positions.last, positions.durable), (vlsn_of(4), vlsn_of(3)));
        assert_eq!(bodies(&log)[3], body(4, 1000), "feeders still find it");
        assert_eq!(log.help_sync(vlsn_of(4)).unwrap(), vlsn_of(3), "never a false success");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| log.wait_durable(vlsn_of(4)));
            env.set_full(false);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(told.recv().unwrap(), None);
        assert_eq!(append(&log, 1, &body(5, 10)).unwrap().last, vlsn_of(5));
        log.sync_now().unwrap();
        let after = open(&env.clone_image(Survivors::None));
        let expected: Vec<_> =
            [(1, 100), (2, 100), (3, 100), (4, 1000), (5, 10)].map(|(n, len)| body(n, len)).into();
        assert_eq!(bodies(&after), expected, "{tail_mark}");
    }
}

#[test]
fn an_appender_that_waits_for_memory_is_refused_when_the_disk_is_full() {
    let env = FaultEnv::new();
    let log = try_open(&env, LogConfig { max_unwritten_bytes: 3000, ..quiet() }).unwrap();
    fill(&log, 1, 1, 10);
    log.sync_now().unwrap();
    env.set_full(true);
    let refused = (0..).find_map(|tag| append(&log, 1, &body(tag, 1000)).err()).unwrap();
    assert!(matches!(refused, LogError::ReadOnly { .. }), "{refused}");
    env.set_full(false);
    log.wait_durable(log.positions().last).unwrap();
}

/// Every place where a write can find no room: in the middle of a segment, and while rolling.
#[test]
fn a_write_that_finds_no_room_is_made_good_whichever_call_it_is() {
    let work = |log: &Log| {
        for vlsn in 1..=20 {
            fill(log, vlsn, vlsn, 600);
            if let Err(error) = log.sync_now() {
                assert!(matches!(error, LogError::ReadOnly { .. }), "{error}");
                log.wait_durable(vlsn_of(vlsn)).unwrap();
                wait_until(|| !log.is_read_only());
            }
        }
    };
    let env = FaultEnv::new();
    let log = open(&env);
    let before = env.calls();
    work(&log);
    let whole = bodies(&log);
    let calls: Vec<_> = env.trace().split_off(before as usize);
    let mut hit = 0;
    for call in calls {
        if !["write_at", "open", "rename"].contains(&call.function) {
            continue;
        }
        let env = FaultEnv::new();
        let log = open(&env);
        env.fail_at(call.number, Fault::NO_SPACE);
        work(&log);
        assert_eq!(bodies(&log), whole, "{call}");
        drop(log);
        assert_eq!(bodies(&open(&env.clone_image(Survivors::None))), whole, "{call}");
        hit += 1;
    }
    assert!(hit > 20, "{hit} places");
}

#[test]
fn no_vlsn_is_given_twice_whenever_the_machine_stops() {
    // Every entry ever assigned, by VLSN, and what was acknowledged.
    let work = |env: &FaultEnv| {
        let (mut assigned, mut acknowledged) = (Vec::new(), NULL_VLSN);
        let mut go = || -> Result<()> {
            let log = try_open(env, quiet())?;
            for round in 0..6u64 {
                env.set_full(round % 2 == 1);
                for tag in 0..3 {
                    let body = body(100 * round + tag, 700);
                    match append(&log, 1, &body) {
                        Ok(appended) => {
                            assert_eq!(appended.last, vlsn_of(assigned.len() as i64 + 1));
                            assigned.push(body);
                        }
                        Err(LogError::ReadOnly { .. }) => assert!(round % 2 == 1),
                        Err(error) => return Err(error),
                    }
                    match log.sync_now() {
                        Ok(durable) => acknowledged = durable,
                        Err(LogError::ReadOnly { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                env.set_full(false);
                acknowledged = log.sync_now()?;
                while log.is_read_only() {
                    if env.has_crashed() {
                        return Ok(());
                    }
                    std::thread::yield_now();
                }
            }
            log.close()
        };
        let _ = go();
        (assigned, acknowledged)
    };
    let calls = {
        let env = FaultEnv::new();
        let (assigned, acknowledged) = work(&env);
        assert_eq!(acknowledged, vlsn_of(assigned.len() as i64));
        assert!(assigned.len() < 18, "some were refused");
        env.calls()
    };
    for call in (1..calls).step_by(2) {
        let env = FaultEnv::new();
        env.crash_at(call);
        let (assigned, acknowledged) = work(&env);
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
            let after = env.crash_keeping(survivors);
            after.set_full(false);
            let found = bodies(&open(&after));
            assert!(found.len() as i64 >= acknowledged.sequence(), "call {call}, {survivors:?}");
            assert_eq!(found, assigned[..found.len()], "call {call}, {survivors:?}");
        }
    }
}

#[test]
fn who_is_told_that_the_disk_is_full_may_do_with_the_log_whatever_everybody_may() {
    for closes in [false, true] {
        let env = FaultEnv::new();
        let log = open(&env);
        let (sender, told) = channel();
        let inner = log.clone();
        log.on_read_only(move |cause| {
            let done = match inner.sync_now() {
                Err(_) if closes => inner.close(),
                done => done.and_then(|_| inner.seal_through(vlsn_of(1))),
            };
            drop(sender.send((cause.is_some(), done)));
        });
        fill(&log, 1, 1, 100);
        env.set_full(true);
        let syncing = log.clone();
        std::thread::spawn(move || drop(syncing.sync_now()));
        let (is_full, done) = told.recv_timeout(Duration::from_mins(1)).expect("it returns");
        assert!(is_full && is_read_only(&done), "{done:?}");
        env.set_full(false);
        if !closes {
            let (is_full, done) = told.recv_timeout(Duration::from_mins(1)).expect("it returns");
            assert!(!is_full && done.is_ok(), "{done:?}");
        }
    }
}

#[test]
fn a_sync_that_finds_no_room_stops_the_log() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 1, 100);
    env.fail_next("sync_data", Fault::NO_SPACE);
    assert!(matches!(log.sync_now(), Err(LogError::Poisoned { .. })));
    assert!(!log.is_read_only());
}

fn reserve() -> PathBuf {
    dir().join("reserve")
}

/// A log on a disk with no more room than it has taken, spare and reserve included, filled until
/// it is read-only; returns its last entry.
fn full(env: &FaultEnv) -> (Log, Vlsn) {
    let log = try_open(env, LogConfig { prefill: true, ..quiet() }).unwrap();
    fill(&log, 1, 1, 100);
    log.sync_now().unwrap();
    let synced = |path: PathBuf| {
        let is_it = |call: &noxu_log::env::Call| call.function == "sync_data" && call.path == path;
        wait_until(|| env.trace().iter().any(is_it));
    };
    synced(reserve());
    synced(dir().join("log/spare"));
    log.fill_ahead().unwrap();
    // Also of its name, which is synced last.
    wait_until(|| env.clone_image(Survivors::None).exists(&reserve()).unwrap());
    env.set_capacity(Some(env.used_bytes()));
    let mut last = vlsn_of(1);
    while !log.is_read_only() {
        match append(&log, 1, &body(last.sequence() as u64 + 1, 500)) {
            Ok(appended) => last = appended.last,
            Err(error) => assert!(matches!(error, LogError::ReadOnly { .. }), "{error}"),
        }
        let _ = log.sync_now();
    }
    (log, last)
}

fn term_entry(log: &Log, term: u32) -> Vlsn {
    let group = NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, b"group");
    let first = NewEntry::new(EntryKind::TERM, EntryFlags::SYNC, b"a new mastership");
    log.append(Term::new(term), &[first, group]).unwrap().last
}

#[test]
fn the_reserve_serves_term_and_group_entries_and_what_precedes_them_alone() {
    let env = FaultEnv::new();
    let (log, last) = full(&env);
    assert!(log.positions().durable < last, "one found no room");
    assert!(env.exists(&reserve()).unwrap());
    let data = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"data");
    let first = NewEntry::new(EntryKind::TERM, EntryFlags::SYNC, b"term");
    assert!(is_read_only(&log.append(Term::new(2), &[first, data])), "not in such company");
    let urgent = term_entry(&log, 2);
    assert_eq!(urgent, last.next().next());
    log.request_sync();
    log.wait_durable(urgent).unwrap();
    assert!(!env.exists(&reserve()).unwrap());
    assert!(log.is_read_only(), "its room is not for everybody");
    assert!(is_read_only(&append(&log, 2, b"refused")));
    let everything = read_all(&log, 1 << 20).unwrap();
    assert_eq!(read_all(&open(&env.clone_image(Survivors::None)), 1 << 20).unwrap(), everything);
    env.set_capacity(None);
    wait_until(|| !log.is_read_only());
    assert!(env.exists(&reserve()).unwrap(), "whole again before anybody appends");
    append(&log, 2, b"taken").unwrap();
    log.sync_now().unwrap();
}

#[test]
fn a_rollback_on_a_full_disk_saves_what_it_cuts_with_the_room_of_the_reserve() {
    let env = FaultEnv::new();
    let (log, last) = full(&env);
    let cut = Cut::Save { name: "lost".into(), note: LostNote::default() };
    let expected: Vec<Got> = read_all(&log, 1 << 20).unwrap().split_off(3);
    let truncated = log.truncate_after(vlsn_of(3), cut).unwrap();
    assert_eq!(truncated.entries, last.since(vlsn_of(3)));
    let lost = LostEntries::read(&env, dir(), "lost").unwrap();
    let found: Vec<_> = lost.entries().map(|entry| entry.body.to_vec()).collect();
    let expected: Vec<_> = expected.into_iter().map(|got| got.body).collect();
    assert_eq!(found, expected);
    assert_eq!(log.positions().last, vlsn_of(3));
    // The next master's entries come over this.
    let urgent = term_entry(&log, 2);
    assert_eq!(urgent, vlsn_of(5));
    env.set_capacity(None);
    log.wait_durable(urgent).unwrap();
    wait_until(|| !log.is_read_only());
    append(&log, 2, &body(6, 100)).unwrap();
    log.sync_now().unwrap();
}

#[test]
fn a_reserve_survives_a_restart_and_is_not_taken_for_a_part_of_the_log() {
    let env = FaultEnv::new();
    let (log, _) = full(&env);
    drop(log);
    let env = env.clone_image(Survivors::None);
    let whole = bodies(&open(&env));
    assert_eq!(env.open(&reserve(), noxu_log::env::OpenMode::Read).unwrap().len().unwrap(), {
        u64::from(SEGMENT_BYTES)
    });
    assert!(!whole.is_empty());
    let config = LogConfig { prefill: true, ..quiet() };
    env.set_capacity(Some(env.used_bytes()));
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config).unwrap();
    assert_eq!(bodies(&log), whole, "a full disk is no obstacle to opening");
}
