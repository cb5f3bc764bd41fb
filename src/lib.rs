//! The `noxu` program: a node process with a client door, the tools around it, and the demo.
//!
//! - [`cli`]: the commands, one file each.

pub mod cli;
