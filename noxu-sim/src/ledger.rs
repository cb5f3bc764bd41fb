//! Ledger: what an all-knowing observer knows of a run: every log as it is, what is durable on a
//! quorum, what nodes have promised.
//!
//! It is fed with [`Record`]s, plain facts about one step of one node, and believes them; whether
//! they are lawful is for the invariants, which look at each record before it is entered.
//!
//! # Not here: the rules (invariants), gathering the records (the world).

use std::collections::BTreeMap;

use noxu_util::{Fingerprint, Name, Term, Vlsn};

use crate::event::Host;

/// An entry as a log holds it. A fingerprint stands for everything up to the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Term in which it was written.
    pub term: Term,
    /// Running hash of the log up to it.
    pub fingerprint: Fingerprint,
}

/// What a step of a node has changed, or has said to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// It appended entries from `first` on, in the term of the stream or mastership they came with.
    Appended {
        /// Which node.
        host: Host,
        /// First of them.
        first: Vlsn,
        /// The entries.
        entries: Vec<Held>,
        /// Term of the stream, or of the own mastership.
        under: Term,
    },
    /// It cut its log after `after`.
    Truncated {
        /// Which node.
        host: Host,
        /// Last entry kept.
        after: Vlsn,
    },
    /// It dropped entries below `first` from the front of its log.
    FrontDropped {
        /// Which node.
        host: Host,
        /// First entry kept.
        first: Vlsn,
    },
    /// A restore replaced its log by one of `entries` behind `anchor`.
    Installed {
        /// Which node.
        host: Host,
        /// The position before the first entry, with what stands there.
        anchor: (Vlsn, Held),
        /// The entries.
        entries: Vec<Held>,
    },
    /// It was started again and found its log to end at `last`, damaged entries counted.
    Restarted {
        /// Which node.
        host: Host,
        /// End of its log.
        last: Vlsn,
        /// It crashed in the middle of a call, which may have been a lawful cut, or a restore has
        /// replaced its log.
        amid: bool,
        /// It knows that the end of its log may be missing.
        uncertain: bool,
    },
    /// Its disk was replaced by an empty one.
    Wiped {
        /// Which node.
        host: Host,
    },
    /// Everything through `durable` is on its disk.
    Synced {
        /// Which node.
        host: Host,
        /// Last such entry.
        durable: Vlsn,
    },
    /// It is the established master of `term`, whose first entry is `first`.
    Established {
        /// Which node.
        host: Host,
        /// Epoch of the group.
        epoch: u32,
        /// Its term.
        term: Term,
        /// Its Term entry.
        first: Vlsn,
    },
    /// As the master of `term` it found everything through `vlsn` durable on a quorum.
    Dtvlsn {
        /// Which node.
        host: Host,
        /// Its term.
        term: Term,
        /// Last such entry.
        vlsn: Vlsn,
    },
    /// While it was no master it applied everything through `vlsn`.
    Applied {
        /// Which node.
        host: Host,
        /// Last such entry.
        vlsn: Vlsn,
    },
    /// It acknowledged to the master of `term` that everything through `durable` is on its disk.
    Acked {
        /// Which node.
        host: Host,
        /// Term of the stream.
        term: Term,
        /// Last such entry.
        durable: Vlsn,
    },
    /// It sent a message of its term.
    Spoke {
        /// Which node.
        host: Host,
        /// Its term.
        term: Term,
    },
    /// It voted.
    Voted {
        /// Which node.
        host: Host,
        /// In which term.
        term: Term,
        /// For whom.
        candidate: Name,
    },
    /// It told the master elected in `asked_in` that it never had this entry.
    Nacked {
        /// Which node.
        host: Host,
        /// Term of who asked.
        asked_in: Term,
        /// The entry.
        vlsn: Vlsn,
    },
    /// A syncup ended.
    SyncedUp {
        /// The replica.
        host: Host,
        /// The first entry that it is to be sent.
        found: Vlsn,
        /// The same by a look at both logs.
        known: Vlsn,
        /// How often it asked.
        round_trips: u32,
    },
    /// All of its log was read and every fingerprint computed again.
    Verified {
        /// Which node.
        host: Host,
        /// What is wrong outside of what was damaged on purpose.
        wrong: Option<String>,
    },
    /// It stopped by itself.
    Stopped {
        /// Which node.
        host: Host,
        /// Why.
        cause: String,
        /// A sync of its disk failed since it was started, or rot cut a rollback short.
        disk_failed: bool,
    },
    /// It holds a place in its log for a replica that it feeds, or that restores from it.
    Held {
        /// Which node.
        host: Host,
        /// For whom.
        replica: Host,
        /// The first entry that is kept for it.
        from: Vlsn,
        /// The first entry of the log.
        front: Vlsn,
        /// The replica's disk has no room, so that the end of its log may be in its memory alone.
        is_full: bool,
    },
    /// It restores, and has told its master that it needs nothing before an entry.
    LetGo {
        /// Which node.
        host: Host,
        /// The entry.
        needed: Vlsn,
        /// The last entry that its log in the making would have if the power went now; `None` if there
        /// would be none.
        staged: Option<Vlsn>,
    },
    /// How much it keeps in memory and on disk.
    Sized {
        /// Which node.
        host: Host,
        /// Of what.
        what: &'static str,
        /// How much.
        found: u64,
        /// How much at most.
        bound: u64,
    },
}

/// One node's log.
#[derive(Debug, Clone, Default)]
pub struct LogMirror {
    /// The position before the first entry known.
    base: Vlsn,
    entries: Vec<Held>,
    durable: Vlsn,
    /// The highest position that it acknowledged and may not have lost.
    acked: Vlsn,
}

impl LogMirror {
    /// The last entry; the base if there is none.
    pub fn last(&self) -> Vlsn {
        Vlsn::new(self.base.sequence() + self.entries.len() as i64)
    }

    /// The entry at `vlsn`, if the log is known to hold it.
    pub fn at(&self, vlsn: Vlsn) -> Option<Held> {
        let index = vlsn.sequence().checked_sub(self.base.sequence() + 1)?;
        self.entries.get(usize::try_from(index).ok()?).copied()
    }

    /// What it has on its disk.
    pub const fn durable(&self) -> Vlsn {
        self.durable
    }

    /// What it acknowledged last and has not lawfully cut since.
    pub const fn acked(&self) -> Vlsn {
        self.acked
    }

    fn truncate(&mut self, after: Vlsn) {
        let keep = after.sequence() - self.base.sequence();
        self.entries.truncate(usize::try_from(keep).unwrap_or(0));
        self.durable = self.durable.min(after);
        self.acked = self.acked.min(after);
    }
}

/// What is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    logs: BTreeMap<Host, LogMirror>,
    /// What was found durable on a quorum, from VLSN 1 on.
    durable: Vec<Held>,
    masters: BTreeMap<Term, Host>,
    truncations: usize,
}

impl Ledger {
    /// How many masterships there were.
    pub fn masterships(&self) -> usize {
        self.masters.len()
    }

    /// How often a log was cut by a node that runs.
    pub fn truncations(&self) -> usize {
        self.truncations
    }

    /// A node's log.
    pub fn log(&self, host: Host) -> Option<&LogMirror> {
        self.logs.get(&host)
    }

    /// All logs.
    pub fn logs(&self) -> impl Iterator<Item = (Host, &LogMirror)> {
        self.logs.iter().map(|(host, log)| (*host, log))
    }

    /// The last entry found durable on a quorum.
    pub fn last_durable(&self) -> Vlsn {
        Vlsn::new(self.durable.len() as i64)
    }

    /// The entry at `vlsn` that was found durable on a quorum.
    pub fn durable(&self, vlsn: Vlsn) -> Option<Held> {
        let index = vlsn.sequence().checked_sub(1)?;
        self.durable.get(usize::try_from(index).ok()?).copied()
    }

    /// The first entry that `master` is to send to `replica`: the one behind all of the replica's log,
    /// if the master holds that; else the one behind the newest entry that both hold and on which
    /// `is_sync` says that a log may be cut. `None` if the ledger or `is_sync` knows too little.
    pub fn start_between(
        &self,
        replica: Host,
        master: Host,
        is_sync: impl Fn(Vlsn) -> Option<bool>,
    ) -> Option<Vlsn> {
        let (ours, theirs) = (self.log(replica)?, self.log(master)?);
        let mut at = ours.last().min(theirs.last());
        while ours.at(at)? != theirs.at(at)? {
            at = at.prev();
        }
        if at < ours.last() {
            while !is_sync(at)? {
                at = at.prev();
            }
        }
        Some(at.next())
    }

    /// Who was master of a term.
    pub fn master(&self, term: Term) -> Option<Host> {
        self.masters.get(&term).copied()
    }

    /// Takes in what the invariants have looked at.
    ///
    /// # Panics
    /// If a record does not go on where the one before ended.
    pub fn enter(&mut self, record: &Record) {
        match record {
            Record::Appended { host, first, entries, .. } => {
                let log = self.logs.entry(*host).or_default();
                if log.entries.is_empty() && log.last().next() != *first {
                    log.base = first.prev();
                }
                assert_eq!(log.last().next(), *first, "{host} appends behind a gap");
                log.entries.extend(entries);
            }
            Record::Truncated { host, after } => {
                self.logs.entry(*host).or_default().truncate(*after);
                self.truncations += 1;
            }
            Record::Restarted { host, last, .. } => {
                let log = self.logs.entry(*host).or_default();
                log.truncate(*last);
                log.durable = log.last();
            }
            Record::Wiped { host } => {
                self.logs.remove(host);
            }
            Record::Installed { host, anchor: (anchor, _), entries } => {
                let acked = self.logs.get(host).map_or(Vlsn::default(), |log| log.acked);
                let mut log =
                    LogMirror { base: *anchor, entries: entries.clone(), ..LogMirror::default() };
                log.durable = log.last();
                log.acked = acked.min(log.durable);
                self.logs.insert(*host, log);
            }
            Record::Synced { host, durable } => {
                self.logs.entry(*host).or_default().durable = *durable;
            }
            Record::Established { host, term, .. } => {
                self.masters.insert(*term, *host);
            }
            Record::Dtvlsn { host, vlsn, .. } => {
                let Some(log) = self.logs.get(host) else { return };
                for at in self.durable.len() as i64 + 1..=vlsn.sequence() {
                    let Some(held) = log.at(Vlsn::new(at)) else { return };
                    self.durable.push(held);
                }
            }
            Record::Acked { host, durable, .. } => {
                let log = self.logs.entry(*host).or_default();
                log.acked = log.acked.max(*durable);
            }
            Record::FrontDropped { .. }
            | Record::Applied { .. }
            | Record::Spoke { .. }
            | Record::Voted { .. }
            | Record::Nacked { .. }
            | Record::SyncedUp { .. }
            | Record::Verified { .. }
            | Record::Stopped { .. }
            | Record::Held { .. }
            | Record::LetGo { .. }
            | Record::Sized { .. } => {}
        }
    }
}
