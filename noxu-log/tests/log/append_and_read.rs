//! Appending and reading: order, positions, ranges, lookups.

use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::{Env, RealEnv};
use noxu_log::{EntryFlags, EntryRun, Log, LogConfig, LogError, NewEntry, Until};
use noxu_util::{NULL_VLSN, Term, Vlsn};

use crate::support::{PUT, bodies, body, config, fresh, group, open, put};

#[test]
fn a_new_log_is_empty_and_refuses_entries_until_founded() {
    let env: Arc<dyn Env> = Arc::new(noxu_log::env::MemoryEnv::default());
    let (log, report) = open(&env);
    assert_eq!(report.scanned_segments, 0);
    let positions = log.positions();
    assert!(positions.is_empty());
    assert_eq!(positions.first, NULL_VLSN);
    let entry = NewEntry::new(PUT, EntryFlags::COMMIT, b"x");
    let refused = log.append(Term::new(1), &[entry]).unwrap_err();
    assert!(matches!(refused, LogError::NotFounded { .. }), "{refused}");
    log.found(group(4096)).unwrap();
    assert_eq!(put(&log, 1, b"x"), Vlsn::new(1));
    log.found(group(4096)).unwrap();
    let other = log.found(group(8192)).unwrap_err();
    assert!(matches!(other, LogError::AlreadyFounded { .. }), "{other}");
}

#[test]
fn ranges_read_back_at_every_buffer_size_across_tail_and_files() {
    let (_env, log) = fresh(4096);
    let expected: Vec<_> = (1..=400).map(|n| body(n, (n as usize * 37) % 300)).collect();
    for (n, body) in expected.iter().enumerate() {
        put(&log, 1, body);
        if n % 7 == 0 {
            log.sync_now().unwrap();
        }
    }
    for max_bytes in (1..600).step_by(7).chain([1000, 5000, 1 << 20]) {
        assert_eq!(bodies(&log, Vlsn::new(1), max_bytes), expected, "{max_bytes} bytes a read");
    }
    for from in 1..=400 {
        let run = log.read(Vlsn::new(from), 1).unwrap().unwrap();
        assert_eq!(run.count(), 1);
        assert_eq!(run.entries().next().unwrap().body, expected[from as usize - 1]);
    }
    assert!(log.read(Vlsn::new(401), 100).unwrap().is_none());
    assert!(matches!(log.read(NULL_VLSN, 100), Err(LogError::Gap { .. })));
}

#[test]
fn every_header_is_found_with_its_place_and_the_sync_entry_before_it() {
    let (env, log) = fresh(4096);
    let mut sync = vec![false];
    for n in 1..=500u64 {
        let flags = if n % 37 == 0 { EntryFlags::COMMIT } else { EntryFlags::NONE };
        sync.push(flags.is_sync());
        let body = body(n, 60);
        log.append(Term::new(1 + n as u32 / 100), &[NewEntry::new(PUT, flags, &body)]).unwrap();
        if n == 250 {
            log.sync_now().unwrap();
            log.seal_through(Vlsn::new(200)).unwrap();
        }
    }
    log.sync_now().unwrap();
    let check = |log: &Log| {
        let mut last_lsn = noxu_util::NULL_LSN;
        for n in 1..=500usize {
            let (header, lsn) = log.header(Vlsn::new(n as i64)).unwrap().unwrap();
            assert_eq!(header.vlsn, Vlsn::new(n as i64));
            assert_eq!(header.term, Term::new(1 + n as u32 / 100));
            assert!(lsn > last_lsn, "positions grow");
            last_lsn = lsn;
            let expected = (1..=n).rev().find(|at| sync[*at]);
            let found = log.sync_at_or_before(Vlsn::new(n as i64)).unwrap();
            assert_eq!(found.map(|f| f.0.vlsn.sequence() as usize), expected, "at {n}");
        }
        let table: Vec<_> =
            log.term_table().iter().map(|(t, v)| (t.number(), v.sequence())).collect();
        assert_eq!(table, [(1, 1), (2, 100), (3, 200), (4, 300), (5, 400), (6, 500)]);
        assert_eq!(log.positions().last_sync, Vlsn::new(481));
        assert_eq!(log.header(Vlsn::new(501)).unwrap(), None);
    };
    check(&log);
    log.close().unwrap();
    drop(log);
    let (log, report) = open(&env);
    assert!(report.clean_shutdown);
    check(&log);
}

#[test]
fn sixty_four_appenders_never_invert_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { prefill: false, tail_bytes: 64 << 10, ..LogConfig::default() };
    let (log, _) = Log::open(Arc::new(RealEnv), dir.path(), config).unwrap();
    log.found(group(64 << 10)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..64u64 {
            let log = log.clone();
            scope.spawn(move || {
                for n in 0..50u64 {
                    let body = body(thread << 32 | n, 40);
                    let entry = NewEntry::new(PUT, EntryFlags::COMMIT, &body);
                    let appended = log.append(Term::new(1), &[entry]).unwrap();
                    if n % 5 == 0 {
                        log.wait_durable(appended.last).unwrap();
                        assert!(log.positions().durable >= appended.last);
                    }
                }
            });
        }
    });
    let mut next_of = [0u64; 64];
    let all = bodies(&log, Vlsn::new(1), 1000);
    assert_eq!(all.len(), 64 * 50);
    for body in all {
        let tag = u64::from_le_bytes(body[..8].try_into().unwrap());
        let thread = (tag >> 32) as usize;
        assert_eq!(tag & 0xffff_ffff, next_of[thread], "thread {thread} out of order");
        next_of[thread] += 1;
    }
    let mut last = noxu_util::NULL_LSN;
    for n in 1..=3200 {
        let (_, lsn) = log.header(Vlsn::new(n)).unwrap().unwrap();
        assert!(lsn > last);
        last = lsn;
    }
}

#[test]
fn a_run_appended_verbatim_gives_the_same_files() {
    let (env_a, a) = fresh(4096);
    let (env_b, b) = fresh(4096);
    for n in 1..=300 {
        put(&a, 1 + n as u32 / 50, &body(n, (n as usize * 91) % 900));
    }
    a.sync_now().unwrap();
    let mut next = Vlsn::new(1);
    let mut step = 1;
    while let Some(run) = a.read(next, step).unwrap() {
        let mut bytes = Vec::new();
        run.parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let run = EntryRun::verify(bytes.into(), b.positions().chain(), 1 << 20).unwrap();
        b.append_run(&run).unwrap();
        next = run.last.next();
        step = (step * 3) % 200_000 + 1;
    }
    b.sync_now().unwrap();
    assert_eq!(a.positions(), b.positions());
    for env in [&env_a, &env_b] {
        assert!(env.list("/node/log".as_ref()).unwrap().len() > 10);
    }
    for name in env_a.list("/node/log".as_ref()).unwrap() {
        let path = std::path::Path::new("/node/log").join(&name);
        let read = |env| noxu_log::env::read_whole(env, &path).unwrap();
        assert_eq!(read(&*env_a), read(&*env_b), "{name}");
    }
    let foreign = a.read(Vlsn::new(1), 100).unwrap().unwrap();
    assert!(matches!(b.append_run(&foreign), Err(LogError::Gap { .. })));
}

#[test]
fn an_entry_larger_than_a_segment_gets_its_own() {
    let (env, log) = fresh(4096);
    put(&log, 1, &body(1, 100));
    put(&log, 1, &body(2, 50_000));
    put(&log, 1, &body(3, 100));
    log.sync_now().unwrap();
    let segment_of = |n| log.header(Vlsn::new(n)).unwrap().unwrap().1.segment();
    assert_eq!([segment_of(1), segment_of(2), segment_of(3)], [1, 2, 3]);
    assert_eq!(env.list("/node/log".as_ref()).unwrap().len(), 3);
    let config = config();
    let too_long = vec![0; config.max_body_bytes as usize + 1];
    let entry = NewEntry::new(PUT, EntryFlags::COMMIT, &too_long);
    assert!(matches!(log.append(Term::new(1), &[entry]), Err(LogError::TooLarge { .. })));
    assert_eq!(log.positions().last, Vlsn::new(3));
}

#[test]
fn a_reader_that_waits_is_woken_by_an_append_and_by_a_wake() {
    let (_env, log) = fresh(4096);
    let reader = log.reader();
    let (begin, far) = (reader.moment(), Duration::from_mins(1));
    let wait = |beyond, since, timeout| {
        reader.wait(Until::Beyond(Vlsn::new(beyond)), since, timeout).unwrap();
        reader.moment().last
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(0, begin, far));
        put(&log, 1, b"x");
        assert_eq!(waiting.join().unwrap(), Vlsn::new(1));
        let waiting = scope.spawn(|| wait(1, begin, far));
        log.wake_readers();
        assert_eq!(waiting.join().unwrap(), Vlsn::new(1));
        let (now, waiting) = (reader.moment(), scope.spawn(|| wait(1, begin, far)));
        reader.wake();
        assert_eq!(waiting.join().unwrap(), Vlsn::new(1));
        assert_eq!(wait(1, now, far), Vlsn::new(1), "the wake came after that moment");
    });
    assert_eq!(wait(1, reader.moment(), Duration::from_millis(1)), Vlsn::new(1));
}

#[test]
fn a_reader_that_waits_for_a_cue_sleeps_through_appends_until_the_log_writes_them() {
    let (_env, log) = fresh(4096);
    let (reader, other) = (log.reader(), log.reader());
    let begin = reader.moment();
    let wait = |enough| {
        let until = Until::CueOrBeyond(Vlsn::new(enough));
        reader.wait(until, begin, Duration::from_mins(1)).unwrap();
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(5));
        for _ in 0..3 {
            put(&log, 1, b"x");
            other.cue();
            other.wake();
        }
        assert!(!waiting.is_finished(), "nothing has been written");
        log.write_now().unwrap();
        waiting.join().unwrap();
    });
    wait(5); // a cue that came between the look and the wait is not slept through
    wait(2); // and what is enough is not waited with
}

#[test]
fn entries_nobody_waits_for_are_synced_within_the_interval() {
    let env: Arc<dyn Env> = Arc::new(noxu_log::env::MemoryEnv::default());
    let config = LogConfig { sync_interval: Duration::from_millis(5), ..config() };
    let (log, _) = Log::open(env, "/node".as_ref(), config).unwrap();
    log.found(group(4096)).unwrap();
    let (sent, durable) = std::sync::mpsc::channel();
    log.on_durable(move |vlsn| sent.send(vlsn).unwrap());
    for n in 1..=3 {
        put(&log, 1, b"x");
        assert_eq!(durable.recv_timeout(Duration::from_secs(10)).unwrap(), Vlsn::new(n));
    }
}

#[test]
fn requests_to_write_do_not_put_off_the_sync_of_what_nobody_waits_for() {
    let env: Arc<dyn Env> = Arc::new(noxu_log::env::MemoryEnv::default());
    let config = LogConfig { sync_interval: Duration::from_millis(5), ..config() };
    let (log, _) = Log::open(env, "/node".as_ref(), config).unwrap();
    log.found(group(1 << 20)).unwrap();
    let (begin, mut entries) = (std::time::Instant::now(), 0);
    while log.positions().durable.is_null() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{entries} entries, none synced");
        put(&log, 1, b"x");
        log.request_write();
        entries += 1;
    }
}

/// Small runs are copied into the open buffer, large ones are shared; here a large one that begins
/// a new segment follows small ones that nobody has taken out of the buffer yet.
#[test]
fn a_large_run_across_segments_after_small_ones_is_found_and_read_entry_by_entry() {
    let (_, a) = fresh(128 << 10);
    let (_, b) = fresh(128 << 10);
    for n in 0..300 {
        put(&a, 1, &body(n, 1000));
    }
    // The replica's flusher must not come in between.
    for _ in 0..4 {
        let next = b.positions().last.next();
        b.append_run(&a.read(next, 1).unwrap().unwrap()).unwrap();
    }
    let large = a.read(Vlsn::new(5), 1 << 20).unwrap().unwrap();
    let bytes: Vec<u8> = large.parts.concat();
    let run = EntryRun::verify(bytes.into(), b.positions().chain(), 1 << 20).unwrap();
    b.append_run(&run).unwrap();
    assert!(b.positions().last_lsn.segment() > 1, "it crosses a border");
    for n in 1..=run.last.sequence() {
        let vlsn = Vlsn::new(n);
        assert_eq!(b.header(vlsn).unwrap(), a.header(vlsn).unwrap(), "entry {vlsn}");
        let read = b.read(vlsn, 1).unwrap().unwrap();
        assert_eq!(read.entries().next().unwrap().body, body(n as u64 - 1, 1000));
    }
    b.sync_now().unwrap();
    let through = run.last.sequence() as usize;
    let first = Vlsn::new(1);
    assert_eq!(bodies(&b, first, 1 << 20), bodies(&a, first, 1 << 20)[..through]);
}
