//! Stage: what every world stands on: time, machines with clocks, a network, tasks.
//!
//! [`Stage::step`] lets the next event happen. What concerns only the stage, a frame for a task that
//! waits, it does itself; the rest it hands up.
//!
//! A machine that is *paused*, as a hung or stopped process is, does nothing: what is for it waits,
//! in order, until it goes on. Its clock runs on.
//!
//! # Not here: nodes, disks and clients.

use std::collections::BTreeMap;

use crate::baton::{Tasks, Waiter};
use crate::clock::MachineClock;
use crate::dice::Dice;
use crate::event::{Agenda, Event, Host, Nanos, Turn};
use crate::network::{Arrived, NetEvent, NetPlan, Network, News};
use crate::trace::Trace;

use xxhash_rust::xxh3::xxh3_64;

/// Time, machines with clocks, a network, tasks.
pub struct Stage {
    /// What is to happen.
    pub agenda: Agenda,
    /// What carries frames and datagrams.
    pub network: Network,
    /// Conversations that block.
    pub tasks: Tasks,
    /// What happened.
    pub trace: Trace,
    clocks: Vec<MachineClock>,
    paused: BTreeMap<Host, Vec<Event>>,
    acted: Option<Host>,
}

/// What happened, as far as the world has to do something about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Happened {
    /// Nothing that the world has to care about.
    Nothing,
    /// A machine got something from the network.
    News(News),
    /// The world's own business.
    Turn {
        /// Whose.
        host: Option<Host>,
        /// Which.
        turn: Turn,
    },
}

impl Stage {
    /// One with a machine for each of the clocks.
    pub fn new(dice: Dice, plan: NetPlan, clocks: Vec<MachineClock>) -> Self {
        let agenda = Agenda::default();
        let network = Network::new(agenda.clone(), plan, dice.stream("net"));
        let (tasks, trace) = (Tasks::default(), Trace::default());
        Self { agenda, network, tasks, trace, clocks, paused: BTreeMap::new(), acted: None }
    }

    /// The time.
    pub fn now(&self) -> Nanos {
        self.agenda.now()
    }

    /// A machine's clock.
    pub fn clock(&self, host: Host) -> &MachineClock {
        &self.clocks[host.0]
    }

    /// A machine's clock, to be set.
    pub fn clock_mut(&mut self, host: Host) -> &mut MachineClock {
        &mut self.clocks[host.0]
    }

    /// Begins a conversation on `host`, now.
    pub fn begin_task(&mut self, host: Host, act: impl FnOnce() + Send + 'static) {
        let waiter = self.tasks.spawn(host, act);
        self.agenda.post(self.now(), Event::Wake(waiter));
    }

    /// The machine does nothing from now on.
    pub fn pause(&mut self, host: Host) {
        self.paused.entry(host).or_default();
    }

    /// It goes on, with what has waited.
    pub fn go_on(&mut self, host: Host) {
        for event in self.paused.remove(&host).unwrap_or_default() {
            self.agenda.post(self.now(), event);
        }
    }

    /// Whether it is paused.
    pub fn is_paused(&self, host: Host) -> bool {
        self.paused.contains_key(&host)
    }

    /// Ends the machine's conversations, and forgets what waited for it.
    pub fn handle_stopped(&mut self, host: Host) {
        self.clocks[host.0].set(self.agenda.now());
        self.paused.remove(&host);
        self.tasks.cancel(host);
    }

    /// On which machine the last event happened; `None` if it was none's, or changed nothing there.
    pub fn acted(&self) -> Option<Host> {
        self.acted
    }

    /// Lets the next event happen; `None` if there is none.
    pub fn step(&mut self) -> Option<Happened> {
        let (now, event) = self.agenda.next()?;
        let host = self.host_of(&event);
        self.acted = host;
        if let Some(host) = host
            && let Some(waiting) = self.paused.get_mut(&host)
        {
            waiting.push(event);
            return Some(self.nothing());
        }
        if let Some(host) = host {
            self.clocks[host.0].set(now);
        }
        Some(match event {
            Event::Wake(waiter) => self.resume(now, waiter),
            Event::Told(host, listener) => Happened::News(News::Listener { host, listener }),
            Event::Turn(host, turn) => Happened::Turn { host, turn },
            Event::Net(event) => {
                self.note_net(now, host, &event);
                match self.network.handle_arrival(event) {
                    Arrived::Nothing => self.nothing(),
                    Arrived::Resume(waiter) => self.resume(now, waiter),
                    Arrived::News(news) => Happened::News(news),
                }
            }
        })
    }

    fn resume(&mut self, now: Nanos, waiter: Waiter) -> Happened {
        if !self.tasks.resume(waiter) {
            return self.nothing(); // over before
        }
        self.trace.note(now, format_args!("{waiter} over"));
        Happened::Nothing
    }

    /// The event concerned nobody after all.
    fn nothing(&mut self) -> Happened {
        self.acted = None;
        Happened::Nothing
    }

    fn host_of(&self, event: &Event) -> Option<Host> {
        match event {
            Event::Net(event) => self.network.addressee(event),
            Event::Wake(waiter) => self.tasks.host(waiter.task()),
            Event::Told(host, _) => Some(*host),
            Event::Turn(host, _) => *host,
        }
    }

    fn note_net(&mut self, now: Nanos, host: Option<Host>, event: &NetEvent) {
        let Some(host) = host else { return };
        match event {
            NetEvent::Syn { to } => self.trace.note(now, format_args!("{host} {to} dialled")),
            NetEvent::Answer { to, accepted } => {
                self.trace.note(now, format_args!("{host} {to} accepted: {accepted}"));
            }
            NetEvent::Frame { to, frame } => {
                let (len, hash) = (frame.len(), xxh3_64(frame));
                self.trace.note(now, format_args!("{host} {to} frame of {len}, {hash:016x}"));
            }
            NetEvent::Close { to } => self.trace.note(now, format_args!("{host} {to} closed")),
            NetEvent::Datagram { from, bytes, .. } => {
                let (len, hash) = (bytes.len(), xxh3_64(bytes));
                self.trace.note(now, format_args!("{host} from {from}: {len}, {hash:016x}"));
            }
        }
    }
}
