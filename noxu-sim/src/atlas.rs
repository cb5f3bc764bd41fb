//! Atlas: which copies are damaged, so that no entry ever loses its last one.
//!
//! A run is to be recoverable in principle while every node is damaged somewhere. So damage is
//! allowed only if afterwards
//! 1. each entry is damaged on fewer voters than make it durable (at most `q_rep - 1`), and
//! 2. so few voters are wiped, or unsure where their log ends, that the others elect a master.
//!
//! A secondary may lose anything at any time, for nobody ever counted on it.
//!
//! # Not here: doing the damage (disk.rs), judging what came of it (invariants, excuse.rs).

use std::collections::{BTreeMap, BTreeSet};

use noxu_util::Vlsn;

use crate::event::Host;

/// Copies that are damaged.
#[derive(Debug, Clone)]
pub struct Atlas {
    q_rep: usize,
    q_elect: usize,
    voters: usize,
    /// Ranges of entries, first and last, that are damaged on a voter.
    damaged: BTreeMap<Host, Vec<(Vlsn, Vlsn)>>,
    /// Voters that may not know where their log ends.
    uncertain: BTreeSet<Host>,
    wiped: BTreeSet<Host>,
    /// Voters one of whose control slots is damaged: another would be the last of its pair.
    control: BTreeSet<Host>,
}

impl Atlas {
    /// Nothing is damaged among so many voters.
    pub fn new(voters: usize, q_rep: usize, q_elect: usize) -> Self {
        Self {
            q_rep,
            q_elect,
            voters,
            damaged: BTreeMap::new(),
            uncertain: BTreeSet::new(),
            wiped: BTreeSet::new(),
            control: BTreeSet::new(),
        }
    }

    /// Damages the entries `first` through `last` on `host`, if that is allowed.
    pub fn damage(&mut self, host: Host, first: Vlsn, last: Vlsn) -> bool {
        let others = self.without(host, first, last);
        if self.has_vote(host) && others >= self.q_rep.saturating_sub(1) {
            return false;
        }
        self.damaged.entry(host).or_default().push((first, last));
        true
    }

    /// This copy of the entry is damaged, whether or not the run stays recoverable.
    pub(crate) fn note_damage(&mut self, host: Host, vlsn: Vlsn) {
        self.damaged.entry(host).or_default().push((vlsn, vlsn));
    }

    /// The host does not know where its log ends, whether or not the others can elect a master.
    pub(crate) fn note_uncertain(&mut self, host: Host) {
        self.uncertain.insert(host);
    }

    /// At most so many other voters lack the same entry of `first` through `last`.
    fn without(&self, host: Host, first: Vlsn, last: Vlsn) -> usize {
        let overlaps =
            |ranges: &[(Vlsn, Vlsn)]| ranges.iter().any(|(from, to)| *from <= last && first <= *to);
        let counts = |other: Host| other != host && self.has_vote(other);
        let wiped = self.wiped.iter().filter(|other| counts(**other)).count();
        let damaged = self
            .damaged
            .iter()
            .filter(|(other, ranges)| {
                counts(**other) && !self.wiped.contains(other) && overlaps(ranges)
            })
            .count();
        wiped + damaged
    }

    /// Takes from `host` the knowledge where its log ends, if that is allowed.
    pub fn make_uncertain(&mut self, host: Host) -> bool {
        self.may_weaken(host) && {
            self.uncertain.insert(host);
            true
        }
    }

    /// Damages one slot of a control file, if all others are whole.
    pub fn damage_control(&mut self, host: Host) -> bool {
        self.control.insert(host)
    }

    /// Empties the disk of `host`, if that is allowed: every entry it holds loses a copy, and the
    /// group a vote.
    pub fn wipe(&mut self, host: Host) -> bool {
        let range = (Vlsn::new(1), Vlsn::new(i64::MAX - 1));
        let is_last = || self.worst_without(host) >= self.q_rep.saturating_sub(1);
        if self.has_vote(host) && (!self.may_weaken(host) || is_last()) {
            return false;
        }
        self.wiped.insert(host);
        self.damaged.insert(host, vec![range]);
        true
    }

    /// The most other voters that lack any one entry.
    fn worst_without(&self, host: Host) -> usize {
        let places = self.damaged.values().flatten().map(|(first, _)| *first);
        places.map(|at| self.without(host, at, at)).max().unwrap_or(0)
    }

    fn may_weaken(&self, host: Host) -> bool {
        let mut weak: BTreeSet<Host> = self.uncertain.union(&self.wiped).copied().collect();
        weak.insert(host);
        let weak = weak.into_iter().filter(|host| self.has_vote(*host)).count();
        weak <= self.voters - self.q_elect
    }

    /// Whether what this machine holds counts.
    pub fn has_vote(&self, host: Host) -> bool {
        host.0 < self.voters
    }

    /// Whether this copy of the entry is damaged.
    pub fn is_damaged(&self, host: Host, vlsn: Vlsn) -> bool {
        self.damaged.get(&host).is_some_and(|ranges| {
            ranges.iter().any(|(first, last)| (*first..=*last).contains(&vlsn))
        })
    }

    /// Whether this voter's directory is not the one that its group knows.
    pub fn is_wiped(&self, host: Host) -> bool {
        self.wiped.contains(&host)
    }

    /// Whether anything of it is damaged.
    pub fn is_touched(&self, host: Host) -> bool {
        self.damaged.contains_key(&host) || self.uncertain.contains(&host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: [Host; 3] = [Host(0), Host(1), Host(2)];

    fn vlsn(sequence: i64) -> Vlsn {
        Vlsn::new(sequence)
    }

    #[test]
    fn every_node_may_be_damaged_somewhere_but_no_entry_twice() {
        let mut atlas = Atlas::new(3, 2, 2);
        assert!(atlas.damage(HOSTS[0], vlsn(1), vlsn(5)));
        assert!(!atlas.damage(HOSTS[1], vlsn(5), vlsn(9)), "5 would be left on one of three");
        assert!(atlas.damage(HOSTS[1], vlsn(6), vlsn(9)));
        assert!(atlas.damage(HOSTS[2], vlsn(20), vlsn(20)));
        assert!(atlas.damage(HOSTS[0], vlsn(3), vlsn(4)), "the same copy again");
        assert!(atlas.is_damaged(HOSTS[1], vlsn(7)) && !atlas.is_damaged(HOSTS[1], vlsn(5)));
    }

    #[test]
    fn a_wiped_node_counts_as_damaged_everywhere() {
        let mut atlas = Atlas::new(3, 2, 2);
        assert!(atlas.wipe(HOSTS[2]));
        assert!(!atlas.damage(HOSTS[0], vlsn(1), vlsn(1)));
        assert!(!atlas.wipe(HOSTS[0]), "nobody could be elected");
        assert!(!atlas.make_uncertain(HOSTS[1]));
        let mut atlas = Atlas::new(3, 2, 2);
        assert!(atlas.damage(HOSTS[0], vlsn(1), vlsn(1)));
        assert!(!atlas.wipe(HOSTS[2]), "entry 1 would be left on one of three");
        assert!(atlas.wipe(HOSTS[0]));
    }

    #[test]
    fn a_secondary_may_lose_anything_and_nobody_notices() {
        let mut atlas = Atlas::new(3, 2, 2);
        let secondary = Host(3);
        assert!(atlas.damage(HOSTS[0], vlsn(1), vlsn(9)));
        assert!(atlas.damage(secondary, vlsn(1), vlsn(9)) && atlas.is_damaged(secondary, vlsn(9)));
        assert!(atlas.make_uncertain(secondary) && atlas.wipe(secondary));
        assert!(!atlas.damage(HOSTS[1], vlsn(9), vlsn(9)), "9 would be left on one voter");
        assert!(atlas.damage(HOSTS[1], vlsn(10), vlsn(10)));
        assert!(atlas.make_uncertain(HOSTS[1]) && !atlas.make_uncertain(HOSTS[2]));
    }

    #[test]
    fn a_group_that_needs_every_copy_is_left_alone() {
        let mut atlas = Atlas::new(3, 1, 3);
        assert!(atlas.damage_control(HOSTS[0]) && !atlas.damage_control(HOSTS[0]));
        assert!(!atlas.damage(HOSTS[0], vlsn(1), vlsn(1)));
        assert!(!atlas.make_uncertain(HOSTS[0]) && !atlas.wipe(HOSTS[0]));
    }
}
