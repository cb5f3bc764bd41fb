//! Mutant: a deliberate bug, switched on by a test that must notice it.
//!
//! Only the feature `mutants` lets anybody switch one on, and only this crate's own tests ask for
//! it; without it [`is_on`] is a constant `false` and nothing of a mutant is compiled.

noxu_util::mutants! {
    /// What is wrong. Each breaks one step of a crash argument.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    #[cfg_attr(not(feature = "mutants"), allow(unreachable_pub))]
    pub enum Mutant {
        /// `durable` moves before the data is synced.
        DurableBeforeSync,
        /// The tail mark is durable before the data it speaks of.
        MarkBeforeData,
        /// Under Strict, those who wait are told before the tail mark is synced.
        ToldBeforeMark,
        /// A roll leaves the segment before it unsynced.
        SegmentNotSyncedBeforeRoll,
        /// The name of a new segment is not made durable.
        DirNotSynced,
        /// A segment is sealed while its successor's first entry is not durable.
        SealedBeforeSuccessorDurable,
        /// Segments are dropped before the anchor behind them is durable.
        AnchorAfterDelete,
        /// A truncation forgets its intent before it cuts.
        IntentClearedBeforeCut,
        /// A truncation does not sync the file that it cut.
        CutNotSynced,
        /// A truncation leaves the tail mark where it was.
        MarkNotMovedByTruncation,
        /// A truncation does not save what it cuts off.
        LostNotSaved,
        /// Recovery calls durable what it found, and does not sync it.
        FoundNotSynced,
        /// The control file is not synced.
        ControlNotSynced,
        /// A version of the control file goes to one slot of its pair.
        ControlWrittenToOneSlot,
        /// The two slots of a pair of the control file are synced together.
        ControlSlotsSyncedTogether,
        /// A file that is to appear whole is not synced before it gets its name.
        WholeFileNotSynced,
        /// An install does not say in the control file that it is under way.
        InstallNotMarked,
        /// An install says that the old log is gone before it is.
        SwappingBeforeClear,
        /// An install leaves the tail mark of the old log.
        MarkNotMovedByInstall,
        /// Entries from elsewhere are appended whatever the entry before them is.
        RunNotChained,
        /// What is damaged is cut off as a torn write is, whatever the mark says.
        DamageIsCut,
        /// That the end of the log may be missing is not written down.
        UncertaintyForgotten,
    }
}

/// Whether `mutant` is switched on in this thread.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_on(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub(crate) use switch::is_on;

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;

    noxu_util::mutant_switch!(Mutant);
}
