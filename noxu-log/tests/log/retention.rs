//! Retention: what holds the front of the log, who is told when it goes, and that it goes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use noxu_log::env::{Env, Fault, FaultEnv, MemoryEnv, OpenMode};
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_log::{
    Budget, EntryFlags, EntryKind, HeldBy, Holder, HolderKind, Log, LogConfig, LogError, NewEntry,
    Pin, RetentionConfig, WallClock,
};
use noxu_util::{NULL_VLSN, Term, Vlsn};
use proptest::prelude::*;

use crate::rig::{SEGMENT_BYTES, dir, group, quiet, segments, vlsn_of};

/// A wall clock that stands still unless it is moved.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn move_on(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Keeps nothing that no pin holds, and never runs out of a budget, unless changed.
fn eager(hands: &Hands) -> RetentionConfig {
    let hands = hands.clone();
    RetentionConfig {
        keep_bytes: 0,
        keep_age: Duration::ZERO,
        byte_budget: None,
        age_budget: None,
        clock: WallClock::new(move || hands.now_ms()),
    }
}

fn open_with(env: &Arc<dyn Env>, retention: RetentionConfig) -> Log {
    let config = LogConfig { retention, ..quiet() };
    let (log, _) = Log::open(Arc::clone(env), dir(), config).unwrap();
    log.found(group()).unwrap();
    log
}

fn fresh(retention: RetentionConfig) -> (Arc<dyn Env>, Log) {
    let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
    let log = open_with(&env, retention);
    (env, log)
}

/// Appends one transaction of entries with bodies of these lengths, its commit stamped `ms`.
fn append(log: &Log, ms: u64, lengths: &[usize]) -> Vlsn {
    let bodies: Vec<Vec<u8>> = lengths
        .iter()
        .map(|len| {
            let mut body = ms.to_le_bytes().to_vec();
            body.resize(8.max(*len), 7);
            body
        })
        .collect();
    let last = bodies.len() - 1;
    let entries: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(at, body)| {
            let flags = if at == last { EntryFlags::COMMIT } else { EntryFlags::NONE };
            NewEntry::new(EntryKind(16), flags, body)
        })
        .collect();
    log.append(Term::new(1), &entries).unwrap().last
}

/// Appends so many entries, four of which fill a segment, and seals what can be.
fn load(log: &Log, entries: usize, ms: u64) -> Vlsn {
    for _ in 0..entries {
        append(log, ms, &[900]);
    }
    let last = log.sync_now().unwrap();
    log.seal_through(last).unwrap();
    last
}

fn feeder(name: &str) -> Holder {
    Holder::new(HolderKind::Stream, name)
}

fn backup(name: &str) -> Holder {
    Holder::new(HolderKind::Backup, name)
}

fn anchor(log: &Log) -> Vlsn {
    log.positions().anchor.vlsn
}

/// Waits for what the keeper thread does by itself.
fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !met() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nothing_goes_before_a_checkpoint_and_nothing_above_it_ever() {
    let (_, log) = fresh(RetentionConfig { byte_budget: Some(1), ..eager(&Hands::default()) });
    let last = load(&log, 40, 0);
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    let report = log.retention();
    assert_eq!(report.held_by, HeldBy::Checkpoint { through: NULL_VLSN });
    assert!(report.bytes > 9 * u64::from(SEGMENT_BYTES), "{report:?}");
    let sealed = log.sealed_segments();
    // A budget that has long run out drops nothing above the checkpoint.
    log.set_checkpoint(sealed[2].last.prev());
    assert_eq!(log.retain().unwrap(), sealed[1].last);
    log.set_checkpoint(sealed[0].last);
    assert_eq!(log.retain().unwrap(), sealed[1].last, "a checkpoint never moves back");
    log.set_checkpoint(last);
    assert_eq!(log.retain().unwrap(), sealed.last().unwrap().last);
    assert_eq!(log.retention().held_by, HeldBy::Unsealed);
}

#[test]
fn what_is_not_settled_stays_whatever_the_checkpoint_says() {
    let (env, log) = fresh(eager(&Hands::default()));
    let last = load(&log, 20, 0);
    log.close().unwrap();
    drop(log);
    let log = open_with(&env, eager(&Hands::default()));
    log.set_checkpoint(last);
    assert_eq!(log.retain().unwrap(), NULL_VLSN, "nothing is known to be settled after an open");
    assert_eq!(log.retention().held_by, HeldBy::Settled { through: NULL_VLSN });
    let sealed = log.sealed_segments();
    log.settle(sealed[1].last);
    eventually("the keeper drops what is settled", || anchor(&log) == sealed[1].last);
}

#[test]
fn the_keeper_drops_the_front_as_soon_as_the_pin_in_the_way_has_left_it() {
    let (_, log) = fresh(eager(&Hands::default()));
    let slow = log.pin(backup("slow"), vlsn_of(2)).unwrap();
    let fast = log.pin(backup("fast"), vlsn_of(1)).unwrap();
    let last = load(&log, 40, 0);
    log.set_checkpoint(last);
    let sealed = log.sealed_segments();
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    assert!(
        matches!(log.retention().held_by, HeldBy::Pin { holder, from } if holder == backup("fast") && from == vlsn_of(1))
    );
    fast.advance(last.next());
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    slow.advance(sealed[0].last);
    assert_eq!(log.retain().unwrap(), NULL_VLSN, "it still needs the last entry of the segment");
    slow.advance(sealed[0].last.next());
    eventually("the first segment goes", || anchor(&log) == sealed[0].last);
    slow.advance(sealed[4].last.next());
    slow.advance(vlsn_of(3)); // never back
    assert_eq!(slow.from(), sealed[4].last.next());
    eventually("more segments go", || anchor(&log) == sealed[4].last);
    drop(slow);
    eventually("the rest goes", || anchor(&log) == sealed.last().unwrap().last);
    assert_eq!((fast.lost(), log.retention().lost_places), (None, 0));
}

#[test]
fn a_place_below_the_front_is_refused() {
    let (_, log) = fresh(eager(&Hands::default()));
    let last = load(&log, 20, 0);
    log.set_checkpoint(last);
    let gone = log.retain().unwrap();
    let refused = log.pin(feeder("n2"), gone).unwrap_err();
    assert!(
        matches!(refused, LogError::Gap { requested, first } if requested == gone && first == gone.next()),
        "{refused}"
    );
    assert_eq!(log.pin(feeder("n2"), gone.next()).unwrap().from(), gone.next());
    assert_eq!(log.pin_front(backup("b")).unwrap().from(), gone.next());
}

#[test]
fn beyond_the_byte_budget_a_holder_is_told_once_and_its_reads_give_gap() {
    let budget = 5 * u64::from(SEGMENT_BYTES);
    let config = RetentionConfig { byte_budget: Some(budget), ..eager(&Hands::default()) };
    let (_, log) = fresh(config);
    let (told, telling) = std::sync::mpsc::channel();
    let pin =
        log.pin_with(feeder("n2"), vlsn_of(3), move |lost| told.send(*lost).unwrap()).unwrap();
    let last = load(&log, 16, 0);
    log.set_checkpoint(last);
    assert_eq!(log.retain().unwrap(), NULL_VLSN, "the pin holds within the budget");
    assert!(log.retention().bytes <= budget);
    pin.check().unwrap();
    let last = load(&log, 16, 0);
    log.set_checkpoint(last);
    let anchor = log.retain().unwrap();
    assert!(log.retention().bytes <= budget, "{:?}", log.retention());
    let lost = telling.recv_timeout(Duration::from_secs(20)).unwrap();
    // The front may have passed it in more than one step.
    assert!(lost.at == vlsn_of(3) && lost.anchor <= anchor && lost.anchor >= lost.at, "{lost:?}");
    assert_eq!((lost.budget, pin.lost()), (Budget::Bytes, Some(lost)));
    assert!(matches!(pin.check(), Err(LogError::LostPlace { at, .. }) if at == vlsn_of(3)));
    assert!(matches!(log.read(pin.from(), 100), Err(LogError::Gap { .. })));
    let report = log.retention();
    assert_eq!(report.lost_places, 1);
    assert_eq!(report.holders[0].lost, Some(lost));
    load(&log, 30, 0);
    log.set_checkpoint(log.positions().last);
    log.retain().unwrap();
    assert!(telling.try_recv().is_err(), "told twice");
    drop(pin);
    assert_eq!(log.retention().holders, []);
}

#[test]
fn age_drops_what_the_masters_clock_says_is_old() {
    let hands = Hands::default();
    hands.move_on(1_000_000);
    let config = RetentionConfig {
        keep_age: Duration::from_secs(10),
        age_budget: Some(Duration::from_mins(1)),
        ..eager(&hands)
    };
    let (_, log) = fresh(config);
    load(&log, 8, hands.now_ms());
    hands.move_on(5_000);
    let last = load(&log, 8, hands.now_ms());
    log.set_checkpoint(last);
    let sealed = log.sealed_segments();
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    let report = log.retention();
    assert_eq!((report.held_by, report.first_ms), (HeldBy::KeepAge, Some(1_000_000)));
    hands.move_on(5_001);
    assert_eq!(log.retain().unwrap(), sealed[1].last, "two segments are older than ten seconds");
    let pin = log.pin_front(backup("b")).unwrap();
    hands.move_on(54_000);
    assert_eq!(log.retain().unwrap(), sealed[1].last, "a pin holds what is old");
    hands.move_on(1_000);
    assert_eq!(log.retain().unwrap(), sealed[2].last, "until its budget runs out");
    assert_eq!(pin.lost().map(|lost| lost.budget), Some(Budget::Age));
}

#[test]
fn a_segment_that_comes_of_age_goes_though_nothing_happens() {
    let system = WallClock::default();
    let config = RetentionConfig {
        keep_age: Duration::from_millis(300),
        clock: system.clone(),
        ..eager(&Hands::default())
    };
    let (_, log) = fresh(config);
    let last = load(&log, 20, system.now_ms());
    log.set_checkpoint(last);
    let all = log.sealed_segments().last().unwrap().last;
    eventually("the log is dropped when it is old", || anchor(&log) == all);
    assert!(system.now_ms() >= log.retention().first_ms.unwrap_or_default());
}

#[test]
fn what_nobody_asks_for_is_kept_as_far_as_the_configuration_says() {
    let keep = 4 * u64::from(SEGMENT_BYTES);
    let (_, log) = fresh(RetentionConfig { keep_bytes: keep, ..eager(&Hands::default()) });
    let last = load(&log, 60, 0);
    log.set_checkpoint(last);
    log.retain().unwrap();
    let report = log.retention();
    assert_eq!(report.held_by, HeldBy::KeepBytes);
    assert!(report.bytes >= keep && report.bytes < keep + u64::from(SEGMENT_BYTES), "{report:?}");
    // An order goes further, but not past a pin.
    let pin = log.pin(backup("b"), report.first.next()).unwrap();
    assert_eq!(log.drop_through(last).unwrap(), report.first.prev());
    drop(pin);
    assert_eq!(
        log.drop_through(last).unwrap(),
        log.sealed_segments().first().map_or_else(|| anchor(&log), |s| s.first.prev())
    );
    assert_eq!(log.retention().held_by, HeldBy::Unsealed);
}

#[test]
fn who_is_away_keeps_its_place_for_a_while_and_within_the_budget() {
    let (_, log) = fresh(RetentionConfig {
        byte_budget: Some(8 * u64::from(SEGMENT_BYTES)),
        ..eager(&Hands::default())
    });
    let hold = |name: &str, from, grace| {
        let mut pin = log.pin(feeder(name), from).unwrap();
        pin.set_grace(grace);
        pin
    };
    drop(hold("n2", vlsn_of(1), Duration::from_hours(1)));
    let last = load(&log, 16, 0);
    log.set_checkpoint(last);
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    let report = log.retention();
    assert!(report.holders[0].is_away, "{report:?}");
    // It comes back: its new place replaces the old one.
    let sealed = log.sealed_segments();
    let back = hold("n2", sealed[1].first, Duration::from_millis(50));
    assert_eq!(log.retention().holders.len(), 1);
    assert_eq!(log.retain().unwrap(), sealed[0].last);
    // A second connection of it is there before the first one has ended.
    let again = hold("n2", sealed[2].first, Duration::from_millis(50));
    drop(back);
    eventually("the older place is not kept", || anchor(&log) == sealed[1].last);
    drop(again);
    eventually("its time runs out by itself", || anchor(&log) == sealed.last().unwrap().last);
    assert_eq!(log.retention().holders, []);

    // Somebody who is away loses the place without being told, and is counted.
    drop(hold("n3", log.positions().anchor.vlsn.next(), Duration::from_hours(1)));
    let last = load(&log, 60, 0);
    log.set_checkpoint(last);
    log.retain().unwrap();
    let report = log.retention();
    assert!(report.bytes <= 8 * u64::from(SEGMENT_BYTES), "{report:?}");
    assert_eq!((report.lost_places, report.holders.len()), (1, 0));

    // An operator need not wait for the time to run out.
    drop(hold("n4", log.positions().anchor.vlsn.next(), Duration::from_hours(1)));
    log.forget_absent();
    assert_eq!(log.retention().holders, []);
}

#[test]
fn a_feeder_keeps_the_sync_entry_that_its_replica_needs_to_sync_up() {
    let (_, log) = fresh(eager(&Hands::default()));
    append(&log, 0, &[900]);
    // A transaction over three segments; the replica has got half of it.
    append(&log, 0, &[900; 12]);
    let last = load(&log, 8, 0);
    log.set_checkpoint(last);
    let replica = log.pin(feeder("n2"), vlsn_of(8)).unwrap();
    assert_eq!(log.retain().unwrap(), NULL_VLSN);
    assert!(log.sync_at_or_before(replica.from().prev()).unwrap().is_some());
    // From the next whole segment on nothing more is kept than for anybody else.
    let third = log.sealed_segments()[3].clone();
    assert!(third.last > vlsn_of(13));
    replica.advance(third.last.next());
    assert_eq!(log.retain().unwrap(), third.last);
    let reader = log.pin(Holder::new(HolderKind::ChangeFeed, "c"), third.last.next()).unwrap();
    drop(replica);
    assert_eq!(log.retain().unwrap(), third.last);
    drop(reader);
}

#[test]
fn an_open_file_of_a_segment_that_is_dropped_reads_on() {
    let (env, log) = fresh(RetentionConfig { byte_budget: Some(1), ..eager(&Hands::default()) });
    let lease = log.pin_front(Holder::new(HolderKind::Restore, "n3")).unwrap();
    let last = load(&log, 20, 0);
    let path = log_dir(dir()).join(segment_name(1));
    let file = env.open(&path, OpenMode::Read).unwrap();
    let mut before = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut before, 0).unwrap();
    log.set_checkpoint(last);
    log.retain().unwrap();
    assert!(matches!(lease.check(), Err(LogError::LostPlace { .. })));
    assert!(!env.exists(&path).unwrap());
    let mut after = vec![0; before.len()];
    assert_eq!(file.read_at(&mut after, 0).unwrap(), before.len());
    assert!(before == after, "the open file changed");
}

#[test]
fn a_reader_in_the_way_of_a_drop_gets_the_entry_or_gap() {
    let hands = Hands::default();
    let (_, log) = fresh(RetentionConfig { byte_budget: Some(1), ..eager(&hands) });
    // Out of the tail, so that reads go to files.
    let last = load(&log, 400, 0);
    log.close().unwrap();
    let env = Arc::clone(log.env());
    drop(log);
    let log = open_with(&env, RetentionConfig { byte_budget: Some(1), ..eager(&hands) });
    log.settle(last);
    let sealed = log.sealed_segments();
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let log = &log;
            scope.spawn(move || {
                let mut next = vlsn_of(1);
                loop {
                    match log.read(next, 1 + reader * 2000) {
                        Ok(Some(run)) => {
                            assert_eq!(run.first, next);
                            next = run.last.next();
                        }
                        Ok(None) => break,
                        Err(LogError::Gap { requested, first }) => {
                            assert!(requested == next && first > next);
                            next = first;
                        }
                        Err(other) => panic!("at {next}: {other}"),
                    }
                }
            });
        }
        for segment in &sealed {
            log.set_checkpoint(segment.last);
            log.retain().unwrap();
        }
    });
    assert_eq!(anchor(&log), sealed.last().unwrap().last);
}

#[test]
fn the_anchor_keeps_the_newest_configuration_that_goes() {
    let (env, log) = fresh(eager(&Hands::default()));
    let configure = |body: &[u8]| {
        let entry = NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, body);
        log.append(Term::new(1), &[entry]).unwrap();
    };
    configure(b"first");
    load(&log, 5, 0);
    configure(b"second");
    load(&log, 5, 0);
    let second_goes = log.sealed_segments()[1].last;
    load(&log, 10, 0);
    configure(b"third");
    let last = load(&log, 5, 0);
    let config = |log: &Log| log.positions().anchor.group_config;
    log.set_checkpoint(log.sealed_segments()[0].last);
    log.retain().unwrap();
    assert_eq!(config(&log), b"first"[..]);
    log.set_checkpoint(second_goes);
    log.retain().unwrap();
    assert_eq!(config(&log), b"second"[..]);
    log.set_checkpoint(log.sealed_segments()[1].last);
    log.retain().unwrap();
    assert_eq!(config(&log), b"second"[..], "segments without one leave it as it is");
    log.close().unwrap();
    drop(log);
    let log = open_with(&env, eager(&Hands::default()));
    assert_eq!(config(&log), b"second"[..]);
    log.settle(last);
    log.set_checkpoint(last);
    log.retain().unwrap();
    assert_eq!(config(&log), b"third"[..]);
}

#[test]
fn a_checkpoint_is_asked_for_when_nothing_else_holds_the_front() {
    let (_, log) = fresh(eager(&Hands::default()));
    let wanted = Arc::new(AtomicU64::new(0));
    let asked = Arc::clone(&wanted);
    log.on_checkpoint_wanted(move |vlsn| {
        asked.fetch_max(vlsn.sequence() as u64, Ordering::SeqCst);
    });
    let pin = log.pin_front(backup("b")).unwrap();
    load(&log, 20, 0);
    log.retain().unwrap();
    assert_eq!(wanted.load(Ordering::SeqCst), 0, "the pin holds it anyway");
    drop(pin);
    let first = log.sealed_segments()[0].last.sequence() as u64;
    eventually("a checkpoint is wanted", || wanted.load(Ordering::SeqCst) == first);
}

#[test]
fn files_that_could_not_be_removed_go_with_the_next_drop() {
    let env = FaultEnv::new();
    let shared: Arc<dyn Env> = Arc::new(env.clone());
    let log = open_with(&shared, eager(&Hands::default()));
    load(&log, 40, 0);
    let sealed = log.sealed_segments();
    env.fail_next("remove", Fault::IO);
    let failed = log.drop_through(sealed[1].last).unwrap_err();
    assert!(matches!(failed, LogError::Io { action: "remove", .. }), "{failed}");
    assert_eq!(anchor(&log), sealed[1].last, "the front has moved all the same");
    assert!(matches!(log.read(vlsn_of(1), 1), Err(LogError::Gap { .. })));
    log.drop_through(sealed[2].last).unwrap();
    let first = format!("{:010}.nlog", sealed[3].number);
    assert_eq!(segments(&*shared).first(), Some(&first), "all files below the front are gone");
}

#[test]
fn the_report_says_who_is_how_far_behind() {
    let (_, log) = fresh(RetentionConfig { keep_bytes: 1 << 20, ..eager(&Hands::default()) });
    let last = load(&log, 40, 0);
    let far = log.pin(feeder("far"), vlsn_of(1)).unwrap();
    let near = log.pin(feeder("near"), last.next()).unwrap();
    let middle = log.pin(backup("middle"), vlsn_of(21)).unwrap();
    let report = log.retention();
    let behind: Vec<_> = report.holders.iter().map(|h| h.bytes_behind).collect();
    assert_eq!(behind[0], report.bytes);
    assert_eq!(behind[1], 0);
    let off = behind[2].abs_diff(report.bytes / 2);
    assert!(off < 1000, "{behind:?} of {}", report.bytes);
    assert_eq!(report.holders[2].holder.to_string(), "backup middle");
    assert_eq!(report.first, vlsn_of(1));
    assert_eq!(report.segments, log.sealed_segments().len() + 1);
    drop((far, near, middle));
}

// ---- the model

#[derive(Debug, Clone)]
enum Op {
    Append(Vec<usize>),
    /// Sync, and settle and seal all but so many entries.
    Settle {
        unsettled: i64,
    },
    /// A checkpoint of all but so many entries.
    Checkpoint {
        behind: i64,
    },
    /// A pin so many entries before the end.
    Pin {
        feeder: bool,
        behind: i64,
    },
    Advance {
        which: prop::sample::Index,
        by: i64,
    },
    Unpin {
        which: prop::sample::Index,
    },
    Clock {
        ms: u64,
    },
    Order {
        behind: i64,
    },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => prop::collection::vec(prop_oneof![8..300usize, 300..2500usize, 4100..5000usize], 1..5).prop_map(Op::Append),
        5 => (0..6i64).prop_map(|unsettled| Op::Settle { unsettled }),
        4 => (0..10i64).prop_map(|behind| Op::Checkpoint { behind }),
        2 => (any::<bool>(), 0..30i64).prop_map(|(feeder, behind)| Op::Pin { feeder, behind }),
        4 => (index(), 1..12i64).prop_map(|(which, by)| Op::Advance { which, by }),
        1 => index().prop_map(|which| Op::Unpin { which }),
        2 => (0..4_000u64).prop_map(|ms| Op::Clock { ms }),
        1 => (0..10i64).prop_map(|behind| Op::Order { behind }),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Debug, Clone)]
struct Limits {
    keep_bytes: u64,
    keep_age: u64,
    byte_budget: Option<u64>,
    age_budget: Option<u64>,
}

fn limits() -> impl Strategy<Value = Limits> {
    let bytes = || prop_oneof![Just(0u64), 4_000..40_000u64];
    let age = || prop_oneof![Just(0u64), 1_000..10_000u64];
    (bytes(), age(), prop::option::of(bytes()), prop::option::of(age())).prop_map(
        |(keep_bytes, keep_age, byte_budget, age_budget)| Limits {
            keep_bytes,
            keep_age,
            byte_budget,
            age_budget,
        },
    )
}

#[derive(Debug)]
struct ModelSegment {
    first: i64,
    last: i64,
    bytes: u64,
    sealed: bool,
}

struct ModelPin {
    feeder: bool,
    from: i64,
    lost: bool,
    told: Arc<AtomicUsize>,
    pin: Pin,
}

/// The same rules over plain vectors.
#[derive(Default)]
struct Model {
    /// The clock of each commit; none of other entries.
    entries: Vec<Option<u64>>,
    segments: Vec<ModelSegment>,
    anchor: i64,
    settled: i64,
    durable: i64,
    checkpoint: i64,
    pins: Vec<ModelPin>,
}

impl Model {
    fn last(&self) -> i64 {
        self.entries.len() as i64
    }

    fn append(&mut self, bytes: u64, clock: Option<u64>) {
        self.entries.push(clock);
        let vlsn = self.last();
        match self.segments.last_mut() {
            Some(segment)
                if !segment.sealed && segment.bytes + bytes <= u64::from(SEGMENT_BYTES) =>
            {
                segment.last = vlsn;
                segment.bytes += bytes;
            }
            _ => self.segments.push(ModelSegment {
                first: vlsn,
                last: vlsn,
                bytes: 64 + bytes,
                sealed: false,
            }),
        }
    }

    fn seal(&mut self) {
        for at in 1..self.segments.len() {
            let next = self.segments[at].first;
            if next <= self.settled && next <= self.durable {
                self.segments[at - 1].sealed = true;
            }
        }
    }

    /// When the segment was written: by its last commit, or as its successor.
    fn clock_of(&self, at: usize) -> Option<u64> {
        self.segments[at..].iter().take_while(|s| s.sealed).find_map(|s| {
            let entries = &self.entries[s.first as usize - 1..s.last as usize];
            entries.iter().rev().find_map(|clock| *clock).filter(|clock| *clock > 0)
        })
    }

    fn newest_commit_through(&self, vlsn: i64) -> i64 {
        (1..=vlsn).rev().find(|v| self.entries[*v as usize - 1].is_some()).unwrap_or(0)
    }

    fn is_pinned(&self, last: i64) -> bool {
        self.pins.iter().filter(|pin| !pin.lost).any(|pin| {
            // What a replica keeps of an unfinished transaction, in whole segments.
            let whole = self.segments.iter().filter(|s| s.last < pin.from).map(|s| s.last).max();
            let straddles = whole
                .is_some_and(|whole| self.newest_commit_through(whole).max(self.anchor) < last);
            pin.from <= last || (pin.feeder && straddles)
        })
    }

    /// Drops what goes; with an order, what that lets go.
    fn drop_front(&mut self, limits: &Limits, now: u64, order: Option<i64>) {
        while let Some(first) = self.segments.first() {
            let checkpoint = order.unwrap_or(self.checkpoint);
            let barrier = checkpoint.min(self.settled).min(self.durable);
            if !first.sealed || first.last > barrier {
                break;
            }
            let total: u64 = self.segments.iter().map(|s| s.bytes).sum();
            let age = self.clock_of(0).map(|clock| now - clock);
            let over = limits.byte_budget.is_some_and(|budget| total > budget)
                || limits.age_budget.is_some_and(|budget| age.is_some_and(|age| age > budget));
            let kept = total - first.bytes < limits.keep_bytes
                || (limits.keep_age > 0 && age.is_none_or(|age| age <= limits.keep_age));
            let stays = match order {
                None => !over && (kept || self.is_pinned(first.last)),
                Some(_) => self.is_pinned(first.last),
            };
            if stays {
                break;
            }
            self.anchor = first.last;
            self.segments.remove(0);
            // Who has lost its place holds nothing any more.
            for pin in &mut self.pins {
                pin.lost |= pin.from <= self.anchor;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_front_is_where_a_plain_model_has_it(
        limits in limits(),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let hands = Hands::default();
        hands.move_on(1_000);
        let config = RetentionConfig {
            keep_bytes: limits.keep_bytes,
            keep_age: Duration::from_millis(limits.keep_age),
            byte_budget: limits.byte_budget,
            age_budget: limits.age_budget.map(Duration::from_millis),
            ..eager(&hands)
        };
        let (env, mut log) = fresh(config.clone());
        let mut model = Model::default();
        for op in ops {
            let last = model.last();
            match &op {
                Op::Append(lengths) => {
                    append(&log, hands.now_ms(), lengths);
                    for (at, len) in lengths.iter().enumerate() {
                        let ends = at + 1 == lengths.len();
                        model.append(32 + 8.max(*len) as u64, ends.then(|| hands.now_ms()));
                    }
                }
                Op::Settle { unsettled } => {
                    log.sync_now().unwrap();
                    model.durable = last;
                    model.settled = model.settled.max(last - unsettled);
                    log.seal_through(vlsn_of(model.settled)).unwrap();
                    model.seal();
                }
                Op::Checkpoint { behind } => {
                    model.checkpoint = model.checkpoint.max(last - behind);
                    log.set_checkpoint(vlsn_of((last - behind).max(0)));
                }
                Op::Pin { feeder: is_feeder, behind } => {
                    let from = (last + 1 - behind).max(1);
                    let told = Arc::new(AtomicUsize::new(0));
                    let count = Arc::clone(&told);
                    let holder = if *is_feeder { feeder("f") } else { backup("b") };
                    let pin = log.pin_with(holder, vlsn_of(from), move |lost| {
                        assert!(lost.at <= lost.anchor);
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                    match pin {
                        Ok(pin) => {
                            prop_assert!(from > model.anchor);
                            model.pins.push(ModelPin { feeder: *is_feeder, from, lost: false, told, pin });
                        }
                        Err(LogError::Gap { .. }) => prop_assert!(from <= model.anchor),
                        Err(other) => panic!("{other}"),
                    }
                }
                Op::Advance { which, by } if !model.pins.is_empty() => {
                    let at = which.index(model.pins.len());
                    let pin = &mut model.pins[at];
                    if !pin.lost {
                        pin.from += by;
                    }
                    pin.pin.advance(vlsn_of(pin.from));
                }
                Op::Unpin { which } if !model.pins.is_empty() => {
                    let at = which.index(model.pins.len());
                    model.pins.remove(at);
                }
                Op::Advance { .. } | Op::Unpin { .. } => {}
                Op::Clock { ms } => hands.move_on(*ms),
                Op::Order { behind } => {
                    let through = (last - behind).max(0);
                    // What is due by itself goes first.
                    log.retain().unwrap();
                    model.drop_front(&limits, hands.now_ms(), None);
                    log.drop_through(vlsn_of(through)).unwrap();
                    model.drop_front(&limits, hands.now_ms(), Some(through));
                }
                Op::Reopen => {
                    log.close().unwrap();
                    drop(std::mem::take(&mut model.pins));
                    drop(log);
                    log = open_with(&env, config.clone());
                    model.durable = last;
                    model.settled = 0;
                    model.checkpoint = 0;
                }
            }
            let found = log.retain().unwrap();
            model.drop_front(&limits, hands.now_ms(), None);
            prop_assert_eq!(found, vlsn_of(model.anchor), "after {:?}", op);
            for pin in &model.pins {
                let told = pin.told.load(Ordering::SeqCst);
                prop_assert_eq!(pin.pin.lost().is_some(), pin.lost);
                if !pin.lost {
                    prop_assert_eq!(told, 0);
                    prop_assert!(pin.pin.from() == vlsn_of(pin.from));
                }
            }
            let report = log.retention();
            prop_assert_eq!(report.bytes, model.segments.iter().map(|s| s.bytes).sum::<u64>());
            prop_assert_eq!(report.segments, model.segments.len());
        }
        // The keeper may still be telling: it has done so once the log is closed.
        log.close().unwrap();
        for pin in &model.pins {
            prop_assert_eq!(pin.told.load(Ordering::SeqCst), usize::from(pin.lost));
        }
        drop(model);
        drop(log);
        let log = open_with(&env, config);
        let first = log.positions().anchor.vlsn.next();
        let mut next = first;
        while let Some(run) = log.read(next, 1 << 16).unwrap() {
            next = run.last.next();
        }
        prop_assert_eq!(next, log.positions().last.next());
    }
}
