//! Reads: from the tail, from files, across both, across segments, at every buffer size.

use noxu_log::env::MemoryEnv;
use noxu_log::{Cut, Log, LogConfig, LogError, Until};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::hook_env::{HookEnv, When};
use crate::rig::{append, bodies, body, dir, fill, open, quiet, read_all, try_open, vlsn_of};

/// A log of 40 entries of many sizes over several segments; its newest ones are in the tail, the
/// others only in files.
fn mixed(env: &MemoryEnv) -> (Log, Vec<Vec<u8>>) {
    let log = try_open(env, LogConfig { tail_bytes: 6000, ..quiet() }).unwrap();
    let mut expected = Vec::new();
    for vlsn in 1..=40u64 {
        let len = [0, 1, 31, 500, 1500, 5000][vlsn as usize % 6];
        expected.push(body(vlsn, len));
        append(&log, 1, &expected[vlsn as usize - 1]).unwrap();
        if vlsn % 7 == 0 && vlsn <= 35 {
            log.sync_now().unwrap();
        }
    }
    (log, expected)
}

#[test]
fn every_buffer_size_reads_the_same_entries() {
    let (log, expected) = mixed(&MemoryEnv::new());
    for max_bytes in (0..12_000).step_by(7).chain([usize::MAX >> 1]) {
        let found: Vec<_> =
            read_all(&log, max_bytes).unwrap().into_iter().map(|got| got.body).collect();
        assert!(found == expected, "{max_bytes} bytes a read");
    }
}

#[test]
fn every_start_reads_to_the_end() {
    let (log, expected) = mixed(&MemoryEnv::new());
    for from in 1..=40 {
        let run = log.read(vlsn_of(from), 3000).unwrap().unwrap();
        assert_eq!(run.first, vlsn_of(from));
        let before = log.header(vlsn_of(from).prev()).unwrap();
        let before = before.map_or(0, |(header, _)| header.fingerprint.as_u64());
        assert_eq!(run.previous_fingerprint.as_u64(), before, "before {from}");
        let last = log.header(run.last).unwrap().unwrap().0;
        assert_eq!((run.last_fingerprint, run.last_term), (last.fingerprint, last.term));
        for entry in run.entries() {
            assert_eq!(entry.body, expected[entry.header.vlsn.sequence() as usize - 1]);
        }
        assert!(run.byte_len() <= 3000 || run.count() == 1);
    }
}

#[test]
fn an_entry_larger_than_the_buffer_is_read_whole_and_alone() {
    let log = open(&MemoryEnv::new());
    append(&log, 1, &body(1, 10_000)).unwrap();
    append(&log, 1, &body(2, 10)).unwrap();
    let run = log.read(vlsn_of(1), 1).unwrap().unwrap();
    assert_eq!((run.first, run.last), (vlsn_of(1), vlsn_of(1)));
}

#[test]
fn a_new_entry_is_read_before_it_is_written() {
    let log = open(&MemoryEnv::new());
    assert!(log.read(vlsn_of(1), 100).unwrap().is_none());
    append(&log, 1, b"unwritten").unwrap();
    assert_eq!(bodies(&log), [b"unwritten".to_vec()]);
    assert_eq!(log.positions().written, NULL_VLSN);
    assert!(log.read(vlsn_of(2), 100).unwrap().is_none());
}

#[test]
fn headers_and_sync_entries_are_found_at_every_vlsn() {
    use noxu_log::{EntryFlags, EntryKind, NewEntry};
    for tail_bytes in [0, 3000, 1 << 20] {
        let log = try_open(&MemoryEnv::new(), LogConfig { tail_bytes, ..quiet() }).unwrap();
        let mut last_sync = Vec::new();
        for vlsn in 1..=300i64 {
            let flags = match vlsn % 50 {
                3 => EntryFlags::SYNC,
                40 => EntryFlags::COMMIT,
                _ => EntryFlags::NONE,
            };
            let body = body(vlsn as u64, 90);
            log.append(Term::new(1), &[NewEntry::new(EntryKind(16), flags, &body)]).unwrap();
            let before = last_sync.last().copied().unwrap_or(NULL_VLSN);
            last_sync.push(if flags.is_sync() { vlsn_of(vlsn) } else { before });
            if vlsn % 20 == 0 {
                log.sync_now().unwrap();
            }
        }
        let (first_half, _) = last_sync.split_at(200);
        log.seal_through(vlsn_of(first_half.len() as i64)).unwrap();
        for vlsn in 1..=300 {
            let (header, lsn) = log.header(vlsn_of(vlsn)).unwrap().unwrap();
            assert_eq!(header.vlsn, vlsn_of(vlsn));
            assert!(lsn.segment() >= 1 && lsn.offset() >= 64);
            let sync = log.sync_at_or_before(vlsn_of(vlsn)).unwrap().map(|(h, _)| h.vlsn);
            assert_eq!(sync.unwrap_or(NULL_VLSN), last_sync[vlsn as usize - 1], "at {vlsn}");
        }
        assert_eq!(log.header(vlsn_of(301)).unwrap(), None);
        assert_eq!(log.header(NULL_VLSN).unwrap(), None);
        let newest = log.sync_at_or_before(Vlsn::new(1_000_000)).unwrap().unwrap().0.vlsn;
        assert_eq!(newest, *last_sync.last().unwrap());
    }
}

#[test]
fn a_read_below_the_front_is_a_gap_and_never_an_empty_success() {
    let log = open(&MemoryEnv::new());
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.seal_through(vlsn_of(30)).unwrap();
    let gone = log.drop_front(vlsn_of(20), |_| Vec::new()).unwrap();
    assert!(gone > NULL_VLSN && gone <= vlsn_of(20));
    for from in [NULL_VLSN, vlsn_of(1), gone] {
        let error = log.read(from, 100).unwrap_err();
        let LogError::Gap { requested, first } = error else { panic!("{error}") };
        assert_eq!((requested, first), (from, gone.next()));
    }
    assert_eq!(log.read(gone.next(), 100).unwrap().unwrap().first, gone.next());
}

#[test]
fn reads_go_on_while_the_log_grows_rolls_and_leaves_the_tail() {
    let log = try_open(&MemoryEnv::new(), LogConfig { tail_bytes: 4000, ..quiet() }).unwrap();
    let total = 3000;
    std::thread::scope(|scope| {
        let writer = log.clone();
        scope.spawn(move || {
            for vlsn in 1..=total {
                append(&writer, 1, &body(vlsn, vlsn as usize % 700)).unwrap();
                if vlsn % 11 == 0 {
                    writer.write_now().unwrap();
                }
            }
        });
        for max_bytes in [1, 333, 5000, 100_000] {
            let (log, reader) = (log.clone(), log.reader());
            scope.spawn(move || {
                let mut next = vlsn_of(1);
                while next <= vlsn_of(total as i64) {
                    let since = reader.moment();
                    let far = std::time::Duration::from_mins(1);
                    reader.wait(Until::Beyond(next.prev()), since, far).unwrap();
                    let Some(run) = log.read(next, max_bytes).unwrap() else { continue };
                    for entry in run.entries() {
                        assert_eq!(entry.header.vlsn, next);
                        let vlsn = next.sequence() as u64;
                        assert!(entry.body == body(vlsn, vlsn as usize % 700), "entry {next}");
                        next = next.next();
                    }
                }
            });
        }
    });
}

fn segment_path(number: u32) -> std::path::PathBuf {
    dir().join(format!("log/{number:010}.nlog"))
}

#[test]
fn a_file_that_a_truncation_takes_away_while_it_is_opened_is_never_read_as_the_log() {
    let env = HookEnv::default();
    let log = try_open(&env, LogConfig { tail_bytes: 0, ..quiet() }).unwrap();
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    let first_of_third = (1..=30)
        .map(vlsn_of)
        .find(|vlsn| log.header(*vlsn).unwrap().unwrap().1.segment() == 3)
        .unwrap();
    log.close().unwrap();
    drop(log);
    let log = try_open(&env, LogConfig { tail_bytes: 0, ..quiet() }).unwrap();
    let cutter = log.clone();
    env.once(segment_path(3), When::AfterOpen, move || {
        cutter.truncate_after(first_of_third.prev(), Cut::Discard).unwrap();
        for tag in 100..105 {
            append(&cutter, 2, &body(tag, 500)).unwrap();
        }
        cutter.sync_now().unwrap();
    });
    for _ in 0..2 {
        let run = log.read(first_of_third, 1000).unwrap().unwrap();
        assert_eq!(run.entries().next().unwrap().body, body(100, 500), "a rolled-back entry");
        let (header, _) = log.header(first_of_third).unwrap().unwrap();
        assert_eq!(header.term, Term::new(2));
    }
    assert!(env.has_run());
}

#[test]
fn a_front_that_is_dropped_while_it_is_read_is_a_gap() {
    for lookup in [false, true] {
        let env = HookEnv::default();
        let log = try_open(&env, LogConfig { tail_bytes: 0, ..quiet() }).unwrap();
        fill(&log, 1, 30, 500);
        log.sync_now().unwrap();
        log.seal_through(vlsn_of(30)).unwrap();
        let dropper = log.clone();
        env.once(segment_path(1), When::BeforeOpen, move || {
            assert!(dropper.drop_front(vlsn_of(20), |_| Vec::new()).unwrap() > NULL_VLSN);
        });
        if lookup {
            assert_eq!(log.header(vlsn_of(2)).unwrap(), None);
        } else {
            let error = log.read(vlsn_of(2), 100).unwrap_err();
            let LogError::Gap { requested, first } = error else { panic!("{error}") };
            assert_eq!((requested, first), (vlsn_of(2), log.positions().first));
        }
        assert!(env.has_run());
    }
}

#[test]
fn the_newest_sync_entry_is_found_at_every_moment_of_truncations_and_appends() {
    use noxu_log::{EntryFlags, EntryKind, NewEntry};
    let log = try_open(&MemoryEnv::new(), LogConfig { tail_bytes: 2000, ..quiet() }).unwrap();
    append(&log, 1, b"the sync entry that stays").unwrap();
    std::thread::scope(|scope| {
        let writer = log.clone();
        let writing = scope.spawn(move || {
            for round in 0..1000u64 {
                for n in 0..20 {
                    let flags = if n == 10 { EntryFlags::SYNC } else { EntryFlags::NONE };
                    let body = body(round * 100 + n, 100);
                    let entry = NewEntry::new(EntryKind(16), flags, &body);
                    writer.append(Term::new(1 + round as u32), &[entry]).unwrap();
                }
                writer.truncate_after(vlsn_of(1 + round as i64 % 7), Cut::Discard).unwrap();
            }
        });
        while !writing.is_finished() {
            let (header, _) = log.sync_at_or_before(vlsn_of(1000)).unwrap().expect("entry 1");
            assert!(header.is_sync(), "{header:?}");
        }
    });
}

#[test]
fn an_entry_that_a_truncation_has_moved_beyond_the_old_end_is_read_where_it_is() {
    let env = HookEnv::default();
    let config = LogConfig { tail_bytes: 0, ..quiet() };
    let log = try_open(&env, config).unwrap();
    fill(&log, 1, 6, 50);
    log.sync_now().unwrap();
    let other = log.clone();
    env.once(dir().join("log/0000000001.nlog"), When::BeforeOpen, move || {
        other.truncate_after(vlsn_of(2), Cut::Discard).unwrap();
        for tag in 3..=6 {
            append(&other, 2, &body(tag, 800)).unwrap();
        }
    });
    let run = log.read(vlsn_of(5), 1).unwrap().unwrap();
    assert!(env.has_run());
    assert_eq!(run.entries().next().unwrap().body, body(5, 800));
}
