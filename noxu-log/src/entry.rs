//! Entry: the framed item of the log, the same bytes on disk, on the wire and on every node.
//!
//! ```text
//!  0       4          8        16     20     21      22         24            32
//!  | crc32c | body_len | VLSN   | term | kind | flags | reserved | fingerprint | body ...
//! ```
//! Little endian. `crc32c` covers the body, then the header from `body_len` on, so that the body's
//! part is computed before the append lock is taken and extended inside it. `fingerprint` chains:
//! see [`noxu_util::Fingerprint::chain`].
//!
//! # See: docs/log-format.md

use bytes::Bytes;
use noxu_util::codec::{u32_at, u64_at};
use noxu_util::{CHAIN_INPUT_BYTES, Fingerprint, MAX_VLSN, Term, Vlsn, checksum};

/// Bytes of an entry before its body.
pub const ENTRY_HEADER_BYTES: usize = 32;

/// What an entry means. 0 to 15 belong to the replication engine, 16 to 255 to the storage engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryKind(pub u8);

impl EntryKind {
    /// First entry of a mastership; ends every transaction an earlier term left open.
    pub const TERM: Self = Self(0);
    /// A group configuration.
    pub const GROUP: Self = Self(1);
    /// No content.
    pub const NOOP: Self = Self(2);
    /// The lowest kind that belongs to the storage engine.
    pub const FIRST_OF_STORE: Self = Self(16);

    /// Whether the replication engine owns this kind.
    pub const fn is_engine(self) -> bool {
        self.0 < Self::FIRST_OF_STORE.0
    }
}

/// Length of the wall clock that the bodies of commits begin with.
pub(crate) const CLOCK_BYTES: usize = 8;
const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// Flags of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntryFlags(u8);

impl EntryFlags {
    /// Neither: an entry inside a transaction's run.
    pub const NONE: Self = Self(0);
    /// May be a matchpoint.
    pub const SYNC: Self = Self(1);
    /// Ends a transaction that somebody may wait for. Implies [`Self::SYNC`].
    pub const COMMIT: Self = Self(3);

    const KNOWN: u8 = 3;

    /// From the byte on disk; `None` for unknown bits or COMMIT without SYNC.
    pub const fn from_u8(raw: u8) -> Option<Self> {
        if raw & !Self::KNOWN != 0 || raw == 2 { None } else { Some(Self(raw)) }
    }

    /// The byte on disk.
    pub const fn as_u8(self) -> u8 {
        self.0
    }

    /// Whether the entry may be a matchpoint.
    pub const fn is_sync(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the entry ends a transaction.
    pub const fn is_commit(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The fixed part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// CRC-32C of the body and of the header from `body_len` on.
    pub crc: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// Number of the entry.
    pub vlsn: Vlsn,
    /// Mastership in which it was written.
    pub term: Term,
    /// What it means.
    pub kind: EntryKind,
    /// SYNC, COMMIT.
    pub flags: EntryFlags,
    /// 0 for now.
    pub reserved: u16,
    /// Running hash of the log up to and including this entry.
    pub fingerprint: Fingerprint,
}

impl EntryHeader {
    /// Decodes the fields; `None` where a field is outside its range (VLSN, unknown flags,
    /// reserved bits). Says nothing about the checksum.
    pub fn decode(bytes: &[u8; ENTRY_HEADER_BYTES]) -> Option<Self> {
        let vlsn = i64::try_from(u64_at(bytes, 8)).ok()?;
        let reserved = u16::from_le_bytes([bytes[22], bytes[23]]);
        if !(1..=MAX_VLSN.sequence()).contains(&vlsn) || reserved != 0 {
            return None;
        }
        Some(Self {
            crc: u32_at(bytes, 0),
            body_len: u32_at(bytes, 4),
            vlsn: Vlsn::new(vlsn),
            term: Term::new(u32_at(bytes, 16)),
            kind: EntryKind(bytes[20]),
            flags: EntryFlags::from_u8(bytes[21])?,
            reserved,
            fingerprint: Fingerprint::from_u64(u64_at(bytes, 24)),
        })
    }

    /// The chain through this entry.
    pub const fn chain(&self) -> ChainState {
        ChainState { vlsn: self.vlsn, term: self.term, fingerprint: self.fingerprint }
    }

    /// Bytes of the whole entry, header and body.
    pub const fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.body_len as usize
    }

    /// Whether the entry may be a matchpoint.
    pub const fn is_sync(&self) -> bool {
        self.flags.is_sync()
    }

    /// Whether the entry ends a transaction.
    pub const fn is_commit(&self) -> bool {
        self.flags.is_commit()
    }

    /// Whether no transaction is open after this entry.
    pub fn is_txn_end(&self) -> bool {
        self.is_commit() || (self.is_sync() && self.kind.is_engine())
    }

    /// The master's wall clock in milliseconds since 1970, which the bodies of commits and of Term
    /// entries begin with; `None` for other entries and for what is no time. `body` may be cut.
    pub fn wall_clock_ms(&self, body: &[u8]) -> Option<u64> {
        if !self.is_commit() && self.kind != EntryKind::TERM {
            return None;
        }
        let ms = u64::from_le_bytes(*body.first_chunk::<CLOCK_BYTES>()?);
        (ms < YEAR_10000_MS).then_some(ms)
    }
}

/// An entry to be appended, its body hashed and checksummed already.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    kind: EntryKind,
    flags: EntryFlags,
    body: &'a [u8],
    body_crc: u32,
    body_hash: u64,
}

impl<'a> NewEntry<'a> {
    /// Prepares an entry. Reads the whole body, so call it before taking any lock.
    pub fn new(kind: EntryKind, flags: EntryFlags, body: &'a [u8]) -> Self {
        Self {
            kind,
            flags,
            body,
            body_crc: checksum::crc(body),
            body_hash: Fingerprint::of_body(body),
        }
    }

    /// Its body.
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// What it means.
    pub const fn kind(&self) -> EntryKind {
        self.kind
    }

    /// SYNC, COMMIT.
    pub const fn flags(&self) -> EntryFlags {
        self.flags
    }

    /// Bytes of the whole entry once appended.
    pub const fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.body.len()
    }

    /// The header at its place in the log, as bytes and as fields: what remains to be computed inside
    /// the append lock.
    pub fn place(
        &self,
        vlsn: Vlsn,
        term: Term,
        previous: Fingerprint,
    ) -> ([u8; ENTRY_HEADER_BYTES], EntryHeader) {
        let body_len = self.body.len() as u32;
        let mut header = [0; ENTRY_HEADER_BYTES];
        header[4..8].copy_from_slice(&body_len.to_le_bytes());
        header[8..16].copy_from_slice(&vlsn.sequence().to_le_bytes());
        header[16..20].copy_from_slice(&term.number().to_le_bytes());
        header[20] = self.kind.0;
        header[21] = self.flags.as_u8();
        let fingerprint = previous.chain(&chain_input(&header, self.body_hash));
        header[24..32].copy_from_slice(&fingerprint.as_u64().to_le_bytes());
        let crc = checksum::crc_append(self.body_crc, &header[4..]);
        header[0..4].copy_from_slice(&crc.to_le_bytes());
        let Self { kind, flags, .. } = *self;
        let fields =
            EntryHeader { crc, body_len, vlsn, term, kind, flags, reserved: 0, fingerprint };
        (header, fields)
    }
}

/// Length, VLSN, term, kind, flags, reserved: header bytes 4..24; then the body's hash.
fn chain_input(header: &[u8; ENTRY_HEADER_BYTES], body_hash: u64) -> [u8; CHAIN_INPUT_BYTES] {
    let mut input = [0; CHAIN_INPUT_BYTES];
    input[..20].copy_from_slice(&header[4..24]);
    input[20..].copy_from_slice(&body_hash.to_le_bytes());
    input
}

/// An entry as it stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its fixed part.
    pub header: EntryHeader,
    /// Its body.
    pub body: &'a [u8],
}

/// What is wrong with the bytes where an entry should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The bytes end before the entry does.
    #[error("{needed} bytes expected, {left} left")]
    Short {
        /// Bytes the entry takes.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// The body is longer than the cap.
    #[error("body of {found} bytes found, at most {max} expected")]
    TooLong {
        /// Length found.
        found: u32,
        /// The cap.
        max: u32,
    },
    /// A header field is outside its range.
    #[error("no entry header")]
    Header,
    /// The checksum does not match.
    #[error("crc {found:08x} found, {expected:08x} expected")]
    Crc {
        /// As stored.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// The entry has another number than its place.
    #[error("VLSN {found} found, {expected} expected")]
    Vlsn {
        /// As stored.
        found: Vlsn,
        /// Successor of the entry before.
        expected: Vlsn,
    },
    /// The entry's term is lower than that of the one before it.
    #[error("term {found} found, at least {expected} expected")]
    Term {
        /// As stored.
        found: Term,
        /// Term of the entry before.
        expected: Term,
    },
    /// The entry does not continue the chain: it belongs to another history.
    #[error("fingerprint {found} found, {expected} expected")]
    Chain {
        /// As stored.
        found: Fingerprint,
        /// Computed from the entry before.
        expected: Fingerprint,
    },
}

/// The end of a log so far: what the next entry must continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainState {
    /// VLSN of the last entry.
    pub vlsn: Vlsn,
    /// Its term.
    pub term: Term,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl ChainState {
    /// Checks the entry at the front of `bytes` as the next one of the chain: length, header,
    /// checksum, VLSN, term, fingerprint. On success the chain has moved on.
    pub fn check_next<'b>(
        &mut self,
        bytes: &'b [u8],
        max_body_bytes: u32,
    ) -> Result<Entry<'b>, EntryFault> {
        let Some(raw) = bytes.first_chunk::<ENTRY_HEADER_BYTES>() else {
            return Err(EntryFault::Short { needed: ENTRY_HEADER_BYTES, left: bytes.len() });
        };
        let header = EntryHeader::decode(raw).ok_or(EntryFault::Header)?;
        if header.body_len > max_body_bytes {
            return Err(EntryFault::TooLong { found: header.body_len, max: max_body_bytes });
        }
        let Some(body) = bytes.get(ENTRY_HEADER_BYTES..header.entry_bytes()) else {
            return Err(EntryFault::Short { needed: header.entry_bytes(), left: bytes.len() });
        };
        let expected = checksum::crc_append(checksum::crc(body), &raw[4..]);
        if header.crc != expected {
            return Err(EntryFault::Crc { found: header.crc, expected });
        }
        let next = self.vlsn.next();
        if header.vlsn != next {
            return Err(EntryFault::Vlsn { found: header.vlsn, expected: next });
        }
        if header.term < self.term {
            return Err(EntryFault::Term { found: header.term, expected: self.term });
        }
        let expected = self.fingerprint.chain(&chain_input(raw, Fingerprint::of_body(body)));
        if header.fingerprint != expected {
            return Err(EntryFault::Chain { found: header.fingerprint, expected });
        }
        *self = Self { vlsn: header.vlsn, term: header.term, fingerprint: header.fingerprint };
        Ok(Entry { header, body })
    }
}

/// A contiguous run of whole, verified entries. Its bytes are shared, not copied, where the log's
/// tail holds them.
#[derive(Debug, Clone)]
pub struct EntryRun {
    /// First entry.
    pub first: Vlsn,
    /// Last entry.
    pub last: Vlsn,
    /// Fingerprint of the entry before `first`.
    pub previous_fingerprint: Fingerprint,
    /// Fingerprint of `last`.
    pub last_fingerprint: Fingerprint,
    /// Term of `last`.
    pub last_term: Term,
    /// The bytes, in order; each part holds whole entries.
    pub parts: Vec<Bytes>,
}

/// Where in a run of bytes an entry was found faulty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {vlsn} at byte {offset}: {fault}")]
pub struct EntryError {
    /// The VLSN expected there.
    pub vlsn: Vlsn,
    /// Offset of the entry in the run.
    pub offset: usize,
    /// What is wrong.
    pub fault: EntryFault,
}

impl EntryRun {
    /// Checks bytes that came from elsewhere: every entry's checksum, the chain from `after`, dense
    /// VLSNs, terms that never fall, bodies of at most `max_body_bytes`. At least one entry.
    pub fn verify(
        bytes: Bytes,
        after: ChainState,
        max_body_bytes: u32,
    ) -> Result<Self, EntryError> {
        let mut chain = after;
        let mut offset = 0;
        while offset < bytes.len() || chain.vlsn == after.vlsn {
            match chain.check_next(&bytes[offset..], max_body_bytes) {
                Ok(entry) => offset += entry.header.entry_bytes(),
                Err(fault) => return Err(EntryError { vlsn: chain.vlsn.next(), offset, fault }),
            }
        }
        Ok(Self {
            first: after.vlsn.next(),
            last: chain.vlsn,
            previous_fingerprint: after.fingerprint,
            last_fingerprint: chain.fingerprint,
            last_term: chain.term,
            parts: vec![bytes],
        })
    }

    /// The entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.parts.iter().flat_map(|part| entries_of(part))
    }

    /// Number of entries, at least 1.
    pub const fn count(&self) -> u64 {
        self.last.since(self.first) + 1
    }

    /// Bytes of all parts.
    pub fn byte_len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// Entries of bytes that are known to hold whole, valid entries.
pub(crate) fn entries_of(mut bytes: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    std::iter::from_fn(move || {
        let entry = front_entry(bytes)?;
        bytes = &bytes[entry.header.entry_bytes()..];
        Some(entry)
    })
}

/// The entry at the front of verified bytes; `None` at their end.
pub(crate) fn front_entry(bytes: &[u8]) -> Option<Entry<'_>> {
    let header = EntryHeader::decode(bytes.first_chunk::<ENTRY_HEADER_BYTES>()?)?;
    let body = bytes.get(ENTRY_HEADER_BYTES..header.entry_bytes())?;
    Some(Entry { header, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut chain = ChainState::default();
        for body in bodies {
            let entry = NewEntry::new(EntryKind(20), EntryFlags::COMMIT, body);
            let vlsn = chain.vlsn.next();
            let (header, fields) = entry.place(vlsn, Term::new(3), chain.fingerprint);
            assert_eq!(EntryHeader::decode(&header), Some(fields));
            let fingerprint = fields.fingerprint;
            out.extend_from_slice(&header);
            out.extend_from_slice(body);
            chain = ChainState { vlsn, term: Term::new(3), fingerprint };
        }
        out
    }

    #[test]
    fn placed_entries_verify_as_a_run() {
        let bytes = encode(&[b"one", b"", b"three"]);
        let run = EntryRun::verify(bytes.into(), ChainState::default(), 100).unwrap();
        assert_eq!((run.first, run.last), (Vlsn::new(1), Vlsn::new(3)));
        let bodies: Vec<_> = run.entries().map(|e| e.body.to_vec()).collect();
        assert_eq!(bodies, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        assert_eq!(run.entries().last().unwrap().header.fingerprint, run.last_fingerprint);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = encode(&[b"one", b"two"]);
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let found = EntryRun::verify(bad.into(), ChainState::default(), 100);
            assert!(found.is_err(), "bit {at} flipped unnoticed");
        }
    }

    #[test]
    fn an_empty_or_cut_run_is_short() {
        let bytes = encode(&[b"one", b"two"]);
        for len in 0..bytes.len() {
            let cut = Bytes::copy_from_slice(&bytes[..len]);
            let found = EntryRun::verify(cut, ChainState::default(), 100);
            if len == 35 {
                assert_eq!(found.unwrap().last, Vlsn::new(1));
            } else {
                assert!(matches!(found.unwrap_err().fault, EntryFault::Short { .. }), "{len}");
            }
        }
    }

    #[test]
    fn a_run_of_another_history_breaks_the_chain() {
        let bytes = encode(&[b"one"]);
        let after = ChainState { fingerprint: Fingerprint::from_u64(9), ..ChainState::default() };
        let error = EntryRun::verify(bytes.into(), after, 100).unwrap_err();
        assert!(matches!(error.fault, EntryFault::Chain { .. }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = EntryRun::verify(bytes.into(), ChainState::default(), 1 << 20);
        }
    }
}
