//! Master: one mastership; writes, and who is told when.
//!
//! # Lock order
//! `state` -> the log's locks, for the append; so registration order is VLSN order. Whoever holds a
//! lock of the log never waits for `state`: the log calls its hooks with none held, and makes room
//! for a waiting appender before it calls them. `feeders`, `followers` and each session's `core`
//! are leaves.
//! Callbacks, wake-ups and applying happen with no lock held.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use noxu_log::{Log, NewEntry, Pin};
use noxu_util::{Fingerprint, Incarnation, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::heard::{Heard, HeardChannel};
use crate::clock::Clock;
use crate::core::commits::{Admissible, Changed, Commits, Now, Outcome, WaiterId};
use crate::core::durability::{AckPolicy, Class, Durability, SyncPolicy};
use crate::core::feeder::{FeedLimit, Feeder, Lag, StreamTiming};
use crate::core::node::Contact;
use crate::core::quorum::{Acked, Quorum, SessionId};
use crate::core::recovery::{Bounds, RecoveryId};
use crate::driver::applier::Applier;
use crate::driver::housekeeper::Housekeeper;
use crate::driver::recovering::{Errands, Recovering};
use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};
use crate::net::channel::Channel;
use crate::outcome::{CommitId, Undecided};
use crate::stream::feeder::FeederHost;
use crate::wire::election::Peer;
use crate::wire::handshake::NodeKind;
use crate::wire::message::{Ack, Era, Farewell, Leaving};

/// How long a master waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasterLimits {
    /// For enough replicas to be connected, before anything is written.
    pub insufficient_replicas_timeout: Duration,
    /// For acknowledgements of what was written.
    pub ack_timeout: Duration,
    /// Bytes beyond DTVLSN at which writers that ask for no acknowledgement wait.
    pub max_unreplicated_bytes: u64,
    /// Heartbeats and silence on the streams.
    pub timing: StreamTiming,
}

/// One mastership.
pub struct Master {
    term: Term,
    /// First entry of the term.
    term_entry: Vlsn,
    log: Log,
    clock: Clock,
    limits: MasterLimits,
    applier: Arc<Applier>,
    housekeeper: Arc<Housekeeper>,
    state: Mutex<State>,
    /// Something changed that writers before their first entry wait for.
    changed: Condvar,
    /// Copies of the core's bounds, for a look without the lock.
    bounds: [AtomicI64; Class::COUNT],
    dtvlsn: AtomicI64,
    wants_received: AtomicBool,
    /// Classes whose commits may be written, for a look without the lock; see [`Class::bit`].
    admitted: AtomicU16,
    /// Released committers that are woken when what they wait for has been applied.
    followers: Mutex<Vec<Thread>>,
    closing: AtomicBool,
    /// What the streams say then.
    farewell: OnceLock<Farewell>,
    feeders: Mutex<BTreeMap<SessionId, Arc<FeederSession>>>,
    next_session: AtomicU64,
    /// How each replica gets level.
    pub(crate) recovering: Recovering,
    /// Called once, when the term's first entry is durable on a quorum.
    on_term_durable: Box<dyn Fn() + Send + Sync>,
    term_durable: AtomicBool,
}

struct State {
    commits: Commits<Waker>,
    /// Writers that wait before their first entry.
    waiting: usize,
    /// Why the mastership is over.
    closed: Option<Closed>,
}

/// Why a mastership is over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Closed {
    cause: String,
    /// The whole node stops, and not only its mastership.
    stops: bool,
}

impl Closed {
    /// What a writer with nothing written is told.
    fn refusal(&self) -> RepError {
        if self.stops {
            RepError::Stopped { cause: self.cause.clone() }
        } else {
            RepError::NotMaster { master: None }
        }
    }
}

impl State {
    /// Takes no more writes, for the first `cause` that there is.
    fn stop_writes(&mut self, cause: &str, stops: bool) {
        self.closed.get_or_insert_with(|| Closed { cause: cause.to_owned(), stops });
        self.commits.handle_writes_stopped();
    }

    /// Nothing counts any more.
    fn end(&mut self, cause: &str, stops: bool) {
        self.stop_writes(cause, stops);
        self.commits.handle_closed();
    }

    fn check_open(&self) -> Result<()> {
        match &self.closed {
            Some(closed) => Err(closed.refusal()),
            None => Ok(()),
        }
    }
}

/// Whom to tell about a commit.
enum Waker {
    Thread(Thread),
    Callback(Box<dyn FnOnce(Outcome) + Send>),
}

/// One replica's stream as its master keeps it.
pub struct FeederSession {
    /// Its number.
    pub id: SessionId,
    /// The replica.
    pub name: Name,
    /// Number of the replica's directory.
    pub incarnation: Incarnation,
    /// Where the replica can be reached.
    pub address: String,
    /// What it is for.
    pub kind: NodeKind,
    /// Whether the configuration binds this directory to a vote.
    pub(crate) counts: bool,
    pub(crate) channel: Arc<dyn Channel>,
    pub(crate) core: Arc<Mutex<Feeder>>,
    /// When the replica said something last, until its stream is open.
    heard: Heard,
}

/// A replica that passed its handshake.
pub(crate) struct NewSession {
    pub(crate) name: Name,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: String,
    pub(crate) kind: NodeKind,
    pub(crate) epoch: u32,
    pub(crate) counts: bool,
    pub(crate) channel: Arc<dyn Channel>,
}

/// A replica as its master sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The replica.
    pub name: Name,
    /// Where it can be reached.
    pub address: String,
    /// Last VLSN sent; NULL until the stream has begun.
    pub sent: Vlsn,
    /// What it acknowledged.
    pub acked: Ack,
    /// How far it is behind.
    pub lag: Lag,
}

impl Master {
    /// A mastership whose first entry, `term_entry`, was just appended.
    #[allow(clippy::too_many_arguments)] // made in one place
    pub(crate) fn new(
        term: Term,
        term_entry: Vlsn,
        quorum: Quorum,
        dtvlsn: Vlsn,
        log: Log,
        clock: Clock,
        limits: MasterLimits,
        applier: Arc<Applier>,
        housekeeper: Arc<Housekeeper>,
        recovering: Recovering,
        on_term_durable: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let mut commits = Commits::new(quorum, term_entry, dtvlsn);
        let last = log.positions().last;
        if last > term_entry {
            commits.handle_appended_sync(last, 0);
        }
        Self {
            term,
            term_entry,
            log,
            clock,
            limits,
            applier,
            housekeeper,
            state: Mutex::new(State { commits, waiting: 0, closed: None }),
            changed: Condvar::new(),
            bounds: [const { AtomicI64::new(0) }; Class::COUNT],
            dtvlsn: AtomicI64::new(dtvlsn.sequence()),
            wants_received: AtomicBool::new(false),
            admitted: AtomicU16::new(0),
            followers: Mutex::default(),
            closing: AtomicBool::new(false),
            farewell: OnceLock::new(),
            feeders: Mutex::default(),
            next_session: AtomicU64::new(1),
            recovering,
            on_term_durable,
            term_durable: AtomicBool::new(false),
        }
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Waits until a commit under `durability` may be written.
    ///
    /// # Errors
    /// `InsufficientReplicas`; `NotMaster` or `Stopped` if the mastership has ended.
    pub fn admit(self: &Arc<Self>, durability: Durability) -> Result<Admission> {
        if self.is_admitted(durability) {
            return Ok(Admission { master: Arc::clone(self), durability });
        }
        let mut state = self.state.lock();
        let mut since = None;
        let mut left = |limit: Duration| {
            let waited = since.get_or_insert_with(Instant::now).elapsed();
            (limit.saturating_sub(waited), waited)
        };
        loop {
            match self.admission(&state, durability) {
                Admit::Yes(admission) => return Ok(admission),
                Admit::Closed => return Err(state.check_open().expect_err("closed")),
                Admit::Room => {
                    let (left, _) = left(self.limits.ack_timeout);
                    if left.is_zero() {
                        // Back-pressure slows a writer down; it is no error.
                        return Ok(Admission { master: Arc::clone(self), durability });
                    }
                    self.wait_changed(&mut state, left);
                }
                Admit::Replicas { needed, connected } => {
                    let (left, waited) = left(self.limits.insufficient_replicas_timeout);
                    if left.is_zero() {
                        return Err(RepError::InsufficientReplicas { needed, connected, waited });
                    }
                    self.wait_changed(&mut state, left);
                }
                Admit::Applied(vlsn) => {
                    let (left, waited) = left(self.limits.insufficient_replicas_timeout);
                    if left.is_zero() {
                        let (needed, connected) = state.commits.replicas_needed(durability.class());
                        return Err(RepError::InsufficientReplicas { needed, connected, waited });
                    }
                    drop(state);
                    self.applier.wait_applied(vlsn, left)?;
                    state = self.state.lock();
                }
            }
        }
    }

    fn wait_changed(&self, state: &mut MutexGuard<'_, State>, left: Duration) {
        state.waiting += 1;
        self.changed.wait_for(state, left);
        state.waiting -= 1;
    }

    /// Whether a commit under `durability` may be written now, and if not, what is missing.
    pub fn try_admit(self: &Arc<Self>, durability: Durability) -> Admit {
        if self.is_admitted(durability) {
            return Admit::Yes(Admission { master: Arc::clone(self), durability });
        }
        self.admission(&self.state.lock(), durability)
    }

    fn is_admitted(&self, durability: Durability) -> bool {
        self.admitted.load(Ordering::Acquire) & durability.class().bit() != 0
    }

    fn admission(self: &Arc<Self>, state: &State, durability: Durability) -> Admit {
        match self.admissible(state, durability.class()) {
            Admissible::Yes => {
                if durability.acks != AckPolicy::None {
                    // Nothing else tells that the start of the term has been applied.
                    self.publish_admitted(state);
                }
                Admit::Yes(Admission { master: Arc::clone(self), durability })
            }
            Admissible::Replicas { needed, connected } => Admit::Replicas { needed, connected },
            Admissible::Room => Admit::Room,
            Admissible::Applied(vlsn) => Admit::Applied(vlsn),
            Admissible::Closed => Admit::Closed,
        }
    }

    fn admissible(&self, state: &State, class: Class) -> Admissible {
        let limit = self.limits.max_unreplicated_bytes;
        state.commits.admission(class, self.applier.applied(), limit)
    }

    /// Of a class that asks for replicas, only their number decides once writes are served. Others
    /// are slowed down by what is not replicated, which changes all the time.
    fn publish_admitted(&self, state: &State) {
        let admitted = |class: &Class| {
            class.acks() != AckPolicy::None && self.admissible(state, *class) == Admissible::Yes
        };
        let bits = Class::all().filter(admitted).fold(0, |bits, class| bits | class.bit());
        self.admitted.store(bits, Ordering::Release);
    }

    /// Highest VLSN known durable on a majority.
    pub fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.dtvlsn.load(Ordering::Acquire))
    }

    /// Everything through it may be seen by readers here.
    pub fn visible(&self) -> Vlsn {
        self.state.lock().commits.visible()
    }

    /// The local log was synced through `durable`.
    pub(crate) fn handle_local_durable(&self, durable: Vlsn) {
        let mut state = self.state.lock();
        let changed = state.commits.handle_local_durable(durable);
        self.settle(state, changed);
    }

    /// Gives up on commits whose time ran out; returns when the next one's does.
    pub(crate) fn handle_timeout(&self, now: Duration) -> Option<Duration> {
        let mut state = self.state.lock();
        let changed = state.commits.handle_timeout(now);
        let next = state.commits.poll_timeout();
        self.settle(state, changed);
        let errands = self.recovering.handle_timeout(now);
        let due = errands.deadline;
        self.run_errands(errands);
        next.into_iter().chain(due).min()
    }

    /// The log, as recoveries are decided by it.
    pub(crate) fn recovery_bounds(&self) -> Bounds {
        let positions = self.log.positions();
        Bounds { first: positions.anchor.vlsn.next(), last: positions.last, dtvlsn: self.dtvlsn() }
    }

    /// Does what the engine of recoveries wants, and sees to it that it hears of its deadlines.
    pub(crate) fn run_errands(&self, errands: Errands) {
        for link in errands.close {
            let session = self.feeders.lock().get(&SessionId(link.0)).map(Arc::clone);
            if let Some(session) = session {
                tracing::warn!(replica = %session.name, "its stream brings it no further and is ended");
                session.channel.close();
            }
        }
        if let Some(due) = errands.deadline {
            self.housekeeper.arm(due);
        }
    }

    /// A replica passed its handshake. An older session of the same node is closed.
    pub(crate) fn open_session(&self, new: NewSession) -> Arc<FeederSession> {
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let NewSession { name, incarnation, address, kind, epoch, counts, channel } = new;
        let era = Era { epoch, term: self.term };
        let mut core = Feeder::new(era, self.limits.timing, FeedLimit::of(kind));
        core.handle_welcomed();
        let core = Arc::new(Mutex::new(core));
        let heard = Heard::new(AtomicU64::new(self.clock.now().as_nanos() as u64));
        let channel = HeardChannel::new(channel, self.clock.clone(), Arc::clone(&heard));
        let channel = Arc::new(channel);
        let session = Arc::new(FeederSession {
            id,
            name,
            incarnation,
            address,
            kind,
            counts,
            channel,
            core,
            heard,
        });
        let mut feeders = self.feeders.lock();
        let older: Vec<_> =
            feeders.values().filter(|s| s.name == session.name).map(Arc::clone).collect();
        feeders.insert(id, Arc::clone(&session));
        drop(feeders);
        for session in older {
            session.channel.close();
        }
        session
    }

    /// The session's stream begins with `start`.
    pub(crate) fn handle_stream_open(&self, session: &FeederSession, start: Vlsn) {
        session.core.lock().handle_synced_up(self.clock.now(), start);
        let mut state = self.state.lock();
        state.commits.handle_connected(&session.name, session.incarnation, session.id);
        self.publish_admitted(&state);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
    }

    /// The session is over.
    pub(crate) fn handle_session_closed(&self, session: &FeederSession) {
        let mut state = self.state.lock();
        self.feeders.lock().remove(&session.id);
        state.commits.handle_disconnected(session.id);
        self.publish_admitted(&state);
        drop(state);
        self.changed.notify_all();
    }

    fn handle_ack(&self, session: SessionId, ack: Ack) {
        let mut state = self.state.lock();
        let acked = Acked { received: ack.received, durable: ack.durable };
        let changed = state.commits.handle_ack(session, acked);
        self.settle(state, changed);
    }

    /// Tells everybody what an event has changed.
    ///
    /// Of the committers that it releases the first is woken, applies what has become visible and
    /// then wakes the others: each of them wakes once, to find everything done.
    fn settle(&self, mut state: MutexGuard<'_, State>, changed: Changed) {
        let dtvlsn = state.commits.dtvlsn();
        if changed.dtvlsn {
            self.dtvlsn.store(dtvlsn.sequence(), Ordering::Release);
        }
        let idle = dtvlsn == state.commits.last();
        let waiting = state.waiting > 0 && changed != Changed::default();
        // Under the lock, and not once the mastership is over: a rollback may have taken back what
        // was visible, and a late event must not bring it forward again.
        let raised = !state.commits.is_closed() && self.applier.raise(state.commits.visible());
        let mut threads = Vec::new();
        let mut callbacks = Vec::new();
        if state.commits.has_released() {
            for (waker, outcome) in state.commits.poll_released() {
                match waker {
                    Waker::Thread(thread) => threads.push(thread),
                    Waker::Callback(callback) => callbacks.push((callback, outcome)),
                }
            }
        }
        if raised && threads.len() > 1 {
            // Before the bounds: who finds its commit satisfied, woken or not, wakes its followers.
            self.followers.lock().extend(threads.drain(1..));
        }
        if changed.bounds {
            for class in Class::all() {
                self.publish_bound(&state, class);
            }
            self.wants_received.store(state.commits.waits_for_received(), Ordering::Release);
        }
        drop(state);

        // A committer that is woken applies; without one the applier thread does.
        if raised && threads.is_empty() {
            self.applier.signal();
        }
        threads.iter().for_each(Thread::unpark);
        for (callback, outcome) in callbacks {
            callback(outcome);
        }
        if waiting {
            self.changed.notify_all();
        }
        if dtvlsn >= self.term_entry && !self.term_durable.swap(true, Ordering::AcqRel) {
            (self.on_term_durable)();
        }
        if changed.dtvlsn {
            if idle {
                // Nothing else is to come that DTVLSN could ride with.
                self.log.wake_readers();
            }
            self.housekeeper.handle_dtvlsn(dtvlsn);
        }
    }

    fn wake_followers(&self) {
        let followers = std::mem::take(&mut *self.followers.lock());
        followers.iter().for_each(Thread::unpark);
    }

    fn publish_bound(&self, state: &State, class: Class) {
        let bound = state.commits.bound(class).sequence();
        self.bounds[class.index()].fetch_max(bound, Ordering::AcqRel);
    }

    /// Incarnation of the connected replica of this name.
    pub(crate) fn connected(&self, name: &Name) -> Option<Incarnation> {
        self.feeders.lock().values().find(|s| s.name == *name).map(|s| s.incarnation)
    }

    /// The replicas as they are connected.
    pub fn replicas(&self) -> Vec<ReplicaStatus> {
        let (now, last) = (self.clock.now(), self.log.positions().last);
        let sessions: Vec<_> = self.feeders.lock().values().map(Arc::clone).collect();
        let status = |session: &Arc<FeederSession>| {
            let core = session.core.lock();
            ReplicaStatus {
                name: session.name.clone(),
                address: session.address.clone(),
                sent: core.sent(),
                acked: core.acked(),
                lag: core.lag(now, last),
            }
        };
        sessions.iter().map(status).collect()
    }

    /// Waits until every connected voter holds everything durably that this log holds, and DTVLSN
    /// says so if they are enough, at most `timeout`. True if that came to pass.
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let last = self.log.positions().last;
        self.log.request_sync(); // of writes that nobody asked it for: they count too
        let mut state = self.state.lock();
        loop {
            let behind = self
                .feeders
                .lock()
                .values()
                .any(|session| session.core.lock().is_streaming_behind(last));
            // A feeder knows an acknowledgement a moment before it is counted; the goodbye is to
            // bring what all of them together have made durable.
            let quorum = state.commits.quorum();
            let enough = quorum.connected() + 1 >= quorum.replication_quorum();
            let uncounted = enough && state.commits.dtvlsn() < last;
            if !behind && !uncounted {
                return true;
            }
            state.waiting += 1;
            let waited = self.changed.wait_until(&mut state, deadline);
            state.waiting -= 1;
            if waited.timed_out() {
                return false;
            }
        }
    }

    /// Takes no more writes; those written may still be reported.
    pub(crate) fn stop_writes(&self, cause: &str) {
        let mut state = self.state.lock();
        state.stop_writes(cause, true);
        self.publish_admitted(&state);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the streams have said goodbye, at most `timeout`.
    pub(crate) fn wait_feeders_gone(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while !self.feeders.lock().is_empty() {
            state.waiting += 1;
            let waited = self.changed.wait_until(&mut state, deadline);
            state.waiting -= 1;
            if waited.timed_out() {
                return;
            }
        }
    }

    /// Ends the mastership: writers and waiters are told, and the streams say goodbye, with the name
    /// of the node that is to be master next.
    pub(crate) fn close(&self, cause: &str, why: Leaving, successor: Option<Name>) {
        self.farewell.get_or_init(|| Farewell { why, successor });
        let mut state = self.state.lock();
        state.end(cause, why == Leaving::Closing);
        self.publish_admitted(&state);
        self.closing.store(true, Ordering::Release);
        self.settle(state, Changed::default());
        self.changed.notify_all();
        self.log.wake_readers();
    }

    /// As [`Master::close`], and cuts the streams at once.
    pub(crate) fn abort(&self, cause: &str) {
        self.close(cause, Leaving::Closing, None);
        self.close_channels();
    }

    /// As long as this is held, nothing is written and nothing counts.
    pub(crate) fn gate(&self) -> MasterGate<'_> {
        MasterGate { state: self.state.lock() }
    }

    /// When each voter that has a conversation with this master was last heard, and how far it is.
    pub(crate) fn contacts(&self) -> Vec<Contact> {
        let feeders = self.feeders.lock();
        // One that is being compared with this log follows it already, and where every answer takes its
        // time the comparison may take longer than a master is given without a quorum.
        let connected = feeders.values().map(|session| {
            let core = session.core.lock();
            let before_stream = Now::from_nanos(session.heard.load(Ordering::Acquire));
            Contact {
                peer: Peer { name: session.name.clone(), incarnation: session.incarnation },
                heard: core.last_heard().unwrap_or(before_stream),
                durable: core.acked().durable,
            }
        });
        // A long restore must not cost the mastership that it comes from.
        let restoring = self.recovering.restoring().into_iter();
        let restoring = restoring.map(|(name, incarnation, heard)| Contact {
            peer: Peer { name, incarnation },
            heard,
            durable: NULL_VLSN,
        });
        connected.chain(restoring).collect()
    }

    /// Cuts all streams.
    pub(crate) fn close_channels(&self) {
        let sessions: Vec<_> = self.feeders.lock().values().map(Arc::clone).collect();
        for session in sessions {
            session.channel.close();
        }
    }

    fn closed_cause(&self) -> Option<String> {
        self.closing.load(Ordering::Acquire).then(|| {
            let closed = self.state.lock().closed.clone();
            closed.map_or_else(|| "the mastership ended".to_owned(), |closed| closed.cause)
        })
    }
}

/// Holds a mastership still.
pub(crate) struct MasterGate<'a> {
    state: MutexGuard<'a, State>,
}

impl MasterGate<'_> {
    /// From now on nothing is written and nothing counts, for good.
    pub(crate) fn fence(&mut self, cause: &str) {
        self.state.end(cause, false);
    }
}

/// The master as one of its feeders sees it.
pub(crate) struct SessionHost {
    pub(crate) master: Arc<Master>,
    pub(crate) session: SessionId,
    pub(crate) replica: Name,
    pub(crate) recovery: RecoveryId,
    /// The replica's place in the log.
    pub(crate) pin: Pin,
}

impl FeederHost for SessionHost {
    fn dtvlsn(&self) -> Vlsn {
        self.master.dtvlsn()
    }

    fn wants_received(&self) -> bool {
        self.master.wants_received.load(Ordering::Acquire)
    }

    fn handle_ack(&self, ack: Ack) {
        self.master.handle_ack(self.session, ack);
        let follows_received = mutant::is_on(Mutant::PlaceFollowsReceived);
        let has = if follows_received { ack.received } else { ack.durable };
        self.pin.advance(has.next());
        let (master, now) = (&self.master, self.master.clock.now());
        let bounds = || master.recovery_bounds();
        let errands =
            master.recovering.handle_ack(now, &self.replica, self.recovery, ack.durable, bounds);
        if let Some(errands) = errands {
            master.run_errands(errands);
        }
    }

    fn closing(&self) -> Option<Farewell> {
        let closing = self.master.closing.load(Ordering::Acquire);
        closing.then(|| self.master.farewell.get().cloned()).flatten()
    }
}

/// Whether a commit may be written.
#[derive(Debug)]
pub enum Admit {
    /// It may.
    Yes(Admission),
    /// Too few replicas are connected, for the term to begin or for the policy.
    Replicas {
        /// How many must be connected.
        needed: usize,
        /// How many are.
        connected: usize,
    },
    /// Too much is not replicated yet.
    Room,
    /// This VLSN has to be applied first.
    Applied(Vlsn),
    /// The mastership is over.
    Closed,
}

/// Leave to write a commit under one policy. It speaks of the moment it was given in: a replica
/// that leaves afterwards is like one that leaves after the write.
pub struct Admission {
    master: Arc<Master>,
    durability: Durability,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("durability", &self.durability).finish_non_exhaustive()
    }
}

impl Admission {
    /// The term it would write in.
    pub fn term(&self) -> Term {
        self.master.term
    }

    /// First entry of that term.
    pub fn term_entry(&self) -> Vlsn {
        self.master.term_entry
    }

    /// Writes `batch`, the entries of one transaction whose last is a commit, and registers it.
    /// Waits for nothing but room in the log's memory, so a caller may hold a lock of its own.
    /// What the policy asks of this node's disk begins with [`Submitted::start`] or
    /// [`Submitted::wait`]; until then only the log's background sync is sure to come.
    ///
    /// # Errors
    /// With nothing written: `NotMaster` or `Stopped` if the mastership has ended; the log's.
    ///
    /// # Panics
    /// If the batch does not end in a commit.
    pub fn write(self, batch: &[NewEntry<'_>]) -> Result<Submitted> {
        let Self { master, durability } = self;
        let ends_in_commit = batch.last().is_some_and(|entry| entry.flags().is_commit());
        assert!(ends_in_commit, "a batch of {} entries without a commit at its end", batch.len());
        let class = durability.class();
        let bytes: usize = batch.iter().map(NewEntry::entry_bytes).sum();
        // Not with the lock, which acknowledgements and elections need: the disk may be stuck.
        let mut state = loop {
            master.log.await_room()?;
            let state = master.state.lock();
            if master.log.has_room() {
                break state;
            }
        };
        state.check_open()?;
        if class.waits_for_received() {
            // Before the append, so that no feeder ships the entry without the wish.
            master.wants_received.store(true, Ordering::Release);
        }
        let deadline = master.clock.now() + master.limits.ack_timeout;
        let appended = master.log.append(master.term, batch)?;
        let commit = Some((class, deadline));
        let pending = state.commits.handle_appended(appended.last, bytes as u64, commit);
        if !pending {
            master.publish_bound(&state, class);
        }
        let raised = master.applier.raise(state.commits.visible());
        drop(state);
        if pending {
            master.housekeeper.arm(deadline);
        }
        if raised {
            master.applier.signal();
        }
        Ok(Submitted {
            master,
            vlsn: appended.last,
            fingerprint: appended.last_fingerprint,
            class,
            local: durability.local,
            deadline,
        })
    }
}

/// A commit that was written: wait for its policy, ask, or be called back. Dropping it changes
/// nothing about the commit.
#[derive(Clone)]
pub struct Submitted {
    master: Arc<Master>,
    vlsn: Vlsn,
    fingerprint: Fingerprint,
    class: Class,
    local: SyncPolicy,
    deadline: Duration,
}

impl std::fmt::Debug for Submitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submitted").field("vlsn", &self.vlsn).finish_non_exhaustive()
    }
}

impl Submitted {
    /// The commit entry.
    pub fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    /// The term it was written in.
    pub fn term(&self) -> Term {
        self.master.term
    }

    /// Fingerprint of the log through the commit entry.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether the policy is met by now; `None` while that is open.
    pub fn poll(&self) -> Option<Result<()>> {
        if self.is_satisfied() {
            return Some(Ok(()));
        }
        if let Some(cause) = self.master.closed_cause() {
            return Some(Err(self.undecided(Undecided::MastershipEnded(cause))));
        }
        (self.master.clock.now() >= self.deadline).then(|| Err(self.unknown()))
    }

    /// Asks the log's own thread for what the policy asks of this node's disk; returns at once.
    pub fn start(&self) {
        match self.local {
            SyncPolicy::Sync => self.master.log.request_sync(),
            SyncPolicy::WriteNoSync => self.master.log.request_write(),
            SyncPolicy::NoSync => {}
        }
    }

    /// Blocks until the policy is met. If the commit can be visible by then, it is applied too.
    /// A thread that waits syncs the log itself if nobody is at it, instead of waking another.
    ///
    /// # Errors
    /// `OutcomeUnknown` once `ack_timeout` has passed since the write, or when the mastership has
    /// ended before; the log's.
    pub fn wait(&self) -> Result<()> {
        if !self.is_satisfied() {
            match self.local {
                SyncPolicy::Sync => drop(self.master.log.help_sync(self.vlsn)?),
                SyncPolicy::WriteNoSync | SyncPolicy::NoSync => self.start(),
            }
        }
        self.wait_until(self.deadline).unwrap_or_else(|| Err(self.unknown()))
    }

    /// As [`Submitted::wait`], but gives up after `timeout` with `None`; the commit goes on.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<()>> {
        let until = self.master.clock.now() + timeout;
        match self.wait_until(until.min(self.deadline)) {
            None if until >= self.deadline => Some(Err(self.unknown())),
            outcome => outcome,
        }
    }

    /// Calls `done` once with what [`Submitted::wait`] would return, from a thread of the node; at
    /// once in this thread if that is known; never if the node is dropped before its mastership ends.
    /// It must not block.
    pub fn on_done(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        let &Self { ref master, vlsn, fingerprint, class, local, deadline } = self;
        // The mastership keeps the callback, which must not keep the mastership.
        let master = Arc::downgrade(master);
        let callback = move |outcome| {
            let Some(master) = master.upgrade() else { return };
            let this = Self { master, vlsn, fingerprint, class, local, deadline };
            done(match outcome {
                Outcome::Satisfied => Ok(()),
                Outcome::TimedOut => Err(this.unknown()),
                Outcome::Closed => {
                    let cause = this.master.closed_cause().unwrap_or_default();
                    Err(this.undecided(Undecided::MastershipEnded(cause)))
                }
            });
        };
        let mut state = self.master.state.lock();
        state.commits.wait_for(self.class, self.vlsn, Waker::Callback(Box::new(callback)));
        self.master.settle(state, Changed::default());
    }

    fn wait_until(&self, until: Duration) -> Option<Result<()>> {
        let outcome = self.park_until(until);
        let applied = self.see_applied(outcome.as_ref().is_some_and(Result::is_ok));
        self.master.wake_followers();
        match applied {
            Ok(()) => outcome,
            Err(cause) => Some(Err(cause)),
        }
    }

    /// Applies what the event that woke this thread has made visible, this commit included if it
    /// is `satisfied` and can be.
    fn see_applied(&self, satisfied: bool) -> Result<()> {
        let applier = &self.master.applier;
        applier.help()?;
        if satisfied && applier.limit() >= self.vlsn {
            let left = self.deadline.saturating_sub(self.master.clock.now());
            applier.wait_applied(self.vlsn, left)?;
        }
        Ok(())
    }

    fn park_until(&self, until: Duration) -> Option<Result<()>> {
        if self.is_satisfied() {
            return Some(Ok(()));
        }
        let mut id: Option<WaiterId> = None;
        loop {
            if let Some(outcome) = self.poll() {
                self.forget(id);
                return Some(outcome);
            }
            let now = self.master.clock.now();
            if now >= until {
                self.forget(id);
                return None;
            }
            if id.is_none() {
                let mut state = self.master.state.lock();
                let waker = Waker::Thread(std::thread::current());
                id = Some(state.commits.wait_for(self.class, self.vlsn, waker));
                // Settled in the meantime: this thread is released and parks not at all.
                self.master.settle(state, Changed::default());
                continue;
            }
            std::thread::park_timeout(until.saturating_sub(now));
        }
    }

    fn forget(&self, id: Option<WaiterId>) {
        if let Some(id) = id
            && !self.is_satisfied()
        {
            self.master.state.lock().commits.forget(self.class, id);
        }
    }

    fn is_satisfied(&self) -> bool {
        self.master.bounds[self.class.index()].load(Ordering::Acquire) >= self.vlsn.sequence()
    }

    /// Names the commit for ever.
    pub fn id(&self) -> CommitId {
        CommitId { vlsn: self.vlsn, term: self.master.term, fingerprint: self.fingerprint }
    }

    fn unknown(&self) -> RepError {
        self.undecided(Undecided::TimedOut(self.master.limits.ack_timeout))
    }

    fn undecided(&self, why: Undecided) -> RepError {
        RepError::OutcomeUnknown { commit: self.id(), why }
    }
}
