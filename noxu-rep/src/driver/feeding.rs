//! Feeding: the master's half of a conversation with a replica, until its stream is open: handshake,
//! syncup, its place in the log.
//!
//! # Not here: who is accepted (wire/handshake.rs), what is sent (stream/feeder.rs).

use std::sync::Arc;

use noxu_log::{Holder, HolderKind, Lost, Pin};
use noxu_util::{Name, Vlsn};

use super::following::is_damage;
use super::life::Life;
use super::master::{FeederSession, Master, NewSession, SessionHost};
use super::mending::{Resumed, answer_replica};
use super::services::LOG_FORMAT;
use crate::core::node::Input;
use crate::core::recovery::Link;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::stream::feeder::{FeederHost, FeederStream};
use crate::stream::log_view::LogView;
use crate::stream::syncup_protocol::{SyncupOptions, feeder_syncup};
use crate::wire::handshake::{
    Capabilities, FeederSide, Hello, Mastership, RejectReason, VersionRange, Welcome,
    handshake_as_feeder,
};
use crate::wire::message::Era;

/// A replica whose stream is open.
pub struct Feeding {
    life: Arc<Life>,
    master: Arc<Master>,
    session: Arc<FeederSession>,
    host: Arc<SessionHost>,
    /// Its steps are to be taken.
    pub stream: Arc<FeederStream>,
}

impl Life {
    /// Accepts the replica at the other end of `channel`, if this node is master. `None` if there is
    /// nothing to feed it with: it goes to restore. The channel is closed then, and on errors.
    ///
    /// # Errors
    /// `Rejected` with what the replica was told; the channel's; the log's.
    pub fn accept(self: &Arc<Self>, channel: &Arc<dyn Channel>) -> Result<Option<Feeding>> {
        let accepted = self.accept_over(channel);
        if !matches!(accepted, Ok(Some(_))) {
            channel.close();
        }
        accepted
    }

    fn accept_over(self: &Arc<Self>, channel: &Arc<dyn Channel>) -> Result<Option<Feeding>> {
        let asked = std::cell::RefCell::new(None);
        let handshake = handshake_as_feeder(&**channel, &|hello| {
            let sitting = self.mastership();
            let welcome = self.welcome(sitting.as_deref(), hello);
            *asked.borrow_mut() = Some((hello.clone(), sitting));
            welcome
        });
        let asked = asked.into_inner();
        let (hello, welcome) = match (handshake, &asked) {
            (Err(RepError::Rejected(RejectReason::OldTerm { ours, theirs })), Some((hello, _)))
                if theirs > ours =>
            {
                self.met_term(theirs, &hello.node, hello.incarnation);
                return Err(RejectReason::OldTerm { ours, theirs }.into());
            }
            (other, _) => other?,
        };
        let Some((_, Some(master))) = asked else {
            return Err(RepError::NotMaster { master: None });
        };
        let counts = self.is_bound(&hello.node, hello.incarnation);
        let session = master.open_session(NewSession {
            name: hello.node,
            incarnation: hello.incarnation,
            address: hello.address,
            kind: hello.kind,
            epoch: welcome.epoch,
            counts,
            channel: Arc::clone(channel),
        });
        let fed = self.feed(&master, &session, welcome.capabilities);
        if !matches!(fed, Ok(Some(_))) {
            master.handle_session_closed(&session);
            // One that is to be rebuilt comes back to the restore service.
            if fed.is_err() {
                self.note_gone(&master, &session, false);
            }
        }
        if let Err(cause) = &fed {
            self.look_for_damage(cause);
        }
        fed
    }

    fn feed(
        self: &Arc<Self>,
        master: &Arc<Master>,
        session: &Arc<FeederSession>,
        capabilities: Capabilities,
    ) -> Result<Option<Feeding>> {
        let options = SyncupOptions {
            probes: capabilities.has(Capabilities::SYNCUP_PROBES),
            ..SyncupOptions::default()
        };
        let era = Era { epoch: self.log.control().ballot().epoch, term: master.term() };
        let first = answer_replica(&*session.channel, &self.log, era)?;
        let channel = Resumed::new(&*session.channel, first);
        let view = LogView::new(&self.log);
        let compared = feeder_syncup(&channel, &view, &options)?;
        let settled = self.settle_recovery(master, session, compared)?;
        let Some((recovery, start)) = settled else { return Ok(None) };
        let pin = self.pin(session, start)?;
        master.handle_stream_open(session, start);
        let now = self.clock.now();
        let errands = master.recovering.handle_accepted(now, &session.name, recovery);
        master.run_errands(errands);
        let (replica, session_id) = (session.name.clone(), session.id);
        let master = Arc::clone(master);
        let host = Arc::new(SessionHost { master, session: session_id, replica, recovery, pin });
        let stream = Arc::new(FeederStream::new(
            self.log.clone(),
            Arc::clone(&session.channel),
            Arc::clone(&host) as Arc<dyn FeederHost>,
            self.clock.clone(),
            Arc::clone(&session.core),
        ));
        Ok(Some(Feeding {
            life: Arc::clone(self),
            master: Arc::clone(&host.master),
            session: Arc::clone(session),
            host,
            stream,
        }))
    }

    /// Rot in what was written long ago is met only when another node needs it.
    pub(super) fn look_for_damage(&self, cause: &RepError) {
        if let RepError::Log(cause) = cause
            && is_damage(cause)
            && !self.handle_rot(cause)
        {
            self.around.post(Input::Unreadable);
        }
    }

    /// The connection with a replica is over.
    fn note_gone(&self, master: &Master, session: &FeederSession, pin_lost: bool) {
        let (now, link) = (self.clock.now(), Link(session.id.0));
        let errands = master.recovering.handle_gone(now, &session.name, link, pin_lost);
        master.run_errands(errands);
    }

    /// Keeps the log from `start` on for a replica; a voter keeps its place for a while when it goes.
    fn pin(&self, session: &FeederSession, start: Vlsn) -> Result<Pin> {
        let holder = Holder::new(HolderKind::Stream, session.name.as_str());
        let channel = Arc::clone(&session.channel);
        let mut pin = self.log.pin_with(holder, start, move |_| channel.close())?;
        if session.counts {
            pin.set_grace(self.config.absence_grace);
        }
        Ok(pin)
    }

    fn welcome(&self, master: Option<&Master>, hello: &Hello) -> Result<Welcome, RejectReason> {
        let control = self.log.control().state();
        let Some(group) = control.group else {
            return Err(RejectReason::NotReady { node: self.config.name.clone() });
        };
        let membership = self.membership();
        let members = self.members();
        let bound = |name: &Name| {
            let voter = membership.as_ref()?.electorate.voter(name)?;
            Some(voter.incarnation)
        };
        let connected = |name: &Name| master.and_then(|master| master.connected(name));
        FeederSide {
            versions: VersionRange::SPOKEN,
            group: group.id,
            group_name: &group.name,
            segment_bytes: group.segment_bytes,
            log_format: LOG_FORMAT,
            node: &self.config.name,
            incarnation: control.incarnation,
            epoch: control.epoch,
            term: master.map_or(control.term, Master::term),
            capabilities: Capabilities::OURS,
            wall_clock_ms: self.clock.wall_clock_ms(),
            members: (!members.is_empty()).then_some(&members[..]),
            bound: &bound,
            connected: &connected,
            mastership: match master {
                // A term that is adopted ends a mastership before it is told so.
                Some(master) if master.term() == control.term => Mastership::Established,
                Some(_) => Mastership::Elsewhere { master: None },
                None if self.is_repairing() => Mastership::Repairing,
                None => Mastership::Elsewhere { master: self.master_address() },
            },
        }
        .check(hello)
    }
}

impl Feeding {
    /// Who is fed.
    pub fn replica(&self) -> &Name {
        &self.session.name
    }

    /// The stream has ended, like that.
    ///
    /// # Errors
    /// The same, or what was behind it.
    pub fn finish(self, outcome: Result<()>) -> Result<()> {
        self.stream.handle_closed();
        self.master.handle_session_closed(&self.session);
        self.life.note_gone(&self.master, &self.session, self.host.pin.lost().is_some());
        if let Err(RepError::Stream(fault)) = &outcome
            && let Some(term) = fault.newer_term()
        {
            self.life.met_term(term, &self.session.name, self.session.incarnation);
        }
        if let Err(cause) = &outcome {
            self.life.look_for_damage(cause);
        }
        // That is what closed the channel, or what a read ahead of it met.
        match self.host.pin.lost() {
            Some(Lost { at, anchor, .. }) => Err(RepError::LostPlace {
                replica: self.session.name.clone(),
                at,
                first: anchor.next(),
            }),
            None => outcome,
        }
    }
}
