//! Rig: a real log and provider on one side, a disk that can crash at every call on the other.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv, MemoryEnv, read_whole, write_whole};
use noxu_log::{
    EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, NewEntry, RetentionConfig,
};
use noxu_util::{GroupId, NULL_VLSN, Name, Term};
use parking_lot::Mutex;

use super::super::install::{self, Recovered};
use super::super::provider::{ProviderHost, RestoreProvider, Serving, StateOffers};
use super::super::session::{
    RestoreHost, RestoreLimits, Restoring, Work, default_methods, fetch, is_pending,
};
use super::super::*;
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::net::channel::{Channel, LocalChannelPair};
use crate::stream::log_view::LogView;
use crate::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, feeder_syncup_handshake, replica_syncup,
};
use crate::sync::method::SyncNode;
use crate::sync::{Checkpoint, LogReader, StateMachine};
use crate::wire::restore::RestoreMsg;

pub(super) const DIR: &str = "/n2";

pub(super) fn dir() -> &'static Path {
    Path::new(DIR)
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn v(n: i64) -> Vlsn {
    Vlsn::new(n)
}

pub(super) fn group(segment_bytes: u32) -> GroupIdentity {
    let id = GroupId::from_bytes(*b"group-of-sixteen");
    GroupIdentity { id, name: name("orders"), segment_bytes }
}

/// Keeps nothing below a checkpoint, once the log is told of one, whoever needs it.
pub(super) fn config() -> LogConfig {
    let retention =
        RetentionConfig { keep_bytes: 0, byte_budget: Some(1), ..RetentionConfig::default() };
    let sync_interval = Duration::from_hours(1);
    LogConfig { prefill: false, sync_interval, retention, ..LogConfig::default() }
}

/// A state machine whose state is a text, kept in a file of the environment.
pub(super) struct Machine {
    env: Arc<dyn Env>,
    path: PathBuf,
    pub(super) state: Mutex<(Vlsn, Vec<u8>)>,
}

impl Machine {
    pub(super) fn open(env: &Arc<dyn Env>, path: &str) -> Arc<Self> {
        let path = PathBuf::from(path);
        let state = read_whole(&**env, &path).map_or((NULL_VLSN, Vec::new()), |bytes| {
            let (vlsn, text) = bytes.split_first_chunk::<8>().unwrap();
            (v(i64::from_le_bytes(*vlsn)), text.to_vec())
        });
        Arc::new(Self { env: Arc::clone(env), path, state: Mutex::new(state) })
    }

    pub(super) fn set(&self, vlsn: Vlsn, text: &[u8]) -> Result<()> {
        let bytes = [&vlsn.sequence().to_le_bytes()[..], text].concat();
        write_whole(&*self.env, &self.path, &bytes)?;
        *self.state.lock() = (vlsn, text.to_vec());
        Ok(())
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> Vlsn {
        self.state.lock().0
    }

    fn apply(&self, _run: &EntryRun, _through: Vlsn) -> Result<()> {
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
        assert_eq!(matchpoint, NULL_VLSN, "a restore without a checkpoint begins anew");
        self.set(NULL_VLSN, b"")
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        Ok(self.applied())
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let (vlsn, text) = self.state.lock().clone();
        Ok(Box::new(TextCheckpoint { vlsn, text, at: 0 }))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut text = Vec::new();
        source.read_to_end(&mut text).map_err(RepError::state_machine)?;
        self.set(vlsn, &text)
    }
}

struct TextCheckpoint {
    vlsn: Vlsn,
    text: Vec<u8>,
    at: usize,
}

impl Checkpoint for TextCheckpoint {
    fn vlsn(&self) -> Vlsn {
        self.vlsn
    }

    fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        let end = self.text.len().min(self.at + max.min(700));
        buf.extend_from_slice(&self.text[self.at..end]);
        self.at = end;
        Ok(end < self.text.len())
    }
}

/// A log of `count` entries in term 1, of which the first `common` are the same for every
/// `lineage`; everything through `floor` is settled.
pub(super) fn build_log(
    env: &Arc<dyn Env>,
    dir: &Path,
    segment_bytes: u32,
    (count, common, lineage): (i64, i64, u8),
    floor: i64,
) -> Log {
    let (log, _) = Log::open(Arc::clone(env), dir, config()).unwrap();
    log.found(group(segment_bytes)).unwrap();
    extend(&log, (count, common, lineage), floor);
    log
}

/// Appends as [`build_log`] does, through entry `count`.
pub(super) fn extend(log: &Log, (count, common, lineage): (i64, i64, u8), floor: i64) {
    for n in log.positions().last.next().sequence()..=count {
        let own = if n > common { lineage } else { 0 };
        let body = vec![own ^ n as u8; 150 + (n % 7) as usize * 30];
        let flags = if n % 3 == 1 { EntryFlags::COMMIT } else { EntryFlags::NONE };
        let term = Term::new(1 + u32::from(own));
        log.append(term, &[NewEntry::new(EntryKind(16), flags, &body)]).unwrap();
    }
    log.sync_now().unwrap();
    settle(log, floor);
}

/// Everything through `floor` will never be rolled back.
pub(super) fn settle(log: &Log, floor: i64) {
    log.control().update(|control| control.commit_floor = v(floor)).unwrap();
    log.seal_through(v(floor)).unwrap();
}

/// What a provider is told of its node.
#[derive(Default)]
pub(super) struct Told {
    pub(super) term: Mutex<Term>,
    pub(super) dtvlsn: AtomicI64,
    /// How often it was asked whether it is master.
    pub(super) asked: AtomicU64,
    /// Whether it is.
    pub(super) is_master: AtomicBool,
    pub(super) sources: Mutex<Vec<(Name, String)>>,
    /// What sessions failed for.
    pub(super) failures: Mutex<Vec<String>>,
}

struct ToldHost(Arc<Told>);

impl ProviderHost for ToldHost {
    fn serving(&self) -> Result<Serving> {
        let told = &self.0;
        told.asked.fetch_add(1, Ordering::Relaxed);
        if !told.is_master.load(Ordering::Acquire) {
            return Err(RepError::NotMaster { master: None });
        }
        Ok(Serving { term: *told.term.lock(), dtvlsn: v(told.dtvlsn.load(Ordering::Acquire)) })
    }

    fn sources(&self) -> Vec<(Name, String)> {
        self.0.sources.lock().clone()
    }

    fn handle_failed(&self, cause: &RepError) {
        self.0.failures.lock().push(cause.to_string());
    }
}

/// Installs what was committed.
pub(super) fn install(env: &Arc<dyn Env>, machine: &dyn StateMachine) -> Result<Restored> {
    install::install(env, dir(), &config(), &default_methods(), machine, true, &Clock::start())
}

/// What a node does when it starts.
pub(super) fn recover(env: &Arc<dyn Env>, machine: &Machine) -> Result<Recovered> {
    install::recover(env, dir(), &config(), &default_methods(), machine, &Clock::start())
}

/// What a node with this state machine gives it by.
pub(super) fn offers_of(
    env: &Arc<dyn Env>,
    machine: Arc<dyn StateMachine>,
    clock: Clock,
) -> Arc<StateOffers> {
    let node = SyncNode { env: Arc::clone(env), machine };
    Arc::new(StateOffers::new(clock, &default_methods(), &node))
}

/// A node that gives: a master with 200 entries in segments of 4 KiB, settled through 190.
pub(super) struct Master {
    pub(super) provider: Arc<RestoreProvider>,
    pub(super) log: Log,
    pub(super) machine: Arc<Machine>,
    pub(super) told: Arc<Told>,
}

pub(super) const CHECKPOINT_TEXT: &[u8] = &[b'c'; 5000];

impl Master {
    /// Drops its front through `dropped`.
    pub(super) fn new(dropped: i64) -> Self {
        Self::with(4096, 200, 190, dropped)
    }

    pub(super) fn with(segment_bytes: u32, count: i64, floor: i64, dropped: i64) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let log = build_log(&env, Path::new("/n1"), segment_bytes, (count, count, 0), floor);
        let master = Self::of("n1", &env, log);
        master.machine.set(v(floor), CHECKPOINT_TEXT).unwrap();
        master.drop_front(dropped);
        master
    }

    /// The node `node`, whose log this is; its state machine is empty.
    pub(super) fn of(node: &str, env: &Arc<dyn Env>, log: Log) -> Self {
        let machine = Machine::open(env, &format!("/{node}-state"));
        let told = Arc::new(Told {
            term: Mutex::new(log.control().ballot().term),
            dtvlsn: AtomicI64::new(log.control().state().commit_floor.sequence()),
            is_master: AtomicBool::new(true),
            ..Told::default()
        });
        let host = Box::new(ToldHost(Arc::clone(&told)));
        let offers = offers_of(env, Arc::<Machine>::clone(&machine), Clock::start());
        let provider = RestoreProvider::new(name(node), log.clone(), offers, host);
        Self { provider: Arc::new(provider), log, machine, told }
    }

    /// A log of segments of 4 KiB with its front, as [`build_log`] makes it; its state is the usual one.
    pub(super) fn built(node: &str, what: (i64, i64, u8), floor: i64) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let log = build_log(&env, Path::new("/log"), 4096, what, floor);
        let master = Self::of(node, &env, log);
        master.machine.set(v(floor), CHECKPOINT_TEXT).unwrap();
        master
    }

    /// A node that has the same as [`Master::new`] and is no master.
    pub(super) fn follower(node: &str) -> Self {
        let follower = Self::built(node, (200, 200, 0), 190);
        follower.told.is_master.store(false, Ordering::Release);
        follower
    }

    /// Names these as sources to who restores: each is reached at its name.
    pub(super) fn name_sources(&self, names: &[&str]) {
        let named = names.iter().map(|node| (name(node), (*node).to_owned()));
        *self.told.sources.lock() = named.collect();
    }

    pub(super) fn drop_front(&self, dropped: i64) {
        if dropped > 0 {
            let anchor = self.log.drop_front(v(dropped), |_| b"configuration".to_vec()).unwrap();
            assert!(anchor > NULL_VLSN && anchor <= v(dropped), "anchor {anchor}");
        }
    }

    /// Drops everything below what is settled from under whoever holds it.
    pub(super) fn run_out_of_budget(&self) {
        self.log.set_checkpoint(self.log.control().state().commit_floor);
        assert!(self.log.retain().unwrap() > NULL_VLSN);
    }

    /// What a provider of its own for this node would ask.
    pub(super) fn host(&self) -> Box<dyn ProviderHost> {
        Box::new(ToldHost(Arc::clone(&self.told)))
    }

    /// Waits until no node that restores from it is connected.
    pub(super) fn await_absence(&self) {
        let is_held = || self.log.retention().holders.iter().any(|holder| !holder.is_away);
        // The thread of each connection holds the provider.
        while is_held() || Arc::strong_count(&self.provider) > 1 {
            thread::yield_now();
        }
    }

    /// Drops everything through `vlsn` from under whoever holds it.
    pub(super) fn drop_below(&self, vlsn: i64) {
        self.log.set_checkpoint(v(vlsn));
        assert!(self.log.retain().unwrap() > NULL_VLSN);
    }

    /// A connection to it.
    pub(super) fn connect(&self) -> Arc<dyn Channel> {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let provider = Arc::clone(&self.provider);
        thread::spawn(move || {
            let _ = provider.run(&channel_b);
        });
        Arc::new(channel_a)
    }

    /// One session of a node with this master.
    pub(super) fn restore(&self, env: &Arc<dyn Env>, restoring: &Restoring) -> Result<Progress> {
        self.restore_watched(env, restoring, &Node::default())
    }

    pub(super) fn restore_watched(
        &self,
        env: &Arc<dyn Env>,
        restoring: &Restoring,
        node: &Node<'_>,
    ) -> Result<Progress> {
        let fetched = fetch(env, dir(), restoring, &self.connect(), node);
        fetched.map(|progress| progress.expect("permitted"))
    }
}

type Watch<'a> = Box<dyn Fn(&Progress) + Sync + 'a>;

/// How a peer is reached.
type Dial<'a> = Box<dyn Fn() -> Arc<dyn Channel> + Sync + 'a>;

/// The node that restores.
pub(super) struct Node<'a> {
    pub(super) watch: Watch<'a>,
    pub(super) permits: bool,
    /// Terms for which leave was asked.
    pub(super) asked: Mutex<Vec<Term>>,
    /// Who is reached at which address, and how.
    pub(super) peers: Vec<(&'static str, Dial<'a>)>,
    pub(super) clock: Clock,
    /// Prepares what comes, in a thread of its own.
    pub(super) machine: Option<Arc<dyn StateMachine>>,
    /// Whether there is a thread when one is wanted.
    pub(super) finds_threads: bool,
}

impl Default for Node<'_> {
    fn default() -> Self {
        let (asked, clock) = (Mutex::default(), Clock::start());
        let (peers, machine, finds_threads) = (Vec::new(), None, true);
        Self { watch: Box::new(|_| {}), permits: true, asked, peers, clock, machine, finds_threads }
    }
}

impl<'a> Node<'a> {
    pub(super) fn watching(watch: impl Fn(&Progress) + Sync + 'a) -> Self {
        Self { watch: Box::new(watch), ..Self::default() }
    }

    /// Reaches `peer` at `address`.
    pub(super) fn reaching(self, address: &'static str, peer: &'a Master) -> Self {
        self.dialling(address, || peer.connect())
    }

    pub(super) fn dialling(
        mut self,
        address: &'static str,
        dial: impl Fn() -> Arc<dyn Channel> + Sync + 'a,
    ) -> Self {
        self.peers.push((address, Box::new(dial)));
        self
    }
}

impl RestoreHost for Node<'_> {
    fn dial(&self, address: &str) -> Result<Arc<dyn Channel>> {
        match self.peers.iter().find(|(at, _)| *at == address) {
            Some((_, dial)) => Ok(dial()),
            None => Err(RepError::network(address, "connecting to", ErrorKind::NotFound.into())),
        }
    }

    fn note(&self, progress: &Progress) {
        (self.watch)(progress);
    }

    fn permit(&self, term: Term) -> bool {
        self.asked.lock().push(term);
        self.permits
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn machine(&self) -> Option<Arc<dyn StateMachine>> {
        self.machine.clone()
    }

    fn run_beside(&self, work: Work) -> Option<Work> {
        if !self.finds_threads {
            return Some(work);
        }
        thread::spawn(work);
        None
    }

    fn has_threads(&self) -> bool {
        true
    }
}

pub(super) fn restoring() -> Restoring {
    // A sync after every segment, so that there are many moments to crash at.
    let limits = RestoreLimits { sync_bytes: 1, window: 3, ..RestoreLimits::default() };
    let log = config();
    Restoring { log, limits, ..Restoring::new(name("n2"), None, Term::ZERO) }
}

pub(super) fn all_bytes(log: &Log) -> Vec<u8> {
    let mut at = log.positions().anchor.vlsn.next();
    let mut bytes = Vec::new();
    while let Some(run) = log.read(at, 1 << 20).unwrap() {
        at = run.last.next();
        bytes.extend(run.parts.concat());
    }
    bytes
}

/// The restored log is the master's, and streaming on finds its place by itself.
pub(super) fn check_restored(env: &Arc<dyn Env>, master: &Master, with_checkpoint: bool) {
    let (log, _) = Log::open(Arc::clone(env), dir(), config()).unwrap();
    assert_eq!(log.positions().last, master.log.positions().last);
    assert_eq!(log.positions().last_fingerprint, master.log.positions().last_fingerprint);
    assert_eq!(log.positions().anchor, master.log.positions().anchor);
    assert_eq!(all_bytes(&log), all_bytes(&master.log));
    assert_eq!(log.term_table(), master.log.term_table());
    let machine = Machine::open(env, "/n2-state");
    let (vlsn, text) = machine.state.lock().clone();
    let expected: &[u8] = if with_checkpoint { CHECKPOINT_TEXT } else { b"" };
    assert_eq!((vlsn, &text[..]), (if with_checkpoint { v(190) } else { NULL_VLSN }, expected));
    assert!(!is_pending(&**env, dir()).unwrap());

    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    thread::scope(|scope| {
        let feeder =
            scope.spawn(|| feeder_syncup_handshake(&channel_b, &LogView::new(&master.log)));
        let options = SyncupOptions::default();
        let (outcome, stats) = replica_syncup(&channel_a, &LogView::new(&log), &options).unwrap();
        let SyncupOutcome::Matchpoint { start_vlsn, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(start_vlsn, log.positions().last.next());
        assert_eq!(feeder.join().unwrap().unwrap(), Some(start_vlsn));
        assert!(stats.round_trips <= 2, "{stats:?}");
    });
    // And the log goes on, in the same segments as the master's.
    for log in [&log, &master.log] {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"next");
        log.append(Term::new(100), &[entry]).unwrap();
    }
    assert_eq!(log.positions().last_lsn, master.log.positions().last_lsn);
    log.close().unwrap();
}

pub(super) fn memory() -> Arc<dyn Env> {
    Arc::new(MemoryEnv::new())
}

/// A disk whose crashes can be seen, and the same for those who use it.
pub(super) fn fault_disk() -> (FaultEnv, Arc<dyn Env>) {
    let faulty = FaultEnv::new();
    (faulty.clone(), Arc::new(faulty))
}

/// Installs what was committed, and compares the restored log with the one of `master`.
pub(super) fn install_and_check(env: &Arc<dyn Env>, master: &Master, with_checkpoint: bool) {
    let machine = Machine::open(env, "/n2-state");
    install(env, &*machine).unwrap();
    check_restored(env, master, with_checkpoint);
}

/// The restored log holds what the log of `master` does, from where both do through the end of the
/// restored one, and no hole. Returns that end.
pub(super) fn check_same_entries(env: &Arc<dyn Env>, master: &Master) -> Vlsn {
    let (log, _) = Log::open(Arc::clone(env), dir(), config()).unwrap();
    let (ours, theirs) = (log.positions(), master.log.positions());
    let from = ours.anchor.vlsn.max(theirs.anchor.vlsn).next();
    assert!(
        ours.last <= theirs.last,
        "it ends with {}, its master with {}",
        ours.last,
        theirs.last
    );
    assert_eq!(log.retention().first, ours.anchor.vlsn.next());
    for n in from.sequence()..=ours.last.sequence() {
        let at = |log: &Log| log.header(v(n)).unwrap().map(|(header, _)| header.fingerprint);
        assert!(at(&log).is_some() && at(&log) == at(&master.log), "entry {n}");
    }
    log.close().unwrap();
    ours.last
}

/// How many blocks came in this session.
pub(super) fn blocks_fetched(progress: &Progress) -> u32 {
    progress.sources.iter().map(|source| source.blocks).sum()
}

/// What one source gave.
pub(super) fn given<'a>(progress: &'a Progress, node: &str) -> &'a SourceProgress {
    let found = progress.sources.iter().find(|source| source.name.as_str() == node);
    found.unwrap_or_else(|| panic!("no source {node}: {progress:?}"))
}

/// A message that tests keep for as long as they like.
pub(super) type Msg = RestoreMsg<'static>;

/// The message in `frame`, whose memory stays: it is little.
fn decode(frame: Vec<u8>) -> Msg {
    RestoreMsg::decode(frame.leak()).unwrap()
}

/// What becomes of one frame: the frames that take its place.
pub(super) type Change<'a> = Box<dyn Fn(Msg) -> Vec<Msg> + Send + Sync + 'a>;

/// A channel that changes what passes: between the node that restores, which has it, and a provider.
pub(super) struct Relay {
    inner: Arc<dyn Channel>,
    questions: Change<'static>,
    answers: Change<'static>,
    due: Mutex<VecDeque<Msg>>,
}

impl Relay {
    /// Changes answers.
    pub(super) fn of_answers(
        inner: Arc<dyn Channel>,
        answers: impl Fn(Msg) -> Vec<Msg> + Send + Sync + 'static,
    ) -> Arc<dyn Channel> {
        Self::of(inner, |question| vec![question], answers)
    }

    /// Changes questions.
    pub(super) fn of_questions(
        inner: Arc<dyn Channel>,
        questions: impl Fn(Msg) -> Vec<Msg> + Send + Sync + 'static,
    ) -> Arc<dyn Channel> {
        Self::of(inner, questions, |answer| vec![answer])
    }

    pub(super) fn of(
        inner: Arc<dyn Channel>,
        questions: impl Fn(Msg) -> Vec<Msg> + Send + Sync + 'static,
        answers: impl Fn(Msg) -> Vec<Msg> + Send + Sync + 'static,
    ) -> Arc<dyn Channel> {
        let (questions, answers) = (Box::new(questions), Box::new(answers));
        Arc::new(Self { inner, questions, answers, due: Mutex::default() })
    }
}

impl Channel for Relay {
    fn send(&self, frame: &[u8]) -> Result<()> {
        let changed = (self.questions)(decode(frame.to_vec()));
        changed.into_iter().try_for_each(|question| self.inner.send(&question.encode()))
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let mut due = self.due.lock();
        if due.is_empty()
            && let Some(frame) = self.inner.receive(timeout)?
        {
            due.extend((self.answers)(decode(frame)));
        }
        Ok(due.pop_front().map(|message| message.encode()))
    }

    fn close(&self) {
        self.inner.close();
    }
}
