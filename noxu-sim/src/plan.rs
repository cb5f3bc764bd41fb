//! Plan: everything about a world that is decided before it begins, drawn from its seed.
//!
//! Sizes, times and probabilities are drawn, not only what happens with them: a rare fault is common
//! in some worlds and absent in others, so that each is met by every other sooner or later (*swarm
//! testing*).
//!
//! # Not here: which fault comes when (schedule.rs).

use std::ops::Range;
use std::time::Duration;

use noxu_log::MarkPolicy;
use noxu_rep::core::node::ElectionTiming;
use noxu_rep::{Durability, StreamTiming};

use crate::dice::{Dice, Draw};
use crate::disk::DiskPlan;
use crate::event::Host;
use crate::network::NetPlan;

/// A world to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What everything is drawn from.
    pub seed: u64,
    /// Voters; they are machines 0 up.
    pub voters: usize,
    /// Nodes with data and without a vote, on the machines behind those.
    pub secondaries: usize,
    /// Copies that make an entry durable.
    pub q_rep: usize,
    /// Votes that elect.
    pub q_elect: usize,
    /// Of each voter.
    pub priorities: Vec<u8>,
    /// Drift of each machine's clock, in parts per million.
    pub drifts_ppm: Vec<i32>,
    /// How wrong each machine's wall clock is, in milliseconds.
    pub wall_offsets_ms: Vec<i64>,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Longest value, in bytes.
    pub value_bytes: usize,
    /// Keys that clients use.
    pub keys: u64,
    /// Writes of one transaction, at most.
    pub writes: usize,
    /// When the tail mark is synced.
    pub tail_mark: MarkPolicy,
    /// Whether logs fill segments ahead, and keep a reserve for a full disk.
    pub prefill: bool,
    /// Bytes of log kept though nobody asks for them.
    pub keep_bytes: u64,
    /// How long nodes wait for what.
    pub election: ElectionTiming,
    /// Heartbeats of streams.
    pub stream: StreamTiming,
    /// The network.
    pub net: NetPlan,
    /// The disks.
    pub disk: DiskPlan,
    /// Clients.
    pub clients: usize,
    /// What clients ask for, each as likely as its weight.
    pub durabilities: Vec<(u32, Durability)>,
    /// Pause of a client between two operations, at most.
    pub think: Duration,
    /// Commits after which the first phase ends.
    pub commits: usize,
    /// The first phase ends then at the latest.
    pub phase: Duration,
    /// How often each kind of fault comes, on average in one phase.
    pub faults: FaultRates,
}

/// How often each kind of fault comes in one phase; 0 for never.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[allow(missing_docs)] // named as the faults of schedule.rs
pub struct FaultRates {
    pub kill: f64,
    pub power_loss: f64,
    pub crash_inside: f64,
    pub close: f64,
    pub pause: f64,
    pub partition: f64,
    pub slow_line: f64,
    pub reset: f64,
    pub loss_burst: f64,
    pub slow_disk: f64,
    pub stall: f64,
    pub full: f64,
    pub broken_sync: f64,
    pub rot: f64,
    pub wipe: f64,
    pub wall_step: f64,
    /// Both slots of a tail mark rot while the process is down.
    pub lost_mark: f64,
    /// The front of a log is dropped.
    pub drop_front: f64,
    /// Probability that a node dies right after a vote has left it, and is back soon.
    pub after_vote: f64,
    /// Probability that a node that has become master dies soon.
    pub short_reign: f64,
}

/// The seeds that `A..B` on a command line means, without B.
///
/// # Errors
///
/// What is wrong with `text`, for the user.
pub fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|cause| cause.to_string());
    Ok(number(from)?..number(to)?)
}

impl Plan {
    /// The world of a seed.
    pub fn drawn(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let mut rng = dice.stream("plan");
        let voters = rng.weighted(&[(5, 1), (15, 2), (45, 3), (10, 4), (25, 5)]);
        let majority = voters / 2 + 1;
        let (mut q_rep, mut q_elect) = (majority, majority);
        if rng.hit(0.2) {
            q_elect = rng.usize(majority..=voters);
            q_rep = rng.usize(voters - q_elect + 1..=voters);
        }
        let plain = rng.hit(0.5);
        let priority = |rng: &mut fastrand::Rng| if plain { 1 } else { rng.u8(1..4) };
        let mut priorities: Vec<u8> = (0..voters).map(|_| priority(&mut rng)).collect();
        if voters > 1 && rng.hit(0.1) {
            let last = voters - 1;
            priorities[last] = 0;
        }
        let heartbeat = Duration::from_millis(rng.spread(20, 200));
        let failure = heartbeat * rng.u32(4..12);
        let election = ElectionTiming {
            heartbeat,
            failure_timeout: failure,
            quorum_timeout: failure * 2,
            campaign_timeout: Duration::from_millis(rng.spread(100, 500)),
            ..ElectionTiming::default()
        };
        let delay = Duration::from_micros(rng.spread(20, 5_000));
        let often = |rng: &mut fastrand::Rng, most: f64| {
            if rng.hit(0.4) { 0.0 } else { most * rng.f64() }
        };
        let net = NetPlan {
            delay,
            jitter: delay * rng.u32(0..10),
            loss: often(&mut rng, 0.1),
            repeat: often(&mut rng, 0.1),
            straggle: often(&mut rng, 0.1),
            garble: if rng.hit(0.9) { 0.0 } else { 0.002 * rng.f64() },
            slow_bytes_per_second: rng.spread(16 << 10, 1 << 20),
        };
        let disk = DiskPlan {
            sync: Duration::from_micros(rng.spread(100, 5_000)),
            jitter: Duration::from_micros(rng.spread(100, 15_000)),
        };
        let faults = FaultRates {
            kill: often(&mut rng, 6.0),
            power_loss: often(&mut rng, 6.0),
            crash_inside: often(&mut rng, 6.0),
            close: often(&mut rng, 2.0),
            pause: often(&mut rng, 4.0),
            partition: if rng.hit(0.2) { 0.0 } else { 16.0 * rng.f64() },
            slow_line: often(&mut rng, 3.0),
            reset: often(&mut rng, 6.0),
            loss_burst: often(&mut rng, 3.0),
            slow_disk: often(&mut rng, 3.0),
            stall: often(&mut rng, 2.0),
            full: often(&mut rng, 2.0),
            broken_sync: often(&mut rng, 2.0),
            rot: often(&mut rng, 4.0),
            wipe: if rng.hit(0.1) { 1.0 } else { 0.0 },
            wall_step: often(&mut rng, 2.0),
            lost_mark: often(&mut dice.stream("lost marks"), 2.0),
            drop_front: often(&mut dice.stream("dropped fronts"), 6.0),
            after_vote: often(&mut dice.stream("after a vote"), 0.5),
            short_reign: if dice.stream("reigns").hit(0.2) { 0.9 } else { 0.0 },
        };
        let durabilities = vec![
            (rng.u32(1..10), Durability::MAJORITY),
            (rng.u32(0..4), Durability::WRITE_MAJORITY),
            (rng.u32(0..4), Durability::NO_SYNC_MAJORITY),
            (rng.u32(0..2), Durability::ALL),
            (rng.u32(0..4), Durability::LOCAL),
        ];
        let wall = |rng: &mut fastrand::Rng| {
            if rng.hit(0.7) { rng.i64(-50..50) } else { rng.i64(-60_000..60_000) }
        };
        let drift = |rng: &mut fastrand::Rng| rng.i32(-200..=200);
        let mut drifts_ppm: Vec<i32> = (0..voters).map(|_| drift(&mut rng)).collect();
        let mut wall_offsets_ms: Vec<i64> = (0..voters).map(|_| wall(&mut rng)).collect();
        let mut others = dice.stream("secondaries");
        let secondaries = others.weighted(&[(7, 0), (2, 1), (1, 2)]);
        drifts_ppm.extend((0..secondaries).map(|_| drift(&mut others)));
        wall_offsets_ms.extend((0..secondaries).map(|_| wall(&mut others)));
        Self {
            seed,
            voters,
            secondaries,
            q_rep,
            q_elect,
            priorities,
            drifts_ppm,
            wall_offsets_ms,
            segment_bytes: rng.spread(4 << 10, 64 << 10) as u32,
            value_bytes: rng.spread(16, 4_000) as usize,
            keys: rng.spread(4, 400),
            writes: rng.spread(1, 40) as usize,
            tail_mark: if rng.hit(0.9) { MarkPolicy::Strict } else { MarkPolicy::Lazy },
            prefill: false,
            keep_bytes: rng.spread(16 << 10, 1 << 20),
            election,
            stream: StreamTiming { heartbeat, silence: failure * 4 },
            net,
            disk,
            clients: rng.usize(1..=8),
            durabilities,
            think: Duration::from_millis(rng.spread(1, 60)),
            commits: rng.usize(400..=1_000),
            phase: Duration::from_mins(1),
            faults,
        }
    }

    /// A world for a scenario: nothing is drawn but small delays, and nobody is a client.
    pub fn plain(seed: u64, voters: usize, failure_timeout: Duration) -> Self {
        let (majority, heartbeat) = (voters / 2 + 1, failure_timeout / 10);
        let election = ElectionTiming {
            heartbeat,
            failure_timeout,
            quorum_timeout: failure_timeout * 2,
            ..ElectionTiming::default()
        };
        Self {
            seed,
            voters,
            secondaries: 0,
            q_rep: majority,
            q_elect: majority,
            priorities: vec![1; voters],
            drifts_ppm: vec![0; voters],
            wall_offsets_ms: vec![0; voters],
            segment_bytes: 16 << 10,
            value_bytes: 16,
            keys: 1,
            writes: 1,
            tail_mark: MarkPolicy::Strict,
            prefill: true,
            keep_bytes: 1 << 20,
            election,
            stream: StreamTiming { heartbeat, silence: failure_timeout * 4 },
            net: NetPlan::default(),
            disk: DiskPlan::default(),
            clients: 0,
            durabilities: vec![(1, Durability::MAJORITY)],
            think: Duration::ZERO,
            commits: 0,
            phase: Duration::ZERO,
            faults: FaultRates::default(),
        }
    }

    /// Adds nodes without a vote.
    #[must_use]
    pub fn with_secondaries(mut self, count: usize) -> Self {
        self.secondaries = count;
        self.drifts_ppm.resize(self.machines(), 0);
        self.wall_offsets_ms.resize(self.machines(), 0);
        self
    }

    /// How many machines there are.
    pub const fn machines(&self) -> usize {
        self.voters + self.secondaries
    }

    /// Those whose nodes have a vote.
    pub fn voting(&self) -> impl Iterator<Item = Host> + use<> {
        (0..self.voters).map(Host)
    }

    /// All machines.
    pub fn hosts(&self) -> impl Iterator<Item = Host> + use<> {
        (0..self.machines()).map(Host)
    }

    /// Whether its node has no vote.
    pub const fn is_secondary(&self, host: Host) -> bool {
        host.0 >= self.voters
    }

    /// Those whose nodes have none.
    pub fn secondary_hosts(&self) -> impl Iterator<Item = Host> + use<> {
        (self.voters..self.machines()).map(Host)
    }

    /// The same world without faults.
    #[must_use]
    pub fn calm(mut self) -> Self {
        self.faults = FaultRates::default();
        self.net.loss = 0.0;
        self.net.repeat = 0.0;
        self.net.straggle = 0.0;
        self.net.garble = 0.0;
        self
    }
}

#[cfg(test)]
mod tests {
    use noxu_rep::core::quorums::Quorums;

    use super::*;

    #[test]
    fn every_seed_draws_a_lawful_world_and_always_the_same() {
        let mut sizes = [0; 6];
        let (mut flexible, mut with_secondaries) = (0, 0);
        for seed in 0..2_000 {
            let plan = Plan::drawn(seed);
            assert_eq!(plan, Plan::drawn(seed));
            assert!(Quorums::check(plan.voters, plan.q_rep, plan.q_elect).is_ok(), "{plan:?}");
            assert_eq!(plan.priorities.len(), plan.voters);
            assert_eq!(plan.drifts_ppm.len(), plan.machines());
            assert_eq!(plan.wall_offsets_ms.len(), plan.machines());
            with_secondaries += usize::from(plan.secondaries > 0);
            assert!(plan.durabilities.iter().any(|(weight, _)| *weight > 0));
            assert!(plan.election.failure_timeout > plan.election.heartbeat * 3);
            sizes[plan.voters] += 1;
            flexible += usize::from(plan.q_rep != plan.voters / 2 + 1);
        }
        assert!(sizes[1..].iter().all(|count| *count > 50), "{sizes:?}");
        assert!(flexible > 50, "{flexible}");
        assert!(with_secondaries > 400, "{with_secondaries}");
    }

    #[test]
    fn a_calm_world_has_no_faults() {
        let plan = Plan::drawn(3).calm();
        assert_eq!(plan.faults, FaultRates::default());
        assert_eq!((plan.net.loss, plan.net.garble), (0.0, 0.0));
    }
}
