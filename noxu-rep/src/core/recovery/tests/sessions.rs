//! The S rows of the test matrix, and what of the L rows is decided here.

use super::*;

fn all_events(bench: &Bench) -> [Event; 4] {
    let progress = Progress { base_bytes: 9, base_done: true, durable: v(1_000) };
    [
        bench.event("a", SessionEvent::Accepted),
        bench.event("a", SessionEvent::Progress(progress)),
        bench.event("a", SessionEvent::Completed { durable: v(1_000) }),
        bench.event("a", SessionEvent::Failed(FailReason::LogRecycled)),
    ]
}

#[test]
fn s_late_progress_completed_failed_of_an_old_session_are_ignored() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.begin("a", prefix(20));
    let late = all_events(&bench);
    bench.failed("a", FailReason::Disconnected);
    for event in &late {
        bench.ignores(Ignored::NoSession, event);
    }
    bench.begin("a", prefix(20));
    for event in &late {
        bench.ignores(Ignored::OtherSession, event);
    }
    bench.progress("a", 0, false, 100);
    bench.completed("a", 100);
    for event in &late {
        bench.ignores(Ignored::NoSession, event);
    }
}

#[test]
fn s_events_in_the_wrong_phase_are_ignored() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.facts("a", prefix(20));
    let [accepted, progress, completed, _] = all_events(&bench);
    bench.ignores(Ignored::WrongPhase, &progress);
    bench.ignores(Ignored::WrongPhase, &completed);
    bench.ignores(Ignored::WrongPhase, &bench.ack_event("a", 50));
    assert_eq!(bench.feed(&accepted), []);
    bench.ignores(Ignored::WrongPhase, &accepted);
}

#[test]
fn s_acks_and_events_of_an_older_epoch_are_ignored() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.stream("a", 100);
    let late = bench.ack_event("a", 101);
    let newer = Era { epoch: 2, term: Term::new(1) };
    assert!(cancelled_and_asked(&bench.assign(newer, &["a"])));
    bench.bounds(1, 200);
    bench.ignores(Ignored::OtherEra, &late);
    bench.begin("a", prefix(20));
    bench.ignores(Ignored::OtherEra, &late);
    // Whatever the session's number.
    bench.era = era(5);
    for event in all_events(&bench) {
        bench.ignores(Ignored::OtherEra, &event);
    }
}

#[test]
fn s_epoch_going_backwards_is_ignored() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.stream("a", 100);
    for older in [era(4), Era { epoch: 0, term: Term::new(9) }] {
        let members = [(name("b"), None)].into();
        bench.ignores(Ignored::OtherEra, &Event::Assigned { era: older, members });
    }
    assert_eq!(bench.shown("a"), Projection::Healthy);
}

#[test]
fn s_no_redecision_while_running() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let nonce = bench.nonces[&name("a")];
    bench.begin("a", prefix(20));
    let again = Event::Facts { name: name("a"), nonce, facts: prefix(100) };
    bench.ignores(Ignored::OldNonce, &again);
    bench.bounds(50, 300);
    assert_eq!(bench.tick(9), []);
    bench.ignores(Ignored::OldNonce, &again);
}

#[test]
fn s_failure_emits_only_ask_facts() {
    use FailReason::{Cancelled, Corrupt, Disconnected, LogRecycled, NoSpace, PinLost, Stalled};
    for reason in [Stalled, Disconnected, LogRecycled, PinLost, NoSpace, Cancelled, Corrupt] {
        let mut bench = Bench::new(1, 100, &["a"]);
        bench.begin("a", prefix(20));
        let asked = bench.nonces[&name("a")];
        assert!(unpinned_and_asked(&bench.failed("a", reason)));
        assert_ne!(bench.nonces[&name("a")], asked, "a new nonce");
        assert_eq!(bench.shown("a"), Projection::Degraded(Reason::Failed(reason)));
    }
}

#[test]
fn s_facts_answering_an_old_nonce_are_ignored() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let old = bench.nonces[&name("a")];
    assert!(is_asked(&bench.tick(2)), "nobody answered");
    bench.ignores(
        Ignored::OldNonce,
        &Event::Facts { name: name("a"), nonce: old, facts: prefix(100) },
    );
    assert_eq!(bench.kind("a", prefix(20)), Kind::CatchUp { from: v(21), truncate_to: None });
}

#[test]
fn s_log_recycled_then_good_facts_is_still_rebuild() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.begin("a", prefix(20));
    bench.failed("a", FailReason::LogRecycled);
    assert_eq!(bench.kind("a", prefix(100)), REBUILD);
    bench.gone("a");
    bench.up("a", 1);
    assert_eq!(bench.kind("a", prefix(100)), REBUILD, "a new connection proves nothing");
    // What it proved, it proved until the replica has another log.
    bench.progress("a", 1, true, 100);
    bench.completed("a", 100);
    bench.gone("a");
    bench.up("a", 1);
    assert_eq!(bench.kind("a", prefix(100)), Kind::KeepUp { from: v(101) });
}

#[test]
fn s_three_failed_catch_ups_are_a_rebuild_at_the_next_facts() {
    let mut bench = Bench::new(1, 100, &["a"]);
    for _ in 0..3 {
        assert_eq!(bench.kind("a", prefix(20)), Kind::CatchUp { from: v(21), truncate_to: None });
        assert!(unpinned_and_asked(&bench.failed("a", FailReason::Disconnected)));
    }
    assert_eq!(bench.kind("a", prefix(20)), REBUILD);
}

#[test]
fn s_a_catch_up_that_completes_starts_the_budget_anew() {
    let mut bench = Bench::new(1, 100, &["a"]);
    for _ in 0..5 {
        for _ in 0..2 {
            bench.begin("a", prefix(95));
            bench.failed("a", FailReason::Corrupt);
        }
        bench.stream("a", 100);
        bench.up("a", 1);
    }
}

#[test]
fn s_early_completed_is_refused() {
    let mut bench = Bench::new(1, 100, &["a"]);
    assert!(matches!(bench.kind("a", prefix(20)), Kind::CatchUp { .. }));
    let completed =
        |bench: &Bench, at| bench.event("a", SessionEvent::Completed { durable: v(at) });
    bench.ignores(Ignored::EarlyCompletion, &completed(&bench, 100)); // no cut is issued yet
    bench.bounds(1, 150);
    let cut = Command::Cut { name: name("a"), session: bench.sessions[&name("a")].id, cut: v(150) };
    let at_target = bench.progress("a", 0, false, 100);
    assert_eq!(at_target.last(), Some(&cut), "through the target although far from the end");
    bench.ignores(Ignored::EarlyCompletion, &completed(&bench, 149));
    assert!(!bench.counts("a"));
    bench.completed("a", 150);
    assert_eq!(bench.shown("a"), Projection::Healthy);
    assert!(bench.counts("a"));
}

#[test]
fn s_completion_across_a_gap_is_refused() {
    let mut bench = Bench::new(50, 100, &["a"]);
    assert_eq!(bench.kind("a", empty()), REBUILD);
    // The entries are all there, the base is not.
    bench.progress("a", 10, false, 100);
    let completed = bench.event("a", SessionEvent::Completed { durable: v(100) });
    bench.ignores(Ignored::EarlyCompletion, &completed);
    bench.progress("a", 20, true, 100);
    bench.completed("a", 100);
    assert_eq!(bench.shown("a"), Projection::Healthy);
}

/// X "before Completed": it is restored, and went before the master heard of it.
#[test]
fn x_a_crash_before_completed_rebuilds_nothing_again() {
    let mut bench = Bench::new(50, 100, &["a"]);
    assert_eq!(bench.kind("a", empty()), REBUILD);
    bench.progress("a", 20, true, 100);
    let late = bench.event("a", SessionEvent::Completed { durable: v(100) });
    bench.gone("a");
    bench.up("a", 1);
    bench.ignores(Ignored::NoSession, &late);
    assert!(!bench.counts("a"));
    assert_eq!(bench.kind("a", prefix(100)), Kind::KeepUp { from: v(101) });
}

/// The master writes faster than the replica follows.
#[test]
fn l_cut_under_endless_writes_ends() {
    let mut bench = Bench::new(1, 1_000, &["a"]);
    bench.begin("a", prefix(20));
    let (mut last, mut at, mut cut) = (1_000, 20, None);
    while cut.is_none_or(|cut| at < cut) {
        (last, at) = (last + 100, at + 50);
        assert!(at < 20_000, "endless");
        bench.bounds(1, last);
        for command in bench.progress("a", 0, false, at) {
            if let Command::Cut { cut: issued, .. } = command {
                assert_eq!(cut.replace(issued.sequence()), None, "one cut");
            }
        }
    }
    bench.completed("a", at);
    let lag = Reason::Lagging((last - at) as u64);
    assert_eq!(bench.shown("a"), Projection::Degraded(lag));
    assert!(bench.counts("a"), "what it acknowledges is true however late");
}

/// The blocks are on the replica's disk, under the marker of the session that fetched them.
#[test]
fn s_superseding_keeps_fetched_blocks() {
    let mut bench = Bench::new(50, 100, &["a"]);
    let session = bench.begin("a", empty());
    bench.progress("a", 5_000, false, 60);
    bench.failed("a", FailReason::Disconnected);
    let marked = Facts { restore_marker: Some(session.id), ..empty() };
    assert_eq!(bench.facts("a", marked), [], "a rebuild that failed rests first");
    assert!(is_asked(&bench.tick(1)));
    assert_eq!(bench.kind("a", marked), Kind::Rebuild { resume: Some(session.id) });
    assert_ne!(bench.sessions[&name("a")].id, session.id);
}

#[test]
fn s_a_sessions_acks_are_never_counted() {
    let mut bench = Bench::new(50, 100, &["a", "b", "c"]);
    assert!(matches!(bench.kind("a", prefix(60)), Kind::CatchUp { .. }));
    assert_eq!(bench.kind("b", empty()), REBUILD);
    assert!(matches!(bench.kind("c", prefix(95)), Kind::KeepUp { .. }));
    for who in ["a", "b"] {
        let pinned = Command::Pin { name: name(who), from: v(81) };
        assert_eq!(bench.ack(who, 80), [pinned], "moves the pin");
        assert!(!bench.counts(who));
        let acked = bench.ack(who, 100);
        assert!(matches!(&acked[..], [Command::Pin { .. }, ..]), "{acked:?}");
        assert!(!bench.counts(who));
        let shown = bench.shown(who);
        assert!(matches!(shown, Projection::CatchingUp(_) | Projection::Rebuilding(_)));
    }
    assert!(bench.counts("c"), "the ordinary stream goes on");
}

/// Commit policies see the others as before.
#[test]
fn s_commit_policies_while_one_restores_count_the_others() {
    let mut bench = Bench::new(50, 100, &["a", "b", "c"]);
    bench.stream("a", 100);
    bench.stream("b", 100);
    assert_eq!(bench.kind("c", empty()), REBUILD);
    for (who, counts) in [("a", true), ("b", true), ("c", false)] {
        assert_eq!(bench.counts(who), counts, "{who}");
    }
    bench.progress("c", 1, true, 100);
    bench.completed("c", 100);
    assert!(bench.counts("c"));
}

#[test]
fn s_wiped_directory_with_the_same_name_voids_acks_and_has_no_vote() {
    let mut bench = Bench::new(50, 100, &["a"]);
    bench.stream("a", 100);
    let late = bench.ack_event("a", 101);
    assert!(cancelled_and_asked(&bench.up("a", 2)));
    let wiped = Facts { incarnation: inc(2), ..empty() };
    bench.ignores(Ignored::OtherIncarnation, &late);
    bench.ignores(
        Ignored::OtherIncarnation,
        &Event::Facts { name: name("a"), nonce: bench.nonces[&name("a")], facts: prefix(100) },
    );
    assert_eq!(bench.kind("a", wiped), REBUILD);
    bench.ignores(Ignored::OtherIncarnation, &late);
    bench.progress("a", 1, true, 100);
    bench.completed("a", 100);
    let counts = |bench: &Bench| [1, 2].map(|of| bench.engine.counts(&name("a"), inc(of)));
    assert_eq!(counts(&bench), [false, false], "the vote is the old directory's");
    let members = [(name("a"), Some(inc(2)))].into();
    assert_eq!(bench.feed(&Event::Assigned { era: era(5), members }), []);
    assert_eq!(counts(&bench), [false, true], "promoted");
}

#[test]
fn s_a_replica_without_a_vote_recovers_and_never_counts() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let members = [(name("a"), None)].into();
    bench.feed(&Event::Assigned { era: era(5), members });
    bench.stream("a", 100);
    assert!(!bench.counts("a"));
}

#[test]
fn s_what_an_incarnation_failed_at_is_no_evidence_about_the_next() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.begin("a", prefix(20));
    bench.failed("a", FailReason::LogRecycled);
    bench.up("a", 2);
    let wiped = Facts { incarnation: inc(2), ..empty() };
    assert_eq!(bench.kind("a", wiped), Kind::CatchUp { from: v(1), truncate_to: None });
}

#[test]
fn s_stalled_session_is_cancelled() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.begin("a", prefix(20));
    assert_eq!(bench.engine.next_deadline(), Some(secs(10)));
    assert_eq!(bench.tick(9), []);
    bench.progress("a", 0, false, 30);
    assert_eq!(bench.tick(18), [], "it moves");
    bench.progress("a", 0, false, 30);
    assert!(cancelled_and_asked(&bench.tick(19)), "that it talks is not enough");
    assert_eq!(bench.shown("a"), Projection::Degraded(Reason::Failed(FailReason::Stalled)));
}

#[test]
fn s_a_session_that_nobody_accepts_is_cancelled() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.facts("a", prefix(20));
    assert_eq!(bench.tick(4), []);
    assert!(cancelled_and_asked(&bench.tick(5)));
}

/// New entries stream in beside a base that nobody copies any more; or everything is there, and
/// the replica never says so.
#[test]
fn s_what_does_not_bring_the_end_nearer_is_a_stall() {
    let mut bench = Bench::new(50, 100, &["a"]);
    bench.begin("a", empty());
    for at in 1..10 {
        bench.progress("a", 0, false, 100 + at as i64);
        assert_eq!(bench.tick(at), []);
    }
    assert!(cancelled_and_asked(&bench.tick(10)));

    let mut bench = Bench::new(1, 100, &["a"]);
    bench.begin("a", prefix(95));
    bench.progress("a", 0, false, 100);
    for at in 1..10 {
        bench.progress("a", 0, false, 100 + at as i64);
        assert_eq!(bench.tick(at), []);
    }
    assert!(cancelled_and_asked(&bench.tick(10)));
}

#[test]
fn s_a_slow_copy_without_writes_is_no_stall() {
    let mut bench = Bench::new(50, 100, &["a"]);
    bench.begin("a", empty());
    for at in 1..100 {
        assert_eq!(bench.tick(at * 9), []);
        bench.progress("a", at, false, 0);
    }
}

#[test]
fn s_address_change_keeps_progress() {
    let mut bench = Bench::new(50, 100, &["a"]);
    bench.begin("a", empty());
    bench.progress("a", 5_000, false, 80);
    let before = (bench.shown("a"), bench.pin("a"));
    let old = Link(bench.links);
    assert_eq!(bench.up("a", 1), []);
    assert_eq!((bench.shown("a"), bench.pin("a")), before);
    // The connection from the old address ends afterwards.
    bench.ignores(Ignored::OldLink, &Event::PeerGone { name: name("a"), link: old });
    bench.progress("a", 6_000, true, 100);
    bench.completed("a", 100);
    assert_eq!(bench.shown("a"), Projection::Healthy);
}

#[test]
fn s_unanswered_questions_are_asked_again_with_another_nonce() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let mut seen = vec![bench.nonces[&name("a")]];
    for at in 1..20 {
        let commands = bench.tick(at);
        assert_eq!(is_asked(&commands), at % 2 == 0, "at {at}: {commands:?}");
        if at % 2 == 0 {
            assert!(!seen.contains(&bench.nonces[&name("a")]));
            seen.push(bench.nonces[&name("a")]);
        }
    }
    bench.gone("a");
    assert_eq!(bench.tick(100), [], "nobody is there to be asked");
    assert_eq!(bench.engine.next_deadline(), None);
}

#[test]
fn s_a_refused_replica_is_looked_at_again_only_when_something_is_new() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.facts("a", foreign(50, 40));
    assert_eq!(bench.tick(1_000), []);
    assert_eq!(bench.engine.next_deadline(), None);
    assert!(is_asked(&bench.up("a", 1)), "it connects again");
    bench.facts("a", foreign(50, 40));
    assert!(is_asked(&bench.assign(era(6), &["a"])), "another mastership");
}

#[test]
fn s_facts_that_nothing_can_be_decided_on_are_asked_again() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let nonce = bench.nonces[&name("a")];
    let answer = |facts| Event::Facts { name: name("a"), nonce, facts };
    let later = Facts { era: era(6), ..prefix(100) };
    bench.ignores(Ignored::LaterEra, &answer(later));
    bench.ignores(Ignored::Contradictory, &answer(Facts { durable: v(3), ..empty() }));
    bench.ignores(Ignored::Contradictory, &answer(diverged(11, 10, 0)));
    assert!(is_asked(&bench.tick(2)));

    let mut fresh = Bench::new(1, 100, &[]);
    fresh.assign(era(6), &["a"]);
    fresh.up("a", 1);
    let nonce = fresh.nonces[&name("a")];
    let early = Event::Facts { name: name("a"), nonce, facts: prefix(100) };
    fresh.ignores(Ignored::NoBounds, &early);
    fresh.bounds(1, 100);
    assert_eq!(fresh.kind("a", prefix(100)), Kind::KeepUp { from: v(101) });
}

/// What was evident of one master's log is not of another's.
#[test]
fn s_a_new_era_cancels_voids_evidence_and_asks() {
    let mut bench = Bench::new(1, 100, &["a", "b"]);
    bench.begin("a", prefix(20));
    bench.failed("a", FailReason::LogRecycled);
    bench.begin("b", prefix(20));
    let commands = bench.assign(era(6), &["a", "b"]);
    let [ask, rest @ ..] = &commands[..] else { panic!("{commands:?}") };
    assert!(matches!(ask, Command::AskFacts { .. }) && cancelled_and_asked(rest));
    bench.bounds(1, 100);
    assert_eq!(bench.kind("a", prefix(20)), Kind::CatchUp { from: v(21), truncate_to: None });
}

#[test]
fn s_full_disk_rests_and_is_no_reason_to_rebuild() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let mut now = 0;
    for rest in [1, 2, 4, 8, 8, 8] {
        bench.begin("a", prefix(20));
        assert!(unpinned_and_asked(&bench.failed("a", FailReason::NoSpace)));
        assert_eq!(bench.facts("a", prefix(20)), []);
        let full = Reason::Failed(FailReason::NoSpace);
        assert_eq!(bench.shown("a"), Projection::Degraded(full), "shown");
        assert_eq!(bench.engine.next_deadline(), Some(secs(now + rest)));
        now += rest;
        assert!(is_asked(&bench.tick(now)));
    }
    assert_eq!(bench.kind("a", prefix(20)), Kind::CatchUp { from: v(21), truncate_to: None });
}

#[test]
fn s_a_removed_member_loses_its_state_and_pin_at_once() {
    let mut bench = Bench::new(50, 100, &["a", "b"]);
    bench.stream("b", 100);
    bench.begin("a", empty());
    assert_eq!(bench.engine.retention_floor(), Some(v(50)));
    let late = all_events(&bench);
    let ends = bench.assign(era(5), &["b"]);
    assert!(matches!(&ends[..], [Command::Cancel { .. }, Command::Unpin { .. }]), "{ends:?}");
    assert_eq!(bench.engine.retention_floor(), Some(v(101)));
    assert_eq!(bench.engine.projection(&name("a")), None, "it holds no mode of anything");
    for event in &late {
        bench.ignores(Ignored::UnknownMember, event);
    }
    // Back again, it is a stranger.
    assert_eq!(bench.assign(era(5), &["a", "b"]), []);
    assert_eq!(bench.shown("a"), Projection::Absent);
    for event in &late {
        bench.ignores(Ignored::NoSession, event);
    }
}

/// What one replica holds says nothing of another.
#[test]
fn hole_durable_is_not_a_maximum_over_replicas() {
    let mut bench = Bench::new(1, 100, &["a", "b"]);
    bench.stream("a", 100);
    bench.begin("b", prefix(20));
    bench.bounds(1, 200);
    bench.ack("a", 200);
    assert_eq!((bench.pin("a"), bench.pin("b")), (Some(201), Some(21)));
    let completed = bench.event("b", SessionEvent::Completed { durable: v(20) });
    bench.ignores(Ignored::EarlyCompletion, &completed);
}

#[test]
fn events_of_the_past_do_not_bring_it_back() {
    let mut bench = Bench::new(1, 100, &["a"]);
    bench.tick(7);
    bench.ignores(Ignored::TimeBack, &Event::Tick { now: secs(6) });
    let (link, incarnation) = (Link(bench.links), inc(2));
    bench.ignores(Ignored::OldLink, &Event::PeerUp { name: name("a"), link, incarnation });
    bench.bounds(50, 90);
    bench.bounds(40, 100);
    assert_eq!(bench.kind("a", prefix(48)), REBUILD);
    bench.gone("a");
    bench.ignores(Ignored::OldLink, &Event::PeerUp { name: name("a"), link, incarnation: inc(1) });
}
