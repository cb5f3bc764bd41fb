//! Mutants: which deliberate bug a run has, and its way into every thread of the run.
//!
//! # Not here: what the bugs are (mutant.rs of noxu-log and noxu-rep).

#[cfg(feature = "mutants")]
use noxu_log::Mutant as LogMutant;
#[cfg(feature = "mutants")]
use noxu_rep::mutant::Mutant as RepMutant;

/// The bug of a run; none is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutants {
    /// One of the log.
    #[cfg(feature = "mutants")]
    pub log: Option<LogMutant>,
    /// One of replication.
    #[cfg(feature = "mutants")]
    pub rep: Option<RepMutant>,
}

#[cfg(feature = "mutants")]
impl Mutants {
    /// The bugs of the log that a group shows. The others are about single crashes, of which the log's
    /// own tests enumerate all, or show only together with one of replication.
    pub const LOG: [LogMutant; 7] = [
        LogMutant::DurableBeforeSync,
        LogMutant::ToldBeforeMark,
        LogMutant::FoundNotSynced,
        LogMutant::ControlNotSynced,
        LogMutant::ControlWrittenToOneSlot,
        LogMutant::DamageIsCut,
        LogMutant::UncertaintyForgotten,
    ];

    /// Those of replication that a group shows, and those of the log, with their names.
    pub fn all() -> Vec<(String, Self)> {
        let shown = |bug: &&RepMutant| **bug != RepMutant::RestoreTargetUnchecked;
        let rep = RepMutant::ALL.iter().filter(shown);
        let rep = rep.map(|bug| (format!("{bug:?}"), Self::of(*bug)));
        let log = Self::LOG.map(|bug| (format!("{bug:?}"), Self { rep: None, log: Some(bug) }));
        rep.chain(log).collect()
    }

    /// This bug of replication, and that of the log which it needs to show.
    pub fn of(bug: RepMutant) -> Self {
        let log = (bug == RepMutant::PreviousNotChecked).then_some(LogMutant::RunNotChained);
        Self { rep: Some(bug), log }
    }

    /// Does something with this bug, in the calling thread.
    pub fn with<T>(self, act: impl FnOnce() -> T) -> T {
        LogMutant::with(self.log, || RepMutant::with(self.rep, act))
    }
}

#[cfg(not(feature = "mutants"))]
impl Mutants {
    /// Does something.
    pub fn with<T>(self, act: impl FnOnce() -> T) -> T {
        act()
    }
}
