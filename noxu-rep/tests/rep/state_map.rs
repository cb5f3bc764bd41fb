//! StateMap: the simplest state machine that shows what replication does: a map.
//!
//! An entry of kind [`PUT`] sets one key once its transaction's commit is applied; [`ABORT`]
//! forgets the transaction that is open.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::env::{Env, read_whole, write_whole};
use noxu_log::{EntryFlags, EntryKind, EntryRun, NewEntry};
use noxu_rep::{
    Checkpoint, LogReader, MemoryCheckpoint, NodeContext, RepError, Result, StateMachine,
};
use noxu_util::codec::{Put, Reader};
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::Mutex;

pub(crate) const PUT: EntryKind = EntryKind(16);
pub(crate) const ABORT: EntryKind = EntryKind(17);

/// Body of an entry that sets `key`.
pub(crate) fn put_body(key: &str, value: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(key.len() + value.len() + 2);
    body.put_text(key);
    body.put_bytes(value);
    body
}

/// The key and value in an entry's body.
pub(crate) fn parse_put(body: &[u8]) -> (String, Vec<u8>) {
    let mut r = Reader::new(body);
    let key = r.text("key", 1 << 16).expect("a test's own entry").to_owned();
    let value = r.bytes("value", r.remaining()).expect("the rest").to_vec();
    (key, value)
}

/// An entry that sets a key; the last of its transaction if `commit`.
pub(crate) fn put_entry(body: &[u8], commit: bool) -> NewEntry<'_> {
    NewEntry::new(PUT, if commit { EntryFlags::COMMIT } else { EntryFlags::NONE }, body)
}

pub(crate) type Content = BTreeMap<String, Vec<u8>>;

/// A map that follows a log.
pub(crate) struct StateMap {
    env: Arc<dyn Env>,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default, Clone)]
struct State {
    applied: Vlsn,
    content: Content,
    /// Puts of the transaction that is open.
    open: Vec<(String, Vec<u8>)>,
    rollbacks: Vec<Vlsn>,
}

impl StateMap {
    /// The map of a node, as its last checkpoint has it.
    pub(crate) fn open(context: &NodeContext) -> Self {
        let (env, dir) = (Arc::clone(context.env()), context.state_dir());
        let state = match read_whole(&*env, &dir.join("map")) {
            Ok(bytes) => decode(&bytes),
            Err(_) => State::default(), // never checkpointed
        };
        Self { env, dir, state: Mutex::new(state) }
    }

    pub(crate) fn content(&self) -> Content {
        self.state.lock().content.clone()
    }

    pub(crate) fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.state.lock().content.get(key).cloned()
    }

    /// The matchpoints it was rolled back to.
    pub(crate) fn rollbacks(&self) -> Vec<Vlsn> {
        self.state.lock().rollbacks.clone()
    }
}

impl State {
    fn apply(&mut self, run: &EntryRun, through: Vlsn) {
        for entry in run.entries().take_while(|entry| entry.header.vlsn <= through) {
            assert_eq!(entry.header.vlsn, self.applied.next(), "applied in order, each once");
            self.applied = entry.header.vlsn;
            match entry.header.kind {
                PUT => self.open.push(parse_put(entry.body)),
                // A new mastership ends what its predecessor left unfinished.
                ABORT | EntryKind::TERM => self.open.clear(),
                _ => {}
            }
            if entry.header.is_commit() {
                self.content.extend(self.open.drain(..));
            }
        }
    }
}

impl StateMachine for StateMap {
    fn applied(&self) -> Vlsn {
        self.state.lock().applied
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        self.state.lock().apply(run, through);
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, replay: &dyn LogReader) -> Result<()> {
        let mut state = self.state.lock();
        let mut fresh = State { rollbacks: state.rollbacks.clone(), ..State::default() };
        if let Ok(bytes) = read_whole(&*self.env, &self.dir.join("map")) {
            fresh = State { rollbacks: fresh.rollbacks, ..decode(&bytes) };
            assert!(fresh.applied <= matchpoint, "a checkpoint is never rolled back");
        }
        fresh.rollbacks.push(matchpoint);
        while fresh.applied < matchpoint {
            let Some(run) = replay.read(fresh.applied.next(), 1 << 20)? else { break };
            fresh.apply(&run, matchpoint);
        }
        *state = fresh;
        Ok(())
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        let state = self.state.lock();
        if !state.open.is_empty() {
            return Ok(NULL_VLSN);
        }
        let env = &self.env;
        env.create_dir_all(&self.dir).map_err(RepError::state_machine)?;
        write_whole(&**env, &self.dir.join("map"), &encode(&state))?;
        Ok(state.applied)
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let state = self.state.lock();
        Ok(Box::new(MemoryCheckpoint::new(state.applied, encode(&state))))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(RepError::state_machine)?;
        let mut state = self.state.lock();
        *state = State { rollbacks: state.rollbacks.clone(), ..decode(&bytes) };
        assert_eq!(state.applied, vlsn, "the checkpoint says what it holds");
        Ok(())
    }
}

fn encode(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_vlsn(state.applied);
    for map in
        [state.content.iter().collect::<Vec<_>>(), state.open.iter().map(|(k, v)| (k, v)).collect()]
    {
        out.put_u32(map.len() as u32);
        for (key, value) in map {
            out.put_text(key);
            out.put_u32(value.len() as u32);
            out.put_bytes(value);
        }
    }
    out
}

fn decode(bytes: &[u8]) -> State {
    let mut r = Reader::new(bytes);
    let applied = r.vlsn("applied").expect("a checkpoint");
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        for _ in 0..r.u32("count").expect("a checkpoint") {
            let key = r.text("key", 1 << 16).expect("a checkpoint").to_owned();
            let len = r.u32("length").expect("a checkpoint") as usize;
            list.push((key, r.bytes("value", len).expect("a checkpoint").to_vec()));
        }
    }
    let [content, open] = lists;
    State { applied, content: content.into_iter().collect(), open, rollbacks: Vec::new() }
}
