//! The `noxu` program: a node process with a client door, the tools around it, and the demo.
//!
//! - [`cli`]: the commands, one file each.
//! - [`door`]: how clients of a node talk to it (RESP2, the Redis protocol).
//! - [`client`]: the other end of that door.
//! - [`workload`]: what the benches measure.

pub mod cli;
pub mod client;
pub mod door;
pub mod workload;

/// The examples of README.md, so that they keep compiling and doing what they say.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExamples;
