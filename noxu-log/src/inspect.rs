//! Inspect: reads a log directory as it stands, for tools: takes no lock and writes nothing, so it
//! works beside a running node and on a copy that was taken from one.
//!
//! # Beside a running node
//! A running node appends, rolls, seals, drops the front, truncates, repairs. What looks damaged
//! may be any of these seen half-way, so nothing is called damage at first sight: the place is read
//! again between two looks at the control file, and only what is there again in a *window* in
//! which the control file did not change counts. This is enough, because
//! - the front is dropped only after the anchor in the control file was moved, so the second look
//!   explains every segment that is gone from the front;
//! - a truncation writes its intent into the control file before it touches a segment, and clears it
//!   at the end: in a window without either, nothing was cut;
//! - without a truncation, a segment that another one follows does not change any more: the next
//!   one gets its name only after it was written whole and synced (zeros behind its end may go, and
//!   a damaged block may be replaced, which the second read sees);
//! - without a truncation, what is at or below the tail mark does not change any more, and the mark
//!   is read before the segments are listed, so it never speaks of more than they hold.
//!
//! What lies beyond the mark may be a write under way. It is read again until it stands still; then
//! it is called torn, not damaged. A log whose end was cut while it was read is read again from the
//! newest segment that begins as before.
//!
//! # Copies
//! A copy of a running node's files is a mixture of moments: the mark may be newer than the segments.
//! See [`Inspection::of_a_copy`].

mod walk;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_util::{Lsn, Term, Vlsn};

use crate::control_file::{ControlFile, ControlState};
use crate::entry::{ChainState, Entry};
use crate::env::{Env, EnvFile, OpenMode, read_whole};
use crate::error::{LogError, Result};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::name::{log_dir, parse_segment_name, segment_name};
use crate::writing::tail_mark::{MarkRead, TailMark};

use self::walk::{Mode, Walker};

/// A log directory opened for reading only.
#[derive(Debug)]
pub struct Inspection {
    env: Arc<dyn Env>,
    /// The node directory, or the one that holds the segments.
    dir: PathBuf,
    /// The directory that holds the segments.
    segments_dir: PathBuf,
    /// Whether there is a control file to look at.
    has_control: bool,
    /// The one segment to look at, if it is not all of them.
    only: Option<u32>,
    is_copy: bool,
    /// Nobody changes the files, so that one look is enough.
    stands_still: bool,
    /// What the control file says; `None` if the directory has none, as a copied `log` folder.
    pub control: Option<Result<ControlState>>,
    /// What the tail mark says.
    pub mark: MarkRead,
    /// Numbers of the segments, ascending, without those that a front drop left over.
    pub segments: Vec<u32>,
}

/// One segment, as far as its files tell.
#[derive(Debug, Clone)]
pub struct SegmentReport {
    /// Its header.
    pub header: SegmentHeader,
    /// Its last valid entry; the position before the segment if it holds none.
    pub last: ChainState,
    /// Offset after its last valid entry.
    pub end: u32,
    /// Length of the file, which may have a tail of zeros.
    pub file_bytes: u64,
    /// Valid entries.
    pub entries: u64,
    /// Terms that begin in it, with their first VLSNs.
    pub terms: Vec<(Term, Vlsn)>,
    /// Memory that its index samples take, in bytes, while they are in memory.
    pub index_bytes: usize,
    /// What stands where its side file would be.
    pub side: SideState,
    /// Digest of the file, if it is sealed.
    pub digest: Option<blake3::Hash>,
}

/// What stands where a segment's side file would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SideState {
    /// Nothing: the segment is not sealed, or the side file is to be made again.
    Missing,
    /// The segment's own side file.
    Valid,
    /// Something that cannot be read as one, or contradicts the segment, and why. It will be made
    /// again from the segment.
    Bad(String),
}

/// What reading the entries of a log found.
#[derive(Debug, Clone)]
pub struct Walk {
    /// The segments that were read, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Entries visited.
    pub entries: u64,
    /// Their bytes.
    pub entry_bytes: u64,
    /// Where the first entry stands and its VLSN.
    pub begin: (Lsn, Vlsn),
    /// Where the valid log ends: the position after the last entry.
    pub end_lsn: Lsn,
    /// The last valid entry.
    pub end: ChainState,
    /// Damage, in the order of the log.
    pub faults: Vec<Fault>,
    /// What stands at the end.
    pub ending: Ending,
    /// Sealed segments whose digests were compared.
    pub digests: usize,
    /// How often the log was cut while it was read, so that a part was read and visited again.
    pub restarts: u32,
}

/// What stands where the valid entries end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The end of the log: nothing, or zeros.
    Clean,
    /// The visitor had seen enough.
    Stopped,
    /// Bytes at the very end that are no entry and that the tail mark does not vouch for: a write
    /// that a crash or the copying tore, or damage to entries that were never marked as synced.
    /// Opening the log cuts them off.
    Torn(Fault),
    /// It cannot be told: a truncation or a restore was cut short there, or the log kept changing
    /// faster than it could be read. What lies before was verified.
    Unsettled(Fault),
}

/// A place where the log is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "segment {} at offset {}: {expected} expected, found {found}",
    .lsn.segment(),
    .lsn.offset()
)]
pub struct Fault {
    /// The place.
    pub lsn: Lsn,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// First and last of the entries that cannot be read because of it, as far as known; `None` if
    /// all of them can be: only what is said of them is wrong.
    pub missing: Option<(Vlsn, Vlsn)>,
}

impl From<&Fault> for LogError {
    fn from(fault: &Fault) -> Self {
        Self::Corrupt {
            segment: fault.lsn.segment(),
            offset: fault.lsn.offset().into(),
            expected: fault.expected.clone(),
            found: fault.found.clone(),
        }
    }
}

/// What is known of a directory at one moment.
#[derive(Debug, Clone)]
struct View {
    /// The control file's bytes, by which a change is seen.
    control_bytes: Option<Vec<u8>>,
    control: Option<Result<ControlState>>,
    mark: MarkRead,
    segments: Vec<u32>,
}

impl View {
    /// Whether the log is being changed, or was left half changed.
    fn is_unsettled(&self) -> bool {
        matches!(
            &self.control,
            Some(Ok(control)) if control.truncate_intent.is_some() || control.restore_marker
        )
    }
}

/// How often a file that may be in the middle of a change is read again.
const REREADS: usize = 20;

impl Inspection {
    /// Opens a node directory, or a directory that holds segment files itself.
    ///
    /// # Errors
    /// `Io` if there is no such directory or it cannot be read; `NoLog` if it holds neither segments
    /// nor a control file.
    pub fn open(env: Arc<dyn Env>, dir: &Path) -> Result<Self> {
        let names = env.list(dir).map_err(|e| LogError::io("list", dir, e))?;
        let has_control = names.iter().any(|name| name == "control");
        let is_node_dir = has_control || names.iter().any(|name| name == "log");
        let segments_dir = if is_node_dir { log_dir(dir) } else { dir.to_owned() };
        let dir = dir.to_owned();
        let log = Self::new(env, dir, segments_dir, has_control, None)?;
        if !is_node_dir && log.segments.is_empty() {
            return Err(LogError::NoLog { path: log.dir });
        }
        Ok(log)
    }

    /// Opens one segment file on its own.
    ///
    /// # Errors
    /// `NoLog` if the file has another name than segments have.
    pub fn open_segment_file(env: Arc<dyn Env>, path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(parse_segment_name)
            .ok_or_else(|| LogError::NoLog { path: path.to_owned() })?;
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::new(env, dir.clone(), dir, false, Some(number))
    }

    fn new(
        env: Arc<dyn Env>,
        dir: PathBuf,
        segments_dir: PathBuf,
        has_control: bool,
        only: Option<u32>,
    ) -> Result<Self> {
        let mut log = Self {
            env,
            dir,
            segments_dir,
            has_control,
            only,
            is_copy: false,
            stands_still: false,
            control: None,
            mark: MarkRead::Absent,
            segments: Vec::new(),
        };
        let view = log.view()?;
        (log.control, log.mark, log.segments) = (view.control, view.mark, view.segments);
        Ok(log)
    }

    /// Says that the directory was copied file by file while a node was running in it: the control
    /// file and the tail mark may be of another moment than the segments, so what is missing at
    /// either end is no damage.
    #[must_use]
    pub fn of_a_copy(mut self) -> Self {
        self.is_copy = true;
        self.stands_still = true;
        self
    }

    /// Says that nobody changes the files, so that what looks damaged need not be looked at again.
    #[must_use]
    pub fn of_files_that_stand_still(mut self) -> Self {
        self.stands_still = true;
        self
    }

    /// Visits the entries from `from` on, each with its place, and verifies all of them and that
    /// they continue each other; starts at the segment that holds `from`, so that the entries
    /// before it in that segment are verified too, but not visited.
    ///
    /// # Errors
    /// `Io`. Damage is no error here: see [`Walk::faults`].
    pub fn walk(
        &self,
        from: Vlsn,
        mut visit: impl FnMut(Lsn, &Entry<'_>) -> ControlFlow<()>,
    ) -> Result<Walk> {
        Walker::new(self, Mode::Walk, from, &mut visit, &mut |_, _| {})?.run()
    }

    /// Verifies all entries, that they continue each other, the side files and their digests, and
    /// that nothing is missing that the control file or the tail mark speaks of. `progress` is told
    /// the bytes read and those to read.
    ///
    /// # Errors
    /// As [`Inspection::walk`].
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<Walk> {
        let mut all = |_: Lsn, _: &Entry<'_>| ControlFlow::Continue(());
        Walker::new(self, Mode::Verify, Vlsn::new(1), &mut all, &mut progress)?.run()
    }

    /// The segments one by one: sealed ones from their side files, the others read in full.
    ///
    /// # Errors
    /// As [`Inspection::walk`].
    pub fn report(&self) -> Result<Walk> {
        let mut all = |_: Lsn, _: &Entry<'_>| ControlFlow::Continue(());
        Walker::new(self, Mode::Report, Vlsn::new(1), &mut all, &mut |_, _| {})?.run()
    }

    /// Looks at the directory at one moment, as far as one that changes can be looked at.
    fn view(&self) -> Result<View> {
        for attempt in 1.. {
            let control_bytes = self.control_bytes()?;
            let mark = self.mark()?;
            let mut segments = match self.only {
                Some(number) => vec![number],
                None => list_segments(&*self.env, &self.segments_dir)?,
            };
            let control = self.has_control.then(|| ControlFile::read(&*self.env, &self.dir));
            if self.control_bytes()? != control_bytes && attempt < REREADS {
                continue;
            }
            if let Some(Ok(control)) = &control {
                segments.retain(|number| *number >= control.anchor.next_segment());
            }
            return Ok(View { control_bytes, control, mark, segments });
        }
        unreachable!("the loop above has no end of its own")
    }

    fn control_bytes(&self) -> Result<Option<Vec<u8>>> {
        if !self.has_control {
            return Ok(None);
        }
        read_whole(&*self.env, &self.dir.join("control")).map(Some)
    }

    /// The mark; one that is just being written may look rotten.
    fn mark(&self) -> Result<MarkRead> {
        if self.only.is_some() || self.is_copy {
            return Ok(MarkRead::Absent);
        }
        let mut mark = TailMark::inspect(&*self.env, &self.dir)?;
        for _ in 0..REREADS {
            if !matches!(mark, MarkRead::Unreadable { .. }) {
                break;
            }
            std::thread::yield_now();
            mark = TailMark::inspect(&*self.env, &self.dir)?;
        }
        Ok(mark)
    }

    /// A segment's file; `None` if there is none.
    fn open_segment(&self, number: u32) -> Result<Option<Arc<dyn EnvFile>>> {
        let path = self.segments_dir.join(segment_name(number));
        match self.env.open(&path, OpenMode::Read) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io("open", &path, error)),
        }
    }

    /// The header of segment `number`.
    fn head(&self, number: u32, file: &dyn EnvFile) -> Result<Head> {
        let path = self.segments_dir.join(segment_name(number));
        let mut raw = [0; SEGMENT_HEADER_BYTES as usize];
        let count = file.read_at(&mut raw, 0).map_err(|e| LogError::io("read", &path, e))?;
        Ok(match SegmentHeader::decode(&raw[..count]) {
            Ok(header) if header.number == number => Head::Valid(header),
            Ok(header) => Head::Bad(format!("the header of segment {}", header.number)),
            Err(_) if raw[..count].iter().all(|byte| *byte == 0) => Head::Unwritten,
            Err(fault) => Head::Bad(fault.to_string()),
        })
    }
}

/// What stands where a segment's header should.
enum Head {
    Valid(SegmentHeader),
    /// Nothing was ever written there.
    Unwritten,
    Bad(String),
}

fn list_segments(env: &dyn Env, dir: &Path) -> Result<Vec<u32>> {
    match env.list(dir) {
        Ok(names) => Ok(names.iter().filter_map(|name| parse_segment_name(name)).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LogError::io("list", dir, error)),
    }
}
