//! Oracle: what clients did and were told, judged by the log that the group ended with.
//!
//! The log is the *witness*: it says in which order the transactions took effect. So no search is
//! needed; going through it tells whether each is where its client was told, and whether the order
//! agrees with real time. All histories are judged, in time linear in their length.
//!
//! # Rules
//! - I9: what was reported durable is in the log, once, as it was reported. What was reported as
//!   rolled back or refused is not.
//! - I10: what was reported before a transaction began comes before it.
//! - No phantom: every commit in the log is some client's.
//! - Who gave up without an answer may be in the log or not.
//!
//! # Not here: what the transactions did, which only their engine can judge (embed.rs).

use std::collections::BTreeMap;

use noxu_util::{Fingerprint, Term, Vlsn};

use crate::event::Nanos;
use crate::invariants::Violation;

/// A transaction of a client, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnId(pub u64);

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
pub struct Transaction<R> {
    /// When it was begun: before it read anything.
    pub began: Nanos,
    /// When its client was told; `None` if never.
    pub ended: Option<Nanos>,
    /// How it ended.
    pub told: Told,
    /// What it did, as its engine remembers it.
    pub record: R,
}

/// All transactions of a run.
#[derive(Debug, Clone)]
pub struct Oracle<R> {
    transactions: BTreeMap<TxnId, Transaction<R>>,
}

impl<R> Default for Oracle<R> {
    fn default() -> Self {
        Self { transactions: BTreeMap::new() }
    }
}

/// A commit entry of the log that the group ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Its term.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl<R> Oracle<R> {
    /// A transaction has ended, or was written without an answer so far.
    pub fn note(&mut self, id: TxnId, transaction: Transaction<R>) {
        self.transactions.insert(id, transaction);
    }

    /// A transaction that was noted.
    pub fn get(&self, id: TxnId) -> Option<&Transaction<R>> {
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
        let told = |t: &Transaction<R>| matches!(t.told, Told::Durable(_)) && t.began > since;
        self.transactions.values().any(told)
    }

    /// Where all of them were written that were.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.transactions.values().filter_map(|transaction| transaction.told.place())
    }

    /// A client was told how its transaction ended.
    ///
    /// # Panics
    /// If it was not noted.
    pub fn tell(&mut self, id: TxnId, told: Told, now: Nanos) {
        let transaction = self.transactions.get_mut(&id);
        let transaction = transaction.unwrap_or_else(|| panic!("{id:?} was never noted"));
        (transaction.told, transaction.ended) = (told, Some(now));
    }

    /// Judges all of them by the commit entries of the log that the group ended with, by VLSN.
    /// Returns those that are in it, in its order.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn judge(
        &self,
        log: &BTreeMap<Vlsn, Witness>,
    ) -> Result<Vec<(Vlsn, &Transaction<R>)>, Violation> {
        let by_place = self.by_place()?;
        self.judge_outcomes(log)?;
        let mut committed = Vec::new();
        for (vlsn, witness) in log {
            let Some(id) = by_place.get(&(*vlsn, witness.fingerprint.as_u64())) else {
                return Err(Violation::new("I9", format!("{vlsn} is nobody's: {witness:?}")));
            };
            committed.push((*vlsn, &self.transactions[id]));
        }
        self.judge_order(log)?;
        Ok(committed)
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

    fn log(at: &[i64]) -> BTreeMap<Vlsn, Witness> {
        let witness = |at: &i64| {
            let Place { vlsn, term, fingerprint } = place(*at);
            (vlsn, Witness { term, fingerprint })
        };
        at.iter().map(witness).collect()
    }

    /// Commits at 2, 4 and 6 that follow each other.
    fn history() -> Vec<Transaction<()>> {
        let transaction = |began, ended, at| Transaction {
            began: Nanos(began),
            ended: Some(Nanos(ended)),
            told: Told::Durable(place(at)),
            record: (),
        };
        vec![transaction(1, 10, 2), transaction(11, 20, 4), transaction(21, 30, 6)]
    }

    fn judge(history: Vec<Transaction<()>>, log: &BTreeMap<Vlsn, Witness>) -> Option<&'static str> {
        let mut oracle = Oracle::default();
        for (id, transaction) in (0..).zip(history) {
            oracle.note(TxnId(id), transaction);
        }
        oracle.judge(log).err().map(|violation| violation.invariant)
    }

    /// The rule broken by the history with one of its transactions changed.
    fn changed(which: usize, change: impl FnOnce(&mut Transaction<()>)) -> Option<&'static str> {
        let mut history = history();
        change(&mut history[which]);
        judge(history, &log(&[2, 4, 6]))
    }

    #[test]
    fn a_serial_history_is_accepted_and_given_in_the_order_of_the_log() {
        let mut oracle = Oracle::default();
        for (id, transaction) in (0..).zip(history()) {
            oracle.note(TxnId(id), transaction);
        }
        let committed = oracle.judge(&log(&[2, 4, 6])).unwrap();
        let told: Vec<_> = committed.iter().map(|(vlsn, t)| (vlsn.sequence(), t.told)).collect();
        assert_eq!(told, [2, 4, 6].map(|at| (at, Told::Durable(place(at)))));
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
    fn an_order_against_real_time_is_named() {
        let mut history = history();
        // Its client is told before the others begin.
        (history[2].began, history[2].ended) = (Nanos(0), Some(Nanos(1)));
        history[1].began = Nanos(5);
        assert_eq!(judge(history.clone(), &log(&[2, 4, 6])), Some("I10"));
        history[2].ended = Some(Nanos(50));
        assert_eq!(judge(history, &log(&[2, 4, 6])), None);
    }
}
