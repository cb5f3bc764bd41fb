//! Base: the sealed segments of a restore, on their way to the disk.
//!
//! The session's thread takes blocks and writes them. What the disk is waited for goes on beside it: the
//! segments that are whole are verified, entry by entry, and what was written is synced and claimed.
//!
//! # Crash argument
//! - A *batch* is what was written until it was begun. Its files are synced, then the blocks that were here
//!   *when it was begun* are claimed, then the segments that were *verified by then* are noted. What is
//!   written meanwhile is in the next batch, for its file is dirty again.
//! - There is one batch at a time, so the slots of the bitmap are written in their order.
//! - A crash before the claim costs the batch and what came meanwhile, both within
//!   [`RestoreLimits::sync_bytes`](super::session::RestoreLimits::sync_bytes) and one block; one before the
//!   note has segments read again.
//! - What a bitmap claims is verified by every session that finds it, but for segments that were noted: these
//!   are not read again before the machine is started anew, else a node that is killed sooner than it has read
//!   what it had would never get further.
//! - Nothing goes on once the session is over: the next one finds files that nobody else writes.
//!
//! # Invariants
//! - Segments are staged in their order, each entry of them verified, so that the chain goes from the
//!   anchor to the end of the last one.

mod batch;
mod claims;
mod front;

use std::collections::{BTreeMap, HashSet};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_log::segment::name::{parse_segment_name, segment_name};
use noxu_log::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use noxu_log::{ChainState, EntryFault, LogError};
use noxu_util::{Fingerprint, Vlsn};

use self::batch::Batch;
use self::claims::open_bitmap;
use self::front::Front;
use super::beside::Beside;
use super::bitmap::Bitmap;
use super::manifest::{Manifest, Verified};
use super::session::RestoreHost;
use crate::core::block_plan::BlockId;
use crate::error::{RepError, Result};
use crate::wire::restore::{BLOCK_BYTES, SegmentOffer};

/// Bytes of a segment read at once to find an entry of it.
const FIND_BYTES: u64 = 1 << 20;

/// Most bytes of segments that are verified before that is noted, and one segment.
const NOTE_BYTES: u32 = 128 << 20;

/// How long what was written waits for more before it is synced: a node that is killed, or whose connection
/// breaks, has got further by what came before.
const BATCH_PAUSE: Duration = Duration::from_millis(500);

/// Segments that are being fetched.
pub(super) struct Base<'a> {
    env: &'a Arc<dyn Env>,
    host: &'a dyn RestoreHost,
    dir: PathBuf,
    manifest: &'a Manifest,
    bitmap: Bitmap,
    /// Number of the first block of each segment, in the bitmap.
    first_blocks: Vec<u32>,
    /// Blocks that each segment lacks.
    lacking: Vec<u32>,
    files: BTreeMap<usize, Arc<dyn EnvFile>>,
    /// Segments with bytes that are in no batch, and how many.
    dirty: BTreeMap<usize, Arc<dyn EnvFile>>,
    dirty_bytes: u64,
    /// So far they are verified.
    front: Front,
    /// Verifies those that follow.
    staging: Option<Beside<Front>>,
    syncing: Option<Syncing>,
    /// So many segments were verified when the last batch was begun, and when that was.
    noted: usize,
    begun: Duration,
    /// The end of those that are durable besides.
    durable: Vlsn,
    reused: u32,
    false_claims: u32,
    #[cfg(test)]
    mutation: Mutation,
}

/// A batch on its way.
struct Syncing {
    work: Beside<()>,
    bytes: u64,
    /// The end of what was verified when it was begun.
    end: Vlsn,
}

/// What the tests must catch.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mutation {
    #[default]
    None,
    /// The bitmap is saved before the data of its batch is synced.
    ClaimsFirst,
    /// Once a batch is synced everything is claimed that is here by then.
    ClaimsWhatCameMeanwhile,
}

impl<'a> Base<'a> {
    /// The segments of `manifest` in `dir`, with what is there of them; the manifest is saved. Blocks
    /// fetched for an earlier one are kept where their segments are the same.
    pub(super) fn open(
        env: &'a Arc<dyn Env>,
        host: &'a dyn RestoreHost,
        dir: &Path,
        manifest: &'a Manifest,
    ) -> Result<Self> {
        let mut first_blocks = Vec::with_capacity(manifest.segments.len());
        let mut blocks = 0;
        for segment in &manifest.segments {
            first_blocks.push(blocks);
            blocks += segment.blocks.len() as u32;
        }
        let anchor = &manifest.head.anchor;
        let mut base = Self {
            env,
            host,
            dir: dir.to_owned(),
            manifest,
            bitmap: open_bitmap(&**env, dir, manifest)?,
            first_blocks,
            lacking: Vec::new(),
            files: BTreeMap::new(),
            dirty: BTreeMap::new(),
            dirty_bytes: 0,
            front: Front::behind(anchor),
            staging: None,
            syncing: None,
            noted: 0,
            begun: host.clock().now(),
            durable: anchor.vlsn,
            reused: 0,
            false_claims: 0,
            #[cfg(test)]
            mutation: Mutation::None,
        };
        base.take_up_verified()?;
        let (known, mut unnoted_bytes) = (base.noted, 0);
        for (at, segment) in manifest.segments.iter().enumerate() {
            if at >= base.front.segments {
                base.verify_claims(at)?;
            }
            let count = segment.blocks.len() as u32;
            let lacking = (0..count).filter(|block| !base.has((at, *block))).count() as u32;
            base.lacking.push(lacking);
            if lacking == 0 && at == base.front.segments {
                base.front.stage(&**env, dir, &manifest.head.group, segment)?;
            }
            if base.front.segments == base.noted {
                continue;
            }
            unnoted_bytes += segment.bytes;
            // The first one at once, for whoever gets no further before it is killed again.
            let anew = base.front.segments - known;
            if anew.is_power_of_two() || unnoted_bytes >= NOTE_BYTES {
                base.sync()?;
                unnoted_bytes = 0;
            }
        }
        base.reused = base.bitmap.count();
        base.sync()?;
        Ok(base)
    }

    /// The same with a fault.
    #[cfg(test)]
    pub(super) fn mutated(self, mutation: Mutation) -> Self {
        Self { mutation, ..self }
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

    /// Writes a block, verified by [`Base::is_block`].
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
        }
        Ok(())
    }

    fn path(&self, segment: usize) -> PathBuf {
        self.dir.join(segment_name(self.manifest.segments[segment].number))
    }

    /// Has the disk go on beside the session: verifies what is whole, and syncs what was written. At most
    /// `most_unsynced` bytes are not synced on return.
    ///
    /// # Errors
    /// What went wrong there: as [`Base::open`].
    pub(super) fn advance(&mut self, most_unsynced: u64) -> Result<()> {
        self.stage()?;
        loop {
            self.end_batch()?;
            if self.syncing.is_none() && self.is_batch_due(most_unsynced) {
                let bytes = self.dirty_bytes;
                let batch = self.begin_batch();
                let work = Beside::begin(self.host, || batch.sync());
                self.syncing = Some(Syncing { work, bytes, end: self.front.end.vlsn });
                self.end_batch()?;
            }
            match &self.syncing {
                Some(batch) if batch.bytes + self.dirty_bytes >= most_unsynced => batch.work.wait(),
                _ => return Ok(()),
            }
        }
    }

    /// Waits until something that goes on beside is over, but no longer than that. False if nothing does.
    pub(super) fn wait_for(&self, time: Duration) -> bool {
        match (&self.staging, &self.syncing) {
            (Some(staging), _) => staging.wait_for(time),
            (None, Some(batch)) => batch.work.wait_for(time),
            (None, None) => return false,
        }
        true
    }

    /// What came stays when the session ends before its time.
    pub(super) fn keep(&mut self) -> Result<()> {
        if let Some(staging) = &self.staging {
            staging.wait();
        }
        self.end_staging()?;
        if let Some(batch) = &self.syncing {
            batch.work.wait();
        }
        self.end_batch()?;
        if self.dirty.is_empty() && self.noted == self.front.segments {
            return Ok(());
        }
        self.sync()
    }

    /// Has the segments verified that are whole and follow those that are.
    fn stage(&mut self) -> Result<()> {
        loop {
            self.end_staging()?;
            if self.staging.is_some() {
                return Ok(());
            }
            let from = self.front.segments;
            let mut bytes = 0;
            let ready = self.lacking[from..].iter().zip(&self.manifest.segments[from..]);
            let ready = ready.take_while(|(lacking, segment)| {
                let is_more = bytes < NOTE_BYTES;
                bytes += segment.bytes;
                **lacking == 0 && is_more
            });
            let ready = ready.count();
            if ready == 0 {
                return Ok(());
            }
            let (env, dir, mut front) = (Arc::clone(self.env), self.dir.clone(), self.front);
            let group = self.manifest.head.group.clone();
            let segments = self.manifest.segments[from..from + ready].to_vec();
            self.staging = Some(Beside::begin(self.host, move || {
                for segment in &segments {
                    front.stage(&*env, &dir, &group, segment)?;
                }
                Ok(front)
            }));
        }
    }

    /// Takes note of what was verified beside.
    fn end_staging(&mut self) -> Result<()> {
        let Some(front) = self.staging.as_ref().and_then(Beside::take) else { return Ok(()) };
        (self.front, self.staging) = (front?, None);
        self.check_end()
    }

    /// Whether the last segment is verified, and ends elsewhere than the manifest says.
    pub(super) fn ends_elsewhere(&self) -> bool {
        let base = &self.manifest.head.base;
        self.is_whole() && (self.front.end, self.front.end_lsn) != (base.chain(), base.lsn)
    }

    /// Fails if the segments [end elsewhere](Base::ends_elsewhere).
    pub(super) fn check_end(&self) -> Result<()> {
        if self.ends_elsewhere() {
            let base = &self.manifest.head.base;
            let expected = format!("segments that end with entry {}", base.vlsn);
            let found = format!("segments that end with entry {}", self.front.end.vlsn);
            return Err(RepError::protocol("", expected, found));
        }
        Ok(())
    }

    /// Whether a batch had better be begun: as segments can be noted, as so much was written that it is synced
    /// while more comes, as nothing more will come, or as the last one was long ago.
    fn is_batch_due(&self, most_unsynced: u64) -> bool {
        let is_much = self.dirty_bytes >= most_unsynced / 2;
        let is_late = || self.host.clock().now().saturating_sub(self.begun) >= BATCH_PAUSE;
        self.noted < self.front.segments
            || (!self.dirty.is_empty() && (is_much || self.is_all_here() || is_late()))
    }

    /// What was written until now, and may be claimed once it is synced.
    fn begin_batch(&mut self) -> Batch {
        self.dirty_bytes = 0;
        let dirty = std::mem::take(&mut self.dirty);
        let files = dirty.into_iter().map(|(segment, file)| (self.path(segment), file)).collect();
        let verified = self.env.boot().filter(|_| self.noted < self.front.segments).map(|boot| {
            let segments = named(&self.manifest.segments[..self.front.segments]);
            self.front.noted(boot, segments)
        });
        (self.noted, self.begun) = (self.front.segments, self.host.clock().now());
        Batch {
            env: Arc::clone(self.env),
            dir: self.dir.clone(),
            files,
            claims: self.bitmap.claims(),
            verified,
            #[cfg(test)]
            mutation: self.mutation,
        }
    }

    /// Takes note of a batch that is durable.
    fn end_batch(&mut self) -> Result<()> {
        let Some(batch) = &self.syncing else { return Ok(()) };
        let Some(synced) = batch.work.take() else { return Ok(()) };
        synced?;
        self.durable = batch.end;
        self.syncing = None;
        #[cfg(test)]
        if self.mutation == Mutation::ClaimsWhatCameMeanwhile {
            self.bitmap.save()?;
        }
        Ok(())
    }

    /// Syncs what is verified, while nothing is fetched.
    fn sync(&mut self) -> Result<()> {
        self.begin_batch().sync()?;
        self.durable = self.front.end.vlsn;
        Ok(())
    }

    /// Goes on behind what was verified since the machine was started, and is still offered.
    fn take_up_verified(&mut self) -> Result<()> {
        let Some(known) = Verified::load(&**self.env, &self.dir)? else { return Ok(()) };
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
            (self.front, self.noted) = (Front::known(count, &known), count);
            self.durable = known.end.vlsn;
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

    /// Whether no block is missing, verified or not.
    fn is_all_here(&self) -> bool {
        self.lacking.iter().all(|lacking| *lacking == 0)
    }

    /// Whether every segment is there and verified.
    pub(super) fn is_whole(&self) -> bool {
        self.front.segments == self.manifest.segments.len()
    }

    /// Whether it is durable besides.
    pub(super) fn is_done(&self) -> bool {
        self.is_whole() && self.dirty.is_empty() && self.syncing.is_none()
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

/// Their numbers and digests.
fn named(segments: &[SegmentOffer]) -> Vec<(u32, [u8; 32])> {
    segments.iter().map(|segment| (segment.number, segment.digest)).collect()
}
