//! Random masterships: true, false, late and repeated events in any order, watched from outside.
//!
//! Whatever came before, a replica that answers truthfully is then brought level in bounded time.
//! The [`Watch`] knows the engine's promises and none of its insides; each [`Mutant`] breaks one.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;

type Checked<T = ()> = Result<T, TestCaseError>;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What happens next. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Tick(u8),
    Bounds {
        written: u8,
        recycled: u8,
    },
    Up {
        who: usize,
        wiped: bool,
    },
    Gone(usize),
    Facts(usize, Facts),
    Session(usize, Step),
    Ack {
        who: usize,
        entries: u8,
    },
    PinDropped(usize),
    Era {
        term: u32,
        members: usize,
    },
    /// Said a second time, or late for the first.
    Again(usize),
    /// Said now, arrives with [`Op::Again`] if at all.
    Delayed(Box<Op>),
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Accepted,
    Progress {
        bytes: u8,
        done: bool,
        entries: u8,
    },
    /// Durable through the cut, or a bit less.
    Completed {
        less: u8,
    },
    Failed(FailReason),
}

fn facts() -> impl Strategy<Value = Facts> {
    let agreement = prop_oneof![
        1 => Just(Agreement::Empty),
        5 => (0..60_i64, any::<bool>())
            .prop_map(|(m, to_end)| Agreement::Matchpoint { matchpoint: v(m), to_end }),
        1 => Just(Agreement::Nothing),
    ];
    let marker = prop_oneof![9 => Just(None), 1 => (0..200_u64).prop_map(|n| Some(RecoveryId(n)))];
    (0..60_i64, 0..30_i64, agreement, marker).prop_map(|(more, known, agreement, marker)| {
        let durable = match agreement {
            Agreement::Empty => NULL_VLSN,
            Agreement::Matchpoint { matchpoint, .. } => matchpoint.plus(more as u64 / 4),
            Agreement::Nothing => v(more),
        };
        let known_dtvlsn = v(known);
        Facts { durable, known_dtvlsn, agreement, restore_marker: marker, ..prefix(0) }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop::sample::select(vec![
        FailReason::Stalled,
        FailReason::Disconnected,
        FailReason::LogRecycled,
        FailReason::PinLost,
        FailReason::NoSpace,
        FailReason::Cancelled,
        FailReason::Corrupt,
    ]);
    prop_oneof![
        6 => Just(Step::Accepted),
        6 => (0..3_u8, any::<bool>(), 0..40_u8)
            .prop_map(|(bytes, done, entries)| Step::Progress { bytes, done, entries }),
        4 => (0..3_u8).prop_map(|less| Step::Completed { less }),
        2 => reason.prop_map(Step::Failed),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..NAMES.len();
    let plain = prop_oneof![
        3 => (0..6_u8).prop_map(Op::Tick),
        3 => (0..30_u8, 0..10_u8)
            .prop_map(|(written, recycled)| Op::Bounds { written, recycled }),
        4 => (who.clone(), prop::bool::weighted(0.1))
            .prop_map(|(who, wiped)| Op::Up { who, wiped }),
        1 => who.clone().prop_map(Op::Gone),
        8 => (who.clone(), facts()).prop_map(|(who, facts)| Op::Facts(who, facts)),
        16 => (who.clone(), step()).prop_map(|(who, step)| Op::Session(who, step)),
        4 => (who.clone(), 0..20_u8).prop_map(|(who, entries)| Op::Ack { who, entries }),
        1 => who.prop_map(Op::PinDropped),
        1 => (4..8_u32, 0..8_usize).prop_map(|(term, members)| Op::Era { term, members }),
        6 => (0..400_usize).prop_map(Op::Again),
    ];
    (plain, prop::bool::weighted(0.15)).prop_map(|(op, delayed)| match delayed {
        true => Op::Delayed(Box::new(op)),
        false => op,
    })
}

/// What must be true of one replica, as told by events and commands alone.
#[derive(Debug, Clone, Default)]
struct Seen {
    incarnation: Option<Incarnation>,
    link: Option<Link>,
    asked: Option<Nonce>,
    live: Option<Session>,
    running: bool,
    base_done: bool,
    cut: Option<Vlsn>,
    /// The session that opened the stream.
    streams: Option<RecoveryId>,
    durable: Vlsn,
    pin: Option<Vlsn>,
    sticky: bool,
    failed: u32,
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
struct Watch {
    engine: Recovery,
    twin: Recovery,
    era: Option<Era>,
    now: Now,
    first: Vlsn,
    last: Vlsn,
    seen: BTreeMap<Name, Seen>,
    links: u64,
    incarnations: [u64; NAMES.len()],
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
            seen: BTreeMap::new(),
            links: 0,
            incarnations: [1; NAMES.len()],
            history: Vec::new(),
        }
    }

    /// What `op` says, as things are.
    fn event(&mut self, op: &Op) -> Option<Event> {
        let of = |watch: &Self, who: usize| {
            watch.seen.get(&name(NAMES[who])).cloned().unwrap_or_default()
        };
        Some(match op {
            Op::Tick(after) => Event::Tick { now: self.now + secs(u64::from(*after)) },
            Op::Bounds { written, recycled } => {
                let last = self.last.plus(u64::from(*written));
                let first = self.first.plus(u64::from(*recycled)).min(last.next());
                Event::Bounds(Bounds { first, last, dtvlsn: NULL_VLSN })
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
                let facts = Facts { incarnation: inc(self.incarnations[*who]), ..*facts };
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
                let session = seen.last?;
                Event::DurableAck {
                    name: name(NAMES[*who]),
                    incarnation: inc(self.incarnations[*who]),
                    session: session.id,
                    era: session.era,
                    vlsn: seen.durable.plus(u64::from(*entries)),
                }
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

    fn run(&mut self, op: &Op) -> Checked {
        if let Op::Delayed(op) = op {
            let event = self.event(op);
            self.history.extend(event);
            return Ok(());
        }
        let Some(event) = self.event(op) else { return Ok(()) };
        self.history.push(event.clone());
        self.feed(&event).map(|_| ())
    }

    /// Feeds the engine, and its twin from a recording; checks both.
    fn feed(&mut self, event: &Event) -> Checked<Vec<Command>> {
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
            self.seen.values_mut().for_each(Seen::proves_nothing);
        }
        self.seen.retain(|name, _| members.contains_key(name));
        for name in members.keys() {
            self.seen.entry(name.clone()).or_default();
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
                    prop_assert_eq!((session.target, Some(session.era)), (self.last, self.era));
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

/// A replica that says what is and does what it is told.
#[derive(Debug)]
struct Peer {
    durable: Vlsn,
    /// What of it the master does not have.
    tail: u64,
    base_left: u64,
    session: Option<Session>,
    marker: Option<RecoveryId>,
    cut: Option<Vlsn>,
    said: Vec<Event>,
}

impl Peer {
    fn new(durable: Vlsn, tail: u64) -> Self {
        let (session, marker, cut) = (None, None, None);
        Self { durable, tail, base_left: 0, session, marker, cut, said: Vec::new() }
    }

    fn facts(&self, era: Era, first: Vlsn, incarnation: Incarnation) -> Facts {
        let held = self.durable.plus(self.tail);
        let agreement = match self.durable {
            _ if held.is_null() => Agreement::Empty,
            matchpoint if matchpoint.next() >= first => {
                Agreement::Matchpoint { matchpoint, to_end: self.tail == 0 }
            }
            _ => Agreement::Nothing,
        };
        let known_dtvlsn = NULL_VLSN;
        let restore_marker = self.marker;
        Facts { era, incarnation, durable: held, known_dtvlsn, agreement, restore_marker }
    }

    fn told(&mut self, name: &Name, command: &Command, answer: Facts) {
        match command {
            Command::AskFacts { name, nonce } => {
                let (name, nonce) = (name.clone(), *nonce);
                self.said.push(Event::Facts { name, nonce, facts: answer });
            }
            Command::Start { session, .. } => {
                (self.session, self.cut, self.tail) = (Some(*session), None, 0);
                match session.kind {
                    Kind::KeepUp { .. } | Kind::CatchUp { .. } => {}
                    Kind::Rebuild { .. } => {
                        self.marker = Some(session.id);
                        (self.base_left, self.durable) = (5, NULL_VLSN);
                    }
                }
                self.says(name, SessionEvent::Accepted);
            }
            Command::Cut { cut, .. } => self.cut = Some(*cut),
            Command::Cancel { .. } => self.session = None,
            Command::Pin { .. } | Command::Unpin { .. } | Command::Alarm { .. } => {}
        }
    }

    fn says(&mut self, name: &Name, what: SessionEvent) {
        if let Some(Session { id, era, .. }) = self.session {
            self.said.push(Event::Session { name: name.clone(), session: id, era, what });
        }
    }

    /// A second of work.
    fn works(&mut self, name: &Name, incarnation: Incarnation, last: Vlsn) {
        let Some(session) = self.session else { return };
        let rebuilt = matches!(session.kind, Kind::Rebuild { .. });
        self.base_left = self.base_left.saturating_sub(1);
        self.durable = if rebuilt && self.base_left == 0 {
            self.durable.max(session.target)
        } else {
            self.durable.plus(7).min(last).max(self.durable)
        };
        if self.marker.is_none() && self.cut.is_some_and(|cut| self.durable > cut) {
            let (name, era, vlsn) = (name.clone(), session.era, self.durable);
            let session = session.id;
            self.said.push(Event::DurableAck { name, incarnation, session, era, vlsn });
            return;
        }
        let base_bytes = 5 - self.base_left;
        let base_done = self.base_left == 0;
        let progress = Progress { base_bytes, base_done, durable: self.durable };
        self.says(name, SessionEvent::Progress(progress));
        if base_done && self.cut.is_some_and(|cut| self.durable >= cut) {
            self.marker = None;
            self.says(name, SessionEvent::Completed { durable: self.durable });
        }
    }
}

/// Seconds until every replica is level: sessions that nobody knows of any more must stall first,
/// longest rests pass, and up to three of them fail in a row.
const LEVEL_WITHIN: u64 = 200;

/// Lets every replica be there, truthful and able.
fn all_become_level(watch: &mut Watch, logs: &[(u8, u8); NAMES.len()]) -> Checked {
    let era = watch.era.unwrap_or(era(4));
    let members = NAMES.iter().zip(watch.incarnations).map(|(who, n)| (name(who), Some(inc(n))));
    let mut queue = vec![
        Event::Assigned { era, members: members.collect() },
        Event::Bounds(Bounds { first: watch.first, last: watch.last, dtvlsn: NULL_VLSN }),
    ];
    let mut peers = BTreeMap::new();
    for (at, who) in NAMES.iter().enumerate() {
        let (durable, tail) = logs[at];
        let durable = v(i64::from(durable)).min(watch.last);
        peers.insert(name(who), (Peer::new(durable, u64::from(tail)), inc(watch.incarnations[at])));
    }
    let mut connected = false;
    for second in 0..LEVEL_WITHIN {
        for event in std::mem::take(&mut queue) {
            for command in watch.feed(&event)? {
                let (peer, incarnation) = peers.get_mut(command.name()).unwrap();
                let answer = peer.facts(era, watch.first, *incarnation);
                peer.told(command.name(), &command, answer);
                queue.append(&mut peer.said);
            }
        }
        if !connected {
            connected = true;
            for (who, (_, incarnation)) in &peers {
                let waits = matches!(
                    watch.engine.projection(who),
                    Some(Projection::Absent | Projection::Refused(_))
                );
                let other = watch.seen[who].incarnation != Some(*incarnation);
                if waits || other {
                    watch.links += 1;
                    let (name, link) = (who.clone(), Link(watch.links));
                    queue.push(Event::PeerUp { name, link, incarnation: *incarnation });
                }
            }
        }
        // Faster than any of them follows, for a while.
        let last = watch.last.plus(if second < LEVEL_WITHIN / 3 { 10 } else { 0 });
        queue.push(Event::Bounds(Bounds { first: watch.first, last, dtvlsn: NULL_VLSN }));
        for (who, (peer, incarnation)) in &mut peers {
            peer.works(who, *incarnation, last);
            queue.append(&mut peer.said);
        }
        queue.push(Event::Tick { now: watch.now + secs(1) });
    }
    for (who, shown) in watch.engine.projections() {
        prop_assert_eq!(shown, Projection::Healthy, "{}: {:?}", who, peers[who]);
    }
    Ok(())
}

fn mastership() -> impl Strategy<Value = (Vec<Op>, [(u8, u8); NAMES.len()])> {
    (prop::collection::vec(op(), 0..250), prop::array::uniform3((0..120_u8, 0..3_u8)))
}

fn check((ops, logs): &(Vec<Op>, [(u8, u8); NAMES.len()])) -> Checked {
    let mut watch = Watch::new();
    watch.feed(&Event::Tick { now: secs(1) })?;
    watch.run(&Op::Era { term: 4, members: 0 })?;
    watch.run(&Op::Bounds { written: 25, recycled: 0 })?;
    for who in 0..NAMES.len() {
        watch.run(&Op::Up { who, wiped: false })?;
    }
    for op in ops {
        watch.run(op)?;
    }
    all_become_level(&mut watch, logs)
}

fn runner(cases: u32, max_shrink_iters: u32) -> TestRunner {
    let config = Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng())
}

#[test]
fn whatever_happens_the_promises_hold_and_replicas_get_level() {
    let cases = std::env::var("NOXU_RECOVERY_CASES").ok().and_then(|text| text.parse().ok());
    let result = runner(cases.unwrap_or(1_000), 10_000).run(&mastership(), |run| check(&run));
    result.unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn each_mutant_is_noticed() {
    for mutant in Mutant::ALL {
        let found =
            Mutant::with(Some(*mutant), || runner(1_000, 0).run(&mastership(), |run| check(&run)));
        assert!(found.is_err(), "{mutant:?} is not noticed");
    }
}

/// A run that meets nothing proves nothing.
#[test]
fn random_masterships_meet_everything() {
    let met = std::cell::RefCell::new(BTreeMap::<String, u64>::new());
    let meet = |what: String| *met.borrow_mut().entry(what).or_default() += 1;
    let run = runner(300, 0).run(&mastership(), |(ops, _)| {
        let mut watch = Watch::new();
        watch.run(&Op::Era { term: 4, members: 0 })?;
        for op in &ops {
            let before = watch.engine.ignored().clone();
            let Some(event) = watch.event(op) else { continue };
            watch.history.push(event.clone());
            for command in watch.feed(&event)? {
                match command {
                    Command::Start { session, .. } => {
                        let kind = format!("{:?}", session.kind);
                        meet(kind.split(' ').next().unwrap_or_default().to_owned());
                    }
                    other => {
                        let other = format!("{other:?}");
                        meet(other.split(' ').next().unwrap_or_default().to_owned());
                    }
                }
            }
            for (why, count) in watch.engine.ignored() {
                if before.get(why) != Some(count) {
                    meet(format!("{why:?}"));
                }
            }
            for (_, shown) in watch.engine.projections() {
                let shown = format!("shown {shown:?}");
                meet(shown.split('(').next().unwrap_or_default().to_owned());
            }
        }
        Ok(())
    });
    run.unwrap_or_else(|failed| panic!("{failed}"));
    let met = met.into_inner();
    println!("{met:#?}");
    for what in [
        "AskFacts",
        "KeepUp",
        "CatchUp",
        "Rebuild",
        "Cut",
        "Cancel",
        "Pin",
        "Unpin",
        "Alarm",
        "UnknownMember",
        "OtherEra",
        "OldLink",
        "OldNonce",
        "OtherSession",
        "NoSession",
        "WrongPhase",
        "OtherIncarnation",
        "LaterEra",
        "NoBounds",
        "EarlyCompletion",
        "TimeBack",
        "shown Absent",
        "shown Unknown",
        "shown Healthy",
        "shown CatchingUp",
        "shown Rebuilding",
        "shown Degraded",
        "shown Refused",
    ] {
        assert!(met.get(what).copied().unwrap_or(0) >= 20, "{what} is hardly met");
    }
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(any::<u8>(), 0..80);
    (0..3_u8, 0..50_u8, tail)
        .prop_map(|(version, opcode, tail)| [vec![version, opcode, 1, 0, b'a'], tail].concat())
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in any_bytes()) {
        if let Ok(event) = Event::decode(&bytes) {
            prop_assert_eq!(event.encode(), &bytes[..]);
        }
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.encode(), &bytes[..]);
        }
        if let Ok(setup) = Setup::decode(&bytes) {
            prop_assert_eq!(setup.encode(), &bytes[..]);
        }
    }
}
