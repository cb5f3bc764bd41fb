//! Hold: messages that a scenario keeps back, to let them come at the worst moment.
//!
//! A frame that is held stops its connection: whatever is sent behind it that way waits too, so that
//! the order stays that of TCP. Datagrams have none.
//!
//! # Not here: letting them come (network.rs), the verbs (script.rs).

use std::collections::BTreeSet;

use noxu_rep::net::dispatcher::FEEDER_SERVICE_NAME;
use noxu_rep::wire::election::{Body, ElectionMsg, Phase, Verdict};
use noxu_rep::wire::message::StreamMessage;

use crate::event::Host;
use crate::network::{EndId, NetEvent};

/// What a message is, as far as scenarios tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks whether a vote would be given.
    PreVotes,
    /// Asks for a vote.
    Votes,
    /// A vote would be given.
    PreGrants,
    /// A vote.
    Grants,
    /// How its sender stands.
    Standings,
    /// Entries of a stream.
    Entries,
    /// Where the log of a stream's master ends.
    Heads,
    /// What a replica has of it.
    Acks,
}

impl Kind {
    /// The kind that a scenario calls so.
    pub(crate) fn named(word: &str) -> Option<Self> {
        Some(match word {
            "pre-votes" => Self::PreVotes,
            "votes" => Self::Votes,
            "pre-grants" => Self::PreGrants,
            "grants" => Self::Grants,
            "standings" => Self::Standings,
            "entries" => Self::Entries,
            "heads" => Self::Heads,
            "acks" => Self::Acks,
            _ => return None,
        })
    }

    /// Of what is sent over links.
    fn of_datagram(bytes: &[u8]) -> Option<Self> {
        match ElectionMsg::decode(bytes).ok()?.body {
            Body::VoteRequest(request) => Some(match request.phase {
                Phase::Pre => Self::PreVotes,
                Phase::Real => Self::Votes,
            }),
            Body::VoteAnswer(answer) => match (answer.phase, answer.verdict) {
                (Phase::Pre, Verdict::Granted { .. }) => Some(Self::PreGrants),
                (Phase::Real, Verdict::Granted { .. }) => Some(Self::Grants),
                (Phase::Pre | Phase::Real, Verdict::Refused(_)) => None,
            },
            Body::Standing(_) => Some(Self::Standings),
            _ => None,
        }
    }

    /// Of what is sent over connections for `service`.
    fn of_frame(service: &str, frame: &[u8]) -> Option<Self> {
        if service != FEEDER_SERVICE_NAME {
            return None;
        }
        match StreamMessage::decode(frame).ok()? {
            StreamMessage::Entries { .. } | StreamMessage::Fragment { .. } => Some(Self::Entries),
            StreamMessage::HeadAnswer { .. } => Some(Self::Heads),
            StreamMessage::Ack(_) => Some(Self::Acks),
            _ => None,
        }
    }
}

/// Messages that are kept back, under a name.
#[derive(Debug)]
pub(crate) struct Hold {
    name: String,
    kind: Kind,
    /// Ways on which more is held.
    ways: Vec<(Host, Host)>,
    /// Connections' ends that nothing reaches any more.
    stopped: BTreeSet<EndId>,
    /// What waits, in order.
    kept: Vec<Kept>,
}

/// A message that waits.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) from: Host,
    pub(crate) to: Host,
    /// That of its connection; empty if it has none.
    pub(crate) service: &'static str,
    pub(crate) event: NetEvent,
}

impl Hold {
    pub(crate) fn new(name: &str, kind: Kind, ways: &[(Host, Host)]) -> Self {
        let (name, ways) = (name.to_owned(), ways.to_vec());
        Self { name, kind, ways, stopped: BTreeSet::new(), kept: Vec::new() }
    }

    /// No more is held, but what comes behind something that is.
    pub(crate) fn end(&mut self) {
        self.ways.clear();
    }

    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    /// Whether `event` is to wait here. `service` is that of its connection.
    pub(crate) fn holds(&mut self, way: (Host, Host), service: &str, event: &NetEvent) -> bool {
        let is_meant = |kind| kind == Some(self.kind) && self.ways.contains(&way);
        match event {
            NetEvent::Datagram { bytes, .. } => is_meant(Kind::of_datagram(bytes)),
            NetEvent::Frame { to, frame } => {
                if is_meant(Kind::of_frame(service, frame)) {
                    self.stopped.insert(*to);
                }
                self.stopped.contains(to)
            }
            NetEvent::Close { to } => self.stopped.contains(to),
            NetEvent::Syn { .. } | NetEvent::Answer { .. } => false,
        }
    }

    pub(crate) fn keep(&mut self, kept: Kept) {
        self.kept.push(kept);
    }

    /// What waits, in order.
    pub(crate) fn into_kept(self) -> Vec<Kept> {
        self.kept
    }

    /// Whether anything waits.
    pub(crate) fn has_any(&self) -> bool {
        !self.kept.is_empty()
    }
}
