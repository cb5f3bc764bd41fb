//! Log: the handle that everything else uses; append and positions.
//!
//! # Invariants (asserted in [`State::check_invariants`])
//! - `anchor <= last`, `durable <= synced <= written <= last`, `marked <= synced`,
//!   `last_txn_end <= last_sync <= last`.
//! - Segments are adjacent: each begins where the chain of the one before ends.
//! - Only the last segments are unsealed.
//!
//! # Locks, in the order in which they are taken
//! `publishing` (held while hooks hear how far the log is durable) -> `maintenance` (seal, truncate,
//! drop) -> prefill's `unfinished` -> `writer` (file writes and syncs) -> `marker` (the tail mark) ->
//! `state` (positions, tail, index). `state` is held for a few hundred nanoseconds and never during
//! input or output. The waiters', flushers', lazy marks', keeper's, reserve's, pins', alarm's,
//! sync clocks' and directory's locks are leaves.
//!
//! # Not here
//! Writing and syncing (writing/), reading (reading/), opening (recovery/), cutting and mending
//! (rewriting/), finished segments (keeping/), a log without threads (upkeep.rs).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use noxu_util::{Fingerprint, Lsn, NULL_VLSN, Term, Vlsn};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::control_file::{Anchor, ControlFile, GroupIdentity};
use crate::entry::{ChainState, EntryHeader, EntryKind, EntryRun, NewEntry, entries_of};
use crate::env::{Env, LockGuard};
use crate::error::{LogError, Result};
use crate::keeping::keeper::Keeper;
use crate::keeping::pins::Pins;
use crate::keeping::retention::RetentionConfig;
use crate::keeping::scrub::{DamagedBlock, ScrubConfig, Scrubber};
use crate::mutant::{self, Mutant};
use crate::reading::reader::Readers;
use crate::rewriting::repair::Faulty;
use crate::rewriting::truncate::Cuts;
use crate::segment::cache::{FileCache, SideCache};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::scan::SummaryBuilder;
use crate::upkeep::Background;
use crate::writing::flusher::Flusher;
use crate::writing::full_disk::ReadOnlyTold;
use crate::writing::group_commit::{Room, Writer};
use crate::writing::marker::{LazyMarks, MarkPolicy, Marker};
use crate::writing::prefill::Prefill;
use crate::writing::sync_clock::SyncClock;
use crate::writing::tail::Tail;
use crate::writing::tail_mark::Mark;
use crate::writing::waiters::Waiters;

/// How a log is opened. The defaults suit a node of its own machine.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Bytes of written entries kept in memory for feeders. Default 64 MiB.
    pub tail_bytes: usize,
    /// Longest body of an entry, in bytes. Default 64 MiB and 64 KiB; at most 1 GiB.
    pub max_body_bytes: u32,
    /// Bytes appended but not written at which appenders wait. Default 64 MiB.
    pub max_unwritten_bytes: usize,
    /// Bytes appended but not written at which a write starts on its own. Default 1 MiB.
    pub write_ahead_bytes: usize,
    /// Longest time that an appended entry stays unsynced when nobody asks. Default 1 s.
    pub sync_interval: Duration,
    /// Whether segments are filled with zeros ahead of the writes where that makes syncs faster, and
    /// one more is kept as a reserve for a full disk; costs up to three segments of disk. Default
    /// true.
    pub prefill: bool,
    /// How fast and how often sealed segments are read again and compared with their digests; `None`
    /// for never. Default 8 MiB a second, each segment once a week.
    pub scrub: Option<ScrubConfig>,
    /// When the tail mark is synced, and whether acknowledgements wait for that. Default Strict.
    pub tail_mark: MarkPolicy,
    /// Under the lazy policy, how long after a flush that no other follows the tail mark is synced;
    /// under load at most ten times as long. Default 1 ms.
    pub lazy_mark_delay: Duration,
    /// How much of the front is kept.
    pub retention: RetentionConfig,
    /// Threads that scan segments when the log is opened; 0, the default, for one a core.
    pub recovery_threads: usize,
    /// Who does what nobody waits for. Default [`Background::Threads`]; with [`Background::Caller`]
    /// `recovery_threads` is 1, `sync_interval`, `lazy_mark_delay` and `scrub` are the caller's business.
    pub background: Background,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            tail_bytes: 64 << 20,
            max_body_bytes: (64 << 20) + (64 << 10),
            max_unwritten_bytes: 64 << 20,
            write_ahead_bytes: 1 << 20,
            sync_interval: Duration::from_secs(1),
            prefill: true,
            scrub: Some(ScrubConfig::default()),
            tail_mark: MarkPolicy::Strict,
            lazy_mark_delay: Duration::from_millis(1),
            retention: RetentionConfig::default(),
            recovery_threads: 0,
            background: Background::default(),
        }
    }
}

/// Smallest and largest segment size a group may have, in bytes.
pub const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u32> = 4 << 10..=1 << 30;
/// Segment size of a group that does not choose one, in bytes.
pub const DEFAULT_SEGMENT_BYTES: u32 = 64 << 20;
/// Largest [`LogConfig::max_body_bytes`]: with the largest segment, offsets stay within 32 bits.
pub(crate) const MAX_BODY_BYTES: u32 = 1 << 30;

/// A replicated log in a directory. Cheap to clone; the last handle dropped closes it.
#[derive(Debug, Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    owner: Arc<Owner>,
}

/// What an append was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// First entry of the batch.
    pub first: Vlsn,
    /// Last entry of the batch.
    pub last: Vlsn,
    /// Where `last` stands.
    pub last_lsn: Lsn,
    /// Fingerprint of `last`.
    pub last_fingerprint: Fingerprint,
}

/// One consistent snapshot of the log's positions: `first <= last_txn_end <= last_sync <= last` and
/// `durable <= written <= last`, NULL ones exempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// First entry held; NULL if none is.
    pub first: Vlsn,
    /// Newest entry after which no transaction is open; NULL if none is held.
    pub last_txn_end: Vlsn,
    /// Newest entry that may be a matchpoint; NULL if none is held.
    pub last_sync: Vlsn,
    /// Last entry; the anchor's VLSN if none is held.
    pub last: Vlsn,
    /// Where `last` stands.
    pub last_lsn: Lsn,
    /// Term of `last`.
    pub last_term: Term,
    /// Fingerprint of `last`.
    pub last_fingerprint: Fingerprint,
    /// Everything through it is in its file.
    pub written: Vlsn,
    /// Everything through it is synced, and marked as far as the policy asks for.
    pub durable: Vlsn,
    /// The position before the first entry.
    pub anchor: Anchor,
}

impl Positions {
    /// Whether the log holds no entry.
    pub fn is_empty(&self) -> bool {
        self.last == self.anchor.vlsn
    }

    /// What the next entry must continue.
    pub const fn chain(&self) -> ChainState {
        ChainState { vlsn: self.last, term: self.last_term, fingerprint: self.last_fingerprint }
    }
}

type DurableHook = Arc<dyn Fn(Vlsn) + Send + Sync>;
type DamageHook = Arc<dyn Fn(&DamagedBlock) + Send + Sync>;
type CheckpointHook = Arc<dyn Fn(Vlsn) + Send + Sync>;
pub(crate) type UnsealableHook = Arc<dyn Fn(u32) + Send + Sync>;
pub(crate) type PoisonHook = Arc<dyn Fn(&LogError) + Send + Sync>;
type ReadOnlyHook = Arc<dyn Fn(Option<&LogError>) + Send + Sync>;

/// Who listens to the log.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) durable: Arc<[DurableHook]>,
    pub(crate) checkpoint_wanted: Vec<CheckpointHook>,
    poisoned: Vec<PoisonHook>,
    pub(crate) read_only: Vec<ReadOnlyHook>,
    pub(crate) damaged: Vec<DamageHook>,
    pub(crate) unsealable: Vec<UnsealableHook>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("durable", &self.durable.len())
            .field("checkpoint_wanted", &self.checkpoint_wanted.len())
            .field("poisoned", &self.poisoned.len())
            .field("read_only", &self.read_only.len())
            .field("damaged", &self.damaged.len())
            .field("unsealable", &self.unsealable.len())
            .finish()
    }
}

/// What all handles and threads of one log share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) env: Arc<dyn Env>,
    pub(crate) dir: PathBuf,
    pub(crate) config: LogConfig,
    pub(crate) control: ControlFile,
    pub(crate) maintenance: Mutex<()>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) marker: Mutex<Marker>,
    pub(crate) state: Mutex<State>,
    /// Signalled when unwritten bytes were written.
    pub(crate) space: Condvar,
    /// Signalled when a truncation has ended, or the log stopped.
    pub(crate) truncated: Condvar,
    pub(crate) waiters: Waiters,
    pub(crate) flusher: Flusher,
    pub(crate) lazy_marks: LazyMarks,
    /// How long syncs took, of segments and of the mark.
    pub(crate) data_syncs: SyncClock,
    pub(crate) mark_syncs: SyncClock,
    pub(crate) keeper: Keeper,
    pub(crate) scrubber: Scrubber,
    pub(crate) prefill: Prefill,
    pub(crate) hooks: RwLock<Hooks>,
    /// Held while hooks are told how far the log is durable.
    pub(crate) publishing: RwLock<()>,
    pub(crate) poison: OnceLock<LogError>,
    /// It has stopped, and the hooks have not heard of it.
    pub(crate) alarm: AtomicBool,
    pub(crate) closed: AtomicBool,
    pub(crate) unwritten_bytes: AtomicUsize,
    pub(crate) read_only_told: Mutex<ReadOnlyTold>,
    /// Whether the reserve is known to be whole; held while it is made or given up.
    pub(crate) reserve: Mutex<bool>,
    pub(crate) files: FileCache,
    pub(crate) sides: SideCache,
    pub(crate) pins: Pins,
    /// Segments below the anchor whose files could not be removed yet, oldest first.
    pub(crate) doomed: Mutex<Vec<u32>>,
    /// The directory's lock; given back when the log is closed. See [`Shared::directory`].
    pub(crate) lock: RwLock<Option<Box<dyn LockGuard>>>,
}

/// A segment as the log knows it.
#[derive(Debug)]
pub(crate) enum Segment {
    /// Still growing, or its end may yet be rolled back: samples in memory.
    Open(SummaryBuilder),
    /// Will never change: samples in the side file.
    Sealed(Sealed),
}

/// The fixed facts of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) header: SegmentHeader,
    pub(crate) end: u32,
    pub(crate) last: ChainState,
    /// Newest sync entry and transaction end at or before its end, here or in an earlier segment.
    pub(crate) last_sync: Vlsn,
    pub(crate) last_txn_end: Vlsn,
    /// Newest Group entry in it; NULL if it holds none.
    pub(crate) last_group: Vlsn,
    /// When it was written, by the master's wall clock; 0 if no entry tells.
    pub(crate) clock_ms: u64,
    pub(crate) digest: blake3::Hash,
}

impl Segment {
    pub(crate) const fn header(&self) -> &SegmentHeader {
        match self {
            Self::Open(builder) => builder.header(),
            Self::Sealed(sealed) => &sealed.header,
        }
    }

    pub(crate) const fn number(&self) -> u32 {
        self.header().number
    }

    pub(crate) const fn end(&self) -> u32 {
        match self {
            Self::Open(builder) => builder.end(),
            Self::Sealed(sealed) => sealed.end,
        }
    }

    pub(crate) const fn last(&self) -> &ChainState {
        match self {
            Self::Open(builder) => builder.last(),
            Self::Sealed(sealed) => &sealed.last,
        }
    }

    pub(crate) const fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }
}

/// Positions, index and tail.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) group: Option<GroupIdentity>,
    pub(crate) anchor: Anchor,
    /// Oldest first. Empty until the first entry after the anchor.
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) end: ChainState,
    pub(crate) last_lsn: Lsn,
    pub(crate) last_sync: Vlsn,
    pub(crate) last_txn_end: Vlsn,
    /// The last entry that is in its file.
    pub(crate) written: Mark,
    /// The last `Term` or Group entry appended: the reserve serves it.
    pub(crate) urgent: Vlsn,
    /// What the disk has no room for: the log is read-only.
    pub(crate) no_room: Option<PathBuf>,
    /// The last entry that is synced, and told of at the latest once the mark says so.
    pub(crate) synced: Mark,
    /// Everything through it is covered by the tail mark on the disk.
    pub(crate) marked: Vlsn,
    /// Everything through it was reported as synced.
    pub(crate) durable: Vlsn,
    /// Terms with their first VLSNs, oldest first.
    pub(crate) terms: Vec<(Term, Vlsn)>,
    pub(crate) tail: Tail,
    /// Everything through it will never be rolled back.
    pub(crate) settled: Vlsn,
    /// A finished segment that could not be sealed, because it is damaged.
    pub(crate) unsealable: Option<u32>,
    /// Everything through it is in the state machine's checkpoint.
    pub(crate) checkpoint: Vlsn,
    /// Entries that cannot be read, oldest first.
    pub(crate) faulty: Vec<Faulty>,
    /// Counts truncations begun, blocks replaced, and segments examined or mended, so that a file read
    /// can tell that the file changed under it.
    pub(crate) truncations: u64,
    /// For those who wait for entries that may be cut off.
    pub(crate) cuts: Cuts,
    /// Whether files are being cut at this moment, when positions and index still speak of what is
    /// going: readers wait.
    pub(crate) truncating: bool,
    pub(crate) readers: Readers,
}

/// Whether entries of this kind are taken while the disk is full.
const fn is_urgent(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::TERM | EntryKind::GROUP)
}

impl State {
    /// Room for one more entry: its LSN, in a new segment if it would pass the segment size.
    fn place(&mut self, entry_bytes: usize) -> Lsn {
        let group = self.group.as_ref().expect("checked by the callers");
        let current = self.segments.back();
        let fits = current.is_some_and(|segment| {
            !segment.is_sealed()
                && (u64::from(segment.end()) + entry_bytes as u64 <= u64::from(group.segment_bytes)
                    || segment.end() == SEGMENT_HEADER_BYTES)
        });
        if !fits {
            let number = match current {
                Some(segment) => segment.number() + 1,
                None => self.anchor.next_segment(),
            };
            let header = SegmentHeader {
                number,
                group: group.id,
                first: self.end.vlsn.next(),
                previous_fingerprint: self.end.fingerprint,
                previous_term: self.end.term,
                segment_bytes: group.segment_bytes,
            };
            self.tail.freeze(&self.end);
            let builder = SummaryBuilder::new(header, self.last_sync, self.last_txn_end);
            self.segments.push_back(Segment::Open(builder));
        }
        let segment = self.segments.back().expect("pushed above");
        Lsn::new(segment.number(), segment.end())
    }

    /// Moves positions and index past an entry that was put into the tail at `lsn`.
    fn advance(&mut self, lsn: Lsn, entry: &EntryHeader) {
        match self.segments.back_mut() {
            Some(Segment::Open(builder)) => builder.push(lsn.offset(), entry),
            other => panic!("append to segment {other:?}, which cannot grow"),
        }
        if is_urgent(entry.kind) {
            self.urgent = entry.vlsn;
        }
        if entry.term != self.end.term {
            self.terms.push((entry.term, entry.vlsn));
        }
        if entry.is_sync() {
            self.last_sync = entry.vlsn;
        }
        if entry.is_txn_end() {
            self.last_txn_end = entry.vlsn;
        }
        self.last_lsn = lsn;
        self.end =
            ChainState { vlsn: entry.vlsn, term: entry.term, fingerprint: entry.fingerprint };
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end.vlsn == self.anchor.vlsn
    }

    /// The mark that speaks of everything here.
    pub(crate) const fn end_mark(&self) -> Mark {
        Mark {
            term: self.end.term,
            vlsn: self.end.vlsn,
            lsn: self.last_lsn,
            fingerprint: self.end.fingerprint,
        }
    }

    /// Asserts the invariants in this file's header.
    pub(crate) fn check_invariants(&self) {
        assert!(self.anchor.vlsn <= self.end.vlsn, "the anchor is beyond the end");
        let synced = self.synced.vlsn;
        assert!(self.durable <= synced, "{} reported, synced through {synced}", self.durable);
        assert!(self.marked <= synced, "{} marked, synced through {synced}", self.marked);
        let written = self.written.vlsn;
        assert!(synced <= written, "{synced} synced, written through {written}");
        assert!(written <= self.end.vlsn, "{written} written, not there");
        assert!(self.last_txn_end <= self.last_sync, "a transaction end is a sync entry");
        assert!(self.last_sync <= self.end.vlsn, "the last sync entry is beyond the end");
        let mut chain: Option<ChainState> = None;
        let mut open = false;
        for segment in &self.segments {
            if let Some(before) = chain {
                assert_eq!(segment.header().chain_before(), before, "segments are adjacent");
            }
            assert!(!(open && segment.is_sealed()), "a sealed segment follows an unsealed one");
            open = !segment.is_sealed();
            chain = Some(*segment.last());
        }
        if let Some(last) = chain {
            assert_eq!(last, self.end, "the last segment ends where the log does");
        }
    }
}

impl Log {
    pub(crate) fn new(shared: Arc<Shared>, owner: Owner) -> Self {
        Self { shared, owner: Arc::new(owner) }
    }

    /// The directory it lives in.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The file system it lives on.
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.shared.env
    }

    /// How it was opened.
    pub fn config(&self) -> &LogConfig {
        &self.shared.config
    }

    /// What the node has promised and must remember.
    pub fn control(&self) -> &ControlFile {
        &self.shared.control
    }

    /// The group this log belongs to; `None` until [`Log::found`].
    pub fn group(&self) -> Option<GroupIdentity> {
        self.shared.state.lock().group.clone()
    }

    /// Makes the directory belong to a group: its founder calls it with a new identity, everybody
    /// else with the one learned in the handshake. Durable on return; the same identity again is
    /// no change.
    ///
    /// # Errors
    /// `AlreadyFounded` with another identity, `TooLarge` for a segment size out of range;
    /// `Poisoned`, `Closed`, `Io`.
    pub fn found(&self, group: GroupIdentity) -> Result<()> {
        if !SEGMENT_BYTES_RANGE.contains(&group.segment_bytes) {
            return Err(LogError::TooLarge {
                what: "segment size",
                found: group.segment_bytes.into(),
                limit: (*SEGMENT_BYTES_RANGE.end()).into(),
            });
        }
        let _alone = self.shared.maintenance.lock();
        self.shared.check_running()?;
        if let Some(mine) = self.group() {
            if mine == group {
                return Ok(());
            }
            return Err(LogError::AlreadyFounded {
                dir: self.shared.dir.clone(),
                found: format!("group {} ({})", mine.name, mine.id),
                wanted: format!("group {} ({})", group.name, group.id),
            });
        }
        // Before there is a group, so that a missing mark always means a lost one.
        let anchor = self.shared.control.state().anchor;
        let begin = Mark {
            term: anchor.term,
            vlsn: anchor.vlsn,
            lsn: anchor.lsn,
            fingerprint: anchor.fingerprint,
        };
        self.shared.marker.lock().mark.write(begin)?;
        // A process that was killed here before may have left a name that is not durable.
        let dir = &self.shared.dir;
        self.shared.env.sync_dir(dir).map_err(|e| LogError::io("sync directory", dir, e))?;
        self.shared.control.update(|control| control.group = Some(group.clone()))?;
        self.shared.state.lock().group = Some(group);
        self.shared.keeper.request_prefill();
        Ok(())
    }

    /// Appends a batch in `term`: assigns VLSNs and positions, puts the bytes where feeders and the
    /// flusher find them, and returns before anything is written. Waits only while more than
    /// `max_unwritten_bytes` are unwritten.
    ///
    /// # Errors
    /// `NotFounded`, `Poisoned`, `Closed`; `TooLarge` if a body passes the cap, `ReadOnly` if the disk
    /// is full and not all entries are of the kinds `Term` and Group (nothing appended).
    ///
    /// # Panics
    /// If the batch is empty or `term` is lower than that of the last entry.
    pub fn append(&self, term: Term, entries: &[NewEntry<'_>]) -> Result<Appended> {
        assert!(!entries.is_empty(), "a batch has at least one entry");
        let max = self.shared.config.max_body_bytes as usize;
        let mut bytes = 0;
        for entry in entries {
            if entry.body().len() > max {
                return Err(LogError::TooLarge {
                    what: "entry body",
                    found: entry.body().len() as u64,
                    limit: max as u64,
                });
            }
            bytes += entry.entry_bytes();
        }
        let urgent = || entries.iter().all(|entry| is_urgent(entry.kind()));
        let mut state = self.shared.lock_for_append(urgent)?;
        let state = &mut *state;
        assert!(term >= state.end.term, "term {term} after term {}", state.end.term);
        let first = state.end.vlsn.next();
        for entry in entries {
            let lsn = state.place(entry.entry_bytes());
            let (header, fields) = entry.place(state.end.vlsn.next(), term, state.end.fingerprint);
            let parts = [&header, entry.body()];
            state.tail.push(lsn, &state.end, state.last_sync, parts);
            state.advance(lsn, &fields);
        }
        Ok(self.shared.appended(state, first, bytes))
    }

    /// Waits as [`Log::append`] would, for those who hold nothing meanwhile that others need.
    ///
    /// # Errors
    /// As [`Log::append`], but not `ReadOnly` or `TooLarge`.
    pub fn await_room(&self) -> Result<()> {
        if !self.shared.has_room() {
            drop(self.shared.lock_for_append(|| true)?);
        }
        Ok(())
    }

    /// Whether [`Log::append`] would not wait now. It stays so until somebody appends.
    pub fn has_room(&self) -> bool {
        // On a full disk it is answered at once.
        self.shared.has_room() || self.shared.state.lock().no_room.is_some()
    }

    /// Appends entries of another node's log as they are: same VLSNs, same positions, same bytes.
    ///
    /// # Errors
    /// As [`Log::append`]; `ChainMismatch` if the run does not continue this log.
    pub fn append_run(&self, run: &EntryRun) -> Result<Appended> {
        let urgent = || run.entries().all(|entry| is_urgent(entry.header.kind));
        let mut state = self.shared.lock_for_append(urgent)?;
        let state = &mut *state;
        if run.first != state.end.vlsn.next() {
            return Err(LogError::Gap { requested: run.first, first: state.end.vlsn.next() });
        }
        if run.previous_fingerprint != state.end.fingerprint
            && !mutant::is_on(Mutant::RunNotChained)
        {
            return Err(LogError::ChainMismatch {
                vlsn: run.first,
                expected: state.end.fingerprint,
                found: run.previous_fingerprint,
            });
        }
        for part in &run.parts {
            state.append_part(part);
        }
        debug_assert_eq!(state.end.fingerprint, run.last_fingerprint);
        Ok(self.shared.appended(state, run.first, run.byte_len()))
    }

    /// A number that changes whenever another entry may stand at a VLSN than before: with each
    /// truncation.
    pub fn rewrites(&self) -> u64 {
        self.shared.state.lock().truncations
    }

    /// All positions at one moment.
    pub fn positions(&self) -> Positions {
        let state = self.shared.state.lock();
        let held = |vlsn: Vlsn| if vlsn > state.anchor.vlsn { vlsn } else { NULL_VLSN };
        Positions {
            first: if state.is_empty() { NULL_VLSN } else { state.anchor.vlsn.next() },
            last_txn_end: held(state.last_txn_end),
            last_sync: held(state.last_sync),
            last: state.end.vlsn,
            last_lsn: state.last_lsn,
            last_term: state.end.term,
            last_fingerprint: state.end.fingerprint,
            written: state.written.vlsn,
            durable: state.durable,
            anchor: state.anchor.clone(),
        }
    }

    /// `(term, first VLSN)` of every term that has an entry here, oldest first. The first one may
    /// have begun before the log's front, when its VLSN is the first one held.
    pub fn term_table(&self) -> Vec<(Term, Vlsn)> {
        self.shared.state.lock().terms.clone()
    }

    /// Registers a function to be called after every advance of `durable`, by the thread that
    /// synced. It must not truncate the log: a truncation returns only when no call speaks of
    /// what it cut off any more.
    pub fn on_durable(&self, hook: impl Fn(Vlsn) + Send + Sync + 'static) {
        let mut hooks = self.shared.hooks.write();
        let all = hooks.durable.iter().cloned().chain([Arc::new(hook) as DurableHook]);
        hooks.durable = all.collect();
    }

    /// Why it stopped, if a write or sync has failed.
    pub fn failure(&self) -> Option<LogError> {
        self.shared.poison.get().cloned()
    }

    /// Registers a function to be called once when the log stops after a failed write or sync, by a
    /// thread of its own or, in a log without threads, by [`Log::upkeep`], with no lock of the log held.
    pub fn on_poisoned(&self, hook: impl Fn(&LogError) + Send + Sync + 'static) {
        self.shared.hooks.write().poisoned.push(Arc::new(hook));
    }

    /// Syncs what is appended, marks the shutdown as clean, stops the threads and gives the
    /// directory's lock back. Every later call that writes or waits fails with `Closed`; what this
    /// handle reads after somebody else has opened the directory means nothing.
    pub fn close(&self) -> Result<()> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let synced = self.sync_now().and_then(|_| self.shared.sync_mark());
        self.owner.stop();
        // Whoever was let in before still has the directory to itself.
        let shared = &*self.shared;
        let _alone = shared.maintenance.lock();
        let _writer = shared.writer.lock();
        let marker = shared.marker.lock();
        let marked = synced.and_then(|()| {
            // What slipped in since may be in its file without being synced. That is no orderly end,
            // and the next open would take it for a mark that is not the last one.
            shared.catch_mark_up(&marker)?;
            let is_orderly = {
                let state = shared.state.lock();
                state.marked == state.written.vlsn
            };
            shared.control.update(|control| control.clean_shutdown = is_orderly)
        });
        shared.control.close(LogError::Closed { dir: shared.dir.clone() });
        drop(shared.lock.write().take());
        marked
    }
}

impl State {
    /// Appends verified bytes, sharing large stretches and copying small ones: a small stretch
    /// shared would keep its whole network frame alive.
    fn append_part(&mut self, part: &bytes::Bytes) {
        const SHARE_FROM: usize = 64 << 10;
        let share = part.len() >= SHARE_FROM;
        if share {
            // What is in the open buffer ends here: a new segment within `part` freezes too, and
            // by then the log's end is that of entries that are not in the buffer.
            self.tail.freeze(&self.end);
        }
        // Stretch of `part` not yet in the tail when sharing: its start, position, and the chain and
        // the newest sync entry before it.
        let mut stretch: Option<(usize, Lsn, ChainState, Vlsn)> = None;
        let mut at = 0;
        for entry in entries_of(part) {
            let bytes = entry.header.entry_bytes();
            let lsn = self.place(bytes);
            if share {
                if let Some((from, first_lsn, before, last_sync)) = stretch
                    && first_lsn.segment() != lsn.segment()
                {
                    let bytes = part.slice(from..at);
                    self.tail.push_shared(first_lsn, &before, last_sync, self.end, bytes);
                    stretch = None;
                }
                stretch.get_or_insert((at, lsn, self.end, self.last_sync));
            } else {
                let parts = [&part[at..at + bytes], &[]];
                self.tail.push(lsn, &self.end, self.last_sync, parts);
            }
            self.advance(lsn, &entry.header);
            at += bytes;
        }
        if let Some((from, lsn, before, last_sync)) = stretch {
            self.tail.push_shared(lsn, &before, last_sync, self.end, part.slice(from..at));
        }
    }
}

impl Shared {
    pub(crate) fn check_running(&self) -> Result<()> {
        if let Some(cause) = self.poison.get() {
            return Err(cause.poisoned());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(LogError::Closed { dir: self.dir.clone() });
        }
        Ok(())
    }

    /// Keeps the directory this log's own as long as the caller holds it: for those who write in it
    /// without the locks that closing takes. They wait for none of these meanwhile.
    ///
    /// # Errors
    /// `Closed` if it may be somebody else's.
    pub(crate) fn directory(&self) -> Result<RwLockReadGuard<'_, Option<Box<dyn LockGuard>>>> {
        let held = self.lock.read();
        if held.is_some() { Ok(held) } else { Err(LogError::Closed { dir: self.dir.clone() }) }
    }

    /// The state, once there is room for more and the log may be appended to.
    fn lock_for_append(&self, urgent: impl Fn() -> bool) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        loop {
            self.check_running()?;
            if state.group.is_none() {
                return Err(LogError::NotFounded { dir: self.dir.clone() });
            }
            if let Some(faulty) = state.faulty.last()
                && faulty.behind.is_none()
                && faulty.last == state.end.vlsn
            {
                // Where the next entry would begin is not known.
                return Err(faulty.into());
            }
            if let Some(path) = &state.no_room {
                // A `Term` waits for no room: there may not be any before it.
                return if urgent() { Ok(state) } else { Err(LogError::read_only(path)) };
            }
            if self.has_room() {
                return Ok(state);
            }
            match self.config.background {
                Background::Threads => {
                    self.flusher.request_write();
                    self.space.wait(&mut state);
                }
                Background::Caller => {
                    // The writer is taken before the state.
                    drop(state);
                    self.turn(self.writer.lock(), false, Room::AsKnown, || {})?;
                    state = self.state.lock();
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.unwritten_bytes.load(Ordering::Relaxed) < self.config.max_unwritten_bytes
    }

    /// Tells those who wait that a batch from `first` on was appended.
    fn appended(&self, state: &mut State, first: Vlsn, bytes: usize) -> Appended {
        state.readers.handle_appended(state.end.vlsn);
        let before = self.unwritten_bytes.fetch_add(bytes, Ordering::Relaxed);
        let threshold = self.config.write_ahead_bytes;
        if before < threshold && before + bytes >= threshold {
            self.flusher.request_write();
        }
        self.flusher.note_append();
        Appended {
            first,
            last: state.end.vlsn,
            last_lsn: state.last_lsn,
            last_fingerprint: state.end.fingerprint,
        }
    }

    /// Stops the log for good after a failed write or sync; returns the error later calls get.
    ///
    /// A failed sync leaves unknown what is on disk, and the kernel may have dropped the dirty
    /// pages, so a second sync that succeeds proves nothing. Only recovery from the disk does.
    pub(crate) fn poison(&self, cause: LogError) -> LogError {
        let first = self.poison.set(cause.clone()).is_ok();
        let cause = self.poison.get().cloned().unwrap_or(cause);
        if first {
            tracing::error!(%cause, dir = %self.dir.display(), "the log stops");
            self.wake_everybody();
            self.tell_poisoned(cause.clone());
        }
        cause.poisoned()
    }

    pub(crate) fn poison_hooks(&self) -> Vec<PoisonHook> {
        self.hooks.read().poisoned.clone()
    }

    /// Tells the hooks, from another thread or later: this one holds whatever locks it was working
    /// under.
    fn tell_poisoned(&self, cause: LogError) {
        if self.config.background == Background::Caller {
            self.alarm.store(true, Ordering::Release);
            return;
        }
        let hooks = self.poison_hooks();
        if hooks.is_empty() {
            return;
        }
        let tell = Arc::new(move || hooks.iter().for_each(|hook| hook(&cause)));
        let elsewhere = Arc::clone(&tell);
        let thread = std::thread::Builder::new().name("noxu-alarm".into());
        if thread.spawn(move || elsewhere()).is_err() {
            // Better than not at all: only a hook that waits for the log stands still here.
            tell();
        }
    }

    /// Makes everybody who waits for the log look whether it still runs.
    pub(crate) fn wake_everybody(&self) {
        // Taking the lock orders the wake after a waiter's check of the stop flags.
        self.state.lock().readers.wake_all();
        self.space.notify_all();
        self.truncated.notify_all();
        self.waiters.wake_all();
    }
}

/// Stops the threads of a log when its last handle goes.
#[derive(Debug)]
pub(crate) struct Owner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl Owner {
    pub(crate) fn new(shared: Arc<Shared>, threads: Vec<std::thread::JoinHandle<()>>) -> Self {
        Self { shared, threads: Mutex::new(threads) }
    }

    fn stop(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.flusher.stop();
        self.shared.lazy_marks.stop();
        self.shared.keeper.stop();
        self.shared.scrubber.stop();
        self.shared.wake_everybody();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A hook may hold the last handle, so that a thread of ours would join itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.shared.closed.load(Ordering::Acquire) {
            if let Err(error) = self.shared.flush(true).and_then(|_| self.shared.sync_mark()) {
                tracing::warn!(%error, "the log is dropped with unsynced entries");
            }
            self.stop();
        }
    }
}
