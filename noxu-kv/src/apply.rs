//! Applier: brings the table up to a position of the log, entry by entry.
//!
//! # Invariants
//! - A transaction is inserted whole, at the VLSN of its commit entry, or not at all; until its
//!   commit entry comes, its writes wait in `open`. A Term entry ends the open transaction.
//! - The table is rotated between transactions only, at a sync entry.
//! - A memtable reaches the disk only once it is wholly at or below DTVLSN, and after `commit_floor`
//!   is durable at or above it. So nothing on disk can ever be rolled back.
//!
//! # Lock order
//! `applier`, then the table's own locks, then the registry of readers. The flusher takes no
//! applier lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use noxu_util::{Fingerprint, Term, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::checkpoint::CheckpointStream;
use crate::encode::{KIND_WRITES, Write, decode_commit, decode_part};
use crate::error::{KvError, Result};
use crate::snapshot::{Snapshot, View};
use crate::table::{Ingest, Mark, SealedContent, Table, Version};
use crate::value::Value;

/// What the store asks of replication.
pub trait Stability: Send + Sync {
    /// Everything through it can no longer be rolled back.
    fn dtvlsn(&self) -> Vlsn;

    /// Makes durable that nothing at or below `floor` may be rolled back.
    fn raise_commit_floor(&self, floor: Vlsn) -> Result<()>;

    /// The table is durable through `vlsn`: nothing up to there is ever replayed again.
    fn note_checkpoint(&self, vlsn: Vlsn);
}

/// One entry of the log, as the applier needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogEntry<'a> {
    pub(crate) vlsn: Vlsn,
    pub(crate) term: Term,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) kind: u8,
    pub(crate) is_sync: bool,
    pub(crate) is_commit: bool,
    pub(crate) body: &'a [u8],
}

/// Where a replay hands its entries.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(LogEntry<'_>) -> Result<()>;

/// Kinds below this belong to the replication engine.
const FIRST_STORE_KIND: u8 = 16;
const KIND_TERM: u8 = 0;

/// The table, what applies to it and what writes it to disk.
pub(crate) struct Machine {
    core: Arc<Core>,
    /// Content that was made ahead, by the number of its checkpoint. Held while content is made.
    prepared: Mutex<Option<([u8; 32], SealedContent)>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Core {
    view: Arc<View>,
    stability: Box<dyn Stability>,
    memtable_bytes: u64,
    applier: Mutex<Applier>,
    upkeep: Upkeep,
}

/// Work for the threads that flush and compact, or for whoever does it in their place.
struct Upkeep {
    state: Mutex<UpkeepState>,
    changed: Condvar,
    /// Held by a compaction step that drops hidden versions, and by a flush that must keep them.
    keeps_versions: Mutex<()>,
    /// The sealed memtable lies above DTVLSN; it is looked at again when DTVLSN has moved.
    held_back: AtomicBool,
    /// No threads: the applier flushes where it would wait for them, and [`Machine::upkeep`] does
    /// the rest.
    inline: bool,
}

#[derive(Default)]
struct UpkeepState {
    flush_wanted: bool,
    compact_wanted: bool,
    stop: bool,
    /// The last failure to flush or compact; cleared by a success.
    failure: Option<String>,
}

#[derive(Default)]
pub(crate) struct Applier {
    /// The last entry given.
    given: Vlsn,
    /// The newest sync entry with nothing open behind it.
    boundary: Mark,
    open: Option<Open>,
    /// Versions of whole transactions, not inserted yet.
    batch: Vec<Version>,
    batch_bytes: usize,
    /// The first failure; nothing is applied after it.
    stopped: Option<String>,
}

/// A transaction whose commit entry has not come yet.
struct Open {
    began: Vlsn,
    writes: Vec<Write>,
    /// How many of `writes` each entry from `began` on ends at.
    ends: Vec<usize>,
}

impl Machine {
    /// With threads of its own that flush and compact.
    pub(crate) fn new(
        table: Box<dyn Table>,
        stability: Box<dyn Stability>,
        memtable_bytes: u64,
    ) -> Self {
        let core = Core::new(table, stability, memtable_bytes, false);
        let spawn = |name: &str, run: fn(&Core)| {
            let core = Arc::clone(&core);
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || run(&core))
                .expect("a thread can be started")
        };
        let threads = vec![
            spawn("noxu-kv-flush", Core::run_flusher),
            spawn("noxu-kv-compact", Core::run_compactor),
        ];
        Self { core, prepared: Mutex::default(), threads: Mutex::new(threads) }
    }

    /// Without threads: the caller calls [`Machine::upkeep`].
    pub(crate) fn without_threads(
        table: Box<dyn Table>,
        stability: Box<dyn Stability>,
        memtable_bytes: u64,
    ) -> Self {
        let core = Core::new(table, stability, memtable_bytes, true);
        Self { core, prepared: Mutex::default(), threads: Mutex::default() }
    }

    /// Flushes and compacts what there is to flush and compact, unless threads see to it.
    pub(crate) fn upkeep(&self) {
        if self.core.upkeep.inline {
            self.core.flush_and_compact();
        }
    }

    pub(crate) fn view(&self) -> &Arc<View> {
        &self.core.view
    }

    /// Everything through it is applied; replay starts after it.
    pub(crate) fn applied(&self) -> Vlsn {
        self.core.view.visible()
    }

    /// Applies entries in order. Entries that were given before are passed over, so a caller may
    /// begin again after [`Machine::applied`].
    pub(crate) fn apply<'a>(&self, entries: impl Iterator<Item = LogEntry<'a>>) -> Result<()> {
        let mut applier = self.core.applier.lock();
        applier.check()?;
        let result = self.core.apply(&mut applier, entries);
        if let Err(cause) = &result {
            applier.stopped = Some(cause.to_string());
        }
        result
    }

    /// Forgets everything above `matchpoint`. `replay` is called with a VLSN and must give the
    /// entries from there through it, or at least the first of them, to the function it is handed.
    pub(crate) fn roll_back_to(
        &self,
        matchpoint: Vlsn,
        mut replay: impl FnMut(Vlsn, Sink<'_>) -> Result<()>,
    ) -> Result<()> {
        let core = &*self.core;
        let mut applier = core.applier.lock();
        applier.check()?;
        if applier.given <= matchpoint {
            return Ok(());
        }
        let applied = self.applied();
        if applied <= matchpoint {
            // Only entries of an unfinished transaction lie above.
            applier.cut_unfinished(matchpoint);
            return Ok(());
        }
        let flushed = core.view.table.flushed();
        if flushed.vlsn > matchpoint {
            return Err(KvError::RollbackBelowFlushed { matchpoint, flushed: flushed.vlsn });
        }
        let result = core.view.rewrite_history(Some(matchpoint), || {
            core.view.table.clear_unflushed();
            core.upkeep.held_back.store(false, Ordering::Relaxed);
            applier.start_after(flushed);
            let result = applier.replay(&core.view, matchpoint, &mut replay);
            (applier.boundary_or_given(), result)
        });
        if let Err(cause) = &result {
            applier.stopped = Some(cause.to_string());
        }
        core.request_flush();
        result
    }

    /// Makes what is applied durable as far as it may be; returns the VLSN through which it is.
    pub(crate) fn checkpoint(&self) -> Result<Vlsn> {
        let core = &*self.core;
        // A memtable sealed earlier goes first; then what was active until now.
        core.flush_if_stable()?;
        {
            let applier = core.applier.lock();
            applier.check()?;
            core.view.table.rotate(applier.boundary);
        }
        core.flush_if_stable()?;
        core.request_flush();
        Ok(core.view.table.flushed().vlsn)
    }

    /// Everything through it is on disk in the table.
    pub(crate) fn checkpointed(&self) -> Vlsn {
        self.core.view.table.flushed().vlsn
    }

    /// The content at the newest VLSN that is durable, as a stream.
    pub(crate) fn open_checkpoint(&self) -> Result<CheckpointStream> {
        self.checkpoint()?;
        let (snapshot, mark) = self.durable_snapshot()?;
        CheckpointStream::open(&snapshot, mark)
    }

    /// Replaces all state by the content that `make` makes.
    pub(crate) fn replace(
        &self,
        make: impl FnOnce(&dyn Table) -> Result<SealedContent>,
    ) -> Result<()> {
        let mut prepared = self.prepared.lock();
        *prepared = None; // there is one place for new content
        self.put_in_force(make)
    }

    /// Makes content ahead, for [`Machine::adopt_prepared`]; what is in force stays.
    pub(crate) fn prepare(
        &self,
        id: &[u8; 32],
        make: impl FnOnce(&dyn Table) -> Result<SealedContent>,
    ) -> Result<()> {
        let mut prepared = self.prepared.lock();
        *prepared = None;
        *prepared = Some((*id, make(&*self.core.view.table)?));
        Ok(())
    }

    /// Replaces all state by the content that was made of checkpoint `id`, if that is still there; says
    /// whether.
    pub(crate) fn adopt_prepared(&self, id: &[u8; 32]) -> Result<bool> {
        let Some((_, content)) = self.prepared.lock().take_if(|(of, _)| of == id) else {
            return Ok(false);
        };
        self.put_in_force(|_| Ok(content)).map(|()| true)
    }

    /// Forgets what was made ahead, whole or in part.
    pub(crate) fn discard_prepared(&self) -> Result<()> {
        let mut prepared = self.prepared.lock();
        *prepared = None;
        self.core.view.table.discard_made()
    }

    fn put_in_force(&self, make: impl FnOnce(&dyn Table) -> Result<SealedContent>) -> Result<()> {
        let core = &*self.core;
        let mut applier = core.applier.lock();
        let applied = self.applied();
        core.view.rewrite_history(None, || {
            let table = &*core.view.table;
            let adopted = make(table).and_then(|content| {
                let mark = content.mark;
                table.adopt(content).map(|()| mark)
            });
            match adopted {
                Ok(mark) => {
                    applier.start_after(mark);
                    applier.stopped = None;
                    // The checkpoint holds the newest version of each key only.
                    core.view.raise_floor(mark.vlsn);
                    (mark.vlsn, Ok(()))
                }
                Err(cause) => (applied, Err(cause)),
            }
        })
    }

    /// The content at the newest VLSN that is durable.
    pub(crate) fn durable_snapshot(&self) -> Result<(Snapshot, Mark)> {
        loop {
            // C6: `commit_floor` is durable at or above the mark since its flush.
            let mark = self.core.view.table.flushed();
            match self.core.view.open_snapshot(Some(mark.vlsn)) {
                Ok(snapshot) => return Ok((snapshot, mark)),
                // Another flush is moving the mark on: with its lock it is waited for.
                Err(KvError::SnapshotTooOld { .. }) => self.core.flush_if_stable()?,
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Why the threads that write to disk last failed, if they have not succeeded since.
    pub(crate) fn upkeep_failure(&self) -> Option<String> {
        self.core.upkeep.state.lock().failure.clone()
    }
}

impl Machine {
    /// Ends the threads that write to disk. What they have not flushed is replayed at the next open.
    pub(crate) fn stop(&self) {
        self.core.upkeep.state.lock().stop = true;
        self.core.upkeep.changed.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Core {
    fn new(
        table: Box<dyn Table>,
        stability: Box<dyn Stability>,
        memtable_bytes: u64,
        inline: bool,
    ) -> Arc<Self> {
        let applier = Applier::behind(table.flushed());
        Arc::new(Self {
            view: View::new(table),
            stability,
            memtable_bytes,
            applier: Mutex::new(applier),
            upkeep: Upkeep {
                state: Mutex::default(),
                changed: Condvar::new(),
                keeps_versions: Mutex::new(()),
                held_back: AtomicBool::new(false),
                inline,
            },
        })
    }

    fn apply<'a>(
        &self,
        applier: &mut Applier,
        entries: impl Iterator<Item = LogEntry<'a>>,
    ) -> Result<()> {
        let result = self.take_all(applier, entries);
        // What came before a bad entry stands.
        applier.insert_batch(&self.view);
        self.view.publish(applier.boundary_or_given());
        result?;
        self.rotate_if_full(applier)
    }

    fn take_all<'a>(
        &self,
        applier: &mut Applier,
        entries: impl Iterator<Item = LogEntry<'a>>,
    ) -> Result<()> {
        for entry in entries {
            applier.take(entry)?;
            if applier.batch_bytes >= BATCH_BYTES {
                applier.insert_batch(&self.view);
                self.rotate_if_full(applier)?;
            }
        }
        Ok(())
    }

    fn rotate_if_full(&self, applier: &Applier) -> Result<()> {
        let table = &self.view.table;
        if self.upkeep.held_back.load(Ordering::Relaxed) {
            self.request_flush_if_stable();
        }
        if table.active_bytes() < self.memtable_bytes {
            return Ok(());
        }
        // What is sealed must be visible first, so that its flush may drop hidden versions.
        self.view.publish(applier.boundary_or_given());
        if table.rotate(applier.boundary) {
            self.request_flush();
            return Ok(());
        }
        if table.active_bytes() < self.memtable_bytes * MAX_ACTIVE_MEMTABLES {
            return Ok(());
        }
        self.wait_for_flush()
    }

    /// Waits for a flush that is only a matter of the disk. One that must wait for DTVLSN does not
    /// hold up the applier: how far the master runs ahead of it is bounded elsewhere, in bytes.
    ///
    /// Without threads it flushes here, and a flush that fails is left to the next upkeep: nobody
    /// could end the wait.
    fn wait_for_flush(&self) -> Result<()> {
        if self.upkeep.inline {
            self.flush_now();
            return Ok(());
        }
        let mut state = self.upkeep.state.lock();
        while self.sealed_is_stable() {
            if state.stop {
                return Err(KvError::Stopped { cause: "the store was closed".to_owned() });
            }
            // A full disk tells nobody when it has space again, so a failed flush is tried again.
            state.flush_wanted |= state.failure.is_some();
            self.upkeep.changed.notify_all();
            let _timed_out = self.upkeep.changed.wait_for(&mut state, FLUSH_RETRY);
        }
        Ok(())
    }

    fn sealed_is_stable(&self) -> bool {
        self.view.table.sealed().is_some_and(|mark| mark.vlsn <= self.stability.dtvlsn())
    }

    fn request_flush(&self) {
        let mut state = self.upkeep.state.lock();
        state.flush_wanted = true;
        self.upkeep.changed.notify_all();
    }

    fn request_flush_if_stable(&self) {
        if self.sealed_is_stable() {
            self.request_flush();
        }
    }

    /// Flushes the sealed memtable if nothing in it can be rolled back any more.
    fn flush_if_stable(&self) -> Result<()> {
        let table = &self.view.table;
        let Some(mark) = table.sealed() else { return Ok(()) };
        if mark.vlsn > self.stability.dtvlsn() {
            self.upkeep.held_back.store(true, Ordering::Relaxed);
            return Ok(());
        }
        self.upkeep.held_back.store(false, Ordering::Relaxed);
        self.stability.raise_commit_floor(mark.vlsn)?;
        let newest_only = self.view.may_drop_below(mark.vlsn);
        // Somebody reads below the mark: this memtable may not meet a compaction that has decided
        // before it came that nobody reads what is hidden.
        let _gate = (!newest_only).then(|| self.upkeep.keeps_versions.lock());
        table.flush(mark, newest_only)?;
        self.stability.note_checkpoint(table.flushed().vlsn);
        Ok(())
    }

    fn flush_now(&self) {
        let result = self.flush_if_stable();
        self.report("flush", result, |state| state.compact_wanted = true);
    }

    /// One round of what the two threads do.
    fn flush_and_compact(&self) {
        let flush_wanted = std::mem::take(&mut self.upkeep.state.lock().flush_wanted);
        // Also one that was held back, or failed, before.
        if flush_wanted || self.sealed_is_stable() {
            self.flush_now();
        }
        let compact_wanted = std::mem::take(&mut self.upkeep.state.lock().compact_wanted);
        if compact_wanted {
            self.report("compact", self.compact(), |_| ());
        }
    }

    fn run_flusher(&self) {
        while self.next_work(|state| std::mem::take(&mut state.flush_wanted)) {
            self.flush_now();
        }
    }

    fn run_compactor(&self) {
        while self.next_work(|state| std::mem::take(&mut state.compact_wanted)) {
            self.report("compact", self.compact(), |_| ());
        }
    }

    fn compact(&self) -> Result<()> {
        for _ in 0..MAX_COMPACTION_STEPS {
            let gate = self.upkeep.keeps_versions.lock();
            let newest_only = self.view.may_drop_below(self.view.table.flushed().vlsn);
            let _gate = newest_only.then_some(gate);
            if !self.view.table.compact_step(newest_only)? || self.upkeep.state.lock().stop {
                break;
            }
        }
        Ok(())
    }

    /// Waits for work; false when the store stops.
    fn next_work(&self, take: fn(&mut UpkeepState) -> bool) -> bool {
        let mut state = self.upkeep.state.lock();
        loop {
            if state.stop {
                return false;
            }
            if take(&mut state) {
                return true;
            }
            self.upkeep.changed.wait(&mut state);
        }
    }

    fn report(&self, what: &str, result: Result<()>, then: fn(&mut UpkeepState)) {
        let mut state = self.upkeep.state.lock();
        match result {
            Ok(()) => {
                state.failure = None;
                then(&mut state);
            }
            Err(cause) => {
                tracing::error!("cannot {what} the table: {cause}");
                state.failure = Some(format!("cannot {what} the table: {cause}"));
            }
        }
        self.upkeep.changed.notify_all();
    }
}

impl Applier {
    fn check(&self) -> Result<()> {
        match &self.stopped {
            Some(cause) => Err(KvError::Stopped { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// What may be read: everything given, unless a transaction is open.
    fn boundary_or_given(&self) -> Vlsn {
        match &self.open {
            Some(open) => open.began.prev(),
            None => self.given,
        }
    }

    fn start_after(&mut self, mark: Mark) {
        self.given = mark.vlsn;
        self.boundary = mark;
        self.open = None;
        self.batch.clear();
        self.batch_bytes = 0;
    }

    /// Forgets the entries of the open transaction above `matchpoint`.
    fn cut_unfinished(&mut self, matchpoint: Vlsn) {
        if let Some(open) = &mut self.open {
            let kept = matchpoint.next().since(open.began) as usize;
            match kept.checked_sub(1).and_then(|last| open.ends.get(last)) {
                Some(end) => open.writes.truncate(*end),
                None => self.open = None,
            }
            if let Some(open) = &mut self.open {
                open.ends.truncate(kept);
            }
        }
        self.given = matchpoint;
    }

    /// Takes the next entry: buffers its writes, or moves a whole transaction into the batch.
    fn take(&mut self, entry: LogEntry<'_>) -> Result<()> {
        if entry.vlsn <= self.given {
            return Ok(());
        }
        if entry.vlsn != self.given.next() {
            return Err(KvError::OutOfOrder { found: entry.vlsn, expected: self.given.next() });
        }
        match entry.kind {
            KIND_TERM => self.open = None,
            kind if kind < FIRST_STORE_KIND => {
                if let Some(open) = &self.open {
                    return Err(KvError::InsideTransaction {
                        vlsn: entry.vlsn,
                        kind,
                        began: open.began,
                    });
                }
            }
            KIND_WRITES => self.take_writes(entry)?,
            kind => return Err(KvError::UnknownKind { vlsn: entry.vlsn, kind }),
        }
        self.given = entry.vlsn;
        if entry.is_sync && self.open.is_none() {
            self.boundary =
                Mark { vlsn: entry.vlsn, term: entry.term, fingerprint: entry.fingerprint };
        }
        Ok(())
    }

    fn take_writes(&mut self, entry: LogEntry<'_>) -> Result<()> {
        let bad = |cause| KvError::BadEntry { vlsn: entry.vlsn, cause };
        let writes = if entry.is_commit {
            decode_commit(entry.body).map_err(bad)?.1
        } else {
            decode_part(entry.body)
        };
        if !entry.is_commit {
            let began = entry.vlsn;
            let open = self.open.get_or_insert_with(|| Open {
                began,
                writes: Vec::new(),
                ends: Vec::new(),
            });
            for write in writes {
                let (key, value) = write.map_err(bad)?;
                open.writes.push((Value::from(key), value.map(Value::from)));
            }
            open.ends.push(open.writes.len());
            return Ok(());
        }
        // A bad write further on must leave nothing of the transaction behind.
        let before = self.batch.len();
        let at = entry.vlsn;
        for (key, value) in self.open.take().map_or_else(Vec::new, |open| open.writes) {
            self.batch_bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            self.batch.push(Version { key, value, at });
        }
        for write in writes {
            let (key, value) = write.map_err(|cause| {
                self.batch.truncate(before);
                bad(cause)
            })?;
            self.batch_bytes += key.len() + value.map_or(0, <[u8]>::len);
            self.batch.push(Version { key: Value::from(key), value: value.map(Value::from), at });
        }
        Ok(())
    }

    /// Takes everything after what was given, through `matchpoint`.
    fn replay(
        &mut self,
        view: &View,
        matchpoint: Vlsn,
        source: &mut impl FnMut(Vlsn, Sink<'_>) -> Result<()>,
    ) -> Result<()> {
        while self.given < matchpoint {
            let wanted = self.given.next();
            source(wanted, &mut |entry| {
                if entry.vlsn <= matchpoint { self.take(entry) } else { Ok(()) }
            })?;
            self.insert_batch(view);
            if self.given < wanted {
                return Err(KvError::ReplayGap { wanted });
            }
        }
        Ok(())
    }

    /// Entries behind `after` follow.
    pub(crate) fn behind(after: Mark) -> Self {
        Self { given: after.vlsn, boundary: after, ..Self::default() }
    }

    /// Writes `entries` over what `ingest` has.
    pub(crate) fn redo<'a>(
        &mut self,
        ingest: &mut dyn Ingest,
        entries: impl Iterator<Item = LogEntry<'a>>,
    ) -> Result<()> {
        for entry in entries {
            self.take(entry)?;
            if self.batch_bytes >= BATCH_BYTES {
                self.write_batch_over(ingest)?;
            }
        }
        self.write_batch_over(ingest)
    }

    fn write_batch_over(&mut self, ingest: &mut dyn Ingest) -> Result<()> {
        self.batch_bytes = 0;
        ingest.write_over(&mut self.batch)
    }

    /// Where all of it is applied and no transaction is open.
    pub(crate) fn boundary(&self) -> Option<Mark> {
        (self.open.is_none() && self.boundary.vlsn == self.given).then_some(self.boundary)
    }

    fn insert_batch(&mut self, view: &View) {
        if !self.batch.is_empty() {
            // Neighbours share their way through the memtable: a quarter more inserts a second.
            self.batch.sort_by(|a, b| a.key.cmp(&b.key));
            view.table.insert(&mut self.batch);
            self.batch_bytes = 0;
        }
    }
}

/// Bytes of whole transactions that are collected before they are inserted together.
const BATCH_BYTES: usize = 256 << 10;

/// The active memtable may grow to this many times its size while the sealed one is being written.
const MAX_ACTIVE_MEMTABLES: u64 = 2;

/// Compaction steps taken in one go; more wait for the next flush.
const MAX_COMPACTION_STEPS: usize = 32;

/// Pause before a flush that failed is tried again.
const FLUSH_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
