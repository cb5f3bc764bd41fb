//! Live: the entries that come while the segments do, and the places held for them. Rows L and P.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use noxu_log::env::{MemoryEnv, Survivors, read_whole};
use noxu_log::segment::name::segment_name;
use noxu_log::{LogConfig, RetentionConfig};
use noxu_util::Vlsn;

use super::super::manifest::LIVE;
use super::super::provider::RestoreProvider;
use super::*;
use crate::sync::CheckpointSource;

/// One session through `channel`.
fn session(channel: &Arc<dyn Channel>, env: &Arc<dyn Env>, node: &Node<'_>) -> Result<Progress> {
    fetch(env, dir(), &restoring(), channel, node).map(|progress| progress.expect("permitted"))
}

/// A session whose runs of entries are changed ends with an error, and the next one leaves no hole.
fn loud(change: impl Fn(&Log, Msg) -> Vec<Msg> + Send + Sync + 'static) -> String {
    let (master, env) = (Master::new(100), memory());
    let log = master.log.clone();
    let channel = Relay::of_answers(master.connect(), move |answer| match answer {
        run @ RestoreMsg::LiveRun { .. } => change(&log, run),
        other => vec![other],
    });
    let broken = session(&channel, &env, &Node::default()).unwrap_err();
    assert!(matches!(broken, RepError::BadEntry { .. }), "{broken}");
    assert!(!is_committed(&*env, dir()).unwrap());
    master.restore(&env, &restoring()).unwrap();
    install_and_check(&env, &master, true);
    broken.to_string()
}

/// L "gap -> loud error and no hole".
#[test]
fn l_a_gap_is_a_loud_error_and_no_hole() {
    let error = loud(|log, mut run| {
        if let RestoreMsg::LiveRun { bytes, .. } = &mut run
            && !bytes.is_empty()
        {
            *bytes = log.read(v(192), 1 << 20).unwrap().unwrap().parts.concat().into();
        }
        vec![run]
    });
    assert!(error.contains("entry "), "{error}");
}

/// L "duplicate": entries that it has already.
#[test]
fn l_entries_that_come_again_are_a_loud_error() {
    loud(|log, mut run| {
        if let RestoreMsg::LiveRun { bytes, .. } = &mut run {
            *bytes = log.read(v(180), 1 << 20).unwrap().unwrap().parts.concat().into();
        }
        vec![run]
    });
}

/// L "duplicate": the same answer a second time, at once and later.
#[test]
fn l_a_duplicate_run_is_dropped() {
    let (master, env) = (Master::new(100), memory());
    let first = Mutex::new(None);
    let channel = Relay::of_answers(master.connect(), move |answer| match answer {
        run @ RestoreMsg::LiveRun { .. } => {
            let first = first.lock().get_or_insert_with(|| run.clone()).clone();
            vec![first, run.clone(), run]
        }
        other => vec![other],
    });
    let progress = session(&channel, &env, &Node::default()).unwrap();
    let base = master.log.sealed_segments().last().unwrap().last;
    assert_eq!(progress.live_entries, v(200).since(base));
    install_and_check(&env, &master, true);
}

/// L "lost pin -> extension", P "budget -> lost": before the segments are all here, what is gone of the
/// master's log is replaced by its newer checkpoint, and what is still offered is kept.
#[test]
fn l_lost_pin_then_the_next_session_extends_the_manifest() {
    let (master, env) = (Master::new(0), memory());
    let total = master.log.sealed_segments().len() as u32;
    let dropped = AtomicBool::new(false);
    let node = Node::watching(|progress| {
        if progress.blocks_done >= total / 2 && !dropped.swap(true, Ordering::Relaxed) {
            master.drop_below(60);
        }
    });
    let lost = master.restore_watched(&env, &restoring(), &node).unwrap_err();
    assert!(matches!(lost, RepError::RestoreRefused { .. }) || lost.is_disconnect(), "{lost}");
    assert!(master.told.failures.lock()[0].contains("lost its place"));
    assert!(!is_committed(&*env, dir()).unwrap());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_total < total && progress.blocks_reused > 0, "{progress:?}");
    assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, progress.blocks_total);
    install_and_check(&env, &master, true);
}

/// L "lost pin -> extension": once the segments are here, the front of the master's log may pass them:
/// "a restore is never restarted because log was recycled". Nothing of them is fetched again.
#[test]
fn l_a_log_recycled_behind_the_segments_restarts_nothing() {
    let (master, env) = (Master::new(100), memory());
    let segments = master.log.sealed_segments().len() as u32;
    // Breaks off with everything here but leave.
    let node = Node { permits: false, ..Node::default() };
    assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
    let anchor = master.log.positions().anchor.vlsn;
    extend(&master.log, (400, 400, 0), 390);
    master.machine.set(v(390), b"newer").unwrap();
    master.await_absence();
    master.log.forget_absent();
    master.drop_front(198);
    assert!(master.log.positions().anchor.vlsn > v(190));
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!((progress.blocks_total, progress.blocks_reused), (segments, segments));
    assert_eq!(progress.live_entries, 200, "{progress:?}");
    assert_eq!(progress.checkpoint_reused, CHECKPOINT_TEXT.len() as u64, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
    assert_eq!((restored.anchor, restored.last), (anchor, v(400)));
    assert_eq!(check_same_entries(&env, &master), v(400));
    assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
}

/// The same, when the new master has another tail, or begins beyond what is here.
#[test]
fn l_a_log_recycled_behind_another_history_is_not_gone_on_with() {
    for (what, front, kept) in
        [((400, 240, 1), 220, true), ((400, 240, 1), 255, false), ((400, 400, 0), 300, false)]
    {
        let (old, env) = (Master::built("n1", (270, 270, 0), 190), memory());
        old.drop_front(100);
        let anchor = old.log.positions().anchor.vlsn;
        let node = Node { permits: false, ..Node::default() };
        assert_eq!(fetch(&env, dir(), &restoring(), &old.connect(), &node).unwrap(), None);
        let new = Master::built("n3", what, 390);
        new.drop_front(front);
        assert!(new.log.positions().anchor.vlsn > v(190));
        let progress = new.restore(&env, &restoring()).unwrap();
        let machine = Machine::open(&env, "/n2-state");
        let restored = install(&env, &*machine).unwrap();
        assert_eq!(check_same_entries(&env, &new), v(400));
        let expected = if kept { anchor } else { new.log.positions().anchor.vlsn };
        assert_eq!(restored.anchor, expected, "{what:?}, {front}: {restored:?}");
        assert_eq!(progress.live_entries == 160, kept, "{progress:?}");
        assert_eq!(*machine.state.lock(), (v(390), CHECKPOINT_TEXT.to_vec()), "{progress:?}");
    }
}

/// L "old term": the provider is not master of the term any more, in the middle of a session.
#[test]
fn l_old_term_ends_the_session_and_nothing_is_committed() {
    for deposed_for_good in [true, false] {
        let (master, env) = (Master::new(100), memory());
        let (told, questions) = (Arc::clone(&master.told), AtomicUsize::new(0));
        let channel = Relay::of_questions(master.connect(), move |question| {
            let is_live = matches!(question, RestoreMsg::LiveRequest { .. });
            if is_live && questions.fetch_add(1, Ordering::Relaxed) == 0 {
                if deposed_for_good {
                    told.is_master.store(false, Ordering::Release);
                } else {
                    *told.term.lock() = Term::new(50); // elected again, in another term
                }
            }
            vec![question]
        });
        let node = Node::default();
        let refused = session(&channel, &env, &node).unwrap_err();
        assert!(matches!(refused, RepError::RestoreRefused { .. }) || refused.is_disconnect());
        assert!(!is_committed(&*env, dir()).unwrap() && node.asked.lock().is_empty());
        assert!(env.list(&dir().join("log")).unwrap_or_default().is_empty(), "nothing is touched");
    }
}

/// L "slow disk -> bounded memory": whatever the disk does, no more is asked for than the window.
#[test]
fn l_slow_disk_no_more_is_under_way_than_the_window() {
    const STATE_BYTES: usize = 6 << 20;
    let (disk, env) = fault_disk();
    let (master, follower) = (Master::new(100), Master::follower("n3"));
    follower.machine.set(v(190), &vec![b's'; STATE_BYTES]).unwrap();
    master.name_sources(&["n3"]);
    let most = Arc::new(Mutex::new(BTreeMap::<&str, usize>::new()));
    let bounded = |inner: Arc<dyn Channel>| {
        let asked = Arc::new(Mutex::new(BTreeMap::<&str, BTreeSet<u64>>::new()));
        let (answered, most) = (Arc::clone(&asked), Arc::clone(&most));
        Relay::of(
            inner,
            move |question| {
                let (kind, request, limit) = match &question {
                    RestoreMsg::BlockRequest { request, .. } => ("block", *request, 3),
                    RestoreMsg::LiveRequest { request, .. } => ("live", *request, 1),
                    RestoreMsg::StateRequest { request, .. } => ("checkpoint", *request, 4),
                    _ => return vec![question],
                };
                let mut asked = asked.lock();
                let under_way = asked.entry(kind).or_default();
                assert!(under_way.insert(request) && under_way.len() <= limit, "{under_way:?}");
                let mut most = most.lock();
                let most = most.entry(kind).or_default();
                *most = under_way.len().max(*most);
                vec![question]
            },
            move |answer| {
                let (kind, request) = match &answer {
                    RestoreMsg::Block { request, .. } => ("block", *request),
                    RestoreMsg::LiveRun { request, .. } => ("live", *request),
                    RestoreMsg::StateAnswer { request, .. } => ("checkpoint", *request),
                    _ => return vec![answer],
                };
                assert!(answered.lock().entry(kind).or_default().remove(&request));
                vec![answer]
            },
        )
    };
    let node = Node::default().dialling("n3", || bounded(follower.connect()));
    thread::scope(|scope| {
        let restored = scope.spawn(|| session(&bounded(master.connect()), &env, &node));
        // Each sync takes its time, during which the sources could send.
        while !restored.is_finished() {
            let hold = disk.hold_next("sync_data");
            thread::sleep(Duration::from_millis(3));
            drop(hold);
        }
        let progress = restored.join().unwrap().unwrap();
        assert_eq!(progress.checkpoint_bytes, STATE_BYTES as u64);
    });
    let used = BTreeMap::from([("block", 3), ("checkpoint", 4), ("live", 1)]);
    assert_eq!(*most.lock(), used, "the windows are used");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
    assert!(machine.state.lock().1 == vec![b's'; STATE_BYTES]);
}

/// L "cut under endless writes ends".
#[test]
fn l_cut_under_endless_writes_ends() {
    let (master, env) = (Master::new(100), memory());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for end in 201.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                extend(&master.log, (end, end, 0), 190);
            }
        });
        // And each answer leaves time for more of them.
        let log = master.log.clone();
        let channel = Relay::of_answers(master.connect(), move |answer| {
            if matches!(answer, RestoreMsg::LiveRun { .. }) {
                let end = log.positions().last;
                while log.positions().last < Vlsn::new(end.sequence() + 20) {
                    thread::yield_now();
                }
            }
            vec![answer]
        });
        let progress = session(&channel, &env, &Node::default());
        is_over.store(true, Ordering::Relaxed);
        assert!(progress.unwrap().live_entries > 0);
    });
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
    assert!(check_same_entries(&env, &master) >= v(200));
}

/// L "no ack before sync", P "pin follows durable, not applied": whatever a question says is not needed
/// any more would survive a crash at that moment; and what is needed is still there at the master.
#[test]
fn l_no_ack_before_sync() {
    let (disk, env) = fault_disk();
    let master = Master::new(100);
    let sealed = master.log.sealed_segments();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (image_of, noted, log) = (disk.clone(), Arc::clone(&asked), master.log.clone());
    let channel = Relay::of_questions(master.connect(), move |question| {
        let needed = match &question {
            RestoreMsg::LiveRequest { needed, .. } | RestoreMsg::Done { needed, .. } => *needed,
            _ => return vec![question],
        };
        let holders = log.retention().holders;
        assert!(holders.iter().all(|holder| holder.from <= needed), "{holders:?} {needed}");
        let image: Arc<dyn Env> = Arc::new(image_of.clone_image(Survivors::None));
        let staged = restore_dir(dir());
        for segment in sealed.iter().filter(|segment| segment.first < needed) {
            let bytes = read_whole(&*image, &staged.join(segment_name(segment.number)));
            let digest = bytes.map(|bytes| blake3::hash(&bytes)).ok();
            let is_there = digest == Some(segment.digest) || segment.last >= needed;
            assert!(is_there, "segment {} before {needed}", segment.number);
        }
        if needed > sealed.last().unwrap().last.next() {
            let (live, _) = Log::open(image, &staged.join(LIVE), config()).unwrap();
            assert!(live.positions().last.next() >= needed, "{needed}");
        }
        noted.lock().push(needed);
        vec![question]
    });
    // Entries come one by one.
    let node = Node::watching(|progress| {
        let end = master.log.positions().last.sequence() + 1;
        if progress.phase != Phase::Tail && end < 240 {
            extend(&master.log, (end, end, 0), 190);
        }
    });
    session(&channel, &env, &node).unwrap();
    let asked = asked.lock().clone();
    assert!(asked.is_sorted() && asked.first() <= Some(&v(101)), "{asked:?}");
    assert!(asked.len() > 3 && *asked.last().unwrap() > v(198), "{asked:?}");
}

/// P "pin follows durable, not applied": while the disk syncs, the place stays.
#[test]
fn p_pin_follows_durable_not_received() {
    let (disk, env) = fault_disk();
    let master = Master::new(190); // no segment to fetch
    let first = master.log.positions().anchor.vlsn.next();
    let held = || master.log.retention().holders;
    let hold = Mutex::new(None);
    let node = Node::watching(|progress| {
        if progress.live_entries == 0 && hold.lock().is_none() {
            *hold.lock() = Some(disk.hold_next("sync_data"));
        }
    });
    thread::scope(|scope| {
        let restored = scope.spawn(|| session(&master.connect(), &env, &node));
        while hold.lock().is_none() {
            thread::yield_now();
        }
        let hold = hold.lock().take().unwrap();
        hold.wait_until_met();
        let places = held();
        assert!(places.iter().all(|place| place.from == first), "{places:?}");
        drop(hold);
        restored.join().unwrap().unwrap();
    });
    master.await_absence();
    assert!(held()[0].from > first, "{:?}", held());
}

/// Gives as much of a checkpoint as it is let.
struct Slow(Arc<AtomicU64>);

impl StateMachine for Slow {
    fn applied(&self) -> Vlsn {
        v(190)
    }
    fn apply(&self, _: &EntryRun, _: Vlsn) -> Result<()> {
        Ok(())
    }
    fn roll_back_to(&self, _: Vlsn, _: &dyn LogReader) -> Result<()> {
        Ok(())
    }
    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(v(190))
    }
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        Ok(Box::new(SlowCheckpoint(Arc::clone(&self.0), CHECKPOINT_TEXT.len())))
    }
    fn install_checkpoint(&self, _: Vlsn, _: &mut dyn Read) -> Result<()> {
        Ok(())
    }
}

struct SlowCheckpoint(Arc<AtomicU64>, usize);

impl Checkpoint for SlowCheckpoint {
    fn vlsn(&self) -> Vlsn {
        v(190)
    }
    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        while self.0.load(Ordering::Acquire) == 0 {
            thread::sleep(Duration::from_micros(100));
        }
        let count = self.1.min(max).min(100);
        self.1 -= count;
        buf.extend_from_slice(&CHECKPOINT_TEXT[..count]);
        Ok(self.1 > 0)
    }
}

/// P "10 GB slow copy with live writes keeps the master's log below its window": the checkpoint comes
/// from a follower and takes as long as the master needs to write its whole log many times over.
#[test]
fn p_a_slow_copy_with_live_writes_keeps_the_masters_log_short() {
    const WINDOW: u64 = 64 << 10;
    let disk: Arc<dyn Env> = Arc::new(MemoryEnv::new());
    // Nothing but the state machine's checkpoint and the pins keeps the log; pins are never given up.
    let retention =
        RetentionConfig { keep_bytes: 0, byte_budget: None, ..RetentionConfig::default() };
    let unlimited = LogConfig { retention, ..config() };
    let (log, _) = Log::open(Arc::clone(&disk), Path::new("/log"), unlimited).unwrap();
    log.found(group(4096)).unwrap();
    extend(&log, (200, 200, 0), 190);
    let (master, env) = (Master::of("n1", &disk, log), memory());
    master.machine.set(v(190), b"not asked for").unwrap();
    master.drop_front(100);
    let slow = Master::follower("n3");
    let may_come = Arc::new(AtomicU64::new(0));
    let host = slow.host();
    let machine = Arc::new(Slow(Arc::clone(&may_come)));
    let log = slow.log.clone();
    let offers = offers_of(&disk, machine, Clock::start());
    let provider = Arc::new(RestoreProvider::new(name("n3"), log, offers, host));
    master.name_sources(&["n3"]);
    let reach = || {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let provider = Arc::clone(&provider);
        thread::spawn(move || {
            let _ = provider.run(&channel_b);
        });
        Arc::new(channel_a) as Arc<dyn Channel>
    };
    let (mut written, mut longest, in_checkpoint) = (0, 0, AtomicBool::new(false));
    let watch = |progress: &Progress| {
        in_checkpoint.store(progress.phase == Phase::Checkpoint, Ordering::Relaxed);
    };
    let node = Node { watch: Box::new(watch), ..Node::default() }.dialling("n3", reach);
    thread::scope(|scope| {
        let restored = scope.spawn(|| session(&master.connect(), &env, &node));
        while !in_checkpoint.load(Ordering::Relaxed) {
            assert!(!restored.is_finished(), "{:?}", restored.join().unwrap());
            thread::yield_now();
        }
        let mut end = 200;
        while written < 10 * WINDOW {
            end += 20;
            extend(&master.log, (end, end, 0), end - 5);
            written += 20 * 250;
            // No faster than the live lane; the copy stands still meanwhile.
            let since = std::time::Instant::now();
            while master.log.retention().holders[0].from < v(end - 10) {
                assert!(since.elapsed() < Duration::from_secs(20), "the live lane stands still");
                thread::yield_now();
            }
            master.log.set_checkpoint(v(end - 5));
            master.log.retain().unwrap();
            longest = longest.max(master.log.retention().bytes);
        }
        assert!(!restored.is_finished());
        may_come.store(1, Ordering::Release);
        let progress = restored.join().unwrap().unwrap();
        assert_eq!(progress.checkpoint_bytes, CHECKPOINT_TEXT.len() as u64);
        assert_eq!(given(&progress, "n1").bytes, 0, "{progress:?}");
    });
    assert!(longest < WINDOW, "{longest} bytes of log");
    assert!(master.log.positions().anchor.vlsn > v(200), "the front went past the segments");
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
    assert_eq!((restored.checkpoint, restored.last), (v(190), check_same_entries(&env, &master)));
    assert_eq!(machine.state.lock().1, CHECKPOINT_TEXT);
}

/// What was synced of a slow copy is damaged when the power is back, and so is what says how far it is: both
/// are hints.
#[test]
fn p_damaged_hints_cost_only_what_they_spoke_of() {
    for file in ["manifest", "state.saved", "bitmap", "verified", "state/checkpoint"] {
        let (disk, env) = fault_disk();
        let master = Master::new(100);
        let node = Node { permits: false, ..Node::default() };
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        let disk = disk.crash(1);
        disk.corrupt(&restore_dir(dir()).join(file), 40, 1).unwrap();
        let env: Arc<dyn Env> = Arc::new(disk);
        let progress = master.restore(&env, &restoring()).unwrap();
        assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, progress.blocks_total);
        install_and_check(&env, &master, true);
    }
}

/// A state machine that takes its time to prepare a checkpoint, until it is let.
struct Preparing {
    may_end: AtomicBool,
    begun: AtomicBool,
    /// How often it fails yet.
    failures: AtomicUsize,
    prepared: Mutex<Option<([u8; 32], Vec<u8>)>>,
    installed: Mutex<Vec<u8>>,
}

impl StateMachine for Preparing {
    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }
    fn apply(&self, _: &EntryRun, _: Vlsn) -> Result<()> {
        Ok(())
    }
    fn roll_back_to(&self, _: Vlsn, _: &dyn LogReader) -> Result<()> {
        Ok(())
    }
    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(NULL_VLSN)
    }
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        panic!("it gives nothing")
    }
    fn prepare_checkpoint(
        &self,
        id: &[u8; 32],
        _: Vlsn,
        source: &mut dyn CheckpointSource,
    ) -> Result<()> {
        self.begun.store(true, Ordering::Release);
        let (mut text, mut piece) = (Vec::new(), [0; 1000]);
        // One that nobody waits for any more is told so by its source, at the end too.
        loop {
            let read = source.read(&mut piece).map_err(RepError::state_machine)?;
            text.extend_from_slice(&piece[..read]);
            if read == 0 && self.may_end.load(Ordering::Acquire) {
                break;
            }
        }
        if self
            .failures
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1))
            .is_ok()
        {
            return Err(RepError::state_machine("it is rotten"));
        }
        *self.prepared.lock() = Some((*id, text));
        Ok(())
    }
    fn install_prepared(&self, id: &[u8; 32]) -> Result<bool> {
        let Some((_, text)) = self.prepared.lock().take_if(|(of, _)| of == id) else {
            return Ok(false);
        };
        *self.installed.lock() = text;
        Ok(true)
    }
    fn install_checkpoint(&self, _: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut text = b"read: ".to_vec();
        source.read_to_end(&mut text).map_err(RepError::state_machine)?;
        *self.installed.lock() = text;
        Ok(())
    }
}

fn preparing(may_end: bool) -> Arc<Preparing> {
    Arc::new(Preparing {
        may_end: AtomicBool::new(may_end),
        begun: AtomicBool::new(false),
        failures: AtomicUsize::new(0),
        prepared: Mutex::default(),
        installed: Mutex::default(),
    })
}

/// P "10 GB slow copy with live writes keeps the master's log below its window": however long the state
/// takes to be made ready, the node goes on to take what is written, and the master keeps none of it.
#[test]
fn p_entries_come_while_the_state_is_prepared_and_the_installation_reads_nothing() {
    let (master, env, machine) = (Master::new(100), memory(), preparing(false));
    let node = Node { machine: Some(Arc::<Preparing>::clone(&machine)), ..Node::default() };
    thread::scope(|scope| {
        let restored = scope.spawn(|| session(&master.connect(), &env, &node));
        while !machine.begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        for end in [300, 400, 500] {
            extend(&master.log, (end, end, 0), end - 10);
            let is_near = || {
                let held = master.log.retention().holders;
                !held.is_empty() && held.iter().all(|holder| holder.from >= v(end - 100))
            };
            while !is_near() {
                thread::yield_now();
            }
        }
        assert!(!restored.is_finished());
        machine.may_end.store(true, Ordering::Release);
        let progress = restored.join().unwrap().unwrap();
        assert_eq!(progress.phase, Phase::Committed);
    });
    assert_eq!(install(&env, &*machine).unwrap().last, v(500));
    assert!(*machine.installed.lock() == CHECKPOINT_TEXT, "what was prepared, not read again");
}

/// A node that forgot what it had prepared, such as one that was started anew, prepares it anew.
#[test]
fn what_was_prepared_and_forgotten_is_prepared_when_it_is_installed() {
    let (master, env, machine) = (Master::new(100), memory(), preparing(true));
    let node = Node { machine: Some(machine), ..Node::default() };
    session(&master.connect(), &env, &node).unwrap();
    let anew = preparing(true);
    install(&env, &*anew).unwrap();
    assert!(*anew.installed.lock() == CHECKPOINT_TEXT);
}

/// What cannot be made ready is fetched again before the old log is touched: it may have rotted. If it cannot
/// again, the state machine does not take it.
#[test]
fn what_cannot_be_prepared_is_fetched_once_more_and_never_committed() {
    for failures in [1, 2] {
        let (master, env, machine) = (Master::new(100), memory(), preparing(true));
        machine.failures.store(failures, Ordering::Release);
        let node = Node { machine: Some(Arc::<Preparing>::clone(&machine)), ..Node::default() };
        let restored = session(&master.connect(), &env, &node);
        if failures == 1 {
            let given: u64 = restored.unwrap().sources.iter().map(|source| source.bytes).sum();
            assert!(given >= 2 * CHECKPOINT_TEXT.len() as u64, "{given}");
            install(&env, &*machine).unwrap();
            assert!(*machine.installed.lock() == CHECKPOINT_TEXT);
        } else {
            let refused = restored.unwrap_err();
            assert!(matches!(refused, RepError::StateMachine { .. }), "{refused}");
            assert!(!is_committed(&*env, dir()).unwrap());
        }
    }
}

/// A source that dies while what it gives is made ready leaves nothing of it in what another one gives then.
#[test]
fn a_state_that_is_made_ready_while_it_comes_is_of_one_source() {
    const PIECES: usize = 3;
    let (master, follower, env) = (Master::new(100), Master::follower("n3"), memory());
    follower.machine.set(v(190), &vec![b'x'; 8 << 20]).unwrap();
    master.name_sources(&["n3"]);
    let machine = preparing(true);
    let dying = || {
        let (inner, gave) = (follower.connect(), AtomicUsize::new(0));
        let (line, machine) = (Arc::clone(&inner), Arc::clone(&machine));
        Relay::of_answers(inner, move |answer| {
            let is_state = matches!(answer, RestoreMsg::StateAnswer { .. });
            if is_state && gave.fetch_add(1, Ordering::Relaxed) >= PIECES {
                while !machine.begun.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                line.close();
                return Vec::new();
            }
            vec![answer]
        })
    };
    let node = Node { machine: Some(Arc::<Preparing>::clone(&machine)), ..Node::default() };
    let node = node.dialling("n3", dying);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert!(given(&progress, "n3").bytes >= (PIECES as u64) << 20, "{progress:?}");
    install(&env, &*machine).unwrap();
    assert!(*machine.installed.lock() == CHECKPOINT_TEXT, "what the master gave, and was prepared");
}

/// What runs beside a session ends with it.
#[test]
fn a_session_that_breaks_off_ends_its_preparation() {
    let (master, env, machine) = (Master::new(100), memory(), preparing(false));
    let node = Node { machine: Some(Arc::<Preparing>::clone(&machine)), ..Node::default() };
    let channel = master.connect();
    thread::scope(|scope| {
        let restored = scope.spawn(|| session(&channel, &env, &node));
        while !machine.begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        channel.close();
        restored.join().unwrap().unwrap_err();
    });
    assert!(machine.prepared.lock().is_none());
    assert!(!is_committed(&*env, dir()).unwrap());
}
