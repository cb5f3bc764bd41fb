//! Bare loops: what a log at least has to do with its file, without being a log.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::NamedTempFile;

use crate::BODY_BYTES;
use crate::contender::{Contender, Worker, bodies};
use crate::noxu::Turns;

/// Bytes of a noxu entry before its body.
const HEADER_BYTES: usize = noxu_log::ENTRY_HEADER_BYTES;
/// Bytes of one of our entries.
const ENTRY_BYTES: usize = HEADER_BYTES + BODY_BYTES;
/// Bytes after which a synced loop begins its file again: it is filled that far.
const FILLED_BYTES: u64 = 64 << 20;

/// A loop of one write per batch; or, replaying, of one write and one fdatasync per batch.
pub(crate) struct Bare<'t> {
    file: NamedTempFile,
    at: AtomicU64,
    replayed: Option<&'t Turns>,
}

impl<'t> Bare<'t> {
    /// Writes and never syncs.
    pub(crate) fn new() -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        Self { file, at: AtomicU64::new(0), replayed: None }
    }

    /// Writes and syncs batches of the sizes that noxu's flusher formed in its last turn, onto a
    /// file that was filled before.
    pub(crate) fn replaying(turns: &'t Turns) -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        let zeros = vec![0; 1 << 20];
        for at in (0..FILLED_BYTES).step_by(zeros.len()) {
            file.as_file().write_all_at(&zeros, at).expect("filled");
        }
        file.as_file().sync_all().expect("synced");
        Self { file, at: AtomicU64::new(0), replayed: Some(turns) }
    }
}

impl Contender for Bare<'_> {
    fn worker(&self, _thread: usize, batch: usize) -> Box<dyn Worker + '_> {
        let sizes = match self.replayed {
            Some(turns) => turns.last_slice(),
            None => Vec::new(),
        };
        let longest = sizes.iter().copied().max().unwrap_or(batch as u64) as usize;
        let bytes = bodies(longest).into_iter().flat_map(|body| {
            let mut entry = vec![7; HEADER_BYTES];
            entry.extend(body);
            entry
        });
        let bytes = bytes.collect();
        let file = self.file.as_file();
        match self.replayed {
            Some(_) => Box::new(Replay { file, bytes, sizes: sizes.into_iter(), at: &self.at }),
            None => Box::new(Write { file, bytes, batch, at: &self.at }),
        }
    }

    fn settle(&self) {
        if self.replayed.is_none() {
            self.file.as_file().sync_data().expect("synced");
            self.file.as_file().set_len(0).expect("cut");
            self.at.store(0, Ordering::Relaxed);
        }
    }

    fn threads(&self, wanted: usize) -> usize {
        if self.replayed.is_some() { 1 } else { wanted }
    }
}

struct Write<'b> {
    file: &'b File,
    bytes: Vec<u8>,
    batch: usize,
    at: &'b AtomicU64,
}

impl Worker for Write<'_> {
    fn append(&mut self) -> usize {
        let at = self.at.load(Ordering::Relaxed);
        self.file.write_all_at(&self.bytes, at).expect("written");
        self.at.store(at + self.bytes.len() as u64, Ordering::Relaxed);
        self.batch
    }
}

struct Replay<'b> {
    file: &'b File,
    bytes: Vec<u8>,
    sizes: std::vec::IntoIter<u64>,
    at: &'b AtomicU64,
}

impl Worker for Replay<'_> {
    fn append(&mut self) -> usize {
        let Some(entries) = self.sizes.next() else { return 0 };
        let bytes = &self.bytes[..entries as usize * ENTRY_BYTES];
        let mut at = self.at.load(Ordering::Relaxed);
        if at + bytes.len() as u64 > FILLED_BYTES {
            at = 0;
        }
        self.file.write_all_at(bytes, at).expect("written");
        self.file.sync_data().expect("synced");
        self.at.store(at + bytes.len() as u64, Ordering::Relaxed);
        entries as usize
    }
}
