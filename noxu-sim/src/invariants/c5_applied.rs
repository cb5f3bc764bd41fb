//! C5: who is no master applies only what is durable on a quorum.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Applied;

impl Invariant for Applied {
    fn number(&self) -> &'static str {
        "C5"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        let Record::Applied { host, vlsn } = record else { return Ok(()) };
        let held = ledger.log(*host).and_then(|log| log.at(*vlsn));
        // What it wrote itself as a master it may have applied earlier than that.
        if held.is_some_and(|held| ledger.master(held.term) == Some(*host)) {
            return Ok(());
        }
        match (held, ledger.durable(*vlsn)) {
            (_, None) => Err(format!("{host} applies {vlsn}, which is not durable")),
            (Some(held), Some(durable)) if held != durable => {
                Err(format!("{host} applies {held:?} at {vlsn}, where {durable:?} is durable"))
            }
            (Some(_) | None, Some(_)) => Ok(()),
        }
    }
}
