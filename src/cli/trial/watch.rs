//! Watch: how far the restore of a node is, asked over and over.

use std::time::{Duration, Instant};

use crate::cli::demo::process::NodeProcess;
use crate::cli::error::CliError;
use crate::cli::info::Info;
use crate::cli::progress::byte_bar;

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// How long nothing may move before it counts as failed.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = 256 << 10;

/// How far a restore is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Far {
    /// Blocks that are there.
    pub(super) done: u64,
    /// Of how many.
    pub(super) total: u64,
    /// Of these, those that an earlier session had fetched.
    pub(super) reused: u64,
    /// Bytes of the checkpoint that are there.
    pub(super) checkpoint: u64,
    /// Of these, those that an earlier session had fetched.
    pub(super) checkpoint_reused: u64,
}

impl Far {
    /// From what a node says, if it is at it or was.
    pub(super) fn of(info: &Info) -> Option<Self> {
        let (done, total) = info.text("restore_blocks")?.split_once(" of ")?;
        let number = |key| info.number(key).unwrap_or(0).max(0) as u64;
        Some(Self {
            done: done.parse().ok()?,
            total: total.parse().ok()?,
            reused: number("restore_blocks_reused"),
            checkpoint: number("restore_checkpoint_bytes"),
            checkpoint_reused: number("restore_checkpoint_reused"),
        })
    }
}

/// Whether nothing is left to be done of a restore that was ordered, perhaps of a process that was killed
/// since, and the node follows.
pub(super) fn is_over(info: &Info) -> bool {
    info.text("restore_pending") == Some("no") && info.text("noxu_role") == Some("replica")
}

/// Asks `node` until its restore is over or `enough` says so; `None` then. `look` is called before each
/// question.
pub(super) fn watch(
    node: &NodeProcess,
    mut look: impl FnMut() -> Result<(), CliError>,
    enough: impl Fn(&Info) -> bool,
) -> Result<Option<Info>, CliError> {
    let mut client = node.client()?;
    let bar = byte_bar(&format!("{}: restoring", node.name), 0);
    let (mut last, mut moved) = (None, Instant::now());
    loop {
        look()?;
        let info = Info::ask(&mut client).map_err(|cause| node.silent(&cause))?;
        if is_over(&info) {
            bar.finish_and_clear();
            return Ok(Some(info));
        }
        if enough(&info) {
            bar.finish_and_clear();
            return Ok(None);
        }
        let far = (Far::of(&info), info.text("noxu_role").map(str::to_owned));
        if last.as_ref() != Some(&far) {
            if let Some(far) = far.0 {
                bar.set_length(far.total * BLOCK_BYTES + far.checkpoint);
                bar.set_position(far.done * BLOCK_BYTES + far.checkpoint);
            }
            (last, moved) = (Some(far), Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            let said = info.text("last_error").or(info.text("reason")).unwrap_or_default();
            return Err(CliError::Differs(format!(
                "{}: its restore has not moved for {PATIENCE:?}; it says: {said}",
                node.name
            )));
        }
        // A question to another process: nothing to wait for but time.
        std::thread::park_timeout(PAUSE);
    }
}
