//! Rounds: contenders take turns, so that what else the machine does hits them alike.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::contender::{Contender, Worker};

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Turns of each contender.
    pub(crate) rounds: usize,
    /// Length of a turn.
    pub(crate) slice: Duration,
}

/// What one turn came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    /// Entries appended in a second.
    pub(crate) rate: f64,
    /// Processor time of one entry in the threads that append, in nanoseconds, the kernel's part
    /// included.
    pub(crate) own_ns: f64,
    /// The same of the threads behind them.
    pub(crate) behind_ns: f64,
}

/// The turns of each contender: one to warm up, which does not count, and `plan.rounds`.
pub(crate) fn run<const N: usize>(
    contenders: [&dyn Contender; N],
    threads: usize,
    batch: usize,
    plan: Plan,
) -> [Vec<Slice>; N] {
    let mut all = contenders.map(|_| Vec::with_capacity(plan.rounds));
    for round in 0..=plan.rounds {
        for (contender, slices) in contenders.iter().zip(&mut all) {
            let slice = turn(*contender, contender.threads(threads), batch, plan.slice);
            contender.settle();
            if round > 0 {
                slices.push(slice);
            }
        }
    }
    all
}

/// Looks at the clock are further apart while appends are so quick that a look costs as much.
const LOOK_EVERY: Duration = Duration::from_micros(100);
const MOST_BETWEEN_LOOKS: usize = 512;

fn turn(contender: &dyn Contender, threads: usize, batch: usize, time: Duration) -> Slice {
    let entries = AtomicU64::new(0);
    let own_ns = AtomicU64::new(0);
    let start = Barrier::new(threads + 1);
    let mut begin = None;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (entries, own_ns, start) = (&entries, &own_ns, &start);
            let appender = std::thread::Builder::new().name("appender".to_owned());
            let appender = appender.spawn_scoped(scope, move || {
                let mut worker = contender.worker(thread, batch);
                start.wait();
                let before = used(ClockId::ThreadCPUTime);
                entries.fetch_add(work(&mut *worker, time), Ordering::Relaxed);
                let own = used(ClockId::ThreadCPUTime) - before;
                own_ns.fetch_add(own.as_nanos() as u64, Ordering::Relaxed);
            });
            appender.expect("a thread");
        }
        begin = Some((Instant::now(), used(ClockId::ProcessCPUTime)));
        start.wait();
    });
    let (begin, cpu_before) = begin.expect("set above");
    let entries = entries.into_inner() as f64;
    let time = begin.elapsed();
    let all_ns = (used(ClockId::ProcessCPUTime) - cpu_before).as_nanos() as f64;
    let own_ns = own_ns.into_inner() as f64;
    Slice {
        rate: entries / time.as_secs_f64(),
        own_ns: own_ns / entries,
        behind_ns: (all_ns - own_ns).max(0.0) / entries,
    }
}

fn work(worker: &mut dyn Worker, time: Duration) -> u64 {
    let begin = Instant::now();
    let mut entries = 0;
    let mut look_every = 1;
    while begin.elapsed() < time {
        let look_at = entries + look_every;
        let looked_at = Instant::now();
        while entries < look_at {
            match worker.append() {
                0 => return entries as u64,
                batch => entries += batch,
            }
        }
        // An append that waits for the disk takes longer than a look at the clock.
        let quick = looked_at.elapsed() < LOOK_EVERY;
        look_every = if quick { (look_every * 2).min(MOST_BETWEEN_LOOKS) } else { 1 };
    }
    entries as u64
}

/// Processor time used so far.
fn used(clock: ClockId) -> Duration {
    let used = clock_gettime(clock);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}
