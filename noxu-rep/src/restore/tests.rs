//! Tests of the network restore.

mod breaking;
mod crashes;
mod live;
mod requests;
mod rig;
mod sources;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv};
use noxu_log::{Cut, EntryFlags, EntryKind, EntryRun, Log, LogError, LostEntries, NewEntry};
use noxu_util::{GroupId, NULL_VLSN, Term};
use parking_lot::Mutex;

use self::rig::*;
use super::install::Recovered;
use super::session::{Restoring, fetch, is_committed, is_pending};
use super::*;
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::mutant::Mutant;
use crate::net::channel::{Channel, LocalChannelPair};
use crate::sync::{Checkpoint, LogReader, StateMachine};
use crate::wire::handshake::NodeKind;
use crate::wire::restore::RestoreMsg;

#[test]
fn a_fresh_node_gets_a_whole_log_without_a_checkpoint() {
    let (master, env) = (Master::new(0), memory());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!((progress.phase, progress.blocks_reused), (Phase::Committed, 0));
    assert_eq!(progress.blocks_done, progress.blocks_total);
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
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
    let restored = install(&env, &*machine).unwrap();
    assert_eq!((restored.checkpoint, restored.lost), (v(190), None));
    check_restored(&env, &master, true);
}

/// What it has is never rolled back: it waits for what its checkpoint says to be durable, and gets
/// nothing that is not.
#[test]
fn a_node_without_a_vote_gets_nothing_that_is_not_durable() {
    let (master, env) = (Master::new(100), memory());
    master.machine.set(v(195), CHECKPOINT_TEXT).unwrap();
    let secondary = Restoring { kind: NodeKind::Secondary, ..restoring() };
    thread::scope(|scope| {
        let restored = scope.spawn(|| master.restore(&env, &secondary));
        while master.told.asked.load(Ordering::Relaxed) < 10 {
            thread::yield_now(); // it asks again and again while it waits
        }
        assert!(!restored.is_finished());
        master.told.dtvlsn.store(197, Ordering::Release);
        restored.join().unwrap().unwrap();
    });
    let machine = Machine::open(&env, "/n2-state");
    let restored = install(&env, &*machine).unwrap();
    assert_eq!((restored.checkpoint, restored.last), (v(195), v(197)));
}

#[test]
fn segments_of_many_blocks_and_large_tails_arrive_whole() {
    let (master, env) = (Master::with(600 << 10, 9_000, 8_000, 0), memory());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_total > 4, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
    check_restored(&env, &master, false);
}

#[test]
fn a_log_that_has_no_sealed_segment_left_is_restored_from_its_tail() {
    let (master, env) = (Master::new(190), memory());
    assert!(master.log.sealed_segments().len() <= 1);
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
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
    let restored = install(&env, &*machine).unwrap();
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
    let channel = master.connect();
    let node = Node::watching(|progress| {
        if progress.blocks_done >= total / 2 {
            channel.close();
        }
    });
    let broken = fetch(&env, dir(), &restoring(), &channel, &node);
    assert!(broken.is_err_and(|err| err.is_disconnect()));
    assert!(is_pending(&*env, dir()).unwrap() && !is_committed(&*env, dir()).unwrap());
    // The log grew meanwhile: what is new comes behind what was staged.
    let body = [1; 500];
    for _ in 0..30 {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body);
        master.log.append(Term::new(1), &[entry]).unwrap();
    }
    master.log.sync_now().unwrap();
    master.log.control().update(|control| control.commit_floor = v(230)).unwrap();
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_reused > 0 && progress.blocks_reused < total, "{progress:?}");
    let fetched: u32 = progress.sources.iter().map(|source| source.blocks).sum();
    assert_eq!(fetched + progress.blocks_reused, total, "{progress:?}");
    assert!(progress.blocks_total == total && progress.false_claims == 0, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
    check_restored(&env, &master, false);
}

#[test]
fn without_leave_nothing_is_committed_and_what_was_fetched_is_there_for_the_next_session() {
    let (master, env) = (Master::new(0), memory());
    let node = Node { permits: false, ..Node::default() };
    let fetched = fetch(&env, dir(), &restoring(), &master.connect(), &node);
    assert_eq!(fetched.unwrap(), None);
    assert_eq!(*node.asked.lock(), [master.log.control().state().term]);
    assert!(is_pending(&*env, dir()).unwrap() && !is_committed(&*env, dir()).unwrap());
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!(progress.blocks_reused, progress.blocks_total, "{progress:?}");
    assert!(is_committed(&*env, dir()).unwrap());
}

/// It holds what is not durable there yet, and no more.
#[test]
fn the_log_is_pinned_from_what_a_session_still_needs() {
    let (master, env) = (Master::new(100), memory());
    let first = master.log.positions().anchor.vlsn.next();
    let base = master.log.sealed_segments().last().unwrap().last;
    let held = || master.log.retention().holders;
    assert_eq!(held(), []);
    let seen = Mutex::new(Vec::new());
    let channel = master.connect();
    let node = Node::watching(|_| seen.lock().extend(held()));
    fetch(&env, dir(), &restoring(), &channel, &node).unwrap();
    drop(node);
    let seen: Vec<_> = seen.into_inner().into_iter().map(|place| place.from).collect();
    assert_eq!(seen.first(), Some(&first));
    assert!(seen.is_sorted(), "{seen:?}");
    let gone = |holders: &[noxu_log::HolderReport]| holders.iter().all(|place| place.is_away);
    while !gone(&held()) {
        thread::yield_now(); // the provider's thread takes its leave
    }
    let after = held();
    assert!(after.len() == 1, "it stays until the node is fed: {after:?}");
    assert!(after[0].from > base, "{after:?} {base}");
}

#[test]
fn a_session_that_has_lost_its_place_ends_and_says_so() {
    let (master, env) = (Master::new(100), memory());
    let dropped = AtomicBool::new(false);
    let node = Node::watching(|progress| {
        if progress.phase == Phase::Segments && !dropped.swap(true, Ordering::Relaxed) {
            master.run_out_of_budget();
        }
    });
    let refused = master.restore_watched(&env, &restoring(), &node).unwrap_err();
    // Unless the node was just sending its next question, when it finds the channel closed.
    let told = matches!(&refused, RepError::RestoreRefused { reason, .. } if reason.contains("lost its place"));
    assert!(told || refused.is_disconnect(), "{refused}");
    assert!(master.told.failures.lock()[0].contains("lost its place"));
    // The next session begins from the new front.
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
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
    assert!(install(&env, &Broken).is_err());
    let refused = Log::open(Arc::clone(&env), dir(), config());
    assert!(matches!(refused, Err(LogError::RestorePending { .. })), "{refused:?}");
    let machine = Machine::open(&env, "/n2-state");
    let recovered = recover(&env, &machine).unwrap();
    assert!(matches!(recovered, Recovered::Installed(_)));
    check_restored(&env, &master, false);
}

#[test]
fn an_open_log_is_not_replaced() {
    let (master, env) = (Master::new(0), memory());
    let old = build_log(&env, dir(), 4096, (40, 40, 0), 40);
    master.restore(&env, &restoring()).unwrap();
    let machine = Machine::open(&env, "/n2-state");
    let refused = install(&env, &*machine);
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
        let channel: Arc<dyn Channel> = Arc::new(near.channel_a);
        let fetched = fetch(env, dir(), &restoring(), &channel, &Node::default());
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
    let mut unnoticed = 0;
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
        let answers_wrongly =
            |_: Vec<u8>| RestoreMsg::Done { needed: v(1), durable: v(1) }.encode();
        let changes: [&(dyn Fn(Vec<u8>) -> Vec<u8> + Sync); 3] =
            [&flips, &shortens, &answers_wrongly];
        for (kind, change) in changes.into_iter().enumerate() {
            let env = memory();
            let fetched = meddle(&master, &env, nth, change);
            let Err(err) = fetched else {
                // A bad block is asked for again; of an answer without entries the last byte tells
                // nothing that is kept.
                let machine = Machine::open(&env, "/n2-state");
                install(&env, &*machine).unwrap();
                let what = format!("frame {nth}, change {kind} went unnoticed");
                assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()), "{what}");
                let (log, _) = Log::open(Arc::clone(&env), dir(), config()).unwrap();
                assert_eq!(all_bytes(&log), all_bytes(&master.log), "{what}");
                unnoticed += 1;
                continue;
            };
            assert!(!is_committed(&*env, dir()).unwrap(), "frame {nth}: {err}");
            // What came before is good: the next session ends well.
            let progress = master.restore(&env, &restoring()).unwrap();
            assert_eq!(progress.false_claims, 0);
        }
    }
    assert!(unnoticed < frames * 2, "{unnoticed} of {} changes", frames * 3);
}

/// Every entry follows the one before it, but it is another history than the one that was offered.
#[test]
fn a_provider_whose_log_was_rolled_back_meanwhile_is_refused() {
    let fetched = |mutant| {
        let (master, env) = (Master::new(100), memory());
        let changed = AtomicBool::new(false);
        let node = Node::watching(|_| {
            if changed.swap(true, Ordering::Relaxed) {
                return;
            }
            master.log.truncate_after(v(195), Cut::Discard).unwrap();
            let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"another");
            (196..=200).for_each(|_| {
                master.log.append(Term::new(2), &[entry]).unwrap();
            });
        });
        Mutant::with(mutant, || master.restore_watched(&env, &restoring(), &node))
    };
    let refused = fetched(None).unwrap_err().to_string();
    assert!(refused.contains("as the manifest names it"), "{refused}");
    assert!(fetched(Some(Mutant::RestoreTargetUnchecked)).is_ok(), "the mutant is noticed");
}

#[test]
fn a_full_disk_ends_the_session_and_it_resumes_when_there_is_space() {
    let master = Master::new(100);
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    build_log(&env, dir(), 4096, (40, 40, 0), 40).close().unwrap();
    let node = Node::watching(|progress| {
        if progress.blocks_done >= 3 {
            faulty.set_full(true);
        }
    });
    let full = master.restore_watched(&env, &restoring(), &node);
    let Err(RepError::Log(error)) = full else { panic!("{full:?}") };
    assert!(error.is_storage_full(), "{error}");
    faulty.set_full(false);
    let progress = master.restore(&env, &restoring()).unwrap();
    assert!(progress.blocks_reused > 0, "{progress:?}");
    let machine = Machine::open(&env, "/n2-state");
    install(&env, &*machine).unwrap();
    check_restored(&env, &master, true);
}
