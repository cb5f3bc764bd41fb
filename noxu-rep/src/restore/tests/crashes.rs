//! Crashes: what a restore leaves when the power goes, at every call to the disk. Rows X.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use noxu_log::env::Survivors;
use noxu_log::segment::name::segment_name;

use super::super::base::Mutation;
use super::super::bitmap::ALIGN;
use super::super::manifest::{BITMAP, COMMIT, LIVE, MARKER, VERIFIED};
use super::*;

/// A master, and a follower that gives segments and checkpoint too.
struct Givers {
    master: Master,
    follower: Master,
}

impl Givers {
    fn new() -> Self {
        let (master, follower) = (Master::new(100), Master::follower("n3"));
        master.name_sources(&["n3"]);
        Self { master, follower }
    }

    /// A session while the master's log grows, as long as it has fewer than `until` entries.
    fn restore(&self, env: &Arc<dyn Env>, restoring: &Restoring, until: i64) -> Result<Progress> {
        let log = &self.master.log;
        let writes = |_: &Progress| {
            let end = log.positions().last.sequence() + 1;
            if end <= until {
                extend(log, (end, end, 0), 190);
            }
        };
        let node = Node::watching(writes).reaching("n3", &self.follower);
        self.master.restore_watched(env, restoring, &node)
    }
}

/// A node with an old log, which another history parts from the master's.
fn with_old_log(env: &Arc<dyn Env>) -> noxu_util::Fingerprint {
    let old = build_log(env, dir(), 4096, (120, 60, 9), 50);
    let old_end = old.positions().last_fingerprint;
    old.close().unwrap();
    drop(old);
    Machine::open(env, "/n2-state").set(v(50), b"old state").unwrap();
    env.sync_dir(Path::new("/")).unwrap();
    old_end
}

/// Restores on a disk that crashes at its `call`-th call; false when it got through without.
/// Whatever the crash left, either the old log is whole or the restore ends.
fn crash_and_recover(
    givers: &Givers,
    (call, seed): (u64, u64),
    (mutation, sync_bytes): (Mutation, u64),
) -> (bool, u32) {
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    let master = &givers.master;
    let old_end = with_old_log(&env);
    let mut restoring = Restoring { mutation, ..restoring() };
    restoring.limits.sync_bytes = sync_bytes;

    faulty.crash_at(faulty.calls() + call);
    let machine = Machine::open(&env, "/n2-state");
    let until = master.log.positions().last.sequence() + 2;
    let through = givers.restore(&env, &restoring, until).and_then(|_| install(&env, &*machine));
    if through.is_ok() && !faulty.has_crashed() {
        return (false, 0);
    }
    // The power goes, and comes back: twice, to crash in the recovery too.
    let mut faulty = faulty.crash(seed);
    let mut false_claims = 0;
    // With the mutation it shows in the first session after the crash.
    for again in [true, false].into_iter().skip(usize::from(mutation != Mutation::None)) {
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        if again {
            faulty.crash_at(1 + (seed * 31 + call * 7) % 60);
        }
        let machine = Machine::open(&env, "/n2-state");
        let outcome = recover(&env, &machine).and_then(|recovered| {
            if matches!(recovered, Recovered::Installed(_)) {
                return Ok(());
            }
            // Not finished: then either all of the old is there, or all of the new.
            let (log, _) = Log::open(Arc::clone(&env), dir(), config())?;
            let end = log.positions().last_fingerprint;
            log.close()?;
            drop(log);
            if end != old_end {
                assert_eq!(recovered, Recovered::Nothing, "call {call}, seed {seed}");
                return Ok(());
            }
            let progress = givers.restore(&env, &restoring, 0)?;
            false_claims += progress.false_claims;
            install(&env, &*machine).map(|_| ())
        });
        if again {
            faulty = faulty.crash(seed + 1);
        } else {
            outcome.unwrap_or_else(|err| panic!("call {call}, seed {seed}: {err}"));
            // Through what was there when its last session began.
            let last = check_same_entries(&env, master);
            assert!(last >= v(until - 2), "call {call}, seed {seed}: {last}");
            let machine = Machine::open(&env, "/n2-state");
            assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
            let names = LostEntries::list(&*env, dir()).unwrap();
            let lost = LostEntries::read(&*env, dir(), &names[0]).unwrap();
            assert_eq!(lost.header.end.fingerprint, old_end, "call {call}, seed {seed}");
        }
    }
    (true, false_claims)
}

/// X "crash at each of ...": every call to the disk, with a source, a checkpoint and live entries; and
/// "two crashes": at a call of the recovery again. Each block is synced by itself.
#[test]
fn x_a_crash_at_any_call_leaves_the_old_log_whole_or_a_restore_that_ends() {
    crash_at_any_call(1);
}

/// The same with blocks that come while others are synced.
#[test]
fn x_a_crash_at_any_call_while_more_comes_leaves_the_old_log_whole_or_a_restore_that_ends() {
    crash_at_any_call(MANY_BLOCKS);
}

/// Bytes of several blocks.
const MANY_BLOCKS: u64 = 24 << 10;

fn crash_at_any_call(sync_bytes: u64) {
    let mut call = 1;
    let mut false_claims = 0;
    loop {
        // Anew, for its log grows meanwhile.
        let givers = Givers::new();
        let mut crashed = false;
        for seed in 0..3 {
            let (hit, claims) = crash_and_recover(
                &givers,
                (call, seed * 1000 + call),
                (Mutation::None, sync_bytes),
            );
            crashed |= hit;
            false_claims += claims;
        }
        if !crashed {
            break;
        }
        call += 1;
    }
    assert!(call > if sync_bytes == 1 { 150 } else { 80 }, "only {call} calls");
    assert_eq!(false_claims, 0, "the bitmap claimed blocks that were not on disk");
}

/// X "mutation: bitmap before data must fail the suite".
#[test]
fn x_saving_the_bitmap_before_its_data_would_be_caught() {
    assert!(is_caught((Mutation::ClaimsFirst, 1)));
}

#[test]
fn x_claiming_what_came_while_others_were_synced_would_be_caught() {
    assert!(is_caught((Mutation::ClaimsWhatCameMeanwhile, MANY_BLOCKS)));
}

/// Whether the crash test can tell this from what is right.
fn is_caught(how: (Mutation, u64)) -> bool {
    let givers = Givers::new();
    // Which crash shows it depends on how many blocks came between two syncs.
    (0..30).any(|seed| {
        (1..200).any(|call| crash_and_recover(&givers, (call, seed * 1000 + call), how).1 > 0)
    })
}

/// What one crash of a loop leaves: the next machine, with a random part of what was not synced.
fn restarted(faulty: &FaultEnv, seed: u64) -> (FaultEnv, Arc<dyn Env>) {
    let faulty = faulty.crash(seed);
    (faulty.clone(), Arc::new(faulty))
}

/// X "crash loop of 200 rounds always progresses": no round is in vain for good, and no block is
/// fetched again but those of the last batch that was not synced.
#[test]
fn x_crash_loop_of_200_rounds_always_progresses() {
    let (mut ended, mut rounds) = (0, 0);
    let givers = Givers::new();
    for seed in 0.. {
        if rounds >= 200 {
            break;
        }
        let (mut faulty, mut env) = fault_disk();
        with_old_log(&env);
        let mut had = 0;
        // More and more calls, so that it ends; in the first rounds not even a marker comes about.
        for round in 1_u64.. {
            rounds += 1;
            let calls = 20 + (seed * 7919 + round * 104_729) % (40 + round * 10);
            faulty.crash_at(faulty.calls() + calls);
            let machine = Machine::open(&env, "/n2-state");
            let seen = Mutex::new(Progress::default());
            let node = Node::watching(|progress| *seen.lock() = progress.clone());
            let node = node.reaching("n3", &givers.follower);
            let recovered = recover(&env, &machine);
            // Without a marker, after there was one, all of it was installed before.
            let is_installed = matches!(recovered, Ok(Recovered::Installed(_)))
                || (had > 0 && matches!(recovered, Ok(Recovered::Nothing)));
            let outcome = recovered.and_then(|_| {
                if is_installed {
                    return Ok(());
                }
                givers.master.restore_watched(&env, &restoring(), &node)?;
                install(&env, &*machine).map(|_| ())
            });
            drop(node);
            let seen = seen.into_inner();
            assert_eq!(seen.false_claims, 0);
            // What was shown as had was synced: it is there again.
            if seen.blocks_total > 0 {
                assert!(
                    seen.blocks_reused >= had,
                    "seed {seed}, round {round}: {had} had, {seen:?}"
                );
                had = seen.blocks_done;
            }
            if outcome.is_ok() {
                break;
            }
            assert!(faulty.has_crashed(), "seed {seed}, round {round}: {outcome:?}");
            assert!(round < 100, "seed {seed} makes no progress");
            (faulty, env) = restarted(&faulty, seed * 1000 + round);
        }
        ended += 1;
        let env: Arc<dyn Env> = Arc::new(faulty.kill());
        assert_eq!(check_same_entries(&env, &givers.master), v(200));
        let machine = Machine::open(&env, "/n2-state");
        assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
    }
    assert!(ended > 5, "{ended} ended");
}

/// X "block before sync", "sync before bitmap": of what came, all but the last batch is there again.
#[test]
fn x_a_crash_costs_no_more_than_the_last_batch() {
    let master = Master::new(0);
    let total = master.log.sealed_segments().len() as u32;
    for stop_at in 1..total {
        let (faulty, env) = fault_disk();
        let channel = master.connect();
        let had = Mutex::new(0);
        let node = Node::watching(|progress| {
            *had.lock() = progress.blocks_done;
            if progress.blocks_done >= stop_at {
                channel.close();
            }
        });
        let _ = fetch(&env, dir(), &restoring(), &channel, &node);
        let (_, env) =
            (faulty.clone(), Arc::new(faulty.crash_keeping(Survivors::None)) as Arc<dyn Env>);
        if is_committed(&*env, dir()).unwrap() {
            continue; // all of it came in the turn in which the connection broke
        }
        let progress = master.restore(&env, &restoring()).unwrap();
        let had = *had.lock();
        // At most what one turn takes from its source: the window.
        assert!(progress.blocks_reused + 3 >= had, "{stop_at}: {had} had, {progress:?}");
        assert!(progress.blocks_reused <= had + 3 && progress.false_claims == 0);
        assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, total);
    }
}

/// X "torn bitmap slot, both slots bad": the newest slot, then both.
#[test]
fn x_torn_bitmap_slots_claim_less_and_never_wrongly() {
    let master = Master::new(0);
    let (fetched, env) = fault_disk();
    let node = Node { permits: false, ..Node::default() };
    assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
    let reused = |slots: &[u64]| {
        let faulty = fetched.clone_image(Survivors::All);
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        for slot in slots {
            faulty
                .corrupt(&restore_dir(dir()).join(BITMAP), slot * ALIGN as u64 + 8, 0xff)
                .unwrap();
        }
        let progress = master.restore(&env, &restoring()).unwrap();
        assert_eq!(progress.false_claims, 0);
        assert_eq!(blocks_fetched(&progress) + progress.blocks_reused, progress.blocks_total);
        install_and_check_entries(&env, &master);
        progress.blocks_reused
    };
    let whole = reused(&[]);
    let torn = [reused(&[0]), reused(&[1])];
    assert_eq!(whole, master.log.sealed_segments().len() as u32);
    assert!(torn.contains(&whole), "one slot is older: {torn:?}");
    assert!(torn.iter().all(|reused| *reused > 0), "{torn:?}");
    assert_eq!(reused(&[0, 1]), 0);
}

fn install_and_check_entries(env: &Arc<dyn Env>, master: &Master) {
    let machine = Machine::open(env, "/n2-state");
    install(env, &*machine).unwrap();
    assert_eq!(check_same_entries(env, master), master.log.positions().last);
}

/// X "torn live append": what was acknowledged of the staged log is there again, the rest comes anew.
#[test]
fn x_torn_live_append_loses_nothing_that_was_acknowledged() {
    for seed in 0..30 {
        let givers = Givers::new();
        let (faulty, env) = fault_disk();
        let needed = Arc::new(Mutex::new(noxu_util::Vlsn::default()));
        let said = Arc::clone(&needed);
        let channel = Relay::of_questions(givers.master.connect(), move |question| {
            if let RestoreMsg::LiveRequest { needed, .. } = &question {
                *said.lock() = *needed;
            }
            vec![question]
        });
        // In the middle of a write to the staged log, once it holds something.
        let node = Node::watching(|progress| {
            let end = givers.master.log.positions().last.sequence() + 1;
            if end < 260 {
                extend(&givers.master.log, (end, end, 0), 190);
            }
            if progress.live_entries > 20 {
                faulty.crash_at(faulty.calls() + 1 + seed % 6);
            }
        });
        let broken = fetch(&env, dir(), &restoring(), &channel, &node);
        if !faulty.has_crashed() {
            broken.unwrap();
        }
        let needed = *needed.lock();
        let image: Arc<dyn Env> = Arc::new(faulty.crash(seed));
        let live = restore_dir(dir()).join(LIVE);
        if let Ok((staged, _)) = Log::open(Arc::clone(&image), &live, config()) {
            assert!(staged.positions().last.next() >= needed, "seed {seed}: {needed}");
            staged.close().unwrap();
        } else {
            assert!(
                is_committed(&*image, dir()).unwrap() || needed < v(191),
                "seed {seed}: {needed}"
            );
        }
        givers.restore(&image, &restoring(), 0).unwrap();
        install_and_check_entries(&image, &givers.master);
    }
}

/// X "ack lost": the connection breaks and the power goes when the node acknowledges entries, each time that
/// it does. They were synced before, and do not come again.
#[test]
fn x_an_ack_that_is_lost_costs_nothing() {
    for nth in 1.. {
        let master = Master::new(100);
        let (faulty, env) = fault_disk();
        let (lost, asked) = (Arc::new(Mutex::new(None)), AtomicU64::new(0));
        let (connection, losing) = (master.connect(), Arc::clone(&lost));
        let channel = Relay::of_questions(Arc::clone(&connection), move |question| {
            if let RestoreMsg::LiveRequest { needed, .. } = question
                && asked.fetch_add(1, Ordering::Relaxed) + 1 == nth
            {
                *losing.lock() = Some(needed);
                connection.close();
            }
            vec![question]
        });
        let node = Node::watching(|progress| {
            let end = master.log.positions().last.sequence() + 1;
            if progress.live_entries > 0 && end < 215 {
                extend(&master.log, (end, end, 0), 190);
            }
        });
        let broken = fetch(&env, dir(), &restoring(), &channel, &node);
        let Some(needed) = *lost.lock() else {
            broken.unwrap();
            assert!(nth > 4, "only {nth} acknowledgements");
            break;
        };
        broken.unwrap_err();
        let image: Arc<dyn Env> = Arc::new(faulty.crash_keeping(Survivors::None));
        let progress = master.restore(&image, &restoring()).unwrap();
        let last = master.log.positions().last;
        assert!(progress.live_entries <= last.since(needed) + 1, "{nth}: {needed}, {progress:?}");
        install_and_check(&image, &master, true);
    }
}

/// X "before Completed": the master does not hear that everything is there; the node needs no answer.
#[test]
fn x_a_word_of_completion_that_is_lost_costs_nothing() {
    let (master, env) = (Master::new(100), memory());
    let connection = master.connect();
    let channel = Relay::of_questions(Arc::clone(&connection), move |question| {
        if matches!(question, RestoreMsg::Done { .. }) {
            connection.close();
            return vec![];
        }
        vec![question]
    });
    fetch(&env, dir(), &restoring(), &channel, &Node::default()).unwrap();
    assert!(is_committed(&*env, dir()).unwrap());
    install_and_check(&env, &master, true);
}

/// X "open with marker", "before COMMIT", "COMMIT only": what a node that starts finds, and that the old
/// log is there until then.
#[test]
fn x_open_with_marker_resumes_and_with_commit_finishes() {
    let givers = Givers::new();
    let (_, env) = fault_disk();
    let old_end = with_old_log(&env);
    let machine = Machine::open(&env, "/n2-state");
    let start = || recover(&env, &machine).unwrap();
    let old_is_whole = || {
        let (log, _) = Log::open(Arc::clone(&env), dir(), config()).unwrap();
        let end = log.positions().last_fingerprint;
        log.close().unwrap();
        end == old_end
    };
    assert_eq!(start(), Recovered::Nothing);
    let node = Node { permits: false, ..Node::default() };
    let channel = givers.master.connect();
    assert_eq!(fetch(&env, dir(), &restoring(), &channel, &node).unwrap(), None);
    let has = |file: &str| env.exists(&restore_dir(dir()).join(file)).unwrap();
    assert!(has(MARKER) && !has(COMMIT));
    assert_eq!(start(), Recovered::Begun);
    assert!(old_is_whole());
    givers.restore(&env, &restoring(), 0).unwrap();
    assert!(has(MARKER) && has(COMMIT) && old_is_whole());
    assert!(matches!(start(), Recovered::Installed(_)));
    assert!(!has(MARKER) && !has(COMMIT));
    assert_eq!(start(), Recovered::Nothing);
    assert_eq!(check_same_entries(&env, &givers.master), v(200));
}

/// X "after each move", "two crashes in install", "before marker removal, after it": every pair of calls
/// of the installation.
#[test]
fn x_two_crashes_in_install_at_any_two_calls() {
    let givers = Givers::new();
    let (faulty, env) = fault_disk();
    let old_end = with_old_log(&env);
    givers.restore(&env, &restoring(), 0).unwrap();
    let committed = |seed| {
        let faulty = faulty.clone_image(Survivors::Random(seed));
        (faulty.clone(), Arc::new(faulty) as Arc<dyn Env>)
    };
    let go = |env: &Arc<dyn Env>| {
        let machine = Machine::open(env, "/n2-state");
        recover(env, &machine)
    };
    let mut met = BTreeMap::new();
    for first in 1.. {
        let (one, env) = committed(first);
        one.crash_at(one.calls() + first);
        let _ = go(&env);
        if !one.has_crashed() {
            break;
        }
        let second = 1 + first * 37 % 90;
        let (two, env) = restarted(&one, first);
        two.crash_at(two.calls() + second);
        let _ = go(&env);
        let (_, env) = restarted(&two, first + second);
        *met.entry(go(&env).is_ok()).or_insert(0) += 1;
        assert_eq!(go(&env).unwrap(), Recovered::Nothing, "calls {first} and {second}");
        assert_eq!(check_same_entries(&env, &givers.master), v(200), "calls {first} and {second}");
        let machine = Machine::open(&env, "/n2-state");
        assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
        let names = LostEntries::list(&*env, dir()).unwrap();
        assert_eq!(names.len(), 1, "calls {first} and {second}");
        let lost = LostEntries::read(&*env, dir(), &names[0]).unwrap();
        assert_eq!(lost.header.end.fingerprint, old_end, "calls {first} and {second}");
    }
    assert!(met[&true] > 60 && met.len() == 1, "{met:?}");
}

/// Kills the node every `calls` calls to the disk until its restore is committed; in which round, if that comes
/// about. Then it is installed, for which nobody was to be faster.
fn rounds_of_kills(master: &Master, calls: u64) -> Option<u32> {
    let (mut faulty, mut env) = fault_disk();
    for round in 1..100 {
        faulty.crash_at(faulty.calls() + calls);
        let fetched = fetch(&env, dir(), &restoring(), &master.connect(), &Node::default());
        faulty = faulty.kill();
        env = Arc::new(faulty.clone());
        if is_committed(&*env, dir()).unwrap() {
            install(&env, &*Machine::open(&env, "/n2-state")).unwrap();
            check_same_entries(&env, master);
            return Some(round);
        }
        assert!(fetched.is_err(), "round {round}: {fetched:?}");
    }
    None
}

/// X "crash loop always progresses": a node that is killed sooner than it could read what it has.
#[test]
fn x_a_node_that_is_killed_sooner_than_it_could_verify_what_it_has_gets_further() {
    let master = Master::built("n1", (500, 500, 0), 490);
    let (faulty, env) = fault_disk();
    let node = Node { permits: false, ..Node::default() };
    assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
    // Calls of a session of a node that has everything.
    let calls = |faulty: FaultEnv| {
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        faulty.calls()
    };
    let known = calls(faulty.kill());
    let read = faulty.kill();
    read.remove(&restore_dir(dir()).join(VERIFIED)).unwrap();
    let read = calls(read);
    assert!(read > 3 * known, "{read} calls, {known} of what is noted");
    let most = known + (read - known) / 2;
    let rounds = rounds_of_kills(&master, most);
    assert!(rounds.is_some_and(|rounds| rounds > 2), "{rounds:?} of {most} of {read} calls");
}

/// What was verified is not believed of segments that are not there any more: another master's offer had
/// come without them, and the node was killed before it had noted that.
#[test]
fn x_verified_segments_that_are_gone_are_fetched_again() {
    let master = Master::new(0);
    let numbers: Vec<u32> = master.log.sealed_segments().iter().map(|of| of.number).collect();
    for gone in [numbers[0], numbers[numbers.len() - 1]] {
        let (faulty, env) = fault_disk();
        let node = Node { permits: false, ..Node::default() };
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        env.remove(&restore_dir(dir()).join(segment_name(gone))).unwrap();
        let env: Arc<dyn Env> = Arc::new(faulty.kill());
        master.restore(&env, &restoring()).unwrap();
        install_and_check(&env, &master, false);
    }
}

/// The log grew between two sessions, the staged log was lost, and the node is killed at any call of the second
/// session: no block of the first is fetched again.
#[test]
fn x_a_kill_while_the_manifest_is_extended_costs_nothing() {
    for call in 1.. {
        let master = Master::new(0);
        let total = master.log.sealed_segments().len() as u32;
        let (faulty, env) = fault_disk();
        let node = Node { permits: false, ..Node::default() };
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        env.remove_dir_all(&restore_dir(dir()).join(LIVE)).unwrap();
        extend(&master.log, (300, 300, 0), 290);
        faulty.crash_at(faulty.calls() + call);
        let through = fetch(&env, dir(), &restoring(), &master.connect(), &node).is_ok();
        let env: Arc<dyn Env> = Arc::new(faulty.kill());
        let progress = master.restore(&env, &restoring()).unwrap();
        assert!(progress.blocks_reused >= total, "call {call}: {total} had, {progress:?}");
        assert!(progress.blocks_total > total + 5, "{progress:?}");
        if through {
            assert!(call > 50, "only {call} calls");
            break;
        }
    }
}

/// Masters of two histories offer segments of the same numbers, and the node is killed at any call of the second
/// session: what was verified of one is never believed of the other's bytes, whoever offers next.
#[test]
fn x_offers_that_alternate_are_never_mixed() {
    let built = |lineage| {
        let master = Master::built("n1", (200, 0, lineage), 190);
        *master.told.term.lock() = Term::new(20);
        master
    };
    let (one, other) = (built(9), built(11));
    let node = Node { permits: false, ..Node::default() };
    // What a node has when it was killed at this call of a session with `master`, and whether the session ended.
    let killed_at = |faulty: FaultEnv, master: &Master, call: u64| {
        faulty.crash_at(faulty.calls().saturating_add(call));
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        let through = fetch(&env, dir(), &restoring(), &master.connect(), &node).is_ok();
        (faulty.kill(), through)
    };
    let restored_by_each = |faulty: &FaultEnv| {
        for next in [&one, &other] {
            let env: Arc<dyn Env> = Arc::new(faulty.kill());
            next.restore(&env, &restoring()).unwrap();
            install_and_check(&env, next, false);
        }
    };
    let is_noted = |faulty: &FaultEnv| faulty.exists(&restore_dir(dir()).join(VERIFIED)).unwrap();
    let had_when = |call| killed_at(FaultEnv::new(), &one, call).0;
    let little = (1..1000).find(|call| is_noted(&had_when(*call))).unwrap();
    for had in [little, u64::MAX] {
        for call in 1.. {
            let (faulty, through) = killed_at(had_when(had), &other, call);
            restored_by_each(&faulty);
            if through {
                assert!(call > 100, "only {call} calls");
                break;
            }
        }
    }
}

/// Bytes that were read of segments that are being restored.
fn read_of_segments(faulty: &FaultEnv) -> u64 {
    let of = |call: &noxu_log::env::Call| {
        let name = call.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_segment = noxu_log::segment::name::parse_segment_name(name).is_some();
        call.function == "read_at" && is_segment && call.path.starts_with(restore_dir(dir()))
    };
    faulty.trace().iter().filter(|call| of(call)).map(|call| call.len).sum()
}

/// What a killed process had verified is not read again, though the offer has changed at both ends; what
/// the machine left when the power went is.
#[test]
fn x_what_was_verified_is_read_again_only_after_the_power_went() {
    let read = |changed: bool, power: bool| {
        let master = Master::new(0);
        let (faulty, env) = fault_disk();
        let node = Node { permits: false, ..Node::default() };
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        let bytes: u64 = master.log.sealed_segments().iter().map(|of| u64::from(of.bytes)).sum();
        if changed {
            master.await_absence();
            master.log.forget_absent();
            master.drop_front(40);
            let end = master.log.positions().last.sequence();
            extend(&master.log, (end + 60, end + 60, 0), end + 50);
        }
        let faulty = if power { faulty.crash(1) } else { faulty.kill() };
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        assert_eq!(fetch(&env, dir(), &restoring(), &master.connect(), &node).unwrap(), None);
        read_of_segments(&faulty) as f64 / bytes as f64
    };
    // One segment, for the entry at which the restore was to end.
    assert!(read(false, false) < 0.3);
    assert!(read(false, true) > 1.9);
    // And what is new.
    let with_new = read(true, false);
    assert!(with_new > 0.2 && with_new < 1.0, "{with_new}");
}
