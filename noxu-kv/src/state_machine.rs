//! The store as replication sees it: [`StateMachine`] over the applier.

use std::io::Read;

use noxu_log::{Entry, EntryRun};
use noxu_rep::sync::ranges::RangedState;
use noxu_rep::sync::{Checkpoint, CheckpointSource, LogReader, StateMachine};
use noxu_util::Vlsn;

use crate::apply::{LogEntry, Machine};
use crate::checkpoint::{CheckpointStream, ingest, ingest_of};
use crate::error::KvError;
use crate::table::Mark;

/// Bytes of log that a rollback replays at a time.
const REPLAY_BYTES: usize = 1 << 20;

type Result<T> = noxu_rep::Result<T>;

impl StateMachine for Machine {
    fn applied(&self) -> Vlsn {
        Self::applied(self)
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        let entries = run.entries().map(log_entry).take_while(|entry| entry.vlsn <= through);
        Self::apply(self, entries).map_err(report)
    }

    fn roll_back_to(&self, matchpoint: Vlsn, replay: &dyn LogReader) -> Result<()> {
        Self::roll_back_to(self, matchpoint, |from, sink| {
            // A gap is found by whoever counts what the sink was given.
            let Some(run) = replay.read(from, REPLAY_BYTES)? else { return Ok(()) };
            run.entries().map(log_entry).try_for_each(sink)
        })
        .map_err(report)
    }

    fn clear(&self) -> Result<()> {
        let nothing = Mark::default();
        self.replace(|table| table.ingest()?.seal(nothing)).map_err(report)
    }

    fn checkpointed(&self) -> Vlsn {
        Self::checkpointed(self)
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        Self::checkpoint(self).map_err(report)
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        match Self::open_checkpoint(self) {
            Ok(checkpoint) => Ok(Box::new(checkpoint)),
            Err(cause) => Err(report(cause)),
        }
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        self.replace(|table| ingest(table, vlsn, source)).map_err(report)
    }

    fn prepare_checkpoint(
        &self,
        id: &[u8; 32],
        vlsn: Vlsn,
        source: &mut dyn CheckpointSource,
    ) -> Result<()> {
        self.prepare(id, |table| ingest_of(table, id, vlsn, source)).map_err(report)
    }

    fn discard_prepared(&self) -> Result<()> {
        Self::discard_prepared(self).map_err(report)
    }

    fn install_prepared(&self, id: &[u8; 32]) -> Result<bool> {
        self.adopt_prepared(id).map_err(report)
    }

    fn ranges(&self) -> Option<&dyn RangedState> {
        Some(self)
    }
}

impl Checkpoint for CheckpointStream {
    fn vlsn(&self) -> Vlsn {
        Self::vlsn(self)
    }

    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        Self::read(self, buf, max).map_err(report)
    }
}

pub(crate) fn log_entry(entry: Entry<'_>) -> LogEntry<'_> {
    LogEntry {
        vlsn: entry.header.vlsn,
        term: entry.header.term,
        fingerprint: entry.header.fingerprint,
        kind: entry.header.kind.0,
        is_sync: entry.header.is_sync(),
        is_commit: entry.header.is_commit(),
        body: entry.body,
    }
}

pub(crate) fn report(cause: KvError) -> noxu_rep::RepError {
    match cause {
        KvError::Replication(cause) => cause,
        cause => noxu_rep::RepError::state_machine(cause),
    }
}
