//! I15: memory, disk and queues stay within their bounds.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Bounds;

impl Invariant for Bounds {
    fn number(&self) -> &'static str {
        "I15"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Sized { host, what, found, bound } if found > bound => {
                Err(format!("{what} of {host}: {found}, and {bound} is the bound"))
            }
            _ => Ok(()),
        }
    }
}
