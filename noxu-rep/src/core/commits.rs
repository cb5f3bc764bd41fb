//! Commits: those a master has written and not yet reported, and what is durable for the group.
//!
//! Registration order is VLSN order: the driver holds one lock around append and registration.
//! Each policy class is one ordered queue, so a progress event computes one bound per class and
//! releases exactly the commits at or below it, at a cost proportional to how many those are.
//!
//! # Invariants          (each is asserted in `check_invariants`)
//! - `dtvlsn <= last`, and DTVLSN is the largest sync entry of the current term that a replication
//!   quorum holds durably; it never moves back. Entries of older terms never move it (C1).
//! - `visible` is below every pending commit and never moves back.
//! - The front of every queue is above its class's bound: what is satisfied is released.
//! - Deadlines within a queue ascend, because the time to wait is the same for all.
//! - `unreplicated_bytes <= total bytes registered`.
//!
//! # Not here: reading the clock, waking anybody, applying (driver/master.rs).
//! # See: CONSENSUS.md "Append, ack, DTVLSN", C1 to C4.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use noxu_util::{Incarnation, NULL_VLSN, Name, Vlsn};

use crate::core::durability::{AckPolicy, Class};
use crate::core::quorum::{Acked, Quorum, SessionId};
use crate::mutant::{self, Mutant};

/// Time since the node started.
pub type Now = Duration;

/// How a commit that somebody waited for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its policy is met.
    Satisfied,
    /// Its time ran out; it may yet become durable.
    TimedOut,
    /// This node stopped being able to tell.
    Closed,
}

/// Handle of one registered waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterId(Vlsn, u64);

/// What an event changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// DTVLSN.
    pub dtvlsn: bool,
    /// The visible position.
    pub visible: bool,
    /// What some class has met.
    pub bounds: bool,
}

/// Whether a commit may be written, as far as that can be told in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admissible {
    /// It may.
    Yes,
    /// Too few voters are connected, for the term to begin or for the policy.
    Replicas {
        /// How many must be connected.
        needed: usize,
        /// How many are.
        connected: usize,
    },
    /// Too much is not replicated yet.
    Room,
    /// This VLSN, the start of the term, has to be applied first.
    Applied(Vlsn),
    /// No more writes are taken.
    Closed,
}

/// The commits of one mastership. `W` is whatever the driver wakes.
#[derive(Debug)]
pub struct Commits<W> {
    quorum: Quorum,
    classes: Vec<Queue<W>>,
    /// Runs of consecutive sync entries of the current term, those above DTVLSN.
    sync_runs: VecDeque<(Vlsn, Vlsn)>,
    dtvlsn: Vlsn,
    visible: Vlsn,
    last: Vlsn,
    /// First entry of this term.
    term_entry: Vlsn,
    bytes: UnreplicatedBytes,
    released: Vec<(W, Outcome)>,
    next_waiter: u64,
    writes_stopped: bool,
    closed: bool,
}

#[derive(Debug)]
struct Queue<W> {
    class: Class,
    /// Everything at or below it has met the policy.
    bound: Vlsn,
    pending: VecDeque<(Vlsn, Now)>,
    waiters: BTreeMap<WaiterId, W>,
}

impl<W> Commits<W> {
    /// At the start of a mastership: `term_entry` is appended and not durable anywhere yet, and
    /// `dtvlsn` is what is known from before.
    pub fn new(quorum: Quorum, term_entry: Vlsn, dtvlsn: Vlsn) -> Self {
        assert!(dtvlsn < term_entry, "DTVLSN {dtvlsn} is at or above term entry {term_entry}");
        let classes = Class::all()
            .map(|class| Queue {
                class,
                bound: NULL_VLSN,
                pending: VecDeque::new(),
                waiters: BTreeMap::new(),
            })
            .collect();
        Self {
            quorum,
            classes,
            sync_runs: VecDeque::from([(term_entry, term_entry)]),
            dtvlsn,
            visible: dtvlsn,
            last: term_entry,
            term_entry,
            bytes: UnreplicatedBytes::default(),
            released: Vec::new(),
            next_waiter: 0,
            writes_stopped: false,
            closed: false,
        }
    }

    /// Highest VLSN known durable on a replication quorum.
    pub fn dtvlsn(&self) -> Vlsn {
        self.dtvlsn
    }

    /// The last entry registered.
    pub fn last(&self) -> Vlsn {
        self.last
    }

    /// Everything through it may be applied: each commit there has been reported, one way or the
    /// other, and so has the start of the term.
    pub fn visible(&self) -> Vlsn {
        self.visible
    }

    /// Whether the first entry of this term is durable on a quorum, so that writes may be served.
    pub fn established(&self) -> bool {
        self.dtvlsn >= self.term_entry
    }

    /// The voters' positions.
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// Everything of `class` at or below this has met its policy.
    pub fn bound(&self, class: Class) -> Vlsn {
        self.classes[class.index()].bound
    }

    /// Whether enough voters are connected to satisfy `class` at all.
    pub fn can_satisfy(&self, class: Class) -> bool {
        self.quorum.connected() >= self.acks_needed(class)
    }

    /// Acknowledgements that `class` needs, the master's own not counted.
    pub fn acks_needed(&self, class: Class) -> usize {
        match class.acks() {
            AckPolicy::None => 0,
            AckPolicy::SimpleMajority => self.quorum.replication_quorum() - 1,
            AckPolicy::All => self.quorum.other_voters(),
        }
    }

    /// Whether a commit of `class` may be written while this node has applied everything through
    /// `applied`, and if not, what is missing. Only commits that ask for no acknowledgement are
    /// held back by `unreplicated_limit`, in bytes: acknowledgements slow the others down.
    pub fn admission(&self, class: Class, applied: Vlsn, unreplicated_limit: u64) -> Admissible {
        if self.writes_stopped {
            return Admissible::Closed;
        }
        if self.established() && applied < self.term_entry {
            return Admissible::Applied(self.term_entry);
        }
        if !self.established() || !self.can_satisfy(class) {
            let (needed, connected) = self.replicas_needed(class);
            return Admissible::Replicas { needed, connected };
        }
        if class.acks() == AckPolicy::None && self.unreplicated_bytes() >= unreplicated_limit {
            return Admissible::Room;
        }
        Admissible::Yes
    }

    /// Voters beside the master that must be connected before a commit of `class` is written, and
    /// how many are.
    pub fn replicas_needed(&self, class: Class) -> (usize, usize) {
        let needed = self.acks_needed(class).max(self.quorum.replication_quorum() - 1);
        (needed, self.quorum.connected())
    }

    /// Bytes appended in this term and not known durable on a quorum, to within 64 KiB.
    pub fn unreplicated_bytes(&self) -> u64 {
        self.bytes.total - self.bytes.replicated
    }

    /// Whether somebody waits for acknowledgements sent before the replicas' fsync.
    pub fn waits_for_received(&self) -> bool {
        self.classes.iter().any(|q| q.class.waits_for_received() && !q.pending.is_empty())
    }

    /// The entries `first..=last` of one transaction were appended; the last is its commit. With
    /// `class`, somebody will ask about it until `deadline`. True if that commit stays pending.
    pub fn handle_appended(
        &mut self,
        last: Vlsn,
        bytes: u64,
        commit: Option<(Class, Now)>,
    ) -> bool {
        assert!(last > self.last, "{last} registered after {}", self.last);
        self.last = last;
        self.bytes.handle_appended(last, bytes);
        let mut pending = false;
        if let Some((class, deadline)) = commit {
            match self.sync_runs.back_mut() {
                Some((_, end)) if end.next() == last => *end = last,
                _ => self.sync_runs.push_back((last, last)),
            }
            let queue = &mut self.classes[class.index()];
            if class.acks() == AckPolicy::None && !class.needs_local_sync() {
                queue.bound = last;
            } else {
                debug_assert!(queue.pending.back().is_none_or(|(_, d)| *d <= deadline));
                queue.pending.push_back((last, deadline));
                pending = true;
            }
        }
        self.advance_visible();
        pending
    }

    /// Sync entries that nobody waits for (the group's configuration, for one).
    pub fn handle_appended_sync(&mut self, entry: Vlsn, bytes: u64) {
        self.handle_appended(entry, bytes, None);
        match self.sync_runs.back_mut() {
            Some((_, end)) if end.next() == entry => *end = entry,
            _ => self.sync_runs.push_back((entry, entry)),
        }
    }

    /// Lets `waiter` be released with the commit `vlsn` of `class`; it comes back at once through
    /// [`Commits::poll_released`] if that commit is settled.
    pub fn wait_for(&mut self, class: Class, vlsn: Vlsn, waiter: W) -> WaiterId {
        let id = WaiterId(vlsn, self.next_waiter);
        self.next_waiter += 1;
        let queue = &mut self.classes[class.index()];
        if queue.bound >= vlsn {
            self.released.push((waiter, Outcome::Satisfied));
        } else if self.closed {
            self.released.push((waiter, Outcome::Closed));
        } else if queue.pending.front().is_none_or(|(first, _)| *first > vlsn) {
            // Neither satisfied nor pending: its time ran out before anybody asked.
            self.released.push((waiter, Outcome::TimedOut));
        } else {
            queue.waiters.insert(id, waiter);
        }
        id
    }

    /// Takes a waiter back that has not been released.
    pub fn forget(&mut self, class: Class, id: WaiterId) -> Option<W> {
        self.classes[class.index()].waiters.remove(&id)
    }

    /// A replica's stream is open.
    pub fn handle_connected(
        &mut self,
        name: &Name,
        incarnation: Incarnation,
        session: SessionId,
    ) -> bool {
        self.quorum.handle_connected(name, incarnation, session)
    }

    /// A replica's stream is gone. Nothing is taken back from commits already released.
    pub fn handle_disconnected(&mut self, session: SessionId) {
        self.quorum.handle_disconnected(session);
    }

    /// A replica's acknowledgement, which the feeder has checked against what it sent.
    pub fn handle_ack(&mut self, session: SessionId, acked: Acked) -> Changed {
        assert!(acked.received <= self.last, "ack of {} beyond {}", acked.received, self.last);
        if self.quorum.handle_ack(session, acked) { self.advance() } else { Changed::default() }
    }

    /// The local log is fsynced through `durable`.
    pub fn handle_local_durable(&mut self, durable: Vlsn) -> Changed {
        // The flusher reports what it synced; an append registers a moment after it is visible to
        // the flusher, so the report may run ahead of what is registered here.
        if self.quorum.handle_local_durable(durable) { self.advance() } else { Changed::default() }
    }

    /// Gives up on every commit whose time ran out by `now`.
    pub fn handle_timeout(&mut self, now: Now) -> Changed {
        for queue in &mut self.classes {
            let mut expired = None;
            while let Some((vlsn, deadline)) = queue.pending.front()
                && *deadline <= now
            {
                expired = Some(*vlsn);
                queue.pending.pop_front();
            }
            if let Some(through) = expired {
                queue.release(through, Outcome::TimedOut, &mut self.released);
            }
        }
        Changed { visible: self.advance_visible(), ..Changed::default() }
    }

    /// When [`Commits::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.classes.iter().filter_map(|q| q.pending.front().map(|(_, deadline)| *deadline)).min()
    }

    /// No more writes are taken; those written may still be reported.
    pub fn handle_writes_stopped(&mut self) {
        self.writes_stopped = true;
    }

    /// The mastership is over: nobody will learn more from here.
    pub fn handle_closed(&mut self) {
        self.writes_stopped = true;
        self.closed = true;
        for queue in &mut self.classes {
            let waiters = std::mem::take(&mut queue.waiters);
            self.released.extend(waiters.into_values().map(|w| (w, Outcome::Closed)));
        }
    }

    /// Whether [`Commits::handle_closed`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes the waiters released since the last call, in no particular order between classes.
    pub fn poll_released(&mut self) -> Vec<(W, Outcome)> {
        std::mem::take(&mut self.released)
    }

    /// Whether [`Commits::poll_released`] has something.
    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    fn advance(&mut self) -> Changed {
        if self.closed {
            return Changed::default(); // another term may decide about all of it by now
        }
        let mut changed = Changed { dtvlsn: self.advance_dtvlsn(), ..Changed::default() };
        for index in 0..self.classes.len() {
            let class = self.classes[index].class;
            let others = self.quorum.held_by_others(class.level(), self.acks_needed(class));
            let local = class.needs_local_sync().then(|| self.quorum.local_durable());
            let bound = others.into_iter().chain(local).min().unwrap_or(self.last).min(self.last);
            let queue = &mut self.classes[index];
            if bound > queue.bound {
                queue.bound = bound;
                while queue.pending.front().is_some_and(|(vlsn, _)| *vlsn <= bound) {
                    queue.pending.pop_front();
                }
                queue.release(bound, Outcome::Satisfied, &mut self.released);
                changed.bounds = true;
            }
        }
        changed.visible = self.advance_visible();
        changed
    }

    fn advance_dtvlsn(&mut self) -> bool {
        let held = self.quorum.durable_on_quorum();
        let before = self.dtvlsn;
        if mutant::is_on(Mutant::OldTermsCount) && held > before && held < self.term_entry {
            self.dtvlsn = held;
            return true;
        }
        while let Some((first, last)) = self.sync_runs.front_mut() {
            if *first > held {
                break;
            }
            if *last > held {
                self.dtvlsn = held;
                *first = held.next();
                break;
            }
            self.dtvlsn = *last;
            self.sync_runs.pop_front();
        }
        if self.dtvlsn > before {
            assert!(self.dtvlsn <= held, "DTVLSN {} beyond the quorum's {held}", self.dtvlsn);
            assert!(
                self.dtvlsn >= self.term_entry,
                "DTVLSN {} moved below term entry {}",
                self.dtvlsn,
                self.term_entry
            );
            self.bytes.handle_replicated(self.dtvlsn);
            return true;
        }
        false
    }

    fn advance_visible(&mut self) -> bool {
        if !self.established() {
            return false;
        }
        let pending = self.classes.iter().filter_map(|q| q.pending.front().map(|(v, _)| v.prev()));
        let visible = pending.min().unwrap_or(self.last);
        let moved = visible > self.visible;
        self.visible = self.visible.max(visible);
        moved
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        self.quorum.check_invariants();
        assert!(self.dtvlsn <= self.last, "DTVLSN {} beyond last {}", self.dtvlsn, self.last);
        assert!(self.bytes.replicated <= self.bytes.total, "{:?}", self.bytes);
        if let Some((first, _)) = self.sync_runs.front() {
            assert!(*first >= self.term_entry, "{first} is of an older term");
            assert!(*first > self.dtvlsn, "{first} is durable and counted again");
        }
        assert!(self.writes_stopped || !self.closed, "closed, and writes go on");
        for queue in &self.classes {
            let mut previous: Option<(Vlsn, Now)> = None;
            for (vlsn, deadline) in &queue.pending {
                assert!(*vlsn > queue.bound, "{vlsn} is satisfied and still pending");
                if self.established() {
                    assert!(*vlsn > self.visible, "{vlsn} is pending and visible");
                }
                if let Some((v, d)) = previous {
                    assert!(v < *vlsn && d <= *deadline, "queue out of order at {vlsn}");
                }
                previous = Some((*vlsn, *deadline));
            }
        }
    }
}

impl<W> Queue<W> {
    fn release(&mut self, through: Vlsn, outcome: Outcome, released: &mut Vec<(W, Outcome)>) {
        while let Some(first) = self.waiters.first_entry()
            && first.key().0 <= through
        {
            released.push((first.remove(), outcome));
        }
    }
}

/// Bytes appended against bytes durable on a quorum, sampled every [`SAMPLE_BYTES`].
#[derive(Debug, Default)]
struct UnreplicatedBytes {
    total: u64,
    replicated: u64,
    /// (VLSN, bytes through it), ascending.
    samples: VecDeque<(Vlsn, u64)>,
}

const SAMPLE_BYTES: u64 = 64 << 10;

impl UnreplicatedBytes {
    fn handle_appended(&mut self, last: Vlsn, bytes: u64) {
        self.total += bytes;
        match self.samples.back_mut() {
            Some(sample) if sample.1 / SAMPLE_BYTES == self.total / SAMPLE_BYTES => {
                *sample = (last, self.total);
            }
            _ => self.samples.push_back((last, self.total)),
        }
    }

    fn handle_replicated(&mut self, through: Vlsn) {
        while let Some((vlsn, bytes)) = self.samples.front()
            && *vlsn <= through
        {
            self.replicated = *bytes;
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
