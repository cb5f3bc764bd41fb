//! Watch: an engine, and what can be said of it by whoever sees its events and its commands.

use super::*;

/// What must be true of one replica, as told by events and commands alone.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) incarnation: Option<Incarnation>,
    link: Option<Link>,
    asked: Option<Nonce>,
    live: Option<Session>,
    running: bool,
    base_done: bool,
    cut: Option<Vlsn>,
    /// The session that opened the stream.
    pub(super) streams: Option<RecoveryId>,
    durable: Vlsn,
    pin: Option<Vlsn>,
    sticky: bool,
    failed: u32,
    /// Who has the vote.
    voter: Option<Incarnation>,
    /// The last session, live or not, for late events to name.
    last: Option<Session>,
}

impl Seen {
    fn is_rebuilt(&self) -> bool {
        self.live.is_some_and(|live| matches!(live.kind, Kind::Rebuild { .. }))
    }

    fn ended(&mut self) {
        (self.live, self.streams, self.cut) = (None, None, None);
    }

    fn fails(&mut self, reason: FailReason) {
        self.sticky |= matches!(reason, FailReason::LogRecycled | FailReason::PinLost);
        let counted = !matches!(reason, FailReason::NoSpace | FailReason::Cancelled);
        if self.live.is_some() && !self.is_rebuilt() && counted {
            self.failed += 1;
        }
        self.ended();
    }

    fn proves_nothing(&mut self) {
        (self.sticky, self.failed) = (false, 0);
    }
}

/// An engine, its twin that is told everything from a recording, and whoever watches them.
pub(super) struct Watch {
    pub(super) engine: Recovery,
    twin: Recovery,
    pub(super) era: Option<Era>,
    pub(super) now: Now,
    pub(super) first: Vlsn,
    pub(super) last: Vlsn,
    dtvlsn: Vlsn,
    pub(super) seen: BTreeMap<Name, Seen>,
    pub(super) links: u64,
    pub(super) incarnations: [u64; NAMES.len()],
    history: Vec<Event>,
}

impl Watch {
    fn new() -> Self {
        let setup = Setup::decode(&SETUP.encode()).unwrap();
        Self {
            engine: Recovery::new(SETUP),
            twin: Recovery::new(setup),
            era: None,
            now: Now::ZERO,
            first: v(1),
            last: NULL_VLSN,
            dtvlsn: NULL_VLSN,
            seen: BTreeMap::new(),
            links: 0,
            incarnations: [1; NAMES.len()],
            history: Vec::new(),
        }
    }

    /// A master with some log, and every replica connected.
    pub(super) fn begun() -> Checked<Self> {
        let mut watch = Self::new();
        watch.feed(&Event::Tick { now: secs(1) })?;
        watch.run(&Op::Era { term: 4, members: 0 })?;
        watch.run(&Op::Bounds { written: 25, recycled: 0 })?;
        for who in 0..NAMES.len() {
            watch.run(&Op::Up { who, wiped: false })?;
        }
        Ok(watch)
    }

    /// What `op` says, as things are.
    fn event(&mut self, op: &Op) -> Option<Event> {
        let of = |watch: &Self, who: usize| {
            watch.seen.get(&name(NAMES[who])).cloned().unwrap_or_default()
        };
        Some(match op {
            Op::Work { who, lag } => self.work(*who, u64::from(*lag))?,
            Op::Tick(after) => Event::Tick { now: self.now + secs(u64::from(*after)) },
            Op::Bounds { written, recycled } => {
                let last = self.last.plus(u64::from(*written));
                let first = self.first.plus(u64::from(*recycled)).min(last.next());
                // A little of what was written is not durable on a quorum yet.
                let dtvlsn = v((last.sequence() - i64::from(*written % 4)).max(0));
                Event::Bounds(Bounds { first, last, dtvlsn })
            }
            Op::Up { who, wiped } => {
                self.links += 1;
                self.incarnations[*who] += u64::from(*wiped);
                Event::PeerUp {
                    name: name(NAMES[*who]),
                    link: Link(self.links),
                    incarnation: inc(self.incarnations[*who]),
                }
            }
            Op::Gone(who) => {
                Event::PeerGone { name: name(NAMES[*who]), link: of(self, *who).link? }
            }
            Op::Facts(who, facts) => {
                let nonce = of(self, *who).asked?;
                let incarnation = inc(self.incarnations[*who]);
                let newest = self.era.filter(|known| order(*known) > order(facts.era));
                let facts = Facts { era: newest.unwrap_or(facts.era), incarnation, ..*facts };
                Event::Facts { name: name(NAMES[*who]), nonce, facts }
            }
            Op::Session(who, step) => {
                let seen = of(self, *who);
                let session = seen.last?;
                let what = step_of(&seen, *step);
                let (name, era) = (name(NAMES[*who]), session.era);
                Event::Session { name, session: session.id, era, what }
            }
            Op::Ack { who, entries } => {
                let seen = of(self, *who);
                self.ack(*who, &seen, seen.last?, u64::from(*entries))
            }
            Op::PinDropped(who) => {
                let session = of(self, *who).last?.id;
                Event::PinDropped { name: name(NAMES[*who]), session }
            }
            Op::Era { term, members } => {
                let members = (0..NAMES.len()).filter(|who| members >> who & 1 == 0);
                let members =
                    members.map(|who| (name(NAMES[who]), Some(inc(self.incarnations[who]))));
                Event::Assigned { era: era(*term), members: members.collect() }
            }
            Op::Again(at) => {
                let at = at.checked_rem(self.history.len())?;
                self.history[at].clone()
            }
            Op::Delayed(_) => return None,
        })
    }

    fn work(&self, who: usize, lag: u64) -> Option<Event> {
        let name = name(NAMES[who]);
        let seen = self.seen.get(&name)?;
        let Some(session) = seen.live else {
            if seen.streams.is_some() {
                return Some(self.ack(who, seen, seen.last?, lag));
            }
            let end = v((self.last.sequence() - lag as i64).max(0));
            let peer = Peer::new(end, 0);
            let facts = peer.facts(self.era?, self.first, inc(self.incarnations[who]));
            return Some(Event::Facts { name, nonce: seen.asked?, facts });
        };
        let (durable, base_bytes) = (seen.durable.max(session.target), lag);
        let what = match seen.cut {
            _ if !seen.running => SessionEvent::Accepted,
            Some(cut) if seen.base_done => SessionEvent::Completed { durable: durable.max(cut) },
            _ => SessionEvent::Progress(Progress { base_bytes, base_done: true, durable }),
        };
        Some(Event::Session { name, session: session.id, era: session.era, what })
    }

    fn ack(&self, who: usize, seen: &Seen, session: Session, entries: u64) -> Event {
        Event::DurableAck {
            name: name(NAMES[who]),
            incarnation: inc(self.incarnations[who]),
            session: session.id,
            era: session.era,
            vlsn: seen.durable.plus(entries),
        }
    }

    pub(super) fn run(&mut self, op: &Op) -> Checked<Vec<Command>> {
        if let Op::Delayed(op) = op {
            let event = self.event(op);
            self.history.extend(event);
            return Ok(Vec::new());
        }
        let Some(event) = self.event(op) else { return Ok(Vec::new()) };
        self.history.push(event.clone());
        self.feed(&event)
    }

    /// Feeds the engine, and its twin from a recording; checks both.
    pub(super) fn feed(&mut self, event: &Event) -> Checked<Vec<Command>> {
        let before = self.seen.clone();
        let commands = self.engine.handle(event);
        self.engine.check_invariants();
        let recorded = Event::decode(&event.encode()).unwrap();
        prop_assert_eq!(&recorded, event);
        let bytes = |all: &[Command]| all.iter().map(Command::encode).collect::<Vec<_>>();
        let again = self.twin.handle(&recorded);
        prop_assert_eq!(bytes(&again), bytes(&commands), "played again");
        for command in &commands {
            prop_assert_eq!(&Command::decode(&command.encode()).unwrap(), command);
        }
        self.see_event(event);
        for command in &commands {
            let name = command.name();
            let member = before.contains_key(name) || self.seen.contains_key(name);
            prop_assert!(member, "{:?} for a stranger", command);
        }
        self.see_commands(event, &commands)?;
        self.check()?;
        Ok(commands)
    }

    fn see_event(&mut self, event: &Event) {
        match event {
            Event::Assigned { era, members } => self.see_assigned(*era, members),
            Event::Bounds(bounds) => {
                self.first = self.first.max(bounds.first);
                self.last = self.last.max(bounds.last);
                self.dtvlsn = self.dtvlsn.max(bounds.dtvlsn);
            }
            Event::Tick { now } => self.now = self.now.max(*now),
            Event::PeerUp { name, link, incarnation } => {
                if let Some(seen) = self.seen.get_mut(name)
                    && seen.link.is_none_or(|newest| newest < *link)
                {
                    seen.link = Some(*link);
                    if seen.incarnation.replace(*incarnation) != Some(*incarnation) {
                        seen.proves_nothing();
                    }
                }
            }
            Event::Session { name, session, era, what } if Some(*era) == self.era => {
                if let Some(seen) = self.seen.get_mut(name)
                    && seen.live.is_some_and(|live| live.id == *session)
                {
                    see_session(seen, *what);
                }
            }
            Event::DurableAck { name, incarnation, session, era, vlsn } => {
                if let Some(seen) = self.seen.get_mut(name)
                    && Some(*era) == self.era
                    && seen.incarnation == Some(*incarnation)
                {
                    let runs = seen.running && seen.live.is_some_and(|live| live.id == *session);
                    if runs || seen.streams == Some(*session) {
                        seen.durable = seen.durable.max(*vlsn);
                    }
                }
            }
            Event::PinDropped { name, session } => {
                if let Some(seen) = self.seen.get_mut(name)
                    && seen.live.map(|live| live.id).or(seen.streams) == Some(*session)
                {
                    seen.sticky = true;
                }
            }
            Event::Session { .. } | Event::PeerGone { .. } | Event::Facts { .. } => {}
        }
    }

    fn see_assigned(&mut self, era: Era, members: &BTreeMap<Name, Option<Incarnation>>) {
        if self.era.is_some_and(|known| order(era) < order(known)) {
            return;
        }
        if self.era != Some(era) {
            (self.era, self.first, self.last) = (Some(era), v(1), NULL_VLSN);
            self.dtvlsn = NULL_VLSN;
            self.seen.values_mut().for_each(Seen::proves_nothing);
        }
        self.seen.retain(|name, _| members.contains_key(name));
        for (name, voter) in members {
            self.seen.entry(name.clone()).or_default().voter = *voter;
        }
    }

    fn see_commands(&mut self, event: &Event, commands: &[Command]) -> Checked {
        for command in commands {
            // What ends with a removed member is seen no more.
            let Some(seen) = self.seen.get_mut(command.name()) else { continue };
            match command {
                Command::AskFacts { nonce, .. } => {
                    prop_assert!(seen.live.is_none() && seen.streams.is_none());
                    prop_assert!(seen.asked < Some(*nonce), "a new nonce");
                    seen.asked = Some(*nonce);
                }
                Command::Start { session, .. } => {
                    prop_assert!(seen.live.is_none(), "two sessions");
                    prop_assert!(seen.streams.is_none(), "a session beside a stream");
                    let Event::Facts { facts, .. } = event else {
                        return Err(TestCaseError::fail("a decision without facts"));
                    };
                    check_start(seen, *session, facts)?;
                    let from = match session.kind {
                        Kind::KeepUp { from } | Kind::CatchUp { from, .. } => from,
                        Kind::Rebuild { .. } => self.first,
                    };
                    let votes = seen.voter.is_some() && seen.voter == seen.incarnation;
                    let end = if votes { self.last } else { self.last.min(self.dtvlsn) };
                    prop_assert_eq!((session.target, Some(session.era)), (end, self.era));
                    (seen.live, seen.last) = (Some(*session), Some(*session));
                    (seen.running, seen.base_done, seen.cut) = (false, false, None);
                    seen.durable = from.prev();
                }
                Command::Cut { session, cut, .. } => {
                    let Some(live) = seen.live else {
                        return Err(TestCaseError::fail("a cut of nothing"));
                    };
                    prop_assert!(live.id == *session && seen.running && seen.cut.is_none());
                    prop_assert!(*cut >= live.target);
                    seen.cut = Some(*cut);
                }
                Command::Cancel { session, .. } => {
                    let ours = seen.live.map(|live| live.id).or(seen.streams);
                    prop_assert_eq!(ours, Some(*session), "cancelled");
                    if let Event::Tick { .. } = event {
                        seen.fails(FailReason::Stalled);
                    }
                    seen.ended();
                }
                Command::Pin { from, .. } => {
                    prop_assert!(seen.pin.is_none_or(|pin| pin < *from), "a pin moved back");
                    seen.pin = Some(*from);
                }
                Command::Unpin { .. } => {
                    prop_assert!(seen.pin.is_some());
                    seen.pin = None;
                    seen.ended();
                }
                Command::Alarm { .. } => prop_assert!(seen.live.is_none()),
            }
        }
        Ok(())
    }

    fn check(&self) -> Checked {
        for (name, seen) in &self.seen {
            let fed = seen.live.is_some() || seen.streams.is_some();
            prop_assert_eq!(seen.pin.is_some(), fed, "{}: {:?}", name, seen);
            let next = Some(seen.durable.next());
            prop_assert!(seen.pin.is_none() || seen.pin <= next, "{}: {:?}", name, seen);
            let keeps_up = seen.live.is_some_and(|live| matches!(live.kind, Kind::KeepUp { .. }));
            let may_count = seen.streams.is_some() || keeps_up && seen.running;
            for incarnation in 0..20 {
                let counts = self.engine.counts(name, inc(incarnation));
                let is = seen.incarnation == Some(inc(incarnation));
                prop_assert!(!counts || may_count && is, "{} counts: {:?}", name, seen);
            }
            let shown = self.engine.projection(name);
            let as_seen = match shown {
                Some(Projection::Rebuilding(_)) => seen.is_rebuilt(),
                Some(Projection::CatchingUp(_)) => seen.live.is_some() && !seen.is_rebuilt(),
                Some(Projection::Healthy | Projection::Degraded(Reason::Lagging(_))) => {
                    seen.streams.is_some()
                }
                Some(_) => !fed,
                None => false,
            };
            prop_assert!(as_seen, "{} is shown as {:?}: {:?}", name, shown, seen);
        }
        let waits = self.engine.projections().any(|(_, shown)| match shown {
            Projection::Absent | Projection::Refused(_) | Projection::Healthy => false,
            Projection::Degraded(reason) => !matches!(reason, Reason::Lagging(_)),
            _ => true,
        });
        prop_assert!(!waits || self.engine.next_deadline().is_some(), "nobody waits for it");
        let floor = self.seen.values().filter_map(|seen| seen.pin).min();
        prop_assert_eq!(self.engine.retention_floor(), floor);
        Ok(())
    }
}

fn step_of(seen: &Seen, step: Step) -> SessionEvent {
    match step {
        Step::Accepted => SessionEvent::Accepted,
        Step::Progress { bytes, done, entries } => SessionEvent::Progress(Progress {
            base_bytes: u64::from(bytes),
            base_done: done,
            durable: seen.durable.plus(u64::from(entries)),
        }),
        Step::Completed { less } => {
            let all = seen.cut.unwrap_or(seen.durable).sequence();
            SessionEvent::Completed { durable: v((all - i64::from(less)).max(0)) }
        }
        Step::Failed(reason) => SessionEvent::Failed(reason),
    }
}

/// An event of the live session.
fn see_session(seen: &mut Seen, what: SessionEvent) {
    match what {
        SessionEvent::Accepted => seen.running = true,
        SessionEvent::Progress(progress) if seen.running => {
            seen.durable = seen.durable.max(progress.durable);
            seen.base_done |= progress.base_done;
        }
        SessionEvent::Completed { durable } if seen.running => {
            let base_done = seen.base_done || !seen.is_rebuilt();
            if base_done && seen.cut.is_some_and(|cut| durable >= cut) {
                seen.durable = seen.durable.max(durable);
                seen.streams = seen.live.take().map(|live| live.id);
                seen.proves_nothing();
            }
        }
        SessionEvent::Failed(reason) => seen.fails(reason),
        SessionEvent::Progress(_) | SessionEvent::Completed { .. } => {}
    }
}

fn check_start(seen: &Seen, session: Session, facts: &Facts) -> Checked {
    let agreed = match facts.agreement {
        Agreement::Matchpoint { to_end: true, .. } => Some(facts.durable),
        Agreement::Matchpoint { matchpoint, .. } => Some(matchpoint),
        Agreement::Empty | Agreement::Nothing => None,
    };
    let all_failed = seen.sticky || seen.failed >= LIMITS.thresholds.attempts;
    match session.kind {
        Kind::Rebuild { resume } => prop_assert_eq!(resume, facts.restore_marker),
        Kind::KeepUp { from } => {
            prop_assert!(!all_failed, "sticky: {:?}", seen);
            prop_assert_eq!(agreed, Some(facts.durable), "a diverged log keeps up");
            prop_assert_eq!(from, facts.durable.next());
        }
        Kind::CatchUp { from, truncate_to } => {
            prop_assert!(!all_failed, "sticky: {:?}", seen);
            let agreed = agreed.unwrap_or(NULL_VLSN);
            prop_assert_eq!(from, agreed.next());
            prop_assert_eq!(truncate_to, (agreed < facts.durable).then_some(agreed));
            prop_assert!(agreed >= facts.known_dtvlsn.min(facts.durable), "durable entries cut");
        }
    }
    Ok(())
}
