use std::sync::Arc;

use noxu_log::env::{FaultEnv, Survivors};
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry};
use noxu_util::{GroupId, Term, Vlsn};

use super::*;

const DIR: &str = "/n3";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn open(env: &FaultEnv) -> Result<Log> {
    let config = LogConfig { prefill: false, scrub: None, ..LogConfig::default() };
    Ok(Log::open(Arc::new(env.clone()), dir(), config)?.0)
}

/// A stopped node with a vote, entries, and something of each kind beside them.
fn with_node() -> FaultEnv {
    let faulty = FaultEnv::new();
    faulty.create_dir_all(dir()).unwrap();
    faulty.sync_dir(Path::new("/")).unwrap();
    let log = open(&faulty).unwrap();
    let name = "orders".parse().unwrap();
    log.found(GroupIdentity { id: GroupId::random(), name, segment_bytes: 4096 }).unwrap();
    log.control().update(|control| control.term = Term::new(7)).unwrap();
    for _ in 0..40 {
        let entry = NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &[7; 300]);
        log.append(Term::new(7), &[entry]).unwrap();
    }
    log.sync_now().unwrap();
    log.close().unwrap();
    for extra in ["state", "restore", "set-aside-5"] {
        let path = dir().join(extra);
        faulty.create_dir_all(&path).unwrap();
        faulty.sync_dir(dir()).unwrap();
        noxu_log::env::write_whole(&faulty, &path.join("file"), extra.as_bytes()).unwrap();
    }
    faulty
}

/// Everything of the node is in one directory beside, and another node starts in its place.
fn check_set_aside(env: &FaultEnv, context: &str) {
    let mut names = env.list(dir()).unwrap();
    names.retain(|name| name != LOCK);
    names.sort();
    assert_eq!(names, ["set-aside-5", "set-aside-9"], "{context}");
    let aside = dir().join("set-aside-9");
    let (log, _) = Log::open(Arc::new(env.clone()), &aside, LogConfig::default()).unwrap();
    assert_eq!((log.positions().last, log.control().state().term), (Vlsn::new(40), Term::new(7)));
    log.close().unwrap();
    for extra in ["state", "restore"] {
        assert!(env.exists(&aside.join(extra).join("file")).unwrap(), "{context}: {extra}");
    }
    assert!(env.exists(&dir().join("set-aside-5/file")).unwrap(), "{context}");
    let fresh = open(env).unwrap();
    assert!(fresh.positions().last.is_null() && fresh.group().is_none(), "{context}");
    assert_eq!(fresh.control().state().term, Term::default(), "{context}");
    fresh.close().unwrap();
}

/// Whoever starts a node in what a crash left finds the old node, a new one, or is refused: never one
/// that kept its vote and lost its log.
fn check_start(env: &FaultEnv, context: &str) {
    match open(env) {
        Err(LogError::ControlUnreadable { .. }) => {}
        Err(other) => panic!("{context}: {other}"),
        Ok(log) => {
            let (term, last) = (log.control().state().term, log.positions().last);
            let is_old = (term, last) == (Term::new(7), Vlsn::new(40));
            let is_new = (term, last) == (Term::default(), Vlsn::default());
            assert!(is_old || is_new, "{context}: term {term}, log through {last}");
            if is_new {
                assert!(!env.exists(&dir().join("state")).unwrap(), "{context}: of the old one");
            }
            log.close().unwrap();
        }
    }
}

#[test]
fn a_crash_at_any_call_ends_as_none_if_the_command_is_repeated() {
    for call in 1.. {
        let faulty = with_node();
        faulty.crash_at(faulty.calls() + call);
        let done = Stopped::lock(&faulty, dir()).and_then(|stopped| stopped.set_aside(9));
        if done.is_ok() && !faulty.has_crashed() {
            check_set_aside(&faulty.clone_image(Survivors::None), "no crash");
            assert!(call > 20, "{call} calls are too few for what has to be durable");
            return;
        }
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(call)] {
            let context = format!("call {call}, {survivors:?}");
            check_start(&faulty.crash_keeping(survivors), &context);
            let after = faulty.crash_keeping(survivors);
            let names = after.list(dir()).unwrap();
            if names.iter().any(|name| name == "set-aside-9") {
                check_set_aside(&after, &context);
                continue;
            }
            Stopped::lock(&after, dir()).unwrap().set_aside(9).unwrap();
            assert!(!is_unfinished(&after, dir()).unwrap(), "{context}");
            check_set_aside(&after, &context);
        }
    }
}

#[test]
fn a_node_that_runs_is_not_set_aside() {
    let faulty = with_node();
    let running = open(&faulty).unwrap();
    let refused = Stopped::lock(&faulty, dir()).err();
    assert!(matches!(refused, Some(LogError::Locked { .. })), "{refused:?}");
    running.close().unwrap();
}
