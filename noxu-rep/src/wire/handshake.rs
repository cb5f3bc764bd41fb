//! Handshake: who a replica and a feeder are, and whether they belong together.
//!
//! The replica speaks first: [`Hello`]; the feeder answers [`Welcome`] or [`RejectReason`]. The
//! layout of the three never changes; later versions add fields at the end, in an extension that
//! earlier ones skip. What else a connection says follows the version the two agree on.

use std::time::Duration;

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{GroupId, Incarnation, Name, Term};

use crate::error::{RepError, Result};
use crate::net::channel::Channel;

/// Protocol versions that a node speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// Oldest version spoken.
    pub lowest: u16,
    /// Newest version spoken.
    pub highest: u16,
}

impl VersionRange {
    /// What this build speaks. Version 1 knew neither epochs on streams nor elections, version 2 no
    /// verdicts; nothing that spoke these was ever released.
    pub const SPOKEN: Self = Self { lowest: 3, highest: 3 };

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.highest.min(other.highest);
        (newest >= self.lowest.max(other.lowest)).then_some(newest)
    }

    /// Whether the version is in the range.
    pub const fn contains(self, version: u16) -> bool {
        self.lowest <= version && version <= self.highest
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.lowest == self.highest {
            write!(f, "{}", self.lowest)
        } else {
            write!(f, "{} to {}", self.lowest, self.highest)
        }
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Has data and a vote.
    Electable = 0,
    /// Has data, no vote.
    Secondary = 1,
    /// Has a vote, no data.
    Arbiter = 2,
    /// Watches.
    Monitor = 3,
}

/// Abilities beyond the agreed version, as bits; unknown ones are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Understands `Probe` and `ProbeResult` in a syncup.
    pub const SYNCUP_PROBES: Self = Self(1);
    /// Everything this build can.
    pub const OURS: Self = Self::SYNCUP_PROBES;

    /// What both can.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is in here.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A replica's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Versions it speaks.
    pub versions: VersionRange,
    /// Its group; `None` for a fresh node, which adopts the feeder's.
    pub group: Option<GroupId>,
    /// The name of the group it belongs to or wants to join; `None` for any.
    pub group_name: Option<Name>,
    /// Its name.
    pub node: Name,
    /// Address it can be reached at; empty if it cannot.
    pub address: String,
    /// Number of its directory.
    pub incarnation: Incarnation,
    /// What it is for.
    pub kind: NodeKind,
    /// Version of the log format it reads and writes.
    pub log_format: u16,
    /// Segment size of its log; `None` for a fresh node, which adopts the feeder's.
    pub segment_bytes: Option<u32>,
    /// The newest term it knows.
    pub term: Term,
    /// What it can beyond the version.
    pub capabilities: Capabilities,
    /// Its clock, milliseconds since 1970.
    pub wall_clock_ms: u64,
    /// Its epoch of the group; 0 if it says nothing of it.
    pub epoch: u32,
    /// Its priority; 0 if it says nothing of it.
    pub priority: u8,
    /// Whether its disk is full.
    pub full: bool,
    /// Whether entries may be missing at the end of its log.
    pub uncertain: bool,
}

/// A feeder's consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version both will speak.
    pub version: u16,
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub group_name: Name,
    /// Segment size of the group's log.
    pub segment_bytes: u32,
    /// Version of the log format.
    pub log_format: u16,
    /// The feeder's name.
    pub node: Name,
    /// Number of the feeder's directory.
    pub incarnation: Incarnation,
    /// The feeder's term.
    pub term: Term,
    /// What both can beyond the version.
    pub capabilities: Capabilities,
    /// How far the replica's clock is ahead of the feeder's, in milliseconds, when that is more
    /// than it should be. A warning: nothing safe depends on clocks.
    pub clock_skew_ms: Option<i64>,
    /// The feeder's epoch of the group; 0 if it says nothing of it.
    pub epoch: u32,
    /// Whether it is the established master of its term. One that says nothing of it is.
    pub established: bool,
}

/// Why a feeder turns a replica away, or a replica its feeder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejectReason {
    /// No protocol version in common.
    #[error("no common protocol version: {ours} here, {theirs} there")]
    Version {
        /// Spoken by the one who rejects.
        ours: VersionRange,
        /// Spoken by the one rejected.
        theirs: VersionRange,
    },
    /// Another group, by name.
    #[error("this is group {ours}, not group {theirs}")]
    WrongGroupName {
        /// Group of the one who rejects.
        ours: Name,
        /// Group of the one rejected.
        theirs: Name,
    },
    /// Another group of the same name: founded apart.
    #[error(
        "group {name} here has the identity {ours}, there {theirs}: two groups of one name were \
         founded, and this node's data belongs to the other"
    )]
    WrongGroup {
        /// The name.
        name: Name,
        /// Identity at the one who rejects.
        ours: GroupId,
        /// Identity at the one rejected.
        theirs: GroupId,
    },
    /// Another log format.
    #[error("log format {ours} here, {theirs} there")]
    LogFormat {
        /// Of the one who rejects.
        ours: u16,
        /// Of the one rejected.
        theirs: u16,
    },
    /// Another segment size, which is a constant of the group.
    #[error("segments of {ours} bytes here, of {theirs} there: the logs cannot be the same")]
    SegmentBytes {
        /// Of the one who rejects.
        ours: u32,
        /// Of the one rejected.
        theirs: u32,
    },
    /// Another node with this name is connected, or is the feeder itself.
    #[error("another node named {node} (incarnation {incarnation}) is in the group already")]
    DuplicateNode {
        /// The name.
        node: Name,
        /// Incarnation of the one that is there.
        incarnation: Incarnation,
    },
    /// The configuration of the group does not name this node.
    #[error("no member named {node}; the members are {}", names(.members))]
    UnknownMember {
        /// The name.
        node: Name,
        /// The members.
        members: Vec<Name>,
    },
    /// The node was removed from the group.
    #[error("node {node} was removed from the group")]
    Removed {
        /// The name.
        node: Name,
    },
    /// The node asked is not the master.
    #[error("not the master{}", hint(.master.as_deref()))]
    NotMaster {
        /// Address of the master, when known.
        master: Option<String>,
    },
    /// The one rejected knows a newer term: the other is a master no more.
    #[error("term {theirs} there is newer than term {ours} here")]
    OldTerm {
        /// Of the one with the older term.
        ours: Term,
        /// Of the other.
        theirs: Term,
    },
    /// The node has no log to feed from: fresh or restoring.
    #[error("node {node} has no log yet")]
    NotReady {
        /// The name.
        node: Name,
    },
    /// Another epoch of the group: somebody forced a quorum, and one of the two was not there.
    #[error("epoch {ours} of the group here, epoch {theirs} there")]
    WrongEpoch {
        /// Of the one who rejects.
        ours: u32,
        /// Of the one rejected.
        theirs: u32,
    },
    /// The group's configuration binds the name to another directory.
    #[error(
        "voter {node} is the directory of incarnation {bound}; incarnation {theirs} was wiped, copied \
         or reformatted and has no vote"
    )]
    NotBound {
        /// The name.
        node: Name,
        /// Incarnation of the voter.
        bound: Incarnation,
        /// Incarnation of the one rejected.
        theirs: Incarnation,
    },
    /// The node was elected and does not feed yet: its term has not begun in its log.
    #[error("node {node} was elected and mends its log; it feeds when its term has begun")]
    NotEstablished {
        /// The name.
        node: Name,
    },
    /// A reason of a later version, in its own words.
    #[error("{message}")]
    Other {
        /// Its code.
        code: u8,
        /// Its message.
        message: String,
    },
}

fn names(members: &[Name]) -> String {
    members.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn hint(master: Option<&str>) -> String {
    master.map_or_else(|| "; the master is not known".to_owned(), |at| format!("; it is at {at}"))
}

/// One message of a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandshakeMsg {
    /// Replica to feeder, first.
    Hello(Hello),
    /// Feeder to replica: accepted.
    Welcome(Welcome),
    /// Feeder to replica: rejected.
    Rejected(RejectReason),
}

const MAGIC: [u8; 4] = *b"NXHS";
const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REJECTED: u8 = 3;

const FULL: u8 = 1;
const UNCERTAIN: u8 = 2;
const ESTABLISHED: u8 = 1;

pub(super) const MAX_ADDRESS_BYTES: usize = 300;
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_MEMBERS: usize = 64;
const MAX_EXTENSION_BYTES: usize = u16::MAX as usize;

impl HandshakeMsg {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Rejected(_) => "Rejected",
        }
    }

    /// The bytes of one frame. Texts longer than the format allows are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut extension = Vec::new();
        out.put_bytes(&MAGIC);
        match self {
            Self::Hello(hello) => {
                out.put_u8(HELLO);
                out.put_u16(hello.versions.lowest);
                out.put_u16(hello.versions.highest);
                out.put_bool(hello.group.is_some());
                out.put_bytes(hello.group.unwrap_or_default().as_bytes());
                out.put_text(hello.group_name.as_ref().map_or("", Name::as_str));
                out.put_text(hello.node.as_str());
                out.put_text(cut(&hello.address, MAX_ADDRESS_BYTES));
                out.put_u64(hello.incarnation.as_u64());
                out.put_u8(hello.kind as u8);
                out.put_u16(hello.log_format);
                out.put_u32(hello.segment_bytes.unwrap_or(0));
                out.put_u32(hello.term.number());
                out.put_u64(hello.capabilities.0);
                out.put_u64(hello.wall_clock_ms);
                extension.put_u32(hello.epoch);
                extension.put_u8(hello.priority);
                let full = if hello.full { FULL } else { 0 };
                extension.put_u8(full | if hello.uncertain { UNCERTAIN } else { 0 });
            }
            Self::Welcome(welcome) => {
                out.put_u8(WELCOME);
                out.put_u16(welcome.version);
                out.put_bytes(welcome.group.as_bytes());
                out.put_text(welcome.group_name.as_str());
                out.put_u32(welcome.segment_bytes);
                out.put_u16(welcome.log_format);
                out.put_text(welcome.node.as_str());
                out.put_u64(welcome.incarnation.as_u64());
                out.put_u32(welcome.term.number());
                out.put_u64(welcome.capabilities.0);
                out.put_bool(welcome.clock_skew_ms.is_some());
                out.put_u64(welcome.clock_skew_ms.unwrap_or(0).cast_unsigned());
                extension.put_u32(welcome.epoch);
                extension.put_u8(if welcome.established { ESTABLISHED } else { 0 });
            }
            Self::Rejected(reason) => {
                out.put_u8(REJECTED);
                put_reason(&mut out, reason);
            }
        }
        out.put_short_bytes(&extension);
        out
    }

    /// The message in one frame.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(frame);
        let magic: [u8; 4] = reader.array("handshake magic")?;
        if magic != MAGIC {
            let found = format!("{:?}", magic.escape_ascii().to_string());
            return Err(CodecError::OutOfRange {
                what: "handshake magic",
                found,
                expected: "\"NXHS\"",
            });
        }
        let mut message = match reader.u8("handshake message")? {
            HELLO => Self::Hello(decode_hello(&mut reader)?),
            WELCOME => Self::Welcome(decode_welcome(&mut reader)?),
            REJECTED => Self::Rejected(decode_reason(&mut reader)?),
            other => {
                return Err(CodecError::OutOfRange {
                    what: "handshake message",
                    found: other.to_string(),
                    expected: "1 to 3",
                });
            }
        };
        let extension = reader.short_bytes("handshake extension", MAX_EXTENSION_BYTES)?;
        reader.finish("handshake")?;
        if !extension.is_empty() {
            message.decode_extension(&mut Reader::new(extension))?;
        }
        Ok(message)
    }

    /// Fields that version 1 did not have. What follows them is of a later version.
    fn decode_extension(&mut self, r: &mut Reader<'_>) -> Result<(), CodecError> {
        match self {
            Self::Hello(hello) => {
                hello.epoch = r.u32("Hello.epoch")?;
                hello.priority = r.u8("Hello.priority")?;
                let flags = r.u8("Hello.flags")?;
                hello.full = flags & FULL != 0;
                hello.uncertain = flags & UNCERTAIN != 0;
            }
            Self::Welcome(welcome) => {
                welcome.epoch = r.u32("Welcome.epoch")?;
                welcome.established = r.u8("Welcome.flags")? & ESTABLISHED != 0;
            }
            Self::Rejected(_) => {}
        }
        Ok(())
    }
}

fn decode_hello(reader: &mut Reader<'_>) -> Result<Hello, CodecError> {
    let versions = versions(reader)?;
    let has_group = reader.bool("Hello.group")?;
    let group = reader.group_id("Hello.group")?;
    Ok(Hello {
        versions,
        group: has_group.then_some(group),
        group_name: optional_name(reader, "Hello.group name")?,
        node: reader.name("Hello.node")?,
        address: reader.text("Hello.address", MAX_ADDRESS_BYTES)?.to_owned(),
        incarnation: Incarnation::from_u64(reader.u64("Hello.incarnation")?),
        kind: node_kind(reader)?,
        log_format: reader.u16("Hello.log format")?,
        segment_bytes: Some(reader.u32("Hello.segment size")?).filter(|bytes| *bytes > 0),
        term: Term::new(reader.u32("Hello.term")?),
        capabilities: Capabilities(reader.u64("Hello.capabilities")?),
        wall_clock_ms: reader.u64("Hello.clock")?,
        epoch: 0,
        priority: 0,
        full: false,
        uncertain: false,
    })
}

pub(super) fn node_kind(reader: &mut Reader<'_>) -> Result<NodeKind, CodecError> {
    match reader.u8("kind of node")? {
        0 => Ok(NodeKind::Electable),
        1 => Ok(NodeKind::Secondary),
        2 => Ok(NodeKind::Arbiter),
        3 => Ok(NodeKind::Monitor),
        other => Err(CodecError::OutOfRange {
            what: "kind of node",
            found: other.to_string(),
            expected: "0 to 3",
        }),
    }
}

fn decode_welcome(reader: &mut Reader<'_>) -> Result<Welcome, CodecError> {
    Ok(Welcome {
        version: reader.u16("Welcome.version")?,
        group: reader.group_id("Welcome.group")?,
        group_name: reader.name("Welcome.group name")?,
        segment_bytes: reader.u32("Welcome.segment size")?,
        log_format: reader.u16("Welcome.log format")?,
        node: reader.name("Welcome.node")?,
        incarnation: Incarnation::from_u64(reader.u64("Welcome.incarnation")?),
        term: Term::new(reader.u32("Welcome.term")?),
        capabilities: Capabilities(reader.u64("Welcome.capabilities")?),
        clock_skew_ms: {
            let warned = reader.bool("Welcome.clock skew")?;
            let skew = reader.u64("Welcome.clock skew")?.cast_signed();
            warned.then_some(skew)
        },
        epoch: 0,
        established: true,
    })
}

/// Code, fields behind a length, message behind a length: a later version's reason can be told in
/// its own words by one that does not know the code.
pub(super) fn put_reason(out: &mut Vec<u8>, reason: &RejectReason) {
    let mut fields = Vec::new();
    let code = match reason {
        RejectReason::Version { ours, theirs } => {
            for range in [ours, theirs] {
                fields.put_u16(range.lowest);
                fields.put_u16(range.highest);
            }
            1
        }
        RejectReason::WrongGroupName { ours, theirs } => {
            fields.put_text(ours.as_str());
            fields.put_text(theirs.as_str());
            2
        }
        RejectReason::WrongGroup { name, ours, theirs } => {
            fields.put_text(name.as_str());
            fields.put_bytes(ours.as_bytes());
            fields.put_bytes(theirs.as_bytes());
            3
        }
        RejectReason::LogFormat { ours, theirs } => {
            fields.put_u16(*ours);
            fields.put_u16(*theirs);
            4
        }
        RejectReason::SegmentBytes { ours, theirs } => {
            fields.put_u32(*ours);
            fields.put_u32(*theirs);
            5
        }
        RejectReason::DuplicateNode { node, incarnation } => {
            fields.put_text(node.as_str());
            fields.put_u64(incarnation.as_u64());
            6
        }
        RejectReason::UnknownMember { node, members } => {
            fields.put_text(node.as_str());
            let members = &members[..members.len().min(MAX_MEMBERS)];
            fields.put_u16(members.len() as u16);
            for member in members {
                fields.put_text(member.as_str());
            }
            7
        }
        RejectReason::Removed { node } => {
            fields.put_text(node.as_str());
            8
        }
        RejectReason::NotMaster { master } => {
            fields.put_text(cut(master.as_deref().unwrap_or(""), MAX_ADDRESS_BYTES));
            9
        }
        RejectReason::OldTerm { ours, theirs } => {
            fields.put_u32(ours.number());
            fields.put_u32(theirs.number());
            10
        }
        RejectReason::NotReady { node } => {
            fields.put_text(node.as_str());
            11
        }
        RejectReason::WrongEpoch { ours, theirs } => {
            fields.put_u32(*ours);
            fields.put_u32(*theirs);
            12
        }
        RejectReason::NotBound { node, bound, theirs } => {
            fields.put_text(node.as_str());
            fields.put_u64(bound.as_u64());
            fields.put_u64(theirs.as_u64());
            13
        }
        RejectReason::NotEstablished { node } => {
            fields.put_text(node.as_str());
            14
        }
        RejectReason::Other { code, .. } => *code,
    };
    out.put_u8(code);
    out.put_short_bytes(&fields);
    out.put_text(cut(&reason.to_string(), MAX_MESSAGE_BYTES));
}

pub(super) fn decode_reason(reader: &mut Reader<'_>) -> Result<RejectReason, CodecError> {
    let code = reader.u8("Rejected.code")?;
    let mut fields = Reader::new(reader.short_bytes("Rejected.fields", u16::MAX as usize)?);
    let message = reader.text("Rejected.message", MAX_MESSAGE_BYTES)?;
    let f = &mut fields;
    let reason = match code {
        1 => RejectReason::Version { ours: versions(f)?, theirs: versions(f)? },
        2 => RejectReason::WrongGroupName {
            ours: f.name("group name")?,
            theirs: f.name("group name")?,
        },
        3 => RejectReason::WrongGroup {
            name: f.name("group name")?,
            ours: f.group_id("group")?,
            theirs: f.group_id("group")?,
        },
        4 => RejectReason::LogFormat { ours: f.u16("log format")?, theirs: f.u16("log format")? },
        5 => RejectReason::SegmentBytes {
            ours: f.u32("segment size")?,
            theirs: f.u32("segment size")?,
        },
        6 => RejectReason::DuplicateNode {
            node: f.name("node")?,
            incarnation: Incarnation::from_u64(f.u64("incarnation")?),
        },
        7 => {
            let node = f.name("node")?;
            let count = usize::from(f.u16("members")?).min(MAX_MEMBERS);
            let members = (0..count).map(|_| f.name("member")).collect::<Result<_, _>>()?;
            RejectReason::UnknownMember { node, members }
        }
        8 => RejectReason::Removed { node: f.name("node")? },
        9 => {
            let master = f.text("master", MAX_ADDRESS_BYTES)?;
            RejectReason::NotMaster { master: Some(master.to_owned()).filter(|at| !at.is_empty()) }
        }
        10 => RejectReason::OldTerm {
            ours: Term::new(f.u32("term")?),
            theirs: Term::new(f.u32("term")?),
        },
        11 => RejectReason::NotReady { node: f.name("node")? },
        12 => RejectReason::WrongEpoch { ours: f.u32("epoch")?, theirs: f.u32("epoch")? },
        13 => RejectReason::NotBound {
            node: f.name("node")?,
            bound: Incarnation::from_u64(f.u64("incarnation")?),
            theirs: Incarnation::from_u64(f.u64("incarnation")?),
        },
        14 => RejectReason::NotEstablished { node: f.name("node")? },
        code => RejectReason::Other { code, message: message.to_owned() },
    };
    Ok(reason)
}

pub(super) fn versions(reader: &mut Reader<'_>) -> Result<VersionRange, CodecError> {
    Ok(VersionRange { lowest: reader.u16("lowest version")?, highest: reader.u16("version")? })
}

pub(super) fn optional_name(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<Option<Name>, CodecError> {
    let text = reader.text(what, noxu_util::MAX_NAME_BYTES)?;
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

/// The longest beginning of `text` within `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// A clock difference beyond which a replica is warned.
pub const CLOCK_SKEW_WARNING: Duration = Duration::from_secs(5);

/// What a feeder knows when it decides about a [`Hello`].
pub struct FeederSide<'a> {
    /// Versions it speaks.
    pub versions: VersionRange,
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub group_name: &'a Name,
    /// Segment size of the group's log.
    pub segment_bytes: u32,
    /// Version of the log format.
    pub log_format: u16,
    /// The feeder's name.
    pub node: &'a Name,
    /// Number of the feeder's directory.
    pub incarnation: Incarnation,
    /// The feeder's epoch of the group.
    pub epoch: u32,
    /// The feeder's term.
    pub term: Term,
    /// What it can beyond the version.
    pub capabilities: Capabilities,
    /// Its clock, milliseconds since 1970.
    pub wall_clock_ms: u64,
    /// The group's electable members; `None` lets anybody in.
    pub members: Option<&'a [Name]>,
    /// The incarnation that the group's configuration binds a name to, if it does.
    pub bound: &'a dyn Fn(&Name) -> Option<Incarnation>,
    /// The incarnation of the connected replica with this name, if there is one.
    pub connected: &'a dyn Fn(&Name) -> Option<Incarnation>,
    /// Whether it is the master.
    pub mastership: Mastership,
}

/// Whether a node feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mastership {
    /// It is master, and its term has begun in its log.
    Established,
    /// It was elected, and its term has not begun.
    Repairing,
    /// It is not the master.
    Elsewhere {
        /// Address of the master, when known.
        master: Option<String>,
    },
}

impl FeederSide<'_> {
    /// Accepts or rejects a replica. Pure: the same knowledge gives the same answer.
    pub fn check(&self, hello: &Hello) -> Result<Welcome, RejectReason> {
        let Some(version) = self.versions.common(hello.versions) else {
            return Err(RejectReason::Version { ours: self.versions, theirs: hello.versions });
        };
        if let Some(theirs) = &hello.group_name
            && theirs != self.group_name
        {
            return Err(RejectReason::WrongGroupName {
                ours: self.group_name.clone(),
                theirs: theirs.clone(),
            });
        }
        if let Some(theirs) = hello.group
            && theirs != self.group
        {
            let name = self.group_name.clone();
            return Err(RejectReason::WrongGroup { name, ours: self.group, theirs });
        }
        if hello.group.is_some() && hello.epoch != self.epoch {
            return Err(RejectReason::WrongEpoch { ours: self.epoch, theirs: hello.epoch });
        }
        if hello.log_format != self.log_format {
            return Err(RejectReason::LogFormat {
                ours: self.log_format,
                theirs: hello.log_format,
            });
        }
        if let Some(theirs) = hello.segment_bytes
            && theirs != self.segment_bytes
        {
            return Err(RejectReason::SegmentBytes { ours: self.segment_bytes, theirs });
        }
        let node = &hello.node;
        if node == self.node {
            return Err(RejectReason::DuplicateNode {
                node: node.clone(),
                incarnation: self.incarnation,
            });
        }
        if let Some(members) = self.members
            && hello.kind == NodeKind::Electable
            && !members.contains(node)
        {
            return Err(RejectReason::UnknownMember {
                node: node.clone(),
                members: members.to_vec(),
            });
        }
        if let Some(incarnation) = (self.connected)(node)
            && incarnation != hello.incarnation
        {
            return match (self.bound)(node) {
                // The voter itself takes its place back from whoever else has its name.
                Some(bound) if bound == hello.incarnation => self.welcome(version, hello),
                Some(bound) if bound == incarnation => {
                    let (node, theirs) = (node.clone(), hello.incarnation);
                    Err(RejectReason::NotBound { node, bound, theirs })
                }
                Some(_) | None => {
                    Err(RejectReason::DuplicateNode { node: node.clone(), incarnation })
                }
            };
        }
        self.welcome(version, hello)
    }

    fn welcome(&self, version: u16, hello: &Hello) -> Result<Welcome, RejectReason> {
        match &self.mastership {
            Mastership::Established => {}
            Mastership::Repairing => {
                return Err(RejectReason::NotEstablished { node: self.node.clone() });
            }
            Mastership::Elsewhere { master } => {
                return Err(RejectReason::NotMaster { master: master.clone() });
            }
        }
        if hello.term > self.term {
            return Err(RejectReason::OldTerm { ours: self.term, theirs: hello.term });
        }
        let skew = i128::from(hello.wall_clock_ms) - i128::from(self.wall_clock_ms);
        let skew = i64::try_from(skew).unwrap_or(i64::MAX);
        let skewed = u128::from(skew.unsigned_abs()) > CLOCK_SKEW_WARNING.as_millis();
        Ok(Welcome {
            version,
            group: self.group,
            group_name: self.group_name.clone(),
            segment_bytes: self.segment_bytes,
            log_format: self.log_format,
            node: self.node.clone(),
            incarnation: self.incarnation,
            term: self.term,
            capabilities: self.capabilities.and(hello.capabilities),
            clock_skew_ms: skewed.then_some(skew),
            epoch: self.epoch,
            established: true,
        })
    }
}

impl Hello {
    /// Whether the feeder that sent `welcome` is one to follow. A fresh replica adopts its group.
    pub fn check(&self, welcome: &Welcome) -> Result<(), RejectReason> {
        if !self.versions.contains(welcome.version) {
            let theirs = VersionRange { lowest: welcome.version, highest: welcome.version };
            return Err(RejectReason::Version { ours: self.versions, theirs });
        }
        if let Some(ours) = &self.group_name
            && *ours != welcome.group_name
        {
            return Err(RejectReason::WrongGroupName {
                ours: ours.clone(),
                theirs: welcome.group_name.clone(),
            });
        }
        if let Some(ours) = self.group
            && ours != welcome.group
        {
            let name = welcome.group_name.clone();
            return Err(RejectReason::WrongGroup { name, ours, theirs: welcome.group });
        }
        if self.group.is_some() && self.epoch != welcome.epoch {
            return Err(RejectReason::WrongEpoch { ours: self.epoch, theirs: welcome.epoch });
        }
        if self.log_format != welcome.log_format {
            return Err(RejectReason::LogFormat {
                ours: self.log_format,
                theirs: welcome.log_format,
            });
        }
        if let Some(ours) = self.segment_bytes
            && ours != welcome.segment_bytes
        {
            return Err(RejectReason::SegmentBytes { ours, theirs: welcome.segment_bytes });
        }
        if welcome.node == self.node {
            return Err(RejectReason::DuplicateNode {
                node: self.node.clone(),
                incarnation: welcome.incarnation,
            });
        }
        if welcome.term < self.term {
            return Err(RejectReason::OldTerm { ours: welcome.term, theirs: self.term });
        }
        if !welcome.established {
            return Err(RejectReason::NotEstablished { node: welcome.node.clone() });
        }
        Ok(())
    }
}

/// How long either side of a handshake waits for the other unless told otherwise. A feeder that is
/// about to become master may take a part of it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Introduces this node to a feeder. [`RepError::Rejected`] if either does not want the other.
pub fn handshake_as_replica(channel: &dyn Channel, hello: &Hello) -> Result<Welcome> {
    let run = || {
        channel.send(&HandshakeMsg::Hello(hello.clone()).encode())?;
        match receive_opening(channel, "an answer to Hello", HandshakeMsg::decode)? {
            HandshakeMsg::Welcome(welcome) => {
                hello.check(&welcome)?;
                Ok(welcome)
            }
            HandshakeMsg::Rejected(reason) => Err(reason.into()),
            other @ HandshakeMsg::Hello(_) => {
                Err(RepError::protocol("", "Welcome or Rejected", other.name()))
            }
        }
    };
    close_unless(channel, run())
}

/// Lets a replica introduce itself and answers it. `check` is [`FeederSide::check`] with what the
/// feeder knows at that moment; it may wait a little for a mastership that is under way.
pub fn handshake_as_feeder(
    channel: &dyn Channel,
    check: &dyn Fn(&Hello) -> Result<Welcome, RejectReason>,
) -> Result<(Hello, Welcome)> {
    let run = || match receive_opening(channel, "Hello", HandshakeMsg::decode)? {
        HandshakeMsg::Hello(hello) => match check(&hello) {
            Ok(welcome) => {
                channel.send(&HandshakeMsg::Welcome(welcome.clone()).encode())?;
                Ok((hello, welcome))
            }
            Err(reason) => {
                channel.send(&HandshakeMsg::Rejected(reason.clone()).encode())?;
                Err(reason.into())
            }
        },
        other => Err(RepError::protocol("", "Hello", other.name())),
    };
    close_unless(channel, run())
}

/// The first message of either side of a connection, within [`HANDSHAKE_TIMEOUT`].
pub(crate) fn receive_opening<M>(
    channel: &dyn Channel,
    awaited: &str,
    decode: impl FnOnce(&[u8]) -> Result<M, CodecError>,
) -> Result<M> {
    match channel.receive(HANDSHAKE_TIMEOUT)? {
        Some(frame) => Ok(decode(&frame)?),
        None => Err(RepError::silent(channel.peer(), awaited, HANDSHAKE_TIMEOUT)),
    }
}

/// Closes the connection unless it opened well, and says in the error whose it was.
pub(crate) fn close_unless<T>(channel: &dyn Channel, opened: Result<T>) -> Result<T> {
    opened.map_err(|err| {
        channel.close();
        err.with_peer(|| channel.peer())
    })
}

#[cfg(test)]
mod tests;
