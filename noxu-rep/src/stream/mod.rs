//! Streams: one conversation with one peer over a blocking channel.

pub mod syncup;
pub mod syncup_protocol;
