//! Segments: the files of the log, one part of the format a file.

pub(crate) mod cache;
pub mod digest;
pub mod header;
pub mod name;
pub(crate) mod scan;
pub mod side_file;

pub use header::{HeaderFault, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader};
