//! Benchmarks of replication: streams, syncup, majority commits, restore. All nodes share this process, so
//! that `perf` sees all of them; `noxu bench` measures the same with a process for each.
//!
//! `cargo bench --bench replication`. Files lie in the system's temporary directory (`TMPDIR`).

use std::time::{Duration, Instant};

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use noxu::workload::clients::{Clients, load, put_each};
use noxu::workload::diverged::DivergedLogs;
use noxu::workload::stream::{ChannelPair, local_pair, stream_log, tcp_pair};
use noxu::workload::{TERM, fill, found_log, new_group, reopen_log};
use noxu_kv::{Config, Store};
use noxu_rep::{Durability, GroupChoice, NodeConfig, Role};
use noxu_util::{NULL_VLSN, Name};

/// Bytes that a stream ships: more than the log's tail in memory.
const STREAM_BYTES: u64 = 128 << 20;

fn tcp() -> ChannelPair {
    tcp_pair().expect("a connection")
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream_log_to_log");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let channels = [("local", local_pair as fn() -> ChannelPair), ("tcp", tcp)];
    for (name, bytes) in [("100B", 100), ("1KiB", 1 << 10)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity = new_group();
        let source_dir = dir.path().join("source");
        let source = found_log(&source_dir, &identity).expect("founded");
        let count = STREAM_BYTES / (bytes as u64 + 32);
        fill(&source, TERM, count, bytes).expect("filled");
        source.close().expect("closed");
        drop(source);
        let source = reopen_log(&source_dir).expect("reopened");
        group.throughput(Throughput::Elements(count));
        for (channel, pair) in channels {
            group.bench_function(BenchmarkId::new(channel, name), |b| {
                b.iter_custom(|iterations| {
                    let mut time = Duration::ZERO;
                    for _ in 0..iterations {
                        let target_dir = tempfile::tempdir().expect("a temporary directory");
                        let target = found_log(target_dir.path(), &identity).expect("founded");
                        time += stream_log(&source, &target, pair()).expect("streamed");
                        target.close().expect("closed");
                    }
                    time
                });
            });
        }
    }
    group.finish();
}

fn syncup(c: &mut Criterion) {
    let mut group = c.benchmark_group("syncup_after_reopening");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for depth in [1_000, 10_000, 100_000] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut logs = DivergedLogs::create(dir.path(), depth).expect("diverged");
        group.bench_function(BenchmarkId::from_parameter(depth), |b| {
            b.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    logs.reopen_replica().expect("reopened");
                    let (took, stats) = logs.syncup(tcp()).expect("a matchpoint");
                    assert!(stats.round_trips <= 4, "{stats:?}");
                    time += took;
                }
                time
            });
        });
    }
    group.finish();
}

/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Three stores in this process that replicate over TCP; the first is the master.
struct Group {
    master: Store,
    replicas: Vec<Store>,
    _dir: tempfile::TempDir,
}

impl Group {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let members: Vec<Name> =
            ["n1", "n2", "n3"].iter().map(|name| name.parse().expect("a name")).collect();
        let open = |name: &Name, set: &dyn Fn(&mut NodeConfig)| {
            let mut config = NodeConfig::new(name.clone(), dir.path().join(name.as_str()));
            set(&mut config);
            Store::open(Config::new(config)).expect("a store")
        };
        let master = open(&members[0], &|config| {
            config.priority = 9;
            config.group = GroupChoice::create("bench".parse().expect("a name"), members.clone());
        });
        let address = master.node().local_addr().to_string();
        let replicas = members[1..]
            .iter()
            .map(|name| open(name, &|config| config.peers = vec![address.clone()]))
            .collect();
        assert!(master.node().wait_role(Role::Master, PATIENCE), "no master");
        master.put(b"first", b"", Durability::ALL).expect("a commit of all");
        Self { master, replicas, _dir: dir }
    }
}

fn majority_commits(c: &mut Criterion) {
    let policies = [("sync", Durability::MAJORITY), ("nosync", Durability::NO_SYNC_MAJORITY)];
    for (name, durability) in policies {
        let mut group = c.benchmark_group(format!("majority_commits_{name}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.throughput(Throughput::Elements(1));
        for clients in Clients::ALL {
            let nodes = Group::open();
            group.bench_function(clients.to_string(), |b| {
                b.iter_custom(|iterations| {
                    let begin = Instant::now();
                    match clients {
                        Clients::Threads(threads) => {
                            put_each(&nodes.master, iterations, threads, durability)
                        }
                        Clients::Handles(handles) => {
                            load(&nodes.master, iterations, handles, durability)
                        }
                    }
                    .expect("committed");
                    begin.elapsed()
                });
            });
        }
        group.finish();
    }
}

/// Values of the state that is restored, and how many.
const RESTORED_VALUE_BYTES: usize = 64 << 10;
const RESTORED_VALUES: u32 = 4096;

/// A wiped replica of a master whose log has lost its front, from opening it until all that the master
/// had then can be read from it.
fn restore(c: &mut Criterion) {
    let mut nodes = Group::open();
    let mut value = vec![0; RESTORED_VALUE_BYTES];
    fastrand::Rng::with_seed(1).fill(&mut value);
    for number in 0..RESTORED_VALUES {
        value[..4].copy_from_slice(&number.to_le_bytes());
        nodes.master.put(&number.to_be_bytes(), &value, Durability::MAJORITY).expect("committed");
    }
    nodes.master.checkpoint().expect("a checkpoint");
    nodes.master.node().drop_front(NULL_VLSN).expect("dropped");
    nodes.replicas.pop().expect("n3").close().expect("closed");
    let address = nodes.master.node().local_addr().to_string();
    let last = nodes.master.node().log().positions().last;
    let restored = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = NodeConfig::new("n3".parse().expect("a name"), dir.path());
        config.peers = vec![address.clone()];
        let begin = Instant::now();
        let store = Store::open(Config::new(config)).expect("a store");
        store.wait_applied(last, PATIENCE).expect("restored");
        let time = begin.elapsed();
        let status = store.node().status();
        assert!(status.last_restore.is_some(), "n3 came back without a restore");
        store.close().expect("closed");
        (time, status.restore.map_or(0, |progress| progress.bytes_fetched))
    };
    let mut group = c.benchmark_group("restore");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Bytes(restored().1));
    group.bench_function("wiped_replica", |b| {
        b.iter_custom(|iterations| (0..iterations).map(|_| restored().0).sum());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = streams, syncup, majority_commits, restore
}
criterion_main!(benches);
