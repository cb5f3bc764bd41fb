//! Bench: measures this build on this machine; three nodes are three processes.

mod cluster;
mod copy;
mod docs;
mod floor;
mod machine;
mod report;
mod restore;
mod work;
mod works;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use self::machine::Machine;
use self::report::{Measured, table};
use self::work::Work;
use super::error::CliError;
use super::out::print_line;
use super::progress::count_bar;
use super::sizes::parse_bytes;
use crate::workload::WorkloadError;
use crate::workload::clients::Clients;

/// Measure commits, appends, streams, catch-up, syncup and restore on this machine
#[derive(Debug, Args)]
#[command(after_help = "Works:
  sync_majority            3 nodes; a commit is on the disks of two, and so is the mark that says so
  sync_majority_lazy       the same with lazy tail marks, for which no commit waits
  nosync_majority          3 nodes; a commit is in the memory of two
  local_sync               1 node; a commit is on its disk
  local_nosync             1 node; a commit is in its memory
  floor_sync_majority, floor_sync_majority_lazy, floor_nosync_majority
                           what those cost without a log: bare processes that write, sync and
                           acknowledge the same bytes, a commit of each client in one round
  append_sync_100B_b<N>    the log alone, N entries of 100 B to a batch, each batch synced
  append_nosync_100B_b<N>  the same from one thread, written in the background
  stream_tcp_100B, stream_tcp_1KiB
                           one log to another over loopback TCP, from files, synced there
  catchup                  a replica that was away, from opening it: entries/s to its disk, and
                           single-put transactions/s applied to its state
  syncup_<N>               the search for the matchpoint of logs that differ in N entries
  restore_master           a replica without files, from asking for a restore until it follows again:
                           the whole log from the master alone, and what a bare copy of the same
                           files takes; then the parts of that time, and how long the state lags
  restore_follower         the same from a follower, the master last
  restore_followers        the same from two at once
  restore_checkpoint       from one, half of the log and a checkpoint of the state

Every node is a process with real files and loopback TCP; the load runs in the master's process, in
a closed loop with random 16-byte keys and 100-byte values. c1, c8 and c64 are that many blocked
threads, h1024 is one thread with 1,024 commits in flight.

Examples:
  noxu bench
  noxu bench --plain --secs 1 sync_majority syncup_50000
  noxu bench --write-docs                          # in the repository: docs/benchmarks.md")]
pub(super) struct Bench {
    /// What to measure; everything if none is named
    #[arg(value_name = "WORK")]
    works: Vec<Work>,
    /// Measure each figure so many seconds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    secs: u32,
    /// Restore so many bytes of log
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    restore_size: u64,
    /// Measure commits only with these clients: cN for N blocked threads, hN for N commits in flight
    #[arg(long, value_name = "CLIENTS", value_delimiter = ',', conflicts_with = "write_docs")]
    clients: Vec<Clients>,
    /// Print one line per figure: noxu <work>_<clients>_<ops|p50|p99|rate> <value> <unit>
    #[arg(long, conflicts_with = "write_docs")]
    plain: bool,
    /// Write docs/benchmarks.md from a run of everything
    #[arg(long, conflicts_with = "works")]
    write_docs: bool,
    /// Keep the files of the run below this directory [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    replica: cluster::ReplicaArguments,
    #[command(flatten)]
    floor: floor::FloorArguments,
}

/// What every work is told.
pub(super) struct Setting {
    /// How long a figure is measured.
    time: Duration,
    /// How long the load runs before that.
    warm_up: Duration,
    /// Where the files lie.
    dir: PathBuf,
    /// Who commits.
    clients: Vec<Clients>,
    /// Bytes of the log that is restored.
    restore_bytes: u64,
}

/// A fresh log fills its first segment and a spare one with zeros while it is written: long enough
/// for that.
const WARM_UP: Duration = Duration::from_secs(2);

impl Setting {
    fn new(bench: &Bench) -> Result<Self, CliError> {
        let dir = bench.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = dir.canonicalize().map_err(CliError::file(dir))?;
        let time = Duration::from_secs(u64::from(bench.secs));
        let clients =
            if bench.clients.is_empty() { Clients::ALL.to_vec() } else { bench.clients.clone() };
        Ok(Self { time, warm_up: WARM_UP, dir, clients, restore_bytes: bench.restore_size })
    }

    fn temporary_dir(&self) -> Result<tempfile::TempDir, CliError> {
        tempfile::Builder::new()
            .prefix("noxu-bench-")
            .tempdir_in(&self.dir)
            .map_err(CliError::file(&self.dir))
    }
}

impl From<WorkloadError> for CliError {
    fn from(error: WorkloadError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Bench {
    pub(super) fn run(self) -> Result<(), CliError> {
        if self.replica.is_asked_for() {
            return self.replica.run();
        }
        if let Some(served) = self.floor.run() {
            return served;
        }
        let setting = Setting::new(&self)?;
        if self.plain {
            return self.run_works(&setting, |measured| {
                let mut out = std::io::stdout().lock();
                write!(out, "{}", measured.plain())?;
                Ok(out.flush()?)
            });
        }
        let path = PathBuf::from("docs/benchmarks.md");
        if self.write_docs && !path.parent().is_some_and(std::path::Path::is_dir) {
            return Err(CliError::Usage(
                "no directory docs here: --write-docs runs in the repository".to_owned(),
            ));
        }
        let machine = Machine::describe(&setting)?;
        let works = self.works();
        let bar = count_bar("starting", works.len() as u64);
        let mut all: Vec<Measured> = Vec::new();
        for work in &works {
            bar.set_message(work.to_string());
            bar.tick();
            work.measure(&setting, &mut |measured| {
                all.push(measured);
                Ok(())
            })?;
            bar.inc(1);
            if !std::io::stderr().is_terminal() {
                eprintln!("{work}: done");
            }
        }
        bar.finish_and_clear();
        if self.write_docs {
            let text = docs::page(&machine, &works, &all, self.secs);
            std::fs::write(&path, text).map_err(CliError::file(&path))?;
            print_line!("written: {}", path.display())?;
        } else {
            print_line!("{machine}\n{}", table(&all))?;
        }
        Ok(())
    }

    fn works(&self) -> Vec<Work> {
        if self.works.is_empty() { Work::all() } else { self.works.clone() }
    }

    fn run_works(
        &self,
        setting: &Setting,
        mut report: impl FnMut(Measured) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        self.works().iter().try_for_each(|work| work.measure(setting, &mut report))
    }
}
