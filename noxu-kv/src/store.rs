//! Store: a replicated key-value store: the engine, and the node that replicates it.
//!
//! # Commit path
//! Encode and hash, in the caller's thread · wait until the policy can be met at all · under the
//! commit lock: validate, append, remember what was written · wait for the policy without any lock. The node applies what may be visible, so a
//! commit that was reported is readable here, unless its policy is weaker than that of a pending
//! one before it.
//!
//! # Lock order
//! The engine's commit lock, then the node's own locks.
//!
//! # Not here: validation, open transactions and what is applied (engine.rs).

use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use noxu_log::env::{Env, RealEnv};
use noxu_rep::{CommitOutcome, Durability, Node, NodeConfig, NodeContext, RepError, Submitted};
use noxu_util::{Fingerprint, NULL_VLSN, Term, Vlsn};

use crate::apply::Stability;
use crate::batch::Batch;
use crate::engine::{Bodies, Engine, EngineConfig, Prepared, Work};
use crate::error::{KvError, Result};
use crate::snapshot::{Range, Snapshot, View, check_key};
use crate::table::Table;
use crate::table::lsm::LsmTable;
use crate::table::memory::{MemoryImage, MemoryTable};
use crate::value::{Value, table_key};
use crate::{CommitToken, Consistency};

/// How a store is opened.
#[derive(Clone)]
pub struct Config {
    /// The node that replicates it. The store keeps its state in `state/` of the node's directory.
    pub node: NodeConfig,
    /// The file system of the log. The state on disk always lies in the real one.
    pub env: Arc<dyn Env>,
    /// Where the state lives.
    pub state: StateKind,
    /// Size at which the memtable goes to disk, in bytes. Up to three of that size are in memory,
    /// and a crash replays up to two. Default 64 MiB.
    pub memtable_bytes: u64,
    /// Cache for blocks of the state on disk, in bytes. Default 64 MiB.
    pub cache_bytes: u64,
    /// Most bytes of keys and values that one transaction may write. Default 256 MiB.
    pub max_transaction_bytes: u64,
    /// Keys of recent commits remembered to find conflicts; a transaction that stays open while
    /// more than that are written must begin again. Default 1 Mi.
    pub max_remembered_keys: usize,
    /// Durability of commits that do not choose one. Default [`Durability::MAJORITY`].
    pub durability: Durability,
    /// How long [`Store::transact`] keeps trying. Default 10 s.
    pub transact_timeout: Duration,
}

/// Where a store's state lives.
#[derive(Debug, Clone)]
pub enum StateKind {
    /// On disk, in the node's directory.
    Disk,
    /// In memory; the image keeps what was made durable.
    Memory(MemoryImage),
}

impl Config {
    /// A store on the real file system, with the defaults.
    pub fn new(node: NodeConfig) -> Self {
        Self {
            node,
            env: Arc::new(RealEnv),
            state: StateKind::Disk,
            memtable_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            max_transaction_bytes: 256 << 20,
            max_remembered_keys: 1 << 20,
            durability: Durability::MAJORITY,
            transact_timeout: Duration::from_secs(10),
        }
    }
}

/// A replicated key-value store. Cheap to clone; dropping the last handle shuts it down.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    node: Node,
    engine: Engine,
    durability: Durability,
    transact_timeout: Duration,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(cause) = self.node.shutdown() {
            tracing::error!(node = %self.node.name(), "shutting down: {cause}");
        }
        self.engine.stop();
    }
}

impl Store {
    /// Opens the store of a node, or creates it.
    pub fn open(config: Config) -> Result<Self> {
        let mut opened = None;
        let engine_config = EngineConfig {
            memtable_bytes: config.memtable_bytes,
            max_transaction_bytes: config.max_transaction_bytes,
            max_remembered_keys: config.max_remembered_keys,
            threads: true,
        };
        // The table is opened under the node's directory lock.
        let node = Node::open(config.env, config.node, |context| {
            let table: Box<dyn Table> = match &config.state {
                StateKind::Disk => {
                    let table = LsmTable::open(&context.state_dir(), config.cache_bytes);
                    Box::new(table.map_err(RepError::state_machine)?)
                }
                StateKind::Memory(image) => Box::new(MemoryTable::open(image.clone())),
            };
            let stability = Box::new(NodeStability(context.clone()));
            let engine = Engine::over(table, stability, engine_config);
            let machine = engine.machine();
            opened = Some(engine);
            Ok(machine)
        })?;
        let Some(engine) = opened else {
            unreachable!("an open node has opened its state machine")
        };
        Ok(Self {
            shared: Arc::new(Shared {
                node,
                engine,
                durability: config.durability,
                transact_timeout: config.transact_timeout,
            }),
        })
    }

    /// The node that replicates the store.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// What can be read.
    ///
    /// # Errors
    /// `NoState` if the log begins behind what the state has: that is empty for want of a restore.
    fn view(&self) -> Result<&Arc<View>> {
        let view = self.shared.engine.view();
        if view.visible().is_null() && self.node().log().positions().anchor.vlsn > NULL_VLSN {
            return Err(KvError::NoState);
        }
        Ok(view)
    }

    /// The newest visible value of a key on this node.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.view()?.latest(&table_key(check_key(key)?))
    }

    /// The newest visible state of this node, held still.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.view()?.open_snapshot(None)
    }

    /// The state at a VLSN that this node has applied and still has the versions of.
    pub fn snapshot_at(&self, vlsn: Vlsn) -> Result<Snapshot> {
        self.view()?.open_snapshot(Some(vlsn))
    }

    /// A snapshot that is as new as `consistency` asks.
    pub fn read(&self, consistency: Consistency) -> Result<Snapshot> {
        match consistency {
            Consistency::None => self.snapshot(),
            Consistency::At(token, timeout) => self.read_at(token, Instant::now() + timeout),
        }
    }

    fn read_at(&self, token: CommitToken, deadline: Instant) -> Result<Snapshot> {
        let view = self.shared.engine.view();
        loop {
            let generation = view.generation();
            match self.standing(token)? {
                Standing::Held | Standing::NotYet => {}
                // A node that has yet to hear of the commit's term will be rolled back: first its
                // log, and if it had applied that far, its state.
                Standing::Elsewhere { settled: false, .. } if view.visible() < token.vlsn => {}
                Standing::Elsewhere { found, settled } => {
                    if settled || !view.wait_rewritten(generation, deadline) {
                        let CommitToken { vlsn, fingerprint: expected, .. } = token;
                        return Err(KvError::Forked { vlsn, expected, found });
                    }
                    continue;
                }
            }
            if !view.wait_visible(token.vlsn, deadline) {
                return Err(KvError::ConsistencyTimeout {
                    wanted: token.vlsn,
                    reached: view.visible(),
                });
            }
            let snapshot = self.snapshot()?;
            if snapshot.vlsn() >= token.vlsn && matches!(self.standing(token)?, Standing::Held) {
                return Ok(snapshot);
            }
        }
    }

    /// Waits until everything through `vlsn` is readable here.
    pub fn wait_applied(&self, vlsn: Vlsn, timeout: Duration) -> Result<()> {
        let view = self.shared.engine.view();
        if view.wait_visible(vlsn, Instant::now() + timeout) {
            return Ok(());
        }
        Err(KvError::ConsistencyTimeout { wanted: vlsn, reached: view.visible() })
    }

    /// How this node's log stands to the commit that a token names. Where the log's front is gone,
    /// the token is believed: what is below it was durable on a majority.
    fn standing(&self, token: CommitToken) -> Result<Standing> {
        if token.vlsn.is_null() {
            return Ok(Standing::Held);
        }
        let log = self.shared.node.log();
        if let Some((header, _)) = log.header(token.vlsn).map_err(RepError::from)? {
            let found = header.fingerprint;
            return Ok(if found == token.fingerprint {
                Standing::Held
            } else {
                Standing::Elsewhere { found: Some(found), settled: header.term > token.term }
            });
        }
        if token.vlsn <= log.positions().last {
            return Ok(Standing::Held);
        }
        // A later term that began at or below the commit has another entry in its place.
        let mut terms = log.term_table().into_iter();
        Ok(if terms.any(|(term, first)| term > token.term && first <= token.vlsn) {
            Standing::Elsewhere { found: None, settled: true }
        } else {
            Standing::NotYet
        })
    }

    /// Begins a transaction on the newest visible state.
    pub fn begin(&self) -> Result<Txn> {
        Ok(Txn { work: self.shared.engine.begin()?, store: self.clone() })
    }

    /// Runs a transaction and commits it with the store's durability, again on a new snapshot after
    /// each conflict, until `transact_timeout` has passed.
    pub fn transact<T>(&self, run: impl FnMut(&mut Txn) -> Result<T>) -> Result<(T, CommitToken)> {
        self.transact_with(self.shared.durability, run)
    }

    /// [`Store::transact`] with another durability.
    pub fn transact_with<T>(
        &self,
        durability: Durability,
        mut run: impl FnMut(&mut Txn) -> Result<T>,
    ) -> Result<(T, CommitToken)> {
        let deadline = Instant::now() + self.shared.transact_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut txn = self.begin()?;
            let result = run(&mut txn).and_then(|out| Ok((out, txn.commit(durability)?)));
            let Err(KvError::Conflict { newer, .. }) = result else { return result };
            if Instant::now() >= deadline {
                return result;
            }
            // A commit in flight is what we conflict with: wait for it, an event. What is visible
            // already will be seen by the next snapshot; a random pause parts those who collide.
            let view = self.shared.engine.view();
            if view.visible() < newer {
                view.wait_visible(newer, deadline);
            } else {
                let jittered = pause.mul_f64(fastrand::f64());
                view.wait_visible(view.visible().next(), deadline.min(Instant::now() + jittered));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Writes one value, whatever was there, and waits for `durability`.
    pub fn put(&self, key: &[u8], value: &[u8], durability: Durability) -> Result<CommitToken> {
        let mut batch = Batch::default();
        batch.put(key, value)?;
        self.write(&batch, durability)?.wait()
    }

    /// Deletes a key, whether it is there or not, and waits for `durability`.
    pub fn delete(&self, key: &[u8], durability: Durability) -> Result<CommitToken> {
        let mut batch = Batch::default();
        batch.delete(key)?;
        self.write(&batch, durability)?.wait()
    }

    /// Writes a batch whose writes depend on nothing read. It conflicts with nobody. Returns once it
    /// is in the log; one thread can have many such commits in flight.
    pub fn submit(&self, batch: &Batch, durability: Durability) -> Result<PendingCommit> {
        Ok(self.write(batch, durability)?.started())
    }

    fn write(&self, batch: &Batch, durability: Durability) -> Result<PendingCommit> {
        let engine = &self.shared.engine;
        if batch.is_empty() {
            return self.nothing_to_commit(engine.view().visible());
        }
        let bodies = engine.encode_batch(batch, wall_ms())?;
        self.append(&bodies, durability, |term, entry| engine.prepare_batch(batch, term, entry))
    }

    fn append<'a>(
        &self,
        bodies: &Bodies,
        durability: Durability,
        prepare: impl FnOnce(Term, Vlsn) -> Result<Prepared<'a>>,
    ) -> Result<PendingCommit> {
        let entries = bodies.entries();
        // Before the lock: a policy that waits for replicas holds up nobody who needs none.
        let admission = self.shared.node.admit(durability)?;
        let prepared = prepare(admission.term(), admission.term_entry())?;
        let submitted = admission.write(&entries)?;
        prepared.committed(submitted.vlsn());
        Ok(PendingCommit(Pending::Submitted(submitted)))
    }

    /// The commit of a transaction that wrote nothing names the state it read.
    fn nothing_to_commit(&self, at: Vlsn) -> Result<PendingCommit> {
        let header = self.shared.node.log().header(at).map_err(RepError::from)?;
        let (term, fingerprint) = header.map_or((Term::ZERO, Fingerprint::ZERO), |(header, _)| {
            (header.term, header.fingerprint)
        });
        Ok(PendingCommit(Pending::Nothing(CommitToken { vlsn: at, term, fingerprint })))
    }

    /// What became of a commit that was left without an answer; waits at most `timeout` until that
    /// is certain. Any store of the group may be asked.
    ///
    /// # Errors
    /// The log's, if the entry that tells cannot be read.
    pub fn outcome(&self, token: CommitToken, timeout: Duration) -> Result<CommitOutcome> {
        Ok(self.shared.node.outcome(&token.into(), timeout)?)
    }

    /// Makes the state durable as far as it may be, so that a restart replays little, and the log's
    /// front can be dropped below it; returns the VLSN through which it is.
    pub fn checkpoint(&self) -> Result<Vlsn> {
        self.shared.engine.store_machine().checkpoint()
    }

    /// What there is to know about the state.
    pub fn status(&self) -> StoreStatus {
        let machine = self.shared.engine.store_machine();
        let table = &machine.view().table;
        let (disk_bytes, disk_files) = table.disk_usage();
        StoreStatus {
            applied: machine.applied(),
            checkpoint: table.flushed().vlsn,
            oldest_readable: machine.view().floor(),
            memtable_bytes: table.active_bytes(),
            disk_bytes,
            disk_files,
            upkeep_failure: machine.upkeep_failure(),
        }
    }

    /// Shuts the node down in good order. Other handles fail from then on.
    pub fn close(&self) -> Result<()> {
        let result = self.shared.node.shutdown();
        self.shared.engine.stop();
        Ok(result?)
    }
}

/// One snapshot of a store's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Everything through it is readable.
    pub applied: Vlsn,
    /// Everything through it is durable in the state; a restart replays the log after it.
    pub checkpoint: Vlsn,
    /// The oldest VLSN that can be read at.
    pub oldest_readable: Vlsn,
    /// Bytes in the active memtable, roughly.
    pub memtable_bytes: u64,
    /// Bytes of the state on disk.
    pub disk_bytes: u64,
    /// Files that hold them.
    pub disk_files: usize,
    /// Why the state could not be written to disk, if that failed last.
    pub upkeep_failure: Option<String>,
}

/// A transaction: reads at one snapshot, writes that nobody sees before it commits. Dropping it
/// abandons it.
pub struct Txn {
    work: Work,
    store: Store,
}

impl Txn {
    /// The VLSN it reads at.
    pub fn snapshot_vlsn(&self) -> Vlsn {
        self.work.snapshot_vlsn()
    }

    /// The value of a key, as this transaction sees it.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Value>> {
        self.work.get(key)
    }

    /// Sets a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.work.put(key, value)
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.work.delete(key)
    }

    /// The keys within `range` and their values, with the writes this transaction has made so far.
    pub fn range<K: AsRef<[u8]>>(&mut self, range: impl RangeBounds<K>) -> Result<Range> {
        self.work.range(range)
    }

    /// The keys that begin with `prefix`, as [`Txn::range`].
    pub fn prefix(&mut self, prefix: &[u8]) -> Result<Range> {
        self.work.prefix(prefix)
    }

    /// Commits and waits for `durability`.
    ///
    /// # Errors
    /// [`KvError::Conflict`] if something it read or wrote was committed since its snapshot;
    /// [`KvError::NotMaster`], [`KvError::InsufficientReplicas`] with nothing written;
    /// [`KvError::OutcomeUnknown`] when too few acknowledged in time, or the node was deposed before.
    pub fn commit(self, durability: Durability) -> Result<CommitToken> {
        self.write(durability)?.wait()
    }

    /// Commits without waiting: returns once it is in the log.
    pub fn submit(self, durability: Durability) -> Result<PendingCommit> {
        Ok(self.write(durability)?.started())
    }

    fn write(self, durability: Durability) -> Result<PendingCommit> {
        let Self { work, store } = self;
        work.check()?;
        if work.is_read_only() {
            return store.nothing_to_commit(work.snapshot_vlsn());
        }
        let bodies = work.encode(wall_ms());
        let engine = &store.shared.engine;
        store.append(&bodies, durability, |term, entry| engine.prepare(&work, term, entry))
    }
}

/// A commit that is in the log: wait for its durability, ask, or be called back. It does not keep
/// the store open.
pub struct PendingCommit(Pending);

enum Pending {
    Submitted(Submitted),
    /// There was nothing to write.
    Nothing(CommitToken),
}

impl PendingCommit {
    /// For a caller that may not wait: the node's own threads see to the disk.
    fn started(self) -> Self {
        if let Pending::Submitted(submitted) = &self.0 {
            submitted.start();
        }
        self
    }

    fn token(&self) -> CommitToken {
        match &self.0 {
            Pending::Submitted(submitted) => CommitToken {
                vlsn: submitted.vlsn(),
                term: submitted.term(),
                fingerprint: submitted.fingerprint(),
            },
            Pending::Nothing(token) => *token,
        }
    }

    /// VLSN of the commit; of the snapshot if there was nothing to write.
    pub fn vlsn(&self) -> Vlsn {
        self.token().vlsn
    }

    /// Waits until the durability asked for is met.
    ///
    /// # Errors
    /// [`KvError::OutcomeUnknown`] when too few acknowledged in time, or the node was deposed before.
    pub fn wait(self) -> Result<CommitToken> {
        if let Pending::Submitted(submitted) = &self.0 {
            submitted.wait()?;
        }
        Ok(self.token())
    }

    /// The outcome, if it is known by now.
    pub fn poll(&self) -> Option<Result<CommitToken>> {
        let outcome = match &self.0 {
            Pending::Submitted(submitted) => submitted.poll()?,
            Pending::Nothing(_) => Ok(()),
        };
        Some(outcome.map(|()| self.token()).map_err(KvError::from))
    }

    /// Calls `done` once with what [`PendingCommit::wait`] would return, from a thread of the node;
    /// it must not block.
    pub fn on_done(self, done: impl FnOnce(Result<CommitToken>) + Send + 'static) {
        let token = self.token();
        match self.0 {
            Pending::Nothing(token) => done(Ok(token)),
            Pending::Submitted(submitted) => submitted
                .on_done(move |outcome| done(outcome.map(|()| token).map_err(KvError::from))),
        }
    }
}

/// How a log stands to a commit.
enum Standing {
    /// The log has it.
    Held,
    /// The log ends before it.
    NotYet,
    /// The log has another entry in its place, for good if `settled`.
    Elsewhere { found: Option<Fingerprint>, settled: bool },
}

/// What the applier asks of the node.
struct NodeStability(NodeContext);

impl Stability for NodeStability {
    fn dtvlsn(&self) -> Vlsn {
        self.0.dtvlsn()
    }

    fn raise_commit_floor(&self, floor: Vlsn) -> Result<()> {
        Ok(self.0.raise_commit_floor(floor)?)
    }

    fn note_checkpoint(&self, vlsn: Vlsn) {
        self.0.note_checkpoint(vlsn);
    }
}

fn wall_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Pauses of [`Store::transact`] after conflicts with what is visible already.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
