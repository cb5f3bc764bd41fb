//! Install: makes what a session committed the node's log and state. Each step can be repeated.
//!
//! # Crash argument
//! 1. `COMMIT` is durable, and so is everything it speaks of; from here on the restore only goes
//!    forward.
//! 2. The log is replaced ([`noxu_log::install`]); from its first step on nobody else can open it.
//! 3. The log is opened, to see that it goes as far as was committed. Entries that rotted since are taken
//!    back from others later, as those of any log.
//! 4. The method replaces the state by what came, or the state machine forgets everything where the log
//!    begins with the first entry, and where what came is not what was committed any more: a node whose
//!    state does not reach its log asks for a restore by itself, and does not campaign. Then anybody may
//!    open the log again.
//! 5. `MARKER` is removed, durably. A crash before repeats from 2, where the files that were moved
//!    are in place; one after it finds garbage in `restore/` and removes it.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::Env;
use noxu_log::install::{Install, StagedTail, finish_install};
use noxu_log::{Log, LogConfig, LogError, LostNote};
use noxu_util::NULL_VLSN;

use super::manifest::{COMMIT, Commit, LIVE, MARKER, Manifest, Marker, STATE};
use super::session::{is_committed, is_pending};
use super::{Restored, restore_dir};
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::sync::StateMachine;
use crate::sync::method::{StateSync, SyncOrder};

/// What a restore has left in the directory of a node that starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing but rubbish, if that: [`clear_up`].
    Nothing,
    /// It was begun; the old log is as it was, and [`super::session::fetch`] resumes.
    Begun,
    /// It was committed, and is to be [installed](install) before there is a log to open.
    Committed,
}

/// What that is.
///
/// # Errors
/// `Log` if it cannot be found out.
pub fn look(env: &dyn Env, node_dir: &Path) -> Result<Left> {
    Ok(match () {
        () if is_committed(env, node_dir)? => Left::Committed,
        () if is_pending(env, node_dir)? => Left::Begun,
        () => Left::Nothing,
    })
}

/// Removes what a restore has left that has ended. Nobody else has the directory.
///
/// # Errors
/// `Log`; the state machine's.
pub fn clear_up(env: &dyn Env, node_dir: &Path, machine: &dyn StateMachine) -> Result<()> {
    let dir = restore_dir(node_dir);
    env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    machine.discard_prepared()
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// As [`Left::Nothing`].
    Nothing,
    /// As [`Left::Begun`].
    Begun,
    /// One was committed, and has been finished.
    Installed(Restored),
}

/// All that is to be done of a restore when a node starts, by one whose state machine is open before its
/// log.
///
/// # Errors
/// As [`look`], [`clear_up`] and [`install`].
pub fn recover(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    config: &LogConfig,
    methods: &[Arc<dyn StateSync>],
    machine: &dyn StateMachine,
    clock: &Clock,
) -> Result<Recovered> {
    match look(&**env, node_dir)? {
        Left::Nothing => clear_up(&**env, node_dir, machine).map(|()| Recovered::Nothing),
        Left::Begun => Ok(Recovered::Begun),
        Left::Committed => {
            install(env, node_dir, config, methods, machine, true, clock).map(Recovered::Installed)
        }
    }
}

/// Replaces log and state by what a session committed. The old log must be closed, its last handle
/// dropped. A state that is not what was committed any more is given up if that `may_clear` the state
/// machine: whoever says so once more, when the next restore ends like that, restores for ever.
///
/// # Errors
/// `Log`, with `Locked` if the old log is open; `StateMachine`; `BadConfig` if the method by which the
/// state came is not among `methods`.
pub fn install(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    config: &LogConfig,
    methods: &[Arc<dyn StateSync>],
    machine: &dyn StateMachine,
    may_clear: bool,
    clock: &Clock,
) -> Result<Restored> {
    let dir = restore_dir(node_dir);
    let missing = |name: &str| LogError::DamagedFile {
        path: dir.join(name),
        reason: "it is missing beside COMMIT".to_owned(),
    };
    let commit = Commit::load(&**env, &dir)?.ok_or_else(|| missing(COMMIT))?;
    let marker = Marker::load(&**env, &dir)?.ok_or_else(|| missing(MARKER))?;
    let manifest = Manifest::load(&**env, &dir)?.ok_or_else(|| missing("manifest"))?;
    if marker.session != commit.session {
        return Err(missing("MARKER of its session").into());
    }
    let head = &manifest.head;
    let replacement = Install {
        group: head.group.clone(),
        term: head.term,
        anchor: head.anchor.clone(),
        group_config: commit.group_config.clone(),
        segments: manifest.segments.iter().map(|segment| segment.number).collect(),
        last: commit.base,
        last_lsn: commit.base_lsn,
        tail: (commit.last.vlsn > commit.base.vlsn).then(|| StagedTail {
            dir: dir.join(LIVE),
            last: commit.last,
            last_lsn: commit.last_lsn,
        }),
        lost_name: format!("restore-{:016x}", commit.session),
        lost_note: LostNote {
            time_ms: clock.wall_clock_ms(),
            master: head.provider.as_str().to_owned(),
            master_term: head.term,
            master_vlsn: head.target,
            master_fingerprint: head.target_fingerprint,
        },
    };
    let lost = replacement.run(env, node_dir, &dir)?;

    let (log, _) = Log::open_installed(Arc::clone(env), node_dir, config.clone())?;
    let end = log.positions().chain();
    if end != commit.last {
        return Err(missing("whole log").into());
    }
    let mut checkpoint = NULL_VLSN;
    if let Some(state) = &commit.state {
        let method = methods.iter().find(|method| method.name() == state.method);
        let method = method.ok_or_else(|| RepError::BadConfig {
            field: "sync",
            found: "other methods".to_owned(),
            expected: format!("{}, by which a restore was committed", state.method),
        })?;
        let order = SyncOrder { env: Arc::clone(env), dir: dir.join(STATE) };
        match method.install(&order, &state.sealed, machine, &log) {
            Ok(()) => checkpoint = state.through,
            Err(cause) if !may_clear || cause.is_of_the_system() => return Err(cause),
            Err(cause) => {
                tracing::error!(
                    "ALARM: a committed state cannot be installed: {cause}; it is restored anew"
                );
                machine.clear()?;
            }
        }
    } else {
        machine.clear()?;
    }
    log.close()?;
    drop(log);
    finish_install(&**env, node_dir)?;
    let marker = dir.join(MARKER);
    env.remove(&marker).map_err(|e| LogError::io("remove", &marker, e))?;
    env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
    env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    Ok(Restored {
        anchor: head.anchor.vlsn,
        last: end.vlsn,
        checkpoint,
        segments: head.segments,
        lost,
    })
}
