//! Drivers: the threads of a node. They read, write, block and hold the locks; what is decided is
//! decided in `core`.

pub mod applier;
pub(crate) mod checkpointer;
pub mod disk_mending;
pub mod feeding;
pub(crate) mod follower;
pub mod following;
mod heard;
pub mod housekeeper;
pub mod life;
pub(crate) mod links;
pub mod master;
pub mod mending;
pub mod opening;
pub(crate) mod recovering;
pub(crate) mod running;
pub(crate) mod seat;
pub(crate) mod services;
pub(crate) mod verdict;
