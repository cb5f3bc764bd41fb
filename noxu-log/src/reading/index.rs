//! Index: from a VLSN to its place, with bounded memory.
//!
//! One [`Sample`] for the first entry of a segment and then for each [`SAMPLE_ENTRIES`] entries or
//! [`SAMPLE_BYTES`] bytes, whichever comes first; the entries in between are found by walking
//! headers from the sample, which takes one read of at most [`SAMPLE_BYTES`] and a header. Unsealed
//! segments keep their samples in memory, sealed ones in their side file.

use noxu_util::{Fingerprint, Term, Vlsn};

use crate::log::{Log, Segment};

/// Most entries between two samples.
pub(crate) const SAMPLE_ENTRIES: u32 = 64;
/// Bytes after which the next entry gets a sample.
pub(crate) const SAMPLE_BYTES: u32 = 16 << 10;

/// The place of one entry, and what lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The entry.
    pub(crate) vlsn: Vlsn,
    /// Its offset in the segment.
    pub(crate) offset: u32,
    /// Fingerprint before it.
    pub(crate) before: Fingerprint,
    /// Newest sync entry before it; NULL if there is none.
    pub(crate) sync_before: Vlsn,
}

/// Memory that the index of an open log takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexMemory {
    /// Samples of unsealed segments: 32 for each 64 entries or 16 KiB, and room to grow.
    pub sample_bytes: usize,
    /// Fixed facts of each segment, sealed or not.
    pub segment_bytes: usize,
    /// The term table.
    pub term_bytes: usize,
    /// Side files of sealed segments that were looked into last: at most 16 MiB.
    pub side_bytes: usize,
}

impl IndexMemory {
    /// All of it.
    pub const fn total_bytes(&self) -> usize {
        self.sample_bytes + self.segment_bytes + self.term_bytes + self.side_bytes
    }
}

impl Log {
    /// Memory that the index takes at this moment.
    pub fn index_memory(&self) -> IndexMemory {
        let state = self.shared.state.lock();
        let samples = state.segments.iter().map(|segment| match segment {
            Segment::Open(builder) => builder.sample_memory_bytes(),
            Segment::Sealed(_) => 0,
        });
        IndexMemory {
            sample_bytes: samples.sum(),
            segment_bytes: state.segments.capacity() * size_of::<Segment>(),
            term_bytes: state.terms.capacity() * size_of::<(Term, Vlsn)>(),
            side_bytes: self.shared.sides.memory_bytes(),
        }
    }
}

/// Decides which entries become samples.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sampler {
    samples: Vec<Sample>,
    /// The next entry becomes a sample, however near it is.
    due: bool,
}

impl Sampler {
    pub(crate) const fn from_samples(samples: Vec<Sample>) -> Self {
        Self { samples, due: false }
    }

    /// Makes the next entry a sample: nobody can walk to it from the one before.
    pub(crate) const fn sample_next(&mut self) {
        self.due = true;
    }

    /// Sets the newest sync entry before `first`, the segment's first entry.
    pub(crate) fn inherit(&mut self, first: Vlsn, last_sync: Vlsn) {
        for sample in self.samples.iter_mut().take_while(|sample| sample.sync_before < first) {
            sample.sync_before = last_sync;
        }
    }

    /// Takes the next entry, and keeps it as a sample if it is far enough from the last one.
    pub(crate) fn push(&mut self, entry: Sample) {
        let due = std::mem::take(&mut self.due)
            || self.samples.last().is_none_or(|last| {
                entry.vlsn.since(last.vlsn) >= u64::from(SAMPLE_ENTRIES)
                    || entry.offset - last.offset >= SAMPLE_BYTES
            });
        if due {
            self.samples.push(entry);
        }
    }

    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.samples.capacity() * size_of::<Sample>()
    }
}

/// The newest sample at or before `vlsn`.
pub(crate) fn sample_at_or_before(samples: &[Sample], vlsn: Vlsn) -> Option<&Sample> {
    let after = samples.partition_point(|sample| sample.vlsn <= vlsn);
    samples[..after].last()
}
