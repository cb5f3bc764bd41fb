//! Disk: what callers see, what is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use fastrand::Rng;

use super::Survivors;
use crate::env::OpenMode;

/// Number of a file or directory, whatever its names.
pub(super) type NodeId = u64;

const ROOT: NodeId = 0;
/// What survives a crash whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
pub(super) struct Disk {
    directories: BTreeMap<NodeId, Directory>,
    files: BTreeMap<NodeId, FileImage>,
    next_node: NodeId,
    /// Changes of names that no `sync_dir` made durable yet, oldest first.
    unsynced_names: Vec<NameChange>,
    locked: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    names: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
}

type Place = (NodeId, String);

#[derive(Debug, Clone)]
enum NameChange {
    Link { place: Place, node: NodeId },
    Unlink { place: Place, node: NodeId },
    Move { from: Place, to: Place, node: NodeId },
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            directories: BTreeMap::from([(ROOT, Directory::default())]),
            files: BTreeMap::new(),
            next_node: ROOT + 1,
            unsynced_names: Vec::new(),
            locked: BTreeSet::new(),
        }
    }
}

impl Disk {
    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = ROOT;
        for part in path.components() {
            if let Component::Normal(name) = part {
                let directory = self.directories.get(&node).ok_or(io::ErrorKind::NotADirectory)?;
                let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?;
                node = *directory.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(node)
    }

    fn find_dir(&self, path: &Path) -> io::Result<NodeId> {
        let node = self.find(path)?;
        if self.directories.contains_key(&node) {
            Ok(node)
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }

    /// Directory and name of a path whose last part need not exist.
    fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.find_dir(path.parent().unwrap_or(Path::new("")))?, name.to_owned()))
    }

    fn names_mut(&mut self, dir: NodeId) -> &mut BTreeMap<String, NodeId> {
        &mut self.directories.get_mut(&dir).expect("a place names a directory").names
    }

    fn new_node(&mut self) -> NodeId {
        self.next_node += 1;
        self.next_node - 1
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<NodeId> {
        let place = self.place(path)?;
        let found = self.names_mut(place.0).get(&place.1).copied();
        match (found, mode) {
            (Some(node), _) if !self.files.contains_key(&node) => {
                Err(io::ErrorKind::IsADirectory.into())
            }
            (Some(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(node), _) => Ok(node),
            (None, OpenMode::Read | OpenMode::ReadWrite) => Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew | OpenMode::CreateOrOpen) => {
                let node = self.new_node();
                self.files.insert(node, FileImage::default());
                self.names_mut(place.0).insert(place.1.clone(), node);
                self.unsynced_names.push(NameChange::Link { place, node });
                Ok(node)
            }
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.find(from)?;
        let (from_place, to_place) = (self.place(from)?, self.place(to)?);
        if from_place == to_place {
            return Ok(());
        }
        if to.starts_with(from) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.find_dir(to).is_ok() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.names_mut(from_place.0).remove(&from_place.1);
        self.names_mut(to_place.0).insert(to_place.1.clone(), node);
        self.unsynced_names.push(NameChange::Move { from: from_place, to: to_place, node });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let node = self.find(path)?;
        if self.directories.contains_key(&node) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let place = self.place(path)?;
        self.unlink(place, node);
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(node) => {
                let place = self.place(path)?;
                self.unlink_tree(place, node);
                Ok(())
            }
        }
    }

    fn unlink_tree(&mut self, place: Place, node: NodeId) {
        let below = self.directories.get(&node).map(|directory| directory.names.clone());
        for (name, child) in below.unwrap_or_default() {
            self.unlink_tree((node, name), child);
        }
        self.unlink(place, node);
    }

    fn unlink(&mut self, place: Place, node: NodeId) {
        self.names_mut(place.0).remove(&place.1);
        self.unsynced_names.push(NameChange::Unlink { place, node });
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = self.find_dir(dir)?;
        Ok(self.directories[&dir].names.keys().cloned().collect())
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    pub(super) fn create_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        if self.find_dir(dir).is_ok() {
            return Ok(());
        }
        self.create_dir_all(dir.parent().unwrap_or(Path::new("")))?;
        let place = self.place(dir)?;
        if self.find(dir).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = self.new_node();
        self.directories.insert(node, Directory::default());
        self.names_mut(place.0).insert(place.1.clone(), node);
        apply(&mut self.directories, &NameChange::Link { place, node });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        let dir = self.find_dir(dir)?;
        let mut left = Vec::new();
        for change in std::mem::take(&mut self.unsynced_names) {
            match change {
                // Only the new name is in this directory: the old one may come back.
                NameChange::Move { from, to, node } if to.0 == dir && from.0 != dir => {
                    apply(&mut self.directories, &NameChange::Link { place: to, node });
                    left.push(NameChange::Unlink { place: from, node });
                }
                change if change.touches(dir) => apply(&mut self.directories, &change),
                change => left.push(change),
            }
        }
        self.unsynced_names = left;
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<NodeId> {
        let node = self.open(path, OpenMode::CreateOrOpen)?;
        if self.locked.insert(node) { Ok(node) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    pub(super) fn unlock(&mut self, node: NodeId) {
        self.locked.remove(&node);
    }

    pub(super) fn file(&self, node: NodeId) -> &FileImage {
        &self.files[&node]
    }

    pub(super) fn file_mut(&mut self, node: NodeId) -> &mut FileImage {
        self.files.get_mut(&node).expect("an open file is never forgotten")
    }

    pub(super) fn corrupt(&mut self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let node = self.find(path)?;
        self.files.get_mut(&node).ok_or(io::ErrorKind::IsADirectory)?.corrupt(offset, mask)
    }

    /// The disk that a machine finds which starts again after a crash.
    pub(super) fn after_crash(&self, survivors: Survivors) -> Self {
        let mut lot = Lot::new(survivors);
        let mut directories = self.directories.clone();
        for change in &self.unsynced_names {
            if lot.survives() {
                apply(&mut directories, change);
            }
        }
        for directory in directories.values_mut() {
            directory.names.clone_from(&directory.durable);
        }
        let mut files = BTreeMap::new();
        for (node, file) in &self.files {
            lot.draw_odds(); // every file has luck of its own
            files.insert(*node, file.after_crash(&mut lot));
        }
        Self {
            directories,
            files,
            next_node: self.next_node,
            unsynced_names: Vec::new(),
            locked: BTreeSet::new(),
        }
    }
}

impl NameChange {
    fn touches(&self, dir: NodeId) -> bool {
        match self {
            Self::Link { place, .. } | Self::Unlink { place, .. } => place.0 == dir,
            Self::Move { from, to, .. } => from.0 == dir || to.0 == dir,
        }
    }
}

/// Makes a change of names durable.
fn apply(directories: &mut BTreeMap<NodeId, Directory>, change: &NameChange) {
    let mut link = |(dir, name): &Place, node: NodeId| {
        if let Some(directory) = directories.get_mut(dir) {
            directory.durable.insert(name.clone(), node);
        }
    };
    match change {
        NameChange::Link { place, node } | NameChange::Move { to: place, node, .. } => {
            link(place, *node);
        }
        NameChange::Unlink { .. } => {}
    }
    let (NameChange::Unlink { place, node } | NameChange::Move { from: place, node, .. }) = change
    else {
        return;
    };
    if let Some(directory) = directories.get_mut(&place.0)
        && directory.durable.get(&place.1) == Some(node)
    {
        directory.durable.remove(&place.1);
    }
}

/// A file: what callers see, what is durable, and the sectors written since.
#[derive(Debug, Clone, Default)]
pub(super) struct FileImage {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Every content that each sector had since the last sync.
    unsynced: BTreeMap<usize, Vec<Sector>>,
    /// The same for sectors that a failed sync gave up.
    adrift: BTreeMap<usize, Vec<Sector>>,
    /// Every length since the last sync.
    lengths: Vec<usize>,
}

type Sector = [u8; SECTOR_BYTES];

impl FileImage {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let from = self.bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let count = buf.len().min(self.bytes.len() - from);
        buf[..count].copy_from_slice(&self.bytes[from..from + count]);
        count
    }

    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        let (from, end) = (offset as usize, offset as usize + bytes.len());
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
            self.lengths.push(end);
        }
        self.bytes[from..end].copy_from_slice(bytes);
        self.touch(from, end);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let (old, new) = (self.bytes.len(), len as usize);
        self.bytes.resize(new, 0);
        self.lengths.push(new);
        // What is cut off reads as zeros from now on, whatever was there before.
        let written = self.unsynced.keys().next_back().map_or(0, |last| (last + 1) * SECTOR_BYTES);
        self.touch(new, old.min(self.durable.len().max(written)));
        self.adrift.retain(|index, _| index * SECTOR_BYTES < new);
    }

    fn touch(&mut self, from: usize, end: usize) {
        for index in from / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let sector = sector_of(&self.bytes, index);
            self.unsynced.entry(index).or_default().push(sector);
        }
    }

    pub(super) fn sync(&mut self) {
        self.durable.resize(self.bytes.len(), 0);
        for (index, _) in std::mem::take(&mut self.unsynced) {
            let sector = sector_of(&self.bytes, index);
            put_sector(&mut self.durable, index, &sector);
            self.adrift.remove(&index);
        }
        self.lengths.clear();
    }

    pub(super) fn set_adrift(&mut self) {
        for (index, mut versions) in std::mem::take(&mut self.unsynced) {
            self.adrift.entry(index).or_default().append(&mut versions);
        }
    }

    fn corrupt(&mut self, offset: u64, mask: u8) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        *self.bytes.get_mut(at).ok_or(io::ErrorKind::InvalidInput)? ^= mask;
        if let Some(byte) = self.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    fn after_crash(&self, lot: &mut Lot) -> Self {
        let mut durable = self.durable.clone();
        durable.resize(lot.pick(&self.lengths).copied().unwrap_or(durable.len()), 0);
        for (index, versions) in self.adrift.iter().chain(&self.unsynced) {
            if let Some(sector) = lot.pick(versions) {
                put_sector(&mut durable, *index, sector);
            }
        }
        Self { bytes: durable.clone(), durable, ..Self::default() }
    }
}

fn sector_of(bytes: &[u8], index: usize) -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    let from = bytes.len().min(index * SECTOR_BYTES);
    let end = bytes.len().min(from + SECTOR_BYTES);
    sector[..end - from].copy_from_slice(&bytes[from..end]);
    sector
}

/// Writes as much of a sector as the file is long.
fn put_sector(bytes: &mut [u8], index: usize, sector: &Sector) {
    let from = bytes.len().min(index * SECTOR_BYTES);
    let end = bytes.len().min(from + SECTOR_BYTES);
    bytes[from..end].copy_from_slice(&sector[..end - from]);
}

/// Draws what survives.
struct Lot {
    survivors: Survivors,
    rng: Rng,
    odds: f64,
}

impl Lot {
    fn new(survivors: Survivors) -> Self {
        let seed = if let Survivors::Random(seed) = survivors { seed } else { 0 };
        let mut lot = Self { survivors, rng: Rng::with_seed(seed), odds: 0.5 };
        lot.draw_odds();
        lot
    }

    /// All, none and anything between must be likely, for few and for many pieces.
    fn draw_odds(&mut self) {
        self.odds = match self.rng.u8(..4) {
            0 => 0.0,
            1 => 1.0,
            _ => self.rng.f64(),
        };
    }

    fn survives(&mut self) -> bool {
        match self.survivors {
            Survivors::None => false,
            Survivors::All => true,
            Survivors::Random(_) => self.rng.f64() < self.odds,
        }
    }

    /// The version that survives; `None` if it is the durable one.
    fn pick<'a, T>(&mut self, versions: &'a [T]) -> Option<&'a T> {
        let newest = versions.last()?;
        if !self.survives() {
            return None;
        }
        // Older versions reach the disk now and then; mostly it is the newest.
        if matches!(self.survivors, Survivors::Random(_)) && self.rng.u8(..4) == 0 {
            return self.rng.choice(versions);
        }
        Some(newest)
    }
}
