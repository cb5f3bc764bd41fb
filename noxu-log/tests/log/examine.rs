//! Examining a segment that could not be read: what is damaged in it is found as by an open, put back,
//! and sealed again.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors};
use noxu_log::{
    Background, ChainState, EntryFlags, EntryKind, EntryRun, HeldBy, Holder, HolderKind, Log,
    LogConfig, LogError, NewEntry, RetentionConfig,
};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::rig::{append, bodies, body, dir, fill, open, quiet, try_open, vlsn_of};

const ENTRIES: i64 = 40;

/// Entries over several segments, most of them sealed, the log closed in order.
fn closed() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, ENTRIES, 500);
    log.sync_now().unwrap();
    seal(&log);
    assert!(log.sealed_segments().len() >= 3);
    log.close().unwrap();
    env
}

fn seal(log: &Log) {
    log.seal_through(vlsn_of(ENTRIES)).unwrap();
}

fn expected() -> Vec<Vec<u8>> {
    (1..=ENTRIES as u64).map(|tag| body(tag, 500)).collect()
}

fn segment_path(number: u32) -> PathBuf {
    dir().join(format!("log/{number:010}.nlog"))
}

/// These entries of a sound copy, as a peer sends them.
fn sent(sound: &Log, first: Vlsn, last: Vlsn) -> EntryRun {
    let chain = |vlsn: Vlsn| {
        let header = sound.header(vlsn).unwrap();
        header.map_or_else(ChainState::default, |(header, _)| header.chain())
    };
    let mut bytes = Vec::new();
    let mut next = first;
    while next <= last {
        let (header, _) = sound.header(next).unwrap().unwrap();
        let run = sound.read(next, header.entry_bytes()).unwrap().unwrap();
        run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        next = run.last.next();
    }
    EntryRun::verify(bytes.into(), chain(first.prev()), u32::MAX).unwrap()
}

fn put_back(log: &Log, sound: &Log) {
    for range in log.faulty() {
        log.repair(&sent(sound, range.first, range.last)).unwrap();
    }
    assert_eq!(log.faulty(), []);
    assert!(bodies(log) == expected());
}

fn sound() -> Log {
    open(&closed())
}

#[test]
fn every_sealed_entry_that_rots_while_the_log_is_open_is_found_put_back_and_sealed_again() {
    let (whole, sound) = (closed(), sound());
    for vlsn in 1..=ENTRIES {
        let (header, lsn) = sound.header(vlsn_of(vlsn)).unwrap().unwrap();
        let sealed = sound.sealed_segments().iter().any(|sealed| sealed.number == lsn.segment());
        if !sealed {
            continue;
        }
        // In its header, in its body.
        for offset in [8, 200] {
            let env = whole.clone_image(Survivors::All);
            let log = open(&env);
            let digests = log.sealed_segments();
            let place = u64::from(lsn.offset()) + offset;
            env.corrupt(&segment_path(lsn.segment()), place, 0x10).unwrap();
            let met = log.read(vlsn_of(vlsn), header.entry_bytes());
            assert!(matches!(met, Err(LogError::Corrupt { .. })), "{vlsn}, {offset}: {met:?}");
            assert!(log.examine(lsn.segment()).unwrap());
            assert!(log.examine(lsn.segment()).unwrap(), "it is still so");
            let faulty = log.faulty();
            assert!(faulty.iter().any(|range| range.holds(vlsn_of(vlsn))), "{faulty:?}");
            let met = log.read(vlsn_of(vlsn), header.entry_bytes());
            assert!(matches!(met, Err(LogError::Faulty { .. })), "{met:?}");
            // The next open says the same.
            let again = open(&env.clone_image(Survivors::All));
            assert_eq!(again.faulty(), faulty);
            put_back(&again, &sound);
            put_back(&log, &sound);
            assert_eq!(log.positions().last_sync, sound.positions().last_sync);
            assert_eq!(log.term_table(), sound.term_table());
            seal(&log);
            assert_eq!(log.sealed_segments(), digests, "the same files as before");
        }
    }
}

/// A group that waits for the only node that cannot read the end of its log writes nothing more there, so
/// that this segment never becomes one of those above.
#[test]
fn every_entry_that_rots_in_the_segment_that_grows_is_found_and_put_back_while_it_grows() {
    let (whole, sound) = (closed(), sound());
    let last = sound.positions().last_lsn.segment();
    let mut met = 0;
    for vlsn in 1..=ENTRIES {
        let (_, lsn) = sound.header(vlsn_of(vlsn)).unwrap().unwrap();
        if lsn.segment() != last {
            continue;
        }
        // In its header, in its body.
        for offset in [8, 200] {
            met += 1;
            let env = whole.clone_image(Survivors::All);
            let log = open(&env);
            append(&log, 1, &body(41, 500)).unwrap();
            env.corrupt(&segment_path(last), u64::from(lsn.offset()) + offset, 0x10).unwrap();
            assert!(log.examine(last).unwrap());
            assert!(log.examine(last).unwrap(), "it is still so");
            let [range] = &log.faulty()[..] else { panic!("{:?}", log.faulty()) };
            assert!(range.holds(vlsn_of(vlsn)), "{range:?}");
            assert!(matches!(log.read(vlsn_of(vlsn), 1), Err(LogError::Faulty { .. })));
            // Entries go on coming behind it, and into the next segment.
            fill(&log, 42, 60, 500);
            assert!(log.positions().last_lsn.segment() > last);
            log.sync_now().unwrap();
            let again = open(&env.clone_image(Survivors::All));
            for log in [log, again] {
                assert!(log.faulty().iter().any(|range| range.holds(vlsn_of(vlsn))));
                let wanted = log.faulty()[0].clone();
                let sound = open(&whole.clone_image(Survivors::All));
                fill(&sound, 41, 60, 500);
                log.repair(&sent(&sound, wanted.first, wanted.last)).unwrap();
                assert_eq!(log.faulty(), []);
                let expected: Vec<_> = (1..=60).map(|tag| body(tag, 500)).collect();
                assert!(bodies(&log) == expected);
                assert_eq!(log.positions().last_lsn, sound.positions().last_lsn);
                assert!(!log.examine(last).unwrap());
            }
        }
    }
    assert!(met >= 4, "{met}");
}

/// The last entry of the log, nothing behind it but what is filled ahead.
#[test]
fn what_is_appended_behind_a_rotten_end_stands_where_it_would_have() {
    let (env, sound) = (closed(), sound());
    let log = open(&env);
    let end = log.positions();
    let path = segment_path(end.last_lsn.segment());
    env.corrupt(&path, u64::from(end.last_lsn.offset()) + 100, 0x10).unwrap();
    assert!(log.examine(end.last_lsn.segment()).unwrap());
    assert!(log.faulty()[0].holds(end.last));
    assert_eq!(log.positions().last, end.last);
    for log in [&log, &sound] {
        fill(log, ENTRIES + 1, ENTRIES + 1, 500);
    }
    assert_eq!(log.positions(), sound.positions());
    for range in log.faulty() {
        log.repair(&sent(&sound, range.first, range.last)).unwrap();
    }
    log.sync_now().unwrap();
    assert!(bodies(&log) == bodies(&sound));
    assert!(bodies(&open(&env.clone_image(Survivors::None))) == bodies(&sound));
}

#[test]
fn an_examination_harms_nobody_who_appends_meanwhile() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 1, 500);
    let writes = log.clone();
    let writer = thread::spawn(move || fill(&writes, 2, 1_000, 500));
    let mut examined = 0;
    while !writer.is_finished() {
        assert!(!log.examine(log.positions().last_lsn.segment()).unwrap());
        examined += 1;
    }
    writer.join().unwrap();
    assert!(examined > 0);
    let expected: Vec<_> = (1..=1_000).map(|tag| body(tag, 500)).collect();
    assert!(bodies(&log) == expected);
}

#[test]
fn a_segment_header_that_rots_while_the_log_is_open_is_made_again() {
    let env = closed();
    let log = open(&env);
    let [first, ..] = &log.sealed_segments()[..] else { panic!("none is sealed") };
    let path = segment_path(first.number);
    let before = noxu_log::env::read_whole(&env, &path).unwrap();
    env.corrupt(&path, 9, 0x40).unwrap();
    assert!(log.examine(first.number).unwrap());
    assert!(noxu_log::env::read_whole(&env, &path).unwrap() == before);
    assert_eq!(log.faulty(), []);
    assert!(!log.examine(first.number).unwrap(), "nothing is wrong any more");
    assert_eq!(log.sealed_segments()[0], *first, "it was not unsealed for that");
}

#[test]
fn what_is_sound_and_what_is_not_there_stay_as_they_are() {
    let log = sound();
    let sealed = log.sealed_segments();
    let last = log.positions().last_lsn.segment();
    for number in [sealed[0].number, last, last + 7, 0] {
        assert!(!log.examine(number).unwrap(), "{number}");
    }
    assert_eq!(log.sealed_segments(), sealed);
    log.close().unwrap();
    assert!(matches!(log.examine(sealed[0].number), Err(LogError::Closed { .. })));
}

#[test]
fn what_nobody_gives_back_goes_with_the_front_once_a_checkpoint_holds_it() {
    for (place, closed_before) in [(0, false), (1, false), (0, true), (1, true)] {
        let env = closed();
        let mut log = open(&env);
        let rotten = log.sealed_segments()[place].clone();
        env.corrupt(&segment_path(rotten.number), 300, 0x40).unwrap();
        assert!(log.examine(rotten.number).unwrap());
        if closed_before {
            log.close().unwrap();
            log = open(&env);
        }
        assert_eq!(log.faulty().len(), 1);
        seal(&log);
        assert_eq!(log.sealed_segments().len(), place, "nothing behind it is sealed");
        let before = log.drop_through(rotten.last.prev()).unwrap();
        assert!(before < rotten.first, "{before}");
        log.set_checkpoint(rotten.last);
        assert_eq!(log.drop_through(rotten.last).unwrap(), rotten.last);
        assert_eq!(log.faulty(), []);
        let sealed = log.sealed_segments().len();
        seal(&log);
        assert!(log.sealed_segments().len() > sealed, "what is behind it is sealed again");
        let again = open(&env.clone_image(Survivors::All));
        for log in [log, again] {
            assert_eq!((log.positions().anchor.vlsn, log.faulty()), (rotten.last, vec![]));
            let rest = rotten.last.sequence() as u64 + 1..=ENTRIES as u64;
            let kept: Vec<_> = rest.map(|tag| body(tag, 500)).collect();
            assert!(bodies(&log) == kept);
        }
    }
}

/// What closed a segment may be rolled back, and a smaller entry stand in it then.
#[test]
fn a_damaged_segment_stays_until_what_closed_it_is_settled() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, ENTRIES, 500);
    log.sync_now().unwrap();
    let last = last_of_first_segment(&log);
    env.corrupt(&segment_path(1), 300, 0x40).unwrap();
    assert!(log.examine(1).unwrap());
    log.settle(last);
    assert_eq!(log.drop_through(last).unwrap(), NULL_VLSN);
    log.settle(last.next());
    assert_eq!(log.drop_through(last).unwrap(), last);
}

fn last_of_first_segment(log: &Log) -> Vlsn {
    let first = |vlsn| log.header(vlsn).unwrap().unwrap().1.segment() == 1;
    let last = (1..=ENTRIES).map(vlsn_of).take_while(|vlsn| first(*vlsn)).last();
    last.expect("an entry in it")
}

/// Nothing but zeros stands where the last two entries through `last` were.
fn wipe_out_two(env: &FaultEnv, sound: &Log, last: Vlsn) {
    for vlsn in [last.prev(), last] {
        let (header, lsn) = sound.header(vlsn).unwrap().unwrap();
        let file = env.open(&segment_path(lsn.segment()), OpenMode::ReadWrite).unwrap();
        let zeros = vec![0; header.entry_bytes()];
        file.write_at(&[IoSlice::new(&zeros)], lsn.offset().into()).unwrap();
        file.sync_data().unwrap();
    }
}

/// The anchor says where the last entry before it stood, damaged or not. Nothing tells the next open
/// where it stood: there the segment goes with the one behind it.
#[test]
fn a_segment_that_ends_in_damage_leaves_the_anchor_that_a_sound_one_leaves() {
    let sound = sound();
    let last = last_of_first_segment(&sound);
    let next = sound.sealed_segments()[1].last;
    for closed_before in [false, true] {
        let env = closed();
        let mut log = open(&env);
        wipe_out_two(&env, &sound, last);
        assert!(log.examine(1).unwrap());
        assert!(log.faulty()[0].holds(last.prev()) && log.faulty()[0].holds(last));
        if closed_before {
            log.close().unwrap();
            log = open(&env);
        }
        seal(&log);
        assert_eq!(log.drop_through(last).unwrap() == last, !closed_before);
        let other = open(&closed());
        let through = if closed_before { next } else { last };
        for log in [&log, &other] {
            seal(log);
            assert_eq!(log.drop_through(through).unwrap(), through);
        }
        assert_eq!(log.positions().anchor, other.positions().anchor);
    }
}

#[test]
fn a_rotten_end_of_several_entries_ends_where_it_did() {
    let (env, sound) = (closed(), sound());
    let log = open(&env);
    let last = log.positions().last;
    wipe_out_two(&env, &sound, last);
    assert!(log.examine(log.positions().last_lsn.segment()).unwrap());
    assert_eq!(log.positions().last_lsn, sound.positions().last_lsn);
    for log in [&log, &sound] {
        fill(log, ENTRIES + 1, ENTRIES + 1, 500);
        log.sync_now().unwrap();
    }
    assert_eq!(log.positions(), sound.positions());
}

#[test]
fn damage_in_front_of_a_log_that_grows_goes_without_being_told_to() {
    let env = FaultEnv::new();
    let config = LogConfig {
        retention: RetentionConfig {
            keep_bytes: 16 << 10,
            keep_age: Duration::from_hours(1), // nothing tells its age
            ..RetentionConfig::default()
        },
        ..quiet()
    };
    let log = try_open(&env, config).unwrap();
    fill(&log, 1, ENTRIES, 500);
    log.sync_now().unwrap();
    let last = last_of_first_segment(&log);
    env.corrupt(&segment_path(1), 300, 0x40).unwrap();
    assert!(log.examine(1).unwrap());
    log.set_checkpoint(vlsn_of(ENTRIES));
    log.settle(vlsn_of(ENTRIES));
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut next = ENTRIES + 1;
    while log.positions().anchor.vlsn < last {
        assert!(Instant::now() < deadline, "{:?}", log.retention());
        fill(&log, next, next, 500);
        log.sync_now().unwrap();
        log.settle(vlsn_of(next));
        next += 1;
    }
    assert_eq!(log.faulty(), []);
}

/// Among the damaged entries may be a newer configuration than the last that can be read.
#[test]
fn damage_that_may_hide_a_configuration_stays() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 10, 500);
    let later = NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, b"another configuration");
    log.append(Term::new(1), &[later]).unwrap();
    fill(&log, 12, ENTRIES, 500);
    log.control().update(|control| control.group_config = (&b"the newest"[..]).into()).unwrap();
    log.sync_now().unwrap();
    seal(&log);
    let sealed = log.sealed_segments();
    let [_, second, third, ..] = &sealed[..] else { panic!("{sealed:?}") };
    assert!(second.first <= vlsn_of(11), "the configuration is not in the last of them");
    env.corrupt(&segment_path(third.number), 300, 0x40).unwrap();
    assert!(log.examine(third.number).unwrap());
    assert_eq!(log.drop_through(third.last).unwrap(), second.last, "what is sound goes");
    assert_eq!(log.positions().anchor.group_config, b"another configuration"[..]);
    assert_eq!(log.faulty().len(), 1);
    log.control()
        .update(|control| control.group_config = (&b"another configuration"[..]).into())
        .unwrap();
    assert_eq!(log.drop_through(third.last).unwrap(), third.last, "there was none after all");
}

/// One that is known behind the damage is in force there, whatever the damage hides.
#[test]
fn damage_goes_with_the_configuration_behind_it() {
    let env = FaultEnv::new();
    let eager = RetentionConfig { keep_bytes: 0, ..RetentionConfig::default() };
    let config = LogConfig { retention: eager, background: Background::Caller, ..quiet() };
    let log = try_open(&env, config).unwrap();
    let configuration = |body| [NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, body)];
    log.append(Term::new(1), &configuration(b"old")).unwrap();
    fill(&log, 2, ENTRIES, 500);
    log.sync_now().unwrap();
    let first = last_of_first_segment(&log);
    env.corrupt(&segment_path(1), 300, 0x40).unwrap();
    assert!(log.examine(1).unwrap());
    log.control().update(|control| control.group_config = (&b"new"[..]).into()).unwrap();
    log.set_checkpoint(vlsn_of(ENTRIES));
    log.settle(vlsn_of(ENTRIES));
    let before = log.positions().anchor.vlsn;
    assert_eq!(log.retain().unwrap(), before, "the control file knows of another one");
    assert_eq!(log.retention().held_by, HeldBy::Damage);
    let pin = log.pin(Holder::new(HolderKind::Backup, "b"), vlsn_of(2));
    drop(pin.expect("nothing has gone, and nothing is about to"));

    let at = log.append(Term::new(1), &configuration(b"new")).unwrap().last;
    fill(&log, at.sequence() + 1, 2 * ENTRIES, 500);
    log.sync_now().unwrap();
    log.set_checkpoint(vlsn_of(2 * ENTRIES));
    log.settle(at);
    assert_eq!(log.retain().unwrap(), before, "its segment is not finished");
    log.settle(vlsn_of(2 * ENTRIES));
    let anchor = log.retain().unwrap();
    assert!(anchor > first && anchor >= at, "{anchor}");
    assert_eq!(log.positions().anchor.group_config, b"new"[..]);
    assert_eq!(log.faulty(), []);
}

/// The flusher would have nothing left to do, and nothing to tell.
#[test]
fn what_an_examination_or_a_repair_syncs_is_told_whatever_comes_of_it() {
    let env = FaultEnv::new();
    let log = open(&env);
    let told = Arc::new(AtomicI64::new(0));
    let hears = Arc::clone(&told);
    log.on_durable(move |durable| {
        hears.store(durable.sequence(), Ordering::Relaxed);
    });
    fill(&log, 1, ENTRIES, 500);
    assert!(!log.examine(1).unwrap(), "sound, and not sealed");
    assert_eq!(log.positions().durable, vlsn_of(ENTRIES));
    assert_eq!(told.load(Ordering::Relaxed), ENTRIES);

    seal(&log);
    fill(&log, ENTRIES + 1, ENTRIES + 1, 500);
    assert!(!log.examine(1).unwrap());
    assert_eq!(log.positions().durable, vlsn_of(ENTRIES), "a sealed segment needs no sync");
}

#[test]
fn an_examination_that_a_crash_interrupts_costs_nothing() {
    let sound = sound();
    let sealed = sound.sealed_segments();
    let number = sealed[sealed.len() / 2].number;
    let damaged = closed();
    damaged.corrupt(&segment_path(number), 9, 0x40).unwrap(); // its header, and an entry
    damaged.corrupt(&segment_path(number), 300, 0x40).unwrap();
    let mut crashes = 0;
    for call in 1.. {
        let env = damaged.clone_image(Survivors::All);
        let log = open(&env);
        env.crash_at(env.calls() + call);
        let examined = log.examine(number);
        if !env.has_crashed() {
            assert!(examined.unwrap());
            break;
        }
        crashes += 1;
        for seed in 0..8 {
            let (log, _) =
                Log::open(Arc::new(env.crash(seed)), dir(), quiet()).expect("it opens again");
            log.examine(number).unwrap();
            put_back(&log, &sound);
        }
    }
    assert!(crashes > 4, "{crashes}");
}
