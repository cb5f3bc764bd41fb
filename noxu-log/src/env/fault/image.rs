//! Image: one file as callers see it, what of it is durable, and the sectors written since.

use std::collections::BTreeMap;
use std::io;

use super::lot::Lot;

/// What survives a crash whole or not at all, in bytes.
pub(super) const SECTOR_BYTES: usize = 512;

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

    /// A write that the disk acknowledged and never made: only the length knows of it.
    pub(super) fn lose_write(&mut self, end: u64) {
        if end > self.len() {
            self.set_len(end);
        }
    }

    /// Bytes that reached the disk at a place where nobody sent them: there at once, durable, and
    /// no longer than the file.
    pub(super) fn overwrite(&mut self, bytes: &[u8], offset: u64) {
        for image in [&mut self.bytes, &mut self.durable] {
            let from = image.len().min(offset as usize);
            let end = image.len().min(from + bytes.len());
            image[from..end].copy_from_slice(&bytes[..end - from]);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
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

    pub(super) fn corrupt(&mut self, offset: u64, mask: u8) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        *self.bytes.get_mut(at).ok_or(io::ErrorKind::InvalidInput)? ^= mask;
        if let Some(byte) = self.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    pub(super) fn after_crash(&self, lot: &mut Lot) -> Self {
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
