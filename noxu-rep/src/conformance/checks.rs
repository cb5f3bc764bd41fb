//! Checks: what a method has to get right while nothing crashes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use noxu_util::Name;

use super::relay::{Harm, Seen};
use super::world::{Ahead, DIR, Giver, Taking, disk, open, said, with_old_state};
use super::{Check, Subject};
use crate::error::Result as RepResult;
use crate::sync::method::{
    LogPart, MAX_ANSWER_BYTES, StateSync, SyncNode, SyncOrder, SyncProvider, SyncSession,
};
use crate::sync::stream::StreamSync;
use crate::sync::{LogReader, StateMachine};

type Outcome = Result<String, String>;

/// Fewest answers in which a state has to come for the checks to mean something.
const LEAST_ANSWERS: usize = 8;

/// Most questions that a session has under way.
const WINDOW: usize = 8;

pub(super) fn all<S: Subject>() -> Vec<Check<S>> {
    vec![
        ("quiet copy", quiet_copy),
        ("copy with writers", copy_with_writers),
        ("a source dies in the middle", source_dies),
        ("an answer is corrupted", corrupted_answer),
        ("an answer is empty", empty_answer),
        ("answers are late and doubled", repeated_answers),
        ("resume after the connection broke", resume),
        ("another source after the connection broke", resume_elsewhere),
        ("all of it was here already", already_here),
        ("made ready as it comes", made_ready),
        ("what was rolled back is discarded", discarded_after_rollback),
        ("another signature: the next method", next_method),
        ("two restores at once", two_at_once),
        ("memory is bounded", bounded_memory),
    ]
}

/// A node with nothing but the subject's transactions.
pub(super) fn giver<'s, S: Subject>(subject: &'s S, node: &str) -> Result<Giver<'s, S>, String> {
    Giver::new(subject, node, &[subject.method()], (u64::MAX, 0)).map_err(said("the source"))
}

fn answers(seen: &Seen) -> usize {
    seen.answers.load(Ordering::Relaxed)
}

fn quiet_copy<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let (_, env) = disk()?;
    with_old_state(subject, &env)?;
    let taking = Taking::from(&master);
    let (progress, restored) = taking.restore(&env)?;
    let (answers, bytes) = (answers(&taking.seen), taking.seen.bytes.load(Ordering::Relaxed));
    if answers < LEAST_ANSWERS {
        return Err(format!(
            "the state came in {answers} answers, {LEAST_ANSWERS} at least are needed: see Subject::method"
        ));
    }
    if restored.checkpoint.is_null() {
        return Err("the log was replayed, no state came".to_owned());
    }
    if env.exists(&Path::new(DIR).join("restore")).map_err(said("looking"))? {
        return Err("files of the restore are left".to_owned());
    }
    Ok(format!("{answers} answers, {bytes} bytes, {} had", progress.checkpoint_bytes))
}

fn copy_with_writers<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let (_, env) = disk()?;
    let (written, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut taking = Taking::from(&master);
    taking.watch = Box::new(|_| {
        if written.load(Ordering::Relaxed) < 60 {
            written.fetch_add(1, Ordering::Relaxed);
            failed.fetch_or(master.write().is_err(), Ordering::Relaxed);
        }
    });
    taking.restore(&env)?;
    drop(taking);
    if failed.into_inner() {
        return Err("the source could not apply what was written".to_owned());
    }
    Ok(format!("{} transactions meanwhile", written.into_inner()))
}

/// A restore from a follower on whose connection this harm is done, and then from the master.
fn harmed<S: Subject>(subject: &S, harm: Harm) -> Result<(usize, usize), String> {
    let (master, follower) = (giver(subject, "n1")?, giver(subject, "n3")?);
    let (_, env) = disk()?;
    let mut taking = Taking::from(&master);
    taking.sources = vec![(&follower, harm)];
    taking.restore(&env)?;
    let harmed = taking.seen.harmed.load(Ordering::Relaxed);
    if harmed == 0 {
        return Err("the follower gave nothing".to_owned());
    }
    Ok((answers(&taking.seen), harmed))
}

fn source_dies<S: Subject>(subject: &S) -> Outcome {
    let (answers, _) = harmed(subject, Harm::BreaksAt(LEAST_ANSWERS / 2))?;
    Ok(format!("{answers} answers of both"))
}

fn corrupted_answer<S: Subject>(subject: &S) -> Outcome {
    let (answers, _) = harmed(subject, Harm::FlipsIn(1))?;
    Ok(format!("{answers} answers of both"))
}

fn empty_answer<S: Subject>(subject: &S) -> Outcome {
    let (answers, _) = harmed(subject, Harm::Empties(1))?;
    Ok(format!("{answers} answers of both"))
}

fn repeated_answers<S: Subject>(subject: &S) -> Outcome {
    let (answers, harmed) = harmed(subject, Harm::Repeats)?;
    Ok(format!("{harmed} of {answers} answers repeated"))
}

fn resume<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    broken_off(&master, &master)
}

fn resume_elsewhere<S: Subject>(subject: &S) -> Outcome {
    broken_off(&giver(subject, "n1")?, &giver(subject, "n3")?)
}

/// The connection with the first one breaks in the middle, the second one gives the rest.
fn broken_off<S: Subject>(first: &Giver<'_, S>, second: &Giver<'_, S>) -> Outcome {
    let (_, env) = disk()?;
    let mut taking = Taking::from(first);
    taking.master.1 = Harm::BreaksAt(LEAST_ANSWERS - 2);
    if taking.fetch(&env).is_ok() {
        return Err("it ended although the connection broke".to_owned());
    }
    let again = Taking::from(second);
    let (progress, _) = again.restore(&env)?;
    let (had, reused) = (progress.checkpoint_bytes, progress.checkpoint_reused);
    if reused > had {
        return Err(format!("{reused} bytes reused of {had}"));
    }
    Ok(format!("{reused} of {had} bytes reused"))
}

/// The first session had everything, and was not allowed to commit.
fn already_here<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let (_, env) = disk()?;
    let mut taking = Taking::from(&master);
    taking.permits = false;
    if taking.fetch(&env).is_ok() {
        return Err("it was committed without leave".to_owned());
    }
    let again = Taking::from(&master);
    let (progress, _) = again.restore(&env)?;
    Ok(format!("{} bytes reused, {} answers", progress.checkpoint_reused, answers(&again.seen)))
}

/// By a thread of its own and without one, from the first answer on and once the connection broke; until the
/// installation the state is what it was.
fn made_ready<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let mut reused = 0;
    for has_threads in [false, true] {
        let (_, env) = disk()?;
        with_old_state(subject, &env)?;
        let machine = open(subject, &env).map_err(said("opening"))?;
        let digest = || subject.digest(&machine).map_err(said("the digest"));
        let before = digest()?;
        let ahead = || Some(Ahead { machine: Arc::clone(&machine), has_threads });
        let mut broken = Taking::from(&master);
        (broken.master.1, broken.ahead) = (Harm::BreaksAt(LEAST_ANSWERS - 2), ahead());
        if broken.fetch(&env).is_ok() {
            return Err("it ended although the connection broke".to_owned());
        }
        let mut taking = Taking::from(&master);
        taking.ahead = ahead();
        reused += taking.fetch(&env).map_err(said("fetching"))?.checkpoint_reused;
        if digest()? != before {
            return Err("the state is another one before it is installed".to_owned());
        }
        taking.install(&env, &machine).map_err(said("installing"))?;
        taking.ahead = None;
        drop((broken, machine));
        taking.compare(&env)?;
    }
    Ok(format!("with and without a thread, {reused} bytes reused"))
}

/// A follower whose last entries are others than the master's; that shows once all of its state is here.
fn discarded_after_rollback<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let methods = [subject.method()];
    let common = subject.transactions().saturating_sub(3);
    let parted =
        Giver::new(subject, "n3", &methods, (common, 1 << 20)).map_err(said("the source"))?;
    // Whether the first entries come while the state does is up to the threads.
    for _ in 0..ATTEMPTS {
        let (_, env) = disk()?;
        let mut taking = Taking::from(&master);
        taking.sources = vec![(&parted, Harm::None)];
        taking.master.1 = Harm::HoldsEntries;
        taking.restore(&env)?;
        if taking.seen.harmed.load(Ordering::Relaxed) > 0 {
            return Ok(format!("{} answers of both", answers(&taking.seen)));
        }
    }
    Err("the entries came before the state".to_owned())
}

/// How often what threads must do in one order is tried.
const ATTEMPTS: usize = 20;

/// A method of the same name and another form.
#[derive(Debug)]
struct Other(Arc<dyn StateSync>);

impl StateSync for Other {
    fn name(&self) -> Name {
        self.0.name()
    }

    fn signature(&self) -> u64 {
        !self.0.signature()
    }

    fn log_part(&self) -> LogPart {
        self.0.log_part()
    }

    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider> {
        self.0.provider(node)
    }

    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> RepResult<Box<dyn SyncSession>> {
        self.0.session(order, saved)
    }

    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        log: &dyn LogReader,
    ) -> RepResult<()> {
        self.0.install(order, sealed, machine, log)
    }
}

/// What it kept in its own form is nothing to the next method, which leaves nothing behind either.
fn next_method<S: Subject>(subject: &S) -> Outcome {
    let method = subject.method();
    let next = [StreamSync::SNAPSHOT, StreamSync::SEGMENTS];
    let next = next.into_iter().find(|next| next.name() != method.name());
    let next: Arc<dyn StateSync> = Arc::new(next.expect("they have two names"));
    let methods = [Arc::clone(&method), Arc::clone(&next)];
    let master = Giver::new(subject, "n1", &methods, (u64::MAX, 0)).map_err(said("the source"))?;
    let (_, env) = disk()?;
    let mut broken = Taking::from(&master);
    broken.master.1 = Harm::BreaksAt(LEAST_ANSWERS - 2);
    if broken.fetch(&env).is_ok() {
        return Err("it ended although the connection broke".to_owned());
    }
    let mut taking = Taking::from(&master);
    taking.methods = vec![Arc::new(Other(method)), Arc::clone(&next)];
    taking.restore(&env)?;
    Ok(format!("{} took over", next.name()))
}

fn two_at_once<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let one = || -> Result<usize, String> {
        let (_, env) = disk()?;
        let taking = Taking::from(&master);
        taking.restore(&env)?;
        Ok(answers(&taking.seen))
    };
    thread::scope(|scope| {
        let both = [scope.spawn(one), scope.spawn(one)];
        let counts = both.map(|one| one.join().unwrap_or_else(|_| Err("it panicked".to_owned())));
        let [a, b] = counts;
        Ok(format!("{} and {} answers", a?, b?))
    })
}

/// What came goes to the disk as it comes, but for what is under way.
fn bounded_memory<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let (faulty, env) = disk()?;
    // On the disk when the first answer had come, and how far it was behind at most.
    let (before, behind) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let seen: Arc<Seen> = Arc::default();
    let mut taking = Taking::from(&master);
    taking.seen = Arc::clone(&seen);
    taking.watch = Box::new(|_| {
        let (used, came) = (faulty.used_bytes(), seen.bytes.load(Ordering::Relaxed) as u64);
        if came == 0 {
            before.store(used, Ordering::Relaxed);
        }
        let written = used.saturating_sub(before.load(Ordering::Relaxed));
        behind.fetch_max(came.saturating_sub(written), Ordering::Relaxed);
    });
    taking.restore(&env)?;
    drop(taking);
    let (under_way, longest) =
        (seen.most_under_way.load(Ordering::Relaxed), seen.longest.load(Ordering::Relaxed));
    let behind = behind.into_inner();
    let most = (WINDOW * longest) as u64;
    if longest > MAX_ANSWER_BYTES || under_way > WINDOW || behind > most {
        return Err(format!(
            "{behind} bytes that came were not on the disk, with {under_way} answers of at most \
             {longest} bytes under way; at most {most} were expected"
        ));
    }
    Ok(format!("{under_way} answers of {longest} bytes under way, {behind} bytes not written"))
}
