//! Founding: how a group comes to be, how its configuration reaches the directories that it binds,
//! and what another configuration changes.
//!
//! # Not here: how links open and who introduces itself on them (wire/election/link.rs), what a
//! configuration may be (group.rs).

use noxu_log::GroupIdentity;
use noxu_util::Name;

use super::{Candidate, Follower, FoundingWish, Joining, Membership, NodeCore, Output, State};
use crate::core::commits::Now;
use crate::group::{Electorate, Voter, VoterKind};
use crate::wire::election::{Body, Peer};

impl NodeCore {
    pub(super) fn handle_joiner(&mut self, now: Now, peer: Peer, address: String) {
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
        self.become_follower(now, None, now, 0, "the group is founded");
        self.hand_on_to_all();
    }

    /// A founder whose directory was wiped after the founding founds no second group: it joins.
    pub(super) fn handle_group_met(&mut self) {
        let State::Founding(_) = &self.state else { return };
        self.state = State::Joining(Joining { following: None });
        self.seek();
        self.tell("the group was founded before");
    }

    /// Hands the group's configuration to a fresh node that it binds.
    pub(super) fn hand_on(&mut self, peer: &Peer) {
        let Some(Membership { group, electorate }) = self.membership.clone() else { return };
        if electorate.is_voter(&peer.name, peer.incarnation) {
            self.send(&peer.name, Body::Founding { identity: group, electorate });
        }
    }

    /// Hands it to every fresh node at the other end of a link; again before each campaign, because a
    /// message may be lost and who does not know the group does not vote.
    pub(super) fn hand_on_to_all(&mut self) {
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

    /// It knows the group from now on.
    pub(super) fn handle_founded(&mut self, from: &Peer) {
        let group = self.membership.as_ref().map(|membership| membership.group.id);
        if let Some(card) = self.links.get_mut(&from.name) {
            card.group = group;
        }
    }

    pub(super) fn handle_founding(
        &mut self,
        now: Now,
        from: &Peer,
        group: GroupIdentity,
        electorate: Electorate,
    ) {
        if let Some(own) = &self.membership {
            if own.group.id == group.id {
                self.send(&from.name, Body::Founded); // or it is handed on for ever
            }
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
        if !welcome || !electorate.is_voter(&me.name, me.incarnation) || electorate.check().is_err()
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
        self.hand_on_to_all();
    }

    pub(super) fn handle_config(&mut self, now: Now, membership: Membership) {
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
}
