//! FaultEnv: a file system in memory whose every call can fail and whose every crash can be seen.
//!
//! It keeps two images, what callers see and what is durable, and between them everything that was
//! not synced. [`FaultEnv::crash`] gives the file system that a power loss leaves: any subset of
//! the unsynced 512-byte sectors (so that writes are lost, torn or reordered), any of the lengths a
//! file had since its last sync, any subset of the unsynced names. The same seed over the same
//! calls gives the same image ([`FaultEnv::digest`]).
//!
//! # Model
//! - A sector is written whole or not at all; nothing larger is.
//! - A rename is atomic; it may survive without the renames and creations before it.
//! - A failed `sync_data` leaves the sectors it was to save *adrift*, as Linux does: callers go on
//!   seeing them, a later sync that succeeds does not save them, only writing them again does.
//! - A failed write has written its first half; one that the disk has no room for, what fits.
//! - A lost or misdirected write is seen as it is at once, as if nothing were cached; the length of
//!   the file is that of a write which went well.
//! - Space is that of whole sectors of every file that has a name or a handle. A file that has
//!   neither is gone once no crash can bring back its name.
//! - Time does not pass by itself: a slow call moves a clock of its own, or waits for the test to
//!   move it.
//! - Random numbers are the operating system's until [`FaultEnv::seed_entropy`]: from then on,
//!   through crashes too, they follow from the seed.
//!
//! # Not here
//! What may be left of a file (image.rs) and of names (disk.rs), which of it is (lot.rs), which
//! call goes wrong (schedule.rs).

mod disk;
mod image;
mod lot;
mod schedule;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::disk::{Disk, NodeId, whole_sectors};
use self::lot::Lot;
use self::schedule::Schedule;
pub use self::schedule::{Fault, FaultRates};
use super::path_error::at;
use super::{Env, EnvFile, LockGuard, OpenMode};

/// A file system in memory with faults and crashes. A clone is the same file system.
#[derive(Clone, Default)]
pub struct FaultEnv {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when a call is held, a hold is released, the clock moves, or the machine stops.
    changed: Condvar,
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
    /// The subset of this number: from 0 up to [`FaultEnv::possible_images`] each possible one
    /// once.
    Nth(u64),
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
#[allow(clippy::struct_excessive_bools)] // each a switch of its own
struct State {
    disk: Disk,
    calls: u64,
    trace: VecDeque<Call>,
    /// Whether calls leave no trace.
    untraced: bool,
    /// How often the machine was started again.
    boots: u64,
    /// Where random numbers come from; `None` for the operating system.
    entropy: Option<fastrand::Rng>,
    schedule: Schedule,
    holds: Vec<HoldState>,
    now: Duration,
    /// Whether slow calls wait for [`FaultEnv::advance`] instead of moving the clock themselves.
    clock_is_manual: bool,
    crash_at: Option<u64>,
    crashed: bool,
    full: bool,
    capacity: Option<u64>,
}

/// What [`FaultEnv::begin`] tells the call to do.
enum Verdict {
    Proceed,
    Fail(io::ErrorKind),
    LoseSync,
    LoseWrite,
    Misdirect(u64),
    /// The machine stops in the middle: leave the call's effect unsynced, then fail.
    Crash,
}

/// Keeps one call from going on: [`FaultEnv::hold_next`]. Dropped, it lets it.
#[must_use]
pub struct Hold {
    env: FaultEnv,
    number: u64,
}

#[derive(Debug)]
struct HoldState {
    number: u64,
    function: &'static str,
    /// A call has met it.
    met: bool,
}

const SECTOR: u64 = image::SECTOR_BYTES as u64;
/// Calls kept for [`FaultEnv::trace`].
const TRACE_CALLS: usize = 1 << 16;

impl FaultEnv {
    /// An empty file system without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty file system whose faults come by lot, the same for the same seed and calls.
    pub fn seeded(seed: u64, rates: FaultRates) -> Self {
        let env = Self::new();
        env.set_rates(seed, rates);
        env
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.shared.state.lock().calls
    }

    /// Whether calls are kept for [`FaultEnv::trace`], here and on what a crash leaves; they are unless
    /// this says otherwise. Costs an allocation a call, and no other call depends on it.
    pub fn keep_trace(&self, keep: bool) {
        let mut state = self.shared.state.lock();
        state.untraced = !keep;
        state.trace.clear();
    }

    /// From now on [`Env::entropy`] follows from `seed`, on what a crash or kill leaves as well: a
    /// machine that restarts draws on where it was.
    pub fn seed_entropy(&self, seed: u64) {
        self.shared.state.lock().entropy = Some(fastrand::Rng::with_seed(seed));
    }

    /// The calls made so far, at most the latest 65,536.
    pub fn trace(&self) -> Vec<Call> {
        self.shared.state.lock().trace.iter().cloned().collect()
    }

    /// Call `number` (of [`FaultEnv::calls`]) will fail, and only it.
    pub fn fail_at(&self, number: u64, fault: Fault) {
        self.shared.state.lock().schedule.add_at(number, fault);
    }

    /// The next call of `function` ("sync_data", "write_at", ...) will fail, and only it.
    pub fn fail_next(&self, function: &'static str, fault: Fault) {
        self.shared.state.lock().schedule.add_next(function, fault);
    }

    /// From now on faults come by lot.
    pub fn set_rates(&self, seed: u64, rates: FaultRates) {
        self.shared.state.lock().schedule.draw_by_lot(seed, rates);
    }

    /// No fault comes any more that has not come yet.
    pub fn stop_faults(&self) {
        self.shared.state.lock().schedule.stop();
    }

    /// The machine will stop in the middle of call `number`; it and all later ones fail.
    pub fn crash_at(&self, number: u64) {
        self.shared.state.lock().crash_at = Some(number);
    }

    /// Whether the machine has stopped.
    pub fn has_crashed(&self) -> bool {
        self.shared.state.lock().crashed
    }

    /// The next call of `function` will wait, before it does anything, until the hold is dropped;
    /// calls of other threads go on meanwhile.
    pub fn hold_next(&self, function: &'static str) -> Hold {
        let mut state = self.shared.state.lock();
        let number = state.holds.last().map_or(1, |hold| hold.number + 1);
        state.holds.push(HoldState { number, function, met: false });
        Hold { env: self.clone(), number }
    }

    /// How long all slow calls took.
    pub fn now(&self) -> Duration {
        self.shared.state.lock().now
    }

    /// From now on a slow call waits until [`FaultEnv::advance`] has moved the clock so far,
    /// instead of moving it itself.
    pub fn stop_clock(&self) {
        self.shared.state.lock().clock_is_manual = true;
    }

    /// Moves the clock.
    pub fn advance(&self, by: Duration) {
        self.shared.state.lock().now += by;
        self.shared.changed.notify_all();
    }

    /// While full, no file can be created or grow; writing over what is there works.
    pub fn set_full(&self, full: bool) {
        self.shared.state.lock().full = full;
    }

    /// Gives the disk room for so many bytes (whole sectors of all files); `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state.lock().capacity = bytes;
    }

    /// Bytes that the files take: whole sectors of all that have a name or a handle.
    pub fn used_bytes(&self) -> u64 {
        self.shared.state.lock().disk.used_bytes()
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
        self.stop_machine();
        self.clone_image(survivors)
    }

    /// The file system that a crash at this moment would leave; this one goes on.
    #[must_use]
    pub fn clone_image(&self, survivors: Survivors) -> Self {
        let state = self.shared.state.lock();
        Self::restarted(&state, state.disk.after_crash(&mut Lot::new(survivors)), state.boots + 1)
    }

    /// How many choices there are of what a crash at this moment leaves, at most `u64::MAX`: see
    /// [`Survivors::Nth`]. Some may leave the same bytes.
    pub fn possible_images(&self) -> u64 {
        let mut lot = Lot::counting();
        drop(self.shared.state.lock().disk.after_crash(&mut lot));
        lot.counted()
    }

    /// Ends the process but not the machine: the next process finds all that was written, and what
    /// was not synced still is not. Every later call of this one fails.
    #[must_use]
    pub fn kill(&self) -> Self {
        self.stop_machine();
        let state = self.shared.state.lock();
        Self::restarted(&state, state.disk.after_kill(), state.boots)
    }

    /// A digest of all names and bytes as callers see them. Not counted as a call.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.shared.state.lock().disk.walk(&mut |path, bytes| {
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            hasher.update(bytes.unwrap_or_default());
        });
        hasher.finalize()
    }

    /// Flips the bits of `mask` in one byte, durably and unnoticed: latent corruption. An error if
    /// the file has no such byte. Not counted as a call.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        self.shared.state.lock().disk.corrupt(path, offset, mask).map_err(at("corrupt", path))
    }

    /// The machine of `before` with `disk`, and another process.
    fn restarted(before: &State, disk: Disk, boots: u64) -> Self {
        let state = State {
            disk,
            boots,
            untraced: before.untraced,
            entropy: before.entropy.clone(),
            ..State::default()
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    fn stop_machine(&self) {
        self.shared.state.lock().crashed = true;
        self.shared.changed.notify_all();
    }

    fn call<T>(
        &self,
        function: &'static str,
        path: &Path,
        (offset, len): (u64, u64),
        act: impl FnOnce(&mut State, &Verdict) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.shared.state.lock();
        let verdict = self.begin(&mut state, function, path, offset, len);
        let result = verdict.and_then(|verdict| match (act(&mut state, &verdict), verdict) {
            (_, Verdict::Fail(kind)) => Err(kind.into()),
            (_, Verdict::Crash) => Err(stopped()),
            (result, _) => result,
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

    /// Counts the call, lets it wait if it is to, and says what becomes of it.
    fn begin(
        &self,
        state: &mut MutexGuard<'_, State>,
        function: &'static str,
        path: &Path,
        offset: u64,
        len: u64,
    ) -> io::Result<Verdict> {
        if state.crashed {
            return Err(stopped());
        }
        state.calls += 1;
        let number = state.calls;
        if !state.untraced {
            if state.trace.len() == TRACE_CALLS {
                state.trace.pop_front();
            }
            state.trace.push_back(Call { number, function, path: path.to_owned(), offset, len });
        }
        if state.crash_at == Some(number) {
            state.crashed = true;
            self.shared.changed.notify_all();
            return Ok(Verdict::Crash);
        }
        let mut drawn = state.schedule.draw(number, function);
        if let Some(draw) = &mut drawn.rot {
            state.disk.rot(draw);
        }
        self.wait_for_hold(state, function);
        if let Some(Fault::Slow(duration)) = drawn.fault {
            self.pass_time(state, duration);
        }
        if state.crashed {
            return Err(stopped());
        }
        Ok(match drawn.fault {
            None | Some(Fault::Slow(_)) => Verdict::Proceed,
            Some(Fault::Error(kind)) => Verdict::Fail(kind),
            Some(Fault::LostSync) => Verdict::LoseSync,
            Some(Fault::LostWrite) => Verdict::LoseWrite,
            Some(Fault::Misdirected(place)) => Verdict::Misdirect(place),
        })
    }

    fn wait_for_hold(&self, state: &mut MutexGuard<'_, State>, function: &'static str) {
        let found = state.holds.iter_mut().find(|hold| !hold.met && hold.function == function);
        let Some(hold) = found else { return };
        hold.met = true;
        let number = hold.number;
        self.shared.changed.notify_all();
        while !state.crashed && state.holds.iter().any(|hold| hold.number == number) {
            self.shared.changed.wait(state);
        }
    }

    fn pass_time(&self, state: &mut MutexGuard<'_, State>, duration: Duration) {
        let end = state.now + duration;
        while !state.crashed && state.now < end {
            if state.clock_is_manual {
                self.shared.changed.wait(state);
            } else {
                state.now = end;
            }
        }
    }
}

impl Hold {
    /// Blocks until a call waits for this hold.
    pub fn wait_until_met(&self) {
        let mut state = self.env.shared.state.lock();
        while !state.crashed
            && state.holds.iter().any(|hold| hold.number == self.number && !hold.met)
        {
            self.env.shared.changed.wait(&mut state);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.env.shared.state.lock().holds.retain(|hold| hold.number != self.number);
        self.env.shared.changed.notify_all();
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

impl State {
    fn check_space(&self, grows: bool) -> io::Result<()> {
        if self.full && grows { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// The length that a file may grow to, of the `end` it is to reach.
    fn room_for(&self, node: NodeId, end: u64) -> u64 {
        let len = self.disk.file(node).len();
        if end <= len {
            return end;
        }
        if self.full {
            return len;
        }
        let Some(capacity) = self.capacity else { return end };
        let free = capacity.saturating_sub(self.disk.used_bytes());
        end.min(whole_sectors(len) + free / SECTOR * SECTOR)
    }
}

impl fmt::Debug for FaultEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("FaultEnv")
            .field("calls", &state.calls)
            .field("crashed", &state.crashed)
            .field("full", &state.full)
            .field("capacity", &state.capacity)
            .finish_non_exhaustive()
    }
}

impl Env for FaultEnv {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let node = self.plain_call("open", path, |state| {
            state.check_space(mode != OpenMode::Read && !state.disk.exists(path))?;
            let node = state.disk.open(path, mode)?;
            state.disk.add_handle(node);
            Ok(node)
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
        self.plain_call("free_bytes", dir, |state| {
            Ok(match state.capacity {
                _ if state.full => 0,
                Some(capacity) => capacity.saturating_sub(state.disk.used_bytes()),
                None => 1 << 40,
            })
        })
    }

    fn entropy(&self) -> u64 {
        let drawn = self.shared.state.lock().entropy.as_mut().map(|random| random.u64(..));
        drawn.unwrap_or_else(|| noxu_util::Incarnation::random().as_u64())
    }

    fn boot(&self) -> Option<u64> {
        Some(self.shared.state.lock().boots)
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
            let room = state.room_for(self.node, end).saturating_sub(offset);
            let fits = bytes.len().min(room as usize);
            match verdict {
                Verdict::LoseWrite => {
                    state.disk.file_mut(self.node).lose_write(offset + fits as u64);
                }
                Verdict::Misdirect(place) => {
                    state.disk.file_mut(self.node).lose_write(offset + fits as u64);
                    let sent_to = (self.node, offset / SECTOR);
                    state.disk.land(&bytes[..fits], (offset % SECTOR) as usize, sent_to, *place);
                }
                Verdict::Fail(_) => {
                    let half = fits.min(bytes.len() / 2);
                    state.disk.file_mut(self.node).write_at(&bytes[..half], offset);
                }
                _ => state.disk.file_mut(self.node).write_at(&bytes[..fits], offset),
            }
            if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.env.call("sync_data", &self.path, (0, 0), |state, verdict| {
            match verdict {
                Verdict::Proceed => state.disk.file_mut(self.node).sync(),
                Verdict::Fail(_) => state.disk.file_mut(self.node).set_adrift(),
                _ => {}
            }
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change("allocate", (len, 0), |state, verdict| {
            let now = state.disk.file(self.node).len();
            let room = state.room_for(self.node, len.max(now));
            let end = if matches!(verdict, Verdict::Fail(_)) { now.midpoint(room) } else { room };
            if end > now {
                state.disk.file_mut(self.node).set_len(end);
            }
            if room < len { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change("set_len", (len, 0), |state, verdict| {
            if state.room_for(self.node, len) < len {
                return Err(io::ErrorKind::StorageFull.into());
            }
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

impl Drop for FaultFile {
    fn drop(&mut self) {
        self.env.shared.state.lock().disk.drop_handle(self.node);
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
        self.env.shared.state.lock().disk.unlock(self.node);
    }
}

#[cfg(test)]
mod tests;
