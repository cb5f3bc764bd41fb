//! HookEnv: a file system in memory that runs a function of the test's before or after it opens a
//! file for reading, so that a test decides what happens in between.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use noxu_log::env::{Env, EnvFile, LockGuard, MemoryEnv, OpenMode};

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    BeforeOpen,
    AfterOpen,
}

type Hook = (PathBuf, When, Box<dyn FnOnce() + Send>);

/// A clone is the same file system.
#[derive(Clone, Default)]
pub(crate) struct HookEnv {
    inner: MemoryEnv,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl HookEnv {
    /// Runs `act` once, when `path` is opened for reading next.
    pub(crate) fn once(&self, path: PathBuf, when: When, act: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some((path, when, Box::new(act)));
    }

    /// Whether the hook has run.
    pub(crate) fn has_run(&self) -> bool {
        self.hook.lock().unwrap().is_none()
    }

    fn run(&self, path: &Path, now: When) {
        let due = self.hook.lock().unwrap().take_if(|(at, when, _)| at == path && *when == now);
        if let Some((_, _, act)) = due {
            act();
        }
    }
}

impl fmt::Debug for HookEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookEnv")
    }
}

impl Env for HookEnv {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        if mode != OpenMode::Read {
            return self.inner.open(path, mode);
        }
        self.run(path, When::BeforeOpen);
        let file = self.inner.open(path, mode);
        self.run(path, When::AfterOpen);
        file
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
