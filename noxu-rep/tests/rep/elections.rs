//! Elections: a group founds itself, chooses its master, and chooses another when that one is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use noxu_log::LogConfig;
use noxu_log::env::{Env, FaultEnv, RealEnv};
use noxu_rep::{
    CommitOutcome, Durability, ElectionTiming, GroupChoice, Node, NodeConfig, NodeKind, RepError,
    Role, StateChange, StreamTiming, Undecided,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::support::{Ledger, entry, eventually, eventually_or, name};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// An address that stays free while a node is down: below the ports that the system gives to connections, and
/// given to nobody else in this process.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PORTS: std::ops::Range<u16> = 10_000..30_000;
    // Other processes begin elsewhere.
    let begin = PORTS.start + (std::process::id() % 20_000) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        let port = PORTS.start + (begin - PORTS.start + step) % (PORTS.end - PORTS.start);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return format!("127.0.0.1:{port}");
        }
    }
}

/// A group of nodes n1, n2, ... that find each other by the address of n1.
pub(crate) struct Group {
    dir: TempDir,
    pub(crate) addresses: Vec<String>,
    nodes: Vec<Option<(Node, Arc<Ledger>)>>,
    /// The first of them, which found the group; the others are secondaries.
    voters: usize,
    pub(crate) timing: ElectionTiming,
    pub(crate) segment_bytes: u32,
    /// What is read in memory of each log.
    pub(crate) tail_bytes: usize,
    /// What the listeners of the nodes were told.
    told: Vec<Arc<Mutex<Vec<StateChange>>>>,
    /// The listeners panic after each.
    panicking: bool,
}

impl Group {
    pub(crate) fn of(count: usize) -> Self {
        // Fixed, so that a node that comes back is found where it was.
        let addresses = (0..count).map(|_| free_address()).collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            addresses,
            nodes: (0..count).map(|_| None).collect(),
            voters: count,
            timing: ElectionTiming::default(),
            segment_bytes: 1 << 20,
            tail_bytes: 4 << 20,
            told: (0..count).map(|_| Arc::default()).collect(),
            panicking: false,
        }
    }

    /// So many voters, and behind them a node without a vote.
    pub(crate) fn with_secondary(voters: usize) -> Self {
        Self { voters, ..Self::of(voters + 1) }
    }

    pub(crate) fn founded(count: usize) -> Self {
        let mut group = Self::of(count);
        (0..count).for_each(|n| group.start(n));
        group.await_master();
        group
    }

    pub(crate) fn config(&self, n: usize) -> NodeConfig {
        let node = format!("n{}", n + 1);
        let mut config = NodeConfig::new(name(&node), self.dir.path().join(&node));
        config.listen.clone_from(&self.addresses[n]);
        config.peers = vec![self.addresses[0].clone()];
        let members = (1..=self.voters).map(|n| name(&format!("n{n}"))).collect();
        if n == 0 {
            config.group = GroupChoice::Create {
                name: name("orders"),
                members,
                segment_bytes: self.segment_bytes,
                q_rep: 0,
                q_elect: 0,
            };
        }
        if n >= self.voters {
            config.kind = NodeKind::Secondary;
            config.peers = self.addresses[..self.voters].to_vec();
        }
        config.election = self.timing;
        let (told, panicking) = (Arc::clone(&self.told[n]), self.panicking);
        config.on_state = Some(Arc::new(move |change| {
            told.lock().push(change.clone());
            assert!(!panicking, "told to panic");
        }));
        config.limits.timing =
            StreamTiming { heartbeat: Duration::from_millis(50), silence: Duration::from_secs(5) };
        config.log =
            LogConfig { prefill: false, tail_bytes: self.tail_bytes, ..LogConfig::default() };
        config
    }

    pub(crate) fn start(&mut self, n: usize) {
        self.open(n, self.config(n), Arc::default());
    }

    /// Starts a node over a state machine that has outlived its last life.
    pub(crate) fn start_over(&mut self, n: usize, machine: Arc<Ledger>) {
        self.open(n, self.config(n), machine);
    }

    /// Starts a node whose directory is fresh though its group is founded.
    pub(crate) fn start_joining(&mut self, n: usize) {
        self.open(n, self.joining_config(n), Arc::default());
    }

    pub(crate) fn joining_config(&self, n: usize) -> NodeConfig {
        let mut config = self.config(n);
        config.group = GroupChoice::Join { name: Some(name("orders")) };
        config.peers.clone_from(&self.addresses);
        config
    }

    fn open(&mut self, n: usize, config: NodeConfig, ledger: Arc<Ledger>) {
        self.open_on(Arc::new(RealEnv::new()), n, config, ledger);
    }

    /// Starts a node whose disk is `disk`, and which is no master while there is another one.
    pub(crate) fn start_on(&mut self, disk: &FaultEnv, n: usize) {
        let config = NodeConfig { priority: 0, ..self.config(n) };
        self.open_on(Arc::new(disk.clone()), n, config, Arc::default());
    }

    fn open_on(&mut self, env: Arc<dyn Env>, n: usize, config: NodeConfig, ledger: Arc<Ledger>) {
        let machine = Arc::clone(&ledger);
        let node = Node::open(env, config, |_| Ok(machine)).unwrap();
        self.nodes[n] = Some((node, ledger));
    }

    pub(crate) fn stop(&mut self, n: usize) {
        let (node, _) = self.nodes[n].take().expect("it runs");
        node.shutdown().unwrap();
    }

    /// What node `n` has told, in its lives.
    pub(crate) fn changes(&self, n: usize) -> Vec<StateChange> {
        self.told[n].lock().clone()
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Node)> {
        let running = self.nodes.iter().enumerate();
        running.filter_map(|(n, node)| node.as_ref().map(|(node, _)| (n, node)))
    }

    pub(crate) fn node(&self, n: usize) -> &Node {
        &self.nodes[n].as_ref().expect("it runs").0
    }

    pub(crate) fn ledger(&self, n: usize) -> &Arc<Ledger> {
        &self.nodes[n].as_ref().expect("it runs").1
    }

    /// The others stop: whoever is left is alone.
    pub(crate) fn leave_alone(&mut self, left: usize) {
        (0..self.nodes.len()).filter(|n| *n != left).for_each(|n| self.stop(n));
        eventually("it is alone", || self.node(left).status().replicas.is_empty());
    }

    fn master(&self) -> Option<usize> {
        self.running().find(|(_, node)| node.role() == Role::Master).map(|(n, _)| n)
    }

    #[track_caller]
    pub(crate) fn await_master(&self) -> usize {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(master) = self.master() {
                return master;
            }
            if Instant::now() > deadline {
                for (_, node) in self.running() {
                    eprintln!("{:#?}", node.status());
                }
                panic!("no master");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Commits on whoever is master, until somebody takes it.
    pub(crate) fn commit(&self, body: &str) -> usize {
        let deadline = Instant::now() + SOON;
        loop {
            let master = self.await_master();
            match self.node(master).commit(&[entry(body.as_bytes())], Durability::MAJORITY) {
                Ok(_) => return master,
                Err(cause) => assert!(Instant::now() < deadline, "{cause}"),
            }
        }
    }

    pub(crate) fn await_everywhere(&self, body: &str) {
        for (n, _) in self.running() {
            let has = || self.ledger(n).bodies().contains(&body.as_bytes().to_vec());
            eventually_or("it is everywhere", has, || {
                let nodes = self.running().map(|(_, node)| node.status());
                format!("on n{}: {body:?}, {:#?}", n + 1, nodes.collect::<Vec<_>>())
            });
        }
    }
}

#[test]
fn a_group_of_one_founds_itself_and_writes() {
    let group = Group::founded(1);
    group.commit("x");
    assert!(group.node(0).status().is_voter);
}

#[test]
fn groups_of_three_and_five_found_themselves_when_every_member_has_come() {
    for count in [3, 5] {
        let mut group = Group::of(count);
        for n in 0..count - 1 {
            group.start(n);
        }
        assert!(!group.node(0).wait_role(Role::Master, Duration::from_millis(200)));
        assert!(group.node(0).status().members.is_empty(), "nothing is founded yet");
        group.start(count - 1);
        group.commit("x");
        group.await_everywhere("x");
        for (n, node) in group.running() {
            assert!(node.status().is_voter, "n{}", n + 1);
            assert_eq!(node.status().members.len(), count);
        }
    }
}

#[test]
fn when_the_master_closes_another_takes_over_at_once_and_the_old_one_comes_back_as_a_replica() {
    let mut group = Group::founded(3);
    for round in 0..4 {
        let master = group.commit(&format!("before {round}"));
        group.await_everywhere(&format!("before {round}"));
        let begun = Instant::now();
        group.stop(master);
        let stopped = begun.elapsed();
        let next = group.commit(&format!("after {round}"));
        eprintln!("round {round}: stopped in {stopped:?}, writes after {:?}", begun.elapsed());
        assert_ne!(next, master);
        group.start(master);
        group.await_everywhere(&format!("after {round}"));
    }
}

#[test]
fn a_write_elsewhere_names_the_master() {
    let group = Group::founded(3);
    let master = group.commit("x");
    group.await_everywhere("x");
    for (n, node) in group.running().filter(|(n, _)| *n != master) {
        let refused = node.commit(&[entry(b"y")], Durability::LOCAL).unwrap_err();
        let RepError::NotMaster { master: Some(address) } = refused else { panic!("{refused}") };
        assert_eq!(address, group.addresses[master], "n{} says so", n + 1);
    }
}

#[test]
fn a_master_that_is_left_alone_steps_down_and_says_so_in_order() {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = Duration::from_millis(300);
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("x");
    group.await_everywhere("x");
    group.leave_alone(master);
    let alone = group.node(master);
    assert!(alone.wait_role(Role::Unknown, SOON), "{:?}", alone.status());
    let refused = alone.commit(&[entry(b"y")], Durability::LOCAL).unwrap_err();
    assert!(matches!(refused, RepError::NotMaster { master: None }), "{refused}");
    let told = |role| {
        let changes = group.changes(master);
        changes.iter().rposition(|change| change.role == role)
    };
    eventually("the listener hears of it", || told(Role::Master) < told(Role::Unknown));
    let changes = group.changes(master);
    let terms: Vec<_> = changes.iter().map(|change| change.term).collect();
    assert!(terms.is_sorted(), "{changes:?}");
    // It is as good as new when somebody comes.
    group.start((master + 1) % 3);
    group.commit("z");
}

#[test]
fn a_listener_that_panics_hears_of_the_next_change_too() {
    let mut group = Group::of(3);
    group.panicking = true;
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("x");
    group.stop(master);
    let next = group.commit("y");
    let masters = |n: usize| {
        let changes = group.changes(n);
        changes.iter().filter(|change| change.role == Role::Master).count()
    };
    assert_eq!((masters(master), masters(next)), (1, 1));
}

#[test]
fn any_node_tells_what_became_of_a_commit() {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = SOON;
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("first");
    let kept = group.node(master).commit(&[entry(b"kept")], Durability::ALL).unwrap().id();
    group.await_everywhere("kept");
    for (_, node) in group.running() {
        assert_eq!(node.outcome(&kept, SOON).unwrap(), CommitOutcome::Durable);
    }
    group.leave_alone(master);
    let alone = group.node(master);
    let lost = alone.commit(&[entry(b"lost")], Durability::LOCAL).unwrap().id();
    assert_eq!(alone.outcome(&lost, Duration::ZERO).unwrap(), CommitOutcome::Open);
    group.stop(master);
    (0..3).filter(|n| *n != master).for_each(|n| group.start(n));
    group.commit("after");
    for (_, node) in group.running() {
        assert_eq!(node.outcome(&lost, SOON).unwrap(), CommitOutcome::RolledBack);
        assert_eq!(node.outcome(&kept, SOON).unwrap(), CommitOutcome::Durable);
    }
    group.start(master);
    group.await_everywhere("after");
    assert_eq!(group.node(master).outcome(&lost, SOON).unwrap(), CommitOutcome::RolledBack);
    assert_eq!(group.node(master).status().last_rollback.unwrap().entries, 1);
}

#[test]
fn a_commit_under_way_when_its_master_is_deposed_is_reported_as_undecided() {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = Duration::from_secs(3);
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("x");
    group.await_everywhere("x");
    // Admitted while the others are there, written when they are not.
    let admission = group.node(master).admit(Durability::MAJORITY).unwrap();
    group.leave_alone(master);
    let submitted = admission.write(&[entry(b"y")]).unwrap();
    submitted.start();
    let told = submitted.wait().unwrap_err();
    let RepError::OutcomeUnknown { commit, why } = told else { panic!("{told}") };
    assert_eq!(commit, submitted.id());
    assert!(matches!(why, Undecided::MastershipEnded(_)), "{why}");
    assert!(matches!(submitted.poll(), Some(Err(RepError::OutcomeUnknown { .. }))));
    // The entry is in the longest log: whoever is elected with it makes it durable.
    group.start((master + 1) % 3);
    group.commit("z");
    let outcome = group.node(master).outcome(&commit, SOON).unwrap();
    assert_eq!(outcome, CommitOutcome::Durable);
}
