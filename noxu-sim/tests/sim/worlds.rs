//! Whole worlds, each run twice: nothing is broken, and the same happens again.

use noxu_sim::mutants::Mutants;
use noxu_sim::plan::Plan;
use noxu_sim::schedule::Schedule;
use noxu_sim::world::{Outcome, run};

/// Runs a world twice.
#[track_caller]
fn run_twice(plan: &Plan) -> Outcome {
    let (seed, schedule) = (plan.seed, Schedule::drawn(plan));
    let outcome = run(plan, &schedule, Mutants::default());
    if let Some(violation) = &outcome.violation {
        let lines = outcome.lines.join("\n");
        panic!("{lines}\nseed {seed}: {violation}\ncargo run -p noxu-sim -- --seed {seed}");
    }
    let again = run(plan, &schedule, Mutants::default());
    assert_eq!(outcome.hash, again.hash, "seed {seed} ran another way the second time");
    outcome
}

#[test]
fn a_world_without_faults_founds_a_group_commits_and_ends_as_one() {
    for seed in 0..4 {
        let outcome = run_twice(&Plan::drawn(seed).calm());
        assert!(outcome.commits >= 400, "seed {seed}: {} commits", outcome.commits);
        assert_eq!(outcome.excuse, None, "seed {seed}");
        assert_eq!(outcome.coverage.of("node stopped itself"), 0, "seed {seed}");
    }
}

#[test]
fn worlds_with_all_kinds_of_faults_break_no_rule() {
    let mut coverage = noxu_sim::coverage::Coverage::default();
    for seed in 0..24 {
        coverage.add(&run_twice(&Plan::drawn(seed)).coverage);
    }
    for met in ["fault: kill", "fault: power loss", "fault: partition", "role: master"] {
        assert!(coverage.of(met) > 0, "{met} never came:\n{coverage}");
    }
}

/// What a search once found, in the simulator itself or in what it runs; a change of what is drawn makes
/// other worlds of them, so that whatever can be told without one has a test of its own.
#[test]
fn seeds_that_found_something_break_no_rule_any_more() {
    let found = [
        (23_213, "a replica with a damaged end that parts from the master's log was never rebuilt"),
        (10_081, "a node that came to its group with a full disk stopped by itself"),
        (5_539, "a replica did not know the secondary that alone had what was damaged on its disk"),
        (1_502_607, "a voter that restored did not count as heard, and its master stepped down"),
        (2_946, "a master stepped down while it compared the logs of voters that had just come"),
        (
            1_866,
            "a rebuild of a log that was level never counted as done, and began again for ever",
        ),
        (
            1_100_151,
            "a node was offered the same checkpoint again, which its log no longer reached",
        ),
        (1_100_594, "a restore without a checkpoint did not empty a state that was flushed"),
        (808_336, "a rollback that met rot, and was finished by the next start, was called a loss"),
        (
            748_830,
            "an acknowledgement to a deposed master was compared with its log of a newer term",
        ),
        (723_142, "a master whose unsealed segment had rotted served nobody and did not make way"),
        (66, "a secondary was restored with what was not durable"),
        (1697, "a restored log whose front is where the old log ended was taken for the old one"),
        (
            606_678,
            "clients who ask in vain until the end were more than a world was given events for",
        ),
    ];
    for (seed, what) in found {
        let plan = Plan::drawn(seed);
        let outcome = run(&plan, &Schedule::drawn(&plan), Mutants::default());
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}, in which {what}: {violation}");
        }
    }
}
