//! LSN: a byte position in the log.

use std::fmt;

/// Byte position in the log: segment number in the high 32 bits, offset in the segment file in the
/// low 32. The same entry has the same LSN on every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// The absent LSN. Segments are numbered from 1, so no entry has it.
pub const NULL_LSN: Lsn = Lsn(0);

impl Lsn {
    /// Position `offset` bytes into segment `segment`.
    pub const fn new(segment: u32, offset: u32) -> Self {
        Self((segment as u64) << 32 | offset as u64)
    }

    /// From the packed form that goes on disk and on the wire.
    pub const fn from_u64(packed: u64) -> Self {
        Self(packed)
    }

    /// The packed form.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Number of the segment, from 1.
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Offset in the segment file, in bytes.
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Whether this is [`NULL_LSN`].
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_sort_by_segment_then_offset() {
        assert!(Lsn::new(1, u32::MAX) < Lsn::new(2, 0));
        assert!(Lsn::new(2, 1) > Lsn::new(2, 0));
        let lsn = Lsn::new(7, 4096);
        assert_eq!((lsn.segment(), lsn.offset()), (7, 4096));
        assert_eq!(Lsn::from_u64(lsn.as_u64()), lsn);
        assert_eq!(lsn.to_string(), "7:4096");
    }
}
