//! What the fault environment promises the tests that use it.

use std::collections::BTreeSet;
use std::time::Duration;

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

fn write(file: &Arc<dyn EnvFile>, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

#[test]
fn every_possible_image_has_a_number() {
    let env = FaultEnv::new();
    assert_eq!(env.possible_images(), 1);
    let file = create_durable(&env, "f", &[0; 3 * 512]);
    write(&file, &[1; 512], 0).unwrap();
    write(&file, &[2; 512], 0).unwrap();
    write(&file, &[3; 512], 1024).unwrap();
    create(&env, "g");
    // Three contents of one sector, two of another, a name or none.
    assert_eq!(env.possible_images(), 12);
    let images: BTreeSet<_> = (0..12)
        .map(|number| {
            let after = env.clone_image(Survivors::Nth(number));
            assert_eq!(after.possible_images(), 1, "all of it is durable");
            (content(&after, "f").unwrap(), content(&after, "g"))
        })
        .collect();
    assert_eq!(images.len(), 12);
    for seed in 0..100 {
        let after = env.clone_image(Survivors::Random(seed));
        let image = (content(&after, "f").unwrap(), content(&after, "g"));
        assert!(images.contains(&image), "seed {seed}");
    }
}

#[test]
fn a_killed_process_leaves_all_it_wrote_and_nothing_of_it_synced() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    let _lock = env.lock(Path::new("LOCK")).unwrap();
    write(&file, b"new", 0).unwrap();
    let after = env.kill();
    assert!(write(&file, b"too late", 0).is_err());
    assert_eq!(content(&after, "f"), Some(b"new".to_vec()));
    assert_eq!(content(&after.clone_image(Survivors::None), "f"), Some(b"old".to_vec()));
    drop(after.lock(Path::new("LOCK")).unwrap());
    after.open(Path::new("f"), OpenMode::ReadWrite).unwrap().sync_data().unwrap();
    assert_eq!(content(&after.clone_image(Survivors::None), "f"), Some(b"new".to_vec()));
}

#[test]
fn a_lost_write_is_acknowledged_and_never_there() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    env.fail_next("write_at", Fault::LostWrite);
    write(&file, b"newer", 0).unwrap();
    assert_eq!(content(&env, "f"), Some(b"old\0\0".to_vec()));
    file.sync_data().unwrap();
    for survivors in [Survivors::None, Survivors::All] {
        assert_eq!(content(&env.clone_image(survivors), "f"), Some(b"old\0\0".to_vec()));
    }
}

#[test]
fn a_misdirected_write_lands_in_another_sector_of_any_file() {
    let mut landed = BTreeSet::new();
    for draw in 0..40 {
        let env = FaultEnv::new();
        let file = create_durable(&env, "f", &[1; 1024]);
        create_durable(&env, "g", &[2; 700]);
        env.fail_next("write_at", Fault::Misdirected(draw));
        write(&file, &[9; 500], 20).unwrap();
        for after in [&env, &env.clone_image(Survivors::None)] {
            let (f, g) = (content(after, "f").unwrap(), content(after, "g").unwrap());
            assert_eq!((f.len(), g.len()), (1024, 700), "no file grows by it");
            assert_eq!(f[..512], [1; 512], "where it was sent nothing changes");
            let place = [&f[..], &g].concat().iter().position(|byte| *byte == 9).unwrap();
            landed.insert(place);
        }
    }
    assert_eq!(landed, BTreeSet::from([512 + 20, 1024 + 20, 1024 + 512 + 20]));
}

#[test]
fn a_misdirected_write_to_the_only_sector_there_is_is_lost() {
    let env = FaultEnv::new();
    let file = create(&env, "f");
    env.fail_next("write_at", Fault::Misdirected(7));
    write(&file, b"abc", 0).unwrap();
    assert_eq!(content(&env, "f"), Some(vec![0; 3]));
}

#[test]
fn a_held_call_waits_for_the_test_and_the_others_go_on() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    let hold = env.hold_next("sync_data");
    std::thread::scope(|scope| {
        write(&file, b"new", 0).unwrap();
        let syncing = scope.spawn(|| file.sync_data());
        hold.wait_until_met();
        write(&file, b"mid", 0).unwrap();
        assert_eq!(content(&env.clone_image(Survivors::None), "f"), Some(b"old".to_vec()));
        drop(hold);
        syncing.join().unwrap().unwrap();
    });
    assert_eq!(content(&env.clone_image(Survivors::None), "f"), Some(b"mid".to_vec()));
    file.sync_data().unwrap();
}

#[test]
fn a_crash_ends_a_held_call() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    let hold = env.hold_next("write_at");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| write(&file, b"new", 0));
        hold.wait_until_met();
        let after = env.crash_keeping(Survivors::All);
        assert!(writing.join().unwrap().is_err());
        assert_eq!(content(&after, "f"), Some(b"old".to_vec()));
    });
}

#[test]
fn a_slow_call_moves_the_clock_or_waits_for_it() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", b"old");
    let second = Duration::from_secs(1);
    env.fail_next("write_at", Fault::Slow(3 * second));
    write(&file, b"new", 0).unwrap();
    assert_eq!(env.now(), 3 * second);
    env.stop_clock();
    env.fail_next("sync_data", Fault::Slow(2 * second));
    let held = env.hold_next("sync_data");
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync_data());
        held.wait_until_met();
        drop(held);
        env.advance(second);
        // It may be waiting by now or not yet: either way it needs the other second too.
        assert!(!syncing.is_finished());
        assert_eq!(content(&env.clone_image(Survivors::None), "f"), Some(b"old".to_vec()));
        while !syncing.is_finished() {
            env.advance(second);
            std::thread::yield_now();
        }
        syncing.join().unwrap().unwrap();
    });
    assert!(env.now() >= 5 * second);
}

#[test]
fn a_disk_has_room_for_so_many_bytes_whichever_file_takes_them() {
    let env = FaultEnv::new();
    env.set_capacity(Some(4 * 512));
    let free = || env.free_bytes(Path::new("")).unwrap();
    let file = create(&env, "f");
    let other = create(&env, "g");
    write(&file, &[1; 513], 0).unwrap();
    assert_eq!((env.used_bytes(), free()), (1024, 1024), "whole sectors are taken");
    other.allocate(600).unwrap();
    assert_eq!(free(), 0);
    write(&other, &[2; 424], 600).unwrap();
    let full = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    };
    full(write(&file, &[3; 600], 1000));
    assert_eq!(file.len().unwrap(), 1024, "what fits is written");
    full(file.allocate(1025));
    full(file.set_len(1025));
    write(&file, &[4; 1024], 0).unwrap();
    other.set_len(512).unwrap();
    assert_eq!(free(), 512, "a cut gives space back");
    write(&file, &[5; 100], 1024).unwrap();
    full(write(&other, &[5; 100], 512));
    env.set_capacity(Some(5 * 512));
    write(&other, &[5; 100], 512).unwrap();
}

#[test]
fn a_removed_file_gives_its_space_back_with_its_last_handle() {
    let env = FaultEnv::new();
    let file = create_durable(&env, "f", &[7; 2048]);
    let reader = env.open(Path::new("f"), OpenMode::Read).unwrap();
    env.remove(Path::new("f")).unwrap();
    drop(file);
    assert_eq!(env.used_bytes(), 2048);
    let mut byte = [0];
    assert_eq!(reader.read_at(&mut byte, 2047).unwrap(), 1, "it outlives its name");
    drop(reader);
    assert_eq!(env.used_bytes(), 0);
    let kept = env.clone_image(Survivors::None);
    assert_eq!(content(&kept, "f"), Some(vec![7; 2048]), "its name was never durably gone");
    env.sync_dir(Path::new("")).unwrap();
    assert_eq!(env.shared.state.lock().disk.file_count(), 0);
}

#[test]
fn a_file_replaced_by_a_rename_gives_its_space_back() {
    let env = FaultEnv::new();
    create_durable(&env, "old", &[1; 1024]);
    create_durable(&env, "new", &[2; 512]);
    env.rename(Path::new("new"), Path::new("old")).unwrap();
    assert_eq!(env.used_bytes(), 512);
    assert_eq!(env.shared.state.lock().disk.file_count(), 2, "the rename may yet be undone");
    env.sync_dir(Path::new("")).unwrap();
    assert_eq!(env.shared.state.lock().disk.file_count(), 1);
}

/// Calls of every kind, their failures ignored.
fn exercise(env: &FaultEnv) -> Vec<bool> {
    let mut results = Vec::new();
    for round in 0..60u8 {
        let name = format!("/f{}", round % 5);
        let Ok(file) = env.open(Path::new(&name), OpenMode::CreateOrOpen) else { continue };
        results.push(write(&file, &[round; 700], u64::from(round) * 37).is_ok());
        results.push(file.sync_data().is_ok());
        results.push(file.allocate(u64::from(round) * 50).is_ok());
        if round % 7 == 0 {
            results.push(env.rename(Path::new(&name), Path::new("/renamed")).is_ok());
        }
        results.push(env.sync_dir(Path::new("/")).is_ok());
    }
    results
}

#[test]
fn the_same_seed_over_the_same_calls_gives_the_same_faults_and_the_same_image() {
    let rates = FaultRates {
        io_error: 0.05,
        no_space: 0.05,
        lost_sync: 0.1,
        lost_write: 0.1,
        misdirected_write: 0.1,
        rot: 0.05,
        slow: 0.1,
        slow_up_to: Duration::from_millis(100),
    };
    let mut images = BTreeSet::new();
    for seed in 0..20 {
        let (one, two) = (FaultEnv::seeded(seed, rates), FaultEnv::seeded(seed, rates));
        assert_eq!(exercise(&one), exercise(&two), "seed {seed}");
        assert_eq!(one.digest(), two.digest(), "seed {seed}");
        assert_eq!(one.now(), two.now());
        assert!(one.now() > Duration::ZERO);
        assert_eq!(one.crash(seed).digest(), two.crash(seed).digest());
        images.insert(*one.digest().as_bytes());
    }
    assert_eq!(images.len(), 20, "other seeds, other images");
}

#[test]
fn each_rate_brings_its_own_fault_and_no_other() {
    let plain = FaultEnv::new();
    assert!(exercise(&plain).iter().all(|ok| *ok));
    let with = |rates| {
        let env = FaultEnv::seeded(3, rates);
        let ok = exercise(&env).iter().filter(|ok| **ok).count();
        (env, ok)
    };
    let calls = exercise(&FaultEnv::new()).len();
    let (_, ok) = with(FaultRates { io_error: 0.1, ..FaultRates::default() });
    assert!(ok < calls);
    let (_, ok) = with(FaultRates { no_space: 0.1, ..FaultRates::default() });
    assert!(ok < calls);
    for rates in [
        FaultRates { lost_write: 0.4, ..FaultRates::default() },
        FaultRates { misdirected_write: 0.4, ..FaultRates::default() },
        FaultRates { rot: 0.1, ..FaultRates::default() },
    ] {
        let (env, ok) = with(rates);
        assert_eq!(ok, calls, "{rates:?} fails no call");
        assert_ne!(env.digest(), plain.digest(), "{rates:?}");
    }
    let (env, ok) = with(FaultRates { lost_sync: 0.5, ..FaultRates::default() });
    assert_eq!((ok, env.digest()), (calls, plain.digest()));
    assert_ne!(env.crash_keeping(Survivors::None).digest(), plain.digest());
    let second = Duration::from_secs(1);
    let (env, ok) = with(FaultRates { slow: 0.5, slow_up_to: second, ..FaultRates::default() });
    assert_eq!((ok, env.digest()), (calls, plain.digest()));
    assert!(env.now() > second);
    env.stop_faults();
    let now = env.now();
    exercise(&env);
    assert_eq!(env.now(), now);
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

#[test]
fn seeded_entropy_goes_on_after_a_crash_or_a_kill_and_repeats_nothing() {
    let draws = |seed| {
        let mut env = FaultEnv::new();
        env.seed_entropy(seed);
        let mut drawn = vec![env.entropy(), env.entropy()];
        env = env.crash(7);
        drawn.push(env.entropy());
        env = env.kill();
        drawn.push(env.entropy());
        drawn
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    assert_eq!(draws(1).into_iter().collect::<BTreeSet<_>>().len(), 4);
    assert_ne!(FaultEnv::new().entropy(), FaultEnv::new().entropy());
}

#[test]
fn calls_that_leave_no_trace_are_counted_all_the_same() {
    let env = FaultEnv::new();
    create(&env, "seen");
    assert_eq!(env.trace().len(), 1);
    env.keep_trace(false);
    create(&env, "unseen");
    assert_eq!((env.trace().len(), env.calls()), (0, 2));
    let env = env.crash(1);
    create(&env, "still unseen");
    assert_eq!((env.trace().len(), env.calls()), (0, 1));
    env.keep_trace(true);
    create(&env, "seen again");
    assert_eq!((env.trace().len(), env.calls()), (1, 2));
}
