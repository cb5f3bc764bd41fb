//! Node: what one node is to its group: who may vote, whom it follows, when it campaigns, when it
//! makes way.
//!
//! # The contract
//! The driver takes a snapshot of [`Facts`], hands it in with one [`Input`] (or with the time, when
//! [`NodeCore::poll_timeout`] says so), then drains [`NodeCore::poll_output`]. For a vote, a nack
//! and every other answer that raises the term, no acknowledgement leaves the node from before the
//! snapshot until the outputs are drained, so that the log end that is compared covers each
//! acknowledgement that ever left.
//!
//! [`Output::Persist`], [`Output::Found`] and [`Output::Adopt`] are *barriers*: durable before any
//! later output is performed. If one fails the node stops, and what follows it is dropped. So no
//! vote leaves before it is durable.
//!
//! # Invariants          (each is asserted, most in `check_invariants`)
//! - The term never falls, and the vote within a term never changes.
//! - A real grant leaves only for the candidate that the durable vote names.
//! - No acknowledgement of a term below the own one leaves: a fence goes with each new term.
//! - Candidacy and mastership are volatile. A candidate's term is above every term it ever held, so
//!   what was granted for an earlier one counts for nothing.
//! - A candidate that votes count for is as good as its request said, or better.
//!
//! # States
//! ```text
//!             Founding --all members known--> Follower <--adopted, bound-- Joining
//!                                                 |  ^
//!                                     campaign_at |  | lost, too late, higher term, a master
//!                                                 v  |
//!                             Candidate(Pre) --won--> Candidate(Real)
//!                                                      | won
//!                    deposed, higher term, stall       v
//!     Follower <-------------------------------- Repairing --whole--> Master
//!         ^                                                              |
//!         +------------- quorum lost, higher term, stall, yield ---------+
//!     Follower, Joining --restore may commit--> Installing (silent until the next life)
//!     any --closing, exhausted--> Stopped
//! ```
//!
//! # Not here: the tables of votes (core/election.rs) and repair (core/repair.rs), streams
//! (core/feeder.rs, core/replica.rs), what is durable on a quorum (core/commits.rs).
//! # See: CONSENSUS.md

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use noxu_util::{Name, Term, Vlsn};

use crate::core::commits::Now;
use crate::core::election::{Campaign, Tally, VoterView, judge};
use crate::core::quorums::Quorums;
use crate::core::repair::{Repair, RepairOutput, RepairSetup};
use crate::group::{Electorate, Voter, VoterKind};
use crate::mutant::{self, Mutant};
use crate::wire::election::{
    Body, ElectionMsg, FoundedGroup, LeadPhase, LogEnd, NodeRole, Peer, Phase, Purpose, Refusal,
    RepairAnswer, RepairAsk, Standing, Verdict, VoteAnswer, VoteRequest,
};
use crate::wire::handshake::NodeKind;

mod io;

pub use io::{
    Ballot, Contact, ElectionTiming, Ended, Facts, FoundingWish, Input, Membership, NodeSetup,
    Output, PeerCard, Promise, StateEvent, StreamFacts,
};

/// The core of one node.
#[derive(Debug, Clone)]
pub struct NodeCore {
    setup: NodeSetup,
    membership: Option<Membership>,
    /// As the control file has it.
    promised: Ballot,
    /// No acknowledgement of a term below it leaves.
    fenced_at: Term,
    /// The highest term met anywhere.
    seen: Term,
    links: BTreeMap<Name, PeerCard>,
    standings: BTreeMap<Name, Standing>,
    state: State,
    /// How this node stands, as others were told last, and when.
    told: Option<(Standing, Now)>,
    /// When others are to be told.
    tell_at: Option<Now>,
    event: Option<StateEvent>,
    rng: fastrand::Rng,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone)]
enum State {
    Founding(Founding),
    Joining(Joining),
    Follower(Follower),
    Candidate(Candidate),
    Repairing(Repairing),
    Master(Mastership),
    Installing,
    Stopped,
}

#[derive(Debug, Clone)]
struct Founding {
    wish: FoundingWish,
    known: BTreeMap<Name, Voter>,
}

/// No voter: follows, never votes, never campaigns.
#[derive(Debug, Clone)]
struct Joining {
    following: Option<Followed>,
}

#[derive(Debug, Clone)]
struct Follower {
    following: Option<Followed>,
    campaign_at: Now,
    backoff: u32,
    /// Nothing was heard of a master in this life.
    starting: bool,
}

#[derive(Debug, Clone)]
struct Followed {
    master: Name,
    term: Term,
    stage: Stage,
    head_nonce: Option<u64>,
}

/// How far a replica has come with its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The driver was told to dial.
    Dialling,
    /// The master is established and its term durable here; the logs are being compared. From here
    /// on silence of the master is what elections are about.
    Welcomed,
    /// Entries come.
    Streaming,
}

impl Followed {
    fn is_open(&self) -> bool {
        match self.stage {
            Stage::Dialling => false,
            Stage::Welcomed | Stage::Streaming => true,
        }
    }
}

#[derive(Debug, Clone)]
struct Candidate {
    campaign: Campaign,
    deadline: Now,
    following: Option<Followed>,
    backoff: u32,
}

#[derive(Debug, Clone)]
struct Repairing {
    term: Term,
    repair: Repair,
    granted: BTreeSet<Name>,
    since: Now,
    lead_at: Now,
}

#[derive(Debug, Clone)]
struct Mastership {
    term: Term,
    /// `Some` when established.
    term_entry: Option<Vlsn>,
    durable: bool,
    /// Who elected it: in touch at `since`.
    granted: BTreeSet<Name>,
    since: Now,
    look_at: Now,
    lead_at: Now,
}

/// How many times the wait between campaigns doubles at most; the longest wait ends it earlier.
const MOST_BACKOFF: u32 = 8;

impl NodeCore {
    /// A node that starts, with what its directory says.
    ///
    /// # Panics
    /// If it is to found a group in which it has no vote.
    pub fn new(now: Now, setup: NodeSetup, ballot: Ballot, membership: Option<Membership>) -> Self {
        let mut core = Self {
            rng: fastrand::Rng::with_seed(setup.seed),
            fenced_at: ballot.term,
            seen: ballot.term,
            promised: ballot,
            links: BTreeMap::new(),
            standings: BTreeMap::new(),
            state: State::Stopped,
            told: None,
            tell_at: None,
            event: None,
            outputs: VecDeque::new(),
            setup,
            membership,
        };
        match (core.membership.is_some(), core.setup.founding.clone()) {
            (false, Some(wish)) => {
                let electable = core.setup.kind == NodeKind::Electable;
                let me = &core.setup.me.name;
                assert!(electable && wish.members.contains(me), "{me} founds a group of others");
                core.state = State::Founding(Founding { wish, known: BTreeMap::new() });
                let (me, address) = (core.setup.me.clone(), core.setup.address.clone());
                core.handle_joiner(now, me, address);
            }
            (true, _) if core.is_voter() => {
                let alone = core.voters().len() == 1;
                let wait = if alone {
                    Duration::ZERO
                } else {
                    core.between(core.setup.timing.startup_wait)
                };
                core.state = State::Follower(Follower {
                    following: None,
                    campaign_at: now + wait,
                    backoff: 0,
                    starting: true,
                });
                core.seek();
            }
            (true | false, _) => {
                core.state = State::Joining(Joining { following: None });
                core.seek();
            }
        }
        core
    }

    // ---------------------------------------------------------------- what others may ask

    /// The own term, durable.
    pub fn term(&self) -> Term {
        self.promised.term
    }

    /// What it is.
    pub fn role(&self) -> NodeRole {
        match &self.state {
            State::Founding(_) | State::Candidate(_) | State::Installing => NodeRole::Unknown,
            State::Joining(Joining { following }) | State::Follower(Follower { following, .. }) => {
                match following {
                    Some(Followed { stage: Stage::Streaming, .. }) => NodeRole::Replica,
                    Some(_) | None => NodeRole::Unknown,
                }
            }
            State::Repairing(_) => NodeRole::Repairing,
            State::Master(mastership) => match mastership.term_entry {
                Some(_) => NodeRole::Master,
                None => NodeRole::Unknown,
            },
            State::Stopped => NodeRole::Detached,
        }
    }

    /// The term of which it is the established master, and whether its Term entry is durable on a
    /// quorum.
    pub fn mastership(&self) -> Option<(Term, bool)> {
        match &self.state {
            State::Master(mastership) => {
                mastership.term_entry.map(|_| (mastership.term, mastership.durable))
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Installing
            | State::Stopped => None,
        }
    }

    /// The group, once there is one.
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// The master, as far as it is known.
    pub fn master(&self) -> Option<&Name> {
        match &self.state {
            State::Master(_) => Some(&self.setup.me.name),
            State::Joining(Joining { following })
            | State::Follower(Follower { following, .. })
            | State::Candidate(Candidate { following, .. }) => {
                following.as_ref().map(|followed| &followed.master)
            }
            State::Founding(_) | State::Repairing(_) | State::Installing | State::Stopped => None,
        }
    }

    /// When [`NodeCore::handle_timeout`] is due; `None` if time changes nothing.
    pub fn poll_timeout(&self) -> Option<Now> {
        let own = match &self.state {
            State::Founding(_) | State::Joining(_) | State::Installing | State::Stopped => None,
            State::Follower(follower) => Some(follower.campaign_at),
            State::Candidate(candidate) => Some(candidate.deadline),
            State::Repairing(repairing) => {
                let patience = repairing.since + self.setup.timing.repair_patience;
                let asking = repairing.repair.poll_timeout().unwrap_or(patience);
                Some(patience.min(asking).min(repairing.lead_at))
            }
            State::Master(mastership) => Some(mastership.look_at),
        };
        match (own, self.tell_at) {
            (Some(own), Some(tell)) => Some(own.min(tell)),
            (own, tell) => own.or(tell),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // ---------------------------------------------------------------- inputs

    /// Something happened.
    pub fn handle(&mut self, now: Now, facts: &Facts, input: Input) {
        check_facts(facts);
        match input {
            Input::Message { from, message } => self.handle_message(now, facts, &from, message),
            Input::LinkUp(card) => self.handle_link(now, facts, card),
            Input::LinkDown { name } => {
                self.links.remove(&name);
                self.standings.remove(&name);
            }
            Input::Joiner { peer, address } => self.handle_joiner(now, peer, address),
            Input::AskTerm { term, master } => self.handle_ask_term(now, term, &master),
            Input::Following { term, master } => self.handle_following(now, facts, term, &master),
            Input::FollowEnded { master, why } => {
                self.handle_follow_ended(now, master.as_ref(), &why);
            }
            Input::TermMet { term, who } => self.handle_term_met(now, term, &who),
            Input::TermAppended { first, last } => self.handle_term_appended(now, first, last),
            Input::TermDurable => self.handle_term_durable(facts),
            Input::Mended { fitted } => self.handle_mended(now, facts, fitted),
            Input::HeadConfirmed { nonce, head } => self.handle_head_confirmed(facts, nonce, head),
            Input::RestoreReady { term } => self.handle_restore_ready(term),
            Input::ConfigChanged(membership) => self.handle_config(now, membership),
            Input::Closing => self.handle_closing(now, facts),
        }
        self.handle_timeout(now, facts);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now, facts: &Facts) {
        check_facts(facts);
        match &mut self.state {
            State::Follower(follower) if now >= follower.campaign_at => {
                match heard(now, facts, follower.following.as_ref(), &self.setup.timing) {
                    Some(stream) => {
                        follower.campaign_at = stream.heard + self.setup.timing.failure_timeout;
                    }
                    None => self.campaign(now, facts),
                }
            }
            State::Candidate(candidate) if now >= candidate.deadline => self.handle_lost(now),
            State::Repairing(repairing) => {
                repairing.repair.handle_timeout(now);
                let term = repairing.term;
                if now >= repairing.lead_at {
                    repairing.lead_at = now + self.setup.timing.repair_retry;
                    self.lead_all(LeadPhase::Repairing);
                }
                self.drain_repair();
                self.look_at_repair(now, facts, term);
            }
            State::Master(mastership) if now >= mastership.look_at => self.look(now, facts),
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
        self.announce(now, facts);
        self.check_invariants();
    }

    fn handle_message(&mut self, now: Now, facts: &Facts, from: &Peer, message: ElectionMsg) {
        let ElectionMsg { epoch, term, body } = message;
        if self.is_silent() {
            return;
        }
        if from.name == self.setup.me.name {
            return; // Another node of this name: the links' handshake refuses it.
        }
        if let Body::VoteRequest(request) = body {
            self.handle_vote_request(now, facts, from, epoch, &request);
            return;
        }
        if let Body::Founding { identity: group, electorate } = body {
            self.handle_founding(now, from, group, electorate);
            return;
        }
        if epoch != self.promised.epoch || !self.listens_to(from) {
            return;
        }
        self.seen = self.seen.max(term);
        match body {
            Body::VoteRequest(_) | Body::Founding { .. } | Body::Founded => {}
            Body::VoteAnswer(answer) => self.handle_vote_answer(now, facts, from, &answer),
            Body::Lead { address, phase } => {
                self.handle_lead(now, facts, from, term, address, phase);
            }
            Body::Standing(standing) => {
                self.handle_standing(now, from, &standing);
                self.standings.insert(from.name.clone(), standing);
                self.handle_term_met(now, term, from);
            }
            Body::RepairAsk(ask) => self.handle_repair_ask(now, facts, from, term, ask),
            Body::RepairAnswer(answer) => self.handle_repair_answer(now, from, term, &answer),
            Body::Yield { successor } => self.handle_yield(now, from, &successor),
        }
    }

    fn handle_link(&mut self, now: Now, facts: &Facts, card: PeerCard) {
        let peer = card.peer.clone();
        if peer.name == self.setup.me.name {
            return;
        }
        let fresh = card.group.is_none();
        let (term, address) = (card.term, card.address.clone());
        self.links.insert(peer.name.clone(), card);
        if self.is_silent() {
            return;
        }
        if fresh {
            self.handle_joiner(now, peer.clone(), address);
            self.hand_on(&peer);
        }
        if self.listens_to(&peer) {
            self.seen = self.seen.max(term);
            self.handle_term_met(now, term, &peer);
        }
        let standing = self.standing(facts);
        self.send(&peer.name, Body::Standing(standing));
        match &self.state {
            State::Repairing(_) => self.lead(&peer.name, LeadPhase::Repairing),
            State::Master(mastership) if mastership.term_entry.is_some() => {
                self.lead(&peer.name, LeadPhase::Established);
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    // ---------------------------------------------------------------- founding

    fn handle_joiner(&mut self, now: Now, peer: Peer, address: String) {
        let State::Founding(founding) = &mut self.state else { return };
        if !founding.wish.members.contains(&peer.name) {
            return;
        }
        let voter = Voter {
            name: peer.name.clone(),
            incarnation: peer.incarnation,
            kind: VoterKind::Data,
            address,
        };
        founding.known.insert(peer.name, voter);
        let known = |name: &Name| founding.known.get(name).cloned();
        let voters: Option<Vec<Voter>> = founding.wish.members.iter().map(known).collect();
        let Some(voters) = voters else { return };
        let FoundingWish { group, q_rep, q_elect, .. } = founding.wish.clone();
        let membership = Membership { group, electorate: Electorate { voters, q_rep, q_elect } };
        if let Err(bad) = membership.electorate.check() {
            self.alarm(format!("the group cannot be founded: {bad}"));
            return;
        }
        self.outputs.push_back(Output::Found(membership.clone()));
        self.membership = Some(membership);
        let fresh: Vec<Peer> = self
            .links
            .values()
            .filter(|card| card.group.is_none())
            .map(|card| card.peer.clone())
            .collect();
        self.become_follower(now, None, now, 0, "the group is founded");
        for peer in &fresh {
            self.hand_on(peer);
        }
    }

    /// Hands the group's configuration to a fresh node that it binds.
    fn hand_on(&mut self, peer: &Peer) {
        let Some(Membership { group, electorate }) = self.membership.clone() else { return };
        if electorate.is_voter(&peer.name, peer.incarnation) {
            self.send(&peer.name, Body::Founding { identity: group, electorate });
        }
    }

    fn handle_founding(
        &mut self,
        now: Now,
        from: &Peer,
        group: FoundedGroup,
        electorate: Electorate,
    ) {
        if self.membership.is_some() {
            return;
        }
        let welcome = match &self.state {
            State::Founding(founding) => founding.wish.group.name == group.name,
            State::Joining(_) => {
                self.setup.group_name.as_ref().is_none_or(|name| *name == group.name)
            }
            State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => false,
        };
        let me = &self.setup.me;
        if !welcome
            || !electorate.is_voter(&me.name, me.incarnation)
            || electorate.quorums().is_err()
        {
            return;
        }
        let membership = Membership { group, electorate };
        self.outputs.push_back(Output::Adopt(membership.clone()));
        self.membership = Some(membership);
        let patience = now + self.setup.timing.failure_timeout;
        if self.is_voter() {
            self.become_follower(now, None, patience, 0, "the group was founded");
        }
        self.send(&from.name, Body::Founded);
        let fresh: Vec<Peer> = self
            .links
            .values()
            .filter(|card| card.group.is_none())
            .map(|card| card.peer.clone())
            .collect();
        for peer in &fresh {
            self.hand_on(peer);
        }
    }

    fn handle_config(&mut self, now: Now, membership: Membership) {
        if let Some(own) = &self.membership {
            assert_eq!(own.group, membership.group, "the configuration of another group");
        }
        self.membership = Some(membership);
        match &self.state {
            State::Joining(Joining { following }) if self.is_voter() => {
                let following = following.clone();
                let at = now + self.setup.timing.failure_timeout;
                self.become_follower(now, following, at, 0, "a voter now");
            }
            State::Follower(Follower { following, .. })
            | State::Candidate(Candidate { following, .. })
                if !self.is_voter() =>
            {
                self.state = State::Joining(Joining { following: following.clone() });
                self.tell("no voter any more");
            }
            // A round counts by the configuration that it began with.
            State::Candidate(Candidate { following, backoff, .. }) => {
                let (following, backoff) = (following.clone(), *backoff);
                self.become_follower(now, following, now, backoff, "another configuration");
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    // ---------------------------------------------------------------- votes

    fn handle_vote_request(
        &mut self,
        now: Now,
        facts: &Facts,
        from: &Peer,
        epoch: u32,
        request: &VoteRequest,
    ) {
        let (sitting, installing, campaign) = match &self.state {
            State::Founding(_) | State::Joining(_) | State::Follower(_) | State::Repairing(_) => {
                (false, false, None)
            }
            State::Candidate(candidate) => (false, false, Some(candidate.campaign.rivalry())),
            State::Master(mastership) => (
                mastership.term_entry.is_some() && !self.is_deposed(now, facts, mastership),
                false,
                None,
            ),
            State::Installing | State::Stopped => (false, true, None),
        };
        let judgement = {
            let stream =
                self.following().and_then(|f| heard(now, facts, Some(f), &self.setup.timing));
            let view = VoterView {
                me: &self.setup.me,
                priority: self.setup.priority,
                epoch: self.promised.epoch,
                term: self.promised.term,
                vote: self.promised.vote.as_ref(),
                electorate: self.membership.as_ref().map(|m| &m.electorate),
                head: facts.head,
                uncertain: facts.uncertain,
                installing,
                sitting,
                heard: stream.map(|s| &s.master),
                campaign,
            };
            judge(&view, epoch, from, request)
        };
        let Some(verdict) = judgement.verdict else { return };
        self.seen = self.seen.max(if judgement.raise { request.asked } else { Term::ZERO });
        let granted = match verdict {
            Verdict::Granted { .. } => true,
            Verdict::Refused(Refusal::Fork) => {
                self.alarm(format!(
                    "ALARM: the log of {} ends at {} like this one, with fingerprint {} there and \
                     {} here",
                    from.name, request.head, request.head.fingerprint, facts.head.fingerprint
                ));
                false
            }
            Verdict::Refused(_) => false,
        };
        let vote = (granted && request.phase == Phase::Real).then(|| from.name.clone());
        if judgement.raise {
            self.raise(request.asked, vote.clone());
            let at = if granted {
                now + self.setup.timing.failure_timeout
            } else {
                now + self.between(self.setup.timing.retry)
            };
            self.become_follower(now, None, at, 0, "another campaigns in a newer term");
        } else if let Some(vote) = vote
            && self.promised.vote.as_ref() != Some(&vote)
        {
            self.promise(self.promised.term, Some(vote), false);
        }
        if granted {
            self.hold_back(now, request.phase);
        }
        let answer = VoteAnswer {
            phase: request.phase,
            nonce: request.nonce,
            asked: request.asked,
            verdict,
        };
        self.send(&from.name, Body::VoteAnswer(answer));
        if verdict == Verdict::Refused(Refusal::Rival)
            && let State::Candidate(candidate) = &mut self.state
            && candidate.campaign.handle_rival(&from.name)
        {
            let request = *candidate.campaign.request();
            self.send(&from.name, Body::VoteRequest(request));
        }
    }

    /// Whoever granted lets the other go ahead.
    fn hold_back(&mut self, now: Now, phase: Phase) {
        let wait = match phase {
            Phase::Pre => self.between(self.setup.timing.retry),
            Phase::Real => self.setup.timing.failure_timeout,
        };
        match &mut self.state {
            State::Follower(follower) => {
                follower.campaign_at = follower.campaign_at.max(now + wait);
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_vote_answer(&mut self, now: Now, facts: &Facts, from: &Peer, answer: &VoteAnswer) {
        match &mut self.state {
            State::Candidate(candidate) => {
                candidate.campaign.handle_answer(from, answer);
                self.conduct(now, facts);
            }
            // Of a round that is over.
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    /// Campaigns, if this node may.
    fn campaign(&mut self, now: Now, facts: &Facts) {
        let State::Follower(follower) = &self.state else { panic!("campaign in {:?}", self.state) };
        let (following, backoff) = (follower.following.clone(), follower.backoff);
        if self.may_campaign(facts) {
            self.become_candidate(now, facts, Phase::Pre, following, backoff);
        } else {
            let at = now + self.retry_wait(backoff);
            let State::Follower(follower) = &mut self.state else { unreachable!() };
            follower.campaign_at = at;
        }
    }

    fn may_campaign(&self, facts: &Facts) -> bool {
        let me = &self.setup.me;
        let electable = self
            .membership
            .as_ref()
            .is_some_and(|m| m.electorate.is_electable(&me.name, me.incarnation));
        if !electable || facts.stalled_for >= self.setup.timing.disk_stall {
            return false;
        }
        // Priority 0 is master only to bring a better one up to its own log.
        self.setup.priority > 0
            || self.standings.iter().any(|(name, standing)| {
                self.links.contains_key(name)
                    && standing.priority > 0
                    && standing.head.compare(&facts.head).is_lt()
            })
    }

    fn become_candidate(
        &mut self,
        now: Now,
        facts: &Facts,
        phase: Phase,
        following: Option<Followed>,
        backoff: u32,
    ) {
        let newest = self.seen.max(self.promised.term).number();
        let Some(asked) = newest.checked_add(1).map(Term::new) else {
            self.alarm("ALARM: the terms are exhausted".to_owned());
            self.become_stopped("the terms are exhausted");
            return;
        };
        let me = self.setup.me.clone();
        let resumes =
            mutant::is_on(Mutant::TermResumed) && self.promised.vote == Some(me.name.clone());
        let asked = if resumes { self.promised.term } else { asked };
        let following = match phase {
            Phase::Pre => following,
            Phase::Real if resumes => None,
            Phase::Real => {
                assert!(asked > self.promised.term, "{asked} after {}", self.promised.term);
                self.raise(asked, Some(me.name.clone()));
                None
            }
        };
        let request = VoteRequest {
            phase,
            nonce: self.rng.u64(..),
            asked,
            head: facts.head,
            priority: self.setup.priority,
            uncertain: facts.uncertain,
        };
        let Some(membership) = &self.membership else { panic!("a candidate without a group") };
        let campaign = Campaign::new(&me, &membership.electorate, request);
        let others: Vec<Name> = campaign.others().iter().map(|peer| peer.name.clone()).collect();
        let base = self.setup.timing.campaign_timeout;
        let deadline = now + base + self.below(base);
        self.state = State::Candidate(Candidate { campaign, deadline, following, backoff });
        for name in &others {
            self.send(name, Body::VoteRequest(request));
        }
        self.tell("campaigns");
        self.conduct(now, facts);
    }

    /// What the answers of the round come to.
    fn conduct(&mut self, now: Now, facts: &Facts) {
        let State::Candidate(candidate) = &self.state else { panic!("no campaign") };
        match (candidate.campaign.tally(), candidate.campaign.phase()) {
            (Tally::Open, Phase::Pre | Phase::Real) => {}
            (Tally::Lost, Phase::Pre | Phase::Real) => self.handle_lost(now),
            (Tally::Won, Phase::Pre) => {
                let backoff = candidate.backoff;
                self.become_candidate(now, facts, Phase::Real, None, backoff);
            }
            (Tally::Won, Phase::Real) => self.become_elected(now, facts),
        }
    }

    /// The round is lost, or took too long.
    fn handle_lost(&mut self, now: Now) {
        let State::Candidate(candidate) = &self.state else { panic!("no campaign") };
        let hopeless = [Refusal::BetterHead, Refusal::Fork, Refusal::NotElectable, Refusal::Epoch];
        let worse = hopeless.into_iter().any(|why| candidate.campaign.was_refused(why));
        let backoff = candidate.backoff + u32::from(worse);
        let following = candidate.following.clone();
        let at = now + self.retry_wait(backoff);
        self.become_follower(now, following, at, backoff, "the campaign was lost");
    }

    fn become_elected(&mut self, now: Now, facts: &Facts) {
        let State::Candidate(candidate) = &self.state else { panic!("elected without a campaign") };
        let campaign = &candidate.campaign;
        let term = campaign.request().asked;
        assert_eq!(term, self.promised.term, "elected in another term than the own one");
        assert_eq!(self.promised.vote.as_ref(), Some(&self.setup.me.name));
        assert!(
            facts.head.compare(&campaign.request().head).is_ge(),
            "the log was cut to {} after votes were asked for with {}",
            facts.head,
            campaign.request().head
        );
        let granted: BTreeSet<Name> = campaign.granted().cloned().collect();
        if facts.restoring {
            self.outputs.push_back(Output::AbandonRestore);
        }
        if facts.damaged.is_empty() {
            self.become_master(now, facts, term, granted);
            return;
        }
        let setup = RepairSetup {
            quorums: self.quorums(),
            others: self.other_voters(),
            retry: self.setup.timing.repair_retry,
            max_bytes: self.setup.max_repair_bytes,
            nonce: self.rng.u64(..),
            floor: facts.commit_floor.max(facts.dtvlsn),
        };
        let repair = Repair::new(now, setup, &facts.damaged);
        self.state =
            State::Repairing(Repairing { term, repair, granted, since: now, lead_at: now });
        self.tell("elected; mends its log");
    }

    fn become_master(&mut self, now: Now, facts: &Facts, term: Term, granted: BTreeSet<Name>) {
        let founding = match &self.membership {
            Some(membership) if facts.head.vlsn.is_null() => Some(membership.electorate.clone()),
            Some(_) | None => None,
        };
        self.state = State::Master(Mastership {
            term,
            term_entry: None,
            durable: false,
            granted,
            since: now,
            look_at: now + self.setup.timing.heartbeat,
            lead_at: now,
        });
        self.outputs.push_back(Output::BeginMastership { term, founding });
    }

    // ---------------------------------------------------------------- masters and replicas

    fn handle_lead(
        &mut self,
        now: Now,
        facts: &Facts,
        from: &Peer,
        term: Term,
        address: String,
        phase: LeadPhase,
    ) {
        if term < self.promised.term {
            let standing = self.standing(facts); // tells it the newer term
            self.send(&from.name, Body::Standing(standing));
            return;
        }
        let rules = match &self.state {
            State::Master(Mastership { term, .. }) | State::Repairing(Repairing { term, .. }) => {
                Some(*term)
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Installing
            | State::Stopped => None,
        };
        if let Some(own) = rules {
            if own == term {
                self.alarm(format!("ALARM: {} is master of term {term} too", from.name));
                return;
            }
            self.step_down(now, now + self.setup.timing.failure_timeout, "a newer master", None);
        }
        let wait = now + self.setup.timing.failure_timeout;
        match &mut self.state {
            State::Founding(_) | State::Installing | State::Stopped => {}
            State::Joining(_) | State::Follower(_) | State::Candidate(_) => match phase {
                LeadPhase::Established => {
                    let known = self.following();
                    if known.is_some_and(|f| f.master == from.name && f.term >= term) {
                        return;
                    }
                    let reason = "a master made itself known";
                    self.become_following(now, &from.name, term, Stage::Dialling, reason);
                    let master = from.name.clone();
                    self.outputs.push_back(Output::Follow { master, address, term });
                }
                LeadPhase::Repairing => match &mut self.state {
                    State::Follower(follower) => follower.campaign_at = wait,
                    State::Candidate(candidate) => {
                        let following = candidate.following.clone();
                        self.become_follower(now, following, wait, 0, "a master mends its log");
                    }
                    State::Founding(_)
                    | State::Joining(_)
                    | State::Repairing(_)
                    | State::Master(_)
                    | State::Installing
                    | State::Stopped => {}
                },
            },
            State::Repairing(_) | State::Master(_) => panic!("still leads: {:?}", self.state),
        }
    }

    fn handle_ask_term(&mut self, now: Now, term: Term, master: &Name) {
        let free = match &self.state {
            State::Joining(_) | State::Follower(_) | State::Candidate(_) => true,
            State::Founding(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => false,
        };
        let adopted = free && term >= self.promised.term && *master != self.setup.me.name;
        if adopted {
            self.seen = self.seen.max(term);
            if term > self.promised.term {
                // Who was followed until now is no matter: this is the conversation that goes on.
                match &mut self.state {
                    State::Joining(Joining { following })
                    | State::Follower(Follower { following, .. })
                    | State::Candidate(Candidate { following, .. }) => *following = None,
                    State::Founding(_)
                    | State::Repairing(_)
                    | State::Master(_)
                    | State::Installing
                    | State::Stopped => {}
                }
                self.raise(term, None);
            }
            self.become_following(now, master, term, Stage::Welcomed, "a master was found");
        }
        self.outputs.push_back(Output::TermAnswer { term, adopted });
    }

    fn handle_following(&mut self, now: Now, facts: &Facts, term: Term, master: &Name) {
        let own = self.promised.term;
        let fits =
            |f: &&mut Followed| f.master == *master && f.term == term && term == own && f.is_open();
        let followed = match &mut self.state {
            State::Joining(Joining { following })
            | State::Follower(Follower { following, .. })
            | State::Candidate(Candidate { following, .. }) => following.as_mut().filter(fits),
            State::Founding(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => None,
        };
        let Some(followed) = followed else {
            self.outputs.push_back(Output::Unfollow);
            return;
        };
        followed.stage = Stage::Streaming;
        if facts.uncertain {
            let nonce = self.rng.u64(..);
            followed.head_nonce = Some(nonce);
            self.outputs.push_back(Output::AskHead { nonce });
        }
        match &mut self.state {
            State::Follower(follower) => follower.backoff = 0,
            State::Candidate(candidate) => {
                let following = candidate.following.clone();
                let at = now + self.setup.timing.failure_timeout;
                self.become_follower(now, following, at, 0, "the stream is open");
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
        self.tell("follows");
    }

    fn handle_follow_ended(&mut self, now: Now, master: Option<&Name>, why: &Ended) {
        let ours = |f: &Followed| master.is_none_or(|name| *name == f.master);
        let delay = self.priority_delay(master);
        let retry = self.between(self.setup.timing.retry);
        let step = self.setup.timing.priority_step;
        let me = &self.setup.me.name;
        match &mut self.state {
            State::Joining(Joining { following })
            | State::Candidate(Candidate { following, .. }) => {
                if following.as_ref().is_some_and(ours) {
                    *following = None;
                }
            }
            State::Follower(follower) => {
                let Some(followed) = follower.following.take_if(|f| ours(f)) else { return };
                // What was never open says nothing about the master.
                let wait = match why {
                    Ended::Broken | Ended::Silent if followed.is_open() => delay,
                    Ended::Goodbye { successor } => match successor {
                        Some(name) if name == me => Duration::ZERO,
                        Some(_) => delay + step,
                        None => delay,
                    },
                    Ended::Broken | Ended::Silent | Ended::Refused(_) | Ended::Fault => retry,
                };
                follower.campaign_at = now + wait;
            }
            State::Founding(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => return,
        }
        self.seek();
        self.tell("the stream ended");
    }

    fn handle_standing(&mut self, now: Now, from: &Peer, standing: &Standing) {
        let Some(master) = &standing.master else { return };
        let wait = now + self.setup.timing.failure_timeout;
        let hint = self.links.get(master).map(|card| card.address.clone());
        let seeks = match &mut self.state {
            State::Follower(follower) => {
                if follower.starting {
                    follower.starting = false;
                    follower.campaign_at = wait;
                }
                follower.following.is_none()
            }
            State::Joining(joining) => joining.following.is_none(),
            State::Founding(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => false,
        };
        if seeks && from.name != *master {
            self.outputs.push_back(Output::Seek { hints: hint.into_iter().collect() });
        }
    }

    /// A voter has a newer term: what this node leads cannot have its acknowledgements any more.
    fn handle_term_met(&mut self, now: Now, term: Term, who: &Peer) {
        if !self.is_bound(who) {
            return;
        }
        self.seen = self.seen.max(term);
        if term <= self.promised.term {
            return;
        }
        match &self.state {
            State::Master(_) | State::Repairing(_) => {
                self.step_down(now, now, "a voter has a newer term", None);
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_term_appended(&mut self, now: Now, first: Vlsn, last: Vlsn) {
        assert!(first <= last, "{first} to {last}");
        match &mut self.state {
            State::Master(mastership) => {
                assert_eq!(mastership.term_entry, None, "the term began twice");
                mastership.term_entry = Some(first);
                mastership.lead_at = now + self.setup.timing.failure_timeout / 2;
                self.lead_all(LeadPhase::Established);
                self.tell("elected");
            }
            // It stepped down while the entries were on their way.
            State::Follower(_) | State::Candidate(_) | State::Stopped => {}
            State::Founding(_) | State::Joining(_) | State::Repairing(_) | State::Installing => {
                panic!("a term began in {:?}", self.state)
            }
        }
    }

    fn handle_term_durable(&mut self, facts: &Facts) {
        match &mut self.state {
            State::Master(mastership) => {
                assert!(mastership.term_entry.is_some(), "durable before it was appended");
                mastership.durable = true;
                if facts.uncertain {
                    self.promise(self.promised.term, self.promised.vote.clone(), true);
                }
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_head_confirmed(&mut self, facts: &Facts, nonce: u64, head: LogEnd) {
        let asked = match self.following() {
            Some(Followed { stage: Stage::Streaming, head_nonce, .. }) => *head_nonce,
            Some(_) | None => None,
        };
        let ours = asked == Some(nonce) || mutant::is_on(Mutant::ClearWithoutNonce);
        if ours && facts.uncertain && facts.durable >= head.vlsn {
            self.promise(self.promised.term, self.promised.vote.clone(), true);
        }
    }

    // ---------------------------------------------------------------- mending

    fn handle_repair_ask(
        &mut self,
        now: Now,
        facts: &Facts,
        from: &Peer,
        term: Term,
        ask: RepairAsk,
    ) {
        match &self.state {
            State::Installing | State::Stopped => return,
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_) => {}
        }
        match ask.purpose {
            Purpose::Mending => {}
            Purpose::Repairing => {
                if !self.is_voter() {
                    return;
                }
                if term < self.promised.term {
                    let standing = self.standing(facts); // tells it the newer term
                    self.send(&from.name, Body::Standing(standing));
                    return;
                }
                let wait = now + self.setup.timing.failure_timeout;
                if term > self.promised.term {
                    // The answer promises never to take the entry from an older master.
                    self.raise(term, None);
                    self.become_follower(now, None, wait, 0, "a newer master mends its log");
                }
                self.hold_back(now, Phase::Real);
                assert!(self.fenced_at >= term, "a nack before the fence");
            }
        }
        self.outputs.push_back(Output::AnswerRepair { to: from.name.clone(), ask });
    }

    fn handle_repair_answer(&mut self, now: Now, from: &Peer, term: Term, answer: &RepairAnswer) {
        self.handle_term_met(now, term, from);
        match &mut self.state {
            State::Repairing(repairing) if repairing.term == term => {
                repairing.repair.handle_answer(from, answer);
                self.drain_repair();
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_mended(&mut self, now: Now, facts: &Facts, fitted: bool) {
        match &mut self.state {
            State::Repairing(repairing) => {
                repairing.repair.handle_done(now, &facts.damaged, fitted);
                self.drain_repair();
            }
            // It stepped down meanwhile.
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn drain_repair(&mut self) {
        loop {
            let State::Repairing(repairing) = &mut self.state else { return };
            match repairing.repair.poll_output() {
                None => return,
                Some(RepairOutput::Ask { to, ask }) => self.send(&to, Body::RepairAsk(ask)),
                Some(RepairOutput::Step(step)) => self.outputs.push_back(Output::Mend(step)),
                Some(RepairOutput::Alarm(text)) => self.alarm(text),
            }
        }
    }

    fn look_at_repair(&mut self, now: Now, facts: &Facts, term: Term) {
        let State::Repairing(repairing) = &self.state else { return };
        let since = repairing.since;
        if repairing.repair.is_finished() {
            assert!(facts.damaged.is_empty(), "finished with {:?}", facts.damaged);
            let granted = repairing.granted.clone();
            self.become_master(now, facts, term, granted);
        } else if now >= since + self.setup.timing.repair_patience {
            // The others waited for this node until now, and each of them is to have its turn.
            let at = now + self.setup.timing.failure_timeout * 2 + self.retry_wait(0);
            self.alarm("damaged entries are nowhere to be had; making way".to_owned());
            self.become_follower(now, None, at, 0, "the log cannot be mended");
        } else if facts.stalled_for >= self.setup.timing.disk_stall {
            let at = now + self.setup.timing.disk_stall;
            self.become_follower(now, None, at, 0, "the disk does not answer");
        }
    }

    // ---------------------------------------------------------------- making way

    /// A master looks around.
    fn look(&mut self, now: Now, facts: &Facts) {
        let State::Master(mastership) = &self.state else { panic!("no master looks") };
        let timing = self.setup.timing;
        if self.is_deposed(now, facts, mastership) {
            let at = now + self.between(timing.retry);
            self.step_down(now, at, "out of touch with a quorum", None);
            return;
        }
        if facts.stalled_for >= timing.disk_stall {
            let at = now + timing.disk_stall;
            self.step_down(now, at, "the disk does not answer", None);
            return;
        }
        let reason = match (facts.full, self.setup.priority) {
            (true, _) => Some("the disk is full"),
            (false, 0) => Some("a node of higher priority is level"),
            (false, _) => None,
        };
        if let Some(reason) = reason
            && mastership.durable
            && let Some(successor) = self.successor(now, facts)
        {
            self.step_down(now, now + timing.failure_timeout, reason, Some(successor));
            return;
        }
        let contacts: BTreeSet<Name> = facts
            .contacts
            .iter()
            .filter(|c| now.saturating_sub(c.heard) < timing.failure_timeout)
            .map(|c| c.peer.name.clone())
            .collect();
        let State::Master(mastership) = &mut self.state else { unreachable!() };
        mastership.look_at = now + timing.heartbeat;
        if mastership.term_entry.is_some() && now >= mastership.lead_at {
            mastership.lead_at = now + timing.failure_timeout / 2;
            for peer in self.other_voters() {
                if !contacts.contains(&peer.name) {
                    self.lead(&peer.name, LeadPhase::Established);
                }
            }
        }
    }

    /// Whether so few voters are in touch that the others could elect a master.
    fn is_deposed(&self, now: Now, facts: &Facts, mastership: &Mastership) -> bool {
        let timeout = self.setup.timing.quorum_timeout;
        let fresh = |at: Now| now.saturating_sub(at) < timeout;
        let in_touch = self
            .other_voters()
            .iter()
            .filter(|peer| {
                let elected_it = mastership.granted.contains(&peer.name) && fresh(mastership.since);
                elected_it || facts.contacts.iter().any(|c| c.peer == **peer && fresh(c.heard))
            })
            .count();
        self.quorums().deposed_with(in_touch + 1)
    }

    /// A voter whose log is level with this one and that had better be master.
    fn successor(&self, now: Now, facts: &Facts) -> Option<Name> {
        let timeout = self.setup.timing.failure_timeout;
        facts
            .contacts
            .iter()
            .filter(|c| self.is_bound(&c.peer) && c.durable >= facts.head.vlsn)
            .filter(|c| now.saturating_sub(c.heard) < timeout)
            .filter_map(|c| {
                let standing = self.standings.get(&c.peer.name)?;
                let linked = self.links.contains_key(&c.peer.name);
                let better = standing.priority > 0 && !standing.full && linked;
                better.then_some((standing.priority, &c.peer.name))
            })
            .max()
            .map(|(_, name)| name.clone())
    }

    fn step_down(&mut self, now: Now, at: Now, reason: &str, successor: Option<Name>) {
        self.leave(now, None, at, 0, reason, successor);
    }

    fn end_mastership(&mut self, reason: &str, successor: Option<Name>) {
        match &self.state {
            State::Master(_) => {
                if let Some(successor) = &successor {
                    let name = successor.clone();
                    self.send(successor, Body::Yield { successor: name });
                }
                let reason = reason.to_owned();
                self.outputs.push_back(Output::EndMastership { reason, successor });
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_yield(&mut self, now: Now, from: &Peer, successor: &Name) {
        let mine = *successor == self.setup.me.name;
        match &mut self.state {
            State::Follower(follower) if mine => {
                if follower.following.as_ref().is_none_or(|f| f.master == from.name) {
                    // Not silence ends the following now, but the master's own word.
                    follower.following = None;
                    follower.campaign_at = now;
                    self.outputs.push_back(Output::Unfollow);
                }
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => {}
        }
    }

    fn handle_closing(&mut self, now: Now, facts: &Facts) {
        let successor = match &self.state {
            State::Master(_) => self.successor(now, facts),
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Installing
            | State::Stopped => None,
        };
        self.end_mastership("the node is being closed", successor);
        self.become_stopped("the node is being closed");
    }

    fn handle_restore_ready(&mut self, term: Term) {
        let permitted = term == self.promised.term
            && match &self.state {
                State::Follower(_) | State::Joining(_) => true,
                State::Founding(_)
                | State::Candidate(_)
                | State::Repairing(_)
                | State::Master(_)
                | State::Installing
                | State::Stopped => false,
            };
        if permitted {
            self.outputs.push_back(Output::PermitCommit);
            self.state = State::Installing;
            self.tell("the log is being replaced");
        } else {
            self.outputs.push_back(Output::AbandonRestore);
        }
    }

    // ---------------------------------------------------------------- transitions

    /// Whatever it was ends here: a campaign with its grants, a mastership, a mending.
    fn become_follower(
        &mut self,
        now: Now,
        following: Option<Followed>,
        campaign_at: Now,
        backoff: u32,
        reason: &str,
    ) {
        self.leave(now, following, campaign_at, backoff, reason, None);
    }

    fn leave(
        &mut self,
        now: Now,
        following: Option<Followed>,
        campaign_at: Now,
        backoff: u32,
        reason: &str,
        successor: Option<Name>,
    ) {
        assert!(campaign_at >= now, "{campaign_at:?} is over at {now:?}");
        match &self.state {
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_) => {}
            State::Installing | State::Stopped => panic!("follower from {:?}", self.state),
        }
        self.end_mastership(reason, successor);
        let backoff = backoff.min(MOST_BACKOFF);
        let seeks = following.is_none();
        self.state = State::Follower(Follower { following, campaign_at, backoff, starting: false });
        if seeks {
            self.seek();
        }
        self.tell(reason);
    }

    /// Follows a master, or is about to.
    fn become_following(
        &mut self,
        now: Now,
        master: &Name,
        term: Term,
        stage: Stage,
        reason: &str,
    ) {
        assert!(term >= self.promised.term, "{term} is behind {}", self.promised.term);
        let followed = Followed { master: master.clone(), term, stage, head_nonce: None };
        match &mut self.state {
            State::Joining(joining) => joining.following = Some(followed),
            State::Follower(_) | State::Candidate(_) => {
                let at = now + self.setup.timing.failure_timeout;
                self.become_follower(now, Some(followed), at, 0, reason);
            }
            State::Founding(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => panic!("follows from {:?}", self.state),
        }
    }

    fn become_stopped(&mut self, reason: &str) {
        self.state = State::Stopped;
        self.tell_at = None;
        self.tell(reason);
    }

    // ---------------------------------------------------------------- promises and messages

    /// A newer term: durable, and fenced against everything older.
    fn raise(&mut self, term: Term, vote: Option<Name>) {
        assert!(term > self.promised.term, "{term} after {}", self.promised.term);
        self.promise(term, vote, false);
        self.fenced_at = term;
        self.seen = self.seen.max(term);
        if mutant::is_on(Mutant::AckAfterGrant) {
            return;
        }
        self.outputs.push_back(Output::Fence { below: term });
        if self.following().is_some_and(|f| f.term < term) {
            self.outputs.push_back(Output::Unfollow);
        }
    }

    fn promise(&mut self, term: Term, vote: Option<Name>, clear_uncertain: bool) {
        let before = &self.promised;
        assert!(term >= before.term, "term {term} after {}", before.term);
        if term == before.term && before.vote.is_some() && !mutant::is_on(Mutant::SecondVote) {
            assert_eq!(vote, before.vote, "a second vote in term {term}");
        }
        let silently = mutant::is_on(Mutant::VoteNotPersisted)
            && vote.as_ref().is_some_and(|name| *name != self.setup.me.name);
        self.promised.term = term;
        self.promised.vote.clone_from(&vote);
        let vote = if silently { None } else { vote };
        self.outputs.push_back(Output::Persist(Promise { term, vote, clear_uncertain }));
    }

    fn send(&mut self, to: &Name, body: Body) {
        if let Body::VoteAnswer(VoteAnswer {
            phase: Phase::Real,
            asked,
            verdict: Verdict::Granted { .. },
            ..
        }) = &body
        {
            assert_eq!(*asked, self.promised.term, "a vote for another term than the own one");
            assert_eq!(self.promised.vote.as_ref(), Some(to), "a vote that is not durable");
            assert!(self.fenced_at >= *asked, "a vote before the fence");
        }
        let message = ElectionMsg { epoch: self.promised.epoch, term: self.promised.term, body };
        self.outputs.push_back(Output::Send { to: to.clone(), message });
    }

    fn lead(&mut self, to: &Name, phase: LeadPhase) {
        let address = self.setup.address.clone();
        self.send(to, Body::Lead { address, phase });
    }

    fn lead_all(&mut self, phase: LeadPhase) {
        let mut names: BTreeSet<Name> = self.links.keys().cloned().collect();
        names.extend(self.other_voters().into_iter().map(|peer| peer.name));
        for name in names {
            self.lead(&name, phase);
        }
    }

    fn seek(&mut self) {
        let hints = self.voters().iter().map(|voter| voter.address.clone()).collect();
        self.outputs.push_back(Output::Seek { hints });
    }

    fn standing(&self, facts: &Facts) -> Standing {
        Standing {
            head: facts.head,
            role: self.role(),
            master: self.master().cloned(),
            priority: self.setup.priority,
            full: facts.full,
            uncertain: facts.uncertain,
        }
    }

    /// Tells others how this node stands, when that changed, and not too often.
    fn announce(&mut self, now: Now, facts: &Facts) {
        if self.is_silent() {
            self.tell_at = None;
            return;
        }
        let standing = self.standing(facts);
        let pause = self.setup.timing.standing_pause;
        // A log that is written or streamed moves all the time, and nobody needs to know.
        let moves = standing.master.is_some();
        let due = match &self.told {
            None => now,
            Some((told, at)) => {
                let head = if moves { told.head } else { standing.head };
                if *told == (Standing { head, ..standing.clone() }) {
                    self.tell_at = None;
                    return;
                }
                *at + pause
            }
        };
        if now < due {
            self.tell_at = Some(due);
            return;
        }
        self.tell_at = None;
        self.told = Some((standing.clone(), now));
        let names: Vec<Name> = self.links.keys().cloned().collect();
        for name in names {
            self.send(&name, Body::Standing(standing.clone()));
        }
    }

    fn tell(&mut self, reason: &str) {
        let event = StateEvent {
            role: self.role(),
            term: self.promised.term,
            master: self.master().cloned(),
            reason: reason.to_owned(),
        };
        let same = |before: &StateEvent| {
            StateEvent { reason: String::new(), ..before.clone() }
                == StateEvent { reason: String::new(), ..event.clone() }
        };
        if !self.event.as_ref().is_some_and(same) {
            self.event = Some(event.clone());
            self.outputs.push_back(Output::Tell(event));
        }
    }

    fn alarm(&mut self, text: String) {
        self.outputs.push_back(Output::Alarm(text));
    }

    // ---------------------------------------------------------------- small questions

    fn following(&self) -> Option<&Followed> {
        match &self.state {
            State::Joining(Joining { following })
            | State::Follower(Follower { following, .. })
            | State::Candidate(Candidate { following, .. }) => following.as_ref(),
            State::Founding(_)
            | State::Repairing(_)
            | State::Master(_)
            | State::Installing
            | State::Stopped => None,
        }
    }

    fn voters(&self) -> &[Voter] {
        self.membership.as_ref().map_or(&[], |m| &m.electorate.voters)
    }

    fn other_voters(&self) -> Vec<Peer> {
        let others = self.voters().iter().filter(|voter| voter.name != self.setup.me.name);
        others.map(|v| Peer { name: v.name.clone(), incarnation: v.incarnation }).collect()
    }

    /// Whether nobody hears of this node any more: its log is being replaced, or it has stopped.
    fn is_silent(&self) -> bool {
        match &self.state {
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
            | State::Repairing(_)
            | State::Master(_) => false,
            State::Installing | State::Stopped => true,
        }
    }

    fn is_voter(&self) -> bool {
        let has_vote = match self.setup.kind {
            NodeKind::Electable | NodeKind::Arbiter => true,
            NodeKind::Secondary | NodeKind::Monitor => false,
        };
        has_vote && self.is_bound(&self.setup.me)
    }

    fn is_bound(&self, peer: &Peer) -> bool {
        let bound = |m: &Membership| m.electorate.is_voter(&peer.name, peer.incarnation);
        self.membership.as_ref().is_some_and(bound)
    }

    /// Only voters have a say. A node that knows no configuration yet cannot tell them apart.
    fn listens_to(&self, peer: &Peer) -> bool {
        self.membership.is_none() || self.is_bound(peer)
    }

    fn quorums(&self) -> Quorums {
        let Some(membership) = &self.membership else { panic!("quorums without a group") };
        membership.electorate.quorums().unwrap_or_else(|bad| panic!("{bad}"))
    }

    /// One step for each higher priority among the voters that are there, `gone` excepted.
    fn priority_delay(&self, gone: Option<&Name>) -> Duration {
        let higher: BTreeSet<u8> = self
            .links
            .values()
            .filter(|card| Some(&card.peer.name) != gone && self.is_bound(&card.peer))
            .map(|card| card.priority)
            .filter(|priority| *priority > self.setup.priority)
            .collect();
        self.setup.timing.priority_step * higher.len() as u32
    }

    /// One to three times `base`.
    fn between(&mut self, base: Duration) -> Duration {
        base + self.below(base * 2)
    }

    fn retry_wait(&mut self, backoff: u32) -> Duration {
        let timing = self.setup.timing;
        let base = timing.retry * (1 << backoff.min(MOST_BACKOFF));
        self.between(base).min(timing.retry_most)
    }

    /// Something below `most`.
    fn below(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.rng.u64(..most.as_nanos().max(1) as u64))
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        assert!(self.seen >= self.promised.term, "{} seen, {:?}", self.seen, self.promised);
        assert_eq!(self.fenced_at, self.promised.term, "the fence is not at the own term");
        match &self.state {
            State::Founding(_) | State::Installing | State::Stopped => {}
            State::Joining(_) => assert!(!self.is_voter(), "a voter that never votes"),
            State::Follower(_) => assert!(self.is_voter(), "no voter may campaign"),
            State::Candidate(candidate) => {
                candidate.campaign.check_invariants();
                let asked = candidate.campaign.request().asked;
                match candidate.campaign.phase() {
                    Phase::Pre => {}
                    Phase::Real => {
                        assert_eq!(asked, self.promised.term, "a campaign in another term");
                        assert_eq!(self.promised.vote.as_ref(), Some(&self.setup.me.name));
                        assert!(candidate.following.is_none(), "a candidate follows");
                    }
                }
            }
            State::Repairing(Repairing { term, .. }) | State::Master(Mastership { term, .. }) => {
                assert_eq!(*term, self.promised.term, "master of another term than the own one");
                assert_eq!(self.promised.vote.as_ref(), Some(&self.setup.me.name));
            }
        }
        if let Some(followed) = self.following().filter(|f| f.is_open()) {
            assert_eq!(followed.term, self.promised.term, "follows in another term than its own");
        }
    }
}

/// Whatever was acknowledged is in the log, and so is what is durable.
fn check_facts(facts: &Facts) {
    assert!(
        facts.acked <= facts.head.vlsn,
        "{} was acknowledged, the log ends at {}",
        facts.acked,
        facts.head.vlsn
    );
    assert!(facts.durable <= facts.head.vlsn, "durable {} of {}", facts.durable, facts.head);
}

/// The stream of `following`, if it is open and its master was heard within the failure timeout.
fn heard<'a>(
    now: Now,
    facts: &'a Facts,
    following: Option<&Followed>,
    timing: &ElectionTiming,
) -> Option<&'a StreamFacts> {
    let followed = following.filter(|f| f.is_open())?;
    let stream = facts.stream.as_ref()?;
    let same = stream.master == followed.master && stream.term == followed.term;
    (same && now.saturating_sub(stream.heard) < timing.failure_timeout).then_some(stream)
}

#[cfg(test)]
mod tests;
