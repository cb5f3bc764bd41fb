//! Life: one life of a node, from the opening of its log to its closing: everything but its threads
//! and its port.
//!
//! [`Life::handle`] hands the core what happened and does what it says. Conversations with other
//! nodes run in the caller's thread until their stream is open ([`Life::converse`],
//! [`Life::accept`]); what has to be done some time are steps ([`Applier::step`],
//! [`Life::keep_house`]). The simulator calls the same functions as the threads of a node do.
//!
//! # The gate
//! From the snapshot of [`Facts`](crate::core::node::Facts) until every promise that follows from it
//! is durable, no acknowledgement leaves this node and no commit of its own mastership counts: the
//! locks under which both happen are held. So the log end that a vote compares covers whatever this
//! node ever answered for, and nothing of an older term is answered for afterwards.
//!
//! # Invariants
//! - Whoever cuts the log, replaces it or opens a stream into it does so with the core held, after
//!   asking the core whether it still follows the master in whose name that happens.
//! - Before a term of its own begins, nobody else appends to the log any more.
//!
//! # Lock order
//! `core` -> a stream's receiving end -> the gate (a stream's or mastership's core) -> `link` ->
//! `public` -> the log's. `restore_files` comes before `core`. `notes` is a leaf. Whoever holds anything but `core` posts instead of
//! calling [`Life::handle`]. Callbacks, listeners and handlers run with none held.
//!
//! # Not here: what is decided (core/node.rs), threads (running.rs), how the group is reached
//! (links.rs, follower.rs).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use noxu_log::env::Env;
use noxu_log::{GroupIdentity, Log, LogError, OpenReport};
use noxu_util::{GroupId, Incarnation, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::clock::Clock;
use crate::config::{GroupChoice, NodeConfig};
use crate::core::commits::Now;
use crate::core::damage::DamageEvent;
use crate::core::node::{Ballot, FoundingWish, Input, Membership, NodeCore, NodeSetup};
use crate::driver::applier::Applier;
use crate::driver::checkpointer;
use crate::driver::disk_mending::DiskMending;
use crate::driver::heard::Heard;
use crate::driver::housekeeper::Housekeeper;
use crate::driver::master::Master;
use crate::driver::opening::{HousekeeperSlot, NodeContext, Opened, open_directory, wanted_group};
use crate::error::{RepError, Result};
use crate::group::Electorate;
use crate::net::channel::Channel;
use crate::restore::provider::StateOffers;
use crate::restore::session::Work;
use crate::restore::{Progress, Restored, Timeline};
use crate::status::{Role, RollbackReport, StateChange, SyncupReport};
use crate::stream::replica::ReplicaStream;
use crate::sync::StateMachine;
use crate::sync::method::SyncNode;
use crate::wire::election::link::{Introduction, LINK_VERSIONS};
use crate::wire::election::{ElectionMsg, MAX_REPAIR_BYTES, NodeRole, Peer};
use crate::wire::handshake::{Capabilities, RejectReason};

mod facts;
mod perform;
mod request;
mod settled;
mod snapshot;

/// What a life needs of the world around it.
pub trait Surroundings: Send + Sync {
    /// Have [`Life::handle`] called with `input`, soon, in order and not by this thread. Never waits.
    fn post(&self, input: Input);

    /// [`Life::handle_timeout`] is due then, in place of what was said before. Never waits.
    fn set_timer(&self, due: Option<Now>);

    /// Sends `message` if there is a link to `to`. Never waits.
    fn send(&self, to: &Name, message: &ElectionMsg);

    /// Whom to follow from now on. Never waits.
    fn follow(&self, target: Target);

    /// Nodes that belong to the group are reached at these addresses. Never waits.
    fn meet(&self, addresses: Vec<String>);

    /// The node has become something else. Never waits.
    fn tell(&self, change: StateChange);

    /// Something was found damaged on the disk, or is no more. Never waits.
    fn tell_damage(&self, event: DamageEvent);

    /// Have [`Life::mend_disk`] called once, soon and by a thread that may wait for others. Never waits.
    fn mend_disk(&self);

    /// Runs `work`, which may take long: by another thread if there are any, else at once. Gives it back, not
    /// begun, if a thread was wanted and not to be had.
    fn run_beside(&self, work: Work) -> Option<Work> {
        work();
        None
    }

    /// Whether there are threads.
    fn has_threads(&self) -> bool {
        false
    }

    /// Something that a round of looking for a master may have failed for is over. Never waits.
    fn look_again(&self);

    /// This life has failed: nothing of it goes on.
    fn handle_failed(&self);

    /// Connects to another node. Waits as long as `timeout`.
    ///
    /// # Errors
    /// The network's, or the other node's refusal.
    fn dial(&self, address: &str, service: &str, timeout: Duration) -> Result<Arc<dyn Channel>>;
}

/// Whom a node is to follow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Target {
    /// Nobody.
    #[default]
    Nobody,
    /// Whoever is master: these may know, besides the configured peers.
    Seek {
        /// Addresses.
        hints: Vec<String>,
    },
    /// This one.
    Master {
        /// Its name.
        name: Name,
        /// Where it is reached.
        address: String,
        /// Its term, at least.
        term: Term,
    },
}

impl Target {
    /// Whether it asks for nothing else than `before`: to look for a master.
    pub fn continues(&self, before: &Self) -> bool {
        matches!((self, before), (Self::Seek { .. }, Self::Seek { .. }))
    }
}

/// One life of a node.
pub struct Life {
    pub(crate) config: NodeConfig,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) log: Log,
    pub(crate) clock: Clock,
    pub(crate) applier: Arc<Applier>,
    pub(crate) housekeeper: Arc<Housekeeper>,
    /// Where others reach this node.
    pub(crate) address: String,
    pub(crate) around: Arc<dyn Surroundings>,
    /// The state, as it is given to nodes that restore.
    pub(in crate::driver) offers: Arc<StateOffers>,
    pub(in crate::driver) disk_mending: DiskMending,
    slot: HousekeeperSlot,
    open_report: OpenReport,
    me: Peer,
    core: Mutex<NodeCore>,
    link: Mutex<Link>,
    public: Mutex<Public>,
    /// `public` changed.
    changed: Condvar,
    notes: Mutex<Notes>,
    /// The log, or its anchor, is known to hold a Group entry.
    pub(super) configured: AtomicBool,
    /// A master has accepted this node, in this life.
    pub(super) accepted: AtomicBool,
    /// Held by whoever writes to the directory of a restore.
    restore_files: Mutex<()>,
}

/// The conversation with the master that this node follows.
#[derive(Default)]
struct Link {
    /// No acknowledgement of a term below it leaves.
    fence: Term,
    channel: Option<Arc<dyn Channel>>,
    /// The master whose term was adopted in it.
    followed: Option<FollowedMaster>,
    stream: Option<Arc<ReplicaStream>>,
}

struct FollowedMaster {
    name: Name,
    term: Term,
    heard: Heard,
}

/// What everybody may know at once.
struct Public {
    role: Role,
    reason: String,
    term: Term,
    /// The master and where it is reached, as far as known.
    master: Option<(Name, Option<String>)>,
    mastership: Option<Arc<Master>>,
    membership: Option<Arc<Membership>>,
    /// A restore is under way that has not committed.
    restoring: bool,
    /// This life is ending.
    stopping: bool,
    /// Another life has taken this one's seat.
    replaced: bool,
    /// What stopped the node, if it was not asked to.
    failure: Option<String>,
}

impl Public {
    fn role(&self) -> Role {
        if self.restoring && self.role == Role::Unknown { Role::Restoring } else { self.role }
    }
}

#[derive(Default)]
struct Notes {
    last_syncup: Option<SyncupReport>,
    last_rollback: Option<RollbackReport>,
    restore: Option<Progress>,
    /// When the session of the last restore began.
    restore_began: Now,
    restore_timeline: Timeline,
    last_restore: Option<Restored>,
    last_error: Option<String>,
}

impl Life {
    /// A life in the directory of `config`, reached by others at `address`, with the state machine
    /// that `open_machine` opens. It does nothing before [`Life::start`].
    ///
    /// # Errors
    /// `BadConfig`, `WrongDirectory`; the log's; the state machine's.
    pub fn open(
        env: Arc<dyn Env>,
        config: NodeConfig,
        address: String,
        clock: Clock,
        around: Arc<dyn Surroundings>,
        open_machine: impl FnOnce(&NodeContext) -> Result<Arc<dyn StateMachine>>,
    ) -> Result<Arc<Self>> {
        let opened = open_directory(env, config, clock, open_machine)?;
        let log = opened.log.clone();
        Self::new(opened, address, around).inspect_err(|_| {
            let _ = log.close(); // what it failed for says more
        })
    }

    pub(crate) fn new(
        opened: Opened,
        address: String,
        around: Arc<dyn Surroundings>,
    ) -> Result<Arc<Self>> {
        let Opened { env, mut config, clock, log, report, housekeeper, slot, machine } = opened;
        let positions = log.positions();
        let limit = if machine.applied() < positions.anchor.vlsn {
            NULL_VLSN // nothing can be applied before a restore
        } else {
            housekeeper.dtvlsn().min(positions.last)
        };
        config.sync.retain(|method| method.is_for(&*machine));
        let giving = SyncNode { env: Arc::clone(&env), machine: Arc::clone(&machine) };
        let offers = StateOffers::new(clock.clone(), &config.sync, &giving);
        let applier = Arc::new(Applier::new(log.clone(), machine, limit));
        let membership = membership(&log)?;
        let ballot = log.control().ballot();
        let me = Peer { name: config.name.clone(), incarnation: ballot.incarnation };
        let setup = NodeSetup {
            me: me.clone(),
            address: address.clone(),
            kind: config.kind,
            priority: config.priority,
            timing: config.election,
            seed: env.entropy(),
            group_name: wanted_group(&config),
            founding: founding(&*env, &log, &config),
            max_repair_bytes: MAX_REPAIR_BYTES,
        };
        let promised = Ballot { epoch: ballot.epoch, term: ballot.term, vote: ballot.vote };
        let core = NodeCore::new(clock.now(), setup, promised, membership.clone());
        let life = Arc::new(Self {
            env,
            applier,
            housekeeper,
            address,
            around,
            offers: Arc::new(offers),
            disk_mending: DiskMending::default(),
            slot,
            open_report: report,
            me,
            core: Mutex::new(core),
            link: Mutex::new(Link { fence: ballot.term, ..Link::default() }),
            public: Mutex::new(Public {
                role: Role::Unknown,
                reason: "opening".to_owned(),
                term: ballot.term,
                master: None,
                mastership: None,
                membership: membership.map(Arc::new),
                restoring: false,
                stopping: false,
                replaced: false,
                failure: None,
            }),
            changed: Condvar::new(),
            notes: Mutex::default(),
            configured: AtomicBool::new(false),
            accepted: AtomicBool::new(false),
            restore_files: Mutex::default(),
            config,
            log,
            clock,
        });
        // The applier may be at it before the life starts.
        let weak = Arc::downgrade(&life);
        life.applier
            .set_on_rot(move |cause| weak.upgrade().is_some_and(|life| life.handle_rot(cause)));
        Ok(life)
    }

    /// Begins: from here on the log's hooks reach this life, and the core speaks.
    pub fn start(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.log.on_durable(move |durable| {
            if let Some(life) = weak.upgrade() {
                life.handle_durable(durable);
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_poisoned(move |cause| {
            if let Some(life) = weak.upgrade() {
                life.fail(&format!("the log failed: {cause}"));
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_read_only(move |_| {
            if let Some(life) = weak.upgrade() {
                life.around.look_again();
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_damaged_block(move |_| {
            if let Some(life) = weak.upgrade() {
                life.request_disk_mending();
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_unsealable(move |segment| {
            if let Some(life) = weak.upgrade() {
                life.handle_unsealable(segment);
            }
        });
        self.log.set_checkpoint(self.applier.machine().checkpointed());
        self.applier.signal();
        self.meet_voters();
        if !self.log.faulty().is_empty() {
            self.request_disk_mending();
        }
        self.handle_timeout();
    }

    // ---- what happens

    /// Somebody met what cannot be read. True if it is to be had from other nodes: what is sealed is
    /// asked for at once; what is not are faulty entries of the log now, and the next conversation with a
    /// master begins with that.
    pub(super) fn handle_rot(&self, cause: &LogError) -> bool {
        let LogError::Corrupt { segment, .. } = cause else { return false };
        if self.members().len() < 2 {
            return false; // there is nobody to have them from
        }
        tracing::error!(node = %self.config.name, "ALARM: {cause}");
        self.notes.lock().last_error = Some(cause.to_string());
        self.mend_sealed(*segment) || self.examine(*segment)
    }

    /// Has the log find out what is damaged in a segment. True if these are faulty entries now.
    pub(super) fn examine(&self, segment: u32) -> bool {
        match self.log.examine(segment) {
            Ok(true) => {
                self.around.post(Input::Unreadable);
                self.cut_channel();
                self.request_disk_mending();
                true
            }
            Ok(false) => false,
            Err(why) => {
                tracing::error!(node = %self.config.name, segment, "not examined: {why}");
                false
            }
        }
    }

    /// Something happened. Called by nobody who holds a lock of the node.
    pub fn handle(&self, input: Input) {
        if matches!(input, Input::LinkUp(_)) {
            self.handle_peer_came();
        }
        self.drive(Some(input));
    }

    /// Time passed.
    pub fn handle_timeout(&self) {
        self.drive(None);
    }

    /// Does what has to be done some time and is due; returns when the next of it is.
    ///
    /// # Errors
    /// The control file's.
    pub fn keep_house(&self) -> Result<Option<Now>> {
        self.housekeeper.step(|now| self.expire(now))
    }

    /// Gives up on what has run out of time, such as commits; returns when the next does.
    pub(crate) fn expire(&self, now: Now) -> Option<Now> {
        let next = self.mastership().and_then(|master| master.handle_timeout(now));
        let others = [self.offers.expire(), self.expire_disk_mending(now)];
        next.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// Has the state machine take a checkpoint; returns the VLSN through which the state is in it.
    ///
    /// # Errors
    /// The state machine's, the control file's.
    pub fn checkpoint(&self) -> Result<Vlsn> {
        checkpointer::checkpoint(&self.log, &**self.applier.machine(), &self.housekeeper)
    }

    /// The log was synced through `durable`.
    fn handle_durable(&self, durable: Vlsn) {
        if let Some(master) = self.mastership() {
            master.handle_local_durable(durable);
            return;
        }
        let stream = self.link.lock().stream.clone();
        if let Some(stream) = stream
            && let Err(cause) = stream.handle_durable(durable)
        {
            // The receiver meets the broken channel too.
            tracing::debug!(node = %self.config.name, "acknowledging: {cause}");
        }
    }

    // ---- what others may ask

    /// The log. A restore replaces it, and the life with it.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What recovery found when this life opened the log.
    pub fn open_report(&self) -> &OpenReport {
        &self.open_report
    }

    /// What applies the log to the state machine.
    pub fn applier(&self) -> &Arc<Applier> {
        &self.applier
    }

    /// Who this node is.
    pub fn me(&self) -> &Peer {
        &self.me
    }

    /// What it does for its group, and in which term.
    pub fn role(&self) -> (Role, Term) {
        let public = self.public.lock();
        (public.role(), public.term)
    }

    /// Whether it was elected, and its term has not begun in its log.
    pub(super) fn is_repairing(&self) -> bool {
        self.core.lock().role() == NodeRole::Repairing
    }

    /// The mastership, while there is one.
    pub fn mastership(&self) -> Option<Arc<Master>> {
        self.public.lock().mastership.clone()
    }

    /// The group, once there is one and its configuration is known.
    pub fn membership(&self) -> Option<Arc<Membership>> {
        self.public.lock().membership.clone()
    }

    /// Highest VLSN known durable on a quorum.
    pub fn dtvlsn(&self) -> Vlsn {
        self.mastership().map_or_else(|| self.housekeeper.dtvlsn(), |master| master.dtvlsn())
    }

    /// What stopped the node, if it was not asked to stop.
    pub fn failure(&self) -> Option<String> {
        self.public.lock().failure.clone()
    }

    /// Asserts what the cores promise.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        self.core.lock().check_invariants();
        if let Some(master) = self.mastership() {
            master.recovering.check_invariants();
        }
    }

    /// The mastership, for a write.
    ///
    /// # Errors
    /// `NotMaster` with the master's address, if known; `Stopped`.
    pub fn sitting_master(&self) -> Result<Arc<Master>> {
        let public = self.public.lock();
        if let Some(master) = &public.mastership {
            return Ok(Arc::clone(master));
        }
        if public.role == Role::Stopped {
            let cause = public.failure.clone().unwrap_or_else(|| "it was shut down".to_owned());
            return Err(RepError::Stopped { cause });
        }
        let master = public.master.as_ref().and_then(|(_, address)| address.clone());
        Err(RepError::NotMaster { master })
    }

    /// Where the master is reached, if known.
    pub fn master_address(&self) -> Option<String> {
        self.master_address_in(&self.public.lock())
    }

    fn master_address_in(&self, public: &Public) -> Option<String> {
        if public.mastership.is_some() {
            return Some(self.address.clone());
        }
        public.master.as_ref().and_then(|(_, address)| address.clone())
    }

    /// How this node introduces itself on a link.
    pub fn introduction(&self) -> Introduction {
        let control = self.log.control().state();
        let group_name = self.group_name(control.group.as_ref());
        // A directory without a configuration is still to be told who votes.
        let group = self.membership().and(control.group).map(|group| group.id);
        Introduction {
            epoch: control.epoch,
            term: control.term,
            versions: LINK_VERSIONS,
            group,
            group_name,
            peer: self.me.clone(),
            kind: self.config.kind,
            priority: self.config.priority,
            address: self.address.clone(),
            capabilities: Capabilities::OURS,
        }
    }

    /// Name of the group that this node belongs to, or may belong to; `None` for any.
    pub(super) fn group_name(&self, own: Option<&GroupIdentity>) -> Option<Name> {
        own.map(|group| group.name.clone()).or_else(|| wanted_group(&self.config))
    }

    /// What the core is to know of who has introduced itself so on a link that it has dialled.
    pub fn news_of(&self, theirs: &Introduction) -> Option<Input> {
        if theirs.group.is_none() {
            let (peer, address) = (theirs.peer.clone(), theirs.address.clone());
            return Some(Input::Joiner { peer, address });
        }
        self.membership().is_none().then_some(Input::GroupMet)
    }

    /// Whether whoever introduces itself so on a link is one to talk to, and in which version.
    ///
    /// # Errors
    /// What to tell it.
    pub fn judge(&self, theirs: &Introduction) -> Result<u16, RejectReason> {
        let membership = self.membership();
        self.introduction().check(theirs, membership.as_deref().map(|m| &m.electorate))
    }

    /// The group's voters.
    pub(crate) fn members(&self) -> Vec<Name> {
        let membership = self.membership();
        let voters = membership.iter().flat_map(|m| m.electorate.voters.iter());
        voters.map(|voter| voter.name.clone()).collect()
    }

    /// Whether the configuration binds this very directory to a vote.
    pub(crate) fn is_bound(&self, name: &Name, incarnation: Incarnation) -> bool {
        self.membership().is_some_and(|m| m.electorate.is_voter(name, incarnation))
    }

    /// Whether that is so of this node's own.
    pub(crate) fn is_voter(&self) -> bool {
        self.is_bound(&self.me.name, self.me.incarnation)
    }

    /// Whether a master has accepted this node, in this life.
    pub(crate) fn was_accepted(&self) -> bool {
        self.accepted.load(Ordering::Acquire)
    }

    /// Whether the state machine can be brought up from this log.
    pub(crate) fn check_state(&self) -> Result<()> {
        let (applied, anchor) = (self.applier.applied(), self.log.positions().anchor.vlsn);
        if applied < anchor { Err(RepError::StateBehindLog { applied, anchor }) } else { Ok(()) }
    }

    /// Waits until the node is `role` or the life is over; false if the time is up before.
    pub(crate) fn wait_role(&self, role: Role, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut public = self.public.lock();
        loop {
            if public.role() == role {
                return true;
            }
            if public.role == Role::Stopped || public.replaced {
                return false;
            }
            if self.changed.wait_until(&mut public, deadline).timed_out() {
                return public.role() == role;
            }
        }
    }

    /// Waits until it is known where the master is reached; `None` if it is not in time.
    pub(crate) fn wait_master(&self, timeout: Duration) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut public = self.public.lock();
        loop {
            let master = self.master_address_in(&public);
            if master.is_some() || public.role == Role::Stopped || public.replaced {
                return master;
            }
            if self.changed.wait_until(&mut public, deadline).timed_out() {
                return self.master_address_in(&public);
            }
        }
    }

    /// Makes the state durable and drops what may go of the log below it and below `keep_from`; see
    /// [`Node::drop_front`](crate::Node::drop_front).
    ///
    /// # Errors
    /// The state machine's and the log's.
    pub fn drop_front(&self, keep_from: Vlsn) -> Result<Vlsn> {
        let checkpoint = self.checkpoint()?;
        self.log.seal_through(self.housekeeper.dtvlsn().min(self.log.positions().durable))?;
        let limit = if keep_from.is_null() { checkpoint } else { checkpoint.min(keep_from.prev()) };
        self.log.forget_absent();
        Ok(self.log.drop_through(limit)?)
    }

    // ---- notes

    pub(crate) fn note_error(&self, cause: &RepError) {
        self.notes.lock().last_error = Some(cause.to_string());
    }

    pub(super) fn note_syncup(&self, report: SyncupReport) {
        self.notes.lock().last_syncup = Some(report);
    }

    /// How many syncups of this life have found a matchpoint.
    pub fn syncups(&self) -> u64 {
        self.notes.lock().last_syncup.as_ref().map_or(0, |last| last.number)
    }

    /// The last of them.
    pub fn last_syncup(&self) -> Option<SyncupReport> {
        self.notes.lock().last_syncup.clone()
    }

    pub(super) fn note_rollback(&self, report: &RollbackReport) {
        self.notes.lock().last_rollback = Some(report.clone());
        if let Some(on_rollback) = &self.config.on_rollback {
            on_rollback(report);
        }
    }

    /// The session of a restore begins.
    pub(super) fn note_restore_begins(&self) {
        let mut notes = self.notes.lock();
        notes.restore_began = self.clock.now();
        notes.restore_timeline = Timeline::default();
    }

    pub(super) fn note_progress(&self, progress: Progress) {
        let now = self.clock.now();
        let mut notes = self.notes.lock();
        let after = now.saturating_sub(notes.restore_began);
        notes.restore_timeline.meet(progress.phase, after);
        notes.restore = Some(progress);
    }

    /// This life began with what a restore brought to `old`.
    pub(crate) fn note_restored(&self, old: &Self, restored: Restored) {
        let (fetched, began, mut timeline) = {
            let old = old.notes.lock();
            (old.restore.clone(), old.restore_began, old.restore_timeline.clone())
        };
        timeline.installed = Some(self.clock.now().saturating_sub(began));
        let mut notes = self.notes.lock();
        notes.restore = fetched;
        notes.restore_timeline = timeline;
        notes.last_restore = Some(restored);
    }

    // ---- the end

    /// Whether nothing goes on any more, or is about to.
    pub fn is_over(&self) -> bool {
        let public = self.public.lock();
        public.stopping || public.role == Role::Stopped
    }

    /// Stops the node at once and loudly. Called by anybody, with any lock held.
    pub(crate) fn fail(&self, cause: &str) {
        let master = {
            let mut public = self.public.lock();
            if public.stopping || public.role == Role::Stopped {
                return;
            }
            public.role = Role::Stopped;
            public.failure = Some(cause.to_owned());
            public.mastership.take()
        };
        tracing::error!(node = %self.config.name, "ALARM: the node stops: {cause}");
        self.changed.notify_all();
        if let Some(master) = master {
            master.abort(cause);
        }
        self.stop();
        self.around.handle_failed();
    }

    /// Ends what waits or goes on by itself.
    pub(crate) fn stop(&self) {
        self.changed.notify_all();
        self.cut_channel();
        self.stop_disk_mending();
        self.applier.stop();
        self.housekeeper.stop();
        self.log.wake_readers();
    }

    /// A next life is to begin: this one takes no more part in anything. False if it is over anyway.
    pub(crate) fn begin_retiring(&self) -> bool {
        let mut public = self.public.lock();
        if public.stopping || public.role == Role::Stopped {
            return false;
        }
        public.stopping = true;
        public.role = Role::Restoring;
        "installing what a restore has fetched".clone_into(&mut public.reason);
        true
    }

    /// Closes what a next life is to open again, in the place of which a restore puts another log.
    pub(crate) fn retire(&self) -> Result<()> {
        *self.slot.write() = None;
        self.housekeeper.raise_floor(Vlsn::default())?;
        match self.log.close() {
            // It is closed, and the end that it finds no room for is not needed any more.
            Err(LogError::ReadOnly { .. }) => Ok(()),
            closed => Ok(closed?),
        }
    }

    /// Another life has taken the seat.
    pub(crate) fn handle_replaced(&self) {
        self.public.lock().replaced = true;
        self.changed.notify_all();
    }

    /// This life has ended, and the node shuts down before the next one.
    pub(crate) fn end_retired(&self) {
        {
            let mut public = self.public.lock();
            public.role = Role::Stopped;
            "shut down".clone_into(&mut public.reason);
        }
        self.changed.notify_all();
    }

    /// This life has ended and the next could not begin.
    pub(crate) fn die(&self, cause: &str) {
        tracing::error!(node = %self.config.name, "ALARM: the node stops: {cause}");
        {
            let mut public = self.public.lock();
            public.role = Role::Stopped;
            public.failure.get_or_insert_with(|| cause.to_owned());
        }
        self.changed.notify_all();
    }

    /// A shutdown begins: no more writes; a moment for the replicas to have everything; another is
    /// proposed as master. `Err` if that was done before, with the outcome.
    pub(crate) fn begin_shutdown(&self) -> Result<(), Result<()>> {
        let master = {
            let mut public = self.public.lock();
            if public.stopping {
                let failed = |cause| Err(RepError::Stopped { cause });
                return Err(public.failure.clone().map_or(Ok(()), failed));
            }
            if public.role == Role::Stopped {
                public.stopping = true;
                return Ok(());
            }
            public.mastership.clone()
        };
        let grace = self.config.shutdown_grace;
        if let Some(master) = &master {
            master.stop_writes("the node is shutting down");
            if !master.drain(grace) {
                tracing::warn!(node = %self.config.name, "shutting down before all replicas have everything");
            }
        }
        self.public.lock().stopping = true;
        self.handle(Input::Closing);
        if let Some(master) = master {
            master.wait_feeders_gone(grace);
            master.close_channels();
        }
        Ok(())
    }

    /// The threads have ended: the last of this life.
    pub(crate) fn finish_shutdown(&self) -> Result<()> {
        let failure = {
            let mut public = self.public.lock();
            public.role = Role::Stopped;
            public.mastership = None;
            if public.failure.is_none() {
                "shut down".clone_into(&mut public.reason);
            }
            public.failure.clone()
        };
        self.changed.notify_all();
        let floor =
            if failure.is_none() { self.housekeeper.raise_floor(Vlsn::default()) } else { Ok(()) };
        let closed = self.log.close();
        floor?;
        closed?;
        match failure {
            Some(cause) => Err(RepError::Stopped { cause }),
            None => Ok(()),
        }
    }
}

/// The group of a directory, if it knows the configuration.
fn membership(log: &Log) -> Result<Option<Membership>> {
    let control = log.control().state();
    let Some(group) = control.group else { return Ok(None) };
    if control.group_config.is_empty() {
        return Ok(None);
    }
    let electorate = Electorate::decode(&control.group_config)?;
    Ok(Some(Membership { group, electorate }))
}

/// What a fresh directory is to found.
fn founding(env: &dyn Env, log: &Log, config: &NodeConfig) -> Option<FoundingWish> {
    let GroupChoice::Create { name, members, segment_bytes, q_rep, q_elect } = &config.group else {
        return None;
    };
    if log.group().is_some() {
        return None;
    }
    let mut id = [0; 16];
    id[..8].copy_from_slice(&env.entropy().to_le_bytes());
    id[8..].copy_from_slice(&env.entropy().to_le_bytes());
    Some(FoundingWish {
        group: GroupIdentity {
            id: GroupId::from_bytes(id),
            name: name.clone(),
            segment_bytes: *segment_bytes,
        },
        members: members.clone(),
        q_rep: *q_rep,
        q_elect: *q_elect,
    })
}

#[cfg(test)]
mod tests;
