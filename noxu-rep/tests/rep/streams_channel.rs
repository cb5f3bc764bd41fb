//! One stream over a channel: a feeder and a replica, or one of them and a peer that misbehaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use noxu_log::env::MemoryEnv;
use noxu_log::{EntryFlags, EntryRun, GroupIdentity, Log, LogConfig, LogError, NewEntry, Until};
use noxu_rep::clock::{Clock, ClockHand};
use noxu_rep::core::feeder::{FeedLimit, Feeder};
use noxu_rep::core::node::Ended;
use noxu_rep::core::replica::StreamFault;
use noxu_rep::net::channel::{Channel, LocalChannel, LocalChannelPair};
use noxu_rep::net::tcp::{TcpChannel, TcpConfig};
use noxu_rep::stream::feeder::{FeederHost, FeederStream, SendStep};
use noxu_rep::stream::replica::{Handled, ReplicaHost, ReplicaStream, ended};
use noxu_rep::wire::election::LogEnd;
use noxu_rep::wire::handshake::RejectReason;
use noxu_rep::wire::message::{Ack, Dtvlsn, Era, Farewell, Head, Leaving, Position, StreamMessage};
use noxu_rep::{RepError, Result, StreamTiming};
use noxu_util::{Fingerprint, GroupId, NULL_VLSN, Term, Vlsn};
use parking_lot::Mutex;

use crate::support::{KIND, PATIENCE, assert_same_logs, entry, eventually, name};

const TERM: Term = Term::new(1);
const ERA: Era = Era { epoch: 0, term: TERM };
const FAREWELL: Farewell = Farewell { why: Leaving::StepsDown, successor: None };

fn timing() -> StreamTiming {
    StreamTiming { heartbeat: Duration::from_millis(20), silence: Duration::from_secs(10) }
}

fn empty_log(dir: &str) -> Log {
    log_with(dir, LogConfig { prefill: false, ..LogConfig::default() })
}

fn log_with(dir: &str, config: LogConfig) -> Log {
    let (log, _) = Log::open(Arc::new(MemoryEnv::new()), dir.as_ref(), config).unwrap();
    log.found(GroupIdentity {
        id: GroupId::from_bytes([7; 16]),
        name: name("orders"),
        segment_bytes: 1 << 20,
    })
    .unwrap();
    log
}

fn fill(log: &Log, entries: usize) {
    for n in 0..entries {
        log.append(TERM, &[entry(n.to_string().as_bytes())]).unwrap();
    }
}

/// A master of its own: DTVLSN is what the one replica has durable.
#[derive(Default)]
struct Master {
    dtvlsn: AtomicI64,
    wants_received: AtomicBool,
    closing: Mutex<Option<Farewell>>,
    acks: Mutex<Vec<Ack>>,
}

impl FeederHost for Master {
    fn dtvlsn(&self) -> Vlsn {
        Vlsn::new(self.dtvlsn.load(Ordering::SeqCst))
    }

    fn wants_received(&self) -> bool {
        self.wants_received.load(Ordering::SeqCst)
    }

    fn handle_ack(&self, ack: Ack) {
        self.dtvlsn.fetch_max(ack.durable.sequence(), Ordering::SeqCst);
        self.acks.lock().push(ack);
    }

    fn closing(&self) -> Option<Farewell> {
        self.closing.lock().clone()
    }
}

#[derive(Default)]
struct Follower {
    limit: AtomicI64,
    confirmed: Mutex<Vec<(u64, LogEnd)>>,
}

impl ReplicaHost for Follower {
    fn handle_may_apply(&self, limit: Vlsn) {
        self.limit.fetch_max(limit.sequence(), Ordering::SeqCst);
    }

    fn handle_dtvlsn(&self, _: Vlsn) {}

    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }

    fn handle_appended(&self, _: &EntryRun) {}

    fn handle_head_confirmed(&self, nonce: u64, head: LogEnd) {
        self.confirmed.lock().push((nonce, head));
    }
}

fn replica(log: &Log, channel: Arc<dyn Channel>, host: &Arc<Follower>) -> ReplicaStream {
    replica_at(log, channel, host, Clock::start())
}

fn replica_at(
    log: &Log,
    channel: Arc<dyn Channel>,
    host: &Arc<Follower>,
    clock: Clock,
) -> ReplicaStream {
    let host = Arc::clone(host);
    ReplicaStream::new(ERA, timing(), log.clone(), channel, host, clock, NULL_VLSN)
}

/// Streams `from` into `to` while `writes` runs, until `to` holds all of `from` durably and both
/// sides have ended in good order.
fn stream(
    from: &Log,
    to: &Log,
    channels: (Arc<dyn Channel>, Arc<dyn Channel>),
    writes: impl FnOnce(&Master),
) -> Arc<Master> {
    let (ours, theirs) = channels;
    let master = Arc::new(Master::default());
    let follower = Arc::new(Follower::default());
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, timing(), FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), to.positions().last.next());
    let core = Arc::new(Mutex::new(core));
    let feeder = FeederStream::new(from.clone(), ours, Arc::clone(&master) as _, clock, core);
    let receiving = Arc::new(replica(to, theirs, &follower));
    let hook = Arc::downgrade(&receiving);
    to.on_durable(move |durable| {
        if let Some(stream) = hook.upgrade() {
            let _ = stream.handle_durable(durable);
        }
    });
    thread::scope(|scope| {
        let sending = scope.spawn(|| feeder.run_sender());
        let acks = scope.spawn(|| feeder.run_ack_reader());
        let following = scope.spawn(|| receiving.run());
        writes(&master);
        let last = from.positions().last;
        eventually("everything is durable", || master.dtvlsn() >= last);
        eventually("the replica may apply it", || {
            follower.limit.load(Ordering::SeqCst) >= last.sequence()
        });
        *master.closing.lock() = Some(FAREWELL);
        from.wake_readers();
        sending.join().unwrap().unwrap();
        assert_eq!(following.join().unwrap().unwrap(), Some(FAREWELL));
        let _ = acks.join().unwrap(); // closed by the sender under its hands
    });
    master
}

fn local_pair() -> (Arc<dyn Channel>, Arc<dyn Channel>) {
    let pair = LocalChannelPair::new();
    (Arc::new(pair.channel_a), Arc::new(pair.channel_b))
}

fn tcp_pair() -> (Arc<dyn Channel>, Arc<dyn Channel>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = TcpConfig::default();
    let ours = TcpChannel::connect(&address, &config).unwrap();
    let theirs = TcpChannel::from_stream(listener.accept().unwrap().0, &config).unwrap();
    (Arc::new(ours), Arc::new(theirs))
}

#[test]
fn a_backlog_streams_into_an_equal_log_over_both_channels() {
    for channels in [local_pair(), tcp_pair()] {
        let (from, to) = (empty_log("a"), empty_log("b"));
        fill(&from, 20_000);
        let master = stream(&from, &to, channels, |_| {});
        assert_same_logs(&from, &to);
        // Acknowledgements are cumulative: far fewer than entries, never falling.
        let acks = master.acks.lock();
        assert!(acks.len() < 2_000, "{} acks for 20,000 entries", acks.len());
        assert!(acks.windows(2).all(|w| w[0].durable <= w[1].durable));
        assert!(acks.iter().all(|ack| ack.durable <= ack.received));
    }
}

#[test]
fn vlsn_order_is_log_order_with_many_committers_and_every_entry_arrives() {
    for writers in [1, 8, 64] {
        for channels in [local_pair(), tcp_pair()] {
            let (from, to) = (empty_log("a"), empty_log("b"));
            stream(&from, &to, channels, |_| {
                thread::scope(|scope| {
                    for writer in 0..writers {
                        let from = &from;
                        scope.spawn(move || {
                            for n in 0..2_000 / writers {
                                let body = format!("{writer} {n}");
                                from.append(TERM, &[entry(body.as_bytes())]).unwrap();
                            }
                        });
                    }
                });
            });
            assert_same_logs(&from, &to);
            let mut next = vec![0; writers];
            let mut at = NULL_VLSN.next();
            while let Some(run) = to.read(at, 1 << 20).unwrap() {
                for entry in run.entries() {
                    let text = std::str::from_utf8(entry.body).unwrap();
                    let (writer, n) = text.split_once(' ').unwrap();
                    let writer: usize = writer.parse().unwrap();
                    assert_eq!(n.parse::<usize>().unwrap(), next[writer], "of writer {writer}");
                    next[writer] += 1;
                }
                at = run.last.next();
            }
            assert!(next.iter().all(|n| *n == 2_000 / writers), "{next:?}");
        }
    }
}

#[test]
fn entries_of_every_size_arrive_whole() {
    for channels in [local_pair(), tcp_pair()] {
        let (from, to) = (empty_log("a"), empty_log("b"));
        let frame = 1 << 20;
        let sizes = [0, 1, 100, 65_536, frame - 77, frame - 76, frame - 75, frame, 3 * frame + 5];
        stream(&from, &to, channels, |_| {
            for (n, size) in sizes.into_iter().enumerate() {
                let body = vec![n as u8; size];
                from.append(TERM, &[entry(&body), entry(b"small")]).unwrap();
            }
        });
        assert_same_logs(&from, &to);
    }
}

#[test]
fn a_lone_entry_is_acknowledged_and_may_be_applied_without_any_timer() {
    for channels in [local_pair(), tcp_pair()] {
        let (from, to) = (empty_log("a"), empty_log("b"));
        // With heartbeats of 20 ms, waiting for one per entry would take 4 s.
        let started = Instant::now();
        stream(&from, &to, channels, |master| {
            for n in 0..200 {
                let appended = from.append(TERM, &[entry(&[n])]).unwrap();
                let waiting = Instant::now();
                while master.dtvlsn() < appended.last {
                    assert!(waiting.elapsed() < PATIENCE);
                    thread::yield_now();
                }
            }
        });
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

#[test]
fn received_acks_come_only_when_somebody_waits_for_them() {
    let (from, to) = (empty_log("a"), empty_log("b"));
    let master = stream(&from, &to, local_pair(), |_| fill(&from, 500));
    assert!(master.acks.lock().iter().all(|ack| ack.durable == ack.received));
    let (from, to) = (empty_log("a"), empty_log("b"));
    let master = stream(&from, &to, local_pair(), |master| {
        master.wants_received.store(true, Ordering::SeqCst);
        fill(&from, 500);
        eventually("a received ack", || {
            master.acks.lock().iter().any(|ack| ack.received > ack.durable)
        });
    });
    assert!(master.dtvlsn() >= from.positions().last);
}

#[test]
fn a_tail_that_holds_little_is_read_from_files() {
    let small = LogConfig {
        prefill: false,
        tail_bytes: 64 << 10,
        write_ahead_bytes: 16 << 10,
        ..LogConfig::default()
    };
    let (from, to) = (log_with("a", small), empty_log("b"));
    let body = [3u8; 1000];
    for _ in 0..5_000 {
        from.append(TERM, &[entry(&body)]).unwrap();
    }
    from.sync_now().unwrap();
    stream(&from, &to, tcp_pair(), |_| fill(&from, 2_000));
    assert_same_logs(&from, &to);
}

#[test]
fn steps_alone_bring_a_replica_level_with_no_thread() {
    let (ours, theirs) = local_pair();
    let (from, to) = (empty_log("a"), empty_log("b"));
    fill(&from, 10);
    let master = Arc::new(Master::default());
    let follower = Arc::new(Follower::default());
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, timing(), FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), Vlsn::new(1));
    let (channel, host) = (Arc::clone(&ours), Arc::clone(&master));
    let core = Arc::new(Mutex::new(core));
    let feeder = FeederStream::new(from.clone(), channel, host, clock.clone(), core);
    let receiving = replica(&to, Arc::clone(&theirs), &follower);

    receiving.begin().unwrap();
    assert!(feeder.handle_frame(&ours.receive(PATIENCE).unwrap().unwrap()).unwrap());
    assert_eq!(feeder.send_some().unwrap(), SendStep::Sent);
    // The replica owes an answer, so what is appended now gathers until somebody asks again.
    fill(&from, 1);
    let SendStep::Wait { until, due, .. } = feeder.send_some().unwrap() else {
        panic!("sent one entry although an answer is due")
    };
    assert!(matches!(until, Until::CueOrBeyond(_)), "{until:?}");
    assert!(due <= clock.now() + timing().heartbeat);
    assert_eq!(feeder.send_some().unwrap(), SendStep::Sent);
    for _ in 0..2 {
        let frame = theirs.receive(PATIENCE).unwrap().unwrap();
        assert_eq!(receiving.handle_frame(&frame.into()).unwrap(), Handled::Frame);
    }
    assert!(receiving.is_unsynced() && receiving.handle_timeout().unwrap().is_some());
    receiving.sync().unwrap();
    assert!(!receiving.is_unsynced());
    assert!(feeder.handle_frame(&ours.receive(PATIENCE).unwrap().unwrap()).unwrap());
    assert_eq!(master.dtvlsn(), from.positions().last);
    // DTVLSN travels alone, as nothing else is to come.
    assert_eq!(feeder.send_some().unwrap(), SendStep::Sent);
    let frame = theirs.receive(PATIENCE).unwrap().unwrap();
    receiving.handle_frame(&frame.into()).unwrap();
    assert_eq!(follower.limit.load(Ordering::SeqCst), 11);
    assert_same_logs(&from, &to);

    *master.closing.lock() = Some(FAREWELL);
    assert_eq!(feeder.send_some().unwrap(), SendStep::Ended);
    let frame = theirs.receive(PATIENCE).unwrap().unwrap();
    assert_eq!(receiving.handle_frame(&frame.into()).unwrap(), Handled::Goodbye(FAREWELL));
    receiving.handle_closed();
    assert_eq!(receiving.handle_timeout().unwrap(), None);
}

/// A stream by steps: whoever tests it is every thread, and time.
struct Steps {
    hand: ClockHand,
    from: Log,
    to: Log,
    master: Arc<Master>,
    follower: Arc<Follower>,
    feeder: FeederStream,
    replica: ReplicaStream,
    feeder_end: Arc<dyn Channel>,
    replica_end: Arc<dyn Channel>,
}

impl Steps {
    /// `from` fed to `to`, whose first acknowledgement has arrived.
    fn new(from: Log, to: Log, limit: FeedLimit) -> Self {
        let (feeder_end, replica_end) = local_pair();
        let (master, follower) = (Arc::new(Master::default()), Arc::new(Follower::default()));
        let (clock, hand) = Clock::manual();
        let mut core = Feeder::new(ERA, timing(), limit);
        core.handle_welcomed();
        core.handle_synced_up(clock.now(), to.positions().last.next());
        let (channel, host) = (Arc::clone(&feeder_end), Arc::clone(&master));
        let core = Arc::new(Mutex::new(core));
        let feeder = FeederStream::new(from.clone(), channel, host, clock.clone(), core);
        let replica = replica_at(&to, Arc::clone(&replica_end), &follower, clock);
        replica.begin().unwrap();
        let steps =
            Self { hand, from, to, master, follower, feeder, replica, feeder_end, replica_end };
        steps.answer();
        steps
    }

    /// The feeder sends one thing and the replica takes it.
    fn send(&self) {
        assert_eq!(self.feeder.send_some().unwrap(), SendStep::Sent);
        let frame = self.replica_end.receive(PATIENCE).unwrap().unwrap();
        assert_eq!(self.replica.handle_frame(&frame.into()).unwrap(), Handled::Frame);
    }

    /// The feeder takes what the replica said.
    fn answer(&self) {
        assert!(self.feeder.handle_frame(&self.said().unwrap()).unwrap());
    }

    /// What the replica acknowledged, received and durable.
    fn acked(&self) -> (i64, i64) {
        match StreamMessage::decode(&self.said().expect("an acknowledgement")).unwrap() {
            StreamMessage::Ack(ack) => (ack.received.sequence(), ack.durable.sequence()),
            other => panic!("{other:?}"),
        }
    }

    /// What the replica said, if it did.
    fn said(&self) -> Option<Vec<u8>> {
        self.feeder_end.receive(Duration::ZERO).unwrap()
    }

    fn waits(&self) -> bool {
        matches!(self.feeder.send_some().unwrap(), SendStep::Wait { .. })
    }
}

#[test]
fn no_acknowledgement_leaves_and_no_frame_is_taken_behind_the_fence() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    steps.send();
    steps.replica.sync().unwrap();
    steps.answer();
    assert_eq!(steps.replica.gate().acked(), Vlsn::new(10));
    fill(&steps.from, 10);
    steps.send();
    // The vote: from the look at the log's end until the fence is up nothing moves.
    let mut gate = steps.replica.gate();
    assert_eq!((gate.acked(), steps.to.positions().last), (Vlsn::new(10), Vlsn::new(20)));
    gate.fence(TERM);
    gate.fence(Term::new(2));
    drop(gate);
    steps.replica.sync().unwrap();
    assert_eq!(steps.said(), None, "20 is synced, and not acknowledged in the old term");
    assert_eq!(steps.to.positions().durable, Vlsn::new(20));
    let (ours, theirs) = (steps.from.positions().last, steps.to.positions().last);
    assert_eq!(ours, theirs);
    fill(&steps.from, 1);
    while steps.feeder.send_some().unwrap() != SendStep::Sent {}
    let frame = steps.replica_end.receive(PATIENCE).unwrap().unwrap();
    let error = steps.replica.handle_frame(&frame.into()).unwrap_err();
    assert!(matches!(error, RepError::Stream(StreamFault::Fenced { .. })), "{error}");
    assert_eq!(steps.to.positions().last, Vlsn::new(20));
}

#[test]
fn a_vote_waits_for_the_frame_that_is_being_handled() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    let gate = steps.replica.gate();
    assert_eq!(steps.feeder.send_some().unwrap(), SendStep::Sent);
    let frame = steps.replica_end.receive(PATIENCE).unwrap().unwrap();
    thread::scope(|scope| {
        let taken = scope.spawn(|| steps.replica.handle_frame(&frame.into()));
        assert!(!taken.is_finished());
        assert_eq!(steps.to.positions().last, NULL_VLSN);
        drop(gate);
        assert_eq!(taken.join().unwrap().unwrap(), Handled::Frame);
    });
    assert_eq!(steps.to.positions().last, Vlsn::new(10));
}

#[test]
fn a_log_that_may_lack_its_end_is_whole_once_the_masters_end_is_durable_in_it() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    steps.hand.set(Duration::from_millis(3));
    steps.replica.ask_head(6).unwrap();
    steps.replica.ask_head(7).unwrap();
    steps.answer();
    steps.answer();
    steps.send(); // the answer goes before entries, and 6 is void
    assert_eq!(steps.replica.heard(), Some(Duration::from_millis(3)));
    let head = LogEnd {
        term: TERM,
        vlsn: Vlsn::new(10),
        fingerprint: steps.from.positions().last_fingerprint,
    };
    steps.send();
    assert_eq!(*steps.follower.confirmed.lock(), [], "received, and not durable");
    steps.replica.sync().unwrap();
    assert_eq!(*steps.follower.confirmed.lock(), [(7, head)]);

    // Of a log that is durable already, at once.
    steps.answer();
    steps.replica.ask_head(8).unwrap();
    steps.answer();
    steps.send();
    assert_eq!(*steps.follower.confirmed.lock(), [(7, head), (8, head)]);
}

#[test]
fn a_master_that_asks_for_a_word_has_it_before_the_sync() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    steps.send();
    steps.hand.set(timing().heartbeat);
    steps.send();
    assert!(steps.replica.is_unsynced());
    assert_eq!(steps.acked(), (10, 0));
    steps.replica.sync().unwrap();
    assert_eq!((steps.acked(), steps.said()), ((10, 10), None));
}

#[test]
fn who_was_kept_busy_for_two_heartbeats_says_a_word_before_the_sync() {
    for (busy, words) in [(39, &[(10, 10)][..]), (40, &[(10, 0), (10, 10)][..])] {
        let from = empty_log("a");
        fill(&from, 10);
        let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
        steps.send();
        steps.hand.set(Duration::from_millis(busy));
        steps.replica.sync().unwrap();
        for word in words {
            assert_eq!(steps.acked(), *word, "after {busy} ms");
        }
        assert_eq!(steps.said(), None, "after {busy} ms");
    }
}

#[test]
fn another_history_at_the_masters_end_is_told_apart() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 3);
    rig.send(head, &bytes);
    rig.await_ack(3);
    rig.stream.ask_head(5).unwrap();
    let vlsn = Vlsn::new(3);
    let end = LogEnd { term: TERM, vlsn, fingerprint: Fingerprint::from_u64(9) };
    rig.peer.send(&StreamMessage::HeadAnswer { nonce: 5, head: end }.encode()).unwrap();
    let follower = Arc::clone(&rig.follower);
    let error = rig.ends_with(3);
    assert!(matches!(error, RepError::Stream(StreamFault::ForeignHead { .. })), "{error}");
    assert_eq!(*follower.confirmed.lock(), []);
}

#[test]
fn who_has_no_vote_receives_nothing_beyond_dtvlsn() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::Dtvlsn);
    assert!(steps.waits());
    steps.master.dtvlsn.store(4, Ordering::SeqCst);
    steps.send();
    assert_eq!(steps.to.positions().last, Vlsn::new(4));
    steps.replica.sync().unwrap();
    steps.answer();
    let SendStep::Wait { until, .. } = steps.feeder.send_some().unwrap() else { panic!("sent") };
    assert!(matches!(until, Until::Beyond(last) if last == Vlsn::new(10)), "{until:?}");
    steps.master.dtvlsn.store(10, Ordering::SeqCst);
    steps.send();
    steps.replica.sync().unwrap();
    assert_eq!(steps.follower.limit.load(Ordering::SeqCst), 10);
    assert_same_logs(&steps.from, &steps.to);
}

/// Also to whom that waited for a few to gather.
#[test]
fn a_master_that_closes_sends_what_it_has_before_it_says_goodbye() {
    let from = empty_log("a");
    fill(&from, 10);
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    let farewell = Farewell { why: Leaving::Closing, successor: None };
    *steps.master.closing.lock() = Some(farewell.clone());
    steps.send();
    assert_eq!(steps.to.positions().last, Vlsn::new(10));
    assert_eq!(steps.feeder.send_some().unwrap(), SendStep::Ended);
    let frame = steps.replica_end.receive(PATIENCE).unwrap().unwrap();
    assert_eq!(steps.replica.handle_frame(&frame.into()).unwrap(), Handled::Goodbye(farewell));

    // One that steps down has nothing more to say for its term.
    fill(&steps.from, 10);
    let steps = Steps::new(steps.from, empty_log("c"), FeedLimit::All);
    *steps.master.closing.lock() = Some(FAREWELL);
    assert_eq!(steps.feeder.send_some().unwrap(), SendStep::Ended);
}

#[test]
fn a_farewell_is_heard_though_the_channel_closes_before_it_is_read() {
    let (feeder_end, replica_end) = local_pair();
    let receiving = replica(&empty_log("b"), replica_end, &Arc::default());
    feeder_end.send(&StreamMessage::Goodbye(FAREWELL).encode()).unwrap();
    feeder_end.close();
    assert_eq!(receiving.run().unwrap(), Some(FAREWELL));
}

#[test]
fn what_is_durable_is_heard_though_the_channel_closes_before_it_can_be_acknowledged() {
    let (source, log) = (empty_log("a"), empty_log("b"));
    fill(&source, 3);
    let (feeder_end, replica_end) = local_pair();
    let follower = Arc::new(Follower::default());
    let receiving = replica(&log, replica_end, &follower);
    let run = source.read(Vlsn::new(1), 1 << 20).unwrap().unwrap();
    let nothing = Dtvlsn { vlsn: NULL_VLSN, fingerprint: Fingerprint::default() };
    let head = Head {
        era: ERA,
        first: run.first,
        previous_fingerprint: run.previous_fingerprint,
        dtvlsn: nothing,
        want_received: false,
    };
    let bytes = run.parts.concat();
    feeder_end.send(&StreamMessage::Entries { head, bytes: &bytes }.encode()).unwrap();
    let last = Vlsn::new(3);
    let dtvlsn = Dtvlsn { vlsn: last, fingerprint: run.last_fingerprint };
    let position = Position { era: ERA, last, dtvlsn, want_received: false, answer: true };
    feeder_end.send(&StreamMessage::Position(position).encode()).unwrap();
    feeder_end.send(&StreamMessage::Goodbye(FAREWELL).encode()).unwrap();
    feeder_end.close();
    assert_eq!(receiving.run().unwrap(), Some(FAREWELL));
    assert_eq!(follower.limit.load(Ordering::SeqCst), 3);
}

#[test]
fn the_end_of_a_stream_says_what_it_means_for_the_master() {
    let successor = Some(name("n2"));
    let farewell = Farewell { why: Leaving::StepsDown, successor: successor.clone() };
    assert_eq!(ended(&Ok(Some(farewell))), Ended::Goodbye { successor });
    let silent = RepError::silent("n1", "a message", PATIENCE);
    assert_eq!(ended(&Err(silent)), Ended::Silent);
    let rig = Rig::new();
    rig.peer.close();
    assert_eq!(ended(&Err(rig.ends_with(0))), Ended::Broken);
    let rig = Rig::new();
    let (head, bytes) = rig.run(2, 3);
    rig.send(head, &bytes);
    assert_eq!(ended(&Err(rig.ends_with(0))), Ended::Fault);
    let refused = RejectReason::NotEstablished { node: name("n1") };
    assert_eq!(ended(&Err(refused.clone().into())), Ended::Refused(refused));
}

#[test]
fn an_acknowledgement_of_a_newer_term_names_it() {
    let from = empty_log("a");
    let steps = Steps::new(from, empty_log("b"), FeedLimit::All);
    let newer = Ack { era: Era { term: Term::new(7), ..ERA }, ..Ack::default() };
    let error = steps.feeder.handle_frame(&StreamMessage::Ack(newer).encode()).unwrap_err();
    let RepError::Stream(fault) = error else { panic!("{error}") };
    assert_eq!(fault.newer_term(), Some(Term::new(7)));
}

// ---- peers that misbehave

/// A replica of an empty log, whose peer is the test.
struct Rig {
    log: Log,
    peer: Arc<dyn Channel>,
    stream: Arc<ReplicaStream>,
    running: thread::JoinHandle<Result<Option<Farewell>>>,
    follower: Arc<Follower>,
    source: Log,
}

impl Rig {
    fn new() -> Self {
        let (peer, theirs) = local_pair();
        let (log, source) = (empty_log("b"), empty_log("a"));
        fill(&source, 10);
        let follower = Arc::new(Follower::default());
        let stream = Arc::new(replica(&log, theirs, &follower));
        let receiving = Arc::clone(&stream);
        let running = thread::spawn(move || receiving.run());
        Self { log, peer, stream, running, follower, source }
    }

    fn run(&self, from: i64, last: i64) -> (Head, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut previous = Fingerprint::ZERO;
        let run = self.source.read(Vlsn::new(1), 1 << 20).unwrap().unwrap();
        for entry in run.entries() {
            let vlsn = entry.header.vlsn.sequence();
            if vlsn < from {
                previous = entry.header.fingerprint;
            }
        }
        let mut whole = Vec::new();
        run.parts.iter().for_each(|part| whole.extend_from_slice(part));
        let mut at = 0;
        for entry in run.entries() {
            let (vlsn, len) = (entry.header.vlsn.sequence(), entry.header.entry_bytes());
            if (from..=last).contains(&vlsn) {
                bytes.extend_from_slice(&whole[at..at + len]);
            }
            at += len;
        }
        let head = Head {
            era: ERA,
            first: Vlsn::new(from),
            previous_fingerprint: previous,
            dtvlsn: Dtvlsn::default(),
            want_received: false,
        };
        (head, bytes)
    }

    fn send(&self, head: Head, bytes: &[u8]) {
        self.peer.send(&StreamMessage::Entries { head, bytes }.encode()).unwrap();
    }

    /// Waits for the acknowledgement of `durable`.
    fn await_ack(&self, durable: i64) {
        loop {
            let frame = self.peer.receive(PATIENCE).unwrap().expect("an ack");
            match StreamMessage::decode(&frame).unwrap() {
                StreamMessage::Ack(ack) if ack.durable >= Vlsn::new(durable) => return,
                StreamMessage::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The error that ends the stream; the channel is closed and the log as it was.
    fn ends_with(self, last: i64) -> RepError {
        let error = self.running.join().unwrap().unwrap_err();
        loop {
            match self.peer.receive(PATIENCE) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the channel stays open after {error}"),
                Err(closed) => {
                    assert!(closed.is_disconnect(), "{closed}");
                    break;
                }
            }
        }
        assert_eq!(self.log.positions().last, Vlsn::new(last));
        // Nothing is harmed: the log takes what continues it.
        if last < 10 {
            let (_, rest) = Rig::new_rest(&self.source, last);
            let run = EntryRun::verify(rest.into(), self.log.positions().chain(), 1 << 20).unwrap();
            self.log.append_run(&run).unwrap();
        }
        error
    }

    fn new_rest(source: &Log, last: i64) -> (Vlsn, Vec<u8>) {
        let run = source.read(Vlsn::new(last + 1), 1 << 20).unwrap().unwrap();
        let mut bytes = Vec::new();
        run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        (run.last, bytes)
    }
}

#[test]
fn a_gap_a_duplicate_and_a_fork_end_the_stream_by_name() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 3);
    rig.send(head, &bytes);
    rig.await_ack(3);
    let (head, bytes) = rig.run(5, 6);
    rig.send(head, &bytes);
    let error = rig.ends_with(3);
    assert!(matches!(error, RepError::Stream(StreamFault::Gap { .. })), "{error}");

    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 3);
    rig.send(head, &bytes);
    rig.send(head, &bytes);
    let error = rig.ends_with(3);
    assert!(matches!(error, RepError::Stream(StreamFault::Duplicate { .. })), "{error}");

    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 3);
    let forked = Head { previous_fingerprint: Fingerprint::from_u64(9), ..head };
    rig.send(forked, &bytes);
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::Stream(StreamFault::Fork { .. })), "{error}");
}

#[test]
fn entries_in_another_order_than_announced_are_refused_whole() {
    let rig = Rig::new();
    let (head, mut bytes) = rig.run(1, 1);
    bytes.extend_from_slice(&rig.run(3, 3).1);
    bytes.extend_from_slice(&rig.run(2, 2).1);
    rig.send(head, &bytes);
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::BadEntry { .. }), "{error}");
}

#[test]
fn every_corrupted_byte_of_a_frame_ends_the_stream_and_harms_nothing() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 2);
    let whole = StreamMessage::Entries { head, bytes: &bytes }.encode();
    drop(rig);
    // The announced DTVLSN and the flags are not part of what the entries' checks cover.
    let checked = (0..2).chain(4..28).chain(44..whole.len());
    for at in checked {
        let rig = Rig::new();
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        rig.peer.send(&bad).unwrap();
        let error = rig.ends_with(0);
        assert!(
            matches!(
                error,
                RepError::ProtocolError(_) | RepError::Stream(_) | RepError::BadEntry { .. }
            ),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn messages_of_another_term_or_kind_end_the_stream() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 2);
    rig.send(Head { era: Era { term: Term::new(2), ..ERA }, ..head }, &bytes);
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::Stream(StreamFault::ForeignTerm { .. })), "{error}");

    let rig = Rig::new();
    rig.send(Head { era: Era { epoch: 1, ..ERA }, ..head }, &bytes);
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::Stream(StreamFault::ForeignEpoch { .. })), "{error}");

    for foreign in [StreamMessage::Ack(Ack::default()), StreamMessage::HeadAsk { nonce: 1 }] {
        let rig = Rig::new();
        rig.peer.send(&foreign.encode()).unwrap();
        let error = rig.ends_with(0);
        assert!(matches!(error, RepError::ProtocolError(_)), "{error}");
    }

    let rig = Rig::new();
    rig.peer.send(b"GET / HTTP/1.1\r\n").unwrap();
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::ProtocolError(_)), "{error}");
}

#[test]
fn an_entry_over_the_cap_is_refused_before_memory_is_taken_for_it() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 1);
    let huge = StreamMessage::Fragment { head, total: u32::MAX, offset: 0, bytes: &bytes };
    rig.peer.send(&huge.encode()).unwrap();
    let error = rig.ends_with(0);
    assert!(matches!(error, RepError::Stream(StreamFault::Fragment { .. })), "{error}");
}

#[test]
fn a_durable_position_with_another_fingerprint_is_an_alarm() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 5);
    rig.send(head, &bytes);
    rig.await_ack(5);
    let dtvlsn = Dtvlsn { vlsn: Vlsn::new(4), fingerprint: Fingerprint::from_u64(1) };
    let position =
        Position { era: ERA, last: Vlsn::new(5), dtvlsn, want_received: false, answer: false };
    rig.peer.send(&StreamMessage::Position(position).encode()).unwrap();
    let follower = Arc::clone(&rig.follower);
    let error = rig.ends_with(5);
    assert!(matches!(error, RepError::Stream(StreamFault::DurableFork { .. })), "{error}");
    assert!(error.to_string().contains("ALARM"), "{error}");
    assert_eq!(follower.limit.load(Ordering::SeqCst), 0, "nothing may be applied");
}

#[test]
fn a_connection_cut_between_fragments_leaves_nothing_behind() {
    let rig = Rig::new();
    let (head, bytes) = rig.run(1, 1);
    let part =
        StreamMessage::Fragment { head, total: bytes.len() as u32, offset: 0, bytes: &bytes[..10] };
    rig.peer.send(&part.encode()).unwrap();
    rig.peer.close();
    let error = rig.ends_with(0);
    assert!(error.is_disconnect(), "{error}");
}

#[test]
fn a_feeder_whose_read_fails_ends_its_stream_and_sends_no_broken_frame() {
    let (ours, theirs) = local_pair();
    let log = empty_log("a");
    let body = vec![0; 300 << 10];
    for _ in 0..10 {
        log.append(TERM, &[entry(&body)]).unwrap();
    }
    log.sync_now().unwrap();
    log.seal_through(log.positions().last).unwrap();
    let gone = log.drop_front(log.positions().last, |_| Vec::new()).unwrap();
    assert!(gone > NULL_VLSN);
    let master = Arc::new(Master::default());
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, timing(), FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), Vlsn::new(1));
    let core = Arc::new(Mutex::new(core));
    let feeder = FeederStream::new(log, ours, Arc::clone(&master) as _, clock, core);
    let error = feeder.run_sender().unwrap_err();
    assert!(matches!(error, RepError::Log(LogError::Gap { .. })), "{error}");
    assert!(theirs.receive(Duration::from_millis(10)).unwrap_err().is_disconnect());
}

#[test]
fn an_ack_of_what_was_never_sent_ends_the_stream() {
    let (ours, theirs) = local_pair();
    let log = empty_log("a");
    fill(&log, 10);
    let master = Arc::new(Master::default());
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, timing(), FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), Vlsn::new(1));
    let core = Arc::new(Mutex::new(core));
    let feeder = FeederStream::new(log, ours, Arc::clone(&master) as _, clock, core);
    let lie = Ack { era: ERA, received: Vlsn::new(99), durable: Vlsn::new(99), applied: NULL_VLSN };
    theirs.send(&StreamMessage::Ack(lie).encode()).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| feeder.run_sender());
        let error = feeder.run_ack_reader().unwrap_err();
        assert!(matches!(error, RepError::Stream(StreamFault::BadAck { .. })), "{error}");
        let _ = sending.join().unwrap();
    });
    assert!(master.acks.lock().is_empty());
}

/// A channel whose sends of entries return only once the answer was received and handled, or the
/// channel was closed.
struct SlowReturn {
    channel: LocalChannel,
    answers: AtomicUsize,
    handled: AtomicUsize,
}

impl Channel for SlowReturn {
    fn send(&self, frame: &[u8]) -> Result<()> {
        let before = self.answers.load(Ordering::SeqCst);
        self.channel.send(frame)?;
        let answered = matches!(StreamMessage::decode(frame)?, StreamMessage::Entries { .. });
        let deadline = Instant::now() + PATIENCE;
        while answered && self.handled.load(Ordering::SeqCst) <= before {
            assert!(Instant::now() < deadline, "no answer to entries");
            thread::yield_now();
        }
        Ok(())
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        // Called again, so what was received before has been handled.
        self.handled.store(self.answers.load(Ordering::SeqCst), Ordering::SeqCst);
        let frame = self.channel.receive(timeout)?;
        self.answers.fetch_add(usize::from(frame.is_some()), Ordering::SeqCst);
        Ok(frame)
    }

    fn close(&self) {
        self.handled.store(usize::MAX, Ordering::SeqCst);
        self.channel.close();
    }
}

#[test]
fn entries_left_unsynced_by_an_earlier_stream_are_synced_by_the_next_without_a_timer() {
    let lazy = LogConfig {
        sync_interval: Duration::from_mins(10),
        prefill: false,
        ..LogConfig::default()
    };
    let (from, to) = (empty_log("a"), log_with("b", lazy));
    fill(&from, 10);
    fill(&to, 10);
    assert!(to.positions().durable < to.positions().last);
    stream(&from, &to, local_pair(), |_| {});
}

#[test]
fn an_acknowledgement_may_come_before_the_send_returns() {
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let (answers, handled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let slow = SlowReturn { channel: channel_a, answers, handled };
    let (from, to) = (empty_log("a"), empty_log("b"));
    stream(&from, &to, (Arc::new(slow), Arc::new(channel_b)), |master| {
        for n in 1..=50 {
            fill(&from, 1);
            eventually("it is durable", || master.dtvlsn() == Vlsn::new(n));
        }
    });
}

#[test]
fn either_side_notices_the_silence_of_the_other() {
    let short =
        StreamTiming { heartbeat: Duration::from_millis(20), silence: Duration::from_millis(100) };
    let silent = |error: &RepError| error.to_string().contains("did not arrive within");
    let (ours, theirs) = local_pair();
    let log = empty_log("b");
    let host = Arc::new(Follower::default());
    let stream = ReplicaStream::new(ERA, short, log, theirs, host, Clock::start(), NULL_VLSN);
    let error = stream.run().unwrap_err();
    assert!(silent(&error), "{error}");
    drop(ours);

    let (ours, theirs) = local_pair();
    let log = empty_log("a");
    let master = Arc::new(Master::default());
    let clock = Clock::start();
    let mut core = Feeder::new(ERA, short, FeedLimit::All);
    core.handle_welcomed();
    core.handle_synced_up(clock.now(), Vlsn::new(1));
    let core = Arc::new(Mutex::new(core));
    let feeder = FeederStream::new(log, ours, Arc::clone(&master) as _, clock, core);
    thread::scope(|scope| {
        let sending = scope.spawn(|| feeder.run_sender());
        // Whichever thread notices first closes the channel under the other's hands.
        let errors = [feeder.run_ack_reader(), sending.join().unwrap()];
        assert!(errors.iter().filter_map(|e| e.as_ref().err()).any(silent), "{errors:?}");
    });
    // It filled its own silence meanwhile.
    let beat = theirs.receive(PATIENCE).unwrap().unwrap();
    assert_eq!(StreamMessage::decode(&beat).unwrap().name(), "Position");
}

#[test]
fn a_transaction_that_is_cut_by_the_connection_goes_on_where_it_ended() {
    let (from, to) = (empty_log("a"), empty_log("b"));
    let parts: Vec<_> = (0..100)
        .map(|n| {
            let flags = if n == 99 { EntryFlags::COMMIT } else { EntryFlags::NONE };
            NewEntry::new(KIND, flags, b"part")
        })
        .collect();
    from.append(TERM, &parts[..60]).unwrap();
    stream(&from, &to, local_pair(), |_| {});
    assert_eq!(to.positions().last, Vlsn::new(60));
    from.append(TERM, &parts[60..]).unwrap();
    stream(&from, &to, local_pair(), |_| {});
    assert_same_logs(&from, &to);
}
