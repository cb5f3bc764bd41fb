//! Node processes: started, killed, brought back, from the outside.

use std::time::{Duration, Instant};

use bytes::Bytes;
use noxu::client::Answer;
use rustix::process::Signal;

use crate::programs::{NodeProcess, noxu};

#[test]
fn a_killed_replica_comes_back_and_has_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    let mut client = n1.client();
    client.call(&[b"SET", b"before", b"1"]).unwrap();
    n3.kill();
    for i in 0..500 {
        client.queue(&[b"SET", format!("key{i:04}").as_bytes(), b"v"]);
    }
    client.flush().unwrap();
    for _ in 0..500 {
        assert_eq!(client.receive().unwrap(), Answer::Status("OK".to_owned()));
    }
    let last = n1.info("last_vlsn").unwrap();
    let n3 = NodeProcess::join("n3", &dir.path().join("n3"), &n1);
    for node in [&n1, &n2, &n3] {
        node.wait_applied(&last);
        assert_eq!(node.client().call_integer(&[b"DBSIZE"]).unwrap(), 501);
    }
    assert_eq!(n3.info("last_fingerprint"), n1.info("last_fingerprint"));
    assert_eq!(n3.info("rollback_entries"), None);
    for node in [n3, n2, n1] {
        assert_eq!(node.terminate(), Some(0), "an orderly shutdown ends with 0");
    }
}

/// What `node` says became of a commit, once it knows or after a moment.
fn outcome(node: &NodeProcess, token: &[u8]) -> Bytes {
    node.client().call_value(&[b"NOXU", b"OUTCOME", token, b"300"]).unwrap().unwrap()
}

#[test]
fn a_deposed_master_rolls_back_and_keeps_what_it_lost_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    let mut first = n1.client();
    first.call(&[b"SET", b"kept", b"1"]).unwrap();
    let kept = first.call_value(&[b"NOXU", b"TOKEN"]).unwrap().unwrap();
    let agreed = n1.info("last_vlsn").unwrap();
    n2.wait_applied(&agreed);
    n3.wait_applied(&agreed);
    n2.kill();
    n3.kill();
    let mut alone = n1.client();
    alone.call(&[b"NOXU", b"DURABILITY", b"LOCAL"]).unwrap();
    for i in 0..10 {
        alone.call(&[b"SET", format!("lonely{i}").as_bytes(), b"x"]).unwrap();
    }
    assert_eq!(alone.call_integer(&[b"DBSIZE"]).unwrap(), 11, "its own reads see LOCAL commits");
    let lonely = alone.call_value(&[b"NOXU", b"TOKEN"]).unwrap().unwrap();
    assert_eq!(outcome(&n1, &kept), b"durable"[..]);
    assert_eq!(outcome(&n1, &lonely), b"open"[..], "nobody else has it yet");
    n1.kill();

    let n2 = NodeProcess::start("n2", &dir.path().join("n2"), &["--priority", "9"]);
    let n3 = NodeProcess::join("n3", &dir.path().join("n3"), &n2);
    n2.wait_master();
    n2.client().call(&[b"SET", b"after", b"1"]).unwrap();
    let n1 = NodeProcess::join("n1", &dir.path().join("n1"), &n2);
    n1.wait_applied(&n2.info("last_vlsn").unwrap());
    assert_eq!(n1.info("rollback_matchpoint").unwrap(), agreed);
    assert_eq!(n1.info("rollback_entries").unwrap(), "10");
    for node in [&n1, &n2, &n3] {
        assert_eq!(node.client().call_integer(&[b"DBSIZE"]).unwrap(), 2);
        assert_eq!(outcome(node, &kept), b"durable"[..]);
        assert_eq!(outcome(node, &lonely), b"rolled-back"[..]);
    }
    let file = n1.info("rollback_lost_file").unwrap();
    let dump = noxu(&["log", "dump", &file]);
    let text = String::from_utf8_lossy(&dump.stdout);
    assert!(dump.status.success() && text.contains("lonely9"), "{text}");
}

#[test]
fn writes_on_a_replica_name_the_master_and_the_command_line_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2] = NodeProcess::pair(dir.path());
    let put = noxu(&["put", "greeting", "hello", "--addr", &n1.client_addr]);
    assert!(put.status.success());
    n2.wait_applied(&n1.info("last_vlsn").unwrap());
    let get = noxu(&["get", "greeting", "--addr", &n2.client_addr]);
    assert_eq!(get.stdout, b"hello");
    let refused = noxu(&["put", "greeting", "other", "--addr", &n2.client_addr]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("READONLY") && said.contains(&n1.peer_addr), "{said}");
    let status = noxu(&["status", "--addr", &n2.client_addr, "--section", "replication"]);
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(text.contains("follows") && text.contains(&n1.peer_addr), "{text}");
    let scan = noxu(&["scan", "--values", "--addr", &n2.client_addr]);
    assert_eq!(scan.stdout, b"greeting\thello\n");
}

#[test]
fn the_first_transaction_of_a_fresh_master_that_reads_meets_no_conflict() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let n1 = NodeProcess::alone("n1", &dir.path().join(round.to_string()));
        let first = n1.client().call(&[b"SET", b"k", b"v", b"NX"]).unwrap();
        assert_eq!(first, Answer::Status("OK".to_owned()));
    }
}

#[test]
fn a_majority_that_is_gone_refuses_writes_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2, n3] = NodeProcess::group(dir.path());
    n2.kill();
    n3.kill();
    n1.wait_for("connected_slaves", |count| count == "0");
    let before = n1.info("last_vlsn").unwrap();
    let said = n1.client().call(&[b"SET", b"k", b"v"]).unwrap_err().to_string();
    assert!(said.contains("NOREPLICAS") && said.contains("nothing was written"), "{said}");
    assert_eq!(n1.info("last_vlsn").unwrap(), before);
}

#[test]
fn a_founder_takes_no_writes_before_its_members_have_come() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = NodeProcess::found("n1", &dir.path().join("n1"), "n1,n2,n3");
    let n2 = NodeProcess::join("n2", &dir.path().join("n2"), &n1);
    let said = n1.client().call(&[b"SET", b"k", b"v"]).unwrap_err().to_string();
    assert!(said.contains("READONLY") && said.contains("not known"), "{said}");
    assert_eq!(n1.client().call_value(&[b"NOXU", b"MASTER", b"300"]).unwrap(), None);
    let n3 = NodeProcess::join("n3", &dir.path().join("n3"), &n1);
    for node in [&n3, &n2, &n1] {
        let master = node.client().call_value(&[b"NOXU", b"MASTER", b"20000"]).unwrap();
        assert_eq!(master.unwrap(), n1.peer_addr.as_bytes());
    }
    n1.client().call(&[b"SET", b"k", b"v"]).unwrap();
}

#[test]
fn a_short_demo_finds_everything_as_promised() {
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let sizes = ["--commits", "600", "--size", "256KiB", "--restore-size", "8MiB"];
    let output = noxu(&[&["demo", "--input", input], &sizes[..]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{said}");
    assert!(text.contains("everything checked is as promised"), "{text}");
}

/// What a client waits for must not keep a node that is told to end, which is a master that others wait for.
#[test]
fn a_node_that_is_told_to_end_does_not_wait_for_what_its_clients_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let [n1, n2] = NodeProcess::pair(dir.path());
    n1.client().call(&[b"SET", b"before", b"1"]).unwrap();
    let before = n1.info("last_vlsn").unwrap();
    n2.signal(Signal::STOP);
    let mut waiting = n1.client();
    waiting.queue(&[b"SET", b"key", b"acknowledged by nobody"]);
    waiting.flush().unwrap();
    n1.wait_for("last_vlsn", |last| last != before);
    let told = Instant::now();
    assert_eq!(n1.terminate(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    n2.signal(Signal::CONT);
}
