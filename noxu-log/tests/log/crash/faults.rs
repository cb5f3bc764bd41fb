//! Faults: a call fails or lies, and the log goes on: an error is an error, and never are wrong
//! bytes read as log.

use noxu_log::env::{Fault, FaultEnv, Survivors};
use noxu_log::{Cut, LogError};

use super::enumeration::calls_of;
use super::ledger::check;
use super::workload::{run, workload};
use crate::rig::{open, vlsn_of};

/// Every call fails once instead of stopping the machine: an error is an error, and what was
/// acknowledged before or after it is there when the machine stops later.
#[test]
fn a_failure_of_any_call_never_loses_what_is_acknowledged() {
    for fault in [Fault::IO, Fault::NO_SPACE] {
        for call in 1..=calls_of(&workload()) {
            let env = FaultEnv::new();
            env.fail_at(call, fault);
            let (lawful, ..) = run(&env, &workload());
            let Some(lawful) = lawful else { continue };
            let failed = env.trace().into_iter().find(|made| made.number == call);
            let failed = failed.map(|call| call.to_string()).unwrap_or_default();
            for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
                if let Err(violation) = check(&env.clone_image(survivors), &lawful) {
                    panic!("{fault:?} in {failed}, {survivors:?}: {violation}");
                }
            }
        }
    }
}

#[test]
fn a_truncation_below_the_commit_floor_is_refused_and_changes_nothing() {
    let env = FaultEnv::new();
    let log = open(&env);
    crate::rig::fill(&log, 1, 20, 400);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(15)).unwrap();
    let error = log.truncate_after(vlsn_of(14), Cut::Discard).unwrap_err();
    assert!(matches!(error, LogError::BelowCommitFloor { .. }), "{error}");
    assert_eq!(log.positions().last, vlsn_of(20));
    log.truncate_after(vlsn_of(15), Cut::Discard).unwrap();
    assert_eq!(log.positions().last, vlsn_of(15));
}
