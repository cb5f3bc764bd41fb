//! Tests of the messages' bytes: golden ones, every cut, every bound, fields of later versions.

use proptest::prelude::*;

use noxu_util::codec::Put;
use noxu_util::{Fingerprint, GroupId, Incarnation, Name, Term, Vlsn};

use super::codec::MAX_EXTENSION_BYTES;
use super::*;
use crate::group::{Voter, VoterKind};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn end() -> LogEnd {
    LogEnd { term: Term::new(4), vlsn: Vlsn::new(5), fingerprint: Fingerprint::from_u64(6) }
}

fn mark(term: u32) -> Mark {
    Mark { term: Term::new(term), fingerprint: Fingerprint::from_u64(7) }
}

fn founding() -> Body {
    let voter = Voter {
        name: name("n1"),
        incarnation: Incarnation::from_u64(9),
        kind: VoterKind::Data,
        address: "h:1".to_owned(),
    };
    let id = GroupId::from_bytes(*b"group-of-sixteen");
    Body::Founding {
        identity: GroupIdentity { id, name: name("orders"), segment_bytes: 1 << 16 },
        electorate: Electorate { voters: vec![voter], q_rep: 0, q_elect: 0 },
    }
}

/// Every kind of message with its golden bytes behind epoch and term.
fn samples() -> Vec<(u8, Body, &'static [u8])> {
    vec![
        (
            67,
            Body::VoteRequest(VoteRequest {
                phase: Phase::Real,
                nonce: 8,
                asked: Term::new(3),
                head: end(),
                priority: 9,
                uncertain: true,
            }),
            b"\x01\x08\0\0\0\0\0\0\0\x03\0\0\0\
              \x04\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x09\x02\0\0",
        ),
        (
            68,
            Body::VoteAnswer(VoteAnswer {
                phase: Phase::Pre,
                nonce: 8,
                asked: Term::new(3),
                verdict: Verdict::Granted { certain: false },
            }),
            b"\x00\x08\0\0\0\0\0\0\0\x03\0\0\0\x01\0\0",
        ),
        (
            69,
            Body::Lead { address: "h:7001".to_owned(), phase: LeadPhase::Established },
            b"\x06\0h:7001\x01\0\0",
        ),
        (
            70,
            Body::Standing(Standing {
                head: end(),
                role: NodeRole::Replica,
                master: Some(name("n2")),
                priority: 9,
                full: true,
                uncertain: false,
            }),
            b"\x04\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01\x02\0n2\x09\x01\0\0",
        ),
        (
            71,
            Body::RepairAsk(RepairAsk {
                purpose: Purpose::Mending,
                nonce: 8,
                first: Vlsn::new(2),
                last: Vlsn::new(3),
                before: mark(4),
                after: mark(5),
                offset: 10,
            }),
            b"\x01\x08\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
              \x04\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\x07\0\0\0\0\0\0\0\x0a\0\0\0\0\0",
        ),
        (
            72,
            Body::RepairAnswer(RepairAnswer {
                nonce: 8,
                first: Vlsn::new(2),
                verdict: RepairVerdict::Part { through: Vlsn::new(3) },
                commit_floor: Vlsn::new(1),
                total: 12,
                offset: 9,
                bytes: b"end".to_vec(),
            }),
            b"\x08\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\x03\0\0\0\0\0\0\0\
              \x01\0\0\0\0\0\0\0\x0c\0\0\0\x09\0\0\0\0\0end",
        ),
        (73, Body::Yield { successor: name("n3") }, b"\x02\0n3\0\0"),
        (
            74,
            founding(),
            b"group-of-sixteen\x06\0orders\0\0\x01\0\
              \x17\0\x02\0\0\x01\0\x02\0n1\x09\0\0\0\0\0\0\0\0\x03\0h:1\0\0",
        ),
        (75, Body::Founded, b"\0\0"),
    ]
}

fn message(body: Body) -> ElectionMsg {
    ElectionMsg { epoch: 1, term: Term::new(2), body }
}

#[test]
fn every_message_has_its_golden_bytes_and_comes_back_as_it_was() {
    for (opcode, body, golden) in samples() {
        let message = message(body);
        let bytes = message.encode();
        let head = [opcode, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(bytes, [&head[..], golden].concat(), "{}", message.body.name());
        assert_eq!(ElectionMsg::decode(&bytes), Ok(message));
    }
}

/// The messages that have every value of every enum in them.
fn variants() -> Vec<Body> {
    let mut all: Vec<Body> = samples().into_iter().map(|(_, body, _)| body).collect();
    let refusals = [
        Refusal::Epoch,
        Refusal::NotElectable,
        Refusal::Sitting,
        Refusal::HigherTerm,
        Refusal::Voted,
        Refusal::HeardMaster,
        Refusal::Rival,
        Refusal::BetterHead,
        Refusal::Fork,
    ];
    let granted = Verdict::Granted { certain: true };
    for verdict in refusals.map(Verdict::Refused).into_iter().chain([granted]) {
        let (phase, nonce, asked) = (Phase::Real, u64::MAX, Term::new(u32::MAX));
        all.push(Body::VoteAnswer(VoteAnswer { phase, nonce, asked, verdict }));
    }
    all.push(Body::Lead { address: String::new(), phase: LeadPhase::Repairing });
    for role in [NodeRole::Unknown, NodeRole::Repairing, NodeRole::Master, NodeRole::Detached] {
        let head = LogEnd::default();
        let (full, uncertain) = (false, true);
        all.push(Body::Standing(Standing {
            head,
            role,
            master: None,
            priority: 0,
            full,
            uncertain,
        }));
    }
    let silences = [
        Silence::Uncertain,
        Silence::BelowAnchor,
        Silence::Damaged,
        Silence::Installing,
        Silence::Ambiguous,
    ];
    let verdicts = [RepairVerdict::Never].into_iter().chain(silences.map(RepairVerdict::Silent));
    for verdict in verdicts {
        let (first, commit_floor) = (Vlsn::new(1), Vlsn::new(0));
        let (total, offset, bytes) = (0, 0, Vec::new());
        let answer = RepairAnswer { nonce: 0, first, verdict, commit_floor, total, offset, bytes };
        all.push(Body::RepairAnswer(answer));
    }
    all
}

#[test]
fn every_value_of_every_field_has_bytes_of_its_own() {
    let mut seen = std::collections::BTreeSet::new();
    for body in variants() {
        let message = message(body);
        let bytes = message.encode();
        assert_eq!(ElectionMsg::decode(&bytes), Ok(message.clone()));
        assert!(seen.insert(bytes), "{message:?}");
    }
}

#[test]
fn every_cut_and_every_byte_too_many_is_an_error() {
    for body in variants() {
        let ends_with_bytes = match &body {
            Body::RepairAnswer(answer) => answer.bytes.len(),
            _ => 0,
        };
        let bytes = message(body).encode();
        for len in 0..bytes.len() - ends_with_bytes {
            assert!(ElectionMsg::decode(&bytes[..len]).is_err(), "{bytes:?} at {len}");
        }
        assert!(ElectionMsg::decode(&[&bytes[..], b"x"].concat()).is_err(), "{bytes:?}");
    }
}

#[test]
fn fields_that_a_later_version_adds_are_skipped_up_to_a_bound() {
    for (_, body, _) in samples() {
        let message = message(body);
        let bytes = message.encode();
        let behind = match &message.body {
            Body::RepairAnswer(answer) => answer.bytes.len(),
            _ => 0,
        };
        let (before, after) = bytes.split_at(bytes.len() - behind);
        let with = |extension: &[u8]| {
            let mut out = before[..before.len() - 2].to_vec();
            out.put_short_bytes(extension);
            out.extend_from_slice(after);
            ElectionMsg::decode(&out)
        };
        assert_eq!(with(b"something new"), Ok(message.clone()));
        assert_eq!(with(&[0; MAX_EXTENSION_BYTES]), Ok(message));
        assert!(with(&[0; MAX_EXTENSION_BYTES + 1]).is_err());
    }
}

#[test]
fn a_wrong_opcode_version_or_reserved_byte_is_an_error() {
    let bytes = message(Body::Founded).encode();
    for (at, bad) in [(0, 66), (0, 76), (1, 0), (1, 2), (2, 1), (3, 1)] {
        let mut bytes = bytes.clone();
        bytes[at] = bad;
        assert!(ElectionMsg::decode(&bytes).is_err(), "byte {at} = {bad}");
    }
}

#[test]
fn values_that_mean_nothing_are_errors() {
    // (message, byte behind the head, value)
    for (opcode, at, bad) in [
        (67, 0, 2),  // phase
        (67, 34, 1), // a flag that a candidate does not have
        (68, 13, 11),
        (69, 8, 2),
        (70, 20, 5),
        (70, 26, 4),
        (71, 0, 2),
        (71, 9, 0), // first VLSN 0
        (71, 9, 4), // above the last
        (72, 16, 4),
        (72, 33, 11),   // fewer bytes in all than this piece ends at
        (74, 29, 0xff), // length of the electorate
    ] {
        let (_, body, _) = samples().into_iter().find(|(op, ..)| *op == opcode).unwrap();
        let mut bytes = message(body).encode();
        bytes[12 + at] = bad;
        assert!(ElectionMsg::decode(&bytes).is_err(), "{opcode}: byte {at} = {bad}");
    }
}

#[test]
fn an_answer_about_damaged_entries_carries_a_mebibyte_at_most() {
    let (_, body, _) = samples().into_iter().find(|(op, ..)| *op == 72).unwrap();
    let Body::RepairAnswer(answer) = body else { panic!("not an answer") };
    let total = 2 * MAX_REPAIR_BYTES as u32;
    let most = RepairAnswer { total, offset: 0, bytes: vec![1; MAX_REPAIR_BYTES], ..answer };
    let mut bytes = message(Body::RepairAnswer(most.clone())).encode();
    assert_eq!(ElectionMsg::decode(&bytes), Ok(message(Body::RepairAnswer(most.clone()))));
    bytes.push(1);
    assert!(ElectionMsg::decode(&bytes).is_err());
    // Who never had the entries sends none.
    let never = RepairAnswer { verdict: RepairVerdict::Never, bytes: vec![1], ..most };
    let bytes = message(Body::RepairAnswer(never)).encode();
    assert!(ElectionMsg::decode(&bytes).is_err());
}

#[test]
fn addresses_are_cut_where_the_format_ends() {
    let address = "h".repeat(301);
    let bytes = message(Body::Lead { address, phase: LeadPhase::Established }).encode();
    let Body::Lead { address, .. } = ElectionMsg::decode(&bytes).unwrap().body else {
        panic!("not Lead")
    };
    assert_eq!(address, "h".repeat(300));
}

#[test]
#[should_panic(expected = "no group is founded")]
fn a_group_that_nobody_can_found_is_not_handed_out() {
    let Body::Founding { identity, electorate } = founding() else { panic!("not Founding") };
    let electorate = Electorate { q_rep: 2, ..electorate };
    message(Body::Founding { identity, electorate }).encode();
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_what_is_read_is_written_back(
        opcode in 60u8..80,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let frame = [&[opcode, 1, 0, 0][..], &bytes].concat();
        if let Ok(message) = ElectionMsg::decode(&frame) {
            prop_assert_eq!(ElectionMsg::decode(&message.encode()), Ok(message));
        }
        let _ = ElectionMsg::decode(&bytes);
    }
}
