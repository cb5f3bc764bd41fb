//! Install: makes what a session committed the node's log and state. Each step can be repeated.
//!
//! # Crash argument
//! 1. `COMMIT` is durable, and so is everything it speaks of; from here on the restore only goes
//!    forward.
//! 2. The log is replaced ([`noxu_log::install`]); from its first step on nobody else can open it.
//! 3. The state machine takes the checkpoint, or forgets everything where there is none.
//! 4. The entries after the segments are appended, those that are not there yet, and synced.
//! 5. The log may be opened by anybody again.
//! 6. `MARKER` is removed, durably. A crash before repeats from 2, where the files that were moved
//!    are in place; one after it finds garbage in `restore/` and removes it.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_log::install::{Install, finish_install};
use noxu_log::{EntryRun, Log, LogConfig, LogError, LostNote};
use noxu_util::{NULL_VLSN, Vlsn};

use super::manifest::{CHECKPOINT, COMMIT, Commit, MARKER, Manifest, Marker, TAIL};
use super::session::{is_committed, is_pending};
use super::{Restored, restore_dir};
use crate::clock::Clock;
use crate::error::{RepError, Result};
use crate::sync::{LogReader, StateMachine};

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
        group_config: head.group_config.clone(),
        segments: manifest.segments.iter().map(|segment| segment.number).collect(),
        last: commit.base,
        last_lsn: commit.base_lsn,
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

    if let Some(checkpoint) = head.checkpoint {
        let path = dir.join(CHECKPOINT);
        let file = env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        let mut source = Verified {
            file,
            at: 0,
            len: commit.checkpoint_bytes,
            hasher: blake3::Hasher::new(),
            expected: commit.checkpoint_digest,
        };
        machine.install_checkpoint(checkpoint, &mut source)?;
        // What the machine left unread is verified too.
        io::copy(&mut source, &mut io::sink()).map_err(|e| LogError::io("read", &path, e))?;
    } else {
        machine.roll_back_to(NULL_VLSN, &Empty)?;
    }

    let last = append_tail(env, node_dir, config, &commit)?;
    if last < commit.last {
        return Err(missing("whole tail").into());
    }
    finish_install(&**env, node_dir)?;
    let marker = dir.join(MARKER);
    env.remove(&marker).map_err(|e| LogError::io("remove", &marker, e))?;
    env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))?;
    env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    Ok(Restored {
        anchor: head.anchor.vlsn,
        last,
        checkpoint: head.checkpoint.unwrap_or(NULL_VLSN),
        segments: head.segments,
        lost,
    })
}

/// Appends the staged entries that the log does not hold yet; returns its last VLSN.
fn append_tail(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    config: &LogConfig,
    commit: &Commit,
) -> Result<Vlsn> {
    let (log, _) = Log::open_installed(Arc::clone(env), node_dir, config.clone())?;
    let path = restore_dir(node_dir).join(TAIL);
    let wrap = |e| LogError::io("read", &path, e);
    let file = env.open(&path, OpenMode::Read).map_err(wrap)?;
    let mut at = 0;
    let mut chain = commit.base;
    while at < commit.tail_bytes {
        let mut length = [0; 4];
        read_exact(&*file, &mut length, at).map_err(wrap)?;
        let length = u64::from(u32::from_le_bytes(length));
        if length > commit.tail_bytes - at - 4 {
            return Err(wrap(io::ErrorKind::UnexpectedEof.into()).into());
        }
        let mut bytes = vec![0; length as usize];
        read_exact(&*file, &mut bytes, at + 4).map_err(wrap)?;
        at += 4 + length;
        let bytes = Bytes::from(bytes);
        let mut run = EntryRun::verify(bytes.clone(), chain, config.max_body_bytes)
            .map_err(|e| LogError::DamagedFile { path: path.clone(), reason: e.to_string() })?;
        let after = log.positions().chain();
        chain = noxu_log::ChainState {
            vlsn: run.last,
            term: run.last_term,
            fingerprint: run.last_fingerprint,
        };
        if run.last <= after.vlsn {
            continue;
        }
        if run.first <= after.vlsn {
            let had: usize = run
                .entries()
                .take_while(|entry| entry.header.vlsn <= after.vlsn)
                .map(|entry| entry.header.entry_bytes())
                .sum();
            run = EntryRun::verify(bytes.slice(had..), after, config.max_body_bytes)
                .map_err(|e| LogError::DamagedFile { path: path.clone(), reason: e.to_string() })?;
        }
        log.append_run(&run)?;
    }
    log.sync_now()?;
    let last = log.positions().last;
    log.close()?;
    Ok(last)
}

fn read_exact(file: &dyn EnvFile, to: &mut [u8], at: u64) -> io::Result<()> {
    if file.read_at(to, at)? == to.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
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

/// A log without entries, for a state machine that begins anew.
struct Empty;

impl LogReader for Empty {
    fn read(&self, _from: Vlsn, _max_bytes: usize) -> Result<Option<EntryRun>, RepError> {
        Ok(None)
    }
}
