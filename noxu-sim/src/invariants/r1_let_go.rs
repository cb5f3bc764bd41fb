//! R1: a node that restores lets go only of what is on its disk: the entries before the one that it says it
//! needs are in its log in the making, synced.

use super::Invariant;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct LetGo;

impl Invariant for LetGo {
    fn number(&self) -> &'static str {
        "R1"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::LetGo { host, needed, staged: Some(staged) } if *needed > staged.next() => {
                Err(format!("{host} needs nothing before {needed}, and has {staged} on its disk"))
            }
            _ => Ok(()),
        }
    }
}
