//! I13: a syncup finds what a look at both logs finds, within its bound of round trips.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// Most questions of one search.
pub(super) const MOST_ROUND_TRIPS: u32 = 4;

/// See the file.
#[derive(Default)]
pub(super) struct Syncup;

impl Invariant for Syncup {
    fn number(&self) -> &'static str {
        "I13"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        let Record::SyncedUp { host, found, known, round_trips } = record else { return Ok(()) };
        if found != known {
            return Err(format!("{host} is sent {found} and what follows, and lacks {known}"));
        }
        if *round_trips > MOST_ROUND_TRIPS {
            return Err(format!("{host} asked {round_trips} times"));
        }
        Ok(())
    }
}
