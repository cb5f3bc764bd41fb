//! Mutants: which deliberate bug a run has, and its way into every thread of the run.
//!
//! # Not here: what the bugs are (mutant.rs of noxu-log and noxu-rep).

/// The bug of a run; none is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutants {
    /// One of the log.
    #[cfg(feature = "mutants")]
    pub log: Option<noxu_log::Mutant>,
    /// One of replication.
    #[cfg(feature = "mutants")]
    pub rep: Option<noxu_rep::mutant::Mutant>,
}

impl Mutants {
    /// Does something with this bug, in the calling thread.
    #[cfg(feature = "mutants")]
    pub fn with<T>(self, act: impl FnOnce() -> T) -> T {
        noxu_log::Mutant::with(self.log, || noxu_rep::mutant::Mutant::with(self.rep, act))
    }

    /// Does something.
    #[cfg(not(feature = "mutants"))]
    pub fn with<T>(self, act: impl FnOnce() -> T) -> T {
        act()
    }
}
