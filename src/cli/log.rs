//! `noxu log`: shows and verifies the log of a node directory, of a copy of one, of a segment file
//! or of a lost-entries file. Reads only, so that it may be used beside a running node.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use noxu_log::env::{Env, RealEnv};
use noxu_log::inspect::{Ending, Fault, Inspection, SegmentReport};
use noxu_log::segment::name::SEGMENT_SUFFIX;
use noxu_log::{
    ControlState, Entry, EntryKind, LOST_SUFFIX, LogError, LostEntries, LostHeader, MarkRead,
    Result,
};
use noxu_util::{Lsn, Vlsn};

use super::error::CliError;

/// Show and verify a log: of a node that runs or not, of a copy, or of lost entries
#[derive(Debug, Args)]
#[command(after_help = "Nothing is locked and nothing is changed.

Examples:
  noxu log stat data/n1
  noxu log verify data/n1
  noxu log dump data/n1
  noxu log dump data/n1/lost/20899-21398-1795237378998.nlost")]
pub(super) struct Log {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Print the entries, oldest first
    Dump(DumpArgs),
    /// Check every entry and that all of them continue each other; exits with an error at the
    /// first place where they do not
    Verify(VerifyArgs),
    /// Print what the directory holds: identity, positions, segments, lost entries
    Stat(StatArgs),
}

/// Arguments of `noxu log dump`.
#[derive(Debug, Args)]
struct DumpArgs {
    /// A node directory, a directory of segments, a segment (.nlog) or lost-entries (.nlost) file
    path: PathBuf,
    /// First entry to print
    #[arg(long, value_name = "VLSN", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    from: i64,
    /// Last entry to print
    #[arg(long, value_name = "VLSN", value_parser = clap::value_parser!(i64).range(1..))]
    to: Option<i64>,
    /// Print only entries of this kind: term, group, noop, or a number; may be given several times
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    kind: Vec<EntryKind>,
    /// Print only entries of this term
    #[arg(long, value_name = "TERM")]
    term: Option<u32>,
    /// Print only entries that end a transaction
    #[arg(long)]
    commits: bool,
    /// Stop after this many entries
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Print this many bytes of each body
    #[arg(long, value_name = "BYTES", default_value_t = 24)]
    body: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Arguments of `noxu log verify`.
#[derive(Debug, Args)]
struct VerifyArgs {
    /// A node directory, a directory of segments, a segment (.nlog) or lost-entries (.nlost) file
    path: PathBuf,
    /// Accept bytes at the very end that are no entry, if the tail mark does not say that they were
    /// synced: what a crash leaves, and what opening the log cuts off
    #[arg(long)]
    allow_torn_tail: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `noxu log stat`.
#[derive(Debug, Args)]
struct StatArgs {
    /// A node directory or a directory of segments
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Log {
    /// Runs the command, printing to standard output.
    ///
    /// # Errors
    /// `Differs` with the first damaged place, after what lies before it was printed; `Failed` if
    /// there is no log or it cannot be read.
    pub(super) fn run(self) -> std::result::Result<(), CliError> {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = match &self.command {
            LogCommand::Dump(args) => dump(args, &mut out),
            LogCommand::Verify(args) => verify(args, &mut out),
            LogCommand::Stat(args) => stat(args, &mut out),
        };
        let flushed = out.flush().map_err(unprinted);
        match done.and_then(|found| flushed.map(|()| found)) {
            Ok(None) => Ok(()),
            Ok(Some(damage)) => Err(CliError::Differs(damage.to_string())),
            Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                Err(CliError::Output(io::ErrorKind::BrokenPipe.into()))
            }
            Err(error) => Err(CliError::Failed(error.to_string())),
        }
    }
}

/// Damage that was found, to be reported once everything is printed.
type Found = Option<LogError>;

fn unprinted(error: io::Error) -> LogError {
    LogError::io("write", Path::new("standard output"), error)
}

/// What a path given by the user is.
enum Source {
    Log(Inspection),
    Lost(LostEntries),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let named = |suffix: &str| path.to_str().is_some_and(|path| path.ends_with(suffix));
        if path.is_file() && named(LOST_SUFFIX) {
            return LostEntries::read_file(&*env, path).map(Self::Lost);
        }
        if path.is_file() && named(SEGMENT_SUFFIX) {
            return Inspection::open_segment_file(env, path).map(Self::Log);
        }
        Inspection::open(env, path).map(Self::Log)
    }
}

fn damage(fault: &Fault) -> LogError {
    LogError::Corrupt {
        segment: fault.lsn.segment(),
        offset: fault.lsn.offset().into(),
        expected: format!("entry {}", fault.vlsn),
        found: fault.reason.clone(),
    }
}

fn found_in(ending: &Ending) -> Found {
    match ending {
        Ending::Clean | Ending::Stopped => None,
        Ending::Damaged(fault) => Some(damage(fault)),
        Ending::Torn(fault) => Some(damage(&Fault {
            reason: format!(
                "{} (a torn or damaged end that the tail mark does not vouch for; opening the log \
                 cuts it off)",
                fault.reason
            ),
            ..fault.clone()
        })),
    }
}

// ---- dump

fn dump(args: &DumpArgs, out: &mut impl Write) -> Result<Found> {
    let mut printed = 0;
    let mut failed = Ok(());
    let mut show = |lsn: Option<Lsn>, entry: &Entry<'_>| {
        if args.to.is_some_and(|to| entry.header.vlsn > Vlsn::new(to))
            || args.limit.is_some_and(|limit| printed >= limit)
        {
            return ControlFlow::Break(());
        }
        if args.selects(entry) {
            let line = if args.json {
                json_of(entry, lsn, args.body)
            } else {
                line_of(entry, lsn, args.body)
            };
            failed = writeln!(out, "{line}").map_err(unprinted);
            printed += 1;
        }
        if failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = match Source::open(&args.path)? {
        Source::Log(log) => {
            let walk = log.walk(Vlsn::new(args.from), |lsn, entry| show(Some(lsn), entry))?;
            found_in(&walk.ending)
        }
        Source::Lost(lost) => {
            let mut from = lost.entries().filter(|e| e.header.vlsn >= Vlsn::new(args.from));
            let _ = from.try_for_each(|entry| show(None, &entry));
            None
        }
    };
    failed.map(|()| found)
}

impl DumpArgs {
    fn selects(&self, entry: &Entry<'_>) -> bool {
        let header = &entry.header;
        (self.kind.is_empty() || self.kind.contains(&header.kind))
            && self.term.is_none_or(|term| term == header.term.number())
            && (!self.commits || header.is_commit())
    }
}

fn line_of(entry: &Entry<'_>, lsn: Option<Lsn>, body_bytes: usize) -> String {
    let header = &entry.header;
    let mut line = format!(
        "{:>10}  {:>14}  term {:<4} {:<6} {:<6} {:>8} B  {}",
        header.vlsn.to_string(),
        lsn.map(|lsn| lsn.to_string()).unwrap_or_default(),
        header.term.number(),
        kind_name(header.kind),
        flags_of(entry),
        entry.body.len(),
        header.fingerprint,
    );
    let time = wall_clock_ms(entry);
    if let Some(ms) = time {
        let _ = write!(line, "  {}", utc(ms));
    }
    let body = &entry.body[if time.is_some() { 8 } else { 0 }..];
    let shown = &body[..body.len().min(body_bytes)];
    if !shown.is_empty() {
        let more = if shown.len() < body.len() { ".." } else { "" };
        let _ = write!(line, "  \"{}\"{more}", shown.escape_ascii());
    }
    line
}

fn json_of(entry: &Entry<'_>, lsn: Option<Lsn>, body_bytes: usize) -> String {
    let header = &entry.header;
    let mut json = format!("{{\"vlsn\":{}", header.vlsn.sequence());
    if let Some(lsn) = lsn {
        let _ = write!(json, ",\"segment\":{},\"offset\":{}", lsn.segment(), lsn.offset());
    }
    let _ = write!(
        json,
        ",\"term\":{},\"kind\":{},\"kind_name\":\"{}\",\"sync\":{},\"commit\":{},\"body_bytes\":{},\
         \"crc\":\"{:08x}\",\"fingerprint\":\"{}\"",
        header.term.number(),
        header.kind.0,
        kind_name(header.kind),
        header.is_sync(),
        header.is_commit(),
        entry.body.len(),
        header.crc,
        header.fingerprint,
    );
    if let Some(ms) = wall_clock_ms(entry) {
        let _ = write!(json, ",\"time_ms\":{ms}");
    }
    json.push_str(",\"body\":\"");
    for byte in &entry.body[..entry.body.len().min(body_bytes)] {
        let _ = write!(json, "{byte:02x}");
    }
    json.push_str("\"}");
    json
}

fn flags_of(entry: &Entry<'_>) -> &'static str {
    match (entry.header.is_commit(), entry.header.is_sync()) {
        (true, _) => "commit",
        (false, true) => "sync",
        (false, false) => "-",
    }
}

fn kind_name(kind: EntryKind) -> String {
    match kind {
        EntryKind::TERM => "term".into(),
        EntryKind::GROUP => "group".into(),
        EntryKind::NOOP => "noop".into(),
        EntryKind(number) => number.to_string(),
    }
}

fn parse_kind(text: &str) -> std::result::Result<EntryKind, String> {
    match text.to_ascii_lowercase().as_str() {
        "term" => Ok(EntryKind::TERM),
        "group" => Ok(EntryKind::GROUP),
        "noop" => Ok(EntryKind::NOOP),
        number => number
            .parse()
            .map(EntryKind)
            .map_err(|_| "expected term, group, noop, or a number from 0 to 255".into()),
    }
}

/// Commit and term entries begin with the master's wall clock.
fn wall_clock_ms(entry: &Entry<'_>) -> Option<u64> {
    if !entry.header.is_commit() && entry.header.kind != EntryKind::TERM {
        return None;
    }
    let ms = u64::from_le_bytes(*entry.body.first_chunk()?);
    (ms < YEAR_10000_MS).then_some(ms)
}

const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// A wall clock as ISO 8601 text in UTC. Days to date as in Howard Hinnant's "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn utc(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (seconds, milliseconds) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

// ---- verify

fn verify(args: &VerifyArgs, out: &mut impl Write) -> Result<Found> {
    let log = match Source::open(&args.path)? {
        Source::Log(log) => log,
        Source::Lost(lost) => {
            print_lost(&args.path.display().to_string(), &lost.header, args.json, out)?;
            return Ok(None);
        }
    };
    let walk = log.walk(Vlsn::new(1), |_, _| ControlFlow::Continue(()))?;
    let (digests, wrong) = log.check_digests()?;
    if args.json {
        writeln!(
            out,
            "{{\"first\":{},\"last\":{},\"term\":{},\"fingerprint\":\"{}\",\"entries\":{},\
             \"entry_bytes\":{},\"segments\":{},\"digests_checked\":{digests},\"end\":\"{}\"}}",
            first_of(&walk).sequence(),
            walk.end.vlsn.sequence(),
            walk.end.term.number(),
            walk.end.fingerprint,
            walk.entries,
            walk.entry_bytes,
            log.segments.len(),
            ending_name(&walk.ending),
        )
    } else {
        writeln!(
            out,
            "{} entries ({} to {}, {}) in {} segments verified; fingerprint {} at the end, term {}; \
             digests of {digests} sealed segments compared; tail mark {}",
            walk.entries,
            first_of(&walk),
            walk.end.vlsn,
            size(walk.entry_bytes),
            log.segments.len(),
            walk.end.fingerprint,
            walk.end.term,
            mark_text(&log.mark),
        )
    }
    .map_err(unprinted)?;
    if let Some(Err(error)) = log.control {
        return Ok(Some(error));
    }
    if args.allow_torn_tail && matches!(walk.ending, Ending::Torn(_)) {
        return Ok(None);
    }
    let wrong_digest = wrong.first().map(|number| LogError::Corrupt {
        segment: *number,
        offset: 0,
        expected: "the digests in its side file".into(),
        found: "others".into(),
    });
    Ok(found_in(&walk.ending).or(wrong_digest))
}

fn first_of(walk: &noxu_log::inspect::Walk) -> Vlsn {
    if walk.entries == 0 { Vlsn::default() } else { walk.begin.1 }
}

fn ending_name(ending: &Ending) -> &'static str {
    match ending {
        Ending::Clean | Ending::Stopped => "clean",
        Ending::Torn(_) => "torn",
        Ending::Damaged(_) => "damaged",
    }
}

fn mark_text(mark: &MarkRead) -> String {
    match mark {
        MarkRead::Absent => "absent".into(),
        MarkRead::Valid(mark) => format!("at {}", mark.vlsn),
        MarkRead::Unreadable { reason } => format!("unreadable ({reason})"),
    }
}

// ---- stat

fn stat(args: &StatArgs, out: &mut impl Write) -> Result<Found> {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let log = match Source::open(&args.path)? {
        Source::Log(log) => log,
        Source::Lost(lost) => {
            print_lost(&args.path.display().to_string(), &lost.header, args.json, out)?;
            return Ok(None);
        }
    };
    let (segments, ending) = log.segment_reports()?;
    let mut lost = Vec::new();
    if log.control.is_some() {
        for name in LostEntries::list(&*env, &args.path)? {
            lost.push((name.clone(), LostEntries::read(&*env, &args.path, &name)));
        }
    }
    if args.json {
        stat_json(&log, &segments, &ending, &lost, out)
    } else {
        stat_text(&log, &segments, &ending, &lost, out)
    }
    .map_err(unprinted)?;
    let unreadable = log.control.and_then(std::result::Result::err);
    Ok(unreadable.or_else(|| match &ending {
        Ending::Damaged(fault) => Some(damage(fault)),
        _ => None,
    }))
}

type Lost = Vec<(String, Result<LostEntries>)>;

fn stat_text(
    log: &Inspection,
    segments: &[SegmentReport],
    ending: &Ending,
    lost: &Lost,
    out: &mut impl Write,
) -> io::Result<()> {
    match &log.control {
        Some(Ok(control)) => control_text(control, out)?,
        Some(Err(error)) => writeln!(out, "control file    {error}")?,
        None => writeln!(out, "control file    none here")?,
    }
    writeln!(out, "tail mark       {}", mark_text(&log.mark))?;
    let bytes: u64 = segments.iter().map(|segment| u64::from(segment.end)).sum();
    let on_disk: u64 = segments.iter().map(|segment| segment.file_bytes).sum();
    let entries: u64 = segments.iter().map(count_of).sum();
    if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
        writeln!(
            out,
            "log             entries {} to {} ({entries}), {} in {} segments, {} on disk",
            first.header.first,
            last.last.vlsn,
            size(bytes),
            segments.len(),
            size(on_disk),
        )?;
        writeln!(
            out,
            "head            entry {}, term {}, fingerprint {}",
            last.last.vlsn, last.last.term, last.last.fingerprint
        )?;
    } else {
        writeln!(out, "log             no entries")?;
    }
    match ending {
        Ending::Clean | Ending::Stopped => {}
        Ending::Torn(fault) => writeln!(out, "torn end        {fault}")?,
        Ending::Damaged(fault) => writeln!(out, "damage          {fault}")?,
    }
    if !segments.is_empty() {
        writeln!(
            out,
            "\n   segment       first        last   entries        bytes  state   digest"
        )?;
    }
    for segment in segments {
        writeln!(
            out,
            "{:>10} {:>11} {:>11} {:>9} {:>12}  {}",
            segment.header.number,
            segment.header.first.to_string(),
            segment.last.vlsn.to_string(),
            count_of(segment),
            segment.end,
            match &segment.digest {
                Some(digest) => format!("sealed  {}", &digest.to_hex()[..16]),
                None => "open".into(),
            },
        )?;
    }
    if !lost.is_empty() {
        writeln!(out, "\nlost entries")?;
    }
    for (name, file) in lost {
        match file {
            Ok(file) => writeln!(out, "  {name}: {}", lost_text(&file.header))?,
            Err(error) => writeln!(out, "  {name}: {error}")?,
        }
    }
    Ok(())
}

fn control_text(control: &ControlState, out: &mut impl Write) -> io::Result<()> {
    let name = |name: &Option<noxu_util::Name>| match name {
        Some(name) => name.to_string(),
        None => "none".into(),
    };
    match &control.group {
        Some(group) => writeln!(
            out,
            "group           {} {}, segments of {}, epoch {}",
            group.name,
            group.id,
            size(group.segment_bytes.into()),
            control.epoch
        )?,
        None => writeln!(out, "group           none yet")?,
    }
    writeln!(out, "node            {} incarnation {}", name(&control.node), control.incarnation)?;
    writeln!(out, "term            {}, vote for {}", control.term, name(&control.vote))?;
    writeln!(out, "commit floor    {}", control.commit_floor)?;
    if control.anchor.vlsn.is_null() {
        writeln!(out, "anchor          none: nothing was dropped")?;
    } else {
        writeln!(out, "anchor          everything through {} was dropped", control.anchor.vlsn)?;
    }
    let mut state =
        vec![if control.clean_shutdown { "closed in order" } else { "in use or crashed" }];
    if control.head_uncertain {
        state.push("head uncertain");
    }
    if control.restore_marker {
        state.push("restore unfinished");
    }
    if control.truncate_intent.is_some() {
        state.push("truncation unfinished");
    }
    writeln!(out, "state           {}", state.join(", "))
}

fn stat_json(
    log: &Inspection,
    segments: &[SegmentReport],
    ending: &Ending,
    lost: &Lost,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(out, "{{")?;
    if let Some(Ok(control)) = &log.control {
        if let Some(group) = &control.group {
            write!(
                out,
                "\"group\":\"{}\",\"group_id\":\"{}\",\"segment_bytes\":{},",
                group.name, group.id, group.segment_bytes
            )?;
        }
        if let Some(node) = &control.node {
            write!(out, "\"node\":\"{node}\",")?;
        }
        write!(
            out,
            "\"incarnation\":\"{}\",\"epoch\":{},\"term\":{},\"commit_floor\":{},\"anchor\":{},\
             \"clean_shutdown\":{},\"head_uncertain\":{},\"restore_marker\":{},",
            control.incarnation,
            control.epoch,
            control.term,
            control.commit_floor.sequence(),
            control.anchor.vlsn.sequence(),
            control.clean_shutdown,
            control.head_uncertain,
            control.restore_marker,
        )?;
    }
    if let MarkRead::Valid(mark) = &log.mark {
        write!(out, "\"tail_mark\":{},", mark.vlsn.sequence())?;
    }
    write!(out, "\"end\":\"{}\",\"segments\":[", ending_name(ending))?;
    for (at, segment) in segments.iter().enumerate() {
        write!(
            out,
            "{}{{\"number\":{},\"first\":{},\"last\":{},\"bytes\":{},\"file_bytes\":{},\
             \"last_term\":{},\"last_fingerprint\":\"{}\",\"digest\":{}}}",
            if at == 0 { "" } else { "," },
            segment.header.number,
            segment.header.first.sequence(),
            segment.last.vlsn.sequence(),
            segment.end,
            segment.file_bytes,
            segment.last.term,
            segment.last.fingerprint,
            match &segment.digest {
                Some(digest) => format!("\"{}\"", digest.to_hex()),
                None => "null".into(),
            },
        )?;
    }
    write!(out, "],\"lost\":[")?;
    let readable = lost.iter().filter_map(|(name, file)| Some((name, &file.as_ref().ok()?.header)));
    for (at, (name, header)) in readable.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        write!(out, "{comma}{}", lost_json(name, header))?;
    }
    writeln!(out, "]}}")
}

fn count_of(segment: &SegmentReport) -> u64 {
    segment.last.vlsn.since(segment.header.first.prev())
}

// ---- lost entries

fn print_lost(name: &str, header: &LostHeader, json: bool, out: &mut impl Write) -> Result<()> {
    let text = if json { lost_json(name, header) } else { lost_text(header) };
    writeln!(out, "{text}").map_err(unprinted)
}

fn lost_text(header: &LostHeader) -> String {
    format!(
        "{} entries rolled back ({} to {}, term {}) after entry {} of term {}, master {} of term {}, {}",
        header.end.vlsn.since(header.kept.vlsn),
        header.kept.vlsn.next(),
        header.end.vlsn,
        header.end.term,
        header.kept.vlsn,
        header.kept.term,
        header.note.master,
        header.note.master_term,
        if header.note.time_ms < YEAR_10000_MS { utc(header.note.time_ms) } else { "-".into() },
    )
}

fn lost_json(name: &str, header: &LostHeader) -> String {
    format!(
        "{{\"name\":{},\"first\":{},\"last\":{},\"term\":{},\"kept\":{},\"kept_fingerprint\":\"{}\",\
         \"end_fingerprint\":\"{}\",\"master\":{},\"master_term\":{},\"time_ms\":{}}}",
        json_text(name),
        header.kept.vlsn.next().sequence(),
        header.end.vlsn.sequence(),
        header.end.term,
        header.kept.vlsn.sequence(),
        header.kept.fingerprint,
        header.end.fingerprint,
        json_text(&header.note.master),
        header.note.master_term,
        header.note.time_ms,
    )
}

fn json_text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clocks_print_as_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(utc(YEAR_10000_MS - 1), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn kinds_are_named_or_numbered() {
        assert_eq!(parse_kind("TERM"), Ok(EntryKind::TERM));
        assert_eq!(parse_kind("16"), Ok(EntryKind(16)));
        assert!(parse_kind("256").is_err());
        assert_eq!(kind_name(EntryKind::NOOP), "noop");
    }

    #[test]
    fn text_in_json_is_escaped() {
        assert_eq!(json_text("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}
