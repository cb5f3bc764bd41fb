//! Rollback: a deposed master or a replica with a tail of its own comes back.

use std::time::{Duration, Instant};

use noxu_log::{EntryFlags, Log, NewEntry};
use noxu_rep::net::channel::LocalChannelPair;
use noxu_rep::stream::log_view::LogView;
use noxu_rep::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, feeder_syncup, replica_syncup,
};
use noxu_rep::{Durability, Role};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::rig::{Disk, Options, Rig, eventually, keys_in, prepare, transaction, v};
use crate::state_map::{ABORT, put_body, put_entry};

fn faulty_disks() -> Options {
    Options { disk: Disk::Fault, ..Options::default() }
}

/// n1 was master and committed `x` on its own; n2, master of a later term, has `y`.
#[track_caller]
fn assert_y_prevailed(rig: &Rig, x: &[&str], matchpoint: Vlsn) {
    let report = rig.status(0).last_rollback.expect("n1 rolled back");
    assert_eq!((report.matchpoint, report.entries), (matchpoint, x.len() as u64));
    assert_eq!(&report.master, rig.name(1));
    assert_eq!(rig.lost_keys(0), x);
    assert!(rig.env(0).exists(&report.lost_file).unwrap(), "{}", report.lost_file.display());
    for number in 0..3 {
        let content = rig.map(number).content();
        assert!(content.contains_key("y"), "n{} has y", number + 1);
        assert!(!content.contains_key(x[0]), "n{} has {}", number + 1, x[0]);
    }
    rig.assert_logs_equal(&[1, 0, 2]);
    assert_eq!(rig.node(0).failure(), None);
}

#[test]
fn a_master_that_died_with_a_commit_of_its_own_comes_back_without_it() {
    let mut rig = Rig::running(faulty_disks());
    let kept = rig.put_all(0, &["before"], Durability::ALL);
    rig.stop(2);
    rig.stop(1);
    rig.put(0, "x", b"local", Durability::LOCAL).unwrap();
    rig.crash(0, 1);
    rig.start_master(1);
    rig.start_replica(2);
    rig.put(1, "y", b"2", Durability::MAJORITY).unwrap();
    rig.start_replica(0);
    rig.await_fed(0);
    rig.await_fed(2);
    assert_y_prevailed(&rig, &["x"], kept);
}

#[test]
fn a_master_cut_off_steps_down_and_rolls_back_while_it_stays_open() {
    let mut rig = Rig::running(Options::default());
    let kept = rig.put_all(0, &["before"], Durability::ALL);
    rig.stop(2);
    rig.stop(1);
    rig.put(0, "x", b"local", Durability::LOCAL).unwrap();
    rig.node(0).wait_applied(kept.next(), Duration::from_secs(10)).unwrap();
    assert_eq!(rig.map(0).value("x").as_deref(), Some(&b"local"[..]), "visible at the old master");
    // n2 and n3 reach each other; between them and n1 nothing passes.
    rig.door(0).lead_to(None);
    rig.start_apart(1, &[2]);
    rig.put(1, "y", b"2", Durability::MAJORITY).unwrap();
    assert_eq!(rig.node(0).role(), Role::Master, "nobody told it");
    assert!(rig.status(0).term < rig.status(1).term);
    // Healed: the others reach it again.
    rig.door(0).lead_to(Some(rig.node(0).local_addr()));
    eventually("n1 learns of the newer term", || rig.node(0).role() == Role::Replica);
    assert_eq!(rig.status(0).term, rig.status(1).term);
    rig.await_fed(0);
    rig.await_fed(2);
    assert_y_prevailed(&rig, &["x"], kept);
    assert_eq!(rig.map(0).rollbacks(), [kept]);
    // The handle is as good as new.
    rig.put(1, "z", b"3", Durability::ALL).unwrap();
    rig.await_fed(0);
    assert_eq!(rig.map(0).value("z").as_deref(), Some(&b"3"[..]));
}

#[test]
fn a_rollback_across_several_segments_keeps_every_lost_entry() {
    let mut rig = Rig::running(Options { segment_bytes: 4 << 10, ..faulty_disks() });
    let kept = rig.put_all(0, &["before"], Durability::ALL);
    rig.stop(2);
    rig.stop(1);
    let keys: Vec<_> = (0..30).map(|n| format!("x{n:02}")).collect();
    for key in &keys {
        rig.put(0, key, &[7; 1000], Durability::LOCAL).unwrap();
    }
    assert!(rig.log(0).positions().last_lsn.segment() > 5);
    rig.crash(0, 3);
    rig.start_master(1);
    rig.start_replica(2);
    rig.put(1, "y", b"2", Durability::MAJORITY).unwrap();
    rig.start_replica(0);
    rig.await_fed(0);
    rig.await_fed(2);
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    assert_y_prevailed(&rig, &keys, kept);
}

#[test]
fn the_last_entry_is_kept_when_it_is_the_matchpoint() {
    let mut rig = Rig::running(Options::default());
    let last = rig.put_all(0, &["a", "b"], Durability::ALL);
    rig.stop(1);
    rig.start_replica(1);
    rig.await_fed(1);
    let syncup = rig.status(1).last_syncup.unwrap();
    assert_eq!((syncup.matchpoint, syncup.start, syncup.round_trips), (last, last.next(), 1));
    assert_eq!(rig.status(1).last_rollback, None);
    assert_eq!(rig.last(1), last);
    assert_eq!(rig.map(1).content().len(), 2);
}

#[test]
fn rejoining_equal_logs_again_and_again_changes_no_log() {
    let mut rig = Rig::running(faulty_disks());
    rig.put_all(0, &["a", "b", "c"], Durability::ALL);
    let before = crate::rig::log_bytes(&rig.env(1), rig.dir(1));
    for seed in 0..6 {
        if seed % 2 == 0 {
            rig.stop(1);
        } else {
            rig.crash(1, seed);
        }
        rig.start_replica(1);
        rig.await_fed(1);
        rig.await_streams(0, 2);
        let status = rig.status(1);
        assert_eq!(status.last_syncup.unwrap().round_trips, 1);
        assert_eq!(status.last_rollback, None);
        assert!(crate::rig::log_bytes(&rig.env(1), rig.dir(1)) == before, "the log changed");
    }
    for _ in 0..3 {
        rig.door(0).cut();
        rig.await_streams(0, 2);
    }
    assert!(crate::rig::log_bytes(&rig.env(1), rig.dir(1)) == before, "the log changed");
}

#[test]
fn a_rolled_back_entry_is_served_to_nobody_also_after_a_restart() {
    let mut rig = Rig::running(faulty_disks());
    rig.put_all(0, &["before"], Durability::ALL);
    rig.stop(2);
    rig.stop(1);
    rig.put(0, "x", b"local", Durability::LOCAL).unwrap();
    rig.crash(0, 1);
    // By the vote of n3, for the log of n1 is the better one if x has survived.
    rig.start_master(1);
    rig.start_replica(2);
    rig.await_elected(1);
    rig.stop(2);
    rig.start_replica(0);
    rig.put(1, "y", b"2", Durability::MAJORITY).unwrap();
    rig.await_fed(0);
    assert_eq!(keys_in(&rig.log(0)), ["before", "y"]);
    rig.stop(1);
    rig.crash(0, 9);
    // The one that rolled back feeds the others now, one of which was away when y was written.
    rig.start_master(0);
    rig.start_replica(1);
    rig.start_replica(2);
    rig.put(0, "z", b"3", Durability::ALL).unwrap();
    for number in [1, 2] {
        rig.await_fed(number);
        assert_eq!(keys_in(&rig.log(number)), ["before", "y", "z"]);
        assert_eq!(rig.map(number).content().len(), 3);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
    assert_eq!(rig.lost_keys(0), ["x"]);
}

#[test]
fn what_lies_below_the_commit_floor_is_never_rolled_back() {
    let mut rig = Rig::new(Options::default());
    let fork = |at: u32, own: &'static str| {
        move |log: &Log| {
            append(log, 1, &["a"]);
            append(log, at, &[own]);
        }
    };
    prepare(&rig, 0, 2, fork(2, "mine"));
    prepare(&rig, 1, 1, |log| {
        fork(1, "theirs")(log);
        log.control().update(|control| control.commit_floor = v(2)).unwrap();
    });
    rig.start_master(0);
    rig.start_replica(1);
    eventually("the replica refuses", || {
        rig.status(1).last_error.is_some_and(|error| error.contains("refusing to roll back"))
    });
    assert_eq!(keys_in(&rig.log(1)), ["a", "theirs"]);
    assert_eq!(rig.node(1).failure(), None, "an operator decides, the node waits");
    assert!(rig.lost_keys(1).is_empty());
}

// ---- transactions around the matchpoint

/// One transaction of `keys`, appended in `term`.
fn append(log: &Log, term: u32, keys: &[&str]) {
    let bodies: Vec<_> = keys.iter().map(|key| put_body(key, key.as_bytes())).collect();
    log.append(Term::new(term), &transaction(&bodies)).unwrap();
}

#[test]
fn transactions_before_the_matchpoint_stay_and_those_beyond_or_across_it_go() {
    let mut rig = Rig::new(Options::default());
    let common = |log: &Log| {
        append(log, 1, &["a1", "a2"]);
        append(log, 1, &["b"]);
    };
    prepare(&rig, 0, 2, |log| {
        common(log);
        append(log, 2, &["y1", "y2"]);
    });
    prepare(&rig, 1, 1, |log| {
        common(log);
        append(log, 1, &["x1", "x2", "x3"]);
        append(log, 1, &["x4"]);
    });
    prepare(&rig, 2, 1, |log| {
        common(log);
        // A part of a transaction whose commit never came.
        let bodies = ["x1", "x2"].map(|key| put_body(key, b""));
        let part: Vec<_> = bodies.iter().map(|body| put_entry(body, false)).collect();
        log.append(Term::new(1), &part).unwrap();
    });
    rig.start_master(0);
    rig.start_replica(1);
    rig.start_replica(2);
    rig.put_all(0, &["z"], Durability::ALL);
    for number in [1, 2] {
        rig.await_fed(number);
        let status = rig.status(number);
        assert_eq!(status.last_rollback.unwrap().matchpoint, v(3));
        let content = rig.map(number).content();
        assert_eq!(content.into_keys().collect::<Vec<_>>(), ["a1", "a2", "b", "y1", "y2", "z"]);
    }
    assert_eq!(rig.lost_keys(1), ["x1", "x2", "x3", "x4"]);
    assert_eq!(rig.lost_keys(2), ["x1", "x2"]);
    rig.assert_logs_equal(&[0, 1, 2]);
}

/// The entries of a long mixed transaction: puts, overwrites, and an aborted start.
fn mixed_transaction(bodies: &[Vec<u8>]) -> Vec<NewEntry<'_>> {
    let abort = NewEntry::new(ABORT, EntryFlags::SYNC, b"");
    let mut entries: Vec<_> = bodies[..2].iter().map(|body| put_entry(body, false)).collect();
    entries.push(abort);
    entries.extend(transaction(&bodies[2..]));
    entries
}

#[test]
fn a_replica_with_any_part_of_a_transaction_streams_on_from_its_end() {
    let bodies: Vec<_> =
        ["gone", "gone2", "a", "b", "a", "c"].iter().map(|key| put_body(key, b"1")).collect();
    let whole = mixed_transaction(&bodies);
    for held in 0..=whole.len() {
        let mut rig = Rig::new(Options { members: 2, ..Options::default() });
        prepare(&rig, 0, 1, |log| {
            append(log, 1, &["first"]);
            log.append(Term::new(1), &whole).unwrap();
        });
        prepare(&rig, 1, 1, |log| {
            append(log, 1, &["first"]);
            if held > 0 {
                log.append(Term::new(1), &whole[..held]).unwrap();
            }
        });
        rig.start_master(0);
        rig.start_replica(1);
        rig.await_fed(1);
        let status = rig.status(1);
        assert_eq!(status.last_rollback, None, "{held} entries held");
        assert_eq!(status.last_syncup.unwrap().start, v(held as i64 + 2));
        assert_eq!(rig.map(1).content().into_keys().collect::<Vec<_>>(), ["a", "b", "c", "first"]);
        rig.assert_logs_equal(&[0, 1]);
    }
}

#[test]
fn a_rollback_to_before_a_transaction_undoes_any_part_of_it_and_the_rest_can_come_anew() {
    let bodies: Vec<_> =
        ["gone", "gone2", "a", "b", "a", "c"].iter().map(|key| put_body(key, b"1")).collect();
    let whole = mixed_transaction(&bodies);
    for held in 1..=whole.len() {
        let mut rig = Rig::new(Options { members: 2, ..Options::default() });
        // The same transaction, written again by a later master.
        prepare(&rig, 0, 2, |log| {
            append(log, 1, &["first"]);
            log.append(Term::new(2), &whole).unwrap();
        });
        prepare(&rig, 1, 1, |log| {
            append(log, 1, &["first"]);
            log.append(Term::new(1), &whole[..held]).unwrap();
        });
        rig.start_master(0);
        rig.start_replica(1);
        rig.await_fed(1);
        let rollback = rig.status(1).last_rollback.expect("rolled back");
        assert_eq!((rollback.matchpoint, rollback.entries), (v(1), held as u64));
        assert_eq!(rig.map(1).content().into_keys().collect::<Vec<_>>(), ["a", "b", "c", "first"]);
        rig.assert_logs_equal(&[0, 1]);
    }
}

// ---- cost

#[test]
fn a_hundred_thousand_diverged_entries_cost_at_most_four_round_trips() {
    const COMMON: usize = 1_000;
    const DIVERGED: usize = 100_000;
    let options = Options { members: 2, segment_bytes: 4 << 20, ..Options::default() };
    let mut rig = Rig::new(options);
    let fill = |own_term: u32| {
        move |log: &Log| {
            for (term, count) in [(1, COMMON), (own_term, DIVERGED)] {
                let body = put_body("k", &[0; 80]);
                let batch = vec![put_entry(&body, true); 1000];
                for _ in 0..count / 1000 {
                    log.append(Term::new(term), &batch).unwrap();
                }
            }
        }
    };
    prepare(&rig, 0, 3, fill(3));
    prepare(&rig, 1, 2, fill(2));
    rig.start_master(0);
    let start = Instant::now();
    rig.start_replica(1);
    rig.await_fed(1);
    let report = rig.status(1).last_rollback.expect("rolled back");
    eprintln!(
        "{DIVERGED} diverged entries: {} round trips; open, election, syncup, rollback and stream in {:?}",
        report.round_trips,
        start.elapsed()
    );
    assert!(report.round_trips <= 4, "{} round trips", report.round_trips);
    assert_eq!(report.matchpoint, v(COMMON as i64));
    assert_eq!(report.entries, DIVERGED as u64);
    rig.assert_logs_equal(&[0, 1]);
}

#[test]
fn the_search_alone_over_real_logs_is_quick_at_every_distance() {
    let options = Options { disk: Disk::Real, segment_bytes: 4 << 20, ..Options::default() };
    for diverged in [0, 1, 10, 1_000, 100_000] {
        let rig = Rig::new(options.clone());
        let open = |number: usize, own_term: u32| {
            prepare(&rig, number, 1, |log| {
                let body = put_body("k", &[0; 80]);
                for (term, count) in [(1, 1000), (own_term, diverged)] {
                    for chunk in 0..(count as usize).div_ceil(1000) {
                        let batch =
                            vec![put_entry(&body, true); 1000.min(count as usize - chunk * 1000)];
                        log.append(Term::new(term), &batch).unwrap();
                    }
                }
            });
            Log::open(rig.env(number), rig.dir(number), rig.options.log.clone()).unwrap().0
        };
        let (replica, feeder) = (open(0, 2), open(1, 3));
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let answering = {
            let feeder = feeder.clone();
            std::thread::spawn(move || {
                feeder_syncup(&channel_b, &LogView::new(&feeder), &SyncupOptions::default())
            })
        };
        let start = Instant::now();
        let (outcome, stats) =
            replica_syncup(&channel_a, &LogView::new(&replica), &SyncupOptions::default()).unwrap();
        let took = start.elapsed();
        eprintln!(
            "syncup with {diverged} diverged entries: {} round trips, {took:?}",
            stats.round_trips
        );
        assert_eq!(answering.join().unwrap().unwrap(), Some(v(1001)));
        assert!(
            matches!(outcome, SyncupOutcome::Matchpoint { matchpoint_vlsn, .. } if matchpoint_vlsn == v(1000)),
            "{outcome:?}"
        );
        assert!(stats.round_trips <= 4, "{} round trips", stats.round_trips);
    }
}

// ---- crashes

#[test]
fn two_replicas_that_crash_in_turn_under_steady_writes_lose_nothing() {
    let mut rig = Rig::running(faulty_disks());
    let mut expected = 0;
    for round in 0..10 {
        let away = 1 + round % 2;
        rig.crash(away, round as u64);
        for _ in 0..20 {
            rig.put(0, &format!("k{expected:04}"), b"v", Durability::MAJORITY).unwrap();
            expected += 1;
        }
        rig.start_replica(away);
        for _ in 0..20 {
            rig.put(0, &format!("k{expected:04}"), b"v", Durability::MAJORITY).unwrap();
            expected += 1;
        }
        rig.await_fed(away);
        assert_eq!(rig.status(away).last_rollback, None);
    }
    for number in 0..3 {
        rig.await_fed(number);
        assert_eq!(rig.map(number).content().len(), expected);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn all_nodes_crash_at_once_and_are_equal_again() {
    let mut rig = Rig::running(faulty_disks());
    for n in 0..50 {
        rig.put(0, &format!("k{n:02}"), b"v", Durability::MAJORITY).unwrap();
    }
    for number in 0..3 {
        rig.crash(number, 40 + number as u64);
    }
    // The one with the longer log of the two that a majority needs: what an election would choose.
    let ends = [1, 2].map(|number| {
        let (log, _) =
            Log::open(rig.env(number), rig.dir(number), rig.options.log.clone()).unwrap();
        log.positions().last
    });
    let master = if ends[0] >= ends[1] { 1 } else { 2 };
    rig.start_master(master);
    for number in (0..3).filter(|number| *number != master) {
        rig.start_replica(number);
    }
    rig.put(master, "after", b"v", Durability::ALL).unwrap();
    for number in 0..3 {
        rig.await_fed(number);
        assert_eq!(rig.map(number).content().len(), 51, "n{}", number + 1);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn a_fresh_replica_gets_everything_from_the_first_entry() {
    let mut rig = Rig::new(Options { segment_bytes: 4 << 10, ..Options::default() });
    rig.start_master(0);
    rig.start_replica(1);
    for n in 0..100 {
        rig.put(0, &format!("k{n:02}"), &[1; 200], Durability::MAJORITY).unwrap();
    }
    rig.start_replica(2);
    rig.await_fed(2);
    let syncup = rig.status(2).last_syncup.unwrap();
    assert_eq!((syncup.matchpoint, syncup.start), (NULL_VLSN, v(1)));
    assert_eq!(rig.map(2).content().len(), 100);
    rig.await_fed(1);
    rig.assert_logs_equal(&[0, 1, 2]);
}
