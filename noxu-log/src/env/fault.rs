//! FaultEnv: a file system in memory whose every call can fail and whose every crash can be seen.
//!
//! It keeps two images, what callers see and what is durable, and between them everything that was
//! not synced. [`FaultEnv::crash`] gives the file system that a power loss leaves: any subset of
//! the unsynced 512-byte sectors (so that writes are lost, torn or reordered), any of the lengths a
//! file had since its last sync, any subset of the unsynced names. The same seed over the same
//! calls gives the same image.
//!
//! # Model
//! - A sector is written whole or not at all; nothing larger is.
//! - A rename is atomic; it may survive without the renames and creations before it.
//! - A failed `sync_data` leaves the sectors it was to save *adrift*, as Linux does: callers go on
//!   seeing them, a later sync that succeeds does not save them, only writing them again does.
//! - A failed write has written its first half.

mod disk;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use self::disk::{Disk, NodeId};
use super::path_error::at;
use super::{Env, EnvFile, LockGuard, OpenMode};

/// A file system in memory with faults and crashes. A clone is the same file system.
#[derive(Clone, Default)]
pub struct FaultEnv {
    state: Arc<Mutex<State>>,
}

/// What goes wrong in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with an error of this kind.
    Error(io::ErrorKind),
    /// A sync succeeds and saves nothing, as a disk does that lies about its cache; any other call
    /// is not affected.
    LostSync,
}

impl Fault {
    /// The disk fails (EIO).
    pub const IO: Self = Self::Error(io::ErrorKind::Other);
    /// The disk is full (ENOSPC).
    pub const NO_SPACE: Self = Self::Error(io::ErrorKind::StorageFull);
}

/// Which of the unsynced sectors, lengths and names a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// None: only what was synced.
    None,
    /// All: as if everything had been synced in time.
    All,
    /// A subset that follows from this seed.
    Random(u64),
}

/// One call made to the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number, from 1.
    pub number: u64,
    /// Name of the function: "write_at", "sync_dir", ...
    pub function: &'static str,
    /// The file or directory; the old name of a rename.
    pub path: PathBuf,
    /// Offset or new length, in bytes; 0 where it has none.
    pub offset: u64,
    /// Bytes read or written; 0 where it has none.
    pub len: u64,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, function, path, offset, len } = self;
        write!(f, "call {number}: {function} {} {offset}+{len}", path.display())
    }
}

#[derive(Debug, Default)]
struct State {
    disk: Disk,
    calls: u64,
    trace: VecDeque<Call>,
    faults: BTreeMap<u64, Fault>,
    fail_next: Vec<(&'static str, Fault)>,
    crash_at: Option<u64>,
    crashed: bool,
    full: bool,
}

/// What [`State::begin`] tells the call to do.
enum Verdict {
    Proceed,
    Fail(io::ErrorKind),
    LoseSync,
    /// The machine stops in the middle: leave the call's effect unsynced, then fail.
    Crash,
}

/// Calls kept for [`FaultEnv::trace`].
const TRACE_CALLS: usize = 1 << 16;

impl FaultEnv {
    /// An empty file system without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// The calls made so far, at most the latest 65,536.
    pub fn trace(&self) -> Vec<Call> {
        self.state.lock().trace.iter().cloned().collect()
    }

    /// Call `number` (of [`FaultEnv::calls`]) will fail, and only it.
    pub fn fail_at(&self, number: u64, fault: Fault) {
        self.state.lock().faults.insert(number, fault);
    }

    /// The next call of `function` ("sync_data", "write_at", ...) will fail, and only it.
    pub fn fail_next(&self, function: &'static str, fault: Fault) {
        self.state.lock().fail_next.push((function, fault));
    }

    /// The machine will stop in the middle of call `number`; it and all later ones fail.
    pub fn crash_at(&self, number: u64) {
        self.state.lock().crash_at = Some(number);
    }

    /// Whether the machine has stopped.
    pub fn has_crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// While full, no file can be created or grow; writing over what is there works.
    pub fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// Stops the machine and gives the file system it finds when it starts again, with a subset of
    /// what was not synced that follows from `seed`. Call numbers begin again at 1.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        self.crash_keeping(Survivors::Random(seed))
    }

    /// [`FaultEnv::crash`] with a choice of what is left.
    #[must_use]
    pub fn crash_keeping(&self, survivors: Survivors) -> Self {
        self.state.lock().crashed = true;
        self.clone_image(survivors)
    }

    /// The file system that a crash at this moment would leave; this one goes on.
    #[must_use]
    pub fn clone_image(&self, survivors: Survivors) -> Self {
        let disk = self.state.lock().disk.after_crash(survivors);
        Self { state: Arc::new(Mutex::new(State { disk, ..State::default() })) }
    }

    /// Flips the bits of `mask` in one byte, durably and unnoticed: latent corruption. An error if
    /// the file has no such byte. Not counted as a call.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        self.state.lock().disk.corrupt(path, offset, mask).map_err(at("corrupt", path))
    }

    fn call<T>(
        &self,
        function: &'static str,
        path: &Path,
        (offset, len): (u64, u64),
        act: impl FnOnce(&mut State, &Verdict) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state.lock();
        let verdict = state.begin(function, path, offset, len);
        let result = verdict.and_then(|verdict| match (act(&mut state, &verdict), verdict) {
            (result, Verdict::Proceed | Verdict::LoseSync) => result,
            (_, Verdict::Fail(kind)) => Err(kind.into()),
            (_, Verdict::Crash) => Err(stopped()),
        });
        result.map_err(at(function, path))
    }

    /// A call that has no effect when it fails.
    fn plain_call<T>(
        &self,
        function: &'static str,
        path: &Path,
        act: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.call(function, path, (0, 0), |state, verdict| match verdict {
            Verdict::Fail(kind) => Err((*kind).into()),
            _ => act(state),
        })
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

impl State {
    fn begin(
        &mut self,
        function: &'static str,
        path: &Path,
        offset: u64,
        len: u64,
    ) -> io::Result<Verdict> {
        if self.crashed {
            return Err(stopped());
        }
        self.calls += 1;
        if self.trace.len() == TRACE_CALLS {
            self.trace.pop_front();
        }
        let number = self.calls;
        self.trace.push_back(Call { number, function, path: path.to_owned(), offset, len });
        if self.crash_at == Some(number) {
            self.crashed = true;
            return Ok(Verdict::Crash);
        }
        let named = self.fail_next.iter().position(|(name, _)| *name == function);
        let fault = self.faults.remove(&number).or_else(|| Some(self.fail_next.remove(named?).1));
        Ok(match fault {
            None => Verdict::Proceed,
            Some(Fault::Error(kind)) => Verdict::Fail(kind),
            Some(Fault::LostSync) => Verdict::LoseSync,
        })
    }

    fn check_space(&self, grows: bool) -> io::Result<()> {
        if self.full && grows { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl fmt::Debug for FaultEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("FaultEnv")
            .field("calls", &state.calls)
            .field("crashed", &state.crashed)
            .field("full", &state.full)
            .finish_non_exhaustive()
    }
}

impl Env for FaultEnv {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let node = self.plain_call("open", path, |state| {
            state.check_space(mode != OpenMode::Read && !state.disk.exists(path))?;
            state.disk.open(path, mode)
        })?;
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(FaultFile { env: self.clone(), node, writable, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plain_call("rename", from, |state| state.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.plain_call("remove", path, |state| state.disk.remove(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.plain_call("remove_dir_all", path, |state| state.disk.remove_dir_all(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.plain_call("list", dir, |state| state.disk.list(dir))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.plain_call("exists", path, |state| Ok(state.disk.exists(path)))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.plain_call("create_dir_all", dir, |state| {
            state.check_space(!state.disk.exists(dir))?;
            state.disk.create_dir_all(dir)
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call("sync_dir", dir, (0, 0), |state, verdict| match verdict {
            Verdict::Proceed => state.disk.sync_dir(dir),
            _ => Ok(()),
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let node = self.plain_call("lock", path, |state| state.disk.lock(path))?;
        Ok(Box::new(FaultLock { env: self.clone(), node }))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.plain_call("free_bytes", dir, |state| Ok(if state.full { 0 } else { 1 << 40 }))
    }
}

#[derive(Debug)]
struct FaultFile {
    env: FaultEnv,
    node: NodeId,
    writable: bool,
    path: PathBuf,
}

impl FaultFile {
    fn change(
        &self,
        function: &'static str,
        extent: (u64, u64),
        act: impl FnOnce(&mut State, &Verdict) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.writable {
            return Err(at(function, &self.path)(io::ErrorKind::PermissionDenied.into()));
        }
        self.env.call(function, &self.path, extent, act)
    }
}

impl EnvFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.env.call("read_at", &self.path, (offset, buf.len() as u64), |state, _| {
            Ok(state.disk.file(self.node).read_at(buf, offset))
        })
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            bytes.extend_from_slice(part);
        }
        let end = offset + bytes.len() as u64;
        self.change("write_at", (offset, bytes.len() as u64), |state, verdict| {
            state.check_space(end > state.disk.file(self.node).len())?;
            let count = match verdict {
                Verdict::Fail(_) => bytes.len() / 2,
                _ => bytes.len(),
            };
            state.disk.file_mut(self.node).write_at(&bytes[..count], offset);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.env.call("sync_data", &self.path, (0, 0), |state, verdict| {
            match verdict {
                Verdict::Proceed => state.disk.file_mut(self.node).sync(),
                Verdict::Fail(_) => state.disk.file_mut(self.node).set_adrift(),
                Verdict::LoseSync | Verdict::Crash => {}
            }
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change("allocate", (len, 0), |state, verdict| {
            let now = state.disk.file(self.node).len();
            state.check_space(len > now)?;
            let end = if matches!(verdict, Verdict::Fail(_)) { now.midpoint(len) } else { len };
            if end > now {
                state.disk.file_mut(self.node).set_len(end);
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change("set_len", (len, 0), |state, verdict| {
            if !matches!(verdict, Verdict::Fail(_)) {
                state.disk.file_mut(self.node).set_len(len);
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.env.call("len", &self.path, (0, 0), |state, _| Ok(state.disk.file(self.node).len()))
    }
}

#[derive(Debug)]
struct FaultLock {
    env: FaultEnv,
    node: NodeId,
}

impl LockGuard for FaultLock {}

impl Drop for FaultLock {
    fn drop(&mut self) {
        self.env.state.lock().disk.unlock(self.node);
    }
}

#[cfg(test)]
mod tests;
