//! Recovery: opening a log finds its end, from the side files of sealed segments and a verifying
//! scan of the others, several at a time.
//!
//! | found | decision |
//! |---|---|
//! | a truncate intent | finish the truncation first |
//! | segments before the anchor, a spare, temporary files | something was cut short: remove them |
//! | an invalid entry that was synced, as the tail mark or a later segment tells | [`Faulty`]: its content is missing, not torn; the rest is kept |
//! | an invalid entry beyond that | cut there, whatever follows: a torn write, never acknowledged |
//! | an entry of another history that was synced | refuse, naming both |
//! | another fingerprint at the tail mark | refuse, naming both |
//! | an unreadable or missing tail mark | the head is uncertain: keep the valid prefix; an invalid entry is faulty if the chain goes on behind it, and cut if it does not |
//! | after an orderly shutdown, a mark elsewhere than at the end, or something behind the end | the head is uncertain: the mark or what it spoke of is not what was written |
//! | a segment header that cannot be read, below what was synced | made again: every field follows from the entries before; refuse if the first entry behind it does not |
//! | a whole segment header that its own first entry does not continue, while that one continues the segment before | it was written for another place: as one that cannot be read |
//! | a last segment that is blank, or whose header cannot be read, beyond that | remove it: the roll was cut short |
//! | a last segment whose header cannot be read, the tail mark neither | made again if entries of the chain stand behind it, removed if none does |
//! | a segment missing | refuse, naming it |
//! | valid entries beyond the mark | keep |
//!
//! The entries' part of the table is in decision.rs, finding the chain again behind a damaged entry
//! in resync.rs.
//!
//! # Crash argument
//! A truncation whose intent is found was decided on before. But for it, and for copies staged for one
//! that never was, nothing is changed before all of it is decided, and a refusal changes nothing on
//! disk. Then: 1. the
//! uncertainty of the head is durable before the log or the mark is touched; 2. left-overs go, torn
//! ends are cut, and all that is kept is synced; 3. the mark is set to the end. Each can be repeated:
//! a cut end has no invalid entry any more, and what was kept beyond the mark was valid.

mod decision;
pub(crate) mod resync;
pub(crate) mod survey;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use noxu_util::{Lsn, NULL_VLSN, Term, Vlsn};
use parking_lot::{Condvar, Mutex, RwLock};

pub(crate) use self::survey::stray_bytes;
use self::survey::{Head, Known, Next, Surveyed, last_lsn, survey, survey_all};
use crate::control_file::{Anchor, ControlFile, ControlState};
use crate::entry::{ChainState, EntryHeader};
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::keeping::keeper::Keeper;
use crate::keeping::pins::Pins;
use crate::keeping::scrub::Scrubber;
use crate::log::{Hooks, Log, LogConfig, Owner, Segment, Shared, State};
use crate::mutant::{self, Mutant};
use crate::reading::reader::Readers;
use crate::rewriting::repair::Faulty;
use crate::rewriting::truncate;
use crate::segment::cache::{FileCache, SideCache};
use crate::segment::header::{HeaderFault, SegmentHeader};
use crate::segment::name::{log_dir, lost_dir, parse_segment_name, parse_side_name, segment_name};
use crate::segment::scan::SummaryBuilder;
use crate::segment::side_file::SideFile;
use crate::upkeep::Background;
use crate::writing::flusher::Flusher;
use crate::writing::marker::{LazyMarks, MarkPolicy, Marker};
use crate::writing::prefill::Prefill;
use crate::writing::sync_clock::SyncClock;
use crate::writing::tail::Tail;
use crate::writing::tail_mark::{Mark, MarkRead, TailMark};
use crate::writing::waiters::Waiters;

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
    /// The tail mark was unreadable, or cannot be the one of the last orderly shutdown: whether more
    /// was acknowledged than was found is not known.
    pub head_uncertain: bool,
    /// Entries that belong to the log and whose content is damaged, oldest first. See
    /// [`Log::repair`].
    pub faulty: Vec<Faulty>,
    /// Segments whose header was damaged and made again.
    pub repaired_headers: Vec<u32>,
}

impl Log {
    /// Opens the log in `dir`, creating the directory if it is missing, recovers it and starts its
    /// threads, if it is to have any. Nobody else may have the directory open.
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
        if config.background == Background::Caller {
            config.recovery_threads = 1;
        }
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
            report.finished_truncation = Some(intent.kept.vlsn);
        }
        truncate::remove_staged(&*env, dir)?;
        let control_state = control.state();
        let threads = match config.recovery_threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let mut found = find_end(&*env, dir, &control_state, &mark, threads, &mut report)?;
        if report.head_uncertain
            && !control_state.head_uncertain
            && !mutant::is_on(Mutant::UncertaintyForgotten)
        {
            control.update(|control| control.head_uncertain = true)?;
        }
        found.apply(&*env, dir, &mark.read())?;
        let seal_later = found.seal_again(&*env, dir)?;
        if control_state.clean_shutdown {
            control.update(|control| control.clean_shutdown = false)?;
        }
        if found.end.vlsn > control_state.anchor.vlsn {
            // Everything kept is synced by `apply`; what is faulty counts as present.
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
            written: Mark::default(),
            urgent: NULL_VLSN,
            no_room: None,
            synced: Mark::default(),
            marked: found.end.vlsn,
            durable: found.end.vlsn,
            terms: found.terms,
            tail: Tail::new(config.tail_bytes),
            settled: control_state.commit_floor,
            faulty: found.faulty,
            unsealable: None,
            checkpoint: NULL_VLSN,
            truncations: 0,
            cuts: truncate::Cuts::default(),
            truncating: false,
            readers: Readers::default(),
        };
        state.written = state.end_mark();
        state.synced = state.written;
        let shared = Arc::new(Shared {
            env,
            dir: dir.to_owned(),
            config,
            control,
            maintenance: Mutex::new(()),
            writer: Mutex::default(),
            marker: Mutex::new(Marker::new(mark)),
            state: Mutex::new(state),
            space: Condvar::new(),
            truncated: Condvar::new(),
            waiters: Waiters::default(),
            flusher: Flusher::default(),
            lazy_marks: LazyMarks::default(),
            data_syncs: SyncClock::default(),
            mark_syncs: SyncClock::default(),
            keeper: Keeper::default(),
            scrubber: Scrubber::default(),
            prefill: Prefill::default(),
            hooks: RwLock::new(Hooks::default()),
            publishing: RwLock::new(()),
            poison: OnceLock::new(),
            alarm: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            unwritten_bytes: AtomicUsize::new(0),
            read_only_told: Mutex::default(),
            reserve: Mutex::default(),
            files: FileCache::default(),
            sides: SideCache::default(),
            pins: Pins::new(anchor),
            doomed: Mutex::default(),
            lock: RwLock::new(Some(lock)),
        });
        shared.state.lock().check_invariants();
        let threads = match shared.config.background {
            Background::Threads => shared.start_threads()?,
            Background::Caller => Vec::new(),
        };
        shared.keeper.request(|request| {
            request.prefill = true;
            request.seal = seal_later;
        });
        Ok((Self::new(Arc::clone(&shared), Owner::new(shared, threads)), report))
    }
}

impl Shared {
    fn start_threads(self: &Arc<Self>) -> Result<Vec<std::thread::JoinHandle<()>>> {
        let mut threads = vec![
            self.spawn("noxu-flusher", Flusher::run)?,
            match self.config.tail_mark {
                MarkPolicy::Strict => self.spawn("noxu-flusher-2", Flusher::run_second)?,
                MarkPolicy::Lazy => self.spawn("noxu-marker", LazyMarks::run)?,
            },
            self.spawn("noxu-keeper", Keeper::run)?,
        ];
        if self.config.scrub.is_some() {
            threads.push(self.spawn("noxu-scrubber", Scrubber::run)?);
        }
        Ok(threads)
    }

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
    faulty: Vec<Faulty>,
    end: ChainState,
    last_lsn: Lsn,
    last_sync: Vlsn,
    last_txn_end: Vlsn,
    terms: Vec<(Term, Vlsn)>,
    /// Files left over by something that a crash cut short.
    remove: Vec<PathBuf>,
    /// Headers to be written again.
    headers: Vec<SegmentHeader>,
    /// Unsealed segments and the offsets behind their last entries, where something else stands.
    cuts: Vec<(u32, u32)>,
}

impl FoundLog {
    const fn empty(anchor: &Anchor) -> Self {
        Self {
            segments: VecDeque::new(),
            faulty: Vec::new(),
            end: anchor.chain(),
            last_lsn: anchor.lsn,
            last_sync: anchor.vlsn,
            last_txn_end: anchor.vlsn,
            terms: Vec::new(),
            remove: Vec::new(),
            headers: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Removes left-overs, makes headers again, cuts torn ends, and writes and syncs what is kept, so
    /// that all of it is durable. What `mark` does not speak of is written again: after a sync that
    /// failed the operating system shows what it could not save, and a sync of that saves nothing.
    fn apply(&self, env: &dyn Env, dir: &Path, mark: &MarkRead) -> Result<()> {
        let log_dir = log_dir(dir);
        for path in &self.remove {
            env.remove(path).map_err(|e| LogError::io("remove", path, e))?;
        }
        for header in &self.headers {
            let path = log_dir.join(segment_name(header.number));
            let file = open(env, &path, OpenMode::ReadWrite)?;
            file.write_at(&[IoSlice::new(&header.encode())], 0)
                .and_then(|()| file.sync_data())
                .map_err(|e| LogError::io("write", &path, e))?;
        }
        for segment in self.segments.iter().rev().take_while(|segment| !segment.is_sealed()) {
            let number = segment.number();
            let path = log_dir.join(segment_name(number));
            let file = open(env, &path, OpenMode::ReadWrite)?;
            if let Some((_, end)) = self.cuts.iter().find(|(cut, _)| *cut == number) {
                file.set_len((*end).into()).map_err(|e| LogError::io("cut", &path, e))?;
            }
            if let Some(from) = self.unproven_from(segment, mark) {
                write_again(&*file, from..segment.end())
                    .map_err(|e| LogError::io("write again", &path, e))?;
            }
            if !mutant::is_on(Mutant::FoundNotSynced) {
                file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
            }
        }
        env.sync_dir(&log_dir).map_err(|e| LogError::io("sync directory", &log_dir, e))
    }

    /// Where in `segment` what was never known to be synced may begin.
    fn unproven_from(&self, segment: &Segment, mark: &MarkRead) -> Option<u32> {
        let MarkRead::Valid(mark) = mark else { return Some(0) };
        if mark.vlsn >= self.end.vlsn {
            return None;
        }
        match segment.number().cmp(&mark.lsn.segment()) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(mark.lsn.offset()),
            std::cmp::Ordering::Greater => Some(0),
        }
    }

    /// Makes the side file again of each segment that a sealed one follows: it was sealed too, and
    /// its side file was lost or damaged. One that holds faulty entries is sealed once it is
    /// repaired, one whose side file finds no room on the disk once there is some, and so are those
    /// behind it: until then they count as unsealed. Whether room was missing.
    fn seal_again(&mut self, env: &dyn Env, dir: &Path) -> Result<bool> {
        let first_faulty = self.faulty.first().map_or(u32::MAX, |faulty| faulty.segment);
        let Some(sealed) = self.segments.iter().rposition(Segment::is_sealed) else {
            return Ok(false);
        };
        let mut without_room = None;
        // The one at `sealed` is sealed, those before it were.
        for segment in self.segments.iter_mut().take(sealed + 1) {
            let number = segment.number();
            let first_unsealed = without_room.unwrap_or(first_faulty).min(first_faulty);
            match segment {
                Segment::Open(builder) if number < first_unsealed => {
                    match SideFile::make(env, dir, builder.summary()) {
                        Err(error) if error.is_storage_full() => {
                            tracing::warn!(%error, "a segment counts as unsealed for now");
                            without_room = Some(number);
                        }
                        made => *segment = Segment::Sealed(made?.sealed()),
                    }
                }
                Segment::Sealed(_) if number > first_unsealed => {
                    *segment = reopened(env, dir, number)?;
                }
                _ => {}
            }
        }
        Ok(without_room.is_some())
    }

    /// Takes the next segment, whose header continues the chain.
    fn push(&mut self, control: &ControlState, mut surveyed: Surveyed) {
        let header = *surveyed.builder.header();
        self.last_lsn = last_lsn(&surveyed);
        surveyed.builder.inherit(self.last_sync, self.last_txn_end);
        let builder = surveyed.builder;
        self.end = *builder.last();
        self.last_sync = builder.last_sync();
        self.last_txn_end = builder.last_txn_end();
        self.note_terms(control, builder.terms(), header.first);
        if surveyed.stray_bytes > 0 {
            self.cuts.push((header.number, builder.end()));
        }
        self.faulty.extend(surveyed.faulty);
        self.segments.push_back(Segment::Open(builder));
    }

    /// Takes the next segment, known from its side file.
    fn push_sealed(&mut self, control: &ControlState, side: &SideFile) {
        let summary = &side.summary;
        self.end = summary.last;
        self.last_lsn = Lsn::new(summary.header.number, summary.last_offset);
        self.last_sync = self.last_sync.max(summary.last_sync);
        self.last_txn_end = self.last_txn_end.max(summary.last_txn_end);
        self.note_terms(control, &summary.terms, summary.header.first);
        self.segments.push_back(Segment::Sealed(side.sealed()));
    }

    fn note_terms(&mut self, control: &ControlState, terms: &[(Term, Vlsn)], first: Vlsn) {
        if self.terms.is_empty() && terms.first().is_none_or(|(_, begins)| *begins > first) {
            // The front of the log lies inside a term that began before it.
            self.terms.push((control.anchor.term, first));
        }
        self.terms.extend_from_slice(terms);
    }
}

/// Writes what a file holds in `range` over itself. A crash meanwhile changes nothing.
fn write_again(file: &dyn EnvFile, range: std::ops::Range<u32>) -> std::io::Result<()> {
    let mut bytes = vec![0; REWRITE_BYTES.min(range.len())];
    let mut at = u64::from(range.start);
    while at < u64::from(range.end) {
        let wanted = bytes.len().min((u64::from(range.end) - at) as usize);
        let read = file.read_at(&mut bytes[..wanted], at)?;
        if read == 0 {
            return Ok(());
        }
        file.write_at(&[IoSlice::new(&bytes[..read])], at)?;
        at += read as u64;
    }
    Ok(())
}

/// Bytes that are written again at a time.
const REWRITE_BYTES: usize = 1 << 20;

/// A sealed segment as one that is not, from its side file.
fn reopened(env: &dyn Env, dir: &Path, number: u32) -> Result<Segment> {
    let side = SideFile::read(env, dir, number)?
        .ok_or_else(|| missing(number, "a side file that was there".into()))?;
    Ok(Segment::Open(SummaryBuilder::from_summary(side.summary)))
}

fn find_end(
    env: &dyn Env,
    dir: &Path,
    control: &ControlState,
    mark: &TailMark,
    threads: usize,
    report: &mut OpenReport,
) -> Result<FoundLog> {
    let mut found = FoundLog::empty(&control.anchor);
    let mark = match mark.read() {
        MarkRead::Valid(mark) => Some(mark),
        MarkRead::Absent if control.group.is_none() => None,
        unreadable => {
            tracing::warn!(?unreadable, "no tail mark can be read, so the head is uncertain");
            report.head_uncertain = true;
            None
        }
    };
    let mut heads = read_heads(env, dir, control, &mut found)?;
    let sides = read_sides(env, dir, &heads)?;
    refuse_misplaced(control, &mut heads, &sides)?;
    let mut known = Known {
        mark,
        mark_readable: !report.head_uncertain,
        synced: mark.map_or(control.anchor.vlsn, |mark| mark.vlsn),
    };
    for header in heads.iter().filter_map(|head| head.header.as_ref().ok()) {
        check_header(control, header)?;
        known.synced = known.synced.max(header.first.prev());
    }

    // A side file is only believed when another segment follows: a sealed one has a successor. And
    // only as far as that one agrees: it continues the segment itself, not what is said of it.
    let sides: Vec<_> = sides
        .into_iter()
        .zip(heads.iter().skip(1))
        .map(|(side, next)| {
            side.filter(|side| {
                let next = next.header.as_ref();
                next.map_or(true, |next| next.chain_before() == side.summary.last)
            })
        })
        .collect();
    // A segment is sealed once the first entry of its successor is durable: a successor that cannot be
    // read is damage then, and not a roll that was cut short.
    for side in sides.iter().flatten() {
        known.synced = known.synced.max(side.summary.last.vlsn.next());
    }
    let is_known = |at: usize| sides.get(at).is_some_and(Option::is_some);
    let (places, jobs): (Vec<usize>, Vec<_>) = heads
        .iter()
        .enumerate()
        .filter(|(at, _)| !is_known(*at))
        .filter_map(|(at, head)| {
            Some((at, (head, *head.header.as_ref().ok()?, Next::of(heads.get(at + 1)))))
        })
        .unzip();
    report.scanned_segments = jobs.len();
    let surveyed = survey_all(&jobs, &known, threads);
    let mut surveyed = places.into_iter().zip(surveyed).peekable();

    for (at, head) in heads.iter().enumerate() {
        let is_last = at + 1 == heads.len();
        let header = match &head.header {
            Ok(header) => *header,
            Err(_)
                if is_last
                    && known.synced <= found.end.vlsn
                    && (known.mark_readable || head.blank) =>
            {
                // The roll was cut short before the header was synced, so nothing in the file was.
                report.torn_bytes = if head.blank { 0 } else { head.len };
                found.remove.push(head.path.clone());
                continue;
            }
            // What the entries of the segment before end with is not known either.
            Err(fault) if found.faulty.last().is_some_and(|f| f.behind.is_none()) => {
                return Err(bad_header(head.number, fault));
            }
            Err(fault) => {
                let header = header_after(control, &found.end, head.number)
                    .ok_or_else(|| bad_header(head.number, fault))?;
                // If it does not, the segment before has lost its end, and where that was is not known.
                if let Some((first, bytes)) = head.first_entry(control.anchor.vlsn)?
                    && !continues(header.chain_before(), &bytes)
                {
                    return Err(does_not_follow(&header, &first));
                }
                report.repaired_headers.push(head.number);
                report.scanned_segments += 1;
                found.headers.push(header);
                header
            }
        };
        if header.chain_before() != found.end {
            return Err(breaks_the_chain(&header, &found.end));
        }
        if let Some(Some(side)) = sides.get(at) {
            found.push_sealed(control, side);
            check_mark(known.mark.as_ref(), &found)?;
            continue;
        }
        let segment = match surveyed.next_if(|(place, _)| *place == at) {
            Some((_, result)) => result?,
            None => survey(head, &header, Next::of(heads.get(at + 1)), &known)?,
        };
        if is_last {
            report.torn_bytes = segment.stray_bytes;
        }
        if segment.holds_any() {
            found.push(control, segment);
        } else if is_last {
            // A segment whose first entry was torn: as if it had never begun.
            found.headers.retain(|header| header.number != head.number);
            report.repaired_headers.retain(|number| *number != head.number);
            found.remove.push(head.path.clone());
        } else {
            return Err(missing(
                head.number,
                "a segment without an entry, and one after it".into(),
            ));
        }
    }
    if let Some(mark) = known.mark
        && mark.vlsn > found.end.vlsn
        && !mutant::is_on(Mutant::DamageIsCut)
    {
        let next = found.end.vlsn.next();
        return Err(missing(
            mark.lsn.segment(),
            format!("no file with entry {next}, where entries through {} were synced", mark.vlsn),
        ));
    }
    // An orderly shutdown leaves the mark at the end and nothing behind it.
    if control.clean_shutdown
        && (report.torn_bytes > 0 || known.mark.is_some_and(|mark| mark.vlsn != found.end.vlsn))
    {
        tracing::warn!(end = %found.end.vlsn, "not the end that was closed: the head is uncertain");
        report.head_uncertain = true;
    }
    report.faulty.clone_from(&found.faulty);
    Ok(found)
}

/// The segment files, oldest first. What else is in the directory is noted for removal.
fn read_heads(
    env: &dyn Env,
    dir: &Path,
    control: &ControlState,
    found: &mut FoundLog,
) -> Result<Vec<Head>> {
    let log_dir = log_dir(dir);
    let first_number = control.anchor.next_segment();
    let mut heads = Vec::new();
    let names = env.list(&log_dir).map_err(|e| LogError::io("list", &log_dir, e))?;
    for name in &names {
        if let Some(number) = parse_segment_name(name)
            && number >= first_number
        {
            let expected = first_number + heads.len() as u32;
            if number != expected {
                return Err(missing(
                    expected,
                    format!("{} as the next file", segment_name(number)),
                ));
            }
            heads.push(Head::read(env, dir, number)?);
        } else if parse_side_name(name).is_none_or(|number| number < first_number) {
            found.remove.push(log_dir.join(name));
        }
    }
    Ok(heads)
}

/// The side file of each segment but the last, as far as it is of the file beside it.
fn read_sides(env: &dyn Env, dir: &Path, heads: &[Head]) -> Result<Vec<Option<SideFile>>> {
    let but_last = heads.split_last().map_or(&[][..], |(_, before)| before);
    let read = |head: &Head| -> Result<Option<SideFile>> {
        Ok(SideFile::read(env, dir, head.number)?.filter(|side| {
            head.header.as_ref().is_ok_and(|header| *header == side.summary.header)
                && head.len == u64::from(side.summary.end)
        }))
    };
    but_last.iter().map(read).collect()
}

/// Takes a header for unreadable that was written for another place: one that its own first entry
/// does not continue, while that entry continues the segment before. A side file beside it says the
/// same as the header, so that these need not be looked at.
fn refuse_misplaced(
    control: &ControlState,
    heads: &mut [Head],
    sides: &[Option<SideFile>],
) -> Result<()> {
    for at in 0..heads.len() {
        let head = &heads[at];
        let Ok(header) = head.header else { continue };
        if sides.get(at).is_some_and(Option::is_some) {
            continue;
        }
        let is_own = header.number == head.number;
        if let Some((_, bytes)) = head.first_entry(control.anchor.vlsn)?
            && !(is_own && continues(header.chain_before(), &bytes))
        {
            let before =
                match at.checked_sub(1).map(|before| (&heads[before], sides[before].as_ref())) {
                    None => Some(control.anchor.chain()),
                    Some((_, Some(side))) => Some(side.summary.last),
                    Some((before, None)) => {
                        before.header.as_ref().ok().map(|header| before.end(header)).transpose()?
                    }
                };
            if before.is_some_and(|before| continues(before, &bytes)) {
                let (number, first) = (header.number, header.first);
                heads[at].header = Err(HeaderFault::Misplaced { number, first });
                continue;
            }
        }
        if !is_own {
            let wanted = heads[at].number;
            return Err(corrupt_header(
                wanted,
                format!("segment {wanted}"),
                format!("segment {}", header.number),
            ));
        }
    }
    Ok(())
}

/// Whether the entry in `bytes` continues `chain`.
fn continues(mut chain: ChainState, bytes: &[u8]) -> bool {
    chain.check_next(bytes, u32::MAX).is_ok()
}

/// Whether the header is one of this group's log.
fn check_header(control: &ControlState, header: &SegmentHeader) -> Result<()> {
    let number = header.number;
    let Some(group) = &control.group else {
        return Err(missing(number, "a segment in a directory without a group".into()));
    };
    if header.group != group.id {
        let (expected, found) = (format!("group {}", group.id), format!("group {}", header.group));
        return Err(corrupt_header(number, expected, found));
    }
    if header.segment_bytes != group.segment_bytes {
        let size = |bytes| format!("segments of {bytes} bytes");
        let (expected, found) = (size(group.segment_bytes), size(header.segment_bytes));
        return Err(corrupt_header(number, expected, found));
    }
    Ok(())
}

/// The header of segment `number`, which continues `end`: every field is known.
fn header_after(control: &ControlState, end: &ChainState, number: u32) -> Option<SegmentHeader> {
    let group = control.group.as_ref()?;
    Some(SegmentHeader {
        number,
        group: group.id,
        first: end.vlsn.next(),
        previous_fingerprint: end.fingerprint,
        previous_term: end.term,
        segment_bytes: group.segment_bytes,
    })
}

fn breaks_the_chain(header: &SegmentHeader, end: &ChainState) -> LogError {
    let place =
        |c: &ChainState| format!("after entry {} of term {}, {}", c.vlsn, c.term, c.fingerprint);
    corrupt_header(header.number, place(end), place(&header.chain_before()))
}

fn does_not_follow(header: &SegmentHeader, first: &EntryHeader) -> LogError {
    let ChainState { vlsn, term, fingerprint } = header.chain_before();
    let expected = format!("an entry after {vlsn} of term {term}, {fingerprint}");
    let found = format!("entry {} of term {}, and no header", first.vlsn, first.term);
    corrupt_header(header.number, expected, found)
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
    corrupt_header(number, "a segment header".into(), fault.to_string())
}

fn corrupt_header(number: u32, expected: String, found: String) -> LogError {
    LogError::Corrupt { segment: number, offset: 0, expected, found }
}

fn missing(number: u32, found: String) -> LogError {
    corrupt_header(number, segment_name(number), found)
}

fn open(env: &dyn Env, path: &Path, mode: OpenMode) -> Result<Arc<dyn EnvFile>> {
    env.open(path, mode).map_err(|e| LogError::io("open", path, e))
}

/// The anchor's segment, for those who open a log without entries.
impl Anchor {
    /// The chain that the first kept entry continues.
    pub const fn chain(&self) -> ChainState {
        ChainState { vlsn: self.vlsn, term: self.term, fingerprint: self.fingerprint }
    }

    /// Number of the segment in which the first kept entry stands or will stand.
    pub const fn next_segment(&self) -> u32 {
        let number = self.next_lsn.segment();
        if number == 0 { 1 } else { number }
    }
}
