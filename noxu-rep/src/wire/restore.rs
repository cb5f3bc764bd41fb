//! RestoreMsg: the messages of a network restore.
//!
//! The restoring node asks, the provider answers. Every question but the first carries a number
//! that its answers repeat, so that many can be under way and a late answer is known as such.
//!
//! One opcode byte, then fields in little endian. Large payloads come last and without a length:
//! they end with the frame.

use bytes::Bytes;
use noxu_log::{Anchor, GroupIdentity};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, GroupId, Lsn, Name, Term, Vlsn};

use crate::error::{RepError, Result};
use crate::wire::handshake::{NodeKind, node_kind};

/// A message of a network restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreMsg {
    /// Node: begin a session.
    Open {
        /// Number of the session, chosen by the node.
        session: u64,
        /// Its group; `None` for a fresh node.
        group: Option<GroupId>,
        /// Its name.
        node: Name,
        /// What it is for: a node without a vote is given only what is durable.
        kind: NodeKind,
    },
    /// Provider: what there is. As many [`RestoreMsg::Segment`] follow as `segments` says.
    Manifest(ManifestHead),
    /// Provider: one segment of the manifest.
    Segment(SegmentOffer),
    /// Node: one block of a segment.
    BlockRequest {
        /// Number of the question.
        request: u64,
        /// Number of the segment.
        segment: u32,
        /// Number of the block in it, from 0.
        block: u32,
    },
    /// Provider: its bytes.
    Block {
        /// The question's number.
        request: u64,
        /// The block.
        bytes: Vec<u8>,
    },
    /// Node: the checkpoint from `offset` on, which is where the last answer ended.
    CheckpointRequest {
        /// Number of the question.
        request: u64,
        /// Bytes had so far.
        offset: u64,
    },
    /// Provider: a piece of the checkpoint.
    CheckpointChunk {
        /// The question's number.
        request: u64,
        /// Where it begins.
        offset: u64,
        /// Whether it is the last one.
        last: bool,
        /// BLAKE3 of the bytes.
        digest: [u8; 32],
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Node: entries behind the sealed segments.
    TailRequest {
        /// Number of the question.
        request: u64,
        /// First entry wanted.
        from: Vlsn,
    },
    /// Provider: whole entries, verbatim, in one or several frames.
    TailRun {
        /// The question's number.
        request: u64,
        /// Whether more frames of this run follow.
        more: bool,
        /// A part of the run's bytes.
        bytes: Vec<u8>,
    },
    /// Provider: no, for this reason. The session is over.
    Failure {
        /// Why.
        reason: String,
    },
    /// Node: the session is over.
    Done,
}

/// What a provider offers, the segments aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// The group.
    pub group: GroupIdentity,
    /// The provider's name.
    pub provider: Name,
    /// The provider's term.
    pub term: Term,
    /// The position before the first segment.
    pub anchor: Anchor,
    /// The group configuration in force.
    pub group_config: Bytes,
    /// Everything through it is in the checkpoint; `None` if the log is whole and there is none.
    pub checkpoint: Option<Vlsn>,
    /// The provider's last entry when the session began: what has to be reached.
    pub target: Vlsn,
    /// Its fingerprint.
    pub target_fingerprint: Fingerprint,
    /// How many segments follow.
    pub segments: u32,
}

/// One sealed segment, content addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentOffer {
    /// Its number.
    pub number: u32,
    /// Length of the file.
    pub bytes: u32,
    /// BLAKE3 of the file.
    pub digest: [u8; 32],
    /// BLAKE3 of each block of [`BLOCK_BYTES`], the last one shorter.
    pub blocks: Vec<[u8; 32]>,
}

/// Bytes of a block. The same as those that a side file digests: restore/provider.rs checks it.
pub const BLOCK_BYTES: u32 = 256 << 10;

/// A segment with an entry is longer than its header, which has this many bytes.
pub const SEGMENT_HEAD_BYTES: u32 = 64;

/// Most segments in a manifest.
pub const MAX_SEGMENTS: u32 = 1 << 22;

const MAX_REASON_BYTES: usize = 1024;

const OPEN: u8 = 1;
const MANIFEST: u8 = 2;
const SEGMENT: u8 = 3;
const BLOCK_REQUEST: u8 = 4;
const BLOCK: u8 = 5;
const CHECKPOINT_REQUEST: u8 = 6;
const CHECKPOINT_CHUNK: u8 = 7;
const TAIL_REQUEST: u8 = 8;
const TAIL_RUN: u8 = 9;
const FAILURE: u8 = 10;
const DONE: u8 = 11;

impl RestoreMsg {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "Open",
            Self::Manifest(_) => "Manifest",
            Self::Segment(_) => "Segment",
            Self::BlockRequest { .. } => "BlockRequest",
            Self::Block { .. } => "Block",
            Self::CheckpointRequest { .. } => "CheckpointRequest",
            Self::CheckpointChunk { .. } => "CheckpointChunk",
            Self::TailRequest { .. } => "TailRequest",
            Self::TailRun { .. } => "TailRun",
            Self::Failure { .. } => "Failure",
            Self::Done => "Done",
        }
    }

    /// The frame up to the payload, and the payload, to be sent without joining them.
    pub fn encode_parts(&self) -> (Vec<u8>, &[u8]) {
        let mut out = Vec::new();
        let mut payload: &[u8] = &[];
        match self {
            Self::Open { session, group, node, kind } => {
                out.put_u8(OPEN);
                out.put_u64(*session);
                out.put_bool(group.is_some());
                out.put_bytes(group.unwrap_or_default().as_bytes());
                out.put_text(node.as_str());
                out.put_u8(*kind as u8);
            }
            Self::Manifest(head) => {
                out.put_u8(MANIFEST);
                head.put(&mut out);
            }
            Self::Segment(offer) => {
                out.put_u8(SEGMENT);
                offer.put(&mut out);
            }
            Self::BlockRequest { request, segment, block } => {
                out.put_u8(BLOCK_REQUEST);
                out.put_u64(*request);
                out.put_u32(*segment);
                out.put_u32(*block);
            }
            Self::Block { request, bytes } => {
                out.put_u8(BLOCK);
                out.put_u64(*request);
                payload = bytes;
            }
            Self::CheckpointRequest { request, offset } => {
                out.put_u8(CHECKPOINT_REQUEST);
                out.put_u64(*request);
                out.put_u64(*offset);
            }
            Self::CheckpointChunk { request, offset, last, digest, bytes } => {
                out.put_u8(CHECKPOINT_CHUNK);
                out.put_u64(*request);
                out.put_u64(*offset);
                out.put_bool(*last);
                out.put_bytes(digest);
                payload = bytes;
            }
            Self::TailRequest { request, from } => {
                out.put_u8(TAIL_REQUEST);
                out.put_u64(*request);
                out.put_vlsn(*from);
            }
            Self::TailRun { request, more, bytes } => {
                out.put_u8(TAIL_RUN);
                out.put_u64(*request);
                out.put_bool(*more);
                payload = bytes;
            }
            Self::Failure { reason } => {
                out.put_u8(FAILURE);
                out.put_text(&reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]);
            }
            Self::Done => out.put_u8(DONE),
        }
        (out, payload)
    }

    /// The bytes of one frame.
    pub fn encode(&self) -> Vec<u8> {
        let (mut out, payload) = self.encode_parts();
        out.extend_from_slice(payload);
        out
    }

    /// The message in one frame.
    pub fn decode(frame: &[u8]) -> Result<Self> {
        let mut r = Reader::new(frame);
        let message = match r.u8("restore opcode")? {
            OPEN => {
                let session = r.u64("Open.session")?;
                let has_group = r.bool("Open.group")?;
                let group = r.group_id("Open.group")?;
                let node = r.name("Open.node")?;
                let kind = node_kind(&mut r)?;
                Self::Open { session, group: has_group.then_some(group), node, kind }
            }
            MANIFEST => Self::Manifest(ManifestHead::read(&mut r)?),
            SEGMENT => Self::Segment(SegmentOffer::read(&mut r)?),
            BLOCK_REQUEST => Self::BlockRequest {
                request: r.u64("BlockRequest.request")?,
                segment: r.u32("BlockRequest.segment")?,
                block: r.u32("BlockRequest.block")?,
            },
            BLOCK => Self::Block { request: r.u64("Block.request")?, bytes: rest(&mut r)? },
            CHECKPOINT_REQUEST => Self::CheckpointRequest {
                request: r.u64("CheckpointRequest.request")?,
                offset: r.u64("CheckpointRequest.offset")?,
            },
            CHECKPOINT_CHUNK => Self::CheckpointChunk {
                request: r.u64("CheckpointChunk.request")?,
                offset: r.u64("CheckpointChunk.offset")?,
                last: r.bool("CheckpointChunk.last")?,
                digest: r.array("CheckpointChunk.digest")?,
                bytes: rest(&mut r)?,
            },
            TAIL_REQUEST => Self::TailRequest {
                request: r.u64("TailRequest.request")?,
                from: r.vlsn("TailRequest.from")?,
            },
            TAIL_RUN => Self::TailRun {
                request: r.u64("TailRun.request")?,
                more: r.bool("TailRun.more")?,
                bytes: rest(&mut r)?,
            },
            FAILURE => {
                Self::Failure { reason: r.text("Failure.reason", MAX_REASON_BYTES)?.to_owned() }
            }
            DONE => Self::Done,
            unknown => {
                let found = format!("opcode {unknown}");
                return Err(RepError::protocol("", "a restore opcode from 1 to 11", found));
            }
        };
        r.finish(message.name())?;
        Ok(message)
    }
}

fn rest(r: &mut Reader<'_>) -> Result<Vec<u8>, CodecError> {
    let left = r.remaining();
    Ok(r.bytes("payload", left)?.to_vec())
}

impl ManifestHead {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_bytes(self.group.id.as_bytes());
        out.put_text(self.group.name.as_str());
        out.put_u32(self.group.segment_bytes);
        out.put_text(self.provider.as_str());
        out.put_u32(self.term.number());
        out.put_vlsn(self.anchor.vlsn);
        out.put_u64(self.anchor.lsn.as_u64());
        out.put_u32(self.anchor.term.number());
        out.put_u64(self.anchor.fingerprint.as_u64());
        out.put_u64(self.anchor.next_lsn.as_u64());
        out.put_short_bytes(&self.anchor.group_config);
        out.put_short_bytes(&self.group_config);
        out.put_bool(self.checkpoint.is_some());
        out.put_vlsn(self.checkpoint.unwrap_or_default());
        out.put_vlsn(self.target);
        out.put_u64(self.target_fingerprint.as_u64());
        out.put_u32(self.segments);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        const MAX: usize = noxu_log::MAX_GROUP_CONFIG_BYTES;
        let group = GroupIdentity {
            id: r.group_id("Manifest.group")?,
            name: r.name("Manifest.group name")?,
            segment_bytes: r.u32("Manifest.segment size")?,
        };
        let provider = r.name("Manifest.provider")?;
        let term = Term::new(r.u32("Manifest.term")?);
        let anchor = Anchor {
            vlsn: r.vlsn("Manifest.anchor VLSN")?,
            lsn: Lsn::from_u64(r.u64("Manifest.anchor LSN")?),
            term: Term::new(r.u32("Manifest.anchor term")?),
            fingerprint: Fingerprint::from_u64(r.u64("Manifest.anchor fingerprint")?),
            next_lsn: Lsn::from_u64(r.u64("Manifest.anchor next LSN")?),
            group_config: Bytes::copy_from_slice(
                r.short_bytes("Manifest.anchor configuration", MAX)?,
            ),
        };
        let group_config = Bytes::copy_from_slice(r.short_bytes("Manifest.configuration", MAX)?);
        let has_checkpoint = r.bool("Manifest.checkpoint")?;
        let checkpoint = r.vlsn("Manifest.checkpoint")?;
        let head = Self {
            group,
            provider,
            term,
            anchor,
            group_config,
            checkpoint: has_checkpoint.then_some(checkpoint),
            target: r.vlsn("Manifest.target")?,
            target_fingerprint: Fingerprint::from_u64(r.u64("Manifest.target fingerprint")?),
            segments: r.u32("Manifest.segments")?,
        };
        if head.segments > MAX_SEGMENTS {
            return Err(CodecError::OutOfRange {
                what: "Manifest.segments",
                found: head.segments.to_string(),
                expected: "at most 4,194,304",
            });
        }
        Ok(head)
    }
}

impl SegmentOffer {
    /// Length of block `block`.
    pub fn block_bytes(&self, block: u32) -> u32 {
        (self.bytes - block * BLOCK_BYTES).min(BLOCK_BYTES)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.number);
        out.put_u32(self.bytes);
        out.put_bytes(&self.digest);
        for block in &self.blocks {
            out.put_bytes(block);
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        let number = r.u32("Segment.number")?;
        let bytes = r.u32("Segment.bytes")?;
        let digest = r.array("Segment.digest")?;
        let count = bytes.div_ceil(BLOCK_BYTES) as usize;
        let mut digests = Reader::new(r.bytes("Segment.blocks", count * 32)?);
        let mut blocks = Vec::with_capacity(count);
        for _ in 0..count {
            blocks.push(digests.array("Segment.block")?);
        }
        if number == 0 || bytes <= SEGMENT_HEAD_BYTES {
            return Err(CodecError::OutOfRange {
                what: "Segment",
                found: format!("segment {number} of {bytes} bytes"),
                expected: "a segment with an entry",
            });
        }
        Ok(Self { number, bytes, digest, blocks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> ManifestHead {
        ManifestHead {
            group: GroupIdentity {
                id: GroupId::from_bytes(*b"group-of-sixteen"),
                name: "orders".parse().unwrap(),
                segment_bytes: 4096,
            },
            provider: "n1".parse().unwrap(),
            term: Term::new(3),
            anchor: Anchor {
                vlsn: Vlsn::new(9),
                lsn: Lsn::new(1, 200),
                term: Term::new(2),
                fingerprint: Fingerprint::from_u64(5),
                next_lsn: Lsn::new(2, 64),
                group_config: b"old".to_vec().into(),
            },
            group_config: b"new".to_vec().into(),
            checkpoint: Some(Vlsn::new(40)),
            target: Vlsn::new(99),
            target_fingerprint: Fingerprint::from_u64(6),
            segments: 1,
        }
    }

    fn all() -> Vec<(RestoreMsg, &'static [u8])> {
        let offer = SegmentOffer { number: 2, bytes: 100, digest: [1; 32], blocks: vec![[2; 32]] };
        let node: Name = "n2".parse().unwrap();
        vec![
            (
                RestoreMsg::Open { session: 7, group: None, node, kind: NodeKind::Secondary },
                b"\x01\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0n2\x01",
            ),
            (
                RestoreMsg::Manifest(head()),
                b"\x02group-of-sixteen\x06\0orders\0\x10\0\0\x02\0n1\x03\0\0\0\
                  \x09\0\0\0\0\0\0\0\xc8\0\0\0\x01\0\0\0\x02\0\0\0\x05\0\0\0\0\0\0\0\
                  \x40\0\0\0\x02\0\0\0\x03\0old\x03\0new\x01\x28\0\0\0\0\0\0\0\
                  \x63\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01\0\0\0",
            ),
            (
                RestoreMsg::Segment(offer),
                b"\x03\x02\0\0\0\x64\0\0\0\
                  \x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
                  \x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
                  \x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\
                  \x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02",
            ),
            (
                RestoreMsg::BlockRequest { request: 1, segment: 2, block: 3 },
                b"\x04\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0",
            ),
            (
                RestoreMsg::Block { request: 1, bytes: b"xyz".to_vec() },
                b"\x05\x01\0\0\0\0\0\0\0xyz",
            ),
            (
                RestoreMsg::CheckpointRequest { request: 1, offset: 2 },
                b"\x06\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            ),
            (
                RestoreMsg::CheckpointChunk {
                    request: 1,
                    offset: 2,
                    last: true,
                    digest: *b"thirty-two bytes of digest, here",
                    bytes: b"xyz".to_vec(),
                },
                b"\x07\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01thirty-two bytes of digest, herexyz",
            ),
            (
                RestoreMsg::TailRequest { request: 1, from: Vlsn::new(2) },
                b"\x08\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            ),
            (
                RestoreMsg::TailRun { request: 1, more: true, bytes: b"xyz".to_vec() },
                b"\x09\x01\0\0\0\0\0\0\0\x01xyz",
            ),
            (RestoreMsg::Failure { reason: "no".to_owned() }, b"\x0a\x02\0no"),
            (RestoreMsg::Done, b"\x0b"),
        ]
    }

    #[test]
    fn every_message_has_its_golden_bytes() {
        for (message, bytes) in all() {
            assert_eq!(message.encode(), bytes, "{}", message.name());
            assert_eq!(RestoreMsg::decode(bytes).unwrap(), message);
        }
    }

    #[test]
    fn every_truncation_of_a_fixed_field_is_an_error() {
        for (message, bytes) in all() {
            let payload = message.encode_parts().1.len();
            for len in 0..bytes.len() - payload {
                assert!(RestoreMsg::decode(&bytes[..len]).is_err(), "{} at {len}", message.name());
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            opcode in 0u8..13,
        ) {
            let _ = RestoreMsg::decode(&bytes);
            let _ = RestoreMsg::decode(&[&[opcode][..], &bytes].concat());
        }
    }
}
