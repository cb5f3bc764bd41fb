//! Txn: one transaction's reads at its snapshot and its writes, until it commits.
//!
//! Reads go to the snapshot, overlaid with the transaction's own writes. What was read is noted: a
//! key looked up, whether it was there or not, and the stretch of a range that was really walked
//! (so a key that appears in it later is a conflict, but one beyond it is not).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use noxu_util::Vlsn;
use parking_lot::Mutex;

use crate::MAX_VALUE_BYTES;
use crate::conflicts::Footprint;
use crate::encode::encode;
use crate::error::{KvError, Result};
use crate::snapshot::{Range, Snapshot, SnapshotItems, check_key, prefix_range, table_range};
use crate::table::{Item, KeyRange};
use crate::value::{Value, table_key};

/// What a transaction has read and is going to write.
#[derive(Debug)]
pub(crate) struct Workspace {
    snapshot: Snapshot,
    reads: BTreeSet<Value>,
    ranges: Vec<Arc<Mutex<Walked>>>,
    writes: BTreeMap<Value, Option<Value>>,
    write_bytes: u64,
    max_bytes: u64,
}

/// The part of a range that has been walked.
#[derive(Debug)]
struct Walked {
    range: KeyRange,
    /// The last key seen from the front, and from the back.
    front: Option<Value>,
    back: Option<Value>,
    whole: bool,
}

impl Workspace {
    pub(crate) fn new(snapshot: Snapshot, max_bytes: u64) -> Self {
        Self {
            snapshot,
            reads: BTreeSet::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
            write_bytes: 0,
            max_bytes,
        }
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.writes.is_empty()
    }

    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Value>> {
        let key = table_key(check_key(key)?);
        if let Some(own) = self.writes.get(&key) {
            return Ok(own.clone());
        }
        let found = self.snapshot.value_of(&key)?;
        self.reads.insert(key);
        Ok(found)
    }

    pub(crate) fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let key = table_key(check_key(key)?);
        let value_bytes = value.map_or(0, <[u8]>::len);
        if value_bytes > MAX_VALUE_BYTES {
            return Err(KvError::ValueTooLong { bytes: value_bytes });
        }
        let size = |value: &Option<Value>| value.as_ref().map_or(0, |value| value.len() as u64);
        let replaced = self.writes.get(&key).map_or(0, |old| key.len() as u64 + size(old));
        let bytes = self.write_bytes - replaced + (key.len() + value_bytes) as u64;
        if bytes > self.max_bytes {
            return Err(KvError::TransactionTooLarge { bytes, max: self.max_bytes });
        }
        self.write_bytes = bytes;
        self.writes.insert(key, value.map(Value::from));
        Ok(())
    }

    pub(crate) fn range<K: AsRef<[u8]>>(&mut self, range: &impl RangeBounds<K>) -> Result<Range> {
        self.walk(table_range(range))
    }

    pub(crate) fn prefix(&mut self, prefix: &[u8]) -> Result<Range> {
        self.walk(prefix_range(prefix))
    }

    fn walk(&mut self, range: KeyRange) -> Result<Range> {
        let items = self.snapshot.items(&range)?;
        // A scan, not a seek: transactions are short, and bounds may be out of order.
        let own = self.writes.iter().filter(|(key, _)| range.holds(key));
        let own = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        let walked = Walked { range, front: None, back: None, whole: false };
        let walked = Arc::new(Mutex::new(walked));
        self.ranges.push(Arc::clone(&walked));
        Ok(Range::new(Overlay { items, own, front: None, back: None, walked }))
    }

    /// Everything a commit by somebody else may not have touched.
    pub(crate) fn footprint(&self) -> Footprint<'_> {
        let keys = self.reads.iter().chain(self.writes.keys()).collect();
        let ranges = self.ranges.iter().flat_map(|walked| walked.lock().stretches()).collect();
        Footprint { keys, ranges }
    }

    pub(crate) fn written_keys(&self) -> impl Iterator<Item = &Value> {
        self.writes.keys()
    }

    /// The bodies of the entries to write.
    pub(crate) fn encode(&self, wall_ms: u64) -> Vec<Vec<u8>> {
        encode(self.writes.iter().map(|(key, value)| (&**key, value.as_deref())), wall_ms)
    }

    /// The error for a conflict that [`crate::conflicts::Conflicts`] found.
    pub(crate) fn conflict(snapshot: Vlsn, found: crate::conflicts::Conflict) -> KvError {
        let key = match found.key {
            Some(key) => crate::value::shown(key.get(1..).unwrap_or_default()),
            None => "a key".to_owned(),
        };
        KvError::Conflict { key, newer: found.newer, snapshot }
    }
}

impl Walked {
    fn stretches(&self) -> Vec<KeyRange> {
        if self.whole {
            return vec![self.range.clone()];
        }
        let end = |key: &Value| Bound::Included(key.to_vec());
        let front =
            self.front.as_ref().map(|last| KeyRange { to: end(last), ..self.range.clone() });
        let back =
            self.back.as_ref().map(|last| KeyRange { from: end(last), ..self.range.clone() });
        front.into_iter().chain(back).collect()
    }
}

/// A snapshot's items with a transaction's own writes laid over them.
struct Overlay {
    items: SnapshotItems,
    own: VecDeque<(Value, Option<Value>)>,
    /// Items of the snapshot that were looked at and not handed out yet.
    front: Option<(Value, Value)>,
    back: Option<(Value, Value)>,
    walked: Arc<Mutex<Walked>>,
}

impl Overlay {
    fn fill_front(&mut self) -> Result<()> {
        if self.front.is_none() {
            if let Some(item) = self.items.next().transpose()? {
                self.walked.lock().front = Some(item.0.clone());
                self.front = Some(item);
            } else {
                self.walked.lock().whole = true;
                self.front = self.back.take();
            }
        }
        Ok(())
    }

    fn fill_back(&mut self) -> Result<()> {
        if self.back.is_none() {
            if let Some(item) = self.items.next_back().transpose()? {
                self.walked.lock().back = Some(item.0.clone());
                self.back = Some(item);
            } else {
                self.walked.lock().whole = true;
                self.back = self.front.take();
            }
        }
        Ok(())
    }
}

impl Iterator for Overlay {
    type Item = Item;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Err(cause) = self.fill_front() {
                return Some(Err(cause));
            }
            let Some((own, _)) = self.own.front() else {
                return self.front.take().map(Ok);
            };
            if let Some((stored, _)) = &self.front {
                if stored < own {
                    return self.front.take().map(Ok);
                }
                if stored == own {
                    self.front = None;
                }
            }
            if let Some((key, Some(value))) = self.own.pop_front() {
                return Some(Ok((key, value)));
            }
        }
    }
}

impl DoubleEndedIterator for Overlay {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Err(cause) = self.fill_back() {
                return Some(Err(cause));
            }
            let Some((own, _)) = self.own.back() else {
                return self.back.take().map(Ok);
            };
            if let Some((stored, _)) = &self.back {
                if stored > own {
                    return self.back.take().map(Ok);
                }
                if stored == own {
                    self.back = None;
                }
            }
            if let Some((key, Some(value))) = self.own.pop_back() {
                return Some(Ok((key, value)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
