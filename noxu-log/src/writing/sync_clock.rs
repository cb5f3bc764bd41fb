//! SyncClock: how long the syncs of one kind of file took, and since when one is under way.
//!
//! # Invariants
//! - One call at a time: those of segments have the writer, those of the tail mark the marker.

use std::time::Instant;

use noxu_util::{Latencies, LatencyHistogram};
use parking_lot::Mutex;

use crate::error::Result;
use crate::log::Log;

#[derive(Debug, Default)]
pub(crate) struct SyncClock {
    took: LatencyHistogram,
    since: Mutex<Option<Instant>>,
}

/// A call under way; over when it is dropped.
struct Busy<'a> {
    clock: &'a SyncClock,
    begin: Instant,
}

impl SyncClock {
    fn begin(&self) -> Busy<'_> {
        let begin = Instant::now();
        let before = self.since.lock().replace(begin);
        assert!(before.is_none(), "two sync calls at once");
        Busy { clock: self, begin }
    }

    /// Runs a sync and records how long it took, if it succeeded.
    pub(crate) fn time<T>(&self, sync: impl FnOnce() -> Result<T>) -> Result<T> {
        let busy = self.begin();
        let done = sync()?;
        self.took.record(busy.begin.elapsed());
        Ok(done)
    }

    /// Runs a sync that is no group commit's, and is not recorded among theirs.
    pub(crate) fn watch<T>(&self, sync: impl FnOnce() -> T) -> T {
        let _busy = self.begin();
        sync()
    }

    pub(crate) fn read(&self) -> Latencies {
        self.took.read()
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *self.clock.since.lock() = None;
    }
}

impl Log {
    /// When the sync call under way began, of a segment, of the name of a new one, or of the tail
    /// mark: the older one if there are two. `None` while the disk owes no answer.
    pub fn busy_since(&self) -> Option<Instant> {
        let clocks = [&self.shared.data_syncs, &self.shared.mark_syncs];
        clocks.into_iter().filter_map(|clock| *clock.since.lock()).min()
    }
}
