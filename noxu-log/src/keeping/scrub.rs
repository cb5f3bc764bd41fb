//! Scrub: reads sealed segments again, slowly, and compares them with their digests, so that a block
//! that rotted is found while another node still has it.
//!
//! The log's own thread reads the segment next that was verified longest ago; one just sealed was
//! verified as it was digested. Those that were not verified since the log was opened come before
//! all others, from a random one on around, so that a node which restarts often reaches all of them
//! in the end. [`Log::scrub`] reads all of them at once, in the caller's thread.
//!
//! # What counts as damage
//! A block whose bytes have another digest or cannot be read, twice, the second time with the
//! maintenance lock held: nobody drops the segment or replaces the block just then. Before a block
//! is reported, the segment's own chain is asked: if every entry verifies, the digests are what is
//! wrong, and they are made again.
//!
//! # Not here
//! Replacing a damaged block (block_repair.rs). Reads of a damaged place fail by themselves: every
//! entry that is read from a file is verified.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_util::Vlsn;
use parking_lot::{Condvar, Mutex};

use crate::env::{EnvFile, OpenMode};
use crate::error::{LogError, Result};
use crate::log::{Log, Sealed, Segment, Shared};
use crate::segment::digest::{BLOCK_BYTES, Digests};
use crate::segment::side_file::SideFile;

/// How fast and how often sealed segments are read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Most bytes read a second, on average over any stretch of time: what was not read in time is
    /// not made up for. `u64::MAX` for as fast as it goes; 0 counts as 1. Default 8 MiB.
    pub bytes_per_second: u64,
    /// In the background: how long a segment is left alone once it was verified. Default 7 days.
    pub interval: Duration,
    /// In the background: how long after opening the log the first segment is read; a node that
    /// starts has better things to do. Default 1 minute.
    pub delay: Duration,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self {
            bytes_per_second: 8 << 20,
            interval: Duration::from_hours(7 * 24),
            delay: Duration::from_mins(1),
        }
    }
}

/// A block of a sealed segment that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// Number of the segment.
    pub segment: u32,
    /// Number of the block in it, from 0.
    pub block: u32,
    /// Where it begins in the segment's file.
    pub offset: u32,
    /// Its length: [`BLOCK_BYTES`], or less for the last one.
    pub bytes: u32,
    /// Digest that it had; `None` if the side file was lost before the damage was found, so that
    /// nobody here knows.
    pub expected: Option<blake3::Hash>,
    /// Digest that it has; `None` if it cannot be read.
    pub found: Option<blake3::Hash>,
    /// An entry at or before the first one that has bytes in the block, at most 64 entries before.
    pub first: Vlsn,
    /// An entry at or after the last one that has bytes in the block, at most 64 entries after.
    pub last: Vlsn,
}

/// How far a pass over the sealed segments has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubProgress {
    /// The segment that is being read; 0 before the first.
    pub segment: u32,
    /// Segments read, dropped ones among them.
    pub segments_done: usize,
    /// Segments to read.
    pub segments: usize,
    /// Bytes read.
    pub bytes_done: u64,
    /// Bytes to read.
    pub bytes: u64,
    /// Damaged blocks found in this pass, known before or not.
    pub damaged: u64,
    /// Time since the pass began.
    pub elapsed: Duration,
}

impl ScrubProgress {
    /// Bytes read a second since the pass began.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes_done as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// What scrubbing has found since the log was opened.
#[derive(Debug, Clone, Default)]
pub struct ScrubReport {
    /// The segment that the log's own thread is reading, if it is reading one.
    pub running: Option<ScrubProgress>,
    /// A pass over all of them that [`Log::scrub`] is at: the one that read a block last.
    pub ordered: Option<ScrubProgress>,
    /// Segments read to their end, each as often as it was.
    pub segments: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Sealed segments that were not read since the log was opened.
    pub unread: usize,
    /// Time since the segment was read that was read longest ago, of those that were read.
    pub oldest: Option<Duration>,
    /// Damaged blocks that were not replaced yet, in the order of the log.
    pub damaged: Vec<DamagedBlock>,
    /// Why a segment could not be read last time one could not.
    pub last_error: Option<LogError>,
}

impl Log {
    /// Reads every sealed segment and compares it with its digests, those verified longest ago
    /// first, in the caller's thread. `progress` is called after every block; if it breaks, the pass
    /// ends there. Damaged blocks are reported as [`Log::on_damaged_block`] says and kept in
    /// [`Log::damaged_blocks`].
    ///
    /// Of `config` only the rate counts. The rates of several passes at once add up.
    ///
    /// # Errors
    /// `Closed` once the log is closed; `Io` if a file cannot be opened. Damage is no error.
    pub fn scrub(
        &self,
        config: &ScrubConfig,
        mut progress: impl FnMut(&ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubProgress> {
        let shared = &*self.shared;
        let order = shared.scrub_order();
        let sealed: Vec<Sealed> = order.iter().filter_map(|n| shared.sealed(*n)).collect();
        let mut keep_and_show = |done: &ScrubProgress| {
            shared.scrubber.inner.lock().ordered = Some(done.clone());
            progress(done)
        };
        let mut pass = Pass::new(config, &sealed, &mut keep_and_show);
        let ended =
            sealed.iter().try_for_each(|segment| match shared.scrub_segment(segment, &mut pass) {
                Ok(goes_on) => goes_on.map_break(|()| Ok(())),
                Err(cause) => ControlFlow::Break(Err(cause)),
            });
        shared.scrubber.inner.lock().ordered = None;
        if let ControlFlow::Break(how) = ended {
            how?;
            shared.scrubber.check_open(shared)?;
        }
        Ok(pass.progress())
    }

    /// Reads one sealed segment now, as fast as it goes, because somebody could not read it. What is
    /// damaged in it is reported and kept as [`Log::scrub`] does, and returned.
    ///
    /// # Errors
    /// `NotSealed` if there is no such sealed segment; `Closed`, `Io`.
    pub fn scrub_segment(&self, segment: u32) -> Result<Vec<DamagedBlock>> {
        let shared = &*self.shared;
        let sealed = shared.sealed(segment).ok_or(LogError::NotSealed { segment })?;
        let config = ScrubConfig { bytes_per_second: u64::MAX, ..ScrubConfig::default() };
        let mut show = |_: &ScrubProgress| ControlFlow::Continue(());
        let mut pass = Pass::new(&config, std::slice::from_ref(&sealed), &mut show);
        if shared.scrub_segment(&sealed, &mut pass)?.is_break() {
            shared.scrubber.check_open(shared)?;
        }
        let mut damaged = self.damaged_blocks();
        damaged.retain(|block| block.segment == segment);
        Ok(damaged)
    }

    /// What scrubbing has found since the log was opened.
    pub fn scrub_report(&self) -> ScrubReport {
        let order = self.shared.scrub_order();
        let damaged = self.damaged_blocks();
        let inner = self.shared.scrubber.inner.lock();
        let read: Vec<Instant> =
            order.iter().filter_map(|n| inner.read_at.get(n)).copied().collect();
        ScrubReport {
            running: inner.running.clone(),
            ordered: inner.ordered.clone(),
            segments: inner.segments,
            bytes: inner.bytes,
            unread: order.len() - read.len(),
            oldest: read.iter().min().map(Instant::elapsed),
            damaged,
            last_error: inner.last_error.clone(),
        }
    }

    /// Damaged blocks of sealed segments that were found since the log was opened and not replaced
    /// yet, in the order of the log.
    pub fn damaged_blocks(&self) -> Vec<DamagedBlock> {
        let all: Vec<_> = self.shared.scrubber.inner.lock().damaged.values().cloned().collect();
        all.into_iter().filter(|block| self.shared.sealed(block.segment).is_some()).collect()
    }

    /// Registers a function to be called once for every damaged block that is found, by the thread
    /// that found it, with no lock of the log held.
    pub fn on_damaged_block(&self, hook: impl Fn(&DamagedBlock) + Send + Sync + 'static) {
        self.shared.hooks.write().damaged.push(Arc::new(hook));
    }
}

/// What is known of the sealed segments' health, and the stop signal of those who look after it.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    /// A leaf lock.
    inner: Mutex<Inner>,
    /// Signalled when the log closes.
    stopping: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    stopped: bool,
    /// When segments were last read to their end.
    read_at: BTreeMap<u32, Instant>,
    /// By segment and block.
    damaged: BTreeMap<(u32, u32), DamagedBlock>,
    running: Option<ScrubProgress>,
    ordered: Option<ScrubProgress>,
    segments: u64,
    bytes: u64,
    last_error: Option<LogError>,
    /// Where those begin that were never read; drawn once.
    start: Option<u64>,
}

/// How long the background thread waits when there is nothing to read, or a file cannot be opened.
const RETRY: Duration = Duration::from_mins(1);

impl Scrubber {
    /// Body of the log's own thread.
    pub(crate) fn run(shared: &Shared) {
        let Some(config) = &shared.config.scrub else { return };
        let scrubber = &shared.scrubber;
        let mut begin = after(Instant::now(), config.delay);
        while scrubber.wait_until(begin).is_continue() {
            let Some(segment) = shared.scrub_order().first().and_then(|n| shared.sealed(*n)) else {
                begin = after(Instant::now(), RETRY);
                continue;
            };
            let due = scrubber.inner.lock().read_at.get(&segment.header.number).copied();
            if let Some(due) = due.map(|read| after(read, config.interval))
                && due > Instant::now()
            {
                begin = due;
                continue;
            }
            let mut keep = |progress: &ScrubProgress| {
                scrubber.inner.lock().running = Some(progress.clone());
                ControlFlow::Continue(())
            };
            let mut pass = Pass::new(config, std::slice::from_ref(&segment), &mut keep);
            let done = shared.scrub_segment(&segment, &mut pass);
            let mut inner = scrubber.inner.lock();
            inner.running = None;
            begin = Instant::now();
            if let Err(error) = done {
                tracing::warn!(%error, segment = segment.header.number, "a segment cannot be scrubbed");
                inner.last_error = Some(error);
                // The others come first.
                inner.read_at.insert(segment.header.number, begin);
                begin = after(begin, RETRY);
            }
        }
    }

    /// Makes everybody who scrubs stop at once.
    pub(crate) fn stop(&self) {
        self.inner.lock().stopped = true;
        self.stopping.notify_all();
    }

    /// A segment was verified in full, by whoever.
    pub(crate) fn note_verified(&self, segment: u32) {
        self.inner.lock().read_at.insert(segment, Instant::now());
    }

    /// A block is as it was again.
    pub(crate) fn note_whole(&self, segment: u32, block: u32) {
        self.inner.lock().damaged.remove(&(segment, block));
    }

    fn check_open(&self, shared: &Shared) -> Result<()> {
        if self.inner.lock().stopped {
            return Err(LogError::Closed { dir: shared.dir.clone() });
        }
        Ok(())
    }

    /// Waits until then, or breaks as soon as the log closes.
    fn wait_until(&self, then: Instant) -> ControlFlow<()> {
        let mut inner = self.inner.lock();
        while !inner.stopped {
            if self.stopping.wait_until(&mut inner, then).timed_out() {
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    }
}

/// As far in the future as `duration` says, or as far as this machine can count.
fn after(instant: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(24 * 365);
    instant.checked_add(duration).unwrap_or_else(|| instant + FAR)
}

impl Inner {
    /// Segment numbers in the order in which they are to be read; forgets those that are gone.
    fn order(&mut self, mut numbers: Vec<u32>) -> Vec<u32> {
        let start = *self.start.get_or_insert_with(|| fastrand::u64(..));
        let from = numbers.get((start % numbers.len().max(1) as u64) as usize).copied();
        self.read_at.retain(|number, _| numbers.binary_search(number).is_ok());
        self.damaged.retain(|(number, _), _| numbers.binary_search(number).is_ok());
        numbers.sort_by_key(|number| {
            (self.read_at.get(number).copied(), Some(*number) < from, *number)
        });
        numbers
    }
}

/// One reader's way through segments.
struct Pass<'a> {
    pace: Pace,
    began: Instant,
    done: ScrubProgress,
    show: &'a mut dyn FnMut(&ScrubProgress) -> ControlFlow<()>,
}

impl<'a> Pass<'a> {
    fn new(
        config: &ScrubConfig,
        sealed: &[Sealed],
        show: &'a mut dyn FnMut(&ScrubProgress) -> ControlFlow<()>,
    ) -> Self {
        let bytes = sealed.iter().map(|segment| u64::from(segment.end)).sum();
        let done = ScrubProgress { segments: sealed.len(), bytes, ..ScrubProgress::default() };
        Self { pace: Pace::new(config.bytes_per_second), began: Instant::now(), done, show }
    }

    fn progress(&self) -> ScrubProgress {
        ScrubProgress { elapsed: self.began.elapsed(), ..self.done.clone() }
    }
}

/// Says when the next read may begin, so that the rate holds over any stretch of time.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    /// Since the beginning: when what was read so far is paid for.
    ready: Duration,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), ready: Duration::ZERO }
    }

    /// When to read `bytes`, asked at `now`, both since the beginning.
    fn begin(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.ready.max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.ready = begin.saturating_add(cost);
        begin
    }
}

impl Shared {
    /// Numbers of the sealed segments, in the order in which they are to be read.
    fn scrub_order(&self) -> Vec<u32> {
        let numbers = {
            let state = self.state.lock();
            let sealed = state.segments.iter().filter(|segment| segment.is_sealed());
            sealed.map(Segment::number).collect()
        };
        self.scrubber.inner.lock().order(numbers)
    }

    /// Reads one segment to its end; breaks if the log closes or the reader has seen enough.
    fn scrub_segment(&self, sealed: &Sealed, pass: &mut Pass<'_>) -> Result<ControlFlow<()>> {
        let number = sealed.header.number;
        pass.done.segment = number;
        let before = pass.done.bytes_done;
        let read = self.scrub_blocks(sealed, pass);
        // A segment that was dropped meanwhile, or has no digests, counts as read to its end.
        pass.done.bytes_done = before + u64::from(sealed.end);
        match read {
            Ok(ControlFlow::Continue(())) | Err(LogError::NotSealed { .. }) => {}
            Ok(ControlFlow::Break(bytes_read)) => {
                pass.done.bytes_done = before + bytes_read;
                return Ok(ControlFlow::Break(()));
            }
            Err(LogError::Corrupt { offset, .. }) if self.sealed(number).is_some() => {
                // Its side file is lost, and it is damaged, so that there is none to be made.
                self.note_damaged(pass, &without_digests(sealed, offset));
            }
            Err(error) => return Err(error),
        }
        pass.done.segments_done += 1;
        let mut inner = self.scrubber.inner.lock();
        inner.segments += 1;
        inner.read_at.insert(number, Instant::now());
        Ok(ControlFlow::Continue(()))
    }

    /// Reads the blocks of a segment; breaks with the bytes read of it.
    fn scrub_blocks(&self, sealed: &Sealed, pass: &mut Pass<'_>) -> Result<ControlFlow<u64>> {
        let number = sealed.header.number;
        let side = self.sides.check(self, number)?;
        let file = self.open_for_scrub(number)?;
        let mut buffer = vec![0; BLOCK_BYTES as usize + 1];
        let mut suspects = Vec::new();
        let mut read = 0;
        for block in Block::all(&side) {
            let begin = pass.pace.begin(pass.began.elapsed(), block.bytes.into());
            if self.scrubber.wait_until(after(pass.began, begin)).is_break() {
                return Ok(ControlFlow::Break(read));
            }
            let found = file.as_ref().and_then(|file| block.digest_of(&**file, &mut buffer));
            if found == Some(block.expected) {
                self.scrubber.note_whole(number, block.number);
            } else {
                suspects.push(block);
            }
            read += u64::from(block.bytes);
            pass.done.bytes_done += u64::from(block.bytes);
            self.scrubber.inner.lock().bytes += u64::from(block.bytes);
            let progress = pass.progress();
            if (pass.show)(&progress).is_break() {
                self.judge(&side, suspects, &mut buffer, pass)?;
                return Ok(ControlFlow::Break(read));
            }
        }
        self.judge(&side, suspects, &mut buffer, pass)?;
        Ok(ControlFlow::Continue(()))
    }

    /// `None` if the file is gone though the segment is not.
    fn open_for_scrub(&self, number: u32) -> Result<Option<Arc<dyn EnvFile>>> {
        let path = self.segment_path(number);
        match self.env.open(&path, OpenMode::Read) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io("open", &path, error)),
        }
    }

    /// Looks at blocks with other digests a second time, while nothing changes.
    fn judge(
        &self,
        side: &SideFile,
        suspects: Vec<Block>,
        buffer: &mut [u8],
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        if suspects.is_empty() {
            return Ok(());
        }
        let number = side.summary.header.number;
        let mut damaged = Vec::new();
        {
            let _alone = self.maintenance.lock();
            let Some(sealed) = self.sealed(number) else {
                return Err(LogError::NotSealed { segment: number });
            };
            let file = self.open_for_scrub(number)?;
            if let Some(file) = &file
                && self.digests_are_wrong(&**file, &sealed)?
            {
                return Ok(());
            }
            for block in suspects {
                let found = file.as_ref().and_then(|file| block.digest_of(&**file, buffer));
                if found != Some(block.expected) {
                    damaged.push(block.damaged(side, found));
                }
            }
        }
        for block in damaged {
            self.note_damaged(pass, &block);
        }
        Ok(())
    }

    /// Whether every entry of a segment verifies although its digests differ: then they are made
    /// again. Called with the maintenance lock held.
    fn digests_are_wrong(&self, file: &dyn EnvFile, sealed: &Sealed) -> Result<bool> {
        let number = sealed.header.number;
        let path = self.segment_path(number);
        if file.len().map_err(|e| LogError::io("measure", &path, e))? != u64::from(sealed.end) {
            return Ok(false);
        }
        let end = (sealed.end, &sealed.last);
        let Ok(digests) = Digests::verified(file, &path, &sealed.header, end, |_, _| {}) else {
            return Ok(false);
        };
        tracing::error!(
            segment = number,
            "a side file has other digests than its segment, made again"
        );
        let side = SideFile { digests, ..(*self.sides.open(self, number)?).clone() };
        {
            let _ours = self.directory()?;
            side.write(&*self.env, &self.dir)?;
        }
        if let Some(Segment::Sealed(sealed)) =
            self.state.lock().segments.iter_mut().find(|segment| segment.number() == number)
        {
            sealed.digest = side.digests.segment;
        }
        self.sides.clear();
        Ok(true)
    }

    fn note_damaged(&self, pass: &mut Pass<'_>, block: &DamagedBlock) {
        pass.done.damaged += 1;
        let known = {
            let mut inner = self.scrubber.inner.lock();
            inner.damaged.insert((block.segment, block.block), block.clone()).is_some()
        };
        if !known {
            tracing::error!(?block, dir = %self.dir.display(), "a block of the log is damaged");
            let hooks = self.hooks.read().damaged.clone();
            for hook in hooks {
                hook(block);
            }
        }
    }
}

/// A block of a sealed segment, as its side file has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) expected: blake3::Hash,
    /// Whether it is the segment's last, behind which the file ends.
    pub(crate) is_last: bool,
}

impl Block {
    pub(crate) fn all(side: &SideFile) -> impl Iterator<Item = Self> {
        let count = side.digests.blocks.len();
        side.digests.blocks.iter().enumerate().map(move |(at, expected)| {
            let offset = at as u32 * BLOCK_BYTES;
            let bytes = (side.summary.end - offset).min(BLOCK_BYTES);
            let (number, expected) = (at as u32, *expected);
            Self { number, offset, bytes, expected, is_last: at + 1 == count }
        })
    }

    /// The digest of what stands in its place, behind the last block one more byte if there is one:
    /// a file that is too long is damaged too. `None` if it cannot be read.
    pub(crate) fn digest_of(&self, file: &dyn EnvFile, buffer: &mut [u8]) -> Option<blake3::Hash> {
        let bytes = &mut buffer[..self.bytes as usize + usize::from(self.is_last)];
        let (offset, len) = (u64::from(self.offset), bytes.len() as u64);
        // What the disk has is asked for, not what is left in memory of the last read; and a scrub
        // must not push out of memory what others read.
        let _ = file.drop_cached(offset, len);
        let read = file.read_passing(bytes, offset).ok()?;
        let _ = file.drop_cached(offset, len);
        Some(blake3::hash(&bytes[..read]))
    }

    fn damaged(&self, side: &SideFile, found: Option<blake3::Hash>) -> DamagedBlock {
        let (first, last) = entries_in(side, self.offset, self.offset + self.bytes);
        DamagedBlock {
            segment: side.summary.header.number,
            block: self.number,
            offset: self.offset,
            bytes: self.bytes,
            expected: Some(self.expected),
            found,
            first,
            last,
        }
    }
}

/// Entries that may have bytes in `[from, to)`, by the samples of the index.
fn entries_in(side: &SideFile, from: u32, to: u32) -> (Vlsn, Vlsn) {
    let samples = &side.summary.samples;
    let first = samples.partition_point(|sample| sample.offset <= from).saturating_sub(1);
    let after = samples.get(samples.partition_point(|sample| sample.offset < to));
    let first = samples.get(first).map_or(side.summary.header.first, |sample| sample.vlsn);
    (first, after.map_or(side.summary.last.vlsn, |sample| sample.vlsn.prev()))
}

/// The damage of a segment whose side file is lost as well: its first bad place.
fn without_digests(sealed: &Sealed, offset: u64) -> DamagedBlock {
    let block = offset as u32 / BLOCK_BYTES;
    let begins = block * BLOCK_BYTES;
    DamagedBlock {
        segment: sealed.header.number,
        block,
        offset: begins,
        bytes: sealed.end.saturating_sub(begins).min(BLOCK_BYTES),
        expected: None,
        found: None,
        first: sealed.header.first,
        last: sealed.last.vlsn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_any_stretch_and_lost_time_is_not_made_up_for() {
        let mut pace = Pace::new(1000);
        let ms = Duration::from_millis;
        assert_eq!(pace.begin(ms(0), 500), ms(0));
        assert_eq!(pace.begin(ms(1), 500), ms(500));
        assert_eq!(pace.begin(ms(900), 1), ms(1000));
        assert_eq!(pace.begin(ms(60_000), 1000), ms(60_000));
        assert_eq!(pace.begin(ms(60_001), 1000), ms(61_000));
        let mut random = fastrand::Rng::with_seed(1);
        let mut pace = Pace::new(1 << 20);
        let (mut now, mut reads) = (Duration::ZERO, Vec::new());
        for _ in 0..1000 {
            now += Duration::from_micros(random.u64(0..300_000));
            let bytes = random.u64(1..300_000);
            now = pace.begin(now, bytes);
            reads.push((now, bytes));
        }
        for (at, (begin, _)) in reads.iter().enumerate().step_by(37) {
            let mut bytes = 0;
            for (end, more) in &reads[at..] {
                let stretch = end.saturating_sub(*begin);
                let allowed = (stretch.as_secs_f64() * f64::from(1 << 20)).ceil();
                assert!(f64::from(bytes as u32) <= allowed + 1.0, "{bytes} in {stretch:?}");
                bytes += more;
            }
        }
    }

    #[test]
    fn no_rate_is_slow_and_none_is_endless() {
        assert_eq!(Pace::new(0).bytes_per_second, 1);
        let mut fast = Pace::new(u64::MAX);
        assert_eq!(fast.begin(Duration::ZERO, u64::from(BLOCK_BYTES)), Duration::ZERO);
        assert!(fast.begin(Duration::ZERO, 1) < Duration::from_micros(1));
        let mut slow = Pace::new(1);
        slow.begin(Duration::ZERO, u64::MAX);
        slow.begin(Duration::ZERO, u64::MAX);
    }

    #[test]
    fn what_was_read_longest_ago_comes_first_and_before_it_what_never_was() {
        let mut inner = Inner { start: Some(12), ..Inner::default() };
        let numbers: Vec<u32> = (3..=7).collect();
        // 12 % 5 = 2: from the third on, around.
        assert_eq!(inner.order(numbers.clone()), [5, 6, 7, 3, 4]);
        let now = Instant::now();
        for (number, second) in [(5, 9), (6, 1), (7, 5)] {
            inner.read_at.insert(number, now + Duration::from_secs(second));
        }
        assert_eq!(inner.order(numbers.clone()), [3, 4, 6, 7, 5]);
        inner.read_at.insert(3, now);
        inner.read_at.insert(4, now + Duration::from_secs(2));
        assert_eq!(inner.order(numbers), [3, 6, 4, 7, 5]);
        assert_eq!(inner.order(vec![6, 7]), [6, 7]);
        assert_eq!(inner.read_at.len(), 2, "dropped segments are forgotten");
        assert_eq!(inner.order(Vec::new()), []);
    }
}
