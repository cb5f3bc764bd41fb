//! I12: every fingerprint of every log is the one that its entries give.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Fingerprints;

impl Invariant for Fingerprints {
    fn number(&self) -> &'static str {
        "I12"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Verified { host, wrong: Some(wrong) } => Err(format!("log of {host}: {wrong}")),
            _ => Ok(()),
        }
    }
}
