//! Recovery: how the master gets each lagging, diverged or fresh replica level. Events in, commands
//! out; one engine for all replicas of a node's masterships.
//!
//! # States of a replica
//! ```text
//! Absent --PeerUp--> Asking --Facts--> Live (Issued -> Running) --Completed--> Streaming
//!                      ^  |  \-------> Refused      |                            |
//!                      |  \----------> Resting      | Failed, stalled, pin lost  | pin lost
//!                      +---------------<------------+--------------<-------------+
//! ```
//! PeerGone leads from anywhere to Absent, a new era or incarnation and a new connection lead to
//! Asking; but a new connection of the same incarnation leaves a live session alone.
//!
//! # Invariants
//! - A session begins only out of a decision on facts that answer the question asked last, so never
//!   while another of this replica runs. What a failed one showed is evidence which that decision
//!   reads: a failure decides nothing.
//! - Whatever happens to a session names it, and its era; all else is counted and changes nothing.
//! - A replica has a pin if and only if it has a live session or streams. The pin is at or below
//!   what comes next in the log that this session fills; only what is durable there moves it, and
//!   only forward.
//! - A session ends well only durable through its cut, which is at or above the master's end when
//!   it began.
//! - Acknowledgements count towards the DTVLSN only from the incarnation that has the vote, when it
//!   streams or keeps up; never while it catches up or is rebuilt.
//!
//! # Nothing stalls
//! Each state either has a deadline or waits for what the driver owes:
//! 1. Asking: the deadline asks again, with another nonce.
//! 2. Resting: the deadline asks.
//! 3. Live: the deadline fails the session, which asks. Only what brings the end nearer puts it off
//!    (session.rs), and the end stays where it is: the cut is issued once the replica has what there
//!    was at the start, however much is written then.
//! 4. Failing over and over: `attempts` failed catch-ups make a rebuild; other failures are
//!    unbounded in number, but each waits longer, up to a bound.
//! 5. Absent, Refused: a connection. That is no stall: nothing can be done, or may be. Streaming
//!    ends with its connection.
//!
//! # What a new era makes void
//! Everything. That the log was recycled, a pin lost or a catch-up failed speaks of the log and the
//! disk of another master; this one may hold more. Sticky evidence carried over would copy a whole
//! log where a few entries do.
//!
//! # Not here: finding the matchpoint (core/syncup.rs), copying (restore/), counting (core/quorum.rs),
//! a master that meets a higher term (core/node.rs).
//! # See: RECOVERY.md "Decision engine"

use std::collections::BTreeMap;
use std::time::Duration;

use noxu_util::{Incarnation, Name, Vlsn};

use crate::core::commits::Now;
use crate::wire::message::Era;

mod course;
mod decide;
mod desk;
mod event;
mod mutant;
mod pins;
mod projection;
mod record;
mod session;

pub use course::{Course, course};
pub use decide::{Agreement, Bounds, Decision, Evidence, Facts, Refusal, Thresholds, decide};
use desk::Desk;
pub use event::{
    Alarm, Command, Event, FailReason, Kind, Link, Nonce, Progress, RecoveryId, Session,
    SessionEvent,
};
use mutant::Mutant;
pub use projection::{Projection, Reason, Shown};
use session::{Live, Phase};

/// How long what takes, and what is much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What decisions depend on.
    pub thresholds: Thresholds,
    /// A question for facts is asked again after so long.
    pub answer: Duration,
    /// A session must be accepted in this time.
    pub accept: Duration,
    /// A running session must move in this time; the longest step without a movement is the
    /// installation of a restore.
    pub stall: Duration,
    /// Rest before the next session after a failure that no budget bounds; doubled each time.
    pub first_rest: Duration,
    /// Longest such rest.
    pub longest_rest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            thresholds: Thresholds { small_lag: 10_000, attempts: 3 },
            answer: Duration::from_secs(2),
            accept: Duration::from_secs(10),
            stall: Duration::from_mins(1),
            first_rest: Duration::from_secs(1),
            longest_rest: Duration::from_mins(1),
        }
    }
}

/// What an engine begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setup {
    /// The limits.
    pub limits: Limits,
    /// Sessions and questions are numbered from here. Whoever can choose numbers that no earlier
    /// engine gave keeps late answers to that one apart, too.
    pub first_number: u64,
}

/// Why an event changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// About a replica that is not a member, or no member yet.
    UnknownMember,
    /// Of an older mastership, or of none that this engine knows.
    OtherEra,
    /// Of an older connection.
    OldLink,
    /// The answer to an older question, or a second one to the last.
    OldNonce,
    /// Of a session that is not the live one.
    OtherSession,
    /// No session is live.
    NoSession,
    /// The session is not there yet, or no longer.
    WrongPhase,
    /// Of another directory by the same name.
    OtherIncarnation,
    /// The replica has promised a later master something.
    LaterEra,
    /// No log looks like this.
    Contradictory,
    /// The master's log is not known yet.
    NoBounds,
    /// Completed, without all that belongs to it.
    EarlyCompletion,
    /// Time does not go back.
    TimeBack,
}

type Outcome = Result<(), Ignored>;

/// What the engine knows of one replica.
#[derive(Debug)]
struct Replica {
    /// Who has its vote.
    voter: Option<Incarnation>,
    /// The newest connection heard of.
    link: Option<Link>,
    /// Who connected.
    incarnation: Option<Incarnation>,
    evidence: Evidence,
    /// No session begins before.
    rest_until: Now,
    state: State,
}

#[derive(Debug)]
enum State {
    Absent,
    Asking { nonce: Nonce, deadline: Now },
    Resting { until: Now },
    Live(Live),
    Streaming { session: RecoveryId, durable: Vlsn },
    Refused(Refusal),
}

impl State {
    /// The session that is live, or that opened the stream.
    const fn session(&self) -> Option<RecoveryId> {
        match self {
            Self::Live(live) => Some(live.session.id),
            Self::Streaming { session, .. } => Some(*session),
            Self::Absent | Self::Asking { .. } | Self::Resting { .. } | Self::Refused(_) => None,
        }
    }

    const fn deadline(&self) -> Option<Now> {
        match self {
            Self::Asking { deadline, .. } => Some(*deadline),
            Self::Resting { until } => Some(*until),
            Self::Live(live) => Some(live.deadline),
            Self::Absent | Self::Streaming { .. } | Self::Refused(_) => None,
        }
    }
}

impl Replica {
    fn new(voter: Option<Incarnation>) -> Self {
        Self {
            voter,
            link: None,
            incarnation: None,
            evidence: Evidence::default(),
            rest_until: Now::ZERO,
            state: State::Absent,
        }
    }

    /// Whether the directory that is connected has the vote.
    fn votes(&self) -> bool {
        self.voter.is_some() && self.voter == self.incarnation
    }

    fn forget_evidence(&mut self) {
        self.evidence = Evidence::default();
        self.rest_until = Now::ZERO;
    }
}

/// The engine.
#[derive(Debug)]
pub struct Recovery {
    replicas: BTreeMap<Name, Replica>,
    ignored: BTreeMap<Ignored, u64>,
    desk: Desk,
}

/// Masterships in their order.
const fn order(era: Era) -> (u32, u32) {
    (era.epoch, era.term.number())
}

impl Recovery {
    /// An engine that knows of nothing yet. [`Event::Tick`] comes first, and [`Event::Bounds`] after
    /// each [`Event::Assigned`] of a new era.
    pub fn new(setup: Setup) -> Self {
        let desk = Desk::new(setup);
        Self { replicas: BTreeMap::new(), ignored: BTreeMap::new(), desk }
    }

    /// Takes an event; says what is to be done, in this order.
    pub fn handle(&mut self, event: &Event) -> Vec<Command> {
        let outcome = match event {
            Event::Assigned { era, members } => self.handle_assigned(*era, members),
            Event::Bounds(bounds) => {
                self.desk.handle_bounds(*bounds);
                Ok(())
            }
            Event::PeerUp { name, link, incarnation } => {
                self.handle_peer_up(name, *link, *incarnation)
            }
            Event::PeerGone { name, link } => self.handle_peer_gone(name, *link),
            Event::Facts { name, nonce, facts } => self.handle_facts(name, *nonce, facts),
            Event::Session { name, session, era, what } => {
                self.handle_session(name, *session, *era, *what)
            }
            Event::DurableAck { name, incarnation, session, era, vlsn } => {
                self.handle_durable_ack(name, *incarnation, *session, *era, *vlsn)
            }
            Event::PinDropped { name, session } => self.handle_pin_dropped(name, *session),
            Event::Tick { now } => self.handle_tick(*now),
        };
        if let Err(why) = outcome {
            *self.ignored.entry(why).or_default() += 1;
        }
        std::mem::take(&mut self.desk.commands)
    }

    /// When [`Event::Tick`] is due next.
    pub fn next_deadline(&self) -> Option<Now> {
        self.replicas.values().filter_map(|replica| replica.state.deadline()).min()
    }

    /// Whether what this incarnation of `name` acknowledges counts towards the DTVLSN.
    pub fn counts(&self, name: &Name, incarnation: Incarnation) -> bool {
        let Some(replica) = self.replicas.get(name) else { return false };
        let streams = match &replica.state {
            State::Streaming { .. } => true,
            State::Live(live) => {
                let keeps_up = matches!(live.session.kind, Kind::KeepUp { .. });
                live.phase == Phase::Running && (keeps_up || mutant::is_on(Mutant::CountsInSession))
            }
            State::Absent | State::Asking { .. } | State::Resting { .. } | State::Refused(_) => {
                false
            }
        };
        let is = Some(incarnation);
        streams && replica.voter == is && replica.incarnation == is
    }

    /// The master's log is needed from here on; `None` if nobody needs it.
    pub fn retention_floor(&self) -> Option<Vlsn> {
        self.desk.pins.floor()
    }

    /// What an operator is shown of `name`; `None` if it is no member.
    pub fn projection(&self, name: &Name) -> Option<Projection> {
        self.replicas.get(name).map(|replica| self.desk.project(replica))
    }

    /// What an operator is shown of each replica.
    pub fn projections(&self) -> impl Iterator<Item = (&Name, Projection)> {
        self.replicas.iter().map(|(name, replica)| (name, self.desk.project(replica)))
    }

    /// How many events changed nothing, by reason.
    pub const fn ignored(&self) -> &BTreeMap<Ignored, u64> {
        &self.ignored
    }

    fn handle_assigned(
        &mut self,
        era: Era,
        members: &BTreeMap<Name, Option<Incarnation>>,
    ) -> Outcome {
        let desk = &mut self.desk;
        let older = desk.era.is_some_and(|known| order(era) < order(known));
        if older && !mutant::is_on(Mutant::OlderEraTaken) {
            return Err(Ignored::OtherEra);
        }
        let new_era = desk.era != Some(era);
        if new_era {
            desk.bounds = None;
        }
        desk.era = Some(era);
        self.replicas.retain(|name, replica| {
            let stays = members.contains_key(name);
            if !stays {
                desk.end_session(name, replica, true);
            }
            stays
        });
        for (name, voter) in members {
            let replica = self.replicas.entry(name.clone()).or_insert_with(|| Replica::new(*voter));
            replica.voter = *voter;
            if new_era && !matches!(replica.state, State::Absent) {
                desk.end_session(name, replica, true);
                desk.ask(name, replica);
            }
            if new_era {
                replica.forget_evidence();
            }
        }
        Ok(())
    }

    fn handle_peer_up(&mut self, name: &Name, link: Link, incarnation: Incarnation) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        if replica.link.is_some_and(|newest| link <= newest) {
            return Err(Ignored::OldLink);
        }
        replica.link = Some(link);
        let same = replica.incarnation == Some(incarnation);
        if same && matches!(replica.state, State::Live(_)) {
            return Ok(()); // from another address perhaps; if it forgot, the deadline tells
        }
        if !same {
            replica.incarnation = Some(incarnation);
            replica.forget_evidence();
        }
        self.desk.end_session(name, replica, true);
        self.desk.ask(name, replica);
        Ok(())
    }

    fn handle_peer_gone(&mut self, name: &Name, link: Link) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        if replica.link.is_some_and(|newest| link < newest) {
            return Err(Ignored::OldLink);
        }
        replica.link = Some(link);
        self.desk.end_session(name, replica, false);
        // Not evidence: that a node goes away says nothing of how it should get level.
        replica.state = State::Absent;
        Ok(())
    }

    fn handle_facts(&mut self, name: &Name, nonce: Nonce, facts: &Facts) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        match replica.state {
            State::Asking { nonce: asked, .. } if asked == nonce => {}
            _ => return Err(Ignored::OldNonce),
        }
        let (Some(era), Some(bounds)) = (self.desk.era, self.desk.bounds) else {
            return Err(Ignored::NoBounds);
        };
        if replica.incarnation != Some(facts.incarnation) {
            return Err(Ignored::OtherIncarnation);
        }
        if order(facts.era) > order(era) {
            return Err(Ignored::LaterEra);
        }
        if facts.are_contradictory() {
            return Err(Ignored::Contradictory);
        }
        match decide(facts, bounds, replica.evidence, self.desk.limits.thresholds) {
            Decision::Refuse(refusal) => {
                replica.state = State::Refused(refusal);
                let what = Alarm::Refused(refusal);
                self.desk.commands.push(Command::Alarm { name: name.clone(), what });
            }
            Decision::Start(_) if self.desk.now < replica.rest_until => {
                // These facts will be old by then.
                replica.state = State::Resting { until: replica.rest_until };
            }
            Decision::Start(kind) => self.desk.start(name, replica, kind, era, bounds, facts),
        }
        Ok(())
    }

    fn handle_session(
        &mut self,
        name: &Name,
        session: RecoveryId,
        era: Era,
        what: SessionEvent,
    ) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        if self.desk.era != Some(era) && !mutant::is_on(Mutant::OlderEraTaken) {
            return Err(Ignored::OtherEra);
        }
        let State::Live(live) = &mut replica.state else { return Err(Ignored::NoSession) };
        if live.session.id != session && !mutant::is_on(Mutant::SessionsWithoutIds) {
            return Err(Ignored::OtherSession);
        }
        match (live.phase, what) {
            (Phase::Issued, SessionEvent::Accepted) => {
                live.phase = Phase::Running;
                self.desk.handle_progress(name, live, true);
            }
            (Phase::Running, SessionEvent::Progress(progress)) => {
                let nearer = live.advance(progress);
                self.desk.handle_progress(name, live, nearer);
            }
            (Phase::Running, SessionEvent::Completed { durable }) => {
                if !live.is_complete(durable) {
                    return Err(Ignored::EarlyCompletion);
                }
                let durable = durable.max(live.progress.durable);
                replica.state = State::Streaming { session: live.session.id, durable };
                replica.forget_evidence();
                self.desk.pin(name, durable.next());
            }
            (Phase::Issued | Phase::Running, SessionEvent::Failed(reason)) => {
                self.desk.fail(name, replica, reason, false);
            }
            (Phase::Issued, SessionEvent::Progress(_) | SessionEvent::Completed { .. })
            | (Phase::Running, SessionEvent::Accepted) => return Err(Ignored::WrongPhase),
        }
        Ok(())
    }

    fn handle_durable_ack(
        &mut self,
        name: &Name,
        incarnation: Incarnation,
        session: RecoveryId,
        era: Era,
        vlsn: Vlsn,
    ) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        if self.desk.era != Some(era) && !mutant::is_on(Mutant::OlderEraTaken) {
            return Err(Ignored::OtherEra);
        }
        if replica.incarnation != Some(incarnation) {
            return Err(Ignored::OtherIncarnation);
        }
        match replica.state.session() {
            None => return Err(Ignored::NoSession),
            Some(ours) if ours != session && !mutant::is_on(Mutant::SessionsWithoutIds) => {
                return Err(Ignored::OtherSession);
            }
            Some(_) => {}
        }
        match &mut replica.state {
            State::Live(Live { phase: Phase::Issued, .. }) => return Err(Ignored::WrongPhase),
            State::Live(live) => {
                let nearer = live.advance(Progress { durable: vlsn, ..live.progress });
                self.desk.handle_progress(name, live, nearer);
            }
            State::Streaming { durable, .. } => {
                *durable = vlsn.max(*durable);
                self.desk.pin(name, durable.next());
            }
            State::Absent | State::Asking { .. } | State::Resting { .. } | State::Refused(_) => {}
        }
        Ok(())
    }

    fn handle_pin_dropped(&mut self, name: &Name, session: RecoveryId) -> Outcome {
        let replica = self.replicas.get_mut(name).ok_or(Ignored::UnknownMember)?;
        match replica.state.session() {
            None => Err(Ignored::NoSession),
            Some(ours) if ours != session => Err(Ignored::OtherSession),
            Some(_) => {
                self.desk.fail(name, replica, FailReason::PinLost, true);
                Ok(())
            }
        }
    }

    fn handle_tick(&mut self, now: Now) -> Outcome {
        if now < self.desk.now {
            return Err(Ignored::TimeBack);
        }
        self.desk.now = now;
        for (name, replica) in &mut self.replicas {
            match &replica.state {
                State::Asking { deadline, .. } if *deadline <= now => {
                    if !mutant::is_on(Mutant::AskedOnce) {
                        self.desk.ask(name, replica);
                    }
                }
                State::Resting { until } if *until <= now => self.desk.ask(name, replica),
                State::Live(live) if live.deadline <= now => {
                    self.desk.fail(name, replica, FailReason::Stalled, true);
                }
                State::Asking { .. }
                | State::Resting { .. }
                | State::Live(_)
                | State::Absent
                | State::Streaming { .. }
                | State::Refused(_) => {}
            }
        }
        Ok(())
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        assert!(self.desk.commands.is_empty(), "commands are left");
        for (name, replica) in &self.replicas {
            let pin = self.desk.pins.of(name);
            let fed = replica.state.session().is_some();
            assert_eq!(pin.is_some(), fed, "{name}: pin {pin:?}, fed {fed}");
            let durable = match &replica.state {
                State::Live(live) => {
                    live.check_invariants();
                    live.progress.durable
                }
                State::Streaming { durable, .. } => *durable,
                State::Absent
                | State::Asking { .. }
                | State::Resting { .. }
                | State::Refused(_) => continue,
            };
            assert!(pin <= Some(durable.next()), "{name}: pin {pin:?} beyond durable {durable}");
        }
    }
}

#[cfg(test)]
mod tests;
