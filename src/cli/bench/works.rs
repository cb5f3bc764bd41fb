//! Works: how each is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use noxu_log::{EntryFlags, Log, NewEntry};
use noxu_rep::Durability;

use super::Setting;
use super::cluster::{Cluster, Tuning};
use super::floor;
use super::report::{Figure, Measured};
use super::restore;
use super::work::{Commits, StreamSize, Work};
use crate::cli::error::CliError;
use crate::workload::clients::{self, Clients, Latencies, run_threads};
use crate::workload::diverged::DivergedLogs;
use crate::workload::stream::{stream_log, tcp_pair};
use crate::workload::{KIND, TERM, VALUE_BYTES, fill, found_log, new_group, reopen_log};

type Report<'a> = &'a mut dyn FnMut(Measured) -> Result<(), CliError>;

impl Work {
    /// Measures it and reports each group of figures as it is known.
    pub(super) fn measure(self, setting: &Setting, report: Report<'_>) -> Result<(), CliError> {
        match self {
            Self::Commits(commits) => measure_commits(self, commits, setting, report),
            Self::Floor(commits) => setting
                .clients
                .iter()
                .try_for_each(|clients| report(floor::measure(self, commits, *clients, setting)?)),
            Self::Append { sync: true, batch } => measure_synced(self, batch, setting, report),
            Self::Append { sync: false, batch } => report(measure_unsynced(self, batch, setting)?),
            Self::Stream(size) => report(measure_stream(self, size, setting)?),
            Self::Catchup => report(measure_catchup(setting)?),
            Self::Syncup { depth } => report(measure_syncup(self, depth, setting)?),
            Self::Restore(restored) => report(restore::measure(self, restored, setting)?),
        }
    }
}

fn measure_commits(
    work: Work,
    commits: Commits,
    setting: &Setting,
    report: Report<'_>,
) -> Result<(), CliError> {
    for &clients in &setting.clients {
        let cluster =
            Cluster::start(setting, commits.nodes(), Tuning::of_marks(commits.tail_mark()))?;
        let durability = commits.durability();
        let store = &cluster.store;
        let latencies = clients::run(store, clients, durability, setting.warm_up, setting.time)?;
        report(Measured::commits(work, clients, &latencies, "commits/s", 1))?;
    }
    Ok(())
}

fn measure_synced(
    work: Work,
    batch: usize,
    setting: &Setting,
    report: Report<'_>,
) -> Result<(), CliError> {
    for threads in [1, 8, 64] {
        let dir = setting.temporary_dir()?;
        let log = found_log(dir.path(), &new_group())?;
        let body = [7; VALUE_BYTES];
        let append = |(): &mut ()| {
            let appended = log.append(TERM, &batch_of(&body, batch))?;
            Ok(log.wait_durable(appended.last)?)
        };
        let latencies = run_threads(threads, setting.warm_up, setting.time, || (), append)?;
        let clients = Clients::Threads(threads);
        report(Measured::commits(work, clients, &latencies, "entries/s", batch))?;
    }
    Ok(())
}

/// Bytes after which the log's front is dropped, while the clock stands still.
const KEEP_BYTES: u64 = 1 << 30;
/// Entries between two looks at the clock, which costs as much as an append.
const LOOK_EVERY: u64 = 1024;

fn measure_unsynced(work: Work, batch: usize, setting: &Setting) -> Result<Measured, CliError> {
    let dir = setting.temporary_dir()?;
    let log = found_log(dir.path(), &new_group())?;
    let body = [7; VALUE_BYTES];
    let mut measured = (0, Duration::ZERO);
    // The first round warms up.
    for round in 0.. {
        let mut entries = 0;
        let begin = Instant::now();
        let time =
            if round == 0 { setting.warm_up } else { setting.time.saturating_sub(measured.1) };
        while begin.elapsed() < time && entries * (VALUE_BYTES as u64 + 32) < KEEP_BYTES {
            for _ in 0..LOOK_EVERY.div_ceil(batch as u64) {
                log.append(TERM, &batch_of(&body, batch))?;
                entries += batch as u64;
            }
        }
        if round > 0 {
            measured = (measured.0 + entries, measured.1 + begin.elapsed());
        }
        if measured.1 >= setting.time {
            break;
        }
        empty(&log)?;
    }
    let rate = measured.0 as f64 / measured.1.as_secs_f64();
    let figures = vec![Figure::new("ops", rate, "entries/s")];
    Ok(Measured { work, clients: Some(Clients::Threads(1)), figures })
}

fn empty(log: &Log) -> Result<(), CliError> {
    let last = log.sync_now()?;
    log.seal_through(last)?;
    log.drop_front(last, |_| Vec::new())?;
    Ok(())
}

fn batch_of(body: &[u8], batch: usize) -> Vec<NewEntry<'_>> {
    (0..batch).map(|_| NewEntry::new(KIND, EntryFlags::COMMIT, body)).collect()
}

/// Bytes that a stream ships, much more than the log's tail in memory.
const STREAM_BYTES: u64 = 512 << 20;

fn measure_stream(work: Work, size: StreamSize, setting: &Setting) -> Result<Measured, CliError> {
    let dir = setting.temporary_dir()?;
    let body_bytes = size.body_bytes();
    let group = new_group();
    let count = STREAM_BYTES / (body_bytes as u64 + 32);
    let source_dir = dir.path().join("source");
    let source = found_log(&source_dir, &group)?;
    fill(&source, TERM, count, body_bytes)?;
    source.close()?;
    drop(source);
    let source = reopen_log(&source_dir)?;
    let (mut rounds, mut time) = (0, Duration::ZERO);
    while time < setting.time {
        let target_dir = dir.path().join("target");
        let target = found_log(&target_dir, &group)?;
        time += stream_log(&source, &target, tcp_pair()?)?;
        rounds += 1;
        target.close()?;
        drop(target);
        remove(&target_dir)?;
    }
    let entries = (rounds * count) as f64 / time.as_secs_f64();
    let figure = match size {
        StreamSize::Bytes100 => Figure::new("rate", entries, "entries/s"),
        StreamSize::KiB1 => Figure::new("rate", entries * body_bytes as f64 / 1e6, "MB/s"),
    };
    Ok(Measured::alone(work, vec![figure]))
}

pub(super) fn remove(dir: &Path) -> Result<(), CliError> {
    std::fs::remove_dir_all(dir).map_err(CliError::file(dir))
}

/// Transactions that the replica misses, for each second of the measurement.
const MISSED_PER_SECOND: u64 = 500_000;
const MOST_MISSED: u64 = 3_000_000;

fn measure_catchup(setting: &Setting) -> Result<Measured, CliError> {
    let mut cluster = Cluster::start(setting, 3, Tuning::default())?;
    cluster.kill_last()?;
    let before = cluster.store.node().log().positions().last;
    let missed = (MISSED_PER_SECOND * setting.time.as_secs()).min(MOST_MISSED);
    clients::load(&cluster.store, missed, 1024, Durability::NO_SYNC_MAJORITY)?;
    let last = cluster.store.node().log().positions().last;
    if !cluster.store.node().wait_durable(last, Duration::from_mins(1)) {
        return Err(CliError::Failed(format!("{last} is not durable on a majority")));
    }
    let (durable, applied) = cluster.catch_up(last)?;
    let entries = last.since(before) as f64;
    Ok(Measured::alone(
        Work::Catchup,
        vec![
            Figure::new("rate", entries / durable.as_secs_f64(), "entries/s"),
            Figure::new("applied_rate", entries / applied.as_secs_f64(), "txn/s"),
        ],
    ))
}

/// Most searches of one depth: enough for a p99.
const MOST_SYNCUPS: u64 = 200;

fn measure_syncup(work: Work, depth: u64, setting: &Setting) -> Result<Measured, CliError> {
    let dir = setting.temporary_dir()?;
    let mut logs = DivergedLogs::create(dir.path(), depth)?;
    let mut latencies = Latencies::over(setting.time);
    let mut round_trips = 0;
    let begin = Instant::now();
    while latencies.count() < MOST_SYNCUPS && begin.elapsed() < setting.time {
        logs.reopen_replica()?;
        let (took, stats) = logs.syncup(tcp_pair()?)?;
        latencies.record(took);
        round_trips = round_trips.max(stats.round_trips);
    }
    Ok(Measured::alone(
        work,
        vec![
            Figure::new("p50", latencies.micros(0.5) / 1e3, "ms"),
            Figure::new("p99", latencies.micros(0.99) / 1e3, "ms"),
            Figure::new("round_trips", f64::from(round_trips), "trips"),
        ],
    ))
}
