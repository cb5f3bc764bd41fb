//! Nodes that only a network restore brings back; they ask for it by themselves.

use std::sync::Arc;

use std::time::Duration;

use noxu_rep::restore::Phase;
use noxu_rep::{Durability, RepError, Role};
use noxu_util::NULL_VLSN;

use crate::support::{Group, Member, PATIENCE, entry, eventually, streaming};

/// Writes about `mib` MiB in segments of 1 MiB.
fn load(master: &Member, mib: usize) {
    let body = vec![0x42; 16 << 10];
    let handles: Vec<_> = (0..mib * 64)
        .map(|_| master.node.submit(&[entry(&body)], Durability::MAJORITY).unwrap())
        .collect();
    handles.last().unwrap().wait().unwrap();
}

/// Drops the front, as soon as the streams of those who have just gone have ended.
fn drop_front(node: &Member) {
    eventually("the front is dropped", || node.node.drop_front(NULL_VLSN).unwrap() > NULL_VLSN);
}

fn assert_restored(master: &Member, restored: &Member) {
    let last = master.commit("after the restore", Durability::MAJORITY).unwrap();
    eventually("it is restored", || restored.node.status().last_restore.is_some());
    assert!(restored.node.wait_applied(last, PATIENCE).unwrap(), "{:?}", restored.node.status());
    assert!(restored.node.wait_role(Role::Replica, PATIENCE), "{:?}", restored.node.status());
    assert_eq!(master.ledger.bodies(), restored.ledger.bodies());
    let (a, b) = (master.node.log().positions(), restored.node.log().positions());
    assert_eq!((a.last, a.last_lsn, a.last_fingerprint), (b.last, b.last_lsn, b.last_fingerprint));
}

#[test]
fn a_wiped_replica_restores_itself_and_streams_on() {
    let group = Group::of(3);
    let mut nodes = group.start();
    load(&nodes[0], 6);
    let wiped = nodes.pop().unwrap();
    assert!(wiped.node.wait_applied(nodes[0].last(), PATIENCE).unwrap());
    drop(wiped);
    drop_front(&nodes[0]);
    group.wipe("n3");
    let back = group.replica("n3", &nodes[0]);
    assert_restored(&nodes[0], &back);
    eventually("both stream", || streaming(&nodes[0]) == 2);
    let vlsn = nodes[0].commit("all three", Durability::MAJORITY).unwrap();
    assert!(back.node.wait_applied(vlsn, PATIENCE).unwrap());
    assert!(!back.node.status().is_voter, "a new directory has no vote");
    assert!(back.node.status().positions.anchor.vlsn > NULL_VLSN, "it has its front again");

    // It starts again from its own directory, without another restore.
    let (last, ledger) = (back.last(), Arc::clone(&back.ledger));
    drop(back);
    let config = group.config("n3", &[nodes[0].address()]);
    let again = group.reopen(config.clone(), ledger).unwrap();
    eventually("it synced up", || again.node.status().last_syncup.is_some());
    assert_eq!(again.node.status().last_syncup.unwrap().matchpoint, last);
    assert!(again.node.status().last_restore.is_none());
    assert!(again.node.wait_applied(nodes[0].last(), PATIENCE).unwrap());
    assert_eq!(nodes[0].ledger.bodies(), again.ledger.bodies());

    // With a state machine that has lost what the log no longer holds, it restores once more.
    drop(again);
    let empty = group.open(config).unwrap();
    assert_restored(&nodes[0], &empty);
}

#[test]
fn a_replica_that_was_away_for_too_long_restores_itself() {
    let group = Group::of(3);
    let mut nodes = group.start();
    nodes[0].commit("together", Durability::ALL).unwrap();
    drop(nodes.pop());
    load(&nodes[0], 5);
    drop_front(&nodes[0]);
    let back = group.replica("n3", &nodes[0]);
    assert_restored(&nodes[0], &back);
    nodes[0].commit("all three", Durability::ALL).unwrap();
}

#[test]
fn a_voter_whose_state_is_behind_its_log_is_no_master_before_it_is_restored() {
    let group = Group::of(3);
    let mut nodes = group.start();
    drop(nodes.pop());
    load(&nodes[0], 5);
    drop_front(&nodes[0]);
    let back = group.replica("n3", &nodes[0]);
    assert_restored(&nodes[0], &back);
    nodes[0].commit("all three", Durability::ALL).unwrap();
    drop(back);
    let ledger = Arc::clone(&nodes[0].ledger);
    drop(nodes.remove(0));
    // It has all of the log and a vote to win; what its state machine had is gone.
    let empty = group.master("n3");
    assert!(!empty.node.wait_role(Role::Master, Duration::from_millis(300)));
    let back = group.reopen(group.master_config("n1", &[]), ledger).unwrap();
    assert_restored(&back, &empty);
}

#[test]
fn commits_go_on_while_a_replica_restores() {
    let group = Group::of(3);
    let mut nodes = group.start();
    load(&nodes[0], 8);
    drop(nodes.pop());
    drop_front(&nodes[0]);
    group.wipe("n3");
    let back = group.replica("n3", &nodes[0]);
    for n in 0..300 {
        nodes[0].commit(&n.to_string(), Durability::MAJORITY).unwrap();
    }
    assert_restored(&nodes[0], &back);
}

#[test]
fn a_node_can_be_shut_down_while_it_restores() {
    let group = Group::of(3);
    let mut nodes = group.start();
    load(&nodes[0], 8);
    drop(nodes.pop());
    drop_front(&nodes[0]);
    group.wipe("n3");
    for _ in 0..5 {
        let back = group.replica("n3", &nodes[0]);
        eventually("it has begun", || {
            let status = back.node.status();
            status.restore.is_some() || status.last_restore.is_some()
        });
        back.node.shutdown().unwrap();
    }
    let back = group.replica("n3", &nodes[0]);
    let last = nodes[0].commit("after", Durability::MAJORITY).unwrap();
    eventually("it is there", || back.last() == last && back.node.applied() == last);
    assert_eq!(back.ledger.bodies(), nodes[0].ledger.bodies());
    assert_eq!(back.node.failure(), None);
}

#[test]
fn a_replica_is_restored_when_an_operator_asks_for_it_and_a_master_is_not() {
    let group = Group::of(3);
    let nodes = group.start();
    load(&nodes[0], 6);
    nodes[0].commit("together", Durability::ALL).unwrap();
    let (master, replica) = (&nodes[0], &nodes[2]);
    assert!(matches!(master.node.request_restore(), Err(RepError::IsMaster { .. })));
    assert!(!master.node.restore_pending().unwrap());
    let before = replica.node.status();
    assert!(replica.node.request_restore().unwrap(), "nobody had asked for it");
    assert_restored(master, replica);
    assert!(!replica.node.restore_pending().unwrap());
    let after = replica.node.status();
    assert_eq!(
        (after.incarnation, after.is_voter),
        (before.incarnation, true),
        "it keeps its vote"
    );
    assert!(after.restore.unwrap().bytes_fetched > 4 << 20, "its own segments did not serve it");
    let timeline = after.restore_timeline;
    let began = |phase| timeline.began(phase).unwrap();
    assert!(began(Phase::Tail) <= began(Phase::Committed), "{timeline:?}");
    assert!(began(Phase::Committed) < timeline.installed.unwrap(), "{timeline:?}");
    master.commit("all three", Durability::ALL).unwrap();
}

#[test]
fn a_restore_that_was_asked_for_of_a_node_without_a_master_happens_when_there_is_one() {
    let group = Group::of(3);
    let mut nodes = group.start();
    load(&nodes[0], 2);
    nodes[0].commit("together", Durability::ALL).unwrap();
    let ledger = Arc::clone(&nodes[2].ledger);
    drop(nodes.pop());
    let alone = group.reopen(group.config("n3", &[]), Arc::clone(&ledger)).unwrap();
    // It asks twice, with a life in between that finds the marker.
    assert!(alone.node.request_restore().unwrap());
    assert!(!alone.node.request_restore().unwrap());
    drop(alone);
    let back = group.reopen(group.config("n3", &[nodes[0].address()]), ledger).unwrap();
    assert!(back.node.restore_pending().unwrap() || back.node.status().last_restore.is_some());
    assert_restored(&nodes[0], &back);
    assert!(!back.node.restore_pending().unwrap());
}
