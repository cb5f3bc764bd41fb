//! Codec: bounds-checked little-endian reading of bytes that came from disk or wire.
//!
//! Nothing here panics on any input, and nothing allocates by a length it has not checked.

use byteorder::{ByteOrder, LittleEndian};

use crate::{BadName, GroupId, MAX_VLSN, Name, Vlsn};

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes end inside a field.
    #[error("{what}: {needed} bytes expected, {left} left")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Bytes it takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes are left after the last field.
    #[error("{extra} bytes after the end of {what}")]
    Trailing {
        /// What was decoded.
        what: &'static str,
        /// How many bytes too many.
        extra: usize,
    },
    /// A field holds a value outside its range.
    #[error("{what}: {found} found, {expected} expected")]
    OutOfRange {
        /// The field.
        what: &'static str,
        /// The value found.
        found: String,
        /// The values allowed.
        expected: &'static str,
    },
}

impl From<BadName> for CodecError {
    fn from(bad: BadName) -> Self {
        Self::OutOfRange { what: "name", found: format!("{:?}", bad.found), expected: "a name" }
    }
}

/// Reads fields from the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, what: &'static str, count: usize) -> Result<&'a [u8], CodecError> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(CodecError::Truncated { what, needed: count, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CodecError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(what, N)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// One byte that is 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => {
                Err(CodecError::OutOfRange { what, found: other.to_string(), expected: "0 or 1" })
            }
        }
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A VLSN as an i64 between 0 and [`MAX_VLSN`].
    pub fn vlsn(&mut self, what: &'static str) -> Result<Vlsn, CodecError> {
        let raw = i64::from_le_bytes(self.array(what)?);
        if !(0..=MAX_VLSN.sequence()).contains(&raw) {
            return Err(CodecError::OutOfRange {
                what,
                found: raw.to_string(),
                expected: "a VLSN from 0 to 2^62",
            });
        }
        Ok(Vlsn::new(raw))
    }

    /// A group identity.
    pub fn group_id(&mut self, what: &'static str) -> Result<GroupId, CodecError> {
        Ok(GroupId::from_bytes(self.array(what)?))
    }

    /// Bytes behind a u16 length, at most `max` of them.
    pub fn short_bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], CodecError> {
        let len = usize::from(self.u16(what)?);
        if len > max {
            return Err(CodecError::OutOfRange {
                what,
                found: format!("{len} bytes"),
                expected: "a shorter field",
            });
        }
        self.bytes(what, len)
    }

    /// UTF-8 text behind a u16 length, at most `max` bytes.
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.short_bytes(what, max)?).map_err(|bad| CodecError::OutOfRange {
            what,
            found: format!("invalid UTF-8 at byte {}", bad.valid_up_to()),
            expected: "UTF-8 text",
        })
    }

    /// A [`Name`] behind a u16 length.
    pub fn name(&mut self, what: &'static str) -> Result<Name, CodecError> {
        Ok(self.text(what, crate::MAX_NAME_BYTES)?.parse()?)
    }

    /// Checks that nothing is left.
    pub fn finish(self, what: &'static str) -> Result<(), CodecError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CodecError::Trailing { what, extra: self.rest.len() })
        }
    }
}

/// Appends fields, the mirror of [`Reader`].
pub trait Put {
    /// Appends raw bytes.
    fn put_bytes(&mut self, bytes: &[u8]);

    /// Appends one byte.
    fn put_u8(&mut self, value: u8) {
        self.put_bytes(&[value]);
    }

    /// Appends 0 or 1.
    fn put_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// Appends two bytes.
    fn put_u16(&mut self, value: u16) {
        self.put_bytes(&value.to_le_bytes());
    }

    /// Appends four bytes.
    fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_le_bytes());
    }

    /// Appends eight bytes.
    fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_le_bytes());
    }

    /// Appends a VLSN as an i64.
    fn put_vlsn(&mut self, value: Vlsn) {
        self.put_bytes(&value.sequence().to_le_bytes());
    }

    /// Appends bytes behind a u16 length.
    ///
    /// # Panics
    /// If there are more than 65,535 of them.
    fn put_short_bytes(&mut self, bytes: &[u8]) {
        let len = u16::try_from(bytes.len()).expect("a short field is at most 65,535 bytes");
        self.put_u16(len);
        self.put_bytes(bytes);
    }

    /// Appends text behind a u16 length, with [`Put::put_short_bytes`]'s panic.
    fn put_text(&mut self, text: &str) {
        self.put_short_bytes(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Little-endian u32 at `at`.
///
/// # Panics
/// If `bytes` is shorter than `at + 4`; callers index fixed headers whose length they checked.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    LittleEndian::read_u32(&bytes[at..at + 4])
}

/// Little-endian u64 at `at`; panics as [`u32_at`].
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    LittleEndian::read_u64(&bytes[at..at + 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_back() {
        let mut out = Vec::new();
        out.put_u8(1);
        out.put_bool(true);
        out.put_u16(2);
        out.put_u32(3);
        out.put_u64(4);
        out.put_vlsn(Vlsn::new(5));
        out.put_text("six");
        let mut r = Reader::new(&out);
        assert_eq!(r.u8("a").unwrap(), 1);
        assert!(r.bool("b").unwrap());
        assert_eq!(r.u16("c").unwrap(), 2);
        assert_eq!(r.u32("d").unwrap(), 3);
        assert_eq!(r.u64("e").unwrap(), 4);
        assert_eq!(r.vlsn("f").unwrap(), Vlsn::new(5));
        assert_eq!(r.text("g", 3).unwrap(), "six");
        r.finish("all").unwrap();
    }

    #[test]
    fn every_short_input_is_an_error_that_names_the_field() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(
            r.u32("count"),
            Err(CodecError::Truncated { what: "count", needed: 4, left: 3 })
        );
        let mut r = Reader::new(&[9, 0, b'x']);
        assert_eq!(
            r.text("name", 20),
            Err(CodecError::Truncated { what: "name", needed: 9, left: 1 })
        );
        let mut r = Reader::new(&[0xff; 8]);
        assert!(matches!(r.vlsn("v"), Err(CodecError::OutOfRange { what: "v", .. })));
        let r = Reader::new(&[0]);
        assert_eq!(r.finish("m"), Err(CodecError::Trailing { what: "m", extra: 1 }));
    }
}
