//! Quorum: what each voter acknowledged in this term, and what a number of them therefore holds.
//!
//! # Invariants          (each is asserted in `check_invariants`)
//! - `durable <= received` for every voter: nothing is fsynced before it is received.
//! - The master's own copy counts only once it is durable.
//! - An acknowledgement counts only from the session that is open now: an older session, an older
//!   term and an older incarnation of the same name all have another session number.
//! - What a bound voter acknowledged came from the directory that it is bound to.
//! - The slots and the master are exactly the voters that the quorums are made for.
//!
//! Non-voters get no slot here, so nothing can count them: a secondary, a stranger, a directory
//! that has a voter's name and another incarnation.
//!
//! # Not here: which commits that satisfies (core/commits.rs), which sizes are lawful
//! (core/quorums.rs).
//! # See: CONSENSUS.md "Quorums", C1

use noxu_util::{Incarnation, NULL_VLSN, Name, Vlsn};

use crate::core::quorums::Quorums;
use crate::group::Electorate;

/// What one voter holds, as far as it acknowledged it in this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acked {
    /// Verified and appended, perhaps only in memory.
    pub received: Vlsn,
    /// Fsynced.
    pub durable: Vlsn,
}

/// Which of the two positions a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// In the replica's memory.
    Received,
    /// On the replica's disk.
    Durable,
}

/// Number of one stream session, unique on its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Which directory speaks for a voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Directory {
    /// The one that the electorate binds, and no other.
    Bound(Incarnation),
    /// Any of its name: configuration version 1 is a list of names. The one that was connected
    /// last counts, and what an earlier one acknowledged is void.
    Any {
        /// The one that was connected last.
        latest: Option<Incarnation>,
    },
}

/// A voter beside the master.
#[derive(Debug, Clone)]
struct Slot {
    name: Name,
    directory: Directory,
    /// The open session, the only one that may acknowledge for this voter.
    session: Option<SessionId>,
    acked: Acked,
}

/// The voters of a group as their master sees them in one term.
#[derive(Debug, Clone)]
pub struct Quorum {
    quorums: Quorums,
    local_durable: Vlsn,
    /// Every voter but the master.
    others: Vec<Slot>,
}

impl Quorum {
    /// The voters of configuration version 1: names, any directory of which may speak, in
    /// majorities. Their master `me` is counted once, listed or not.
    pub fn of_names(me: &Name, voters: &[Name]) -> Self {
        let mut others: Vec<Slot> = Vec::with_capacity(voters.len());
        for name in voters {
            if name != me && !others.iter().any(|slot| slot.name == *name) {
                others.push(Slot::new(name, Directory::Any { latest: None }));
            }
        }
        Self { quorums: Quorums::majorities(others.len() + 1), local_durable: NULL_VLSN, others }
    }

    /// The voters that `electorate` binds, in quorums of its sizes, with one of them, `me` in the
    /// directory `incarnation`, as their master.
    ///
    /// # Panics
    /// If the electorate is unlawful or does not let `me` become master.
    pub fn of_electorate(me: &Name, incarnation: Incarnation, electorate: &Electorate) -> Self {
        let quorums = match electorate.check() {
            Ok(quorums) => quorums,
            Err(bad) => panic!("{bad}"),
        };
        assert!(
            electorate.is_electable(me, incarnation),
            "{me} in directory {incarnation:?} is a master that nobody may elect"
        );
        let others = electorate.voters.iter().filter(|voter| voter.name != *me);
        let others = others
            .map(|voter| Slot::new(&voter.name, Directory::Bound(voter.incarnation)))
            .collect();
        Self { quorums, local_durable: NULL_VLSN, others }
    }

    /// Copies that make an entry durable for the group (Q_rep).
    pub fn replication_quorum(&self) -> usize {
        self.quorums.rep()
    }

    /// Voters beside the master.
    pub fn other_voters(&self) -> usize {
        self.others.len()
    }

    /// Voters beside the master whose session is open.
    pub fn connected(&self) -> usize {
        self.others.iter().filter(|v| v.session.is_some()).count()
    }

    /// A stream to `name` is open. False if no voter is reached by it: it changes nothing then,
    /// and neither does anything that is acknowledged over it. A wiped voter is of that kind; what
    /// the bound directory acknowledged before stays true of that directory.
    pub fn handle_connected(
        &mut self,
        name: &Name,
        incarnation: Incarnation,
        session: SessionId,
    ) -> bool {
        let Some(slot) = self.others.iter_mut().find(|slot| slot.name == *name) else {
            return false;
        };
        match &mut slot.directory {
            Directory::Bound(bound) => {
                if *bound != incarnation {
                    return false;
                }
            }
            Directory::Any { latest } => {
                if *latest != Some(incarnation) {
                    *latest = Some(incarnation);
                    slot.acked = Acked::default();
                }
            }
        }
        // What an earlier session merely received may have gone with its process.
        slot.acked.received = slot.acked.durable;
        slot.session = Some(session);
        true
    }

    /// The stream is gone. What it acknowledged stays true: it is on that voter's disk. Only what
    /// it merely received may be lost with the process.
    pub fn handle_disconnected(&mut self, session: SessionId) {
        if let Some(voter) = self.others.iter_mut().find(|v| v.session == Some(session)) {
            voter.session = None;
            voter.acked.received = voter.acked.durable;
        }
    }

    /// A cumulative acknowledgement of an open session in this term. False if it changes nothing.
    pub fn handle_ack(&mut self, session: SessionId, acked: Acked) -> bool {
        assert!(acked.durable <= acked.received, "{acked:?}: durable beyond received");
        let Some(voter) = self.others.iter_mut().find(|v| v.session == Some(session)) else {
            return false;
        };
        let before = voter.acked;
        voter.acked.received = before.received.max(acked.received);
        voter.acked.durable = before.durable.max(acked.durable);
        voter.acked != before
    }

    /// The master's own disk holds everything through `durable`.
    pub fn handle_local_durable(&mut self, durable: Vlsn) -> bool {
        let moved = durable > self.local_durable;
        self.local_durable = self.local_durable.max(durable);
        moved
    }

    /// What the master's own disk holds.
    pub fn local_durable(&self) -> Vlsn {
        self.local_durable
    }

    /// The highest VLSN that at least `copies` voters beside the master hold; `None` means that no
    /// copy is asked for, so there is no limit.
    pub fn held_by_others(&self, level: Level, copies: usize) -> Option<Vlsn> {
        if copies == 0 {
            return None;
        }
        if copies > self.others.len() {
            return Some(NULL_VLSN);
        }
        let position = |v: &Slot| match level {
            Level::Received => v.acked.received,
            Level::Durable => v.acked.durable,
        };
        Some(kth_largest(self.others.iter().map(position), copies))
    }

    /// The highest VLSN with durable copies on a replication quorum, the master's own included
    /// only as far as it is durable.
    pub fn durable_on_quorum(&self) -> Vlsn {
        let own = std::iter::once(self.local_durable);
        kth_largest(
            own.chain(self.others.iter().map(|v| v.acked.durable)),
            self.replication_quorum(),
        )
    }

    /// What `name` acknowledged, if it is a voter beside the master.
    pub fn acked(&self, name: &Name) -> Option<Acked> {
        self.others.iter().find(|v| v.name == *name).map(|v| v.acked)
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        for voter in &self.others {
            assert!(
                voter.acked.durable <= voter.acked.received,
                "{}: durable {} beyond received {}",
                voter.name,
                voter.acked.durable,
                voter.acked.received
            );
        }
        let voters = self.others.len() + 1;
        assert!(voters == self.quorums.n(), "{voters} voters in {:?}", self.quorums);
        for (at, slot) in self.others.iter().enumerate() {
            let twice = self.others[..at].iter().any(|other| other.name == slot.name);
            assert!(!twice, "{} is counted twice", slot.name);
        }
    }
}

impl Slot {
    fn new(name: &Name, directory: Directory) -> Self {
        Self { name: name.clone(), directory, session: None, acked: Acked::default() }
    }
}

/// The `k`-th largest of a few positions (`k` from 1), without allocating for groups that exist.
fn kth_largest(positions: impl Iterator<Item = Vlsn>, k: usize) -> Vlsn {
    const MOST: usize = 16;
    let mut few = [NULL_VLSN; MOST];
    let mut count = 0;
    let mut many = Vec::new();
    for position in positions {
        if count < MOST {
            few[count] = position;
        } else {
            if many.is_empty() {
                many.extend_from_slice(&few);
            }
            many.push(position);
        }
        count += 1;
    }
    let sorted: &mut [Vlsn] = if count <= MOST { &mut few[..count] } else { &mut many };
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.get(k - 1).copied().unwrap_or(NULL_VLSN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{Voter, VoterKind};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn group(voters: usize) -> Quorum {
        let names: Vec<Name> = (1..=voters).map(|n| name(&format!("n{n}"))).collect();
        Quorum::of_names(&names[0], &names)
    }

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    fn ack(received: i64, durable: i64) -> Acked {
        Acked { received: v(received), durable: v(durable) }
    }

    fn connect(quorum: &mut Quorum, who: &str, incarnation: u64, session: u64) -> bool {
        let incarnation = Incarnation::from_u64(incarnation);
        quorum.handle_connected(&name(who), incarnation, SessionId(session))
    }

    #[test]
    fn a_quorum_of_names_is_a_majority_of_all_voters() {
        let sizes: Vec<usize> = (1..=7).map(|n| group(n).replication_quorum()).collect();
        assert_eq!(sizes, [1, 2, 2, 3, 3, 4, 4]);
        (1..=7).for_each(|n| group(n).check_invariants());
    }

    #[test]
    fn a_group_of_one_is_durable_where_its_master_is() {
        let mut quorum = group(1);
        assert_eq!(quorum.durable_on_quorum(), NULL_VLSN);
        quorum.handle_local_durable(v(9));
        assert_eq!(quorum.durable_on_quorum(), v(9));
        assert_eq!(quorum.held_by_others(Level::Durable, 0), None);
    }

    #[test]
    fn the_masters_own_copy_counts_only_when_durable() {
        let mut quorum = group(3);
        assert!(connect(&mut quorum, "n2", 1, 1));
        assert!(quorum.handle_ack(SessionId(1), ack(10, 10)));
        assert_eq!(quorum.durable_on_quorum(), NULL_VLSN);
        quorum.handle_local_durable(v(7));
        assert_eq!(quorum.durable_on_quorum(), v(7));
    }

    #[test]
    fn two_replicas_make_a_majority_without_the_masters_disk() {
        let mut quorum = group(3);
        connect(&mut quorum, "n2", 1, 1);
        connect(&mut quorum, "n3", 1, 2);
        quorum.handle_ack(SessionId(1), ack(10, 8));
        quorum.handle_ack(SessionId(2), ack(9, 9));
        assert_eq!(quorum.durable_on_quorum(), v(8));
        assert_eq!(quorum.held_by_others(Level::Received, 2), Some(v(9)));
        assert_eq!(quorum.held_by_others(Level::Durable, 3), Some(NULL_VLSN));
    }

    #[test]
    fn acks_of_a_non_voter_an_old_session_or_nobody_do_not_count() {
        let mut quorum = group(3);
        assert!(!connect(&mut quorum, "stranger", 1, 5));
        assert!(!quorum.handle_ack(SessionId(5), ack(10, 10)));
        connect(&mut quorum, "n2", 1, 6);
        connect(&mut quorum, "n2", 1, 7);
        assert!(!quorum.handle_ack(SessionId(6), ack(10, 10)));
        assert_eq!(quorum.held_by_others(Level::Durable, 1), Some(NULL_VLSN));
        assert_eq!(quorum.connected(), 1);
    }

    #[test]
    fn a_name_without_a_bound_directory_starts_from_nothing_when_it_was_wiped() {
        let mut quorum = group(2);
        connect(&mut quorum, "n2", 1, 1);
        quorum.handle_ack(SessionId(1), ack(10, 10));
        quorum.handle_disconnected(SessionId(1));
        connect(&mut quorum, "n2", 1, 2);
        assert_eq!(quorum.held_by_others(Level::Durable, 1), Some(v(10)));
        connect(&mut quorum, "n2", 2, 3);
        assert_eq!(quorum.held_by_others(Level::Durable, 1), Some(NULL_VLSN));
    }

    #[test]
    fn what_was_only_received_is_forgotten_with_the_connection() {
        let mut quorum = group(2);
        connect(&mut quorum, "n2", 1, 1);
        quorum.handle_ack(SessionId(1), ack(10, 4));
        quorum.handle_disconnected(SessionId(1));
        assert_eq!(quorum.acked(&name("n2")), Some(ack(4, 4)));
        assert_eq!(quorum.connected(), 0);
    }

    /// Voters n1, n2, ... in the directories 1, 2, ..., and n1 as their master.
    fn bound(voters: u64, q_rep: u8, q_elect: u8) -> Quorum {
        let voter = |n| Voter {
            name: name(&format!("n{n}")),
            incarnation: Incarnation::from_u64(n),
            kind: VoterKind::Data,
            address: String::new(),
        };
        let electorate = Electorate { voters: (1..=voters).map(voter).collect(), q_rep, q_elect };
        Quorum::of_electorate(&name("n1"), Incarnation::from_u64(1), &electorate)
    }

    #[test]
    fn an_electorate_sets_the_size_of_a_quorum() {
        let sizes = [(5, 2, 4), (4, 2, 3), (3, 3, 2), (5, 0, 0), (4, 0, 0)];
        let found = sizes.map(|(n, rep, elect)| {
            let quorum = bound(n, rep, elect);
            quorum.check_invariants();
            (quorum.replication_quorum(), quorum.other_voters())
        });
        assert_eq!(found, [(2, 4), (2, 3), (3, 2), (3, 4), (3, 3)]);
    }

    #[test]
    fn a_quorum_below_a_majority_is_durable_with_one_replica_or_two_without_the_master() {
        let mut quorum = bound(5, 2, 4);
        connect(&mut quorum, "n2", 2, 1);
        quorum.handle_ack(SessionId(1), ack(10, 10));
        assert_eq!(quorum.durable_on_quorum(), NULL_VLSN);
        quorum.handle_local_durable(v(6));
        assert_eq!(quorum.durable_on_quorum(), v(6));
        connect(&mut quorum, "n5", 5, 2);
        quorum.handle_ack(SessionId(2), ack(9, 8));
        assert_eq!(quorum.durable_on_quorum(), v(8));
    }

    #[test]
    fn a_directory_that_is_not_bound_neither_counts_nor_disturbs_the_one_that_is() {
        let mut quorum = bound(3, 0, 0);
        quorum.handle_local_durable(v(20));
        assert!(connect(&mut quorum, "n2", 2, 1));
        quorum.handle_ack(SessionId(1), ack(5, 4));
        assert!(!connect(&mut quorum, "n2", 9, 2), "wiped");
        assert!(!connect(&mut quorum, "secondary", 3, 3), "the directory of another voter");
        assert!(!connect(&mut quorum, "n1", 1, 4), "the master is no replica of its own");
        for session in 2..=4 {
            assert!(!quorum.handle_ack(SessionId(session), ack(20, 20)));
        }
        assert_eq!((quorum.durable_on_quorum(), quorum.connected()), (v(4), 1));
        quorum.handle_disconnected(SessionId(2));
        assert_eq!((quorum.acked(&name("n2")), quorum.connected()), (Some(ack(5, 4)), 1));
        quorum.handle_disconnected(SessionId(1));
        assert!(connect(&mut quorum, "n2", 2, 5), "the bound directory is back");
        assert!(quorum.handle_ack(SessionId(5), ack(7, 7)));
        assert_eq!((quorum.durable_on_quorum(), quorum.connected()), (v(7), 1));
        quorum.check_invariants();
    }

    #[test]
    #[should_panic(expected = "a master that nobody may elect")]
    fn a_wiped_directory_is_no_master() {
        let electorate = Electorate {
            voters: vec![Voter {
                name: name("n1"),
                incarnation: Incarnation::from_u64(1),
                kind: VoterKind::Data,
                address: String::new(),
            }],
            q_rep: 0,
            q_elect: 0,
        };
        Quorum::of_electorate(&name("n1"), Incarnation::from_u64(2), &electorate);
    }

    #[test]
    fn the_kth_largest_of_many_voters_is_found_too() {
        let positions = (1..=40).map(v);
        assert_eq!(kth_largest(positions.clone(), 1), v(40));
        assert_eq!(kth_largest(positions.clone(), 21), v(20));
        assert_eq!(kth_largest(positions, 41), NULL_VLSN);
    }
}
