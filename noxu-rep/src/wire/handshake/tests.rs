//! Tests of the handshake: every reason, both directions, every byte.

use std::thread;

use proptest::prelude::*;

use super::*;
use crate::net::channel::LocalChannelPair;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

const GROUP: GroupId = GroupId::from_bytes(*b"group-of-sixteen");

fn hello() -> Hello {
    Hello {
        versions: VersionRange::SPOKEN,
        group: Some(GROUP),
        group_name: Some(name("orders")),
        node: name("n2"),
        address: "127.0.0.1:7002".to_owned(),
        incarnation: Incarnation::from_u64(0x22),
        kind: NodeKind::Electable,
        log_format: 1,
        segment_bytes: Some(64 << 20),
        term: Term::new(3),
        capabilities: Capabilities(0b101),
        wall_clock_ms: 1_000_000,
        epoch: 4,
        priority: 5,
        full: true,
        uncertain: false,
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: VersionRange::SPOKEN.highest,
        group: GROUP,
        group_name: name("orders"),
        segment_bytes: 64 << 20,
        log_format: 1,
        node: name("n1"),
        incarnation: Incarnation::from_u64(0x11),
        term: Term::new(3),
        capabilities: Capabilities::SYNCUP_PROBES,
        clock_skew_ms: None,
        epoch: 4,
        established: true,
    }
}

/// What a master named n1 of group "orders" decides, after `change`.
fn decide(
    hello: &Hello,
    change: impl FnOnce(&mut FeederSide<'_>),
) -> Result<Welcome, RejectReason> {
    let (group_name, node) = (name("orders"), name("n1"));
    let mut side = FeederSide {
        versions: VersionRange::SPOKEN,
        group: GROUP,
        group_name: &group_name,
        segment_bytes: 64 << 20,
        log_format: 1,
        node: &node,
        incarnation: Incarnation::from_u64(0x11),
        epoch: 4,
        term: Term::new(3),
        capabilities: Capabilities::OURS,
        wall_clock_ms: 1_000_000,
        members: None,
        bound: &|_| None,
        connected: &|_| None,
        mastership: Mastership::Established,
    };
    change(&mut side);
    side.check(hello)
}

/// Every reason with its golden code and the words it is told in.
fn reasons() -> Vec<(RejectReason, u8, &'static str)> {
    let range = |lowest, highest| VersionRange { lowest, highest };
    vec![
        (
            RejectReason::Version { ours: range(3, 4), theirs: range(1, 1) },
            1,
            "no common protocol version: 3 to 4 here, 1 there",
        ),
        (
            RejectReason::WrongGroupName { ours: name("orders"), theirs: name("stock") },
            2,
            "this is group orders, not group stock",
        ),
        (
            RejectReason::WrongGroup {
                name: name("orders"),
                ours: GROUP,
                theirs: GroupId::from_bytes([0; 16]),
            },
            3,
            "group orders here has the identity 67726f75-702d-6f66-2d73-69787465656e, there \
             00000000-0000-0000-0000-000000000000: two groups of one name were founded, and this \
             node's data belongs to the other",
        ),
        (RejectReason::LogFormat { ours: 2, theirs: 1 }, 4, "log format 2 here, 1 there"),
        (
            RejectReason::SegmentBytes { ours: 1024, theirs: 4096 },
            5,
            "segments of 1024 bytes here, of 4096 there: the logs cannot be the same",
        ),
        (
            RejectReason::DuplicateNode {
                node: name("n2"),
                incarnation: Incarnation::from_u64(0x2a),
            },
            6,
            "another node named n2 (incarnation 000000000000002a) is in the group already",
        ),
        (
            RejectReason::UnknownMember { node: name("n9"), members: vec![name("n1"), name("n2")] },
            7,
            "no member named n9; the members are n1, n2",
        ),
        (RejectReason::Removed { node: name("n2") }, 8, "node n2 was removed from the group"),
        (
            RejectReason::NotMaster { master: Some("10.0.0.1:7001".to_owned()) },
            9,
            "not the master; it is at 10.0.0.1:7001",
        ),
        (RejectReason::NotMaster { master: None }, 9, "not the master; the master is not known"),
        (
            RejectReason::OldTerm { ours: Term::new(3), theirs: Term::new(5) },
            10,
            "term 5 there is newer than term 3 here",
        ),
        (RejectReason::NotReady { node: name("n1") }, 11, "node n1 has no log yet"),
        (
            RejectReason::WrongEpoch { ours: 3, theirs: 4 },
            12,
            "epoch 3 of the group here, epoch 4 there",
        ),
        (
            RejectReason::NotBound {
                node: name("n2"),
                bound: Incarnation::from_u64(0x2a),
                theirs: Incarnation::from_u64(0x2b),
            },
            13,
            "voter n2 is the directory of incarnation 000000000000002a; incarnation \
             000000000000002b was wiped, copied or reformatted and has no vote",
        ),
        (
            RejectReason::NotEstablished { node: name("n1") },
            14,
            "node n1 was elected and mends its log; it feeds when its term has begun",
        ),
        (
            RejectReason::Other { code: 200, message: "the moon is full".to_owned() },
            200,
            "the moon is full",
        ),
    ]
}

#[test]
fn every_reason_has_its_code_its_words_and_comes_back_as_it_was() {
    for (reason, code, words) in reasons() {
        assert_eq!(reason.to_string(), words);
        let bytes = HandshakeMsg::Rejected(reason.clone()).encode();
        assert_eq!(bytes[5], code);
        assert_eq!(HandshakeMsg::decode(&bytes).unwrap(), HandshakeMsg::Rejected(reason));
    }
}

#[test]
fn hello_and_welcome_have_their_golden_bytes() {
    let mut expected = b"NXHS\x01\x03\0\x03\0\x01group-of-sixteen\x06\0orders\x02\0n2".to_vec();
    expected.extend(b"\x0e\x00127.0.0.1:7002\x22\0\0\0\0\0\0\0\0\x01\0\0\0\0\x04\x03\0\0\0");
    expected.extend(b"\x05\0\0\0\0\0\0\0\x40\x42\x0f\0\0\0\0\0\x06\0\x04\0\0\0\x05\x01");
    let bytes = HandshakeMsg::Hello(hello()).encode();
    assert_eq!(bytes, expected);
    assert_eq!(HandshakeMsg::decode(&bytes).unwrap(), HandshakeMsg::Hello(hello()));

    let mut expected = b"NXHS\x02\x03\0group-of-sixteen\x06\0orders\0\0\0\x04\x01\0".to_vec();
    expected.extend(b"\x02\0n1\x11\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0\0\0\0\0");
    expected.extend(b"\x01\x18\xfc\xff\xff\xff\xff\xff\xff\x05\0\x04\0\0\0\x01");
    let skewed = Welcome { clock_skew_ms: Some(-1000), ..welcome() };
    let bytes = HandshakeMsg::Welcome(skewed.clone()).encode();
    assert_eq!(bytes, expected);
    assert_eq!(HandshakeMsg::decode(&bytes).unwrap(), HandshakeMsg::Welcome(skewed));
}

#[test]
fn fields_that_a_later_version_adds_are_skipped() {
    for message in [HandshakeMsg::Hello(hello()), HandshakeMsg::Welcome(welcome())] {
        let bytes = message.encode();
        let extension = match &message {
            HandshakeMsg::Hello(_) => 6,
            _ => 5,
        };
        let (before, known) = bytes.split_at(bytes.len() - extension);
        let mut longer = before[..before.len() - 2].to_vec();
        longer.put_short_bytes(&[known, b"something new"].concat());
        assert_eq!(HandshakeMsg::decode(&longer).unwrap(), message);
    }
}

#[test]
fn fields_that_version_one_did_not_have_are_made_up_for_it() {
    let without = |message: &HandshakeMsg, extension: usize| {
        let mut bytes = message.encode();
        bytes.truncate(bytes.len() - extension - 2);
        bytes.put_short_bytes(&[]);
        HandshakeMsg::decode(&bytes).unwrap()
    };
    let bare = Hello { epoch: 0, priority: 0, full: false, uncertain: false, ..hello() };
    let flagged = Hello { full: false, uncertain: true, ..hello() };
    assert_eq!(without(&HandshakeMsg::Hello(flagged), 6), HandshakeMsg::Hello(bare));
    let bare = Welcome { epoch: 0, established: true, ..welcome() };
    let repairing = Welcome { established: false, ..welcome() };
    assert_eq!(without(&HandshakeMsg::Welcome(repairing), 5), HandshakeMsg::Welcome(bare));
    // A part of them is damage.
    let mut bytes = HandshakeMsg::Hello(hello()).encode();
    bytes.truncate(bytes.len() - 8);
    bytes.put_short_bytes(&[0; 5]);
    assert!(HandshakeMsg::decode(&bytes).is_err());
}

#[test]
fn every_truncation_and_every_trailing_byte_is_an_error() {
    let mut messages = vec![HandshakeMsg::Hello(hello()), HandshakeMsg::Welcome(welcome())];
    messages.extend(reasons().into_iter().map(|(reason, ..)| HandshakeMsg::Rejected(reason)));
    for message in messages {
        let whole = message.encode();
        for len in 0..whole.len() {
            assert!(HandshakeMsg::decode(&whole[..len]).is_err(), "{message:?} at {len}");
        }
        assert!(HandshakeMsg::decode(&[&whole[..], &[0]].concat()).is_err(), "{message:?}");
    }
}

#[test]
fn versions_n_and_n_minus_one_understand_each_other_both_ways() {
    let range = |lowest, highest| VersionRange { lowest, highest };
    for (ours, theirs, common) in [
        (range(1, 1), range(1, 1), Some(1)),
        (range(4, 5), range(5, 6), Some(5)),
        (range(5, 6), range(4, 5), Some(5)),
        (range(4, 5), range(4, 5), Some(5)),
        (range(4, 5), range(6, 7), None),
        (range(6, 7), range(4, 5), None),
    ] {
        let hello = Hello { versions: theirs, ..hello() };
        let answer = decide(&hello, |side| side.versions = ours);
        match common {
            Some(version) => {
                let welcome = answer.unwrap();
                assert_eq!(welcome.version, version);
                assert_eq!(hello.check(&welcome), Ok(()));
            }
            None => assert_eq!(answer, Err(RejectReason::Version { ours, theirs })),
        }
    }
    // A feeder that picks a version nobody offered.
    let answer = hello().check(&Welcome { version: 9, ..welcome() });
    assert!(matches!(answer, Err(RejectReason::Version { .. })));
}

#[test]
fn a_fresh_replica_adopts_the_groups_identity_and_constants() {
    let fresh =
        Hello { group: None, group_name: None, segment_bytes: None, term: Term::ZERO, ..hello() };
    let welcome = decide(&fresh, |_| {}).unwrap();
    assert_eq!((welcome.group, welcome.segment_bytes), (GROUP, 64 << 20));
    assert_eq!(fresh.check(&welcome), Ok(()));
    // One that names the group it wants joins that group and no other.
    let picky = Hello { group_name: Some(name("stock")), ..fresh };
    assert!(matches!(decide(&picky, |_| {}), Err(RejectReason::WrongGroupName { .. })));
}

#[test]
fn a_feeder_rejects_what_does_not_belong() {
    let other = GroupId::from_bytes([7; 16]);
    let check = |hello: Hello, change: &dyn Fn(&mut FeederSide<'_>)| {
        decide(&hello, |side| change(side)).unwrap_err()
    };
    let nothing = |_: &mut FeederSide<'_>| {};
    assert_eq!(
        check(Hello { group_name: Some(name("stock")), ..hello() }, &nothing),
        RejectReason::WrongGroupName { ours: name("orders"), theirs: name("stock") }
    );
    assert_eq!(
        check(Hello { group: Some(other), ..hello() }, &nothing),
        RejectReason::WrongGroup { name: name("orders"), ours: GROUP, theirs: other }
    );
    assert_eq!(
        check(Hello { log_format: 2, ..hello() }, &nothing),
        RejectReason::LogFormat { ours: 1, theirs: 2 }
    );
    assert_eq!(
        check(Hello { segment_bytes: Some(4096), ..hello() }, &nothing),
        RejectReason::SegmentBytes { ours: 64 << 20, theirs: 4096 }
    );
    assert_eq!(
        check(Hello { node: name("n1"), ..hello() }, &nothing),
        RejectReason::DuplicateNode { node: name("n1"), incarnation: Incarnation::from_u64(0x11) }
    );
    let somebody = Incarnation::from_u64(0x99);
    assert_eq!(
        check(hello(), &|side| side.connected = &|_| Some(Incarnation::from_u64(0x99))),
        RejectReason::DuplicateNode { node: name("n2"), incarnation: somebody }
    );
    let members = [name("n1"), name("n3")];
    let elsewhere = Mastership::Elsewhere { master: Some("h:1".to_owned()) };
    let answer = decide(&hello(), |side| side.mastership = elsewhere);
    assert_eq!(answer, Err(RejectReason::NotMaster { master: Some("h:1".to_owned()) }));
    let answer = decide(&hello(), |side| side.mastership = Mastership::Repairing);
    assert_eq!(answer, Err(RejectReason::NotEstablished { node: name("n1") }));
    assert_eq!(
        check(Hello { epoch: 5, ..hello() }, &nothing),
        RejectReason::WrongEpoch { ours: 4, theirs: 5 }
    );
    assert!(decide(&Hello { group: None, epoch: 0, ..hello() }, |_| {}).is_ok());
    assert_eq!(
        check(Hello { term: Term::new(4), ..hello() }, &nothing),
        RejectReason::OldTerm { ours: Term::new(3), theirs: Term::new(4) }
    );
    // Membership binds those who vote.
    let (group_name, node) = (name("orders"), name("n1"));
    let side = FeederSide {
        members: Some(&members),
        versions: VersionRange::SPOKEN,
        group: GROUP,
        group_name: &group_name,
        segment_bytes: 64 << 20,
        log_format: 1,
        node: &node,
        incarnation: Incarnation::from_u64(0x11),
        epoch: 4,
        term: Term::new(3),
        capabilities: Capabilities::OURS,
        wall_clock_ms: 1_000_000,
        bound: &|_| None,
        connected: &|_| None,
        mastership: Mastership::Established,
    };
    assert_eq!(
        side.check(&hello()),
        Err(RejectReason::UnknownMember { node: name("n2"), members: members.to_vec() })
    );
    assert!(side.check(&Hello { kind: NodeKind::Secondary, ..hello() }).is_ok());
}

#[test]
fn the_same_incarnation_may_come_back_while_its_old_connection_is_still_there() {
    let answer = decide(&hello(), |side| side.connected = &|_| Some(Incarnation::from_u64(0x22)));
    assert!(answer.is_ok());
}

#[test]
fn a_voter_takes_its_place_from_a_directory_that_only_has_its_name() {
    let (voter, other) = (Incarnation::from_u64(0x22), Incarnation::from_u64(0x99));
    // The voter is hello(): let in although somebody else of its name is connected.
    let answer = decide(&hello(), |side| {
        side.bound = &|_| Some(Incarnation::from_u64(0x22));
        side.connected = &|_| Some(Incarnation::from_u64(0x99));
    });
    assert!(answer.is_ok(), "{answer:?}");
    // The voter is connected: hello() is a directory that was wiped or copied.
    let answer = decide(&hello(), |side| {
        side.bound = &|_| Some(Incarnation::from_u64(0x99));
        side.connected = &|_| Some(Incarnation::from_u64(0x99));
    });
    let (bound, theirs) = (other, voter);
    assert_eq!(answer, Err(RejectReason::NotBound { node: name("n2"), bound, theirs }));
    // While the voter is away, whoever has its name may follow, without a vote.
    let answer = decide(&hello(), |side| side.bound = &|_| Some(Incarnation::from_u64(0x99)));
    assert!(answer.is_ok(), "{answer:?}");
    // Two directories of one name, neither of them the voter's.
    let answer = decide(&hello(), |side| {
        side.bound = &|_| Some(Incarnation::from_u64(0x77));
        side.connected = &|_| Some(Incarnation::from_u64(0x99));
    });
    let incarnation = other;
    assert_eq!(answer, Err(RejectReason::DuplicateNode { node: name("n2"), incarnation }));
}

#[test]
fn clock_skew_is_a_warning_and_never_a_failure() {
    for (theirs, skew) in [
        (1_000_000, None),
        (1_004_000, None),
        (1_006_000, Some(6000)),
        (900_000, Some(-100_000)),
        (u64::MAX, Some(i64::MAX)),
        (0, Some(-1_000_000)),
    ] {
        let answer = decide(&Hello { wall_clock_ms: theirs, ..hello() }, |_| {});
        assert_eq!(answer.unwrap().clock_skew_ms, skew);
    }
}

#[test]
fn a_replica_rejects_a_feeder_that_does_not_belong() {
    let hello = hello();
    assert_eq!(hello.check(&welcome()), Ok(()));
    let other = GroupId::from_bytes([7; 16]);
    for bad in [
        Welcome { group_name: name("stock"), ..welcome() },
        Welcome { group: other, ..welcome() },
        Welcome { log_format: 2, ..welcome() },
        Welcome { segment_bytes: 4096, ..welcome() },
        Welcome { node: name("n2"), ..welcome() },
        Welcome { term: Term::new(2), ..welcome() },
        Welcome { epoch: 3, ..welcome() },
        Welcome { established: false, ..welcome() },
    ] {
        assert!(hello.check(&bad).is_err(), "{bad:?}");
    }
    // A newer term is what a replica learns from its master.
    assert_eq!(hello.check(&Welcome { term: Term::new(9), ..welcome() }), Ok(()));
}

#[test]
fn both_sides_learn_of_consent_and_of_rejection() {
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    thread::scope(|scope| {
        let answering =
            scope.spawn(|| handshake_as_feeder(&channel_b, &|hello| decide(hello, |_| {})));
        let welcome = handshake_as_replica(&channel_a, &hello()).unwrap();
        assert_eq!(welcome.capabilities, Capabilities::SYNCUP_PROBES);
        assert_eq!(answering.join().unwrap().unwrap(), (hello(), welcome));
    });
    for (reason, ..) in reasons() {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        thread::scope(|scope| {
            let answering =
                scope.spawn(|| handshake_as_feeder(&channel_b, &|_| Err(reason.clone())));
            let asked = handshake_as_replica(&channel_a, &hello());
            assert!(matches!(asked, Err(RepError::Rejected(found)) if found == reason));
            let answered = answering.join().unwrap();
            assert!(matches!(answered, Err(RepError::Rejected(found)) if found == reason));
        });
    }
}

#[test]
fn a_peer_that_sends_something_else_or_closes_is_a_typed_error() {
    for bad in [
        b"".to_vec(),
        b"GET / HTTP/1.1".to_vec(),
        HandshakeMsg::Hello(hello()).encode()[..30].to_vec(),
    ] {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        channel_b.send(&bad).unwrap();
        let asked = handshake_as_replica(&channel_a, &hello());
        assert!(matches!(asked, Err(RepError::ProtocolError(_))), "{asked:?}");
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        channel_a.send(&bad).unwrap();
        let answered = handshake_as_feeder(&channel_b, &|hello| decide(hello, |_| {}));
        assert!(matches!(answered, Err(RepError::ProtocolError(_))), "{answered:?}");
    }
    // The right message from the wrong side.
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    channel_b.send(&HandshakeMsg::Hello(hello()).encode()).unwrap();
    let asked = handshake_as_replica(&channel_a, &hello());
    assert!(matches!(asked, Err(RepError::ProtocolError(_))), "{asked:?}");
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    drop(channel_b);
    let asked = handshake_as_replica(&channel_a, &hello());
    assert!(matches!(asked, Err(RepError::Closed { .. })), "{asked:?}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        message in 0u8..5,
        code in 0u8..16,
    ) {
        let _ = HandshakeMsg::decode(&bytes);
        let _ = HandshakeMsg::decode(&[&b"NXHS"[..], &[message], &bytes].concat());
        let mut fields = vec![code];
        fields.put_short_bytes(&bytes);
        fields.put_text("");
        fields.put_u16(0);
        let _ = HandshakeMsg::decode(&[&b"NXHS\x03"[..], &fields].concat());
    }

    #[test]
    fn flipped_bytes_never_panic(at in 0usize..140, to in any::<u8>()) {
        for message in [HandshakeMsg::Hello(hello()), HandshakeMsg::Welcome(welcome())] {
            let mut bytes = message.encode();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = HandshakeMsg::decode(&bytes);
        }
    }
}
