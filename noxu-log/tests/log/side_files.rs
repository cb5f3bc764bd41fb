//! Side files: missing, cut, flipped, foreign, at open and while the log runs. What is rebuilt equals
//! what was lost, and damage of the segment is never taken over into new digests.

use std::path::PathBuf;

use noxu_log::env::{Env, Fault, FaultEnv, OpenMode, Survivors, read_whole, write_whole};
use noxu_log::segment::name::{segment_name, side_name};
use noxu_log::segment::side_file::SideFile;
use noxu_log::{Log, LogError};
use noxu_util::{Fingerprint, Term, Vlsn};

use crate::rig::{bodies, body, dir, fill, open, vlsn_of};

/// 30 entries over five segments, four of them sealed, closed in order.
fn closed() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(29)).unwrap();
    log.seal_through(vlsn_of(29)).unwrap();
    assert_eq!(log.sealed_segments().len(), 4);
    log.close().unwrap();
    env
}

fn expected() -> Vec<Vec<u8>> {
    (1..=30).map(|tag| body(tag, 500)).collect()
}

fn side_path(number: u32) -> PathBuf {
    dir().join("log").join(side_name(number))
}

fn segment_path(number: u32) -> PathBuf {
    dir().join("log").join(segment_name(number))
}

/// Takes a side file away.
type Loss = Box<dyn Fn(&FaultEnv)>;

/// Ways to lose the side file at `path`, which has `bytes`.
fn losses(path: &std::path::Path, bytes: &[u8]) -> Vec<(String, Loss)> {
    let mut all: Vec<(String, Loss)> = Vec::new();
    let at = path.to_owned();
    all.push(("missing".into(), Box::new(move |env| env.remove(&at).unwrap())));
    for offset in 0..bytes.len() as u64 {
        let at = path.to_owned();
        let flip = move |env: &FaultEnv| env.corrupt(&at, offset, 1 << (offset % 8)).unwrap();
        all.push((format!("byte {offset} flipped"), Box::new(flip)));
    }
    for len in (0..bytes.len() as u64).step_by(11) {
        let at = path.to_owned();
        let cut = move |env: &FaultEnv| {
            env.open(&at, OpenMode::ReadWrite).unwrap().set_len(len).unwrap();
        };
        all.push((format!("cut to {len}"), Box::new(cut)));
    }
    let (at, mut longer) = (path.to_owned(), bytes.to_vec());
    longer.push(0);
    all.push(("longer".into(), Box::new(move |env| write_whole(env, &at, &longer).unwrap())));
    all
}

#[test]
fn a_lost_side_file_is_rebuilt_as_it_was_when_the_log_is_opened() {
    let env = closed();
    for number in [1, 3] {
        let path = side_path(number);
        let bytes = read_whole(&env, &path).unwrap();
        for (how, lose) in losses(&path, &bytes) {
            let after = env.clone_image(Survivors::None);
            lose(&after);
            let log = open(&after);
            assert_eq!(log.sealed_segments().len(), 4, "{number}: {how}");
            assert_eq!(read_whole(&after, &path).unwrap(), bytes, "{number}: {how}");
        }
    }
}

#[test]
fn a_side_file_lost_while_the_log_runs_is_rebuilt_as_it_was_when_it_is_needed() {
    let env = closed();
    let bytes: Vec<_> = (1..=4).map(|n| read_whole(&env, &side_path(n)).unwrap()).collect();
    for (how, lose) in losses(&side_path(3), &bytes[2]).into_iter().step_by(7) {
        for by_reading in [true, false] {
            let after = env.clone_image(Survivors::None);
            let log = open(&after);
            lose(&after);
            // Those before it are not needed for it.
            after.remove(&side_path(1)).unwrap();
            after.remove(&side_path(2)).unwrap();
            if by_reading {
                assert_eq!(log.header(vlsn_of(16)).unwrap().unwrap().0.vlsn, vlsn_of(16), "{how}");
            } else {
                assert_eq!(log.block_digests(3).unwrap(), digests(&bytes[2]), "{how}");
            }
            assert_eq!(read_whole(&after, &side_path(3)).unwrap(), bytes[2], "{how}");
            assert_eq!(bodies(&log), expected());
        }
    }
}

#[test]
fn a_side_file_that_a_full_disk_has_no_room_for_is_no_obstacle_to_opening() {
    let env = closed();
    let sides: Vec<_> = (1..=4).map(|n| read_whole(&env, &side_path(n)).unwrap()).collect();
    for lost in 1..=3 {
        let env = env.clone_image(Survivors::None);
        env.remove(&side_path(lost)).unwrap();
        env.set_capacity(Some(env.used_bytes()));
        let log = open(&env);
        assert_eq!(log.sealed_segments().len() as u32, lost - 1, "those behind it wait for it");
        assert_eq!(bodies(&log), expected());
        drop(log);
        // Opened again, and with room for it in the end.
        let log = open(&env);
        assert!(log.seal_through(vlsn_of(30)).unwrap_err().is_storage_full());
        env.set_capacity(None);
        log.seal_through(vlsn_of(30)).unwrap();
        assert_eq!(log.sealed_segments().len(), 4);
        for (number, bytes) in (1..).zip(&sides) {
            assert!(read_whole(&env, &side_path(number)).unwrap() == *bytes, "{lost}: {number}");
        }
        assert_eq!(bodies(&log), expected());
    }
}

#[test]
fn what_could_not_be_sealed_at_open_is_sealed_by_itself_once_there_is_room() {
    let env = closed();
    env.remove(&side_path(2)).unwrap();
    env.fail_next("set_len", Fault::NO_SPACE); // of the new side file
    let log = open(&env);
    while log.sealed_segments().len() < 4 {
        std::thread::yield_now();
    }
    assert!(env.exists(&side_path(2)).unwrap());
}

fn digests(side: &[u8]) -> noxu_log::segment::side_file::Digests {
    SideFile::decode(side).unwrap().digests
}

#[test]
fn a_side_file_that_cannot_be_read_or_written_takes_no_entry_away() {
    let env = closed();
    let log = open(&env);
    env.corrupt(&side_path(2), 50, 1).unwrap();
    env.set_full(true);
    assert_eq!(log.header(vlsn_of(10)).unwrap().unwrap().0.vlsn, vlsn_of(10));
    assert!(log.block_digests(2).is_ok());
}

#[test]
fn a_side_file_of_other_bytes_is_not_believed() {
    let env = closed();
    let right = read_whole(&env, &side_path(2)).unwrap();
    let forged = |change: &dyn Fn(&mut SideFile)| {
        let mut side = SideFile::decode(&right).unwrap();
        change(&mut side);
        side.encode()
    };
    let other = Fingerprint::from_u64(99);
    let forgeries = [
        ("another segment's", read_whole(&env, &side_path(3)).unwrap()),
        ("another end", forged(&|side| side.summary.last.fingerprint = other)),
        ("an earlier end", forged(&|side| side.summary.last.vlsn = vlsn_of(13))),
        ("another length", forged(&|side| side.summary.end -= 1)),
        ("another header", forged(&|side| side.summary.header.previous_fingerprint = other)),
    ];
    for (what, bytes) in &forgeries {
        let after = env.clone_image(Survivors::None);
        write_whole(&after, &side_path(2), bytes).unwrap();
        let log = open(&after);
        assert_eq!(read_whole(&after, &side_path(2)).unwrap(), right, "{what}");
        assert_eq!(bodies(&log), expected(), "{what}");
        write_whole(&after, &side_path(2), bytes).unwrap();
        drop(log);
        let log = open(&after);
        write_whole(&after, &side_path(2), bytes).unwrap();
        assert_eq!(log.block_digests(2).unwrap(), digests(&right), "{what}");
        assert_eq!(read_whole(&after, &side_path(2)).unwrap(), right, "{what}");
    }
    // What only the digest tells is found once the log has it in memory.
    let log = open(&env);
    let bytes = forged(&|side| side.digests.segment = blake3::hash(b"other"));
    write_whole(&env, &side_path(2), &bytes).unwrap();
    assert_eq!(log.block_digests(2).unwrap(), digests(&right));
}

#[test]
fn side_files_that_contradict_themselves_are_damaged() {
    let env = closed();
    let right = SideFile::decode(&read_whole(&env, &side_path(2)).unwrap()).unwrap();
    let refused = |what: &str, change: &dyn Fn(&mut SideFile)| {
        let mut side = right.clone();
        change(&mut side);
        assert!(SideFile::decode(&side.encode()).is_err(), "{what}");
    };
    refused("no entry", &|side| side.summary.last.vlsn = side.summary.header.first.prev());
    refused("last offset beyond the end", &|side| side.summary.last_offset = side.summary.end);
    refused("last offset in the header", &|side| side.summary.last_offset = 63);
    refused("end in the header", &|side| side.summary.end = 10);
    refused("more blocks", &|side| side.digests.blocks.push(blake3::hash(b"")));
    refused("no block", &|side| side.digests.blocks.clear());
    refused("sync beyond the end", &|side| side.summary.last_sync = vlsn_of(1000));
    refused("txn end after sync", &|side| side.summary.last_sync = Vlsn::new(3));
    refused("term of nobody", &|side| {
        side.summary.terms.push((side.summary.last.term, vlsn_of(9)));
    });
    refused("last term", &|side| side.summary.last.term = Term::new(9));
}

#[test]
fn a_rebuilt_side_file_never_blesses_damage_of_its_segment() {
    let env = closed();
    let path = segment_path(2);
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    for offset in 0..len {
        let after = env.clone_image(Survivors::None);
        let log = open(&after);
        after.remove(&side_path(2)).unwrap();
        after.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
        let error = log.block_digests(2).unwrap_err();
        let LogError::Corrupt { segment: 2, offset: place, .. } = error else { panic!("{error}") };
        assert!(place <= offset && offset < place.max(64) + 532, "byte {offset}: {error}");
        assert!(!after.exists(&side_path(2)).unwrap(), "byte {offset}");
        // Whole again, it has its digests again.
        after.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
        log.block_digests(2).unwrap();
    }
}

#[test]
fn a_damaged_segment_is_not_sealed() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    let path = segment_path(1);
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    for offset in 0..len {
        env.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
        let error = log.seal_through(vlsn_of(29)).unwrap_err();
        assert!(matches!(error, LogError::Corrupt { segment: 1, .. }), "byte {offset}: {error}");
        env.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
    }
    env.open(&path, OpenMode::ReadWrite).unwrap().set_len(len - 1).unwrap();
    let error = log.seal_through(vlsn_of(29)).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { segment: 1, .. }), "{error}");
    assert_eq!(log.sealed_segments(), []);
    assert!(!env.exists(&side_path(1)).unwrap());
}

#[test]
fn a_segment_that_is_not_sealed_has_no_digests() {
    let env = closed();
    let log = open(&env);
    for number in [0, 5, 6, u32::MAX] {
        let error = log.block_digests(number).unwrap_err();
        assert!(matches!(error, LogError::NotSealed { segment } if segment == number), "{error}");
    }
}

#[test]
fn many_readers_that_miss_one_side_file_all_get_their_entries() {
    let env = closed();
    let right = read_whole(&env, &side_path(2)).unwrap();
    for _ in 0..50 {
        let log: Log = open(&env);
        env.remove(&side_path(2)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(log.header(vlsn_of(10)).unwrap().is_some()));
            }
        });
        assert_eq!(read_whole(&env, &side_path(2)).unwrap(), right);
    }
}
