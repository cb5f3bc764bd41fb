//! I8: an acknowledgement is true when it is sent: synced, and the same as on the master.
//!
//! One that is sent to a master which was deposed meanwhile, and has rolled back and gone on in a newer
//! term, counts nowhere: it is compared as far as that log still is the one of its term.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct TruthfulAcks;

impl Invariant for TruthfulAcks {
    fn number(&self) -> &'static str {
        "I8"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        let Record::Acked { host, term, durable } = record else { return Ok(()) };
        let Some(log) = ledger.log(*host) else {
            return if durable.is_null() {
                Ok(())
            } else {
                Err(format!("{host} acknowledges {durable} and has no log"))
            };
        };
        if *durable > log.durable() {
            let synced = log.durable();
            return Err(format!("{host} acknowledges {durable} and has synced {synced}"));
        }
        let master = ledger.master(*term).and_then(|master| ledger.log(master));
        match (log.at(*durable), master.and_then(|master| master.at(*durable))) {
            (Some(here), Some(there)) if here != there && there.term <= *term => Err(format!(
                "{host} acknowledges {durable} in term {term}: {here:?}, and the master has {there:?}"
            )),
            _ => Ok(()),
        }
    }
}
