//! The replicated log of Noxu: entries, segments, group commit, recovery, and what a node keeps
//! beside them (control file, tail mark, lost entries).
//!
//! A [`Log`] is a dense sequence of entries, byte for byte the same on every node of a group. It
//! knows nothing of peers, quorums or transactions: whoever owns it tells it what is settled and
//! what to cut.

mod control_file;
mod entry;
pub mod env;
mod error;
pub mod inspect;
mod keeping;
mod log;
mod mutant;
mod reading;
mod recovery;
mod rewriting;
pub mod segment;
mod upkeep;
mod writing;

pub use control_file::{
    Anchor, Ballot, ControlFile, ControlState, GroupIdentity, MAX_GROUP_CONFIG_BYTES,
    MAX_LOST_NAME_BYTES, TruncateIntent,
};
pub use entry::{
    ChainState, ENTRY_HEADER_BYTES, Entry, EntryError, EntryFault, EntryFlags, EntryHeader,
    EntryKind, EntryRun, NewEntry,
};
pub use error::{LogError, Result};
pub use keeping::pins::{Budget, Holder, HolderKind, Lost, Pin};
pub use keeping::retention::{HeldBy, HolderReport, Retention, RetentionConfig, WallClock};
pub use keeping::scrub::{DamagedBlock, ScrubConfig, ScrubProgress, ScrubReport};
pub use keeping::sealing::SealedSegment;
pub use keeping::segment_copy::SegmentCopy;
pub use log::{Appended, DEFAULT_SEGMENT_BYTES, Log, LogConfig, Positions, SEGMENT_BYTES_RANGE};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use reading::index::IndexMemory;
pub use reading::reader::{Moment, Reader, Until};
pub use recovery::OpenReport;
pub use rewriting::install;
pub use rewriting::lost_entries::{
    LOST_SUFFIX, LostEntries, LostHeader, LostNote, lost_path, moved_segment_path,
};
pub use rewriting::repair::Faulty;
pub use rewriting::truncate::{Cut, Truncated};
pub use upkeep::{Background, Pending};
pub use writing::marker::{MarkPolicy, MarkStatus, SyncLatencies};
pub use writing::tail_mark::{Mark, MarkRead, TailMark};
