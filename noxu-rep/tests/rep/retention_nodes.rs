//! How much log a master keeps for its replicas: their places within the budget, and a restore for
//! those who have lost theirs.

use std::sync::Arc;
use std::time::Duration;

use noxu_log::{HeldBy, Holder, HolderKind, RetentionConfig};
use noxu_rep::{Durability, NodeConfig};
use noxu_util::NULL_VLSN;

use crate::support::{
    Group, Member, MuteReplica, PATIENCE, entry, eventually, incarnation, streaming,
};

const MIB: u64 = 1 << 20;

/// Keeps nothing that nobody asks for, and so much for those who do.
fn within(byte_budget: u64, mut config: NodeConfig) -> NodeConfig {
    config.log.retention = RetentionConfig {
        keep_bytes: 0,
        byte_budget: Some(byte_budget),
        ..RetentionConfig::default()
    };
    config
}

/// n1 as master with that budget, n2 as its replica, of a group of three.
fn start(group: &Group, byte_budget: u64) -> Vec<Member> {
    let mut config = within(byte_budget, group.master_config("n1", &[]));
    config.limits.timing.silence = PATIENCE;
    let master = group.open(config).unwrap();
    let replica = group.replica("n2", &master);
    let nodes = vec![master, replica];
    eventually("the replica streams", || streaming(&nodes[0]) == 1);
    nodes
}

/// Writes about `mib` MiB in segments of 1 MiB.
fn load(master: &Member, mib: u64) {
    let body = vec![0x42; 16 << 10];
    let handles: Vec<_> = (0..mib * 64)
        .map(|_| master.node.submit(&[entry(&body)], Durability::MAJORITY).unwrap())
        .collect();
    handles.last().unwrap().wait().unwrap();
}

fn n3() -> Holder {
    Holder::new(HolderKind::Stream, "n3")
}

#[test]
fn a_slow_replica_holds_the_log_within_the_budget_and_is_restored_beyond_it() {
    let group = Group::of(3);
    let nodes = start(&group, 8 * MIB);
    let mute = MuteReplica::connect("n3", incarnation(2), &nodes[0]).unwrap();
    eventually("its place is held", || {
        nodes[0].node.status().retention.holders.iter().any(|place| place.holder == n3())
    });
    load(&nodes[0], 5);
    let first = |status: &noxu_rep::Status| status.retention.first;
    eventually("it is what keeps the log", || {
        let status = nodes[0].node.status();
        assert_eq!(first(&status), NULL_VLSN.next(), "dropped within the budget");
        matches!(status.retention.held_by, HeldBy::Pin { holder, .. } if holder == n3())
    });
    load(&nodes[0], 10);
    eventually("its place is lost", || nodes[0].node.status().retention.lost_places == 1);
    eventually("its stream ends and says why", || {
        let status = nodes[0].node.status();
        let error = status.last_error.unwrap_or_default();
        streaming(&nodes[0]) == 1 && error.contains("n3 lost its place at entry 1:")
    });
    drop(mute);
    // The real one comes, and finds that only a restore helps.
    let back = group.replica("n3", &nodes[0]);
    let last = nodes[0].commit("after", Durability::MAJORITY).unwrap();
    eventually("it is restored", || back.node.status().last_restore.is_some());
    assert!(back.node.wait_applied(last, PATIENCE).unwrap());
    assert_eq!(back.ledger.bodies(), nodes[0].ledger.bodies());
}

#[test]
fn a_member_that_is_away_keeps_its_place_and_catches_up_without_a_restore() {
    let group = Group::of(3);
    let nodes = start(&group, 64 * MIB);
    let away = group.replica("n3", &nodes[0]);
    eventually("both stream", || streaming(&nodes[0]) == 2);
    nodes[0].commit("all three", Durability::ALL).unwrap();
    let (last, ledger) = (away.last(), Arc::clone(&away.ledger));
    drop(away);
    load(&nodes[0], 6);
    // Nobody else needs that log: without the place it would go.
    eventually("the place of n3 keeps it", || {
        let report = nodes[0].node.status().retention;
        let held = matches!(&report.held_by, HeldBy::Pin { holder, .. } if *holder == n3());
        held && report.holders.iter().any(|place| place.holder == n3() && place.is_away)
    });
    let back = group.reopen(group.config("n3", &[nodes[0].address()]), ledger).unwrap();
    let last_written = nodes[0].last();
    assert!(back.node.wait_applied(last_written, PATIENCE).unwrap());
    let status = back.node.status();
    assert!(status.last_restore.is_none() && last < last_written, "{status:?}");
    assert!(status.last_syncup.unwrap().matchpoint >= last);
    eventually("the front goes when it has caught up", || {
        nodes[0].node.status().retention.first > NULL_VLSN.next()
    });
}

#[test]
fn a_dead_member_does_not_fill_the_disk() {
    let group = Group::of(3);
    let nodes = start(&group, 6 * MIB);
    let dead = group.replica("n3", &nodes[0]);
    eventually("both stream", || streaming(&nodes[0]) == 2);
    drop(dead);
    for _ in 0..4 {
        load(&nodes[0], 6);
        eventually("the log is within its budget", || {
            nodes[0].node.status().retention.bytes <= 6 * MIB
        });
    }
    let report = nodes[0].node.status().retention;
    assert_eq!(report.lost_places, 1);
    assert!(report.holders.iter().all(|place| place.holder != n3()), "{report:?}");
    let back = group.replica("n3", &nodes[0]);
    let last = nodes[0].commit("it is back", Durability::MAJORITY).unwrap();
    eventually("it is restored", || back.node.status().last_restore.is_some());
    assert!(back.node.wait_applied(last, PATIENCE).unwrap());
    assert_eq!(back.ledger.bodies(), nodes[0].ledger.bodies());
}

#[test]
fn the_place_of_a_member_that_stays_away_too_long_is_given_up() {
    let group = Group::of(3);
    let mut config = within(1 << 40, group.master_config("n1", &[]));
    config.absence_grace = Duration::from_millis(200);
    let master = group.open(config).unwrap();
    let replica = group.replica("n2", &master);
    let away = group.replica("n3", &master);
    eventually("both stream", || streaming(&master) == 2);
    drop(away);
    load(&master, 5);
    eventually("the log is dropped", || master.node.status().retention.first > NULL_VLSN.next());
    let report = master.node.status().retention;
    assert!(report.holders.iter().all(|place| place.holder != n3()), "{report:?}");
    assert_eq!(report.lost_places, 0, "given up is not lost");
    drop(replica);
}
