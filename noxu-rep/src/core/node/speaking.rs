//! Speaking: what leaves the node: messages, how it stands, what it tells its operator.
//!
//! # Not here: what is said when (the other rooms), the promises that go before it (core/node.rs).

use std::collections::BTreeSet;

use noxu_util::Name;

use super::{Facts, NodeCore, Output, StateEvent};
use crate::core::commits::Now;
use crate::wire::election::{Body, ElectionMsg, LeadPhase, Phase, Standing, Verdict, VoteAnswer};

impl NodeCore {
    pub(super) fn send(&mut self, to: &Name, body: Body) {
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

    pub(super) fn lead(&mut self, to: &Name, phase: LeadPhase) {
        let address = self.setup.address.clone();
        self.send(to, Body::Lead { address, phase });
    }

    pub(super) fn lead_all(&mut self, phase: LeadPhase) {
        let mut names: BTreeSet<Name> = self.links.keys().cloned().collect();
        names.extend(self.other_voters().into_iter().map(|peer| peer.name));
        for name in names {
            self.lead(&name, phase);
        }
    }

    pub(super) fn seek(&mut self) {
        let hints = self.voters().iter().map(|voter| voter.address.clone()).collect();
        self.outputs.push_back(Output::Seek { hints });
    }

    pub(super) fn standing(&self, facts: &Facts) -> Standing {
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
    pub(super) fn announce(&mut self, now: Now, facts: &Facts) {
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

    pub(super) fn tell(&mut self, reason: &str) {
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

    pub(super) fn alarm(&mut self, text: String) {
        self.outputs.push_back(Output::Alarm(text));
    }
}
