//! Voting: requests for a vote answered, and campaigns from the first question to the count.
//!
//! # Not here: the tables by which a vote is given and counted (core/election.rs), what an elected
//! master does (mending.rs, mastership.rs), when a campaign is due (core/node.rs).

use std::collections::BTreeSet;

use noxu_util::{Name, Term};

use super::{Candidate, Facts, Followed, NodeCore, Output, Repairing, State, heard};
use crate::core::commits::Now;
use crate::core::election::{Campaign, Tally, VoterView, judge};
use crate::mutant::{self, Mutant};
use crate::wire::election::{
    Body, NodeRole, Peer, Phase, Purpose, Refusal, Standing, Verdict, VoteAnswer, VoteRequest,
};

impl NodeCore {
    pub(super) fn handle_vote_request(
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
        if epoch == self.promised.epoch && self.listens_to(from) {
            self.note_candidate(from, request);
        }
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

    /// A candidate says how it stands, too: word of it may have been lost, and is not repeated.
    fn note_candidate(&mut self, from: &Peer, request: &VoteRequest) {
        let VoteRequest { head, priority, uncertain, .. } = *request;
        let full = self.standings.get(&from.name).is_some_and(|standing| standing.full);
        let role = NodeRole::Unknown;
        let standing = Standing { head, role, master: None, priority, full, uncertain };
        self.standings.insert(from.name.clone(), standing);
    }

    /// Whoever granted lets the other go ahead.
    pub(super) fn hold_back(&mut self, now: Now, phase: Phase) {
        let wait = match phase {
            Phase::Pre => self.between(self.setup.timing.retry),
            Phase::Real => self.setup.timing.failure_timeout,
        };
        let State::Follower(follower) = &mut self.state else { return };
        follower.campaign_at = follower.campaign_at.max(now + wait);
    }

    pub(super) fn handle_vote_answer(
        &mut self,
        now: Now,
        facts: &Facts,
        from: &Peer,
        answer: &VoteAnswer,
    ) {
        // Else of a round that is over.
        let State::Candidate(candidate) = &mut self.state else { return };
        candidate.campaign.handle_answer(from, answer);
        self.conduct(now, facts);
    }

    /// Campaigns, if this node may.
    pub(super) fn campaign(&mut self, now: Now, facts: &Facts) {
        let State::Follower(follower) = &self.state else { panic!("campaign in {:?}", self.state) };
        let (following, backoff) = (follower.following.clone(), follower.backoff);
        self.hand_on_to_all();
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
        if !electable || facts.behind || facts.stalled_for >= self.setup.timing.disk_stall {
            return false;
        }
        // Priority 0 is master only to bring a better one up to its own log. Who has a master has
        // told of a log end that it has long left behind.
        self.setup.priority > 0
            || self.standings.iter().any(|(name, standing)| {
                self.links.contains_key(name)
                    && standing.priority > 0
                    && standing.master.is_none()
                    && standing.head.compare(&facts.head).is_lt()
            })
    }

    pub(super) fn become_candidate(
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
    pub(super) fn handle_lost(&mut self, now: Now) {
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
        let repair = self.repair(now, facts, Purpose::Repairing, &facts.damaged);
        self.state =
            State::Repairing(Repairing { term, repair, granted, since: now, lead_at: now });
        self.tell("elected; mends its log");
    }
}
