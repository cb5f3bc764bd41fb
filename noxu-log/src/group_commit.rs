//! Group commit: one thread writes and syncs for all who wait.
//!
//! Self-clocked: whoever gets the writer takes everything that was appended since the last turn,
//! writes it with one vectored write, syncs once, publishes `durable` and wakes exactly those whom
//! that satisfies. What is appended meanwhile is the next turn's batch. No timer delays a commit;
//! the only timer bounds how long entries that nobody waits for stay unsynced.
//!
//! Any thread may take a turn ([`Log::sync_now`], [`Log::help_sync`]): a lone committer or a replica's
//! receiver then pays no wake-up of another thread. The flusher thread serves those who do not.
//!
//! # Crash argument
//! 1. Bytes are written in log order; within a batch any subset may survive a crash. Recovery keeps
//!    the valid prefix.
//! 2. A segment's successor gets its name only after the segment is written whole and synced, so an
//!    invalid entry before the last segment is damage, never a torn write.
//! 3. `durable` moves only after the sync returned and the new segment's name is durable too.
//! 4. The tail mark is written after that sync: it never speaks of what is not durable.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Instant;

use noxu_util::{Lsn, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::entry::ChainState;
use crate::env::{EnvFile, OpenMode, sync_parent};
use crate::error::{LogError, Result};
use crate::log::{Log, Shared};
use crate::mutant::{self, Mutant};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{SPARE_NAME, log_dir, segment_name};
use crate::tail::Piece;
use crate::tail_mark::{Mark, TailMark};

/// The file that is being written, and what of it is unsynced.
#[derive(Debug)]
pub(crate) struct Writer {
    /// `None` until the first entry after opening.
    pub(crate) current: Option<CurrentSegment>,
    pub(crate) mark: TailMark,
    pub(crate) mark_unsynced: bool,
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

impl Writer {
    pub(crate) fn new(mark: TailMark) -> Self {
        Self { current: None, mark, mark_unsynced: false, spare: None }
    }
}

/// What one turn came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    durable: Vlsn,
    advanced: bool,
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
        let durable = self.shared.state.lock().durable;
        if durable >= vlsn {
            return Ok(durable);
        }
        if let Some(mut writer) = self.shared.writer.try_lock() {
            self.shared.check_running()?;
            let turn = self.shared.flush_with(&mut writer, true)?;
            drop(writer);
            self.shared.publish(turn);
            return Ok(turn.durable);
        }
        self.shared.flusher.request_sync();
        Ok(durable)
    }

    /// Blocks until everything through `vlsn` is synced on this node, and sees to it that it will.
    ///
    /// # Errors
    /// `Poisoned` or `Closed` once the log has stopped.
    pub fn wait_durable(&self, vlsn: Vlsn) -> Result<()> {
        if self.help_sync(vlsn)? >= vlsn {
            return Ok(());
        }
        let waiter = self.shared.waiters.register(vlsn);
        loop {
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
        let mut writer = self.writer.lock();
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        let turn = self.flush_with(&mut writer, sync)?;
        drop(writer);
        self.publish(turn);
        Ok(turn.durable)
    }

    /// The turn itself, without telling anybody.
    pub(crate) fn flush_with(&self, writer: &mut Writer, sync: bool) -> Result<Turn> {
        let batch = {
            let mut state = self.state.lock();
            let end = state.end;
            if state.durable == end.vlsn || (!sync && state.written == end.vlsn) {
                return Ok(Turn { durable: state.durable, advanced: false });
            }
            let written = state.written;
            let new_segments = state
                .segments
                .iter()
                .rev()
                .map_while(|s| (s.header().first > written).then_some(*s.header()))
                .collect();
            let pieces = state.tail.take_unwritten(&end);
            Batch { pieces, new_segments, end, last_lsn: state.last_lsn }
        };
        let mark = Mark {
            term: batch.end.term,
            vlsn: batch.end.vlsn,
            lsn: batch.last_lsn,
            fingerprint: batch.end.fingerprint,
        };
        if mutant::is_on(Mutant::MarkBeforeData) {
            writer.mark.write(mark).and_then(|()| writer.mark.sync())?;
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
            return Ok(Turn { durable: self.state.lock().durable, advanced: false });
        }
        if mutant::is_on(Mutant::DurableBeforeSync) {
            self.state.lock().durable = batch.end.vlsn;
        }
        self.sync_current(writer).map_err(|cause| self.poison(cause))?;
        writer.mark.write(mark).map_err(|cause| self.poison(cause))?;
        writer.mark_unsynced = true;
        let mut state = self.state.lock();
        state.durable = batch.end.vlsn;
        if cfg!(debug_assertions) {
            state.check_invariants();
        }
        Ok(Turn { durable: state.durable, advanced: true })
    }

    /// Tells waiters and hooks how far the log is durable, if that has changed.
    fn publish(&self, turn: Turn) {
        if !turn.advanced {
            return;
        }
        let durable = turn.durable;
        self.waiters.wake_through(durable);
        let hooks = self.hooks.read();
        for hook in &hooks.durable {
            hook(durable);
        }
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
            self.keeper.request_prefill();
            file
        } else {
            self.env.open(&path, OpenMode::ReadWrite).map_err(|e| LogError::io("open", &path, e))?
        };
        writer.current = Some(CurrentSegment { number, file, dirty: false });
        Ok(())
    }

    pub(crate) fn sync_current(&self, writer: &mut Writer) -> Result<()> {
        if let Some(current) = writer.current.as_mut().filter(|current| current.dirty) {
            current
                .file
                .sync_data()
                .map_err(|e| LogError::io("sync", &self.segment_path(current.number), e))?;
            current.dirty = false;
        }
        Ok(())
    }

    /// Makes the tail mark durable, if it was written since the last time.
    pub(crate) fn sync_mark(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if writer.mark_unsynced && self.poison.get().is_none() {
            writer.mark.sync().map_err(|cause| self.poison(cause))?;
            writer.mark_unsynced = false;
        }
        Ok(())
    }

    pub(crate) fn segment_path(&self, number: u32) -> std::path::PathBuf {
        log_dir(&self.dir).join(segment_name(number))
    }
}

/// Threads that wait for `durable`, ordered by the VLSN they wait for.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    heap: Mutex<BinaryHeap<Reverse<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    vlsn: Vlsn,
    woken: Arc<AtomicBool>,
    thread: Thread,
}

/// A place in [`Waiters`].
pub(crate) struct Waiter {
    woken: Arc<AtomicBool>,
}

impl Waiter {
    /// Sleeps until this waiter's VLSN is reached or everybody is woken.
    fn park(&self) {
        while !self.woken.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

impl Waiters {
    fn register(&self, vlsn: Vlsn) -> Waiter {
        let woken = Arc::new(AtomicBool::new(false));
        let thread = std::thread::current();
        self.heap.lock().push(Reverse(Waiting { vlsn, woken: Arc::clone(&woken), thread }));
        Waiter { woken }
    }

    fn wake_through(&self, durable: Vlsn) {
        let mut heap = self.heap.lock();
        while heap.peek().is_some_and(|first| first.0.vlsn <= durable) {
            if let Some(Reverse(waiting)) = heap.pop() {
                waiting.wake();
            }
        }
    }

    pub(crate) fn wake_all(&self) {
        for Reverse(waiting) in self.heap.lock().drain() {
            waiting.wake();
        }
    }
}

impl Waiting {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.vlsn == other.vlsn
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.vlsn.cmp(&other.vlsn)
    }
}

/// The mailbox of the flusher thread.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    request: Mutex<Request>,
    wake: Condvar,
    /// Set while the thread sleeps without a deadline: the next append starts its clock.
    idle: AtomicBool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Request {
    sync: bool,
    write: bool,
    stop: bool,
}

impl Flusher {
    pub(crate) fn request_sync(&self) {
        self.request(|request| std::mem::replace(&mut request.sync, true));
    }

    pub(crate) fn request_write(&self) {
        self.request(|request| std::mem::replace(&mut request.write, true));
    }

    pub(crate) fn stop(&self) {
        self.request(|request| std::mem::replace(&mut request.stop, true));
    }

    fn request(&self, set: impl FnOnce(&mut Request) -> bool) {
        let was_set = set(&mut self.request.lock());
        if !was_set {
            self.wake.notify_one();
        }
    }

    /// Starts the clock that bounds the unsynced window, if it stands still.
    pub(crate) fn note_append(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel) {
            drop(self.request.lock());
            self.wake.notify_one();
        }
    }

    /// Body of the flusher thread.
    pub(crate) fn run(shared: &Shared) {
        let flusher = &shared.flusher;
        let interval = shared.config.sync_interval;
        let mut deadline = Instant::now() + interval;
        loop {
            let turn = {
                let mut request = flusher.request.lock();
                let mut due = false;
                while !(request.sync || request.write || request.stop || due) {
                    if flusher.idle.load(Ordering::Acquire) {
                        flusher.wake.wait(&mut request);
                        deadline = Instant::now() + interval;
                    } else {
                        due = flusher.wake.wait_until(&mut request, deadline).timed_out();
                    }
                }
                let turn = *request;
                request.sync = false;
                request.write = false;
                Request { sync: turn.sync || due, ..turn }
            };
            if turn.stop {
                return;
            }
            let tick = Instant::now() >= deadline;
            if tick {
                deadline = Instant::now() + interval;
                // Nothing appended for a whole interval: sleep until the next append. Announced
                // before the turn, so that an append during it starts the clock again.
                let state = shared.state.lock();
                if state.durable == state.end.vlsn {
                    flusher.idle.store(true, Ordering::Release);
                }
            }
            let result = shared
                .flush(turn.sync)
                .and_then(|_| if tick { shared.sync_mark() } else { Ok(()) });
            if let Err(error) = result {
                tracing::debug!(%error, "the flusher stops");
                return;
            }
        }
    }
}
