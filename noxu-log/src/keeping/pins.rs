//! Pins: who still needs which part of the log's front, and who has lost it.
//!
//! A pin keeps everything from its place on until its holder drops it, or until a budget runs out
//! (retention.rs), when the front passes it all the same and the holder is told.
//!
//! # Invariants
//! - No pin is taken below `front`, which moves before anything below it goes. So a place that was
//!   granted is held, or lost and told; never gone in silence.
//! - A place only moves forward, and its holder is told at most once that it is lost, after the
//!   anchor that passed it is durable.
//!
//! # Lock order
//! `table` is a leaf, taken with the log's `state` held where both must agree. Holders are told with
//! no lock held.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Mutex, MutexGuard};

use crate::error::{LogError, Result};
use crate::log::{Log, Shared};

/// What a pin is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HolderKind {
    /// A replica that is fed. Beside its place it needs a sync entry before it that its master
    /// still knows, for its next syncup.
    Stream,
    /// A node that restores from this one.
    Restore,
    /// A backup that is being taken.
    Backup,
    /// A subscriber of changes.
    ChangeFeed,
}

/// Who holds a pin, for those who ask why the log is as long as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// What it does.
    pub kind: HolderKind,
    /// Its name.
    pub name: String,
}

impl Holder {
    /// A holder named `name`.
    pub fn new(kind: HolderKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HolderKind::Stream => "stream to",
            HolderKind::Restore => "restore",
            HolderKind::Backup => "backup",
            HolderKind::ChangeFeed => "change feed",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// Which budget ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// [`RetentionConfig::byte_budget`](crate::RetentionConfig::byte_budget).
    Bytes,
    /// [`RetentionConfig::age_budget`](crate::RetentionConfig::age_budget).
    Age,
}

/// A place that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The first entry that the holder still needed.
    pub at: Vlsn,
    /// Everything at or below it is gone.
    pub anchor: Vlsn,
    /// Why.
    pub budget: Budget,
}

/// Called once when a place is lost, by the thread that drops the front, with no lock of the log
/// held. It must not block.
pub(crate) type OnLost = Box<dyn FnOnce(&Lost) + Send>;

/// A place in the log from which on everything is kept. Dropping it gives the place up.
#[derive(Debug)]
pub struct Pin {
    id: u64,
    place: Arc<Place>,
    shared: Weak<Shared>,
    /// How long the place outlives the pin.
    linger: Duration,
}

/// What a pin and the log know of one place.
pub(crate) struct Place {
    pub(crate) holder: Holder,
    from: AtomicI64,
    lost: OnceLock<Lost>,
    on_lost: Mutex<Option<OnLost>>,
    /// The holder is away: when the place goes.
    until: OnceLock<Instant>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("holder", &self.holder)
            .field("from", &self.from())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl Place {
    /// The first entry that is needed.
    pub(crate) fn from(&self) -> Vlsn {
        Vlsn::new(self.from.load(Ordering::SeqCst))
    }

    pub(crate) fn lost(&self) -> Option<Lost> {
        self.lost.get().copied()
    }

    /// Whether the holder is gone and its place kept for its return.
    pub(crate) fn is_away(&self) -> bool {
        self.until.get().is_some()
    }
}

/// All pins of a log.
#[derive(Debug)]
pub(crate) struct Pins {
    table: Mutex<Table>,
    /// Last entry of the segment that the place in the way has to leave; NULL if none is.
    pub(crate) watched: AtomicI64,
    /// Places lost since the log was opened.
    pub(crate) lost: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Table {
    next: u64,
    /// Everything at or below it is gone or going.
    pub(crate) front: Vlsn,
    places: BTreeMap<u64, Arc<Place>>,
}

impl Table {
    /// Places that are held, those of holders who are away among them.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.places.values().filter(|place| place.lost.get().is_none())
    }

    /// All places whose holders have not given them up.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.places.values()
    }

    /// When the first place of somebody away goes.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.held().filter_map(|place| place.until.get().copied()).min()
    }

    /// Gives up the places of those who are away, if `all` or if their time is up.
    fn expire(&mut self, now: Instant, all: bool) -> usize {
        let before = self.places.len();
        self.places.retain(|_, place| place.until.get().is_none_or(|until| !all && *until > now));
        before - self.places.len()
    }

    /// The anchor has passed some places: marks them and returns who is to be told what.
    pub(crate) fn lose(&mut self, anchor: Vlsn, budget: Budget) -> Vec<(Arc<Place>, Lost)> {
        let mut lost = Vec::new();
        for place in self.places.values() {
            let at = place.from();
            if at <= anchor && place.lost.set(Lost { at, anchor, budget }).is_ok() {
                lost.push((Arc::clone(place), Lost { at, anchor, budget }));
            }
        }
        self.places.retain(|_, place| !(place.is_away() && place.lost.get().is_some()));
        lost
    }
}

impl Pins {
    /// Of a log that begins after `anchor`.
    pub(crate) fn new(anchor: Vlsn) -> Self {
        let table = Table { next: 0, front: anchor, places: BTreeMap::new() };
        Self {
            table: Mutex::new(table),
            watched: AtomicI64::new(NOTHING_WATCHED),
            lost: AtomicU64::new(0),
        }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Gives up places of those who were away for too long.
    pub(crate) fn expire(&self) {
        self.table.lock().expire(Instant::now(), false);
    }

    /// Tells holders what they have lost.
    pub(crate) fn tell(&self, lost: Vec<(Arc<Place>, Lost)>) {
        for (place, lost) in lost {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let Lost { at, anchor, budget } = lost;
            tracing::warn!(
                holder = %place.holder, %at, %anchor, ?budget,
                "a place in the log is lost: its budget ran out"
            );
            let on_lost = place.on_lost.lock().take();
            if let Some(on_lost) = on_lost {
                on_lost(&lost);
            }
        }
    }
}

impl Log {
    /// Keeps everything from `from` on for `holder`, within the budgets. `from` may lie beyond the
    /// end. A place that an earlier holder of this kind and name has left behind is taken over: it
    /// goes once this one is held.
    ///
    /// # Errors
    /// `Gap` if `from` is gone or going; `Closed`, `Poisoned`.
    pub fn pin(&self, holder: Holder, from: Vlsn) -> Result<Pin> {
        self.shared.pin(holder, Some(from), None)
    }

    /// As [`Log::pin`]; `on_lost` is called once if the place is lost, by the thread that drops the
    /// front, with no lock of the log held. It must not block.
    ///
    /// # Errors
    /// As [`Log::pin`].
    pub fn pin_with(
        &self,
        holder: Holder,
        from: Vlsn,
        on_lost: impl FnOnce(&Lost) + Send + 'static,
    ) -> Result<Pin> {
        self.shared.pin(holder, Some(from), Some(Box::new(on_lost)))
    }

    /// As [`Log::pin`], from the first entry on that there is.
    ///
    /// # Errors
    /// `Closed`, `Poisoned`.
    pub fn pin_front(&self, holder: Holder) -> Result<Pin> {
        self.shared.pin(holder, None, None)
    }

    /// Gives up the places that are kept for those who are away.
    pub fn forget_absent(&self) {
        if self.shared.pins.table().expire(Instant::now(), true) > 0 {
            self.shared.keeper.request_retention();
        }
    }
}

impl Shared {
    fn pin(
        self: &Arc<Self>,
        holder: Holder,
        from: Option<Vlsn>,
        on_lost: Option<OnLost>,
    ) -> Result<Pin> {
        self.check_running()?;
        let mut table = self.pins.table();
        let first = table.front.next();
        let from = from.unwrap_or(first);
        if from < first {
            return Err(LogError::Gap { requested: from, first });
        }
        let place = Arc::new(Place {
            holder,
            from: AtomicI64::new(from.sequence()),
            lost: OnceLock::new(),
            on_lost: Mutex::new(on_lost),
            until: OnceLock::new(),
        });
        table.places.retain(|_, old| !(old.is_away() && old.holder == place.holder));
        table.next += 1;
        let id = table.next;
        table.places.insert(id, Arc::clone(&place));
        drop(table);
        Ok(Pin { id, place, shared: Arc::downgrade(self), linger: Duration::ZERO })
    }
}

impl Pin {
    /// Who holds it.
    pub fn holder(&self) -> &Holder {
        &self.place.holder
    }

    /// The first entry that it keeps.
    pub fn from(&self) -> Vlsn {
        self.place.from()
    }

    /// Needs nothing below `vlsn` any more. A place never moves back: a lower `vlsn` changes
    /// nothing. Cheap: takes no lock unless the front of the log was waiting for it.
    pub fn advance(&self, vlsn: Vlsn) {
        let before = self.place.from.fetch_max(vlsn.sequence(), Ordering::SeqCst);
        if before >= vlsn.sequence() {
            return;
        }
        let Some(shared) = self.shared.upgrade() else { return };
        let watched = shared.pins.watched.load(Ordering::SeqCst);
        // Between the two lies the end of the segment that the front waits to drop.
        if before <= watched && vlsn.sequence() > watched {
            shared.keeper.request_retention();
        }
    }

    /// What became of the place, once it is lost: reads below the new front give `Gap`.
    pub fn lost(&self) -> Option<Lost> {
        self.place.lost()
    }

    /// # Errors
    /// `LostPlace` once the place is lost.
    pub fn check(&self) -> Result<()> {
        match self.lost() {
            None => Ok(()),
            Some(Lost { at, anchor, .. }) => Err(LogError::LostPlace {
                holder: self.place.holder.to_string(),
                at,
                first: anchor.next(),
            }),
        }
    }

    /// Has the place outlive the pin by `grace`, within the budgets, for a holder that may return.
    /// Nobody is told if it is lost then.
    pub fn set_grace(&mut self, grace: Duration) {
        self.linger = grace;
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut table = shared.pins.table();
        let on_lost = self.place.on_lost.lock().take();
        // A holder that is back already has a place of its own.
        let is_back = table
            .held()
            .any(|other| !Arc::ptr_eq(other, &self.place) && other.holder == self.place.holder);
        if !self.linger.is_zero() && self.place.lost().is_none() && !is_back {
            let until = Instant::now() + self.linger.min(LONGEST_GRACE);
            let _ = self.place.until.set(until); // once, in the only drop
        } else {
            table.places.remove(&self.id);
        }
        drop(table);
        drop(on_lost); // whatever it holds may have a drop of its own
        shared.keeper.request_retention();
    }
}

const LONGEST_GRACE: Duration = Duration::from_hours(24 * 365);

/// The number a pin that is in nobody's way is compared with.
pub(crate) const NOTHING_WATCHED: i64 = NULL_VLSN.sequence();
