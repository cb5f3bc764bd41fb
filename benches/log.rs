//! Benchmarks of the log alone: append, group commit, sequential read, lookup, recovery.
//!
//! `cargo bench --bench log [-- FILTER]`. Files lie in the system's temporary directory (`TMPDIR`).
//! After each group follows the most memory that it used. The log beside bare loops and another log,
//! in one run and with ratios: `benches/peers`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use criterion::{
    Bencher, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use noxu_log::env::{Env, EnvFile, MemoryEnv, OpenMode, RealEnv};
use noxu_log::{
    DEFAULT_SEGMENT_BYTES, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, MarkPolicy,
    NewEntry,
};
use noxu_util::{GroupId, NULL_VLSN, Term, Vlsn};

const PUT: EntryKind = EntryKind(16);
const TERM: Term = Term::new(1);
/// Bytes after which a bench's log is emptied, outside the measured time.
const KEEP_BYTES: u64 = 1 << 30;
/// The same of a log in memory.
const KEEP_IN_MEMORY_BYTES: u64 = 256 << 20;
/// Entries that one thread has on their way where it does not wait for each.
const IN_FLIGHT: u64 = 1024;

/// A log on real files, or in memory, emptied from time to time.
struct Bench {
    log: Log,
    dir: PathBuf,
    on_disk: Option<tempfile::TempDir>,
    appended: AtomicU64,
}

impl Bench {
    fn on_disk(tail_mark: MarkPolicy) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().to_owned();
        Self::open(Arc::new(RealEnv), path, Some(dir), tail_mark)
    }

    fn in_memory() -> Self {
        Self::open(Arc::new(MemoryEnv::default()), "/bench".into(), None, MarkPolicy::Strict)
    }

    fn open(
        env: Arc<dyn Env>,
        dir: PathBuf,
        on_disk: Option<tempfile::TempDir>,
        tail_mark: MarkPolicy,
    ) -> Self {
        let config = LogConfig { tail_mark, ..LogConfig::default() };
        let (log, _) = Log::open(env, &dir, config).expect("the log opens");
        log.found(GroupIdentity {
            id: GroupId::random(),
            name: "bench".parse().expect("a name"),
            segment_bytes: DEFAULT_SEGMENT_BYTES,
        })
        .expect("founded");
        if on_disk.is_some() {
            log.fill_ahead().expect("filled");
        }
        Self { log, dir, on_disk, appended: AtomicU64::new(0) }
    }

    /// Drops the log's front if it has grown too long. Not to be timed.
    fn empty(&self, bytes: u64) {
        let keep = if self.on_disk.is_some() { KEEP_BYTES } else { KEEP_IN_MEMORY_BYTES };
        if self.appended.fetch_add(bytes, Ordering::Relaxed) + bytes < keep {
            return;
        }
        self.appended.store(0, Ordering::Relaxed);
        let last = self.log.sync_now().expect("synced");
        self.log.seal_through(last).expect("sealed");
        self.log.drop_front(last, |_| Vec::new()).expect("dropped");
    }
}

fn threads_do(threads: u64, iterations: u64, work: impl Fn(u64) + Sync) -> Duration {
    let each = iterations.div_ceil(threads);
    let begin = Instant::now();
    if threads == 1 {
        work(each);
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| work(each));
            }
        });
    }
    begin.elapsed()
}

/// Prints the most memory used since the last time, and begins to watch anew.
fn report_memory(group: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
        println!("{group}: peak memory {}\n", peak.trim());
        // Where the kernel does not let us, the next figure includes this one.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}

fn append_nosync(c: &mut Criterion) {
    let mut group = c.benchmark_group("append_nosync");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let shapes = [(100, 1), (100, 16), (100, 256), (1 << 10, 1), (64 << 10, 1)];
    for (bytes, batch) in shapes {
        for threads in [1, 8, 64] {
            let bench = Bench::on_disk(MarkPolicy::Strict);
            let body = vec![7; bytes];
            group.throughput(Throughput::Elements(batch as u64));
            let id =
                BenchmarkId::new(format!("{bytes}B_batch{batch}"), format!("{threads}threads"));
            group.bench_function(id, |b| {
                b.iter_custom(|iterations| {
                    let time = threads_do(threads, iterations, |each| {
                        for _ in 0..each {
                            bench.log.append(TERM, &batch_of(&body, batch)).expect("appended");
                        }
                    });
                    bench.empty(iterations * (batch * (bytes + 32)) as u64);
                    time
                });
            });
        }
    }
    group.finish();
    report_memory("append_nosync");
}

/// A batch of equal entries.
fn batch_of(body: &[u8], batch: usize) -> Vec<NewEntry<'_>> {
    (0..batch).map(|_| NewEntry::new(PUT, EntryFlags::COMMIT, body)).collect()
}

fn append_in_memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("append_nosync_memory_env");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for bytes in [100, 64 << 10] {
        let bench = Bench::in_memory();
        let body = vec![7; bytes];
        group.throughput(Throughput::Bytes(bytes as u64 + 32));
        group.bench_function(BenchmarkId::from_parameter(format!("{bytes}B")), |b| {
            b.iter_custom(|iterations| {
                let time = threads_do(1, iterations, |each| {
                    for _ in 0..each {
                        let entry = NewEntry::new(PUT, EntryFlags::COMMIT, &body);
                        bench.log.append(TERM, &[entry]).expect("appended");
                    }
                });
                bench.empty(iterations * (bytes as u64 + 32));
                time
            });
        });
    }
    group.finish();
    report_memory("append_nosync_memory_env");
}

fn append_sync(c: &mut Criterion) {
    let mut group = c.benchmark_group("append_sync");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(1));
    group.bench_function("bare_write_and_fdatasync_132B", |b| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = RealEnv.open(&dir.path().join("bare"), OpenMode::CreateNew).expect("created");
        file.allocate(64 << 20).expect("filled");
        file.sync_data().expect("synced");
        let body = [7; 132];
        let mut at = 0;
        b.iter(|| bare_commit(&*file, &body, &mut at));
    });
    for (tail_mark, bytes) in [
        (MarkPolicy::Strict, 100),
        (MarkPolicy::Lazy, 100),
        (MarkPolicy::Strict, 1 << 10),
        (MarkPolicy::Strict, 64 << 10),
    ] {
        for threads in [1, 8, 64] {
            let bench = Bench::on_disk(tail_mark);
            let body = vec![7; bytes];
            let id = BenchmarkId::new(format!("{bytes}B_{tail_mark}"), format!("{threads}blocked"));
            group.bench_function(id, |b| {
                b.iter_custom(|iterations| {
                    let time = threads_do(threads, iterations, |each| {
                        for _ in 0..each {
                            let entry = NewEntry::new(PUT, EntryFlags::COMMIT, &body);
                            let appended = bench.log.append(TERM, &[entry]).expect("appended");
                            bench.log.wait_durable(appended.last).expect("durable");
                        }
                    });
                    bench.empty(iterations * (bytes as u64 + 32));
                    time
                });
            });
        }
        if bytes == 100 {
            let id =
                BenchmarkId::new(format!("{bytes}B_{tail_mark}"), format!("{IN_FLIGHT}handles"));
            group
                .bench_function(id, append_with_handles(Bench::on_disk(tail_mark), vec![7; bytes]));
        }
    }
    group.finish();
    report_memory("append_sync");
}

/// One thread appends and asks for syncs, and waits only while [`IN_FLIGHT`] are not durable.
fn append_with_handles(bench: Bench, body: Vec<u8>) -> impl FnMut(&mut Bencher<'_>) {
    let durable: Arc<(Mutex<Vlsn>, Condvar)> = Arc::new((Mutex::new(NULL_VLSN), Condvar::new()));
    let told = Arc::clone(&durable);
    bench.log.on_durable(move |vlsn| {
        *told.0.lock().expect("no hook panics") = vlsn;
        told.1.notify_all();
    });
    move |b| {
        let wait_within = |last: Vlsn, most: u64| {
            let known = durable.0.lock().expect("no hook panics");
            let far = |durable: &mut Vlsn| last.sequence() - durable.sequence() >= most as i64;
            drop(durable.1.wait_while(known, far).expect("no hook panics"));
        };
        b.iter_custom(|iterations| {
            let begin = Instant::now();
            let mut last = NULL_VLSN;
            for _ in 0..iterations {
                let entry = NewEntry::new(PUT, EntryFlags::COMMIT, &body);
                last = bench.log.append(TERM, &[entry]).expect("appended").last;
                bench.log.request_sync();
                wait_within(last, IN_FLIGHT);
            }
            wait_within(last, 1);
            let time = begin.elapsed();
            bench.empty(iterations * (body.len() as u64 + 32));
            time
        });
    }
}

fn bare_commit(file: &dyn EnvFile, body: &[u8], at: &mut u64) {
    file.write_at(&[std::io::IoSlice::new(body)], *at).expect("written");
    file.sync_data().expect("synced");
    *at = (*at + body.len() as u64) % (60 << 20);
}

/// Appends `count` entries of `bytes` and reopens the log, so that its tail is empty.
fn filled(count: i64, bytes: usize) -> Bench {
    filled_with(count, bytes, true)
}

fn filled_with(count: i64, bytes: usize, sealed: bool) -> Bench {
    let bench = Bench::on_disk(MarkPolicy::Strict);
    let body = vec![7; bytes];
    for _ in 0..count / 256 {
        bench.log.append(TERM, &batch_of(&body, 256)).expect("appended");
    }
    let last = bench.log.sync_now().expect("synced");
    if sealed {
        bench.log.seal_through(last).expect("sealed");
    }
    bench.log.close().expect("closed");
    let Bench { log, dir, on_disk, .. } = bench;
    drop(log);
    let (log, _) = Log::open(Arc::new(RealEnv), &dir, LogConfig::default()).expect("reopened");
    Bench { log, dir, on_disk, appended: AtomicU64::new(0) }
}

fn bring_into_page_cache(dir: &Path) {
    for file in std::fs::read_dir(dir).expect("a directory") {
        let path = file.expect("a file").path();
        std::io::copy(&mut File::open(path).expect("opened"), &mut std::io::sink()).expect("read");
    }
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for (bytes, count) in [(100, 2_000_000), (1 << 10, 400_000)] {
        let bench = filled(count, bytes);
        let last = bench.log.positions().last;
        // The log itself keeps no copy of bulk in the page cache.
        bring_into_page_cache(&bench.dir.join("log"));
        group.throughput(Throughput::Bytes(last.sequence() as u64 * (bytes as u64 + 32)));
        group.bench_function(format!("sequential_verified_{bytes}B"), |b| {
            b.iter(|| {
                let mut next = Vlsn::new(1);
                while let Some(run) = bench.log.read(next, 1 << 20).expect("readable") {
                    next = run.last.next();
                }
                assert_eq!(next, last.next());
            });
        });
    }
    let bench = filled(2_000_000, 100);
    let last = bench.log.positions().last.sequence();
    let mut rng = fastrand::Rng::with_seed(1);
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup_in_files", |b| {
        b.iter(|| bench.log.header(Vlsn::new(rng.i64(1..=last))).expect("readable"));
    });
    let body = [7; 100];
    for _ in 0..200_000 / 256 {
        bench.log.append(TERM, &batch_of(&body, 256)).expect("appended");
    }
    let end = bench.log.positions().last.sequence();
    group.bench_function("lookup_in_tail", |b| {
        b.iter(|| bench.log.header(Vlsn::new(rng.i64(last + 1..=end))).expect("readable"));
    });
    group.finish();
    report_memory("read");
}

/// Opening a log: 1 and 4 GiB of sealed segments, of which only side files are read, and 1 GiB that
/// was never sealed, of which every entry is verified, on one thread and on two.
fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for (name, gib, sealed, threads) in [
        ("open_1GiB_sealed", 1, true, 1),
        ("open_4GiB_sealed", 4, true, 1),
        ("open_1GiB_unsealed_1_thread", 1, false, 1),
        ("open_1GiB_unsealed_2_threads", 1, false, 2),
    ] {
        let Bench { log, dir, on_disk, .. } = filled_with(gib << 20, (1 << 10) - 32, sealed);
        drop(log);
        let config = LogConfig { recovery_threads: threads, ..LogConfig::default() };
        let open = || Log::open(Arc::new(RealEnv), &dir, config.clone()).expect("reopened");
        let (log, report) = open();
        assert_eq!(log.positions().last, Vlsn::new(gib << 20));
        assert_eq!(report.scanned_segments > 1, !sealed, "{report:?}");
        drop(log);
        group.bench_function(name, |b| b.iter(open));
        drop(on_disk);
    }
    group.finish();
    report_memory("recovery");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = append_nosync, append_in_memory, append_sync, read, recovery
}
criterion_main!(benches);
