//! Support: nodes in temporary directories, a state machine that remembers what it was given.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use noxu_log::env::RealEnv;
use noxu_log::{EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_rep::core::recovery::{Agreement, Facts};
use noxu_rep::group::{Electorate, Voter, VoterKind};
use noxu_rep::net::channel::Channel;
use noxu_rep::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use noxu_rep::net::tcp::TcpChannel;
use noxu_rep::stream::syncup::{SyncupView, VlsnEntry};
use noxu_rep::stream::syncup_protocol::{SyncupOutcome, replica_syncup_handshake};
use noxu_rep::wire::handshake::{
    Capabilities, Hello, NodeKind, VersionRange, handshake_as_replica,
};
use noxu_rep::wire::message::Era;
use noxu_rep::wire::recovery::{RecoveryMsg, Verdict};
use noxu_rep::{
    Checkpoint, Durability, ElectionTiming, LogReader, MemoryCheckpoint, Node, NodeConfig,
    RepError, Result, Role, StateMachine, StreamTiming,
};
use noxu_util::{GroupId, Incarnation, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::door::Door;

/// Longest time that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Priority of the node that is to be master; the others have 0, so that they elect nobody else
/// however long they are without it.
pub(crate) const MASTER_PRIORITY: u8 = 9;

/// A master keeps writing without the others, as long as a test may take; elections are quick.
pub(crate) fn election_timing() -> ElectionTiming {
    ElectionTiming {
        quorum_timeout: PATIENCE,
        campaign_timeout: Duration::from_millis(200),
        retry: Duration::from_millis(20),
        startup_wait: Duration::from_millis(20),
        ..ElectionTiming::default()
    }
}

/// Number of the directory that is bound to the vote of a group's node `number`, from 0.
pub(crate) fn incarnation(number: usize) -> Incarnation {
    Incarnation::from_u64(1 + number as u64)
}

/// A group of voters n1, n2, ... at these addresses.
pub(crate) fn electorate(addresses: &[String]) -> Electorate {
    let voter = |(number, address): (usize, &String)| Voter {
        name: name(&format!("n{}", number + 1)),
        incarnation: incarnation(number),
        kind: VoterKind::Data,
        address: address.clone(),
    };
    Electorate { voters: addresses.iter().enumerate().map(voter).collect(), q_rep: 0, q_elect: 0 }
}

/// Kind of the entries that tests write.
pub(crate) const KIND: EntryKind = EntryKind(16);

/// A commit of one entry.
pub(crate) fn entry(body: &[u8]) -> NewEntry<'_> {
    NewEntry::new(KIND, EntryFlags::COMMIT, body)
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Polls `met`, for what nobody signals; panics with `what` if it never does.
pub(crate) fn eventually(what: &str, met: impl FnMut() -> bool) {
    eventually_or(what, met, String::new);
}

/// The same, and says what `stands` instead.
pub(crate) fn eventually_or(
    what: &str,
    mut met: impl FnMut() -> bool,
    stands: impl Fn() -> String,
) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "not in time: {what} {}", stands());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Remembers the bodies it was given, by VLSN. Forgets them when it is dropped.
#[derive(Default)]
pub(crate) struct Ledger {
    state: Mutex<LedgerState>,
}

#[derive(Default)]
struct LedgerState {
    applied: Vlsn,
    bodies: BTreeMap<Vlsn, Vec<u8>>,
    rollbacks: Vec<Vlsn>,
    /// Bodies are not kept, only counted.
    count_only: bool,
    fail_at: Option<Vlsn>,
    checkpointed: Vlsn,
}

impl Ledger {
    /// Everything that is applied counts as in a checkpoint from now on.
    pub(crate) fn take_checkpoint(&self) {
        let mut state = self.state.lock();
        state.checkpointed = state.applied;
    }

    pub(crate) fn bodies(&self) -> Vec<Vec<u8>> {
        self.state.lock().bodies.values().cloned().collect()
    }

    pub(crate) fn rollbacks(&self) -> Vec<Vlsn> {
        self.state.lock().rollbacks.clone()
    }

    pub(crate) fn fail_at(&self, vlsn: Vlsn) {
        self.state.lock().fail_at = Some(vlsn);
    }
}

impl StateMachine for Ledger {
    fn applied(&self) -> Vlsn {
        self.state.lock().applied
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        let mut state = self.state.lock();
        for entry in run.entries().filter(|entry| entry.header.vlsn <= through) {
            let vlsn = entry.header.vlsn;
            assert_eq!(vlsn, state.applied.next(), "applied out of order");
            if state.fail_at == Some(vlsn) {
                return Err(RepError::state_machine("told to fail"));
            }
            state.applied = vlsn;
            if entry.header.kind == KIND && !state.count_only {
                state.bodies.insert(vlsn, entry.body.to_vec());
            }
        }
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
        let mut state = self.state.lock();
        state.rollbacks.push(matchpoint);
        state.bodies.retain(|vlsn, _| *vlsn <= matchpoint);
        state.applied = state.applied.min(matchpoint);
        Ok(())
    }

    fn checkpointed(&self) -> Vlsn {
        self.state.lock().checkpointed
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(self.state.lock().applied)
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let state = self.state.lock();
        let mut bytes = Vec::new();
        for (vlsn, body) in &state.bodies {
            bytes.extend_from_slice(&vlsn.sequence().to_le_bytes());
            bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        Ok(Box::new(MemoryCheckpoint::new(state.applied, bytes)))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn std::io::Read) -> Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(RepError::state_machine)?;
        let mut state = self.state.lock();
        state.bodies.clear();
        let mut rest = &bytes[..];
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
            let (body, next) = tail.split_at(number(8) as usize);
            state.bodies.insert(Vlsn::new(number(0) as i64), body.to_vec());
            rest = next;
        }
        assert!(rest.is_empty(), "{} bytes left over", rest.len());
        state.applied = vlsn;
        Ok(())
    }
}

/// An open node and what it feeds.
pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) ledger: Arc<Ledger>,
    address: String,
    /// It is to be master, and nobody has seen yet that it is.
    is_awaited: AtomicBool,
}

impl Member {
    /// Where others reach it.
    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Waits until it is master if that is what it was opened for; only once, for what becomes of it
    /// later is the test's matter.
    pub(crate) fn await_elected(&self) {
        if self.is_awaited.swap(false, Ordering::Relaxed) {
            let elected = self.node.wait_role(Role::Master, PATIENCE);
            assert!(elected, "no master: {:#?}", self.node.status());
        }
    }

    pub(crate) fn commit(&self, body: &str, durability: Durability) -> Result<Vlsn> {
        self.await_elected();
        Ok(self.node.commit(&[entry(body.as_bytes())], durability)?.vlsn())
    }

    pub(crate) fn last(&self) -> Vlsn {
        self.node.log().positions().last
    }

    /// Whether both logs are the same, byte for byte, where both hold them.
    pub(crate) fn assert_same_log(&self, other: &Self) {
        assert_same_logs(&self.node.log(), &other.node.log());
    }
}

pub(crate) fn assert_same_logs(a: &Log, b: &Log) {
    let (at_a, at_b) = (a.positions(), b.positions());
    assert_eq!(at_a.last, at_b.last);
    assert_eq!(at_a.last_lsn, at_b.last_lsn);
    assert_eq!(at_a.last_fingerprint, at_b.last_fingerprint);
    assert_eq!(log_bytes(a), log_bytes(b), "the bytes differ");
}

/// All entries of a log, as they stand.
pub(crate) fn log_bytes(log: &Log) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut from = log.positions().anchor.vlsn.next();
    while let Some(run) = log.read(from, 1 << 20).unwrap() {
        run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        from = run.last.next();
    }
    bytes
}

/// Directories for the nodes of one group, founded by hand, and the doors they are reached through.
pub(crate) struct Group {
    dir: TempDir,
    members: Vec<Name>,
    doors: RefCell<BTreeMap<String, Arc<Door>>>,
}

impl Group {
    /// A group of nodes n1, n2, ...
    pub(crate) fn of(count: usize) -> Self {
        let members = (1..=count).map(|n| name(&format!("n{n}"))).collect();
        let doors = RefCell::default();
        let group = Self { dir: tempfile::tempdir().unwrap(), members, doors };
        group.found();
        group
    }

    fn found(&self) {
        let addresses: Vec<_> =
            self.members.iter().map(|node| self.door(node.as_str()).address()).collect();
        let config = electorate(&addresses).encode();
        let identity =
            GroupIdentity { id: GroupId::random(), name: name("orders"), segment_bytes: 1 << 20 };
        for (number, node) in self.members.iter().enumerate() {
            let log_config = LogConfig { prefill: false, ..LogConfig::default() };
            let env = Arc::new(RealEnv::new());
            let (log, _) = Log::open(env, &self.dir(node.as_str()), log_config).unwrap();
            log.found(identity.clone()).unwrap();
            log.control()
                .update(|control| {
                    control.node = Some(node.clone());
                    control.incarnation = incarnation(number);
                    control.group_config = config.clone().into();
                })
                .unwrap();
            log.close().unwrap();
        }
    }

    pub(crate) fn dir(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    /// Leaves nothing of a node but its name: its next directory has no vote.
    pub(crate) fn wipe(&self, node: &str) {
        std::fs::remove_dir_all(self.dir(node)).unwrap();
    }

    /// Where `node` is reached.
    pub(crate) fn door(&self, node: &str) -> Arc<Door> {
        let mut doors = self.doors.borrow_mut();
        Arc::clone(doors.entry(node.to_owned()).or_insert_with(|| Arc::new(Door::new())))
    }

    /// Another way to `node`, for those who are told.
    pub(crate) fn side_door(&self, node: &str) -> Arc<Door> {
        self.door(&format!("{node}, from the side"))
    }

    /// A configuration with short times; a replica unless changed.
    pub(crate) fn config(&self, node: &str, peers: &[String]) -> NodeConfig {
        let mut config = NodeConfig::new(name(node), self.dir(node));
        config.advertise = Some(self.door(node).address());
        config.peers = peers.to_vec();
        config.priority = 0;
        config.election = election_timing();
        config.limits.timing =
            StreamTiming { heartbeat: Duration::from_millis(50), silence: Duration::from_secs(5) };
        config.dial_timeout = Duration::from_secs(2);
        config.log = LogConfig { prefill: false, tail_bytes: 4 << 20, ..LogConfig::default() };
        config
    }

    /// As [`Group::config`], for the node that is to be master.
    pub(crate) fn master_config(&self, node: &str, peers: &[String]) -> NodeConfig {
        let mut config = self.config(node, peers);
        config.priority = MASTER_PRIORITY;
        config
    }

    pub(crate) fn open(&self, config: NodeConfig) -> Result<Member> {
        self.reopen(config, Arc::default())
    }

    /// Opens a node over a state machine that has outlived its process.
    pub(crate) fn reopen(&self, config: NodeConfig, ledger: Arc<Ledger>) -> Result<Member> {
        let (machine, env) = (Arc::clone(&ledger), Arc::new(RealEnv::new()));
        let address = config.advertise.clone().expect("a door");
        let is_awaited = AtomicBool::new(config.priority == MASTER_PRIORITY);
        let node = Node::open(env, config, |_| Ok(machine))?;
        let doors = self.doors.borrow();
        let door = doors.values().find(|door| door.address() == address).expect("a door");
        door.lead_to(Some(node.local_addr()));
        Ok(Member { node, ledger, address, is_awaited })
    }

    /// The node that is to be master, once enough others run.
    pub(crate) fn master(&self, node: &str) -> Member {
        self.open(self.master_config(node, &[])).unwrap()
    }

    pub(crate) fn replica(&self, node: &str, master: &Member) -> Member {
        self.open(self.config(node, &[master.address()])).unwrap()
    }

    /// n1 as master and the others as replicas, all connected, writes served.
    pub(crate) fn start(&self) -> Vec<Member> {
        let master = self.master("n1");
        let mut all = vec![master];
        for node in &self.members[1..] {
            all.push(self.replica(node.as_str(), &all[0]));
        }
        let replicas = self.members.len() - 1;
        all[0].await_elected();
        eventually("all replicas stream", || streaming(&all[0]) == replicas);
        all
    }

    /// `node`, elected master by the others, which are gone again.
    pub(crate) fn lone_master(&self, node: &str) -> Member {
        let master = self.master(node);
        let others = self.members.iter().filter(|other| other.as_str() != node);
        let others: Vec<_> = others.map(|other| self.replica(other.as_str(), &master)).collect();
        master.await_elected();
        eventually("the others stream", || streaming(&master) == others.len());
        assert!(master.node.wait_durable(master.last(), PATIENCE), "the term has begun");
        drop(others);
        eventually("the master is alone", || master.node.status().replicas.is_empty());
        master
    }

    /// `master` and `replica`, which reach each other and nobody else, as long as their doors lead
    /// nowhere.
    pub(crate) fn start_apart(&self, master: &str, replica: &str) -> [Member; 2] {
        let apart = |mut config: NodeConfig, node: &str| {
            self.door(node).lead_to(None);
            config.advertise = Some(self.side_door(node).address());
            self.open(config).unwrap()
        };
        let peer = |node: &str| [self.side_door(node).address()];
        [
            apart(self.master_config(master, &peer(replica)), master),
            apart(self.config(replica, &peer(master)), replica),
        ]
    }
}

/// Replicas that acknowledged something.
pub(crate) fn streaming(master: &Member) -> usize {
    let replicas = master.node.status().replicas;
    replicas.iter().filter(|r| r.acked.durable > NULL_VLSN).count()
}

/// A fresh replica that shakes hands, syncs up, and then never acknowledges anything.
pub(crate) struct MuteReplica {
    pub(crate) channel: Arc<TcpChannel>,
}

impl MuteReplica {
    pub(crate) fn connect(node: &str, bound: Incarnation, master: &Member) -> Result<Self> {
        master.await_elected();
        let channel = dial(&master.address(), FEEDER_SERVICE_NAME, PATIENCE)?;
        let welcome = handshake_as_replica(&*channel, &hello(node, bound.as_u64()))?;
        let outcome = replica_syncup_handshake(&*channel, &Nothing)?;
        assert!(matches!(outcome, SyncupOutcome::Matchpoint { .. }), "{outcome:?}");
        let receive = || match channel.receive(PATIENCE)? {
            Some(frame) => RecoveryMsg::decode(&frame),
            None => panic!("the master says nothing"),
        };
        let RecoveryMsg::AskFacts { nonce } = receive()? else { panic!("no question") };
        let facts = Facts {
            era: Era { epoch: welcome.epoch, term: welcome.term },
            incarnation: bound,
            durable: NULL_VLSN,
            known_dtvlsn: NULL_VLSN,
            agreement: Agreement::Empty,
            restore_marker: None,
        };
        channel.send(&RecoveryMsg::Facts { nonce, facts }.encode())?;
        let verdict = receive()?;
        let streams = matches!(verdict, RecoveryMsg::Verdict(Verdict::Stream { .. }));
        assert!(streams, "{verdict:?}");
        Ok(Self { channel })
    }
}

pub(crate) fn hello(node: &str, incarnation: u64) -> Hello {
    Hello {
        versions: VersionRange::SPOKEN,
        group: None,
        group_name: None,
        node: name(node),
        address: String::new(),
        incarnation: Incarnation::from_u64(incarnation),
        kind: NodeKind::Electable,
        log_format: 1,
        segment_bytes: None,
        term: Term::ZERO,
        capabilities: Capabilities::OURS,
        wall_clock_ms: 0,
        epoch: 0,
        priority: 0,
        full: false,
        uncertain: false,
    }
}

/// The view of a log that holds nothing.
pub(crate) struct Nothing;

impl SyncupView for Nothing {
    fn last_sync(&self) -> Vlsn {
        NULL_VLSN
    }

    fn last_txn_end(&self) -> Vlsn {
        NULL_VLSN
    }

    fn first_vlsn(&self) -> Vlsn {
        NULL_VLSN
    }

    fn entry(&self, _: Vlsn) -> Option<VlsnEntry> {
        None
    }
}
