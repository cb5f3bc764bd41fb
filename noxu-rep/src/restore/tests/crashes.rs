//! Crashes: what a restore leaves when the power goes, at every call to the disk. Rows X.

use super::*;

/// Restores on a disk that crashes at its `call`-th call; false when it got through without.
/// Whatever the crash left, either the old log is whole or the restore ends.
fn crash_and_recover(master: &Master, call: u64, seed: u64, mutated: bool) -> (bool, u32) {
    let faulty = FaultEnv::new();
    let env: Arc<dyn Env> = Arc::new(faulty.clone());
    let old = build_log(&env, dir(), 4096, (120, 60, 9), 50);
    let old_end = old.positions().last_fingerprint;
    old.close().unwrap();
    drop(old);
    Machine::open(&env, "/n2-state").set(v(50), b"old state").unwrap();
    env.sync_dir(Path::new("/")).unwrap();
    let restoring = Restoring { bitmap_before_data: mutated, ..restoring() };

    faulty.crash_at(faulty.calls() + call);
    let machine = Machine::open(&env, "/n2-state");
    let through = master
        .restore(&env, &restoring)
        .and_then(|_| install(&env, dir(), &config(), &*machine, &Clock::start()));
    if through.is_ok() && !faulty.has_crashed() {
        return (false, 0);
    }
    // The power goes, and comes back: twice, to crash in the recovery too.
    let mut faulty = faulty.crash(seed);
    let mut false_claims = 0;
    for again in [true, false] {
        let env: Arc<dyn Env> = Arc::new(faulty.clone());
        if again {
            faulty.crash_at(1 + (seed * 31 + call * 7) % 60);
        }
        let machine = Machine::open(&env, "/n2-state");
        let outcome =
            recover(&env, dir(), &config(), &*machine, &Clock::start()).and_then(|recovered| {
                if matches!(recovered, Recovered::Installed(_)) {
                    return Ok(());
                }
                // Not finished: then either all of the old is there, or all of the new.
                let (log, _) = Log::open(Arc::clone(&env), dir(), config())?;
                let end = log.positions().last_fingerprint;
                log.close()?;
                drop(log);
                if end == master.log.positions().last_fingerprint {
                    assert_eq!(recovered, Recovered::Nothing);
                    return Ok(());
                }
                assert_eq!(end, old_end, "call {call}, seed {seed}");
                let progress = master.restore(&env, &restoring)?;
                false_claims += progress.false_claims;
                install(&env, dir(), &config(), &*machine, &Clock::start()).map(|_| ())
            });
        if again {
            faulty = faulty.crash(seed + 1);
        } else {
            outcome.unwrap_or_else(|err| panic!("call {call}, seed {seed}: {err}"));
            let (log, _) = Log::open(Arc::clone(&env), dir(), config()).unwrap();
            assert_eq!(all_bytes(&log), all_bytes(&master.log), "call {call}, seed {seed}");
            assert_eq!(log.positions().anchor, master.log.positions().anchor);
            let machine = Machine::open(&env, "/n2-state");
            assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()));
            let names = LostEntries::list(&*env, dir()).unwrap();
            let lost = LostEntries::read(&*env, dir(), &names[0]).unwrap();
            assert_eq!(lost.header.end.fingerprint, old_end, "call {call}, seed {seed}");
        }
    }
    (true, false_claims)
}

#[test]
fn a_crash_at_any_call_leaves_the_old_log_whole_or_a_restore_that_ends() {
    let master = Master::new(100);
    let mut call = 1;
    let mut false_claims = 0;
    loop {
        let mut crashed = false;
        for seed in 0..3 {
            let (hit, claims) = crash_and_recover(&master, call, seed * 1000 + call, false);
            crashed |= hit;
            false_claims += claims;
        }
        if !crashed {
            break;
        }
        call += 1;
    }
    assert!(call > 150, "only {call} calls");
    assert_eq!(false_claims, 0, "the bitmap claimed blocks that were not on disk");
}

#[test]
fn saving_the_bitmap_before_its_data_would_be_caught() {
    let master = Master::new(100);
    let mut false_claims = 0;
    for call in 1..200 {
        for seed in 0..3 {
            false_claims += crash_and_recover(&master, call, seed * 1000 + call, true).1;
        }
    }
    assert!(false_claims > 0, "the crash test cannot tell the wrong order from the right one");
}
