//! Verify: that what the nodes hold is what they promised.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::RealEnv;
use noxu_log::segment::name::{log_dir, segment_name};
use noxu_log::{Log, LogConfig, LostEntries};
use noxu_util::Vlsn;

use super::cluster::{NAMES, NodeProcess, node_dir};
use super::load::{Contents, contents};
use super::{Piece, say};
use crate::cli::error::CliError;
use crate::cli::sizes::{show_bytes, show_count};

/// Compares what all nodes hold with one another and with what was acknowledged.
pub(super) fn nodes_agree(
    nodes: &[&NodeProcess],
    acknowledged: &Contents,
) -> Result<Contents, CliError> {
    let mut first: Option<(&str, Contents)> = None;
    for node in nodes {
        let found = contents(&mut node.client()?)?;
        match &first {
            None => first = Some((node.name, found)),
            Some((name, expected)) => compare(name, expected, node.name, &found)?,
        }
    }
    let Some((name, held)) = first else { return Ok(Contents::new()) };
    for (key, digest) in acknowledged {
        if held.get(key) != Some(digest) {
            return Err(CliError::Differs(format!(
                "{} was acknowledged by a majority and is not what {name} holds",
                key.escape_ascii()
            )));
        }
    }
    say!(
        "contents: {} keys, equal on {} nodes; all {} majority-acknowledged writes are there",
        show_count(held.len() as u64),
        nodes.len(),
        show_count(acknowledged.len() as u64)
    );
    Ok(held)
}

fn compare(name: &str, expected: &Contents, other: &str, found: &Contents) -> Result<(), CliError> {
    if expected == found {
        return Ok(());
    }
    let differing = expected
        .iter()
        .find(|(key, digest)| found.get(*key) != Some(digest))
        .or_else(|| found.iter().find(|(key, digest)| expected.get(*key) != Some(digest)));
    let key = differing.map(|(key, _)| key.escape_ascii().to_string()).unwrap_or_default();
    Err(CliError::Differs(format!("{name} and {other} differ, for one in the key {key}")))
}

/// Checks that each locally committed write is in the contents or in a lost-entries file of `dir`.
/// Returns how many were kept and how many were lost.
pub(super) fn local_writes_accounted_for(
    dir: &Path,
    pieces: &[Piece],
    held: &Contents,
) -> Result<(usize, usize), CliError> {
    let mut lost = Vec::new();
    for name in LostEntries::list(&RealEnv, dir)? {
        let file = LostEntries::read(&RealEnv, dir, &name)?;
        lost.extend(file.entries().map(|entry| entry.body.to_vec()));
    }
    let (mut kept, mut saved) = (0, 0);
    for piece in pieces {
        if held.get(piece.key.as_bytes()) == Some(&blake3::hash(&piece.value)) {
            kept += 1;
        } else if lost
            .iter()
            .any(|body| contains(body, piece.key.as_bytes()) && contains(body, &piece.value))
        {
            saved += 1;
        } else {
            return Err(CliError::Differs(format!(
                "{} was committed locally, and is neither there nor in a lost-entries file",
                piece.key
            )));
        }
    }
    Ok((kept, saved))
}

fn contains(body: &[u8], part: &[u8]) -> bool {
    part.is_empty() || body.windows(part.len()).any(|window| window == part)
}

/// Compares the logs of stopped nodes byte by byte: segment headers and all entries, as far as two
/// logs hold the same ones.
pub(super) fn logs_are_identical(dir: &Path) -> Result<u64, CliError> {
    let mut logs = Vec::new();
    for name in NAMES {
        let config = LogConfig { prefill: false, ..LogConfig::default() };
        let (log, _) = Log::open(Arc::new(RealEnv), &node_dir(dir, name), config)?;
        logs.push((name, log));
    }
    let positions: Vec<_> = logs.iter().map(|(_, log)| log.positions()).collect();
    let ends: Vec<_> = positions.iter().map(|p| (p.last, p.last_lsn, p.last_fingerprint)).collect();
    if ends.windows(2).any(|pair| pair[0] != pair[1]) {
        let ends = logs.iter().zip(&ends).map(|((name, _), (last, lsn, fingerprint))| {
            format!("{name} at {last} ({lsn}, {fingerprint})")
        });
        let ends = ends.collect::<Vec<_>>().join(", ");
        return Err(CliError::Differs(format!("the logs end differently: {ends}")));
    }
    let from = positions.iter().map(|p| p.first).max().unwrap_or(Vlsn::default());
    let last_lsn = positions[0].last_lsn;
    let last_end = match logs[0].1.header(positions[0].last)? {
        Some((header, lsn)) => lsn.offset() as usize + header.entry_bytes(),
        None => 0,
    };
    let first_lsns = logs.iter().map(|(_, log)| Ok(log.header(from)?.map(|(_, lsn)| lsn)));
    let first_lsns = first_lsns.collect::<Result<Vec<_>, CliError>>()?;
    let first_segment = match first_lsns[..] {
        [Some(first), ..] if first_lsns.iter().all(|lsn| *lsn == Some(first)) => first.segment(),
        _ => return Err(CliError::Differs(format!("entry {from} has several places"))),
    };
    drop(logs);
    let mut compared = 0;
    for number in first_segment..=last_lsn.segment() {
        let mut first: Option<(&str, Vec<u8>)> = None;
        for name in NAMES {
            let path = log_dir(&node_dir(dir, name)).join(segment_name(number));
            let mut bytes = std::fs::read(&path).map_err(CliError::file(&path))?;
            if number == last_lsn.segment() {
                bytes.truncate(last_end);
            } else {
                // Sealed or not, zeros behind the last entry are no part of the log.
                let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                bytes.truncate(end);
            }
            match &first {
                None => first = Some((name, bytes)),
                Some((_, expected)) if *expected == bytes => {}
                Some((other, expected)) => {
                    let at = expected.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
                    return Err(CliError::Differs(format!(
                        "segment {number} of {other} and {name} differ at byte {at}"
                    )));
                }
            }
        }
        compared += first.map_or(0, |(_, bytes)| bytes.len() as u64);
    }
    say!(
        "logs: {} from entry {from} to {} byte-identical on {} nodes",
        show_bytes(compared),
        positions[0].last,
        NAMES.len()
    );
    Ok(compared)
}
