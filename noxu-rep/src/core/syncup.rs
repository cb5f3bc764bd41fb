//! Syncup: the search for the newest sync entry that two logs share, both halves, without input
//! or output.
//!
//! Fingerprints are chained, so "both logs agree at v" holds up to one VLSN and nowhere above it.
//! The search is for that border, among the replica's sync entries:
//!
//! 1. Ask for the newest sync entry. Normally the feeder holds the same one: one round trip.
//! 2. After a disagreement, probe many entries per round trip. The first probe is spaced
//!    logarithmically from the end, because short divergences are the likely ones, and carries the
//!    term table, from which the feeder guesses the border and adds its entries there as hints.
//!    An interval found at distance d is about d/250 wide, a second probe splits it evenly in up
//!    to 4,096, and a third tests every sync entry that is left: 4 round trips in all for 10^9
//!    entries.
//!
//! Terms and hints only speed the search up. What it answers rests on entries compared by VLSN,
//! LSN and fingerprint alone.
//!
//! # Invariants
//! - `agreed < disagreed`, else the fingerprints are not monotone and a log is corrupt.
//! - `newest < bound`: the matchpoint is `newest` or lies between the two.
//! - Every probe raises the one or lowers the other.
//! # States of the replica
//! Asked (candidate, first VLSN, last VLSN) or Probing -> Done, or Refused -> Done
//! # Not here: sending and waiting (stream/syncup_protocol.rs), rolling back (core/rollback.rs).
//! # See: docs/protocol.md#syncup

use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};
use crate::wire::syncup::{MAX_SAMPLES, MAX_TERMS, SyncupMsg, Verdict};

/// One entry of a log as the syncup sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlsnEntry {
    /// Where the entry begins.
    pub lsn: u64,
    /// Hash of the log through it.
    pub fingerprint: u64,
    /// Whether it may be a matchpoint.
    pub is_sync: bool,
}

impl VlsnEntry {
    /// Whether both describe the same entry, given that they have the same VLSN.
    pub const fn agrees_with(self, other: Self) -> bool {
        self.lsn == other.lsn && self.fingerprint == other.fingerprint
    }
}

/// A log as the syncup sees it. It must not lose entries while a search runs; a feeder's may grow.
///
/// A log whose front was dropped answers for its anchor, the position before its first kept entry,
/// as a sync entry.
pub trait SyncupView {
    /// The newest sync entry, the anchor if there is none; NULL for a fresh log.
    fn last_sync(&self) -> Vlsn;

    /// The newest end of a transaction; NULL if there is none.
    fn last_txn_end(&self) -> Vlsn;

    /// The first entry held, the anchor aside.
    fn first_vlsn(&self) -> Vlsn;

    /// The entry with this VLSN, or `None` if the log does not hold it.
    fn entry(&self, vlsn: Vlsn) -> Option<VlsnEntry>;

    /// The last entry of any kind.
    fn last_vlsn(&self) -> Vlsn {
        self.last_sync()
    }

    /// The newest sync entry at or before `vlsn`. An indexed log overrides this scan.
    fn sync_at_or_before(&self, vlsn: Vlsn) -> Option<Vlsn> {
        let newest = vlsn.min(self.last_vlsn().max(self.last_sync())).sequence();
        let oldest = (self.first_vlsn().sequence() - 1).max(1);
        (oldest..=newest)
            .rev()
            .map(Vlsn::new)
            .find(|vlsn| self.entry(*vlsn).is_some_and(|entry| entry.is_sync))
    }

    /// The masterships that wrote the log: term and its first VLSN, ascending.
    fn term_table(&self) -> Vec<(Term, Vlsn)> {
        Vec::new()
    }

    /// Whether every answer so far was the truth. A view over files fails here when one of them
    /// could not be read; the syncup then ends without a decision.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// The newest sync entry that both logs hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matchpoint {
    /// It exists. NULL with LSN 0 is the beginning of the log, shared with a fresh replica.
    Found {
        /// Its VLSN.
        vlsn: Vlsn,
        /// Where it begins.
        lsn: u64,
    },
    /// There is none: the replica needs a restore.
    None,
}

/// The matchpoint of two logs at hand: the replica's sync entries one by one, newest first, until
/// the feeder holds the same one. Relies on nothing but the entries.
pub fn find_matchpoint(replica: &dyn SyncupView, feeder: &dyn SyncupView) -> Matchpoint {
    if replica.last_sync().is_null() {
        return match feeder.entry(NULL_VLSN.next()) {
            Some(_) => Matchpoint::Found { vlsn: NULL_VLSN, lsn: 0 },
            None => Matchpoint::None,
        };
    }
    let mut candidate = replica.sync_at_or_before(replica.last_sync());
    while let Some(vlsn) = candidate {
        if let (Some(ours), Some(theirs)) = (replica.entry(vlsn), feeder.entry(vlsn))
            && ours.agrees_with(theirs)
        {
            return Matchpoint::Found { vlsn, lsn: ours.lsn };
        }
        candidate = sync_before(replica, vlsn);
    }
    Matchpoint::None
}

/// How a syncup ended, for the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncupOutcome {
    /// The logs share a sync entry.
    Matchpoint {
        /// The newest one; NULL for a fresh replica.
        matchpoint_vlsn: Vlsn,
        /// Where it begins; 0 for a fresh replica.
        matchpoint_lsn: u64,
        /// First VLSN the feeder will send. What the replica holds from here on is rolled back.
        start_vlsn: Vlsn,
    },
    /// They share none that is left on both: the replica must be restored.
    NeedsRestore {
        /// The last VLSN that was tried.
        failed_vlsn: Vlsn,
    },
}

/// What a search cost and learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncupStats {
    /// Questions that were answered.
    pub round_trips: u32,
    /// How many of them were probes.
    pub probes: u32,
    /// Entries compared in probes.
    pub samples: u64,
    /// The highest VLSN, sync entry or not, at which the logs were seen to agree; NULL for none.
    pub agreed_through: Vlsn,
}

/// What a [`ReplicaSyncup`] wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaOutput {
    /// Send this and hand the answer to [`ReplicaSyncup::handle_message`].
    Ask(SyncupMsg),
    /// Send this; the conversation is over.
    Start(SyncupMsg, SyncupOutcome),
    /// The conversation is over.
    Done(SyncupOutcome),
}

/// The replica's half: asks, compares, decides.
pub struct ReplicaSyncup<'v> {
    view: &'v dyn SyncupView,
    /// Whether the feeder understands [`SyncupMsg::Probe`], as far as is known.
    probes: bool,
    state: ReplicaState,
    search: Search,
    stats: SyncupStats,
}

enum ReplicaState {
    /// Asked a feeder for VLSN 1 on behalf of an empty log.
    AskedFirst,
    /// Asked for one candidate.
    AskedCandidate { vlsn: Vlsn, first_exchange: bool },
    /// `last_sync` agrees; asked for the last entry, to keep what follows `last_sync`.
    AskedLast { matchpoint: Vlsn, lsn: u64, last: Vlsn },
    /// Sent a probe.
    Probing(Probe),
    /// Told the feeder that there is no matchpoint.
    Refused { failed_vlsn: Vlsn },
    /// Over.
    Done,
}

/// What the search knows.
struct Search {
    /// Highest agreement, of any entry.
    agreed: Option<Vlsn>,
    /// Lowest disagreement, of any entry.
    disagreed: Option<Vlsn>,
    /// Newest sync entry known to agree.
    newest: Option<Vlsn>,
    /// No sync entry lies in `(newest, quiet_through]`.
    quiet_through: Vlsn,
    /// No sync entry at or above this agrees.
    bound: Vlsn,
    /// The feeder holds nothing below this.
    floor: Vlsn,
    /// A probe taught nothing, because the feeder held none of its samples: test one by one.
    exhaustive: bool,
}

struct Probe {
    /// Sync entries asked about, descending, each with the position it is the newest sync entry
    /// for.
    samples: Vec<(Vlsn, Vlsn)>,
    /// Whether no sync entry lies between two samples.
    complete: bool,
}

/// Probes after which a search gives up on its feeder. An honest one takes 3; one that holds only
/// scattered entries, which no log does, takes one per 4,096.
const MAX_PROBES: u32 = 4096;

/// Width of an interval that one even probe can split into pieces that one more can test whole.
const TWO_PROBES: u64 = (MAX_SAMPLES * MAX_SAMPLES / 2) as u64;

impl<'v> ReplicaSyncup<'v> {
    /// A search over `view`; `probes` says whether the feeder may be asked with
    /// [`SyncupMsg::Probe`]. Returns the first question as well.
    pub fn new(view: &'v dyn SyncupView, probes: bool) -> (Self, ReplicaOutput) {
        let last_sync = view.last_sync();
        let (vlsn, state) = if last_sync.is_null() {
            (NULL_VLSN.next(), ReplicaState::AskedFirst)
        } else {
            (last_sync, ReplicaState::AskedCandidate { vlsn: last_sync, first_exchange: true })
        };
        let search = Search {
            agreed: None,
            disagreed: None,
            newest: None,
            quiet_through: NULL_VLSN,
            bound: last_sync,
            floor: NULL_VLSN,
            exhaustive: false,
        };
        let syncup = Self { view, probes, state, search, stats: SyncupStats::default() };
        (syncup, ReplicaOutput::Ask(SyncupMsg::EntryRequest { vlsn }))
    }

    /// What the search cost so far.
    pub fn stats(&self) -> SyncupStats {
        let agreed_through = self.search.agreed.unwrap_or(NULL_VLSN);
        SyncupStats { agreed_through, ..self.stats }
    }

    /// Takes the feeder's answer; says what comes next. After an error the conversation is over.
    pub fn handle_message(&mut self, message: SyncupMsg) -> Result<ReplicaOutput> {
        let state = std::mem::replace(&mut self.state, ReplicaState::Done);
        if matches!(state, ReplicaState::Refused { .. } | ReplicaState::Done) {
            return Self::after_refusal(&state, &message);
        }
        self.stats.round_trips += 1;
        let next = match state {
            ReplicaState::AskedFirst => self.first_vlsn_answered(&message),
            ReplicaState::AskedCandidate { vlsn, first_exchange } => {
                self.candidate_answered(vlsn, first_exchange, &message)
            }
            ReplicaState::AskedLast { matchpoint, lsn, last } => {
                self.last_vlsn_answered(matchpoint, lsn, last, &message)
            }
            ReplicaState::Probing(probe) => self.probe_answered(&probe, message),
            ReplicaState::Refused { .. } | ReplicaState::Done => unreachable!("returned above"),
        }?;
        self.check_invariants();
        Ok(next)
    }

    fn after_refusal(state: &ReplicaState, message: &SyncupMsg) -> Result<ReplicaOutput> {
        match (state, message) {
            (ReplicaState::Refused { failed_vlsn }, SyncupMsg::RestoreResponse) => {
                Ok(ReplicaOutput::Done(SyncupOutcome::NeedsRestore { failed_vlsn: *failed_vlsn }))
            }
            (ReplicaState::Refused { .. }, other) => Err(unexpected("RestoreResponse", other)),
            (_, other) => Err(unexpected("nothing, the syncup is over", other)),
        }
    }

    fn first_vlsn_answered(&mut self, message: &SyncupMsg) -> Result<ReplicaOutput> {
        let first = NULL_VLSN.next();
        match message {
            SyncupMsg::Entry { vlsn, .. } if *vlsn == first => Ok(self.start(NULL_VLSN, 0, first)),
            SyncupMsg::EntryNotFound | SyncupMsg::AlternateMatchpoint { .. } => {
                Ok(self.refuse(first))
            }
            other => Err(unexpected("Entry 1 or EntryNotFound", other)),
        }
    }

    fn candidate_answered(
        &mut self,
        candidate: Vlsn,
        first_exchange: bool,
        message: &SyncupMsg,
    ) -> Result<ReplicaOutput> {
        match message {
            SyncupMsg::Entry { vlsn, lsn, fingerprint, .. } if *vlsn == candidate => {
                self.compared(candidate, *lsn, *fingerprint)
            }
            SyncupMsg::AlternateMatchpoint { vlsn, lsn, fingerprint, .. } if first_exchange => {
                if *vlsn >= candidate || *vlsn < self.oldest() {
                    return Ok(self.refuse(candidate));
                }
                self.compared(*vlsn, *lsn, *fingerprint)
            }
            // By position: it is below the feeder's first, and so is every earlier candidate.
            SyncupMsg::EntryNotFound if first_exchange || !self.probes => {
                Ok(self.refuse(candidate))
            }
            SyncupMsg::EntryNotFound => {
                self.search.bound = candidate;
                self.narrow()
            }
            other if first_exchange => {
                Err(unexpected("Entry as asked, EntryNotFound or AlternateMatchpoint", other))
            }
            other => Err(unexpected("Entry as asked or EntryNotFound", other)),
        }
    }

    /// Goes on from one entry of the feeder.
    fn compared(&mut self, vlsn: Vlsn, lsn: u64, fingerprint: u64) -> Result<ReplicaOutput> {
        let Some(ours) = self.view.entry(vlsn) else {
            // A hole of ours says nothing about the logs: ask for the next sync entry below it.
            self.search.bound = vlsn;
            return Ok(self.ask_below(vlsn));
        };
        let blind = mutant::is_on(Mutant::PreviousNotChecked);
        if !blind && (ours.lsn != lsn || ours.fingerprint != fingerprint) {
            self.search.disagree(vlsn)?;
            return self.narrow();
        }
        self.search.agree(vlsn)?;
        if !ours.is_sync {
            self.search.bound = vlsn;
            return Ok(self.ask_below(vlsn));
        }
        Ok(self.found(vlsn, ours.lsn))
    }

    fn last_vlsn_answered(
        &mut self,
        matchpoint: Vlsn,
        lsn: u64,
        last: Vlsn,
        message: &SyncupMsg,
    ) -> Result<ReplicaOutput> {
        match message {
            SyncupMsg::Entry { vlsn, lsn: theirs, fingerprint, .. } if *vlsn == last => {
                let agrees = self
                    .view
                    .entry(last)
                    .is_some_and(|ours| ours.lsn == *theirs && ours.fingerprint == *fingerprint);
                if agrees || mutant::is_on(Mutant::PreviousNotChecked) {
                    self.search.agree(last)?;
                    Ok(self.start(matchpoint, lsn, last.next()))
                } else {
                    Ok(self.start(matchpoint, lsn, matchpoint.next()))
                }
            }
            SyncupMsg::EntryNotFound => Ok(self.start(matchpoint, lsn, matchpoint.next())),
            other => Err(unexpected("Entry as asked or EntryNotFound", other)),
        }
    }

    fn probe_answered(&mut self, probe: &Probe, message: SyncupMsg) -> Result<ReplicaOutput> {
        let (first, last, verdicts, hints) = match message {
            SyncupMsg::ProbeResult { first, last, verdicts, hints } => {
                (first, last, verdicts, hints)
            }
            SyncupMsg::EntryNotFound => {
                // A feeder that answers so has not understood: it speaks opcodes 1 to 7 only.
                self.probes = false;
                return self.narrow();
            }
            other => return Err(unexpected("ProbeResult", &other)),
        };
        if verdicts.len() != probe.samples.len() {
            return Err(RepError::protocol(
                "",
                format!("ProbeResult with {} verdicts", probe.samples.len()),
                format!("{} verdicts", verdicts.len()),
            ));
        }
        let before = (self.search.newest, self.search.bound);
        let search = &mut self.search;
        if !first.is_null() {
            search.floor = search.floor.max(first.prev());
        }
        for (&(vlsn, quiet_through), verdict) in probe.samples.iter().zip(&verdicts) {
            match verdict {
                Verdict::Agree => {
                    search.agree(vlsn)?;
                    search.found_sync(vlsn, quiet_through);
                }
                Verdict::Disagree => search.disagree(vlsn)?,
                Verdict::Missing => {}
            }
        }
        for &(vlsn, lsn, fingerprint) in &hints {
            match self.view.entry(vlsn) {
                Some(ours) if ours.lsn == lsn && ours.fingerprint == fingerprint => {
                    search.agree(vlsn)?;
                    if ours.is_sync {
                        search.found_sync(vlsn, vlsn);
                    }
                }
                Some(_) => search.disagree(vlsn)?,
                None => {}
            }
        }
        // The feeder holds nothing beyond its end, hence nothing that could agree there.
        search.lower_bound_to(last.max(search.agreed.unwrap_or(NULL_VLSN)).next());
        if probe.complete {
            let tested = probe.samples.iter().map(|(vlsn, _)| *vlsn);
            let above = tested.filter(|vlsn| Some(*vlsn) > search.newest).min();
            if let Some(above) = above {
                search.lower_bound_to(above);
            }
        }
        search.exhaustive |= before == (search.newest, search.bound);
        self.narrow()
    }

    /// Decides between being done and asking on.
    fn narrow(&mut self) -> Result<ReplicaOutput> {
        let candidate = sync_before(self.view, self.search.bound);
        match candidate {
            Some(vlsn) if Some(vlsn) == self.search.newest => match self.view.entry(vlsn) {
                Some(ours) => Ok(self.found(vlsn, ours.lsn)),
                None => Ok(self.refuse(vlsn)),
            },
            Some(vlsn) if vlsn >= self.search.floor.max(self.oldest()) => {
                if self.probes {
                    self.probe()
                } else {
                    Ok(self.ask(vlsn))
                }
            }
            Some(_) | None => Ok(self.refuse(self.search.bound)),
        }
    }

    fn probe(&mut self) -> Result<ReplicaOutput> {
        let Probe { samples, complete } = self.next_samples();
        let identities: Vec<_> = samples
            .iter()
            .filter_map(|(vlsn, _)| {
                self.view.entry(*vlsn).map(|entry| (*vlsn, entry.lsn, entry.fingerprint))
            })
            .collect();
        self.view.check()?;
        assert_eq!(identities.len(), samples.len(), "a view holds its own sync entries");
        let mut terms = Vec::new();
        if self.stats.probes == 0 {
            terms = self.view.term_table();
            terms.drain(..terms.len().saturating_sub(MAX_TERMS));
        }
        self.stats.probes += 1;
        if self.stats.probes > MAX_PROBES {
            return Err(RepError::protocol(
                "",
                "answers that narrow the search",
                format!("none after {MAX_PROBES} probes"),
            ));
        }
        self.stats.samples += identities.len() as u64;
        self.state = ReplicaState::Probing(Probe { samples, complete });
        Ok(ReplicaOutput::Ask(SyncupMsg::Probe { terms, samples: identities }))
    }

    /// The sync entries to ask about next, never none: the newest below the bound is among them.
    fn next_samples(&self) -> Probe {
        let search = &self.search;
        let below = search.quiet_through.sequence().max(self.oldest().sequence() - 1);
        let below = below.max(search.floor.sequence() - 1).max(0);
        let width = (search.bound.sequence() - 1 - below).max(1) as u64;
        if search.exhaustive || width <= MAX_SAMPLES as u64 {
            let mut samples = Vec::new();
            let mut next = sync_before(self.view, search.bound);
            while let Some(vlsn) = next
                && vlsn.sequence() > below
                && samples.len() < MAX_SAMPLES
            {
                samples.push((vlsn, vlsn));
                next = sync_before(self.view, vlsn);
            }
            return Probe { samples, complete: true };
        }
        let distances =
            if self.stats.probes == 0 { growing_distances(width) } else { even_distances(width) };
        let mut samples: Vec<(Vlsn, Vlsn)> = Vec::with_capacity(distances.len());
        for distance in distances {
            let position = Vlsn::new(search.bound.sequence() - distance as i64);
            let Some(vlsn) = self.view.sync_at_or_before(position) else { break };
            if vlsn.sequence() <= below {
                break;
            }
            if samples.last().is_none_or(|(newer, _)| vlsn < *newer) {
                samples.push((vlsn, position));
            }
        }
        Probe { samples, complete: false }
    }

    /// The oldest VLSN that the view may hold, its anchor included.
    fn oldest(&self) -> Vlsn {
        let first = self.view.first_vlsn();
        if first > NULL_VLSN.next() { first.prev() } else { NULL_VLSN.next() }
    }

    fn ask(&mut self, vlsn: Vlsn) -> ReplicaOutput {
        self.state = ReplicaState::AskedCandidate { vlsn, first_exchange: false };
        ReplicaOutput::Ask(SyncupMsg::EntryRequest { vlsn })
    }

    fn ask_below(&mut self, vlsn: Vlsn) -> ReplicaOutput {
        match sync_before(self.view, vlsn) {
            Some(candidate) => self.ask(candidate),
            None => self.refuse(vlsn),
        }
    }

    /// `vlsn` is the matchpoint.
    fn found(&mut self, vlsn: Vlsn, lsn: u64) -> ReplicaOutput {
        let last = self.view.last_vlsn();
        if vlsn == self.view.last_sync() && last > vlsn {
            self.state = ReplicaState::AskedLast { matchpoint: vlsn, lsn, last };
            return ReplicaOutput::Ask(SyncupMsg::EntryRequest { vlsn: last });
        }
        self.start(vlsn, lsn, vlsn.next())
    }

    fn start(&mut self, vlsn: Vlsn, lsn: u64, start_vlsn: Vlsn) -> ReplicaOutput {
        let outcome =
            SyncupOutcome::Matchpoint { matchpoint_vlsn: vlsn, matchpoint_lsn: lsn, start_vlsn };
        self.state = ReplicaState::Done;
        ReplicaOutput::Start(SyncupMsg::StartStream { start_vlsn }, outcome)
    }

    fn refuse(&mut self, failed_vlsn: Vlsn) -> ReplicaOutput {
        self.state = ReplicaState::Refused { failed_vlsn };
        ReplicaOutput::Ask(SyncupMsg::RestoreRequest { failed_vlsn })
    }

    fn check_invariants(&self) {
        let search = &self.search;
        if let (Some(agreed), Some(disagreed)) = (search.agreed, search.disagreed) {
            assert!(agreed < disagreed, "agreed at {agreed}, disagreed at {disagreed}");
        }
    }
}

impl Search {
    fn agree(&mut self, vlsn: Vlsn) -> Result<()> {
        self.agreed = self.agreed.max(Some(vlsn));
        self.monotone()
    }

    fn disagree(&mut self, vlsn: Vlsn) -> Result<()> {
        self.disagreed = Some(self.disagreed.map_or(vlsn, |lowest| lowest.min(vlsn)));
        self.lower_bound_to(vlsn);
        self.monotone()
    }

    fn monotone(&self) -> Result<()> {
        match (self.agreed, self.disagreed) {
            (Some(agree), Some(disagree)) if agree >= disagree => {
                Err(RepError::NonMonotone { disagree, agree })
            }
            _ => Ok(()),
        }
    }

    /// The sync entry `vlsn` agrees, and no other sync entry lies in `(vlsn, quiet_through]`.
    fn found_sync(&mut self, vlsn: Vlsn, quiet_through: Vlsn) {
        if Some(vlsn) >= self.newest {
            self.newest = Some(vlsn);
            self.quiet_through = self.quiet_through.max(quiet_through);
        }
    }

    fn lower_bound_to(&mut self, vlsn: Vlsn) {
        self.bound = self.bound.min(vlsn);
    }
}

/// The newest sync entry before `vlsn`.
fn sync_before(view: &dyn SyncupView, vlsn: Vlsn) -> Option<Vlsn> {
    if vlsn.is_null() { None } else { view.sync_at_or_before(vlsn.prev()) }
}

/// Distances from 1 to at most `width` that grow by a constant factor once they are large, as few
/// as let two more probes end the search.
fn growing_distances(width: u64) -> Vec<u64> {
    let mut budget = 512;
    loop {
        // The largest divisor that keeps to the budget: the count grows with it.
        let (mut fits, mut over) = (1, budget as u64);
        while over - fits > 1 {
            let middle = u64::midpoint(fits, over);
            if growing(width, middle).take(budget + 1).count() <= budget {
                fits = middle;
            } else {
                over = middle;
            }
        }
        if width / fits <= TWO_PROBES || budget == MAX_SAMPLES {
            return growing(width, fits).take(budget).collect();
        }
        budget *= 2;
    }
}

/// 1, 2, 3 .. `divisor`, then growing by a `divisor`-th each.
fn growing(width: u64, divisor: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1), move |distance| Some(distance + (distance / divisor).max(1)))
        .take_while(move |distance| *distance <= width)
}

/// Distances from 1 to at most `width`, evenly spaced, as few as let one more probe end the
/// search.
fn even_distances(width: u64) -> Vec<u64> {
    let count = width.div_ceil(MAX_SAMPLES as u64 / 2).clamp(512, MAX_SAMPLES as u64);
    let step = width.div_ceil(count).max(1);
    (0..count).map(|n| 1 + n * step).take_while(|distance| *distance <= width).collect()
}

/// What a [`FeederSyncup`] wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeederOutput {
    /// Send this and hand the next message to [`FeederSyncup::handle_message`].
    Answer(SyncupMsg),
    /// The conversation is over: stream from this VLSN.
    Start(Vlsn),
    /// Send this; the conversation is over: the replica goes to restore.
    Restore(SyncupMsg),
}

/// The feeder's half: answers.
pub struct FeederSyncup<'v> {
    view: &'v dyn SyncupView,
    exchanges: u64,
}

impl<'v> FeederSyncup<'v> {
    /// Answers from `view`.
    pub const fn new(view: &'v dyn SyncupView) -> Self {
        Self { view, exchanges: 0 }
    }

    /// Takes a message of the replica; says what comes next. After an error the conversation is
    /// over.
    pub fn handle_message(&mut self, message: SyncupMsg) -> Result<FeederOutput> {
        let first_exchange = self.exchanges == 0;
        self.exchanges += 1;
        match message {
            SyncupMsg::EntryRequest { vlsn } => {
                Ok(FeederOutput::Answer(self.answer_for(vlsn, first_exchange)))
            }
            SyncupMsg::Probe { terms, samples } => {
                Ok(FeederOutput::Answer(self.probe_result(&terms, &samples)))
            }
            SyncupMsg::StartStream { start_vlsn } => {
                let (first, last) = (self.view.first_vlsn(), self.view.last_vlsn());
                let lawful = start_vlsn > NULL_VLSN && start_vlsn >= first;
                if lawful && start_vlsn.prev() <= last {
                    Ok(FeederOutput::Start(start_vlsn))
                } else {
                    Err(RepError::protocol(
                        "",
                        format!("StartStream from VLSN {first} to the one after {last}"),
                        format!("StartStream {start_vlsn}"),
                    ))
                }
            }
            SyncupMsg::RestoreRequest { .. } => {
                Ok(FeederOutput::Restore(SyncupMsg::RestoreResponse))
            }
            SyncupMsg::Entry { .. }
            | SyncupMsg::EntryNotFound
            | SyncupMsg::AlternateMatchpoint { .. }
            | SyncupMsg::RestoreResponse
            | SyncupMsg::ProbeResult { .. } => Err(unexpected("a replica's message", &message)),
        }
    }

    fn answer_for(&self, vlsn: Vlsn, first_exchange: bool) -> SyncupMsg {
        let view = self.view;
        if !vlsn.is_null()
            && let Some(entry) = view.entry(vlsn)
        {
            let VlsnEntry { lsn, fingerprint, is_sync } = entry;
            return SyncupMsg::Entry { vlsn, lsn, fingerprint, is_sync };
        }
        if !first_exchange || vlsn < view.first_vlsn() {
            return SyncupMsg::EntryNotFound;
        }
        // Beyond the end; or in a hole, which no log has but a plain view may.
        let alternate = if vlsn > view.last_vlsn() {
            Some(view.last_sync()).filter(|vlsn| !vlsn.is_null())
        } else {
            view.sync_at_or_before(vlsn)
        };
        match alternate.and_then(|vlsn| Some((vlsn, view.entry(vlsn)?))) {
            Some((vlsn, VlsnEntry { lsn, fingerprint, is_sync })) => {
                SyncupMsg::AlternateMatchpoint { vlsn, lsn, fingerprint, is_sync }
            }
            None => SyncupMsg::EntryNotFound,
        }
    }

    fn probe_result(&self, terms: &[(Term, Vlsn)], samples: &[(Vlsn, u64, u64)]) -> SyncupMsg {
        let view = self.view;
        let held = |vlsn: Vlsn| if vlsn.is_null() { None } else { view.entry(vlsn) };
        let verdicts = samples
            .iter()
            .map(|&(vlsn, lsn, fingerprint)| match held(vlsn) {
                None => Verdict::Missing,
                Some(ours) if ours.lsn == lsn && ours.fingerprint == fingerprint => Verdict::Agree,
                Some(_) => Verdict::Disagree,
            })
            .collect();
        let mut hints = Vec::new();
        if let Some(parting) = last_common(&view.term_table(), view.last_vlsn(), terms) {
            let newest_sync = view.sync_at_or_before(parting);
            for vlsn in newest_sync.into_iter().chain([parting, parting.next()]) {
                if let Some(entry) = held(vlsn) {
                    hints.push((vlsn, entry.lsn, entry.fingerprint));
                }
            }
        }
        SyncupMsg::ProbeResult { first: view.first_vlsn(), last: view.last_vlsn(), verdicts, hints }
    }
}

/// Where two logs part if each term had one master: the lower of their ends of the newest term
/// that both know. A guess, to be verified.
fn last_common(ours: &[(Term, Vlsn)], ours_last: Vlsn, theirs: &[(Term, Vlsn)]) -> Option<Vlsn> {
    // A term ends before the next one begins; NULL, which only a broken peer sends, ends nothing.
    let end = |table: &[(Term, Vlsn)], at: usize| {
        table.get(at + 1).map(|(_, next)| *next).filter(|next| !next.is_null()).map(Vlsn::prev)
    };
    theirs.iter().enumerate().rev().find_map(|(theirs_at, (term, _))| {
        let ours_at = ours.binary_search_by_key(term, |(term, _)| *term).ok()?;
        let ours_end = end(ours, ours_at).unwrap_or(ours_last);
        let parting = end(theirs, theirs_at).map_or(ours_end, |theirs| theirs.min(ours_end));
        Some(parting).filter(|vlsn| !vlsn.is_null())
    })
}

fn unexpected(expected: &str, found: &SyncupMsg) -> RepError {
    let found = match found {
        SyncupMsg::Entry { vlsn, .. }
        | SyncupMsg::AlternateMatchpoint { vlsn, .. }
        | SyncupMsg::EntryRequest { vlsn } => format!("{} {vlsn}", found.name()),
        other => other.name().to_owned(),
    };
    RepError::protocol("", expected, found)
}

#[cfg(test)]
pub(crate) mod tests;
