//! BlockSource: a peer's restore service, as a node uses it that lacks only some blocks of its own
//! sealed segments.
//!
//! # Invariants
//! - One question is under way at a time; an answer with another number is late, and dropped.
//! - Nothing that comes is believed here: whoever asks knows the digest, or the chain.
//!
//! # Not here: the provider's half (provider.rs), what is asked of whom (driver/disk_mending.rs).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use noxu_util::{GroupId, Name};

use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::wire::restore::{BLOCK_BYTES, RestoreMsg};

/// How long one answer may take: the peer reads a block from its disk at most.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that gives blocks of its sealed segments. Dropped, its connection is closed.
pub struct BlockSource {
    channel: Arc<dyn Channel>,
    /// Digests of its sealed segments.
    holdings: BTreeMap<u32, [u8; 32]>,
    /// Other nodes that it knows, and where they are reached.
    others: Vec<(Name, String)>,
    requests: u64,
    keeps_doubts: bool,
}

impl BlockSource {
    /// Asks the peer at the other end of `channel` what it has. `group` and `node` are this node's.
    ///
    /// # Errors
    /// The channel's; `RestoreRefused`, `ProtocolError`, `NetworkError`.
    pub fn attach(channel: Arc<dyn Channel>, group: GroupId, node: &Name) -> Result<Self> {
        let (holdings, others) = (BTreeMap::new(), Vec::new());
        let mut source = Self { channel, holdings, others, requests: 0, keeps_doubts: false };
        source
            .channel
            .send(&RestoreMsg::Attach { group, node: node.clone(), method: None }.encode())?;
        let frame = source.receive("what it has")?;
        (source.holdings, source.others) = match source.decode(&frame)? {
            RestoreMsg::Holdings { segments, others, .. } => {
                (segments.into_iter().collect(), others)
            }
            other => return Err(source.unexpected("Holdings", &other)),
        };
        Ok(source)
    }

    /// Other nodes that may have the same segments, as far as it knows, and where they are reached.
    pub fn others(&self) -> &[(Name, String)] {
        &self.others
    }

    /// Digest of its segment `segment`; `None` if it has none that is sealed.
    pub fn digest(&self, segment: u32) -> Option<[u8; 32]> {
        self.holdings.get(&segment).copied()
    }

    /// Block `block` of `segment`, which it has; `None` if it has it no more. It ends the connection if
    /// its segment has no such block.
    ///
    /// # Errors
    /// The channel's; `RestoreRefused`, `ProtocolError`, `NetworkError`.
    pub fn block(&mut self, segment: u32, block: u32) -> Result<Option<Vec<u8>>> {
        self.requests += 1;
        let asked = self.requests;
        let question = RestoreMsg::BlockRequest { request: asked, segment, block };
        self.channel.send(&question.encode())?;
        loop {
            let frame = self.receive("a block")?;
            match self.decode(&frame)? {
                RestoreMsg::Block { request, bytes } if request == asked => {
                    if bytes.len() > BLOCK_BYTES as usize {
                        let found = format!("{} bytes", bytes.len());
                        return Err(RepError::protocol(self.channel.peer(), "a block", found));
                    }
                    return Ok(Some(bytes.into_owned()));
                }
                RestoreMsg::Refusal { request, .. } if request == asked => {
                    self.holdings.remove(&segment);
                    return Ok(None);
                }
                RestoreMsg::Block { request, .. } | RestoreMsg::Refusal { request, .. }
                    if request < asked => {}
                other => return Err(self.unexpected("Block", &other)),
            }
        }
    }

    /// Whether [`BlockSource::doubt`] tells the peer nothing from now on.
    pub fn keep_doubts(&mut self, keeps: bool) {
        self.keeps_doubts = keeps;
    }

    /// What came of that block is not what it should be: the peer is to look at its own disk.
    pub fn doubt(&self, segment: u32, block: u32) {
        if self.keeps_doubts {
            return;
        }
        // If it does not hear of it, its own scrub will tell it.
        let _ = self.channel.send(&RestoreMsg::Doubt { segment, block }.encode());
    }

    fn receive(&self, awaited: &str) -> Result<Vec<u8>> {
        let frame = self.channel.receive(ANSWER_TIMEOUT)?;
        frame.ok_or_else(|| RepError::silent(self.channel.peer(), awaited, ANSWER_TIMEOUT))
    }

    fn decode<'a>(&self, frame: &'a [u8]) -> Result<RestoreMsg<'a>> {
        match RestoreMsg::decode(frame)? {
            RestoreMsg::Failure { reason } => {
                Err(RepError::RestoreRefused { peer: self.channel.peer(), reason })
            }
            message => Ok(message),
        }
    }

    fn unexpected(&self, expected: &'static str, found: &RestoreMsg<'_>) -> RepError {
        RepError::protocol(self.channel.peer(), expected, found.name())
    }
}

impl Drop for BlockSource {
    fn drop(&mut self) {
        self.channel.close();
    }
}
