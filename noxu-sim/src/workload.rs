//! Workload: clients that run transactions on whoever they take for the master, and remember what
//! they were told.
//!
//! A client begins a transaction, thinks, and commits, at different turns, so that transactions
//! overlap. Nothing waits: what became of a commit is told by a callback.
//!
//! # Not here: judging what they were told (oracle.rs).

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use noxu_kv::{KvError, Work};
use noxu_rep::core::durability::{AckPolicy, SyncPolicy};
use noxu_rep::driver::master::Admit;
use noxu_rep::{Durability, RepError};
use parking_lot::Mutex;

use crate::clock::WALL_START_MS;
use crate::dice::{Dice, Draw};
use crate::event::{Host, Nanos};
use crate::node::{Process, SimNode};
use crate::oracle::{Item, Oracle, Place, Told, Transaction, TxnId};
use crate::plan::Plan;

/// What a callback has told a client.
type Answer = Arc<Mutex<Option<Result<(), RepError>>>>;

/// One client.
pub(crate) struct Client {
    rng: Rng,
    believes: Host,
    state: State,
    /// Numbers its transactions.
    next: u64,
    stride: u64,
}

enum State {
    Idle,
    /// It has begun a transaction, in this life of that node.
    Begun {
        host: Host,
        life: u32,
        id: TxnId,
        work: Box<Work>,
        transaction: Box<Transaction>,
    },
    /// It has written, and waits.
    Waiting {
        host: Host,
        life: u32,
        id: TxnId,
        answer: Answer,
        durable: bool,
        since: Nanos,
    },
}

/// What a turn of a client came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acted {
    /// The machine on which it did something.
    pub(crate) host: Option<Host>,
    /// A commit was reported durable.
    pub(crate) durable: bool,
    /// What it met, for coverage.
    pub(crate) met: Option<&'static str>,
}

/// Between two looks whether an answer has come.
const LOOK: Duration = Duration::from_millis(5);
/// Between two attempts to find a master.
const RETRY: Duration = Duration::from_millis(30);

impl Client {
    /// Number `number` of `plan`'s.
    pub(crate) fn new(dice: Dice, plan: &Plan, number: usize) -> Self {
        let mut rng = dice.stream(&format!("client {number}"));
        let believes = Host(rng.usize(..plan.voters));
        Self { rng, believes, state: State::Idle, next: number as u64, stride: plan.clients as u64 }
    }

    /// Whether it waits for an answer.
    pub(crate) const fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Its turn; returns when the next one is.
    pub(crate) fn turn(
        &mut self,
        now: Nanos,
        nodes: &[SimNode],
        reachable: &dyn Fn(Host) -> bool,
        plan: &Plan,
        oracle: &mut Oracle,
    ) -> (Duration, Acted) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.begin(now, nodes, reachable, plan),
            State::Begun { host, life, id, work, transaction } => {
                match running(nodes, host, life).filter(|_| reachable(host)) {
                    Some(process) => {
                        self.commit(now, host, life, process, id, &work, *transaction, plan, oracle)
                    }
                    None => (RETRY, Acted { met: Some("client: master gone"), ..Acted::default() }),
                }
            }
            State::Waiting { host, life, id, answer, durable, since } => {
                let told = answer.lock().take();
                let gone = running(nodes, host, life).is_none();
                match told {
                    None if !gone && now.since(since) < Duration::from_secs(10) => {
                        self.state = State::Waiting { host, life, id, answer, durable, since };
                        (LOOK, Acted::default())
                    }
                    None => (RETRY, Acted { met: Some("client: no answer"), ..Acted::default() }),
                    Some(outcome) => self.hear(now, id, &outcome, durable, plan, oracle),
                }
            }
        }
    }

    fn begin(
        &mut self,
        now: Nanos,
        nodes: &[SimNode],
        reachable: &dyn Fn(Host) -> bool,
        plan: &Plan,
    ) -> (Duration, Acted) {
        let host = self.believes;
        let process = nodes[host.0].process.as_ref().filter(|_| reachable(host));
        let Some(process) = process.filter(|process| process.life.mastership().is_some()) else {
            // Whom it asked may know; otherwise anybody.
            let named = process.and_then(|process| process.life.master_address());
            let named = named.and_then(|address| crate::network::Network::host_of(&address));
            self.believes = named
                .filter(|named| *named != host)
                .unwrap_or_else(|| Host(self.rng.usize(..plan.voters)));
            return (RETRY, Acted { met: Some("client: not the master"), ..Acted::default() });
        };
        let Ok(mut work) = process.engine.begin() else {
            return (RETRY, Acted { met: Some("client: cannot begin"), ..Acted::default() });
        };
        let id = TxnId(self.next);
        self.next += self.stride;
        let filled = self.fill(&mut work, id, plan);
        let Ok((reads, writes)) = filled else {
            return (RETRY, Acted { met: Some("client: cannot read"), ..Acted::default() });
        };
        let transaction = Transaction {
            began: now,
            ended: None,
            snapshot: work.snapshot_vlsn(),
            reads,
            writes,
            told: Told::Nothing,
        };
        let (work, transaction) = (Box::new(work), Box::new(transaction));
        let life = nodes[host.0].lives;
        self.state = State::Begun { host, life, id, work, transaction };
        (plan.think.mul_f64(self.rng.f64() * 0.5), Acted { host: Some(host), ..Acted::default() })
    }

    fn fill(
        &mut self,
        work: &mut Work,
        id: TxnId,
        plan: &Plan,
    ) -> Result<(Vec<Item>, Vec<Item>), KvError> {
        let mut reads = Vec::new();
        let mut writes: Vec<Item> = Vec::new();
        let key = |rng: &mut Rng| format!("k{}", rng.u64(..plan.keys)).into_bytes();
        for _ in 0..self.rng.usize(..4) {
            let key = key(&mut self.rng);
            let value = work.get(&key)?.map(|value| value.to_vec());
            reads.push((key, value));
        }
        for number in 0..self.rng.spread(1, plan.writes as u64) {
            let key = key(&mut self.rng);
            if writes.iter().any(|(written, _)| *written == key) {
                continue;
            }
            if self.rng.hit(0.1) {
                work.delete(&key)?;
                writes.push((key, None));
                continue;
            }
            let len = self.rng.spread(1, plan.value_bytes as u64) as usize;
            let mut value = format!("{}.{number} ", id.0).into_bytes();
            value.resize(value.len().max(len), b'.');
            work.put(&key, &value)?;
            writes.push((key, Some(value)));
        }
        Ok((reads, writes))
    }

    #[allow(clippy::too_many_arguments)] // called in one place
    fn commit(
        &mut self,
        now: Nanos,
        host: Host,
        life: u32,
        process: &Process,
        id: TxnId,
        work: &Work,
        mut transaction: Transaction,
        plan: &Plan,
        oracle: &mut Oracle,
    ) -> (Duration, Acted) {
        let durability = self.rng.weighted(&plan.durabilities);
        let met = |what| (RETRY, Acted { host: Some(host), met: Some(what), ..Acted::default() });
        let Ok(master) = process.life.sitting_master() else { return met("client: deposed") };
        let admission = match master.try_admit(durability) {
            Admit::Yes(admission) => admission,
            Admit::Replicas { .. } => return met("client: too few replicas"),
            Admit::Room => return met("client: no room"),
            Admit::Applied(_) => return met("client: term not applied"),
            Admit::Closed => return met("client: mastership over"),
        };
        let bodies = work.encode(WALL_START_MS);
        let term = admission.term();
        let prepared = match process.engine.prepare(work, term, admission.term_entry()) {
            Ok(prepared) => prepared,
            Err(KvError::Conflict { .. }) => return met("client: conflict"),
            Err(_) => return met("client: refused"),
        };
        let Ok(submitted) = admission.write(&bodies.entries()) else {
            return met("client: not written");
        };
        prepared.committed(submitted.vlsn());
        let place = Place { vlsn: submitted.vlsn(), term, fingerprint: submitted.fingerprint() };
        transaction.told = Told::Unknown(place);
        oracle.note(id, transaction);
        let answer = Answer::default();
        let theirs = Arc::clone(&answer);
        submitted.start();
        submitted.on_done(move |outcome| *theirs.lock() = Some(outcome));
        let durable = is_durable(durability);
        self.state = State::Waiting { host, life, id, answer, durable, since: now };
        (LOOK, Acted { host: Some(host), met: Some("client: written"), ..Acted::default() })
    }

    fn hear(
        &mut self,
        now: Nanos,
        id: TxnId,
        outcome: &Result<(), RepError>,
        durable: bool,
        plan: &Plan,
        oracle: &mut Oracle,
    ) -> (Duration, Acted) {
        let pause = plan.think.mul_f64(self.rng.f64());
        let Some(mut transaction) = oracle.get(id).cloned() else {
            panic!("{id:?} was noted when it was written")
        };
        let Told::Unknown(place) = transaction.told else { panic!("{id:?} was told before") };
        let met = match outcome {
            Ok(()) => {
                transaction.ended = Some(now);
                transaction.told = if durable { Told::Durable(place) } else { Told::Weak(place) };
                if durable { "client: told durable" } else { "client: told weak" }
            }
            Err(RepError::OutcomeUnknown { .. }) => "client: outcome unknown",
            Err(_) => "client: stopped",
        };
        oracle.note(id, transaction);
        let durable = met == "client: told durable";
        (pause, Acted { durable, met: Some(met), ..Acted::default() })
    }
}

/// Whether a commit that this policy was met for is on a quorum of disks: the replicas that it asks for
/// make one together with the master, so the master's copy must be synced too.
pub(crate) fn is_durable(durability: Durability) -> bool {
    let local = match durability.local {
        SyncPolicy::Sync => true,
        SyncPolicy::WriteNoSync | SyncPolicy::NoSync => false,
    };
    let replicas = match durability.acks {
        AckPolicy::None => false,
        AckPolicy::SimpleMajority | AckPolicy::All => true,
    };
    let synced = match durability.replica {
        SyncPolicy::Sync | SyncPolicy::WriteNoSync => true,
        SyncPolicy::NoSync => false,
    };
    local && replicas && synced
}

fn running(nodes: &[SimNode], host: Host, life: u32) -> Option<&Process> {
    let node = &nodes[host.0];
    node.process.as_ref().filter(|_| node.lives == life)
}
