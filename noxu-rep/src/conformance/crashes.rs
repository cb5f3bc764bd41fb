//! Crashes: what a method leaves when the power goes, at every call to the disk while it fetches and while it
//! is installed, and again at a call of the recovery; and what it makes of files that rot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors};

use super::checks::giver;
use super::world::{DIR, Taking, disk, open, said, with_old_state};
use super::{Check, Subject};
use crate::error::Result as RepResult;
use crate::restore::state_dir;

type Outcome = Result<String, String>;

/// How many random fates of what was not synced are tried for each crash.
const FATES: u64 = 2;

pub(super) fn all<S: Subject>() -> Vec<Check<S>> {
    vec![
        ("a crash at any call, two deep", crash_anywhere),
        ("a crash at any call of the installation, two deep", crash_installing),
        ("the installation is repeated", install_repeated),
        ("what came rots before it is installed", rots_before_it_is_installed),
    ]
}

/// What a node does when it starts, until it is restored.
fn start<S: Subject>(taking: &Taking<'_, S>, env: &Arc<dyn Env>) -> RepResult<()> {
    let machine = open(taking.master.0.subject, env)?;
    if taking.recover(env, &machine)? {
        return Ok(());
    }
    taking.fetch(env)?;
    taking.install(env, &machine).map(drop)
}

/// The power goes at call `call` from now on; false if there are not so many until `go` has ended. Then it
/// goes at a call of the next start, too.
fn crash<S: Subject>(
    taking: &Taking<'_, S>,
    faulty: &FaultEnv,
    (call, seed): (u64, u64),
) -> Result<bool, String> {
    let at = |what: &str| format!("{what} at call {call}, seed {seed}");
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    faulty.crash_at(faulty.calls() + call);
    let ended = start(taking, &env);
    if !faulty.has_crashed() {
        ended.map_err(|error| at(&format!("without a crash: {error}")))?;
        return Ok(false);
    }
    drop(env);
    let second = faulty.crash(seed);
    let env: Arc<dyn Env> = Arc::new(second.clone());
    second.crash_at(second.calls() + 1 + (seed * 31 + call * 7) % 90);
    let ended = start(taking, &env);
    if !second.has_crashed() {
        ended.map_err(|error| at(&format!("after a crash: {error}")))?;
    }
    drop(env);
    let env: Arc<dyn Env> = Arc::new(second.crash(seed + 1));
    // Unless the second crash came after the end of all.
    if !is_restored(taking, &env).map_err(|error| at(&error))? {
        start(taking, &env).map_err(|error| at(&format!("after two crashes: {error}")))?;
    }
    taking.compare(&env).map_err(|error| at(&error))?;
    Ok(true)
}

/// Whether the log is the master's by now, and nothing is left to do.
fn is_restored<S: Subject>(taking: &Taking<'_, S>, env: &Arc<dyn Env>) -> Result<bool, String> {
    let machine = open(taking.master.0.subject, env).map_err(said("opening"))?;
    taking.recover(env, &machine).map_err(said("starting"))?;
    drop(machine);
    taking.has_new_log(env)
}

fn crash_anywhere<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let taking = Taking::from(&master);
    for call in 1.. {
        let mut crashed = false;
        for fate in 0..FATES {
            let (faulty, env) = disk()?;
            with_old_state(subject, &env)?;
            drop(env);
            crashed |= crash(&taking, &faulty, (call, fate * 1000 + call))?;
        }
        if !crashed {
            return Ok(format!("{} calls", call - 1));
        }
    }
    unreachable!("it ends")
}

/// X "during replay".
fn crash_installing<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let taking = Taking::from(&master);
    let (committed, env) = disk()?;
    with_old_state(subject, &env)?;
    taking.fetch(&env).map_err(said("fetching"))?;
    drop(env);
    for call in 1.. {
        let faulty = committed.clone_image(Survivors::Random(call));
        if !crash(&taking, &faulty, (call, call * 13))? {
            return Ok(format!("{} calls", call - 1));
        }
    }
    unreachable!("it ends")
}

/// Each time from the same files, over what the time before left as the state.
fn install_repeated<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let taking = Taking::from(&master);
    let (faulty, env) = disk()?;
    taking.fetch(&env).map_err(said("fetching"))?;
    let calls = {
        let image = faulty.clone_image(Survivors::All);
        let env: Arc<dyn Env> = Arc::new(image.clone());
        let before = image.calls();
        let machine = open(subject, &env).map_err(said("opening"))?;
        taking.install(&env, &machine).map_err(said("installing"))?;
        image.calls() - before
    };
    // The calls that end it: what the method did is done by then.
    let (mut image, mut times) = (faulty.clone_image(Survivors::All), 0);
    for back in (1..=4).rev() {
        let env: Arc<dyn Env> = Arc::new(image.clone());
        image.crash_at(image.calls() + calls.saturating_sub(back));
        let machine = open(subject, &env).map_err(said("opening"))?;
        if taking.install(&env, &machine).is_err() {
            times += 1;
        }
        drop(machine);
        image = image.crash_keeping(Survivors::None);
    }
    let env: Arc<dyn Env> = Arc::new(image);
    let machine = open(subject, &env).map_err(said("opening"))?;
    taking.recover(&env, &machine).map_err(said("starting"))?;
    drop(machine);
    taking.compare(&env)?;
    Ok(format!("{times} installations in vain before the last"))
}

/// In how many places of each file.
const ROTTEN_PLACES: u64 = 8;

/// A byte of a file, or all of it: the state is the source's, or there is none and it is restored anew.
fn rots_before_it_is_installed<S: Subject>(subject: &S) -> Outcome {
    let master = giver(subject, "n1")?;
    let taking = Taking::from(&master);
    let (committed, env) = disk()?;
    with_old_state(subject, &env)?;
    taking.fetch(&env).map_err(said("fetching"))?;
    drop(env);
    let dir = state_dir(Path::new(DIR));
    let (mut rotten, mut noticed) = (0, 0);
    for path in files_below(&committed, &dir)? {
        let file = committed.open(&path, OpenMode::Read).map_err(said("opening a file"))?;
        let bytes = file.len().map_err(said("the length of a file"))?;
        for place in 0..=ROTTEN_PLACES {
            let disk = committed.clone_image(Survivors::All);
            match place {
                ROTTEN_PLACES => disk.remove(&path).map_err(said("removing a file"))?,
                _ if bytes == 0 => continue,
                _ => {
                    let at = bytes * place / ROTTEN_PLACES;
                    disk.corrupt(&path, at, 1 << place).map_err(said("corrupting a file"))?;
                }
            }
            let env: Arc<dyn Env> = Arc::new(disk);
            let machine = open(subject, &env).map_err(said("opening"))?;
            let restored = taking.install(&env, &machine).map_err(said("installing"))?;
            drop(machine);
            rotten += 1;
            if restored.checkpoint.is_null() {
                noticed += 1;
                taking.restore(&env)?;
            } else {
                taking.compare(&env)?;
            }
        }
    }
    Ok(format!("{noticed} of {rotten} times it was noticed, else it did not matter"))
}

fn files_below(env: &dyn Env, dir: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for name in env.list(dir).map_err(said("listing"))? {
        let path = dir.join(name);
        match env.list(&path) {
            Ok(_) => files.extend(files_below(env, &path)?),
            Err(_) => files.push(path),
        }
    }
    Ok(files)
}
