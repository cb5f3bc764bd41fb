//! A group of one node: transactions, reads, restarts, limits.

use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_kv::{Batch, Config, Consistency, KvError, MemoryImage, StateKind, Store};
use noxu_log::RetentionConfig;
use noxu_log::env::MemoryEnv;
use noxu_rep::{Durability, GroupChoice, NodeConfig, Role};
use noxu_util::checksum::crc;
use noxu_util::codec::Put;
use noxu_util::{Name, Term};

const SECONDS: Duration = Duration::from_secs(20);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The only node of its group, on disk.
fn config(dir: &Path) -> Config {
    let mut node = NodeConfig::new(name("n1"), dir);
    node.group = GroupChoice::Create {
        name: name("g"),
        members: vec![name("n1")],
        segment_bytes: 1 << 20,
        q_rep: 0,
        q_elect: 0,
    };
    node.log.prefill = false;
    let mut config = Config::new(node);
    config.memtable_bytes = 256 << 10;
    config
}

fn in_memory(env: &Arc<MemoryEnv>, image: &MemoryImage) -> Config {
    let mut config = config(Path::new("/n1"));
    config.env = env.clone();
    config.state = StateKind::Memory(image.clone());
    config
}

/// Opens the store of the only node of a group, which elects itself.
fn open(config: Config) -> Store {
    let store = Store::open(config).unwrap();
    assert!(store.node().wait_role(Role::Master, SECONDS), "{}", store.node().status().reason);
    store
}

fn alone() -> Store {
    open(in_memory(&Arc::new(MemoryEnv::new()), &MemoryImage::default()))
}

fn put(store: &Store, key: &str, value: &str) {
    store.put(key.as_bytes(), value.as_bytes(), Durability::MAJORITY).unwrap();
}

fn get(store: &Store, key: &str) -> Option<String> {
    let found = store.get(key.as_bytes()).unwrap();
    found.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn all(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let range = store.snapshot().unwrap().range::<&[u8]>(..).unwrap();
    range.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
}

#[test]
fn a_committed_transaction_is_readable_at_once_and_before_it_nothing_of_it() {
    let store = alone();
    put(&store, "a", "1");
    let before = store.snapshot().unwrap();
    let mut txn = store.begin().unwrap();
    assert_eq!(txn.get(b"a").unwrap().unwrap(), b"1");
    txn.put(b"a", b"2").unwrap();
    txn.put(b"b", b"2").unwrap();
    txn.delete(b"never there").unwrap();
    assert_eq!(get(&store, "b"), None);
    let token = txn.commit(Durability::MAJORITY).unwrap();
    assert_eq!((get(&store, "a"), get(&store, "b")), (Some("2".into()), Some("2".into())));
    assert_eq!(before.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(before.get(b"b").unwrap(), None);
    assert_eq!(store.snapshot_at(token.vlsn.prev()).unwrap().get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(token.term, Term::new(1));
    let header = store.node().log().header(token.vlsn).unwrap().unwrap().0;
    assert_eq!(header.fingerprint, token.fingerprint);
    store.delete(b"a", Durability::LOCAL).unwrap();
    assert_eq!(get(&store, "a"), None);
}

#[test]
fn ranges_and_prefixes_run_both_ways() {
    let store = alone();
    for key in ["a", "b1", "b2", "b3", "c"] {
        put(&store, key, key);
    }
    let snapshot = store.snapshot().unwrap();
    let keys = |range: noxu_kv::Range| -> Vec<String> {
        range.map(|item| String::from_utf8(item.unwrap().0.to_vec()).unwrap()).collect()
    };
    assert_eq!(keys(snapshot.range(&b"b"[..]..&b"c"[..]).unwrap()), ["b1", "b2", "b3"]);
    let after: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(b"b2"), Bound::Unbounded);
    assert_eq!(keys(snapshot.range::<&[u8]>(after).unwrap()), ["b3", "c"]);
    assert_eq!(keys(snapshot.prefix(b"b").unwrap()), ["b1", "b2", "b3"]);
    let back: Vec<_> = snapshot.prefix(b"b").unwrap().rev().map(|item| item.unwrap().1).collect();
    assert_eq!(back, [b"b3", b"b2", b"b1"]);
}

#[test]
fn the_log_is_dropped_by_itself_and_never_above_what_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for term in 1..4 {
        let mut config = config(dir.path());
        // Whatever may go is to go.
        config.node.log.retention =
            RetentionConfig { keep_bytes: 0, byte_budget: Some(1), ..RetentionConfig::default() };
        let store = open(config);
        assert_eq!(store.node().status().term, Term::new(term));
        store.wait_applied(store.node().log().positions().last, SECONDS).unwrap();
        assert_eq!(all(&store), expected, "in term {term}");
        let before = store.node().status().retention.first;
        for n in 0..600u32 {
            let key = format!("{:04}", n * 7 % 1000 + term).into_bytes();
            let value = vec![term as u8; 10_000];
            store.put(&key, &value, Durability::LOCAL).unwrap();
            // In this order: the checkpoint may move on in between, the front may not pass it.
            let gone = store.node().status().retention.first.prev();
            assert!(gone <= store.status().checkpoint, "{gone} is gone");
        }
        let deadline = Instant::now() + SECONDS;
        while store.node().status().retention.first == before {
            assert!(Instant::now() < deadline, "{:?}", store.node().status().retention);
            std::thread::sleep(Duration::from_millis(5));
        }
        expected = all(&store);
    }
}

#[test]
fn everything_is_there_after_a_restart_with_and_without_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for term in 1..6 {
        let store = open(config(dir.path()));
        assert_eq!(store.node().status().term, Term::new(term));
        store.transact(|_| Ok(())).unwrap();
        store.wait_applied(store.node().log().positions().last, SECONDS).unwrap();
        assert_eq!(all(&store), expected, "in term {term}");
        for n in 0..300u32 {
            let key = format!("{:04}", n * 7 % 1000 + term).into_bytes();
            let value = vec![term as u8; (n % 500) as usize];
            store.put(&key, &value, Durability::LOCAL).unwrap();
        }
        expected = all(&store);
        if term % 2 == 0 {
            let last = store.node().log().positions().last;
            assert!(store.node().wait_durable(last, SECONDS));
            assert_eq!(store.checkpoint().unwrap(), last);
            assert_eq!(store.status().checkpoint, last);
        }
    }
}

/// Who has lost its state, and not enough of its log to make it anew, does not say that there is nothing.
#[test]
fn a_node_without_its_state_does_not_answer_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path()));
    put(&store, "a", "1");
    let wide = "w".repeat(300 << 10);
    (0..8).for_each(|n| put(&store, &format!("key{n}"), &wide));
    store.checkpoint().unwrap();
    assert!(!store.node().drop_front(store.node().log().positions().last).unwrap().is_null());
    drop(store);
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    let store = Store::open(config(dir.path())).unwrap();
    assert!(matches!(store.get(b"a"), Err(KvError::NoState)));
    assert!(matches!(store.snapshot(), Err(KvError::NoState)));
    assert!(matches!(store.read(Consistency::None), Err(KvError::NoState)));
}

/// A crash can come when a restore has ended, and before its files are gone.
#[test]
fn what_a_restore_left_that_has_ended_is_gone_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let restore = dir.path().join("restore");
    let made = dir.path().join("state").join("tree-2");
    let note = dir.path().join("state").join("making");
    put(&open(config(dir.path())), "a", "1");
    for left in [&restore, &made] {
        fs::create_dir_all(left).unwrap();
        fs::write(left.join("left"), b"bytes").unwrap();
    }
    let mut making = b"NKM1".to_vec();
    making.put_bytes(&[7; 32]);
    making.put_u64(2);
    making.put_u32(0);
    making.put_u32(crc(&making));
    fs::write(&note, making).unwrap();
    let store = open(config(dir.path()));
    assert_eq!(get(&store, "a"), Some("1".into()));
    for left in [restore, made, note] {
        assert!(!left.exists(), "{}", left.display());
    }
}

#[test]
fn a_crash_of_the_state_replays_the_log_after_the_checkpoint() {
    let (env, image) = (Arc::new(MemoryEnv::new()), MemoryImage::default());
    let store = open(in_memory(&env, &image));
    put(&store, "a", "1");
    let last = store.node().log().positions().last;
    assert!(store.node().wait_durable(last, SECONDS));
    let checkpoint = store.checkpoint().unwrap();
    assert!(!checkpoint.is_null());
    put(&store, "b", "2");
    store.delete(b"a", Durability::MAJORITY).unwrap();
    drop(store);
    let store = open(in_memory(&env, &image));
    store.put(b"c", b"3", Durability::MAJORITY).unwrap();
    assert_eq!((get(&store, "a"), get(&store, "b")), (None, Some("2".into())));
    drop(store);
    // The state is lost altogether, the log is not.
    let store = open(in_memory(&env, &MemoryImage::default()));
    put(&store, "d", "4");
    assert_eq!(all(&store).len(), 3);
}

#[test]
fn one_thread_keeps_a_thousand_commits_in_flight() {
    let store = alone();
    let mut pending = Vec::new();
    for n in 0..1024u32 {
        let mut batch = Batch::default();
        batch.put(&n.to_be_bytes(), b"v").unwrap();
        pending.push(store.submit(&batch, Durability::MAJORITY).unwrap());
    }
    let (send, received) = std::sync::mpsc::channel();
    let mut last = None;
    for (n, commit) in pending.into_iter().enumerate() {
        if n % 2 == 0 {
            let token = commit.wait().unwrap();
            assert!(last < Some(token.vlsn), "VLSN order is submit order");
            last = Some(token.vlsn);
        } else {
            let send = send.clone();
            commit.on_done(move |outcome| send.send(outcome.unwrap().vlsn).unwrap());
        }
    }
    drop(send);
    assert_eq!(received.iter().count(), 512);
    store.wait_applied(store.node().log().positions().last, SECONDS).unwrap();
    assert_eq!(all(&store).len(), 1024);
}

#[test]
fn concurrent_increments_are_never_lost() {
    let store = alone();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let increment = |txn: &mut noxu_kv::Txn| {
                        let n = txn
                            .get(b"n")?
                            .map_or(0, |value| u64::from(value[0]) << 8 | u64::from(value[1]));
                        txn.put(b"n", &[((n + 1) >> 8) as u8, (n + 1) as u8])
                    };
                    store.transact(increment).unwrap();
                }
            });
        }
    });
    assert_eq!(store.get(b"n").unwrap().unwrap(), &[1, 144]);
}

#[test]
fn transfers_between_accounts_keep_their_sum_in_every_snapshot() {
    const ACCOUNTS: u64 = 6;
    let store = alone();
    store
        .transact(|txn| (0..ACCOUNTS).try_for_each(|n| txn.put(&n.to_be_bytes(), &[100])))
        .unwrap();
    std::thread::scope(|scope| {
        let movers: Vec<_> = (0..4u64)
            .map(|mover| {
                let store = store.clone();
                scope.spawn(move || {
                    for step in 0..60 {
                        let from = (mover + step) % ACCOUNTS;
                        let to = (mover * 3 + step * 5 + 1) % ACCOUNTS;
                        let transfer = |txn: &mut noxu_kv::Txn| {
                            let a = txn.get(&from.to_be_bytes())?.unwrap()[0];
                            if from == to || a == 0 {
                                return Ok(());
                            }
                            let b = txn.get(&to.to_be_bytes())?.unwrap()[0];
                            txn.put(&from.to_be_bytes(), &[a - 1])?;
                            txn.put(&to.to_be_bytes(), &[b + 1])
                        };
                        store.transact_with(Durability::LOCAL, transfer).unwrap();
                    }
                })
            })
            .collect();
        while !movers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let sum: u64 = all(&store).iter().map(|(_, value)| u64::from(value[0])).sum();
            assert_eq!(sum, 100 * ACCOUNTS);
        }
    });
}

#[test]
fn a_read_at_a_token_waits_for_it_and_names_both_positions_when_it_does_not_come() {
    let store = alone();
    let token = store.put(b"a", b"1", Durability::MAJORITY).unwrap();
    let snapshot = store.read(Consistency::At(token, SECONDS)).unwrap();
    assert_eq!(snapshot.get(b"a").unwrap().unwrap(), b"1");
    let mut future = token;
    future.vlsn = token.vlsn.next();
    let error = store.read(Consistency::At(future, Duration::from_millis(10))).unwrap_err();
    assert!(
        matches!(error, KvError::ConsistencyTimeout { wanted, reached }
            if wanted == future.vlsn && reached == token.vlsn),
        "{error}"
    );
    let mut forked = token;
    forked.fingerprint = noxu_util::Fingerprint::from_u64(1);
    let error = store.read(Consistency::At(forked, Duration::from_millis(10))).unwrap_err();
    assert!(matches!(error, KvError::Forked { .. }), "{error}");
}

#[test]
fn large_values_and_large_transactions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let key = vec![b'k'; noxu_kv::MAX_KEY_BYTES];
    let large = vec![7u8; noxu_kv::MAX_VALUE_BYTES];
    {
        let store = open(config(dir.path()));
        let before = store.node().log().positions().last;
        store.put(&key, &large, Durability::LOCAL).unwrap();
        assert_eq!(store.node().log().positions().last, before.next(), "one entry");
        store
            .transact(|txn| (0..3000u32).try_for_each(|n| txn.put(&n.to_be_bytes(), &[1; 3000])))
            .unwrap();
        assert!(store.node().log().positions().last > before.plus(8), "split into entries");
    }
    let store = open(config(dir.path()));
    store.wait_applied(store.node().log().positions().last, SECONDS).unwrap();
    assert!(store.get(&key).unwrap().unwrap()[..] == large[..]);
    assert_eq!(all(&store).len(), 3001);
}

#[test]
fn limits_are_errors_that_name_them_and_write_nothing() {
    let env = Arc::new(MemoryEnv::new());
    let mut config = in_memory(&env, &MemoryImage::default());
    config.max_transaction_bytes = 1000;
    let store = open(config);
    let last = store.node().log().positions().last;
    let mut batch = Batch::default();
    assert!(matches!(batch.put(b"", b"v"), Err(KvError::KeyEmpty)));
    batch.put(b"k", &[0; 600]).unwrap();
    batch.put(b"l", &[0; 600]).unwrap();
    let error = store.submit(&batch, Durability::LOCAL).err().unwrap().to_string();
    assert!(error.contains("max_transaction_bytes is 1000"), "{error}");
    let long = vec![0; noxu_kv::MAX_KEY_BYTES + 1];
    assert!(matches!(store.get(&long), Err(KvError::KeyTooLong { bytes: 60_001 })));
    assert_eq!(store.node().log().positions().last, last);
    let token = store.submit(&Batch::default(), Durability::ALL).unwrap().wait().unwrap();
    assert_eq!(store.node().log().positions().last, last, "an empty commit writes nothing");
    assert!(token.vlsn <= last);
}

#[test]
fn a_directory_in_use_cannot_be_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(config(dir.path()));
    let error = Store::open(config(dir.path())).err().unwrap().to_string();
    assert!(error.contains("in use") || error.contains("lock"), "{error}");
    drop(store);
    open(config(dir.path()));
}

#[test]
fn a_closed_store_says_so() {
    let store = alone();
    let other = store.clone();
    store.close().unwrap();
    let error = other.put(b"a", b"1", Durability::LOCAL).unwrap_err();
    assert!(matches!(error, KvError::Stopped { .. }), "{error}");
}
