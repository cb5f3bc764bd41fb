//! Transfer: everything that a session fetches, from everybody who gives it, until all of it is
//! durable and reaches the target.
//!
//! One thread asks, takes what comes and writes it; what the disk is waited for goes on beside it, if
//! there are threads. Blocks come from the master and from sources, as the plan says (core/block_plan.rs);
//! the state from one of them (session/state_lane.rs); entries from the master, one question after the
//! other, and each question says what the master need not keep any more.
//!
//! # Invariants
//! - What a source other than the master does wrong costs only that source.
//! - Memory is bounded: by the window of each source, the answers about the state that are under
//!   way, one run of entries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use noxu_util::Vlsn;

use super::super::base::Base;
use super::super::manifest::{Commit, LIVE, Manifest};
use super::super::staged::Staged;
use super::super::{Phase, Progress, SourceProgress};
use super::sources::{MASTER, STATE_PATIENCE, Source, Sources};
use super::state_lane::{Stage, StateLane, Taken};
use super::{Fetch, decode};
use crate::core::block_plan::{BlockPlan, Due, Has, SourceId};
use crate::core::recovery;
use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};
use crate::sync::method::{Opened, Proof, SyncProgress, check_room};
use crate::wire::restore::{BLOCK_BYTES, Refused, RestoreMsg};

/// How long one receive waits before the other sources are looked at again.
const WAIT: Duration = Duration::from_millis(5);

/// Most frames of one source that are taken before the next one's turn.
const TURN_FRAMES: usize = 8;

/// Bytes of entries in one answer.
const LIVE_BYTES: u32 = 1 << 20;

/// Pause between two questions for entries, when there were none the last time.
const LIVE_PAUSE: Duration = Duration::from_millis(20);

/// How long the master is spared for sources that have not said yet what they have.
const ATTACH_GRACE: Duration = Duration::from_secs(1);

/// Bytes that a limited rate may run ahead.
const BURST_BYTES: u64 = 1 << 20;

/// The question for entries that is under way.
struct LiveQuestion {
    request: u64,
    bytes: Vec<u8>,
}

/// Everything is here and durable.
pub(super) struct Transferred {
    pub(super) progress: Progress,
    /// What there is to commit.
    pub(super) commit: Commit,
    /// The master need not keep what is before it.
    pub(super) needed: Vlsn,
}

/// A session that fetches.
pub(super) struct Transfer<'a> {
    fetch: &'a Fetch<'a>,
    manifest: &'a Manifest,
    base: Base<'a>,
    plan: BlockPlan,
    sources: Sources,
    staged: Staged,
    live: Option<LiveQuestion>,
    /// When entries may be asked for again.
    live_due: Duration,
    /// The master was told that everything but entries is here.
    base_told: bool,
    /// Where it said that the restore is to end.
    cut: Option<Vlsn>,
    /// `None` if the log begins with the first entry, and nothing else is needed.
    state: Option<StateLane>,
    /// The last proof about it that was not found wrong.
    sound: Option<Proof>,
    /// Number of the last question.
    requests: u64,
    /// Bytes of blocks and checkpoint that were asked for.
    asked_bytes: u64,
    /// Bytes of blocks and checkpoint that came.
    base_bytes: u64,
    began: Duration,
    progress: Progress,
    /// The frame that came last.
    frame: Vec<u8>,
}

impl<'a> Transfer<'a> {
    /// Begins to fetch what `manifest` names, behind `staged` if there is something already.
    pub(super) fn begin(
        fetch: &'a Fetch<'a>,
        manifest: &'a Manifest,
        staged: Option<Staged>,
        requests: u64,
    ) -> Result<Self> {
        let env = &**fetch.env;
        let base = Base::open(fetch.env, fetch.host, &fetch.dir, manifest)?;
        #[cfg(test)]
        let base = base.mutated(fetch.restoring.mutation);
        if let Err(cause) = base.check_end() {
            if let Some(staged) = staged {
                staged.discard()?;
            }
            return Err(cause);
        }
        let staged = if let Some(staged) = staged {
            staged
        } else {
            let (dir, config) = (fetch.dir.join(LIVE), fetch.restoring.staged_config());
            let head = &manifest.head;
            Staged::begin(fetch.env, &dir, &config, &head.group, &head.base)?
        };
        let now = fetch.host.clock().now();
        let mut plan = BlockPlan::new(fetch.restoring.limits.window, base.wanted());
        plan.add_source(MASTER, Has::All);
        let provider = &manifest.head.provider;
        let master = Source::new(provider.clone(), Arc::clone(fetch.channel), now);
        let head = &manifest.head;
        let state = if head.anchor.vlsn.is_null() {
            None
        } else {
            let methods = &fetch.restoring.methods;
            let method = methods.iter().find(|method| method.name() == head.method);
            let method = method.cloned().ok_or_else(|| {
                RepError::protocol("", "a method that was named", head.method.to_string())
            })?;
            Some(StateLane::begin(fetch.env, &fetch.dir, method, head.anchor.vlsn)?)
        };
        // What another method left is gone by now.
        check_room(env, &fetch.dir, base.missing_bytes(), "the log")?;
        let progress = Progress {
            phase: Phase::Segments,
            method: state.as_ref().map(|_| head.method.clone()),
            blocks_done: base.had(),
            blocks_total: manifest.blocks(),
            blocks_reused: base.reused(),
            false_claims: base.false_claims(),
            sources: vec![SourceProgress::new(provider.clone())],
            ..Progress::default()
        };
        let mut transfer = Self {
            fetch,
            manifest,
            base,
            plan,
            sources: Sources::of(master),
            staged,
            live: None,
            live_due: now,
            base_told: false,
            cut: None,
            state,
            sound: None,
            requests,
            asked_bytes: 0,
            base_bytes: 0,
            began: now,
            progress,
            frame: Vec::new(),
        };
        if !transfer.plan.is_done() || transfer.state.is_some() {
            transfer.attach_sources();
        }
        Ok(transfer)
    }

    /// Fetches all of it. What came stays if that does not come about.
    pub(super) fn run(mut self) -> Result<Transferred> {
        match self.fetch_all() {
            Ok(commit) => {
                let Self { progress, staged, .. } = self;
                let needed = staged.needed();
                // Durable on return, as everything else is.
                staged.close()?;
                Ok(Transferred { progress, commit, needed })
            }
            Err(cause) if self.base.ends_elsewhere() => {
                // What follows the segments follows others than these: it would be believed for ever.
                self.staged.discard()?;
                Err(cause)
            }
            Err(cause @ RepError::Log(_)) => Err(cause),
            Err(cause) => {
                self.base.keep()?;
                Err(cause)
            }
        }
    }

    fn fetch_all(&mut self) -> Result<Commit> {
        loop {
            self.note();
            self.ask()?;
            if let Some(commit) = self.commit_if_whole()? {
                return Ok(commit);
            }
            self.receive()?;
            self.advance()?;
        }
    }

    /// Has the disk go on.
    fn advance(&mut self) -> Result<()> {
        self.base.advance(self.fetch.restoring.limits.sync_bytes)
    }

    fn now(&self) -> Duration {
        self.fetch.host.clock().now()
    }

    /// Tells how far it is.
    fn note(&mut self) {
        let phase = match () {
            () if !self.base.is_done() => Phase::Segments,
            () if self.has_state() => Phase::Tail,
            () => Phase::Checkpoint,
        };
        let elapsed = self.now().saturating_sub(self.began);
        let progress = &mut self.progress;
        progress.phase = phase;
        progress.blocks_done = self.base.had();
        progress.elapsed = elapsed;
        self.fetch.host.note(&self.progress);
    }

    /// Whether the state is here, or is not needed.
    fn has_state(&self) -> bool {
        self.state.as_ref().is_none_or(|state| state.stage() == Stage::Whole)
    }

    // ---- sources

    /// Connects to the nodes that may have the same. Who cannot be reached is no source.
    fn attach_sources(&mut self) {
        let most = self.fetch.restoring.limits.sources;
        let head = &self.manifest.head;
        let ours = self.fetch.restoring.method_ids();
        let Some(method) = ours.into_iter().find(|method| method.name == head.method) else {
            return;
        };
        for (name, address) in head.sources.iter().take(most) {
            let attach = RestoreMsg::Attach {
                group: head.group.id,
                node: self.fetch.restoring.node.clone(),
                method: Some(method.clone()),
            };
            let dialled = self.fetch.host.dial(address);
            let attached = dialled.and_then(|channel| {
                channel.send(&attach.encode())?;
                Ok(channel)
            });
            match attached {
                Ok(channel) => {
                    self.progress.sources.push(SourceProgress::new(name.clone()));
                    self.sources.add(Source::new(name.clone(), channel, self.now()));
                }
                Err(cause) => tracing::info!(source = %name, "no source of a restore: {cause}"),
            }
        }
    }

    /// Whether sources may yet say what they have.
    fn awaits_sources(&self) -> bool {
        let is_early = self.now().saturating_sub(self.began) < ATTACH_GRACE;
        is_early && self.sources.iter().any(|(_, source)| !source.is_attached)
    }

    fn handle_holdings(
        &mut self,
        source: SourceId,
        gives_state: bool,
        holdings: &[(u32, [u8; 32])],
    ) {
        // A second time it would be a source that was asked for nothing.
        if self.sources.get(source).is_none_or(|source| source.is_attached) {
            return;
        }
        self.touch(source);
        let holdings: BTreeSet<_> = holdings.iter().copied().collect();
        let segments = self.manifest.segments.iter().enumerate();
        let has = segments
            .filter(|(_, segment)| holdings.contains(&(segment.number, segment.digest)))
            .map(|(at, _)| at);
        self.plan.add_source(source, Has::Segments(has.collect()));
        if let Some(source) = self.sources.get_mut(source) {
            source.is_attached = true;
            source.is_behind = !gives_state;
        }
    }

    /// That source is of no use any more.
    fn drop_source(&mut self, source: SourceId, cause: &RepError) {
        let Some(gone) = self.sources.remove(source) else { return };
        gone.channel.close();
        tracing::info!(source = %gone.name, "a source of the restore is gone: {cause}");
        self.plan.remove_source(source);
        if let Some(state) = &mut self.state {
            state.handle_gone(source);
        }
    }

    /// Sends a question to a source; one that cannot be sent costs the source.
    fn put(&mut self, source: SourceId, question: &RestoreMsg<'_>) -> Result<()> {
        let Some(channel) = self.sources.channel(source) else { return Ok(()) };
        match channel.send(&question.encode()) {
            Err(cause) if source != MASTER => {
                self.drop_source(source, &cause);
                Ok(())
            }
            sent => sent,
        }
    }

    // ---- questions

    fn ask(&mut self) -> Result<()> {
        self.ask_live()?;
        for source in self.sources.ids() {
            self.ask_blocks(source)?;
        }
        if self.base.is_whole() {
            self.ask_state()?;
        }
        Ok(())
    }

    /// Whether a limited rate lets something be asked for.
    fn may_ask(&self) -> bool {
        let Some(rate) = self.fetch.restoring.limits.bytes_per_second else { return true };
        let elapsed = self.now().saturating_sub(self.began).as_millis() as u64;
        self.asked_bytes <= rate.saturating_mul(elapsed) / 1000 + BURST_BYTES
    }

    fn ask_blocks(&mut self, source: SourceId) -> Result<()> {
        if source == MASTER && self.awaits_sources() {
            return Ok(());
        }
        while self.may_ask() && self.sources.get(source).is_some() {
            let request = self.requests + 1;
            let was_idle = !self.plan.owes(source);
            let Some((segment, block)) = self.plan.poll(source, request) else { break };
            self.requests = request;
            self.asked_bytes += u64::from(BLOCK_BYTES);
            if was_idle {
                self.touch(source);
            }
            let segment = self.manifest.segments[segment].number;
            self.put(source, &RestoreMsg::BlockRequest { request, segment, block })?;
        }
        Ok(())
    }

    fn ask_live(&mut self) -> Result<()> {
        let base_done = self.base.is_done() && self.has_state();
        let is_due = self.now() >= self.live_due || (base_done && !self.base_told);
        if self.live.is_some() || !is_due {
            return Ok(());
        }
        self.base_told = base_done;
        if !self.plan.owes(MASTER) && !self.is_asked(MASTER) {
            self.touch(MASTER);
        }
        self.requests += 1;
        let end = self.staged.end();
        let needed = if self.base.is_done() {
            self.staged.needed()
        } else {
            self.base.needed().min(self.staged.needed())
        };
        let question = RestoreMsg::LiveRequest {
            request: self.requests,
            from: end.vlsn.next(),
            previous: end.fingerprint,
            most: LIVE_BYTES,
            needed,
            progress: recovery::Progress {
                base_bytes: self.base_bytes
                    + self.state.as_ref().map_or(0, StateLane::prepared_bytes),
                base_done,
                durable: end.vlsn,
            },
        };
        self.live = Some(LiveQuestion { request: self.requests, bytes: Vec::new() });
        self.put(MASTER, &question)
    }

    fn ask_state(&mut self) -> Result<()> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.prepare(self.fetch.host)?;
        match state.stage() {
            Stage::Wanted if !self.awaits_sources() => self.open_state(),
            Stage::Coming(source) => self.ask_about_state(source),
            _ => Ok(()),
        }
    }

    /// Of whoever gave some of it before, then of anybody but the master.
    fn open_state(&mut self) -> Result<()> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let earlier = state.earlier();
        let usable = self.sources.iter().filter(|(id, source)| {
            source.is_attached && !source.is_behind && !self.plan.is_suspended(*id)
        });
        let mut usable: Vec<_> = usable.map(|(id, source)| (id, &source.name)).collect();
        let gave = usable.iter().find(|(_, name)| Some(*name) == earlier.as_ref()).copied();
        if usable.len() > 1 {
            usable.retain(|(id, _)| *id != MASTER);
        }
        // Any of them: of one that never gives it, a node that is killed sooner than it finds that out would
        // ask over and over.
        let any = self.fetch.env.entropy() as usize % usable.len().max(1);
        let Some((source, name)) = gave.or_else(|| usable.get(any).copied()) else {
            return Ok(());
        };
        self.requests += 1;
        let request = self.requests;
        let id = state.open(source, name, request);
        if !self.plan.owes(source) {
            self.touch(source);
        }
        self.put(source, &RestoreMsg::StateOpen { request, id })
    }

    fn ask_about_state(&mut self, source: SourceId) -> Result<()> {
        let (Some(channel), is_free) = (self.sources.channel(source), self.may_ask()) else {
            return Ok(());
        };
        let Some(state) = &mut self.state else { return Ok(()) };
        // How much a limited rate lets come is known of one answer at a time.
        let is_limited = self.fetch.restoring.limits.bytes_per_second.is_some();
        let may_ask = |under_way| is_free && !(is_limited && under_way > 0);
        let was_idle = state.under_way() == 0;
        match state.ask(&*channel, &mut self.requests, may_ask) {
            Ok(asked) if was_idle && asked > 0 => self.touch(source),
            Ok(_) => {}
            Err(cause) => return self.handle_fault(source, cause),
        }
        Ok(())
    }

    /// What a source does wrong costs that source; what this node's own disk says is nobody's fault.
    fn handle_fault(&mut self, source: SourceId, cause: RepError) -> Result<()> {
        if source == MASTER || matches!(cause, RepError::Log(_)) {
            return Err(cause);
        }
        self.drop_source(source, &cause);
        Ok(())
    }

    /// It was asked something, or answered.
    fn touch(&mut self, source: SourceId) {
        self.sources.touch(source, self.now());
    }

    // ---- answers

    /// Takes what has come; waits a little if nothing has.
    fn receive(&mut self) -> Result<()> {
        let mut any = false;
        for source in self.sources.ids() {
            for _ in 0..TURN_FRAMES {
                if !self.receive_from(source, Duration::ZERO)? {
                    break;
                }
                self.advance()?;
                any = true;
            }
        }
        if !any {
            // On whoever owes most: of the others' answers a window is under way meanwhile.
            let owes = |source: &SourceId| (self.plan.under_way(*source), self.is_asked(*source));
            let there = self.sources.iter().map(|(id, _)| id);
            let busiest = there.max_by_key(owes).unwrap_or(MASTER);
            if owes(&busiest) != (0, false) || !self.wait_beside() {
                self.receive_from(busiest, WAIT)?;
            }
        }
        self.handle_silence()
    }

    /// Waits a little for what goes on beside the session. False if nothing does.
    fn wait_beside(&self) -> bool {
        self.base.wait_for(WAIT) || self.state.as_ref().is_some_and(|state| state.wait_for(WAIT))
    }

    /// Whether a source owes an answer that is no block.
    fn is_asked(&self, source: SourceId) -> bool {
        let live = source == MASTER && self.live.is_some();
        let state = self.state.as_ref().is_some_and(|state| state.owes(source));
        let attaching = self.sources.get(source).is_some_and(|source| !source.is_attached);
        live || state || attaching
    }

    /// Others are asked for what one owes who is silent; and who is silent for too long is gone.
    fn handle_silence(&mut self) -> Result<()> {
        let timeout = self.fetch.restoring.limits.answer_timeout;
        for id in self.sources.ids() {
            let (owes, awaited) = (self.plan.owes(id), self.plan.under_way(id));
            let owes_state = self.state.as_ref().is_some_and(|state| state.owes(id));
            let owes = owes || self.is_asked(id);
            let Some(source) = self.sources.get_mut(id).filter(|_| owes) else { continue };
            if source.silence() >= timeout {
                let cause = RepError::silent(source.channel.peer(), "an answer", timeout);
                if id == MASTER {
                    return Err(cause);
                }
                self.drop_source(id, &cause);
            } else if id != MASTER && awaited > 0 && source.is_patience_over() {
                let (name, silence) = (&source.name, source.silence());
                tracing::info!(source = %name, ?silence, "others are asked for {awaited} blocks");
                self.plan.suspend(id);
            } else if id != MASTER && owes_state && source.silence() >= STATE_PATIENCE {
                tracing::info!(source = %source.name, "another one is asked for the state");
                self.pass_over(id);
            }
        }
        Ok(())
    }

    fn receive_from(&mut self, source: SourceId, timeout: Duration) -> Result<bool> {
        let Some(channel) = self.sources.channel(source) else { return Ok(false) };
        let mut frame = std::mem::take(&mut self.frame);
        let taken = channel.receive_into(&mut frame, timeout).and_then(|came| {
            if came {
                self.handle(source, decode(&frame, &*channel)?)?;
            }
            Ok(came)
        });
        self.frame = frame;
        match taken {
            Ok(came) => {
                if !came {
                    self.sources.note_quiet(source, self.now());
                }
                Ok(came)
            }
            Err(cause) => {
                let fault = self.handle_fault(source, cause);
                fault.map(|()| true).map_err(|cause| cause.with_peer(|| channel.peer()))
            }
        }
    }

    fn handle(&mut self, source: SourceId, message: RestoreMsg<'_>) -> Result<()> {
        match message {
            RestoreMsg::Holdings { state, segments, .. } if source != MASTER => {
                self.handle_holdings(source, state, &segments);
                Ok(())
            }
            RestoreMsg::Block { request, bytes } => self.handle_block(source, request, &bytes),
            RestoreMsg::LiveRun { request, more, last, cut, bytes } if source == MASTER => {
                self.handle_live(request, more, (last, cut), &bytes)
            }
            RestoreMsg::Refusal { request, why } => self.handle_refusal(source, request, why),
            RestoreMsg::StateOpened { request, id, vlsn, fingerprint, head } => {
                let proof = Proof { vlsn, fingerprint };
                self.handle_state_opened(source, request, (id, proof), &head)
            }
            RestoreMsg::StateAnswer { request, vlsn, fingerprint, digest, bytes } => {
                let proof = Proof { vlsn, fingerprint };
                self.handle_state_answer(source, request, (proof, digest), &bytes)
            }
            other => Err(RepError::protocol("", "an answer", other.name())),
        }
    }

    fn handle_block(&mut self, source: SourceId, request: u64, bytes: &[u8]) -> Result<()> {
        // What was not asked, or was answered before, is dropped.
        let Some(due) = self.plan.take(source, request) else { return Ok(()) };
        self.touch(source);
        let Due::Block(block) = due else { return Ok(()) };
        if !self.base.is_block(block, bytes) {
            let segment = self.manifest.segments[block.0].number;
            let is_banned = self.plan.strike(source, block);
            self.put(source, &RestoreMsg::Doubt { segment, block: block.1 })?;
            let cause = RepError::protocol(
                "",
                format!("block {} of segment {segment}", block.1),
                format!("{} bytes with another digest", bytes.len()),
            );
            self.progress.bad_blocks += 1;
            return if is_banned { Err(cause) } else { Ok(()) };
        }
        self.base.write(block, bytes)?;
        self.count(source, bytes.len() as u64, 1);
        Ok(())
    }

    fn count(&mut self, source: SourceId, bytes: u64, blocks: u32) {
        self.progress.bytes_fetched += bytes;
        self.base_bytes += bytes;
        let given = &mut self.progress.sources[source];
        given.bytes += bytes;
        given.blocks += blocks;
    }

    fn handle_refusal(&mut self, source: SourceId, request: u64, why: Refused) -> Result<()> {
        if let Some(due) = self.plan.take(source, request) {
            self.touch(source);
            let Due::Block(block) = due else { return Ok(()) };
            if source != MASTER {
                self.plan.refuse(source, block);
                return Ok(());
            }
            let segment = self.manifest.segments[block.0].number;
            let found = format!("segment {segment} is {why:?}");
            return Err(RepError::protocol("", "what the manifest names", found));
        }
        let asked = self.live.as_ref().is_some_and(|live| live.request == request);
        if asked && source == MASTER {
            let found = format!("entries behind {} are {why:?}", self.staged.end().vlsn);
            return Err(RepError::protocol("", "entries that continue", found));
        }
        Ok(())
    }

    fn handle_live(
        &mut self,
        request: u64,
        more: bool,
        (last, cut): (Vlsn, Vlsn),
        bytes: &[u8],
    ) -> Result<()> {
        let Some(live) = self.live.as_mut().filter(|live| live.request == request) else {
            return Ok(());
        };
        live.bytes.extend_from_slice(bytes);
        let most = self.fetch.restoring.log.max_body_bytes as usize + (4 << 20);
        if live.bytes.len() > most {
            let found = format!("a run of more than {most} bytes");
            return Err(RepError::protocol("", "an entry or 1 MiB", found));
        }
        self.touch(MASTER);
        if more {
            return Ok(());
        }
        let bytes = self.live.take().map(|live| live.bytes).unwrap_or_default();
        if !cut.is_null() {
            self.cut = Some(cut);
        }
        if bytes.is_empty() {
            self.live_due = self.now() + LIVE_PAUSE;
            return Ok(());
        }
        let fetched = bytes.len();
        let peer = self.fetch.channel.peer();
        let run = self.staged.append(bytes, &peer)?;
        self.progress.bytes_fetched += fetched as u64;
        self.progress.live_entries += run.last.since(run.first.prev());
        self.progress.behind = last.since(run.last);
        Ok(())
    }

    fn handle_state_opened(
        &mut self,
        source: SourceId,
        request: u64,
        (id, proof): (u64, Proof),
        head: &[u8],
    ) -> Result<()> {
        if !self.state.as_ref().is_some_and(|state| state.awaits_offer(source, request)) {
            return Ok(());
        }
        self.touch(source);
        let fits = self.may_be_of_this_log(proof)?;
        let (Some(state), Some(from)) = (&mut self.state, self.sources.get(source)) else {
            return Ok(());
        };
        let opened = Opened { source: &from.name, id, proof, head };
        match state.handle_opened(source, &opened, fits)? {
            Taken::Begun => {
                let SyncProgress { bytes, reused } = state.progress();
                (self.progress.checkpoint_bytes, self.progress.checkpoint_reused) = (bytes, reused);
            }
            Taken::Void => {}
            Taken::Useless => self.give_up_state_of(source, proof)?,
        }
        Ok(())
    }

    /// What that source gives is of no use.
    fn give_up_state_of(&mut self, source: SourceId, proof: Proof) -> Result<()> {
        if source == MASTER {
            let found = format!("one through {}", proof.vlsn);
            return Err(RepError::protocol("", "a state of this log", found));
        }
        self.pass_over(source);
        Ok(())
    }

    /// That source is not asked for the state any more.
    fn pass_over(&mut self, source: SourceId) {
        if let Some(source) = self.sources.get_mut(source) {
            source.is_behind = true;
        }
        if let Some(state) = &mut self.state {
            state.handle_gone(source);
        }
    }

    fn handle_state_answer(
        &mut self,
        source: SourceId,
        request: u64,
        (proof, digest): (Proof, [u8; 32]),
        bytes: &[u8],
    ) -> Result<()> {
        // The state is asked for once the segments are here, so that proofs can be looked up.
        let due = self.state.as_mut().and_then(|state| state.take_due(source, request));
        let Some(number) = due else { return Ok(()) };
        if !self.may_be_of_this_log(proof)? {
            return self.give_up_state_of(source, proof);
        }
        let Some(state) = &mut self.state else { return Ok(()) };
        let before = state.progress().bytes;
        state.handle_answer(number, (proof, digest), bytes)?;
        let had = state.progress().bytes;
        self.progress.checkpoint_bytes = had;
        self.asked_bytes += bytes.len() as u64;
        self.count(source, had.saturating_sub(before), 0);
        self.touch(source);
        Ok(())
    }

    // ---- the end

    /// What there is to commit, if everything is durable here and reaches the target.
    fn commit_if_whole(&mut self) -> Result<Option<Commit>> {
        let (end, head) = (self.staged.end(), &self.manifest.head);
        // The master says where it ends, once it knows that only entries are missing.
        let Some(cut) = self.cut.filter(|_| self.base_told) else { return Ok(None) };
        if !self.base.is_done() || end.vlsn < head.target.max(cut) {
            return Ok(None);
        }
        let proofs = self.state.as_ref().map(StateLane::proofs).unwrap_or_default();
        if !self.has_state() || proofs.iter().any(|proof| proof.vlsn > end.vlsn) {
            return Ok(None); // the log has to reach all of it too
        }
        for proof in proofs {
            if self.is_of_this_log(proof)? {
                continue;
            }
            // What it holds was rolled back meanwhile.
            (self.base_told, self.sound) = (false, None);
            if let Some(state) = &mut self.state {
                state.discard()?;
            }
            return Ok(None);
        }
        let at_target = self.staged.fingerprint(head.target)?;
        let is_target = at_target.is_none_or(|found| found == head.target_fingerprint);
        if !is_target && !mutant::is_on(Mutant::RestoreTargetUnchecked) {
            let expected = format!("entry {} as the manifest names it", head.target);
            return Err(RepError::protocol("", expected, "another one"));
        }
        let newest = self.staged.newest_config(head.target)?;
        let (last, last_lsn) = self.staged.position();
        Ok(Some(Commit {
            session: self.fetch.marker.session,
            base: head.base.chain(),
            base_lsn: head.base.lsn,
            last,
            last_lsn,
            group_config: newest.unwrap_or_else(|| head.group_config.clone()),
            state: self.state.as_ref().map(StateLane::committed),
        }))
    }

    /// Whether the log holds the entry of a proof: who gives a state may have another history, or have
    /// had one when it was taken. Every segment is here.
    fn is_of_this_log(&self, proof: Proof) -> Result<bool> {
        let found = if proof.vlsn < self.manifest.head.base.vlsn {
            self.base.fingerprint(proof.vlsn)?
        } else {
            self.staged.fingerprint(proof.vlsn)?
        };
        Ok(found == Some(proof.fingerprint))
    }

    /// The same, as far as it can be told: of what has not come yet it is found out later.
    fn may_be_of_this_log(&mut self, proof: Proof) -> Result<bool> {
        if self.sound == Some(proof) {
            return Ok(true);
        }
        let is_sound = proof.vlsn >= self.manifest.head.anchor.vlsn
            && (proof.vlsn > self.staged.end().vlsn || self.is_of_this_log(proof)?);
        self.sound = is_sound.then_some(proof);
        Ok(is_sound)
    }
}
