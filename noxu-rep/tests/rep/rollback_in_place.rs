//! A deposed master comes back: matchpoint, rollback in place, lost entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use noxu_log::env::RealEnv;
use noxu_log::{EntryFlags, LostEntries, NewEntry};
use noxu_rep::{Durability, GroupChoice, RepError, Role};
use noxu_util::Vlsn;

use crate::support::{Group, KIND, Member, PATIENCE, eventually, streaming};

/// n1 wrote what reached nobody, died, and n2 went on in a newer term with n3. Returns n2, n3.
fn diverge(group: &Group, before: usize, lost: usize, after: usize) -> (Vlsn, Vec<Member>) {
    let mut nodes = group.start();
    let mut shared = nodes[0].last();
    for n in 0..before {
        shared = nodes[0].commit(&format!("shared {n}"), Durability::ALL).unwrap();
    }
    for node in nodes.drain(1..) {
        assert!(node.node.wait_applied(shared, PATIENCE).unwrap());
        node.node.shutdown().unwrap();
    }
    eventually("n1 is alone", || nodes[0].node.status().replicas.is_empty());
    for n in 0..lost {
        nodes[0].commit(&format!("lost {n}"), Durability::LOCAL).unwrap();
    }
    drop(nodes);
    let two = group.master("n2");
    let three = group.replica("n3", &two);
    two.await_elected();
    eventually("n3 streams", || streaming(&two) == 1);
    for n in 0..after {
        two.commit(&format!("kept {n}"), Durability::MAJORITY).unwrap();
    }
    (shared, vec![two, three])
}

fn assert_caught_up(master: &Member, replica: &Member) {
    let last = master.last();
    assert!(replica.node.wait_applied(last, PATIENCE).unwrap(), "{:?}", replica.node.status());
    master.assert_same_log(replica);
    assert_eq!(master.ledger.bodies(), replica.ledger.bodies());
}

#[test]
fn a_deposed_master_rolls_back_what_reached_nobody_and_keeps_it_in_a_file() {
    let group = Group::of(3);
    let (shared, nodes) = diverge(&group, 5, 7, 3);
    let mut config = group.config("n1", &[nodes[0].address()]);
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    config.on_rollback = Some(Arc::new(move |report| {
        assert_eq!(report.entries, 7);
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    let returned = group.open(config).unwrap();
    let last = nodes[0].commit("after", Durability::ALL).unwrap();
    assert!(returned.node.wait_applied(last, PATIENCE).unwrap());
    assert_caught_up(&nodes[0], &returned);
    assert_caught_up(&nodes[0], &nodes[1]);

    let report = returned.node.status().last_rollback.unwrap();
    assert_eq!((report.matchpoint, report.entries), (shared, 7));
    assert_eq!(report.master.as_str(), "n2");
    assert!(report.master_term.number() >= 2, "{report:?}");
    assert!(report.round_trips <= 4, "{report:?}");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    let saved = LostEntries::read_file(&RealEnv::new(), &report.lost_file).unwrap();
    let bodies: Vec<_> = saved.entries().map(|e| e.body.to_vec()).collect();
    let expected: Vec<_> = (0..7).map(|n| format!("lost {n}").into_bytes()).collect();
    assert_eq!(bodies, expected);
}

#[test]
fn a_rollback_spans_segments() {
    let group = Group::of(3);
    let (shared, nodes) = {
        // Segments are 1 MiB; the lost tail is three of them.
        let group = &group;
        let mut nodes = group.start();
        let shared = nodes[0].commit("shared", Durability::ALL).unwrap();
        for node in nodes.drain(1..) {
            assert!(node.node.wait_applied(shared, PATIENCE).unwrap());
            node.node.shutdown().unwrap();
        }
        eventually("n1 is alone", || nodes[0].node.status().replicas.is_empty());
        let body = vec![1u8; 100 << 10];
        for _ in 0..35 {
            let entry = NewEntry::new(KIND, EntryFlags::COMMIT, &body);
            nodes[0].node.commit(&[entry], Durability::LOCAL).unwrap();
        }
        assert!(nodes[0].node.log().positions().last_lsn.segment() >= 4);
        drop(nodes);
        let two = group.master("n2");
        let three = group.replica("n3", &two);
        two.await_elected();
        (shared, [two, three])
    };
    let returned = group.replica("n1", &nodes[0]);
    nodes[0].commit("after", Durability::ALL).unwrap();
    assert_caught_up(&nodes[0], &returned);
    let report = returned.node.status().last_rollback.unwrap();
    assert_eq!((report.matchpoint, report.entries), (shared, 35));
}

#[test]
fn a_replica_with_the_same_log_appends_nothing_again() {
    let group = Group::of(3);
    let (_, nodes) = diverge(&group, 3, 0, 1);
    let returned = group.replica("n1", &nodes[0]);
    assert_caught_up(&nodes[0], &returned);
    for _ in 0..3 {
        let before = returned.node.log().positions().last_lsn;
        assert!(returned.node.status().last_rollback.is_none());
        let syncup = returned.node.status().last_syncup.unwrap();
        assert_eq!(syncup.round_trips, 1);
        assert_eq!(returned.node.log().positions().last_lsn, before);
    }
    let last = returned.last();
    drop(returned);
    let again = group.replica("n1", &nodes[0]);
    eventually("n1 is back", || again.node.status().last_syncup.is_some());
    let syncup = again.node.status().last_syncup.unwrap();
    assert_eq!((syncup.matchpoint, syncup.start), (last, last.next()));
    assert_caught_up(&nodes[0], &again);
}

#[test]
fn a_transaction_that_straddles_the_matchpoint_goes_whole() {
    let group = Group::of(3);
    let mut nodes = group.start();
    let shared = nodes[0].commit("shared", Durability::ALL).unwrap();
    for node in nodes.drain(1..) {
        assert!(node.node.wait_applied(shared, PATIENCE).unwrap());
        node.node.shutdown().unwrap();
    }
    eventually("n1 is alone", || nodes[0].node.status().replicas.is_empty());
    let batch: Vec<_> = (0..5)
        .map(|n| {
            let flags = if n == 4 { EntryFlags::COMMIT } else { EntryFlags::NONE };
            NewEntry::new(KIND, flags, b"part")
        })
        .collect();
    nodes[0].node.commit(&batch, Durability::LOCAL).unwrap();
    drop(nodes);
    let two = group.master("n2");
    let _three = group.replica("n3", &two);
    two.await_elected();
    let returned = group.replica("n1", &two);
    two.commit("after", Durability::ALL).unwrap();
    assert_caught_up(&two, &returned);
    let report = returned.node.status().last_rollback.unwrap();
    assert_eq!((report.matchpoint, report.entries), (shared, 5));
    assert!(!returned.ledger.bodies().contains(&b"part".to_vec()));
}

#[test]
fn what_was_rolled_back_never_comes_back_after_a_restart() {
    let group = Group::of(3);
    let (_, nodes) = diverge(&group, 2, 4, 2);
    let returned = group.replica("n1", &nodes[0]);
    assert_caught_up(&nodes[0], &returned);
    drop(returned);
    let again = group.replica("n1", &nodes[0]);
    assert_caught_up(&nodes[0], &again);
    assert!(again.node.status().last_rollback.is_none());
    // It feeds the others in its turn.
    let addresses: Vec<_> = nodes.iter().map(Member::address).collect();
    drop(nodes);
    drop(again);
    let mut config = group.master_config("n1", &addresses);
    config.dial_timeout = Duration::from_millis(300);
    let one = group.open(config).unwrap();
    let two = group.replica("n2", &one);
    one.commit("third term", Durability::MAJORITY).unwrap();
    assert_caught_up(&one, &two);
    assert!(!two.ledger.bodies().iter().any(|body| body.starts_with(b"lost")));
}

#[test]
fn a_master_that_meets_a_newer_term_steps_down_and_follows() {
    let group = Group::of(3);
    let mut nodes = group.start();
    nodes[0].commit("shared", Durability::ALL).unwrap();
    nodes.truncate(1);
    let one = &nodes[0];
    eventually("n1 is alone", || one.node.status().replicas.is_empty());
    one.commit("lost", Durability::LOCAL).unwrap();
    // n2 becomes master of a newer term without asking n1.
    group.door("n1").lead_to(None);
    let [two, _three] = group.start_apart("n2", "n3");
    two.commit("kept", Durability::MAJORITY).unwrap();
    assert_eq!(one.node.role(), Role::Master, "nobody told it");
    group.door("n1").lead_to(Some(one.node.local_addr()));
    eventually("n1 steps down", || one.node.role() == Role::Replica);
    assert_eq!(one.node.status().term, two.node.status().term);
    let refused = one.commit("x", Durability::LOCAL).unwrap_err();
    assert!(matches!(refused, RepError::NotMaster { .. }), "{refused}");
}

#[test]
fn a_directory_of_another_node_or_group_is_refused_by_name() {
    let group = Group::of(2);
    drop(group.start());
    let mut config = group.config("n1", &[]);
    config.dir = group.dir("n2");
    let refused = group.open(config).err().unwrap().to_string();
    assert!(refused.contains("belongs to node n2, not to n1"), "{refused}");
    let mut config = group.config("n2", &[]);
    config.group = GroupChoice::Join { name: Some("billing".parse().unwrap()) };
    let refused = group.open(config).err().unwrap().to_string();
    assert!(refused.contains("belongs to group orders, not to billing"), "{refused}");
}

#[test]
fn a_master_that_steps_down_rolls_back_in_place_and_its_handles_stay_valid() {
    let group = Group::of(3);
    let one = group.master("n1");
    let followers = ["n2", "n3"].map(|node| group.replica(node, &one));
    let shared = one.commit("shared", Durability::ALL).unwrap();
    for node in &followers {
        assert!(node.node.wait_applied(shared, PATIENCE).unwrap());
    }
    drop(followers);
    eventually("n1 is alone", || one.node.status().replicas.is_empty());
    for n in 0..10 {
        one.commit(&format!("lost {n}"), Durability::LOCAL).unwrap();
    }
    assert_eq!(one.ledger.bodies().len(), 11, "weak commits are visible on their master");
    group.door("n1").lead_to(None);
    let [two, _three] = group.start_apart("n2", "n3");
    two.commit("kept", Durability::MAJORITY).unwrap();
    // They bring it the news of their term.
    group.door("n1").lead_to(Some(one.node.local_addr()));
    eventually("n1 steps down", || one.node.role() == Role::Replica);
    let last = two.commit("after", Durability::ALL).unwrap();
    assert!(one.node.wait_applied(last, PATIENCE).unwrap(), "{:?}", one.node.status());
    assert_caught_up(&two, &one);
    assert!(!one.ledger.bodies().iter().any(|body| body.starts_with(b"lost")));
    assert_eq!(one.node.status().last_rollback.unwrap().matchpoint, shared);
    assert_eq!(one.ledger.rollbacks(), [shared]);
}
