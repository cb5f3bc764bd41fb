//! `noxu admin`: orders to nodes that run, and to the directories of those that do not.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::programs::{NodeProcess, PATIENCE, fails, noxu};

/// Values that are 64 KiB long.
const VALUES: usize = 80;

/// Fills the logs of `nodes`, the first of which is the master, and has them finish what they may.
fn load(nodes: &[&NodeProcess]) {
    let master = nodes[0];
    let mut client = master.client();
    let value = vec![b'v'; 64 << 10];
    for number in 0..VALUES {
        client.queue(&[b"SET", format!("key{number:04}").as_bytes(), &value]);
    }
    client.flush().unwrap();
    for _ in 0..VALUES {
        client.receive().unwrap();
    }
    let last = master.info("last_vlsn").unwrap();
    for node in nodes {
        node.wait_applied(&last);
        node.client().call(&[b"NOXU", b"CHECKPOINT"]).unwrap();
    }
}

#[track_caller]
fn assert_level(node: &NodeProcess, master: &NodeProcess) {
    master.client().call(&[b"SET", b"afterwards", b"1"]).unwrap();
    node.wait_applied(&master.info("last_vlsn").unwrap());
    assert_eq!(node.client().call_integer(&[b"DBSIZE"]).unwrap(), VALUES as i64 + 1);
    node.wait_for("last_fingerprint", |ours| ours == master.info("last_fingerprint").unwrap());
}

#[test]
fn a_replica_that_is_told_to_restores_itself_and_keeps_its_vote_and_the_master_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    load(&[&n1, &n2, &n3]);
    n2.wait_for("sealed_segments", |sealed| sealed != "0");
    let incarnation = n3.info("incarnation");
    let restored = noxu(&["admin", "restore", &n3.client_addr]);
    let said = String::from_utf8_lossy(&restored.stdout);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    for part in ["the restore is begun", "follows again", "from n2: ", "from n1: "] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let fetched: i64 = n3.info("restore_bytes_fetched").unwrap().parse().unwrap();
    assert!(fetched > 4 << 20, "{fetched} bytes: its own log served it");
    assert_eq!(n3.info("incarnation"), incarnation);
    assert_eq!(n3.info("voter").as_deref(), Some("yes"));
    assert_level(&n3, &n1);
    let who = ["n1 is the master of term", "stop it"];
    fails(&["admin", "restore", &n1.client_addr], 1, &who);
    assert_eq!(n1.info("restore_pending").as_deref(), Some("no"));
}

#[test]
fn a_restore_that_was_ordered_goes_on_after_the_node_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    load(&[&n1, &n2, &n3]);
    n3.kill();
    let mut slow = vec!["--peer", &n1.peer_addr, "--priority", "0", "--restore-rate", "512KiB"];
    slow.extend(["--restore-method", "ranges"]);
    let n3 = NodeProcess::start("n3", &dir.path().join("n3"), &slow);
    n3.wait_for("noxu_role", |role| role == "replica");
    let ordered = noxu(&["admin", "restore", "--no-wait", &n3.client_addr]);
    assert!(ordered.status.success(), "{}", String::from_utf8_lossy(&ordered.stderr));
    n3.wait_for("noxu_role", |role| role == "restoring");
    assert_eq!(n3.info("restore_pending").as_deref(), Some("yes"));
    n3.wait_for("restore_method", |method| method == "ranges");
    let again = noxu(&["admin", "restore", "--no-wait", &n3.client_addr]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("under way"));
    n3.kill();
    let n3 = NodeProcess::join("n3", &dir.path().join("n3"), &n1);
    n3.wait_for("restored_last_vlsn", |_| true);
    assert_level(&n3, &n1);
    n3.wait_for("restore_pending", |pending| pending == "no");
}

/// Flips a bit of a node's first log file, which is finished.
fn rot(dir: &Path) {
    let file = dir.join("log/0000000001.nlog");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5000] ^= 0x10;
    std::fs::write(&file, &bytes).unwrap();
}

#[test]
fn a_node_that_is_told_to_reads_its_log_files_and_takes_back_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    load(&[&n1, &n2, &n3]);
    for node in [&n1, &n2, &n3] {
        node.wait_for("sealed_segments", |sealed| sealed != "0");
    }
    let whole = noxu(&["admin", "scrub", &n3.client_addr]);
    let said = String::from_utf8_lossy(&whole.stdout);
    assert!(whole.status.success(), "{whole:?}");
    assert!(said.contains("nothing damaged"), "{said}");
    rot(&dir.path().join("n3"));
    let mended = noxu(&["admin", "scrub", "--rate", "50MiB", &n3.client_addr]);
    let said = String::from_utf8_lossy(&mended.stdout);
    assert!(mended.status.success(), "{mended:?}");
    assert!(said.contains("damaged blocks: 1; back from other nodes: blocks 1"), "{said}");
    assert_level(&n3, &n1);
    fails(&["admin", "scrub", "--rate", "0", &n3.client_addr], 2, &["--rate 0"]);
}

#[test]
fn a_scrub_whose_damage_nobody_can_mend_fails_and_one_that_is_interrupted_stops_reading() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = NodeProcess::alone("n1", &dir.path().join("n1"));
    load(&[&n1]);
    n1.wait_for("sealed_segments", |sealed| sealed != "0");
    rot(&dir.path().join("n1"));
    let scrub = ["admin", "scrub", &n1.client_addr];
    let left = noxu(&scrub);
    assert_eq!(left.status.code(), Some(1), "{left:?}");
    let said = String::from_utf8_lossy(&left.stdout);
    assert!(said.contains("block 0 of segment 1"), "{said}");
    let said = String::from_utf8_lossy(&left.stderr);
    assert!(said.contains("damaged in 1 places still"), "{said}");

    let mut client = n1.client();
    client.queue(&[b"NOXU", b"SCRUB", b"100000"]);
    client.flush().unwrap();
    n1.wait_for("scrub_pass", |pass| pass.starts_with("bytes="));
    drop(client);
    let started = Instant::now();
    while n1.info("scrub_pass").is_some() {
        assert!(started.elapsed() < PATIENCE, "it reads on");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// What was set aside below `dir`.
fn set_aside(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let aside = names.filter(|path| path.to_string_lossy().contains("/set-aside"));
    aside.map(|path| path.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_stopped_node_that_is_set_aside_starts_anew_without_a_vote_and_its_log_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    load(&[&n1, &n2, &n3]);
    let old = n3.info("incarnation").unwrap();
    let n3_dir = dir.path().join("n3");
    let path = n3_dir.to_str().unwrap();
    fails(&["admin", "force-restore", "--yes-discard", path], 1, &["LOCK"]);
    assert!(set_aside(&n3_dir).is_empty());
    n3.kill();
    fails(&["admin", "force-restore", path], 2, &["--yes-discard"]);
    assert!(set_aside(&n3_dir).is_empty());

    // As a crash in the middle leaves it: the control file is gone already.
    let begun = n3_dir.join("set-aside.new");
    std::fs::create_dir(&begun).unwrap();
    std::fs::rename(n3_dir.join("control"), begun.join("control")).unwrap();
    fails(&["node", "--name", "n3", "--dir", path], 1, &["noxu admin force-restore"]);
    let done = noxu(&["admin", "force-restore", path]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let aside = set_aside(&n3_dir);
    assert_eq!(aside.len(), 1, "{aside:?}");
    let stat = noxu(&["log", "stat", &aside[0]]);
    assert!(String::from_utf8_lossy(&stat.stdout).contains(&old), "{stat:?}");
    fails(&["admin", "force-restore", "--yes-discard", path], 2, &["holds no node"]);

    let n3 = NodeProcess::join("n3", &n3_dir, &n1);
    assert_level(&n3, &n1);
    assert_ne!(n3.info("incarnation").unwrap(), old);
    assert_eq!(n3.info("voter").as_deref(), Some("no"));
    assert_eq!(set_aside(&n3_dir), aside);
}
