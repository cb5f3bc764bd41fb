//! Recovery: opening a log finds its end, from the side files of sealed segments and a verifying
//! scan of the others.
//!
//! | found | decision |
//! |---|---|
//! | a truncate intent | finish the truncation first |
//! | segments before the anchor, a spare, temporary files | something was cut short: remove them |
//! | zeros up to the end of a segment before the last, whose successor continues there | filled ahead: no damage |
//! | another invalid entry before the last segment | refuse: its successor exists only because it was synced whole |
//! | an invalid entry at or below the tail mark | refuse: it was synced, so it is damage, not a torn write |
//! | an invalid entry above the tail mark | cut there, whatever follows: a torn write |
//! | a last segment that is empty or begins with zeros | remove it: the roll was cut short |
//! | another fingerprint at the tail mark | refuse: not the log this mark speaks of |
//! | an unreadable tail mark | keep the valid prefix and flag the head as uncertain |
//!
//! Nothing is cut before all of it is decided, and a refusal changes nothing on disk.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use noxu_util::{LatencyHistogram, Lsn, NULL_VLSN, Term, Vlsn};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::control_file::{Anchor, ControlFile, ControlState};
use crate::entry::{ChainState, EntryFault};
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::flusher::Flusher;
use crate::keeper::Keeper;
use crate::log::{Hooks, Log, LogConfig, Owner, Segment, Shared, State};
use crate::marker::{LazyMarks, MarkPolicy, Marker};
use crate::mutant::{self, Mutant};
use crate::pins::Pins;
use crate::prefill::Prefill;
use crate::scrub::Scrubber;
use crate::segment::cache::{FileCache, SideCache};
use crate::segment::header::{HeaderFault, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, lost_dir, parse_segment_name, parse_side_name, segment_name};
use crate::segment::scan::{SummaryBuilder, scan_entries};
use crate::segment::side_file::SideFile;
use crate::tail::Tail;
use crate::tail_mark::{Mark, MarkRead, TailMark};
use crate::truncate;
use crate::waiters::Waiters;

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenReport {
    /// Whether the last shutdown was an orderly one.
    pub clean_shutdown: bool,
    /// A truncation that a crash had cut short was finished, down to this entry.
    pub finished_truncation: Option<Vlsn>,
    /// Bytes of a torn write that were cut off behind the last valid entry.
    pub torn_bytes: u64,
    /// Segments that were scanned; the others were known from their side files.
    pub scanned_segments: usize,
    /// The tail mark was unreadable: whether the end found was ever acknowledged is not known.
    pub head_uncertain: bool,
}

impl Log {
    /// Opens the log in `dir`, creating the directory if it is missing, recovers it and starts its
    /// threads. Nobody else may have the directory open.
    ///
    /// # Errors
    /// `Locked`; `ControlUnreadable`; `Corrupt` and `ChainMismatch` if the log is damaged, naming
    /// the place; `Io`.
    pub fn open(env: Arc<dyn Env>, dir: &Path, config: LogConfig) -> Result<(Self, OpenReport)> {
        Self::open_with(env, dir, config, false)
    }

    /// As [`Log::open`]; `installing` lets the restore that is replacing the log in.
    pub(crate) fn open_with(
        env: Arc<dyn Env>,
        dir: &Path,
        mut config: LogConfig,
        installing: bool,
    ) -> Result<(Self, OpenReport)> {
        config.max_body_bytes = config.max_body_bytes.min(crate::log::MAX_BODY_BYTES);
        env.create_dir_all(dir).map_err(|e| LogError::io("create directory", dir, e))?;
        let lock_path = dir.join("LOCK");
        let lock = env.lock(&lock_path).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => LogError::Locked { path: lock_path.clone() },
            _ => LogError::io("lock", &lock_path, e),
        })?;
        for sub in [log_dir(dir), lost_dir(dir)] {
            env.create_dir_all(&sub).map_err(|e| LogError::io("create directory", &sub, e))?;
        }
        let control = ControlFile::open_or_create(&*env, dir)?;
        if control.state().restore_marker && !installing {
            return Err(LogError::RestorePending { dir: dir.to_owned() });
        }
        let mark = TailMark::open(Arc::clone(&env), dir)?;
        let mut report =
            OpenReport { clean_shutdown: control.state().clean_shutdown, ..OpenReport::default() };
        if let Some(intent) = control.state().truncate_intent {
            truncate::finish(&*env, dir, &control, &mark, &intent)?;
            report.finished_truncation = Some(intent.vlsn);
        }
        let control_state = control.state();
        let mut found = find_end(&*env, dir, &control_state, &mark, &mut report)?;
        found.apply(&*env, dir)?;
        found.seal_again(&*env, dir)?;
        if report.head_uncertain && !control_state.head_uncertain {
            control.update(|control| control.head_uncertain = true)?;
        }
        if control_state.clean_shutdown {
            control.update(|control| control.clean_shutdown = false)?;
        }
        if found.end.vlsn > control_state.anchor.vlsn {
            // Everything kept is synced by `apply`.
            mark.write(Mark {
                term: found.end.term,
                vlsn: found.end.vlsn,
                lsn: found.last_lsn,
                fingerprint: found.end.fingerprint,
            })?;
            mark.sync()?;
        }
        let anchor = control_state.anchor.vlsn;
        let mut state = State {
            group: control_state.group,
            anchor: control_state.anchor,
            segments: found.segments,
            end: found.end,
            last_lsn: found.last_lsn,
            last_sync: found.last_sync,
            last_txn_end: found.last_txn_end,
            written: found.end.vlsn,
            synced: Mark::default(),
            marked: found.end.vlsn,
            durable: found.end.vlsn,
            terms: found.terms,
            tail: Tail::new(config.tail_bytes),
            settled: control_state.commit_floor,
            unsealable: None,
            checkpoint: NULL_VLSN,
            truncations: 0,
            truncating: false,
            readers_waiting: 0,
            wakes: 0,
        };
        state.synced = state.end_mark();
        let shared = Arc::new(Shared {
            env,
            dir: dir.to_owned(),
            config,
            control,
            maintenance: Mutex::new(()),
            writer: Mutex::default(),
            marker: Mutex::new(Marker::new(mark)),
            state: Mutex::new(state),
            appended: Condvar::new(),
            space: Condvar::new(),
            waiters: Waiters::default(),
            flusher: Flusher::default(),
            lazy_marks: LazyMarks::default(),
            data_syncs: LatencyHistogram::default(),
            mark_syncs: LatencyHistogram::default(),
            keeper: Keeper::default(),
            scrubber: Scrubber::default(),
            prefill: Prefill::default(),
            hooks: RwLock::new(Hooks::default()),
            poison: OnceLock::new(),
            closed: AtomicBool::new(false),
            unwritten_bytes: AtomicUsize::new(0),
            files: FileCache::default(),
            sides: SideCache::default(),
            pins: Pins::new(anchor),
            doomed: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        });
        shared.state.lock().check_invariants();
        let mut threads = vec![
            shared.spawn("noxu-flusher", Flusher::run)?,
            match shared.config.tail_mark {
                MarkPolicy::Strict => shared.spawn("noxu-flusher-2", Flusher::run_second)?,
                MarkPolicy::Lazy => shared.spawn("noxu-marker", LazyMarks::run)?,
            },
            shared.spawn("noxu-keeper", Keeper::run)?,
        ];
        if shared.config.scrub.is_some() {
            threads.push(shared.spawn("noxu-scrubber", Scrubber::run)?);
        }
        shared.keeper.request_prefill();
        Ok((Self::new(Arc::clone(&shared), Owner::new(shared, threads)), report))
    }
}

impl Shared {
    fn spawn(self: &Arc<Self>, name: &str, body: fn(&Self)) -> Result<std::thread::JoinHandle<()>> {
        let watched = Watched { shared: Arc::clone(self), name: name.to_owned() };
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(&watched.shared))
            .map_err(|e| LogError::io("start a thread for", &self.dir, e))
    }
}

/// Stops the log loudly if the thread that owns this panics: a log whose flusher is gone must not
/// look as if it were only slow.
struct Watched {
    shared: Arc<Shared>,
    name: String,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.poison(LogError::ThreadPanicked { thread: self.name.clone() });
        }
    }
}

/// The end of a log, and what must be done on disk to make it the end.
struct FoundLog {
    segments: VecDeque<Segment>,
    end: ChainState,
    last_lsn: Lsn,
    last_sync: Vlsn,
    last_txn_end: Vlsn,
    terms: Vec<(Term, Vlsn)>,
    /// Files left over by something that a crash cut short.
    remove: Vec<std::path::PathBuf>,
    /// The last segment's file and the offset behind its last valid entry, when it is unsealed.
    cut: Option<(u32, u32)>,
}

impl FoundLog {
    /// Removes left-overs, cuts the torn tail, and syncs what is kept, so that all of it is durable.
    fn apply(&self, env: &dyn Env, dir: &Path) -> Result<()> {
        let log_dir = log_dir(dir);
        for path in &self.remove {
            env.remove(path).map_err(|e| LogError::io("remove", path, e))?;
        }
        if let Some((number, end)) = self.cut {
            let path = log_dir.join(segment_name(number));
            let file = open(env, &path, OpenMode::ReadWrite)?;
            if has_data_after(&*file, end).map_err(|e| LogError::io("read", &path, e))? {
                file.set_len(end.into()).map_err(|e| LogError::io("cut", &path, e))?;
            }
            if !mutant::is_on(Mutant::FoundNotSynced) {
                file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
            }
        }
        for segment in self.segments.iter().rev().skip(1).take_while(|s| !s.is_sealed()) {
            let path = log_dir.join(segment_name(segment.number()));
            open(env, &path, OpenMode::ReadWrite)?
                .sync_data()
                .map_err(|e| LogError::io("sync", &path, e))?;
        }
        env.sync_dir(&log_dir).map_err(|e| LogError::io("sync directory", &log_dir, e))
    }

    /// Makes the side file again of each segment that a sealed one follows: it was sealed too, and
    /// its side file was lost or damaged.
    fn seal_again(&mut self, env: &dyn Env, dir: &Path) -> Result<()> {
        let sealed = self.segments.iter().rposition(Segment::is_sealed).unwrap_or(0);
        for segment in self.segments.iter_mut().take(sealed) {
            if let Segment::Open(builder) = segment {
                let side = SideFile::make(env, dir, builder.summary())?;
                *segment = Segment::Sealed(side.sealed());
            }
        }
        Ok(())
    }
}

fn find_end(
    env: &dyn Env,
    dir: &Path,
    control: &ControlState,
    mark: &TailMark,
    report: &mut OpenReport,
) -> Result<FoundLog> {
    let anchor = &control.anchor;
    let log_dir = log_dir(dir);
    let mut found = FoundLog {
        segments: VecDeque::new(),
        end: ChainState { vlsn: anchor.vlsn, term: anchor.term, fingerprint: anchor.fingerprint },
        last_lsn: anchor.lsn,
        last_sync: anchor.vlsn,
        last_txn_end: anchor.vlsn,
        terms: Vec::new(),
        remove: Vec::new(),
        cut: None,
    };
    let synced = match mark.read() {
        MarkRead::Valid(mark) => Some(mark),
        MarkRead::Absent => None,
        MarkRead::Unreadable { reason } => {
            tracing::warn!(reason, "the tail mark is unreadable, so the head is uncertain");
            report.head_uncertain = true;
            None
        }
    };
    let names = env.list(&log_dir).map_err(|e| LogError::io("list", &log_dir, e))?;
    let first_number = anchor.next_segment();
    let mut numbers = Vec::new();
    for name in &names {
        if let Some(number) = parse_segment_name(name) {
            if number >= first_number {
                numbers.push(number);
                continue;
            }
        } else if parse_side_name(name).is_some_and(|number| number >= first_number) {
            continue;
        }
        found.remove.push(log_dir.join(name));
    }
    let last_number = numbers.last().copied();
    for (at, number) in numbers.into_iter().enumerate() {
        let expected = first_number + at as u32;
        if number != expected {
            return Err(missing(expected, format!("{} as the next file", segment_name(number))));
        }
        let is_last = Some(number) == last_number;
        scan_segment(env, dir, control, synced.as_ref(), number, is_last, &mut found, report)?;
    }
    if let Some(mark) = synced
        && mark.vlsn > found.end.vlsn
    {
        let (segment, offset) = found
            .segments
            .back()
            .map_or((first_number, 0), |segment| (segment.number(), u64::from(segment.end())));
        return Err(LogError::Corrupt {
            segment,
            offset,
            expected: format!("entry {}, synced through {}", found.end.vlsn.next(), mark.vlsn),
            found: "the end of the log".into(),
        });
    }
    Ok(found)
}

#[allow(clippy::too_many_arguments)]
fn scan_segment(
    env: &dyn Env,
    dir: &Path,
    control: &ControlState,
    synced: Option<&Mark>,
    number: u32,
    is_last: bool,
    found: &mut FoundLog,
    report: &mut OpenReport,
) -> Result<()> {
    let path = log_dir(dir).join(segment_name(number));
    let file = open(env, &path, OpenMode::Read)?;
    let io = |e| LogError::io("read", &path, e);
    let len = file.len().map_err(io)?;
    let mut raw = vec![0; SEGMENT_HEADER_BYTES as usize];
    let read = file.read_at(&mut raw, 0).map_err(io)?;
    raw.truncate(read);
    let header = match SegmentHeader::decode(&raw) {
        Ok(header) => header,
        Err(fault) => {
            let unwritten = raw.iter().all(|byte| *byte == 0);
            let beyond_mark = synced.is_none_or(|mark| mark.vlsn <= found.end.vlsn);
            if is_last && unwritten && beyond_mark {
                // The roll was cut short before the header was synced, so nothing in the file was.
                found.remove.push(path);
                return Ok(());
            }
            return Err(bad_header(number, &fault));
        }
    };
    check_header(control, number, &header, &found.end)?;
    // A side file is only believed when another segment follows: a sealed one has a successor. And
    // only as far as that one agrees: it continues the segment itself, not what is said of it.
    if !is_last
        && let Some(side) = SideFile::read(env, dir, number)?
        && side.summary.header == header
        && len == u64::from(side.summary.end)
        && successor_of(env, dir, number)?.is_none_or(|n| n.chain_before() == side.summary.last)
    {
        let sealed = side.sealed();
        let summary = side.summary;
        found.end = summary.last;
        found.last_lsn = Lsn::new(number, summary.last_offset);
        found.last_sync = found.last_sync.max(summary.last_sync);
        found.last_txn_end = found.last_txn_end.max(summary.last_txn_end);
        found.note_terms(control, &summary.terms, header.first);
        found.segments.push_back(Segment::Sealed(sealed));
        return check_mark(synced, found);
    }
    report.scanned_segments += 1;
    let mut builder = SummaryBuilder::new(header, found.last_sync, found.last_txn_end);
    let mut mark_check = Ok(());
    let end =
        scan_entries(&*file, SEGMENT_HEADER_BYTES, len, header.chain_before(), |offset, e| {
            builder.push(offset, &e.header);
            if let Some(mark) = synced
                && mark.vlsn == e.header.vlsn
                && mark.fingerprint != e.header.fingerprint
            {
                mark_check = Err(LogError::ChainMismatch {
                    vlsn: mark.vlsn,
                    expected: mark.fingerprint,
                    found: e.header.fingerprint,
                });
            }
        })
        .map_err(io)?;
    mark_check?;
    let torn = torn_bytes(&*file, end.offset, len).map_err(io)?;
    if is_last {
        if let Some(fault) = &end.fault
            && synced.is_some_and(|mark| end.chain.vlsn < mark.vlsn)
        {
            return Err(damaged(number, &end.chain, end.offset, fault));
        }
        report.torn_bytes = torn;
        found.cut = Some((number, end.offset));
    } else {
        // Zeros behind the last entry are the rest of a file filled ahead. That no entry is missing
        // there the successor tells: it was begun at the chain's end.
        let whole = end.chain.vlsn >= header.first
            && torn == 0
            && successor_of(env, dir, number)?.is_none_or(|next| next.chain_before() == end.chain);
        if !whole {
            let fault = end.fault.as_ref().unwrap_or(&EntryFault::Header);
            return Err(damaged(number, &end.chain, end.offset, fault));
        }
    }
    if end.chain.vlsn >= header.first {
        found.end = end.chain;
        found.last_lsn = Lsn::new(number, builder.last_offset());
        found.last_sync = builder.last_sync();
        found.last_txn_end = builder.last_txn_end();
        let terms = builder.summary().terms;
        found.note_terms(control, &terms, header.first);
        found.segments.push_back(Segment::Open(builder));
    } else {
        // A segment whose first entry was torn: as if it had never begun.
        found.cut = None;
        found.remove.push(path);
    }
    Ok(())
}

/// The header of the segment after `number`; `None` if there is none or it is not a whole one.
fn successor_of(env: &dyn Env, dir: &Path, number: u32) -> Result<Option<SegmentHeader>> {
    let path = log_dir(dir).join(segment_name(number + 1));
    let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
    let file = match env.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("open", &path, error)),
    };
    let read = file.read_at(&mut raw, 0).map_err(|e| LogError::io("read", &path, e))?;
    Ok(SegmentHeader::decode(&raw[..read]).ok())
}

impl FoundLog {
    fn note_terms(&mut self, control: &ControlState, terms: &[(Term, Vlsn)], first: Vlsn) {
        if self.terms.is_empty() && terms.first().is_none_or(|(_, begins)| *begins > first) {
            // The front of the log lies inside a term that began before it.
            self.terms.push((control.anchor.term, first));
        }
        self.terms.extend_from_slice(terms);
    }
}

fn check_header(
    control: &ControlState,
    number: u32,
    header: &SegmentHeader,
    end: &ChainState,
) -> Result<()> {
    let Some(group) = &control.group else {
        return Err(missing(number, "a segment in a directory without a group".into()));
    };
    let wrong = |expected: String, found: String| {
        Err(LogError::Corrupt { segment: number, offset: 0, expected, found })
    };
    if header.group != group.id {
        return wrong(format!("group {}", group.id), format!("group {}", header.group));
    }
    if header.number != number {
        return wrong(format!("segment {number}"), format!("segment {}", header.number));
    }
    if header.segment_bytes != group.segment_bytes {
        let size = |bytes| format!("segments of {bytes} bytes");
        return wrong(size(group.segment_bytes), size(header.segment_bytes));
    }
    if header.chain_before() != *end {
        let place = |c: &ChainState| {
            format!("after entry {} of term {}, {}", c.vlsn, c.term, c.fingerprint)
        };
        return wrong(place(end), place(&header.chain_before()));
    }
    Ok(())
}

fn check_mark(synced: Option<&Mark>, found: &FoundLog) -> Result<()> {
    match synced {
        Some(mark) if mark.vlsn == found.end.vlsn && mark.fingerprint != found.end.fingerprint => {
            Err(LogError::ChainMismatch {
                vlsn: mark.vlsn,
                expected: mark.fingerprint,
                found: found.end.fingerprint,
            })
        }
        _ => Ok(()),
    }
}

fn bad_header(number: u32, fault: &HeaderFault) -> LogError {
    LogError::Corrupt {
        segment: number,
        offset: 0,
        expected: "a segment header".into(),
        found: fault.to_string(),
    }
}

fn damaged(number: u32, chain: &ChainState, offset: u32, fault: &EntryFault) -> LogError {
    LogError::Corrupt {
        segment: number,
        offset: offset.into(),
        expected: format!("entry {}, which was synced", chain.vlsn.next()),
        found: fault.to_string(),
    }
}

fn missing(number: u32, found: String) -> LogError {
    LogError::Corrupt { segment: number, offset: 0, expected: segment_name(number), found }
}

fn open(env: &dyn Env, path: &Path, mode: OpenMode) -> Result<Arc<dyn EnvFile>> {
    env.open(path, mode).map_err(|e| LogError::io("open", path, e))
}

/// Length of what stands behind `end`, up to its last byte that is not zero.
fn torn_bytes(file: &dyn EnvFile, end: u32, len: u64) -> std::io::Result<u64> {
    let mut torn = 0;
    let mut at = u64::from(end);
    let mut buffer = vec![0; 1 << 20];
    while at < len {
        let part = (len - at).min(buffer.len() as u64) as usize;
        let read = file.read_at(&mut buffer[..part], at)?;
        if read == 0 {
            break;
        }
        if let Some(last) = buffer[..read].iter().rposition(|byte| *byte != 0) {
            torn = at + last as u64 + 1 - u64::from(end);
        }
        at += read as u64;
    }
    Ok(torn)
}

fn has_data_after(file: &dyn EnvFile, end: u32) -> std::io::Result<bool> {
    Ok(torn_bytes(file, end, file.len()?)? > 0)
}

/// The anchor's segment, for those who open a log without entries.
impl Anchor {
    /// Number of the segment in which the first kept entry stands or will stand.
    pub const fn next_segment(&self) -> u32 {
        let number = self.next_lsn.segment();
        if number == 0 { 1 } else { number }
    }
}
