//! Crashes and other faults at every call of every operation: what was acknowledged is there, what
//! was cut off never comes back, and the directory always opens.
//!
//! A workload (workload.rs) runs beside a ledger of what must be true of it (ledger.rs). It is
//! stopped at each of its calls (enumeration.rs), or somewhere in workloads made by lot
//! (random.rs), or a call fails and it goes on (faults.rs). That all this would notice a bug is
//! shown by bugs (mutants.rs).

mod enumeration;
mod faults;
mod ledger;
mod mutants;
mod random;
mod workload;

use noxu_log::MarkPolicy;

use self::enumeration::{enumerate, kill_then_crash};
use self::workload::{Step, install_workload, small_workload, workload};

fn no_violation(steps: &[Step], policy: MarkPolicy) {
    match enumerate(steps, policy, None) {
        Ok(stats) => println!("{} steps, {policy} mark: {stats}", steps.len()),
        Err(found) => panic!("{policy} mark: {found}"),
    }
}

#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged_and_revives_nothing_cut() {
    no_violation(&workload(), MarkPolicy::Strict);
}

#[test]
fn a_crash_at_any_call_under_lazy_marks_loses_and_revives_nothing() {
    no_violation(&workload(), MarkPolicy::Lazy);
}

#[test]
fn a_crash_in_an_install_leaves_the_old_log_or_the_new_one() {
    for policy in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        no_violation(&install_workload(), policy);
    }
}

#[test]
fn a_crash_that_leaves_any_subset_of_few_sectors_loses_and_revives_nothing() {
    for policy in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        no_violation(&small_workload(), policy);
    }
}

#[test]
fn a_crash_of_the_successor_of_a_killed_process_loses_nothing_that_either_had_acknowledged() {
    let steps = [
        Step::Append(vec![300, 40, 3000]),
        Step::Append(vec![2000]),
        Step::Sync,
        Step::Install(vec![900; 16]),
        Step::Append(vec![50]),
        Step::Sync,
    ];
    let crashes = kill_then_crash(&steps).unwrap_or_else(|found| panic!("{found}"));
    println!("{crashes} crashes of successors");
    assert!(crashes > 100, "only {crashes} crashes");
}
