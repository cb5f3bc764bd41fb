//! One conformance suite for every [`Table`].

use std::collections::BTreeMap;
use std::ops::Bound;

use noxu_util::{Fingerprint, NULL_VLSN, Term, Vlsn};
use proptest::prelude::*;

use super::lsm::LsmTable;
use super::memory::{MemoryImage, MemoryTable};
use super::{Items, KeyRange, Mark, Table, Version};
use crate::value::Value;

/// A table together with what it takes to crash and reopen it.
enum Bench {
    Memory(MemoryImage, Option<MemoryTable>),
    Lsm(tempfile::TempDir, Option<LsmTable>),
}

impl Bench {
    fn both() -> [Self; 2] {
        let image = MemoryImage::default();
        let dir = tempfile::tempdir().unwrap();
        let lsm = LsmTable::open(dir.path(), 1 << 20).unwrap();
        [Self::Memory(image.clone(), Some(MemoryTable::open(image))), Self::Lsm(dir, Some(lsm))]
    }

    fn table(&self) -> &dyn Table {
        match self {
            Self::Memory(_, table) => table.as_ref().unwrap(),
            Self::Lsm(_, table) => table.as_ref().unwrap(),
        }
    }

    /// Loses what is not flushed, as a crash does.
    fn reopen(&mut self) {
        match self {
            Self::Memory(image, table) => {
                drop(table.take());
                *table = Some(MemoryTable::open(image.clone()));
            }
            Self::Lsm(dir, table) => {
                drop(table.take());
                *table = Some(LsmTable::open(dir.path(), 1 << 20).unwrap());
            }
        }
    }
}

fn on_each_table(test: impl Fn(&mut Bench)) {
    for mut bench in Bench::both() {
        test(&mut bench);
    }
}

fn v(sequence: i64) -> Vlsn {
    Vlsn::new(sequence)
}

fn mark(sequence: i64) -> Mark {
    Mark {
        vlsn: v(sequence),
        term: Term::new(1),
        fingerprint: Fingerprint::from_u64(sequence as u64 * 7),
    }
}

fn put(table: &dyn Table, key: &str, value: &str, at: i64) {
    let value = Some(Value::from(value.as_bytes()));
    table.insert(&mut vec![Version { key: Value::from(key.as_bytes()), value, at: v(at) }]);
}

fn delete(table: &dyn Table, key: &str, at: i64) {
    table.insert(&mut vec![Version { key: Value::from(key.as_bytes()), value: None, at: v(at) }]);
}

fn read(table: &dyn Table, key: &str, at: i64) -> Option<String> {
    let value = table.value_at(key.as_bytes(), v(at)).unwrap()?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

fn flush(table: &dyn Table, newest_only: bool) -> Option<Mark> {
    let mark = table.sealed()?;
    assert!(table.flush(mark, newest_only).unwrap());
    Some(mark)
}

fn compact(table: &dyn Table, newest_only: bool) {
    while table.compact_step(newest_only).unwrap() {}
}

fn texts(items: impl Iterator<Item = crate::Result<(Value, Value)>>) -> Vec<(String, String)> {
    let text = |bytes: Value| String::from_utf8(bytes.to_vec()).unwrap();
    items.map(|item| item.map(|(k, v)| (text(k), text(v))).unwrap()).collect()
}

/// Everything but the table's own keys.
fn all(table: &dyn Table, at: i64) -> Items {
    table.range(&KeyRange::everything(), v(at))
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_read_sees_the_newest_version_at_or_below_its_vlsn() {
    on_each_table(|bench| {
        let table = bench.table();
        put(table, "a", "3", 3);
        put(table, "a", "5", 5);
        delete(table, "a", 7);
        for (at, expected) in [
            (0, None),
            (2, None),
            (3, Some("3")),
            (4, Some("3")),
            (5, Some("5")),
            (6, Some("5")),
            (7, None),
        ] {
            assert_eq!(read(table, "a", at).as_deref(), expected, "at {at}");
        }
        assert_eq!(read(table, "b", 9), None);
    });
}

#[test]
fn versions_stay_readable_through_rotation_flush_and_reopening() {
    on_each_table(|bench| {
        put(bench.table(), "a", "1", 1);
        assert!(bench.table().rotate(mark(1)));
        put(bench.table(), "a", "2", 2);
        for _ in 0..2 {
            assert_eq!(read(bench.table(), "a", 1).as_deref(), Some("1"));
            assert_eq!(read(bench.table(), "a", 2).as_deref(), Some("2"));
            flush(bench.table(), false);
        }
        assert!(bench.table().rotate(mark(2)));
        flush(bench.table(), false);
        compact(bench.table(), false);
        bench.reopen();
        assert_eq!(bench.table().flushed(), mark(2));
        assert_eq!(read(bench.table(), "a", 1).as_deref(), Some("1"));
        assert_eq!(read(bench.table(), "a", 2).as_deref(), Some("2"));
    });
}

#[test]
fn a_crash_leaves_exactly_what_was_flushed() {
    on_each_table(|bench| {
        assert_eq!(bench.table().flushed(), Mark::default());
        put(bench.table(), "a", "1", 1);
        bench.table().rotate(mark(1));
        flush(bench.table(), false);
        put(bench.table(), "a", "2", 2);
        bench.table().rotate(mark(2));
        put(bench.table(), "a", "3", 3);
        bench.reopen();
        assert_eq!(bench.table().flushed(), mark(1));
        assert_eq!(bench.table().sealed(), None);
        assert_eq!(read(bench.table(), "a", 9).as_deref(), Some("1"));
    });
}

#[test]
fn a_second_rotation_is_refused_until_the_sealed_memtable_is_flushed() {
    on_each_table(|bench| {
        let table = bench.table();
        put(table, "a", "1", 1);
        assert!(table.rotate(mark(1)));
        put(table, "a", "2", 2);
        assert!(!table.rotate(mark(2)));
        assert_eq!(table.sealed(), Some(mark(1)));
        assert_eq!(flush(table, false), Some(mark(1)));
        assert!(!table.flush(mark(1), false).unwrap());
        assert!(table.rotate(mark(2)));
        assert!(!table.flush(mark(3), false).unwrap(), "another memtable is sealed");
        assert_eq!(flush(table, false), Some(mark(2)));
        assert!(!table.rotate(mark(2)), "nothing is new");
    });
}

#[test]
fn clearing_forgets_both_memtables_even_when_the_active_one_is_empty() {
    on_each_table(|bench| {
        let table = bench.table();
        put(table, "a", "1", 1);
        table.rotate(mark(1));
        flush(table, false);
        put(table, "a", "2", 2);
        put(table, "b", "2", 2);
        table.rotate(mark(2));
        table.clear_unflushed();
        assert_eq!(table.sealed(), None);
        assert_eq!(texts(all(table, 9)), pairs(&[("a", "1")]));
        put(table, "c", "other 2", 2);
        assert_eq!(texts(all(table, 2)), pairs(&[("a", "1"), ("c", "other 2")]));
        table.clear_unflushed();
        table.clear_unflushed();
        assert_eq!(texts(all(table, 9)), pairs(&[("a", "1")]));
        assert!(table.rotate(mark(3)), "an empty memtable still carries its mark");
        flush(table, false);
        assert_eq!(table.flushed(), mark(3));
    });
}

#[test]
fn an_open_iterator_is_not_disturbed_by_writes_flushes_and_clearing() {
    on_each_table(|bench| {
        let table = bench.table();
        for (n, key) in ["a", "b", "c", "d"].iter().enumerate() {
            put(table, key, key, n as i64 + 1);
        }
        let mut items = all(table, 4);
        assert_eq!(texts(items.next().into_iter()), pairs(&[("a", "a")]));
        assert!(table.rotate(mark(4)));
        put(table, "bb", "new", 5);
        flush(table, false);
        delete(table, "c", 6);
        assert_eq!(texts(items.next_back().into_iter()), pairs(&[("d", "d")]));
        table.clear_unflushed();
        assert_eq!(texts(items), pairs(&[("b", "b"), ("c", "c")]));
    });
}

#[test]
fn ranges_honour_their_bounds_in_both_directions() {
    use Bound::{Excluded, Included, Unbounded};
    on_each_table(|bench| {
        let table = bench.table();
        for key in ["a", "ab", "b", "c"] {
            put(table, key, key, 1);
        }
        let keys = |from: Bound<&str>, to: Bound<&str>| {
            let bound = |bound: Bound<&str>| bound.map(|key| key.as_bytes().to_vec());
            let range = || table.range(&KeyRange { from: bound(from), to: bound(to) }, v(1));
            let forward: Vec<_> = texts(range()).into_iter().map(|(k, _)| k).collect();
            let mut backward: Vec<_> = texts(range().rev()).into_iter().map(|(k, _)| k).collect();
            backward.reverse();
            assert_eq!(forward, backward);
            forward.join(" ")
        };
        assert_eq!(keys(Included("a"), Unbounded), "a ab b c");
        assert_eq!(keys(Excluded("a"), Included("b")), "ab b");
        assert_eq!(keys(Included("ab"), Excluded("c")), "ab b");
        assert_eq!(keys(Included("b"), Included("b")), "b");
        assert_eq!(keys(Included("b"), Excluded("b")), "");
        assert_eq!(keys(Excluded("b"), Excluded("b")), "");
        assert_eq!(keys(Included("c"), Included("a")), "");
        assert_eq!(keys(Unbounded, Excluded("ab")), "a");
    });
}

#[test]
fn a_version_hidden_only_from_newer_readers_survives_flush_and_compaction() {
    on_each_table(|bench| {
        let table = bench.table();
        for at in 1..=6 {
            put(table, "a", &at.to_string(), at * 2);
            table.rotate(mark(at * 2));
            flush(table, false);
        }
        compact(table, false);
        for at in 1..=6 {
            assert_eq!(read(table, "a", at * 2), Some(at.to_string()));
            assert_eq!(read(table, "a", at * 2 + 1), Some(at.to_string()));
        }
        compact(table, true);
        assert_eq!(read(table, "a", 12).as_deref(), Some("6"));
    });
}

#[test]
fn ingesting_replaces_everything_in_one_step() {
    on_each_table(|bench| {
        put(bench.table(), "old", "1", 1);
        bench.table().rotate(mark(1));
        flush(bench.table(), false);
        put(bench.table(), "old2", "2", 2);
        for finish in [false, true] {
            let mut ingest = bench.table().ingest().unwrap();
            for n in 0..1000 {
                let key = Value::from(format!("k{n:04}").into_bytes());
                ingest.put(key, Value::from(n.to_string().into_bytes())).unwrap();
            }
            if finish {
                let sealed = ingest.seal(mark(50)).unwrap();
                bench.table().adopt(sealed).unwrap();
            } else {
                drop(ingest);
                assert_eq!(texts(all(bench.table(), 9)), pairs(&[("old", "1"), ("old2", "2")]));
            }
        }
        for _ in 0..2 {
            let table = bench.table();
            assert_eq!(table.flushed(), mark(50));
            assert_eq!(all(table, 50).count(), 1000);
            assert_eq!(read(table, "k0999", 50).as_deref(), Some("999"));
            assert_eq!(read(table, "old", 50), None);
            bench.reopen();
        }
        put(bench.table(), "k0000", "newer", 51);
        bench.table().rotate(mark(51));
        flush(bench.table(), true);
        compact(bench.table(), true);
        assert_eq!(read(bench.table(), "k0000", 51).as_deref(), Some("newer"));
        assert_eq!(read(bench.table(), "k0001", 51).as_deref(), Some("1"));
        assert_eq!(all(bench.table(), 51).count(), 1000);
    });
}

#[test]
fn an_empty_ingest_leaves_an_empty_table_with_its_mark() {
    on_each_table(|bench| {
        put(bench.table(), "old", "1", 1);
        let sealed = bench.table().ingest().unwrap().seal(mark(5)).unwrap();
        bench.table().adopt(sealed).unwrap();
        assert_eq!(bench.table().flushed(), mark(5));
        bench.reopen();
        assert_eq!(bench.table().flushed(), mark(5));
        assert_eq!(all(bench.table(), 5).count(), 0);
    });
}

#[test]
fn a_damaged_current_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmTable::open(dir.path(), 1 << 20).unwrap());
    let path = dir.path().join("current");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, bad).unwrap();
        let message = LsmTable::open(dir.path(), 1 << 20).err().unwrap().to_string();
        assert!(message.contains("current") && message.contains("expected"), "{message}");
    }
    std::fs::write(&path, &good[..7]).unwrap();
    assert!(LsmTable::open(dir.path(), 1 << 20).is_err());
    std::fs::write(&path, good).unwrap();
    LsmTable::open(dir.path(), 1 << 20).unwrap();
}

#[test]
fn a_tree_is_not_opened_again_under_a_live_iterator() {
    let dir = tempfile::tempdir().unwrap();
    let table = LsmTable::open(dir.path(), 1 << 20).unwrap();
    put(&table, "a", "1", 1);
    let items = all(&table, 1);
    drop(table);
    let message = LsmTable::open(dir.path(), 1 << 20).err().unwrap().to_string();
    assert!(message.contains("still open in this process"), "{message}");
    drop(items);
    LsmTable::open(dir.path(), 1 << 20).unwrap();
}

#[test]
fn leftovers_of_an_interrupted_install_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(LsmTable::open(dir.path(), 1 << 20).unwrap());
    let leftover = dir.path().join("tree-2");
    std::fs::create_dir(&leftover).unwrap();
    std::fs::write(leftover.join("x"), b"x").unwrap();
    drop(LsmTable::open(dir.path(), 1 << 20).unwrap());
    assert!(!leftover.exists());
}

/// What a table must be equal to.
#[derive(Default)]
struct Model {
    versions: BTreeMap<String, BTreeMap<i64, Option<String>>>,
    last: i64,
    sealed: Option<i64>,
    flushed: i64,
    /// Nobody reads below this.
    floor: i64,
}

impl Model {
    fn forget_above(&mut self, at: i64) {
        for versions in self.versions.values_mut() {
            versions.retain(|v, _| *v <= at);
        }
        self.last = at;
        self.sealed = None;
    }

    fn at(&self, at: i64) -> Vec<(String, String)> {
        let newest = |versions: &BTreeMap<i64, Option<String>>| {
            versions.range(..=at).next_back().and_then(|(_, value)| value.clone())
        };
        self.versions.iter().filter_map(|(k, vs)| Some((k.clone(), newest(vs)?))).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(u8, Option<u8>)>),
    Rotate,
    Flush { newest_only: bool },
    Compact { newest_only: bool },
    Clear,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = prop::collection::vec((0u8..12, prop::option::weighted(0.8, any::<u8>())), 1..6);
    let step = prop_oneof![
        8 => write.prop_map(Step::Write),
        3 => Just(Step::Rotate),
        3 => any::<bool>().prop_map(|newest_only| Step::Flush { newest_only }),
        1 => any::<bool>().prop_map(|newest_only| Step::Compact { newest_only }),
        1 => Just(Step::Clear),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

fn follows_the_model(mut bench: Bench, steps: &[Step]) {
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Write(writes) => {
                model.last += 1;
                let mut batch = Vec::new();
                for (key, value) in writes {
                    let (key, value) = (format!("k{key}"), value.map(|v| v.to_string()));
                    batch.push(Version {
                        key: Value::from(key.as_bytes()),
                        value: value.clone().map(|v| Value::from(v.into_bytes())),
                        at: v(model.last),
                    });
                    model.versions.entry(key).or_default().insert(model.last, value);
                }
                bench.table().insert(&mut batch);
                assert!(batch.is_empty());
            }
            Step::Rotate => {
                let lawful = model.sealed.is_none() && model.last > model.flushed;
                assert_eq!(bench.table().rotate(mark(model.last)), lawful);
                if lawful {
                    model.sealed = Some(model.last);
                }
            }
            Step::Flush { newest_only } => {
                let flushed = flush(bench.table(), *newest_only);
                assert_eq!(flushed, model.sealed.map(mark));
                if let Some(at) = model.sealed.take() {
                    model.flushed = at;
                    if *newest_only {
                        model.floor = at;
                    }
                }
            }
            Step::Compact { newest_only } => {
                compact(bench.table(), *newest_only);
                if *newest_only {
                    model.floor = model.flushed;
                }
            }
            Step::Clear => {
                bench.table().clear_unflushed();
                model.forget_above(model.flushed);
            }
            Step::Reopen => {
                bench.reopen();
                model.forget_above(model.flushed);
            }
        }
        let table = bench.table();
        let flushed = if model.flushed == 0 { Mark::default() } else { mark(model.flushed) };
        assert_eq!(table.flushed(), flushed);
        assert_eq!(table.sealed(), model.sealed.map(mark));
        for at in [model.floor, i64::midpoint(model.floor, model.last), model.last] {
            let expected = model.at(at);
            assert_eq!(texts(all(table, at)), expected, "at {at}");
            let mut backward = texts(all(table, at).rev());
            backward.reverse();
            assert_eq!(backward, expected, "backward at {at}");
            for key in 0..12 {
                let key = format!("k{key}");
                let value = expected.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
                assert_eq!(read(table, &key, at), value, "{key} at {at}");
            }
        }
    }
    assert_eq!(bench.table().value_at(b"k1", NULL_VLSN).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_table_follows_the_model(steps in steps()) {
        let [memory, _] = Bench::both();
        follows_the_model(memory, &steps);
    }

    #[test]
    fn the_lsm_table_follows_the_model(steps in steps()) {
        let [_, lsm] = Bench::both();
        follows_the_model(lsm, &steps);
    }
}
