//! Ledger: what must be true of a log after a crash, and the check that it is.

use std::fmt;
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, OpenMode, read_whole};
use noxu_log::install::{Install, finish_install};
use noxu_log::{
    ControlFile, Log, LogError, LostEntries, MarkPolicy, MarkRead, Positions, Result, TailMark,
};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use super::workload::config;
use crate::rig::{Got, dir, read_all, try_open, vlsn_of};

/// What must be true of a log after a crash.
#[derive(Clone, Default)]
pub(super) struct Ledger {
    /// How the log is opened.
    pub(super) policy: MarkPolicy,
    /// Whether a fault took a mark, so that acknowledged entries may be taken for a torn write.
    pub(super) mark_is_lost: bool,
    /// Every entry of the current history, from VLSN 1.
    pub(super) entries: Vec<Got>,
    /// So many of them were acknowledged as durable.
    pub(super) durable: usize,
    pub(super) settled: Vlsn,
    /// Everything through it may have been dropped.
    pub(super) dropped: Vlsn,
    pub(super) voted: Term,
    /// What was cut off and saved.
    pub(super) lost: Vec<Lost>,
}

/// Entries that must be in the lost-entries file of this name, last.
#[derive(Clone)]
pub(super) struct Lost {
    pub(super) name: String,
    pub(super) entries: Vec<Got>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, durable, settled, dropped, voted, lost, .. } = self;
        let (count, lost) = (entries.len(), lost.len());
        write!(f, "{count} entries, {durable} durable, {settled} settled, {dropped} dropped, ")?;
        write!(f, "term {voted}, {lost} lost-entries files")
    }
}

/// What the step that a crash interrupted may have left.
#[derive(Debug, Clone, Default)]
pub(super) struct Lawful {
    /// As it was before the step, with what was acknowledged since.
    pub(super) before: Ledger,
    /// As the step leaves it.
    pub(super) after: Ledger,
    /// The replacement of the log that whoever opens it must finish.
    pub(super) install: Option<Install>,
}

impl Lawful {
    /// Nothing was under way.
    pub(super) fn only(ledger: Ledger) -> Self {
        Self { before: ledger.clone(), after: ledger, install: None }
    }
}

/// A log that is not what it must be.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<LogError> for Violation {
    fn from(error: LogError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Violation {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// Where a replacement of the log is staged.
pub(super) fn staged() -> std::path::PathBuf {
    dir().join("staged")
}

/// Replaces the log, from whatever step it had come to.
pub(super) fn install(env: &FaultEnv, install: &Install, policy: MarkPolicy) -> Result<()> {
    let shared: Arc<dyn Env> = Arc::new(env.clone());
    install.run(&shared, dir(), &staged())?;
    let (log, _) = Log::open_installed(shared, dir(), config(policy))?;
    log.close()?;
    finish_install(env, dir())
}

/// Opens what a crash left, which may be a replacement to be finished first; true if it was.
pub(super) fn reopen(env: &FaultEnv, lawful: &Lawful) -> Result<(Log, bool)> {
    let policy = lawful.after.policy;
    match (try_open(env, config(policy)), &lawful.install) {
        (Err(LogError::RestorePending { .. }), Some(replacement)) => {
            install(env, replacement, policy)?;
            Ok((try_open(env, config(policy))?, true))
        }
        (opened, _) => Ok((opened?, false)),
    }
}

/// Opens what a crash left and checks it against what is lawful; returns the log and where it is.
pub(super) fn check(env: &FaultEnv, lawful: &Lawful) -> Result<(Log, Ledger), Violation> {
    check_mark(env, lawful)?;
    let (log, replaced) = reopen(env, lawful)?;
    ensure(log.faulty().is_empty(), || format!("a crash left damage: {:?}", log.faulty()))?;
    let positions = log.positions();
    let control = log.control().state();
    let found = read_all(&log, 1000)?;
    let candidates = if replaced { &[&lawful.after][..] } else { &[&lawful.after, &lawful.before] };
    let fits = |ledger: &Ledger| -> Result<(), Violation> {
        let last = positions.last.sequence() as usize;
        ensure(last >= ledger.durable, || format!("it ends with {last}"))?;
        ensure(positions.anchor.vlsn <= ledger.dropped, || {
            format!("it begins after {}", positions.anchor.vlsn)
        })?;
        let kept = ledger.entries.get(positions.anchor.vlsn.sequence() as usize..last);
        ensure(kept.is_some_and(|kept| kept == found), || {
            format!("other entries after {} up to {last}", positions.anchor.vlsn)
        })?;
        ledger.lost.iter().try_for_each(|lost| check_lost(env, lost))
    };
    let mut misfits = Vec::new();
    let ledger = candidates.iter().find(|ledger| match fits(ledger) {
        Ok(()) => true,
        Err(misfit) => {
            misfits.push(format!("not {ledger:?}: {misfit}"));
            false
        }
    });
    let Some(ledger) = ledger else { return Err(Violation(misfits.join("; "))) };
    check_positions(&positions, &found)?;
    for got in found.iter().rev().take(3) {
        let (header, _) =
            log.header(got.vlsn)?.ok_or_else(|| Violation(format!("no {}", got.vlsn)))?;
        ensure(header.vlsn == got.vlsn, || format!("{} found for {}", header.vlsn, got.vlsn))?;
    }
    check_sealed(env, &log)?;
    ensure(control.truncate_intent.is_none(), || "the truncation is not finished".into())?;
    ensure(!control.head_uncertain, || "the head is uncertain".into())?;
    check_control(env, &log)?;
    let voted = control.term;
    ensure(voted == lawful.before.voted || voted == lawful.after.voted, || {
        format!("voted in {voted}")
    })?;
    let named = control.vote.map(|vote| vote.to_string());
    let expected = (voted > Term::ZERO).then(|| format!("voted-in-{voted}"));
    ensure(named == expected, || format!("{named:?} voted for in {voted}"))?;
    for name in LostEntries::list(env, dir())? {
        LostEntries::read(env, dir(), &name)?;
    }
    let mut ledger = (*ledger).clone();
    ledger.entries.truncate(positions.last.sequence() as usize);
    ledger.durable = ledger.entries.len();
    ledger.dropped = positions.anchor.vlsn;
    ledger.voted = voted;
    ledger.settled = ledger.settled.max(control.commit_floor);
    Ok((log, ledger))
}

/// Strict promises that the mark on disk covers everything that was acknowledged.
fn check_mark(env: &FaultEnv, lawful: &Lawful) -> Result<(), Violation> {
    let covered = lawful.before.durable.min(lawful.after.durable) as i64;
    if lawful.after.policy != MarkPolicy::Strict || covered == 0 {
        return Ok(());
    }
    match TailMark::inspect(env, dir())? {
        MarkRead::Valid(mark) => ensure(mark.vlsn >= vlsn_of(covered), || {
            format!("the mark ends with {}, {covered} were acknowledged", mark.vlsn)
        }),
        other => Err(Violation(format!("{covered} were acknowledged, the mark is {other:?}"))),
    }
}

/// The relations between positions, and those that follow from the entries.
fn check_positions(positions: &Positions, found: &[Got]) -> Result<(), Violation> {
    let Positions { first, last_txn_end, last_sync, last, written, durable, anchor, .. } =
        positions;
    let here = || format!("{positions:?}");
    ensure(*durable == *last && *written == *last, here)?;
    let expected = found.first().map_or(NULL_VLSN, |got| got.vlsn);
    ensure(*first == expected && *last == anchor.vlsn.plus(found.len() as u64), here)?;
    let last_commit = found.iter().rev().find(|got| got.flags.is_sync()).map(|got| got.vlsn);
    ensure(*last_sync == last_commit.unwrap_or(NULL_VLSN) && last_txn_end == last_sync, here)?;
    let last_term = found.last().map_or(anchor.term, |got| got.term);
    ensure(positions.last_term == last_term, here)
}

/// A sealed segment has the digest of its bytes, and a successor that is there to stay.
fn check_sealed(env: &FaultEnv, log: &Log) -> Result<(), Violation> {
    for sealed in log.sealed_segments() {
        let bytes = read_whole(env, &dir().join(format!("log/{:010}.nlog", sealed.number)))?;
        ensure(blake3::hash(&bytes) == sealed.digest, || {
            format!("segment {} has another digest than it was sealed with", sealed.number)
        })?;
        ensure(sealed.last < log.positions().durable, || {
            format!("segment {} is sealed without a durable successor", sealed.number)
        })?;
    }
    Ok(())
}

/// No single rotten slot of the control file brings another state back.
fn check_control(env: &FaultEnv, log: &Log) -> Result<(), Violation> {
    let path = dir().join("control");
    let len = env.open(&path, OpenMode::Read)?.len()?;
    for slot in (0..len).step_by(4096) {
        env.corrupt(&path, slot + 100, 1)?;
        let state = ControlFile::read(env, dir());
        env.corrupt(&path, slot + 100, 1)?;
        ensure(state? == log.control().state(), || {
            format!("without the slot at {slot} the control file holds something else")
        })?;
    }
    Ok(())
}

fn check_lost(env: &FaultEnv, lost: &Lost) -> Result<(), Violation> {
    let Lost { name, entries } = lost;
    let found = LostEntries::read(env, dir(), name)?;
    let first = entries.first().map_or(NULL_VLSN, |got| got.vlsn);
    let bodies: Vec<_> = found
        .entries()
        .filter(|entry| entry.header.vlsn >= first)
        .map(|entry| entry.body.to_vec())
        .collect();
    ensure(bodies.iter().eq(entries.iter().map(|got| &got.body)), || {
        format!("{name} holds {} entries after {first}, not {}", bodies.len(), entries.len())
    })
}
