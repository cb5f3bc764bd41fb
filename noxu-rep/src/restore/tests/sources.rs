//! Sources: who gives what of a restore, and what becomes of it when they err or go. Rows R.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU32;

use noxu_log::Anchor;
use noxu_log::env::{FaultEnv, MemoryEnv};
use noxu_log::install::begin_behind;
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_util::Vlsn;

use super::super::manifest::LIVE;
use super::super::session::{PATIENCE, RestoreLimits, STATE_PATIENCE};
use super::*;
use crate::core::block_plan::MAX_STRIKES;
use crate::wire::restore::{BLOCK_BYTES, SEGMENT_HEAD_BYTES};

/// Bytes of all sealed segments.
fn sealed_bytes(master: &Master) -> u64 {
    master.log.sealed_segments().iter().map(|sealed| u64::from(sealed.bytes)).sum()
}

fn session(channel: &Arc<dyn Channel>, env: &Arc<dyn Env>, node: &Node<'_>) -> Result<Progress> {
    fetch(env, dir(), &restoring(), channel, node).map(|progress| progress.expect("permitted"))
}

/// A session that breaks off once `is_over` says so.
fn break_off(
    master: &Master,
    env: &Arc<dyn Env>,
    node: Node<'_>,
    is_over: impl Fn(&Progress) -> bool + Sync,
) {
    let channel = master.connect();
    let watch = |progress: &Progress| {
        if is_over(progress) {
            channel.close();
        }
    };
    let node = Node { watch: Box::new(watch), ..node };
    let broken = session(&channel, env, &node);
    assert!(broken.as_ref().is_err_and(RepError::is_disconnect), "{broken:?}");
    assert!(is_pending(&**env, dir()).unwrap() && !is_committed(&**env, dir()).unwrap());
}

/// R "quiet": everything comes once.
#[test]
fn r_quiet_everything_comes_once() {
    let (master, env) = (Master::new(100), memory());
    let base = master.log.sealed_segments().last().unwrap().last;
    let progress = master.restore(&env, &restoring()).unwrap();
    let live = master.log.read(base.next(), 1 << 20).unwrap().unwrap();
    assert_eq!(live.last, v(200));
    let (checkpoint, live) = (CHECKPOINT_TEXT.len() as u64, live.byte_len() as u64);
    assert_eq!(progress.bytes_fetched, sealed_bytes(&master) + checkpoint + live, "{progress:?}");
    assert_eq!(progress.checkpoint_bytes, checkpoint);
    assert_eq!(progress.live_entries, v(200).since(base));
    install_and_check(&env, &master, true);
}

/// R "with writers": the log grows and is sealed while it is fetched.
#[test]
fn r_with_writers_the_restored_log_reaches_what_was_there_at_the_beginning() {
    for seed in 0..8 {
        let (master, env) = (Master::new(100), memory());
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let end = 200 + n * (seed + 1);
                    extend(&master.log, (end, end, 0), end - 10);
                    thread::sleep(Duration::from_micros(200));
                }
            });
            let progress = master.restore(&env, &restoring());
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(progress.unwrap().phase, Phase::Committed);
        });
        let machine = Machine::open(&env, "/n2-state");
        let restored = install(&env, &*machine).unwrap();
        assert!(restored.last >= v(200), "{restored:?}");
        assert_eq!(check_same_entries(&env, &master), restored.last);
        assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
    }
}

/// R "from followers only (master serves 0 base bytes)", the checkpoint too.
#[test]
fn r_from_followers_only_the_master_serves_0_base_bytes() {
    let (master, env) = (Master::new(100), memory());
    let (one, two) = (Master::follower("n3"), Master::follower("n4"));
    master.name_sources(&["n3", "n4"]);
    let node = Node::default().reaching("n3", &one).reaching("n4", &two);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(progress.sources[0].name.as_str(), "n1");
    assert_eq!((progress.sources[0].blocks, progress.sources[0].bytes), (0, 0), "{progress:?}");
    let given: u64 = progress.sources.iter().map(|source| source.bytes).sum();
    assert_eq!(given, sealed_bytes(&master) + CHECKPOINT_TEXT.len() as u64);
    assert_eq!(blocks_fetched(&progress), progress.blocks_total);
    install_and_check(&env, &master, true);
}

/// A source that has not said yet what it has holds nothing up for long.
#[test]
fn r_a_source_that_never_says_what_it_has_is_not_waited_for() {
    let (master, env) = (Master::new(100), memory());
    let silent = Master::follower("n3");
    master.name_sources(&["n3"]);
    let node =
        Node::default().dialling("n3", || Relay::of_questions(silent.connect(), |_| Vec::new()));
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total);
    assert!(progress.elapsed < Duration::from_secs(10), "{progress:?}");
    install_and_check(&env, &master, true);
}

/// R "a source dies".
#[test]
fn r_a_source_dies_and_the_others_give_what_it_owed() {
    let (master, env) = (Master::new(0), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let dying = || {
        let (inner, gave) = (follower.connect(), AtomicU32::new(0));
        let line = Arc::clone(&inner);
        Relay::of_answers(inner, move |answer| {
            let is_block = matches!(answer, RestoreMsg::Block { .. });
            if is_block && gave.fetch_add(1, Ordering::Relaxed) >= 4 {
                line.close();
                return Vec::new();
            }
            vec![answer]
        })
    };
    let node = Node::default().dialling("n3", dying);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(given(&progress, "n3").blocks, 4, "{progress:?}");
    assert_eq!(blocks_fetched(&progress), progress.blocks_total, "none twice: {progress:?}");
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total - 4, "{progress:?}");
    install_and_check(&env, &master, false);
}

/// R "a source flips bits": on the way, so that its own disk is not to blame.
#[test]
fn r_a_source_flips_bits_and_is_banned_after_three() {
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let doubts = Arc::new(AtomicU32::new(0));
    let flipping = || {
        let doubts = Arc::clone(&doubts);
        let count = move |question| {
            doubts.fetch_add(
                u32::from(matches!(question, RestoreMsg::Doubt { .. })),
                Ordering::Relaxed,
            );
            vec![question]
        };
        Relay::of(follower.connect(), count, |mut answer| {
            if let RestoreMsg::Block { bytes, .. } = &mut answer {
                bytes.to_mut()[70] ^= 4;
            }
            vec![answer]
        })
    };
    let node = Node::default().dialling("n3", flipping);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(progress.bad_blocks, MAX_STRIKES);
    assert_eq!(doubts.load(Ordering::Relaxed), MAX_STRIKES);
    assert_eq!(given(&progress, "n3").blocks, 0);
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total);
    assert!(follower.told.failures.lock().is_empty(), "its disk is in order");
    install_and_check(&env, &master, true);
}

/// R "a source flips bits": its disk does, and it is told so by a Doubt.
#[test]
fn r_a_source_whose_disk_flips_bits_learns_of_it() {
    let (master, env) = (Master::new(100), memory());
    let (disk, rotten) = fault_disk();
    let log = build_log(&rotten, Path::new("/log"), 4096, (200, 200, 0), 190);
    let follower = Master::of("n3", &rotten, log);
    follower.told.is_master.store(false, Ordering::Release);
    follower.machine.set(v(190), CHECKPOINT_TEXT).unwrap();
    let offered = master.log.sealed_segments();
    let bad = &offered[offered.len() / 2];
    let path = log_dir(Path::new("/log")).join(segment_name(bad.number));
    disk.corrupt(&path, 200, 1).unwrap();
    master.name_sources(&["n3"]);
    let node = Node::default().reaching("n3", &follower);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert!(progress.bad_blocks > 0, "{progress:?}");
    assert!(given(&progress, "n3").blocks > 0, "what is in order is taken: {progress:?}");
    assert_eq!(blocks_fetched(&progress), progress.blocks_total);
    let failures = follower.told.failures.lock().clone();
    let names_it =
        |failure: &String| failure.contains("digest") && failure.contains(&bad.number.to_string());
    assert!(failures.iter().any(names_it), "{failures:?}");
    install_and_check(&env, &master, true);
}

/// A restore from a follower that gives so many blocks, and then nothing; an answer may take so long.
fn restored_beside_one_that_gives_only(blocks: u32, answer_timeout: Duration) -> Progress {
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let (clock, hand) = Clock::manual();
    let turns = AtomicU32::new(0);
    let pass = |_: &Progress| {
        hand.set(Duration::from_millis(10) * (turns.fetch_add(1, Ordering::Relaxed) + 1));
    };
    let tiring = || {
        let asked = AtomicU32::new(0);
        Relay::of_questions(follower.connect(), move |question| {
            let is_block = matches!(question, RestoreMsg::BlockRequest { .. });
            let tired = is_block && asked.fetch_add(1, Ordering::Relaxed) >= blocks;
            if tired { Vec::new() } else { vec![question] }
        })
    };
    let node = Node { clock, watch: Box::new(pass), ..Node::default() }.dialling("n3", tiring);
    let limits = RestoreLimits { answer_timeout, ..restoring().limits };
    let restoring = Restoring { limits, ..restoring() };
    let progress = fetch(&env, dir(), &restoring, &master.connect(), &node).unwrap().unwrap();
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total - blocks, "{progress:?}");
    install_and_check(&env, &master, true);
    progress
}

/// Less than [`PATIENCE`].
const SHORT: Duration = Duration::from_millis(1500);

/// R "a source claims and does not serve".
#[test]
fn r_a_source_that_claims_and_does_not_serve_is_dropped_for_its_silence() {
    let progress = restored_beside_one_that_gives_only(0, SHORT);
    assert!(progress.elapsed >= SHORT, "{progress:?}");
}

/// The same before it is dropped: a node that is killed sooner than that gets further.
#[test]
fn r_what_a_silent_source_owes_is_asked_of_others_long_before_it_is_dropped() {
    for blocks in [0, 5] {
        let progress = restored_beside_one_that_gives_only(blocks, Duration::from_mins(10));
        // Turns in vain take time too, of whoever has the processor meanwhile.
        assert!((PATIENCE..PATIENCE * 20).contains(&progress.elapsed), "{progress:?}");
        assert_eq!(given(&progress, "n3").blocks, blocks, "{progress:?}");
        let of_state = CHECKPOINT_TEXT.len() as u64;
        assert!(
            given(&progress, "n1").bytes > of_state,
            "nor is its state waited for: {progress:?}"
        );
    }
}

/// A source gives blocks, and nothing of its state.
#[test]
fn r_a_source_that_is_silent_about_its_state_is_passed_over_long_before_it_is_dropped() {
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let (clock, hand) = Clock::manual();
    let turns = AtomicU32::new(0);
    let pass = |_: &Progress| {
        hand.set(Duration::from_millis(50) * (turns.fetch_add(1, Ordering::Relaxed) + 1));
    };
    let stateless = || {
        Relay::of_questions(follower.connect(), |question| {
            let is_open = matches!(question, RestoreMsg::StateOpen { .. });
            if is_open { Vec::new() } else { vec![question] }
        })
    };
    let node = Node { clock, watch: Box::new(pass), ..Node::default() }.dialling("n3", stateless);
    let limits = RestoreLimits { answer_timeout: Duration::from_mins(10), ..restoring().limits };
    let restoring = Restoring { limits, ..restoring() };
    let progress = fetch(&env, dir(), &restoring, &master.connect(), &node).unwrap().unwrap();
    assert!((STATE_PATIENCE..STATE_PATIENCE * 20).contains(&progress.elapsed), "{progress:?}");
    assert_eq!(given(&progress, "n3").blocks, progress.blocks_total, "{progress:?}");
    assert_eq!(given(&progress, "n1").bytes, CHECKPOINT_TEXT.len() as u64, "{progress:?}");
    install_and_check(&env, &master, true);
}

/// A channel whose blocks come so much later.
struct Late {
    inner: Arc<dyn Channel>,
    clock: Clock,
    by: Duration,
    due: Mutex<VecDeque<(Duration, Vec<u8>)>>,
}

impl Late {
    fn by(by: Duration, clock: &Clock, inner: Arc<dyn Channel>) -> Arc<dyn Channel> {
        Arc::new(Self { inner, clock: clock.clone(), by, due: Mutex::default() })
    }
}

impl Channel for Late {
    fn send(&self, frame: &[u8]) -> Result<()> {
        self.inner.send(frame)
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let (mut due, now) = (self.due.lock(), self.clock.now());
        if let Some(frame) = self.inner.receive(timeout)? {
            let is_block = matches!(RestoreMsg::decode(&frame), Ok(RestoreMsg::Block { .. }));
            if !is_block {
                return Ok(Some(frame));
            }
            due.push_back((now + self.by, frame));
        }
        let front = due.pop_front_if(|(at, _)| *at <= now);
        Ok(front.map(|(_, frame)| frame))
    }

    fn close(&self) {
        self.inner.close();
    }
}

/// A source that is slow, and not silent: what comes late counts where nobody else was asked for it, nothing is
/// taken twice, and it is waited for from then on.
#[test]
fn r_a_slow_source_is_waited_for_longer_once_it_has_answered() {
    let (master, env) = (Master::new(0), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let (clock, hand) = Clock::manual();
    let turns = AtomicU32::new(0);
    let pass = |_: &Progress| {
        hand.set(Duration::from_millis(10) * (turns.fetch_add(1, Ordering::Relaxed) + 1));
    };
    let slow = || Late::by(PATIENCE + Duration::from_secs(1), &clock, follower.connect());
    let node = Node { clock: clock.clone(), watch: Box::new(pass), ..Node::default() };
    let node = node.dialling("n3", slow);
    let channel = Late::by(Duration::from_secs(2), &clock, master.connect());
    let progress = session(&channel, &env, &node).unwrap();
    drop(node);
    let window = restoring().limits.window as u32;
    assert!((window..=2 * window).contains(&given(&progress, "n1").blocks), "{progress:?}");
    assert!(given(&progress, "n3").blocks > 0, "{progress:?}");
    assert_eq!(blocks_fetched(&progress), progress.blocks_total, "none twice: {progress:?}");
    install_and_check(&env, &master, false);
}

/// P "lease expiry -> another peer, blocks kept": a source that has given some and then nothing for too long has
/// lost its part.
#[test]
fn p_lease_expiry_another_peer_gives_the_rest_and_blocks_are_kept() {
    let progress = restored_beside_one_that_gives_only(5, SHORT);
    assert!(progress.elapsed >= SHORT, "{progress:?}");
    assert_eq!(given(&progress, "n3").blocks, 5, "{progress:?}");
}

/// R "a source claims and does not serve": what it says instead, unasked, does not count as an answer.
#[test]
fn r_a_source_that_talks_and_does_not_serve_is_dropped_as_well() {
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let (clock, hand) = Clock::manual();
    let turns = AtomicU32::new(0);
    let stalls = AtomicBool::new(false);
    let pass = |_: &Progress| {
        let turn = turns.fetch_add(1, Ordering::Relaxed) + 1;
        hand.set(Duration::from_millis(10) * turn);
        assert!(!stalls.swap(turn > 4000, Ordering::Relaxed), "the restore does not end");
    };
    let idle = || {
        let far = follower.connect();
        let near = LocalChannelPair::new();
        let (attach, babble) = (near.channel_b, Arc::clone(&far));
        thread::spawn(move || {
            let Ok(Some(first)) = attach.receive(Duration::from_secs(10)) else { return };
            babble.send(&first).unwrap();
            let holdings = babble.receive(Duration::from_secs(10)).unwrap().unwrap();
            attach.send(&holdings).unwrap();
            let noise = RestoreMsg::Block { request: u64::MAX, bytes: vec![1; 10].into() }.encode();
            while attach.send(&noise).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        Arc::new(near.channel_a) as Arc<dyn Channel>
    };
    let node = Node { clock, watch: Box::new(pass), ..Node::default() }.dialling("n3", idle);
    let limits = RestoreLimits { answer_timeout: Duration::from_secs(3), ..restoring().limits };
    let restoring = Restoring { limits, ..restoring() };
    let progress = fetch(&env, dir(), &restoring, &master.connect(), &node).unwrap().unwrap();
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total, "{progress:?}");
    install_and_check(&env, &master, true);
}

/// R "late duplicate reply": each answer comes a second time, some answers later.
#[test]
fn r_late_duplicate_replies_are_dropped() {
    fn doubled(inner: Arc<dyn Channel>) -> Arc<dyn Channel> {
        let kept = Mutex::new(Vec::new());
        Relay::of_answers(inner, move |answer| {
            let is_answer = matches!(
                answer,
                RestoreMsg::Block { .. }
                    | RestoreMsg::LiveRun { .. }
                    | RestoreMsg::StateOpened { .. }
                    | RestoreMsg::StateAnswer { .. }
                    | RestoreMsg::Holdings { .. }
            );
            let mut kept = kept.lock();
            let mut out = vec![answer.clone()];
            if is_answer {
                kept.push(answer);
            }
            if kept.len() > 2 {
                out.push(kept.remove(0));
                // At once, too.
                out.push(out[0].clone());
            }
            out
        })
    }
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let node = Node::default().dialling("n3", || doubled(follower.connect()));
    let progress = session(&doubled(master.connect()), &env, &node).unwrap();
    assert_eq!(blocks_fetched(&progress), progress.blocks_total, "{progress:?}");
    assert_eq!(progress.bad_blocks, 0);
    assert_eq!(given(&progress, "n3").bytes, sealed_bytes(&master) + CHECKPOINT_TEXT.len() as u64);
    install_and_check(&env, &master, true);
}

/// R "empty reply": to every kind of question, first by a source and then by the master.
#[test]
fn r_empty_replies_are_no_answer() {
    fn emptied(inner: Arc<dyn Channel>) -> Arc<dyn Channel> {
        let seen = Mutex::new(BTreeMap::<&str, u32>::new());
        Relay::of_answers(inner, move |mut answer| {
            let mut seen = seen.lock();
            let count = seen.entry(answer.name()).or_default();
            *count += 1;
            if *count <= 2 {
                match &mut answer {
                    RestoreMsg::Block { bytes, .. } | RestoreMsg::LiveRun { bytes, .. } => {
                        *bytes = b"".into();
                    }
                    RestoreMsg::StateAnswer { bytes, digest, .. } => {
                        *bytes = b"".into();
                        *digest = *blake3::hash(&[]).as_bytes();
                    }
                    _ => {}
                }
            }
            vec![answer]
        })
    }
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let node = Node::default().dialling("n3", || emptied(follower.connect()));
    let progress = session(&emptied(master.connect()), &env, &node);
    // The source is lost with its checkpoint, and the master's first piece is empty too.
    let refused = progress.unwrap_err().to_string();
    assert!(refused.contains("piece of the checkpoint"), "{refused}");
    assert!(!is_committed(&*env, dir()).unwrap());
    master.restore(&env, &restoring()).unwrap();
    install_and_check(&env, &master, true);
}

/// R "empty reply": a source that has nothing.
#[test]
fn r_a_source_without_a_segment_gives_nothing_and_costs_nothing() {
    let (master, env) = (Master::new(100), memory());
    let fresh = Master::built("n3", (0, 0, 0), 0);
    fresh.told.is_master.store(false, Ordering::Release);
    master.name_sources(&["n3"]);
    let node = Node::default().reaching("n3", &fresh);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(given(&progress, "n1").blocks, progress.blocks_total, "{progress:?}");
    install_and_check(&env, &master, true);
}

/// R "manifest extended": the log grew between two sessions, and the staged log was lost.
#[test]
fn r_manifest_extended_keeps_the_blocks() {
    let (master, env) = (Master::new(0), memory());
    let total = master.log.sealed_segments().len() as u32;
    break_off(&master, &env, Node::default(), |progress| progress.blocks_done >= total / 2);
    env.remove_dir_all(&restore_dir(dir()).join(LIVE)).unwrap();
    extend(&master.log, (300, 300, 0), 290);
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_total > total + 5, "{progress:?}");
    assert!(progress.blocks_reused >= total / 2, "{progress:?}");
    assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, progress.blocks_total);
    install_and_check(&env, &master, false);
}

/// R "manifest replaced": the front of the master's log moved on between two sessions.
#[test]
fn r_manifest_replaced_keeps_the_blocks_that_are_still_offered() {
    let (master, env) = (Master::new(0), memory());
    let total = master.log.sealed_segments().len() as u32;
    break_off(&master, &env, Node::default(), |progress| progress.blocks_done >= total / 2);
    master.await_absence();
    master.log.forget_absent();
    master.drop_front(40);
    let first = master.log.sealed_segments()[0].number;
    assert!(first > 2);
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_total < total && progress.blocks_reused > 0, "{progress:?}");
    assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, progress.blocks_total);
    let left = env.list(&restore_dir(dir())).unwrap();
    let below = |name: &String| {
        noxu_log::segment::name::parse_segment_name(name).is_some_and(|number| number < first)
    };
    assert!(!left.iter().any(below), "{left:?}");
    install_and_check(&env, &master, true);
}

/// R "master changes at 50 %: no log block refetched"; and its entries stay, cut at the matchpoint.
#[test]
fn r_master_changes_at_half_and_no_log_block_is_refetched() {
    // The same log; the same and more; another tail; a shorter one.
    for (what, matchpoint) in
        [((200, 200, 0), 200), ((230, 230, 0), 200), ((230, 194, 1), 194), ((195, 195, 0), 195)]
    {
        let (old, env) = (Master::new(0), memory());
        let total = old.log.sealed_segments().len() as u32;
        break_off(&old, &env, Node::default(), |progress| {
            progress.blocks_done >= total / 2 && progress.live_entries > 0
        });
        let new = Master::built("n3", what, 190);
        *new.told.term.lock() = Term::new(9);
        let restoring = Restoring { term: Term::new(9), ..restoring() };
        let progress = new.restore(&env, &restoring).unwrap();
        assert!(progress.blocks_reused >= total / 2, "{what:?}: {progress:?}");
        assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, total, "{progress:?}");
        assert_eq!(progress.live_entries, v(what.0).since(v(matchpoint)), "{what:?}: {progress:?}");
        install_and_check(&env, &new, false);
    }
}

/// R "a voter that acknowledged up to 1000 is restored to at least 1000": whatever is known to be
/// durable on a majority.
#[test]
fn r_a_voter_that_acknowledged_up_to_1000_is_restored_to_at_least_1000() {
    let (master, env) = (Master::built("n1", (1000, 1000, 0), 700), memory());
    master.drop_front(600);
    let old = build_log(&env, dir(), 4096, (1000, 1000, 0), 500);
    assert_eq!(old.positions().durable, v(1000));
    old.close().unwrap();
    drop(old);
    // Entry by entry, so that everything else is here long before.
    let channel = Relay::of_questions(master.connect(), |mut question| {
        if let RestoreMsg::LiveRequest { most, .. } = &mut question {
            *most = (*most).min(1);
        }
        vec![question]
    });
    session(&channel, &env, &Node::default()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
    assert!(restored.last >= v(1000), "{restored:?}");
    assert_eq!(check_same_entries(&env, &master), restored.last);
}

/// R "0 segments: anchor found as matchpoint, not a fresh start".
#[test]
fn r_0_segments_the_anchor_is_found_as_matchpoint() {
    let whole = Master::new(0);
    let (header, lsn) = whole.log.header(v(190)).unwrap().unwrap();
    let anchor = Anchor {
        vlsn: v(190),
        lsn,
        term: header.term,
        fingerprint: header.fingerprint,
        next_lsn: noxu_util::Lsn::new(lsn.segment() + 1, SEGMENT_HEAD_BYTES),
        group_config: bytes::Bytes::new(),
    };
    let disk: Arc<dyn Env> = Arc::new(MemoryEnv::new());
    begin_behind(&disk, Path::new("/log"), &group(4096), &anchor).unwrap();
    let (log, report) = Log::open(Arc::clone(&disk), Path::new("/log"), config()).unwrap();
    assert!(!report.head_uncertain);
    let (master, env) = (Master::of("n1", &disk, log), memory());
    master.machine.set(v(190), CHECKPOINT_TEXT).unwrap();
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!((progress.blocks_total, progress.live_entries), (0, 0));
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
    assert_eq!((restored.anchor, restored.last, restored.segments), (v(190), v(190), 0));
    // Looks for the matchpoint too.
    check_restored(&env, &master, true);
}

/// R "deposed master offers an uncommitted tail": its entries are cut off, and its checkpoint, which
/// holds some of them, is fetched anew.
#[test]
fn r_a_deposed_masters_uncommitted_tail_and_checkpoint_are_given_up() {
    let env = memory();
    let deposed = Master::built("n1", (200, 190, 9), 190);
    deposed.drop_front(100);
    deposed.machine.set(v(198), b"rolled back").unwrap();
    let node = Node { permits: false, ..Node::default() };
    let fetched = fetch(&env, dir(), &restoring(), &deposed.connect(), &node).unwrap();
    assert_eq!(fetched, None);
    // Another one is elected without them. The old one still keeps what it gave.
    deposed.told.is_master.store(false, Ordering::Release);
    deposed.machine.set(v(190), CHECKPOINT_TEXT).unwrap();
    let master = Master::built("n3", (205, 190, 11), 190);
    master.drop_front(100);
    master.name_sources(&["n1"]);
    let node = Node::default().reaching("n1", &deposed);
    session(&master.connect(), &env, &node).unwrap();
    install_and_check(&env, &master, true);
}

/// R "deposed master offers an uncommitted tail": a checkpoint with rolled-back content that ends below
/// what the new master has sealed.
#[test]
fn r_a_checkpoint_of_another_history_below_the_segments_end_is_not_taken() {
    let (master, env) = (Master::new(100), memory());
    let deposed = Master::built("n3", (200, 150, 9), 150);
    deposed.told.is_master.store(false, Ordering::Release);
    deposed.machine.set(v(160), b"rolled back").unwrap();
    master.name_sources(&["n3"]);
    let node = Node::default().reaching("n3", &deposed);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert!(given(&progress, "n3").blocks > 0, "what both have is taken: {progress:?}");
    install_and_check(&env, &master, true);
}

/// R "two restores at once".
#[test]
fn r_two_restores_at_once_from_one_master() {
    let master = Master::new(100);
    let envs = [memory(), memory()];
    let both = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        for env in &envs {
            scope.spawn(|| {
                let met = AtomicBool::new(false);
                let node = Node::watching(|_| {
                    if !met.swap(true, Ordering::Relaxed) {
                        both.wait();
                    }
                });
                let restoring = Restoring {
                    node: name(if std::ptr::eq(env, &raw const envs[0]) { "n2" } else { "n5" }),
                    ..restoring()
                };
                let progress = master.restore_watched(env, &restoring, &node).unwrap();
                assert_eq!(blocks_fetched(&progress), progress.blocks_total);
            });
        }
    });
    for env in &envs {
        let machine = Machine::open(env, "/n2-state");
        install(env, &*machine).unwrap();
        assert_eq!(check_same_entries(env, &master), v(200));
        assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
    }
}

/// R "0 segments, 1 byte, block size +-1": segments whose file is as long as some blocks, one byte
/// shorter, one longer, and checkpoints about as long as a piece.
#[test]
fn r_segments_of_a_block_and_one_byte_more_or_less_arrive_whole() {
    let overhead = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"").entry_bytes() as u32
        + SEGMENT_HEAD_BYTES;
    let mut met = Vec::new();
    for blocks in 1..=2 {
        for bytes in [blocks * BLOCK_BYTES - 1, blocks * BLOCK_BYTES, blocks * BLOCK_BYTES + 1] {
            let disk: Arc<dyn Env> = Arc::new(MemoryEnv::new());
            let (log, _) = Log::open(Arc::clone(&disk), Path::new("/log"), config()).unwrap();
            // Room for one such entry, not for two.
            log.found(group(blocks * BLOCK_BYTES + 4096)).unwrap();
            let body = vec![7; (bytes - overhead) as usize];
            for _ in 0..4 {
                let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body);
                log.append(Term::new(1), &[entry]).unwrap();
            }
            log.sync_now().unwrap();
            settle(&log, 4);
            let sizes: Vec<_> = log.sealed_segments().iter().map(|sealed| sealed.bytes).collect();
            met.extend(sizes.iter().map(|size| i64::from(*size) - i64::from(blocks * BLOCK_BYTES)));
            assert_eq!(sizes, [bytes; 3]);
            let (master, env) = (Master::of("n1", &disk, log), memory());
            let progress = master.restore(&env, &restoring()).unwrap();
            assert_eq!(progress.blocks_total, 3 * bytes.div_ceil(BLOCK_BYTES));
            assert_eq!(given(&progress, "n1").bytes, 3 * u64::from(bytes));
            install_and_check(&env, &master, false);
        }
    }
    met.sort_unstable();
    met.dedup();
    assert_eq!(met, [-1, 0, 1]);
}

/// R "0 segments, 1 byte, block size +-1": checkpoints.
#[test]
fn r_checkpoints_of_no_byte_one_byte_and_about_a_piece_arrive_whole() {
    const PIECE: usize = 1 << 20;
    for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE] {
        let (master, env) = (Master::new(100), memory());
        let text: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        master.machine.set(v(190), &text).unwrap();
        let progress = master.restore(&env, &restoring()).unwrap();
        assert_eq!(progress.checkpoint_bytes, len as u64);
        let machine = Machine::open(&env, "/n2-state");
        let restored = install(&env, &*machine).unwrap();
        assert_eq!(restored.checkpoint, v(190));
        assert!(*machine.state.lock() == (v(190), text), "{len} bytes");
    }
}

/// A checkpoint that is synced several times on its way.
fn large_text() -> Vec<u8> {
    (0..40u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Nothing but the checkpoint comes from `n3`, up to 20 MiB of it.
fn half_a_checkpoint(master: &Master, source: &Master, env: &Arc<dyn Env>) {
    let node = Node::default().reaching("n3", source);
    break_off(master, env, node, |progress| progress.checkpoint_bytes >= 20 << 20);
    // Until it has noticed, it does not give the same checkpoint to anybody else.
    source.await_absence();
}

fn check_state(env: &Arc<dyn Env>, through: Vlsn, text: &[u8]) {
    let machine = Machine::open(env, "/n2-state");
    install(env, &*machine).unwrap();
    let (vlsn, found) = machine.state.lock().clone();
    assert_eq!(vlsn, through);
    assert!(found == text, "{} bytes of another state", found.len());
}

/// R "source restarts": its connection does, and the checkpoint goes on where the last sync was.
#[test]
fn r_source_returns_and_the_checkpoint_goes_on() {
    let (master, source, env) = (Master::new(100), Master::follower("n3"), memory());
    master.name_sources(&["n3"]);
    source.machine.set(v(190), &large_text()).unwrap();
    half_a_checkpoint(&master, &source, &env);
    // A newer one would be another.
    source.machine.set(v(195), b"newer").unwrap();
    let node = Node::default().reaching("n3", &source);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert!(progress.checkpoint_reused >= 16 << 20, "{progress:?}");
    let fetched = (40 << 20) - progress.checkpoint_reused;
    assert_eq!(given(&progress, "n3").bytes, fetched, "{progress:?}");
    check_state(&env, v(190), &large_text());
}

/// R "source restarts": it knows nothing of the checkpoint any more, and gives another one.
#[test]
fn r_source_restarts_and_its_next_checkpoint_comes_from_0() {
    let (master, source, env) = (Master::new(100), Master::follower("n3"), memory());
    master.name_sources(&["n3"]);
    source.machine.set(v(190), &large_text()).unwrap();
    half_a_checkpoint(&master, &source, &env);
    let again = Master::follower("n3");
    again.machine.set(v(195), CHECKPOINT_TEXT).unwrap();
    let node = Node::default().reaching("n3", &again);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(progress.checkpoint_reused, 0);
    assert_eq!(progress.checkpoint_bytes, CHECKPOINT_TEXT.len() as u64);
    check_state(&env, v(195), CHECKPOINT_TEXT);
}

/// R "source restarts": it is gone for good, and another one gives it from 0.
#[test]
fn r_source_gone_and_the_checkpoint_comes_from_another_from_0() {
    let (master, source, env) = (Master::new(100), Master::follower("n3"), memory());
    master.name_sources(&["n3"]);
    source.machine.set(v(190), &large_text()).unwrap();
    half_a_checkpoint(&master, &source, &env);
    let other = Master::follower("n4");
    master.name_sources(&["n3", "n4"]);
    let node = Node::default().reaching("n4", &other);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(progress.checkpoint_reused, 0);
    assert_eq!(given(&progress, "n4").bytes, CHECKPOINT_TEXT.len() as u64);
    check_state(&env, v(190), CHECKPOINT_TEXT);
}

/// What was had of a checkpoint when the power went is a hint, as the bitmap is: it is verified before more
/// is put behind.
#[test]
fn r_what_rotted_of_half_a_checkpoint_is_fetched_again() {
    let (disk, env) = fault_disk();
    let (master, source) = (Master::new(100), Master::follower("n3"));
    master.name_sources(&["n3"]);
    source.machine.set(v(190), &large_text()).unwrap();
    half_a_checkpoint(&master, &source, &env);
    let disk = disk.crash(1);
    disk.corrupt(&restore_dir(dir()).join("state/checkpoint"), 1234, 1).unwrap();
    let env: Arc<dyn Env> = Arc::new(disk);
    let node = Node::default().reaching("n3", &source);
    let progress = session(&master.connect(), &env, &node).unwrap();
    assert_eq!(progress.checkpoint_reused, 0, "{progress:?}");
    check_state(&env, v(190), &large_text());
}

/// The master's own checkpoint, below which its log ends by now, cannot be gone on with: a new one is
/// asked for, instead of this one again and again.
#[test]
fn r_a_checkpoint_below_the_new_front_is_given_up() {
    let (master, env) = (Master::new(100), memory());
    master.machine.set(v(190), &large_text()).unwrap();
    break_off(&master, &env, Node::default(), |progress| progress.checkpoint_bytes >= 20 << 20);
    env.remove_dir_all(&restore_dir(dir()).join(LIVE)).unwrap();
    extend(&master.log, (400, 400, 0), 390);
    master.machine.set(v(390), CHECKPOINT_TEXT).unwrap();
    master.await_absence();
    master.log.forget_absent();
    master.drop_front(350);
    master.restore(&env, &restoring()).unwrap();
    check_state(&env, v(390), CHECKPOINT_TEXT);
    assert_eq!(check_same_entries(&env, &master), v(400));
}

/// R "ENOSPC then space": at any moment.
#[test]
fn r_enospc_then_space_at_any_moment() {
    let master = Master::new(100);
    let (mut capacity, mut full_sessions) = (0, 0);
    let (disk, env): (FaultEnv, _) = fault_disk();
    build_log(&env, dir(), 4096, (40, 40, 0), 40).close().unwrap();
    let before = disk.used_bytes();
    loop {
        disk.set_capacity(Some(before + capacity));
        match master.restore(&env, &restoring()) {
            // The node's log says so in its own way.
            Err(RepError::Log(error) | RepError::ReadOnly(error)) if error.is_storage_full() => {
                full_sessions += 1;
            }
            other => {
                other.unwrap();
                break;
            }
        }
        assert!(!is_committed(&*env, dir()).unwrap());
        capacity += 2048;
    }
    assert!(full_sessions > 10, "{full_sessions}");
    disk.set_capacity(None);
    install_and_check(&env, &master, true);
}
