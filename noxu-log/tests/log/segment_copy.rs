//! Copying a sealed segment whose digests or file are lost: what is believed, and what a crash leaves.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors, read_whole};
use noxu_log::segment::name::{segment_name, side_name};
use noxu_log::segment::side_file::BLOCK_BYTES;
use noxu_log::{GroupIdentity, Log, LogError, Result, ScrubConfig, SegmentCopy};

use crate::rig::{append, body, dir, group, quiet, read_all, vlsn_of};

/// A block and a bit to a segment.
const SEGMENT_BYTES: u32 = BLOCK_BYTES + 100_000;
const ENTRY_BYTES: usize = 30_032;
/// To a segment.
const ENTRIES: i64 = (SEGMENT_BYTES as i64 - 64) / ENTRY_BYTES as i64;
const LAST: i64 = 2 * ENTRIES + 3;

fn open(env: &FaultEnv) -> Result<Log> {
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), quiet())?;
    log.found(GroupIdentity { segment_bytes: SEGMENT_BYTES, ..group() })?;
    Ok(log)
}

/// Two sealed segments and a third, closed; the bytes of the first.
fn closed() -> (FaultEnv, Vec<u8>) {
    let env = FaultEnv::new();
    let log = open(&env).unwrap();
    for vlsn in 1..=LAST {
        append(&log, 1, &body(vlsn as u64, ENTRY_BYTES - 32)).unwrap();
    }
    log.sync_now().unwrap();
    log.seal_through(vlsn_of(LAST)).unwrap();
    assert_eq!(log.sealed_segments().len(), 2);
    log.close().unwrap();
    let right = read_whole(&env, &path(1)).unwrap();
    (env, right)
}

fn path(segment: u32) -> PathBuf {
    dir().join("log").join(segment_name(segment))
}

fn damaged(log: &Log) -> u64 {
    let fast = ScrubConfig { bytes_per_second: u64::MAX, ..ScrubConfig::default() };
    log.scrub(&fast, |_| ControlFlow::Continue(())).unwrap().damaged
}

/// Its side file and some of it are gone, which nobody has noticed.
fn lose_digests(env: &FaultEnv) {
    env.remove(&dir().join("log").join(side_name(1))).unwrap();
    env.corrupt(&path(1), u64::from(BLOCK_BYTES) + 9, 1).unwrap();
}

fn copied(log: &Log, bytes: &[u8]) -> Result<bool> {
    let mut copy = log.begin_segment_copy(1)?;
    for (at, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        assert_eq!(copy.next_block(), Some(at as u32));
        assert!(copy.push(block)?);
    }
    assert_eq!(copy.next_block(), None);
    copy.finish()
}

fn assert_whole(log: &Log) {
    let all = read_all(log, 1 << 20).unwrap();
    assert_eq!(all.len() as i64, LAST);
    for (at, got) in all.iter().enumerate() {
        assert_eq!(got.body, body(at as u64 + 1, ENTRY_BYTES - 32));
    }
}

#[test]
fn a_segment_whose_digests_or_file_are_lost_is_believed_once_it_has_the_digest_of_the_whole() {
    let (env, right) = closed();
    let losses: [&dyn Fn(); 2] = [&|| lose_digests(&env), &|| {
        env.remove(&path(1)).unwrap();
        env.remove(&dir().join("log").join(side_name(1))).unwrap();
    }];
    for lose in losses {
        let log = open(&env).unwrap();
        lose();
        assert_eq!(damaged(&log), 1);
        let [block] = &log.damaged_blocks()[..] else { panic!("{:?}", log.damaged_blocks()) };
        assert_eq!(block.expected, None);
        let mut wrong = right.clone();
        wrong[100] ^= 1;
        assert!(!copied(&log, &wrong).unwrap());
        assert_eq!(log.damaged_blocks().len(), 1);
        let mut copy = log.begin_segment_copy(1).unwrap();
        assert!(!copy.push(&right[..1000]).unwrap(), "not a whole block");
        assert!(!copy.push(&[]).unwrap());
        assert!(copy.push(&right[..BLOCK_BYTES as usize]).unwrap());
        assert!(!copy.finish().unwrap(), "not all of it");
        assert!(copied(&log, &right).unwrap());
        assert_eq!(log.damaged_blocks(), []);
        assert_eq!(damaged(&log), 0);
        assert_whole(&log);
        let names = env.list(&dir().join("log")).unwrap();
        assert!(!names.iter().any(|name| name.contains("copy")), "{names:?}");
        log.close().unwrap();
    }
}

#[test]
fn what_is_no_sealed_segment_is_not_copied() {
    let (env, right) = closed();
    let log = open(&env).unwrap();
    for segment in [0, 3, u32::MAX] {
        let error = log.begin_segment_copy(segment).unwrap_err();
        assert!(matches!(error, LogError::NotSealed { .. }), "{error}");
    }
    let mut copy: SegmentCopy = log.begin_segment_copy(1).unwrap();
    right.chunks(BLOCK_BYTES as usize).for_each(|block| assert!(copy.push(block).unwrap()));
    log.seal_through(vlsn_of(LAST)).unwrap();
    log.drop_front(vlsn_of(ENTRIES), |_| Vec::new()).unwrap();
    let error = copy.finish().unwrap_err();
    assert!(matches!(error, LogError::NotSealed { segment: 1 }), "{error}");
    assert!(!env.exists(&path(1)).unwrap());
}

#[test]
fn a_crash_at_any_call_of_a_copy_leaves_the_old_segment_or_the_right_one() {
    let (env, right) = closed();
    for number in 1.. {
        let image = env.clone_image(Survivors::None);
        let log = open(&image).unwrap();
        lose_digests(&image);
        let rotten = read_whole(&image, &path(1)).unwrap();
        assert_eq!(damaged(&log), 1);
        image.crash_at(image.calls() + number);
        let done = copied(&log, &right).is_ok();
        let crashed = image.has_crashed();
        drop(log);
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(number)] {
            let after = image.crash_keeping(survivors);
            let found = read_whole(&after, &path(1)).unwrap();
            assert!(found == right || (found == rotten && !done), "crash at call {number}");
            let log = open(&after).unwrap();
            let names = after.list(&dir().join("log")).unwrap();
            assert!(!names.iter().any(|name| name.contains("copy")), "{names:?}");
            // Its side file may be back, which nobody had synced the loss of.
            let is_damaged = damaged(&log) > 0 || !log.faulty().is_empty();
            assert_eq!(is_damaged, found != right, "crash at call {number}");
            if log.sealed_segments().first().is_some_and(|sealed| sealed.number == 1) {
                assert!(copied(&log, &right).unwrap());
                assert_whole(&log);
            }
        }
        if !crashed {
            assert!(done && number > 8, "{number} calls");
            break;
        }
    }
}

#[test]
fn a_sealed_segment_without_a_file_is_damage_for_who_reads_it_and_no_trouble_of_the_disk() {
    let (env, _) = closed();
    let log = open(&env).unwrap();
    env.remove(&path(1)).unwrap();
    let error = log.read(vlsn_of(1), 1).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { segment: 1, offset: 0, .. }), "{error}");
    let found = log.scrub_segment(1).unwrap();
    let places: Vec<_> = found.iter().map(|block| (block.segment, block.block)).collect();
    assert_eq!(places, [(1, 0), (1, 1)]);
    assert_eq!(log.scrub_segment(2).unwrap(), []);
    assert!(matches!(log.scrub_segment(3), Err(LogError::NotSealed { segment: 3 })));
}

#[test]
fn who_wants_to_know_is_told_once_that_a_finished_segment_cannot_be_sealed() {
    let env = FaultEnv::new();
    let log = open(&env).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    log.on_unsealable({
        let told = Arc::clone(&told);
        move |segment| told.lock().unwrap().push(segment)
    });
    for vlsn in 1..=LAST {
        append(&log, 1, &body(vlsn as u64, ENTRY_BYTES - 32)).unwrap();
    }
    log.sync_now().unwrap();
    let sound = env.open(&path(1), OpenMode::Read).unwrap();
    let mut entry = vec![0; ENTRY_BYTES];
    sound.read_at(&mut entry, 64).unwrap();
    env.corrupt(&path(1), 200, 1).unwrap();
    for _ in 0..2 {
        log.seal_through(vlsn_of(LAST)).unwrap_err();
    }
    assert_eq!(*told.lock().unwrap(), [1]);
    assert!(log.examine(1).unwrap());
    assert_eq!(log.faulty().len(), 1);
    log.seal_through(vlsn_of(LAST)).unwrap();
    assert_eq!(*told.lock().unwrap(), [1], "it is known to be damaged");
}
