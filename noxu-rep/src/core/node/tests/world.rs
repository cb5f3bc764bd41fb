//! World: some node cores, a network that delays, loses and repeats, disks that keep what was
//! persisted, and a log reduced to terms and fingerprints. One seed makes one world.
//!
//! What is checked, at each step and never by asking the cores:
//! - a term has one master, once;
//! - a vote is on disk before it leaves, and a node gives one vote in a term, in all its lives;
//! - the term of what a node sends never falls;
//! - whoever is elected has all that was reported durable in earlier terms, damaged entries counted;
//! - what was reported durable is never cut off, and never replaced;
//! - when everything is healed, a master is elected and its term becomes durable in bounded time.
//!
//! Streams are reduced to their outcome: a copy of the master's log in one message.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;

use noxu_util::{Fingerprint, GroupId, Incarnation, NULL_VLSN};

use super::*;
use crate::core::repair::{Damage, RepairStep, RepairView, answer};
use crate::wire::election::{Mark, RepairVerdict};

pub(super) fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

pub(super) const TIMING: ElectionTiming = ElectionTiming {
    heartbeat: Duration::from_millis(20),
    failure_timeout: Duration::from_millis(150),
    quorum_timeout: Duration::from_millis(300),
    campaign_timeout: Duration::from_millis(40),
    retry: Duration::from_millis(10),
    retry_most: Duration::from_millis(160),
    priority_step: Duration::from_millis(10),
    repair_retry: Duration::from_millis(30),
    repair_patience: Duration::from_millis(400),
    startup_wait: Duration::from_millis(10),
    disk_stall: Duration::from_secs(10),
    standing_pause: Duration::from_millis(10),
};

/// What a world has met; a test that never met something proves nothing about it.
#[derive(Debug, Clone, Default)]
pub(super) struct Coverage {
    pub(super) elections: u64,
    pub(super) reported: u64,
    pub(super) crashes: u64,
    pub(super) crashes_in_persist: u64,
    pub(super) lossy_crashes: u64,
    pub(super) partitions: u64,
    pub(super) cuts: u64,
    pub(super) damages: u64,
    pub(super) splices: u64,
    pub(super) truncations: u64,
    pub(super) cleared: u64,
    pub(super) yields: u64,
    pub(super) flagged_grants: u64,
    pub(super) refusals: BTreeSet<Refusal>,
}

impl Coverage {
    pub(super) fn add(&mut self, other: &Self) {
        self.elections += other.elections;
        self.reported += other.reported;
        self.crashes += other.crashes;
        self.crashes_in_persist += other.crashes_in_persist;
        self.lossy_crashes += other.lossy_crashes;
        self.partitions += other.partitions;
        self.cuts += other.cuts;
        self.damages += other.damages;
        self.splices += other.splices;
        self.truncations += other.truncations;
        self.cleared += other.cleared;
        self.yields += other.yields;
        self.flagged_grants += other.flagged_grants;
        self.refusals.extend(&other.refusals);
    }

    /// Every fault and every answer was met.
    pub(super) fn check_all_met(&self) {
        for (what, met) in [
            ("elections", self.elections),
            ("reported", self.reported),
            ("crashes", self.crashes),
            ("crashes in persist", self.crashes_in_persist),
            ("lossy crashes", self.lossy_crashes),
            ("partitions", self.partitions),
            ("cuts", self.cuts),
            ("damages", self.damages),
            ("splices", self.splices),
            ("truncations", self.truncations),
            ("flags cleared", self.cleared),
            ("yields", self.yields),
            ("flagged grants", self.flagged_grants),
        ] {
            assert!(met > 0, "no world met {what}: {self:?}");
        }
        for refusal in [
            Refusal::Sitting,
            Refusal::HigherTerm,
            Refusal::Voted,
            Refusal::HeardMaster,
            Refusal::Rival,
            Refusal::BetterHead,
        ] {
            assert!(self.refusals.contains(&refusal), "nobody refused for {refusal:?}");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    term: Term,
    fingerprint: Fingerprint,
}

/// What survives a crash.
#[derive(Debug, Clone)]
struct Disk {
    ballot: Ballot,
    uncertain: bool,
    membership: Membership,
    /// VLSN n is at n - 1. All of it while the node runs.
    entries: Vec<Entry>,
    /// How many of them are synced.
    synced: usize,
    damaged: BTreeSet<usize>,
    floor: usize,
}

impl Disk {
    fn mark(&self, vlsn: usize) -> Mark {
        match vlsn.checked_sub(1) {
            None => Mark::default(),
            Some(at) => {
                Mark { term: self.entries[at].term, fingerprint: self.entries[at].fingerprint }
            }
        }
    }

    fn end(&self) -> LogEnd {
        let Mark { term, fingerprint } = self.mark(self.entries.len());
        LogEnd { term, vlsn: vlsn(self.entries.len()), fingerprint }
    }

    fn cut(&mut self, to: usize) {
        self.entries.truncate(to);
        self.synced = self.synced.min(to);
        self.damaged.retain(|at| *at <= to);
    }

    /// Runs of damaged entries, of at most two.
    fn damages(&self) -> Vec<Damage> {
        let mut runs: Vec<Damage> = Vec::new();
        for &at in &self.damaged {
            match runs.last_mut() {
                Some(run) if run.last.next() == vlsn(at) => {
                    run.last = vlsn(at);
                    run.after = self.mark(at);
                }
                Some(_) | None => runs.push(Damage {
                    first: vlsn(at),
                    last: vlsn(at),
                    before: self.mark(at - 1),
                    after: self.mark(at),
                }),
            }
        }
        runs
    }

    /// What may be acknowledged.
    fn sound(&self) -> usize {
        self.damaged.first().map_or(self.synced, |first| self.synced.min(first - 1))
    }
}

impl RepairView for Disk {
    fn is_uncertain(&self) -> bool {
        self.uncertain
    }
    fn is_installing(&self) -> bool {
        false
    }
    fn anchor(&self) -> Vlsn {
        NULL_VLSN
    }
    fn last(&self) -> Vlsn {
        vlsn(self.entries.len())
    }
    fn mark(&self, vlsn: Vlsn) -> Option<Mark> {
        let at = count(vlsn);
        (!self.damaged.contains(&at)).then(|| Disk::mark(self, at))
    }
    fn is_damaged(&self, first: Vlsn, last: Vlsn) -> bool {
        self.damaged.range(count(first)..=count(last)).next().is_some()
    }
}

/// A running node.
#[derive(Debug)]
struct Process {
    core: NodeCore,
    /// No acknowledgement of a term below it leaves.
    fence: Term,
    stream: Option<Stream>,
    lead: Option<Lead>,
    attempt: u64,
    wake: Option<Now>,
}

#[derive(Debug)]
struct Stream {
    master: usize,
    term: Term,
    attempt: u64,
    heard: Now,
    /// Received and verified on this stream; `None` before the logs were compared.
    verified: Option<usize>,
    acked: usize,
    asked: Option<(u64, LogEnd)>,
}

#[derive(Debug)]
struct Lead {
    term: Term,
    term_entry: usize,
    dtvlsn: usize,
    replicas: BTreeMap<usize, Replica>,
}

#[derive(Debug, Clone, Copy)]
struct Replica {
    attempt: u64,
    heard: Now,
    durable: usize,
}

#[derive(Debug, Clone)]
enum Packet {
    Election(ElectionMsg),
    Link(PeerCard),
    Hello { term: Term, attempt: u64 },
    Welcome { term: Term, attempt: u64 },
    Copy { term: Term, attempt: u64, entries: Rc<[Entry]>, dtvlsn: usize },
    Ack { term: Term, attempt: u64, durable: usize },
    HeadAsk { term: Term, nonce: u64 },
    HeadAnswer { term: Term, nonce: u64, head: LogEnd },
}

#[derive(Debug, Clone)]
enum Event {
    /// With the lives of both ends when it was sent.
    Deliver {
        from: usize,
        to: usize,
        packet: Packet,
        lives: (u64, u64),
    },
    Wake {
        node: usize,
        life: u64,
    },
    Sync {
        node: usize,
        life: u64,
    },
    Beat {
        node: usize,
        life: u64,
    },
    Feed {
        node: usize,
        life: u64,
        input: Input,
    },
    Start {
        node: usize,
    },
    Write,
    Fault,
    Heal,
}

struct Queued {
    at: Now,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How bad a world is.
#[derive(Debug, Clone, Copy)]
struct Plan {
    n: usize,
    q_rep: u8,
    q_elect: u8,
    loss: f32,
    repeat: f32,
    /// Of messages that take far longer than a campaign.
    late: f32,
    crash_in_persist: f32,
    damages: bool,
    lossy: bool,
    until: Now,
}

pub(super) struct World {
    now: Now,
    rng: fastrand::Rng,
    queue: BinaryHeap<Reverse<Queued>>,
    number: u64,
    plan: Plan,
    names: Vec<Name>,
    priorities: Vec<u8>,
    disks: Vec<Disk>,
    lives: Vec<u64>,
    processes: Vec<Option<Process>>,
    blocked: BTreeSet<(usize, usize)>,
    healed: bool,
    /// What was reported durable,
    ledger: Vec<Entry>,
    /// and through which entry in which term, oldest term first.
    reported: BTreeMap<Term, usize>,
    masters: BTreeMap<Term, usize>,
    votes: BTreeMap<(usize, Term), Name>,
    sent_terms: Vec<Term>,
    written: u64,
    pub(super) coverage: Coverage,
    pub(super) trace: Vec<String>,
}

type Step = Result<(), String>;

fn vlsn(count: usize) -> Vlsn {
    Vlsn::new(count as i64)
}

fn count(vlsn: Vlsn) -> usize {
    vlsn.sequence() as usize
}

pub(super) fn electorate(n: usize, q_rep: u8, q_elect: u8) -> Electorate {
    let voter = |at: usize| Voter {
        name: format!("n{}", at + 1).parse().unwrap(),
        incarnation: Incarnation::from_u64(at as u64 + 1),
        kind: VoterKind::Data,
        address: format!("n{}:1", at + 1),
    };
    Electorate { voters: (0..n).map(voter).collect(), q_rep, q_elect }
}

pub(super) fn membership(n: usize, q_rep: u8, q_elect: u8) -> Membership {
    let group = GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: "g".parse().unwrap(),
        segment_bytes: 4096,
    };
    Membership { group, electorate: electorate(n, q_rep, q_elect) }
}

pub(super) fn setup(at: usize, priority: u8, seed: u64) -> NodeSetup {
    let voter = electorate(at + 1, 0, 0).voters.pop().unwrap();
    NodeSetup {
        me: Peer { name: voter.name, incarnation: voter.incarnation },
        address: voter.address,
        kind: NodeKind::Electable,
        priority,
        timing: TIMING,
        seed,
        group_name: None,
        founding: None,
        max_repair_bytes: 1 << 20,
    }
}

/// How long a healed world may take to have a master.
const HEALED_WITHIN: Duration = Duration::from_secs(6);

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let n = [1, 2, 2, 3, 3, 3, 3, 4, 5, 5][rng.usize(..10)];
        let sizes: Vec<(usize, usize)> = (1..=n)
            .flat_map(|rep| (1..=n).map(move |elect| (rep, elect)))
            .filter(|(rep, elect)| Quorums::check(n, *rep, *elect).is_ok())
            .collect();
        let (rep, elect) = if rng.u8(..5) == 0 { sizes[rng.usize(..sizes.len())] } else { (0, 0) };
        let some = |rng: &mut fastrand::Rng, most: f32| {
            if rng.bool() { rng.f32() * most } else { 0.0 }
        };
        let plan = Plan {
            n,
            q_rep: rep as u8,
            q_elect: elect as u8,
            loss: some(&mut rng, 0.2),
            repeat: some(&mut rng, 0.2),
            late: some(&mut rng, 0.3),
            crash_in_persist: some(&mut rng, 0.1),
            damages: rng.bool(),
            lossy: rng.bool(),
            until: ms(rng.u64(300..900)),
        };
        let membership = membership(n, plan.q_rep, plan.q_elect);
        let names = membership.electorate.voters.iter().map(|v| v.name.clone()).collect();
        let zero = if n > 1 && rng.u8(..8) == 0 { Some(rng.usize(..n)) } else { None };
        let equal = rng.bool();
        let priorities = (0..n)
            .map(|at| {
                if Some(at) == zero {
                    0
                } else if equal {
                    1
                } else {
                    rng.u8(1..4)
                }
            })
            .collect();
        let disk = Disk {
            ballot: Ballot::default(),
            uncertain: false,
            membership,
            entries: Vec::new(),
            synced: 0,
            damaged: BTreeSet::new(),
            floor: 0,
        };
        let mut world = Self {
            now: ms(0),
            rng,
            queue: BinaryHeap::new(),
            number: 0,
            plan,
            names,
            priorities,
            disks: vec![disk; n],
            lives: vec![0; n],
            processes: (0..n).map(|_| None).collect(),
            blocked: BTreeSet::new(),
            healed: false,
            ledger: Vec::new(),
            reported: BTreeMap::new(),
            masters: BTreeMap::new(),
            votes: BTreeMap::new(),
            sent_terms: vec![Term::ZERO; n],
            written: 0,
            coverage: Coverage::default(),
            trace: Vec::new(),
        };
        world.trace.push(format!("{plan:?}, priorities {:?}", world.priorities));
        for node in 0..n {
            let at = ms(world.rng.u64(..30));
            world.at(at, Event::Start { node });
        }
        world.at(ms(5), Event::Write);
        world.at(ms(20), Event::Fault);
        world.at(plan.until, Event::Heal);
        world
    }

    fn at(&mut self, at: Now, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Queued { at, number: self.number, event }));
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn quorums(&self) -> Quorums {
        self.disks[0].membership.electorate.quorums().unwrap()
    }

    /// Runs it. `Err` says what was broken.
    pub(super) fn run(&mut self) -> Step {
        let deadline = self.plan.until + HEALED_WITHIN;
        while let Some(Reverse(Queued { at, event, .. })) = self.queue.pop() {
            self.now = at;
            if self.now > deadline {
                let roles: Vec<_> =
                    self.processes.iter().flatten().map(|p| p.core.role()).collect();
                return Err(format!(
                    "no master {HEALED_WITHIN:?} after everything healed: {roles:?}"
                ));
            }
            self.perform(event)?;
            if self.healed && self.is_well() {
                return Ok(());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    /// A master whose term is durable, followed by everybody.
    fn is_well(&self) -> bool {
        let newest = self.masters.last_key_value();
        let Some((&term, &master)) = newest else { return false };
        let durable = |p: &Process| p.core.mastership() == Some((term, true));
        self.processes[master].as_ref().is_some_and(durable)
            && self.processes.iter().enumerate().all(|(node, process)| {
                node == master
                    || process.as_ref().is_some_and(|p| p.core.role() == NodeRole::Replica)
            })
    }

    fn perform(&mut self, event: Event) -> Step {
        match event {
            Event::Start { node } => self.start(node),
            Event::Deliver { from, to, packet, lives } => {
                // A stream is one connection; an election message may come from an earlier life.
                let same = lives == (self.lives[from], self.lives[to]);
                if same || matches!(packet, Packet::Election(_)) {
                    self.deliver(from, to, packet)
                } else {
                    Ok(())
                }
            }
            Event::Wake { node, life } => {
                if self.lives[node] == life
                    && let Some(process) = &mut self.processes[node]
                    && process.wake.is_some_and(|at| at <= self.now)
                {
                    process.wake = None;
                    let facts = self.facts(node);
                    let now = self.now;
                    self.process(node).core.handle_timeout(now, &facts);
                    self.drain(node)?;
                }
                Ok(())
            }
            Event::Sync { node, life } => {
                if self.lives[node] == life && self.processes[node].is_some() {
                    self.disks[node].synced = self.disks[node].entries.len();
                    self.synced(node)?;
                }
                Ok(())
            }
            Event::Beat { node, life } => {
                if self.lives[node] == life && self.processes[node].is_some() {
                    self.beat(node);
                    self.hang_up(node)?;
                    self.dial(node);
                    self.after(ms(25), Event::Beat { node, life });
                }
                Ok(())
            }
            Event::Feed { node, life, input } => {
                if self.lives[node] == life && self.processes[node].is_some() {
                    self.feed(node, input)?;
                }
                Ok(())
            }
            Event::Write => {
                let wait = ms(self.rng.u64(2..30));
                self.after(wait, Event::Write);
                let node = self.rng.usize(..self.plan.n);
                if self.processes[node].as_ref().is_some_and(|p| p.core.mastership().is_some()) {
                    let term = self.process(node).core.term();
                    self.append(node, term);
                    self.beat(node);
                }
                Ok(())
            }
            Event::Fault => self.fault(),
            Event::Heal => {
                self.trace.push(format!("{:?} healed", self.now));
                self.healed = true;
                self.blocked.clear();
                self.plan =
                    Plan { loss: 0.0, repeat: 0.0, late: 0.0, crash_in_persist: 0.0, ..self.plan };
                for node in 0..self.plan.n {
                    if self.processes[node].is_none() {
                        self.after(ms(1), Event::Start { node });
                    } else {
                        self.link(node);
                    }
                }
                Ok(())
            }
        }
    }

    // ------------------------------------------------------------ faults

    fn fault(&mut self) -> Step {
        if self.healed {
            return Ok(());
        }
        let wait = ms(self.rng.u64(10..120));
        self.after(wait, Event::Fault);
        let node = self.rng.usize(..self.plan.n);
        match self.rng.u8(..8) {
            0..=2 => self.crash(node),
            3 | 4 => {
                self.coverage.partitions += 1;
                self.blocked.clear();
                let one_way = self.rng.u8(..4) == 0;
                let scattered = self.rng.u8(..4) == 0;
                let sides: Vec<bool> = (0..self.plan.n).map(|_| self.rng.bool()).collect();
                for a in 0..self.plan.n {
                    for b in 0..self.plan.n {
                        let apart = if scattered {
                            a < b && self.rng.bool()
                        } else {
                            sides[a] != sides[b] && (!one_way || sides[a])
                        };
                        if apart {
                            self.blocked.insert((a, b));
                            if scattered {
                                self.blocked.insert((b, a));
                            }
                        }
                    }
                }
            }
            5 => self.blocked.clear(),
            6 => {
                if self.processes[node].is_some() {
                    let ended = Input::FollowEnded { master: None, why: Ended::Broken };
                    self.process(node).stream = None;
                    self.feed(node, ended)?;
                }
            }
            _ => self.damage(node),
        }
        Ok(())
    }

    /// Nodes whose log is not what they once acknowledged.
    fn bad_nodes(&self) -> usize {
        self.disks.iter().filter(|d| d.uncertain || !d.damaged.is_empty()).count()
    }

    fn damage(&mut self, node: usize) {
        let quorums = self.quorums();
        let spare = quorums.rep() > 1 && quorums.elect() < quorums.n() && self.bad_nodes() == 0;
        if !self.plan.damages || !spare {
            return;
        }
        // Found by the next recovery, not under a running node.
        self.crash(node);
        let disk = &mut self.disks[node];
        if disk.entries.is_empty() {
            return;
        }
        let last = disk.entries.len() - self.rng.usize(..disk.entries.len().min(4));
        disk.damaged.insert(last);
        if last > 1 && self.rng.bool() {
            disk.damaged.insert(last - 1);
        }
        let damages: Vec<String> =
            self.disks[node].damaged.iter().map(ToString::to_string).collect();
        self.trace.push(format!("{:?} n{} damaged at {}", self.now, node + 1, damages.join(", ")));
        self.coverage.damages += 1;
    }

    fn crash(&mut self, node: usize) {
        if self.processes[node].take().is_none() {
            return;
        }
        self.coverage.crashes += 1;
        self.lives[node] += 1;
        self.trace.push(format!("{:?} n{} crashed", self.now, node + 1));
        let quorums = self.quorums();
        let disk = &self.disks[node];
        let may_lose = self.plan.lossy
            && disk.damaged.is_empty()
            && self.bad_nodes() - usize::from(disk.uncertain) < quorums.n() - quorums.elect();
        let unsynced = disk.entries.len() - disk.synced;
        let kept = disk.synced + self.rng.usize(..=unsynced);
        if may_lose && self.rng.u8(..3) == 0 {
            let lost = self.rng.usize(..=kept.min(5));
            self.disks[node].cut(kept - lost);
            self.disks[node].uncertain = true;
            self.coverage.lossy_crashes += 1;
        } else {
            self.disks[node].cut(kept);
        }
        let disk = &mut self.disks[node];
        disk.synced = disk.entries.len();
        // Some of those who were connected notice.
        for other in 0..self.plan.n {
            let Some(process) = &self.processes[other] else { continue };
            let follows = process.stream.as_ref().is_some_and(|s| s.master == node);
            let name = self.names[node].clone();
            let life = self.lives[other];
            if self.rng.bool() {
                let down = Input::LinkDown { name: name.clone() };
                self.after(ms(1), Event::Feed { node: other, life, input: down });
            }
            if follows && self.rng.bool() {
                self.process(other).stream = None;
                let broken = Input::FollowEnded { master: Some(name), why: Ended::Broken };
                self.after(ms(1), Event::Feed { node: other, life, input: broken });
            }
        }
        let wait = ms(self.rng.u64(1..150));
        self.after(wait, Event::Start { node });
    }

    fn start(&mut self, node: usize) -> Step {
        if self.processes[node].is_some() {
            return Ok(());
        }
        let setup = setup(node, self.priorities[node], self.rng.u64(..));
        let disk = &self.disks[node];
        let core =
            NodeCore::new(self.now, setup, disk.ballot.clone(), Some(disk.membership.clone()));
        let fence = disk.ballot.term;
        self.processes[node] =
            Some(Process { core, fence, stream: None, lead: None, attempt: 0, wake: None });
        let life = self.lives[node];
        self.trace.push(format!("{:?} n{} starts: {}", self.now, node + 1, self.disks[node].end()));
        self.after(ms(1), Event::Beat { node, life });
        self.link(node);
        self.drain(node)
    }

    /// Opens links to all that run.
    fn link(&mut self, node: usize) {
        for other in 0..self.plan.n {
            if other != node && self.processes[other].is_some() {
                for (a, b) in [(node, other), (other, node)] {
                    let card = self.card(a);
                    self.transmit(a, b, &Packet::Link(card));
                }
            }
        }
    }

    fn card(&self, node: usize) -> PeerCard {
        let disk = &self.disks[node];
        let setup = setup(node, self.priorities[node], 0);
        PeerCard {
            peer: setup.me,
            kind: setup.kind,
            priority: setup.priority,
            address: setup.address,
            epoch: 0,
            term: disk.ballot.term,
            group: Some(disk.membership.group.id),
        }
    }

    // ------------------------------------------------------------ the network

    fn transmit(&mut self, from: usize, to: usize, packet: &Packet) {
        if self.blocked.contains(&(from, to)) || self.rng.f32() < self.plan.loss {
            return;
        }
        let lives = (self.lives[from], self.lives[to]);
        let copies = 1 + usize::from(self.rng.f32() < self.plan.repeat);
        for _ in 0..copies {
            let late = self.rng.f32() < self.plan.late;
            let micros = if late { self.rng.u64(5_000..250_000) } else { self.rng.u64(50..3_000) };
            let packet = packet.clone();
            let deliver = Event::Deliver { from, to, packet, lives };
            self.after(Duration::from_micros(micros), deliver);
        }
    }

    fn deliver(&mut self, from: usize, to: usize, packet: Packet) -> Step {
        if self.processes[to].is_none() {
            return Ok(());
        }
        let now = self.now;
        let peer = setup(from, 0, 0).me;
        match packet {
            Packet::Election(message) => {
                self.feed(to, Input::Message { from: peer, message })?;
            }
            Packet::Link(card) => self.feed(to, Input::LinkUp(card))?,
            Packet::Hello { term, attempt } => {
                self.feed(to, Input::TermMet { term, who: peer })?;
                let Some(process) = &mut self.processes[to] else { return Ok(()) };
                if process.core.mastership().is_some()
                    && let Some(lead) = &mut process.lead
                    && lead.term >= term
                {
                    let durable = lead.replicas.get(&from).map_or(0, |r| r.durable);
                    lead.replicas.insert(from, Replica { attempt, heard: now, durable });
                    let term = lead.term;
                    self.transmit(to, from, &Packet::Welcome { term, attempt });
                }
            }
            Packet::Welcome { term, attempt } => {
                if self.process(to).attempt == attempt && self.process(to).stream.is_none() {
                    self.process(to).attempt = 0;
                    let master = self.names[from].clone();
                    self.process(to).stream = Some(Stream {
                        master: from,
                        term,
                        attempt,
                        heard: now,
                        verified: None,
                        acked: 0,
                        asked: None,
                    });
                    self.feed(to, Input::AskTerm { term, master })?;
                }
            }
            Packet::Copy { term, attempt, entries, dtvlsn } => {
                self.receive(from, to, term, attempt, &entries, dtvlsn)?;
            }
            Packet::Ack { term, attempt, durable } => {
                let Some(lead) = &mut self.process(to).lead else { return Ok(()) };
                if lead.term == term
                    && let Some(replica) = lead.replicas.get_mut(&from)
                    && replica.attempt == attempt
                {
                    replica.heard = now;
                    replica.durable = replica.durable.max(durable);
                    self.count(to)?;
                }
            }
            Packet::HeadAsk { term, nonce } => {
                let leads = |p: &Process| p.core.mastership().is_some_and(|(own, _)| own == term);
                if self.processes[to].as_ref().is_some_and(leads) {
                    let head = self.disks[to].end();
                    self.transmit(to, from, &Packet::HeadAnswer { term, nonce, head });
                }
            }
            Packet::HeadAnswer { term, nonce, head } => {
                if let Some(stream) = &mut self.process(to).stream
                    && stream.term == term
                {
                    stream.asked = Some((nonce, head));
                    self.confirm(to)?;
                }
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ streams and logs

    fn append(&mut self, node: usize, term: Term) {
        self.written += 1;
        let disk = &mut self.disks[node];
        let mut input = [0; 28];
        input[..8].copy_from_slice(&self.written.to_le_bytes());
        input[8..12].copy_from_slice(&term.number().to_le_bytes());
        let fingerprint = disk.mark(disk.entries.len()).fingerprint.chain(&input);
        disk.entries.push(Entry { term, fingerprint });
        self.sync_soon(node);
    }

    fn sync_soon(&mut self, node: usize) {
        let life = self.lives[node];
        let wait = Duration::from_micros(self.rng.u64(100..8_000));
        self.after(wait, Event::Sync { node, life });
    }

    /// A master sends its log to those who follow it.
    fn beat(&mut self, node: usize) {
        let Some(lead) = &self.process(node).lead else { return };
        let (term, dtvlsn) = (lead.term, lead.dtvlsn);
        let replicas: Vec<(usize, u64)> =
            lead.replicas.iter().map(|(at, r)| (*at, r.attempt)).collect();
        let entries: Rc<[Entry]> = self.disks[node].entries.as_slice().into();
        for (to, attempt) in replicas {
            let entries = entries.clone();
            self.transmit(node, to, &Packet::Copy { term, attempt, entries, dtvlsn });
        }
    }

    /// A stream that nothing comes on is closed in the end.
    fn hang_up(&mut self, node: usize) -> Step {
        let now = self.now;
        let silent = |s: &mut Stream| now.saturating_sub(s.heard) > ms(400);
        match self.process(node).stream.take_if(silent) {
            Some(stream) => {
                let master = Some(self.names[stream.master].clone());
                self.feed(node, Input::FollowEnded { master, why: Ended::Silent })
            }
            None => Ok(()),
        }
    }

    /// A node that follows nobody looks for a master.
    fn dial(&mut self, node: usize) {
        let process = self.process(node);
        let free = process.stream.is_none() && process.lead.is_none();
        if free && self.rng.u8(..4) == 0 {
            let to = self.rng.usize(..self.plan.n);
            if to != node {
                self.hello(node, to);
            }
        }
    }

    fn hello(&mut self, node: usize, to: usize) {
        let attempt = self.rng.u64(..);
        let process = self.process(node);
        process.attempt = attempt;
        process.stream = None;
        let term = process.core.term();
        self.transmit(node, to, &Packet::Hello { term, attempt });
    }

    fn receive(
        &mut self,
        from: usize,
        to: usize,
        term: Term,
        attempt: u64,
        entries: &[Entry],
        dtvlsn: usize,
    ) -> Step {
        let now = self.now;
        let Some(stream) = &mut self.process(to).stream else { return Ok(()) };
        if stream.master != from || stream.term != term || stream.attempt != attempt {
            return Ok(());
        }
        stream.heard = now;
        let began = stream.verified.is_none();
        let verified = stream.verified.unwrap_or(0);
        if entries.len() < verified {
            return Ok(()); // an older copy
        }
        stream.verified = Some(entries.len());
        let disk = &mut self.disks[to];
        let same = disk.entries.iter().zip(entries).take_while(|(a, b)| a == b).count();
        if same < disk.entries.len() {
            if !began {
                return Err(format!("n{} lost entries in a stream", to + 1));
            }
            if same < disk.floor {
                return Err(format!("n{} would cut below its commit floor", to + 1));
            }
            let durable = disk.entries.iter().zip(&self.ledger).take_while(|(a, b)| a == b).count();
            if same < durable {
                return Err(format!("n{} cuts durable entries off", to + 1));
            }
            self.coverage.cuts += 1;
            disk.cut(same);
            self.trace.push(format!("{now:?} n{} cuts to {same}", to + 1));
        }
        let grew = disk.entries.len() < entries.len();
        disk.entries.extend_from_slice(&entries[same..]);
        // The master has them all, whole: a replica mends from it before it goes on.
        disk.damaged.clear();
        disk.floor = disk.floor.max(dtvlsn.min(disk.synced));
        if grew {
            self.sync_soon(to);
        }
        if began {
            let master = self.names[from].clone();
            self.feed(to, Input::Following { term, master })?;
        }
        self.acknowledge(to);
        self.confirm(to)
    }

    fn synced(&mut self, node: usize) -> Step {
        self.acknowledge(node);
        self.count(node)?;
        self.confirm(node)
    }

    fn acknowledge(&mut self, node: usize) {
        let sound = self.disks[node].sound();
        let Some(process) = &mut self.processes[node] else { return };
        let fence = process.fence;
        let Some(stream) = &mut process.stream else { return };
        let Some(verified) = stream.verified else { return };
        if stream.term < fence {
            return;
        }
        let durable = sound.min(verified);
        stream.acked = stream.acked.max(durable);
        let (term, attempt, master) = (stream.term, stream.attempt, stream.master);
        self.transmit(node, master, &Packet::Ack { term, attempt, durable });
    }

    /// What a master reports durable.
    fn count(&mut self, node: usize) -> Step {
        let rep = self.quorums().rep();
        let own = self.disks[node].synced;
        let Some(process) = &mut self.processes[node] else { return Ok(()) };
        let Some(lead) = &mut process.lead else { return Ok(()) };
        let mut held: Vec<usize> = lead.replicas.values().map(|r| r.durable).collect();
        held.push(own);
        held.sort_unstable();
        let Some(at) = held.len().checked_sub(rep) else { return Ok(()) };
        let durable = held[at];
        if durable < lead.term_entry || durable <= lead.dtvlsn {
            return Ok(());
        }
        let (first, term) = (lead.dtvlsn < lead.term_entry, lead.term);
        lead.dtvlsn = durable;
        self.reported.insert(lead.term, durable);
        let entries = &self.disks[node].entries;
        let shared = self.ledger.len().min(entries.len());
        if self.ledger[..shared] != entries[..shared] {
            return Err(format!("n{} reports another history durable", node + 1));
        }
        if durable > self.ledger.len() {
            self.coverage.reported += (durable - self.ledger.len()) as u64;
            let held: Vec<String> =
                lead.replicas.iter().map(|(at, r)| format!("n{} {}", at + 1, r.durable)).collect();
            self.trace.push(format!(
                "{:?} n{} reports {durable} durable: own {own}, {}",
                self.now,
                node + 1,
                held.join(", ")
            ));
            self.ledger.extend_from_slice(&entries[self.ledger.len()..durable]);
        }
        let disk = &mut self.disks[node];
        disk.floor = disk.floor.max(durable.min(disk.synced));
        if first { self.feed(node, Input::TermDurable { term }) } else { Ok(()) }
    }

    fn confirm(&mut self, node: usize) -> Step {
        let disk = &self.disks[node];
        let synced = disk.synced;
        let Some(process) = &mut self.processes[node] else { return Ok(()) };
        let Some(stream) = &mut process.stream else { return Ok(()) };
        let verified = stream.verified.unwrap_or(0);
        match stream.asked {
            Some((nonce, head)) if synced.min(verified) >= count(head.vlsn) => {
                stream.asked = None;
                self.feed(node, Input::HeadConfirmed { nonce, head })
            }
            Some(_) | None => Ok(()),
        }
    }

    // ------------------------------------------------------------ the cores

    fn process(&mut self, node: usize) -> &mut Process {
        self.processes[node].as_mut().expect("it runs")
    }

    fn facts(&self, node: usize) -> Facts {
        let disk = &self.disks[node];
        let process = self.processes[node].as_ref().expect("it runs");
        let stream = process.stream.as_ref();
        let contact = |(at, r): (&usize, &Replica)| Contact {
            peer: setup(*at, 0, 0).me,
            heard: r.heard,
            durable: vlsn(r.durable),
        };
        Facts {
            head: disk.end(),
            configured: !disk.end().vlsn.is_null(),
            durable: vlsn(disk.synced),
            dtvlsn: vlsn(process.lead.as_ref().map_or(0, |lead| lead.dtvlsn)),
            commit_floor: vlsn(disk.floor),
            acked: vlsn(stream.map_or(0, |s| s.acked)),
            uncertain: disk.uncertain,
            damaged: disk.damages(),
            faulty: disk.damages(),
            behind: false,
            full: false,
            stalled_for: Duration::ZERO,
            restoring: false,
            stream: stream.map(|s| StreamFacts {
                master: self.names[s.master].clone(),
                term: s.term,
                heard: s.heard,
            }),
            contacts: process.lead.iter().flat_map(|l| l.replicas.iter().map(contact)).collect(),
        }
    }

    fn feed(&mut self, node: usize, input: Input) -> Step {
        let facts = self.facts(node);
        let now = self.now;
        self.process(node).core.handle(now, &facts, input);
        self.drain(node)
    }

    fn drain(&mut self, node: usize) -> Step {
        while let Some(process) = &mut self.processes[node] {
            let Some(output) = process.core.poll_output() else { break };
            self.act(node, output)?;
        }
        let life = self.lives[node];
        let now = self.now;
        if let Some(process) = &mut self.processes[node]
            && let Some(at) = process.core.poll_timeout()
        {
            let at = at.max(now);
            if process.wake.is_none_or(|wake| at < wake) {
                process.wake = Some(at);
                self.at(at, Event::Wake { node, life });
            }
        }
        Ok(())
    }

    fn act(&mut self, node: usize, output: Output) -> Step {
        let life = self.lives[node];
        match output {
            Output::Persist(promise) => {
                let in_time = self.rng.f32() >= self.plan.crash_in_persist;
                if in_time || self.rng.bool() {
                    let disk = &mut self.disks[node];
                    let Promise { term, vote, clear_uncertain } = promise;
                    if term < disk.ballot.term {
                        return Err(format!(
                            "n{}: term {term} after {}",
                            node + 1,
                            disk.ballot.term
                        ));
                    }
                    disk.ballot = Ballot { epoch: 0, term, vote };
                    if clear_uncertain {
                        self.coverage.cleared += 1;
                        disk.uncertain = false;
                    }
                }
                if !in_time {
                    self.coverage.crashes_in_persist += 1;
                    self.crash(node);
                }
            }
            Output::Found(_) | Output::Adopt(_) => return Err("founded twice".to_owned()),
            Output::Fence { below } => {
                let process = self.process(node);
                process.fence = below;
                process.stream.take_if(|stream| stream.term < below);
            }
            Output::Send { to, message } => self.send(node, &to, message)?,
            Output::Seek { .. } | Output::PermitCommit | Output::AbandonRestore => {}
            Output::Follow { master, .. } => {
                let to = self.number_of(&master);
                self.hello(node, to);
            }
            Output::Unfollow => self.process(node).stream = None,
            Output::TermAnswer { adopted, .. } => {
                if !adopted {
                    self.process(node).stream = None;
                }
            }
            Output::AskHead { nonce } => {
                if let Some(stream) = &self.process(node).stream {
                    let (term, master) = (stream.term, stream.master);
                    self.transmit(node, master, &Packet::HeadAsk { term, nonce });
                }
            }
            Output::AnswerRepair { to, ask } => {
                let answer = self.answer(node, &ask);
                self.trace.push(format!(
                    "{:?} n{} of {} to {to} about {} to {}: {:?}",
                    self.now,
                    node + 1,
                    self.disks[node].end(),
                    ask.first,
                    ask.last,
                    answer.verdict
                ));
                let body = Body::RepairAnswer(answer);
                let term = self.process(node).core.term();
                let to = self.number_of(&to);
                let message = ElectionMsg { epoch: 0, term, body };
                self.transmit(node, to, &Packet::Election(message));
            }
            Output::Mend(step) => {
                let fitted = self.mend(node, &step)?;
                self.after(ms(1), Event::Feed { node, life, input: Input::Mended { fitted } });
            }
            Output::BeginMastership { term, .. } => {
                self.check_elected(node, term)?;
                self.append(node, term);
                let at = self.disks[node].entries.len();
                let process = self.process(node);
                process.stream = None;
                process.lead =
                    Some(Lead { term, term_entry: at, dtvlsn: 0, replicas: BTreeMap::new() });
                let input = Input::TermAppended { first: vlsn(at), last: vlsn(at) };
                self.after(Duration::ZERO, Event::Feed { node, life, input });
            }
            Output::EndMastership { successor, .. } => {
                self.coverage.yields += u64::from(successor.is_some());
                self.process(node).lead = None;
            }
            Output::Tell(event) => {
                self.trace.push(format!(
                    "{:?} n{} term {} {:?}: {}",
                    self.now,
                    node + 1,
                    event.term,
                    event.role,
                    event.reason
                ));
            }
            Output::Alarm(text) => {
                self.trace.push(format!("{:?} n{} {text}", self.now, node + 1));
                if text.starts_with("ALARM") {
                    return Err(format!("n{}: {text}", node + 1));
                }
            }
        }
        Ok(())
    }

    fn number_of(&self, name: &Name) -> usize {
        self.names.iter().position(|n| n == name).expect("a voter")
    }

    fn send(&mut self, node: usize, to: &Name, message: ElectionMsg) -> Step {
        let disk = &self.disks[node];
        if message.term > disk.ballot.term {
            return Err(format!("n{} speaks in term {}, not durable", node + 1, message.term));
        }
        if message.term < self.sent_terms[node] {
            return Err(format!("n{} speaks in the older term {}", node + 1, message.term));
        }
        self.sent_terms[node] = message.term;
        if let Body::VoteAnswer(answer) = &message.body {
            match answer.verdict {
                Verdict::Refused(refusal) => {
                    self.coverage.refusals.insert(refusal);
                }
                Verdict::Granted { certain } => {
                    self.coverage.flagged_grants += u64::from(!certain);
                    if answer.phase == Phase::Real {
                        let given = self.votes.entry((node, answer.asked)).or_insert(to.clone());
                        if given != to {
                            return Err(format!(
                                "n{} votes for {given} and {to} in term {}",
                                node + 1,
                                answer.asked
                            ));
                        }
                        let kept = (disk.ballot.term, disk.ballot.vote.as_ref());
                        if kept != (answer.asked, Some(to)) {
                            return Err(format!(
                                "a vote of n{} leaves before it is durable",
                                node + 1
                            ));
                        }
                    }
                }
            }
        }
        let to = self.number_of(to);
        self.transmit(node, to, &Packet::Election(message));
        Ok(())
    }

    fn check_elected(&mut self, node: usize, term: Term) -> Step {
        self.coverage.elections += 1;
        if let Some(other) = self.masters.insert(term, node) {
            return Err(format!("n{} and n{} are masters of term {term}", other + 1, node + 1));
        }
        // A master that was elected late, when a newer term had begun, need not have that one's.
        let before = self.reported.range(..term).map(|(_, through)| *through).max().unwrap_or(0);
        let disk = &self.disks[node];
        if disk.entries.len() < before {
            return Err(format!(
                "n{} is elected with {} entries, {before} were reported durable",
                node + 1,
                disk.entries.len(),
            ));
        }
        if disk.entries[..before] != self.ledger[..before] {
            return Err(format!("n{} is elected with another history", node + 1));
        }
        Ok(())
    }

    /// A piece of log is its fingerprints, eight bytes each, behind the term.
    fn answer(&self, node: usize, ask: &RepairAsk) -> RepairAnswer {
        let disk = &self.disks[node];
        let verdict = answer(disk, ask);
        let through = match verdict {
            RepairVerdict::Have => count(ask.last),
            RepairVerdict::Part { through } => count(through),
            RepairVerdict::Never | RepairVerdict::Silent(_) => 0,
        };
        let mut bytes = Vec::new();
        for at in count(ask.first)..=through {
            bytes.extend_from_slice(&disk.mark(at).fingerprint.as_u64().to_le_bytes());
        }
        // In pieces, so that pieces are met.
        let total = bytes.len() as u32;
        let offset = (ask.offset as usize).min(bytes.len());
        let piece = bytes[offset..].iter().copied().take(8).collect();
        RepairAnswer {
            nonce: ask.nonce,
            first: ask.first,
            verdict,
            commit_floor: vlsn(disk.floor),
            total,
            offset: offset as u32,
            bytes: piece,
        }
    }

    fn mend(&mut self, node: usize, step: &RepairStep) -> Result<bool, String> {
        let ledger = self.ledger.len();
        let disk = &mut self.disks[node];
        let (first, bytes) = match step {
            RepairStep::TruncateAfter { vlsn } => {
                self.coverage.truncations += 1;
                disk.cut(count(*vlsn));
                return if count(*vlsn) < ledger {
                    Err(format!("n{} cuts a durable entry off", node + 1))
                } else {
                    Ok(true)
                };
            }
            RepairStep::Splice { damage, bytes }
            | RepairStep::SplicePrefix { damage, bytes, .. } => (count(damage.first), bytes),
        };
        for (at, piece) in bytes.chunks(8).enumerate() {
            let fingerprint = u64::from_le_bytes(piece.try_into().expect("eight bytes"));
            if disk.mark(first + at).fingerprint.as_u64() != fingerprint {
                return Ok(false);
            }
        }
        for at in 0..bytes.len() / 8 {
            disk.damaged.remove(&(first + at));
        }
        self.coverage.splices += 1;
        Ok(true)
    }
}
