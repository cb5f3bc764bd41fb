//! Reading a directory for tools: beside a running node, on copies, on damaged files.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use noxu_log::env::{
    Env, FaultEnv, MemoryEnv, OpenMode, RealEnv, Survivors, read_whole, write_whole,
};
use noxu_log::inspect::{Ending, Inspection, SideState, Walk};
use noxu_log::segment::side_file::SideFile;
use noxu_log::{Cut, Log, LogConfig, LogError, MarkRead};
use noxu_util::{Fingerprint, Lsn, NULL_VLSN, Vlsn};

use crate::rig::{append, body, dir, fill, group, open, quiet, segments, vlsn_of};

fn inspect(env: &FaultEnv) -> Inspection {
    Inspection::open(Arc::new(env.clone()), dir()).unwrap()
}

fn walk(env: &FaultEnv) -> Walk {
    inspect(env).walk(vlsn_of(1), |_, _| ControlFlow::Continue(())).unwrap()
}

/// 30 entries over five segments, two of them sealed.
fn running() -> (FaultEnv, noxu_log::Log) {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    log.seal_through(vlsn_of(15)).unwrap();
    (env, log)
}

#[test]
fn a_running_log_is_walked_without_its_lock_and_without_a_write() {
    let (env, log) = running();
    let before = env.calls();
    let found = walk(&env);
    assert_eq!((&found.faults[..], &found.ending), (&[][..], &Ending::Clean));
    assert_eq!((found.entries, found.begin), (30, (Lsn::new(1, 64), vlsn_of(1))));
    assert_eq!(found.end.fingerprint, log.positions().last_fingerprint);
    let reads = ["open", "read_at", "len", "list", "exists"];
    for call in env.trace().into_iter().filter(|call| call.number > before) {
        assert!(reads.contains(&call.function), "{call}");
    }
}

#[test]
fn a_walk_starts_and_stops_where_it_is_told() {
    let (env, log) = running();
    for from in 1..=30 {
        let mut seen = Vec::new();
        let found = inspect(&env).walk(vlsn_of(from), |lsn, entry| {
            assert_eq!(log.header(entry.header.vlsn).unwrap().unwrap().1, lsn);
            assert_eq!(entry.body, body(entry.header.vlsn.sequence() as u64, 500));
            seen.push(entry.header.vlsn.sequence());
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let ending = found.unwrap().ending;
        assert_eq!(seen, (from..=30).take(3).collect::<Vec<_>>());
        assert_eq!(ending, if from > 28 { Ending::Clean } else { Ending::Stopped });
    }
}

#[test]
fn every_flipped_byte_is_found_at_its_entry_and_what_lies_behind_is_read() {
    let (env, log) = running();
    log.close().unwrap();
    drop(log);
    for (at, name) in segments(&env).iter().enumerate() {
        let path = dir().join("log").join(name);
        let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
        for offset in (0..len).step_by(17) {
            let after = env.clone_image(Survivors::None);
            after.corrupt(&path, offset, 1).unwrap();
            let found = walk(&after);
            let [fault] = &found.faults[..] else { panic!("{name} byte {offset}: {found:?}") };
            assert_eq!(fault.lsn.segment() as usize, at + 1, "{name} byte {offset}: {fault}");
            let begins = u64::from(fault.lsn.offset());
            assert!(begins <= offset && offset < begins + 532, "byte {offset}: {fault}");
            let lost = match fault.missing {
                Some((first, last)) => last.since(first) + 1,
                None => 0,
            };
            assert!(
                found.entries + lost == 30,
                "{name} byte {offset}: {} and {fault:?}",
                found.entries
            );
            // Without an entry's own length, what follows is found at the next sample of the index.
            assert!(lost <= 7, "{name} byte {offset}: {fault:?}");
            if offset < 64 {
                assert_eq!(lost, 0, "a header says nothing that the rest does not");
            }
            assert_eq!(found.ending, Ending::Clean, "{name} byte {offset}");
        }
    }
}

#[test]
fn all_damage_is_listed_in_the_order_of_the_log() {
    let (env, log) = running();
    let place = |vlsn: i64| log.header(vlsn_of(vlsn)).unwrap().unwrap().1;
    let places = [3, 12, 22, 29].map(place);
    log.close().unwrap();
    drop(log);
    let path = |number: u32| dir().join("log").join(noxu_log::segment::name::segment_name(number));
    for lsn in places {
        env.corrupt(&path(lsn.segment()), u64::from(lsn.offset()) + 40, 1).unwrap();
    }
    env.corrupt(&path(4), 20, 1).unwrap();
    let mut seen = Vec::new();
    let found = inspect(&env)
        .walk(vlsn_of(1), |_, entry| {
            seen.push(entry.header.vlsn.sequence());
            ControlFlow::Continue(())
        })
        .unwrap();
    let expected: Vec<i64> = (1..=30).filter(|vlsn| ![3, 12, 22, 29].contains(vlsn)).collect();
    assert_eq!(seen, expected);
    let mut found: Vec<Lsn> = found.faults.iter().map(|fault| fault.lsn).collect();
    let mut wanted: Vec<Lsn> = places.into();
    wanted.push(Lsn::new(4, 0));
    wanted.sort();
    assert!(found.is_sorted());
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn a_torn_end_beyond_the_mark_is_told_from_damage() {
    let (env, log) = running();
    append(&log, 1, &body(31, 500)).unwrap();
    log.write_now().unwrap();
    // What a copy of the directory holds that was taken in the middle of a write.
    let path = dir().join("log").join(segments(&env).last().unwrap());
    let len = env.open(&path, OpenMode::Read).unwrap().len().unwrap();
    let copy = env.clone_image(Survivors::All);
    copy.open(&path, OpenMode::ReadWrite).unwrap().set_len(len - 7).unwrap();
    let found = walk(&copy);
    let Ending::Torn(fault) = found.ending else { panic!("{found:?}") };
    assert_eq!((fault.missing, found.end.vlsn), (Some((vlsn_of(31), vlsn_of(31))), vlsn_of(30)));
    assert_eq!(found.faults, []);
    copy.open(&path, OpenMode::ReadWrite).unwrap().set_len(len - 540).unwrap();
    let found = walk(&copy);
    assert_eq!(found.faults[0].missing, Some((vlsn_of(30), vlsn_of(30))), "the mark speaks of it");
    // A copy's mark may be newer than its segments.
    let copy = inspect(&copy).of_a_copy();
    let found = copy.walk(vlsn_of(1), |_, _| ControlFlow::Continue(())).unwrap();
    assert!(matches!(found.ending, Ending::Torn(_)) && found.faults.is_empty());
}

#[test]
fn segments_filled_ahead_and_cut_are_both_clean() {
    let (env, log) = running();
    drop(log);
    for name in segments(&env).iter().skip(2) {
        let path = dir().join("log").join(name);
        env.open(&path, OpenMode::ReadWrite).unwrap().allocate(4096).unwrap();
    }
    assert_eq!(walk(&env).ending, Ending::Clean);
    assert_eq!(walk(&env).entries, 30);
}

#[test]
fn a_missing_segment_is_damage_wherever_it_was() {
    let (env, log) = running();
    log.close().unwrap();
    drop(log);
    for name in segments(&env) {
        let after = env.clone_image(Survivors::None);
        after.remove(&dir().join("log").join(&name)).unwrap();
        let found = walk(&after);
        let [fault] = &found.faults[..] else { panic!("{name}: {found:?}") };
        let (first, last) = fault.missing.unwrap();
        assert_eq!(found.entries + last.since(first) + 1, 30, "{name}: {fault:?}");
    }
}

#[test]
fn a_dropped_front_is_no_damage() {
    let (env, log) = running();
    let anchor = log.drop_front(vlsn_of(15), |_| Vec::new()).unwrap();
    assert!(anchor > NULL_VLSN);
    let found = walk(&env);
    assert_eq!((found.begin.1, found.ending), (anchor.next(), Ending::Clean));
    assert_eq!(found.faults, []);
}

#[test]
fn a_folder_of_segments_and_a_single_segment_are_enough() {
    let (env, log) = running();
    drop(log);
    let folder = dir().join("log");
    let env: Arc<dyn Env> = Arc::new(env);
    let all = Inspection::open(Arc::clone(&env), &folder).unwrap();
    assert!(all.control.is_none() && all.mark == MarkRead::Absent);
    let found = all.walk(vlsn_of(1), |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((found.entries, found.ending), (30, Ending::Clean));
    let one =
        Inspection::open_segment_file(Arc::clone(&env), &folder.join("0000000002.nlog")).unwrap();
    let found = one.walk(vlsn_of(1), |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((found.begin.1, found.entries), (vlsn_of(8), 7));
    let error = Inspection::open(env, &dir().join("lost")).unwrap_err();
    assert!(matches!(error, LogError::NoLog { .. }), "{error}");
}

#[test]
fn reports_say_what_is_sealed_and_verifying_compares_digests() {
    let (env, log) = running();
    let sealed = log.sealed_segments();
    let report = inspect(&env).report().unwrap();
    assert_eq!((report.faults.len(), report.segments.len()), (0, 5));
    for (report, sealed) in report.segments.iter().zip(&sealed) {
        assert_eq!(report.digest, Some(sealed.digest));
        assert_eq!((report.header.first, report.last.vlsn), (sealed.first, sealed.last));
        assert_eq!(report.side, SideState::Valid);
    }
    let entries: u64 = report.segments.iter().map(|segment| segment.entries).sum();
    assert_eq!(entries, 30);
    assert!(report.segments.iter().all(|segment| segment.index_bytes > 0));
    assert_eq!(report.segments[0].terms, [(noxu_util::Term::new(1), vlsn_of(1))]);
    let open = &report.segments[sealed.len()..];
    assert!(open.iter().all(|report| report.digest.is_none() && report.side == SideState::Missing));
    let mut told = Vec::new();
    let found = inspect(&env).verify(|done, all| told.push((done, all))).unwrap();
    assert_eq!((found.digests, found.faults.len(), found.entries), (sealed.len(), 0, 30));
    assert!(told.is_sorted() && told.last().is_some_and(|(done, all)| done == all), "{told:?}");
}

#[test]
fn a_side_file_that_is_bad_or_of_other_bytes_is_listed_and_takes_nothing_away() {
    let (env, log) = running();
    log.close().unwrap();
    drop(log);
    let path = dir().join("log/0000000002.nside");
    let right = read_whole(&env, &path).unwrap();
    let mut other = SideFile::decode(&right).unwrap();
    other.digests.segment = blake3::hash(b"other");
    let mut flipped = right.clone();
    flipped[100] ^= 1;
    for bytes in [other.encode(), flipped, Vec::new()] {
        write_whole(&env, &path, &bytes).unwrap();
        let found = inspect(&env).verify(|_, _| {}).unwrap();
        let [fault] = &found.faults[..] else { panic!("{found:?}") };
        assert_eq!((fault.lsn, fault.missing), (Lsn::new(2, 0), None), "{fault}");
        assert_eq!((found.entries, found.ending), (30, Ending::Clean));
        assert!(matches!(found.segments[1].side, SideState::Bad(_)));
        assert_eq!(inspect(&env).report().unwrap().segments.len(), 5);
    }
    env.remove(&path).unwrap();
    let found = inspect(&env).verify(|_, _| {}).unwrap();
    assert_eq!((found.faults.len(), found.digests), (0, 1), "it may be missing");
}

#[test]
fn a_truncation_that_a_crash_cut_short_is_no_damage() {
    for number in 1.. {
        let (env, log) = running();
        env.crash_at(env.calls() + number);
        let _ = log.truncate_after(vlsn_of(19), Cut::Discard);
        let crashed = env.has_crashed();
        drop(log);
        let after = env.crash(number);
        let found = walk(&after);
        assert_eq!(found.faults, [], "call {number}");
        assert!(found.entries >= 19, "call {number}: {found:?}");
        if !crashed {
            assert_eq!((found.entries, found.ending), (19, Ending::Clean));
            break;
        }
    }
}

#[test]
fn a_walk_goes_on_over_whatever_happens_to_the_log_in_the_middle_of_it() {
    type Happens<'a> = &'a dyn Fn(&Log);
    let happens: [(&str, i64, Happens<'_>); 5] = [
        ("entries behind the walk are cut", 25, &|log| {
            log.truncate_after(vlsn_of(27), Cut::Discard).unwrap();
        }),
        ("entries are cut in its segment", 20, &|log| {
            log.truncate_after(vlsn_of(18), Cut::Discard).unwrap();
            fill(log, 19, 26, 400);
            log.sync_now().unwrap();
        }),
        ("entries are cut two segments back", 27, &|log| {
            log.truncate_after(vlsn_of(16), Cut::Discard).unwrap();
            fill(log, 17, 40, 300);
            log.sync_now().unwrap();
        }),
        ("the front goes, with what is being read", 3, &|log| {
            log.drop_front(vlsn_of(15), |_| Vec::new()).unwrap();
        }),
        ("it grows, rolls and is sealed", 16, &|log| {
            fill(log, 31, 60, 500);
            log.sync_now().unwrap();
            log.seal_through(vlsn_of(60)).unwrap();
        }),
    ];
    for (what, when, happen) in happens {
        for verifying in [false, true] {
            let (env, log) = running();
            let mut done = false;
            let mut once = |vlsn: i64| {
                if vlsn >= when && !std::mem::replace(&mut done, true) {
                    happen(&log);
                }
            };
            let inspection = inspect(&env);
            let found = if verifying {
                // Told once for each segment of this size.
                inspection.verify(|bytes, _| once(bytes as i64 / 550)).unwrap()
            } else {
                let walk = inspection.walk(vlsn_of(1), |_, entry| {
                    once(entry.header.vlsn.sequence());
                    ControlFlow::Continue(())
                });
                walk.unwrap()
            };
            assert!(done, "{what}");
            assert_eq!((&found.faults[..], &found.ending), (&[][..], &Ending::Clean), "{what}");
            let positions = log.positions();
            let end = log.header(found.end.vlsn).unwrap().unwrap().0;
            assert_eq!(end.fingerprint, found.end.fingerprint, "{what}: an entry of the log");
            assert!(found.end.vlsn == positions.last || found.end.vlsn >= vlsn_of(28), "{what}");
        }
    }
}

/// Appends, rolls, seals, drops and truncates as fast as it goes, until told to stop.
fn load(log: &Log, stop: &AtomicBool, seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cuts = 0;
    let mut tag = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..random.u32(1..30) {
            tag += 1;
            append(log, 1, &body(tag, random.usize(0..900))).unwrap();
        }
        match random.u8(0..10) {
            0..=3 => drop(log.sync_now().unwrap()),
            4..=6 => log.write_now().unwrap(),
            _ => {}
        }
        let positions = log.positions();
        let (last, anchor) = (positions.last.sequence(), positions.anchor.vlsn.sequence());
        if random.u8(0..10) < 2 {
            log.seal_through(vlsn_of((last - random.i64(30..90)).max(anchor))).unwrap();
        }
        if random.u8(0..10) < 2 {
            let through = random.i64(anchor..=last);
            log.drop_front(vlsn_of(through), |_| Vec::new()).unwrap();
        }
        if random.u8(0..10) < 2 {
            // Below what is settled it is refused.
            let after = vlsn_of(last - random.i64(0..20));
            cuts += u64::from(log.truncate_after(after, Cut::Discard).is_ok());
        }
    }
    cuts
}

#[test]
fn a_log_under_load_that_is_cut_at_both_ends_is_never_called_damaged() {
    let temp = tempfile::tempdir().unwrap();
    inspect_under_load(&(Arc::new(RealEnv::new()) as Arc<dyn Env>), temp.path(), 2);
}

#[test]
fn a_log_that_is_cut_thousands_of_times_is_never_called_damaged() {
    inspect_under_load(&(Arc::new(MemoryEnv::new()) as Arc<dyn Env>), dir(), 100);
}

/// Stops the load also if an assertion fails, so that the test ends.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn inspect_under_load(env: &Arc<dyn Env>, path: &Path, least_cuts: u64) {
    let config = LogConfig { prefill: true, ..quiet() };
    let (log, _) = Log::open(Arc::clone(env), path, config).unwrap();
    log.found(group()).unwrap();
    fill(&log, 1, 300, 300);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&log, &stop, 7));
        let _stop = StopWhenDropped(&stop);
        let (mut entries, mut restarts, mut whole) = (0, 0, 0);
        let until = Instant::now() + Duration::from_secs(3);
        for round in 0.. {
            if Instant::now() > until {
                break;
            }
            let inspection = Inspection::open(Arc::clone(env), path).unwrap();
            let mut last: Option<(Vlsn, Fingerprint)> = None;
            let found = match round % 3 {
                0 => inspection.verify(|_, _| {}).unwrap(),
                1 => inspection.report().unwrap(),
                _ => inspection
                    .walk(vlsn_of(1), |lsn, entry| {
                        let header = &entry.header;
                        // Onward, or back to the beginning of a segment that was cut.
                        if let Some((vlsn, fingerprint)) = last
                            && header.vlsn == vlsn
                            && lsn.offset() != noxu_log::segment::SEGMENT_HEADER_BYTES
                        {
                            assert_ne!(header.fingerprint, fingerprint, "visited twice");
                        }
                        last = Some((header.vlsn, header.fingerprint));
                        ControlFlow::Continue(())
                    })
                    .unwrap(),
            };
            assert_eq!(found.faults, [], "round {round}: {:?}", found.ending);
            assert!(!matches!(found.ending, Ending::Torn(_)), "{:?}", found.ending);
            assert!(inspection.control.as_ref().is_some_and(Result::is_ok));
            entries += found.entries;
            restarts += u64::from(found.restarts);
            whole += u64::from(found.ending == Ending::Clean);
        }
        stop.store(true, Ordering::Relaxed);
        let cuts = load.join().unwrap();
        println!("{entries} entries, {restarts} restarts, {whole} to the end, {cuts} cuts");
        assert!(entries > 1000 && whole > 3 && cuts >= least_cuts, "{entries} {whole} {cuts}");
    });
    // Standing still, it is what it is.
    log.sync_now().unwrap();
    let inspection = Inspection::open(Arc::clone(env), path).unwrap();
    let found = inspection.verify(|_, _| {}).unwrap();
    assert_eq!((found.ending, found.restarts), (Ending::Clean, 0));
    assert_eq!(found.end.fingerprint, log.positions().last_fingerprint);
}
