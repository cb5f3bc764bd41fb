//! Deliberate bugs that a few worlds find. The others take a search: `noxu-sim --mutants`.

use noxu_rep::mutant::Mutant;
use noxu_sim::mutants::Mutants;
use noxu_sim::plan::Plan;
use noxu_sim::schedule::Schedule;
use noxu_sim::world::run;

/// The rule that the first of the worlds below `budget` breaks that breaks one.
fn found(mutant: Mutant, budget: u64) -> Option<&'static str> {
    let mutants = Mutants { rep: Some(mutant), log: None };
    (0..budget).find_map(|seed| {
        let plan = Plan::drawn(seed);
        run(&plan, &Schedule::drawn(&plan), mutants).violation.map(|found| found.invariant)
    })
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    assert_eq!(found(Mutant::AckBeforeSync, 3), Some("I8"));
}

#[test]
fn a_term_that_is_held_again_is_found() {
    assert!(found(Mutant::TermResumed, 10).is_some());
}

/// No scenario orders a restore.
#[test]
fn a_restore_that_lets_go_of_what_it_has_not_synced_is_found() {
    assert_eq!(found(Mutant::RestoreLetsGoUnsynced, 10), Some("R1"));
}
