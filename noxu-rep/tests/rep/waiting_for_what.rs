//! What a commit waits for: disks that hang, peers that fall silent, timers that never come.

use std::thread;
use std::time::{Duration, Instant};

use noxu_rep::{Durability, MasterLimits, RepError, Role, StreamTiming};
use noxu_util::{NULL_VLSN, Vlsn};

use crate::rig::{Disk, Options, Rig, SOON, eventually};
use crate::state_map::{put_body, put_entry};

/// Longer than a test may take, for timers that must not matter.
const NEVER: Duration = Duration::from_mins(10);

fn stuck_disks() -> Options {
    Options { disk: Disk::Stuck, ..Options::default() }
}

#[test]
fn a_commit_in_memory_of_a_majority_waits_for_no_sync_anywhere() {
    let rig = Rig::running(stuck_disks());
    let durable = rig.put_all(0, &["before"], Durability::ALL);
    for number in 0..3 {
        rig.stuck_disk(number).set_stuck(true);
    }
    let body = put_body("k", b"v");
    let entry = [put_entry(&body, true)];
    for _ in 0..20 {
        rig.node(0).commit(&entry, Durability::NO_SYNC_MAJORITY).unwrap();
    }
    assert_eq!(rig.map(0).value("k").as_deref(), Some(&b"v"[..]), "visible on the master");
    let synced = rig.node(0).submit(&entry, Durability::MAJORITY).unwrap();
    assert!(synced.wait_timeout(Duration::from_millis(50)).is_none(), "no disk has synced");
    for number in 0..3 {
        assert!(rig.node(number).dtvlsn() <= durable, "DTVLSN is never above what was synced");
        assert!(rig.node(number).applied() <= rig.node(number).dtvlsn() || number == 0);
    }
    for number in 0..3 {
        rig.stuck_disk(number).set_stuck(false);
    }
    synced.wait().unwrap();
    assert!(rig.node(0).dtvlsn() >= synced.vlsn());
}

#[test]
fn the_slowest_disk_of_three_delays_only_commits_that_ask_for_all() {
    let rig = Rig::running(stuck_disks());
    rig.stuck_disk(2).set_stuck(true);
    for n in 0..20 {
        rig.put(0, &format!("k{n}"), b"v", Durability::MAJORITY).unwrap();
    }
    let body = put_body("all", b"v");
    let all = rig.node(0).submit(&[put_entry(&body, true)], Durability::ALL).unwrap();
    assert!(all.wait_timeout(Duration::from_millis(50)).is_none());
    // DTVLSN does not wait for it, visibility does: commits are seen in order.
    assert!(rig.node(0).wait_durable(all.vlsn(), SOON));
    assert!(rig.node(0).applied() < all.vlsn());
    rig.stuck_disk(2).set_stuck(false);
    all.wait().unwrap();
    assert!(rig.node(0).applied() >= all.vlsn());
}

#[test]
fn the_masters_own_stuck_disk_does_not_hold_up_what_two_replicas_made_durable() {
    let rig = Rig::running(stuck_disks());
    rig.stuck_disk(0).set_stuck(true);
    let body = put_body("k", b"v");
    let written =
        rig.node(0).submit(&[put_entry(&body, true)], Durability::WRITE_MAJORITY).unwrap();
    written.wait().unwrap();
    assert!(rig.node(0).wait_durable(written.vlsn(), SOON), "two of three disks hold it");
    rig.await_applied(1, written.vlsn());
    rig.stuck_disk(0).set_stuck(false);
}

#[test]
fn writers_that_wait_for_room_behind_a_stuck_disk_hold_up_nobody_but_themselves() {
    const MOST: usize = 64 << 10;
    let mut options = stuck_disks();
    options.log.max_unwritten_bytes = MOST;
    let rig = Rig::running(options);
    let before = rig.node(0).log().positions().last;
    rig.stuck_disk(0).set_stuck(true);
    let value = [7; 4 << 10];
    let body = put_body("k", &value);
    let synced = rig.node(0).submit(&[put_entry(&body, true)], Durability::MAJORITY).unwrap();
    synced.start();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..100 {
                rig.node(0)
                    .submit(&[put_entry(&body, true)], Durability::NO_SYNC_MAJORITY)
                    .unwrap();
            }
        });
        let full = Vlsn::new(before.sequence() + (MOST / value.len()) as i64);
        eventually("there is no room", || rig.node(0).log().positions().last >= full);
        let last = rig.node(0).log().positions().last;
        assert!(rig.node(0).wait_durable(last, SOON), "two of three disks hold it");
        assert_eq!(rig.status(0).role, Role::Master);
        assert!(!writer.is_finished());
        rig.stuck_disk(0).set_stuck(false);
        writer.join().unwrap();
    });
    synced.wait().unwrap();
}

/// Entries arrive in parts of transactions, so no clock may be needed to finish anything.
#[test]
fn a_lone_commit_over_tcp_waits_for_no_timer() {
    let mut options = Options::default();
    options.log.sync_interval = NEVER;
    options.limits.timing = StreamTiming { heartbeat: NEVER, silence: NEVER };
    let rig = Rig::running(options);
    let mut slowest = Duration::ZERO;
    for policy in [
        Durability::MAJORITY,
        Durability::ALL,
        Durability::WRITE_MAJORITY,
        Durability::NO_SYNC_MAJORITY,
        Durability::LOCAL,
    ] {
        for n in 0..10 {
            let start = Instant::now();
            let vlsn = rig.put(0, &format!("k{n}"), b"v", policy).unwrap().vlsn();
            slowest = slowest.max(start.elapsed());
            if policy.acks != noxu_rep::AckPolicy::None {
                rig.await_applied(1, vlsn);
                rig.await_applied(2, vlsn);
            }
        }
    }
    eprintln!("slowest lone commit: {slowest:?}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn a_commit_no_replica_answers_is_unknown_and_resolves_when_they_speak_again() {
    let limits =
        MasterLimits { ack_timeout: Duration::from_millis(200), ..Options::default().limits };
    let rig = Rig::running(Options { limits, ..Options::default() });
    rig.door(0).set_silent(true);
    let error = rig.put(0, "k", b"v", Durability::MAJORITY).unwrap_err();
    let RepError::OutcomeUnknown { commit, .. } = error else { panic!("{error}") };
    let vlsn = commit.vlsn;
    assert_eq!(vlsn, rig.last(0));
    assert!(!rig.node(0).wait_durable(vlsn, Duration::from_millis(50)));
    rig.door(0).set_silent(false);
    assert!(rig.node(0).wait_durable(vlsn, SOON));
    for number in 0..3 {
        rig.await_applied(number, vlsn);
        assert_eq!(rig.map(number).value("k").as_deref(), Some(&b"v"[..]));
    }
}

#[test]
fn silence_of_either_side_ends_the_stream_and_a_new_one_loses_nothing() {
    let mut options = Options::default();
    options.limits.timing =
        StreamTiming { heartbeat: Duration::from_millis(50), silence: Duration::from_millis(500) };
    let rig = Rig::running(options);
    rig.door(0).set_silent(true);
    let body = put_body("k", b"v");
    let pending = rig.node(0).submit(&[put_entry(&body, true)], Durability::ALL).unwrap();
    eventually("the master drops the silent replicas", || rig.status(0).replicas.is_empty());
    for number in [1, 2] {
        eventually("the replica drops the silent master", || {
            rig.status(number).last_error.is_some_and(|error| error.contains("did not arrive"))
        });
    }
    rig.door(0).set_silent(false);
    rig.door(0).cut();
    pending.wait().unwrap();
    for number in [1, 2] {
        rig.await_fed(number);
        assert_eq!(rig.status(number).last_rollback, None);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn dtvlsn_never_falls_over_three_masters_and_is_known_after_an_orderly_shutdown() {
    let mut rig = Rig::running(Options::default());
    let mut highest = NULL_VLSN;
    for (master, term) in [(0, 1), (1, 2), (2, 3)] {
        if term > 1 {
            rig.start_master(master);
            for number in (0..3).filter(|number| *number != master) {
                rig.start_replica(number);
            }
        }
        assert!(rig.node(master).dtvlsn() >= highest, "DTVLSN fell in term {term}");
        for policy in [Durability::MAJORITY, Durability::NO_SYNC_MAJORITY, Durability::LOCAL] {
            rig.put(master, &format!("k{term}"), b"v", policy).unwrap();
            let dtvlsn = rig.node(master).dtvlsn();
            assert!(dtvlsn >= highest, "{dtvlsn} after {highest}");
            highest = dtvlsn;
        }
        for number in (0..3).filter(|number| *number != master) {
            rig.await_fed(number);
        }
        let last = rig.last(master);
        rig.stop(master);
        for number in (0..3).filter(|number| *number != master) {
            assert!(rig.node(number).wait_durable(last, SOON), "n{} was told", number + 1);
            rig.stop(number);
        }
        highest = last;
    }
}

#[test]
fn a_shutdown_tells_the_replicas_the_last_durable_position() {
    let mut options = Options::default();
    options.limits.timing = StreamTiming { heartbeat: NEVER, silence: NEVER };
    for _ in 0..10 {
        let mut rig = Rig::running(options.clone());
        let vlsn = rig.put(0, "k", b"v", Durability::LOCAL).unwrap().vlsn();
        rig.stop(0);
        for number in [1, 2] {
            assert!(rig.node(number).wait_durable(vlsn, SOON), "n{} was not told", number + 1);
            rig.await_applied(number, vlsn);
        }
    }
}

#[test]
fn a_replica_whose_sync_fails_stops_and_the_group_goes_on() {
    let mut rig = Rig::running(Options { disk: Disk::Fault, ..Options::default() });
    rig.put_all(0, &["before"], Durability::ALL);
    rig.fault_disk(1).fail_next("sync_data", noxu_log::env::Fault::IO);
    for n in 0..10 {
        rig.put(0, &format!("k{n}"), b"v", Durability::MAJORITY).unwrap();
    }
    assert!(rig.node(1).wait_stopped(SOON));
    let failure = rig.node(1).failure().expect("it says why");
    assert!(failure.contains("sync"), "{failure}");
    // Only a new start, which reads what the disk really holds, brings it back.
    rig.crash(1, 5);
    rig.start_replica(1);
    rig.await_fed(1);
    rig.await_fed(2);
    rig.put(0, "after", b"v", Durability::ALL).unwrap();
    rig.await_fed(1);
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn a_master_whose_sync_fails_reports_no_commit_and_stops() {
    let mut rig = Rig::running(Options { disk: Disk::Fault, ..Options::default() });
    rig.put_all(0, &["before"], Durability::ALL);
    rig.fault_disk(0).fail_next("sync_data", noxu_log::env::Fault::IO);
    rig.put(0, "k", b"v", Durability::MAJORITY).unwrap_err();
    assert!(rig.node(0).wait_stopped(SOON));
    rig.put(0, "later", b"v", Durability::LOCAL).unwrap_err();
    rig.crash(0, 6);
    rig.stop(1);
    rig.start_master(1);
    rig.put(1, "after", b"v", Durability::MAJORITY).unwrap();
    rig.start_replica(0);
    rig.await_fed(0);
    rig.await_fed(2);
    rig.assert_logs_equal(&[0, 1, 2]);
    assert!(!rig.map(1).content().contains_key("later"));
}
