//! World: nodes that give, and one that restores from them.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv, MemoryEnv};
use noxu_log::{GroupIdentity, Log, LogConfig, NewEntry, RetentionConfig};
use noxu_util::{GroupId, Name, Term, Vlsn};
use parking_lot::Mutex;

use super::Subject;
use super::relay::{Harm, Relay, Seen};
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::net::channel::{Channel, LocalChannelPair};
use crate::restore::install;
use crate::restore::provider::{ProviderHost, RestoreProvider, Serving, StateOffers};
use crate::restore::session::{RestoreHost, RestoreLimits, Restoring, Work, fetch};
use crate::restore::{Progress, Restored};
use crate::sync::StateMachine;
use crate::sync::method::{StateSync, SyncNode};

/// Where the node that restores is, and its state machine.
pub(crate) const DIR: &str = "/taker";
pub(crate) const STATE_DIR: &str = "/taker/state-machine";

/// After which time a restore is taken for one that never ends.
const PATIENCE: Duration = Duration::from_mins(1);

const TERM: Term = Term::new(1);

fn config() -> LogConfig {
    let retention = RetentionConfig { keep_bytes: 0, ..RetentionConfig::default() };
    let sync_interval = Duration::from_hours(1);
    LogConfig { prefill: false, sync_interval, retention, ..LogConfig::default() }
}

fn name(text: &str) -> Name {
    text.parse().expect("a lawful name")
}

/// A node that gives.
pub(crate) struct Giver<'s, S: Subject> {
    pub(crate) subject: &'s S,
    pub(crate) log: Log,
    pub(crate) machine: Arc<S::Machine>,
    provider: Arc<RestoreProvider>,
    told: Arc<Told>,
    name: Name,
    /// The next transaction.
    next: Mutex<u64>,
}

struct Told {
    log: Log,
    sources: Mutex<Vec<(Name, String)>>,
}

struct ToldHost(Arc<Told>);

impl ProviderHost for ToldHost {
    fn serving(&self) -> Result<Serving> {
        Ok(Serving { term: TERM, dtvlsn: self.0.log.positions().last })
    }

    fn sources(&self) -> Vec<(Name, String)> {
        self.0.sources.lock().clone()
    }

    fn handle_failed(&self, _cause: &RepError) {}
}

impl<'s, S: Subject> Giver<'s, S> {
    /// With transactions `0..common`, and then those from `own` on until there are as many as the subject
    /// wants; gives by `methods`. The front of its log is gone.
    pub(crate) fn new(
        subject: &'s S,
        node: &str,
        methods: &[Arc<dyn StateSync>],
        (common, own): (u64, u64),
    ) -> Result<Self> {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let dir = format!("/{node}");
        let (log, _) = Log::open(Arc::clone(&env), Path::new(&dir), config())?;
        log.found(identity())?;
        let machine = subject.open(&env, Path::new(&format!("{dir}/state-machine")))?;
        let giving: Arc<dyn StateMachine> = Arc::<S::Machine>::clone(&machine);
        let sync = SyncNode { env, machine: giving };
        let offers = Arc::new(StateOffers::new(Clock::start(), methods, &sync));
        let told = Arc::new(Told { log: log.clone(), sources: Mutex::default() });
        let host = Box::new(ToldHost(Arc::clone(&told)));
        let provider = Arc::new(RestoreProvider::new(name(node), log.clone(), offers, host));
        let (name, next) = (name(node), Mutex::new(0));
        let giver = Self { subject, log, machine, provider, told, name, next };
        let all = subject.transactions();
        for n in 0..common.min(all) {
            append(subject, &giver.log, n)?;
        }
        giver.apply()?;
        for n in common.min(all)..all {
            append(subject, &giver.log, n - common.min(all) + own)?;
        }
        giver.apply()?;
        giver.machine.checkpoint()?;
        *giver.next.lock() = all;
        let front = giver.log.positions().last.sequence() * 3 / 4;
        giver.log.drop_front(Vlsn::new(front), |_| Vec::new())?;
        Ok(giver)
    }

    /// Makes everything durable, and applies it.
    fn apply(&self) -> Result<()> {
        self.log.sync_now()?;
        let last = self.log.positions().last;
        self.log.control().update(|control| control.commit_floor = last)?;
        self.log.seal_through(last)?;
        apply_rest(&*self.machine, &self.log)
    }

    /// Writes one more transaction.
    pub(crate) fn write(&self) -> Result<()> {
        let mut next = self.next.lock();
        append(self.subject, &self.log, *next)?;
        *next += 1;
        self.apply()
    }

    /// Tells who restores from it of other nodes, each reached at its name.
    pub(crate) fn name_sources(&self, sources: &[&Self]) {
        let named = sources.iter().map(|of| (of.name.clone(), of.name.to_string()));
        *self.told.sources.lock() = named.collect();
    }

    /// A connection to it, on which this harm is done.
    pub(crate) fn connect(&self, harm: Harm, seen: &Arc<Seen>) -> Arc<dyn Channel> {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let provider = Arc::clone(&self.provider);
        thread::spawn(move || {
            let _ = provider.run(&channel_b);
        });
        let (due, last, held) = (Mutex::new(VecDeque::new()), Mutex::default(), Mutex::default());
        let (inner, seen) = (Arc::new(channel_a), Arc::clone(seen));
        Arc::new(Relay { inner, harm, seen, due, last, held })
    }

    pub(crate) fn digest(&self) -> Result<Vec<u8>> {
        self.subject.digest(&self.machine)
    }
}

/// Applies what the log has behind what is applied.
fn apply_rest(machine: &dyn StateMachine, log: &Log) -> Result<()> {
    let last = log.positions().last;
    let mut at = machine.applied();
    while at < last {
        let Some(run) = log.read(at.next(), 1 << 20)? else { break };
        at = run.last;
        machine.apply(&run, last)?;
    }
    Ok(())
}

/// What happens at every turn of a restore.
type Watch<'a> = Box<dyn Fn(&Progress) + Sync + 'a>;

/// The node that restores, as its session sees it.
pub(crate) struct Taking<'a, S: Subject> {
    /// The master, and what happens on the way to it.
    pub(crate) master: (&'a Giver<'a, S>, Harm),
    /// Other nodes.
    pub(crate) sources: Vec<(&'a Giver<'a, S>, Harm)>,
    /// By which methods.
    pub(crate) methods: Vec<Arc<dyn StateSync>>,
    /// What was seen of all connections.
    pub(crate) seen: Arc<Seen>,
    pub(crate) watch: Watch<'a>,
    /// Whether it may commit.
    pub(crate) permits: bool,
    /// What the state is made ready for as it comes, if it is.
    pub(crate) ahead: Option<Ahead<S>>,
}

/// A state machine, and whether what is done for it ahead of the installation has a thread of its own.
pub(crate) struct Ahead<S: Subject> {
    pub(crate) machine: Arc<S::Machine>,
    pub(crate) has_threads: bool,
}

struct Host<'a, S: Subject> {
    taking: &'a Taking<'a, S>,
    channel: &'a dyn Channel,
    clock: Clock,
    /// What there was of it when it was given up.
    given_up: Mutex<Option<Progress>>,
    beside: Mutex<Vec<JoinHandle<()>>>,
}

impl<S: Subject> RestoreHost for Host<'_, S> {
    fn dial(&self, address: &str) -> Result<Arc<dyn Channel>> {
        let found = self.taking.sources.iter().find(|(giver, _)| giver.name.as_str() == address);
        let (giver, harm) = found.ok_or_else(|| RepError::Closed { peer: address.to_owned() })?;
        Ok(giver.connect(*harm, &self.taking.seen))
    }

    fn note(&self, progress: &Progress) {
        (self.taking.watch)(progress);
        if self.clock.now() > PATIENCE {
            *self.given_up.lock() = Some(progress.clone());
            self.channel.close();
        }
    }

    fn permit(&self, _term: Term) -> bool {
        self.taking.permits
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn machine(&self) -> Option<Arc<dyn StateMachine>> {
        let ahead = self.taking.ahead.as_ref()?;
        let machine: Arc<dyn StateMachine> = Arc::<S::Machine>::clone(&ahead.machine);
        Some(machine)
    }

    fn run_beside(&self, work: Work) -> Option<Work> {
        if self.has_threads() {
            self.beside.lock().push(thread::spawn(work));
        } else {
            work();
        }
        None
    }

    fn has_threads(&self) -> bool {
        self.taking.ahead.as_ref().is_some_and(|ahead| ahead.has_threads)
    }
}

impl<'a, S: Subject> Taking<'a, S> {
    /// From a master, by the subject's method, unharmed.
    pub(crate) fn from(master: &'a Giver<'a, S>) -> Self {
        Self {
            master: (master, Harm::None),
            sources: Vec::new(),
            methods: vec![master.subject.method()],
            seen: Arc::default(),
            watch: Box::new(|_| {}),
            permits: true,
            ahead: None,
        }
    }

    /// One session: log and state are fetched, and committed.
    pub(crate) fn fetch(&self, env: &Arc<dyn Env>) -> Result<Progress> {
        let (master, harm) = self.master;
        let named: Vec<_> = self.sources.iter().map(|(giver, _)| *giver).collect();
        master.name_sources(&named);
        let channel = master.connect(harm, &self.seen);
        let limits = RestoreLimits { answer_timeout: PATIENCE, ..RestoreLimits::default() };
        let mut restoring = Restoring::new(name("taker"), None, Term::ZERO);
        (restoring.limits, restoring.log) = (limits, config());
        restoring.methods.clone_from(&self.methods);
        let (clock, given_up, beside) = (Clock::start(), Mutex::default(), Mutex::default());
        let host = Host { taking: self, channel: &*channel, clock, given_up, beside };
        let fetched = fetch(env, Path::new(DIR), &restoring, &channel, &host);
        for thread in host.beside.into_inner() {
            // One that panicked has failed, as the session knows.
            let _ = thread.join();
        }
        if let Some(progress) = host.given_up.into_inner() {
            let cause = format!("it does not end: {progress:?}");
            return Err(RepError::state_machine(cause));
        }
        fetched?.ok_or_else(|| RepError::state_machine("it may not be committed"))
    }

    /// Replaces log and state by what was committed.
    pub(crate) fn install(&self, env: &Arc<dyn Env>, machine: &S::Machine) -> Result<Restored> {
        let clock = Clock::start();
        install::install(env, Path::new(DIR), &config(), &self.methods, machine, true, &clock)
    }

    /// What a node does when it starts: true if a restore was finished.
    pub(crate) fn recover(&self, env: &Arc<dyn Env>, machine: &S::Machine) -> Result<bool> {
        let (dir, clock) = (Path::new(DIR), Clock::start());
        let found = install::recover(env, dir, &config(), &self.methods, machine, &clock)?;
        Ok(matches!(found, install::Recovered::Installed(_)))
    }

    /// Whether the log ends with the entry of the master's that it began with, or later.
    pub(crate) fn has_new_log(&self, env: &Arc<dyn Env>) -> Result<bool, String> {
        let (log, _) =
            Log::open(Arc::clone(env), Path::new(DIR), config()).map_err(said("opening"))?;
        let (ours, theirs) = (log.positions(), self.master.0.log.positions());
        log.close().map_err(said("closing"))?;
        Ok(ours.last_fingerprint == theirs.last_fingerprint)
    }

    /// Fetches, installs and compares.
    pub(crate) fn restore(&self, env: &Arc<dyn Env>) -> Result<(Progress, Restored), String> {
        let progress = self.fetch(env).map_err(said("fetching"))?;
        let machine = open(self.master.0.subject, env).map_err(said("opening"))?;
        let restored = self.install(env, &machine).map_err(said("installing"))?;
        drop(machine);
        self.compare(env)?;
        Ok((progress, restored))
    }

    /// The restored log is the master's, and the state machine, opened anew, is after the same entries what
    /// that of the master is.
    pub(crate) fn compare(&self, env: &Arc<dyn Env>) -> Result<(), String> {
        let master = self.master.0;
        let (log, _) =
            Log::open(Arc::clone(env), Path::new(DIR), config()).map_err(said("opening"))?;
        let machine = open(master.subject, env).map_err(said("opening"))?;
        let compared = same_log(&log, &master.log).and_then(|()| {
            let (applied, ours) = (machine.applied(), log.positions());
            if applied < ours.anchor.vlsn || applied > ours.last {
                return Err(format!(
                    "the state is of {applied}, the log of {} to {}",
                    ours.anchor.vlsn, ours.last
                ));
            }
            // What the master wrote behind the restored log comes as on any replica.
            while let Some(run) =
                master.log.read(log.positions().last.next(), 1 << 20).map_err(said("reading"))?
            {
                log.append_run(&run).map_err(said("appending"))?;
            }
            apply_rest(&*machine, &log).map_err(said("applying"))?;
            let ours = master.subject.digest(&machine).map_err(said("the digest"))?;
            let theirs = master.digest().map_err(said("the digest"))?;
            let through = log.positions().last;
            if ours == theirs {
                Ok(())
            } else {
                Err(format!("the state through {through} is another one than the source's"))
            }
        });
        log.close().map_err(said("closing"))?;
        compared
    }
}

fn same_log(ours: &Log, theirs: &Log) -> Result<(), String> {
    let from = ours.positions().anchor.vlsn.max(theirs.positions().anchor.vlsn).next();
    for n in from.sequence()..=ours.positions().last.sequence() {
        let at = |log: &Log| log.header(Vlsn::new(n)).map(|at| at.map(|(h, _)| h.fingerprint));
        let (ours, theirs) =
            (at(ours).map_err(said("reading"))?, at(theirs).map_err(said("reading"))?);
        if ours.is_none() || ours != theirs {
            return Err(format!("entry {n} is {ours:?}, the source's is {theirs:?}"));
        }
    }
    Ok(())
}

/// Gives the node that restores a log and a state of another history.
pub(crate) fn with_old_state<S: Subject>(subject: &S, env: &Arc<dyn Env>) -> Result<(), String> {
    let old = || -> Result<()> {
        let (log, _) = Log::open(Arc::clone(env), Path::new(DIR), config())?;
        log.found(identity())?;
        for n in 0..5 {
            append(subject, &log, OLD + n)?;
        }
        log.sync_now()?;
        let machine = open(subject, env)?;
        apply_rest(&*machine, &log)?;
        machine.checkpoint()?;
        Ok(log.close()?)
    };
    old().map_err(said("the old state"))
}

/// The first transaction of another history.
pub(crate) const OLD: u64 = 1 << 21;

fn identity() -> GroupIdentity {
    let id = GroupId::from_bytes(*b"conformance-kit!");
    GroupIdentity { id, name: name("kit"), segment_bytes: 16 << 10 }
}

fn append<S: Subject>(subject: &S, log: &Log, n: u64) -> Result<()> {
    let entries = subject.transaction(n);
    let new = entries.iter().map(|entry| NewEntry::new(entry.kind, entry.flags, &entry.body));
    log.append(TERM, &new.collect::<Vec<_>>())?;
    Ok(())
}

/// The state machine of the node that restores.
pub(crate) fn open<S: Subject>(subject: &S, env: &Arc<dyn Env>) -> Result<Arc<S::Machine>> {
    subject.open(env, Path::new(STATE_DIR))
}

/// A disk whose crashes can be seen, with an empty directory for the node.
pub(crate) fn disk() -> Result<(FaultEnv, Arc<dyn Env>), String> {
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    env.create_dir_all(Path::new(DIR)).map_err(|e| e.to_string())?;
    env.sync_dir(Path::new("/")).map_err(|e| e.to_string())?;
    Ok((faulty, env))
}

pub(crate) fn said<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
