//! Stream: everything that one log holds to another, synced there.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use noxu_log::{EntryRun, Log};
use noxu_rep::StreamTiming;
use noxu_rep::clock::Clock;
use noxu_rep::core::feeder::{FeedLimit, Feeder};
use noxu_rep::net::channel::{Channel, LocalChannelPair};
use noxu_rep::net::tcp::{TcpChannel, TcpConfig};
use noxu_rep::stream::feeder::{FeederHost, FeederStream};
use noxu_rep::stream::replica::{ReplicaHost, ReplicaStream};
use noxu_rep::wire::election::LogEnd;
use noxu_rep::wire::message::{Ack, Era, Farewell, Leaving};
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Condvar, Mutex};

use super::{Result, TERM, WorkloadError};

const ERA: Era = Era { epoch: 0, term: TERM };

/// The two ends of a connection.
pub type ChannelPair = (Arc<dyn Channel>, Arc<dyn Channel>);

/// Two ends in this process's memory.
pub fn local_pair() -> ChannelPair {
    let pair = LocalChannelPair::new();
    (Arc::new(pair.channel_a), Arc::new(pair.channel_b))
}

/// Two ends of a TCP connection over the loopback interface.
pub fn tcp_pair() -> Result<ChannelPair> {
    let system = WorkloadError::system;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system("listening"))?;
    let address = listener.local_addr().map_err(system("listening"))?;
    let config = TcpConfig::default();
    let dialed = TcpChannel::connect(&address.to_string(), &config)?;
    let (accepted, _) = listener.accept().map_err(system("accepting"))?;
    Ok((Arc::new(dialed), Arc::new(TcpChannel::from_stream(accepted, &config)?)))
}

/// Streams what `target` lacks of `source`; returns the time until all of it was acknowledged as
/// durable.
pub fn stream_log(source: &Log, target: &Log, ends: ChannelPair) -> Result<Duration> {
    let (feeder_end, replica_end) = ends;
    let (clock, timing) = (Clock::start(), StreamTiming::default());
    let last = source.positions().last;
    let mut feeder = Feeder::new(ERA, timing, FeedLimit::All);
    feeder.handle_welcomed();
    feeder.handle_synced_up(clock.now(), target.positions().last.next());
    let core = Arc::new(Mutex::new(feeder));
    let progress = Arc::new(Progress::default());
    let sender = FeederStream::new(
        source.clone(),
        feeder_end,
        Arc::clone(&progress) as _,
        clock.clone(),
        core,
    );
    let replica = Arc::new(ReplicaStream::new(
        ERA,
        timing,
        target.clone(),
        replica_end,
        Arc::new(Nobody),
        clock,
        NULL_VLSN,
    ));
    let hooked = Arc::downgrade(&replica);
    target.on_durable(move |durable| {
        if let Some(replica) = hooked.upgrade() {
            // The receiver meets the broken channel too.
            let _ = replica.handle_durable(durable);
        }
    });
    let run = |work: &dyn Fn() -> noxu_rep::Result<()>| {
        let done = work();
        progress.end();
        done
    };
    let begin = Instant::now();
    let took = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| run(&|| sender.run_sender())),
            scope.spawn(|| run(&|| replica.run().map(drop))),
        ];
        let acks = scope.spawn(|| run(&|| sender.run_ack_reader()));
        let reached = progress.wait(last);
        let took = begin.elapsed();
        progress.closing.store(true, Ordering::Release);
        source.wake_readers();
        let mut outcome = Ok(());
        for thread in threads {
            let panicked = |_| Err(noxu_rep::RepError::state_machine("a stream's thread panicked"));
            outcome = outcome.and(thread.join().unwrap_or_else(panicked));
        }
        drop(acks.join()); // it ends with the channel, one way or the other
        outcome.map(|()| (reached, took))
    });
    match took? {
        (true, took) => Ok(took),
        (false, _) => Err(WorkloadError::Failed(format!("the stream ended below {last}"))),
    }
}

/// How far the replica acknowledged.
#[derive(Default)]
struct Progress {
    durable: Mutex<(Vlsn, bool)>,
    moved: Condvar,
    closing: AtomicBool,
}

impl Progress {
    fn wait(&self, vlsn: Vlsn) -> bool {
        let mut durable = self.durable.lock();
        while durable.0 < vlsn && !durable.1 {
            self.moved.wait(&mut durable);
        }
        durable.0 >= vlsn
    }

    fn end(&self) {
        self.durable.lock().1 = true;
        self.moved.notify_all();
    }
}

impl FeederHost for Progress {
    fn dtvlsn(&self) -> Vlsn {
        NULL_VLSN
    }

    fn wants_received(&self) -> bool {
        false
    }

    fn handle_ack(&self, ack: Ack) {
        self.durable.lock().0 = ack.durable;
        self.moved.notify_all();
    }

    fn closing(&self) -> Option<Farewell> {
        let closing = self.closing.load(Ordering::Acquire);
        closing.then_some(Farewell { why: Leaving::Closing, successor: None })
    }
}

/// A replica without a state.
struct Nobody;

impl ReplicaHost for Nobody {
    fn handle_may_apply(&self, _: Vlsn) {}

    fn handle_dtvlsn(&self, _: Vlsn) {}

    fn applied(&self) -> Vlsn {
        NULL_VLSN
    }

    fn handle_appended(&self, _: &EntryRun) {}

    fn handle_head_confirmed(&self, _: u64, _: LogEnd) {}
}
