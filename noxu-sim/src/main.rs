//! noxu-sim: runs worlds by their seeds, and says what broke in which.
//!
//! Exit status 1 if any rule was broken, a run was not the same the second time, or a search through
//! ten thousand worlds or more never met something that it is to meet.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use noxu_sim::coverage::{Coverage, EXPECTED};
use noxu_sim::invariants::Violation;
use noxu_sim::mutants::Mutants;
use noxu_sim::plan::{Plan, parse_seeds};
use noxu_sim::schedule::Schedule;
use noxu_sim::script::Script;
use noxu_sim::shrink::shrink;
use noxu_sim::world::{Outcome, play, run_keeping};
use parking_lot::Mutex;

/// Simulates whole groups of nodes, each world drawn from a seed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Runs the world of this seed and prints its last events.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs the worlds of the seeds A..B.
    #[arg(long, value_parser = parse_seeds, default_value = "0..100")]
    seeds: Range<u64>,
    /// Only the faults of these numbers.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    only: Option<Vec<usize>>,
    /// No faults at all.
    #[arg(long)]
    calm: bool,
    /// Runs each world twice, and compares.
    #[arg(long)]
    twice: bool,
    /// So many of the last events are printed.
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// Looks for few faults that break the same rule, within so many runs.
    #[arg(long, requires = "seed", value_name = "RUNS")]
    shrink: Option<usize>,
    /// Looks for each deliberate bug, or for the one of this name, in the worlds of `--seeds` or
    /// the scenarios of `--script` or `--scripts`.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    mutants: Option<String>,
    /// Plays this scenario.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds"])]
    script: Option<PathBuf>,
    /// Plays all scenarios of a directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seed", "seeds", "script"])]
    scripts: Option<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// What happened in one world.
struct World {
    commits: u64,
    crashes: u64,
    partitions: u64,
    lasted: Duration,
}

/// Worlds after which whatever never happened is a fault of the search.
const LONG: usize = 10_000;

/// What a search found.
#[derive(Default)]
struct Found {
    worlds: Vec<World>,
    events: u64,
    coverage: Coverage,
    failures: Vec<(u64, Violation)>,
    excuses: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(feature = "mutants")]
    if let Some(name) = &args.mutants {
        return if look_for_mutants(&args, name) { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let failed = match (&args.script, &args.scripts, args.seed) {
        (Some(file), _, _) => play_file(&args, file),
        (None, Some(dir), _) => play_all(&args, dir),
        (None, None, Some(seed)) => run_one(&args, seed),
        (None, None, None) => search(&args),
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The world of a seed, and what goes wrong in it.
fn drawn(args: &Args, seed: u64) -> (Plan, Schedule) {
    let plan = if args.calm { Plan::drawn(seed).calm() } else { Plan::drawn(seed) };
    let schedule = Schedule::drawn(&plan);
    let schedule = args.only.as_ref().map_or(schedule.clone(), |only| schedule.only(only));
    (plan, schedule)
}

fn world(args: &Args, seed: u64) -> Outcome {
    let (plan, schedule) = drawn(args, seed);
    let mut outcome = run_keeping(&plan, &schedule, Mutants::default(), args.lines);
    if args.twice && outcome.violation.is_none() {
        let again = run_keeping(&plan, &schedule, Mutants::default(), args.lines);
        if again.hash != outcome.hash {
            let found = format!("{:016x}, and then {:016x}", outcome.hash, again.hash);
            outcome.violation = Some(Violation::new("another run", found));
        }
    }
    outcome
}

/// Plays a scenario; true if it did not go as it says.
fn play_file(args: &Args, file: &Path) -> bool {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(cause) => {
            println!("{}: {cause}", file.display());
            return true;
        }
    };
    let failure = match Script::parse(&text) {
        Ok(script) => {
            let played = play(&script, Mutants::default(), args.lines);
            if played.failure.is_some() {
                played.lines.iter().for_each(|line| println!("{line}"));
            }
            played.failure
        }
        Err(failure) => Some(failure),
    };
    match &failure {
        Some(failure) => println!("{}:{}: {}", file.display(), failure.line, failure.why),
        None => println!("{}: as it says", file.display()),
    }
    failure.is_some()
}

/// The files of scenarios in a directory, by name.
fn listed(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "scn"));
    files.sort();
    Ok(files)
}

fn play_all(args: &Args, dir: &Path) -> bool {
    let files = match listed(dir) {
        Ok(files) => files,
        Err(cause) => {
            println!("{}: {cause}", dir.display());
            return true;
        }
    };
    files.iter().filter(|file| play_file(args, file)).count() > 0
}

fn run_one(args: &Args, seed: u64) -> bool {
    let (plan, schedule) = drawn(args, seed);
    println!("{plan:#?}");
    for (number, fault) in &schedule.faults {
        println!("fault {number} at {fault}");
    }
    let outcome = world(args, seed);
    for line in &outcome.lines {
        println!("{line}");
    }
    println!("{}", outcome.coverage);
    println!(
        "seed {seed}: {} events, {} commits, {:.1} s of the world, hash {:016x}",
        outcome.events,
        outcome.commits,
        outcome.lasted.as_secs_f64(),
        outcome.hash
    );
    if let Some(excuse) = outcome.excuse {
        println!("{excuse}");
    }
    if let Some(violation) = &outcome.violation {
        println!("VIOLATION {violation}");
        if let Some(budget) = args.shrink {
            let small = shrink(&schedule, budget, |some| {
                let again = run_keeping(&plan, some, Mutants::default(), 0).violation;
                again.is_some_and(|again| again.invariant == violation.invariant)
            });
            let numbers: Vec<String> = small.numbers().iter().map(usize::to_string).collect();
            println!("few faults that do: --only {}", numbers.join(","));
            for (number, fault) in &small.faults {
                println!("fault {number} at {fault}");
            }
        }
    }
    outcome.violation.is_some()
}

/// The scenarios of a directory that can be read, with their names.
#[cfg(feature = "mutants")]
fn scripts(dir: &Path) -> Vec<(String, Script)> {
    let files = listed(dir).unwrap_or_default();
    let named = files.into_iter().filter_map(|file| {
        let text = std::fs::read_to_string(&file).ok()?;
        Some((file.file_stem()?.to_string_lossy().into_owned(), Script::parse(&text).ok()?))
    });
    named.collect()
}

/// Plays a scenario with a bug and prints how it went; true if it did not go as it says.
#[cfg(feature = "mutants")]
fn show_found(file: &Path, mutants: Mutants, lines: usize) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let Ok(script) = Script::parse(&text) else { return false };
    let played = play(&script, mutants, lines);
    played.lines.iter().for_each(|line| println!("{line}"));
    match &played.failure {
        Some(failure) => println!("{}:{}: {}", file.display(), failure.line, failure.why),
        None => println!("{}: as it says", file.display()),
    }
    played.failure.is_some()
}

/// Prints in which world each bug is found, and by which rule; true if one is not found.
#[cfg(feature = "mutants")]
fn look_for_mutants(args: &Args, name: &str) -> bool {
    // A panic is how many bugs show; where it happens says nothing here.
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = 0;
    for (bug, mutants) in Mutants::all() {
        if !name.is_empty() && bug != name {
            continue;
        }
        if let Some(file) = &args.script {
            missed += usize::from(!show_found(file, mutants, args.lines));
            continue;
        }
        if let Some(dir) = &args.scripts {
            let found: Vec<String> = scripts(dir)
                .into_iter()
                .filter_map(|(name, script)| play(&script, mutants, 0).failure.map(|_| name))
                .collect();
            missed += usize::from(found.is_empty());
            println!(
                "{bug}: {}",
                if found.is_empty() { "not found".into() } else { found.join(" ") }
            );
            continue;
        }
        let found = args.seeds.clone().find_map(|seed| {
            let (plan, schedule) = drawn(args, seed);
            run_keeping(&plan, &schedule, mutants, 0).violation.map(|violation| (seed, violation))
        });
        let Some((seed, violation)) = found else {
            missed += 1;
            println!("{bug}: not found");
            continue;
        };
        let (worlds, text) = (seed - args.seeds.start + 1, violation.to_string());
        println!("{bug}: {worlds} worlds, {}", text.lines().next().unwrap_or_default());
    }
    missed > 0
}

fn search(args: &Args) -> bool {
    let began = Instant::now();
    let bar = ProgressBar::new(args.seeds.end.saturating_sub(args.seeds.start));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {msg}") {
        bar.set_style(style);
    }
    let next = AtomicU64::new(args.seeds.start);
    let coverage = Coverage::expecting(&EXPECTED);
    let found = Arc::new(Mutex::new(Found { coverage, ..Found::default() }));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.seeds.end {
                        return;
                    }
                    let outcome = world(args, seed);
                    found.lock().take(outcome);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut found = found.lock();
    found.print(began.elapsed())
}

impl Found {
    fn take(&mut self, outcome: Outcome) {
        let crashes = ["kill", "power loss", "crash inside a call", "kill after a vote"];
        let crashes = crashes.into_iter().chain(["kill of a new master", "broken sync"]);
        let of = |fault: &str| outcome.coverage.of(&format!("fault: {fault}"));
        self.worlds.push(World {
            commits: outcome.commits as u64,
            crashes: crashes.map(of).sum(),
            partitions: of("partition"),
            lasted: outcome.lasted,
        });
        self.events += outcome.events;
        self.coverage.add(&outcome.coverage);
        if let Some(excuse) = outcome.excuse {
            self.excuses += 1;
            self.coverage.count(excuse.name());
        }
        if let Some(violation) = outcome.violation {
            println!("seed {}: {violation}", outcome.seed);
            self.failures.push((outcome.seed, violation));
        }
    }

    /// Prints everything; true if the search has failed.
    fn print(&mut self, took: Duration) -> bool {
        let worlds = self.worlds.len();
        let middle = |of: fn(&World) -> u64| {
            let mut values: Vec<u64> = self.worlds.iter().map(of).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        println!("{}", self.coverage);
        let missing = self.coverage.missing();
        if !missing.is_empty() {
            println!("never happened: {}", missing.join(", "));
        }
        println!(
            "{worlds} worlds in {:.1} s ({:.1} a second), {} events; median world: {} commits, {} \
             crashes, {} partitions, {:.1} s",
            took.as_secs_f64(),
            worlds as f64 / took.as_secs_f64(),
            self.events,
            middle(|world| world.commits),
            middle(|world| world.crashes),
            middle(|world| world.partitions),
            middle(|world| world.lasted.as_millis() as u64) as f64 / 1_000.0
        );
        println!("{} excused, {} broken", self.excuses, self.failures.len());
        self.failures.sort_by_key(|(seed, _)| *seed);
        for (seed, violation) in &self.failures {
            println!("cargo run --release -p noxu-sim -- --seed {seed}\n    {violation}");
        }
        !self.failures.is_empty() || worlds >= LONG && !missing.is_empty()
    }
}
