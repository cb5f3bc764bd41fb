//! Admin: what an operator orders a node to do, or does to its directory.
//!
//! Online commands go through the node's door; those that work on a directory take its lock, so that no
//! node runs in it meanwhile.

mod force_restore;
mod restore;
mod scrub;
mod set_aside;

pub(super) use set_aside::is_unfinished as has_unfinished_set_aside;

use clap::{Args, Subcommand};

use super::error::CliError;

/// Order a node to do something that it would not do by itself
#[derive(Debug, Args)]
pub(super) struct Admin {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    Restore(restore::Restore),
    Scrub(scrub::Scrub),
    ForceRestore(force_restore::ForceRestore),
}

impl Admin {
    /// Runs the command.
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            AdminCommand::Restore(restore) => restore.run(),
            AdminCommand::Scrub(scrub) => scrub.run(),
            AdminCommand::ForceRestore(force) => force.run(),
        }
    }
}
