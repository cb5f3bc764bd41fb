//! Quorums: how many voters it takes to keep an entry, and how many to choose a master.
//!
//! # Invariants          (each is asserted in [`Quorums::new`])
//! - `rep + elect > n`: whoever is elected has asked somebody who holds each durable entry.
//! - `2 * elect > n`: no two candidates are elected in one term.
//! - `1 <= rep <= n` and `elect <= n`.
//!
//! # Not here: who the voters are (group.rs), what they hold (core/quorum.rs).
//! # See: CONSENSUS.md "Quorums"

/// Sizes of the quorums of a group of `n` voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorums {
    n: usize,
    rep: usize,
    elect: usize,
}

/// Sizes that would let the group lose what it promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadQuorums {
    /// Nobody votes.
    #[error("a group needs at least one voter")]
    NoVoters,
    /// More than there are, or none.
    #[error("a quorum of {found} of {n} voters; expected 1 to {n}")]
    OutOfRange {
        /// The size asked for.
        found: usize,
        /// Voters there are.
        n: usize,
    },
    /// An elected master might not have met anybody who holds a durable entry.
    #[error(
        "{rep} copies and {elect} votes of {n} voters need not meet; together they must be more \
         than {n}"
    )]
    DoNotMeet {
        /// Copies that make an entry durable.
        rep: usize,
        /// Votes that elect.
        elect: usize,
        /// Voters there are.
        n: usize,
    },
    /// Two masters might be elected in one term.
    #[error("{elect} votes are no majority of {n} voters")]
    NoMajority {
        /// Votes that elect.
        elect: usize,
        /// Voters there are.
        n: usize,
    },
}

impl Quorums {
    /// Checks the sizes.
    pub const fn check(n: usize, rep: usize, elect: usize) -> Result<Self, BadQuorums> {
        if n == 0 {
            return Err(BadQuorums::NoVoters);
        }
        if rep == 0 || rep > n {
            return Err(BadQuorums::OutOfRange { found: rep, n });
        }
        if elect == 0 || elect > n {
            return Err(BadQuorums::OutOfRange { found: elect, n });
        }
        if 2 * elect <= n {
            return Err(BadQuorums::NoMajority { elect, n });
        }
        if rep + elect <= n {
            return Err(BadQuorums::DoNotMeet { rep, elect, n });
        }
        Ok(Self { n, rep, elect })
    }

    /// Sizes that are known to be lawful.
    ///
    /// # Panics
    /// If they are not.
    pub fn new(n: usize, rep: usize, elect: usize) -> Self {
        match Self::check(n, rep, elect) {
            Ok(quorums) => quorums,
            Err(bad) => panic!("{bad}"),
        }
    }

    /// Majorities for both.
    pub fn majorities(n: usize) -> Self {
        Self::new(n, n / 2 + 1, n / 2 + 1)
    }

    /// Voters there are.
    pub const fn n(self) -> usize {
        self.n
    }

    /// Durable copies that make an entry durable for the group (Q_rep).
    pub const fn rep(self) -> usize {
        self.rep
    }

    /// Votes that elect a master (Q_elect).
    pub const fn elect(self) -> usize {
        self.elect
    }

    /// Voters beside the master that must say that they never had an entry, before it may be taken
    /// for one that was never durable: the rest is too few for a replication quorum.
    pub const fn nack(self) -> usize {
        self.n - self.rep + 1
    }

    /// Whether a master in touch with so many voters, itself counted, has to make way: the others
    /// are enough to elect another. Never if that takes every vote.
    pub const fn deposed_with(self, contacts_and_self: usize) -> bool {
        self.elect < self.n && contacts_and_self <= self.n - self.elect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every set of `size` of `n` voters, as bits.
    fn sets(n: usize, size: usize) -> impl Iterator<Item = u32> {
        (0..1_u32 << n).filter(move |set| set.count_ones() as usize == size)
    }

    #[test]
    fn lawful_sizes_are_exactly_those_whose_quorums_meet() {
        for n in 1..=7 {
            for rep in 0..=n + 1 {
                for elect in 0..=n + 1 {
                    let in_range = (1..=n).contains(&rep) && (1..=n).contains(&elect);
                    let meet = |a: usize, b: usize| {
                        sets(n, a).all(|one| sets(n, b).all(|other| one & other != 0))
                    };
                    let expected = in_range && meet(rep, elect) && meet(elect, elect);
                    let found = Quorums::check(n, rep, elect);
                    assert_eq!(found.is_ok(), expected, "{n} {rep} {elect}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_nack_quorum_leaves_too_few_voters_for_a_replication_quorum() {
        for n in 1..=9 {
            for rep in 1..=n {
                for elect in 1..=n {
                    let Ok(quorums) = Quorums::check(n, rep, elect) else { continue };
                    assert!(n - quorums.nack() < rep, "{quorums:?}");
                    assert!(n - (quorums.nack() - 1) >= rep, "{quorums:?}: one fewer would do");
                }
            }
        }
    }

    #[test]
    fn a_master_makes_way_exactly_when_the_others_can_elect() {
        for n in 1..=9 {
            for rep in 1..=n {
                for elect in 1..=n {
                    let Ok(quorums) = Quorums::check(n, rep, elect) else { continue };
                    for contacts_and_self in 1..=n {
                        let out_of_touch = n - contacts_and_self;
                        assert_eq!(
                            quorums.deposed_with(contacts_and_self),
                            out_of_touch >= elect,
                            "{quorums:?} {contacts_and_self}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn each_wrong_size_has_its_own_error() {
        assert_eq!(Quorums::check(0, 1, 1), Err(BadQuorums::NoVoters));
        assert_eq!(Quorums::check(3, 4, 2), Err(BadQuorums::OutOfRange { found: 4, n: 3 }));
        assert_eq!(Quorums::check(3, 2, 0), Err(BadQuorums::OutOfRange { found: 0, n: 3 }));
        assert_eq!(Quorums::check(4, 3, 2), Err(BadQuorums::NoMajority { elect: 2, n: 4 }));
        let apart = BadQuorums::DoNotMeet { rep: 2, elect: 3, n: 5 };
        assert_eq!(Quorums::check(5, 2, 3), Err(apart));
        assert_eq!(Quorums::majorities(5), Quorums::new(5, 3, 3));
        assert_eq!(Quorums::new(5, 2, 4).nack(), 4);
    }
}
