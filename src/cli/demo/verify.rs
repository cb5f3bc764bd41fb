//! Verify: what the demo promises, checked against what the nodes hold.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use noxu_log::LostEntries;
use noxu_log::env::RealEnv;
use noxu_log::inspect::{Ending, Inspection};
use noxu_util::{Fingerprint, Lsn, NULL_VLSN, Vlsn};

use super::load::{Expected, hash};
use super::process::NodeProcess;
use super::say;
use crate::cli::error::CliError;
use crate::cli::progress::count_bar;
use crate::cli::sizes::{show_bytes, show_count};
use crate::client::Answer;

/// All keys of a node and the hashes of their values, read through its door.
pub(super) fn contents(
    node: &NodeProcess,
    expected: u64,
) -> Result<HashMap<String, u64>, CliError> {
    let mut client = node.client()?;
    let bar = count_bar(&format!("reading {}", node.name), expected);
    let mut found = HashMap::new();
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = client.scan_step(&cursor, None, 500)?;
        if !keys.is_empty() {
            let mut request: Vec<&[u8]> = vec![b"MGET"];
            request.extend(keys.iter().map(|key| &key[..]));
            let Answer::Array(values) = client.call(&request)? else {
                return Err(CliError::Failed(format!("{}: MGET answered no array", node.name)));
            };
            for (key, value) in keys.iter().zip(values) {
                if let Answer::Value(Some(value)) = value {
                    found.insert(String::from_utf8_lossy(key).into_owned(), hash(&value));
                }
            }
        }
        bar.set_position(found.len() as u64);
        cursor = next;
        if cursor == "0" {
            bar.finish_and_clear();
            return Ok(found);
        }
    }
}

/// Every node holds the same, every majority-acknowledged write is among it with its value, and
/// every LOCAL one is there too or in a lost-entries file below `dirs`.
pub(super) fn check_contents(nodes: &[NodeProcess], expected: &Expected) -> Result<(), CliError> {
    let all = (expected.majority.len() + expected.local.len()) as u64;
    let held: Vec<(&str, HashMap<String, u64>)> = nodes
        .iter()
        .map(|node| Ok((node.name, contents(node, all)?)))
        .collect::<Result<_, CliError>>()?;
    let (first, reference) = &held[0];
    for (name, contents) in &held[1..] {
        if contents != reference {
            let example = reference
                .iter()
                .find(|(key, hash)| contents.get(*key) != Some(hash))
                .or_else(|| contents.iter().find(|(key, _)| !reference.contains_key(*key)))
                .map_or("", |(key, _)| key);
            return Err(CliError::Differs(format!(
                "{first} holds {} keys, {name} {}, and they differ, for instance in {example:?}",
                reference.len(),
                contents.len()
            )));
        }
    }
    for (key, hash) in &expected.majority {
        if reference.get(key) != Some(hash) {
            let found = if reference.contains_key(key) { "another value" } else { "nothing" };
            return Err(CliError::Differs(format!(
                "{key:?} was acknowledged by a majority, found {found} under it"
            )));
        }
    }
    say!(
        "contents equal on {} nodes: {} keys, and all {} majority-acknowledged writes are there",
        held.len(),
        show_count(reference.len() as u64),
        show_count(expected.majority.len() as u64)
    )?;
    let lost = lost_bodies(nodes)?;
    let (mut there, mut saved) = (0, 0);
    for (key, hash) in &expected.local {
        if reference.get(key) == Some(hash) {
            there += 1;
        } else if lost.iter().any(|body| contains(body, key.as_bytes())) {
            saved += 1;
        } else {
            return Err(CliError::Differs(format!(
                "{key:?} was acknowledged by one node, and is neither in the store nor in a \
                 lost-entries file"
            )));
        }
    }
    if !expected.local.is_empty() {
        say!(
            "LOCAL writes: {there} in the store, {saved} in lost-entries files, none missing of {}",
            expected.local.len()
        )?;
    }
    Ok(())
}

/// Bodies of all entries in the nodes' lost-entries files.
pub(super) fn lost_bodies(nodes: &[NodeProcess]) -> Result<Vec<Vec<u8>>, CliError> {
    let mut bodies = Vec::new();
    for node in nodes {
        for name in LostEntries::list(&RealEnv, &node.dir)? {
            let lost = LostEntries::read(&RealEnv, &node.dir, &name)?;
            bodies.extend(lost.entries().map(|entry| entry.body.to_vec()));
        }
    }
    Ok(bodies)
}

fn contains(body: &[u8], key: &[u8]) -> bool {
    body.windows(key.len()).any(|window| window == key)
}

/// Where each entry stands and the hash chain through it: equal places and fingerprints, over verified
/// bytes, are equal bytes.
type Places = Vec<(Lsn, Fingerprint, u32)>;

/// The logs of stopped nodes hold the same entries at the same places, wherever two hold one.
pub(super) fn check_logs(nodes: &[NodeProcess]) -> Result<(), CliError> {
    let mut logs = Vec::new();
    for node in nodes {
        logs.push((node.name, read_log(node.name, &node.dir)?));
    }
    let mut compared = 0;
    for pair in logs.windows(2) {
        let [(left, (left_first, left_log)), (right, (right_first, right_log))] = pair else {
            continue;
        };
        let first = (*left_first).max(*right_first);
        let left_held = &left_log[first.since(*left_first).min(left_log.len() as u64) as usize..];
        let right_held =
            &right_log[first.since(*right_first).min(right_log.len() as u64) as usize..];
        let both = left_held.len().min(right_held.len());
        if both == 0 || left_held.len() != right_held.len() {
            return Err(CliError::Differs(format!(
                "{left}'s log holds {} entries from {first} on, {right}'s {}",
                left_held.len(),
                right_held.len()
            )));
        }
        if let Some(at) = (0..both).find(|at| left_held[*at] != right_held[*at]) {
            return Err(CliError::Differs(format!(
                "the logs of {left} and {right} differ at entry {}",
                first.plus(at as u64)
            )));
        }
        compared += compare_files(pair[0].0, pair[1].0, nodes)?;
    }
    say!(
        "logs verified entry by entry and byte-identical where two hold one: {} compared",
        show_bytes(compared)
    )?;
    Ok(())
}

fn read_log(name: &str, dir: &Path) -> Result<(Vlsn, Places), CliError> {
    let inspection = Inspection::open(Arc::new(RealEnv), dir)?;
    let mut places = Vec::new();
    let mut first = NULL_VLSN;
    let walk = inspection.walk(NULL_VLSN, |lsn, entry| {
        if first.is_null() {
            first = entry.header.vlsn;
        }
        places.push((lsn, entry.header.fingerprint, entry.header.crc));
        ControlFlow::Continue(())
    })?;
    match (walk.faults.first(), walk.ending) {
        (None, Ending::Clean) => Ok((first, places)),
        (Some(fault), _) => Err(CliError::Differs(format!("the log of {name}: {fault}"))),
        (None, other) => Err(CliError::Differs(format!("the log of {name} ends {other:?}"))),
    }
}

/// Compares the bytes of the segment files that two nodes both have, header through last entry.
fn compare_files(left: &str, right: &str, nodes: &[NodeProcess]) -> Result<u64, CliError> {
    let dir_of =
        |name: &str| nodes.iter().find(|node| node.name == name).map(|node| node.dir.join("log"));
    let (Some(left_dir), Some(right_dir)) = (dir_of(left), dir_of(right)) else { return Ok(0) };
    let mut compared = 0;
    for file in std::fs::read_dir(&left_dir).map_err(CliError::file(&left_dir))? {
        let name = file.map_err(CliError::file(&left_dir))?.file_name();
        let is_segment = Path::new(&name).extension().is_some_and(|ext| ext == "nlog");
        let (left_path, right_path) = (left_dir.join(&name), right_dir.join(&name));
        if !is_segment || !right_path.exists() {
            continue;
        }
        let left_bytes = std::fs::read(&left_path).map_err(CliError::file(&left_path))?;
        let right_bytes = std::fs::read(&right_path).map_err(CliError::file(&right_path))?;
        // An unsealed file may have zeros behind its last entry, as many as it likes.
        let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let (left_end, right_end) = (end(&left_bytes), end(&right_bytes));
        if left_bytes[..left_end] != right_bytes[..right_end] {
            return Err(CliError::Differs(format!(
                "{} differs between {left} and {right}",
                name.to_string_lossy()
            )));
        }
        compared += left_end as u64;
    }
    Ok(compared)
}
