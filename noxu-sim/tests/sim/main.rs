//! Worlds over the public API of the simulator.

mod conversation;
mod embedded;
mod mutants;
mod scenarios;
mod worlds;
