//! Links: connections for election messages, one in each direction between any two nodes.
//!
//! A node dials every address that it knows of: configured, of the group's voters, of whoever has
//! dialled it. Messages go one way, from the dialler; a lost one is made up for by the core's
//! timers, so a mailbox that is full forgets its oldest.
//!
//! # Lock order
//! `known` -> a mailbox's `state`. Neither is held while dialling or sending.
//!
//! # Not here: who is let in (wire/election/link.rs), what is said (core/node.rs).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use noxu_util::Name;
use parking_lot::{Condvar, Mutex};

use super::running::Running;
use crate::core::node::Input;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{ELECTION_SERVICE_NAME, dial};
use crate::wire::election::link::{admit, introduce};
use crate::wire::election::{ElectionMsg, Peer};
use crate::wire::handshake::RejectReason;

/// Messages that wait for a link at most.
const MAILBOX: usize = 64;

/// Nodes that are dialled at most.
const MOST_LINKS: usize = 256;

/// First and longest wait between two dials of a node that does not answer.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Wait after a node did not want this one.
const REFUSED_WAIT: Duration = Duration::from_secs(2);

/// Wait of an address that leads to a node with which another link is open, unless something happens.
const DOUBLE_WAIT: Duration = Duration::from_secs(30);

/// How long an incoming link may be silent before it is looked at again whether the node still runs.
const LOOK: Duration = Duration::from_secs(5);

/// The links of one life.
#[derive(Default)]
pub(crate) struct Links {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_address: BTreeMap<String, Arc<Mailbox>>,
    /// Links that are open.
    by_name: BTreeMap<Name, Arc<Mailbox>>,
    /// Addresses nobody dials yet.
    new: Vec<Arc<Mailbox>>,
    stop: bool,
}

/// One address, and what is to be sent there.
struct Mailbox {
    address: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Vec<u8>>,
    /// Something happened that makes a look at the connection, or a dial, worth while.
    poked: bool,
    /// Whoever this address leads to is dialled at another one.
    stop: bool,
}

impl Links {
    /// Nodes of the group are reached at `addresses`.
    pub(crate) fn meet(&self, own: &str, addresses: impl IntoIterator<Item = String>) {
        let mut known = self.known.lock();
        for address in addresses {
            let skip = address.is_empty()
                || address == own
                || known.stop
                || known.by_address.len() >= MOST_LINKS
                || known.by_address.contains_key(&address);
            if skip {
                continue;
            }
            let mailbox = Arc::new(Mailbox {
                address: address.clone(),
                state: Mutex::default(),
                changed: Condvar::new(),
            });
            known.by_address.insert(address, Arc::clone(&mailbox));
            known.new.push(mailbox);
        }
    }

    /// Sends `message` to `name` if there is a link. Never waits.
    pub(crate) fn send(&self, name: &Name, message: &ElectionMsg) {
        let mailbox = self.known.lock().by_name.get(name).cloned();
        if let Some(mailbox) = mailbox {
            let mut state = mailbox.state.lock();
            if state.messages.len() >= MAILBOX {
                state.messages.pop_front();
            }
            state.messages.push_back(message.encode());
            mailbox.changed.notify_one();
        }
    }

    /// A link from `name` has opened or ended: the one to it is looked at.
    fn poke(&self, name: &Name, address: &str) {
        let known = self.known.lock();
        let there = known.by_name.get(name).into_iter().chain(known.by_address.get(address));
        for mailbox in there {
            mailbox.state.lock().poked = true;
            mailbox.changed.notify_one();
        }
    }

    /// Every address that is dialled.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.known.lock().by_address.keys().cloned().collect()
    }

    /// Starts a thread for each new address.
    pub(crate) fn start_new(&self, node: &Arc<Running>) {
        let new = std::mem::take(&mut self.known.lock().new);
        for mailbox in new {
            node.spawn("link", move |node| {
                mailbox.run(node);
                Ok(())
            });
        }
    }

    /// Ends every link.
    pub(crate) fn stop(&self) {
        let mut known = self.known.lock();
        known.stop = true;
        for mailbox in known.by_address.values() {
            mailbox.state.lock().stop = true;
            mailbox.changed.notify_all();
        }
    }

    /// `peer` is reached over `mailbox`; false if another link to it is open.
    fn open(&self, name: &Name, mailbox: &Arc<Mailbox>) -> bool {
        let mut known = self.known.lock();
        match known.by_name.get(name) {
            Some(other) if !Arc::ptr_eq(other, mailbox) => false,
            Some(_) | None => {
                known.by_name.insert(name.clone(), Arc::clone(mailbox));
                true
            }
        }
    }

    fn close(&self, name: &Name, mailbox: &Arc<Mailbox>) {
        let mut known = self.known.lock();
        if known.by_name.get(name).is_some_and(|open| Arc::ptr_eq(open, mailbox)) {
            known.by_name.remove(name);
            // Another address may do.
            for mailbox in known.by_address.values() {
                mailbox.state.lock().poked = true;
                mailbox.changed.notify_one();
            }
        }
    }
}

/// How one connection ended.
enum Ended {
    /// It was open, and broke.
    Broken,
    /// It never opened.
    NotOpened,
    /// The other end, or this one, wants no link.
    Refused,
    /// Another address leads to the same node, and its link is open.
    Double,
    /// The address leads to this node itself.
    Myself,
}

impl Mailbox {
    /// The thread of one address.
    fn run(self: &Arc<Self>, node: &Arc<Running>) {
        let mut wait = FIRST_WAIT;
        while !self.state.lock().stop {
            let pause = match self.connect(node) {
                Ended::Broken => {
                    wait = FIRST_WAIT;
                    wait
                }
                Ended::NotOpened => {
                    wait = (wait * 2).min(LONGEST_WAIT);
                    wait
                }
                Ended::Refused => REFUSED_WAIT,
                Ended::Double => DOUBLE_WAIT,
                Ended::Myself => return,
            };
            let mut state = self.state.lock();
            if !state.stop && !std::mem::take(&mut state.poked) {
                self.changed.wait_for(&mut state, pause);
                state.poked = false;
            }
        }
    }

    fn connect(self: &Arc<Self>, node: &Arc<Running>) -> Ended {
        let life = &node.life;
        let dialled = dial(&self.address, ELECTION_SERVICE_NAME, life.config.dial_timeout);
        let Ok(channel) = dialled else { return Ended::NotOpened };
        let ours = life.introduction();
        let card = match introduce(&*channel, &ours, &|theirs| life.judge(theirs)) {
            Ok(theirs) => theirs,
            Err(RepError::Rejected(reason)) => {
                let myself = matches!(
                    &reason,
                    RejectReason::DuplicateNode { node, incarnation }
                        if *node == ours.peer.name && *incarnation == ours.peer.incarnation
                );
                if myself {
                    return Ended::Myself;
                }
                tracing::info!(node = %life.config.name, peer = %self.address, "no link: {reason}");
                life.note_error(&reason.into());
                return Ended::Refused;
            }
            Err(_) => return Ended::NotOpened,
        };
        let name = card.peer.name.clone();
        self.state.lock().messages.clear(); // of an earlier connection
        if !node.links.open(&name, self) {
            channel.close();
            return Ended::Double;
        }
        node.deliver(Input::LinkUp(card.into()));
        self.ship(&*channel);
        channel.close();
        // First: closing it here lets another link to the same node open.
        node.deliver(Input::LinkDown { name: name.clone() });
        node.links.close(&name, self);
        Ended::Broken
    }

    /// Sends what comes until the connection breaks or the life ends.
    fn ship(&self, channel: &dyn Channel) {
        loop {
            let message = {
                let mut state = self.state.lock();
                while state.messages.is_empty() && !state.poked && !state.stop {
                    self.changed.wait(&mut state);
                }
                if state.stop {
                    return;
                }
                state.poked = false;
                state.messages.pop_front()
            };
            // Nothing comes this way: anything but silence means that it is broken.
            if !matches!(channel.receive(Duration::ZERO), Ok(None)) {
                return;
            }
            if let Some(message) = message
                && channel.send(&message).is_err()
            {
                return;
            }
        }
    }
}

/// Serves a link that another node has opened.
pub(super) fn serve(node: &Arc<Running>, channel: &Arc<dyn Channel>) -> Result<()> {
    let life = &node.life;
    let theirs = admit(&**channel, &life.introduction(), &|theirs| life.judge(theirs))?;
    let Peer { name, .. } = &theirs.peer;
    node.meet(vec![theirs.address.clone()]);
    node.links.poke(name, &theirs.address);
    if let Some(news) = life.news_of(&theirs) {
        node.deliver(news);
    }
    let outcome = receive(node, &**channel, &theirs.peer);
    node.links.poke(name, &theirs.address);
    outcome
}

fn receive(node: &Arc<Running>, channel: &dyn Channel, from: &Peer) -> Result<()> {
    while !node.life.is_over() {
        let Some(frame) = channel.receive(LOOK)? else { continue };
        let message = ElectionMsg::decode(&frame)?;
        node.deliver(Input::Message { from: from.clone(), message });
    }
    Ok(())
}
