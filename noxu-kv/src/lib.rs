//! The key-value store that Noxu ships with: transactions and reads at a VLSN over a replicated log.

#![allow(dead_code)] // the store, which uses it all, comes with the node

mod apply;
mod checkpoint;
mod conflicts;
mod encode;
mod error;
mod snapshot;
mod table;
mod txn;
mod value;

pub use encode::KIND_WRITES;
pub use error::{KvError, Result};
pub use snapshot::{Range, Snapshot};
pub use table::memory::MemoryImage;
pub use value::{Key, Value};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 60_000;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;
