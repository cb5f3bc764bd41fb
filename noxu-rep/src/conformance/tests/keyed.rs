//! Keyed: a state machine for tests: keys and values in memory, and in one file of its environment since its
//! last checkpoint.
//!
//! An entry is a list of writes; a transaction ends with the entry that has the commit's flag, and none of it
//! is seen before.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, read_whole, write_whole};
use noxu_log::{EntryFlags, EntryKind, EntryRun, LogError};
use noxu_util::codec::{Put, Reader};
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::Mutex;

use super::super::{LogEntry, Subject};
use crate::error::{RepError, Result};
use crate::sync::method::StateSync;
use crate::sync::ranges::{KeyRange, Moment, Pairs, RangedState, Redo};
use crate::sync::{Checkpoint, LogReader, MemoryCheckpoint, StateMachine};

/// The kind of the entries.
pub(crate) const WRITES: EntryKind = EntryKind(16);

pub(crate) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A write: `None` deletes.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) applied: Vlsn,
    pub(crate) map: Map,
    /// Writes of the transaction that is open, and the last entry given.
    open: Vec<Write>,
    given: Vlsn,
}

pub(crate) struct KeyedMachine {
    env: Arc<dyn Env>,
    path: PathBuf,
    state: Mutex<State>,
    durable: Mutex<Vlsn>,
}

impl KeyedMachine {
    pub(crate) fn open(env: &Arc<dyn Env>, dir: &Path) -> Result<Arc<Self>> {
        let path = dir.join("pairs");
        let wrap = |e| LogError::io("open", dir, e);
        let there = env.exists(&path).map_err(wrap)?;
        let state = if there { decode(&read_whole(&**env, &path)?)? } else { State::default() };
        let durable = Mutex::new(state.applied);
        Ok(Arc::new(Self { env: Arc::clone(env), path, state: Mutex::new(state), durable }))
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    fn save(&self, state: &State) -> Result<()> {
        let dir = self.path.parent().expect("it is in a directory");
        self.env.create_dir_all(dir).map_err(|e| LogError::io("create", dir, e))?;
        if let Some(above) = dir.parent() {
            self.env.sync_dir(above).map_err(|e| LogError::io("sync", above, e))?;
        }
        write_whole(&*self.env, &self.path, &encode(state))?;
        *self.durable.lock() = state.applied;
        Ok(())
    }

    fn put(&self, state: State) -> Result<()> {
        self.save(&state)?;
        *self.state.lock() = state;
        Ok(())
    }
}

impl State {
    fn apply(&mut self, run: &EntryRun, through: Vlsn) {
        for entry in run.entries() {
            let vlsn = entry.header.vlsn;
            if vlsn <= self.given.max(self.applied) || vlsn > through {
                continue;
            }
            self.given = vlsn;
            if entry.header.kind == WRITES {
                self.open.extend(decode_writes(entry.body));
            }
            if !entry.header.is_commit() && !self.open.is_empty() {
                continue;
            }
            for (key, value) in self.open.drain(..) {
                match value {
                    Some(value) => self.map.insert(key, value),
                    None => self.map.remove(&key),
                };
            }
            self.applied = vlsn;
        }
    }
}

pub(crate) fn encode_writes(writes: &[Write]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in writes {
        out.put_short_bytes(key);
        out.put_bool(value.is_some());
        out.put_u32(value.as_ref().map_or(0, Vec::len) as u32);
        out.put_bytes(value.as_deref().unwrap_or_default());
    }
    out
}

fn decode_writes(bytes: &[u8]) -> Vec<Write> {
    let (mut r, mut writes) = (Reader::new(bytes), Vec::new());
    while r.remaining() > 0 {
        let key = r.short_bytes("key", usize::MAX).unwrap().to_vec();
        let is_put = r.bool("put").unwrap();
        let len = r.u32("value").unwrap() as usize;
        let value = r.bytes("value", len).unwrap().to_vec();
        writes.push((key, is_put.then_some(value)));
    }
    writes
}

fn encode(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_vlsn(state.applied);
    let pairs: Vec<_> = state.map.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    out.put_bytes(&encode_writes(&pairs));
    out
}

fn decode(bytes: &[u8]) -> Result<State> {
    let mut r = Reader::new(bytes);
    let applied = r.vlsn("applied")?;
    let pairs = decode_writes(r.bytes("pairs", r.remaining())?);
    let map = pairs.into_iter().map(|(k, v)| (k, v.unwrap())).collect();
    Ok(State { applied, map, open: Vec::new(), given: applied })
}

impl StateMachine for KeyedMachine {
    fn applied(&self) -> Vlsn {
        self.state.lock().applied
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        self.state.lock().apply(run, through);
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, _replay: &dyn LogReader) -> Result<()> {
        assert_eq!(matchpoint, NULL_VLSN, "nobody rolls back in these tests");
        self.put(State::default())
    }

    fn checkpointed(&self) -> Vlsn {
        *self.durable.lock()
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        let state = self.state();
        self.save(&state)?;
        Ok(state.applied)
    }

    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let state = self.state();
        Ok(Box::new(MemoryCheckpoint::new(state.applied, encode(&state))))
    }

    fn install_checkpoint(&self, vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(RepError::state_machine)?;
        let state = decode(&bytes)?;
        assert_eq!(state.applied, vlsn);
        self.put(state)
    }

    fn ranges(&self) -> Option<&dyn RangedState> {
        Some(self)
    }
}

impl RangedState for KeyedMachine {
    fn freshen(&self) -> Result<Vlsn> {
        Ok(self.applied())
    }

    fn first_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.state.lock().map.range(from.to_vec()..).next().map(|(key, _)| key.clone()))
    }

    fn last_key(&self, below: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
        let state = self.state.lock();
        let last = match below {
            Some(below) => state.map.range(..below.to_vec()).next_back(),
            None => state.map.last_key_value(),
        };
        Ok(last.map(|(key, _)| key.clone()))
    }

    fn read(
        &self,
        range: &KeyRange<'_>,
        sink: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<Moment> {
        let state = self.state.lock();
        for (key, value) in state.map.range(range.from.to_vec()..) {
            if range.below.is_some_and(|below| &key[..] >= below) || !sink(key, value) {
                break;
            }
        }
        Ok(Moment { vlsn: state.applied, token: Vec::new() })
    }

    fn replace(&self, copy: &mut dyn Pairs, redo: &Redo<'_>) -> Result<()> {
        let after = redo.after.vlsn;
        let mut state = State { applied: after, given: after, ..State::default() };
        let mut last: Option<Vec<u8>> = None;
        while let Some((key, value)) = copy.next()? {
            assert!(last.as_ref().is_none_or(|last| *last < key), "keys come in order");
            last = Some(key.clone());
            state.map.insert(key, value);
        }
        redo.each(|run| {
            state.apply(run, redo.through);
            Ok(())
        })?;
        self.put(state)
    }
}

/// Keys and values, by any method.
pub(crate) struct Keyed {
    pub(crate) method: Arc<dyn StateSync>,
}

impl Subject for Keyed {
    type Machine = KeyedMachine;

    fn open(&self, env: &Arc<dyn Env>, dir: &Path) -> Result<Arc<KeyedMachine>> {
        KeyedMachine::open(env, dir)
    }

    fn method(&self) -> Arc<dyn StateSync> {
        Arc::clone(&self.method)
    }

    /// Of two entries; keys come again, and go.
    fn transaction(&self, n: u64) -> Vec<LogEntry> {
        let key = |n: u64| format!("key{:05}", n * 7919 % 307).into_bytes();
        let value = |n: u64| vec![(n % 251) as u8; 100 + (n % 13) as usize * 10];
        let first = encode_writes(&[(key(n), Some(value(n))), (key(n + 5), Some(value(n)))]);
        let second = encode_writes(&[(key(n * 3), None), (key(n + 9), Some(value(n)))]);
        let entry = |flags, body| LogEntry { kind: WRITES, flags, body };
        vec![entry(EntryFlags::NONE, first), entry(EntryFlags::COMMIT, second)]
    }

    fn digest(&self, machine: &KeyedMachine) -> Result<Vec<u8>> {
        let state = machine.state();
        let mut bytes = encode(&state);
        bytes.put_bytes(&encode_writes(&state.open));
        Ok(blake3::hash(&bytes).as_bytes().to_vec())
    }
}
