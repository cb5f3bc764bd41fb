//! MemoryTable: the in-memory twin of the table on disk, for tests and simulations.
//!
//! What is flushed lives in a [`MemoryImage`] that outlives the table, so dropping the table and
//! opening another one on the same image is a crash.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Mutex, RwLock};

use super::{Ingest, Item, Items, KeyRange, Mark, SealedContent, Table, Version};
use crate::error::Result;
use crate::value::Value;

/// The durable part of an in-memory table: survives the table, as a disk survives a crash.
#[derive(Debug, Clone, Default)]
pub struct MemoryImage {
    flushed: Arc<Mutex<Flushed>>,
}

type Versions = BTreeMap<(Value, Reverse<Vlsn>), Option<Value>>;

#[derive(Debug, Clone, Default)]
struct Flushed {
    versions: Arc<Versions>,
    mark: Mark,
}

/// A table in memory.
pub(crate) struct MemoryTable {
    image: MemoryImage,
    parts: RwLock<Parts>,
    /// Content that was sealed and not adopted yet.
    sealed: Mutex<Option<Arc<Versions>>>,
}

/// What a reader sees, as one value: cloning it is taking a view that later changes leave alone,
/// but for inserts into the active memtable, which lie above what the view may read.
#[derive(Clone)]
struct Parts {
    active: Arc<RwLock<Memtable>>,
    sealed: Option<(Mark, Arc<RwLock<Memtable>>)>,
    flushed: Arc<Versions>,
    mark: Mark,
}

#[derive(Default)]
struct Memtable {
    versions: Versions,
    bytes: u64,
}

impl MemoryTable {
    pub(crate) fn open(image: MemoryImage) -> Self {
        let flushed = image.flushed.lock().clone();
        let parts = Parts {
            active: Arc::default(),
            sealed: None,
            flushed: flushed.versions,
            mark: flushed.mark,
        };
        Self { image, parts: RwLock::new(parts), sealed: Mutex::default() }
    }

    fn store_image(&self, versions: Arc<Versions>, mark: Mark) {
        *self.image.flushed.lock() = Flushed { versions, mark };
    }
}

impl Table for MemoryTable {
    fn insert(&self, batch: &mut Vec<Version>) {
        let active = Arc::clone(&self.parts.read().active);
        let mut active = active.write();
        for Version { key, value, at } in batch.drain(..) {
            active.bytes += (key.len() + value.as_ref().map_or(0, |v| v.len()) + 64) as u64;
            active.versions.insert((key, Reverse(at)), value);
        }
    }

    fn active_bytes(&self) -> u64 {
        self.parts.read().active.read().bytes
    }

    fn rotate(&self, mark: Mark) -> bool {
        let mut parts = self.parts.write();
        if parts.sealed.is_some() || mark.vlsn <= parts.mark.vlsn {
            return false;
        }
        let active = std::mem::take(&mut parts.active);
        parts.sealed = Some((mark, active));
        true
    }

    fn sealed(&self) -> Option<Mark> {
        self.parts.read().sealed.as_ref().map(|(mark, _)| *mark)
    }

    fn flushed(&self) -> Mark {
        self.parts.read().mark
    }

    fn flush(&self, expected: Mark, newest_only: bool) -> Result<bool> {
        let mut parts = self.parts.write();
        let Some((mark, sealed)) = parts.sealed.take_if(|(mark, _)| *mark == expected) else {
            return Ok(false);
        };
        let mut versions = Versions::clone(&parts.flushed);
        versions
            .extend(sealed.read().versions.iter().map(|(key, value)| (key.clone(), value.clone())));
        if newest_only {
            drop_hidden(&mut versions);
        }
        parts.flushed = Arc::new(versions);
        parts.mark = mark;
        self.store_image(Arc::clone(&parts.flushed), mark);
        Ok(true)
    }

    fn compact_step(&self, newest_only: bool) -> Result<bool> {
        if newest_only {
            let mut parts = self.parts.write();
            let mut versions = Versions::clone(&parts.flushed);
            drop_hidden(&mut versions);
            parts.flushed = Arc::new(versions);
            self.store_image(Arc::clone(&parts.flushed), parts.mark);
        }
        Ok(false)
    }

    fn clear_unflushed(&self) {
        let mut parts = self.parts.write();
        parts.active = Arc::default();
        parts.sealed = None;
    }

    fn value_at(&self, key: &[u8], at: Vlsn) -> Result<Option<Value>> {
        let parts = self.parts.read().clone();
        Ok(parts.value_at(&Value::from(key), at))
    }

    fn range(&self, range: &KeyRange, at: Vlsn) -> Items {
        let parts = self.parts.read().clone();
        Box::new(Cursor { parts, at, left: range.clone() })
    }

    fn ingest(&self) -> Result<Box<dyn Ingest + '_>> {
        *self.sealed.lock() = None;
        Ok(Box::new(MemoryIngest { table: self, pairs: BTreeMap::new() }))
    }

    fn adopt(&self, sealed: SealedContent) -> Result<()> {
        let flushed = self.sealed.lock().take().expect("sealed before it is adopted");
        let mark = sealed.mark;
        let mut parts = self.parts.write();
        let (active, sealed) = (Arc::default(), None);
        *parts = Parts { active, sealed, flushed: Arc::clone(&flushed), mark };
        self.store_image(flushed, mark);
        Ok(())
    }

    fn disk_usage(&self) -> (u64, usize) {
        let parts = self.parts.read();
        let size = |((key, _), value): (&(Value, _), &Option<Value>)| {
            (key.len() + value.as_ref().map_or(0, |v| v.len())) as u64
        };
        (parts.flushed.iter().map(size).sum(), usize::from(!parts.flushed.is_empty()))
    }
}

/// Keeps the newest version of each key, and none of a key whose newest version is a deletion.
fn drop_hidden(versions: &mut Versions) {
    let mut last: Option<Value> = None;
    versions.retain(|(key, _), value| {
        let newest = last.as_ref() != Some(key);
        if newest {
            last = Some(key.clone());
        }
        newest && value.is_some()
    });
}

impl Parts {
    fn value_at(&self, key: &Value, at: Vlsn) -> Option<Value> {
        let newest = |versions: &Versions| {
            let first = (key.clone(), Reverse(at));
            let (found, value) = versions.range(first..).next()?;
            (found.0 == *key).then(|| value.clone())
        };
        // Newest part first: a part's versions of a key are all newer than those of the next part.
        newest(&self.active.read().versions)
            .or_else(|| self.sealed.as_ref().and_then(|(_, part)| newest(&part.read().versions)))
            .or_else(|| newest(&self.flushed))
            .flatten()
    }

    /// The nearest key of any part within the bounds, from the front or from the back.
    fn next_key(&self, range: &KeyRange, back: bool) -> Option<Value> {
        if range.is_empty() {
            return None;
        }
        // A key's newest version comes first.
        let first = |key: &[u8]| (Value::from(key), Reverse(Vlsn::new(i64::MAX)));
        let last = |key: &[u8]| (Value::from(key), Reverse(NULL_VLSN));
        let (from, to) = range.bounds();
        let low = match from {
            Bound::Included(key) => Bound::Included(first(key)),
            Bound::Excluded(key) => Bound::Excluded(last(key)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let high = match to {
            Bound::Included(key) => Bound::Included(last(key)),
            Bound::Excluded(key) => Bound::Excluded(first(key)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let nearest = |versions: &Versions| {
            let mut range = versions.range((low.clone(), high.clone()));
            let found = if back { range.next_back() } else { range.next() };
            found.map(|((key, _), _)| key.clone())
        };
        let keys = [
            nearest(&self.active.read().versions),
            self.sealed.as_ref().and_then(|(_, part)| nearest(&part.read().versions)),
            nearest(&self.flushed),
        ];
        let keys = keys.into_iter().flatten();
        if back { keys.max() } else { keys.min() }
    }
}

/// Walks a view key by key, narrowing its bounds from both ends.
struct Cursor {
    parts: Parts,
    at: Vlsn,
    left: KeyRange,
}

impl Iterator for Cursor {
    type Item = Item;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.parts.next_key(&self.left, false)?;
            self.left.from = Bound::Excluded(key.to_vec());
            if let Some(value) = self.parts.value_at(&key, self.at) {
                return Some(Ok((key, value)));
            }
        }
    }
}

impl DoubleEndedIterator for Cursor {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let key = self.parts.next_key(&self.left, true)?;
            self.left.to = Bound::Excluded(key.to_vec());
            if let Some(value) = self.parts.value_at(&key, self.at) {
                return Some(Ok((key, value)));
            }
        }
    }
}

struct MemoryIngest<'a> {
    table: &'a MemoryTable,
    pairs: BTreeMap<Value, Value>,
}

impl Ingest for MemoryIngest<'_> {
    fn put(&mut self, key: Value, value: Value) -> Result<()> {
        self.pairs.insert(key, value);
        Ok(())
    }

    fn write_over(&mut self, batch: &mut Vec<Version>) -> Result<()> {
        for Version { key, value, .. } in batch.drain(..) {
            match value {
                Some(value) => self.pairs.insert(key, value),
                None => self.pairs.remove(&key),
            };
        }
        Ok(())
    }

    fn seal(self: Box<Self>, mark: Mark) -> Result<SealedContent> {
        let versions: Versions = self
            .pairs
            .into_iter()
            .map(|(key, value)| ((key, Reverse(mark.vlsn)), Some(value)))
            .collect();
        *self.table.sealed.lock() = Some(Arc::new(versions));
        Ok(SealedContent { mark, number: 0 })
    }
}
