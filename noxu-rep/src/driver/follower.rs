//! Follower: the thread that finds the master a node is told to follow, and follows it.
//!
//! Nothing waits for a fixed time: a new order ends whatever goes on; only when no peer could be
//! followed does the next round wait, at first very little.
//!
//! # Not here: one conversation (following.rs); whom to follow (core/node.rs).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_util::Name;
use parking_lot::{Condvar, Mutex};

use super::following::{Established, is_final};
use super::life::Target;
use super::running::Running;
use crate::core::node::Ended;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use crate::stream::replica::ended;
use crate::wire::handshake::RejectReason;

/// First and longest wait between two rounds in which no peer could be followed.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How long a node that nobody has accepted yet bears refusals that time does not mend, before it
/// gives up: a peer may still be closing the connection of this node's previous life.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);

/// What the follower is told.
#[derive(Default)]
pub(crate) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    target: Target,
    /// Counts orders: whoever acts on one sees whether there is another.
    number: u64,
    /// What failed may succeed now.
    again: bool,
    stop: bool,
    dialled: Option<(u64, Result<Arc<dyn Channel>>)>,
    dials: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            target: Target::Nobody,
            number: 0,
            again: false,
            stop: false,
            dialled: None,
            dials: 0,
        }
    }
}

impl Orders {
    /// Whom to follow from now on. Whoever is looking already goes on looking, and waits between two
    /// rounds as before: a master that is found and lost over and over is not dialled without pause.
    pub(crate) fn give(&self, target: Target) {
        let mut state = self.state.lock();
        let continues = target.continues(&state.target);
        state.target = target;
        if !continues {
            state.number += 1;
            self.changed.notify_all();
        }
    }

    /// Where somebody may know, as was said last.
    fn hints(&self) -> Vec<String> {
        match &self.state.lock().target {
            Target::Seek { hints } => hints.clone(),
            Target::Nobody | Target::Master { .. } => Vec::new(),
        }
    }

    /// What failed may succeed now.
    pub(crate) fn look_again(&self) {
        self.state.lock().again = true;
        self.changed.notify_all();
    }

    /// The follower ends.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// The order in force, once it is another than number `after`; `None` at the end.
    fn wait(&self, after: u64) -> Option<(u64, Target)> {
        let mut state = self.state.lock();
        while state.number == after && !state.stop {
            self.changed.wait(&mut state);
        }
        (!state.stop).then(|| (state.number, state.target.clone()))
    }

    /// Whether order `number` is still in force.
    fn stands(&self, number: u64) -> bool {
        let state = self.state.lock();
        state.number == number && !state.stop
    }

    /// Waits for `time`, or until there is another order or something may succeed.
    fn pause(&self, number: u64, time: Duration) {
        let mut state = self.state.lock();
        let deadline = Instant::now() + time;
        while state.number == number && !state.stop && !state.again {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.again = false;
    }
}

/// The thread. Returns when the life ends.
///
/// # Errors
/// What only an operator can settle; everything else is tried again.
pub(crate) fn run(node: &Arc<Running>) -> Result<()> {
    let mut follower = Follower { node, wait: FIRST_WAIT, accepted: false, refused_since: None };
    let mut last = 0;
    while let Some((number, target)) = node.orders.wait(last) {
        last = number;
        match target {
            Target::Nobody => {}
            Target::Master { name, address, .. } => {
                follower.attempt(number, &address, Some(&name))?;
            }
            Target::Seek { .. } => follower.seek(number)?,
        }
    }
    Ok(())
}

/// How an attempt with one peer ended.
enum Attempt {
    /// The stream was open for some time, or a restore has everything.
    Followed,
    /// The master, but nothing came of it.
    Failed,
    /// Not the one to follow; it may have named another.
    NotThis { instead: Option<String> },
}

struct Follower<'a> {
    node: &'a Arc<Running>,
    wait: Duration,
    /// A master has accepted this node in this life.
    accepted: bool,
    refused_since: Option<Duration>,
}

impl Follower<'_> {
    /// Asks everybody, over and over, as long as the order stands.
    fn seek(&mut self, number: u64) -> Result<()> {
        let orders = &self.node.orders;
        while orders.stands(number) {
            let mut candidates: VecDeque<String> = self.candidates(&orders.hints()).into();
            let mut hinted = false;
            while let Some(address) = candidates.pop_front() {
                if !orders.stands(number) {
                    return Ok(());
                }
                match self.attempt(number, &address, None)? {
                    Attempt::Followed => {
                        self.wait = FIRST_WAIT;
                        break;
                    }
                    Attempt::Failed => break,
                    Attempt::NotThis { instead: Some(master) } if !hinted && master != address => {
                        // Followed once a round: two nodes may name each other.
                        hinted = true;
                        candidates.push_front(master);
                    }
                    Attempt::NotThis { .. } => {}
                }
            }
            // Spread, so that nodes that lost the same master do not dial in step.
            orders.pause(number, self.wait.mul_f64(0.5 + fastrand::f64()));
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
        Ok(())
    }

    /// Where somebody may know: where the master was last, first; at last whoever is linked with.
    fn candidates(&self, hints: &[String]) -> Vec<String> {
        let life = &self.node.life;
        let last = life.master_address();
        let mut all: Vec<String> = Vec::new();
        let linked = self.node.links.addresses();
        for address in last.iter().chain(&life.config.peers).chain(hints).chain(&linked) {
            if *address != life.address && !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// One conversation with the node at `address`.
    fn attempt(&mut self, number: u64, address: &str, master: Option<&Name>) -> Result<Attempt> {
        let life = Arc::clone(&self.node.life);
        let Some(dialled) = self.dial(number, address) else {
            return Ok(Attempt::NotThis { instead: None }); // another order came
        };
        let conversed = dialled.and_then(|channel| self.converse(number, &channel, address));
        let stands = self.node.orders.stands(number);
        let (attempt, why) = match conversed {
            Ok(Some(why)) => {
                self.accepted = true;
                (Attempt::Followed, why)
            }
            Ok(None) => (Attempt::NotThis { instead: None }, Ended::Fault),
            Err(cause) => {
                // One that was told to follow somebody else broke it off itself.
                if is_final(&cause) && stands && !life.is_over() || self.gives_up(&cause) {
                    return Err(cause);
                }
                tracing::info!(node = %life.config.name, peer = %address, "{cause}");
                life.note_error(&cause);
                let instead = match &cause {
                    RepError::Rejected(RejectReason::NotMaster { master }) => master.clone(),
                    _ => None,
                };
                (Attempt::NotThis { instead }, ended(&Err(cause)))
            }
        };
        let met = life.handle_conversation_ended(master.filter(|_| stands), why);
        Ok(match attempt {
            Attempt::NotThis { .. } if met => Attempt::Failed,
            other => other,
        })
    }

    /// Follows whoever is at the other end; `None` if that is not the one to follow.
    fn converse(
        &mut self,
        number: u64,
        channel: &Arc<dyn Channel>,
        address: &str,
    ) -> Result<Option<Ended>> {
        let (life, orders) = (&self.node.life, &self.node.orders);
        match life.establish(Arc::clone(channel), address, &|| orders.stands(number))? {
            Established::NotThis => Ok(None),
            Established::Stream(stream) => {
                self.accepted = true;
                let outcome = stream.run();
                let why = ended(&outcome);
                outcome.map(|_| Some(why))
            }
            Established::Restore(from) => {
                if life.restore(&from)? {
                    self.node.begin_next_life();
                }
                Ok(Some(Ended::Fault))
            }
        }
    }

    /// Dials in a thread of its own, because nothing ends a dial; `None` if another order came.
    fn dial(&self, number: u64, address: &str) -> Option<Result<Arc<dyn Channel>>> {
        let (node, at) = (Arc::clone(self.node), address.to_owned());
        let dial_number = {
            let mut state = node.orders.state.lock();
            state.dials += 1;
            state.dials
        };
        self.node.spawn("dial", move |node| {
            let timeout = node.life.config.dial_timeout;
            let dialled = dial(&at, FEEDER_SERVICE_NAME, timeout).map(|c| c as Arc<dyn Channel>);
            let orders = &node.orders;
            let mut state = orders.state.lock();
            if state.dials == dial_number {
                state.dialled = Some((dial_number, dialled));
                orders.changed.notify_all();
            }
            Ok(())
        });
        let orders = &node.orders;
        let mut state = orders.state.lock();
        loop {
            if state.number != number || state.stop {
                return None;
            }
            match state.dialled.take() {
                Some((of, dialled)) if of == dial_number => return Some(dialled),
                Some(_) | None => orders.changed.wait(&mut state),
            }
        }
    }

    /// Whether nobody has ever wanted this node and it is to end with `cause`. A voter goes on: its
    /// group needs it, and whoever refuses it may be a stranger at an address that was a peer's.
    fn gives_up(&mut self, cause: &RepError) -> bool {
        let life = &self.node.life;
        if self.accepted || life.is_voter() || !is_lasting(cause) {
            return false;
        }
        let now = life.clock.now();
        let since = *self.refused_since.get_or_insert(now);
        now.saturating_sub(since) >= REFUSAL_PATIENCE
    }
}

/// Refusals that say that this node does not belong where it asks. One that was accepted before goes
/// on asking: an address among its peers' may have passed to a stranger.
fn is_lasting(cause: &RepError) -> bool {
    matches!(
        cause,
        RepError::Rejected(
            RejectReason::WrongGroupName { .. }
                | RejectReason::WrongGroup { .. }
                | RejectReason::LogFormat { .. }
                | RejectReason::SegmentBytes { .. }
                | RejectReason::Version { .. }
                | RejectReason::DuplicateNode { .. }
                | RejectReason::UnknownMember { .. }
                | RejectReason::Removed { .. }
                | RejectReason::WrongEpoch { .. }
                | RejectReason::NotBound { .. }
        )
    )
}
