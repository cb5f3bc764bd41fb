//! Peers: Noxu's log beside raft-engine and bare loops, all in one run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml [-- --rounds N --millis N WORK ...]
//! ```
//! The contenders of a work take turns of a few hundred milliseconds, and each round's rates are
//! divided by each other: what else the machine does meanwhile hits them alike. Printed are the
//! medians, as Markdown. Works are `unsynced` and `synced`; both if none is named. Files lie in the
//! system's temporary directory (`TMPDIR`).

mod bare;
mod contender;
mod noxu;
mod raft;
mod rounds;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use crate::bare::Bare;
use crate::contender::Contender;
use crate::noxu::{How, Noxu};
use crate::raft::Raft;
use crate::rounds::{Plan, run};
use crate::table::{rates, ratio};

/// Length of the bodies, in bytes.
const BODY_BYTES: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [alone, how, number] = &arguments[..]
        && alone == "alone"
    {
        return run_alone(how, number);
    }
    let Some((plan, works)) = parse(arguments.into_iter()) else {
        return usage();
    };
    let wanted = |work: &str| works.is_empty() || works.iter().any(|name| name == work);
    println!("Entries of {BODY_BYTES} B; entries/s and, in parentheses, ns of processor time (all");
    println!("threads, kernel included) for each; medians of {} rounds.\n", plan.rounds);
    if wanted("unsynced") {
        unsynced(plan);
    }
    if wanted("synced") {
        synced(plan);
    }
    println!("Peak memory of the run: {} MiB.", table::peak_memory_kib() >> 10);
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: noxu-peers [--rounds N] [--millis N] [unsynced] [synced]");
    eprintln!("       noxu-peers alone tail|write BATCH");
    eprintln!("       noxu-peers alone sync THREADS");
    ExitCode::FAILURE
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<(Plan, Vec<String>)> {
    let mut plan = Plan { rounds: 7, slice: Duration::from_millis(400) };
    let mut works = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => plan.rounds = arguments.next()?.parse().ok().filter(|n| *n > 0)?,
            "--millis" => plan.slice = Duration::from_millis(arguments.next()?.parse().ok()?),
            "unsynced" | "synced" => works.push(argument),
            _ => return None,
        }
    }
    Some((plan, works))
}

/// Noxu by itself for some seconds, for a profiler.
fn run_alone(how: &str, number: &str) -> ExitCode {
    let (how, threads, batch) = match (how, number.parse()) {
        ("tail", Ok(batch)) => (How::IntoTheTail, 1, batch),
        ("write", Ok(batch)) => (How::WritePerBatch, 1, batch),
        ("sync", Ok(threads)) => (How::Synced, threads, 1),
        _ => return usage(),
    };
    let plan = Plan { rounds: 10, slice: Duration::from_millis(400) };
    let [slices] = run([&Noxu::new(how)], threads, batch, plan);
    println!("{}", rates([&slices]));
    ExitCode::SUCCESS
}

/// One thread appends and nobody waits for the disk.
fn unsynced(plan: Plan) {
    println!("### Without sync, one thread\n");
    println!(
        "| batch | bare write loop | raft-engine | noxu, a write per batch | noxu, into the tail \
         | write / bare | write / raft-engine | tail / raft-engine |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for batch in [1, 16, 256] {
        let bare = Bare::new();
        let raft = Raft::new();
        let write = Noxu::new(How::WritePerBatch);
        let tail = Noxu::new(How::IntoTheTail);
        let contenders: [&dyn Contender; 4] = [&bare, &raft, &write, &tail];
        let [bare, raft, write, tail] = run(contenders, 1, batch, plan);
        println!(
            "| {batch} | {} | {} | {} | {} |",
            rates([&bare, &raft, &write, &tail]),
            ratio(&write, &bare),
            ratio(&write, &raft),
            ratio(&tail, &raft)
        );
    }
    println!();
}

/// Each thread appends one entry and waits until it is synced.
fn synced(plan: Plan) {
    println!("### With sync, one entry to a batch\n");
    println!(
        "| threads | raft-engine | noxu | bare loop of noxu's batches | noxu / raft-engine \
         | noxu / bare | entries a sync |\n|---:|---:|---:|---:|---:|---:|---:|"
    );
    for threads in [1, 8, 64] {
        let raft = Raft::synced();
        let noxu = Noxu::new(How::Synced);
        let bare = Bare::replaying(&noxu.turns);
        // In this order: the loop replays the batches of noxu's turn before it.
        let contenders: [&dyn Contender; 3] = [&raft, &noxu, &bare];
        let [raft, synced, bare] = run(contenders, threads, 1, plan);
        println!(
            "| {threads} | {} | {} | {} | {:.1} |",
            rates([&raft, &synced, &bare]),
            ratio(&synced, &raft),
            ratio(&synced, &bare),
            noxu.turns.mean()
        );
    }
    println!();
}
