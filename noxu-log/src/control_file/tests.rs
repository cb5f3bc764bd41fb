//! Crashes, rot and round trips of the control file.

use proptest::prelude::*;

use super::*;
use crate::env::{Fault, FaultEnv, Survivors};

fn dir() -> &'static Path {
    Path::new("/n1")
}

fn path() -> PathBuf {
    dir().join(FILE_NAME)
}

fn new_env() -> FaultEnv {
    let env = FaultEnv::new();
    env.create_dir_all(dir()).unwrap();
    env
}

fn open(env: &FaultEnv) -> ControlFile {
    ControlFile::open_or_create(env, dir()).unwrap()
}

fn vote(control: &ControlFile, term: u32) -> Result<()> {
    control.update(|state| {
        state.term = Term::new(term);
        state.vote = Some(format!("n{term}").parse().unwrap());
    })
}

fn full_state() -> ControlState {
    ControlState {
        group: Some(GroupIdentity {
            id: GroupId::from_bytes([7; 16]),
            name: "g".repeat(63).parse().unwrap(),
            segment_bytes: 64 << 20,
        }),
        epoch: u32::MAX,
        node: Some("n".repeat(63).parse().unwrap()),
        incarnation: Incarnation::from_u64(u64::MAX),
        group_config: vec![1; MAX_GROUP_CONFIG_BYTES].into(),
        term: Term::new(9),
        vote: Some("v".repeat(63).parse().unwrap()),
        commit_floor: Vlsn::new(800),
        anchor: Anchor {
            vlsn: Vlsn::new(700),
            lsn: Lsn::new(3, 4096),
            term: Term::new(8),
            fingerprint: Fingerprint::from_u64(0xfeed),
            next_lsn: Lsn::new(4, 64),
            group_config: vec![2; MAX_GROUP_CONFIG_BYTES].into(),
        },
        truncate_intent: Some(TruncateIntent {
            kept: ChainState {
                vlsn: Vlsn::new(900),
                term: Term::new(8),
                fingerprint: Fingerprint::from_u64(0xbeef),
            },
            kept_lsn: Lsn::new(5, 1000),
            cut: Lsn::new(5, 1100),
            lost: Some("l".repeat(MAX_LOST_NAME_BYTES)),
        }),
        head_uncertain: true,
        restore_marker: true,
        clean_shutdown: true,
    }
}

#[test]
fn the_largest_state_fits_and_reads_back() {
    let env = new_env();
    open(&env).update(|state| *state = full_state()).unwrap();
    assert_eq!(open(&env).state(), full_state());
    assert_eq!(ControlFile::read(&env, dir()).unwrap(), full_state());
}

#[test]
fn too_large_a_configuration_is_refused_and_poisons_nothing() {
    let env = new_env();
    let control = open(&env);
    let error =
        control.update(|state| state.group_config = vec![0; MAX_GROUP_CONFIG_BYTES + 1].into());
    assert!(matches!(error, Err(LogError::TooLarge { .. })), "{error:?}");
    vote(&control, 1).unwrap();
    assert!(open(&env).state().group_config.is_empty());
}

#[test]
fn a_new_directory_gets_an_incarnation_that_stays() {
    let env = new_env();
    let first = open(&env).state();
    assert_ne!(first.incarnation, Incarnation::default());
    assert_eq!(
        ControlState { incarnation: Incarnation::default(), ..first.clone() },
        ControlState::default()
    );
    assert_eq!(open(&env.crash_keeping(Survivors::None)).state(), first);
    assert_ne!(open(&new_env()).state().incarnation, first.incarnation);
}

#[test]
fn an_update_is_durable_when_it_returns() {
    let env = new_env();
    let control = open(&env);
    for term in 1..10 {
        vote(&control, term).unwrap();
        let after = open(&env.clone_image(Survivors::None));
        assert_eq!(after.state(), control.state());
    }
}

#[test]
fn a_crash_at_any_call_of_an_update_leaves_the_old_or_the_new_state() {
    for updates_before in 0..4 {
        let mut call = 1;
        loop {
            let env = new_env();
            let control = open(&env);
            for term in 1..=updates_before {
                vote(&control, term).unwrap();
            }
            let old = control.state();
            env.crash_at(env.calls() + call);
            let result = vote(&control, 7);
            if !env.has_crashed() {
                break;
            }
            assert!(result.is_err());
            assert!(matches!(vote(&control, 8), Err(LogError::Poisoned { .. })));
            for seed in 0..60 {
                let after = env.crash(seed);
                let state = open(&after).state();
                assert!(state == old || state.term == Term::new(7), "call {call}, seed {seed}");
                // Healed: now every single slot may rot.
                assert_eq!(open(&after).writer.lock().repairs_needed(), 0);
            }
            call += 1;
        }
        assert!(call > 4, "an update writes and syncs two slots");
    }
}

#[test]
fn a_crash_while_healing_from_a_crash_never_brings_an_older_state_back() {
    for seed in 0..40 {
        let env = new_env();
        let control = open(&env);
        vote(&control, 1).unwrap();
        env.crash_at(env.calls() + 1 + seed % 4);
        vote(&control, 2).unwrap_err();
        let mut env = env.crash(seed);
        let seen = ControlFile::read(&env, dir()).unwrap();
        for call in 1..30 {
            env.crash_at(call);
            if let Ok(control) = ControlFile::open_or_create(&env, dir()) {
                assert_eq!(control.state(), seen);
            }
            env = env.crash(seed + call);
            assert_eq!(ControlFile::read(&env, dir()).unwrap(), seen);
        }
    }
}

#[test]
fn a_crash_at_any_call_of_creation_leaves_a_directory_that_opens() {
    let mut call = 1;
    loop {
        let env = new_env();
        env.crash_at(env.calls() + call);
        if ControlFile::open_or_create(&env, dir()).is_ok() {
            break;
        }
        for seed in 0..30 {
            let after = env.crash(seed);
            let state = open(&after).state();
            assert_eq!(open(&after).state(), state);
        }
        call += 1;
    }
    assert!(call > 7);
}

/// A slot write that stopped after any number of bytes: harsher than sectors.
#[test]
fn a_slot_torn_at_any_byte_loses_neither_the_old_nor_the_new_version() {
    let env = new_env();
    let control = open(&env);
    vote(&control, 1).unwrap(); // version 3, in slots 2 and 3; version 4 goes to 0 and 1
    let old = control.state();
    let image = |env: &FaultEnv| {
        let mut bytes = vec![0; SLOTS * SLOT_BYTES];
        env.open(&path(), OpenMode::Read).unwrap().read_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = image(&env);
    vote(&control, 2).unwrap();
    let new = control.state();
    let after = image(&env);
    // Once the last byte that differs is written, the slot is whole.
    let whole_at = 1 + (0..SLOT_BYTES).rfind(|at| before[*at] != after[*at]).unwrap();
    for torn_slot in 0..2 {
        for torn_at in 0..=SLOT_BYTES {
            let written = torn_slot * SLOT_BYTES + torn_at;
            let mut bytes = before.clone();
            bytes[..written].copy_from_slice(&after[..written]);
            let file = env.open(&path(), OpenMode::ReadWrite).unwrap();
            file.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
            let state = ControlFile::read(&env, dir()).unwrap();
            let expected = if written < whole_at { &old } else { &new };
            assert_eq!(&state, expected, "{written} bytes written");
        }
    }
}

#[test]
fn one_rotten_slot_never_brings_an_older_vote_back() {
    for versions in 1..6 {
        for slot in 0..SLOTS {
            for byte in [0, 5, AT_FORMAT, AT_LENGTH, AT_SEQUENCE, AT_PAYLOAD + 3, SLOT_BYTES - 1] {
                let env = new_env();
                let control = open(&env);
                for term in 1..=versions {
                    vote(&control, term).unwrap();
                }
                env.corrupt(&path(), (slot * SLOT_BYTES + byte) as u64, 0x10).unwrap();
                assert_eq!(open(&env).state(), control.state());
                assert_eq!(open(&env).writer.lock().repairs_needed(), 0, "healed");
            }
        }
    }
}

#[test]
fn a_pair_with_both_slots_rotten_is_never_guessed() {
    for pair in [pair_of(0), pair_of(1)] {
        let env = new_env();
        let control = open(&env);
        vote(&control, 1).unwrap();
        for slot in pair {
            env.corrupt(&path(), (slot * SLOT_BYTES + 100) as u64, 1).unwrap();
        }
        let error = ControlFile::open_or_create(&env, dir()).unwrap_err();
        assert!(matches!(error, LogError::ControlUnreadable { .. }), "{error}");
        assert!(error.to_string().contains("/n1/control"), "{error}");
    }
}

#[test]
fn a_file_of_any_shorter_length_is_unreadable_or_whole() {
    for len in (0..SLOTS * SLOT_BYTES).step_by(509) {
        let env = new_env();
        let control = open(&env);
        vote(&control, 1).unwrap();
        env.open(&path(), OpenMode::ReadWrite).unwrap().set_len(len as u64).unwrap();
        match ControlFile::open_or_create(&env, dir()) {
            Ok(again) => assert_eq!(again.state(), control.state(), "{len} bytes"),
            Err(error) => assert!(matches!(error, LogError::ControlUnreadable { .. }), "{error}"),
        }
    }
}

#[test]
fn a_log_without_control_file_is_refused() {
    let env = new_env();
    env.create_dir_all(&dir().join("log")).unwrap();
    open(&env);
    env.open(&dir().join("log/0000000001.nlog"), OpenMode::CreateNew).unwrap();
    env.remove(&path()).unwrap();
    let error = ControlFile::open_or_create(&env, dir()).unwrap_err();
    assert!(matches!(error, LogError::ControlUnreadable { .. }), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_number() {
    let env = new_env();
    open(&env);
    let mut slot = encode_slot(&ControlState::default(), 3).unwrap();
    slot[AT_FORMAT] = 3;
    let crc = checksum::crc(&slot[AT_MAGIC..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    let file = env.open(&path(), OpenMode::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(&slot)], 2 * SLOT_BYTES as u64).unwrap();
    let error = ControlFile::open_or_create(&env, dir()).unwrap_err();
    assert!(matches!(error, LogError::FormatVersion { found: 3, expected: 2, .. }), "{error}");
}

#[test]
fn a_failed_write_or_sync_poisons_and_keeps_the_old_state() {
    for (function, fault) in
        [("write_at", Fault::NO_SPACE), ("write_at", Fault::IO), ("sync_data", Fault::IO)]
    {
        let env = new_env();
        let control = open(&env);
        vote(&control, 1).unwrap();
        let old = control.state();
        env.fail_next(function, fault);
        assert!(matches!(vote(&control, 2), Err(LogError::Io { .. })));
        assert!(matches!(vote(&control, 2), Err(LogError::Poisoned { .. })));
        assert_eq!(control.state(), old);
        for seed in 0..30 {
            let state = open(&env.clone_image(Survivors::Random(seed))).state();
            assert!(state == old || state.term == Term::new(2));
        }
    }
}

/// A process that is started again on a machine that runs on sees what a failed sync left in memory.
/// What it sees, and so may act on, is durable: a vote that the next power loss takes back could be
/// given twice.
#[test]
fn what_a_failed_sync_left_in_memory_is_durable_once_it_was_opened() {
    let mut failed = 0;
    for call in 1.. {
        let env = new_env();
        let control = open(&env);
        vote(&control, 1).unwrap();
        env.fail_at(env.calls() + call, Fault::IO);
        if vote(&control, 2).is_ok() {
            break;
        }
        failed += 1;
        let running = env.kill();
        let seen = open(&running).state();
        let after = open(&running.crash_keeping(Survivors::None)).state();
        assert_eq!(after, seen, "call {call}");
    }
    assert!(failed >= 4, "{failed}: two slots, each written and synced");
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let env = new_env();
    let control = open(&env);
    let calls = env.calls();
    control.update(|state| state.term = Term::ZERO).unwrap();
    assert_eq!(env.calls(), calls);
}

#[test]
#[should_panic(expected = "vote in term 4 changed")]
fn a_second_vote_in_a_term_is_a_bug() {
    let control = open(&new_env());
    vote(&control, 4).unwrap();
    let _ = control.update(|state| state.vote = Some("other".parse().unwrap()));
}

proptest! {
    #[test]
    fn any_payload_decodes_or_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(state) = decode_payload(&bytes) {
            prop_assert_eq!(encode_payload(&state).unwrap(), bytes);
        }
    }

    #[test]
    fn a_changed_byte_of_a_payload_decodes_to_something_else_or_is_an_error(
        at in any::<prop::sample::Index>(),
        mask in 1..=255u8,
    ) {
        let mut bytes = encode_payload(&full_state()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        if let Ok(state) = decode_payload(&bytes) {
            prop_assert_ne!(state, full_state());
        }
    }
}

#[test]
fn the_ballot_is_that_of_the_newest_durable_state() {
    let env = new_env();
    let control = open(&env);
    control.update(|state| *state = full_state()).unwrap();
    let (ballot, state) = (control.ballot(), control.state());
    assert_eq!((ballot.epoch, ballot.incarnation), (state.epoch, state.incarnation));
    assert_eq!((ballot.term, &ballot.vote), (state.term, &state.vote));
    assert_eq!(ballot.commit_floor, state.commit_floor);
    assert_eq!(ballot.head_uncertain, state.head_uncertain);
    // A vote that failed to become durable is none.
    env.fail_next("sync_data", Fault::Error(io::ErrorKind::Other));
    control.update(|state| state.commit_floor = Vlsn::new(i64::MAX)).unwrap_err();
    assert_eq!(control.ballot(), ballot);
}

#[test]
fn the_incarnation_of_a_new_directory_follows_from_the_seed_of_its_machine() {
    let incarnation = |seed| {
        let env = new_env();
        env.seed_entropy(seed);
        open(&env).ballot().incarnation
    };
    assert_eq!(incarnation(1), incarnation(1));
    assert_ne!(incarnation(1), incarnation(2));
}
