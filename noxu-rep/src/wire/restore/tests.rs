//! Tests of the messages of a network restore: golden bytes, cut and arbitrary frames.

use proptest::prelude::*;

use super::*;

fn head() -> ManifestHead {
    ManifestHead {
        group: GroupIdentity {
            id: GroupId::from_bytes(*b"group-of-sixteen"),
            name: "orders".parse().unwrap(),
            segment_bytes: 4096,
        },
        provider: "n1".parse().unwrap(),
        term: Term::new(3),
        method: "a".parse().unwrap(),
        anchor: Anchor {
            vlsn: Vlsn::new(9),
            lsn: Lsn::new(1, 200),
            term: Term::new(2),
            fingerprint: Fingerprint::from_u64(5),
            next_lsn: Lsn::new(2, 64),
            group_config: b"old".to_vec().into(),
        },
        group_config: b"new".to_vec().into(),
        base: Anchor {
            vlsn: Vlsn::new(40),
            lsn: Lsn::new(2, 100),
            term: Term::new(3),
            fingerprint: Fingerprint::from_u64(7),
            next_lsn: Lsn::new(3, 64),
            group_config: b"new".to_vec().into(),
        },
        target: Vlsn::new(99),
        target_fingerprint: Fingerprint::from_u64(6),
        sources: vec![("n3".parse().unwrap(), "h:1".to_owned())],
        segments: 1,
    }
}

fn method(name: &str, signature: u64) -> MethodId {
    MethodId { name: name.parse().unwrap(), signature }
}

fn all() -> Vec<(RestoreMsg<'static>, &'static [u8])> {
    let offer = SegmentOffer { number: 2, bytes: 100, digest: [1; 32], blocks: vec![[2; 32]] };
    let node: Name = "n2".parse().unwrap();
    vec![
        (
            RestoreMsg::Open {
                session: 7,
                recovery: 8,
                group: None,
                node,
                kind: NodeKind::Secondary,
                methods: vec![method("a", 9), method("b", 10)],
            },
            b"\x01\x02\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0n2\x01\
              \x02\x01\0a\x09\0\0\0\0\0\0\0\x01\0b\x0a\0\0\0\0\0\0\0",
        ),
        (
            RestoreMsg::Manifest(Box::new(head())),
            b"\x02group-of-sixteen\x06\0orders\0\x10\0\0\x02\0n1\x03\0\0\0\x01\0a\
              \x09\0\0\0\0\0\0\0\xc8\0\0\0\x01\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0\
              \x40\0\0\0\x02\0\0\0\x03\0old\x03\0new\
              \x28\0\0\0\0\0\0\0\x64\0\0\0\x02\0\0\0\x03\0\0\0\x07\0\0\0\0\0\0\0\
              \x40\0\0\0\x03\0\0\0\x03\0new\
              \x63\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01\0\0\0\x02\0n3\x03\0h:1\x01\0\0\0",
        ),
        (
            RestoreMsg::Segment(offer),
            b"\x03\x02\0\0\0\x64\0\0\0\
              \x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
              \x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
              \x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\
              \x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02",
        ),
        (
            RestoreMsg::BlockRequest { request: 1, segment: 2, block: 3 },
            b"\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0",
        ),
        (RestoreMsg::Block { request: 1, bytes: b"xyz".into() }, b"\x05\x01\0\0\0\0\0\0\0xyz"),
        (
            RestoreMsg::StateRequest { request: 1, question: b"xyz".into() },
            b"\x06\x01\0\0\0\0\0\0\0xyz",
        ),
        (
            RestoreMsg::StateAnswer {
                request: 1,
                vlsn: Vlsn::new(2),
                fingerprint: Fingerprint::from_u64(3),
                digest: *b"thirty-two bytes of digest, here",
                bytes: b"xyz".into(),
            },
            b"\x07\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
              thirty-two bytes of digest, herexyz",
        ),
        (
            RestoreMsg::LiveRequest {
                request: 1,
                from: Vlsn::new(2),
                previous: Fingerprint::from_u64(3),
                most: 4,
                needed: Vlsn::new(1),
                progress: Progress { base_bytes: 5, base_done: true, durable: Vlsn::new(6) },
            },
            b"\x08\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
              \x04\0\0\0\x01\0\0\0\0\0\0\0\
              \x05\0\0\0\0\0\0\0\x01\x06\0\0\0\0\0\0\0",
        ),
        (
            RestoreMsg::LiveRun {
                request: 1,
                more: true,
                last: Vlsn::new(9),
                cut: Vlsn::new(8),
                bytes: b"xyz".into(),
            },
            b"\x09\x01\0\0\0\0\0\0\0\x01\x09\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0xyz",
        ),
        (
            RestoreMsg::Attach {
                group: GroupId::from_bytes(*b"group-of-sixteen"),
                node: "n2".parse().unwrap(),
                method: Some(method("a", 9)),
            },
            b"\x0c\x02group-of-sixteen\x02\0n2\x01\x01\0a\x09\0\0\0\0\0\0\0",
        ),
        (
            RestoreMsg::Holdings {
                state: true,
                segments: vec![(2, *b"thirty-two bytes of digest, here")],
                others: vec![("n3".parse().unwrap(), "c:3".to_owned())],
            },
            b"\x0d\x01\x01\0\0\0\x02\0\0\0thirty-two bytes of digest, here\
              \x01\0\0\0\x02\0n3\x03\0c:3",
        ),
        (
            RestoreMsg::StateOpen { request: 1, id: 2 },
            b"\x0e\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        ),
        (
            RestoreMsg::StateOpened {
                request: 1,
                id: 2,
                vlsn: Vlsn::new(3),
                fingerprint: Fingerprint::from_u64(4),
                head: b"xyz".into(),
            },
            b"\x0f\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
              \x04\0\0\0\0\0\0\0xyz",
        ),
        (RestoreMsg::Refusal { request: 1, why: Refused::Parted }, b"\x10\x01\0\0\0\0\0\0\0\x02"),
        (RestoreMsg::Doubt { segment: 1, block: 2 }, b"\x11\x01\0\0\0\x02\0\0\0"),
        (RestoreMsg::Failure { reason: "no".to_owned() }, b"\x0a\x02\0no"),
        (
            RestoreMsg::Done { needed: Vlsn::new(1), durable: Vlsn::new(2) },
            b"\x0b\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        ),
        (RestoreMsg::Abandon { why: Abandoned::Corrupt }, b"\x12\x02"),
    ]
}

#[test]
fn every_message_has_its_golden_bytes() {
    for (message, bytes) in all() {
        assert_eq!(message.encode(), bytes, "{}", message.name());
        assert_eq!(RestoreMsg::decode(bytes).unwrap(), message);
    }
}

#[test]
fn every_truncation_of_a_fixed_field_is_an_error() {
    for (message, bytes) in all() {
        let payload = message.encode_parts().1.len();
        for len in 0..bytes.len() - payload {
            assert!(RestoreMsg::decode(&bytes[..len]).is_err(), "{} at {len}", message.name());
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        opcode in 0u8..20,
    ) {
        let _ = RestoreMsg::decode(&bytes);
        let _ = RestoreMsg::decode(&[&[opcode][..], &bytes].concat());
    }
}
