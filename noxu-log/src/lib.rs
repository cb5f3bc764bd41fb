//! The replicated log of Noxu: entries, segments, group commit, recovery, and what a node keeps
//! beside them (control file, tail mark, lost entries).
//!
//! A [`Log`] is a dense sequence of entries, byte for byte the same on every node of a group. It
//! knows nothing of peers, quorums or transactions: whoever owns it tells it what is settled and
//! what to cut.

mod block_repair;
mod control_file;
mod entry;
pub mod env;
mod error;
mod flusher;
mod full_disk;
mod group_commit;
mod index;
pub mod inspect;
pub mod install;
mod keeper;
mod log;
mod lost_entries;
mod marker;
mod mutant;
mod pins;
mod prefill;
mod read;
mod reader;
mod recovery;
mod reindex;
mod repair;
mod retention;
mod scrub;
mod sealing;
pub mod segment;
mod tail;
mod tail_mark;
mod truncate;
mod waiters;

pub use control_file::{
    Anchor, ControlFile, ControlState, GroupIdentity, MAX_GROUP_CONFIG_BYTES, MAX_LOST_NAME_BYTES,
    TruncateIntent,
};
pub use entry::{
    ChainState, ENTRY_HEADER_BYTES, Entry, EntryError, EntryFault, EntryFlags, EntryHeader,
    EntryKind, EntryRun, NewEntry,
};
pub use error::{LogError, Result};
pub use index::IndexMemory;
pub use log::{Appended, DEFAULT_SEGMENT_BYTES, Log, LogConfig, Positions, SEGMENT_BYTES_RANGE};
pub use lost_entries::{
    LOST_SUFFIX, LostEntries, LostHeader, LostNote, lost_path, moved_segment_path,
};
pub use marker::{MarkPolicy, MarkStatus, SyncLatencies};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use pins::{Budget, Holder, HolderKind, Lost, Pin};
pub use reader::{Moment, Reader, Until};
pub use recovery::OpenReport;
pub use repair::Faulty;
pub use retention::{HeldBy, HolderReport, Retention, RetentionConfig, WallClock};
pub use scrub::{DamagedBlock, ScrubConfig, ScrubProgress, ScrubReport};
pub use sealing::SealedSegment;
pub use tail_mark::{Mark, MarkRead, TailMark};
pub use truncate::{Cut, Truncated};
