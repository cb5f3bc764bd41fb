//! Sync: the traits through which replication reaches a storage engine. Blocking, object safe.
//!
//! An engine reports its own failures as [`RepError::state_machine`](crate::RepError::state_machine);
//! the node then stops loudly, because it can no longer say what its state is.

mod coming;
pub mod method;
pub mod ranges;
pub mod stream;

use std::io::{self, Read};

use noxu_log::{EntryRun, Log};
use noxu_util::{NULL_VLSN, Vlsn};

use self::ranges::RangedState;
use crate::error::Result;

/// What Noxu replicates for.
pub trait StateMachine: Send + Sync {
    /// Everything through it is applied; NULL for nothing. After an open, replay starts after it.
    fn applied(&self) -> Vlsn;

    /// Applies the entries of `run` at or below `through`, in VLSN order. Called by one thread at a
    /// time, with runs that continue one another; a run may begin or end inside a transaction.
    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()>;

    /// Forgets everything above `matchpoint`, reading what it needs anew from `replay`. Snapshots
    /// above it end. Afterwards [`StateMachine::applied`] is at or below `matchpoint`.
    fn roll_back_to(&self, matchpoint: Vlsn, replay: &dyn LogReader) -> Result<()>;

    /// Forgets everything, what a checkpoint made durable too: a restore has replaced the log by one that
    /// begins with its first entry, or has brought a state that cannot be installed.
    fn clear(&self) -> Result<()> {
        self.roll_back_to(NULL_VLSN, &NoLog)
    }

    /// Everything through it is in the last checkpoint: after an open replay starts after it or
    /// later, so that the node's own log may be dropped through it. Never moves back but for an
    /// installed checkpoint. NULL, which has the log kept, until [`StateMachine::checkpoint`] or
    /// [`NodeContext::note_checkpoint`](crate::NodeContext::note_checkpoint) says more.
    fn checkpointed(&self) -> Vlsn {
        NULL_VLSN
    }

    /// Makes the state durable; returns the VLSN through which it is. Also called by a thread of the
    /// node when only a checkpoint is missing for the log to be dropped as configured.
    fn checkpoint(&self) -> Result<Vlsn>;

    /// A consistent snapshot of the state, for a node that restores.
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>>;

    /// Reads the snapshot in `source`, taken at `vlsn`, ahead of its installation, while the present state
    /// is in use; `id` stands for it. What comes of it may be forgotten at any time, by a crash or for
    /// another one, and is of no use unless it is whole. Default: nothing is read.
    ///
    /// It spares a node the time in which it would neither hold what its master writes nor be fed it:
    /// where that is long, its place in the master's log may be lost, and all be in vain. Called anew for
    /// the same snapshot after a crash: a machine that has kept a [`CheckpointSource::place`] with what came
    /// before it goes on from there, and a node that is killed every few seconds still ends.
    fn prepare_checkpoint(
        &self,
        id: &[u8; 32],
        vlsn: Vlsn,
        source: &mut dyn CheckpointSource,
    ) -> Result<()> {
        let _ = (id, vlsn, source);
        Ok(())
    }

    /// Replaces all state by snapshot `id`, if it was prepared and still is. Says whether; if not,
    /// [`StateMachine::install_checkpoint`] is called.
    fn install_prepared(&self, id: &[u8; 32]) -> Result<bool> {
        let _ = id;
        Ok(false)
    }

    /// What was prepared, whole or in part, is of no use any more. Called when a node starts that restores
    /// nothing. Default: nothing is kept.
    fn discard_prepared(&self) -> Result<()> {
        Ok(())
    }

    /// Replaces all state by the snapshot in `source`, taken at `vlsn`.
    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()>;

    /// Its state as pairs of keys and values, if it is that: then it can be given by ranges of keys
    /// ([`ranges::RangeSync`]).
    fn ranges(&self) -> Option<&dyn RangedState> {
        None
    }

    /// Itself, for a method of the application's own that has to know which state machine it is
    /// ([`method::StateSync`]).
    fn as_any(&self) -> Option<&dyn std::any::Any> {
        None
    }
}

/// A snapshot of a state machine, read from the front.
pub trait Checkpoint: Send {
    /// Everything through it is in the snapshot, nothing above it.
    fn vlsn(&self) -> Vlsn;

    /// Appends at most `max` bytes to `buf`. False once the snapshot has ended.
    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool>;
}

/// A snapshot of a state machine on its way in: bytes from the front on, or from a place further on.
pub trait CheckpointSource: Read {
    /// Stands for the next byte, in this source and in any later one of the same snapshot; `None` if nobody
    /// can go on there.
    fn place(&self) -> Option<Vec<u8>>;

    /// Goes on at a place that an earlier source of the same snapshot gave, instead of its front. False if
    /// that cannot be; then nothing was read. Called before anything is read.
    ///
    /// # Errors
    /// As [`Read::read`].
    fn go_on_at(&mut self, place: &[u8]) -> io::Result<bool>;
}

/// A place is how many bytes follow it.
impl CheckpointSource for &[u8] {
    fn place(&self) -> Option<Vec<u8>> {
        Some((self.len() as u64).to_le_bytes().to_vec())
    }

    fn go_on_at(&mut self, place: &[u8]) -> io::Result<bool> {
        let left = place.try_into().map(u64::from_le_bytes);
        let skipped = left.ok().and_then(|left| self.len().checked_sub(left as usize));
        if let Some(skipped) = skipped {
            *self = &self[skipped..];
        }
        Ok(skipped.is_some())
    }
}

/// A snapshot of a state machine that is small enough to be held in memory.
#[derive(Debug)]
pub struct MemoryCheckpoint {
    vlsn: Vlsn,
    bytes: Vec<u8>,
    at: usize,
}

impl MemoryCheckpoint {
    /// `bytes` say what the state is after everything through `vlsn`, and nothing above it.
    #[must_use]
    pub fn new(vlsn: Vlsn, bytes: Vec<u8>) -> Self {
        Self { vlsn, bytes, at: 0 }
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        let rest = &self.bytes[self.at..];
        let taken = &rest[..rest.len().min(max)];
        buf.extend_from_slice(taken);
        self.at += taken.len();
        Ok(self.at < self.bytes.len())
    }
}

/// Reads entries of a log.
pub trait LogReader {
    /// A run from `from` on, of at least one entry and about `max_bytes`; `None` at the end.
    fn read(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>>;
}

/// A log without entries.
struct NoLog;

impl LogReader for NoLog {
    fn read(&self, _from: Vlsn, _max_bytes: usize) -> Result<Option<EntryRun>> {
        Ok(None)
    }
}

impl LogReader for Log {
    fn read(&self, from: Vlsn, max_bytes: usize) -> Result<Option<EntryRun>> {
        Ok(Log::read(self, from, max_bytes)?)
    }
}

#[cfg(test)]
mod tests;
