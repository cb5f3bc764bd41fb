//! Stat: what a node directory holds, without reading more of it than needed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use noxu_log::env::{Env, RealEnv};
use noxu_log::inspect::{Inspection, SegmentReport, SideState, Walk};
use noxu_log::{ControlState, LostEntries, Result};
use serde::Serialize;

use super::lost::{LostJson, lost_text, print_lost};
use super::{
    FaultJson, Found, Source, ending_name, ending_text, fault_text, found_in, mark_text, marked,
    print_json, size, unprinted,
};

/// Arguments of `noxu log stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --json the object has: group, group_id, segment_bytes, node, incarnation, \
epoch, term, commit_floor, anchor, clean_shutdown, head_uncertain, restore_marker (as far as there is \
a control file), tail_mark, end (clean, torn, unsettled), damage (as verify lists it), entries, bytes, \
index_bytes, droppable_segments, droppable_bytes, segments: a list of number, first, last, entries, bytes, file_bytes, \
terms (a list of term, first), last_term, last_fingerprint, sealed, side (missing, valid, or what is wrong), \
digest; and lost: a list of name, first, last, term, kept, kept_fingerprint, end_fingerprint, master, \
master_term, time_ms."
)]
pub(super) struct StatArgs {
    /// A node directory or a directory of segments
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatArgs, out: &mut impl Write) -> Result<Found> {
    let env: Arc<dyn Env> = Arc::new(RealEnv::new());
    let log = match Source::open(&args.path)? {
        Source::Log(log) => log,
        Source::Lost(lost) => {
            print_lost(&args.path.display().to_string(), &lost.header, args.json, out)?;
            return Ok(None);
        }
    };
    let walk = log.report()?;
    let mut lost = Vec::new();
    if log.control.is_some() {
        for name in LostEntries::list(&*env, &args.path)? {
            lost.push((name.clone(), LostEntries::read(&*env, &args.path, &name)));
        }
    }
    if args.json {
        print_json(&StatJson::new(&log, &walk, &lost), out)?;
    } else {
        print_text(&log, &walk, &lost, out).map_err(unprinted)?;
    }
    let unreadable = log.control.as_ref().and_then(|control| control.as_ref().err());
    Ok(unreadable.map(ToString::to_string).or_else(|| found_in(&walk, true)))
}

type Lost = Vec<(String, Result<LostEntries>)>;

/// What is known of all segments together.
struct Totals {
    entries: u64,
    bytes: u64,
    on_disk: u64,
    index_bytes: u64,
    /// Sealed, and all of it known to be on a majority: may go once the state has it.
    droppable: (usize, u64),
}

impl Totals {
    fn of(walk: &Walk, control: Option<&ControlState>) -> Self {
        let all = &walk.segments;
        let sum = |of: &dyn Fn(&SegmentReport) -> u64| all.iter().map(of).sum();
        let floor = control.map(|control| control.commit_floor).unwrap_or_default();
        let droppable: Vec<u64> = all
            .iter()
            .filter(|segment| segment.digest.is_some() && segment.last.vlsn <= floor)
            .map(|segment| segment.file_bytes)
            .collect();
        Self {
            entries: sum(&|segment| segment.entries),
            bytes: sum(&|segment| segment.end.into()),
            on_disk: sum(&|segment| segment.file_bytes),
            index_bytes: sum(&|segment| segment.index_bytes as u64),
            droppable: (droppable.len(), droppable.iter().sum()),
        }
    }
}

fn control_of(log: &Inspection) -> Option<&ControlState> {
    log.control.as_ref()?.as_ref().ok()
}

fn print_text(log: &Inspection, walk: &Walk, lost: &Lost, out: &mut impl Write) -> io::Result<()> {
    match &log.control {
        Some(Ok(control)) => control_text(control, out)?,
        Some(Err(error)) => writeln!(out, "control file    {error}")?,
        None => writeln!(out, "control file    none here")?,
    }
    writeln!(out, "tail mark       {}", mark_text(&log.mark))?;
    let totals = Totals::of(walk, control_of(log));
    let segments = &walk.segments;
    if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
        writeln!(
            out,
            "log             entries {} to {} ({}), {} in {} segments, {} on disk",
            first.header.first,
            last.last.vlsn,
            totals.entries,
            size(totals.bytes),
            segments.len(),
            size(totals.on_disk),
        )?;
        writeln!(
            out,
            "head            entry {}, term {}, fingerprint {}",
            last.last.vlsn, last.last.term, last.last.fingerprint
        )?;
        let (count, bytes) = totals.droppable;
        writeln!(
            out,
            "retention       {count} sealed segments, {}, at or below the commit floor",
            size(bytes)
        )?;
        writeln!(
            out,
            "index           {}, {} for a million entries",
            size(totals.index_bytes),
            size((totals.index_bytes as f64 * 1e6 / totals.entries.max(1) as f64) as u64),
        )?;
    } else {
        writeln!(out, "log             no entries")?;
    }
    for fault in &walk.faults {
        writeln!(out, "damage          {}", fault_text(fault))?;
    }
    if let Some(text) = ending_text(&walk.ending) {
        writeln!(out, "{text}")?;
    }
    if !segments.is_empty() {
        writeln!(
            out,
            "\n   segment       first        last   entries        bytes  terms  state   side file  digest"
        )?;
    }
    for segment in segments {
        let digest = segment.digest.map(|digest| digest.to_hex()[..16].to_owned());
        let line = format!(
            "{:>10} {:>11} {:>11} {:>9} {:>12}  {:<5}  {:<6}  {:<9}  {}",
            segment.header.number,
            segment.header.first.to_string(),
            segment.last.vlsn.to_string(),
            segment.entries,
            segment.end,
            terms_text(segment),
            if segment.digest.is_some() { "sealed" } else { "open" },
            match &segment.side {
                SideState::Missing => "-",
                SideState::Valid => "valid",
                SideState::Bad(_) => "bad",
            },
            digest.unwrap_or_default(),
        );
        writeln!(out, "{}", line.trim_end())?;
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

/// The terms of a segment's entries: `3` or `3-5`.
fn terms_text(segment: &SegmentReport) -> String {
    let last = segment.last.term;
    let begins_inside = segment.terms.first().is_some_and(|(_, at)| *at == segment.header.first);
    let first = match segment.terms.first() {
        Some((term, _)) if begins_inside => *term,
        _ if segment.entries == 0 => last,
        _ => segment.header.previous_term,
    };
    if first == last { last.to_string() } else { format!("{first}-{last}") }
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

#[derive(Debug, Serialize)]
struct ControlJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment_bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    incarnation: String,
    epoch: u32,
    term: u32,
    commit_floor: i64,
    anchor: i64,
    clean_shutdown: bool,
    head_uncertain: bool,
    restore_marker: bool,
}

impl From<&ControlState> for ControlJson {
    fn from(control: &ControlState) -> Self {
        let group = control.group.as_ref();
        Self {
            group: group.map(|group| group.name.to_string()),
            group_id: group.map(|group| group.id.to_string()),
            segment_bytes: group.map(|group| group.segment_bytes),
            node: control.node.as_ref().map(ToString::to_string),
            incarnation: control.incarnation.to_string(),
            epoch: control.epoch,
            term: control.term.number(),
            commit_floor: control.commit_floor.sequence(),
            anchor: control.anchor.vlsn.sequence(),
            clean_shutdown: control.clean_shutdown,
            head_uncertain: control.head_uncertain,
            restore_marker: control.restore_marker,
        }
    }
}

#[derive(Debug, Serialize)]
struct TermJson {
    term: u32,
    first: i64,
}

#[derive(Debug, Serialize)]
struct SegmentJson<'a> {
    number: u32,
    first: i64,
    last: i64,
    entries: u64,
    bytes: u32,
    file_bytes: u64,
    terms: Vec<TermJson>,
    last_term: u32,
    last_fingerprint: String,
    sealed: bool,
    side: &'a str,
    digest: Option<String>,
}

impl<'a> From<&'a SegmentReport> for SegmentJson<'a> {
    fn from(segment: &'a SegmentReport) -> Self {
        let terms = segment.terms.iter();
        Self {
            number: segment.header.number,
            first: segment.header.first.sequence(),
            last: segment.last.vlsn.sequence(),
            entries: segment.entries,
            bytes: segment.end,
            file_bytes: segment.file_bytes,
            terms: terms
                .map(|(term, first)| TermJson { term: term.number(), first: first.sequence() })
                .collect(),
            last_term: segment.last.term.number(),
            last_fingerprint: segment.last.fingerprint.to_string(),
            sealed: segment.digest.is_some(),
            side: match &segment.side {
                SideState::Missing => "missing",
                SideState::Valid => "valid",
                SideState::Bad(reason) => reason,
            },
            digest: segment.digest.map(|digest| digest.to_hex().to_string()),
        }
    }
}

#[derive(Debug, Serialize)]
struct StatJson<'a> {
    #[serde(flatten)]
    control: Option<ControlJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tail_mark: Option<i64>,
    end: &'static str,
    damage: Vec<FaultJson<'a>>,
    entries: u64,
    bytes: u64,
    index_bytes: u64,
    droppable_segments: usize,
    droppable_bytes: u64,
    segments: Vec<SegmentJson<'a>>,
    lost: Vec<LostJson<'a>>,
}

impl<'a> StatJson<'a> {
    fn new(log: &Inspection, walk: &'a Walk, lost: &'a Lost) -> Self {
        let totals = Totals::of(walk, control_of(log));
        let readable = lost.iter().filter_map(|(name, file)| Some((name, file.as_ref().ok()?)));
        Self {
            control: control_of(log).map(ControlJson::from),
            tail_mark: marked(&log.mark),
            end: ending_name(&walk.ending),
            damage: walk.faults.iter().map(FaultJson::from).collect(),
            entries: totals.entries,
            bytes: totals.bytes,
            index_bytes: totals.index_bytes,
            droppable_segments: totals.droppable.0,
            droppable_bytes: totals.droppable.1,
            segments: walk.segments.iter().map(SegmentJson::from).collect(),
            lost: readable.map(|(name, file)| LostJson::new(name, &file.header)).collect(),
        }
    }
}
