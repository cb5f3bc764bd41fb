//! Scene: one log on real files. A process loads it and is killed; what it reported durable is there.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use noxu_log::env::RealEnv;
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_util::{GroupId, NULL_VLSN, Term, Vlsn};

use super::input::{Input, Piece};
use super::table::Table;
use super::{Demo, say, scene_title};
use crate::cli::child::ChildProcess;
use crate::cli::error::CliError;
use crate::cli::progress::count_bar;
use crate::cli::sizes::{show_bytes, show_count};

/// First kind that belongs to whoever uses the log.
const KIND: EntryKind = EntryKind(16);
/// Entries between two reports of the loading process.
const REPORT_EVERY: i64 = 64;

/// The loading process: appends pieces, reports how far they are durable, and waits to be killed
/// once there are `most` of them.
pub(super) fn load_until_killed(dir: &Path, input: &Input, most: u64) -> Result<(), CliError> {
    let (log, _) = Log::open(Arc::new(RealEnv), dir, LogConfig::default())?;
    log.found(GroupIdentity {
        id: GroupId::random(),
        name: "demo".parse().map_err(|e| CliError::Failed(format!("{e}")))?,
        segment_bytes: 4 << 20,
    })?;
    let mut pieces = input.pieces();
    let mut out = std::io::stdout().lock();
    let most = (most / 4 * 3).max(1) as i64;
    loop {
        let last = append(&log, &pieces.next_piece()?)?;
        if last.sequence() % REPORT_EVERY == 0 || last.sequence() == most {
            // The report speaks of entries behind: the log goes on meanwhile.
            log.request_sync();
            if last.sequence() == most {
                log.wait_durable(last)?;
            }
            writeln!(out, "{}", log.positions().durable.sequence())?;
            out.flush()?;
        }
        while last.sequence() >= most {
            std::thread::park();
        }
    }
}

fn append(log: &Log, piece: &Piece) -> Result<Vlsn, CliError> {
    let body = body_of(piece);
    Ok(log.append(Term::new(1), &[NewEntry::new(KIND, EntryFlags::COMMIT, &body)])?.last)
}

fn body_of(piece: &Piece) -> Vec<u8> {
    // COMMIT bodies begin with the master's clock; zero, so that the body can be told beforehand.
    let mut body = vec![0; 8];
    body.extend_from_slice(&(piece.key.len() as u16).to_le_bytes());
    body.extend_from_slice(piece.key.as_bytes());
    body.extend_from_slice(&piece.value);
    body
}

/// Plays the scene in `dir`.
pub(super) fn scene(
    demo: &Demo,
    input: &Input,
    input_path: &Path,
    dir: &Path,
    table: &mut Table,
) -> Result<(), CliError> {
    scene_title(1, "One log: load, kill -9 in the middle, open again, verify, go on")?;
    let mut child = ChildProcess::spawn(|command| {
        let loading = command.args(["demo", "--load-log"]).arg(dir).arg("--input").arg(input_path);
        loading.args(["--commits", &demo.commits.to_string()])
    })?;
    let reported = watch(&mut child, demo.commits as i64 / 2)?;
    child.kill()?;
    say!("killed after it had reported {} entries durable", show_count(reported as u64))?;

    let started = Instant::now();
    let (log, report) = Log::open(Arc::new(RealEnv), dir, LogConfig::default())?;
    let recovery = started.elapsed();
    let found = log.positions().last;
    say!(
        "opened: {} entries, {} of torn writes cut off, {} segments scanned, {recovery:.1?}",
        show_count(found.sequence() as u64),
        show_bytes(report.torn_bytes),
        report.scanned_segments
    )?;
    if found.sequence() < reported {
        return Err(CliError::Differs(format!(
            "{reported} entries were reported durable, {found} are there after the kill"
        )));
    }
    verify(&log, input, found)?;
    table.time("log: open after kill -9", recovery);

    let bar = count_bar("loading on", demo.commits);
    let mut pieces = input.pieces();
    let (mut bytes, mut entries, mut appended) = (0, 0, 0);
    let started = Instant::now();
    while entries < demo.commits || bytes < demo.size {
        let piece = pieces.next_piece()?;
        entries += 1;
        bytes += piece.value.len() as u64;
        if entries as i64 > found.sequence() {
            append(&log, &piece)?;
            appended += piece.value.len() as u64;
            bar.set_position(entries);
        }
    }
    let last = log.positions().last;
    log.wait_durable(last)?;
    let loading = started.elapsed();
    bar.finish_and_clear();
    table.rate("log: append to durable", last.since(found), "entries", loading);
    table.throughput("log: append to durable", appended, loading);
    log.close()?;
    drop(log);

    let (log, report) = Log::open(Arc::new(RealEnv), dir, LogConfig::default())?;
    if !report.clean_shutdown || log.positions().last != last {
        return Err(CliError::Differs(format!(
            "closed in order at entry {last}, found {} with a clean shutdown: {}",
            log.positions().last,
            report.clean_shutdown
        )));
    }
    let started = Instant::now();
    let read = verify(&log, input, last)?;
    table.throughput("log: read and compare", read, started.elapsed());
    say!("all {} entries are there, each with its content", show_count(last.sequence() as u64))?;
    Ok(log.close()?)
}

/// Reads reports until `enough` entries are durable.
fn watch(child: &mut ChildProcess, enough: i64) -> Result<i64, CliError> {
    let bar = count_bar("loading", enough.max(0) as u64);
    while let Some(line) = child.read_line()? {
        let reported = line.parse().unwrap_or(0);
        bar.set_position(reported as u64);
        if reported >= enough {
            bar.finish_and_clear();
            return Ok(reported);
        }
    }
    Err(CliError::Failed("the loading process ended by itself".to_owned()))
}

/// Compares every entry through `last` with the input; the bytes compared.
fn verify(log: &Log, input: &Input, last: Vlsn) -> Result<u64, CliError> {
    let bar = count_bar("verifying", last.sequence() as u64);
    let mut pieces = input.pieces();
    let (mut at, mut bytes) = (NULL_VLSN, 0);
    while at < last {
        let Some(run) = log.read(at.next(), 1 << 20)? else {
            return Err(CliError::Differs(format!("entry {} of {last} is missing", at.next())));
        };
        for entry in run.entries() {
            if entry.body != body_of(&pieces.next_piece()?) {
                return Err(CliError::Differs(format!(
                    "entry {} does not hold what was written",
                    entry.header.vlsn
                )));
            }
        }
        at = run.last;
        bytes += run.byte_len() as u64;
        bar.set_position(at.sequence() as u64);
    }
    bar.finish_and_clear();
    Ok(bytes)
}
