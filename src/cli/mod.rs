//! Command line: the commands of `noxu`, one file each.

mod admin;
mod bench;
mod child;
mod client;
mod config;
mod demo;
mod error;
mod info;
mod log;
mod node;
mod out;
mod progress;
mod sizes;
mod status;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::CliError;

/// A replicated, embedded key-value store: node, tools and demo.
#[derive(Debug, Parser)]
#[command(name = "noxu", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(Box<node::NodeCommand>),
    Admin(admin::Admin),
    Bench(bench::Bench),
    Demo(demo::Demo),
    Log(log::Log),
    Put(client::Put),
    Get(client::Get),
    Scan(client::Scan),
    Status(status::Status),
    Trial(trial::Trial),
}

/// Runs the program: parses the arguments, runs the command, prints an error as one line.
///
/// Exit codes: 0 done, 1 failed, 2 the arguments make no sense, 3 a verification found a difference.
pub fn main() -> ExitCode {
    let level = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Node(node) => node.run(),
        Command::Admin(admin) => admin.run(),
        Command::Bench(bench) => bench.run(),
        Command::Demo(demo) => demo.run(),
        Command::Log(log) => log.run(),
        Command::Put(put) => put.run(),
        Command::Get(get) => get.run(),
        Command::Scan(scan) => scan.run(),
        Command::Status(status) => status.run(),
        Command::Trial(trial) => trial.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Somebody closed our output, `head` for instance: nothing went wrong.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("noxu: {}", error.to_string().replace('\n', " "));
            ExitCode::from(error.exit_code())
        }
    }
}
