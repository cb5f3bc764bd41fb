use std::collections::BTreeMap;

use noxu_util::{NULL_VLSN, Term};

use super::*;

mod decisions;
mod pinning;
mod random;
mod sessions;

fn v(n: i64) -> Vlsn {
    Vlsn::new(n)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn era(term: u32) -> Era {
    Era { epoch: 1, term: Term::new(term) }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn inc(n: u64) -> Incarnation {
    Incarnation::from_u64(n)
}

const LIMITS: Limits = Limits {
    thresholds: Thresholds { small_lag: 10, attempts: 3 },
    answer: Duration::from_secs(2),
    accept: Duration::from_secs(5),
    stall: Duration::from_secs(10),
    first_rest: Duration::from_secs(1),
    longest_rest: Duration::from_secs(8),
};

const SETUP: Setup = Setup { limits: LIMITS, first_number: 100 };

/// Facts of incarnation 1 that share everything through `matchpoint`, of a log that ends there.
fn prefix(matchpoint: i64) -> Facts {
    Facts {
        era: era(5),
        incarnation: inc(1),
        durable: v(matchpoint),
        known_dtvlsn: NULL_VLSN,
        agreement: Agreement::Matchpoint { matchpoint: v(matchpoint), to_end: true },
        restore_marker: None,
    }
}

fn empty() -> Facts {
    Facts { durable: NULL_VLSN, agreement: Agreement::Empty, ..prefix(0) }
}

fn foreign(durable: i64, known: i64) -> Facts {
    Facts { known_dtvlsn: v(known), agreement: Agreement::Nothing, ..prefix(durable) }
}

fn diverged(matchpoint: i64, durable: i64, known: i64) -> Facts {
    let agreement = Agreement::Matchpoint { matchpoint: v(matchpoint), to_end: false };
    Facts { known_dtvlsn: v(known), agreement, ..prefix(durable) }
}

/// An engine in term 5, and what is needed to talk to it. Replicas are of incarnation 1.
struct Bench {
    engine: Recovery,
    era: Era,
    links: u64,
    nonces: BTreeMap<Name, Nonce>,
    sessions: BTreeMap<Name, Session>,
}

impl Bench {
    /// A master with the entries `first` to `last`, and connected replicas.
    fn new(first: i64, last: i64, replicas: &[&str]) -> Self {
        let mut bench = Self {
            engine: Recovery::new(SETUP),
            era: era(5),
            links: 0,
            nonces: BTreeMap::new(),
            sessions: BTreeMap::new(),
        };
        bench.assign(era(5), replicas);
        bench.bounds(first, last);
        for who in replicas {
            bench.up(who, 1);
        }
        bench
    }

    fn feed(&mut self, event: &Event) -> Vec<Command> {
        let commands = self.engine.handle(event);
        self.engine.check_invariants();
        for command in &commands {
            match command {
                Command::AskFacts { name, nonce } => {
                    self.nonces.insert(name.clone(), *nonce);
                }
                Command::Start { name, session } => {
                    self.sessions.insert(name.clone(), *session);
                }
                _ => {}
            }
        }
        commands
    }

    /// Feeds an event that must change nothing, for this reason.
    fn ignores(&mut self, why: Ignored, event: &Event) {
        let before = (self.ignored(why), format!("{:?}", self.engine.replicas));
        assert_eq!(self.feed(event), [], "{event:?}");
        let after = (self.ignored(why), format!("{:?}", self.engine.replicas));
        assert_eq!(after, (before.0 + 1, before.1), "{event:?} is not ignored as {why:?}");
    }

    fn ignored(&self, why: Ignored) -> u64 {
        self.engine.ignored().get(&why).copied().unwrap_or(0)
    }

    fn assign(&mut self, era: Era, replicas: &[&str]) -> Vec<Command> {
        self.era = era;
        let members = replicas.iter().map(|who| (name(who), Some(inc(1)))).collect();
        self.feed(&Event::Assigned { era, members })
    }

    fn bounds(&mut self, first: i64, last: i64) {
        let bounds = Bounds { first: v(first), last: v(last), dtvlsn: NULL_VLSN };
        assert_eq!(self.feed(&Event::Bounds(bounds)), []);
    }

    fn up(&mut self, who: &str, incarnation: u64) -> Vec<Command> {
        self.links += 1;
        let (link, incarnation) = (Link(self.links), inc(incarnation));
        self.feed(&Event::PeerUp { name: name(who), link, incarnation })
    }

    fn gone(&mut self, who: &str) -> Vec<Command> {
        self.feed(&Event::PeerGone { name: name(who), link: Link(self.links) })
    }

    /// Answers the question asked last.
    fn facts(&mut self, who: &str, facts: Facts) -> Vec<Command> {
        let nonce = self.nonces[&name(who)];
        self.feed(&Event::Facts { name: name(who), nonce, facts })
    }

    fn event(&self, who: &str, what: SessionEvent) -> Event {
        let session = self.sessions[&name(who)].id;
        Event::Session { name: name(who), session, era: self.era, what }
    }

    fn session(&mut self, who: &str, what: SessionEvent) -> Vec<Command> {
        self.feed(&self.event(who, what))
    }

    fn progress(&mut self, who: &str, base_bytes: u64, base_done: bool, to: i64) -> Vec<Command> {
        let progress = Progress { base_bytes, base_done, durable: v(to) };
        self.session(who, SessionEvent::Progress(progress))
    }

    fn completed(&mut self, who: &str, durable: i64) -> Vec<Command> {
        self.session(who, SessionEvent::Completed { durable: v(durable) })
    }

    fn failed(&mut self, who: &str, reason: FailReason) -> Vec<Command> {
        self.session(who, SessionEvent::Failed(reason))
    }

    fn ack_event(&self, who: &str, to: i64) -> Event {
        Event::DurableAck {
            name: name(who),
            incarnation: inc(1),
            session: self.sessions[&name(who)].id,
            era: self.era,
            vlsn: v(to),
        }
    }

    fn ack(&mut self, who: &str, to: i64) -> Vec<Command> {
        self.feed(&self.ack_event(who, to))
    }

    fn tick(&mut self, at: u64) -> Vec<Command> {
        self.feed(&Event::Tick { now: secs(at) })
    }

    /// Answers with `facts` and has the session that follows accepted; says which it is.
    fn begin(&mut self, who: &str, facts: Facts) -> Session {
        let commands = self.facts(who, facts);
        let [Command::Pin { .. }, Command::Start { session, .. }] = &commands[..] else {
            panic!("{commands:?}");
        };
        self.session(who, SessionEvent::Accepted);
        *session
    }

    fn kind(&mut self, who: &str, facts: Facts) -> Kind {
        self.begin(who, facts).kind
    }

    /// Has `who` stream at `at`, which is the end of the master's log.
    fn stream(&mut self, who: &str, at: i64) {
        assert!(matches!(self.kind(who, prefix(at)), Kind::KeepUp { .. }));
        self.completed(who, at);
        assert_eq!(self.shown(who), Projection::Healthy);
    }

    fn shown(&self, who: &str) -> Projection {
        self.engine.projection(&name(who)).unwrap()
    }

    fn pin(&self, who: &str) -> Option<i64> {
        self.engine.desk.pins.of(&name(who)).map(Vlsn::sequence)
    }

    fn counts(&self, who: &str) -> bool {
        self.engine.counts(&name(who), inc(1))
    }
}

const REBUILD: Kind = Kind::Rebuild { resume: None };

fn is_asked(commands: &[Command]) -> bool {
    matches!(commands, [Command::AskFacts { .. }])
}

fn unpinned_and_asked(commands: &[Command]) -> bool {
    matches!(commands, [Command::Unpin { .. }, Command::AskFacts { .. }])
}

fn cancelled_and_asked(commands: &[Command]) -> bool {
    let [cancel, rest @ ..] = commands else { return false };
    matches!(cancel, Command::Cancel { .. }) && unpinned_and_asked(rest)
}
