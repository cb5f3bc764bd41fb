//! Kv: the key-value store of the repository in these worlds: transactions that read and write, over
//! tables in memory.
//!
//! # Rules
//! - I10: a transaction reads its snapshot, and nothing that it read or wrote was changed between its
//!   snapshot and its commit.
//! - I9: every node ends with what the committed transactions have written, and nothing else.
//!
//! # Not here: whether commits are there, and in which order (oracle.rs).

use std::collections::BTreeMap;
use std::sync::Arc;

use noxu_kv::{Engine, EngineConfig, KvError, MemoryImage, Stability, Work};
use noxu_rep::{Admission, NodeContext, StateMachine, Submitted};
use noxu_util::Vlsn;
use xxhash_rust::xxh3::Xxh3;

use crate::clock::WALL_START_MS;
use crate::dice::{Draw, Rng};
use crate::embed::{Embedded, Ending};
use crate::invariants::Violation;
use crate::oracle::{Transaction, TxnId};
use crate::plan::Plan;

/// The store of noxu-kv.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kv;

/// A key and its value; `None` for none.
pub type Item = (Vec<u8>, Option<Vec<u8>>);

/// What a transaction read and wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accesses {
    /// VLSN of its snapshot.
    pub snapshot: Vlsn,
    /// What it read there.
    pub reads: Vec<Item>,
    /// What it wrote.
    pub writes: Vec<Item>,
}

/// A transaction that is open.
pub struct Draft {
    work: Work,
    accesses: Accesses,
}

/// Size at which the state's memtable is flushed.
const MEMTABLE_BYTES: u64 = 64 << 10;

impl Embedded for Kv {
    type Image = MemoryImage;
    type Engine = Engine;
    type Draft = Draft;
    type Record = Accesses;

    fn open(&self, image: &MemoryImage, context: &NodeContext) -> noxu_rep::Result<Engine> {
        let config = EngineConfig { memtable_bytes: MEMTABLE_BYTES, ..EngineConfig::default() };
        let stability = Box::new(NodeStability(context.clone()));
        Ok(Engine::open(image.clone(), stability, config))
    }

    fn machine(&self, engine: &Engine) -> Arc<dyn StateMachine> {
        engine.machine()
    }

    fn keep_house(&self, engine: &Engine) {
        engine.upkeep();
    }

    fn begin(
        &self,
        engine: &Engine,
        id: TxnId,
        rng: &mut Rng,
        plan: &Plan,
    ) -> Result<Draft, &'static str> {
        let mut work = engine.begin().map_err(|_| "client: cannot begin")?;
        let accesses = fill(&mut work, id, rng, plan).map_err(|_| "client: cannot read")?;
        Ok(Draft { work, accesses })
    }

    fn commit(
        &self,
        engine: &Engine,
        draft: Draft,
        admission: Admission,
    ) -> Result<(Submitted, Accesses), &'static str> {
        let Draft { work, accesses } = draft;
        let bodies = work.encode(WALL_START_MS);
        let prepared = match engine.prepare(&work, admission.term(), admission.term_entry()) {
            Ok(prepared) => prepared,
            Err(KvError::Conflict { .. }) => return Err("client: conflict"),
            Err(_) => return Err("client: refused"),
        };
        let submitted = admission.write(&bodies.entries()).map_err(|_| "client: not written")?;
        prepared.committed(submitted.vlsn());
        Ok((submitted, accesses))
    }

    fn digest(&self, engine: &Engine) -> Option<u64> {
        let mut hasher = Xxh3::new();
        for (key, value) in content(engine)? {
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(&key);
            hasher.update(&(value.len() as u64).to_le_bytes());
            hasher.update(&value);
        }
        Some(hasher.digest())
    }

    fn judge(&self, ending: &Ending<'_, Self>) -> Result<(), Violation> {
        let model = replay(&ending.committed)?;
        for (host, engine) in &ending.nodes {
            let state = content(engine)
                .ok_or_else(|| Violation::new("I14", format!("{host} cannot be read")))?;
            if state != model {
                let differs = model.iter().find(|(key, value)| state.get(*key) != Some(value));
                let found = match differs {
                    Some((key, _)) => format!("differs at {:?}", String::from_utf8_lossy(key)),
                    None => "holds more than was committed".to_owned(),
                };
                return Err(Violation::new("I9", format!("the state of {host} {found}")));
            }
        }
        Ok(())
    }
}

/// What the engine asks of the node.
struct NodeStability(NodeContext);

impl Stability for NodeStability {
    fn dtvlsn(&self) -> Vlsn {
        self.0.dtvlsn()
    }

    fn raise_commit_floor(&self, floor: Vlsn) -> Result<(), KvError> {
        Ok(self.0.raise_commit_floor(floor)?)
    }

    fn note_checkpoint(&self, vlsn: Vlsn) {
        self.0.note_checkpoint(vlsn);
    }
}

/// Has a transaction read and write what is drawn.
fn fill(work: &mut Work, id: TxnId, rng: &mut Rng, plan: &Plan) -> Result<Accesses, KvError> {
    let mut reads = Vec::new();
    let mut writes: Vec<Item> = Vec::new();
    let key = |rng: &mut Rng| format!("k{}", rng.u64(..plan.keys)).into_bytes();
    for _ in 0..rng.usize(..4) {
        let key = key(rng);
        let value = work.get(&key)?.map(|value| value.to_vec());
        reads.push((key, value));
    }
    for number in 0..rng.spread(1, plan.writes as u64) {
        let key = key(rng);
        if writes.iter().any(|(written, _)| *written == key) {
            continue;
        }
        if rng.hit(0.1) {
            work.delete(&key)?;
            writes.push((key, None));
            continue;
        }
        let len = rng.spread(1, plan.value_bytes as u64) as usize;
        let mut value = format!("{}.{number} ", id.0).into_bytes();
        value.resize(value.len().max(len), b'.');
        work.put(&key, &value)?;
        writes.push((key, Some(value)));
    }
    Ok(Accesses { snapshot: work.snapshot_vlsn(), reads, writes })
}

/// All keys and their values.
type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a node holds; `None` if it cannot be read.
fn content(engine: &Engine) -> Option<Content> {
    let snapshot = engine.snapshot().ok()?;
    let mut content = Content::new();
    for item in snapshot.range::<&[u8]>(..).ok()? {
        let (key, value) = item.ok()?;
        content.insert(key.to_vec(), value.to_vec());
    }
    Some(content)
}

/// Every version of every key: when it was written, and what.
#[derive(Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
}

/// When a key was written, and what.
type Version = (Vlsn, Option<Vec<u8>>);

impl Model {
    fn at(&self, key: &[u8], snapshot: Vlsn) -> Option<&Vec<u8>> {
        let versions = self.keys.get(key)?;
        let after = versions.partition_point(|(vlsn, _)| *vlsn <= snapshot);
        versions.get(after.checked_sub(1)?)?.1.as_ref()
    }

    fn newest(&self, key: &[u8]) -> Vlsn {
        self.keys.get(key).and_then(|versions| versions.last()).map_or(Vlsn::default(), |v| v.0)
    }

    fn write(&mut self, vlsn: Vlsn, writes: &[Item]) {
        for (key, value) in writes {
            self.keys.entry(key.clone()).or_default().push((vlsn, value.clone()));
        }
    }
}

/// Does again what was committed; returns what is there afterwards.
fn replay(committed: &[(Vlsn, &Transaction<Accesses>)]) -> Result<Content, Violation> {
    let mut model = Model::default();
    for (vlsn, transaction) in committed {
        check_reads(&model, &transaction.record, *vlsn)?;
        model.write(*vlsn, &transaction.record.writes);
    }
    let last = committed.last().map_or(Vlsn::default(), |(vlsn, _)| *vlsn);
    let keys =
        model.keys.keys().filter_map(|key| Some((key.clone(), model.at(key, last)?.clone())));
    Ok(keys.collect())
}

fn check_reads(model: &Model, accesses: &Accesses, vlsn: Vlsn) -> Result<(), Violation> {
    let wrong = |found: String| Err(Violation::new("I10", found));
    let snapshot = accesses.snapshot;
    for (key, value) in &accesses.reads {
        if model.at(key, snapshot) != value.as_ref() {
            let found = model.at(key, snapshot).map(Vec::len);
            return wrong(format!(
                "{vlsn} read {:?} at {snapshot}: {:?} bytes, and {found:?} were there",
                String::from_utf8_lossy(key),
                value.as_ref().map(Vec::len),
            ));
        }
    }
    for (key, _) in accesses.reads.iter().chain(&accesses.writes) {
        let changed = model.newest(key);
        if changed > snapshot {
            return wrong(format!(
                "{vlsn} saw {:?} as of {snapshot}, and it was changed at {changed}",
                String::from_utf8_lossy(key),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Nanos;
    use crate::oracle::Told;

    fn item(key: &str, value: &str) -> Item {
        let value = (!value.is_empty()).then(|| value.as_bytes().to_vec());
        (key.as_bytes().to_vec(), value)
    }

    /// Commits at 2, 4 and 6 that follow each other.
    fn history() -> Vec<Accesses> {
        let accesses =
            |snapshot, reads, writes| Accesses { snapshot: Vlsn::new(snapshot), reads, writes };
        vec![
            accesses(0, vec![item("a", "")], vec![item("a", "1")]),
            accesses(2, vec![item("a", "1")], vec![item("a", "2"), item("b", "1")]),
            accesses(4, vec![item("b", "1")], vec![item("b", "")]),
        ]
    }

    fn judge(history: Vec<Accesses>) -> Result<Content, &'static str> {
        let transaction =
            |record| Transaction { began: Nanos(0), ended: None, told: Told::Nothing, record };
        let transactions: Vec<_> = history.into_iter().map(transaction).collect();
        let at = |number: usize| Vlsn::new(2 * (number as i64 + 1));
        let committed: Vec<_> =
            transactions.iter().enumerate().map(|(number, t)| (at(number), t)).collect();
        replay(&committed).map_err(|violation| violation.invariant)
    }

    /// The judgement on the history with one of its transactions changed.
    fn changed(which: usize, change: impl FnOnce(&mut Accesses)) -> Result<Content, &'static str> {
        let mut history = history();
        change(&mut history[which]);
        judge(history)
    }

    #[test]
    fn a_serial_history_is_accepted_and_gives_the_state() {
        assert_eq!(judge(history()), Ok(BTreeMap::from([(b"a".to_vec(), b"2".to_vec())])));
    }

    #[test]
    fn a_wrong_read_and_a_stale_snapshot_are_named() {
        assert_eq!(changed(1, |t| t.reads = vec![item("a", "")]), Err("I10"));
        assert_eq!(changed(2, |t| t.reads = vec![item("b", "phantom")]), Err("I10"));
        assert_eq!(
            changed(2, |t| {
                t.snapshot = Vlsn::new(2);
                t.reads = vec![item("a", "1")];
            }),
            Err("I10")
        );
        assert_eq!(
            changed(2, |t| {
                t.snapshot = Vlsn::new(3);
                t.reads = Vec::new();
                t.writes = vec![item("a", "blind")];
            }),
            Err("I10"),
            "a blind write conflicts as well"
        );
    }
}
