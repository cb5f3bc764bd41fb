//! Applier: brings the state machine up to what may be applied.
//!
//! Applying is a turn that any thread may take: a committer that was just released, or the applier
//! thread. Whoever has it applies everything that may be applied, so that a blocked committer needs
//! no hop through another thread; the applier thread covers what nobody waits for.
//!
//! # Invariants
//! - `applied <= limit` except between a rollback and the limit's next advance; the state machine
//!   sees every entry once, in VLSN order, since it was opened or rolled back.
//! - After the first failure nothing is applied any more. An entry that is damaged is no failure: what
//!   is before it is applied, and the rest once it is mended. Rot in what was written long ago is met
//!   only when it is read: then its life says whether it will be mended.
//!
//! # Lock order
//! `turn` -> the state machine's own locks, the log's `state`. `waiting` and `signal` are leaves.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use noxu_log::{Log, LogError};
use noxu_util::Vlsn;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{RepError, Result};
use crate::sync::StateMachine;

/// Bytes of log applied at a time; waiters learn of progress that often.
const RUN_BYTES: usize = 1 << 20;

/// Runs that a committer applies for others before it goes on with its own business.
const RUNS_HELPED: usize = 4;

/// Brings the state machine up to what may be applied.
pub struct Applier {
    log: Log,
    machine: Arc<dyn StateMachine>,
    /// Everything through it may be applied.
    limit: AtomicI64,
    /// Everything through it was given to the state machine.
    applied: AtomicI64,
    turn: Mutex<Turn>,
    failed: AtomicBool,
    on_rot: OnceLock<OnRot>,
    waiters: AtomicUsize,
    waiting: Mutex<()>,
    progressed: Condvar,
    signal: Mutex<Signal>,
    signalled: Condvar,
}

/// Hears of rot, and says whether it will be mended, or just was. Called with no lock held.
type OnRot = Box<dyn Fn(&LogError) -> bool + Send + Sync>;

#[derive(Default)]
struct Turn {
    failed: Option<String>,
    /// What is behind this could not be read though nothing is known to be damaged there.
    misread: Option<Vlsn>,
}

#[derive(Default)]
struct Signal {
    due: bool,
    stop: bool,
}

impl Applier {
    /// An applier that goes on where `machine` stands.
    pub fn new(log: Log, machine: Arc<dyn StateMachine>, limit: Vlsn) -> Self {
        let applied = machine.applied();
        Self {
            log,
            limit: AtomicI64::new(limit.max(applied).sequence()),
            applied: AtomicI64::new(applied.sequence()),
            machine,
            turn: Mutex::default(),
            failed: AtomicBool::new(false),
            on_rot: OnceLock::new(),
            waiters: AtomicUsize::new(0),
            waiting: Mutex::new(()),
            progressed: Condvar::new(),
            signal: Mutex::default(),
            signalled: Condvar::new(),
        }
    }

    /// Has `hook` called when rot is met.
    pub(crate) fn set_on_rot(&self, hook: impl Fn(&LogError) -> bool + Send + Sync + 'static) {
        let first = self.on_rot.set(Box::new(hook)).is_ok();
        assert!(first, "one life, one hook");
    }

    /// The state machine.
    pub fn machine(&self) -> &Arc<dyn StateMachine> {
        &self.machine
    }

    /// Everything through it is applied.
    pub fn applied(&self) -> Vlsn {
        Vlsn::new(self.applied.load(Ordering::Acquire))
    }

    /// Everything through it may be applied.
    pub fn limit(&self) -> Vlsn {
        Vlsn::new(self.limit.load(Ordering::Acquire))
    }

    /// Lets everything through `limit` be applied, without doing it. True if that is news.
    pub fn raise(&self, limit: Vlsn) -> bool {
        self.limit.fetch_max(limit.sequence(), Ordering::AcqRel) < limit.sequence()
    }

    /// Wakes the applier thread if there is something to apply.
    pub fn signal(&self) {
        if self.applied() >= self.limit() {
            return;
        }
        let mut signal = self.signal.lock();
        if !signal.due {
            signal.due = true;
            self.signalled.notify_one();
        }
    }

    /// Applies what may be applied, in this thread if nobody else is at it. Whoever is at it looks
    /// again when it is done, so nothing is left behind. Under endless load it hands over to the
    /// applier thread.
    pub fn help(&self) -> Result<()> {
        for _ in 0..RUNS_HELPED {
            if self.applied() >= self.limit() {
                return Ok(());
            }
            let Some(turn) = self.turn.try_lock() else { return Ok(()) };
            if !self.run(turn, RUNS_HELPED)? {
                return Ok(());
            }
        }
        self.signal();
        Ok(())
    }

    /// Blocks until everything through `vlsn` is applied; false if the time is up before.
    pub fn wait_applied(&self, vlsn: Vlsn, timeout: Duration) -> Result<bool> {
        if self.applied() >= vlsn {
            return Ok(true);
        }
        self.help()?;
        if self.applied() >= vlsn {
            return Ok(true);
        }
        let deadline = Instant::now() + timeout;
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut waiting = self.waiting.lock();
        let reached = loop {
            if self.applied() >= vlsn {
                break true;
            }
            if self.failed.load(Ordering::Acquire) || self.signal.lock().stop {
                break false;
            }
            if self.progressed.wait_until(&mut waiting, deadline).timed_out() {
                break self.applied() >= vlsn;
            }
        };
        drop(waiting);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        Ok(reached)
    }

    /// Undoes everything above `matchpoint`. What may be applied falls back to it.
    pub fn roll_back_to(&self, matchpoint: Vlsn) -> Result<()> {
        let mut turn = self.turn.lock();
        turn.check()?;
        self.limit.fetch_min(matchpoint.sequence(), Ordering::AcqRel);
        if self.machine.applied() > matchpoint || self.applied() > matchpoint {
            if let Err(cause) = self.machine.roll_back_to(matchpoint, &self.log) {
                return Err(turn.fail(cause));
            }
            self.applied.store(self.machine.applied().sequence(), Ordering::Release);
        }
        Ok(())
    }

    /// The state machine's content was replaced by a restore.
    pub fn handle_replaced(&self) {
        let _turn = self.turn.lock();
        self.applied.store(self.machine.applied().sequence(), Ordering::Release);
        self.limit.fetch_max(self.machine.applied().sequence(), Ordering::AcqRel);
    }

    /// Whether something may be applied, as far as the log holds it.
    pub fn is_due(&self) -> bool {
        self.applied() < self.limit()
    }

    /// Applies one run; false if the log ends below what may be applied, or is damaged there and
    /// [`Applier::signal`] is to be called once it is mended. A committer may be at it;
    /// then this waits for its turn.
    ///
    /// # Errors
    /// The state machine's first failure.
    pub fn step(&self) -> Result<bool> {
        let turn = self.turn.lock();
        self.run(turn, 1)
    }

    /// The applier thread: applies whenever it is signalled, until it is stopped.
    ///
    /// # Errors
    /// The state machine's first failure.
    pub fn run_thread(&self) -> Result<()> {
        loop {
            while self.is_due() && self.step()? {}
            let mut signal = self.signal.lock();
            while !signal.due && !signal.stop {
                self.signalled.wait(&mut signal);
            }
            if signal.stop {
                return Ok(());
            }
            signal.due = false;
        }
    }

    /// Ends [`Applier::run_thread`] and everybody who waits.
    pub fn stop(&self) {
        self.signal.lock().stop = true;
        self.signalled.notify_all();
        self.wake_waiters();
    }

    /// Applies at most `runs` runs; false if the log ends, or is damaged, below the limit.
    fn run<'a>(&'a self, mut turn: MutexGuard<'a, Turn>, runs: usize) -> Result<bool> {
        turn.check()?;
        for _ in 0..runs {
            let (applied, limit) = (self.applied(), self.limit());
            if applied >= limit {
                break;
            }
            let step = match self.log.read(applied.next(), RUN_BYTES) {
                Ok(Some(run)) => {
                    let through = run.last.min(limit);
                    self.machine.apply(&run, limit).map(|()| Some(through))
                }
                // The limit may name entries that are still on their way to this node.
                Ok(None) | Err(LogError::Faulty { .. }) => Ok(None),
                Err(cause @ LogError::Corrupt { .. }) => {
                    let again = turn.misread == Some(applied);
                    drop(turn);
                    let is_mended = self.on_rot.get().is_some_and(|hook| hook(&cause));
                    turn = self.turn.lock();
                    if self.applied() != applied {
                        return Ok(true); // somebody else could read it meanwhile
                    }
                    if is_mended {
                        turn.misread = None;
                        return Ok(false);
                    }
                    // Once more, unless nothing was known to be damaged before it was read either: the
                    // disk may have told otherwise than it does now, or it was mended in between.
                    turn.misread = Some(applied);
                    if !again {
                        return Ok(true);
                    }
                    Err(cause.into())
                }
                Err(cause) => Err(cause.into()),
            };
            match step {
                Ok(Some(through)) => {
                    turn.misread = None;
                    self.applied.store(through.sequence(), Ordering::SeqCst);
                    if self.waiters.load(Ordering::SeqCst) > 0 {
                        self.wake_waiters();
                    }
                }
                Ok(None) => return Ok(false),
                Err(cause) => {
                    let cause = turn.fail(cause);
                    self.failed.store(true, Ordering::Release);
                    self.wake_waiters();
                    return Err(cause);
                }
            }
        }
        Ok(true)
    }

    fn wake_waiters(&self) {
        // Under the lock, so that nobody between its check and its wait is missed.
        let _waiting = self.waiting.lock();
        self.progressed.notify_all();
    }
}

impl Turn {
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(cause) => Err(RepError::Stopped { cause: cause.clone() }),
        }
    }

    fn fail(&mut self, cause: RepError) -> RepError {
        self.failed = Some(cause.to_string());
        cause
    }
}

#[cfg(test)]
mod tests {
    use noxu_log::EntryRun;
    use noxu_log::segment::name::{log_dir, segment_name};
    use noxu_util::NULL_VLSN;

    use super::*;
    use crate::damaged_log::{damaged, reopened, sealed};
    use crate::sync::{Checkpoint, LogReader};

    /// Remembers which entries it was given.
    #[derive(Default)]
    struct Given(Mutex<Vec<Vlsn>>);

    impl StateMachine for Given {
        fn applied(&self) -> Vlsn {
            self.0.lock().last().copied().unwrap_or_default()
        }

        fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
            let within = run.entries().map(|entry| entry.header.vlsn).filter(|v| *v <= through);
            self.0.lock().extend(within);
            Ok(())
        }

        fn roll_back_to(&self, matchpoint: Vlsn, _: &dyn LogReader) -> Result<()> {
            self.0.lock().retain(|vlsn| *vlsn <= matchpoint);
            Ok(())
        }

        fn checkpoint(&self) -> Result<Vlsn> {
            Ok(NULL_VLSN)
        }

        fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
            Err(RepError::state_machine("it has none"))
        }

        fn install_checkpoint(&self, _: Vlsn, _: &mut dyn std::io::Read) -> Result<()> {
            Err(RepError::state_machine("it takes none"))
        }
    }

    #[test]
    fn what_cannot_be_read_once_is_read_again_and_fails_the_second_time() {
        for is_transient in [true, false] {
            let (env, log) = sealed();
            let path = log_dir(log.dir()).join(segment_name(log.sealed_segments()[0].number));
            log.close().unwrap(); // so that nothing is in memory
            let log = reopened(&env);
            let applier = Applier::new(log, Arc::new(Given::default()), NULL_VLSN);
            applier.raise(Vlsn::new(8));
            env.corrupt(&path, 200, 0x10).unwrap();
            applier.set_on_rot(move |_| {
                if is_transient {
                    env.corrupt(&path, 200, 0x10).unwrap(); // the same bit again
                }
                false
            });
            assert!(applier.step().unwrap(), "once more");
            assert_eq!(applier.step().is_ok(), is_transient);
            assert_eq!(applier.applied() > NULL_VLSN, is_transient);
        }
    }

    /// It is read again while it is mended: whoever looks finds nothing damaged any more.
    #[test]
    fn what_is_mended_between_being_read_and_being_looked_at_is_no_failure() {
        let (env, log) = sealed();
        let path = log_dir(log.dir()).join(segment_name(log.sealed_segments()[0].number));
        log.close().unwrap();
        let applier = Applier::new(reopened(&env), Arc::new(Given::default()), NULL_VLSN);
        applier.raise(Vlsn::new(8));
        env.corrupt(&path, 200, 0x10).unwrap();
        let calls = AtomicUsize::new(0);
        applier.set_on_rot(move |_| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            if call == 1 {
                env.corrupt(&path, 200, 0x10).unwrap(); // the same bit again
            }
            call == 0
        });
        assert!(!applier.step().unwrap(), "it is asked for");
        assert!(applier.step().unwrap(), "once more");
        assert!(applier.step().unwrap());
        assert!(applier.applied() > NULL_VLSN);
    }

    #[test]
    fn a_damaged_entry_ends_a_step_like_the_logs_end_until_it_is_mended() {
        let (log, entry) = damaged();
        let machine = Arc::new(Given::default());
        let applier = Applier::new(log.clone(), Arc::clone(&machine) as _, NULL_VLSN);
        applier.raise(Vlsn::new(8));
        while applier.step().unwrap() {}
        assert_eq!((applier.applied(), applier.is_due()), (Vlsn::new(4), true));
        assert!(!applier.step().unwrap(), "it is no failure, however often it is met");
        log.repair(&entry).unwrap();
        while applier.is_due() {
            assert!(applier.step().unwrap());
        }
        let given: Vec<_> = machine.0.lock().iter().map(|vlsn| vlsn.sequence()).collect();
        assert_eq!(given, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
