//! Examining a segment that could not be read: what is damaged in it is found as by an open, put back,
//! and sealed again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use noxu_log::env::{FaultEnv, Survivors};
use noxu_log::{ChainState, EntryFlags, EntryKind, EntryRun, Log, LogError, NewEntry};
use noxu_util::{Term, Vlsn};

use crate::rig::{bodies, body, dir, fill, open, quiet, vlsn_of};

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
fn what_is_sound_the_last_segment_and_what_is_not_there_stay_as_they_are() {
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
