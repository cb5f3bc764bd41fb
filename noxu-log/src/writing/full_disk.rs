//! FullDisk: what becomes of a log when a write finds no room, and of the reserve that is kept for
//! that day.
//!
//! # States
//! Writable -> ReadOnly when a write finds no room        ReadOnly -> Writable when all is written,
//! and the reserve is whole again
//!
//! While read-only, appends are refused, except `Term` and Group entries, without which a group could
//! neither change its master nor heal itself. Entries that have their VLSNs stay in the tail, where
//! feeders find them, and are written to the same places once there is room; whoever waits for one
//! goes on waiting. Nobody tells a program that a disk has room again, so the flusher looks.
//!
//! The *reserve* is a file of one segment's size beside the log. It is removed, so that its room can
//! be used, for `Term` and Group entries and what precedes them, and for lost-entries files.
//!
//! # Invariants
//! - While read-only, no VLSN is given to an ordinary entry, and none that was given is given again.
//! - The log becomes writable only once the reserve, if it keeps one, is there again: what is
//!   appended afterwards cannot have used it up.
//!
//! # Crash argument
//! 1. A write that finds no room may have written a part of its bytes. `written` does not move past
//!    them, so they are never synced for anybody's sake, marked or told of.
//! 2. They stand where they will be written again, the same bytes: entries keep their VLSNs and
//!    places until they are written or cut off. So whatever a crash leaves of them is a valid
//!    continuation of the log or a torn one, above the mark either way; both are what a crash in the
//!    middle of any write leaves.
//! 3. A new segment whose first write found no room has its name and no header, or a part of it:
//!    what a roll cut short leaves, which recovery removes.
//! 4. A sync that finds no room says that bytes the log took for written are not. That is no full
//!    disk any more but a failed sync, and stops the log.
//! 5. The reserve holds nothing, so that losing or keeping its removal in a crash means nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::env::{Env, OpenMode, sync_parent};
use crate::error::{LogError, Result};
use crate::log::{Log, Shared};
use crate::writing::group_commit::{Room, Writer};

/// How often the flusher looks whether a full disk has room again.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

const RESERVE_NAME: &str = "reserve";
/// Bytes of the reserve that are filled at once.
const FILL_STEP: u64 = 1 << 20;

/// What those who listen know of the disk.
#[derive(Debug, Default)]
pub(crate) struct ReadOnlyTold {
    /// They were told that the log is read-only.
    read_only: bool,
    /// A thread is telling them.
    telling: bool,
}

impl Log {
    /// Whether the disk is full, so that appends are refused until there is room again.
    pub fn is_read_only(&self) -> bool {
        self.shared.is_read_only()
    }

    /// What appends are refused with at the moment; `None` if they are not.
    pub fn read_only(&self) -> Option<LogError> {
        self.shared.state.lock().no_room.as_deref().map(LogError::read_only)
    }

    /// Registers a function to be called when the log becomes read-only, with what appends are
    /// refused with, and with `None` when it takes entries again: in turn, by the thread that noticed
    /// it first, with no lock of the log held.
    pub fn on_read_only(&self, hook: impl Fn(Option<&LogError>) + Send + Sync + 'static) {
        self.shared.hooks.write().read_only.push(std::sync::Arc::new(hook));
    }
}

impl Shared {
    pub(crate) fn is_read_only(&self) -> bool {
        self.state.lock().no_room.is_some()
    }

    /// A write of `path` found no room.
    pub(crate) fn become_read_only(&self, path: &Path) {
        let mut state = self.state.lock();
        if state.no_room.is_none() {
            tracing::warn!(path = %path.display(), "the disk is full: the log is read-only");
            state.no_room = Some(path.into());
        }
        drop(state);
        // Those who wait for room in memory are refused now.
        self.space.notify_all();
        self.flusher.look_for_room(true);
    }

    /// Whether there is room again: then writes what waits, restores the reserve, and takes entries.
    pub(crate) fn look_for_room(&self) -> Result<()> {
        self.tell_read_only();
        // What is urgent need not wait for room if there is a reserve.
        self.turn(self.writer.lock(), true, Room::AsKnown, || {})?;
        let wanted = self.reserve_wanted();
        let missing = wanted.saturating_sub(reserve_held(&*self.env, &self.dir));
        let unwritten = self.unwritten_bytes.load(std::sync::atomic::Ordering::Relaxed) as u64;
        let free = self.env.free_bytes(&self.dir);
        if free.is_ok_and(|free| free < unwritten + missing) {
            return Ok(());
        }
        self.turn(self.writer.lock(), true, Room::TryAgain, || {})?;
        self.sync_mark()?;
        if let Err(error) = self.keep_reserve() {
            if error.is_storage_full() {
                return Ok(());
            }
            tracing::warn!(%error, "no reserve for a full disk");
        }
        let mut state = self.state.lock();
        if state.written.vlsn == state.end.vlsn && state.durable == state.synced.vlsn {
            if state.no_room.take().is_some() {
                tracing::info!(dir = %self.dir.display(), "the disk has room: the log takes entries");
            }
            self.flusher.look_for_room(false);
        }
        drop(state);
        self.tell_read_only();
        Ok(())
    }

    /// Tells the hooks, if they were told otherwise before. No lock is held.
    pub(crate) fn tell_read_only(&self) {
        loop {
            let cause = {
                let mut told = self.read_only_told.lock();
                let cause = self.state.lock().no_room.as_deref().map(LogError::read_only);
                // Whoever is telling, perhaps this thread from within a hook, looks again afterwards.
                if told.telling || told.read_only == cause.is_some() {
                    return;
                }
                *told = ReadOnlyTold { read_only: cause.is_some(), telling: true };
                cause
            };
            let hooks = self.hooks.read().read_only.clone();
            for hook in hooks {
                hook(cause.as_ref());
            }
            self.read_only_told.lock().telling = false;
        }
    }

    /// Writes, syncs and marks everything, with the reserve if need be; before a truncation.
    ///
    /// # Errors
    /// `ReadOnly` if there is not enough room even so; nothing is harmed.
    pub(crate) fn write_all_with_reserve(&self, writer: &mut Writer) -> Result<()> {
        self.write_and_sync(writer, true, Room::UseReserve)?;
        let state = self.state.lock();
        match &state.no_room {
            Some(path) if state.synced.vlsn < state.end.vlsn => Err(LogError::read_only(path)),
            _ => Ok(()),
        }
    }

    fn reserve_wanted(&self) -> u64 {
        let state = self.state.lock();
        let group = state.group.as_ref().filter(|_| self.config.prefill);
        group.map_or(0, |group| group.segment_bytes.into())
    }

    /// Makes the reserve, if this log keeps one and it is not whole.
    pub(crate) fn keep_reserve(&self) -> Result<()> {
        let wanted = self.reserve_wanted();
        if wanted == 0 {
            return Ok(());
        }
        let mut whole = self.reserve.lock();
        if *whole {
            return Ok(());
        }
        let path = reserve_path(&self.dir);
        self.fill_reserve(&path, wanted).inspect_err(|_| {
            let _ = self.env.remove(&path);
        })?;
        *whole = true;
        Ok(())
    }

    fn fill_reserve(&self, path: &Path, wanted: u64) -> Result<()> {
        let file = self
            .env
            .open(path, OpenMode::CreateOrOpen)
            .map_err(|e| LogError::io("create", path, e))?;
        let mut len = file.len().map_err(|e| LogError::io("measure", path, e))?;
        while len < wanted {
            if self.keeper.stopping() {
                return Err(LogError::Closed { dir: self.dir.clone() });
            }
            len = (len + FILL_STEP).min(wanted);
            file.allocate(len).map_err(|e| LogError::io("fill", path, e))?;
        }
        file.sync_data().map_err(|e| LogError::io("sync", path, e))?;
        sync_parent(&*self.env, path)
    }

    /// Gives the reserve's room to whoever writes next; false if there is no reserve.
    pub(crate) fn release_reserve(&self) -> Result<bool> {
        let mut whole = self.reserve.lock();
        *whole = false;
        let path = reserve_path(&self.dir);
        match self.env.remove(&path) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), "the disk is full: the reserve is used");
                Ok(true)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(LogError::io("remove", &path, e)),
        }
    }

    /// Writes a file outside the log, with the room of the reserve if there is no other. `write` can
    /// be repeated.
    ///
    /// # Errors
    /// Those of `write`; `ReadOnly` if there is not enough room even so.
    pub(crate) fn write_with_reserve(
        &self,
        path: &Path,
        write: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut done = write();
        if is_full(&done) && self.release_reserve()? {
            done = write();
        }
        if is_full(&done) {
            let _ = self.env.remove(path);
            self.become_read_only(path);
            return Err(LogError::read_only(path));
        }
        done
    }
}

fn reserve_path(dir: &Path) -> PathBuf {
    dir.join(RESERVE_NAME)
}

fn is_full(done: &Result<()>) -> bool {
    done.as_ref().is_err_and(LogError::is_storage_full)
}

/// Bytes held back for a full disk.
fn reserve_held(env: &dyn Env, dir: &Path) -> u64 {
    let file = env.open(&reserve_path(dir), OpenMode::Read);
    file.and_then(|file| file.len()).unwrap_or(0)
}
