//! Diverged: two logs with a common start, of which each goes on in a term of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use noxu_log::Log;
use noxu_rep::stream::log_view::LogView;
use noxu_rep::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, SyncupStats, feeder_syncup, replica_syncup,
};
use noxu_util::{Term, Vlsn};

use super::stream::{ChannelPair, local_pair, stream_log};
use super::{Result, TERM, WorkloadError, fill, found_log, new_group, reopen_log};

/// Bytes of an entry's body.
const BODY_BYTES: usize = 100;
/// Entries that both logs hold.
const COMMON: u64 = 50_000;

/// Two logs that part after [`DivergedLogs::matchpoint`].
pub struct DivergedLogs {
    feeder: Log,
    replica: Log,
    replica_dir: PathBuf,
    matchpoint: Vlsn,
}

impl DivergedLogs {
    /// Writes them below `dir`, each with `depth` entries of its own.
    pub fn create(dir: &Path, depth: u64) -> Result<Self> {
        let (feeder_dir, replica_dir) = (dir.join("feeder"), dir.join("replica"));
        let group = new_group();
        let feeder = found_log(&feeder_dir, &group)?;
        let replica = found_log(&replica_dir, &group)?;
        let matchpoint = fill(&feeder, TERM, COMMON, BODY_BYTES)?;
        stream_log(&feeder, &replica, local_pair())?;
        fill(&replica, Term::new(2), depth, BODY_BYTES)?;
        fill(&feeder, Term::new(3), depth, BODY_BYTES)?;
        Ok(Self { feeder, replica, replica_dir, matchpoint })
    }

    /// The last entry that both hold.
    pub fn matchpoint(&self) -> Vlsn {
        self.matchpoint
    }

    /// Closes and opens the replica's log, so that nothing of it is in memory, as after a crash.
    pub fn reopen_replica(&mut self) -> Result<()> {
        self.replica.close()?;
        // The directory's lock goes with the last handle.
        drop(std::mem::replace(&mut self.replica, self.feeder.clone()));
        self.replica = reopen_log(&self.replica_dir)?;
        Ok(())
    }

    /// Searches the matchpoint over `ends`; returns how long the replica took and what it asked.
    pub fn syncup(&self, ends: ChannelPair) -> Result<(Duration, SyncupStats)> {
        let (feeder_end, replica_end) = ends;
        let options = SyncupOptions::default();
        let (outcome, stats, took) = std::thread::scope(|scope| {
            let answers =
                scope.spawn(|| feeder_syncup(&*feeder_end, &LogView::new(&self.feeder), &options));
            let begin = Instant::now();
            let asked = replica_syncup(&*replica_end, &LogView::new(&self.replica), &options);
            let took = begin.elapsed();
            let panicked = |_| Err(noxu_rep::RepError::state_machine("the feeder panicked"));
            answers.join().unwrap_or_else(panicked)?;
            asked.map(|(outcome, stats)| (outcome, stats, took))
        })?;
        match outcome {
            SyncupOutcome::Matchpoint { matchpoint_vlsn, .. }
                if matchpoint_vlsn == self.matchpoint =>
            {
                Ok((took, stats))
            }
            other => Err(WorkloadError::Failed(format!(
                "the syncup came to {other:?}; the logs part after {}",
                self.matchpoint
            ))),
        }
    }
}
