//! Secondaries: nodes with data and without a vote, which hold what is durable and nothing else.

use std::fs;
use std::time::Duration;

use noxu_rep::{Durability, RepError, Role};
use noxu_util::NULL_VLSN;

use crate::damaged::rot;
use crate::elections::{Group, SOON};
use crate::support::{assert_same_logs, entry, eventually};

/// Behind three voters.
const SECONDARY: usize = 3;

/// Three voters and a secondary, all of which have one entry. Returns the master.
fn founded() -> (Group, usize) {
    let mut group = Group::with_secondary(3);
    group.timing.quorum_timeout = SOON;
    group.segment_bytes = 4 << 10;
    (0..4).for_each(|n| group.start(n));
    let master = group.commit("begun");
    group.await_everywhere("begun");
    (group, master)
}

fn has(group: &Group, body: &str) -> bool {
    group.ledger(SECONDARY).bodies().contains(&body.as_bytes().to_vec())
}

#[test]
fn a_secondary_follows_whoever_is_master_and_is_never_it() {
    let (mut group, master) = founded();
    let status = group.node(SECONDARY).status();
    assert_eq!((status.role, status.is_voter), (Role::Replica, false));
    assert_eq!(status.members.len(), 3);
    let refused = group.node(SECONDARY).commit(&[entry(b"x")], Durability::LOCAL).unwrap_err();
    assert!(matches!(refused, RepError::NotMaster { master: Some(_) }), "{refused}");
    // It follows whoever is next.
    group.stop(master);
    assert_ne!(group.commit("after"), master);
    group.await_everywhere("after");
    let others = (0..3).filter(|n| *n != master).collect::<Vec<_>>();
    group.stop(others[0]);
    group.stop(others[1]);
    assert!(!group.node(SECONDARY).wait_role(Role::Master, Duration::from_secs(2)));
}

#[test]
fn a_secondary_makes_nothing_durable_and_receives_nothing_that_is_not() {
    let (mut group, master) = founded();
    let others: Vec<_> = (0..3).filter(|n| *n != master).collect();
    for n in &others {
        group.stop(*n);
    }
    group.node(master).commit(&[entry(b"own")], Durability::LOCAL).unwrap();
    eventually("it is alone but for the secondary", || {
        group.node(master).status().replicas.len() == 1
    });
    let last = group.node(master).log().positions().last;
    // The stream lives: heartbeats come and go.
    assert!(!group.node(SECONDARY).wait_durable(last, Duration::from_millis(500)));
    assert!(!has(&group, "own"));
    assert!(group.node(SECONDARY).log().positions().last < last);
    group.start(others[0]);
    eventually("a majority has it", || has(&group, "own"));
    assert!(group.node(SECONDARY).status().last_rollback.is_none());
}

#[test]
fn a_secondary_that_comes_late_or_lost_its_disk_is_restored_with_what_is_durable() {
    let (mut group, master) = founded();
    group.stop(SECONDARY);
    for number in 0..200 {
        let body = format!("body number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], Durability::ALL).unwrap();
    }
    group.ledger(master).take_checkpoint();
    eventually("segments are sealed", || group.node(master).log().sealed_segments().len() > 1);
    eventually("the front is dropped", || {
        group.node(master).drop_front(NULL_VLSN).unwrap() > NULL_VLSN
    });
    fs::remove_dir_all(group.config(SECONDARY).dir).unwrap();
    group.start(SECONDARY);
    eventually("it was restored", || group.node(SECONDARY).status().last_restore.is_some());
    group.commit("after");
    group.await_everywhere("after");
    assert!(!group.node(SECONDARY).status().is_voter);
    assert_same_logs(&group.node(SECONDARY).log(), &group.node(master).log());
}

/// A voter does not know the secondary, which follows the master; the voters have dropped the front of
/// their logs, and the secondary has not.
#[test]
fn a_voter_takes_back_what_only_a_secondary_has() {
    let (mut group, master) = founded();
    for number in 0..200 {
        let body = format!("body number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], Durability::ALL).unwrap();
    }
    group.await_everywhere("body number 0199");
    let replica = (master + 1) % 3;
    for n in [replica, SECONDARY] {
        eventually("segments are sealed", || group.node(n).log().sealed_segments().len() > 1);
    }
    for n in (0..3).filter(|n| *n != replica) {
        let dropped = || group.node(n).drop_front(NULL_VLSN).unwrap() > NULL_VLSN;
        eventually("the front is dropped", dropped);
    }
    group.stop(replica);
    rot(&group, replica, "body number 0007");
    group.start(replica);
    group.await_everywhere("body number 0199");
    let damage = || group.node(replica).status().damage;
    eventually("it is counted", || damage().mended_blocks == 1);
    assert_eq!(damage().open, []);
}
