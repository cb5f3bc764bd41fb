//! Value, Key: bytes of values and keys, as the table holds them.

use std::fmt;
use std::ops::Deref;

use lsm_tree::Slice;

/// Immutable bytes, cheap to clone. Short ones (up to 20 bytes) live inside the handle.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Slice);

impl Value {
    pub(crate) fn into_slice(self) -> Slice {
        self.0
    }
}

impl From<Slice> for Value {
    fn from(slice: Slice) -> Self {
        Self(slice)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self(Slice::from(bytes))
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Slice::from(bytes))
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Value {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<[u8]> for Value {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl PartialEq<&[u8]> for Value {
    fn eq(&self, other: &&[u8]) -> bool {
        **self == **other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Value {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&shown(self), f)
    }
}

/// A key as the store's callers know it: the table's key without the byte that names the keyspace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Value);

/// First byte of the table's keys that belong to the default keyspace.
pub(crate) const DEFAULT_KEYSPACE: u8 = 1;

impl Key {
    /// The caller's view of a key of the table.
    pub(crate) fn of_table_key(table_key: Value) -> Self {
        debug_assert_eq!(table_key.first(), Some(&DEFAULT_KEYSPACE), "a key of the keyspace");
        Self(table_key)
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Key {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&shown(self), f)
    }
}

/// The table's key for a key of the default keyspace.
pub(crate) fn table_key(key: &[u8]) -> Value {
    // Most keys fit on the stack; the handle copies them once more into itself or the heap.
    const STACK_BYTES: usize = 64;
    if let Some(room) = STACK_BYTES.checked_sub(key.len() + 1) {
        let mut buf = [0u8; STACK_BYTES];
        buf[0] = DEFAULT_KEYSPACE;
        buf[1..=key.len()].copy_from_slice(key);
        return Value::from(&buf[..STACK_BYTES - room]);
    }
    let mut buf = Vec::with_capacity(key.len() + 1);
    buf.push(DEFAULT_KEYSPACE);
    buf.extend_from_slice(key);
    Value::from(buf)
}

/// Bytes as text for messages: ASCII as it is, the rest escaped, cut after 48 bytes.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 48;
    let (head, more) = match bytes.get(..SHOWN_BYTES) {
        Some(head) if bytes.len() > SHOWN_BYTES => (head, format!(".. ({} bytes)", bytes.len())),
        _ => (bytes, String::new()),
    };
    format!("\"{}\"{more}", head.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_shows_its_bytes_escaped_and_cut() {
        assert_eq!(format!("{:?}", Value::from(&b"a\0\"b"[..])), r#""a\x00\"b""#);
        let long = Value::from(vec![b'x'; 60]);
        assert_eq!(format!("{long:?}"), format!("\"{}\".. (60 bytes)", "x".repeat(48)));
    }
}
