//! Segment headers that are damaged, or whole and in the wrong place: one is made again only if it fits
//! what stands before and behind it, and no entry counts as missing on the word of a wrong one.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors, read_whole};
use noxu_log::segment::header::SegmentHeader;
use noxu_log::segment::name::segment_name;
use noxu_log::{Log, LogError, Mark, OpenReport, Result, TailMark};
use noxu_util::{Fingerprint, Term};

use crate::rig::{bodies, body, dir, fill, open, quiet, vlsn_of};

const ENTRY_BYTES: u64 = 532;

/// 30 entries, 7 to a segment, none of them sealed, closed in order.
fn closed() -> FaultEnv {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.close().unwrap();
    env
}

fn path(number: u32) -> PathBuf {
    dir().join("log").join(segment_name(number))
}

fn write(env: &FaultEnv, number: u32, at: u64, bytes: &[u8]) {
    let file = env.open(&path(number), OpenMode::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(bytes)], at).unwrap();
}

fn try_open(env: &FaultEnv) -> Result<(Log, OpenReport)> {
    Log::open(Arc::new(env.clone()), dir(), quiet())
}

fn expected() -> Vec<Vec<u8>> {
    (1..=30).map(|tag| body(tag, 500)).collect()
}

/// Where the tail mark is: at an entry, or unreadable.
fn set_mark(env: &FaultEnv, at: Option<i64>) {
    let Some(at) = at else { return env.remove(&dir().join("tail-mark")).unwrap() };
    let log = open(&env.clone_image(Survivors::All));
    let (header, lsn) = log.header(vlsn_of(at)).unwrap().unwrap();
    let mark = TailMark::open(Arc::new(env.clone()), dir()).unwrap();
    let (term, fingerprint) = (header.term, header.fingerprint);
    mark.write(Mark { term, vlsn: vlsn_of(at), lsn, fingerprint }).unwrap();
    mark.sync().unwrap();
}

#[test]
fn a_header_is_not_made_up_for_entries_that_do_not_follow_the_segment_before() {
    let whole = closed();
    for number in 2..=5 {
        for lost in 1..=6 {
            for mark in [Some(30), None] {
                let env = whole.clone_image(Survivors::All);
                set_mark(&env, mark);
                // The end of one segment is zeros, and what the next one continues cannot be read.
                let from = 64 + (7 - lost) * ENTRY_BYTES;
                write(&env, number - 1, from, &vec![0; (lost * ENTRY_BYTES) as usize]);
                write(&env, number, 0, &[0x55; 64]);
                let before = env.digest();
                let refused = try_open(&env);
                let Err(LogError::Corrupt { segment, .. }) = &refused else {
                    panic!("{lost} entries before {number} lost, mark {mark:?}: {refused:?}")
                };
                assert_eq!(*segment, number);
                assert_eq!(env.digest(), before, "a refusal changes nothing");
            }
        }
    }
}

#[test]
fn a_whole_header_of_another_place_is_made_again_and_nothing_counts_as_missing() {
    let whole = closed();
    let right =
        |number: u32| SegmentHeader::decode(&read_whole(&whole, &path(number)).unwrap()).unwrap();
    for number in 1..=5 {
        let own = right(number);
        let other = Fingerprint::from_u64(99);
        let wrong = [
            ("a later one", SegmentHeader { first: vlsn_of(own.first.sequence() + 3), ..own }),
            ("one far away", SegmentHeader { first: vlsn_of(1000), ..own }),
            (
                "an earlier one",
                SegmentHeader { first: vlsn_of(1.max(own.first.sequence() - 3)), ..own },
            ),
            ("another history", SegmentHeader { previous_fingerprint: other, ..own }),
            ("a later term", SegmentHeader { previous_term: Term::new(9), ..own }),
            ("a neighbour's", right(number % 5 + 1)),
        ];
        for (what, header) in wrong.into_iter().filter(|(_, header)| *header != own) {
            for mark in [Some(30), Some(8), None] {
                let context = format!("{what} in {number}, mark {mark:?}");
                let env = whole.clone_image(Survivors::All);
                set_mark(&env, mark);
                write(&env, number, 0, &header.encode());
                let (log, report) = try_open(&env).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(report.faulty, [], "{context}");
                if number == 5 && mark == Some(8) {
                    // As if it could not be read: the roll was cut short.
                    assert_eq!(bodies(&log), expected()[..28], "{context}");
                    continue;
                }
                assert_eq!(report.repaired_headers, [number], "{context}");
                assert_eq!(bodies(&log), expected(), "{context}");
                assert_eq!(read_whole(&env, &path(number)).unwrap()[..64], own.encode());
            }
        }
    }
}

#[test]
fn a_first_entry_of_another_place_does_not_make_a_right_header_wrong() {
    let whole = closed();
    let elsewhere = read_whole(&whole, &path(5)).unwrap()[64..][..ENTRY_BYTES as usize].to_vec();
    for number in 2..=4 {
        let env = whole.clone_image(Survivors::All);
        write(&env, number, 64, &elsewhere);
        let (log, report) = try_open(&env).unwrap();
        assert_eq!(report.repaired_headers, [0; 0]);
        let first = 7 * i64::from(number - 1) + 1;
        assert_eq!(report.faulty.len(), 1);
        assert_eq!(report.faulty[0].first, vlsn_of(first));
        assert_eq!(log.positions().last, vlsn_of(30));
    }
}
