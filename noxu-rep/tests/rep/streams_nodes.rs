//! Streams between whole nodes over TCP.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use noxu_rep::net::channel::Channel;
use noxu_rep::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use noxu_rep::wire::handshake::{Hello, RejectReason, handshake_as_replica};
use noxu_rep::wire::message::StreamMessage;
use noxu_rep::{Durability, GroupChoice, NodeKind, RepError, Role, StreamTiming};

use crate::support::{
    Group, MuteReplica, PATIENCE, entry, eventually, hello, incarnation, name, streaming,
};

#[test]
fn sixty_four_committers_reach_two_replicas_in_one_order() {
    let group = Group::of(3);
    let nodes = group.start();
    let per_thread = 50;
    thread::scope(|scope| {
        for writer in 0..64 {
            let master = &nodes[0];
            scope.spawn(move || {
                let mut last = None;
                for n in 0..per_thread {
                    let vlsn =
                        master.commit(&format!("{writer} {n}"), Durability::MAJORITY).unwrap();
                    assert!(Some(vlsn) > last, "{vlsn} after {last:?}");
                    last = Some(vlsn);
                }
            });
        }
    });
    let last = nodes[0].last();
    for node in &nodes {
        assert!(node.node.wait_applied(last, PATIENCE).unwrap(), "{:?}", node.node.status());
        assert_eq!(node.ledger.bodies().len(), 64 * per_thread);
        assert_eq!(node.ledger.bodies(), nodes[0].ledger.bodies());
        nodes[0].assert_same_log(node);
    }
}

#[test]
fn one_thread_keeps_many_commits_in_flight() {
    let group = Group::of(3);
    let nodes = group.start();
    let mut handles = std::collections::VecDeque::new();
    for n in 0..5_000u32 {
        handles.push_back(
            nodes[0].node.submit(&[entry(&n.to_le_bytes())], Durability::MAJORITY).unwrap(),
        );
        if handles.len() == 1_024 {
            handles.pop_front().unwrap().wait().unwrap();
        }
    }
    for handle in &handles {
        handle.wait().unwrap();
    }
    for node in &nodes {
        assert!(node.node.wait_applied(nodes[0].last(), PATIENCE).unwrap());
        assert_eq!(node.ledger.bodies().len(), 5_000);
    }
}

#[test]
fn a_lone_commit_is_visible_on_the_replicas_at_once_not_at_the_next_heartbeat() {
    let group = Group::of(3);
    let mut config = group.master_config("n1", &[]);
    config.limits.timing =
        StreamTiming { heartbeat: Duration::from_secs(20), silence: Duration::from_mins(1) };
    let master = group.open(config).unwrap();
    let replicas = ["n2", "n3"].map(|node| {
        let mut config = group.config(node, &[master.address()]);
        config.limits.timing.silence = Duration::from_mins(1);
        group.open(config).unwrap()
    });
    master.commit("warm", Durability::ALL).unwrap();
    let started = Instant::now();
    for n in 0..20 {
        let vlsn = master.commit(&n.to_string(), Durability::MAJORITY).unwrap();
        for replica in &replicas {
            assert!(replica.node.wait_applied(vlsn, Duration::from_secs(10)).unwrap());
        }
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_replica_that_was_away_catches_up() {
    let group = Group::of(3);
    let mut nodes = group.start();
    let away = nodes.pop().unwrap();
    let before = away.last();
    drop(away);
    let body = [9u8; 300];
    let batch: Vec<_> = (0..100).map(|_| entry(&body)).collect();
    for _ in 0..100 {
        nodes[0].node.submit(&batch, Durability::MAJORITY).unwrap();
    }
    nodes[0].commit("end", Durability::MAJORITY).unwrap();
    let back = group.replica("n3", &nodes[0]);
    assert!(back.node.wait_applied(nodes[0].last(), PATIENCE).unwrap());
    nodes[0].assert_same_log(&back);
    let syncup = back.node.status().last_syncup.unwrap();
    assert_eq!((syncup.matchpoint, syncup.round_trips), (before, 1));
}

#[test]
fn a_silent_replica_is_dropped_and_the_commits_go_on() {
    let group = Group::of(3);
    let mut config = group.master_config("n1", &[]);
    config.limits.timing =
        StreamTiming { heartbeat: Duration::from_millis(30), silence: Duration::from_millis(300) };
    let master = group.open(config).unwrap();
    let _two = group.replica("n2", &master);
    let mute = MuteReplica::connect("n3", incarnation(2), &master).unwrap();
    eventually("both are connected", || master.node.status().replicas.len() == 2);
    master.commit("x", Durability::MAJORITY).unwrap();
    let frame = mute.channel.receive(PATIENCE).unwrap().unwrap();
    assert_eq!(StreamMessage::decode(&frame).unwrap().name(), "Entries");
    eventually("the silent one is dropped", || master.node.status().replicas.len() == 1);
    master.commit("y", Durability::MAJORITY).unwrap();
}

#[test]
fn a_duplicate_name_a_stranger_and_a_foreign_group_are_refused_by_name() {
    let group = Group::of(3);
    let nodes = group.start();
    let refused = |hello: &Hello| {
        let channel = dial(&nodes[0].address(), FEEDER_SERVICE_NAME, PATIENCE).unwrap();
        match handshake_as_replica(&*channel, hello) {
            Err(RepError::Rejected(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    // Another directory than the one that is bound to the name, and is connected.
    let reason = refused(&hello("n2", 77));
    assert!(matches!(reason, RejectReason::NotBound { .. }), "{reason}");
    let reason = refused(&hello("n1", 1));
    assert!(matches!(reason, RejectReason::DuplicateNode { .. }), "{reason}");
    let reason = refused(&hello("n9", 1));
    assert!(matches!(reason, RejectReason::UnknownMember { .. }), "{reason}");
    let foreign = Hello { group_name: Some(name("billing")), ..hello("n2", 1) };
    let reason = refused(&foreign);
    assert!(matches!(reason, RejectReason::WrongGroupName { .. }), "{reason}");
    let text = reason.to_string();
    assert!(text.contains("orders") && text.contains("billing"), "{text}");
    // Nothing was harmed.
    nodes[0].commit("x", Durability::ALL).unwrap();
}

#[test]
fn a_node_of_another_group_says_why_it_does_not_follow() {
    let group = Group::of(1);
    let other = Group::of(2);
    drop(other.start());
    let master = group.master("n1");
    let stray = other.open(other.config("n2", &[master.address()])).unwrap();
    // Shown until the next address has been tried, and as the cause when it gives up.
    eventually("the reason is shown", || {
        let reasons = [stray.node.status().last_error, stray.node.failure()];
        reasons.iter().flatten().any(|reason| reason.contains("two groups of one name"))
    });
    assert_ne!(stray.node.role(), Role::Replica);
}

#[test]
fn an_early_replica_waits_for_its_master() {
    let group = Group::of(2);
    let early = group.open(group.config("n2", &[group.door("n1").address()])).unwrap();
    assert_eq!(early.node.role(), Role::Unknown);
    let master = group.master("n1");
    let vlsn = master.commit("x", Durability::MAJORITY).unwrap();
    assert!(early.node.wait_applied(vlsn, PATIENCE).unwrap());
}

#[test]
fn a_replica_finds_the_master_through_another_replica() {
    let group = Group::of(2);
    let master = group.master("n1");
    let two = group.replica("n2", &master);
    eventually("n2 streams", || streaming(&master) == 1);
    // No voter: nothing but its peer tells it of the group.
    let mut config = group.config("n3", &[two.address()]);
    config.kind = NodeKind::Secondary;
    let three = group.open(config).unwrap();
    let vlsn = master.commit("x", Durability::ALL).unwrap();
    assert!(three.node.wait_applied(vlsn, PATIENCE).unwrap());
    assert_eq!(three.node.status().master, Some(master.address()));
    let error = two.commit("y", Durability::LOCAL).unwrap_err();
    assert!(
        matches!(&error, RepError::NotMaster { master: Some(at) } if *at == master.address()),
        "{error}"
    );
}

#[test]
fn bytes_that_are_no_protocol_harm_only_their_connection() {
    let group = Group::of(2);
    let nodes = group.start();
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &[0, 0, 0, 0]] {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(nodes[0].address()).unwrap();
        stream.write_all(garbage).unwrap();
    }
    let channel = dial(&nodes[0].address(), FEEDER_SERVICE_NAME, PATIENCE).unwrap();
    channel.send(b"no handshake").unwrap();
    assert!(channel.receive(PATIENCE).is_err());
    nodes[0].commit("x", Durability::ALL).unwrap();
}

#[test]
fn steady_writes_survive_replicas_that_come_and_go() {
    let group = Group::of(3);
    let mut nodes = group.start();
    let mut replicas: Vec<_> = nodes.drain(1..).map(Some).collect();
    let master = Arc::new(nodes.pop().unwrap());
    let writer = {
        let master = Arc::clone(&master);
        thread::spawn(move || {
            (0..600)
                .map(|n| master.commit(&n.to_string(), Durability::MAJORITY).unwrap())
                .collect::<Vec<_>>()
        })
    };
    for round in 0..10 {
        let n = round % 2;
        drop(replicas[n].take());
        let replica = group.replica(["n2", "n3"][n], &master);
        eventually("it streams again", || streaming(&master) == 2);
        replicas[n] = Some(replica);
    }
    let written = writer.join().unwrap();
    assert_eq!(written.len(), 600);
    let last = master.commit("end", Durability::ALL).unwrap();
    for replica in replicas.iter().flatten() {
        assert!(replica.node.wait_applied(last, PATIENCE).unwrap());
        master.assert_same_log(replica);
        assert_eq!(master.ledger.bodies(), replica.ledger.bodies());
        assert!(replica.node.status().last_rollback.is_none());
        assert!(replica.ledger.rollbacks().is_empty());
    }
}

#[test]
fn a_node_may_join_only_a_group_of_the_name_it_was_given() {
    let group = Group::of(1);
    let master = group.master("n1");
    master.await_elected();
    let mut config = group.config("n2", &[master.address()]);
    config.group = GroupChoice::Join { name: Some(name("billing")) };
    let stray = group.open(config).unwrap();
    eventually("the reason is shown", || stray.node.status().last_error.is_some());
    let reason = stray.node.status().last_error.unwrap();
    assert!(reason.contains("group orders, not group billing"), "{reason}");
    assert!(stray.node.status().group.is_none(), "it adopted the group all the same");
}
