//! Set aside: everything of a stopped node is moved into a directory beside, so that it starts as one
//! whose directory was wiped, and its log can still be looked at.
//!
//! # Crash argument
//! The directory's lock is held throughout: no node runs in it.
//! 1. `set-aside.new/` is made, durably. The node is as it was.
//! 2. The control file is moved there, and that is durable before anything else is: with it go the
//!    identity, the vote and the term. A node that is started from here on finds a log without a control
//!    file, which it refuses to open. So none ever starts with its vote and without its log, which would
//!    be one that has forgotten what it promised.
//! 3. Everything else but the log is moved, durably: state, tail mark, lost entries, a restore that was
//!    begun.
//! 4. The log is moved, durably. From here on a node that is started is a new one, and finds nothing of
//!    the old.
//! 5. `set-aside.new/` gets its name, with the time in it, durably.
//!
//! Each move is one rename. Whatever a crash leaves, the same command finds `set-aside.new/` and moves what
//! is left, in the same order; what is there under its name already, because somebody tried to open the
//! directory meanwhile or because a file system kept both names of a rename, goes beside it under another.
//! `noxu node` refuses to start while `set-aside.new/` is there.
//!
//! # Invariants
//! - Nothing is removed.
//! - What was set aside before stays as it is.

use std::path::{Path, PathBuf};

use noxu_log::LogError;
use noxu_log::env::{Env, LockGuard};
use noxu_log::segment::name::log_dir;

/// Where everything goes until all of it is there.
const UNFINISHED: &str = "set-aside.new";
/// What the names of finished ones begin with.
const FINISHED: &str = "set-aside-";
/// The lock, which stays.
const LOCK: &str = "LOCK";
/// The control file: first.
const CONTROL: &str = "control";

type Result<T> = std::result::Result<T, LogError>;

/// A node directory that no node runs in.
pub(super) struct Stopped<'a> {
    env: &'a dyn Env,
    dir: &'a Path,
    _lock: Box<dyn LockGuard>,
}

/// Whether setting aside what is in `dir` was begun and not finished.
///
/// # Errors
/// `Io` if that cannot be found out.
pub(in crate::cli) fn is_unfinished(env: &dyn Env, dir: &Path) -> Result<bool> {
    let path = dir.join(UNFINISHED);
    env.exists(&path).map_err(|e| LogError::io("look for", &path, e))
}

impl<'a> Stopped<'a> {
    /// Takes the lock of the node in `dir`.
    ///
    /// # Errors
    /// `Locked` if one runs there; `Io`.
    pub(super) fn lock(env: &'a dyn Env, dir: &'a Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let lock = env.lock(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => LogError::Locked { path: path.clone() },
            _ => LogError::io("lock", &path, e),
        })?;
        Ok(Self { env, dir, _lock: lock })
    }

    /// What is there of a node: names, in the order in which they are to be moved.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn parts(&self) -> Result<Vec<String>> {
        let names = self.env.list(self.dir).map_err(|e| LogError::io("list", self.dir, e))?;
        let log = log_dir(self.dir);
        let rank = |name: &String| match name.as_str() {
            CONTROL => 0,
            name if Some(name.as_ref()) == log.file_name() => 2,
            _ => 1,
        };
        let mut parts: Vec<String> = names
            .into_iter()
            .filter(|name| name != LOCK && name != UNFINISHED && !name.starts_with(FINISHED))
            .collect();
        parts.sort_by_key(|name| (rank(name), name.clone()));
        Ok(parts)
    }

    /// Moves all of it aside; returns where it is. To be repeated if it fails, or if a crash ends it.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn set_aside(&self, time_ms: u64) -> Result<PathBuf> {
        let staging = self.dir.join(UNFINISHED);
        self.env
            .create_dir_all(&staging)
            .map_err(|e| LogError::io("create directory", &staging, e))?;
        self.sync(self.dir)?;
        for part in self.parts()? {
            let (from, to) = (self.dir.join(&part), self.free_name(&staging, &part)?);
            self.env.rename(&from, &to).map_err(|e| LogError::io("rename", &from, e))?;
            self.sync(&staging)?;
            self.sync(self.dir)?;
        }
        let finished = self.free_name(self.dir, &format!("{FINISHED}{time_ms}"))?;
        self.env.rename(&staging, &finished).map_err(|e| LogError::io("rename", &staging, e))?;
        self.sync(self.dir)?;
        Ok(finished)
    }

    /// `name` in `dir`, or what comes next if there is something of that name.
    fn free_name(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let mut path = dir.join(name);
        for number in 2.. {
            if !self.env.exists(&path).map_err(|e| LogError::io("look for", &path, e))? {
                break;
            }
            path = dir.join(format!("{name}.{number}"));
        }
        Ok(path)
    }

    fn sync(&self, dir: &Path) -> Result<()> {
        self.env.sync_dir(dir).map_err(|e| LogError::io("sync directory", dir, e))
    }
}

#[cfg(test)]
mod tests;
