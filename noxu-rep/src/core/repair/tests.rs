use noxu_util::{Fingerprint, Incarnation, NULL_VLSN, Term};

use super::*;

/// A log as the terms of its entries; what came before an entry and its term decide what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    of_entries: Vec<u32>,
    damaged: BTreeSet<i64>,
    anchor: i64,
    uncertain: bool,
    installing: bool,
}

fn terms(terms: &[u32]) -> Terms {
    let of_entries = terms.to_vec();
    Terms { of_entries, damaged: BTreeSet::new(), anchor: 0, uncertain: false, installing: false }
}

fn v(n: i64) -> Vlsn {
    Vlsn::new(n)
}

impl Terms {
    fn entry(&self, vlsn: i64) -> Mark {
        let chain = self.of_entries[..vlsn as usize].iter().fold(0, |hash: u64, term| {
            hash.wrapping_mul(1_000_003).wrapping_add(u64::from(*term) + 1)
        });
        let term = if vlsn == 0 { 0 } else { self.of_entries[vlsn as usize - 1] };
        Mark { term: Term::new(term), fingerprint: Fingerprint::from_u64(chain) }
    }

    fn ask(&self, first: i64, last: i64) -> RepairAsk {
        RepairAsk {
            purpose: Purpose::Repairing,
            nonce: 1,
            first: v(first),
            last: v(last),
            before: self.entry(first - 1),
            after: self.entry(last),
            offset: 0,
        }
    }

    fn damage(&self, first: i64, last: i64) -> Damage {
        let RepairAsk { first, last, before, after, .. } = self.ask(first, last);
        Damage { first, last, before, after }
    }
}

impl RepairView for Terms {
    fn is_uncertain(&self) -> bool {
        self.uncertain
    }
    fn is_installing(&self) -> bool {
        self.installing
    }
    fn anchor(&self) -> Vlsn {
        v(self.anchor)
    }
    fn last(&self) -> Vlsn {
        v(self.of_entries.len() as i64)
    }
    fn mark(&self, vlsn: Vlsn) -> Option<Mark> {
        let at = vlsn.sequence();
        (!self.damaged.contains(&at)).then(|| self.entry(at))
    }
    fn is_damaged(&self, first: Vlsn, last: Vlsn) -> bool {
        self.damaged.range(first.sequence()..=last.sequence()).next().is_some()
    }
}

#[test]
fn who_cannot_know_is_silent() {
    let ask = terms(&[1, 1, 1, 1]).ask(3, 4);
    let same = terms(&[1, 1, 1, 1]);
    let uncertain = Terms { uncertain: true, ..terms(&[1]) };
    assert_eq!(answer(&uncertain, &ask), RepairVerdict::Silent(Silence::Uncertain));
    let unsure_and_has = Terms { uncertain: true, ..terms(&[1, 1, 1, 1]) };
    assert_eq!(answer(&unsure_and_has, &ask), RepairVerdict::Have, "seed 500953");
    let installing = Terms { installing: true, ..terms(&[1]) };
    assert_eq!(answer(&installing, &ask), RepairVerdict::Silent(Silence::Installing));
    let pruned = Terms { anchor: 3, ..same.clone() };
    assert_eq!(answer(&pruned, &ask), RepairVerdict::Silent(Silence::BelowAnchor));
    for damaged in [3, 4] {
        let damaged = Terms { damaged: BTreeSet::from([damaged]), ..same.clone() };
        assert_eq!(answer(&damaged, &ask), RepairVerdict::Silent(Silence::Damaged));
    }
}

#[test]
fn who_has_the_same_log_has_the_entries() {
    let ask = terms(&[1, 1, 2, 2, 3]).ask(2, 4);
    assert_eq!(answer(&terms(&[1, 1, 2, 2]), &ask), RepairVerdict::Have);
    assert_eq!(answer(&terms(&[1, 1, 2, 2, 9]), &ask), RepairVerdict::Have);
}

#[test]
fn who_ends_below_the_first_entry_or_parted_before_it_never_had_it() {
    let ask = terms(&[1, 1, 1, 1]).ask(3, 4);
    assert_eq!(answer(&terms(&[]), &ask), RepairVerdict::Never);
    assert_eq!(answer(&terms(&[1, 1]), &ask), RepairVerdict::Never);
    assert_eq!(answer(&terms(&[1, 2, 2]), &ask), RepairVerdict::Never);
    assert_eq!(answer(&terms(&[1, 2, 2, 2, 2]), &ask), RepairVerdict::Never);
}

#[test]
fn an_entry_of_another_term_proves_that_the_first_one_was_never_there() {
    let ask = terms(&[1, 1, 1, 1]).ask(3, 4);
    assert_eq!(answer(&terms(&[1, 1, 2]), &ask), RepairVerdict::Never, "one term, another here");
    let ask = terms(&[1, 1, 2, 3]).ask(3, 4);
    assert_eq!(answer(&terms(&[1, 1, 4]), &ask), RepairVerdict::Never, "newer than all of them");
    let alone = terms(&[1, 1, 2]).ask(3, 3);
    assert_eq!(answer(&terms(&[1, 1, 1]), &alone), RepairVerdict::Never, "another fingerprint");
}

#[test]
fn a_voter_that_is_merely_behind_sends_what_it_has() {
    let ask = terms(&[1, 1, 1, 1, 1]).ask(3, 5);
    assert_eq!(answer(&terms(&[1, 1, 1]), &ask), RepairVerdict::Part { through: v(3) });
    assert_eq!(answer(&terms(&[1, 1, 1, 1, 2]), &ask), RepairVerdict::Part { through: v(4) });
    let damaged = Terms { damaged: BTreeSet::from([4]), ..terms(&[1, 1, 1, 1]) };
    assert_eq!(answer(&damaged, &ask), RepairVerdict::Part { through: v(3) });
}

#[test]
fn what_may_be_the_same_or_another_is_left_open() {
    let ask = terms(&[1, 1, 2, 3]).ask(3, 4);
    let open = RepairVerdict::Silent(Silence::Ambiguous);
    assert_eq!(answer(&terms(&[1, 1, 2]), &ask), open);
    assert_eq!(answer(&terms(&[1, 1, 3]), &ask), open);
}

/// All logs of at most four entries and three terms: whatever a voter says is true of its log.
#[test]
fn an_answer_is_true_whatever_the_two_logs_are() {
    let mut logs = vec![vec![]];
    for len in 1..=4_u32 {
        for code in 0..3_u32.pow(len) {
            let log: Vec<u32> = (0..len).map(|at| code / 3_u32.pow(at) % 3 + 1).collect();
            if log.is_sorted() {
                logs.push(log);
            }
        }
    }
    let mut answers = BTreeMap::new();
    for mine in &logs {
        for first in 1..=mine.len() {
            for last in first..=mine.len() {
                for theirs in &logs {
                    let ask = terms(mine).ask(first as i64, last as i64);
                    // Terms make the entries here: equal prefixes are equal terms.
                    let shared = mine.iter().zip(theirs).take_while(|(a, b)| a == b).count();
                    let verdict = answer(&terms(theirs), &ask);
                    let what = format!("{mine:?} {first} to {last}, {theirs:?}: {verdict:?}");
                    let kind = match verdict {
                        RepairVerdict::Have => {
                            assert!(shared >= last, "{what}");
                            "have"
                        }
                        RepairVerdict::Part { through } => {
                            assert!(shared >= through.sequence() as usize, "{what}");
                            assert!(through >= ask.first && through < ask.last, "{what}");
                            "part"
                        }
                        RepairVerdict::Never => {
                            assert!(shared < first, "{what}");
                            "never"
                        }
                        RepairVerdict::Silent(why) => {
                            assert_eq!(why, Silence::Ambiguous, "{what}");
                            "silent"
                        }
                    };
                    *answers.entry(kind).or_insert(0) += 1;
                }
            }
        }
    }
    assert_eq!(answers.len(), 4, "{answers:?}");
}

// -------------------------------------------------------------------- the machine

const RETRY: Duration = Duration::from_millis(10);

fn peer(number: u64) -> Peer {
    let name = format!("n{number}").parse().unwrap();
    Peer { name, incarnation: Incarnation::from_u64(number) }
}

/// n1 mends entry 3 of a log of four; n2 and n3 vote too.
fn repair(floor: i64) -> (Repair, Damage) {
    let damage = terms(&[1, 1, 1, 1]).damage(3, 3);
    let others = vec![peer(2), peer(3)];
    let setup = RepairSetup {
        purpose: Purpose::Repairing,
        quorums: Quorums::majorities(3),
        others,
        retry: RETRY,
        max_bytes: 1000,
        nonce: 41,
        floor: v(floor),
    };
    (Repair::new(Duration::ZERO, setup, &[damage]), damage)
}

/// What an established master lacks and only others need: nothing is cut off, and what nobody has
/// keeps nothing else waiting.
#[test]
fn an_established_master_asks_for_one_damaged_run_after_the_other_and_cuts_nothing_off() {
    let log = terms(&[1, 1, 1, 1, 1]);
    let (second, fourth) = (log.damage(2, 2), log.damage(4, 4));
    let setup = RepairSetup {
        purpose: Purpose::Mending,
        quorums: Quorums::majorities(3),
        others: vec![peer(2), peer(3)],
        retry: RETRY,
        max_bytes: 1000,
        nonce: 41,
        floor: v(0),
    };
    let mut repair = Repair::new(Duration::ZERO, setup, &[fourth, second]);
    let asked = |repair: &mut Repair| {
        let asks = outputs(repair).into_iter().map(|output| match output {
            RepairOutput::Ask { ask, .. } => (ask.purpose, ask.first, ask.nonce),
            other => panic!("{other:?}"),
        });
        asks.collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut repair), [(Purpose::Mending, v(2), 42); 2]);
    let never = |nonce| RepairAnswer { nonce, first: v(2), ..said(RepairVerdict::Never, b"", 0) };
    for n in [2, 3] {
        repair.handle_answer(&peer(n), &never(42));
    }
    assert_eq!(outputs(&mut repair), [RepairOutput::Never], "to be told once a quorum says so");
    repair.handle_timeout(RETRY);
    assert_eq!(asked(&mut repair), [(Purpose::Mending, v(4), 43); 2]);
    let have = RepairAnswer { nonce: 43, first: v(4), ..said(RepairVerdict::Have, b"four", 0) };
    repair.handle_answer(&peer(3), &have);
    let step = RepairStep::Splice { damage: fourth, bytes: b"four".to_vec() };
    assert_eq!(outputs(&mut repair), [RepairOutput::Step(step)]);
    repair.handle_done(RETRY, &[second], true);
    assert_eq!(asked(&mut repair), [(Purpose::Mending, v(2), 44); 2]);
    repair.handle_timeout(RETRY * 2);
    assert_eq!(
        asked(&mut repair),
        [(Purpose::Mending, v(2), 45); 2],
        "the only one is asked for again"
    );
}

fn outputs(repair: &mut Repair) -> Vec<RepairOutput> {
    std::iter::from_fn(|| repair.poll_output()).collect()
}

fn said(verdict: RepairVerdict, bytes: &[u8], offset: u32) -> RepairAnswer {
    let with_bytes = matches!(verdict, RepairVerdict::Have | RepairVerdict::Part { .. });
    RepairAnswer {
        nonce: 42,
        first: v(3),
        verdict,
        commit_floor: NULL_VLSN,
        total: if with_bytes { 4 } else { 0 },
        offset,
        bytes: bytes.to_vec(),
    }
}

#[test]
fn questions_and_answers_that_make_no_sense_change_nothing() {
    let log = terms(&[1, 1, 1, 1]);
    let backwards = RepairAsk { first: v(3), last: v(2), ..log.ask(2, 3) };
    assert_eq!(answer(&log, &backwards), RepairVerdict::Silent(Silence::Ambiguous));
    let nothing = RepairAsk { first: NULL_VLSN, ..log.ask(1, 3) };
    assert_eq!(answer(&log, &nothing), RepairVerdict::Silent(Silence::BelowAnchor));

    let (mut repair, _) = repair(0);
    outputs(&mut repair);
    for through in [v(2), v(3), v(4)] {
        let part = RepairVerdict::Part { through };
        repair.handle_answer(&peer(2), &said(part, b"abcd", 0));
    }
    assert_eq!(outputs(&mut repair), [], "no part of a single entry");
    let long = RepairAnswer { total: u32::MAX, ..said(RepairVerdict::Have, &[0; 1001], 0) };
    repair.handle_answer(&peer(2), &long);
    assert_eq!(outputs(&mut repair), [], "more than is ever kept");
}

#[test]
fn every_voter_is_asked_and_asked_again() {
    let (mut repair, damage) = repair(0);
    let ask = |number: u64| RepairOutput::Ask {
        to: peer(number).name,
        ask: RepairAsk { nonce: 42, ..terms(&[1, 1, 1, 1]).ask(3, 3) },
    };
    assert_eq!(damage.first, v(3));
    assert_eq!(outputs(&mut repair), [ask(2), ask(3)]);
    assert_eq!(repair.poll_timeout(), Some(RETRY));
    repair.handle_timeout(RETRY / 2);
    assert_eq!(outputs(&mut repair), []);
    repair.handle_timeout(RETRY);
    assert_eq!(outputs(&mut repair), [ask(2), ask(3)]);
}

#[test]
fn the_bytes_of_whoever_has_the_entries_are_put_back_piece_by_piece() {
    let (mut repair, damage) = repair(0);
    outputs(&mut repair);
    repair.handle_answer(&peer(2), &said(RepairVerdict::Have, b"ab", 0));
    let more = RepairAsk { nonce: 42, offset: 2, ..terms(&[1, 1, 1, 1]).ask(3, 3) };
    assert_eq!(outputs(&mut repair), [RepairOutput::Ask { to: peer(2).name, ask: more }]);
    repair.handle_answer(&peer(2), &said(RepairVerdict::Have, b"ab", 0));
    assert_eq!(outputs(&mut repair), [], "a piece that came twice");
    repair.handle_answer(&peer(2), &said(RepairVerdict::Have, b"cd", 2));
    let step = RepairStep::Splice { damage, bytes: b"abcd".to_vec() };
    assert_eq!(outputs(&mut repair), [RepairOutput::Step(step)]);
    repair.handle_done(RETRY, &[], true);
    assert!(repair.is_finished());
}

#[test]
fn bytes_that_do_not_fit_are_not_taken_from_the_same_voter_again() {
    let (mut repair, damage) = repair(0);
    outputs(&mut repair);
    repair.handle_answer(&peer(2), &said(RepairVerdict::Have, b"abcd", 0));
    outputs(&mut repair);
    repair.handle_done(RETRY, &[damage], false);
    outputs(&mut repair);
    let again = |verdict| RepairAnswer { nonce: 43, ..said(verdict, b"abcd", 0) };
    repair.handle_answer(&peer(2), &again(RepairVerdict::Have));
    assert_eq!(outputs(&mut repair), []);
    repair.handle_answer(&peer(3), &again(RepairVerdict::Have));
    assert_eq!(outputs(&mut repair).len(), 1);
}

#[test]
fn an_entry_is_cut_off_when_a_nack_quorum_never_had_it() {
    let (mut repair, _) = repair(2);
    outputs(&mut repair);
    repair.handle_answer(&peer(2), &said(RepairVerdict::Never, b"", 0));
    repair.handle_answer(&peer(2), &said(RepairVerdict::Never, b"", 0));
    assert_eq!(outputs(&mut repair), [], "one voter, twice");
    repair.handle_answer(&peer(9), &said(RepairVerdict::Never, b"", 0));
    assert_eq!(outputs(&mut repair), [], "no voter");
    let old = RepairAnswer { nonce: 41, ..said(RepairVerdict::Never, b"", 0) };
    repair.handle_answer(&peer(3), &old);
    assert_eq!(outputs(&mut repair), [], "of another question");
    let silent = RepairVerdict::Silent(Silence::Uncertain);
    repair.handle_answer(&peer(3), &said(silent, b"", 0));
    assert_eq!(outputs(&mut repair), [], "silence is no nack");
    repair.handle_answer(&peer(3), &said(RepairVerdict::Never, b"", 0));
    let step = RepairStep::TruncateAfter { vlsn: v(2) };
    assert_eq!(outputs(&mut repair), [RepairOutput::Step(step)]);
}

#[test]
fn what_anybody_knows_to_be_durable_is_never_cut_off() {
    let (mut repair, _) = repair(2);
    outputs(&mut repair);
    repair.handle_answer(&peer(2), &said(RepairVerdict::Never, b"", 0));
    let knows = RepairAnswer { commit_floor: v(3), ..said(RepairVerdict::Never, b"", 0) };
    repair.handle_answer(&peer(3), &knows);
    assert!(matches!(outputs(&mut repair).as_slice(), [RepairOutput::Alarm(_)]));
    repair.handle_timeout(RETRY * 5);
    assert_eq!(outputs(&mut repair), [], "all have answered, and nobody is asked any more");
    assert!(!repair.is_finished());
}

#[test]
fn a_mutant_that_lets_an_uncertain_voter_nack_is_noticed() {
    let uncertain = Terms { uncertain: true, ..terms(&[1]) };
    let ask = terms(&[1, 1, 1, 1]).ask(3, 4);
    let verdict = Mutant::with(Some(Mutant::UncertainNacks), || answer(&uncertain, &ask));
    assert_eq!(verdict, RepairVerdict::Never, "it may have had the entry and lost it");
}
