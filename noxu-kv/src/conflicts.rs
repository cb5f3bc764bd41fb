//! Conflicts: what was committed since when, and whether a transaction may still commit.
//!
//! The master's memory of recent commits, in flight or applied. A transaction may commit if nothing
//! it read or wrote was committed by another one above its snapshot. That makes histories
//! serializable in VLSN order: had the transaction run at its commit VLSN, it would have read the
//! same.
//!
//! The memory belongs to one mastership: what others committed before it is not in here, so a newer
//! term begins with nothing known below its first entry, and an older one may not ask any more.
//!
//! # Invariants
//! - Every commit above `known_from` is known; a transaction whose snapshot lies below it cannot be
//!   judged and must begin again.
//! - `order` ascends by VLSN; `newest` holds each key of it once, with its newest VLSN.

use std::collections::{BTreeMap, VecDeque};

use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::table::KeyRange;
use crate::value::Value;

/// Recent commits.
#[derive(Debug)]
pub(crate) struct Conflicts {
    /// The mastership they were committed in.
    term: Term,
    newest: BTreeMap<Value, Vlsn>,
    order: VecDeque<(Vlsn, Value)>,
    known_from: Vlsn,
    max_keys: usize,
}

/// What a transaction read and wrote, by the table's keys.
#[derive(Debug, Default)]
pub(crate) struct Footprint<'a> {
    pub(crate) keys: Vec<&'a Value>,
    pub(crate) ranges: Vec<KeyRange>,
}

/// Why a transaction may not commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The key that was committed; `None` if the transaction is too old to be judged.
    pub(crate) key: Option<Value>,
    /// VLSN of the commit.
    pub(crate) newer: Vlsn,
}

impl Conflicts {
    /// Of no mastership yet. Remembers about `max_keys` keys.
    pub(crate) fn new(max_keys: usize) -> Self {
        Self {
            term: Term::ZERO,
            newest: BTreeMap::new(),
            order: VecDeque::new(),
            known_from: NULL_VLSN,
            max_keys,
        }
    }

    /// Speaks for the mastership of `term` from here on, and forgets any older one. False if a newer
    /// one has been spoken for already: then nothing may be committed in `term`.
    #[must_use]
    pub(crate) fn enter_term(&mut self, term: Term, term_entry: Vlsn) -> bool {
        if term > self.term {
            self.term = term;
            self.newest.clear();
            self.order.clear();
            // Somebody else may have committed anything before the term's first entry, which is no
            // commit itself: a snapshot right before it has missed nothing.
            self.known_from = term_entry.prev();
        }
        term == self.term
    }

    /// Finds a commit above `snapshot` that touches the footprint.
    pub(crate) fn check(&self, snapshot: Vlsn, footprint: &Footprint<'_>) -> Result<(), Conflict> {
        if snapshot < self.known_from {
            return Err(Conflict { key: None, newer: self.known_from });
        }
        if self.order.back().is_none_or(|(newest, _)| *newest <= snapshot) {
            return Ok(());
        }
        for key in &footprint.keys {
            if let Some(newer) = self.newest.get(*key)
                && *newer > snapshot
            {
                return Err(Conflict { key: Some((*key).clone()), newer: *newer });
            }
        }
        for range in &footprint.ranges {
            if let Some((key, newer)) = self.newer_in(snapshot, range) {
                return Err(Conflict { key: Some(key.clone()), newer });
            }
        }
        Ok(())
    }

    fn newer_in(&self, snapshot: Vlsn, range: &KeyRange) -> Option<(&Value, Vlsn)> {
        if range.is_empty() {
            return None;
        }
        // Whichever is shorter: the commits since the snapshot, or the keys within the range.
        let first = self.order.partition_point(|(at, _)| *at <= snapshot);
        if self.order.len() - first < FEW_COMMITS {
            let found = self.order.iter().skip(first).find(|(_, key)| range.holds(key));
            return found.map(|(at, key)| (key, *at));
        }
        let mut keys = self.newest.range::<[u8], _>(range.bounds());
        keys.find(|(_, at)| **at > snapshot).map(|(key, at)| (key, *at))
    }

    /// Remembers a commit. VLSNs come in ascending order.
    pub(crate) fn record<'a>(&mut self, at: Vlsn, keys: impl Iterator<Item = &'a Value>) {
        debug_assert!(self.order.back().is_none_or(|(last, _)| *last < at), "commits ascend");
        for key in keys {
            self.newest.insert(key.clone(), at);
            self.order.push_back((at, key.clone()));
        }
        while self.order.len() > self.max_keys {
            self.forget_oldest();
        }
    }

    /// Forgets commits at or below `through`: every transaction that will be judged has its
    /// snapshot there or above. Does a bounded part of the work.
    pub(crate) fn forget_through(&mut self, through: Vlsn) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            match self.order.front() {
                Some((at, _)) if *at <= through => self.forget_oldest(),
                _ => break,
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((at, key)) = self.order.pop_front() {
            if self.newest.get(&key) == Some(&at) {
                self.newest.remove(&key);
            }
            self.known_from = self.known_from.max(at);
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        assert!(self.order.iter().zip(self.order.iter().skip(1)).all(|(a, b)| a.0 <= b.0));
        assert!(self.order.iter().all(|(at, key)| self.newest[key] >= *at));
        let newest: BTreeMap<_, _> = self.order.iter().map(|(at, key)| (key, *at)).collect();
        assert!(newest.into_iter().eq(self.newest.iter().map(|(key, at)| (key, *at))));
    }
}

/// So few commits are looked through one by one.
const FEW_COMMITS: usize = 64;

/// Most keys forgotten per commit: enough to keep up, and a bound on the time under the lock.
const FORGOTTEN_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    fn v(sequence: i64) -> Vlsn {
        Vlsn::new(sequence)
    }

    fn key(text: &str) -> Value {
        Value::from(text.as_bytes())
    }

    fn keys(keys: &[Value]) -> Footprint<'_> {
        Footprint { keys: keys.iter().collect(), ranges: Vec::new() }
    }

    fn range(from: &str, to: &str) -> Footprint<'static> {
        let range = KeyRange {
            from: Bound::Included(from.as_bytes().to_vec()),
            to: Bound::Excluded(to.as_bytes().to_vec()),
        };
        Footprint { keys: Vec::new(), ranges: vec![range] }
    }

    /// In the middle of the mastership of term 1, with nothing known through `known_from`.
    fn conflicts(known_from: Vlsn, max_keys: usize) -> Conflicts {
        let mut conflicts = Conflicts::new(max_keys);
        assert!(conflicts.enter_term(Term::new(1), known_from.next()));
        conflicts
    }

    #[test]
    fn a_newer_term_forgets_and_an_older_one_is_refused() {
        let mut conflicts = conflicts(NULL_VLSN, 100);
        conflicts.record(v(5), [key("a")].iter());
        assert!(conflicts.enter_term(Term::new(1), v(1)));
        assert!(
            conflicts.check(v(4), &keys(&[key("a")])).is_err(),
            "the same term forgets nothing"
        );
        assert!(conflicts.enter_term(Term::new(3), v(9)));
        let too_old = Conflict { key: None, newer: v(8) };
        assert_eq!(conflicts.check(v(7), &keys(&[key("b")])), Err(too_old));
        assert_eq!(conflicts.check(v(8), &keys(&[key("a")])), Ok(()));
        conflicts.record(v(10), [key("b")].iter());
        assert!(!conflicts.enter_term(Term::new(2), v(6)));
        assert!(
            conflicts.check(v(9), &keys(&[key("b")])).is_err(),
            "the refused term changes nothing"
        );
        conflicts.check_invariants();
    }

    #[test]
    fn a_commit_above_the_snapshot_conflicts_and_one_at_it_does_not() {
        let mut conflicts = conflicts(NULL_VLSN, 100);
        conflicts.record(v(5), [key("a")].iter());
        assert_eq!(conflicts.check(v(5), &keys(&[key("a")])), Ok(()));
        assert_eq!(conflicts.check(v(4), &keys(&[key("b")])), Ok(()));
        let conflict = Conflict { key: Some(key("a")), newer: v(5) };
        assert_eq!(conflicts.check(v(4), &keys(&[key("b"), key("a")])), Err(conflict.clone()));
        assert_eq!(conflicts.check(v(4), &range("a", "b")), Err(conflict));
        assert_eq!(conflicts.check(v(4), &range("b", "c")), Ok(()));
        assert_eq!(conflicts.check(v(4), &range("b", "a")), Ok(()));
    }

    #[test]
    fn a_transaction_older_than_what_is_remembered_must_begin_again() {
        let mut conflicts = conflicts(v(3), 2);
        let too_old = |newer| Err(Conflict { key: None, newer: v(newer) });
        assert_eq!(conflicts.check(v(2), &keys(&[])), too_old(3));
        for at in 4..8 {
            conflicts.record(v(at), [key("a")].iter());
        }
        assert_eq!(conflicts.check(v(4), &keys(&[])), too_old(5));
        assert_eq!(conflicts.check(v(5), &keys(&[])), Ok(()));
        conflicts.forget_through(v(6));
        assert_eq!(conflicts.check(v(5), &keys(&[])), too_old(6));
        conflicts.check_invariants();
    }

    proptest! {
           #[test]
           fn the_answer_equals_that_of_a_plain_list_of_commits(
               commits in prop::collection::vec(prop::collection::btree_set(0u8..20, 1..4), 0..120),
               forget in 0i64..40,
               snapshot in 0i64..130,
               from in 0u8..20,
               len in 0u8..8,
               point in 0u8..20,
           ) {
               let name = |n: u8| Value::from(&[b'a' + n][..]);
               let mut conflicts = conflicts(NULL_VLSN, usize::MAX);
               for (n, commit) in commits.iter().enumerate() {
                   let commit: Vec<Value> = commit.iter().map(|n| name(*n)).collect();
                   conflicts.record(v(n as i64 + 1), commit.iter());
               }
               conflicts.forget_through(v(forget));
               conflicts.check_invariants();
               let newer = |touched: &dyn Fn(u8) -> bool| {
                   commits.iter().enumerate().any(|(n, commit)| {
                       n as i64 + 1 > snapshot && commit.iter().any(|key| touched(*key))
                   })
               };
               let point_key = [name(point)];
               let to = (from + len).min(20);
               let range = KeyRange {
    from: Bound::Included(vec![b'a' + from]),
    to: Bound::Excluded(vec![b'a' + to]),
    };
               let in_range = Footprint { keys: Vec::new(), ranges: vec![range] };
               if v(snapshot) >= conflicts.known_from {
                   let judged = conflicts.check(v(snapshot), &keys(&point_key)).is_err();
                   prop_assert_eq!(judged, newer(&|key| key == point));
                   let judged = conflicts.check(v(snapshot), &in_range).is_err();
                   prop_assert_eq!(judged, newer(&|key| (from..to).contains(&key)));
               } else {
                   prop_assert!(conflicts.check(v(snapshot), &keys(&point_key)).is_err());
               }
           }
       }
}
