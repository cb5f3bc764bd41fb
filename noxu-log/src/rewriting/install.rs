//! Install: replaces a log by segments, an anchor and a log behind them that a network restore staged.
//!
//! # Crash argument
//! The caller has made everything staged durable and committed to it. [`Install::run`] can be
//! repeated from any step; until [`finish_install`] no other open of the log succeeds.
//! 1. The control file's restore marker is durable before anything changes, so that nobody opens a
//!    log that is half the old one and half the new.
//! 2. What the old log holds above the commit floor, or may hold where it is damaged, is moved beside
//!    a lost-entries file, which is written first and names the first segment to be moved; the rest of
//!    the old log is removed. The file lists the segments up to the damage: nobody can verify entries
//!    behind it, so they are moved and not listed.
//! 3. The file `SWAPPING` in the staging directory says that 2 is over. From here on every file in
//!    the log directory is a new one.
//! 4. Staged files are moved, those of the staged log last; one that is no longer staged has been moved.
//! 5. Control file (anchor, configuration, floor) and tail mark are set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_util::{Lsn, NULL_VLSN, Term, Vlsn};

use crate::control_file::{Anchor, ControlFile, GroupIdentity};
use crate::entry::{ChainState, EntryFault};
use crate::env::{Env, EnvFile, LockGuard, OpenMode, write_whole};
use crate::error::{LogError, Result};
use crate::log::{Log, LogConfig};
use crate::mutant::{self, Mutant};
use crate::recovery::{OpenReport, stray_bytes};
use crate::rewriting::lost_entries::{
    LostEntries, LostHeader, LostNote, lost_path, moved_segment_path,
};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, lost_dir, parse_segment_name, segment_name, side_name};
use crate::segment::scan::{SegmentSummary, SummaryBuilder, scan_entries};
use crate::segment::side_file::{Digests, LastClock, SideFile};
use crate::writing::tail_mark::{Mark, TailMark};

const SWAPPING: &str = "SWAPPING";

/// What replaces a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The group, which a fresh directory adopts.
    pub group: GroupIdentity,
    /// A term the node has learned of; its own is raised to it.
    pub term: Term,
    /// The position before the first entry.
    pub anchor: Anchor,
    /// The group configuration last known.
    pub group_config: bytes::Bytes,
    /// Staged segments, adjacent, the first one right after the anchor.
    pub segments: Vec<u32>,
    /// The last entry of the last segment; the anchor if there is none. It can no longer be rolled back.
    pub last: ChainState,
    /// Where it stands.
    pub last_lsn: Lsn,
    /// The log that continues the segments, if any entry does.
    pub tail: Option<StagedTail>,
    /// Name of the lost-entries file for what the old log holds above its commit floor; new.
    pub lost_name: String,
    /// Kept in that file.
    pub lost_note: LostNote,
}

/// A staged log that begins right behind the staged segments ([`begin_behind`]); closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedTail {
    /// Its directory.
    pub dir: PathBuf,
    /// Its last entry.
    pub last: ChainState,
    /// Where it stands.
    pub last_lsn: Lsn,
}

/// What is known of a staged segment before it is read.
#[derive(Debug, Clone)]
pub struct ExpectedSegment {
    /// Its number.
    pub number: u32,
    /// The group.
    pub group: GroupIdentity,
    /// The entry it continues.
    pub after: ChainState,
    /// Newest sync entry and transaction end up to there.
    pub last_sync: Vlsn,
    /// See `last_sync`.
    pub last_txn_end: Vlsn,
    /// Length of the file.
    pub bytes: u32,
    /// Digests that its bytes were verified against.
    pub digests: Digests,
}

/// Verifies every entry of a staged segment and writes its side file beside it, durably.
///
/// # Errors
/// `Corrupt` naming the place; `Io`.
pub fn stage_segment(
    env: &dyn Env,
    staged: &Path,
    expected: &ExpectedSegment,
) -> Result<SegmentSummary> {
    let number = expected.number;
    let path = staged.join(segment_name(number));
    let wrap = |e| LogError::io("read", &path, e);
    let corrupt = |offset: u32, wanted: String, found: String| LogError::Corrupt {
        segment: number,
        offset: offset.into(),
        expected: wanted,
        found,
    };
    let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
    let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
    let read = file.read_at(&mut raw, 0).map_err(wrap)?;
    let header = SegmentHeader::decode(&raw[..read])
        .map_err(|fault| corrupt(0, "a segment header".into(), fault.to_string()))?;
    let wanted = SegmentHeader {
        number,
        group: expected.group.id,
        first: expected.after.vlsn.next(),
        previous_fingerprint: expected.after.fingerprint,
        previous_term: expected.after.term,
        segment_bytes: expected.group.segment_bytes,
    };
    if header != wanted {
        return Err(corrupt(0, format!("{wanted:?}"), format!("{header:?}")));
    }
    let mut builder = SummaryBuilder::new(header, expected.last_sync, expected.last_txn_end);
    let mut clock = LastClock::default();
    let end = scan_entries(
        &*file,
        SEGMENT_HEADER_BYTES,
        expected.bytes.into(),
        header.chain_before(),
        |offset, entry| {
            builder.push(offset, &entry.header);
            clock.see(offset, &entry.header);
        },
    )
    .map_err(wrap)?;
    if end.fault.is_some() || end.offset != expected.bytes || end.chain == expected.after {
        let found = end.fault.unwrap_or(EntryFault::Header).to_string();
        return Err(corrupt(end.offset, format!("entry {}", end.chain.vlsn.next()), found));
    }
    let summary = builder.summary();
    let clock_ms = clock.read(&*file).map_err(wrap)?;
    let digests = expected.digests.clone();
    let side = SideFile { summary: summary.clone(), clock_ms, digests };
    write_whole(env, &staged.join(side_name(number)), &side.encode())?;
    Ok(summary)
}

impl Install {
    /// Replaces the log of `dir` by what is staged. Idempotent; durable on return. The state
    /// machine and whatever follows the segments come next, through [`Log::open_installed`], and
    /// then [`finish_install`]. Returns the lost-entries file that was made, if there was one.
    ///
    /// # Errors
    /// `Locked`, `AlreadyFounded` with another group, `Io`.
    pub fn run(
        &self,
        shared_env: &Arc<dyn Env>,
        dir: &Path,
        staged: &Path,
    ) -> Result<Option<PathBuf>> {
        let env = &**shared_env;
        for sub in [dir.to_owned(), log_dir(dir), lost_dir(dir)] {
            env.create_dir_all(&sub).map_err(|e| LogError::io("create directory", &sub, e))?;
        }
        let _lock = lock_dir(env, dir)?;
        let control = ControlFile::open_or_create(env, dir)?;
        if let Some(mine) = control.state().group
            && mine != self.group
        {
            return Err(LogError::AlreadyFounded {
                dir: dir.to_owned(),
                found: format!("group {} ({})", mine.name, mine.id),
                wanted: format!("group {} ({})", self.group.name, self.group.id),
            });
        }
        if !mutant::is_on(Mutant::InstallNotMarked) {
            control.update(|control| control.restore_marker = true)?;
        }
        // A process that was killed here before may have left names that are not durable.
        for dir in [dir, staged] {
            env.sync_dir(dir).map_err(|e| LogError::io("sync directory", dir, e))?;
        }
        let swapping = staged.join(SWAPPING);
        if !env.exists(&swapping).map_err(|e| LogError::io("look for", &swapping, e))? {
            if mutant::is_on(Mutant::SwappingBeforeClear) {
                write_whole(env, &swapping, b"")?;
            }
            self.clear_old(env, dir, control.state().commit_floor)?;
            write_whole(env, &swapping, b"")?;
        }
        self.swap_in(env, dir, staged)?;
        control.update(|control| {
            if self.term > control.term {
                control.term = self.term;
                control.vote = None;
            }
            control.group = Some(self.group.clone());
            control.group_config.clone_from(&self.group_config);
            control.anchor = self.anchor.clone();
            control.commit_floor = control.commit_floor.max(self.last.vlsn);
            control.truncate_intent = None;
            control.head_uncertain = false;
            control.clean_shutdown = false;
        })?;
        // The old mark speaks of the old log, and would have the new one taken for damaged.
        if !mutant::is_on(Mutant::MarkNotMovedByInstall) {
            let mark = TailMark::open(Arc::clone(shared_env), dir)?;
            let (last, lsn) = match &self.tail {
                Some(tail) => (tail.last, tail.last_lsn),
                None => (self.last, self.last_lsn),
            };
            mark.write(Mark {
                term: last.term,
                vlsn: last.vlsn,
                lsn,
                fingerprint: last.fingerprint,
            })?;
            mark.sync()?;
        }
        let lost = lost_path(dir, &self.lost_name);
        let saved = env.exists(&lost).map_err(|e| LogError::io("look for", &lost, e))?;
        Ok(saved.then_some(lost))
    }

    /// Step 2.
    fn clear_old(&self, env: &dyn Env, dir: &Path, floor: Vlsn) -> Result<()> {
        let log_dir = log_dir(dir);
        let lost_path = lost_path(dir, &self.lost_name);
        if !env.exists(&lost_path).map_err(|e| LogError::io("look for", &lost_path, e))? {
            self.list_lost(env, dir, floor)?;
        }
        let mut moved_from = None;
        if env.exists(&lost_path).map_err(|e| LogError::io("look for", &lost_path, e))? {
            let moved = LostEntries::read_header(env, dir, &self.lost_name)?.moved;
            // Without any, not even the first one's header could be read: then all are moved.
            moved_from = Some(moved.first().copied().unwrap_or(0));
        }
        let names = env.list(&log_dir).map_err(|e| LogError::io("list", &log_dir, e))?;
        for name in names {
            let path = log_dir.join(&name);
            match parse_segment_name(&name) {
                Some(number) if moved_from.is_some_and(|first| number >= first) => {
                    let to = moved_segment_path(dir, &self.lost_name, number);
                    env.rename(&path, &to).map_err(|e| LogError::io("move", &path, e))?;
                }
                _ => env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?,
            }
        }
        let lost = lost_dir(dir);
        env.sync_dir(&lost).map_err(|e| LogError::io("sync directory", &lost, e))?;
        env.sync_dir(&log_dir).map_err(|e| LogError::io("sync directory", &log_dir, e))
    }

    /// Writes the lost-entries file if the old log holds anything above the commit floor, or may hold
    /// it: nobody else is known to have that.
    fn list_lost(&self, env: &dyn Env, dir: &Path, floor: Vlsn) -> Result<()> {
        let segments = OldSegment::read_all(env, &log_dir(dir))?;
        let begins_of = |at: usize| segments.get(at).and_then(|segment| segment.header);
        let may_be_lost = |at: usize| match begins_of(at + 1) {
            Some(next) if next.first.prev() <= floor => false,
            Some(next) => segments[at].may_hold_above(floor, Some(next.chain_before())),
            None => segments[at].may_hold_above(floor, None),
        };
        let Some(from) = (0..segments.len()).find(|at| may_be_lost(*at)) else { return Ok(()) };
        let kept = match begins_of(from) {
            Some(header) => header.chain_before(),
            None => from.checked_sub(1).map_or_else(Default::default, |at| segments[at].end),
        };
        let mut lost = LostHeader {
            group: self.group.id,
            kept,
            kept_lsn: Lsn::default(),
            end: kept,
            note: self.lost_note.clone(),
            moved: Vec::new(),
            entry_bytes: 0,
        };
        for (at, segment) in segments.iter().enumerate().skip(from) {
            if segment.header.is_none_or(|header| header.chain_before() != lost.end) {
                break;
            }
            // What holds no entry is not worth listing.
            if segment.end != lost.end || at == from {
                lost.moved.push(segment.number);
            }
            lost.end = segment.end;
        }
        for segment in &segments[from..] {
            let path = log_dir(dir).join(segment_name(segment.number));
            segment.file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        }
        write_whole(env, &lost_path(dir, &self.lost_name), &lost.encode())
    }

    /// Step 4.
    fn swap_in(&self, env: &dyn Env, dir: &Path, staged: &Path) -> Result<()> {
        let target = log_dir(dir);
        let move_in = |from: &Path, name: String| {
            let from = from.join(&name);
            if env.exists(&from).map_err(|e| LogError::io("look for", &from, e))? {
                env.rename(&from, &target.join(&name))
                    .map_err(|e| LogError::io("move", &from, e))?;
            }
            Ok::<_, LogError>(())
        };
        // The last segment was sealed elsewhere. If nothing follows it here yet, it does not count as
        // sealed, and its side file stays behind.
        let last = self.segments.last().filter(|_| self.tail.is_none());
        for number in &self.segments {
            if Some(number) != last {
                move_in(staged, side_name(*number))?;
            }
            move_in(staged, segment_name(*number))?;
        }
        let mut moved_from = vec![staged.to_owned()];
        if let Some(tail) = &self.tail {
            let begin = self.segments.last().map_or(self.anchor.next_segment(), |last| last + 1);
            let from = log_dir(&tail.dir);
            for number in begin..=tail.last_lsn.segment() {
                move_in(&from, segment_name(number))?;
            }
            moved_from.push(from);
        }
        for dir in std::iter::once(&target).chain(&moved_from) {
            env.sync_dir(dir).map_err(|e| LogError::io("sync directory", dir, e))?;
        }
        Ok(())
    }
}

/// A segment of the log that is replaced.
struct OldSegment {
    number: u32,
    file: Arc<dyn EnvFile>,
    /// `None` if it cannot be read.
    header: Option<SegmentHeader>,
    /// The chain through the last entry that can be verified.
    end: ChainState,
    /// Something else than zeros stands behind that.
    goes_on: bool,
}

impl OldSegment {
    /// All that there are, oldest first.
    fn read_all(env: &dyn Env, log_dir: &Path) -> Result<Vec<Self>> {
        let names = env.list(log_dir).map_err(|e| LogError::io("list", log_dir, e))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|n| parse_segment_name(n)).collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| Self::read(env, log_dir, number)).collect()
    }

    fn read(env: &dyn Env, log_dir: &Path, number: u32) -> Result<Self> {
        let path = log_dir.join(segment_name(number));
        let wrap = |e| LogError::io("read", &path, e);
        let file = env.open(&path, OpenMode::ReadWrite).map_err(wrap)?;
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut raw, 0).map_err(wrap)?;
        let header = SegmentHeader::decode(&raw[..read]).ok();
        let len = file.len().map_err(wrap)?;
        let (end, offset) = match &header {
            Some(header) => {
                let chain = header.chain_before();
                let scan = scan_entries(&*file, SEGMENT_HEADER_BYTES, len, chain, |_, _| {});
                let end = scan.map_err(wrap)?;
                (end.chain, end.offset)
            }
            None => (ChainState::default(), 0),
        };
        let goes_on = stray_bytes(&*file, offset, len).map_err(wrap)? > 0;
        Ok(Self { number, file, header, end, goes_on })
    }

    /// Whether entries beyond `floor` are in it, or may be where it is damaged. `next` is what the
    /// segment behind it continues, if there is one that can be read.
    fn may_hold_above(&self, floor: Vlsn, next: Option<ChainState>) -> bool {
        let holds_any = self.header.is_some_and(|header| self.end.vlsn >= header.first);
        let is_damaged = self.goes_on || next.is_some_and(|next| next != self.end);
        is_damaged || (holds_any && self.end.vlsn > floor)
    }
}

impl Log {
    /// Opens a log that is being installed, to append what follows its segments.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open_installed(
        env: Arc<dyn Env>,
        dir: &Path,
        config: LogConfig,
    ) -> Result<(Self, OpenReport)> {
        Self::open_with(env, dir, config, true)
    }
}

/// The log in `dir` is whole: it may be opened by anybody again. Durable on return.
///
/// # Errors
/// `Locked`, `Io`.
pub fn finish_install(env: &dyn Env, dir: &Path) -> Result<()> {
    let _lock = lock_dir(env, dir)?;
    let control = ControlFile::open_or_create(env, dir)?;
    control.update(|control| control.restore_marker = false)
}

/// Makes `dir` a log of `group` without entries, which begins behind `anchor`, unless it is one
/// already. Durable on return; opened as any other.
///
/// # Errors
/// `AlreadyFounded` if it is a log of another group or behind another anchor; `ControlUnreadable`,
/// `Locked`, `Io`.
pub fn begin_behind(
    env: &Arc<dyn Env>,
    dir: &Path,
    group: &GroupIdentity,
    anchor: &Anchor,
) -> Result<()> {
    env.create_dir_all(dir).map_err(|e| LogError::io("create directory", dir, e))?;
    let _lock = lock_dir(&**env, dir)?;
    let control = ControlFile::open_or_create(&**env, dir)?;
    let state = control.state();
    match &state.group {
        None => {
            control.update(|control| {
                control.group = Some(group.clone());
                control.anchor = anchor.clone();
                control.commit_floor = anchor.vlsn;
            })?;
            // A crash before leaves a head that is uncertain: of a log that nobody was promised anything of.
            let Anchor { term, vlsn, lsn, fingerprint, .. } = *anchor;
            let mark = TailMark::open(Arc::clone(env), dir)?;
            mark.write(Mark { term, vlsn, lsn, fingerprint })?;
            mark.sync()
        }
        Some(mine) if mine == group && state.anchor == *anchor => Ok(()),
        Some(mine) => {
            let show = |name: &dyn std::fmt::Display, anchor: &Anchor| {
                format!("group {name} behind entry {}", anchor.vlsn)
            };
            Err(LogError::AlreadyFounded {
                dir: dir.to_owned(),
                found: show(&mine.name, &state.anchor),
                wanted: show(&group.name, anchor),
            })
        }
    }
}

/// The position that a restore has to reach at least: what this directory knows a majority to
/// hold. NULL for a directory without a control file.
///
/// # Errors
/// `ControlUnreadable`, `Io`.
pub fn known_floor(env: &dyn Env, dir: &Path) -> Result<Vlsn> {
    let path = dir.join("control");
    if !env.exists(&path).map_err(|e| LogError::io("look for", &path, e))? {
        return Ok(NULL_VLSN);
    }
    Ok(ControlFile::read(env, dir)?.commit_floor)
}

/// Makes the directory of a log the caller's, as an open log does.
///
/// # Errors
/// `Locked`, `Io`.
pub fn lock_dir(env: &dyn Env, dir: &Path) -> Result<Box<dyn LockGuard>> {
    let path = dir.join("LOCK");
    env.lock(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => LogError::Locked { path: path.clone() },
        _ => LogError::io("lock", &path, e),
    })
}
