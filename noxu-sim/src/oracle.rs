//! Oracle: what clients did and were told, judged by the log that the group ended with.
//!
//! The log is the *witness*: it says in which order the transactions took effect. So no search is
//! needed; replaying it tells for each transaction whether it read what it should have, and whether
//! the order agrees with real time. All histories are judged, in time linear in their length.
//!
//! # Rules
//! - I9: what was reported durable is in the log, once, as it was reported. What was reported as
//!   rolled back or refused is not.
//! - I10: a transaction reads its snapshot, and nothing that it read or wrote was changed between its
//!   snapshot and its commit. What was reported before a transaction began comes before it.
//! - No phantom: every commit in the log is some client's.
//! - Who gave up without an answer may be in the log or not.

use std::collections::BTreeMap;

use noxu_util::{Fingerprint, Term, Vlsn};

use crate::event::Nanos;
use crate::invariants::Violation;

/// A transaction of a client, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnId(pub u64);

/// A key and its value; `None` for none.
pub type Item = (Vec<u8>, Option<Vec<u8>>);

/// Where a commit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its VLSN.
    pub vlsn: Vlsn,
    /// Its term.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// How a transaction ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was reported durable on a quorum.
    Durable(Place),
    /// It was reported done under a weaker policy: it may be rolled back.
    Weak(Place),
    /// It was written, and nobody said what became of it.
    Unknown(Place),
    /// It was written and is known to have been rolled back.
    RolledBack(Place),
    /// Nothing was written.
    Nothing,
}

impl Told {
    const fn place(self) -> Option<Place> {
        match self {
            Self::Durable(place)
            | Self::Weak(place)
            | Self::Unknown(place)
            | Self::RolledBack(place) => Some(place),
            Self::Nothing => None,
        }
    }
}

/// A transaction as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// When its snapshot was taken.
    pub began: Nanos,
    /// When its client was told; `None` if never.
    pub ended: Option<Nanos>,
    /// VLSN of its snapshot.
    pub snapshot: Vlsn,
    /// What it read there.
    pub reads: Vec<Item>,
    /// What it wrote.
    pub writes: Vec<Item>,
    /// How it ended.
    pub told: Told,
}

/// All transactions of a run.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    transactions: BTreeMap<TxnId, Transaction>,
}

/// A commit entry of the log that the group ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Its term.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// Every version of every key: when it was written, and what.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
}

/// When a key was written, and what.
type Version = (Vlsn, Option<Vec<u8>>);

impl Model {
    fn at(&self, key: &[u8], snapshot: Vlsn) -> Option<&Vec<u8>> {
        let versions = self.keys.get(key)?;
        let after = versions.partition_point(|(vlsn, _)| *vlsn <= snapshot);
        versions.get(after.checked_sub(1)?)?.1.as_ref()
    }

    fn newest(&self, key: &[u8]) -> Vlsn {
        self.keys.get(key).and_then(|versions| versions.last()).map_or(Vlsn::default(), |v| v.0)
    }

    fn write(&mut self, vlsn: Vlsn, writes: &[Item]) {
        for (key, value) in writes {
            self.keys.entry(key.clone()).or_default().push((vlsn, value.clone()));
        }
    }
}

impl Oracle {
    /// A transaction has ended, or was written without an answer so far.
    pub fn note(&mut self, id: TxnId, transaction: Transaction) {
        self.transactions.insert(id, transaction);
    }

    /// A transaction that was noted.
    pub fn get(&self, id: TxnId) -> Option<&Transaction> {
        self.transactions.get(&id)
    }

    /// How many were noted.
    pub fn len(&self) -> usize {
        self.transactions.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Transactions that were reported durable.
    pub fn durable(&self) -> usize {
        self.transactions.values().filter(|t| matches!(t.told, Told::Durable(_))).count()
    }

    /// Whether a transaction that began after `since` was reported durable.
    pub fn durable_since(&self, since: Nanos) -> bool {
        let told = |t: &Transaction| matches!(t.told, Told::Durable(_)) && t.began > since;
        self.transactions.values().any(told)
    }

    /// Where all of them were written that were.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.transactions.values().filter_map(|transaction| transaction.told.place())
    }

    /// Judges all of them by the commit entries of the log that the group ended with, by VLSN.
    /// Returns the state after the last.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn judge(
        &self,
        log: &BTreeMap<Vlsn, Witness>,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Violation> {
        let by_place = self.by_place()?;
        self.judge_outcomes(log)?;
        let mut model = Model::default();
        for (vlsn, witness) in log {
            let place = Place { vlsn: *vlsn, term: witness.term, fingerprint: witness.fingerprint };
            let Some(id) = by_place.get(&(place.vlsn, place.fingerprint.as_u64())) else {
                return Err(Violation::new("I9", format!("{vlsn} is nobody's: {witness:?}")));
            };
            let transaction = &self.transactions[id];
            check_reads(&model, *id, transaction, *vlsn)?;
            model.write(*vlsn, &transaction.writes);
        }
        self.judge_order(log)?;
        let last = log.keys().next_back().copied().unwrap_or_default();
        let keys =
            model.keys.keys().filter_map(|key| Some((key.clone(), model.at(key, last)?.clone())));
        Ok(keys.collect())
    }

    fn by_place(&self) -> Result<BTreeMap<(Vlsn, u64), TxnId>, Violation> {
        let mut by_place = BTreeMap::new();
        for (id, transaction) in &self.transactions {
            let Some(place) = transaction.told.place() else { continue };
            if let Some(other) = by_place.insert((place.vlsn, place.fingerprint.as_u64()), *id) {
                let found = format!("{id:?} and {other:?} were both told {}", place.vlsn);
                return Err(Violation::new("I9", found));
            }
        }
        Ok(by_place)
    }

    fn judge_outcomes(&self, log: &BTreeMap<Vlsn, Witness>) -> Result<(), Violation> {
        for (id, transaction) in &self.transactions {
            let Some(place) = transaction.told.place() else { continue };
            let held =
                log.get(&place.vlsn).is_some_and(|held| held.fingerprint == place.fingerprint);
            match transaction.told {
                Told::Durable(_) if !held => {
                    let found =
                        format!("{id:?} was reported durable at {place:?} and is not there");
                    return Err(Violation::new("I9", found));
                }
                Told::RolledBack(_) if held => {
                    let found = format!("{id:?} was reported rolled back and is at {place:?}");
                    return Err(Violation::new("I9", found));
                }
                Told::Durable(_)
                | Told::RolledBack(_)
                | Told::Weak(_)
                | Told::Unknown(_)
                | Told::Nothing => {}
            }
        }
        Ok(())
    }

    /// Real time: whoever began after a commit was reported durable comes after it.
    fn judge_order(&self, log: &BTreeMap<Vlsn, Witness>) -> Result<(), Violation> {
        let mut ended = Vec::new();
        let mut began = Vec::new();
        for (id, transaction) in &self.transactions {
            let Some(place) = transaction.told.place() else { continue };
            if !log.get(&place.vlsn).is_some_and(|held| held.fingerprint == place.fingerprint) {
                continue;
            }
            if let (Told::Durable(_), Some(at)) = (transaction.told, transaction.ended) {
                ended.push((at, place.vlsn));
            }
            began.push((transaction.began, place.vlsn, *id));
        }
        ended.sort();
        began.sort();
        let mut ended = ended.into_iter().peekable();
        let mut highest = Vlsn::default();
        for (at, vlsn, id) in began {
            while let Some((_, before)) = ended.next_if(|(end, _)| *end < at) {
                highest = highest.max(before);
            }
            if vlsn < highest {
                let found = format!("{id:?} at {vlsn} began after {highest} was reported");
                return Err(Violation::new("I10", found));
            }
        }
        Ok(())
    }
}

fn check_reads(
    model: &Model,
    id: TxnId,
    transaction: &Transaction,
    vlsn: Vlsn,
) -> Result<(), Violation> {
    let wrong = |found: String| Err(Violation::new("I10", found));
    let snapshot = transaction.snapshot;
    for (key, value) in &transaction.reads {
        if model.at(key, snapshot) != value.as_ref() {
            let found = model.at(key, snapshot).map(Vec::len);
            return wrong(format!(
                "{id:?} read {:?} at {snapshot}: {:?} bytes, and {found:?} were there",
                String::from_utf8_lossy(key),
                value.as_ref().map(Vec::len),
            ));
        }
    }
    for (key, _) in transaction.reads.iter().chain(&transaction.writes) {
        let changed = model.newest(key);
        if changed > snapshot {
            return wrong(format!(
                "{id:?} at {vlsn} saw {:?} as of {snapshot}, and it was changed at {changed}",
                String::from_utf8_lossy(key),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: i64) -> Place {
        Place {
            vlsn: Vlsn::new(at),
            term: Term::new(1),
            fingerprint: Fingerprint::from_u64(at as u64 + 100),
        }
    }

    fn item(key: &str, value: &str) -> Item {
        let value = (!value.is_empty()).then(|| value.as_bytes().to_vec());
        (key.as_bytes().to_vec(), value)
    }

    fn log(at: &[i64]) -> BTreeMap<Vlsn, Witness> {
        let witness = |at: &i64| {
            let Place { vlsn, term, fingerprint } = place(*at);
            (vlsn, Witness { term, fingerprint })
        };
        at.iter().map(witness).collect()
    }

    /// Commits at 2, 4 and 6 that follow each other.
    fn history() -> Vec<Transaction> {
        let transaction = |began, ended, snapshot, reads, writes, at| Transaction {
            began: Nanos(began),
            ended: Some(Nanos(ended)),
            snapshot: Vlsn::new(snapshot),
            reads,
            writes,
            told: Told::Durable(place(at)),
        };
        vec![
            transaction(1, 10, 0, vec![item("a", "")], vec![item("a", "1")], 2),
            transaction(11, 20, 2, vec![item("a", "1")], vec![item("a", "2"), item("b", "1")], 4),
            transaction(21, 30, 4, vec![item("b", "1")], vec![item("b", "")], 6),
        ]
    }

    fn judge(history: Vec<Transaction>, log: &BTreeMap<Vlsn, Witness>) -> Option<&'static str> {
        let mut oracle = Oracle::default();
        for (id, transaction) in (0..).zip(history) {
            oracle.note(TxnId(id), transaction);
        }
        oracle.judge(log).err().map(|violation| violation.invariant)
    }

    /// The rule broken by the history with one of its transactions changed.
    fn changed(which: usize, change: impl FnOnce(&mut Transaction)) -> Option<&'static str> {
        let mut history = history();
        change(&mut history[which]);
        judge(history, &log(&[2, 4, 6]))
    }

    #[test]
    fn a_serial_history_is_accepted_and_gives_the_state() {
        let mut oracle = Oracle::default();
        for (id, transaction) in (0..).zip(history()) {
            oracle.note(TxnId(id), transaction);
        }
        let state = oracle.judge(&log(&[2, 4, 6])).unwrap();
        assert_eq!(state, BTreeMap::from([(b"a".to_vec(), b"2".to_vec())]));
        assert_eq!((oracle.len(), oracle.durable()), (3, 3));
    }

    #[test]
    fn a_lost_a_doubled_and_an_invented_commit_are_named() {
        assert_eq!(judge(history(), &log(&[2, 4])), Some("I9"));
        assert_eq!(judge(history(), &log(&[2, 4, 6, 8])), Some("I9"));
        assert_eq!(changed(2, |t| t.told = Told::Durable(place(4))), Some("I9"));
    }

    #[test]
    fn what_was_reported_rolled_back_must_not_be_there_and_what_is_unknown_may() {
        assert_eq!(changed(2, |t| t.told = Told::RolledBack(place(6))), Some("I9"));
        assert_eq!(changed(2, |t| t.told = Told::Unknown(place(6))), None);
        let mut history = history();
        history[2].told = Told::Unknown(place(6));
        assert_eq!(judge(history.clone(), &log(&[2, 4])), None);
        history[2].told = Told::Weak(place(6));
        assert_eq!(judge(history, &log(&[2, 4])), None);
    }

    #[test]
    fn a_wrong_read_and_a_stale_snapshot_are_named() {
        assert_eq!(changed(1, |t| t.reads = vec![item("a", "")]), Some("I10"));
        assert_eq!(changed(2, |t| t.reads = vec![item("b", "phantom")]), Some("I10"));
        assert_eq!(
            changed(2, |t| {
                t.snapshot = Vlsn::new(2);
                t.reads = vec![item("a", "1")];
            }),
            Some("I10")
        );
        assert_eq!(
            changed(2, |t| {
                t.snapshot = Vlsn::new(3);
                t.reads = Vec::new();
                t.writes = vec![item("a", "blind")];
            }),
            Some("I10"),
            "a blind write conflicts as well"
        );
    }

    #[test]
    fn an_order_against_real_time_is_named() {
        let mut history = history();
        // Writes another key, so that no read gives it away, and is told of before the others began.
        history[2] = Transaction {
            began: Nanos(0),
            ended: Some(Nanos(1)),
            snapshot: Vlsn::new(0),
            reads: Vec::new(),
            writes: vec![item("z", "1")],
            told: Told::Durable(place(6)),
        };
        history[1].began = Nanos(5);
        assert_eq!(judge(history.clone(), &log(&[2, 4, 6])), Some("I10"));
        history[2].ended = Some(Nanos(50));
        assert_eq!(judge(history, &log(&[2, 4, 6])), None);
    }
}
