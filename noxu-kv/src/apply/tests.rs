//! The applier over both tables: transactions, rollback, crash and replay.

use std::sync::atomic::AtomicI64;

use noxu_util::NULL_VLSN;
use proptest::prelude::*;

use super::*;
use crate::encode::encode;
use crate::table::lsm::LsmTable;
use crate::table::memory::{MemoryImage, MemoryTable};
use crate::value::table_key;

/// A DTVLSN set by hand, the commit floor it was asked to make durable, and the
/// checkpoint it was told of.
#[derive(Default)]
struct ByHand {
    dtvlsn: AtomicI64,
    floor: AtomicI64,
    checkpoint: AtomicI64,
}

impl Stability for Arc<ByHand> {
    fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.dtvlsn.load(Ordering::SeqCst))
    }

    fn raise_commit_floor(&self, floor: Vlsn) -> Result<()> {
        self.floor.fetch_max(floor.sequence(), Ordering::SeqCst);
        Ok(())
    }

    fn note_checkpoint(&self, vlsn: Vlsn) {
        self.checkpoint.fetch_max(vlsn.sequence(), Ordering::SeqCst);
    }
}

/// An entry with its body, as a log would keep it.
#[derive(Debug, Clone)]
struct Kept {
    kind: u8,
    commit: bool,
    body: Vec<u8>,
}

/// A log in memory.
#[derive(Debug, Clone, Default)]
struct FakeLog(Vec<Kept>);

impl FakeLog {
    fn term(&mut self) {
        self.0.push(Kept { kind: KIND_TERM, commit: false, body: vec![0; 8] });
    }

    /// A transaction in `parts` entries; `None` deletes.
    fn transaction(&mut self, parts: &[&[(&str, Option<&str>)]]) {
        for (n, part) in parts.iter().enumerate() {
            let commit = n + 1 == parts.len();
            let writes: Vec<_> = part.iter().map(|(k, v)| (table_key(k.as_bytes()), *v)).collect();
            let body =
                encode(writes.iter().map(|(k, v)| (&**k, v.map(str::as_bytes))), 1).remove(0);
            let body = if commit { body } else { body[8..].to_vec() };
            self.0.push(Kept { kind: KIND_WRITES, commit, body });
        }
    }

    fn put(&mut self, key: &str, value: &str) {
        self.transaction(&[&[(key, Some(value))]]);
    }

    fn last(&self) -> i64 {
        self.0.len() as i64
    }

    fn entry(&self, vlsn: i64) -> LogEntry<'_> {
        let kept = &self.0[vlsn as usize - 1];
        LogEntry {
            vlsn: Vlsn::new(vlsn),
            term: Term::new(1),
            fingerprint: Fingerprint::from_u64(vlsn as u64),
            kind: kept.kind,
            is_sync: kept.commit || kept.kind == KIND_TERM,
            is_commit: kept.commit,
            body: &kept.body,
        }
    }

    fn range(&self, from: i64, through: i64) -> impl Iterator<Item = LogEntry<'_>> {
        (from..=through).map(|vlsn| self.entry(vlsn))
    }
}

fn machine(table: Box<dyn Table>) -> (Machine, Arc<ByHand>) {
    let stability = Arc::new(ByHand::default());
    (Machine::new(table, Box::new(Arc::clone(&stability)), 1 << 20), stability)
}

fn memory_machine() -> (Machine, Arc<ByHand>) {
    machine(Box::new(MemoryTable::open(MemoryImage::default())))
}

fn roll_back(machine: &Machine, log: &FakeLog, matchpoint: i64) -> Result<()> {
    machine.roll_back_to(Vlsn::new(matchpoint), |from, sink| {
        // A few at a time, as a real log gives them, and more than was asked for.
        log.range(from.sequence(), (from.sequence() + 2).min(log.last())).try_for_each(sink)
    })
}

fn contents(machine: &Machine) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let snapshot = machine.view().open_snapshot(None).unwrap();
    let range = snapshot.range::<&[u8]>(..).unwrap();
    range.map(|item| item.map(|(k, v)| (text(&k), text(&v))).unwrap()).collect()
}

fn contents_of(log: &FakeLog, through: i64) -> Vec<(String, String)> {
    let (machine, _) = memory_machine();
    machine.apply(log.range(1, through)).unwrap();
    contents(&machine)
}

/// Single puts, a long transaction, deletions, an unfinished transaction ended by a Term.
fn mixed_log() -> FakeLog {
    let mut log = FakeLog::default();
    log.term();
    log.put("a", "1");
    log.put("b", "1");
    log.transaction(&[
        &[("a", Some("2")), ("c", Some("2"))],
        &[("b", None)],
        &[("d", Some("2"))],
        &[("a", Some("3"))],
    ]);
    log.put("e", "1");
    log.transaction(&[&[("lost", Some("x"))], &[("lost too", Some("x"))]]);
    log.0.last_mut().unwrap().commit = false;
    let part = log.0[log.0.len() - 2].clone();
    *log.0.last_mut().unwrap() = part;
    log.term();
    log.transaction(&[&[("c", None)], &[("f", Some("1"))]]);
    log.put("a", "4");
    log
}

#[test]
fn a_transaction_that_straddles_runs_is_applied_whole() {
    let log = mixed_log();
    for cut in 1..log.last() {
        let (machine, _) = memory_machine();
        machine.apply(log.range(1, cut)).unwrap();
        assert_eq!(contents(&machine), contents_of(&log, cut));
        machine.apply(log.range(cut + 1, log.last())).unwrap();
        assert_eq!(contents(&machine), contents_of(&log, log.last()));
        assert_eq!(machine.applied().sequence(), log.last());
    }
}

#[test]
fn applied_stops_before_an_open_transaction_and_giving_it_again_is_harmless() {
    let log = mixed_log();
    let (machine, _) = memory_machine();
    machine.apply(log.range(1, 5)).unwrap();
    assert_eq!(machine.applied().sequence(), 3, "4 to 7 are one transaction");
    machine.apply(log.range(4, 6)).unwrap();
    assert_eq!(machine.applied().sequence(), 3);
    machine.apply(log.range(4, log.last())).unwrap();
    assert_eq!(contents(&machine), contents_of(&log, log.last()));
}

#[test]
fn a_term_entry_ends_the_open_transaction() {
    let log = mixed_log();
    let (machine, _) = memory_machine();
    machine.apply(log.range(1, log.last())).unwrap();
    assert!(contents(&machine).iter().all(|(key, _)| !key.starts_with("lost")));
}

#[test]
fn entries_out_of_order_or_of_unknown_kind_stop_the_applier_and_say_why() {
    let log = mixed_log();
    let (machine, _) = memory_machine();
    machine.apply(log.range(1, 2)).unwrap();
    let error = machine.apply(log.range(4, 4)).unwrap_err();
    assert!(matches!(error, KvError::OutOfOrder { .. }), "{error}");
    let error = machine.apply(log.range(3, 3)).unwrap_err();
    assert!(error.to_string().contains("entry 4 was given"), "{error}");

    let mut log = mixed_log();
    log.0[1].kind = 99;
    let (machine, _) = memory_machine();
    let error = machine.apply(log.range(1, 3)).unwrap_err();
    assert!(matches!(error, KvError::UnknownKind { kind: 99, .. }), "{error}");
    assert_eq!(machine.applied().sequence(), 1, "what came before stands");

    let mut log = mixed_log();
    log.0[4].kind = 1;
    let (machine, _) = memory_machine();
    let error = machine.apply(log.range(1, 7)).unwrap_err();
    assert!(matches!(error, KvError::InsideTransaction { kind: 1, .. }), "{error}");
}

#[test]
fn a_damaged_commit_leaves_nothing_of_its_transaction() {
    let mut log = mixed_log();
    log.0[6].body.pop();
    let (machine, _) = memory_machine();
    let error = machine.apply(log.range(1, 7)).unwrap_err();
    assert!(matches!(error, KvError::BadEntry { .. }), "{error}");
    assert_eq!(contents(&machine), contents_of(&log, 3));
}

#[test]
fn rolling_back_to_every_entry_and_sending_the_rest_again_equals_the_full_content() {
    let log = mixed_log();
    for applied in 1..=log.last() {
        for matchpoint in 0..=applied {
            let (machine, _) = memory_machine();
            machine.apply(log.range(1, applied)).unwrap();
            roll_back(&machine, &log, matchpoint).unwrap();
            assert_eq!(contents(&machine), contents_of(&log, matchpoint), "to {matchpoint}");
            machine.apply(log.range(matchpoint + 1, log.last())).unwrap();
            assert_eq!(contents(&machine), contents_of(&log, log.last()));
            roll_back(&machine, &log, 0).unwrap();
            assert_eq!(contents(&machine), []);
        }
    }
}

#[test]
fn after_a_rollback_another_history_is_applied_under_the_same_vlsns() {
    let log = mixed_log();
    for matchpoint in 1..log.last() {
        let (machine, _) = memory_machine();
        machine.apply(log.range(1, log.last())).unwrap();
        let above = machine.view().open_snapshot(None).unwrap();
        let below = machine.view().open_snapshot(Some(Vlsn::new(1))).unwrap();
        roll_back(&machine, &log, matchpoint).unwrap();
        let mut other = FakeLog(log.0[..matchpoint as usize].to_vec());
        other.term();
        other.put("a", "other");
        machine.apply(other.range(matchpoint + 1, other.last())).unwrap();
        assert_eq!(contents(&machine), contents_of(&other, other.last()));
        assert!(matches!(above.get(b"a"), Err(KvError::RolledBack { .. })));
        assert_eq!(below.get(b"a").unwrap(), None, "a snapshot below the matchpoint lives on");
    }
}

#[test]
fn nothing_above_the_dtvlsn_reaches_the_disk() {
    let log = mixed_log();
    let image = MemoryImage::default();
    let (machine, stability) = machine(Box::new(MemoryTable::open(image)));
    machine.apply(log.range(1, 3)).unwrap();
    assert_eq!(machine.checkpoint().unwrap(), NULL_VLSN, "3 is above the DTVLSN");
    machine.apply(log.range(4, log.last())).unwrap();
    stability.dtvlsn.store(2, Ordering::SeqCst);
    assert_eq!(machine.checkpoint().unwrap(), NULL_VLSN);
    stability.dtvlsn.store(3, Ordering::SeqCst);
    assert_eq!(machine.checkpoint().unwrap().sequence(), 3, "the part sealed at 3 is stable now");
    assert_eq!(stability.floor.load(Ordering::SeqCst), 3);
    assert_eq!(stability.checkpoint.load(Ordering::SeqCst), 3);
    assert_eq!(machine.checkpointed().sequence(), 3);
    roll_back(&machine, &log, 3).unwrap();
    assert_eq!(contents(&machine), contents_of(&log, 3));
    let error = roll_back(&machine, &log, 2).unwrap_err();
    assert!(matches!(error, KvError::RollbackBelowFlushed { .. }), "{error}");
}

#[test]
fn a_replay_that_lacks_entries_is_an_error_that_names_the_first() {
    let log = mixed_log();
    let (machine, _) = memory_machine();
    machine.apply(log.range(1, 8)).unwrap();
    let error = machine.roll_back_to(Vlsn::new(3), |_, _| Ok(())).unwrap_err();
    assert!(matches!(error, KvError::ReplayGap { wanted } if wanted == Vlsn::new(1)), "{error}");
    assert!(matches!(machine.apply(log.range(9, 9)), Err(KvError::Stopped { .. })));
}

#[test]
fn full_memtables_are_flushed_in_the_background_and_versions_kept_for_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let table = LsmTable::open(dir.path(), 1 << 20).unwrap();
    let stability = Arc::new(ByHand::default());
    stability.dtvlsn.store(i64::MAX, Ordering::SeqCst);
    let machine = Machine::new(Box::new(table), Box::new(Arc::clone(&stability)), 64 << 10);
    let mut log = FakeLog::default();
    log.term();
    let value = "v".repeat(500);
    for n in 0..4000 {
        log.put(&format!("k{}", n % 50), &format!("{n} {value}"));
    }
    machine.apply(log.range(1, 1001)).unwrap();
    let old = machine.view().open_snapshot(None).unwrap();
    for from in (1002..4001).step_by(100) {
        machine.apply(log.range(from, (from + 99).min(4001))).unwrap();
    }
    machine.checkpoint().unwrap();
    assert!(machine.view().table.flushed().vlsn.sequence() > 3000);
    for n in 0..50 {
        let found = old.get(format!("k{n}").as_bytes()).unwrap().unwrap();
        assert!(found.starts_with(format!("{} ", 950 + n).as_bytes()), "{found:?}");
    }
    drop((machine, old));
    let table = LsmTable::open(dir.path(), 1 << 20).unwrap();
    let machine = Machine::new(Box::new(table), Box::new(stability), 64 << 10);
    let flushed = machine.applied().sequence();
    assert!(flushed > 3000);
    machine.apply(log.range(flushed + 1, log.last())).unwrap();
    assert_eq!(contents(&machine), contents_of(&log, log.last()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever the order of applying, checkpoints, crashes and rollbacks, the content is what the
    /// log says.
    #[test]
    fn crashes_and_rollbacks_at_any_point_keep_the_content_equal_to_the_log(
        steps in prop::collection::vec((0u8..10, 0usize..40), 1..40),
    ) {
        let image = MemoryImage::default();
        let (mut machine, mut stability) = machine(Box::new(MemoryTable::open(image.clone())));
        let mut log = mixed_log();
        let mut given = 0i64;
        for (step, n) in steps {
            match step {
                0..=3 => {
                    let through = (given + n as i64 % 5).min(log.last());
                    machine.apply(log.range(given + 1, through)).unwrap();
                    given = given.max(through);
                }
                4 => log.put("k", &n.to_string()),
                5 => {
                    // DTVLSN follows what is applied, at its own pace.
                    let applied = machine.applied().sequence();
                    let dtvlsn = (applied - n as i64 % 4).max(0);
                    stability.dtvlsn.fetch_max(dtvlsn, Ordering::SeqCst);
                }
                6 => drop(machine.checkpoint().unwrap()),
                7 => {
                    let dtvlsn = stability.dtvlsn.load(Ordering::SeqCst);
                    drop(machine);
                    let table = Box::new(MemoryTable::open(image.clone()));
                    (machine, stability) = self::machine(table);
                    stability.dtvlsn.store(dtvlsn, Ordering::SeqCst);
                    given = machine.applied().sequence();
                }
                _ => {
                    let lowest = stability.dtvlsn.load(Ordering::SeqCst);
                    let matchpoint = lowest.max(given - n as i64 % 6);
                    roll_back(&machine, &log, matchpoint).unwrap();
                    given = given.min(matchpoint);
                }
            }
            prop_assert_eq!(contents(&machine), contents_of(&log, given));
        }
    }
}
