//! Rig: a group of nodes in one process, on disks in memory, each behind a door.
//!
//! The group is founded by hand, in each directory before it is opened for the first time. Who is
//! to be master is started with [`MASTER_PRIORITY`], the others with 0, so that they elect nobody
//! else however long they are without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use noxu_log::env::{Env, FaultEnv, MemoryEnv, RealEnv, Survivors, read_whole};
use noxu_log::{GroupIdentity, Log, LogConfig, LostEntries, NewEntry};
use noxu_rep::{
    Durability, GroupChoice, MasterLimits, Node, NodeConfig, Result, Role, Status, StreamTiming,
    Submitted,
};
use noxu_util::{GroupId, Name, Term, Vlsn};

use crate::door::Door;
use crate::state_map::{PUT, StateMap, parse_put, put_body, put_entry};
use crate::stuck_disk::StuckDisk;
pub(crate) use crate::support::eventually;
use crate::support::{MASTER_PRIORITY, election_timing, electorate, incarnation};

/// Longest wait for what must happen.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What the nodes' directories are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Memory,
    /// In memory; a node can crash and lose what it did not sync.
    Fault,
    /// In memory; its syncs can be held up.
    Stuck,
    Real,
}

/// How a rig's nodes are opened.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) members: usize,
    pub(crate) disk: Disk,
    pub(crate) segment_bytes: u32,
    pub(crate) limits: MasterLimits,
    pub(crate) log: LogConfig,
    pub(crate) group: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            members: 3,
            disk: Disk::Memory,
            segment_bytes: 64 << 10,
            limits: MasterLimits {
                insufficient_replicas_timeout: SOON,
                ack_timeout: SOON,
                timing: StreamTiming {
                    heartbeat: Duration::from_millis(50),
                    silence: Duration::from_secs(10),
                },
                ..MasterLimits::default()
            },
            log: LogConfig { tail_bytes: 1 << 20, prefill: false, ..LogConfig::default() },
            group: "tests",
        }
    }
}

/// A group of nodes.
pub(crate) struct Rig {
    pub(crate) options: Options,
    seats: Vec<Seat>,
    _temp: Option<tempfile::TempDir>,
}

/// One node's place, whether it runs or not.
struct Seat {
    name: Name,
    dir: PathBuf,
    disk: SeatDisk,
    door: Door,
    /// Another way to it, for those who are told.
    side_door: Door,
    running: Option<Running>,
}

enum SeatDisk {
    Plain(Arc<dyn Env>),
    Fault(FaultEnv),
    Stuck(StuckDisk),
}

struct Running {
    node: Node,
    map: Arc<StateMap>,
    /// It is to be master, and nobody has seen yet that it is.
    is_awaited: AtomicBool,
}

impl Rig {
    pub(crate) fn new(options: Options) -> Self {
        let temp = (options.disk == Disk::Real)
            .then(|| tempfile::tempdir().expect("a directory for temporary files"));
        let base = temp.as_ref().map_or_else(|| PathBuf::from("/"), |t| t.path().to_owned());
        let seat = |number: usize| Seat {
            name: name(&format!("n{number}")),
            dir: base.join(format!("n{number}")),
            disk: match options.disk {
                Disk::Memory => SeatDisk::Plain(Arc::new(MemoryEnv::new())),
                Disk::Fault => SeatDisk::Fault(FaultEnv::new()),
                Disk::Stuck => SeatDisk::Stuck(StuckDisk::default()),
                Disk::Real => SeatDisk::Plain(Arc::new(RealEnv::new())),
            },
            door: Door::new(),
            side_door: Door::new(),
            running: None,
        };
        let seats = (1..=options.members).map(seat).collect();
        Self { options, seats, _temp: temp }
    }

    /// A group with node 0 as master and all others as its replicas, everything of the
    /// start replicated.
    pub(crate) fn running(options: Options) -> Self {
        let mut rig = Self::new(options);
        rig.start_master(0);
        for number in 1..rig.seats.len() {
            rig.start_replica(number);
        }
        for number in 1..rig.seats.len() {
            rig.await_fed(number);
        }
        rig
    }

    /// A group with node 0 as master, elected by the others, which are gone again.
    pub(crate) fn with_lone_master(options: Options) -> Self {
        let mut rig = Self::running(options);
        for number in 1..rig.seats.len() {
            rig.stop(number);
        }
        eventually("the master is alone", || rig.status(0).replicas.is_empty());
        rig
    }

    // ---- starting and stopping

    pub(crate) fn config(&self, number: usize, priority: u8) -> NodeConfig {
        let seat = &self.seats[number];
        let others = self.seats.iter().filter(|other| other.name != seat.name);
        NodeConfig {
            priority,
            advertise: Some(seat.door.address()),
            peers: others.map(|other| other.door.address()).collect(),
            group: GroupChoice::Join { name: Some(name(self.options.group)) },
            limits: self.options.limits,
            election: election_timing(),
            log: self.options.log.clone(),
            // Shown when a test fails.
            on_state: Some(Arc::new({
                let (node, opened) = (seat.name.clone(), Instant::now());
                move |change| eprintln!("{node} after {:?}: {change:?}", opened.elapsed())
            })),
            ..NodeConfig::new(seat.name.clone(), &seat.dir)
        }
    }

    /// Starts the node that is to be master, once enough others run.
    pub(crate) fn start_master(&mut self, number: usize) {
        self.start(number, self.config(number, MASTER_PRIORITY)).unwrap();
    }

    pub(crate) fn start_replica(&mut self, number: usize) {
        self.start(number, self.config(number, 0)).unwrap();
    }

    /// Starts `master` and `replicas` where they reach each other and the rest of the group neither
    /// reaches them nor, as long as its doors lead nowhere, is reached.
    pub(crate) fn start_apart(&mut self, master: usize, replicas: &[usize]) {
        let all: Vec<usize> = std::iter::once(master).chain(replicas.iter().copied()).collect();
        for number in &all {
            let mut config =
                self.config(*number, if *number == master { MASTER_PRIORITY } else { 0 });
            config.advertise = Some(self.seats[*number].side_door.address());
            let others = all.iter().filter(|other| *other != number);
            config.peers = others.map(|other| self.seats[*other].side_door.address()).collect();
            self.start(*number, config).unwrap();
        }
    }

    pub(crate) fn start(&mut self, number: usize, config: NodeConfig) -> Result<()> {
        assert!(self.seats[number].running.is_none(), "node {number} runs");
        if self.env(number).list(self.dir(number)).map_or(true, |files| files.is_empty()) {
            prepare(self, number, 0, |_| {});
        }
        let is_awaited = AtomicBool::new(config.priority == MASTER_PRIORITY);
        let apart = config.advertise.as_ref() == Some(&self.seats[number].side_door.address());
        let (node, map) = open_node(self.env(number), config)?;
        let seat = &mut self.seats[number];
        let door = if apart { &seat.side_door } else { &seat.door };
        door.lead_to(Some(node.local_addr()));
        seat.running = Some(Running { node, map, is_awaited });
        Ok(())
    }

    /// Shuts the node down in good order.
    pub(crate) fn stop(&mut self, number: usize) {
        let running = self.seats[number].running.take().expect("running");
        running.node.shutdown().expect("shut down");
        self.seats[number].door.close_behind();
        self.seats[number].side_door.close_behind();
    }

    /// The node's machine loses power: of what it did not sync, a part survives that follows from
    /// `seed`.
    pub(crate) fn crash(&mut self, number: usize, seed: u64) {
        let seat = &mut self.seats[number];
        seat.door.lead_to(None);
        seat.side_door.lead_to(None);
        let running = seat.running.take().expect("running");
        let SeatDisk::Fault(env) = &seat.disk else { panic!("a disk that cannot crash") };
        let survives = env.crash_keeping(Survivors::Random(seed));
        seat.disk = SeatDisk::Fault(survives);
        // Its threads still run, on a disk that is no more; what this reports is of no interest.
        let _ = running.node.shutdown();
    }

    // ---- the nodes

    pub(crate) fn env(&self, number: usize) -> Arc<dyn Env> {
        match &self.seats[number].disk {
            SeatDisk::Plain(env) => Arc::clone(env),
            SeatDisk::Fault(env) => Arc::new(env.clone()),
            SeatDisk::Stuck(env) => Arc::new(env.clone()),
        }
    }

    pub(crate) fn fault_disk(&self, number: usize) -> &FaultEnv {
        match &self.seats[number].disk {
            SeatDisk::Fault(env) => env,
            SeatDisk::Plain(_) | SeatDisk::Stuck(_) => panic!("a disk without faults"),
        }
    }

    pub(crate) fn stuck_disk(&self, number: usize) -> &StuckDisk {
        match &self.seats[number].disk {
            SeatDisk::Stuck(env) => env,
            SeatDisk::Plain(_) | SeatDisk::Fault(_) => panic!("a disk that cannot be stuck"),
        }
    }

    pub(crate) fn dir(&self, number: usize) -> &Path {
        &self.seats[number].dir
    }

    pub(crate) fn name(&self, number: usize) -> &Name {
        &self.seats[number].name
    }

    pub(crate) fn door(&self, number: usize) -> &Door {
        &self.seats[number].door
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.seats[number].running.as_ref().expect("running").node
    }

    pub(crate) fn map(&self, number: usize) -> &StateMap {
        &self.seats[number].running.as_ref().expect("running").map
    }

    pub(crate) fn log(&self, number: usize) -> Log {
        self.node(number).log()
    }

    pub(crate) fn status(&self, number: usize) -> Status {
        self.node(number).status()
    }

    pub(crate) fn last(&self, number: usize) -> Vlsn {
        self.log(number).positions().last
    }

    // ---- writing

    /// Commits one key on node `number`.
    pub(crate) fn put(
        &self,
        number: usize,
        key: &str,
        value: &[u8],
        durability: Durability,
    ) -> Result<Submitted> {
        self.await_elected(number);
        let body = put_body(key, value);
        let outcome = self.node(number).commit(&[put_entry(&body, true)], durability);
        if outcome.is_err() {
            for running in self.seats.iter().filter_map(|seat| seat.running.as_ref()) {
                eprintln!("{:?} {:?}", running.node.failure(), running.node.status());
            }
        }
        outcome
    }

    /// Commits `keys` in one transaction, each with itself as the value.
    pub(crate) fn put_all(&self, number: usize, keys: &[&str], durability: Durability) -> Vlsn {
        let bodies: Vec<_> = keys.iter().map(|key| put_body(key, key.as_bytes())).collect();
        let entries = transaction(&bodies);
        self.await_elected(number);
        self.node(number).commit(&entries, durability).expect("committed").vlsn()
    }

    // ---- waiting

    /// Waits until node `number` is master if that is what it was started for; only once, for what
    /// becomes of it later is the test's matter.
    pub(crate) fn await_elected(&self, number: usize) {
        let running = self.seats[number].running.as_ref().expect("running");
        if running.is_awaited.swap(false, Ordering::Relaxed) {
            let elected = running.node.wait_role(Role::Master, SOON);
            assert!(elected, "n{} is no master: {:#?}", number + 1, self.status(number));
        }
    }

    /// Waits until replica `number` has synced up since it was started, holds the log of the master
    /// and has applied all of it. At once for the master itself.
    pub(crate) fn await_fed(&self, number: usize) {
        for seat in 0..self.seats.len() {
            if self.seats[seat].running.is_some() {
                self.await_elected(seat);
            }
        }
        if self.node(number).role() != Role::Master {
            eventually("it syncs up", || self.status(number).last_syncup.is_some());
        }
        let master = (0..self.seats.len())
            .find(|n| {
                let running = self.seats[*n].running.as_ref();
                running.is_some_and(|running| running.node.role() == Role::Master)
            })
            .expect("a master");
        let last = self.last(master);
        self.await_applied(number, last);
    }

    pub(crate) fn await_applied(&self, number: usize, vlsn: Vlsn) {
        let reached = self.node(number).wait_applied(vlsn, SOON).expect("it applies");
        assert!(
            reached,
            "n{} has applied {} of {vlsn}: {:?}",
            number + 1,
            self.node(number).applied(),
            self.status(number)
        );
    }

    /// Waits until so many replicas stream from master `number`.
    pub(crate) fn await_streams(&self, number: usize, count: usize) {
        self.await_elected(number);
        eventually("the replicas stream", || {
            let status = self.status(number);
            let streams = status.replicas.iter().filter(|r| !r.acked.received.is_null());
            streams.count() == count
        });
    }

    // ---- comparing

    /// Asserts that the logs of the nodes are the same bytes, from the first segment's header
    /// through the last entry.
    pub(crate) fn assert_logs_equal(&self, numbers: &[usize]) {
        for seat in numbers.iter().map(|number| &self.seats[*number]) {
            if let Some(running) = &seat.running {
                running.node.log().sync_now().expect("synced");
            }
        }
        let first = log_bytes(&self.env(numbers[0]), self.dir(numbers[0]));
        for number in &numbers[1..] {
            let other = log_bytes(&self.env(*number), self.dir(*number));
            assert_eq!(first.len(), other.len(), "segments of n{}", number + 1);
            for ((segment, ours), (_, theirs)) in first.iter().zip(&other) {
                assert!(ours == theirs, "segment {segment} differs at n{}", number + 1);
            }
        }
    }

    /// The keys in a node's lost-entries files.
    pub(crate) fn lost_keys(&self, number: usize) -> Vec<String> {
        let env = self.env(number);
        let mut keys = Vec::new();
        for file in LostEntries::list(&*env, self.dir(number)).expect("listed") {
            let lost = LostEntries::read(&*env, self.dir(number), &file).expect("readable");
            let puts = lost.entries().filter(|entry| entry.header.kind == PUT);
            keys.extend(puts.map(|entry| parse_put(entry.body).0));
        }
        keys
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for seat in &mut self.seats {
            // A frozen peer must not hold up the end of a test that has failed.
            seat.door.set_silent(false);
            seat.door.lead_to(None);
            seat.side_door.lead_to(None);
            if let SeatDisk::Stuck(disk) = &seat.disk {
                disk.set_stuck(false);
            }
        }
    }
}

/// Opens a node with a [`StateMap`].
pub(crate) fn open_node(env: Arc<dyn Env>, config: NodeConfig) -> Result<(Node, Arc<StateMap>)> {
    let mut opened = None;
    let node = Node::open(env, config, |context| {
        let map = Arc::new(StateMap::open(context));
        opened = Some(Arc::clone(&map));
        Ok(map)
    })?;
    Ok((node, opened.expect("the node opens its state machine")))
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(crate) fn v(sequence: i64) -> Vlsn {
    Vlsn::new(sequence)
}

/// The entries of one transaction.
pub(crate) fn transaction(bodies: &[Vec<u8>]) -> Vec<NewEntry<'_>> {
    let last = bodies.len() - 1;
    bodies.iter().enumerate().map(|(n, body)| put_entry(body, n == last)).collect()
}

/// Keys of all puts in a log.
pub(crate) fn keys_in(log: &Log) -> Vec<String> {
    let mut keys = Vec::new();
    let mut from = log.positions().anchor.vlsn.next();
    while let Some(run) = log.read(from, 1 << 20).expect("readable") {
        let puts = run.entries().filter(|entry| entry.header.kind == PUT);
        keys.extend(puts.map(|entry| parse_put(entry.body).0));
        from = run.last.next();
    }
    keys
}

/// The segments of a node, each through its last entry.
pub(crate) fn log_bytes(env: &Arc<dyn Env>, dir: &Path) -> Vec<(String, Vec<u8>)> {
    let dir = dir.join("log");
    let mut names = env.list(&dir).expect("listed");
    names.retain(|name| noxu_log::segment::name::parse_segment_name(name).is_some());
    let read = |name: String| {
        let mut bytes = read_whole(&**env, &dir.join(&name)).expect("readable");
        // Zeros written ahead of the entries.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        bytes.truncate(end);
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// The identity of a group whose nodes are made by hand.
pub(crate) fn identity(options: &Options) -> GroupIdentity {
    GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: name(options.group),
        segment_bytes: options.segment_bytes,
    }
}

/// A node's directory made by hand, to be opened by a rig's node later: a log of the rig's group
/// that `fill` appends to.
pub(crate) fn prepare(rig: &Rig, number: usize, term: u32, fill: impl FnOnce(&Log)) {
    let (log, _) = Log::open(rig.env(number), rig.dir(number), rig.options.log.clone()).unwrap();
    log.found(identity(&rig.options)).unwrap();
    let addresses: Vec<_> = rig.seats.iter().map(|seat| seat.door.address()).collect();
    let config = electorate(&addresses).encode();
    log.control()
        .update(|control| {
            control.node = Some(rig.name(number).clone());
            control.incarnation = incarnation(number);
            control.term = Term::new(term);
            control.group_config = config.into();
        })
        .unwrap();
    fill(&log);
    log.close().unwrap();
}
