//! Truncation: what is cut is gone from the log and kept as lost entries.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use noxu_log::env::{Fault, FaultEnv, Survivors};
use noxu_log::{Cut, EntryFlags, LogError, LostEntries, LostNote, NewEntry};
use noxu_util::{Term, Vlsn};

use crate::rig;
use crate::support::{PUT, bodies, body, fresh, open, put};

#[test]
fn cut_after_every_entry_and_write_on() {
    for cut in 1..=80u64 {
        let (env, log) = fresh(4096);
        let first: Vec<_> = (1..=80).map(|n| body(n, 180)).collect();
        for body in &first {
            put(&log, 1, body);
        }
        if cut % 2 == 0 {
            log.sync_now().unwrap();
        }
        let note = LostNote { time_ms: 5, master: "n2".into(), ..LostNote::default() };
        let name = format!("cut-{cut}");
        let done = log
            .truncate_after(
                Vlsn::new(cut as i64),
                Cut::Save { name: name.clone(), note: note.clone() },
            )
            .unwrap();
        assert_eq!((done.last, done.entries), (Vlsn::new(cut as i64), 80 - cut));
        assert_eq!(log.positions().last, Vlsn::new(cut as i64), "the matchpoint itself is kept");
        assert_eq!(log.positions().last_sync, Vlsn::new(cut as i64));
        let second: Vec<_> = (1..=30).map(|n| body(1000 + n, 90)).collect();
        for body in &second {
            put(&log, 2, body);
        }
        log.sync_now().unwrap();
        let expected: Vec<_> = first[..cut as usize].iter().chain(&second).cloned().collect();
        assert_eq!(bodies(&log, Vlsn::new(1), 3000), expected);
        let before = log.positions();
        log.close().unwrap();
        drop(log);
        let (log, _) = open(&env);
        assert_eq!(log.positions(), before);
        assert_eq!(bodies(&log, Vlsn::new(1), 3000), expected);
        if cut < 80 {
            let lost = LostEntries::read(&*env, log.dir(), &name).unwrap();
            assert_eq!(lost.header.note, note);
            assert_eq!(lost.header.kept.vlsn, Vlsn::new(cut as i64));
            assert_eq!(lost.header.end.vlsn, Vlsn::new(80));
            let entries: Vec<_> = lost.entries().map(|entry| entry.body.to_vec()).collect();
            assert_eq!(entries, first[cut as usize..]);
            assert_eq!(LostEntries::list(&*env, log.dir()).unwrap(), [name]);
        }
        // The same entries on a log that was never cut give the same positions.
        let (_env, straight) = fresh(4096);
        for body in &expected[..cut as usize] {
            put(&straight, 1, body);
        }
        for body in &second {
            put(&straight, 2, body);
        }
        straight.sync_now().unwrap();
        assert_eq!(straight.positions(), before, "cut after {cut}");
        assert_eq!(straight.term_table(), log.term_table());
    }
}

#[test]
fn what_is_settled_is_never_cut() {
    let (_env, log) = fresh(4096);
    for n in 1..=100 {
        put(&log, 1, &body(n, 100));
    }
    log.sync_now().unwrap();
    log.settle(Vlsn::new(60));
    let refused = log.truncate_after(Vlsn::new(59), Cut::Discard).unwrap_err();
    assert!(matches!(refused, LogError::BelowCommitFloor { .. }), "{refused}");
    assert_eq!(log.positions().last, Vlsn::new(100));
    log.truncate_after(Vlsn::new(60), Cut::Discard).unwrap();
    assert_eq!(log.positions().last, Vlsn::new(60));
    let again = log.truncate_after(Vlsn::new(60), Cut::Discard).unwrap();
    assert_eq!(again.entries, 0);
}

#[test]
fn a_cut_inside_a_transaction_leaves_the_sync_entry_before_it() {
    let (_env, log) = fresh(4096);
    for n in 1..=30u64 {
        let flags = if n % 10 == 0 { EntryFlags::COMMIT } else { EntryFlags::NONE };
        log.append(Term::new(1), &[NewEntry::new(PUT, flags, &body(n, 300))]).unwrap();
    }
    log.truncate_after(Vlsn::new(25), Cut::Discard).unwrap();
    let positions = log.positions();
    assert_eq!((positions.last, positions.last_sync), (Vlsn::new(25), Vlsn::new(20)));
    assert_eq!(positions.last_txn_end, Vlsn::new(20));
}

#[test]
fn lost_segments_that_were_filled_ahead_read_back_whole() {
    let (env, log) = fresh(4096);
    // Entries of 1,532 bytes: two to a segment, zeros for the rest.
    let bodies: Vec<_> = (1..=7).map(|n| body(n, 1500)).collect();
    for body in &bodies {
        put(&log, 1, body);
        log.sync_now().unwrap();
        log.fill_ahead().unwrap();
    }
    let save = Cut::Save { name: "cut".into(), note: LostNote::default() };
    log.truncate_after(Vlsn::new(1), save).unwrap();
    let lost = LostEntries::read(&*env, log.dir(), "cut").unwrap();
    assert_eq!(lost.header.moved, [2, 3, 4]);
    let entries: Vec<_> = lost.entries().map(|entry| entry.body.to_vec()).collect();
    assert_eq!(entries, bodies[1..]);
}

#[test]
fn a_truncation_whose_intent_may_be_on_the_disk_stops_the_log() {
    for (function, call) in [("write_at", 1), ("write_at", 2), ("sync_data", 1), ("sync_data", 2)] {
        let env = FaultEnv::new();
        let log = rig::open(&env);
        rig::fill(&log, 1, 5, 100);
        log.sync_now().unwrap();
        // The next writes and syncs are those of the control file, slot by slot.
        if call == 2 {
            env.fail_next(function, Fault::Slow(Duration::ZERO));
        }
        env.fail_next(function, Fault::IO);
        log.truncate_after(Vlsn::new(3), Cut::Discard).unwrap_err();
        let told = rig::append(&log, 1, b"acknowledged?").and_then(|appended| {
            log.wait_durable(appended.last)?;
            Ok(appended.last)
        });
        drop(log);
        let log = rig::open(&env.clone_image(Survivors::All));
        if let Ok(told) = told {
            let last = log.positions().last;
            assert!(last >= told, "{function} {call}: {told} was acknowledged, {last} is left");
        }
    }
}

#[test]
fn what_is_kept_and_cannot_be_read_again_stops_the_log_without_a_panic() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 9, 100);
    log.sync_now().unwrap();
    let (_, lsn) = log.header(Vlsn::new(2)).unwrap().unwrap();
    env.corrupt(&rig::dir().join("log/0000000001.nlog"), u64::from(lsn.offset()) + 50, 1).unwrap();
    let refused = log.truncate_after(Vlsn::new(5), Cut::Discard).unwrap_err();
    assert!(matches!(refused, LogError::Poisoned { .. }), "{refused}");
    // Nobody waits for the end of it.
    assert!(log.read(Vlsn::new(1), 1).is_err());
    drop(log);
    let log = rig::open(&env);
    assert_eq!(log.positions().last, Vlsn::new(5));
    assert_eq!(log.faulty().len(), 1);
}

#[test]
fn whoever_follows_what_is_durable_is_told_of_what_a_truncation_syncs_and_keeps() {
    let env = FaultEnv::new();
    let log = rig::open(&env);
    rig::fill(&log, 1, 9, 100);
    let told = Arc::new(AtomicI64::new(0));
    let hook = Arc::clone(&told);
    log.on_durable(move |durable| hook.store(durable.sequence(), Ordering::SeqCst));
    log.truncate_after(Vlsn::new(5), Cut::Discard).unwrap();
    assert_eq!(log.positions().durable, Vlsn::new(5));
    assert_eq!(told.load(Ordering::SeqCst), 5);
}

#[test]
fn whoever_waits_for_an_entry_that_is_cut_off_is_told_so_and_never_of_another_with_its_number() {
    for reused in [false, true] {
        let env = FaultEnv::new();
        let log = rig::open(&env);
        rig::fill(&log, 1, 9, 100);
        log.sync_now().unwrap();
        let hold = env.hold_next("set_len");
        let (sender, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let cutting = scope.spawn(|| log.truncate_after(Vlsn::new(5), Cut::Discard));
            hold.wait_until_met();
            // Cut off with what was there before.
            let late = rig::append(&log, 1, b"late").unwrap().last;
            assert_eq!(late, Vlsn::new(10));
            let waiter = log.clone();
            std::thread::spawn(move || drop(sender.send(waiter.wait_durable(late))));
            while log.waiting() == 0 {
                std::thread::yield_now();
            }
            drop(hold);
            cutting.join().unwrap().unwrap();
        });
        if reused {
            for vlsn in 6..=10 {
                assert_eq!(rig::append(&log, 2, b"other").unwrap().last, Vlsn::new(vlsn));
            }
            log.sync_now().unwrap();
        }
        let outcome = told.recv_timeout(Duration::from_mins(1)).expect("nobody waits for ever");
        let Err(LogError::CutOff { requested, last }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((requested, last), (Vlsn::new(10), Vlsn::new(5)));
    }
}

#[test]
fn nobody_waits_for_an_entry_that_is_not_there() {
    let (_env, log) = fresh(4096);
    put(&log, 1, b"first");
    let cut_off = put(&log, 1, b"second");
    log.truncate_after(Vlsn::new(1), Cut::Discard).unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    let waiter = log.clone();
    std::thread::spawn(move || drop(sender.send(waiter.wait_durable(cut_off))));
    let refused = told.recv_timeout(Duration::from_mins(1)).expect("nobody waits for ever");
    assert!(matches!(refused, Err(LogError::CutOff { .. })), "{refused:?}");
    log.wait_durable(Vlsn::new(1)).unwrap();
    put(&log, 2, b"another second");
    log.wait_durable(Vlsn::new(2)).unwrap();
}

/// A thread that has synced tells the hooks while another truncates: whoever counts acknowledgements
/// would take what was cut, and what is appended in its place, for durable.
#[test]
fn no_hook_hears_of_what_was_cut_once_the_truncation_has_returned() {
    let (_env, log) = fresh(4096);
    for n in 1..=10 {
        put(&log, 1, &body(n, 100));
    }
    let is_cut = Arc::new(AtomicBool::new(false));
    let (told, telling) = mpsc::channel();
    let (cut, has_cut) = mpsc::channel();
    let has_cut = parking_lot::Mutex::new(Some(has_cut));
    log.on_durable(move |_| {
        let first = has_cut.lock().take();
        if let Some(has_cut) = first {
            told.send(()).unwrap();
            // The truncation must not return before this hook does, so this waits in vain.
            let _ = has_cut.recv_timeout(Duration::from_millis(200));
        }
    });
    let late = Arc::new(AtomicI64::new(0));
    {
        let (late, is_cut) = (Arc::clone(&late), Arc::clone(&is_cut));
        log.on_durable(move |durable| {
            if is_cut.load(Ordering::SeqCst) {
                late.fetch_max(durable.sequence(), Ordering::SeqCst);
            }
        });
    }
    std::thread::scope(|threads| {
        threads.spawn(|| log.sync_now().unwrap());
        telling.recv().unwrap();
        log.truncate_after(Vlsn::new(4), Cut::Discard).unwrap();
        is_cut.store(true, Ordering::SeqCst);
        let _ = cut.send(());
    });
    assert!(late.load(Ordering::SeqCst) <= 4, "a hook heard of entry {late:?} after the cut");
}
