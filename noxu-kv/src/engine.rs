//! Engine: the store without its node: the state, who conflicts with whom, the open transactions.
//!
//! # Commit path
//! [`Work::encode`] and [`Bodies::entries`], which read every byte, without a lock · under the
//! commit lock: [`Engine::prepare`] validates, the caller appends the entries, and
//! [`Prepared::committed`] remembers what was written. A [`Prepared`] holds the lock, so nothing
//! can be committed between the validation and the entry it speaks for.
//!
//! # Lock order
//! `commits`, then whatever the caller appends with. `open_txns` and the registry of readers are
//! leaves. The applier never takes `commits`.
//!
//! # Not here: terms, durability and waiting for it (store.rs); applying (apply.rs).

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::Arc;

use noxu_log::{EntryFlags, EntryKind, NewEntry};
use noxu_rep::StateMachine;
use noxu_util::{Term, Vlsn};
use parking_lot::{Mutex, MutexGuard};

use crate::apply::{Machine, Stability};
use crate::batch::Batch;
use crate::conflicts::Conflicts;
use crate::encode::KIND_WRITES;
use crate::error::{KvError, Result};
use crate::snapshot::{Range, Snapshot, View};
use crate::table::Table;
use crate::table::memory::{MemoryImage, MemoryTable};
use crate::txn::Workspace;
use crate::value::Value;

/// Limits of an [`Engine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Size at which the memtable is made durable, in bytes. Default 64 MiB.
    pub memtable_bytes: u64,
    /// Most bytes of keys and values that one transaction may write. Default 256 MiB.
    pub max_transaction_bytes: u64,
    /// Keys of recent commits remembered to find conflicts. Default 1 Mi.
    pub max_remembered_keys: usize,
    /// Threads of its own flush and compact. Without them, which is the default, the caller calls
    /// [`Engine::upkeep`].
    pub threads: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            memtable_bytes: 64 << 20,
            max_transaction_bytes: 256 << 20,
            max_remembered_keys: 1 << 20,
            threads: false,
        }
    }
}

/// The store without its node. [`Store`](crate::Store) is this and a [`Node`](noxu_rep::Node); a
/// caller that drives replication itself uses it directly:
///
/// - entries of the log go to [`Engine::machine`], in order, on every node;
/// - on the master, a transaction is [`Engine::begin`], [`Work::encode`], [`Engine::prepare`],
///   appending the entries, [`Prepared::committed`].
///
/// Cheap to clone. It has no threads unless asked for, and without them it waits for nobody else's.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Arc<Machine>,
    commits: Mutex<Conflicts>,
    /// Snapshots of the transactions that are open, and how many each has.
    open_txns: Mutex<BTreeMap<Vlsn, usize>>,
    max_transaction_bytes: u64,
}

impl Engine {
    /// Opens the state that `image` keeps, in memory.
    pub fn open(image: MemoryImage, stability: Box<dyn Stability>, config: EngineConfig) -> Self {
        Self::over(Box::new(MemoryTable::open(image)), stability, config)
    }

    pub(crate) fn over(
        table: Box<dyn Table>,
        stability: Box<dyn Stability>,
        config: EngineConfig,
    ) -> Self {
        let machine = if config.threads { Machine::new } else { Machine::without_threads }(
            table,
            stability,
            config.memtable_bytes,
        );
        Self {
            shared: Arc::new(Shared {
                machine: Arc::new(machine),
                commits: Mutex::new(Conflicts::new(config.max_remembered_keys)),
                open_txns: Mutex::default(),
                max_transaction_bytes: config.max_transaction_bytes,
            }),
        }
    }

    /// The state, as replication applies to it.
    pub fn machine(&self) -> Arc<dyn StateMachine> {
        Arc::clone(&self.shared.machine) as Arc<dyn StateMachine>
    }

    pub(crate) fn store_machine(&self) -> &Machine {
        &self.shared.machine
    }

    pub(crate) fn view(&self) -> &Arc<View> {
        self.shared.machine.view()
    }

    /// The newest visible state, held still.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.view().open_snapshot(None)
    }

    /// Begins a transaction on the newest visible state.
    pub fn begin(&self) -> Result<Work> {
        // Registered before anybody can forget the commits above its snapshot.
        let mut open_txns = self.shared.open_txns.lock();
        let snapshot = self.snapshot()?;
        *open_txns.entry(snapshot.vlsn()).or_default() += 1;
        drop(open_txns);
        let open = OpenTxn { engine: self.clone(), snapshot: snapshot.vlsn() };
        let workspace = Workspace::new(snapshot, self.shared.max_transaction_bytes);
        Ok(Work { workspace, _open: open })
    }

    /// The bodies of a batch's entries, stamped with the wall clock's time in milliseconds.
    ///
    /// # Errors
    /// [`KvError::TransactionTooLarge`].
    ///
    /// # Panics
    /// If the batch is empty.
    pub fn encode_batch(&self, batch: &Batch, wall_ms: u64) -> Result<Bodies> {
        let max = self.shared.max_transaction_bytes;
        if batch.bytes() > max {
            return Err(KvError::TransactionTooLarge { bytes: batch.bytes(), max });
        }
        Ok(Bodies(batch.encode(wall_ms)))
    }

    /// Finds out whether a transaction may commit in the mastership of `term`, which began with the
    /// entry `term_entry`. If so, nobody else can until the answer is dropped: append its entries
    /// meanwhile.
    ///
    /// A newer term than the last one forgets the commits of the older: what was committed between
    /// two masterships of this node, it has not seen. A transaction whose snapshot is older than
    /// what the term began on must begin again; one from right before `term_entry` has missed
    /// nothing.
    ///
    /// # Errors
    /// [`KvError::Conflict`]; [`KvError::RolledBack`]; [`KvError::NotMaster`] if a newer term has
    /// been asked for already.
    pub fn prepare<'a>(
        &'a self,
        work: &'a Work,
        term: Term,
        term_entry: Vlsn,
    ) -> Result<Prepared<'a>> {
        let workspace = &work.workspace;
        let snapshot = workspace.snapshot().vlsn();
        let footprint = workspace.footprint();
        let commits = self.lock_commits(term, term_entry)?;
        // A rollback that made way for this mastership has ended its snapshot by now.
        work.check()?;
        commits
            .check(snapshot, &footprint)
            .map_err(|found| Workspace::conflict(snapshot, found))?;
        Ok(Prepared { engine: self, commits, written: Written::Work(work) })
    }

    /// [`Engine::prepare`] for a batch, which conflicts with nobody.
    ///
    /// # Errors
    /// [`KvError::NotMaster`] if a newer term has been asked for already.
    pub fn prepare_batch<'a>(
        &'a self,
        batch: &'a Batch,
        term: Term,
        term_entry: Vlsn,
    ) -> Result<Prepared<'a>> {
        let commits = self.lock_commits(term, term_entry)?;
        Ok(Prepared { engine: self, commits, written: Written::Batch(batch) })
    }

    fn lock_commits(&self, term: Term, term_entry: Vlsn) -> Result<MutexGuard<'_, Conflicts>> {
        let mut commits = self.shared.commits.lock();
        if commits.enter_term(term, term_entry) {
            return Ok(commits);
        }
        Err(KvError::NotMaster { master: None })
    }

    /// No transaction with an older snapshot will ask to commit.
    fn oldest_judged(&self) -> Vlsn {
        let open_txns = self.shared.open_txns.lock();
        let visible = self.view().visible();
        open_txns.keys().next().map_or(visible, |oldest| visible.min(*oldest))
    }

    /// Flushes a full memtable that can no longer be rolled back, and compacts a little: what
    /// threads do otherwise. Does nothing if they do.
    pub fn upkeep(&self) {
        self.shared.machine.upkeep();
    }

    /// Why the state could not be made durable, if that failed last. It is tried again.
    pub fn upkeep_failure(&self) -> Option<String> {
        self.shared.machine.upkeep_failure()
    }

    /// Ends its threads.
    pub(crate) fn stop(&self) {
        self.shared.machine.stop();
    }
}

/// A transaction: reads at one snapshot, and writes that nobody sees before they are applied.
/// Dropping it abandons it.
pub struct Work {
    workspace: Workspace,
    _open: OpenTxn,
}

/// Keeps the commits above a transaction's snapshot from being forgotten.
struct OpenTxn {
    engine: Engine,
    snapshot: Vlsn,
}

impl Drop for OpenTxn {
    fn drop(&mut self) {
        let mut open_txns = self.engine.shared.open_txns.lock();
        if let Some(count) = open_txns.get_mut(&self.snapshot) {
            *count -= 1;
            if *count == 0 {
                open_txns.remove(&self.snapshot);
            }
        }
    }
}

impl Work {
    /// The VLSN it reads at.
    pub fn snapshot_vlsn(&self) -> Vlsn {
        self.workspace.snapshot().vlsn()
    }

    /// Whether it has written nothing, so that there is nothing to commit.
    pub fn is_read_only(&self) -> bool {
        self.workspace.is_read_only()
    }

    /// The value of a key, as this transaction sees it.
    ///
    /// # Errors
    /// Those of [`Snapshot::get`].
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Value>> {
        self.workspace.get(key)
    }

    /// Sets a value.
    ///
    /// # Errors
    /// A key or value out of bounds; [`KvError::TransactionTooLarge`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.workspace.write(key, Some(value))
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// Those of [`Work::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.workspace.write(key, None)
    }

    /// The keys within `range` and their values, with the writes this transaction has made so far.
    ///
    /// # Errors
    /// Those of [`Snapshot::range`].
    pub fn range<K: AsRef<[u8]>>(&mut self, range: impl RangeBounds<K>) -> Result<Range> {
        self.workspace.range(&range)
    }

    /// The keys that begin with `prefix`, as [`Work::range`].
    ///
    /// # Errors
    /// Those of [`Snapshot::prefix`].
    pub fn prefix(&mut self, prefix: &[u8]) -> Result<Range> {
        self.workspace.prefix(prefix)
    }

    /// The bodies of its entries, stamped with the wall clock's time in milliseconds.
    ///
    /// # Panics
    /// If it is read-only: then there is nothing to commit.
    pub fn encode(&self, wall_ms: u64) -> Bodies {
        Bodies(self.workspace.encode(wall_ms))
    }

    /// Whether a rollback has ended its snapshot.
    pub(crate) fn check(&self) -> Result<()> {
        self.workspace.snapshot().check()
    }
}

/// The bodies of one transaction's entries, in order; the last is the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bodies(Vec<Vec<u8>>);

impl Bodies {
    /// The entries to append. Reads every byte: call it before [`Engine::prepare`].
    pub fn entries(&self) -> Vec<NewEntry<'_>> {
        let Some((last, parts)) = self.0.split_last() else {
            unreachable!("a transaction with writes has a body")
        };
        let mut entries = Vec::with_capacity(self.0.len());
        entries.extend(parts.iter().map(|body| NewEntry::new(KIND, EntryFlags::NONE, body)));
        entries.push(NewEntry::new(KIND, EntryFlags::COMMIT, last));
        entries
    }
}

/// Leave to commit one transaction. Holds the commit lock: append the entries and say so, or drop
/// it, which abandons the transaction.
#[must_use = "dropping it abandons the transaction"]
pub struct Prepared<'a> {
    engine: &'a Engine,
    commits: MutexGuard<'a, Conflicts>,
    written: Written<'a>,
}

enum Written<'a> {
    Work(&'a Work),
    Batch(&'a Batch),
}

impl Prepared<'_> {
    /// The transaction's commit entry was appended at `vlsn`: who has not seen it conflicts with it.
    pub fn committed(self, vlsn: Vlsn) {
        let Self { engine, mut commits, written } = self;
        match written {
            Written::Work(work) => commits.record(vlsn, work.workspace.written_keys()),
            Written::Batch(batch) => commits.record(vlsn, batch.written_keys()),
        }
        commits.forget_through(engine.oldest_judged());
    }
}

const KIND: EntryKind = EntryKind(KIND_WRITES);

#[cfg(test)]
mod tests;
