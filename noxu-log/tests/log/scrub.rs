//! Scrubbing and block repair: what is found, at which rate, beside a log that goes on, and what a
//! crash in the middle of a repair leaves.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use noxu_log::env::{Env, Fault, FaultEnv, MemoryEnv, OpenMode, RealEnv, Survivors, read_whole};
use noxu_log::segment::name::{segment_name, side_name};
use noxu_log::segment::side_file::{BLOCK_BYTES, SideFile};
use noxu_log::{
    DamagedBlock, GroupIdentity, Log, LogConfig, LogError, Result, ScrubConfig, ScrubProgress,
};
use noxu_util::Vlsn;

use crate::rig::{append, body, dir, group, quiet, read_all, try_open, vlsn_of};

/// Three blocks and a bit to a segment.
const SEGMENT_BYTES: u32 = 3 * BLOCK_BYTES + 100_000;
const ENTRY_BYTES: usize = 30_032;
/// To a segment.
const ENTRIES: i64 = (SEGMENT_BYTES as i64 - 64) / ENTRY_BYTES as i64;

fn open(env: &(impl Env + Clone + 'static), config: LogConfig) -> Result<Log> {
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config)?;
    log.found(GroupIdentity { segment_bytes: SEGMENT_BYTES, ..group() })?;
    Ok(log)
}

/// `segments` sealed segments and one more.
fn filled<E: Env + Clone + Default + 'static>(segments: i64, config: LogConfig) -> (E, Log) {
    let env = E::default();
    let log = open(&env, config).unwrap();
    fill(&log, segments * ENTRIES + 3);
    assert_eq!(log.sealed_segments().len() as i64, segments);
    (env, log)
}

fn fill(log: &Log, last: i64) {
    for vlsn in 1..=last {
        append(log, 1, &body(vlsn as u64, ENTRY_BYTES - 32)).unwrap();
    }
    log.sync_now().unwrap();
    log.seal_through(vlsn_of(last)).unwrap();
}

fn path(segment: u32) -> PathBuf {
    dir().join("log").join(segment_name(segment))
}

fn fast() -> ScrubConfig {
    ScrubConfig { bytes_per_second: u64::MAX, ..ScrubConfig::default() }
}

fn scrub(log: &Log) -> ScrubProgress {
    log.scrub(&fast(), |_| ControlFlow::Continue(())).unwrap()
}

fn block_of(env: &dyn Env, segment: u32, block: u32) -> Vec<u8> {
    let bytes = read_whole(env, &path(segment)).unwrap();
    bytes.chunks(BLOCK_BYTES as usize).nth(block as usize).unwrap().to_vec()
}

fn places(damaged: &[DamagedBlock]) -> Vec<(u32, u32)> {
    damaged.iter().map(|block| (block.segment, block.block)).collect()
}

/// Opening commits to what is read only, so that the entries tell what the log holds.
fn assert_whole(log: &Log, last: i64) {
    let all = read_all(log, 1 << 20).unwrap();
    assert_eq!(all.len() as i64, last);
    for (at, got) in all.iter().enumerate() {
        assert_eq!(got.body, body(at as u64 + 1, ENTRY_BYTES - 32));
    }
}

#[test]
fn a_whole_log_is_read_to_its_end_and_nothing_is_found() {
    let (_, log) = filled::<FaultEnv>(3, quiet());
    let bytes: u64 = log.sealed_segments().iter().map(|s| u64::from(s.bytes)).sum();
    let mut seen = Vec::new();
    let end = log
        .scrub(&fast(), |progress| {
            seen.push(progress.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((end.segments_done, end.segments, end.damaged), (3, 3, 0));
    assert_eq!((end.bytes_done, end.bytes), (bytes, bytes));
    assert_eq!(seen.len(), 12, "one call for each block");
    assert!(seen.windows(2).all(|two| two[0].bytes_done < two[1].bytes_done));
    let report = log.scrub_report();
    assert_eq!((report.segments, report.bytes, report.unread), (3, bytes, 0));
    assert!(report.damaged.is_empty() && report.running.is_none());
}

#[test]
fn damage_in_every_block_is_found_named_told_once_and_kept() {
    let (env, log) = filled::<FaultEnv>(3, quiet());
    let told = Arc::new(Mutex::new(Vec::<DamagedBlock>::new()));
    log.on_damaged_block({
        let told = Arc::clone(&told);
        move |block| told.lock().unwrap().push(block.clone())
    });
    let mut expected = BTreeSet::new();
    for (segment, block, at) in [(1, 0, 0), (1, 3, 99), (2, 1, 17), (3, 2, BLOCK_BYTES - 1)] {
        let offset = u64::from(block * BLOCK_BYTES + at);
        env.corrupt(&path(segment), offset, 0x10).unwrap();
        expected.insert((segment, block));
    }
    let expected: Vec<_> = expected.into_iter().collect();
    for _ in 0..2 {
        assert_eq!(scrub(&log).damaged, 4);
        assert_eq!(places(&log.damaged_blocks()), expected);
        let mut told = told.lock().unwrap().clone();
        told.sort_by_key(|block| (block.segment, block.block));
        assert_eq!(told, log.damaged_blocks());
    }
    for block in log.damaged_blocks() {
        let side = read_whole(&env, &dir().join("log").join(side_name(block.segment))).unwrap();
        let digests = SideFile::decode(&side).unwrap().digests;
        assert_eq!(block.expected, Some(digests.blocks[block.block as usize]));
        let bytes = block_of(&env, block.segment, block.block);
        assert_eq!(block.found, Some(blake3::hash(&bytes)));
        assert_eq!((block.offset, block.bytes), (block.block * BLOCK_BYTES, bytes.len() as u32));
        // Every entry with bytes in the block is named, and few others.
        let touched = |vlsn: Vlsn| {
            let from = 64 + (vlsn.sequence() - 1) % ENTRIES * ENTRY_BYTES as i64;
            let segment = 1 + (vlsn.sequence() - 1) / ENTRIES;
            segment == i64::from(block.segment)
                && from < i64::from(block.offset + block.bytes)
                && from + ENTRY_BYTES as i64 > i64::from(block.offset)
        };
        let touched: Vec<_> = (1..=3 * ENTRIES).map(vlsn_of).filter(|v| touched(*v)).collect();
        assert!(block.first <= touched[0] && *touched.last().unwrap() <= block.last);
        assert!(block.last.since(block.first) <= touched.len() as u64 + 2, "{block:?}");
    }
}

#[test]
fn a_file_that_is_cut_longer_gone_or_unreadable_is_damaged() {
    let (env, log) = filled::<FaultEnv>(3, quiet());
    let len = u64::from(log.sealed_segments()[0].bytes);
    let set_len =
        |segment, len| env.open(&path(segment), OpenMode::ReadWrite).unwrap().set_len(len).unwrap();
    set_len(1, u64::from(BLOCK_BYTES) + 5);
    set_len(2, len + 1);
    env.remove(&path(3)).unwrap();
    assert_eq!(scrub(&log).damaged, 3 + 1 + 4);
    let all = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 0), (3, 1), (3, 2), (3, 3)];
    assert_eq!(places(&log.damaged_blocks()), all);
    assert!(log.damaged_blocks()[4..].iter().all(|block| block.found.is_none()));
}

#[test]
fn a_read_that_fails_once_is_no_damage() {
    let (env, log) = filled::<FaultEnv>(1, quiet());
    env.fail_next("read_at", Fault::IO);
    env.fail_next("read_at", Fault::IO);
    scrub(&log);
    assert_eq!(log.damaged_blocks(), [], "a side file that cannot be read, and once a block");
}

#[test]
fn a_lost_side_file_is_found_and_made_again() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let side = dir().join("log").join(side_name(1));
    let right = read_whole(&env, &side).unwrap();
    env.corrupt(&side, 200, 1).unwrap();
    assert_eq!(scrub(&log).damaged, 0);
    assert_eq!(read_whole(&env, &side).unwrap(), right);
}

#[test]
fn digests_that_contradict_a_whole_segment_are_made_again() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let sealed = log.sealed_segments();
    log.close().unwrap();
    drop(log);
    let path = dir().join("log").join(side_name(1));
    let right = read_whole(&env, &path).unwrap();
    let mut side = SideFile::decode(&right).unwrap();
    side.digests.segment = blake3::hash(b"other");
    side.digests.blocks[2] = blake3::hash(b"other");
    noxu_log::env::write_whole(&env, &path, &side.encode()).unwrap();
    let log = open(&env, quiet()).unwrap();
    assert_ne!(log.sealed_segments(), sealed, "nothing tells at open");
    assert_eq!(scrub(&log).damaged, 0);
    assert_eq!(log.sealed_segments(), sealed);
    assert_eq!(read_whole(&env, &path).unwrap(), right);
    assert_eq!(log.block_digests(1).unwrap(), SideFile::decode(&right).unwrap().digests);
}

#[test]
fn a_damaged_segment_without_its_side_file_is_reported_and_not_repaired_by_guessing() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    log.close().unwrap();
    drop(log);
    let log = open(&env, quiet()).unwrap();
    let right = block_of(&env, 2, 1);
    env.remove(&dir().join("log").join(side_name(2))).unwrap();
    env.corrupt(&path(2), u64::from(BLOCK_BYTES) + 9, 1).unwrap();
    assert_eq!(scrub(&log).damaged, 1);
    let damaged = log.damaged_blocks();
    assert_eq!((damaged[0].segment, damaged[0].expected), (2, None));
    let error = log.replace_block(2, 1, &right).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { segment: 2, .. }), "{error}");
}

#[test]
fn segments_read_longest_ago_come_first() {
    let (_, log) = filled::<FaultEnv>(5, quiet());
    let order = |stop_after: usize| {
        let mut seen: Vec<u32> = Vec::new();
        log.scrub(&fast(), |progress| {
            if seen.last() != Some(&progress.segment) {
                seen.push(progress.segment);
            }
            if seen.len() > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        seen.truncate(stop_after);
        seen
    };
    assert_eq!(order(2), [1, 2], "all verified as they were sealed");
    assert_eq!(order(1), [3]);
    assert_eq!(order(9), [4, 5, 1, 2, 3]);
}

#[test]
fn the_rate_is_kept() {
    let (_, log) = filled::<MemoryEnv>(2, quiet());
    let config = ScrubConfig { bytes_per_second: 8 << 20, ..fast() };
    let began = Instant::now();
    let end = log.scrub(&config, |_| ControlFlow::Continue(())).unwrap();
    // The last block is read as soon as those before it are paid for.
    let paid = end.bytes - u64::from(BLOCK_BYTES);
    assert!(began.elapsed().as_secs_f64() >= paid as f64 / f64::from(8 << 20), "{end:?}");
    assert!(end.bytes_per_second() <= f64::from(8 << 20) * end.bytes as f64 / paid as f64);
}

#[test]
fn a_slow_scrub_ends_at_once_when_the_log_is_closed() {
    let (_, log) = filled::<MemoryEnv>(2, quiet());
    let (first_block, began) = mpsc::channel();
    let config = ScrubConfig { bytes_per_second: 1, ..fast() };
    let pass = std::thread::spawn({
        let log = log.clone();
        move || {
            log.scrub(&config, |_| {
                first_block.send(()).unwrap();
                ControlFlow::Continue(())
            })
        }
    });
    began.recv().unwrap();
    log.close().unwrap();
    let error = pass.join().unwrap().unwrap_err();
    assert!(matches!(error, LogError::Closed { .. }), "{error}");
}

#[test]
fn the_background_scrub_finds_damage_by_itself_and_ends_with_the_log() {
    let config = ScrubConfig { interval: Duration::ZERO, delay: Duration::ZERO, ..fast() };
    let (env, log) = filled::<FaultEnv>(2, quiet());
    log.close().unwrap();
    drop(log);
    let log = open(&env, LogConfig { scrub: Some(config), ..quiet() }).unwrap();
    let (found, damage) = mpsc::channel();
    log.on_damaged_block(move |block| found.send(block.clone()).unwrap());
    env.corrupt(&path(2), 2 * u64::from(BLOCK_BYTES), 1).unwrap();
    let block = damage.recv().unwrap();
    assert_eq!((block.segment, block.block), (2, 2));
    env.corrupt(&path(2), 2 * u64::from(BLOCK_BYTES), 1).unwrap();
    let right = block_of(&env, 2, 2);
    log.replace_block(2, 2, &right).unwrap();
    assert!(log.scrub_report().bytes > 0);
    log.close().unwrap();
    // Slow, waiting for its time, and with nothing to do it ends as well.
    for config in [
        ScrubConfig { bytes_per_second: 1, delay: Duration::ZERO, ..fast() },
        ScrubConfig { delay: Duration::MAX, ..fast() },
        ScrubConfig { interval: Duration::MAX, delay: Duration::ZERO, ..fast() },
    ] {
        open(&env, LogConfig { scrub: Some(config), ..quiet() }).unwrap().close().unwrap();
    }
}

#[test]
fn a_scrub_beside_appends_drops_and_truncations_never_reports_damage() {
    let env = MemoryEnv::default();
    let config = ScrubConfig { interval: Duration::ZERO, delay: Duration::ZERO, ..fast() };
    let log = try_open(&env, LogConfig { scrub: Some(config), ..quiet() }).unwrap();
    let damaged = Arc::new(AtomicUsize::new(0));
    log.on_damaged_block({
        let damaged = Arc::clone(&damaged);
        move |_| {
            damaged.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut random = fastrand::Rng::with_seed(11);
    let mut passes = 0;
    for round in 0..300 {
        for _ in 0..random.u32(1..40) {
            append(&log, 1, &body(round, 500)).unwrap();
        }
        log.sync_now().unwrap();
        let (last, floor) = {
            let positions = log.positions();
            (positions.last.sequence(), positions.anchor.vlsn.sequence())
        };
        if random.bool() {
            log.seal_through(vlsn_of(last - 20)).unwrap();
        }
        if random.bool() {
            log.drop_front(vlsn_of(random.i64(floor..=last)), |_| Vec::new()).unwrap();
        }
        if random.bool() {
            let _ = log.truncate_after(vlsn_of(last - random.i64(0..5)), noxu_log::Cut::Discard);
        }
        passes += scrub(&log).segments_done;
    }
    assert!(passes > 300, "{passes} segments read");
    log.close().unwrap();
    assert_eq!(damaged.load(Ordering::Relaxed), 0);
    assert_eq!(log.damaged_blocks(), []);
}

// ---- block repair

#[test]
fn a_damaged_block_is_replaced_by_what_it_was_and_nothing_else() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let last = 2 * ENTRIES + 3;
    for block in 0..4 {
        let right = block_of(&env, 1, block);
        let offset = u64::from(block * BLOCK_BYTES) + 70;
        env.corrupt(&path(1), offset, 4).unwrap();
        assert_eq!(scrub(&log).damaged, 1);
        let wrong = block_of(&env, 1, block);
        let mut longer = right.clone();
        longer.push(0);
        for bytes in [&wrong, &longer, &right[1..].to_vec(), &Vec::new(), &block_of(&env, 2, 1)] {
            let calls = env.calls();
            let error = log.replace_block(1, block, bytes).unwrap_err();
            let LogError::WrongBlock { expected, found, .. } = error else { panic!("{error}") };
            assert_eq!((expected, found), (blake3::hash(&right), blake3::hash(bytes)));
            let reads = ["open", "len", "read_at"];
            let mut since = env.trace().into_iter().filter(|call| call.number > calls);
            assert!(since.all(|call| reads.contains(&call.function)));
        }
        assert_eq!(places(&log.damaged_blocks()), [(1, block)]);
        log.replace_block(1, block, &right).unwrap();
        assert_eq!(log.damaged_blocks(), []);
        assert_eq!(scrub(&log).damaged, 0);
        assert_whole(&log, last);
    }
    log.close().unwrap();
    assert!(matches!(log.replace_block(1, 0, &[]), Err(LogError::Closed { .. })));
}

#[test]
fn what_is_no_sealed_segment_or_block_is_refused() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let right = block_of(&env, 1, 0);
    for segment in [0, 3, 4, u32::MAX] {
        let error = log.replace_block(segment, 0, &right).unwrap_err();
        assert!(matches!(error, LogError::NotSealed { segment: s } if s == segment), "{error}");
    }
    for block in [4, u32::MAX] {
        let error = log.replace_block(1, block, &right).unwrap_err();
        assert!(matches!(error, LogError::NoSuchBlock { blocks: 4, .. }), "{error}");
    }
    log.drop_front(vlsn_of(ENTRIES), |_| Vec::new()).unwrap();
    let error = log.replace_block(1, 0, &right).unwrap_err();
    assert!(matches!(error, LogError::NotSealed { segment: 1 }), "{error}");
}

#[test]
fn a_segment_whose_file_is_cut_longer_or_gone_is_made_again_block_by_block() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let blocks: Vec<_> = (0..4).map(|block| block_of(&env, 1, block)).collect();
    let file = |env: &FaultEnv| env.open(&path(1), OpenMode::ReadWrite).unwrap();
    let len = file(&env).len().unwrap();
    let losses: [(&str, &dyn Fn()); 3] = [
        ("cut", &|| file(&env).set_len(1000).unwrap()),
        ("longer", &|| file(&env).set_len(len + 100_000).unwrap()),
        ("gone", &|| env.remove(&path(1)).unwrap()),
    ];
    for (what, lose) in losses {
        lose();
        assert!(scrub(&log).damaged > 0, "{what}");
        for (at, block) in blocks.iter().enumerate().rev() {
            log.replace_block(1, at as u32, block).unwrap();
        }
        assert_eq!(file(&env).len().unwrap(), len, "{what}");
        assert_eq!(scrub(&log).damaged, 0, "{what}");
        assert_eq!(log.damaged_blocks(), []);
        assert_whole(&log, 2 * ENTRIES + 3);
        assert_whole(&open(&env.clone_image(Survivors::None), quiet()).unwrap(), 2 * ENTRIES + 3);
    }
}

#[test]
fn a_crash_at_any_call_of_a_repair_leaves_the_block_damaged_or_whole_and_the_rest_as_it_was() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    log.close().unwrap();
    drop(log);
    for block in [1, 3] {
        let right = block_of(&env, 1, block);
        let image = env.clone_image(Survivors::None);
        // All over the block, so that a torn write leaves some of it.
        for at in (0..right.len() as u64).step_by(4096) {
            image.corrupt(&path(1), u64::from(block * BLOCK_BYTES) + at, 0xff).unwrap();
        }
        for number in 1.. {
            let before = image.clone_image(Survivors::None);
            let log = open(&before, quiet()).unwrap();
            before.crash_at(before.calls() + number);
            let acknowledged = log.replace_block(1, block, &right).is_ok();
            let crashed = before.has_crashed();
            drop(log);
            let after = before.crash(number);
            let log = open(&after, quiet()).unwrap();
            scrub(&log);
            let damaged = log.damaged_blocks();
            assert!(damaged.is_empty() || places(&damaged) == [(1, block)], "{damaged:?}");
            assert!(damaged.is_empty() || !acknowledged, "acknowledged and damaged");
            for other in (0..4).filter(|other| *other != block) {
                assert_eq!(block_of(&after, 1, other), block_of(&env, 1, other));
            }
            log.replace_block(1, block, &right).unwrap();
            assert_eq!(scrub(&log).damaged, 0);
            assert_whole(&log, 2 * ENTRIES + 3);
            if !crashed {
                assert!(acknowledged && number > 4, "{number} calls");
                break;
            }
        }
    }
}

#[test]
fn a_repair_that_fails_changes_nothing_that_counts_and_may_be_tried_again() {
    let (env, log) = filled::<FaultEnv>(2, quiet());
    let right = block_of(&env, 1, 2);
    env.corrupt(&path(1), 2 * u64::from(BLOCK_BYTES) + 600, 1).unwrap();
    scrub(&log);
    for function in ["open", "write_at", "sync_data", "read_at"] {
        env.fail_next(function, Fault::IO);
        log.replace_block(1, 2, &right).unwrap_err();
        assert_eq!(places(&log.damaged_blocks()), [(1, 2)], "{function} failed");
    }
    append(&log, 1, b"the log goes on").unwrap();
    log.sync_now().unwrap();
    log.replace_block(1, 2, &right).unwrap();
    assert_eq!(log.damaged_blocks(), []);
}

#[test]
fn readers_beside_a_repair_see_an_error_or_the_right_entry() {
    let dir = tempfile::tempdir().unwrap();
    let env = RealEnv::new();
    let (log, _) =
        Log::open(Arc::new(env), dir.path(), LogConfig { tail_bytes: 0, ..quiet() }).unwrap();
    log.found(GroupIdentity { segment_bytes: SEGMENT_BYTES, ..group() }).unwrap();
    fill(&log, 2 * ENTRIES + 3);
    let path = dir.path().join("log").join(segment_name(1));
    let whole = std::fs::read(&path).unwrap();
    let right = whole[..BLOCK_BYTES as usize].to_vec();
    let mut wrong = right.clone();
    for byte in wrong.iter_mut().skip(64).step_by(512) {
        *byte ^= 1;
    }
    let seen_right = AtomicUsize::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for vlsn in 1..=8 {
                        match log.read(vlsn_of(vlsn), 1) {
                            Ok(Some(run)) => {
                                let entry = run.entries().next().unwrap();
                                assert_eq!(entry.body, body(vlsn as u64, ENTRY_BYTES - 32));
                                seen_right.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(None) => panic!("entry {vlsn} is there"),
                            Err(error) => {
                                assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
                            }
                        }
                    }
                }
            });
        }
        let file = env.open(&path, OpenMode::ReadWrite).unwrap();
        for _ in 0..200 {
            file.write_at(&[std::io::IoSlice::new(&wrong)], 0).unwrap();
            log.read(vlsn_of(3), 1).unwrap_err();
            log.replace_block(1, 0, &right).unwrap();
            // Replaced, it is right at once.
            assert!(log.read(vlsn_of(3), 1).unwrap().is_some());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen_right.into_inner() > 0);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}
