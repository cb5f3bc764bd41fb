//! What the fault environment promises the tests that use it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::env::conformance;

fn create(env: &FaultEnv, path: &str) -> Arc<dyn EnvFile> {
    env.open(Path::new(path), OpenMode::CreateNew).unwrap()
}

fn create_durable(env: &FaultEnv, path: &str, bytes: &[u8]) -> Arc<dyn EnvFile> {
    let file = create(env, path);
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync_data().unwrap();
    env.sync_dir(Path::new("")).unwrap();
    file
}

fn content(env: &FaultEnv, path: &str) -> Option<Vec<u8>> {
    let file = env.open(Path::new(path), OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn it_does_what_every_environment_does() {
    conformance::check(&FaultEnv::new(), Path::new("/"));
    conformance::check(&FaultEnv::new(), Path::new(""));
}

#[test]
fn what_was_synced_survives_every_crash() {
    let env = FaultEnv::new();
    create_durable(&env, "f", &[7; 1300]);
    for seed in 0..50 {
        assert_eq!(content(&env.crash(seed), "f"), Some(vec![7; 1300]));
    }
}

#[test]
fn a_crash_leaves_any_subset_of_the_unsynced_sectors() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", &[0; 3 * 512]);
    file.write_at(&[IoSlice::new(&[1; 3 * 512])], 0).unwrap();
    let subsets: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let bytes = content(&env.crash(seed), "f").unwrap();
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|b| *b == sector[0]), "a sector is never torn");
            }
            bytes.into_iter().step_by(512).collect()
        })
        .collect();
    assert_eq!(subsets.len(), 8, "{subsets:?}");
    assert_eq!(content(&env.crash_keeping(Survivors::None), "f"), Some(vec![0; 3 * 512]));
    assert_eq!(content(&env.crash_keeping(Survivors::All), "f"), Some(vec![1; 3 * 512]));
}

#[test]
fn a_sector_written_twice_may_survive_in_either_version() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"0");
    file.write_at(&[IoSlice::new(b"1")], 0).unwrap();
    file.write_at(&[IoSlice::new(b"2")], 0).unwrap();
    let seen: BTreeSet<_> = (0..100).map(|seed| content(&env.crash(seed), "f").unwrap()).collect();
    assert_eq!(seen, BTreeSet::from([b"0".to_vec(), b"1".to_vec(), b"2".to_vec()]));
}

#[test]
fn an_unsynced_cut_may_be_undone_and_a_synced_one_never() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", &[7; 2000]);
    file.set_len(100).unwrap();
    let lengths: BTreeSet<_> =
        (0..50).map(|seed| content(&env.crash(seed), "f").unwrap().len()).collect();
    assert_eq!(lengths, BTreeSet::from([100, 2000]));
    let env = env.crash_keeping(Survivors::All);
    let file = env.open(Path::new("f"), OpenMode::ReadWrite).unwrap();
    file.set_len(2000).unwrap();
    file.sync_data().unwrap();
    let bytes = content(&env.crash_keeping(Survivors::None), "f").unwrap();
    assert_eq!(bytes[..100], [7; 100]);
    assert_eq!(bytes[100..], [0; 1900]);
}

#[test]
fn names_are_durable_only_after_their_directory_was_synced() {
    let env = FaultEnv::new();
    create_durable(&env, "old", b"old");
    create(&env, "new").sync_data().unwrap();
    env.remove(Path::new("old")).unwrap();
    let seen: BTreeSet<_> = (0..50)
        .map(|seed| {
            let after = env.crash(seed);
            (content(&after, "old").is_some(), content(&after, "new").is_some())
        })
        .collect();
    assert_eq!(seen.len(), 4, "{seen:?}");
    let env = env.crash_keeping(Survivors::All);
    for seed in 0..50 {
        let after = env.crash(seed);
        assert_eq!((content(&after, "old"), content(&after, "new")), (None, Some(vec![])));
    }
}

#[test]
fn a_rename_over_a_file_leaves_one_of_the_two_in_every_crash() {
    let env = FaultEnv::new();
    create_durable(&env, "control", b"old");
    create_durable(&env, "temp", b"new");
    env.rename(Path::new("temp"), Path::new("control")).unwrap();
    let seen: BTreeSet<_> = (0..50)
        .map(|seed| {
            let after = env.clone_image(Survivors::Random(seed));
            (content(&after, "control").unwrap(), content(&after, "temp"))
        })
        .collect();
    assert_eq!(
        seen,
        BTreeSet::from([(b"old".to_vec(), Some(b"new".to_vec())), (b"new".to_vec(), None)])
    );
    env.sync_dir(Path::new("")).unwrap();
    for seed in 0..50 {
        assert_eq!(
            content(&env.clone_image(Survivors::Random(seed)), "control"),
            Some(b"new".to_vec())
        );
    }
}

#[test]
fn a_move_between_directories_never_loses_the_file() {
    let env = FaultEnv::new();
    env.create_dir_all(Path::new("a")).unwrap();
    env.create_dir_all(Path::new("b")).unwrap();
    create(&env, "a/f");
    env.sync_dir(Path::new("a")).unwrap();
    env.rename(Path::new("a/f"), Path::new("b/f")).unwrap();
    env.sync_dir(Path::new("b")).unwrap();
    let mut old_name_came_back = false;
    for seed in 0..50 {
        let after = env.crash(seed);
        assert!(after.exists(Path::new("b/f")).unwrap());
        old_name_came_back |= after.exists(Path::new("a/f")).unwrap();
    }
    assert!(old_name_came_back);
}

#[test]
fn the_chosen_call_fails_and_no_other() {
    let env = FaultEnv::new();
    let file = create(&env, "f");
    env.fail_at(env.calls() + 2, Fault::NO_SPACE);
    file.write_at(&[IoSlice::new(b"ab")], 0).unwrap();
    let error = file.write_at(&[IoSlice::new(b"cd")], 2).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(content(&env, "f"), Some(b"abc".to_vec()), "a failed write got half its way");
    file.write_at(&[IoSlice::new(b"cd")], 2).unwrap();
    env.fail_next("sync_data", Fault::IO);
    file.write_at(&[IoSlice::new(b"e")], 4).unwrap();
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    let trace: Vec<_> = env.trace().into_iter().map(|call| call.function).collect();
    assert_eq!(trace[..3], ["open", "write_at", "write_at"]);
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    file.write_at(&[IoSlice::new(b"new")], 0).unwrap();
    env.fail_next("sync_data", Fault::IO);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(content(&env, "f"), Some(b"new".to_vec()));
    let after = env.crash_keeping(Survivors::None);
    assert_eq!(content(&after, "f"), Some(b"old".to_vec()));
}

#[test]
fn a_lost_sync_succeeds_and_saves_nothing() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    file.write_at(&[IoSlice::new(b"new")], 0).unwrap();
    env.fail_next("sync_data", Fault::LostSync);
    file.sync_data().unwrap();
    let after = env.crash_keeping(Survivors::None);
    assert_eq!(content(&after, "f"), Some(b"old".to_vec()));
}

#[test]
fn a_crash_in_a_call_stops_it_and_every_later_one() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    env.crash_at(env.calls() + 1);
    assert!(file.write_at(&[IoSlice::new(b"new")], 0).is_err());
    assert!(env.has_crashed());
    assert!(file.sync_data().is_err());
    assert!(env.open(Path::new("f"), OpenMode::Read).is_err());
    let seen: BTreeSet<_> = (0..50).map(|seed| content(&env.crash(seed), "f").unwrap()).collect();
    assert_eq!(seen, BTreeSet::from([b"old".to_vec(), b"new".to_vec()]));
}

#[test]
fn a_full_disk_takes_overwrites_but_nothing_new_until_space_returns() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"12");
    env.set_full(true);
    file.write_at(&[IoSlice::new(b"x")], 0).unwrap();
    for error in [
        file.write_at(&[IoSlice::new(b"yz")], 1).unwrap_err(),
        file.allocate(100).unwrap_err(),
        env.open(Path::new("g"), OpenMode::CreateNew).unwrap_err(),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(env.free_bytes(Path::new("")).unwrap(), 0);
    env.set_full(false);
    file.write_at(&[IoSlice::new(b"yz")], 1).unwrap();
    assert_eq!(content(&env, "f"), Some(b"xyz".to_vec()));
}

#[test]
fn corruption_is_seen_at_once_and_after_a_crash() {
    let env = FaultEnv::new();
    create_durable(&env, "f", b"abc");
    env.corrupt(Path::new("f"), 1, 0x20).unwrap();
    assert_eq!(content(&env, "f"), Some(b"aBc".to_vec()));
    assert_eq!(content(&env.crash_keeping(Survivors::None), "f"), Some(b"aBc".to_vec()));
    assert!(env.corrupt(Path::new("f"), 3, 1).is_err());
}

/// One step against a file.
#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3000usize, prop::collection::vec(any::<u8>(), 1..1500))
            .prop_map(|(at, bytes)| Step::Write(at, bytes)),
        (0..4000usize).prop_map(Step::SetLen),
        Just(Step::Sync),
    ]
}

proptest! {
    #[test]
    fn callers_see_a_plain_file_and_a_crash_after_a_sync_changes_nothing(
        steps in prop::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let env = FaultEnv::new();
        let file = create_durable(&env, "f", b"");
        let mut model: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Write(at, bytes) => {
                    model.resize(model.len().max(at + bytes.len()), 0);
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                    file.write_at(&[IoSlice::new(&bytes)], at as u64).unwrap();
                }
                Step::SetLen(len) => {
                    model.resize(len, 0);
                    file.set_len(len as u64).unwrap();
                }
                Step::Sync => file.sync_data().unwrap(),
            }
            prop_assert_eq!(content(&env, "f").unwrap(), model.clone());
        }
        prop_assert_eq!(
            content(&env.clone_image(Survivors::Random(seed)), "f").unwrap(),
            content(&env.clone_image(Survivors::Random(seed)), "f").unwrap(),
            "the same seed gives the same image"
        );
        let kept = content(&env.clone_image(Survivors::All), "f").unwrap();
        prop_assert_eq!(&kept, &model);
        file.sync_data().unwrap();
        prop_assert_eq!(content(&env.clone_image(Survivors::Random(seed)), "f").unwrap(), model);
    }
}
