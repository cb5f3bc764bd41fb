//! Breaking: sessions that end before their time, or whose other side does what nobody asked for. What came
//! counts, and nobody else pays.

use std::io::ErrorKind;
use std::sync::atomic::AtomicUsize;

use noxu_log::env::{Fault, OpenMode, Survivors};
use noxu_util::Lsn;

use super::super::install::Recovered;
use super::super::manifest::{COMMIT, MANIFEST, MARKER, STATE};
use super::super::session::{RestoreHost, RestoreLimits, default_methods, is_committed};
use super::*;
use crate::driver::following::is_final;

/// A master of so many entries in segments of so many bytes, none of them dropped.
fn master_of(entries: i64, segment_bytes: u32) -> Master {
    Master::with(segment_bytes, entries, entries - 10, 0)
}

fn with_limits(limits: RestoreLimits) -> Restoring {
    Restoring { limits, ..restoring() }
}

/// The connection breaks over and over, after fewer bytes than a batch or a segment has.
#[test]
fn what_came_before_a_connection_broke_is_not_fetched_again() {
    let master = master_of(40_000, 4 << 20);
    let (_, env) = fault_disk();
    let mut had = 0;
    for round in 0.. {
        let (inner, gave) = (master.connect(), AtomicUsize::new(0));
        let line = Arc::clone(&inner);
        let channel = Relay::of_answers(inner, move |answer| {
            let is_block = matches!(answer, RestoreMsg::Block { .. });
            if is_block && gave.fetch_add(1, Ordering::Relaxed) >= 7 {
                line.close();
                return Vec::new();
            }
            vec![answer]
        });
        let seen = Mutex::new((0, 0));
        let node = Node::watching(|progress| {
            *seen.lock() = (progress.blocks_reused, progress.blocks_done);
        });
        let ended = fetch(&env, dir(), &with_limits(RestoreLimits::default()), &channel, &node);
        drop(node);
        let (reused, done) = seen.into_inner();
        assert_eq!(reused, had, "round {round}");
        had = done;
        if ended.is_ok() {
            assert!(round >= 2, "only {round} rounds");
            break;
        }
        assert!(round < 100, "{had} blocks");
    }
    install_and_check(&env, &master, false);
}

/// A node that finds no thread does what it would do beside by itself; a state is made ready when it is here.
#[test]
fn without_a_thread_to_be_had_a_restore_ends_as_well() {
    for dropped in [0, 100] {
        let (master, env) = (Master::new(dropped), memory());
        let machine: Arc<dyn StateMachine> = Machine::open(&env, "/n2-state");
        let node = Node { finds_threads: false, machine: Some(machine), ..Node::default() };
        master.restore_watched(&env, &restoring(), &node).unwrap();
        drop(node);
        install_and_check(&env, &master, dropped > 0);
    }
}

/// An answer about the state that nobody asked for, while segments are missing.
#[test]
fn an_answer_about_the_state_that_nobody_asked_for_costs_nothing() {
    let (master, env) = (Master::new(100), memory());
    let follower = Master::follower("n3");
    master.name_sources(&["n3"]);
    let first = master.log.positions().anchor.vlsn;
    let lying = || {
        Relay::of_answers(follower.connect(), move |answer| {
            let is_first = matches!(answer, RestoreMsg::Holdings { .. });
            let lie = is_first.then(|| RestoreMsg::StateAnswer {
                request: 77,
                vlsn: first.next(),
                fingerprint: noxu_util::Fingerprint::default(),
                digest: [0; 32],
                bytes: Vec::new().into(),
            });
            [Some(answer), lie].into_iter().flatten().collect()
        })
    };
    let node = Node::default().dialling("n3", lying);
    let progress = master.restore_watched(&env, &restoring(), &node).unwrap();
    assert!(progress.sources[1].blocks > 0, "{progress:?}");
    drop(node);
    install_and_check(&env, &master, true);
}

/// A source dies, and the rate is limited: whoever waits for the rest waits.
#[test]
fn a_source_that_is_gone_is_not_waited_for() {
    let master = master_of(20_000, 1 << 20);
    let env = memory();
    let log_env = memory();
    let log = build_log(&log_env, Path::new("/log"), 1 << 20, (20_000, 20_000, 0), 19_990);
    let follower = Master::of("n3", &log_env, log);
    follower.told.is_master.store(false, Ordering::Release);
    master.name_sources(&["n3"]);
    let dying = || {
        let inner = follower.connect();
        let line = Arc::clone(&inner);
        Relay::of_answers(inner, move |answer| {
            if matches!(answer, RestoreMsg::Block { .. }) {
                line.close();
                return Vec::new();
            }
            vec![answer]
        })
    };
    let turns = AtomicUsize::new(0);
    let count = |_: &Progress| {
        turns.fetch_add(1, Ordering::Relaxed);
    };
    let node = Node::watching(count).dialling("n3", dying);
    let bytes_per_second = Some(3 << 20);
    let limits = RestoreLimits { bytes_per_second, ..RestoreLimits::default() };
    let progress = master.restore_watched(&env, &with_limits(limits), &node).unwrap();
    drop(node);
    // Each waits some milliseconds, or takes what came.
    let most = 10_000 * (1 + progress.elapsed.as_secs() as usize);
    assert!(turns.load(Ordering::Relaxed) < most, "{turns:?} in {progress:?}");
}

/// A node whose disk is full from when it may commit.
struct FillsUp {
    node: Node<'static>,
    disk: FaultEnv,
}

impl RestoreHost for FillsUp {
    fn dial(&self, address: &str) -> Result<Arc<dyn Channel>> {
        self.node.dial(address)
    }

    fn note(&self, progress: &Progress) {
        self.node.note(progress);
    }

    fn permit(&self, term: Term) -> bool {
        self.disk.set_capacity(Some(0));
        self.node.permit(term)
    }

    fn clock(&self) -> &Clock {
        self.node.clock()
    }
}

/// Who has leave to commit is silent until it has: others may take the room that was left.
#[test]
fn a_disk_that_is_full_by_the_time_of_the_commit_does_not_stop_it() {
    let master = Master::new(100);
    let (disk, env) = fault_disk();
    let host = FillsUp { node: Node::default(), disk: disk.clone() };
    let fetched = fetch(&env, dir(), &restoring(), &master.connect(), &host);
    assert!(fetched.unwrap().is_some());
    assert!(is_committed(&*env, dir()).unwrap());
    disk.set_capacity(None);
    install_and_check(&env, &master, true);
}

/// What came rots between the commit and the installation, a byte of any file of log and state: the node starts,
/// and is restored once more if it has to be.
#[test]
fn rot_between_commit_and_installation_stops_no_node() {
    let master = Master::new(100);
    let (committed, env) = fault_disk();
    master.restore(&env, &restoring()).unwrap();
    drop(env);
    let mut met = [0; 3];
    for path in files_below(&committed, &restore_dir(dir())) {
        let is_order = [COMMIT, MARKER, MANIFEST].iter().any(|name| path.ends_with(name));
        let bytes = committed.open(&path, OpenMode::Read).unwrap().len().unwrap();
        for part in 0..8 {
            let disk = committed.clone_image(Survivors::All);
            if bytes > 0 {
                disk.corrupt(&path, bytes * part / 8, 1 << part).unwrap();
            }
            let env: Arc<dyn Env> = Arc::new(disk);
            let machine = Machine::open(&env, "/n2-state");
            if part == 7 && path.starts_with(restore_dir(dir()).join(STATE)) {
                let (log, methods, clock) = (config(), default_methods(), Clock::start());
                let kept = super::super::install::install(
                    &env,
                    dir(),
                    &log,
                    &methods,
                    &*machine,
                    false,
                    &clock,
                );
                assert!(kept.is_err() && is_committed(&*env, dir()).unwrap(), "{kept:?}");
            }
            let found = recover(&env, &machine);
            if is_order {
                assert!(matches!(found, Err(RepError::Log(_))), "{}: {found:?}", path.display());
                continue;
            }
            let Ok(Recovered::Installed(restored)) = found else {
                panic!("byte {} of {}: {found:?}", bytes * part / 8, path.display())
            };
            let (log, report) = Log::open(Arc::clone(&env), dir(), config()).unwrap();
            assert_eq!(log.positions().last, v(200), "{}", path.display());
            let has_state = machine.applied() == v(190);
            assert_eq!(restored.checkpoint, machine.applied());
            assert!(has_state || machine.applied() == NULL_VLSN);
            let kind = if has_state { 1 + usize::from(report.faulty.is_empty()) } else { 0 };
            met[kind] += 1;
            log.close().unwrap();
            drop((log, machine));
            // As a node without a state does, or one that finds nobody to mend its log from.
            master.restore(&env, &restoring()).unwrap();
            install_and_check(&env, &master, true);
        }
    }
    assert!(met.iter().all(|times| *times > 0), "no state, a faulty log, neither: {met:?}");
}

/// The system refuses one call: what was committed is not to blame, and stays.
#[test]
fn what_the_system_refuses_costs_no_state_that_was_committed() {
    let master = Master::new(100);
    let (committed, env) = fault_disk();
    master.restore(&env, &restoring()).unwrap();
    drop(env);
    let mut refused = 0;
    for call in 1.. {
        let disk = committed.clone_image(Survivors::All);
        let env: Arc<dyn Env> = Arc::new(disk.clone());
        let machine = Machine::open(&env, "/n2-state");
        let before = disk.calls();
        disk.fail_at(before + call, Fault::Error(ErrorKind::PermissionDenied));
        let found = recover(&env, &machine);
        let is_over = disk.calls() < before + call;
        let found = found.or_else(|_| {
            refused += 1;
            recover(&env, &machine)
        });
        match found.unwrap() {
            Recovered::Installed(restored) => {
                assert_eq!(restored.checkpoint, v(190), "call {call}");
            }
            Recovered::Nothing => {} // it failed to remove what it had installed
            Recovered::Begun => panic!("call {call}"),
        }
        assert_eq!(*machine.state.lock(), (v(190), CHECKPOINT_TEXT.to_vec()), "call {call}");
        if is_over {
            break;
        }
    }
    assert!(refused > 30, "{refused}");
}

fn files_below(env: &dyn Env, dir: &Path) -> Vec<PathBuf> {
    let paths = env.list(dir).unwrap().into_iter().map(|name| dir.join(name));
    paths
        .flat_map(|path| if env.list(&path).is_ok() { files_below(env, &path) } else { vec![path] })
        .collect()
}

/// A manifest that says wrongly where its segments end is found out, and a later one that says it rightly
/// is believed.
#[test]
fn a_manifest_that_lied_about_its_end_leaves_nothing_behind() {
    let (master, env) = (Master::new(0), memory());
    let lie = Relay::of_answers(master.connect(), |mut answer| {
        if let RestoreMsg::Manifest(head) = &mut answer {
            let lsn = head.base.lsn;
            head.base.lsn = Lsn::new(lsn.segment(), lsn.offset() - 8);
        }
        vec![answer]
    });
    let lied = fetch(&env, dir(), &restoring(), &lie, &Node::default()).unwrap_err();
    assert!(lied.to_string().contains("segments that end with"), "{lied}");
    assert!(!is_final(&lied));
    let progress = master.restore(&env, &restoring()).unwrap();
    assert_eq!(progress.blocks_reused, progress.blocks_total);
    install_and_check(&env, &master, false);
}
