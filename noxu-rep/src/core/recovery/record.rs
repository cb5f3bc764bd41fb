//! Record: the bytes of what went into an engine and what came out, so that a mastership that went
//! wrong can be played again.
//!
//! A recording is the [`Setup`] and then each [`Event`]; played again it makes byte-equal commands.
//!
//! ```text
//! version u8   opcode u8   fields, little endian
//! ```
//! Durations are seconds u64 and nanoseconds u32; an option is a byte 0 or 1 and, after 1, the value.
//!
//! # Not here: where recordings are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Incarnation, Name, Term, Vlsn};

use crate::core::recovery::decide::{Agreement, Bounds, Facts, Refusal, Thresholds};
use crate::core::recovery::event::{
    Alarm, Command, Event, FailReason, Kind, Link, Nonce, Progress, RecoveryId, Session,
    SessionEvent,
};
use crate::core::recovery::{Limits, Setup};
use crate::wire::message::Era;

/// Version of what is recorded.
const RECORD_VERSION: u8 = 1;

const SETUP: u8 = 1;

const ASSIGNED: u8 = 10;
const BOUNDS: u8 = 11;
const PEER_UP: u8 = 12;
const PEER_GONE: u8 = 13;
const FACTS: u8 = 14;
const ACCEPTED: u8 = 15;
const PROGRESS: u8 = 16;
const COMPLETED: u8 = 17;
const FAILED: u8 = 18;
const DURABLE_ACK: u8 = 19;
const PIN_DROPPED: u8 = 20;
const TICK: u8 = 21;

const ASK_FACTS: u8 = 40;
const START: u8 = 41;
const CUT: u8 = 42;
const CANCEL: u8 = 43;
const PIN: u8 = 44;
const UNPIN: u8 = 45;
const ALARM: u8 = 46;

impl Setup {
    /// The bytes of it.
    pub fn encode(&self) -> Vec<u8> {
        let Limits { thresholds, answer, accept, stall, first_rest, longest_rest } = self.limits;
        let mut out = begin(SETUP);
        out.put_u64(self.first_number);
        out.put_u64(thresholds.small_lag);
        out.put_u32(thresholds.attempts);
        for limit in [answer, accept, stall, first_rest, longest_rest] {
            put_duration(&mut out, limit);
        }
        out
    }

    /// It out of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        match opcode(&mut r)? {
            SETUP => {}
            other => return Err(unknown("Setup", other, "1")),
        }
        let setup = Self {
            first_number: r.u64("Setup.first_number")?,
            limits: Limits {
                thresholds: Thresholds {
                    small_lag: r.u64("Setup.small_lag")?,
                    attempts: r.u32("Setup.attempts")?,
                },
                answer: duration(&mut r)?,
                accept: duration(&mut r)?,
                stall: duration(&mut r)?,
                first_rest: duration(&mut r)?,
                longest_rest: duration(&mut r)?,
            },
        };
        r.finish("Setup")?;
        Ok(setup)
    }
}

impl Event {
    /// The bytes of it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Assigned { era, members } => {
                let mut out = begin(ASSIGNED);
                put_era(&mut out, *era);
                out.put_u32(members.len() as u32);
                for (name, voter) in members {
                    out.put_text(name.as_str());
                    put_option(&mut out, voter.map(Incarnation::as_u64));
                }
                out
            }
            Self::Bounds(bounds) => {
                let mut out = begin(BOUNDS);
                for vlsn in [bounds.first, bounds.last, bounds.dtvlsn] {
                    out.put_vlsn(vlsn);
                }
                out
            }
            Self::PeerUp { name, link, incarnation } => {
                let mut out = about(PEER_UP, name);
                out.put_u64(link.0);
                out.put_u64(incarnation.as_u64());
                out
            }
            Self::PeerGone { name, link } => {
                let mut out = about(PEER_GONE, name);
                out.put_u64(link.0);
                out
            }
            Self::Facts { name, nonce, facts } => {
                let mut out = about(FACTS, name);
                out.put_u64(nonce.0);
                put_facts(&mut out, facts);
                out
            }
            Self::Session { name, session, era, what } => {
                encode_session_event(name, *session, *era, *what)
            }
            Self::DurableAck { name, incarnation, session, era, vlsn } => {
                let mut out = about(DURABLE_ACK, name);
                out.put_u64(incarnation.as_u64());
                out.put_u64(session.0);
                put_era(&mut out, *era);
                out.put_vlsn(*vlsn);
                out
            }
            Self::PinDropped { name, session } => {
                let mut out = about(PIN_DROPPED, name);
                out.put_u64(session.0);
                out
            }
            Self::Tick { now } => {
                let mut out = begin(TICK);
                put_duration(&mut out, *now);
                out
            }
        }
    }

    /// It out of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let event = match opcode(&mut r)? {
            ASSIGNED => Self::Assigned { era: era(&mut r)?, members: members(&mut r)? },
            BOUNDS => Self::Bounds(Bounds {
                first: r.vlsn("Bounds.first")?,
                last: r.vlsn("Bounds.last")?,
                dtvlsn: r.vlsn("Bounds.dtvlsn")?,
            }),
            PEER_UP => Self::PeerUp {
                name: r.name("PeerUp.name")?,
                link: Link(r.u64("PeerUp.link")?),
                incarnation: Incarnation::from_u64(r.u64("PeerUp.incarnation")?),
            },
            PEER_GONE => Self::PeerGone {
                name: r.name("PeerGone.name")?,
                link: Link(r.u64("PeerGone.link")?),
            },
            FACTS => Self::Facts {
                name: r.name("Facts.name")?,
                nonce: Nonce(r.u64("Facts.nonce")?),
                facts: facts(&mut r)?,
            },
            op @ (ACCEPTED | PROGRESS | COMPLETED | FAILED) => Self::Session {
                name: r.name("session event's name")?,
                session: RecoveryId(r.u64("session event's session")?),
                era: era(&mut r)?,
                what: session_event(&mut r, op)?,
            },
            DURABLE_ACK => Self::DurableAck {
                name: r.name("DurableAck.name")?,
                incarnation: Incarnation::from_u64(r.u64("DurableAck.incarnation")?),
                session: RecoveryId(r.u64("DurableAck.session")?),
                era: era(&mut r)?,
                vlsn: r.vlsn("DurableAck.vlsn")?,
            },
            PIN_DROPPED => Self::PinDropped {
                name: r.name("PinDropped.name")?,
                session: RecoveryId(r.u64("PinDropped.session")?),
            },
            TICK => Self::Tick { now: duration(&mut r)? },
            other => return Err(unknown("Event", other, "10 to 21")),
        };
        r.finish("Event")?;
        Ok(event)
    }
}

impl Command {
    /// The bytes of it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::AskFacts { name, nonce } => with_number(ASK_FACTS, name, nonce.0),
            Self::Start { name, session } => {
                let mut out = with_number(START, name, session.id.0);
                put_era(&mut out, session.era);
                put_kind(&mut out, session.kind);
                out.put_vlsn(session.target);
                out
            }
            Self::Cut { name, session, cut } => {
                let mut out = with_number(CUT, name, session.0);
                out.put_vlsn(*cut);
                out
            }
            Self::Cancel { name, session } => with_number(CANCEL, name, session.0),
            Self::Pin { name, from } => {
                let mut out = about(PIN, name);
                out.put_vlsn(*from);
                out
            }
            Self::Unpin { name } => about(UNPIN, name),
            Self::Alarm { name, what } => {
                let mut out = about(ALARM, name);
                let Alarm::Refused(refusal) = what;
                put_refusal(&mut out, *refusal);
                out
            }
        }
    }

    /// It out of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let op = opcode(&mut r)?;
        if !(ASK_FACTS..=ALARM).contains(&op) {
            return Err(unknown("Command", op, "40 to 46"));
        }
        let name = r.name("Command.name")?;
        let command = match op {
            ASK_FACTS => Self::AskFacts { name, nonce: Nonce(r.u64("AskFacts.nonce")?) },
            START => {
                let session = Session {
                    id: RecoveryId(r.u64("Start.id")?),
                    era: era(&mut r)?,
                    kind: kind(&mut r)?,
                    target: r.vlsn("Start.target")?,
                };
                Self::Start { name, session }
            }
            CUT => {
                let session = RecoveryId(r.u64("Cut.session")?);
                Self::Cut { name, session, cut: r.vlsn("Cut.cut")? }
            }
            CANCEL => Self::Cancel { name, session: RecoveryId(r.u64("Cancel.session")?) },
            PIN => Self::Pin { name, from: r.vlsn("Pin.from")? },
            UNPIN => Self::Unpin { name },
            _ => Self::Alarm { name, what: Alarm::Refused(refusal(&mut r)?) },
        };
        r.finish("Command")?;
        Ok(command)
    }
}

fn begin(opcode: u8) -> Vec<u8> {
    vec![RECORD_VERSION, opcode]
}

fn about(opcode: u8, name: &Name) -> Vec<u8> {
    let mut out = begin(opcode);
    out.put_text(name.as_str());
    out
}

fn with_number(opcode: u8, name: &Name, number: u64) -> Vec<u8> {
    let mut out = about(opcode, name);
    out.put_u64(number);
    out
}

fn opcode(r: &mut Reader<'_>) -> Result<u8, CodecError> {
    match r.u8("version")? {
        RECORD_VERSION => r.u8("opcode"),
        other => Err(unknown("version", other, "1")),
    }
}

fn unknown(what: &'static str, found: u8, expected: &'static str) -> CodecError {
    CodecError::OutOfRange { what, found: found.to_string(), expected }
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.put_bool(value.is_some());
    if let Some(value) = value {
        out.put_u64(value);
    }
}

fn option(r: &mut Reader<'_>, what: &'static str) -> Result<Option<u64>, CodecError> {
    if r.bool(what)? { r.u64(what).map(Some) } else { Ok(None) }
}

fn put_duration(out: &mut Vec<u8>, value: Duration) {
    out.put_u64(value.as_secs());
    out.put_u32(value.subsec_nanos());
}

fn duration(r: &mut Reader<'_>) -> Result<Duration, CodecError> {
    let (secs, nanos) = (r.u64("seconds")?, r.u32("nanoseconds")?);
    if nanos >= 1_000_000_000 {
        let (found, expected) = (nanos.to_string(), "less than a second");
        return Err(CodecError::OutOfRange { what: "nanoseconds", found, expected });
    }
    Ok(Duration::new(secs, nanos))
}

fn put_era(out: &mut Vec<u8>, era: Era) {
    out.put_u32(era.epoch);
    out.put_u32(era.term.number());
}

fn era(r: &mut Reader<'_>) -> Result<Era, CodecError> {
    Ok(Era { epoch: r.u32("era.epoch")?, term: Term::new(r.u32("era.term")?) })
}

fn members(r: &mut Reader<'_>) -> Result<BTreeMap<Name, Option<Incarnation>>, CodecError> {
    let count = r.u32("Assigned.members")?;
    let mut members = BTreeMap::new();
    for _ in 0..count {
        let name = r.name("Assigned.name")?;
        let voter = option(r, "Assigned.voter")?.map(Incarnation::from_u64);
        members.insert(name, voter);
    }
    Ok(members)
}

fn put_facts(out: &mut Vec<u8>, facts: &Facts) {
    put_era(out, facts.era);
    out.put_u64(facts.incarnation.as_u64());
    out.put_vlsn(facts.durable);
    out.put_vlsn(facts.known_dtvlsn);
    match facts.agreement {
        Agreement::Empty => out.put_u8(0),
        Agreement::Matchpoint { matchpoint, to_end } => {
            out.put_u8(1);
            out.put_vlsn(matchpoint);
            out.put_bool(to_end);
        }
        Agreement::Nothing => out.put_u8(2),
    }
    put_option(out, facts.restore_marker.map(|id| id.0));
}

fn facts(r: &mut Reader<'_>) -> Result<Facts, CodecError> {
    Ok(Facts {
        era: era(r)?,
        incarnation: Incarnation::from_u64(r.u64("Facts.incarnation")?),
        durable: r.vlsn("Facts.durable")?,
        known_dtvlsn: r.vlsn("Facts.known_dtvlsn")?,
        agreement: match r.u8("Facts.agreement")? {
            0 => Agreement::Empty,
            1 => Agreement::Matchpoint {
                matchpoint: r.vlsn("Facts.matchpoint")?,
                to_end: r.bool("Facts.to_end")?,
            },
            2 => Agreement::Nothing,
            other => return Err(unknown("Facts.agreement", other, "0, 1 or 2")),
        },
        restore_marker: option(r, "Facts.restore_marker")?.map(RecoveryId),
    })
}

fn encode_session_event(name: &Name, session: RecoveryId, era: Era, what: SessionEvent) -> Vec<u8> {
    let opcode = match what {
        SessionEvent::Accepted => ACCEPTED,
        SessionEvent::Progress(_) => PROGRESS,
        SessionEvent::Completed { .. } => COMPLETED,
        SessionEvent::Failed(_) => FAILED,
    };
    let mut out = with_number(opcode, name, session.0);
    put_era(&mut out, era);
    match what {
        SessionEvent::Accepted => {}
        SessionEvent::Progress(progress) => {
            out.put_u64(progress.base_bytes);
            out.put_bool(progress.base_done);
            out.put_vlsn(progress.durable);
        }
        SessionEvent::Completed { durable } => out.put_vlsn(durable),
        SessionEvent::Failed(reason) => out.put_u8(match reason {
            FailReason::Stalled => 0,
            FailReason::Disconnected => 1,
            FailReason::LogRecycled => 2,
            FailReason::PinLost => 3,
            FailReason::NoSpace => 4,
            FailReason::Cancelled => 5,
            FailReason::Corrupt => 6,
        }),
    }
    out
}

fn session_event(r: &mut Reader<'_>, opcode: u8) -> Result<SessionEvent, CodecError> {
    Ok(match opcode {
        ACCEPTED => SessionEvent::Accepted,
        PROGRESS => SessionEvent::Progress(Progress {
            base_bytes: r.u64("Progress.base_bytes")?,
            base_done: r.bool("Progress.base_done")?,
            durable: r.vlsn("Progress.durable")?,
        }),
        COMPLETED => SessionEvent::Completed { durable: r.vlsn("Completed.durable")? },
        _ => SessionEvent::Failed(match r.u8("Failed.reason")? {
            0 => FailReason::Stalled,
            1 => FailReason::Disconnected,
            2 => FailReason::LogRecycled,
            3 => FailReason::PinLost,
            4 => FailReason::NoSpace,
            5 => FailReason::Cancelled,
            6 => FailReason::Corrupt,
            other => return Err(unknown("Failed.reason", other, "0 to 6")),
        }),
    })
}

fn put_kind(out: &mut Vec<u8>, kind: Kind) {
    match kind {
        Kind::KeepUp { from } => {
            out.put_u8(0);
            out.put_vlsn(from);
        }
        Kind::CatchUp { from, truncate_to } => {
            out.put_u8(1);
            out.put_vlsn(from);
            put_option(out, truncate_to.map(|vlsn| vlsn.sequence() as u64));
        }
        Kind::Rebuild { resume } => {
            out.put_u8(2);
            put_option(out, resume.map(|id| id.0));
        }
    }
}

fn kind(r: &mut Reader<'_>) -> Result<Kind, CodecError> {
    Ok(match r.u8("Start.kind")? {
        0 => Kind::KeepUp { from: r.vlsn("KeepUp.from")? },
        1 => Kind::CatchUp { from: r.vlsn("CatchUp.from")?, truncate_to: optional_vlsn(r)? },
        2 => Kind::Rebuild { resume: option(r, "Rebuild.resume")?.map(RecoveryId) },
        other => return Err(unknown("Start.kind", other, "0, 1 or 2")),
    })
}

fn optional_vlsn(r: &mut Reader<'_>) -> Result<Option<Vlsn>, CodecError> {
    if r.bool("CatchUp.truncate_to")? { r.vlsn("CatchUp.truncate_to").map(Some) } else { Ok(None) }
}

fn put_refusal(out: &mut Vec<u8>, refusal: Refusal) {
    match refusal {
        Refusal::Foreign { durable } => {
            out.put_u8(0);
            out.put_vlsn(durable);
        }
        Refusal::BelowDurable { matchpoint, durable } => {
            out.put_u8(1);
            out.put_vlsn(matchpoint);
            out.put_vlsn(durable);
        }
    }
}

fn refusal(r: &mut Reader<'_>) -> Result<Refusal, CodecError> {
    Ok(match r.u8("Alarm.refusal")? {
        0 => Refusal::Foreign { durable: r.vlsn("Foreign.durable")? },
        1 => Refusal::BelowDurable {
            matchpoint: r.vlsn("BelowDurable.matchpoint")?,
            durable: r.vlsn("BelowDurable.durable")?,
        },
        other => return Err(unknown("Alarm.refusal", other, "0 or 1")),
    })
}
