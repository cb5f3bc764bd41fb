//! Install: makes what a session committed the node's log and state. Each step can be repeated.
//!
//! # Crash argument
//! 1. `COMMIT` is durable, and so is everything it speaks of; from here on the restore only goes
//!    forward.
//! 2. The log is replaced ([`noxu_log::install`]); from its first step on nobody else can open it.
//! 3. The state machine takes the checkpoint, or forgets everything where there is none.
//! 4. The log is opened, as far as it is committed, to see that it is whole; then anybody may open it
//!    again.
//! 5. `MARKER` is removed, durably. A crash before repeats from 2, where the files that were moved
//!    are in place; one after it finds garbage in `restore/` and removes it.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_log::install::{Install, StagedTail, finish_install};
use noxu_log::{Log, LogConfig, LogError, LostNote};
use noxu_util::NULL_VLSN;

use super::manifest::{CHECKPOINT, COMMIT, Commit, LIVE, MARKER, Manifest, Marker};
use super::session::{is_committed, is_pending};
use super::{Restored, restore_dir};
use crate::clock::Clock;
use crate::error::Result;
use crate::sync::StateMachine;

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
    machine: &dyn StateMachine,
    clock: &Clock,
) -> Result<Recovered> {
    if is_committed(&**env, node_dir)? {
        return install(env, node_dir, config, machine, clock).map(Recovered::Installed);
    }
    if is_pending(&**env, node_dir)? {
        return Ok(Recovered::Begun);
    }
    let dir = restore_dir(node_dir);
    if env.exists(&dir).map_err(|e| LogError::io("look for", &dir, e))? {
        env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    }
    Ok(Recovered::Nothing)
}

/// Replaces log and state by what a session committed. The old log must be closed, its last handle
/// dropped.
///
/// # Errors
/// `Log`, with `Locked` if the old log is open; `StateMachine`.
pub fn install(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    config: &LogConfig,
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

    if let Some(checkpoint) = commit.checkpoint {
        let path = dir.join(CHECKPOINT);
        let file = env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        let mut source = Verified {
            file,
            at: 0,
            len: checkpoint.bytes,
            hasher: blake3::Hasher::new(),
            expected: checkpoint.digest,
        };
        machine.install_checkpoint(checkpoint.vlsn, &mut source)?;
        // What the machine left unread is verified too.
        io::copy(&mut source, &mut io::sink()).map_err(|e| LogError::io("read", &path, e))?;
    } else {
        machine.clear()?;
    }

    let (log, _) = Log::open_installed(Arc::clone(env), node_dir, config.clone())?;
    let end = log.positions().chain();
    if end != commit.last || !log.faulty().is_empty() {
        return Err(missing("whole log").into());
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
        checkpoint: commit.checkpoint.map_or(NULL_VLSN, |checkpoint| checkpoint.vlsn),
        segments: head.segments,
        lost,
    })
}

/// Reads a file and fails at its end if its digest is not the expected one.
struct Verified {
    file: Arc<dyn EnvFile>,
    at: u64,
    len: u64,
    hasher: blake3::Hasher,
    expected: [u8; 32],
}

impl Read for Verified {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.len - self.at).min(buf.len() as u64) as usize;
        if wanted == 0 {
            if self.at == self.len && self.hasher.finalize() != self.expected && !buf.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checkpoint's bytes have another digest than those that came",
                ));
            }
            return Ok(0);
        }
        let read = self.file.read_at(&mut buf[..wanted], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buf[..read]);
        self.at += read as u64;
        Ok(read)
    }
}
