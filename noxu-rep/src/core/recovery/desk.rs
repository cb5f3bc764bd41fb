//! Desk: what the engine has besides its replicas, and the steps that each of them can take.
//!
//! # Not here: which event makes whom take which step (recovery.rs).

use std::time::Duration;

use noxu_util::{NULL_VLSN, Name, Vlsn};

use crate::core::commits::Now;
use crate::core::recovery::decide::{Bounds, Facts};
use crate::core::recovery::event::{Command, FailReason, Kind, Nonce, RecoveryId, Session};
use crate::core::recovery::mutant::{self, Mutant};
use crate::core::recovery::pins::Pins;
use crate::core::recovery::projection::{self, Projection};
use crate::core::recovery::session::Live;
use crate::core::recovery::{Limits, Replica, Setup, State};
use crate::wire::message::Era;

/// What does not belong to one replica.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) limits: Limits,
    pub(super) now: Now,
    pub(super) era: Option<Era>,
    pub(super) bounds: Option<Bounds>,
    next_session: u64,
    next_nonce: u64,
    pub(super) pins: Pins,
    pub(super) commands: Vec<Command>,
}

impl Desk {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            limits: setup.limits,
            now: Now::ZERO,
            era: None,
            bounds: None,
            next_session: setup.first_number,
            next_nonce: setup.first_number,
            pins: Pins::default(),
            commands: Vec::new(),
        }
    }

    /// The master's log only grows at its end and shrinks at its front: what is less was said late.
    pub(super) fn handle_bounds(&mut self, said: Bounds) {
        let known = self.bounds.unwrap_or(said);
        self.bounds = Some(Bounds {
            first: said.first.max(known.first),
            last: said.last.max(known.last),
            dtvlsn: said.dtvlsn.max(known.dtvlsn),
        });
    }

    pub(super) fn project(&self, replica: &Replica) -> Projection {
        projection::project(replica, self.bounds, self.limits.thresholds.small_lag)
    }

    fn deadline(&self, after: Duration) -> Now {
        self.now.saturating_add(after)
    }

    pub(super) fn ask(&mut self, name: &Name, replica: &mut Replica) {
        let nonce = Nonce(self.next_nonce);
        self.next_nonce = self.next_nonce.wrapping_add(1);
        replica.state = State::Asking { nonce, deadline: self.deadline(self.limits.answer) };
        self.commands.push(Command::AskFacts { name: name.clone(), nonce });
    }

    pub(super) fn pin(&mut self, name: &Name, from: Vlsn) {
        if self.pins.pin(name, from) {
            self.commands.push(Command::Pin { name: name.clone(), from });
        }
    }

    /// Begins a session. The pin goes before it: nothing that it needs is dropped in between.
    pub(super) fn start(
        &mut self,
        name: &Name,
        replica: &mut Replica,
        kind: Kind,
        era: Era,
        bounds: Bounds,
        facts: &Facts,
    ) {
        let id = RecoveryId(self.next_session);
        self.next_session = self.next_session.wrapping_add(1);
        let is_limited = !replica.votes();
        let session = Session { id, era, kind, target: bounds.end_for(is_limited) };
        let from = match kind {
            Kind::KeepUp { from } | Kind::CatchUp { from, .. } => from,
            // Where its stream of live entries begins is settled later, and the base has to be
            // read; the first that is durable there moves the pin.
            Kind::Rebuild { .. } => bounds.first.max(NULL_VLSN.next()),
        };
        let live = Live::new(session, from.prev(), is_limited, self.deadline(self.limits.accept));
        if mutant::is_on(Mutant::PinnedOnFacts) {
            self.pin(name, facts.durable.next());
        } else if !(live.is_rebuild() && mutant::is_on(Mutant::RebuildWithoutPin)) {
            self.pin(name, from);
        }
        replica.state = State::Live(live);
        self.commands.push(Command::Start { name: name.clone(), session });
    }

    /// Follows what a running session has reached.
    pub(super) fn handle_progress(&mut self, name: &Name, live: &mut Live, nearer: bool) {
        if nearer {
            live.deadline = self.deadline(self.limits.stall);
        }
        self.pin(name, live.progress.durable.next());
        let Some(bounds) = self.bounds else { return };
        let end = bounds.end_for(live.is_limited);
        if let Some(cut) = live.take_cut(end, self.limits.thresholds.small_lag) {
            let (name, session) = (name.clone(), live.session.id);
            self.commands.push(Command::Cut { name, session, cut });
        }
    }

    /// Lets go of the session or stream of a replica, if it has one; with `tell` somebody who would
    /// go on with it is told. Leaves the state to the caller.
    pub(super) fn end_session(&mut self, name: &Name, replica: &Replica, tell: bool) {
        if let Some(session) = replica.state.session()
            && tell
        {
            self.commands.push(Command::Cancel { name: name.clone(), session });
        }
        if self.pins.unpin(name) {
            self.commands.push(Command::Unpin { name: name.clone() });
        }
    }

    /// Leaves evidence and asks. What comes next is decided when the answer is there.
    pub(super) fn fail(
        &mut self,
        name: &Name,
        replica: &mut Replica,
        reason: FailReason,
        tell: bool,
    ) {
        self.end_session(name, replica, tell);
        let rebuild = matches!(&replica.state, State::Live(live) if live.is_rebuild());
        if replica.evidence.note(rebuild, reason) {
            replica.rest_until = self.deadline(self.rest(replica.evidence.failed_others));
        }
        self.ask(name, replica);
    }

    /// How long to rest after this many failures.
    fn rest(&self, failed: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limits.first_rest.saturating_mul(doubled).min(self.limits.longest_rest)
    }
}
