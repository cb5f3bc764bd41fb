//! The client door over raw sockets, our own client and redis-cli.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use noxu::client::{Answer, Client, ClientError};
use noxu::door::{Door, DoorConfig, DurabilityName, RequestLimits};

use crate::memory_backend::MemoryBackend;

const PATIENCE: Duration = Duration::from_secs(20);

fn open(config: DoorConfig) -> (Door, MemoryBackend) {
    let backend = MemoryBackend::default();
    let door = Door::open("127.0.0.1:0", Arc::new(backend.clone()), config).unwrap();
    (door, backend)
}

fn raw(door: &Door) -> TcpStream {
    let stream = TcpStream::connect(door.local_addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn client(door: &Door) -> Client {
    Client::connect(&door.local_addr().to_string(), PATIENCE).unwrap()
}

/// Reads until the other side closes.
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

fn expect(stream: &mut TcpStream, answer: &str) {
    let mut found = vec![0; answer.len()];
    stream.read_exact(&mut found).unwrap();
    assert_eq!(String::from_utf8_lossy(&found), answer);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (door, _) = open(DoorConfig::default());
    let mut stream = raw(&door);
    stream
        .write_all(b"PING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\nFLY\r\nECHO x\r\n")
        .unwrap();
    expect(&mut stream, "+PONG\r\n+OK\r\n$1\r\nv\r\n-ERR unknown command");
    stream.write_all(b"QUIT\r\n").unwrap();
    let rest = read_to_close(&mut stream);
    assert!(rest.ends_with("$1\r\nx\r\n+OK\r\n"), "{rest}");
}

#[test]
fn writes_of_a_pipeline_are_submitted_before_the_first_is_waited_for() {
    let (door, backend) = open(DoorConfig::default());
    let mut client = client(&door);
    for i in 0..100 {
        client.queue(&[b"SET", format!("k{i}").as_bytes(), b"v"]);
    }
    client.flush().unwrap();
    for _ in 0..100 {
        assert_eq!(client.receive().unwrap(), Answer::Status("OK".to_owned()));
    }
    let state = backend.state.lock();
    assert_eq!(state.waits.len(), 100);
    // The pipeline may arrive in a few pieces, never in a hundred.
    assert!(state.waits[0] > 1, "the first commit was waited for alone");
}

#[test]
fn a_read_sees_the_writes_before_it_in_the_same_pipeline() {
    let (door, backend) = open(DoorConfig::default());
    let mut client = client(&door);
    for i in 0..200_u32 {
        client.queue(&[b"SET", b"k", i.to_string().as_bytes()]);
        client.queue(&[b"GET", b"k"]);
        client.queue(&[b"DEL", b"k"]);
        client.queue(&[b"EXISTS", b"k", b"k"]);
    }
    client.flush().unwrap();
    for i in 0..200_u32 {
        assert_eq!(client.receive().unwrap(), Answer::Status("OK".to_owned()));
        let value = Bytes::from(i.to_string());
        assert_eq!(client.receive().unwrap(), Answer::Value(Some(value)));
        assert_eq!(client.receive().unwrap(), Answer::Integer(1));
        assert_eq!(client.receive().unwrap(), Answer::Integer(0));
    }
    assert_eq!(backend.state.lock().vlsn, 400);
}

#[test]
fn data_commands_do_what_they_say() {
    let (door, _) = open(DoorConfig::default());
    let mut c = client(&door);
    let value = |text: &'static str| Answer::Value(Some(Bytes::from_static(text.as_bytes())));
    assert_eq!(c.call(&[b"MSET", b"a", b"1", b"b", b"2"]).unwrap(), Answer::Status("OK".into()));
    let got = c.call(&[b"MGET", b"a", b"x", b"b"]).unwrap();
    assert_eq!(got, Answer::Array(vec![value("1"), Answer::Value(None), value("2")]));
    assert_eq!(c.call(&[b"SET", b"a", b"9", b"NX"]).unwrap(), Answer::Value(None));
    assert_eq!(c.call(&[b"SET", b"a", b"9", b"XX"]).unwrap(), Answer::Status("OK".into()));
    assert_eq!(c.call(&[b"EXISTS", b"a", b"b", b"c"]).unwrap(), Answer::Integer(2));
    assert_eq!(c.call_integer(&[b"DBSIZE"]).unwrap(), 2);
    assert_eq!(c.call_integer(&[b"DEL", b"a", b"a", b"c"]).unwrap(), 1);
    assert_eq!(c.call_value(&[b"GET", b"a"]).unwrap(), None);
    assert_eq!(c.call(&[b"SELECT", b"0"]).unwrap(), Answer::Status("OK".into()));
    assert!(c.call_text(&[b"INFO"]).unwrap().contains("role:master"));
    let Answer::Array(role) = c.call(&[b"ROLE"]).unwrap() else { panic!("ROLE is an array") };
    assert_eq!(role[0], value("master"));
    let Answer::Array(table) = c.call(&[b"COMMAND"]).unwrap() else { panic!("not a table") };
    assert_eq!(c.call_integer(&[b"COMMAND", b"COUNT"]).unwrap(), table.len() as i64);
}

#[test]
fn durability_is_chosen_per_connection() {
    let (door, backend) = open(DoorConfig::default());
    let (mut one, mut other) = (client(&door), client(&door));
    one.call(&[b"NOXU", b"DURABILITY", b"LOCAL"]).unwrap();
    assert_eq!(one.call_text(&[b"NOXU", b"DURABILITY"]).unwrap(), "local");
    one.call(&[b"SET", b"a", b"1"]).unwrap();
    other.call(&[b"SET", b"b", b"1"]).unwrap();
    assert_eq!(backend.state.lock().commits, [DurabilityName::Local, DurabilityName::Majority]);
    assert_eq!(other.call_text(&[b"NOXU", b"TOKEN"]).unwrap(), "2:1:0000000000000abc");
    assert!(matches!(
        one.call(&[b"NOXU", b"DURABILITY", b"luck"]),
        Err(ClientError::Refused { reason, .. }) if reason.contains("\"luck\"")
    ));
}

#[test]
fn a_transaction_is_one_commit_and_a_refused_command_aborts_it() {
    let (door, backend) = open(DoorConfig::default());
    let mut c = client(&door);
    let queued = Answer::Status("QUEUED".into());
    c.call(&[b"MULTI"]).unwrap();
    assert_eq!(c.call(&[b"SET", b"a", b"1"]).unwrap(), queued);
    assert_eq!(c.call(&[b"GET", b"a"]).unwrap(), queued);
    assert_eq!(c.call(&[b"DEL", b"a", b"z"]).unwrap(), queued);
    assert_eq!(
        c.call(&[b"EXEC"]).unwrap(),
        Answer::Array(vec![
            Answer::Status("OK".into()),
            Answer::Value(Some(Bytes::from_static(b"1"))),
            Answer::Integer(1)
        ])
    );
    assert_eq!(backend.state.lock().vlsn, 1);

    c.call(&[b"MULTI"]).unwrap();
    assert!(c.call(&[b"SCAN", b"0"]).is_err());
    assert_eq!(c.call(&[b"SET", b"a", b"2"]).unwrap(), queued);
    let aborted = c.call(&[b"EXEC"]).unwrap_err().to_string();
    assert!(aborted.contains("EXECABORT"), "{aborted}");

    c.call(&[b"MULTI"]).unwrap();
    c.call(&[b"SET", b"a", b"3"]).unwrap();
    c.call(&[b"DISCARD"]).unwrap();
    assert!(c.call(&[b"EXEC"]).is_err());
    assert_eq!(backend.state.lock().vlsn, 1, "nothing of the aborted ones was written");
}

#[test]
fn a_conflict_is_tried_again_and_reported_when_it_stays() {
    let (door, backend) = open(DoorConfig::default());
    let mut c = client(&door);
    backend.state.lock().conflicts = 3;
    c.call(&[b"SET", b"a", b"1", b"NX"]).unwrap();
    backend.state.lock().conflicts = 1000;
    let error = c.call(&[b"SET", b"b", b"1", b"NX"]).unwrap_err().to_string();
    assert!(error.contains("CONFLICT"), "{error}");
}

#[test]
fn a_write_on_a_replica_names_the_master_and_reads_still_work() {
    let (door, backend) = open(DoorConfig::default());
    backend.state.lock().map.insert(Bytes::from_static(b"a"), Bytes::from_static(b"1"));
    backend.state.lock().master = Some("10.0.0.1:7777".to_owned());
    let mut c = client(&door);
    for write in [&[&b"SET"[..], b"a", b"2"][..], &[b"DEL", b"a"], &[b"MSET", b"a", b"2"]] {
        let error = c.call(write).unwrap_err().to_string();
        assert!(error.contains("READONLY") && error.contains("10.0.0.1:7777"), "{error}");
    }
    assert_eq!(c.call_value(&[b"GET", b"a"]).unwrap(), Some(Bytes::from_static(b"1")));
    let Answer::Array(role) = c.call(&[b"ROLE"]).unwrap() else { panic!("ROLE is an array") };
    assert_eq!(role[0], Answer::Value(Some(Bytes::from_static(b"slave"))));
}

#[test]
fn scan_finds_every_key_once_and_only_those_that_match() {
    let (door, _) = open(DoorConfig::default());
    let mut c = client(&door);
    for i in 0..537 {
        c.queue(&[b"SET", format!("key:{i:04}").as_bytes(), b"v"]);
    }
    c.flush().unwrap();
    for _ in 0..537 {
        c.receive().unwrap();
    }
    let mut other = client(&door);
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        // Alternating connections: cursors belong to the door, as clients with pools expect.
        let through = if found.len() % 2 == 0 { &mut c } else { &mut other };
        let (next, keys) = through.scan_step(&cursor, Some("key:*1"), 50).unwrap();
        found.extend(keys);
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    let expected: Vec<Bytes> =
        (0..537).filter(|i| i % 10 == 1).map(|i| Bytes::from(format!("key:{i:04}"))).collect();
    assert_eq!(found, expected);
    assert!(c.scan_step("999999", None, 10).unwrap_err().to_string().contains("start again at 0"));
}

#[test]
fn a_malformed_request_closes_its_own_connection_only() {
    let (door, _) = open(DoorConfig::default());
    let mut good = client(&door);
    for (bytes, part) in [
        (&b"*1\r\n*1\r\n"[..], "expected '$', found '*'"),
        (b"*99999999\r\n", "expected 0 to 131072"),
        (b"*1\r\n$999999999999\r\n", "an argument's length is \"999999999999\""),
        (b"*-5\r\n", "the argument count"),
        (b"\x16\x03\x01\x02\x00\x01\n", "Protocol error"),
    ] {
        let mut bad = raw(&door);
        bad.write_all(b"PING\r\n").unwrap();
        bad.write_all(bytes).unwrap();
        let answer = read_to_close(&mut bad);
        assert!(answer.starts_with("+PONG\r\n-ERR Protocol error"), "{answer}");
        assert!(answer.contains(part), "{answer}");
        assert_eq!(good.call(&[b"PING"]).unwrap(), Answer::Status("PONG".into()));
    }
}

#[test]
fn garbage_of_any_kind_leaves_the_door_standing() {
    let (door, _) = open(DoorConfig::default());
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let mut bad = raw(&door);
        let len = random.usize(1..2000);
        let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
        // The door may close before all is written.
        let _ = bad.write_all(&bytes);
        let _ = bad.shutdown(std::net::Shutdown::Write);
        let _ = bad.read_to_end(&mut Vec::new());
    }
    assert_eq!(client(&door).call(&[b"PING"]).unwrap(), Answer::Status("PONG".into()));
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let (door, _) = open(DoorConfig { max_connections: 3, ..DoorConfig::default() });
    let mut kept: Vec<Client> = (0..3).map(|_| client(&door)).collect();
    for one in &mut kept {
        one.call(&[b"PING"]).unwrap();
    }
    assert!(read_to_close(&mut raw(&door)).contains("max number of clients"));
    kept.pop();
    let started = Instant::now();
    loop {
        // The place is free once the door has noticed the close.
        if client(&door).call(&[b"PING"]).is_ok() {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "the place never became free");
    }
}

#[test]
fn a_request_that_never_ends_is_given_up_but_an_idle_connection_stays() {
    let config =
        DoorConfig { transfer_timeout: Duration::from_millis(100), ..DoorConfig::default() };
    let (door, _) = open(config);
    let mut idle = client(&door);
    idle.call(&[b"PING"]).unwrap();
    let mut stuck = raw(&door);
    stuck.write_all(b"*2\r\n$3\r\nGET\r\n$10\r\nab").unwrap();
    assert!(read_to_close(&mut stuck).contains("took too long"));
    idle.call(&[b"PING"]).unwrap();
}

#[test]
fn unfinished_requests_of_all_connections_share_one_budget() {
    let config = DoorConfig { buffer_budget_bytes: 1 << 20, ..DoorConfig::default() };
    let (door, _) = open(config);
    let mut hungry = raw(&door);
    hungry.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9000000\r\n").unwrap();
    let _ = hungry.write_all(&vec![b'x'; 4 << 20]);
    // It is closed on; whether the reason still arrives is up to TCP, which may reset first.
    let ended = hungry.read_to_end(&mut Vec::new());
    let waits = std::io::ErrorKind::WouldBlock;
    assert!(!ended.is_err_and(|e| e.kind() == waits), "the door goes on waiting");
    drop(hungry);
    // What it held is free again: a smaller request goes through.
    let mut modest = client(&door);
    modest.call(&[b"SET", b"k", &vec![b'y'; 900_000]]).unwrap();
    assert_eq!(modest.call_value(&[b"GET", b"k"]).unwrap().unwrap().len(), 900_000);
}

#[test]
fn large_values_go_in_and_out_and_too_large_ones_are_refused_before_they_arrive() {
    let limits = RequestLimits { arguments: 16, argument_bytes: 9 << 20, request_bytes: 10 << 20 };
    let (door, _) = open(DoorConfig { limits, ..DoorConfig::default() });
    let mut c = client(&door);
    let value: Vec<u8> = (0..8_u32 << 20).map(|i| (i % 251) as u8).collect();
    c.call(&[b"SET", b"large", &value]).unwrap();
    assert_eq!(c.call_value(&[b"GET", b"large"]).unwrap().unwrap(), value);
    let mut bad = raw(&door);
    bad.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$9437185\r\n").unwrap();
    assert!(read_to_close(&mut bad).contains("expected 0 to 9437184"));
}

#[test]
fn closing_the_door_ends_its_connections() {
    let (mut door, _) = open(DoorConfig::default());
    let mut c = client(&door);
    c.call(&[b"PING"]).unwrap();
    let addr = door.local_addr();
    door.close();
    assert!(c.call(&[b"PING"]).is_err());
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn redis_cli_works_against_the_door() {
    if Command::new("redis-cli").arg("--version").output().is_err() {
        // Past the test harness, which would hide it.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED redis_cli_works_against_the_door: redis-cli is not installed"
        );
        return;
    }
    let (door, _) = open(DoorConfig::default());
    let port = door.local_addr().port().to_string();
    let run = |arguments: &[&str]| {
        let output =
            Command::new("redis-cli").args(["-p", &port]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    };
    assert_eq!(run(&["PING"]), "PONG");
    assert_eq!(run(&["SET", "greeting", "hello world"]), "OK");
    assert_eq!(run(&["GET", "greeting"]), "hello world");
    assert_eq!(run(&["MSET", "a", "1", "b", "2"]), "OK");
    assert_eq!(run(&["--scan", "--pattern", "[ab]"]), "a\nb");
    assert_eq!(run(&["DBSIZE"]), "3");
    assert!(run(&["ROLE"]).starts_with("master"));
    assert!(run(&["INFO", "replication"]).contains("role:master"));
    assert!(run(&["NOXU", "DURABILITY", "x"]).contains("is not a durability"));
}
