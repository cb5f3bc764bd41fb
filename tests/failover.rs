//! Failover of processes: a client writes without pause while masters are killed, closed and hung.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use noxu::client::{Client, ClientError};
use rustix::process::Signal;

use crate::programs::{NodeProcess, PATIENCE};

/// How long the client waits for an answer: a node that hangs takes connections and gives none.
const CLIENT_PATIENCE: Duration = Duration::from_millis(200);
/// How long the client has a node wait for word of a master, in milliseconds.
const MASTER_WAIT_MS: &[u8] = b"100";
const ROUNDS: usize = 3;
const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// Addresses of a node, for its peers and for its clients.
struct Door {
    peers: String,
    clients: String,
}

/// A write that was acknowledged.
struct Ack {
    key: String,
    by: usize,
    at: Instant,
}

/// A client that writes where the master is, one key after the other.
struct Writer<'a> {
    doors: &'a [Door],
    at: usize,
    connection: Option<Client>,
}

impl Writer<'_> {
    fn run(mut self, stop: &AtomicBool, acks: &Sender<Ack>) {
        for number in 0_u64.. {
            let key = format!("key{number:08}");
            // The same write again if its outcome is not known: it changes nothing then.
            while !self.write(&key) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            let ack = Ack { key, by: self.at, at: Instant::now() };
            if stop.load(Ordering::Relaxed) || acks.send(ack).is_err() {
                return;
            }
        }
    }

    /// Tries once; whether it was acknowledged.
    fn write(&mut self, key: &str) -> bool {
        if self.connection.is_none() {
            self.connection = Client::connect(&self.doors[self.at].clients, CLIENT_PATIENCE).ok();
        }
        let Some(client) = &mut self.connection else {
            self.go_to(self.at + 1);
            return false;
        };
        match client.call(&[b"SET", key.as_bytes(), key.as_bytes()]) {
            Ok(_) => true,
            Err(ClientError::Refused { reason, .. }) => {
                let code = reason.split(' ').next().unwrap();
                assert!(
                    ["READONLY", "NOREPLICAS", "LOADING", "UNKNOWN"].contains(&code),
                    "{reason}"
                );
                if code == "READONLY" {
                    self.find_master();
                }
                false
            }
            Err(_) => {
                self.go_to(self.at + 1);
                false
            }
        }
    }

    /// Goes where this node says the master is, or to the next node if it does not know.
    fn find_master(&mut self) {
        let told = self.connection.as_mut().and_then(|client| {
            let told = client.call_value(&[b"NOXU", b"MASTER", MASTER_WAIT_MS]).ok().flatten()?;
            self.doors.iter().position(|door| door.peers.as_bytes() == &told[..])
        });
        match told {
            Some(door) if door == self.at => {}
            Some(door) => self.go_to(door),
            None => self.go_to(self.at + 1),
        }
    }

    fn go_to(&mut self, door: usize) {
        self.at = door % self.doors.len();
        self.connection = None;
    }
}

/// Ends the writer when dropped, also by a test that fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the writer reports, and all that it ever reported.
struct Acks {
    reports: Receiver<Ack>,
    keys: Vec<String>,
}

impl Acks {
    /// Waits for a write that was acknowledged after `begun`, by a node that `enough` accepts.
    #[track_caller]
    fn wait(&mut self, begun: Instant, enough: impl Fn(usize) -> bool) -> Ack {
        let deadline = begun + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ack = self.reports.recv_timeout(left).expect("no write was acknowledged");
            self.keys.push(ack.key.clone());
            if ack.at > begun && enough(ack.by) {
                return ack;
            }
        }
    }
}

/// Starts node `which` where it was, with the others as its peers.
fn start_again(which: usize, dir: &Path, doors: &[Door]) -> NodeProcess {
    let others = doors.iter().enumerate().filter(|(other, _)| *other != which);
    let peers: Vec<&str> = others.flat_map(|(_, door)| ["--peer", &door.peers]).collect();
    let addresses = (&*doors[which].peers, &*doors[which].clients);
    NodeProcess::start_at(NAMES[which], &dir.join(NAMES[which]), addresses, &peers)
}

/// The time in the middle.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn the_group_is_writable_soon_after_its_master_was_killed_closed_or_hung() {
    let dir = tempfile::tempdir().unwrap();
    let create = ["--create-group", "g", "--members", "n1,n2,n3"];
    let n1 = NodeProcess::start("n1", &dir.path().join("n1"), &create);
    let join = |name| NodeProcess::start(name, &dir.path().join(name), &["--peer", &n1.peer_addr]);
    let (n2, n3) = (join("n2"), join("n3"));
    let mut nodes = [n1, n2, n3];
    let doors = nodes
        .each_ref()
        .map(|n| Door { peers: n.peer_addr.clone(), clients: n.client_addr.clone() });
    let stop = AtomicBool::new(false);
    let (send, reports) = channel();
    let mut acks = Acks { reports, keys: Vec::new() };
    let [killed, closed, hung] = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let writer = Writer { doors: &doors, at: 0, connection: None };
        scope.spawn(|| writer.run(&stop, &send));
        [Signal::KILL, Signal::TERM, Signal::STOP].map(|signal| {
            let mut round = || {
                let master = acks.wait(Instant::now(), |_| true).by;
                let begun = Instant::now();
                nodes[master].signal(signal);
                let next = acks.wait(begun, |by| by != master);
                if signal == Signal::STOP {
                    nodes[master].signal(Signal::CONT);
                } else {
                    nodes[master].wait_end();
                    nodes[master] = start_again(master, dir.path(), &doors);
                }
                nodes[master].wait_applied(&nodes[next.by].info("last_vlsn").unwrap());
                next.at - begun
            };
            (0..ROUNDS).map(|_| round()).collect::<Vec<_>>()
        })
    });
    acks.keys.extend(acks.reports.try_iter().map(|ack| ack.key));
    eprintln!("killed {killed:?}, closed {closed:?}, hung {hung:?}, {} writes", acks.keys.len());

    let last = nodes.iter().map(|n| n.info("last_vlsn").unwrap().parse::<u64>().unwrap()).max();
    for node in &nodes {
        node.wait_applied(&last.unwrap().to_string());
        let mut client = node.client();
        for keys in acks.keys.chunks(500) {
            for key in keys {
                client.queue(&[b"GET", key.as_bytes()]);
            }
            client.flush().unwrap();
            for key in keys {
                let found = client.receive().unwrap();
                let expected = noxu::client::Answer::Value(Some(key.clone().into_bytes().into()));
                assert_eq!(found, expected, "{key} was acknowledged");
            }
        }
    }
    assert!(median(killed) < Duration::from_millis(500), "killed");
    assert!(median(closed) < Duration::from_millis(500), "closed");
    assert!(median(hung) < Duration::from_secs(2), "hung");
}
