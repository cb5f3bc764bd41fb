//! Streams: one conversation with one peer over a blocking channel.

pub mod feeder;
mod frames;
pub mod log_view;
pub mod replica;
pub mod syncup;
pub mod syncup_protocol;
