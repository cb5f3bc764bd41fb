//! Tests of the network restore: a real log and provider on one side, a disk that can crash at
//! every call on the other.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use noxu_log::Log;
use noxu_log::env::{Env, FaultEnv, MemoryEnv, read_whole, write_whole};
use noxu_log::{
    Cut, EntryFlags, EntryKind, EntryRun, GroupIdentity, LogConfig, LogError, LostEntries,
    NewEntry, RetentionConfig,
};
use noxu_util::{GroupId, NULL_VLSN, Name, Term};
use parking_lot::Mutex;

use super::install::{Recovered, install, recover};
use super::provider::{RestoreProvider, Serving};
use super::session::{Restoring, fetch, is_committed, is_pending};
use super::*;
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::mutant::Mutant;
use crate::net::channel::{Channel, LocalChannelPair};
use crate::stream::log_view::LogView;
use crate::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, feeder_syncup_handshake, replica_syncup,
};
use crate::sync::{Checkpoint, LogReader, StateMachine};
use crate::wire::handshake::NodeKind;
use crate::wire::restore::RestoreMsg;

const DIR: &str = "/n2";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn v(n: i64) -> Vlsn {
    Vlsn::new(n)
}

fn group(segment_bytes: u32) -> GroupIdentity {
    let id = GroupId::from_bytes(*b"group-of-sixteen");
    GroupIdentity { id, name: name("orders"), segment_bytes }
}

/// Keeps nothing below a checkpoint, once the log is told of one, whoever needs it.
fn config() -> LogConfig {
    let retention =
        RetentionConfig { keep_bytes: 0, byte_budget: Some(1), ..RetentionConfig::default() };
    let sync_interval = Duration::from_hours(1);
    LogConfig { prefill: false, sync_interval, retention, ..LogConfig::default() }
}

/// A state machine whose state is a text, kept in a file of the environment.
struct Machine {
    env: Arc<dyn Env>,
    path: PathBuf,
    state: Mutex<(Vlsn, Vec<u8>)>,
}

impl Machine {
    fn open(env: &Arc<dyn Env>, path: &str) -> Arc<Self> {
        let path = PathBuf::from(path);
        let state = read_whole(&**env, &path).map_or((NULL_VLSN, Vec::new()), |bytes| {
            let (vlsn, text) = bytes.split_first_chunk::<8>().unwrap();
            (v(i64::from_le_bytes(*vlsn)), text.to_vec())
        });
        Arc::new(Self { env: Arc::clone(env), path, state: Mutex::new(state) })
    }

    fn set(&self, vlsn: Vlsn, text: &[u8]) -> Result<()> {
        let bytes = [&vlsn.sequence().to_le_bytes()[..], text].concat();
        write_whole(&*self.env, &self.path, &bytes)?;
        *self.state.lock() = (vlsn, text.to_vec());
        Ok(())
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> Vlsn {
        self.state.lock().0
    }

    fn apply(&self, _run: &EntryRun, _through: Vlsn) -> Result<()> {
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
        assert_eq!(matchpoint, NULL_VLSN, "a restore without a checkpoint begins anew");
        self.set(NULL_VLSN, b"")
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(self.applied())
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let (vlsn, text) = self.state.lock().clone();
        Ok(Box::new(TextCheckpoint { vlsn, text, at: 0 }))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut text = Vec::new();
        source.read_to_end(&mut text).map_err(RepError::state_machine)?;
        self.set(vlsn, &text)
    }
}

struct TextCheckpoint {
    vlsn: Vlsn,
    text: Vec<u8>,
    at: usize,
}

impl Checkpoint for TextCheckpoint {
    fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        let end = self.text.len().min(self.at + max.min(700));
        buf.extend_from_slice(&self.text[self.at..end]);
        self.at = end;
        Ok(end < self.text.len())
    }
}

/// A log of `count` entries in term 1, of which the first `common` are the same for every
/// `lineage`; everything through `floor` is settled.
fn build_log(
    env: &Arc<dyn Env>,
    dir: &Path,
    segment_bytes: u32,
    (count, common, lineage): (i64, i64, u8),
    floor: i64,
) -> Log {
    let (log, _) = Log::open(Arc::clone(env), dir, config()).unwrap();
    log.found(group(segment_bytes)).unwrap();
    for n in 1..=count {
        let own = if n > common { lineage } else { 0 };
        let body = vec![own ^ n as u8; 150 + (n % 7) as usize * 30];
        let flags = if n % 3 == 1 { EntryFlags::COMMIT } else { EntryFlags::NONE };
        let term = Term::new(1 + u32::from(own));
        log.append(term, &[NewEntry::new(EntryKind(16), flags, &body)]).unwrap();
    }
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = v(floor)).unwrap();
    log.seal_through(v(floor)).unwrap();
    log
}

/// A master with 200 entries in segments of 4 KiB, settled through 190.
struct Master {
    provider: Arc<RestoreProvider>,
    log: Log,
    dtvlsn: Arc<AtomicI64>,
    /// How often it was asked whether it is master.
    asked: Arc<AtomicU64>,
}

const CHECKPOINT_TEXT: &[u8] = &[b'c'; 5000];

impl Master {
    /// Drops its front through `dropped`.
    fn new(dropped: i64) -> Self {
        Self::with(4096, 200, 190, dropped)
    }

    fn with(segment_bytes: u32, count: i64, floor: i64, dropped: i64) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let log = build_log(&env, Path::new("/n1"), segment_bytes, (count, count, 0), floor);
        let machine = Machine::open(&env, "/n1/state");
        machine.set(v(floor), CHECKPOINT_TEXT).unwrap();
        if dropped > 0 {
            let anchor = log.drop_front(v(dropped), |_| b"configuration".to_vec()).unwrap();
            assert!(anchor > NULL_VLSN && anchor <= v(dropped), "anchor {anchor}");
        }
        let term = log.control().ballot().term;
        let dtvlsn = Arc::new(AtomicI64::new(floor));
        let asked = Arc::new(AtomicU64::new(0));
        let (durable, times) = (Arc::clone(&dtvlsn), Arc::clone(&asked));
        let may_serve = Box::new(move || {
            times.fetch_add(1, Ordering::Relaxed);
            Ok(Serving { term, dtvlsn: v(durable.load(Ordering::Acquire)) })
        });
        let heard = Box::new(|_: &RepError| {});
        let provider =
            Arc::new(RestoreProvider::new(name("n1"), log.clone(), machine, may_serve, heard));
        Self { provider, log, dtvlsn, asked }
    }

    /// Drops everything below what is settled from under whoever holds it.
    fn run_out_of_budget(&self) {
        self.log.set_checkpoint(self.log.control().state().commit_floor);
        assert!(self.log.retain().unwrap() > NULL_VLSN);
    }

    /// One session of a node with this master.
    fn restore(&self, env: &Arc<dyn Env>, restoring: &Restoring) -> Result<Progress> {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.provider.run(&channel_b);
            });
            let fetched = fetch(env, dir(), restoring, &channel_a, &mut |_| {}, &mut |_| true);
            fetched.map(|progress| progress.expect("permitted"))
        })
    }
}

fn restoring() -> Restoring {
    // A sync after every segment, so that there are many moments to crash at.
    Restoring { sync_bytes: 1, window: 3, ..Restoring::new(name("n2"), None, Term::ZERO) }
}

fn all_bytes(log: &Log) -> Vec<u8> {
    let mut at = log.positions().anchor.vlsn.next();
    let mut bytes = Vec::new();
    while let Some(run) = log.read(at, 1 << 20).unwrap() {
        at = run.last.next();
        bytes.extend(run.parts.concat());
    }
    bytes
}

/// The restored log is the master's, and streaming on finds its place by itself.
fn check_restored(env: &Arc<dyn Env>, master: &Master, with_checkpoint: bool) {
    let (log, _) = Log::open(Arc::clone(env), dir(), config()).unwrap();
    assert_eq!(log.positions().last, master.log.positions().last);
    assert_eq!(log.positions().last_fingerprint, master.log.positions().last_fingerprint);
    assert_eq!(log.positions().anchor, master.log.positions().anchor);
    assert_eq!(all_bytes(&log), all_bytes(&master.log));
    assert_eq!(log.term_table(), master.log.term_table());
    let machine = Machine::open(env, "/n2-state");
    let (vlsn, text) = machine.state.lock().clone();
    let expected: &[u8] = if with_checkpoint { CHECKPOINT_TEXT } else { b"" };
    assert_eq!((vlsn, &text[..]), (if with_checkpoint { v(190) } else { NULL_VLSN }, expected));
    assert!(!is_pending(&**env, dir()).unwrap());

    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    thread::scope(|scope| {
        let feeder =
            scope.spawn(|| feeder_syncup_handshake(&channel_b, &LogView::new(&master.log)));
        let options = SyncupOptions::default();
        let (outcome, stats) = replica_syncup(&channel_a, &LogView::new(&log), &options).unwrap();
        let SyncupOutcome::Matchpoint { start_vlsn, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(start_vlsn, log.positions().last.next());
        assert_eq!(feeder.join().unwrap().unwrap(), Some(start_vlsn));
        assert!(stats.round_trips <= 2, "{stats:?}");
    });
    // And the log goes on, in the same segments as the master's.
    for log in [&log, &master.log] {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"next");
        log.append(Term::new(2), &[entry]).unwrap();
    }
    assert_eq!(log.positions().last_lsn, master.log.positions().last_lsn);
    log.close().unwrap();
}

fn memory() -> Arc<dyn Env> {
    Arc::new(MemoryEnv::new())
}

#[test]
fn a_fresh_node_gets_a_whole_log_without_a_checkpoint() {
    let (master, env) = (Master::new(0), memory());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!((progress.phase, progress.blocks_reused), (Phase::Committed, 0));
    assert_eq!(progress.blocks_done, progress.blocks_total);
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    assert_eq!((restored.checkpoint, restored.lost), (NULL_VLSN, None));
    assert_eq!(restored.last, v(200));
    check_restored(&env, &master, false);
}

#[test]
fn a_node_behind_a_dropped_front_gets_the_checkpoint_and_what_follows() {
    let (master, env) = (Master::new(100), memory());
    build_log(&env, dir(), 4096, (40, 40, 0), 40).close().unwrap();
    let group = Some(group(4096).id);
    master.restore(&env, &Restoring { group, ..restoring() }).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    machine.set(v(40), b"old state").unwrap();
    let restored = install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    assert_eq!((restored.checkpoint, restored.lost), (v(190), None));
    check_restored(&env, &master, true);
}

/// What it has is never rolled back: it waits for what is there to be durable, and gets nothing that
/// was written since.
#[test]
fn a_node_without_a_vote_gets_nothing_that_is_not_durable() {
    let (master, env) = (Master::new(100), memory());
    let secondary = Restoring { kind: NodeKind::Secondary, ..restoring() };
    thread::scope(|scope| {
        let restored = scope.spawn(|| master.restore(&env, &secondary));
        while master.asked.load(Ordering::Relaxed) < 5 {
            thread::yield_now(); // it asks again and again while it waits
        }
        assert!(!restored.is_finished());
        let later = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"later");
        master.log.append(Term::new(2), &[later; 30]).unwrap();
        master.dtvlsn.store(200, Ordering::Release);
        restored.join().unwrap().unwrap();
    });
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    assert_eq!((restored.checkpoint, restored.last), (v(190), v(200)));
}

#[test]
fn segments_of_many_blocks_and_large_tails_arrive_whole() {
    let (master, env) = (Master::with(600 << 10, 9_000, 8_000, 0), memory());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_total > 4, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    check_restored(&env, &master, false);
}

#[test]
fn a_log_that_has_no_sealed_segment_left_is_restored_from_its_tail() {
    let (master, env) = (Master::new(190), memory());
    assert!(master.log.sealed_segments().len() <= 1);
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    check_restored(&env, &master, true);
}

#[test]
fn what_the_old_log_had_above_its_commit_floor_becomes_a_lost_entries_file() {
    let (master, env) = (Master::new(100), memory());
    let old = build_log(&env, dir(), 4096, (120, 60, 9), 50);
    let old_end = old.positions();
    old.close().unwrap();
    drop(old);
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    let path = restored.lost.expect("a lost-entries file");
    let names = LostEntries::list(&*env, dir()).unwrap();
    assert_eq!(path.file_stem().unwrap().to_str().unwrap(), names[0]);
    let lost = LostEntries::read(&*env, dir(), &names[0]).unwrap();
    assert_eq!(lost.header.end.fingerprint, old_end.last_fingerprint);
    assert!(lost.header.kept.vlsn <= v(50));
    assert_eq!(lost.header.note.master, "n1");
    let saved: Vec<_> = lost.entries().map(|entry| entry.header.vlsn).collect();
    assert!((51..=120).all(|n| saved.contains(&v(n))), "{saved:?}");
    check_restored(&env, &master, true);
}

#[test]
fn a_session_that_broke_off_is_resumed_and_no_block_is_fetched_twice() {
    let (master, env) = (Master::new(0), memory());
    let total = master.log.sealed_segments().len() as u32;
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let broken = thread::scope(|scope| {
        scope.spawn(|| {
            let _ = master.provider.run(&channel_b);
        });
        let mut report = |progress: &Progress| {
            if progress.blocks_done == total / 2 {
                channel_a.close();
            }
        };
        fetch(&env, dir(), &restoring(), &channel_a, &mut report, &mut |_| true)
    });
    assert!(broken.is_err_and(|err| err.is_disconnect()));
    assert!(is_pending(&*env, dir()).unwrap() && !is_committed(&*env, dir()).unwrap());
    // The log grew meanwhile: a new manifest, the same segments and more.
    let body = [1; 500];
    for _ in 0..30 {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body);
        master.log.append(Term::new(1), &[entry]).unwrap();
    }
    master.log.sync_now().unwrap();
    master.log.control().update(|control| control.commit_floor = v(230)).unwrap();
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_reused > 0 && progress.blocks_reused <= total / 2, "{progress:?}");
    assert!(progress.blocks_total > total && progress.false_claims == 0, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    check_restored(&env, &master, false);
}

#[test]
fn without_leave_nothing_is_committed_and_what_was_fetched_is_there_for_the_next_session() {
    let (master, env) = (Master::new(0), memory());
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let mut asked = Vec::new();
    let mut refuse = |term| {
        asked.push(term);
        false
    };
    let fetched = thread::scope(|scope| {
        scope.spawn(|| {
            let _ = master.provider.run(&channel_b);
        });
        fetch(&env, dir(), &restoring(), &channel_a, &mut |_| {}, &mut refuse)
    });
    assert_eq!(fetched.unwrap(), None);
    assert_eq!(asked, [master.log.control().state().term]);
    assert!(is_pending(&*env, dir()).unwrap() && !is_committed(&*env, dir()).unwrap());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!(progress.blocks_reused, progress.blocks_total, "{progress:?}");
    assert!(is_committed(&*env, dir()).unwrap());
}

#[test]
fn the_front_is_pinned_while_a_session_lasts() {
    let (master, env) = (Master::new(100), memory());
    let first = master.log.positions().anchor.vlsn.next();
    let held = || master.log.retention().holders;
    assert_eq!(held(), []);
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let mut seen = Vec::new();
    thread::scope(|scope| {
        let serving = scope.spawn(|| master.provider.run(&channel_b));
        let mut report = |progress: &Progress| {
            if progress.phase == Phase::Tail {
                seen.extend(held());
            }
        };
        fetch(&env, dir(), &restoring(), &channel_a, &mut report, &mut |_| true).unwrap();
        serving.join().unwrap().unwrap();
    });
    assert!(!seen.is_empty() && seen.iter().all(|place| place.from == first), "{seen:?}");
    let after = held();
    assert!(after.len() == 1 && after[0].is_away, "it stays until the node is fed: {after:?}");
}

#[test]
fn a_session_that_has_lost_its_place_ends_and_says_so() {
    let (master, env) = (Master::new(100), memory());
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let refused = thread::scope(|scope| {
        let serving = scope.spawn(|| master.provider.run(&channel_b));
        let mut dropped = false;
        let mut report = |progress: &Progress| {
            if progress.phase == Phase::Segments && !dropped {
                dropped = true;
                master.run_out_of_budget();
            }
        };
        let fetched = fetch(&env, dir(), &restoring(), &channel_a, &mut report, &mut |_| true);
        let served = serving.join().unwrap().unwrap_err();
        let lost = matches!(served, RepError::Log(LogError::LostPlace { .. }));
        assert!(lost, "{served}");
        fetched.unwrap_err()
    });
    // Unless the node was just sending its next question, when it finds the channel closed.
    let told = matches!(&refused, RepError::RestoreRefused { reason, .. } if reason.contains("lost its place"));
    assert!(told || refused.is_disconnect(), "{refused}");
    // The next session begins from the new front.
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    check_restored(&env, &master, true);
}

/// A state machine that can do nothing.
struct Broken;
impl StateMachine for Broken {
    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }
    fn apply(&self, _: &EntryRun, _: Vlsn) -> Result<()> {
        Ok(())
    }
    fn roll_back_to(&self, _: Vlsn, _: &dyn LogReader) -> Result<()> {
        Err(RepError::state_machine("disk on fire"))
    }
    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(NULL_VLSN)
    }
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        Err(RepError::state_machine("disk on fire"))
    }
    fn install_checkpoint(&self, _: Vlsn, _: &mut dyn Read) -> Result<()> {
        Err(RepError::state_machine("disk on fire"))
    }
}

#[test]
fn a_log_that_is_being_replaced_is_opened_by_nobody_else() {
    let (master, env) = (Master::new(0), memory());
    build_log(&env, dir(), 4096, (40, 40, 0), 40).close().unwrap();
    master.restore(&env, &restoring()).unwrap();
    // Committed, not begun: the old log is whole.
    assert!(Log::open(Arc::clone(&env), dir(), config()).is_ok());
    // Replacing it fails in the middle: a state machine that cannot.
    assert!(install(&env, dir(), &config(), &Broken, &Clock::start()).is_err());
    let refused = Log::open(Arc::clone(&env), dir(), config());
    assert!(matches!(refused, Err(LogError::RestorePending { .. })), "{refused:?}");
    let machine = Machine::open(&env, "/n2-state");
    let recovered = recover(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    assert!(matches!(recovered, Recovered::Installed(_)));
    check_restored(&env, &master, false);
}

#[test]
fn an_open_log_is_not_replaced() {
    let (master, env) = (Master::new(0), memory());
    let old = build_log(&env, dir(), 4096, (40, 40, 0), 40);
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    let refused = install(&env, dir(), &config(), &*machine, &Clock::start());
    assert!(matches!(refused, Err(RepError::Log(LogError::Locked { .. }))), "{refused:?}");
    assert_eq!(old.positions().last, v(40));
}

#[test]
fn a_foreign_an_older_and_a_shorter_master_are_refused_and_nothing_is_touched() {
    let master = Master::new(0);
    let env = memory();
    let foreign = Restoring { group: Some(GroupId::from_bytes([9; 16])), ..restoring() };
    let refused = master.restore(&env, &foreign);
    assert!(matches!(refused, Err(RepError::RestoreRefused { .. })), "{refused:?}");
    let ahead = Restoring { term: Term::new(7), ..restoring() };
    let refused = master.restore(&env, &ahead);
    assert!(matches!(refused, Err(RepError::Rejected(_))), "{refused:?}");
    let env = memory();
    let old = build_log(&env, dir(), 4096, (250, 250, 0), 220);
    old.close().unwrap();
    let refused = master.restore(&env, &restoring());
    assert!(matches!(refused, Err(RepError::RollbackBelowCommitFloor { .. })), "{refused:?}");
    drop(old);
    assert_eq!(Log::open(env, dir(), config()).unwrap().0.positions().last, v(250));
}

/// A relay that changes the n-th frame from the provider.
fn meddle(
    master: &Master,
    env: &Arc<dyn Env>,
    nth: usize,
    change: &(dyn Fn(Vec<u8>) -> Vec<u8> + Sync),
) -> Result<Progress> {
    let near = LocalChannelPair::new();
    let far = LocalChannelPair::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = master.provider.run(&far.channel_b);
        });
        scope.spawn(|| {
            while let Ok(Some(frame)) = near.channel_b.receive(Duration::from_secs(30)) {
                if far.channel_a.send(&frame).is_err() {
                    break;
                }
            }
            far.channel_a.close();
        });
        scope.spawn(|| {
            let mut count = 0;
            while let Ok(Some(frame)) = far.channel_a.receive(Duration::from_secs(30)) {
                count += 1;
                let frame = if count == nth { change(frame) } else { frame };
                if near.channel_b.send(&frame).is_err() {
                    break;
                }
            }
            near.channel_b.close();
        });
        let channel = &near.channel_a;
        let fetched = fetch(env, dir(), &restoring(), channel, &mut |_| {}, &mut |_| true);
        fetched.map(|progress| progress.expect("permitted"))
    })
}

#[test]
fn a_flipped_bit_a_lost_byte_and_a_wrong_answer_are_found_in_every_frame() {
    let master = Master::new(100);
    let frames = {
        let count = Mutex::new(0);
        let env = memory();
        let counting = |frame: Vec<u8>| {
            *count.lock() += 1;
            frame
        };
        // Counts by meddling with ever later frames until there is none.
        let mut nth = 1;
        loop {
            let before = *count.lock();
            let env: Arc<dyn Env> = if nth == 1 { Arc::clone(&env) } else { memory() };
            meddle(&master, &env, nth, &counting).unwrap();
            if *count.lock() == before {
                break nth - 1;
            }
            nth += 1;
        }
    };
    assert!(frames > 10, "{frames} frames");
    for nth in 1..=frames {
        let flips = |mut frame: Vec<u8>| {
            let at = frame.len() - 1;
            frame[at] ^= 1;
            frame
        };
        let shortens = |mut frame: Vec<u8>| {
            frame.pop();
            frame
        };
        let answers_wrongly = |_: Vec<u8>| RestoreMsg::Done.encode();
        let changes: [&(dyn Fn(Vec<u8>) -> Vec<u8> + Sync); 3] =
            [&flips, &shortens, &answers_wrongly];
        for (kind, change) in changes.into_iter().enumerate() {
            let env = memory();
            let fetched = meddle(&master, &env, nth, change);
            let Err(err) = fetched else {
                // The manifest's last bytes are the count of segments: one less is a smaller offer
                // that ends in other frames than those awaited.
                panic!("frame {nth}, change {kind} went unnoticed");
            };
            assert!(!is_committed(&*env, dir()).unwrap(), "frame {nth}: {err}");
            // What came before is good: the next session ends well.
            let progress = master.restore(&env, &restoring()).unwrap();
            assert_eq!(progress.false_claims, 0);
        }
    }
}

/// Every entry follows the one before it, but it is another history than the one that was offered.
#[test]
fn a_provider_whose_log_was_rolled_back_meanwhile_is_refused() {
    let fetched = |mutant| {
        let (master, env) = (Master::new(100), memory());
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = master.provider.run(&channel_b);
            });
            let mut changed = false;
            let mut report = |progress: &Progress| {
                if progress.blocks_done < progress.blocks_total || changed {
                    return;
                }
                changed = true;
                master.log.truncate_after(v(195), Cut::Discard).unwrap();
                let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"another");
                (196..=200).for_each(|_| {
                    master.log.append(Term::new(2), &[entry]).unwrap();
                });
            };
            Mutant::with(mutant, || {
                fetch(&env, dir(), &restoring(), &channel_a, &mut report, &mut |_| true)
            })
        })
    };
    let refused = fetched(None).unwrap_err().to_string();
    assert!(refused.contains("as the manifest names it"), "{refused}");
    assert!(fetched(Some(Mutant::RestoreTargetUnchecked)).is_ok(), "the mutant is noticed");
}

/// Restores on a disk that crashes at its `call`-th call; false when it got through without.
/// Whatever the crash left, either the old log is whole or the restore ends.
fn crash_and_recover(master: &Master, call: u64, seed: u64, mutated: bool) -> (bool, u32) {
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    let old = build_log(&env, dir(), 4096, (120, 60, 9), 50);
    let old_end = old.positions().last_fingerprint;
    old.close().unwrap();
    drop(old);
    Machine::open(&env, "/n2-state").set(v(50), b"old state").unwrap();
    env.sync_dir(Path::new("/")).unwrap();
    let restoring = Restoring { bitmap_before_data: mutated, ..restoring() };

    faulty.crash_at(faulty.calls() + call);
    let machine = Machine::open(&env, "/n2-state");
    let through = master
        .restore(&env, &restoring)
        .and_then(|_| install(&env, dir(), &config(), &*machine, &Clock::start()));
    if through.is_ok() && !faulty.has_crashed() {
        return (false, 0);
    }
    // The power goes, and comes back: twice, to crash in the recovery too.
    let mut faulty = faulty.crash(seed);
    let mut false_claims = 0;
    for again in [true, false] {
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        if again {
            faulty.crash_at(1 + (seed * 31 + call * 7) % 60);
        }
        let machine = Machine::open(&env, "/n2-state");
        let outcome =
            recover(&env, dir(), &config(), &*machine, &Clock::start()).and_then(|recovered| {
                if matches!(recovered, Recovered::Installed(_)) {
                    return Ok(());
                }
                // Not finished: then either all of the old is there, or all of the new.
                let (log, _) = Log::open(Arc::clone(&env), dir(), config())?;
                let end = log.positions().last_fingerprint;
                log.close()?;
                drop(log);
                if end == master.log.positions().last_fingerprint {
                    assert_eq!(recovered, Recovered::Nothing);
                    return Ok(());
                }
                assert_eq!(end, old_end, "call {call}, seed {seed}");
                let progress = master.restore(&env, &restoring)?;
                false_claims += progress.false_claims;
                install(&env, dir(), &config(), &*machine, &Clock::start()).map(|_| ())
            });
        if again {
            faulty = faulty.crash(seed + 1);
        } else {
            outcome.unwrap_or_else(|err| panic!("call {call}, seed {seed}: {err}"));
            let (log, _) = Log::open(Arc::clone(&env), dir(), config()).unwrap();
            assert_eq!(all_bytes(&log), all_bytes(&master.log), "call {call}, seed {seed}");
            assert_eq!(log.positions().anchor, master.log.positions().anchor);
            let machine = Machine::open(&env, "/n2-state");
            assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
            let names = LostEntries::list(&*env, dir()).unwrap();
            let lost = LostEntries::read(&*env, dir(), &names[0]).unwrap();
            assert_eq!(lost.header.end.fingerprint, old_end, "call {call}, seed {seed}");
        }
    }
    (true, false_claims)
}

#[test]
fn a_crash_at_any_call_leaves_the_old_log_whole_or_a_restore_that_ends() {
    let master = Master::new(100);
    let mut call = 1;
    let mut false_claims = 0;
    loop {
        let mut crashed = false;
        for seed in 0..3 {
            let (hit, claims) = crash_and_recover(&master, call, seed * 1000 + call, false);
            crashed |= hit;
            false_claims += claims;
        }
        if !crashed {
            break;
        }
        call += 1;
    }
    assert!(call > 150, "only {call} calls");
    assert_eq!(false_claims, 0, "the bitmap claimed blocks that were not on disk");
}

#[test]
fn saving_the_bitmap_before_its_data_would_be_caught() {
    let master = Master::new(100);
    let mut false_claims = 0;
    for call in 1..200 {
        for seed in 0..3 {
            false_claims += crash_and_recover(&master, call, seed * 1000 + call, true).1;
        }
    }
    assert!(false_claims > 0, "the crash test cannot tell the wrong order from the right one");
}

#[test]
fn a_full_disk_ends_the_session_and_it_resumes_when_there_is_space() {
    let master = Master::new(100);
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    build_log(&env, dir(), 4096, (40, 40, 0), 40).close().unwrap();
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let full = thread::scope(|scope| {
        scope.spawn(|| {
            let _ = master.provider.run(&channel_b);
        });
        let mut report = |progress: &Progress| {
            if progress.blocks_done == 3 {
                faulty.set_full(true);
            }
        };
        fetch(&env, dir(), &restoring(), &channel_a, &mut report, &mut |_| true)
    });
    let Err(RepError::Log(error)) = full else { panic!("{full:?}") };
    assert!(error.is_storage_full(), "{error}");
    faulty.set_full(false);
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_reused > 0, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, dir(), &config(), &*machine, &Clock::start()).unwrap();
    check_restored(&env, &master, true);
}
