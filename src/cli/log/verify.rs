//! Verify: reads a whole log and lists all that is wrong with it.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use noxu_log::Result;
use noxu_log::inspect::Walk;
use noxu_util::Vlsn;
use serde::Serialize;

use super::lost::print_lost;
use super::{
    FaultJson, Found, Source, ending_name, ending_text, fault_text, found_in, mark_text, marked,
    print_json, size, unprinted,
};
use crate::cli::progress::byte_bar;

/// Arguments of `noxu log verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --json the object has: first, last, term and fingerprint (of the last \
entry), entries, entry_bytes, segments, digests_checked, tail_mark (if there is one), end (clean, \
torn, unsettled), restarts (how often the log was cut meanwhile), damage: a list of segment, offset, \
expected, found, first_missing and last_missing (entries that cannot be read because of it), and \
control_error if the control file is unreadable.

Exit codes: 0 whole, 1 not read, 3 damaged."
)]
pub(super) struct VerifyArgs {
    /// A node directory, a directory of segments, a segment (.nlog) or lost-entries (.nlost) file
    path: PathBuf,
    /// Accept bytes at the very end that are no entry, if the tail mark does not say that they were
    /// synced: what a crash leaves, and what opening the log cuts off
    #[arg(long)]
    allow_torn_tail: bool,
    /// The files were copied one by one while a node was running: what is missing at either end of
    /// the log is then no damage
    #[arg(long)]
    copy: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct VerifyJson<'a> {
    first: i64,
    last: i64,
    term: u32,
    fingerprint: String,
    entries: u64,
    entry_bytes: u64,
    segments: usize,
    digests_checked: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tail_mark: Option<i64>,
    end: &'static str,
    restarts: u32,
    damage: Vec<FaultJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_error: Option<String>,
}

pub(super) fn run(args: &VerifyArgs, out: &mut impl Write) -> Result<Found> {
    let mut log = match Source::open(&args.path)? {
        Source::Log(log) => log,
        Source::Lost(lost) => {
            print_lost(&args.path.display().to_string(), &lost.header, args.json, out)?;
            return Ok(None);
        }
    };
    if args.copy {
        *log = log.of_a_copy();
    }
    let bar = byte_bar("verifying", 0);
    let walk = log.verify(|done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let control_error = log.control.as_ref().and_then(|control| control.as_ref().err());
    let first = if walk.entries == 0 { Vlsn::default() } else { walk.begin.1 };
    if args.json {
        let json = VerifyJson {
            first: first.sequence(),
            last: walk.end.vlsn.sequence(),
            term: walk.end.term.number(),
            fingerprint: walk.end.fingerprint.to_string(),
            entries: walk.entries,
            entry_bytes: walk.entry_bytes,
            segments: walk.segments.len(),
            digests_checked: walk.digests,
            tail_mark: marked(&log.mark),
            end: ending_name(&walk.ending),
            restarts: walk.restarts,
            damage: walk.faults.iter().map(FaultJson::from).collect(),
            control_error: control_error.map(ToString::to_string),
        };
        print_json(&json, out)?;
    } else {
        print_text(&walk, first, &mark_text(&log.mark), out).map_err(unprinted)?;
    }
    let control_error = control_error.map(ToString::to_string);
    Ok(control_error.or_else(|| found_in(&walk, args.allow_torn_tail || args.copy)))
}

fn print_text(walk: &Walk, first: Vlsn, mark: &str, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{} entries ({first} to {}, {}) in {} segments verified; fingerprint {} at the end, term {}; \
         digests of {} sealed segments compared; tail mark {mark}",
        walk.entries,
        walk.end.vlsn,
        size(walk.entry_bytes),
        walk.segments.len(),
        walk.end.fingerprint,
        walk.end.term,
        walk.digests,
    )?;
    for fault in &walk.faults {
        writeln!(out, "damage          {}", fault_text(fault))?;
    }
    match ending_text(&walk.ending) {
        Some(text) => writeln!(out, "{text}"),
        None => Ok(()),
    }
}
