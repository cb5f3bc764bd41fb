//! A backlog of 3 million entries streams over TCP from one log in real files to another, in
//! bounded memory. A binary of its own, so that the memory counted is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use noxu_log::env::RealEnv;
use noxu_log::{EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_rep::StreamTiming;
use noxu_rep::clock::Clock;
use noxu_rep::core::feeder::{FeedLimit, Feeder};
use noxu_rep::net::channel::Channel;
use noxu_rep::net::tcp::{TcpChannel, TcpConfig};
use noxu_rep::stream::feeder::{FeederHost, FeederStream};
use noxu_rep::stream::replica::{ReplicaHost, ReplicaStream};
use noxu_rep::wire::election::LogEnd;
use noxu_rep::wire::message::{Ack, Era, Farewell, Leaving};
use noxu_util::{GroupId, NULL_VLSN, Term, Vlsn};
use parking_lot::Mutex;

const ENTRIES: usize = 3_000_000;
const BATCH: usize = 500;
const PEAK_RSS_BYTES: u64 = 256 << 20;
const TERM: Term = Term::new(1);
const ERA: Era = Era { epoch: 0, term: TERM };

#[derive(Default)]
struct Master {
    durable: AtomicI64,
    acks: AtomicUsize,
    closing: AtomicBool,
}

impl FeederHost for Master {
    fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.durable.load(Ordering::SeqCst))
    }

    fn wants_received(&self) -> bool {
        false
    }

    fn handle_ack(&self, ack: Ack) {
        self.durable.fetch_max(ack.durable.sequence(), Ordering::SeqCst);
        self.acks.fetch_add(1, Ordering::SeqCst);
    }

    fn closing(&self) -> Option<Farewell> {
        let closing = self.closing.load(Ordering::SeqCst);
        closing.then_some(Farewell { why: Leaving::Closing, successor: None })
    }
}

struct Follower;

impl ReplicaHost for Follower {
    fn handle_may_apply(&self, _: Vlsn) {}

    fn handle_dtvlsn(&self, _: Vlsn) {}

    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }

    fn handle_appended(&self, _: &EntryRun) {}

    fn handle_head_confirmed(&self, _: u64, _: LogEnd) {}
}

fn open(dir: &std::path::Path) -> Log {
    let config = LogConfig {
        tail_bytes: 8 << 20,
        max_unwritten_bytes: 16 << 20,
        prefill: false,
        ..LogConfig::default()
    };
    let (log, _) = Log::open(Arc::new(RealEnv::new()), dir, config).unwrap();
    log.found(GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: "orders".parse().unwrap(),
        segment_bytes: 64 << 20,
    })
    .unwrap();
    log
}

#[test]
fn three_million_entries_stream_over_tcp_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (open(&dir.path().join("a")), open(&dir.path().join("b")));
    let body = [0x5a; 100];
    let batch: Vec<_> =
        (0..BATCH).map(|_| NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)).collect();
    for _ in 0..ENTRIES / BATCH {
        from.append(TERM, &batch).unwrap();
    }
    from.sync_now().unwrap();
    let last = from.positions().last;
    assert_eq!(last, Vlsn::new(ENTRIES as i64));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = TcpConfig::default();
    let ours = Arc::new(TcpChannel::connect(&address, &config).unwrap());
    let theirs: Arc<dyn Channel> =
        Arc::new(TcpChannel::from_stream(listener.accept().unwrap().0, &config).unwrap());
    let timing =
        StreamTiming { heartbeat: Duration::from_millis(100), silence: Duration::from_secs(20) };
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, timing, FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), Vlsn::new(1));
    let core = Arc::new(Mutex::new(core));
    let master = Arc::new(Master::default());
    let feeder =
        FeederStream::new(from.clone(), ours, Arc::clone(&master) as _, clock.clone(), core);
    let host = Arc::new(Follower);
    let replica =
        Arc::new(ReplicaStream::new(ERA, timing, to.clone(), theirs, host, clock, NULL_VLSN));
    let hooked = Arc::downgrade(&replica);
    to.on_durable(move |durable| {
        if let Some(replica) = hooked.upgrade() {
            let _ = replica.handle_durable(durable);
        }
    });
    let started = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(|| feeder.run_sender());
        let acks = scope.spawn(|| feeder.run_ack_reader());
        let following = scope.spawn(|| replica.run());
        while master.dtvlsn() < last {
            assert!(!sending.is_finished() && !following.is_finished(), "a side gave up");
            assert!(started.elapsed() < Duration::from_mins(2), "{} arrived", master.dtvlsn());
            thread::sleep(Duration::from_millis(20));
        }
        let took = started.elapsed();
        println!(
            "{ENTRIES} entries in {took:?}: {:.1} M entries/s, {} acks",
            ENTRIES as f64 / took.as_secs_f64() / 1e6,
            master.acks.load(Ordering::SeqCst)
        );
        master.closing.store(true, Ordering::SeqCst);
        from.wake_readers();
        sending.join().unwrap().unwrap();
        following.join().unwrap().unwrap();
        let _ = acks.join().unwrap(); // closed by the sender under its hands
    });
    // Chained fingerprints: equal at the end means equal all the way.
    let (a, b) = (from.positions(), to.positions());
    assert_eq!((a.last, a.last_lsn), (b.last, b.last_lsn));
    assert_eq!(a.last_fingerprint, b.last_fingerprint);
    assert_eq!(b.durable, last);

    let peak = peak_rss_bytes();
    println!("peak RSS {} MiB", peak >> 20);
    assert!(peak < PEAK_RSS_BYTES, "peak RSS of {peak} bytes");
}

/// Most memory this process ever had, as the kernel counts it.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}
