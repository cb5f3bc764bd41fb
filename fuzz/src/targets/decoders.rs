//! Decoders of what lies on disk. Each is given the bytes as they are, and once more with their
//! checksums made right, so that what the checksums guard is looked at too.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::{Env, MemoryEnv};
use noxu_log::inspect::{Ending, Inspection};
use noxu_log::segment::SegmentHeader;
use noxu_log::segment::side_file::SideFile;
use noxu_log::{ChainState, ControlFile, EntryRun, LogError, LostEntries, MarkRead, TailMark};
use noxu_util::{MAX_VLSN, Vlsn};

use super::directory::{Files, bases, dir, place, seal};

/// A file system that holds one file.
fn holding(name: &str, bytes: &[u8]) -> MemoryEnv {
    place(&Files::from([(name.to_owned(), bytes.to_vec())]))
}

/// The input, and the input with right checksums.
fn sealed_too(name: &str, input: &[u8]) -> [Vec<u8>; 2] {
    let mut sealed = input.to_vec();
    seal(name, &mut sealed);
    [input.to_vec(), sealed]
}

/// A fault in memory is a bug of the reader.
fn check_error(error: &LogError) {
    assert!(!matches!(error, LogError::Io { .. }), "{error}");
}

/// The files of all bases with this suffix.
fn files_like(suffix: &str) -> Vec<Vec<u8>> {
    let files = bases().iter().flatten();
    files.filter(|(name, _)| name.ends_with(suffix)).map(|(_, bytes)| bytes.clone()).collect()
}

const SEGMENT: &str = "log/0000000001.nlog";
const SIDE: &str = "log/0000000001.nside";
const LOST: &str = "lost/cut.nlost";

/// A run of entries.
pub fn entry(input: &[u8]) -> bool {
    let mut chain = ChainState::default();
    let mut accepted = false;
    if let Ok(run) = EntryRun::verify(Bytes::copy_from_slice(input), chain, 1 << 20) {
        accepted = true;
        assert_eq!(run.byte_len(), input.len());
        assert_eq!(run.entries().count() as u64, run.count());
        let mut rest = input;
        for expected in run.entries() {
            let found = chain.check_next(rest, 1 << 20).expect("verified as a run");
            assert_eq!(found, expected);
            rest = &rest[found.header.entry_bytes()..];
        }
        assert!(rest.is_empty());
        assert_eq!((chain.vlsn, chain.fingerprint), (run.last, run.last_fingerprint));
    }
    // At any place of any history.
    for vlsn in [Vlsn::default(), Vlsn::new(1), MAX_VLSN] {
        let mut chain = ChainState { vlsn, ..ChainState::default() };
        let before = chain;
        if chain.check_next(input, 100).is_err() {
            assert_eq!(chain, before, "a fault moves nothing");
        }
    }
    accepted
}

pub fn entry_seeds() -> Vec<Vec<u8>> {
    let runs = files_like("0000000001.nlog").into_iter().filter_map(|bytes| {
        let header = SegmentHeader::decode(&bytes).ok()?;
        let mut chain = header.chain_before();
        let mut at = 64;
        let mut ends = Vec::new();
        while let Ok(entry) = chain.check_next(&bytes[at..], 1 << 20) {
            at += entry.header.entry_bytes();
            ends.push(at);
        }
        let end = *ends.get(2)?;
        Some(bytes[64..end].to_vec())
    });
    runs.collect()
}

/// A segment file, scanned.
pub fn segment(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too(SEGMENT, input) {
        let env: Arc<dyn Env> = Arc::new(holding(SEGMENT, &bytes));
        let opened = Inspection::open_segment_file(env, &dir().join(SEGMENT)).expect("a segment");
        let opened = opened.of_files_that_stand_still();
        let mut read = 0;
        let walk = opened.walk(Vlsn::new(1), |_, entry| {
            read += entry.header.entry_bytes();
            ControlFlow::Continue(())
        });
        match walk {
            Ok(walk) => {
                assert!(read + 64 <= bytes.len().max(64), "more entries than bytes");
                let whole = walk.faults.is_empty() && walk.ending == Ending::Clean;
                accepted |= whole && walk.entries > 0;
            }
            Err(error) => check_error(&error),
        }
    }
    accepted
}

pub fn segment_seeds() -> Vec<Vec<u8>> {
    files_like("0000000001.nlog")
}

/// The first 64 bytes of a segment.
pub fn segment_header(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too(SEGMENT, input) {
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            accepted = true;
            assert_eq!(SegmentHeader::decode(&header.encode()).as_ref(), Ok(&header));
            assert_eq!(header.chain_before().vlsn.next(), header.first);
        }
    }
    accepted
}

pub fn segment_header_seeds() -> Vec<Vec<u8>> {
    files_like(".nlog").into_iter().map(|bytes| bytes[..64].to_vec()).collect()
}

/// The file beside a sealed segment.
pub fn side_file(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too(SIDE, input) {
        if let Ok(side) = SideFile::decode(&bytes) {
            accepted = true;
            assert!(side.encode() == bytes, "another encoding of the same");
        }
        let read = SideFile::read(&holding(SIDE, &bytes), dir(), 1);
        if let Err(error) = read {
            check_error(&error);
        }
    }
    accepted
}

pub fn side_file_seeds() -> Vec<Vec<u8>> {
    files_like(".nside")
}

/// The control file: read, opened and healed, read again.
pub fn control_file(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too("control", input) {
        let env = holding("control", &bytes);
        let read = ControlFile::read(&env, dir());
        match (read, ControlFile::open_or_create(&env, dir())) {
            (Ok(read), Ok(opened)) => {
                accepted = true;
                assert_eq!(opened.state(), read);
                assert_eq!(ControlFile::read(&env, dir()).expect("healed"), read);
            }
            (Err(error), Err(again)) => {
                check_error(&error);
                assert_eq!(error.to_string(), again.to_string());
            }
            (read, opened) => panic!("read {read:?}, opened {opened:?}"),
        }
    }
    accepted
}

pub fn control_file_seeds() -> Vec<Vec<u8>> {
    files_like("control")
}

/// The tail mark.
pub fn tail_mark(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too("tail-mark", input) {
        let env = holding("tail-mark", &bytes);
        match TailMark::inspect(&env, dir()) {
            Ok(read) => {
                let opened = TailMark::open(Arc::new(env), dir()).expect("inspected");
                assert_eq!(opened.read(), read);
                accepted |= matches!(read, MarkRead::Valid(_));
            }
            Err(error) => check_error(&error),
        }
    }
    accepted
}

pub fn tail_mark_seeds() -> Vec<Vec<u8>> {
    files_like("tail-mark")
}

/// A lost-entries file without moved segments.
pub fn lost_entries(input: &[u8]) -> bool {
    let mut accepted = false;
    for bytes in sealed_too(LOST, input) {
        let env = holding(LOST, &bytes);
        match LostEntries::read_file(&env, &dir().join(Path::new(LOST))) {
            Ok(lost) => {
                accepted = true;
                let last = lost.entries().last().map_or(lost.header.kept.vlsn, |e| e.header.vlsn);
                assert_eq!(last, lost.header.end.vlsn);
            }
            // A moved segment that it names is not there.
            Err(LogError::Io { path, .. }) if path != dir().join(LOST) => {}
            Err(error) => check_error(&error),
        }
    }
    accepted
}

pub fn lost_entries_seeds() -> Vec<Vec<u8>> {
    super::recovery::lost_files()
}
