//! Repair: what becomes of entries that an elected master's log holds and cannot read.
//!
//! A damaged entry may be the last copy of something durable, or a leftover that nobody was ever
//! told of. The master asks every voter. Whoever has it sends it; if so many never had it that no
//! replication quorum can have held it, it was never durable and is cut off; else the master waits,
//! and after some patience makes way for a node whose log is whole.
//!
//! # What a voter says: [`answer`], first row that matches
//! | own log | answer |
//! |---|---|
//! | being replaced; begins behind the range; damaged where it would have to look | silent |
//! | the same through the range's last entry | have |
//! | ends before the range; or parted before it | never |
//! | another entry at the range's first VLSN, as its term proves, or its fingerprint if it is alone | never |
//! | the same term before, at the first and at the last entry of the range | part: the entries of that term |
//! | an entry at the first VLSN that may be the same or another | silent |
//!
//! A voter that is uncertain of its log's end is silent where this says never.
//!
//! That a log ends below the range's *last* entry proves nothing about its first: the voter may be
//! merely behind and hold what is asked for.
//!
//! # Invariants
//! - Bytes are kept only as they arrive, from one voter at a time.
//! - Nothing is cut off at or below the highest position that anybody names as durable, nor before
//!   a nack quorum of *other* voters has answered in the master's term.
//!
//! # Not here: verifying what is put back (the log's chain does), raising the term before a nack
//! (core/node.rs).
//! # See: CONSENSUS.md "Start of a mastership"

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use noxu_util::{Name, Vlsn};

use crate::core::commits::Now;
use crate::core::quorums::Quorums;
use crate::mutant::{self, Mutant};
use crate::wire::election::{Mark, Peer, Purpose, RepairAnswer, RepairAsk, RepairVerdict, Silence};

/// A run of entries that belong to the log and cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// First entry.
    pub first: Vlsn,
    /// Last entry.
    pub last: Vlsn,
    /// The entry before the first.
    pub before: Mark,
    /// The last entry, as what follows it says.
    pub after: Mark,
}

/// A log, as far as an answer needs it.
pub trait RepairView {
    /// Whether entries may be missing at its end.
    fn is_uncertain(&self) -> bool;
    /// Whether it is being replaced.
    fn is_installing(&self) -> bool;
    /// The position before its first entry.
    fn anchor(&self) -> Vlsn;
    /// Its last entry, damaged ones counted.
    fn last(&self) -> Vlsn;
    /// The entry at `vlsn`, which is the anchor or behind it; zeros for VLSN 0. `None` if it is
    /// damaged and nothing else tells.
    fn mark(&self, vlsn: Vlsn) -> Option<Mark>;
    /// Whether any of these entries, which it has, is damaged.
    fn is_damaged(&self, first: Vlsn, last: Vlsn) -> bool;
}

/// What a voter says. It has made the asker's term its own before, if that is newer.
pub fn answer(view: &dyn RepairView, ask: &RepairAsk) -> RepairVerdict {
    let silent = RepairVerdict::Silent;
    if view.is_installing() {
        return silent(Silence::Installing);
    }
    // What is there is proven by its chain; only what is missing may have been lost.
    let never = if view.is_uncertain() && !mutant::is_on(Mutant::UncertainNacks) {
        silent(Silence::Uncertain)
    } else {
        RepairVerdict::Never
    };
    if ask.first > ask.last {
        return silent(Silence::Ambiguous); // nobody who means it asks so
    }
    if view.anchor() >= ask.first {
        return silent(Silence::BelowAnchor);
    }
    let end = view.last();
    if end < ask.first {
        return never;
    }
    if end >= ask.last {
        let Some(last) = view.mark(ask.last) else { return silent(Silence::Damaged) };
        if last.fingerprint == ask.after.fingerprint {
            return if view.is_damaged(ask.first, ask.last) {
                silent(Silence::Damaged)
            } else {
                RepairVerdict::Have
            };
        }
    }
    let Some(before) = view.mark(ask.first.prev()) else { return silent(Silence::Damaged) };
    if before.fingerprint != ask.before.fingerprint {
        return never;
    }
    // The logs are the same before the range. Terms never fall along a log, so the terms of the
    // range lie between those of its two ends, and a VLSN with its term is one entry.
    let Some(first) = view.mark(ask.first) else { return silent(Silence::Damaged) };
    let one_term = ask.before.term == ask.after.term;
    if first.term > ask.after.term || (one_term && first.term != ask.after.term) {
        return never;
    }
    if ask.first == ask.last {
        // Its fingerprint is not the one asked for, or it would have been "have".
        return never;
    }
    if !one_term {
        return silent(Silence::Ambiguous);
    }
    let mut through = ask.first;
    while through < end.min(ask.last) {
        match view.mark(through.next()) {
            Some(mark) if mark.term == ask.after.term => through = through.next(),
            Some(_) | None => break,
        }
    }
    if view.is_damaged(ask.first, through) {
        return silent(Silence::Damaged);
    }
    RepairVerdict::Part { through }
}

/// A step that the log takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairStep {
    /// Put these entries back, all of the run that is damaged.
    Splice {
        /// The damaged run.
        damage: Damage,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Put the first entries of a damaged run back.
    SplicePrefix {
        /// The damaged run.
        damage: Damage,
        /// Last entry of the bytes.
        through: Vlsn,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Cut off everything beyond `vlsn`.
    TruncateAfter {
        /// The last entry kept.
        vlsn: Vlsn,
    },
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairOutput {
    /// Ask a voter.
    Ask {
        /// Whom.
        to: Name,
        /// What.
        ask: RepairAsk,
    },
    /// Have the log take a step; its end is told by [`Repair::handle_done`].
    Step(RepairStep),
    /// An established master lacks what was never durable: its next term may begin without it.
    Never,
    /// Tell an operator.
    Alarm(String),
}

/// What a mending is begun with.
#[derive(Debug, Clone)]
pub struct RepairSetup {
    /// The group's quorums.
    pub quorums: Quorums,
    /// Every voter but this one.
    pub others: Vec<Peer>,
    /// Between two rounds of asking.
    pub retry: Duration,
    /// Bytes of an answer that are kept at most.
    pub max_bytes: usize,
    /// Begins numbers that were never used before.
    pub nonce: u64,
    /// What this node knows to be durable on a quorum.
    pub floor: Vlsn,
    /// Whether its term waits for this. Else it is established and lacks only what others may need:
    /// nothing is cut off, and what nobody has keeps nothing else waiting.
    pub purpose: Purpose,
}

/// The mending of one log by a master, before its term begins or later, one damaged run after the
/// other, oldest first.
#[derive(Debug, Clone)]
pub struct Repair {
    setup: RepairSetup,
    nonce: u64,
    /// Highest position known durable on a quorum, by anybody.
    floor: Vlsn,
    /// What is damaged, oldest first.
    damages: Vec<Damage>,
    state: State,
    outputs: VecDeque<RepairOutput>,
}

#[derive(Debug, Clone)]
enum State {
    /// Answers are awaited.
    Asking(Asking),
    /// The log is at it.
    Stepping {
        /// Whose bytes are being put back.
        from: Option<Name>,
        asking: Asking,
    },
    Finished,
}

#[derive(Debug, Clone)]
struct Asking {
    damage: Damage,
    ask_at: Now,
    nacks: BTreeSet<Name>,
    silent: BTreeMap<Name, Silence>,
    /// Their bytes did not fit.
    unfit: BTreeSet<Name>,
    fetch: Option<Fetch>,
    asked: bool,
    alarmed: bool,
}

#[derive(Debug, Clone)]
struct Fetch {
    from: Name,
    verdict: RepairVerdict,
    total: u32,
    bytes: Vec<u8>,
    /// Something came since the last time of asking.
    moved: bool,
}

impl Repair {
    /// Begins with the oldest of `damages`.
    pub fn new(now: Now, setup: RepairSetup, damages: &[Damage]) -> Self {
        let mut repair = Self {
            nonce: setup.nonce,
            floor: setup.floor,
            setup,
            damages: Vec::new(),
            state: State::Finished,
            outputs: VecDeque::new(),
        };
        repair.begin(now, damages, BTreeSet::new());
        repair
    }

    /// Whether nothing is damaged any more.
    pub fn is_finished(&self) -> bool {
        match self.state {
            State::Finished => true,
            State::Asking(_) | State::Stepping { .. } => false,
        }
    }

    fn begin(&mut self, now: Now, damages: &[Damage], unfit: BTreeSet<Name>) {
        self.damages = damages.to_vec();
        self.damages.sort_by_key(|damage| damage.first);
        let Some(&oldest) = self.damages.first() else {
            self.state = State::Finished;
            return;
        };
        self.begin_with(now, oldest, unfit);
        self.handle_timeout(now);
    }

    fn begin_with(&mut self, now: Now, damage: Damage, unfit: BTreeSet<Name>) {
        assert!(damage.first <= damage.last, "{damage:?}");
        self.nonce = self.nonce.wrapping_add(1);
        self.state = State::Asking(Asking {
            damage,
            ask_at: now,
            nacks: BTreeSet::new(),
            silent: BTreeMap::new(),
            unfit,
            fetch: None,
            asked: false,
            alarmed: false,
        });
    }

    /// A voter answered: before the term begins, in that term.
    pub fn handle_answer(&mut self, from: &Peer, answer: &RepairAnswer) {
        self.floor = self.floor.max(answer.commit_floor);
        let State::Asking(asking) = &mut self.state else { return };
        if answer.nonce != self.nonce
            || answer.first != asking.damage.first
            || !self.setup.others.contains(from)
        {
            return;
        }
        let name = from.name.clone();
        match answer.verdict {
            RepairVerdict::Never => {
                asking.silent.remove(&name);
                asking.nacks.insert(name);
            }
            RepairVerdict::Silent(why) => {
                asking.silent.insert(name, why);
            }
            RepairVerdict::Have | RepairVerdict::Part { .. } => {
                // A nack was a promise; whoever takes it back is not believed in either.
                if asking.nacks.contains(&name) || asking.unfit.contains(&name) {
                    return;
                }
                if let RepairVerdict::Part { through } = answer.verdict
                    && !(asking.damage.first <= through && through < asking.damage.last)
                {
                    return;
                }
                let fetch = asking.fetch.get_or_insert_with(|| Fetch {
                    from: name.clone(),
                    verdict: answer.verdict,
                    total: answer.total,
                    bytes: Vec::new(),
                    moved: true,
                });
                let continues = fetch.from == name
                    && fetch.verdict == answer.verdict
                    && fetch.total == answer.total
                    && fetch.bytes.len() == answer.offset as usize;
                let len = fetch.bytes.len() + answer.bytes.len();
                if !continues || len > self.setup.max_bytes || len > answer.total as usize {
                    return;
                }
                fetch.bytes.extend_from_slice(&answer.bytes);
                fetch.moved = true;
                if len < answer.total as usize {
                    let ask = asking.ask(self.setup.purpose, self.nonce, len as u32);
                    self.outputs.push_back(RepairOutput::Ask { to: name, ask });
                }
            }
        }
        self.decide();
    }

    fn decide(&mut self) {
        let State::Asking(asking) = &mut self.state else { return };
        let damage = asking.damage;
        if let Some(fetch) = &mut asking.fetch {
            if fetch.bytes.len() < fetch.total as usize {
                return;
            }
            let bytes = std::mem::take(&mut fetch.bytes);
            let step = match fetch.verdict {
                RepairVerdict::Have => RepairStep::Splice { damage, bytes },
                RepairVerdict::Part { through } => {
                    RepairStep::SplicePrefix { damage, through, bytes }
                }
                RepairVerdict::Never | RepairVerdict::Silent(_) => {
                    panic!("bytes with {:?}", fetch.verdict)
                }
            };
            let from = Some(fetch.from.clone());
            asking.fetch = None;
            self.state = State::Stepping { from, asking: asking.clone() };
            self.outputs.push_back(RepairOutput::Step(step));
            return;
        }
        let enough =
            if mutant::is_on(Mutant::NackQuorumTooSmall) { 1 } else { self.setup.quorums.nack() };
        if asking.nacks.len() < enough {
            return;
        }
        if self.setup.purpose == Purpose::Mending {
            // Only before a term begins may anything be cut off.
            if damage.first > self.floor {
                self.outputs.push_back(RepairOutput::Never);
            }
            return;
        }
        if damage.first <= self.floor {
            if !asking.alarmed {
                asking.alarmed = true;
                self.outputs.push_back(RepairOutput::Alarm(format!(
                    "ALARM: entry {} is damaged here, everything through {} was made durable, and \
                     {} voters never had it; an operator must decide",
                    damage.first,
                    self.floor,
                    asking.nacks.len(),
                )));
            }
            return;
        }
        let vlsn = damage.first.prev();
        self.state = State::Stepping { from: None, asking: asking.clone() };
        self.outputs.push_back(RepairOutput::Step(RepairStep::TruncateAfter { vlsn }));
    }

    /// The log took the step; `damages` is what is damaged now. If the bytes did not fit, they were
    /// not what they should be: their sender is not asked for this run again.
    pub fn handle_done(&mut self, now: Now, damages: &[Damage], fitted: bool) {
        let State::Stepping { from, asking } = &mut self.state else { return };
        let mut unfit = std::mem::take(&mut asking.unfit);
        if fitted {
            unfit.clear();
        } else if let Some(name) = from.take() {
            unfit.insert(name);
        }
        self.begin(now, damages, unfit);
    }

    /// Asks (again) when it is time.
    pub fn handle_timeout(&mut self, now: Now) {
        let State::Asking(asking) = &mut self.state else { return };
        if now < asking.ask_at {
            return;
        }
        // Whoever began to send and fell silent is no reason to wait.
        if asking.fetch.as_ref().is_some_and(|fetch| !fetch.moved) {
            asking.fetch = None;
        }
        if self.setup.purpose == Purpose::Mending && asking.asked && asking.fetch.is_none() {
            let first = asking.damage.first;
            let later = self.damages.iter().find(|damage| damage.first > first);
            if let Some(&next) = later.or(self.damages.first()) {
                self.begin_with(now, next, BTreeSet::new());
            }
        }
        let State::Asking(asking) = &mut self.state else { return };
        asking.asked = true;
        asking.ask_at = now + self.setup.retry;
        if let Some(fetch) = &mut asking.fetch {
            fetch.moved = false;
        }
        for peer in &self.setup.others {
            if asking.nacks.contains(&peer.name) {
                continue;
            }
            let offset = match &asking.fetch {
                Some(fetch) if fetch.from == peer.name => fetch.bytes.len() as u32,
                Some(_) | None => 0,
            };
            let ask = asking.ask(self.setup.purpose, self.nonce, offset);
            self.outputs.push_back(RepairOutput::Ask { to: peer.name.clone(), ask });
        }
    }

    /// When [`Repair::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Now> {
        match &self.state {
            State::Asking(asking) => Some(asking.ask_at),
            State::Stepping { .. } | State::Finished => None,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<RepairOutput> {
        self.outputs.pop_front()
    }
}

impl Asking {
    fn ask(&self, purpose: Purpose, nonce: u64, offset: u32) -> RepairAsk {
        RepairAsk {
            purpose,
            nonce,
            first: self.damage.first,
            last: self.damage.last,
            before: self.damage.before,
            after: self.damage.after,
            offset,
        }
    }
}

#[cfg(test)]
mod tests;
