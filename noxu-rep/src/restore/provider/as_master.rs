//! AsMaster: what a node gives as master to one that restores from it: the manifest, where the restore
//! is to end, and the entries behind the segments.
//!
//! # Invariants
//! - What was offered stays in the log until the node has said that it is durable there, or the session
//!   ends: the pin is on the first entry that it still needs.
//! - Nothing is given in a term of which this node is not master any more.
//! - A node without a vote is given nothing that is not durable on a quorum.

use std::time::Duration;

use noxu_log::{Holder, HolderKind, Pin, SealedSegment};
use noxu_util::{Fingerprint, GroupId, Name, Term, Vlsn};

use super::offers::Method;
use super::{RestoreProvider, Serving, Session, Taker, fingerprint_at, send};
use crate::core::feeder::FeedLimit;
use crate::core::recovery::{Progress, RecoveryId};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::sync::method::LogPart;
use crate::wire::restore::{ManifestHead, MethodId, Refused, RestoreMsg, SegmentOffer};

/// How long the log stays for a node whose connection has ended: it is to return, to go on with the
/// restore or as a replica.
const RETURN_GRACE: Duration = Duration::from_mins(1);

/// Bytes of entries in one frame.
const FRAME_BYTES: usize = 1 << 20;

/// Most bytes of entries in one answer, but for a longer entry.
const MAX_LIVE_BYTES: usize = 4 << 20;

/// What a session with a master has besides.
pub(super) struct AsMaster {
    /// On the first entry that the node still needs.
    pin: Pin,
    term: Term,
    limit: FeedLimit,
    node: Name,
    recovery: RecoveryId,
    /// Where the restore is to end.
    cut: Option<Vlsn>,
}

impl RestoreProvider {
    /// A session with a node that restores from this master.
    pub(super) fn open(
        &self,
        channel: &dyn Channel,
        theirs: Option<GroupId>,
        Taker { node, recovery, kind, methods }: Taker,
    ) -> Result<Session<'_>> {
        let group = self.group(theirs)?;
        let method = methods.iter().find_map(|method| self.offers.find(method));
        let Some(at) = method else {
            let theirs: Vec<_> = methods.iter().map(|method| method.name.as_str()).collect();
            let reason = format!("no method is known here as it is there: {}", theirs.join(", "));
            return Err(RepError::RestoreRefused { peer: node.to_string(), reason });
        };
        let Method { id: MethodId { name: method_name, .. }, log_part, .. } =
            self.offers.method(at);
        let serving = self.host.serving()?;
        let term = serving.term;
        // The log may hold commits that are finished but not sealed yet: what is sealed others give too.
        let durable = serving.dtvlsn.min(self.log.positions().durable);
        self.log.seal_through(self.log.control().state().commit_floor.max(durable))?;
        let mut pin = self.log.pin_front(Holder::new(HolderKind::Restore, node.as_str()))?;
        pin.set_grace(RETURN_GRACE);
        let limit = FeedLimit::of(kind);
        // Behind the pin; a budget may have moved the front since, when the first answer says so. The
        // end comes after the segments, so that it is not before them.
        let mut sealed = self.log.sealed_segments();
        let end = self.log.positions();
        let base = match sealed.last() {
            None => end.anchor.clone(),
            Some(last) => self.log.anchor_behind(last.number)?,
        };
        let anchor = match log_part {
            LogPart::Whole => end.anchor,
            LogPart::Newest => {
                sealed.clear();
                base.clone()
            }
        };
        let cut = None;
        let role = AsMaster { pin, term, limit, node, recovery, cut };
        // That end is what a master of this term has: not if it was deposed before, whatever term its
        // control file has by now.
        let serving = role.serving(self)?;
        let (target, target_fingerprint) = match limit {
            FeedLimit::All => (end.last, end.last_fingerprint),
            FeedLimit::Dtvlsn => {
                let durable = serving.dtvlsn.min(end.last).max(base.vlsn);
                (durable, fingerprint_at(&self.log, durable)?)
            }
        };
        let head = ManifestHead {
            group,
            provider: self.node.clone(),
            term,
            method: method_name.clone(),
            anchor,
            group_config: self.log.control().state().group_config,
            base,
            target,
            target_fingerprint,
            sources: self.others_than(&role.node),
            segments: sealed.len() as u32,
        };
        tracing::info!(node = %role.node, segments = sealed.len(), %target, "restore begins");
        send(channel, &RestoreMsg::Manifest(Box::new(head)))?;
        for sealed in &sealed {
            send(channel, &RestoreMsg::Segment(self.offer(sealed)?))?;
        }
        let lengths = sealed.iter().map(|sealed| (sealed.number, sealed.bytes)).collect();
        Ok(Session::new(self, Some(role), lengths, Some(at)))
    }

    fn offer(&self, sealed: &SealedSegment) -> Result<SegmentOffer> {
        let digests = self.log.block_digests(sealed.number)?;
        Ok(SegmentOffer {
            number: sealed.number,
            bytes: sealed.bytes,
            digest: *digests.segment.as_bytes(),
            blocks: digests.blocks.iter().map(|block| *block.as_bytes()).collect(),
        })
    }
}

impl AsMaster {
    /// Refuses if this node is not master of the session's term, or not any more.
    pub(super) fn serving(&self, provider: &RestoreProvider) -> Result<Serving> {
        let serving = provider.host.serving()?;
        if serving.term == self.term {
            Ok(serving)
        } else {
            Err(RepError::NotMaster { master: None })
        }
    }

    /// Whether what was offered is still kept for the node.
    pub(super) fn check(&self) -> Result<()> {
        Ok(self.pin.check()?)
    }

    /// Nothing before `needed` is needed any more.
    pub(super) fn release(&self, needed: Vlsn) {
        self.pin.advance(needed);
    }

    /// Where the restore is to end, once that is settled.
    pub(super) const fn cut(&self) -> Option<Vlsn> {
        self.cut
    }

    /// Takes note of how far the node is, and settles where the restore is to end: once everything is
    /// there but the entries, so that it ends however much is written.
    pub(super) fn settle_cut(
        &mut self,
        provider: &RestoreProvider,
        serving: Serving,
        needed: Vlsn,
        progress: Progress,
    ) -> Result<()> {
        self.release(needed);
        let said = if self.recovery == RecoveryId::NONE {
            None
        } else {
            provider.host.handle_progress(&self.node, self.recovery, progress)?
        };
        if said.is_some() {
            self.cut = said;
        } else if progress.base_done && self.cut.is_none() {
            self.cut = Some(self.last(provider, serving));
        }
        Ok(())
    }

    /// The last entry that the node may have.
    fn last(&self, provider: &RestoreProvider, serving: Serving) -> Vlsn {
        let last = provider.log.positions().last;
        match self.limit {
            FeedLimit::All => last,
            FeedLimit::Dtvlsn => serving.dtvlsn.min(last),
        }
    }

    /// Entries from `from` on, whole, if the one before it is `previous`.
    pub(super) fn live(
        &self,
        provider: &RestoreProvider,
        serving: Serving,
        (from, previous): (Vlsn, Fingerprint),
        most: usize,
    ) -> Result<Live> {
        let log = &provider.log;
        let end = log.positions();
        if from.is_null() || from <= end.anchor.vlsn {
            return Ok(Live::Refused(Refused::Gone));
        }
        if from.prev() > end.last || fingerprint_at(log, from.prev())? != previous {
            return Ok(Live::Refused(Refused::Parted));
        }
        let last = self.last(provider, serving);
        let most = most.min(MAX_LIVE_BYTES);
        let run = if most == 0 || from > last { None } else { log.read_through(from, last, most)? };
        Ok(Live::Run(last, run.map_or_else(Vec::new, |run| run.parts.concat())))
    }
}

/// What there is of the entries that were asked for.
pub(super) enum Live {
    /// The last one that could be had, and the bytes of some.
    Run(Vlsn, Vec<u8>),
    /// None, for this reason.
    Refused(Refused),
}

impl Live {
    /// Answers question `request` with it.
    pub(super) fn send(self, channel: &dyn Channel, request: u64, cut: Option<Vlsn>) -> Result<()> {
        let cut = cut.unwrap_or_default();
        let (last, bytes) = match self {
            Self::Refused(why) => return send(channel, &RestoreMsg::Refusal { request, why }),
            Self::Run(last, bytes) => (last, bytes),
        };
        let mut rest = &bytes[..];
        loop {
            let (part, behind) = rest.split_at(rest.len().min(FRAME_BYTES));
            let more = !behind.is_empty();
            send(channel, &RestoreMsg::LiveRun { request, more, last, cut, bytes: part.into() })?;
            if !more {
                return Ok(());
            }
            rest = behind;
        }
    }
}
