//! Workload: clients that run transactions on whoever they take for the master, and remember what
//! they were told.
//!
//! A client begins a transaction, thinks, and commits, at different turns, so that transactions
//! overlap. Nothing waits: what became of a commit is told by a callback.
//!
//! # Not here: what the transactions do (embed.rs), judging what they were told (oracle.rs).

use std::sync::Arc;
use std::time::Duration;

use noxu_rep::core::durability::{AckPolicy, SyncPolicy};
use noxu_rep::driver::master::Admit;
use noxu_rep::{Durability, RepError};
use parking_lot::Mutex;

use crate::dice::{Dice, Draw, Rng};
use crate::embed::Embedded;
use crate::event::{Host, Nanos};
use crate::network::Network;
use crate::node::{Process, SimNode};
use crate::oracle::{Oracle, Place, Told, Transaction, TxnId};
use crate::plan::Plan;

/// What a callback has told a client.
type Answer = Arc<Mutex<Option<Result<(), RepError>>>>;

/// One client.
pub(crate) struct Client<E: Embedded> {
    rng: Rng,
    believes: Host,
    state: State<E::Draft>,
    /// Numbers its transactions.
    next: u64,
    stride: u64,
}

enum State<D> {
    Idle,
    Begun(Begun<D>),
    Waiting(Waiting),
}

/// A transaction that is open, in this life of that node.
struct Begun<D> {
    host: Host,
    life: u32,
    id: TxnId,
    began: Nanos,
    draft: D,
}

/// One that is written, and without an answer.
struct Waiting {
    host: Host,
    life: u32,
    id: TxnId,
    place: Place,
    answer: Answer,
    durable: bool,
    since: Nanos,
}

/// What clients find at the moment.
pub(crate) struct Group<'a, E: Embedded> {
    pub(crate) embedded: &'a E,
    pub(crate) now: Nanos,
    pub(crate) nodes: &'a [SimNode<E>],
    pub(crate) reachable: &'a dyn Fn(Host) -> bool,
    pub(crate) plan: &'a Plan,
}

impl<E: Embedded> Group<'_, E> {
    /// The process of this number on a machine, if it still runs.
    fn running(&self, host: Host, life: u32) -> Option<&Process<E>> {
        let node = &self.nodes[host.0];
        node.process.as_ref().filter(|_| node.lives == life)
    }
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

impl Acted {
    /// Nothing but this.
    fn met(what: &'static str) -> Self {
        Self { met: Some(what), ..Self::default() }
    }
}

/// Between two looks whether an answer has come.
const LOOK: Duration = Duration::from_millis(5);
/// Between two attempts to find a master.
const RETRY: Duration = Duration::from_millis(30);
/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl<E: Embedded> Client<E> {
    /// Number `number` of `plan`'s.
    pub(crate) fn new(dice: Dice, plan: &Plan, number: usize) -> Self {
        let mut rng = dice.stream(&format!("client {number}"));
        let believes = Host(rng.usize(..plan.voters));
        Self { rng, believes, state: State::Idle, next: number as u64, stride: plan.clients as u64 }
    }

    /// Whether it waits for an answer.
    pub(crate) const fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// Its turn; returns when the next one is.
    pub(crate) fn turn(
        &mut self,
        group: &Group<'_, E>,
        oracle: &mut Oracle<E::Record>,
    ) -> (Duration, Acted) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.begin(group),
            State::Begun(begun) => {
                let process = group.running(begun.host, begun.life);
                match process.filter(|_| (group.reachable)(begun.host)) {
                    Some(process) => self.commit(group, process, begun, oracle),
                    None => (RETRY, Acted::met("client: master gone")),
                }
            }
            State::Waiting(waiting) => {
                let told = waiting.answer.lock().take();
                let gone = group.running(waiting.host, waiting.life).is_none();
                match told {
                    None if !gone && group.now.since(waiting.since) < PATIENCE => {
                        self.state = State::Waiting(waiting);
                        (LOOK, Acted::default())
                    }
                    None => (RETRY, Acted::met("client: no answer")),
                    Some(outcome) => self.hear(group, &waiting, &outcome, oracle),
                }
            }
        }
    }

    fn begin(&mut self, group: &Group<'_, E>) -> (Duration, Acted) {
        let Group { embedded, now, nodes, reachable, plan } = *group;
        let host = self.believes;
        let process = nodes[host.0].process.as_ref().filter(|_| reachable(host));
        let Some(process) = process.filter(|process| process.life.mastership().is_some()) else {
            // Whom it asked may know; otherwise anybody.
            let named = process.and_then(|process| process.life.master_address());
            let named = named.and_then(|address| Network::host_of(&address));
            self.believes = named
                .filter(|named| *named != host)
                .unwrap_or_else(|| Host(self.rng.usize(..plan.voters)));
            return (RETRY, Acted::met("client: not the master"));
        };
        let id = TxnId(self.next);
        self.next += self.stride;
        let draft = match embedded.begin(&process.engine, id, &mut self.rng, plan) {
            Ok(draft) => draft,
            Err(why) => return (RETRY, Acted::met(why)),
        };
        let life = nodes[host.0].lives;
        self.state = State::Begun(Begun { host, life, id, began: now, draft });
        (plan.think.mul_f64(self.rng.f64() * 0.5), Acted { host: Some(host), ..Acted::default() })
    }

    fn commit(
        &mut self,
        group: &Group<'_, E>,
        process: &Process<E>,
        begun: Begun<E::Draft>,
        oracle: &mut Oracle<E::Record>,
    ) -> (Duration, Acted) {
        let Begun { host, life, id, began, draft } = begun;
        let durability = self.rng.weighted(&group.plan.durabilities);
        let met = |what| Acted { host: Some(host), ..Acted::met(what) };
        let Ok(master) = process.life.sitting_master() else {
            return (RETRY, met("client: deposed"));
        };
        let admission = match master.try_admit(durability) {
            Admit::Yes(admission) => admission,
            Admit::Replicas { .. } => return (RETRY, met("client: too few replicas")),
            Admit::Room => return (RETRY, met("client: no room")),
            Admit::Applied(_) => return (RETRY, met("client: term not applied")),
            Admit::Closed => return (RETRY, met("client: mastership over")),
        };
        let (submitted, record) = match group.embedded.commit(&process.engine, draft, admission) {
            Ok(written) => written,
            Err(why) => return (RETRY, met(why)),
        };
        let (vlsn, term) = (submitted.vlsn(), submitted.term());
        let place = Place { vlsn, term, fingerprint: submitted.fingerprint() };
        oracle.note(id, Transaction { began, ended: None, told: Told::Unknown(place), record });
        let answer = Answer::default();
        let theirs = Arc::clone(&answer);
        submitted.start();
        submitted.on_done(move |outcome| *theirs.lock() = Some(outcome));
        let (durable, since) = (is_durable(durability), group.now);
        self.state = State::Waiting(Waiting { host, life, id, place, answer, durable, since });
        (LOOK, met("client: written"))
    }

    fn hear(
        &mut self,
        group: &Group<'_, E>,
        waiting: &Waiting,
        outcome: &Result<(), RepError>,
        oracle: &mut Oracle<E::Record>,
    ) -> (Duration, Acted) {
        let pause = group.plan.think.mul_f64(self.rng.f64());
        let Waiting { id, place, durable, .. } = *waiting;
        let (told, what) = match outcome {
            Ok(()) if durable => (Some(Told::Durable(place)), "client: told durable"),
            Ok(()) => (Some(Told::Weak(place)), "client: told weak"),
            Err(RepError::OutcomeUnknown { .. }) => (None, "client: outcome unknown"),
            Err(_) => (None, "client: stopped"),
        };
        let durable = durable && told.is_some();
        if let Some(told) = told {
            oracle.tell(id, told, group.now);
        }
        (pause, Acted { durable, ..Acted::met(what) })
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
