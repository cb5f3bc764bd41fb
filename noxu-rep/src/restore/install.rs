//! Install: makes what a session committed the node's log and state. Each step can be repeated.
//!
//! # Crash argument
//! 1. `COMMIT` is durable, and so is everything it speaks of; from here on the restore only goes
//!    forward.
//! 2. The log is replaced ([`noxu_log::install`]); from its first step on nobody else can open it.
//! 3. The log is opened, as far as it is committed, to see that it is whole.
//! 4. The method replaces the state by what came, or the state machine forgets everything where the log
//!    begins with the first entry; then anybody may open the log again.
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

/// What a node finds of a restore when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing, or what a finished one left, which is gone now.
    Nothing,
    /// One was begun; the old log is as it was, and [`super::session::fetch`] resumes.
    Begun,
    /// One was committed, and has been finished.
    Installed(Restored),
}

/// To be called when a node starts, before its log is opened.
///
/// # Errors
/// As [`install`].
pub fn recover(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    config: &LogConfig,
    methods: &[Arc<dyn StateSync>],
    machine: &dyn StateMachine,
    clock: &Clock,
) -> Result<Recovered> {
    if is_committed(&**env, node_dir)? {
        let restored = install(env, node_dir, config, methods, machine, clock)?;
        return Ok(Recovered::Installed(restored));
    }
    if is_pending(&**env, node_dir)? {
        return Ok(Recovered::Begun);
    }
    let dir = restore_dir(node_dir);
    if env.exists(&dir).map_err(|e| LogError::io("look for", &dir, e))? {
        env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    }
    machine.discard_prepared()?;
    Ok(Recovered::Nothing)
}

/// Replaces log and state by what a session committed. The old log must be closed, its last handle
/// dropped.
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
    if end != commit.last || !log.faulty().is_empty() {
        return Err(missing("whole log").into());
    }
    if let Some(state) = &commit.state {
        let method = methods.iter().find(|method| method.name() == state.method);
        let method = method.ok_or_else(|| RepError::BadConfig {
            field: "sync",
            found: "other methods".to_owned(),
            expected: format!("{}, by which a restore was committed", state.method),
        })?;
        let order = SyncOrder { env: Arc::clone(env), dir: dir.join(STATE) };
        method.install(&order, &state.sealed, machine, &log)?;
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
        checkpoint: commit.state.map_or(NULL_VLSN, |state| state.through),
        segments: head.segments,
        lost,
    })
}
