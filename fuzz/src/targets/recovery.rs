//! Recovery over any directory: it opens, or refuses with a typed error; what it opened can be read,
//! is the same at the next open, and takes entries that are there again afterwards.

use std::path::Path;
use std::sync::Arc;

use noxu_log::env::{Env, MemoryEnv};
use noxu_log::{Cut, EntryFlags, EntryKind, Log, LogError, LostNote, NewEntry, Positions};
use noxu_util::{Term, Vlsn};

use super::directory::{bases, dir, edited, files_of, has_suffix, one_edit, place, quiet};

/// Entries that are looked at one by one; more than any base holds.
const MOST_ENTRIES: u64 = 2000;

/// The input is a program of edits to a node directory: see [`super::directory::edited`].
pub fn recovery(input: &[u8]) -> bool {
    let files = edited(input);
    let env = place(&files);
    let first = match open(&env) {
        Ok(log) => look_at(&log),
        Err(error) => {
            refused(&env, &error);
            return false;
        }
    };
    let log = open(&env).unwrap_or_else(|error| panic!("opened once, then refused: {error}"));
    let second = look_at(&log);
    if first.is_whole() {
        assert_eq!(second, first, "the second open is the first one again");
    } else {
        // Sealed segments are not read at open: damage in one may be found only by the second open,
        // when it has become the last segment.
        assert_eq!(second.positions.chain(), first.positions.chain());
        assert_eq!(second.positions.first, first.positions.first);
    }
    append_and_reopen(log, &env);
    true
}

fn open(env: &MemoryEnv) -> Result<Log, LogError> {
    Log::open(Arc::new(env.clone()), dir(), quiet()).map(|(log, _)| log)
}

/// A refusal is for a reason on disk, and is given again.
fn refused(env: &MemoryEnv, error: &LogError) {
    assert!(!matches!(error, LogError::Io { .. } | LogError::Closed { .. }), "{error}");
    let before = files_of(env);
    let again = open(env).expect_err("refused before");
    assert_eq!(again.to_string(), error.to_string());
    assert!(files_of(env) == before, "a refusal changes nothing: {error}");
}

/// What a reader sees: positions, and each entry or why it cannot be read.
#[derive(Debug, PartialEq)]
struct Seen {
    positions: Positions,
    terms: Vec<(Term, Vlsn)>,
    entries: Vec<Result<Vec<u8>, String>>,
}

impl Seen {
    fn is_whole(&self) -> bool {
        self.entries.iter().all(Result::is_ok)
    }
}

fn look_at(log: &Log) -> Seen {
    let positions = log.positions();
    assert!(positions.durable <= positions.written && positions.written <= positions.last);
    assert!(positions.last_txn_end <= positions.last_sync && positions.last_sync <= positions.last);
    let mut entries = Vec::new();
    let (first, last) = (positions.first, positions.last);
    if !positions.is_empty() {
        let mut vlsn = first;
        while vlsn <= last && last.since(vlsn) < MOST_ENTRIES {
            entries.push(entry_at(log, vlsn));
            vlsn = vlsn.next();
        }
    }
    // A front to back read sees the same, in as many pieces.
    let mut next = positions.anchor.vlsn.next();
    while let Ok(run) = log.read(next, 1000) {
        let Some(run) = run else {
            assert_eq!(next.prev(), last, "a read ends at the log's end");
            break;
        };
        assert_eq!(run.first, next);
        for entry in run.entries() {
            assert_eq!(entry.header.vlsn, next);
            next = next.next();
        }
        assert_eq!(run.last.next(), next);
    }
    Seen { positions, terms: log.term_table(), entries }
}

fn entry_at(log: &Log, vlsn: Vlsn) -> Result<Vec<u8>, String> {
    let typed = |error: LogError| {
        assert!(!matches!(error, LogError::Io { .. } | LogError::Gap { .. }), "{vlsn}: {error}");
        error.to_string()
    };
    if let Ok(sync) = log.sync_at_or_before(vlsn).map_err(typed)
        && let Some((header, _)) = sync
    {
        assert!(header.is_sync() && header.vlsn <= vlsn, "{header:?} for {vlsn}");
    }
    let (header, _) = log.header(vlsn).map_err(typed)?.expect("within the log");
    assert_eq!(header.vlsn, vlsn);
    let run = log.read(vlsn, 0).map_err(typed)?.expect("within the log");
    let entry = run.entries().next().expect("at least one");
    assert_eq!(entry.header, header);
    Ok(entry.body.to_vec())
}

/// The log takes an entry, and has it after a crash.
fn append_and_reopen(log: Log, env: &MemoryEnv) {
    let before = log.positions();
    let entry = NewEntry::new(EntryKind(30), EntryFlags::COMMIT, b"appended");
    let appended = match log.append(before.last_term, &[entry]) {
        Ok(appended) => appended,
        Err(LogError::NotFounded { .. }) => return,
        Err(LogError::Faulty { .. }) if !log.faulty().is_empty() => return,
        Err(error) => panic!("cannot append after {before:?}: {error}"),
    };
    log.sync_now().expect("synced");
    drop(log);
    let log = open(env).unwrap_or_else(|error| panic!("refused after an append: {error}"));
    assert_eq!(log.positions().last, appended.last);
    let run = log.read(appended.last, 100).expect("readable").expect("there");
    assert_eq!(run.entries().next().expect("one").body, b"appended");
}

/// A few edits of each kind to each base.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..bases().len()).map(|base| vec![base as u8]).collect();
    for (base, files) in bases().iter().enumerate() {
        for (at, name) in files.keys().enumerate() {
            if has_suffix(name, "nside") {
                seeds.push(one_edit(base as u8, 3, at as u8, &[]));
            }
            if has_suffix(name, "nlog") && at + 1 == files.len() {
                seeds.push(one_edit(base as u8, 10, at as u8, &[3, 5, 1, 2, 3, 4, 5]));
            }
        }
    }
    // Programs of a few operations on any file, from which others grow.
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..60 {
        let count = rng.usize(6..30);
        let mut program: Vec<u8> = (0..count).map(|_| rng.u8(..)).collect();
        program[0] = rng.u8(1..bases().len() as u8);
        seeds.push(program);
    }
    seeds.retain(|seed| recovery(seed));
    seeds
}

/// Lost-entries files of truncations within one segment.
pub fn lost_files() -> Vec<Vec<u8>> {
    [1, 2, 3]
        .map(|keep| {
            let env = place(&bases()[1]);
            let log = open(&env).expect("a whole directory");
            let note = LostNote { time_ms: 7, master: "n2".into(), ..LostNote::default() };
            let cut = Cut::Save { name: "cut".into(), note };
            log.truncate_after(Vlsn::new(keep), cut).expect("truncated");
            noxu_log::env::read_whole(&env as &dyn Env, &dir().join(Path::new("lost/cut.nlost")))
                .expect("written")
        })
        .to_vec()
}
