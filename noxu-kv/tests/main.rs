//! The store over real nodes, in one process: alone, and as a group over TCP.

mod alone;
mod group;
