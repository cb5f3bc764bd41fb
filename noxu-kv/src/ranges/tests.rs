//! The store by the conformance kit, over both tables; and what only the store promises.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use noxu_log::env::{Env, MemoryEnv, read_whole, write_whole};
use noxu_log::{EntryFlags, EntryKind, Log, LogConfig, NewEntry};
use noxu_rep::StateMachine;
use noxu_rep::conformance::{self, LogEntry, Subject};
use noxu_rep::sync::method::StateSync;
use noxu_rep::sync::ranges::RangeSync;
use noxu_rep::sync::stream::StreamSync;
use noxu_util::{GroupId, Term};
use parking_lot::Mutex;

use super::*;
use crate::apply::Stability;
use crate::encode::{KIND_WRITES, encode};
use crate::error::Result;
use crate::table::lsm::LsmTable;
use crate::table::memory::{MemoryImage, MemoryTable};
use crate::value::table_key;

/// Everything through it is on a quorum.
#[derive(Default)]
struct ByHand(AtomicI64);

impl Stability for Arc<ByHand> {
    fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.0.load(Ordering::SeqCst))
    }

    fn raise_commit_floor(&self, _floor: Vlsn) -> Result<()> {
        Ok(())
    }

    fn note_checkpoint(&self, _vlsn: Vlsn) {}
}

fn machine(table: Box<dyn Table>) -> (Arc<Machine>, Arc<ByHand>) {
    let stability = Arc::new(ByHand(AtomicI64::new(i64::MAX)));
    (
        Arc::new(Machine::without_threads(table, Box::new(Arc::clone(&stability)), 16 << 10)),
        stability,
    )
}

fn contents(machine: &Machine) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let snapshot = machine.view().open_snapshot(None).unwrap();
    let range = snapshot.range::<&[u8]>(..).unwrap();
    range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
}

/// Stores whose tables do not lie in the simulated environment: a number there says which one it is.
struct Stores {
    method: Arc<dyn StateSync>,
    /// Tables on disk; else in memory.
    dir: Option<tempfile::TempDir>,
    images: Mutex<BTreeMap<u64, MemoryImage>>,
    next: AtomicU64,
}

impl Stores {
    fn new(method: Arc<dyn StateSync>, on_disk: bool) -> Self {
        let dir = on_disk.then(|| tempfile::tempdir().unwrap());
        Self { method, dir, images: Mutex::default(), next: AtomicU64::new(0) }
    }

    fn number(&self, env: &dyn Env, dir: &Path) -> noxu_rep::Result<u64> {
        let path = dir.join("number");
        let wrap = |e| noxu_log::LogError::io("open", dir, e);
        if env.exists(&path).map_err(wrap)? {
            let bytes = read_whole(env, &path)?;
            return Ok(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
        }
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        env.create_dir_all(dir).map_err(wrap)?;
        env.sync_dir(dir.parent().unwrap()).map_err(wrap)?;
        write_whole(env, &path, &number.to_le_bytes())?;
        Ok(number)
    }
}

fn write(key: &str, value: Option<String>) -> (Value, Option<Value>) {
    (table_key(key.as_bytes()), value.map(|value| Value::from(value.into_bytes())))
}

fn bodies(writes: &[(Value, Option<Value>)]) -> Vec<Vec<u8>> {
    encode(writes.iter().map(|(key, value)| (&**key, value.as_deref())), 1)
}

impl Subject for Stores {
    type Machine = Machine;

    fn open(&self, env: &Arc<dyn Env>, dir: &Path) -> noxu_rep::Result<Arc<Machine>> {
        let number = self.number(&**env, dir)?;
        let table: Box<dyn Table> = if let Some(dir) = &self.dir {
            let path: PathBuf = dir.path().join(number.to_string());
            Box::new(LsmTable::open(&path, 1 << 20).map_err(report)?)
        } else {
            let image = self.images.lock().entry(number).or_default().clone();
            Box::new(MemoryTable::open(image))
        };
        Ok(machine(table).0)
    }

    fn method(&self) -> Arc<dyn StateSync> {
        Arc::clone(&self.method)
    }

    fn transaction(&self, n: u64) -> Vec<LogEntry> {
        let key = |n: u64| format!("key{:05}", n * 7919 % 307);
        let value = |n: u64| Some(format!("{n:0100}"));
        let writes =
            [write(&key(n), value(n)), write(&key(n * 3), None), write(&key(n + 9), value(n))];
        let body = bodies(&writes).remove(0);
        vec![LogEntry { kind: EntryKind(KIND_WRITES), flags: EntryFlags::COMMIT, body }]
    }

    fn digest(&self, machine: &Machine) -> noxu_rep::Result<Vec<u8>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {:?}", machine.applied(), contents(machine)).as_bytes());
        Ok(hasher.finalize().as_bytes().to_vec())
    }
}

fn methods() -> [Arc<dyn StateSync>; 2] {
    [
        Arc::new(RangeSync { piece_bytes: 1500, sync_bytes: 4000, parts: 8 }),
        Arc::new(StreamSync::SNAPSHOT.with_tuning(1500, 4000)),
    ]
}

#[test]
fn the_store_conforms_with_its_table_in_memory() {
    for method in methods() {
        let report = conformance::run(&Stores::new(method, false));
        assert!(report.passed() && report.checks.len() > 10, "{report}");
    }
}

/// Without the crashes at every call to the disk, of which this table's own is none.
#[test]
fn the_store_conforms_with_its_table_on_disk() {
    for method in methods() {
        let stores = Stores::new(method, true);
        let report = conformance::run_some(&stores, |name| !name.starts_with("a crash"));
        assert!(report.passed() && report.checks.len() > 10, "{report}");
    }
}

/// A store with its log.
struct Node {
    log: Log,
    machine: Arc<Machine>,
    stability: Arc<ByHand>,
}

impl Node {
    fn new(table: Box<dyn Table>) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let config = LogConfig { prefill: false, ..LogConfig::default() };
        let (log, _) = Log::open(env, Path::new("/log"), config).unwrap();
        let id = GroupId::from_bytes(*b"group-of-sixteen");
        let name = "kv".parse().unwrap();
        log.found(noxu_log::GroupIdentity { id, name, segment_bytes: 1 << 20 }).unwrap();
        let (machine, stability) = machine(table);
        Self { log, machine, stability }
    }

    fn write(&self, writes: &[(Value, Option<Value>)]) {
        let bodies = bodies(writes);
        let entries: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(at, body)| {
                let is_last = at + 1 == bodies.len();
                let flags = if is_last { EntryFlags::COMMIT } else { EntryFlags::NONE };
                NewEntry::new(EntryKind(KIND_WRITES), flags, body)
            })
            .collect();
        self.log.append(Term::new(1), &entries).unwrap();
        self.log.sync_now().unwrap();
        apply_all(&self.machine, &self.log);
    }
}

fn apply_all(machine: &Machine, log: &Log) {
    let last = log.positions().last;
    let mut at = Machine::applied(machine);
    while at < last {
        let run = log.read(at.next(), 1 << 20).unwrap().unwrap();
        at = run.last;
        StateMachine::apply(machine, &run, last).unwrap();
    }
}

fn tables() -> Vec<(Box<dyn Table>, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let lsm = LsmTable::open(dir.path(), 1 << 20).unwrap();
    vec![(Box::new(MemoryTable::open(MemoryImage::default())), None), (Box::new(lsm), Some(dir))]
}

fn everything(machine: &Machine) -> (BTreeMap<Vec<u8>, Vec<u8>>, Moment) {
    let mut pairs = BTreeMap::new();
    let all = Asked { from: &[], below: None };
    let moment = machine
        .read(&all, &mut |key, value| {
            pairs.insert(key[1..].to_vec(), value.to_vec());
            true
        })
        .unwrap();
    (pairs, moment)
}

/// What may yet be rolled back is not given, and what is given is of one moment.
#[test]
fn what_is_given_is_of_one_moment_and_never_rolled_back() {
    for (table, _dir) in tables() {
        let node = Node::new(table);
        let mut states = BTreeMap::from([(Vlsn::default(), BTreeMap::new())]);
        for n in 0..200_u64 {
            let (key, other) = (format!("k{}", n * 13 % 31), format!("k{}", n * 7 % 31));
            node.write(&[write(&key, Some(format!("{n}"))), write(&other, None)]);
            states.insert(node.log.positions().last, contents(&node.machine));
            let durable = node.log.positions().last.sequence() - (n % 9) as i64;
            node.stability.0.store(durable, Ordering::SeqCst);
            if n % 3 == 0 {
                node.machine.freshen().unwrap();
            }
            node.machine.upkeep();
            let (pairs, moment) = everything(&node.machine);
            assert!(moment.vlsn.sequence() <= durable, "{} is given of {durable}", moment.vlsn);
            assert_eq!(pairs, states[&moment.vlsn], "at {}", moment.vlsn);
        }
        assert!(everything(&node.machine).1.vlsn > Vlsn::new(150));
    }
}

/// Pairs from memory, and an error in the place of the one of this number.
struct Listed(std::vec::IntoIter<(Vec<u8>, Vec<u8>)>, Option<usize>);

impl Pairs for Listed {
    fn next(&mut self) -> noxu_rep::Result<Option<(Vec<u8>, Vec<u8>)>> {
        match &mut self.1 {
            Some(0) => return Err(noxu_rep::RepError::state_machine("it broke")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self.0.next())
    }
}

/// The redo reaches the disk with the copy: nobody who opens the store sees the one without the other.
#[test]
fn a_replacement_is_seen_and_durable_whole_or_not_at_all() {
    let giver = Node::new(Box::new(MemoryTable::open(MemoryImage::default())));
    let fill = |value: &str| {
        let keys = (0..300).map(|n| write(&format!("k{n:04}"), Some(value.repeat(4000))));
        giver.write(&keys.collect::<Vec<_>>());
    };
    fill("a");
    giver.machine.freshen().unwrap();
    let (old, after) = everything(&giver.machine);
    fill("b");
    giver.write(&[write("k0007", None), write("new", Some("1".to_owned()))]);
    giver.machine.freshen().unwrap();
    let (new, through) = everything(&giver.machine);
    // A copy of both moments.
    let mixed: Vec<_> = old
        .iter()
        .filter(|(key, _)| key[..] < b"k0150"[..])
        .chain(new.iter().filter(|(key, _)| key[..] >= b"k0150"[..]))
        .map(|(key, value)| (table_key(key).to_vec(), value.clone()))
        .collect();
    for (table, dir) in tables() {
        let node = Node::new(table);
        node.write(&[write("own", Some("state".to_owned()))]);
        let before = contents(&node.machine);
        let redo = |through| Redo::new(after.clone(), through, &giver.log);
        let mut broken = Listed(mixed.clone().into_iter(), Some(200));
        let failed = RangedState::replace(&*node.machine, &mut broken, &redo(through.vlsn));
        assert!(failed.unwrap_err().to_string().contains("it broke"));
        assert_eq!(contents(&node.machine), before);
        // In the middle of a transaction, and behind the end of the log.
        for wrong in [after.vlsn.next(), giver.log.positions().last.next()] {
            let mut copy = Listed(mixed.clone().into_iter(), None);
            assert!(
                RangedState::replace(&*node.machine, &mut copy, &redo(wrong)).is_err(),
                "{wrong}"
            );
            assert_eq!(contents(&node.machine), before);
        }
        let mut copy = Listed(mixed.clone().into_iter(), None);
        RangedState::replace(&*node.machine, &mut copy, &redo(through.vlsn)).unwrap();
        assert_eq!(contents(&node.machine), new);
        assert_eq!(node.machine.view().floor(), through.vlsn, "nothing is read before it");
        assert_eq!(node.machine.checkpointed(), through.vlsn);
        drop(node);
        if let Some(dir) = dir {
            let table = LsmTable::open(dir.path(), 1 << 20).unwrap();
            assert_eq!(table.flushed(), Mark::decode(&through.token).unwrap());
            assert_eq!(contents(&machine(Box::new(table)).0), new);
        }
    }
}
