//! Replication over its public API: real nodes over TCP, streams over channels. One module an
//! area; `support` has nodes on real disks, `rig` a group behind doors on disks that can crash.

mod broken_wires;
mod damaged;
mod damaged_disks;
mod door;
mod durability_policies;
mod elections;
mod full_disk;
mod restore_nodes;
mod restore_room;
mod retention_nodes;
mod rig;
mod rollback_and_rejoin;
mod rollback_in_place;
mod secondaries;
mod state_map;
mod strangers;
mod streams_channel;
mod streams_nodes;
mod stuck_disk;
mod support;
mod waiting_for_what;
