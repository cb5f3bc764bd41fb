use noxu_util::{Fingerprint, Incarnation, Vlsn};

use super::*;
use crate::group::{Voter, VoterKind};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn peer(number: u64) -> Peer {
    Peer { name: name(&format!("n{number}")), incarnation: Incarnation::from_u64(number) }
}

fn end(term: u32, vlsn: i64) -> LogEnd {
    let fingerprint = Fingerprint::from_u64(u64::from(term) * 1000 + vlsn as u64);
    LogEnd { term: Term::new(term), vlsn: Vlsn::new(vlsn), fingerprint }
}

/// Voters n1 to n`n`, and n9, an arbiter.
fn electorate(n: u64) -> Electorate {
    let voter = |number: u64, kind| Voter {
        name: peer(number).name,
        incarnation: peer(number).incarnation,
        kind,
        address: String::new(),
    };
    let data = (1..=n).map(|number| voter(number, VoterKind::Data));
    Electorate { voters: data.collect(), q_rep: 0, q_elect: 0 }
}

fn with_arbiter() -> Electorate {
    let mut all = electorate(3);
    let arbiter = peer(9);
    all.voters.push(Voter {
        name: arbiter.name,
        incarnation: arbiter.incarnation,
        kind: VoterKind::Arbiter,
        address: String::new(),
    });
    all
}

fn view<'a>(me: &'a Peer, electorate: &'a Electorate) -> VoterView<'a> {
    VoterView {
        me,
        priority: 1,
        epoch: 0,
        term: Term::new(5),
        vote: None,
        electorate: Some(electorate),
        head: end(5, 100),
        uncertain: false,
        installing: false,
        sitting: false,
        heard: None,
        campaign: None,
    }
}

const PRE: VoteRequest = VoteRequest {
    phase: Phase::Pre,
    nonce: 1,
    asked: Term::new(6),
    head: LogEnd {
        term: Term::new(5),
        vlsn: Vlsn::new(100),
        fingerprint: Fingerprint::from_u64(5100),
    },
    priority: 1,
    uncertain: false,
};

const REAL: VoteRequest = VoteRequest { phase: Phase::Real, ..PRE };

fn refused(row: u8, raise: bool, refusal: Refusal) -> Judgement {
    Judgement { row, raise, verdict: Some(Verdict::Refused(refusal)) }
}

const fn silent(row: u8) -> Judgement {
    Judgement { row, raise: false, verdict: None }
}

const fn granted(raise: bool) -> Judgement {
    Judgement { row: 12, raise, verdict: Some(Verdict::Granted { certain: true }) }
}

#[test]
fn row_1_another_epoch_is_refused() {
    let (me, all) = (peer(2), electorate(3));
    for request in [PRE, REAL] {
        let judgement = judge(&view(&me, &all), 1, &peer(1), &request);
        assert_eq!(judgement, refused(1, false, Refusal::Epoch));
    }
}

#[test]
fn row_2_who_is_not_electable_by_name_and_directory_is_refused() {
    let (me, all) = (peer(2), with_arbiter());
    let wiped = Peer { incarnation: Incarnation::from_u64(77), ..peer(1) };
    for candidate in [peer(4), peer(9), wiped] {
        for request in [PRE, REAL] {
            let judgement = judge(&view(&me, &all), 0, &candidate, &request);
            assert_eq!(judgement, refused(2, false, Refusal::NotElectable), "{candidate:?}");
        }
    }
}

#[test]
fn row_3_who_has_no_vote_or_replaces_its_log_is_silent() {
    let (all, candidate) = (electorate(3), peer(1));
    let (stranger, me) = (peer(4), peer(2));
    let wiped = Peer { incarnation: Incarnation::from_u64(77), ..peer(2) };
    let installing = VoterView { installing: true, ..view(&me, &all) };
    let fresh = VoterView { electorate: None, ..view(&me, &all) };
    for voter in [view(&stranger, &all), view(&wiped, &all), installing, fresh] {
        for request in [PRE, REAL] {
            assert_eq!(judge(&voter, 0, &candidate, &request), silent(3), "{voter:?}");
        }
    }
}

#[test]
fn row_4_a_sitting_master_refuses_a_pre_vote_and_ignores_a_vote() {
    let (me, all) = (peer(2), electorate(3));
    let master = VoterView { sitting: true, ..view(&me, &all) };
    assert_eq!(judge(&master, 0, &peer(1), &PRE), refused(4, false, Refusal::Sitting));
    assert_eq!(judge(&master, 0, &peer(1), &REAL), silent(4));
}

#[test]
fn row_5_a_term_that_is_over_is_refused() {
    let (me, all) = (peer(2), electorate(3));
    let at = |term| VoterView { term: Term::new(term), ..view(&me, &all) };
    let higher = refused(5, false, Refusal::HigherTerm);
    assert_eq!(judge(&at(7), 0, &peer(1), &PRE), higher);
    assert_eq!(judge(&at(6), 0, &peer(1), &PRE), higher);
    assert_eq!(judge(&at(7), 0, &peer(1), &REAL), higher);
    assert_eq!(judge(&at(6), 0, &peer(1), &REAL), granted(false));
}

#[test]
fn row_6_a_newer_term_becomes_the_own_one_even_if_the_vote_is_refused() {
    let (me, all) = (peer(2), electorate(3));
    let other = name("n3");
    let voted = VoterView { vote: Some(&other), ..view(&me, &all) };
    assert_eq!(judge(&voted, 0, &peer(1), &REAL), granted(true), "the vote was of another term");
    let shorter = VoteRequest { head: end(5, 99), ..REAL };
    assert_eq!(judge(&voted, 0, &peer(1), &shorter), refused(10, true, Refusal::BetterHead));
    assert_eq!(judge(&voted, 0, &peer(1), &PRE), granted(false), "a pre-vote changes nothing");
}

#[test]
fn row_7_one_vote_in_a_term() {
    let (me, all, other, candidate) = (peer(2), electorate(3), name("n3"), name("n1"));
    let term = Term::new(6);
    let voted = VoterView { term, vote: Some(&other), ..view(&me, &all) };
    assert_eq!(judge(&voted, 0, &peer(1), &REAL), refused(7, false, Refusal::Voted));
    let repeated = VoterView { term, vote: Some(&candidate), ..view(&me, &all) };
    assert_eq!(judge(&repeated, 0, &peer(1), &REAL), granted(false));
}

#[test]
fn row_8_who_hears_from_a_master_refuses_the_pre_vote_of_anybody_else() {
    let (me, all, master) = (peer(2), electorate(3), name("n3"));
    let heard = VoterView { heard: Some(&master), ..view(&me, &all) };
    assert_eq!(judge(&heard, 0, &peer(1), &PRE), refused(8, false, Refusal::HeardMaster));
    assert_eq!(judge(&heard, 0, &peer(3), &PRE), granted(false), "the master itself");
    assert_eq!(judge(&heard, 0, &peer(1), &REAL), granted(true), "a vote is no pre-vote");
}

#[test]
fn row_9_of_equal_rivals_the_greater_priority_and_name_prevails_once() {
    let (me, all) = (peer(2), electorate(3));
    let campaign = Some(Rivalry { refused_one: false });
    let rival = VoterView { campaign, ..view(&me, &all) };
    let refusal = refused(9, false, Refusal::Rival);
    assert_eq!(judge(&rival, 0, &peer(1), &PRE), refusal);
    assert_eq!(judge(&rival, 0, &peer(3), &PRE), granted(false), "n3 precedes n2");
    let higher = VoteRequest { priority: 2, ..PRE };
    assert_eq!(judge(&rival, 0, &peer(1), &higher), granted(false), "priority before name");
    let longer = VoteRequest { head: end(5, 101), ..PRE };
    assert_eq!(judge(&rival, 0, &peer(1), &longer), granted(false), "a better log before all");
    assert_eq!(judge(&rival, 0, &peer(1), &REAL), granted(true), "a vote is no pre-vote");

    let before = VoterView { campaign: Some(Rivalry { refused_one: true }), ..rival.clone() };
    assert_eq!(judge(&before, 0, &peer(1), &PRE), granted(false));
    let unwanted = VoterView { priority: 0, ..rival.clone() };
    let lowest = VoteRequest { priority: 0, ..PRE };
    assert_eq!(judge(&unwanted, 0, &peer(1), &lowest), granted(false));
    let flagged = judge(&VoterView { uncertain: true, ..rival }, 0, &peer(1), &PRE);
    assert_eq!(flagged.verdict, Some(Verdict::Granted { certain: false }));
}

#[test]
fn row_10_the_term_of_the_last_entry_decides_before_its_number() {
    let (me, all) = (peer(2), electorate(3));
    let voter = view(&me, &all);
    for (head, better) in [
        (end(5, 99), true),
        (end(4, 200), true),
        (end(5, 100), false),
        (end(5, 101), false),
        (end(6, 7), false),
    ] {
        let pre = judge(&voter, 0, &peer(1), &VoteRequest { head, ..PRE });
        let real = judge(&voter, 0, &peer(1), &VoteRequest { head, ..REAL });
        if better {
            assert_eq!(pre, refused(10, false, Refusal::BetterHead), "{head}");
            assert_eq!(real, refused(10, true, Refusal::BetterHead), "{head}");
        } else {
            assert_eq!((pre, real), (granted(false), granted(true)), "{head}");
        }
    }
}

#[test]
fn row_11_equal_ends_of_different_logs_are_refused() {
    let (me, all) = (peer(2), electorate(3));
    let head = LogEnd { fingerprint: Fingerprint::from_u64(1), ..PRE.head };
    let pre = judge(&view(&me, &all), 0, &peer(1), &VoteRequest { head, ..PRE });
    assert_eq!(pre, refused(11, false, Refusal::Fork));
    let real = judge(&view(&me, &all), 0, &peer(1), &VoteRequest { head, ..REAL });
    assert_eq!(real, refused(11, true, Refusal::Fork));
}

#[test]
fn row_12_a_grant_says_whether_the_voters_own_end_is_certain() {
    let (me, all) = (peer(2), electorate(3));
    assert_eq!(judge(&view(&me, &all), 0, &peer(1), &PRE), granted(false));
    let flagged = VoterView { uncertain: true, ..view(&me, &all) };
    let verdict = Some(Verdict::Granted { certain: false });
    assert_eq!(judge(&flagged, 0, &peer(1), &REAL), Judgement { row: 12, raise: true, verdict });
}

/// The rule of CONSENSUS.md, "grants iff", and that each refusal says what is the case, over all
/// combinations of what the table looks at.
#[test]
fn the_table_grants_exactly_when_nothing_speaks_against_it() {
    let all = with_arbiter();
    let me = peer(2);
    let stranger = peer(5);
    let wiped = Peer { incarnation: Incarnation::from_u64(77), ..peer(1) };
    let (first, third) = (name("n1"), name("n3"));
    let names = [None, Some(&first), Some(&third)];
    let rivalries = [None, Some(false), Some(true)];
    let fork = LogEnd { fingerprint: Fingerprint::from_u64(1), ..PRE.head };
    let mut judged = 0;
    for candidate in [&peer(1), &peer(9), &wiped, &peer(6)] {
        for (epoch, voter) in [(0, &me), (1, &me), (0, &stranger)] {
            for flags in 0..8 {
                let (installing, sitting, uncertain) =
                    (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
                for code in 0..27 {
                    let (vote, heard) = (names[code % 3], names[code / 3 % 3]);
                    let rivalry = rivalries[code / 9];
                    for term in 5..=7 {
                        for head in [end(5, 99), PRE.head, fork, end(5, 101)] {
                            for (own, theirs) in [(1, 1), (0, 0), (0, 1), (2, 1), (1, 2)] {
                                for phase in [Phase::Pre, Phase::Real] {
                                    let view = VoterView {
                                        term: Term::new(term),
                                        priority: own,
                                        vote,
                                        heard,
                                        installing,
                                        sitting,
                                        uncertain,
                                        campaign: rivalry
                                            .map(|refused_one| Rivalry { refused_one }),
                                        ..view(voter, &all)
                                    };
                                    let request =
                                        VoteRequest { head, priority: theirs, phase, ..PRE };
                                    let judgement = judge(&view, epoch, candidate, &request);
                                    check(&view, epoch, candidate, &request, judgement);
                                    judged += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(judged > 300_000, "{judged}");
}

fn check(
    view: &VoterView<'_>,
    epoch: u32,
    candidate: &Peer,
    request: &VoteRequest,
    judgement: Judgement,
) {
    let what = format!("{view:?} {epoch} {candidate:?} {request:?} -> {judgement:?}");
    let all = view.electorate.unwrap();
    let pre = request.phase == Phase::Pre;
    let electable = candidate.name.as_str() == "n1" && candidate.incarnation == peer(1).incarnation;
    let has_vote = all.voters.iter().any(|v| v.name == view.me.name) && !view.installing;
    let in_time = if pre { request.asked > view.term } else { request.asked >= view.term };
    let free =
        pre || request.asked > view.term || view.vote.is_none_or(|voted| *voted == candidate.name);
    let undisturbed = !pre || view.heard.is_none_or(|master| *master == candidate.name);
    let ours = (view.head.term, view.head.vlsn);
    let theirs = (request.head.term, request.head.vlsn);
    let same = request.head.fingerprint == view.head.fingerprint;
    let good = theirs > ours || (theirs == ours && same);
    let rival = pre
        && theirs == ours
        && view.campaign == Some(Rivalry { refused_one: false })
        && !view.uncertain
        && view.priority > 0
        && (view.priority, view.me.name.as_str()) > (request.priority, candidate.name.as_str());
    let belongs = epoch == view.epoch && electable;
    let hears = belongs && has_vote && !view.sitting;
    let grants = hears && in_time && free && undisturbed && good && !rival;
    let found = match judgement.verdict {
        Some(Verdict::Granted { certain }) => {
            assert_eq!(certain, !view.uncertain, "{what}");
            true
        }
        Some(Verdict::Refused(refusal)) => {
            let is_the_case = match refusal {
                Refusal::Epoch => epoch != view.epoch,
                Refusal::NotElectable => !electable,
                Refusal::Sitting => view.sitting && pre,
                Refusal::HigherTerm => !in_time,
                Refusal::Voted => !free,
                Refusal::HeardMaster => !undisturbed,
                Refusal::Rival => rival,
                Refusal::BetterHead => theirs < ours,
                Refusal::Fork => theirs == ours && !same,
            };
            assert!(is_the_case, "{what}");
            false
        }
        None => {
            assert!(belongs && (!has_vote || (view.sitting && !pre)), "{what}");
            false
        }
    };
    assert_eq!(found, grants, "{what}");
    // Nothing raises a voter's term but a vote that it hears.
    assert_eq!(judgement.raise, hears && !pre && request.asked > view.term, "{what}");
}

// -------------------------------------------------------------------- campaigns

fn campaign(n: u64, uncertain: bool) -> Campaign {
    let campaign =
        Campaign::new(&peer(1), &electorate(n), VoteRequest { uncertain, nonce: 7, ..REAL });
    campaign.check_invariants();
    campaign
}

fn answer(verdict: Verdict) -> VoteAnswer {
    VoteAnswer { phase: Phase::Real, nonce: 7, asked: Term::new(6), verdict }
}

const YES: Verdict = Verdict::Granted { certain: true };
const FLAGGED: Verdict = Verdict::Granted { certain: false };
const NO: Verdict = Verdict::Refused(Refusal::BetterHead);

#[test]
fn a_group_of_one_elects_itself_even_when_it_is_not_certain() {
    assert_eq!(campaign(1, false).tally(), Tally::Won);
    assert_eq!(campaign(1, true).tally(), Tally::Won);
}

#[test]
fn a_quorum_of_certain_grants_wins_and_refusals_that_prevent_one_lose() {
    let mut c = campaign(3, false);
    assert_eq!(c.tally(), Tally::Open);
    assert_eq!(c.handle_answer(&peer(2), &answer(NO)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(YES)), Tally::Won);
    let mut c = campaign(5, false);
    assert_eq!(c.handle_answer(&peer(2), &answer(NO)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(NO)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(4), &answer(NO)), Tally::Lost);
}

#[test]
fn a_flagged_candidate_needs_all_or_a_certain_quorum() {
    let mut c = campaign(3, true);
    assert_eq!(c.handle_answer(&peer(2), &answer(YES)), Tally::Open, "its own is not certain");
    assert_eq!(c.handle_answer(&peer(3), &answer(YES)), Tally::Won);
    let mut c = campaign(3, true);
    assert_eq!(c.handle_answer(&peer(2), &answer(FLAGGED)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(FLAGGED)), Tally::Won, "nobody has more");
    let mut c = campaign(3, true);
    assert_eq!(c.handle_answer(&peer(2), &answer(FLAGGED)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(NO)), Tally::Lost);
}

#[test]
fn grants_of_an_earlier_campaign_or_another_directory_are_ignored() {
    let mut c = campaign(3, false);
    let wiped = Peer { incarnation: Incarnation::from_u64(77), ..peer(2) };
    assert_eq!(c.handle_answer(&wiped, &answer(YES)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(4), &answer(YES)), Tally::Open);
    for foreign in [
        VoteAnswer { nonce: 8, ..answer(YES) },
        VoteAnswer { phase: Phase::Pre, ..answer(YES) },
        VoteAnswer { asked: Term::new(5), ..answer(YES) },
    ] {
        assert_eq!(c.handle_answer(&peer(2), &foreign), Tally::Open, "{foreign:?}");
    }
    assert_eq!(c.granted().collect::<Vec<_>>(), [&name("n1")]);
    assert_eq!(c.handle_answer(&peer(2), &answer(YES)), Tally::Won);
}

#[test]
fn a_repeated_answer_counts_once_and_a_grant_stays_one() {
    let mut c = campaign(5, false);
    assert_eq!(c.handle_answer(&peer(2), &answer(YES)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(2), &answer(YES)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(2), &answer(NO)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(NO)), Tally::Open);
    assert_eq!(c.handle_answer(&peer(3), &answer(YES)), Tally::Won, "asked again, it granted");
}

#[test]
fn a_rival_is_refused_and_asked_again_once() {
    let mut c = campaign(3, false);
    assert_eq!(c.rivalry(), Rivalry { refused_one: false });
    assert!(c.handle_rival(&name("n2")));
    assert_eq!(c.rivalry(), Rivalry { refused_one: true });
    assert!(!c.handle_rival(&name("n2")));
}

/// Whatever the answers: a winner has the votes of a majority, and has met a certain voter of each
/// replication quorum, or all voters.
#[test]
fn a_winner_has_met_each_quorum_that_may_have_made_something_durable() {
    for n in 1..=5_usize {
        for rep in 1..=n {
            for elect in 1..=n {
                let Ok(quorums) = Quorums::check(n, rep, elect) else { continue };
                let mut all = electorate(n as u64);
                (all.q_rep, all.q_elect) = (rep as u8, elect as u8);
                let mut all_wins = 0;
                // Per voter: granted and certain, granted and flagged, refused, not heard.
                for code in 0..4_u32.pow(n as u32) {
                    let of = |at: usize| code / 4_u32.pow(at as u32) % 4;
                    if of(0) > 1 {
                        continue; // the candidate is for itself
                    }
                    let request = VoteRequest { uncertain: of(0) == 1, nonce: 7, ..REAL };
                    let mut campaign = Campaign::new(&peer(1), &all, request);
                    for at in 1..n {
                        let verdict = match of(at) {
                            0 => YES,
                            1 => FLAGGED,
                            2 => NO,
                            _ => continue,
                        };
                        campaign.handle_answer(&peer(at as u64 + 1), &answer(verdict));
                    }
                    let certain = (0..n).filter(|at| of(*at) == 0).count();
                    let granted = (0..n).filter(|at| of(*at) <= 1).count();
                    let open = (0..n).filter(|at| of(*at) == 3).count();
                    match campaign.tally() {
                        Tally::Won => {
                            assert!(certain + rep > n || granted == n, "{quorums:?} {code}");
                            all_wins += usize::from(granted == n);
                            assert!(granted >= elect, "{quorums:?} {code}");
                        }
                        Tally::Lost => assert!(certain + open < elect && granted + open < n),
                        Tally::Open => assert!(open > 0, "{quorums:?} {code}: nothing is missing"),
                    }
                }
                assert!(all_wins > 0);
            }
        }
    }
}
