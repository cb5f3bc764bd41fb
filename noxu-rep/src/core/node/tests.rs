use super::*;

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Coverage, World};

/// What a seed breaks, if anything.
fn broken(seed: u64) -> Option<String> {
    let mut world = World::new(seed);
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(text),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.unwrap_or_else(|| "a panic".to_owned()))
        }
    }
}

#[test]
fn whatever_happens_nothing_reported_durable_is_lost_and_a_healed_group_has_a_master() {
    let mut coverage = Coverage::default();
    for seed in 0..60_000 {
        let mut world = World::new(seed);
        if let Err(text) = world.run() {
            panic!("seed {seed}: {text}\n{}", world.trace.join("\n"));
        }
        coverage.add(&world.coverage);
    }
    println!("{coverage:?}");
}
