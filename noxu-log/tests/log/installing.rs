//! Installing over an old log: whatever that held above the commit floor is kept beside the new one,
//! damaged or not.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors, read_whole};
use noxu_log::install::{Install, finish_install};
use noxu_log::segment::name::segment_name;
use noxu_log::{Anchor, Log, LogError, LostEntries, LostNote, moved_segment_path};
use noxu_util::{Fingerprint, Lsn, Term, Vlsn};

use crate::rig::{append, bodies, body, dir, fill, group, open, quiet, segments, vlsn_of};

const NAME: &str = "replaced";

/// 30 entries, 7 to a segment, of which everything through 9 is on a majority, closed in order.
fn old_log() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(9)).unwrap();
    log.close().unwrap();
    env
}

/// A log without entries, far beyond the old one.
fn replacement() -> Install {
    let anchor = Anchor {
        vlsn: vlsn_of(100),
        lsn: Lsn::new(14, 900),
        term: Term::new(3),
        fingerprint: Fingerprint::from_u64(77),
        next_lsn: Lsn::new(15, 64),
        group_config: Bytes::new(),
    };
    Install {
        group: group(),
        term: Term::new(3),
        last: anchor.chain(),
        last_lsn: anchor.lsn,
        tail: None,
        anchor,
        group_config: Bytes::new(),
        segments: Vec::new(),
        lost_name: NAME.into(),
        lost_note: LostNote::default(),
    }
}

fn install(env: &FaultEnv) -> noxu_log::Result<()> {
    let shared: Arc<dyn Env> = Arc::new(env.clone());
    let staged = dir().join("staged");
    env.create_dir_all(&staged).map_err(|e| LogError::io("create directory", &staged, e))?;
    replacement().run(&shared, dir(), &staged)?;
    let (log, _) = Log::open_installed(shared, dir(), quiet())?;
    log.close()?;
    finish_install(env, dir())
}

fn path(number: u32) -> std::path::PathBuf {
    dir().join("log").join(segment_name(number))
}

fn contents(env: &FaultEnv) -> BTreeMap<u32, Vec<u8>> {
    let numbers = 1..=segments(env).len() as u32;
    numbers.map(|number| (number, read_whole(env, &path(number)).unwrap())).collect()
}

/// Damages a segment at an offset.
type Damage = fn(&FaultEnv, u32);

fn zero(env: &FaultEnv, number: u32, from: u64) {
    let file = env.open(&path(number), OpenMode::ReadWrite).unwrap();
    let len = file.len().unwrap() - from;
    file.write_at(&[IoSlice::new(&vec![0; len as usize])], from).unwrap();
}

const DAMAGES: [(&str, Damage); 5] = [
    ("a body", |env, number| env.corrupt(&path(number), 64 + 2 * 532 + 100, 1).unwrap()),
    ("the first entry", |env, number| env.corrupt(&path(number), 64 + 30, 1).unwrap()),
    ("the header", |env, number| env.corrupt(&path(number), 33, 1).unwrap()),
    ("zeros at the end", |env, number| zero(env, number, 64 + 3 * 532)),
    ("a file of zeros and one entry", |env, number| {
        zero(env, number, 0);
        env.corrupt(&path(number), 3000, 1).unwrap();
    }),
];

#[test]
fn what_stands_behind_damage_in_the_old_log_is_kept_with_it() {
    let whole = old_log();
    for (what, damage) in DAMAGES {
        for damaged in 1..=4 {
            let env = whole.clone_image(Survivors::All);
            damage(&env, damaged);
            let before = contents(&env);
            install(&env).unwrap();
            // Segment 1 ends with entry 7, which is on a majority.
            for (number, bytes) in before.iter().filter(|(number, _)| **number > 1) {
                let moved = moved_segment_path(dir(), NAME, *number);
                let kept = read_whole(&env, &moved).unwrap_or_else(|error| {
                    panic!("{what} in {damaged}: segment {number} is gone: {error}")
                });
                assert!(kept == *bytes, "{what} in {damaged}: segment {number}");
            }
            let lost = LostEntries::read(&env, dir(), NAME).unwrap();
            let listed: Vec<_> = lost.entries().map(|entry| entry.header.vlsn).collect();
            let dense = (lost.header.kept.vlsn.sequence() + 1..).map(vlsn_of);
            assert!(dense.zip(&listed).all(|(expected, vlsn)| expected == *vlsn));
            if damaged > 2 {
                let before_damage = i64::from(damaged - 1) * 7;
                assert!(listed.contains(&vlsn_of(before_damage)), "{what} in {damaged}");
            }
        }
    }
}

#[test]
fn a_crash_in_the_middle_of_an_install_takes_nothing_of_a_damaged_log_away() {
    let damaged = old_log();
    DAMAGES[0].1(&damaged, 2);
    DAMAGES[2].1(&damaged, 4);
    let before = contents(&damaged);
    let calls = {
        let env = damaged.clone_image(Survivors::All);
        let before = env.calls();
        install(&env).unwrap();
        env.calls() - before
    };
    for call in 1..=calls {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
            let env = damaged.clone_image(Survivors::All);
            env.create_dir_all(&dir().join("staged")).unwrap();
            env.sync_dir(dir()).unwrap();
            env.crash_at(env.calls() + call);
            let _ = install(&env);
            let env = env.crash_keeping(survivors);
            install(&env).unwrap();
            for (number, bytes) in before.iter().skip(1) {
                let kept = read_whole(&env, &moved_segment_path(dir(), NAME, *number));
                assert!(kept.is_ok_and(|kept| kept == *bytes), "call {call}: segment {number}");
            }
            let log = open(&env);
            assert_eq!(append(&log, 3, &body(1, 10)).unwrap().last, vlsn_of(101));
            assert_eq!(bodies(&log), [body(1, 10)]);
        }
    }
}

#[test]
fn what_is_on_a_majority_needs_no_copy_however_damaged_it_is() {
    for (what, damage) in DAMAGES {
        let env = FaultEnv::new();
        let log = open(&env);
        fill(&log, 1, 30, 500);
        log.sync_now().unwrap();
        log.control().update(|control| control.commit_floor = Vlsn::new(30)).unwrap();
        log.close().unwrap();
        damage(&env, 2);
        install(&env).unwrap();
        assert_eq!(LostEntries::list(&env, dir()).unwrap(), [""; 0], "{what}");
        assert_eq!(env.list(&dir().join("lost")).unwrap(), [""; 0], "{what}");
    }
}
