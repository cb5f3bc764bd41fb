//! Decision: what becomes of a place where a valid entry should stand and does not.
//!
//! | found | decision |
//! |---|---|
//! | no valid entry at `v`, and `v` was synced | [`Decision::Faulty`]: its content is missing, not torn |
//! | a valid entry at `v` of another history, and `v` was synced | [`Decision::Alarm`]: refuse to open, name both |
//! | neither, and the mark is readable | [`Decision::Cut`] at `v`, whatever follows: `v` was never acknowledged |
//! | no valid entry at `v`, the mark unreadable, valid ones of the chain after it | [`Decision::Faulty`] |
//! | nothing valid of the chain from `v` on, the mark unreadable | [`Decision::Cut`] at `v`, and the head is uncertain |
//!
//! `v` *was synced* if the tail mark says so, or if a later segment was begun, which happens only
//! once the one before is synced whole (group_commit.rs, crash argument 2).
//!
//! The function knows neither files nor bytes, so that a test goes through everything it can be
//! asked.

use noxu_util::Vlsn;

use crate::mutant::{self, Mutant};

/// What recovery knows when it meets a place without the valid entry that should stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// The entry that should stand there.
    pub(crate) vlsn: Vlsn,
    /// Everything through it was synced, as far as mark and segments tell.
    pub(crate) synced: Vlsn,
    /// Whether the tail mark could be read, or was never written.
    pub(crate) mark_readable: bool,
    /// What stands there.
    pub(crate) stands: Stands,
    /// Whether valid entries of the chain stand behind it.
    pub(crate) chain_goes_on: bool,
}

/// What stands in the place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Bytes that are no entry, or not that one.
    NoEntry,
    /// An entry with a valid checksum and the right number that continues another history.
    OtherHistory,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The log ends before it.
    Cut,
    /// The entry belongs to the log, its content is missing: to be repaired from a peer.
    Faulty,
    /// This cannot come from a crash or from rot: nobody may touch the log.
    Alarm,
}

/// Decides.
pub(crate) fn decide(evidence: &Evidence) -> Decision {
    let synced = evidence.vlsn <= evidence.synced;
    match (synced, evidence.stands) {
        (true, Stands::OtherHistory) => Decision::Alarm,
        (true, Stands::NoEntry) if mutant::is_on(Mutant::DamageIsCut) => Decision::Cut,
        (true, Stands::NoEntry) => Decision::Faulty,
        (false, Stands::NoEntry) if !evidence.mark_readable && evidence.chain_goes_on => {
            Decision::Faulty
        }
        (false, _) => Decision::Cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row against every kind of evidence, compared with the rows as sentences.
    #[test]
    fn every_row_of_the_table_holds_for_all_evidence() {
        let mut seen = [0; 3];
        for place in 1..=6 {
            for synced in 0..=6 {
                for mark_readable in [true, false] {
                    for stands in [Stands::NoEntry, Stands::OtherHistory] {
                        for chain_goes_on in [true, false] {
                            let evidence = Evidence {
                                vlsn: Vlsn::new(place),
                                synced: Vlsn::new(synced),
                                mark_readable,
                                stands,
                                chain_goes_on,
                            };
                            let decision = decide(&evidence);
                            seen[decision as usize] += 1;
                            let acknowledged_maybe = place <= synced || !mark_readable;
                            match decision {
                                Decision::Cut => assert!(
                                    place > synced,
                                    "what was synced is never cut: {evidence:?}"
                                ),
                                Decision::Faulty => {
                                    assert!(acknowledged_maybe, "torn, not faulty: {evidence:?}");
                                    assert_eq!(stands, Stands::NoEntry, "{evidence:?}");
                                    assert!(place <= synced || chain_goes_on, "{evidence:?}");
                                }
                                Decision::Alarm => {
                                    assert!(place <= synced, "{evidence:?}");
                                    assert_eq!(stands, Stands::OtherHistory, "{evidence:?}");
                                }
                            }
                        }
                    }
                }
            }
        }
        // 21 of the 42 pairs (place, synced) are synced ones, each with 8 kinds of evidence.
        assert_eq!(seen, [21 * 8 - 21, 21 * 4 + 21, 21 * 4]);
    }
}
