//! The replicated log of Noxu: entries, segments, group commit, recovery, and what a node keeps
//! beside them (control file, tail mark).

pub mod env;
mod error;

pub use error::{LogError, Result};
