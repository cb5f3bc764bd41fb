//! Workload: steps that use everything of a log, and the run that takes them beside a ledger.

use noxu_log::env::{Env, FaultEnv, MemoryEnv, read_whole, write_whole};
use noxu_log::install::{ExpectedSegment, Install, stage_segment};
use noxu_log::segment::name::segment_name;
use noxu_log::{
    ChainState, Cut, EntryFlags, EntryKind, Log, LogConfig, LogError, LostNote, MarkPolicy,
    NewEntry, Result,
};
use noxu_util::{Lsn, Term, Vlsn};
use proptest::prelude::*;

use super::ledger::{Lawful, Ledger, Lost, install, staged};
use crate::rig::{Got, body, dir, group, quiet, try_open, vlsn_of};

/// One step of a workload.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Entries with bodies of these lengths; the last one ends a transaction.
    Append(Vec<usize>),
    Write,
    Sync,
    /// Cut so many entries off the end, but never below what is settled.
    Truncate {
        entries: u64,
        save: bool,
    },
    /// Everything but so many entries is settled: seal what that finishes.
    Seal {
        unsettled: u64,
    },
    /// A majority holds everything, this node has not synced it: seal what may be sealed.
    SealAhead,
    /// Drop what may go of all but so many entries.
    DropFront {
        keep: u64,
    },
    /// Fill the rest of the segment and a spare one with zeros.
    FillAhead,
    /// A vote in the next term.
    Vote,
    Reopen,
    /// The log is replaced by another node's, which has what is settled here, then entries with
    /// bodies of these lengths, and has dropped its front.
    Install(Vec<usize>),
}

/// A workload that uses everything: rolls, an entry larger than a segment, truncation within and
/// across segments with and without a lost-entries file, sealing, dropping, filling ahead, votes,
/// reopening, and the replacement of the whole log.
pub(super) fn workload() -> Vec<Step> {
    vec![
        Step::Append(vec![100, 20, 0]),
        Step::Sync,
        Step::Append(vec![900]),
        Step::Write,
        Step::Append(vec![1200, 1300]),
        Step::Vote,
        Step::Append(vec![800]),
        Step::Sync,
        Step::Append(vec![600, 700, 500]),
        Step::Truncate { entries: 2, save: true },
        Step::Append(vec![600]),
        Step::Sync,
        Step::Append(vec![6000]),
        Step::Append(vec![50]),
        Step::Sync,
        Step::Truncate { entries: 5, save: true },
        Step::Append(vec![1000, 1000]),
        Step::FillAhead,
        Step::Sync,
        Step::FillAhead,
        Step::Append(vec![2000, 2000, 2000, 2000]),
        Step::Sync,
        Step::Truncate { entries: 3, save: false },
        Step::Append(vec![1500, 1500, 1500, 1500]),
        Step::Append(vec![1500]),
        Step::Sync,
        Step::Seal { unsettled: 1 },
        Step::Reopen,
        Step::Append(vec![700, 700]),
        Step::DropFront { keep: 4 },
        Step::Append(vec![700]),
        Step::Sync,
        Step::Vote,
        Step::Truncate { entries: 1, save: true },
        Step::Append(vec![10]),
        Step::Reopen,
        Step::Append(vec![1800, 1800, 1800]),
        Step::SealAhead,
        Step::Append(vec![40]),
        Step::Sync,
        Step::Append(vec![900, 900, 900, 900, 900]),
        Step::Sync,
        Step::Install(vec![1100, 300, 1700, 1700, 900, 2500, 60]),
        Step::Append(vec![70]),
        Step::Vote,
        Step::Sync,
    ]
}

/// A short workload of small entries with a sync after each, so that few sectors are unsynced at
/// any call and all their subsets can be enumerated.
pub(super) fn small_workload() -> Vec<Step> {
    vec![
        Step::Append(vec![300]),
        Step::Write,
        Step::Append(vec![600]),
        Step::Sync,
        Step::Append(vec![700]),
        Step::Sync,
        Step::Vote,
        Step::Append(vec![900]),
        Step::Sync,
        Step::Append(vec![900, 30]),
        Step::Sync,
        Step::Append(vec![800]),
        Step::Sync,
        Step::Truncate { entries: 1, save: true },
        Step::Append(vec![750]),
        Step::Sync,
        Step::Truncate { entries: 4, save: true },
        Step::Append(vec![1000]),
        Step::Sync,
        Step::Append(vec![1200]),
        Step::Sync,
        Step::Append(vec![500]),
        Step::Truncate { entries: 1, save: false },
        Step::FillAhead,
        Step::Append(vec![1300]),
        Step::Sync,
        Step::Append(vec![1100]),
        Step::Sync,
        Step::Append(vec![1100]),
        Step::Sync,
        Step::Seal { unsettled: 1 },
        Step::DropFront { keep: 2 },
        Step::Reopen,
        Step::Append(vec![1100]),
        Step::Sync,
        Step::Install(vec![1500, 1500, 1500]),
    ]
}

/// A few entries, and the replacement of the log.
pub(super) fn install_workload() -> Vec<Step> {
    vec![
        Step::Append(vec![1500, 1500, 1500]),
        Step::Sync,
        Step::Seal { unsettled: 1 },
        Step::Append(vec![1500, 1500, 1500]),
        Step::Sync,
        Step::Install(vec![1400, 1400, 1400, 1400]),
        Step::Append(vec![70]),
        Step::Sync,
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let length = || prop_oneof![0..200usize, 200..1800usize, 4000..5000usize];
    let lengths = prop::collection::vec(length(), 1..5);
    let longer = prop::collection::vec(length(), 4..9);
    prop_oneof![
        12 => lengths.prop_map(Step::Append),
        2 => Just(Step::Write),
        8 => Just(Step::Sync),
        4 => (1..8u64, any::<bool>()).prop_map(|(entries, save)| Step::Truncate { entries, save }),
        2 => (0..6u64).prop_map(|unsettled| Step::Seal { unsettled }),
        1 => Just(Step::SealAhead),
        2 => (0..8u64).prop_map(|keep| Step::DropFront { keep }),
        2 => Just(Step::FillAhead),
        2 => Just(Step::Vote),
        2 => Just(Step::Reopen),
        1 => longer.prop_map(Step::Install),
    ]
}

/// How every log of these tests is opened.
pub(super) fn config(policy: MarkPolicy) -> LogConfig {
    LogConfig { tail_mark: policy, ..quiet() }
}

/// A log and its ledger, step by step.
pub(super) struct Run {
    /// Open between steps.
    pub(super) log: Option<Log>,
    pub(super) ledger: Ledger,
    /// Entries made so far, over all histories: no two have the same body.
    pub(super) made: u64,
    term: Term,
    /// Entries acknowledged as durable within the step.
    acknowledged: usize,
    install: Option<Install>,
    /// Why the last step failed.
    error: Option<LogError>,
}

impl Run {
    pub(super) fn new(log: Log, ledger: Ledger, made: u64, term: Term) -> Self {
        let acknowledged = ledger.durable;
        Self { log: Some(log), ledger, made, term, acknowledged, install: None, error: None }
    }

    /// Takes a step; after a failure, what may be on disk.
    pub(super) fn step(&mut self, env: &FaultEnv, step: &Step) -> Result<(), Box<Lawful>> {
        let mut before = self.ledger.clone();
        self.acknowledged = before.durable;
        self.install = None;
        let done = self.try_step(env, step);
        done.map_err(|error| {
            self.error = Some(error);
            // What the log itself calls durable is a promise too, to whoever asked meanwhile.
            let called = self.log.as_ref().map_or(0, |log| log.positions().durable.sequence());
            let called = before.entries.len().min(called as usize);
            before.durable = before.durable.max(self.acknowledged).max(called);
            let mut after = self.ledger.clone();
            if !matches!(step, Step::Truncate { .. } | Step::Install(_)) {
                after.durable = after.durable.max(before.durable);
            }
            Box::new(Lawful { before, after, install: self.install.take() })
        })
    }

    /// Moves the ledger to where the step leads before taking it, so that it is lawful if the crash
    /// comes after the step took effect.
    fn try_step(&mut self, env: &FaultEnv, step: &Step) -> Result<()> {
        let log = self.log.clone().expect("open between steps");
        let count = self.ledger.entries.len();
        match step {
            Step::Append(lengths) => {
                let first = count;
                self.make_entries(lengths);
                let entries: Vec<_> = self.ledger.entries[first..].iter().map(new_entry).collect();
                log.append(self.term, &entries).map(|_| ())
            }
            Step::Write => log.write_now(),
            Step::Sync => {
                let durable = log.sync_now()?;
                assert_eq!(durable, vlsn_of(count as i64));
                self.ledger.durable = count;
                Ok(())
            }
            Step::Truncate { entries, save } => {
                let keep = (count as i64 - *entries as i64).max(self.ledger.settled.sequence());
                let keep = (keep.max(self.ledger.dropped.sequence()) as usize).min(count);
                // A truncation syncs first, so that what it keeps is durable.
                self.ledger.durable = self.ledger.durable.min(keep);
                let gone = self.ledger.entries.split_off(keep);
                let cut = if *save {
                    let name = format!("lost-{}", self.ledger.lost.len());
                    if !gone.is_empty() {
                        self.ledger.lost.push(Lost { name: name.clone(), entries: gone });
                    }
                    Cut::Save { name, note: LostNote::default() }
                } else {
                    Cut::Discard
                };
                log.truncate_after(vlsn_of(keep as i64), cut)?;
                if keep < count {
                    self.ledger.durable = keep;
                }
                // A new mastership, so that the entries to come are not those that went.
                self.term = Term::new(self.term.number() + 1);
                Ok(())
            }
            Step::Seal { unsettled } => {
                let settled = self.ledger.durable as i64 - *unsettled as i64;
                let settled = vlsn_of(settled.max(self.ledger.settled.sequence()));
                log.control().update(|control| control.commit_floor = settled)?;
                self.ledger.settled = settled;
                log.seal_through(settled)
            }
            Step::SealAhead => {
                self.ledger.settled = self.ledger.settled.max(vlsn_of(count as i64));
                log.seal_through(self.ledger.settled)
            }
            Step::DropFront { keep } => {
                let through = (count as i64 - *keep as i64).max(0);
                self.ledger.dropped = self.ledger.dropped.max(vlsn_of(through));
                let anchor = log.drop_front(vlsn_of(through), |_| b"config".to_vec())?;
                self.ledger.dropped = anchor;
                Ok(())
            }
            Step::FillAhead => log.fill_ahead(),
            Step::Vote => {
                self.ledger.voted = Term::new(self.ledger.voted.number() + 1);
                let term = self.ledger.voted;
                log.control().update(|control| {
                    control.term = term;
                    control.vote = Some(format!("voted-in-{term}").parse().unwrap());
                })
            }
            Step::Reopen => {
                self.close(log)?;
                self.reopen(env)?;
                let last = self.log.as_ref().map(|log| log.positions().last);
                let count = vlsn_of(count as i64);
                assert_eq!(last, Some(count), "closed in order, opened without an end");
                Ok(())
            }
            Step::Install(lengths) => {
                let floor = log.control().state().commit_floor;
                self.close(log)?;
                let (replacement, entries) = self.stage(env, lengths)?;
                let ledger = &mut self.ledger;
                let known = floor.max(ledger.dropped).sequence() as usize;
                if let Some(old) = ledger.entries.get(known..).filter(|old| !old.is_empty()) {
                    let name = replacement.lost_name.clone();
                    ledger.lost.push(Lost { name, entries: old.to_vec() });
                }
                ledger.durable = entries.len();
                ledger.entries = entries;
                ledger.dropped = replacement.anchor.vlsn;
                ledger.settled = floor.max(replacement.last.vlsn);
                self.install = Some(replacement.clone());
                install(env, &replacement, self.ledger.policy)?;
                env.remove_dir_all(&staged()).map_err(|e| LogError::io("remove", &staged(), e))?;
                self.install = None;
                self.reopen(env)
            }
        }
    }

    /// Opens what was closed in order.
    fn reopen(&mut self, env: &FaultEnv) -> Result<()> {
        let count = vlsn_of(self.ledger.entries.len() as i64);
        let log = try_open(env, config(self.ledger.policy))?;
        let uncertain = log.control().state().head_uncertain;
        let last = log.positions().last;
        self.log = Some(log);
        if uncertain || (self.ledger.mark_is_lost && last < count) {
            // A node would stop here and ask the others.
            let reason = "the head is uncertain".into();
            return Err(LogError::DamagedFile { path: dir().join("tail-mark"), reason });
        }
        Ok(())
    }

    fn make_entries(&mut self, lengths: &[usize]) {
        for (at, len) in lengths.iter().enumerate() {
            self.made += 1;
            let last = at + 1 == lengths.len();
            self.ledger.entries.push(Got {
                vlsn: vlsn_of(self.ledger.entries.len() as i64 + 1),
                term: self.term,
                kind: EntryKind(16),
                flags: if last { EntryFlags::COMMIT } else { EntryFlags::NONE },
                body: body(self.made, *len),
            });
        }
    }

    fn close(&mut self, log: Log) -> Result<()> {
        log.close()?;
        self.ledger.durable = self.ledger.entries.len();
        self.acknowledged = self.ledger.durable;
        self.log = None;
        drop(log);
        Ok(())
    }

    /// Makes the other node's log and stages its sealed segments; also returns their entries and
    /// all before them.
    fn stage(&mut self, env: &FaultEnv, lengths: &[usize]) -> Result<(Install, Vec<Got>)> {
        let settled = self.ledger.settled.sequence() as usize;
        let mut donor = Self {
            log: None,
            ledger: Ledger { entries: self.ledger.entries.clone(), ..Ledger::default() },
            made: self.made,
            term: Term::new(self.term.number() + 1),
            acknowledged: 0,
            install: None,
            error: None,
        };
        donor.ledger.entries.truncate(settled);
        donor.make_entries(lengths);
        (self.made, self.term) = (donor.made, donor.term);
        let other = MemoryEnv::new();
        let log = try_open(&other, quiet())?;
        for got in &donor.ledger.entries {
            log.append(got.term, &[new_entry(got)])?;
        }
        let last = log.sync_now()?;
        log.seal_through(last)?;
        let front = log.sealed_segments().first().map_or(Vlsn::default(), |sealed| sealed.last);
        log.drop_front(front, |_| b"their config".to_vec())?;
        let sealed = log.sealed_segments();
        let anchor = log.positions().anchor;
        let mut after =
            ChainState { vlsn: anchor.vlsn, term: anchor.term, fingerprint: anchor.fingerprint };
        let mut expected = ExpectedSegment {
            number: 0,
            group: group(),
            after,
            last_sync: anchor.vlsn,
            last_txn_end: anchor.vlsn,
            bytes: 0,
            digests: noxu_log::segment::side_file::Digests {
                segment: blake3::hash(b""),
                blocks: Vec::new(),
            },
        };
        let mut last_lsn = anchor.lsn;
        env.create_dir_all(&staged()).map_err(|e| LogError::io("create", &staged(), e))?;
        for segment in &sealed {
            let name = segment_name(segment.number);
            let bytes = read_whole(&other, &dir().join("log").join(&name))?;
            write_whole(env, &staged().join(&name), &bytes)?;
            expected.number = segment.number;
            expected.after = after;
            expected.bytes = segment.bytes;
            expected.digests = log.block_digests(segment.number)?;
            let summary = stage_segment(env, &staged(), &expected)?;
            after = summary.last;
            expected.last_sync = summary.last_sync;
            expected.last_txn_end = summary.last_txn_end;
            last_lsn = Lsn::new(segment.number, summary.last_offset);
        }
        donor.ledger.entries.truncate(after.vlsn.sequence() as usize);
        let replacement = Install {
            group: group(),
            term: self.ledger.voted,
            anchor,
            group_config: b"their config".to_vec().into(),
            segments: sealed.iter().map(|segment| segment.number).collect(),
            last: after,
            last_lsn,
            tail: None,
            lost_name: format!("replaced-{}", self.made),
            lost_note: LostNote::default(),
        };
        Ok((replacement, donor.ledger.entries))
    }
}

fn new_entry(got: &Got) -> NewEntry<'_> {
    NewEntry::new(got.kind, got.flags, &got.body)
}

/// How far a workload came.
pub(super) struct Outcome {
    /// What may be on disk.
    pub(super) lawful: Lawful,
    /// Why it ended early.
    pub(super) error: Option<LogError>,
    /// Entries made.
    pub(super) made: u64,
    /// Steps taken; the last one failed if there is an error.
    pub(super) steps: usize,
}

/// Opens a log and takes the steps until one fails.
pub(super) fn run(env: &FaultEnv, steps: &[Step], policy: MarkPolicy) -> Outcome {
    run_with(env, steps, Ledger { policy, ..Ledger::default() })
}

/// [`run`] with a ledger that says how to open the log and what to forgive.
pub(super) fn run_with(env: &FaultEnv, steps: &[Step], ledger: Ledger) -> Outcome {
    let log = match try_open(env, config(ledger.policy)) {
        Ok(log) => log,
        Err(error) => {
            let lawful = Lawful::only(ledger);
            return Outcome { lawful, error: Some(error), made: 0, steps: 0 };
        }
    };
    let mut run = Run::new(log, ledger, 0, Term::new(1));
    for (at, step) in steps.iter().enumerate() {
        if let Err(lawful) = run.step(env, step) {
            let Run { error, made, .. } = run;
            return Outcome { lawful: *lawful, error, made, steps: at + 1 };
        }
    }
    let lawful = Lawful::only(run.ledger);
    Outcome { lawful, error: None, made: run.made, steps: steps.len() }
}
