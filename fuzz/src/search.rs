//! Search: seeded mutations of the corpus for a given time, without coverage and on any compiler.
//!
//! ```text
//! search TARGET|all [--secs 60] [--seed N] [--from I] [--count N]
//! search TARGET FILE...
//! ```
//! Input `I` of a seed is made from the corpus and `(seed, I)` alone: `--from I --count 1` makes it
//! again. Inputs that make the target panic are kept as `corpus/TARGET/found-SEED-I`, where the
//! plain tests find them. Inputs that take longer than a second are reported.

use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use noxu_fuzz::{corpus, mutate, targets};

struct Options {
    target: String,
    /// Inputs to run instead of a search.
    files: Vec<String>,
    secs: u64,
    seed: u64,
    from: u64,
    count: u64,
}

fn options() -> Result<Options, String> {
    let mut args = env::args().skip(1);
    let target = args.next().ok_or("search TARGET|all [--secs 60] [--seed N] [--from I]")?;
    let files = Vec::new();
    let mut options = Options { target, files, secs: 60, seed: 1, from: 0, count: u64::MAX };
    while let Some(flag) = args.next() {
        if !flag.starts_with("--") {
            options.files.push(flag);
            continue;
        }
        let value = args.next().and_then(|value| value.parse().ok());
        let value = value.ok_or_else(|| format!("{flag} needs a number"))?;
        match flag.as_str() {
            "--secs" => options.secs = value,
            "--seed" => options.seed = value,
            "--from" => options.from = value,
            "--count" => options.count = value,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<_> = targets::ALL
        .iter()
        .filter(|target| options.target == "all" || options.target == target.name)
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
        eprintln!("no target {}; there are {}", options.target, names.join(", "));
        return ExitCode::FAILURE;
    }
    let mut clean = true;
    for target in chosen {
        for file in &options.files {
            let input = fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
            let found = panic::catch_unwind(|| (target.run)(&input));
            println!("{}: {file}: {found:?}", target.name);
            clean &= found.is_ok();
        }
        if options.files.is_empty() {
            clean &= search(target, &options);
        }
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether nothing was found.
fn search(target: &targets::Target, options: &Options) -> bool {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let inputs = corpus::read(&folder, target.name).unwrap_or_default();
    assert!(!inputs.is_empty(), "no corpus in {}", folder.display());
    let begin = Instant::now();
    let (mut runs, mut accepted, mut found) = (0, 0, 0);
    while runs < options.count && begin.elapsed() < Duration::from_secs(options.secs) {
        let number = options.from + runs;
        runs += 1;
        let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (input, other) =
            (&inputs[rng.usize(..inputs.len())], &inputs[rng.usize(..inputs.len())]);
        let input = mutate::mutated(&input.1, &other.1, &mut rng);
        let started = Instant::now();
        match panic::catch_unwind(|| (target.run)(&input)) {
            Ok(valid) => accepted += u64::from(valid),
            Err(_) => {
                found += 1;
                let path =
                    folder.join(target.name).join(format!("found-{}-{number}", options.seed));
                fs::write(&path, &input).expect("the corpus can be written");
                eprintln!(
                    "{}: input {number} of seed {}: kept as {}",
                    target.name,
                    options.seed,
                    path.display()
                );
            }
        }
        if started.elapsed() > Duration::from_secs(1) {
            eprintln!(
                "{}: input {number} of seed {} took {:?}",
                target.name,
                options.seed,
                started.elapsed()
            );
        }
    }
    println!(
        "{:15} {runs} inputs in {:.0} s, {accepted} accepted, {found} found a bug (seed {})",
        target.name,
        begin.elapsed().as_secs_f64(),
        options.seed
    );
    found == 0
}
