//! Scripted: a world in which everything goes as a scenario says, and nothing else goes wrong.
//!
//! All rules that hold for worlds of a seed are checked here too, after each step; those about
//! clients whenever the scenario expects the group to be one.
//!
//! # Not here: the language (script.rs).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use noxu_log::inspect::Inspection;
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_rep::core::node::Input;
use noxu_rep::driver::master::Admit;
use noxu_rep::{Durability, RepError, Role};
use noxu_util::{Lsn, Vlsn};
use parking_lot::Mutex;

use super::World;
use crate::clock::WALL_START_MS;
use crate::disk::Rot;
use crate::event::{Event, Host, Nanos, Turn};
use crate::invariants::{Violation, i14_convergence};
use crate::kv::{Accesses, Kv};
use crate::ledger::LogMirror;
use crate::mutants::Mutants;
use crate::oracle::{Place, Told, Transaction, TxnId};
use crate::schedule::Schedule;
use crate::script::{Command, DiskState, Expectation, Failure, Patience, Script, Writing, letter};
use crate::trace::Trace;
use crate::workload::is_durable;

/// How a scenario went.
#[derive(Debug, Clone)]
pub struct Played {
    /// The line that did not go as it says, or at which a rule was broken.
    pub failure: Option<Failure>,
    /// What must be the same when it is played again.
    pub hash: u64,
    /// The last that happened.
    pub lines: Vec<String>,
}

/// Plays a scenario, and keeps so many of the last lines of the trace.
pub fn play(script: &Script, mutants: Mutants, lines: usize) -> Played {
    mutants.with(|| {
        let world = World::still(Kv, script.plan.clone(), Schedule::default());
        let nodes = script.plan.hosts().collect();
        let mut player = Player { world, nodes, writes: BTreeMap::new(), written: Vec::new() };
        player.world.stage.trace = Trace::keeping(lines);
        let mut failure = None;
        for line in &script.lines {
            let now = player.world.stage.now();
            player.world.stage.trace.note(now, format_args!("> {}", line.text));
            let command = line.command.clone().of(&|letter| player.nodes[letter.0]);
            let done = catch_unwind(AssertUnwindSafe(|| player.act(&command)));
            let why = match done {
                Ok(Ok(())) => continue,
                Ok(Err(why)) => why,
                Err(panic) => super::panic_text(panic.as_ref()),
            };
            failure = Some(Failure { line: line.number, why: format!("{}: {why}", line.text) });
            break;
        }
        if failure.is_none()
            && let Err(violation) = player.world.judge_safety()
        {
            let line = script.lines.last().map_or(1, |line| line.number);
            failure = Some(Failure { line, why: violation.to_string() });
        }
        let trace = &player.world.stage.trace;
        Played { failure, hash: trace.hash(), lines: trace.lines().map(str::to_owned).collect() }
    })
}

struct Player {
    world: World,
    /// The node of each letter.
    nodes: Vec<Host>,
    /// What was written under each name.
    writes: BTreeMap<String, Vec<usize>>,
    written: Vec<Written>,
}

/// One write.
struct Written {
    id: TxnId,
    durable: bool,
    place: Option<Place>,
    told: Arc<Mutex<Option<Result<(), RepError>>>>,
    /// What its client was told.
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    None,
    Done,
    Unknown(String),
    Refused(String),
}

/// How long a write that nobody names may take.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long one that is for one node may wait to be taken there.
const ADMIT_PATIENCE: Duration = Duration::from_secs(1);
/// Between two attempts to write.
const RETRY: Duration = Duration::from_millis(10);
/// How long a node may take to close.
const CLOSING: Duration = Duration::from_secs(2);
/// A byte of an entry behind its header.
const ROTTEN_BYTE: u32 = 40;

type Done = Result<(), String>;

impl From<Violation> for String {
    fn from(violation: Violation) -> Self {
        violation.to_string()
    }
}

impl Player {
    fn act(&mut self, command: &Command) -> Done {
        match command {
            Command::Start(hosts) => self.each(hosts, |player, host| {
                player.world.held.remove(&host);
                player.world.down_until.remove(&host);
                Ok(player.world.boot(host)?)
            }),
            Command::Stop(hosts) => self.each(hosts, Self::stop),
            Command::Kill(hosts) => self.each(hosts, |player, host| {
                player.running(host)?;
                player.world.held.insert(host);
                player.world.take_down(host, Duration::ZERO);
                Ok(())
            }),
            Command::Crash { hosts, losing_all } => self.each(hosts, |player, host| {
                player.running(host)?;
                player.world.held.insert(host);
                player.world.nodes[host.0].disk.lock().lose_all_unsynced(*losing_all);
                player.world.power_off(host);
                Ok(())
            }),
            Command::Wipe(hosts) => self.each(hosts, |player, host| {
                let world = &mut player.world;
                world.held.insert(host);
                if world.is_up(host) {
                    world.stage.network.handle_killed(host);
                    world.nodes[host.0].stop(&mut world.stage);
                }
                world.nodes[host.0].wipe();
                Ok(world.observer.handle_wiped(&mut world.watch, host)?)
            }),
            Command::Pause(hosts) => self.each(hosts, |player, host| {
                player.running(host)?;
                player.world.stage.pause(host);
                Ok(())
            }),
            Command::Resume(hosts) => self.each(hosts, |player, host| {
                player.world.stage.go_on(host);
                Ok(())
            }),
            Command::Cut(ways) => {
                for (from, to) in ways {
                    self.world.stage.network.block(*from, *to);
                }
                Ok(())
            }
            Command::Heal => {
                self.world.stage.network.free_all();
                Ok(())
            }
            Command::Reset(a, b) => {
                self.world.stage.network.reset(*a, *b);
                Ok(())
            }
            Command::Hold { kind, ways, name } => {
                self.world.stage.network.hold(name, *kind, ways);
                Ok(())
            }
            Command::Enough(name) => {
                let known = self.world.stage.network.end_hold(name);
                known.then_some(()).ok_or_else(|| format!("nothing is held as {name}"))
            }
            Command::Release { name, comes } => {
                let known = self.world.stage.network.release(name, *comes);
                known.then_some(()).ok_or_else(|| format!("nothing is held as {name}"))
            }
            Command::Replay(name) => {
                let done = self.world.stage.network.replay(name);
                done.then_some(()).ok_or_else(|| format!("there is no {name}, or no connection"))
            }
            Command::Disk { host, what } => {
                let mut disk = self.world.nodes[host.0].disk.lock();
                let env = disk.env();
                match what {
                    DiskState::Full => env.set_capacity(Some(env.used_bytes())),
                    DiskState::Ok => env.set_capacity(None),
                    DiskState::Broken => disk.break_next_sync(),
                }
                Ok(())
            }
            Command::CorruptEntry { host, write } => self.corrupt_entry(*host, write),
            Command::CorruptLast(host) => {
                let known = self.world.watch.ledger().log(*host);
                let last = known.map_or(Vlsn::default(), LogMirror::last);
                self.corrupt_at(*host, last, "the last entry")
            }
            Command::CorruptMark(host) => self.corrupt_mark(*host),
            Command::Corrupt(host, what) => self.corrupt(*host, *what),
            Command::Write(writing) => self.write(writing),
            Command::Call(letter) => self.call(*letter),
            Command::Run(time) => self.run(*time),
            Command::Expect(what, patience) => self.expect(what, *patience),
        }
    }

    fn each(&mut self, hosts: &[Host], mut act: impl FnMut(&mut Self, Host) -> Done) -> Done {
        hosts.iter().try_for_each(|host| act(self, *host))
    }

    fn call(&mut self, letter: Host) -> Done {
        let master = self.newest_master().ok_or("nobody is master")?;
        let had = self.nodes.iter().position(|node| *node == master).expect("all have a letter");
        self.nodes.swap(had, letter.0);
        Ok(())
    }

    /// What a node is called.
    fn letter(&self, host: Host) -> char {
        let of = self.nodes.iter().position(|node| *node == host).expect("all have a letter");
        letter(Host(of))
    }

    fn running(&self, host: Host) -> Done {
        let up = self.world.is_up(host);
        up.then_some(()).ok_or_else(|| format!("{} does not run", self.letter(host)))
    }

    fn stop(&mut self, host: Host) -> Done {
        self.running(host)?;
        self.world.held.insert(host);
        if let Some(process) = &self.world.nodes[host.0].process {
            process.life.handle(Input::Closing);
        }
        self.world.nodes[host.0].leave(&mut self.world.stage);
        self.world.settle(host)?;
        let gone = |player: &Self| !player.world.is_up(host);
        let closed = self.run_until(CLOSING, gone)?;
        closed.then_some(()).ok_or_else(|| format!("{} does not close", self.letter(host)))
    }

    // ---------------------------------------------------------------- time

    fn run(&mut self, time: Duration) -> Done {
        self.run_until(time, |_| false).map(|_| ())
    }

    /// Lets time pass until something holds; false if it does not within `time`.
    fn run_until(&mut self, time: Duration, met: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let until = self.world.stage.now() + time;
        self.world.stage.agenda.post(until, Event::Turn(None, Turn::Line));
        loop {
            if met(self) {
                return Ok(true);
            }
            if self.world.stage.now() >= until {
                return Ok(false);
            }
            self.world.advance()?;
            self.hear();
        }
    }

    /// Clients take in what they are told.
    fn hear(&mut self) {
        let now = self.world.stage.now();
        for written in &mut self.written {
            let Some(outcome) = written.told.lock().take() else { continue };
            let Some(place) = written.place else { continue };
            match outcome {
                Ok(()) => {
                    written.answer = Answer::Done;
                    if let Some(known) = self.world.oracle.get(written.id) {
                        let mut transaction = known.clone();
                        transaction.ended = Some(now);
                        transaction.told =
                            if written.durable { Told::Durable(place) } else { Told::Weak(place) };
                        self.world.oracle.note(written.id, transaction);
                    }
                }
                Err(cause) => written.answer = Answer::Unknown(cause.to_string()),
            }
        }
    }

    // ---------------------------------------------------------------- writes

    fn write(&mut self, writing: &Writing) -> Done {
        for _ in 0..writing.count {
            let number = self.write_one(writing)?;
            let Some(name) = &writing.name else {
                let answered = |player: &Self| player.written[number].answer != Answer::None;
                self.run_until(WRITE_PATIENCE, answered)?;
                match &self.written[number].answer {
                    Answer::Done => continue,
                    Answer::None => return Err(format!("no answer{}", self.describe())),
                    Answer::Unknown(why) | Answer::Refused(why) => return Err(why.clone()),
                }
            };
            self.writes.entry(name.clone()).or_default().push(number);
        }
        Ok(())
    }

    /// Writes, and returns the number of the write.
    fn write_one(&mut self, writing: &Writing) -> Result<usize, String> {
        let patience = writing.at.map_or(WRITE_PATIENCE, |_| ADMIT_PATIENCE);
        let until = self.world.stage.now() + patience;
        let why = loop {
            let host = writing.at.or_else(|| self.newest_master());
            let tried = match host {
                Some(host) => self.submit(host, writing.durability)?,
                None => Err("nobody is master".to_owned()),
            };
            match tried {
                Ok(written) => {
                    self.written.push(written);
                    return Ok(self.written.len() - 1);
                }
                Err(why) if self.world.stage.now() >= until => break why,
                Err(_) => self.run(RETRY)?,
            }
        };
        let (told, answer) = (Arc::default(), Answer::Refused(why));
        let id = TxnId(self.written.len() as u64);
        self.written.push(Written { id, durable: false, place: None, told, answer });
        Ok(self.written.len() - 1)
    }

    /// Writes at a node; the inner error is why it does not take it.
    fn submit(
        &mut self,
        host: Host,
        durability: Durability,
    ) -> Result<Result<Written, String>, String> {
        let Some(process) = &self.world.nodes[host.0].process else {
            return Ok(Err(format!("{} does not run", self.letter(host))));
        };
        if self.world.stage.is_paused(host) {
            return Ok(Err(format!("{} is paused", self.letter(host))));
        }
        let master = match process.life.sitting_master() {
            Ok(master) => master,
            Err(cause) => return Ok(Err(cause.to_string())),
        };
        let id = TxnId(self.written.len() as u64);
        let mut work = process.engine.begin().map_err(|cause| cause.to_string())?;
        let (key, value) = (format!("k{}", id.0).into_bytes(), format!("v{}", id.0).into_bytes());
        work.put(&key, &value).map_err(|cause| cause.to_string())?;
        let admission = match master.try_admit(durability) {
            Admit::Yes(admission) => admission,
            Admit::Replicas { needed, connected } => {
                return Ok(Err(format!("{needed} replicas needed, {connected} connected")));
            }
            Admit::Room => return Ok(Err("no room".to_owned())),
            Admit::Applied(vlsn) => return Ok(Err(format!("{vlsn} is to be applied first"))),
            Admit::Closed => return Ok(Err("the mastership is over".to_owned())),
        };
        let bodies = work.encode(WALL_START_MS);
        let term = admission.term();
        let prepared = match process.engine.prepare(&work, term, admission.term_entry()) {
            Ok(prepared) => prepared,
            Err(cause) => return Ok(Err(cause.to_string())),
        };
        let submitted = match admission.write(&bodies.entries()) {
            Ok(submitted) => submitted,
            Err(cause) => return Ok(Err(cause.to_string())),
        };
        prepared.committed(submitted.vlsn());
        let place = Place { vlsn: submitted.vlsn(), term, fingerprint: submitted.fingerprint() };
        let transaction = Transaction {
            began: self.world.stage.now(),
            ended: None,
            told: Told::Unknown(place),
            record: Accesses {
                snapshot: work.snapshot_vlsn(),
                reads: Vec::new(),
                writes: vec![(key, Some(value))],
            },
        };
        self.world.oracle.note(id, transaction);
        let told = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&told);
        submitted.start();
        submitted.on_done(move |outcome| *theirs.lock() = Some(outcome));
        self.world.settle(host)?;
        let (durable, answer) = (is_durable(durability), Answer::None);
        Ok(Ok(Written { id, durable, place: Some(place), told, answer }))
    }

    /// The master of the newest term, if it still is one.
    fn newest_master(&self) -> Option<Host> {
        self.masters().into_iter().max_by_key(|(_, term)| *term).map(|(host, _)| host)
    }

    fn masters(&self) -> Vec<(Host, noxu_util::Term)> {
        let nodes = self.world.nodes.iter();
        let masters = nodes
            .filter_map(|node| Some((node.host, node.process.as_ref()?.life.mastership()?.term())));
        masters.collect()
    }

    // ---------------------------------------------------------------- damage

    fn corrupt_entry(&mut self, host: Host, write: &str) -> Done {
        let first = *self.named(write)?.first().expect("a name has a write");
        let place = self.written[first].place.ok_or_else(|| format!("{write} was not written"))?;
        let held = self.world.watch.ledger().log(host).and_then(|log| log.at(place.vlsn));
        if held.is_none_or(|held| held.fingerprint != place.fingerprint) {
            return Err(format!("{write} is not in the log of {}", self.letter(host)));
        }
        self.corrupt_at(host, place.vlsn, write)
    }

    fn corrupt_at(&mut self, host: Host, vlsn: Vlsn, what: &str) -> Done {
        let (env, dir) = {
            let disk = self.world.nodes[host.0].disk.lock();
            (disk.env(), disk.dir().to_owned())
        };
        let mut found: Option<Lsn> = None;
        let log = Inspection::open(Arc::new(env.clone()), &dir).map_err(|e| e.to_string())?;
        log.walk(vlsn, |lsn, entry| {
            if entry.header.vlsn == vlsn {
                found = Some(lsn);
            }
            ControlFlow::Continue(())
        })
        .map_err(|cause| cause.to_string())?;
        let lsn =
            found.ok_or_else(|| format!("{what} is not on the disk of {}", self.letter(host)))?;
        let path = log_dir(&dir).join(segment_name(lsn.segment()));
        let offset = u64::from(lsn.offset() + ROTTEN_BYTE);
        env.corrupt(&path, offset, 0x55).map_err(|cause| cause.to_string())?;
        self.world.atlas.note_damage(host, vlsn);
        self.world.rotten.insert(host);
        Ok(())
    }

    fn corrupt_mark(&mut self, host: Host) -> Done {
        let disk = self.world.nodes[host.0].disk.lock();
        let path = disk.dir().join("tail-mark");
        for slot in 0..2 {
            let offset = slot * crate::disk::SLOT_STRIDE + 8;
            disk.env().corrupt(&path, offset, 0x55).map_err(|cause| cause.to_string())?;
        }
        self.world.atlas.note_uncertain(host);
        self.world.rotten.insert(host);
        Ok(())
    }

    fn corrupt(&mut self, host: Host, what: Rot) -> Done {
        let world = &mut self.world;
        let disk = world.nodes[host.0].disk.lock();
        let found = disk.find_rot(what, world.plan.seed).map_err(|cause| cause.to_string())?;
        let rotten = found.ok_or("there is no such file")?;
        disk.rot(&rotten).map_err(|cause| cause.to_string())?;
        match what {
            // Every segment may be the one.
            Rot::SegmentHeader | Rot::Entry => {
                let last = world.watch.ledger().log(host).map_or(Vlsn::default(), LogMirror::last);
                for vlsn in 1..=last.sequence() {
                    world.atlas.note_damage(host, Vlsn::new(vlsn));
                }
            }
            Rot::MarkSlot | Rot::ControlSlot | Rot::SideFile => {}
        }
        world.atlas.note_uncertain(host);
        world.rotten.insert(host);
        Ok(())
    }

    // ---------------------------------------------------------------- expectations

    fn expect(&mut self, what: &Expectation, patience: Patience) -> Done {
        if let Some(name) = what.writes() {
            self.named(name)?;
        }
        let (met, time) = match patience {
            Patience::Within(time) => (self.run_until(time, |player| player.is_met(what))?, time),
            Patience::For(time) => (!self.run_until(time, |player| !player.is_met(what))?, time),
        };
        if !met {
            let at = self.world.stage.now().since(Nanos(0));
            return Err(format!("not so at {at:?}, {time:?} given{}", self.describe()));
        }
        match what {
            Expectation::Equal => Ok(self.world.judge()?),
            _ => Ok(()),
        }
    }

    fn named(&self, name: &str) -> Result<Vec<usize>, String> {
        self.writes.get(name).cloned().ok_or_else(|| format!("nothing was written as {name}"))
    }

    fn is_met(&self, what: &Expectation) -> bool {
        let world = &self.world;
        let ledger = world.watch.ledger();
        let all = |name: &String, met: &dyn Fn(&Written) -> bool| {
            self.writes[name].iter().all(|number| met(&self.written[*number]))
        };
        let holds = |host: Host, written: &Written| {
            written.place.is_some_and(|place| {
                let held = ledger.log(host).and_then(|log| log.at(place.vlsn));
                held.is_some_and(|held| held.fingerprint == place.fingerprint)
            })
        };
        match what {
            Expectation::Master(host) => self.newest_master() == Some(*host),
            Expectation::AMaster => self.newest_master().is_some(),
            Expectation::NoMaster => self.masters().is_empty(),
            Expectation::Role(host, role) => {
                let process = world.nodes[host.0].process.as_ref();
                process.is_some_and(|process| match role {
                    // Who still makes its term begin is no master for anybody yet.
                    Role::Master => process.life.mastership().is_some(),
                    Role::Replica | Role::Unknown | Role::Restoring | Role::Stopped => {
                        process.life.role().0 == *role
                    }
                })
            }
            Expectation::Down(host) => !world.is_up(*host),
            Expectation::Equal => {
                let ends = world.ends();
                ends.iter().all(|end| end.applied == end.last)
                    && i14_convergence::check(&ends).is_ok()
            }
            Expectation::Elections(count) => ledger.masterships() == *count,
            Expectation::Rollbacks(count) => ledger.truncations() == *count,
            Expectation::Held(name) => world.stage.network.has_held(name),
            Expectation::Reported(name) => all(name, &|w| w.answer == Answer::Done),
            Expectation::Unknown(name) => all(name, &|w| {
                w.place.is_some() && matches!(w.answer, Answer::None | Answer::Unknown(_))
            }),
            Expectation::Refused(name) => all(name, &|w| matches!(w.answer, Answer::Refused(_))),
            Expectation::Durable(name) => all(name, &|w| {
                w.place.is_some_and(|place| {
                    let held = ledger.durable(place.vlsn);
                    held.is_some_and(|held| held.fingerprint == place.fingerprint)
                })
            }),
            Expectation::Lost(name) => all(name, &|w| {
                let mut hosts = world.plan.hosts().filter(|host| world.is_up(*host));
                w.place.is_some() && !hosts.any(|host| holds(host, w))
            }),
            Expectation::Has(host, name) => all(name, &|w| holds(*host, w)),
            Expectation::Lacks(host, name) => all(name, &|w| !holds(*host, w)),
        }
    }

    /// How everything stands, for people.
    fn describe(&self) -> String {
        let ledger = self.world.watch.ledger();
        let (elections, rollbacks) = (ledger.masterships(), ledger.truncations());
        let mut text = format!("\n  {elections} elections, {rollbacks} rollbacks");
        for node in &self.world.nodes {
            let _ = write!(text, "\n  {} ({}): ", self.letter(node.host), node.host); // a String takes everything
            let Some(process) = &node.process else {
                text.push_str("down");
                continue;
            };
            let (role, term) = process.life.role();
            let positions = process.life.log().positions();
            let _ = write!(
                text,
                "{role} in term {term}, log {}..{}, durable {}, applied {}",
                positions.anchor.vlsn.next(),
                positions.last,
                positions.durable,
                process.life.applier().applied()
            );
        }
        for (name, numbers) in &self.writes {
            for written in numbers.iter().map(|number| &self.written[*number]) {
                let at = written.place.map(|place| place.vlsn);
                let _ = write!(text, "\n  {name} at {at:?}: {:?}", written.answer);
            }
        }
        text
    }
}

impl Expectation {
    /// The write it is about.
    fn writes(&self) -> Option<&String> {
        match self {
            Self::Reported(name)
            | Self::Unknown(name)
            | Self::Refused(name)
            | Self::Durable(name)
            | Self::Lost(name)
            | Self::Has(_, name)
            | Self::Lacks(_, name) => Some(name),
            Self::Master(_)
            | Self::AMaster
            | Self::NoMaster
            | Self::Role(..)
            | Self::Down(_)
            | Self::Equal
            | Self::Elections(_)
            | Self::Rollbacks(_)
            | Self::Held(_) => None,
        }
    }
}
