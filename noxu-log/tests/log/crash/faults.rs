//! Faults: a call fails, lies or is slow, and the log goes on: an error is an error, nothing that
//! was acknowledged is missing without a word, and never are wrong bytes read as log.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use noxu_log::env::{Fault, FaultEnv, FaultRates, Survivors};
use noxu_log::{Cut, Log, LogError, LostEntries, MarkPolicy};
use noxu_util::Vlsn;

use super::enumeration::{calls_of, panicked};
use super::ledger::{Ledger, Violation, check, ensure, reopen};
use super::workload::{Outcome, run, run_with, workload};
use crate::rig::{Got, append, body, dir, fill, is_damage, open, vlsn_of};

/// Every call fails once instead of stopping the machine: an error is an error, and what was
/// acknowledged before or after it is there when the machine stops later.
#[test]
fn a_failure_of_any_call_never_loses_what_is_acknowledged() {
    for fault in [Fault::IO, Fault::NO_SPACE] {
        for call in 1..=calls_of(&workload(), MarkPolicy::Strict) {
            let env = FaultEnv::new();
            env.fail_at(call, fault);
            let outcome = run(&env, &workload(), MarkPolicy::Strict);
            let failed = env.trace().into_iter().find(|made| made.number == call);
            let failed = failed.map(|call| call.to_string()).unwrap_or_default();
            for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
                if let Err(violation) = check(&env.clone_image(survivors), &outcome.lawful) {
                    panic!("{fault:?} in {failed}, {survivors:?}: {violation}");
                }
            }
        }
    }
}

/// What became of a fault.
#[derive(Debug, Default)]
struct Tally {
    /// Nothing could be told of it: all entries are there.
    unaffected: u64,
    /// A call of the workload failed and said why.
    failed: u64,
    /// The log did not open and said why.
    refused: u64,
    /// It opened, and reading the damaged place fails.
    unreadable: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unaffected, failed, refused, unreadable } = self;
        write!(f, "{unaffected} without effect, {failed} noticed at once, ")?;
        write!(f, "{refused} when opening, {unreadable} when reading")
    }
}

/// Whether an error names damage, of a log or of a file beside it.
fn names_damage(error: &LogError) -> bool {
    match error {
        LogError::Poisoned { cause } => names_damage(cause),
        LogError::Faulty { .. } => true,
        error => is_damage(error),
    }
}

/// Opens and reads everything after a fault that nobody was told of. The log may say that it is
/// damaged wherever it likes, but what it gives out must be right, and nothing that was
/// acknowledged may be missing without a word.
fn check_silent(env: &FaultEnv, outcome: &Outcome, tally: &mut Tally) -> Result<(), Violation> {
    let failed = outcome.error.as_ref();
    ensure(failed.is_none_or(names_damage), || format!("it failed with {failed:?}"))?;
    let log = match reopen(env, &outcome.lawful) {
        Ok((log, _)) => log,
        Err(error) => {
            ensure(names_damage(&error), || format!("refused with {error}"))?;
            *if failed.is_some() { &mut tally.failed } else { &mut tally.refused } += 1;
            return Ok(());
        }
    };
    let mut damage = Vec::new();
    let mut last_errors = Vec::new();
    for ledger in [&outcome.lawful.after, &outcome.lawful.before] {
        damage.clear();
        match read_around(&log, ledger, &mut damage) {
            Ok(()) => {
                last_errors.clear();
                break;
            }
            Err(violation) => last_errors.push(violation.0),
        }
    }
    ensure(last_errors.is_empty(), || last_errors.join("; "))?;
    for name in LostEntries::list(env, dir())? {
        if let Err(error) = LostEntries::read(env, dir(), &name) {
            ensure(names_damage(&error), || format!("{name} is lost with {error}"))?;
            damage.push(error);
        }
    }
    *match (failed, damage.is_empty()) {
        (Some(_), _) => &mut tally.failed,
        (None, false) => &mut tally.unreadable,
        (None, true) => &mut tally.unaffected,
    } += 1;
    Ok(())
}

/// Reads entry by entry, over those that cannot be read; each that can must be the ledger's.
fn read_around(log: &Log, ledger: &Ledger, damage: &mut Vec<LogError>) -> Result<(), Violation> {
    let positions = log.positions();
    let said = log.control().state().head_uncertain || ledger.mark_is_lost;
    let last = positions.last.sequence() as usize;
    ensure(last >= ledger.durable || said, || {
        format!("it ends with {last}, {} were acknowledged", ledger.durable)
    })?;
    ensure(positions.anchor.vlsn <= ledger.dropped, || {
        format!("it begins after {}", positions.anchor.vlsn)
    })?;
    let mut next = positions.anchor.vlsn.next();
    while next <= positions.last {
        match log.read(next, 1) {
            Ok(Some(run)) => {
                for entry in run.entries() {
                    let expected = ledger.entries.get(next.sequence() as usize - 1);
                    ensure(
                        expected.is_some_and(|expected| is_same(expected, next, &entry)),
                        || format!("entry {next} reads as another"),
                    )?;
                    next = next.next();
                }
            }
            Ok(None) => return Err(Violation(format!("no entry {next} up to {last}"))),
            Err(error) => {
                ensure(names_damage(&error), || format!("{next} is lost with {error}"))?;
                damage.push(error);
                next = next.next();
            }
        }
    }
    Ok(())
}

fn is_same(expected: &Got, vlsn: Vlsn, entry: &noxu_log::Entry<'_>) -> bool {
    expected.vlsn == vlsn
        && entry.header.vlsn == vlsn
        && entry.header.term == expected.term
        && entry.header.flags == expected.flags
        && entry.body == expected.body
}

/// Runs the workload with a silent fault and checks what the next process finds.
fn silent_fault(env: &FaultEnv, ledger: Ledger, context: &str, tally: &mut Tally) {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let outcome = run_with(env, &workload(), ledger);
        check_silent(&env.kill(), &outcome, tally)
    }));
    if let Err(violation) = checked.unwrap_or_else(|panic| Err(panicked(&*panic))) {
        panic!("{context}: {violation}");
    }
}

fn writes() -> Vec<noxu_log::env::Call> {
    let env = FaultEnv::new();
    assert!(run(&env, &workload(), MarkPolicy::Strict).error.is_none());
    let mut trace = env.trace();
    trace.retain(|call| call.function == "write_at");
    trace
}

#[test]
fn a_lost_write_is_noticed_or_does_no_harm() {
    let mut tally = Tally::default();
    for call in writes() {
        let env = FaultEnv::new();
        env.fail_at(call.number, Fault::LostWrite);
        silent_fault(&env, Ledger::default(), &format!("lost {call}"), &mut tally);
    }
    println!("lost writes: {tally}");
}

/// One case is beyond a single mark: a mark that is written over entries which only it covers. The
/// mark before it says that these were never acknowledged, so they are cut as a torn write.
#[test]
fn a_misdirected_write_is_noticed_or_does_no_harm() {
    let mut tally = Tally::default();
    for call in writes() {
        for draw in 0..12 {
            let env = FaultEnv::new();
            env.fail_at(call.number, Fault::Misdirected(call.number * 7919 + draw * 104_729));
            let mark_is_lost = call.to_string().contains("tail-mark");
            let ledger = Ledger { mark_is_lost, ..Ledger::default() };
            silent_fault(&env, ledger, &format!("misdirected by {draw}: {call}"), &mut tally);
        }
    }
    println!("misdirected writes: {tally}");
}

#[test]
fn bits_that_flip_while_the_log_runs_are_noticed_or_do_no_harm() {
    let mut tally = Tally::default();
    for seed in 0..300 {
        let env = FaultEnv::seeded(seed, FaultRates { rot: 0.005, ..FaultRates::default() });
        silent_fault(&env, Ledger::default(), &format!("rot by seed {seed}"), &mut tally);
    }
    println!("rot: {tally}");
}

#[test]
fn faults_by_lot_lose_nothing_acknowledged() {
    for seed in 0..300 {
        let rates = FaultRates {
            io_error: 0.001,
            no_space: 0.005,
            slow: 0.1,
            slow_up_to: Duration::from_secs(1),
            ..FaultRates::default()
        };
        let env = FaultEnv::seeded(seed, rates);
        let outcome = run(&env, &workload(), MarkPolicy::Strict);
        env.stop_faults();
        if let Err(violation) = check(&env.crash(seed), &outcome.lawful) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_disk_of_any_size_that_fills_up_loses_nothing_acknowledged() {
    let mut filled = 0;
    for capacity in (0..120_000).step_by(1500) {
        let env = FaultEnv::new();
        env.set_capacity(Some(capacity));
        let outcome = run(&env, &workload(), MarkPolicy::Strict);
        filled += u64::from(outcome.error.is_some());
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(capacity)] {
            if let Err(violation) = check(&env.clone_image(survivors), &outcome.lawful) {
                panic!("{capacity} bytes, {survivors:?}: {violation}");
            }
        }
    }
    assert!((10..80).contains(&filled), "{filled} of 80 disks were too small");
}

#[test]
fn slow_calls_change_nothing() {
    let quick = FaultEnv::new();
    assert!(run(&quick, &workload(), MarkPolicy::Strict).error.is_none());
    let rates = FaultRates { slow: 1.0, slow_up_to: Duration::from_secs(9), ..Default::default() };
    let slow = FaultEnv::seeded(1, rates);
    assert!(run(&slow, &workload(), MarkPolicy::Strict).error.is_none());
    assert_eq!(slow.calls(), quick.calls());
    assert!(slow.now() > Duration::from_secs(quick.calls()));
}

#[test]
fn while_a_sync_hangs_appends_and_reads_go_on_and_nothing_more_is_durable() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 3, 100);
    log.sync_now().unwrap();
    fill(&log, 4, 5, 100);
    let hold = env.hold_next("sync_data");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| log.wait_durable(vlsn_of(5)));
        hold.wait_until_met();
        let appended = append(&log, 1, &body(6, 100)).unwrap();
        assert_eq!(crate::rig::bodies(&log).len(), 6, "the tail has what is not written");
        assert_eq!(log.positions().durable, vlsn_of(3));
        assert_eq!(log.help_sync(appended.last).unwrap(), vlsn_of(3), "somebody is at it");
        assert!(!waiting.is_finished());
        let crashed = open(&env.clone_image(Survivors::None));
        assert_eq!(crashed.positions().last, vlsn_of(3));
        drop(hold);
        waiting.join().unwrap().unwrap();
        log.wait_durable(appended.last).unwrap();
    });
    assert_eq!(open(&env.crash_keeping(Survivors::None)).positions().last, vlsn_of(6));
}

#[test]
fn a_truncation_below_the_commit_floor_is_refused_and_changes_nothing() {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 20, 400);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(15)).unwrap();
    let error = log.truncate_after(vlsn_of(14), Cut::Discard).unwrap_err();
    assert!(matches!(error, LogError::BelowCommitFloor { .. }), "{error}");
    assert_eq!(log.positions().last, vlsn_of(20));
    log.truncate_after(vlsn_of(15), Cut::Discard).unwrap();
    assert_eq!(log.positions().last, vlsn_of(15));
}
