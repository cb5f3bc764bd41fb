//! Conformance: tests any [`StateSync`] together with the [`StateMachine`] that it brings level, over the real
//! provider, session and installation, on a disk in memory that crashes where it is told to, and channels
//! that alter what passes.
//!
//! An application describes both as a [`Subject`] and calls [`run`]. Every check has a name; the [`Report`]
//! says which ones passed, what they saw, and why one failed.
//!
//! The checks know nothing of what a method sends. They see its state machine's [`Subject::digest`] after a
//! restore, what it saves, how much of an earlier session it reuses, and its files after a crash.
//!
//! # Not here: how a group decides that a node is to restore; the log's own part of a restore.
//! # See: docs/sync-methods.md

mod checks;
mod crashes;
mod relay;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use noxu_log::env::Env;
use noxu_log::{EntryFlags, EntryKind};

use crate::error::Result;
use crate::sync::StateMachine;
use crate::sync::method::StateSync;

/// A state machine, and the method to test with it.
pub trait Subject: Sync {
    /// The state machine.
    type Machine: StateMachine + 'static;

    /// Opens it. What it keeps durably is in `dir` of `env`, and is there again when it is opened anew
    /// after a crash; `dir` may not be there yet.
    ///
    /// # Errors
    /// The state machine's.
    fn open(&self, env: &Arc<dyn Env>, dir: &Path) -> Result<Arc<Self::Machine>>;

    /// The method, so tuned that the state of [`Subject::transactions`] comes in at least eight answers and
    /// is synced several times on its way.
    fn method(&self) -> Arc<dyn StateSync>;

    /// The entries of transaction `n`, from 0 on; the last one has [`EntryFlags::COMMIT`] and none before
    /// it has. The same ones each time.
    fn transaction(&self, n: u64) -> Vec<LogEntry>;

    /// How many transactions make up the state that is copied. Default 240.
    fn transactions(&self) -> u64 {
        240
    }

    /// Stands for all of the state: two machines that have applied the same have the same one.
    ///
    /// # Errors
    /// The state machine's.
    fn digest(&self, machine: &Self::Machine) -> Result<Vec<u8>>;
}

/// An entry for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its kind.
    pub kind: EntryKind,
    /// Its flags.
    pub flags: EntryFlags,
    /// Its body.
    pub body: Vec<u8>,
}

/// What the checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were made.
    pub checks: Vec<Checked>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its name.
    pub name: &'static str,
    /// What it saw, if it passed; else what was wrong.
    pub outcome: Result<String, String>,
}

impl Report {
    /// Whether all passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.outcome.is_ok())
    }

    /// Those that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|check| check.outcome.is_err())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Checked { name, outcome } in &self.checks {
            match outcome {
                Ok(saw) => writeln!(f, "ok      {name}: {saw}")?,
                Err(wrong) => writeln!(f, "FAILED  {name}: {wrong}")?,
            }
        }
        let failed = self.failures().count();
        write!(f, "{} passed, {failed} failed", self.checks.len() - failed)
    }
}

/// Makes all checks. A panic of the method or the state machine fails its check; a restore that has not
/// ended after some time, too.
pub fn run<S: Subject>(subject: &S) -> Report {
    run_some(subject, |_| true)
}

/// Makes the checks whose names are `wanted`.
pub fn run_some<S: Subject>(subject: &S, wanted: impl Fn(&str) -> bool) -> Report {
    let all = checks::all::<S>().into_iter().chain(crashes::all());
    let checked = all.filter(|(name, _)| wanted(name)).map(|(name, check)| {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(subject)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", text.unwrap_or("no text")))
        });
        Checked { name, outcome }
    });
    Report { checks: checked.collect() }
}

/// The name of a check, and what makes it.
type Check<S> = (&'static str, fn(&S) -> Result<String, String>);

#[cfg(test)]
pub(crate) mod tests;
