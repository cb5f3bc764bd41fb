//! The key-value store that Noxu ships with: transactions and reads at a VLSN over a replicated log.
//!
//! [`Store`] is what a program uses. [`Engine`] is the store without its node, for a caller that
//! replicates by other means: a simulator, a test.

mod apply;
mod batch;
mod checkpoint;
mod conflicts;
mod encode;
mod engine;
mod error;
mod ranges;
mod snapshot;
mod state_machine;
mod store;
mod table;
mod token;
mod txn;
mod value;

pub use apply::Stability;
pub use batch::Batch;
pub use encode::{KIND_WRITES, kind_name};
pub use engine::{Bodies, Engine, EngineConfig, Prepared, Work};
pub use error::{KvError, Result};
pub use snapshot::{Range, Snapshot};
pub use store::{Config, PendingCommit, StateKind, Store, StoreStatus, Txn};
pub use table::memory::MemoryImage;
pub use token::{CommitToken, Consistency};
pub use value::{Key, Value};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 60_000;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;
