//! Own method: an application that keeps its state in files named after what is in them, and brings a node level
//! by sending only those that it lacks.
//!
//! `shelf.rs` is the state machine: a shelf of documents, each in an immutable file that is named by the
//! digest of its content, and a list of what is where. `files.rs` is the method. This program has the
//! conformance kit test both, and prints its report: `cargo run -p noxu-rep --example own_method`.

mod files;
mod shelf;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use noxu_log::env::Env;
use noxu_log::{EntryFlags, EntryKind};
use noxu_rep::conformance::{self, LogEntry, Subject};
use noxu_rep::sync::method::StateSync;

use crate::files::FileSync;
use crate::shelf::{Shelf, encode_place};

/// Shelves, brought level file by file.
struct Shelves;

impl Subject for Shelves {
    type Machine = Shelf;

    fn open(&self, env: &Arc<dyn Env>, dir: &Path) -> noxu_rep::Result<Arc<Shelf>> {
        Shelf::open(env, dir)
    }

    fn method(&self) -> Arc<dyn StateSync> {
        Arc::new(FileSync { files_at_once: 2 })
    }

    /// Puts a document in a place; some are in several places.
    fn transaction(&self, n: u64) -> Vec<LogEntry> {
        let place = format!("place {}", n * 7 % 40);
        let document = format!("document {}", n % 151).repeat(20);
        let body = encode_place(&place, document.as_bytes());
        vec![LogEntry { kind: EntryKind(16), flags: EntryFlags::COMMIT, body }]
    }

    fn digest(&self, shelf: &Shelf) -> noxu_rep::Result<Vec<u8>> {
        shelf.content()
    }
}

fn main() -> ExitCode {
    let report = conformance::run(&Shelves);
    println!("{report}");
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
