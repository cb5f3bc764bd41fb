//! I5: no node cuts off an entry that is durable on a quorum, and no restore takes back an
//! acknowledgement.

use noxu_util::Vlsn;

use super::Invariant;
use crate::event::Host;
use crate::ledger::{Ledger, LogMirror, Record};

/// See the file.
#[derive(Default)]
pub(super) struct NothingDurableCut;

impl Invariant for NothingDurableCut {
    fn number(&self) -> &'static str {
        "I5"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Truncated { host, after } => holds_no_more(ledger, *host, after.next()),
            Record::Installed { host, anchor, entries } => {
                let last = Vlsn::new(anchor.0.sequence() + entries.len() as i64);
                holds_no_more(ledger, *host, last.next())?;
                let acked = ledger.log(*host).map_or(Vlsn::default(), LogMirror::acked);
                let counted = acked.min(ledger.last_durable());
                if last < counted {
                    return Err(format!(
                        "{host} acknowledged {counted} and was restored to {last}"
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn holds_no_more(ledger: &Ledger, host: Host, lost: Vlsn) -> Result<(), String> {
    let held = ledger.log(host).and_then(|log| log.at(lost));
    match (held, ledger.durable(lost)) {
        (Some(held), Some(durable)) if held == durable => {
            Err(format!("{host} cuts off {lost}, which is durable"))
        }
        _ => Ok(()),
    }
}
