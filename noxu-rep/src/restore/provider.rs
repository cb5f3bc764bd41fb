//! RestoreProvider: gives a restoring node this node's sealed segments, a checkpoint, and the
//! entries after the segments.
//!
//! # Invariants
//! - What a session was offered stays on disk while it lasts, or the session ends: it holds a pin on
//!   the front of the log, and looks whether it still has it before each answer.
//! - A question is answered from what was offered or not at all; a provider that cannot answer says
//!   so and ends the session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use noxu_log::env::{EnvFile, OpenMode};
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_log::segment::side_file::Digests;
use noxu_log::{Holder, HolderKind, Log, LogError, Pin};
use noxu_util::{NULL_VLSN, Name, Term, Vlsn};

use crate::core::feeder::FeedLimit;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{Admission, ServiceHandler};
use crate::sync::{Checkpoint, StateMachine};
use crate::wire::restore::{BLOCK_BYTES, ManifestHead, RestoreMsg, SegmentOffer};

// The wire's sizes are the disk's; the wire must not name disk types, so it is checked here.
const _: () = assert!(
    crate::wire::restore::BLOCK_BYTES == noxu_log::segment::side_file::BLOCK_BYTES
        && crate::wire::restore::SEGMENT_HEAD_BYTES == noxu_log::segment::SEGMENT_HEADER_BYTES
);

/// Silence of the restoring node after which a session ends and its pin goes.
pub const SESSION_TIMEOUT: Duration = Duration::from_mins(1);

/// How long the front stays for a node that has fetched everything and is to return as a replica.
const RETURN_GRACE: Duration = Duration::from_mins(1);

/// Most sessions at once; each may keep the front of the log from being dropped.
pub const MAX_SESSIONS: usize = 4;

/// Pause between two looks whether what a node without a vote waits for is durable.
const DURABLE_LOOK: Duration = Duration::from_millis(20);

/// Bytes of a checkpoint in one answer, and of entries in one frame.
const CHUNK_BYTES: usize = 1 << 20;

/// Serves restores from one node's log and state machine.
pub struct RestoreProvider {
    node: Name,
    log: Log,
    machine: Arc<dyn StateMachine>,
    may_serve: MayServe,
    on_failed: OnFailed,
    sessions: AtomicUsize,
}

/// The mastership in which a node gives its log and state away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Its term.
    pub term: Term,
    /// Everything through it is durable on a quorum.
    pub dtvlsn: Vlsn,
}

/// The mastership that there is at the moment; the reason if there is none.
pub type MayServe = Box<dyn Fn() -> Result<Serving> + Send + Sync>;

/// Hears of what a session failed for, such as a log that cannot be read. Called with no lock held.
pub type OnFailed = Box<dyn Fn(&RepError) + Send + Sync>;

impl RestoreProvider {
    /// A provider for the log and state machine of the node named `node`. A session begins if
    /// `may_serve` lets it: what a session is to reach is the end of an established master's log.
    pub fn new(
        node: Name,
        log: Log,
        machine: Arc<dyn StateMachine>,
        may_serve: MayServe,
        on_failed: OnFailed,
    ) -> Self {
        Self { node, log, machine, may_serve, on_failed, sessions: AtomicUsize::new(0) }
    }

    /// Serves one session to its end.
    ///
    /// # Errors
    /// Those of the channel and the log; what the node may know of them it has been told.
    pub fn run(&self, channel: &dyn Channel) -> Result<()> {
        let served = self.serve_session(channel);
        if let Err(error) = &served
            && !error.is_disconnect()
        {
            (self.on_failed)(error);
            let _ = channel.send(&RestoreMsg::Failure { reason: error.to_string() }.encode());
        }
        channel.close();
        served.map_err(|error| error.with_peer(|| channel.peer()))
    }

    fn serve_session(&self, channel: &dyn Channel) -> Result<()> {
        let opening = receive(channel)?;
        let RestoreMsg::Open { group, node, kind, .. } = opening else {
            return Err(RepError::protocol("", "Open", opening.name()));
        };
        let mine = self
            .log
            .group()
            .ok_or_else(|| LogError::NotFounded { dir: self.log.dir().to_owned() })?;
        if let Some(theirs) = group
            && theirs != mine.id
        {
            let (name, ours) = (mine.name, mine.id);
            return Err(
                crate::wire::handshake::RejectReason::WrongGroup { name, ours, theirs }.into()
            );
        }
        let term = (self.may_serve)()?.term;
        // The log may hold commits that are finished but not sealed yet.
        self.log.seal_through(self.log.control().state().commit_floor)?;
        let (mut session, head, offers) = self.begin(mine, &node, term)?;
        match FeedLimit::of(kind) {
            FeedLimit::All => {}
            FeedLimit::Dtvlsn => self.await_durable(channel, term, head.target)?,
        }
        tracing::info!(%node, segments = offers.len(), target = %head.target, "restore begins");
        channel.send(&RestoreMsg::Manifest(head).encode())?;
        for offer in offers {
            channel.send(&RestoreMsg::Segment(offer).encode())?;
        }
        loop {
            let question = receive(channel)?;
            session.pin.check()?;
            match question {
                RestoreMsg::BlockRequest { request, segment, block } => {
                    let bytes = session.block(segment, block)?;
                    send(channel, &RestoreMsg::Block { request, bytes })?;
                }
                RestoreMsg::CheckpointRequest { request, offset } => {
                    let chunk = session.checkpoint_chunk(request, offset)?;
                    send(channel, &chunk)?;
                }
                RestoreMsg::TailRequest { request, from } => {
                    session.tail(channel, request, from)?;
                }
                RestoreMsg::Done => {
                    session.pin.set_grace(RETURN_GRACE);
                    return Ok(());
                }
                other => return Err(RepError::protocol("", "a question", other.name())),
            }
        }
    }

    /// Pins the front and takes stock.
    fn begin(
        &self,
        group: noxu_log::GroupIdentity,
        node: &Name,
        term: Term,
    ) -> Result<(Session<'_>, ManifestHead, Vec<SegmentOffer>)> {
        let pin = self.log.pin_front(Holder::new(HolderKind::Restore, node.as_str()))?;
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut session = Session {
            provider: self,
            pin,
            open: None,
            lengths: BTreeMap::new(),
            checkpoint: None,
            checkpoint_offset: 0,
            target: NULL_VLSN,
        };
        // Behind the pin; a budget may have moved the front since, when the first answer says so.
        let anchor = self.log.positions().anchor;
        // The checkpoint before the target: so the target is never below it.
        let mut checkpoint = None;
        if !anchor.vlsn.is_null() {
            let opened = self.machine.open_checkpoint()?;
            checkpoint = Some(opened.vlsn());
            session.checkpoint = Some(opened);
        }
        let mut offers = Vec::new();
        for sealed in self.log.sealed_segments() {
            let digests = self.log.block_digests(sealed.number)?;
            session.lengths.insert(sealed.number, sealed.bytes);
            offers.push(SegmentOffer {
                number: sealed.number,
                bytes: sealed.bytes,
                digest: *digests.segment.as_bytes(),
                blocks: digests.blocks.iter().map(|block| *block.as_bytes()).collect(),
            });
        }
        let control = self.log.control().state();
        let end = self.log.positions();
        // That end is what a master of this term has: not if it was deposed before, whatever term its
        // control file has by now.
        self.check_serving(term)?;
        session.target = end.last;
        let head = ManifestHead {
            group,
            provider: self.node.clone(),
            term,
            anchor,
            group_config: control.group_config,
            checkpoint,
            target: end.last,
            target_fingerprint: end.last_fingerprint,
            segments: offers.len() as u32,
        };
        Ok((session, head, offers))
    }

    /// Waits until everything through `target` is durable on a quorum, and so can no longer be rolled
    /// back, as long as the node at the other end does.
    fn await_durable(&self, channel: &dyn Channel, term: Term, target: Vlsn) -> Result<()> {
        let mut looks = SESSION_TIMEOUT.as_millis() / DURABLE_LOOK.as_millis();
        while self.check_serving(term)?.dtvlsn < target {
            if looks == 0 {
                return Err(RepError::silent(channel.peer(), "a quorum", SESSION_TIMEOUT));
            }
            looks -= 1;
            if let Some(frame) = channel.receive(DURABLE_LOOK)? {
                let found = RestoreMsg::decode(&frame)?;
                return Err(RepError::protocol("", "no question before the answer", found.name()));
            }
        }
        Ok(())
    }

    /// Refuses if this node is not master of `term`, or not any more.
    fn check_serving(&self, term: Term) -> Result<Serving> {
        let serving = (self.may_serve)()?;
        if serving.term == term { Ok(serving) } else { Err(RepError::NotMaster { master: None }) }
    }
}

impl ServiceHandler for RestoreProvider {
    fn admit(&self, _peer: &str) -> Admission {
        if self.sessions.load(Ordering::Relaxed) < MAX_SESSIONS {
            Admission::Accept
        } else {
            Admission::Busy
        }
    }

    fn serve(&self, channel: Arc<dyn Channel>) {
        match self.run(&*channel) {
            Ok(()) => tracing::info!(peer = channel.peer(), "restore served"),
            Err(error) => tracing::info!("restore ended: {error}"),
        }
    }
}

/// One restoring node's session; its pin goes with it.
struct Session<'a> {
    provider: &'a RestoreProvider,
    /// On the front of the log as it was when the session began.
    pin: Pin,
    /// The segment read last: its number, its file, what its blocks are to be.
    open: Option<(u32, Arc<dyn EnvFile>, Digests)>,
    /// Lengths of the segments offered.
    lengths: BTreeMap<u32, u32>,
    checkpoint: Option<Box<dyn Checkpoint>>,
    checkpoint_offset: u64,
    /// The end of the log as it was when the session began: entries beyond it are not given.
    target: Vlsn,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.provider.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session<'_> {
    fn block(&mut self, segment: u32, block: u32) -> Result<Vec<u8>> {
        let length = self.lengths.get(&segment).copied().unwrap_or(0);
        let offset = u64::from(block) * u64::from(BLOCK_BYTES);
        let left = u64::from(length).saturating_sub(offset).min(u64::from(BLOCK_BYTES));
        if left == 0 {
            let found = format!("block {block} of segment {segment}");
            return Err(RepError::protocol("", "a block that was offered", found));
        }
        let log = &self.provider.log;
        let path = log_dir(log.dir()).join(segment_name(segment));
        let wrap = |e| LogError::io("read", &path, e);
        if self.open.as_ref().is_none_or(|(number, ..)| *number != segment) {
            let file = log.env().open(&path, OpenMode::Read).map_err(wrap)?;
            self.open = Some((segment, file, log.block_digests(segment)?));
        }
        let (_, file, digests) = self.open.as_ref().expect("opened before or now");
        let mut bytes = vec![0; left as usize];
        let read = file.read_at(&mut bytes, offset).map_err(wrap)?;
        bytes.truncate(read);
        // Who asks would find it out, but only this node can do something about it.
        let (expected, found) = (digests.blocks.get(block as usize), blake3::hash(&bytes));
        if expected != Some(&found) {
            return Err(LogError::Corrupt {
                segment,
                offset,
                expected: expected
                    .map_or_else(|| "no block".to_owned(), |of| format!("digest {of}")),
                found: format!("digest {found}"),
            }
            .into());
        }
        Ok(bytes)
    }

    fn checkpoint_chunk(&mut self, request: u64, offset: u64) -> Result<RestoreMsg> {
        let checkpoint = match &mut self.checkpoint {
            Some(checkpoint) if offset == self.checkpoint_offset => checkpoint,
            _ => {
                let found = format!("a request for the checkpoint at {offset}");
                let expected = format!("one at {}, if one was offered", self.checkpoint_offset);
                return Err(RepError::protocol("", expected, found));
            }
        };
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        let mut more = true;
        while more && bytes.len() < CHUNK_BYTES {
            let room = CHUNK_BYTES - bytes.len();
            more = checkpoint.read(&mut bytes, room)?;
        }
        self.checkpoint_offset += bytes.len() as u64;
        let digest = *blake3::hash(&bytes).as_bytes();
        Ok(RestoreMsg::CheckpointChunk { request, offset, last: !more, digest, bytes })
    }

    fn tail(&self, channel: &dyn Channel, request: u64, from: Vlsn) -> Result<()> {
        let log = &self.provider.log;
        let within =
            (from <= self.target).then(|| log.read_through(from, self.target, CHUNK_BYTES));
        let Some(run) = within.transpose()?.flatten() else {
            let found = format!("a request for entry {from}");
            return Err(RepError::protocol("", "an entry that was offered", found));
        };
        let mut bytes = run.parts.concat();
        loop {
            let rest = bytes.split_off(bytes.len().min(CHUNK_BYTES));
            let more = !rest.is_empty();
            send(channel, &RestoreMsg::TailRun { request, more, bytes })?;
            if !more {
                return Ok(());
            }
            bytes = rest;
        }
    }
}

fn send(channel: &dyn Channel, message: &RestoreMsg) -> Result<()> {
    let (head, payload) = message.encode_parts();
    channel.send_vectored(&[&head, payload])
}

fn receive(channel: &dyn Channel) -> Result<RestoreMsg> {
    match channel.receive(SESSION_TIMEOUT)? {
        Some(frame) => RestoreMsg::decode(&frame),
        None => Err(RepError::silent(channel.peer(), "a question", SESSION_TIMEOUT)),
    }
}
