//! Group: the bodies of the entries that the replication engine itself writes.
//!
//! ```text
//! Term   wall clock ms u64, term u32, name of the master (u16 length)
//! Group  version u8 = 2, q_rep u8, q_elect u8, voter count u16,
//!        per voter: name (u16 length), incarnation u64, kind u8, address (u16 length)
//! ```
//!
//! A Group entry is an [`Electorate`]: it binds each voter to one directory. Its version 1, a list of
//! names, was never released.

use noxu_log::MAX_GROUP_CONFIG_BYTES;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Incarnation, Name, Term};

use crate::core::quorums::{BadQuorums, Quorums};

/// Most members of a group.
pub const MAX_MEMBERS: usize = 31;

const ELECTORATE_VERSION: u8 = 2;
const MAX_ADDRESS_BYTES: usize = 300;

/// Who votes in a group, and how many of them it takes.
///
/// A voter is a name *and* an incarnation: a directory that was wiped keeps its name and has
/// forgotten its votes, so it is no voter any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Electorate {
    /// The voters, in the order in which the founder listed them.
    pub voters: Vec<Voter>,
    /// Copies that make an entry durable; 0 for a majority.
    pub q_rep: u8,
    /// Votes that elect a master; 0 for a majority.
    pub q_elect: u8,
}

/// One voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// Its name.
    pub name: Name,
    /// Number of its directory.
    pub incarnation: Incarnation,
    /// What it is for.
    pub kind: VoterKind,
    /// Address it can be reached at; at most 300 bytes.
    pub address: String,
}

/// What a voter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoterKind {
    /// Has data and may become master.
    Data = 0,
    /// Has a vote and no data.
    Arbiter = 1,
}

/// Why no group can be founded with an [`Electorate`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadElectorate {
    /// More voters than a group has.
    #[error("{found} voters; a group has at most {MAX_MEMBERS}")]
    TooManyVoters {
        /// Voters listed.
        found: usize,
    },
    /// A name stands twice in the list.
    #[error("voter {name} is listed twice")]
    ListedTwice {
        /// The name.
        name: Name,
    },
    /// An address is longer than the format allows.
    #[error(
        "the address of voter {name} has {bytes} bytes; at most {MAX_ADDRESS_BYTES} are allowed"
    )]
    AddressTooLong {
        /// The voter.
        name: Name,
        /// Length of its address, in bytes.
        bytes: usize,
    },
    /// The whole is longer than control files and anchors have room for.
    #[error(
        "the configuration takes {bytes} bytes, and there is room for {MAX_GROUP_CONFIG_BYTES}: use \
         fewer voters, or shorter names and addresses"
    )]
    TooLong {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// Its quorums would let the group lose what it promised.
    #[error(transparent)]
    Quorums(#[from] BadQuorums),
}

impl Electorate {
    /// Whether a group can be founded with it. Whatever is written or sent has passed this.
    pub fn check(&self) -> Result<Quorums, BadElectorate> {
        if self.voters.len() > MAX_MEMBERS {
            return Err(BadElectorate::TooManyVoters { found: self.voters.len() });
        }
        for (at, voter) in self.voters.iter().enumerate() {
            let name = &voter.name;
            if self.voters[..at].iter().any(|other| other.name == *name) {
                return Err(BadElectorate::ListedTwice { name: name.clone() });
            }
            let bytes = voter.address.len();
            if bytes > MAX_ADDRESS_BYTES {
                return Err(BadElectorate::AddressTooLong { name: name.clone(), bytes });
            }
        }
        let quorums = self.quorums()?;
        let bytes = self.encode().len();
        if bytes > MAX_GROUP_CONFIG_BYTES {
            return Err(BadElectorate::TooLong { bytes });
        }
        Ok(quorums)
    }

    /// Its quorums, if they are lawful.
    pub fn quorums(&self) -> Result<Quorums, BadQuorums> {
        quorums_of(self.voters.len(), self.q_rep, self.q_elect)
    }

    /// The voter of this name.
    pub fn voter(&self, name: &Name) -> Option<&Voter> {
        self.voters.iter().find(|voter| voter.name == *name)
    }

    /// Whether this name, in this directory, votes.
    pub fn is_voter(&self, name: &Name, incarnation: Incarnation) -> bool {
        self.voter(name).is_some_and(|voter| voter.incarnation == incarnation)
    }

    /// Whether this name, in this directory, may become master.
    pub fn is_electable(&self, name: &Name, incarnation: Incarnation) -> bool {
        self.voter(name).is_some_and(|voter| {
            voter.incarnation == incarnation
                && match voter.kind {
                    VoterKind::Data => true,
                    VoterKind::Arbiter => false,
                }
        })
    }

    /// As a Group entry's body and in the control file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u8(ELECTORATE_VERSION);
        out.put_u8(self.q_rep);
        out.put_u8(self.q_elect);
        out.put_u16(self.voters.len() as u16);
        for voter in &self.voters {
            out.put_text(voter.name.as_str());
            out.put_u64(voter.incarnation.as_u64());
            out.put_u8(voter.kind as u8);
            out.put_text(&voter.address);
        }
        out
    }

    /// From a Group entry's body. Refuses what no group can be founded with
    /// ([`Electorate::check`]).
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let wrong =
            |what, found: String, expected| Err(CodecError::OutOfRange { what, found, expected });
        let mut r = Reader::new(bytes);
        let version = r.u8("group version")?;
        if version != ELECTORATE_VERSION {
            return wrong("group version", version.to_string(), "2");
        }
        let q_rep = r.u8("q_rep")?;
        let q_elect = r.u8("q_elect")?;
        let count = usize::from(r.u16("voter count")?);
        if count > MAX_MEMBERS {
            return wrong("voter count", count.to_string(), "at most 31");
        }
        let mut voters: Vec<Voter> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = r.name("voter")?;
            let incarnation = Incarnation::from_u64(r.u64("voter incarnation")?);
            let kind = match r.u8("voter kind")? {
                0 => VoterKind::Data,
                1 => VoterKind::Arbiter,
                other => return wrong("voter kind", other.to_string(), "0 or 1"),
            };
            let address = r.text("voter address", MAX_ADDRESS_BYTES)?.to_owned();
            voters.push(Voter { name, incarnation, kind, address });
        }
        r.finish("group configuration")?;
        let electorate = Self { voters, q_rep, q_elect };
        match electorate.check() {
            Ok(_) => Ok(electorate),
            Err(bad) => {
                wrong("electorate", bad.to_string(), "one that a group can be founded with")
            }
        }
    }
}

/// The quorums of `n` voters; 0 asks for a majority.
///
/// # Errors
/// What is wrong with the sizes.
pub fn quorums_of(n: usize, q_rep: u8, q_elect: u8) -> Result<Quorums, BadQuorums> {
    let size = |asked: u8| if asked == 0 { n / 2 + 1 } else { usize::from(asked) };
    Quorums::check(n, size(q_rep), size(q_elect))
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

    fn electorate(names: &[&str]) -> Electorate {
        let voter = |(at, name): (usize, &&str)| Voter {
            name: name.parse().unwrap(),
            incarnation: Incarnation::from_u64(at as u64 + 1),
            kind: VoterKind::Data,
            address: format!("h:{at}"),
        };
        Electorate { voters: names.iter().enumerate().map(voter).collect(), q_rep: 0, q_elect: 0 }
    }

    #[test]
    fn an_electorate_is_read_back_and_damage_is_an_error() {
        let mut config = electorate(&["n1", "n2"]);
        config.q_rep = 1;
        config.q_elect = 2;
        config.voters[1].kind = VoterKind::Arbiter;
        let bytes = config.encode();
        let golden = b"\x02\x01\x02\x02\x00\
            \x02\x00n1\x01\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00h:0\
            \x02\x00n2\x02\x00\x00\x00\x00\x00\x00\x00\x01\x03\x00h:1";
        assert_eq!(bytes, golden);
        assert_eq!(Electorate::decode(&bytes), Ok(config));
        for len in 0..bytes.len() {
            assert!(Electorate::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Electorate::decode(&[bytes.as_slice(), b"x"].concat()).is_err());
    }

    #[test]
    fn an_electorate_that_nobody_can_found_is_not_read() {
        for bad in [
            electorate(&[]),
            electorate(&["n1", "n1"]),
            Electorate { q_rep: 1, ..electorate(&["n1", "n2", "n3"]) },
            Electorate { q_elect: 1, ..electorate(&["n1", "n2", "n3"]) },
            Electorate { q_rep: 4, ..electorate(&["n1", "n2", "n3"]) },
        ] {
            assert!(Electorate::decode(&bad.encode()).is_err(), "{bad:?}");
        }
        assert!(Electorate::decode(b"\x01\x00\x00").is_err(), "a list of names");
    }

    #[test]
    fn every_reason_that_an_electorate_is_refused_for_names_what_is_wrong() {
        let many: Vec<String> = (0..32).map(|at| format!("n{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let found = electorate(&many).check();
        assert_eq!(found, Err(BadElectorate::TooManyVoters { found: 32 }));
        let name: Name = "n1".parse().unwrap();
        let found = electorate(&["n1", "n2", "n1"]).check();
        assert_eq!(found, Err(BadElectorate::ListedTwice { name: name.clone() }));
        let mut long = electorate(&["n1"]);
        long.voters[0].address = "h".repeat(301);
        assert_eq!(long.check(), Err(BadElectorate::AddressTooLong { name, bytes: 301 }));
        let bad = BadQuorums::DoNotMeet { rep: 1, elect: 2, n: 3 };
        let found = Electorate { q_rep: 1, ..electorate(&["n1", "n2", "n3"]) }.check();
        assert_eq!(found, Err(BadElectorate::Quorums(bad)));
    }

    #[test]
    fn an_electorate_fits_into_a_control_file_to_the_byte() {
        let mut config = electorate(&["n1", "n2", "n3", "n4", "n5", "n6"]);
        let left = MAX_GROUP_CONFIG_BYTES - config.encode().len();
        for voter in &mut config.voters {
            voter.address.push_str(&"h".repeat(left / 6));
        }
        config.voters[0].address.push_str(&"h".repeat(left % 6));
        assert_eq!(config.encode().len(), MAX_GROUP_CONFIG_BYTES);
        assert_eq!(config.check(), Ok(Quorums::majorities(6)));
        assert_eq!(Electorate::decode(&config.encode()), Ok(config.clone()));
        config.voters[1].address.push('h');
        let bytes = MAX_GROUP_CONFIG_BYTES + 1;
        assert_eq!(config.check(), Err(BadElectorate::TooLong { bytes }));
        assert!(Electorate::decode(&config.encode()).is_err());
    }

    #[test]
    fn a_voter_is_a_name_in_one_directory() {
        let mut config = electorate(&["n1", "n2"]);
        config.voters[1].kind = VoterKind::Arbiter;
        let name = |text: &str| text.parse::<Name>().unwrap();
        let here = Incarnation::from_u64;
        assert!(config.is_voter(&name("n1"), here(1)));
        assert!(config.is_electable(&name("n1"), here(1)));
        assert!(!config.is_voter(&name("n1"), here(2)));
        assert!(!config.is_electable(&name("n1"), here(2)));
        assert!(config.is_voter(&name("n2"), here(2)));
        assert!(!config.is_electable(&name("n2"), here(2)));
        assert!(!config.is_voter(&name("n3"), here(3)));
    }
}
