//! Invariants: what must hold whatever goes wrong, one file each: I and C by their numbers in CONSENSUS.md,
//! P about places in logs, R about restores, S about
//! nodes that stop.
//!
//! Each looks at every [`Record`] before the ledger takes it in, and only at what that record
//! changes.
//!
//! # Not here: I9 and I10, which are about clients (oracle.rs); whether a group may be excused from
//! I14.

use std::fmt;

use crate::ledger::{Ledger, Record};

mod c5_applied;
mod i01_one_master;
mod i02_same_entry;
mod i03_durable_prefix;
mod i04_master_complete;
mod i05_nothing_durable_cut;
pub mod i06_intact_copy;
mod i07_promises;
mod i08_truthful_acks;
mod i11_secondaries;
mod i12_fingerprints;
mod i13_syncup;
pub mod i14_convergence;
mod i15_bounds;
mod p1_places;
mod r1_let_go;
mod s1_stops;

/// Something that must never happen has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule: "I1", ...
    pub invariant: &'static str,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.found)
    }
}

impl Violation {
    /// Of this rule.
    pub fn new(invariant: &'static str, found: impl Into<String>) -> Self {
        Self { invariant, found: found.into() }
    }
}

/// A rule about single records.
trait Invariant {
    /// Its number: "I1", ...
    fn number(&self) -> &'static str;

    /// Looks at `record`, which the ledger does not know yet.
    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String>;
}

/// The ledger and all rules about it.
pub struct Watch {
    ledger: Ledger,
    invariants: Vec<Box<dyn Invariant>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            ledger: Ledger::default(),
            invariants: vec![
                Box::<i01_one_master::OneMaster>::default(),
                Box::<i02_same_entry::SameEntry>::default(),
                Box::<i03_durable_prefix::DurablePrefix>::default(),
                Box::<i04_master_complete::MasterComplete>::default(),
                Box::<i05_nothing_durable_cut::NothingDurableCut>::default(),
                Box::<i07_promises::Promises>::default(),
                Box::<i08_truthful_acks::TruthfulAcks>::default(),
                Box::<i11_secondaries::Secondaries>::default(),
                Box::<i12_fingerprints::Fingerprints>::default(),
                Box::<i13_syncup::Syncup>::default(),
                Box::<i15_bounds::Bounds>::default(),
                Box::<c5_applied::Applied>::default(),
                Box::<p1_places::Places>::default(),
                Box::<r1_let_go::LetGo>::default(),
                Box::<s1_stops::Stops>::default(),
            ],
        }
    }
}

impl Watch {
    /// A watch over a group in which these machines are secondaries.
    pub fn new(secondaries: impl IntoIterator<Item = crate::event::Host>) -> Self {
        let mut watch = Self::default();
        let of = i11_secondaries::Secondaries::of(secondaries);
        for invariant in &mut watch.invariants {
            if invariant.number() == "I11" {
                *invariant = Box::new(of);
                break;
            }
        }
        watch
    }

    /// What is known.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Looks at `record` and enters it.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn enter(&mut self, record: &Record) -> Result<(), Violation> {
        for invariant in &mut self.invariants {
            invariant
                .look(&self.ledger, record)
                .map_err(|found| Violation { invariant: invariant.number(), found })?;
        }
        self.ledger.enter(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
