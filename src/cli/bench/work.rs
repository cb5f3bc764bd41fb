//! Work: what can be measured, by the name it is asked for.

use std::str::FromStr;

use noxu_log::MarkPolicy;
use noxu_rep::{AckPolicy, Durability, SyncPolicy};

/// Something to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Commits of single puts.
    Commits(Commits),
    /// The same bytes written, synced and acknowledged by nobody in particular.
    Floor(Commits),
    /// Batches appended to a log alone.
    Append { sync: bool, batch: usize },
    /// One log to another over TCP.
    Stream(StreamSize),
    /// A replica that was away.
    Catchup,
    /// The search for the matchpoint of two logs that differ in so many entries.
    Syncup { depth: u64 },
    /// A replica without files.
    Restore(Restored),
}

/// What a restore brings, and whence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    /// The whole log, from the master alone.
    Master,
    /// The whole log, from a follower and what that lacks from the master.
    Follower,
    /// The whole log, from two followers at once.
    Followers,
    /// Half of the log and a checkpoint of the state, from a follower.
    Checkpoint,
}

/// Where a commit has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commits {
    SyncMajority,
    SyncMajorityLazy,
    NosyncMajority,
    LocalSync,
    LocalNosync,
}

/// Length of the bodies that are streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamSize {
    Bytes100,
    KiB1,
}

impl Commits {
    const ALL: [Self; 5] = [
        Self::SyncMajority,
        Self::SyncMajorityLazy,
        Self::NosyncMajority,
        Self::LocalSync,
        Self::LocalNosync,
    ];

    /// Those that others take part in.
    const OF_MAJORITIES: [Self; 3] =
        [Self::SyncMajority, Self::SyncMajorityLazy, Self::NosyncMajority];

    const fn name(self) -> &'static str {
        match self {
            Self::SyncMajority => "sync_majority",
            Self::SyncMajorityLazy => "sync_majority_lazy",
            Self::NosyncMajority => "nosync_majority",
            Self::LocalSync => "local_sync",
            Self::LocalNosync => "local_nosync",
        }
    }

    pub(super) const fn durability(self) -> Durability {
        match self {
            Self::SyncMajority | Self::SyncMajorityLazy => Durability::MAJORITY,
            Self::NosyncMajority => Durability::NO_SYNC_MAJORITY,
            Self::LocalSync => Durability::LOCAL,
            Self::LocalNosync => Durability {
                local: SyncPolicy::NoSync,
                replica: SyncPolicy::NoSync,
                acks: AckPolicy::None,
            },
        }
    }

    /// When the tail marks of the nodes are synced.
    pub(super) fn tail_mark(self) -> MarkPolicy {
        match self {
            Self::SyncMajorityLazy => MarkPolicy::Lazy,
            _ => MarkPolicy::default(),
        }
    }

    pub(super) const fn nodes(self) -> usize {
        match self {
            Self::SyncMajority | Self::SyncMajorityLazy | Self::NosyncMajority => 3,
            Self::LocalSync | Self::LocalNosync => 1,
        }
    }
}

impl StreamSize {
    const ALL: [Self; 2] = [Self::Bytes100, Self::KiB1];

    const fn name(self) -> &'static str {
        match self {
            Self::Bytes100 => "100B",
            Self::KiB1 => "1KiB",
        }
    }

    pub(super) const fn body_bytes(self) -> usize {
        match self {
            Self::Bytes100 => 100,
            Self::KiB1 => 1 << 10,
        }
    }
}

impl Restored {
    const ALL: [Self; 4] = [Self::Master, Self::Follower, Self::Followers, Self::Checkpoint];

    const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Follower => "follower",
            Self::Followers => "followers",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// Largest batch and depth that can be asked for.
const MAX_BATCH: usize = 1 << 16;
const MAX_DEPTH: u64 = 10_000_000;

impl Work {
    /// Those that are measured when none is named.
    pub(super) fn all() -> Vec<Self> {
        let appends = [true, false]
            .into_iter()
            .flat_map(|sync| [1, 16, 256].map(|batch| Self::Append { sync, batch }));
        Commits::ALL
            .map(Self::Commits)
            .into_iter()
            .chain(Commits::OF_MAJORITIES.map(Self::Floor))
            .chain(appends)
            .chain(StreamSize::ALL.map(Self::Stream))
            .chain([Self::Catchup])
            .chain([1_000, 50_000, 100_000].map(|depth| Self::Syncup { depth }))
            .chain(Restored::ALL.map(Self::Restore))
            .collect()
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Commits(commits) => f.write_str(commits.name()),
            Self::Floor(commits) => write!(f, "floor_{}", commits.name()),
            Self::Append { sync: true, batch } => write!(f, "append_sync_100B_b{batch}"),
            Self::Append { sync: false, batch } => write!(f, "append_nosync_100B_b{batch}"),
            Self::Stream(size) => write!(f, "stream_tcp_{}", size.name()),
            Self::Catchup => f.write_str("catchup"),
            Self::Syncup { depth } => write!(f, "syncup_{depth}"),
            Self::Restore(restored) => write!(f, "restore_{}", restored.name()),
        }
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let batch = |sync, digits: &str| {
            let batch = digits.parse().ok().filter(|batch| (1..=MAX_BATCH).contains(batch))?;
            Some(Self::Append { sync, batch })
        };
        let depth = |digits: &str| {
            let depth = digits.parse().ok().filter(|depth| (1..=MAX_DEPTH).contains(depth))?;
            Some(Self::Syncup { depth })
        };
        let parametric = [
            text.strip_prefix("append_sync_100B_b").and_then(|digits| batch(true, digits)),
            text.strip_prefix("append_nosync_100B_b").and_then(|digits| batch(false, digits)),
            text.strip_prefix("syncup_").and_then(depth),
        ];
        let named = || Self::all().into_iter().find(|work| work.to_string() == text);
        parametric.into_iter().flatten().next().or_else(named).ok_or_else(|| {
            format!("no work of that name; there are: {}", names(&Self::all()).join(", "))
        })
    }
}

fn names(works: &[Work]) -> Vec<String> {
    works.iter().map(Work::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_is_found_by_the_name_it_prints() {
        let others = ["append_sync_100B_b4096", "syncup_7"].map(|name| name.parse().unwrap());
        for work in Work::all().into_iter().chain(others) {
            assert_eq!(work.to_string().parse(), Ok(work));
        }
        for bad in ["", "sync", "syncup_", "syncup_0", "append_sync_100B_b0", "catchup_1"] {
            assert!(bad.parse::<Work>().unwrap_err().contains("sync_majority"), "{bad}");
        }
    }
}
