//! Peer: a replica that brings itself level.

use super::*;

/// A replica that says what is and does what it is told.
#[derive(Debug)]
pub(super) struct Peer {
    durable: Vlsn,
    /// What of it the master does not have.
    tail: u64,
    base_left: u64,
    session: Option<Session>,
    marker: Option<RecoveryId>,
    cut: Option<Vlsn>,
    pub(super) said: Vec<Event>,
}

impl Peer {
    pub(super) fn new(durable: Vlsn, tail: u64) -> Self {
        let (session, marker, cut) = (None, None, None);
        Self { durable, tail, base_left: 0, session, marker, cut, said: Vec::new() }
    }

    pub(super) fn facts(&self, era: Era, first: Vlsn, incarnation: Incarnation) -> Facts {
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

    pub(super) fn told(&mut self, name: &Name, command: &Command, answer: Facts) {
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
    pub(super) fn works(&mut self, name: &Name, incarnation: Incarnation, last: Vlsn) {
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
