//! Group commit: one thread writes and syncs for all who wait.
//!
//! Self-clocked: whoever gets the writer takes everything that was appended since the last turn,
//! writes it, in vectored writes of some [`STRETCH_BYTES`] within one segment each, and syncs once;
//! then the batch is marked (marker.rs), `durable` moves, and exactly those are woken whom that
//! satisfies. What is appended meanwhile is the next turn's batch. No timer delays a commit; the only
//! timer bounds how long entries that nobody waits for stay unsynced.
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
//! 4. A write that finds no room on the disk leaves `written` where it was: full_disk.rs.
//! 5. The tail mark is made of `synced`: it never speaks of what is not durable. When it is written,
//!    and what that means for `durable`, is argued in marker.rs.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use noxu_util::Vlsn;
use parking_lot::MutexGuard;

use crate::env::{EnvFile, OpenMode, PASSING_BYTES, sync_parent};
use crate::error::{LogError, Result};
use crate::log::{Log, Shared, State};
use crate::mutant::{self, Mutant};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{SPARE_NAME, log_dir, segment_name};
use crate::upkeep::Background;
use crate::writing::marker::{MarkPolicy, Marker};
use crate::writing::tail::Piece;
use crate::writing::tail_mark::Mark;

/// Bytes written at once. In longer stretches appenders that wait for room in memory would wait
/// longer, what is written would have left the processor's caches, and its page-cache memory could
/// not be that of the stretch before.
const STRETCH_BYTES: usize = 2 << 20;

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

/// What a turn does about a disk that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Leaves a log that is read-only alone, unless something urgent waits.
    AsKnown,
    /// Looks whether there is room again.
    TryAgain,
    /// Takes that of the reserve if there is none.
    UseReserve,
}

/// What one turn writes.
struct Batch {
    /// Oldest first; taken from the front as they are written.
    pieces: VecDeque<Piece>,
    /// Headers of the segments that begin in it.
    new_segments: Vec<SegmentHeader>,
    end: Mark,
}

impl Batch {
    /// All that is not written.
    fn take(state: &mut State) -> Self {
        let written = state.written.vlsn;
        let new_segments = state
            .segments
            .iter()
            .rev()
            .map_while(|s| (s.header().first > written).then_some(*s.header()))
            .collect();
        let pieces = state.tail.take_unwritten(&state.end).into();
        state.readers.handle_turn();
        Self { pieces, new_segments, end: state.end_mark() }
    }

    /// How many pieces are written at once: those of one segment, some [`STRETCH_BYTES`] of them.
    fn stretch(&self) -> usize {
        let number = self.pieces.front().map(|piece| piece.lsn.segment());
        let mut bytes = 0;
        let within = self.pieces.iter().take_while(|piece| {
            let fits = bytes < STRETCH_BYTES && Some(piece.lsn.segment()) == number;
            bytes += piece.bytes.len();
            fits
        });
        within.count()
    }

    /// The last entry before it.
    fn before(&self) -> Vlsn {
        self.pieces.front().map_or(self.end.vlsn, |piece| piece.first.prev())
    }
}

/// Why a batch cannot be written.
enum WriteFault {
    /// No room for this file: nothing is harmed, and it can be done again.
    NoRoom(PathBuf),
    /// The log stops.
    Fatal(LogError),
}

impl WriteFault {
    fn of_write(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| match LogError::io(action, path, error) {
            full if full.is_storage_full() => Self::NoRoom(path.to_owned()),
            cause => Self::Fatal(cause),
        }
    }
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
    /// `Poisoned` once a write or sync has failed; `ReadOnly` if the disk has no room for all of it.
    pub fn sync_now(&self) -> Result<Vlsn> {
        let wanted = self.shared.state.lock().end.vlsn;
        let durable = self.shared.flush(true)?;
        if durable < wanted { self.shared.refuse_for_room(durable) } else { Ok(durable) }
    }

    /// Writes in this thread all that is appended by now, without a sync.
    ///
    /// # Errors
    /// As [`Log::sync_now`].
    pub fn write_now(&self) -> Result<()> {
        let wanted = self.shared.state.lock().end.vlsn;
        self.shared.flush(false)?;
        let written = self.shared.state.lock().written.vlsn;
        if written < wanted { self.shared.refuse_for_room(written).map(|_| ()) } else { Ok(()) }
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
            return self.shared.turn(writer, true, Room::AsKnown, || {});
        }
        self.shared.flusher.request_sync();
        Ok(durable)
    }

    /// How many threads are in [`Log::wait_durable`] and sleep, or are about to.
    pub fn waiting(&self) -> usize {
        self.shared.waiters.count()
    }

    /// Blocks until everything through `vlsn` is durable on this node, and sees to it that it will.
    /// On a full disk that is when there is room again. A log without threads is synced by the
    /// caller.
    ///
    /// # Errors
    /// `CutOff` if there is no such entry, or if a truncation cuts it off meanwhile; `Poisoned` or
    /// `Closed` once the log has stopped; `ReadOnly` if the disk is full and the log has no thread that
    /// would look for room.
    pub fn wait_durable(&self, vlsn: Vlsn) -> Result<()> {
        let shared = &*self.shared;
        let since = {
            let state = shared.state.lock();
            if vlsn > state.end.vlsn {
                return Err(LogError::CutOff { requested: vlsn, last: state.end.vlsn });
            }
            state.cuts.done()
        };
        let is_durable = || {
            let state = shared.state.lock();
            match state.cuts.cut_off(vlsn, since) {
                Some(last) => Err(LogError::CutOff { requested: vlsn, last }),
                None => Ok(state.durable >= vlsn),
            }
        };
        if shared.config.background == Background::Caller {
            while !is_durable()? {
                let durable = shared.flush(true)?;
                if durable < vlsn {
                    shared.refuse_for_room(durable)?;
                }
            }
            return Ok(());
        }
        if self.help_sync(vlsn)? >= vlsn && is_durable()? {
            return Ok(());
        }
        loop {
            // Before the look, so that neither a sync nor a truncation comes in between.
            let waiter = shared.waiters.register(vlsn);
            shared.check_running()?;
            if is_durable()? {
                return Ok(());
            }
            waiter.park();
        }
    }
}

impl Shared {
    /// One turn, in this thread: see the module. Returns `durable`.
    pub(crate) fn flush(&self, sync: bool) -> Result<Vlsn> {
        self.turn(self.writer.lock(), sync, Room::TryAgain, || {})
    }

    /// The answer to whoever wanted more written than `reached`.
    fn refuse_for_room(&self, reached: Vlsn) -> Result<Vlsn> {
        let state = self.state.lock();
        match &state.no_room {
            Some(path) => Err(LogError::read_only(path)),
            // There is room again, and somebody else has written it.
            None => Ok(reached.max(state.durable)),
        }
    }

    /// A turn of whoever holds the writer; `let_go` is called once it does no more.
    pub(crate) fn turn(
        &self,
        mut writer: MutexGuard<'_, Writer>,
        sync: bool,
        room: Room,
        let_go: impl FnOnce(),
    ) -> Result<Vlsn> {
        // With the writer held: closing waits for it before it gives the directory back.
        self.check_running()?;
        let moved = self.write_and_sync(&mut writer, sync, room)?;
        let done = self.finish_turn(writer, sync, moved, let_go);
        if self.flusher.looks_for_room() {
            self.tell_read_only();
        }
        done
    }

    /// The mark stage, for which the writer is let go.
    fn finish_turn(
        &self,
        writer: MutexGuard<'_, Writer>,
        sync: bool,
        moved: bool,
        let_go: impl FnOnce(),
    ) -> Result<Vlsn> {
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
                self.publish();
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
        self.write_all_with_reserve(writer)?;
        let marker = self.marker.lock();
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        if !self.catch_mark_up(&marker)? {
            return Err(LogError::read_only(&marker.mark.path()));
        }
        let mut state = self.state.lock();
        let durable = state.synced.vlsn;
        state.durable = durable;
        drop(state);
        self.waiters.wake_through(durable);
        Ok(marker)
    }

    /// The data stage: writes what was appended and, if asked, syncs it. Whether `synced` moved.
    pub(crate) fn write_and_sync(
        &self,
        writer: &mut Writer,
        sync: bool,
        room: Room,
    ) -> Result<bool> {
        let mut batch = {
            let mut state = self.state.lock();
            let urgent = state.urgent > state.written.vlsn;
            let unwritten = if room == Room::AsKnown && state.no_room.is_some() && !urgent {
                false
            } else {
                state.written.vlsn < state.end.vlsn
            };
            if !unwritten && (!sync || state.synced == state.written) {
                return Ok(false);
            }
            if unwritten { Some(Batch::take(&mut state)) } else { None }
        };
        if let Some(batch) = &mut batch {
            self.write_with_room(writer, batch, room)?;
        }
        if !sync {
            return Ok(false);
        }
        let written = {
            let state = self.state.lock();
            if state.synced == state.written {
                return Ok(false);
            }
            state.written
        };
        if mutant::is_on(Mutant::DurableBeforeSync) {
            self.state.lock().durable = written.vlsn;
        }
        self.sync_current(writer).map_err(|cause| self.poison(cause))?;
        let mut state = self.state.lock();
        state.synced = written;
        if cfg!(debug_assertions) {
            state.check_invariants();
        }
        Ok(true)
    }

    /// Writes a batch as far as there is room; what is left over goes back to the tail.
    fn write_with_room(&self, writer: &mut Writer, batch: &mut Batch, room: Room) -> Result<()> {
        if mutant::is_on(Mutant::MarkBeforeData) {
            let marker = self.marker.lock();
            marker.mark.write(batch.end).and_then(|()| marker.mark.sync())?;
        }
        let mut no_room = self.write_part(writer, batch)?;
        if no_room.is_some() {
            let urgent = self.state.lock().urgent > batch.before();
            if (urgent || room == Room::UseReserve) && self.release_reserve()? {
                let rest = self.write_part(writer, batch)?;
                // The room is not the log's to keep: see `look_for_room`.
                no_room = rest.or(no_room);
            }
            // Tried: from now on it waits for room as the others do.
            let mut state = self.state.lock();
            state.urgent = state.urgent.min(batch.before());
        }
        if !batch.pieces.is_empty() {
            self.state.lock().tail.put_back(std::mem::take(&mut batch.pieces).into());
        }
        if let Some(path) = no_room {
            self.become_read_only(&path);
        }
        Ok(())
    }

    /// Writes what there is room for, takes it out of the batch and moves `written` past it, stretch
    /// by stretch: whoever waits for room in memory goes on after each. Names what there was no
    /// room for.
    fn write_part(&self, writer: &mut Writer, batch: &mut Batch) -> Result<Option<PathBuf>> {
        while !batch.pieces.is_empty() {
            let stretch = batch.stretch();
            let pieces = &batch.pieces.make_contiguous()[..stretch];
            match self.write_pieces(writer, pieces, &batch.new_segments) {
                Ok(()) => {}
                Err(WriteFault::NoRoom(path)) => return Ok(Some(path)),
                Err(WriteFault::Fatal(cause)) => return Err(self.poison(cause)),
            }
            self.note_written(batch, stretch);
        }
        Ok(None)
    }

    /// The first `count` pieces of the batch are in their file.
    fn note_written(&self, batch: &mut Batch, count: usize) {
        let done: Vec<Piece> = batch.pieces.drain(..count).collect();
        let Some(last) = done.last() else { return };
        let through = if batch.pieces.is_empty() { batch.end } else { last.end_mark() };
        let bytes = done.iter().map(|piece| piece.bytes.len()).sum();
        let mut state = self.state.lock();
        state.written = through;
        state.tail.evict(through.vlsn);
        // Under the lock, so that an appender cannot miss it between its check and its wait.
        let before = self.unwritten_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before >= self.config.max_unwritten_bytes {
            self.space.notify_all();
        }
    }

    /// Writes pieces of one segment.
    fn write_pieces(
        &self,
        writer: &mut Writer,
        pieces: &[Piece],
        new_segments: &[SegmentHeader],
    ) -> Result<(), WriteFault> {
        let first = pieces.first().expect("a segment's share of a batch");
        let number = first.lsn.segment();
        let begins = first.lsn.offset() == SEGMENT_HEADER_BYTES;
        if writer.current.as_ref().is_none_or(|current| current.number != number) {
            self.enter_segment(writer, number, begins)?;
        }
        let mut parts = Vec::with_capacity(pieces.len() + 1);
        let mut offset = u64::from(first.lsn.offset());
        let header = new_segments.iter().find(|header| begins && header.number == number);
        let header = header.map(SegmentHeader::encode);
        if let Some(header) = &header {
            parts.push(IoSlice::new(header));
            offset = 0;
        }
        parts.extend(pieces.iter().map(|piece| IoSlice::new(&piece.bytes)));
        let current = writer.current.as_mut().expect("entered above");
        let path = self.segment_path(number);
        // Also of a part that was written before there was no room.
        current.dirty = true;
        let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        // Who reads them soon finds them in the tail.
        let written = if bytes >= PASSING_BYTES {
            current.file.write_passing(&parts, offset)
        } else {
            current.file.write_at(&parts, offset)
        };
        written.map_err(WriteFault::of_write("write", &path))?;
        self.segment_written(bytes);
        Ok(())
    }

    /// Makes segment `number` the one that is written.
    fn enter_segment(
        &self,
        writer: &mut Writer,
        number: u32,
        begins: bool,
    ) -> Result<(), WriteFault> {
        let path = self.segment_path(number);
        // Crash argument 2: the old segment first.
        if !mutant::is_on(Mutant::SegmentNotSyncedBeforeRoll) {
            self.sync_current(writer).map_err(WriteFault::Fatal)?;
        }
        let file = if begins {
            let from = log_dir(&self.dir).join(SPARE_NAME);
            let renamed = writer.spare.as_ref().map(|_| self.env.rename(&from, &path));
            // A spare whose name is gone is no spare: only what it saved is lost.
            let renamed = renamed
                .filter(|done| !matches!(done, Err(e) if e.kind() == std::io::ErrorKind::NotFound));
            let file = if let (Some(spare), Some(renamed)) = (&writer.spare, renamed) {
                renamed.map_err(WriteFault::of_write("rename", &path))?;
                Arc::clone(spare)
            } else {
                let created = self.env.open(&path, OpenMode::CreateNew);
                created.map_err(WriteFault::of_write("create", &path))?
            };
            writer.spare = None;
            if !mutant::is_on(Mutant::DirNotSynced) {
                let synced = self.data_syncs.watch(|| sync_parent(&*self.env, &path));
                synced.map_err(WriteFault::Fatal)?;
            }
            file
        } else {
            let opened = self.env.open(&path, OpenMode::ReadWrite);
            opened.map_err(|e| WriteFault::Fatal(LogError::io("open", &path, e)))?
        };
        writer.current = Some(CurrentSegment { number, file, dirty: false });
        self.segment_entered();
        Ok(())
    }

    pub(crate) fn sync_current(&self, writer: &mut Writer) -> Result<()> {
        if let Some(current) = writer.current.as_mut().filter(|current| current.dirty) {
            let failed = |e| LogError::io("sync", &self.segment_path(current.number), e);
            self.data_syncs.time(|| current.file.sync_data().map_err(failed))?;
            current.dirty = false;
            self.prefill.note_sync();
        }
        Ok(())
    }

    pub(crate) fn segment_path(&self, number: u32) -> std::path::PathBuf {
        log_dir(&self.dir).join(segment_name(number))
    }
}
