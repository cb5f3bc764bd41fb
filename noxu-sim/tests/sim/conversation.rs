//! Real conversations between real logs over simulated channels: blocking code in tasks, the same
//! run each time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::FaultEnv;
use noxu_log::{Background, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_rep::error::Result;
use noxu_rep::stream::log_view::LogView;
use noxu_rep::stream::syncup::{Matchpoint, find_matchpoint};
use noxu_rep::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, feeder_syncup, replica_syncup,
};
use noxu_rep::wire::handshake::{
    Capabilities, FeederSide, Hello, Mastership, NodeKind, VersionRange, handshake_as_feeder,
    handshake_as_replica,
};
use noxu_sim::clock::MachineClock;
use noxu_sim::dice::{Dice, Draw};
use noxu_sim::event::Host;
use noxu_sim::network::News;
use noxu_sim::network::{NetPlan, Network};
use noxu_sim::stage::{Happened, Stage};
use noxu_util::{GroupId, Incarnation, Name, Term, Vlsn};
use parking_lot::Mutex;

const REPLICA: Host = Host(0);
const FEEDER: Host = Host(1);
const KIND: EntryKind = EntryKind(16);

fn group() -> GroupIdentity {
    let name = "g".parse().unwrap();
    GroupIdentity { id: GroupId::from_bytes([7; 16]), name, segment_bytes: 4 << 10 }
}

fn open(env: &FaultEnv) -> Log {
    let config = LogConfig {
        background: Background::Caller,
        prefill: false,
        scrub: None,
        ..LogConfig::default()
    };
    let (log, _) = Log::open(Arc::new(env.clone()), Path::new("/node"), config).unwrap();
    log.found(group()).unwrap();
    log
}

fn append(log: &Log, term: u32, what: &str, count: u64) {
    for number in 0..count {
        let body = format!("{what} {number} {}", "x".repeat(number as usize % 100));
        let entry = NewEntry::new(KIND, EntryFlags::COMMIT, body.as_bytes());
        log.append(Term::new(term), &[entry]).unwrap();
    }
    log.sync_now().unwrap();
}

/// Two logs that share a beginning and then part.
fn logs(seed: u64) -> [Log; 2] {
    let mut rng = Dice::new(seed).stream("logs");
    let (shared, parted, ahead) = (rng.spread(1, 300), rng.u64(..40), rng.u64(1..200));
    [(1, parted, "replica"), (2, ahead, "feeder")].map(|(term, more, what)| {
        let env = FaultEnv::new();
        env.keep_trace(false);
        env.seed_entropy(seed ^ u64::from(term));
        let log = open(&env);
        append(&log, 1, "shared", shared);
        append(&log, term, what, more);
        log
    })
}

fn name(host: Host) -> Name {
    host.to_string().parse().unwrap()
}

fn hello() -> Hello {
    Hello {
        versions: VersionRange::SPOKEN,
        group: Some(group().id),
        group_name: Some(group().name),
        node: name(REPLICA),
        address: Network::address(REPLICA),
        incarnation: Incarnation::from_u64(1),
        kind: NodeKind::Electable,
        log_format: 1,
        segment_bytes: Some(group().segment_bytes),
        term: Term::new(1),
        capabilities: Capabilities::OURS,
        wall_clock_ms: 0,
        epoch: 0,
        priority: 1,
        full: false,
        uncertain: false,
    }
}

fn follow(network: &Network, log: &Log) -> Result<SyncupOutcome> {
    let channel = network.dial(REPLICA, FEEDER, "FEEDER", Duration::from_secs(1))?;
    let welcome = handshake_as_replica(&channel, &hello())?;
    assert_eq!(welcome.node, name(FEEDER));
    let (outcome, stats) = replica_syncup(&channel, &LogView::new(log), &SyncupOptions::default())?;
    assert!(stats.round_trips <= 4, "{stats:?}");
    Ok(outcome)
}

fn feed(channel: &dyn noxu_rep::net::channel::Channel, log: &Log) -> Result<Option<Vlsn>> {
    let (group, members) = (group(), [name(REPLICA), name(FEEDER)]);
    let (hello, _) = handshake_as_feeder(channel, &|hello| {
        FeederSide {
            versions: VersionRange::SPOKEN,
            group: group.id,
            group_name: &group.name,
            segment_bytes: group.segment_bytes,
            log_format: 1,
            node: &name(FEEDER),
            incarnation: Incarnation::from_u64(2),
            epoch: 0,
            term: Term::new(2),
            capabilities: Capabilities::OURS,
            wall_clock_ms: 0,
            members: Some(&members),
            bound: &|_| None,
            connected: &|_| None,
            mastership: Mastership::Established,
        }
        .check(hello)
    })?;
    assert_eq!(hello.node, name(REPLICA));
    feeder_syncup(channel, &LogView::new(log), &SyncupOptions::default())
}

/// What a run came to: what the replica found, where the feeder begins, the hash of the trace.
type Outcome = (Result<SyncupOutcome>, Option<Result<Option<Vlsn>>>, u64);

/// Runs one conversation to its end; the connection is reset after so many events.
fn run(seed: u64, logs: &[Log; 2], reset_after: usize) -> Outcome {
    let plan = NetPlan { jitter: Duration::from_millis(3), ..NetPlan::default() };
    let clocks = (0..2).map(|_| MachineClock::new(0, 0)).collect();
    let mut stage = Stage::new(Dice::new(seed), plan, clocks);
    let found = Arc::new(Mutex::new(None));
    let fed = Arc::new(Mutex::new(None));
    let (network, log, slot) = (stage.network.clone(), logs[0].clone(), Arc::clone(&found));
    stage.begin_task(REPLICA, move || *slot.lock() = Some(follow(&network, &log)));
    let mut events = 0;
    while let Some(happened) = stage.step() {
        if let Happened::News(News::Knock { end, service, .. }) = happened {
            assert_eq!(service, "FEEDER");
            let channel = stage.network.accept(end);
            let (log, slot) = (logs[1].clone(), Arc::clone(&fed));
            stage.begin_task(FEEDER, move || *slot.lock() = Some(feed(&channel, &log)));
        }
        events += 1;
        if events == reset_after {
            stage.network.reset(REPLICA, FEEDER);
        }
    }
    assert!(stage.tasks.is_empty(), "both conversations have ended");
    let found = found.lock().take().expect("the replica's ended");
    let fed = fed.lock().take();
    (found, fed, stage.trace.hash())
}

#[test]
fn a_handshake_and_a_search_run_the_same_way_twice_and_find_what_a_look_at_both_logs_finds() {
    let mut hashes = Vec::new();
    for seed in 0..12 {
        let logs = logs(seed);
        let (found, fed, hash) = run(seed, &logs, usize::MAX);
        let [replica, feeder] = logs.each_ref().map(LogView::new);
        match (found.unwrap(), find_matchpoint(&replica, &feeder)) {
            (SyncupOutcome::Matchpoint { matchpoint_vlsn, start_vlsn, .. }, known) => {
                let Matchpoint::Found { vlsn, .. } = known else { panic!("{known:?}") };
                assert_eq!(matchpoint_vlsn, vlsn, "seed {seed}");
                assert_eq!(fed.unwrap().unwrap(), Some(start_vlsn));
            }
            (other @ SyncupOutcome::NeedsRestore { .. }, _) => panic!("{other:?}"),
        }
        let (_, _, again) = run(seed, &logs, usize::MAX);
        assert_eq!(hash, again, "seed {seed} ran another way the second time");
        hashes.push(hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 12, "each seed runs its own way");
}

#[test]
fn a_reset_at_any_moment_ends_both_conversations_with_an_error_and_the_same_way_twice() {
    let logs = logs(3);
    let mut cut = 0;
    for at in 2..40 {
        let (found, fed, hash) = run(3, &logs, at);
        assert_eq!(hash, run(3, &logs, at).2, "reset after {at} events");
        cut += usize::from(found.is_err());
        assert!(found.is_ok() || fed.is_none_or(|fed| fed.is_err()), "reset after {at} events");
    }
    assert!(cut > 3, "{cut}");
}
