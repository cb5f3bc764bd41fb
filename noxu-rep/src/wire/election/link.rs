//! Link: how the two ends of a connection for election messages learn who they are to each other.
//!
//! The dialler speaks first: PeerHello; the other end answers PeerWelcome or PeerRejected. From
//! then on messages go one way, from the dialler; for the other way the other end dials. Both ends
//! judge by [`Introduction::check`], which is symmetric.
//!
//! ```text
//! 64 PeerHello     op u8, version u8 = 1, reserved u16 = 0, epoch u32, term u32,
//!                  versions lowest u16, highest u16, has group u8, group id 16 bytes,
//!                  group name (empty: any), name, incarnation u64, kind u8, priority u8, address,
//!                  capabilities u64, extension (u16 length, bytes)
//! 65 PeerWelcome   as PeerHello
//! 66 PeerRejected  op u8, version u8 = 1, reserved u16 = 0, reason as in the handshake of streams,
//!                  extension
//! ```
//!
//! The layout of the three never changes; later versions add fields in the extension, which earlier
//! ones skip.
//!
//! # Not here: the messages that follow (codec.rs), when a link is dialled (the driver).

use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{GroupId, Incarnation, Name, Term};

use super::Peer;
use super::codec::{ELECTION_VERSION, MAX_EXTENSION_BYTES, decode_head, wrong};
use crate::error::{RepError, Result};
use crate::group::Electorate;
use crate::net::channel::Channel;
use crate::wire::handshake::{
    Capabilities, MAX_ADDRESS_BYTES, NodeKind, RejectReason, VersionRange, close_unless, cut,
    decode_reason, node_kind, optional_name, put_reason, receive_opening, versions,
};

/// Versions of the election messages that this build speaks.
pub const LINK_VERSIONS: VersionRange =
    VersionRange { lowest: ELECTION_VERSION as u16, highest: ELECTION_VERSION as u16 };

const PEER_HELLO: u8 = 64;
const PEER_WELCOME: u8 = 65;
const PEER_REJECTED: u8 = 66;

/// Who one end of a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Its epoch of the group.
    pub epoch: u32,
    /// Its term, durable.
    pub term: Term,
    /// Versions of the election messages that it speaks.
    pub versions: VersionRange,
    /// Its group; `None` for a fresh directory.
    pub group: Option<GroupId>,
    /// The name of the group it belongs to or wants to join; `None` for any.
    pub group_name: Option<Name>,
    /// Its name and the number of its directory.
    pub peer: Peer,
    /// What it is for.
    pub kind: NodeKind,
    /// Its priority.
    pub priority: u8,
    /// Where streams and links reach it; empty if they cannot.
    pub address: String,
    /// What it can beyond the version.
    pub capabilities: Capabilities,
}

/// A message that opens a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkMsg {
    /// Dialler to dialled, first.
    PeerHello(Introduction),
    /// The answer: accepted.
    PeerWelcome(Introduction),
    /// The answer: rejected.
    PeerRejected(RejectReason),
}

impl LinkMsg {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PeerHello(_) => "PeerHello",
            Self::PeerWelcome(_) => "PeerWelcome",
            Self::PeerRejected(_) => "PeerRejected",
        }
    }

    /// The bytes of one frame. An address longer than the format allows is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::PeerHello(card) => put_introduction(&mut out, PEER_HELLO, card),
            Self::PeerWelcome(card) => put_introduction(&mut out, PEER_WELCOME, card),
            Self::PeerRejected(reason) => {
                out.put_bytes(&[PEER_REJECTED, ELECTION_VERSION, 0, 0]);
                put_reason(&mut out, reason);
            }
        }
        out.put_short_bytes(&[]);
        out
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`CodecError`] for anything but exactly one well-formed message.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(frame);
        let message = match decode_head(&mut r)? {
            PEER_HELLO => Self::PeerHello(introduction(&mut r)?),
            PEER_WELCOME => Self::PeerWelcome(introduction(&mut r)?),
            PEER_REJECTED => Self::PeerRejected(decode_reason(&mut r)?),
            other => return Err(wrong("opcode", other, "an introduction (64 to 66)")),
        };
        r.short_bytes("extension", MAX_EXTENSION_BYTES)?;
        r.finish(message.name())?;
        Ok(message)
    }
}

fn put_introduction(out: &mut Vec<u8>, opcode: u8, card: &Introduction) {
    out.put_bytes(&[opcode, ELECTION_VERSION, 0, 0]);
    out.put_u32(card.epoch);
    out.put_u32(card.term.number());
    out.put_u16(card.versions.lowest);
    out.put_u16(card.versions.highest);
    out.put_bool(card.group.is_some());
    out.put_bytes(card.group.unwrap_or_default().as_bytes());
    out.put_text(card.group_name.as_ref().map_or("", Name::as_str));
    out.put_text(card.peer.name.as_str());
    out.put_u64(card.peer.incarnation.as_u64());
    out.put_u8(card.kind as u8);
    out.put_u8(card.priority);
    out.put_text(cut(&card.address, MAX_ADDRESS_BYTES));
    out.put_u64(card.capabilities.0);
}

fn introduction(r: &mut Reader<'_>) -> Result<Introduction, CodecError> {
    let epoch = r.u32("epoch")?;
    let term = Term::new(r.u32("term")?);
    let versions = versions(r)?;
    let has_group = r.bool("group")?;
    let group = r.group_id("group")?;
    Ok(Introduction {
        epoch,
        term,
        versions,
        group: has_group.then_some(group),
        group_name: optional_name(r, "group name")?,
        peer: Peer {
            name: r.name("name")?,
            incarnation: Incarnation::from_u64(r.u64("incarnation")?),
        },
        kind: node_kind(r)?,
        priority: r.u8("priority")?,
        address: r.text("address", MAX_ADDRESS_BYTES)?.to_owned(),
        capabilities: Capabilities(r.u64("capabilities")?),
    })
}

impl Introduction {
    /// Whether these two have anything to say to each other, and in which version. Pure, and the
    /// same answer at both ends when both know the same `electorate`.
    ///
    /// A directory that the configuration does not bind to its name is rejected: it has no vote and
    /// would be taken for the voter whose name it has. It can still follow the master's stream. A
    /// fresh directory is let in for the founding.
    pub fn check(
        &self,
        theirs: &Self,
        electorate: Option<&Electorate>,
    ) -> Result<u16, RejectReason> {
        let Some(version) = self.versions.common(theirs.versions) else {
            return Err(RejectReason::Version { ours: self.versions, theirs: theirs.versions });
        };
        if let (Some(ours), Some(theirs)) = (&self.group_name, &theirs.group_name)
            && ours != theirs
        {
            let (ours, theirs) = (ours.clone(), theirs.clone());
            return Err(RejectReason::WrongGroupName { ours, theirs });
        }
        let (node, incarnation) = (&theirs.peer.name, theirs.peer.incarnation);
        if let (Some(ours), Some(other)) = (self.group, theirs.group) {
            if ours != other {
                let known = self.group_name.as_ref().or(theirs.group_name.as_ref());
                let name = known.unwrap_or(node).clone();
                return Err(RejectReason::WrongGroup { name, ours, theirs: other });
            }
            if self.epoch != theirs.epoch {
                return Err(RejectReason::WrongEpoch { ours: self.epoch, theirs: theirs.epoch });
            }
        }
        if *node == self.peer.name {
            let incarnation = self.peer.incarnation;
            return Err(RejectReason::DuplicateNode { node: node.clone(), incarnation });
        }
        let Some(electorate) = electorate else { return Ok(version) };
        match (electorate.voter(node), theirs.kind) {
            (Some(voter), _) if voter.incarnation != incarnation => Err(RejectReason::NotBound {
                node: node.clone(),
                bound: voter.incarnation,
                theirs: incarnation,
            }),
            (Some(_), _) | (None, NodeKind::Secondary | NodeKind::Monitor) => Ok(version),
            (None, NodeKind::Electable | NodeKind::Arbiter) => {
                let members = electorate.voters.iter().map(|voter| voter.name.clone()).collect();
                Err(RejectReason::UnknownMember { node: node.clone(), members })
            }
        }
    }
}

/// Whether the other end of a link is one to talk to: [`Introduction::check`] with what a node
/// knows at that moment.
pub type Judge<'a> = dyn Fn(&Introduction) -> Result<u16, RejectReason> + 'a;

/// Opens a link as the dialler. [`RepError::Rejected`] if either end does not want the other.
pub fn introduce(
    channel: &dyn Channel,
    ours: &Introduction,
    judge: &Judge<'_>,
) -> Result<Introduction> {
    let run = || {
        channel.send(&LinkMsg::PeerHello(ours.clone()).encode())?;
        match receive_opening(channel, "an answer to PeerHello", LinkMsg::decode)? {
            LinkMsg::PeerWelcome(theirs) => {
                judge(&theirs)?;
                Ok(theirs)
            }
            LinkMsg::PeerRejected(reason) => Err(reason.into()),
            other @ LinkMsg::PeerHello(_) => {
                Err(RepError::protocol("", "PeerWelcome or PeerRejected", other.name()))
            }
        }
    };
    close_unless(channel, run())
}

/// Opens a link as the one that was dialled.
pub fn admit(
    channel: &dyn Channel,
    ours: &Introduction,
    judge: &Judge<'_>,
) -> Result<Introduction> {
    let run = || match receive_opening(channel, "PeerHello", LinkMsg::decode)? {
        LinkMsg::PeerHello(theirs) => match judge(&theirs) {
            Ok(_) => {
                channel.send(&LinkMsg::PeerWelcome(ours.clone()).encode())?;
                Ok(theirs)
            }
            Err(reason) => {
                channel.send(&LinkMsg::PeerRejected(reason.clone()).encode())?;
                Err(reason.into())
            }
        },
        other @ (LinkMsg::PeerWelcome(_) | LinkMsg::PeerRejected(_)) => {
            Err(RepError::protocol("", "PeerHello", other.name()))
        }
    };
    close_unless(channel, run())
}

#[cfg(test)]
mod tests;
