//! I4: a master's log holds every entry that was durable on a quorum before its term began.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct MasterComplete;

impl Invariant for MasterComplete {
    fn number(&self) -> &'static str {
        "I4"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        let Record::Established { host, term, first, .. } = record else { return Ok(()) };
        let last = ledger.last_durable();
        let Some(durable) = ledger.durable(last) else { return Ok(()) };
        if *first <= last {
            return Err(format!("term {term} begins at {first} on {host}, and {last} is durable"));
        }
        match ledger.log(*host).and_then(|log| log.at(last)) {
            Some(held) if held == durable => Ok(()),
            Some(held) => Err(format!(
                "{host}, master of term {term}, holds {held:?} at {last}, where {durable:?} is durable"
            )),
            // Dropped from its front: then it held it.
            None if ledger.log(*host).is_some_and(|log| log.last() >= last) => Ok(()),
            None => Err(format!("{host}, master of term {term}, lacks {last}, which is durable")),
        }
    }
}
