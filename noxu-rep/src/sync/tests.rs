//! Rows M: what is copied while entries are written, question by question, by each method that ships; and
//! what a session goes on with.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, MemoryEnv, Survivors};
use noxu_log::{EntryFlags, Log, LogConfig, NewEntry};
use noxu_util::{Name, Term};

use super::method::*;
use super::ranges::RangeSync;
use super::stream::StreamSync;
use super::*;
use crate::conformance::tests::keyed::{KeyedMachine, WRITES, Write, encode_writes};
use crate::error::RepError;

/// A node that gives.
struct Giver {
    log: Log,
    machine: Arc<KeyedMachine>,
    provider: Box<dyn SyncProvider>,
    node: Name,
}

fn put(key: &str, value: &str) -> Write {
    (key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()))
}

fn delete(key: &str) -> Write {
    (key.as_bytes().to_vec(), None)
}

impl Giver {
    fn new(node: &str, method: &dyn StateSync) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        let log_config = LogConfig { prefill: false, ..LogConfig::default() };
        let (log, _) = Log::open(Arc::clone(&env), Path::new("/log"), log_config).unwrap();
        let id = noxu_util::GroupId::from_bytes(*b"group-of-sixteen");
        let name = "orders".parse().unwrap();
        log.found(noxu_log::GroupIdentity { id, name, segment_bytes: 1 << 20 }).unwrap();
        let machine = KeyedMachine::open(&env, Path::new("/state")).unwrap();
        let giving: Arc<dyn StateMachine> = Arc::<KeyedMachine>::clone(&machine);
        let provider = method.provider(&SyncNode { env, machine: giving });
        Self { log, machine, provider, node: node.parse().unwrap() }
    }

    /// One transaction, of an entry for each list of writes.
    fn write(&self, entries: &[&[Write]]) {
        let bodies: Vec<_> = entries.iter().map(|writes| encode_writes(writes)).collect();
        let new: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(at, body)| {
                let is_last = at + 1 == bodies.len();
                let flags = if is_last { EntryFlags::COMMIT } else { EntryFlags::NONE };
                NewEntry::new(WRITES, flags, body)
            })
            .collect();
        self.log.append(Term::new(1), &new).unwrap();
        self.log.sync_now().unwrap();
        apply_all(&*self.machine, &self.log);
    }

    /// Keys `a0`, `a1`, .. to `z9` of this value.
    fn fill(&self, value: &str) {
        let keys = ('a'..='z').flat_map(|letter| (0..10).map(move |n| format!("{letter}{n}")));
        let writes: Vec<_> = keys.map(|key| put(&key, value)).collect();
        self.write(&[&writes]);
    }

    fn proof(&self, vlsn: Vlsn) -> Proof {
        let (header, _) = self.log.header(vlsn).unwrap().unwrap();
        Proof { vlsn, fingerprint: header.fingerprint }
    }
}

fn apply_all(machine: &dyn StateMachine, log: &Log) {
    let last = log.positions().last;
    let mut at = machine.applied();
    while at < last {
        let run = log.read(at.next(), 1 << 20).unwrap().unwrap();
        at = run.last;
        machine.apply(&run, last).unwrap();
    }
}

/// Questions under way, and what was saved.
#[derive(Default)]
struct Host {
    asked: VecDeque<(u64, Vec<u8>)>,
    saved: Vec<u8>,
}

impl SessionHost for Host {
    fn ask(&mut self, number: u64, question: &[u8]) -> Result<bool> {
        if self.asked.len() >= 8 {
            return Ok(false);
        }
        self.asked.push_back((number, question.to_vec()));
        Ok(true)
    }

    fn save(&mut self, bytes: &[u8]) -> Result<()> {
        self.saved = bytes.to_vec();
        Ok(())
    }
}

/// A node that takes.
struct Taker {
    method: Arc<dyn StateSync>,
    env: Arc<dyn Env>,
    order: SyncOrder,
    session: Box<dyn SyncSession>,
    host: Host,
    offer: u64,
    of: Option<Proof>,
}

fn answer(number: u64, proof: Proof, bytes: &[u8]) -> Answer<'_> {
    Answer { number, proof, bytes, digest: *blake3::hash(bytes).as_bytes() }
}

impl Taker {
    fn new(method: &Arc<dyn StateSync>) -> Self {
        let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
        Self::on(method, &env, None)
    }

    /// Goes on with what was saved.
    fn on(method: &Arc<dyn StateSync>, env: &Arc<dyn Env>, saved: Option<Vec<u8>>) -> Self {
        let dir = PathBuf::from("/copy");
        env.create_dir_all(&dir).unwrap();
        env.sync_dir(Path::new("/")).unwrap();
        let order = SyncOrder { env: Arc::clone(env), dir };
        let session = method.session(&order, saved.as_deref()).unwrap();
        let host = Host { saved: saved.unwrap_or_default(), ..Host::default() };
        let (method, env) = (Arc::clone(method), Arc::clone(env));
        Self { method, env, order, session, host, offer: 0, of: None }
    }

    fn begin(&mut self, giver: &Giver) {
        self.host.asked.clear();
        let wanted = self.session.earlier().filter(|(name, _)| *name == giver.node);
        let kept = wanted.and_then(|(_, id)| giver.provider.resume(id));
        let offer = kept.unwrap_or_else(|| giver.provider.open().unwrap());
        let proof = giver.proof(offer.through);
        let opened = Opened { source: &giver.node, id: offer.id, proof, head: &offer.head };
        assert!(self.session.begin(&opened, &mut self.host).unwrap());
        (self.offer, self.of) = (offer.id, Some(proof));
    }

    /// Has the next question answered; false if there is none.
    fn step(&mut self, giver: &Giver) -> bool {
        self.session.ask(&mut self.host).unwrap();
        let Some((number, question)) = self.host.asked.pop_front() else { return false };
        let mut bytes = Vec::new();
        let vlsn = giver.provider.read(self.offer, &question, &mut bytes).unwrap();
        let proof = vlsn.map_or(self.of.unwrap(), |vlsn| giver.proof(vlsn));
        let answer = answer(number, proof, &bytes);
        self.session.take(&answer, &mut self.host).unwrap();
        true
    }

    fn finish(&mut self, giver: &Giver) {
        while !self.session.is_whole() {
            assert!(self.step(giver), "it asks until it is whole");
        }
    }

    /// Installs over `machine`, applies the rest of the log, and compares.
    fn install_over(&self, machine: &KeyedMachine, giver: &Giver) {
        let sealed = self.session.seal();
        let newest = self.session.proofs().iter().map(|proof| proof.vlsn).max().unwrap();
        self.method.install(&self.order, &sealed, machine, &giver.log).unwrap();
        assert_eq!(machine.applied(), newest);
        let again = KeyedMachine::open(&self.env, Path::new("/taken")).unwrap();
        assert_eq!(again.state(), machine.state(), "durable");
        apply_all(machine, &giver.log);
        assert_eq!(machine.state().map, giver.machine.state().map);
    }

    fn machine(&self) -> Arc<KeyedMachine> {
        KeyedMachine::open(&self.env, Path::new("/taken")).unwrap()
    }

    fn install(&self, giver: &Giver) {
        self.install_over(&self.machine(), giver);
    }
}

/// Snapshot and ranges, in small pieces.
fn methods() -> [Arc<dyn StateSync>; 2] {
    [
        Arc::new(StreamSync::SNAPSHOT.with_tuning(300, 600)),
        Arc::new(RangeSync { piece_bytes: 200, sync_bytes: 400, parts: 4 }),
    ]
}

/// A copy during which this is written, at each of its moments.
fn copied_at_any_moment(write: impl Fn(&Giver)) {
    for method in methods() {
        for moment in 0.. {
            let giver = Giver::new("n1", &*method);
            giver.fill("base");
            let mut taker = Taker::new(&method);
            taker.begin(&giver);
            let mut steps = 0;
            while steps < moment && !taker.session.is_whole() {
                taker.step(&giver);
                steps += 1;
            }
            let ended = taker.session.is_whole();
            write(&giver);
            taker.finish(&giver);
            taker.install(&giver);
            if ended {
                assert!(moment > 8, "{} in {moment} answers", method.name());
                break;
            }
        }
    }
}

/// M "live put beats base put in both orders": what is copied before the put, and what is copied after it.
#[test]
fn m_live_put_beats_base_put_in_both_orders() {
    copied_at_any_moment(|giver| giver.write(&[&[put("c5", "live"), put("x5", "live")]]));
    copied_at_any_moment(|giver| {
        giver.write(&[&[put("c5", "live")]]);
        giver.write(&[&[put("c5", "again"), put("nn", "new")]]);
    });
}

/// M "live delete beats base put"; and a key that comes back.
#[test]
fn m_live_delete_beats_base_put() {
    copied_at_any_moment(|giver| giver.write(&[&[delete("c5"), delete("x5")]]));
    copied_at_any_moment(|giver| {
        giver.write(&[&[delete("c5"), delete("x5")]]);
        giver.write(&[&[put("c5", "back")]]);
    });
}

/// M "one entry with many keys": all of them, or none; also where a transaction has several entries.
#[test]
fn m_one_entry_with_many_keys() {
    copied_at_any_moment(|giver| giver.fill("live"));
    copied_at_any_moment(|giver| {
        let first: Vec<_> = ('a'..='m').map(|letter| put(&format!("{letter}3"), "1")).collect();
        let second: Vec<_> = ('g'..='z').map(|letter| delete(&format!("{letter}3"))).collect();
        giver.write(&[&first, &second]);
    });
}

/// M "received but unsynced then crash": what is gone on with is there, whatever the disk kept.
#[test]
fn m_received_but_unsynced_then_crash() {
    for method in methods() {
        let mut reused = 0;
        for (steps, seed) in (0..12).flat_map(|steps| (0..4).map(move |seed| (steps, seed))) {
            let giver = Giver::new("n1", &*method);
            giver.fill("base");
            let faulty = FaultEnv::new();
            let env: Arc<dyn Env> = Arc::new(faulty.clone());
            let mut taker = Taker::on(&method, &env, None);
            taker.begin(&giver);
            (0..steps).for_each(|_| assert!(taker.step(&giver)));
            let had = taker.session.progress().bytes;
            let survivors = if seed == 0 { Survivors::None } else { Survivors::Random(seed) };
            let env: Arc<dyn Env> = Arc::new(faulty.crash_keeping(survivors));
            let mut taker = Taker::on(&method, &env, Some(taker.host.saved));
            giver.write(&[&[put("c5", "meanwhile")]]);
            taker.begin(&giver);
            assert!(taker.session.progress().reused <= had);
            reused += taker.session.progress().reused;
            taker.finish(&giver);
            taker.install(&giver);
        }
        assert!(reused > 0, "{} reuses nothing", method.name());
    }
}

/// M "replica already newer than base": what it had is gone, the log brings it again.
#[test]
fn m_replica_already_newer_than_base() {
    for method in methods() {
        let giver = Giver::new("n1", &*method);
        giver.fill("base");
        let mut taker = Taker::new(&method);
        taker.begin(&giver);
        taker.finish(&giver);
        giver.write(&[&[put("c5", "newer"), delete("d5"), put("new", "1")]]);
        let machine = taker.machine();
        apply_all(&*machine, &giver.log);
        machine.checkpoint().unwrap();
        taker.install_over(&machine, &giver);
    }
}

/// M "different tuning works": the one who takes has another one than the one who gives, and than the session
/// before.
#[test]
fn m_different_tuning_works() {
    let [snapshot, ranges] = methods();
    let others: [Arc<dyn StateSync>; 2] =
        [Arc::new(StreamSync::SNAPSHOT), Arc::new(RangeSync::default())];
    for (ours, theirs) in [snapshot, ranges].into_iter().zip(others) {
        assert_eq!(ours.signature(), theirs.signature());
        for (first, second) in [(&ours, &theirs), (&theirs, &ours)] {
            let giver = Giver::new("n1", &**first);
            giver.fill("base");
            let mut taker = Taker::new(second);
            taker.begin(&giver);
            taker.step(&giver);
            let mut taker = Taker::on(first, &taker.env, Some(taker.host.saved));
            taker.begin(&giver);
            taker.finish(&giver);
            taker.install(&giver);
        }
    }
}

/// Ranges: any source goes on where another one stopped; one that lags, too. Nothing is fetched twice.
#[test]
fn ranges_go_on_with_another_source_that_lags() {
    let [_, ranges] = methods();
    let (first, second) = (Giver::new("n1", &*ranges), Giver::new("n3", &*ranges));
    for giver in [&first, &second] {
        giver.fill("base");
    }
    first.write(&[&[put("c5", "newer"), delete("x5")]]);
    let mut taker = Taker::new(&ranges);
    taker.begin(&first);
    (0..7).for_each(|_| assert!(taker.step(&first)));
    let had = taker.session.progress().bytes;
    taker.begin(&second);
    assert_eq!(taker.session.progress().bytes, had, "what came stays");
    taker.finish(&second);
    let whole = taker.session.progress().bytes;
    assert_eq!(taker.session.proofs().len(), 2, "each moment once");
    taker.install(&first);

    let mut alone = Taker::new(&ranges);
    alone.begin(&second);
    alone.finish(&second);
    assert!(whole < alone.session.progress().bytes + 400, "{whole} bytes of both");
}

/// Ranges: a value longer than an answer comes in pieces; what changes between two of them is made good by
/// the redo.
#[test]
fn ranges_carry_a_long_value_that_changes_on_its_way() {
    let [_, ranges] = methods();
    let long = |byte: &str, len: usize| byte.repeat(len);
    let changes: [&dyn Fn(&Giver); 5] = [
        &|_| {},
        &|giver| giver.write(&[&[put("m5", &"y".repeat(40_000))]]),
        &|giver| giver.write(&[&[put("m5", "short")]]),
        &|giver| giver.write(&[&[delete("m5")]]),
        &|giver| {
            giver.write(&[&[delete("m5")]]);
            giver.write(&[&[put("m4", "before"), put("m5", &"z".repeat(9_000))]]);
        },
    ];
    for change in changes {
        for moment in 0..14 {
            let giver = Giver::new("n1", &*ranges);
            giver.fill("base");
            giver.write(&[&[put("m5", &long("x", 30_000))]]);
            let mut taker = Taker::new(&ranges);
            taker.begin(&giver);
            (0..moment).for_each(|_| assert!(taker.step(&giver)));
            change(&giver);
            taker.finish(&giver);
            taker.install(&giver);
        }
    }
}

/// Ranges: a key of any length that can be carried, in any part.
#[test]
fn ranges_carry_long_keys() {
    let ranges: Arc<dyn StateSync> = Arc::new(RangeSync::default());
    let giver = Giver::new("n1", &*ranges);
    let keys: Vec<_> = (0..6)
        .map(|n| [vec![b'k'; super::ranges::MAX_RANGE_KEY_BYTES - 1], vec![n]].concat())
        .collect();
    let writes: Vec<_> = keys.iter().map(|key| (key.clone(), Some(vec![1; 5000]))).collect();
    giver.write(&[&writes]);
    giver.fill("base");
    let mut taker = Taker::new(&ranges);
    taker.begin(&giver);
    taker.session.ask(&mut taker.host).unwrap();
    assert!(taker.host.asked.iter().all(|(_, question)| question.len() <= MAX_QUESTION_BYTES));
    taker.finish(&giver);
    taker.install(&giver);
}

/// Ranges: what does not answer the question is refused, and changes nothing.
#[test]
fn ranges_refuse_what_does_not_answer_the_question() {
    let [_, ranges] = methods();
    let giver = Giver::new("n1", &*ranges);
    giver.fill("base");
    let mut taker = Taker::new(&ranges);
    taker.begin(&giver);
    taker.session.ask(&mut taker.host).unwrap();
    let (number, question) = taker.host.asked.pop_front().unwrap();
    let mut right = Vec::new();
    let vlsn = giver.provider.read(taker.offer, &question, &mut right).unwrap().unwrap();
    let (other, another) = taker.host.asked.pop_front().unwrap();
    let mut wrong = Vec::new();
    giver.provider.read(taker.offer, &another, &mut wrong).unwrap();
    assert_ne!(number, other);
    // Cut anywhere but between two pairs; of another part; nothing, and not the end.
    let mut bad = vec![wrong, Vec::new(), vec![0, 0, 0], vec![0, 0, 7]];
    bad.extend((1..9).map(|cut| right[..right.len() - cut].to_vec()));
    let proof = giver.proof(vlsn);
    for bytes in bad {
        let answer = answer(number, proof, &bytes);
        let refused = taker.session.take(&answer, &mut taker.host).unwrap_err();
        assert!(!matches!(refused, RepError::Log(_)), "{refused}");
        assert_eq!(taker.session.progress().bytes, 0);
    }
    taker.session.take(&answer(number, proof, &right), &mut taker.host).unwrap();
    assert!(taker.session.progress().bytes > 0);
    taker.begin(&giver);
    taker.finish(&giver);
    taker.install(&giver);
}

/// Ranges: bytes on disk that are not those that came are not installed.
#[test]
fn ranges_that_rot_on_disk_are_not_installed() {
    let [_, ranges] = methods();
    let giver = Giver::new("n1", &*ranges);
    giver.fill("base");
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    let mut taker = Taker::on(&ranges, &env, None);
    taker.begin(&giver);
    taker.finish(&giver);
    let machine = taker.machine();
    for at in [0, 3, 10, 500] {
        faulty.corrupt(Path::new("/copy/ranges"), at, 1).unwrap();
        let sealed = taker.session.seal();
        let refused = ranges.install(&taker.order, &sealed, &*machine, &giver.log).unwrap_err();
        assert!(matches!(refused, RepError::Log(_)), "{refused}");
        assert!(machine.state().map.is_empty());
        let seen =
            ranges.prepare(&taker.order, &Coming::whole(sealed.clone()), &*machine).unwrap_err();
        assert!(matches!(seen, RepError::Log(_)), "before the old log is gone: {seen}");
        faulty.corrupt(Path::new("/copy/ranges"), at, 1).unwrap();
    }
    taker.install(&giver);
}

/// Ranges: parts of like size, also where some keys are far away from the rest.
#[test]
fn ranges_ask_side_by_side() {
    let ranges: Arc<dyn StateSync> =
        Arc::new(RangeSync { piece_bytes: 200, sync_bytes: 1 << 20, parts: 16 });
    let giver = Giver::new("n1", &*ranges);
    let writes: Vec<_> = (0..1000).map(|n| put(&format!("user:{n:06}"), "v")).collect();
    giver.write(&[&writes]);
    giver.write(&[&[put("zz", "far"), put("\u{1}", "away")]]);
    let mut taker = Taker::new(&ranges);
    taker.begin(&giver);
    taker.session.ask(&mut taker.host).unwrap();
    assert_eq!(taker.host.asked.len(), 8);
    let mut least = usize::MAX;
    while taker.session.progress().bytes < 15_000 {
        assert!(taker.step(&giver));
        taker.session.ask(&mut taker.host).unwrap();
        least = least.min(taker.host.asked.len());
    }
    assert!(least >= 4, "{least} side by side");
    taker.finish(&giver);
    taker.install(&giver);
}
