//! Retention: how much of the log is kept, and the dropping of its front, whole finished segments at
//! a time.
//!
//! A segment at the front goes when nothing holds it. What holds it, strongest first:
//!
//! | | until |
//! |---|---|
//! | it is not sealed | its successor's first entry can no longer be rolled back |
//! | DTVLSN | the log was told that everything in it is settled, and it is durable here |
//! | the checkpoint | the state machine is durable through its last entry |
//! | a budget that has run out | *nothing below this line holds it any more* |
//! | `keep_bytes`, `keep_age` | the log without it is that long, it is that old |
//! | a pin | it has moved beyond it, or was given up |
//!
//! So a budget never drops what this node itself needs, however far it is exceeded: while the
//! checkpoint stands still the log grows. Whoever takes checkpoints is told that one is wanted
//! ([`Log::on_checkpoint_wanted`]). Under the line the holders lose their places, and are told.
//!
//! The keeper thread looks when something that could free the front has changed: a segment was
//! sealed, the checkpoint or what is settled moved past the first segment, the pin in the way left it
//! or was given up, or the first segment has come of age.
//!
//! A finished segment that only damage, in it or before it, keeps from being sealed counts as sealed here:
//! what nobody could give back goes with the front like anything else, unless it may hide which
//! configuration of the group is in force behind it, or nothing tells where its last entry began: then
//! it waits for one behind it at whose end both are known. Of its age nothing is known, so that only
//! bytes keep it.
//!
//! # Invariants
//! - Nothing above the checkpoint or above what is settled is ever dropped.
//! - No segment is dropped from under a pin unless a budget has run out.
//!
//! # Crash argument
//! 1. The new front is marked, so that no pin is taken below it.
//! 2. The anchor is made durable in the control file. A crash before that has changed nothing.
//! 3. Readers are turned away from below the anchor, and holders are marked as lost.
//! 4. Files are removed, the oldest first, each segment before its side file, so that no side file is
//!    taken for that of a segment. What a crash leaves of them the next open removes; what a failure
//!    leaves the next drop removes.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use noxu_util::{Lsn, NULL_VLSN, Vlsn};

use crate::control_file::Anchor;
use crate::error::{LogError, Result};
use crate::keeping::pins::{Budget, Holder, HolderKind, Lost, NOTHING_WATCHED, Place, Table};
use crate::log::{Log, Segment, Shared, State};
use crate::mutant::{self, Mutant};
use crate::segment::header::SEGMENT_HEADER_BYTES;
use crate::segment::name::{log_dir, segment_name, side_name};

/// How much of its front a log keeps. Whatever is said here, nothing above the state machine's
/// checkpoint or DTVLSN is dropped, and only whole sealed segments are: a log is longer than its
/// budget by what lies above those, and by up to a segment.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// Bytes of log kept though nobody asks for them: for a replica that returns to a master which
    /// does not know of it. Default 1 GiB.
    pub keep_bytes: u64,
    /// Age of what is kept though nobody asks for it, by the master's wall clock at its commit.
    /// Default 0.
    pub keep_age: Duration,
    /// Bytes of log beyond which pins hold no more: their holders lose their places. `None` has a
    /// holder that never moves fill the disk. Stronger than `keep_bytes`. Default 16 GiB.
    pub byte_budget: Option<u64>,
    /// Age of a segment beyond which pins hold it no more, by the master's wall clock at its last
    /// commit. Stronger than `keep_age`. Default `None`.
    pub age_budget: Option<Duration>,
    /// What age is measured against.
    pub clock: WallClock,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            keep_bytes: 1 << 30,
            keep_age: Duration::ZERO,
            byte_budget: Some(16 << 30),
            age_budget: None,
            clock: WallClock::default(),
        }
    }
}

/// A wall clock in milliseconds since 1970: the system's, unless a test has its own.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl WallClock {
    /// The clock that `now_ms` reads.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallClock({} ms)", self.now_ms())
    }
}

/// What keeps the first segment of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldBy {
    /// It is not sealed yet, or there is none.
    Unsealed,
    /// Damage hides what the anchor would have to say of its end: where the last entry began, or which
    /// configuration of the group is in force.
    Damage,
    /// The log knows no later entry as settled (at most DTVLSN) and durable.
    Settled {
        /// Everything through it is.
        through: Vlsn,
    },
    /// The state machine needs it to come up, and nothing else keeps it.
    Checkpoint {
        /// Everything through it is in the checkpoint.
        through: Vlsn,
    },
    /// [`RetentionConfig::keep_bytes`].
    KeepBytes,
    /// [`RetentionConfig::keep_age`].
    KeepAge,
    /// A pin.
    Pin {
        /// Its holder.
        holder: Holder,
        /// Its place.
        from: Vlsn,
    },
    /// Nothing: it goes at the next turn of the keeper thread.
    Nothing,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsealed => f.write_str("the first segment is not sealed"),
            Self::Damage => f.write_str("damage in the first segments"),
            Self::Settled { through } => write!(f, "settled through {through}"),
            Self::Checkpoint { through } => write!(f, "checkpoint at {through}"),
            Self::KeepBytes => f.write_str("keep-bytes"),
            Self::KeepAge => f.write_str("keep-age"),
            Self::Pin { holder, from } => write!(f, "{holder} at {from}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// Why the log is as long as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of its segments, without what is filled ahead.
    pub bytes: u64,
    /// How many segments it has.
    pub segments: usize,
    /// The first entry it holds or will hold.
    pub first: Vlsn,
    /// When the first segment was written, by the master's wall clock in milliseconds since 1970.
    pub first_ms: Option<u64>,
    /// What keeps the first segment.
    pub held_by: HeldBy,
    /// Everything through it is in the state machine's checkpoint, as far as the log was told.
    pub checkpoint: Vlsn,
    /// Who holds a place, in the order in which they came.
    pub holders: Vec<HolderReport>,
    /// Places lost since the log was opened.
    pub lost_places: u64,
}

/// A place as the report shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderReport {
    /// Who holds it.
    pub holder: Holder,
    /// The first entry that it keeps.
    pub from: Vlsn,
    /// Bytes of log from there on, estimated within the segment.
    pub bytes_behind: u64,
    /// The holder is gone, and its place kept for its return.
    pub is_away: bool,
    /// What became of the place, if it is lost.
    pub lost: Option<Lost>,
}

/// The segments that go, and what is in the way of the next one.
struct Plan {
    doomed: Vec<u32>,
    /// Where the log ends that goes.
    last: Option<NewFront>,
    /// The budget that took a segment from under pins or above what is kept.
    budget: Option<Budget>,
    held_by: HeldBy,
    /// Last entry of the first segment that only the checkpoint holds.
    checkpoint_wanted: Option<Vlsn>,
    /// When the first segment comes of an age that matters, in milliseconds from now.
    of_age_in: Option<u64>,
}

/// The last entry that goes, which the anchor will be.
struct NewFront {
    vlsn: Vlsn,
    term: noxu_util::Term,
    fingerprint: noxu_util::Fingerprint,
    number: u32,
    /// Where the last entry begins; `None` if the side file tells.
    last_offset: Option<u32>,
}

/// Why segments are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// By themselves, as far as the checkpoint, the pins and the configuration let them.
    Due,
    /// Somebody said so, and that the state machine's checkpoint is at least there. Pins hold, what
    /// is kept without them does not.
    Order(Vlsn),
}

impl Log {
    /// Everything through `vlsn` is in the state machine's checkpoint, so that its log is not needed
    /// to open this node again. Never moves back. Until the first call nothing is dropped by itself.
    pub fn set_checkpoint(&self, vlsn: Vlsn) {
        let mut state = self.shared.state.lock();
        if vlsn <= state.checkpoint {
            return;
        }
        let before = std::mem::replace(&mut state.checkpoint, vlsn);
        if frees_front(&state, before, vlsn) {
            self.shared.keeper.request_retention();
        }
    }

    /// Registers a function to be called with the VLSN that a checkpoint has to reach so that a
    /// segment can be dropped which nothing else holds; again whenever that is looked at and still so.
    /// By the thread that looked, with no lock of the log held. It must not block.
    pub fn on_checkpoint_wanted(&self, hook: impl Fn(Vlsn) + Send + Sync + 'static) {
        self.shared.hooks.write().checkpoint_wanted.push(Arc::new(hook));
        self.shared.keeper.request_retention();
    }

    /// Drops in this thread what the keeper thread would drop by itself. Returns the anchor's VLSN:
    /// everything at or below it is gone.
    ///
    /// # Errors
    /// `Io`, `Poisoned`, `Closed`.
    pub fn retain(&self) -> Result<Vlsn> {
        self.shared.retain()?;
        Ok(self.shared.state.lock().anchor.vlsn)
    }

    /// Drops whole finished segments from the front whose entries are all at or below `vlsn`, which
    /// is at or below the state machine's checkpoint, whatever `keep_bytes` and `keep_age` say.
    /// Never drops what might be rolled back or what a pin holds. Returns the anchor's VLSN:
    /// everything at or below it is gone.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Poisoned`, `Closed`.
    pub fn drop_through(&self, vlsn: Vlsn) -> Result<Vlsn> {
        self.shared.drop_ordered(vlsn, None)
    }

    /// As [`Log::drop_through`], for a caller that knows better than the log's own Group entries:
    /// `config_at` gives the group configuration in force at the new anchor.
    ///
    /// # Errors
    /// As [`Log::drop_through`].
    pub fn drop_front(&self, vlsn: Vlsn, config_at: impl FnOnce(Vlsn) -> Vec<u8>) -> Result<Vlsn> {
        let mut config_at = Some(config_at);
        let mut once = |vlsn| config_at.take().map(|config_at| config_at(vlsn)).unwrap_or_default();
        self.shared.drop_ordered(vlsn, Some(&mut once))
    }

    /// The anchor that the log would have if it began right behind sealed segment `segment`; nothing is
    /// dropped.
    ///
    /// # Errors
    /// `NotSealed`; `Corrupt`, `Io`, `Closed`.
    pub fn anchor_behind(&self, segment: u32) -> Result<Anchor> {
        let shared = &*self.shared;
        let sealed = shared.sealed(segment).ok_or(LogError::NotSealed { segment })?;
        let found = self.header(sealed.last.vlsn)?;
        let (header, lsn) = found.ok_or(LogError::NotSealed { segment })?;
        Ok(Anchor {
            vlsn: header.vlsn,
            lsn,
            term: header.term,
            fingerprint: header.fingerprint,
            next_lsn: Lsn::new(segment + 1, SEGMENT_HEADER_BYTES),
            group_config: shared.group_config_behind(segment)?,
        })
    }

    /// Shows `look` who holds which place, those away too, and the first entry that it keeps; lost places
    /// are not shown. Cheap: for checks after every step. `look` must not call the log.
    pub fn places(&self, mut look: impl FnMut(&Holder, Vlsn)) {
        let table = self.shared.pins.table();
        let held = table.all().filter(|place| place.lost().is_none());
        held.for_each(|place| look(&place.holder, place.from()));
    }

    /// How long the log is and who keeps it so. Reads nothing from disk unless something is damaged.
    pub fn retention(&self) -> Retention {
        let shared = &*self.shared;
        let config = &shared.config.retention;
        let uncertain = shared.uncertain_ends().unwrap_or(Some(ANY_SEGMENT));
        let state = shared.state.lock();
        let table = shared.pins.table();
        let plan = plan(&state, &table, config, Cause::Due, uncertain.as_ref());
        let first_ms = clocks_of(&state).next().flatten();
        Retention {
            bytes: bytes_of(&state),
            segments: state.segments.len(),
            first: state.anchor.vlsn.next(),
            first_ms,
            held_by: if plan.doomed.is_empty() { plan.held_by } else { HeldBy::Nothing },
            checkpoint: state.checkpoint,
            holders: table.all().map(|place| report(&state, place)).collect(),
            lost_places: shared.pins.lost.load(Ordering::Relaxed),
        }
    }
}

/// Whether a barrier that moves from `before` to `now` leaves the first segment.
pub(crate) fn frees_front(state: &State, before: Vlsn, now: Vlsn) -> bool {
    state.segments.front().is_some_and(|first| {
        let last = first.last().vlsn;
        is_finished(state, 0) && before < last && last <= now
    })
}

/// Whether nothing comes into a segment any more: it is sealed, or only damage, in it or before it, keeps
/// it from being so. As for a sealed one, what closed it can no longer be rolled back.
fn is_finished(state: &State, at: usize) -> bool {
    let settled = state.settled.min(state.durable);
    let closed_by = state.segments.get(at + 1).map(|successor| successor.header().first);
    state.segments[at].is_sealed()
        || (closed_by.is_some_and(|first| first <= settled) && is_blocked(state))
}

/// The segment whose damage keeps it, and those behind it, from being sealed.
fn blocking(state: &State) -> Option<u32> {
    let first = state.segments.partition_point(Segment::is_sealed);
    let number = state.segments.get(first)?.number();
    state.faulty.iter().any(|faulty| faulty.segment == number).then_some(number)
}

fn is_blocked(state: &State) -> bool {
    blocking(state).is_some()
}

/// Whether a segment that damage keeps from being sealed is finished now that not only what is through
/// `before` is settled but what is through `now`: nobody who seals it will look at the front.
pub(crate) fn finishes_blocked(state: &State, before: Vlsn, now: Vlsn) -> bool {
    // What closed it is the first entry of the next one.
    let finished = |segment: &Segment| (before..now).contains(&segment.last().vlsn);
    is_blocked(state) && state.segments.iter().any(finished)
}

/// Whether it is known where the last entry of a segment begins.
fn ends_known(state: &State, segment: &Segment) -> bool {
    let last = segment.last().vlsn;
    !state.faulty.iter().any(|faulty| faulty.last == last && faulty.last_offset.is_none())
}

fn bytes_of(state: &State) -> u64 {
    state.segments.iter().map(|segment| u64::from(segment.end())).sum()
}

/// When each segment from the front on was written. One in which no transaction ends is as old as
/// the next one that tells.
fn clocks_of(state: &State) -> impl Iterator<Item = Option<u64>> {
    (0..state.segments.len()).map(|at| {
        state.segments.range(at..).find_map(|segment| match segment {
            Segment::Sealed(sealed) => (sealed.clock_ms > 0).then_some(sealed.clock_ms),
            Segment::Open(_) => None,
        })
    })
}

fn report(state: &State, place: &Place) -> HolderReport {
    let from = place.from();
    let at = state.segments.partition_point(|segment| segment.last().vlsn < from);
    let mut behind = state.segments.range(at..).map(|segment| u64::from(segment.end()));
    let mut bytes_behind = behind.by_ref().sum::<u64>();
    if let Some(segment) = state.segments.get(at) {
        let entries = segment.last().vlsn.since(segment.header().first.prev()).max(1);
        let before = from.prev().since(segment.header().first.prev());
        bytes_behind -= u64::from(segment.end()) * before.min(entries) / entries;
    }
    HolderReport {
        holder: place.holder.clone(),
        from,
        bytes_behind,
        is_away: place.is_away(),
        lost: place.lost(),
    }
}

/// The pin that holds the segment which ends with `last`.
fn pin_on<'a>(state: &State, table: &'a Table, last: Vlsn) -> Option<&'a Arc<Place>> {
    let holds = |place: &&Arc<Place>| {
        let from = place.from();
        if from <= last {
            return true;
        }
        if place.holder.kind != HolderKind::Stream {
            return false;
        }
        // The replica may end in the middle of a transaction: its next syncup needs a sync entry
        // before its place, or it could only restore.
        let before = state.segments.partition_point(|segment| segment.last().vlsn < from);
        before.checked_sub(1).and_then(|at| state.segments.get(at)).is_some_and(|segment| {
            let last_sync = match segment {
                Segment::Sealed(sealed) => sealed.last_sync,
                Segment::Open(builder) => builder.last_sync(),
            };
            last_sync < last
        })
    };
    table.held().filter(holds).min_by_key(|place| place.from())
}

/// Segments behind none of which it is known which configuration of the group is in force.
type Uncertain = RangeInclusive<u32>;

/// What is certain of no segment.
const ANY_SEGMENT: Uncertain = 0..=u32::MAX;

/// Decides which segments go: they end with one of which all is known that the anchor says.
fn plan(
    state: &State,
    table: &Table,
    config: &RetentionConfig,
    cause: Cause,
    uncertain: Option<&Uncertain>,
) -> Plan {
    let mut plan = Plan {
        doomed: Vec::new(),
        last: None,
        budget: None,
        held_by: HeldBy::Unsealed,
        checkpoint_wanted: None,
        of_age_in: None,
    };
    let settled = state.settled.min(state.durable);
    let checkpoint = match cause {
        Cause::Due => state.checkpoint,
        Cause::Order(vlsn) => vlsn,
    };
    let now = config.clock.now_ms();
    let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let mut bytes = bytes_of(state);
    // So many of the doomed, with the last of them, can go.
    let mut certain = 0;
    for (at, (segment, clock)) in state.segments.iter().zip(clocks_of(state)).enumerate() {
        if !is_finished(state, at) {
            break;
        }
        let last = *segment.last();
        if last.vlsn > settled {
            plan.held_by = HeldBy::Settled { through: settled };
            break;
        }
        let own = u64::from(segment.end());
        let age = clock.map(|clock| now.saturating_sub(clock));
        let over_budget = if config.byte_budget.is_some_and(|budget| bytes > budget) {
            Some(Budget::Bytes)
        } else if let (Some(budget), Some(age)) = (config.age_budget, age)
            && age > millis(budget)
        {
            Some(Budget::Age)
        } else {
            None
        };
        let held_by = || {
            if cause == Cause::Due {
                if over_budget.is_some() {
                    return None;
                }
                if bytes - own < config.keep_bytes {
                    return Some(HeldBy::KeepBytes);
                }
                if !config.keep_age.is_zero()
                    && age.map_or(segment.is_sealed(), |age| age <= millis(config.keep_age))
                {
                    return Some(HeldBy::KeepAge);
                }
            }
            pin_on(state, table, last.vlsn)
                .map(|place| HeldBy::Pin { holder: place.holder.clone(), from: place.from() })
        };
        let held_by = held_by();
        if last.vlsn > checkpoint {
            plan.checkpoint_wanted = held_by.is_none().then_some(last.vlsn);
            // What is needed anyway needs no checkpoint yet.
            plan.held_by = held_by.unwrap_or(HeldBy::Checkpoint { through: checkpoint });
        } else if let Some(held_by) = held_by {
            plan.held_by = held_by;
        } else {
            if cause == Cause::Due && over_budget.is_some() {
                plan.budget = over_budget;
            }
            bytes -= own;
            plan.doomed.push(segment.number());
            let number = segment.number();
            let is_uncertain = uncertain.is_some_and(|uncertain| uncertain.contains(&number));
            if ends_known(state, segment) && !is_uncertain {
                certain = plan.doomed.len();
                plan.last = Some(NewFront {
                    vlsn: last.vlsn,
                    term: last.term,
                    fingerprint: last.fingerprint,
                    number,
                    last_offset: match segment {
                        Segment::Sealed(_) => None,
                        Segment::Open(builder) => Some(builder.last_offset()),
                    },
                });
            }
            continue;
        }
        let keep_age = (!config.keep_age.is_zero()).then_some(config.keep_age);
        let limits = [keep_age, config.age_budget].into_iter().flatten();
        let left = |age: u64| limits.map(millis).filter(|limit| *limit >= age).min();
        plan.of_age_in = age.and_then(|age| Some(left(age)? - age + 1));
        break;
    }
    if plan.held_by == HeldBy::Unsealed && certain < plan.doomed.len() {
        plan.held_by = HeldBy::Damage;
    }
    plan.doomed.truncate(certain);
    plan
}

impl Shared {
    /// Drops what is due. Returns when to look again though nothing has happened.
    pub(crate) fn retain(&self) -> Result<Option<Instant>> {
        while self.drop_some(Cause::Due, None)? {}
        let config = &self.config.retention;
        let uncertain = self.uncertain_ends()?;
        let (wanted, of_age_in, expiry) = {
            let state = self.state.lock();
            let table = self.pins.table();
            let plan = plan(&state, &table, config, Cause::Due, uncertain.as_ref());
            (plan.checkpoint_wanted, plan.of_age_in, table.next_expiry())
        };
        if let Some(vlsn) = wanted {
            let hooks = self.hooks.read().checkpoint_wanted.clone();
            for hook in hooks {
                hook(vlsn);
            }
        }
        // The wall clock may be set: what depends on it is looked at now and then.
        let of_age = of_age_in
            .map(|ms| Instant::now() + Duration::from_millis(ms).min(LONGEST_WAIT_FOR_AGE));
        Ok(of_age.into_iter().chain(expiry).min())
    }

    /// Drops what `order` lets go. Returns the anchor's VLSN.
    fn drop_ordered(
        &self,
        through: Vlsn,
        config_at: Option<&mut dyn FnMut(Vlsn) -> Vec<u8>>,
    ) -> Result<Vlsn> {
        self.drop_some(Cause::Order(through), config_at)?;
        self.keeper.request_retention();
        Ok(self.state.lock().anchor.vlsn)
    }

    /// Drops what `cause` lets go at this moment, and tells who has lost what; false if nothing goes.
    fn drop_some(
        &self,
        cause: Cause,
        config_at: Option<&mut dyn FnMut(Vlsn) -> Vec<u8>>,
    ) -> Result<bool> {
        self.pins.expire();
        let mut told = Vec::new();
        let dropped = {
            let _alone = self.maintenance.lock();
            self.drop_planned(cause, config_at, &mut told)
        };
        self.pins.tell(told);
        dropped
    }

    /// Called with the maintenance lock held.
    fn drop_planned(
        &self,
        cause: Cause,
        config_at: Option<&mut dyn FnMut(Vlsn) -> Vec<u8>>,
        told: &mut Vec<(Arc<Place>, Lost)>,
    ) -> Result<bool> {
        self.check_running()?;
        let uncertain = if config_at.is_some() { None } else { self.uncertain_ends()? };
        let plan = loop {
            let state = self.state.lock();
            let mut table = self.pins.table();
            let plan = plan(&state, &table, &self.config.retention, cause, uncertain.as_ref());
            let Some(last) = &plan.last else {
                let HeldBy::Pin { from, .. } = plan.held_by else {
                    self.pins.watched.store(NOTHING_WATCHED, Ordering::SeqCst);
                    return Ok(false);
                };
                // Whoever leaves the watched segment after this wakes the keeper; who has left it
                // before is seen by the next look.
                let at = state.segments.partition_point(|segment| segment.last().vlsn < from);
                let border = state.segments.get(at).map_or(NULL_VLSN, |within| within.last().vlsn);
                let known = self.pins.watched.swap(border.sequence(), Ordering::SeqCst);
                if known == border.sequence() {
                    return Ok(false);
                }
                continue;
            };
            // Step 1.
            table.front = last.vlsn;
            break plan;
        };
        let Some(last) = plan.last else { return Ok(false) };
        // Step 2.
        let anchor = match self.move_anchor(&plan.doomed, &last, config_at) {
            Ok(anchor) => anchor,
            Err(cause) => {
                let state = self.state.lock();
                self.pins.table().front = state.anchor.vlsn;
                return Err(cause);
            }
        };
        // Step 3.
        {
            let mut state = self.state.lock();
            state.segments.drain(..plan.doomed.len());
            let first = anchor.vlsn.next();
            let damaged = state.faulty.len();
            state.faulty.retain(|faulty| faulty.first >= first);
            if state.faulty.len() < damaged {
                // What was behind it may be sealed now.
                self.keeper.request(|request| request.seal = true);
            }
            let begun = state.terms.partition_point(|(_, begins)| *begins <= first);
            state.terms.drain(..begun.saturating_sub(1));
            if let Some((_, begins)) = state.terms.first_mut() {
                *begins = (*begins).max(first);
            }
            state.anchor = anchor;
            state.check_invariants();
            let mut table = self.pins.table();
            // An order never takes a segment from under a pin.
            let budget = plan.budget.unwrap_or(Budget::Bytes);
            *told = table.lose(state.anchor.vlsn, budget);
            assert!(
                told.is_empty() || plan.budget.is_some(),
                "places were lost though no budget ran out: {told:?}"
            );
        }
        self.files.clear();
        self.sides.clear();
        // Step 4.
        self.doomed.lock().extend(plan.doomed);
        self.remove_doomed()?;
        Ok(true)
    }

    fn move_anchor(
        &self,
        doomed: &[u32],
        last: &NewFront,
        config_at: Option<&mut dyn FnMut(Vlsn) -> Vec<u8>>,
    ) -> Result<Anchor> {
        let group_config = match config_at {
            Some(config_at) => config_at(last.vlsn).into(),
            None => self.group_config_behind(last.number)?,
        };
        let last_offset = match last.last_offset {
            Some(last_offset) => last_offset,
            None => self.sides.open(self, last.number)?.summary.last_offset,
        };
        let anchor = Anchor {
            vlsn: last.vlsn,
            lsn: Lsn::new(last.number, last_offset),
            term: last.term,
            fingerprint: last.fingerprint,
            // The last segment is never finished, so one always follows the last that goes.
            next_lsn: Lsn::new(last.number + 1, SEGMENT_HEADER_BYTES),
            group_config,
        };
        if mutant::is_on(Mutant::AnchorAfterDelete) {
            self.remove_segments(doomed)?;
        }
        self.control.update(|control| control.anchor = anchor.clone())?;
        Ok(anchor)
    }

    /// The segments behind which damaged entries may hide the configuration in force: from the first
    /// damaged one up to, without it, that of the newest Group entry, if that is the configuration of
    /// now; if it is not, without an end.
    fn uncertain_ends(&self) -> Result<Option<Uncertain>> {
        let Some(first) = blocking(&self.state.lock()) else { return Ok(None) };
        let (newest, holder) = self.newest_group(u32::MAX)?;
        let last = match holder {
            _ if newest != self.control.state().group_config => u32::MAX,
            Some(holder) if holder > first => holder - 1,
            _ => return Ok(None),
        };
        Ok(Some(first..=last))
    }

    /// The group configuration in force at the end of segment `last`.
    fn group_config_behind(&self, last: u32) -> Result<Bytes> {
        Ok(self.newest_group(last)?.0)
    }

    /// The newest configuration that the log tells of through segment `last`, that of the newest Group
    /// entry or else the one in force before its front, and the segment of that entry.
    fn newest_group(&self, last: u32) -> Result<(Bytes, Option<u32>)> {
        let (newest, before) = {
            let state = self.state.lock();
            let through = state.segments.iter().rev().skip_while(|segment| segment.number() > last);
            let newest = through
                .map(|segment| match segment {
                    Segment::Sealed(sealed) => (sealed.last_group, segment.number()),
                    Segment::Open(builder) => (builder.last_group(), segment.number()),
                })
                .find(|(group, _)| !group.is_null());
            (newest, state.anchor.group_config.clone())
        };
        if let Some((vlsn, number)) = newest
            && let Some(run) = self.read(vlsn, 1)?
            && let Some(entry) = run.entries().next()
        {
            return Ok((Bytes::copy_from_slice(entry.body), Some(number)));
        }
        // A log whose configuration was never written into it has but one.
        let only = || self.control.state().group_config;
        Ok((if before.is_empty() { only() } else { before }, None))
    }

    /// Removes the files of segments below the anchor.
    fn remove_doomed(&self) -> Result<()> {
        let mut doomed = self.doomed.lock();
        self.remove_segments(&doomed)?;
        doomed.clear();
        Ok(())
    }

    /// Removes segments and their side files, the oldest first; durable on return.
    fn remove_segments(&self, numbers: &[u32]) -> Result<()> {
        let dir = log_dir(&self.dir);
        for number in numbers {
            for name in [segment_name(*number), side_name(*number)] {
                let path = dir.join(name);
                match self.env.remove(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(LogError::io("remove", &path, e));
                    }
                    _ => {}
                }
            }
        }
        self.env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))
    }
}

/// Longest sleep until a segment comes of age.
const LONGEST_WAIT_FOR_AGE: Duration = Duration::from_hours(1);
