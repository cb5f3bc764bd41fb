//! Noxu's log, in the ways it can be appended to.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use noxu_log::env::RealEnv;
use noxu_log::{
    DEFAULT_SEGMENT_BYTES, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, MarkPolicy,
    NewEntry,
};
use noxu_util::{GroupId, Term, Vlsn};
use tempfile::TempDir;

use crate::contender::{Contender, Worker, bodies};

const PUT: EntryKind = EntryKind(16);
const TERM: Term = Term::new(1);

/// What an append waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Nothing: the flusher writes in the background.
    IntoTheTail,
    /// A write of its own.
    WritePerBatch,
    /// The sync of it.
    Synced(MarkPolicy),
    /// The sync of the [`IN_FLIGHT`]th entry before it.
    Handles(MarkPolicy),
}

impl How {
    fn tail_mark(self) -> MarkPolicy {
        match self {
            Self::Synced(policy) | Self::Handles(policy) => policy,
            Self::IntoTheTail | Self::WritePerBatch => MarkPolicy::default(),
        }
    }
}

/// Entries that one thread has on their way, where it does not wait for each.
pub(crate) const IN_FLIGHT: u64 = 1024;

/// A log in a directory of its own.
pub(crate) struct Noxu {
    log: Log,
    how: How,
    pub(crate) turns: Turns,
    _dir: TempDir,
}

/// How far each of the flusher's turns brought `durable`.
#[derive(Clone, Default)]
pub(crate) struct Turns {
    inner: Arc<(Mutex<TurnsOf>, Condvar)>,
}

#[derive(Default)]
struct TurnsOf {
    durable: Vec<Vlsn>,
    slices: Vec<Vec<u64>>,
}

impl Turns {
    fn note(&self, durable: Vlsn) {
        self.lock().durable.push(durable);
        self.inner.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, TurnsOf> {
        self.inner.0.lock().expect("no worker panics")
    }

    /// Waits until at most `most` entries through `last` are not durable.
    fn wait_within(&self, last: Vlsn, most: u64) {
        let far = |turns: &mut TurnsOf| {
            let durable = turns.durable.last().copied().unwrap_or(Vlsn::new(0));
            last.since(durable) >= most
        };
        drop(self.inner.1.wait_while(self.lock(), far).expect("no worker panics"));
    }

    /// Ends a slice.
    fn cut(&self) {
        let mut inner = self.lock();
        let turns = std::mem::take(&mut inner.durable);
        let Some(last) = turns.last() else { return };
        inner.durable.push(*last);
        inner.slices.push(turns.windows(2).map(|pair| pair[1].since(pair[0])).collect());
    }

    /// Entries of each turn of the last slice.
    pub(crate) fn last_slice(&self) -> Vec<u64> {
        self.lock().slices.last().cloned().unwrap_or_default()
    }

    /// Mean entries of a turn, over all slices.
    pub(crate) fn mean(&self) -> f64 {
        let inner = self.lock();
        let turns: usize = inner.slices.iter().map(Vec::len).sum();
        let entries: u64 = inner.slices.iter().flatten().sum();
        entries as f64 / turns as f64
    }
}

impl Noxu {
    /// An empty log.
    pub(crate) fn new(how: How) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = LogConfig { tail_mark: how.tail_mark(), ..LogConfig::default() };
        let (log, _) = Log::open(Arc::new(RealEnv), dir.path(), config).expect("the log opens");
        log.found(GroupIdentity {
            id: GroupId::random(),
            name: "peers".parse().expect("a name"),
            segment_bytes: DEFAULT_SEGMENT_BYTES,
        })
        .expect("founded");
        log.fill_ahead().expect("filled");
        let turns = Turns::default();
        if !matches!(how, How::IntoTheTail | How::WritePerBatch) {
            let noted = turns.clone();
            log.on_durable(move |durable| noted.note(durable));
        }
        Self { log, how, turns, _dir: dir }
    }
}

impl Contender for Noxu {
    fn worker(&self, _thread: usize, batch: usize) -> Box<dyn Worker + '_> {
        Box::new(Appender { noxu: self, bodies: bodies(batch) })
    }

    fn settle(&self) {
        if matches!(self.how, How::Synced(_) | How::Handles(_)) {
            // A slice of synced entries is short. The file goes on, filled as it is.
            self.log.sync_now().expect("synced");
            self.turns.cut();
            return;
        }
        let last = self.log.sync_now().expect("synced");
        self.log.seal_through(last).expect("sealed");
        self.log.drop_front(last, |_| Vec::new()).expect("dropped");
    }
}

struct Appender<'n> {
    noxu: &'n Noxu,
    bodies: Vec<Vec<u8>>,
}

impl Worker for Appender<'_> {
    fn append(&mut self) -> usize {
        let entry = |body| NewEntry::new(PUT, EntryFlags::COMMIT, body);
        let log = &self.noxu.log;
        let appended = match &self.bodies[..] {
            [body] => log.append(TERM, &[entry(body)]),
            bodies => log.append(TERM, &bodies.iter().map(|b| entry(b)).collect::<Vec<_>>()),
        };
        let appended = appended.expect("appended");
        match self.noxu.how {
            How::IntoTheTail => {}
            How::WritePerBatch => log.write_now().expect("written"),
            How::Synced(_) => log.wait_durable(appended.last).expect("durable"),
            How::Handles(_) => {
                log.request_sync();
                self.noxu.turns.wait_within(appended.last, IN_FLIGHT);
            }
        }
        self.bodies.len()
    }
}
