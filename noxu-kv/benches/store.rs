//! Benchmarks of the store: applying a log, commits of one node, reads.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use noxu_kv::{Batch, Config, Store};
use noxu_rep::{Durability, GroupChoice, NodeConfig, Role};

const ENTRIES: u64 = 500_000;
const PATIENCE: Duration = Duration::from_mins(10);
const IN_FLIGHT: usize = 1024;
const NO_SYNC: Durability = Durability { local: noxu_rep::SyncPolicy::NoSync, ..Durability::LOCAL };

fn open(dir: &Path) -> Store {
    let mut node = NodeConfig::new("n1".parse().unwrap(), dir);
    node.group = GroupChoice::create("g".parse().unwrap(), vec!["n1".parse().unwrap()]);
    let store = Store::open(Config::new(node)).unwrap();
    assert!(store.node().wait_role(Role::Master, PATIENCE));
    store
}

fn key(n: u64) -> [u8; 16] {
    // Spread over the key space, the same in every run.
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(mixed) << 64 | u128::from(n)).to_be_bytes()
}

fn put(n: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(&key(n), &[7; 100]).unwrap();
    batch
}

fn fill(store: &Store, count: u64) {
    let mut last = None;
    for n in 0..count {
        last = Some(store.submit(&put(n), NO_SYNC).unwrap());
    }
    let last = last.unwrap().vlsn();
    store.wait_applied(last, PATIENCE).unwrap();
    assert!(store.node().wait_durable(last, PATIENCE));
}

/// A store whose state was lost replays its log: what a replica's applier does, from the log's files
/// into the tree on disk.
fn replay(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), ENTRIES);
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(ENTRIES)).sample_size(10);
    group.bench_function("single_puts_100B", |b| {
        b.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                std::fs::remove_dir_all(dir.path().join("state")).unwrap();
                let began = Instant::now();
                let store = open(dir.path());
                let last = store.node().log().positions().last;
                store.wait_applied(last, PATIENCE).unwrap();
                spent += began.elapsed();
            }
            spent
        });
    });
    group.finish();
}

/// One thread keeps 1,024 commits in flight on a group of one.
fn commits(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut group = c.benchmark_group("commit");
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    for (name, durability) in [("no_sync", NO_SYNC), ("sync", Durability::LOCAL)] {
        group.bench_function(format!("{name}_h1024_100B"), |b| {
            let mut pending = std::collections::VecDeque::with_capacity(IN_FLIGHT);
            b.iter(|| {
                n += 1;
                pending.push_back(store.submit(&put(n), durability).unwrap());
                if pending.len() == IN_FLIGHT {
                    pending.pop_front().unwrap().wait().unwrap();
                }
            });
            for commit in pending {
                commit.wait().unwrap();
            }
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fill(&store, 200_000);
    let mut group = c.benchmark_group("read");
    let mut n = 0u64;
    group.throughput(Throughput::Elements(1));
    group.bench_function("get", |b| {
        b.iter(|| {
            n = (n + 7919) % 200_000;
            black_box(store.get(&key(n)).unwrap().unwrap())
        });
    });
    group.bench_function("transaction_get_put", |b| {
        b.iter(|| {
            n = (n + 7919) % 200_000;
            let mut txn = store.begin().unwrap();
            black_box(txn.get(&key(n)).unwrap());
            txn.put(&key(n), &[8; 100]).unwrap();
            txn.commit(NO_SYNC).unwrap()
        });
    });
    group.throughput(Throughput::Elements(200_000));
    group.sample_size(10).bench_function("scan", |b| {
        b.iter(|| store.snapshot().unwrap().range::<&[u8]>(..).unwrap().count());
    });
    group.finish();
}

criterion_group!(benches, replay, commits, reads);
criterion_main!(benches);
