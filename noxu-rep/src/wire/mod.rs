//! Wire: the bytes that nodes exchange. Pure encoding and decoding.
//!
//! Decoders never panic and never take memory by a length they have not checked.
//! See docs/protocol.md.

pub mod message;
pub mod syncup;
