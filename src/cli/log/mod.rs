//! `noxu log`: shows and verifies the log of a node directory, of a copy of one, of a segment file
//! or of a lost-entries file. Reads only, so that it may be used beside a running node.

mod dump;
mod lost;
mod stat;
mod time;
mod verify;

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use clap::{Args, Subcommand};
use noxu_log::env::{Env, RealEnv};
use noxu_log::inspect::{Ending, Fault, Inspection, Walk};
use noxu_log::segment::name::SEGMENT_SUFFIX;
use noxu_log::{EntryKind, LOST_SUFFIX, LogError, LostEntries, MarkRead, Result};
use serde::Serialize;

use super::error::CliError;

/// Show and verify a log: of a node that runs or not, of a copy, or of lost entries
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is locked and nothing is changed. What a running node changes meanwhile is \
told from damage: a place counts as damaged only if it was read again while nothing was cut.

Examples:
  noxu log stat data/n1
  noxu log verify data/n1
  noxu log dump data/n1 --since -10m --kind writes --json
  noxu log dump data/n1/lost/20899-21398-1795237378998.nlost"
)]
pub(super) struct Log {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Print the entries, oldest first
    Dump(dump::DumpArgs),
    /// Check every entry, that all of them continue each other, and the digests; lists all damage
    /// and exits with 3 if there is any
    Verify(verify::VerifyArgs),
    /// Print what the directory holds: identity, positions, segments, what may be dropped, lost
    /// entries
    Stat(stat::StatArgs),
}

impl Log {
    /// Runs the command, printing to standard output.
    ///
    /// # Errors
    /// `Differs` with the first damaged place, after everything was printed; `Failed` if there is no
    /// log or it cannot be read.
    pub(super) fn run(self) -> std::result::Result<(), CliError> {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = match &self.command {
            LogCommand::Dump(args) => dump::run(args, &mut out),
            LogCommand::Verify(args) => verify::run(args, &mut out),
            LogCommand::Stat(args) => stat::run(args, &mut out),
        };
        let flushed = out.flush().map_err(unprinted);
        match done.and_then(|found| flushed.map(|()| found)) {
            Ok(found) => found.map_or(Ok(()), |found| Err(CliError::Differs(found))),
            Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                Err(CliError::Output(io::ErrorKind::BrokenPipe.into()))
            }
            Err(error) => Err(CliError::Failed(error.to_string())),
        }
    }
}

/// What is wrong, to be reported once everything is printed.
type Found = Option<String>;

fn unprinted(error: io::Error) -> LogError {
    LogError::io("write", Path::new("standard output"), error)
}

/// Prints a value as one line of JSON.
fn print_json(value: &impl Serialize, out: &mut impl Write) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(|error| unprinted(error.into()))?;
    writeln!(out).map_err(unprinted)
}

/// What a path given by the user is.
enum Source {
    Log(Box<Inspection>),
    Lost(LostEntries),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let named = |suffix: &str| path.to_str().is_some_and(|path| path.ends_with(suffix));
        if path.is_file() && named(LOST_SUFFIX) {
            return LostEntries::read_file(&*env, path).map(Self::Lost);
        }
        let log = if path.is_file() && named(SEGMENT_SUFFIX) {
            Inspection::open_segment_file(env, path)?
        } else {
            Inspection::open(env, path)?
        };
        Ok(Self::Log(Box::new(log)))
    }
}

/// All that is wrong with a log, in one line: the first place, and how many more there are.
fn found_in(walk: &Walk, torn_is_fine: bool) -> Found {
    let torn = match &walk.ending {
        Ending::Torn(fault) if !torn_is_fine => Some(format!(
            "{} (a torn or damaged end that the tail mark does not vouch for; opening the log cuts \
             it off)",
            LogError::from(fault)
        )),
        Ending::Torn(_) | Ending::Clean | Ending::Stopped | Ending::Unsettled(_) => None,
    };
    let mut all = walk.faults.iter().map(|fault| LogError::from(fault).to_string()).chain(torn);
    let first = all.next()?;
    Some(match all.count() {
        0 => first,
        1 => format!("{first}; and one more place"),
        more => format!("{first}; and {more} more places"),
    })
}

/// A fault as JSON.
#[derive(Debug, Serialize)]
struct FaultJson<'a> {
    segment: u32,
    offset: u32,
    expected: &'a str,
    found: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_missing: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_missing: Option<i64>,
}

impl<'a> From<&'a Fault> for FaultJson<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self {
            segment: fault.lsn.segment(),
            offset: fault.lsn.offset(),
            expected: &fault.expected,
            found: &fault.found,
            first_missing: fault.missing.map(|(first, _)| first.sequence()),
            last_missing: fault.missing.map(|(_, last)| last.sequence()),
        }
    }
}

fn fault_text(fault: &Fault) -> String {
    match fault.missing {
        Some((first, last)) if first == last => format!("{fault} (entry {first} cannot be read)"),
        Some((first, last)) => format!("{fault} (entries {first} to {last} cannot be read)"),
        None => fault.to_string(),
    }
}

const fn ending_name(ending: &Ending) -> &'static str {
    match ending {
        Ending::Clean | Ending::Stopped => "clean",
        Ending::Torn(_) => "torn",
        Ending::Unsettled(_) => "unsettled",
    }
}

fn ending_text(ending: &Ending) -> Option<String> {
    match ending {
        Ending::Clean | Ending::Stopped => None,
        Ending::Torn(fault) => Some(format!("torn end        {}", fault_text(fault))),
        Ending::Unsettled(fault) => Some(format!(
            "unsettled       from here on the log is being cut or replaced, or was left so: {fault}"
        )),
    }
}

fn mark_text(mark: &MarkRead) -> String {
    match mark {
        MarkRead::Absent => "absent".into(),
        MarkRead::Valid(mark) => format!("at {}", mark.vlsn),
        MarkRead::Unreadable { reason } => format!("unreadable ({reason})"),
    }
}

/// The newest entry that the mark says was synced.
fn marked(mark: &MarkRead) -> Option<i64> {
    match mark {
        MarkRead::Valid(mark) => Some(mark.vlsn.sequence()),
        MarkRead::Absent | MarkRead::Unreadable { .. } => None,
    }
}

fn kind_name(kind: EntryKind) -> String {
    match kind {
        EntryKind::TERM => "term".into(),
        EntryKind::GROUP => "group".into(),
        EntryKind::NOOP => "noop".into(),
        EntryKind(number) => {
            noxu_kv::kind_name(number).map_or_else(|| number.to_string(), Into::into)
        }
    }
}

fn parse_kind(text: &str) -> std::result::Result<EntryKind, String> {
    let name = text.to_ascii_lowercase();
    if let Ok(number) = name.parse() {
        return Ok(EntryKind(number));
    }
    (0..=u8::MAX)
        .map(EntryKind)
        .find(|kind| kind_name(*kind) == name)
        .ok_or_else(|| "expected term, group, noop, writes, or a number from 0 to 255".into())
}

fn size(bytes: u64) -> String {
    super::sizes::show_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_or_numbered() {
        assert_eq!(parse_kind("TERM"), Ok(EntryKind::TERM));
        assert_eq!(parse_kind("writes"), Ok(EntryKind(noxu_kv::KIND_WRITES)));
        assert_eq!(parse_kind("17"), Ok(EntryKind(17)));
        assert!(parse_kind("256").is_err());
        for kind in (0..=u8::MAX).map(EntryKind) {
            assert_eq!(parse_kind(&kind_name(kind)), Ok(kind));
        }
    }
}
