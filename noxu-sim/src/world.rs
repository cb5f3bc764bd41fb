//! World: one whole run: machines, clients, faults, and everybody who watches.
//!
//! # Phases
//! 1. Everything may go wrong, until enough was committed or the time is up. Only safety is judged.
//! 2. Faults stop, everything that is down comes back, and the group has to become one again in time:
//!    one master, new commits, equal logs and equal states.
//!
//! # Not here: single steps of nodes (node.rs), what goes wrong (faults.rs), what is judged at the end
//! (ending.rs), several runs (main.rs).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fastrand::Rng;
use noxu_log::LogError;
use noxu_rep::net::dispatcher::{FEEDER_SERVICE_NAME, RESTORE_SERVICE_NAME};
use noxu_rep::{DamageEvent, Damaged, RepError, Role};

use crate::atlas::Atlas;
use crate::clock::MachineClock;
use crate::coverage::Coverage;
use crate::dice::{Dice, Draw};
use crate::embed::Embedded;
use crate::event::{Event, Host, Nanos, Turn};
use crate::excuse::Excuse;
use crate::invariants::{Violation, Watch};
use crate::kv::Kv;
use crate::ledger::Record;
use crate::mutants::Mutants;
use crate::network::{News, Seen};
use crate::node::{SimNode, host_of};
use crate::observer::{self, Observer};
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::schedule::{FaultKind, Schedule};
use crate::stage::{Happened, Stage};
use crate::trace::{KEPT_LINES, Trace};
use crate::workload::{Client, Group};

mod ending;
mod faults;
mod scripted;

pub use scripted::{Played, play};

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What must be the same when it is run again.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Commits that were reported durable.
    pub commits: usize,
    /// How long it was in the world.
    pub lasted: Duration,
    /// The rule that was broken.
    pub violation: Option<Violation>,
    /// Why the group lawfully did not become one again.
    pub excuse: Option<Excuse>,
    /// What happened in it.
    pub coverage: Coverage,
    /// The last that happened.
    pub lines: Vec<String>,
}

impl Outcome {
    /// Of a run in which something panicked.
    fn panicked(seed: u64, text: &str) -> Self {
        Self {
            seed,
            hash: 0,
            events: 0,
            commits: 0,
            lasted: Duration::ZERO,
            violation: Some(Violation::new("panic", text)),
            excuse: None,
            coverage: Coverage::default(),
            lines: Vec::new(),
        }
    }
}

/// Runs a plan with the faults of `schedule` and a bug, with the key-value store of the repository.
/// A panic of the code under test is a violation as any other.
pub fn run(plan: &Plan, schedule: &Schedule, mutants: Mutants) -> Outcome {
    run_keeping(plan, schedule, mutants, KEPT_LINES)
}

/// As [`run`], and keeps so many of the last lines of the trace.
pub fn run_keeping(plan: &Plan, schedule: &Schedule, mutants: Mutants, lines: usize) -> Outcome {
    run_embedded(Kv, plan, schedule, mutants, lines)
}

/// As [`run_keeping`], with an engine of one's own.
pub fn run_embedded<E: Embedded>(
    embedded: E,
    plan: &Plan,
    schedule: &Schedule,
    mutants: Mutants,
    lines: usize,
) -> Outcome {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        mutants.with(|| {
            let mut world = World::new(embedded, plan.clone(), schedule.clone());
            world.stage.trace = Trace::keeping(lines);
            world.run()
        })
    }));
    ended.unwrap_or_else(|panic| Outcome::panicked(plan.seed, &panic_text(panic.as_ref())))
}

/// What a panic says.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_default()
}

struct World<E: Embedded = Kv> {
    embedded: E,
    plan: Plan,
    stage: Stage,
    nodes: Vec<SimNode<E>>,
    clients: Vec<Client<E>>,
    schedule: Schedule,
    atlas: Atlas,
    watch: Watch,
    observer: Observer,
    oracle: Oracle<E::Record>,
    coverage: Coverage,
    rng: Rng,
    commits: usize,
    /// When the second phase began.
    healed: Option<Nanos>,
    /// Something was committed since: clients begin nothing more.
    quiet: bool,
    /// Machines whose process is not to be started before this.
    down_until: BTreeMap<Host, Nanos>,
    /// Machines that are not to be started at all.
    held: BTreeSet<Host>,
    /// Machines whose process ended inside a call: the power went, or it stopped itself for what it met
    /// there. What the call had done by then, such as a lawful cut, nobody has seen.
    ended_inside: BTreeSet<Host>,
    /// Machines on which a restore is committed and not installed.
    installing: BTreeSet<Host>,
    /// Machines on whose disk something rotted.
    rotten: BTreeSet<Host>,
    /// Machines that cannot start with what is on their disk.
    refused: BTreeMap<Host, String>,
    /// When the group is next looked at.
    look_at: Nanos,
    /// The most inputs that waited, the most bytes that were not taken, on any machine.
    most: [u64; 2],
    /// The life and the number of each machine's last syncup.
    syncups: BTreeMap<Host, (u32, u64)>,
    /// Runs of damaged entries in each machine's log.
    faulty: BTreeMap<Host, usize>,
}

/// How long the second phase may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a node is away after it stopped itself.
const RESTART: Duration = Duration::from_millis(200);
/// Inputs that may wait for a core: a program has room for as many.
const MOST_INPUTS: u64 = 1_024;
/// What a feeder sends ahead, and one message more.
const MOST_BACKLOG: u64 = 3 << 20;
/// More events than any world needs, also one in which many clients ask in vain for all of both phases.
const MOST_EVENTS: u64 = 2_000_000;

impl<E: Embedded> World<E> {
    fn new(embedded: E, plan: Plan, schedule: Schedule) -> Self {
        let world = Self::still(embedded, plan, schedule);
        let (plan, agenda, dice) = (&world.plan, &world.stage.agenda, Dice::new(world.plan.seed));
        for host in plan.hosts() {
            let later = Duration::from_micros(dice.number(&format!("boot {}", host.0)) % 50_000);
            agenda.post_in(later, Event::Turn(Some(host), Turn::Boot));
        }
        for client in 0..plan.clients {
            agenda.post_in(plan.think, Event::Turn(None, Turn::Client(client)));
        }
        for (at, (_, fault)) in world.schedule.faults.iter().enumerate() {
            agenda.post(fault.at, Event::Turn(None, Turn::Fault(at)));
        }
        agenda.post_in(LOOK, Event::Turn(None, Turn::Look));
        world
    }

    /// One in which nothing happens yet.
    fn still(embedded: E, plan: Plan, schedule: Schedule) -> Self {
        let dice = Dice::new(plan.seed);
        let clocks = plan.drifts_ppm.iter().zip(&plan.wall_offsets_ms);
        let clocks = clocks.map(|(drift, wall)| MachineClock::new(*drift, *wall)).collect();
        let stage = Stage::new(dice, plan.net.clone(), clocks);
        stage.network.watch(&[FEEDER_SERVICE_NAME, RESTORE_SERVICE_NAME]);
        let nodes = plan.hosts().map(|host| SimNode::new(host, dice, &plan)).collect();
        let clients = (0..plan.clients).map(|n| Client::new(dice, &plan, n)).collect();
        Self {
            atlas: Atlas::new(plan.voters, plan.q_rep, plan.q_elect),
            coverage: Coverage::expecting(&FaultKind::NAMES),
            rng: dice.stream("world"),
            watch: Watch::new(plan.secondary_hosts()),
            embedded,
            plan,
            stage,
            nodes,
            clients,
            schedule,
            observer: Observer::default(),
            oracle: Oracle::default(),
            commits: 0,
            healed: None,
            quiet: false,
            down_until: BTreeMap::new(),
            held: BTreeSet::new(),
            ended_inside: BTreeSet::new(),
            installing: BTreeSet::new(),
            rotten: BTreeSet::new(),
            refused: BTreeMap::new(),
            look_at: Nanos::default(),
            most: [0; 2],
            syncups: BTreeMap::new(),
            faulty: BTreeMap::new(),
        }
    }

    fn run(mut self) -> Outcome {
        let judged = self.run_to_the_end();
        let (violation, excuse) = match judged {
            Ok(excuse) => (None, excuse),
            Err(violation) => (Some(violation), None),
        };
        for node in &self.nodes {
            let digest = node.disk.lock().env().digest();
            self.stage.trace.note_bytes(digest.as_bytes());
        }
        self.stage.trace.note_bytes(&self.commits.to_le_bytes());
        self.coverage.add(&self.stage.network.coverage());
        let cuts = self.watch.ledger().truncations() as u64;
        self.coverage.count_times("log: rolled back", cuts);
        let mut outcome = Outcome {
            seed: self.plan.seed,
            hash: self.stage.trace.hash(),
            events: self.stage.trace.events(),
            commits: self.commits,
            lasted: self.stage.now().since(Nanos::default()),
            violation,
            excuse,
            lines: self.stage.trace.lines().map(str::to_owned).collect(),
            coverage: std::mem::take(&mut self.coverage),
        };
        // Whatever ended in the middle of something is gone with the world.
        let ended: Vec<_> = self.nodes.iter_mut().flat_map(|node| node.ended.drain(..)).collect();
        drop(self);
        let left = ended.iter().filter(|outside| outside.strong_count() > 0).count();
        if left > 0 && outcome.violation.is_none() {
            let found = format!("{left} of {} processes are in memory still", ended.len());
            outcome.violation = Some(Violation::new("I15", found));
        }
        outcome
    }

    fn run_to_the_end(&mut self) -> Result<Option<Excuse>, Violation> {
        let mut events = 0;
        while self.advance()? {
            events += 1;
            if events > MOST_EVENTS {
                return Err(Violation::new("I15", format!("{events} events and no end")));
            }
            let now = self.stage.now();
            match self.healed {
                None if self.commits >= self.plan.commits
                    || now.since(Nanos(0)) > self.plan.phase =>
                {
                    self.heal()?;
                }
                Some(since) if now >= self.look_at => {
                    self.look_at = now + LOOK;
                    self.quiet = self.quiet || self.oracle.durable_since(since);
                    if self.quiet && self.is_one() {
                        return self.judge().map(|()| None);
                    }
                    if now.since(since) > PATIENCE {
                        return self.judge_stall();
                    }
                }
                None | Some(_) => {}
            }
        }
        Err(Violation::new("I14", "nothing is to happen any more"))
    }

    // ---------------------------------------------------------------- what happens

    /// Lets the next event happen; false if there is none.
    fn advance(&mut self) -> Result<bool, Violation> {
        let Some(happened) = self.stage.step() else { return Ok(false) };
        if let Happened::Turn { host: Some(host), turn: Turn::Step { life, step } } = happened
            && !self.nodes[host.0].is_due(self.stage.now(), life, step)
        {
            return Ok(true); // it was put off, or came earlier
        }
        let host = self.stage.acted();
        let touched = self.handle(happened)?;
        for host in [host, touched].into_iter().flatten() {
            self.settle(host)?;
        }
        Ok(true)
    }

    /// Does what the world has to; returns a machine that was touched besides.
    fn handle(&mut self, happened: Happened) -> Result<Option<Host>, Violation> {
        match happened {
            Happened::Nothing => {}
            Happened::News(News::Knock { end, from, to, service }) => {
                self.nodes[to.0].answer(&mut self.stage, end, from, service);
            }
            Happened::News(News::Listener { host, listener }) => {
                self.nodes[host.0].listen(listener);
            }
            Happened::News(News::Datagram { from, to, bytes }) => {
                self.nodes[to.0].hear(&self.stage, from, &bytes);
            }
            Happened::Turn { host, turn } => return self.take_turn(host, turn),
        }
        Ok(None)
    }

    fn take_turn(&mut self, host: Option<Host>, turn: Turn) -> Result<Option<Host>, Violation> {
        let now = self.stage.now();
        match (turn, host) {
            (Turn::Step { step, .. }, Some(host)) => {
                let node = &mut self.nodes[host.0];
                self.stage.trace.note(now, format_args!("{host} {step:?}"));
                if let Err(cause) = node.take_turn(&mut self.stage, step, &self.embedded)
                    && let Some(process) = &node.process
                {
                    process.outside.fail(&format!("{step:?}: {cause}"));
                }
            }
            (Turn::Boot, Some(host)) => self.boot(host)?,
            (Turn::Fall(life), Some(host)) => {
                if self.healed.is_none() && self.is_up(host) && self.nodes[host.0].lives == life {
                    self.coverage.count("fault: kill of a new master");
                    let down = Duration::from_millis(self.rng.u64(10..2_000));
                    self.take_down(host, down);
                }
            }
            (Turn::Client(number), _) => return Ok(self.client(number)),
            (Turn::Fault(number), _) if self.healed.is_none() => return self.begin_fault(number),
            (Turn::FaultEnds(number), _) => self.end_fault(number),
            (Turn::Look, _) => self.stage.agenda.post_in(LOOK, Event::Turn(None, Turn::Look)),
            (Turn::Step { .. } | Turn::Boot | Turn::Fall(_), None)
            | (Turn::Fault(_) | Turn::Line, _) => {}
        }
        Ok(None)
    }

    fn client(&mut self, number: usize) -> Option<Host> {
        let now = self.stage.now();
        if self.quiet && !self.clients[number].is_waiting() {
            return None;
        }
        let Self { embedded, stage, nodes, plan, oracle, clients, .. } = self;
        let reachable = |host: Host| !stage.is_paused(host);
        let group = Group { embedded, now, nodes, reachable: &reachable, plan };
        let (later, acted) = clients[number].turn(&group, oracle);
        self.stage.agenda.post_in(later, Event::Turn(None, Turn::Client(number)));
        if let Some(met) = acted.met {
            self.coverage.count(met);
            self.stage.trace.note(now, format_args!("client {number} {met}"));
        }
        self.commits += usize::from(acted.durable);
        acted.host
    }

    /// After a step of a machine: whoever watches looks, and what has become due is put down.
    fn settle(&mut self, host: Host) -> Result<(), Violation> {
        self.look_at_syncup(host)?;
        self.look_at_damage(host);
        let Some(process) = &self.nodes[host.0].process else { return Ok(()) };
        self.observer.look(&mut self.watch, host, &process.life)?;
        let is_full = |host: Host| {
            let node = self.nodes.get(host.0).and_then(|node| node.process.as_ref());
            node.is_some_and(|process| process.life.log().is_read_only())
        };
        self.observer.look_at_places(&mut self.watch, host, &process.life, is_full)?;
        for Seen { service, from, frame } in self.stage.network.take_seen() {
            if service == RESTORE_SERVICE_NAME {
                let disk = self.nodes[from.0].disk.lock();
                observer::heard_restore_frame(&mut self.watch, from, &frame, &disk)?;
            } else {
                observer::heard_frame(&mut self.watch, from, &frame)?;
            }
        }
        let sizes = [
            ("inputs that wait for the core", process.outside.notes().inbox.len(), MOST_INPUTS),
            ("bytes sent to a replica and not taken", process.backlog(), MOST_BACKLOG),
        ];
        for ((what, found, bound), most) in sizes.into_iter().zip(&mut self.most) {
            // What was as much before has been looked at.
            if found as u64 > *most {
                *most = found as u64;
                self.watch.enter(&Record::Sized { host, what, found: *most, bound })?;
            }
        }
        let (failed, restored, changes, (ended, damage), voted) = {
            let mut notes = process.outside.notes();
            let voted = notes.sends.iter().any(|(_, message)| observer::is_vote(message));
            for (to, message) in &notes.sends {
                let (now, body) = (self.stage.now(), &message.body);
                let term = message.term;
                self.stage.trace.note(now, format_args!("{host} in term {term} to {to}: {body:?}"));
                observer::heard_message(&mut self.watch, host, to, message)?;
            }
            (
                notes.failed.clone(),
                notes.restored,
                std::mem::take(&mut notes.changes),
                (std::mem::take(&mut notes.ended), std::mem::take(&mut notes.damage)),
                voted,
            )
        };
        let now = self.stage.now();
        for change in changes {
            self.coverage.count(role_name(change.role));
            if change.role == Role::Master && self.rng.hit(self.plan.faults.short_reign) {
                let later = Duration::from_millis(self.rng.u64(1..1_500));
                let fall = Turn::Fall(self.nodes[host.0].lives);
                self.stage.agenda.post_in(later, Event::Turn(Some(host), fall));
            }
            self.stage.trace.note(
                now,
                format_args!("{host} {} in term {}: {}", change.role, change.term, change.reason),
            );
        }
        for why in ended {
            self.stage.trace.note(now, format_args!("{host} ended: {why}"));
        }
        for event in damage {
            self.coverage.count(match &event {
                DamageEvent::Mended { what: Damaged::Block { .. }, .. } => "disk: block mended",
                DamageEvent::Mended { .. } => "disk: entries mended",
                DamageEvent::NotYet { .. } => "disk: nobody has what is damaged",
                _ => "disk: damage found, or over",
            });
            self.stage.trace.note(now, format_args!("{host} damage: {event:?}"));
        }
        process.life.check_invariants();
        self.embedded.check(&process.engine)?;
        let left = process.left;
        if self.nodes[host.0].disk.lock().has_crashed() {
            self.stage.trace.note(now, format_args!("{host} lost its power inside a call"));
            self.ended_inside.insert(host);
            self.power_off(host);
        } else if let Some(cause) = failed {
            self.stage.trace.note(now, format_args!("{host} stopped: {cause}"));
            let cause = process.life.failure().unwrap_or(cause);
            let broken = self.nodes[host.0].disk.lock().is_broken();
            // A rollback that meets rot leaves the rest to the next start.
            let failure = process.life.log().failure();
            let met_rot = matches!(failure, Some(LogError::Corrupt { .. }));
            let cut_short = self.rotten.contains(&host) && met_rot;
            let disk_failed = broken || cut_short;
            self.watch.enter(&Record::Stopped { host, cause, disk_failed })?;
            self.ended_inside.insert(host);
            self.coverage.count("node stopped itself");
            self.take_down(host, RESTART);
        } else if restored || left {
            if restored {
                self.installing.insert(host);
            } else if let Some(process) = &self.nodes[host.0].process {
                let _ = process.life.log().close(); // if the disk does not let it, it ends as if killed
                self.observer.look(&mut self.watch, host, &process.life)?;
            }
            self.coverage.count(if restored { "restored" } else { "left in order" });
            self.take_down(host, RESTART);
        } else {
            self.nodes[host.0].tend(&mut self.stage, &self.plan);
            if voted && self.healed.is_none() && self.rng.hit(self.plan.faults.after_vote) {
                self.coverage.count("fault: kill after a vote");
                let down = Duration::from_millis(self.rng.u64(1..300));
                self.take_down(host, down);
            }
        }
        Ok(())
    }

    /// Compares what a syncup found with a look at both logs, as they were until now.
    fn look_at_syncup(&mut self, host: Host) -> Result<(), Violation> {
        let Some(process) = &self.nodes[host.0].process else { return Ok(()) };
        let seen = (self.nodes[host.0].lives, process.life.syncups());
        if self.syncups.insert(host, seen) == Some(seen) {
            return Ok(());
        }
        let Some(report) = process.life.last_syncup() else { return Ok(()) };
        self.coverage.count("syncup");
        let master = host_of(&report.master).and_then(|of| self.nodes.get(of.0));
        let known = master.and_then(|node| node.process.as_ref().map(|process| (node, process)));
        let Some((node, process)) = known else { return Ok(()) };
        let known = self.watch.ledger().start_between(host, node.host, |vlsn| {
            let (header, _) = process.life.log().header(vlsn).ok()??;
            Some(header.is_sync())
        });
        let Some(known) = known else { return Ok(()) };
        self.watch.enter(&Record::SyncedUp {
            host,
            found: report.start,
            known,
            round_trips: report.round_trips,
        })
    }

    /// Counts damaged entries that are whole again.
    fn look_at_damage(&mut self, host: Host) {
        let Some(faulty) = self.faulty.get_mut(&host) else { return };
        let Some(process) = &self.nodes[host.0].process else { return };
        let left = process.life.log().faulty().len();
        if left < *faulty {
            self.coverage.count("log: damaged entries mended");
        }
        *faulty = left;
    }

    /// Counts what recovery found.
    fn note_recovery(&mut self, host: Host) {
        let Some(process) = &self.nodes[host.0].process else { return };
        let report = process.life.open_report();
        let met = [
            ("log: opened after an orderly end", report.clean_shutdown),
            ("log: opened after a crash", !report.clean_shutdown),
            ("log: truncation finished", report.finished_truncation.is_some()),
            ("log: torn end cut", report.torn_bytes > 0),
            ("log: segments scanned", report.scanned_segments > 0),
            ("log: head uncertain", report.head_uncertain),
            ("log: damaged entries found", !report.faulty.is_empty()),
            ("log: header made again", !report.repaired_headers.is_empty()),
        ];
        for (name, _) in met.into_iter().filter(|(_, met)| *met) {
            self.coverage.count(name);
        }
        self.faulty.insert(host, report.faulty.len());
    }

    // ---------------------------------------------------------------- machines

    fn boot(&mut self, host: Host) -> Result<(), Violation> {
        let now = self.stage.now();
        let early = self.down_until.get(&host).is_some_and(|until| now < *until);
        if early || self.held.contains(&host) || self.nodes[host.0].process.is_some() {
            return Ok(());
        }
        self.stage.network.handle_light(host);
        let amid = self.ended_inside.remove(&host) || self.installing.contains(&host);
        self.stage.trace.note(now, format_args!("{host} starts"));
        match self.nodes[host.0].start(&mut self.stage, &self.plan, &self.embedded) {
            Ok(()) => {
                self.refused.remove(&host);
                let node = &mut self.nodes[host.0];
                let Some(process) = &node.process else { return Ok(()) };
                let life = &process.life;
                self.observer.handle_started(&mut self.watch, host, life, amid)?;
                self.installing.remove(&host);
                if self.plan.is_secondary(host) {
                    self.coverage.count("secondary starts");
                }
                self.note_recovery(host);
                let node = &mut self.nodes[host.0];
                node.tend(&mut self.stage, &self.plan);
                Ok(())
            }
            Err(cause) => self.refuse(host, &cause),
        }
    }

    /// A node does not start with what is on its disk.
    fn refuse(&mut self, host: Host, cause: &RepError) -> Result<(), Violation> {
        self.stage.trace.note(self.stage.now(), format_args!("{host} cannot start: {cause}"));
        self.stage.handle_stopped(host);
        let full = self.nodes[host.0].disk.lock().is_full();
        let damaged = self.atlas.is_touched(host);
        let crashed = self.nodes[host.0].disk.lock().has_crashed();
        if full
            || crashed
            || self.healed.is_none() && !matches!(cause, RepError::Log(LogError::Faulty { .. }))
        {
            if crashed {
                self.nodes[host.0].disk.lock().lose_power();
            }
            self.coverage.count("node could not start yet");
            self.boot_in(host, Duration::from_secs(1));
            return Ok(());
        }
        if damaged {
            self.coverage.count("node refused to start with damage");
            self.refused.insert(host, cause.to_string());
            return Ok(());
        }
        Err(Violation::new("I14", format!("{host} cannot start: {cause}")))
    }

    fn boot_in(&mut self, host: Host, later: Duration) {
        self.down_until.insert(host, self.stage.now() + later);
        self.stage.agenda.post_in(later, Event::Turn(Some(host), Turn::Boot));
    }

    /// The process dies and comes back.
    fn take_down(&mut self, host: Host, down: Duration) {
        self.stage.network.handle_killed(host);
        // First: a log that is dropped would be closed in order.
        self.nodes[host.0].disk.lock().kill();
        self.nodes[host.0].stop(&mut self.stage);
        self.boot_in(host, down);
    }

    /// The power is off; the machine comes back when its fault said.
    fn power_off(&mut self, host: Host) {
        self.stage.network.handle_dark(host);
        self.nodes[host.0].disk.lock().lose_power(); // first, as above
        self.nodes[host.0].stop(&mut self.stage);
        let until = self.down_until.get(&host).copied().unwrap_or_default();
        let down = until.since(self.stage.now()).max(RESTART);
        self.boot_in(host, down);
    }

    fn is_up(&self, host: Host) -> bool {
        self.nodes[host.0].process.is_some()
    }
}

/// How often the group is looked at in the second phase.
const LOOK: Duration = Duration::from_millis(100);

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Master => "role: master",
        Role::Replica => "role: replica",
        Role::Unknown => "role: unknown",
        Role::Restoring => "role: restoring",
        Role::Stopped => "role: stopped",
    }
}
