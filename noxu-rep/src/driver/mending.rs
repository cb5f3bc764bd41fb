//! Mending: what a log tells others of entries that they cannot read any more, and how it takes its
//! own back.
//!
//! An elected master asks the voters over links before its term begins. A replica asks the master
//! that it follows, in their conversation, between handshake and syncup: question and answer are the
//! election messages of that name, and the first other message goes on to the syncup.
//!
//! # Not here: who asks whom, what an answer is worth and when a damaged tail is cut off
//! (core/repair.rs, core/node.rs); the proof that bytes belong where they go (noxu-log's chain).

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use noxu_log::{Anchor, ChainState, EntryRun, Faulty, Log, LogError};
use noxu_util::Vlsn;
use parking_lot::Mutex;

use crate::core::repair::{Damage, RepairView, answer};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::stream::syncup_protocol::SYNCUP_TIMEOUT;
use crate::wire::election::{
    Body, ElectionMsg, MAX_REPAIR_BYTES, Mark, Purpose, RepairAnswer, RepairAsk, RepairVerdict,
    Silence,
};
use crate::wire::message::Era;

/// What of a log is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damages {
    /// All of it.
    pub all: Vec<Damage>,
    /// What is above the checkpoint, which the state machine still needs; and the end of the log,
    /// wherever it is: nobody can append behind an entry that cannot be measured.
    pub needed: Vec<Damage>,
}

/// What is damaged in `log`, of which the state machine has everything through `checkpoint`.
pub fn damages(log: &Log, checkpoint: Vlsn) -> Damages {
    let last = log.positions().last;
    let mut damages = Damages { all: Vec::new(), needed: Vec::new() };
    for faulty in log.faulty() {
        let damage = damage_of(&faulty);
        damages.all.push(damage);
        if faulty.last > checkpoint || (faulty.behind.is_none() && faulty.last == last) {
            damages.needed.push(damage);
        }
    }
    damages
}

/// A run of entries that cannot be read, for others.
pub(super) fn damage_of(faulty: &Faulty) -> Damage {
    Damage {
        first: faulty.first,
        last: faulty.last,
        before: mark(&faulty.before),
        after: mark(&faulty.after),
    }
}

/// The answer of `log` to a voter that asks for entries, with at most `max_bytes` of them, or
/// [`MAX_REPAIR_BYTES`] if that is less.
///
/// # Errors
/// The log's, if what it holds turns out to be unreadable only now.
pub fn answer_ask(
    log: &Log,
    ask: &RepairAsk,
    installing: bool,
    max_bytes: usize,
) -> Result<RepairAnswer> {
    let ballot = log.control().ballot();
    let positions = log.positions();
    let view = View {
        log,
        installing,
        uncertain: ballot.head_uncertain,
        last: positions.last,
        anchor: positions.anchor,
        faulty: log.faulty(),
    };
    let verdict = answer(&view, ask);
    let through = match verdict {
        RepairVerdict::Have => Some(ask.last),
        RepairVerdict::Part { through } => Some(through),
        RepairVerdict::Never | RepairVerdict::Silent(_) => None,
    };
    let max_bytes = max_bytes.min(MAX_REPAIR_BYTES);
    let window = ask.offset as usize..(ask.offset as usize).saturating_add(max_bytes);
    let (bytes, total) = match through {
        Some(through) => entry_bytes(log, ask.first, through, window)?,
        None => (Vec::new(), 0),
    };
    Ok(RepairAnswer {
        nonce: ask.nonce,
        first: ask.first,
        verdict,
        commit_floor: ballot.commit_floor,
        total: total as u32,
        offset: ask.offset,
        bytes,
    })
}

/// Puts the entries of `damage` through `through` back; durable on return. If that is not all of them,
/// whoever sent them has them in the same term. False if these bytes are not they, or do not fit what
/// stands behind them: then they are as damaged as before.
///
/// # Errors
/// The log's own.
pub fn put_back(log: &Log, damage: &Damage, through: Vlsn, bytes: Vec<u8>) -> Result<bool> {
    let before = ChainState {
        vlsn: damage.first.prev(),
        term: damage.before.term,
        fingerprint: damage.before.fingerprint,
    };
    let max_body_bytes = log.config().max_body_bytes;
    let Ok(run) = EntryRun::verify(Bytes::from(bytes), before, max_body_bytes) else {
        return Ok(false);
    };
    if run.last != through {
        return Ok(false);
    }
    let repaired = if through == damage.last { log.repair(&run) } else { log.repair_prefix(&run) };
    match repaired {
        Ok(()) => Ok(true),
        // Somebody else has put it back meanwhile.
        Err(LogError::NotFaulty { .. }) if is_whole(log, damage) => Ok(true),
        Err(
            LogError::NotFaulty { .. } | LogError::ChainMismatch { .. } | LogError::Misfit { .. },
        ) => Ok(false),
        // These are whole, and something else of their segment has rotted since it was surveyed.
        Err(cause @ LogError::Corrupt { segment, .. }) => {
            log.examine(segment)?;
            let stays = log.faulty().iter().any(|faulty| faulty.first == damage.first);
            if stays { Err(cause.into()) } else { Ok(true) }
        }
        Err(cause) => Err(cause.into()),
    }
}

/// Whether the log has these entries, and can read them.
fn is_whole(log: &Log, damage: &Damage) -> bool {
    let stays = |faulty: &Faulty| faulty.first <= damage.last && damage.first <= faulty.last;
    let found = log.header(damage.last).ok().flatten();
    !log.faulty().iter().any(stays)
        && found.is_some_and(|(header, _)| header.fingerprint == damage.after.fingerprint)
}

/// What a master says about damaged entries of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// These are they, through this one, if the chain agrees.
    Bytes(Vlsn, Vec<u8>),
    /// The first of them was never in its log.
    Never,
    /// It never can give them: it has dropped that part of its log, or has another entry at their end while the
    /// first of them may be the same, so that to cut them off might be to forget one that is durable.
    NotToBeHad,
    /// It cannot tell at the moment.
    Nothing,
}

/// The replica's half: asks the master at the other end of `channel` for the entries of `damage`.
///
/// # Errors
/// The channel's; `ProtocolError` for an answer that makes no sense.
pub fn ask_master(
    channel: &dyn Channel,
    era: Era,
    damage: &Damage,
    nonce: u64,
    max_entry_bytes: usize,
) -> Result<Told> {
    let most = (damage.last.since(damage.first) + 1).saturating_mul(max_entry_bytes as u64);
    let mut bytes: Vec<u8> = Vec::new();
    let mut told = None;
    loop {
        let ask = RepairAsk {
            purpose: Purpose::Mending,
            nonce,
            first: damage.first,
            last: damage.last,
            before: damage.before,
            after: damage.after,
            offset: bytes.len() as u32,
        };
        let question = ElectionMsg { epoch: era.epoch, term: era.term, body: Body::RepairAsk(ask) };
        channel.send(&question.encode())?;
        let frame = channel.receive(SYNCUP_TIMEOUT)?;
        let frame = frame.ok_or_else(|| silent(channel, "an answer about damaged entries"))?;
        let message = ElectionMsg::decode(&frame)?;
        let Body::RepairAnswer(answer) = message.body else {
            return Err(RepError::protocol(channel.peer(), "RepairAnswer", message.body.name()));
        };
        let lawful = (message.epoch, message.term) == (era.epoch, era.term)
            && (answer.nonce, answer.first) == (nonce, damage.first)
            && answer.offset as usize == bytes.len()
            && *told.get_or_insert(answer.verdict) == answer.verdict
            && u64::from(answer.total) <= most
            && bytes.len() + answer.bytes.len() <= answer.total as usize;
        if !lawful {
            let found = format!("{answer:?}").chars().take(200).collect::<String>();
            return Err(RepError::protocol(channel.peer(), "an answer to what was asked", found));
        }
        let through = match answer.verdict {
            RepairVerdict::Never => return Ok(Told::Never),
            RepairVerdict::Silent(Silence::BelowAnchor | Silence::Ambiguous) => {
                return Ok(Told::NotToBeHad);
            }
            RepairVerdict::Silent(_) => return Ok(Told::Nothing),
            RepairVerdict::Have => damage.last,
            RepairVerdict::Part { through } => through,
        };
        let more = !answer.bytes.is_empty();
        bytes.extend_from_slice(&answer.bytes);
        if bytes.len() == answer.total as usize {
            return Ok(Told::Bytes(through, bytes));
        }
        if !more {
            return Err(RepError::protocol(channel.peer(), "more bytes", "none"));
        }
    }
}

/// The master's half: answers what a replica asks about its damaged entries. Returns the first frame
/// that is about something else.
///
/// # Errors
/// The channel's; the log's.
pub fn answer_replica(channel: &dyn Channel, log: &Log, era: Era) -> Result<Vec<u8>> {
    loop {
        let frame = channel.receive(SYNCUP_TIMEOUT)?;
        let frame = frame.ok_or_else(|| silent(channel, "a syncup message"))?;
        let Ok(ElectionMsg { epoch, term, body: Body::RepairAsk(ask) }) =
            ElectionMsg::decode(&frame)
        else {
            return Ok(frame);
        };
        if (epoch, term) != (era.epoch, era.term) {
            let found = format!("one of epoch {epoch}, term {term}");
            return Err(RepError::protocol(channel.peer(), "a question of this term", found));
        }
        let body = Body::RepairAnswer(answer_ask(log, &ask, false, MAX_REPAIR_BYTES)?);
        channel.send(&ElectionMsg { epoch, term, body }.encode())?;
    }
}

fn silent(channel: &dyn Channel, awaited: &str) -> RepError {
    RepError::silent(channel.peer(), awaited, SYNCUP_TIMEOUT)
}

/// A channel whose first frame was received before.
pub(crate) struct Resumed<'a> {
    channel: &'a dyn Channel,
    first: Mutex<Option<Vec<u8>>>,
}

impl<'a> Resumed<'a> {
    pub(crate) fn new(channel: &'a dyn Channel, first: Vec<u8>) -> Self {
        Self { channel, first: Mutex::new(Some(first)) }
    }
}

impl Channel for Resumed<'_> {
    fn send(&self, frame: &[u8]) -> Result<()> {
        self.channel.send(frame)
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        match self.first.lock().take() {
            Some(first) => Ok(Some(first)),
            None => self.channel.receive(timeout),
        }
    }

    fn close(&self) {
        self.channel.close();
    }

    fn peer(&self) -> String {
        self.channel.peer()
    }
}

/// Of the bytes of the entries `first` through `last`, all of which `log` holds, those in `window`,
/// and how many there are in all. Only entries that reach into the window are read.
fn entry_bytes(
    log: &Log,
    first: Vlsn,
    last: Vlsn,
    window: Range<usize>,
) -> Result<(Vec<u8>, usize)> {
    let (mut bytes, mut at, mut next) = (Vec::new(), 0, first);
    while next <= last {
        // Cut off meanwhile: what is missing at the end does not fit at the other side either.
        let Some((header, _)) = log.header(next)? else { break };
        let end = at + header.entry_bytes();
        let within = at.max(window.start)..end.min(window.end);
        if !within.is_empty() {
            let Some(run) = log.read(next, header.entry_bytes())? else { break };
            let entry = run.parts.concat();
            bytes.extend_from_slice(&entry[within.start - at..within.end - at]);
        }
        at = end;
        next = next.next();
    }
    Ok((bytes, at))
}

fn mark(chain: &ChainState) -> Mark {
    Mark { term: chain.term, fingerprint: chain.fingerprint }
}

/// A log as an answer sees it.
struct View<'a> {
    log: &'a Log,
    installing: bool,
    uncertain: bool,
    last: Vlsn,
    anchor: Anchor,
    faulty: Vec<Faulty>,
}

impl RepairView for View<'_> {
    fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    fn is_installing(&self) -> bool {
        self.installing
    }

    fn anchor(&self) -> Vlsn {
        self.anchor.vlsn
    }

    fn last(&self) -> Vlsn {
        self.last
    }

    fn mark(&self, vlsn: Vlsn) -> Option<Mark> {
        if vlsn.is_null() {
            return Some(Mark::default());
        }
        if vlsn == self.anchor.vlsn {
            return Some(Mark { term: self.anchor.term, fingerprint: self.anchor.fingerprint });
        }
        if let Ok(Some((header, _))) = self.log.header(vlsn) {
            return Some(mark(&header.chain()));
        }
        // What follows a damaged run tells its end.
        self.faulty.iter().find(|faulty| faulty.last == vlsn).map(|faulty| mark(&faulty.after))
    }

    fn is_damaged(&self, first: Vlsn, last: Vlsn) -> bool {
        self.faulty.iter().any(|faulty| faulty.first <= last && first <= faulty.last)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use noxu_log::segment::name::segment_name;
    use noxu_log::{EntryFlags, EntryKind, NewEntry};
    use noxu_util::{Lsn, NULL_VLSN, Term};

    use super::*;
    use crate::damaged_log::{damaged, damaged_at, sealed, whole};
    use crate::wire::election::{Purpose, Silence};

    fn ask(damage: &Damage, offset: u32) -> RepairAsk {
        RepairAsk {
            purpose: Purpose::Repairing,
            nonce: 3,
            first: damage.first,
            last: damage.last,
            before: damage.before,
            after: damage.after,
            offset,
        }
    }

    #[test]
    fn a_damaged_entry_is_put_back_from_a_peer_in_pieces() {
        let ((log, _), peer) = (damaged(), whole());
        let [damage] = damages(&log, NULL_VLSN).needed[..] else { panic!("{:?}", log.faulty()) };
        assert_eq!((damage.first, damage.last), (Vlsn::new(5), Vlsn::new(5)));
        let held = damages(&log, Vlsn::new(5));
        assert_eq!((held.all, held.needed), (vec![damage], vec![]), "the checkpoint holds it");
        let mut bytes = Vec::new();
        loop {
            let got = answer_ask(&peer, &ask(&damage, bytes.len() as u32), false, 50).unwrap();
            assert_eq!((got.verdict, got.nonce), (RepairVerdict::Have, 3));
            assert!(!got.bytes.is_empty() && got.bytes.len() <= 50);
            bytes.extend_from_slice(&got.bytes);
            if bytes.len() == got.total as usize {
                break;
            }
        }
        let mut wrong = bytes.clone();
        wrong[70] ^= 1;
        assert!(!put_back(&log, &damage, damage.last, wrong).unwrap());
        assert!(!put_back(&log, &damage, damage.last, bytes[..40].to_vec()).unwrap());
        assert_eq!(damages(&log, NULL_VLSN).needed, [damage]);
        assert!(put_back(&log, &damage, damage.last, bytes).unwrap());
        assert_eq!(damages(&log, NULL_VLSN).all, []);
        assert_eq!(log.positions().last_fingerprint, peer.positions().last_fingerprint);
        assert!(log.read(Vlsn::new(5), 1).unwrap().is_some());
    }

    /// Rot met while an entry is put back is examined and told like any other.
    #[test]
    fn what_rots_beside_an_entry_that_is_put_back_is_found_with_it() {
        let (env, log) = sealed();
        let [fifth, eighth] = [5, 8].map(|vlsn| {
            let vlsn = Vlsn::new(vlsn);
            let (header, lsn) = log.header(vlsn).unwrap().unwrap();
            (lsn, log.read(vlsn, header.entry_bytes()).unwrap().unwrap().parts.concat())
        });
        let rot = |lsn: Lsn| {
            let path = Path::new("/n/log").join(segment_name(lsn.segment()));
            env.corrupt(&path, u64::from(lsn.offset()) + 60, 0x10).unwrap();
        };
        rot(fifth.0);
        assert!(log.examine(fifth.0.segment()).unwrap());
        rot(eighth.0);
        let [damage] = damages(&log, NULL_VLSN).all[..] else { panic!("{:?}", log.faulty()) };
        assert_eq!(damage.last, Vlsn::new(5));
        assert!(put_back(&log, &damage, damage.last, fifth.1).unwrap());
        let [damage] = damages(&log, NULL_VLSN).all[..] else { panic!("{:?}", log.faulty()) };
        assert_eq!((damage.first, damage.last), (Vlsn::new(8), Vlsn::new(8)));
        assert!(put_back(&log, &damage, damage.last, eighth.1).unwrap());
        assert_eq!(damages(&log, NULL_VLSN).all, []);
    }

    #[test]
    fn a_damaged_end_of_the_log_is_mended_wherever_the_checkpoint_is() {
        let end = Vlsn::new(10);
        let (log, entry) = damaged_at(end);
        let append = |log: &Log| {
            let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &[1; 10])];
            log.append(Term::new(2), &entry).map(|appended| appended.last)
        };
        assert!(append(&log).is_err(), "nobody knows where the entry ends");
        let [damage] = damages(&log, end).needed[..] else { panic!("{:?}", log.faulty()) };
        assert!(put_back(&log, &damage, damage.last, entry.parts.concat()).unwrap());
        assert_eq!(damages(&log, end).all, []);
        assert_eq!(append(&log).unwrap(), end.next());
    }

    #[test]
    fn who_has_it_damaged_too_or_replaces_its_log_keeps_silent() {
        let ((log, _), peer) = (damaged(), whole());
        let [damage] = damages(&log, NULL_VLSN).needed[..] else { panic!("{:?}", log.faulty()) };
        let own = answer_ask(&log, &ask(&damage, 0), false, 1 << 20).unwrap();
        assert_eq!(own.verdict, RepairVerdict::Silent(Silence::Damaged));
        let busy = answer_ask(&peer, &ask(&damage, 0), true, 1 << 20).unwrap();
        assert_eq!(busy.verdict, RepairVerdict::Silent(Silence::Installing));
        assert!(own.bytes.is_empty() && busy.bytes.is_empty());
    }
}
