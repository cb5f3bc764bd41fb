//! I7: what a node ever promised holds, through restarts too: terms never fall, one vote a term,
//! what was acknowledged is held, what was denied is not taken from an older master.

use std::collections::BTreeMap;

use noxu_util::{Name, Term, Vlsn};

use super::Invariant;
use crate::event::Host;
use crate::ledger::{Ledger, Record};

/// See the file.
#[derive(Default)]
pub(super) struct Promises {
    terms: BTreeMap<Host, Term>,
    votes: BTreeMap<(Host, Term), Name>,
    /// For each entry that a node denied, the newest term in which it was asked.
    denied: BTreeMap<Host, BTreeMap<Vlsn, Term>>,
}

impl Invariant for Promises {
    fn number(&self) -> &'static str {
        "I7"
    }

    fn look(&mut self, ledger: &Ledger, record: &Record) -> Result<(), String> {
        match record {
            Record::Spoke { host, term } => {
                let known = self.terms.entry(*host).or_insert(*term);
                if term < known {
                    return Err(format!("{host} speaks in term {term} after {known}"));
                }
                *known = *term;
                Ok(())
            }
            Record::Voted { host, term, candidate } => {
                let known = self.votes.entry((*host, *term)).or_insert_with(|| candidate.clone());
                if known != candidate {
                    return Err(format!(
                        "{host} votes for {candidate} in term {term}, and voted for {known}"
                    ));
                }
                Ok(())
            }
            Record::Nacked { host, asked_in, vlsn } => {
                let newest = self.denied.entry(*host).or_default().entry(*vlsn).or_default();
                *newest = (*newest).max(*asked_in);
                Ok(())
            }
            Record::Appended { host, first, entries, under } => {
                let Some(denied) = self.denied.get(host) else { return Ok(()) };
                let last = Vlsn::new(first.sequence() + entries.len() as i64 - 1);
                match denied.range(*first..=last).find(|(_, asked_in)| under < *asked_in) {
                    Some((vlsn, asked_in)) => Err(format!(
                        "{host} takes {vlsn} in term {under}, and denied it to the master of {asked_in}"
                    )),
                    None => Ok(()),
                }
            }
            // Who knows that entries may be missing claims nothing.
            Record::Restarted { host, last, amid, uncertain } if !uncertain => {
                let Some(log) = ledger.log(*host) else { return Ok(()) };
                let acked = log.acked();
                let mut counted = acked;
                // A lawful cut leaves what is durable, which may be another entry of that number.
                while *amid
                    && log.at(counted).is_some_and(|held| ledger.durable(counted) != Some(held))
                {
                    counted = counted.prev();
                }
                if *last < counted {
                    return Err(format!(
                        "{host} acknowledged {acked} and holds {last} after a restart"
                    ));
                }
                Ok(())
            }
            Record::Wiped { host } => {
                // Another directory: what the old one promised is void, and so are its acks.
                self.terms.remove(host);
                self.votes.retain(|(of, _), _| of != host);
                self.denied.remove(host);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
