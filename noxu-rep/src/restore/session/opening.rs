//! Opening: what the master offers, and what an earlier session left that still fits it.

use noxu_log::install::known_floor;
use noxu_util::Vlsn;

use super::super::base::Base;
use super::super::manifest::{LIVE, Manifest, hint};
use super::super::staged::Staged;
use super::Fetch;
use crate::core::recovery::Progress;
use crate::error::{RepError, Result};
use crate::wire::handshake::RejectReason;
use crate::wire::restore::{Refused, RestoreMsg};

/// An open session.
pub(super) struct Opening {
    /// What is to be fetched.
    pub(super) manifest: Manifest,
    /// Questions asked so far.
    pub(super) requests: u64,
}

/// What the master says of an entry.
enum Lineage {
    /// It has the same.
    Same,
    /// It has another one there, or none.
    Other,
    /// It has dropped that part of its log.
    Gone,
}

impl Opening {
    /// Asks what there is.
    pub(super) fn ask(fetch: &Fetch<'_>) -> Result<Self> {
        let opening = RestoreMsg::Open {
            session: fetch.marker.session,
            recovery: fetch.restoring.recovery.0,
            group: fetch.restoring.group,
            node: fetch.restoring.node.clone(),
            kind: fetch.restoring.kind,
            methods: fetch.restoring.method_ids(),
        };
        fetch.channel.send(&opening.encode())?;
        let mut frame = Vec::new();
        let head = match fetch.receive(&mut frame)? {
            RestoreMsg::Manifest(head) => *head,
            other => return Err(RepError::protocol("", "Manifest", other.name())),
        };
        let mut opening = Self { manifest: Manifest { head, segments: Vec::new() }, requests: 0 };
        opening.check(fetch)?;
        let head = &opening.manifest.head;
        for at in 0..head.segments {
            let offer = match fetch.receive(&mut frame)? {
                RestoreMsg::Segment(offer) => offer,
                other => return Err(RepError::protocol("", "Segment", other.name())),
            };
            let expected = u64::from(head.anchor.next_segment()) + u64::from(at);
            if u64::from(offer.number) != expected {
                let found = format!("segment {}", offer.number);
                return Err(RepError::protocol("", format!("segment {expected}"), found));
            }
            opening.manifest.segments.push(offer);
        }
        Ok(opening)
    }

    /// Whether what is offered may replace this node's log.
    pub(super) fn check(&self, fetch: &Fetch<'_>) -> Result<()> {
        let head = &self.manifest.head;
        if let Some(ours) = fetch.restoring.group
            && ours != head.group.id
        {
            let (name, theirs) = (head.group.name.clone(), head.group.id);
            return Err(RejectReason::WrongGroup { name, ours, theirs }.into());
        }
        if head.term < fetch.restoring.term {
            let (ours, theirs) = (head.term, fetch.restoring.term);
            return Err(RejectReason::OldTerm { ours, theirs }.into());
        }
        // A log that ends below what this node knows a majority to hold would lose it.
        let floor = known_floor(&**fetch.env, fetch.node_dir)?;
        if head.target < floor {
            return Err(RepError::RollbackBelowCommitFloor {
                matchpoint: head.target,
                commit_floor: floor,
            });
        }
        if head.anchor.vlsn > head.base.vlsn || head.base.vlsn > head.target {
            let found = format!(
                "anchor {}, segments through {}, target {}",
                head.anchor.vlsn, head.base.vlsn, head.target
            );
            return Err(RepError::protocol("", "anchor <= segments <= target", found));
        }
        Ok(())
    }

    /// The staged log of an earlier session, cut at its matchpoint with this master; what it holds is
    /// no longer wanted as segments. `None` if there is none that fits.
    pub(super) fn take_up_staged(&mut self, fetch: &Fetch<'_>) -> Result<Option<Staged>> {
        let dir = fetch.dir.join(LIVE);
        let config = fetch.restoring.staged_config();
        let group = &self.manifest.head.group;
        let Some(staged) = Staged::resume(fetch.env, &dir, &config, group)? else {
            return Ok(None);
        };
        let anchor = staged.anchor();
        if self.manifest.head.anchor.vlsn > anchor.vlsn {
            return self.keep_base(fetch, staged);
        }
        let head = &mut self.manifest.head;
        let offered = head.anchor.next_segment()..=head.base.next_segment();
        let is_within = head.anchor.vlsn <= anchor.vlsn && anchor.vlsn <= head.base.vlsn;
        if !is_within || !offered.contains(&anchor.next_segment()) {
            staged.discard()?;
            return Ok(None);
        }
        if !self.cut_at_matchpoint(fetch, &staged, anchor.vlsn)? {
            staged.discard()?;
            return Ok(None);
        }
        let first = anchor.next_segment();
        self.manifest.segments.retain(|segment| segment.number < first);
        let head = &mut self.manifest.head;
        head.segments = self.manifest.segments.len() as u32;
        head.base = anchor;
        Ok(Some(staged))
    }

    /// The master's log begins behind the segments by now: it need not keep what is durable here. If
    /// they all are, and the staged log reaches to where the master's begins, they stay, and it goes on.
    fn keep_base(&mut self, fetch: &Fetch<'_>, staged: Staged) -> Result<Option<Staged>> {
        let env = &**fetch.env;
        let (anchor, front) = (staged.anchor(), self.manifest.head.anchor.vlsn);
        let had = hint(Manifest::load(env, &fetch.dir))?;
        let Some(had) =
            had.filter(|had| had.head.base == anchor && had.head.group == self.manifest.head.group)
        else {
            staged.discard()?;
            return Ok(None);
        };
        if staged.end().vlsn < front
            || !Self::has_base(fetch, &had)?
            || !self.cut_at_matchpoint(fetch, &staged, front)?
        {
            staged.discard()?;
            return Ok(None);
        }
        let head = &mut self.manifest.head;
        head.anchor = had.head.anchor;
        head.base = anchor;
        head.segments = had.head.segments;
        self.manifest.segments = had.segments;
        Ok(Some(staged))
    }

    /// Whether all segments of a manifest are here.
    fn has_base(fetch: &Fetch<'_>, had: &Manifest) -> Result<bool> {
        let base = Base::open(fetch.env, fetch.host, &fetch.dir, had)?;
        Ok(base.is_done() && !base.ends_elsewhere())
    }

    /// Cuts off what the master does not have. False if it does not have `from` either.
    fn cut_at_matchpoint(
        &mut self,
        fetch: &Fetch<'_>,
        staged: &Staged,
        from: Vlsn,
    ) -> Result<bool> {
        // Most often all of it agrees; else the end of what does is searched for by halving.
        let end = staged.end().vlsn;
        match self.ask_lineage(fetch, staged, end)? {
            Lineage::Same => return Ok(true),
            Lineage::Gone => return Ok(false),
            Lineage::Other if end == from => return Ok(false),
            Lineage::Other => {}
        }
        if !matches!(self.ask_lineage(fetch, staged, from)?, Lineage::Same) {
            return Ok(false);
        }
        let (mut same, mut other) = (from, end);
        while other.prev() > same {
            let probe = Vlsn::new(i64::midpoint(same.sequence(), other.sequence()));
            match self.ask_lineage(fetch, staged, probe)? {
                Lineage::Same => same = probe,
                Lineage::Other => other = probe,
                Lineage::Gone => return Ok(false),
            }
        }
        staged.cut_after(same)?;
        Ok(true)
    }

    fn ask_lineage(&mut self, fetch: &Fetch<'_>, staged: &Staged, vlsn: Vlsn) -> Result<Lineage> {
        let Some(previous) = staged.fingerprint(vlsn)? else { return Ok(Lineage::Other) };
        self.requests += 1;
        let request = self.requests;
        let question = RestoreMsg::LiveRequest {
            request,
            from: vlsn.next(),
            previous,
            most: 0,
            needed: Vlsn::default(),
            progress: Progress::default(),
        };
        fetch.channel.send(&question.encode())?;
        match fetch.receive(&mut Vec::new())? {
            RestoreMsg::LiveRun { request: of, more: false, .. } if of == request => {
                Ok(Lineage::Same)
            }
            RestoreMsg::Refusal { request: of, why: Refused::Parted } if of == request => {
                Ok(Lineage::Other)
            }
            RestoreMsg::Refusal { request: of, why: Refused::Gone } if of == request => {
                Ok(Lineage::Gone)
            }
            other => Err(RepError::protocol("", "whether it has an entry", other.name())),
        }
    }
}
