//! streams_channel
