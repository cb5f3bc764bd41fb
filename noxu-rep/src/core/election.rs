//! Election: whom a voter gives its vote, and what a candidate makes of the answers.
//!
//! # The vote
//! [`judge`] is a decision table; the first row that matches decides. Each row is a test.
//!
//! | # | condition | pre-vote | vote |
//! |---|---|---|---|
//! | 1 | another epoch | refused | refused |
//! | 2 | the candidate is not electable in the voter's configuration, by name and incarnation | refused | refused |
//! | 3 | the voter has no vote, or its log is being replaced | silent | silent |
//! | 4 | the voter is the established master, in touch with a quorum | refused | silent: its term does not move |
//! | 5 | the term asked for is older than the own one (pre-vote: not newer) | refused | refused |
//! | 6 | it is newer | | it becomes the own one, whatever follows |
//! | 7 | the vote of that term is another's | | refused |
//! | 8 | the voter hears from a master, and the candidate is not that master | refused | |
//! | 9 | the voter campaigns with an equal log and greater (priority, name), and has not done so before | refused | |
//! | 10 | the voter's log is better | refused | refused |
//! | 11 | both logs end alike and are not the same | refused, alarm | refused, alarm |
//! | 12 | else | granted | granted |
//!
//! Of two rivals with equal logs the *greater* (priority, name) prevails. Row 9 holds once in a
//! campaign, never for a voter that may have lost the end of its log or has priority 0, so it
//! delays and never locks out. Room is left for a lease promise between 8 and 9.
//!
//! # The campaign
//! A [`Campaign`] is one round, [`Phase::Pre`] or [`Phase::Real`]. An answer counts only with the
//! round's number, term and phase, from a voter in the directory that the configuration binds.
//! - Won with a quorum of *certain* grants, or with the grants of all voters: a voter that may have
//!   lost entries proves nothing by comparing, unless nobody is left who could have more.
//! - Lost as soon as refusals make both impossible.
//!
//! A round ends with its owner's interest in it; nothing of it is ever written down.
//!
//! # Not here: when to campaign, durability of votes (core/node.rs).
//! # See: CONSENSUS.md "Vote"

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use noxu_util::{Name, Term};

use crate::core::quorums::Quorums;
use crate::group::Electorate;
use crate::mutant::{self, Mutant};
use crate::wire::election::{LogEnd, Peer, Phase, Refusal, Verdict, VoteAnswer, VoteRequest};

/// What a voter knows when it is asked.
#[derive(Debug, Clone)]
pub struct VoterView<'a> {
    /// Who it is.
    pub me: &'a Peer,
    /// Its priority.
    pub priority: u8,
    /// Its epoch of the group.
    pub epoch: u32,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<&'a Name>,
    /// The configuration in force.
    pub electorate: Option<&'a Electorate>,
    /// The end of its log, damaged entries counted.
    pub head: LogEnd,
    /// Whether entries may be missing there.
    pub uncertain: bool,
    /// Whether its log is being replaced.
    pub installing: bool,
    /// Whether it is the established master, in touch with a quorum.
    pub sitting: bool,
    /// The master it heard from within the failure timeout, on a connection that is open.
    pub heard: Option<&'a Name>,
    /// Its own campaign.
    pub campaign: Option<Rivalry>,
}

/// A voter's own campaign, as far as it matters to another candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rivalry {
    /// Whether it has refused a rival before.
    pub refused_one: bool,
}

/// What a voter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The row that decided.
    pub row: u8,
    /// Row 6: the term asked for becomes the own one, durably and before anything is answered.
    pub raise: bool,
    /// The answer; `None` to stay silent. A real grant is durable before it is sent.
    pub verdict: Option<Verdict>,
}

/// The table.
pub fn judge(
    view: &VoterView<'_>,
    epoch: u32,
    candidate: &Peer,
    request: &VoteRequest,
) -> Judgement {
    let real = match request.phase {
        Phase::Pre => false,
        Phase::Real => true,
    };
    let raise = real && request.asked > view.term;
    let refuse =
        |row, raise, refusal| Judgement { row, raise, verdict: Some(Verdict::Refused(refusal)) };
    let silent = |row| Judgement { row, raise: false, verdict: None };

    if epoch != view.epoch {
        return refuse(1, false, Refusal::Epoch);
    }
    // Without a configuration there is nothing to look the candidate up in, and no vote: row 3.
    if let Some(electorate) = view.electorate
        && !electorate.is_electable(&candidate.name, candidate.incarnation)
    {
        return refuse(2, false, Refusal::NotElectable);
    }
    let votes = view.electorate.is_some_and(|e| e.is_voter(&view.me.name, view.me.incarnation));
    if !votes || view.installing {
        return silent(3);
    }
    if view.sitting {
        return if real { silent(4) } else { refuse(4, false, Refusal::Sitting) };
    }
    if request.asked < view.term || (!real && request.asked == view.term) {
        return refuse(5, false, Refusal::HigherTerm);
    }
    let given = if raise || !real || mutant::is_on(Mutant::SecondVote) { None } else { view.vote };
    if given.is_some_and(|name| *name != candidate.name) {
        return refuse(7, raise, Refusal::Voted);
    }
    if !real && view.heard.is_some_and(|master| *master != candidate.name) {
        return refuse(8, false, Refusal::HeardMaster);
    }
    let order = if mutant::is_on(Mutant::RankedByVlsnOnly) {
        request.head.vlsn.cmp(&view.head.vlsn)
    } else {
        request.head.compare(&view.head)
    };
    let precedes = (view.priority, &view.me.name) > (request.priority, &candidate.name);
    if !real
        && view.campaign.is_some_and(|own| !own.refused_one)
        && order == Ordering::Equal
        && precedes
        && !view.uncertain
        && view.priority > 0
    {
        return refuse(9, false, Refusal::Rival);
    }
    match order {
        Ordering::Less if mutant::is_on(Mutant::HeadNotCompared) => {}
        Ordering::Less => return refuse(10, raise, Refusal::BetterHead),
        Ordering::Equal
            if request.head.fingerprint != view.head.fingerprint
                && !mutant::is_on(Mutant::RankedByVlsnOnly) =>
        {
            return refuse(11, raise, Refusal::Fork);
        }
        Ordering::Equal | Ordering::Greater => {}
    }
    let certain = !view.uncertain;
    Judgement { row: 12, raise, verdict: Some(Verdict::Granted { certain }) }
}

/// One round of a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Campaign {
    request: VoteRequest,
    quorums: Quorums,
    me: Peer,
    /// Every voter but the candidate.
    others: Vec<Peer>,
    /// The candidate's own grant included.
    answers: BTreeMap<Name, Verdict>,
    /// Rivals refused in this round, who were asked again.
    refused: BTreeSet<Name>,
}

/// How a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tally {
    /// Answers are missing.
    Open,
    /// Enough grants.
    Won,
    /// There can be no more enough grants.
    Lost,
}

impl Campaign {
    /// A round in which only the candidate itself has answered.
    ///
    /// # Panics
    /// If `me` is not electable in `electorate`, or its quorums are not lawful.
    pub fn new(me: &Peer, electorate: &Electorate, request: VoteRequest) -> Self {
        assert!(electorate.is_electable(&me.name, me.incarnation), "{me:?} is not electable");
        let quorums = electorate.quorums().unwrap_or_else(|bad| panic!("{bad}"));
        let others = electorate
            .voters
            .iter()
            .filter(|voter| voter.name != me.name)
            .map(|voter| Peer { name: voter.name.clone(), incarnation: voter.incarnation })
            .collect();
        let own = Verdict::Granted { certain: !request.uncertain };
        let answers = BTreeMap::from([(me.name.clone(), own)]);
        Self { request, quorums, me: me.clone(), others, answers, refused: BTreeSet::new() }
    }

    /// What it asks.
    pub fn request(&self) -> &VoteRequest {
        &self.request
    }

    /// Which round it is.
    pub fn phase(&self) -> Phase {
        self.request.phase
    }

    /// Every voter but the candidate.
    pub fn others(&self) -> &[Peer] {
        &self.others
    }

    /// Voters, the candidate included, that granted.
    pub fn granted(&self) -> impl Iterator<Item = &Name> {
        self.answers.iter().filter_map(|(name, verdict)| match verdict {
            Verdict::Granted { .. } => Some(name),
            Verdict::Refused(_) => None,
        })
    }

    /// Whether somebody refused for this reason.
    pub fn was_refused(&self, refusal: Refusal) -> bool {
        self.answers.values().any(|verdict| *verdict == Verdict::Refused(refusal))
    }

    /// As others see it.
    pub fn rivalry(&self) -> Rivalry {
        Rivalry { refused_one: !self.refused.is_empty() }
    }

    /// This rival was refused by row 9. True if it is to be asked again.
    pub fn handle_rival(&mut self, name: &Name) -> bool {
        self.refused.insert(name.clone())
    }

    /// Counts an answer, if it is one to this round. A grant stays a grant, whatever else comes.
    pub fn handle_answer(&mut self, from: &Peer, answer: &VoteAnswer) -> Tally {
        let ours = answer.nonce == self.request.nonce
            && answer.phase == self.request.phase
            && answer.asked == self.request.asked;
        let ours = ours || mutant::is_on(Mutant::GrantOfAnyCampaign);
        if ours && self.others.contains(from) {
            match self.answers.get(&from.name) {
                Some(Verdict::Granted { .. }) => {}
                Some(Verdict::Refused(_)) | None => {
                    self.answers.insert(from.name.clone(), answer.verdict);
                }
            }
        }
        self.tally()
    }

    /// How it stands.
    pub fn tally(&self) -> Tally {
        let all_count = mutant::is_on(Mutant::UncertainCountsAsCertain);
        let mut certain = 0;
        let mut granted = 0;
        for verdict in self.answers.values() {
            match verdict {
                Verdict::Granted { certain: sure } => {
                    granted += 1;
                    certain += usize::from(*sure || all_count);
                }
                Verdict::Refused(_) => {}
            }
        }
        let missing = self.quorums.n() - self.answers.len();
        let refused = self.answers.len() - granted;
        let too_few = usize::from(mutant::is_on(Mutant::QuorumsDoNotMeet));
        if certain + too_few >= self.quorums.elect() || granted == self.quorums.n() {
            Tally::Won
        } else if certain + missing < self.quorums.elect() && refused > 0 {
            Tally::Lost
        } else {
            Tally::Open
        }
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        assert_eq!(self.others.len() + 1, self.quorums.n(), "{:?}", self.others);
        assert!(self.answers.len() <= self.quorums.n(), "{:?}", self.answers);
        let own = self.answers.get(&self.me.name);
        let certain = !self.request.uncertain;
        assert_eq!(own, Some(&Verdict::Granted { certain }), "the candidate is for itself");
    }
}

#[cfg(test)]
mod tests;
