//! Network: what becomes of what machines say to each other.
//!
//! # Model
//! - A *connection* carries frames in order, each way with a delay, and at most so many bytes a
//!   second over a slow line. While the way is blocked its frames wait, and come after all when it
//!   is free again, unless a side gave up.
//! - A process that dies takes its connections with it: its kernel closes them. A machine that loses
//!   power says nothing; once it is back it answers what still comes with a reset.
//! - A *datagram* may be lost, come twice, or later than one that was sent after it; on a blocked
//!   way it is gone.
//! - Now and then a frame is garbled: cut short, sent twice, left out, replaced, or damaged behind
//!   its head. (Not in the head: like every protocol over TCP, ours rests on TCP's checksum there.)
//!
//! # Lock order
//! `state`, then the agenda.
//!
//! # Not here: the blocking side of a connection (channel.rs), what nodes say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use noxu_rep::error::{RepError, Result};
use parking_lot::{Mutex, MutexGuard};

use crate::baton::{self, Waiter};
use crate::channel::SimChannel;
use crate::coverage::Coverage;
use crate::dice::Draw;
use crate::event::{Agenda, Event, Host, Nanos};
use crate::hold::{Hold, Kept, Kind};

/// How the network behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct NetPlan {
    /// The least delay of a frame or datagram.
    pub delay: Duration,
    /// How much is drawn on top of it, at most.
    pub jitter: Duration,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that a datagram comes twice.
    pub repeat: f64,
    /// Probability that a datagram takes ten times as long.
    pub straggle: f64,
    /// Probability that a frame of a connection is garbled.
    pub garble: f64,
    /// Bytes a second on a way that [`Network::slow_down`] names.
    pub slow_bytes_per_second: u64,
}

impl Default for NetPlan {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(100),
            jitter: Duration::from_micros(100),
            loss: 0.0,
            repeat: 0.0,
            straggle: 0.0,
            garble: 0.0,
            slow_bytes_per_second: 64 << 10,
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndId {
    conn: u64,
    /// 0 for who dialled, 1 for who was dialled.
    side: usize,
}

impl EndId {
    const fn other(self) -> Self {
        Self { conn: self.conn, side: 1 - self.side }
    }
}

impl fmt::Display for EndId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.conn, if self.side == 0 { '>' } else { '<' })
    }
}

/// What is under way.
#[derive(Debug)]
pub enum NetEvent {
    /// Somebody dials.
    Syn {
        /// The end that is dialled.
        to: EndId,
    },
    /// The answer.
    Answer {
        /// The end that dialled.
        to: EndId,
        /// Whether somebody listens there.
        accepted: bool,
    },
    /// A frame.
    Frame {
        /// Where it goes.
        to: EndId,
        /// What it is.
        frame: Vec<u8>,
    },
    /// The other end is closed; all its frames came before.
    Close {
        /// Where it goes.
        to: EndId,
    },
    /// A message outside of connections.
    Datagram {
        /// Who sent it.
        from: Host,
        /// Whom to.
        to: Host,
        /// What it says.
        bytes: Vec<u8>,
    },
}

/// What comes of something that arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Nothing.
    Nothing,
    /// Resume this wait.
    Resume(Waiter),
    /// The world has to do something about it.
    News(News),
}

/// What a machine gets from the network, as far as no task waits for it.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody dials: [`Network::accept`] or [`Network::refuse`].
    Knock {
        /// The end that is dialled.
        end: EndId,
        /// Who dials.
        from: Host,
        /// Who is dialled.
        to: Host,
        /// What it is dialled for.
        service: &'static str,
    },
    /// A channel that has a listener has something to receive, or was closed.
    Listener {
        /// Whose.
        host: Host,
        /// The listener.
        listener: u64,
    },
    /// A datagram.
    Datagram {
        /// Who sent it.
        from: Host,
        /// Whom to.
        to: Host,
        /// What it says.
        bytes: Vec<u8>,
    },
}

/// The network of a world. A clone is the same network.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    agenda: Agenda,
    state: Mutex<State>,
}

struct State {
    plan: NetPlan,
    rng: Rng,
    coverage: Coverage,
    connections: BTreeMap<u64, Connection>,
    dialled: u64,
    /// Ways, from and to, on which nothing passes.
    blocked: BTreeSet<(Host, Host)>,
    /// What waits for a blocked way, in order.
    held: BTreeMap<(Host, Host), VecDeque<NetEvent>>,
    slow: BTreeSet<(Host, Host)>,
    /// What a scenario keeps back.
    holds: Vec<Hold>,
    /// Machines without power.
    dark: BTreeSet<Host>,
    /// The services whose frames are kept for whoever watches, and those sent since it looked.
    watched: &'static [&'static str],
    seen: Vec<Seen>,
}

/// A short frame that a dialler has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// For which service.
    pub service: &'static str,
    /// Who sent it.
    pub from: Host,
    /// All of it.
    pub frame: Vec<u8>,
}

struct Connection {
    service: &'static str,
    stage: Stage,
    ends: [End; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Dialling,
    Refused,
    Open,
}

struct End {
    host: Host,
    inbox: VecDeque<Vec<u8>>,
    /// Bytes sent to this end that it has not taken.
    unread: usize,
    closed: bool,
    /// The other end's close has come.
    finished: bool,
    waiter: Option<Waiter>,
    listener: Option<u64>,
    /// When the latest frame to this end arrives: no later one may come before it.
    latest: Nanos,
    /// When the line to this end is free, if it is a slow one.
    free: Nanos,
}

impl End {
    fn new(host: Host) -> Self {
        Self {
            host,
            inbox: VecDeque::new(),
            unread: 0,
            closed: false,
            finished: false,
            waiter: None,
            listener: None,
            latest: Nanos::default(),
            free: Nanos::default(),
        }
    }

    /// Who is to learn that something changed at this end.
    fn tell(&mut self) -> Arrived {
        match (self.waiter.take(), self.listener) {
            (Some(waiter), _) => Arrived::Resume(waiter),
            (None, Some(listener)) => Arrived::News(News::Listener { host: self.host, listener }),
            (None, None) => Arrived::Nothing,
        }
    }
}

/// Bytes that an end leaves unread at which whoever sends more takes it for gone.
pub const MOST_UNREAD_BYTES: usize = 32 << 20;

/// Frames longer than that are not kept for who watches.
const WATCHED_BYTES: usize = 128;

/// A frame this long may be damaged behind its head.
const DAMAGED_FROM: usize = 128;

impl Network {
    /// A network whose events go to `agenda`.
    pub fn new(agenda: Agenda, plan: NetPlan, rng: Rng) -> Self {
        let state = State {
            plan,
            rng,
            coverage: Coverage::default(),
            connections: BTreeMap::new(),
            dialled: 0,
            blocked: BTreeSet::new(),
            held: BTreeMap::new(),
            slow: BTreeSet::new(),
            holds: Vec::new(),
            dark: BTreeSet::new(),
            watched: &[],
            seen: Vec::new(),
        };
        Self { shared: Arc::new(Shared { agenda, state: Mutex::new(state) }) }
    }

    /// The address of a machine.
    pub fn address(host: Host) -> String {
        format!("sim-{}", host.0)
    }

    /// Whose address it is.
    pub fn host_of(address: &str) -> Option<Host> {
        address.strip_prefix("sim-")?.parse().ok().map(Host)
    }

    /// From now on it behaves so.
    pub fn change_plan(&self, change: impl FnOnce(&mut NetPlan)) {
        change(&mut self.shared.state.lock().plan);
    }

    /// Keeps what diallers send for `services` in short frames, for [`Network::take_seen`].
    pub fn watch(&self, services: &'static [&'static str]) {
        self.shared.state.lock().watched = services;
    }

    /// The short frames that diallers have sent for the watched services since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.state.lock().seen)
    }

    /// What happened in it.
    pub fn coverage(&self) -> Coverage {
        self.shared.state.lock().coverage.clone()
    }

    // ---------------------------------------------------------------- faults

    /// Nothing passes from `from` to `to` any more.
    pub fn block(&self, from: Host, to: Host) {
        let mut state = self.shared.state.lock();
        state.blocked.insert((from, to));
        state.coverage.count("net: way blocked");
    }

    /// The way is free again; what waited on it comes now.
    pub fn free(&self, from: Host, to: Host) {
        let mut state = self.shared.state.lock();
        if !state.blocked.remove(&(from, to)) {
            return;
        }
        let held = state.held.remove(&(from, to)).unwrap_or_default();
        for event in held {
            state.coverage.count("net: delivered after a block");
            self.dispatch(&mut state, from, to, event);
        }
    }

    /// Every way is free again and none is slow.
    pub fn free_all(&self) {
        let blocked: Vec<_> = self.shared.state.lock().blocked.iter().copied().collect();
        for (from, to) in blocked {
            self.free(from, to);
        }
        self.shared.state.lock().slow.clear();
    }

    /// Whether the way is blocked.
    pub fn is_blocked(&self, from: Host, to: Host) -> bool {
        self.shared.state.lock().blocked.contains(&(from, to))
    }

    /// The line from `from` to `to` is slow, or is not any more.
    pub fn slow_down(&self, from: Host, to: Host, slow: bool) {
        let mut state = self.shared.state.lock();
        if slow {
            state.slow.insert((from, to));
            state.coverage.count("net: slow line");
        } else {
            state.slow.remove(&(from, to));
        }
    }

    /// From now on messages of this kind wait on these ways, under a name.
    pub(crate) fn hold(&self, name: &str, kind: Kind, ways: &[(Host, Host)]) {
        self.shared.state.lock().holds.push(Hold::new(name, kind, ways));
    }

    /// Whether anything waits under this name.
    pub(crate) fn has_held(&self, name: &str) -> bool {
        let state = self.shared.state.lock();
        state.holds.iter().any(|hold| hold.is_named(name) && hold.has_any())
    }

    /// No more is held under this name; what waits goes on waiting. False if there is no such name.
    pub(crate) fn end_hold(&self, name: &str) -> bool {
        let mut state = self.shared.state.lock();
        let hold = state.holds.iter_mut().find(|hold| hold.is_named(name));
        hold.map(Hold::end).is_some()
    }

    /// Nothing is held under this name any more; what has waited comes now, if `comes`. False if
    /// there is no such name.
    pub(crate) fn release(&self, name: &str, comes: bool) -> bool {
        let mut state = self.shared.state.lock();
        let Some(kept) = state.take_held(name) else { return false };
        for Kept { from, to, event, .. } in kept.into_iter().filter(|_| comes) {
            self.dispatch(&mut state, from, to, event);
        }
        true
    }

    /// The frames that wait under this name come on the newest connection for the same service, as
    /// if somebody between the machines had joined it to the one that they were sent on; nothing is
    /// held any more. False if there is no such name, or no such connection.
    pub(crate) fn replay(&self, name: &str) -> bool {
        let mut state = self.shared.state.lock();
        let Some(kept) = state.take_held(name) else { return false };
        for Kept { from, to, service, event } in kept {
            let NetEvent::Frame { to: EndId { side, .. }, frame } = event else { continue };
            let is_it = |connection: &Connection| {
                connection.service == service
                    && connection.stage == Stage::Open
                    && connection.ends[side].host == to
                    && connection.ends[1 - side].host == from
            };
            let newest = state.connections.iter().rev().find(|(_, connection)| is_it(connection));
            let Some(conn) = newest.map(|(conn, _)| *conn) else { return false };
            let end = EndId { conn, side };
            if let Some(theirs) = state.end(end) {
                theirs.unread += frame.len();
            }
            let event = NetEvent::Frame { to: end, frame };
            let at = state.arrival(self.shared.agenda.now(), (from, to), &event);
            self.shared.agenda.post(at, Event::Net(event));
        }
        true
    }

    /// Every connection between two machines is reset.
    pub fn reset(&self, a: Host, b: Host) {
        let mut state = self.shared.state.lock();
        let between = |connection: &Connection| {
            let [x, y] = [connection.ends[0].host, connection.ends[1].host];
            (x, y) == (a, b) || (x, y) == (b, a)
        };
        let conns: Vec<u64> = state
            .connections
            .iter()
            .filter(|(_, connection)| between(connection))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            state.coverage.count("net: reset");
            for side in 0..2 {
                // As if the other end had closed, and nothing that is under way came any more.
                let end = EndId { conn, side };
                let Some(ours) = state.end(end) else { continue };
                ours.inbox.clear();
                self.shared.agenda.post_in(Duration::ZERO, Event::Net(NetEvent::Close { to: end }));
            }
        }
    }

    /// The process on `host` died: its kernel closes what it had open.
    pub fn handle_killed(&self, host: Host) {
        for end in self.ends_of(host) {
            self.close(end);
        }
    }

    /// The machine lost its power: nobody learns of it.
    pub fn handle_dark(&self, host: Host) {
        let ends = self.ends_of(host);
        let mut state = self.shared.state.lock();
        state.dark.insert(host);
        for end in ends {
            if let Some(end) = state.end(end) {
                end.closed = true;
                end.inbox.clear();
            }
        }
    }

    /// The machine has power again.
    pub fn handle_light(&self, host: Host) {
        self.shared.state.lock().dark.remove(&host);
    }

    fn ends_of(&self, host: Host) -> Vec<EndId> {
        let state = self.shared.state.lock();
        let mut ends = Vec::new();
        for (conn, connection) in &state.connections {
            for (side, end) in connection.ends.iter().enumerate() {
                if end.host == host && !end.closed {
                    ends.push(EndId { conn: *conn, side });
                }
            }
        }
        ends
    }

    // ---------------------------------------------------------------- connections

    /// Dials `to` for `service`; for tasks, since it waits.
    ///
    /// # Errors
    /// Nobody listens there, or no answer came in time.
    pub fn dial(
        &self,
        from: Host,
        to: Host,
        service: &'static str,
        timeout: Duration,
    ) -> Result<SimChannel> {
        self.dial_telling(from, to, service, timeout, |_| ())
    }

    /// As [`Network::dial`]; whoever `told` tells of the end may give up with [`Network::close`].
    ///
    /// # Errors
    /// The same, or it was given up.
    pub fn dial_telling(
        &self,
        from: Host,
        to: Host,
        service: &'static str,
        timeout: Duration,
        told: impl FnOnce(EndId),
    ) -> Result<SimChannel> {
        let failed = || RepError::Closed { peer: Self::address(to) };
        let end = {
            let mut state = self.shared.state.lock();
            let conn = state.dialled;
            state.dialled += 1;
            let ends = [End::new(from), End::new(to)];
            state.connections.insert(conn, Connection { service, stage: Stage::Dialling, ends });
            let end = EndId { conn, side: 0 };
            self.dispatch(&mut state, from, to, NetEvent::Syn { to: end.other() });
            end
        };
        told(end);
        let channel = SimChannel::new(self.clone(), end, to);
        let deadline = self.shared.agenda.now() + timeout;
        loop {
            let state = self.shared.state.lock();
            let dialled = state.connections.get(&end.conn).map(|c| (c.stage, c.ends[0].closed));
            drop(state);
            match dialled {
                Some((Stage::Open, false)) => return Ok(channel),
                Some((Stage::Dialling, false)) => {}
                Some((Stage::Refused, _) | (_, true)) | None => return Err(failed()),
            }
            if !self.wait_at(end, deadline) {
                return Err(failed());
            }
        }
    }

    /// Lets the calling task wait until something happens at `end`. False if the time is up or the
    /// task was cancelled.
    pub(crate) fn wait_at(&self, end: EndId, deadline: Nanos) -> bool {
        if self.shared.agenda.now() >= deadline || baton::is_cancelled() {
            return false;
        }
        let waiter = baton::next_wait().expect("only a task may wait for a frame");
        match self.shared.state.lock().end(end) {
            Some(end) => end.waiter = Some(waiter),
            None => return false,
        }
        self.shared.agenda.post(deadline, Event::Wake(waiter));
        baton::wait()
    }

    /// Takes the connection.
    ///
    /// # Panics
    /// If nobody dials there.
    pub fn accept(&self, end: EndId) -> SimChannel {
        let mut state = self.shared.state.lock();
        let connection = state.connections.get_mut(&end.conn).expect("somebody dials");
        connection.stage = Stage::Open;
        let [from, to] = [connection.ends[0].host, connection.ends[1].host];
        let answer = NetEvent::Answer { to: end.other(), accepted: true };
        self.dispatch(&mut state, to, from, answer);
        drop(state);
        SimChannel::new(self.clone(), end, from)
    }

    /// Nobody listens.
    pub fn refuse(&self, end: EndId) {
        let mut state = self.shared.state.lock();
        let Some(connection) = state.connections.get_mut(&end.conn) else { return };
        let [from, to] = [connection.ends[0].host, connection.ends[1].host];
        connection.ends[1].closed = true;
        let answer = NetEvent::Answer { to: end.other(), accepted: false };
        self.dispatch(&mut state, to, from, answer);
    }

    pub(crate) fn send(&self, end: EndId, frame: Vec<u8>) -> bool {
        let mut state = self.shared.state.lock();
        let Some((from, to)) = state.way(end) else { return false };
        state.watch(end, &frame);
        let frames = state.garbled(frame);
        for frame in frames {
            let len = frame.len();
            let Some(theirs) = state.end(end.other()) else { return false };
            theirs.unread += len;
            if theirs.unread > MOST_UNREAD_BYTES && theirs.unread > len {
                return false;
            }
            self.dispatch(&mut state, from, to, NetEvent::Frame { to: end.other(), frame });
        }
        true
    }

    /// The next frame; `Err` if none comes any more.
    pub(crate) fn take(&self, end: EndId) -> Result<Option<Vec<u8>>, ()> {
        let mut state = self.shared.state.lock();
        let Some(end) = state.end(end) else { return Err(()) };
        if end.closed {
            return Err(());
        }
        match end.inbox.pop_front() {
            Some(frame) => {
                end.unread -= frame.len();
                Ok(Some(frame))
            }
            None if end.finished => Err(()),
            None => Ok(None),
        }
    }

    /// Whether something can be received at `end`, a close included.
    pub(crate) fn is_ready(&self, end: EndId) -> bool {
        let mut state = self.shared.state.lock();
        state.end(end).is_none_or(|end| end.closed || end.finished || !end.inbox.is_empty())
    }

    /// Bytes that were sent from `end` and not taken at the other one.
    pub(crate) fn backlog(&self, end: EndId) -> usize {
        self.shared.state.lock().end(end.other()).map_or(0, |theirs| theirs.unread)
    }

    pub(crate) fn listen(&self, end: EndId, listener: u64) {
        if let Some(end) = self.shared.state.lock().end(end) {
            end.listener = Some(listener);
        }
    }

    /// Closes an end, as if its channel were closed.
    pub fn close(&self, end: EndId) {
        let mut state = self.shared.state.lock();
        let Some((from, to)) = state.way(end) else { return };
        let Some(ours) = state.end(end) else { return };
        ours.closed = true;
        ours.inbox.clear();
        ours.unread = 0;
        let (told, host) = (ours.tell(), ours.host);
        match told {
            Arrived::Resume(waiter) => {
                self.shared.agenda.post_in(Duration::ZERO, Event::Wake(waiter));
            }
            Arrived::News(News::Listener { listener, .. }) => {
                self.shared.agenda.post_in(Duration::ZERO, Event::Told(host, listener));
            }
            Arrived::Nothing | Arrived::News(_) => {}
        }
        self.dispatch(&mut state, from, to, NetEvent::Close { to: end.other() });
        state.forget_if_over(end.conn);
    }

    /// Sends a message outside of connections.
    pub fn send_datagram(&self, from: Host, to: Host, bytes: Vec<u8>) {
        let mut state = self.shared.state.lock();
        let NetPlan { loss, repeat, .. } = state.plan;
        if state.rng.hit(loss) {
            state.coverage.count("net: datagram lost");
            return;
        }
        if state.rng.hit(repeat) {
            state.coverage.count("net: datagram twice");
            let bytes = bytes.clone();
            self.dispatch(&mut state, from, to, NetEvent::Datagram { from, to, bytes });
        }
        self.dispatch(&mut state, from, to, NetEvent::Datagram { from, to, bytes });
    }

    // ---------------------------------------------------------------- the way of one event

    /// Brings `event` on its way, or lets it wait for one.
    fn dispatch(&self, state: &mut MutexGuard<'_, State>, from: Host, to: Host, event: NetEvent) {
        let lasting = match &event {
            NetEvent::Datagram { .. } => false,
            NetEvent::Syn { .. }
            | NetEvent::Answer { .. }
            | NetEvent::Frame { .. }
            | NetEvent::Close { .. } => true,
        };
        if state.blocked.contains(&(from, to)) {
            state.coverage.count("net: held or lost by a block");
            if lasting {
                state.held.entry((from, to)).or_default().push_back(event);
            }
            return;
        }
        let Some(event) = state.held_back((from, to), event) else { return };
        let now = self.shared.agenda.now();
        let at = state.arrival(now, (from, to), &event);
        self.shared.agenda.post(at, Event::Net(event));
    }

    /// Something reached the other end of its way.
    pub fn handle_arrival(&self, event: NetEvent) -> Arrived {
        let mut state = self.shared.state.lock();
        match event {
            NetEvent::Syn { to: end } => {
                let Some(connection) = state.connections.get(&end.conn) else {
                    return Arrived::Nothing;
                };
                let [from, to] = [connection.ends[0].host, connection.ends[1].host];
                if connection.ends[0].closed || state.dark.contains(&to) {
                    return Arrived::Nothing; // given up, or nobody is there to refuse
                }
                Arrived::News(News::Knock { end, from, to, service: connection.service })
            }
            NetEvent::Answer { to: end, accepted } => {
                let Some(connection) = state.connections.get_mut(&end.conn) else {
                    return Arrived::Nothing;
                };
                connection.stage = if accepted { Stage::Open } else { Stage::Refused };
                connection.ends[end.side].tell()
            }
            NetEvent::Frame { to: end, frame } => {
                let Some(theirs) = state.end(end) else { return Arrived::Nothing };
                if theirs.closed {
                    let host = theirs.host;
                    if !state.dark.contains(&host) {
                        self.answer_reset(&mut state, end);
                    }
                    return Arrived::Nothing;
                }
                theirs.inbox.push_back(frame);
                theirs.tell()
            }
            NetEvent::Close { to: end } => {
                let Some(theirs) = state.end(end) else { return Arrived::Nothing };
                theirs.finished = true;
                let told = if theirs.closed { Arrived::Nothing } else { theirs.tell() };
                state.forget_if_over(end.conn);
                told
            }
            NetEvent::Datagram { from, to, bytes } => {
                if state.dark.contains(&to) {
                    return Arrived::Nothing;
                }
                Arrived::News(News::Datagram { from, to, bytes })
            }
        }
    }

    /// What came for a connection that nobody has any more is answered with a reset.
    fn answer_reset(&self, state: &mut MutexGuard<'_, State>, end: EndId) {
        let Some(connection) = state.connections.get(&end.conn) else { return };
        let (ours, theirs) = (connection.ends[end.side].host, connection.ends[1 - end.side].host);
        self.dispatch(state, ours, theirs, NetEvent::Close { to: end.other() });
    }

    pub(crate) fn now(&self) -> Nanos {
        self.shared.agenda.now()
    }

    /// Who is to act when `event` arrives.
    pub fn addressee(&self, event: &NetEvent) -> Option<Host> {
        match event {
            NetEvent::Syn { to }
            | NetEvent::Answer { to, .. }
            | NetEvent::Frame { to, .. }
            | NetEvent::Close { to } => self.shared.state.lock().end(*to).map(|end| end.host),
            NetEvent::Datagram { to, .. } => Some(*to),
        }
    }

    /// Connections of which some end is open.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections.len()
    }
}

impl State {
    fn end(&mut self, id: EndId) -> Option<&mut End> {
        Some(&mut self.connections.get_mut(&id.conn)?.ends[id.side])
    }

    /// From where to where, if `end` may still send.
    fn way(&self, end: EndId) -> Option<(Host, Host)> {
        let connection = self.connections.get(&end.conn)?;
        let ours = &connection.ends[end.side];
        (!ours.closed).then_some((ours.host, connection.ends[1 - end.side].host))
    }

    fn watch(&mut self, end: EndId, frame: &[u8]) {
        let Some(connection) = self.connections.get(&end.conn) else { return };
        let service = connection.service;
        if end.side == 0 && self.watched.contains(&service) && frame.len() <= WATCHED_BYTES {
            let from = connection.ends[0].host;
            self.seen.push(Seen { service, from, frame: frame.to_vec() });
        }
    }

    /// What waits under this name, which holds nothing more; `None` if there is none.
    fn take_held(&mut self, name: &str) -> Option<Vec<Kept>> {
        let at = self.holds.iter().position(|hold| hold.is_named(name))?;
        Some(self.holds.remove(at).into_kept())
    }

    /// Lets `event` wait if a scenario wants it to; what does not wait is given back.
    fn held_back(&mut self, way: (Host, Host), event: NetEvent) -> Option<NetEvent> {
        if self.holds.is_empty() {
            return Some(event);
        }
        let service = match &event {
            NetEvent::Frame { to, .. } | NetEvent::Close { to } => {
                self.connections.get(&to.conn).map_or("", |connection| connection.service)
            }
            NetEvent::Syn { .. } | NetEvent::Answer { .. } | NetEvent::Datagram { .. } => "",
        };
        for hold in &mut self.holds {
            if hold.holds(way, service, &event) {
                let (from, to) = way;
                hold.keep(Kept { from, to, service, event });
                return None;
            }
        }
        Some(event)
    }

    fn forget_if_over(&mut self, conn: u64) {
        let over = |end: &End| end.closed && end.finished;
        if self.connections.get(&conn).is_some_and(|c| c.ends.iter().all(over)) {
            self.connections.remove(&conn);
        }
    }

    fn delay(&mut self) -> Duration {
        let jitter = self.plan.jitter.mul_f64(self.rng.f64());
        self.plan.delay + jitter
    }

    fn arrival(&mut self, now: Nanos, way: (Host, Host), event: &NetEvent) -> Nanos {
        let mut delay = self.delay();
        let (to, bytes) = match event {
            NetEvent::Datagram { .. } => {
                if self.rng.hit(self.plan.straggle) {
                    self.coverage.count("net: datagram late");
                    delay *= 10;
                }
                return now + delay;
            }
            NetEvent::Syn { to } | NetEvent::Answer { to, .. } | NetEvent::Close { to } => (to, 0),
            NetEvent::Frame { to, frame } => (to, frame.len() as u64),
        };
        let slow = self.slow.contains(&way).then_some(self.plan.slow_bytes_per_second.max(1));
        let Some(end) = self.end(*to) else { return now + delay };
        let mut leaves = now;
        if let Some(rate) = slow {
            end.free = end.free.max(now) + Duration::from_nanos(bytes * 1_000_000_000 / rate);
            leaves = end.free;
        }
        end.latest = (leaves + delay).max(Nanos(end.latest.0 + 1));
        end.latest
    }

    /// What becomes of a frame on its way; mostly nothing.
    fn garbled(&mut self, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
        if frame.is_empty() || !self.rng.hit(self.plan.garble) {
            return vec![frame];
        }
        match self.rng.u8(..5) {
            0 => {
                self.coverage.count("net: frame cut");
                frame.truncate(self.rng.usize(..frame.len()));
                vec![frame]
            }
            1 => {
                self.coverage.count("net: frame twice");
                vec![frame.clone(), frame]
            }
            2 => {
                self.coverage.count("net: frame left out");
                Vec::new()
            }
            3 if frame.len() > DAMAGED_FROM => {
                self.coverage.count("net: frame damaged");
                let at = self.rng.usize(DAMAGED_FROM..frame.len());
                frame[at] ^= 1 << self.rng.u8(..8);
                vec![frame]
            }
            _ => {
                self.coverage.count("net: frame replaced");
                // No message begins with this byte.
                frame[0] = 0xff;
                vec![frame]
            }
        }
    }
}

#[cfg(test)]
mod tests;
