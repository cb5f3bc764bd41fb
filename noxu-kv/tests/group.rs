//! Three nodes in one process, over TCP.

use std::path::Path;
use std::time::{Duration, Instant};

use noxu_kv::{Batch, CommitToken, Config, Consistency, KvError, Store};
use noxu_rep::{Durability, GroupChoice, NodeConfig, Role};
use noxu_util::{NULL_VLSN, Name, Vlsn};

const SECONDS: Duration = Duration::from_secs(20);

struct Dirs(tempfile::TempDir);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Dirs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A node that becomes master only to hand over, of the group of its peers.
    fn config(&self, node: &str, peers: &[&Store]) -> Config {
        let dir: &Path = self.0.path();
        let mut node = NodeConfig::new(name(node), dir.join(node));
        node.peers = peers.iter().map(|peer| peer.node().local_addr().to_string()).collect();
        node.group = GroupChoice::Join { name: Some(name("g")) };
        node.priority = 0;
        // A master that is alone goes on writing LOCAL for as long as a test may take.
        node.election.quorum_timeout = Duration::from_mins(1);
        node.log.prefill = false;
        node.limits.insufficient_replicas_timeout = Duration::from_secs(10);
        node.limits.ack_timeout = Duration::from_secs(10);
        let mut config = Config::new(node);
        config.memtable_bytes = 256 << 10;
        config
    }

    /// The founder of a group of `members`, of which it is to be the master.
    fn founder_config(&self, node: &str, members: &[&str]) -> Config {
        let mut config = self.config(node, &[]);
        config.node.priority = 9;
        config.node.group = GroupChoice::Create {
            name: name("g"),
            members: members.iter().map(|member| name(member)).collect(),
            segment_bytes: 1 << 20,
            q_rep: 0,
            q_elect: 0,
        };
        config
    }

    fn founder(&self, node: &str) -> Store {
        Store::open(self.founder_config(node, &["a", "b", "c"])).unwrap()
    }

    /// A group of three whose master is the first.
    fn group(&self) -> [Store; 3] {
        self.group_with(|_| {})
    }

    /// [`Dirs::group`] with other settings of its master.
    fn group_with(&self, set: impl FnOnce(&mut Config)) -> [Store; 3] {
        let mut config = self.founder_config("a", &["a", "b", "c"]);
        set(&mut config);
        let a = Store::open(config).unwrap();
        let (b, c) = (self.replica("b", &[&a]), self.replica("c", &[&a]));
        [master(a), b, c]
    }

    /// A node that becomes master when it meets a majority without one.
    fn candidate(&self, node: &str, peers: &[&Store]) -> Store {
        let mut config = self.config(node, peers);
        config.node.priority = 9;
        Store::open(config).unwrap()
    }

    fn replica(&self, node: &str, peers: &[&Store]) -> Store {
        Store::open(self.config(node, peers)).unwrap()
    }
}

/// Waits until this node is master.
fn master(store: Store) -> Store {
    assert!(store.node().wait_role(Role::Master, SECONDS), "{:#?}", store.node().status());
    store
}

fn contents(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let range = store.snapshot().unwrap().range::<&[u8]>(..).unwrap();
    range.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
}

fn assert_equal_at(token: CommitToken, stores: &[&Store]) {
    let first = stores[0].read(Consistency::At(token, SECONDS)).unwrap();
    drop(first);
    let expected = contents(stores[0]);
    for store in stores {
        store.read(Consistency::At(token, SECONDS)).unwrap();
        assert!(contents(store) == expected, "{} differs", store.node().name());
    }
}

/// Waits for a condition that no call waits for, and fails if it does not come.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SECONDS;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn replicas_hold_what_the_master_holds_and_read_their_writes_by_token() {
    let dirs = Dirs::new();
    let [a, b, c] = dirs.group();
    let mut last = None;
    for n in 0..200u32 {
        let key = (n % 60).to_be_bytes();
        let token = a.put(&key, &n.to_be_bytes(), Durability::MAJORITY).unwrap();
        let reader = if n % 2 == 0 { &b } else { &c };
        let seen = reader.read(Consistency::At(token, SECONDS)).unwrap();
        assert_eq!(seen.get(&key).unwrap().unwrap(), &n.to_be_bytes());
        last = Some(token);
    }
    a.transact(|txn| {
        for item in txn.range::<&[u8]>(..30u32.to_be_bytes().as_slice())? {
            let (key, _) = item?;
            txn.delete(&key)?;
        }
        (0..2000u32).try_for_each(|n| txn.put(format!("big{n}").as_bytes(), &[n as u8; 900]))
    })
    .unwrap();
    let token = a.put(b"end", b"", Durability::ALL).unwrap();
    assert!(token.vlsn > last.unwrap().vlsn);
    assert_equal_at(token, &[&a, &b, &c]);
    assert_eq!(contents(&b).len(), 30 + 2000 + 1);
}

#[test]
fn a_write_on_a_replica_names_the_master() {
    let dirs = Dirs::new();
    let [a, b, _c] = dirs.group();
    let token = a.put(b"k", b"v", Durability::MAJORITY).unwrap();
    b.read(Consistency::At(token, SECONDS)).unwrap();
    let mut txn = b.begin().unwrap();
    assert_eq!(txn.get(b"k").unwrap().unwrap(), b"v");
    txn.commit(Durability::MAJORITY).unwrap();
    let error = b.put(b"k", b"w", Durability::LOCAL).unwrap_err();
    let master = a.node().local_addr().to_string();
    assert!(matches!(&error, KvError::NotMaster { master: Some(at) } if *at == master), "{error}");
}

#[test]
fn a_writer_that_waits_for_missing_replicas_holds_up_no_local_writer() {
    let dirs = Dirs::new();
    let waits = Duration::from_secs(3);
    let [a, b, c] =
        dirs.group_with(|config| config.node.limits.insufficient_replicas_timeout = waits);
    let replicas = [b, c];
    a.put(b"k", b"v", Durability::ALL).unwrap();
    for replica in &replicas {
        replica.close().unwrap();
    }
    until("a master alone", || a.node().status().replicas.is_empty());

    let waiting = std::thread::spawn({
        let a = a.clone();
        move || a.put(b"k", b"waits", Durability::MAJORITY)
    });
    let mut slowest = Duration::ZERO;
    while !waiting.is_finished() {
        let began = Instant::now();
        a.put(b"k", b"local", Durability::LOCAL).unwrap();
        slowest = slowest.max(began.elapsed());
    }
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(error, KvError::InsufficientReplicas { .. }), "{error}");
    assert!(slowest < waits / 2, "a local writer waited {slowest:?}");
}

#[test]
fn a_transaction_begun_before_its_master_may_serve_commits_without_a_conflict() {
    let dirs = Dirs::new();
    let a = dirs.founder("a");
    let mut txn = a.begin().unwrap();
    txn.put(b"k", b"v").unwrap();
    let _replicas = [dirs.replica("b", &[&a]), dirs.replica("c", &[&a])];
    let a = master(a);
    txn.commit(Durability::MAJORITY).unwrap();
    assert_eq!(a.get(b"k").unwrap().unwrap(), b"v");
}

#[test]
fn a_policy_that_cannot_be_met_writes_nothing() {
    let dirs = Dirs::new();
    let [a, b, c] = dirs.group_with(|config| {
        config.node.limits.insufficient_replicas_timeout = Duration::from_millis(50);
    });
    drop((b, c));
    until("a master alone", || a.node().status().replicas.is_empty());
    let last = a.node().log().positions().last;
    let error = a.put(b"k", b"v", Durability::MAJORITY).unwrap_err();
    assert!(matches!(error, KvError::InsufficientReplicas { .. }), "{error}");
    assert_eq!(a.node().log().positions().last, last);
}

#[test]
fn commits_of_a_lost_master_are_rolled_back_and_majority_commits_are_not() {
    let dirs = Dirs::new();
    let [a, b, c] = dirs.group();
    for n in 0..50u32 {
        a.put(&n.to_be_bytes(), b"kept", Durability::ALL).unwrap();
    }
    let kept = a.put(b"kept", b"1", Durability::ALL).unwrap();
    a.checkpoint().unwrap();
    b.close().unwrap();
    c.close().unwrap();
    drop((b, c));
    // Nobody hears of these; the first is in a transaction of several entries.
    let mut txn = a.begin().unwrap();
    for n in 0..3000u32 {
        txn.put(format!("lost {n}").as_bytes(), &[0; 900]).unwrap();
    }
    txn.delete(b"kept").unwrap();
    let lost = txn.commit(Durability::LOCAL).unwrap();
    a.put(b"kept", b"lost", Durability::LOCAL).unwrap();
    a.wait_applied(lost.vlsn.next(), SECONDS).unwrap();
    assert_eq!(a.get(b"kept").unwrap().unwrap(), b"lost", "visible on the old master");
    drop(a);

    let b = dirs.candidate("b", &[]);
    let c = dirs.replica("c", &[&b]);
    let b = master(b);
    let other = b.put(b"other", b"history", Durability::MAJORITY).unwrap();
    let a = dirs.replica("a", &[&b]);
    assert_equal_at(other, &[&b, &c, &a]);
    assert_eq!(a.get(b"kept").unwrap().unwrap(), b"1");
    assert_eq!(a.get(b"lost 7").unwrap(), None);
    assert_eq!(contents(&a).len(), 50 + 2);
    let rollback = a.node().status().last_rollback.unwrap();
    assert!(rollback.matchpoint >= kept.vlsn && rollback.entries >= 4, "{rollback:?}");
    assert!(rollback.lost_file.exists());
    let error = a.read(Consistency::At(lost, SECONDS)).unwrap_err();
    assert!(matches!(error, KvError::Forked { found: None, .. }), "{error}");
    // The state goes on from there, and through a restart.
    let more = b.put(b"more", b"1", Durability::ALL).unwrap();
    assert_equal_at(more, &[&b, &c, &a]);
    drop(a);
    let a = dirs.replica("a", &[&b]);
    assert_equal_at(more, &[&b, &a]);
}

#[test]
fn a_deposed_master_rolls_back_in_place_and_ends_what_saw_the_lost_commits() {
    let dirs = Dirs::new();
    // The group knows an address of it at which nobody listens: only who is told better reaches it.
    let [a, b, c] =
        dirs.group_with(|config| config.node.advertise = Some("127.0.0.1:1".to_owned()));
    let kept = a.put(b"k", b"kept", Durability::MAJORITY).unwrap();
    b.read(Consistency::At(kept, SECONDS)).unwrap();
    drop((b, c));
    let below = a.snapshot().unwrap();
    let lost = a.put(b"k", b"lost", Durability::LOCAL).unwrap();
    a.wait_applied(lost.vlsn, SECONDS).unwrap();
    let above = a.snapshot().unwrap();
    let mut cursor = above.range::<&[u8]>(..).unwrap();
    let mut txn = a.begin().unwrap();
    txn.put(b"k", b"again").unwrap();
    assert_eq!(above.get(b"k").unwrap().unwrap(), b"lost");

    let b = dirs.candidate("b", &[]);
    let c = dirs.replica("c", &[&b]);
    let b = master(b);
    assert_eq!(a.node().role(), Role::Master, "nobody has told it");
    let other = b.put(b"k", b"other", Durability::MAJORITY).unwrap();
    c.read(Consistency::At(other, SECONDS)).unwrap();
    drop(c);
    // A voter of the new term that knocks at the old master's door deposes it.
    let c = dirs.replica("c", &[&a, &b]);
    until("the rollback", || a.node().status().last_rollback.is_some());
    a.read(Consistency::At(other, SECONDS)).unwrap();
    assert_equal_at(other, &[&a, &b, &c]);
    assert_eq!(below.get(b"k").unwrap().unwrap(), b"kept", "a snapshot below lives on");
    assert!(matches!(above.get(b"k"), Err(KvError::RolledBack { .. })));
    assert!(matches!(cursor.next(), Some(Err(KvError::RolledBack { .. }))));
    assert!(matches!(txn.commit(Durability::LOCAL), Err(KvError::RolledBack { .. })));
    let error = a.read(Consistency::At(lost, SECONDS)).unwrap_err();
    assert!(matches!(error, KvError::Forked { found: Some(_), .. }), "{error}");
}

#[test]
fn a_checkpoint_of_one_store_installs_into_another_under_load() {
    let dirs = Dirs::new();
    let [a, b, c] = dirs.group();
    let mut pending = Vec::new();
    for n in 0..3000u32 {
        let mut batch = Batch::default();
        batch.put(&(n % 700).to_be_bytes(), &vec![n as u8; (n % 300) as usize]).unwrap();
        pending.push(a.submit(&batch, Durability::MAJORITY).unwrap());
    }
    let token = pending.pop().unwrap().wait().unwrap();
    assert!(a.node().wait_durable(token.vlsn, SECONDS));
    let mut stream = a.node().machine().open_checkpoint().unwrap();
    let vlsn = stream.vlsn();
    assert!(vlsn > Vlsn::new(2));
    let expected: Vec<_> = {
        let range = a.snapshot_at(vlsn).unwrap().range::<&[u8]>(..).unwrap();
        range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
    };
    let mut bytes = Vec::new();
    let mut n = 0u32;
    while stream.read(&mut bytes, 10_000).unwrap() {
        a.put(&n.to_be_bytes(), b"while it streams", Durability::LOCAL).unwrap();
        n += 1;
    }
    drop((b, c));

    // Another group's store takes it over as its state.
    let other = Dirs::new();
    let copy = master(Store::open(other.founder_config("a", &["a"])).unwrap());
    let held = copy.snapshot().unwrap();
    let machine = copy.node().machine();
    assert!(machine.install_checkpoint(vlsn, &mut &bytes[..bytes.len() - 1]).is_err());
    assert!(held.get(b"k").is_err(), "what was there before has ended");
    machine.install_checkpoint(vlsn, &mut bytes.as_slice()).unwrap();
    assert_eq!(machine.applied(), vlsn);
    assert!(contents(&copy) == expected);
    assert_eq!(copy.status().checkpoint, vlsn);

    // Made ready ahead, while what is there stays in use, and put in force at a stroke.
    let held = copy.snapshot().unwrap();
    let (id, other) = ([1; 32], [2; 32]);
    machine.prepare_checkpoint(&id, vlsn, &mut bytes.as_slice()).unwrap();
    assert!(held.get(b"k").is_ok() && contents(&copy) == expected, "nothing has changed");
    assert!(!machine.install_prepared(&other).unwrap());
    assert!(held.get(b"k").is_ok());
    assert!(machine.install_prepared(&id).unwrap());
    assert!(held.get(b"k").is_err() && contents(&copy) == expected);
    assert!(!machine.install_prepared(&id).unwrap(), "once");
    // One that does not arrive whole is none, and what takes its place leaves none.
    let cut = &mut &bytes[..bytes.len() - 1];
    assert!(machine.prepare_checkpoint(&id, vlsn, cut).is_err());
    assert!(!machine.install_prepared(&id).unwrap());
    machine.prepare_checkpoint(&id, vlsn, &mut bytes.as_slice()).unwrap();
    machine.install_checkpoint(vlsn, &mut bytes.as_slice()).unwrap();
    assert!(!machine.install_prepared(&id).unwrap());
    assert!(contents(&copy) == expected);

    // And back to the beginning, what is flushed too.
    machine.clear().unwrap();
    assert_eq!((machine.applied(), machine.checkpointed()), (NULL_VLSN, NULL_VLSN));
    assert!(contents(&copy).is_empty());
}

#[test]
fn a_replica_that_was_away_catches_up_and_replays_what_it_had_not_flushed() {
    let dirs = Dirs::new();
    let [a, b, mut c] = dirs.group();
    for round in 0..4u32 {
        for n in 0..400u32 {
            let key = (n * 31 % 997).to_be_bytes();
            a.put(&key, &vec![round as u8; 700], Durability::NO_SYNC_MAJORITY).unwrap();
        }
        let token = a.put(&round.to_be_bytes(), b"end", Durability::MAJORITY).unwrap();
        assert_equal_at(token, &[&a, &b, &c]);
        if round % 2 == 0 {
            c.checkpoint().unwrap();
        }
        drop(c);
        for n in 0..100u32 {
            a.put(&n.to_be_bytes(), b"while it was away", Durability::MAJORITY).unwrap();
        }
        c = dirs.replica("c", &[&a]);
    }
    let token = a.put(b"end", b"", Durability::MAJORITY).unwrap();
    assert_equal_at(token, &[&a, &b, &c]);
    until("a checkpoint in the background", || !c.status().checkpoint.is_null());
}
