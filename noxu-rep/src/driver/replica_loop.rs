//! Replica loop: finds the master, syncs up, rolls back what must go, and follows the stream; over
//! and over until the node stops.
//!
//! # States
//! Looking -> Handshake -> Syncup -> (Rolling back) -> Streaming -> Looking
//!
//! A replica whose disk is full follows nobody: it would be asked for acknowledgements that it cannot
//! give. It goes on looking, to roll back what must go, and streams once there is room.
//!
//! Nothing waits for a fixed time: a lost connection is redialled at once; only when no peer could
//! be followed does the next round wait, at first very little.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::{Cut, EntryKind, EntryRun, GroupIdentity, LostNote, lost_path};
use noxu_util::{Lsn, Vlsn};

use crate::core::replica::StreamFault;
use crate::core::rollback::{Decision, Found, Situation, decide};
use crate::driver::services::LOG_FORMAT;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use crate::node::Inner;
use crate::status::{RollbackReport, SyncupReport};
use crate::stream::log_view::LogView;
use crate::stream::replica::{ReplicaHost, ReplicaStream};
use crate::stream::syncup_protocol::{SyncupOptions, SyncupOutcome, replica_syncup};
use crate::wire::election::LogEnd;
use crate::wire::handshake::{
    Capabilities, Hello, NodeKind, RejectReason, VersionRange, Welcome, handshake_as_replica,
};
use crate::wire::message::Era;

/// First and longest wait between two rounds in which no peer could be followed.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How long a node that nobody has accepted yet bears refusals that time does not mend, before it
/// gives up: a peer may still be closing the connection of this node's previous life.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);

/// How a round with one peer ended.
enum Followed {
    /// The stream was open for some time.
    Streamed,
    /// Its log and state were fetched: this life of the node ends.
    Restored,
    /// This peer is not the one to follow; it may have named another.
    NotThis,
}

/// The thread. Returns when the node stops or is no replica any more.
///
/// # Errors
/// What only an operator can settle; everything else is tried again.
pub(crate) fn run(node: &Arc<Inner>) -> Result<()> {
    let mut wait = FIRST_WAIT;
    let mut accepted = false;
    let mut refused_since = None;
    while node.is_replica() {
        let mut streamed = false;
        let mut candidates: VecDeque<String> = node.peers_to_dial().into();
        let mut hinted = false;
        while let Some(address) = candidates.pop_front() {
            if !node.is_replica() {
                return Ok(());
            }
            match follow(node, &address) {
                Ok(Followed::Streamed) => {
                    streamed = true;
                    break;
                }
                Ok(Followed::Restored) => return Ok(()),
                Ok(Followed::NotThis) => {}
                Err(cause) => {
                    if let RepError::Rejected(RejectReason::NotMaster { master: Some(at) }) = &cause
                        && !hinted
                        && *at != address
                    {
                        // Followed once a round: two nodes may name each other.
                        hinted = true;
                        candidates.push_front(at.clone());
                    }
                    if is_final(&cause) {
                        return Err(cause);
                    }
                    if !accepted && is_lasting(&cause) {
                        let now = node.clock.now();
                        let since = *refused_since.get_or_insert(now);
                        if now.saturating_sub(since) >= REFUSAL_PATIENCE {
                            return Err(cause);
                        }
                    }
                    tracing::info!(node = %node.config.name, peer = %address, "{cause}");
                    node.note_error(&cause);
                }
            }
        }
        if streamed {
            accepted = true;
            wait = FIRST_WAIT;
        } else {
            // Spread, so that nodes that lost the same master do not dial in step.
            node.pause(wait.mul_f64(0.5 + fastrand::f64()));
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
    Ok(())
}

/// Errors that no retry can mend: the node stops and says so.
fn is_final(cause: &RepError) -> bool {
    matches!(
        cause,
        RepError::Stream(StreamFault::DurableFork { .. })
            | RepError::StateMachine { .. }
            | RepError::Log(_)
            | RepError::Stopped { .. }
    )
}

/// Refusals that say that this node does not belong where it asks. One that was accepted before goes
/// on asking: an address among its peers' may have passed to a stranger.
fn is_lasting(cause: &RepError) -> bool {
    matches!(
        cause,
        RepError::Rejected(
            RejectReason::WrongGroupName { .. }
                | RejectReason::WrongGroup { .. }
                | RejectReason::LogFormat { .. }
                | RejectReason::SegmentBytes { .. }
                | RejectReason::Version { .. }
                | RejectReason::DuplicateNode { .. }
                | RejectReason::UnknownMember { .. }
                | RejectReason::Removed { .. }
                | RejectReason::WrongEpoch { .. }
                | RejectReason::NotBound { .. }
        )
    )
}

/// Follows the node at `address` if it is the master.
fn follow(node: &Arc<Inner>, address: &str) -> Result<Followed> {
    let channel: Arc<dyn Channel> = dial(address, FEEDER_SERVICE_NAME, node.config.dial_timeout)?;
    if !node.adopt_channel(&channel) {
        channel.close();
        return Ok(Followed::NotThis);
    }
    let outcome = follow_over(node, address, &channel);
    channel.close();
    node.drop_channel();
    outcome
}

fn follow_over(node: &Arc<Inner>, address: &str, channel: &Arc<dyn Channel>) -> Result<Followed> {
    let welcome = handshake_as_replica(&**channel, &hello(node))?;
    if let Some(skew) = welcome.clock_skew_ms {
        tracing::warn!(master = %welcome.node, "clock differs by {skew} ms");
    }
    adopt(node, &welcome)?;
    if let Err(cause) = node.check_state() {
        tracing::warn!(node = %node.config.name, "{cause}");
        channel.close();
        return node.restore(address, &welcome).map(|()| Followed::Restored);
    }
    // A full disk takes no stream. A rollback it does take, and only a log that ends with an entry of
    // this master's term is known to need none.
    let full = node.log.read_only();
    if let Some(full) = full
        && node.log.positions().last_term == welcome.term
    {
        return Err(full.into());
    }
    let options = SyncupOptions {
        probes: welcome.capabilities.has(Capabilities::SYNCUP_PROBES),
        ..SyncupOptions::default()
    };
    let view = LogView::new(&node.log);
    let (outcome, stats) = replica_syncup(&**channel, &view, &options)?;
    let (found, matchpoint_lsn) = match outcome {
        SyncupOutcome::Matchpoint { matchpoint_vlsn, matchpoint_lsn, start_vlsn } => {
            let report = SyncupReport {
                matchpoint: matchpoint_vlsn,
                start: start_vlsn,
                round_trips: stats.round_trips,
            };
            node.note_syncup(report);
            (Found::Matchpoint { matchpoint: matchpoint_vlsn, start: start_vlsn }, matchpoint_lsn)
        }
        SyncupOutcome::NeedsRestore { .. } => (Found::Nothing, 0),
    };
    let control = node.log.control().state();
    let situation = Situation {
        last: node.log.positions().last,
        commit_floor: control.commit_floor,
        known_dtvlsn: node.housekeeper.dtvlsn(),
        term: control.term,
        peer_term: welcome.term,
        // Only masters accept replicas, until replicas feed secondaries.
        peer_is_master: true,
        peer_first: match found {
            Found::Nothing => node.probe(address)?.first,
            Found::Matchpoint { .. } => Vlsn::default(),
        },
    };
    match decide(&situation, found) {
        Decision::Stream => {}
        Decision::RollBack { to } => {
            roll_back(node, to, Lsn::from_u64(matchpoint_lsn), stats.round_trips, &welcome)?;
        }
        Decision::Refuse { matchpoint, durable } => {
            tracing::error!(
                node = %node.config.name, master = %welcome.node, %matchpoint, %durable,
                "ALARM: the master's log lacks entries that were reported durable"
            );
            return Err(RepError::RollbackBelowCommitFloor { matchpoint, commit_floor: durable });
        }
        Decision::Wait => return Ok(Followed::NotThis),
        Decision::Restore => {
            channel.close();
            return node.restore(address, &welcome).map(|()| Followed::Restored);
        }
    }
    if let Some(full) = node.log.read_only() {
        return Err(full.into());
    }
    node.handle_following(address, &welcome);
    let host: Arc<dyn ReplicaHost> = Arc::new(Host { node: Arc::clone(node) });
    let stream = Arc::new(ReplicaStream::new(
        Era { epoch: welcome.epoch, term: welcome.term },
        node.config.limits.timing,
        node.log.clone(),
        Arc::clone(channel),
        host,
        node.clock.clone(),
        node.housekeeper.dtvlsn(),
    ));
    node.set_replica_stream(Some(Arc::clone(&stream)));
    let ended = stream.run();
    node.set_replica_stream(None);
    match ended {
        Err(cause) if is_final(&cause) => Err(cause),
        Err(cause) => {
            tracing::info!(node = %node.config.name, master = %welcome.node, "stream ended: {cause}");
            node.note_error(&cause);
            Ok(Followed::Streamed)
        }
        Ok(_) => Ok(Followed::Streamed),
    }
}

fn hello(node: &Inner) -> Hello {
    let control = node.log.control().state();
    Hello {
        versions: VersionRange::SPOKEN,
        group: control.group.as_ref().map(|group| group.id),
        group_name: control.group.as_ref().map(|g| g.name.clone()).or_else(|| node.wanted_group()),
        node: node.config.name.clone(),
        address: node.address(),
        incarnation: control.incarnation,
        kind: NodeKind::Electable,
        log_format: LOG_FORMAT,
        segment_bytes: control.group.as_ref().map(|group| group.segment_bytes),
        term: control.term,
        capabilities: Capabilities::OURS,
        wall_clock_ms: node.clock.wall_clock_ms(),
        epoch: control.epoch,
        priority: 0,
        full: false,
        uncertain: control.head_uncertain,
    }
}

/// Takes over what the master's welcome brings: its term, durable before anything of that term is
/// written, and for a fresh node the group.
fn adopt(node: &Inner, welcome: &Welcome) -> Result<()> {
    if node.log.group().is_none() {
        node.log.found(GroupIdentity {
            id: welcome.group,
            name: welcome.group_name.clone(),
            segment_bytes: welcome.segment_bytes,
        })?;
        tracing::info!(node = %node.config.name, group = %welcome.group_name, "joined");
    }
    if welcome.term > node.log.control().state().term {
        node.log.control().update(|control| {
            if welcome.term > control.term {
                control.term = welcome.term;
                control.vote = None;
            }
        })?;
    }
    Ok(())
}

fn roll_back(
    node: &Inner,
    to: Vlsn,
    matchpoint_lsn: Lsn,
    round_trips: u32,
    welcome: &Welcome,
) -> Result<()> {
    let last = node.log.positions().last;
    tracing::warn!(
        node = %node.config.name, master = %welcome.node, matchpoint = %to,
        "rolling back {} entries", last.since(to)
    );
    let lost_group = holds_group_entry(node, to.next())?;
    let time_ms = node.clock.wall_clock_ms();
    let name = format!("{}-{}-{time_ms}", to.next().sequence(), last.sequence());
    let note = LostNote {
        time_ms,
        master: welcome.node.to_string(),
        master_term: welcome.term,
        ..LostNote::default()
    };
    node.applier.roll_back_to(to)?;
    let cut = node.log.truncate_after(to, Cut::Save { name: name.clone(), note })?;
    if lost_group {
        node.recompute_group_config()?;
    }
    let report = RollbackReport {
        time_ms,
        matchpoint: to,
        matchpoint_lsn,
        entries: cut.entries,
        lost_file: lost_path(node.log.dir(), &name),
        round_trips,
        master: welcome.node.clone(),
        master_term: welcome.term,
    };
    node.note_rollback(&report);
    Ok(())
}

/// Whether the log holds a Group entry at or beyond `from`.
fn holds_group_entry(node: &Inner, mut from: Vlsn) -> Result<bool> {
    while let Some(run) = node.log.read(from, 1 << 20)? {
        if run.entries().any(|entry| entry.header.kind == EntryKind::GROUP) {
            return Ok(true);
        }
        from = run.last.next();
    }
    Ok(false)
}

/// The node as its replica stream sees it.
struct Host {
    node: Arc<Inner>,
}

impl ReplicaHost for Host {
    fn handle_may_apply(&self, limit: Vlsn) {
        if self.node.applier.raise(limit) {
            self.node.applier.signal();
        }
    }

    fn handle_dtvlsn(&self, dtvlsn: Vlsn) {
        self.node.housekeeper.handle_dtvlsn(dtvlsn);
    }

    fn applied(&self) -> Vlsn {
        self.node.applier.applied()
    }

    fn handle_appended(&self, run: &EntryRun) {
        for entry in run.entries() {
            if entry.header.kind == EntryKind::GROUP {
                self.node.handle_group_entry(entry.body);
            }
        }
    }

    fn handle_head_confirmed(&self, _: u64, head: LogEnd) {
        tracing::info!(node = %self.node.config.name, "the log is whole through {head}");
    }
}
