//! Rollback: what a replica does with its own tail once the syncup has answered.
//!
//! A decision table; each row is a test.
//!
//! | matchpoint and own tail | decision |
//! |---|---|
//! | none found, and the master no longer holds what this log knows durable on a majority | restore |
//! | none found, although the master's log reaches down to it | refuse: foreign or corrupt |
//! | stream starts right after the own last entry | stream |
//! | tail beyond it, matchpoint at or above commit floor and known DTVLSN | roll back, stream |
//! | tail beyond it, matchpoint below either | refuse |
//! | tail beyond it, but the peer is not the master of a term at least the own one | wait |
//!
//! # See: REPLICATION.md "After the matchpoint: rollback", CONSENSUS.md "Truncation"

use noxu_util::{NULL_VLSN, Term, Vlsn};

/// What the own log and the peer look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Last entry of the own log.
    pub last: Vlsn,
    /// Highest VLSN that must not be rolled back, as the control file has it.
    pub commit_floor: Vlsn,
    /// Highest VLSN heard of as durable on a majority.
    pub known_dtvlsn: Vlsn,
    /// The own term.
    pub term: Term,
    /// The peer's term.
    pub peer_term: Term,
    /// Whether the peer is the master of that term.
    pub peer_is_master: bool,
    /// First VLSN of the peer's log, or the one that would be. Only looked at without a matchpoint.
    pub peer_first: Vlsn,
}

/// What the syncup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Both logs hold `matchpoint` (NULL: both are equal up to nothing); stream from `start`.
    Matchpoint {
        /// The newest sync entry that both hold.
        matchpoint: Vlsn,
        /// First VLSN to stream.
        start: Vlsn,
    },
    /// No entry in common.
    Nothing,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Stream on; the own log is a prefix of the master's.
    Stream,
    /// Save what is beyond, roll the state machine and the log back to there, then stream.
    RollBack {
        /// The matchpoint, which is kept.
        to: Vlsn,
    },
    /// Replace the log.
    Restore,
    /// An operator must decide: entries through `durable` were reported durable.
    Refuse {
        /// Where the logs part.
        matchpoint: Vlsn,
        /// What may not be rolled back.
        durable: Vlsn,
    },
    /// Only the established master may cause a rollback: try another peer.
    Wait,
}

/// The table.
pub fn decide(situation: &Situation, found: Found) -> Decision {
    // Of what is durable a log that lags holds a part.
    let durable = situation.commit_floor.max(situation.known_dtvlsn).min(situation.last);
    match found {
        // Both hold (or should hold) the entry at `durable`: that they share nothing is no lag.
        Found::Nothing if !durable.is_null() && situation.peer_first <= durable => {
            Decision::Refuse { matchpoint: NULL_VLSN, durable }
        }
        Found::Nothing => Decision::Restore,
        Found::Matchpoint { matchpoint, start } => {
            assert!(start > matchpoint, "stream from {start} at matchpoint {matchpoint}");
            if start == situation.last.next() {
                Decision::Stream
            } else if !situation.peer_is_master || situation.peer_term < situation.term {
                Decision::Wait
            } else if matchpoint < durable {
                Decision::Refuse { matchpoint, durable }
            } else if situation.last == NULL_VLSN {
                // Nothing to roll back and a start that is not 1: the log's front is elsewhere.
                Decision::Restore
            } else {
                Decision::RollBack { to: matchpoint }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    const LOG: Situation = Situation {
        last: Vlsn::new(20),
        commit_floor: Vlsn::new(8),
        known_dtvlsn: Vlsn::new(10),
        term: Term::new(3),
        peer_term: Term::new(4),
        peer_is_master: true,
        peer_first: Vlsn::new(1),
    };

    fn at(matchpoint: i64, start: i64) -> Found {
        Found::Matchpoint { matchpoint: v(matchpoint), start: v(start) }
    }

    #[test]
    fn no_tail_beyond_the_matchpoint_means_to_stream_on() {
        assert_eq!(decide(&LOG, at(20, 21)), Decision::Stream);
        // Both hold the unfinished transaction 19..=20 beyond the last sync entry.
        assert_eq!(decide(&LOG, at(18, 21)), Decision::Stream);
        let fresh =
            Situation { last: NULL_VLSN, commit_floor: NULL_VLSN, known_dtvlsn: NULL_VLSN, ..LOG };
        assert_eq!(decide(&fresh, at(0, 1)), Decision::Stream);
    }

    #[test]
    fn a_tail_that_nobody_was_told_is_durable_is_rolled_back() {
        assert_eq!(decide(&LOG, at(15, 16)), Decision::RollBack { to: v(15) });
        assert_eq!(decide(&LOG, at(10, 11)), Decision::RollBack { to: v(10) });
    }

    #[test]
    fn what_a_majority_made_durable_is_never_rolled_back() {
        let durable = v(10);
        assert_eq!(decide(&LOG, at(9, 10)), Decision::Refuse { matchpoint: v(9), durable });
        let floor = Situation { known_dtvlsn: NULL_VLSN, commit_floor: v(12), ..LOG };
        let durable = v(12);
        assert_eq!(decide(&floor, at(11, 12)), Decision::Refuse { matchpoint: v(11), durable });
        assert_eq!(decide(&floor, at(12, 13)), Decision::RollBack { to: v(12) });
    }

    /// A replica that lags hears of what it does not hold yet.
    #[test]
    fn what_is_durable_beyond_the_own_log_is_no_reason_to_refuse() {
        let lags = Situation { known_dtvlsn: v(500), peer_first: v(300), ..LOG };
        assert_eq!(decide(&lags, Found::Nothing), Decision::Restore);
        let durable = LOG.last;
        let refused = Decision::Refuse { matchpoint: v(15), durable };
        assert_eq!(decide(&lags, at(15, 16)), refused, "all that it holds is durable");
    }

    #[test]
    fn only_a_master_of_at_least_the_own_term_causes_a_rollback() {
        let lower = Situation { peer_term: Term::new(2), ..LOG };
        assert_eq!(decide(&lower, at(15, 16)), Decision::Wait);
        let follower = Situation { peer_is_master: false, ..LOG };
        assert_eq!(decide(&follower, at(9, 10)), Decision::Wait);
        assert_eq!(decide(&follower, at(20, 21)), Decision::Stream);
    }

    #[test]
    fn without_a_matchpoint_the_log_is_replaced() {
        let pruned = Situation { peer_first: v(11), ..LOG };
        assert_eq!(decide(&pruned, Found::Nothing), Decision::Restore);
        let nothing_durable = Situation { commit_floor: NULL_VLSN, known_dtvlsn: NULL_VLSN, ..LOG };
        assert_eq!(decide(&nothing_durable, Found::Nothing), Decision::Restore);
    }

    #[test]
    fn a_log_that_shares_nothing_durable_with_the_master_is_foreign() {
        let overlapping = Situation { peer_first: v(10), ..LOG };
        let refuse = Decision::Refuse { matchpoint: NULL_VLSN, durable: v(10) };
        assert_eq!(decide(&overlapping, Found::Nothing), refuse);
    }
}
