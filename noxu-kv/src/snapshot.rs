//! Snapshot: reads at one VLSN, and the registry of who reads where.
//!
//! # Invariants
//! - `floor <= visible`: whatever is readable is at or above the VLSN through which old versions
//!   may have been dropped.
//! - A registered snapshot is at or above `floor` from its opening on: versions are dropped through
//!   a VLSN only with the registry's lock held and no snapshot below it.
//! - A read whose start and end lie in the same even `generation` saw no rollback.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::error::{KvError, Result};
use crate::table::{Item, Items, KeyRange, Table};
use crate::value::{DEFAULT_KEYSPACE, Key, Value, table_key};

/// The table and who reads it.
pub(crate) struct View {
    pub(crate) table: Box<dyn Table>,
    readers: Readers,
}

struct Readers {
    /// Everything through it is applied and may be read.
    visible: AtomicI64,
    /// Versions hidden at this VLSN may be gone.
    floor: AtomicI64,
    /// Even: settled. Odd: a rollback or install is under way, and reads wait.
    generation: AtomicU64,
    registry: Mutex<Registry>,
    /// Something that a thread waits for under the registry's lock has changed.
    changed: Condvar,
    waiting: AtomicU64,
}

#[derive(Default)]
struct Registry {
    next: u64,
    open: BTreeMap<(Vlsn, u64), Arc<AtomicBool>>,
}

impl View {
    pub(crate) fn new(table: Box<dyn Table>) -> Arc<Self> {
        let applied = table.flushed().vlsn.sequence();
        Arc::new(Self {
            table,
            readers: Readers {
                visible: AtomicI64::new(applied),
                floor: AtomicI64::new(applied),
                generation: AtomicU64::new(0),
                registry: Mutex::default(),
                changed: Condvar::new(),
                waiting: AtomicU64::new(0),
            },
        })
    }

    /// Everything through it is applied and may be read.
    pub(crate) fn visible(&self) -> Vlsn {
        Vlsn::new(self.readers.visible.load(Ordering::Acquire))
    }

    /// The oldest VLSN that can be read at.
    pub(crate) fn floor(&self) -> Vlsn {
        Vlsn::new(self.readers.floor.load(Ordering::Acquire))
    }

    /// Makes everything through `through` readable; the applier's call.
    pub(crate) fn publish(&self, through: Vlsn) {
        self.readers.visible.store(through.sequence(), Ordering::Release);
        // Ordered against `wait_visible`, which counts itself before it looks.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.readers.waiting.load(Ordering::Relaxed) > 0 {
            let _registry = self.readers.registry.lock();
            self.readers.changed.notify_all();
        }
    }

    /// Waits until `wanted` is visible; false if it is not by `deadline`.
    pub(crate) fn wait_visible(&self, wanted: Vlsn, deadline: Instant) -> bool {
        if self.visible() >= wanted {
            return true;
        }
        let mut registry = self.readers.registry.lock();
        self.readers.waiting.fetch_add(1, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        let reached = loop {
            if self.visible() >= wanted {
                break true;
            }
            if self.readers.changed.wait_until(&mut registry, deadline).timed_out() {
                break self.visible() >= wanted;
            }
        };
        self.readers.waiting.fetch_sub(1, Ordering::Relaxed);
        reached
    }

    /// A number that changes whenever history is rewritten.
    pub(crate) fn generation(&self) -> u64 {
        self.readers.generation.load(Ordering::Acquire)
    }

    /// Waits until history has been rewritten since `generation`; false if it is not by `deadline`.
    pub(crate) fn wait_rewritten(&self, generation: u64, deadline: Instant) -> bool {
        let mut registry = self.readers.registry.lock();
        loop {
            let now = self.generation();
            if now != generation && now.is_multiple_of(2) {
                return true;
            }
            if self.readers.changed.wait_until(&mut registry, deadline).timed_out() {
                return false;
            }
        }
    }

    /// Whether versions hidden at `through` may be dropped: nobody reads below it. If so, nobody
    /// will.
    pub(crate) fn may_drop_below(&self, through: Vlsn) -> bool {
        let registry = self.readers.registry.lock();
        let oldest = registry.open.keys().next().map_or(self.visible(), |(vlsn, _)| *vlsn);
        let lawful = oldest.min(self.visible()) >= through;
        if lawful {
            self.readers.floor.fetch_max(through.sequence(), Ordering::AcqRel);
        }
        lawful
    }

    /// Changes history: no read runs while `change` does, snapshots above `keep` end (all of them
    /// without one), and what `change` returns beside its result is visible afterwards.
    pub(crate) fn rewrite_history<T>(
        &self,
        keep: Option<Vlsn>,
        change: impl FnOnce() -> (Vlsn, T),
    ) -> T {
        {
            let mut registry = self.readers.registry.lock();
            let first_ended = keep.map_or((NULL_VLSN, 0), |keep| (keep, u64::MAX));
            for (_, ended) in registry.open.split_off(&first_ended) {
                ended.store(true, Ordering::Release);
            }
            self.readers.generation.fetch_add(1, Ordering::AcqRel);
        }
        let (visible, result) = change();
        let _registry = self.readers.registry.lock();
        self.readers.visible.store(visible.sequence(), Ordering::Release);
        self.readers.floor.fetch_min(visible.sequence(), Ordering::AcqRel);
        self.readers.generation.fetch_add(1, Ordering::AcqRel);
        self.readers.changed.notify_all();
        result
    }

    /// Raises the oldest readable VLSN: what was before it is not there.
    pub(crate) fn raise_floor(&self, floor: Vlsn) {
        self.readers.floor.fetch_max(floor.sequence(), Ordering::AcqRel);
    }

    /// The newest visible value of a key of the table.
    pub(crate) fn latest(&self, table_key: &[u8]) -> Result<Option<Value>> {
        self.settled(|| {
            loop {
                let at = self.visible();
                let found = self.table.value_at(table_key, at);
                // Without a registered snapshot, the versions of `at` may have been dropped
                // between the two lines above; then a newer VLSN is visible by now.
                if self.floor() <= at {
                    return found;
                }
            }
        })
    }

    /// Runs a read in one generation, again if history was rewritten meanwhile.
    fn settled<T>(&self, read: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            let generation = self.readers.generation.load(Ordering::Acquire);
            if generation % 2 == 1 {
                self.wait_settled();
                continue;
            }
            let result = read();
            std::sync::atomic::fence(Ordering::Acquire);
            if self.readers.generation.load(Ordering::Acquire) == generation {
                return result;
            }
        }
    }

    fn wait_settled(&self) {
        let mut registry = self.readers.registry.lock();
        while self.readers.generation.load(Ordering::Acquire) % 2 == 1 {
            self.readers.changed.wait(&mut registry);
        }
    }

    /// Opens a snapshot at the newest visible VLSN, or at `at`.
    pub(crate) fn open_snapshot(self: &Arc<Self>, at: Option<Vlsn>) -> Result<Snapshot> {
        let mut registry = self.readers.registry.lock();
        while self.readers.generation.load(Ordering::Acquire) % 2 == 1 {
            self.readers.changed.wait(&mut registry);
        }
        let applied = self.visible();
        let vlsn = at.unwrap_or(applied);
        if vlsn > applied {
            return Err(KvError::SnapshotTooNew { wanted: vlsn, applied });
        }
        if vlsn < self.floor() {
            return Err(KvError::SnapshotTooOld { wanted: vlsn, oldest: self.floor() });
        }
        let id = registry.next;
        registry.next += 1;
        let ended = Arc::new(AtomicBool::new(false));
        registry.open.insert((vlsn, id), Arc::clone(&ended));
        let registration = Registration { view: Arc::clone(self), vlsn, id, ended };
        Ok(Snapshot { registration: Arc::new(registration) })
    }
}

/// The store as it was at one VLSN. Cheap to clone; while a clone or one of its iterators lives,
/// the versions it shows are kept.
///
/// A rollback below its VLSN ends a snapshot: every later read fails with
/// [`KvError::RolledBack`], and never shows entries of the new history under old VLSNs.
#[derive(Clone)]
pub struct Snapshot {
    registration: Arc<Registration>,
}

struct Registration {
    view: Arc<View>,
    vlsn: Vlsn,
    id: u64,
    ended: Arc<AtomicBool>,
}

impl Registration {
    fn check(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Err(KvError::RolledBack { snapshot: self.vlsn });
        }
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.view.readers.registry.lock().open.remove(&(self.vlsn, self.id));
    }
}

impl Snapshot {
    /// The VLSN it reads at.
    pub fn vlsn(&self) -> Vlsn {
        self.registration.vlsn
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.value_of(&table_key(check_key(key)?))
    }

    /// The keys within `range` and their values; iterate from either end.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<Range> {
        self.items(&table_range(&range)).map(Range::new)
    }

    /// The keys that begin with `prefix`, and their values.
    pub fn prefix(&self, prefix: &[u8]) -> Result<Range> {
        self.items(&prefix_range(prefix)).map(Range::new)
    }

    pub(crate) fn value_of(&self, table_key: &[u8]) -> Result<Option<Value>> {
        let Registration { view, vlsn, .. } = &*self.registration;
        let found = view.settled(|| view.table.value_at(table_key, *vlsn));
        self.registration.check()?;
        found
    }

    pub(crate) fn items(&self, range: &KeyRange) -> Result<SnapshotItems> {
        let Registration { view, vlsn, .. } = &*self.registration;
        let items = view.settled(|| Ok(view.table.range(range, *vlsn)))?;
        self.registration.check()?;
        Ok(SnapshotItems { items, registration: Arc::clone(&self.registration) })
    }

    /// Whether a rollback has ended it.
    pub(crate) fn check(&self) -> Result<()> {
        self.registration.check()
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshot").field(&self.vlsn()).finish()
    }
}

/// Keys of the table and values, as a snapshot sees them. Keeps the snapshot open.
pub(crate) struct SnapshotItems {
    items: Items,
    registration: Arc<Registration>,
}

impl SnapshotItems {
    /// An item stands only if its snapshot does: history may have been rewritten under it.
    fn checked(&self, item: Option<Item>) -> Option<Item> {
        match self.registration.check() {
            Ok(()) => item,
            Err(ended) => Some(Err(ended)),
        }
    }
}

impl Iterator for SnapshotItems {
    type Item = Item;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.items.next();
        self.checked(item)
    }
}

impl DoubleEndedIterator for SnapshotItems {
    fn next_back(&mut self) -> Option<Self::Item> {
        let item = self.items.next_back();
        self.checked(item)
    }
}

/// Keys and values in key order, from either end. Ends after an error.
pub struct Range {
    items: Option<Items>,
}

impl Range {
    pub(crate) fn new(items: impl DoubleEndedIterator<Item = Item> + Send + 'static) -> Self {
        Self { items: Some(Box::new(items)) }
    }

    fn pass(&mut self, item: Option<Item>) -> Option<Result<(Key, Value)>> {
        if matches!(item, Some(Err(_))) {
            self.items = None;
        }
        item.map(|item| item.map(|(key, value)| (Key::of_table_key(key), value)))
    }
}

impl Iterator for Range {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.items.as_mut()?.next();
        self.pass(item)
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        let item = self.items.as_mut()?.next_back();
        self.pass(item)
    }
}

/// A key a caller may use.
pub(crate) fn check_key(key: &[u8]) -> Result<&[u8]> {
    match key.len() {
        0 => Err(KvError::KeyEmpty),
        1..=crate::MAX_KEY_BYTES => Ok(key),
        bytes => Err(KvError::KeyTooLong { bytes }),
    }
}

/// The table's keys for a range of the caller's.
pub(crate) fn table_range<K: AsRef<[u8]>>(range: &impl RangeBounds<K>) -> KeyRange {
    let prefixed = |key: &K| [&[DEFAULT_KEYSPACE], key.as_ref()].concat();
    let from = match range.start_bound() {
        Bound::Unbounded => Bound::Included(vec![DEFAULT_KEYSPACE]),
        bound => bound.map(prefixed),
    };
    let to = match range.end_bound() {
        Bound::Unbounded => Bound::Excluded(vec![DEFAULT_KEYSPACE + 1]),
        bound => bound.map(prefixed),
    };
    KeyRange { from, to }
}

/// The table's keys for the caller's keys that begin with `prefix`.
pub(crate) fn prefix_range(prefix: &[u8]) -> KeyRange {
    let from = [&[DEFAULT_KEYSPACE], prefix].concat();
    // The end is the prefix with its last byte below 255 raised by one. The keyspace's byte in
    // front is one, so there always is an end.
    let mut to = from.clone();
    while to.last() == Some(&u8::MAX) {
        to.pop();
    }
    if let Some(last) = to.last_mut() {
        *last += 1;
    }
    KeyRange { from: Bound::Included(from), to: Bound::Excluded(to) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::memory::MemoryTable;
    use crate::table::{Mark, Version};

    fn v(sequence: i64) -> Vlsn {
        Vlsn::new(sequence)
    }

    fn view() -> Arc<View> {
        View::new(Box::new(MemoryTable::open(crate::MemoryImage::default())))
    }

    fn put(view: &View, key: &str, value: &str, at: i64) {
        let value = Some(Value::from(value.as_bytes()));
        view.table.insert(&mut vec![Version { key: table_key(key.as_bytes()), value, at: v(at) }]);
        view.publish(v(at));
    }

    #[test]
    fn a_snapshot_is_stable_while_newer_versions_come() {
        let view = view();
        put(&view, "a", "1", 1);
        let snapshot = view.open_snapshot(None).unwrap();
        put(&view, "a", "2", 2);
        put(&view, "b", "2", 2);
        assert_eq!(snapshot.get(b"a").unwrap().unwrap(), b"1");
        assert_eq!(snapshot.get(b"b").unwrap(), None);
        assert_eq!(snapshot.range::<&[u8]>(..).unwrap().count(), 1);
        assert_eq!(view.latest(&table_key(b"a")).unwrap().unwrap(), b"2");
    }

    #[test]
    fn an_open_snapshot_keeps_its_versions_from_being_dropped() {
        let view = view();
        put(&view, "a", "1", 1);
        put(&view, "a", "2", 2);
        let old = view.open_snapshot(Some(v(1))).unwrap();
        assert!(view.may_drop_below(v(1)));
        assert!(!view.may_drop_below(v(2)));
        drop(old);
        assert!(!view.may_drop_below(v(3)), "3 is not visible yet");
        assert!(view.may_drop_below(v(2)));
        assert!(matches!(
            view.open_snapshot(Some(v(1))),
            Err(KvError::SnapshotTooOld { wanted, oldest }) if wanted == v(1) && oldest == v(2)
        ));
        assert!(matches!(view.open_snapshot(Some(v(3))), Err(KvError::SnapshotTooNew { .. })));
    }

    #[test]
    fn rewriting_history_ends_the_snapshots_above_it_only() {
        let view = view();
        put(&view, "a", "1", 1);
        let kept = view.open_snapshot(None).unwrap();
        put(&view, "a", "2", 2);
        let ended = view.open_snapshot(None).unwrap();
        let mut open_range = ended.range::<&[u8]>(..).unwrap();
        view.rewrite_history(Some(v(1)), || {
            view.table.clear_unflushed();
            let value = Some(Value::from(&b"1"[..]));
            view.table.insert(&mut vec![Version { key: table_key(b"a"), value, at: v(1) }]);
            (v(1), ())
        });
        put(&view, "a", "other 2", 2);
        assert_eq!(kept.get(b"a").unwrap().unwrap(), b"1");
        assert!(
            matches!(ended.get(b"a"), Err(KvError::RolledBack { snapshot }) if snapshot == v(2))
        );
        assert!(matches!(open_range.next(), Some(Err(KvError::RolledBack { .. }))));
        assert!(open_range.next().is_none());
        assert!(matches!(ended.range::<&[u8]>(..), Err(KvError::RolledBack { .. })));
    }

    #[test]
    fn waiting_for_a_vlsn_ends_when_it_is_published_or_the_time_is_up() {
        let view = view();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(!view.wait_visible(v(1), soon));
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| view.wait_visible(v(2), Instant::now() + Duration::from_secs(30)));
            view.publish(v(1));
            view.publish(v(2));
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn prefixes_of_any_bytes_find_exactly_their_keys() {
        let view = view();
        let keys: [&[u8]; 6] = [b"a", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff\x01"];
        let mut batch: Vec<Version> = keys
            .iter()
            .map(|key| Version { key: table_key(key), value: Some((*key).into()), at: v(1) })
            .collect();
        view.table.insert(&mut batch);
        view.publish(v(1));
        let snapshot = view.open_snapshot(None).unwrap();
        for prefix in [&b""[..], b"a", b"a\xff", b"\xff", b"\xff\xff", b"c", b"b"] {
            let found: Vec<Vec<u8>> =
                snapshot.prefix(prefix).unwrap().map(|item| item.unwrap().0.to_vec()).collect();
            let mut expected: Vec<Vec<u8>> =
                keys.iter().filter(|key| key.starts_with(prefix)).map(|key| key.to_vec()).collect();
            expected.sort();
            assert_eq!(found, expected, "{prefix:?}");
        }
    }

    #[test]
    fn a_reopened_table_is_readable_from_its_mark_on() {
        let image = crate::MemoryImage::default();
        let table = MemoryTable::open(image.clone());
        let value = Some(Value::from(&b"1"[..]));
        table.insert(&mut vec![Version { key: table_key(b"a"), value, at: v(5) }]);
        table.rotate(Mark { vlsn: v(5), ..Mark::default() });
        table.flush(table.sealed().unwrap(), true).unwrap();
        let view = View::new(Box::new(MemoryTable::open(image)));
        assert_eq!(view.visible(), v(5));
        assert_eq!(view.open_snapshot(None).unwrap().get(b"a").unwrap().unwrap(), b"1");
        assert!(matches!(view.open_snapshot(Some(NULL_VLSN)), Err(KvError::SnapshotTooOld { .. })));
    }
}
