//! Reader: follows the log's end, and is woken for what it waits for and nothing else.
//!
//! Each reader sleeps on a condition of its own and says beforehand what is to end its sleep, so an
//! append pays for a wake-up only where somebody waits for that append.

use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_util::Vlsn;
use parking_lot::Condvar;

use crate::error::Result;
use crate::log::{Log, Shared};

/// What a [`Reader::wait`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The log ends beyond this VLSN.
    Beyond(Vlsn),
    /// That, or a cue: [`Reader::cue`], or the log's own, when what was appended is about to be
    /// written. For a reader that would rather take a batch than one entry after another.
    CueOrBeyond(Vlsn),
}

impl Until {
    const fn beyond(self) -> Vlsn {
        match self {
            Self::Beyond(vlsn) | Self::CueOrBeyond(vlsn) => vlsn,
        }
    }
}

/// A moment in a reader's life, for [`Reader::wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The log's last VLSN then.
    pub last: Vlsn,
    wakes: u64,
    cues: u64,
}

/// One who follows the log's end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    id: u64,
    woken: Arc<Condvar>,
}

/// The readers of a log, as part of its state.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    places: Vec<Place>,
    next_id: u64,
}

#[derive(Debug)]
struct Place {
    id: u64,
    woken: Arc<Condvar>,
    asleep: Option<Until>,
    wakes: u64,
    cues: u64,
}

impl Readers {
    /// The log ends at `last` now.
    pub(crate) fn handle_appended(&mut self, last: Vlsn) {
        for place in &mut self.places {
            if place.asleep.is_some_and(|until| last > until.beyond()) {
                place.rouse();
            }
        }
    }

    /// What was appended is about to be written.
    pub(crate) fn handle_turn(&mut self) {
        self.places.iter_mut().for_each(Place::cue);
    }

    /// Everybody is to look again.
    pub(crate) fn wake_all(&mut self) {
        self.places.iter_mut().for_each(Place::wake);
    }

    fn place(&mut self, id: u64) -> &mut Place {
        let place = self.places.iter_mut().find(|place| place.id == id);
        place.expect("a reader has its place until it is dropped")
    }
}

impl Place {
    fn wake(&mut self) {
        self.wakes += 1;
        self.rouse();
    }

    fn cue(&mut self) {
        self.cues += 1;
        if matches!(self.asleep, Some(Until::CueOrBeyond(_))) {
            self.rouse();
        }
    }

    fn rouse(&mut self) {
        if self.asleep.take().is_some() {
            // To all, though there is one: it is moved to the lock's queue, instead of waking only
            // to find the lock held.
            self.woken.notify_all();
        }
    }
}

impl Log {
    /// Somebody who follows the log's end.
    pub fn reader(&self) -> Reader {
        let woken = Arc::new(Condvar::new());
        let mut state = self.shared.state.lock();
        let id = state.readers.next_id;
        state.readers.next_id += 1;
        let place = Place { id, woken: Arc::clone(&woken), asleep: None, wakes: 0, cues: 0 };
        state.readers.places.push(place);
        Reader { shared: Arc::clone(&self.shared), id, woken }
    }

    /// Makes everybody in [`Reader::wait`] return.
    pub fn wake_readers(&self) {
        self.shared.state.lock().readers.wake_all();
    }
}

impl Reader {
    /// The present moment.
    pub fn moment(&self) -> Moment {
        let mut state = self.shared.state.lock();
        let last = state.end.vlsn;
        let place = state.readers.place(self.id);
        Moment { last, wakes: place.wakes, cues: place.cues }
    }

    /// Blocks until what `until` names has come to pass since `since`, until [`Reader::wake`] or
    /// [`Log::wake_readers`] was called since then, or until the time is up.
    ///
    /// # Errors
    /// `Poisoned` or `Closed` once the log has stopped.
    pub fn wait(&self, until: Until, since: Moment, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state.lock();
        loop {
            self.shared.check_running()?;
            let beyond = state.end.vlsn > until.beyond();
            let place = state.readers.place(self.id);
            let cued = matches!(until, Until::CueOrBeyond(_)) && place.cues != since.cues;
            if beyond || cued || place.wakes != since.wakes {
                return Ok(());
            }
            place.asleep = Some(until);
            let waited = self.woken.wait_until(&mut state, deadline);
            state.readers.place(self.id).asleep = None;
            if waited.timed_out() {
                return Ok(());
            }
        }
    }

    /// Ends this reader's wait for a cue.
    pub fn cue(&self) {
        self.shared.state.lock().readers.place(self.id).cue();
    }

    /// Makes this reader's [`Reader::wait`] return.
    pub fn wake(&self) {
        self.shared.state.lock().readers.place(self.id).wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.state.lock().readers.places.retain(|place| place.id != self.id);
    }
}
