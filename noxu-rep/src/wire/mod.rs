//! Wire: the bytes that nodes exchange: encoding, decoding, and the handshake that opens a
//! conversation.
//!
//! Decoders never panic and never take memory by a length they have not checked.
//! See docs/protocol.md.

pub mod election;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod probe;
pub mod recovery;
pub mod restore;
pub mod syncup;
