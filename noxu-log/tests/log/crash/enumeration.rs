//! Enumeration: a crash at every call of a workload, every image that it may leave where they are
//! few, a draw of them where they are many.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use noxu_log::env::{Call, FaultEnv, Survivors};
use noxu_log::{MarkPolicy, Mutant};
use noxu_util::Term;
use parking_lot::Mutex;

use super::ledger::{Lawful, Ledger, Violation, check, ensure, reopen};
use super::workload::{Outcome, Run, Step, run};

/// Up to so many possible images of one crash each is opened; of more, as many are drawn.
const ALL_IMAGES: u64 = 256;
const DRAWN_IMAGES: u64 = 24;

/// What an enumeration went through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stats {
    /// Calls at which the machine stopped.
    calls: u64,
    /// Of them, those of which every possible image was looked at.
    all_images: u64,
    /// Images that crashes left.
    images: u64,
    /// Those that were opened: the others are the same bytes after the same step.
    opened: u64,
    /// Crashes in a recovery from another crash.
    in_recovery: u64,
    elapsed: Duration,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, all_images, images, opened, in_recovery, elapsed } = self;
        write!(
            f,
            "{calls} calls crashed, {all_images} with every possible image; {images} images, \
             {opened} of them distinct; {in_recovery} crashes in recovery; {elapsed:.1?}"
        )
    }
}

/// Where a violation was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) context: String,
    pub(super) violation: Violation,
    pub(super) stats: Stats,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (after {})", self.context, self.violation, self.stats)
    }
}

/// Calls that the steps take when nothing fails.
pub(super) fn calls_of(steps: &[Step], policy: MarkPolicy) -> u64 {
    let env = FaultEnv::new();
    let error = run(&env, steps, policy).error;
    assert!(error.is_none(), "{error:?}");
    env.calls()
}

/// Crashes at every call of the steps and checks what is left, all of it with the bug `mutant`.
pub(super) fn enumerate(
    steps: &[Step],
    policy: MarkPolicy,
    mutant: Option<Mutant>,
) -> Result<Stats, Found> {
    let start = Instant::now();
    let undisturbed = FaultEnv::new();
    let outcome = Mutant::with(mutant, || run(&undisturbed, steps, policy));
    if let Some(error) = outcome.error {
        let context = format!("step {}, {}", outcome.steps, last_call(&undisturbed));
        let violation = Violation(format!("it fails without any crash: {error}"));
        return Err(Found { context, violation, stats: Stats::default() });
    }
    let calls = undisturbed.calls();
    let shared = Shared { steps, policy, calls, state: Mutex::default() };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| Mutant::with(mutant, || while shared.next_call() {}));
        }
    });
    let State { mut stats, found, .. } = shared.state.into_inner();
    stats.elapsed = start.elapsed();
    match found {
        Some((context, violation)) => Err(Found { context, violation, stats }),
        None => Ok(stats),
    }
}

struct Shared<'a> {
    steps: &'a [Step],
    policy: MarkPolicy,
    calls: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stats: Stats,
    found: Option<(String, Violation)>,
    /// Image, step and what was acknowledged of those that were looked at.
    seen: HashSet<(blake3::Hash, usize, usize)>,
}

/// A crash, and what it may have left.
struct Crash<'a> {
    env: &'a FaultEnv,
    lawful: &'a Lawful,
    made: u64,
    step: usize,
}

impl Shared<'_> {
    /// Takes the next call; false if there is none or a violation was found.
    fn next_call(&self) -> bool {
        let call = {
            let mut state = self.state.lock();
            if state.found.is_some() || state.stats.calls == self.calls {
                return false;
            }
            state.stats.calls += 1;
            state.stats.calls
        };
        let env = FaultEnv::new();
        env.crash_at(call);
        let context = std::cell::RefCell::new(format!("call {call}"));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let Outcome { lawful, error, made, steps: step } = run(&env, self.steps, self.policy);
            // The last calls are those of dropping the log, which reports no failure.
            if error.is_none() {
                return Ok(());
            }
            if nothing_changed(&env) {
                return Ok(());
            }
            let at = format!("step {step}, {}", last_call(&env));
            let crash = Crash { env: &env, lawful: &lawful, made, step };
            self.images_of(&crash, &mut |which| *context.borrow_mut() = format!("{at}, {which}"))
        }));
        let violation = match outcome {
            Ok(Ok(())) => return true,
            Ok(Err(violation)) => violation,
            Err(panic) => panicked(&*panic),
        };
        self.state.lock().found.get_or_insert((context.into_inner(), violation));
        false
    }

    fn images_of(&self, crash: &Crash<'_>, note: &mut dyn FnMut(String)) -> Result<(), Violation> {
        let possible = crash.env.possible_images();
        let survivors: Vec<_> = if possible <= ALL_IMAGES {
            (0..possible).map(Survivors::Nth).collect()
        } else {
            let drawn = (0..DRAWN_IMAGES).map(Survivors::Random);
            [Survivors::None, Survivors::All].into_iter().chain(drawn).collect()
        };
        self.state.lock().stats.all_images += u64::from(possible <= ALL_IMAGES);
        for which in survivors {
            note(format!("{which:?} of {possible}"));
            let after = crash.env.clone_image(which);
            if self.is_new(&after, crash) {
                let (log, ledger) = check(&after, crash.lawful)?;
                go_on(&after, log, ledger, crash.made)?;
            }
        }
        note("process killed, machine stopped later".into());
        killed(crash)?;
        let seed = crash.step as u64 + crash.env.calls();
        for call in 1.. {
            let again = crash.env.clone_image(Survivors::Random(seed));
            again.crash_at(call);
            drop(reopen(&again, crash.lawful));
            if !again.has_crashed() {
                return Ok(());
            }
            self.state.lock().stats.in_recovery += 1;
            if nothing_changed(&again) {
                continue;
            }
            note(format!("Random({seed}), then {}", last_call(&again)));
            for which in [Survivors::None, Survivors::Random(seed + call)] {
                let after = again.clone_image(which);
                if self.is_new(&after, crash) {
                    let (log, ledger) = check(&after, crash.lawful)?;
                    go_on(&after, log, ledger, crash.made)?;
                }
            }
        }
        Ok(())
    }

    fn is_new(&self, image: &FaultEnv, crash: &Crash<'_>) -> bool {
        let key = (image.digest(), crash.step, crash.lawful.before.durable);
        let mut state = self.state.lock();
        state.stats.images += 1;
        let new = state.seen.insert(key);
        state.stats.opened += u64::from(new);
        new
    }
}

pub(super) fn last_call(env: &FaultEnv) -> String {
    env.trace().last().map(ToString::to_string).unwrap_or_default()
}

/// A panic is a violation too.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Violation {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    Violation(format!("panicked: {}", text.unwrap_or_default()))
}

/// Whether the two latest calls only read: what a crash in the second leaves, one in the first left
/// already.
fn nothing_changed(env: &FaultEnv) -> bool {
    let trace = env.trace();
    let reads = |call: &&Call| matches!(call.function, "read_at" | "len" | "list" | "exists");
    trace.len() >= 2 && trace.iter().rev().take(2).filter(reads).count() == 2
}

/// The process dies first: what its successor finds is not synced, what it calls durable must be.
fn killed(crash: &Crash<'_>) -> Result<(), Violation> {
    let env = crash.env.kill();
    let (log, ledger) = check(&env, crash.lawful)?;
    let after = env.clone_image(Survivors::None);
    drop(log);
    drop(check(&after, &Lawful::only(ledger))?);
    Ok(())
}

/// After recovery the log must go on as if nothing had happened.
pub(super) fn go_on(
    env: &FaultEnv,
    log: noxu_log::Log,
    ledger: Ledger,
    made: u64,
) -> Result<(), Violation> {
    let term = Term::new(100 + log.positions().last_term.number());
    let mut run = Run::new(log, ledger, made + 1000, term);
    for step in [Step::Append(vec![300, 40]), Step::Sync, Step::Append(vec![3000]), Step::Sync] {
        let taken = run.step(env, &step);
        ensure(taken.is_ok(), || format!("{step:?} fails afterwards"))?;
    }
    drop(run.log);
    drop(check(&env.clone_image(Survivors::None), &Lawful::only(run.ledger))?);
    Ok(())
}

/// A process is killed at each call that was to make names durable, and the machine stops at some
/// call of its successor, which had found those names.
pub(super) fn kill_then_crash(steps: &[Step]) -> Result<u64, String> {
    let mut crashes = 0;
    let policy = MarkPolicy::Strict;
    for call in 1..=calls_of(steps, policy) {
        let env = FaultEnv::new();
        env.crash_at(call);
        let outcome = run(&env, steps, policy);
        if outcome.error.is_none() {
            break; // The last calls are those of dropping the log.
        }
        let lawful = outcome.lawful;
        let killed_at = last_call(&env);
        if env.trace().last().is_none_or(|call| call.function != "sync_dir") {
            continue;
        }
        for later in 1.. {
            let successor = env.kill();
            successor.crash_at(later);
            drop(reopen(&successor, &lawful));
            if !successor.has_crashed() {
                break;
            }
            if nothing_changed(&successor) {
                continue;
            }
            crashes += 1;
            for which in [Survivors::None, Survivors::Random(later), Survivors::Random(later + 7)] {
                check(&successor.clone_image(which), &lawful).map_err(|violation| {
                    let crashed_at = last_call(&successor);
                    format!(
                        "killed at {killed_at}, crashed at {crashed_at}, {which:?}: {violation}"
                    )
                })?;
            }
        }
    }
    Ok(crashes)
}
