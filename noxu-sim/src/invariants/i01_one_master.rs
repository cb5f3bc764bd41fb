//! I1: at most one master per epoch and term.

use std::collections::BTreeMap;

use noxu_util::Term;

use super::Invariant;
use crate::event::Host;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct OneMaster {
    masters: BTreeMap<(u32, Term), Host>,
}

impl Invariant for OneMaster {
    fn number(&self) -> &'static str {
        "I1"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        let Record::Established { host, epoch, term, .. } = record else { return Ok(()) };
        // Once per life and term: a mastership is never resumed, by nobody.
        match self.masters.insert((*epoch, *term), *host) {
            None => Ok(()),
            Some(other) => Err(format!("{other} and then {host} are master of term {term}")),
        }
    }
}
