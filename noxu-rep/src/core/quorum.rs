//! Quorum: what each voter acknowledged in this term, and what a number of them therefore holds.
//!
//! # Invariants          (each is asserted in `check_invariants`)
//! - `durable <= received` for every voter: nothing is fsynced before it is received.
//! - The master's own copy counts only once it is durable.
//! - An acknowledgement counts only from the session that is open now: an older session, an older
//!   term and an older incarnation of the same name all have another session number.
//!
//! Non-voters get no slot here, so nothing can count them.
//!
//! # Not here: which commits that satisfies (core/commits.rs).

use noxu_util::{Incarnation, NULL_VLSN, Name, Vlsn};

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

#[derive(Debug, Clone)]
struct Voter {
    name: Name,
    incarnation: Option<Incarnation>,
    /// The open session, the only one that may acknowledge for this voter.
    session: Option<SessionId>,
    acked: Acked,
}

/// The voters of a group as their master sees them in one term.
#[derive(Debug, Clone)]
pub struct Quorum {
    local_durable: Vlsn,
    /// Every voter but the master.
    others: Vec<Voter>,
}

impl Quorum {
    /// The quorum of `voters` with `me` as their master, who is counted once, listed or not.
    pub fn new(me: &Name, voters: &[Name]) -> Self {
        let mut others: Vec<Voter> = Vec::with_capacity(voters.len());
        for name in voters {
            if name != me && !others.iter().any(|v| v.name == *name) {
                others.push(Voter {
                    name: name.clone(),
                    incarnation: None,
                    session: None,
                    acked: Acked::default(),
                });
            }
        }
        Self { local_durable: NULL_VLSN, others }
    }

    /// Copies that make an entry durable for the group: a majority of all voters (Q_rep).
    pub fn replication_quorum(&self) -> usize {
        self.others.len().div_ceil(2) + 1
    }

    /// Voters beside the master.
    pub fn other_voters(&self) -> usize {
        self.others.len()
    }

    /// Voters beside the master whose session is open.
    pub fn connected(&self) -> usize {
        self.others.iter().filter(|v| v.session.is_some()).count()
    }

    /// A stream to `name` is open. What an earlier incarnation of that name acknowledged is void.
    /// False if `name` is no voter.
    pub fn handle_connected(
        &mut self,
        name: &Name,
        incarnation: Incarnation,
        session: SessionId,
    ) -> bool {
        let Some(voter) = self.others.iter_mut().find(|v| v.name == *name) else { return false };
        if voter.incarnation != Some(incarnation) {
            voter.acked = Acked::default();
            voter.incarnation = Some(incarnation);
        }
        voter.session = Some(session);
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
        let position = |v: &Voter| match level {
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
        let quorum = self.replication_quorum();
        let voters = self.others.len() + 1;
        assert!(2 * quorum > voters, "{quorum} of {voters} is no majority");
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

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn group(voters: usize) -> Quorum {
        let names: Vec<Name> = (1..=voters).map(|n| name(&format!("n{n}"))).collect();
        Quorum::new(&names[0], &names)
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
    fn a_quorum_is_a_majority_of_all_voters() {
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
    fn a_wiped_voter_starts_from_nothing() {
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

    #[test]
    fn the_kth_largest_of_many_voters_is_found_too() {
        let positions = (1..=40).map(v);
        assert_eq!(kth_largest(positions.clone(), 1), v(40));
        assert_eq!(kth_largest(positions.clone(), 21), v(20));
        assert_eq!(kth_largest(positions, 41), NULL_VLSN);
    }
}
