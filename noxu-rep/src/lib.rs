//! Replication for embedded key-value stores: channels and handshakes, syncup, feeder and replica
//! streams, durability, network restore.
//!
//! The room plan: `net` moves frames, `wire` gives them a form, `core` decides (no sockets, files,
//! threads or clocks in it), `stream` runs one conversation over a blocking channel, `restore`
//! replaces a log that can no longer be caught up.

pub mod core;
pub mod error;
pub mod net;
pub mod stream;
pub mod wire;

pub use error::{RepError, Result};
