//! Session: the restoring node's half. Fetches everything into `restore/`, verified, and commits.
//!
//! # Invariants
//! - Nothing outside `restore/` is written.
//! - The bitmap is saved after the data it speaks of is synced.
//! - `COMMIT` is written after everything else is verified and durable, and only for a log that
//!   reaches the master's last entry as of the session's first answer: so a voter never ends up
//!   behind what it once acknowledged; and only with leave, for a node that does not follow the
//!   master of that term any more must keep the log that it votes with.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_log::install::{ExpectedSegment, known_floor, stage_segment};
use noxu_log::segment::name::{parse_segment_name, segment_name};
use noxu_log::segment::side_file::Digests;
use noxu_log::{ChainState, EntryRun, LogError};
use noxu_util::{GroupId, Lsn, Name, Term};

use super::bitmap::Bitmap;
use super::manifest::{BITMAP, CHECKPOINT, COMMIT, Commit, MARKER, Manifest, Marker, TAIL};
use super::{Phase, Progress, restore_dir};
use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};
use crate::net::channel::Channel;
use crate::wire::handshake::NodeKind;
use crate::wire::restore::{BLOCK_BYTES, ManifestHead, RestoreMsg, SegmentOffer};

/// Who restores, and how.
#[derive(Debug, Clone)]
pub struct Restoring {
    /// The node's name.
    pub node: Name,
    /// What it is for. Default [`NodeKind::Electable`].
    pub kind: NodeKind,
    /// Its group; `None` if it has none yet.
    pub group: Option<GroupId>,
    /// The newest term it knows: an older master's data is refused.
    pub term: Term,
    /// Longest body of an entry.
    pub max_body_bytes: u32,
    /// How long to wait for one answer.
    pub answer_timeout: Duration,
    /// Questions under way at once.
    pub window: usize,
    /// Bytes fetched between two syncs.
    pub sync_bytes: u64,
    /// A mutation that the tests must catch: the bitmap is saved before its data is synced.
    #[cfg(test)]
    pub(super) bitmap_before_data: bool,
}

impl Restoring {
    /// With the usual limits.
    pub fn new(node: Name, group: Option<GroupId>, term: Term) -> Self {
        Self {
            node,
            kind: NodeKind::Electable,
            group,
            term,
            max_body_bytes: noxu_log::LogConfig::default().max_body_bytes,
            answer_timeout: Duration::from_secs(30),
            window: 16,
            sync_bytes: 64 << 20,
            #[cfg(test)]
            bitmap_before_data: false,
        }
    }
}

/// Fetches everything from the provider at the other end of `channel` into the `restore/` directory
/// of `node_dir`, resuming what an earlier call left. Then `permit` is asked, with the provider's
/// term, whether it may replace the log; if so it is committed there, else `None` is returned. The
/// channel is closed.
///
/// # Errors
/// `ProtocolError`, `NetworkError`, `Closed` for the connection; `RestoreRefused` with the
/// provider's reason; `Log` for the disk and for bytes that do not verify.
pub fn fetch(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    restoring: &Restoring,
    channel: &dyn Channel,
    progress: &mut dyn FnMut(&Progress),
    permit: &mut dyn FnMut(Term) -> bool,
) -> Result<Option<Progress>> {
    let fetched = Fetch::begin(env, node_dir, restoring, channel, progress)
        .and_then(|fetch| fetch.run(permit));
    channel.close();
    fetched.map_err(|error| error.with_peer(|| channel.peer()))
}

struct Fetch<'a> {
    env: &'a dyn Env,
    node_dir: &'a Path,
    dir: PathBuf,
    restoring: &'a Restoring,
    channel: &'a dyn Channel,
    report: &'a mut dyn FnMut(&Progress),
    progress: Progress,
    marker: Marker,
    /// Number of the last question.
    request: u64,
    /// Files with bytes that are not synced, and how many.
    dirty: Vec<(PathBuf, Arc<dyn EnvFile>)>,
    dirty_bytes: u64,
}

impl<'a> Fetch<'a> {
    fn begin(
        env: &'a Arc<dyn Env>,
        node_dir: &'a Path,
        restoring: &'a Restoring,
        channel: &'a dyn Channel,
        report: &'a mut dyn FnMut(&Progress),
    ) -> Result<Self> {
        let env = &**env;
        let dir = restore_dir(node_dir);
        env.create_dir_all(&dir).map_err(|e| LogError::io("create directory", &dir, e))?;
        let marker = if let Some(marker) = Marker::load(env, &dir)? {
            marker
        } else {
            // Left over from a restore that ended: gone before a marker could bring it back.
            for name in env.list(&dir).map_err(|e| LogError::io("list", &dir, e))? {
                let path = dir.join(name);
                env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
            }
            env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
            let marker = Marker { session: env.entropy() };
            marker.save(env, &dir)?;
            marker
        };
        Ok(Self {
            env,
            node_dir,
            dir,
            restoring,
            channel,
            report,
            progress: Progress::default(),
            marker,
            request: 0,
            dirty: Vec::new(),
            dirty_bytes: 0,
        })
    }

    fn run(mut self, permit: &mut dyn FnMut(Term) -> bool) -> Result<Option<Progress>> {
        if let Some(commit) = Commit::load(self.env, &self.dir)?
            && commit.session == self.marker.session
        {
            self.advance(Phase::Committed);
            return Ok(Some(self.progress));
        }
        let manifest = self.ask_manifest()?;
        self.advance(Phase::Segments);
        let (base, base_lsn) = self.fetch_segments(&manifest)?;
        let mut commit = Commit {
            session: self.marker.session,
            base,
            base_lsn,
            last: base.vlsn,
            checkpoint_bytes: 0,
            checkpoint_digest: [0; 32],
            tail_bytes: 0,
        };
        if manifest.head.checkpoint.is_some() {
            self.advance(Phase::Checkpoint);
            self.fetch_checkpoint(&mut commit)?;
        }
        self.advance(Phase::Tail);
        self.fetch_tail(&manifest.head, &mut commit)?;
        self.sync_data()?;
        self.env.sync_dir(&self.dir).map_err(|e| LogError::io("sync directory", &self.dir, e))?;
        // What it reaches was compared with what was known when the session began.
        self.check_head(&manifest.head)?;
        if !permit(manifest.head.term) {
            return Ok(None);
        }
        commit.save(self.env, &self.dir)?;
        self.advance(Phase::Committed);
        // The provider need not hear of it: its pin goes with the connection.
        let _ = self.channel.send(&RestoreMsg::Done.encode());
        Ok(Some(self.progress))
    }

    fn advance(&mut self, phase: Phase) {
        self.progress.phase = phase;
        (self.report)(&self.progress);
    }

    // ---- the manifest

    fn ask_manifest(&mut self) -> Result<Manifest> {
        let opening = RestoreMsg::Open {
            session: self.marker.session,
            group: self.restoring.group,
            node: self.restoring.node.clone(),
            kind: self.restoring.kind,
        };
        self.channel.send(&opening.encode())?;
        let head = match self.receive()? {
            RestoreMsg::Manifest(head) => head,
            other => return Err(RepError::protocol("", "Manifest", other.name())),
        };
        self.check_head(&head)?;
        let mut manifest = Manifest { head, segments: Vec::new() };
        for at in 0..manifest.head.segments {
            let offer = match self.receive()? {
                RestoreMsg::Segment(offer) => offer,
                other => return Err(RepError::protocol("", "Segment", other.name())),
            };
            let expected = u64::from(manifest.head.anchor.next_segment()) + u64::from(at);
            if u64::from(offer.number) != expected {
                let found = format!("segment {}", offer.number);
                return Err(RepError::protocol("", format!("segment {expected}"), found));
            }
            manifest.segments.push(offer);
        }
        Ok(manifest)
    }

    fn check_head(&self, head: &ManifestHead) -> Result<()> {
        use crate::wire::handshake::RejectReason;
        if let Some(ours) = self.restoring.group
            && ours != head.group.id
        {
            let (name, theirs) = (head.group.name.clone(), head.group.id);
            return Err(RejectReason::WrongGroup { name, ours, theirs }.into());
        }
        if head.term < self.restoring.term {
            let (ours, theirs) = (head.term, self.restoring.term);
            return Err(RejectReason::OldTerm { ours, theirs }.into());
        }
        // A log that ends below what this node knows a majority to hold would lose it.
        let floor = known_floor(self.env, self.node_dir)?;
        if head.target < floor {
            return Err(RepError::RollbackBelowCommitFloor {
                matchpoint: head.target,
                commit_floor: floor,
            });
        }
        if head.anchor.vlsn > head.target
            || head.checkpoint.is_some_and(|at| at < head.anchor.vlsn || at > head.target)
        {
            let found = format!(
                "anchor {}, checkpoint {:?}, target {}",
                head.anchor.vlsn, head.checkpoint, head.target
            );
            return Err(RepError::protocol("", "anchor <= checkpoint <= target", found));
        }
        Ok(())
    }

    // ---- segments

    /// Returns the end of the last segment.
    fn fetch_segments(&mut self, manifest: &Manifest) -> Result<(ChainState, Lsn)> {
        let mut bitmap = self.open_bitmap(manifest)?;
        self.progress.blocks_total = manifest.blocks();
        self.verify_claims(manifest, &mut bitmap)?;
        self.progress.blocks_reused = bitmap.count();
        self.progress.blocks_done = bitmap.count();
        let anchor = &manifest.head.anchor;
        let mut end =
            ChainState { vlsn: anchor.vlsn, term: anchor.term, fingerprint: anchor.fingerprint };
        let mut end_lsn = anchor.lsn;
        let (mut last_sync, mut last_txn_end) = (anchor.vlsn, anchor.vlsn);
        // What is still to be asked for, in the order in which it is answered.
        let mut wanted: VecDeque<(usize, u32)> = VecDeque::new();
        let mut first_block = 0;
        let mut first_blocks = Vec::with_capacity(manifest.segments.len());
        for (at, segment) in manifest.segments.iter().enumerate() {
            first_blocks.push(first_block);
            for block in 0..segment.blocks.len() as u32 {
                if !bitmap.has(first_block + block) {
                    wanted.push_back((at, block));
                }
            }
            first_block += segment.blocks.len() as u32;
        }
        let mut asked: VecDeque<(u64, usize, u32)> = VecDeque::new();
        for (at, segment) in manifest.segments.iter().enumerate() {
            let path = self.dir.join(segment_name(segment.number));
            let wrap = |e| LogError::io("write", &path, e);
            let file = self.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
            if file.len().map_err(wrap)? != u64::from(segment.bytes) {
                file.set_len(segment.bytes.into()).map_err(wrap)?;
            }
            let mut wrote = false;
            loop {
                while asked.len() < self.restoring.window.max(1)
                    && let Some((at, block)) = wanted.pop_front()
                {
                    self.request += 1;
                    let number = manifest.segments[at].number;
                    let request = self.request;
                    let question = RestoreMsg::BlockRequest { request, segment: number, block };
                    self.channel.send(&question.encode())?;
                    asked.push_back((request, at, block));
                }
                let Some((request, of, block)) = asked.front().copied() else { break };
                if of != at {
                    break;
                }
                let bytes = self.receive_block(request, segment, block)?;
                asked.pop_front();
                let offset = u64::from(block) * u64::from(BLOCK_BYTES);
                file.write_at(&[IoSlice::new(&bytes)], offset).map_err(wrap)?;
                wrote = true;
                bitmap.set(first_blocks[at] + block, true);
                self.progress.blocks_done += 1;
                self.progress.bytes_fetched += bytes.len() as u64;
                self.dirty_bytes += bytes.len() as u64;
                (self.report)(&self.progress);
            }
            if wrote {
                self.dirty.push((path.clone(), Arc::clone(&file)));
            }
            let expected = ExpectedSegment {
                number: segment.number,
                group: manifest.head.group.clone(),
                after: end,
                last_sync,
                last_txn_end,
                bytes: segment.bytes,
                digests: digests(segment),
            };
            let summary = stage_segment(self.env, &self.dir, &expected)?;
            end = summary.last;
            end_lsn = Lsn::new(segment.number, summary.last_offset);
            (last_sync, last_txn_end) = (summary.last_sync, summary.last_txn_end);
            if self.dirty_bytes >= self.restoring.sync_bytes {
                self.sync_and_claim(&mut bitmap)?;
            }
        }
        self.sync_and_claim(&mut bitmap)?;
        Ok((end, end_lsn))
    }

    /// The bitmap for `manifest`, which is saved; blocks fetched for an earlier manifest are kept
    /// where their segments are the same.
    fn open_bitmap(&self, manifest: &Manifest) -> Result<Bitmap> {
        let path = self.dir.join(BITMAP);
        let old = Manifest::load(self.env, &self.dir)?;
        let blocks = manifest.blocks();
        if old.as_ref().is_some_and(|old| old.segments_id() == manifest.segments_id()) {
            manifest.save(self.env, &self.dir)?;
            return Bitmap::open(self.env, &path, manifest.segments_id(), blocks);
        }
        let mut had = HashMap::new();
        if let Some(old) = &old {
            let claims = Bitmap::open(self.env, &path, old.segments_id(), old.blocks())?;
            let mut first_block = 0;
            for segment in &old.segments {
                let count = segment.blocks.len() as u32;
                let claimed: HashSet<u32> =
                    (0..count).filter(|block| claims.has(first_block + block)).collect();
                had.insert((segment.number, segment.digest), claimed);
                first_block += count;
            }
        }
        let offered: HashSet<u32> = manifest.segments.iter().map(|offer| offer.number).collect();
        for name in self.env.list(&self.dir).map_err(|e| LogError::io("list", &self.dir, e))? {
            if parse_segment_name(&name).is_some_and(|number| !offered.contains(&number)) {
                let path = self.dir.join(name);
                self.env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
            }
        }
        manifest.save(self.env, &self.dir)?;
        let mut bitmap = Bitmap::open(self.env, &path, manifest.segments_id(), blocks)?;
        let mut first_block = 0;
        for segment in &manifest.segments {
            for block in had.get(&(segment.number, segment.digest)).into_iter().flatten() {
                bitmap.set(first_block + block, true);
            }
            first_block += segment.blocks.len() as u32;
        }
        bitmap.save()?;
        Ok(bitmap)
    }

    /// A claim is a hint: every block of it is read and verified.
    fn verify_claims(&mut self, manifest: &Manifest, bitmap: &mut Bitmap) -> Result<()> {
        let mut first_block = 0;
        for segment in &manifest.segments {
            let count = segment.blocks.len() as u32;
            let path = self.dir.join(segment_name(segment.number));
            let wrap = |e| LogError::io("read", &path, e);
            let mut file = None;
            for block in
                (0..count).filter(|block| bitmap.has(first_block + block)).collect::<Vec<_>>()
            {
                if file.is_none() && self.env.exists(&path).map_err(wrap)? {
                    file = Some(self.env.open(&path, OpenMode::Read).map_err(wrap)?);
                }
                let mut bytes = vec![0; segment.block_bytes(block) as usize];
                let offset = u64::from(block) * u64::from(BLOCK_BYTES);
                let read = match &file {
                    Some(file) => file.read_at(&mut bytes, offset).map_err(wrap)?,
                    None => 0,
                };
                if blake3::hash(&bytes[..read]) != segment.blocks[block as usize] {
                    bitmap.set(first_block + block, false);
                    self.progress.false_claims += 1;
                }
            }
            first_block += count;
        }
        Ok(())
    }

    fn receive_block(&self, expected: u64, segment: &SegmentOffer, block: u32) -> Result<Vec<u8>> {
        let what = format!("block {block} of segment {}", segment.number);
        match self.receive()? {
            RestoreMsg::Block { request, bytes } if request == expected => {
                if blake3::hash(&bytes) == segment.blocks[block as usize] {
                    return Ok(bytes);
                }
                let found = format!("{} bytes with another digest", bytes.len());
                Err(RepError::protocol("", what, found))
            }
            other => Err(RepError::protocol("", what, other.name())),
        }
    }

    // ---- checkpoint and tail

    /// Always from its beginning: another session has another checkpoint.
    fn fetch_checkpoint(&mut self, commit: &mut Commit) -> Result<()> {
        let (path, file) = self.create(CHECKPOINT)?;
        let mut whole = blake3::Hasher::new();
        let mut offset = 0;
        loop {
            self.request += 1;
            let request = self.request;
            self.channel.send(&RestoreMsg::CheckpointRequest { request, offset }.encode())?;
            let (bytes, last) = match self.receive()? {
                RestoreMsg::CheckpointChunk { request, offset: at, last, digest, bytes }
                    if request == self.request && at == offset =>
                {
                    if blake3::hash(&bytes) != digest {
                        let found = "bytes with another digest";
                        return Err(RepError::protocol("", "a piece of the checkpoint", found));
                    }
                    (bytes, last)
                }
                other => return Err(RepError::protocol("", "CheckpointChunk", other.name())),
            };
            whole.update(&bytes);
            file.write_at(&[IoSlice::new(&bytes)], offset)
                .map_err(|e| LogError::io("write", &path, e))?;
            offset += bytes.len() as u64;
            self.note_fetched(bytes.len());
            if last {
                break;
            }
        }
        commit.checkpoint_bytes = offset;
        commit.checkpoint_digest = *whole.finalize().as_bytes();
        self.dirty.push((path, file));
        Ok(())
    }

    /// Entries from the end of the segments through the target, verified, as u32 length and bytes
    /// of each run.
    fn fetch_tail(&mut self, head: &ManifestHead, commit: &mut Commit) -> Result<()> {
        let (path, file) = self.create(TAIL)?;
        let mut end = commit.base;
        while end.vlsn < head.target {
            self.request += 1;
            let question = RestoreMsg::TailRequest { request: self.request, from: end.vlsn.next() };
            self.channel.send(&question.encode())?;
            let mut bytes = Vec::new();
            loop {
                match self.receive()? {
                    RestoreMsg::TailRun { request, more, bytes: part }
                        if request == self.request =>
                    {
                        bytes.extend_from_slice(&part);
                        let most = self.restoring.max_body_bytes as usize + (2 << 20);
                        if bytes.len() > most {
                            let found = format!("a run of more than {most} bytes");
                            return Err(RepError::protocol("", "an entry or 1 MiB", found));
                        }
                        if !more {
                            break;
                        }
                    }
                    other => return Err(RepError::protocol("", "TailRun", other.name())),
                }
            }
            self.note_fetched(bytes.len());
            let length = (bytes.len() as u32).to_le_bytes();
            let bytes = Bytes::from(bytes);
            let run = EntryRun::verify(bytes.clone(), end, self.restoring.max_body_bytes)
                .map_err(|fault| RepError::BadEntry { peer: self.channel.peer(), fault })?;
            file.write_at(&[IoSlice::new(&length), IoSlice::new(&bytes)], commit.tail_bytes)
                .map_err(|e| LogError::io("write", &path, e))?;
            commit.tail_bytes += 4 + bytes.len() as u64;
            for entry in run.entries() {
                if entry.header.vlsn == head.target
                    && entry.header.fingerprint != head.target_fingerprint
                    && !mutant::is_on(Mutant::RestoreTargetUnchecked)
                {
                    let expected = format!("entry {} as the manifest names it", head.target);
                    return Err(RepError::protocol("", expected, "another one"));
                }
            }
            end = ChainState {
                vlsn: run.last,
                term: run.last_term,
                fingerprint: run.last_fingerprint,
            };
        }
        commit.last = end.vlsn;
        self.dirty.push((path, file));
        Ok(())
    }

    fn create(&self, name: &str) -> Result<(PathBuf, Arc<dyn EnvFile>)> {
        let path = self.dir.join(name);
        let wrap = |e| LogError::io("create", &path, e);
        let file = self.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
        file.set_len(0).map_err(wrap)?;
        Ok((path, file))
    }

    fn note_fetched(&mut self, bytes: usize) {
        self.progress.bytes_fetched += bytes as u64;
        (self.report)(&self.progress);
    }

    fn sync_and_claim(&mut self, bitmap: &mut Bitmap) -> Result<()> {
        #[cfg(test)]
        if self.restoring.bitmap_before_data {
            bitmap.save()?;
            return self.sync_data();
        }
        self.sync_data()?;
        bitmap.save()
    }

    fn sync_data(&mut self) -> Result<()> {
        for (path, file) in self.dirty.drain(..) {
            file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        }
        self.dirty_bytes = 0;
        // The names too: a block in a file without a name is no block.
        self.env
            .sync_dir(&self.dir)
            .map_err(|e| LogError::io("sync directory", &self.dir, e).into())
    }

    fn receive(&self) -> Result<RestoreMsg> {
        let timeout = self.restoring.answer_timeout;
        match self.channel.receive(timeout)? {
            Some(frame) => match RestoreMsg::decode(&frame)? {
                RestoreMsg::Failure { reason } => {
                    Err(RepError::RestoreRefused { peer: self.channel.peer(), reason })
                }
                message => Ok(message),
            },
            None => Err(RepError::silent(self.channel.peer(), "an answer", timeout)),
        }
    }
}

fn digests(segment: &SegmentOffer) -> Digests {
    Digests {
        segment: blake3::Hash::from_bytes(segment.digest),
        blocks: segment.blocks.iter().map(|digest| blake3::Hash::from_bytes(*digest)).collect(),
    }
}

/// Whether a restore of `node_dir` was begun and not finished.
///
/// # Errors
/// `Log` if that cannot be found out.
pub fn is_pending(env: &dyn Env, node_dir: &Path) -> Result<bool> {
    let path = restore_dir(node_dir).join(MARKER);
    Ok(env.exists(&path).map_err(|e| LogError::io("look for", &path, e))?)
}

/// Whether it was committed, and only [`super::install::install`] is left to do.
///
/// # Errors
/// `Log` if that cannot be found out.
pub fn is_committed(env: &dyn Env, node_dir: &Path) -> Result<bool> {
    let dir = restore_dir(node_dir);
    let committed = dir.join(COMMIT);
    if !is_pending(env, node_dir)?
        || !env.exists(&committed).map_err(|e| LogError::io("look for", &committed, e))?
    {
        return Ok(false);
    }
    let (marker, commit) = (Marker::load(env, &dir)?, Commit::load(env, &dir)?);
    Ok(marker.map(|marker| marker.session) == commit.map(|commit| commit.session))
}
