//! StateLane: the state of a restore, by the method that the master took. It comes from one source at a
//! time; what an earlier session had stays, as far as the method can go on with it.
//!
//! # Invariants
//! - A source is asked for what it opened and nothing else: what it was asked before is void.
//! - An answer counts if it is that to the oldest question under way, with its digest.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use noxu_log::LogError;
use noxu_log::env::Env;
use noxu_util::{Name, Vlsn};

use super::super::beside::Beside;
use super::super::manifest::{CommittedState, STATE, Saved};
use super::RestoreHost;
use crate::core::block_plan::SourceId;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::sync::method::{
    Answer, Coming, MAX_ANSWER_BYTES, MAX_QUESTION_BYTES, Opened, Proof, SessionHost, StateSync,
    SyncOrder, SyncProgress, SyncSession,
};
use crate::wire::restore::RestoreMsg;

/// Most questions under way.
const WINDOW: usize = 8;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody is asked.
    Wanted,
    /// This source was asked to open an offer.
    Opening(SourceId),
    /// It comes from there.
    Coming(SourceId),
    /// All of it is here, and is made ready to be installed.
    Preparing,
    /// All of it is here.
    Whole,
}

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is asked from now on.
    Begun,
    /// It was the one that was begun, and it is of no use: another one is to be opened.
    Void,
    /// That source has none that is of any use.
    Useless,
}

/// The state on its way.
pub(super) struct StateLane {
    method: Arc<dyn StateSync>,
    saved: Saved,
    session: Box<dyn SyncSession>,
    stage: Stage,
    /// The question for an offer that was put last, and the offer that is wanted again; 0 for a new one.
    open_request: u64,
    wanted: u64,
    /// Numbers of the questions under way: ours, and the session's.
    asked: VecDeque<(u64, u64)>,
    order: SyncOrder,
    preparation: Option<Preparation>,
    /// Bytes that were made ready for nothing, as another source was begun with.
    prepared_before: u64,
    /// What came could not be made ready once, and is fetched again.
    refetched: bool,
}

/// What makes the state ready to be installed, beside the session.
struct Preparation {
    coming: Arc<Coming>,
    work: Beside<()>,
}

impl StateLane {
    /// By `method`, in the restore directory `dir`; what another method left there is removed. What was
    /// had and goes through an entry below `front` is of no use.
    pub(super) fn begin(
        env: &Arc<dyn Env>,
        dir: &Path,
        method: Arc<dyn StateSync>,
        front: Vlsn,
    ) -> Result<Self> {
        let saved = Saved::new(Arc::clone(env), dir, &*method);
        let order = SyncOrder { env: Arc::clone(env), dir: dir.join(STATE) };
        let path = &order.dir;
        let earlier = saved.load()?;
        if earlier.is_none() {
            env.remove_dir_all(path).map_err(|e| LogError::io("remove", path, e))?;
        }
        env.create_dir_all(path).map_err(|e| LogError::io("create directory", path, e))?;
        let session = method.session(&order, earlier.as_deref())?;
        let (stage, asked) = (Stage::Wanted, VecDeque::new());
        let (open_request, wanted) = (0, 0);
        let mut lane = Self {
            method,
            saved,
            session,
            stage,
            open_request,
            wanted,
            asked,
            order,
            preparation: None,
            prepared_before: 0,
            refetched: false,
        };
        if lane.session.proofs().iter().any(|proof| proof.vlsn < front) {
            lane.discard()?;
        }
        Ok(lane)
    }

    pub(super) const fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) fn progress(&self) -> SyncProgress {
        self.session.progress()
    }

    /// The entries that the log must hold.
    pub(super) fn proofs(&self) -> Vec<Proof> {
        self.session.proofs()
    }

    /// Whose offer it would like to go on with.
    pub(super) fn earlier(&self) -> Option<Name> {
        self.session.earlier().map(|(name, _)| name)
    }

    /// `source`, of this name, is asked question `request`, to open an offer. Returns which; 0 for a new
    /// one.
    pub(super) fn open(&mut self, source: SourceId, name: &Name, request: u64) -> u64 {
        let earlier = self.session.earlier().filter(|(of, _)| of == name);
        self.wanted = earlier.map_or(0, |(_, id)| id);
        self.open_request = request;
        self.stage = Stage::Opening(source);
        self.asked.clear();
        self.wanted
    }

    /// Whether `source` answers the question for an offer.
    pub(super) fn awaits_offer(&self, source: SourceId, request: u64) -> bool {
        self.stage == Stage::Opening(source) && self.open_request == request
    }

    /// `source` has opened one; `fits` if it is of the restored log, as far as that can be told.
    pub(super) fn handle_opened(
        &mut self,
        source: SourceId,
        opened: &Opened<'_>,
        fits: bool,
    ) -> Result<Taken> {
        // What is there may become another's.
        self.stop_preparing();
        let begun = fits && self.session.begin(opened, &mut Mute(&self.saved, None))?;
        self.stage = match begun {
            // An earlier session had all of it, and did not commit.
            true if self.session.is_whole() => Stage::Preparing,
            true => Stage::Coming(source),
            false => Stage::Wanted,
        };
        if begun {
            return Ok(Taken::Begun);
        }
        if self.wanted != 0 && opened.id == self.wanted {
            // That would be given again and again.
            self.discard()?;
            return Ok(Taken::Void);
        }
        Ok(Taken::Useless)
    }

    /// Asks for what the session wants, as far as `may_ask`. Returns how many questions it put.
    pub(super) fn ask(
        &mut self,
        channel: &dyn Channel,
        requests: &mut u64,
        may_ask: impl Fn(usize) -> bool,
    ) -> Result<usize> {
        let before = self.asked.len();
        // What is not made ready from memory has to be read.
        let waits = |preparation: &Preparation| {
            preparation.coming.is_behind() && !preparation.work.is_over()
        };
        if self.preparation.as_ref().is_some_and(waits) {
            return Ok(0);
        }
        let Self { session, saved, asked, .. } = self;
        let mut host = Asking { channel, requests, may_ask, asked, saved };
        session.ask(&mut host)?;
        Ok(self.asked.len() - before)
    }

    /// Whether `source` owes an answer.
    pub(super) fn owes(&self, source: SourceId) -> bool {
        match self.stage {
            Stage::Opening(from) => from == source,
            Stage::Coming(from) => from == source && !self.asked.is_empty(),
            Stage::Wanted | Stage::Preparing | Stage::Whole => false,
        }
    }

    /// Questions under way.
    pub(super) fn under_way(&self) -> usize {
        self.asked.len()
    }

    /// `source` answers this question. Returns its number in the session if that answer is due, and `None`
    /// if it does not count.
    pub(super) fn take_due(&mut self, source: SourceId, request: u64) -> Option<u64> {
        let is_due = self.stage == Stage::Coming(source);
        let (_, number) = self.asked.pop_front_if(|(due, _)| is_due && *due == request)?;
        Some(number)
    }

    /// The answer to question `number` of the session, which [was due](StateLane::take_due).
    pub(super) fn handle_answer(
        &mut self,
        number: u64,
        (proof, digest): (Proof, [u8; 32]),
        bytes: &[u8],
    ) -> Result<()> {
        if blake3::hash(bytes) != digest || bytes.len() > MAX_ANSWER_BYTES {
            let found = format!("{} bytes with another digest", bytes.len());
            return Err(RepError::protocol("", "an answer about the state", found));
        }
        let answer = Answer { number, proof, bytes, digest };
        let coming = self.preparation.as_ref().map(|preparation| &*preparation.coming);
        self.session.take(&answer, &mut Mute(&self.saved, coming))?;
        let is_whole = self.session.is_whole();
        if is_whole {
            self.stage = Stage::Preparing;
            self.asked.clear();
        }
        match coming {
            Some(coming) if is_whole => coming.seal(self.session.seal()),
            Some(coming) => coming.arrive(self.session.progress().bytes),
            None => {}
        }
        Ok(())
    }

    /// Makes what is here ready to be installed, while the rest comes if there are threads; looks whether
    /// it is. What cannot be made ready could not be installed either, and then the old log is gone: it is
    /// fetched again, once.
    ///
    /// # Errors
    /// The method's or the state machine's if there is no room for it, or if it cannot be made ready a
    /// second time.
    pub(super) fn prepare(&mut self, host: &dyn RestoreHost) -> Result<()> {
        let is_whole = match self.stage {
            Stage::Coming(_) if host.has_threads() => false,
            Stage::Preparing => true,
            _ => return Ok(()),
        };
        let Some(preparation) = &self.preparation else {
            let Some(machine) = host.machine() else {
                if is_whole {
                    self.stage = Stage::Whole;
                }
                return Ok(());
            };
            let seal = self.session.seal();
            let coming = if is_whole { Coming::whole(seal) } else { Coming::begun(seal) };
            coming.arrive(self.session.progress().bytes);
            let coming = Arc::new(coming);
            let (method, order) = (Arc::clone(&self.method), self.order.clone());
            let ready = Arc::clone(&coming);
            let prepare = move || method.prepare(&order, &ready, &*machine);
            let work = if is_whole {
                Some(Beside::begin(host, prepare))
            } else {
                // It waits for what this thread fetches. Without a thread it is left for later.
                Beside::begin_waiting(host, prepare)
            };
            self.preparation = work.map(|work| Preparation { coming, work });
            return Ok(());
        };
        if !preparation.work.is_over() {
            return Ok(());
        }
        match preparation.work.take() {
            // A method that does nothing is done before all is here.
            None | Some(Ok(())) => {
                if is_whole {
                    self.stage = Stage::Whole;
                }
                Ok(())
            }
            Some(Err(cause)) if cause.is_storage_full() || self.refetched => Err(cause),
            Some(Err(cause)) => {
                tracing::warn!("a state cannot be installed, and is fetched again: {cause}");
                self.refetched = true;
                self.discard()
            }
        }
    }

    /// Waits until all of it is ready, if that is all there is to wait for, but no longer than that.
    pub(super) fn wait_for(&self, time: Duration) -> bool {
        match &self.preparation {
            Some(preparation) if self.stage == Stage::Preparing => {
                preparation.work.wait_for(time);
                true
            }
            _ => false,
        }
    }

    /// Bytes that have been made ready, some of them more than once: that something moves.
    pub(super) fn prepared_bytes(&self) -> u64 {
        let now = self.preparation.as_ref().map(|preparation| preparation.coming.prepared_bytes());
        self.prepared_before + now.unwrap_or_default()
    }

    /// Ends what runs beside the session.
    fn stop_preparing(&mut self) {
        let Some(preparation) = self.preparation.take() else { return };
        preparation.coming.cancel();
        preparation.work.wait();
        self.prepared_before += preparation.coming.prepared_bytes();
    }

    /// `source` is of no use any more.
    pub(super) fn handle_gone(&mut self, source: SourceId) {
        if matches!(self.stage, Stage::Opening(of) | Stage::Coming(of) if of == source) {
            self.stage = Stage::Wanted;
            self.asked.clear();
        }
    }

    /// Nothing of it counts any more.
    pub(super) fn discard(&mut self) -> Result<()> {
        self.stop_preparing();
        self.session.discard(&mut Mute(&self.saved, None))?;
        self.stage = Stage::Wanted;
        self.asked.clear();
        Ok(())
    }

    /// What there is to install, once it is whole.
    pub(super) fn committed(&self) -> CommittedState {
        let through = self.session.proofs().iter().map(|proof| proof.vlsn).max();
        CommittedState {
            method: self.method.name(),
            through: through.unwrap_or_default(),
            sealed: self.session.seal(),
        }
    }
}

impl Drop for StateLane {
    fn drop(&mut self) {
        self.stop_preparing();
    }
}

/// What a session may use that is not to ask anything; and who makes ready what comes.
struct Mute<'a>(&'a Saved, Option<&'a Coming>);

impl SessionHost for Mute<'_> {
    fn ask(&mut self, _number: u64, _question: &[u8]) -> Result<bool> {
        Ok(false)
    }

    fn hand_over(&mut self, at: u64, bytes: &[u8], digest: [u8; 32]) {
        if let Some(coming) = self.1 {
            coming.hand_over(at, bytes, digest);
        }
    }

    fn save(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.save(bytes)
    }
}

/// What a session may use that asks.
struct Asking<'a, M> {
    channel: &'a dyn Channel,
    requests: &'a mut u64,
    may_ask: M,
    asked: &'a mut VecDeque<(u64, u64)>,
    saved: &'a Saved,
}

impl<M: Fn(usize) -> bool> SessionHost for Asking<'_, M> {
    fn ask(&mut self, number: u64, question: &[u8]) -> Result<bool> {
        assert!(question.len() <= MAX_QUESTION_BYTES, "a question of {} bytes", question.len());
        if self.asked.len() >= WINDOW || !(self.may_ask)(self.asked.len()) {
            return Ok(false);
        }
        *self.requests += 1;
        let request = *self.requests;
        let question = question.into();
        self.channel.send(&RestoreMsg::StateRequest { request, question }.encode())?;
        self.asked.push_back((request, number));
        Ok(true)
    }

    fn save(&mut self, bytes: &[u8]) -> Result<()> {
        self.saved.save(bytes)
    }
}
