//! I3: what was durable on a quorum once stays what it is.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct DurablePrefix;

impl Invariant for DurablePrefix {
    fn number(&self) -> &'static str {
        "I3"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        let Record::Dtvlsn { host, term, vlsn } = record else { return Ok(()) };
        let Some(log) = ledger.log(*host) else {
            return Err(format!("{host} calls {vlsn} durable and has no log"));
        };
        if *vlsn > log.last() {
            return Err(format!("{host} calls {vlsn} durable and holds {}", log.last()));
        }
        // A fingerprint stands for everything below it: the highest that both know tells all.
        let both = (*vlsn).min(ledger.last_durable());
        match (ledger.durable(both), log.at(both)) {
            (Some(durable), Some(held)) if durable != held => Err(format!(
                "{host}, master of term {term}, calls {held:?} durable at {both}, where {durable:?} is"
            )),
            _ => Ok(()),
        }
    }
}
