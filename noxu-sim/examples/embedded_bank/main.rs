//! Embedded bank: an engine that is no key-value store, in the simulator's worlds.
//!
//! ```text
//! cargo run --release -p noxu-sim --example embedded_bank -- --seeds 0..200
//! cargo run --release -p noxu-sim --example embedded_bank -- --seeds 0..200 --broken    finds the bug
//! cargo run --release -p noxu-sim --example embedded_bank -- --seed 7 --lines 500       one world
//! ```
//! Exit status 1 if a rule was broken, or a world ran another way the second time.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use noxu_sim::coverage::Coverage;
use noxu_sim::invariants::Violation;
use noxu_sim::mutants::Mutants;
use noxu_sim::plan::parse_seeds;
use noxu_sim::schedule::{FaultKind, Schedule};
use noxu_sim::world::{Outcome, run_embedded};

mod bank;
mod banking;

use bank::Bug;
use banking::Banking;

/// Runs a replicated bank in worlds drawn from seeds, with all kinds of faults.
#[derive(Debug, Parser)]
struct Args {
    /// The worlds of the seeds A..B.
    #[arg(long, value_parser = parse_seeds, default_value = "0..20")]
    seeds: Range<u64>,
    /// The world of this seed alone, with its last events.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// So many of the last events of a world are printed.
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// The bank has this bug, which is to be found: it forgets to undo what is rolled back, unless
    /// another one is named.
    #[arg(long, value_name = "BUG", num_args = 0..=1, default_missing_value = "forgets-to-undo")]
    broken: Option<Bug>,
    /// Runs each world twice, and compares.
    #[arg(long)]
    twice: bool,
}

fn world(args: &Args, seed: u64) -> Outcome {
    let plan = banking::plan(seed);
    let schedule = Schedule::drawn(&plan);
    let banking = Banking { bug: args.broken };
    let run = || run_embedded(banking, &plan, &schedule, Mutants::default(), args.lines);
    let mut outcome = run();
    if args.twice && outcome.violation.is_none() && run().hash != outcome.hash {
        outcome.violation = Some(Violation::new("another run", "it has another hash"));
    }
    outcome
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seeds = args.seed.map_or(args.seeds.clone(), |seed| seed..seed + 1);
    let began = Instant::now();
    let (mut coverage, mut worlds, mut commits, mut excused) = (Coverage::default(), 0, 0, 0);
    let mut broken = Vec::new();
    for seed in seeds {
        let outcome = world(&args, seed);
        if args.seed.is_some() {
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        worlds += 1;
        commits += outcome.commits;
        coverage.add(&outcome.coverage);
        excused += usize::from(outcome.excuse.is_some());
        if let Some(violation) = outcome.violation {
            broken.push((seed, violation));
        }
    }
    let faults: Vec<String> = FaultKind::NAMES
        .iter()
        .map(|name| format!("{} {}", coverage.of(name), name.trim_start_matches("fault: ")))
        .collect();
    println!("{worlds} worlds in {:.1} s, {excused} excused", began.elapsed().as_secs_f64());
    println!("transfers: {commits} reported durable");
    println!("faults: {}", faults.join(", "));
    println!(
        "met besides: {} masterships, {} restores, {} nodes that stopped themselves",
        coverage.of("role: master"),
        coverage.of("restored"),
        coverage.of("node stopped itself"),
    );
    println!("checked after every step: the rules about logs and promises; money is conserved");
    println!(
        "checked in the end: one group again; no transfer lost that was reported durable, none \
         before one that it came after; every balance of every node"
    );
    println!("violations: {}", broken.len());
    for (seed, violation) in &broken {
        println!("  seed {seed}: {violation}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
