//! Docs: the page that a run writes. Every figure on it comes from that run.

use std::fmt::Write;

use super::machine::Machine;
use super::report::Measured;
use super::work::Work;

/// The page.
pub(super) fn page(machine: &Machine, works: &[Work], all: &[Measured], secs: u32) -> String {
    let mut page = String::from(HEAD);
    for (what, found) in &machine.lines {
        line(&mut page, format_args!("| {what} | {found} |"));
    }
    page.push_str("\n## Figures\n");
    for (title, words, belongs) in SECTIONS {
        line(&mut page, format_args!("\n### {title}\n\n{words}\n"));
        let of_section: Vec<_> = all.iter().filter(|measured| belongs(measured.work)).collect();
        let columns = of_section.iter().map(|m| m.figures.len()).max().unwrap_or(0);
        line(&mut page, format_args!("| work |{}", " |".repeat(columns)));
        line(&mut page, format_args!("|---|{}", "---:|".repeat(columns)));
        for measured in of_section {
            let mut cells = measured.cells();
            cells.resize(columns, String::new());
            line(&mut page, format_args!("| `{}` | {} |", measured.name(), cells.join(" | ")));
        }
    }
    let names: Vec<_> = works.iter().map(Work::to_string).collect();
    let _ = write!(
        page,
        "\n## To measure it again\n\n```sh\n\
         cargo run --release -- bench --write-docs --secs {secs}   # this page\n\
         cargo run --release -- bench --plain --secs {secs}        # the same, a line per figure\n\
         cargo run --release -- bench --plain --secs {secs} \\\n    {}\n\
         cargo bench                                    # the parts, with criterion\n\
         cargo run --release --manifest-path benches/peers/Cargo.toml -- --write-docs   # docs/peers.md\n\
         ```\n",
        names.join(" \\\n    ")
    );
    page
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "{text}");
}

const HEAD: &str = "# Benchmarks

Written by `noxu bench --write-docs` from one run, figures and machine alike; do not edit. Absolute
figures move with the machine: compare them with the bare fdatasync and round trip of the same run.

## Machine

| | |
|---|---|
";

type Section = (&'static str, &'static str, fn(Work) -> bool);

const SECTIONS: [Section; 5] = [
    (
        "Commits",
        "Each node is a process on this machine with real files and loopback TCP; the load runs in the
master's process in a closed loop, one put of a random 16-byte key and a 100-byte value to a
commit. `c1`, `c8`, `c64`: that many blocked threads; `h1024`: one thread with 1,024 commits in
flight. `sync_majority`: on the disks of two of three nodes, their tail marks included;
`sync_majority_lazy`: with tail marks that no commit waits for. `nosync_majority`: in the memory of
two of three. `local_sync` and `local_nosync`: a group of one node, on its disk and in its memory.

`floor_`: three processes that do nothing but write, sync and acknowledge the same bytes in the same
places, a commit of each client in one round, one round after the other. With one client that
is as fast as bare calls were in this run; with many a log can be faster, for it need not wait for a
round to end.",
        |work| matches!(work, Work::Commits(_) | Work::Floor(_)),
    ),
    (
        "Log",
        "The log alone, entries of 100 bytes, `b` of them to a batch. `sync`: each thread waits until
its batch is synced. `nosync`: appended to the shared tail, written in the background. Beside another
log and bare loops, with ratios and with what an append's time consists of: `benches/peers`, which
writes docs/peers.md.",
        |work| matches!(work, Work::Append { .. }),
    ),
    (
        "Streams and catch-up",
        "`stream`: one log to another over loopback TCP, read from files, verified, until the last
entry is acknowledged as synced. `catchup`: a replica killed before the load and opened after it, from
opening its node until all it missed is on its disk, and until all of it is applied to its state.",
        |work| matches!(work, Work::Stream(_) | Work::Catchup),
    ),
    (
        "Syncup",
        "The search for the newest entry that two logs share, over loopback TCP, after each has gone
on with so many entries of its own; the replica's log is reopened before every search.",
        |work| matches!(work, Work::Syncup { .. }),
    ),
    (
        "Network restore",
        "A replica without files, from asking for a restore until it follows again, with everything verified
and synced; `copy`: one thread reads the same files and sends them over loopback TCP, another writes
them and syncs them at the end, in turn with the restores of the same run, with the disk at rest before each,
and after a first one that does not count: the machine has to fetch memory for it;
`piped copy`: a third thread syncs each file when it is whole; `ratio`: of the restore's rate to that of the
copy right before it. Of all these the one in the middle of at least five rounds, for a disk has slow
seconds. `master`: the whole log from the master alone; `follower`: from a follower, and from the master what that does not give; `followers`: from
two at once; `checkpoint`: from one, half of the log and a checkpoint of the state. Then the parts of that time: `manifest` until
it is known what there is, `base` until segments and checkpoint are on disk, `tail` until all is
committed, `install` until log and state are in place, `find` for finding the master before and after;
and `apply`, from there until the state has caught up with the log.",
        |work| matches!(work, Work::Restore(_)),
    ),
];
