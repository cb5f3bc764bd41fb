//! The P rows of the test matrix.

use super::*;

#[test]
fn p_pin_follows_durable_not_applied() {
    let mut bench = Bench::new(50, 100, &["a"]);
    bench.begin("a", empty());
    assert_eq!(bench.pin("a"), Some(50));
    bench.progress("a", 1_000_000, false, 0);
    assert_eq!(bench.pin("a"), Some(50), "a copy makes nothing durable in the log");
    bench.progress("a", 1_000_000, true, 70);
    assert_eq!(bench.pin("a"), Some(71));
    bench.progress("a", 1_000_000, true, 60);
    assert_eq!(bench.pin("a"), Some(71), "never back");
    bench.progress("a", 1_000_000, true, 100);
    bench.completed("a", 100);
    assert_eq!(bench.pin("a"), Some(101));
    bench.ack("a", 120);
    bench.ack("a", 110);
    assert_eq!(bench.pin("a"), Some(121));
}

#[test]
fn p_facts_never_move_a_pin() {
    let mut bench = Bench::new(1, 100, &["a", "b"]);
    bench.stream("b", 100);
    assert_eq!(bench.pin("a"), None, "who is asked holds nothing");
    let nonce = bench.nonces[&name("a")];
    // It holds 90 entries, of which 30 stay.
    bench.facts("a", diverged(30, 90, 30));
    assert_eq!(bench.pin("a"), Some(31));
    for facts in [prefix(100), diverged(10, 60, 0), empty()] {
        bench.ignores(Ignored::OldNonce, &Event::Facts { name: name("a"), nonce, facts });
    }
    assert_eq!((bench.pin("a"), bench.pin("b")), (Some(31), Some(101)));
}

#[test]
fn p_floor_is_the_minimum() {
    let mut bench = Bench::new(10, 100, &["a", "b", "c", "d"]);
    assert_eq!(bench.engine.retention_floor(), None);
    bench.stream("a", 100);
    bench.begin("b", prefix(40));
    bench.begin("c", empty());
    assert_eq!(bench.engine.retention_floor(), Some(v(10)));
    bench.progress("c", 1, false, 60);
    assert_eq!(bench.engine.retention_floor(), Some(v(41)));
    bench.failed("b", FailReason::Corrupt);
    assert_eq!(bench.engine.retention_floor(), Some(v(61)));
    bench.gone("c");
    assert_eq!(bench.pin("c"), None);
}

#[test]
fn p_budget_is_pin_lost() {
    let mut bench = Bench::new(1, 100, &["a", "b"]);
    let session = bench.begin("a", prefix(20)).id;
    let dropped = Event::PinDropped { name: name("a"), session };
    assert!(cancelled_and_asked(&bench.feed(&dropped)));
    assert_eq!(bench.shown("a"), Projection::Degraded(Reason::Failed(FailReason::PinLost)));
    assert_eq!(bench.pin("a"), None);
    bench.ignores(Ignored::NoSession, &dropped);
    assert_eq!(bench.kind("a", prefix(100)), REBUILD, "sticky");
    bench.ignores(Ignored::OtherSession, &dropped);

    bench.stream("b", 100);
    let session = bench.sessions[&name("b")].id;
    let dropped = Event::PinDropped { name: name("b"), session };
    assert!(cancelled_and_asked(&bench.feed(&dropped)), "who streams has a budget too");
    assert!(!bench.counts("b"));
}

/// 10 GB at 10 MB a second, 100 entries a second, a window of 1,000 entries.
#[test]
fn p_slow_copy_with_live_writes_keeps_the_masters_log_below_its_window() {
    let mut bench = Bench::new(5_000, 9_000, &["a"]);
    bench.begin("a", empty());
    let mut last = 9_000;
    bench.progress("a", 0, false, last);
    for second in 1..=1_000 {
        last += 100;
        bench.bounds(5_000, last);
        assert_eq!(bench.tick(second).len(), 0);
        bench.progress("a", second * 10_000_000, second == 1_000, last - 200);
        let floor = bench.engine.retention_floor().unwrap();
        assert!(v(last).since(floor) < 1_000, "{floor} is kept at {last}");
    }
    bench.completed("a", last);
    assert_eq!(bench.shown("a"), Projection::Healthy);
}

#[test]
fn p_the_pin_goes_before_the_session() {
    let mut bench = Bench::new(50, 100, &["a"]);
    let commands = bench.facts("a", empty());
    let session = bench.sessions[&name("a")];
    let expected = [
        Command::Pin { name: name("a"), from: v(50) },
        Command::Start { name: name("a"), session },
    ];
    assert_eq!(commands, expected, "a rebuild has a pin");
    assert_eq!(session.target, v(100));
}
