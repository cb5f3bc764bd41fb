//! Verdict: how a replica that was compared with its master gets level. The master asks for facts and
//! decides (core/recovery.rs); the replica does what it is told unless its own table forbids it
//! (core/rollback.rs).
//!
//! # Not here: the comparison (stream/syncup_protocol.rs); what follows (feeding.rs, following.rs).

use noxu_util::{NULL_VLSN, Vlsn};

use super::life::Life;
use super::master::{FeederSession, Master};
use crate::core::recovery::{Agreement, Facts, Link, RecoveryId};
use crate::core::rollback::{Decision, Found};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::restore::session::pending_recovery;
use crate::stream::syncup_protocol::SYNCUP_TIMEOUT;
use crate::wire::message::Era;
use crate::wire::recovery::{RecoveryMsg, Verdict};

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// Streams, after cutting its log back to there if need be.
    Stream {
        /// Last entry that is kept.
        roll_back_to: Option<Vlsn>,
    },
    /// Restores, in the session of this number.
    Restore(RecoveryId),
    /// Stops for an operator.
    Refuse {
        /// Where the logs part.
        matchpoint: Vlsn,
        /// What may not be rolled back.
        durable: Vlsn,
    },
    /// Asks somebody else, or later.
    Wait,
}

impl Life {
    /// The master's half: asks the replica of `session`, which is to be fed from `start` as far as the
    /// comparison says, and tells it what to do. Returns the number of the session and where the stream
    /// begins; `None` if there is to be none.
    pub(super) fn settle_recovery(
        &self,
        master: &Master,
        session: &FeederSession,
        start: Option<Vlsn>,
    ) -> Result<Option<(RecoveryId, Vlsn)>> {
        let (channel, link) = (&*session.channel, Link(session.id.0));
        let (nonce, errands) =
            master.recovering.begin(self.clock.now(), (&session.name, session.incarnation, link));
        master.run_errands(errands);
        let Some(nonce) = nonce else {
            channel.send(&RecoveryMsg::Verdict(Verdict::Rest).encode())?;
            return Ok(None);
        };
        channel.send(&RecoveryMsg::AskFacts { nonce }.encode())?;
        let facts = match receive(channel, "facts")? {
            RecoveryMsg::Facts { nonce: of, facts } if of == nonce => facts,
            other => return Err(RepError::protocol("", "facts", other.name())),
        };
        let as_compared = match facts.agreement {
            Agreement::Nothing => None,
            Agreement::Empty => start.filter(|start| *start == NULL_VLSN.next()),
            Agreement::Matchpoint { to_end: true, .. } => Some(facts.durable.next()),
            Agreement::Matchpoint { matchpoint, to_end: false } => Some(matchpoint.next()),
        };
        if as_compared != start {
            let found = format!("{:?} with a log that ends at {}", facts.agreement, facts.durable);
            return Err(RepError::protocol("", format!("agreement before {start:?}"), found));
        }
        let (now, bounds) = (self.clock.now(), master.recovery_bounds());
        let (verdict, errands) = master.recovering.decide(now, &session.name, nonce, facts, bounds);
        master.run_errands(errands);
        channel.send(&RecoveryMsg::Verdict(verdict).encode())?;
        tracing::info!(replica = %session.name, ?verdict, "recovery decided");
        match verdict {
            Verdict::Stream { session, from, .. } => Ok(Some((session, from))),
            Verdict::Rebuild { .. } | Verdict::Refused(_) | Verdict::Rest => Ok(None),
        }
    }

    /// The replica's half: answers what the master asks about a log that ends with `last`, and takes its
    /// verdict.
    pub(super) fn ask_verdict(
        &self,
        channel: &dyn Channel,
        era: Era,
        found: Found,
        (last, known_dtvlsn): (Vlsn, Vlsn),
    ) -> Result<Verdict> {
        let control = self.log.control().state();
        let anchor = control.anchor.vlsn;
        let agreement = match found {
            _ if last.is_null() && anchor.is_null() => Agreement::Empty,
            Found::Nothing => Agreement::Nothing,
            Found::Matchpoint { matchpoint, start } => {
                Agreement::Matchpoint { matchpoint, to_end: start == last.next() }
            }
        };
        let facts = Facts {
            era,
            incarnation: control.incarnation,
            durable: last,
            known_dtvlsn,
            agreement,
            restore_marker: pending_recovery(&*self.env, &self.config.dir)?,
        };
        loop {
            match receive(channel, "a verdict")? {
                RecoveryMsg::AskFacts { nonce } => {
                    channel.send(&RecoveryMsg::Facts { nonce, facts }.encode())?;
                }
                RecoveryMsg::Verdict(verdict) => return Ok(verdict),
                RecoveryMsg::Facts { .. } => {
                    return Err(RepError::protocol("", "a verdict", "Facts"));
                }
            }
        }
    }
}

/// What to do under the master's verdict, if the replica's own table says `own`: a rollback that it
/// forbids is not done, whoever wants it.
pub(super) fn course(verdict: Verdict, own: Decision) -> Result<Course> {
    let mismatch = || {
        let expected = format!("a verdict that goes with {own:?}");
        Err(RepError::protocol("", expected, format!("{verdict:?}")))
    };
    match (verdict, own) {
        (Verdict::Rest, _) => Ok(Course::Wait),
        (Verdict::Refused(refusal), _) => {
            let (matchpoint, durable) = refusal.parts();
            Ok(Course::Refuse { matchpoint, durable })
        }
        (_, Decision::Refuse { matchpoint, durable }) => Ok(Course::Refuse { matchpoint, durable }),
        (_, Decision::Wait) => Ok(Course::Wait),
        (Verdict::Rebuild { session }, _) => Ok(Course::Restore(session)),
        (Verdict::Stream { truncate_to: None, .. }, Decision::Stream) => {
            Ok(Course::Stream { roll_back_to: None })
        }
        (Verdict::Stream { truncate_to: Some(told), .. }, Decision::RollBack { to })
            if told == to =>
        {
            Ok(Course::Stream { roll_back_to: Some(to) })
        }
        (Verdict::Stream { .. }, _) => mismatch(),
    }
}

fn receive(channel: &dyn Channel, awaited: &str) -> Result<RecoveryMsg> {
    match channel.receive(SYNCUP_TIMEOUT)? {
        Some(frame) => RecoveryMsg::decode(&frame),
        None => Err(RepError::silent(channel.peer(), awaited, SYNCUP_TIMEOUT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::recovery::Refusal;

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    #[test]
    fn what_the_own_table_forbids_is_not_done_whatever_the_master_says() {
        let session = RecoveryId(7);
        let stream = |truncate_to| Verdict::Stream { session, from: v(9), truncate_to };
        let refuse = Decision::Refuse { matchpoint: v(3), durable: v(5) };
        let refused = Course::Refuse { matchpoint: v(3), durable: v(5) };
        for verdict in [stream(None), stream(Some(v(3))), Verdict::Rebuild { session }] {
            assert_eq!(course(verdict, refuse).unwrap(), refused, "{verdict:?}");
            assert_eq!(course(verdict, Decision::Wait).unwrap(), Course::Wait, "{verdict:?}");
        }
        let restored = course(Verdict::Rebuild { session }, Decision::Stream).unwrap();
        assert_eq!(restored, Course::Restore(session), "a master may want more than it must");
        let rolls_back = Decision::RollBack { to: v(8) };
        let streams = course(stream(Some(v(8))), rolls_back).unwrap();
        assert_eq!(streams, Course::Stream { roll_back_to: Some(v(8)) });
        assert!(course(stream(Some(v(7))), rolls_back).is_err(), "another place");
        assert!(course(stream(None), rolls_back).is_err());
        assert!(course(stream(Some(v(8))), Decision::Stream).is_err());
        assert!(course(stream(None), Decision::Restore).is_err());
        let foreign = Verdict::Refused(Refusal::Foreign { durable: v(5) });
        let refused = Course::Refuse { matchpoint: NULL_VLSN, durable: v(5) };
        assert_eq!(course(foreign, Decision::Stream).unwrap(), refused);
        assert_eq!(course(Verdict::Rest, Decision::Stream).unwrap(), Course::Wait);
    }
}
