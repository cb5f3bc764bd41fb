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
//! Here are the states, their transitions, the promises and the way of each input to its room:
//! founding.rs, voting.rs, following.rs, mending.rs, mastership.rs; what leaves goes through
//! speaking.rs.
//!
//! # Not here: the tables of votes (core/election.rs) and repair (core/repair.rs), streams
//! (core/feeder.rs, core/replica.rs), what is durable on a quorum (core/commits.rs).
//! # See: CONSENSUS.md

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use noxu_util::{Name, Term, Vlsn};

use crate::core::commits::Now;
use crate::core::election::Campaign;
use crate::core::quorums::Quorums;
use crate::core::repair::Repair;
use crate::group::Voter;
use crate::mutant::{self, Mutant};
use crate::wire::election::{Body, ElectionMsg, LeadPhase, NodeRole, Peer, Phase, Standing};
use crate::wire::handshake::NodeKind;

mod following;
mod founding;
mod io;
mod mastership;
mod mending;
mod speaking;
mod voting;

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
    /// What others told last; of use while there is a link to them.
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
    /// A replica needs what is damaged.
    mending: Option<Repair>,
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

    /// Whether it follows `master` in `term`, its own: only then may the log be cut or replaced in
    /// that master's name, or a stream of it be taken.
    pub fn follows(&self, master: &Name, term: Term) -> bool {
        self.following().is_some_and(|followed| {
            followed.is_open()
                && followed.master == *master
                && followed.term == term
                && term == self.promised.term
        })
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
            State::Master(mastership) => {
                let asking = mastership.mending.as_ref().and_then(Repair::poll_timeout);
                Some(asking.map_or(mastership.look_at, |at| at.min(mastership.look_at)))
            }
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
                // How it stands may have come on its own new link already, and is not told twice.
                self.links.remove(&name);
            }
            Input::Joiner { peer, address } => self.handle_joiner(now, peer, address),
            Input::GroupMet => self.handle_group_met(),
            Input::AskTerm { term, master } => self.handle_ask_term(now, term, &master),
            Input::Following { term, master } => self.handle_following(now, facts, term, &master),
            Input::FollowEnded { master, why } => {
                self.handle_follow_ended(now, master.as_ref(), &why);
            }
            Input::TermMet { term, who } => self.handle_term_met(now, term, &who),
            Input::TermAppended { first, last } => self.handle_term_appended(now, first, last),
            Input::TermDurable { term } => self.handle_term_durable(facts, term),
            Input::Mended { fitted } => self.handle_mended(now, facts, fitted),
            Input::HeadConfirmed { nonce, head } => self.handle_head_confirmed(facts, nonce, head),
            Input::RestoreReady { master, term } => self.handle_restore_ready(&master, term),
            Input::Unreadable => self.handle_unreadable(now, facts),
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
                self.drain_repair(now);
                self.look_at_repair(now, facts, term);
            }
            State::Master(mastership) => {
                if let Some(mending) = &mut mastership.mending {
                    mending.handle_timeout(now);
                }
                self.drain_repair(now);
                if let State::Master(mastership) = &self.state
                    && now >= mastership.look_at
                {
                    self.look(now, facts);
                }
            }
            State::Founding(_)
            | State::Joining(_)
            | State::Follower(_)
            | State::Candidate(_)
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
            Body::VoteRequest(_) | Body::Founding { .. } => {}
            Body::Founded => self.handle_founded(from),
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

    // ---------------------------------------------------------------- promises

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

    /// Where it is noted whom this node follows, in the states in which it may follow somebody.
    fn following_mut(&mut self) -> Option<&mut Option<Followed>> {
        match &mut self.state {
            State::Joining(Joining { following })
            | State::Follower(Follower { following, .. })
            | State::Candidate(Candidate { following, .. }) => Some(following),
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
