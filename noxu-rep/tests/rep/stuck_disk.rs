//! StuckDisk: a disk whose syncs can be held up, so that a test can tell what waits for them.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, EnvFile, LockGuard, MemoryEnv, OpenMode};
use parking_lot::{Condvar, Mutex};

/// A disk in memory; while it is stuck, a sync of file data does not return. A clone is the same
/// disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct StuckDisk {
    inner: MemoryEnv,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    stuck: Mutex<bool>,
    released: Condvar,
}

impl StuckDisk {
    pub(crate) fn set_stuck(&self, stuck: bool) {
        *self.gate.stuck.lock() = stuck;
        self.gate.released.notify_all();
    }
}

impl Env for StuckDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let file = self.inner.open(path, mode)?;
        Ok(Arc::new(StuckFile { file, gate: Arc::clone(&self.gate) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free_bytes(dir)
    }
}

#[derive(Debug)]
struct StuckFile {
    file: Arc<dyn EnvFile>,
    gate: Arc<Gate>,
}

impl EnvFile for StuckFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut stuck = self.gate.stuck.lock();
        while *stuck {
            self.gate.released.wait(&mut stuck);
        }
        drop(stuck);
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
