//! Each policy with replicas that leave before and after the write.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use noxu_rep::{AckPolicy, Durability, RepError, SyncPolicy};

use crate::support::{Group, Member, MuteReplica, PATIENCE, entry, eventually, incarnation};

const ALL_POLICIES: [Durability; 5] = [
    Durability::MAJORITY,
    Durability::WRITE_MAJORITY,
    Durability::NO_SYNC_MAJORITY,
    Durability::ALL,
    Durability::LOCAL,
];

const MEMORY_ONLY: Durability =
    Durability { local: SyncPolicy::NoSync, replica: SyncPolicy::NoSync, acks: AckPolicy::None };

#[test]
fn commits_of_every_policy_reach_all_nodes_and_are_applied_everywhere() {
    let group = Group::of(3);
    let nodes = group.start();
    let mut expected = Vec::new();
    for round in 0..20 {
        for policy in ALL_POLICIES.into_iter().chain([MEMORY_ONLY]) {
            let body = format!("{round} {policy:?}");
            nodes[0].commit(&body, policy).unwrap();
            expected.push(body.into_bytes());
        }
    }
    let last = nodes[0].commit("last", Durability::ALL).unwrap();
    expected.push(b"last".to_vec());
    for node in &nodes {
        assert!(node.node.wait_applied(last, PATIENCE).unwrap(), "{:?}", node.node.status());
        assert_eq!(node.ledger.bodies(), expected);
        nodes[0].assert_same_log(node);
    }
}

#[test]
fn a_commit_that_was_waited_for_is_applied_on_the_master() {
    let group = Group::of(3);
    let nodes = group.start();
    for n in 0..100 {
        let vlsn = nodes[0].commit(&n.to_string(), Durability::MAJORITY).unwrap();
        assert!(nodes[0].node.applied() >= vlsn);
        assert!(nodes[0].node.dtvlsn() >= vlsn, "reported durable below DTVLSN");
    }
}

#[test]
fn a_group_of_one_commits_alone() {
    let group = Group::of(1);
    let node = group.master("n1");
    for policy in ALL_POLICIES {
        let vlsn = node.commit("x", policy).unwrap();
        assert!(node.node.wait_durable(vlsn, PATIENCE));
    }
    assert_eq!(node.ledger.bodies().len(), 5);
}

#[test]
fn with_a_majority_gone_before_the_write_nothing_is_written() {
    let group = Group::of(3);
    let mut config = group.master_config("n1", &[]);
    config.limits.insufficient_replicas_timeout = Duration::from_secs(1);
    let master = group.open(config).unwrap();
    let replicas = [group.replica("n2", &master), group.replica("n3", &master)];
    master.commit("both", Durability::ALL).unwrap();
    replicas[0].node.shutdown().unwrap();
    eventually("n2 is gone", || master.node.status().replicas.len() == 1);

    master.commit("one left", Durability::MAJORITY).unwrap();
    let last = master.last();
    let error = master.commit("all", Durability::ALL).unwrap_err();
    assert!(
        matches!(error, RepError::InsufficientReplicas { needed: 2, connected: 1, .. }),
        "{error}"
    );
    replicas[1].node.shutdown().unwrap();
    eventually("n3 is gone", || master.node.status().replicas.is_empty());
    for policy in [Durability::MAJORITY, Durability::WRITE_MAJORITY, Durability::NO_SYNC_MAJORITY] {
        let error = master.commit("nobody", policy).unwrap_err();
        assert!(
            matches!(error, RepError::InsufficientReplicas { needed: 1, connected: 0, .. }),
            "{error}"
        );
    }
    assert_eq!(master.last(), last, "something was written");
    let local = master.commit("local", Durability::LOCAL).unwrap();
    assert_eq!(local, last.next());
    assert!(master.node.dtvlsn() < local);
}

#[test]
fn what_only_the_master_holds_becomes_durable_when_a_replica_returns() {
    let group = Group::of(2);
    let master = group.master("n1");
    let replica = group.replica("n2", &master);
    master.commit("first", Durability::MAJORITY).unwrap();
    drop(replica);
    eventually("n2 is gone", || master.node.status().replicas.is_empty());
    let local = master.commit("local", Durability::LOCAL).unwrap();
    assert!(!master.node.wait_durable(local, Duration::from_millis(50)));
    let replica = group.replica("n2", &master);
    assert!(master.node.wait_durable(local, PATIENCE));
    assert!(replica.node.wait_applied(local, PATIENCE).unwrap());
}

#[test]
fn a_commit_whose_replica_leaves_after_the_write_is_unknown_and_resolves_later() {
    let group = Group::of(2);
    let mut config = group.master_config("n1", &[]);
    config.limits.ack_timeout = Duration::from_millis(300);
    let master = group.open(config).unwrap();
    let replica = group.replica("n2", &master);
    master.commit("warm", Durability::MAJORITY).unwrap();
    drop(replica);
    eventually("n2 is gone", || master.node.status().replicas.is_empty());

    // Connected, so that the write begins; gone without an acknowledgement.
    let mute = mute_voter(&master);
    let pending = master.node.submit(&[entry(b"x")], Durability::MAJORITY).unwrap();
    let (told, outcome) = mpsc::channel();
    pending.on_done(move |result| told.send(result).unwrap());
    assert!(pending.poll().is_none());
    assert!(pending.wait_timeout(Duration::from_millis(1)).is_none());
    drop(mute);
    let unknown = |result: Result<(), RepError>| match result {
        Err(RepError::OutcomeUnknown { commit, .. }) => assert_eq!(commit, pending.id()),
        other => panic!("{other:?}"),
    };
    unknown(pending.wait());
    unknown(pending.poll().unwrap());
    unknown(outcome.recv_timeout(PATIENCE).unwrap());

    let replica = group.replica("n2", &master);
    assert!(master.node.wait_durable(pending.vlsn(), PATIENCE));
    pending.wait().unwrap();
    assert!(replica.node.wait_applied(pending.vlsn(), PATIENCE).unwrap());
}

/// Takes the place of n2 in the group's books without its data: same name, same incarnation.
fn mute_voter(master: &Member) -> MuteReplica {
    let mute = MuteReplica::connect("n2", incarnation(1), master).unwrap();
    eventually("the mute replica is connected", || master.node.status().replicas.len() == 1);
    mute
}

#[test]
fn writes_wait_for_the_replicas_instead_of_failing_at_once() {
    let group = Group::of(2);
    let master = group.lone_master("n1");
    let address = master.address();
    let master = Arc::new(master);
    let writer = {
        let master = Arc::clone(&master);
        std::thread::spawn(move || master.commit("early", Durability::MAJORITY))
    };
    let replica = group.open(group.config("n2", &[address])).unwrap();
    let vlsn = writer.join().unwrap().unwrap();
    assert!(replica.node.wait_applied(vlsn, PATIENCE).unwrap());
}

#[test]
fn a_callback_is_called_once_with_the_outcome() {
    let group = Group::of(3);
    let nodes = group.start();
    let (told, outcomes) = mpsc::channel();
    let handles: Vec<_> = (0..200)
        .map(|n| {
            let body = format!("{n}");
            let handle =
                nodes[0].node.submit(&[entry(body.as_bytes())], Durability::MAJORITY).unwrap();
            let (told, vlsn) = (told.clone(), handle.vlsn());
            handle.on_done(move |outcome| told.send((vlsn, outcome.is_ok())).unwrap());
            handle
        })
        .collect();
    let mut seen: Vec<_> = (0..200).map(|_| outcomes.recv_timeout(PATIENCE).unwrap()).collect();
    seen.sort_unstable();
    let expected: Vec<_> = handles.iter().map(|handle| (handle.vlsn(), true)).collect();
    assert_eq!(seen, expected);
    for handle in &handles {
        assert!(matches!(handle.poll(), Some(Ok(()))));
        handle.wait().unwrap();
    }
    drop(told);
    assert!(outcomes.recv_timeout(Duration::from_millis(1)).is_err());
}

#[test]
fn a_writer_without_acks_is_slowed_at_the_bound_and_majority_commits_still_pass() {
    let group = Group::of(3);
    let mut config = group.master_config("n1", &[]);
    config.limits.max_unreplicated_bytes = 256 << 10;
    config.limits.ack_timeout = Duration::from_secs(1);
    let master = group.open(config).unwrap();
    let two = group.replica("n2", &master);
    let three = group.replica("n3", &master);
    master.commit("warm", Durability::ALL).unwrap();
    let body = vec![7u8; 4 << 10];
    for _ in 0..500 {
        master.node.submit(&[entry(&body)], MEMORY_ONLY).unwrap();
    }
    master.commit("majority", Durability::MAJORITY).unwrap();

    two.node.shutdown().unwrap();
    three.node.shutdown().unwrap();
    eventually("nobody is left", || master.node.status().replicas.is_empty());
    let started = Instant::now();
    let mut written = 0;
    while started.elapsed() < Duration::from_millis(400) {
        master.node.submit(&[entry(&body)], MEMORY_ONLY).unwrap();
        written += 1;
    }
    // 64 entries fit below the bound (and one sample more); from there on one a second.
    assert!((60..=90).contains(&written), "{written} written");
}

#[test]
fn dtvlsn_is_what_was_fsynced_on_a_majority_across_restarts() {
    let group = Group::of(3);
    let nodes = group.start();
    let vlsn = nodes[0].commit("durable", Durability::MAJORITY).unwrap();
    // All of them, before the first goes: it is the master that tells the others.
    for node in &nodes {
        assert!(node.node.wait_durable(vlsn, PATIENCE));
    }
    for node in &nodes {
        assert!(node.node.dtvlsn() <= node.last());
        node.node.shutdown().unwrap();
        assert!(node.node.log().control().state().commit_floor >= vlsn);
    }
    drop(nodes);
    let two = group.master("n2");
    assert!(two.node.dtvlsn() >= vlsn, "it knows without asking anybody");
    assert!(two.node.wait_applied(vlsn, PATIENCE).unwrap());
    drop(two);
    let alone = group.lone_master("n2");
    let on_two = alone.last();
    assert!(alone.node.wait_durable(on_two, PATIENCE));
    let local = alone.commit("local", Durability::LOCAL).unwrap();
    assert!(alone.node.dtvlsn() < local, "it is on no majority");
    assert!(alone.node.dtvlsn() >= on_two);
}

#[test]
fn a_failing_state_machine_stops_its_node_loudly_and_no_other() {
    let group = Group::of(3);
    let nodes = group.start();
    nodes[2].ledger.fail_at(nodes[0].last().next());
    let vlsn = nodes[0].commit("x", Durability::MAJORITY).unwrap();
    assert!(nodes[2].node.wait_stopped(PATIENCE));
    let failure = nodes[2].node.failure().unwrap();
    assert!(failure.contains("told to fail"), "{failure}");
    assert!(nodes[1].node.wait_applied(vlsn, PATIENCE).unwrap());
    nodes[0].commit("y", Durability::MAJORITY).unwrap();
    assert!(nodes[2].node.shutdown().is_err());
}
