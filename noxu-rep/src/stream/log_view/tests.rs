//! Syncup between real logs in real files, over TCP.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use noxu_log::env::{Env, FaultEnv, RealEnv};
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, LogConfig, NewEntry};
use noxu_util::GroupId;

use super::*;
use crate::error::RepError;
use crate::net::channel::{Channel, LocalChannelPair};
use crate::net::tcp::{TcpChannel, TcpConfig};
use crate::stream::syncup_protocol::{
    SyncupOptions, SyncupOutcome, SyncupStats, feeder_syncup, feeder_syncup_handshake,
    replica_syncup,
};

/// A log of `common` shared entries and `own` ones of its own, the latter in term `term`.
fn build(
    env: &Arc<dyn Env>,
    dir: &Path,
    segment_bytes: u32,
    common: u32,
    own: u32,
    term: u32,
) -> Log {
    let config = LogConfig {
        prefill: false,
        tail_bytes: 1 << 20,
        sync_interval: Duration::from_hours(1),
        ..LogConfig::default()
    };
    let (log, _) = Log::open(Arc::clone(env), dir, config).unwrap();
    let id = GroupId::from_bytes([1; 16]);
    log.found(GroupIdentity { id, name: "orders".parse().unwrap(), segment_bytes }).unwrap();
    for n in 0..common + own {
        let (term, body) = if n < common { (1, [7; 100]) } else { (term, [term as u8; 100]) };
        let flags = if n % 2 == 0 { EntryFlags::COMMIT } else { EntryFlags::NONE };
        log.append(Term::new(term), &[NewEntry::new(EntryKind(16), flags, &body)]).unwrap();
    }
    log.sync_now().unwrap();
    log.seal_through(Vlsn::new(i64::from(common))).unwrap();
    log
}

fn over_tcp(replica: &Log, feeder: &Log) -> (SyncupOutcome, SyncupStats, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let near = TcpChannel::connect(&address, &TcpConfig::default()).unwrap();
    let far = TcpChannel::from_stream(listener.accept().unwrap().0, &TcpConfig::default()).unwrap();
    thread::scope(|scope| {
        let answering = scope.spawn(|| feeder_syncup_handshake(&far, &LogView::new(feeder)));
        let begin = Instant::now();
        let options = SyncupOptions::default();
        let (outcome, stats) = replica_syncup(&near, &LogView::new(replica), &options).unwrap();
        let elapsed = begin.elapsed();
        answering.join().unwrap().unwrap();
        (outcome, stats, elapsed)
    })
}

#[test]
fn logs_that_parted_a_hundred_thousand_entries_ago_find_their_matchpoint_at_once() {
    let env: Arc<dyn Env> = Arc::new(RealEnv);
    let dir = tempfile::tempdir().unwrap();
    for (own, replica_term, feeder_term) in
        [(1_000, 2, 3), (50_000, 2, 3), (100_000, 2, 3), (100_000, 1, 1)]
    {
        // In the last case the terms say nothing: both logs go on in term 1 with other bodies.
        let path = |which: &str| dir.path().join(format!("{which}-{own}-{replica_term}"));
        let replica = build(&env, &path("replica"), 4 << 20, 100_000, own, replica_term);
        let feeder = if feeder_term == 1 {
            let feeder = build(&env, &path("feeder"), 4 << 20, 100_000, 0, 1);
            for _ in 0..own {
                let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"another body");
                feeder.append(Term::new(1), &[entry]).unwrap();
            }
            feeder
        } else {
            build(&env, &path("feeder"), 4 << 20, 100_000, own + 500, feeder_term)
        };
        let (outcome, stats, elapsed) = over_tcp(&replica, &feeder);
        println!("{own} diverged, terms {replica_term} and {feeder_term}: {elapsed:?}, {stats:?}");
        let SyncupOutcome::Matchpoint { matchpoint_vlsn, .. } = outcome else { panic!() };
        assert_eq!(matchpoint_vlsn, Vlsn::new(99_999));
        assert!(stats.round_trips <= 4, "{stats:?}");
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    }
}

#[test]
fn a_log_without_entries_matches_at_its_anchor() {
    let env: Arc<dyn Env> = Arc::new(FaultEnv::new());
    let feeder = build(&env, Path::new("/feeder"), 4096, 200, 0, 1);
    let mut anchored = feeder.sealed_segments();
    let last = anchored.pop().unwrap().last;
    let (header, lsn) = feeder.header(last).unwrap().unwrap();
    let replica = build(&env, Path::new("/replica"), 4096, 0, 0, 1);
    replica
        .control()
        .update(|control| {
            control.anchor = noxu_log::Anchor {
                vlsn: last,
                lsn,
                term: header.term,
                fingerprint: header.fingerprint,
                next_lsn: noxu_util::Lsn::new(lsn.segment() + 1, 64),
                group_config: bytes::Bytes::new(),
            };
        })
        .unwrap();
    replica.close().unwrap();
    drop(replica);
    let (replica, _) = Log::open(
        Arc::clone(&env),
        Path::new("/replica"),
        LogConfig { prefill: false, ..LogConfig::default() },
    )
    .unwrap();
    assert!(replica.positions().is_empty());
    let (outcome, stats, _) = over_tcp(&replica, &feeder);
    let expected = SyncupOutcome::Matchpoint {
        matchpoint_vlsn: last,
        matchpoint_lsn: lsn.as_u64(),
        start_vlsn: last.next(),
    };
    assert_eq!((outcome, stats.round_trips), (expected, 1));
}

#[test]
fn an_entry_that_cannot_be_read_ends_the_syncup_without_a_decision() {
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    for damaged in ["/replica", "/feeder"] {
        let replica = build(&env, Path::new("/replica"), 16 << 10, 2_000, 8_000, 2);
        let feeder = build(&env, Path::new("/feeder"), 16 << 10, 2_000, 9_000, 3);
        // Rot in the segments around the place where the logs part, which only files hold now.
        for number in 10..40 {
            let path = log_dir(Path::new(damaged)).join(segment_name(number));
            for at in (64..16_000).step_by(40) {
                faulty.corrupt(&path, at, 0xff).unwrap();
            }
        }
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let options = SyncupOptions::default();
        let (asked, answered) = thread::scope(|scope| {
            let answering =
                scope.spawn(|| feeder_syncup(&channel_b, &LogView::new(&feeder), &options));
            let asked = replica_syncup(&channel_a, &LogView::new(&replica), &options);
            channel_a.close();
            (asked.map(|_| ()), answering.join().unwrap().map(|_| ()))
        });
        let blamed = if damaged == "/replica" { asked } else { answered };
        assert!(matches!(blamed, Err(RepError::Log(LogError::Corrupt { .. }))), "{blamed:?}");
        for path in ["/replica", "/feeder"] {
            env.remove_dir_all(Path::new(path)).ok();
        }
    }
}
