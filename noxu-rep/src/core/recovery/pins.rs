//! Pins: from where on the master's log is kept, for each replica that is being fed.
//!
//! # Invariants
//! - A pin never moves back: what lies below it may be gone.

use std::collections::BTreeMap;

use noxu_util::{Name, Vlsn};

/// The pins.
#[derive(Debug, Default)]
pub(super) struct Pins {
    from: BTreeMap<Name, Vlsn>,
}

impl Pins {
    /// Keeps the log from `from` on for `name`, or what is kept already if that is less. Says
    /// whether the pin is new or has moved.
    pub(super) fn pin(&mut self, name: &Name, from: Vlsn) -> bool {
        match self.from.get_mut(name) {
            Some(kept) if *kept >= from => false,
            Some(kept) => {
                *kept = from;
                true
            }
            None => self.from.insert(name.clone(), from).is_none(),
        }
    }

    /// Keeps nothing for `name`. Says whether anything was.
    pub(super) fn unpin(&mut self, name: &Name) -> bool {
        self.from.remove(name).is_some()
    }

    /// The pin of `name`.
    pub(super) fn of(&self, name: &Name) -> Option<Vlsn> {
        self.from.get(name).copied()
    }

    /// Everything from here on is kept.
    pub(super) fn floor(&self) -> Option<Vlsn> {
        self.from.values().min().copied()
    }
}
