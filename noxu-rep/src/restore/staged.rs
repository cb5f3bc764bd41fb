//! Staged: the log of entries that come after the segments of a restore while those are fetched. It
//! begins where the last of them ends, at the beginning of a segment, so that its files are those that
//! the restored log continues with.
//!
//! # Invariants
//! - What is acknowledged of it is synced.
//! - It is a log of its own, in `restore/live/`: nothing that uses the node's log knows of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::Env;
use noxu_log::install::begin_behind;
use noxu_log::{
    Anchor, ChainState, Cut, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, LogError,
};
use noxu_util::{Fingerprint, Lsn, Vlsn};

use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};

/// An open staged log.
pub(super) struct Staged {
    log: Log,
    env: Arc<dyn Env>,
    dir: PathBuf,
}

impl Staged {
    /// Of `group`, behind `anchor`; nothing is there yet.
    pub(super) fn begin(
        env: &Arc<dyn Env>,
        dir: &Path,
        config: &LogConfig,
        group: &GroupIdentity,
        anchor: &Anchor,
    ) -> Result<Self> {
        begin_behind(env, dir, group, anchor)?;
        let (log, _) = Log::open(Arc::clone(env), dir, config.clone())?;
        Ok(Self { log, env: Arc::clone(env), dir: dir.to_owned() })
    }

    /// What an earlier session left, if it is of `group` and whole; else it is removed.
    pub(super) fn resume(
        env: &Arc<dyn Env>,
        dir: &Path,
        config: &LogConfig,
        group: &GroupIdentity,
    ) -> Result<Option<Self>> {
        if !env.exists(dir).map_err(|e| LogError::io("look for", dir, e))? {
            return Ok(None);
        }
        match Log::open(Arc::clone(env), dir, config.clone()) {
            Ok((log, _)) => {
                let staged = Self { log, env: Arc::clone(env), dir: dir.to_owned() };
                if staged.log.group().as_ref() == Some(group) && staged.log.faulty().is_empty() {
                    return Ok(Some(staged));
                }
                staged.discard()?;
            }
            Err(cause @ (LogError::Io { .. } | LogError::Locked { .. })) => {
                return Err(cause.into());
            }
            // All of it can be had again.
            Err(_) => remove(&**env, dir)?,
        }
        Ok(None)
    }

    /// The position before its first entry.
    pub(super) fn anchor(&self) -> Anchor {
        self.log.positions().anchor
    }

    /// Its last entry, or the anchor.
    pub(super) fn end(&self) -> ChainState {
        self.log.positions().chain()
    }

    /// Its end, and where that stands.
    pub(super) fn position(&self) -> (ChainState, Lsn) {
        let positions = self.log.positions();
        (positions.chain(), positions.last_lsn)
    }

    /// The fingerprint of an entry of it, or of its anchor.
    pub(super) fn fingerprint(&self, vlsn: Vlsn) -> Result<Option<Fingerprint>> {
        let anchor = self.log.positions().anchor;
        if vlsn == anchor.vlsn {
            return Ok(Some(anchor.fingerprint));
        }
        Ok(self.log.header(vlsn)?.map(|(header, _)| header.fingerprint))
    }

    /// Discards what is behind `vlsn`.
    pub(super) fn cut_after(&self, vlsn: Vlsn) -> Result<()> {
        if vlsn < self.log.positions().last {
            self.log.truncate_after(vlsn, Cut::Discard)?;
        }
        Ok(())
    }

    /// Appends what `peer` sent, and syncs it.
    pub(super) fn append(&self, bytes: Vec<u8>, peer: &str) -> Result<EntryRun> {
        let max_body_bytes = self.log.config().max_body_bytes;
        let run = EntryRun::verify(Bytes::from(bytes), self.end(), max_body_bytes)
            .map_err(|fault| RepError::BadEntry { peer: peer.to_owned(), fault })?;
        self.log.append_run(&run)?;
        if !mutant::is_on(Mutant::RestoreLetsGoUnsynced) {
            self.log.sync_now()?;
        }
        Ok(run)
    }

    /// Nothing before it is needed of any other log: a replica that ends here finds its matchpoint
    /// there.
    pub(super) fn needed(&self) -> Vlsn {
        let positions = self.log.positions();
        let lets_go = mutant::is_on(Mutant::RestoreLetsGoUnsynced);
        let durable = if lets_go { positions.last } else { positions.durable };
        let after = durable.max(positions.anchor.vlsn).next();
        let sync = positions.last_sync;
        if sync.is_null() { positions.anchor.vlsn.next().min(after) } else { sync.min(after) }
    }

    /// The newest configuration of the group in it behind `vlsn`.
    pub(super) fn newest_config(&self, vlsn: Vlsn) -> Result<Option<Bytes>> {
        let mut from = vlsn.max(self.log.positions().anchor.vlsn).next();
        let mut newest = None;
        while let Some(run) = self.log.read(from, 1 << 20)? {
            for entry in run.entries() {
                if entry.header.kind == EntryKind::GROUP {
                    newest = Some(Bytes::copy_from_slice(entry.body));
                }
            }
            from = run.last.next();
        }
        Ok(newest)
    }

    /// Closes it; durable on return.
    pub(super) fn close(self) -> Result<()> {
        Ok(self.log.close()?)
    }

    /// Removes it with all that is in it.
    pub(super) fn discard(self) -> Result<()> {
        let Self { log, env, dir } = self;
        let _ = log.close(); // whatever it cannot write is not wanted
        drop(log);
        remove(&*env, &dir)
    }
}

fn remove(env: &dyn Env, dir: &Path) -> Result<()> {
    env.remove_dir_all(dir).map_err(|e| LogError::io("remove", dir, e).into())
}
