//! RecoveryMsg: what a replica and its master say after the search for the matchpoint: the master asks
//! for facts, the replica gives them, the master says how the replica gets level.
//!
//! Version byte, opcode byte, then fields in little endian.

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Incarnation, Term, Vlsn};

use crate::core::recovery::{Agreement, Facts, Nonce, RecoveryId, Refusal};
use crate::error::{RepError, Result};
use crate::wire::message::Era;

/// A message of this conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryMsg {
    /// Master: what does your log look like?
    AskFacts {
        /// The answer repeats it.
        nonce: Nonce,
    },
    /// Replica: like this.
    Facts {
        /// The question's.
        nonce: Nonce,
        /// What there is.
        facts: Facts,
    },
    /// Master: so this is to be done.
    Verdict(Verdict),
}

/// How a replica gets level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// By the stream.
    Stream {
        /// The session.
        session: RecoveryId,
        /// First entry that is sent.
        from: Vlsn,
        /// Last entry that is kept; `None` if nothing is cut.
        truncate_to: Option<Vlsn>,
    },
    /// Its log is replaced.
    Rebuild {
        /// The session.
        session: RecoveryId,
    },
    /// Not at all: an operator must decide.
    Refused(Refusal),
    /// Not now: ask again later.
    Rest,
}

/// Version of these messages.
pub const RECOVERY_VERSION: u8 = 1;

const ASK_FACTS: u8 = 1;
const FACTS: u8 = 2;
const STREAM: u8 = 3;
const REBUILD: u8 = 4;
const REFUSED: u8 = 5;
const REST: u8 = 6;

impl RecoveryMsg {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AskFacts { .. } => "AskFacts",
            Self::Facts { .. } => "Facts",
            Self::Verdict(_) => "Verdict",
        }
    }

    /// The bytes of one frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECOVERY_VERSION];
        match self {
            Self::AskFacts { nonce } => {
                out.put_u8(ASK_FACTS);
                out.put_u64(nonce.0);
            }
            Self::Facts { nonce, facts } => {
                out.put_u8(FACTS);
                out.put_u64(nonce.0);
                put_facts(&mut out, facts);
            }
            Self::Verdict(Verdict::Stream { session, from, truncate_to }) => {
                out.put_u8(STREAM);
                out.put_u64(session.0);
                out.put_vlsn(*from);
                out.put_bool(truncate_to.is_some());
                out.put_vlsn(truncate_to.unwrap_or_default());
            }
            Self::Verdict(Verdict::Rebuild { session }) => {
                out.put_u8(REBUILD);
                out.put_u64(session.0);
            }
            Self::Verdict(Verdict::Refused(refusal)) => {
                out.put_u8(REFUSED);
                let (matchpoint, durable) = match *refusal {
                    Refusal::Foreign { durable } => (None, durable),
                    Refusal::BelowDurable { matchpoint, durable } => (Some(matchpoint), durable),
                };
                out.put_bool(matchpoint.is_some());
                out.put_vlsn(matchpoint.unwrap_or_default());
                out.put_vlsn(durable);
            }
            Self::Verdict(Verdict::Rest) => out.put_u8(REST),
        }
        out
    }

    /// The message in one frame.
    pub fn decode(frame: &[u8]) -> Result<Self> {
        let mut r = Reader::new(frame);
        let version = r.u8("recovery version")?;
        if version != RECOVERY_VERSION {
            let found = format!("version {version}");
            return Err(RepError::protocol("", "recovery messages of version 1", found));
        }
        let message = match r.u8("recovery opcode")? {
            ASK_FACTS => Self::AskFacts { nonce: Nonce(r.u64("AskFacts.nonce")?) },
            FACTS => {
                let nonce = Nonce(r.u64("Facts.nonce")?);
                Self::Facts { nonce, facts: read_facts(&mut r)? }
            }
            STREAM => {
                let session = RecoveryId(r.u64("Stream.session")?);
                let from = r.vlsn("Stream.from")?;
                let cuts = r.bool("Stream.truncate")?;
                let to = r.vlsn("Stream.truncate to")?;
                let truncate_to = cuts.then_some(to);
                Self::Verdict(Verdict::Stream { session, from, truncate_to })
            }
            REBUILD => {
                let session = RecoveryId(r.u64("Rebuild.session")?);
                Self::Verdict(Verdict::Rebuild { session })
            }
            REFUSED => {
                let has_matchpoint = r.bool("Refused.matchpoint")?;
                let matchpoint = r.vlsn("Refused.matchpoint")?;
                let durable = r.vlsn("Refused.durable")?;
                Self::Verdict(Verdict::Refused(if has_matchpoint {
                    Refusal::BelowDurable { matchpoint, durable }
                } else {
                    Refusal::Foreign { durable }
                }))
            }
            REST => Self::Verdict(Verdict::Rest),
            unknown => {
                let found = format!("opcode {unknown}");
                return Err(RepError::protocol("", "a recovery opcode from 1 to 6", found));
            }
        };
        r.finish(message.name())?;
        Ok(message)
    }
}

const EMPTY: u8 = 0;
const MATCHPOINT: u8 = 1;
const TO_END: u8 = 2;
const NOTHING: u8 = 3;

fn put_facts(out: &mut Vec<u8>, facts: &Facts) {
    out.put_u32(facts.era.epoch);
    out.put_u32(facts.era.term.number());
    out.put_u64(facts.incarnation.as_u64());
    out.put_vlsn(facts.durable);
    out.put_vlsn(facts.known_dtvlsn);
    let (kind, matchpoint) = match facts.agreement {
        Agreement::Empty => (EMPTY, Vlsn::default()),
        Agreement::Matchpoint { matchpoint, to_end: false } => (MATCHPOINT, matchpoint),
        Agreement::Matchpoint { matchpoint, to_end: true } => (TO_END, matchpoint),
        Agreement::Nothing => (NOTHING, Vlsn::default()),
    };
    out.put_u8(kind);
    out.put_vlsn(matchpoint);
    out.put_bool(facts.restore_marker.is_some());
    out.put_u64(facts.restore_marker.map_or(0, |id| id.0));
}

fn read_facts(r: &mut Reader<'_>) -> Result<Facts, CodecError> {
    let era = Era { epoch: r.u32("Facts.epoch")?, term: Term::new(r.u32("Facts.term")?) };
    let incarnation = Incarnation::from_u64(r.u64("Facts.incarnation")?);
    let durable = r.vlsn("Facts.durable")?;
    let known_dtvlsn = r.vlsn("Facts.known DTVLSN")?;
    let kind = r.u8("Facts.agreement")?;
    let matchpoint = r.vlsn("Facts.matchpoint")?;
    let agreement = match kind {
        EMPTY => Agreement::Empty,
        MATCHPOINT | TO_END => Agreement::Matchpoint { matchpoint, to_end: kind == TO_END },
        NOTHING => Agreement::Nothing,
        other => {
            return Err(CodecError::OutOfRange {
                what: "Facts.agreement",
                found: other.to_string(),
                expected: "0 to 3",
            });
        }
    };
    let has_marker = r.bool("Facts.marker")?;
    let marker = RecoveryId(r.u64("Facts.marker")?);
    let restore_marker = has_marker.then_some(marker);
    Ok(Facts { era, incarnation, durable, known_dtvlsn, agreement, restore_marker })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<(RecoveryMsg, &'static [u8])> {
        let facts = Facts {
            era: Era { epoch: 1, term: Term::new(2) },
            incarnation: Incarnation::from_u64(3),
            durable: Vlsn::new(9),
            known_dtvlsn: Vlsn::new(8),
            agreement: Agreement::Matchpoint { matchpoint: Vlsn::new(7), to_end: true },
            restore_marker: Some(RecoveryId(6)),
        };
        let stream = Verdict::Stream {
            session: RecoveryId(4),
            from: Vlsn::new(8),
            truncate_to: Some(Vlsn::new(7)),
        };
        let (matchpoint, durable) = (Vlsn::new(3), Vlsn::new(5));
        let verdict = RecoveryMsg::Verdict;
        vec![
            (RecoveryMsg::AskFacts { nonce: Nonce(5) }, b"\x01\x01\x05\0\0\0\0\0\0\0"),
            (
                RecoveryMsg::Facts { nonce: Nonce(5), facts },
                b"\x01\x02\x05\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\
                  \x09\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x02\x07\0\0\0\0\0\0\0\x01\x06\0\0\0\0\0\0\0",
            ),
            (
                verdict(stream),
                b"\x01\x03\x04\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01\x07\0\0\0\0\0\0\0",
            ),
            (verdict(Verdict::Rebuild { session: RecoveryId(4) }), b"\x01\x04\x04\0\0\0\0\0\0\0"),
            (
                verdict(Verdict::Refused(Refusal::BelowDurable { matchpoint, durable })),
                b"\x01\x05\x01\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
            ),
            (
                verdict(Verdict::Refused(Refusal::Foreign { durable })),
                b"\x01\x05\0\0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
            ),
            (verdict(Verdict::Rest), b"\x01\x06"),
        ]
    }

    #[test]
    fn every_message_has_its_golden_bytes_and_no_beginning_of_it_is_one() {
        for (message, bytes) in all() {
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(RecoveryMsg::decode(bytes).unwrap(), message);
            for len in 0..bytes.len() {
                assert!(RecoveryMsg::decode(&bytes[..len]).is_err(), "{message:?} at {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = bytes;
            bytes.insert(0, RECOVERY_VERSION);
            if let Ok(message) = RecoveryMsg::decode(&bytes) {
                prop_assert_eq!(RecoveryMsg::decode(&message.encode()).unwrap(), message);
            }
        }
    }
}
