//! Durability: when a commit's call returns, and what it then reports.
//!
//! Policies never change DTVLSN, only the moment a caller is released.

use crate::core::quorum::Level;

/// What has to have happened to an entry on one node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncPolicy {
    /// Fsynced.
    Sync,
    /// On its way to the operating system at once, which is not waited for; the background sync
    /// follows.
    WriteNoSync,
    /// In memory; written and synced in the background.
    NoSync,
}

/// How many voters beside the master have to hold an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckPolicy {
    /// Nobody.
    None,
    /// With the master, a replication quorum of the voters: a majority, unless the group was given
    /// another size.
    SimpleMajority,
    /// Every voter.
    All,
}

/// When a commit's call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Durability {
    /// On the master.
    pub local: SyncPolicy,
    /// On the replicas that acknowledge. [`SyncPolicy::WriteNoSync`] waits for their fsync, as
    /// [`SyncPolicy::Sync`] does: replicas report what they received and what they synced.
    pub replica: SyncPolicy,
    /// How many of them.
    pub acks: AckPolicy,
}

impl Durability {
    /// On the disks of a majority, the master's included. The default.
    pub const MAJORITY: Self = Self {
        local: SyncPolicy::Sync,
        replica: SyncPolicy::Sync,
        acks: AckPolicy::SimpleMajority,
    };
    /// Written on a majority, synced in the background.
    pub const WRITE_MAJORITY: Self = Self {
        local: SyncPolicy::WriteNoSync,
        replica: SyncPolicy::WriteNoSync,
        acks: AckPolicy::SimpleMajority,
    };
    /// In the memory of a majority; waits for no fsync anywhere.
    pub const NO_SYNC_MAJORITY: Self = Self {
        local: SyncPolicy::NoSync,
        replica: SyncPolicy::NoSync,
        acks: AckPolicy::SimpleMajority,
    };
    /// On the disks of all voters.
    pub const ALL: Self =
        Self { local: SyncPolicy::Sync, replica: SyncPolicy::Sync, acks: AckPolicy::All };
    /// On the master's disk only; a change of master may roll it back.
    pub const LOCAL: Self =
        Self { local: SyncPolicy::Sync, replica: SyncPolicy::NoSync, acks: AckPolicy::None };

    /// The class of commits that are released together.
    pub fn class(self) -> Class {
        let level = match self.replica {
            SyncPolicy::Sync | SyncPolicy::WriteNoSync => Level::Durable,
            SyncPolicy::NoSync => Level::Received,
        };
        let acks = match self.acks {
            AckPolicy::None => 0,
            AckPolicy::SimpleMajority => 1 + level_index(level),
            AckPolicy::All => 3 + level_index(level),
        };
        Class(acks * 2 + u8::from(self.local == SyncPolicy::Sync))
    }
}

impl Default for Durability {
    fn default() -> Self {
        Self::MAJORITY
    }
}

fn level_index(level: Level) -> u8 {
    match level {
        Level::Received => 0,
        Level::Durable => 1,
    }
}

/// Commits whose release needs the same positions. Within one, commits are released in VLSN order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class(u8);

impl Class {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// The strictest class that a quorum alone can satisfy.
    #[cfg(test)]
    pub fn majority() -> Self {
        Durability::MAJORITY.class()
    }

    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// Dense, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its bit in a set of classes.
    pub fn bit(self) -> u16 {
        1 << self.0
    }

    /// Whether the master's own fsync is waited for.
    pub fn needs_local_sync(self) -> bool {
        self.0 % 2 == 1
    }

    /// How many voters have to acknowledge.
    pub fn acks(self) -> AckPolicy {
        match self.0 / 2 {
            0 => AckPolicy::None,
            1 | 2 => AckPolicy::SimpleMajority,
            _ => AckPolicy::All,
        }
    }

    /// What they have to acknowledge.
    pub fn level(self) -> Level {
        match self.0 / 2 {
            0 | 1 | 3 => Level::Received,
            _ => Level::Durable,
        }
    }

    /// Whether an acknowledgement sent before the replica's fsync helps.
    pub fn waits_for_received(self) -> bool {
        self.acks() != AckPolicy::None && self.level() == Level::Received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_has_the_class_that_its_parts_ask_for() {
        for local in [SyncPolicy::Sync, SyncPolicy::WriteNoSync, SyncPolicy::NoSync] {
            for replica in [SyncPolicy::Sync, SyncPolicy::WriteNoSync, SyncPolicy::NoSync] {
                for acks in [AckPolicy::None, AckPolicy::SimpleMajority, AckPolicy::All] {
                    let class = Durability { local, replica, acks }.class();
                    assert_eq!(class.needs_local_sync(), local == SyncPolicy::Sync);
                    assert_eq!(class.acks(), acks);
                    if acks != AckPolicy::None {
                        let received = replica == SyncPolicy::NoSync;
                        assert_eq!(class.waits_for_received(), received, "{local:?} {replica:?}");
                    }
                    assert!(class.index() < Class::COUNT);
                }
            }
        }
        assert_eq!(Class::all().count(), Class::COUNT);
    }
}
