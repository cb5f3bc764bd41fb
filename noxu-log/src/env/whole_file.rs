//! Whole files: written so that a crash leaves the old one, the new one, or none, never a part.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use super::{Env, OpenMode};
use crate::error::{LogError, Result};
use crate::mutant::{self, Mutant};

/// Writes a file whole: durable under its name on return.
///
/// Crash argument: 1. the bytes go to a temporary name and are synced; 2. the rename replaces the
/// name at once; 3. the directory is synced before the caller goes on. Before 2 is durable the old
/// file (or none) is seen, afterwards the new one, whose bytes are durable since 1.
pub fn write_whole(env: &dyn Env, path: &Path, bytes: &[u8]) -> Result<()> {
    write_aside(env, path, bytes)?.put_in_place()
}

/// A file that is durable under a temporary name. Dropped, it stays there until the next one.
#[derive(Clone, Copy)]
pub struct Aside<'a> {
    env: &'a dyn Env,
    path: &'a Path,
}

impl Aside<'_> {
    /// Gives it its name, durably: steps 2 and 3 of [`write_whole`], which need no room on the disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn put_in_place(self) -> Result<()> {
        let Self { env, path } = self;
        let temporary = temporary(path);
        env.rename(&temporary, path).map_err(|e| LogError::io("rename", &temporary, e))?;
        sync_parent(env, path)
    }
}

/// Step 1 of [`write_whole`].
///
/// # Errors
/// `Io`.
pub fn write_aside<'a>(env: &'a dyn Env, path: &'a Path, bytes: &[u8]) -> Result<Aside<'a>> {
    let temporary = temporary(path);
    let file = env
        .open(&temporary, OpenMode::CreateOrOpen)
        .map_err(|e| LogError::io("create", &temporary, e))?;
    let wrap = |action| {
        let temporary = &temporary;
        move |e| LogError::io(action, temporary, e)
    };
    file.set_len(0).map_err(wrap("cut"))?;
    file.write_at(&[IoSlice::new(bytes)], 0).map_err(wrap("write"))?;
    if !mutant::is_on(Mutant::WholeFileNotSynced) {
        file.sync_data().map_err(wrap("sync"))?;
    }
    Ok(Aside { env, path })
}

fn temporary(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// Makes the name of `path` durable in its directory.
pub fn sync_parent(env: &dyn Env, path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    env.sync_dir(parent).map_err(|e| LogError::io("sync directory", parent, e))
}

/// Reads a file whole.
pub fn read_whole(env: &dyn Env, path: &Path) -> Result<Vec<u8>> {
    let file = env.open(path, OpenMode::Read).map_err(|e| LogError::io("open", path, e))?;
    let len = file.len().map_err(|e| LogError::io("measure", path, e))?;
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0).map_err(|e| LogError::io("read", path, e))?;
    bytes.truncate(read);
    Ok(bytes)
}
