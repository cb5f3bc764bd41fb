//! Stream messages: what a feeder and its replica say once the syncup is over.
//!
//! Every message begins with one opcode byte and one version byte; little endian. Entries travel as
//! the bytes that stand in both logs, behind a head that says where they belong.
//!
//! ```text
//! head        op version flags reserved  epoch u32  term u32  first i64
//!             previous fingerprint u64  DTVLSN i64  its fingerprint u64               44 bytes
//! Entries     head, whole entries
//! Fragment    head, total u32, offset u32, part of one entry
//! Position    op version flags reserved  epoch u32  term u32  last i64  DTVLSN i64
//!             its fingerprint u64
//! Ack         op version u16 reserved    epoch u32  term u32  received i64  durable i64
//!             applied i64
//! Goodbye     op version u16 reserved    reason u8  successor (empty: none)
//! HeadAsk     op version u16 reserved    nonce u64
//! HeadAnswer  op version u16 reserved    nonce u64  term u32  last i64  its fingerprint u64
//! ```
//! # See: docs/protocol.md#stream

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Name, Term, Vlsn};

use crate::wire::election::LogEnd;
use crate::wire::election::codec::{log_end, put_log_end};
use crate::wire::handshake::optional_name;

/// Version of the messages here.
pub const STREAM_VERSION: u8 = 2;

/// Bytes before the entries of an Entries message.
pub const HEAD_BYTES: usize = 44;

/// Bytes before the entry's part in a Fragment message.
pub const FRAGMENT_HEAD_BYTES: usize = HEAD_BYTES + 8;

/// Longest message, in bytes, entries included.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

const ENTRIES: u8 = 32;
const FRAGMENT: u8 = 33;
const POSITION: u8 = 34;
const ACK: u8 = 35;
const GOODBYE: u8 = 36;
const HEAD_ASK: u8 = 37;
const HEAD_ANSWER: u8 = 38;

const WANT_RECEIVED: u8 = 1;
const ANSWER: u8 = 2;

/// One mastership: the terms of another epoch are others, whatever their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Era {
    /// Epoch of the group.
    pub epoch: u32,
    /// The master's term.
    pub term: Term,
}

impl std::fmt::Display for Era {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "term {} of epoch {}", self.term, self.epoch)
    }
}

/// The majority-durable position that a master announces, with the fingerprint that proves it is
/// the same entry on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dtvlsn {
    /// Highest VLSN known durable on a majority.
    pub vlsn: Vlsn,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// Where a message's entries belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The mastership.
    pub era: Era,
    /// VLSN of the first entry.
    pub first: Vlsn,
    /// Fingerprint of the entry before it.
    pub previous_fingerprint: Fingerprint,
    /// The DTVLSN when it was sent.
    pub dtvlsn: Dtvlsn,
    /// Whether a committer waits for an acknowledgement that precedes the fsync.
    pub want_received: bool,
}

/// What a replica holds; cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ack {
    /// The mastership in which all this was verified.
    pub era: Era,
    /// Verified and appended.
    pub received: Vlsn,
    /// Fsynced.
    pub durable: Vlsn,
    /// Applied to the state machine.
    pub applied: Vlsn,
}

/// The master's position when there is nothing to ship, also its heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The mastership.
    pub era: Era,
    /// Last entry of the master's log.
    pub last: Vlsn,
    /// The DTVLSN.
    pub dtvlsn: Dtvlsn,
    /// As [`Head::want_received`].
    pub want_received: bool,
    /// Whether the replica is to acknowledge although nothing moved, to show that it lives.
    pub answer: bool,
}

/// Why a stream ends in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// The node is being closed.
    Closing = 0,
    /// The node stays, its mastership does not.
    StepsDown = 1,
}

/// The last word of a stream that ends in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// Why it ends.
    pub why: Leaving,
    /// Who is to be master next, if the master that leaves knows somebody fit.
    pub successor: Option<Name>,
}

/// One message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// Whole entries.
    Entries {
        /// Where they belong.
        head: Head,
        /// At least one of them.
        bytes: &'a [u8],
    },
    /// Part of one entry that is too large for a message.
    Fragment {
        /// Where the entry belongs.
        head: Head,
        /// Bytes of the whole entry.
        total: u32,
        /// Where this part begins in it.
        offset: u32,
        /// The part.
        bytes: &'a [u8],
    },
    /// The master's position.
    Position(Position),
    /// The replica's.
    Ack(Ack),
    /// The sender leaves in good order; redial later.
    Goodbye(Farewell),
    /// Replica to master: where does the log end?
    HeadAsk {
        /// Number of the question, another one each time.
        nonce: u64,
    },
    /// The master's answer.
    HeadAnswer {
        /// Number of the question.
        nonce: u64,
        /// Where its log ended when it answered.
        head: LogEnd,
    },
}

impl Head {
    /// The head of an Entries message.
    pub fn encode_entries(&self) -> [u8; HEAD_BYTES] {
        self.encode(ENTRIES)
    }

    /// The head of a Fragment message.
    pub fn encode_fragment(&self, total: u32, offset: u32) -> [u8; FRAGMENT_HEAD_BYTES] {
        let mut out = [0; FRAGMENT_HEAD_BYTES];
        out[..HEAD_BYTES].copy_from_slice(&self.encode(FRAGMENT));
        out[HEAD_BYTES..HEAD_BYTES + 4].copy_from_slice(&total.to_le_bytes());
        out[HEAD_BYTES + 4..].copy_from_slice(&offset.to_le_bytes());
        out
    }

    fn encode(&self, opcode: u8) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[0] = opcode;
        out[1] = STREAM_VERSION;
        out[2] = if self.want_received { WANT_RECEIVED } else { 0 };
        out[4..8].copy_from_slice(&self.era.epoch.to_le_bytes());
        out[8..12].copy_from_slice(&self.era.term.number().to_le_bytes());
        out[12..20].copy_from_slice(&self.first.sequence().to_le_bytes());
        out[20..28].copy_from_slice(&self.previous_fingerprint.as_u64().to_le_bytes());
        out[28..36].copy_from_slice(&self.dtvlsn.vlsn.sequence().to_le_bytes());
        out[36..44].copy_from_slice(&self.dtvlsn.fingerprint.as_u64().to_le_bytes());
        out
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        let want_received = decode_flags(r, WANT_RECEIVED)? != 0;
        let era = decode_era(r)?;
        let first = r.vlsn("first VLSN")?;
        if first.is_null() {
            return Err(CodecError::OutOfRange {
                what: "first VLSN",
                found: "0".to_owned(),
                expected: "1 or more",
            });
        }
        let previous_fingerprint = Fingerprint::from_u64(r.u64("previous fingerprint")?);
        let dtvlsn = decode_dtvlsn(r)?;
        Ok(Self { era, first, previous_fingerprint, dtvlsn, want_received })
    }
}

impl StreamMessage<'_> {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAGMENT_HEAD_BYTES);
        match self {
            Self::Entries { head, bytes } => {
                out.put_bytes(&head.encode_entries());
                out.put_bytes(bytes);
            }
            Self::Fragment { head, total, offset, bytes } => {
                out.put_bytes(&head.encode_fragment(*total, *offset));
                out.put_bytes(bytes);
            }
            Self::Position(position) => {
                let flags = if position.want_received { WANT_RECEIVED } else { 0 }
                    | if position.answer { ANSWER } else { 0 };
                out.put_bytes(&[POSITION, STREAM_VERSION, flags, 0]);
                put_era(&mut out, position.era);
                out.put_vlsn(position.last);
                out.put_vlsn(position.dtvlsn.vlsn);
                out.put_u64(position.dtvlsn.fingerprint.as_u64());
            }
            Self::Ack(ack) => {
                out.put_bytes(&[ACK, STREAM_VERSION, 0, 0]);
                put_era(&mut out, ack.era);
                out.put_vlsn(ack.received);
                out.put_vlsn(ack.durable);
                out.put_vlsn(ack.applied);
            }
            Self::Goodbye(Farewell { why, successor }) => {
                out.put_bytes(&[GOODBYE, STREAM_VERSION, 0, 0]);
                out.put_u8(*why as u8);
                out.put_text(successor.as_ref().map_or("", Name::as_str));
            }
            Self::HeadAsk { nonce } => {
                out.put_bytes(&[HEAD_ASK, STREAM_VERSION, 0, 0]);
                out.put_u64(*nonce);
            }
            Self::HeadAnswer { nonce, head } => {
                out.put_bytes(&[HEAD_ANSWER, STREAM_VERSION, 0, 0]);
                out.put_u64(*nonce);
                put_log_end(&mut out, head);
            }
        }
        out
    }

    /// The message in a frame. Says nothing about the entries in it.
    ///
    /// # Errors
    /// [`CodecError`] for anything but exactly one well-formed message.
    pub fn decode(frame: &[u8]) -> Result<StreamMessage<'_>, CodecError> {
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(CodecError::OutOfRange {
                what: "stream message",
                found: format!("{} bytes", frame.len()),
                expected: "at most 1 MiB",
            });
        }
        let mut r = Reader::new(frame);
        let opcode = r.u8("opcode")?;
        let version = r.u8("stream version")?;
        if version != STREAM_VERSION {
            return Err(CodecError::OutOfRange {
                what: "stream version",
                found: version.to_string(),
                expected: "2",
            });
        }
        match opcode {
            ENTRIES => {
                let head = Head::decode(&mut r)?;
                let count = r.remaining();
                if count == 0 {
                    return Err(CodecError::Truncated { what: "entries", needed: 1, left: 0 });
                }
                Ok(StreamMessage::Entries { head, bytes: r.bytes("entries", count)? })
            }
            FRAGMENT => {
                let head = Head::decode(&mut r)?;
                let total = r.u32("entry bytes")?;
                let offset = r.u32("fragment offset")?;
                let count = r.remaining();
                let bytes = r.bytes("fragment", count)?;
                let end = u64::from(offset) + count as u64;
                if count == 0 || end > u64::from(total) {
                    return Err(CodecError::OutOfRange {
                        what: "fragment",
                        found: format!("bytes {offset} to {end} of {total}"),
                        expected: "a part of the entry",
                    });
                }
                Ok(StreamMessage::Fragment { head, total, offset, bytes })
            }
            POSITION => {
                let flags = decode_flags(&mut r, WANT_RECEIVED | ANSWER)?;
                let era = decode_era(&mut r)?;
                let last = r.vlsn("last VLSN")?;
                let dtvlsn = decode_dtvlsn(&mut r)?;
                r.finish("Position")?;
                Ok(StreamMessage::Position(Position {
                    era,
                    last,
                    dtvlsn,
                    want_received: flags & WANT_RECEIVED != 0,
                    answer: flags & ANSWER != 0,
                }))
            }
            ACK => {
                decode_reserved(&mut r)?;
                let ack = Ack {
                    era: decode_era(&mut r)?,
                    received: r.vlsn("received VLSN")?,
                    durable: r.vlsn("durable VLSN")?,
                    applied: r.vlsn("applied VLSN")?,
                };
                r.finish("Ack")?;
                Ok(StreamMessage::Ack(ack))
            }
            GOODBYE => {
                decode_reserved(&mut r)?;
                let why = match r.u8("reason")? {
                    0 => Leaving::Closing,
                    1 => Leaving::StepsDown,
                    other => {
                        return Err(CodecError::OutOfRange {
                            what: "reason",
                            found: other.to_string(),
                            expected: "0 or 1",
                        });
                    }
                };
                let successor = optional_name(&mut r, "successor")?;
                r.finish("Goodbye")?;
                Ok(StreamMessage::Goodbye(Farewell { why, successor }))
            }
            HEAD_ASK => {
                decode_reserved(&mut r)?;
                let nonce = r.u64("nonce")?;
                r.finish("HeadAsk")?;
                Ok(StreamMessage::HeadAsk { nonce })
            }
            HEAD_ANSWER => {
                decode_reserved(&mut r)?;
                let nonce = r.u64("nonce")?;
                let head = log_end(&mut r)?;
                r.finish("HeadAnswer")?;
                Ok(StreamMessage::HeadAnswer { nonce, head })
            }
            other => Err(CodecError::OutOfRange {
                what: "opcode",
                found: other.to_string(),
                expected: "a stream message (32 to 38)",
            }),
        }
    }

    /// The message's name, for messages to people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Entries { .. } => "Entries",
            Self::Fragment { .. } => "Fragment",
            Self::Position(_) => "Position",
            Self::Ack(_) => "Ack",
            Self::Goodbye(_) => "Goodbye",
            Self::HeadAsk { .. } => "HeadAsk",
            Self::HeadAnswer { .. } => "HeadAnswer",
        }
    }
}

fn put_era(out: &mut Vec<u8>, era: Era) {
    out.put_u32(era.epoch);
    out.put_u32(era.term.number());
}

fn decode_era(r: &mut Reader<'_>) -> Result<Era, CodecError> {
    Ok(Era { epoch: r.u32("epoch")?, term: Term::new(r.u32("term")?) })
}

fn decode_dtvlsn(r: &mut Reader<'_>) -> Result<Dtvlsn, CodecError> {
    let vlsn = r.vlsn("DTVLSN")?;
    let fingerprint = Fingerprint::from_u64(r.u64("DTVLSN fingerprint")?);
    Ok(Dtvlsn { vlsn, fingerprint })
}

fn decode_flags(r: &mut Reader<'_>, known: u8) -> Result<u8, CodecError> {
    let flags = r.u8("flags")?;
    let reserved = r.u8("reserved")?;
    if flags & !known != 0 || reserved != 0 {
        return Err(CodecError::OutOfRange {
            what: "flags",
            found: format!("{flags:#04x} {reserved:#04x}"),
            expected: "known flags only",
        });
    }
    Ok(flags)
}

fn decode_reserved(r: &mut Reader<'_>) -> Result<(), CodecError> {
    match r.u16("reserved")? {
        0 => Ok(()),
        other => Err(CodecError::OutOfRange {
            what: "reserved",
            found: other.to_string(),
            expected: "0",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ERA: Era = Era { epoch: 3, term: Term::new(7) };

    fn head() -> Head {
        Head {
            era: ERA,
            first: Vlsn::new(0x0102),
            previous_fingerprint: Fingerprint::from_u64(0x1122_3344_5566_7788),
            dtvlsn: Dtvlsn {
                vlsn: Vlsn::new(0x99),
                fingerprint: Fingerprint::from_u64(0xaabb_ccdd_eeff_0011),
            },
            want_received: true,
        }
    }

    fn samples() -> Vec<StreamMessage<'static>> {
        let position = Position {
            era: ERA,
            last: Vlsn::new(300),
            dtvlsn: head().dtvlsn,
            want_received: false,
            answer: true,
        };
        let ack = Ack {
            era: ERA,
            received: Vlsn::new(300),
            durable: Vlsn::new(299),
            applied: Vlsn::new(200),
        };
        let log_end = LogEnd {
            term: Term::new(6),
            vlsn: Vlsn::new(301),
            fingerprint: head().dtvlsn.fingerprint,
        };
        vec![
            StreamMessage::Entries { head: head(), bytes: b"abc" },
            StreamMessage::Fragment { head: head(), total: 9, offset: 4, bytes: b"defg" },
            StreamMessage::Position(position),
            StreamMessage::Ack(ack),
            goodbye("n2"),
            StreamMessage::HeadAsk { nonce: 0x0123_4567_89ab_cdef },
            StreamMessage::HeadAnswer { nonce: 0x0123_4567_89ab_cdef, head: log_end },
        ]
    }

    fn goodbye(successor: &str) -> StreamMessage<'static> {
        let successor = (!successor.is_empty()).then(|| successor.parse().unwrap());
        StreamMessage::Goodbye(Farewell { why: Leaving::StepsDown, successor })
    }

    fn hex(bytes: &[u8]) -> String {
        let digit = |b: u8| char::from_digit(u32::from(b), 16).unwrap();
        bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
    }

    #[test]
    fn the_bytes_on_the_wire_are_pinned() {
        let golden = [
            "20020100030000000700000002010000000000008877665544332211990000000000000011\
             00ffeeddccbbaa616263",
            "21020100030000000700000002010000000000008877665544332211990000000000000011\
             00ffeeddccbbaa090000000400000064656667",
            "2202020003000000070000002c0100000000000099000000000000001100ffeeddccbbaa",
            "2302000003000000070000002c010000000000002b01000000000000c800000000000000",
            "240200000102006e32",
            "25020000efcdab8967452301",
            "26020000efcdab8967452301060000002d010000000000001100ffeeddccbbaa",
        ];
        for (message, expected) in samples().iter().zip(golden) {
            assert_eq!(hex(&message.encode()), expected, "{}", message.name());
            assert_eq!(StreamMessage::decode(&message.encode()).as_ref(), Ok(message));
        }
    }

    #[test]
    fn every_truncation_and_extension_of_a_fixed_message_is_an_error() {
        for message in &samples()[2..] {
            let bytes = message.encode();
            for len in 0..bytes.len() {
                assert!(
                    StreamMessage::decode(&bytes[..len]).is_err(),
                    "{} at {len}",
                    message.name()
                );
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(StreamMessage::decode(&longer).is_err(), "{}", message.name());
        }
        for message in &samples()[..2] {
            let bytes = message.encode();
            for len in 0..=HEAD_BYTES {
                assert!(
                    StreamMessage::decode(&bytes[..len]).is_err(),
                    "{} at {len}",
                    message.name()
                );
            }
        }
    }

    #[test]
    fn unknown_versions_opcodes_and_flags_are_named() {
        let mut bytes = goodbye("").encode();
        assert_eq!(StreamMessage::decode(&bytes), Ok(goodbye("")));
        for version in [1, 9] {
            bytes[1] = version;
            let error = StreamMessage::decode(&bytes).unwrap_err().to_string();
            assert_eq!(error, format!("stream version: {version} found, 2 expected"));
        }
        bytes[1] = STREAM_VERSION;
        bytes[0] = 1;
        let error = StreamMessage::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "opcode: 1 found, a stream message (32 to 38) expected");
        let mut bytes = goodbye("n2").encode();
        bytes[4] = 2;
        let error = StreamMessage::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "reason: 2 found, 0 or 1 expected");
        let mut bytes = samples()[0].encode();
        bytes[2] = 0x82;
        assert!(StreamMessage::decode(&bytes).is_err());
        assert!(StreamMessage::decode(&vec![ENTRIES; MAX_MESSAGE_BYTES + 1]).is_err());
    }

    #[test]
    fn a_fragment_beyond_its_entry_is_refused() {
        let bytes =
            StreamMessage::Fragment { head: head(), total: 9, offset: 6, bytes: b"defg" }.encode();
        let error = StreamMessage::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "fragment: bytes 6 to 10 of 9 found, a part of the entry expected");
        let bytes =
            StreamMessage::Fragment { head: head(), total: 9, offset: u32::MAX, bytes: b"x" }
                .encode();
        assert!(StreamMessage::decode(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = StreamMessage::decode(&bytes);
        }

        #[test]
        fn no_bytes_behind_a_known_opcode_make_the_decoder_panic(
            opcode in 30u8..40, bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut frame = vec![opcode, STREAM_VERSION];
            frame.extend_from_slice(&bytes);
            if let Ok(message) = StreamMessage::decode(&frame) {
                prop_assert_eq!(message.encode(), frame);
            }
        }
    }
}
