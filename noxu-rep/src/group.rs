//! Group: the bodies of the entries that the replication engine itself writes.
//!
//! ```text
//! Term   wall clock ms u64, term u32, name of the master (u16 length)
//! Group  version u8, member count u16, names (u16 length each)
//! ```

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Name, Term};

/// Who belongs to the group, as a Group entry says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupConfig {
    /// The voters.
    pub members: Vec<Name>,
}

/// Most members of a group.
pub const MAX_MEMBERS: usize = 31;

const GROUP_VERSION: u8 = 1;

impl GroupConfig {
    /// As a Group entry's body and in the control file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(GROUP_VERSION);
        out.put_u16(self.members.len() as u16);
        for member in &self.members {
            out.put_text(member.as_str());
        }
        out
    }

    /// From a Group entry's body.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("group version")?;
        if version != GROUP_VERSION {
            return Err(CodecError::OutOfRange {
                what: "group version",
                found: version.to_string(),
                expected: "1",
            });
        }
        let count = usize::from(r.u16("member count")?);
        if count > MAX_MEMBERS {
            return Err(CodecError::OutOfRange {
                what: "member count",
                found: count.to_string(),
                expected: "at most 31",
            });
        }
        let members = (0..count).map(|_| r.name("member")).collect::<Result<_, _>>()?;
        r.finish("group configuration")?;
        Ok(Self { members })
    }
}

/// The body of a Term entry.
pub(crate) fn term_body(wall_clock_ms: u64, term: Term, master: &Name) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(wall_clock_ms);
    out.put_u32(term.number());
    out.put_text(master.as_str());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_back_and_damage_is_an_error() {
        let members = ["n1", "n2", "n3"].map(|n| n.parse().unwrap()).to_vec();
        let config = GroupConfig { members };
        let bytes = config.encode();
        assert_eq!(bytes, b"\x01\x03\x00\x02\x00n1\x02\x00n2\x02\x00n3");
        assert_eq!(GroupConfig::decode(&bytes), Ok(config));
        for len in 0..bytes.len() {
            assert!(GroupConfig::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(GroupConfig::decode(&[1, 0xff, 0xff]).is_err());
        assert!(GroupConfig::decode(&[2, 0, 0]).is_err());
    }
}
