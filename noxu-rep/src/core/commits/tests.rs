//! What commits promise, event by event and against a naive count.

use super::*;
use crate::core::durability::Durability;
use crate::group::{Electorate, Voter, VoterKind};

const T: Now = Duration::from_secs(5);

fn v(n: i64) -> Vlsn {
    Vlsn::new(n)
}

fn ack(received: i64, durable: i64) -> Acked {
    Acked { received: v(received), durable: v(durable) }
}

/// A master n1 of `voters` nodes in a term whose first entry is 1, all others connected as
/// sessions 2, 3, ...
fn group(voters: u64) -> Commits<&'static str> {
    let names: Vec<Name> = (1..=voters).map(|n| format!("n{n}").parse().unwrap()).collect();
    let mut commits = Commits::new(Quorum::of_names(&names[0], &names), v(1), NULL_VLSN);
    for (n, name) in names.iter().enumerate().skip(1) {
        let session = SessionId(n as u64 + 1);
        assert!(commits.handle_connected(name, Incarnation::from_u64(1), session));
    }
    commits
}

fn established(voters: u64) -> Commits<&'static str> {
    let mut commits = group(voters);
    commits.handle_local_durable(v(1));
    for n in 2..=voters {
        commits.handle_ack(SessionId(n), ack(1, 1));
    }
    assert!(commits.established());
    commits
}

fn commit(commits: &mut Commits<&'static str>, n: i64, policy: Durability) {
    commits.handle_appended(v(n), 100, Some((policy.class(), T)));
    commits.check_invariants();
}

#[test]
fn nothing_is_visible_before_the_start_of_the_term_is_durable_on_a_quorum() {
    let mut commits = group(3);
    commit(&mut commits, 2, Durability::LOCAL);
    commits.handle_local_durable(v(2));
    assert_eq!((commits.visible(), commits.dtvlsn()), (NULL_VLSN, NULL_VLSN));
    let changed = commits.handle_ack(SessionId(2), ack(1, 1));
    assert!(changed.dtvlsn && changed.visible);
    assert_eq!((commits.visible(), commits.dtvlsn()), (v(2), v(1)));
}

#[test]
fn a_majority_commit_is_released_by_one_durable_ack_and_the_own_fsync() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::MAJORITY);
    commits.wait_for(Class::majority(), v(2), "a");
    commits.handle_ack(SessionId(2), ack(2, 2));
    assert_eq!(commits.poll_released(), []);
    let changed = commits.handle_local_durable(v(2));
    assert_eq!(commits.poll_released(), [("a", Outcome::Satisfied)]);
    assert_eq!(changed, Changed { dtvlsn: true, visible: true, bounds: true });
    assert_eq!((commits.visible(), commits.dtvlsn()), (v(2), v(2)));
}

#[test]
fn an_ack_releases_exactly_the_commits_it_covers() {
    let mut commits = established(3);
    for n in 2..=9 {
        commit(&mut commits, n, Durability::MAJORITY);
    }
    commits.handle_local_durable(v(9));
    for (n, waiter) in [(9, "nine"), (2, "two"), (6, "six"), (7, "seven")] {
        commits.wait_for(Class::majority(), v(n), waiter);
    }
    commits.handle_ack(SessionId(3), ack(9, 6));
    let released: Vec<_> = commits.poll_released().into_iter().map(|(w, _)| w).collect();
    assert_eq!(released, ["two", "six"]);
    assert_eq!(commits.visible(), v(6));
    commits.check_invariants();
}

#[test]
fn received_acks_release_only_commits_that_ask_for_no_sync() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::MAJORITY);
    commit(&mut commits, 3, Durability::NO_SYNC_MAJORITY);
    assert!(commits.waits_for_received());
    commits.handle_ack(SessionId(2), ack(3, 1));
    assert_eq!(commits.bound(Durability::NO_SYNC_MAJORITY.class()), v(3));
    assert_eq!(commits.bound(Class::majority()), v(1));
    assert!(!commits.waits_for_received());
    // A weak commit returns before it is visible: the one below it is not settled.
    assert_eq!((commits.visible(), commits.dtvlsn()), (v(1), v(1)));
}

#[test]
fn all_waits_for_every_voter() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::ALL);
    commits.handle_local_durable(v(2));
    commits.handle_ack(SessionId(2), ack(2, 2));
    assert_eq!(commits.dtvlsn(), v(2));
    assert_eq!(commits.visible(), v(1));
    commits.handle_ack(SessionId(3), ack(2, 2));
    assert_eq!(commits.visible(), v(2));
}

#[test]
fn policies_never_move_dtvlsn() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::LOCAL);
    commits.handle_local_durable(v(2));
    assert_eq!((commits.visible(), commits.dtvlsn()), (v(2), v(1)));
    commits.handle_ack(SessionId(2), ack(2, 1));
    assert_eq!(commits.dtvlsn(), v(1));
    commits.handle_ack(SessionId(2), ack(2, 2));
    assert_eq!(commits.dtvlsn(), v(2));
}

#[test]
fn dtvlsn_stops_at_the_last_sync_entry_a_quorum_holds() {
    let mut commits = established(3);
    commit(&mut commits, 5, Durability::LOCAL); // a transaction 2..=5
    commit(&mut commits, 6, Durability::LOCAL);
    commit(&mut commits, 10, Durability::LOCAL); // 7..=10
    commits.handle_local_durable(v(10));
    commits.handle_ack(SessionId(2), ack(4, 4));
    assert_eq!(commits.dtvlsn(), v(1));
    commits.handle_ack(SessionId(2), ack(9, 9));
    assert_eq!(commits.dtvlsn(), v(6));
    commits.handle_ack(SessionId(2), ack(10, 10));
    assert_eq!(commits.dtvlsn(), v(10));
}

#[test]
fn entries_of_older_terms_become_durable_only_with_the_new_term() {
    let names: Vec<Name> = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec();
    let mut commits: Commits<()> = Commits::new(Quorum::of_names(&names[0], &names), v(21), v(10));
    commits.handle_connected(&names[1], Incarnation::from_u64(1), SessionId(2));
    commits.handle_local_durable(v(20));
    commits.handle_ack(SessionId(2), ack(20, 20));
    assert_eq!((commits.dtvlsn(), commits.visible()), (v(10), v(10)));
    commits.handle_local_durable(v(21));
    commits.handle_ack(SessionId(2), ack(21, 21));
    assert_eq!((commits.dtvlsn(), commits.visible()), (v(21), v(21)));
}

#[test]
fn a_commit_whose_time_ran_out_is_unknown_and_no_longer_holds_others_back() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::MAJORITY);
    let id = commits.wait_for(Class::majority(), v(2), "a");
    assert_eq!(commits.poll_timeout(), Some(T));
    commits.handle_timeout(T / 2);
    assert!(!commits.has_released());
    assert!(commits.handle_timeout(T).visible);
    assert_eq!(commits.poll_released(), [("a", Outcome::TimedOut)]);
    assert_eq!(commits.forget(Class::majority(), id), None);
    assert_eq!((commits.visible(), commits.dtvlsn()), (v(2), v(1)));
    assert_eq!(commits.poll_timeout(), None);
    // Whoever asks later learns the same, until it does become durable after all.
    commits.wait_for(Class::majority(), v(2), "b");
    assert_eq!(commits.poll_released(), [("b", Outcome::TimedOut)]);
    commits.handle_local_durable(v(2));
    commits.handle_ack(SessionId(2), ack(2, 2));
    commits.wait_for(Class::majority(), v(2), "c");
    assert_eq!(commits.poll_released(), [("c", Outcome::Satisfied)]);
    assert_eq!(commits.dtvlsn(), v(2));
}

#[test]
fn a_voter_that_leaves_and_returns_resolves_what_waited() {
    let mut commits = established(2);
    assert!(commits.can_satisfy(Class::majority()));
    commit(&mut commits, 2, Durability::MAJORITY);
    commits.handle_local_durable(v(2));
    commits.handle_disconnected(SessionId(2));
    assert!(!commits.can_satisfy(Class::majority()));
    assert!(commits.can_satisfy(Durability::LOCAL.class()));
    assert_eq!(commits.bound(Class::majority()), v(1));
    commits.handle_connected(&"n2".parse().unwrap(), Incarnation::from_u64(1), SessionId(7));
    commits.handle_ack(SessionId(7), ack(2, 2));
    assert_eq!(commits.bound(Class::majority()), v(2));
}

#[test]
fn closing_releases_everybody_as_closed() {
    let mut commits = established(3);
    commit(&mut commits, 2, Durability::MAJORITY);
    commits.wait_for(Class::majority(), v(2), "a");
    commits.handle_closed();
    commits.wait_for(Class::majority(), v(2), "b");
    commits.wait_for(Class::majority(), v(1), "old");
    assert_eq!(
        commits.poll_released(),
        [("a", Outcome::Closed), ("b", Outcome::Closed), ("old", Outcome::Satisfied)]
    );
}

#[test]
fn bytes_beyond_dtvlsn_are_known_to_within_a_sample() {
    let mut commits = established(3);
    let class = Durability::LOCAL.class();
    for n in 2..=101 {
        commits.handle_appended(v(n), 10_000, Some((class, T)));
    }
    assert_eq!(commits.unreplicated_bytes(), 1_000_000);
    commits.handle_local_durable(v(101));
    commits.handle_ack(SessionId(2), ack(51, 51));
    let left = commits.unreplicated_bytes();
    assert!((500_000..=500_000 + SAMPLE_BYTES).contains(&left), "{left}");
    commits.handle_ack(SessionId(2), ack(101, 101));
    assert_eq!(commits.unreplicated_bytes(), 0);
}

#[test]
fn a_group_of_one_is_durable_with_its_own_disk() {
    let mut commits = established(1);
    commit(&mut commits, 2, Durability::ALL);
    commit(&mut commits, 3, Durability::MAJORITY);
    commits.handle_local_durable(v(3));
    assert_eq!((commits.dtvlsn(), commits.visible()), (v(3), v(3)));
}

/// Every event sequence keeps the invariants, and DTVLSN is what a naive count says.
#[test]
fn random_events_agree_with_a_naive_count() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut commits = established(3);
        let mut last = 1;
        let mut sync_entries = vec![1];
        let mut durable = [1i64; 3];
        let policies = [
            Durability::MAJORITY,
            Durability::ALL,
            Durability::LOCAL,
            Durability::NO_SYNC_MAJORITY,
            Durability::WRITE_MAJORITY,
        ];
        for step in 0..200u64 {
            match random.u8(0..4) {
                0 => {
                    last += random.i64(1..5);
                    sync_entries.push(last);
                    let class = policies[random.usize(0..policies.len())].class();
                    let deadline = Duration::from_millis(step + 50);
                    commits.handle_appended(v(last), 100, Some((class, deadline)));
                }
                1 => {
                    durable[0] = random.i64(durable[0]..=last);
                    commits.handle_local_durable(v(durable[0]));
                }
                2 => {
                    let n = random.usize(1..3);
                    durable[n] = random.i64(durable[n]..=last);
                    let received = random.i64(durable[n]..=last);
                    commits.handle_ack(SessionId(n as u64 + 1), ack(received, durable[n]));
                }
                _ => {
                    commits.handle_timeout(Duration::from_millis(step));
                }
            }
            commits.check_invariants();
            let mut sorted = durable;
            sorted.sort_unstable();
            let naive = sync_entries.iter().filter(|v| **v <= sorted[1]).max();
            assert_eq!(commits.dtvlsn(), v(*naive.unwrap()), "seed {seed}, step {step}");
        }
    }
}

/// A master n1 of `voters` directories 1, 2, ... in a term whose first entry is 1, nobody
/// connected.
fn bound(voters: u64, q_rep: u8, q_elect: u8) -> Commits<&'static str> {
    let voter = |n| Voter {
        name: format!("n{n}").parse().unwrap(),
        incarnation: Incarnation::from_u64(n),
        kind: VoterKind::Data,
        address: String::new(),
    };
    let electorate = Electorate { voters: (1..=voters).map(voter).collect(), q_rep, q_elect };
    let me = &electorate.voters[0];
    Commits::new(Quorum::of_electorate(&me.name, me.incarnation, &electorate), v(1), NULL_VLSN)
}

fn connect(commits: &mut Commits<&'static str>, who: &str, incarnation: u64, session: u64) -> bool {
    let incarnation = Incarnation::from_u64(incarnation);
    commits.handle_connected(&who.parse().unwrap(), incarnation, SessionId(session))
}

const LIMIT: u64 = 1_000;

fn admission(commits: &Commits<&'static str>, policy: Durability, applied: i64) -> Admissible {
    commits.admission(policy.class(), v(applied), LIMIT)
}

#[test]
fn nothing_is_admitted_before_the_start_of_the_term_is_durable_and_applied() {
    let mut commits = group(3);
    for policy in [Durability::MAJORITY, Durability::ALL, Durability::LOCAL] {
        let needed = if policy == Durability::ALL { 2 } else { 1 };
        let waits = Admissible::Replicas { needed, connected: 2 };
        assert_eq!(admission(&commits, policy, 0), waits);
        assert_eq!(admission(&commits, policy, 1), waits, "applied and not durable");
    }
    commits.handle_local_durable(v(1));
    commits.handle_ack(SessionId(2), ack(1, 1));
    for policy in [Durability::MAJORITY, Durability::ALL, Durability::LOCAL] {
        assert_eq!(admission(&commits, policy, 0), Admissible::Applied(v(1)));
        assert_eq!(admission(&commits, policy, 1), Admissible::Yes);
    }
}

#[test]
fn a_policy_is_admitted_while_as_many_voters_are_connected_as_it_asks_for() {
    let mut commits = established(3);
    commits.handle_disconnected(SessionId(3));
    let one = Admissible::Replicas { needed: 2, connected: 1 };
    assert_eq!(admission(&commits, Durability::ALL, 1), one);
    assert_eq!(admission(&commits, Durability::MAJORITY, 1), Admissible::Yes);
    commits.handle_disconnected(SessionId(2));
    let none = Admissible::Replicas { needed: 1, connected: 0 };
    assert_eq!(admission(&commits, Durability::MAJORITY, 1), none);
    assert_eq!(admission(&commits, Durability::LOCAL, 1), Admissible::Yes);
}

#[test]
fn only_commits_without_acknowledgements_wait_for_room() {
    let mut commits = established(3);
    commits.handle_appended(v(2), LIMIT - 1, Some((Durability::LOCAL.class(), T)));
    assert_eq!(admission(&commits, Durability::LOCAL, 1), Admissible::Yes);
    commits.handle_appended(v(3), 1, Some((Durability::LOCAL.class(), T)));
    assert_eq!(admission(&commits, Durability::LOCAL, 1), Admissible::Room);
    assert_eq!(admission(&commits, Durability::MAJORITY, 1), Admissible::Yes);
    commits.handle_local_durable(v(3));
    commits.handle_ack(SessionId(2), ack(3, 3));
    assert_eq!(admission(&commits, Durability::LOCAL, 1), Admissible::Yes);
}

#[test]
fn stopped_writes_are_refused_before_anything_else_and_for_good() {
    let refused = |commits: &Commits<_>| {
        let policies = [Durability::MAJORITY, Durability::ALL, Durability::LOCAL];
        policies.iter().all(|policy| admission(commits, *policy, 1) == Admissible::Closed)
    };
    let mut commits = established(3);
    commits.handle_writes_stopped();
    assert!(refused(&commits));
    assert!(!commits.is_closed());
    commits.handle_closed();
    assert!(refused(&commits));
    let mut commits = group(3);
    commits.handle_closed();
    assert!(refused(&commits));
    commits.check_invariants();
}

#[test]
fn a_directory_that_is_not_bound_satisfies_no_policy() {
    let mut commits = bound(3, 0, 0);
    assert!(connect(&mut commits, "n2", 2, 2));
    commits.handle_local_durable(v(1));
    commits.handle_ack(SessionId(2), ack(1, 1));
    commits.handle_disconnected(SessionId(2));
    assert!(!connect(&mut commits, "n2", 7, 3), "wiped");
    assert!(!connect(&mut commits, "secondary", 8, 4), "no voter");
    let none = |needed| Admissible::Replicas { needed, connected: 0 };
    assert_eq!(admission(&commits, Durability::MAJORITY, 1), none(1));
    assert_eq!(admission(&commits, Durability::NO_SYNC_MAJORITY, 1), none(1));
    assert_eq!(admission(&commits, Durability::ALL, 1), none(2));

    let policies = [Durability::MAJORITY, Durability::NO_SYNC_MAJORITY, Durability::ALL];
    for (n, policy) in (2..).zip(policies) {
        commit(&mut commits, n, policy);
    }
    commits.handle_local_durable(v(4));
    for session in [3, 4] {
        assert_eq!(commits.handle_ack(SessionId(session), ack(4, 4)), Changed::default());
    }
    assert_eq!((commits.dtvlsn(), commits.visible()), (v(1), v(1)));
    let bounds = policies.map(|policy| commits.bound(policy.class()));
    assert_eq!(bounds, [v(1), v(1), v(0)]);

    assert!(connect(&mut commits, "n2", 2, 5), "the bound directory is back");
    commits.handle_ack(SessionId(5), ack(4, 4));
    assert_eq!((commits.dtvlsn(), commits.visible()), (v(4), v(3)));
    assert!(connect(&mut commits, "n3", 3, 6));
    commits.handle_ack(SessionId(6), ack(4, 4));
    assert_eq!(commits.visible(), v(4));
    commits.check_invariants();
}

#[test]
fn a_quorum_below_a_majority_releases_a_commit_with_one_replica() {
    let mut commits = bound(5, 2, 4);
    connect(&mut commits, "n4", 4, 4);
    commits.handle_local_durable(v(1));
    commits.handle_ack(SessionId(4), ack(1, 1));
    assert_eq!(admission(&commits, Durability::MAJORITY, 1), Admissible::Yes);
    let one = Admissible::Replicas { needed: 4, connected: 1 };
    assert_eq!(admission(&commits, Durability::ALL, 1), one);
    commit(&mut commits, 2, Durability::MAJORITY);
    commits.handle_ack(SessionId(4), ack(2, 2));
    assert_eq!((commits.dtvlsn(), commits.bound(Class::majority())), (v(1), v(1)));
    commits.handle_local_durable(v(2));
    assert_eq!((commits.dtvlsn(), commits.bound(Class::majority())), (v(2), v(2)));
}

/// Replicas come and go, in their bound directories and in others, and all of them acknowledge.
/// DTVLSN is the largest sync entry at or below the Q_rep-th largest durable copy among the bound
/// voters, and each class's bound what a naive count of them says.
#[test]
fn flexible_quorums_agree_with_a_naive_count_of_bound_directories() {
    for (voters, rep, elect) in [(5, 2, 4), (4, 2, 3), (5, 3, 3), (3, 3, 2), (4, 3, 3), (5, 4, 3)] {
        for seed in 0..60 {
            flexible_run(voters, rep, elect, seed);
        }
    }
}

fn flexible_run(voters: u64, rep: u8, elect: u8, seed: u64) {
    let case = format!("{rep} of {voters}, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut commits = bound(voters, rep, elect);
    let mut last = 1;
    let mut sync_entries = vec![1];
    let mut dtvlsn = 0;
    // The master first; then (received, durable) of every bound directory.
    let mut held = vec![(0, 0); voters as usize];
    let mut open: Vec<Option<u64>> = vec![None; voters as usize];
    let mut never: Vec<u64> = Vec::new(); // sessions that must not count
    for session in 1..300 {
        let n = random.usize(1..voters as usize);
        match random.u8(0..8) {
            0 => {
                last += random.i64(1..5);
                sync_entries.push(last);
                let deadline = Duration::from_secs(9);
                commits.handle_appended(v(last), 100, Some((Class::majority(), deadline)));
            }
            1 => {
                held[0].1 = random.i64(held[0].1..=last);
                commits.handle_local_durable(v(held[0].1));
            }
            2 => {
                never.extend(open[n].replace(session));
                assert!(connect(&mut commits, &format!("n{}", n + 1), n as u64 + 1, session));
            }
            3 => {
                let wiped = n as u64 + 1 + 100 * random.u64(1..3);
                assert!(!connect(&mut commits, &format!("n{}", n + 1), wiped, session));
                never.push(session);
            }
            4 => {
                assert!(!connect(&mut commits, "secondary", n as u64 + 1, session));
                never.push(session);
            }
            5 => {
                if let Some(session) = open[n].take() {
                    commits.handle_disconnected(SessionId(session));
                    held[n].0 = held[n].1;
                    never.push(session);
                }
            }
            6 => {
                if let Some(session) = random.choice(&never) {
                    let found = commits.handle_ack(SessionId(*session), ack(last, last));
                    assert_eq!(found, Changed::default(), "{case}");
                }
            }
            _ => {
                if let Some(session) = open[n] {
                    held[n].1 = random.i64(held[n].1..=last);
                    held[n].0 = random.i64(held[n].1..=last).max(held[n].0);
                    commits.handle_ack(SessionId(session), ack(held[n].0, held[n].1));
                }
            }
        }
        commits.check_invariants();
        let mut durable: Vec<i64> = held.iter().map(|(_, durable)| *durable).collect();
        durable.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = durable[usize::from(rep) - 1];
        dtvlsn = sync_entries.iter().copied().filter(|at| *at <= quorum).fold(dtvlsn, i64::max);
        assert_eq!(commits.dtvlsn(), v(dtvlsn), "{case}, session {session}");
        let connected = open.iter().flatten().count();
        assert_eq!(commits.quorum().connected(), connected, "{case}");
        let satisfiable = connected + 1 >= usize::from(rep);
        assert_eq!(commits.can_satisfy(Class::majority()), satisfiable, "{case}");
        // What is reported durable is durable for the group (C4).
        let reported = commits.bound(Class::majority());
        assert!(sync_entries.iter().all(|at| v(*at) > reported || *at <= dtvlsn), "{case}");
    }
}
