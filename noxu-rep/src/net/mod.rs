//! Frames between nodes: the channel trait, its transports, and one port for many services.

pub mod channel;
pub mod dispatcher;
pub mod tcp;
