//! Perform: the core is told what happened, and what it says is done.
//!
//! # Not here: what is told (facts.rs), conversations (driver/following.rs, driver/feeding.rs).

use std::ptr::addr_eq;
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::{EntryFlags, EntryKind, NewEntry};
use noxu_util::{Incarnation, NULL_VLSN, Name, Term, Vlsn};
use parking_lot::MutexGuard;

use super::{FollowedMaster, Life, Target};
use crate::core::node::{Input, Membership, NodeCore, Output, Promise, StateEvent};
use crate::core::quorum::Quorum;
use crate::core::recovery::Bounds;
use crate::core::repair::{Damage, RepairStep};
use crate::driver::heard::Heard;
use crate::driver::master::Master;
use crate::driver::mending::{answer_ask, put_back};
use crate::driver::recovering::Recovering;
use crate::error::Result;
use crate::group::{Electorate, term_body};
use crate::net::channel::Channel;
use crate::status::{Role, StateChange};
use crate::stream::replica::{AckGate, ReplicaStream};
use crate::wire::election::{Body, ElectionMsg, MAX_REPAIR_BYTES, NodeRole, Peer, RepairAsk};
use crate::wire::handshake::RejectReason;
use crate::wire::message::{Era, Leaving};

/// What the core has answered to whoever asks and waits.
#[derive(Default)]
struct Answers {
    /// To [`Input::AskTerm`].
    adopted: bool,
    /// To [`Input::RestoreReady`].
    permitted: bool,
    /// To [`Input::Following`]: whether it was told to follow nobody.
    unfollowed: bool,
}

/// What has to wait until the core is released.
#[derive(Default)]
struct Afterwards {
    /// Masterships that have ended, and who is to be master next.
    ended: Vec<(Arc<Master>, String, Option<Name>)>,
}

impl Life {
    /// Lets the core know of `input`, or of the time, and does what it says.
    pub(super) fn drive(&self, input: Option<Input>) {
        let (core, mut afterwards) = (self.core.lock(), Afterwards::default());
        drop(self.drive_with(core, input, &mut afterwards));
        self.finish(afterwards);
    }

    /// The master `name` at `address`, at the other end of `channel`, would have this node follow it
    /// in `term`. True if that is what it does from now on; the term is durable then. A conversation
    /// that this node has broken off since it began is not taken up again.
    pub(in crate::driver) fn ask_term(
        &self,
        channel: &Arc<dyn Channel>,
        term: Term,
        name: &Name,
        address: &str,
        heard: Heard,
    ) -> bool {
        let (core, mut afterwards) = (self.core.lock(), Afterwards::default());
        let ours = |open: &Arc<dyn Channel>| addr_eq(Arc::as_ptr(open), Arc::as_ptr(channel));
        if !self.link.lock().channel.as_ref().is_some_and(ours) {
            return false;
        }
        let input = Input::AskTerm { term, master: name.clone() };
        let (core, answers) = self.drive_with(core, Some(input), &mut afterwards);
        if answers.adopted {
            let followed = FollowedMaster { name: name.clone(), term, heard };
            self.link.lock().followed = Some(followed);
            self.public.lock().master = Some((name.clone(), Some(address.to_owned())));
        }
        drop(core);
        self.finish(afterwards);
        answers.adopted
    }

    /// Opens `stream`, from the master `name` in `term`; false if this node does not follow it any
    /// more.
    pub(in crate::driver) fn open_stream(
        &self,
        stream: &Arc<ReplicaStream>,
        term: Term,
        name: &Name,
    ) -> bool {
        let (core, mut afterwards) = (self.core.lock(), Afterwards::default());
        if !core.follows(name, term) || self.is_over() {
            return false;
        }
        {
            let mut link = self.link.lock();
            assert!(link.fence <= term, "a stream of term {term} behind the fence {}", link.fence);
            link.stream = Some(Arc::clone(stream));
        }
        let input = Input::Following { term, master: name.clone() };
        let (core, answers) = self.drive_with(core, Some(input), &mut afterwards);
        drop(core);
        self.finish(afterwards);
        !answers.unfollowed
    }

    /// Runs `change`, which cuts the log or replaces it, if this node still follows the master
    /// `name` of `term`; `None` if it does not. Nobody votes or campaigns meanwhile.
    pub(in crate::driver) fn as_follower<T>(
        &self,
        name: &Name,
        term: Term,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        let core = self.core.lock();
        if !core.follows(name, term) || self.is_over() {
            return Ok(None);
        }
        change().map(Some)
    }

    /// Whether a restore from the master `name` of `term` may replace the log. From then on this
    /// node is silent, until its next life.
    pub(in crate::driver) fn ask_commit(&self, name: &Name, term: Term) -> bool {
        let (core, mut afterwards) = (self.core.lock(), Afterwards::default());
        let ready = Input::RestoreReady { master: name.clone(), term };
        let (core, answers) = self.drive_with(core, Some(ready), &mut afterwards);
        drop(core);
        self.finish(afterwards);
        answers.permitted
    }

    fn finish(&self, afterwards: Afterwards) {
        for (master, reason, successor) in afterwards.ended {
            let why = if self.is_over() { Leaving::Closing } else { Leaving::StepsDown };
            master.close(&reason, why, successor);
        }
    }

    fn drive_with<'a>(
        &'a self,
        mut core: MutexGuard<'a, NodeCore>,
        input: Option<Input>,
        afterwards: &mut Afterwards,
    ) -> (MutexGuard<'a, NodeCore>, Answers) {
        let answers = self.drive_core(&mut core, input, afterwards);
        self.around.set_timer(core.poll_timeout().filter(|_| !self.is_over()));
        (core, answers)
    }

    fn drive_core(
        &self,
        core: &mut NodeCore,
        input: Option<Input>,
        afterwards: &mut Afterwards,
    ) -> Answers {
        let mut answers = Answers::default();
        let mut next = input;
        loop {
            if self.is_over() && next != Some(Input::Closing) {
                return answers;
            }
            let turned = self.turn(core, next.take());
            let done = turned.and_then(|rest| {
                let mut follow_up = None;
                for output in rest {
                    let input = self.perform(output, &mut answers, afterwards)?;
                    assert!(input.is_none() || follow_up.is_none(), "{follow_up:?} and {input:?}");
                    follow_up = follow_up.or(input);
                }
                Ok(follow_up)
            });
            match done {
                Ok(Some(input)) => next = Some(input),
                Ok(None) => return answers,
                Err(cause) => {
                    // What could not be made durable was not promised: what follows it is dropped.
                    self.fail(&format!("a promise cannot be kept: {cause}"));
                    return Answers::default();
                }
            }
        }
    }

    /// One input behind the gate. What goes out and needs no gate is returned.
    fn turn(&self, core: &mut NodeCore, input: Option<Input>) -> Result<Vec<Output>> {
        let stream = self.link.lock().stream.clone();
        let master = self.mastership();
        // After the look at the mastership: a life that fails gives it up, and its gate with it.
        if self.is_over() && input != Some(Input::Closing) {
            return Ok(Vec::new());
        }
        let checkpoint = self.applier.machine().checkpointed();
        let mut stream_gate = stream.as_ref().map(|stream| stream.gate());
        let mut master_gate = master.as_ref().map(|master| master.gate());
        let acked = stream_gate.as_ref().map_or(NULL_VLSN, AckGate::acked);
        let facts = self.facts(acked, checkpoint);
        let now = self.clock.now();
        match input {
            Some(input) => core.handle(now, &facts, input),
            None => core.handle_timeout(now, &facts),
        }
        let mut rest = Vec::new();
        while let Some(output) = core.poll_output() {
            match output {
                Output::Persist(promise) => self.persist(promise)?,
                Output::Fence { below } => {
                    self.link.lock().fence = below;
                    if let Some(gate) = &mut stream_gate {
                        gate.fence(below);
                    }
                    if let Some(gate) = &mut master_gate {
                        gate.fence("a newer term exists");
                    }
                }
                Output::AnswerRepair { to, ask } => self.answer_repair(core, &to, &ask),
                other => rest.push(other),
            }
        }
        Ok(rest)
    }

    fn persist(&self, promise: Promise) -> Result<()> {
        let Promise { term, vote, clear_uncertain } = promise;
        self.log.control().update(|control| {
            control.term = term;
            control.vote = vote;
            if clear_uncertain {
                control.head_uncertain = false;
            }
        })?;
        self.public.lock().term = term;
        Ok(())
    }

    fn answer_repair(&self, core: &NodeCore, to: &Name, ask: &RepairAsk) {
        match answer_ask(&self.log, ask, false, MAX_REPAIR_BYTES) {
            Ok(answer) => {
                let epoch = self.log.control().ballot().epoch;
                let body = Body::RepairAnswer(answer);
                self.around.send(to, &ElectionMsg { epoch, term: core.term(), body });
            }
            // It has turned out to be damaged just now: whoever cannot tell keeps silent.
            Err(cause) => {
                tracing::error!(node = %self.config.name, asker = %to, "no answer: {cause}");
                self.note_error(&cause);
            }
        }
    }

    /// Does what the core says; what that leads to, if anything, is to be told next.
    fn perform(
        &self,
        output: Output,
        answers: &mut Answers,
        afterwards: &mut Afterwards,
    ) -> Result<Option<Input>> {
        match output {
            Output::Persist(_) | Output::Fence { .. } | Output::AnswerRepair { .. } => {
                unreachable!("done behind the gate")
            }
            Output::Found(membership) | Output::Adopt(membership) => self.belong(membership)?,
            Output::Send { to, message } => self.around.send(&to, &message),
            Output::Seek { hints } => self.around.follow(Target::Seek { hints }),
            // The order first: a conversation that begins in between finds that it is not wanted.
            Output::Follow { master, address, term } => {
                self.public.lock().master = Some((master.clone(), Some(address.clone())));
                self.around.follow(Target::Master { name: master, address, term });
                self.close_conversation();
            }
            Output::Unfollow => {
                answers.unfollowed = true;
                self.around.follow(Target::Nobody);
                self.close_conversation();
            }
            Output::TermAnswer { adopted, .. } => answers.adopted = adopted,
            Output::AskHead { nonce } => self.ask_head(nonce),
            Output::Mend(step) => {
                return Ok(Some(Input::Mended { fitted: self.mend(step)? }));
            }
            Output::BeginMastership { term, founding } => {
                return self.begin_mastership(term, founding.as_ref());
            }
            Output::EndMastership { reason, successor } => {
                let master = self.public.lock().mastership.take();
                if let Some(master) = master {
                    // At once, for a vote may be next; who waits is told with no lock held.
                    master.gate().fence(&reason);
                    afterwards.ended.push((master, reason, successor));
                }
            }
            Output::PermitCommit => answers.permitted = true,
            Output::AbandonRestore => {
                answers.permitted = false;
                self.cut_channel();
            }
            Output::Tell(event) => self.publish(event),
            Output::Alarm(text) => {
                tracing::error!(node = %self.config.name, "{text}");
                self.notes.lock().last_error = Some(text);
            }
        }
        Ok(None)
    }

    /// This node belongs to a group from now on.
    fn belong(&self, membership: Membership) -> Result<()> {
        let Membership { group, electorate } = &membership;
        let config = Bytes::from(electorate.encode());
        if let Some(own) = self.log.group()
            && own.id != group.id
        {
            let (name, ours, theirs) = (own.name, own.id, group.id);
            return Err(RejectReason::WrongGroup { name, ours, theirs }.into());
        }
        // First, for without a group it means nothing; a directory with a group is never without it.
        self.log.control().update(|control| control.group_config = config)?;
        self.log.found(group.clone())?;
        tracing::info!(node = %self.config.name, group = %group.name, "belongs to a group");
        self.set_membership(membership);
        Ok(())
    }

    pub(in crate::driver) fn set_membership(&self, membership: Membership) {
        self.public.lock().membership = Some(Arc::new(membership));
        self.meet_voters();
    }

    pub(super) fn meet_voters(&self) {
        if let Some(membership) = self.membership() {
            let voters = membership.electorate.voters.iter();
            self.around.meet(voters.map(|voter| voter.address.clone()).collect());
        }
    }

    /// Cuts the connection of the conversation under way; whoever holds it finds out.
    pub(super) fn cut_channel(&self) {
        let channel = self.link.lock().channel.take();
        if let Some(channel) = channel {
            channel.close();
        }
    }

    /// Makes `channel` the conversation's; false if the life is over.
    pub(in crate::driver) fn adopt_channel(&self, channel: &Arc<dyn Channel>) -> bool {
        let mut link = self.link.lock();
        if self.is_over() {
            return false;
        }
        link.channel = Some(Arc::clone(channel));
        true
    }

    /// Makes `channel` that of a restore from the master `name` of `term`; false if this node does not
    /// follow it any more.
    pub(in crate::driver) fn adopt_restore(
        &self,
        channel: &Arc<dyn Channel>,
        name: &Name,
        term: Term,
    ) -> bool {
        let mut link = self.link.lock();
        let followed = link.followed.as_ref().is_some_and(|f| f.name == *name && f.term == term);
        if followed && !self.is_over() {
            link.channel = Some(Arc::clone(channel));
        }
        followed && !self.is_over()
    }

    /// Ends the conversation, if it is not over: on return nothing more of it is appended to the log.
    /// Returns the master whose term was adopted in it, unless this node was told since to follow
    /// nobody or another.
    pub(in crate::driver) fn close_conversation(&self) -> Option<Name> {
        let (channel, followed, stream) = {
            let mut link = self.link.lock();
            (link.channel.take(), link.followed.take(), link.stream.take())
        };
        if let Some(channel) = channel {
            channel.close();
        }
        if let Some(stream) = stream {
            stream.halt();
        }
        followed.map(|followed| followed.name)
    }

    /// This stream is over: it knows this life, and is not to be kept by it.
    pub(in crate::driver) fn forget_stream(&self, stream: &Arc<ReplicaStream>) {
        self.link.lock().stream.take_if(|open| Arc::ptr_eq(open, stream));
    }

    pub(in crate::driver) fn set_restoring(&self, restoring: bool) {
        self.public.lock().restoring = restoring;
        self.changed.notify_all();
    }

    fn ask_head(&self, nonce: u64) {
        let stream = self.link.lock().stream.clone();
        if let Some(stream) = stream
            && let Err(cause) = stream.ask_head(nonce)
        {
            tracing::debug!(node = %self.config.name, "asking for the master's log end: {cause}");
        }
    }

    fn put_back(&self, damage: &Damage, through: Vlsn, bytes: Vec<u8>) -> Result<bool> {
        let fitted = put_back(&self.log, damage, through, bytes)?;
        self.applier.signal(); // it may have waited for just these
        Ok(fitted)
    }

    fn mend(&self, step: RepairStep) -> Result<bool> {
        match step {
            RepairStep::Splice { damage, bytes } => self.put_back(&damage, damage.last, bytes),
            RepairStep::SplicePrefix { damage, through, bytes } => {
                self.put_back(&damage, through, bytes)
            }
            RepairStep::TruncateAfter { vlsn } => {
                let term = self.log.control().ballot().term;
                self.cut_to_lost(vlsn, &self.me.name, term)?;
                Ok(true)
            }
        }
    }

    fn begin_mastership(&self, term: Term, founding: Option<&Electorate>) -> Result<Option<Input>> {
        let Some(membership) = self.membership() else { panic!("master of term {term} alone") };
        self.around.follow(Target::Nobody);
        self.close_conversation();
        let body = term_body(self.clock.wall_clock_ms(), term, &self.me.name);
        let mut entries = vec![NewEntry::new(EntryKind::TERM, EntryFlags::SYNC, &body)];
        let config = founding.map(Electorate::encode);
        if let Some(config) = &config {
            entries.push(NewEntry::new(EntryKind::GROUP, EntryFlags::SYNC, config));
        }
        let appended = self.log.append(term, &entries)?; // there is a reserve for it on a full disk
        let around = Arc::clone(&self.around);
        let recovering = self.recovering(term, &membership.electorate);
        let master = Arc::new(Master::new(
            term,
            appended.first,
            Quorum::of_electorate(&self.me.name, self.me.incarnation, &membership.electorate),
            self.housekeeper.dtvlsn().min(appended.first.prev()),
            self.log.clone(),
            self.clock.clone(),
            self.config.limits,
            Arc::clone(&self.applier),
            Arc::clone(&self.housekeeper),
            recovering,
            Box::new(move || around.post(Input::TermDurable { term })),
        ));
        self.public.lock().mastership = Some(Arc::clone(&master));
        self.log.request_sync();
        // What was synced before the hook could reach the mastership.
        master.handle_local_durable(self.log.positions().durable);
        tracing::info!(node = %self.config.name, %term, "master");
        Ok(Some(Input::TermAppended { first: appended.first, last: appended.last }))
    }

    /// What decides in this mastership how the others get level.
    fn recovering(&self, term: Term, electorate: &Electorate) -> Recovering {
        let others = electorate.voters.iter().filter(|voter| voter.name != self.me.name);
        let members = others.map(|voter| (voter.name.clone(), Some(voter.incarnation))).collect();
        let era = Era { epoch: self.log.control().ballot().epoch, term };
        let positions = self.log.positions();
        let bounds = Bounds {
            first: positions.anchor.vlsn.next(),
            last: positions.last,
            dtvlsn: self.housekeeper.dtvlsn(),
        };
        // No session of an earlier engine has a number of this one, and none has the number 0.
        let first_number = self.env.entropy() >> 1 | 1;
        Recovering::new(era, members, first_number, self.clock.now(), bounds)
    }

    /// Tells everybody what the node has become.
    fn publish(&self, event: StateEvent) {
        let StateEvent { role, term, master, reason } = event;
        let role = match role {
            NodeRole::Master => Role::Master,
            NodeRole::Replica => Role::Replica,
            NodeRole::Unknown | NodeRole::Repairing => Role::Unknown,
            // The end of a life is told by whoever ends it.
            NodeRole::Detached => return,
        };
        let change = {
            let mut public = self.public.lock();
            if public.role == Role::Stopped {
                return;
            }
            let known = public.master.take();
            let address = |name: &Name| {
                if *name == self.me.name {
                    return Some(self.address.clone());
                }
                known.filter(|(known, _)| known == name).and_then(|(_, address)| address)
            };
            public.master = master.map(|name| {
                let address = address(&name);
                (name, address)
            });
            public.role = role;
            public.term = term;
            public.reason.clone_from(&reason);
            let (master, master_address) = public.master.clone().unzip();
            StateChange { role, term, master, master_address: master_address.flatten(), reason }
        };
        tracing::info!(node = %self.config.name, role = %change.role, term = %change.term, "{}", change.reason);
        self.changed.notify_all();
        self.around.tell(change);
    }

    /// Who sent what, for the core.
    pub(in crate::driver) fn met_term(&self, term: Term, name: &Name, incarnation: Incarnation) {
        let who = Peer { name: name.clone(), incarnation };
        self.around.post(Input::TermMet { term, who });
    }
}
