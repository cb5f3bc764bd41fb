//! Contender: a log, or a loop that does what a log at least has to do.

/// A log that threads append to.
pub(crate) trait Contender: Sync {
    /// One of the threads that append, from 0. Called anew for each slice.
    fn worker(&self, thread: usize, batch: usize) -> Box<dyn Worker + '_>;

    /// Finishes what goes on in the background and drops what was appended, outside of the measured
    /// time and of everybody else's.
    fn settle(&self);

    /// How long one thread may go on, if not for the given time: when there is nothing more to do.
    fn threads(&self, wanted: usize) -> usize {
        wanted
    }
}

/// One thread's part in it.
pub(crate) trait Worker {
    /// Appends one batch, as the contender was told to; returns its entries, 0 when there is
    /// nothing more to do.
    fn append(&mut self) -> usize;
}

/// Bodies for a batch: random, so that nothing can be compressed or predicted.
pub(crate) fn bodies(batch: usize) -> Vec<Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(batch as u64);
    let body = |_| std::iter::repeat_with(|| rng.u8(..)).take(crate::BODY_BYTES).collect();
    (0..batch).map(body).collect()
}
