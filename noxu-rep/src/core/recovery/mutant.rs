//! Mutant: a deliberate bug of the recovery engine, switched on by a test that must notice it.
//!
//! Most are holes that an engine of this shape is known to have had. No run of a whole group looks
//! for them, hence apart from the crate's own.

noxu_util::mutants! {
    /// What is wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Mutant {
        /// A log that is longer than the master's is taken for caught up.
        LongerIsLevel,
        /// What failed sessions showed is not looked at.
        EvidenceForgotten,
        /// A session's events are taken whatever session they name.
        SessionsWithoutIds,
        /// A session's events are taken whatever mastership they name, and so is an assignment.
        OlderEraTaken,
        /// An acknowledgement counts while the log is being replaced.
        CountsInSession,
        /// A session ends before its cut.
        CompletedAcrossGap,
        /// A rebuild does not keep the master's log.
        RebuildWithoutPin,
        /// Facts move the pin.
        PinnedOnFacts,
        /// A replica that does not answer is not asked again.
        AskedOnce,
    }
}

/// Whether `mutant` is switched on in this thread.
#[cfg(not(any(test, feature = "mutants")))]
pub(super) const fn is_on(_mutant: Mutant) -> bool {
    false
}

#[cfg(any(test, feature = "mutants"))]
pub(super) use switch::is_on;

#[cfg(any(test, feature = "mutants"))]
mod switch {
    use super::Mutant;

    noxu_util::mutant_switch!(Mutant);
}
