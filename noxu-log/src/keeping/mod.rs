//! Keeping: what happens to finished segments. They are sealed, read again in search of rot, mended
//! from a copy, and dropped once nothing holds them.

pub(crate) mod block_repair;
pub(crate) mod keeper;
pub(crate) mod pins;
pub(crate) mod retention;
pub(crate) mod scrub;
pub(crate) mod sealing;
pub(crate) mod segment_copy;
