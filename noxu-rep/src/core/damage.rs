//! DamageBook: what of a node's log is damaged on its disk, how often it was asked of others in vain, and
//! when it is to be asked for again.
//!
//! # Invariants
//! - What is damaged is told once when it is found, and once when that is over.
//! - Each failure doubles the wait, up to [`MOST_WAIT`]; a peer that comes shortens it, but not below
//!   [`FIRST_WAIT`] since the last attempt: however peers come and go, they are not asked without pause.
//!
//! # Not here: finding it (noxu-log), whom to ask and what to believe (driver/disk_mending.rs).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use noxu_util::Vlsn;

use crate::core::commits::Now;

/// Wait after the first attempt that failed.
pub const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Longest wait between two attempts.
pub const MOST_WAIT: Duration = Duration::from_secs(30);

/// What is damaged on a node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damaged {
    /// A block of a sealed segment.
    Block {
        /// Number of the segment.
        segment: u32,
        /// Number of the block of 256 KiB in it, from 0.
        block: u32,
        /// An entry at or before the first one that has bytes in it.
        first: Vlsn,
        /// An entry at or after the last one.
        last: Vlsn,
    },
    /// Entries of a segment that is not sealed, or was unsealed because they cannot be read.
    Entries {
        /// Number of the segment.
        segment: u32,
        /// The first of them.
        first: Vlsn,
        /// The last of them.
        last: Vlsn,
    },
}

impl Damaged {
    /// Number of the segment that it is in.
    pub const fn segment(&self) -> u32 {
        match self {
            Self::Block { segment, .. } | Self::Entries { segment, .. } => *segment,
        }
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { segment, block, first, last } => {
                write!(f, "block {block} of segment {segment}, entries {first} to {last}")
            }
            Self::Entries { segment, first, last } => {
                write!(f, "entries {first} to {last} in segment {segment}")
            }
        }
    }
}

/// Why something damaged could not be mended yet. Ordered by how much was learnt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Unmended {
    /// No other node could be reached, or what was begun with one broke off.
    Unreachable,
    /// Whoever was reached does not have it, or not sealed yet.
    NobodyHasIt,
    /// What came is not what it was.
    WrongBytes,
    /// This node's own disk does not take it.
    Disk(String),
}

impl fmt::Display for Unmended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("nobody could be reached"),
            Self::NobodyHasIt => f.write_str("nobody has it"),
            Self::WrongBytes => f.write_str("what came is not what it was"),
            Self::Disk(cause) => f.write_str(cause),
        }
    }
}

/// What an owner is told of damage on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageEvent {
    /// It was found.
    Found(Damaged),
    /// It is whole again.
    Mended {
        /// What.
        what: Damaged,
        /// The node that had it: its name, or its address if the name is not known.
        from: String,
    },
    /// Nobody could give it so far.
    NotYet {
        /// What.
        what: Damaged,
        /// Why.
        why: Unmended,
        /// When it is asked for again, unless a peer comes before.
        again_in: Duration,
    },
    /// It is no matter any more: mended in another way, as by the master that this node follows, or no
    /// part of the log now. What is left of it, if anything, is told as found anew.
    Over(Damaged),
}

/// Something damaged that is not mended yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDamage {
    /// What.
    pub what: Damaged,
    /// How often all others were asked in vain.
    pub attempts: u32,
    /// Why the last time was in vain; `None` before the first.
    pub why: Option<Unmended>,
    /// When it is asked for again.
    pub again_in: Duration,
}

/// What a node has found damaged on its disk since it was opened, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DamageReport {
    /// Pieces found.
    pub found: u64,
    /// Blocks of sealed segments that were replaced by a peer's.
    pub mended_blocks: u64,
    /// Runs of entries that were put back from a peer, those from the master that is followed aside.
    pub mended_runs: u64,
    /// What is not mended yet, in the order of the log.
    pub open: Vec<OpenDamage>,
}

/// What is damaged, and when it is asked for.
#[derive(Debug, Default)]
pub struct DamageBook {
    open: BTreeMap<Damaged, Item>,
    found: u64,
    mended_blocks: u64,
    mended_runs: u64,
}

#[derive(Debug)]
struct Item {
    due: Now,
    /// When it was asked for last.
    asked: Now,
    attempts: u32,
    why: Option<Unmended>,
}

impl DamageBook {
    /// All that is damaged now. Entries are left for a moment to who mends them anyway: an election, or
    /// the next conversation with a master.
    pub fn take_stock(&mut self, now: Now, damaged: &[Damaged]) -> Vec<DamageEvent> {
        let mut events = Vec::new();
        self.open.retain(|what, _| {
            let stays = damaged.contains(what);
            if !stays {
                events.push(DamageEvent::Over(*what));
            }
            stays
        });
        for what in damaged {
            if self.open.contains_key(what) {
                continue;
            }
            let due = match what {
                Damaged::Block { .. } => now,
                Damaged::Entries { .. } => now + FIRST_WAIT,
            };
            self.open.insert(*what, Item { due, asked: now, attempts: 0, why: None });
            self.found += 1;
            events.push(DamageEvent::Found(*what));
        }
        events
    }

    /// What is to be asked for now.
    pub fn due(&self, now: Now) -> Vec<Damaged> {
        self.open.iter().filter(|(_, item)| item.due <= now).map(|(what, _)| *what).collect()
    }

    /// A peer gave it.
    pub fn handle_mended(&mut self, what: Damaged, from: &str) -> Option<DamageEvent> {
        self.open.remove(&what)?;
        match what {
            Damaged::Block { .. } => self.mended_blocks += 1,
            Damaged::Entries { .. } => self.mended_runs += 1,
        }
        Some(DamageEvent::Mended { what, from: from.to_owned() })
    }

    /// Everybody was asked in vain.
    pub fn handle_failed(&mut self, now: Now, what: Damaged, why: Unmended) -> Option<DamageEvent> {
        let item = self.open.get_mut(&what)?;
        let again_in = FIRST_WAIT.saturating_mul(1 << item.attempts.min(16)).min(MOST_WAIT);
        item.attempts = item.attempts.saturating_add(1);
        (item.asked, item.due, item.why) = (now, now + again_in, Some(why.clone()));
        Some(DamageEvent::NotYet { what, why, again_in })
    }

    /// It is somebody else's to mend for a moment.
    pub fn put_off(&mut self, now: Now, what: Damaged) {
        if let Some(item) = self.open.get_mut(&what) {
            item.due = now + FIRST_WAIT;
        }
    }

    /// Another node has come.
    pub fn handle_peer(&mut self, now: Now) {
        // What was not asked for yet is not put forward: others may be about to mend it.
        let asked: Vec<_> =
            self.open.iter().filter(|(_, item)| item.attempts > 0).map(|(what, _)| *what).collect();
        self.hurry(now, |what| asked.contains(what));
    }

    /// What `is_wanted` is to be asked for as soon as it may be.
    pub fn hurry(&mut self, now: Now, is_wanted: impl Fn(&Damaged) -> bool) {
        for (what, item) in &mut self.open {
            if is_wanted(what) {
                let may = if item.attempts == 0 { now } else { item.asked + FIRST_WAIT };
                item.due = item.due.min(now.max(may));
            }
        }
    }

    /// When [`DamageBook::due`] names something next.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.open.values().map(|item| item.due).min()
    }

    /// What was found, and what became of it.
    pub fn report(&self, now: Now) -> DamageReport {
        let open = self.open.iter().map(|(what, item)| OpenDamage {
            what: *what,
            attempts: item.attempts,
            why: item.why.clone(),
            again_in: item.due.saturating_sub(now),
        });
        DamageReport {
            found: self.found,
            mended_blocks: self.mended_blocks,
            mended_runs: self.mended_runs,
            open: open.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(block: u32) -> Damaged {
        Damaged::Block { segment: 1, block, first: Vlsn::new(1), last: Vlsn::new(9) }
    }

    fn entries() -> Damaged {
        Damaged::Entries { segment: 2, first: Vlsn::new(10), last: Vlsn::new(11) }
    }

    const fn s(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    #[test]
    fn damage_is_told_once_when_it_is_found_and_once_when_it_is_over() {
        let mut book = DamageBook::default();
        let all = [block(0), block(3), entries()];
        assert_eq!(book.take_stock(s(0), &all), all.map(DamageEvent::Found));
        assert_eq!(book.take_stock(s(0), &all), []);
        assert_eq!(book.due(s(0)), [block(0), block(3)], "entries wait for who mends them anyway");
        assert_eq!(book.due(s(1)), all);
        let mended = DamageEvent::Mended { what: block(3), from: "n2".to_owned() };
        assert_eq!(book.handle_mended(block(3), "n2"), Some(mended));
        assert_eq!(book.handle_mended(block(3), "n2"), None);
        assert_eq!(book.take_stock(s(1), &all[..1]), [DamageEvent::Over(entries())]);
        let report = book.report(s(1));
        assert_eq!((report.found, report.mended_blocks, report.mended_runs), (3, 1, 0));
        assert_eq!(report.open.iter().map(|open| open.what).collect::<Vec<_>>(), [block(0)]);
    }

    #[test]
    fn each_failure_doubles_the_wait_up_to_the_longest() {
        let mut book = DamageBook::default();
        book.take_stock(s(0), &[block(0)]);
        let mut now = s(0);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(book.due(now), [block(0)]);
            let told = book.handle_failed(now, block(0), Unmended::NobodyHasIt);
            let (why, again_in) = (Unmended::NobodyHasIt, s(wait));
            assert_eq!(told, Some(DamageEvent::NotYet { what: block(0), why, again_in }));
            assert_eq!(book.poll_timeout(), Some(now + again_in));
            assert_eq!(book.due(now + again_in.saturating_sub(Duration::from_millis(1))), []);
            now += again_in;
        }
        assert_eq!(book.report(now).open[0].attempts, 7);
    }

    #[test]
    fn a_peer_that_comes_is_asked_soon_but_never_without_pause() {
        let mut book = DamageBook::default();
        book.take_stock(s(0), &[block(0), entries()]);
        for at in [0, 1, 3, 7] {
            book.handle_failed(s(at), block(0), Unmended::Unreachable);
        }
        assert_eq!(book.poll_timeout(), Some(s(1)), "the entries were not asked for yet");
        book.handle_failed(s(7), entries(), Unmended::Unreachable);
        book.handle_failed(s(8), entries(), Unmended::Unreachable);
        book.handle_peer(Duration::from_millis(7_500));
        assert_eq!(book.due(s(8)), [block(0)]);
        assert_eq!(book.due(s(9)), [block(0), entries()]);
        book.handle_failed(s(9), block(0), Unmended::Unreachable);
        book.put_off(s(9), entries());
        assert_eq!(book.due(s(9)), []);
        assert_eq!(book.due(s(10)), [entries()]);
        book.hurry(s(9), |what| *what == block(0));
        assert_eq!(book.due(s(9)), [], "who needs it does not ask without pause either");
        assert_eq!(book.due(s(10)), [block(0), entries()]);
    }
}
