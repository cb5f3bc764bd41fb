//! Targets: one function for each decoder and for recovery. Each takes any bytes and returns
//! whether it accepted them; it panics if it finds a bug.

mod decoders;
pub mod directory;
mod recovery;
mod wire;

/// A function under fuzzing.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name; its corpus lies in `corpus/<name>`.
    pub name: &'static str,
    /// Takes any bytes; returns whether they were accepted as valid.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that it takes, all accepted, from which others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const ALL: &[Target] = &[
    Target { name: "entry", run: decoders::entry, seeds: decoders::entry_seeds },
    Target { name: "segment", run: decoders::segment, seeds: decoders::segment_seeds },
    Target {
        name: "segment_header",
        run: decoders::segment_header,
        seeds: decoders::segment_header_seeds,
    },
    Target { name: "side_file", run: decoders::side_file, seeds: decoders::side_file_seeds },
    Target {
        name: "control_file",
        run: decoders::control_file,
        seeds: decoders::control_file_seeds,
    },
    Target { name: "tail_mark", run: decoders::tail_mark, seeds: decoders::tail_mark_seeds },
    Target {
        name: "lost_entries",
        run: decoders::lost_entries,
        seeds: decoders::lost_entries_seeds,
    },
    Target { name: "recovery", run: recovery::recovery, seeds: recovery::seeds },
    Target { name: "frame", run: wire::frame, seeds: wire::frame_seeds },
    Target { name: "handshake", run: wire::handshake, seeds: wire::handshake_seeds },
    Target { name: "syncup", run: wire::syncup, seeds: wire::syncup_seeds },
    Target { name: "verdict", run: wire::verdict, seeds: wire::verdict_seeds },
    Target { name: "message", run: wire::message, seeds: wire::message_seeds },
    Target { name: "restore", run: wire::restore, seeds: wire::restore_seeds },
    Target { name: "probe", run: wire::probe, seeds: wire::probe_seeds },
    Target { name: "election", run: wire::election, seeds: wire::election_seeds },
    Target { name: "electorate", run: wire::electorate, seeds: wire::electorate_seeds },
];
