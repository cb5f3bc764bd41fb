//! Decoders of what comes over the wire. What is accepted is encoded and decoded again, and is the
//! same.

use std::borrow::Cow;

use noxu_log::{Anchor, GroupIdentity};
use noxu_rep::core::recovery::{self, Agreement, Facts, Nonce, Progress, RecoveryId};
use noxu_rep::group::{Electorate, Voter, VoterKind};
use noxu_rep::wire::election::Verdict as VoteVerdict;
use noxu_rep::wire::election::link::{Introduction, LINK_VERSIONS, LinkMsg};
use noxu_rep::wire::election::{
    Body, ElectionMsg, LeadPhase, LogEnd, Mark, NodeRole, Peer, Phase, Purpose, Refusal,
    RepairAnswer, RepairAsk, RepairVerdict, Silence, Standing, VoteAnswer, VoteRequest,
};
use noxu_rep::wire::frame::{FRAME_LENGTH_BYTES, decode_length, encode_length};
use noxu_rep::wire::handshake::{
    Capabilities, HandshakeMsg, Hello, NodeKind, RejectReason, VersionRange, Welcome,
};
use noxu_rep::wire::message::{Ack, Dtvlsn, Era, Farewell, Head, Leaving, Position, StreamMessage};
use noxu_rep::wire::probe::{self, ProbeAnswer};
use noxu_rep::wire::recovery::{RecoveryMsg, Verdict as RecoveryVerdict};
use noxu_rep::wire::restore::{
    Abandoned, ManifestHead, MethodId, Refused, RestoreMsg, SegmentOffer,
};
use noxu_rep::wire::syncup::{SyncupMsg, Verdict};
use noxu_util::{Fingerprint, GroupId, Incarnation, Lsn, Name, Term, Vlsn};

/// A length and a frame behind it, cut out of a stream.
pub fn frame(input: &[u8]) -> bool {
    let mut accepted = false;
    let mut rest = input;
    while let Some((field, after)) = rest.split_first_chunk::<FRAME_LENGTH_BYTES>() {
        let Ok(len) = decode_length(*field, 1 << 20) else { return accepted };
        assert!(len <= 1 << 20);
        assert_eq!(encode_length(len, 1 << 20), Ok(*field));
        let Some(next) = after.get(len..) else { return accepted };
        accepted = true;
        rest = next;
    }
    accepted
}

pub fn frame_seeds() -> Vec<Vec<u8>> {
    vec![vec![0; 4], [&[3, 0, 0, 0][..], b"abc", &[1, 0, 0, 0], b"d"].concat()]
}

pub fn handshake(input: &[u8]) -> bool {
    let Ok(message) = HandshakeMsg::decode(input) else { return false };
    assert_eq!(HandshakeMsg::decode(&message.encode()).as_ref(), Ok(&message));
    true
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn handshake_seeds() -> Vec<Vec<u8>> {
    let group = GroupId::from_bytes([5; 16]);
    let hello = Hello {
        versions: VersionRange::SPOKEN,
        group: Some(group),
        group_name: Some(name("g")),
        node: name("n1"),
        address: "127.0.0.1:7000".into(),
        incarnation: Incarnation::from_u64(9),
        kind: NodeKind::Electable,
        log_format: 1,
        segment_bytes: Some(1 << 26),
        term: Term::new(3),
        capabilities: Capabilities::OURS,
        wall_clock_ms: 1_700_000_000_000,
        epoch: 1,
        priority: 5,
        full: false,
        uncertain: true,
    };
    let fresh = Hello { group: None, group_name: None, segment_bytes: None, ..hello.clone() };
    let welcome = Welcome {
        version: 1,
        group,
        group_name: name("g"),
        segment_bytes: 1 << 26,
        log_format: 1,
        node: name("n2"),
        incarnation: Incarnation::from_u64(8),
        term: Term::new(4),
        capabilities: Capabilities::OURS,
        clock_skew_ms: Some(-5),
        epoch: 1,
        established: true,
    };
    let reasons = [
        RejectReason::Version { ours: VersionRange::SPOKEN, theirs: VersionRange::SPOKEN },
        RejectReason::WrongGroup { name: name("g"), ours: group, theirs: GroupId::default() },
        RejectReason::DuplicateNode { node: name("n1"), incarnation: Incarnation::from_u64(1) },
        RejectReason::UnknownMember { node: name("n9"), members: vec![name("n1"), name("n2")] },
        RejectReason::NotMaster { master: Some("n2:7000".into()) },
        RejectReason::WrongEpoch { ours: 1, theirs: 2 },
        RejectReason::NotBound {
            node: name("n1"),
            bound: Incarnation::from_u64(1),
            theirs: Incarnation::from_u64(2),
        },
        RejectReason::NotEstablished { node: name("n1") },
        RejectReason::Other { code: 200, message: "newer".into() },
    ];
    [HandshakeMsg::Hello(hello), HandshakeMsg::Hello(fresh), HandshakeMsg::Welcome(welcome)]
        .into_iter()
        .chain(reasons.map(HandshakeMsg::Rejected))
        .map(|message| message.encode())
        .collect()
}

pub fn syncup(input: &[u8]) -> bool {
    let Ok(message) = SyncupMsg::decode(input) else { return false };
    let again = SyncupMsg::decode(&message.encode());
    assert_eq!(again.expect("its own encoding"), message);
    true
}

pub fn syncup_seeds() -> Vec<Vec<u8>> {
    let vlsn = Vlsn::new(7);
    let messages = [
        SyncupMsg::EntryRequest { vlsn },
        SyncupMsg::Entry { vlsn, lsn: 64, fingerprint: 1, is_sync: true },
        SyncupMsg::EntryNotFound,
        SyncupMsg::AlternateMatchpoint { vlsn, lsn: 64, fingerprint: 1, is_sync: false },
        SyncupMsg::StartStream { start_vlsn: vlsn },
        SyncupMsg::RestoreRequest { failed_vlsn: vlsn },
        SyncupMsg::RestoreResponse,
        SyncupMsg::Probe {
            terms: vec![(Term::new(1), Vlsn::new(1)), (Term::new(2), vlsn)],
            samples: vec![(Vlsn::new(6), 64, 2), (vlsn, 200, 3)],
        },
        SyncupMsg::ProbeResult {
            first: Vlsn::new(1),
            last: vlsn,
            verdicts: vec![Verdict::Agree, Verdict::Disagree, Verdict::Missing],
            hints: vec![(Vlsn::new(3), 100, 4)],
        },
    ];
    messages.map(|message| message.encode()).to_vec()
}

pub fn message(input: &[u8]) -> bool {
    let Ok(message) = StreamMessage::decode(input) else { return false };
    let encoded = message.encode();
    assert_eq!(StreamMessage::decode(&encoded).as_ref(), Ok(&message));
    true
}

pub fn message_seeds() -> Vec<Vec<u8>> {
    let dtvlsn = Dtvlsn { vlsn: Vlsn::new(4), fingerprint: Fingerprint::from_u64(5) };
    let era = Era { epoch: 1, term: Term::new(2) };
    let head = Head {
        era,
        first: Vlsn::new(5),
        previous_fingerprint: Fingerprint::from_u64(6),
        dtvlsn,
        want_received: true,
    };
    let last = Vlsn::new(9);
    let position = Position { era, last, dtvlsn, want_received: false, answer: true };
    let ack = Ack { era, received: last, durable: last, applied: Vlsn::new(8) };
    let successor = Some("n2".parse().expect("a name"));
    let end = LogEnd { term: era.term, vlsn: last, fingerprint: Fingerprint::from_u64(7) };
    let entries = super::decoders::entry_seeds();
    let entries = entries.first().expect("a run of entries");
    [
        StreamMessage::Entries { head, bytes: entries },
        StreamMessage::Fragment { head, total: 100, offset: 40, bytes: b"part" },
        StreamMessage::Position(position),
        StreamMessage::Ack(ack),
        StreamMessage::Goodbye(Farewell { why: Leaving::StepsDown, successor }),
        StreamMessage::Goodbye(Farewell { why: Leaving::Closing, successor: None }),
        StreamMessage::HeadAsk { nonce: 8 },
        StreamMessage::HeadAnswer { nonce: 8, head: end },
    ]
    .map(|message| message.encode())
    .to_vec()
}

pub fn verdict(input: &[u8]) -> bool {
    let Ok(message) = RecoveryMsg::decode(input) else { return false };
    let again = RecoveryMsg::decode(&message.encode());
    assert_eq!(again.expect("its own encoding"), message);
    true
}

pub fn verdict_seeds() -> Vec<Vec<u8>> {
    let (nonce, session, vlsn) = (Nonce(7), RecoveryId(8), Vlsn::new(70));
    let facts = |agreement, restore_marker| Facts {
        era: Era { epoch: 1, term: Term::new(3) },
        incarnation: Incarnation::from_u64(5),
        durable: vlsn,
        known_dtvlsn: Vlsn::new(60),
        agreement,
        restore_marker,
    };
    let to_end = Agreement::Matchpoint { matchpoint: Vlsn::new(69), to_end: true };
    let messages = [
        RecoveryMsg::AskFacts { nonce },
        RecoveryMsg::Facts { nonce, facts: facts(to_end, None) },
        RecoveryMsg::Facts { nonce, facts: facts(Agreement::Nothing, Some(session)) },
        RecoveryMsg::Verdict(RecoveryVerdict::Stream {
            session,
            from: vlsn,
            truncate_to: Some(vlsn),
        }),
        RecoveryMsg::Verdict(RecoveryVerdict::Rebuild { session }),
        RecoveryMsg::Verdict(RecoveryVerdict::Refused(recovery::Refusal::Foreign {
            durable: vlsn,
        })),
        RecoveryMsg::Verdict(RecoveryVerdict::Rest),
    ];
    messages.map(|message| message.encode()).to_vec()
}

pub fn restore(input: &[u8]) -> bool {
    let Ok(message) = RestoreMsg::decode(input) else { return false };
    let encoded = message.encode();
    let again = RestoreMsg::decode(&encoded);
    assert_eq!(again.expect("its own encoding"), message);
    true
}

pub fn restore_seeds() -> Vec<Vec<u8>> {
    let vlsn = Vlsn::new(70);
    let anchor = Anchor {
        vlsn: Vlsn::new(60),
        lsn: Lsn::new(2, 900),
        term: Term::new(2),
        fingerprint: Fingerprint::from_u64(1),
        next_lsn: Lsn::new(3, 64),
        group_config: b"config".to_vec().into(),
    };
    let head = ManifestHead {
        group: GroupIdentity {
            id: GroupId::from_bytes([3; 16]),
            name: name("g"),
            segment_bytes: 1 << 20,
        },
        provider: name("n1"),
        term: Term::new(3),
        method: name("segments"),
        anchor: anchor.clone(),
        group_config: b"config".to_vec().into(),
        base: Anchor { vlsn: Vlsn::new(65), next_lsn: Lsn::new(4, 64), ..anchor },
        target: vlsn,
        target_fingerprint: Fingerprint::from_u64(2),
        sources: vec![(name("n3"), "n3:7000".into())],
        segments: 1,
    };
    let offer =
        SegmentOffer { number: 3, bytes: 300 << 10, digest: [1; 32], blocks: vec![[2; 32]; 2] };
    let bytes: Cow<'static, [u8]> = b"bytes".into();
    let method = MethodId { name: name("segments"), signature: 1 };
    let messages = [
        RestoreMsg::Open {
            session: 1,
            recovery: 2,
            group: Some(GroupId::from_bytes([3; 16])),
            node: name("n1"),
            kind: NodeKind::Electable,
            methods: vec![method.clone(), method.clone()],
        },
        RestoreMsg::Manifest(Box::new(head.clone())),
        RestoreMsg::Manifest(Box::new(ManifestHead { sources: Vec::new(), ..head })),
        RestoreMsg::Segment(offer),
        RestoreMsg::BlockRequest { request: 1, segment: 3, block: 1 },
        RestoreMsg::Block { request: 1, bytes: bytes.clone() },
        RestoreMsg::StateRequest { request: 2, question: bytes.clone() },
        RestoreMsg::StateAnswer {
            request: 2,
            vlsn,
            fingerprint: Fingerprint::from_u64(9),
            digest: [4; 32],
            bytes: bytes.clone(),
        },
        RestoreMsg::LiveRequest {
            request: 3,
            from: vlsn,
            previous: Fingerprint::from_u64(3),
            most: 1 << 20,
            needed: Vlsn::new(61),
            progress: Progress { base_bytes: 9, base_done: true, durable: vlsn },
        },
        RestoreMsg::LiveRun {
            request: 3,
            more: false,
            last: vlsn,
            cut: vlsn,
            bytes: bytes.clone(),
        },
        RestoreMsg::Attach {
            group: GroupId::from_bytes([3; 16]),
            node: name("n1"),
            method: Some(method),
        },
        RestoreMsg::Holdings {
            state: true,
            segments: vec![(3, [1; 32]), (4, [2; 32])],
            others: vec![(name("n3"), "n3:7000".into())],
        },
        RestoreMsg::Doubt { segment: 3, block: 1 },
        RestoreMsg::StateOpen { request: 4, id: 0 },
        RestoreMsg::StateOpened {
            request: 4,
            id: 7,
            vlsn,
            fingerprint: Fingerprint::from_u64(2),
            head: bytes,
        },
        RestoreMsg::Refusal { request: 5, why: Refused::Parted },
        RestoreMsg::Failure { reason: "gone".into() },
        RestoreMsg::Done { needed: vlsn, durable: vlsn },
        RestoreMsg::Abandon { why: Abandoned::NoSpace },
    ];
    messages.map(|message| message.encode()).to_vec()
}

pub fn probe(input: &[u8]) -> bool {
    let asked = probe::decode_question(input).is_ok();
    let Ok(answer) = ProbeAnswer::decode(input) else { return asked };
    assert_eq!(ProbeAnswer::decode(&answer.encode()).as_ref(), Ok(&answer));
    true
}

pub fn probe_seeds() -> Vec<Vec<u8>> {
    let answer = ProbeAnswer {
        is_master: true,
        term: Term::new(2),
        first: Vlsn::new(1),
        last: Vlsn::new(9),
        dtvlsn: Vlsn::new(8),
        node: name("n1"),
        master: "n1:7000".into(),
    };
    vec![probe::encode_question(), answer.encode()]
}

/// A message that opens a link, or one that a link carries.
pub fn election(input: &[u8]) -> bool {
    if let Ok(message) = LinkMsg::decode(input) {
        assert_eq!(LinkMsg::decode(&message.encode()).as_ref(), Ok(&message));
        assert!(ElectionMsg::decode(input).is_err(), "two meanings");
        return true;
    }
    let Ok(message) = ElectionMsg::decode(input) else { return false };
    assert_eq!(ElectionMsg::decode(&message.encode()).as_ref(), Ok(&message));
    true
}

pub fn election_seeds() -> Vec<Vec<u8>> {
    let id = GroupId::from_bytes([5; 16]);
    let peer = Peer { name: name("n1"), incarnation: Incarnation::from_u64(9) };
    let card = Introduction {
        epoch: 1,
        term: Term::new(2),
        versions: LINK_VERSIONS,
        group: Some(id),
        group_name: Some(name("g")),
        peer: peer.clone(),
        kind: NodeKind::Electable,
        priority: 5,
        address: "127.0.0.1:7000".into(),
        capabilities: Capabilities::OURS,
    };
    let fresh = Introduction { group: None, group_name: None, ..card.clone() };
    let refused = RejectReason::NotReady { node: name("n2") };
    let links = [
        LinkMsg::PeerHello(card.clone()),
        LinkMsg::PeerHello(fresh),
        LinkMsg::PeerWelcome(card),
        LinkMsg::PeerRejected(refused),
    ];
    let head =
        LogEnd { term: Term::new(2), vlsn: Vlsn::new(9), fingerprint: Fingerprint::from_u64(3) };
    let (nonce, asked, first) = (7, Term::new(3), Vlsn::new(5));
    let mark = Mark { term: Term::new(2), fingerprint: Fingerprint::from_u64(4) };
    let answer = |verdict, bytes: &[u8]| {
        let total = bytes.len() as u32;
        Body::RepairAnswer(RepairAnswer {
            nonce,
            first,
            verdict,
            commit_floor: Vlsn::new(4),
            total,
            offset: 0,
            bytes: bytes.to_vec(),
        })
    };
    let vote = |verdict| Body::VoteAnswer(VoteAnswer { phase: Phase::Real, nonce, asked, verdict });
    let voter = |node: &str| Voter {
        name: name(node),
        incarnation: Incarnation::from_u64(9),
        kind: VoterKind::Data,
        address: "127.0.0.1:7000".into(),
    };
    let bodies = [
        Body::VoteRequest(VoteRequest {
            phase: Phase::Pre,
            nonce,
            asked,
            head,
            priority: 5,
            uncertain: true,
        }),
        vote(VoteVerdict::Granted { certain: true }),
        vote(VoteVerdict::Refused(Refusal::BetterHead)),
        Body::Lead { address: "127.0.0.1:7000".into(), phase: LeadPhase::Established },
        Body::Standing(Standing {
            head,
            role: NodeRole::Replica,
            master: Some(name("n2")),
            priority: 5,
            full: true,
            uncertain: false,
        }),
        Body::RepairAsk(RepairAsk {
            purpose: Purpose::Repairing,
            nonce,
            first,
            last: Vlsn::new(6),
            before: mark,
            after: mark,
            offset: 0,
        }),
        answer(RepairVerdict::Have, b"entries"),
        answer(RepairVerdict::Part { through: first }, b"some"),
        answer(RepairVerdict::Never, b""),
        answer(RepairVerdict::Silent(Silence::Damaged), b""),
        Body::Yield { successor: name("n3") },
        Body::Founding {
            identity: GroupIdentity { id, name: name("g"), segment_bytes: 1 << 20 },
            electorate: Electorate {
                voters: ["n1", "n2", "n3"].map(voter).to_vec(),
                q_rep: 0,
                q_elect: 2,
            },
        },
        Body::Founded,
    ];
    let message = |body| ElectionMsg { epoch: 1, term: Term::new(2), body }.encode();
    links.iter().map(LinkMsg::encode).chain(bodies.map(message)).collect()
}

/// A group's configuration, as control files and Group entries have it.
pub fn electorate(input: &[u8]) -> bool {
    let Ok(electorate) = Electorate::decode(input) else { return false };
    electorate.check().expect("what was read passes the check");
    assert_eq!(electorate.encode(), input);
    true
}

pub fn electorate_seeds() -> Vec<Vec<u8>> {
    let voter = |node: &str| Voter {
        name: name(node),
        incarnation: Incarnation::from_u64(9),
        kind: VoterKind::Data,
        address: "127.0.0.1:7000".into(),
    };
    let group = |names: &[&str], q_rep, q_elect| {
        let voters = names.iter().map(|node| voter(node)).collect();
        Electorate { voters, q_rep, q_elect }.encode()
    };
    vec![group(&["n1"], 0, 0), group(&["n1", "n2", "n3"], 2, 2), group(&["a", "b", "c", "d"], 2, 3)]
}
