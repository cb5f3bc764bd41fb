//! Fuzz targets as plain tests: every input of the committed corpus, and seeded changes to each.
//!
//! `NOXU_FUZZ_SEED=n` makes other changes; a failure prints the seed, the input and the change.

#[allow(unreachable_pub, reason = "a module of the fuzz crate, too")]
#[path = "../fuzz/src/corpus.rs"]
mod corpus;
#[allow(unreachable_pub, reason = "a module of the fuzz crate, too")]
#[path = "../fuzz/src/mutate.rs"]
mod mutate;
#[allow(unreachable_pub, reason = "a module of the fuzz crate, too")]
#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::panic;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Changes tried on each input, as long as the time lasts.
const CHANGES: u64 = 200;
/// Time for the changes of one target.
const TIME: Duration = Duration::from_millis(600);

fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn seed() -> u64 {
    std::env::var("NOXU_FUZZ_SEED").map_or(1, |seed| seed.parse().expect("a number"))
}

#[test]
fn every_input_of_the_corpus_and_changed_copies_of_it_are_taken_or_refused_in_order() {
    let seed = seed();
    for target in targets::ALL {
        let inputs = corpus::read(&corpus_dir(), target.name).unwrap();
        for seed in (target.seeds)() {
            assert!((target.run)(&seed), "target {} refuses what it makes", target.name);
        }
        let mut valid = 0;
        for (path, input) in &inputs {
            let accepted = panic::catch_unwind(|| (target.run)(input))
                .unwrap_or_else(|_| panic!("target {} fails on {}", target.name, path.display()));
            let name = path.file_name().unwrap().to_string_lossy();
            if name.starts_with("valid-") {
                assert!(accepted, "{} is refused: make the corpus again", path.display());
                valid += 1;
            }
        }
        assert!(valid > 0, "target {} has no valid input", target.name);
        let begin = Instant::now();
        for change in 0..CHANGES {
            for (at, (path, input)) in inputs.iter().enumerate() {
                if begin.elapsed() > TIME {
                    break;
                }
                let mut rng = fastrand::Rng::with_seed(seed ^ (change << 32) ^ at as u64);
                let other = &inputs[rng.usize(..inputs.len())].1;
                let changed = mutate::mutated(input, other, &mut rng);
                panic::catch_unwind(|| (target.run)(&changed)).unwrap_or_else(|_| {
                    let path = path.display();
                    panic!(
                        "target {} fails on change {change} of {path}, NOXU_FUZZ_SEED={seed}: \
                         {changed:02x?}",
                        target.name
                    )
                });
            }
        }
    }
}
