//! `noxu log`: the tool on logs of running and stopped nodes, on copies, on damaged files.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use noxu_log::env::RealEnv;
use noxu_log::{
    Cut, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, LostNote, NewEntry, lost_path,
};
use noxu_util::{GroupId, Term, Vlsn};

fn noxu_log(arguments: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noxu"))
        .arg("log")
        .args(arguments)
        .arg(path)
        .output()
        .expect("noxu runs")
}

fn stdout(arguments: &[&str], path: &Path) -> String {
    let output = noxu_log(arguments, path);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "noxu log {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the tool on something that is wrong; the one line that it says about it.
fn complaint(arguments: &[&str], path: &Path) -> String {
    let output = noxu_log(arguments, path);
    assert!(!output.status.success(), "noxu log {arguments:?} succeeds");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// A term entry and 40 commits in term 3, in segments of 4 KiB; 10 of them saved as lost.
fn sample(dir: &Path) -> Log {
    let (log, _) = Log::open(Arc::new(RealEnv::new()), dir, LogConfig::default()).unwrap();
    log.found(GroupIdentity {
        id: GroupId::random(),
        name: "orders".parse().unwrap(),
        segment_bytes: 4096,
    })
    .unwrap();
    let append = |kind, flags, body: &[u8]| {
        log.append(Term::new(3), &[NewEntry::new(kind, flags, body)]).unwrap();
    };
    let clock = 1_700_000_000_000u64.to_le_bytes();
    append(EntryKind::TERM, EntryFlags::SYNC, &[&clock[..], b"n1"].concat());
    for i in 0..40 {
        let body = [&clock[..], format!("key-{i} ").as_bytes(), &[b'.'; 300]].concat();
        append(EntryKind(16), EntryFlags::COMMIT, &body);
    }
    let note = LostNote { master: "n2".into(), master_term: Term::new(4), ..LostNote::default() };
    log.truncate_after(Vlsn::new(31), Cut::Save { name: "cut".into(), note }).unwrap();
    log.sync_now().unwrap();
    log.seal_through(Vlsn::new(20)).unwrap();
    log
}

#[test]
fn dump_prints_the_entries_that_are_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let all = stdout(&["dump"], temp.path());
    assert_eq!(all.lines().count(), 31);
    let first = all.lines().next().unwrap();
    for part in ["1:64", "term 3", "sync", "2023-11-14T22:13:20.000Z", "\"n1\""] {
        assert!(first.contains(part), "{part} in {first}");
    }
    let fingerprint = log.header(Vlsn::new(31)).unwrap().unwrap().0.fingerprint.to_string();
    assert!(all.lines().last().unwrap().contains(&fingerprint));
    let some = stdout(&["dump", "--from", "5", "--to", "9", "--limit", "3"], temp.path());
    assert_eq!(some.lines().count(), 3);
    assert!(some.lines().next().unwrap().contains("key-3 "), "{some}");
    assert_eq!(stdout(&["dump", "--kind", "term"], temp.path()).lines().count(), 1);
    assert_eq!(stdout(&["dump", "--commits", "--term", "3"], temp.path()).lines().count(), 30);
    let json = stdout(&["dump", "--json", "--to", "1"], temp.path());
    assert!(json.starts_with("{\"vlsn\":1,\"segment\":1,\"offset\":64,\"term\":3,"), "{json}");
    let refused = noxu_log(&["dump", "--kind", "no-kind"], temp.path());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("expected term, group, noop"));
}

#[test]
fn verify_passes_beside_the_running_log_and_on_a_copy_of_its_segments() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let said = stdout(&["verify"], temp.path());
    assert!(said.contains("31 entries (1 to 31"), "{said}");
    assert!(said.contains(&log.positions().last_fingerprint.to_string()), "{said}");
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(temp.path().join("log")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert!(stdout(&["verify"], copy.path()).contains("31 entries (1 to 31"));
    stdout(&["verify"], &copy.path().join("0000000002.nlog"));
}

#[test]
fn verify_names_the_first_damaged_place_and_fails() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let (_, lsn) = log.header(Vlsn::new(14)).unwrap().unwrap();
    log.close().unwrap();
    let path = temp.path().join(format!("log/{:010}.nlog", lsn.segment()));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[lsn.offset() as usize + 100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let place = format!("segment {} is damaged at offset {}", lsn.segment(), lsn.offset());
    for command in ["verify", "dump"] {
        let error = complaint(&[command], temp.path());
        assert!(error.contains(&place) && error.contains("entry 14 expected"), "{error}");
    }
    assert_eq!(noxu_log(&["dump"], temp.path()).stdout.split(|b| *b == b'\n').count(), 14);
}

#[test]
fn lost_entries_are_listed_and_dumped() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let stat = stdout(&["stat"], temp.path());
    for part in ["group           orders", "sealed", "cut: 10 entries rolled back (32 to 41"] {
        assert!(stat.contains(part), "{part} in {stat}");
    }
    let path = lost_path(log.dir(), "cut");
    let dump = stdout(&["dump"], &path);
    assert_eq!(dump.lines().count(), 10);
    assert!(dump.contains("key-39 "), "{dump}");
    assert!(stdout(&["verify"], &path).contains("master n2 of term 4"));
    let json = stdout(&["stat", "--json"], temp.path());
    assert!(json.contains("\"lost\":[{\"name\":\"cut\",\"first\":32,\"last\":41"), "{json}");
}

#[test]
fn what_is_no_log_is_refused_in_one_line() {
    let temp = tempfile::tempdir().unwrap();
    let missing = temp.path().join("missing");
    for command in ["dump", "verify", "stat"] {
        assert!(complaint(&[command], &missing).contains("missing"));
        assert!(complaint(&[command], temp.path()).contains("holds no log"));
    }
}
