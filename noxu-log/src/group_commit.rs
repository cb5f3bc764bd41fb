//! Group commit: one thread writes and syncs for all who wait.
//!
//! Self-clocked: whoever gets the writer takes everything that was appended since the last turn,
//! writes it with one vectored write and syncs once; then the batch is marked (marker.rs), `durable`
//! moves, and exactly those are woken whom that satisfies. What is appended meanwhile is the next
//! turn's batch. No timer delays a commit; the only timer bounds how long entries that nobody waits
//! for stay unsynced.
//!
//! # Stages
//! ```text
//! thread 1   write N, sync N | mark N, tell
//! thread 2                   | write N+1, sync N+1 | mark N+1, tell
//! ```
//! The data stage holds the writer, the mark stage the marker, which is taken before the writer is
//! let go: marks are made in the order of the data, and at most one synced batch waits for its mark.
//! Both stages run in the thread that takes the turn, so nobody is woken between them.
//!
//! Any thread may take a turn ([`Log::sync_now`], [`Log::help_sync`]): a lone committer or a replica's
//! receiver then pays no wake-up of another thread. The flusher threads serve those who do not.
//!
//! # Crash argument
//! 1. Bytes are written in log order; within a batch any subset may survive a crash. Recovery keeps
//!    the valid prefix.
//! 2. A segment's successor gets its name only after the segment is written whole and synced, so an
//!    invalid entry before the last segment is damage, never a torn write.
//! 3. `synced` moves only after the sync returned and the new segment's name is durable too.
//! 4. The tail mark is made of `synced`: it never speaks of what is not durable. When it is written,
//!    and what that means for `durable`, is argued in marker.rs.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use noxu_util::{Lsn, Vlsn};
use parking_lot::MutexGuard;

use crate::entry::ChainState;
use crate::env::{EnvFile, OpenMode, sync_parent};
use crate::error::{LogError, Result};
use crate::log::{Log, Shared};
use crate::marker::{MarkPolicy, Marker};
use crate::mutant::{self, Mutant};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{SPARE_NAME, log_dir, segment_name};
use crate::tail::Piece;
use crate::tail_mark::Mark;

/// The file that is being written, and what of it is unsynced.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// `None` until the first entry after opening.
    pub(crate) current: Option<CurrentSegment>,
    /// The next segment, filled with zeros, under the name `spare`.
    pub(crate) spare: Option<Arc<dyn EnvFile>>,
}

/// The last segment's file.
#[derive(Debug)]
pub(crate) struct CurrentSegment {
    pub(crate) number: u32,
    pub(crate) file: Arc<dyn EnvFile>,
    pub(crate) dirty: bool,
}

/// What one turn writes.
struct Batch {
    pieces: Vec<Piece>,
    /// Headers of the segments that begin in it.
    new_segments: Vec<SegmentHeader>,
    end: ChainState,
    last_lsn: Lsn,
}

impl Log {
    /// Asks the flusher to sync what is appended by now; returns at once.
    pub fn request_sync(&self) {
        self.shared.flusher.request_sync();
    }

    /// Asks the flusher to write what is appended by now, without a sync; returns at once.
    pub fn request_write(&self) {
        self.shared.flusher.request_write();
    }

    /// Writes and syncs in this thread all that is appended by now; returns `durable`.
    ///
    /// # Errors
    /// `Poisoned` once a write or sync has failed.
    pub fn sync_now(&self) -> Result<Vlsn> {
        self.shared.flush(true)
    }

    /// Writes in this thread all that is appended by now, without a sync.
    ///
    /// # Errors
    /// `Poisoned` once a write or sync has failed.
    pub fn write_now(&self) -> Result<()> {
        self.shared.flush(false).map(|_| ())
    }

    /// Brings `vlsn` closer to being durable: syncs in this thread if nobody else is at it, else
    /// leaves it to the flusher. Returns `durable`, which may still be below `vlsn`.
    ///
    /// # Errors
    /// `Poisoned` once a write or sync has failed.
    pub fn help_sync(&self, vlsn: Vlsn) -> Result<Vlsn> {
        let (durable, synced) = {
            let state = self.shared.state.lock();
            (state.durable, state.synced.vlsn)
        };
        // Synced but not durable: whoever synced it is at the mark.
        if synced >= vlsn {
            return Ok(durable);
        }
        if let Some(writer) = self.shared.writer.try_lock() {
            self.shared.check_running()?;
            return self.shared.turn(writer, true, || {});
        }
        self.shared.flusher.request_sync();
        Ok(durable)
    }

    /// Blocks until everything through `vlsn` is durable on this node, and sees to it that it will.
    ///
    /// # Errors
    /// `Poisoned` or `Closed` once the log has stopped.
    pub fn wait_durable(&self, vlsn: Vlsn) -> Result<()> {
        if self.help_sync(vlsn)? >= vlsn {
            return Ok(());
        }
        loop {
            let waiter = self.shared.waiters.register(vlsn);
            self.shared.check_running()?;
            if self.shared.state.lock().durable >= vlsn {
                return Ok(());
            }
            waiter.park();
        }
    }
}

impl Shared {
    /// One turn, in this thread: see the module. Returns `durable`.
    pub(crate) fn flush(&self, sync: bool) -> Result<Vlsn> {
        self.turn(self.writer.lock(), sync, || {})
    }

    /// A turn of whoever holds the writer; `let_go` is called once it does no more.
    pub(crate) fn turn(
        &self,
        mut writer: MutexGuard<'_, Writer>,
        sync: bool,
        let_go: impl FnOnce(),
    ) -> Result<Vlsn> {
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        let moved = self.write_and_sync(&mut writer, sync)?;
        match self.config.tail_mark {
            MarkPolicy::Strict if moved => {
                let marker = self.marker.lock();
                drop(writer);
                let_go();
                self.mark_strictly(marker)
            }
            MarkPolicy::Strict if sync => {
                // Somebody else's batch, if any: nothing of ours comes after it.
                drop(writer);
                let_go();
                self.mark_strictly(self.marker.lock())
            }
            MarkPolicy::Lazy if moved => {
                let durable = {
                    let mut state = self.state.lock();
                    state.durable = state.synced.vlsn;
                    state.durable
                };
                drop(writer);
                let_go();
                self.publish(durable);
                self.mark_lazily()?;
                Ok(durable)
            }
            MarkPolicy::Strict | MarkPolicy::Lazy => {
                drop(writer);
                let_go();
                Ok(self.state.lock().durable)
            }
        }
    }

    /// Writes, syncs and marks all that is appended, whatever the policy, and waits until nobody
    /// else is at a mark: what has to be done before the end of the log is moved back. Holds the
    /// marker from then on; the caller holds the writer.
    pub(crate) fn drain(&self, writer: &mut Writer) -> Result<MutexGuard<'_, Marker>> {
        self.write_and_sync(writer, true)?;
        let marker = self.marker.lock();
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        self.catch_mark_up(&marker)?;
        let mut state = self.state.lock();
        let durable = state.synced.vlsn;
        state.durable = durable;
        drop(state);
        self.waiters.wake_through(durable);
        Ok(marker)
    }

    /// The data stage: writes what was appended and, if asked, syncs it. Whether `synced` moved.
    fn write_and_sync(&self, writer: &mut Writer, sync: bool) -> Result<bool> {
        let batch = {
            let mut state = self.state.lock();
            let end = state.end;
            if state.synced.vlsn == end.vlsn || (!sync && state.written == end.vlsn) {
                return Ok(false);
            }
            let written = state.written;
            let new_segments = state
                .segments
                .iter()
                .rev()
                .map_while(|s| (s.header().first > written).then_some(*s.header()))
                .collect();
            let pieces = state.tail.take_unwritten(&end);
            state.readers.handle_turn();
            Batch { pieces, new_segments, end, last_lsn: state.last_lsn }
        };
        let mark = Mark {
            term: batch.end.term,
            vlsn: batch.end.vlsn,
            lsn: batch.last_lsn,
            fingerprint: batch.end.fingerprint,
        };
        if mutant::is_on(Mutant::MarkBeforeData) {
            let marker = self.marker.lock();
            marker.mark.write(mark).and_then(|()| marker.mark.sync())?;
        }
        let written = self.write_batch(writer, &batch).map_err(|cause| self.poison(cause))?;
        {
            let mut state = self.state.lock();
            state.written = batch.end.vlsn;
            state.tail.evict(batch.end.vlsn);
            // Under the lock, so that an appender cannot miss it between its check and its wait.
            let before = self.unwritten_bytes.fetch_sub(written, Ordering::Relaxed);
            if before >= self.config.max_unwritten_bytes {
                self.space.notify_all();
            }
        }
        if !sync {
            return Ok(false);
        }
        if mutant::is_on(Mutant::DurableBeforeSync) {
            self.state.lock().durable = batch.end.vlsn;
        }
        self.sync_current(writer).map_err(|cause| self.poison(cause))?;
        let mut state = self.state.lock();
        state.synced = mark;
        if cfg!(debug_assertions) {
            state.check_invariants();
        }
        Ok(true)
    }

    /// Writes the pieces to their files; returns their bytes.
    fn write_batch(&self, writer: &mut Writer, batch: &Batch) -> Result<usize> {
        let mut bytes = 0;
        let mut rest = &batch.pieces[..];
        while let Some(piece) = rest.first() {
            let number = piece.lsn.segment();
            let count = rest.partition_point(|piece| piece.lsn.segment() == number);
            let (here, later) = rest.split_at(count);
            rest = later;
            let begins = piece.lsn.offset() == SEGMENT_HEADER_BYTES;
            if writer.current.as_ref().is_none_or(|current| current.number != number) {
                self.enter_segment(writer, number, begins)?;
            }
            let before = bytes;
            let mut parts = Vec::with_capacity(here.len() + 1);
            let mut offset = u64::from(piece.lsn.offset());
            let header = batch.new_segments.iter().find(|header| begins && header.number == number);
            let header = header.map(SegmentHeader::encode);
            if let Some(header) = &header {
                parts.push(IoSlice::new(header));
                offset = 0;
            }
            for piece in here {
                parts.push(IoSlice::new(&piece.bytes));
                bytes += piece.bytes.len();
            }
            let current = writer.current.as_mut().expect("entered above");
            current
                .file
                .write_at(&parts, offset)
                .map_err(|e| LogError::io("write", &self.segment_path(number), e))?;
            current.dirty = true;
            self.segment_written(bytes - before);
        }
        Ok(bytes)
    }

    /// Makes segment `number` the one that is written.
    fn enter_segment(&self, writer: &mut Writer, number: u32, begins: bool) -> Result<()> {
        let path = self.segment_path(number);
        // Crash argument 2: the old segment first.
        if !mutant::is_on(Mutant::SegmentNotSyncedBeforeRoll) {
            self.sync_current(writer)?;
        }
        let file = if begins {
            let file = match writer.spare.take() {
                Some(spare) => {
                    let from = log_dir(&self.dir).join(SPARE_NAME);
                    self.env.rename(&from, &path).map_err(|e| LogError::io("rename", &path, e))?;
                    spare
                }
                None => self
                    .env
                    .open(&path, OpenMode::CreateNew)
                    .map_err(|e| LogError::io("create", &path, e))?,
            };
            if !mutant::is_on(Mutant::DirNotSynced) {
                sync_parent(&*self.env, &path)?;
            }
            file
        } else {
            self.env.open(&path, OpenMode::ReadWrite).map_err(|e| LogError::io("open", &path, e))?
        };
        writer.current = Some(CurrentSegment { number, file, dirty: false });
        self.segment_entered();
        Ok(())
    }

    pub(crate) fn sync_current(&self, writer: &mut Writer) -> Result<()> {
        if let Some(current) = writer.current.as_mut().filter(|current| current.dirty) {
            let begin = Instant::now();
            current
                .file
                .sync_data()
                .map_err(|e| LogError::io("sync", &self.segment_path(current.number), e))?;
            self.data_syncs.record(begin.elapsed());
            current.dirty = false;
            self.prefill.note_sync();
        }
        Ok(())
    }

    pub(crate) fn segment_path(&self, number: u32) -> std::path::PathBuf {
        log_dir(&self.dir).join(segment_name(number))
    }
}
