//! `noxu log`: the tool on logs of running and stopped nodes, on copies, on damaged files.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use noxu_log::env::RealEnv;
use noxu_log::{
    Cut, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, LostNote, NewEntry, lost_path,
};
use noxu_util::{GroupId, Term, Vlsn};
use serde_json::{Value, json};

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
    assert_eq!(stdout(&["dump", "--kind", "writes"], temp.path()).lines().count(), 30);
    assert_eq!(stdout(&["dump", "--kind", "16", "--kind", "0"], temp.path()), all);
    let hex = stdout(&["dump", "--hex", "--body", "3", "--from", "2", "--to", "2"], temp.path());
    assert!(hex.contains("  6b6579.."), "{hex}");
    assert_eq!(stdout(&["dump", "--kind", "term"], temp.path()).lines().count(), 1);
    assert_eq!(stdout(&["dump", "--commits", "--term", "3"], temp.path()).lines().count(), 30);
    let json = stdout(&["dump", "--json", "--to", "2", "--body", "10"], temp.path());
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = json!({
        "vlsn": 1, "segment": 1, "offset": 64, "term": 3, "kind": 0, "kind_name": "term",
        "sync": true, "commit": false, "body_bytes": 10, "crc": lines[0]["crc"],
        "fingerprint": lines[0]["fingerprint"], "time_ms": 1_700_000_000_000_u64,
        "body": "0068e5cf8b0100006e31",
    });
    assert_eq!(lines[0], expected);
    assert_eq!(lines[1]["kind_name"], "writes");
    let refused = noxu_log(&["dump", "--kind", "no-kind"], temp.path());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("expected term, group, noop"));
}

/// Transactions of three entries, whose COMMITs are 60 seconds apart from 2023-11-14T22:13:20Z on;
/// a Group entry before the third, and one transaction that is left open.
fn timed(dir: &Path) -> Log {
    let (log, _) = Log::open(Arc::new(RealEnv::new()), dir, LogConfig::default()).unwrap();
    let group = GroupIdentity {
        id: GroupId::random(),
        name: "orders".parse().unwrap(),
        segment_bytes: 4096,
    };
    log.found(group).unwrap();
    let append = |kind, flags, body: &[u8]| {
        log.append(Term::new(1), &[NewEntry::new(kind, flags, body)]).unwrap();
    };
    for minute in 0..5_u64 {
        if minute == 2 {
            append(EntryKind::GROUP, EntryFlags::SYNC, b"members");
        }
        append(EntryKind(16), EntryFlags::NONE, b"first");
        append(EntryKind(16), EntryFlags::NONE, b"second");
        let clock = 1_700_000_000_000 + minute * 60_000;
        append(EntryKind(16), EntryFlags::COMMIT, &[&clock.to_le_bytes()[..], b"third"].concat());
    }
    append(EntryKind(16), EntryFlags::NONE, b"open");
    log.sync_now().unwrap();
    log
}

#[test]
fn times_select_whole_transactions() {
    let temp = tempfile::tempdir().unwrap();
    let _log = timed(temp.path());
    let vlsns = |arguments: &[&str]| -> Vec<i64> {
        let json = stdout(&[&["dump", "--json"], arguments].concat(), temp.path());
        let vlsn = |line: &str| serde_json::from_str::<Value>(line).unwrap()["vlsn"].as_i64();
        json.lines().map(|line| vlsn(line).unwrap()).collect()
    };
    let range = |first: i64, last: i64| (first..=last).collect::<Vec<_>>();
    assert_eq!(vlsns(&["--since", "2023-11-14T22:14:20Z"]), range(4, 17));
    assert_eq!(
        vlsns(&["--since", "2023-11-14T22:14:20.001Z"]),
        range(7, 17),
        "the group entry too"
    );
    assert_eq!(vlsns(&["--until", "2023-11-14 22:15:20"]), range(1, 6));
    let window = ["--since", "2023-11-14T23:14:00+01:00", "--until", "2023-11-14T22:15:21Z"];
    assert_eq!(vlsns(&window), range(4, 10));
    assert_eq!(vlsns(&[&window[..], &["--limit", "2"]].concat()), [4, 5]);
    assert_eq!(vlsns(&[&window[..], &["--kind", "group"]].concat()), [7]);
    // The time of an entry is that of its COMMIT, also if that is not printed itself.
    assert_eq!(vlsns(&["--since", "2023-11-14T22:14:20Z", "--to", "5"]), [4, 5]);
    assert_eq!(
        vlsns(&["--since", "2023-11-14T22:17:00Z"]),
        range(14, 17),
        "what is open comes last"
    );
    assert_eq!(vlsns(&["--since", "-10m"]), range(1, 0));
    assert_eq!(vlsns(&["--until", "-10m"]), range(1, 17));
    let refused = noxu_log(&["dump", "--since", "yesterday"], temp.path());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("-10m"));
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
    assert_eq!(noxu_log(&["dump"], temp.path()).stdout.split(|b| *b == b'\n').count(), 31);
}

#[test]
fn verify_lists_all_damage_and_dump_goes_on_behind_it() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let places = [3, 14, 30].map(|vlsn| log.header(Vlsn::new(vlsn)).unwrap().unwrap().1);
    log.close().unwrap();
    for lsn in places {
        let path = temp.path().join(format!("log/{:010}.nlog", lsn.segment()));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[lsn.offset() as usize + 100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let output = noxu_log(&["verify"], temp.path());
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("damage ")).count(), 3, "{text}");
    for (lsn, vlsn) in places.iter().zip([3, 14, 30]) {
        let place = format!("segment {} at offset {}: entry {vlsn} ", lsn.segment(), lsn.offset());
        assert!(text.contains(&place), "{place} in {text}");
    }
    assert!(complaint(&["verify"], temp.path()).contains("and 2 more places"));
    let json = noxu_log(&["verify", "--json"], temp.path()).stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    let damage = json["damage"].as_array().unwrap();
    assert_eq!(damage.len(), 3);
    assert_eq!((&damage[1]["first_missing"], &damage[1]["last_missing"]), (&json!(14), &json!(14)));
    assert_eq!((&json["entries"], &json["end"]), (&json!(28), &json!("clean")));
    assert_eq!(noxu_log(&["dump"], temp.path()).stdout.split(|b| *b == b'\n').count(), 29);
}

#[test]
fn a_reader_that_closes_the_pipe_ends_a_dump_quietly() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    for vlsn in 0..3000 {
        let body = format!("more than a pipe holds {vlsn}");
        log.append(
            Term::new(3),
            &[NewEntry::new(EntryKind(16), EntryFlags::NONE, body.as_bytes())],
        )
        .unwrap();
    }
    log.sync_now().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_noxu"))
        .args(["log", "dump"])
        .arg(temp.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_node_that_writes_rolls_back_and_drops_is_verified_beside_it() {
    let temp = tempfile::tempdir().unwrap();
    let log = sample(temp.path());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &[7; 200]);
                log.append(Term::new(3), &[entry; 15]).unwrap();
                log.sync_now().unwrap();
                let last = log.positions().last.sequence();
                if round % 3 == 0 {
                    log.truncate_after(Vlsn::new(last - 7), Cut::Discard).unwrap();
                    log.seal_through(Vlsn::new(last - 60)).unwrap();
                }
                if round % 7 == 0 {
                    log.drop_front(Vlsn::new(last - 100), |_| Vec::new()).unwrap();
                }
            }
        });
        for _ in 0..15 {
            let json: Value =
                serde_json::from_str(&stdout(&["verify", "--json"], temp.path())).unwrap();
            assert_eq!(json["damage"], json!([]));
            stdout(&["stat"], temp.path());
            stdout(&["dump", "--json"], temp.path());
        }
        stop.store(true, Ordering::Relaxed);
    });
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
    for part in [
        "index           ",
        "retention       0 sealed segments",
        "valid",
        "head            entry 31",
    ] {
        assert!(stat.contains(part), "{part} in {stat}");
    }
    let json: Value = serde_json::from_str(&stdout(&["stat", "--json"], temp.path())).unwrap();
    assert_eq!(json["lost"][0]["name"], "cut");
    assert_eq!((&json["lost"][0]["first"], &json["lost"][0]["last"]), (&json!(32), &json!(41)));
    assert_eq!((&json["group"], &json["entries"]), (&json!("orders"), &json!(31)));
    let segments = json["segments"].as_array().unwrap();
    assert_eq!((&segments[0]["side"], &segments[0]["sealed"]), (&json!("valid"), &json!(true)));
    assert_eq!(segments[0]["terms"], json!([{"term": 3, "first": 1}]));
    assert_eq!(segments.last().unwrap()["sealed"], json!(false));
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
