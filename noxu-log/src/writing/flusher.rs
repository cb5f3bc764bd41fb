//! Flusher: the threads that write and sync for those who do not do it themselves.
//!
//! Under the strict tail mark there are two, so that one can write and sync a batch while the other
//! syncs the mark of the batch before. A request that comes while one of them is in its data stage
//! wakes nobody: whoever leaves the data stage passes it on, at the moment from which on it can be
//! served. A log without threads is served by whoever calls [`crate::Log::upkeep`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::log::Shared;
use crate::writing::full_disk::LOOK_INTERVAL;
use crate::writing::group_commit::Room;

/// The mailbox of the flusher threads.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    request: Mutex<Request>,
    wake: Condvar,
    /// Set while the thread with the clock sleeps without a deadline: the next append starts it.
    idle: AtomicBool,
    /// Set while the disk is full: the thread with the clock looks for room.
    no_room: AtomicBool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Request {
    wanted: Option<Wanted>,
    stop: bool,
    /// A flusher thread is in its data stage.
    writing: bool,
}

/// What a turn is asked to do; the later includes the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Write,
    Sync,
}

/// What a flusher thread is to do next.
enum Task {
    Turn(Wanted),
    LookForRoom,
    Stop,
}

impl Request {
    /// Hands out what is to be done now, if anything is.
    fn take(&mut self) -> Option<Task> {
        if self.stop {
            return Some(Task::Stop);
        }
        let wanted = if self.writing { None } else { self.wanted.take() };
        self.writing |= wanted.is_some();
        wanted.map(Task::Turn)
    }

    const fn is_due(self) -> bool {
        self.stop || (self.wanted.is_some() && !self.writing)
    }
}

impl Flusher {
    pub(crate) fn request_sync(&self) {
        self.request(Wanted::Sync);
    }

    pub(crate) fn request_write(&self) {
        self.request(Wanted::Write);
    }

    pub(crate) fn stop(&self) {
        self.request.lock().stop = true;
        self.wake.notify_all();
    }

    fn request(&self, wanted: Wanted) {
        let due = {
            let mut request = self.request.lock();
            let was_due = request.is_due();
            request.wanted = request.wanted.max(Some(wanted));
            request.is_due() && !was_due
        };
        if due {
            self.wake.notify_one();
        }
    }

    /// Starts the clock that bounds the unsynced window, if it stands still.
    pub(crate) fn note_append(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::AcqRel) {
            drop(self.request.lock());
            // All of them: the one with the clock is among them.
            self.wake.notify_all();
        }
    }

    /// The disk is full, or is no more.
    pub(crate) fn look_for_room(&self, look: bool) {
        if self.no_room.swap(look, Ordering::AcqRel) != look {
            drop(self.request.lock());
            self.wake.notify_all();
        }
    }

    pub(crate) fn looks_for_room(&self) -> bool {
        self.no_room.load(Ordering::Acquire)
    }

    /// A flusher thread has left the data stage.
    fn let_go(&self) {
        let mut request = self.request.lock();
        request.writing = false;
        if request.is_due() {
            self.wake.notify_one();
        }
    }

    /// Body of the flusher thread with the clock.
    pub(crate) fn run(shared: &Shared) {
        let flusher = &shared.flusher;
        let interval = shared.config.sync_interval;
        let mut deadline = Instant::now() + interval;
        loop {
            let task = {
                let mut request = flusher.request.lock();
                loop {
                    if let Some(task) = request.take() {
                        break task;
                    }
                    if flusher.looks_for_room() {
                        let look = deadline.min(Instant::now() + LOOK_INTERVAL);
                        if flusher.wake.wait_until(&mut request, look).timed_out() {
                            break Task::LookForRoom;
                        }
                    } else if flusher.idle.load(Ordering::Acquire) {
                        flusher.wake.wait(&mut request);
                        deadline = Instant::now() + interval;
                    } else if flusher.wake.wait_until(&mut request, deadline).timed_out() {
                        request.writing = true;
                        break request.take().unwrap_or(Task::Turn(Wanted::Sync));
                    }
                }
            };
            let mut wanted = match task {
                Task::Turn(wanted) => wanted,
                Task::LookForRoom => {
                    deadline = Instant::now() + interval;
                    if shared.look_for_room().is_err() {
                        return;
                    }
                    continue;
                }
                Task::Stop => return,
            };
            if Instant::now() >= deadline {
                // Whatever was asked for: requests to write must not put the sync off for ever.
                wanted = Wanted::Sync;
                deadline = Instant::now() + interval;
                // Nothing appended for a whole interval: sleep until the next append. Announced
                // before the turn, so that an append during it starts the clock again.
                let state = shared.state.lock();
                if state.durable == state.end.vlsn {
                    flusher.idle.store(true, Ordering::Release);
                }
            }
            if flusher.serve(shared, wanted).is_err() {
                return;
            }
        }
    }

    /// Body of the second flusher thread, without a clock.
    pub(crate) fn run_second(shared: &Shared) {
        let flusher = &shared.flusher;
        loop {
            let task = {
                let mut request = flusher.request.lock();
                loop {
                    if let Some(task) = request.take() {
                        break task;
                    }
                    flusher.wake.wait(&mut request);
                }
            };
            let Task::Turn(wanted) = task else { return };
            if flusher.serve(shared, wanted).is_err() {
                return;
            }
        }
    }

    /// Whether a write, and whether a sync was asked for.
    pub(crate) fn asked(&self) -> (bool, bool) {
        let wanted = self.request.lock().wanted;
        (wanted == Some(Wanted::Write), wanted == Some(Wanted::Sync))
    }

    /// Does what was asked for, where there is no thread for it.
    pub(crate) fn serve_caller(&self, shared: &Shared) -> Result<()> {
        let wanted = self.request.lock().wanted.take();
        wanted.map_or(Ok(()), |wanted| self.serve(shared, wanted))
    }

    fn serve(&self, shared: &Shared, wanted: Wanted) -> Result<()> {
        let sync = wanted == Wanted::Sync;
        let done = shared.turn(shared.writer.lock(), sync, Room::AsKnown, || self.let_go());
        if let Err(error) = &done {
            tracing::debug!(%error, "a flusher stops");
        }
        done.map(|_| ())
    }
}
