//! Failover: clients write without pause while the master is killed, closed and hung, again and
//! again; measured is the time until a commit is accepted by another node.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::load::hash;
use super::process::{NodeProcess, PATIENCE};
use super::say;
use super::table::{Table, show_micros};
use crate::cli::error::CliError;
use crate::client::{Answer, Client, ClientError};

/// Clients that write, each one request at a time.
const WRITERS: usize = 4;
/// How long a client waits for an answer before it takes the outcome for unknown and tries another
/// node; a node that hangs answers nothing and still takes connections.
const CLIENT_PATIENCE: Duration = Duration::from_millis(200);
/// How long a client has a node wait for word of a master, in milliseconds.
const MASTER_WAIT_MS: &[u8] = b"200";

/// What happens to a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Ended at once (SIGKILL).
    Killed,
    /// Asked to end (SIGTERM).
    Closed,
    /// Stopped, its connections open (SIGSTOP), until another is master.
    Hung,
}

impl Fate {
    const ALL: [Self; 3] = [Self::Killed, Self::Closed, Self::Hung];

    const fn what(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Closed => "closed (SIGTERM)",
            Self::Hung => "hung (SIGSTOP)",
        }
    }
}

/// A node as the clients know it.
struct Door {
    peer_addr: String,
    client_addr: String,
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    /// Acknowledged by a majority: key -> hash of its value.
    acknowledged: HashMap<String, u64>,
    /// Writes whose outcome nobody told.
    unknown: u64,
    /// Which node acknowledged last, and when.
    last: Option<(usize, Instant)>,
    stop: bool,
    failed: Option<CliError>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Shared {
    /// Waits until a node that `enough` accepts acknowledges a write.
    fn wait_for(&self, enough: impl Fn(usize) -> bool) -> Result<(usize, Instant), CliError> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen.lock();
        seen.last = None;
        loop {
            if let Some(error) = seen.failed.take() {
                return Err(error);
            }
            if let Some((node, at)) = seen.last.filter(|(node, _)| enough(*node)) {
                return Ok((node, at));
            }
            if self.changed.wait_until(&mut seen, deadline).timed_out() {
                return Err(CliError::Failed(format!("no commit was accepted in {PATIENCE:?}")));
            }
        }
    }

    fn stop(&self) {
        self.seen.lock().stop = true;
    }
}

/// Plays `rounds` of every fate. Adds what was acknowledged to `majority`. `restart` starts a node
/// that has ended.
pub(super) fn play(
    nodes: &mut [NodeProcess],
    rounds: u32,
    majority: &mut HashMap<String, u64>,
    table: &mut Table,
    mut restart: impl FnMut(&mut [NodeProcess], usize) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let doors: Vec<Door> = nodes
        .iter()
        .map(|n| Door { peer_addr: n.peer_addr.clone(), client_addr: n.client_addr.clone() })
        .collect();
    let shared = Shared::default();
    let times = std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let (doors, shared) = (&doors[..], &shared);
            scope.spawn(move || {
                if let Err(error) = Writer::new(number, doors, shared).run() {
                    shared.seen.lock().failed = Some(error);
                    shared.changed.notify_all();
                }
            });
        }
        let times = disturb(nodes, rounds, &shared, &mut restart);
        shared.stop();
        times
    })?;
    let mut seen = shared.seen.into_inner();
    if let Some(error) = seen.failed.take() {
        return Err(error);
    }
    say!(
        "{} writes acknowledged by a majority meanwhile, {} of unknown outcome",
        seen.acknowledged.len(),
        seen.unknown
    )?;
    majority.extend(seen.acknowledged);
    for (fate, mut times) in times {
        times.sort_unstable();
        let show = |time: Duration| show_micros(time.as_micros() as u64);
        let what =
            format!("master {}: to the next accepted commit, {} times", fate.what(), times.len());
        if let (Some(least), Some(most)) = (times.first(), times.last()) {
            let median = times[times.len() / 2];
            table.row(what, format!("{} / {} / {}", show(*least), show(median), show(*most)));
        }
    }
    Ok(())
}

type Times = BTreeMap<Fate, Vec<Duration>>;

fn disturb(
    nodes: &mut [NodeProcess],
    rounds: u32,
    shared: &Shared,
    restart: &mut impl FnMut(&mut [NodeProcess], usize) -> Result<(), CliError>,
) -> Result<Times, CliError> {
    let mut times = Times::new();
    for round in 1..=rounds {
        for fate in Fate::ALL {
            let (master, _) = shared.wait_for(|_| true)?;
            let began = Instant::now();
            match fate {
                Fate::Killed => nodes[master].kill(),
                Fate::Closed => nodes[master].ask_to_stop()?,
                Fate::Hung => nodes[master].pause()?,
            }
            let (next, at) = shared.wait_for(|node| node != master)?;
            let time = at.saturating_duration_since(began);
            times.entry(fate).or_default().push(time);
            say!(
                "round {round}: {} {}, {} accepts commits after {time:.2?}",
                nodes[master].name,
                fate.what(),
                nodes[next].name
            )?;
            match fate {
                Fate::Killed => restart(nodes, master)?,
                Fate::Closed => {
                    nodes[master].stop()?; // asked already: this waits for it
                    restart(nodes, master)?;
                }
                Fate::Hung => nodes[master].resume()?,
            }
            let last = nodes[next].info()?.number("last_vlsn").unwrap_or(0);
            nodes[master].wait_applied(last)?;
        }
    }
    Ok(times)
}

/// A client that writes where the master is.
struct Writer<'a> {
    number: usize,
    doors: &'a [Door],
    shared: &'a Shared,
    /// Where it writes.
    at: usize,
    connection: Option<Client>,
}

impl<'a> Writer<'a> {
    fn new(number: usize, doors: &'a [Door], shared: &'a Shared) -> Self {
        Self { number, doors, shared, at: number % doors.len(), connection: None }
    }

    fn run(&mut self) -> Result<(), CliError> {
        for count in 0_u64.. {
            let key = format!("failover/{}/{count:08}", self.number);
            let value = format!("written by client {}, {count}", self.number);
            // The same write is tried until it was taken or may have been.
            while !self.write(&key, &value)? {
                if self.shared.seen.lock().stop {
                    return Ok(());
                }
            }
            if self.shared.seen.lock().stop {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Tries once. False if it is certain that nothing was written.
    fn write(&mut self, key: &str, value: &str) -> Result<bool, CliError> {
        let client = match &mut self.connection {
            Some(client) => client,
            None => match Client::connect(&self.doors[self.at].client_addr, CLIENT_PATIENCE) {
                Ok(client) => self.connection.insert(client),
                Err(ClientError::Connect { .. }) => {
                    self.go_to(self.at + 1);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            },
        };
        match client.call(&[b"SET", key.as_bytes(), value.as_bytes()]) {
            Ok(Answer::Status(_)) => {
                let mut seen = self.shared.seen.lock();
                seen.acknowledged.insert(key.to_owned(), hash(value.as_bytes()));
                seen.last = Some((self.at, Instant::now()));
                self.shared.changed.notify_all();
                Ok(true)
            }
            Ok(other) => {
                Err(CliError::Failed(format!("{}: SET answered {other:?}", client.addr())))
            }
            Err(ClientError::Refused { reason, .. }) => match reason.split(' ').next() {
                Some("READONLY") => {
                    self.find_master();
                    Ok(false)
                }
                Some("NOREPLICAS" | "LOADING") => Ok(false),
                Some("UNKNOWN") => {
                    self.shared.seen.lock().unknown += 1;
                    Ok(true)
                }
                _ => Err(CliError::Failed(format!("{}: {reason}", client.addr()))),
            },
            // The request may have arrived.
            Err(ClientError::Io { .. }) => {
                self.shared.seen.lock().unknown += 1;
                self.go_to(self.at + 1);
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn go_to(&mut self, door: usize) {
        self.at = door % self.doors.len();
        self.connection = None;
    }

    /// Goes where this node says the master is, once it knows; else to the next node.
    fn find_master(&mut self) {
        let told = self.connection.as_mut().and_then(|client| {
            let told = client.call_value(&[b"NOXU", b"MASTER", MASTER_WAIT_MS]).ok().flatten()?;
            self.doors.iter().position(|door| door.peer_addr.as_bytes() == &told[..])
        });
        match told {
            Some(door) if door == self.at => {}
            Some(door) => self.go_to(door),
            None => self.go_to(self.at + 1),
        }
    }
}
