//! Following: the replica's half of a conversation with a node that may be master, until its stream
//! is open: handshake, the term, syncup, rollback.
//!
//! # States
//! Handshake -> Term adopted -> Syncup -> (Rolling back) -> Streaming, or a restore instead
//!
//! A replica whose disk is full follows nobody: it would be asked for acknowledgements that it cannot
//! give. It goes on looking, to roll back what must go, and streams once there is room.
//!
//! # Not here: whom to ask, and when to ask again (follower.rs); whether a term is to be adopted
//! (core/node.rs), what is rolled back (core/rollback.rs).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use noxu_log::{
    Cut, ENTRY_HEADER_BYTES, EntryKind, EntryRun, GroupIdentity, LogError, LostNote, lost_path,
};
use noxu_util::{Lsn, Name, Term, Vlsn};
use parking_lot::Mutex;

use super::heard::{Heard, HeardChannel};
use super::life::Life;
#[cfg(doc)]
use super::life::Surroundings;
use super::mending::{Damages, Told, ask_master, damages, put_back};
use super::services::LOG_FORMAT;
use crate::clock::Clock;
use crate::core::commits::Now;
use crate::core::node::{Ended, Input, Membership};
use crate::core::recovery::{Course, RecoveryId, course};
use crate::core::replica::StreamFault;
use crate::core::rollback::{Found, Situation, decide};
use crate::core::search::Attempt;
use crate::error::{RepError, Result};
use crate::group::Electorate;
use crate::net::channel::Channel;
use crate::net::dispatcher::{RESTORE_SERVICE_NAME, STATUS_SERVICE_NAME};
use crate::restore::session::{RestoreHost, Restoring, Work, fetch};
use crate::restore::{Phase, Progress};
use crate::status::{RollbackReport, SyncupReport};
use crate::stream::log_view::LogView;
use crate::stream::replica::{ReplicaHost, ReplicaStream, ended};
use crate::stream::syncup_protocol::{SyncupOptions, SyncupOutcome, replica_syncup};
use crate::sync::StateMachine;
use crate::wire::election::LogEnd;
use crate::wire::handshake::{
    Capabilities, Hello, RejectReason, VersionRange, Welcome, handshake_as_replica,
};
use crate::wire::message::Era;
use crate::wire::probe::{ProbeAnswer, encode_question};

/// How often a restore's progress is shown anew within a phase.
const SHOW_PAUSE: Duration = Duration::from_millis(50);

/// What a conversation has come to.
pub(super) enum Established {
    /// The stream is open: it is to be run.
    Stream(Arc<ReplicaStream>),
    /// No matchpoint: log and state are to be fetched from there.
    Restore(RestoreFrom),
    /// This peer is not the one to follow.
    NotThis,
}

/// What came of asking the master for damaged entries.
enum Mended {
    /// Nothing is damaged that is still needed.
    Whole,
    /// The master has dropped that part of its log.
    NeedsRestore,
    /// This node does not follow that master any more.
    Superseded,
}

/// What two logs have in common.
struct Compared {
    found: Found,
    /// Where the matchpoint stands; 0 if there is none.
    matchpoint_lsn: Lsn,
    round_trips: u32,
}

/// Whom to restore from.
pub(super) struct RestoreFrom {
    address: String,
    master: Name,
    term: Term,
    /// The session of the master's verdict; `NONE` if this node does it by itself.
    recovery: RecoveryId,
    heard: Heard,
}

/// What was cut off the log.
pub(super) struct LostEntries {
    /// When, by the wall clock: milliseconds since 1970.
    time_ms: u64,
    entries: u64,
    file: PathBuf,
}

impl Life {
    /// Follows the node at the other end of `channel`, which is reached at `address`, if it is the
    /// master, until that is over; `None` if it is not the one to follow. `is_wanted` is asked once
    /// [`Surroundings::follow`] can break it off: an order that came just before has not. A restore
    /// that has everything is followed by `begin_next_life`.
    ///
    /// # Errors
    /// `Rejected` by either side; the channel's; the log's; `ReadOnly` while the disk is full;
    /// `RollbackBelowCommitFloor`. What [`is_final`] says of is for an operator.
    pub fn converse(
        self: &Arc<Self>,
        channel: Arc<dyn Channel>,
        address: &str,
        is_wanted: &dyn Fn() -> bool,
        begin_next_life: &dyn Fn(),
    ) -> Result<Option<Ended>> {
        match self.establish(channel, address, is_wanted)? {
            Established::NotThis => Ok(None),
            Established::Stream(stream) => {
                self.accepted.store(true, Ordering::Release);
                let outcome = stream.run();
                self.forget_stream(&stream);
                let why = ended(&outcome);
                outcome.map(|_| Some(why))
            }
            Established::Restore(from) => {
                if self.restore(&from)? {
                    begin_next_life();
                }
                self.accepted.store(true, Ordering::Release);
                Ok(Some(Ended::Fault))
            }
        }
    }

    /// What [`Life::converse`] returned is over and done with. `master` is who it was with, if this
    /// node was told to follow that one and nothing else since.
    pub fn handle_conversation_ended(
        &self,
        master: Option<&Name>,
        outcome: Result<Option<Ended>>,
    ) -> Attempt {
        let (attempt, why) = match outcome {
            Ok(Some(why)) => (Attempt::Followed, why),
            Ok(None) => (Attempt::NotThis { instead: None }, Ended::Fault),
            Err(cause) => {
                let instead = match &cause {
                    RepError::Rejected(RejectReason::NotMaster { master }) => master.clone(),
                    _ => None,
                };
                (Attempt::NotThis { instead }, ended(&Err(cause)))
            }
        };
        let followed = self.close_conversation();
        if let Some(master) = followed.as_ref().or(master) {
            self.handle(Input::FollowEnded { master: Some(master.clone()), why });
        }
        match attempt {
            Attempt::NotThis { .. } if followed.is_some() => Attempt::Failed,
            other => other,
        }
    }

    /// Everything of a conversation before its stream.
    pub(super) fn establish(
        self: &Arc<Self>,
        channel: Arc<dyn Channel>,
        address: &str,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Established> {
        let heard = Heard::default();
        let channel = self.listen(channel, &heard);
        if !self.adopt_channel(&channel) || !is_wanted() {
            channel.close();
            return Ok(Established::NotThis);
        }
        let welcome = handshake_as_replica(&*channel, &self.hello())?;
        if let Some(skew) = welcome.clock_skew_ms {
            tracing::warn!(master = %welcome.node, "clock differs by {skew} ms");
        }
        self.join(&welcome)?;
        if !self.ask_term(&channel, welcome.term, &welcome.node, address, Arc::clone(&heard)) {
            return Ok(Established::NotThis);
        }
        let restore = |recovery| {
            channel.close();
            Ok(Established::Restore(RestoreFrom {
                address: address.to_owned(),
                master: welcome.node.clone(),
                term: welcome.term,
                recovery,
                heard: Arc::clone(&heard),
            }))
        };
        if let Err(cause) = self.check_state() {
            tracing::warn!(node = %self.config.name, "{cause}");
            return restore(RecoveryId::NONE);
        }
        // A full disk takes no stream. A rollback it does take, and only a log that ends with an
        // entry of this master's term is known to need none.
        let full = self.log.read_only();
        if let Some(full) = full
            && self.log.positions().last_term == welcome.term
        {
            return Err(full.into());
        }
        match self.mend_from(&*channel, &welcome)? {
            Mended::Whole => {}
            Mended::NeedsRestore => return restore(RecoveryId::NONE),
            Mended::Superseded => return Ok(Established::NotThis),
        }
        let compared = match self.compare(&*channel, &welcome) {
            // Rot in what was written long ago is met only when it is read. The logs cannot be compared
            // there: the next conversation takes it back, or this log is replaced.
            Err(RepError::Log(rotten)) if self.handle_rot(&rotten) => {
                return Ok(Established::NotThis);
            }
            Err(RepError::Log(rotten)) if is_damage(&rotten) => {
                tracing::error!(node = %self.config.name, "ALARM: {rotten}; the log is restored");
                self.note_error(&rotten.into());
                return restore(RecoveryId::NONE);
            }
            other => other?,
        };
        match self.settle_course(&*channel, address, &welcome, compared.found)? {
            Course::Stream { roll_back_to: None } => {}
            Course::Stream { roll_back_to: Some(to) } => {
                let Compared { matchpoint_lsn, round_trips, .. } = compared;
                let rolled = self.as_follower(&welcome.node, welcome.term, || {
                    self.roll_back(to, matchpoint_lsn, round_trips, &welcome)
                })?;
                let Some(report) = rolled else { return Ok(Established::NotThis) };
                self.note_rollback(&report);
            }
            Course::Refuse { matchpoint, durable } => {
                tracing::error!(
                    node = %self.config.name, master = %welcome.node, %matchpoint, %durable,
                    "ALARM: the master's log lacks entries that were reported durable"
                );
                return Err(RepError::RollbackBelowCommitFloor {
                    matchpoint,
                    commit_floor: durable,
                });
            }
            Course::Wait => return Ok(Established::NotThis),
            Course::Restore(recovery) => return restore(recovery),
        }
        if let Some(full) = self.log.read_only() {
            return Err(full.into());
        }
        let host: Arc<dyn ReplicaHost> = Arc::new(Host { life: Arc::clone(self) });
        let stream = Arc::new(ReplicaStream::new(
            Era { epoch: self.log.control().ballot().epoch, term: welcome.term },
            self.config.limits.timing,
            self.log.clone(),
            Arc::clone(&channel),
            host,
            self.clock.clone(),
            self.housekeeper.dtvlsn(),
        ));
        if self.open_stream(&stream, welcome.term, &welcome.node) {
            Ok(Established::Stream(stream))
        } else {
            Ok(Established::NotThis)
        }
    }

    /// Compares this log with the master's.
    fn compare(&self, channel: &dyn Channel, welcome: &Welcome) -> Result<Compared> {
        let options = SyncupOptions {
            probes: welcome.capabilities.has(Capabilities::SYNCUP_PROBES),
            ..SyncupOptions::default()
        };
        let (outcome, stats) = replica_syncup(channel, &LogView::new(&self.log), &options)?;
        let round_trips = stats.round_trips;
        let SyncupOutcome::Matchpoint { matchpoint_vlsn, matchpoint_lsn, start_vlsn } = outcome
        else {
            let (found, matchpoint_lsn) = (Found::Nothing, Lsn::default());
            return Ok(Compared { found, matchpoint_lsn, round_trips });
        };
        self.note_syncup(SyncupReport {
            number: self.syncups() + 1,
            master: welcome.node.clone(),
            matchpoint: matchpoint_vlsn,
            start: start_vlsn,
            round_trips,
        });
        let found = Found::Matchpoint { matchpoint: matchpoint_vlsn, start: start_vlsn };
        Ok(Compared { found, matchpoint_lsn: Lsn::from_u64(matchpoint_lsn), round_trips })
    }

    /// What the master hears that this log holds is on its disk: the master keeps nothing before it.
    fn sync_what_is_told(&self) -> Result<()> {
        let positions = self.log.positions();
        if positions.durable == positions.last {
            return Ok(());
        }
        match self.log.sync_now() {
            // What finds no room is still in memory; lost with a crash, it is had by a restore at worst.
            Err(LogError::ReadOnly { .. }) => Ok(()),
            other => other.map(drop).map_err(Into::into),
        }
    }

    /// Hears the master's verdict, and what this node's own table makes of it.
    fn settle_course(
        &self,
        channel: &dyn Channel,
        address: &str,
        welcome: &Welcome,
        found: Found,
    ) -> Result<Course> {
        self.sync_what_is_told()?;
        let ballot = self.log.control().ballot();
        let (last, dtvlsn) = (self.log.positions().last, self.housekeeper.dtvlsn());
        let era = Era { epoch: ballot.epoch, term: ballot.term };
        let known_dtvlsn = ballot.commit_floor.max(dtvlsn);
        let verdict = self.ask_verdict(channel, era, found, (last, known_dtvlsn))?;
        let situation = Situation {
            last,
            commit_floor: ballot.commit_floor,
            known_dtvlsn: dtvlsn,
            term: ballot.term,
            peer_term: welcome.term,
            // Only masters accept replicas, until replicas feed secondaries.
            peer_is_master: welcome.established,
            peer_first: match found {
                Found::Nothing => self.probe(address)?.first,
                Found::Matchpoint { .. } => Vlsn::default(),
            },
        };
        course(verdict, decide(&situation, found))
    }

    /// Fetches log and state of the master and, once all of it is here, commits it: then this life is
    /// silent, and the next begins with [`crate::restore::install::install`]. False if it is void,
    /// because this node does not follow that master any more.
    ///
    /// # Errors
    /// The network's, the disk's; `NoRoom` while that is full. The next attempt resumes.
    fn restore(&self, from: &RestoreFrom) -> Result<bool> {
        tracing::info!(node = %self.config.name, from = %from.master, "network restore");
        let channel =
            self.around.dial(&from.address, RESTORE_SERVICE_NAME, self.config.dial_timeout)?;
        // What it sends shows that it lives.
        let channel = self.listen(channel, &from.heard);
        if !self.adopt_restore(&channel, &from.master, from.term) {
            channel.close();
            return Ok(false);
        }
        let _files = self.hold_restore_files();
        self.note_restore_begins();
        self.set_restoring(true);
        let control = self.log.control().state();
        let group = control.group.as_ref().map(|group| group.id);
        let mut restoring = Restoring::new(self.config.name.clone(), group, from.term);
        restoring.kind = self.config.kind;
        restoring.log = self.log.config().clone();
        restoring.limits = self.config.restore;
        restoring.methods.clone_from(&self.config.sync);
        restoring.recovery = from.recovery;
        let (permitted, shown) = (AtomicBool::new(false), Mutex::default());
        let host = Restorer { life: self, from, permitted, shown };
        let fetched = fetch(&self.env, &self.config.dir, &restoring, &channel, &host);
        let permitted = host.permitted.into_inner();
        self.set_restoring(false);
        match fetched {
            Ok(Some(progress)) => {
                self.note_progress(progress);
                Ok(true)
            }
            Ok(None) => Ok(false),
            // Silent from here on, and nothing that would end it: an operator must look.
            Err(cause) if permitted => Err(RepError::Stopped {
                cause: format!("a restore could not be committed: {cause}"),
            }),
            Err(cause) if cause.is_storage_full() => Err(RepError::NoRoom(Box::new(cause))),
            Err(cause) => Err(cause),
        }
    }

    fn listen(&self, channel: Arc<dyn Channel>, heard: &Heard) -> Arc<dyn Channel> {
        Arc::new(HeardChannel::new(channel, self.clock.clone(), Arc::clone(heard)))
    }

    fn hello(&self) -> Hello {
        let control = self.log.control().state();
        Hello {
            versions: VersionRange::SPOKEN,
            group: control.group.as_ref().map(|group| group.id),
            group_name: self.group_name(control.group.as_ref()),
            node: self.config.name.clone(),
            address: self.address.clone(),
            incarnation: control.incarnation,
            kind: self.config.kind,
            log_format: LOG_FORMAT,
            segment_bytes: control.group.as_ref().map(|group| group.segment_bytes),
            term: control.term,
            capabilities: Capabilities::OURS,
            wall_clock_ms: self.clock.wall_clock_ms(),
            epoch: control.epoch,
            priority: self.config.priority,
            full: self.log.read_only().is_some(),
            uncertain: control.head_uncertain,
        }
    }

    /// A fresh directory belongs to the master's group from now on.
    fn join(&self, welcome: &Welcome) -> Result<()> {
        if self.log.group().is_some() {
            return Ok(());
        }
        if welcome.epoch > 0 {
            self.log.control().update(|control| control.epoch = welcome.epoch)?;
        }
        self.log.found(GroupIdentity {
            id: welcome.group,
            name: welcome.group_name.clone(),
            segment_bytes: welcome.segment_bytes,
        })?;
        tracing::info!(node = %self.config.name, group = %welcome.group_name, "joined");
        Ok(())
    }

    /// Takes damaged entries back from the master, before the logs are compared; of those that only
    /// others may need, below the checkpoint, what it can give. What was never in the master's log is
    /// cut off: it is the established master of this node's term, so all that is durable is in its
    /// log.
    fn mend_from(&self, channel: &dyn Channel, welcome: &Welcome) -> Result<Mended> {
        let era = Era { epoch: welcome.epoch, term: welcome.term };
        let max_entry = self.log.config().max_body_bytes as usize + ENTRY_HEADER_BYTES;
        let mut not_to_be_had = BTreeSet::new();
        loop {
            let checkpoint = self.applier.machine().checkpointed();
            let Damages { all, needed } = damages(&self.log, checkpoint);
            let next = all.into_iter().find(|damage| !not_to_be_had.contains(&damage.first));
            let Some(damage) = next else {
                self.applier.signal(); // it may have waited for what is there again
                return Ok(Mended::Whole);
            };
            tracing::warn!(
                node = %self.config.name, master = %welcome.node,
                "entries {} to {} are damaged and asked for", damage.first, damage.last
            );
            let told = ask_master(channel, era, &damage, self.env.entropy(), max_entry)?;
            let changed = match told {
                Told::Bytes(through, bytes) => {
                    self.as_follower(&welcome.node, welcome.term, || {
                        if put_back(&self.log, &damage, through, bytes)? {
                            return Ok(());
                        }
                        let found = "others".to_owned();
                        Err(RepError::protocol(channel.peer(), "the entries asked for", found))
                    })?
                }
                Told::Never => {
                    let to = damage.first.prev();
                    let durable =
                        self.log.control().ballot().commit_floor.max(self.housekeeper.dtvlsn());
                    if to < durable {
                        return Err(RepError::RollbackBelowCommitFloor {
                            matchpoint: to,
                            commit_floor: durable,
                        });
                    }
                    let anchor = self.log.positions().anchor;
                    let lsn = self.log.header(to)?.map_or(anchor.lsn, |(_, lsn)| lsn);
                    let rolled = self.as_follower(&welcome.node, welcome.term, || {
                        self.roll_back(to, lsn, 0, welcome)
                    })?;
                    rolled.map(|report| self.note_rollback(&report))
                }
                Told::NotToBeHad | Told::Nothing if !needed.contains(&damage) => {
                    not_to_be_had.insert(damage.first);
                    continue;
                }
                Told::NotToBeHad => return Ok(Mended::NeedsRestore),
                Told::Nothing => {
                    let (first, last) = (damage.first, damage.last);
                    return Err(RepError::Damaged { first, last, master: welcome.node.clone() });
                }
            };
            if changed.is_none() {
                return Ok(Mended::Superseded);
            }
        }
    }

    fn roll_back(
        &self,
        to: Vlsn,
        matchpoint_lsn: Lsn,
        round_trips: u32,
        welcome: &Welcome,
    ) -> Result<RollbackReport> {
        let last = self.log.positions().last;
        tracing::warn!(
            node = %self.config.name, master = %welcome.node, matchpoint = %to,
            "rolling back {} entries", last.since(to)
        );
        let cut = self.cut_to_lost(to, &welcome.node, welcome.term)?;
        Ok(RollbackReport {
            time_ms: cut.time_ms,
            matchpoint: to,
            matchpoint_lsn,
            entries: cut.entries,
            lost_file: cut.file,
            round_trips,
            master: welcome.node.clone(),
            master_term: welcome.term,
        })
    }

    /// Undoes everything above `vlsn`, in the state machine first and then in the log, which keeps it
    /// in a lost file; the group is what the rest of the log says. The core is held.
    pub(super) fn cut_to_lost(&self, vlsn: Vlsn, master: &Name, term: Term) -> Result<LostEntries> {
        let last = self.log.positions().last;
        let lost_group = self.holds_group_entry_from(vlsn.next())?;
        let time_ms = self.clock.wall_clock_ms();
        let name = format!("{}-{}-{time_ms}", vlsn.next().sequence(), last.sequence());
        let note = LostNote {
            time_ms,
            master: master.to_string(),
            master_term: term,
            ..LostNote::default()
        };
        self.applier.roll_back_to(vlsn)?;
        let file = lost_path(self.log.dir(), &name);
        let cut = self.log.truncate_after(vlsn, Cut::Save { name, note })?;
        self.configured.store(false, Ordering::Release);
        if lost_group {
            self.recompute_membership()?;
        }
        Ok(LostEntries { time_ms, entries: cut.entries, file })
    }

    /// What cannot be read may be one.
    fn holds_group_entry_from(&self, mut from: Vlsn) -> Result<bool> {
        loop {
            let run = match self.log.read(from, 1 << 20) {
                Ok(Some(run)) => run,
                Ok(None) => return Ok(false),
                Err(LogError::Faulty { .. }) => return Ok(true),
                Err(cause) => return Err(cause.into()),
            };
            if run.entries().any(|entry| entry.header.kind == EntryKind::GROUP) {
                return Ok(true);
            }
            from = run.last.next();
        }
    }

    /// Finds the configuration in force at the end of the log: the anchor's, or that of the newest
    /// Group entry kept. A log that holds none keeps what the group was founded with, and so does one
    /// whose newest may be among what it cannot read.
    fn recompute_membership(&self) -> Result<()> {
        let positions = self.log.positions();
        let mut newest = positions.anchor.group_config.clone();
        let mut from = positions.anchor.vlsn.next();
        loop {
            match self.log.read(from, 1 << 20) {
                Ok(Some(run)) => {
                    for entry in run.entries() {
                        if entry.header.kind == EntryKind::GROUP {
                            newest = Bytes::copy_from_slice(entry.body);
                        }
                    }
                    from = run.last.next();
                }
                Ok(None) => break,
                Err(LogError::Faulty { last, .. }) => {
                    newest.clear();
                    from = last.next();
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        if newest.is_empty() { Ok(()) } else { self.take_configuration(&newest) }
    }

    /// A configuration is in force, at once.
    fn take_configuration(&self, body: &[u8]) -> Result<()> {
        let electorate = Electorate::decode(body)?;
        let control = self.log.control().state();
        let Some(group) = &control.group else { return Ok(()) };
        if control.group_config != *body {
            let body = Bytes::copy_from_slice(body);
            self.log.control().update(|control| control.group_config = body)?;
        }
        let membership = Membership { group: group.clone(), electorate };
        self.set_membership(membership.clone());
        self.around.post(Input::ConfigChanged(membership));
        Ok(())
    }

    /// Asks the node at `address` what it is.
    fn probe(&self, address: &str) -> Result<ProbeAnswer> {
        let timeout = self.config.dial_timeout;
        let channel = self.around.dial(address, STATUS_SERVICE_NAME, timeout)?;
        channel.send(&encode_question())?;
        let frame = channel.receive(timeout)?;
        let frame = frame.ok_or_else(|| RepError::silent(address, "a status", timeout))?;
        Ok(ProbeAnswer::decode(&frame)?)
    }
}

/// Whether what is wrong is the log's bytes.
pub(super) fn is_damage(cause: &LogError) -> bool {
    matches!(cause, LogError::Corrupt { .. } | LogError::Faulty { .. })
}

/// Whether no retry can mend it: the node stops and says so.
pub fn is_final(cause: &RepError) -> bool {
    // Room may come back; a sync that finds none stops the log, which tells the life itself.
    !cause.is_storage_full()
        && matches!(
            cause,
            RepError::Stream(StreamFault::DurableFork { .. })
                | RepError::StateMachine { .. }
                | RepError::Log(_)
                | RepError::Stopped { .. }
        )
}

/// The node as a restore sees it.
struct Restorer<'a> {
    life: &'a Life,
    from: &'a RestoreFrom,
    /// Leave to commit was given.
    permitted: AtomicBool,
    /// The phase that was shown last, and when it is shown again.
    shown: Mutex<Option<(Phase, Now)>>,
}

impl RestoreHost for Restorer<'_> {
    fn dial(&self, address: &str) -> Result<Arc<dyn Channel>> {
        self.life.around.dial(address, RESTORE_SERVICE_NAME, self.life.config.dial_timeout)
    }

    fn note(&self, progress: &Progress) {
        let now = self.life.clock.now();
        let mut shown = self.shown.lock();
        if shown.is_none_or(|(phase, due)| phase != progress.phase || now >= due) {
            *shown = Some((progress.phase, now + SHOW_PAUSE));
            self.life.note_progress(progress.clone());
        }
    }

    fn permit(&self, term: Term) -> bool {
        let permitted = term == self.from.term && self.life.ask_commit(&self.from.master, term);
        self.permitted.store(permitted, Ordering::Release);
        permitted
    }

    fn clock(&self) -> &Clock {
        &self.life.clock
    }

    fn machine(&self) -> Option<Arc<dyn StateMachine>> {
        Some(Arc::clone(self.life.applier.machine()))
    }

    fn run_beside(&self, work: Work) -> Option<Work> {
        self.life.around.run_beside(work)
    }

    fn has_threads(&self) -> bool {
        self.life.around.has_threads()
    }
}

/// The node as its replica stream sees it.
struct Host {
    life: Arc<Life>,
}

impl ReplicaHost for Host {
    fn handle_may_apply(&self, limit: Vlsn) {
        if self.life.applier.raise(limit) {
            self.life.applier.signal();
        }
    }

    fn handle_dtvlsn(&self, dtvlsn: Vlsn) {
        self.life.housekeeper.handle_dtvlsn(dtvlsn);
    }

    fn applied(&self) -> Vlsn {
        self.life.applier.applied()
    }

    fn handle_appended(&self, run: &EntryRun) {
        for entry in run.entries() {
            if entry.header.kind == EntryKind::GROUP
                && let Err(cause) = self.life.take_configuration(entry.body)
            {
                self.life.fail(&format!("a Group entry cannot be taken: {cause}"));
            }
        }
    }

    fn handle_head_confirmed(&self, nonce: u64, head: LogEnd) {
        self.life.around.post(Input::HeadConfirmed { nonce, head });
    }
}
