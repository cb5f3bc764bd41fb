//! An engine that is not the repository's in the simulator's worlds: the bank of the examples.

use noxu_sim::mutants::Mutants;
use noxu_sim::schedule::Schedule;
use noxu_sim::trace::KEPT_LINES;
use noxu_sim::world::{Outcome, run_embedded};

#[path = "../../examples/embedded_bank/bank.rs"]
mod bank;
#[path = "../../examples/embedded_bank/banking.rs"]
mod banking;

use bank::{Accounts, Bug};
use banking::{Banking, plan};
use noxu_util::Vlsn;

fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let plan = plan(seed);
    run_embedded(Banking { bug }, &plan, &Schedule::drawn(&plan), Mutants::default(), KEPT_LINES)
}

#[test]
fn a_sound_engine_breaks_no_rule_in_worlds_with_faults_and_runs_the_same_way_twice() {
    for seed in 0..6 {
        let outcome = run(seed, None);
        if let Some(violation) = &outcome.violation {
            panic!("{}\nseed {seed}: {violation}", outcome.lines.join("\n"));
        }
        assert!(outcome.commits >= 30, "seed {seed}: {} commits", outcome.commits);
        assert_eq!(outcome.hash, run(seed, None).hash, "seed {seed} ran another way");
    }
}

/// The rule that the first of the worlds below 20 breaks that breaks one.
fn found(bug: Bug) -> Option<&'static str> {
    (0..20).find_map(|seed| run(seed, Some(bug)).violation.map(|found| found.invariant))
}

#[test]
fn what_a_node_forgets_to_undo_is_found_by_comparing_it_with_others() {
    assert_eq!(found(Bug::ForgetsToUndo), Some("I14"));
}

#[test]
fn what_all_nodes_do_wrong_alike_is_found_by_the_engines_judge() {
    assert_eq!(found(Bug::Overdraws), Some("balances"));
}

#[test]
fn what_is_wrong_for_a_moment_is_found_by_the_engines_check() {
    assert_eq!(found(Bug::BooksInPart), Some("conserved"));
}

#[test]
fn a_checkpoint_with_any_byte_changed_or_cut_off_is_refused() {
    let mut accounts = Accounts::default();
    assert!(accounts.book(&[bank::Posting { account: 3, amount: 70 }]));
    let whole = accounts.encode(Vlsn::new(9));
    assert_eq!(Accounts::decode(&whole), Ok((Vlsn::new(9), accounts)));
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        assert!(Accounts::decode(&changed).is_err(), "byte {at}");
        assert!(Accounts::decode(&whole[..at]).is_err(), "cut to {at} bytes");
    }
}
