//! Noxu's log, in the ways it can be appended to.

use std::sync::{Arc, Mutex};

use noxu_log::env::RealEnv;
use noxu_log::{
    DEFAULT_SEGMENT_BYTES, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry,
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
    Synced,
}

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
    inner: Arc<Mutex<TurnsOf>>,
}

#[derive(Default)]
struct TurnsOf {
    durable: Vec<Vlsn>,
    slices: Vec<Vec<u64>>,
}

impl Turns {
    fn note(&self, durable: Vlsn) {
        self.inner.lock().expect("no worker panics").durable.push(durable);
    }

    /// Ends a slice.
    fn cut(&self) {
        let mut inner = self.inner.lock().expect("no worker panics");
        let turns = std::mem::take(&mut inner.durable);
        let Some(last) = turns.last() else { return };
        inner.durable.push(*last);
        inner.slices.push(turns.windows(2).map(|pair| pair[1].since(pair[0])).collect());
    }

    /// Entries of each turn of the last slice.
    pub(crate) fn last_slice(&self) -> Vec<u64> {
        self.inner.lock().expect("no worker panics").slices.last().cloned().unwrap_or_default()
    }

    /// Mean entries of a turn, over all slices.
    pub(crate) fn mean(&self) -> f64 {
        let inner = self.inner.lock().expect("no worker panics");
        let turns: usize = inner.slices.iter().map(Vec::len).sum();
        let entries: u64 = inner.slices.iter().flatten().sum();
        entries as f64 / turns as f64
    }
}

impl Noxu {
    /// An empty log.
    pub(crate) fn new(how: How) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, _) =
            Log::open(Arc::new(RealEnv), dir.path(), LogConfig::default()).expect("the log opens");
        log.found(GroupIdentity {
            id: GroupId::random(),
            name: "peers".parse().expect("a name"),
            segment_bytes: DEFAULT_SEGMENT_BYTES,
        })
        .expect("founded");
        let turns = Turns::default();
        if how == How::Synced {
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
        let last = self.log.sync_now().expect("synced");
        self.turns.cut();
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
            How::Synced => log.wait_durable(appended.last).expect("durable"),
        }
        self.bodies.len()
    }
}
