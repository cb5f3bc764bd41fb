//! Clients: a closed loop of puts, each with a new random key.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use noxu_kv::{Batch, PendingCommit, Store};
use noxu_rep::Durability;

use super::{KEY_BYTES, Result, VALUE_BYTES, WorkloadError};

/// Who commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clients {
    /// So many threads, each blocked until its commit is done.
    Threads(usize),
    /// One thread with so many commits in flight.
    Handles(usize),
}

impl Clients {
    /// Those that every work with commits is measured with.
    pub const ALL: [Self; 4] =
        [Self::Threads(1), Self::Threads(8), Self::Threads(64), Self::Handles(1024)];
}

impl std::fmt::Display for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Threads(count) => write!(f, "c{count}"),
            Self::Handles(count) => write!(f, "h{count}"),
        }
    }
}

impl std::str::FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let count = |digits: &str| digits.parse().ok().filter(|count| (1..=65_536).contains(count));
        let threads = text.strip_prefix('c').and_then(count).map(Self::Threads);
        let handles = text.strip_prefix('h').and_then(count).map(Self::Handles);
        threads.or(handles).ok_or_else(|| "expected for instance c8 or h1024".to_owned())
    }
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Latencies {
    nanos: Histogram<u64>,
    time: Duration,
}

impl Latencies {
    /// None yet, to be counted over `time`.
    pub fn over(time: Duration) -> Self {
        let nanos = Histogram::new_with_bounds(1, HIGHEST_NANOS, 3);
        Self { nanos: nanos.unwrap_or_else(|_| unreachable!("bounds as documented")), time }
    }

    /// One operation took so long.
    pub fn record(&mut self, took: Duration) {
        self.nanos.saturating_record(took.as_nanos() as u64);
    }

    /// Takes over another client's.
    pub fn merge(&mut self, other: &Self) {
        let merged = self.nanos.add(&other.nanos);
        merged.unwrap_or_else(|_| unreachable!("histograms of the same bounds"));
    }

    /// Operations finished per second.
    pub fn per_second(&self) -> f64 {
        self.nanos.len() as f64 / self.time.as_secs_f64()
    }

    /// Operations finished.
    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// The time in microseconds that `quantile` of the operations did not exceed.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.nanos.value_at_quantile(quantile) as f64 / 1e3
    }
}

const HIGHEST_NANOS: u64 = 60_000_000_000;

/// Puts for `warm_up`, then for `time`; counts what finished within `time`.
pub fn run(
    store: &Store,
    clients: Clients,
    durability: Durability,
    warm_up: Duration,
    time: Duration,
) -> Result<Latencies> {
    let put = |puts: &mut Puts| {
        store.put(&puts.next_key(), &puts.value, durability)?;
        Ok(())
    };
    match clients {
        Clients::Threads(count) => run_threads(count, warm_up, time, Puts::default, put),
        Clients::Handles(count) => {
            let begin = Instant::now() + warm_up;
            run_handles(store, count, durability, begin, begin + time)
        }
    }
}

/// Runs `operation` in a closed loop in `count` threads, each with a state of its own.
pub fn run_threads<S>(
    count: usize,
    warm_up: Duration,
    time: Duration,
    new_state: impl Fn() -> S + Sync,
    operation: impl Fn(&mut S) -> Result<()> + Sync,
) -> Result<Latencies> {
    let together = Barrier::new(count);
    let client = || {
        let mut state = new_state();
        let mut latencies = Latencies::over(time);
        together.wait();
        let begin = Instant::now() + warm_up;
        let end = begin + time;
        let mut now = Instant::now();
        while now < end {
            let began = now;
            operation(&mut state)?;
            now = Instant::now();
            if (begin..end).contains(&now) {
                latencies.record(now - began);
            }
        }
        Ok(latencies)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(client)).collect();
        let mut all = Latencies::over(time);
        for thread in threads {
            let panicked = |_| Err(WorkloadError::Failed("a client panicked".to_owned()));
            all.merge(&thread.join().unwrap_or_else(panicked)?);
        }
        Ok(all)
    })
}

fn run_handles(
    store: &Store,
    handles: usize,
    durability: Durability,
    begin: Instant,
    end: Instant,
) -> Result<Latencies> {
    let mut latencies = Latencies::over(end - begin);
    let mut puts = Puts::default();
    let mut in_flight = VecDeque::with_capacity(handles);
    loop {
        while in_flight.len() < handles {
            let pending = store.submit(&puts.next_batch()?, durability)?;
            in_flight.push_back((pending, Instant::now()));
        }
        settle_oldest(&mut in_flight, |began| {
            let now = Instant::now();
            if (begin..end).contains(&now) {
                latencies.record(now - began);
            }
        })?;
        if Instant::now() >= end {
            break;
        }
    }
    for (pending, _) in in_flight {
        pending.wait()?;
    }
    Ok(latencies)
}

/// Puts `count` values with `handles` of them in flight.
pub fn load(store: &Store, count: u64, handles: usize, durability: Durability) -> Result<()> {
    let mut puts = Puts::default();
    let mut in_flight = VecDeque::with_capacity(handles);
    for _ in 0..count {
        let pending = store.submit(&puts.next_batch()?, durability)?;
        in_flight.push_back((pending, Instant::now()));
        if in_flight.len() == handles {
            settle_oldest(&mut in_flight, |_| ())?;
        }
    }
    for (pending, _) in in_flight {
        pending.wait()?;
    }
    Ok(())
}

/// Puts `count` random values of `bytes` each, some in flight, without waiting for a sync.
pub fn load_values(store: &Store, count: u64, bytes: usize) -> Result<()> {
    let mut value = vec![0; bytes];
    let mut puts = Puts::default();
    let mut in_flight = VecDeque::with_capacity(VALUES_IN_FLIGHT);
    for _ in 0..count {
        puts.random.fill(&mut value);
        let mut batch = Batch::default();
        batch.put(&puts.next_key(), &value)?;
        let pending = store.submit(&batch, Durability::NO_SYNC_MAJORITY)?;
        in_flight.push_back((pending, Instant::now()));
        if in_flight.len() == VALUES_IN_FLIGHT {
            settle_oldest(&mut in_flight, |_| ())?;
        }
    }
    for (pending, _) in in_flight {
        pending.wait()?;
    }
    Ok(())
}

const VALUES_IN_FLIGHT: usize = 64;

/// Puts at least `count` values from `threads` threads, each blocked until its commit is done.
pub fn put_each(store: &Store, count: u64, threads: usize, durability: Durability) -> Result<()> {
    let each = count.div_ceil(threads as u64);
    let client = || {
        let mut puts = Puts::default();
        for _ in 0..each {
            store.put(&puts.next_key(), &puts.value, durability)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| {
            let panicked = |_| Err(WorkloadError::Failed("a client panicked".to_owned()));
            client.join().unwrap_or_else(panicked)
        })
    })
}

/// Waits for the oldest and takes those that are done with it. Commits of one durability are
/// settled in the order in which they were submitted.
fn settle_oldest(
    in_flight: &mut VecDeque<(PendingCommit, Instant)>,
    mut done: impl FnMut(Instant),
) -> Result<()> {
    if let Some((oldest, began)) = in_flight.pop_front() {
        oldest.wait()?;
        done(began);
    }
    while let Some((next, began)) = in_flight.front()
        && let Some(outcome) = next.poll()
    {
        outcome?;
        done(*began);
        in_flight.pop_front();
    }
    Ok(())
}

/// One client's keys and value.
struct Puts {
    random: fastrand::Rng,
    value: [u8; VALUE_BYTES],
}

impl Default for Puts {
    fn default() -> Self {
        let mut random = fastrand::Rng::new();
        let mut value = [0; VALUE_BYTES];
        random.fill(&mut value);
        Self { random, value }
    }
}

impl Puts {
    fn next_key(&mut self) -> [u8; KEY_BYTES] {
        let mut key = [0; KEY_BYTES];
        self.random.fill(&mut key);
        key
    }

    fn next_batch(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        batch.put(&self.next_key(), &self.value)?;
        Ok(batch)
    }
}
