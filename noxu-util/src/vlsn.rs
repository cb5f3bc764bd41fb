//! VLSN: the group-wide number of a log entry.

use std::fmt;

/// Number of a log entry, the same on every node of the group.
///
/// VLSNs are dense from 1. [`NULL_VLSN`] (sequence 0) stands for absence: an empty log's last
/// entry, "nothing durable yet", the matchpoint of a fresh replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Vlsn(i64);

/// The absent VLSN. Sorts before every real one; its [`Vlsn::next`] is 1.
pub const NULL_VLSN: Vlsn = Vlsn(0);

/// The highest VLSN that is taken from disk or wire, 2^62: far more entries than a group can write,
/// and far enough from the end of the range that sums with lengths and counts never overflow.
pub const MAX_VLSN: Vlsn = Vlsn(1 << 62);

impl Vlsn {
    /// The VLSN with this sequence number; 0 is [`NULL_VLSN`].
    ///
    /// # Panics
    /// If `sequence` is negative. Decoders check before they call.
    pub const fn new(sequence: i64) -> Self {
        assert!(sequence >= 0, "a VLSN is never negative");
        Self(sequence)
    }

    /// The sequence number, 0 for [`NULL_VLSN`].
    pub const fn sequence(self) -> i64 {
        self.0
    }

    /// Whether this is [`NULL_VLSN`].
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The VLSN after this one; 1 after [`NULL_VLSN`].
    ///
    /// # Panics
    /// If the sequence number overflows, which 2^63 entries would take.
    #[must_use]
    pub const fn next(self) -> Self {
        assert!(self.0 < i64::MAX, "VLSNs are exhausted");
        Self(self.0 + 1)
    }

    /// The VLSN before this one; [`NULL_VLSN`] before 1.
    ///
    /// # Panics
    /// On [`NULL_VLSN`], which has no predecessor.
    #[must_use]
    pub const fn prev(self) -> Self {
        assert!(self.0 > 0, "NULL_VLSN has no predecessor");
        Self(self.0 - 1)
    }

    /// The VLSN `count` entries further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count as i64)
    }

    /// How many entries lie in `(earlier, self]`; 0 if `self` is not beyond `earlier`.
    pub const fn since(self, earlier: Self) -> u64 {
        if self.0 > earlier.0 { (self.0 - earlier.0) as u64 } else { 0 }
    }
}

impl fmt::Display for Vlsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() { f.write_str("none") } else { write!(f, "{}", self.0) }
    }
}

impl fmt::Debug for Vlsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vlsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_precedes_the_first_entry() {
        assert!(NULL_VLSN.is_null());
        assert_eq!(NULL_VLSN.sequence(), 0);
        assert_eq!(NULL_VLSN.next(), Vlsn::new(1));
        assert_eq!(Vlsn::new(1).prev(), NULL_VLSN);
        assert!(NULL_VLSN < Vlsn::new(1));
    }

    #[test]
    fn since_counts_entries_and_never_underflows() {
        assert_eq!(Vlsn::new(10).since(Vlsn::new(7)), 3);
        assert_eq!(Vlsn::new(7).since(Vlsn::new(10)), 0);
        assert_eq!(NULL_VLSN.plus(4).since(NULL_VLSN), 4);
    }
}
