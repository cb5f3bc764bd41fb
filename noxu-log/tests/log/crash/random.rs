//! Random: workloads made by lot, crashed at a call made by lot, and again in the recovery.

use noxu_log::MarkPolicy;
use noxu_log::env::FaultEnv;
use proptest::prelude::*;

use super::enumeration::{calls_of, go_on, last_call};
use super::ledger::{check, reopen};
use super::workload::{Outcome, run, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_workload_survives_any_crash_twice(
        steps in prop::collection::vec(step(), 1..30),
        crash in any::<prop::sample::Index>(),
        seeds in any::<(u64, u64)>(),
        recovery_crash in 1..60u64,
        strict in any::<bool>(),
    ) {
        let policy = if strict { MarkPolicy::Strict } else { MarkPolicy::Lazy };
        let env = FaultEnv::new();
        env.crash_at(1 + crash.index(calls_of(&steps, policy) as usize) as u64);
        let Outcome { lawful, error, made, .. } = run(&env, &steps, policy);
        if error.is_some() {
            let again = env.crash(seeds.0);
            again.crash_at(recovery_crash);
            drop(reopen(&again, &lawful));
            let after = again.crash(seeds.1);
            let context = format!("{}, then call {recovery_crash}", last_call(&env));
            let checked = check(&after, &lawful)
                .and_then(|(log, ledger)| go_on(&after, log, ledger, made));
            if let Err(violation) = checked {
                panic!("{context}: {violation}");
            }
        }
    }
}
