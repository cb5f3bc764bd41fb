//! Bad input: each gets one clear line that names what was found and expected, an exit code that is
//! not zero, and harms nothing.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::programs::{FREE, NodeProcess, fails, noxu};

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Arguments of a node that founds a group of its own.
fn founder<'a>(dir: &'a Path, listen: &'a str, client_listen: &'a str) -> Vec<&'a str> {
    let create = ["node", "--name", "n1", "--create-group", "g"];
    let place = ["--dir", path(dir), "--listen", listen, "--client-listen", client_listen];
    [&create[..], &place[..]].concat()
}

/// Arguments of a node that knows another.
fn replica<'a>(name: &'a str, dir: &'a Path, master: &'a NodeProcess) -> Vec<&'a str> {
    let place = ["--dir", path(dir), "--listen", FREE, "--client-listen", FREE];
    [&["node", "--name", name, "--peer", &master.peer_addr], &place[..]].concat()
}

fn segment(dir: &Path) -> PathBuf {
    dir.join("log/0000000001.nlog")
}

#[test]
fn a_busy_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind(FREE).unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    fails(&founder(dir.path(), &addr, FREE), 1, &[&addr, "in use"]);
    fails(&founder(dir.path(), FREE, &addr), 1, &["--client-listen", &addr, "in use"]);
    // The directory is unharmed: the same command works as soon as the port is free.
    drop(busy);
    NodeProcess::alone("n1", dir.path()).client().call(&[b"SET", b"k", b"v"]).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let below = file.join("n1");
    fails(&founder(&below, FREE, FREE), 1, &[path(&below), "Not a directory"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "in the way");
}

#[test]
fn a_directory_in_use_by_another_process_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = NodeProcess::alone("n1", dir.path());
    fails(&founder(dir.path(), FREE, FREE), 1, &[path(dir.path()), "LOCK"]);
    first.client().call(&[b"SET", b"k", b"v"]).unwrap();
}

#[test]
fn a_directory_of_another_node_or_group_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    NodeProcess::alone("n1", dir.path()).terminate();
    let place = ["--dir", path(dir.path()), "--listen", FREE, "--client-listen", FREE];
    let other_node = [&["node", "--name", "n2"], &place[..]].concat();
    fails(&other_node, 1, &["n1", "n2", path(dir.path())]);
    let other_group = [&["node", "--name", "n1", "--group", "other"], &place[..]].concat();
    fails(&other_group, 1, &["group g", "other"]);
}

#[test]
fn quorums_that_do_not_meet_are_refused_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("n1");
    let arguments = [&founder(&fresh, FREE, FREE)[..], &["--members", "n1,n2,n3"]].concat();
    for (q_rep, q_elect) in [("1", "1"), ("1", "2"), ("2", "1"), ("4", "2"), ("2", "4")] {
        let quorums = [&arguments[..], &["--q-rep", q_rep, "--q-elect", q_elect]].concat();
        let found = format!("q_rep {q_rep} and q_elect {q_elect} of 3 members");
        fails(&quorums, 1, &[&found, "expected"]);
    }
    let others = [&founder(&fresh, FREE, FREE)[..], &["--members", "n2,n3"]].concat();
    fails(&others, 2, &["--members n2,n3", "n1"]);
    assert!(!fresh.exists(), "a group that cannot be founded has left a directory");
}

#[test]
fn a_replica_of_a_foreign_group_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let [master, member] = NodeProcess::pair(dir.path());
    // Founded by other nodes of the same names: it is another one.
    let foreign = dir.path().join("foreign");
    for node in NodeProcess::pair(&foreign) {
        node.terminate();
    }
    // A voter never gives up, for its own group needs it; it says what it is told.
    let peer = ["--peer", &master.peer_addr];
    let voter = NodeProcess::start("n2", &foreign.join("n2"), &peer);
    voter.wait_for("last_error", |said| said.contains("group g") && said.contains("identity"));
    assert_eq!(voter.terminate(), Some(0));
    // One that belongs to no group yet, but to another it may.
    member.kill();
    let fresh = dir.path().join("fresh");
    let named = [&replica("n2", &fresh, &master)[..], &["--group", "other"]].concat();
    fails(&named, 1, &["group g", "group other"]);
}

#[test]
fn a_second_node_of_the_same_name_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let [master, first] = NodeProcess::pair(dir.path());
    master.wait_for("connected_slaves", |count| count == "1");
    fails(&replica("n2", &dir.path().join("b"), &master), 1, &["voter n2", "has no vote"]);
    fails(&replica("n1", &dir.path().join("c"), &master), 1, &["another node named n1"]);
    master.client().call(&[b"SET", b"k", b"v"]).unwrap();
    assert_eq!(first.info("role").unwrap(), "slave");
    first.wait_applied(&master.info("last_vlsn").unwrap());
}

#[test]
fn a_stranger_to_the_group_is_told_its_members() {
    let dir = tempfile::tempdir().unwrap();
    let [master, _n2] = NodeProcess::pair(dir.path());
    let refusal = ["no member named n9", "n1, n2"];
    fails(&replica("n9", &dir.path().join("n9"), &master), 1, &refusal);
}

#[test]
fn a_flipped_byte_in_the_log_is_found_and_nothing_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let node = NodeProcess::alone("n1", dir.path());
    let mut client = node.client();
    for i in 0..100 {
        client.call(&[b"SET", format!("key{i}").as_bytes(), &[b'v'; 100]]).unwrap();
    }
    assert_eq!(node.terminate(), Some(0));
    let file = segment(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 0x10;
    fs::write(&file, &bytes).unwrap();

    let arguments = ["node", "--name", "n1", "--dir", path(dir.path())];
    let place = ["--listen", FREE, "--client-listen", FREE];
    fails(&[&arguments[..], &place[..]].concat(), 1, &["segment 1", "offset", "expected", "found"]);
    assert_eq!(fs::read(&file).unwrap(), bytes, "opening a damaged log changed it");
    let output = noxu(&["log", "verify", path(dir.path())]);
    assert!(!output.status.success(), "noxu log verify finds nothing wrong");
}

/// A sealed segment is not read when a node starts, so the scrubber finds what rotted in it, and the
/// node's status says so.
#[test]
fn a_byte_that_rotted_in_a_sealed_segment_shows_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let founding = ["--create-group", "g", "--segment-size", "64KiB"];
    let node = NodeProcess::start("n1", dir.path(), &founding);
    node.wait_master();
    let mut client = node.client();
    for i in 0..100 {
        client.call(&[b"SET", format!("key{i}").as_bytes(), &[b'v'; 2000]]).unwrap();
    }
    node.wait_for("sealed_segments", |count| count != "0");
    assert_eq!(node.info("damaged_blocks").unwrap(), "0");
    // What is in the state is not read from the log again.
    client.call(&[b"NOXU", b"CHECKPOINT"]).unwrap();
    assert_eq!(node.terminate(), Some(0));
    let file = segment(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 0x10;
    fs::write(&file, &bytes).unwrap();

    let node = NodeProcess::start("n1", dir.path(), &["--scrub-interval", "1s"]);
    node.wait_for("damaged_blocks", |count| count == "1");
    let block = node.info("damaged0").unwrap();
    assert!(block.starts_with("segment=1,offset=0,"), "{block}");
    node.wait_for("unrepaired0", |why| why.contains("nobody could be reached; asked"));
    assert_eq!(node.info("damage_found").unwrap(), "1");
    assert_eq!(node.info("repaired_blocks").unwrap(), "0");
    assert_eq!(node.info("faulty_entries").unwrap(), "0");
}

#[test]
fn garbage_frames_and_frames_over_the_cap_harm_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let [master, replica] = NodeProcess::pair(dir.path());
    for bytes in [&[0xff; 64][..], &[0, 0, 0, 0], b"GET / HTTP/1.1\r\n\r\n", &[16, 0, 0, 0, 1, 2]] {
        for node in [&master, &replica] {
            let mut stream = TcpStream::connect(&node.peer_addr).unwrap();
            let _ = stream.write_all(bytes);
        }
    }
    master.client().call(&[b"SET", b"k", b"v"]).unwrap();
    replica.wait_applied(&master.info("last_vlsn").unwrap());
}

#[test]
fn missing_paths_and_addresses_are_named() {
    fails(&["demo", "--input", "/nowhere/at/all"], 1, &["--input", "/nowhere/at/all", "expected"]);
    fails(&["log", "stat", "/nowhere/at/all"], 1, &["/nowhere/at/all"]);
    fails(&["node", "--config", "/nowhere.toml"], 1, &["/nowhere.toml"]);
    let free = TcpListener::bind(FREE).unwrap().local_addr().unwrap().to_string();
    fails(&["get", "k", "--addr", &free], 1, &["no connection to", &free]);
    fails(&["get", "k", "--addr", "no.such.host.invalid:1"], 1, &["no.such.host.invalid:1"]);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("n.toml");
    fs::write(&file, "name = \"n1\"\ndir = \"x\"\nlissten = \"y\"\n").unwrap();
    fails(&["node", "--config", path(&file)], 2, &["n.toml:3", "lissten", "listen"]);
    fails(&["node", "--name", "n1"], 2, &["--dir is missing"]);
    fails(&["node", "--name", "a b", "--dir", "x"], 2, &["\"a b\"", "expected"]);
    let node = ["node", "--name", "n1", "--dir", "x"];
    let with = |flags: &[&'static str]| [&node[..], flags].concat();
    fails(&with(&["--failure-timeout", "0"]), 2, &["--failure-timeout 0", "expected"]);
    fails(&with(&["--q-elect", "2"]), 2, &["--q-elect", "--create-group"]);
    let secondary = with(&["--create-group", "g", "--kind", "secondary"]);
    fails(&secondary, 2, &["--create-group", "electable"]);
    for wrong in ["x", "256"] {
        let output = noxu(&with(&["--priority", wrong]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--priority") && said.contains(wrong), "{said}");
    }
}

#[test]
fn every_command_explains_itself_with_examples() {
    let all = String::from_utf8(noxu(&["--help"]).stdout).unwrap();
    let commands = ["node", "demo", "put", "get", "scan", "status", "log"];
    for command in commands {
        assert!(all.contains(command), "{command} is not in noxu --help");
        let output = noxu(&[command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && help.contains("Examples"),
            "noxu {command} --help: {help}"
        );
    }
}
