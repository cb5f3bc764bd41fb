//! Observer: turns what a step of a node has changed into records for the ledger.
//!
//! It looks at the log from outside, after each step: where it ends, what is new, what is gone, what
//! is synced; and at what the node has said.
//!
//! # Not here: the rules (invariants).

use std::collections::BTreeMap;
use std::sync::Arc;

use noxu_log::env::{Env, Survivors};
use noxu_log::{Holder, Log, LogConfig};
use noxu_rep::driver::life::Life;
use noxu_rep::restore::staged_log;
use noxu_rep::wire::election::{Body, ElectionMsg, Phase, RepairVerdict, Verdict};
use noxu_rep::wire::message::StreamMessage;
use noxu_rep::wire::restore::RestoreMsg;
use noxu_util::{Name, Term, Vlsn};

use crate::disk::Disk;
use crate::event::Host;
use crate::invariants::{Violation, Watch};
use crate::ledger::{Held, LogMirror, Record};
use crate::node::host_of;

/// What is known of masterships.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// The mastership that a node's present life was last seen in, and what it called durable.
    masterships: BTreeMap<Host, (Term, Vlsn)>,
    /// What a node's present life was last seen to have applied.
    applied: BTreeMap<Host, Vlsn>,
    /// The places that a node's present life was last seen to hold, and the front of its log.
    places: BTreeMap<Host, BTreeMap<Holder, (Vlsn, Vlsn)>>,
}

impl Observer {
    /// A node was started: its log is what its disk had. `amid` if it crashed in the middle of a call,
    /// whose effect nobody has seen.
    pub(crate) fn handle_started(
        &mut self,
        watch: &mut Watch,
        host: Host,
        life: &Life,
        amid: bool,
    ) -> Result<(), Violation> {
        self.masterships.remove(&host);
        self.applied.remove(&host);
        self.places.remove(&host);
        let last = common(watch, host, life.log(), life.log().positions().last);
        let uncertain = life.log().control().ballot().head_uncertain;
        watch.enter(&Record::Restarted { host, last, amid, uncertain })?;
        self.look(watch, host, life)
    }

    /// A node's disk was replaced.
    pub(crate) fn handle_wiped(&mut self, watch: &mut Watch, host: Host) -> Result<(), Violation> {
        self.masterships.remove(&host);
        watch.enter(&Record::Wiped { host })
    }

    /// A node has taken a step.
    pub(crate) fn look(
        &mut self,
        watch: &mut Watch,
        host: Host,
        life: &Life,
    ) -> Result<(), Violation> {
        let log = life.log();
        let positions = log.positions();
        let mirror = watch.ledger().log(host);
        let known = mirror.map_or(Vlsn::default(), LogMirror::last);
        let ends_alike = known == positions.last
            && mirror
                .and_then(|mirror| mirror.at(known))
                .is_none_or(|held| held.fingerprint == positions.last_fingerprint);
        let anchor = &positions.anchor;
        let before_front = mirror.and_then(|mirror| mirror.at(anchor.vlsn));
        if known < anchor.vlsn
            || before_front.is_some_and(|held| held.fingerprint != anchor.fingerprint)
        {
            // Only a restore moves the front beyond the end, or changes what came before it.
            let held = Held { term: anchor.term, fingerprint: anchor.fingerprint };
            let entries = entries(log, anchor.vlsn.next(), positions.last);
            watch.enter(&Record::Installed { host, anchor: (anchor.vlsn, held), entries })?;
        } else if !ends_alike {
            let shared = common(watch, host, log, positions.last.min(known));
            if shared < known {
                watch.enter(&Record::Truncated { host, after: shared })?;
            }
            let first = shared.next();
            let entries = entries(log, first, positions.last);
            if !entries.is_empty() {
                let (_, under) = life.role();
                watch.enter(&Record::Appended { host, first, entries, under })?;
            }
        }
        let synced = watch.ledger().log(host).map_or(Vlsn::default(), LogMirror::durable);
        if positions.durable != synced {
            watch.enter(&Record::Synced { host, durable: positions.durable })?;
        }
        self.look_at_mastership(watch, host, life)?;
        self.look_at_applied(watch, host, life)
    }

    /// A node has taken a step: which places does it hold now? `is_full` knows whose disk has no room.
    pub(crate) fn look_at_places(
        &mut self,
        watch: &mut Watch,
        host: Host,
        life: &Life,
        is_full: impl Fn(Host) -> bool,
    ) -> Result<(), Violation> {
        let front = life.log().positions().anchor.vlsn.next();
        let known = self.places.entry(host).or_default();
        let mut news = Vec::new();
        life.log().places(|holder, from| {
            if known.get(holder) != Some(&(from, front)) {
                known.insert(holder.clone(), (from, front));
                if let Ok(Some(replica)) = holder.name.parse().map(|name| host_of(&name)) {
                    let is_full = is_full(replica);
                    news.push(Record::Held { host, replica, from, front, is_full });
                }
            }
        });
        news.iter().try_for_each(|held| watch.enter(held))
    }

    fn look_at_applied(
        &mut self,
        watch: &mut Watch,
        host: Host,
        life: &Life,
    ) -> Result<(), Violation> {
        let applied = life.applier().applied();
        let before = self.applied.insert(host, applied).unwrap_or_default();
        if applied > before && life.mastership().is_none() {
            watch.enter(&Record::Applied { host, vlsn: applied })?;
        }
        Ok(())
    }

    fn look_at_mastership(
        &mut self,
        watch: &mut Watch,
        host: Host,
        life: &Life,
    ) -> Result<(), Violation> {
        let Some(master) = life.mastership() else { return Ok(()) };
        let (term, dtvlsn) = (master.term(), master.dtvlsn());
        let known = self.masterships.get(&host).copied();
        if known.is_none_or(|(of, _)| of != term) {
            let table = life.log().term_table();
            let first = table.iter().find(|(of, _)| *of == term).map(|(_, first)| *first);
            let Some(first) = first else { return Ok(()) };
            let epoch = life.log().control().ballot().epoch;
            watch.enter(&Record::Established { host, epoch, term, first })?;
            self.masterships.insert(host, (term, Vlsn::default()));
        }
        let noted = self.masterships.get(&host).map_or(Vlsn::default(), |(_, noted)| *noted);
        if dtvlsn > noted {
            watch.enter(&Record::Dtvlsn { host, term, vlsn: dtvlsn })?;
            self.masterships.insert(host, (term, dtvlsn));
        }
        Ok(())
    }
}

/// A node has sent this for elections.
pub(crate) fn heard_message(
    watch: &mut Watch,
    host: Host,
    to: &Name,
    message: &ElectionMsg,
) -> Result<(), Violation> {
    watch.enter(&Record::Spoke { host, term: message.term })?;
    match &message.body {
        Body::VoteAnswer(answer) if is_vote(message) => {
            let (term, candidate) = (answer.asked, to.clone());
            watch.enter(&Record::Voted { host, term, candidate })
        }
        Body::RepairAnswer(answer) if answer.verdict == RepairVerdict::Never => {
            let (asked_in, vlsn) = (message.term, answer.first);
            watch.enter(&Record::Nacked { host, asked_in, vlsn })
        }
        _ => Ok(()),
    }
}

/// Whether a message is a vote that counts.
pub(crate) fn is_vote(message: &ElectionMsg) -> bool {
    match &message.body {
        Body::VoteAnswer(answer) => match (answer.phase, &answer.verdict) {
            (Phase::Real, Verdict::Granted { .. }) => true,
            (Phase::Pre, _) | (Phase::Real, Verdict::Refused(_)) => false,
        },
        _ => false,
    }
}

/// A replica has sent this frame to its master.
pub(crate) fn heard_frame(watch: &mut Watch, host: Host, frame: &[u8]) -> Result<(), Violation> {
    match StreamMessage::decode(frame) {
        Ok(StreamMessage::Ack(ack)) => {
            watch.enter(&Record::Acked { host, term: ack.era.term, durable: ack.durable })
        }
        Ok(_) | Err(_) => Ok(()), // of the handshake or the search
    }
}

/// A node that restores has sent this frame to its master, or to another node.
pub(crate) fn heard_restore_frame(
    watch: &mut Watch,
    host: Host,
    frame: &[u8],
    disk: &Disk,
) -> Result<(), Violation> {
    let Ok(RestoreMsg::LiveRequest { needed, .. } | RestoreMsg::Done { needed, .. }) =
        RestoreMsg::decode(frame)
    else {
        return Ok(());
    };
    let left: Arc<dyn Env> = Arc::new(disk.env().clone_image(Survivors::None));
    let config = LogConfig { prefill: false, scrub: None, ..LogConfig::default() };
    let staged = staged_log(disk.dir());
    let staged = Log::open(left, &staged, config).ok().map(|(log, _)| {
        let last = log.positions().last;
        drop(log.close());
        last
    });
    watch.enter(&Record::LetGo { host, needed, staged })
}

/// The last entry at or below `from` that the log shares with what is known of it.
fn common(watch: &Watch, host: Host, log: &Log, from: Vlsn) -> Vlsn {
    let Some(mirror) = watch.ledger().log(host) else { return Vlsn::default() };
    let anchor = log.positions().anchor.vlsn;
    let mut vlsn = from.min(mirror.last());
    while vlsn > anchor {
        let Some(held) = mirror.at(vlsn) else { return vlsn };
        match log.header(vlsn) {
            Ok(Some((header, _))) if header.fingerprint != held.fingerprint => vlsn = vlsn.prev(),
            // A damaged entry is present.
            Ok(Some(_)) | Err(_) => return vlsn,
            Ok(None) => vlsn = vlsn.prev(),
        }
    }
    vlsn
}

/// The entries of a log from `first` through `last`, as far as they can be read.
fn entries(log: &Log, first: Vlsn, last: Vlsn) -> Vec<Held> {
    let mut entries = Vec::new();
    let mut vlsn = first;
    while vlsn <= last {
        let Ok(Some((header, _))) = log.header(vlsn) else { break };
        entries.push(Held { term: header.term, fingerprint: header.fingerprint });
        vlsn = vlsn.next();
    }
    entries
}
