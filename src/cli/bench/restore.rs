//! Restore: a replica without files, from asking for a restore until it follows again, beside a bare copy
//! of the same files in the same run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use noxu_log::segment::name::{log_dir, segment_name};
use noxu_rep::Node;
use noxu_util::Vlsn;

use super::Setting;
use super::cluster::{Cluster, Tuning};
use super::copy::{Piece, Syncing, copy, files_below};
use super::report::{Figure, Measured};
use super::work::{Restored, Work};
use super::works::remove;
use crate::cli::error::CliError;
use crate::workload::clients;

/// Restores that are measured at least: one alone says what the disk did in that second.
const LEAST_ROUNDS: usize = 5;

/// Length of the values that fill the log.
const VALUE_BYTES: usize = 64 << 10;

/// How long a replica's restore took, and what came of it: its answer to `restore`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Bytes that came.
    pub(super) bytes: u64,
    /// Of these, of blocks and checkpoint, those that the master gave.
    pub(super) of_master: u64,
    /// From the beginning of its session until it was known what there is.
    pub(super) manifest: Duration,
    /// Until all segments and the checkpoint were on disk.
    pub(super) base: Duration,
    /// Until all of it was committed.
    pub(super) tail: Duration,
    /// Until log and state were installed.
    pub(super) install: Duration,
    /// From asking for the restore until its session began, and from the end of it until a stream was
    /// open: finding the master, twice.
    pub(super) find: Duration,
    /// From then until the state had all that the log had.
    pub(super) apply: Duration,
}

impl Report {
    const FIELDS: usize = 8;

    fn times(&self) -> [Duration; 6] {
        let Self { manifest, base, tail, install, find, apply, .. } = *self;
        [manifest, base, tail, install, find, apply]
    }

    /// As one line.
    pub(super) fn encode(&self) -> String {
        let times = self.times().map(|time| time.as_micros().to_string());
        format!("{} {} {}", self.bytes, self.of_master, times.join(" "))
    }

    /// From such a line.
    pub(super) fn decode(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let numbers: [u64; Self::FIELDS] = numbers.try_into().ok()?;
        let [bytes, of_master, times @ ..] = numbers;
        let [manifest, base, tail, install, find, apply] = times.map(Duration::from_micros);
        Some(Self { bytes, of_master, manifest, base, tail, install, find, apply })
    }

    /// From asking for it until the node follows again.
    fn total(&self) -> Duration {
        let [parts @ .., _apply] = self.times();
        parts.iter().sum()
    }
}

/// Measures it over and over, as long as a figure is to be measured, and some times at least.
pub(super) fn measure(
    work: Work,
    restored: Restored,
    setting: &Setting,
) -> Result<Measured, CliError> {
    let (giver, sources) = match restored {
        Restored::Master => ("n1", 0),
        Restored::Follower | Restored::Checkpoint => ("n2", 1),
        Restored::Followers => ("n2", 2),
    };
    let nodes = 1 + sources.max(1) + 1;
    let mut cluster =
        Cluster::start(setting, nodes, Tuning { keep_all: true, ..Tuning::default() })?;
    cluster.kill_last()?;
    let node = cluster.store.node().clone();
    let before = node.log().positions().last;
    let values = setting.restore_bytes.div_ceil(VALUE_BYTES as u64);
    clients::load_values(&cluster.store, values, VALUE_BYTES)?;
    let last = node.log().positions().last;
    if !node.wait_durable(last, Duration::from_mins(1)) {
        return Err(CliError::Failed(format!("{last} is not durable on a majority")));
    }
    // All of it finished: what is restored is segments, and on both nodes the same.
    node.log().seal_through(last)?;
    cluster.settle(last)?;
    if restored == Restored::Checkpoint {
        let middle = Vlsn::new(i64::midpoint(before.sequence(), last.sequence()));
        if node.drop_front(middle)?.is_null() {
            return Err(CliError::Failed("the master's log lost no segment".to_owned()));
        }
    }
    let giver = cluster.dir().join(giver);
    let mut pieces = segments_of(&node, &giver);
    if restored == Restored::Checkpoint {
        pieces.extend(files_below(&giver.join("state"))?);
    }
    let mut sum = Report::default();
    let mut rounds = Vec::new();
    let target = cluster.dir().join("copy");
    while sum.total() < setting.time || rounds.len() < LEAST_ROUNDS {
        // The first one pays for memory that the machine has to fetch: nobody's time is taken.
        copy(&pieces, &target, Syncing::AtEnd)?;
        remove(&target)?;
        let at_end = measure_copy(&pieces, &target, Syncing::AtEnd)?;
        let beside = measure_copy(&pieces, &target, Syncing::Beside)?;
        rustix::fs::sync();
        let restored = cluster.restore(sources)?;
        sum.add(&restored);
        let restored = Moved { bytes: restored.bytes, time: restored.total() };
        rounds.push(Round { restored, at_end, beside });
    }
    Ok(Measured::alone(work, figures(&sum, &rounds)))
}

/// Copies, when what others left to be written is on the disk.
fn measure_copy(pieces: &[Piece], target: &Path, syncing: Syncing) -> Result<Moved, CliError> {
    rustix::fs::sync();
    let (bytes, time) = copy(pieces, target, syncing)?;
    remove(target)?;
    Ok(Moved { bytes, time })
}

/// What was brought from one place to another.
#[derive(Debug, Clone, Copy)]
struct Moved {
    bytes: u64,
    time: Duration,
}

impl Moved {
    /// Bytes a second.
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64()
    }
}

/// A restore, and the copies right before it.
#[derive(Debug, Clone, Copy)]
struct Round {
    restored: Moved,
    at_end: Moved,
    beside: Moved,
}

/// The one in the middle.
fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.of_master += other.of_master;
        self.manifest += other.manifest;
        self.base += other.base;
        self.tail += other.tail;
        self.install += other.install;
        self.find += other.find;
        self.apply += other.apply;
    }
}

/// Rates and ratios, the middle one of each, as a disk has slow seconds; and how long each part of a
/// restore took.
fn figures(sum: &Report, rounds: &[Round]) -> Vec<Figure> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / rounds.len() as f64;
    let rate = |of: fn(&Round) -> Moved| median(rounds, |round| of(round).rate()) / 1e6;
    let ratio =
        |to: fn(&Round) -> Moved| median(rounds, |round| round.restored.rate() / to(round).rate());
    vec![
        Figure::new("rate", rate(|round| round.restored), "MB/s"),
        Figure::new("copy_rate", rate(|round| round.at_end), "MB/s"),
        Figure::new("ratio", ratio(|round| round.at_end), "x"),
        Figure::new("piped_copy_rate", rate(|round| round.beside), "MB/s"),
        Figure::new("piped_ratio", ratio(|round| round.beside), "x"),
        Figure::new("from_master", sum.of_master as f64 * 100.0 / sum.bytes.max(1) as f64, "%"),
        Figure::new("manifest", ms(sum.manifest), "ms"),
        Figure::new("base", ms(sum.base), "ms"),
        Figure::new("tail", ms(sum.tail), "ms"),
        Figure::new("install", ms(sum.install), "ms"),
        Figure::new("find", ms(sum.find), "ms"),
        Figure::new("apply", ms(sum.apply), "ms"),
    ]
}

/// The finished segments of `node`'s log, as they lie below `dir`.
fn segments_of(node: &Node, dir: &Path) -> Vec<Piece> {
    let log: PathBuf = log_dir(dir);
    let sealed = node.log().sealed_segments().into_iter();
    sealed
        .map(|sealed| Piece {
            path: log.join(segment_name(sealed.number)),
            bytes: u64::from(sealed.bytes),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written_and_the_rate_is_over_all_but_applying() {
        let ms = Duration::from_millis;
        let report = Report {
            bytes: 50_000_000,
            of_master: 5_000_000,
            manifest: ms(3),
            base: ms(300),
            tail: ms(4),
            install: ms(150),
            find: ms(43),
            apply: ms(7000),
        };
        assert_eq!(Report::decode(&report.encode()), Some(report));
        assert_eq!(Report::decode("1 2 3"), None);
        let moved = |bytes, time| Moved { bytes, time: ms(time) };
        let round = |time| Round {
            restored: moved(50_000_000, time),
            at_end: moved(50_000_000, 250),
            beside: moved(100_000_000, 250),
        };
        // One of them met a slow second of the disk.
        let figures = figures(&report, &[round(500), round(5000), round(490)]);
        let figure = |metric| figures.iter().find(|f| f.metric == metric).unwrap().value;
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-6;
        assert!(near(figure("rate"), 100.0) && near(figure("ratio"), 0.5), "{figures:?}");
        assert!(near(figure("piped_ratio"), 0.25), "{figures:?}");
        assert!(
            near(figure("from_master"), 10.0) && near(figure("apply"), 7000.0 / 3.0),
            "{figures:?}"
        );
    }
}
