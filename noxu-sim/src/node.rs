//! Node: one machine and the process on it: the steps of a life as turns of the world.
//!
//! What threads do in a program happens here when the agenda says so: the core is handed its inputs
//! and its time, the disk syncs, feeders send, the applier applies, the housekeeper keeps house.
//! After each step of the machine [`SimNode::tend`] looks what has become due and puts it on the
//! agenda, after a delay that is drawn.
//!
//! # Not here: the order of turns and faults (world.rs), what is watched (observer.rs).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fastrand::Rng;
use noxu_log::{Background, DamagedBlock, LogConfig, RetentionConfig, ScrubConfig, WallClock};
use noxu_rep::core::node::Input;
use noxu_rep::core::search::Search;
use noxu_rep::driver::feeding::Feeding;
use noxu_rep::driver::life::{Life, Surroundings};
use noxu_rep::net::channel::Channel;
use noxu_rep::net::dispatcher::{
    ELECTION_SERVICE_NAME, FEEDER_SERVICE_NAME, RESTORE_SERVICE_NAME, STATUS_SERVICE_NAME,
};
use noxu_rep::restore::provider::RestoreProvider;
use noxu_rep::stream::feeder::SendStep;
use noxu_rep::wire::election::link::{admit, introduce};
use noxu_rep::wire::election::{ElectionMsg, Peer};
use noxu_rep::{GroupChoice, MasterLimits, NodeConfig, NodeKind};
use noxu_util::{Name, Vlsn};
use parking_lot::Mutex;

use crate::channel::SimChannel;
use crate::dice::{Dice, Draw};
use crate::disk::Disk;
use crate::embed::Embedded;
use crate::event::{Event, Host, Nanos, Step, Turn};
use crate::follower::Follower;
use crate::network::{EndId, Network};
use crate::outside::Outside;
use crate::plan::Plan;
use crate::stage::Stage;

/// One machine.
pub(crate) struct SimNode<E: Embedded> {
    pub(crate) host: Host,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) process: Option<Process<E>>,
    /// Counts the processes that ran here.
    pub(crate) lives: u32,
    /// What the processes that have ended saw of the world; nobody may keep it.
    pub(crate) ended: Vec<Weak<Outside>>,
    image: E::Image,
    wiped: bool,
    rng: Rng,
}

/// One life of a node.
pub(crate) struct Process<E: Embedded> {
    pub(crate) life: Arc<Life>,
    pub(crate) outside: Arc<Outside>,
    pub(crate) engine: E::Engine,
    pub(crate) feedings: BTreeMap<u64, Fed>,
    provider: Arc<RestoreProvider>,
    links: BTreeMap<Host, Link>,
    heard: BTreeMap<u64, Heard>,
    listeners: u64,
    /// What is on the agenda, and when.
    due: BTreeMap<Step, Nanos>,
    /// It was closed in order.
    pub(crate) left: bool,
    /// Its sealed segments have been read since this was last set back.
    pub(crate) scrubbed: bool,
}

/// A stream to a replica.
pub(crate) struct Fed {
    channel: Arc<SimChannel>,
    feeding: Feeding,
    /// What it knew of when it sent last.
    seen: Option<(Vlsn, Vlsn, bool)>,
    /// When it wants to be asked again, by the node's clock.
    due: Option<Duration>,
}

/// The link to another machine, for messages that go there.
enum Link {
    Dialling,
    Open { channel: SimChannel, name: Name, listener: u64 },
}

/// A link from another machine.
struct Heard {
    from: Host,
    channel: SimChannel,
    peer: Peer,
}

/// How long a peer is given to answer a dial.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause between two dials of a link.
const REDIAL: Duration = Duration::from_millis(100);
/// Pause between two rounds of housekeeping.
const HOUSE: Duration = Duration::from_millis(100);
/// Mean pause in microseconds between two looks whether a full disk has room again.
const LOOK_FOR_ROOM_US: u64 = 20_000;
/// How long a node that is asked to close has for it.
const LEAVING: Duration = Duration::from_millis(200);
/// Bytes a feeder sends ahead of what its replica has taken.
const WINDOW: usize = 1 << 20;

/// The name of a machine's node.
pub(crate) fn name_of(host: Host) -> Name {
    host.to_string().parse().expect("letters and digits")
}

/// Whose name it is.
pub(crate) fn host_of(name: &Name) -> Option<Host> {
    name.as_str().strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1).map(Host)
}

impl<E: Embedded> SimNode<E> {
    pub(crate) fn new(host: Host, dice: Dice, plan: &Plan) -> Self {
        let (name, dir) = (host.to_string(), format!("/{host}"));
        let disk = Disk::new(dice, &name, dir.as_ref(), plan.disk.clone());
        Self {
            host,
            disk: Arc::new(Mutex::new(disk)),
            process: None,
            lives: 0,
            ended: Vec::new(),
            image: E::Image::default(),
            wiped: false,
            rng: dice.stream(&format!("turns of {host}")),
        }
    }

    fn config(&self, plan: &Plan, stage: &Stage) -> NodeConfig {
        let clock = stage.clock(self.host).clock();
        let members = plan.voting().map(name_of).collect();
        // Who puts in an empty disk does not have the node found the group anew.
        let group = if self.host == Host(0) && !self.wiped {
            GroupChoice::Create {
                name: "sim".parse().expect("a name"),
                members,
                segment_bytes: plan.segment_bytes,
                q_rep: plan.q_rep as u8,
                q_elect: plan.q_elect as u8,
            }
        } else {
            GroupChoice::Join { name: None }
        };
        let peers = plan.voting().filter(|peer| *peer != self.host);
        let kind =
            if plan.is_secondary(self.host) { NodeKind::Secondary } else { NodeKind::Electable };
        NodeConfig {
            kind,
            priority: plan.priorities.get(self.host.0).copied().unwrap_or_default(),
            peers: peers.map(Network::address).collect(),
            group,
            limits: MasterLimits {
                timing: plan.stream,
                max_unreplicated_bytes: 1 << 20,
                ..MasterLimits::default()
            },
            election: plan.election,
            dial_timeout: DIAL_TIMEOUT,
            log: LogConfig {
                tail_bytes: 256 << 10,
                max_body_bytes: 1 << 20,
                max_unwritten_bytes: 1 << 20,
                write_ahead_bytes: 64 << 10,
                prefill: plan.prefill,
                scrub: None,
                tail_mark: plan.tail_mark,
                retention: RetentionConfig {
                    keep_bytes: plan.keep_bytes,
                    keep_age: Duration::ZERO,
                    byte_budget: Some(plan.keep_bytes * 4),
                    age_budget: None,
                    clock: WallClock::new(move || clock.wall_clock_ms()),
                },
                background: Background::Caller,
                ..LogConfig::default()
            },
            ..NodeConfig::new(name_of(self.host), self.disk.lock().dir())
        }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// What it finds on its disk and cannot start with.
    pub(crate) fn start(
        &mut self,
        stage: &mut Stage,
        plan: &Plan,
        embedded: &E,
    ) -> noxu_rep::Result<()> {
        assert!(self.process.is_none(), "{} runs already", self.host);
        self.lives += 1;
        let (network, agenda) = (stage.network.clone(), stage.agenda.clone());
        let outside = Arc::new(Outside::new(self.host, network, agenda, self.rng.fork()));
        let config = self.config(plan, stage);
        let peers = config.peers.clone();
        let image = &self.image;
        let mut engine = None;
        let env = Arc::new(self.disk.lock().env());
        let life = Life::open(
            env,
            config,
            Network::address(self.host),
            stage.clock(self.host).clock(),
            Arc::clone(&outside) as Arc<dyn Surroundings>,
            |context| {
                let opened = engine.insert(embedded.open(image, context)?);
                Ok(embedded.machine(opened))
            },
        )?;
        let engine = engine.expect("an open life has opened its state machine");
        let provider = Arc::new(life.restore_provider());
        let follower = Follower {
            life: Arc::clone(&life),
            outside: Arc::clone(&outside),
            disk: Arc::clone(&self.disk),
            dial_timeout: DIAL_TIMEOUT,
            peers,
            search: Search::default(),
        };
        life.start();
        stage.begin_task(self.host, move || follower.run());
        self.process = Some(Process {
            life,
            outside,
            engine,
            feedings: BTreeMap::new(),
            provider,
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
            listeners: 0,
            due: BTreeMap::new(),
            left: false,
            scrubbed: false,
        });
        Ok(())
    }

    /// The process is gone. What it leaves on its disk is the caller's business, before this.
    pub(crate) fn stop(&mut self, stage: &mut Stage) {
        stage.handle_stopped(self.host);
        if let Some(process) = self.process.take() {
            let undone = std::mem::take(&mut *process.outside.notes());
            drop(undone); // streams among it know the life, which knows the notes
            self.ended.push(Arc::downgrade(&process.outside));
        }
    }

    /// Its disk is replaced by an empty one.
    pub(crate) fn wipe(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.host);
        self.wiped = true;
        self.disk.lock().wipe();
        self.image = E::Image::default();
    }

    /// Somebody dials.
    pub(crate) fn answer(&mut self, stage: &mut Stage, end: EndId, from: Host, service: &str) {
        let Some(process) = &self.process else {
            stage.network.refuse(end);
            return;
        };
        let channel = stage.network.accept(end);
        let (life, outside) = (Arc::clone(&process.life), Arc::clone(&process.outside));
        match service {
            FEEDER_SERVICE_NAME => stage.begin_task(self.host, move || {
                let channel = Arc::new(channel);
                let theirs: Arc<dyn Channel> = Arc::clone(&channel) as Arc<dyn Channel>;
                match life.accept(&theirs) {
                    Ok(Some(feeding)) => outside.notes().feedings.push((channel, feeding)),
                    Ok(None) => {}
                    Err(cause) => outside.notes().ended.push(format!("feeding {from}: {cause}")),
                }
            }),
            ELECTION_SERVICE_NAME => stage.begin_task(self.host, move || {
                let ours = life.introduction();
                if let Ok(theirs) = admit(&channel, &ours, &|theirs| life.judge(theirs)) {
                    if let Some(news) = life.news_of(&theirs) {
                        outside.post(news);
                    }
                    outside.notes().admitted.push((from, channel, theirs.peer));
                }
            }),
            STATUS_SERVICE_NAME => stage.begin_task(self.host, move || {
                // Whoever asks finds out by itself that nobody answers.
                let _ = life.serve_status(&channel);
            }),
            RESTORE_SERVICE_NAME => {
                let provider = Arc::clone(&process.provider);
                stage.begin_task(self.host, move || {
                    let _ = provider.run(&channel); // as above
                    channel.close();
                });
            }
            other => panic!("{other} is dialled, which nobody serves"),
        }
    }

    /// A message of a link came. One of a link that is not known is answered with nothing in it, as
    /// a connection that is not known is with a reset; that ends the link at the other end.
    pub(crate) fn hear(&mut self, stage: &Stage, from: Host, bytes: &[u8]) {
        if bytes.is_empty() {
            // A reset is not answered: two machines without a process would never stop.
            if let Some(process) = &mut self.process {
                process.unlink(from);
            }
            return;
        }
        let known = self.process.as_ref().and_then(|process| {
            let heard = process.heard.values().find(|heard| heard.from == from)?;
            Some((process, heard.peer.clone()))
        });
        let Some((process, peer)) = known else {
            stage.network.send_datagram(self.host, from, Vec::new());
            return;
        };
        if let Ok(message) = ElectionMsg::decode(bytes) {
            process.outside.post(Input::Message { from: peer, message });
        }
    }

    /// Something happened at a channel.
    pub(crate) fn listen(&mut self, listener: u64) {
        let Some(process) = &mut self.process else { return };
        if process.feedings.contains_key(&listener) {
            process.read_acks(listener);
            return;
        }
        if let Some(heard) = process.heard.get(&listener) {
            // Messages come beside the connection: anything but silence is its end.
            if heard.channel.try_receive().is_err() {
                process.heard.remove(&listener);
            }
            return;
        }
        let open = process.links.iter().find(|(_, link)| match link {
            Link::Open { listener: of, channel, .. } => {
                *of == listener && channel.try_receive().is_err()
            }
            Link::Dialling => false,
        });
        if let Some(host) = open.map(|(host, _)| *host) {
            process.unlink(host);
        }
    }

    /// Its turn has come.
    ///
    /// # Errors
    /// What the life cannot go on with.
    pub(crate) fn take_turn(
        &mut self,
        stage: &mut Stage,
        step: Step,
        embedded: &E,
    ) -> noxu_rep::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.due.remove(&step);
        match step {
            Step::Core => {
                let next = process.outside.notes().inbox.pop_front();
                if let Some(input) = next {
                    process.life.handle(input);
                }
            }
            Step::Timer => process.life.handle_timeout(),
            Step::Disk => {
                if let Err(cause) = process.life.log().upkeep() {
                    process.outside.fail(&cause.to_string());
                }
            }
            Step::Apply => {
                process.life.applier().step()?;
            }
            Step::House => {
                process.life.keep_house()?;
                embedded.keep_house(&process.engine);
                // What the log does by the clock, if it has threads.
                if self.rng.hit(0.2) {
                    process.life.log().request_sync();
                }
                if self.rng.hit(if process.scrubbed { 0.02 } else { 0.2 }) {
                    process.scrub();
                }
                if self.rng.hit(0.1) {
                    match process.life.checkpoint() {
                        Ok(_) => {}
                        // As in a program, the log keeps its front until one succeeds.
                        Err(cause) => {
                            process.outside.notes().ended.push(format!("checkpoint: {cause}"));
                        }
                    }
                }
            }
            Step::Feed(listener) => process.feed(listener),
            Step::Dial(to) => self.dial(stage, to),
            Step::Leave => process.left = true,
        }
        Ok(())
    }

    fn dial(&mut self, stage: &mut Stage, to: Host) {
        let Some(process) = &mut self.process else { return };
        if process.links.contains_key(&to) {
            return;
        }
        process.links.insert(to, Link::Dialling);
        let (life, outside) = (Arc::clone(&process.life), Arc::clone(&process.outside));
        let host = self.host;
        stage.begin_task(host, move || {
            let network = outside.network.clone();
            let dialled = network.dial(host, to, ELECTION_SERVICE_NAME, DIAL_TIMEOUT);
            let ours = life.introduction();
            let introduced = dialled.and_then(|channel| {
                let theirs = introduce(&channel, &ours, &|theirs| life.judge(theirs))?;
                Ok((channel, theirs))
            });
            // Whatever was in the way, it is dialled again.
            let introduced = introduced.ok();
            outside.notes().dialled.push((to, introduced));
        });
    }

    /// Puts on the agenda what has become due since the last step.
    pub(crate) fn tend(&mut self, stage: &mut Stage, plan: &Plan) {
        let Some(process) = &mut self.process else { return };
        let now = stage.now();
        process.take_notes(stage, self.host);
        let mut wanted: Vec<(Step, Nanos)> = Vec::new();
        let due = &process.due;
        let idle = |step: Step| !due.contains_key(&step);
        let rng = &mut self.rng;
        let mut soon = |most_us: u64| now + Duration::from_micros(rng.u64(..=most_us));
        let (waits, timer) = {
            let notes = process.outside.notes();
            (!notes.inbox.is_empty(), notes.due)
        };
        if waits && idle(Step::Core) {
            wanted.push((Step::Core, soon(100)));
        }
        let clock = stage.clock(self.host);
        if let Some(at) = timer {
            wanted.push((Step::Timer, clock.world(at).max(now)));
        }
        let pending = process.life.log().pending();
        if pending.is_any() && idle(Step::Disk) {
            let syncs = pending.sync || pending.lazy_mark;
            let at = if syncs {
                now + self.disk.lock().sync_takes(now)
            } else if pending.is_only_a_look_for_room() {
                soon(2 * LOOK_FOR_ROOM_US)
            } else {
                soon(1_000)
            };
            wanted.push((Step::Disk, at));
        }
        if process.life.applier().is_due() && idle(Step::Apply) {
            wanted.push((Step::Apply, soon(2_000)));
        }
        if idle(Step::House) {
            wanted.push((Step::House, now + HOUSE));
        }
        let seen = process.sendable();
        for (listener, fed) in &mut process.feedings {
            let step = Step::Feed(*listener);
            if let Some(at) = fed.due.take() {
                wanted.push((step, clock.world(at).max(now)));
            }
            if fed.seen != Some(seen) {
                fed.seen = Some(seen);
                wanted.push((step, soon(2_000)));
            }
        }
        for peer in plan.voting().filter(|peer| *peer != self.host) {
            let step = Step::Dial(peer);
            if !process.links.contains_key(&peer) && idle(step) {
                wanted.push((step, now + REDIAL + soon(100_000).since(now)));
            }
        }
        for (step, at) in wanted {
            // One that was put later is passed over when it comes.
            if process.due.get(&step).is_none_or(|known| at < *known) {
                process.due.insert(step, at);
                let turn = Turn::Step { life: self.lives, step };
                stage.agenda.post(at, Event::Turn(Some(self.host), turn));
            }
        }
    }

    /// Whether a step that comes now is meant, and was not put off or moved.
    pub(crate) fn is_due(&self, now: Nanos, life: u32, step: Step) -> bool {
        let Some(process) = &self.process else { return false };
        life == self.lives && process.due.get(&step).is_some_and(|at| *at <= now)
    }

    /// It was asked to close, and has a moment for that.
    pub(crate) fn leave(&mut self, stage: &mut Stage) {
        let Some(process) = &mut self.process else { return };
        let at = stage.now() + LEAVING;
        process.due.insert(Step::Leave, at);
        let turn = Turn::Step { life: self.lives, step: Step::Leave };
        stage.agenda.post(at, Event::Turn(Some(self.host), turn));
    }
}

impl<E: Embedded> Process<E> {
    /// What a feeder may have to send for: end of the log, DTVLSN, whether the mastership is over.
    fn sendable(&self) -> (Vlsn, Vlsn, bool) {
        let master = self.life.mastership();
        (self.life.log().positions().last, self.life.dtvlsn(), master.is_none())
    }

    /// Reads all sealed segments again, as fast as it goes.
    fn scrub(&mut self) {
        let config = ScrubConfig { bytes_per_second: u64::MAX, ..ScrubConfig::default() };
        let read = self.life.log().scrub(&config, |_| ControlFlow::Continue(()));
        // One that the disk or the end of the process cuts short is made good by another.
        self.scrubbed = read.is_ok();
    }

    /// Whether something is damaged on the disk that `other` could give.
    pub(crate) fn could_be_mended_by(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.life.log(), other.life.log());
        let (sealed, rotten) = (theirs.sealed_segments(), theirs.damaged_blocks());
        let has = |segment: u32, block: Option<u32>| {
            let is_rotten = |known: &DamagedBlock| {
                known.segment == segment && block.is_none_or(|block| known.block == block)
            };
            sealed.iter().any(|sealed| sealed.number == segment) && !rotten.iter().any(is_rotten)
        };
        let mut blocks = ours.damaged_blocks().into_iter();
        blocks.any(|known| has(known.segment, known.expected.map(|_| known.block)))
            || ours.faulty().iter().any(|faulty| has(faulty.segment, None))
    }

    /// The most bytes that a replica has not taken.
    pub(crate) fn backlog(&self) -> usize {
        self.feedings.values().map(|fed| fed.channel.backlog()).max().unwrap_or_default()
    }

    fn take_notes(&mut self, stage: &mut Stage, host: Host) {
        let mut notes = self.outside.notes();
        let feedings = std::mem::take(&mut notes.feedings);
        let dialled = std::mem::take(&mut notes.dialled);
        let admitted = std::mem::take(&mut notes.admitted);
        let sends = std::mem::take(&mut notes.sends);
        let mend_disk = std::mem::take(&mut notes.mend_disk);
        drop(notes);
        if mend_disk {
            let life = Arc::clone(&self.life);
            stage.begin_task(host, move || life.mend_disk());
        }
        for (channel, feeding) in feedings {
            let listener = self.next_listener();
            if channel.listen(listener) {
                stage.agenda.post(stage.now(), Event::Told(host, listener));
            }
            self.feedings.insert(listener, Fed { channel, feeding, seen: None, due: None });
        }
        for (to, outcome) in dialled {
            self.links.remove(&to);
            if let Some((channel, theirs)) = outcome {
                let (name, listener) = (theirs.peer.name.clone(), self.next_listener());
                if channel.listen(listener) {
                    stage.agenda.post(stage.now(), Event::Told(host, listener));
                }
                self.links.insert(to, Link::Open { channel, name, listener });
                self.outside.post(Input::LinkUp(theirs.into()));
            }
        }
        for (from, channel, peer) in admitted {
            let listener = self.next_listener();
            if channel.listen(listener) {
                stage.agenda.post(stage.now(), Event::Told(host, listener));
            }
            self.heard.retain(|_, heard| heard.from != from);
            self.heard.insert(listener, Heard { from, channel, peer });
        }
        for (to, message) in sends {
            let Some(to) = host_of(&to) else { continue };
            if matches!(self.links.get(&to), Some(Link::Open { .. })) {
                stage.network.send_datagram(host, to, message.encode());
            }
        }
    }

    /// The link to this machine is over.
    fn unlink(&mut self, to: Host) {
        if let Some(Link::Open { name, .. }) = self.links.remove(&to) {
            self.outside.post(Input::LinkDown { name });
        }
    }

    fn next_listener(&mut self) -> u64 {
        self.listeners += 1;
        self.listeners
    }

    fn read_acks(&mut self, listener: u64) {
        let Some(fed) = self.feedings.get(&listener) else { return };
        let ended = loop {
            match fed.channel.try_receive() {
                Ok(Some(frame)) => match fed.feeding.stream.handle_frame(&frame) {
                    Ok(true) => {}
                    Ok(false) => break Some(Ok(())),
                    Err(cause) => break Some(Err(cause)),
                },
                Ok(None) => break None,
                Err(cause) => break Some(Err(cause)),
            }
        };
        if let Some(outcome) = ended {
            self.end_feeding(listener, outcome);
            return;
        }
        // The feeder may go on gathering, or have waited for room.
        if let Some(fed) = self.feedings.get_mut(&listener) {
            fed.seen = None;
        }
    }

    fn end_feeding(&mut self, listener: u64, outcome: noxu_rep::Result<()>) {
        if let Some(fed) = self.feedings.remove(&listener) {
            let _ = fed.feeding.finish(outcome); // how it ended is the trace's business
        }
    }

    fn feed(&mut self, listener: u64) {
        let Some(fed) = self.feedings.get_mut(&listener) else { return };
        let stream = &fed.feeding.stream;
        let ended = loop {
            if fed.channel.backlog() > WINDOW {
                match stream.handle_timeout() {
                    Ok(Some(silent)) => {
                        fed.due = Some(silent);
                        return;
                    }
                    Ok(None) => break Ok(()),
                    Err(cause) => break Err(cause),
                }
            }
            match stream.send_some() {
                Ok(SendStep::Sent) => {}
                Ok(SendStep::Wait { due, .. }) => match stream.handle_timeout() {
                    Ok(Some(silent)) => {
                        fed.due = Some(due.min(silent));
                        return;
                    }
                    Ok(None) => break Ok(()),
                    Err(cause) => break Err(cause),
                },
                Ok(SendStep::Ended) => break Ok(()),
                Err(cause) => break Err(cause),
            }
        };
        self.end_feeding(listener, ended);
    }
}
