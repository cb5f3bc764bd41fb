//! BlockPlan: which block of a restore is asked of whom.
//!
//! Sealed segments are the same on every node, so any node that has one can give any of its blocks. Each
//! source is kept busy with a window of questions; the master is asked only for what no other source
//! has. The lowest blocks come first, so that segments become whole in their order. Of a source that has
//! not answered for long nothing is awaited any more, until it does: others are asked for what it owes.
//!
//! # Invariants
//! - A block is awaited from one source at a time, and never again once it came with the right digest.
//! - An answer counts only if it repeats the number of a question that this source was asked and has not
//!   answered: what is doubled or made up is dropped. So is what comes late, if others were asked for it.
//! - What a source was asked and has not answered is at most a window, late or not.
//! - A source that has sent [`MAX_STRIKES`] blocks with a wrong digest is asked for nothing more.
//!
//! # Not here: bytes and digests (restore/base.rs), who is a source (the master says).
//! # See: RECOVERY.md "Network restore"

use std::collections::{BTreeMap, BTreeSet};

/// Wrong blocks after which a source is banned.
pub const MAX_STRIKES: u32 = 3;

/// A source, by the number that whoever plans gave it.
pub type SourceId = usize;

/// A block: its segment, by its place in the manifest, and its number in it.
pub type BlockId = (usize, u32);

/// What an answer is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// This block.
    Block(BlockId),
    /// It comes too late: others were asked for its block.
    Nothing,
}

/// What a source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// Every segment; asked last. That is the master.
    All,
    /// These, by their places in the manifest.
    Segments(BTreeSet<usize>),
}

/// One who gives blocks.
#[derive(Debug)]
struct Source {
    has: Has,
    asked: BTreeMap<u64, BlockId>,
    /// What it was asked as well, and is not awaited from it any more.
    late: BTreeMap<u64, BlockId>,
    /// Whether it has answered nothing since that was so.
    is_suspended: bool,
    /// Blocks that it sent wrong.
    wrong: BTreeSet<BlockId>,
    strikes: u32,
}

impl Source {
    fn having(has: Has) -> Self {
        let (asked, late, wrong) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { has, asked, late, is_suspended: false, wrong, strikes: 0 }
    }

    const fn is_banned(&self) -> bool {
        self.strikes >= MAX_STRIKES
    }

    const fn is_usable(&self) -> bool {
        !self.is_banned() && !self.is_suspended
    }

    /// How many answers it owes.
    fn owed(&self) -> usize {
        self.asked.len() + self.late.len()
    }

    fn gives(&self, segment: usize) -> bool {
        match &self.has {
            Has::All => true,
            Has::Segments(segments) => segments.contains(&segment),
        }
    }
}

/// Who is asked for what.
#[derive(Debug)]
pub struct BlockPlan {
    window: usize,
    wanted: BTreeMap<usize, BTreeSet<u32>>,
    sources: BTreeMap<SourceId, Source>,
}

impl BlockPlan {
    /// A plan for `wanted`, with at most `window` questions under way at each source.
    pub fn new(window: usize, wanted: impl IntoIterator<Item = BlockId>) -> Self {
        let mut by_segment: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for (segment, block) in wanted {
            by_segment.entry(segment).or_default().insert(block);
        }
        Self { window: window.max(1), wanted: by_segment, sources: BTreeMap::new() }
    }

    /// `source` gives what it `has` from now on.
    pub fn add_source(&mut self, source: SourceId, has: Has) {
        self.sources.insert(source, Source::having(has));
    }

    /// `source` is gone: what it was asked for is wanted again.
    pub fn remove_source(&mut self, source: SourceId) {
        let asked = self.sources.remove(&source).map(|source| source.asked).unwrap_or_default();
        for block in asked.into_values() {
            self.want(block);
        }
    }

    /// `source` has not answered for long: what it was asked for is wanted again, and it is asked for nothing
    /// more before it answers something.
    pub fn suspend(&mut self, source: SourceId) {
        let Some(one) = self.sources.get_mut(&source) else { return };
        one.is_suspended = true;
        let asked = std::mem::take(&mut one.asked);
        one.late.extend(&asked);
        for block in asked.into_values() {
            self.want(block);
        }
    }

    /// The next block to ask `source` for, with the question of this number; `None` if it is to be
    /// asked for nothing now.
    pub fn poll(&mut self, source: SourceId, request: u64) -> Option<BlockId> {
        let one = self.sources.get(&source)?;
        if !one.is_usable() || one.owed() >= self.window {
            return None;
        }
        let is_last_resort = one.has == Has::All;
        // Whether another one gives it, which did not send it wrong.
        let given_elsewhere = |block: BlockId| {
            self.sources.iter().any(|(id, other)| {
                *id != source
                    && (other.has != Has::All || one.wrong.contains(&block))
                    && other.is_usable()
                    && other.gives(block.0)
                    && !other.wrong.contains(&block)
            })
        };
        let is_for_it = |block: &BlockId| {
            let is_left = is_last_resort || one.wrong.contains(block);
            !(is_left && given_elsewhere(*block))
        };
        // A look at the segment spares one at each of its blocks.
        let is_anothers = |segment: usize| {
            is_last_resort
                && self.sources.values().any(|other| {
                    let is_sound = other.is_usable() && other.wrong.is_empty();
                    other.has != Has::All && is_sound && other.gives(segment)
                })
        };
        let given = self
            .wanted
            .iter()
            .filter(|(segment, _)| one.gives(**segment) && !is_anothers(**segment));
        let mut blocks =
            given.flat_map(|(segment, blocks)| blocks.iter().map(|block| (*segment, *block)));
        let block = blocks.find(is_for_it)?;
        self.take_up(block);
        self.sources.get_mut(&source)?.asked.insert(request, block);
        Some(block)
    }

    /// `source` answered question `request`. `None` if it was not asked that, or has answered it.
    pub fn take(&mut self, source: SourceId, request: u64) -> Option<Due> {
        let one = self.sources.get_mut(&source)?;
        if let Some(block) = one.asked.remove(&request) {
            return Some(Due::Block(block));
        }
        let block = one.late.remove(&request)?;
        one.is_suspended = false;
        Some(if self.take_up(block) { Due::Block(block) } else { Due::Nothing })
    }

    /// What `source` sent for `block`, which was taken, is something else. True if it is banned now.
    pub fn strike(&mut self, source: SourceId, block: BlockId) -> bool {
        self.want(block);
        let Some(source) = self.sources.get_mut(&source) else { return true };
        source.strikes += 1;
        source.wrong.insert(block);
        source.is_banned()
    }

    /// `source` does not have the segment of `block`, which was taken, any more.
    pub fn refuse(&mut self, source: SourceId, block: BlockId) {
        self.want(block);
        if let Some(Source { has: Has::Segments(segments), .. }) = self.sources.get_mut(&source) {
            segments.remove(&block.0);
        }
    }

    fn want(&mut self, (segment, block): BlockId) {
        self.wanted.entry(segment).or_default().insert(block);
    }

    /// Nobody is to be asked for that block any more. False if nobody was anyway.
    fn take_up(&mut self, (segment, block): BlockId) -> bool {
        let Some(left) = self.wanted.get_mut(&segment) else { return false };
        let was_wanted = left.remove(&block);
        if left.is_empty() {
            self.wanted.remove(&segment);
        }
        was_wanted
    }

    /// Answers that are awaited from `source`.
    pub fn under_way(&self, source: SourceId) -> usize {
        self.sources.get(&source).map_or(0, |source| source.asked.len())
    }

    /// Whether nothing is awaited from `source` before it answers something.
    pub fn is_suspended(&self, source: SourceId) -> bool {
        self.sources.get(&source).is_some_and(|source| source.is_suspended)
    }

    /// Whether `source` owes an answer, awaited or not.
    pub fn owes(&self, source: SourceId) -> bool {
        self.sources.get(&source).is_some_and(|source| source.owed() > 0)
    }

    /// Whether every block has come.
    pub fn is_done(&self) -> bool {
        self.wanted.is_empty() && self.sources.values().all(|source| source.asked.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASTER: SourceId = 0;

    fn blocks(segments: usize, each: u32) -> Vec<BlockId> {
        (0..segments).flat_map(|segment| (0..each).map(move |block| (segment, block))).collect()
    }

    fn plan(window: usize) -> BlockPlan {
        let mut plan = BlockPlan::new(window, blocks(3, 4));
        plan.add_source(MASTER, Has::All);
        plan
    }

    /// The block that `source` has answered with.
    fn take(plan: &mut BlockPlan, source: SourceId, request: u64) -> BlockId {
        match plan.take(source, request) {
            Some(Due::Block(block)) => block,
            other => panic!("{other:?} of question {request}"),
        }
    }

    #[test]
    fn the_master_gives_only_what_nobody_else_has() {
        let mut plan = plan(2);
        plan.add_source(1, Has::Segments([0, 2].into()));
        assert_eq!(plan.poll(MASTER, 1), Some((1, 0)));
        assert_eq!(plan.poll(1, 2), Some((0, 0)));
        assert_eq!(plan.poll(1, 3), Some((0, 1)));
        assert_eq!(plan.poll(1, 4), None, "its window is full");
        assert_eq!(plan.poll(MASTER, 5), Some((1, 1)));
        plan.remove_source(1);
        plan.take(MASTER, 1);
        assert_eq!(plan.poll(MASTER, 6), Some((0, 0)), "its source is gone");
    }

    #[test]
    fn late_doubled_and_invented_answers_are_dropped() {
        let mut plan = plan(4);
        assert_eq!(plan.poll(MASTER, 7), Some((0, 0)));
        assert_eq!(plan.take(MASTER, 8), None, "not asked");
        assert_eq!(plan.take(1, 7), None, "asked of somebody else");
        assert_eq!(plan.take(MASTER, 7), Some(Due::Block((0, 0))));
        assert_eq!(plan.take(MASTER, 7), None, "answered");
    }

    #[test]
    fn a_source_of_wrong_blocks_is_struck_and_then_banned() {
        let mut plan = plan(1);
        plan.add_source(1, Has::Segments([0, 1, 2].into()));
        for strike in 1..=MAX_STRIKES {
            let request = u64::from(strike);
            assert_eq!(plan.poll(1, request), Some((0, strike - 1)), "not the same again");
            let block = take(&mut plan, 1, request);
            assert_eq!(plan.strike(1, block), strike == MAX_STRIKES);
            assert_eq!(plan.poll(MASTER, 90 + request), Some(block), "nobody else has it right");
            plan.take(MASTER, 90 + request);
            if strike < MAX_STRIKES {
                assert_eq!(plan.poll(MASTER, 99), None, "another one has the rest");
            }
        }
        assert_eq!(plan.poll(1, 10), None);
        assert_eq!(plan.poll(MASTER, 11), Some((0, 3)));
    }

    #[test]
    fn who_alone_has_a_block_is_asked_for_it_again_though_it_came_wrong() {
        let mut plan = plan(1);
        for strike in 1..=MAX_STRIKES {
            assert_eq!(plan.poll(MASTER, 1), Some((0, 0)));
            let block = take(&mut plan, MASTER, 1);
            assert_eq!(plan.strike(MASTER, block), strike == MAX_STRIKES);
        }
    }

    #[test]
    fn who_has_dropped_a_segment_is_not_asked_for_it_again() {
        let mut plan = plan(1);
        plan.add_source(1, Has::Segments([0, 1].into()));
        assert!(plan.poll(1, 1).is_some());
        let block = take(&mut plan, 1, 1);
        plan.refuse(1, block);
        assert_eq!(plan.poll(1, 2), Some((1, 0)));
        assert_eq!(plan.poll(MASTER, 3), Some((0, 0)));
    }

    #[test]
    fn what_a_source_owes_for_long_is_asked_of_others_and_a_late_answer_counts_if_it_is_not() {
        let mut plan = plan(3);
        plan.add_source(1, Has::Segments([0, 1, 2].into()));
        for request in 1..=3 {
            assert_eq!(plan.poll(1, request), Some((0, request as u32 - 1)));
        }
        assert_eq!(plan.poll(MASTER, 4), None, "another one has it");
        plan.suspend(1);
        assert_eq!((plan.poll(1, 5), plan.under_way(1), plan.owes(1)), (None, 0, true));
        assert_eq!(plan.poll(MASTER, 6), Some((0, 0)));
        // It was only slow.
        assert_eq!(plan.take(1, 1), Some(Due::Nothing), "the master was asked for it");
        assert_eq!(plan.poll(MASTER, 7), None);
        assert_eq!(plan.poll(1, 8), Some((0, 1)), "as long as a window is not full");
        assert_eq!(plan.poll(1, 9), None);
        assert_eq!(plan.take(1, 3), Some(Due::Block((0, 2))));
        assert_eq!(plan.take(1, 2), Some(Due::Nothing), "it was asked for it again");
        assert_eq!(plan.take(1, 8), Some(Due::Block((0, 1))));
        assert!(!plan.owes(1));
        assert_eq!(plan.poll(1, 10), Some((0, 3)));
    }

    proptest! {
        /// Whatever the sources do, as long as the master answers: every block comes, and none twice.
        #[test]
        fn every_block_comes_once(steps in proptest::collection::vec(any::<(u8, u8)>(), 0..400)) {
            let mut plan = plan(3);
            for source in 1..4 {
                plan.add_source(source, Has::Segments((0..source).collect()));
            }
            let mut asked: Vec<(SourceId, u64)> = Vec::new();
            let mut had = BTreeSet::new();
            let mut request = 0;
            for (who, what) in steps {
                let source = usize::from(who % 4);
                match what % 9 {
                    8 if source != MASTER => plan.suspend(source),
                    0..=3 => {
                        request += 1;
                        if plan.poll(source, request).is_some() {
                            asked.push((source, request));
                        }
                    }
                    4 if source != MASTER => {
                        plan.remove_source(source);
                        asked.retain(|(of, _)| *of != source);
                    }
                    _ => {
                        let Some(at) = asked.iter().position(|(of, _)| *of == source) else { continue };
                        let (_, request) = asked.remove(at);
                        let Some(Due::Block(block)) = plan.take(source, request) else { continue };
                        match what % 9 {
                            5 if source != MASTER => { plan.strike(source, block); }
                            6 if source != MASTER => plan.refuse(source, block),
                            _ => prop_assert!(had.insert(block), "{block:?} came twice"),
                        }
                    }
                }
            }
            for source in 1..4 {
                plan.remove_source(source);
            }
            for (_, request) in asked.into_iter().filter(|(of, _)| *of == MASTER) {
                prop_assert!(had.insert(take(&mut plan, MASTER, request)));
            }
            while let Some(block) = { request += 1; plan.poll(MASTER, request) } {
                plan.take(MASTER, request);
                prop_assert!(had.insert(block), "{block:?} came twice");
            }
            prop_assert!(plan.is_done());
            prop_assert_eq!(had.len(), 12);
        }
    }
}
