//! Base: the sealed segments of a restore, on their way to the disk.
//!
//! # Invariants
//! - The bitmap is saved after the data it speaks of is synced; what it claims is verified before it is
//!   believed.
//! - Segments are staged in their order, each entry of them verified, so that the chain goes from the
//!   anchor to the end of the last one.
//! - What was staged and synced is not read again before the machine is started anew: else a node that is
//!   killed sooner than it has read what it had would never get further.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_log::install::{ExpectedSegment, stage_segment};
use noxu_log::segment::name::{parse_segment_name, segment_name};
use noxu_log::segment::side_file::Digests;
use noxu_log::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use noxu_log::{ChainState, EntryFault, LogError};
use noxu_util::{Fingerprint, Lsn, Vlsn};

use super::bitmap::Bitmap;
use super::manifest::{BITMAP, Manifest, Verified, hint};
use crate::core::block_plan::BlockId;
use crate::error::{RepError, Result};
use crate::wire::restore::{BLOCK_BYTES, SegmentOffer};

/// Bytes of a segment read at once to find an entry of it.
const FIND_BYTES: u64 = 1 << 20;

/// Bytes of segments that are verified anew before that is noted.
const NOTE_BYTES: u32 = 128 << 20;

/// Segments that are being fetched.
pub(super) struct Base<'a> {
    env: &'a dyn Env,
    dir: PathBuf,
    manifest: &'a Manifest,
    bitmap: Bitmap,
    /// Number of the first block of each segment, in the bitmap.
    first_blocks: Vec<u32>,
    /// Blocks that each segment lacks.
    lacking: Vec<u32>,
    files: BTreeMap<usize, Arc<dyn EnvFile>>,
    /// Segments with bytes that are not synced, and how many.
    dirty: BTreeMap<usize, Arc<dyn EnvFile>>,
    dirty_bytes: u64,
    /// So many segments from the front are whole and verified.
    staged: usize,
    end: ChainState,
    end_lsn: Lsn,
    last_sync: Vlsn,
    last_txn_end: Vlsn,
    /// So many of them are noted as verified.
    noted: usize,
    /// The end of those that are durable besides.
    durable: Vlsn,
    reused: u32,
    false_claims: u32,
    /// A mutation that the tests must catch: the bitmap is saved before its data is synced.
    #[cfg(test)]
    pub(super) bitmap_before_data: bool,
}

impl<'a> Base<'a> {
    /// The segments of `manifest` in `dir`, with what is there of them; the manifest is saved. Blocks
    /// fetched for an earlier one are kept where their segments are the same.
    pub(super) fn open(env: &'a dyn Env, dir: &Path, manifest: &'a Manifest) -> Result<Self> {
        let mut first_blocks = Vec::with_capacity(manifest.segments.len());
        let mut blocks = 0;
        for segment in &manifest.segments {
            first_blocks.push(blocks);
            blocks += segment.blocks.len() as u32;
        }
        let anchor = &manifest.head.anchor;
        let mut base = Self {
            env,
            dir: dir.to_owned(),
            manifest,
            bitmap: open_bitmap(env, dir, manifest)?,
            first_blocks,
            lacking: Vec::new(),
            files: BTreeMap::new(),
            dirty: BTreeMap::new(),
            dirty_bytes: 0,
            staged: 0,
            end: anchor.chain(),
            end_lsn: anchor.lsn,
            last_sync: anchor.vlsn,
            last_txn_end: anchor.vlsn,
            noted: 0,
            durable: anchor.vlsn,
            reused: 0,
            false_claims: 0,
            #[cfg(test)]
            bitmap_before_data: false,
        };
        base.take_up_verified()?;
        let mut unnoted_bytes = 0;
        for (at, segment) in manifest.segments.iter().enumerate() {
            if at >= base.staged {
                base.verify_claims(at)?;
            }
            let count = segment.blocks.len() as u32;
            let lacking = (0..count).filter(|block| !base.has((at, *block))).count();
            base.lacking.push(lacking as u32);
            base.stage()?;
            unnoted_bytes += if at < base.noted { 0 } else { segment.bytes };
            if unnoted_bytes >= NOTE_BYTES {
                base.sync()?;
                unnoted_bytes = 0;
            }
        }
        base.reused = base.bitmap.count();
        base.sync()?;
        Ok(base)
    }

    fn has(&self, (segment, block): BlockId) -> bool {
        self.bitmap.has(self.first_blocks[segment] + block)
    }

    /// Blocks that are to be fetched.
    pub(super) fn wanted(&self) -> Vec<BlockId> {
        let all = self.manifest.segments.iter().enumerate().flat_map(|(at, segment)| {
            (0..segment.blocks.len() as u32).map(move |block| (at, block))
        });
        all.filter(|block| !self.has(*block)).collect()
    }

    /// Bytes of the blocks that are to be fetched.
    pub(super) fn missing_bytes(&self) -> u64 {
        let bytes = self.wanted().into_iter().map(|(segment, block)| {
            let rest = self.manifest.segments[segment].bytes - block * BLOCK_BYTES;
            u64::from(rest.min(BLOCK_BYTES))
        });
        bytes.sum()
    }

    /// Blocks had.
    pub(super) fn had(&self) -> u32 {
        self.bitmap.count()
    }

    /// Blocks that were there when it was opened.
    pub(super) const fn reused(&self) -> u32 {
        self.reused
    }

    /// Blocks that the bitmap claimed wrongly.
    pub(super) const fn false_claims(&self) -> u32 {
        self.false_claims
    }

    /// Whether these are the bytes of that block.
    pub(super) fn is_block(&self, (segment, block): BlockId, bytes: &[u8]) -> bool {
        blake3::hash(bytes) == self.manifest.segments[segment].blocks[block as usize]
    }

    /// Writes a block, and stages what it makes whole.
    pub(super) fn write(&mut self, (segment, block): BlockId, bytes: &[u8]) -> Result<()> {
        let offer = &self.manifest.segments[segment];
        let path = self.path(segment);
        let wrap = |e| LogError::io("write", &path, e);
        let file = if let Some(file) = self.files.get(&segment) {
            Arc::clone(file)
        } else {
            let file = self.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
            if file.len().map_err(wrap)? != u64::from(offer.bytes) {
                file.set_len(offer.bytes.into()).map_err(wrap)?;
            }
            self.files.insert(segment, Arc::clone(&file));
            file
        };
        let offset = u64::from(block) * u64::from(BLOCK_BYTES);
        file.write_at(&[IoSlice::new(bytes)], offset).map_err(wrap)?;
        self.dirty.entry(segment).or_insert(file);
        self.dirty_bytes += bytes.len() as u64;
        self.bitmap.set(self.first_blocks[segment] + block, true);
        self.lacking[segment] -= 1;
        if self.lacking[segment] == 0 {
            self.files.remove(&segment);
            self.stage()?;
        }
        Ok(())
    }

    fn path(&self, segment: usize) -> PathBuf {
        self.dir.join(segment_name(self.manifest.segments[segment].number))
    }

    /// Verifies the segments that have become whole.
    fn stage(&mut self) -> Result<()> {
        while let Some(segment) = self.manifest.segments.get(self.staged)
            && self.lacking.get(self.staged) == Some(&0)
        {
            let expected = ExpectedSegment {
                number: segment.number,
                group: self.manifest.head.group.clone(),
                after: self.end,
                last_sync: self.last_sync,
                last_txn_end: self.last_txn_end,
                bytes: segment.bytes,
                digests: digests(segment),
            };
            let summary = stage_segment(self.env, &self.dir, &expected)?;
            self.end = summary.last;
            self.end_lsn = Lsn::new(segment.number, summary.last_offset);
            (self.last_sync, self.last_txn_end) = (summary.last_sync, summary.last_txn_end);
            self.staged += 1;
        }
        if self.is_whole() {
            let base = &self.manifest.head.base;
            if (self.end, self.end_lsn) != (base.chain(), base.lsn) {
                let expected = format!("segments that end with entry {}", base.vlsn);
                let found = format!("segments that end with entry {}", self.end.vlsn);
                return Err(RepError::protocol("", expected, found));
            }
        }
        Ok(())
    }

    /// Bytes written since the last sync.
    pub(super) const fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Goes on behind what was verified since the machine was started, and is still offered.
    fn take_up_verified(&mut self) -> Result<()> {
        let Some(known) = Verified::load(self.env, &self.dir)? else { return Ok(()) };
        let Some((last, _)) = known.segments.last() else { return Ok(()) };
        let segments = &self.manifest.segments;
        let count = segments.iter().take_while(|offer| offer.number <= *last).count();
        let mut blocks = segments[..count].iter().enumerate().flat_map(|(at, segment)| {
            (0..segment.blocks.len() as u32).map(move |block| (at, block))
        });
        // The front of the offer may have moved on.
        if count > 0
            && known.segments.ends_with(&named(&segments[..count]))
            && self.env.boot() == Some(known.boot)
            && blocks.all(|block| self.has(block))
            && self.are_there(count)?
            && self.begins_at_anchor()?
        {
            (self.staged, self.noted) = (count, count);
            (self.end, self.end_lsn, self.durable) = (known.end, known.end_lsn, known.end.vlsn);
            (self.last_sync, self.last_txn_end) = (known.last_sync, known.last_txn_end);
        }
        Ok(())
    }

    /// Whether the files of the first `count` segments are there: an offer without them may have come and gone.
    fn are_there(&self, count: usize) -> Result<bool> {
        let names = self.env.list(&self.dir).map_err(|e| LogError::io("list", &self.dir, e))?;
        let there: HashSet<u32> =
            names.iter().filter_map(|name| parse_segment_name(name)).collect();
        Ok(self.manifest.segments[..count].iter().all(|segment| there.contains(&segment.number)))
    }

    /// Whether the first segment, which is here, continues the anchor.
    fn begins_at_anchor(&self) -> Result<bool> {
        let header = self.header(0)?;
        Ok(header.is_some_and(|header| header.chain_before() == self.manifest.head.anchor.chain()))
    }

    /// Notes how much is verified; all of it is synced.
    fn note_verified(&mut self) -> Result<()> {
        let Some(boot) = self.env.boot().filter(|_| self.staged > self.noted) else {
            return Ok(());
        };
        let verified = Verified {
            boot,
            segments: named(&self.manifest.segments[..self.staged]),
            end: self.end,
            end_lsn: self.end_lsn,
            last_sync: self.last_sync,
            last_txn_end: self.last_txn_end,
        };
        verified.save(self.env, &self.dir)?;
        self.noted = self.staged;
        Ok(())
    }

    /// Syncs what was written, and only then claims it.
    pub(super) fn sync(&mut self) -> Result<()> {
        #[cfg(test)]
        if self.bitmap_before_data {
            self.bitmap.save()?;
            return self.sync_data();
        }
        self.sync_data()?;
        self.bitmap.save()?;
        self.note_verified()
    }

    fn sync_data(&mut self) -> Result<()> {
        for (segment, file) in std::mem::take(&mut self.dirty) {
            file.sync_data().map_err(|e| LogError::io("sync", &self.path(segment), e))?;
        }
        self.dirty_bytes = 0;
        self.durable = self.end.vlsn;
        // The names too: a block in a file without a name is no block.
        self.env
            .sync_dir(&self.dir)
            .map_err(|e| LogError::io("sync directory", &self.dir, e).into())
    }

    /// Whether every segment is there and verified.
    pub(super) fn is_whole(&self) -> bool {
        self.staged == self.manifest.segments.len()
    }

    /// Whether it is durable besides.
    pub(super) fn is_done(&self) -> bool {
        self.is_whole() && self.dirty.is_empty()
    }

    /// The first entry that is not durable here yet.
    pub(super) fn needed(&self) -> Vlsn {
        self.durable.next()
    }

    /// The fingerprint of an entry of the segments, all of which are here; `None` if they do not have it.
    pub(super) fn fingerprint(&self, vlsn: Vlsn) -> Result<Option<Fingerprint>> {
        for at in (0..self.manifest.segments.len()).rev() {
            let Some(header) = self.header(at)? else { return Ok(None) };
            if header.first <= vlsn {
                let path = self.path(at);
                let wrap = |e| LogError::io("read", &path, e);
                let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
                return Ok(find(&*file, header.chain_before(), vlsn).map_err(wrap)?);
            }
        }
        let anchor = &self.manifest.head.anchor;
        Ok((vlsn == anchor.vlsn).then_some(anchor.fingerprint))
    }

    /// A claim is a hint: every block of it that was not verified since the machine was started is.
    fn verify_claims(&mut self, at: usize) -> Result<()> {
        let segment = &self.manifest.segments[at];
        let path = self.path(at);
        let wrap = |e| LogError::io("read", &path, e);
        let (mut file, mut bytes) = (None, Vec::new());
        for block in 0..segment.blocks.len() as u32 {
            if !self.has((at, block)) {
                continue;
            }
            if file.is_none() && self.env.exists(&path).map_err(wrap)? {
                file = Some(self.env.open(&path, OpenMode::Read).map_err(wrap)?);
            }
            bytes.resize(segment.block_bytes(block) as usize, 0);
            let offset = u64::from(block) * u64::from(BLOCK_BYTES);
            let read = match &file {
                Some(file) => file.read_at(&mut bytes, offset).map_err(wrap)?,
                None => 0,
            };
            if !self.is_block((at, block), &bytes[..read]) {
                self.bitmap.set(self.first_blocks[at] + block, false);
                self.false_claims += 1;
            }
        }
        Ok(())
    }

    /// The header of a segment that is here; `None` if it is damaged.
    fn header(&self, at: usize) -> Result<Option<SegmentHeader>> {
        let path = self.path(at);
        let wrap = |e| LogError::io("read", &path, e);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut raw, 0).map_err(wrap)?;
        Ok(SegmentHeader::decode(&raw[..read]).ok())
    }
}

/// The fingerprint of entry `vlsn` in the file of a segment that continues `chain`.
fn find(
    file: &dyn EnvFile,
    mut chain: ChainState,
    vlsn: Vlsn,
) -> std::io::Result<Option<Fingerprint>> {
    let (mut at, mut bytes, mut taken) = (u64::from(SEGMENT_HEADER_BYTES), Vec::new(), 0);
    loop {
        match chain.check_next(&bytes[taken..], u32::MAX) {
            Ok(entry) if entry.header.vlsn == vlsn => return Ok(Some(entry.header.fingerprint)),
            Ok(entry) => taken += entry.header.entry_bytes(),
            Err(EntryFault::Short { needed, .. }) => {
                at += taken as u64;
                taken = 0;
                let left = file.len()?.saturating_sub(at);
                if (needed as u64) > left {
                    return Ok(None);
                }
                bytes.resize(left.min(FIND_BYTES.max(needed as u64)) as usize, 0);
                let read = file.read_at(&mut bytes, at)?;
                bytes.truncate(read);
                if read < needed {
                    return Ok(None);
                }
            }
            Err(_) => return Ok(None),
        }
    }
}

/// The bitmap for `manifest`, which is saved.
fn open_bitmap(env: &dyn Env, dir: &Path, manifest: &Manifest) -> Result<Bitmap> {
    let path = dir.join(BITMAP);
    let old = hint(Manifest::load(env, dir))?;
    let blocks = manifest.blocks();
    if old.as_ref().is_some_and(|old| old.segments_id() == manifest.segments_id()) {
        manifest.save(env, dir)?;
        return Bitmap::open(env, &path, manifest.segments_id(), blocks);
    }
    let (id, count) = match &old {
        Some(old) => (old.segments_id(), old.blocks()),
        None => (manifest.segments_id(), blocks),
    };
    let mut bitmap = Bitmap::open(env, &path, id, count)?;
    let mut had = HashMap::new();
    let mut first_block = 0;
    for segment in old.iter().flat_map(|old| &old.segments) {
        let count = segment.blocks.len() as u32;
        let claimed: HashSet<u32> =
            (0..count).filter(|block| bitmap.has(first_block + block)).collect();
        had.insert((segment.number, segment.digest), claimed);
        first_block += count;
    }
    // Before the manifest: whoever finds that finds no claims but these.
    bitmap.begin_anew(manifest.segments_id(), blocks);
    let mut first_block = 0;
    for segment in &manifest.segments {
        for block in had.get(&(segment.number, segment.digest)).into_iter().flatten() {
            bitmap.set(first_block + block, true);
        }
        first_block += segment.blocks.len() as u32;
    }
    bitmap.save()?;
    let offered: HashSet<u32> = manifest.segments.iter().map(|offer| offer.number).collect();
    for name in env.list(dir).map_err(|e| LogError::io("list", dir, e))? {
        if parse_segment_name(&name).is_some_and(|number| !offered.contains(&number)) {
            let path = dir.join(name);
            env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
        }
    }
    manifest.save(env, dir)?;
    Ok(bitmap)
}

/// Their numbers and digests.
fn named(segments: &[SegmentOffer]) -> Vec<(u32, [u8; 32])> {
    segments.iter().map(|segment| (segment.number, segment.digest)).collect()
}

fn digests(segment: &SegmentOffer) -> Digests {
    Digests {
        segment: blake3::Hash::from_bytes(segment.digest),
        blocks: segment.blocks.iter().map(|digest| blake3::Hash::from_bytes(*digest)).collect(),
    }
}
