//! Request: a restore that an operator asks for, of a node whose log and state are whole.
//!
//! # Crash argument
//! 1. Whatever lies in `restore/` without a `MARKER` is garbage of a restore that has ended; it is
//!    removed, and an empty directory is made in its place, durably. A crash up to here leaves no
//!    restore, and the log and state as they were.
//! 2. `MARKER` is written, whole or not at all, and durable before anybody is told that the restore
//!    was asked for. From here on every conversation with a master ends in a restore, in this life or
//!    after a crash: the facts that the node tells name the marker.
//!
//! Nothing outside `restore/` is touched: until the restore commits, the node votes with its old log.
//!
//! # Not here: that nobody else writes to `restore/` meanwhile (driver/life.rs).

use std::path::Path;

use noxu_log::LogError;
use noxu_log::env::Env;

use super::manifest::Marker;
use super::restore_dir;
use crate::core::recovery::RecoveryId;
use crate::error::Result;

/// Makes durable that the node in `node_dir` is to be restored. False if that was so before.
///
/// # Errors
/// `Log` for the disk, and for a marker that is damaged.
pub(crate) fn request(env: &dyn Env, node_dir: &Path) -> Result<bool> {
    let dir = restore_dir(node_dir);
    if Marker::load(env, &dir)?.is_some() {
        return Ok(false);
    }
    env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
    env.create_dir_all(&dir).map_err(|e| LogError::io("create directory", &dir, e))?;
    env.sync_dir(node_dir).map_err(|e| LogError::io("sync directory", node_dir, e))?;
    // No master's verdict has this number.
    Marker { session: env.entropy(), recovery: RecoveryId(0) }.save(env, &dir)?;
    Ok(true)
}
