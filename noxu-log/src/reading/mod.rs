//! Reading: runs of entries, single headers, and those who follow the log's end.

pub(crate) mod index;
pub(crate) mod read;
pub(crate) mod reader;
