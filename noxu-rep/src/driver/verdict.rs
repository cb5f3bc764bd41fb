//! Verdict: how a replica that was compared with its master gets level. The master asks for facts and
//! decides (core/recovery.rs); the replica does what it is told unless its own table forbids it
//! (core/recovery/course.rs).
//!
//! # Not here: the comparison (stream/syncup_protocol.rs); what follows (feeding.rs, following.rs).

use noxu_util::Vlsn;

use super::life::Life;
use super::master::{FeederSession, Master};
use crate::core::recovery::{Agreement, Facts, Link, RecoveryId};
use crate::core::rollback::Found;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::restore::session::pending_recovery;
use crate::stream::syncup_protocol::SYNCUP_TIMEOUT;
use crate::wire::message::Era;
use crate::wire::recovery::{RecoveryMsg, Verdict};

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
        if !facts.agree_with(start) {
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

fn receive(channel: &dyn Channel, awaited: &str) -> Result<RecoveryMsg> {
    match channel.receive(SYNCUP_TIMEOUT)? {
        Some(frame) => RecoveryMsg::decode(&frame),
        None => Err(RepError::silent(channel.peer(), awaited, SYNCUP_TIMEOUT)),
    }
}
