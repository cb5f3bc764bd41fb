//! Disk: what callers see, what is durable, and what lies between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::image::{FileImage, SECTOR_BYTES};
use super::lot::Lot;
use crate::env::OpenMode;

/// Number of a file or directory, whatever its names.
pub(super) type NodeId = u64;

const ROOT: NodeId = 0;

#[derive(Debug, Clone)]
pub(super) struct Disk {
    directories: BTreeMap<NodeId, Directory>,
    files: BTreeMap<NodeId, FileImage>,
    next_node: NodeId,
    /// Changes of names that no `sync_dir` made durable yet, oldest first.
    unsynced_names: Vec<NameChange>,
    locked: BTreeSet<NodeId>,
    /// How many handles each open file has.
    handles: BTreeMap<NodeId, usize>,
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
            handles: BTreeMap::new(),
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
        self.forget_unreachable();
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let node = self.find(path)?;
        if self.directories.contains_key(&node) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let place = self.place(path)?;
        self.unlink(place, node);
        self.forget_unreachable();
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(node) => {
                let place = self.place(path)?;
                self.unlink_tree(place, node);
                self.forget_unreachable();
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
        self.forget_unreachable();
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<NodeId> {
        let node = self.open(path, OpenMode::CreateOrOpen)?;
        if self.locked.insert(node) { Ok(node) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    pub(super) fn unlock(&mut self, node: NodeId) {
        self.locked.remove(&node);
    }

    pub(super) fn add_handle(&mut self, node: NodeId) {
        *self.handles.entry(node).or_default() += 1;
    }

    pub(super) fn drop_handle(&mut self, node: NodeId) {
        if let Some(count) = self.handles.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.handles.remove(&node);
                // Often, and of the others nothing has changed.
                if !self.kept_nodes().any(|kept| kept == node) {
                    self.files.remove(&node);
                }
            }
        }
    }

    /// Frees the files that have neither a handle nor a name that is there or might come back.
    fn forget_unreachable(&mut self) {
        let kept: BTreeSet<NodeId> = self.kept_nodes().collect();
        let handles = &self.handles;
        self.files.retain(|node, _| kept.contains(node) || handles.contains_key(node));
    }

    /// Everything with a name that is there or might come back.
    fn kept_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.directories
            .values()
            .flat_map(|directory| directory.names.values().chain(directory.durable.values()))
            .chain(self.unsynced_names.iter().map(NameChange::node))
            .chain(&self.locked)
            .copied()
    }

    /// Everything that has a name callers see.
    fn named(&self) -> BTreeSet<NodeId> {
        self.directories.values().flat_map(|directory| directory.names.values()).copied().collect()
    }

    /// Whole sectors of the files that callers can reach by name or handle, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        let mut live = self.named();
        live.extend(self.handles.keys());
        let files = live.iter().filter_map(|node| self.files.get(node));
        files.map(|file| whole_sectors(file.len())).sum()
    }

    #[cfg(test)]
    pub(super) fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Every name that callers see, with the file's bytes; `None` for a directory.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(&Path, Option<&[u8]>)) {
        self.walk_from(ROOT, &PathBuf::from("/"), visit);
    }

    fn walk_from(&self, dir: NodeId, path: &Path, visit: &mut dyn FnMut(&Path, Option<&[u8]>)) {
        for (name, node) in self.directories.get(&dir).iter().flat_map(|found| &found.names) {
            let path = path.join(name);
            visit(&path, self.files.get(node).map(FileImage::bytes));
            self.walk_from(*node, &path, visit);
        }
    }

    /// Writes bytes where nobody sent them: in any sector of the named files (`draw` chooses)
    /// but `avoid`, where they were sent, `within` bytes from its start.
    pub(super) fn land(&mut self, bytes: &[u8], within: usize, avoid: (NodeId, u64), draw: u64) {
        let named = self.named();
        let sectors: Vec<(NodeId, u64)> = named
            .iter()
            .filter_map(|node| Some((*node, self.files.get(node)?)))
            .flat_map(|(node, file)| {
                (0..whole_sectors(file.len()) / SECTOR_BYTES as u64).map(move |at| (node, at))
            })
            .filter(|sector| *sector != avoid)
            .collect();
        let Some(count) = std::num::NonZeroU64::new(sectors.len() as u64) else { return };
        let (node, sector) = sectors[(draw % count) as usize];
        self.file_mut(node).overwrite(bytes, sector * SECTOR_BYTES as u64 + within as u64);
    }

    /// Flips bits of one byte of a named file, both chosen by `draw`.
    pub(super) fn rot(&mut self, draw: &mut fastrand::Rng) {
        let named = self.named();
        let files: Vec<NodeId> = named
            .into_iter()
            .filter(|node| self.files.get(node).is_some_and(|file| file.len() > 0))
            .collect();
        let Some(node) = draw.choice(files) else { return };
        let offset = draw.u64(..self.file(node).len());
        let mask = 1 << draw.u8(..8);
        // The offset is within the file, as `corrupt` asks.
        let _ = self.file_mut(node).corrupt(offset, mask);
    }

    /// The same disk under a process that begins anew: unsynced things are unsynced still.
    pub(super) fn after_kill(&self) -> Self {
        let mut disk = Self { locked: BTreeSet::new(), handles: BTreeMap::new(), ..self.clone() };
        disk.forget_unreachable();
        disk
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
    pub(super) fn after_crash(&self, lot: &mut Lot) -> Self {
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
            files.insert(*node, file.after_crash(lot));
        }
        let mut disk = Self {
            directories,
            files,
            next_node: self.next_node,
            unsynced_names: Vec::new(),
            locked: BTreeSet::new(),
            handles: BTreeMap::new(),
        };
        disk.forget_unreachable();
        disk
    }
}

/// Length of the sectors that so many bytes take.
pub(super) const fn whole_sectors(len: u64) -> u64 {
    len.next_multiple_of(SECTOR_BYTES as u64)
}

impl NameChange {
    const fn node(&self) -> &NodeId {
        match self {
            Self::Link { node, .. } | Self::Unlink { node, .. } | Self::Move { node, .. } => node,
        }
    }

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
