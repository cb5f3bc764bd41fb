//! I2: entries of the same VLSN and term are the same, and so is everything before them.

use std::collections::BTreeMap;

use noxu_util::{Fingerprint, Term, Vlsn};

use super::Invariant;
use crate::ledger::{Held, Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct SameEntry {
    known: BTreeMap<(Vlsn, Term), Fingerprint>,
}

impl Invariant for SameEntry {
    fn number(&self) -> &'static str {
        "I2"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        let (host, first, entries) = match record {
            Record::Appended { host, first, entries, .. } => (host, *first, entries),
            Record::Installed { host, anchor, entries } => (host, anchor.0.next(), entries),
            _ => return Ok(()),
        };
        let mut vlsn = first;
        for Held { term, fingerprint } in entries {
            let known = *self.known.entry((vlsn, *term)).or_insert(*fingerprint);
            if known != *fingerprint {
                return Err(format!(
                    "{host} holds another entry {vlsn} of term {term}: {fingerprint:?}, not {known:?}"
                ));
            }
            vlsn = vlsn.next();
        }
        Ok(())
    }
}
