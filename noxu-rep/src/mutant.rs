//! Mutant: a deliberate bug, switched on by a test that must notice it.
//!
//! Only this crate's own tests, and whoever asks for the feature `mutants`, can switch one on;
//! without them `is_on` is a constant `false` and nothing of a mutant is compiled.

noxu_util::mutants! {
    /// What is wrong. Each breaks one rule that elections rest on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Mutant {
        /// P2: a vote is given before it is durable.
        VoteNotPersisted,
        /// A vote is given to whoever asks, however short its log.
        HeadNotCompared,
        /// A voter forgets whom it voted for in a term.
        SecondVote,
        /// A candidate counts every grant that arrives, of whichever campaign.
        GrantOfAnyCampaign,
        /// A grant counts as certain although the voter may have lost the end of its log.
        UncertainCountsAsCertain,
        /// Logs are compared by their length alone.
        RankedByVlsnOnly,
        /// Acknowledgements of the old term go on after a vote in a new one.
        AckAfterGrant,
        /// A node goes on in the term that it held before it stepped down or restarted.
        TermResumed,
        /// An entry is cut off although too few said that they never had it.
        NackQuorumTooSmall,
        /// A voter that may have lost the end of its log says that it never had an entry.
        UncertainNacks,
        /// A node takes any answer as a proof that the end of its log is complete. That a connection
        /// carries no frames of an earlier one is the other line of defence: the bug shows only where
        /// that does not hold.
        ClearWithoutNonce,
        /// A2: a replica acknowledges as durable what it has merely received.
        AckBeforeSync,
        /// Frames and acknowledgements of another term than the stream's are taken. Every stream is of
        /// one term, so that this shows only where a connection carries frames of an earlier one.
        LeaveOthersTermFrames,
        /// A1: entries are taken whatever the entry before them is. The syncup asks first whether both
        /// logs are the same there, and the log asks last: the one is blind too with this bug, and the
        /// other with its own `RunNotChained`.
        PreviousNotChecked,
        /// C5: a replica applies what may yet be rolled back.
        AppliesBeyondDtvlsn,
        /// C1: entries of older terms are durable once enough voters hold them, whoever may yet be
        /// elected without them.
        OldTermsCount,
        /// A candidate is elected with one vote less than a quorum: it need not have met anybody who
        /// holds what is durable.
        QuorumsDoNotMeet,
        /// A node votes and campaigns as if its log ended before its first damaged entry.
        FaultyVotesAsShorter,
        /// A voter that may have lost the end of its log takes it for complete once the master that it
        /// voted for leads, whatever it lacks.
        WinClearsVoters,
        /// The place that a master holds for a replica moves on what that has merely received.
        PlaceFollowsReceived,
        /// A node that restores lets go of entries that it has not synced.
        RestoreLetsGoUnsynced,
        /// The log that a restore brings need not end with the entry that was named when it began.
        /// Whoever changes its log meanwhile has it from a later master, whose log holds all that
        /// was durable then: no run of a group shows this bug, its own test does.
        RestoreTargetUnchecked,
    }
}

/// Whether `mutant` is switched on in this thread.
#[cfg(not(any(test, feature = "mutants")))]
pub(crate) const fn is_on(_mutant: Mutant) -> bool {
    false
}

#[cfg(any(test, feature = "mutants"))]
pub(crate) use switch::is_on;

#[cfg(any(test, feature = "mutants"))]
mod switch {
    use super::Mutant;

    noxu_util::mutant_switch!(Mutant);
}
