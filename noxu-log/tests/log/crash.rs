//! Crashes at every call of every operation: what was acknowledged is there, what was cut off never
//! comes back, and the directory always opens.

use std::fmt;

use noxu_log::env::{Fault, FaultEnv, Survivors};
use noxu_log::{
    Cut, EntryFlags, EntryKind, Log, LogError, LostEntries, LostNote, NewEntry, Result,
};
use noxu_util::{NULL_VLSN, Term, Vlsn};
use proptest::prelude::*;

use crate::rig::{Got, body, dir, open, quiet, read_all, try_open, vlsn_of};

/// One step of a workload.
#[derive(Debug, Clone)]
enum Step {
    /// Entries with bodies of these lengths; the last one ends a transaction.
    Append(Vec<usize>),
    Write,
    Sync,
    /// Cut so many entries off the end, but never below what is settled.
    Truncate {
        entries: u64,
        save: bool,
    },
    /// Everything but so many entries is settled: seal what that finishes.
    Seal {
        unsettled: u64,
    },
    /// Drop what may go of all but so many entries.
    DropFront {
        keep: u64,
    },
    /// A vote in the next term.
    Vote,
    Reopen,
}

/// What must be true of a log after a crash.
#[derive(Clone, Default)]
struct Ledger {
    /// Every entry of the current history, from VLSN 1.
    entries: Vec<Got>,
    /// So many of them were acknowledged as durable.
    durable: usize,
    settled: Vlsn,
    /// Everything through it may have been dropped.
    dropped: Vlsn,
    voted: Term,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, durable, settled, dropped, voted } = self;
        let count = entries.len();
        write!(
            f,
            "{count} entries, {durable} durable, {settled} settled, {dropped} dropped, {voted}"
        )
    }
}

/// The ledger before and after the step that a crash interrupted: each is lawful.
type Lawful = [Ledger; 2];

struct Run {
    log: Option<Log>,
    ledger: Ledger,
    /// Entries made so far, over all histories: no two have the same body.
    made: u64,
    term: Term,
}

impl Run {
    /// Takes a step; after a failure, what may be on disk.
    fn step(&mut self, env: &FaultEnv, step: &Step) -> std::result::Result<(), Lawful> {
        let before = self.ledger.clone();
        let done = self.try_step(env, step);
        done.map_err(|_| [before, self.ledger.clone()])
    }

    /// Moves the ledger to where the step leads before taking it, so that it is lawful if the crash
    /// comes after the step took effect.
    fn try_step(&mut self, env: &FaultEnv, step: &Step) -> Result<()> {
        let log = self.log.clone().expect("open between steps");
        let count = self.ledger.entries.len();
        match step {
            Step::Append(lengths) => {
                let first = count;
                for (at, len) in lengths.iter().enumerate() {
                    self.made += 1;
                    let last = at + 1 == lengths.len();
                    self.ledger.entries.push(Got {
                        vlsn: vlsn_of((first + at) as i64 + 1),
                        term: self.term,
                        kind: EntryKind(16),
                        flags: if last { EntryFlags::COMMIT } else { EntryFlags::NONE },
                        body: body(self.made, *len),
                    });
                }
                let entries: Vec<_> = self.ledger.entries[first..]
                    .iter()
                    .map(|got| NewEntry::new(got.kind, got.flags, &got.body))
                    .collect();
                log.append(self.term, &entries).map(|_| ())
            }
            Step::Write => log.write_now(),
            Step::Sync => {
                let durable = log.sync_now()?;
                assert_eq!(durable, vlsn_of(count as i64));
                self.ledger.durable = count;
                Ok(())
            }
            Step::Truncate { entries, save } => {
                let keep = (count as i64 - *entries as i64).max(self.ledger.settled.sequence());
                let keep = keep.max(self.ledger.dropped.sequence()) as usize;
                // A truncation syncs first, so that what it keeps is durable.
                self.ledger.durable = self.ledger.durable.min(keep);
                self.ledger.entries.truncate(keep);
                let lost = if *save {
                    let name = format!("lost-{}", self.made);
                    Cut::Save { name, note: LostNote::default() }
                } else {
                    Cut::Discard
                };
                log.truncate_after(vlsn_of(keep as i64), lost)?;
                if keep < count {
                    self.ledger.durable = keep;
                }
                // A new mastership, so that the entries to come are not those that went.
                self.term = Term::new(self.term.number() + 1);
                Ok(())
            }
            Step::Seal { unsettled } => {
                let settled = self.ledger.durable as i64 - *unsettled as i64;
                let settled = vlsn_of(settled.max(self.ledger.settled.sequence()));
                log.control().update(|control| control.commit_floor = settled)?;
                self.ledger.settled = settled;
                log.seal_through(settled)
            }
            Step::DropFront { keep } => {
                let through = (count as i64 - *keep as i64).max(0);
                self.ledger.dropped = self.ledger.dropped.max(vlsn_of(through));
                let anchor = log.drop_front(vlsn_of(through), |_| b"config".to_vec())?;
                self.ledger.dropped = anchor;
                Ok(())
            }
            Step::Vote => {
                self.ledger.voted = Term::new(self.ledger.voted.number() + 1);
                let term = self.ledger.voted;
                log.control().update(|control| {
                    control.term = term;
                    control.vote = Some(format!("voted-in-{term}").parse().unwrap());
                })
            }
            Step::Reopen => {
                log.close()?;
                self.ledger.durable = count;
                drop(log);
                self.log = None;
                self.log = Some(try_open(env, quiet())?);
                Ok(())
            }
        }
    }
}

/// Opens what a crash left and checks it against what is lawful; returns the log and where it is.
fn check(env: &FaultEnv, lawful: &Lawful, context: &dyn fmt::Display) -> (Log, Ledger) {
    let log = try_open(env, quiet()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let positions = log.positions();
    let control = log.control().state();
    let found = read_all(&log, 1000).unwrap_or_else(|error| panic!("{context}: {error}"));
    let first = positions.anchor.vlsn.next();
    let fits = |ledger: &Ledger| {
        let last = positions.last.sequence() as usize;
        let kept = ledger.entries.get(positions.anchor.vlsn.sequence() as usize..last);
        last >= ledger.durable
            && positions.anchor.vlsn <= ledger.dropped
            && kept.is_some_and(|kept| kept == found)
    };
    let Some(ledger) = lawful.iter().rev().find(|ledger| fits(ledger)) else {
        let last = positions.last;
        panic!("{context}: {first} to {last} found where {lawful:?} are lawful");
    };
    assert_eq!(positions.durable, positions.last, "{context}");
    assert!(control.truncate_intent.is_none(), "{context}");
    let voted = control.term;
    assert!(lawful.iter().any(|ledger| ledger.voted == voted), "{context}: voted in {voted}");
    let named = control.vote.map(|vote| vote.to_string());
    let expected = (voted > Term::ZERO).then(|| format!("voted-in-{voted}"));
    assert_eq!(named, expected, "{context}");
    let last_commit = found.iter().rev().find(|got| got.flags.is_sync()).map(|got| got.vlsn);
    assert_eq!(positions.last_sync, last_commit.unwrap_or(NULL_VLSN), "{context}");
    assert_eq!(positions.last_txn_end, last_commit.unwrap_or(NULL_VLSN), "{context}");
    for name in LostEntries::list(&env.clone(), dir()).unwrap() {
        LostEntries::read(&env.clone(), dir(), &name).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    let mut ledger = ledger.clone();
    ledger.entries.truncate(positions.last.sequence() as usize);
    ledger.durable = ledger.entries.len();
    ledger.dropped = positions.anchor.vlsn;
    ledger.voted = voted;
    ledger.settled = ledger.settled.max(control.commit_floor);
    (log, ledger)
}

/// After recovery the log must go on as if nothing had happened.
fn go_on(env: &FaultEnv, log: Log, ledger: Ledger, made: u64, context: &dyn fmt::Display) {
    let term = Term::new(100 + log.positions().last_term.number());
    let mut run = Run { log: Some(log), ledger, made: made + 1000, term };
    for step in [Step::Append(vec![300, 40]), Step::Sync, Step::Append(vec![3000]), Step::Sync] {
        run.step(env, &step).unwrap_or_else(|_| panic!("{context}: {step:?} fails"));
    }
    drop(run.log);
    let lawful = [run.ledger.clone(), run.ledger];
    drop(check(&env.clone_image(Survivors::None), &lawful, context));
}

/// A workload that uses everything: rolls, an entry larger than a segment, truncation within and
/// across segments with and without a lost-entries file, sealing, dropping, votes, reopening.
fn workload() -> Vec<Step> {
    vec![
        Step::Append(vec![100, 20, 0]),
        Step::Sync,
        Step::Append(vec![900]),
        Step::Write,
        Step::Append(vec![1200, 1300]),
        Step::Vote,
        Step::Append(vec![800]),
        Step::Sync,
        Step::Append(vec![600, 700, 500]),
        Step::Truncate { entries: 2, save: true },
        Step::Append(vec![600]),
        Step::Sync,
        Step::Append(vec![6000]),
        Step::Append(vec![50]),
        Step::Sync,
        Step::Truncate { entries: 5, save: true },
        Step::Append(vec![1000, 1000]),
        Step::Sync,
        Step::Append(vec![2000, 2000, 2000, 2000]),
        Step::Sync,
        Step::Truncate { entries: 3, save: false },
        Step::Append(vec![1500, 1500, 1500, 1500]),
        Step::Append(vec![1500]),
        Step::Sync,
        Step::Seal { unsettled: 1 },
        Step::Reopen,
        Step::Append(vec![700, 700]),
        Step::DropFront { keep: 4 },
        Step::Append(vec![700]),
        Step::Sync,
        Step::Vote,
        Step::Truncate { entries: 1, save: true },
        Step::Append(vec![10]),
        Step::Reopen,
    ]
}

/// Opens a log and takes the steps until one fails; what may be on disk then (`None` if all went
/// well), and how many entries were made.
fn run(env: &FaultEnv, steps: &[Step]) -> (Option<Lawful>, u64) {
    let Ok(log) = try_open(env, quiet()) else { return (Some(Lawful::default()), 0) };
    let mut run = Run { log: Some(log), ledger: Ledger::default(), made: 0, term: Term::new(1) };
    for step in steps {
        if let Err(lawful) = run.step(env, step) {
            return (Some(lawful), run.made);
        }
    }
    (None, run.made)
}

/// Calls that the steps take when nothing fails.
fn calls_of(steps: &[Step]) -> u64 {
    let env = FaultEnv::new();
    let (failed, _) = run(&env, steps);
    assert!(failed.is_none(), "{failed:?}");
    env.calls()
}

#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged_and_revives_nothing_cut() {
    let calls = calls_of(&workload());
    assert!(calls > 150, "only {calls} calls");
    for call in 1..=calls {
        let env = FaultEnv::new();
        env.crash_at(call);
        let (lawful, made) = run(&env, &workload());
        // The last calls are those of dropping the log, which reports no failure.
        let Some(lawful) = lawful else { continue };
        for seed in 0..8 {
            let after = env.crash(seed);
            let context = format!("{}, seed {seed}", last_call(&env));
            let (log, ledger) = check(&after, &lawful, &context);
            go_on(&after, log, ledger, made, &context);
        }
    }
}

fn last_call(env: &FaultEnv) -> String {
    env.trace().last().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn a_crash_during_recovery_changes_nothing() {
    let calls = calls_of(&workload());
    for crash_call in (1..calls).step_by(5) {
        let env = FaultEnv::new();
        env.crash_at(crash_call);
        let (Some(lawful), made) = run(&env, &workload()) else { continue };
        for call in 1.. {
            let seed = crash_call + call;
            let again = env.crash(seed);
            again.crash_at(call);
            drop(try_open(&again, quiet()));
            if !again.has_crashed() {
                break;
            }
            let after = again.crash(seed + 1);
            let context = format!("{}, then {}", last_call(&env), last_call(&again));
            let (log, ledger) = check(&after, &lawful, &context);
            go_on(&after, log, ledger, made, &context);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let lengths =
        prop::collection::vec(prop_oneof![0..200usize, 200..1800usize, 4000..5000usize], 1..5);
    prop_oneof![
        6 => lengths.prop_map(Step::Append),
        1 => Just(Step::Write),
        4 => Just(Step::Sync),
        2 => (1..8u64, any::<bool>()).prop_map(|(entries, save)| Step::Truncate { entries, save }),
        1 => (0..6u64).prop_map(|unsettled| Step::Seal { unsettled }),
        1 => (0..8u64).prop_map(|keep| Step::DropFront { keep }),
        1 => Just(Step::Vote),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_workload_survives_any_crash_twice(
        steps in prop::collection::vec(step(), 1..30),
        crash in any::<prop::sample::Index>(),
        seeds in any::<(u64, u64)>(),
        recovery_crash in 1..60u64,
    ) {
        let env = FaultEnv::new();
        env.crash_at(1 + crash.index(calls_of(&steps) as usize) as u64);
        let (lawful, made) = run(&env, &steps);
        if let Some(lawful) = lawful {
            let again = env.crash(seeds.0);
            again.crash_at(recovery_crash);
            drop(try_open(&again, quiet()));
            let after = again.crash(seeds.1);
            let context = format!("{}, then call {recovery_crash}", last_call(&env));
            let (log, ledger) = check(&after, &lawful, &context);
            go_on(&after, log, ledger, made, &context);
        }
    }
}

/// Every call fails once instead of stopping the machine: an error is an error, and what was
/// acknowledged before or after it is there when the machine stops later.
#[test]
fn a_failure_of_any_call_never_loses_what_is_acknowledged() {
    for fault in [Fault::IO, Fault::NO_SPACE] {
        for call in 1..=calls_of(&workload()) {
            let env = FaultEnv::new();
            env.fail_at(call, fault);
            let (lawful, _) = run(&env, &workload());
            let Some(lawful) = lawful else { continue };
            let failed = env.trace().into_iter().find(|made| made.number == call);
            let failed = failed.map(|call| call.to_string()).unwrap_or_default();
            for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
                let context = format!("{fault:?} in {failed}, {survivors:?}");
                drop(check(&env.clone_image(survivors), &lawful, &context));
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
