//! Restore: network restores of a size, under what may happen to them.
//!
//! # Scenes
//! 1. From followers only: the master gives nothing of segments and state.
//! 2. The restoring node is killed over and over, while clients write: it ends, and no more is fetched
//!    twice than was not synced.
//! 3. The same, with a log whose front is gone: the state comes too, and what was made of it before a kill
//!    is not made again.
//! 4. Clients write without pause, the log's window is small, the copy is slow: the master's log stays
//!    within the window, and the restored node becomes master.
//!
//! After each of them everything that was acknowledged is at the restored node.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use noxu_log::env::{Env, RealEnv};

use super::series::Series;
use super::watch::{BLOCK_BYTES, Far, watch};
use crate::cli::demo::process::NodeProcess;
use crate::cli::error::CliError;
use crate::cli::info::Info;
use crate::cli::out::print_line;
use crate::cli::sizes::{parse_bytes, show_bytes, show_count};

/// Try network restores: from followers only, killed over and over, beside writers that never stop
#[derive(Debug, Args)]
#[command(
    after_help = "Three nodes are processes with real files and loopback TCP. Everything happens in a
temporary directory, which is removed unless something differs or --keep is given.

Examples:
  noxu trial restore
  noxu trial restore --bytes 10GiB --dir /var/tmp
  noxu trial restore --bytes 512MiB --kill-every 1"
)]
pub(super) struct Restore {
    /// Bytes of values that are loaded before; nine times as much room is needed
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_bytes)]
    bytes: u64,
    /// Kill the restoring node when it has restored for so long, again and again
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    kill_every: f64,
    /// At least so many times: the restore is slowed down for that
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    kills: u32,
    /// Have the last restore, beside the writers, take at least so long
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    slow: u32,
    /// Log that the master may keep meanwhile [default: a quarter of --bytes]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    window: Option<u64>,
    /// Work below this directory [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the directory in any case
    #[arg(long)]
    keep: bool,
}

/// Length of the values that are loaded, and of those that are written meanwhile.
const LOADED_VALUE_BYTES: usize = 64 << 10;
const WRITTEN_VALUE_BYTES: usize = 16 << 10;
/// Pace of writers that write as fast as they are answered, in bytes a second.
const UNPACED: u64 = u64::MAX;
/// How long the writers beside kills would take for as much as was loaded.
const WRITTEN_SECONDS: u64 = 2000;
/// Room that a trial takes, in times of what is loaded: log and state of three nodes, a log that is being
/// restored, and what is written meanwhile.
const ROOM: u64 = 9;
/// Series that are written at once.
const WRITERS: usize = 4;
/// Sizes of the log's files.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 20;
/// Kills after which a restore that does not end has failed.
const MOST_KILLS: u32 = 1000;
/// The block that is one too many unsynced.
const ONE_TOO_MANY: u64 = 1;
/// Bytes of a state between two syncs, and one answer.
const STATE_UNSYNCED_BYTES: u64 = (16 + 1) << 20;

impl Restore {
    pub(super) fn run(self) -> Result<(), CliError> {
        if !Duration::try_from_secs_f64(self.kill_every).is_ok_and(|every| !every.is_zero()) {
            let found = self.kill_every;
            return Err(CliError::Usage(format!("--kill-every {found}: more than 0 expected")));
        }
        let below = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("noxu-trial-")
            .tempdir_in(&below)
            .map_err(CliError::file(below))?;
        let free = RealEnv::new().free_bytes(dir.path()).map_err(CliError::file(dir.path()))?;
        let needed = self.bytes.saturating_mul(ROOM);
        if free < needed {
            let (free, needed) = (show_bytes(free), show_bytes(needed));
            return Err(CliError::Usage(format!(
                "--bytes {}: {needed} may be needed, {free} are free below {}",
                show_bytes(self.bytes),
                dir.path().display()
            )));
        }
        let started = Instant::now();
        let done = Trial::new(&self, dir.path()).play();
        if self.keep || matches!(done, Err(CliError::Differs(_))) {
            print_line!("kept: {}", dir.keep().display())?;
        }
        done?;
        print_line!("all of it in {:.1?}: everything checked is as promised", started.elapsed())
    }
}

/// Says what was just seen.
macro_rules! say {
    ($($part:tt)*) => { print_line!("   {}", format_args!($($part)*)) };
}

/// The group, and what it must hold.
struct Trial<'a> {
    order: &'a Restore,
    nodes: [NodeProcess; 3],
    loaded: Series,
    written: Vec<Series>,
}

/// What the kills of a restore cost.
#[derive(Debug, Default)]
struct Killed {
    times: u32,
    /// Where it was when it was over.
    end: Far,
    /// Blocks of the log, and bytes of the state, that were fetched twice.
    blocks: Twice,
    state: Twice,
}

#[derive(Debug, Default)]
struct Twice {
    sum: u64,
    /// For one kill.
    worst: u64,
}

impl Killed {
    /// A session was `before` when it was killed; the next one is `far`. Returns what is there now.
    fn note(&mut self, before: Far, far: Far) -> Far {
        self.blocks.add(before.done.saturating_sub(far.reused));
        if far.checkpoint == 0 {
            // Of the state nothing is said before the log is there.
            return Far { checkpoint: before.checkpoint, ..far };
        }
        self.state.add(before.checkpoint.saturating_sub(far.checkpoint_reused));
        far
    }
}

impl Twice {
    fn add(&mut self, lost: u64) {
        self.sum += lost;
        self.worst = self.worst.max(lost);
    }
}

const N1: usize = 0;
const N2: usize = 1;
const N3: usize = 2;

impl<'a> Trial<'a> {
    fn new(order: &'a Restore, dir: &Path) -> Self {
        let writer = |number| Series::new(&format!("writer{number}"), WRITTEN_VALUE_BYTES);
        Self {
            order,
            nodes: ["n1", "n2", "n3"].map(|name| NodeProcess::new(name, dir)),
            loaded: Series::new("loaded", LOADED_VALUE_BYTES),
            written: (0..WRITERS).map(writer).collect(),
        }
    }

    fn play(&mut self) -> Result<(), CliError> {
        print_line!("load: {} on three nodes", show_bytes(self.order.bytes))?;
        self.load()?;
        print_line!("1. n3 is restored from followers only")?;
        self.spare_master()?;
        print_line!("2. n3 is restored and killed every {} s (SIGKILL)", self.order.kill_every)?;
        self.killed()?;
        print_line!("3. the same, with a log so short that the state comes too")?;
        self.killed_with_state()?;
        print_line!("4. n3 is restored slowly, while clients write and the log's window is small")?;
        self.beside_writers()?;
        for which in [N1, N2, N3] {
            self.nodes[which].stop()?;
        }
        Ok(())
    }

    fn segment_bytes(&self) -> u64 {
        (self.order.bytes / 64).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end())
    }

    /// Most bytes of a restore that are not synced.
    fn sync_bytes(&self) -> u64 {
        (self.order.bytes / 32).clamp(4 * BLOCK_BYTES, 64 << 20)
    }

    /// Starts a node with what is its own in this trial, and `further`.
    fn start(&mut self, which: usize, further: &[String]) -> Result<(), CliError> {
        let others = self.nodes.iter().enumerate().filter(|(at, n)| *at != which && n.is_running());
        let mut arguments: Vec<String> =
            others.flat_map(|(_, n)| ["--peer".to_owned(), n.peer_addr.clone()]).collect();
        // n1 is the master as long as it is there, then n3.
        arguments.extend(["--priority".to_owned(), ["9", "0", "5"][which].to_owned()]);
        arguments.extend(["--restore-sync".to_owned(), self.sync_bytes().to_string()]);
        arguments.extend_from_slice(further);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.nodes[which].start(&arguments).map(drop)
    }

    fn load(&mut self) -> Result<(), CliError> {
        let keep =
            vec!["--keep-bytes=1048576GiB".to_owned(), "--max-log-bytes=1048576GiB".to_owned()];
        let mut found = keep.clone();
        found.extend(["--create-group=trial".to_owned(), "--members=n1,n2,n3".to_owned()]);
        found.push(format!("--segment-size={}", self.segment_bytes()));
        self.start(N1, &found)?;
        self.start(N2, &keep)?;
        self.start(N3, &keep)?;
        self.wait_replicas(2)?;
        let started = Instant::now();
        let all_at_once = (self.order.bytes, UNPACED);
        self.loaded.write(&self.nodes[N1], all_at_once, &AtomicBool::new(false))?;
        say!(
            "{} values, {} in {:.1?}",
            show_count(self.loaded.acknowledged()),
            show_bytes(self.loaded.bytes()),
            started.elapsed()
        )
    }

    /// Waits until n1 is master and feeds so many.
    fn wait_replicas(&self, count: i64) -> Result<(), CliError> {
        self.nodes[N1].wait_for("mastership with replicas", |info| {
            (info.number("connected_slaves") == Some(count)).then_some(())
        })
    }

    /// Everybody has all of it, and has finished what can be finished: sealed segments, a checkpoint.
    fn settle(&self) -> Result<(), CliError> {
        let last = self.nodes[N1].info()?.number("last_vlsn").unwrap_or(0);
        for node in &self.nodes {
            node.wait_applied(last)?;
            node.client()?.call(&[b"NOXU", b"CHECKPOINT"])?;
        }
        let sealed = |info: &Info| info.number("sealed_segments");
        let wanted = self.nodes[N1].wait_for("sealed segments", sealed)?;
        self.nodes[N2].wait_for("as many sealed segments as n1", |info| {
            sealed(info).filter(|found| *found >= wanted)
        })?;
        Ok(())
    }

    fn order_restore(&self) -> Result<(), CliError> {
        self.nodes[N3].client()?.call(&[b"NOXU", b"RESTORE"]).map(drop).map_err(Into::into)
    }

    /// Everything acknowledged is at n3.
    fn check(&self) -> Result<(), CliError> {
        let last = self.nodes[N1].info()?.number("last_vlsn").unwrap_or(0);
        let n3 = &self.nodes[N3];
        n3.wait_applied(last)?;
        let mut count = 0;
        for series in self.written.iter().chain([&self.loaded]) {
            series.check(n3)?;
            count += series.acknowledged();
        }
        say!("n3 holds all {} values that were acknowledged", show_count(count))
    }

    fn spare_master(&self) -> Result<(), CliError> {
        self.settle()?;
        let started = Instant::now();
        self.order_restore()?;
        let info = watch(&self.nodes[N3], || Ok(()), |_| false)?;
        let info = info.ok_or_else(|| CliError::Failed("the restore did not end".to_owned()))?;
        say!("restored in {:.1?}", started.elapsed())?;
        let mut of_master = None;
        for (source, given) in info.all("restore_from_") {
            say!("restore_from_{source}: {given}")?;
            if source == self.nodes[N1].name {
                of_master = Some(given == "0 blocks, 0 bytes");
            }
        }
        if of_master != Some(true) {
            return Err(CliError::Differs(
                "the master gave blocks though a follower had them".to_owned(),
            ));
        }
        self.check()
    }

    /// Runs `scene` while clients write at n1, each at most `pace` bytes a second.
    fn while_writing<T>(
        &mut self,
        pace: u64,
        scene: impl FnOnce(&mut [NodeProcess; 3], &[Series]) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let Self { nodes, written, .. } = self;
        // A handle of its own: `scene` starts and kills n3.
        let mut master = NodeProcess::new(nodes[N1].name, Path::new(""));
        master.client_addr.clone_from(&nodes[N1].client_addr);
        let (stop, master) = (AtomicBool::new(false), &master);
        std::thread::scope(|scope| {
            let writers: Vec<_> = written
                .iter()
                .map(|series| scope.spawn(|| series.write(master, (u64::MAX, pace), &stop)))
                .collect();
            let seen = scene(nodes, written);
            stop.store(true, Ordering::Release);
            for writer in writers {
                let panicked = |_| Err(CliError::Failed("a writer panicked".to_owned()));
                writer.join().unwrap_or_else(panicked)?;
            }
            seen
        })
    }

    /// Orders a restore of n3, of about so many bytes, which is started with `further` and killed over and
    /// over, while clients write.
    fn kill_until_restored(&mut self, bytes: u64, further: &[String]) -> Result<Killed, CliError> {
        let every = Duration::from_secs_f64(self.order.kill_every);
        // So slow that it takes as many kills.
        let time = every.as_secs_f64() * f64::from(self.order.kills);
        let rate = ((bytes as f64 / time) as u64).max(1);
        let mut arguments = vec![
            format!("--peer={}", self.nodes[N1].peer_addr),
            format!("--peer={}", self.nodes[N2].peer_addr),
            "--priority=5".to_owned(),
            format!("--restore-sync={}", self.sync_bytes()),
            format!("--restore-rate={rate}"),
        ];
        arguments.extend_from_slice(further);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.nodes[N3].stop()?;
        self.nodes[N3].start(&arguments)?;
        self.order_restore()?;
        // What is written is restored too, and stays on three disks: it is not to become most of it,
        // however long a disk takes.
        let pace = (self.order.bytes / WRITTEN_SECONDS / WRITERS as u64).max(1);
        let killed = self.while_writing(pace, |nodes, _| {
            let n3 = &mut nodes[N3];
            let (mut killed, mut before) = (Killed::default(), None::<Far>);
            loop {
                let began = Instant::now();
                let seen = Cell::new(None);
                let ended = watch(
                    n3,
                    || Ok(()),
                    |info| {
                        seen.set(Far::of(info).or(seen.get()));
                        began.elapsed() >= every
                    },
                )?;
                let far = match &ended {
                    Some(info) => Far::of(info),
                    None => seen.get(),
                };
                before = match (before, far) {
                    (Some(before), Some(far)) => Some(killed.note(before, far)),
                    (before, far) => far.or(before),
                };
                if ended.is_some() {
                    killed.end = before.unwrap_or_default();
                    return Ok(killed);
                }
                n3.kill();
                killed.times += 1;
                if killed.times > MOST_KILLS {
                    return Err(CliError::Differs(format!(
                        "not restored after {} kills",
                        killed.times
                    )));
                }
                n3.start(&arguments)?;
            }
        })?;
        if killed.times == 0 {
            return Err(CliError::Failed("the restore was over before the first kill".to_owned()));
        }
        Ok(killed)
    }

    fn killed(&mut self) -> Result<(), CliError> {
        self.settle()?;
        let all = ["--keep-bytes=1048576GiB".to_owned(), "--max-log-bytes=1048576GiB".to_owned()];
        let Killed { times, end, blocks: Twice { sum, worst }, .. } =
            self.kill_until_restored(self.order.bytes, &all)?;
        let most = self.sync_bytes() / BLOCK_BYTES + ONE_TOO_MANY;
        say!("restored after {times} kills: {} blocks of the log at last", end.total)?;
        say!(
            "{sum} blocks fetched twice, {worst} at most for one kill; unsynced are at most {most}"
        )?;
        if worst > most {
            return Err(CliError::Differs(format!(
                "a kill cost {worst} blocks, of which at most {most} were not synced"
            )));
        }
        self.check()
    }

    /// The same with a log whose front is gone: most of what comes is the state.
    fn killed_with_state(&mut self) -> Result<(), CliError> {
        let small = self.shorten_logs()?;
        let Killed { times, end, state: Twice { sum, worst }, .. } =
            self.kill_until_restored(self.order.bytes, &small)?;
        say!(
            "restored after {times} kills: {} of state at last, {} fetched twice, {} at most for one kill",
            show_bytes(end.checkpoint),
            show_bytes(sum),
            show_bytes(worst)
        )?;
        if end.checkpoint < self.order.bytes / 2 {
            return Err(CliError::Differs("the state was not what came".to_owned()));
        }
        if worst > STATE_UNSYNCED_BYTES {
            return Err(CliError::Differs(format!(
                "a kill cost {worst} bytes of the state, of which at most {STATE_UNSYNCED_BYTES} \
                 were not synced"
            )));
        }
        self.check()
    }

    /// Log that a master may keep where the front of it goes.
    fn window(&self) -> u64 {
        self.order.window.unwrap_or(self.order.bytes / 4).max(8 * self.segment_bytes())
    }

    /// Has all nodes keep only the newest of their logs from now on; returns how they are started.
    fn shorten_logs(&mut self) -> Result<[String; 2], CliError> {
        let (segment, window) = (self.segment_bytes(), self.window());
        let small = [format!("--keep-bytes={}", 2 * segment), format!("--max-log-bytes={window}")];
        for which in [N3, N2, N1] {
            self.nodes[which].stop()?;
        }
        self.start(N1, &small)?;
        self.start(N2, &small)?;
        // Before n3 is there, which would be elected as readily.
        self.wait_replicas(1)?;
        self.start(N3, &small)?;
        self.wait_replicas(2)?;
        self.settle()?;
        self.nodes[N1].wait_for("a log within the window", |info| {
            info.number("kept_bytes").filter(|kept| *kept as u64 <= window)
        })?;
        Ok(small)
    }

    fn beside_writers(&mut self) -> Result<(), CliError> {
        let (segment, window) = (self.segment_bytes(), self.window());
        let mut slow = self.shorten_logs()?.to_vec();
        slow.push(format!(
            "--restore-rate={}",
            self.order.bytes / u64::from(self.order.slow.max(1))
        ));
        self.nodes[N3].stop()?;
        self.start(N3, &slow)?;
        self.wait_replicas(2)?;
        let bytes = |written: &[Series]| written.iter().map(Series::bytes).sum::<u64>();
        let started = Instant::now();
        let (most, holder, during) = self.while_writing(UNPACED, |nodes, written| {
            let before = bytes(written);
            nodes[N3].client()?.call(&[b"NOXU", b"RESTORE"])?;
            let mut master = nodes[N1].client()?;
            let (mut most, mut holder) = (0, String::new());
            let look = || {
                let info = Info::ask(&mut master)?;
                let kept = info.number("kept_bytes").unwrap_or(0).max(0) as u64;
                if kept > most {
                    most = kept;
                    info.text("front_held_by").unwrap_or_default().clone_into(&mut holder);
                }
                Ok(())
            };
            let committed = Cell::new(false);
            let begins_again = |info: &Info| {
                let phase = info.text("restore_phase").unwrap_or_default();
                let again = committed.get() && phase != "Committed";
                committed.set(committed.get() || phase == "Committed");
                again
            };
            let since = Instant::now();
            if watch(&nodes[N3], look, begins_again)?.is_none() {
                return Err(CliError::Differs(format!(
                    "n3 was restored and lost its place in the master's log while it was installed: \
                     another restore began {:.1?} after the first, while {} were written",
                    since.elapsed(),
                    show_bytes(bytes(written) - before)
                )));
            }
            Ok((most, holder, bytes(written) - before))
        })?;
        let info = self.nodes[N3].info()?;
        let fetched = info.number("restore_bytes_fetched").unwrap_or(0).max(0) as u64;
        say!(
            "restored in {:.1?}: {} fetched, while {} were written",
            started.elapsed(),
            show_bytes(fetched),
            show_bytes(during)
        )?;
        let lost = self.nodes[N1].info()?.number("lost_places").unwrap_or(0);
        say!(
            "the master's log: {} at most, held by {holder}; window {}; {lost} places lost",
            show_bytes(most),
            show_bytes(window)
        )?;
        // Whole files go, once they are finished and the next one is begun.
        if most > window + 2 * segment {
            return Err(CliError::Differs(format!(
                "the master kept {most} bytes of log, {window} and two files at most expected"
            )));
        }
        self.check()?;
        self.nodes[N1].stop()?;
        let started = Instant::now();
        self.nodes[N3]
            .wait_for("mastership", |info| (info.text("role") == Some("master")).then_some(()))?;
        say!("n1 stopped: n3 is master after {:.2?}", started.elapsed())?;
        let one = Series::new("by n3", LOADED_VALUE_BYTES);
        let at_once = (LOADED_VALUE_BYTES as u64, UNPACED);
        one.write(&self.nodes[N3], at_once, &AtomicBool::new(false))?;
        one.check(&self.nodes[N3])
    }
}
