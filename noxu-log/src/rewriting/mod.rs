//! Rewriting: the only places that change what the log holds, and what they keep of it: cutting the
//! end, replacing all of it, finding out which entries are damaged, putting them back.

pub(crate) mod examine;
pub mod install;
pub(crate) mod lost_entries;
pub(crate) mod reindex;
pub(crate) mod repair;
pub(crate) mod truncate;
