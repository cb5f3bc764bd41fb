//! Identity: names and numbers of groups and nodes.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Identity of a group: made once by the node that founds it, adopted by all who join.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupId([u8; 16]);

impl GroupId {
    /// A new random identity.
    pub fn random() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }

    /// From the form that goes on disk and on the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The form that goes on disk and on the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({self})")
    }
}

/// Random number of a node directory, new when the directory is created or wiped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(u64);

impl Incarnation {
    /// A new random incarnation.
    pub fn random() -> Self {
        Self(Uuid::new_v4().as_u64_pair().0)
    }

    /// From the form that goes on disk and on the wire.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The form that goes on disk and on the wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

/// Name of a node or a group: 1 to 63 bytes of ASCII letters, digits, `.`, `_` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Longest [`Name`], in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// A text that is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a name: expected 1 to {MAX_NAME_BYTES} ASCII letters, digits, '.', '_' or '-'"
)]
pub struct BadName {
    /// The text.
    pub found: String,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let lawful = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_NAME_BYTES || !text.bytes().all(lawful) {
            return Err(BadName { found: text.to_owned() });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("n1".parse::<Name>().unwrap().as_str(), "n1");
        for bad in ["", "a b", "ä", "x/y", &"n".repeat(MAX_NAME_BYTES + 1)] {
            assert_eq!(bad.parse::<Name>(), Err(BadName { found: bad.to_owned() }));
        }
    }
}
