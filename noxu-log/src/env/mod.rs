//! Env: the file system as the log sees it. Every byte that noxu-log and the restore write goes
//! through this seam, so that tests and the simulator can crash, tear and fail any call.
//!
//! Durability contract, the same as POSIX gives: what [`EnvFile::write_at`] wrote survives a crash
//! only after [`EnvFile::sync_data`]; a created, renamed or removed name only after
//! [`Env::sync_dir`] of its directory. Before that, any subset of the 512-byte sectors written may
//! survive.

#[cfg(test)]
mod conformance;
mod fault;
mod memory;
mod path_error;
mod real;
mod whole_file;

use std::fmt::Debug;
use std::io;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

pub use fault::{Call, Fault, FaultEnv, FaultRates, Hold, Survivors};
pub use memory::MemoryEnv;
pub use real::RealEnv;
pub use whole_file::{Aside, read_whole, sync_parent, write_aside, write_whole};

/// How [`Env::open`] treats a missing or present file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading only; must exist.
    Read,
    /// For reading and writing; must exist.
    ReadWrite,
    /// For reading and writing; must not exist yet.
    CreateNew,
    /// For reading and writing; created if missing, kept as it is otherwise.
    CreateOrOpen,
}

/// A file system.
pub trait Env: Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>>;
    /// Renames a file or directory, replacing a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it; no error if there is none.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory (files and directories), sorted; an error if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Whether a file or directory exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Creates a directory and its parents, and makes each new name durable in its parent.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive lock, released when the guard is dropped or the process dies.
    /// [`io::ErrorKind::WouldBlock`] if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;
    /// Bytes free on the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// A random number for an identity, such as that of a directory: no other machine draws the same.
    fn entropy(&self) -> u64 {
        noxu_util::Incarnation::random().as_u64()
    }
    /// A number for the time since the machine was started: as long as it is the same, files are as
    /// processes left them, however those ended. `None` if that cannot be told.
    fn boot(&self) -> Option<u64> {
        None
    }
}

/// Bytes read or written at once from which on they had better pass through the page cache than stay
/// in it: the memory for a copy costs more than all else that is done with them.
pub(crate) const PASSING_BYTES: usize = 256 << 10;

/// An open file. Positioned reads and writes only; usable from many threads.
pub trait EnvFile: Debug + Send + Sync {
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// As [`EnvFile::read_at`], of bytes that are not to be read again soon: where the operating system
    /// can, it keeps no copy of them in memory that it did not have before.
    fn read_passing(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// Writes all of `parts`, one after the other, from `offset`; extends the file if need be.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// As [`EnvFile::write_at`], of bytes that are not to be read again soon: where the operating
    /// system can, it begins at once to bring them to the disk and keeps no copy of them in memory.
    fn write_passing(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.write_at(parts, offset)
    }
    /// Makes data and length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Extends the file to `len` bytes with zeros that are really written, so that later writes
    /// need no block allocation. No effect on a file that is that long.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Gives back the memory in which the operating system keeps this part of the file, as far as it
    /// is synced, so that the next read asks the disk. A hint: no effect where there is no such
    /// memory, and none on what is read.
    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Holds a lock taken by [`Env::lock`].
pub trait LockGuard: Debug + Send + Sync {}
