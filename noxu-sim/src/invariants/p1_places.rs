//! P1: a master keeps what a replica has not on its disk: the place that it holds for one moves on what is
//! durable there alone, and its log begins no later.
//!
//! What was ever durable on a machine counts, whatever became of its disk: word of it may be under way. A
//! machine whose disk is full may name an end of its log that waits for room.

use std::collections::BTreeMap;

use noxu_util::Vlsn;

use super::Invariant;
use crate::event::Host;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Places {
    /// The last entry that was ever durable on a machine.
    durable: BTreeMap<Host, Vlsn>,
    /// What a machine was last seen to hold for another.
    held: BTreeMap<(Host, Host), Vlsn>,
}

impl Places {
    fn raise(&mut self, host: Host, durable: Vlsn) {
        let known = self.durable.entry(host).or_default();
        *known = durable.max(*known);
    }
}

impl Invariant for Places {
    fn number(&self) -> &'static str {
        "P1"
    }

    fn look(&mut self, _: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Synced { host, durable } | Record::Restarted { host, last: durable, .. } => {
                self.raise(*host, *durable);
            }
            Record::Installed { host, anchor: (anchor, _), entries } => {
                self.raise(*host, Vlsn::new(anchor.sequence() + entries.len() as i64));
            }
            Record::LetGo { host, staged: Some(staged), .. } => self.raise(*host, *staged),
            Record::Held { host, replica, from, front, is_full } => {
                if from < front {
                    return Err(format!(
                        "{host} holds {from} for {replica}, and begins with {front}"
                    ));
                }
                let moved = self.held.insert((*host, *replica), *from) != Some(*from);
                let durable = self.durable.get(replica).copied().unwrap_or_default();
                if moved && !is_full && *from > durable.next().max(*front) {
                    return Err(format!(
                        "{host} holds only {from} for {replica}, of which {durable} is durable there"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
