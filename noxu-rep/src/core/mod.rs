//! Core: everything that decides, as deterministic state machines. Messages and completions in,
//! messages and outcomes out; time is an argument. No sockets, files, threads or clocks.
//!
//! A core panics only on a bug of its driver or its own: an event in a state that cannot have it, or
//! a broken invariant of its header.

#![allow(clippy::missing_panics_doc)] // said once, above

pub mod block_plan;
pub mod commits;
pub mod damage;
pub mod durability;
pub mod election;
pub mod feeder;
pub mod node;
pub mod quorum;
pub mod quorums;
pub mod recovery;
pub mod repair;
pub mod replica;
pub mod rollback;
pub mod search;
pub mod syncup;
