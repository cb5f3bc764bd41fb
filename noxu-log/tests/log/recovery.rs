//! Recovery's decision table over real files: every kind of damage at every entry, for every place
//! of the tail mark and every kind of entry, against the table as an oracle.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::env::{Env, Fault, FaultEnv, OpenMode, Survivors};
use noxu_log::{
    ChainState, Cut, ENTRY_HEADER_BYTES, EntryFlags, EntryHeader, EntryKind, EntryRun, Faulty, Log,
    LogConfig, LogError, LostEntries, LostNote, Mark, NewEntry, OpenReport, TailMark,
};
use noxu_util::{Fingerprint, Lsn, Term, Vlsn};

use crate::rig::{Got, body, dir, open, quiet, read_all, vlsn_of};

const ENTRIES: i64 = 17;

/// A log of all kinds of entries in three segments, none of them sealed, closed in order.
struct Sample {
    env: FaultEnv,
    log: Log,
    /// Header, place and content of each entry, from VLSN 1.
    entries: Vec<(EntryHeader, Lsn, Got)>,
}

impl Sample {
    fn new() -> Self {
        let env = FaultEnv::new();
        let log = open(&env);
        let kinds = [
            (EntryKind::TERM, EntryFlags::SYNC),
            (EntryKind(16), EntryFlags::NONE),
            (EntryKind(17), EntryFlags::COMMIT),
            (EntryKind::GROUP, EntryFlags::SYNC),
            (EntryKind::NOOP, EntryFlags::NONE),
            (EntryKind(255), EntryFlags::SYNC),
        ];
        for vlsn in 1..=ENTRIES {
            let (kind, flags) = kinds[vlsn as usize % kinds.len()];
            let body = body(vlsn as u64, 400 + 40 * (vlsn as usize % 7));
            let term = Term::new(1 + vlsn as u32 / 6);
            log.append(term, &[NewEntry::new(kind, flags, &body)]).unwrap();
        }
        log.close().unwrap();
        let log = open(&env.clone_image(Survivors::None));
        let entries = read_all(&log, 1).unwrap().into_iter().map(|got| {
            let (header, lsn) = log.header(got.vlsn).unwrap().unwrap();
            (header, lsn, got)
        });
        let entries: Vec<_> = entries.collect();
        assert_eq!(entries.last().unwrap().1.segment(), 3);
        Self { env, log, entries }
    }

    fn entry(&self, vlsn: i64) -> &(EntryHeader, Lsn, Got) {
        &self.entries[vlsn as usize - 1]
    }

    /// Whether the entry after `vlsn` stands in the same segment.
    fn goes_on(&self, vlsn: i64) -> bool {
        vlsn < ENTRIES && self.entry(vlsn + 1).1.segment() == self.entry(vlsn).1.segment()
    }

    /// Last entry of the segment that holds `vlsn`.
    fn segment_end(&self, vlsn: i64) -> i64 {
        (vlsn..=ENTRIES).find(|vlsn| !self.goes_on(*vlsn)).unwrap()
    }

    /// First entry of the last segment.
    fn last_begins(&self) -> i64 {
        let begins = self.entries.iter().position(|(_, lsn, _)| lsn.segment() == 3);
        begins.unwrap() as i64 + 1
    }

    /// Exactly these entries, as they would come over the wire.
    fn run(&self, first: Vlsn, last: Vlsn) -> EntryRun {
        let mut bytes = Vec::new();
        for vlsn in first.sequence()..=last.sequence() {
            let run = self.log.read(vlsn_of(vlsn), 1).unwrap().unwrap();
            run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        }
        EntryRun::verify(bytes.into(), self.chain(first.prev()), u32::MAX).unwrap()
    }

    fn chain(&self, vlsn: Vlsn) -> ChainState {
        match vlsn.sequence() {
            0 => ChainState::default(),
            vlsn => self.entry(vlsn).0.chain(),
        }
    }
}

fn segment_path(number: u32) -> PathBuf {
    dir().join(format!("log/{number:010}.nlog"))
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// A bit of its body.
    Body,
    /// A bit of a header field, by offset.
    Header(u64),
    /// All of it is zeros: it was never written.
    Zeros,
    /// The file ends in the middle of it.
    CutShort,
    /// It is a valid entry that continues something else.
    OtherHistory,
}

const KINDS: [Damage; 12] = [
    Damage::Body,
    Damage::Header(0),
    Damage::Header(4),
    Damage::Header(8),
    Damage::Header(16),
    Damage::Header(20),
    Damage::Header(21),
    Damage::Header(22),
    Damage::Header(24),
    Damage::Zeros,
    Damage::CutShort,
    Damage::OtherHistory,
];

impl Damage {
    fn inflict(self, env: &FaultEnv, entry: &(EntryHeader, Lsn, Got)) {
        let (header, lsn, got) = entry;
        let path = segment_path(lsn.segment());
        let at = u64::from(lsn.offset());
        let file = env.open(&path, OpenMode::ReadWrite).unwrap();
        let write = |bytes: &[u8]| file.write_at(&[IoSlice::new(bytes)], at).unwrap();
        match self {
            Self::Body => env.corrupt(&path, at + 100, 0x10).unwrap(),
            Self::Header(field) => env.corrupt(&path, at + field, 0x10).unwrap(),
            Self::Zeros => write(&vec![0; header.entry_bytes()]),
            Self::CutShort => file.set_len(at + 50).unwrap(),
            Self::OtherHistory => {
                let entry = NewEntry::new(header.kind, header.flags, &got.body);
                let (raw, _) = entry.place(header.vlsn, header.term, Fingerprint::from_u64(99));
                write(&[&raw[..], &got.body].concat());
            }
        }
    }

    /// Whether the entry's header still says where the next one begins and what it continues, and
    /// the next one proves it.
    const fn header_proves_itself(self) -> bool {
        // Body, checksum, kind. Reserved bits and unknown flags make it no header at all.
        matches!(self, Self::Body | Self::Header(0 | 20))
    }
}

/// Where the tail mark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MarkAt {
    Missing,
    Rotten,
    Entry(i64),
    /// At an entry, with another fingerprint.
    OtherFingerprint(i64),
}

impl MarkAt {
    fn set(self, sample: &Sample, env: &FaultEnv) {
        let path = dir().join("tail-mark");
        match self {
            Self::Missing => env.remove(&path).unwrap(),
            Self::Rotten => env.corrupt(&path, 100, 1).unwrap(),
            Self::Entry(vlsn) | Self::OtherFingerprint(vlsn) => {
                let chain = sample.chain(vlsn_of(vlsn));
                let lsn = if vlsn == 0 { Lsn::default() } else { sample.entry(vlsn).1 };
                let fingerprint = match self {
                    Self::Entry(_) => chain.fingerprint,
                    _ => Fingerprint::from_u64(7),
                };
                let mark = TailMark::open(Arc::new(env.clone()), dir()).unwrap();
                let (term, vlsn) = (chain.term, chain.vlsn);
                mark.write(Mark { term, vlsn, lsn, fingerprint }).unwrap();
                mark.sync().unwrap();
            }
        }
    }
}

/// What the table says.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// The log ends with this entry.
    CutAfter(i64),
    /// These are missing, the log ends with the third.
    Faulty(i64, i64, i64),
    Alarm,
}

fn table(sample: &Sample, at: i64, damage: Damage, mark: MarkAt) -> Expected {
    let MarkAt::Entry(mark) = mark else {
        // Unreadable. That there is a last segment says that those before it were synced.
        let synced = sample.last_begins() - 1;
        return match damage {
            Damage::OtherHistory if at <= synced => Expected::Alarm,
            _ if at <= synced => faulty(sample, at, damage, synced, None),
            Damage::OtherHistory | Damage::CutShort => Expected::CutAfter(at - 1),
            _ if sample.goes_on(at) => faulty(sample, at, damage, ENTRIES, None),
            _ => Expected::CutAfter(at - 1),
        };
    };
    let synced = mark.max(sample.last_begins() - 1);
    match damage {
        _ if at > synced => Expected::CutAfter(at - 1),
        Damage::OtherHistory => Expected::Alarm,
        _ => faulty(sample, at, damage, synced, Some(mark)),
    }
}

fn faulty(sample: &Sample, at: i64, damage: Damage, synced: i64, mark: Option<i64>) -> Expected {
    let segment_end = sample.segment_end(at);
    let last = match damage {
        Damage::CutShort => segment_end.min(synced),
        _ if !sample.goes_on(at) || damage.header_proves_itself() || mark == Some(at) => at,
        _ => at + 1,
    };
    // What is cut short takes what was behind it along.
    let in_last = segment_end == ENTRIES;
    let end = if damage == Damage::CutShort && in_last { last } else { ENTRIES };
    Expected::Faulty(at, last, end)
}

fn try_open(env: &FaultEnv) -> Result<(Log, OpenReport), LogError> {
    Log::open(Arc::new(env.clone()), dir(), quiet())
}

/// Everything that can be read, around what is faulty.
fn readable(log: &Log) -> Vec<Got> {
    let mut all = Vec::new();
    let mut next = vlsn_of(1);
    while next <= log.positions().last {
        match log.read(next, 1) {
            Ok(Some(run)) => {
                let entry = run.entries().next().unwrap();
                all.push(Got {
                    vlsn: next,
                    term: entry.header.term,
                    kind: entry.header.kind,
                    flags: entry.header.flags,
                    body: entry.body.to_vec(),
                });
                next = next.next();
            }
            Err(LogError::Faulty { last, .. }) => next = last.next(),
            other => panic!("{other:?}"),
        }
    }
    all
}

#[test]
fn every_damage_at_every_entry_under_every_mark_is_decided_as_the_table_says() {
    let sample = Sample::new();
    let marks = [MarkAt::Missing, MarkAt::Rotten]
        .into_iter()
        .chain((0..=ENTRIES).map(MarkAt::Entry))
        .collect::<Vec<_>>();
    let mut seen = [0; 3];
    for mark in &marks {
        for at in 1..=ENTRIES {
            for damage in KINDS {
                let env = sample.env.clone_image(Survivors::None);
                mark.set(&sample, &env);
                damage.inflict(&env, sample.entry(at));
                let context = format!("{damage:?} of entry {at}, mark {mark:?}");
                let expected = table(&sample, at, damage, *mark);
                seen[match expected {
                    Expected::CutAfter(_) => 0,
                    Expected::Faulty(..) => 1,
                    Expected::Alarm => 2,
                }] += 1;
                check(&sample, &env, *mark, &expected, &context);
            }
        }
    }
    println!("{} cut, {} faulty, {} alarms", seen[0], seen[1], seen[2]);
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}

fn check(sample: &Sample, env: &FaultEnv, mark: MarkAt, expected: &Expected, context: &str) {
    let (log, report) = match try_open(env) {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(*expected, Expected::Alarm, "{context}: {error}");
            assert!(matches!(error, LogError::ChainMismatch { .. }), "{context}: {error}");
            return;
        }
    };
    let found: Vec<_> =
        report.faulty.iter().map(|f| (f.first.sequence(), f.last.sequence())).collect();
    let (faulty, last) = match *expected {
        Expected::Alarm => panic!("{context}: opened, {report:?}"),
        Expected::CutAfter(last) => (vec![], last),
        Expected::Faulty(first, last, end) => (vec![(first, last)], end),
    };
    assert_eq!(found, faulty, "{context}");
    let positions = log.positions();
    assert_eq!((positions.last, positions.durable), (vlsn_of(last), vlsn_of(last)), "{context}");
    // The sample was closed in order, which leaves the mark at the end and nothing behind it.
    let uncertain = mark != MarkAt::Entry(last) || report.torn_bytes > 0;
    assert_eq!(report.head_uncertain, uncertain, "{context}");
    assert_eq!(log.control().state().head_uncertain, uncertain, "{context}");
    assert_eq!(positions.last_fingerprint, sample.chain(vlsn_of(last)).fingerprint, "{context}");
    let whole: Vec<_> =
        sample.entries[..last as usize].iter().map(|(_, _, got)| got.clone()).collect();
    let mut rest = whole.clone();
    rest.retain(|got| !report.faulty.iter().any(|faulty| faulty.holds(got.vlsn)));
    assert!(readable(&log) == rest, "{context}: what is not faulty is kept");
    // A second opening says the same: nothing was lost by the first. The mark is at the end now, so
    // an entry that only the mark had proven counts as missing with the one before it.
    log.close().unwrap();
    drop(log);
    let (log, again) = try_open(env).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(again.faulty.len(), report.faulty.len(), "{context}");
    for (again, first) in again.faulty.iter().zip(&report.faulty) {
        assert_eq!((again.first, again.offset), (first.first, first.offset), "{context}");
        let proven_by_mark = matches!(mark, MarkAt::Entry(mark) if vlsn_of(mark) == first.last);
        assert!(
            again.last == first.last || (proven_by_mark && again.last == first.last.next()),
            "{context}: {again:?} after {first:?}"
        );
    }
    for range in &again.faulty {
        log.repair(&sample.run(range.first, range.last))
            .unwrap_or_else(|error| panic!("{context}: {range:?}: {error}"));
    }
    assert!(read_all(&log, 1000).unwrap() == whole, "{context}: after the repair");
    let sound = sample.entries[..last as usize].iter().rev();
    let last_sync = sound.clone().find(|(header, ..)| header.is_sync());
    assert_eq!(log.positions().last_sync, last_sync.unwrap().0.vlsn, "{context}");
    let terms: Vec<_> = log.term_table();
    let all_terms = sample.log.term_table();
    let reached = all_terms.iter().filter(|(_, first)| *first <= vlsn_of(last));
    assert_eq!(terms, reached.copied().collect::<Vec<_>>(), "{context}");
    // The log goes on behind it, and is the same log.
    let next = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"goes on");
    log.append(Term::new(50), &[next]).unwrap();
    log.close().unwrap();
    drop(log);
    let (log, report) = try_open(env).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.faulty.is_empty(), "{context}: {report:?}");
    assert_eq!(log.positions().last, vlsn_of(last + 1), "{context}");
    assert!(read_all(&log, 1000).unwrap()[..last as usize] == whole, "{context}");
}

#[test]
fn another_fingerprint_at_the_mark_is_refused_by_name() {
    let sample = Sample::new();
    for vlsn in 1..=ENTRIES {
        let env = sample.env.clone_image(Survivors::None);
        MarkAt::OtherFingerprint(vlsn).set(&sample, &env);
        let error = try_open(&env).unwrap_err();
        assert!(
            matches!(error, LogError::ChainMismatch { vlsn: named, .. } if named == vlsn_of(vlsn)),
            "{error}"
        );
    }
}

#[test]
fn two_damaged_entries_in_one_segment_are_repaired_one_after_the_other() {
    let sample = Sample::new();
    for (first, second) in [(1, 4), (2, 5), (8, 10), (14, 16), (15, 17)] {
        for damage in [Damage::Body, Damage::Zeros, Damage::Header(24)] {
            let env = sample.env.clone_image(Survivors::None);
            damage.inflict(&env, sample.entry(first));
            damage.inflict(&env, sample.entry(second));
            let (log, report) = try_open(&env).unwrap();
            // Without headers that prove themselves nothing proves what stands between the two.
            let apart = sample.entry(first).1.segment() != sample.entry(second).1.segment();
            let ranges = if damage.header_proves_itself() || apart { 2 } else { 1 };
            assert_eq!(report.faulty.len(), ranges, "{first}, {second}, {damage:?}: {report:?}");
            // The later one first: each stands for itself.
            for range in report.faulty.iter().rev() {
                log.repair(&sample.run(range.first, range.last)).unwrap();
            }
            assert_eq!(read_all(&log, 1 << 20).unwrap().len(), ENTRIES as usize);
        }
    }
}

#[test]
fn the_first_entries_of_a_damaged_range_are_put_back_and_the_others_later() {
    let sample = Sample::new();
    let (mut put_back, mut of_two_terms) = (0, 0);
    for (first, last) in [(1, 4), (2, 4), (7, 10), (9, 12), (13, 15), (ENTRIES - 2, ENTRIES)] {
        for through in first..last {
            let env = sample.env.clone_image(Survivors::None);
            for damaged in first..=last {
                Damage::Zeros.inflict(&env, sample.entry(damaged));
            }
            let (log, report) = try_open(&env).unwrap();
            let meant =
                |range: &&Faulty| range.holds(vlsn_of(first)) && range.last > vlsn_of(through);
            let Some(range) = report.faulty.iter().find(meant).cloned() else { continue };
            if range.before.term != range.after.term {
                // Nothing tells which of its entries belong to which term.
                let run = sample.run(range.first, vlsn_of(through));
                let refused = log.repair_prefix(&run);
                assert!(matches!(refused, Err(LogError::Misfit { .. })), "{refused:?}");
                assert_eq!(log.faulty(), report.faulty);
                of_two_terms += 1;
                continue;
            }
            put_back += 1;
            let context = format!("{through} of {range:?}");
            log.repair_prefix(&sample.run(range.first, vlsn_of(through))).unwrap();
            let (again, _) = try_open(&env.clone_image(Survivors::None)).unwrap();
            for log in [log, again] {
                let rest = log.faulty().into_iter().find(|rest| rest.last == range.last).unwrap();
                assert_eq!(rest.first, vlsn_of(through + 1), "{context}");
                assert_eq!(rest.before, sample.chain(vlsn_of(through)), "{context}");
                let faulty = log.faulty();
                let damaged: u64 = faulty.iter().map(|f| f.last.since(f.first) + 1).sum();
                assert_eq!(readable(&log).len() as u64, ENTRIES as u64 - damaged, "{context}");
                for range in log.faulty() {
                    log.repair(&sample.run(range.first, range.last)).unwrap();
                }
                assert_eq!(read_all(&log, 1 << 20).unwrap().len(), ENTRIES as usize, "{context}");
            }
        }
    }
    assert!(put_back >= 5 && of_two_terms > 0, "{put_back}, {of_two_terms}");
}

#[test]
fn first_entries_that_do_not_fit_change_nothing() {
    let sample = Sample::new();
    let env = sample.env.clone_image(Survivors::None);
    for damaged in 2..=4 {
        Damage::Zeros.inflict(&env, sample.entry(damaged));
    }
    let (log, report) = try_open(&env).unwrap();
    let [range] = &report.faulty[..] else { panic!("{report:?}") };
    // Entry 5 is sound, and nothing before it proves that it belongs there.
    assert_eq!((range.first, range.last), (vlsn_of(2), vlsn_of(5)));
    let writes = || env.trace().iter().filter(|call| call.function == "write_at").count();
    let before = writes();
    let all = log.repair_prefix(&sample.run(vlsn_of(2), vlsn_of(5)));
    assert!(matches!(all, Err(LogError::NotFaulty { .. })), "that is no prefix: {all:?}");
    let middle = log.repair_prefix(&sample.run(vlsn_of(3), vlsn_of(3)));
    assert!(matches!(middle, Err(LogError::NotFaulty { .. })), "{middle:?}");
    let longer = NewEntry::new(EntryKind(16), EntryFlags::NONE, &[7; 4096]);
    let (raw, _) = longer.place(vlsn_of(2), Term::new(1), sample.chain(vlsn_of(1)).fingerprint);
    let bytes = [&raw[..], &[7; 4096]].concat();
    let run = EntryRun::verify(bytes.into(), sample.chain(vlsn_of(1)), u32::MAX).unwrap();
    let long = log.repair_prefix(&run);
    assert!(matches!(long, Err(LogError::Misfit { .. })), "{long:?}");
    // Chained as it should be, and of a term in which other entries have these VLSNs.
    let later = NewEntry::new(EntryKind(16), EntryFlags::NONE, b"later");
    let (raw, _) = later.place(vlsn_of(2), Term::new(2), sample.chain(vlsn_of(1)).fingerprint);
    let bytes = [&raw[..], b"later"].concat();
    let run = EntryRun::verify(bytes.into(), sample.chain(vlsn_of(1)), u32::MAX).unwrap();
    let foreign = log.repair_prefix(&run);
    assert!(matches!(foreign, Err(LogError::Misfit { .. })), "{foreign:?}");
    assert_eq!((writes(), log.faulty()), (before, report.faulty.clone()));
    log.repair_prefix(&sample.run(vlsn_of(2), vlsn_of(4))).unwrap();
    assert_eq!(log.faulty(), [], "what is sound behind them is in its place again");
}

#[test]
fn a_repair_takes_only_what_fits_and_changes_nothing_otherwise() {
    let sample = Sample::new();
    let env = sample.env.clone_image(Survivors::None);
    Damage::Body.inflict(&env, sample.entry(5));
    let (log, _) = try_open(&env).unwrap();
    let too_much = sample.run(vlsn_of(5), vlsn_of(6));
    assert!(matches!(log.repair(&too_much), Err(LogError::NotFaulty { .. })));
    let other = NewEntry::new(EntryKind(16), EntryFlags::NONE, b"another body");
    let (raw, fields) = other.place(vlsn_of(5), Term::new(1), sample.chain(vlsn_of(4)).fingerprint);
    let bytes = [&raw[..], b"another body"].concat();
    let run = EntryRun::verify(bytes.into(), sample.chain(vlsn_of(4)), u32::MAX).unwrap();
    assert_eq!(run.last_fingerprint, fields.fingerprint);
    let calls = env.trace().iter().filter(|call| call.function == "write_at").count();
    assert!(matches!(log.repair(&run), Err(LogError::ChainMismatch { .. })));
    assert_eq!(env.trace().iter().filter(|call| call.function == "write_at").count(), calls);
    assert_eq!(log.faulty().len(), 1);
}

#[test]
fn a_repair_that_a_crash_interrupts_is_begun_again() {
    let sample = Sample::new();
    for (at, damage) in [(5, Damage::Body), (9, Damage::Zeros), (17, Damage::CutShort)] {
        let damaged = sample.env.clone_image(Survivors::None);
        damage.inflict(&damaged, sample.entry(at));
        // Opening is over before the repair begins: its calls are not crashed here.
        let (log, report) = try_open(&damaged.clone_image(Survivors::All)).unwrap();
        let opened = log.env().clone();
        drop(opened);
        let range = report.faulty[0].clone();
        drop(log);
        crash_everywhere(&sample, &damaged, &format!("{damage:?}"), |log| {
            log.repair(&sample.run(range.first, range.last))
        });
    }
}

#[test]
fn first_entries_of_a_range_whose_repair_a_crash_interrupts_are_put_back_again() {
    let sample = Sample::new();
    for (first, last) in [(2, 4), (ENTRIES - 2, ENTRIES)] {
        let damaged = sample.env.clone_image(Survivors::None);
        for entry in first..=last {
            Damage::Zeros.inflict(&damaged, sample.entry(entry));
        }
        crash_everywhere(&sample, &damaged, &format!("{first} to {last}"), |log| {
            log.repair_prefix(&sample.run(vlsn_of(first), vlsn_of(first + 1)))
        });
    }
}

/// Lets `repair` crash at each of its calls; whatever survives, what is faulty then can be put back.
fn crash_everywhere(
    sample: &Sample,
    damaged: &FaultEnv,
    context: &str,
    repair: impl Fn(&Log) -> Result<(), LogError>,
) {
    for call in 1.. {
        let env = damaged.clone_image(Survivors::All);
        let (log, _) = try_open(&env).unwrap();
        env.crash_at(env.calls() + call);
        let result = repair(&log);
        if !env.has_crashed() {
            result.unwrap();
            assert!(call > 2, "{context}: nothing could crash");
            return;
        }
        for seed in 0..16 {
            let after = env.crash(seed);
            let (log, report) = try_open(&after).unwrap();
            for range in &report.faulty {
                log.repair(&sample.run(range.first, range.last)).unwrap();
            }
            let whole = read_all(&log, 1 << 20).unwrap();
            assert_eq!(whole.len(), ENTRIES as usize, "{context}, call {call}, seed {seed}");
        }
    }
}

#[test]
fn a_repair_that_fails_stops_the_log_and_is_begun_again() {
    let sample = Sample::new();
    for function in ["write_at", "sync_data", "set_len"] {
        let env = sample.env.clone_image(Survivors::None);
        Damage::Zeros.inflict(&env, sample.entry(ENTRIES));
        let file = env.open(&segment_path(3), OpenMode::ReadWrite).unwrap();
        file.allocate(4096).unwrap();
        let (log, report) = try_open(&env).unwrap();
        let range = &report.faulty[0];
        env.fail_next(function, Fault::IO);
        let failed = log.repair(&sample.run(range.first, range.last)).unwrap_err();
        assert!(matches!(failed, LogError::Poisoned { .. }), "{function}: {failed}");
        drop(log);
        for survivors in [Survivors::None, Survivors::All] {
            let (log, report) = try_open(&env.clone_image(survivors)).unwrap();
            for range in &report.faulty {
                log.repair(&sample.run(range.first, range.last)).unwrap();
            }
            assert_eq!(read_all(&log, 1 << 20).unwrap().len(), ENTRIES as usize, "{function}");
        }
    }
}

#[test]
fn an_uncertain_head_is_remembered_before_anything_else_is_touched() {
    let sample = Sample::new();
    let rotten = sample.env.clone_image(Survivors::None);
    MarkAt::Rotten.set(&sample, &rotten);
    // A torn end, so that opening has something to cut.
    Damage::CutShort.inflict(&rotten, sample.entry(ENTRIES));
    let rotten = rotten.clone_image(Survivors::All);
    for call in 1.. {
        let env = rotten.clone_image(Survivors::None);
        env.crash_at(call);
        drop(try_open(&env));
        if !env.has_crashed() {
            assert!(call > 20, "only {call} calls");
            break;
        }
        for seed in 0..8 {
            let after = env.crash(seed);
            let (log, _) = try_open(&after).unwrap();
            assert!(log.control().state().head_uncertain, "call {call}, seed {seed}");
        }
    }
}

#[test]
fn nothing_is_appended_behind_an_end_that_is_not_known() {
    let sample = Sample::new();
    let env = sample.env.clone_image(Survivors::None);
    Damage::Zeros.inflict(&env, sample.entry(ENTRIES));
    let (log, report) = try_open(&env).unwrap();
    assert_eq!(report.faulty[0].behind, None);
    let next = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"next");
    let refused = log.append(Term::new(50), &[next]).unwrap_err();
    assert!(matches!(refused, LogError::Faulty { .. }), "{refused}");
    log.repair(&sample.run(vlsn_of(ENTRIES), vlsn_of(ENTRIES))).unwrap();
    log.append(Term::new(50), &[next]).unwrap();
    assert_eq!(log.sync_now().unwrap(), vlsn_of(ENTRIES + 1));
}

#[test]
fn entries_appended_while_others_are_missing_survive_the_repair() {
    let sample = Sample::new();
    let env = sample.env.clone_image(Survivors::None);
    // In the segment that goes on growing.
    Damage::Header(24).inflict(&env, sample.entry(14));
    let (log, report) = try_open(&env).unwrap();
    let bodies: Vec<_> = (100..110).map(|tag| body(tag, 700)).collect();
    for body in &bodies {
        log.append(Term::new(50), &[NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body)])
            .unwrap();
    }
    let range = &report.faulty[0];
    log.repair(&sample.run(range.first, range.last)).unwrap();
    let read = read_all(&log, 1 << 20).unwrap();
    let tail = read[ENTRIES as usize..].iter().map(|got| got.body.clone());
    assert_eq!(tail.collect::<Vec<_>>(), bodies);
    assert_eq!(log.positions().last_sync, vlsn_of(ENTRIES + 10));
}

#[test]
fn a_damaged_log_can_be_cut_below_and_above_what_is_damaged() {
    let sample = Sample::new();
    for keep in 1..ENTRIES {
        let env = sample.env.clone_image(Survivors::None);
        Damage::Body.inflict(&env, sample.entry(9));
        let (log, _) = try_open(&env).unwrap();
        let cut = Cut::Save { name: "cut".into(), note: LostNote::default() };
        let result = log.truncate_after(vlsn_of(keep), cut);
        if keep == 9 {
            assert!(matches!(result, Err(LogError::Faulty { .. })), "{result:?}");
            continue;
        }
        result.unwrap();
        let lost = LostEntries::read(&env, dir(), "cut").unwrap();
        let saved: Vec<_> = lost.entries().map(|entry| entry.header.vlsn.sequence()).collect();
        // What can be verified: up to the damaged entry.
        let until = if keep < 9 { 8 } else { ENTRIES };
        assert_eq!(saved, (keep + 1..=until).collect::<Vec<_>>(), "cut after {keep}");
        assert_eq!(log.faulty().len(), usize::from(keep > 9));
        log.close().unwrap();
        drop(log);
        let (log, report) = try_open(&env).unwrap();
        assert_eq!(
            (log.positions().last, report.faulty.len()),
            (vlsn_of(keep), usize::from(keep > 9))
        );
    }
}

#[test]
fn damage_in_front_of_sealed_segments_is_repaired_and_they_are_sealed_again() {
    let env = FaultEnv::new();
    let log = open(&env);
    crate::rig::fill(&log, 1, 40, 500);
    log.sync_now().unwrap();
    log.control().update(|control| control.commit_floor = vlsn_of(40)).unwrap();
    log.seal_through(vlsn_of(40)).unwrap();
    let sealed = log.sealed_segments();
    assert!(sealed.len() >= 4);
    log.close().unwrap();
    let copy = open(&env.clone_image(Survivors::None));
    // Without its side file the second segment is scanned, and its damage found.
    env.remove(&dir().join("log/0000000002.nside")).unwrap();
    env.corrupt(&segment_path(2), 64 + 532 + 100, 1).unwrap();
    drop(log);
    let (log, report) = try_open(&env).unwrap();
    assert_eq!(report.faulty.len(), 1);
    let range = &report.faulty[0];
    let before = copy.header(range.first.prev()).unwrap().unwrap().0.chain();
    let run = copy.read(range.first, 1).unwrap().unwrap();
    let run = EntryRun::verify(run.parts[0].clone(), before, u32::MAX).unwrap();
    log.repair(&run).unwrap();
    assert_eq!(read_all(&log, 1 << 20).unwrap().len(), 40);
    log.seal_through(vlsn_of(40)).unwrap();
    assert_eq!(log.sealed_segments(), sealed, "the same segments with the same digests");
}

#[test]
fn segments_scanned_in_parallel_and_one_by_one_say_the_same() {
    let env = FaultEnv::new();
    let log = open(&env);
    crate::rig::fill(&log, 1, 200, 300);
    log.close().unwrap();
    drop(log);
    env.corrupt(&segment_path(3), 1000, 1).unwrap();
    env.corrupt(&segment_path(7), 64 + 100, 1).unwrap();
    let mut found = Vec::new();
    for threads in [1, 4] {
        let config = LogConfig { recovery_threads: threads, ..quiet() };
        let after = env.clone_image(Survivors::None);
        let (log, report) = Log::open(Arc::new(after), dir(), config).unwrap();
        assert!(report.scanned_segments > 10);
        found.push((report, log.positions(), log.term_table()));
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0].0.faulty.len(), 2);
}

/// What opening reads, in bytes, grows with the open segment and the side files, not with the log.
#[test]
fn opening_reads_the_last_segment_and_side_files_only() {
    let read_by_open = |entries: i64| {
        let env = FaultEnv::new();
        let log = open(&env);
        crate::rig::fill(&log, 1, entries, 500);
        log.sync_now().unwrap();
        log.seal_through(vlsn_of(entries)).unwrap();
        log.close().unwrap();
        drop(log);
        let env = env.clone_image(Survivors::None);
        let (log, report) = try_open(&env).unwrap();
        assert_eq!(report.scanned_segments, 1);
        let segments = log.sealed_segments().len() as u64;
        let of_segments = |call: &&noxu_log::env::Call| {
            call.function == "read_at" && call.path.extension().is_some_and(|e| e == "nlog")
        };
        let read: u64 = env.trace().iter().filter(of_segments).map(|call| call.len).sum();
        (segments, read)
    };
    let (few, read_few) = read_by_open(35);
    let (many, read_many) = read_by_open(350);
    assert!(many >= 10 * few, "{few} and {many} segments");
    let headers = (many - few) * ENTRY_HEADER_BYTES as u64 * 2;
    assert_eq!(read_many - headers, read_few, "but for the headers of the segments");
}

#[test]
fn a_repair_beside_damage_that_came_since_the_log_was_opened_is_refused_and_can_be_done_again() {
    let sample = Sample::new();
    for (at, other) in [(2, 4), (4, 2), (15, 17), (17, 15)] {
        let env = sample.env.clone_image(Survivors::None);
        Damage::Body.inflict(&env, sample.entry(at));
        let (log, _) = try_open(&env).unwrap();
        Damage::Body.inflict(&env, sample.entry(other));
        let run = sample.run(vlsn_of(at), vlsn_of(at));
        let refused = log.repair(&run).unwrap_err();
        assert!(matches!(refused, LogError::Corrupt { .. }), "{at}, {other}: {refused}");
        drop(log);
        let (log, report) = try_open(&env).unwrap();
        let faulty: Vec<_> = report.faulty.iter().map(|range| range.first).collect();
        assert_eq!(faulty, [vlsn_of(other)]);
        log.repair(&sample.run(vlsn_of(other), vlsn_of(other))).unwrap();
        assert_eq!(read_all(&log, 1000).unwrap().len(), ENTRIES as usize);
    }
}

#[test]
fn without_a_mark_a_damaged_header_of_the_last_segment_takes_no_entry_along() {
    let sample = Sample::new();
    for mark in [MarkAt::Missing, MarkAt::Rotten] {
        for field in [0, 8, 12, 16, 32, 40, 48, 52, 60] {
            let env = sample.env.clone_image(Survivors::None);
            mark.set(&sample, &env);
            env.corrupt(&segment_path(3), field, 0x10).unwrap();
            let (log, report) = try_open(&env).unwrap();
            assert!(report.head_uncertain);
            assert_eq!(report.repaired_headers, [3], "{mark:?}, byte {field}");
            assert_eq!(log.positions().last, vlsn_of(ENTRIES), "{mark:?}, byte {field}");
            assert_eq!(read_all(&log, 1000).unwrap().len(), ENTRIES as usize);
        }
    }
}

#[test]
fn a_last_segment_that_is_missing_is_named() {
    let sample = Sample::new();
    for mark in [sample.last_begins(), ENTRIES] {
        let env = sample.env.clone_image(Survivors::None);
        MarkAt::Entry(mark).set(&sample, &env);
        env.remove(&segment_path(3)).unwrap();
        let refused = try_open(&env).map(|(_, report)| report).unwrap_err();
        assert!(matches!(refused, LogError::Corrupt { segment: 3, .. }), "{refused}");
    }
}

/// A body that holds entries like those that come after `before`.
fn looks_like_log(before: ChainState, count: usize) -> Vec<u8> {
    let mut chain = before;
    let mut bytes = vec![0; 40];
    for _ in 0..count {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, b"made up");
        let (raw, header) = entry.place(chain.vlsn.next(), Term::new(1), chain.fingerprint);
        chain = header.chain();
        bytes.extend_from_slice(&raw);
        bytes.extend_from_slice(b"made up");
    }
    bytes
}

#[test]
fn entries_in_a_body_whose_header_is_damaged_are_never_taken_for_the_log() {
    for (segment_goes_on, count) in [(false, 2), (false, 6), (true, 2), (true, 6)] {
        let env = FaultEnv::new();
        let log = open(&env);
        let mut real = Vec::new();
        for vlsn in 1..=8 {
            let tag = body(vlsn, 60);
            let made_up = ChainState { vlsn: vlsn_of(3), ..ChainState::default() };
            let body = if vlsn == 3 { looks_like_log(made_up, count) } else { tag };
            log.append(Term::new(1), &[NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)])
                .unwrap();
            real.push(body);
        }
        if segment_goes_on {
            log.append(
                Term::new(1),
                &[NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &[7; 4000])],
            )
            .unwrap();
            real.push(vec![7; 4000]);
        }
        let (_, lsn) = log.header(vlsn_of(3)).unwrap().unwrap();
        log.close().unwrap();
        drop(log);
        env.corrupt(&segment_path(1), u64::from(lsn.offset()) + 8, 0x80).unwrap();
        let (log, report) = try_open(&env).unwrap();
        assert_eq!(log.positions().last, vlsn_of(real.len() as i64));
        for got in readable(&log) {
            let body = &real[got.vlsn.sequence() as usize - 1];
            assert!(got.body == *body, "entry {} is made up: {:?}", got.vlsn, report.faulty);
        }
        assert_eq!(report.faulty.len(), 1, "{:?}", report.faulty);
    }
}
