//! Segment header: the first 64 bytes of a segment file, identical on every node.
//!
//! ```text
//!  0      8        12       16         32          40            48         52             56        60
//!  | magic | version | number | group id | first VLSN | fingerprint | term     | segment_bytes | reserved | crc32c |
//!                                                     |  before the first entry |
//! ```
//! Little endian. The position before the first entry is there so that a segment can be verified
//! on its own.

use noxu_util::codec::{Put, u32_at, u64_at};
use noxu_util::{Fingerprint, GroupId, MAX_VLSN, Term, Vlsn, checksum};

use crate::entry::ChainState;

/// Bytes of a segment before its first entry.
pub const SEGMENT_HEADER_BYTES: u32 = 64;
/// Version of the segment format this build writes.
pub const SEGMENT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"NOXULOG\0";

/// The fixed part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment, from 1.
    pub number: u32,
    /// The group whose log this is.
    pub group: GroupId,
    /// VLSN of the first entry, present or to come.
    pub first: Vlsn,
    /// Fingerprint before the first entry.
    pub previous_fingerprint: Fingerprint,
    /// Term before the first entry.
    pub previous_term: Term,
    /// The group's segment size, in bytes.
    pub segment_bytes: u32,
}

/// What is wrong with the bytes where a segment header should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// Fewer than 64 bytes.
    #[error("segment header of 64 bytes expected, {left} found")]
    Short {
        /// Bytes there are.
        left: usize,
    },
    /// Not a segment file.
    #[error("segment magic expected, {found:02x?} found")]
    Magic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// Written by a newer build.
    #[error("segment format {found} found, {SEGMENT_VERSION} expected")]
    Version {
        /// As stored.
        found: u32,
    },
    /// The checksum does not match.
    #[error("segment header crc {found:08x} found, {expected:08x} expected")]
    Crc {
        /// As stored.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// A whole header that was written for another place.
    #[error("the header of segment {number} from entry {first} on found, which goes on elsewhere")]
    Misplaced {
        /// The segment it was written for.
        number: u32,
        /// That one's first entry.
        first: Vlsn,
    },
    /// A field is outside its range.
    #[error("{field} out of range in the segment header")]
    Range {
        /// The field.
        field: &'static str,
    },
}

impl SegmentHeader {
    /// The position before the segment's first entry.
    pub fn chain_before(&self) -> ChainState {
        ChainState {
            vlsn: self.first.prev(),
            term: self.previous_term,
            fingerprint: self.previous_fingerprint,
        }
    }

    /// The 64 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES as usize);
        out.put_bytes(MAGIC);
        out.put_u32(SEGMENT_VERSION);
        out.put_u32(self.number);
        out.put_bytes(self.group.as_bytes());
        out.put_vlsn(self.first);
        out.put_u64(self.previous_fingerprint.as_u64());
        out.put_u32(self.previous_term.number());
        out.put_u32(self.segment_bytes);
        out.put_u32(0);
        let crc = checksum::crc(&out);
        out.put_u32(crc);
        out
    }

    /// Decodes and checks the 64 bytes at the front of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(raw) = bytes.first_chunk::<{ SEGMENT_HEADER_BYTES as usize }>() else {
            return Err(HeaderFault::Short { left: bytes.len() });
        };
        let mut magic = [0; 8];
        magic.copy_from_slice(&raw[..8]);
        if &magic != MAGIC {
            return Err(HeaderFault::Magic { found: magic });
        }
        let version = u32_at(raw, 8);
        if version != SEGMENT_VERSION {
            return Err(HeaderFault::Version { found: version });
        }
        let (found, expected) = (u32_at(raw, 60), checksum::crc(&raw[..60]));
        if found != expected {
            return Err(HeaderFault::Crc { found, expected });
        }
        let first = i64::try_from(u64_at(raw, 32))
            .ok()
            .filter(|first| (1..=MAX_VLSN.sequence()).contains(first))
            .ok_or(HeaderFault::Range { field: "first VLSN" })?;
        if u32_at(raw, 56) != 0 {
            return Err(HeaderFault::Range { field: "reserved" });
        }
        let mut group = [0; 16];
        group.copy_from_slice(&raw[16..32]);
        Ok(Self {
            number: u32_at(raw, 12),
            group: GroupId::from_bytes(group),
            first: Vlsn::new(first),
            previous_fingerprint: Fingerprint::from_u64(u64_at(raw, 40)),
            previous_term: Term::new(u32_at(raw, 48)),
            segment_bytes: u32_at(raw, 52),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            number: 7,
            group: GroupId::from_bytes([9; 16]),
            first: Vlsn::new(1000),
            previous_fingerprint: Fingerprint::from_u64(0x1122_3344_5566_7788),
            previous_term: Term::new(4),
            segment_bytes: 1 << 26,
        }
    }

    #[test]
    fn a_header_is_64_bytes_and_reads_back() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES as usize);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn a_field_out_of_range_under_a_right_checksum_is_named() {
        for (at, value, field) in [
            (32, 0, "first VLSN"),
            (32, (1 << 62) + 1, "first VLSN"),
            (32, u64::MAX, "first VLSN"),
            (56, 1, "reserved"),
        ] {
            let mut bytes = sample().encode();
            let width = if at == 32 { 8 } else { 4 };
            bytes[at..at + width].copy_from_slice(&u64::to_le_bytes(value)[..width]);
            let crc = checksum::crc(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(SegmentHeader::decode(&bytes), Err(HeaderFault::Range { field }));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = sample().encode();
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert_eq!(SegmentHeader::decode(&bytes[..len]), Err(HeaderFault::Short { left: len }));
        }
    }
}
