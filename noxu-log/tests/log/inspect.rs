//! Reading a directory for tools: beside a running node, on copies, on damaged files.

use std::ops::ControlFlow;
use std::sync::Arc;

use noxu_log::env::{Env, FaultEnv, OpenMode, Survivors, read_whole};
use noxu_log::inspect::{Ending, Inspection, Walk};
use noxu_log::{LogError, MarkRead};
use noxu_util::{Lsn, NULL_VLSN};

use crate::rig::{append, body, dir, fill, open, segments, vlsn_of};

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
    assert_eq!(found.ending, Ending::Clean);
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
fn every_flipped_byte_is_found_at_its_entry() {
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
            let Ending::Damaged(fault) = &found.ending else { panic!("{name} byte {offset}") };
            assert_eq!(fault.lsn.segment() as usize, at + 1, "{name} byte {offset}: {fault}");
            let begins = u64::from(fault.lsn.offset());
            assert!(begins <= offset && offset < begins + 532, "byte {offset}: {fault}");
            assert_eq!(fault.vlsn, found.end.vlsn.next());
        }
    }
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
    assert_eq!((fault.vlsn, found.end.vlsn), (vlsn_of(31), vlsn_of(30)));
    copy.open(&path, OpenMode::ReadWrite).unwrap().set_len(len - 540).unwrap();
    assert!(matches!(walk(&copy).ending, Ending::Damaged(_)), "the mark speaks of entry 30");
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
        assert!(matches!(found.ending, Ending::Damaged(_)), "{name}: {found:?}");
    }
}

#[test]
fn a_dropped_front_is_no_damage() {
    let (env, log) = running();
    let anchor = log.drop_front(vlsn_of(15), |_| Vec::new()).unwrap();
    assert!(anchor > NULL_VLSN);
    let found = walk(&env);
    assert_eq!((found.begin.1, found.ending), (anchor.next(), Ending::Clean));
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
fn segment_reports_say_what_is_sealed_and_digests_are_compared() {
    let (env, log) = running();
    let sealed = log.sealed_segments();
    let inspection = inspect(&env);
    let (reports, ending) = inspection.segment_reports().unwrap();
    assert_eq!(ending, Ending::Clean);
    assert_eq!(reports.len(), 5);
    for (report, sealed) in reports.iter().zip(&sealed) {
        assert_eq!(report.digest, Some(sealed.digest));
        assert_eq!((report.header.first, report.last.vlsn), (sealed.first, sealed.last));
        let side = dir().join(format!("log/{:010}.nside", sealed.number));
        assert_eq!(report.index_bytes, read_whole(&env, &side).unwrap().len() as u64);
    }
    let open = &reports[sealed.len()..];
    assert!(open.iter().all(|report| report.digest.is_none() && report.index_bytes >= 32));
    assert_eq!(inspection.check_digests().unwrap(), (sealed.len(), Vec::new()));
    env.corrupt(&dir().join("log/0000000001.nlog"), 1000, 1).unwrap();
    assert_eq!(inspection.check_digests().unwrap(), (sealed.len(), vec![1]));
}
