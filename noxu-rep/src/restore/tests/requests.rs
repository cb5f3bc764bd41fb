//! Requests: what asking for a restore leaves when the power goes.

use noxu_log::env::{OpenMode, Survivors, write_whole};

use super::super::manifest::COMMIT;
use super::super::request::request;
use super::*;

/// A node's directory with what an ended restore may have left: everything but its marker.
fn with_garbage() -> FaultEnv {
    let faulty = FaultEnv::new();
    let garbage = restore_dir(dir());
    faulty.create_dir_all(&garbage).unwrap();
    faulty.sync_dir(Path::new("/")).unwrap();
    faulty.sync_dir(dir()).unwrap();
    write_whole(&faulty, &garbage.join(COMMIT), b"of the last one").unwrap();
    faulty.open(&dir().join("log"), OpenMode::CreateOrOpen).unwrap().sync_data().unwrap();
    faulty.sync_dir(dir()).unwrap();
    faulty
}

fn recovered(faulty: &FaultEnv) -> Recovered {
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    let machine = Machine::open(&env, "/n2-state");
    recover(&env, &machine).unwrap()
}

#[test]
fn a_crash_at_any_call_leaves_a_restore_asked_for_or_none_and_a_second_request_succeeds() {
    for call in 1.. {
        let faulty = with_garbage();
        faulty.crash_at(faulty.calls() + call);
        let asked = request(&faulty, dir());
        if asked.is_ok() && !faulty.has_crashed() {
            assert!(call > 8, "{call} calls are too few for what has to be durable");
            break;
        }
        for survivors in [Survivors::None, Survivors::All] {
            let after = faulty.crash_keeping(survivors);
            let found = recovered(&after);
            assert!(matches!(found, Recovered::Nothing | Recovered::Begun), "{found:?}");
            let is_new = request(&after, dir()).unwrap();
            assert_eq!(is_new, found == Recovered::Nothing, "call {call}, {survivors:?}");
            assert_eq!(recovered(&after), Recovered::Begun, "call {call}, {survivors:?}");
            assert!(after.exists(&dir().join("log")).unwrap(), "call {call}, {survivors:?}");
        }
    }
}

#[test]
fn what_was_asked_for_is_still_asked_for_after_the_power_is_gone() {
    let faulty = with_garbage();
    assert!(request(&faulty, dir()).unwrap());
    assert!(!request(&faulty, dir()).unwrap(), "it was asked for before");
    let after = faulty.crash_keeping(Survivors::None);
    assert_eq!(recovered(&after), Recovered::Begun);
    assert!(!after.exists(&restore_dir(dir()).join(COMMIT)).unwrap(), "of an ended restore");
}
