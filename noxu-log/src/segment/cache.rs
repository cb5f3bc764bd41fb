//! Cache: the segments' open files and side files that were used last, so that descriptors and
//! memory stay bounded however many segments there are and however they are read.
//!
//! # Invariants
//! - What is cached costs at most the cache's limit, or is one item.
//! - What was loaded before [`Cache::clear`] is never cached after it: the name may belong to another
//!   file by then, and entries that were rolled back must not be read again.
//! - A side file is of the segment as it was sealed: its end, last entry and digest are those that
//!   the log has in memory. One that is made again equals the one that was lost, or the segment is
//!   damaged and there is none.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use parking_lot::Mutex;

use super::digest::Digests;
use super::scan::SummaryBuilder;
use super::side_file::{LastClock, SideFile};
use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Sealed, Segment, Shared};

/// Most files kept open.
const CACHED_FILES: usize = 16;
/// Most memory that side files take, in bytes: those of 4 GiB of log at 100-byte entries.
pub(crate) const CACHED_SIDE_BYTES: usize = 16 << 20;
/// What a cached side file costs beside its content, in bytes.
const SIDE_OVERHEAD_BYTES: usize = size_of::<SideFile>() + 192;

/// Values by segment number, the least recently used ones dropped first.
#[derive(Debug)]
struct Cache<T> {
    limit: usize,
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    values: BTreeMap<u32, Cached<T>>,
    /// Number by time of last use.
    by_use: BTreeMap<u64, u32>,
    clock: u64,
    cost: usize,
    /// Counts [`Cache::clear`].
    clears: u64,
}

#[derive(Debug)]
struct Cached<T> {
    value: T,
    cost: usize,
    used: u64,
}

impl<T: Clone> Cache<T> {
    const fn new(limit: usize) -> Self {
        let inner = Inner {
            values: BTreeMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            cost: 0,
            clears: 0,
        };
        Self { limit, inner: Mutex::new(inner) }
    }

    /// The value of `number`, from `load` with its cost if it is not here. No lock is held while
    /// loading.
    fn get_or_load(&self, number: u32, load: impl FnOnce() -> Result<(T, usize)>) -> Result<T> {
        let clears = {
            let mut inner = self.inner.lock();
            if let Some(value) = inner.touch(number) {
                return Ok(value);
            }
            inner.clears
        };
        let (value, cost) = load()?;
        let mut inner = self.inner.lock();
        if inner.clears == clears && inner.touch(number).is_none() {
            inner.insert(number, value.clone(), cost, self.limit);
        }
        Ok(value)
    }

    fn clear(&self) {
        let mut inner = self.inner.lock();
        inner.values.clear();
        inner.by_use.clear();
        inner.cost = 0;
        inner.clears += 1;
    }
}

impl<T: Clone> Inner<T> {
    /// The value of `number`, which is now the most recently used.
    fn touch(&mut self, number: u32) -> Option<T> {
        let cached = self.values.get_mut(&number)?;
        self.by_use.remove(&cached.used);
        self.clock += 1;
        cached.used = self.clock;
        self.by_use.insert(self.clock, number);
        Some(cached.value.clone())
    }

    fn insert(&mut self, number: u32, value: T, cost: usize, limit: usize) {
        while self.cost + cost > limit
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.cost -= self.values.remove(&oldest).map_or(0, |cached| cached.cost);
        }
        self.clock += 1;
        self.cost += cost;
        self.values.insert(number, Cached { value, cost, used: self.clock });
        self.by_use.insert(self.clock, number);
    }
}

/// Open files of segments.
#[derive(Debug)]
pub(crate) struct FileCache(Cache<Arc<dyn EnvFile>>);

impl Default for FileCache {
    fn default() -> Self {
        Self(Cache::new(CACHED_FILES))
    }
}

impl FileCache {
    pub(crate) fn open(&self, shared: &Shared, number: u32) -> Result<Arc<dyn EnvFile>> {
        self.0.get_or_load(number, || {
            let path = shared.segment_path(number);
            match shared.env.open(&path, OpenMode::Read) {
                Ok(file) => Ok((file, 1)),
                // Segments are forgotten before they are removed, so this one was lost: damage, which a
                // peer can mend, and no trouble with the disk.
                Err(e) if e.kind() == ErrorKind::NotFound && shared.sealed(number).is_some() => {
                    Err(LogError::Corrupt {
                        segment: number,
                        offset: 0,
                        expected: "a sealed segment".to_owned(),
                        found: "no file".to_owned(),
                    })
                }
                Err(e) => Err(LogError::io("open", &path, e)),
            }
        })
    }

    /// Forgets every file: after segments were removed or renamed.
    pub(crate) fn clear(&self) {
        self.0.clear();
    }
}

/// Side files in memory.
#[derive(Debug)]
pub(crate) struct SideCache {
    sides: Cache<Arc<SideFile>>,
    /// Held while a side file is made again: two at once would write the same temporary file.
    rebuilding: Mutex<()>,
}

impl Default for SideCache {
    fn default() -> Self {
        Self { sides: Cache::new(CACHED_SIDE_BYTES), rebuilding: Mutex::new(()) }
    }
}

impl SideCache {
    /// The side file of a sealed segment, rebuilt if it is missing or damaged.
    pub(crate) fn open(&self, shared: &Shared, number: u32) -> Result<Arc<SideFile>> {
        self.sides.get_or_load(number, || {
            let side = read_or_rebuild(shared, number, &self.rebuilding)?;
            let cost = side.memory_bytes() + SIDE_OVERHEAD_BYTES;
            Ok((Arc::new(side), cost))
        })
    }

    /// As [`SideCache::open`], and makes sure that it is on disk as it is in memory.
    pub(crate) fn check(&self, shared: &Shared, number: u32) -> Result<Arc<SideFile>> {
        if let Some(side) = shared.read_side_file(number)? {
            return Ok(Arc::new(side));
        }
        let side = self.open(shared, number)?;
        let _alone = self.rebuilding.lock();
        if shared.read_side_file(number)?.is_none() {
            let _ours = shared.directory()?;
            side.write(&*shared.env, &shared.dir)?;
        }
        Ok(side)
    }

    /// Forgets every side file.
    pub(crate) fn clear(&self) {
        self.sides.clear();
    }

    /// Memory that the cached side files take, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.sides.inner.lock().cost
    }
}

fn read_or_rebuild(shared: &Shared, number: u32, rebuilding: &Mutex<()>) -> Result<SideFile> {
    if let Some(side) = shared.read_side_file(number)? {
        return Ok(side);
    }
    let _alone = rebuilding.lock();
    // Somebody else may have done it meanwhile.
    if let Some(side) = shared.read_side_file(number)? {
        return Ok(side);
    }
    let side = shared.side_file_of_segment(number)?;
    let ours = shared.directory();
    if let Err(error) = ours.and_then(|_ours| side.write(&*shared.env, &shared.dir)) {
        // What it says is known all the same; the next one who needs it tries again.
        tracing::warn!(%error, segment = number, "a side file cannot be written");
    }
    Ok(side)
}

impl Shared {
    /// What is known of a sealed segment; `None` if there is none with this number.
    pub(crate) fn sealed(&self, number: u32) -> Option<Sealed> {
        let state = self.state.lock();
        let first = state.segments.front()?.number();
        match state.segments.get(number.checked_sub(first)? as usize)? {
            Segment::Sealed(sealed) => Some(sealed.clone()),
            Segment::Open(_) => None,
        }
    }

    /// The side file on disk, if it can be believed: it is of the segment as it was sealed.
    fn read_side_file(&self, number: u32) -> Result<Option<SideFile>> {
        let sealed = self.sealed(number).ok_or(LogError::NotSealed { segment: number })?;
        let side = SideFile::read(&*self.env, &self.dir, number)?;
        Ok(side.filter(|side| {
            let believed = side.is_of(&sealed);
            if !believed {
                tracing::warn!(
                    segment = number,
                    "a side file is of another segment, to be rebuilt"
                );
            }
            believed
        }))
    }

    /// The side file that a sealed segment should have, from the segment, all of which is verified.
    fn side_file_of_segment(&self, number: u32) -> Result<SideFile> {
        let sealed = self.sealed(number).ok_or(LogError::NotSealed { segment: number })?;
        let (last_sync, last_txn_end) = self.state.lock().syncs_before(number);
        let path = self.segment_path(number);
        let file = self.files.open(self, number)?;
        let mut builder = SummaryBuilder::new(sealed.header, last_sync, last_txn_end);
        let end = (sealed.end, &sealed.last);
        let mut clock = LastClock::default();
        let digests = Digests::verified(&*file, &path, &sealed.header, end, |offset, entry| {
            builder.push(offset, entry);
            clock.see(offset, entry);
        })?;
        if digests.segment != sealed.digest {
            return Err(LogError::Corrupt {
                segment: number,
                offset: 0,
                expected: format!("digest {}", sealed.digest),
                found: format!("digest {}", digests.segment),
            });
        }
        let clock_ms = clock.read(&*file).map_err(|e| LogError::io("read", &path, e))?;
        Ok(SideFile { summary: builder.summary(), clock_ms, digests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_and_the_limit_holds() {
        let cache = Cache::new(100);
        let load = |number: u32, cost: usize| cache.get_or_load(number, || Ok((number, cost)));
        for number in 0..1000 {
            load(number, 10).unwrap();
            load(0, 10).unwrap();
            assert!(cache.inner.lock().cost <= 100);
        }
        let kept: Vec<_> = cache.inner.lock().values.keys().copied().collect();
        assert_eq!(kept, [0, 991, 992, 993, 994, 995, 996, 997, 998, 999]);
        load(7, 1_000).unwrap();
        assert_eq!(cache.inner.lock().values.len(), 1, "one item may be larger than the limit");
        load(8, 1).unwrap();
        assert_eq!(cache.inner.lock().cost, 1);
        assert_eq!(cache.inner.lock().by_use.len(), 1);
    }

    #[test]
    fn what_was_loaded_across_a_clear_is_not_kept() {
        let cache = Cache::new(100);
        let loaded = cache.get_or_load(1, || {
            cache.clear();
            Ok(("old", 1))
        });
        assert_eq!(loaded.unwrap(), "old");
        assert_eq!(cache.get_or_load(1, || Ok(("new", 1))).unwrap(), "new");
    }
}
