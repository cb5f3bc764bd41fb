//! Schedule: the faults of a run, as data drawn ahead, so that a search for the smallest failing run
//! can leave some of them out.
//!
//! # Not here: how often which comes (plan.rs), doing them (the world), whether damage is allowed
//! at that moment (atlas.rs).

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::dice::{Dice, Draw};
use crate::disk::Rot;
use crate::event::{Host, Nanos};
use crate::plan::Plan;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// The process dies and is back after `down`.
    Kill {
        /// Which machine's.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// The machine loses its power.
    PowerLoss {
        /// Which one.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// It loses its power in the middle of a call to its disk.
    CrashInside {
        /// Which one.
        host: Host,
        /// So many calls later.
        calls: u64,
        /// How long it is away.
        down: Duration,
    },
    /// The node is closed in order.
    Close {
        /// Which one.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// The process hangs.
    Pause {
        /// Which one.
        host: Host,
        /// How long.
        lasts: Duration,
    },
    /// Some ways are blocked.
    Partition {
        /// From where to where.
        ways: Vec<(Host, Host)>,
        /// How long.
        lasts: Duration,
    },
    /// A line is slow, one way.
    SlowLine {
        /// From where.
        from: Host,
        /// To where.
        to: Host,
        /// How long.
        lasts: Duration,
    },
    /// All connections between two machines are reset.
    Reset {
        /// One.
        a: Host,
        /// The other.
        b: Host,
    },
    /// Most datagrams are lost everywhere.
    LossBurst {
        /// How long.
        lasts: Duration,
    },
    /// A disk is slow.
    SlowDisk {
        /// Whose.
        host: Host,
        /// How many times slower.
        times: u32,
        /// How long.
        lasts: Duration,
    },
    /// A disk does not answer.
    Stall {
        /// Whose.
        host: Host,
        /// How long.
        lasts: Duration,
    },
    /// A disk is full.
    Full {
        /// Whose.
        host: Host,
        /// How long.
        lasts: Duration,
    },
    /// A sync fails: the node stops, and is started again.
    BrokenSync {
        /// Whose.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// A byte rots.
    Rot {
        /// On whose disk.
        host: Host,
        /// Of what.
        what: Rot,
        /// Draws which.
        place: u64,
    },
    /// The process dies, and nobody can read any more where its log ended: both slots of its tail mark
    /// rot.
    LostMark {
        /// Which machine's.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// Somebody has the node drop what it can of the front of its log.
    DropFront {
        /// Which one.
        host: Host,
    },
    /// The machine gets an empty disk.
    Wipe {
        /// Which one.
        host: Host,
        /// How long it is away.
        down: Duration,
    },
    /// Somebody sets a wall clock.
    WallStep {
        /// Whose.
        host: Host,
        /// By so many milliseconds.
        by_ms: i64,
    },
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// When it comes.
    pub at: Nanos,
    /// What it is.
    pub kind: FaultKind,
}

impl FaultKind {
    /// Its name, for coverage.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "fault: kill",
            Self::PowerLoss { .. } => "fault: power loss",
            Self::CrashInside { .. } => "fault: crash inside a call",
            Self::Close { .. } => "fault: close",
            Self::Pause { .. } => "fault: pause",
            Self::Partition { .. } => "fault: partition",
            Self::SlowLine { .. } => "fault: slow line",
            Self::Reset { .. } => "fault: reset",
            Self::LossBurst { .. } => "fault: loss burst",
            Self::SlowDisk { .. } => "fault: slow disk",
            Self::Stall { .. } => "fault: stall",
            Self::Full { .. } => "fault: full disk",
            Self::BrokenSync { .. } => "fault: broken sync",
            Self::Rot { .. } => "fault: rot",
            Self::LostMark { .. } => "fault: lost mark",
            Self::DropFront { .. } => "fault: front dropped",
            Self::Wipe { .. } => "fault: wipe",
            Self::WallStep { .. } => "fault: wall clock set",
        }
    }

    /// The names of all.
    pub const NAMES: [&'static str; 18] = [
        "fault: kill",
        "fault: power loss",
        "fault: crash inside a call",
        "fault: close",
        "fault: pause",
        "fault: partition",
        "fault: slow line",
        "fault: reset",
        "fault: loss burst",
        "fault: slow disk",
        "fault: stall",
        "fault: full disk",
        "fault: broken sync",
        "fault: rot",
        "fault: lost mark",
        "fault: front dropped",
        "fault: wipe",
        "fault: wall clock set",
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms: {:?}", self.at.0 / 1_000_000, self.kind)
    }
}

/// All faults of a run, in order of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Each by its number, which stays when others are left out.
    pub faults: Vec<(usize, Fault)>,
}

/// Draws one fault's particulars.
type Particulars = fn(&mut Rng, &Plan) -> FaultKind;

impl Schedule {
    /// The faults of a plan.
    pub fn drawn(plan: &Plan) -> Self {
        let rates = plan.faults;
        let kinds: [(f64, &str, Particulars); 18] = [
            (rates.kill, "kill", |rng, plan| FaultKind::Kill {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.power_loss, "power loss", |rng, plan| FaultKind::PowerLoss {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.crash_inside, "crash inside", |rng, plan| FaultKind::CrashInside {
                host: host(rng, plan),
                calls: rng.spread(1, 60),
                down: away(rng),
            }),
            (rates.close, "close", |rng, plan| FaultKind::Close {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.pause, "pause", |rng, plan| FaultKind::Pause {
                host: host(rng, plan),
                lasts: if rng.hit(0.2) { Duration::from_secs(40) } else { away(rng) },
            }),
            (rates.partition, "partition", |rng, plan| FaultKind::Partition {
                ways: ways(rng, plan),
                lasts: away(rng),
            }),
            (rates.slow_line, "slow line", |rng, plan| {
                let (from, to) = pair(rng, plan);
                FaultKind::SlowLine { from, to, lasts: away(rng) }
            }),
            (rates.reset, "reset", |rng, plan| {
                let (a, b) = pair(rng, plan);
                FaultKind::Reset { a, b }
            }),
            (rates.loss_burst, "loss burst", |rng, _| FaultKind::LossBurst { lasts: away(rng) }),
            (rates.slow_disk, "slow disk", |rng, plan| FaultKind::SlowDisk {
                host: host(rng, plan),
                times: rng.u32(2..40),
                lasts: away(rng),
            }),
            (rates.stall, "stall", |rng, plan| FaultKind::Stall {
                host: host(rng, plan),
                lasts: away(rng),
            }),
            (rates.full, "full", |rng, plan| FaultKind::Full {
                host: host(rng, plan),
                lasts: away(rng),
            }),
            (rates.broken_sync, "broken sync", |rng, plan| FaultKind::BrokenSync {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.rot, "rot", |rng, plan| FaultKind::Rot {
                host: host(rng, plan),
                what: rng.weighted(&[
                    (6, Rot::Entry),
                    (1, Rot::SegmentHeader),
                    (2, Rot::SideFile),
                    (1, Rot::ControlSlot),
                    (2, Rot::MarkSlot),
                ]),
                place: rng.u64(..),
            }),
            (rates.lost_mark, "lost mark", |rng, plan| FaultKind::LostMark {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.drop_front, "drop front", |rng, plan| FaultKind::DropFront {
                host: host(rng, plan),
            }),
            (rates.wipe, "wipe", |rng, plan| FaultKind::Wipe {
                host: host(rng, plan),
                down: away(rng),
            }),
            (rates.wall_step, "wall step", |rng, plan| FaultKind::WallStep {
                host: host(rng, plan),
                by_ms: rng.i64(-3_600_000..3_600_000),
            }),
        ];
        let dice = Dice::new(plan.seed);
        let mut faults = Vec::new();
        for (rate, concern, particulars) in kinds {
            let mut rng = dice.stream(&format!("schedule of {concern}"));
            let mut left = rate;
            while rng.hit(left) {
                // The group has to come up before much can be learnt from breaking it.
                let at = Nanos(1_000_000_000 + rng.u64(..plan.phase.as_nanos() as u64 * 3 / 4));
                faults.push(Fault { at, kind: particulars(&mut rng, plan) });
                left -= 1.0;
            }
        }
        faults.sort_by_key(|fault| fault.at);
        Self { faults: faults.into_iter().enumerate().collect() }
    }

    /// The same without all but the faults of these numbers.
    #[must_use]
    pub fn only(&self, numbers: &[usize]) -> Self {
        let kept = self.faults.iter().filter(|(number, _)| numbers.contains(number));
        Self { faults: kept.cloned().collect() }
    }

    /// The numbers of its faults.
    pub fn numbers(&self) -> Vec<usize> {
        self.faults.iter().map(|(number, _)| *number).collect()
    }
}

fn host(rng: &mut Rng, plan: &Plan) -> Host {
    Host(rng.usize(..plan.machines()))
}

fn away(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.spread(20, 15_000))
}

/// Two different machines, unless there is only one.
fn pair(rng: &mut Rng, plan: &Plan) -> (Host, Host) {
    let count = plan.machines();
    let a = rng.usize(..count);
    let b = (a + rng.usize(1..count.max(2))) % count;
    (Host(a), Host(b))
}

/// A partition: in two halves, one machine one-way, or any set of ways.
fn ways(rng: &mut Rng, plan: &Plan) -> Vec<(Host, Host)> {
    let count = plan.machines();
    let all = || (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
    let apart = all().filter(|(a, b)| a != b);
    let chosen: Vec<(usize, usize)> = match rng.u8(..4) {
        0 | 1 => {
            let side = rng.u64(..);
            apart.filter(|(a, b)| side >> a & 1 != side >> b & 1).collect()
        }
        2 => {
            let (alone, hears) = (rng.usize(..count), rng.bool());
            apart.filter(|(a, b)| if hears { *a == alone } else { *b == alone }).collect()
        }
        _ => apart.filter(|_| rng.bool()).collect(),
    };
    chosen.into_iter().map(|(a, b)| (Host(a), Host(b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Coverage;

    #[test]
    fn every_kind_of_fault_comes_in_some_worlds_and_in_order_of_time() {
        let mut coverage = Coverage::expecting(&FaultKind::NAMES);
        for seed in 0..300 {
            let plan = Plan::drawn(seed);
            let schedule = Schedule::drawn(&plan);
            assert_eq!(schedule, Schedule::drawn(&plan));
            assert!(schedule.faults.is_sorted_by_key(|(_, fault)| fault.at));
            for (_, fault) in &schedule.faults {
                coverage.count(fault.kind.name());
                if let FaultKind::Partition { ways, .. } = &fault.kind {
                    assert!(ways.iter().all(|(a, b)| a != b && a.0.max(b.0) < plan.machines()));
                }
            }
        }
        assert_eq!(coverage.missing(), [""; 0]);
        assert!(Schedule::drawn(&Plan::drawn(1).calm()).faults.is_empty());
    }

    #[test]
    fn faults_that_are_left_out_leave_the_others_as_they_were() {
        let seed = (0..1_000).find(|seed| Schedule::drawn(&Plan::drawn(*seed)).faults.len() > 6);
        let whole = Schedule::drawn(&Plan::drawn(seed.unwrap()));
        let some = whole.only(&[1, 4]);
        assert_eq!(some.numbers(), [1, 4]);
        assert_eq!(some.faults[1], whole.faults[4]);
    }
}
