//! Index: from a VLSN to its place, with bounded memory.
//!
//! One [`Sample`] for the first entry of a segment and then for each [`SAMPLE_ENTRIES`] entries or
//! [`SAMPLE_BYTES`] bytes, whichever comes first; the entries in between are found by walking
//! headers from the sample, which takes one read of at most [`SAMPLE_BYTES`] and a header. Unsealed
//! segments keep their samples in memory, sealed ones in their side file.

use noxu_util::{Fingerprint, Vlsn};

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

/// Decides which entries become samples.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sampler {
    samples: Vec<Sample>,
}

impl Sampler {
    /// Takes the next entry, and keeps it as a sample if it is far enough from the last one.
    pub(crate) fn push(&mut self, entry: Sample) {
        let due = self.samples.last().is_none_or(|last| {
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
}

/// The newest sample at or before `vlsn`.
pub(crate) fn sample_at_or_before(samples: &[Sample], vlsn: Vlsn) -> Option<&Sample> {
    let after = samples.partition_point(|sample| sample.vlsn <= vlsn);
    samples[..after].last()
}
