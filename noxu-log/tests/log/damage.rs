//! Damage: a flipped bit is found wherever it is, by opening, by reading or by both, and never read
//! as if it were log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors};
use noxu_log::{ChainState, EntryRun, Log, LogError, Result};
use noxu_util::{Fingerprint, Term, Vlsn};

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

fn segment_path(number: u32) -> PathBuf {
    dir().join(format!("log/{number:010}.nlog"))
}

fn expected() -> Vec<Vec<u8>> {
    (1..=30).map(|tag| body(tag, 500)).collect()
}

/// What a flipped byte came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes {
    /// Nobody noticed, and nothing was wrong.
    harmless: u32,
    /// Damage that the log put right by itself when it was opened.
    healed: u32,
    /// Entries that were kept apart, and put back from a copy.
    repaired: u32,
    /// A block of a sealed segment that could not be read, named, and was replaced from a copy.
    replaced: u32,
    /// The log did not open, and said why.
    refused: u32,
    /// The head became uncertain.
    uncertain: u32,
}

/// Every byte of every file of a small log, one bit at a time: repaired from a copy, made again from
/// what is there, or refused with its place. Never wrong entries, never fewer.
#[test]
fn every_flipped_byte_is_repaired_healed_or_refused_with_its_place() {
    let env = closed();
    let copy = open(&env.clone_image(Survivors::None));
    let mut files: Vec<_> =
        env.list(&dir().join("log")).unwrap().iter().map(|n| dir().join("log").join(n)).collect();
    files.extend([dir().join("control"), dir().join("tail-mark")]);
    let mut total = Outcomes::default();
    for path in files {
        let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
        let mut outcomes = Outcomes::default();
        for offset in 0..len {
            let after = env.clone_image(Survivors::None);
            after.corrupt(&path, offset, 1 << (offset % 8)).unwrap();
            let context = format!("{} byte {offset}", path.display());
            outcomes.count(&after, &copy, &path, offset, &context);
        }
        println!("{}: {len} bytes, {outcomes:?}", path.display());
        total.add(&outcomes);
    }
    println!("all: {total:?}");
    // Each outcome is there: the test would not notice damage that never happened.
    assert!(total.repaired > 8_000 && total.replaced > 7_000 && total.healed > 500, "{total:?}");
    assert!(total.uncertain > 900, "{total:?}");
}

impl Outcomes {
    fn count(
        &mut self,
        env: &FaultEnv,
        copy: &Log,
        path: &Path,
        offset: u64,
        context: &dyn std::fmt::Display,
    ) {
        let (log, report) = match Log::open(Arc::new(env.clone()), dir(), quiet()) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(is_damage(&error), "{context}: {error}");
                self.refused += 1;
                return;
            }
        };
        assert_eq!(log.positions().last, vlsn_of(30), "{context}: the end moved");
        for faulty in &report.faulty {
            assert_eq!(segment_path(faulty.segment), *path, "{context}");
            assert!(u64::from(faulty.offset) <= offset, "{context}: {faulty:?}");
            let read = log.read(faulty.first, 1 << 20);
            assert!(matches!(read, Err(LogError::Faulty { .. })), "{context}: {read:?}");
            log.repair(&run_of(copy, faulty.first, faulty.last)).unwrap_or_else(|error| {
                panic!("{context}: {faulty:?} cannot be repaired: {error}");
            });
        }
        assert!(log.faulty().is_empty(), "{context}");
        match read_all(&log, 1 << 20) {
            Ok(read) => {
                let read: Vec<_> = read.into_iter().map(|got| got.body).collect();
                assert!(read == expected(), "{context}: other entries than were written");
            }
            Err(LogError::Corrupt { segment, offset: found, .. }) => {
                assert_eq!(segment_path(segment), *path, "{context}");
                assert!(found <= offset && offset < found + 600, "{context}: named {found}");
                let (block, bytes) = block_of(copy, segment, offset);
                log.replace_block(segment, block, &bytes).unwrap();
                let read: Vec<_> =
                    read_all(&log, 1 << 20).unwrap().into_iter().map(|got| got.body).collect();
                assert!(read == expected(), "{context}: after its block was replaced");
                self.replaced += 1;
                return;
            }
            Err(error) => panic!("{context}: {error}"),
        }
        if !report.faulty.is_empty() {
            self.repaired += 1;
        } else if report.head_uncertain {
            self.uncertain += 1;
        } else {
            log.close().unwrap();
            drop(log);
            let differs = env.corrupt(path, offset, 0).is_err() || {
                let before = noxu_log::env::read_whole(copy.env().as_ref(), path).unwrap();
                noxu_log::env::read_whole(env, path).unwrap() != before
            };
            if differs { self.harmless += 1 } else { self.healed += 1 }
        }
    }

    fn add(&mut self, other: &Self) {
        self.harmless += other.harmless;
        self.healed += other.healed;
        self.repaired += other.repaired;
        self.replaced += other.replaced;
        self.refused += other.refused;
        self.uncertain += other.uncertain;
    }
}

/// Number and bytes of the block that holds `offset` of a sealed segment.
fn block_of(log: &Log, segment: u32, offset: u64) -> (u32, Vec<u8>) {
    let bytes = noxu_log::env::read_whole(log.env().as_ref(), &segment_path(segment)).unwrap();
    let block_bytes = noxu_log::segment::side_file::BLOCK_BYTES as usize;
    let block = offset as usize / block_bytes;
    let block_end = bytes.len().min((block + 1) * block_bytes);
    (block as u32, bytes[block * block_bytes..block_end].to_vec())
}

/// Exactly these entries of a sound log, as they would come over the wire.
fn run_of(log: &Log, first: Vlsn, last: Vlsn) -> EntryRun {
    let mut bytes = Vec::new();
    let mut next = first;
    let (mut previous, mut term) = (Fingerprint::ZERO, Term::ZERO);
    if let Some((before, _)) = log.header(first.prev()).unwrap() {
        (previous, term) = (before.fingerprint, before.term);
    }
    let after = ChainState { vlsn: first.prev(), term, fingerprint: previous };
    while next <= last {
        let (header, _) = log.header(next).unwrap().unwrap();
        let run = log.read(next, header.entry_bytes()).unwrap().unwrap();
        assert_eq!(run.last, next, "one entry at a time");
        for part in &run.parts {
            bytes.extend_from_slice(part);
        }
        next = next.next();
    }
    EntryRun::verify(bytes.into(), after, u32::MAX).unwrap()
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
fn a_segment_cut_short_below_the_mark_misses_entries() {
    let env = closed();
    let path = dir().join("log").join(segments(&env).last().unwrap());
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    for len in (0..len).step_by(97) {
        let after = env.clone_image(Survivors::None);
        let file = after.open(&path, OpenMode::ReadWrite).unwrap();
        file.set_len(len).unwrap();
        let read = open_and_read(&after).map(|read| read.len());
        assert!(matches!(read, Err(LogError::Faulty { .. })), "{len} bytes left: {read:?}");
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
    let LogError::Faulty { segment: 2, offset, .. } = error else { panic!("{error}") };
    assert_eq!(offset, last_entry);
}

/// Beyond the mark a flipped byte is a torn write: the log ends before it, whatever follows.
#[test]
fn every_flipped_byte_beyond_the_mark_is_cut_with_what_follows() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 2, 300);
    log.close().unwrap();
    drop(log);
    let log = open(&env);
    fill(&log, 3, 6, 300);
    log.write_now().unwrap();
    let path = segment_path(1);
    let (_, third) = log.header(vlsn_of(3)).unwrap().unwrap();
    let written = env.clone_image(Survivors::All);
    for offset in u64::from(third.offset())..u64::from(third.offset()) + 4 * 332 {
        let after = written.clone_image(Survivors::None);
        after.corrupt(&path, offset, 0x80).unwrap();
        let (log, report) = Log::open(Arc::new(after), dir(), quiet()).unwrap();
        let last = 2 + (offset as i64 - i64::from(third.offset())) / 332;
        assert_eq!(log.positions().last, vlsn_of(last), "byte {offset}");
        assert!(report.faulty.is_empty() && report.torn_bytes > 0, "byte {offset}");
        let kept: Vec<_> = (1..=last as u64).map(|tag| body(tag, 300)).collect();
        assert_eq!(bodies(&log), kept, "byte {offset}");
    }
}
