//! Mastership: its term begins, it looks around, and it makes way: to a newer term, to the others
//! when it is out of touch with a quorum, to a better successor.
//!
//! # Not here: how it was elected (voting.rs), what is durable on a quorum (core/commits.rs).

use std::collections::BTreeSet;

use noxu_util::{Name, Term, Vlsn};

use super::{Facts, Mastership, NodeCore, Output, State};
use crate::core::commits::Now;
use crate::wire::election::{Body, LeadPhase, Peer};

impl NodeCore {
    pub(super) fn become_master(
        &mut self,
        now: Now,
        facts: &Facts,
        term: Term,
        granted: BTreeSet<Name>,
    ) {
        // A founder may have lost the entry, and anything else but the control file, since.
        let electorate = self.membership.as_ref().map(|membership| membership.electorate.clone());
        let founding = electorate.filter(|_| !facts.configured);
        self.state = State::Master(Mastership {
            term,
            term_entry: None,
            durable: false,
            granted,
            since: now,
            look_at: now + self.setup.timing.heartbeat,
            lead_at: now,
            mending: None,
        });
        self.outputs.push_back(Output::BeginMastership { term, founding });
    }

    /// A voter has a newer term: what this node leads cannot have its acknowledgements any more.
    pub(super) fn handle_term_met(&mut self, now: Now, term: Term, who: &Peer) {
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

    pub(super) fn handle_term_appended(&mut self, now: Now, first: Vlsn, last: Vlsn) {
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

    pub(super) fn handle_term_durable(&mut self, facts: &Facts, term: Term) {
        let State::Master(mastership) = &mut self.state else { return };
        if mastership.term != term {
            return; // word of an earlier one came late
        }
        assert!(mastership.term_entry.is_some(), "durable before it was appended");
        mastership.durable = true;
        if facts.uncertain {
            self.promise(self.promised.term, self.promised.vote.clone(), true);
        }
    }

    /// A master looks around.
    pub(super) fn look(&mut self, now: Now, facts: &Facts) {
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
    pub(super) fn is_deposed(&self, now: Now, facts: &Facts, mastership: &Mastership) -> bool {
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
    pub(super) fn successor(&self, now: Now, facts: &Facts) -> Option<Name> {
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

    pub(super) fn step_down(&mut self, now: Now, at: Now, reason: &str, successor: Option<Name>) {
        self.leave(now, None, at, 0, reason, successor);
    }

    pub(super) fn end_mastership(&mut self, reason: &str, successor: Option<Name>) {
        let State::Master(_) = &self.state else { return };
        if let Some(successor) = &successor {
            let name = successor.clone();
            self.send(successor, Body::Yield { successor: name });
        }
        let reason = reason.to_owned();
        self.outputs.push_back(Output::EndMastership { reason, successor });
    }

    pub(super) fn handle_yield(&mut self, now: Now, from: &Peer, successor: &Name) {
        let mine = *successor == self.setup.me.name;
        let State::Follower(follower) = &mut self.state else { return };
        if mine && follower.following.as_ref().is_none_or(|f| f.master == from.name) {
            // Not silence ends the following now, but the master's own word.
            follower.following = None;
            follower.campaign_at = now;
            self.outputs.push_back(Output::Unfollow);
        }
    }

    pub(super) fn handle_closing(&mut self, now: Now, facts: &Facts) {
        let reason = "the node is being closed";
        if let State::Master(_) = &self.state {
            let successor = self.successor(now, facts);
            self.end_mastership(reason, successor);
        }
        self.become_stopped(reason);
    }
}
