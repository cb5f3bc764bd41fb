//! Node: one member of a group, in one process: its log, its state machine, its port, its role.
//!
//! # Threads
//! listener and one thread per connection (dispatcher) · per replica on a master: the ack reader
//! (the connection's thread) and the sender · on a replica: the follower, which receives, appends,
//! syncs and acknowledges · applier · housekeeper · the log's own.
//! A thread of ours that panics or meets an error that only an operator can settle stops the node.
//!
//! # Lock order
//! `role` and `link` are leaves but for each other: `role` -> `link`. Then see driver/master.rs,
//! driver/applier.rs and noxu-log. No lock of the node is held while a hook, callback, handler or
//! the state machine runs.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use noxu_log::env::Env;
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, Log, LogError, NewEntry};
use noxu_util::{GroupId, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::clock::Clock;
use crate::config::{GroupChoice, NodeConfig, RoleConfig};
use crate::core::durability::Durability;
use crate::core::quorum::Quorum;
use crate::driver::applier::Applier;
use crate::driver::checkpointer::{self, Checkpointer};
use crate::driver::housekeeper::Housekeeper;
use crate::driver::master::{Admission, Master, Submitted};
use crate::driver::seat::{HousekeeperSlot, Seat, open_sound};
use crate::driver::{replica_loop, services};
use crate::error::{RepError, Result};
use crate::group::{GroupConfig, MAX_MEMBERS, term_body};
use crate::net::channel::Channel;
use crate::net::dispatcher::{
    Dispatcher, DispatcherConfig, RESTORE_SERVICE_NAME, STATUS_SERVICE_NAME, dial,
};
use crate::restore::provider::RestoreProvider;
use crate::restore::session::{Restoring, fetch, is_committed};
use crate::restore::{Progress, Restored, install};
use crate::status::{Role, RollbackReport, Status, SyncupReport};
use crate::stream::replica::ReplicaStream;
use crate::sync::StateMachine;
use crate::wire::handshake::Welcome;
use crate::wire::probe::{ProbeAnswer, encode_question};

/// A member of a group. Cheap to clone; the last handle dropped shuts the node down.
#[derive(Clone)]
pub struct Node {
    owner: Arc<Owner>,
}

/// What a state machine may need as long as it lives.
#[derive(Clone)]
pub struct NodeContext {
    env: Arc<dyn Env>,
    state_dir: PathBuf,
    housekeeper: HousekeeperSlot,
}

impl NodeContext {
    /// The file system that the node lives on.
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }

    /// Directory for the state machine's files. It may not exist yet.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    /// Highest VLSN known durable on a majority: never rolled back. NULL while the log is being
    /// replaced by a restore.
    pub fn dtvlsn(&self) -> Vlsn {
        self.housekeeper.read().as_ref().map_or(NULL_VLSN, |housekeeper| housekeeper.dtvlsn())
    }

    /// Everything through `vlsn` is in a checkpoint that the state machine has taken by itself: its
    /// log is not needed for another open. Nothing happens while the log is being replaced by a
    /// restore.
    pub fn note_checkpoint(&self, vlsn: Vlsn) {
        if let Some(housekeeper) = &*self.housekeeper.read() {
            housekeeper.handle_checkpoint(vlsn);
        }
    }

    /// Makes durable, before a checkpoint at `vlsn`, that nothing at or below it may be rolled back.
    /// `vlsn` must be at or below [`NodeContext::dtvlsn`].
    ///
    /// # Errors
    /// The control file's; `Stopped` while the log is being replaced by a restore.
    pub fn raise_commit_floor(&self, vlsn: Vlsn) -> Result<()> {
        // Held meanwhile, so that the log is not replaced under it.
        match &*self.housekeeper.read() {
            Some(housekeeper) => housekeeper.raise_floor(vlsn),
            None => Err(RepError::Stopped { cause: "the log is being restored".to_owned() }),
        }
    }
}

/// Shuts the node down when the last handle goes. The node's own threads hold `Inner`, not this.
struct Owner {
    seat: Arc<Seat>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(cause) = self.seat.shutdown() {
            tracing::error!(node = %self.seat.current().config.name, "shutting down: {cause}");
        }
    }
}

/// One life of a node: from the opening of its log to its closing.
pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    pub(crate) log: Log,
    pub(crate) clock: Clock,
    pub(crate) applier: Arc<Applier>,
    pub(crate) housekeeper: Arc<Housekeeper>,
    checkpointer: Checkpointer,
    dispatcher: Arc<Dispatcher>,
    seat: OnceLock<Weak<Seat>>,
    role: Mutex<RoleState>,
    /// The role changed, the node stops, or the replica loop is to look again.
    role_changed: Condvar,
    link: Mutex<Link>,
    notes: Mutex<Notes>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct RoleState {
    role: Role,
    /// Why, in words.
    reason: String,
    master: Option<Arc<Master>>,
    /// This life is ending.
    stopping: bool,
    /// Another life has taken this one's seat.
    replaced: bool,
    /// What stopped the node, if it was not asked to.
    failure: Option<String>,
}

/// The replica's connection.
#[derive(Default)]
struct Link {
    channel: Option<Arc<dyn Channel>>,
    stream: Option<Arc<ReplicaStream>>,
    /// Where the master was last seen.
    master: Option<String>,
}

#[derive(Default)]
struct Notes {
    members: Vec<Name>,
    last_syncup: Option<SyncupReport>,
    last_rollback: Option<RollbackReport>,
    restore: Option<Progress>,
    last_restore: Option<Restored>,
    last_error: Option<String>,
}

impl Node {
    /// Opens the node in its directory: recovers the log, opens the state machine with `open`,
    /// listens, and takes up its role.
    ///
    /// # Errors
    /// The log's; `Bind`; `BadConfig`, `WrongDirectory`; `TermTooLow` for a master whose term is
    /// not above every term that this node or a reachable peer knows.
    pub fn open(
        env: Arc<dyn Env>,
        config: NodeConfig,
        open: impl FnOnce(&NodeContext) -> Result<Arc<dyn StateMachine>>,
    ) -> Result<Self> {
        check_config(&config)?;
        let clock = Clock::start();
        let housekeeper: HousekeeperSlot = Arc::default();
        let context = NodeContext {
            env: Arc::clone(&env),
            state_dir: config.dir.join("state"),
            housekeeper: Arc::clone(&housekeeper),
        };
        // A restore that a crash cut short after its commit is finished before anything else.
        let (machine, open) = if is_committed(&*env, &config.dir)? {
            let machine = open(&context)?;
            let restored = install::install(&env, &config.dir, &config.log, &*machine, &clock)?;
            tracing::info!(node = %config.name, ?restored, "finished a restore");
            (Some(machine), None)
        } else {
            (None, Some(open))
        };
        let (log, report) = open_sound(&env, &config)?;
        tracing::info!(node = %config.name, dir = %config.dir.display(), ?report, "log opened");
        let opened = Self::open_over(env, &log, config, machine, clock, &context, open);
        if opened.is_err() {
            let _ = log.close(); // what opening failed for says more
        }
        opened
    }

    fn open_over(
        env: Arc<dyn Env>,
        log: &Log,
        config: NodeConfig,
        machine: Option<Arc<dyn StateMachine>>,
        clock: Clock,
        context: &NodeContext,
        open: Option<impl FnOnce(&NodeContext) -> Result<Arc<dyn StateMachine>>>,
    ) -> Result<Self> {
        claim_directory(log, &config)?;
        let housekeeper = Arc::new(Housekeeper::new(log.clone(), clock.clone()));
        *context.housekeeper.write() = Some(Arc::clone(&housekeeper));
        let machine = match (machine, open) {
            (Some(machine), _) => machine,
            (None, Some(open)) => open(context)?,
            (None, None) => unreachable!("a machine is open or is to be opened"),
        };
        let dispatcher = Dispatcher::bind(&config.listen, DispatcherConfig::default())?;
        let inner =
            Inner::new(log.clone(), clock, housekeeper, config, machine, Arc::new(dispatcher));
        let seat = Seat::new(env, Arc::clone(&context.housekeeper), &inner);
        let node = Self { owner: Arc::new(Owner { seat }) };
        node.inner().start()?;
        Ok(node)
    }

    fn inner(&self) -> Arc<Inner> {
        self.owner.seat.current()
    }

    /// Waits until a commit under `durability` may be written, and gives leave to write it: for
    /// callers that decide under a lock of their own what to write.
    ///
    /// # Errors
    /// `NotMaster`, `InsufficientReplicas`, `Stopped`.
    pub fn admit(&self, durability: Durability) -> Result<Admission> {
        self.inner().sitting_master()?.admit(durability)
    }

    /// Writes `batch`, the entries of one transaction whose last is a commit, and returns a handle
    /// to wait for `durability` with.
    ///
    /// # Errors
    /// With nothing written: `NotMaster`, `InsufficientReplicas`, `Stopped`, the log's.
    ///
    /// # Panics
    /// If the batch does not end in a commit.
    pub fn submit(&self, batch: &[NewEntry<'_>], durability: Durability) -> Result<Submitted> {
        let submitted = self.admit(durability)?.write(batch)?;
        submitted.start();
        Ok(submitted)
    }

    /// [`Node::submit`] and [`Submitted::wait`] in one, which may save a wake-up.
    ///
    /// # Errors
    /// Those of both.
    ///
    /// # Panics
    /// If the batch does not end in a commit.
    pub fn commit(&self, batch: &[NewEntry<'_>], durability: Durability) -> Result<Submitted> {
        let submitted = self.admit(durability)?.write(batch)?;
        submitted.wait()?;
        Ok(submitted)
    }

    /// The address the node listens on, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner().dispatcher().local_addr()
    }

    /// The node's name.
    pub fn name(&self) -> Name {
        self.inner().config.name.clone()
    }

    /// What the node does.
    pub fn role(&self) -> Role {
        self.inner().role.lock().role
    }

    /// The log. A network restore replaces it: ask again rather than keep it.
    pub fn log(&self) -> Log {
        self.inner().log.clone()
    }

    /// The state machine.
    pub fn machine(&self) -> Arc<dyn StateMachine> {
        Arc::clone(self.inner().applier.machine())
    }

    /// Highest VLSN known durable on a majority.
    pub fn dtvlsn(&self) -> Vlsn {
        self.inner().dtvlsn()
    }

    /// Everything through it is applied.
    pub fn applied(&self) -> Vlsn {
        self.inner().applier.applied()
    }

    /// Blocks until a majority is known to hold everything through `vlsn` durably; false if the
    /// time is up or the node stops before.
    pub fn wait_durable(&self, vlsn: Vlsn, timeout: Duration) -> bool {
        self.inner().housekeeper.wait_dtvlsn(vlsn, timeout)
    }

    /// Blocks until everything through `vlsn` is applied here; false if the time is up before.
    ///
    /// # Errors
    /// The state machine's failure.
    pub fn wait_applied(&self, vlsn: Vlsn, timeout: Duration) -> Result<bool> {
        self.inner().applier.wait_applied(vlsn, timeout)
    }

    /// Makes the state durable and drops what may go of the log below it and below `keep_from`,
    /// whatever the configuration would keep: whole sealed segments that no connected replica and no
    /// restore under way needs. Members that are away lose their places. Nobody has to call it: the
    /// log is dropped by itself as [`LogConfig::retention`](noxu_log::LogConfig::retention) says.
    /// Returns the VLSN through which the log is gone.
    ///
    /// # Errors
    /// The state machine's and the log's.
    pub fn drop_front(&self, keep_from: Vlsn) -> Result<Vlsn> {
        let inner = self.inner();
        let machine = inner.applier.machine();
        let checkpoint = checkpointer::checkpoint(&inner.log, &**machine, &inner.housekeeper)?;
        inner.log.seal_through(inner.housekeeper.dtvlsn().min(inner.log.positions().durable))?;
        let limit = if keep_from.is_null() { checkpoint } else { checkpoint.min(keep_from.prev()) };
        inner.log.forget_absent();
        Ok(inner.log.drop_through(limit)?)
    }

    /// A snapshot of everything the node can say about itself.
    pub fn status(&self) -> Status {
        self.inner().status()
    }

    /// What stopped the node, if it was not asked to stop.
    pub fn failure(&self) -> Option<String> {
        self.inner().role.lock().failure.clone()
    }

    /// Blocks until the node stops, whether asked to or by a failure; false if the time is up.
    pub fn wait_stopped(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let inner = self.inner();
            let mut role = inner.role.lock();
            while role.role != Role::Stopped && !role.replaced {
                if inner.role_changed.wait_until(&mut role, deadline).timed_out() {
                    return role.role == Role::Stopped;
                }
            }
            if role.role == Role::Stopped {
                return true;
            }
        }
    }

    /// Shuts down in order: no more writes; a moment for the replicas to have everything; the
    /// streams end with a goodbye; every thread is joined; the log is synced and closed.
    /// Idempotent.
    ///
    /// # Errors
    /// The log's, or what stopped the node before.
    pub fn shutdown(&self) -> Result<()> {
        self.owner.seat.shutdown()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name())
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

fn check_config(config: &NodeConfig) -> Result<()> {
    if let GroupChoice::Create { members, .. } = &config.group {
        if config.role == RoleConfig::Replica {
            return Err(RepError::BadConfig {
                field: "role",
                found: "replica".to_owned(),
                expected: "master, because the node is to found a group".to_owned(),
            });
        }
        let names: Vec<_> = members.iter().map(Name::as_str).collect();
        if !members.contains(&config.name) {
            return Err(RepError::BadConfig {
                field: "members",
                found: names.join(", "),
                expected: format!("this node, {}, among them", config.name),
            });
        }
        if members.len() > MAX_MEMBERS {
            return Err(RepError::BadConfig {
                field: "members",
                found: members.len().to_string(),
                expected: format!("at most {MAX_MEMBERS}"),
            });
        }
    }
    Ok(())
}

/// Makes sure that the directory is this node's, and this group's if it has one.
fn claim_directory(log: &Log, config: &NodeConfig) -> Result<()> {
    let control = log.control().state();
    let wrong = |what, found: &Name, expected: &Name| RepError::WrongDirectory {
        dir: log.dir().display().to_string(),
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    };
    match &control.node {
        Some(node) if *node != config.name => return Err(wrong("node", node, &config.name)),
        Some(_) => {}
        None => log.control().update(|control| control.node = Some(config.name.clone()))?,
    }
    let wanted = match &config.group {
        GroupChoice::Create { name, .. } => Some(name),
        GroupChoice::Join { name } => name.as_ref(),
    };
    match (&control.group, wanted) {
        (Some(group), Some(wanted)) if group.name != *wanted => {
            return Err(wrong("group", &group.name, wanted));
        }
        _ => {}
    }
    if let (None, GroupChoice::Create { name, segment_bytes, .. }) = (&control.group, &config.group)
    {
        log.found(GroupIdentity {
            id: GroupId::random(),
            name: name.clone(),
            segment_bytes: *segment_bytes,
        })?;
    }
    Ok(())
}

impl Inner {
    /// A life over `log` that has not started. `housekeeper` goes by the same clock.
    pub(crate) fn new(
        log: Log,
        clock: Clock,
        housekeeper: Arc<Housekeeper>,
        config: NodeConfig,
        machine: Arc<dyn StateMachine>,
        dispatcher: Arc<Dispatcher>,
    ) -> Arc<Self> {
        let positions = log.positions();
        let limit = if machine.applied() < positions.anchor.vlsn {
            NULL_VLSN // nothing can be applied before a restore
        } else {
            housekeeper.dtvlsn().min(positions.last)
        };
        let applier = Arc::new(Applier::new(log.clone(), machine, limit));
        Arc::new(Self {
            log,
            clock,
            applier,
            housekeeper,
            dispatcher,
            checkpointer: Checkpointer::default(),
            seat: OnceLock::new(),
            role: Mutex::new(RoleState {
                role: Role::Replica,
                reason: "opening".to_owned(),
                master: None,
                stopping: false,
                replaced: false,
                failure: None,
            }),
            role_changed: Condvar::new(),
            link: Mutex::default(),
            notes: Mutex::default(),
            threads: Mutex::default(),
            config,
        })
    }

    pub(crate) fn take_seat(&self, seat: &Arc<Seat>) {
        let _ = self.seat.set(Arc::downgrade(seat)); // once per life
    }

    pub(crate) fn dispatcher(&self) -> Arc<Dispatcher> {
        Arc::clone(&self.dispatcher)
    }

    pub(crate) fn start(self: &Arc<Self>) -> Result<()> {
        let weak = Arc::downgrade(self);
        self.log.on_durable(move |durable| {
            if let Some(node) = weak.upgrade() {
                node.handle_durable(durable);
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_poisoned(move |cause: &LogError| {
            if let Some(node) = weak.upgrade() {
                node.fail(&format!("the log failed: {cause}"));
            }
        });
        let weak = Arc::downgrade(self);
        self.log.on_read_only(move |_| {
            if let Some(node) = weak.upgrade() {
                // For a replica that waits for room; no lock, because anybody may hold it here.
                node.role_changed.notify_all();
            }
        });
        self.load_members()?;
        services::register(&self.dispatcher, &Arc::downgrade(self));
        let provider = Arc::new(RestoreProvider::new(
            self.config.name.clone(),
            self.log.clone(),
            Arc::clone(self.applier.machine()),
        ));
        self.dispatcher.register(RESTORE_SERVICE_NAME, provider);
        self.spawn("applier", |node| node.applier.run_thread());
        self.spawn("housekeeper", |node| {
            node.housekeeper.run_thread(|now| node.master().and_then(|m| m.handle_timeout(now)))
        });
        self.spawn("checkpointer", |node| {
            let (machine, housekeeper) = (&**node.applier.machine(), &*node.housekeeper);
            node.checkpointer.run_thread(&node.log, machine, housekeeper, |cause| {
                node.note_error(cause);
            });
            Ok(())
        });
        let weak = Arc::downgrade(self);
        self.log.on_checkpoint_wanted(move |vlsn| {
            if let Some(node) = weak.upgrade() {
                node.checkpointer.request(vlsn);
            }
        });
        self.log.set_checkpoint(self.applier.machine().checkpointed());
        self.applier.signal();
        match self.config.role {
            RoleConfig::Master { term } => self.become_master(term),
            RoleConfig::Replica => {
                self.become_replica("opened as a replica");
                Ok(())
            }
        }
    }

    /// Runs `body` in a thread of the node. If it fails or panics, the node stops.
    fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Self>) -> Result<()> + Send + 'static,
    ) {
        let node = Arc::clone(self);
        let title = name.to_owned();
        let run = move || match catch_unwind(AssertUnwindSafe(|| body(&node))) {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => node.fail(&format!("{title}: {cause}")),
            Err(_) => node.fail(&format!("the thread {title} panicked")),
        };
        match std::thread::Builder::new().name(format!("noxu-{name}")).spawn(run) {
            Ok(thread) => self.threads.lock().push(thread),
            Err(cause) => self.fail(&format!("no thread for {name}: {cause}")),
        }
    }

    // ---- roles

    fn become_master(self: &Arc<Self>, term: Term) -> Result<()> {
        let control = self.log.control().state();
        if control.group.is_none() {
            return Err(RepError::BadConfig {
                field: "group",
                found: "join, in a directory that belongs to no group".to_owned(),
                expected: "a group to create, or a directory that has joined one".to_owned(),
            });
        }
        self.check_state()?;
        let known = control.term.max(self.log.positions().last_term);
        if term <= known {
            let holder = format!("this node's directory {}", self.log.dir().display());
            return Err(RepError::TermTooLow { asked: term, known, holder });
        }
        for (address, answer) in self.probe_peers() {
            if answer.term >= term {
                let holder = format!("node {} at {address}", answer.node);
                return Err(RepError::TermTooLow { asked: term, known: answer.term, holder });
            }
        }
        let founding = control.group_config.is_empty();
        let config = match (&self.config.group, founding) {
            (_, false) => GroupConfig::decode(&control.group_config)?,
            (GroupChoice::Create { members, .. }, true) => GroupConfig { members: members.clone() },
            (GroupChoice::Join { .. }, true) => {
                return Err(RepError::BadConfig {
                    field: "group",
                    found: "a log without a group configuration".to_owned(),
                    expected: "a node that has been fed at least the start of the log".to_owned(),
                });
            }
        };
        let encoded = Bytes::from(config.encode());
        // Durable before any entry of the term is written.
        self.log.control().update(|control| {
            control.term = term;
            control.vote = None;
            control.group_config = encoded.clone();
        })?;
        let body = term_body(self.clock.wall_clock_ms(), term, &self.config.name);
        let mut first = vec![NewEntry::new(EntryKind::TERM, EntryFlags::SYNC, &body)];
        if founding {
            first.push(NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, &encoded));
        }
        let appended = self.log.append(term, &first)?;
        let master = Arc::new(Master::new(
            term,
            appended.first,
            Quorum::of_names(&self.config.name, &config.members),
            self.housekeeper.dtvlsn().min(appended.first.prev()),
            self.log.clone(),
            self.clock.clone(),
            self.config.limits,
            Arc::clone(&self.applier),
            Arc::clone(&self.housekeeper),
        ));
        self.notes.lock().members = config.members;
        {
            let mut role = self.role.lock();
            role.role = Role::Master;
            role.reason = format!("opened as the master of term {term}");
            role.master = Some(Arc::clone(&master));
        }
        self.role_changed.notify_all();
        self.log.request_sync();
        // What was synced before the hook could reach the mastership.
        master.handle_local_durable(self.log.positions().durable);
        tracing::info!(node = %self.config.name, %term, "master");
        Ok(())
    }

    /// Whether the state machine can be brought up from this log.
    pub(crate) fn check_state(&self) -> Result<()> {
        let (applied, anchor) = (self.applier.applied(), self.log.positions().anchor.vlsn);
        if applied < anchor { Err(RepError::StateBehindLog { applied, anchor }) } else { Ok(()) }
    }

    fn become_replica(self: &Arc<Self>, reason: &str) {
        {
            let mut role = self.role.lock();
            if role.stopping || role.role == Role::Stopped {
                return;
            }
            role.role = Role::Replica;
            reason.clone_into(&mut role.reason);
            role.master = None;
        }
        self.role_changed.notify_all();
        self.spawn("replica", replica_loop::run);
    }

    /// A newer term exists: this node is master no more.
    pub(crate) fn step_down(self: &Arc<Self>, term: Term) {
        // The term first: nobody may see this node out of office and ignorant of the reason.
        let raised = self.log.control().update(|control| {
            if term > control.term {
                control.term = term;
                control.vote = None;
            }
        });
        if let Err(cause) = raised {
            self.fail(&format!("the control file failed: {cause}"));
            return;
        }
        let master = {
            let mut role = self.role.lock();
            match role.master.take() {
                Some(master) if master.term() < term => master,
                other => {
                    role.master = other;
                    return;
                }
            }
        };
        let reason = format!("stepped down: term {term} exists");
        tracing::warn!(node = %self.config.name, "{reason}");
        master.step_down(&reason, None);
        master.close_channels();
        self.become_replica(&reason);
    }

    /// The mastership, once there is one; waits for it at most `timeout`.
    pub(crate) fn wait_for_mastership(&self, timeout: Duration) -> Option<Arc<Master>> {
        let deadline = Instant::now() + timeout;
        let mut role = self.role.lock();
        loop {
            if role.master.is_some() || role.stopping {
                return role.master.clone();
            }
            if self.role_changed.wait_until(&mut role, deadline).timed_out() {
                return role.master.clone();
            }
        }
    }

    pub(crate) fn master(&self) -> Option<Arc<Master>> {
        self.role.lock().master.clone()
    }

    fn sitting_master(&self) -> Result<Arc<Master>> {
        let role = self.role.lock();
        if let Some(master) = &role.master {
            return Ok(Arc::clone(master));
        }
        if role.role == Role::Stopped {
            let cause = role.failure.clone().unwrap_or_else(|| "it was shut down".to_owned());
            return Err(RepError::Stopped { cause });
        }
        drop(role);
        Err(RepError::NotMaster { master: self.master_address() })
    }

    pub(crate) fn is_replica(&self) -> bool {
        let role = self.role.lock();
        matches!(role.role, Role::Replica | Role::Restoring) && !role.stopping
    }

    /// Waits for `time`, or until the role changes or the node stops.
    pub(crate) fn pause(&self, time: Duration) {
        let mut role = self.role.lock();
        if !role.stopping {
            self.role_changed.wait_for(&mut role, time);
        }
    }

    // ---- peers

    /// The address that others reach this node at.
    pub(crate) fn address(&self) -> String {
        let listening = || self.dispatcher.local_addr().to_string();
        self.config.advertise.clone().unwrap_or_else(listening)
    }

    /// The address of the master, if known.
    pub(crate) fn master_address(&self) -> Option<String> {
        if self.master().is_some() { Some(self.address()) } else { self.link.lock().master.clone() }
    }

    /// Peers in the order in which they are worth a dial: where the master was last, first.
    pub(crate) fn peers_to_dial(&self) -> Vec<String> {
        let own = self.address();
        let last = self.link.lock().master.clone();
        let others = self.config.peers.iter().filter(|p| Some(*p) != last.as_ref()).cloned();
        last.clone().into_iter().chain(others).filter(|address| *address != own).collect()
    }

    pub(crate) fn wanted_group(&self) -> Option<Name> {
        match &self.config.group {
            GroupChoice::Create { name, .. } => Some(name.clone()),
            GroupChoice::Join { name } => name.clone(),
        }
    }

    /// Asks the node at `address` what it is.
    pub(crate) fn probe(&self, address: &str) -> Result<ProbeAnswer> {
        let timeout = self.config.dial_timeout;
        let channel = dial(address, STATUS_SERVICE_NAME, timeout)?;
        channel.send(&encode_question())?;
        let frame = channel.receive(timeout)?;
        let frame = frame.ok_or_else(|| RepError::silent(address, "a status", timeout))?;
        Ok(ProbeAnswer::decode(&frame)?)
    }

    /// Asks every peer for its term, all at once; those that do not answer are left out.
    fn probe_peers(&self) -> Vec<(String, ProbeAnswer)> {
        let own = self.address();
        let peers: Vec<_> = self.config.peers.iter().filter(|peer| **peer != own).collect();
        std::thread::scope(|scope| {
            let asking: Vec<_> =
                peers.iter().map(|peer| (peer, scope.spawn(|| self.probe(peer)))).collect();
            asking
                .into_iter()
                .filter_map(|(peer, thread)| match thread.join() {
                    Ok(Ok(answer)) => Some(((*peer).clone(), answer)),
                    Ok(Err(cause)) => {
                        tracing::info!(%peer, "no answer about its term: {cause}");
                        None
                    }
                    Err(_) => None,
                })
                .collect()
        })
    }

    /// Makes `channel` the replica's connection; false if the node is stopping.
    pub(crate) fn adopt_channel(&self, channel: &Arc<dyn Channel>) -> bool {
        let role = self.role.lock();
        if role.stopping || role.role == Role::Stopped {
            return false;
        }
        self.link.lock().channel = Some(Arc::clone(channel));
        true
    }

    pub(crate) fn drop_channel(&self) {
        self.link.lock().channel = None;
        let mut role = self.role.lock();
        if role.role == Role::Replica {
            "looking for the master".clone_into(&mut role.reason);
        }
    }

    pub(crate) fn set_replica_stream(&self, stream: Option<Arc<ReplicaStream>>) {
        self.link.lock().stream = stream;
    }

    /// The master at `address` was found and synced up with.
    pub(crate) fn handle_following(&self, address: &str, welcome: &Welcome) {
        self.link.lock().master = Some(address.to_owned());
        let mut role = self.role.lock();
        role.reason = format!("following {} in term {}", welcome.node, welcome.term);
    }

    /// Fetches log and state of the node at `address` and, once all of it is here and committed,
    /// begins another life with them.
    pub(crate) fn restore(self: &Arc<Self>, address: &str, welcome: &Welcome) -> Result<()> {
        let seat = self.seat.get().and_then(Weak::upgrade).ok_or_else(Seat::gone)?;
        {
            let mut role = self.role.lock();
            role.role = Role::Restoring;
            role.reason = format!("restoring from {}", welcome.node);
        }
        tracing::info!(node = %self.config.name, from = %welcome.node, "network restore");
        let fetched = self.fetch(seat.env(), address);
        match fetched {
            Ok(progress) => {
                self.notes.lock().restore = Some(progress);
                seat.begin_next_life();
                Ok(())
            }
            Err(cause) => {
                let mut role = self.role.lock();
                if role.role == Role::Restoring {
                    role.role = Role::Replica;
                    role.reason = format!("restoring failed and will be resumed: {cause}");
                }
                Err(cause)
            }
        }
    }

    fn fetch(&self, env: &Arc<dyn Env>, address: &str) -> Result<Progress> {
        let channel: Arc<dyn Channel> =
            dial(address, RESTORE_SERVICE_NAME, self.config.dial_timeout)?;
        if !self.adopt_channel(&channel) {
            return Err(Seat::gone());
        }
        let control = self.log.control().state();
        let group = control.group.as_ref().map(|group| group.id);
        let mut restoring = Restoring::new(self.config.name.clone(), group, control.term);
        restoring.max_body_bytes = self.log.config().max_body_bytes;
        let mut report = |progress: &Progress| self.notes.lock().restore = Some(*progress);
        fetch(env, &self.config.dir, &restoring, &*channel, &mut report)
    }

    /// This life began with what a restore brought to `old`.
    pub(crate) fn note_restored(&self, old: &Self, restored: Restored) {
        let fetched = old.notes.lock().restore;
        let mut notes = self.notes.lock();
        notes.restore = fetched;
        notes.last_restore = Some(restored);
    }

    // ---- events

    fn handle_durable(&self, durable: Vlsn) {
        if let Some(master) = self.master() {
            master.handle_local_durable(durable);
            return;
        }
        let stream = self.link.lock().stream.clone();
        if let Some(stream) = stream
            && let Err(cause) = stream.handle_durable(durable)
        {
            // The receiver meets the broken channel too and redials.
            tracing::debug!(node = %self.config.name, "acknowledging: {cause}");
        }
    }

    pub(crate) fn dtvlsn(&self) -> Vlsn {
        self.master().map_or_else(|| self.housekeeper.dtvlsn(), |master| master.dtvlsn())
    }

    pub(crate) fn members(&self) -> Vec<Name> {
        self.notes.lock().members.clone()
    }

    pub(crate) fn note_error(&self, cause: &RepError) {
        self.notes.lock().last_error = Some(cause.to_string());
    }

    pub(crate) fn note_syncup(&self, report: SyncupReport) {
        self.notes.lock().last_syncup = Some(report);
    }

    pub(crate) fn note_rollback(&self, report: &RollbackReport) {
        self.notes.lock().last_rollback = Some(report.clone());
        if let Some(on_rollback) = &self.config.on_rollback {
            on_rollback(report);
        }
    }

    /// A Group entry was appended: it is in force at once.
    pub(crate) fn handle_group_entry(&self, body: &[u8]) {
        match GroupConfig::decode(body) {
            Ok(config) => {
                self.notes.lock().members = config.members;
                let body = Bytes::copy_from_slice(body);
                let stored = self.log.control().update(|control| control.group_config = body);
                if let Err(cause) = stored {
                    self.fail(&format!("the control file failed: {cause}"));
                }
            }
            Err(cause) => self.fail(&format!("a Group entry cannot be read: {cause}")),
        }
    }

    fn load_members(&self) -> Result<()> {
        let control = self.log.control().state();
        if control.group_config.is_empty() && !self.log.positions().is_empty() {
            return self.recompute_group_config();
        }
        if !control.group_config.is_empty() {
            self.notes.lock().members = GroupConfig::decode(&control.group_config)?.members;
        }
        Ok(())
    }

    /// Finds the configuration in force at the end of the log: the anchor's, or that of the newest
    /// Group entry kept.
    pub(crate) fn recompute_group_config(&self) -> Result<()> {
        let positions = self.log.positions();
        let mut newest = positions.anchor.group_config.clone();
        let mut from = positions.anchor.vlsn.next();
        while let Some(run) = self.log.read(from, 1 << 20)? {
            for entry in run.entries() {
                if entry.header.kind == EntryKind::GROUP {
                    newest = Bytes::copy_from_slice(entry.body);
                }
            }
            from = run.last.next();
        }
        let members =
            if newest.is_empty() { Vec::new() } else { GroupConfig::decode(&newest)?.members };
        self.log.control().update(|control| control.group_config = newest)?;
        self.notes.lock().members = members;
        Ok(())
    }

    fn status(&self) -> Status {
        let control = self.log.control().state();
        let master = self.master_address();
        let (role, reason, mastership) = {
            let state = self.role.lock();
            let reason = state.failure.clone().unwrap_or_else(|| state.reason.clone());
            (state.role, reason, state.master.clone())
        };
        let notes = self.notes.lock();
        Status {
            name: self.config.name.clone(),
            incarnation: control.incarnation,
            group: control.group,
            members: notes.members.clone(),
            role,
            reason,
            term: control.term,
            master,
            positions: self.log.positions(),
            retention: self.log.retention(),
            scrub: self.log.scrub_report(),
            dtvlsn: mastership.as_ref().map_or_else(|| self.housekeeper.dtvlsn(), |m| m.dtvlsn()),
            visible: self.applier.limit(),
            applied: self.applier.applied(),
            commit_floor: control.commit_floor,
            read_only: self.log.read_only().map(|cause| cause.to_string()),
            tail_mark: self.log.mark_status(),
            sync_latencies: self.log.sync_latencies(),
            streaming: self.link.lock().stream.is_some(),
            replicas: mastership.as_ref().map_or_else(Vec::new, |m| m.replicas()),
            last_syncup: notes.last_syncup,
            last_rollback: notes.last_rollback.clone(),
            restore: notes.restore,
            last_restore: notes.last_restore.clone(),
            last_error: notes.last_error.clone(),
        }
    }

    // ---- the end

    /// Stops the node at once and loudly; [`Inner::shutdown`] joins its threads later.
    pub(crate) fn fail(&self, cause: &str) {
        let master = {
            let mut role = self.role.lock();
            if role.stopping || role.role == Role::Stopped {
                return;
            }
            role.role = Role::Stopped;
            role.failure = Some(cause.to_owned());
            role.master.take()
        };
        tracing::error!(node = %self.config.name, "ALARM: the node stops: {cause}");
        if let Some(master) = master {
            master.close(cause);
            master.close_channels();
        }
        self.stop_threads();
    }

    fn stop_threads(&self) {
        self.role_changed.notify_all();
        let channel = self.link.lock().channel.take();
        if let Some(channel) = channel {
            channel.close();
        }
        self.applier.stop();
        self.housekeeper.stop();
        self.checkpointer.stop();
        self.log.wake_readers();
    }

    fn join_threads(&self) {
        // A thread that is being started while this runs is in the list by the next look.
        loop {
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                break;
            }
            for thread in threads {
                if thread.thread().id() != std::thread::current().id() {
                    let _ = thread.join(); // its panic has been reported
                }
            }
        }
    }

    /// Ends this life before the next one: its threads are joined, its log is closed, its port and
    /// state machine stay.
    pub(crate) fn retire(&self) -> Result<()> {
        {
            let mut role = self.role.lock();
            if role.stopping || role.role == Role::Stopped {
                return Err(Seat::gone());
            }
            role.stopping = true;
            role.role = Role::Restoring;
            "installing what a restore has fetched".clone_into(&mut role.reason);
        }
        self.stop_threads();
        self.join_threads();
        self.housekeeper.raise_floor(Vlsn::default())?;
        Ok(self.log.close()?)
    }

    /// Another life has taken the seat.
    pub(crate) fn handle_replaced(&self) {
        self.role.lock().replaced = true;
        self.role_changed.notify_all();
    }

    /// This life has ended and the next could not begin.
    pub(crate) fn die(&self, cause: &str) {
        tracing::error!(node = %self.config.name, "ALARM: the node stops: {cause}");
        {
            let mut role = self.role.lock();
            role.role = Role::Stopped;
            role.failure.get_or_insert_with(|| cause.to_owned());
        }
        self.role_changed.notify_all();
    }

    pub(crate) fn shutdown(&self) -> Result<()> {
        let (master, failure) = {
            let mut role = self.role.lock();
            if role.stopping {
                return role
                    .failure
                    .clone()
                    .map_or(Ok(()), |cause| Err(RepError::Stopped { cause }));
            }
            role.stopping = true;
            (role.master.clone(), role.failure.clone())
        };
        if let Some(master) = master {
            master.stop_writes("the node is shutting down");
            if !master.drain(self.config.shutdown_grace) {
                tracing::warn!(node = %self.config.name, "shutting down before all replicas have everything");
            }
            master.close("the node was shut down");
            master.wait_feeders_gone(self.config.shutdown_grace);
        }
        self.stop_threads();
        self.dispatcher.stop();
        {
            let mut role = self.role.lock();
            role.role = Role::Stopped;
            role.master = None;
            if role.failure.is_none() {
                "shut down".clone_into(&mut role.reason);
            }
        }
        self.role_changed.notify_all();
        self.join_threads();
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
