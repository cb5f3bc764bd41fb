//! Fingerprint: running hash of the log up to and including an entry.
//!
//! Equal fingerprints at the same VLSN prove equal logs up to it (up to collisions of a 64-bit
//! xxh3): each one is seeded with its predecessor.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Running hash of the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fingerprint(u64);

/// Bytes of an entry that the chain step covers beside the hash of its body.
pub const CHAIN_INPUT_BYTES: usize = 28;

impl Fingerprint {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// From the form that goes on disk and on the wire.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The form that goes on disk and on the wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Hash of an entry's body, computed before the append lock is taken.
    pub fn of_body(body: &[u8]) -> u64 {
        xxh3_64(body)
    }

    /// The fingerprint after one more entry. `input` is the entry's length, VLSN, term, kind,
    /// flags, reserved field and body hash, little endian. O(1): the body is hashed beforehand.
    #[must_use]
    pub fn chain(self, input: &[u8; CHAIN_INPUT_BYTES]) -> Self {
        Self(xxh3_64_with_seed(input, self.0))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_depends_on_its_predecessor_and_on_every_input_byte() {
        let base = [7u8; CHAIN_INPUT_BYTES];
        let plain = Fingerprint::ZERO.chain(&base);
        assert_ne!(plain, Fingerprint::from_u64(1).chain(&base));
        for at in 0..CHAIN_INPUT_BYTES {
            let mut other = base;
            other[at] ^= 1;
            assert_ne!(plain, Fingerprint::ZERO.chain(&other), "byte {at}");
        }
    }
}
