//! Retention: sealing finished segments, dropping the front, and preparing the next segment.
//!
//! A segment is *sealed* (cut to its last entry, digested, given a side file) only once the first
//! entry of its successor can no longer be rolled back: until then what closed it might go away,
//! and a smaller entry might still fit in.
//!
//! # Crash argument
//! Seal: 1. the file is cut to its end and synced, which changes no entry; 2. the side file appears
//! whole or not at all. Before 2 the segment is scanned at the next open, as an unsealed one is.
//! Drop: 1. the anchor is durable in the control file; 2. files are removed, the oldest first. After
//! 1 the next open removes what 2 left.

use std::sync::Arc;

use noxu_util::{Lsn, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::control_file::Anchor;
use crate::entry::EntryFault;
use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared, State};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{SPARE_NAME, log_dir, segment_name, side_name};
use crate::segment::scan::{SummaryBuilder, scan_entries};
use crate::segment::side_file::{Digests, SideFile};

/// Bytes filled with zeros while the writer waits.
const PREFILL_STEP: u64 = 1 << 20;

/// A sealed segment: a file that will never change, the same on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its number.
    pub number: u32,
    /// Its first entry.
    pub first: Vlsn,
    /// Its last entry.
    pub last: Vlsn,
    /// Length of the file.
    pub bytes: u32,
    /// BLAKE3 digest of the file.
    pub digest: blake3::Hash,
}

impl Log {
    /// Notes that everything through `vlsn` will never be rolled back, and lets the keeper thread
    /// seal what that finishes. Returns at once.
    pub fn settle(&self, vlsn: Vlsn) {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        if vlsn > state.settled {
            state.settled = vlsn;
            if first_to_seal(&state).is_some() {
                shared.keeper.request(|request| request.seal = true);
            }
        }
    }

    /// Notes that everything through `vlsn` will never be rolled back, and seals in this thread
    /// what that finishes.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Poisoned`, `Closed`.
    pub fn seal_through(&self, vlsn: Vlsn) -> Result<()> {
        {
            let mut state = self.shared.state.lock();
            state.settled = state.settled.max(vlsn);
        }
        self.shared.seal_finished()
    }

    /// The sealed segments, oldest first.
    pub fn sealed_segments(&self) -> Vec<SealedSegment> {
        let state = self.shared.state.lock();
        let sealed = state.segments.iter().map_while(|segment| match segment {
            Segment::Sealed(sealed) => Some(sealed),
            Segment::Open(_) => None,
        });
        sealed
            .map(|sealed| SealedSegment {
                number: sealed.header.number,
                first: sealed.header.first,
                last: sealed.last.vlsn,
                bytes: sealed.end,
                digest: sealed.digest,
            })
            .collect()
    }

    /// The digests of a sealed segment's blocks.
    ///
    /// # Errors
    /// `Gap` if there is no such sealed segment; `Io`, `Corrupt`.
    pub fn block_digests(&self, number: u32) -> Result<Digests> {
        let sealed = self.sealed_segments();
        if !sealed.iter().any(|segment| segment.number == number) {
            let first = sealed.first().map_or(self.positions().first, |segment| segment.first);
            return Err(LogError::Gap { requested: Vlsn::default(), first });
        }
        Ok(self.shared.sides.open(&self.shared, number)?.digests.clone())
    }

    /// Drops whole sealed segments from the front whose entries are all at or below `vlsn`, which
    /// is at or below the state machine's checkpoint. Never drops what might be rolled back.
    /// `config_at` gives the group configuration in force at the new anchor. Returns the anchor's
    /// VLSN: everything at or below it is gone.
    ///
    /// # Errors
    /// `Io`, `Poisoned`, `Closed`.
    pub fn drop_front(&self, vlsn: Vlsn, config_at: impl FnOnce(Vlsn) -> Vec<u8>) -> Result<Vlsn> {
        let shared = &*self.shared;
        let _alone = shared.maintenance.lock();
        shared.check_running()?;
        let (doomed, last, next) = {
            let state = shared.state.lock();
            let limit = vlsn.min(state.settled).min(state.durable);
            let doomed: Vec<u32> = state
                .segments
                .iter()
                .take_while(|segment| segment.is_sealed() && segment.last().vlsn <= limit)
                .map(Segment::number)
                .collect();
            // The last segment is never sealed, so one always follows the last that goes.
            let Some(last) = doomed.len().checked_sub(1).and_then(|at| state.segments.get(at))
            else {
                return Ok(state.anchor.vlsn);
            };
            (doomed.clone(), *last.last(), last.number() + 1)
        };
        let side = shared.sides.open(shared, next - 1)?;
        let anchor = Anchor {
            vlsn: last.vlsn,
            lsn: Lsn::new(next - 1, side.summary.last_offset),
            term: last.term,
            fingerprint: last.fingerprint,
            next_lsn: Lsn::new(next, SEGMENT_HEADER_BYTES),
            group_config: config_at(last.vlsn),
        };
        shared.control.update(|control| control.anchor = anchor.clone())?;
        {
            let mut state = shared.state.lock();
            state.segments.drain(..doomed.len());
            let first = anchor.vlsn.next();
            let begun = state.terms.partition_point(|(_, begins)| *begins <= first);
            state.terms.drain(..begun.saturating_sub(1));
            if let Some((_, begins)) = state.terms.first_mut() {
                *begins = (*begins).max(first);
            }
            state.anchor = anchor.clone();
            state.check_invariants();
        }
        shared.files.clear();
        shared.sides.clear();
        let dir = log_dir(&shared.dir);
        for number in doomed {
            for name in [segment_name(number), side_name(number)] {
                let path = dir.join(name);
                match shared.env.remove(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(LogError::io("remove", &path, e));
                    }
                    _ => {}
                }
            }
        }
        shared.env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
        Ok(anchor.vlsn)
    }
}

/// Position of the first unsealed segment, if it may be sealed.
fn first_to_seal(state: &State) -> Option<usize> {
    let at = state.segments.partition_point(Segment::is_sealed);
    let successor = state.segments.get(at + 1)?;
    let first = successor.header().first;
    (first <= state.settled && first <= state.durable).then_some(at)
}

impl Shared {
    /// Seals every segment that may be.
    fn seal_finished(&self) -> Result<()> {
        let _alone = self.maintenance.lock();
        loop {
            self.check_running()?;
            let summary = {
                let state = self.state.lock();
                let Some(at) = first_to_seal(&state) else { return Ok(()) };
                match &state.segments[at] {
                    Segment::Open(builder) => builder.summary(),
                    Segment::Sealed(_) => unreachable!("the first unsealed segment is open"),
                }
            };
            let side = SideFile::make(&*self.env, &self.dir, summary)?;
            let mut state = self.state.lock();
            let at = state.segments.partition_point(Segment::is_sealed);
            state.segments[at] = Segment::Sealed(side.sealed());
        }
    }

    /// Makes the side file of a sealed segment again, from the segment.
    pub(crate) fn rebuild_side_file(&self, number: u32) -> Result<SideFile> {
        let path = self.segment_path(number);
        let wrap = |e| LogError::io("read", &path, e);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let mut raw = vec![0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut raw, 0).map_err(wrap)?;
        let header = SegmentHeader::decode(&raw[..read]).map_err(|fault| LogError::Corrupt {
            segment: number,
            offset: 0,
            expected: "a segment header".into(),
            found: fault.to_string(),
        })?;
        // The newest sync entry before the segment: from the one before, if there is one.
        let before = header.first.prev();
        let (mut last_sync, mut last_txn_end) = {
            let anchor = self.state.lock().anchor.vlsn;
            (anchor, anchor)
        };
        if before > last_sync {
            let side = self.sides.open(self, number - 1)?;
            last_sync = side.summary.last_sync;
            last_txn_end = side.summary.last_txn_end;
        }
        let mut builder = SummaryBuilder::new(header, last_sync, last_txn_end);
        let len = file.len().map_err(wrap)?;
        let chain = header.chain_before();
        let end = scan_entries(&*file, SEGMENT_HEADER_BYTES, len, chain, |offset, entry| {
            builder.push(offset, &entry.header);
        })
        .map_err(wrap)?;
        let known = self.sealed_end(number);
        if end.fault.is_some() || known.is_some_and(|last| last != *builder.last()) {
            return Err(LogError::Corrupt {
                segment: number,
                offset: end.offset.into(),
                expected: "the entries of a sealed segment".into(),
                found: end.fault.unwrap_or(EntryFault::Header).to_string(),
            });
        }
        SideFile::make(&*self.env, &self.dir, builder.summary())
    }

    fn sealed_end(&self, number: u32) -> Option<crate::entry::ChainState> {
        let state = self.state.lock();
        state.segments.iter().find(|segment| segment.number() == number).map(|s| *s.last())
    }
}

/// The mailbox of the keeper thread: seals, and prepares the next segment.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    request: Mutex<KeeperRequest>,
    wake: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct KeeperRequest {
    seal: bool,
    prefill: bool,
    stop: bool,
}

impl Keeper {
    pub(crate) fn request_prefill(&self) {
        self.request(|request| request.prefill = true);
    }

    pub(crate) fn stop(&self) {
        self.request(|request| request.stop = true);
    }

    fn request(&self, set: impl FnOnce(&mut KeeperRequest)) {
        set(&mut self.request.lock());
        self.wake.notify_one();
    }

    /// Body of the keeper thread.
    pub(crate) fn run(shared: &Shared) {
        loop {
            let task = {
                let mut request = shared.keeper.request.lock();
                while !(request.seal || request.prefill || request.stop) {
                    shared.keeper.wake.wait(&mut request);
                }
                std::mem::take(&mut *request)
            };
            if task.stop {
                return;
            }
            if task.prefill
                && shared.config.prefill
                && let Err(error) = shared.prefill()
            {
                // Only speed is lost: segments grow as they are written.
                tracing::warn!(%error, "segments cannot be filled ahead");
            }
            if task.seal
                && let Err(error) = shared.seal_finished()
            {
                tracing::warn!(%error, "a segment cannot be sealed");
            }
        }
    }

    fn stopping(&self) -> bool {
        self.request.lock().stop
    }
}

impl Shared {
    /// Fills the rest of the current segment and a spare one with zeros, so that syncs need not
    /// allocate blocks.
    fn prefill(&self) -> Result<()> {
        let Some(target) = self.state.lock().group.as_ref().map(|group| group.segment_bytes.into())
        else {
            return Ok(());
        };
        while !self.keeper.stopping() {
            // In steps under the writer's lock: a fill must not overtake a write and erase it.
            let (file, number) = {
                let writer = self.writer.lock();
                let Some(current) = &writer.current else { break };
                let path = self.segment_path(current.number);
                let len = current.file.len().map_err(|e| LogError::io("measure", &path, e))?;
                if len >= target {
                    break;
                }
                let step = (len + PREFILL_STEP).min(target);
                current.file.allocate(step).map_err(|e| LogError::io("fill", &path, e))?;
                (Arc::clone(&current.file), current.number)
            };
            // Entries may lie in the pages that this sync was to write, and the kernel reports their
            // loss only once: to us, not to the flusher's next sync.
            let path = self.segment_path(number);
            file.sync_data().map_err(|e| self.poison(LogError::io("sync", &path, e)))?;
        }
        if self.keeper.stopping() || self.writer.lock().spare.is_some() {
            return Ok(());
        }
        let path = log_dir(&self.dir).join(SPARE_NAME);
        let filled = self.fill_spare(&path, target);
        match filled {
            Ok(Some(file)) => self.writer.lock().spare = Some(file),
            Ok(None) => {}
            Err(error) => {
                let _ = self.env.remove(&path);
                return Err(error);
            }
        }
        Ok(())
    }

    fn fill_spare(&self, path: &std::path::Path, target: u64) -> Result<Option<Arc<dyn EnvFile>>> {
        let file = self
            .env
            .open(path, OpenMode::CreateOrOpen)
            .map_err(|e| LogError::io("create", path, e))?;
        file.set_len(0).map_err(|e| LogError::io("cut", path, e))?;
        let mut len = 0;
        while len < target {
            if self.keeper.stopping() {
                return Ok(None);
            }
            len = (len + PREFILL_STEP).min(target);
            file.allocate(len).map_err(|e| LogError::io("fill", path, e))?;
        }
        file.sync_data().map_err(|e| LogError::io("sync", path, e))?;
        Ok(Some(file))
    }
}
