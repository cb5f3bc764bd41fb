//! LatencyHistogram: how long something took, counted in fixed buckets by many threads at once.
//!
//! Buckets grow by a quarter of a power of two, so that a quantile is at most a quarter above the truth
//! (the upper border of its bucket is reported). Recording is one atomic addition.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to a power of two, as a power of two.
const SPLIT_BITS: u32 = 2;
const SPLIT: u64 = 1 << SPLIT_BITS;
/// Enough for 2^40 ns, 18 minutes; whatever takes longer counts as that.
const BUCKETS: usize = (40 - SPLIT_BITS as usize + 1) * SPLIT as usize;

/// Counts durations. See the module.
pub struct LatencyHistogram {
    counts: [AtomicU64; BUCKETS],
}

/// The counts of a [`LatencyHistogram`] at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Latencies {
    counts: Vec<u64>,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl LatencyHistogram {
    /// Counts one duration.
    pub fn record(&self, took: Duration) {
        self.counts[bucket_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Latencies {
        Latencies { counts: self.counts.iter().map(|n| n.load(Ordering::Relaxed)).collect() }
    }
}

impl Latencies {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration that a share `quantile` of all did not exceed, rounded up by at most a quarter; zero
    /// if none was counted. `quantile` is clamped to 0..=1.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let wanted = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return end_of(bucket);
            }
        }
        Duration::ZERO
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, slow] = [0.5, 0.99].map(|quantile| self.quantile(quantile));
        write!(f, "{} times, median {median:?}, 99 % {slow:?}", self.count())
    }
}

fn bucket_of(took: Duration) -> usize {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    if nanos < SPLIT {
        return nanos as usize;
    }
    let power = nanos.ilog2();
    let part = (nanos >> (power - SPLIT_BITS)) - SPLIT;
    let bucket = u64::from(power - SPLIT_BITS + 1) * SPLIT + part;
    (bucket as usize).min(BUCKETS - 1)
}

/// The largest duration of a bucket.
fn end_of(bucket: usize) -> Duration {
    let (group, part) = (bucket as u64 / SPLIT, bucket as u64 % SPLIT);
    Duration::from_nanos(match group {
        0 => part,
        _ => ((SPLIT + part + 1) << (group - 1)) - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_a_bucket_that_ends_at_most_a_quarter_above_it() {
        let mut nanos = 0_u64;
        while nanos < 1 << 40 {
            let bucket = bucket_of(Duration::from_nanos(nanos));
            let end = end_of(bucket).as_nanos() as u64;
            assert!(end >= nanos && end - nanos <= nanos / 4, "{nanos} ns in one ending at {end}");
            assert_eq!(bucket_of(Duration::from_nanos(end)), bucket, "{nanos}");
            assert_eq!(bucket_of(Duration::from_nanos(end + 1)), (bucket + 1).min(BUCKETS - 1));
            nanos += 1 + nanos / 7;
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let histogram = LatencyHistogram::default();
        assert_eq!(histogram.read().quantile(0.5), Duration::ZERO);
        for _ in 0..99 {
            histogram.record(Duration::from_micros(100));
        }
        histogram.record(Duration::from_millis(7));
        let read = histogram.read();
        assert_eq!(read.count(), 100);
        for (quantile, expected) in [(0.0, 100), (0.5, 100), (0.99, 100), (1.0, 7000)] {
            let found = read.quantile(quantile).as_micros() as f64 / f64::from(expected);
            assert!((1.0..1.25).contains(&found), "{quantile}: {found} times the truth");
        }
    }
}
