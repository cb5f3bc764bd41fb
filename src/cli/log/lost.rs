//! Lost: what a lost-entries file says of the rollback that made it.

use std::io::Write;

use noxu_log::{LostHeader, Result};
use serde::Serialize;

use super::time::{YEAR_10000_MS, utc};
use super::{print_json, unprinted};

/// A lost-entries file as JSON.
#[derive(Debug, Serialize)]
pub(super) struct LostJson<'a> {
    name: &'a str,
    first: i64,
    last: i64,
    term: u32,
    kept: i64,
    kept_fingerprint: String,
    end_fingerprint: String,
    master: &'a str,
    master_term: u32,
    time_ms: u64,
}

impl<'a> LostJson<'a> {
    pub(super) fn new(name: &'a str, header: &'a LostHeader) -> Self {
        Self {
            name,
            first: header.kept.vlsn.next().sequence(),
            last: header.end.vlsn.sequence(),
            term: header.end.term.number(),
            kept: header.kept.vlsn.sequence(),
            kept_fingerprint: header.kept.fingerprint.to_string(),
            end_fingerprint: header.end.fingerprint.to_string(),
            master: &header.note.master,
            master_term: header.note.master_term.number(),
            time_ms: header.note.time_ms,
        }
    }
}

pub(super) fn print_lost(
    name: &str,
    header: &LostHeader,
    json: bool,
    out: &mut impl Write,
) -> Result<()> {
    if json {
        return print_json(&LostJson::new(name, header), out);
    }
    writeln!(out, "{}", lost_text(header)).map_err(unprinted)
}

pub(super) fn lost_text(header: &LostHeader) -> String {
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
