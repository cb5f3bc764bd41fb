//! RestoreProvider: what a node gives to one that restores: its sealed segments, its state, and, as master, the manifest and the entries after the segments.
//!
//! # Invariants
//! - What a master offered stays in its log until the restoring node has said that it is durable there,
//!   or the session ends: it holds a pin, and looks whether it still has it before each answer.
//! - A question is answered from what was offered or not at all.
//! - A node without a vote is given nothing that is not durable on a quorum.
//!
//! # Not here: what only a master gives (provider/as_master.rs); what becomes of an offer of the
//! state whose connection broke (provider/offers.rs).

mod as_master;
mod offers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use noxu_log::env::{EnvFile, OpenMode};
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_log::{GroupIdentity, Log, LogError};
use noxu_util::{Fingerprint, GroupId, Name, Term, Vlsn};

use self::as_master::AsMaster;
use self::offers::OpenOffer;
pub use self::offers::StateOffers;
use crate::core::recovery::{FailReason, Progress, RecoveryId};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{Admission, ServiceHandler};
use crate::sync::method::{MAX_ANSWER_BYTES, Proof};
use crate::wire::handshake::{NodeKind, RejectReason};
use crate::wire::restore::{Abandoned, BLOCK_BYTES, MAX_SOURCES, MethodId, Refused, RestoreMsg};

// The wire's sizes are the disk's; the wire must not name disk types, so it is checked here.
const _: () = assert!(
    crate::wire::restore::BLOCK_BYTES == noxu_log::segment::side_file::BLOCK_BYTES
        && crate::wire::restore::SEGMENT_HEAD_BYTES == noxu_log::segment::SEGMENT_HEADER_BYTES
);

/// Silence of the restoring node after which a session ends and its pin goes.
pub const SESSION_TIMEOUT: Duration = Duration::from_mins(1);

/// Most sessions at once; each may keep the front of the log from being dropped.
pub const MAX_SESSIONS: usize = 4;

/// A node as its provider sees it.
pub trait ProviderHost: Send + Sync {
    /// The mastership in which it gives its log away.
    ///
    /// # Errors
    /// `NotMaster` if it is not an established master.
    fn serving(&self) -> Result<Serving>;

    /// Nodes that may have the same segments: those that follow this one.
    fn sources(&self) -> Vec<(Name, String)>;

    /// A session failed for this, such as a log that cannot be read. Called with no lock held.
    fn handle_failed(&self, cause: &RepError);

    /// The node of this name has begun the restore that a verdict told it to.
    fn handle_begun(&self, _node: &Name, _recovery: RecoveryId) {}

    /// It is this far. Returns where the restore is to end, once that is settled.
    ///
    /// # Errors
    /// If it is to go on no more.
    fn handle_progress(
        &self,
        _node: &Name,
        _recovery: RecoveryId,
        _progress: Progress,
    ) -> Result<Option<Vlsn>> {
        Ok(None)
    }

    /// [`StateOffers::expire`] is due then.
    fn expect_timeout(&self, _due: Duration) {}

    /// It is over.
    fn handle_ended(&self, _node: &Name, _recovery: RecoveryId, _how: RestoreEnd) {}
}

/// How a restore ended, as its master sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreEnd {
    /// The node has everything through this entry.
    Done(Vlsn),
    /// It failed.
    Failed(FailReason),
    /// Nobody knows: the connection broke.
    BrokenOff,
}

/// The mastership in which a node gives its log away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Its term.
    pub term: Term,
    /// Everything through it is durable on a quorum.
    pub dtvlsn: Vlsn,
}

/// Serves restores from one node's log and state machine.
pub struct RestoreProvider {
    node: Name,
    log: Log,
    offers: Arc<StateOffers>,
    host: Box<dyn ProviderHost>,
    sessions: AtomicUsize,
}

impl RestoreProvider {
    /// A provider for the log and the state of the node named `node`. Whoever made `offers` has them
    /// expire.
    pub fn new(
        node: Name,
        log: Log,
        offers: Arc<StateOffers>,
        host: Box<dyn ProviderHost>,
    ) -> Self {
        Self { node, log, offers, host, sessions: AtomicUsize::new(0) }
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// Those of the channel and the log; what the node may know of them it has been told.
    pub fn run(&self, channel: &dyn Channel) -> Result<()> {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let served = self.serve_session(channel);
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = &served
            && !error.is_disconnect()
        {
            self.host.handle_failed(error);
            let _ = channel.send(&RestoreMsg::Failure { reason: error.to_string() }.encode());
        }
        channel.close();
        served.map_err(|error| error.with_peer(|| channel.peer()))
    }

    fn serve_session(&self, channel: &dyn Channel) -> Result<()> {
        let mut frame = Vec::new();
        let mut session = match receive(channel, &mut frame)? {
            RestoreMsg::Open { recovery, group, node, kind, methods, .. } => {
                let who = Taker { node, recovery: RecoveryId(recovery), kind, methods };
                return self.serve_master(channel, group, who);
            }
            RestoreMsg::Attach { group, node, method } => {
                self.attach(channel, group, &node, method.as_ref())?
            }
            other => return Err(RepError::protocol("", "Open or Attach", other.name())),
        };
        session.answer_all(channel).map(drop)
    }

    /// A session as master, of which the node's recovery hears.
    fn serve_master(
        &self,
        channel: &dyn Channel,
        group: Option<GroupId>,
        who: Taker,
    ) -> Result<()> {
        let (node, recovery) = (who.node.clone(), who.recovery);
        let ended = self.open(channel, group, who).and_then(|mut session| {
            self.host.handle_begun(&node, recovery);
            session.answer_all(channel)
        });
        let how = match &ended {
            Ok(how) => *how,
            Err(RepError::Log(LogError::LostPlace { .. })) => {
                RestoreEnd::Failed(FailReason::PinLost)
            }
            Err(_) => RestoreEnd::BrokenOff,
        };
        self.host.handle_ended(&node, recovery, how);
        ended.map(drop)
    }

    /// A session with a node that restores what another one named.
    fn attach(
        &self,
        channel: &dyn Channel,
        theirs: GroupId,
        node: &Name,
        method: Option<&MethodId>,
    ) -> Result<Session<'_>> {
        self.group(Some(theirs))?;
        let sealed = self.log.sealed_segments();
        tracing::info!(%node, segments = sealed.len(), "gives to a restore");
        let method = method.and_then(|method| self.offers.find(method));
        let segments = sealed.iter().map(|sealed| (sealed.number, *sealed.digest.as_bytes()));
        let (state, segments) = (method.is_some(), segments.collect());
        let others = self.others_than(node);
        send(channel, &RestoreMsg::Holdings { state, segments, others })?;
        let lengths = sealed.iter().map(|sealed| (sealed.number, sealed.bytes)).collect();
        Ok(Session::new(self, None, lengths, method))
    }

    /// Nodes that may have the same segments, without the one that asks.
    fn others_than(&self, node: &Name) -> Vec<(Name, String)> {
        let others = self.host.sources().into_iter().filter(|(name, _)| name != node);
        others.take(MAX_SOURCES).collect()
    }

    /// This node's group, which has to be theirs.
    fn group(&self, theirs: Option<GroupId>) -> Result<GroupIdentity> {
        let mine = self.log.group();
        let mine = mine.ok_or_else(|| LogError::NotFounded { dir: self.log.dir().to_owned() })?;
        match theirs {
            Some(theirs) if theirs != mine.id => {
                let (name, ours) = (mine.name, mine.id);
                Err(RejectReason::WrongGroup { name, ours, theirs }.into())
            }
            _ => Ok(mine),
        }
    }
}

/// A node that restores from this one as its master.
struct Taker {
    node: Name,
    recovery: RecoveryId,
    kind: NodeKind,
    methods: Vec<MethodId>,
}

/// The fingerprint of an entry of the log, or of its anchor.
fn fingerprint_at(log: &Log, vlsn: Vlsn) -> Result<Fingerprint> {
    let anchor = log.positions().anchor;
    if vlsn <= anchor.vlsn {
        return if vlsn == anchor.vlsn {
            Ok(anchor.fingerprint)
        } else {
            Err(LogError::Gap { requested: vlsn, first: anchor.vlsn.next() }.into())
        };
    }
    let found = log.header(vlsn)?.map(|(header, _)| header.fingerprint);
    found.ok_or_else(|| RepError::protocol("", "an entry of the log", format!("entry {vlsn}")))
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

/// One connection of a restoring node.
struct Session<'a> {
    provider: &'a RestoreProvider,
    /// `None` if another node is master of this restore.
    role: Option<AsMaster>,
    /// The segment read last: its number and its file.
    open: Option<(u32, Arc<dyn EnvFile>)>,
    /// Lengths of the segments offered.
    lengths: BTreeMap<u32, u32>,
    /// By which the state comes, if this node has it.
    method: Option<usize>,
    state: Option<OpenOffer>,
    /// The block or answer read last.
    buffer: Vec<u8>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let until = self.provider.offers.keep(state);
            self.provider.host.expect_timeout(until);
        }
    }
}

impl<'a> Session<'a> {
    fn new(
        provider: &'a RestoreProvider,
        role: Option<AsMaster>,
        lengths: BTreeMap<u32, u32>,
        method: Option<usize>,
    ) -> Self {
        let (open, state, buffer) = (None, None, Vec::new());
        Self { provider, role, open, lengths, method, state, buffer }
    }

    /// Answers until the node has everything, or gives up.
    fn answer_all(&mut self, channel: &dyn Channel) -> Result<RestoreEnd> {
        let (provider, mut frame) = (self.provider, Vec::new());
        loop {
            let question = receive(channel, &mut frame)?;
            self.check()?;
            match question {
                RestoreMsg::BlockRequest { request, segment, block } => {
                    let answer = match self.block(segment, block)? {
                        Some(bytes) => RestoreMsg::Block { request, bytes: bytes.into() },
                        None => RestoreMsg::Refusal { request, why: Refused::Gone },
                    };
                    send(channel, &answer)?;
                }
                RestoreMsg::Doubt { segment, block } => self.verify(segment, block)?,
                RestoreMsg::StateOpen { request, id } => {
                    send(channel, &self.open_state(request, id)?)?;
                }
                RestoreMsg::StateRequest { request, question } => {
                    send(channel, &self.answer_state(request, &question)?)?;
                }
                RestoreMsg::LiveRequest { request, from, previous, most, needed, progress } => {
                    let Some(role) = &mut self.role else {
                        let found = "LiveRequest";
                        return Err(RepError::protocol("", "a question to a follower", found));
                    };
                    let serving = role.serving(provider)?;
                    // Of how far the node is a question about one entry says nothing.
                    if most > 0 {
                        role.settle_cut(provider, serving, needed, progress)?;
                    }
                    let live = role.live(provider, serving, (from, previous), most as usize)?;
                    live.send(channel, request, role.cut())?;
                }
                RestoreMsg::Done { needed, durable } => {
                    if let Some(role) = &self.role {
                        role.release(needed);
                    }
                    if let Some(state) = self.state.take() {
                        provider.offers.release(&state);
                    }
                    return Ok(RestoreEnd::Done(durable));
                }
                RestoreMsg::Abandon { why } => {
                    return Ok(RestoreEnd::Failed(match why {
                        Abandoned::NoSpace => FailReason::NoSpace,
                        Abandoned::Corrupt => FailReason::Corrupt,
                        Abandoned::Superseded => FailReason::Cancelled,
                    }));
                }
                other => return Err(RepError::protocol("", "a question", other.name())),
            }
        }
    }

    /// Whether what was offered is still kept for it.
    fn check(&self) -> Result<()> {
        match &self.role {
            Some(role) => role.check(),
            None => Ok(()),
        }
    }

    /// A block of an offered segment; `None` if that has gone.
    fn block(&mut self, segment: u32, block: u32) -> Result<Option<&[u8]>> {
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
        if self.open.as_ref().is_none_or(|(number, _)| *number != segment) {
            match log.env().open(&path, OpenMode::Read) {
                Ok(file) => self.open = Some((segment, file)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(wrap(e).into()),
            }
        }
        let (_, file) = self.open.as_ref().expect("opened before or now");
        self.buffer.resize(self.buffer.len().max(BLOCK_BYTES as usize), 0);
        let read = file.read_at(&mut self.buffer[..left as usize], offset).map_err(wrap)?;
        Ok(Some(&self.buffer[..read]))
    }

    /// The node had another block than was promised: only this node can do something about it, if what
    /// it has is damaged.
    fn verify(&mut self, segment: u32, block: u32) -> Result<()> {
        let provider = self.provider;
        // Another file may have taken its place since it was opened.
        self.open = None;
        let Some(bytes) = self.block(segment, block)? else { return Ok(()) };
        let found = blake3::hash(bytes);
        let digests = provider.log.block_digests(segment)?;
        let expected = digests.blocks.get(block as usize);
        if expected != Some(&found) {
            let cause = LogError::Corrupt {
                segment,
                offset: u64::from(block) * u64::from(BLOCK_BYTES),
                expected: expected.map_or("no block".to_owned(), |of| format!("digest {of}")),
                found: format!("digest {found}"),
            };
            provider.host.handle_failed(&cause.into());
        }
        Ok(())
    }

    fn open_state(&mut self, request: u64, id: u64) -> Result<RestoreMsg<'_>> {
        let provider = self.provider;
        let none = || RepError::protocol("", "a method that is here", "StateOpen");
        let method = self.method.ok_or_else(none)?;
        if let Some(former) = self.state.take() {
            provider.offers.release(&former);
        }
        let open = self.state.insert(provider.offers.open(&provider.log, method, id)?);
        let Proof { vlsn, fingerprint } = open.proof;
        let (id, head) = (open.offer.id, open.offer.head.as_slice().into());
        Ok(RestoreMsg::StateOpened { request, id, vlsn, fingerprint, head })
    }

    fn answer_state(&mut self, request: u64, question: &[u8]) -> Result<RestoreMsg<'_>> {
        let provider = self.provider;
        let none = || RepError::protocol("", "StateOpen", "StateRequest");
        let open = self.state.as_ref().ok_or_else(none)?;
        let proof = provider.offers.read(&provider.log, open, question, &mut self.buffer)?;
        if self.buffer.len() > MAX_ANSWER_BYTES {
            let found = format!("{} bytes", self.buffer.len());
            let expected = format!("an answer of at most {MAX_ANSWER_BYTES} bytes");
            return Err(RepError::protocol("", expected, found));
        }
        let Proof { vlsn, fingerprint } = proof;
        let (digest, bytes) = (*blake3::hash(&self.buffer).as_bytes(), (&self.buffer[..]).into());
        Ok(RestoreMsg::StateAnswer { request, vlsn, fingerprint, digest, bytes })
    }
}

fn send(channel: &dyn Channel, message: &RestoreMsg<'_>) -> Result<()> {
    let (head, payload) = message.encode_parts();
    channel.send_vectored(&[&head, payload])
}

/// The next question, in `frame`.
fn receive<'a>(channel: &dyn Channel, frame: &'a mut Vec<u8>) -> Result<RestoreMsg<'a>> {
    if channel.receive_into(frame, SESSION_TIMEOUT)? {
        return RestoreMsg::decode(frame);
    }
    Err(RepError::silent(channel.peer(), "a question", SESSION_TIMEOUT))
}
