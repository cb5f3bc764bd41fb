//! Peers: Noxu's log beside raft-engine and bare loops, all in one run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml [-- --rounds N --millis N WORK ...]
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --write-docs   # docs/peers.md
//! ```
//! The contenders of a work take turns of a few hundred milliseconds, and each round's rates are
//! divided by each other: what else the machine does meanwhile hits them alike. Printed are the
//! medians, as Markdown. Works are `unsynced`, `synced` and `parts`; all if none is named. Files lie
//! in the system's temporary directory (`TMPDIR`).

mod bare;
mod contender;
mod noxu;
mod page;
mod parts;
mod raft;
mod rounds;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use noxu_log::MarkPolicy;

use crate::bare::Bare;
use crate::contender::Contender;
use crate::noxu::{How, Noxu};
use crate::page::Page;
use crate::raft::Raft;
use crate::rounds::{Plan, run};
use crate::table::{rates, ratio};

/// Length of the bodies, in bytes.
const BODY_BYTES: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [alone, how, number] = &arguments[..]
        && alone == "alone"
    {
        return run_alone(how, number);
    }
    let Some((plan, works, write_docs)) = parse(arguments.into_iter()) else {
        return usage();
    };
    let wanted = |work: &str| works.is_empty() || works.iter().any(|name| name == work);
    let mut page = Page::begin(plan);
    if wanted("unsynced") {
        unsynced(plan, &mut page);
    }
    if wanted("synced") {
        synced(plan, &mut page);
    }
    if wanted("parts") {
        parts::measure(plan, &mut page);
    }
    page.line(format_args!("Peak memory of the run: {} MiB.", page::peak_memory_kib() >> 10));
    if write_docs && let Err(error) = std::fs::write(DOCS, page.text()) {
        eprintln!("{DOCS}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Where the page is kept; `--write-docs` runs in the repository.
const DOCS: &str = "docs/peers.md";

fn usage() -> ExitCode {
    eprintln!("usage: noxu-peers [--rounds N] [--millis N] [unsynced] [synced] [parts]");
    eprintln!("       noxu-peers [--rounds N] [--millis N] --write-docs");
    eprintln!("       noxu-peers alone tail|write BATCH");
    eprintln!("       noxu-peers alone sync|strict THREADS");
    eprintln!("       noxu-peers alone handles 1");
    ExitCode::FAILURE
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<(Plan, Vec<String>, bool)> {
    let mut plan = Plan { rounds: 7, slice: Duration::from_millis(400) };
    let mut works = Vec::new();
    let mut write_docs = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => plan.rounds = arguments.next()?.parse().ok().filter(|n| *n > 0)?,
            "--millis" => plan.slice = Duration::from_millis(arguments.next()?.parse().ok()?),
            "--write-docs" => write_docs = true,
            "unsynced" | "synced" | "parts" => works.push(argument),
            _ => return None,
        }
    }
    // A page holds all of it.
    (works.is_empty() || !write_docs).then_some((plan, works, write_docs))
}

/// Noxu by itself for some seconds, for a profiler.
fn run_alone(how: &str, number: &str) -> ExitCode {
    let (how, threads, batch) = match (how, number.parse()) {
        ("tail", Ok(batch)) => (How::IntoTheTail, 1, batch),
        ("write", Ok(batch)) => (How::WritePerBatch, 1, batch),
        ("sync", Ok(threads)) => (How::Synced(MarkPolicy::Lazy), threads, 1),
        ("strict", Ok(threads)) => (How::Synced(MarkPolicy::Strict), threads, 1),
        ("handles", Ok(1)) => (How::Handles(MarkPolicy::Lazy), 1, 1),
        _ => return usage(),
    };
    let plan = Plan { rounds: 10, slice: Duration::from_millis(400) };
    let [slices] = run([&Noxu::new(how)], threads, batch, plan);
    println!("{}", rates([&slices]));
    ExitCode::SUCCESS
}

/// One thread appends and nobody waits for the disk.
fn unsynced(plan: Plan, page: &mut Page) {
    page.line(format_args!("## Without sync, one thread\n"));
    page.line(format_args!(
        "| batch | bare write loop | raft-engine | noxu, a write per batch | noxu, into the tail \
         | write / bare | write / raft-engine | tail / raft-engine |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|"
    ));
    for batch in [1, 16, 256] {
        let bare = Bare::new();
        let raft = Raft::new();
        let write = Noxu::new(How::WritePerBatch);
        let tail = Noxu::new(How::IntoTheTail);
        let contenders: [&dyn Contender; 4] = [&bare, &raft, &write, &tail];
        let [bare, raft, write, tail] = run(contenders, 1, batch, plan);
        page.line(format_args!(
            "| {batch} | {} | {} | {} | {} |",
            rates([&bare, &raft, &write, &tail]),
            ratio(&write, &bare),
            ratio(&write, &raft),
            ratio(&tail, &raft)
        ));
    }
    page.line(format_args!(""));
}

/// Each client waits until its entry is synced; or one thread has many entries on their way.
fn synced(plan: Plan, page: &mut Page) {
    page.line(format_args!("## With sync, one entry to a batch\n"));
    page.line(format_args!(
        "| clients | raft-engine | noxu, lazy mark | noxu, strict mark | bare loop of the lazy one's \
         batches | lazy / raft-engine | strict / lazy | lazy / bare | entries a sync |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|"
    ));
    for threads in [1, 8, 64] {
        let raft = Raft::synced();
        let lazy = Noxu::new(How::Synced(MarkPolicy::Lazy));
        let strict = Noxu::new(How::Synced(MarkPolicy::Strict));
        let bare = Bare::replaying(&lazy.turns);
        // In this order: the loop replays the batches of the turn before it.
        let contenders: [&dyn Contender; 4] = [&raft, &strict, &lazy, &bare];
        let [raft, with_mark, synced, bare] = run(contenders, threads, 1, plan);
        page.line(format_args!(
            "| {threads} blocked | {} | {} | {} | {} | {:.1} |",
            rates([&raft, &synced, &with_mark, &bare]),
            ratio(&synced, &raft),
            ratio(&with_mark, &synced),
            ratio(&synced, &bare),
            lazy.turns.mean()
        ));
    }
    let lazy = Noxu::new(How::Handles(MarkPolicy::Lazy));
    let strict = Noxu::new(How::Handles(MarkPolicy::Strict));
    let bare = Bare::replaying(&lazy.turns);
    let [with_mark, synced, bare] = run([&strict, &lazy, &bare as &dyn Contender], 1, 1, plan);
    page.line(format_args!(
        "| {} handles | | {} | | {} | {} | {:.1} |",
        noxu::IN_FLIGHT,
        rates([&synced, &with_mark, &bare]),
        ratio(&with_mark, &synced),
        ratio(&synced, &bare),
        lazy.turns.mean()
    ));
    page.line(format_args!(""));
}
