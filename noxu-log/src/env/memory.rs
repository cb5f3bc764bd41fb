//! MemoryEnv: a file system in memory, for tests and benchmarks.
//!
//! A clone is the same file system, so that what one handle wrote another finds when it opens the
//! log again. Syncing does nothing: a `MemoryEnv` never crashes (see [`super::FaultEnv`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::IoSlice;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::path_error::at;
use super::{Env, EnvFile, LockGuard, OpenMode};

/// A file system in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryEnv {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
    free: FreePieces,
    locked: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone)]
enum Node {
    Directory,
    File(Arc<RwLock<Content>>),
}

impl MemoryEnv {
    /// An empty file system.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Env for MemoryEnv {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let content = self.tree.lock().open(&plain(path), mode).map_err(at("open", path))?;
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(MemoryFile { content, writable, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tree.lock().rename(&plain(from), &plain(to)).map_err(at("rename", from))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.tree.lock().remove(&plain(path)).map_err(at("remove", path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = plain(path);
        self.tree.lock().nodes.retain(|name, _| !name.starts_with(&path));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.tree.lock().list(&plain(dir)).map_err(at("list", dir))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let path = plain(path);
        Ok(is_root(&path) || self.tree.lock().nodes.contains_key(&path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let path = plain(dir);
        let mut tree = self.tree.lock();
        for ancestor in path.ancestors().filter(|ancestor| !is_root(ancestor)) {
            match tree.nodes.get(ancestor) {
                None => tree.nodes.insert(ancestor.to_owned(), Node::Directory),
                Some(Node::Directory) => break,
                Some(Node::File(_)) => {
                    return Err(at("create directory", dir)(io::ErrorKind::AlreadyExists.into()));
                }
            };
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.tree.lock().check_dir(&plain(dir)).map_err(at("sync", dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let key = plain(path);
        let mut tree = self.tree.lock();
        tree.open(&key, OpenMode::CreateOrOpen).map_err(at("open", path))?;
        if !tree.locked.insert(key.clone()) {
            return Err(at("lock", path)(io::ErrorKind::WouldBlock.into()));
        }
        Ok(Box::new(MemoryLock { tree: Arc::clone(&self.tree), path: key }))
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(u64::MAX / 2)
    }
}

impl Tree {
    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        match self.nodes.get(dir) {
            Some(Node::Directory) => Ok(()),
            None if is_root(dir) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        self.check_dir(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<Arc<RwLock<Content>>> {
        self.check_parent(path)?;
        match (self.nodes.get(path), mode) {
            (Some(Node::Directory), _) => Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Node::File(content)), _) => Ok(Arc::clone(content)),
            (None, OpenMode::Read | OpenMode::ReadWrite) => Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew | OpenMode::CreateOrOpen) => {
                let free = Arc::clone(&self.free);
                let content = Arc::new(RwLock::new(Content { pieces: Vec::new(), len: 0, free }));
                self.nodes.insert(path.to_owned(), Node::File(Arc::clone(&content)));
                Ok(content)
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_parent(to)?;
        let node = self.nodes.get(from).ok_or(io::ErrorKind::NotFound)?.clone();
        if let Some(Node::Directory) = self.nodes.get(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if to != from && to.starts_with(from) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let below: Vec<PathBuf> = match node {
            Node::File(_) => vec![from.to_owned()],
            Node::Directory => {
                self.nodes.keys().filter(|name| name.starts_with(from)).cloned().collect()
            }
        };
        for old in below {
            let new = match old.strip_prefix(from) {
                Ok(rest) if !rest.as_os_str().is_empty() => to.join(rest),
                _ => to.to_owned(),
            };
            if let Some(node) = self.nodes.remove(&old) {
                self.nodes.insert(new, node);
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        match self.nodes.get(path) {
            Some(Node::File(_)) => {
                self.nodes.remove(path);
                Ok(())
            }
            Some(Node::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_dir(dir)?;
        let children = self.nodes.keys().filter(|path| path.parent() == Some(dir));
        Ok(children.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }
}

fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

/// Bytes of a file, in pieces so that growing copies nothing. What a piece does not hold is zeros.
#[derive(Debug)]
struct Content {
    pieces: Vec<Vec<u8>>,
    len: u64,
    free: FreePieces,
}

/// Pieces of files that are gone, for the next ones: fresh memory costs a page fault each 4 KiB.
type FreePieces = Arc<Mutex<Vec<Vec<u8>>>>;

const PIECE_BYTES: usize = 256 << 10;
const MOST_FREE: usize = 1024;

impl Content {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let wanted = buf.len().min(self.len.saturating_sub(offset) as usize);
        let mut done = 0;
        while done < wanted {
            let (index, within) = split(offset + done as u64);
            let take = (PIECE_BYTES - within).min(wanted - done);
            let held = self.pieces.get(index).and_then(|piece| piece.get(within..));
            let held = held.unwrap_or_default();
            let (there, hole) = buf[done..done + take].split_at_mut(held.len().min(take));
            there.copy_from_slice(&held[..there.len()]);
            hole.fill(0);
            done += take;
        }
        wanted
    }

    fn write_at(&mut self, mut bytes: &[u8], mut offset: u64) {
        while !bytes.is_empty() {
            let (index, within) = split(offset);
            if self.pieces.len() <= index {
                self.pieces.resize_with(index + 1, Vec::new);
            }
            let piece = &mut self.pieces[index];
            if piece.capacity() == 0 {
                *piece = self.free.lock().pop().unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES));
            }
            if piece.len() < within {
                piece.resize(within, 0);
            }
            let (now, later) = bytes.split_at((PIECE_BYTES - within).min(bytes.len()));
            let (over, beyond) = now.split_at((piece.len() - within).min(now.len()));
            piece[within..within + over.len()].copy_from_slice(over);
            piece.extend_from_slice(beyond);
            bytes = later;
            offset += now.len() as u64;
        }
        self.len = self.len.max(offset);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (index, within) = split(len);
            self.give_back(index + 1);
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.truncate(within);
            }
        }
        self.len = len;
    }

    /// Gives back the pieces from `index` on.
    fn give_back(&mut self, index: usize) {
        let mut free = self.free.lock();
        for mut piece in self.pieces.drain(index.min(self.pieces.len())..) {
            if free.len() < MOST_FREE && piece.capacity() == PIECE_BYTES {
                piece.clear();
                free.push(piece);
            }
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.give_back(0);
    }
}

fn split(offset: u64) -> (usize, usize) {
    ((offset / PIECE_BYTES as u64) as usize, (offset % PIECE_BYTES as u64) as usize)
}

#[derive(Debug)]
struct MemoryFile {
    content: Arc<RwLock<Content>>,
    writable: bool,
    path: PathBuf,
}

impl MemoryFile {
    fn check_writable(&self, action: &'static str) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(at(action, &self.path)(io::ErrorKind::PermissionDenied.into()))
        }
    }
}

impl EnvFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.content.read().read_at(buf, offset))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        self.check_writable("write")?;
        let mut content = self.content.write();
        for part in parts {
            content.write_at(part, offset);
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_writable("allocate")?;
        let mut content = self.content.write();
        content.len = content.len.max(len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable("set the length of")?;
        self.content.write().set_len(len);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.read().len)
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
    path: PathBuf,
}

impl LockGuard for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locked.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::conformance;

    #[test]
    fn it_does_what_every_environment_does() {
        conformance::check(&MemoryEnv::new(), Path::new("/"));
        conformance::check(&MemoryEnv::new(), Path::new(""));
    }

    #[test]
    fn a_clone_is_the_same_file_system() {
        let env = MemoryEnv::new();
        env.create_dir_all(Path::new("n1")).unwrap();
        let file = env.open(Path::new("n1/f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(b"still here")], 0).unwrap();
        let again = env.clone().open(Path::new("./n1/f"), OpenMode::Read).unwrap();
        let mut back = [0; 10];
        assert_eq!(again.read_at(&mut back, 0).unwrap(), 10);
        assert_eq!(&back, b"still here");
    }

    #[test]
    fn bytes_across_pieces_read_back_as_written() {
        let env = MemoryEnv::new();
        let file = env.open(Path::new("f"), OpenMode::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 77).map(|i| (i % 251) as u8).collect();
        let start = PIECE_BYTES as u64 - 5;
        file.write_at(&[IoSlice::new(&bytes[..100]), IoSlice::new(&bytes[100..])], start).unwrap();
        let mut back = vec![0; bytes.len()];
        assert_eq!(file.read_at(&mut back, start).unwrap(), bytes.len());
        assert!(back == bytes);
        file.set_len(start + 10).unwrap();
        file.allocate(start + 20).unwrap();
        file.read_at(&mut back[..20], start).unwrap();
        assert_eq!(back[..10], bytes[..10]);
        assert_eq!(back[10..20], [0; 10]);
    }

    #[test]
    fn a_file_never_holds_what_another_one_left() {
        let env = MemoryEnv::new();
        let left = env.open(Path::new("left"), OpenMode::CreateNew).unwrap();
        left.write_at(&[IoSlice::new(&vec![7; 2 * PIECE_BYTES])], 0).unwrap();
        env.remove(Path::new("left")).unwrap();
        drop(left);
        assert_eq!(env.tree.lock().free.lock().len(), 2);
        let file = env.open(Path::new("new"), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(b"x")], 10).unwrap();
        file.write_at(&[IoSlice::new(b"y")], PIECE_BYTES as u64 + 10).unwrap();
        file.set_len(PIECE_BYTES as u64 + 5).unwrap();
        file.allocate(2 * PIECE_BYTES as u64).unwrap();
        let mut back = vec![1; 2 * PIECE_BYTES];
        assert_eq!(file.read_at(&mut back, 0).unwrap(), back.len());
        let mut expected = vec![0; 2 * PIECE_BYTES];
        expected[10] = b'x';
        assert!(back == expected);
        assert!(env.tree.lock().free.lock().is_empty());
    }
}
