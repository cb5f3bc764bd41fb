//! Follower: the thread that finds the master a node is told to follow, and follows it.
//!
//! Nothing waits for a fixed time: a new order ends whatever goes on; only when no peer could be
//! followed does the next round wait, at first very little.
//!
//! # Not here: one conversation (following.rs); whom to follow (core/node.rs), whom to ask next
//! (core/search.rs).

use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_util::Name;
use parking_lot::{Condvar, Mutex};

use super::following::is_final;
use super::life::Target;
use super::running::Running;
use crate::core::search::{Attempt, Search};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use crate::wire::handshake::RejectReason;

/// How long a node that nobody has accepted yet bears refusals that time does not mend, before it
/// gives up: a peer may still be closing the connection of this node's previous life.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);

/// What the follower is told.
#[derive(Default)]
pub(crate) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
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
    let mut follower = Follower { node, search: Search::default(), refused_since: None };
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

struct Follower<'a> {
    node: &'a Arc<Running>,
    search: Search,
    refused_since: Option<Duration>,
}

impl Follower<'_> {
    /// Asks everybody, over and over, as long as the order stands.
    fn seek(&mut self, number: u64) -> Result<()> {
        let orders = &self.node.orders;
        while orders.stands(number) {
            let known = self.known();
            self.search.begin_round(&self.node.life.address, known);
            while let Some(address) = self.search.poll_candidate() {
                let attempt = self.attempt(number, &address, None)?;
                self.search.handle_attempt(&address, attempt);
                if !orders.stands(number) {
                    return Ok(());
                }
            }
            orders.pause(number, self.search.end_round(fastrand::f64()));
        }
        Ok(())
    }

    /// Where somebody may know: where the master was last, first; at last whoever is linked with.
    fn known(&self) -> Vec<String> {
        let life = &self.node.life;
        let mut known: Vec<String> = life.master_address().into_iter().collect();
        known.extend_from_slice(&life.config.peers);
        known.extend(self.node.orders.hints());
        known.extend(self.node.links.addresses());
        known
    }

    /// One conversation with the node at `address`.
    fn attempt(&mut self, number: u64, address: &str, master: Option<&Name>) -> Result<Attempt> {
        let (node, orders) = (self.node, &self.node.orders);
        let Some(dialled) = self.dial(number, address) else {
            return Ok(Attempt::NotThis { instead: None }); // another order came
        };
        let wanted = || orders.stands(number);
        let next_life = || node.begin_next_life();
        let life = &node.life;
        let outcome =
            dialled.and_then(|channel| life.converse(channel, address, &wanted, &next_life));
        let stands = orders.stands(number);
        match outcome {
            // One that was told to follow somebody else broke it off itself.
            Err(cause) if is_final(&cause) && stands && !life.is_over() => Err(cause),
            Err(cause) if self.gives_up(&cause) => Err(cause),
            outcome => {
                if let Err(cause) = &outcome {
                    tracing::info!(node = %life.config.name, peer = %address, "{cause}");
                    life.note_error(cause);
                }
                Ok(life.handle_conversation_ended(master.filter(|_| stands), outcome))
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
        if life.was_accepted() || life.is_voter() || !is_lasting(cause) {
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
