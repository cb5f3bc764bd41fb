//! Settled: what became of a commit that was left without an answer.
//!
//! What this log holds at or below DTVLSN is in every history that goes on. So a commit at or below
//! it is there, or another entry is in its place. One beyond it is lost for certain once a durable
//! entry before it has a later term: terms never fall along a log.

use std::time::{Duration, Instant};

use noxu_util::{Fingerprint, Term, Vlsn};

use super::Life;
use crate::error::Result;
use crate::outcome::{CommitId, CommitOutcome};

impl Life {
    /// What this node knows about `commit`.
    ///
    /// # Errors
    /// The log's, if the entry that tells cannot be read.
    pub fn outcome(&self, commit: &CommitId) -> Result<CommitOutcome> {
        // Before the positions: what is durable is not cut off.
        let dtvlsn = self.dtvlsn();
        let positions = self.log.positions();
        let durable = dtvlsn.min(positions.last);
        if commit.vlsn < positions.anchor.vlsn {
            return Ok(CommitOutcome::Forgotten);
        }
        if commit.vlsn > durable {
            let later = self.entry(durable)?.is_some_and(|(term, _)| term > commit.term);
            return Ok(if later { CommitOutcome::RolledBack } else { CommitOutcome::Open });
        }
        Ok(match self.entry(commit.vlsn)? {
            Some((_, fingerprint)) if fingerprint == commit.fingerprint => CommitOutcome::Durable,
            Some(_) => CommitOutcome::RolledBack,
            // The front was dropped meanwhile, or a tail beyond what is verified here was cut off.
            None if commit.vlsn < self.log.positions().anchor.vlsn => CommitOutcome::Forgotten,
            None => CommitOutcome::Open,
        })
    }

    /// As [`Life::outcome`]; waits at most `timeout` until it is certain.
    ///
    /// # Errors
    /// The log's.
    pub(crate) fn wait_outcome(
        &self,
        commit: &CommitId,
        timeout: Duration,
    ) -> Result<CommitOutcome> {
        let deadline = Instant::now() + timeout;
        loop {
            let known = self.dtvlsn();
            let outcome = self.outcome(commit)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if outcome != CommitOutcome::Open || !self.housekeeper.wait_dtvlsn(known.next(), left) {
                return Ok(outcome);
            }
        }
    }

    fn entry(&self, vlsn: Vlsn) -> Result<Option<(Term, Fingerprint)>> {
        if let Some((header, _)) = self.log.header(vlsn)? {
            return Ok(Some((header.term, header.fingerprint)));
        }
        let anchor = self.log.positions().anchor;
        Ok((anchor.vlsn == vlsn && !vlsn.is_null()).then_some((anchor.term, anchor.fingerprint)))
    }
}
