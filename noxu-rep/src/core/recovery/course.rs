//! Course: what a replica does under its master's verdict. A rollback that its own table forbids
//! (core/rollback.rs) is not done, whoever wants it.

use noxu_util::Vlsn;

use crate::core::recovery::RecoveryId;
use crate::core::rollback::Decision;
use crate::error::{RepError, Result};
use crate::wire::recovery::Verdict;

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
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

/// What to do under the master's verdict, if the replica's own table says `own`.
///
/// # Errors
/// `ProtocolError` if the verdict does not go with what the comparison found.
pub fn course(verdict: Verdict, own: Decision) -> Result<Course> {
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

#[cfg(test)]
mod tests {
    use noxu_util::NULL_VLSN;

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
