//! Ranges: the store's content as pairs for a copy by ranges of keys, and its way back into a table.
//!
//! # Invariants
//! - A range is read at the newest mark of the table that is flushed when it is read: a transaction's end that
//!   is never rolled back. A snapshot is held only that long.
//! - A copy and its redo are written to a table that is not in force yet; it becomes the store's in one
//!   step, at the newest moment of the copy. So nobody sees the copy without its redo, and no rollback
//!   can end between the two: what is flushed is not rolled back.

use std::ops::Bound;

use noxu_rep::sync::ranges::{KeyRange as Asked, Moment, Pairs, RangedState, Redo};
use noxu_util::Vlsn;

use crate::apply::{Applier, Machine};
use crate::checkpoint::{check_lengths, check_order};
use crate::error::{KvError, Result};
use crate::state_machine::{log_entry, report};
use crate::table::{KeyRange, Mark, SealedContent, Table};
use crate::value::Value;

impl RangedState for Machine {
    fn freshen(&self) -> noxu_rep::Result<Vlsn> {
        self.checkpoint().map_err(report)
    }

    fn first_key(&self, from: &[u8]) -> noxu_rep::Result<Option<Vec<u8>>> {
        self.edge(&Asked { from, below: None }, false).map_err(report)
    }

    fn last_key(&self, below: Option<&[u8]>) -> noxu_rep::Result<Option<Vec<u8>>> {
        self.edge(&Asked { from: &[], below }, true).map_err(report)
    }

    fn read(
        &self,
        range: &Asked<'_>,
        sink: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> noxu_rep::Result<Moment> {
        let (snapshot, mark) = self.durable_snapshot().map_err(report)?;
        for item in snapshot.items(&keys(range)).map_err(report)? {
            let (key, value) = item.map_err(report)?;
            if !sink(&key, &value) {
                break;
            }
        }
        Ok(Moment { vlsn: mark.vlsn, token: mark.encode() })
    }

    fn replace(&self, copy: &mut dyn Pairs, redo: &Redo<'_>) -> noxu_rep::Result<()> {
        Self::replace(self, |table| rebuild(table, copy, redo)).map_err(report)
    }
}

impl Machine {
    /// The first key of a range, or its last.
    fn edge(&self, range: &Asked<'_>, last: bool) -> Result<Option<Vec<u8>>> {
        let (snapshot, _) = self.durable_snapshot()?;
        let mut items = snapshot.items(&keys(range))?;
        let found = if last { items.next_back() } else { items.next() };
        Ok(found.transpose()?.map(|(key, _)| key.to_vec()))
    }
}

/// The callers' keys within a range.
fn keys(asked: &Asked<'_>) -> KeyRange {
    let mut range = KeyRange::everything();
    if range.holds(asked.from) {
        range.from = Bound::Included(asked.from.to_vec());
    }
    if let Some(below) = asked.below {
        range.to = Bound::Excluded(below.to_vec());
    }
    range
}

/// Makes content for `table` of `copy` with `redo` over it.
fn rebuild(table: &dyn Table, copy: &mut dyn Pairs, redo: &Redo<'_>) -> Result<SealedContent> {
    let bad = |cause: String| KvError::BadCheckpoint { cause };
    let after = Mark::decode(&redo.after.token).map_err(|cause| bad(cause.to_string()))?;
    if after.vlsn != redo.after.vlsn {
        return Err(bad(format!("a mark of VLSN {} at VLSN {}", after.vlsn, redo.after.vlsn)));
    }
    let mut ingest = table.ingest()?;
    let mut last = None;
    while let Some((key, value)) = copy.next().map_err(KvError::Replication)? {
        check_lengths(key.len(), value.len())?;
        let (key, value) = (Value::from(key), Value::from(value));
        check_order(&key, last.as_ref())?;
        last = Some(key.clone());
        ingest.put(key, value)?;
    }
    let mut applier = Applier::behind(after);
    let redone = redo.each(|run| {
        let entries = run.entries().map(log_entry);
        let entries = entries.take_while(|entry| entry.vlsn <= redo.through);
        applier.redo(&mut *ingest, entries).map_err(report)
    });
    redone.map_err(KvError::Replication)?;
    let mark = applier.boundary().filter(|mark| mark.vlsn == redo.through);
    let mark = mark.ok_or_else(|| bad(format!("VLSN {} ends no transaction", redo.through)))?;
    ingest.seal(mark)
}

#[cfg(test)]
mod tests;
