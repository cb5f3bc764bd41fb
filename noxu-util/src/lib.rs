//! What every Noxu crate shares: positions (VLSN, LSN, term), fingerprints, identities, the
//! bounds-checked codec, a histogram of latencies and the switch of deliberate bugs. Pure values; no
//! input or output, no threads.

pub mod checksum;
pub mod codec;
mod fingerprint;
mod identity;
mod latency;
mod lsn;
mod mutant;
mod term;
mod vlsn;

pub use fingerprint::{CHAIN_INPUT_BYTES, Fingerprint};
pub use identity::{BadName, GroupId, Incarnation, MAX_NAME_BYTES, Name};
pub use latency::{Latencies, LatencyHistogram};
pub use lsn::{Lsn, NULL_LSN};
pub use term::Term;
pub use vlsn::{MAX_VLSN, NULL_VLSN, Vlsn};
