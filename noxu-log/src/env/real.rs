//! RealEnv: the operating system's files.
//!
//! Every error names the path and keeps the kind and the operating system's own error as its
//! source, so that "no space" can still be told from "no such file".

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::io::IoSlice;
#[cfg(target_os = "linux")]
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
#[cfg(target_os = "linux")]
use rustix::io::ReadWriteFlags;

use super::path_error::at;
use super::{Env, EnvFile, LockGuard, OpenMode};

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealEnv;

impl RealEnv {
    /// The operating system's file system.
    pub const fn new() -> Self {
        Self
    }
}

impl Env for RealEnv {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read);
        match mode {
            OpenMode::Read | OpenMode::ReadWrite => {}
            OpenMode::CreateNew => {
                options.create_new(true);
            }
            OpenMode::CreateOrOpen => {
                options.create(true).truncate(false);
            }
        }
        let file = options.open(path).map_err(at("open", path))?;
        Ok(Arc::new(RealFile { file, path: path.to_owned(), keeps_all: AtomicBool::new(false) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to).map_err(at("rename", from))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path).map_err(at("remove", path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("remove", path)),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(at("list", dir))? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.map_err(at("list", dir))?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists().map_err(at("look up", path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.as_os_str().is_empty() {
            return Ok(());
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if dir.is_dir() {
            // Whoever made it may have been killed before its name was durable. A parent that may
            // not be read is none that we have made it in.
            return match self.sync_dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other,
            };
        }
        self.create_dir_all(parent)?;
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other.map_err(at("create directory", dir))?,
        }
        self.sync_dir(parent)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir).and_then(|handle| handle.sync_all()).map_err(at("sync", dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(at("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => {
                Err(at("lock", path)(io::ErrorKind::WouldBlock.into()))
            }
            Err(TryLockError::Error(error)) => Err(at("lock", path)(error)),
        }
    }

    fn boot(&self) -> Option<u64> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        u64::from_str_radix(&digits, 16).ok()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir).map_err(|e| at("look up", dir)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: PathBuf,
    /// Set once the system has refused to read or write without keeping a copy.
    keeps_all: AtomicBool,
}

impl EnvFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        fill(buf, offset, |rest, at| self.file.read_at(rest, at)).map_err(at("read", &self.path))
    }

    #[cfg(target_os = "linux")]
    fn read_passing(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = |rest: &mut [u8], at| {
            if self.keeps_all.load(Ordering::Relaxed) {
                return self.file.read_at(rest, at);
            }
            let mut parts = [IoSliceMut::new(rest)];
            match rustix::io::preadv2(&self.file, &mut parts, at, DONTCACHE) {
                Err(refused) if is_refusal(refused) => {
                    self.keeps_all.store(true, Ordering::Relaxed);
                    self.file.read_at(rest, at)
                }
                done => Ok(done?),
            }
        };
        fill(buf, offset, read).map_err(at("read", &self.path))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.write_parts(parts, offset).map_err(at("write", &self.path))
    }

    #[cfg(target_os = "linux")]
    fn write_passing(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let end = offset + bytes as u64;
        // The page that is not full stays in memory: the next write would have to read it back.
        let whole = bytes.saturating_sub((end % PAGE_BYTES) as usize);
        if whole == 0 || self.keeps_all.load(Ordering::Relaxed) {
            return self.write_at(parts, offset);
        }
        let (passing, kept) = split_at(parts, whole);
        write_groups(&passing, offset, |group, at| self.write_once_passing(group, at))
            .and_then(|()| self.write_parts(&kept, offset + whole as u64))
            .map_err(at("write", &self.path))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().map_err(at("sync", &self.path))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let write_zeros = || {
            let mut end = self.file.metadata()?.len();
            while end < len {
                let zeros = &ZEROS[..(len - end).min(ZEROS.len() as u64) as usize];
                self.file.write_all_at(zeros, end)?;
                end += zeros.len() as u64;
            }
            Ok(())
        };
        write_zeros().map_err(at("allocate", &self.path))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len).map_err(at("set the length of", &self.path))
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    fn drop_cached(&self, offset: u64, len: u64) -> io::Result<()> {
        let Some(len) = std::num::NonZeroU64::new(len) else { return Ok(()) };
        let advice = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(&self.file, offset, Some(len), advice)
            .map_err(|error| at("drop from memory", &self.path)(error.into()))
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|meta| meta.len()).map_err(at("look up", &self.path))
    }
}

impl RealFile {
    fn write_parts(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if let [part] = parts {
            return self.file.write_all_at(part, offset);
        }
        write_groups(parts, offset, |group, at| rustix::io::pwritev(&self.file, group, at))
    }

    #[cfg(target_os = "linux")]
    fn write_once_passing(&self, parts: &[IoSlice<'_>], offset: u64) -> rustix::io::Result<usize> {
        match rustix::io::pwritev2(&self.file, parts, offset, DONTCACHE) {
            Err(refused) if is_refusal(refused) => {
                self.keeps_all.store(true, Ordering::Relaxed);
                rustix::io::pwritev(&self.file, parts, offset)
            }
            done => done,
        }
    }
}

/// Whether the system cannot pass bytes: kernels before 6.14, and file systems that do not know how.
#[cfg(target_os = "linux")]
const fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
}

/// Calls `read` until `buf` is full or the file ends; returns the bytes read.
fn fill(
    buf: &mut [u8],
    offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of `parts` in calls of `write`, which says how many bytes it wrote.
fn write_groups(
    parts: &[IoSlice<'_>],
    mut offset: u64,
    write: impl Fn(&[IoSlice<'_>], u64) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    for group in parts.chunks(PARTS_PER_CALL) {
        let mut owned = [IoSlice::new(&[]); PARTS_PER_CALL];
        let mut rest = &mut owned[..group.len()];
        rest.copy_from_slice(group);
        IoSlice::advance_slices(&mut rest, 0); // skips empty parts
        while !rest.is_empty() {
            match write(rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// `parts` as their first `at` bytes and the rest.
#[cfg(target_os = "linux")]
fn split_at<'a>(parts: &'a [IoSlice<'_>], at: usize) -> (Vec<IoSlice<'a>>, Vec<IoSlice<'a>>) {
    let (mut before, mut after) = (Vec::with_capacity(parts.len()), Vec::new());
    let mut left = at;
    for part in parts {
        let (first, second) = part.split_at(left.min(part.len()));
        left -= first.len();
        if !first.is_empty() {
            before.push(IoSlice::new(first));
        }
        if !second.is_empty() {
            after.push(IoSlice::new(second));
        }
    }
    (before, after)
}

/// `RWF_DONTCACHE`, which rustix does not name yet.
#[cfg(target_os = "linux")]
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Unit of the page cache; on a machine with larger pages a wrong one costs only speed.
#[cfg(target_os = "linux")]
const PAGE_BYTES: u64 = 4096;

/// Holds the file whose lock the kernel drops with the last descriptor.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl LockGuard for RealLock {}

/// Parts given to one `pwritev`; the kernel takes at most 1,024.
const PARTS_PER_CALL: usize = 256;

/// Zeros of one write. The page cache keeps a long write as one large folio, and then each small
/// write into it walks all of its blocks: 132 B into 1 MiB take twice as long as into 64 KiB.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::conformance;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_start_of_a_machine_has_a_number_that_stays() {
        let boot = RealEnv::new().boot();
        assert!(boot.is_some());
        assert_eq!(RealEnv::new().boot(), boot);
    }

    #[test]
    fn it_does_what_every_environment_does() {
        let dir = tempfile::tempdir().unwrap();
        conformance::check(&RealEnv::new(), dir.path());
    }

    #[test]
    fn errors_name_the_path_and_keep_the_kind() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = RealEnv.open(&missing, OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_write_of_more_parts_than_one_call_takes_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealEnv.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..3 * PARTS_PER_CALL as u32).map(|i| i as u8).collect();
        let parts: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        file.write_at(&parts, 10).unwrap();
        let mut back = vec![0; bytes.len() + 1];
        assert_eq!(file.read_at(&mut back, 10).unwrap(), bytes.len());
        assert_eq!(back[..bytes.len()], bytes);
    }

    #[test]
    fn what_passes_stands_in_the_file_wherever_it_begins_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealEnv.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        let mut expected = Vec::new();
        for len in [1, 4095, 1, 8192, 3, 300_000, 4096, 5] {
            let from = expected.len();
            expected.extend((from..from + len).map(|i| (i / 7) as u8));
            let (a, b) = expected[from..].split_at(len / 3);
            let parts = [IoSlice::new(a), IoSlice::new(&[]), IoSlice::new(b)];
            file.write_passing(&parts, from as u64).unwrap();
        }
        file.sync_data().unwrap();
        let mut back = vec![0; expected.len() + 1];
        assert_eq!(file.read_at(&mut back, 0).unwrap(), expected.len());
        assert_eq!(back[..expected.len()], expected);
        back.fill(0);
        assert_eq!(file.read_passing(&mut back[3..], 3).unwrap(), expected.len() - 3);
        assert_eq!(back[3..expected.len()], expected[3..]);
    }

    #[test]
    fn allocated_space_is_zero_and_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealEnv.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(b"kept")], 0).unwrap();
        let len = (3 * ZEROS.len() + 12_345) as u64;
        file.allocate(len).unwrap();
        assert_eq!(file.len().unwrap(), len);
        let mut back = vec![1; len as usize];
        file.read_at(&mut back, 0).unwrap();
        assert_eq!(&back[..4], b"kept");
        assert!(back[4..].iter().all(|b| *b == 0));
    }
}
