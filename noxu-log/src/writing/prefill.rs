//! Prefill: segments are filled with zeros ahead of the writes, so that a sync need not allocate
//! blocks nor change the file's length.
//!
//! # Where it pays, and at what pace
//! A fill writes every byte of the segment once more; a sync into a filled file saves one commit of
//! the file system's journal. So it pays where syncs are small ([`PAYS_BELOW_BYTES`]), and the
//! keeper leaves it where nobody waits for syncs or each one carries much: there the zeros would
//! compete with the log itself for memory and disk. While it pays, the spare segment is filled in
//! steps, two bytes for each byte written to the current one, so that it is whole when the current
//! one is half full and no commit waits behind a whole segment of zeros.
//!
//! # Not here: segments that were dropped are not used again
//! Recovery takes what follows the last entry for a torn write or for nothing at all; it may see
//! zeros there, never an old entry. A dropped segment would have to be zeroed first, which is all
//! that filling a new one costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared};
use crate::segment::name::{SPARE_NAME, log_dir};

/// Bytes filled with zeros at once: while the writer waits, where it is the current segment.
const STEP_BYTES: u64 = 1 << 20;
/// Mean bytes of a sync up to which filling pays: a filled file saves a commit of the file system's
/// journal, which is some 100 us a sync, and filling costs 0.5 ms or so for each MiB.
const PAYS_BELOW_BYTES: u64 = 256 << 10;

/// How much less than the current segment the one before it says about what comes next.
const MEMORY: u64 = 16;

/// How the current segment is used, and the next one as far as it is filled.
#[derive(Debug, Default)]
pub(crate) struct Prefill {
    /// Bytes written lately: to the current segment, and a [`MEMORY`]th of what was before.
    written: AtomicU64,
    /// Syncs lately.
    syncs: AtomicU64,
    /// Set when a fill fails, until the next segment: without room it would fail at every step.
    gave_up: AtomicBool,
    /// The next segment while it is filled; this lock is held while it is, and taken before the
    /// writer's.
    unfinished: Mutex<Option<Spare>>,
}

/// How much is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Where it pays, at the pace of the writes.
    Due,
    /// Both segments.
    Whole,
}

/// A file that becomes the next segment.
#[derive(Debug)]
struct Spare {
    file: Arc<dyn EnvFile>,
    filled: u64,
}

impl Prefill {
    /// Whether syncs are so small that filling saves more than it costs.
    fn pays(&self) -> bool {
        let syncs = self.syncs.load(Ordering::Relaxed) + 1;
        !self.gave_up.load(Ordering::Relaxed)
            && self.written.load(Ordering::Relaxed) / syncs <= PAYS_BELOW_BYTES
    }

    pub(crate) fn note_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn note_segment(&self) {
        for count in [&self.written, &self.syncs] {
            count.store(count.load(Ordering::Relaxed) / MEMORY, Ordering::Relaxed);
        }
        self.gave_up.store(false, Ordering::Relaxed);
    }
}

impl Log {
    /// Fills the rest of the segment that is being written, and a spare one, with zeros in this
    /// thread, at once and whole: what the keeper thread does by itself, where it pays and no sooner
    /// than needed, with [`crate::LogConfig::prefill`].
    ///
    /// # Errors
    /// `Io`, which costs only speed; `Poisoned` if a sync failed, `Closed`.
    pub fn fill_ahead(&self) -> Result<()> {
        self.shared.check_running()?;
        self.shared.prefill(Extent::Whole)?;
        self.shared.check_running()
    }
}

impl Shared {
    /// Notes that another segment is written from now on.
    pub(crate) fn segment_entered(&self) {
        self.prefill.note_segment();
        self.keeper.request_prefill();
    }

    /// Notes a write to the current segment, and wakes the keeper after each step of them.
    pub(crate) fn segment_written(&self, bytes: usize) {
        let before = self.prefill.written.fetch_add(bytes as u64, Ordering::Relaxed);
        let step = |bytes: u64| bytes / STEP_BYTES;
        if step(before) != step(before + bytes as u64) && self.prefill.pays() {
            self.keeper.request_prefill();
        }
    }

    /// Fills the rest of the current segment and what is due of the next one.
    pub(crate) fn prefill(&self, extent: Extent) -> Result<()> {
        let (segment_bytes, end) = {
            let state = self.state.lock();
            let Some(group) = &state.group else { return Ok(()) };
            let end = match state.segments.back() {
                Some(segment @ Segment::Open(_)) => Some(u64::from(segment.end())),
                _ => None,
            };
            (u64::from(group.segment_bytes), end)
        };
        let filled = self.fill_current(segment_bytes, extent).and_then(|entered| {
            let due = match end {
                _ if extent == Extent::Whole => segment_bytes,
                Some(end) if entered => (2 * end).min(segment_bytes),
                // Nothing is appended yet, and there is room in the last segment.
                Some(_) => 0,
                // The next entry begins a segment: that one is wanted whole.
                None => segment_bytes,
            };
            self.fill_spare(due, segment_bytes, extent)
        });
        if filled.is_err() {
            self.prefill.gave_up.store(true, Ordering::Relaxed);
            // A whole one is the writer's.
            let mut unfinished = self.prefill.unfinished.lock();
            if unfinished.take().is_some()
                && let Ok(_ours) = self.directory()
            {
                let _ = self.env.remove(&log_dir(&self.dir).join(SPARE_NAME));
            }
        }
        filled
    }

    fn fills(&self, extent: Extent) -> bool {
        (extent == Extent::Whole || self.prefill.pays()) && !self.keeper.stopping()
    }

    /// Whether there is a current segment.
    fn fill_current(&self, segment_bytes: u64, extent: Extent) -> Result<bool> {
        while self.fills(extent) {
            // In steps under the writer's lock: a fill must not overtake a write and erase it.
            let (file, number) = {
                let writer = self.writer.lock();
                let Some(current) = &writer.current else { return Ok(false) };
                let path = self.segment_path(current.number);
                let len = current.file.len().map_err(|e| LogError::io("measure", &path, e))?;
                if len >= segment_bytes {
                    break;
                }
                if !self.fills(extent) {
                    break; // After the write that we waited for.
                }
                let _ours = self.directory()?;
                let step = (len + STEP_BYTES).min(segment_bytes);
                current.file.allocate(step).map_err(|e| LogError::io("fill", &path, e))?;
                (Arc::clone(&current.file), current.number)
            };
            // Entries may lie in the pages that this sync was to write, and the kernel reports their
            // loss only once: to us, not to the flusher's next sync.
            let path = self.segment_path(number);
            file.sync_data().map_err(|e| self.poison(LogError::io("sync", &path, e)))?;
        }
        Ok(true)
    }

    /// Brings the spare segment to `due` bytes, and gives it to the writer once it is whole.
    fn fill_spare(&self, due: u64, segment_bytes: u64, extent: Extent) -> Result<()> {
        let path = log_dir(&self.dir).join(SPARE_NAME);
        let mut unfinished = self.prefill.unfinished.lock();
        // Only now: another thread may have been filling it until this one got the lock, and given it
        // to the writer. To begin it again would cut a file that is about to be a segment, or is one.
        if self.writer.lock().spare.is_some() {
            return Ok(());
        }
        let before = unfinished.as_ref().map_or(0, |spare| spare.filled);
        while self.fills(extent) {
            let _ours = self.directory()?;
            let spare = match &mut *unfinished {
                Some(spare) => spare,
                nothing => {
                    let file = self
                        .env
                        .open(&path, OpenMode::CreateOrOpen)
                        .map_err(|e| LogError::io("create", &path, e))?;
                    file.set_len(0).map_err(|e| LogError::io("cut", &path, e))?;
                    nothing.insert(Spare { file, filled: 0 })
                }
            };
            if spare.filled >= due {
                break;
            }
            let step = (spare.filled + STEP_BYTES).min(due);
            spare.file.allocate(step).map_err(|e| LogError::io("fill", &path, e))?;
            spare.filled = step;
        }
        if let Some(spare) = &*unfinished
            && spare.filled > before
        {
            let _ours = self.directory()?;
            spare.file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        }
        if let Some(whole) = unfinished.take_if(|spare| spare.filled >= segment_bytes) {
            self.writer.lock().spare = Some(whole.file);
        }
        Ok(())
    }
}
