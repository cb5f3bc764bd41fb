//! Recovering: the decision engine of a mastership, and who tells it what happens.
//!
//! # Who does what the engine says
//! | command | done by |
//! |---|---|
//! | AskFacts | the conversation that a replica has just begun ([`Recovering::begin`]) |
//! | Start | the same: the verdict that it sends |
//! | Cut | kept here, for the stream's next acknowledgement or the restore's next question |
//! | Cancel | the replica's channel is closed, its restore refused at its next question |
//! | Pin, Unpin | the stream and the restore, which hold a pin of their own and move it as often as something becomes durable; the engine, which hears of that now and then, only follows |
//! | Alarm | the log |
//!
//! # Not here: what is decided (core/recovery.rs), the conversation itself (feeding.rs), the restore
//! (restore/provider.rs).

use std::collections::BTreeMap;
use std::time::Duration;

use noxu_util::{Incarnation, Name, Vlsn};
use parking_lot::Mutex;

use crate::core::commits::Now;
use crate::core::recovery::{
    Alarm, Bounds, Command, Event, Facts, FailReason, Kind, Link, Nonce, Progress, Projection,
    Recovery, RecoveryId, Session, SessionEvent, Setup,
};
use crate::wire::message::Era;
use crate::wire::recovery::Verdict;

/// How often the engine hears of what a replica acknowledged that streams.
const ACK_PAUSE: Duration = Duration::from_millis(100);

/// The engine of one mastership.
pub(crate) struct Recovering {
    inner: Mutex<Inner>,
}

struct Inner {
    era: Era,
    engine: Recovery,
    /// The caller is to end the streams of these connections.
    to_close: Vec<Link>,
    members: BTreeMap<Name, Option<Incarnation>>,
    replicas: BTreeMap<Name, Known>,
}

/// What became of the commands about one replica.
#[derive(Default)]
struct Known {
    link: Option<Link>,
    incarnation: Incarnation,
    nonce: Option<Nonce>,
    session: Option<Session>,
    cut: Option<Vlsn>,
    /// It has been accepted and has not ended.
    runs: bool,
    /// When its restore was last heard, while it runs.
    restore_heard: Option<Now>,
    /// The last session that was cancelled.
    cancelled: Option<RecoveryId>,
    /// When its acknowledgements were told last.
    told: Now,
    durable: Vlsn,
}

/// What only the caller can do, once the lock is free.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Errands {
    /// The streams of these connections are to be ended.
    pub(crate) close: Vec<Link>,
    /// When [`Recovering::handle_timeout`] is due.
    pub(crate) deadline: Option<Now>,
}

impl Recovering {
    /// The engine of a mastership of `era`, in which `members` have the votes.
    pub(crate) fn new(
        era: Era,
        members: BTreeMap<Name, Option<Incarnation>>,
        first_number: u64,
        now: Now,
        bounds: Bounds,
    ) -> Self {
        let mut engine = Recovery::new(Setup { first_number, ..Setup::default() });
        engine.handle(&Event::Tick { now });
        engine.handle(&Event::Assigned { era, members: members.clone() });
        engine.handle(&Event::Bounds(bounds));
        let (to_close, replicas) = (Vec::new(), BTreeMap::new());
        Self { inner: Mutex::new(Inner { era, engine, to_close, members, replicas }) }
    }

    /// A replica is connected and has been compared with this log; the question that it is to answer.
    /// `None` if a session of it is still under way.
    pub(crate) fn begin(
        &self,
        now: Now,
        (name, incarnation, link): (&Name, Incarnation, Link),
    ) -> (Option<Nonce>, Errands) {
        let mut inner = self.inner.lock();
        inner.tick(now);
        if !inner.members.contains_key(name) {
            inner.members.insert(name.clone(), None);
            let (era, members) = (inner.era, inner.members.clone());
            inner.post(&Event::Assigned { era, members });
        }
        let known = inner.replicas.entry(name.clone()).or_default();
        let older = known.link.replace(link);
        (known.incarnation, known.nonce, known.runs) = (incarnation, None, false);
        known.restore_heard = None;
        if let Some(older) = older {
            // A node is in one conversation at a time: whatever it was doing is over.
            inner.post(&Event::PeerGone { name: name.clone(), link: older });
        }
        inner.post(&Event::PeerUp { name: name.clone(), link, incarnation });
        let nonce = inner.replicas.get(name).and_then(|known| known.nonce);
        (nonce, inner.take_errands())
    }

    /// It answered: how it gets level.
    pub(crate) fn decide(
        &self,
        now: Now,
        name: &Name,
        nonce: Nonce,
        facts: Facts,
        bounds: Bounds,
    ) -> (Verdict, Errands) {
        let mut inner = self.inner.lock();
        inner.tick(now);
        inner.post(&Event::Bounds(bounds));
        let before = inner.replicas.get(name).and_then(|known| known.session);
        inner.post(&Event::Facts { name: name.clone(), nonce, facts });
        let known = inner.replicas.entry(name.clone()).or_default();
        known.durable = facts.durable;
        let session = known.session.filter(|session| Some(*session) != before);
        let verdict = match (session, inner.engine.projection(name)) {
            (Some(Session { id, kind, .. }), _) => match kind {
                Kind::KeepUp { from } => Verdict::Stream { session: id, from, truncate_to: None },
                Kind::CatchUp { from, truncate_to } => {
                    Verdict::Stream { session: id, from, truncate_to }
                }
                Kind::Rebuild { .. } => Verdict::Rebuild { session: id },
            },
            (None, Some(Projection::Refused(refusal))) => Verdict::Refused(refusal),
            (None, _) => Verdict::Rest,
        };
        (verdict, inner.take_errands())
    }

    /// The session has begun: its stream is open, or its restore asks.
    pub(crate) fn handle_accepted(&self, now: Now, name: &Name, session: RecoveryId) -> Errands {
        let mut inner = self.inner.lock();
        inner.tick(now);
        let known = inner.replicas.entry(name.clone()).or_default();
        known.runs = known.session.is_some_and(|known| known.id == session);
        let rebuilds = known.session.is_some_and(|known| is_rebuild(known.kind));
        known.restore_heard = (known.runs && rebuilds).then_some(now);
        inner.tell(name, session, SessionEvent::Accepted);
        // A replica that streams may be level already; one that is rebuilt is done when its restore is,
        // however far the log goes that is being replaced.
        if !rebuilds {
            let durable = inner.replicas.get(name).map(|known| known.durable).unwrap_or_default();
            inner.complete(name, session, durable);
        }
        inner.take_errands()
    }

    /// A stream that `session` opened acknowledged everything through `durable`. Does nothing, and says
    /// so, unless the session is about to end or nothing was told for a while.
    pub(crate) fn handle_ack(
        &self,
        now: Now,
        name: &Name,
        session: RecoveryId,
        durable: Vlsn,
        bounds: impl FnOnce() -> Bounds,
    ) -> Option<Errands> {
        let mut inner = self.inner.lock();
        let known = inner.replicas.get_mut(name)?;
        let ends = known.runs && known.cut.is_none_or(|cut| durable >= cut);
        if !ends && now < known.told + ACK_PAUSE {
            return None;
        }
        known.told = now;
        known.durable = durable;
        let (incarnation, runs) = (known.incarnation, known.runs);
        inner.tick(now);
        inner.post(&Event::Bounds(bounds()));
        let (era, vlsn) = (inner.era, durable);
        inner.post(&Event::DurableAck { name: name.clone(), incarnation, session, era, vlsn });
        if runs {
            inner.complete(name, session, durable);
        }
        Some(inner.take_errands())
    }

    /// A restore is this far. `Ok` with where it is to end, once that is settled; `Err` if it is
    /// cancelled; and what else is to be done, either way.
    pub(crate) fn handle_restore(
        &self,
        now: Now,
        name: &Name,
        session: RecoveryId,
        progress: Progress,
        bounds: Bounds,
    ) -> (Result<Option<Vlsn>, Cancelled>, Errands) {
        let mut inner = self.inner.lock();
        inner.tick(now);
        if let Some(known) = inner.replicas.get_mut(name)
            && known.session.is_some_and(|known| known.id == session)
        {
            known.restore_heard = known.restore_heard.map(|_| now);
        }
        inner.post(&Event::Bounds(bounds));
        inner.tell(name, session, SessionEvent::Progress(progress));
        let ends = match inner.replicas.get(name) {
            Some(known) if known.cancelled == Some(session) => Err(Cancelled),
            Some(known) => {
                let ours = known.session.is_some_and(|known| known.id == session);
                Ok(known.cut.filter(|_| ours))
            }
            None => Ok(None),
        };
        (ends, inner.take_errands())
    }

    /// A restore has everything through `durable`.
    pub(crate) fn handle_restored(
        &self,
        now: Now,
        name: &Name,
        session: RecoveryId,
        durable: Vlsn,
    ) -> Errands {
        let mut inner = self.inner.lock();
        inner.tick(now);
        inner.complete(name, session, durable);
        inner.leave(name, session);
        inner.take_errands()
    }

    /// A restore broke off; with a reason it is evidence.
    pub(crate) fn handle_restore_ended(
        &self,
        now: Now,
        name: &Name,
        session: RecoveryId,
        why: Option<FailReason>,
    ) -> Errands {
        let mut inner = self.inner.lock();
        inner.tick(now);
        match why {
            Some(FailReason::PinLost) => {
                let name = name.clone();
                inner.post(&Event::PinDropped { name, session });
            }
            Some(why) => inner.tell(name, session, SessionEvent::Failed(why)),
            None => {}
        }
        inner.leave(name, session);
        inner.take_errands()
    }

    /// A connection is gone.
    pub(crate) fn handle_gone(&self, now: Now, name: &Name, link: Link, pin_lost: bool) -> Errands {
        let mut inner = self.inner.lock();
        inner.tick(now);
        if let Some(known) = inner.replicas.get_mut(name) {
            let session = known.session.map(|session| session.id);
            if known.link == Some(link) {
                known.runs = false;
            }
            if let Some(session) = session.filter(|_| pin_lost) {
                inner.post(&Event::PinDropped { name: name.clone(), session });
            }
            inner.post(&Event::PeerGone { name: name.clone(), link });
        }
        inner.take_errands()
    }

    /// Those whose restore runs, and when each was last heard: they follow this master, though it feeds
    /// them no stream.
    pub(crate) fn restoring(&self) -> Vec<(Name, Incarnation, Now)> {
        let inner = self.inner.lock();
        let heard = |(name, known): (&Name, &Known)| {
            Some((name.clone(), known.incarnation, known.restore_heard?))
        };
        inner.replicas.iter().filter_map(heard).collect()
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&self, now: Now) -> Errands {
        let mut inner = self.inner.lock();
        inner.tick(now);
        inner.take_errands()
    }

    /// What an operator is shown of each replica.
    pub(crate) fn projections(&self) -> Vec<(Name, Projection)> {
        let inner = self.inner.lock();
        inner.engine.projections().map(|(name, shown)| (name.clone(), shown)).collect()
    }

    /// Asserts what the engine promises.
    pub(crate) fn check_invariants(&self) {
        self.inner.lock().engine.check_invariants();
    }
}

/// A session is to go on no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cancelled;

impl Inner {
    fn tick(&mut self, now: Now) {
        self.post(&Event::Tick { now });
    }

    fn take_errands(&mut self) -> Errands {
        let close = std::mem::take(&mut self.to_close);
        Errands { close, deadline: self.engine.next_deadline() }
    }

    fn tell(&mut self, name: &Name, session: RecoveryId, what: SessionEvent) {
        let era = self.era;
        self.post(&Event::Session { name: name.clone(), session, era, what });
    }

    /// The session is over if it is durable through its cut.
    fn complete(&mut self, name: &Name, session: RecoveryId, durable: Vlsn) {
        let Some(known) = self.replicas.get_mut(name) else { return };
        if known.runs && known.cut.is_some_and(|cut| durable >= cut) {
            known.runs = false;
            self.tell(name, session, SessionEvent::Completed { durable });
        }
    }

    /// A restore is over, one way or the other: its node comes back, or is gone.
    fn leave(&mut self, name: &Name, session: RecoveryId) {
        let Some(known) = self.replicas.get_mut(name) else { return };
        if known.session.is_some_and(|known| known.id == session) {
            known.runs = false;
            known.restore_heard = None;
            if let Some(link) = known.link {
                self.post(&Event::PeerGone { name: name.clone(), link });
            }
        }
    }

    fn post(&mut self, event: &Event) {
        for command in self.engine.handle(event) {
            self.perform(command);
        }
    }

    fn perform(&mut self, command: Command) {
        let known = self.replicas.entry(command.name().clone()).or_default();
        match command {
            Command::AskFacts { nonce, .. } => known.nonce = Some(nonce),
            Command::Start { session, .. } => {
                (known.session, known.cut, known.runs) = (Some(session), None, false);
            }
            Command::Cut { session, cut, .. } => {
                if known.session.is_some_and(|known| known.id == session) {
                    known.cut = Some(cut);
                }
            }
            Command::Cancel { session, .. } => {
                known.cancelled = Some(session);
                known.runs = false;
                let streams = |of: Session| of.id == session && !is_rebuild(of.kind);
                if known.session.is_some_and(streams) {
                    self.to_close.extend(known.link);
                }
            }
            Command::Alarm { name, what: Alarm::Refused(refusal) } => {
                tracing::error!(replica = %name, ?refusal, "ALARM: this replica is left as it is");
            }
            Command::Pin { .. } | Command::Unpin { .. } => {}
        }
    }
}

const fn is_rebuild(kind: Kind) -> bool {
    matches!(kind, Kind::Rebuild { .. })
}

#[cfg(test)]
mod tests {
    use noxu_util::Term;

    use super::*;
    use crate::core::recovery::Agreement;

    const ERA: Era = Era { epoch: 1, term: Term::new(3) };
    const BOUNDS: Bounds =
        Bounds { first: Vlsn::new(1), last: Vlsn::new(50), dtvlsn: Vlsn::new(50) };

    fn level(incarnation: Incarnation) -> Facts {
        let (durable, known_dtvlsn) = (BOUNDS.last, BOUNDS.last);
        let agreement = Agreement::Matchpoint { matchpoint: durable, to_end: true };
        Facts { era: ERA, incarnation, durable, known_dtvlsn, agreement, restore_marker: None }
    }

    /// A replica that is level and must be rebuilt all the same: as far as its own log goes it has been
    /// through from the first moment on, and yet it is not done before its restore is.
    #[test]
    fn a_rebuild_of_a_log_that_is_level_ends() {
        let name: Name = "n2".parse().unwrap();
        let incarnation = Incarnation::from_u64(7);
        let now = Duration::from_secs;
        let members = BTreeMap::from([(name.clone(), Some(incarnation))]);
        let recovering = Recovering::new(ERA, members, 9, now(0), BOUNDS);
        let meet = |at, link| {
            let (nonce, _) = recovering.begin(now(at), (&name, incarnation, Link(link)));
            recovering.decide(now(at), &name, nonce.unwrap(), level(incarnation), BOUNDS).0
        };
        let Verdict::Stream { session, .. } = meet(1, 1) else { panic!("it is level") };
        let _ = recovering.handle_accepted(now(1), &name, session);
        let _ = recovering.handle_gone(now(2), &name, Link(1), true);

        let Verdict::Rebuild { session } = meet(100, 2) else { panic!("its place was lost") };
        let _ = recovering.handle_accepted(now(100), &name, session);
        let progress = Progress { base_bytes: 9, base_done: true, durable: BOUNDS.last };
        let (ends, _) = recovering.handle_restore(now(101), &name, session, progress, BOUNDS);
        assert_eq!(ends, Ok(Some(BOUNDS.last)));
        let _ = recovering.handle_restored(now(102), &name, session, BOUNDS.last);
        assert!(matches!(meet(103, 3), Verdict::Stream { .. }), "it was rebuilt");
    }
}
