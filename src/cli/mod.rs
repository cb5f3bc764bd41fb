//! Command line: the commands of `noxu`, one file each.

use std::process::ExitCode;

use clap::Parser;

/// A replicated, embedded key-value store: node, tools and demo.
#[derive(Debug, Parser)]
#[command(name = "noxu", version)]
struct Arguments {}

/// Runs the program: parses the arguments, runs the command, prints an error as one line.
pub fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    ExitCode::SUCCESS
}
