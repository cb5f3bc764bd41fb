//! The D rows of the test matrix.

use super::*;

const NONE: Evidence =
    Evidence { failed_catch_ups: 0, failed_others: 0, log_lost: false, last: None };

fn log(first: i64, last: i64) -> Bounds {
    Bounds { first: v(first), last: v(last), dtvlsn: NULL_VLSN }
}

fn of(facts: Facts, bounds: Bounds) -> Decision {
    decide(&facts, bounds, NONE, LIMITS.thresholds)
}

fn keep_up(from: i64) -> Decision {
    Decision::Start(Kind::KeepUp { from: v(from) })
}

fn catch_up(from: i64) -> Decision {
    Decision::Start(Kind::CatchUp { from: v(from), truncate_to: None })
}

fn truncate(to: i64) -> Decision {
    Decision::Start(Kind::CatchUp { from: v(to + 1), truncate_to: Some(v(to)) })
}

const REBUILDS: Decision = Decision::Start(REBUILD);

/// Each row, and each that it comes before.
#[test]
fn d_the_first_row_that_matches_decides() {
    let marker = Some(RecoveryId(7));
    let resumed = Decision::Start(Kind::Rebuild { resume: marker });
    let sticky = Evidence { log_lost: true, ..NONE };
    let refused =
        |matchpoint, durable| Decision::Refuse(Refusal::BelowDurable { matchpoint, durable });
    let foreign_at = |durable| Decision::Refuse(Refusal::Foreign { durable: v(durable) });
    let marked = |facts| Facts { restore_marker: marker, ..facts };
    let rows = [
        (1, marked(prefix(100)), log(1, 100), NONE, resumed),
        (1, marked(empty()), log(1, 100), sticky, resumed),
        (1, marked(diverged(40, 50, 40)), log(1, 100), NONE, resumed),
        (5, marked(diverged(10, 50, 40)), log(1, 100), sticky, refused(v(10), v(40))),
        (4, marked(foreign(20, 10)), log(10, 100), sticky, foreign_at(10)),
        (2, prefix(100), log(1, 100), sticky, REBUILDS),
        (2, empty(), log(1, 100), sticky, REBUILDS),
        (3, empty(), log(1, 100), NONE, catch_up(1)),
        (3, empty(), log(0, 0), NONE, catch_up(1)),
        (3, empty(), log(2, 100), NONE, REBUILDS),
        (4, foreign(20, 9), log(10, 100), NONE, REBUILDS),
        (4, foreign(20, 10), log(10, 100), NONE, foreign_at(10)),
        (4, foreign(20, 0), log(1, 100), NONE, REBUILDS),
        (5, diverged(10, 50, 11), log(1, 100), NONE, refused(v(10), v(11))),
        (5, diverged(10, 50, 11), log(40, 100), NONE, refused(v(10), v(11))),
        (5, diverged(10, 50, 90), log(1, 100), NONE, refused(v(10), v(50))),
        (6, diverged(10, 50, 10), log(12, 100), NONE, REBUILDS),
        (7, prefix(90), log(1, 100), NONE, keep_up(91)),
        (8, prefix(89), log(1, 100), NONE, catch_up(90)),
        (8, diverged(99, 100, 99), log(1, 100), NONE, truncate(99)),
    ];
    for (rule, facts, bounds, evidence, expected) in rows {
        let decided = decide(&facts, bounds, evidence, LIMITS.thresholds);
        assert_eq!(decided, expected, "rule {rule}: {facts:?} {bounds:?}");
    }
}

#[test]
fn d_equal_is_keep_up() {
    assert_eq!(of(prefix(100), log(1, 100)), keep_up(101));
    assert_eq!(of(prefix(100), log(101, 100)), keep_up(101), "the master has its anchor only");
}

#[test]
fn d_lag_at_the_limit_keeps_up_and_above_it_catches_up() {
    assert_eq!(of(prefix(100), log(1, 110)), keep_up(101));
    assert_eq!(of(prefix(100), log(1, 111)), catch_up(101));
}

#[test]
fn d_r_plus_1_equals_s_is_catch_up() {
    assert_eq!(of(prefix(100), log(101, 1_000)), catch_up(101));
}

#[test]
fn d_r_plus_2_equals_s_is_rebuild() {
    assert_eq!(of(prefix(100), log(102, 1_000)), REBUILDS);
}

#[test]
fn d_fresh_with_full_log_catches_up_from_1() {
    assert_eq!(of(empty(), log(1, 1_000)), catch_up(1));
}

#[test]
fn d_fresh_with_pruned_log_is_rebuild() {
    assert_eq!(of(empty(), log(2, 1_000)), REBUILDS);
}

#[test]
fn d_longer_diverged_log_is_never_keep_up() {
    for durable in 41..60 {
        assert_eq!(of(diverged(35, durable, 30), log(1, 40)), truncate(35));
    }
}

#[test]
fn d_same_length_other_fingerprint_is_cut() {
    assert_eq!(of(diverged(99, 100, 0), log(1, 100)), truncate(99));
}

#[test]
fn d_an_unfinished_transaction_at_the_replicas_end_is_no_tail() {
    let agreement = Agreement::Matchpoint { matchpoint: v(95), to_end: true };
    let open = Facts { agreement, ..prefix(100) };
    assert_eq!(of(open, log(1, 100)), keep_up(101));
    assert_eq!(of(open, log(1, 500)), catch_up(101));
    // 500 is durable on a majority; of that this log holds a part, and disagrees with none of it.
    let heard = Facts { known_dtvlsn: v(500), ..open };
    assert_eq!(of(heard, log(1, 500)), catch_up(101));
}

#[test]
fn d_what_is_durable_beyond_the_replicas_end_is_no_reason_to_refuse() {
    assert_eq!(of(foreign(20, 500), log(300, 600)), REBUILDS, "it ends long before S");
    let heard = Facts { known_dtvlsn: v(500), ..prefix(20) };
    assert_eq!(of(heard, log(1, 600)), catch_up(21));
}

/// Every small replica and master.
#[test]
fn d_no_decision_cuts_what_is_durable_or_sends_what_is_gone() {
    let mut decided = 0;
    for first in 1..6 {
        for (last, durable) in (first - 1..7).flat_map(|last| (1..8).map(move |d| (last, d))) {
            for (known, m) in (0..9).flat_map(|known| (0..=durable).map(move |m| (known, m))) {
                for to_end in [false, true] {
                    let agreement = Agreement::Matchpoint { matchpoint: v(m), to_end };
                    let facts = Facts { known_dtvlsn: v(known), agreement, ..prefix(durable) };
                    let agreed = if to_end { durable } else { m };
                    decided += 1;
                    match of(facts, log(first, last)) {
                        Decision::Start(Kind::KeepUp { from }) => {
                            assert_eq!(from, v(durable + 1), "{facts:?}: a tail is kept");
                            assert!(agreed == durable && first <= durable + 1, "{facts:?}");
                        }
                        Decision::Start(Kind::CatchUp { from, truncate_to }) => {
                            assert_eq!(from, v(agreed + 1), "{facts:?}");
                            assert_eq!(truncate_to, (agreed < durable).then_some(v(agreed)));
                            assert!(first <= agreed + 1 && agreed >= known.min(durable));
                        }
                        Decision::Start(Kind::Rebuild { .. }) => assert!(agreed + 1 < first),
                        Decision::Refuse(_) => assert!(agreed < known && agreed < durable),
                    }
                }
            }
        }
    }
    assert!(decided > 10_000);
}

#[test]
fn d_m_below_known_dtvlsn_is_refused_and_data_untouched() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let refusal = Refusal::BelowDurable { matchpoint: v(10), durable: v(40) };
    let alarm = Command::Alarm { name: name("a"), what: Alarm::Refused(refusal) };
    assert_eq!(bench.facts("a", diverged(10, 50, 40)), [alarm]);
    assert_eq!(bench.shown("a"), Projection::Refused(refusal));
    assert_eq!(bench.pin("a"), None);
}

#[test]
fn d_foreign_log_is_refused() {
    let mut bench = Bench::new(1, 100, &["a"]);
    let refusal = Refusal::Foreign { durable: v(40) };
    let alarm = Command::Alarm { name: name("a"), what: Alarm::Refused(refusal) };
    assert_eq!(bench.facts("a", foreign(50, 40)), [alarm]);
}

/// What a replica is told, its numbers aside: those of all replicas come out of one counter.
fn told(commands: Vec<Command>) -> BTreeMap<Name, Vec<String>> {
    let mut by_name: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    for mut command in commands {
        if let Command::Start { session, .. } = &mut command {
            session.id = RecoveryId(0);
        }
        by_name.entry(command.name().clone()).or_default().push(format!("{command:?}"));
    }
    by_name
}

#[test]
fn d_facts_in_every_order_make_the_same_final_commands() {
    let answers =
        [("a", prefix(95)), ("b", empty()), ("c", diverged(10, 50, 40)), ("d", foreign(20, 0))];
    let orders = (0..4).flat_map(|i| (0..4).flat_map(move |j| (0..4).map(move |k| [i, j, k])));
    let orders = orders.filter(|[i, j, k]| i != j && j != k && i != k);
    let told_in = |[i, j, k]: [usize; 3]| {
        let mut bench = Bench::new(1, 100, &["a", "b", "c", "d"]);
        let order = [i, j, k, 6 - i - j - k];
        told(order.iter().flat_map(|at| bench.facts(answers[*at].0, answers[*at].1)).collect())
    };
    let expected = told_in([0, 1, 2]);
    assert_eq!(expected.len(), 4);
    assert_eq!(orders.clone().count(), 24);
    for order in orders {
        assert_eq!(told_in(order), expected, "order {order:?}");
    }
}
