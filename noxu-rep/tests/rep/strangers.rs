//! Strangers: votes, links and directories that do not belong to the group, or to this moment of it.

use std::sync::Arc;

use noxu_log::env::RealEnv;
use noxu_rep::net::channel::Channel;
use noxu_rep::net::dispatcher::{ELECTION_SERVICE_NAME, dial};
use noxu_rep::net::tcp::TcpChannel;
use noxu_rep::wire::election::link::{Introduction, LINK_VERSIONS, introduce};
use noxu_rep::wire::election::{Body, ElectionMsg, LeadPhase, LogEnd, Peer, Phase, VoteRequest};
use noxu_rep::wire::handshake::{Capabilities, RejectReason};
use noxu_rep::{Durability, Node, NodeKind, RepError, Role};
use noxu_util::{GroupId, Incarnation, Term, Vlsn};

use crate::elections::{Group, SOON};
use crate::support::{Ledger, entry, eventually, name};

/// A voter of `group`, as it would introduce itself.
fn voter(group: &Group, n: usize) -> Introduction {
    let status = group.node(n).status();
    Introduction {
        epoch: 0,
        term: status.term,
        versions: LINK_VERSIONS,
        group: status.group.as_ref().map(|group| group.id),
        group_name: status.group.map(|group| group.name),
        peer: Peer { name: status.name, incarnation: status.incarnation },
        kind: NodeKind::Electable,
        priority: 1,
        address: String::new(),
        capabilities: Capabilities::OURS,
    }
}

fn link(group: &Group, n: usize, ours: &Introduction) -> Result<Arc<TcpChannel>, RepError> {
    let channel = dial(&group.addresses[n], ELECTION_SERVICE_NAME, SOON)?;
    introduce(&*channel, ours, &|_| Ok(1)).map(|_| channel)
}

#[test]
fn a_link_from_another_group_epoch_or_directory_is_refused_by_name() {
    let mut group = Group::founded(3);
    let master = group.commit("x");
    group.await_everywhere("x");
    let other = (master + 1) % 3;
    let lawful = voter(&group, other);
    group.stop(other);
    let refused = |change: &dyn Fn(&mut Introduction)| {
        let mut ours = lawful.clone();
        change(&mut ours);
        match link(&group, master, &ours) {
            Err(RepError::Rejected(reason)) => reason,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{ours:?} was let in"),
        }
    };
    let reason = refused(&|ours| ours.group = Some(GroupId::from_bytes([9; 16])));
    assert!(matches!(reason, RejectReason::WrongGroup { .. }), "{reason}");
    let reason = refused(&|ours| ours.group_name = Some(name("billing")));
    assert!(matches!(reason, RejectReason::WrongGroupName { .. }), "{reason}");
    let reason = refused(&|ours| ours.epoch = 1);
    assert_eq!(reason, RejectReason::WrongEpoch { ours: 0, theirs: 1 });
    let wiped = Incarnation::from_u64(77);
    let reason = refused(&|ours| ours.peer.incarnation = wiped);
    assert!(matches!(reason, RejectReason::NotBound { theirs, .. } if theirs == wiped), "{reason}");
    let reason = refused(&|ours| ours.peer.name = name("n9"));
    assert!(matches!(reason, RejectReason::UnknownMember { .. }), "{reason}");
    let own = group.node(master).name();
    let reason = refused(&|ours| ours.peer.name = own.clone());
    assert!(matches!(reason, RejectReason::DuplicateNode { .. }), "{reason}");
    let reason = refused(&|ours| (ours.versions.lowest, ours.versions.highest) = (90, 99));
    assert!(matches!(reason, RejectReason::Version { .. }), "{reason}");
    group.commit("y");
}

#[test]
fn votes_of_another_epoch_or_an_old_term_and_garbage_move_nobody() {
    let mut group = Group::founded(3);
    let master = group.commit("x");
    group.await_everywhere("x");
    let (gone, voter_there) = ((master + 1) % 3, (master + 2) % 3);
    let ours = voter(&group, gone);
    group.stop(gone);
    let term = group.node(master).status().term;
    let request = |phase, asked: u32| {
        Body::VoteRequest(VoteRequest {
            phase,
            nonce: 7,
            asked: Term::new(asked),
            head: LogEnd { term: Term::new(99), vlsn: Vlsn::new(1 << 40), ..LogEnd::default() },
            priority: 200,
            uncertain: false,
        })
    };
    for n in [master, voter_there] {
        let channel = link(&group, n, &ours).unwrap();
        let say = |epoch, term: Term, body| {
            channel.send(&ElectionMsg { epoch, term, body }.encode()).unwrap();
        };
        // Of another epoch, whatever they say.
        say(1, Term::new(50), request(Phase::Real, 50));
        say(1, Term::new(50), Body::Yield { successor: ours.peer.name.clone() });
        let lead = Body::Lead { address: "127.0.0.1:1".to_owned(), phase: LeadPhase::Established };
        say(2, Term::new(60), lead);
        // Of a term that is over.
        say(0, Term::new(0), request(Phase::Real, 0));
        say(0, term, request(Phase::Real, term.number()));
        // A master that is heard from is not asked for by a pre-vote, however good the log.
        say(0, term, request(Phase::Pre, 90));
        // No message at all: this connection ends, and nothing else.
        channel.send(&[0xee; 40]).unwrap();
        let closed = loop {
            match channel.receive(SOON) {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert!(closed.is_err(), "{closed:?}");
    }
    group.commit("y");
    for (n, node) in group.running() {
        let status = node.status();
        assert_eq!(status.term, term, "n{}: {}", n + 1, status.reason);
        assert_eq!(node.failure(), None);
    }
    assert_eq!(group.node(master).role(), Role::Master);
}

#[test]
fn a_vote_in_a_newer_term_deposes_nobody_who_is_in_touch_with_a_quorum() {
    let mut group = Group::founded(3);
    let master = group.commit("x");
    group.await_everywhere("x");
    let gone = (master + 1) % 3;
    let ours = voter(&group, gone);
    group.stop(gone);
    let term = group.node(master).status().term;
    let channel = link(&group, master, &ours).unwrap();
    let request = VoteRequest {
        phase: Phase::Real,
        nonce: 7,
        asked: Term::new(term.number() + 10),
        head: LogEnd { term: Term::new(99), vlsn: Vlsn::new(1 << 40), ..LogEnd::default() },
        priority: 200,
        uncertain: false,
    };
    let message = ElectionMsg { epoch: 0, term, body: Body::VoteRequest(request) };
    channel.send(&message.encode()).unwrap();
    group.commit("y");
    assert_eq!(group.node(master).role(), Role::Master);
    assert_eq!(group.node(master).status().term, term);
}

#[test]
fn a_wiped_voter_has_no_vote_and_its_acknowledgements_do_not_count() {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = SOON;
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("x");
    group.await_everywhere("x");
    let (wiped, other) = ((master + 1) % 3, (master + 2) % 3);
    group.stop(wiped);
    std::fs::remove_dir_all(group.config(wiped).dir).unwrap();
    group.start_joining(wiped);
    group.commit("y");
    group.await_everywhere("y");
    assert!(!group.node(wiped).status().is_voter);
    group.stop(other);
    eventually("the other is gone", || group.node(master).status().replicas.len() == 1);
    let node = group.node(master);
    let refused = node.commit(&[entry(b"z")], Durability::MAJORITY).unwrap_err();
    assert!(matches!(refused, RepError::InsufficientReplicas { .. }), "{refused}");
    // It follows all the same.
    node.commit(&[entry(b"weak")], Durability::LOCAL).unwrap();
    assert!(group.node(wiped).wait_role(Role::Replica, SOON));
    // And the two that are left of the voters go on without it.
    group.start(other);
    group.commit("after");
    group.await_everywhere("after");
}

#[test]
fn of_two_nodes_with_one_name_the_bound_one_stays() {
    let group = Group::founded(3);
    let master = group.commit("x");
    group.await_everywhere("x");
    let other = (master + 1) % 3;
    let twin = tempfile::tempdir().unwrap();
    let mut config = group.joining_config(other);
    config.dir = twin.path().to_owned();
    config.listen = "127.0.0.1:0".to_owned();
    config.on_state = None;
    let machine = Arc::<Ledger>::default();
    let second = Node::open(Arc::new(RealEnv::new()), config, |_| Ok(machine)).unwrap();
    assert!(second.wait_stopped(SOON), "{:?}", second.status());
    let failure = second.failure().unwrap();
    assert!(failure.contains(group.node(other).name().as_str()), "{failure}");
    group.commit("y");
    group.await_everywhere("y");
    assert!(group.node(other).status().is_voter);
    assert_eq!(group.node(other).failure(), None);
}
