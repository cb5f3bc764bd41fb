//! Codec: election messages as bytes, one message a frame.
//!
//! ```text
//! head          op u8, version u8 = 1, reserved u16 = 0, epoch u32, term u32
//! log end       term u32, VLSN i64, fingerprint u64
//! mark          term u32, fingerprint u64
//! extension     u16 length, bytes: fields of a later version, skipped by those that know none
//!
//! 67 VoteRequest   head, phase u8, nonce u64, asked term u32, log end, priority u8, flags u8, extension
//! 68 VoteAnswer    head, phase u8, nonce u64, asked term u32, verdict u8, extension
//! 69 Lead          head, address, phase u8, extension
//! 70 Standing      head, log end, role u8, master (empty if none), priority u8, flags u8, extension
//! 71 RepairAsk     head, purpose u8, nonce u64, first i64, last i64, mark before, mark after,
//!                  offset u32, extension
//! 72 RepairAnswer  head, nonce u64, first i64, verdict u8, [through i64 | why u8], commit floor i64,
//!                  total u32, offset u32, extension, bytes to the end of the frame
//! 73 Yield         head, successor, extension
//! 74 Founding      head, group id 16 bytes, group name, segment size u32, electorate (u16 length),
//!                  extension
//! 75 Founded       head, extension
//! ```
//!
//! Texts and names have a u16 length. Numbers 64 to 66 belong to link.rs.

use noxu_log::{GroupIdentity, MAX_GROUP_CONFIG_BYTES};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Name, Term, Vlsn};

use super::{
    Body, ElectionMsg, LeadPhase, LogEnd, Mark, NodeRole, Phase, Purpose, Refusal, RepairAnswer,
    RepairAsk, RepairVerdict, Silence, Standing, Verdict, VoteAnswer, VoteRequest,
};
use crate::group::Electorate;
use crate::wire::handshake::{MAX_ADDRESS_BYTES, cut, optional_name};

/// Version of the messages here.
pub const ELECTION_VERSION: u8 = 1;

/// Most bytes of damaged entries in one answer.
pub const MAX_REPAIR_BYTES: usize = 1 << 20;

/// Most bytes of fields that this version does not know.
pub(super) const MAX_EXTENSION_BYTES: usize = 1024;

const VOTE_REQUEST: u8 = 67;
const VOTE_ANSWER: u8 = 68;
const LEAD: u8 = 69;
const STANDING: u8 = 70;
const REPAIR_ASK: u8 = 71;
const REPAIR_ANSWER: u8 = 72;
const YIELD: u8 = 73;
const FOUNDING: u8 = 74;
const FOUNDED: u8 = 75;

const FULL: u8 = 1;
const UNCERTAIN: u8 = 2;

impl ElectionMsg {
    /// The bytes of one frame. An address longer than the format allows is cut.
    ///
    /// # Panics
    /// If a repair answer has more than [`MAX_REPAIR_BYTES`], or an electorate fails its check.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.put_bytes(&[self.body.opcode(), ELECTION_VERSION, 0, 0]);
        out.put_u32(self.epoch);
        out.put_u32(self.term.number());
        match &self.body {
            Body::VoteRequest(request) => {
                out.put_u8(request.phase as u8);
                out.put_u64(request.nonce);
                out.put_u32(request.asked.number());
                put_log_end(&mut out, &request.head);
                out.put_u8(request.priority);
                out.put_u8(if request.uncertain { UNCERTAIN } else { 0 });
            }
            Body::VoteAnswer(answer) => {
                out.put_u8(answer.phase as u8);
                out.put_u64(answer.nonce);
                out.put_u32(answer.asked.number());
                out.put_u8(verdict_code(answer.verdict));
            }
            Body::Lead { address, phase } => {
                out.put_text(cut(address, MAX_ADDRESS_BYTES));
                out.put_u8(*phase as u8);
            }
            Body::Standing(standing) => {
                put_log_end(&mut out, &standing.head);
                out.put_u8(standing.role as u8);
                out.put_text(standing.master.as_ref().map_or("", Name::as_str));
                out.put_u8(standing.priority);
                let full = if standing.full { FULL } else { 0 };
                out.put_u8(full | if standing.uncertain { UNCERTAIN } else { 0 });
            }
            Body::RepairAsk(ask) => {
                out.put_u8(ask.purpose as u8);
                out.put_u64(ask.nonce);
                out.put_vlsn(ask.first);
                out.put_vlsn(ask.last);
                put_mark(&mut out, &ask.before);
                put_mark(&mut out, &ask.after);
                out.put_u32(ask.offset);
            }
            Body::RepairAnswer(answer) => {
                put_repair_answer(&mut out, answer);
                return out; // The bytes end it, behind the extension.
            }
            Body::Yield { successor } => out.put_text(successor.as_str()),
            Body::Founding { identity, electorate } => {
                if let Err(bad) = electorate.check() {
                    panic!("no group is founded with this electorate: {bad}");
                }
                out.put_bytes(identity.id.as_bytes());
                out.put_text(identity.name.as_str());
                out.put_u32(identity.segment_bytes);
                out.put_short_bytes(&electorate.encode());
            }
            Body::Founded => {}
        }
        out.put_short_bytes(&[]);
        out
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`CodecError`] for anything but exactly one well-formed message.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(frame);
        let r = &mut reader;
        let opcode = decode_head(r)?;
        let epoch = r.u32("epoch")?;
        let term = Term::new(r.u32("term")?);
        let body = match opcode {
            VOTE_REQUEST => Body::VoteRequest(VoteRequest {
                phase: phase(r)?,
                nonce: r.u64("nonce")?,
                asked: Term::new(r.u32("asked term")?),
                head: log_end(r)?,
                priority: r.u8("priority")?,
                uncertain: flags(r, UNCERTAIN)? & UNCERTAIN != 0,
            }),
            VOTE_ANSWER => Body::VoteAnswer(VoteAnswer {
                phase: phase(r)?,
                nonce: r.u64("nonce")?,
                asked: Term::new(r.u32("asked term")?),
                verdict: verdict(r)?,
            }),
            LEAD => Body::Lead {
                address: r.text("address", MAX_ADDRESS_BYTES)?.to_owned(),
                phase: match r.u8("phase")? {
                    0 => LeadPhase::Repairing,
                    1 => LeadPhase::Established,
                    other => return Err(wrong("phase of a mastership", other, "0 or 1")),
                },
            },
            STANDING => {
                let head = log_end(r)?;
                let role = role(r)?;
                let master = optional_name(r, "master")?;
                let priority = r.u8("priority")?;
                let flags = flags(r, FULL | UNCERTAIN)?;
                let (full, uncertain) = (flags & FULL != 0, flags & UNCERTAIN != 0);
                Body::Standing(Standing { head, role, master, priority, full, uncertain })
            }
            REPAIR_ASK => Body::RepairAsk(repair_ask(r)?),
            REPAIR_ANSWER => Body::RepairAnswer(repair_answer(r)?),
            YIELD => Body::Yield { successor: r.name("successor")? },
            FOUNDING => Body::Founding {
                identity: GroupIdentity {
                    id: r.group_id("group")?,
                    name: r.name("group name")?,
                    segment_bytes: r.u32("segment size")?,
                },
                electorate: Electorate::decode(
                    r.short_bytes("group configuration", MAX_GROUP_CONFIG_BYTES)?,
                )?,
            },
            FOUNDED => Body::Founded,
            other => return Err(wrong("opcode", other, "an election message (67 to 75)")),
        };
        // That of a repair answer stands before its bytes.
        if opcode != REPAIR_ANSWER {
            r.short_bytes("extension", MAX_EXTENSION_BYTES)?;
        }
        reader.finish(body.name())?;
        Ok(Self { epoch, term, body })
    }
}

impl Body {
    const fn opcode(&self) -> u8 {
        match self {
            Self::VoteRequest(_) => VOTE_REQUEST,
            Self::VoteAnswer(_) => VOTE_ANSWER,
            Self::Lead { .. } => LEAD,
            Self::Standing(_) => STANDING,
            Self::RepairAsk(_) => REPAIR_ASK,
            Self::RepairAnswer(_) => REPAIR_ANSWER,
            Self::Yield { .. } => YIELD,
            Self::Founding { .. } => FOUNDING,
            Self::Founded => FOUNDED,
        }
    }
}

/// Opcode, version and what is reserved.
pub(super) fn decode_head(r: &mut Reader<'_>) -> Result<u8, CodecError> {
    let opcode = r.u8("opcode")?;
    let version = r.u8("election version")?;
    if version != ELECTION_VERSION {
        return Err(wrong("election version", version, "1"));
    }
    match r.u16("reserved")? {
        0 => Ok(opcode),
        other => Err(CodecError::OutOfRange {
            what: "reserved",
            found: other.to_string(),
            expected: "0",
        }),
    }
}

pub(super) fn wrong(what: &'static str, found: u8, expected: &'static str) -> CodecError {
    CodecError::OutOfRange { what, found: found.to_string(), expected }
}

pub(crate) fn put_log_end(out: &mut Vec<u8>, end: &LogEnd) {
    out.put_u32(end.term.number());
    out.put_vlsn(end.vlsn);
    out.put_u64(end.fingerprint.as_u64());
}

pub(crate) fn log_end(r: &mut Reader<'_>) -> Result<LogEnd, CodecError> {
    Ok(LogEnd {
        term: Term::new(r.u32("term of the last entry")?),
        vlsn: r.vlsn("last VLSN")?,
        fingerprint: Fingerprint::from_u64(r.u64("last fingerprint")?),
    })
}

fn put_mark(out: &mut Vec<u8>, mark: &Mark) {
    out.put_u32(mark.term.number());
    out.put_u64(mark.fingerprint.as_u64());
}

fn mark(r: &mut Reader<'_>) -> Result<Mark, CodecError> {
    Ok(Mark {
        term: Term::new(r.u32("term of an entry")?),
        fingerprint: Fingerprint::from_u64(r.u64("fingerprint of an entry")?),
    })
}

fn phase(r: &mut Reader<'_>) -> Result<Phase, CodecError> {
    match r.u8("phase")? {
        0 => Ok(Phase::Pre),
        1 => Ok(Phase::Real),
        other => Err(wrong("phase of a campaign", other, "0 or 1")),
    }
}

fn flags(r: &mut Reader<'_>, known: u8) -> Result<u8, CodecError> {
    match r.u8("flags")? {
        flags if flags & !known == 0 => Ok(flags),
        other => Err(wrong("flags", other, "known flags only")),
    }
}

fn role(r: &mut Reader<'_>) -> Result<NodeRole, CodecError> {
    match r.u8("role")? {
        0 => Ok(NodeRole::Unknown),
        1 => Ok(NodeRole::Replica),
        2 => Ok(NodeRole::Repairing),
        3 => Ok(NodeRole::Master),
        4 => Ok(NodeRole::Detached),
        other => Err(wrong("role", other, "0 to 4")),
    }
}

const fn verdict_code(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Granted { certain: true } => 0,
        Verdict::Granted { certain: false } => 1,
        Verdict::Refused(Refusal::Epoch) => 2,
        Verdict::Refused(Refusal::NotElectable) => 3,
        Verdict::Refused(Refusal::Sitting) => 4,
        Verdict::Refused(Refusal::HigherTerm) => 5,
        Verdict::Refused(Refusal::Voted) => 6,
        Verdict::Refused(Refusal::HeardMaster) => 7,
        Verdict::Refused(Refusal::Rival) => 8,
        Verdict::Refused(Refusal::BetterHead) => 9,
        Verdict::Refused(Refusal::Fork) => 10,
    }
}

fn verdict(r: &mut Reader<'_>) -> Result<Verdict, CodecError> {
    Ok(match r.u8("verdict")? {
        0 => Verdict::Granted { certain: true },
        1 => Verdict::Granted { certain: false },
        2 => Verdict::Refused(Refusal::Epoch),
        3 => Verdict::Refused(Refusal::NotElectable),
        4 => Verdict::Refused(Refusal::Sitting),
        5 => Verdict::Refused(Refusal::HigherTerm),
        6 => Verdict::Refused(Refusal::Voted),
        7 => Verdict::Refused(Refusal::HeardMaster),
        8 => Verdict::Refused(Refusal::Rival),
        9 => Verdict::Refused(Refusal::BetterHead),
        10 => Verdict::Refused(Refusal::Fork),
        other => return Err(wrong("verdict", other, "0 to 10")),
    })
}

fn repair_ask(r: &mut Reader<'_>) -> Result<RepairAsk, CodecError> {
    let ask = RepairAsk {
        purpose: match r.u8("purpose")? {
            0 => Purpose::Repairing,
            1 => Purpose::Mending,
            other => return Err(wrong("purpose", other, "0 or 1")),
        },
        nonce: r.u64("nonce")?,
        first: r.vlsn("first VLSN")?,
        last: r.vlsn("last VLSN")?,
        before: mark(r)?,
        after: mark(r)?,
        offset: r.u32("offset")?,
    };
    if ask.first.is_null() || ask.last < ask.first {
        return Err(CodecError::OutOfRange {
            what: "entries asked for",
            found: format!("{} to {}", ask.first, ask.last),
            expected: "a range of entries",
        });
    }
    Ok(ask)
}

const HAVE: u8 = 0;
const PART: u8 = 1;
const NEVER: u8 = 2;
const SILENT: u8 = 3;

fn put_repair_answer(out: &mut Vec<u8>, answer: &RepairAnswer) {
    assert!(answer.bytes.len() <= MAX_REPAIR_BYTES, "{} bytes in one answer", answer.bytes.len());
    out.put_u64(answer.nonce);
    out.put_vlsn(answer.first);
    match answer.verdict {
        RepairVerdict::Have => out.put_u8(HAVE),
        RepairVerdict::Part { through } => {
            out.put_u8(PART);
            out.put_vlsn(through);
        }
        RepairVerdict::Never => out.put_u8(NEVER),
        RepairVerdict::Silent(why) => {
            out.put_u8(SILENT);
            out.put_u8(match why {
                Silence::Uncertain => 0,
                Silence::BelowAnchor => 1,
                Silence::Damaged => 2,
                Silence::Installing => 3,
                Silence::Ambiguous => 4,
            });
        }
    }
    out.put_vlsn(answer.commit_floor);
    out.put_u32(answer.total);
    out.put_u32(answer.offset);
    out.put_short_bytes(&[]);
    out.put_bytes(&answer.bytes);
}

fn repair_answer(r: &mut Reader<'_>) -> Result<RepairAnswer, CodecError> {
    let nonce = r.u64("nonce")?;
    let first = r.vlsn("first VLSN")?;
    let verdict = match r.u8("verdict")? {
        HAVE => RepairVerdict::Have,
        PART => RepairVerdict::Part { through: r.vlsn("last VLSN of a part")? },
        NEVER => RepairVerdict::Never,
        SILENT => RepairVerdict::Silent(match r.u8("why silent")? {
            0 => Silence::Uncertain,
            1 => Silence::BelowAnchor,
            2 => Silence::Damaged,
            3 => Silence::Installing,
            4 => Silence::Ambiguous,
            other => return Err(wrong("why silent", other, "0 to 4")),
        }),
        other => return Err(wrong("verdict", other, "0 to 3")),
    };
    let commit_floor: Vlsn = r.vlsn("commit floor")?;
    let total = r.u32("bytes in all")?;
    let offset = r.u32("offset")?;
    r.short_bytes("extension", MAX_EXTENSION_BYTES)?;
    let count = r.remaining();
    let end = u64::from(offset) + count as u64;
    let most = match verdict {
        RepairVerdict::Have | RepairVerdict::Part { .. } => u64::from(total),
        RepairVerdict::Never | RepairVerdict::Silent(_) => 0,
    };
    if count > MAX_REPAIR_BYTES || end > most {
        return Err(CodecError::OutOfRange {
            what: "piece of the entries",
            found: format!("bytes {offset} to {end} of {most}"),
            expected: "at most 1 MiB of them",
        });
    }
    let bytes = r.bytes("entries", count)?.to_vec();
    Ok(RepairAnswer { nonce, first, verdict, commit_floor, total, offset, bytes })
}
