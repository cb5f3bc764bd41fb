//! Drivers: the threads of a node. They read, write, block and hold the locks; what is decided is
//! decided in `core`.

pub mod applier;
pub(crate) mod checkpointer;
pub mod housekeeper;
pub mod master;
pub mod mending;
pub(crate) mod replica_loop;
pub(crate) mod seat;
pub(crate) mod services;
