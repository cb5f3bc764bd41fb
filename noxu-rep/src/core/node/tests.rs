use super::*;

mod world;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use noxu_log::GroupIdentity;
use noxu_util::{Fingerprint, Incarnation, NULL_VLSN};
use world::{Coverage, TIMING, World, electorate, membership, ms, setup};

use crate::core::repair::{Damage, RepairStep};
use crate::group::{Electorate, VoterKind};
use crate::wire::election::{
    LogEnd, Purpose, Refusal, RepairAnswer, RepairAsk, Verdict, VoteAnswer, VoteRequest,
};

/// What a seed breaks, if anything.
fn broken(seed: u64) -> Option<String> {
    let mut world = World::new(seed);
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(text),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.unwrap_or_else(|| "a panic".to_owned()))
        }
    }
}

/// One seed, or how many from 0: `NOXU_ELECTION_SEED=17`, `NOXU_ELECTION_SEEDS=100000`.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("NOXU_ELECTION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NOXU_ELECTION_SEEDS").unwrap_or(usual),
    }
}

#[test]
fn whatever_happens_nothing_reported_durable_is_lost_and_a_healed_group_has_a_master() {
    let mut coverage = Coverage::default();
    let seeds = seeds(6_000);
    for seed in seeds.clone() {
        let mut world = World::new(seed);
        if let Err(text) = world.run() {
            panic!(
                "{text}\n{}\nagain: NOXU_ELECTION_SEED={seed} cargo test -p noxu-rep --lib core::node",
                world.trace.join("\n")
            );
        }
        coverage.add(&world.coverage);
    }
    println!("{coverage:?}");
    if seeds.end - seeds.start >= 6_000 {
        coverage.check_all_met();
    }
}

#[test]
fn a_seed_makes_the_same_world_each_time() {
    for seed in 0..50 {
        let (mut once, mut again) = (World::new(seed), World::new(seed));
        assert_eq!(once.run(), again.run());
        assert_eq!(once.trace, again.trace, "seed {seed}");
    }
}

/// Seeds until the mutant is found.
fn found_after(mutant: Mutant, most: u64) -> Option<(u64, String)> {
    Mutant::with(Some(mutant), || {
        (0..most).find_map(|seed| broken(seed).map(|text| (seed + 1, text)))
    })
}

/// The others are hardly ever found by chance; each has its own test below or in
/// core/repair/tests.rs.
#[test]
fn each_rule_that_is_left_out_is_missed_by_some_world() {
    for (mutant, most) in [
        (Mutant::VoteNotPersisted, 100),
        (Mutant::HeadNotCompared, 500),
        (Mutant::SecondVote, 1_000),
        (Mutant::GrantOfAnyCampaign, 4_000),
        (Mutant::UncertainCountsAsCertain, 2_000),
        (Mutant::RankedByVlsnOnly, 2_000),
        (Mutant::TermResumed, 500),
        (Mutant::NackQuorumTooSmall, 8_000),
    ] {
        match found_after(mutant, most) {
            Some((seeds, text)) => println!("{mutant:?}: {seeds} seeds: {text}"),
            None => panic!("{mutant:?} is not found in {most} worlds"),
        }
    }
}

// -------------------------------------------------------------------- one node

fn end(term: u32, vlsn: i64) -> LogEnd {
    let fingerprint = Fingerprint::from_u64(u64::from(term) * 1000 + vlsn as u64);
    LogEnd { term: Term::new(term), vlsn: Vlsn::new(vlsn), fingerprint }
}

fn facts(head: LogEnd) -> Facts {
    let configured = !head.vlsn.is_null();
    Facts { head, configured, durable: head.vlsn, ..Facts::default() }
}

fn peer(number: usize) -> Peer {
    setup(number - 1, 0, 0).me
}

fn name(number: usize) -> Name {
    peer(number).name
}

fn drain(core: &mut NodeCore) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output()).collect()
}

/// n`number` of a group of `n`, in term 5, without a vote.
fn node(number: usize, n: usize) -> NodeCore {
    let ballot = Ballot { epoch: 0, term: Term::new(5), vote: None };
    let mut core =
        NodeCore::new(ms(0), setup(number - 1, 1, 42), ballot, Some(membership(n, 0, 0)));
    drain(&mut core);
    core
}

fn message(from: usize, term: u32, body: Body) -> Input {
    let message = ElectionMsg { epoch: 0, term: Term::new(term), body };
    Input::Message { from: peer(from), message }
}

fn request(phase: Phase, asked: u32, head: LogEnd) -> VoteRequest {
    let asked = Term::new(asked);
    VoteRequest { phase, nonce: 77, asked, head, priority: 1, uncertain: false }
}

fn sent(outputs: &[Output]) -> Vec<(&Name, &Body)> {
    let mut sent = Vec::new();
    for output in outputs {
        if let Output::Send { to, message } = output {
            sent.push((to, &message.body));
        }
    }
    sent
}

/// Makes n`number` campaign and win; `facts` are its own.
fn elect(core: &mut NodeCore, facts: &Facts, voters: &[usize]) -> Vec<Output> {
    let mut all = Vec::new();
    while !matches!(core.state, State::Candidate(_)) {
        let at = core.poll_timeout().unwrap();
        core.handle_timeout(at, facts);
    }
    while let State::Candidate(candidate) = &core.state {
        let VoteRequest { phase, nonce, asked, .. } = *candidate.campaign.request();
        let verdict = Verdict::Granted { certain: true };
        let answer = Body::VoteAnswer(VoteAnswer { phase, nonce, asked, verdict });
        for voter in voters {
            core.handle(ms(40), facts, message(*voter, 0, answer.clone()));
        }
        all.extend(drain(core));
    }
    all
}

fn begin_term(core: &mut NodeCore, now: Now, facts: &Facts) -> Vec<Output> {
    let first = facts.head.vlsn;
    core.handle(now, facts, Input::TermAppended { first, last: first });
    drain(core)
}

#[test]
fn a_vote_leaves_only_behind_its_promise_and_the_fence() {
    let mut core = node(2, 3);
    let ask = request(Phase::Real, 6, end(5, 100));
    core.handle(ms(1), &facts(end(5, 100)), message(1, 6, Body::VoteRequest(ask)));
    let outputs = drain(&mut core);
    let promise = Promise { term: Term::new(6), vote: Some(name(1)), clear_uncertain: false };
    assert_eq!(outputs[0], Output::Persist(promise));
    assert_eq!(outputs[1], Output::Fence { below: Term::new(6) });
    let verdict = Verdict::Granted { certain: true };
    let VoteRequest { phase, nonce, asked, .. } = ask;
    let granted = Body::VoteAnswer(VoteAnswer { phase, nonce, asked, verdict });
    assert_eq!(sent(&outputs), [(&name(1), &granted)]);
    assert_eq!(core.poll_timeout(), Some(ms(1) + TIMING.failure_timeout), "it lets n1 go ahead");

    // Asked again it answers again and promises nothing new; nobody else gets its vote.
    core.handle(ms(2), &facts(end(5, 100)), message(1, 6, Body::VoteRequest(ask)));
    assert_eq!(sent(&drain(&mut core)), [(&name(1), &granted)]);
    core.handle(ms(3), &facts(end(5, 100)), message(3, 6, Body::VoteRequest(ask)));
    let verdict = Verdict::Refused(Refusal::Voted);
    let refused = Body::VoteAnswer(VoteAnswer { phase, nonce, asked, verdict });
    assert_eq!(drain(&mut core).len(), 1);
    core.handle(ms(3), &facts(end(5, 100)), message(3, 6, Body::VoteRequest(ask)));
    assert_eq!(sent(&drain(&mut core)), [(&name(3), &refused)]);
}

#[test]
fn a_vote_without_a_fence_is_noticed() {
    let ask = request(Phase::Real, 6, end(5, 100));
    let vote = |mutant| {
        Mutant::with(mutant, || {
            let mut core = node(2, 3);
            core.handle(ms(1), &facts(end(5, 100)), message(1, 6, Body::VoteRequest(ask)));
            drain(&mut core).contains(&Output::Fence { below: Term::new(6) })
        })
    };
    assert!(vote(None));
    assert!(!vote(Some(Mutant::AckAfterGrant)));
}

#[test]
fn a_refused_vote_raises_the_term_and_a_refused_pre_vote_does_not() {
    let mut core = node(2, 3);
    let shorter = end(5, 99);
    let pre = Body::VoteRequest(request(Phase::Pre, 6, shorter));
    core.handle(ms(1), &facts(end(5, 100)), message(1, 5, pre));
    assert!(matches!(drain(&mut core).as_slice(), [Output::Send { .. }]));
    assert_eq!(core.term(), Term::new(5));
    let real = Body::VoteRequest(request(Phase::Real, 6, shorter));
    core.handle(ms(1), &facts(end(5, 100)), message(1, 6, real));
    let promise = Promise { term: Term::new(6), vote: None, clear_uncertain: false };
    assert_eq!(drain(&mut core)[0], Output::Persist(promise));
}

#[test]
fn a_candidate_promises_itself_before_it_asks_and_leads_only_when_the_term_is_in_its_log() {
    let mut core = node(1, 3);
    let own = facts(end(5, 100));
    let outputs = elect(&mut core, &own, &[2]);
    let promise = Promise { term: Term::new(6), vote: Some(name(1)), clear_uncertain: false };
    let at = |wanted: &Output| outputs.iter().position(|output| output == wanted).unwrap();
    let promised = at(&Output::Persist(promise));
    assert_eq!(outputs[promised + 1], Output::Fence { below: Term::new(6) });
    let real = outputs.iter().position(|output| {
        matches!(
            output,
            Output::Send { message: ElectionMsg { body: Body::VoteRequest(r), .. }, .. }
                if r.phase == Phase::Real
        )
    });
    assert!(real.unwrap() > promised);
    assert!(at(&Output::BeginMastership { term: Term::new(6), founding: None }) > real.unwrap());
    assert_eq!((core.role(), core.mastership()), (NodeRole::Unknown, None));

    let outputs = begin_term(&mut core, ms(60), &facts(end(6, 101)));
    let lead = Body::Lead { address: "n1:1".to_owned(), phase: LeadPhase::Established };
    assert_eq!(sent(&outputs), [(&name(2), &lead), (&name(3), &lead)]);
    assert_eq!(core.mastership(), Some((Term::new(6), false)));
    let term = core.term();
    core.handle(ms(61), &facts(end(6, 101)), Input::TermDurable { term });
    assert_eq!(core.mastership(), Some((Term::new(6), true)));
    assert_eq!(drain(&mut core), []);
}

#[test]
fn the_first_master_of_a_group_writes_its_configuration() {
    let mut core = node(1, 1);
    let outputs = elect_alone(&mut core);
    let founding = Some(electorate(1, 0, 0));
    assert!(outputs.contains(&Output::BeginMastership { term: Term::new(6), founding }));
}

#[test]
fn a_founder_whose_group_entry_is_lost_writes_it_again() {
    // Its Term entry survived a crash, the Group entry behind it did not.
    let mut core = node(1, 1);
    let own = Facts { configured: false, ..facts(end(5, 1)) };
    core.handle_timeout(ms(0), &own);
    let begin = Output::BeginMastership { term: Term::new(6), founding: Some(electorate(1, 0, 0)) };
    assert!(drain(&mut core).contains(&begin));
}

fn elect_alone(core: &mut NodeCore) -> Vec<Output> {
    core.handle_timeout(ms(0), &facts(LogEnd::default()));
    drain(core)
}

#[test]
fn a_winner_that_was_uncertain_is_cleared_when_its_term_is_durable_and_no_sooner() {
    let mut core = node(1, 3);
    let mut own = facts(end(5, 100));
    own.uncertain = true;
    elect(&mut core, &own, &[2, 3]);
    own.head = end(6, 101);
    let outputs = begin_term(&mut core, ms(60), &own);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Persist(_))));
    let term = core.term();
    core.handle(ms(70), &own, Input::TermDurable { term });
    let promise = Promise { term: Term::new(6), vote: Some(name(1)), clear_uncertain: true };
    assert_eq!(drain(&mut core), [Output::Persist(promise)]);
}

/// n2 follows n1 in term 6; the number of its question about the log's end, if it asked.
fn follow(core: &mut NodeCore, own: &Facts) -> Option<u64> {
    let (term, master) = (Term::new(6), name(1));
    core.handle(ms(1), own, Input::AskTerm { term, master: master.clone() });
    let outputs = drain(core);
    assert_eq!(outputs.last(), Some(&Output::TermAnswer { term, adopted: true }));
    assert!(matches!(&outputs[0], Output::Persist(p) if p.term == term && p.vote.is_none()));
    core.handle(ms(2), own, Input::Following { term, master });
    assert_eq!(core.role(), NodeRole::Replica);
    drain(core).into_iter().find_map(|output| match output {
        Output::AskHead { nonce } => Some(nonce),
        _ => None,
    })
}

#[test]
fn an_uncertain_replica_is_cleared_by_the_answer_to_its_own_question_only() {
    let mut own = facts(end(5, 100));
    own.uncertain = true;
    let mut core = node(2, 3);
    let nonce = follow(&mut core, &own).unwrap();
    let confirmed = |nonce, vlsn| Input::HeadConfirmed { nonce, head: end(6, vlsn) };
    core.handle(ms(3), &own, confirmed(nonce ^ 1, 100));
    assert_eq!(drain(&mut core), [], "of another stream or life");
    core.handle(ms(3), &own, confirmed(nonce, 101));
    assert_eq!(drain(&mut core), [], "not durable here yet");
    core.handle(ms(3), &own, confirmed(nonce, 100));
    let promise = Promise { term: Term::new(6), vote: None, clear_uncertain: true };
    assert_eq!(drain(&mut core), [Output::Persist(promise)]);

    let mut core = node(2, 3);
    let nonce = follow(&mut core, &own).unwrap();
    let cleared = Mutant::with(Some(Mutant::ClearWithoutNonce), || {
        core.handle(ms(3), &own, confirmed(nonce ^ 1, 100));
        drain(&mut core)
    });
    assert_eq!(cleared.len(), 1, "the mutant is noticed");
    let mut certain = node(2, 3);
    assert_eq!(follow(&mut certain, &facts(end(5, 100))), None);
}

#[test]
fn one_broken_link_starts_no_election() {
    let mut own = facts(end(6, 100));
    let mut voter = node(2, 3);
    follow(&mut voter, &own);
    own.stream = Some(StreamFacts { master: name(1), term: Term::new(6), heard: ms(90) });
    let pre = Body::VoteRequest(request(Phase::Pre, 7, end(6, 100)));
    voter.handle(ms(100), &own, message(3, 6, pre.clone()));
    let outputs = drain(&mut voter);
    let [(to, Body::VoteAnswer(answer))] = sent(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!((to, answer.verdict), (&name(3), Verdict::Refused(Refusal::HeardMaster)));

    // The master itself may campaign, and after the timeout so may anybody.
    voter.handle(ms(100), &own, message(1, 6, pre.clone()));
    let outputs = drain(&mut voter);
    let granted = Verdict::Granted { certain: true };
    assert!(matches!(sent(&outputs)[..], [(_, Body::VoteAnswer(a))] if a.verdict == granted));
    let late = ms(90) + TIMING.failure_timeout;
    voter.handle(late, &own, message(3, 6, pre));
    let outputs = drain(&mut voter);
    assert!(
        sent(&outputs).iter().any(|(to, body)| **to == name(3)
            && matches!(body, Body::VoteAnswer(a) if a.verdict == granted))
    );
}

#[test]
fn a_silent_master_is_missed_after_the_failure_timeout_and_a_broken_stream_at_once() {
    let mut own = facts(end(6, 100));
    own.stream = Some(StreamFacts { master: name(1), term: Term::new(6), heard: ms(50) });
    let mut core = node(2, 3);
    follow(&mut core, &own);
    let missed = loop {
        let at = core.poll_timeout().unwrap();
        core.handle_timeout(at, &own);
        if matches!(core.state, State::Candidate(_)) {
            break at;
        }
    };
    assert_eq!(missed, ms(50) + TIMING.failure_timeout, "it was heard since the stream began");

    let mut core = node(2, 3);
    follow(&mut core, &own);
    own.stream = None;
    let ended = Input::FollowEnded { master: Some(name(1)), why: Ended::Broken };
    core.handle(ms(60), &own, ended);
    assert!(matches!(core.state, State::Candidate(_)));
}

#[test]
fn a_lower_priority_waits_a_step_and_the_named_successor_does_not_wait() {
    let own = facts(end(6, 100));
    let card = |number: usize, priority| PeerCard {
        peer: peer(number),
        kind: NodeKind::Electable,
        priority,
        address: String::new(),
        epoch: 0,
        term: Term::new(6),
        group: Some(membership(3, 0, 0).group.id),
    };
    let ended = |why| Input::FollowEnded { master: Some(name(1)), why };
    let mut core = node(2, 3);
    follow(&mut core, &own);
    core.handle(ms(3), &own, Input::LinkUp(card(1, 9)));
    core.handle(ms(3), &own, Input::LinkUp(card(3, 5)));
    let mut successor = core.clone();
    core.handle(ms(60), &own, ended(Ended::Broken));
    assert_eq!(core.poll_timeout(), Some(ms(60) + TIMING.priority_step));
    let goodbye = Ended::Goodbye { successor: Some(name(2)) };
    successor.handle(ms(60), &own, ended(goodbye));
    assert!(matches!(successor.state, State::Candidate(_)));
}

/// An established master of three whose term is durable, at 60 ms.
fn master() -> (NodeCore, Facts) {
    let mut core = node(1, 3);
    elect(&mut core, &facts(end(5, 100)), &[2]);
    let own = facts(end(6, 101));
    begin_term(&mut core, ms(60), &own);
    let term = core.term();
    core.handle(ms(60), &own, Input::TermDurable { term });
    drain(&mut core);
    (core, own)
}

fn contact(number: usize, heard: Now, durable: i64) -> Contact {
    Contact { peer: peer(number), heard, durable: Vlsn::new(durable) }
}

fn ended(outputs: &[Output]) -> Option<(&str, Option<&Name>)> {
    outputs.iter().find_map(|output| match output {
        Output::EndMastership { reason, successor } => Some((reason.as_str(), successor.as_ref())),
        _ => None,
    })
}

#[test]
fn a_sitting_master_ignores_votes_and_makes_way_when_it_is_out_of_touch() {
    let (mut core, mut own) = master();
    own.contacts = vec![contact(2, ms(200), 101)];
    let real = Body::VoteRequest(request(Phase::Real, 9, end(6, 200)));
    core.handle(ms(210), &own, message(3, 9, real));
    let outputs = drain(&mut core);
    assert!(sent(&outputs).iter().all(|(_, body)| matches!(body, Body::Lead { .. })));
    assert_eq!(core.term(), Term::new(6));
    let out_of_touch = ms(200) + TIMING.quorum_timeout;
    core.handle_timeout(out_of_touch.saturating_sub(ms(1)), &own);
    assert_eq!(ended(&drain(&mut core)), None);
    core.handle_timeout(out_of_touch + TIMING.heartbeat, &own);
    assert_eq!(ended(&drain(&mut core)), Some(("out of touch with a quorum", None)));
}

#[test]
fn a_master_without_which_nobody_is_elected_stays() {
    let ballot = Ballot { epoch: 0, term: Term::new(5), vote: None };
    let group = membership(2, 1, 2);
    let mut core = NodeCore::new(ms(0), setup(0, 1, 42), ballot, Some(group));
    drain(&mut core);
    let own = facts(end(5, 100));
    elect(&mut core, &own, &[2]);
    begin_term(&mut core, ms(60), &facts(end(6, 101)));
    core.handle_timeout(ms(60_000), &facts(end(6, 101)));
    assert_eq!(ended(&drain(&mut core)), None);
    assert!(core.mastership().is_some());
}

#[test]
fn a_newer_term_of_a_voter_ends_a_mastership_and_the_next_campaign_is_above_it() {
    let (mut core, own) = master();
    let wiped = Peer { incarnation: Incarnation::from_u64(99), ..peer(2) };
    core.handle(ms(70), &own, Input::TermMet { term: Term::new(9), who: wiped });
    assert_eq!(drain(&mut core), [], "it has no say");
    core.handle(ms(70), &own, Input::TermMet { term: Term::new(9), who: peer(2) });
    let outputs = drain(&mut core);
    assert_eq!(ended(&outputs), Some(("a voter has a newer term", None)));
    let asked = sent(&outputs).iter().find_map(|(_, body)| match body {
        Body::VoteRequest(request) => Some((request.phase, request.asked)),
        _ => None,
    });
    assert_eq!(asked, Some((Phase::Pre, Term::new(10))));
}

#[test]
fn a_master_whose_disk_stalls_makes_way() {
    let (mut core, mut own) = master();
    own.stalled_for = TIMING.disk_stall;
    core.handle_timeout(ms(100), &own);
    assert_eq!(ended(&drain(&mut core)), Some(("the disk does not answer", None)));
}

#[test]
fn a_master_with_a_full_disk_yields_to_a_level_voter_with_space() {
    let (mut core, mut own) = master();
    let link = |core: &mut NodeCore, own: &Facts, number: usize, full| {
        let card = PeerCard {
            peer: peer(number),
            kind: NodeKind::Electable,
            priority: 1,
            address: String::new(),
            epoch: 0,
            term: Term::new(6),
            group: None,
        };
        core.handle(ms(61), own, Input::LinkUp(card));
        let standing = Standing {
            head: own.head,
            role: NodeRole::Replica,
            master: Some(name(1)),
            priority: 1,
            full,
            uncertain: false,
        };
        core.handle(ms(61), own, message(number, 6, Body::Standing(standing)));
        drain(core);
    };
    link(&mut core, &own, 2, false);
    link(&mut core, &own, 3, true);
    own.full = true;
    own.contacts = vec![contact(2, ms(90), 100), contact(3, ms(90), 101)];
    core.handle_timeout(ms(100), &own);
    assert_eq!(ended(&drain(&mut core)), None, "n2 is behind, n3 is full too");
    own.contacts[0].durable = Vlsn::new(101);
    core.handle_timeout(ms(120), &own);
    let outputs = drain(&mut core);
    assert_eq!(ended(&outputs), Some(("the disk is full", Some(&name(2)))));
    let yielded = Body::Yield { successor: name(2) };
    assert!(sent(&outputs).contains(&(&name(2), &yielded)));

    let mut successor = node(2, 3);
    follow(&mut successor, &own);
    successor.handle(ms(121), &own, message(1, 6, yielded));
    assert!(matches!(successor.state, State::Candidate(_)));
}

#[test]
fn priority_0_campaigns_only_to_bring_a_better_node_up() {
    let ballot = Ballot { epoch: 0, term: Term::new(5), vote: None };
    let mut core = NodeCore::new(ms(0), setup(0, 0, 42), ballot, Some(membership(2, 0, 0)));
    let own = facts(end(5, 100));
    for _ in 0..5 {
        let at = core.poll_timeout().unwrap();
        core.handle_timeout(at, &own);
        assert!(matches!(core.state, State::Follower(_)));
    }
    let card = PeerCard {
        peer: peer(2),
        kind: NodeKind::Electable,
        priority: 1,
        address: String::new(),
        epoch: 0,
        term: Term::new(5),
        group: None,
    };
    let now = core.poll_timeout().unwrap();
    core.handle(now, &own, Input::LinkUp(card.clone()));
    let standing = |head, master| {
        Body::Standing(Standing {
            head,
            role: NodeRole::Unknown,
            master,
            priority: 1,
            full: false,
            uncertain: false,
        })
    };
    core.handle(now, &own, message(2, 5, standing(end(5, 100), None)));
    let at = core.poll_timeout().unwrap();
    core.handle_timeout(at, &own);
    assert!(matches!(core.state, State::Follower(_)), "n2 is as good and may do it itself");
    // It told that when it became master, and nothing since.
    let mut now = at;
    core.handle(now, &own, message(2, 5, standing(end(5, 1), Some(name(2)))));
    for _ in 0..5 {
        let at = core.poll_timeout().unwrap();
        core.handle_timeout(at, &own);
        assert!(matches!(core.state, State::Follower(_)), "n2 may have all of it");
        now = at;
    }
    // It starts anew: its own link is there before this node notices that the old one is gone.
    core.handle(now, &own, message(2, 5, standing(end(5, 99), None)));
    core.handle(now, &own, Input::LinkDown { name: name(2) });
    core.handle(now, &own, Input::LinkUp(card));
    let at = core.poll_timeout().unwrap();
    core.handle_timeout(at, &own);
    assert!(matches!(core.state, State::Candidate(_)));
}

#[test]
fn an_answer_about_damaged_entries_is_fenced_like_a_vote() {
    let mut core = node(2, 3);
    let own = facts(end(5, 100));
    let ask = RepairAsk {
        purpose: Purpose::Repairing,
        nonce: 1,
        first: Vlsn::new(90),
        last: Vlsn::new(90),
        before: crate::wire::election::Mark::default(),
        after: crate::wire::election::Mark::default(),
        offset: 0,
    };
    core.handle(ms(1), &own, message(1, 6, Body::RepairAsk(ask)));
    let outputs = drain(&mut core);
    assert!(matches!(&outputs[0], Output::Persist(p) if p.term == Term::new(6)));
    assert_eq!(outputs[1], Output::Fence { below: Term::new(6) });
    assert!(outputs[2..].contains(&Output::AnswerRepair { to: name(1), ask }));
    core.handle(ms(2), &own, message(3, 5, Body::RepairAsk(ask)));
    let outputs = drain(&mut core);
    assert!(matches!(sent(&outputs)[..], [(to, Body::Standing(_))] if *to == name(3)));
}

#[test]
fn a_winner_with_damaged_entries_mends_before_its_term_begins() {
    let mut core = node(1, 3);
    let mark = crate::wire::election::Mark::default();
    let (first, last) = (Vlsn::new(90), Vlsn::new(90));
    let mut own = facts(end(5, 100));
    own.damaged = vec![Damage { first, last, before: mark, after: mark }];
    let outputs = elect(&mut core, &own, &[2]);
    assert_eq!(core.role(), NodeRole::Repairing);
    assert!(!outputs.iter().any(|output| matches!(output, Output::BeginMastership { .. })));
    let nonce = sent(&outputs).iter().find_map(|(_, body)| match body {
        Body::RepairAsk(ask) => Some(ask.nonce),
        _ => None,
    });
    let never = |term: u32, from: usize| {
        let answer = RepairAnswer {
            nonce: nonce.unwrap(),
            first,
            verdict: crate::wire::election::RepairVerdict::Never,
            commit_floor: NULL_VLSN,
            total: 0,
            offset: 0,
            bytes: Vec::new(),
        };
        message(from, term, Body::RepairAnswer(answer))
    };
    let mended = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Mend(_)));
    core.handle(ms(50), &own, never(6, 2));
    core.handle(ms(50), &own, never(5, 3));
    assert!(!mended(&drain(&mut core)), "a nack of an older term is no promise");
    core.handle(ms(50), &own, never(6, 3));
    let cut = Output::Mend(RepairStep::TruncateAfter { vlsn: Vlsn::new(89) });
    assert!(drain(&mut core).contains(&cut));
    own = facts(end(5, 89));
    core.handle(ms(51), &own, Input::Mended { fitted: true });
    let begin = Output::BeginMastership { term: Term::new(6), founding: None };
    assert!(drain(&mut core).contains(&begin));
}

#[test]
fn a_restore_commits_only_in_the_own_term_and_the_node_is_silent_from_then_on() {
    let own = facts(end(5, 100));
    let mut core = node(2, 3);
    let ready = |n: usize, term| Input::RestoreReady { master: name(n), term: Term::new(term) };
    core.handle(ms(1), &own, ready(1, 5));
    assert_eq!(drain(&mut core), [Output::AbandonRestore], "nobody is followed");
    core.handle(ms(1), &own, Input::AskTerm { term: Term::new(5), master: name(1) });
    drain(&mut core);
    for other in [ready(1, 4), ready(3, 5)] {
        core.handle(ms(1), &own, other);
        assert_eq!(drain(&mut core), [Output::AbandonRestore]);
    }
    core.handle(ms(1), &own, ready(1, 5));
    assert_eq!(drain(&mut core)[0], Output::PermitCommit);
    let pre = Body::VoteRequest(request(Phase::Pre, 9, end(9, 900)));
    let foreign = ElectionMsg { epoch: 3, term: Term::new(9), body: pre.clone() };
    core.handle(ms(2), &own, message(1, 9, pre));
    core.handle(ms(2), &own, Input::Message { from: peer(3), message: foreign });
    assert_eq!((drain(&mut core), core.poll_timeout()), (vec![], None));
}

/// It may have made something durable as a master, which the log that it would install lacks.
#[test]
fn a_restore_that_outlived_a_mastership_is_void() {
    let (mut core, mut own) = master();
    let term = core.term();
    own.stalled_for = TIMING.disk_stall;
    core.handle_timeout(ms(100), &own);
    drain(&mut core);
    own.stalled_for = Duration::ZERO;
    core.handle(ms(110), &own, Input::RestoreReady { master: name(3), term });
    assert_eq!(drain(&mut core), [Output::AbandonRestore]);
}

#[test]
fn a_conversation_of_an_older_term_than_the_master_that_is_dialled_is_not_taken_up() {
    let mut core = node(1, 3);
    let own = facts(end(4, 10));
    let lead = Body::Lead { address: "n2:1".to_owned(), phase: LeadPhase::Established };
    core.handle(ms(10), &own, message(2, 6, lead));
    drain(&mut core);
    core.handle(ms(11), &own, Input::AskTerm { term: Term::new(5), master: name(3) });
    let refused = Output::TermAnswer { term: Term::new(5), adopted: false };
    assert_eq!(drain(&mut core), [refused]);
    assert_eq!(core.master(), Some(&name(2)));
}

/// Found by the simulator: two voters, the one with the better log of priority 0, and the word of how
/// the other stands lost. Each waited for the other.
#[test]
fn a_node_of_priority_zero_hears_from_a_vote_request_that_another_is_behind() {
    let ballot = Ballot { epoch: 0, term: Term::new(4), vote: None };
    let mut core = NodeCore::new(ms(0), setup(1, 0, 7), ballot, Some(membership(2, 0, 0)));
    drain(&mut core);
    let own = facts(end(4, 10));
    let card = PeerCard {
        peer: peer(1),
        kind: NodeKind::Electable,
        priority: 3,
        address: String::new(),
        epoch: 0,
        term: Term::new(4),
        group: None,
    };
    core.handle(ms(1), &own, Input::LinkUp(card));
    core.handle_timeout(ms(1000), &own);
    assert!(!sent(&drain(&mut core)).iter().any(|(_, body)| matches!(body, Body::VoteRequest(_))));
    let behind = VoteRequest { priority: 3, ..request(Phase::Pre, 5, end(4, 8)) };
    core.handle(ms(1001), &own, message(1, 4, Body::VoteRequest(behind)));
    drain(&mut core);
    core.handle_timeout(ms(3000), &own);
    assert!(sent(&drain(&mut core)).iter().any(|(_, body)| matches!(body, Body::VoteRequest(_))));
}

#[test]
fn a_wiped_founder_joins_the_group_that_it_meets() {
    let wish = FoundingWish {
        group: membership(3, 0, 0).group,
        members: (1..=3).map(name).collect(),
        q_rep: 0,
        q_elect: 0,
    };
    let setup = NodeSetup { founding: Some(wish), ..setup(0, 1, 7) };
    let mut core = NodeCore::new(ms(0), setup, Ballot::default(), None);
    assert_eq!(drain(&mut core), []);
    core.handle(ms(1), &Facts::default(), Input::GroupMet);
    assert!(drain(&mut core).iter().any(|output| matches!(output, Output::Seek { .. })));
    core.handle(ms(2), &Facts::default(), Input::AskTerm { term: Term::new(5), master: name(2) });
    let adopted = Output::TermAnswer { term: Term::new(5), adopted: true };
    assert!(drain(&mut core).contains(&adopted));
}

// -------------------------------------------------------------------- a few nodes

/// Messages between cores that have nothing but their heads.
#[derive(Clone)]
struct Group {
    cores: Vec<NodeCore>,
    facts: Facts,
    flying: VecDeque<(usize, usize, ElectionMsg)>,
    masters: BTreeMap<Term, usize>,
}

impl Group {
    fn settle(&mut self, at: usize) {
        while let Some(output) = self.cores[at].poll_output() {
            match output {
                Output::Send { to, message } => {
                    let to = self.cores.iter().position(|core| core.setup.me.name == to);
                    if let Some(to) = to {
                        self.flying.push_back((at, to, message));
                    }
                }
                Output::BeginMastership { term, .. } => {
                    assert_eq!(self.masters.insert(term, at), None, "two masters of term {term}");
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, which: usize) {
        let (from, to, message) = self.flying.remove(which).unwrap();
        let from = self.cores[from].setup.me.clone();
        let facts = self.facts.clone();
        self.cores[to].handle(ms(1), &facts, Input::Message { from, message });
        self.settle(to);
    }
}

/// Two nodes of a group of `n` with equal logs begin to campaign at one moment; the others are
/// gone. Whatever the order in which messages arrive, one of them is master and no time passes.
fn all_orders(n: usize, voters: usize, priorities: [u8; 2]) -> u64 {
    let now = ms(1);
    let own = facts(end(5, 100));
    let cores = (0..voters)
        .map(|at| {
            let ballot = Ballot { epoch: 0, term: Term::new(5), vote: None };
            let priority = priorities.get(at).copied().unwrap_or(1);
            NodeCore::new(ms(0), setup(at, priority, at as u64), ballot, Some(membership(n, 0, 0)))
        })
        .collect();
    let mut group =
        Group { cores, facts: own.clone(), flying: VecDeque::new(), masters: BTreeMap::new() };
    for at in 0..voters {
        group.settle(at);
    }
    for at in 0..2 {
        group.cores[at].become_candidate(now, &own, Phase::Pre, None, 0);
        group.settle(at);
    }
    let mut orders = 0;
    let mut open = vec![group];
    while let Some(group) = open.pop() {
        if !group.masters.is_empty() {
            orders += 1;
            assert!(orders < 2_000_000, "more orders than expected");
            continue;
        }
        assert!(!group.flying.is_empty(), "nobody is master: {:?}", group.cores);
        for which in 0..group.flying.len() {
            let mut next = group.clone();
            next.deliver(which);
            open.push(next);
        }
    }
    orders
}

#[test]
fn two_equal_candidates_end_in_one_round() {
    for priorities in [[1, 1], [2, 1], [1, 2]] {
        for (n, alive) in [(2, 2), (3, 2)] {
            let orders = all_orders(n, alive, priorities);
            assert!(orders > 10, "{orders}");
        }
    }
}

#[test]
fn a_founder_binds_the_directories_of_all_members_and_hands_the_group_to_each() {
    let wish = FoundingWish {
        group: membership(2, 0, 0).group,
        members: vec![name(1), name(2)],
        q_rep: 0,
        q_elect: 0,
    };
    let founder = NodeSetup { founding: Some(wish), ..setup(0, 1, 1) };
    let mut founder = NodeCore::new(ms(0), founder, Ballot::default(), None);
    let mut fresh = NodeCore::new(ms(0), setup(1, 1, 2), Ballot::default(), None);
    drain(&mut fresh);
    assert_eq!(drain(&mut founder), []);
    let empty = facts(LogEnd::default());
    let card = PeerCard {
        peer: peer(2),
        kind: NodeKind::Electable,
        priority: 1,
        address: "n2:1".to_owned(),
        epoch: 0,
        term: Term::ZERO,
        group: None,
    };
    founder.handle(ms(1), &empty, Input::LinkUp(card));
    let outputs = drain(&mut founder);
    assert_eq!(outputs[0], Output::Found(membership(2, 0, 0)));
    let handed = outputs.iter().find_map(|output| match output {
        Output::Send { message, .. } if matches!(message.body, Body::Founding { .. }) => {
            Some(message.clone())
        }
        _ => None,
    });
    // It may be lost: it is handed on again until it has come.
    let hands_on = |founder: &mut NodeCore| {
        let later = founder.poll_timeout().unwrap();
        founder.handle_timeout(later, &empty);
        let outputs = drain(founder);
        sent(&outputs)
            .iter()
            .any(|(to, body)| **to == name(2) && matches!(body, Body::Founding { .. }))
    };
    assert!((0..10).any(|_| hands_on(&mut founder)));
    let handed = Input::Message { from: peer(1), message: handed.unwrap() };
    fresh.handle(ms(2), &empty, handed.clone());
    let outputs = drain(&mut fresh);
    assert_eq!(outputs[0], Output::Adopt(membership(2, 0, 0)));
    assert!(sent(&outputs).contains(&(&name(1), &Body::Founded)));
    assert!(matches!(fresh.state, State::Follower(_)));
    founder.handle(ms(3), &empty, message(2, 0, Body::Founded));
    drain(&mut founder);
    assert!(!(0..10).any(|_| hands_on(&mut founder)));

    // Who is not in it, or is in a group already, does not take it.
    let mut stranger = NodeCore::new(ms(0), setup(2, 1, 3), Ballot::default(), None);
    drain(&mut stranger);
    stranger.handle(ms(2), &empty, handed.clone());
    assert_eq!(drain(&mut stranger), []);
    let mut member = node(2, 3);
    member.handle(ms(2), &empty, handed);
    assert_eq!(member.membership(), Some(&membership(3, 0, 0)));
}

#[test]
fn a_node_in_another_directory_than_the_configuration_binds_never_votes_nor_campaigns() {
    let me = Peer { incarnation: Incarnation::from_u64(99), ..peer(2) };
    let wiped = NodeSetup { me, ..setup(1, 1, 1) };
    let mut core = NodeCore::new(ms(0), wiped, Ballot::default(), Some(membership(3, 0, 0)));
    drain(&mut core);
    assert_eq!(core.poll_timeout(), None);
    let real = Body::VoteRequest(request(Phase::Real, 9, end(9, 900)));
    core.handle(ms(2), &facts(LogEnd::default()), message(1, 9, real));
    assert_eq!(sent(&drain(&mut core)), []);
    assert_eq!(core.term(), Term::ZERO);
}
