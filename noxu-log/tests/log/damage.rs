//! Damage: a flipped bit is found wherever it is, by opening, by reading or by both, and never read
//! as if it were log.

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors};
use noxu_log::{LogError, Result};

use crate::rig::{
    bodies, body, dir, fill, is_damage, open, quiet, read_all, segments, try_open, vlsn_of,
};

/// 30 entries over several segments, the first ones sealed, closed in order.
fn closed() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(20)).unwrap();
    log.seal_through(vlsn_of(20)).unwrap();
    log.close().unwrap();
    env
}

fn open_and_read(env: &FaultEnv) -> Result<Vec<Vec<u8>>> {
    let log = try_open(env, quiet())?;
    Ok(read_all(&log, 1 << 20)?.into_iter().map(|got| got.body).collect())
}

fn expected() -> Vec<Vec<u8>> {
    (1..=30).map(|tag| body(tag, 500)).collect()
}

#[test]
fn a_flipped_byte_anywhere_in_a_segment_is_found_and_named() {
    let env = closed();
    let segments = segments(&env);
    assert!(segments.len() >= 4, "{segments:?}");
    for (number, name) in segments.iter().enumerate() {
        let path = dir().join("log").join(name);
        let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
        for offset in (0..len).step_by(13) {
            let after = env.clone_image(Survivors::None);
            after.corrupt(&path, offset, 0x40).unwrap();
            let error = match open_and_read(&after) {
                Ok(read) => panic!("{} entries read, {name} byte {offset}", read.len()),
                Err(error) => error,
            };
            assert!(is_damage(&error), "{name} byte {offset}: {error}");
            if let LogError::Corrupt { segment, offset: found, .. } = error {
                assert_eq!(segment as usize, number + 1, "{name} byte {offset}");
                assert!(found <= offset && offset < found + 600, "byte {offset}, named {found}");
            }
        }
    }
}

#[test]
fn a_damaged_side_file_is_made_again_from_its_segment() {
    let env = closed();
    let path = dir().join("log/0000000001.nside");
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    for offset in 0..len {
        let after = env.clone_image(Survivors::None);
        after.corrupt(&path, offset, 1).unwrap();
        assert_eq!(open_and_read(&after).unwrap(), expected(), "byte {offset}");
    }
    env.remove(&path).unwrap();
    let log = open(&env);
    assert_eq!(bodies(&log), expected());
    log.seal_through(vlsn_of(30)).unwrap();
    assert!(env.exists(&path).unwrap());
}

#[test]
fn a_missing_segment_is_named() {
    let env = closed();
    env.remove(&dir().join("log/0000000002.nlog")).unwrap();
    let error = open_and_read(&env).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { segment: 2, .. }), "{error}");
}

#[test]
fn a_segment_cut_short_below_the_mark_is_refused() {
    let env = closed();
    let path = dir().join("log").join(segments(&env).last().unwrap());
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    for len in (0..len).step_by(97) {
        let after = env.clone_image(Survivors::None);
        let file = after.open(&path, OpenMode::ReadWrite).unwrap();
        file.set_len(len).unwrap();
        let error = open_and_read(&after).unwrap_err();
        assert!(is_damage(&error), "{len} bytes left: {error}");
    }
}

#[test]
fn a_segment_of_another_group_is_refused() {
    let env = closed();
    let other = FaultEnv::new();
    let group = noxu_log::GroupIdentity {
        id: noxu_util::GroupId::from_bytes([0xee; 16]),
        ..crate::rig::group()
    };
    let (log, _) = noxu_log::Log::open(std::sync::Arc::new(other.clone()), dir(), quiet()).unwrap();
    log.found(group).unwrap();
    fill(&log, 1, 8, 500);
    log.close().unwrap();
    drop(log);
    let path = dir().join("log/0000000001.nlog");
    let bytes = noxu_log::env::read_whole(&other, &path).unwrap();
    noxu_log::env::write_whole(&env, &path, &bytes).unwrap();
    let error = open_and_read(&env).unwrap_err();
    assert!(error.to_string().contains("eeeeeeee"), "{error}");
}

#[test]
fn a_refused_directory_is_left_as_it_was() {
    let env = closed();
    let path = dir().join("log/0000000003.nlog");
    env.corrupt(&path, 700, 1).unwrap();
    let content = |env: &FaultEnv| -> Vec<_> {
        let names = env.list(&dir().join("log")).unwrap();
        let read =
            |name: &String| noxu_log::env::read_whole(env, &dir().join("log").join(name)).unwrap();
        names.iter().map(|name| (name.clone(), read(name))).collect()
    };
    let before = content(&env);
    open_and_read(&env).unwrap_err();
    assert!(content(&env) == before);
    env.corrupt(&path, 700, 1).unwrap();
    assert_eq!(open_and_read(&env).unwrap(), expected());
}

/// Every segment is unsealed; entries of 500 bytes, 7 to a segment.
fn unsealed() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.close().unwrap();
    env
}

#[test]
fn segments_filled_ahead_are_whole_before_they_are_sealed() {
    let env = unsealed();
    for number in 1..=4 {
        let path = dir().join(format!("log/{number:010}.nlog"));
        env.open(&path, OpenMode::ReadWrite).unwrap().allocate(4096).unwrap();
    }
    assert_eq!(open_and_read(&env).unwrap(), expected());
    let log = open(&env);
    log.seal_through(vlsn_of(30)).unwrap();
    assert_eq!(log.sealed_segments().len(), 4);
    assert_eq!(bodies(&log), expected());
}

#[test]
fn zeros_where_an_unsealed_segment_had_its_last_entry_are_damage() {
    let env = unsealed();
    let path = dir().join("log/0000000002.nlog");
    let file = env.open(&path, OpenMode::ReadWrite).unwrap();
    let last_entry = file.len().unwrap() - 532;
    file.write_at(&[std::io::IoSlice::new(&[0; 532])], last_entry).unwrap();
    let error = open_and_read(&env).unwrap_err();
    let LogError::Corrupt { segment: 2, offset, .. } = error else { panic!("{error}") };
    assert_eq!(offset, last_entry);
}
