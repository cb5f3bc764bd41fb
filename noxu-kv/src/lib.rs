//! The key-value store that Noxu ships with: transactions and reads at a VLSN over a replicated log.

mod apply;
mod checkpoint;
mod conflicts;
mod encode;
mod error;
mod snapshot;
mod state_machine;
mod store;
mod table;
mod token;
mod txn;
mod value;

pub use encode::{KIND_WRITES, kind_name};
pub use error::{KvError, Result};
pub use snapshot::{Range, Snapshot};
pub use store::{Batch, Config, PendingCommit, StateKind, Store, StoreStatus, Txn};
pub use table::memory::MemoryImage;
pub use token::{CommitToken, Consistency};
pub use value::{Key, Value};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 60_000;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;
