//! Whole groups in one process, driven from one seed: the real cores, logs and streams over
//! simulated time, network and disks.
//!
//! The room plan: `event` and `stage` make time pass, `network` and `channel` carry what nodes say,
//! `hold` keeps it back, `baton` runs the conversations that block, `clock` tells each node a time of
//! its own, `trace` and `coverage` say afterwards what happened. `embed` is the way in for an engine of
//! one's own, `kv` the one that the repository has.
//!
//! Nothing here looks at a real clock, a real network or a real disk, and only one thread runs at
//! any time: the same seed gives the same run, to the byte ([`trace::Trace::hash`]).

pub mod atlas;
pub mod baton;
pub mod channel;
pub mod clock;
pub mod coverage;
pub mod dice;
pub mod disk;
pub mod embed;
pub mod event;
pub mod excuse;
mod follower;
pub mod hold;
pub mod invariants;
pub mod kv;
pub mod ledger;
pub mod mutants;
pub mod network;
mod node;
mod observer;
pub mod oracle;
mod outside;
pub mod plan;
pub mod schedule;
pub mod script;
pub mod shrink;
pub mod stage;
pub mod trace;
mod workload;
pub mod world;
