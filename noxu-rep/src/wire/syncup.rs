//! SyncupMsg: the messages of the syncup conversation.
//!
//! One opcode byte, then fields in little endian; VLSNs as i64. Opcodes 1 to 7 are a complete
//! protocol of their own (one candidate per round trip); 8 and 9 search many at once.

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Term, Vlsn};

use crate::error::{RepError, Result};

/// A message of the syncup conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncupMsg {
    /// Replica: what do you hold at this VLSN?
    EntryRequest {
        /// The VLSN asked for.
        vlsn: Vlsn,
    },
    /// Feeder: this is my entry.
    Entry {
        /// Its VLSN, the one asked for.
        vlsn: Vlsn,
        /// Where it begins.
        lsn: u64,
        /// Hash of the log through it.
        fingerprint: u64,
        /// Whether it may be a matchpoint.
        is_sync: bool,
    },
    /// Feeder: I do not hold it.
    EntryNotFound,
    /// Feeder: that is beyond my end, what about this one?
    AlternateMatchpoint {
        /// A sync entry of the feeder.
        vlsn: Vlsn,
        /// Where it begins.
        lsn: u64,
        /// Hash of the log through it.
        fingerprint: u64,
        /// Whether it may be a matchpoint.
        is_sync: bool,
    },
    /// Replica: the search is over, send from here.
    StartStream {
        /// First VLSN to send.
        start_vlsn: Vlsn,
    },
    /// Replica: there is no matchpoint, I go to restore.
    RestoreRequest {
        /// The last VLSN that was tried.
        failed_vlsn: Vlsn,
    },
    /// Feeder: understood.
    RestoreResponse,
    /// Replica: do you agree with these?
    Probe {
        /// The newest masterships in the replica's log: term and first VLSN, ascending.
        terms: Vec<(Term, Vlsn)>,
        /// Entries of the replica: VLSN, LSN, fingerprint; descending.
        samples: Vec<(Vlsn, u64, u64)>,
    },
    /// Feeder: this is what I hold.
    ProbeResult {
        /// First VLSN of the feeder's log.
        first: Vlsn,
        /// Last VLSN of the feeder's log.
        last: Vlsn,
        /// One per sample, in the same order.
        verdicts: Vec<Verdict>,
        /// Entries of the feeder around the VLSN where its terms part from the replica's.
        hints: Vec<(Vlsn, u64, u64)>,
    },
}

/// What a feeder says of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds no such VLSN: neither agreement nor disagreement.
    Missing,
    /// It holds the same entry.
    Agree,
    /// It holds another entry.
    Disagree,
}

/// Most samples in one [`SyncupMsg::Probe`].
pub const MAX_SAMPLES: usize = 4096;

/// Most terms in one [`SyncupMsg::Probe`].
pub const MAX_TERMS: usize = 1024;

/// Most hints in one [`SyncupMsg::ProbeResult`].
pub const MAX_HINTS: usize = 16;

const ENTRY_REQUEST: u8 = 1;
const ENTRY: u8 = 2;
const ENTRY_NOT_FOUND: u8 = 3;
const ALTERNATE_MATCHPOINT: u8 = 4;
const START_STREAM: u8 = 5;
const RESTORE_REQUEST: u8 = 6;
const RESTORE_RESPONSE: u8 = 7;
const PROBE: u8 = 8;
const PROBE_RESULT: u8 = 9;

impl SyncupMsg {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::EntryRequest { .. } => "EntryRequest",
            Self::Entry { .. } => "Entry",
            Self::EntryNotFound => "EntryNotFound",
            Self::AlternateMatchpoint { .. } => "AlternateMatchpoint",
            Self::StartStream { .. } => "StartStream",
            Self::RestoreRequest { .. } => "RestoreRequest",
            Self::RestoreResponse => "RestoreResponse",
            Self::Probe { .. } => "Probe",
            Self::ProbeResult { .. } => "ProbeResult",
        }
    }

    /// The bytes of one frame.
    ///
    /// # Panics
    /// If a probe carries more than [`MAX_SAMPLES`], [`MAX_TERMS`] or [`MAX_HINTS`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::EntryRequest { vlsn } => {
                out.put_u8(ENTRY_REQUEST);
                out.put_vlsn(*vlsn);
            }
            Self::Entry { vlsn, lsn, fingerprint, is_sync } => {
                out.put_u8(ENTRY);
                put_identity(&mut out, (*vlsn, *lsn, *fingerprint));
                out.put_bool(*is_sync);
            }
            Self::EntryNotFound => out.put_u8(ENTRY_NOT_FOUND),
            Self::AlternateMatchpoint { vlsn, lsn, fingerprint, is_sync } => {
                out.put_u8(ALTERNATE_MATCHPOINT);
                put_identity(&mut out, (*vlsn, *lsn, *fingerprint));
                out.put_bool(*is_sync);
            }
            Self::StartStream { start_vlsn } => {
                out.put_u8(START_STREAM);
                out.put_vlsn(*start_vlsn);
            }
            Self::RestoreRequest { failed_vlsn } => {
                out.put_u8(RESTORE_REQUEST);
                out.put_vlsn(*failed_vlsn);
            }
            Self::RestoreResponse => out.put_u8(RESTORE_RESPONSE),
            Self::Probe { terms, samples } => {
                assert!(terms.len() <= MAX_TERMS, "{} terms in one probe", terms.len());
                assert!(samples.len() <= MAX_SAMPLES, "{} samples in one probe", samples.len());
                out.reserve(5 + 12 * terms.len() + IDENTITY_BYTES * samples.len());
                out.put_u8(PROBE);
                out.put_u16(terms.len() as u16);
                for (term, first) in terms {
                    out.put_u32(term.number());
                    out.put_vlsn(*first);
                }
                out.put_u16(samples.len() as u16);
                for sample in samples {
                    put_identity(&mut out, *sample);
                }
            }
            Self::ProbeResult { first, last, verdicts, hints } => {
                assert!(verdicts.len() <= MAX_SAMPLES, "{} verdicts", verdicts.len());
                assert!(hints.len() <= MAX_HINTS, "{} hints", hints.len());
                out.put_u8(PROBE_RESULT);
                out.put_vlsn(*first);
                out.put_vlsn(*last);
                out.put_u16(verdicts.len() as u16);
                out.extend(verdicts.iter().map(|verdict| *verdict as u8));
                out.put_u16(hints.len() as u16);
                for hint in hints {
                    put_identity(&mut out, *hint);
                }
            }
        }
        out
    }

    /// The message in one frame; bytes left over are an error.
    pub fn decode(frame: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(frame);
        let opcode = reader.u8("syncup opcode")?;
        let message = match opcode {
            ENTRY_REQUEST => Self::EntryRequest { vlsn: reader.vlsn("EntryRequest.vlsn")? },
            ENTRY => {
                let (vlsn, lsn, fingerprint) = identity(&mut reader, "Entry")?;
                Self::Entry { vlsn, lsn, fingerprint, is_sync: reader.bool("Entry.is_sync")? }
            }
            ENTRY_NOT_FOUND => Self::EntryNotFound,
            ALTERNATE_MATCHPOINT => {
                let (vlsn, lsn, fingerprint) = identity(&mut reader, "AlternateMatchpoint")?;
                let is_sync = reader.bool("AlternateMatchpoint.is_sync")?;
                Self::AlternateMatchpoint { vlsn, lsn, fingerprint, is_sync }
            }
            START_STREAM => {
                Self::StartStream { start_vlsn: reader.vlsn("StartStream.start_vlsn")? }
            }
            RESTORE_REQUEST => {
                Self::RestoreRequest { failed_vlsn: reader.vlsn("RestoreRequest.failed_vlsn")? }
            }
            RESTORE_RESPONSE => Self::RestoreResponse,
            PROBE => {
                let count = bounded_count(&mut reader, "Probe.terms", MAX_TERMS, 12)?;
                let mut terms = Vec::with_capacity(count);
                for _ in 0..count {
                    let term = Term::new(reader.u32("Probe.term")?);
                    terms.push((term, reader.vlsn("Probe.term first VLSN")?));
                }
                let count =
                    bounded_count(&mut reader, "Probe.samples", MAX_SAMPLES, IDENTITY_BYTES)?;
                let mut samples = Vec::with_capacity(count);
                for _ in 0..count {
                    samples.push(identity(&mut reader, "Probe.sample")?);
                }
                Self::Probe { terms, samples }
            }
            PROBE_RESULT => {
                let first = reader.vlsn("ProbeResult.first")?;
                let last = reader.vlsn("ProbeResult.last")?;
                let count = bounded_count(&mut reader, "ProbeResult.verdicts", MAX_SAMPLES, 1)?;
                let verdicts = reader
                    .bytes("ProbeResult.verdicts", count)?
                    .iter()
                    .map(|raw| verdict(*raw))
                    .collect::<Result<_, _>>()?;
                let count =
                    bounded_count(&mut reader, "ProbeResult.hints", MAX_HINTS, IDENTITY_BYTES)?;
                let mut hints = Vec::with_capacity(count);
                for _ in 0..count {
                    hints.push(identity(&mut reader, "ProbeResult.hint")?);
                }
                Self::ProbeResult { first, last, verdicts, hints }
            }
            unknown => {
                return Err(RepError::protocol(
                    "",
                    "a syncup opcode from 1 to 9",
                    format!("opcode {unknown}"),
                ));
            }
        };
        reader.finish(message.name())?;
        Ok(message)
    }
}

/// VLSN, LSN and fingerprint.
const IDENTITY_BYTES: usize = 24;

fn put_identity(out: &mut Vec<u8>, (vlsn, lsn, fingerprint): (Vlsn, u64, u64)) {
    out.put_vlsn(vlsn);
    out.put_u64(lsn);
    out.put_u64(fingerprint);
}

fn identity(reader: &mut Reader<'_>, what: &'static str) -> Result<(Vlsn, u64, u64), CodecError> {
    Ok((reader.vlsn(what)?, reader.u64(what)?, reader.u64(what)?))
}

/// A u16 count of items of `item_bytes`, checked against `max` and against what is really there.
fn bounded_count(
    reader: &mut Reader<'_>,
    what: &'static str,
    max: usize,
    item_bytes: usize,
) -> Result<usize, CodecError> {
    let count = usize::from(reader.u16(what)?);
    if count > max {
        let found = format!("{count} items");
        return Err(CodecError::OutOfRange { what, found, expected: "fewer items" });
    }
    if count * item_bytes > reader.remaining() {
        let (needed, left) = (count * item_bytes, reader.remaining());
        return Err(CodecError::Truncated { what, needed, left });
    }
    Ok(count)
}

fn verdict(raw: u8) -> Result<Verdict, CodecError> {
    match raw {
        0 => Ok(Verdict::Missing),
        1 => Ok(Verdict::Agree),
        2 => Ok(Verdict::Disagree),
        other => Err(CodecError::OutOfRange {
            what: "ProbeResult.verdict",
            found: other.to_string(),
            expected: "0, 1 or 2",
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    /// Every message with the bytes it must have for ever.
    fn golden() -> Vec<(SyncupMsg, &'static str)> {
        let (lsn, fingerprint) = (0x0000_0002_0000_0040, 0x1122_3344_5566_7788);
        vec![
            (SyncupMsg::EntryRequest { vlsn: v(258) }, "01 0201000000000000"),
            (
                SyncupMsg::Entry { vlsn: v(258), lsn, fingerprint, is_sync: true },
                "02 0201000000000000 4000000002000000 8877665544332211 01",
            ),
            (SyncupMsg::EntryNotFound, "03"),
            (
                SyncupMsg::AlternateMatchpoint { vlsn: v(7), lsn, fingerprint, is_sync: false },
                "04 0700000000000000 4000000002000000 8877665544332211 00",
            ),
            (SyncupMsg::StartStream { start_vlsn: v(1) }, "05 0100000000000000"),
            (SyncupMsg::RestoreRequest { failed_vlsn: v(9) }, "06 0900000000000000"),
            (SyncupMsg::RestoreResponse, "07"),
            (
                SyncupMsg::Probe {
                    terms: vec![(Term::new(3), v(1)), (Term::new(4), v(90))],
                    samples: vec![(v(7), lsn, fingerprint)],
                },
                "08 0200 03000000 0100000000000000 04000000 5a00000000000000 \
                 0100 0700000000000000 4000000002000000 8877665544332211",
            ),
            (
                SyncupMsg::ProbeResult {
                    first: v(2),
                    last: v(99),
                    verdicts: vec![Verdict::Missing, Verdict::Agree, Verdict::Disagree],
                    hints: vec![(v(7), lsn, fingerprint)],
                },
                "09 0200000000000000 6300000000000000 0300 000102 \
                 0100 0700000000000000 4000000002000000 8877665544332211",
            ),
        ]
    }

    fn from_hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn every_message_has_its_golden_bytes() {
        for (message, hex) in golden() {
            assert_eq!(message.encode(), from_hex(hex), "{}", message.name());
            assert_eq!(SyncupMsg::decode(&from_hex(hex)).unwrap(), message);
        }
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_an_error() {
        for (message, _) in golden() {
            let whole = message.encode();
            for len in 0..whole.len() {
                let cut = SyncupMsg::decode(&whole[..len]);
                assert!(matches!(cut, Err(RepError::ProtocolError(_))), "{message:?} at {len}");
            }
            let mut longer = whole;
            longer.push(0);
            let long = SyncupMsg::decode(&longer);
            assert!(matches!(long, Err(RepError::ProtocolError(_))), "{message:?}");
        }
    }

    #[test]
    fn counts_and_values_out_of_range_are_errors() {
        for bad in [
            "00",
            "0a",
            "01 ffffffffffffffff", // negative VLSN
            "02 0100000000000000 4000000001000000 8877665544332211 02", // is_sync 2
            "08 0104",             // 1,025 terms
            "08 0000 0110",        // 4,097 samples
            "09 0100000000000000 0100000000000000 0100 03 0000", // verdict 3
            "09 0100000000000000 0100000000000000 0000 1100", // 17 hints
        ] {
            let found = SyncupMsg::decode(&from_hex(bad));
            assert!(matches!(found, Err(RepError::ProtocolError(_))), "{bad}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_what_decodes_encodes_back(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            opcode in 0u8..12,
        ) {
            for input in [bytes.clone(), [&[opcode][..], &bytes].concat()] {
                if let Ok(message) = SyncupMsg::decode(&input) {
                    prop_assert_eq!(message.encode(), input);
                }
            }
        }
    }
}
