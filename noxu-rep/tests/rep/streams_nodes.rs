//! streams_nodes
