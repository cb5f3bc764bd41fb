//! Support: nodes in temporary directories, a state machine that remembers what it was given.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_log::env::{Env, RealEnv};
use noxu_log::{EntryFlags, EntryKind, EntryRun, Log, LogConfig, NewEntry};
use noxu_rep::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use noxu_rep::net::tcp::TcpChannel;
use noxu_rep::stream::syncup::{SyncupView, VlsnEntry};
use noxu_rep::stream::syncup_protocol::{SyncupOutcome, replica_syncup_handshake};
use noxu_rep::wire::handshake::{
    Capabilities, Hello, NodeKind, VersionRange, handshake_as_replica,
};
use noxu_rep::{
    Checkpoint, Durability, GroupChoice, LogReader, Node, NodeConfig, RepError, Result, RoleConfig,
    StateMachine, StreamTiming,
};
use noxu_util::{Incarnation, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Longest time that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

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
pub(crate) fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "not in time: {what}");
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
}

impl Ledger {
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
        Ok(Box::new(LedgerCheckpoint { vlsn: state.applied, bytes: bytes.into() }))
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

struct LedgerCheckpoint {
    vlsn: Vlsn,
    bytes: VecDeque<u8>,
}

impl Checkpoint for LedgerCheckpoint {
    fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        let count = max.min(self.bytes.len());
        buf.extend(self.bytes.drain(..count));
        Ok(!self.bytes.is_empty())
    }
}

/// An open node and what it feeds.
pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) ledger: Arc<Ledger>,
}

impl Member {
    pub(crate) fn address(&self) -> String {
        self.node.local_addr().to_string()
    }

    pub(crate) fn commit(&self, body: &str, durability: Durability) -> Result<Vlsn> {
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

/// Directories for the nodes of one group.
pub(crate) struct Group {
    dir: TempDir,
    members: Vec<Name>,
}

impl Group {
    /// A group of nodes n1, n2, ...
    pub(crate) fn of(count: usize) -> Self {
        let members = (1..=count).map(|n| name(&format!("n{n}"))).collect();
        Self { dir: tempfile::tempdir().unwrap(), members }
    }

    pub(crate) fn dir(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    /// A configuration with short times; a replica unless changed.
    pub(crate) fn config(&self, node: &str, peers: &[String]) -> NodeConfig {
        let mut config = NodeConfig::new(name(node), self.dir(node));
        config.peers = peers.to_vec();
        config.limits.timing =
            StreamTiming { heartbeat: Duration::from_millis(50), silence: Duration::from_secs(5) };
        config.dial_timeout = Duration::from_secs(2);
        config.log = LogConfig { prefill: false, tail_bytes: 4 << 20, ..LogConfig::default() };
        config
    }

    /// As [`Group::config`], for the master of `term`, which founds the group if need be.
    pub(crate) fn master_config(&self, node: &str, term: u32, peers: &[String]) -> NodeConfig {
        let mut config = self.config(node, peers);
        config.role = RoleConfig::Master { term: Term::new(term) };
        config.group = GroupChoice::Create {
            name: name("orders"),
            members: self.members.clone(),
            segment_bytes: 1 << 20,
        };
        config
    }

    pub(crate) fn master(&self, node: &str, term: u32) -> Member {
        open(self.master_config(node, term, &[])).unwrap()
    }

    pub(crate) fn replica(&self, node: &str, master: &Member) -> Member {
        open(self.config(node, &[master.address()])).unwrap()
    }

    /// n1 as master of term 1 and the others as replicas, all connected, writes served.
    pub(crate) fn start(&self) -> Vec<Member> {
        let master = self.master("n1", 1);
        let mut all = vec![master];
        for node in &self.members[1..] {
            all.push(self.replica(node.as_str(), &all[0]));
        }
        let replicas = self.members.len() - 1;
        eventually("all replicas stream", || streaming(&all[0]) == replicas);
        all
    }
}

/// Replicas that acknowledged something.
pub(crate) fn streaming(master: &Member) -> usize {
    let replicas = master.node.status().replicas;
    replicas.iter().filter(|r| r.acked.durable > NULL_VLSN).count()
}

pub(crate) fn open(config: NodeConfig) -> Result<Member> {
    open_with(Arc::new(RealEnv::new()), config)
}

pub(crate) fn open_with(env: Arc<dyn Env>, config: NodeConfig) -> Result<Member> {
    reopen_with(env, config, Arc::default())
}

/// Opens a node over a state machine that has outlived its process.
pub(crate) fn reopen(config: NodeConfig, ledger: Arc<Ledger>) -> Result<Member> {
    reopen_with(Arc::new(RealEnv::new()), config, ledger)
}

fn reopen_with(env: Arc<dyn Env>, config: NodeConfig, ledger: Arc<Ledger>) -> Result<Member> {
    let machine = Arc::clone(&ledger);
    let node = Node::open(env, config, |_| Ok(machine))?;
    Ok(Member { node, ledger })
}

/// A fresh replica that shakes hands, syncs up, and then never acknowledges anything.
pub(crate) struct MuteReplica {
    pub(crate) channel: Arc<TcpChannel>,
}

impl MuteReplica {
    pub(crate) fn connect(node: &str, incarnation: u64, master: &Member) -> Result<Self> {
        let channel = dial(&master.address(), FEEDER_SERVICE_NAME, PATIENCE)?;
        handshake_as_replica(&*channel, &hello(node, incarnation))?;
        let outcome = replica_syncup_handshake(&*channel, &Nothing)?;
        assert!(matches!(outcome, SyncupOutcome::Matchpoint { .. }), "{outcome:?}");
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
