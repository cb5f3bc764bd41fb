//! RestoreMsg: the messages of a network restore.
//!
//! The restoring node asks, a provider answers: the master of its term, which says what there is and
//! gives the entries that come after, and any other node, which gives what it has of that. Every
//! question but the first carries a number that its answers repeat, so that many can be under way and
//! a late answer is known as such.
//!
//! One opcode byte, then fields in little endian. Large payloads come last and without a length:
//! they end with the frame.

use std::borrow::Cow;

use bytes::Bytes;
use noxu_log::{Anchor, GroupIdentity};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, GroupId, Lsn, Name, Term, Vlsn};

use crate::core::recovery::Progress;
use crate::error::{RepError, Result};
use crate::wire::handshake::{NodeKind, node_kind};

/// A message of a network restore. One that was decoded borrows its payload from the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreMsg<'a> {
    /// Node, to the master: begin a session, or go on with it.
    Open {
        /// Number of the session, chosen by the node.
        session: u64,
        /// The session of the master's verdict; 0 if the node came by itself.
        recovery: u64,
        /// Its group; `None` for a fresh node.
        group: Option<GroupId>,
        /// Its name.
        node: Name,
        /// What it is for: a node without a vote is given only what is durable.
        kind: NodeKind,
        /// The methods that it has, those it prefers first.
        methods: Vec<MethodId>,
    },
    /// Node, to any other node: what do you have of what the master named?
    Attach {
        /// Its group.
        group: GroupId,
        /// Its name.
        node: Name,
        /// The method of the restore; `None` if only blocks are wanted.
        method: Option<MethodId>,
    },
    /// Provider: these.
    Holdings {
        /// Whether it has that method, so that it can give its state by it.
        state: bool,
        /// Number and digest of each sealed segment.
        segments: Vec<(u32, [u8; 32])>,
        /// Other nodes that may have the same segments, and where they are reached: a master names
        /// those that follow it. At most [`MAX_SOURCES`].
        others: Vec<(Name, String)>,
    },
    /// Master: what there is. As many [`RestoreMsg::Segment`] follow as `segments` says.
    Manifest(Box<ManifestHead>),
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
        bytes: Cow<'a, [u8]>,
    },
    /// Node: that block came with another digest. Not answered.
    Doubt {
        /// Number of the segment.
        segment: u32,
        /// Number of the block in it.
        block: u32,
    },
    /// Node: an offer of the state is wanted, that of this number if it is still there.
    StateOpen {
        /// Number of the question.
        request: u64,
        /// Its number; 0 for a new one.
        id: u64,
    },
    /// Provider: this one.
    StateOpened {
        /// The question's number.
        request: u64,
        /// Its number, new at each opening.
        id: u64,
        /// Everything through it is in it.
        vlsn: Vlsn,
        /// The fingerprint of that entry.
        fingerprint: Fingerprint,
        /// What else the method says of it.
        head: Cow<'a, [u8]>,
    },
    /// Node: a question about the offer that was opened last.
    StateRequest {
        /// Number of the question.
        request: u64,
        /// As the method has it.
        question: Cow<'a, [u8]>,
    },
    /// Provider: the answer.
    StateAnswer {
        /// The question's number.
        request: u64,
        /// Everything through it is in what it says.
        vlsn: Vlsn,
        /// The fingerprint of that entry.
        fingerprint: Fingerprint,
        /// BLAKE3 of the bytes.
        digest: [u8; 32],
        /// As the method has it.
        bytes: Cow<'a, [u8]>,
    },
    /// Node, to the master: entries behind the sealed segments.
    LiveRequest {
        /// Number of the question.
        request: u64,
        /// First entry wanted.
        from: Vlsn,
        /// The fingerprint of the entry before it, as the node has it.
        previous: Fingerprint,
        /// Most bytes wanted, but for a longer entry. 0 only asks whether both have that entry; what
        /// follows says nothing then.
        most: u32,
        /// Nothing of the log before it is needed any more.
        needed: Vlsn,
        /// How far the node is.
        progress: Progress,
    },
    /// Master: whole entries, verbatim, in one or several frames; no byte if there is none yet.
    LiveRun {
        /// The question's number.
        request: u64,
        /// Whether more frames of this run follow.
        more: bool,
        /// The last entry that could be had when it was read.
        last: Vlsn,
        /// The node is to commit once it has this entry; NULL as long as that is not settled.
        cut: Vlsn,
        /// A part of the run's bytes.
        bytes: Cow<'a, [u8]>,
    },
    /// Provider: not that, but anything else.
    Refusal {
        /// The question's number.
        request: u64,
        /// Why.
        why: Refused,
    },
    /// Provider: no, for this reason. The session is over.
    Failure {
        /// Why.
        reason: String,
    },
    /// Node: it has everything.
    Done {
        /// Nothing of the log before it is needed any more.
        needed: Vlsn,
        /// The last entry that it has.
        durable: Vlsn,
    },
    /// Node: it gives up for now.
    Abandon {
        /// Why.
        why: Abandoned,
    },
}

/// A way to bring the state of a node level ([`StateSync`](crate::sync::method::StateSync)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodId {
    /// Its name.
    pub name: Name,
    /// What stands for its form.
    pub signature: u64,
}

/// Why one question is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// It is not there any more, or never was.
    Gone = 1,
    /// The entry before the first one wanted is another one here.
    Parted = 2,
}

/// Why a node gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Abandoned {
    /// Its disk is full.
    NoSpace = 1,
    /// What came does not verify.
    Corrupt = 2,
    /// It does not follow this master any more.
    Superseded = 3,
}

/// What a master offers, the segments aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// The group.
    pub group: GroupIdentity,
    /// The provider's name.
    pub provider: Name,
    /// The provider's term.
    pub term: Term,
    /// The method by which the state comes.
    pub method: Name,
    /// The position before the first segment.
    pub anchor: Anchor,
    /// The group configuration in force.
    pub group_config: Bytes,
    /// The position behind the last segment, where the live entries begin: the anchor if there is none.
    pub base: Anchor,
    /// The provider's last entry when the session began: what has to be reached.
    pub target: Vlsn,
    /// Its fingerprint.
    pub target_fingerprint: Fingerprint,
    /// Nodes that may have the same segments, and give their state: name and address.
    pub sources: Vec<(Name, String)>,
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

/// Version of these messages.
pub const RESTORE_VERSION: u8 = 2;

/// Most other nodes that one message names.
pub const MAX_SOURCES: usize = 64;

const MAX_REASON_BYTES: usize = 1024;
const MAX_METHODS: usize = 16;
const MAX_ADDRESS_BYTES: usize = 255;

const OPEN: u8 = 1;
const MANIFEST: u8 = 2;
const SEGMENT: u8 = 3;
const BLOCK_REQUEST: u8 = 4;
const BLOCK: u8 = 5;
const STATE_REQUEST: u8 = 6;
const STATE_ANSWER: u8 = 7;
const LIVE_REQUEST: u8 = 8;
const LIVE_RUN: u8 = 9;
const FAILURE: u8 = 10;
const DONE: u8 = 11;
const ATTACH: u8 = 12;
const HOLDINGS: u8 = 13;
const STATE_OPEN: u8 = 14;
const STATE_OPENED: u8 = 15;
const REFUSAL: u8 = 16;
const DOUBT: u8 = 17;
const ABANDON: u8 = 18;

impl<'a> RestoreMsg<'a> {
    /// The message's name, for errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "Open",
            Self::Manifest(_) => "Manifest",
            Self::Segment(_) => "Segment",
            Self::BlockRequest { .. } => "BlockRequest",
            Self::Block { .. } => "Block",
            Self::StateRequest { .. } => "StateRequest",
            Self::StateAnswer { .. } => "StateAnswer",
            Self::LiveRequest { .. } => "LiveRequest",
            Self::LiveRun { .. } => "LiveRun",
            Self::Attach { .. } => "Attach",
            Self::Holdings { .. } => "Holdings",
            Self::StateOpen { .. } => "StateOpen",
            Self::StateOpened { .. } => "StateOpened",
            Self::Refusal { .. } => "Refusal",
            Self::Doubt { .. } => "Doubt",
            Self::Abandon { .. } => "Abandon",
            Self::Failure { .. } => "Failure",
            Self::Done { .. } => "Done",
        }
    }

    /// The frame up to the payload, and the payload, to be sent without joining them.
    pub fn encode_parts(&self) -> (Vec<u8>, &[u8]) {
        let mut out = Vec::new();
        let mut payload: &[u8] = &[];
        match self {
            Self::Open { session, recovery, group, node, kind, methods } => {
                out.put_u8(OPEN);
                out.put_u8(RESTORE_VERSION);
                out.put_u64(*session);
                out.put_u64(*recovery);
                out.put_bool(group.is_some());
                out.put_bytes(group.unwrap_or_default().as_bytes());
                out.put_text(node.as_str());
                out.put_u8(*kind as u8);
                out.put_u8(methods.len().min(MAX_METHODS) as u8);
                for method in methods.iter().take(MAX_METHODS) {
                    method.put(&mut out);
                }
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
            Self::Attach { group, node, method } => {
                out.put_u8(ATTACH);
                out.put_u8(RESTORE_VERSION);
                out.put_bytes(group.as_bytes());
                out.put_text(node.as_str());
                out.put_bool(method.is_some());
                if let Some(method) = method {
                    method.put(&mut out);
                }
            }
            Self::Holdings { state, segments, others } => {
                out.put_u8(HOLDINGS);
                out.put_bool(*state);
                out.put_u32(segments.len() as u32);
                for (number, digest) in segments {
                    out.put_u32(*number);
                    out.put_bytes(digest);
                }
                put_nodes(&mut out, others);
            }
            Self::StateOpen { request, id } => {
                out.put_u8(STATE_OPEN);
                out.put_u64(*request);
                out.put_u64(*id);
            }
            Self::StateOpened { request, id, vlsn, fingerprint, head } => {
                out.put_u8(STATE_OPENED);
                out.put_u64(*request);
                out.put_u64(*id);
                out.put_vlsn(*vlsn);
                out.put_u64(fingerprint.as_u64());
                payload = head;
            }
            Self::StateRequest { request, question } => {
                out.put_u8(STATE_REQUEST);
                out.put_u64(*request);
                payload = question;
            }
            Self::StateAnswer { request, vlsn, fingerprint, digest, bytes } => {
                out.put_u8(STATE_ANSWER);
                out.put_u64(*request);
                out.put_vlsn(*vlsn);
                out.put_u64(fingerprint.as_u64());
                out.put_bytes(digest);
                payload = bytes;
            }
            Self::LiveRequest { request, from, previous, most, needed, progress } => {
                out.put_u8(LIVE_REQUEST);
                out.put_u64(*request);
                out.put_vlsn(*from);
                out.put_u64(previous.as_u64());
                out.put_u32(*most);
                out.put_vlsn(*needed);
                out.put_u64(progress.base_bytes);
                out.put_bool(progress.base_done);
                out.put_vlsn(progress.durable);
            }
            Self::LiveRun { request, more, last, cut, bytes } => {
                out.put_u8(LIVE_RUN);
                out.put_u64(*request);
                out.put_bool(*more);
                out.put_vlsn(*last);
                out.put_vlsn(*cut);
                payload = bytes;
            }
            Self::Doubt { segment, block } => {
                out.put_u8(DOUBT);
                out.put_u32(*segment);
                out.put_u32(*block);
            }
            Self::Refusal { request, why } => {
                out.put_u8(REFUSAL);
                out.put_u64(*request);
                out.put_u8(*why as u8);
            }
            Self::Failure { reason } => {
                out.put_u8(FAILURE);
                out.put_text(&reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]);
            }
            Self::Done { needed, durable } => {
                out.put_u8(DONE);
                out.put_vlsn(*needed);
                out.put_vlsn(*durable);
            }
            Self::Abandon { why } => {
                out.put_u8(ABANDON);
                out.put_u8(*why as u8);
            }
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
    pub fn decode(frame: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(frame);
        let message = match r.u8("restore opcode")? {
            OPEN => {
                version(&mut r)?;
                let session = r.u64("Open.session")?;
                let recovery = r.u64("Open.recovery")?;
                let has_group = r.bool("Open.group")?;
                let group = r.group_id("Open.group")?;
                let node = r.name("Open.node")?;
                let kind = node_kind(&mut r)?;
                let count = usize::from(r.u8("Open.methods")?);
                if count > MAX_METHODS {
                    return Err(out_of_range("Open.methods", count, "at most 16").into());
                }
                let methods =
                    (0..count).map(|_| MethodId::read(&mut r)).collect::<Result<_, _>>()?;
                let group = has_group.then_some(group);
                Self::Open { session, recovery, group, node, kind, methods }
            }
            MANIFEST => Self::Manifest(Box::new(ManifestHead::read(&mut r)?)),
            SEGMENT => Self::Segment(SegmentOffer::read(&mut r)?),
            BLOCK_REQUEST => Self::BlockRequest {
                request: r.u64("BlockRequest.request")?,
                segment: r.u32("BlockRequest.segment")?,
                block: r.u32("BlockRequest.block")?,
            },
            BLOCK => Self::Block { request: r.u64("Block.request")?, bytes: rest(&mut r)? },
            ATTACH => {
                version(&mut r)?;
                let group = r.group_id("Attach.group")?;
                let node = r.name("Attach.node")?;
                let has_method = r.bool("Attach.method")?;
                let method = has_method.then(|| MethodId::read(&mut r)).transpose()?;
                Self::Attach { group, node, method }
            }
            HOLDINGS => {
                let state = r.bool("Holdings.state")?;
                let count = r.u32("Holdings.segments")? as usize;
                let mut each = Reader::new(r.bytes("Holdings.segments", count * 36)?);
                let mut segments = Vec::with_capacity(count);
                for _ in 0..count {
                    segments.push((each.u32("Holdings.number")?, each.array("Holdings.digest")?));
                }
                let others = read_nodes(&mut r, "Holdings.others")?;
                Self::Holdings { state, segments, others }
            }
            STATE_OPEN => {
                Self::StateOpen { request: r.u64("StateOpen.request")?, id: r.u64("StateOpen.id")? }
            }
            STATE_OPENED => Self::StateOpened {
                request: r.u64("StateOpened.request")?,
                id: r.u64("StateOpened.id")?,
                vlsn: r.vlsn("StateOpened.vlsn")?,
                fingerprint: Fingerprint::from_u64(r.u64("StateOpened.fingerprint")?),
                head: rest(&mut r)?,
            },
            STATE_REQUEST => Self::StateRequest {
                request: r.u64("StateRequest.request")?,
                question: rest(&mut r)?,
            },
            STATE_ANSWER => Self::StateAnswer {
                request: r.u64("StateAnswer.request")?,
                vlsn: r.vlsn("StateAnswer.vlsn")?,
                fingerprint: Fingerprint::from_u64(r.u64("StateAnswer.fingerprint")?),
                digest: r.array("StateAnswer.digest")?,
                bytes: rest(&mut r)?,
            },
            LIVE_REQUEST => Self::LiveRequest {
                request: r.u64("LiveRequest.request")?,
                from: r.vlsn("LiveRequest.from")?,
                previous: Fingerprint::from_u64(r.u64("LiveRequest.previous")?),
                most: r.u32("LiveRequest.most")?,
                needed: r.vlsn("LiveRequest.needed")?,
                progress: Progress {
                    base_bytes: r.u64("LiveRequest.base bytes")?,
                    base_done: r.bool("LiveRequest.base done")?,
                    durable: r.vlsn("LiveRequest.durable")?,
                },
            },
            LIVE_RUN => Self::LiveRun {
                request: r.u64("LiveRun.request")?,
                more: r.bool("LiveRun.more")?,
                last: r.vlsn("LiveRun.last")?,
                cut: r.vlsn("LiveRun.cut")?,
                bytes: rest(&mut r)?,
            },
            DOUBT => Self::Doubt { segment: r.u32("Doubt.segment")?, block: r.u32("Doubt.block")? },
            REFUSAL => {
                let request = r.u64("Refusal.request")?;
                let why = match r.u8("Refusal.why")? {
                    1 => Refused::Gone,
                    2 => Refused::Parted,
                    other => return Err(out_of_range("Refusal.why", other.into(), "1 or 2").into()),
                };
                Self::Refusal { request, why }
            }
            FAILURE => {
                Self::Failure { reason: r.text("Failure.reason", MAX_REASON_BYTES)?.to_owned() }
            }
            DONE => Self::Done { needed: r.vlsn("Done.needed")?, durable: r.vlsn("Done.durable")? },
            ABANDON => {
                let why = match r.u8("Abandon.why")? {
                    1 => Abandoned::NoSpace,
                    2 => Abandoned::Corrupt,
                    3 => Abandoned::Superseded,
                    other => return Err(out_of_range("Abandon.why", other.into(), "1 to 3").into()),
                };
                Self::Abandon { why }
            }
            unknown => {
                let found = format!("opcode {unknown}");
                return Err(RepError::protocol("", "a restore opcode from 1 to 18", found));
            }
        };
        r.finish(message.name())?;
        Ok(message)
    }
}

fn out_of_range(what: &'static str, found: usize, expected: &'static str) -> CodecError {
    CodecError::OutOfRange { what, found: found.to_string(), expected }
}

fn version(r: &mut Reader<'_>) -> Result<(), CodecError> {
    match r.u8("restore version")? {
        RESTORE_VERSION => Ok(()),
        other => Err(out_of_range("restore version", other.into(), "2")),
    }
}

fn rest<'a>(r: &mut Reader<'a>) -> Result<Cow<'a, [u8]>, CodecError> {
    let left = r.remaining();
    Ok(Cow::Borrowed(r.bytes("payload", left)?))
}

impl ManifestHead {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_bytes(self.group.id.as_bytes());
        out.put_text(self.group.name.as_str());
        out.put_u32(self.group.segment_bytes);
        out.put_text(self.provider.as_str());
        out.put_u32(self.term.number());
        out.put_text(self.method.as_str());
        put_anchor(out, &self.anchor);
        out.put_short_bytes(&self.group_config);
        put_anchor(out, &self.base);
        out.put_vlsn(self.target);
        out.put_u64(self.target_fingerprint.as_u64());
        put_nodes(out, &self.sources);
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
        let method = r.name("Manifest.method")?;
        let anchor = read_anchor(r)?;
        let group_config = Bytes::copy_from_slice(r.short_bytes("Manifest.configuration", MAX)?);
        let base = read_anchor(r)?;
        let target = r.vlsn("Manifest.target")?;
        let target_fingerprint = Fingerprint::from_u64(r.u64("Manifest.target fingerprint")?);
        let sources = read_nodes(r, "Manifest.sources")?;
        let head = Self {
            group,
            provider,
            term,
            method,
            anchor,
            group_config,
            base,
            target,
            target_fingerprint,
            sources,
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

/// Nodes and where they are reached.
fn put_nodes(out: &mut Vec<u8>, nodes: &[(Name, String)]) {
    out.put_u32(nodes.len() as u32);
    for (name, address) in nodes {
        out.put_text(name.as_str());
        out.put_text(address);
    }
}

fn read_nodes(r: &mut Reader<'_>, what: &'static str) -> Result<Vec<(Name, String)>, CodecError> {
    let count = r.u32(what)?;
    if count as usize > MAX_SOURCES {
        let (found, expected) = (count.to_string(), "at most 64");
        return Err(CodecError::OutOfRange { what, found, expected });
    }
    (0..count).map(|_| Ok((r.name(what)?, r.text(what, MAX_ADDRESS_BYTES)?.to_owned()))).collect()
}

fn put_anchor(out: &mut Vec<u8>, anchor: &Anchor) {
    out.put_vlsn(anchor.vlsn);
    out.put_u64(anchor.lsn.as_u64());
    out.put_u32(anchor.term.number());
    out.put_u64(anchor.fingerprint.as_u64());
    out.put_u64(anchor.next_lsn.as_u64());
    out.put_short_bytes(&anchor.group_config);
}

fn read_anchor(r: &mut Reader<'_>) -> Result<Anchor, CodecError> {
    const MAX: usize = noxu_log::MAX_GROUP_CONFIG_BYTES;
    Ok(Anchor {
        vlsn: r.vlsn("anchor VLSN")?,
        lsn: Lsn::from_u64(r.u64("anchor LSN")?),
        term: Term::new(r.u32("anchor term")?),
        fingerprint: Fingerprint::from_u64(r.u64("anchor fingerprint")?),
        next_lsn: Lsn::from_u64(r.u64("anchor next LSN")?),
        group_config: Bytes::copy_from_slice(r.short_bytes("anchor configuration", MAX)?),
    })
}

impl MethodId {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_text(self.name.as_str());
        out.put_u64(self.signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { name: r.name("method")?, signature: r.u64("method's signature")? })
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
mod tests;
