//! I11: a secondary holds a beginning of what is durable on a quorum, and nothing else.

use std::collections::BTreeSet;

use super::Invariant;
use crate::event::Host;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Secondaries {
    secondaries: BTreeSet<Host>,
}

impl Secondaries {
    /// These are secondaries.
    pub(super) fn of(secondaries: impl IntoIterator<Item = Host>) -> Self {
        Self { secondaries: secondaries.into_iter().collect() }
    }
}

impl Invariant for Secondaries {
    fn number(&self) -> &'static str {
        "I11"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        let (host, mut vlsn, entries) = match record {
            Record::Appended { host, first, entries, .. } => (host, *first, entries),
            Record::Installed { host, anchor, entries } => (host, anchor.0.next(), entries),
            _ => return Ok(()),
        };
        if !self.secondaries.contains(host) {
            return Ok(());
        }
        if let Record::Installed { anchor: (at, held), .. } = record
            && !at.is_null()
            && ledger.durable(*at) != Some(*held)
        {
            return Err(format!("{host}, a secondary, begins at {at}, which is not durable"));
        }
        for held in entries {
            if ledger.durable(vlsn) != Some(*held) {
                return Err(format!("{host}, a secondary, takes {vlsn}, which is not durable"));
            }
            vlsn = vlsn.next();
        }
        Ok(())
    }
}
