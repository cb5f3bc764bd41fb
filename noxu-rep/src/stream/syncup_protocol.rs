//! Syncup protocol: the search of [`crate::core::syncup`] over a blocking channel.
//!
//! The replica asks, the feeder answers. Neither changes anything: a conversation that fails at
//! any step leaves both logs as they were, and closes the channel so that the other side learns
//! of it at once.

use std::time::Duration;

use crate::core::syncup::{FeederOutput, FeederSyncup, ReplicaOutput, ReplicaSyncup};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use noxu_util::Vlsn;

pub use crate::core::syncup::{SyncupOutcome, SyncupStats};
pub use crate::net::dispatcher::SYNCUP_SERVICE_NAME;
pub use crate::wire::syncup::{SyncupMsg, Verdict};

use super::syncup::{Matchpoint, SyncupView, VlsnEntry, find_matchpoint};

/// How long either side waits for one message unless told otherwise.
pub const SYNCUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to run a syncup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncupOptions {
    /// How long to wait for one message.
    pub message_timeout: Duration,
    /// Whether the feeder is known to understand probes. Without them every candidate costs a
    /// round trip.
    pub probes: bool,
}

impl Default for SyncupOptions {
    fn default() -> Self {
        Self { message_timeout: SYNCUP_TIMEOUT, probes: true }
    }
}

/// Finds the matchpoint with the feeder at the other end of `channel`.
pub fn replica_syncup_handshake(
    channel: &dyn Channel,
    replica: &dyn SyncupView,
) -> Result<SyncupOutcome> {
    replica_syncup(channel, replica, &SyncupOptions::default()).map(|(outcome, _)| outcome)
}

/// As [`replica_syncup_handshake`], with options and with what the search cost.
pub fn replica_syncup(
    channel: &dyn Channel,
    replica: &dyn SyncupView,
    options: &SyncupOptions,
) -> Result<(SyncupOutcome, SyncupStats)> {
    closing_on_error(channel, || {
        let (mut core, mut output) = ReplicaSyncup::new(replica, options.probes);
        loop {
            replica.check()?;
            let question = match output {
                ReplicaOutput::Ask(question) => question,
                ReplicaOutput::Start(message, outcome) => {
                    channel.send(&message.encode())?;
                    return Ok((outcome, core.stats()));
                }
                ReplicaOutput::Done(outcome) => return Ok((outcome, core.stats())),
            };
            channel.send(&question.encode())?;
            let awaited = format!("an answer to {}", question.name());
            let answer = receive(channel, &awaited, options.message_timeout)?;
            output = core.handle_message(answer)?;
        }
    })
}

/// Answers the replica at the other end of `channel` from `feeder`'s log. Returns the VLSN to
/// stream from, or `None` when the replica goes to restore.
pub fn feeder_syncup_handshake(
    channel: &dyn Channel,
    feeder: &dyn SyncupView,
) -> Result<Option<Vlsn>> {
    feeder_syncup(channel, feeder, &SyncupOptions::default())
}

/// As [`feeder_syncup_handshake`], with options.
pub fn feeder_syncup(
    channel: &dyn Channel,
    feeder: &dyn SyncupView,
    options: &SyncupOptions,
) -> Result<Option<Vlsn>> {
    closing_on_error(channel, || {
        let mut core = FeederSyncup::new(feeder);
        loop {
            let message = receive(channel, "a syncup message", options.message_timeout)?;
            let output = core.handle_message(message)?;
            feeder.check()?;
            match output {
                FeederOutput::Answer(answer) => channel.send(&answer.encode())?,
                FeederOutput::Start(start_vlsn) => return Ok(Some(start_vlsn)),
                FeederOutput::Restore(answer) => {
                    channel.send(&answer.encode())?;
                    return Ok(None);
                }
            }
        }
    })
}

/// The matchpoint of two logs in one process, with no channel between them.
pub fn local_matchpoint(replica: &dyn SyncupView, feeder: &dyn SyncupView) -> Matchpoint {
    find_matchpoint(replica, feeder)
}

/// A [`VlsnEntry`] from its fields.
pub const fn vlsn_entry(lsn: u64, fingerprint: u64, is_sync: bool) -> VlsnEntry {
    VlsnEntry { lsn, fingerprint, is_sync }
}

fn receive(channel: &dyn Channel, awaited: &str, timeout: Duration) -> Result<SyncupMsg> {
    match channel.receive(timeout)? {
        Some(frame) => SyncupMsg::decode(&frame),
        None => Err(RepError::silent(channel.peer(), awaited, timeout)),
    }
}

fn closing_on_error<T>(channel: &dyn Channel, run: impl FnOnce() -> Result<T>) -> Result<T> {
    run().map_err(|err| {
        channel.close();
        err.with_peer(|| channel.peer())
    })
}

#[cfg(test)]
mod tests;
