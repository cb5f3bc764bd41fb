//! Table: ordered keys with versions, and the border between what may be rolled back and what not.
//!
//! A table has up to three parts. Writes go to the *active* memtable; [`Table::rotate`] seals it;
//! [`Table::flush`] moves the *sealed* one to disk. [`Table::clear_unflushed`] forgets both
//! memtables at once. The caller flushes only what can no longer be rolled back, so a rollback or a
//! crash leaves exactly the flushed part, and [`Table::flushed`] says through which VLSN the log
//! must be replayed after.
//!
//! # Invariants
//! - At most one memtable is sealed; a second rotation is refused until it is flushed.
//! - The flushed part holds a [`Mark`] under a reserved key, written by the rotation itself, so mark
//!   and data reach the disk in one step. It is the only source of the replay position.
//! - Reading at VLSN v sees, for each key, the newest version at or below v.

pub(crate) mod lsm;
pub(crate) mod memory;

#[cfg(test)]
mod tests;

use std::ops::{Bound, RangeBounds};

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Term, Vlsn};

use crate::error::Result;
use crate::value::Value;

/// One version of a key; no value means that the key is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) key: Value,
    pub(crate) value: Option<Value>,
    pub(crate) at: Vlsn,
}

/// Position in the log that a table's content corresponds to: always a sync entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) vlsn: Vlsn,
    pub(crate) term: Term,
    pub(crate) fingerprint: Fingerprint,
}

/// First byte of the keys that belong to the table itself; callers' keys begin with another.
pub(crate) const RESERVED_PREFIX: u8 = 0;

/// Where the mark is stored.
pub(crate) const MARK_KEY: &[u8] = &[RESERVED_PREFIX, b'm'];

/// An item of a range: key and value.
pub(crate) type Item = Result<(Value, Value)>;

/// Items of a range, in key order from either end.
pub(crate) type Items = Box<dyn DoubleEndedIterator<Item = Item> + Send>;

/// Keys between two bounds; none if the bounds are out of order.
#[derive(Debug, Clone)]
pub(crate) struct KeyRange {
    pub(crate) from: Bound<Vec<u8>>,
    pub(crate) to: Bound<Vec<u8>>,
}

impl KeyRange {
    /// Every key but the table's own.
    pub(crate) fn everything() -> Self {
        Self { from: Bound::Included(vec![RESERVED_PREFIX + 1]), to: Bound::Unbounded }
    }

    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.from.as_ref().map(Vec::as_slice), self.to.as_ref().map(Vec::as_slice))
    }

    /// Whether no key can lie between the bounds. Ordered maps panic on such bounds.
    pub(crate) fn is_empty(&self) -> bool {
        match self.bounds() {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (
                Bound::Included(from) | Bound::Excluded(from),
                Bound::Included(to) | Bound::Excluded(to),
            ) => from >= to,
            _ => false,
        }
    }

    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        RangeBounds::<[u8]>::contains(&self.bounds(), key)
    }
}

/// Ordered keys with versions. Any thread may read; one thread at a time inserts and rotates.
pub(crate) trait Table: Send + Sync {
    /// Inserts versions into the active memtable and leaves `batch` empty.
    fn insert(&self, batch: &mut Vec<Version>);

    /// Bytes in the active memtable, roughly.
    fn active_bytes(&self) -> u64;

    /// Seals the active memtable as holding everything through `mark`. False if one is sealed
    /// already, or if there is nothing new since the flushed mark.
    fn rotate(&self, mark: Mark) -> bool;

    /// What the sealed memtable goes through, if there is one.
    fn sealed(&self) -> Option<Mark>;

    /// What is durable.
    fn flushed(&self) -> Mark;

    /// Makes the sealed memtable durable if its mark is `expected`; returns whether it did. The
    /// caller has made up its mind about that memtable, and another may have taken its place.
    ///
    /// With `newest_only`, versions that a newer one in the same memtable hides may be dropped:
    /// the caller vouches that nobody reads below the mark, now or later.
    fn flush(&self, expected: Mark, newest_only: bool) -> Result<bool>;

    /// Tidies the flushed part a little; returns whether there may be more to do. `newest_only` as
    /// for [`Table::flush`], for the flushed mark.
    fn compact_step(&self, newest_only: bool) -> Result<bool>;

    /// Forgets both memtables, atomically for readers.
    fn clear_unflushed(&self);

    /// The newest version of `key` at or below `at`; `None` if there is none or it is a deletion.
    fn value_at(&self, key: &[u8], at: Vlsn) -> Result<Option<Value>>;

    /// The keys within the range and their newest versions at or below `at`. Later inserts,
    /// flushes and [`Table::clear_unflushed`] do not change what the iterator shows.
    fn range(&self, range: &KeyRange, at: Vlsn) -> Items;

    /// Begins to make new content. The present one stays as it is until [`Table::adopt`]; what was
    /// made before and not adopted is gone.
    fn ingest(&self) -> Result<Box<dyn Ingest + '_>>;

    /// Goes on with the content that was made of `id`, behind what was last noted ([`Ingest::note`]), which
    /// comes along; or begins to make it.
    fn ingest_of(&self, _id: &[u8; 32]) -> Result<Begun<'_>> {
        Ok((self.ingest()?, None))
    }

    /// Removes what was made and not adopted.
    fn discard_made(&self) -> Result<()> {
        Ok(())
    }

    /// Replaces the whole content by the one sealed last, durably, in one step that a crash leaves
    /// either wholly done or not done at all. A crash before forgets what was sealed.
    fn adopt(&self, sealed: SealedContent) -> Result<()>;

    /// Bytes of the flushed part on disk, and how many files hold them.
    fn disk_usage(&self) -> (u64, usize);
}

/// Content that is durable and not in force.
#[derive(Debug)]
pub(crate) struct SealedContent {
    /// Through where it goes.
    pub(crate) mark: Mark,
    number: u64,
}

/// Content under construction, and what was last noted of it.
pub(crate) type Begun<'a> = (Box<dyn Ingest + 'a>, Option<Vec<u8>>);

/// Content under construction that may replace the present one.
pub(crate) trait Ingest {
    /// Adds a key; keys come in ascending order.
    fn put(&mut self, key: Value, value: Value) -> Result<()>;

    /// Whether it is worth while to note how far it is.
    fn is_note_due(&self) -> bool {
        false
    }

    /// Makes what was put durable, and then `progress`, which stands for it. What is put after a crash is what
    /// comes behind it, once more.
    fn note(&mut self, _progress: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Writes versions over what was put, each newer than all that is there of its key; leaves `batch`
    /// empty. Nothing is put any more.
    fn write_over(&mut self, batch: &mut Vec<Version>) -> Result<()>;

    /// Makes the new content durable, as that at `mark`.
    fn seal(self: Box<Self>, mark: Mark) -> Result<SealedContent>;
}

impl Mark {
    pub(crate) const ENCODED_BYTES: usize = 21;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::ENCODED_BYTES);
        out.put_u8(MARK_VERSION);
        out.put_vlsn(self.vlsn);
        out.put_u32(self.term.number());
        out.put_u64(self.fingerprint.as_u64());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("version of the mark")?;
        if version != MARK_VERSION {
            return Err(CodecError::OutOfRange {
                what: "version of the mark",
                found: version.to_string(),
                expected: "1",
            });
        }
        let mark = Self {
            vlsn: reader.vlsn("VLSN of the mark")?,
            term: Term::new(reader.u32("term of the mark")?),
            fingerprint: Fingerprint::from_u64(reader.u64("fingerprint of the mark")?),
        };
        reader.finish("the mark")?;
        Ok(mark)
    }
}

const MARK_VERSION: u8 = 1;
