//! Replication for embedded key-value stores: channels and handshakes, syncup, feeder and replica
//! streams, durability, network restore.
//!
//! The room plan: `net` moves frames, `wire` gives them a form, `core` decides (no sockets, files,
//! threads or clocks in it), `stream` runs one conversation over a blocking channel, `restore`
//! replaces a log that can no longer be caught up.

pub mod clock;
pub mod config;
pub mod conformance;
pub mod core;
#[cfg(test)]
mod damaged_log;
pub mod driver;
pub mod error;
pub mod group;
pub mod mutant;
pub mod net;
#[cfg(test)]
mod no_state;
pub mod node;
pub mod outcome;
pub mod restore;
pub mod status;
pub mod stream;
pub mod sync;
pub mod wire;

pub use config::{DamageListener, GroupChoice, NodeConfig, RollbackHook, StateListener};
pub use core::damage::{DamageEvent, DamageReport, Damaged, OpenDamage, Unmended};
pub use core::durability::{AckPolicy, Durability, SyncPolicy};
pub use core::feeder::{Lag, StreamTiming};
pub use core::node::ElectionTiming;
pub use driver::master::{Admission, MasterLimits, Submitted};
pub use driver::opening::NodeContext;
pub use error::{RepError, Result};
pub use node::Node;
pub use outcome::{CommitId, CommitOutcome, Undecided};
pub use status::{
    ReplicaStatus, Role, RollbackReport, ScrubSummary, StateChange, Status, SyncupReport,
};
pub use sync::{Checkpoint, LogReader, MemoryCheckpoint, StateMachine};
pub use wire::handshake::NodeKind;
