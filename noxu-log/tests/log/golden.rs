//! Golden files: the disk format, byte for byte. A change here breaks every log that exists.
//!
//! The files in `golden/` are made by this module from fixed input. When the format changes on
//! purpose, with a new format version, make them again and look at the difference:
//!
//! ```text
//! NOXU_GOLDEN=write cargo test -p noxu-log --test log golden
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, MemoryEnv, read_whole, write_whole};
use noxu_log::{Cut, EntryFlags, EntryKind, GroupIdentity, Log, LostEntries, LostNote, NewEntry};
use noxu_util::{Fingerprint, GroupId, Incarnation, Term};

use crate::rig::{bodies, body, dir, quiet, vlsn_of};

/// The files that are compared, as they lie in a node directory.
const FILES: [&str; 6] = [
    "control",
    "tail-mark",
    "log/0000000001.nlog",
    "log/0000000001.nside",
    "log/0000000002.nlog",
    "lost/cut.nlost",
];

/// Bodies of the entries that the golden log ends up with.
fn expected() -> Vec<Vec<u8>> {
    let mut expected =
        vec![b"\x00\x10\x5e\x5f\x8b\x01\0\0term 1".to_vec(), b"group".to_vec(), Vec::new()];
    expected.extend((4..=6).map(|tag| body(tag, 10 * tag as usize)));
    expected.push(body(7, 3500));
    expected.push(body(8, 700));
    expected.push(b"\x00\x10\x5e\x60\x8b\x01\0\0term 2".to_vec());
    expected
}

/// Makes the golden log.
fn make(env: &MemoryEnv) {
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), quiet()).unwrap();
    log.found(GroupIdentity {
        id: GroupId::from_bytes(*b"golden group id."),
        name: "golden".parse().unwrap(),
        segment_bytes: 4096,
    })
    .unwrap();
    let expected = expected();
    let append = |term, entries: &[(EntryKind, EntryFlags, &[u8])]| {
        let entries: Vec<_> =
            entries.iter().map(|(kind, flags, body)| NewEntry::new(*kind, *flags, body)).collect();
        log.append(Term::new(term), &entries).unwrap();
    };
    let kind = EntryKind(16);
    append(1, &[(EntryKind::TERM, EntryFlags::SYNC, &expected[0])]);
    append(1, &[(EntryKind::GROUP, EntryFlags::SYNC, &expected[1])]);
    append(1, &[(EntryKind::NOOP, EntryFlags::NONE, &expected[2])]);
    append(
        1,
        &[
            (kind, EntryFlags::NONE, &expected[3]),
            (EntryKind(17), EntryFlags::NONE, &expected[4]),
            (kind, EntryFlags::COMMIT, &expected[5]),
        ],
    );
    append(1, &[(EntryKind(255), EntryFlags::COMMIT, &expected[6])]);
    append(1, &[(kind, EntryFlags::COMMIT, &expected[7])]);
    log.sync_now().unwrap();
    append(1, &[(kind, EntryFlags::COMMIT, b"lost"), (kind, EntryFlags::COMMIT, b"lost too")]);
    log.sync_now().unwrap();
    let note = LostNote {
        time_ms: 1_700_000_000_000,
        master: "n2".into(),
        master_term: Term::new(2),
        master_vlsn: vlsn_of(9),
        master_fingerprint: Fingerprint::from_u64(0x0123_4567_89ab_cdef),
    };
    log.truncate_after(vlsn_of(8), Cut::Save { name: "cut".into(), note }).unwrap();
    append(2, &[(EntryKind::TERM, EntryFlags::SYNC, &expected[8])]);
    log.sync_now().unwrap();
    log.seal_through(vlsn_of(9)).unwrap();
    let control = log.control();
    control
        .update(|control| {
            control.incarnation = Incarnation::from_u64(0x1111_2222_3333_4444);
            control.node = Some("n1".parse().unwrap());
            control.epoch = 1;
            control.commit_floor = vlsn_of(8);
            control.group_config = b"configuration".to_vec().into();
        })
        .unwrap();
    control
        .update(|control| {
            control.term = Term::new(2);
            control.vote = Some("n2".parse().unwrap());
        })
        .unwrap();
    log.close().unwrap();
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log/golden")
}

fn golden(file: &str) -> PathBuf {
    golden_dir().join(Path::new(file).file_name().unwrap())
}

#[test]
fn the_disk_format_is_the_golden_one_byte_for_byte() {
    let env = MemoryEnv::new();
    make(&env);
    for file in FILES {
        let made = read_whole(&env, &dir().join(file)).unwrap();
        let path = golden(file);
        if std::env::var_os("NOXU_GOLDEN").is_some_and(|value| value == "write") {
            std::fs::create_dir_all(golden_dir()).unwrap();
            std::fs::write(&path, &made).unwrap();
        }
        let kept = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let differs = made.iter().zip(&kept).position(|(made, kept)| made != kept);
        assert_eq!(differs, None, "{file} differs at this byte");
        assert_eq!(made.len(), kept.len(), "length of {file}");
    }
}

#[test]
fn the_golden_files_are_read_as_what_they_hold() {
    let env = MemoryEnv::new();
    for file in FILES {
        let path = dir().join(file);
        env.create_dir_all(path.parent().unwrap()).unwrap();
        write_whole(&env, &path, &std::fs::read(golden(file)).unwrap()).unwrap();
    }
    let (log, report) = Log::open(Arc::new(env.clone()), dir(), quiet()).unwrap();
    assert!(report.clean_shutdown);
    assert_eq!((report.scanned_segments, report.torn_bytes), (1, 0));
    assert_eq!(bodies(&log), expected());
    assert_eq!(log.positions().last_fingerprint.as_u64(), LAST_FINGERPRINT);
    assert_eq!(log.sealed_segments()[0].digest.to_hex().as_str(), FIRST_DIGEST);
    let state = log.control().state();
    assert_eq!(state.vote, Some("n2".parse().unwrap()));
    assert_eq!(state.incarnation, Incarnation::from_u64(0x1111_2222_3333_4444));
    let lost = LostEntries::read(&env, dir(), "cut").unwrap();
    let lost: Vec<_> = lost.entries().map(|entry| entry.body.to_vec()).collect();
    assert_eq!(lost, [b"lost".to_vec(), b"lost too".to_vec()]);
}

/// Fingerprint and digest as text too, so that golden files made anew by mistake do not hide a
/// change of the hash functions.
const LAST_FINGERPRINT: u64 = 5_729_595_660_900_416_812;
const FIRST_DIGEST: &str = "602dc83323c874bc3b9007633e213bc37f100e4756cb2497e63ff329ef3fbf2e";
