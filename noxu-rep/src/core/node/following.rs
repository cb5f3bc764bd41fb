//! Following: masters that make themselves known, and the one that this node follows: found,
//! streaming, lost, or to be restored from.
//!
//! # Not here: masters that give way (mastership.rs), the stream itself (core/replica.rs).

use std::time::Duration;

use noxu_util::{Name, Term};

use super::{Ended, Facts, Followed, Mastership, NodeCore, Output, Repairing, Stage, State};
use crate::core::commits::Now;
use crate::mutant::{self, Mutant};
use crate::wire::election::{Body, LeadPhase, LogEnd, Peer, Standing};

impl NodeCore {
    pub(super) fn handle_lead(
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
                    _ => self.end_campaign(now, wait, "a master mends its log"),
                },
            },
            State::Repairing(_) | State::Master(_) => panic!("still leads: {:?}", self.state),
        }
    }

    pub(super) fn handle_ask_term(&mut self, now: Now, term: Term, master: &Name) {
        let (own, other) = (self.promised.term, *master != self.setup.me.name);
        // Who is being dialled made itself known later than a conversation of an older term began.
        let newest = self.following().map_or(own, |followed| followed.term.max(own));
        let following = self.following_mut().filter(|_| term >= newest && other);
        let adopted = following.is_some();
        if let Some(following) = following {
            if term > own {
                // Who was followed until now is no matter: this is the conversation that goes on.
                *following = None;
                self.raise(term, None);
            }
            self.become_following(now, master, term, Stage::Welcomed, "a master was found");
        }
        self.outputs.push_back(Output::TermAnswer { term, adopted });
    }

    pub(super) fn handle_following(&mut self, now: Now, facts: &Facts, term: Term, master: &Name) {
        let own = self.promised.term;
        let fits =
            |f: &&mut Followed| f.master == *master && f.term == term && term == own && f.is_open();
        let nonce = facts.uncertain.then(|| self.rng.u64(..));
        let followed = self.following_mut().and_then(|f| f.as_mut().filter(fits));
        let Some(followed) = followed else {
            self.outputs.push_back(Output::Unfollow);
            return;
        };
        followed.stage = Stage::Streaming;
        followed.head_nonce = nonce;
        let clears = mutant::is_on(Mutant::WinClearsVoters) && facts.uncertain;
        if clears && self.promised.vote.as_ref() == Some(master) {
            self.promise(term, Some(master.clone()), true);
        }
        self.outputs.extend(nonce.map(|nonce| Output::AskHead { nonce }));
        if let State::Follower(follower) = &mut self.state {
            follower.backoff = 0;
        }
        self.end_campaign(now, now + self.setup.timing.failure_timeout, "the stream is open");
        self.tell("follows");
    }

    /// A candidate is a follower again, of whom it followed before; it campaigns at `at`.
    fn end_campaign(&mut self, now: Now, at: Now, reason: &str) {
        if let State::Candidate(candidate) = &self.state {
            let following = candidate.following.clone();
            self.become_follower(now, following, at, 0, reason);
        }
    }

    pub(super) fn handle_follow_ended(&mut self, now: Now, master: Option<&Name>, why: &Ended) {
        let ours = |f: &Followed| master.is_none_or(|name| *name == f.master);
        let delay = self.priority_delay(master);
        let retry = self.between(self.setup.timing.retry);
        let step = self.setup.timing.priority_step;
        let me = self.setup.me.name.clone();
        let Some(following) = self.following_mut() else { return };
        let ended = following.take_if(|f| ours(f));
        if let State::Follower(follower) = &mut self.state {
            let Some(followed) = ended else { return };
            // What was never open says nothing about the master.
            let wait = match why {
                Ended::Broken | Ended::Silent if followed.is_open() => delay,
                Ended::Goodbye { successor } => match successor {
                    Some(name) if *name == me => Duration::ZERO,
                    Some(_) => delay + step,
                    None => delay,
                },
                Ended::Broken | Ended::Silent | Ended::Refused(_) | Ended::Fault => retry,
            };
            follower.campaign_at = now + wait;
        }
        self.seek();
        self.tell("the stream ended");
    }

    pub(super) fn handle_standing(&mut self, now: Now, from: &Peer, standing: &Standing) {
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

    pub(super) fn handle_head_confirmed(&mut self, facts: &Facts, nonce: u64, head: LogEnd) {
        let asked = match self.following() {
            Some(Followed { stage: Stage::Streaming, head_nonce, .. }) => *head_nonce,
            Some(_) | None => None,
        };
        let ours = asked == Some(nonce) || mutant::is_on(Mutant::ClearWithoutNonce);
        if ours && facts.uncertain && facts.durable >= head.vlsn {
            self.promise(self.promised.term, self.promised.vote.clone(), true);
        }
    }

    /// A node that does not follow that master any more may have been elected since, and have made
    /// something durable: then it keeps the log that it did that with.
    pub(super) fn handle_restore_ready(&mut self, master: &Name, term: Term) {
        let permitted = self.follows(master, term);
        if permitted {
            self.outputs.push_back(Output::PermitCommit);
            self.state = State::Installing;
            self.tell("the log is being replaced");
        } else {
            self.outputs.push_back(Output::AbandonRestore);
        }
    }
}
