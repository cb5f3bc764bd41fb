//! Tests of the search, without channels: both halves are called in turn.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use noxu_util::checksum::crc;
use proptest::prelude::*;

use super::*;

pub(crate) fn v(sequence: i64) -> Vlsn {
    Vlsn::new(sequence)
}

/// A log given entry by entry, holes allowed: what a caller without an index has.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlainLog {
    pub(crate) entries: BTreeMap<i64, VlsnEntry>,
    pub(crate) anchor: Option<(i64, VlsnEntry)>,
    pub(crate) terms: Vec<(Term, Vlsn)>,
}

impl PlainLog {
    pub(crate) fn of(entries: &[(i64, u64, bool)]) -> Self {
        let entry = |&(vlsn, fingerprint, is_sync): &(i64, u64, bool)| {
            (vlsn, VlsnEntry { lsn: vlsn as u64 * 100, fingerprint, is_sync })
        };
        Self { entries: entries.iter().map(entry).collect(), ..Self::default() }
    }

    /// Entries of which every one is a sync entry with a fingerprint that depends on `lineage`.
    pub(crate) fn dense(range: RangeInclusive<i64>, lineage: u64) -> Self {
        Self::of(&range.map(|n| (n, lineage << 32 | n as u64, true)).collect::<Vec<_>>())
    }

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.entries.extend(other.entries);
        self
    }

    /// Drops what lies before `first` and keeps the anchor.
    pub(crate) fn drop_front(mut self, first: i64) -> Self {
        let anchor = self.entries.get(&(first - 1)).map(|entry| (first - 1, *entry));
        self.anchor = anchor.map(|(at, entry)| (at, VlsnEntry { is_sync: true, ..entry }));
        self.entries = self.entries.split_off(&first);
        self
    }
}

impl SyncupView for PlainLog {
    fn last_sync(&self) -> Vlsn {
        let newest = self.entries.iter().rev().find(|(_, entry)| entry.is_sync).map(|(at, _)| *at);
        newest.or(self.anchor.map(|(at, _)| at)).map_or(NULL_VLSN, v)
    }

    fn last_txn_end(&self) -> Vlsn {
        self.last_sync()
    }

    fn first_vlsn(&self) -> Vlsn {
        let after_anchor = self.anchor.map(|(at, _)| at + 1);
        after_anchor.or(self.entries.keys().next().copied()).map_or(NULL_VLSN, v)
    }

    fn entry(&self, vlsn: Vlsn) -> Option<VlsnEntry> {
        match self.anchor {
            Some((at, entry)) if at == vlsn.sequence() => Some(entry),
            _ => self.entries.get(&vlsn.sequence()).copied(),
        }
    }

    fn last_vlsn(&self) -> Vlsn {
        let last = self.entries.keys().next_back().copied();
        last.or(self.anchor.map(|(at, _)| at)).map_or(NULL_VLSN, v)
    }

    fn term_table(&self) -> Vec<(Term, Vlsn)> {
        self.terms.clone()
    }
}

/// A log of any length that costs no memory: entries through `common` are shared, those beyond are
/// its own; every `every`-th is a sync entry.
#[derive(Debug, Clone)]
pub(crate) struct SyntheticLog {
    pub(crate) first: i64,
    pub(crate) common: i64,
    pub(crate) last: i64,
    pub(crate) every: i64,
    pub(crate) lineage: u64,
    pub(crate) terms: Vec<(Term, Vlsn)>,
}

impl SyncupView for SyntheticLog {
    fn last_sync(&self) -> Vlsn {
        self.sync_at_or_before(v(self.last)).unwrap_or(NULL_VLSN)
    }

    fn last_txn_end(&self) -> Vlsn {
        self.last_sync()
    }

    fn first_vlsn(&self) -> Vlsn {
        v(self.first)
    }

    fn entry(&self, vlsn: Vlsn) -> Option<VlsnEntry> {
        let n = vlsn.sequence();
        let lineage = if n > self.common { self.lineage } else { 0 };
        (self.first..=self.last).contains(&n).then(|| VlsnEntry {
            lsn: n as u64,
            fingerprint: lineage << 40 | n as u64,
            is_sync: n % self.every == 0,
        })
    }

    fn last_vlsn(&self) -> Vlsn {
        v(self.last)
    }

    fn sync_at_or_before(&self, vlsn: Vlsn) -> Option<Vlsn> {
        let n = vlsn.sequence().min(self.last);
        let sync = n - n % self.every;
        (sync >= self.first).then(|| v(sync))
    }

    fn term_table(&self) -> Vec<(Term, Vlsn)> {
        self.terms.clone()
    }
}

/// Two synthetic logs that share `common` entries.
pub(crate) fn diverged(
    common: i64,
    replica_tail: i64,
    feeder_tail: i64,
    every: i64,
) -> (SyntheticLog, SyntheticLog) {
    let log = |tail, lineage| SyntheticLog {
        first: 1,
        common,
        last: common + tail,
        every,
        lineage,
        terms: Vec::new(),
    };
    (log(replica_tail, 1), log(feeder_tail, 2))
}

/// Runs both halves against each other.
fn syncup_with(
    replica: &dyn SyncupView,
    feeder: &dyn SyncupView,
    probes: bool,
) -> Result<(SyncupOutcome, SyncupStats)> {
    let (mut asking, mut output) = ReplicaSyncup::new(replica, probes);
    let mut answering = FeederSyncup::new(feeder);
    loop {
        match output {
            ReplicaOutput::Ask(question) => {
                // Over the wire and back, so that every bound of the encoding is met.
                let question = SyncupMsg::decode(&question.encode())?;
                let answer = match answering.handle_message(question)? {
                    FeederOutput::Answer(answer) | FeederOutput::Restore(answer) => answer,
                    FeederOutput::Start(at) => panic!("started at {at} without being told"),
                };
                output = asking.handle_message(SyncupMsg::decode(&answer.encode())?)?;
            }
            ReplicaOutput::Start(message, outcome) => {
                let started = answering.handle_message(message)?;
                let SyncupOutcome::Matchpoint { start_vlsn, .. } = outcome else {
                    panic!("a start without a matchpoint")
                };
                assert_eq!(started, FeederOutput::Start(start_vlsn));
                return Ok((outcome, asking.stats()));
            }
            ReplicaOutput::Done(outcome) => return Ok((outcome, asking.stats())),
        }
    }
}

fn syncup(replica: &dyn SyncupView, feeder: &dyn SyncupView) -> (SyncupOutcome, SyncupStats) {
    syncup_with(replica, feeder, true).unwrap()
}

fn matched(vlsn: i64, lsn: u64, start: i64) -> SyncupOutcome {
    SyncupOutcome::Matchpoint {
        matchpoint_vlsn: v(vlsn),
        matchpoint_lsn: lsn,
        start_vlsn: v(start),
    }
}

fn restore(failed: i64) -> SyncupOutcome {
    SyncupOutcome::NeedsRestore { failed_vlsn: v(failed) }
}

/// The definition, in one line: the newest sync entry of the replica that both hold alike.
fn brute_force(replica: &PlainLog, feeder: &PlainLog) -> Option<Vlsn> {
    if replica.last_sync().is_null() {
        return feeder.entry(v(1)).map(|_| NULL_VLSN);
    }
    let (first, last) = (replica.first_vlsn().sequence() - 1, replica.last_vlsn().sequence());
    (first.max(1)..=last).rev().map(v).find(|vlsn| {
        replica.entry(*vlsn).is_some_and(|ours| {
            ours.is_sync && feeder.entry(*vlsn).is_some_and(|theirs| ours.agrees_with(theirs))
        })
    })
}

#[test]
fn equal_logs_take_one_round_trip() {
    let log = PlainLog::dense(1..=10, 0);
    let (outcome, stats) = syncup(&log, &log);
    assert_eq!(outcome, matched(10, 1000, 11));
    assert_eq!((stats.round_trips, stats.probes), (1, 0));
    assert_eq!(stats.agreed_through, v(10));
}

#[test]
fn a_replica_that_is_behind_takes_one_round_trip() {
    let (outcome, stats) = syncup(&PlainLog::dense(1..=7, 0), &PlainLog::dense(1..=5000, 0));
    assert_eq!(outcome, matched(7, 700, 8));
    assert_eq!(stats.round_trips, 1);
}

#[test]
fn a_plain_view_with_holes_matches_below_the_disagreement() {
    let replica = PlainLog::of(&[(6, 1, true), (5, 2, false), (4, 3, true)]);
    let feeder = PlainLog::of(&[(8, 9, true), (6, 77, true), (4, 3, true)]);
    assert_eq!(find_matchpoint(&replica, &feeder), Matchpoint::Found { vlsn: v(4), lsn: 400 });
    assert_eq!(syncup(&replica, &feeder).0, matched(4, 400, 5));
}

#[test]
fn a_longer_replica_takes_the_feeders_alternate() {
    let (outcome, stats) = syncup(&PlainLog::dense(1..=10, 0), &PlainLog::dense(1..=8, 0));
    assert_eq!(outcome, matched(8, 800, 9));
    assert_eq!(stats.round_trips, 1);
}

#[test]
fn disjoint_logs_need_a_restore() {
    let (replica, feeder) = (PlainLog::dense(1..=10, 1), PlainLog::dense(1..=10, 2));
    assert_eq!(find_matchpoint(&replica, &feeder), Matchpoint::None);
    assert!(matches!(syncup(&replica, &feeder).0, SyncupOutcome::NeedsRestore { .. }));
}

#[test]
fn a_fresh_replica_starts_at_one_or_needs_a_restore() {
    let fresh = PlainLog::default();
    let whole = PlainLog::dense(1..=10, 0);
    assert_eq!(find_matchpoint(&fresh, &whole), Matchpoint::Found { vlsn: NULL_VLSN, lsn: 0 });
    assert_eq!(syncup(&fresh, &whole).0, matched(0, 0, 1));
    let pruned = whole.drop_front(5);
    assert_eq!(find_matchpoint(&fresh, &pruned), Matchpoint::None);
    assert_eq!(syncup(&fresh, &pruned).0, restore(1));
    assert_eq!(syncup(&fresh, &fresh).0, restore(1));
}

#[test]
fn a_feeder_whose_log_begins_above_the_replicas_end_sends_it_to_restore() {
    let whole = PlainLog::dense(1..=100, 0);
    let (outcome, stats) = syncup(&PlainLog::dense(1..=10, 0), &whole.drop_front(50));
    assert_eq!(outcome, restore(10));
    assert_eq!(stats.round_trips, 1);
}

#[test]
fn a_replica_that_ends_right_before_the_feeders_first_entry_streams_on() {
    let whole = PlainLog::dense(1..=100, 0);
    assert_eq!(
        syncup(&PlainLog::dense(1..=49, 0), &whole.clone().drop_front(50)).0,
        matched(49, 4900, 50)
    );
    assert_eq!(syncup(&PlainLog::dense(1..=48, 0), &whole.drop_front(50)).0, restore(48));
}

#[test]
fn an_alternate_below_the_replicas_first_needs_a_restore() {
    let replica = PlainLog::dense(1..=100, 0).drop_front(50);
    let (outcome, _) = syncup(&replica, &PlainLog::dense(1..=20, 0));
    assert_eq!(outcome, restore(100));
    // The anchor itself still is a matchpoint.
    assert_eq!(syncup(&replica, &PlainLog::dense(1..=49, 0)).0, matched(49, 4900, 50));
}

#[test]
fn a_restored_log_without_entries_matches_at_its_anchor() {
    let mut replica = PlainLog::dense(1..=49, 0).drop_front(50);
    assert!(replica.entries.is_empty());
    assert_eq!(syncup(&replica, &PlainLog::dense(1..=80, 0)).0, matched(49, 4900, 50));
    // A divergence right above the anchor is seen as such.
    replica = replica.and(PlainLog::dense(50..=60, 1));
    assert_eq!(syncup(&replica, &PlainLog::dense(1..=80, 0)).0, matched(49, 4900, 50));
    // A foreign anchor is no matchpoint.
    let foreign = PlainLog::dense(1..=49, 3).drop_front(50);
    assert_eq!(syncup(&foreign, &PlainLog::dense(1..=80, 0)).0, restore(49));
}

#[test]
fn entries_after_the_last_sync_entry_are_kept_when_they_agree_and_cut_when_not() {
    let tail = |lineage: u64| {
        PlainLog::of(&(11..=15).map(|n| (n, lineage << 32 | n as u64, false)).collect::<Vec<_>>())
    };
    let common = PlainLog::dense(1..=10, 0);
    let feeder = common.clone().and(tail(0)).and(PlainLog::dense(16..=20, 0));
    let (outcome, stats) = syncup(&common.clone().and(tail(0)), &feeder);
    assert_eq!(outcome, matched(10, 1000, 16));
    assert_eq!((stats.round_trips, stats.probes, stats.agreed_through), (2, 0, v(15)));
    let (outcome, stats) = syncup(&common.clone().and(tail(1)), &feeder);
    assert_eq!(outcome, matched(10, 1000, 11));
    assert_eq!((stats.round_trips, stats.probes), (2, 0));
    // Also when the feeder ends before the replica does.
    assert_eq!(syncup(&common.clone().and(tail(0)), &common).0, matched(10, 1000, 11));
}

#[test]
fn same_length_with_another_fingerprint_at_the_end_rolls_the_last_entry_back() {
    let common = PlainLog::dense(1..=9, 0);
    let replica = common.clone().and(PlainLog::dense(10..=10, 1));
    let feeder = common.and(PlainLog::dense(10..=10, 2));
    let (outcome, stats) = syncup(&replica, &feeder);
    assert_eq!(outcome, matched(9, 900, 10));
    assert_eq!(stats.round_trips, 2);
}

#[test]
fn a_longer_replica_of_an_old_term_matches_where_the_terms_part() {
    let common = PlainLog::dense(1..=60, 0);
    let mut replica = common.clone().and(PlainLog::dense(61..=90, 1));
    let mut feeder = common.and(PlainLog::dense(61..=70, 2));
    replica.terms = vec![(Term::new(1), v(1)), (Term::new(4), v(40))];
    feeder.terms = vec![(Term::new(1), v(1)), (Term::new(4), v(40)), (Term::new(5), v(61))];
    let (outcome, stats) = syncup(&replica, &feeder);
    assert_eq!(outcome, matched(60, 6000, 61));
    assert_eq!(stats.round_trips, 2);
}

#[test]
fn a_matchpoint_exactly_at_the_first_and_at_the_last_entry_is_found() {
    for (common, tail) in [(1, 50), (1, 5000), (50, 0), (5000, 1)] {
        let (replica, feeder) = diverged(common, tail, tail + 3, 1);
        assert_eq!(syncup(&replica, &feeder).0, matched(common, common as u64, common + 1));
    }
}

#[test]
fn divergences_of_every_size_take_at_most_four_round_trips() {
    for every in [1, 7, 10_000] {
        for common in [0, 1, 20_000, 3_000_000, 4_000_000_000] {
            for tail in [1, 10, 1_000, 4_096, 4_097, 100_000, 1_000_000, 1_000_000_000] {
                for feeder_tail in [tail + 20_000, (tail - 3).max(0), 20_000] {
                    let (replica, feeder) = diverged(common, tail, feeder_tail, every);
                    let (outcome, stats) = syncup(&replica, &feeder);
                    let expected = common - common % every;
                    let what = format!("{common} common, {tail} diverged, sync every {every}");
                    if replica.last_sync().is_null() && feeder.last > 0 {
                        assert_eq!(outcome, matched(0, 0, 1), "{what}");
                    } else if expected == 0 {
                        assert!(matches!(outcome, SyncupOutcome::NeedsRestore { .. }), "{what}");
                    } else if let SyncupOutcome::Matchpoint { matchpoint_vlsn, .. } = outcome {
                        assert_eq!(matchpoint_vlsn, v(expected), "{what}");
                    } else {
                        panic!("{what}: {outcome:?}");
                    }
                    assert!(stats.round_trips <= 4, "{what}: {stats:?}");
                }
            }
        }
    }
}

#[test]
fn the_term_table_ends_the_search_in_two_round_trips_at_any_depth() {
    for tail in [10, 100_000, 1_000_000_000] {
        let (mut replica, mut feeder) = diverged(3_000_000, tail, tail / 2 + 5, 10);
        replica.terms = vec![(Term::new(1), v(1)), (Term::new(2), v(900))];
        feeder.terms =
            vec![(Term::new(1), v(1)), (Term::new(2), v(900)), (Term::new(3), v(3_000_001))];
        let (outcome, stats) = syncup(&replica, &feeder);
        assert_eq!(outcome, matched(3_000_000, 3_000_000, 3_000_001));
        assert_eq!(stats.round_trips, 2, "{stats:?}");
    }
}

#[test]
fn a_term_table_that_lies_costs_round_trips_but_never_a_wrong_answer() {
    let (mut replica, mut feeder) = diverged(3_000_000, 50_000, 50_000, 10);
    replica.terms = vec![(Term::new(1), v(1)), (Term::new(9), v(7))];
    for table in [
        vec![(Term::new(9), v(3_040_000))],
        vec![(Term::new(9), v(5)), (Term::new(10), v(12))],
        vec![(Term::new(9), NULL_VLSN), (Term::new(3), NULL_VLSN)],
    ] {
        feeder.terms = table;
        let (outcome, stats) = syncup(&replica, &feeder);
        assert_eq!(outcome, matched(3_000_000, 3_000_000, 3_000_001));
        assert!(stats.round_trips <= 4);
    }
}

#[test]
fn a_feeder_with_a_dropped_front_is_searched_above_it_only() {
    let (replica, mut feeder) = diverged(500_000, 600_000, 900_000, 10);
    feeder.first = 400_000;
    assert_eq!(syncup(&replica, &feeder).0, matched(500_000, 500_000, 500_001));
    feeder.first = 500_001; // synthetic logs have no anchor: nothing in common is left
    let (outcome, stats) = syncup(&replica, &feeder);
    assert!(matches!(outcome, SyncupOutcome::NeedsRestore { .. }));
    assert!(stats.round_trips <= 4);
}

#[test]
fn agreement_above_a_disagreement_is_an_alarm_that_names_both() {
    // The same fingerprints at 1..=40 and 61..=80, others between: no chain makes that.
    let replica = PlainLog::dense(1..=100, 1);
    let feeder = PlainLog::dense(1..=100, 2)
        .and(PlainLog::dense(1..=40, 1))
        .and(PlainLog::dense(61..=80, 1));
    let err = syncup_with(&replica, &feeder, true).unwrap_err();
    let RepError::NonMonotone { disagree, agree } = err else { panic!("{err}") };
    assert!(agree > disagree, "agree {agree}, disagree {disagree}");
    // Over plain views the pure function answers what the entries say.
    assert_eq!(find_matchpoint(&replica, &feeder), Matchpoint::Found { vlsn: v(80), lsn: 8000 });
}

#[test]
fn a_replica_that_knows_no_probes_is_served_one_candidate_at_a_time() {
    let (replica, feeder) = diverged(100, 50, 80, 1);
    let (outcome, stats) = syncup_with(&replica, &feeder, false).unwrap();
    assert_eq!(outcome, matched(100, 100, 101));
    assert_eq!((stats.round_trips, stats.probes), (51, 0));
}

#[test]
fn a_feeder_that_answers_a_probe_with_not_found_is_asked_one_candidate_at_a_time() {
    let (replica, feeder) = diverged(100, 50, 80, 1);
    let (mut asking, mut output) = ReplicaSyncup::new(&replica, true);
    let mut answering = FeederSyncup::new(&feeder);
    let outcome = loop {
        let question = match output {
            ReplicaOutput::Ask(question) => question,
            ReplicaOutput::Start(_, outcome) => break outcome,
            ReplicaOutput::Done(outcome) => panic!("{outcome:?}"),
        };
        let answer = if matches!(question, SyncupMsg::Probe { .. }) {
            SyncupMsg::EntryNotFound
        } else {
            match answering.handle_message(question).unwrap() {
                FeederOutput::Answer(answer) => answer,
                other => panic!("{other:?}"),
            }
        };
        output = asking.handle_message(answer).unwrap();
    };
    assert_eq!(outcome, matched(100, 100, 101));
}

#[test]
fn answers_that_do_not_fit_the_question_are_protocol_errors() {
    let log = PlainLog::dense(1..=10, 0);
    let entry = |n| SyncupMsg::Entry { vlsn: v(n), lsn: 1, fingerprint: 1, is_sync: true };
    let probe_result = |count| SyncupMsg::ProbeResult {
        first: v(1),
        last: v(10),
        verdicts: vec![Verdict::Agree; count],
        hints: vec![],
    };
    for bad in [
        entry(9),
        SyncupMsg::EntryRequest { vlsn: v(10) },
        SyncupMsg::StartStream { start_vlsn: v(11) },
        SyncupMsg::RestoreRequest { failed_vlsn: v(10) },
        SyncupMsg::RestoreResponse,
        SyncupMsg::Probe { terms: vec![], samples: vec![] },
        probe_result(0),
    ] {
        let (mut asking, _) = ReplicaSyncup::new(&log, true);
        let answer = asking.handle_message(bad.clone());
        assert!(matches!(answer, Err(RepError::ProtocolError(_))), "{bad:?}: {answer:?}");
    }
    // A second exchange has no alternates; a probe has a result of its own length.
    for bad in [
        SyncupMsg::AlternateMatchpoint { vlsn: v(5), lsn: 1, fingerprint: 1, is_sync: true },
        entry(10),
        probe_result(3),
        SyncupMsg::RestoreResponse,
    ] {
        let (mut asking, _) = ReplicaSyncup::new(&log, true);
        let probe = asking.handle_message(entry(10)).unwrap();
        assert!(matches!(probe, ReplicaOutput::Ask(SyncupMsg::Probe { .. })), "{probe:?}");
        let answer = asking.handle_message(bad.clone());
        assert!(matches!(answer, Err(RepError::ProtocolError(_))), "{bad:?}: {answer:?}");
    }
    // After RestoreRequest only RestoreResponse will do.
    let (mut asking, _) = ReplicaSyncup::new(&log, true);
    let refusal = asking.handle_message(SyncupMsg::EntryNotFound).unwrap();
    assert_eq!(refusal, ReplicaOutput::Ask(SyncupMsg::RestoreRequest { failed_vlsn: v(10) }));
    assert!(matches!(asking.handle_message(entry(10)), Err(RepError::ProtocolError(_))));
}

#[test]
fn a_feeder_refuses_what_only_a_feeder_sends_and_starts_it_cannot_serve() {
    let log = PlainLog::dense(1..=100, 0).drop_front(50);
    for bad in [
        SyncupMsg::EntryNotFound,
        SyncupMsg::RestoreResponse,
        SyncupMsg::Entry { vlsn: v(60), lsn: 1, fingerprint: 1, is_sync: true },
        SyncupMsg::StartStream { start_vlsn: NULL_VLSN },
        SyncupMsg::StartStream { start_vlsn: v(49) },
        SyncupMsg::StartStream { start_vlsn: v(102) },
    ] {
        let answer = FeederSyncup::new(&log).handle_message(bad.clone());
        assert!(matches!(answer, Err(RepError::ProtocolError(_))), "{bad:?}: {answer:?}");
    }
    for good in [50, 101] {
        let answer =
            FeederSyncup::new(&log).handle_message(SyncupMsg::StartStream { start_vlsn: v(good) });
        assert_eq!(answer.unwrap(), FeederOutput::Start(v(good)));
    }
}

#[test]
fn distances_reach_the_whole_width_and_leave_pieces_that_the_next_probe_can_split() {
    for width in [4_097u64, 10_000, 1_000_000, 1_000_000_000, 10_000_000_000] {
        let growing = growing_distances(width);
        assert!(growing.len() <= MAX_SAMPLES, "{width}");
        let widest = growing.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        let rest = width - growing.last().unwrap();
        if width <= 1_000_000_000 {
            assert!(widest.max(rest) <= TWO_PROBES, "{width}: {widest}, {rest}");
        }
        let even = even_distances(width.min(TWO_PROBES));
        let widest = even.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(even.len() <= MAX_SAMPLES && widest <= MAX_SAMPLES as u64, "{width}: {widest}");
    }
}

prop_compose! {
    /// Two logs with a shared beginning: random terms, ends, sync spacing, dropped fronts, holes.
    fn two_logs()(
        common in 0i64..60,
        tails in (0i64..60, 0i64..60),
        sync in proptest::collection::vec(proptest::bool::weighted(0.4), 130),
        fronts in (0i64..90, 0i64..90),
        cut in (any::<bool>(), any::<bool>()),
        holes in (proptest::collection::vec(0i64..120, 0..6), any::<bool>()),
        term_length in 1i64..40,
    ) -> (PlainLog, PlainLog) {
        let build = |tail: i64, lineage: u64, front: i64, cut: bool| {
            let last = common + tail;
            let mut log = PlainLog::default();
            for n in 1..=last {
                let own = n > common;
                let lineage = if own { lineage } else { 0 };
                // Flags are part of the chain: equal where the fingerprints are, free elsewhere.
                let is_sync = n == 1 || sync[(n as usize * if own { 1 + lineage as usize } else { 1 }) % 130];
                let fingerprint = u64::from(crc(&[&n.to_le_bytes()[..], &lineage.to_le_bytes()].concat()));
                log.entries.insert(n, VlsnEntry { lsn: n as u64, fingerprint, is_sync });
                if n % term_length == 1 || n == common + 1 || log.terms.is_empty() {
                    let term = Term::new(log.terms.len() as u32 + lineage as u32 * 50);
                    log.terms.push((term, v(n)));
                }
            }
            if cut && front > 1 && front <= last + 1 { log.drop_front(front) } else { log }
        };
        let mut replica = build(tails.0, 1, fronts.0, cut.0);
        let feeder = build(tails.1, 2, fronts.1, cut.1);
        // Holes in the replica's plain view, never in its newest sync entry.
        let newest = replica.last_sync().sequence();
        for hole in holes.0.iter().filter(|_| holes.1) {
            if *hole != newest { replica.entries.remove(hole); }
        }
        (replica, feeder)
    }
}

/// Whether the outcome is what the definition says.
fn check_against_brute_force(
    replica: &PlainLog,
    feeder: &PlainLog,
    outcome: SyncupOutcome,
) -> std::result::Result<(), TestCaseError> {
    let expected = brute_force(replica, feeder);
    // The one rule that gives up early: an alternate below the replica's first means a restore,
    // though entries of the feeder after its last sync entry may reach the replica's anchor.
    let feeder_ends_first = replica.last_sync() > feeder.last_vlsn();
    let low_alternate =
        feeder_ends_first && feeder.last_sync().sequence() < replica.first_vlsn().sequence() - 1;
    match (outcome, expected) {
        (SyncupOutcome::NeedsRestore { .. }, None) => {}
        (SyncupOutcome::NeedsRestore { .. }, Some(_)) if low_alternate => {}
        (SyncupOutcome::Matchpoint { matchpoint_vlsn, matchpoint_lsn, start_vlsn }, Some(vlsn)) => {
            prop_assert_eq!(matchpoint_vlsn, vlsn);
            prop_assert_eq!(matchpoint_lsn, replica.entry(vlsn).map_or(0, |entry| entry.lsn));
            let last = replica.last_vlsn();
            let keeps_all = !vlsn.is_null()
                && vlsn == replica.last_sync()
                && replica.entry(last).is_some_and(|ours| {
                    feeder.entry(last).is_some_and(|theirs| ours.agrees_with(theirs))
                });
            prop_assert_eq!(start_vlsn, if keeps_all { last.next() } else { vlsn.next() });
        }
        (found, expected) => prop_assert!(false, "found {found:?}, expected {expected:?}"),
    }
    let found = match find_matchpoint(replica, feeder) {
        Matchpoint::Found { vlsn, .. } => Some(vlsn),
        Matchpoint::None => None,
    };
    prop_assert_eq!(found, expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn the_search_equals_brute_force_on_every_monotone_input(
        (replica, feeder) in two_logs(),
        probes in any::<bool>(),
    ) {
        // A fresh replica and a feeder whose anchor is VLSN 1: the anchor is no entry to send, so
        // a log's view does not answer for it; a plain view here would.
        prop_assume!(feeder.first_vlsn() != v(2) || !replica.last_sync().is_null());
        let (outcome, stats) = syncup_with(&replica, &feeder, probes)
            .map_err(|err| TestCaseError::fail(err.to_string()))?;
        check_against_brute_force(&replica, &feeder, outcome)?;
        if probes {
            // Holes of the replica's own may cost more; a log has none.
            let dense = replica.last_vlsn().since(replica.first_vlsn())
                < replica.entries.len().max(1) as u64;
            prop_assert!(stats.round_trips <= 4 || !dense, "{stats:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn long_synthetic_logs_take_at_most_four_round_trips(
        common in 0i64..3_000_000_000,
        tails in (0i64..1_000_000_000, 0i64..1_000_000_000),
        shrink in (0u32..30, 0u32..30, 0u32..30),
        every in prop_oneof![Just(1i64), 2i64..100, Just(10_000i64)],
        front in 1i64..3_000_000_000,
        pruned in any::<bool>(),
    ) {
        let common = common >> shrink.0;
        let (replica, mut feeder) = diverged(common, tails.0 >> shrink.1, tails.1 >> shrink.2, every);
        if pruned { feeder.first = (front >> shrink.0).min(feeder.last).max(1); }
        let (outcome, stats) = syncup(&replica, &feeder);
        prop_assert!(stats.round_trips <= 4, "{stats:?}");
        let newest = common.min(replica.last).min(feeder.last);
        let expected = newest - newest % every;
        match outcome {
            SyncupOutcome::Matchpoint { matchpoint_vlsn, .. } if matchpoint_vlsn.is_null() => {
                prop_assert!(replica.last_sync().is_null() && feeder.first == 1);
            }
            SyncupOutcome::Matchpoint { matchpoint_vlsn, .. } => {
                prop_assert_eq!(matchpoint_vlsn, v(expected));
            }
            SyncupOutcome::NeedsRestore { .. } => {
                prop_assert!(expected == 0 || expected < feeder.first);
            }
        }
    }
}
