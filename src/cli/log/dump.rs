//! Dump: the entries of a log, one a line, as far as the filters let them through.
//!
//! Only COMMIT and Term entries carry a wall clock. An entry counts as written at the next one at or
//! after it: so all entries of a transaction have the time of their COMMIT, and those of one that
//! was left open the time of the term that ended it. Entries behind the last clock have its time.

use std::fmt::Write as _;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use noxu_log::{Entry, EntryKind, Result};
use noxu_util::{Lsn, Vlsn};
use serde::Serialize;

use super::time::{WallClock, YEAR_10000_MS, parse_time, utc};
use super::{Found, Source, ending_text, found_in, kind_name, parse_kind, unprinted};

/// Arguments of `noxu log dump`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --json a line is an object with: vlsn, segment and offset (not for lost entries), \
term, kind (number), kind_name, sync, commit, body_bytes, crc and fingerprint (hexadecimal), \
time_ms (wall clock in milliseconds since 1970, of COMMIT and Term entries), body (hexadecimal, as \
much as --body says).

--since and --until select by wall clock: an entry counts as written at the time of the next COMMIT or \
Term entry at or after it, so a transaction is printed whole or not at all."
)]
pub(super) struct DumpArgs {
    /// A node directory, a directory of segments, a segment (.nlog) or lost-entries (.nlost) file
    path: PathBuf,
    /// First entry to print
    #[arg(long, value_name = "VLSN", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    from: i64,
    /// Last entry to print
    #[arg(long, value_name = "VLSN", value_parser = clap::value_parser!(i64).range(1..))]
    to: Option<i64>,
    /// Print only entries written at this time or later: RFC 3339, a date, or -10m for ten minutes
    /// ago (s, m, h, d)
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    since: Option<WallClock>,
    /// Print only entries written before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    until: Option<WallClock>,
    /// Print only entries of this kind: term, group, noop, writes (the store's), or a number; may be
    /// given several times
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
    /// Print bodies in hexadecimal, not as escaped text
    #[arg(long)]
    hex: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DumpArgs, out: &mut impl Write) -> Result<Found> {
    let mut printer = Printer { args, out, printed: 0, held: Vec::new(), clock: None };
    let mut failed = Ok(());
    let mut show = |lsn: Option<Lsn>, entry: &Entry<'_>| match printer.take(lsn, entry) {
        Ok(flow) => flow,
        Err(error) => {
            failed = Err(unprinted(error));
            ControlFlow::Break(())
        }
    };
    let mut found = None;
    match Source::open(&args.path)? {
        Source::Log(log) => {
            let walk = log.walk(Vlsn::new(args.from), |lsn, entry| show(Some(lsn), entry))?;
            if walk.restarts > 0 {
                eprintln!(
                    "noxu: the log was cut while it was read ({} times); what was read again is \
                     printed again",
                    walk.restarts
                );
            }
            found = found_in(&walk, false);
            if let Some(text) = ending_text(&walk.ending).filter(|_| found.is_none()) {
                eprintln!("noxu: {text}");
            }
        }
        Source::Lost(lost) => {
            let mut from = lost.entries().filter(|e| e.header.vlsn >= Vlsn::new(args.from));
            let _ = from.try_for_each(|entry| show(None, &entry));
        }
    }
    failed?;
    printer.end().map_err(unprinted)?;
    Ok(found)
}

/// Prints what is selected; holds back entries whose time is not known yet.
struct Printer<'a, W: Write> {
    args: &'a DumpArgs,
    out: &'a mut W,
    printed: u64,
    /// Lines of entries since the last clock, when times count.
    held: Vec<String>,
    clock: Option<WallClock>,
}

impl<W: Write> Printer<'_, W> {
    fn take(&mut self, lsn: Option<Lsn>, entry: &Entry<'_>) -> std::io::Result<ControlFlow<()>> {
        let args = self.args;
        let beyond = args.to.is_some_and(|to| entry.header.vlsn > Vlsn::new(to));
        let by_time = args.since.is_some() || args.until.is_some();
        if self.is_full() || (beyond && (!by_time || self.held.is_empty())) {
            return Ok(ControlFlow::Break(()));
        }
        if args.selects(entry) && !beyond {
            let line = if args.json {
                json_of(entry, lsn, args.body)
            } else {
                line_of(entry, lsn, args.body, args.hex)
            };
            if by_time {
                self.held.push(line);
            } else {
                self.print(&line)?;
            }
        }
        if let Some(ms) = wall_clock_ms(entry) {
            self.clock = Some(WallClock(ms));
            self.let_go()?;
        }
        Ok(if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// The time of what is held is known.
    fn let_go(&mut self) -> std::io::Result<()> {
        let clock = self.clock;
        let args = self.args;
        let in_time = args.since.is_none_or(|since| clock.is_some_and(|clock| clock >= since))
            && args.until.is_none_or(|until| clock.is_some_and(|clock| clock < until));
        for line in std::mem::take(&mut self.held) {
            if in_time && !self.is_full() {
                self.print(&line)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.let_go()
    }

    fn print(&mut self, line: &str) -> std::io::Result<()> {
        self.printed += 1;
        writeln!(self.out, "{line}")
    }

    fn is_full(&self) -> bool {
        self.args.limit.is_some_and(|limit| self.printed >= limit)
    }
}

impl DumpArgs {
    fn selects(&self, entry: &Entry<'_>) -> bool {
        let header = &entry.header;
        (self.kind.is_empty() || self.kind.contains(&header.kind))
            && self.term.is_none_or(|term| term == header.term.number())
            && (!self.commits || header.is_commit())
    }
}

fn line_of(entry: &Entry<'_>, lsn: Option<Lsn>, body_bytes: usize, hex: bool) -> String {
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
        if hex {
            let _ = write!(line, "  {}{more}", hex_of(shown));
        } else {
            let _ = write!(line, "  \"{}\"{more}", shown.escape_ascii());
        }
    }
    line
}

fn hex_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[derive(Debug, Serialize)]
struct EntryJson {
    vlsn: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u32>,
    term: u32,
    kind: u8,
    kind_name: String,
    sync: bool,
    commit: bool,
    body_bytes: usize,
    crc: String,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    body: String,
}

fn json_of(entry: &Entry<'_>, lsn: Option<Lsn>, body_bytes: usize) -> String {
    let header = &entry.header;
    let json = EntryJson {
        vlsn: header.vlsn.sequence(),
        segment: lsn.map(Lsn::segment),
        offset: lsn.map(Lsn::offset),
        term: header.term.number(),
        kind: header.kind.0,
        kind_name: kind_name(header.kind),
        sync: header.is_sync(),
        commit: header.is_commit(),
        body_bytes: entry.body.len(),
        crc: format!("{:08x}", header.crc),
        fingerprint: header.fingerprint.to_string(),
        time_ms: wall_clock_ms(entry),
        body: hex_of(&entry.body[..entry.body.len().min(body_bytes)]),
    };
    serde_json::to_string(&json).expect("numbers and text are JSON")
}

fn flags_of(entry: &Entry<'_>) -> &'static str {
    match (entry.header.is_commit(), entry.header.is_sync()) {
        (true, _) => "commit",
        (false, true) => "sync",
        (false, false) => "-",
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
