//! S1: a node stops by itself only if a sync of its disk has failed, or if a rollback met rot, which the next
//! start finishes: not for a full disk, nor for what can be had from others, nor for anything that others say.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Stops;

impl Invariant for Stops {
    fn number(&self) -> &'static str {
        "S1"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Stopped { host, cause, disk_failed: false } => {
                Err(format!("{host} stopped by itself: {cause}"))
            }
            _ => Ok(()),
        }
    }
}
