//! Tests of introductions: their bytes, who is let in, both ends over a channel.

use std::thread;

use super::*;
use crate::group::{Voter, VoterKind};
use crate::net::channel::LocalChannelPair;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

const GROUP: GroupId = GroupId::from_bytes(*b"group-of-sixteen");

fn card(node: &str, incarnation: u64) -> Introduction {
    Introduction {
        epoch: 1,
        term: Term::new(2),
        versions: LINK_VERSIONS,
        group: Some(GROUP),
        group_name: Some(name("orders")),
        peer: Peer { name: name(node), incarnation: Incarnation::from_u64(incarnation) },
        kind: NodeKind::Electable,
        priority: 5,
        address: "h:1".to_owned(),
        capabilities: Capabilities(3),
    }
}

fn electorate(names: &[(&str, u64)]) -> Electorate {
    let voter = |(node, incarnation): &(&str, u64)| Voter {
        name: name(node),
        incarnation: Incarnation::from_u64(*incarnation),
        kind: VoterKind::Data,
        address: String::new(),
    };
    Electorate { voters: names.iter().map(voter).collect(), q_rep: 0, q_elect: 0 }
}

fn messages() -> Vec<LinkMsg> {
    vec![
        LinkMsg::PeerHello(card("n1", 9)),
        LinkMsg::PeerHello(Introduction {
            group: None,
            group_name: None,
            kind: NodeKind::Arbiter,
            ..card("n2", 0)
        }),
        LinkMsg::PeerWelcome(card("n2", 8)),
        LinkMsg::PeerRejected(RejectReason::WrongEpoch { ours: 1, theirs: 2 }),
    ]
}

#[test]
fn introductions_have_their_golden_bytes() {
    let golden = b"\x01\0\0\0\x02\0\0\0\x01\0\x01\0\x01group-of-sixteen\x06\0orders\x02\0n1\
                   \x09\0\0\0\0\0\0\0\0\x05\x03\0h:1\x03\0\0\0\0\0\0\0\0\0";
    let hello = LinkMsg::PeerHello(card("n1", 9)).encode();
    assert_eq!(hello, [&b"\x40\x01\0\0"[..], golden].concat());
    let welcome = LinkMsg::PeerWelcome(card("n1", 9)).encode();
    assert_eq!(welcome, [&b"\x41\x01\0\0"[..], golden].concat());
    let rejected = LinkMsg::PeerRejected(RejectReason::NotReady { node: name("n1") }).encode();
    let golden = b"\x42\x01\0\0\x0b\x04\0\x02\0n1\x16\0node n1 has no log yet\0\0";
    assert_eq!(rejected, golden);
}

#[test]
fn introductions_come_back_and_every_cut_is_an_error() {
    for message in messages() {
        let bytes = message.encode();
        assert_eq!(LinkMsg::decode(&bytes), Ok(message.clone()));
        for len in 0..bytes.len() {
            assert!(LinkMsg::decode(&bytes[..len]).is_err(), "{message:?} at {len}");
        }
        assert!(LinkMsg::decode(&[&bytes[..], b"x"].concat()).is_err());
        let mut later = bytes[..bytes.len() - 2].to_vec();
        later.put_short_bytes(b"something new");
        assert_eq!(LinkMsg::decode(&later), Ok(message));
    }
    assert!(LinkMsg::decode(&[67, 1, 0, 0]).is_err());
}

#[test]
fn the_table_of_who_is_let_in() {
    let us = card("n1", 1);
    let them = card("n2", 2);
    let bound = electorate(&[("n1", 1), ("n2", 2)]);
    let other = GroupId::from_bytes([7; 16]);
    let fresh = Introduction { group: None, group_name: None, epoch: 0, ..them.clone() };
    let range = |lowest, highest| VersionRange { lowest, highest };
    let wiped = Introduction {
        peer: Peer { name: name("n2"), incarnation: Incarnation::from_u64(99) },
        ..them.clone()
    };
    let not_bound = RejectReason::NotBound {
        node: name("n2"),
        bound: Incarnation::from_u64(2),
        theirs: Incarnation::from_u64(99),
    };
    let stranger = card("n9", 9);
    for (theirs, expected) in [
        (them.clone(), Ok(1)),
        (fresh.clone(), Ok(1)),
        (
            Introduction { versions: range(2, 3), ..them.clone() },
            Err(RejectReason::Version { ours: LINK_VERSIONS, theirs: range(2, 3) }),
        ),
        (
            Introduction { group_name: Some(name("stock")), ..them.clone() },
            Err(RejectReason::WrongGroupName { ours: name("orders"), theirs: name("stock") }),
        ),
        (
            Introduction { group: Some(other), ..them.clone() },
            Err(RejectReason::WrongGroup { name: name("orders"), ours: GROUP, theirs: other }),
        ),
        (
            Introduction { epoch: 2, ..them.clone() },
            Err(RejectReason::WrongEpoch { ours: 1, theirs: 2 }),
        ),
        (
            card("n1", 3),
            Err(RejectReason::DuplicateNode {
                node: name("n1"),
                incarnation: Incarnation::from_u64(1),
            }),
        ),
        (wiped.clone(), Err(not_bound.clone())),
        (Introduction { kind: NodeKind::Secondary, ..wiped.clone() }, Err(not_bound)),
        (
            stranger.clone(),
            Err(RejectReason::UnknownMember {
                node: name("n9"),
                members: vec![name("n1"), name("n2")],
            }),
        ),
        (Introduction { kind: NodeKind::Secondary, ..stranger.clone() }, Ok(1)),
    ] {
        assert_eq!(us.check(&theirs, Some(&bound)), expected, "{theirs:?}");
    }
    // Before there is a configuration nobody can be told from a voter.
    let founding = Introduction { group: None, ..us };
    for theirs in [fresh, wiped, stranger] {
        assert_eq!(founding.check(&theirs, None), Ok(1));
    }
}

#[test]
fn both_ends_judge_alike() {
    let bound = electorate(&[("n1", 1), ("n2", 2)]);
    let mut cards = vec![card("n1", 1), card("n2", 2)];
    for change in 0..5 {
        let mut other = card("n2", 2);
        match change {
            0 => other.versions = VersionRange { lowest: 9, highest: 9 },
            1 => other.group_name = Some(name("stock")),
            2 => other.group = Some(GroupId::from_bytes([7; 16])),
            3 => other.epoch = 7,
            _ => other.group = None,
        }
        cards.push(other);
    }
    for one in &cards {
        for other in &cards {
            let (there, back) = (one.check(other, Some(&bound)), other.check(one, Some(&bound)));
            assert_eq!(there.is_ok(), back.is_ok(), "{one:?} {other:?}");
        }
    }
}

#[test]
fn both_ends_learn_of_consent_and_of_rejection() {
    let (n1, n2) = (card("n1", 1), card("n2", 2));
    let bound = electorate(&[("n1", 1), ("n2", 2)]);
    let open = |other: &Introduction| {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        thread::scope(|scope| {
            let dialled =
                scope.spawn(|| admit(&channel_b, &n1, &|card| n1.check(card, Some(&bound))));
            let dialler = introduce(&channel_a, other, &|card| other.check(card, None));
            (dialler, dialled.join().unwrap())
        })
    };
    let (dialler, dialled) = open(&n2);
    assert_eq!((dialler.unwrap(), dialled.unwrap()), (n1.clone(), n2.clone()));
    let (dialler, dialled) = open(&card("n2", 3));
    for end in [dialler, dialled] {
        assert!(matches!(end, Err(RepError::Rejected(RejectReason::NotBound { .. }))), "{end:?}");
    }
}

#[test]
fn a_peer_that_says_something_else_is_a_typed_error_and_the_channel_is_closed() {
    let judge = |_: &Introduction| Ok(1);
    for bad in [b"GET / HTTP/1.1".to_vec(), LinkMsg::PeerHello(card("n2", 2)).encode()] {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        channel_b.send(&bad).unwrap();
        let asked = introduce(&channel_a, &card("n1", 1), &judge);
        assert!(matches!(asked, Err(RepError::ProtocolError(_))), "{asked:?}");
        assert!(channel_a.send(b"more").is_err());
    }
    for bad in [b"".to_vec(), LinkMsg::PeerWelcome(card("n2", 2)).encode()] {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        channel_a.send(&bad).unwrap();
        let answered = admit(&channel_b, &card("n1", 1), &judge);
        assert!(matches!(answered, Err(RepError::ProtocolError(_))), "{answered:?}");
        assert!(channel_b.send(b"more").is_err());
    }
}
