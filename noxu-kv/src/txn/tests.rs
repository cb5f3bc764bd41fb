//! Transactions without replication: every commit is durable and visible at once.

use proptest::prelude::*;

use super::*;
use crate::conflicts::Conflicts;
use crate::snapshot::View;
use crate::table::Version;
use crate::table::memory::{MemoryImage, MemoryTable};
use crate::value::Key;

/// A store of one node and no log.
struct Solo {
    view: Arc<View>,
    conflicts: Conflicts,
}

impl Solo {
    fn new() -> Self {
        let view = View::new(Box::new(MemoryTable::open(MemoryImage::default())));
        Self { view, conflicts: Conflicts::new(1000) }
    }

    fn with(pairs: &[(&str, &str)]) -> Self {
        let mut solo = Self::new();
        let mut txn = solo.begin();
        for (key, value) in pairs {
            txn.write(key.as_bytes(), Some(value.as_bytes())).unwrap();
        }
        solo.commit(&txn).unwrap();
        solo
    }

    fn begin(&self) -> Workspace {
        Workspace::new(self.view.open_snapshot(None).unwrap(), 1 << 20)
    }

    fn commit(&mut self, txn: &Workspace) -> Result<()> {
        if txn.is_read_only() {
            return Ok(());
        }
        let snapshot = txn.snapshot().vlsn();
        self.conflicts
            .check(snapshot, &txn.footprint())
            .map_err(|found| Workspace::conflict(snapshot, found))?;
        let at = self.view.visible().next();
        self.conflicts.record(at, txn.written_keys());
        let versions = txn.writes.iter();
        let versions = versions.map(|(k, v)| Version { key: k.clone(), value: v.clone(), at });
        self.view.table.insert(&mut versions.collect());
        self.view.publish(at);
        Ok(())
    }

    fn read(&self, key: &str) -> Option<String> {
        let found = self.begin().get(key.as_bytes()).unwrap();
        found.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }
}

fn number(txn: &mut Workspace, key: &str) -> i64 {
    let found = txn.get(key.as_bytes()).unwrap();
    found.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap())
}

fn put(txn: &mut Workspace, key: &str, value: impl std::fmt::Display + Copy) {
    txn.write(key.as_bytes(), Some(value.to_string().as_bytes())).unwrap();
}

fn keys(range: impl Iterator<Item = Result<(Key, Value)>>) -> String {
    let key = |item: Result<(Key, Value)>| String::from_utf8(item.unwrap().0.to_vec()).unwrap();
    range.map(key).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_lost_update_is_a_conflict_that_names_the_key() {
    let mut solo = Solo::with(&[("n", "1")]);
    let (mut one, mut two) = (solo.begin(), solo.begin());
    for txn in [&mut one, &mut two] {
        let n = number(txn, "n");
        put(txn, "n", n + 1);
    }
    solo.commit(&one).unwrap();
    let error = solo.commit(&two).unwrap_err();
    assert!(error.is_conflict());
    assert!(error.to_string().contains("\"n\"") && error.to_string().contains("VLSN 2"), "{error}");
    assert_eq!(solo.read("n").as_deref(), Some("2"));
}

#[test]
fn write_skew_is_a_conflict() {
    let mut solo = Solo::with(&[("a", "1"), ("b", "1")]);
    let (mut one, mut two) = (solo.begin(), solo.begin());
    for (txn, own) in [(&mut one, "a"), (&mut two, "b")] {
        if number(txn, "a") + number(txn, "b") >= 2 {
            put(txn, own, 0);
        }
    }
    solo.commit(&one).unwrap();
    assert!(solo.commit(&two).unwrap_err().is_conflict());
}

#[test]
fn a_phantom_is_a_conflict_within_what_was_walked_and_none_beyond_it() {
    let walk = |take: usize, back: bool, phantom: &str| {
        let mut solo = Solo::with(&[("b", "1"), ("d", "1"), ("f", "1")]);
        let mut reader = solo.begin();
        let range = reader.range::<&[u8]>(&..).unwrap();
        if back {
            range.rev().take(take).for_each(drop);
        } else {
            range.take(take).for_each(drop);
        }
        put(&mut reader, "result", 1);
        let mut writer = solo.begin();
        put(&mut writer, phantom, 1);
        solo.commit(&writer).unwrap();
        solo.commit(&reader).is_err_and(|error| error.is_conflict())
    };
    assert!(walk(9, false, "a") && walk(9, false, "e") && walk(9, false, "z"));
    assert!(walk(2, false, "a") && walk(2, false, "c") && walk(2, false, "d"));
    assert!(!walk(2, false, "e") && !walk(2, false, "f"));
    assert!(walk(1, true, "f") && walk(1, true, "z"));
    assert!(!walk(1, true, "d") && !walk(1, true, "e"));
    assert!(!walk(0, false, "b"));
}

#[test]
fn reading_an_absent_key_conflicts_with_its_creation() {
    let mut solo = Solo::with(&[("a", "1")]);
    let mut one = solo.begin();
    assert_eq!(one.get(b"new").unwrap(), None);
    put(&mut one, "other", 1);
    let mut two = solo.begin();
    put(&mut two, "new", 1);
    solo.commit(&two).unwrap();
    assert!(solo.commit(&one).unwrap_err().is_conflict());
}

#[test]
fn transactions_on_different_keys_and_read_only_ones_never_conflict() {
    let mut solo = Solo::with(&[("a", "1"), ("b", "1")]);
    let (mut one, mut two, mut reader) = (solo.begin(), solo.begin(), solo.begin());
    number(&mut one, "a");
    put(&mut one, "a", 2);
    number(&mut two, "b");
    put(&mut two, "b", 2);
    solo.commit(&one).unwrap();
    solo.commit(&two).unwrap();
    assert_eq!((number(&mut reader, "a"), number(&mut reader, "b")), (1, 1));
    solo.commit(&reader).unwrap();
}

#[test]
fn a_transaction_sees_its_own_writes_over_its_snapshot() {
    let solo = Solo::with(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
    let mut txn = solo.begin();
    put(&mut txn, "b", 2);
    txn.write(b"c", None).unwrap();
    put(&mut txn, "bb", 3);
    txn.write(b"0", None).unwrap();
    put(&mut txn, "e", 4);
    assert_eq!(txn.get(b"b").unwrap().unwrap(), b"2");
    assert_eq!(txn.get(b"c").unwrap(), None);
    assert_eq!(keys(txn.range::<&[u8]>(&..).unwrap()), "a b bb d e");
    assert_eq!(keys(txn.range::<&[u8]>(&..).unwrap().rev()), "e d bb b a");
    assert_eq!(keys(txn.prefix(b"b").unwrap()), "b bb");
    let mut both = txn.range::<&[u8]>(&..).unwrap();
    let ends = [both.next(), both.next_back(), both.next(), both.next_back(), both.next()];
    assert_eq!(keys(ends.into_iter().flatten()), "a e b d bb");
    assert!(both.next().is_none() && both.next_back().is_none());
    assert_eq!(
        keys(txn.range::<&[u8]>(&(&b"c"[..]..&b"a"[..])).unwrap()),
        "",
        "bounds out of order hold nothing"
    );
    assert_eq!(solo.read("b").as_deref(), Some("1"), "nobody else sees it");
}

#[test]
fn limits_are_errors_that_name_them() {
    let solo = Solo::new();
    let mut txn = Workspace::new(solo.view.open_snapshot(None).unwrap(), 1000);
    assert!(matches!(txn.write(b"", Some(b"v")), Err(KvError::KeyEmpty)));
    assert!(matches!(txn.get(b""), Err(KvError::KeyEmpty)));
    let long = vec![b'k'; crate::MAX_KEY_BYTES + 1];
    let error = txn.write(&long, None).unwrap_err().to_string();
    assert!(error.contains("60001 bytes") && error.contains("60000"), "{error}");
    let error = txn.write(b"k", Some(&vec![0; MAX_VALUE_BYTES + 1])).unwrap_err().to_string();
    assert!(error.contains("67108865") && error.contains("67108864"), "{error}");
    txn.write(b"k", Some(&[0; 900])).unwrap();
    txn.write(b"k", Some(&[0; 950])).unwrap();
    let error = txn.write(b"l", Some(&[0; 50])).unwrap_err().to_string();
    assert!(error.contains("max_transaction_bytes is 1000"), "{error}");
    txn.write(b"k", None).unwrap();
    txn.write(b"l", Some(&[0; 50])).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Transactions that interleave in any way have the outcome of running one after the other, in
    /// the order of their commits.
    #[test]
    fn interleaved_transactions_equal_their_serial_order(
        programs in prop::collection::vec(
            (prop::collection::vec((0u8..4, 0u8..6, 0u8..6), 1..6), 0u8..4),
            1..8,
        ),
        schedule in prop::collection::vec(any::<prop::sample::Index>(), 60),
    ) {
        type Program = Vec<(u8, u8, u8)>;
        /// One step; what it reads goes into `seen`, which later writes depend on.
        fn run(txn: &mut Workspace, (op, a, b): (u8, u8, u8), seen: &mut i64) {
            let name = |n: u8| format!("k{n}");
            match op {
                0 => *seen = *seen * 7 + number(txn, &name(a)),
                1 => put(txn, &name(a), *seen % 1000 + i64::from(b)),
                2 => {
                    let (low, high) = (name(a.min(b)), name(a.max(b)));
                    for item in txn.range(&(low.as_bytes()..=high.as_bytes())).unwrap() {
                        let (key, value) = item.unwrap();
                        *seen = *seen * 7 + i64::from(key[1]) + i64::from(value[0]);
                    }
                }
                _ => txn.write(name(a).as_bytes(), None).unwrap(),
            }
        }

        let mut solo = Solo::with(&[("k0", "1"), ("k3", "5")]);
        let mut running: Vec<(usize, usize, Workspace, i64)> = Vec::new();
        let mut next = 0;
        let mut committed: Vec<usize> = Vec::new();
        for pick in schedule {
            if next < programs.len() && (running.is_empty() || pick.index(3) == 0) {
                running.push((next, 0, solo.begin(), 1));
                next += 1;
            }
            if running.is_empty() {
                continue;
            }
            let at = pick.index(running.len());
            let (program, step, txn, seen) = &mut running[at];
            let steps: &Program = &programs[*program].0;
            if let Some(op) = steps.get(*step) {
                run(txn, *op, seen);
                *step += 1;
            } else {
                // A read-only transaction belongs where its snapshot is; only writers are replayed.
                if !txn.is_read_only() && solo.commit(txn).is_ok() {
                    committed.push(*program);
                }
                running.remove(at);
            }
        }

        let mut serial = Solo::with(&[("k0", "1"), ("k3", "5")]);
        for program in committed {
            let mut txn = serial.begin();
            let mut seen = 1;
            for op in &programs[program].0 {
                run(&mut txn, *op, &mut seen);
            }
            serial.commit(&txn).unwrap();
        }
        let all = |solo: &Solo| -> Vec<_> {
            let range = solo.begin().range::<&[u8]>(&..).unwrap();
            range.map(Result::unwrap).collect()
        };
        prop_assert_eq!(all(&solo), all(&serial));
    }
}
