//! The engine over the table in memory, with a log of its caller's.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use noxu_util::{Fingerprint, NULL_VLSN};

use super::*;
use crate::apply::LogEntry;

/// What the engine asks of replication, set by hand.
#[derive(Default)]
struct ByHand {
    dtvlsn: AtomicI64,
    floor: AtomicI64,
    refuses: AtomicBool,
}

impl Stability for Arc<ByHand> {
    fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.dtvlsn.load(Ordering::SeqCst))
    }

    fn raise_commit_floor(&self, floor: Vlsn) -> Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(KvError::Stopped { cause: "the disk is full".to_owned() });
        }
        self.floor.fetch_max(floor.sequence(), Ordering::SeqCst);
        Ok(())
    }

    fn note_checkpoint(&self, _vlsn: Vlsn) {}
}

/// A master whose log is a counter: what is committed is applied at once.
struct Solo {
    engine: Engine,
    stability: Arc<ByHand>,
    image: MemoryImage,
    term: Term,
    term_entry: Vlsn,
    last: Vlsn,
}

impl Solo {
    fn new(memtable_bytes: u64) -> Self {
        let image = MemoryImage::default();
        let stability = Arc::new(ByHand::default());
        let config = EngineConfig { memtable_bytes, ..EngineConfig::default() };
        let engine = Engine::open(image.clone(), Box::new(Arc::clone(&stability)), config);
        let last = NULL_VLSN;
        let mut solo = Self { engine, stability, image, term: Term::ZERO, term_entry: last, last };
        solo.begin_term(1);
        solo
    }

    fn give(&mut self, kind: u8, is_commit: bool, body: &[u8]) {
        self.last = self.last.next();
        let entry = LogEntry {
            vlsn: self.last,
            term: self.term,
            fingerprint: Fingerprint::from_u64(1),
            kind,
            is_sync: is_commit || kind == 0,
            is_commit,
            body,
        };
        self.engine.store_machine().apply(std::iter::once(entry)).unwrap();
    }

    fn begin_term(&mut self, term: u32) {
        self.term = Term::new(term);
        self.give(0, false, &[0; 8]);
        self.term_entry = self.last;
    }

    /// A commit by somebody else, which reaches this node through its log only.
    fn replicate(&mut self, key: &str) {
        let mut batch = Batch::default();
        batch.put(key.as_bytes(), b"theirs").unwrap();
        let bodies = self.engine.encode_batch(&batch, 1).unwrap();
        self.give(KIND_WRITES, true, &bodies.0[0]);
    }

    fn commit(&mut self, work: &Work) -> Result<Vlsn> {
        let bodies = work.encode(1);
        let entries = bodies.entries();
        assert_eq!(entries.len(), 1);
        assert!(entries[0].flags().is_commit());
        let vlsn = self.last.next();
        self.engine.prepare(work, self.term, self.term_entry)?.committed(vlsn);
        self.give(KIND_WRITES, true, &bodies.0[0]);
        Ok(vlsn)
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Vlsn {
        let mut work = self.engine.begin().unwrap();
        work.put(key.as_bytes(), value).unwrap();
        self.commit(&work).unwrap()
    }

    fn flushed(&self) -> Vlsn {
        self.engine.machine().checkpointed()
    }
}

fn is_conflict<T>(result: Result<T>) -> bool {
    result.is_err_and(|cause| cause.is_conflict())
}

/// Reads `from` and writes `to`.
fn reads_and_writes(solo: &Solo, from: &str, to: &str) -> Work {
    let mut work = solo.engine.begin().unwrap();
    work.get(from.as_bytes()).unwrap();
    work.put(to.as_bytes(), b"v").unwrap();
    work
}

#[test]
fn of_two_transactions_that_read_what_the_other_writes_one_commits() {
    let mut solo = Solo::new(1 << 20);
    let first = reads_and_writes(&solo, "a", "b");
    let second = reads_and_writes(&solo, "b", "a");
    let apart = reads_and_writes(&solo, "c", "d");
    let at = solo.commit(&first).unwrap();
    let refused = solo.commit(&second);
    assert!(
        matches!(&refused, Err(KvError::Conflict { newer, .. }) if *newer == at),
        "{refused:?}"
    );
    solo.commit(&apart).unwrap();
    assert_eq!(solo.engine.snapshot().unwrap().get(b"b").unwrap().unwrap(), b"v");
    assert_eq!(solo.engine.snapshot().unwrap().get(b"a").unwrap(), None);
}

#[test]
fn a_batch_conflicts_with_nobody_but_others_conflict_with_it() {
    let mut solo = Solo::new(1 << 20);
    let reader = reads_and_writes(&solo, "a", "b");
    solo.put("a", b"1");
    let mut batch = Batch::default();
    batch.put(b"c", b"1").unwrap();
    let late = reads_and_writes(&solo, "c", "d");
    let prepared = solo.engine.prepare_batch(&batch, solo.term, solo.term_entry).unwrap();
    prepared.committed(solo.last.next());
    assert!(is_conflict(solo.commit(&late)));
    assert!(is_conflict(solo.commit(&reader)));
}

#[test]
fn an_abandoned_transaction_conflicts_with_nobody_and_can_be_prepared_again() {
    let mut solo = Solo::new(1 << 20);
    let abandoned = reads_and_writes(&solo, "a", "b");
    let other = reads_and_writes(&solo, "b", "c");
    drop(solo.engine.prepare(&abandoned, solo.term, solo.term_entry).unwrap());
    solo.commit(&other).unwrap();
    solo.commit(&abandoned).unwrap();
}

#[test]
fn an_open_transaction_keeps_the_commits_above_its_snapshot_remembered() {
    let mut solo = Solo::new(1 << 20);
    let open = reads_and_writes(&solo, "unwritten", "x");
    for n in 0..200 {
        solo.put(&format!("k{n}"), b"v");
    }
    solo.commit(&open).unwrap();
    assert!(solo.engine.shared.open_txns.lock().len() == 1);
    drop(open);
    assert!(solo.engine.shared.open_txns.lock().is_empty());
}

#[test]
fn a_snapshot_from_before_a_newer_term_conflicts_whatever_it_touched() {
    let mut solo = Solo::new(1 << 20);
    let before = reads_and_writes(&solo, "a", "b");
    solo.replicate("a");
    solo.begin_term(3);
    // It read what somebody else has overwritten, and no commit of this mastership tells.
    assert!(is_conflict(solo.commit(&before)));
    let untouched = reads_and_writes(&solo, "x", "y");
    solo.commit(&untouched).unwrap();
}

#[test]
fn a_newer_term_forgets_the_commits_of_the_older_one() {
    let mut solo = Solo::new(1 << 20);
    let own = solo.put("a", b"1");
    solo.begin_term(2);
    let fresh = reads_and_writes(&solo, "a", "a");
    assert!(fresh.snapshot_vlsn() > own);
    solo.commit(&fresh).unwrap();
    // Had the older term's commits stayed, this one's would not ascend after them.
    assert!(is_conflict(solo.engine.prepare(&fresh, solo.term, solo.term_entry)));
}

#[test]
fn an_older_term_may_not_commit_any_more() {
    let mut solo = Solo::new(1 << 20);
    let (old, old_entry) = (solo.term, solo.term_entry);
    solo.begin_term(2);
    let work = reads_and_writes(&solo, "a", "b");
    solo.commit(&work).unwrap();
    let late = reads_and_writes(&solo, "c", "d");
    let refused = solo.engine.prepare(&late, old, old_entry).map(drop);
    assert!(matches!(refused, Err(KvError::NotMaster { master: None })));
    let refused = solo.engine.prepare_batch(&Batch::default(), old, old_entry).map(drop);
    assert!(matches!(refused, Err(KvError::NotMaster { master: None })));
    solo.commit(&late).unwrap();
}

#[test]
fn a_transaction_whose_snapshot_was_rolled_back_may_not_commit() {
    let mut solo = Solo::new(1 << 20);
    let kept = solo.last;
    solo.put("a", b"1");
    let work = reads_and_writes(&solo, "a", "b");
    let (term, entry) = (solo.term, solo.term_entry);
    let replayed = LogEntry {
        vlsn: kept,
        term,
        fingerprint: Fingerprint::from_u64(1),
        kind: 0,
        is_sync: true,
        is_commit: false,
        body: &[0; 8],
    };
    solo.engine.store_machine().roll_back_to(kept, |_, sink| sink(replayed)).unwrap();
    let refused = solo.engine.prepare(&work, term, entry);
    assert!(matches!(refused, Err(KvError::RolledBack { .. })));
}

#[test]
fn upkeep_flushes_a_full_memtable_once_nothing_in_it_can_be_rolled_back() {
    let mut solo = Solo::new(1000);
    while solo.engine.store_machine().view().table.sealed().is_none() {
        solo.put("a", &[7; 100]);
    }
    let sealed = solo.last;
    solo.engine.upkeep();
    assert_eq!(solo.flushed(), NULL_VLSN, "all of it can still be rolled back");
    solo.stability.dtvlsn.store(sealed.sequence(), Ordering::SeqCst);
    assert_eq!(solo.flushed(), NULL_VLSN, "nobody but the caller flushes");
    solo.engine.upkeep();
    assert_eq!(solo.flushed(), sealed);
    assert_eq!(solo.stability.floor.load(Ordering::SeqCst), sealed.sequence());
    // What was flushed outlives the engine.
    let reopened = Engine::open(
        solo.image.clone(),
        Box::new(Arc::clone(&solo.stability)),
        EngineConfig::default(),
    );
    assert_eq!(reopened.machine().applied(), sealed);
    assert_eq!(reopened.snapshot().unwrap().get(b"a").unwrap().unwrap(), &[7; 100][..]);
}

#[test]
fn an_applier_that_must_wait_for_a_flush_flushes_itself() {
    let mut solo = Solo::new(1000);
    solo.stability.dtvlsn.store(i64::MAX / 2, Ordering::SeqCst);
    for _ in 0..100 {
        solo.put("a", &[7; 100]);
        let active = solo.engine.store_machine().view().table.active_bytes();
        assert!(active < 2500, "{active} bytes wait in memory");
    }
    assert!(solo.flushed() > NULL_VLSN);
}

#[test]
fn a_flush_that_fails_is_told_holds_up_nobody_and_is_tried_again() {
    let mut solo = Solo::new(1000);
    solo.stability.dtvlsn.store(i64::MAX / 2, Ordering::SeqCst);
    solo.stability.refuses.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        solo.put("a", &[7; 100]);
    }
    assert!(solo.engine.upkeep_failure().unwrap().contains("the disk is full"));
    assert_eq!(solo.flushed(), NULL_VLSN);
    solo.stability.refuses.store(false, Ordering::SeqCst);
    solo.engine.upkeep();
    assert_eq!(solo.engine.upkeep_failure(), None);
    assert!(solo.flushed() > NULL_VLSN);
}
