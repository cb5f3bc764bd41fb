//! The checklist that storages of replicated logs are held against, as far as it concerns the log.
//!
//! initial state, state with entries, state after reopening, vote saved and read, read ranges (empty,
//! inner, limited by bytes, beyond the end), new entries seen at once, purge (up to nothing, the
//! middle, all that may go), last position after it, truncation (after nothing, the middle, the last,
//! beyond), appends (one, many, across segments): each has its test here. What concerns snapshots and
//! the state machine is in noxu-kv and noxu-rep.

use noxu_log::env::{FaultEnv, MemoryEnv, Survivors};
use noxu_log::{Cut, LogConfig, LogError, Mutant};
use noxu_util::{Lsn, NULL_LSN, NULL_VLSN, Term};

use crate::rig::{append, bodies, body, dir, fill, group, open, quiet, try_open, vlsn_of};

#[test]
fn initial_state_is_empty() {
    let log = open(&MemoryEnv::new());
    let positions = log.positions();
    assert!(positions.is_empty());
    assert_eq!(
        (positions.first, positions.last, positions.durable),
        (NULL_VLSN, NULL_VLSN, NULL_VLSN)
    );
    assert_eq!((positions.last_sync, positions.last_txn_end), (NULL_VLSN, NULL_VLSN));
    assert_eq!(positions.last_lsn, NULL_LSN);
    assert_eq!(log.term_table(), []);
    assert!(log.read(vlsn_of(1), 100).unwrap().is_none());
    assert_eq!(log.control().state().vote, None);
}

#[test]
fn a_log_that_was_not_founded_takes_no_entries() {
    let (log, _) =
        noxu_log::Log::open(std::sync::Arc::new(MemoryEnv::new()), dir(), quiet()).unwrap();
    assert!(matches!(append(&log, 1, b"x"), Err(LogError::NotFounded { .. })));
    log.found(group()).unwrap();
    log.found(group()).unwrap();
    let other = noxu_log::GroupIdentity { name: "other".parse().unwrap(), ..group() };
    assert!(matches!(log.found(other), Err(LogError::AlreadyFounded { .. })));
    append(&log, 1, b"x").unwrap();
}

#[test]
fn state_with_entries_and_after_reopening_is_the_same() {
    let env = MemoryEnv::new();
    let log = open(&env);
    fill(&log, 1, 20, 600);
    append(&log, 3, &body(21, 5)).unwrap();
    log.sync_now().unwrap();
    let before = (log.positions(), log.term_table(), bodies(&log));
    assert_eq!((before.0.first, before.0.last), (vlsn_of(1), vlsn_of(21)));
    assert_eq!(before.1, [(Term::new(1), vlsn_of(1)), (Term::new(3), vlsn_of(21))]);
    log.close().unwrap();
    drop(log);
    let log = open(&env);
    assert_eq!((log.positions(), log.term_table(), bodies(&log)), before);
}

#[test]
fn ranges_are_read_empty_inner_limited_by_bytes_and_beyond_the_end() {
    let log = try_open(&MemoryEnv::new(), LogConfig { tail_bytes: 0, ..quiet() }).unwrap();
    assert!(log.read(vlsn_of(1), 100).unwrap().is_none(), "an empty log");
    assert!(log.read(vlsn_of(9), 100).unwrap().is_none(), "beyond an empty log");
    assert_eq!(log.header(vlsn_of(1)).unwrap(), None);
    fill(&log, 1, 20, 100);
    // In memory, then in files.
    for written in [false, true] {
        if written {
            log.sync_now().unwrap();
        }
        let entry = 32 + 100;
        for (from, max_bytes, last) in [
            (1, usize::MAX >> 1, 20),
            (7, 0, 7),
            (7, entry, 7),
            (7, 2 * entry - 1, 7),
            (7, 2 * entry, 8),
            (7, 5 * entry + 1, 11),
            (20, usize::MAX >> 1, 20),
        ] {
            let run = log.read(vlsn_of(from), max_bytes).unwrap().unwrap();
            assert_eq!((run.first, run.last), (vlsn_of(from), vlsn_of(last)), "{max_bytes}");
        }
        assert!(log.read(vlsn_of(21), 100).unwrap().is_none(), "beyond the end");
        assert!(log.read(vlsn_of(1 << 40), 100).unwrap().is_none(), "far beyond the end");
    }
    // Nobody waits for a write to see what was appended.
    append(&log, 1, b"new").unwrap();
    let run = log.read(vlsn_of(21), 100).unwrap().unwrap();
    assert_eq!(run.entries().next().unwrap().body, b"new");
}

#[test]
fn a_vote_is_saved_and_read() {
    let env = MemoryEnv::new();
    let log = open(&env);
    log.control()
        .update(|control| {
            control.term = Term::new(9);
            control.vote = Some("n2".parse().unwrap());
        })
        .unwrap();
    drop(log);
    let state = open(&env).control().state();
    assert_eq!((state.term, state.vote), (Term::new(9), Some("n2".parse().unwrap())));
}

#[test]
fn the_front_is_purged_up_to_nothing_the_middle_and_all_that_is_sealed() {
    let env = MemoryEnv::new();
    let log = open(&env);
    fill(&log, 1, 30, 500);
    log.sync_now().unwrap();
    assert_eq!(log.drop_front(vlsn_of(30), |_| Vec::new()).unwrap(), NULL_VLSN, "nothing sealed");
    log.seal_through(vlsn_of(30)).unwrap();
    let sealed = log.sealed_segments();
    assert!(sealed.len() >= 3);
    assert_eq!(log.drop_front(NULL_VLSN, |_| Vec::new()).unwrap(), NULL_VLSN);
    let middle = sealed[1].last;
    let anchor = log.drop_front(sealed[2].last.prev(), |_| b"config".to_vec()).unwrap();
    assert_eq!(anchor, middle);
    assert_eq!(log.positions().anchor.group_config, b"config"[..]);
    assert_eq!(log.positions().anchor.next_lsn, Lsn::new(3, 64));
    let all = log.drop_front(vlsn_of(30), |_| Vec::new()).unwrap();
    assert_eq!(all, sealed.last().unwrap().last);
    let before = (log.positions(), log.term_table());
    assert_eq!(before.0.first, all.next());
    assert_eq!(before.1, [(Term::new(1), all.next())]);
    log.close().unwrap();
    drop(log);
    let log = open(&env);
    assert_eq!((log.positions(), log.term_table()), before);
    assert_eq!(bodies(&log).len(), 30 - all.sequence() as usize);
}

#[test]
fn a_log_is_truncated_after_nothing_the_middle_the_last_and_beyond() {
    for (keep, left) in [(0, 0), (7, 7), (12, 12), (13, 13), (29, 29), (30, 30), (31, 30)] {
        for reopen in [false, true] {
            let env = FaultEnv::new();
            let mut log = open(&env);
            fill(&log, 1, 30, 500);
            log.truncate_after(vlsn_of(keep), Cut::Discard).unwrap();
            if reopen {
                drop(log);
                log = open(&env);
            }
            assert_eq!(log.positions().last, vlsn_of(left), "after {keep}");
            assert_eq!(bodies(&log).len() as i64, left);
            append(&log, 2, &body(99, 500)).unwrap();
            log.sync_now().unwrap();
            assert_eq!(bodies(&log).last().unwrap(), &body(99, 500));
            let fresh = open(&env.clone_image(Survivors::Random(keep as u64)));
            assert_eq!(bodies(&fresh), bodies(&log));
        }
    }
}

#[test]
fn truncation_of_unwritten_entries_leaves_no_trace() {
    let env = MemoryEnv::new();
    let log = open(&env);
    fill(&log, 1, 3, 100);
    log.sync_now().unwrap();
    fill(&log, 4, 20, 400);
    log.truncate_after(vlsn_of(3), Cut::Discard).unwrap();
    append(&log, 2, b"new").unwrap();
    log.close().unwrap();
    drop(log);
    assert_eq!(bodies(&open(&env))[3], b"new");
}

#[test]
fn appends_of_one_many_and_across_segments_are_dense() {
    use noxu_log::{EntryFlags, EntryKind, NewEntry};
    let log = open(&MemoryEnv::new());
    let bodies_of = |n: usize| (0..n).map(|i| body(i as u64, 900)).collect::<Vec<_>>();
    let mut next = vlsn_of(1);
    for count in [1, 3, 20] {
        let bodies = bodies_of(count);
        let entries: Vec<_> = bodies
            .iter()
            .map(|body| NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body))
            .collect();
        let appended = log.append(Term::new(1), &entries).unwrap();
        assert_eq!((appended.first, appended.last), (next, next.plus(count as u64 - 1)));
        next = appended.last.next();
    }
    assert!(log.positions().last_lsn.segment() >= 5);
}

#[test]
fn a_copy_of_the_runs_is_the_same_log_byte_for_byte() {
    for max_bytes in [1, 700, 1 << 20] {
        let (env, copy_env) = (MemoryEnv::new(), MemoryEnv::new());
        let (log, copy) = (open(&env), open(&copy_env));
        for vlsn in 1..=40u64 {
            append(&log, 1 + vlsn as u32 / 10, &body(vlsn, vlsn as usize * 97 % 1900)).unwrap();
        }
        append(&log, 9, &body(41, 9000)).unwrap();
        append(&log, 9, &body(42, 9)).unwrap();
        while let Some(run) = log.read(copy.positions().last.next(), max_bytes).unwrap() {
            copy.append_run(&run).unwrap();
        }
        log.sync_now().unwrap();
        copy.sync_now().unwrap();
        assert_eq!(copy.positions().last_fingerprint, log.positions().last_fingerprint);
        for log in [&log, &copy] {
            log.seal_through(vlsn_of(42)).unwrap();
        }
        assert_eq!(log.sealed_segments(), copy.sealed_segments());
        log.close().unwrap();
        copy.close().unwrap();
        let names = noxu_log::env::Env::list(&env, &dir().join("log")).unwrap();
        assert_eq!(names, noxu_log::env::Env::list(&copy_env, &dir().join("log")).unwrap());
        for name in names {
            let path = dir().join("log").join(&name);
            let bytes = noxu_log::env::read_whole(&env, &path).unwrap();
            assert!(bytes == noxu_log::env::read_whole(&copy_env, &path).unwrap(), "{name}");
        }
    }
}

#[test]
fn a_run_that_does_not_continue_the_log_is_refused() {
    let log = open(&MemoryEnv::new());
    fill(&log, 1, 5, 50);
    let env = MemoryEnv::new();
    let other = open(&env);
    let run = log.read(vlsn_of(3), 1000).unwrap().unwrap();
    assert!(matches!(other.append_run(&run), Err(LogError::Gap { .. })));
    append(&other, 1, b"another history").unwrap();
    append(&other, 1, b"another history").unwrap();
    assert!(matches!(other.append_run(&run), Err(LogError::ChainMismatch { .. })));
    assert_eq!(other.positions().last, vlsn_of(2));

    // Taken all the same, it is found when the log is opened.
    Mutant::with(Some(Mutant::RunNotChained), || other.append_run(&run)).unwrap();
    other.sync_now().unwrap();
    other.close().unwrap();
    drop(other);
    let error = try_open(&env, quiet()).unwrap_err();
    assert!(matches!(error, LogError::ChainMismatch { vlsn, .. } if vlsn == vlsn_of(3)), "{error}");
}

#[test]
fn a_directory_is_open_only_once() {
    let env = MemoryEnv::new();
    let log = open(&env);
    let error = try_open(&env, quiet()).unwrap_err();
    assert!(matches!(error, LogError::Locked { .. }), "{error}");
    drop(log);
    open(&env);
}

#[test]
fn too_large_a_body_is_refused_and_appends_nothing() {
    let config = LogConfig { max_body_bytes: 1000, ..quiet() };
    let log = try_open(&MemoryEnv::new(), config).unwrap();
    let error = append(&log, 1, &[0; 1001]).unwrap_err();
    assert!(matches!(error, LogError::TooLarge { found: 1001, limit: 1000, .. }), "{error}");
    assert!(log.positions().is_empty());
    append(&log, 1, &[0; 1000]).unwrap();
}
