//! Replication over its public API: real nodes over TCP, streams over channels.

mod durability_policies;
mod rollback_in_place;
mod streams_channel;
mod streams_nodes;
mod support;
