//! Disk: one machine's disk: how long a sync takes, what goes wrong, what is left after a crash.
//!
//! What is on it is [`FaultEnv`]'s business; the time that a sync takes is the world's: it draws
//! [`Disk::sync_takes`], lets so much time pass, and then makes the call.
//!
//! # Not here: when something is to go wrong (schedule.rs), how much may (atlas.rs).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use noxu_log::env::{Env, Fault, FaultEnv, Survivors};
use noxu_log::segment::name::{log_dir, parse_segment_name, parse_side_name};

use crate::dice::Dice;
use crate::event::Nanos;

/// How the disks behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// The least time that a sync takes.
    pub sync: Duration,
    /// How much is drawn on top of it, at most.
    pub jitter: Duration,
}

impl Default for DiskPlan {
    fn default() -> Self {
        Self { sync: Duration::from_micros(300), jitter: Duration::from_micros(700) }
    }
}

/// A file of a node whose bytes may rot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rot {
    /// One byte of a segment's entries.
    Entry,
    /// The header of a segment.
    SegmentHeader,
    /// The side file of a sealed segment.
    SideFile,
    /// One of the slots of the control file.
    ControlSlot,
    /// One of the slots of the tail mark.
    MarkSlot,
}

/// Where something rotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotten {
    /// The file.
    pub path: PathBuf,
    /// Number of the segment, if it is in one or beside one.
    pub segment: Option<u32>,
    /// The byte.
    pub offset: u64,
}

/// The file with the tail mark.
const MARK_FILE: &str = "tail-mark";

/// One machine's disk.
#[derive(Debug)]
pub struct Disk {
    env: FaultEnv,
    dir: PathBuf,
    plan: DiskPlan,
    rng: Rng,
    /// How many times as long as planned a sync takes.
    slowness: u32,
    stalled_until: Nanos,
    full: bool,
    broken: bool,
    /// A power loss leaves nothing that was not synced.
    loses_all: bool,
    /// A machine's identity numbers: of its first directory, of the next after a wipe.
    directories: u64,
    dice: Dice,
    name: String,
}

/// Bytes of a segment's header that are looked at when it is opened.
const HEADER_BYTES: u64 = 64;
/// Where the slots of control file and tail mark begin.
pub(crate) const SLOT_STRIDE: u64 = 4096;

impl Disk {
    /// An empty one; the node's directory will be `dir`.
    pub fn new(dice: Dice, name: &str, dir: &Path, plan: DiskPlan) -> Self {
        let mut disk = Self {
            env: FaultEnv::new(),
            dir: dir.to_owned(),
            plan,
            rng: dice.stream(&format!("disk of {name}")),
            slowness: 1,
            stalled_until: Nanos::default(),
            full: false,
            broken: false,
            loses_all: false,
            directories: 0,
            dice,
            name: name.to_owned(),
        };
        disk.wipe();
        disk
    }

    /// What is on it, for the process that runs now.
    pub fn env(&self) -> FaultEnv {
        self.env.clone()
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How long a sync that begins now takes.
    pub fn sync_takes(&mut self, now: Nanos) -> Duration {
        let drawn = self.plan.sync + self.plan.jitter.mul_f64(self.rng.f64());
        drawn * self.slowness + self.stalled_until.since(now)
    }

    /// Syncs take so many times as long.
    pub fn slow_down(&mut self, times: u32) {
        self.slowness = times.max(1);
    }

    /// No sync ends before then.
    pub fn stall_until(&mut self, until: Nanos) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// There is no room, or there is again.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
        self.env.set_full(full);
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The next sync fails: the disk is broken until the machine restarts.
    pub fn break_next_sync(&mut self) {
        self.env.fail_next("sync_data", Fault::IO);
        self.broken = true;
    }

    /// Whether a sync of the machine that runs now has failed, or is to.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Nothing that was to go wrong does any more.
    pub fn forget_faults(&mut self) {
        self.env.stop_faults();
        self.env.crash_at(u64::MAX);
        self.stalled_until = Nanos::default();
    }

    /// The power goes in the middle of a call, that many calls from now.
    pub fn crash_in(&self, calls: u64) {
        self.env.crash_at(self.env.calls() + calls.max(1));
    }

    /// Whether the power has gone in the middle of a call.
    pub fn has_crashed(&self) -> bool {
        self.env.has_crashed()
    }

    /// Whether a power loss leaves nothing that was not synced.
    pub fn lose_all_unsynced(&mut self, all: bool) {
        self.loses_all = all;
    }

    /// The power goes: any part of what was not synced is lost.
    pub fn lose_power(&mut self) {
        let drawn = Survivors::Random(self.rng.u64(..));
        let survivors = if self.loses_all { Survivors::None } else { drawn };
        self.replace(|env| env.crash_keeping(survivors));
    }

    /// The process dies; what it wrote stays.
    pub fn kill(&mut self) {
        self.replace(FaultEnv::kill);
    }

    fn replace(&mut self, leave: impl FnOnce(&FaultEnv) -> FaultEnv) {
        self.env = leave(&self.env);
        self.env.set_full(self.full);
        self.broken = false;
    }

    /// An empty disk is put in.
    pub fn wipe(&mut self) {
        self.directories += 1;
        self.env = FaultEnv::new();
        self.broken = false;
        self.env.keep_trace(false);
        let concern = format!("entropy of {} {}", self.name, self.directories);
        self.env.seed_entropy(self.dice.number(&concern));
        self.env.set_full(self.full);
    }

    /// One byte rots, unnoticed; `None` if there is no such file yet. `place` draws which.
    ///
    /// # Errors
    /// None of a disk that has not crashed.
    pub fn find_rot(&self, what: Rot, place: u64) -> io::Result<Option<Rotten>> {
        let mut rng = Rng::with_seed(place);
        let (path, segment, range) = match what {
            Rot::Entry | Rot::SegmentHeader | Rot::SideFile => {
                let parse =
                    if what == Rot::SideFile { parse_side_name } else { parse_segment_name };
                let dir = log_dir(&self.dir);
                if !self.env.exists(&dir)? {
                    return Ok(None);
                }
                let names = self.env.list(&dir)?;
                let files: Vec<_> =
                    names.iter().filter_map(|name| Some((parse(name)?, dir.join(name)))).collect();
                let Some((number, path)) = rng.choice(files) else { return Ok(None) };
                let len = self.len(&path)?;
                let range = match what {
                    Rot::SegmentHeader => 0..HEADER_BYTES.min(len),
                    Rot::Entry => HEADER_BYTES.min(len)..len,
                    Rot::SideFile | Rot::ControlSlot | Rot::MarkSlot => 0..len,
                };
                (path, Some(number), range)
            }
            Rot::ControlSlot => {
                let first = rng.u64(..4) * SLOT_STRIDE;
                (self.dir.join("control"), None, first..first + 64)
            }
            Rot::MarkSlot => {
                let first = rng.u64(..2) * SLOT_STRIDE;
                (self.dir.join(MARK_FILE), None, first..first + 32)
            }
        };
        if !self.env.exists(&path)? || range.is_empty() || self.len(&path)? < range.end {
            return Ok(None);
        }
        Ok(Some(Rotten { path, segment, offset: rng.u64(range) }))
    }

    /// Makes one byte rot.
    ///
    /// # Errors
    /// There is no such byte.
    pub fn rot(&self, rotten: &Rotten) -> io::Result<()> {
        self.env.corrupt(&rotten.path, rotten.offset, 0x55)
    }

    /// Whether there is a tail mark to be lost.
    pub(crate) fn has_mark(&self) -> bool {
        self.len(&self.dir.join(MARK_FILE)).is_ok_and(|len| len >= SLOT_STRIDE + 32)
    }

    /// Both slots of the tail mark rot.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn lose_mark(&self) -> io::Result<()> {
        let path = self.dir.join(MARK_FILE);
        (0..2).try_for_each(|slot| self.env.corrupt(&path, slot * SLOT_STRIDE, 0x55))
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.env.open(path, noxu_log::env::OpenMode::Read)?.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use noxu_log::{Background, GroupIdentity, Log, LogConfig, LogError};
    use noxu_util::{GroupId, Term, Vlsn};

    use super::*;

    fn open(disk: &Disk) -> noxu_log::Result<Log> {
        let config =
            LogConfig { background: Background::Caller, prefill: false, ..LogConfig::default() };
        let (log, _) = Log::open(Arc::new(disk.env()), disk.dir(), config)?;
        log.found(GroupIdentity {
            id: GroupId::from_bytes([1; 16]),
            name: "g".parse().unwrap(),
            segment_bytes: 4 << 10,
        })?;
        Ok(log)
    }

    fn append(log: &Log, count: usize) {
        for _ in 0..count {
            let entry = noxu_log::NewEntry::new(
                noxu_log::EntryKind(16),
                noxu_log::EntryFlags::COMMIT,
                &[7; 300],
            );
            log.append(Term::new(1), &[entry]).unwrap();
        }
    }

    fn disk(seed: u64) -> Disk {
        Disk::new(Dice::new(seed), "n1", Path::new("/n1"), DiskPlan::default())
    }

    #[test]
    fn a_power_loss_keeps_what_was_synced_and_a_kill_what_was_written() {
        let mut disk = disk(1);
        let log = open(&disk).unwrap();
        append(&log, 5);
        log.sync_now().unwrap();
        append(&log, 5);
        disk.lose_power();
        assert!(matches!(log.sync_now(), Err(LogError::Poisoned { .. } | LogError::Io { .. })));
        let log = open(&disk).unwrap();
        assert!((5..=10).contains(&log.positions().last.sequence()));
        append(&log, 5);
        let last = log.positions().last;
        log.write_now().unwrap();
        disk.kill();
        assert_eq!(open(&disk).unwrap().positions().last, last);
    }

    #[test]
    fn a_crash_inside_a_call_stops_everything_that_comes_after() {
        let disk = disk(2);
        let log = open(&disk).unwrap();
        append(&log, 5);
        disk.crash_in(2);
        assert!(log.sync_now().is_err());
        assert!(disk.has_crashed());
    }

    #[test]
    fn syncs_take_as_long_as_the_disk_is_slow_and_stalled() {
        let mut disk = disk(3);
        let plan = DiskPlan::default();
        let most = plan.sync + plan.jitter;
        assert!((plan.sync..=most).contains(&disk.sync_takes(Nanos(0))));
        disk.slow_down(10);
        assert!(disk.sync_takes(Nanos(0)) >= plan.sync * 10);
        disk.slow_down(0);
        disk.stall_until(Nanos(5_000_000_000));
        assert!(disk.sync_takes(Nanos(1_000_000_000)) >= Duration::from_secs(4));
        assert!(disk.sync_takes(Nanos(6_000_000_000)) <= most);
    }

    #[test]
    fn a_broken_sync_stops_the_log_and_a_full_disk_makes_it_read_only() {
        let mut disk = disk(4);
        let log = open(&disk).unwrap();
        append(&log, 1);
        disk.break_next_sync();
        assert!(log.sync_now().is_err());
        disk.kill();
        let log = open(&disk).unwrap();
        disk.set_full(true);
        append(&log, 40);
        assert!(log.sync_now().is_err() && log.read_only().is_some());
    }

    #[test]
    fn every_kind_of_rot_finds_its_byte_and_a_wiped_disk_is_another_directory() {
        let mut disk = disk(5);
        assert_eq!(disk.find_rot(Rot::Entry, 1).unwrap(), None);
        let log = open(&disk).unwrap();
        append(&log, 60);
        log.sync_now().unwrap();
        log.settle(Vlsn::new(60));
        while log.pending().is_any() {
            log.upkeep().unwrap();
        }
        let incarnation = log.control().state().incarnation;
        for what in [Rot::Entry, Rot::SegmentHeader, Rot::SideFile, Rot::ControlSlot, Rot::MarkSlot]
        {
            let rotten = disk.find_rot(what, 7).unwrap().expect("there is such a file");
            assert_eq!(rotten, disk.find_rot(what, 7).unwrap().unwrap());
            disk.rot(&rotten).unwrap();
        }
        disk.wipe();
        let log = open(&disk).unwrap();
        assert_ne!(log.control().state().incarnation, incarnation);
        assert!(log.positions().is_empty());
    }
}
