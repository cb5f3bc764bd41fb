//! LsmTable: the table on disk, a log-structured merge tree from the crate `lsm-tree`.
//!
//! The tree has no log of its own; ours replays into it. Sequence number v stands for VLSN v, and
//! the library's reads are exclusive, so reading at VLSN v passes v + 1.
//!
//! How the library is held to the rules of [`Table`]:
//! - It stamps each change of its file list with a number from a counter, and a read takes the
//!   newest file list stamped below the read's sequence number, so a counter that runs ahead of the
//!   VLSNs would serve old lists. The counter is ours alone and set back to 0 before each change,
//!   so every read takes the newest list.
//! - Its garbage collection drops a version as soon as a newer one exists and the *older* one lies
//!   below the watermark, even if the newer one lies above it. No watermark but 0 is safe while
//!   anybody reads below the newest version, so it is 0 or everything, nothing between.
//! - At watermark 0 it keeps every former file list, with the memtables it held; the list is
//!   trimmed by hand, as all readers take the newest one.
//!
//! # Files
//! `current` names the tree in force, `tree-<n>/` are the library's files. A checkpoint is ingested
//! into a new `tree-<n>` and put in force by renaming a new `current`; other trees are leftovers of
//! a crash and removed at open.
//!
//! `making` names the checkpoint that is being ingested, its tree, and how far it is.
//!
//! # Crash argument of `making`
//! - It is written, aside and renamed, when everything that it stands for is durable in its tree.
//! - A crash before it is written leaves pairs in the tree that it does not stand for. They are put again,
//!   in a newer run, with the same values: it is the same checkpoint.
//! - Nobody reads the tree before `current` names it, and it is not named before its mark is in it, which
//!   goes last. After that `making` names the tree in force, and is rubbish.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lsm_tree::compaction::Leveled;
use lsm_tree::config::{CompressionPolicy, PinningPolicy};
use lsm_tree::{AbstractTree, Cache, CompressionType, Config, Guard, SequenceNumberCounter, Tree};
use noxu_util::Vlsn;
use noxu_util::checksum::crc;
use noxu_util::codec::{CodecError, Put, Reader};
use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    Begun, Ingest, Item, Items, KeyRange, MARK_KEY, Mark, RESERVED_PREFIX, SealedContent, Table,
    Version,
};
use crate::error::{KvError, Result};
use crate::value::Value;

/// A table on disk.
pub(crate) struct LsmTable {
    dir: PathBuf,
    cache: Arc<Cache>,
    /// Bytes collected before an ingest writes them to disk.
    ingest_bytes: usize,
    live: RwLock<Arc<Live>>,
}

/// The tree in force.
struct Live {
    number: u64,
    tree: Tree,
    stamps: SequenceNumberCounter,
    marks: Mutex<Marks>,
    /// Held by whoever changes the file list through the library's compaction.
    compaction: Mutex<()>,
    /// Released after the tree is gone: fields are dropped in order.
    _claim: Claim,
}

/// A tree's directory, claimed by this process.
///
/// The library deletes a replaced file when the last iterator that reads it goes, by name. Were the
/// tree opened a second time before that, the name might be that of a new file by then.
struct Claim(PathBuf);

static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static RELEASED: Condvar = Condvar::new();

impl Claim {
    /// Claims a directory; waits a moment for the threads of a store that is being closed.
    fn take(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(io_error(path))?;
        let deadline = Instant::now() + CLAIM_PATIENCE;
        let mut claimed = CLAIMED.lock();
        while !claimed.insert(path.clone()) {
            if RELEASED.wait_until(&mut claimed, deadline).timed_out() {
                return Err(KvError::BadState {
                    path: path.display().to_string(),
                    cause: "it is still open in this process: a store, a snapshot or an iterator \
                            of it lives"
                        .to_owned(),
                });
            }
        }
        Ok(Self(path))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().remove(&self.0);
        RELEASED.notify_all();
    }
}

#[derive(Default)]
struct Marks {
    sealed: Option<Mark>,
    flushed: Mark,
}

impl LsmTable {
    /// Opens the table in `dir`, or creates an empty one.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let cache = Arc::new(Cache::with_capacity_bytes(cache_bytes));
        let number = if let Some(number) = read_current(dir)? {
            number
        } else {
            // Made in full before `current` names it; a crash between leaves a leftover.
            remove_other_trees(dir, None, None)?;
            drop(open_tree(dir, FIRST_TREE, &cache)?);
            write_current(dir, FIRST_TREE)?;
            FIRST_TREE
        };
        let making = Making::load(dir)?.filter(|making| making.number == number + 1);
        if making.is_none() {
            Making::remove(dir)?;
        }
        remove_other_trees(dir, Some(number), making.map(|making| making.number))?;
        let live = Arc::new(open_tree(dir, number, &cache)?);
        let (dir, ingest_bytes) = (dir.to_owned(), INGEST_BYTES);
        Ok(Self { dir, cache, ingest_bytes, live: RwLock::new(live) })
    }

    #[cfg(test)]
    pub(crate) fn with_ingest_bytes(self, ingest_bytes: usize) -> Self {
        Self { ingest_bytes, ..self }
    }

    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read())
    }

    /// Goes on with the tree of new content, or begins with it; `is_noted` if it is worth something already.
    fn begin_ingest(&self, of: Option<[u8; 32]>, is_noted: bool) -> Result<LsmIngest> {
        let number = self.live().number + 1;
        let live = open_tree(&self.dir, number, &self.cache)?;
        let path = (!is_noted).then(|| tree_path(&self.dir, number));
        let unsealed = UnsealedTree { path };
        let (dir, most_bytes, pending) = (self.dir.clone(), self.ingest_bytes, Vec::new());
        Ok(LsmIngest {
            live,
            unsealed,
            dir,
            of,
            most_bytes,
            pending,
            pending_bytes: 0,
            unnoted_bytes: 0,
        })
    }
}

impl Table for LsmTable {
    fn insert(&self, batch: &mut Vec<Version>) {
        let live = self.live();
        insert(&live.tree, batch);
    }

    fn active_bytes(&self) -> u64 {
        self.live().tree.active_memtable().size()
    }

    fn rotate(&self, mark: Mark) -> bool {
        let live = self.live();
        let mut marks = live.marks.lock();
        if marks.sealed.is_some() || mark.vlsn <= marks.flushed.vlsn {
            return false;
        }
        let _sizes = live.tree.insert(MARK_KEY, mark.encode(), sequence(mark.vlsn));
        let sealed = live.tree.rotate_memtable();
        debug_assert!(sealed.is_some(), "a memtable with a mark is not empty");
        marks.sealed = Some(mark);
        true
    }

    fn sealed(&self) -> Option<Mark> {
        self.live().marks.lock().sealed
    }

    fn flushed(&self) -> Mark {
        self.live().marks.lock().flushed
    }

    fn flush(&self, expected: Mark, newest_only: bool) -> Result<bool> {
        let live = self.live();
        // Lock order: the library's flush lock, then `marks`.
        let flush_lock = live.tree.get_flush_lock();
        if live.marks.lock().sealed != Some(expected) {
            return Ok(false);
        }
        live.stamps.set(0);
        live.tree.flush(&flush_lock, watermark(newest_only))?;
        live.trim_history()?;
        let mut marks = live.marks.lock();
        marks.sealed = None;
        marks.flushed = expected;
        Ok(true)
    }

    fn compact_step(&self, newest_only: bool) -> Result<bool> {
        let live = self.live();
        let _one_at_a_time = live.compaction.lock();
        let before = live.tree.current_version().id();
        live.stamps.set(0);
        live.tree.compact(Arc::new(Leveled::default()), watermark(newest_only))?;
        live.trim_history()?;
        Ok(live.tree.current_version().id() != before)
    }

    fn clear_unflushed(&self) {
        let live = self.live();
        let _flush_lock = live.tree.get_flush_lock();
        // The library's call does nothing if the active memtable is empty, even when a sealed one
        // is not, so it is given something to clear.
        let _sizes = live.tree.insert([RESERVED_PREFIX, b's'], [], 0);
        live.tree.clear_active_memtable();
        live.marks.lock().sealed = None;
    }

    fn value_at(&self, key: &[u8], at: Vlsn) -> Result<Option<Value>> {
        Ok(self.live().tree.get(key, sequence(at) + 1)?.map(Value::from))
    }

    fn range(&self, range: &KeyRange, at: Vlsn) -> Items {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let live = self.live();
        let items = live.tree.range::<&[u8], _>(range.bounds(), sequence(at) + 1, None);
        Box::new(LsmItems { items, _live: live })
    }

    fn ingest(&self) -> Result<Box<dyn Ingest + '_>> {
        self.discard_made()?;
        Ok(Box::new(self.begin_ingest(None, false)?))
    }

    fn ingest_of(&self, id: &[u8; 32]) -> Result<Begun<'_>> {
        let making = Making::load(&self.dir)?.filter(|making| {
            (&making.id, making.number) == (id, self.live().number + 1)
                && tree_path(&self.dir, making.number).exists()
        });
        if let Some(making) = making {
            match self.begin_ingest(Some(*id), true) {
                Ok(ingest) => return Ok((Box::new(ingest), Some(making.progress))),
                Err(cause) => tracing::warn!("what was made of a checkpoint is of no use: {cause}"),
            }
        }
        self.discard_made()?;
        Ok((Box::new(self.begin_ingest(Some(*id), false)?), None))
    }

    fn discard_made(&self) -> Result<()> {
        Making::remove(&self.dir)?;
        let path = tree_path(&self.dir, self.live().number + 1);
        match fs::remove_dir_all(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(io_error(&path)(cause)),
            _ => Ok(()),
        }
    }

    fn adopt(&self, sealed: SealedContent) -> Result<()> {
        // Reopened, so that its file lists begin anew at stamp 0.
        let live = Arc::new(open_tree(&self.dir, sealed.number, &self.cache)?);
        write_current(&self.dir, sealed.number)?;
        let old = std::mem::replace(&mut *self.live.write(), live);
        let old_number = old.number;
        drop(old);
        let old_path = tree_path(&self.dir, old_number);
        // Iterators that still read the old tree end with the rollback that comes with an install. It has
        // taken effect: what is left of the old tree, to which a compaction may be adding, is only rubbish,
        // and so is a note of how far this one was.
        if let Err(cause) = fs::remove_dir_all(&old_path) {
            tracing::debug!(path = %old_path.display(), "a leftover that the next open removes: {cause}");
        }
        if let Err(cause) = Making::remove(&self.dir) {
            tracing::debug!("a leftover that the next open removes: {cause}");
        }
        Ok(())
    }

    fn disk_usage(&self) -> (u64, usize) {
        let live = self.live();
        (live.tree.disk_space(), live.tree.table_count())
    }
}

impl Live {
    /// Drops all file lists but the newest; readers that hold an older one keep it alive.
    fn trim_history(&self) -> Result<()> {
        let path = &self.tree.tree_config().path;
        Ok(self.tree.get_version_history_lock().maintenance(path, EVERYTHING)?)
    }
}

/// The library's iterator, together with the tree it reads: the tree must not go before it.
struct LsmItems {
    items: Box<dyn DoubleEndedIterator<Item = lsm_tree::IterGuardImpl> + Send + 'static>,
    _live: Arc<Live>,
}

impl LsmItems {
    fn item(found: lsm_tree::IterGuardImpl) -> Item {
        let (key, value) = found.into_inner()?;
        Ok((Value::from(key), Value::from(value)))
    }
}

impl Iterator for LsmItems {
    type Item = Item;

    fn next(&mut self) -> Option<Self::Item> {
        self.items.next().map(Self::item)
    }
}

impl DoubleEndedIterator for LsmItems {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.items.next_back().map(Self::item)
    }
}

struct LsmIngest {
    live: Live,
    unsealed: UnsealedTree,
    /// The table's directory.
    dir: PathBuf,
    /// The checkpoint that it is made of, if it may be gone on with.
    of: Option<[u8; 32]>,
    /// Bytes collected before they are written.
    most_bytes: usize,
    pending: Vec<(Value, Value)>,
    pending_bytes: usize,
    unnoted_bytes: usize,
}

impl Ingest for LsmIngest {
    fn put(&mut self, key: Value, value: Value) -> Result<()> {
        self.pending_bytes += key.len() + value.len();
        self.unnoted_bytes += key.len() + value.len();
        self.pending.push((key, value));
        if self.pending_bytes >= self.most_bytes {
            self.write_pending()?;
        }
        Ok(())
    }

    fn is_note_due(&self) -> bool {
        // Sooner than `put` writes them by itself, when nothing would stand for them.
        self.of.is_some() && self.unnoted_bytes >= self.most_bytes / 16 * 15
    }

    fn note(&mut self, progress: &[u8]) -> Result<()> {
        let Some(id) = self.of else { return Ok(()) };
        self.write_pending()?;
        let making = Making { id, number: self.live.number, progress: progress.to_vec() };
        making.save(&self.dir)?;
        (self.unsealed.path, self.unnoted_bytes) = (None, 0);
        Ok(())
    }

    fn write_over(&mut self, batch: &mut Vec<Version>) -> Result<()> {
        self.write_pending()?;
        insert(&self.live.tree, batch);
        if self.live.tree.active_memtable().size() >= self.most_bytes as u64 {
            self.live.stamps.set(0);
            self.live.tree.flush_active_memtable(0)?;
        }
        Ok(())
    }

    fn seal(mut self: Box<Self>, mark: Mark) -> Result<SealedContent> {
        self.write_pending()?;
        let Self { live, mut unsealed, .. } = *self;
        // The mark goes last, by the ordinary way: until then the new tree claims to hold nothing.
        live.stamps.set(0);
        let _sizes = live.tree.insert(MARK_KEY, mark.encode(), sequence(mark.vlsn));
        live.tree.flush_active_memtable(0)?;
        unsealed.path = None;
        Ok(SealedContent { mark, number: live.number })
    }
}

/// A tree that is worth nothing before it is sealed, or noted: it is removed if that does not come about.
struct UnsealedTree {
    path: Option<PathBuf>,
}

impl Drop for UnsealedTree {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(cause) = fs::remove_dir_all(&path)
        {
            tracing::debug!(path = %path.display(), "a leftover that the next one removes: {cause}");
        }
    }
}

impl LsmIngest {
    fn write_pending(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.live.stamps.set(0);
        let tree = lsm_tree::AnyTree::Standard(self.live.tree.clone());
        let mut ingestion = tree.ingestion()?;
        for (key, value) in self.pending.drain(..) {
            ingestion.write(key.into_slice(), value.into_slice())?;
        }
        ingestion.finish()?;
        self.pending_bytes = 0;
        Ok(())
    }
}

fn open_tree(dir: &Path, number: u64, cache: &Arc<Cache>) -> Result<Live> {
    let path = tree_path(dir, number);
    let claim = Claim::take(&path)?;
    let stamps = SequenceNumberCounter::default();
    let config = Config::new(&path, stamps.clone(), SequenceNumberCounter::default())
        .use_cache(Arc::clone(cache))
        .filter_block_pinning_policy(PinningPolicy::new([true, true, false]))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::None));
    let lsm_tree::AnyTree::Standard(tree) = config.open()? else {
        unreachable!("no key-value separation was asked for")
    };
    let flushed = match tree.get(MARK_KEY, EVERYTHING)? {
        None => Mark::default(),
        Some(bytes) => Mark::decode(&bytes).map_err(|cause| KvError::BadState {
            path: path.display().to_string(),
            cause: cause.to_string(),
        })?,
    };
    Ok(Live {
        number,
        tree,
        stamps,
        marks: Mutex::new(Marks { sealed: None, flushed }),
        compaction: Mutex::new(()),
        _claim: claim,
    })
}

/// Puts versions into the active memtable.
fn insert(tree: &Tree, batch: &mut Vec<Version>) {
    // The memtable cannot change under us: the inserting thread is also the only one that
    // rotates or clears.
    let active = tree.active_memtable();
    for Version { key, value, at } in batch.drain(..) {
        let at = sequence(at);
        let key = key.into_slice();
        let _sizes = active.insert(match value {
            Some(value) => lsm_tree::InternalValue::from_components(
                key,
                value.into_slice(),
                at,
                lsm_tree::ValueType::Value,
            ),
            None => lsm_tree::InternalValue::new_tombstone(key, at),
        });
    }
}

/// The library's sequence number of a VLSN.
fn sequence(vlsn: Vlsn) -> u64 {
    vlsn.sequence() as u64
}

fn watermark(newest_only: bool) -> u64 {
    if newest_only { EVERYTHING } else { 0 }
}

fn tree_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{TREE_PREFIX}{number}"))
}

/// Number of the tree in force; `None` if there is none yet.
fn read_current(dir: &Path) -> Result<Option<u64>> {
    let path = dir.join(CURRENT);
    let Some(bytes) = read_whole(&path)? else { return Ok(None) };
    let bad = |cause: String| KvError::BadState { path: path.display().to_string(), cause };
    let mut reader = Reader::new(&bytes);
    let mut fields = || {
        let magic = reader.array::<4>("magic")?;
        let number = reader.u64("tree number")?;
        let stored = reader.u32("checksum")?;
        Ok((magic, number, stored, reader.clone().finish("the file")?))
    };
    let (magic, number, stored, ()) =
        fields().map_err(|cause: CodecError| bad(cause.to_string()))?;
    if magic != *CURRENT_MAGIC {
        return Err(bad(format!("magic {magic:02x?} found, {CURRENT_MAGIC:02x?} expected")));
    }
    let computed = crc(&bytes[..12]);
    if computed != stored {
        return Err(bad(format!("checksum {stored:08x} found, {computed:08x} expected")));
    }
    Ok(Some(number))
}

/// Puts a tree in force.
fn write_current(dir: &Path, number: u64) -> Result<()> {
    let mut bytes = CURRENT_MAGIC.to_vec();
    bytes.put_u64(number);
    bytes.put_u32(crc(&bytes));
    write_whole(dir, CURRENT, &bytes)
}

/// Reads a file; `None` if it is not there.
fn read_whole(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(io_error(path)(cause)),
    }
}

/// Writes a file: aside, synced, renamed, directory synced.
fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(io_error(&path))
}

/// Content under construction that can be gone on with.
struct Making {
    /// The checkpoint.
    id: [u8; 32],
    /// Its tree.
    number: u64,
    /// What stands for the pairs that are in it, to whoever made them.
    progress: Vec<u8>,
}

impl Making {
    fn save(&self, dir: &Path) -> Result<()> {
        let mut bytes = MAKING_MAGIC.to_vec();
        bytes.put_bytes(&self.id);
        bytes.put_u64(self.number);
        bytes.put_u32(self.progress.len() as u32);
        bytes.put_bytes(&self.progress);
        bytes.put_u32(crc(&bytes));
        write_whole(dir, MAKING, &bytes)
    }

    /// What is noted; a note that cannot be read is none.
    fn load(dir: &Path) -> Result<Option<Self>> {
        let bytes = read_whole(&dir.join(MAKING))?;
        Ok(bytes.and_then(|bytes| Self::decode(&bytes).ok()))
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, CodecError> {
        let bad = |what| CodecError::OutOfRange { what, found: String::new(), expected: "" };
        let mut r = Reader::new(bytes);
        if r.array::<4>("magic")? != *MAKING_MAGIC {
            return Err(bad("magic"));
        }
        let (id, number) = (r.array("checkpoint")?, r.u64("tree number")?);
        let length = r.u32("length")? as usize;
        let progress = r.bytes("progress", length)?.to_vec();
        let stored = r.u32("checksum")?;
        r.finish("the file")?;
        if stored != crc(&bytes[..bytes.len() - 4]) {
            return Err(bad("checksum"));
        }
        Ok(Self { id, number, progress })
    }

    fn remove(dir: &Path) -> Result<()> {
        let path = dir.join(MAKING);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(io_error(&path)(cause)),
            _ => Ok(()),
        }
    }
}

/// Removes trees that are neither in force nor noted: what a crash in the middle of an install left.
fn remove_other_trees(dir: &Path, current: Option<u64>, making: Option<u64>) -> Result<()> {
    for found in fs::read_dir(dir).map_err(io_error(dir))? {
        let found = found.map_err(io_error(dir))?;
        let name = found.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix(TREE_PREFIX)) else {
            continue;
        };
        let number = number.parse().ok();
        if number.is_none() || ![current, making].contains(&number) {
            let path = found.path();
            fs::remove_dir_all(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> KvError + '_ {
    move |cause| KvError::Io { path: path.display().to_string(), cause }
}

const CURRENT: &str = "current";
const CURRENT_MAGIC: &[u8; 4] = b"NKV1";
const MAKING: &str = "making";
const MAKING_MAGIC: &[u8; 4] = b"NKM1";
const TREE_PREFIX: &str = "tree-";
const FIRST_TREE: u64 = 1;

/// A sequence number above every VLSN that the library still accepts.
const EVERYTHING: u64 = i64::MAX as u64;

/// How long an open waits for the claim of a store that is being closed.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes collected before an ingest writes them to disk.
const INGEST_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Why the watermark is 0 or everything. If this fails, the library has learned to keep what a
    /// reader between two versions needs, and a watermark between may be used.
    #[test]
    fn content_that_is_not_sealed_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let table = LsmTable::open(dir.path(), 1 << 20).unwrap();
        let trees = || fs::read_dir(dir.path()).unwrap().count();
        let before = trees();
        let mut ingest = table.ingest().unwrap();
        ingest.put(Value::from(&b"key"[..]), vec![0; 2 * INGEST_BYTES].into()).unwrap();
        assert_eq!(trees(), before + 1);
        drop(ingest);
        assert_eq!(trees(), before);
    }

    fn note_of(dir: &Path) -> Option<Vec<u8>> {
        fs::read(dir.join(MAKING)).ok()
    }

    /// Puts these parts, each noted by its number. Returns what was noted before.
    fn make(table: &LsmTable, id: u8, parts: std::ops::Range<u8>) -> Option<Vec<u8>> {
        let (mut ingest, noted) = table.ingest_of(&[id; 32]).unwrap();
        for part in parts {
            for n in 0..10u8 {
                ingest.put(Value::from(vec![5, part, n]), vec![part; 960].into()).unwrap();
            }
            assert!(ingest.is_note_due());
            ingest.note(&[part]).unwrap();
        }
        noted
    }

    #[test]
    fn what_was_noted_is_gone_on_with_and_what_was_put_behind_it_is_put_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = || LsmTable::open(dir.path(), 1 << 20).unwrap().with_ingest_bytes(10_000);
        assert_eq!(make(&open(), 1, 0..3), None);
        let earlier = note_of(dir.path()).unwrap();
        assert_eq!(make(&open(), 1, 3..5), Some(vec![2]));
        // The crash came before the last note.
        fs::write(dir.path().join(MAKING), earlier).unwrap();
        let table = open();
        assert_eq!(make(&table, 1, 3..6), Some(vec![2]));
        let (ingest, noted) = table.ingest_of(&[1; 32]).unwrap();
        assert_eq!(noted, Some(vec![5]));
        let mark = Mark { vlsn: Vlsn::new(7), ..Mark::default() };
        table.adopt(ingest.seal(mark).unwrap()).unwrap();
        assert_eq!((note_of(dir.path()), table.flushed()), (None, mark));
        drop(table);
        let keys: Vec<_> = open()
            .range(&KeyRange::everything(), Vlsn::new(7))
            .map(|item| item.map(|(key, value)| (key[1], key[2], value[0])).unwrap())
            .collect();
        let expected: Vec<_> =
            (0..6).flat_map(|part| (0..10).map(move |n| (part, n, part))).collect();
        assert_eq!(keys, expected);
    }

    #[test]
    fn another_checkpoint_a_bad_note_and_a_discarded_one_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let open = || LsmTable::open(dir.path(), 1 << 20).unwrap().with_ingest_bytes(10_000);
        let trees = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|found| found.unwrap().file_name());
            names.filter(|name| name.to_str().unwrap().starts_with(TREE_PREFIX)).count()
        };
        make(&open(), 1, 0..2);
        drop(open());
        assert_eq!(trees(), 2, "an open leaves what is noted");
        assert_eq!(make(&open(), 2, 0..1), None);
        let mut bad = note_of(dir.path()).unwrap();
        bad[20] ^= 1;
        fs::write(dir.path().join(MAKING), bad).unwrap();
        let table = open();
        assert_eq!((trees(), note_of(dir.path())), (1, None));
        assert_eq!(make(&table, 2, 0..2), None);
        table.discard_made().unwrap();
        assert_eq!((trees(), note_of(dir.path())), (1, None));
        assert_eq!(make(&table, 2, 0..2), None);
        // It cannot be read any more.
        let tree = tree_path(dir.path(), FIRST_TREE + 1);
        for file in fs::read_dir(&tree).unwrap().map(|found| found.unwrap().path()) {
            if file.is_file() {
                fs::write(file, b"rot").unwrap();
            }
        }
        assert_eq!(make(&table, 2, 0..2), None);
        assert_eq!(trees(), 2);
        // Content of something else takes its place.
        drop(table.ingest().unwrap());
        assert_eq!((trees(), note_of(dir.path())), (1, None));
    }

    #[test]
    fn the_library_drops_the_older_of_two_versions_around_the_watermark() {
        let dir = tempfile::tempdir().unwrap();
        let live =
            open_tree(dir.path(), FIRST_TREE, &Arc::new(Cache::with_capacity_bytes(1 << 20)))
                .unwrap();
        let _sizes = live.tree.insert("k", "old", 5);
        let _sizes = live.tree.insert("k", "new", 10);
        let reads_at_7 = 8;
        assert!(live.tree.get("k", reads_at_7).unwrap().is_some());
        live.tree.flush_active_memtable(reads_at_7).unwrap();
        assert_eq!(live.tree.get("k", reads_at_7).unwrap(), None);
    }
}
