//! raft-engine: TiKV's log of many Raft groups.
//!
//! Each thread appends to a group of its own, with entries and batch built once and used again: that
//! is what it does best.

use std::sync::Mutex;

use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use raft_proto::eraftpb::Entry;
use tempfile::TempDir;

use crate::contender::{Contender, Worker, bodies};

/// raft-engine in a directory of its own.
pub(crate) struct Raft {
    engine: Engine,
    sync: bool,
    /// Last index of each group.
    indexes: Mutex<Vec<u64>>,
    _dir: TempDir,
}

impl Raft {
    /// Writes and never syncs.
    pub(crate) fn new() -> Self {
        Self::open(false)
    }

    /// Syncs every batch.
    pub(crate) fn synced() -> Self {
        Self::open(true)
    }

    fn open(sync: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config {
            dir: dir.path().to_str().expect("a temporary directory has a plain name").to_owned(),
            // Random bodies do not compress; noxu does not try either.
            batch_compression_threshold: ReadableSize::kb(0),
            purge_threshold: ReadableSize::mb(512),
            ..Config::default()
        };
        let engine = Engine::open(config).expect("raft-engine opens");
        Self { engine, sync, indexes: Mutex::default(), _dir: dir }
    }
}

impl Contender for Raft {
    fn worker(&self, thread: usize, batch: usize) -> Box<dyn Worker + '_> {
        let mut indexes = self.indexes.lock().expect("no worker panics");
        let known = indexes.len().max(thread + 1);
        indexes.resize(known, 0);
        let entry = |body: Vec<u8>| {
            let mut entry = Entry::new();
            entry.term = 1;
            entry.data = body.into();
            entry
        };
        Box::new(Group {
            raft: self,
            group: thread,
            index: indexes[thread],
            entries: bodies(batch).into_iter().map(entry).collect(),
            batch: LogBatch::default(),
        })
    }

    fn settle(&self) {
        self.engine.sync().expect("synced");
        for (group, last) in self.indexes.lock().expect("no worker panics").iter().enumerate() {
            self.engine.compact_to(group as u64 + 1, *last);
        }
        self.engine.purge_expired_files().expect("purged");
    }
}

struct Group<'r> {
    raft: &'r Raft,
    group: usize,
    index: u64,
    entries: Vec<Entry>,
    batch: LogBatch,
}

impl Worker for Group<'_> {
    fn append(&mut self) -> usize {
        for entry in &mut self.entries {
            self.index += 1;
            entry.index = self.index;
        }
        self.batch
            .add_entries::<Indexed>(self.group as u64 + 1, &self.entries)
            .expect("entries within the limits");
        self.raft.engine.write(&mut self.batch, self.raft.sync).expect("written");
        self.entries.len()
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.raft.indexes.lock().expect("no worker panics")[self.group] = self.index;
    }
}

/// Tells raft-engine an entry's index.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}
