//! Trial: long runs over real files, processes and TCP, which check what they promise.

mod restore;
mod series;
mod watch;

use clap::{Args, Subcommand};

use super::error::CliError;

/// Try a promise at length, on real files and processes; exits with 3 if it is not kept
#[derive(Debug, Args)]
pub(super) struct Trial {
    #[command(subcommand)]
    command: TrialCommand,
}

#[derive(Debug, Subcommand)]
enum TrialCommand {
    Restore(restore::Restore),
}

impl Trial {
    /// Runs the trial.
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            TrialCommand::Restore(restore) => restore.run(),
        }
    }
}
