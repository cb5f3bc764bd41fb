//! The replicated log of Noxu: entries, segments, group commit, recovery, and what a node keeps
//! beside them (control file, tail mark).

mod control_file;
pub mod env;
mod error;
mod tail_mark;

pub use control_file::{
    Anchor, ControlFile, ControlState, GroupIdentity, MAX_GROUP_CONFIG_BYTES, MAX_LOST_NAME_BYTES,
    TruncateIntent,
};
pub use error::{LogError, Result};
pub use tail_mark::{Mark, MarkRead, TailMark};
