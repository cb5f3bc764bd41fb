//! Syncup over a local channel, two threads at a time: the two blocking functions, and peers that
//! break the protocol at every step.

use std::thread;
use std::time::Instant;

use noxu_util::NULL_VLSN;
use proptest::prelude::*;

use super::*;
use crate::core::syncup::tests::{PlainLog, diverged, v};
use crate::net::channel::{LocalChannel, LocalChannelPair};

/// Both sides of one syncup, each in a thread.
fn pair<R: SyncupView + Sync, F: SyncupView + Sync>(
    replica: &R,
    feeder: &F,
) -> (Result<(SyncupOutcome, SyncupStats)>, Result<Option<Vlsn>>) {
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    thread::scope(|scope| {
        let answering = scope.spawn(|| feeder_syncup_handshake(&channel_b, feeder));
        let asked = replica_syncup(&channel_a, replica, &SyncupOptions::default());
        (asked, answering.join().unwrap())
    })
}

/// Runs the replica against a script: frames the "feeder" answers with, whatever is asked. When
/// the script ends the channel is closed, or left silent.
fn scripted_feeder(
    replica: &dyn SyncupView,
    answers: &[Vec<u8>],
    then_close: bool,
) -> (Result<SyncupOutcome>, Vec<SyncupMsg>) {
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    for answer in answers {
        channel_b.send(answer).unwrap();
    }
    if then_close {
        channel_b.close();
    }
    let options = SyncupOptions { message_timeout: SOON, ..SyncupOptions::default() };
    let outcome = replica_syncup(&channel_a, replica, &options).map(|(outcome, _)| outcome);
    (outcome, sent_through(&channel_b))
}

const SOON: Duration = Duration::from_millis(30);

fn sent_through(channel: &LocalChannel) -> Vec<SyncupMsg> {
    let frames = std::iter::from_fn(|| channel.receive(Duration::ZERO).ok().flatten());
    frames.map(|frame| SyncupMsg::decode(&frame).unwrap()).collect()
}

fn entry_of(log: &dyn SyncupView, at: i64) -> SyncupMsg {
    let VlsnEntry { lsn, fingerprint, is_sync } = log.entry(v(at)).unwrap();
    SyncupMsg::Entry { vlsn: v(at), lsn, fingerprint, is_sync }
}

#[test]
fn the_first_frame_is_exactly_a_request_for_the_last_sync_entry() {
    let log = PlainLog::dense(1..=10, 0);
    let (_, sent) = scripted_feeder(&log, &[], true);
    assert!(sent.len() <= 1); // a closed channel takes nothing
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    channel_b.send(&entry_of(&log, 10).encode()).unwrap();
    let outcome = replica_syncup_handshake(&channel_a, &log).unwrap();
    assert_eq!(
        outcome,
        SyncupOutcome::Matchpoint {
            matchpoint_vlsn: v(10),
            matchpoint_lsn: 1000,
            start_vlsn: v(11)
        }
    );
    assert_eq!(
        sent_through(&channel_b),
        [SyncupMsg::EntryRequest { vlsn: v(10) }, SyncupMsg::StartStream { start_vlsn: v(11) }]
    );
}

#[test]
fn both_sides_name_the_same_start() {
    let common = PlainLog::dense(1..=30, 0);
    for (replica, feeder) in [
        (common.clone(), common.clone()),
        (common.clone().and(PlainLog::dense(31..=40, 1)), common.clone()),
        (
            common.clone().and(PlainLog::dense(31..=40, 1)),
            common.clone().and(PlainLog::dense(31..=90, 2)),
        ),
        (PlainLog::default(), common),
    ] {
        let (asked, answered) = pair(&replica, &feeder);
        let SyncupOutcome::Matchpoint { start_vlsn, .. } = asked.unwrap().0 else { panic!() };
        assert_eq!(answered.unwrap(), Some(start_vlsn));
    }
}

#[test]
fn a_replica_without_a_matchpoint_and_its_feeder_both_learn_of_the_restore() {
    let feeder = PlainLog::dense(1..=30, 2);
    for replica in [PlainLog::dense(1..=20, 1), PlainLog::dense(1..=50, 1)] {
        let (asked, answered) = pair(&replica, &feeder);
        assert!(matches!(asked.unwrap().0, SyncupOutcome::NeedsRestore { .. }));
        assert_eq!(answered.unwrap(), None);
    }
    let (asked, answered) = pair(&PlainLog::default(), &feeder.drop_front(7));
    assert_eq!(asked.unwrap().0, SyncupOutcome::NeedsRestore { failed_vlsn: v(1) });
    assert_eq!(answered.unwrap(), None);
}

#[test]
fn a_syncup_normally_takes_one_round_trip_and_four_at_a_billion_diverged_entries() {
    for (tail, at_most) in [(0, 1), (1_000, 3), (100_000, 4), (1_000_000, 4), (1_000_000_000, 4)] {
        let (replica, feeder) = diverged(5_000_000, tail, tail + 1_000, 10);
        let begin = Instant::now();
        let (asked, answered) = pair(&replica, &feeder);
        let (outcome, stats) = asked.unwrap();
        println!("{tail} diverged: {stats:?} in {:?}", begin.elapsed());
        assert!(stats.round_trips <= at_most, "{tail}: {stats:?}");
        let SyncupOutcome::Matchpoint { matchpoint_vlsn, start_vlsn, .. } = outcome else {
            panic!()
        };
        assert_eq!((matchpoint_vlsn, answered.unwrap()), (v(5_000_000), Some(start_vlsn)));
    }
}

#[test]
fn corrupt_fingerprints_end_the_syncup_with_an_alarm_on_the_replica() {
    let replica = PlainLog::dense(1..=100, 1);
    let feeder = PlainLog::dense(1..=100, 2).and(PlainLog::dense(61..=80, 1));
    let (asked, answered) = pair(&replica, &feeder);
    assert!(matches!(asked, Err(RepError::NonMonotone { .. })), "{asked:?}");
    assert!(matches!(answered, Err(RepError::Closed { .. })), "{answered:?}");
}

#[test]
fn a_feeder_serves_a_replica_that_speaks_opcodes_one_to_seven_only() {
    let common = PlainLog::dense(1..=30, 0);
    let replica = common.clone().and(PlainLog::dense(31..=40, 1));
    let feeder = common.and(PlainLog::dense(31..=90, 2));
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    thread::scope(|scope| {
        let answering = scope.spawn(|| feeder_syncup_handshake(&channel_b, &feeder));
        let options = SyncupOptions { probes: false, ..SyncupOptions::default() };
        let (outcome, stats) = replica_syncup(&channel_a, &replica, &options).unwrap();
        assert!(
            matches!(outcome, SyncupOutcome::Matchpoint { start_vlsn, .. } if start_vlsn == v(31))
        );
        assert_eq!((stats.probes, stats.round_trips), (0, 11));
        assert_eq!(answering.join().unwrap().unwrap(), Some(v(31)));
    });
}

#[test]
fn a_replica_that_receives_a_replicas_message_fails_with_a_protocol_error() {
    let log = PlainLog::dense(1..=10, 0);
    for bad in [
        SyncupMsg::StartStream { start_vlsn: v(11) },
        SyncupMsg::RestoreRequest { failed_vlsn: v(10) },
    ] {
        let (outcome, sent) = scripted_feeder(&log, &[bad.encode()], false);
        assert!(matches!(outcome, Err(RepError::ProtocolError(_))), "{outcome:?}");
        assert_eq!(sent, [SyncupMsg::EntryRequest { vlsn: v(10) }]);
    }
}

/// Conversations of a replica, as the answers it gets, and the logs they come from.
fn conversations() -> Vec<(PlainLog, Vec<SyncupMsg>)> {
    let common = PlainLog::dense(1..=30, 0);
    let mut open_end = common.clone();
    open_end.entries.insert(31, vlsn_entry(3100, 31, false));
    let diverged = common.clone().and(PlainLog::dense(31..=40, 1));
    let other = common.clone().and(PlainLog::dense(31..=90, 2));
    let foreign = PlainLog::dense(1..=90, 3);
    [
        (common.clone(), common.clone()),
        (open_end, common.clone()),
        (diverged.clone(), other),
        (diverged.clone(), common.clone()),
        (diverged, foreign),
        (PlainLog::default(), common.clone()),
        (PlainLog::default(), common.drop_front(9)),
    ]
    .into_iter()
    .map(|(replica, feeder)| {
        let (mut asking, mut output) = ReplicaSyncup::new(&replica, true);
        let mut answering = FeederSyncup::new(&feeder);
        let mut answers = Vec::new();
        while let ReplicaOutput::Ask(question) = output {
            let answer = match answering.handle_message(question).unwrap() {
                FeederOutput::Answer(answer) | FeederOutput::Restore(answer) => answer,
                FeederOutput::Start(at) => panic!("started at {at}"),
            };
            answers.push(answer.clone());
            output = asking.handle_message(answer).unwrap();
        }
        (replica, answers)
    })
    .collect()
}

#[test]
fn a_feeder_that_sends_garbage_too_much_too_little_or_nothing_at_any_step_is_a_typed_error() {
    for (replica, answers) in conversations() {
        for step in 0..answers.len() {
            let whole = answers[step].encode();
            let mut longer = whole.clone();
            longer.push(7);
            let wrong: [Vec<u8>; 6] = [
                vec![],
                vec![0xff; 40],
                longer,
                vec![9; 1 << 20],
                whole[..whole.len() - 1].to_vec(),
                SyncupMsg::StartStream { start_vlsn: v(1) }.encode(),
            ];
            for bad in wrong {
                let mut script: Vec<Vec<u8>> =
                    answers[..step].iter().map(SyncupMsg::encode).collect();
                script.push(bad);
                let (outcome, sent) = scripted_feeder(&replica, &script, false);
                assert!(matches!(outcome, Err(RepError::ProtocolError(_))), "{step}: {outcome:?}");
                assert!(!sent.iter().any(|sent| matches!(sent, SyncupMsg::StartStream { .. })));
            }
            let script: Vec<Vec<u8>> = answers[..step].iter().map(SyncupMsg::encode).collect();
            // Silence.
            let (outcome, _) = scripted_feeder(&replica, &script, false);
            let Err(RepError::NetworkError(failure)) = outcome else { panic!("{outcome:?}") };
            assert_eq!(failure.cause.kind(), std::io::ErrorKind::TimedOut);
        }
    }
}

#[test]
fn a_connection_cut_at_any_step_is_a_typed_error_on_both_sides() {
    let common = PlainLog::dense(1..=30, 0);
    let replica = common.clone().and(PlainLog::dense(31..=40, 1));
    let feeder = common.and(PlainLog::dense(31..=90, 2));
    for frames in 0..3 {
        // A relay between the two that cuts after so many frames in either direction.
        let near = LocalChannelPair::new();
        let far = LocalChannelPair::new();
        thread::scope(|scope| {
            let asking = scope.spawn(|| replica_syncup_handshake(&near.channel_a, &replica));
            let answering = scope.spawn(|| feeder_syncup_handshake(&far.channel_b, &feeder));
            for turn in 0..frames {
                let (from, to) = if turn % 2 == 0 {
                    (&near.channel_b, &far.channel_a)
                } else {
                    (&far.channel_a, &near.channel_b)
                };
                to.send(&from.receive(SYNCUP_TIMEOUT).unwrap().unwrap()).unwrap();
            }
            near.channel_b.close();
            far.channel_a.close();
            let asked = asking.join().unwrap();
            assert!(matches!(asked, Err(RepError::Closed { .. })), "{frames}: {asked:?}");
            let answered = answering.join().unwrap();
            assert!(matches!(answered, Err(RepError::Closed { .. })), "{frames}: {answered:?}");
        });
    }
}

#[test]
fn a_replica_that_sends_garbage_or_what_a_feeder_sends_ends_its_feeder_alone() {
    let log = PlainLog::dense(1..=30, 0);
    let options = SyncupOptions { message_timeout: SOON, ..SyncupOptions::default() };
    for before in 0..3i64 {
        for bad in [
            vec![],
            vec![77],
            vec![1; 8],
            vec![1; 10],
            SyncupMsg::EntryNotFound.encode(),
            entry_of(&log, 3).encode(),
            SyncupMsg::StartStream { start_vlsn: NULL_VLSN }.encode(),
            SyncupMsg::StartStream { start_vlsn: v(99) }.encode(),
        ] {
            let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
            for n in 0..before {
                channel_a.send(&SyncupMsg::EntryRequest { vlsn: v(30 - n) }.encode()).unwrap();
            }
            channel_a.send(&bad).unwrap();
            let answered = feeder_syncup(&channel_b, &log, &options);
            assert!(matches!(answered, Err(RepError::ProtocolError(_))), "{bad:?}: {answered:?}");
            assert!(answered.unwrap_err().to_string().starts_with("local channel a: "));
        }
        let LocalChannelPair { channel_a: _silent, channel_b } = LocalChannelPair::new();
        let answered = feeder_syncup(&channel_b, &log, &options);
        assert!(matches!(answered, Err(RepError::NetworkError(_))), "{answered:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_two_handshakes_agree_with_the_local_search(
        common in 0i64..300, replica_tail in 0i64..300, feeder_tail in 0i64..300,
        every in 1i64..9, front in 0i64..300,
    ) {
        let (replica, mut feeder) = diverged(common, replica_tail, feeder_tail, every);
        feeder.first = front.clamp(1, feeder.last.max(1));
        let (asked, answered) = pair(&replica, &feeder);
        let answered = answered.unwrap();
        match (asked.unwrap().0, local_matchpoint(&replica, &feeder)) {
            (
                SyncupOutcome::Matchpoint { matchpoint_vlsn, matchpoint_lsn, start_vlsn },
                Matchpoint::Found { vlsn, lsn },
            ) => {
                prop_assert_eq!((matchpoint_vlsn, matchpoint_lsn), (vlsn, lsn));
                prop_assert_eq!(answered, Some(start_vlsn));
            }
            (SyncupOutcome::NeedsRestore { .. }, Matchpoint::None) => {
                prop_assert_eq!(answered, None);
            }
            (outcome, local) => prop_assert!(false, "{outcome:?}, but {local:?}"),
        }
    }

    #[test]
    fn any_frames_from_a_peer_end_with_an_answer_or_a_typed_error(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..5),
        opcodes in proptest::collection::vec(1u8..10, 5),
    ) {
        let log = PlainLog::dense(1..=30, 0);
        let options = SyncupOptions { message_timeout: Duration::ZERO, ..SyncupOptions::default() };
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        for (frame, opcode) in frames.iter().zip(&opcodes) {
            channel_b.send(&[&[*opcode][..], frame].concat()).unwrap();
            channel_a.send(&[&[*opcode][..], frame].concat()).unwrap();
        }
        let _ = replica_syncup(&channel_a, &log, &options);
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        for (frame, opcode) in frames.iter().zip(&opcodes) {
            channel_a.send(&[&[*opcode][..], frame].concat()).unwrap();
        }
        let _ = feeder_syncup(&channel_b, &log, &options);
    }
}
