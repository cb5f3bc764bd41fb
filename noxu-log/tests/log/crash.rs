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

use self::enumeration::enumerate;
use self::workload::{Step, small_workload, workload};

fn no_violation(what: &str, steps: &[Step]) {
    match enumerate(steps, None) {
        Ok(stats) => println!("{what}: {stats}"),
        Err(found) => panic!("{what}: {found}"),
    }
}

#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged_and_revives_nothing_cut() {
    no_violation("workload", &workload());
}

#[test]
fn a_crash_that_leaves_any_subset_of_few_sectors_loses_and_revives_nothing() {
    no_violation("small workload", &small_workload());
}
