//! Random masterships: true, false, late and repeated events in any order, watched from outside.
//!
//! Whatever came before, a replica that answers truthfully is then brought level in bounded time.
//! The [`Watch`] knows the engine's promises and none of its insides; each [`Mutant`] breaks one.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;

mod peer;
mod watch;

use peer::Peer;
use watch::Watch;

type Checked<T = ()> = Result<T, TestCaseError>;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What happens next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    /// What a replica that means well does next; `lag` behind the master if it is asked.
    Work {
        who: usize,
        lag: u8,
    },
    Tick(u8),
    Bounds {
        written: u8,
        recycled: u8,
    },
    Up {
        who: usize,
        wiped: bool,
    },
    Gone(usize),
    Facts(usize, Facts),
    Session(usize, Step),
    Ack {
        who: usize,
        entries: u8,
    },
    PinDropped(usize),
    Era {
        term: u32,
        members: usize,
    },
    /// Said a second time, or late for the first.
    Again(usize),
    /// Said now, arrives with [`Op::Again`] if at all.
    Delayed(Box<Op>),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Accepted,
    Progress {
        bytes: u8,
        done: bool,
        entries: u8,
    },
    /// Durable through the cut, or a bit less.
    Completed {
        less: u8,
    },
    Failed(FailReason),
}

fn facts() -> impl Strategy<Value = Facts> {
    let agreement = prop_oneof![
        1 => Just(Agreement::Empty),
        5 => (0..60_i64, any::<bool>())
            .prop_map(|(m, to_end)| Agreement::Matchpoint { matchpoint: v(m), to_end }),
        1 => Just(Agreement::Nothing),
    ];
    let marker = prop_oneof![9 => Just(None), 1 => (0..200_u64).prop_map(|n| Some(RecoveryId(n)))];
    // Of no mastership, or of one to come.
    let term = prop_oneof![19 => Just(0), 1 => Just(9)];
    (0..60_i64, 0..30_i64, agreement, marker, term).prop_map(
        |(more, known, agreement, marker, term)| {
            let durable = match agreement {
                Agreement::Empty => NULL_VLSN,
                Agreement::Matchpoint { matchpoint, .. } => matchpoint.plus(more as u64 / 4),
                Agreement::Nothing => v(more),
            };
            let (era, known_dtvlsn, restore_marker) = (era(term), v(known), marker);
            Facts { era, durable, known_dtvlsn, agreement, restore_marker, ..prefix(0) }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop::sample::select(vec![
        FailReason::Stalled,
        FailReason::Disconnected,
        FailReason::LogRecycled,
        FailReason::PinLost,
        FailReason::NoSpace,
        FailReason::Cancelled,
        FailReason::Corrupt,
    ]);
    prop_oneof![
        6 => Just(Step::Accepted),
        6 => (0..3_u8, any::<bool>(), 0..40_u8)
            .prop_map(|(bytes, done, entries)| Step::Progress { bytes, done, entries }),
        4 => (0..3_u8).prop_map(|less| Step::Completed { less }),
        2 => reason.prop_map(Step::Failed),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..NAMES.len();
    let work = (who.clone(), 0..40_u8).prop_map(|(who, lag)| Op::Work { who, lag });
    // Most of the time all are members.
    let members = prop_oneof![3 => Just(0), 1 => 0..8_usize];
    let plain = prop_oneof![
        16 => work,
        3 => (0..6_u8).prop_map(Op::Tick),
        3 => (0..30_u8, 0..10_u8)
            .prop_map(|(written, recycled)| Op::Bounds { written, recycled }),
        4 => (who.clone(), prop::bool::weighted(0.25))
            .prop_map(|(who, wiped)| Op::Up { who, wiped }),
        1 => who.clone().prop_map(Op::Gone),
        8 => (who.clone(), facts()).prop_map(|(who, facts)| Op::Facts(who, facts)),
        16 => (who.clone(), step()).prop_map(|(who, step)| Op::Session(who, step)),
        4 => (who.clone(), 0..20_u8).prop_map(|(who, entries)| Op::Ack { who, entries }),
        1 => who.prop_map(Op::PinDropped),
        1 => (4..8_u32, members).prop_map(|(term, members)| Op::Era { term, members }),
        6 => (0..400_usize).prop_map(Op::Again),
    ];
    (plain, prop::bool::weighted(0.15))
        .prop_map(|(op, delayed)| if delayed { Op::Delayed(Box::new(op)) } else { op })
}

/// Seconds until every replica is level: sessions that nobody knows of any more must stall first,
/// longest rests pass, and up to three of them fail in a row.
const LEVEL_WITHIN: u64 = 200;

/// Lets every replica be there, truthful and able.
fn all_become_level(watch: &mut Watch, logs: [(u8, u8); NAMES.len()]) -> Checked {
    let era = watch.era.unwrap_or(era(4));
    let members = NAMES.iter().zip(watch.incarnations).map(|(who, n)| (name(who), Some(inc(n))));
    let mut queue = vec![
        Event::Assigned { era, members: members.collect() },
        Event::Bounds(Bounds { first: watch.first, last: watch.last, dtvlsn: NULL_VLSN }),
    ];
    let mut peers = BTreeMap::new();
    for (at, who) in NAMES.iter().enumerate() {
        let (durable, tail) = logs[at];
        let durable = v(i64::from(durable)).min(watch.last);
        peers.insert(name(who), (Peer::new(durable, u64::from(tail)), inc(watch.incarnations[at])));
    }
    let mut connected = false;
    for second in 0..LEVEL_WITHIN {
        for event in std::mem::take(&mut queue) {
            for command in watch.feed(&event)? {
                let (peer, incarnation) = peers.get_mut(command.name()).unwrap();
                let answer = peer.facts(era, watch.first, *incarnation);
                peer.told(command.name(), &command, answer);
                queue.append(&mut peer.said);
            }
        }
        if !connected {
            connected = true;
            for (who, (_, incarnation)) in &peers {
                let waits = matches!(
                    watch.engine.projection(who),
                    Some(Projection::Absent | Projection::Refused(_))
                );
                // A stream ends with its connection, and none of the past is there any more.
                let seen = &watch.seen[who];
                let other = seen.incarnation != Some(*incarnation);
                if waits || other || seen.streams.is_some() {
                    watch.links += 1;
                    let (name, link) = (who.clone(), Link(watch.links));
                    queue.push(Event::PeerUp { name, link, incarnation: *incarnation });
                }
            }
        }
        // Faster than any of them follows, for a while.
        let last = watch.last.plus(if second < LEVEL_WITHIN / 3 { 10 } else { 0 });
        queue.push(Event::Bounds(Bounds { first: watch.first, last, dtvlsn: NULL_VLSN }));
        for (who, (peer, incarnation)) in &mut peers {
            peer.works(who, *incarnation, last);
            queue.append(&mut peer.said);
        }
        queue.push(Event::Tick { now: watch.now + secs(1) });
    }
    for (who, shown) in watch.engine.projections() {
        prop_assert_eq!(shown, Projection::Healthy, "{}: {:?}", who, peers[who]);
    }
    Ok(())
}

fn mastership() -> impl Strategy<Value = (Vec<Op>, [(u8, u8); NAMES.len()])> {
    (prop::collection::vec(op(), 0..250), prop::array::uniform3((0..120_u8, 0..3_u8)))
}

fn check((ops, logs): &(Vec<Op>, [(u8, u8); NAMES.len()])) -> Checked {
    let mut watch = Watch::begun()?;
    for op in ops {
        watch.run(op)?;
    }
    all_become_level(&mut watch, *logs)
}

fn runner(cases: u32, max_shrink_iters: u32) -> TestRunner {
    let config = Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng())
}

#[test]
fn whatever_happens_the_promises_hold_and_replicas_get_level() {
    let cases = std::env::var("NOXU_RECOVERY_CASES").ok().and_then(|text| text.parse().ok());
    let result = runner(cases.unwrap_or(1_000), 10_000).run(&mastership(), |run| check(&run));
    result.unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn each_mutant_is_noticed() {
    for mutant in Mutant::ALL {
        let found =
            Mutant::with(Some(*mutant), || runner(1_000, 0).run(&mastership(), |run| check(&run)));
        assert!(found.is_err(), "{mutant:?} is not noticed");
    }
}

/// A run that meets nothing proves nothing.
#[test]
fn random_masterships_meet_everything() {
    let met = std::cell::RefCell::new(BTreeMap::<String, u64>::new());
    let meet = |what: String| *met.borrow_mut().entry(what).or_default() += 1;
    let run = runner(300, 0).run(&mastership(), |(ops, _)| {
        let mut watch = Watch::begun()?;
        for op in &ops {
            let before = watch.engine.ignored().clone();
            for command in watch.run(op)? {
                match command {
                    Command::Start { session, .. } => {
                        let kind = format!("{:?}", session.kind);
                        meet(kind.split(' ').next().unwrap_or_default().to_owned());
                    }
                    other => {
                        let other = format!("{other:?}");
                        meet(other.split(' ').next().unwrap_or_default().to_owned());
                    }
                }
            }
            for (why, count) in watch.engine.ignored() {
                if before.get(why) != Some(count) {
                    meet(format!("{why:?}"));
                }
            }
            for (_, shown) in watch.engine.projections() {
                let shown = format!("shown {shown:?}");
                meet(shown.split('(').next().unwrap_or_default().to_owned());
            }
        }
        Ok(())
    });
    run.unwrap_or_else(|failed| panic!("{failed}"));
    let met = met.into_inner();
    println!("{met:#?}");
    for what in [
        "AskFacts",
        "KeepUp",
        "CatchUp",
        "Rebuild",
        "Cut",
        "Cancel",
        "Pin",
        "Unpin",
        "Alarm",
        "UnknownMember",
        "OtherEra",
        "OldLink",
        "OldNonce",
        "OtherSession",
        "NoSession",
        "WrongPhase",
        "OtherIncarnation",
        "LaterEra",
        "NoBounds",
        "EarlyCompletion",
        "TimeBack",
        "shown Absent",
        "shown Unknown",
        "shown Healthy",
        "shown CatchingUp",
        "shown Rebuilding",
        "shown Degraded",
        "shown Refused",
    ] {
        assert!(met.get(what).copied().unwrap_or(0) >= 20, "{what} is hardly met");
    }
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(any::<u8>(), 0..80);
    (0..3_u8, 0..50_u8, tail)
        .prop_map(|(version, opcode, tail)| [vec![version, opcode, 1, 0, b'a'], tail].concat())
}

#[test]
fn a_recording_has_these_bytes() {
    let what = SessionEvent::Progress(Progress { base_bytes: 7, base_done: true, durable: v(9) });
    let (session, era) = (RecoveryId(3), Era { epoch: 2, term: Term::new(5) });
    let event = Event::Session { name: name("ab"), session, era, what };
    #[rustfmt::skip]
    let expected = [
        1, 16, 2, 0, b'a', b'b', 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(event.encode(), expected);
    let command = Command::Pin { name: name("ab"), from: v(9) };
    assert_eq!(command.encode(), [1, 44, 2, 0, b'a', b'b', 9, 0, 0, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in any_bytes()) {
        if let Ok(event) = Event::decode(&bytes) {
            prop_assert_eq!(event.encode(), &bytes[..]);
        }
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode(), &bytes[..]);
        }
        if let Ok(setup) = Setup::decode(&bytes) {
            prop_assert_eq!(setup.encode(), &bytes[..]);
        }
    }
}
