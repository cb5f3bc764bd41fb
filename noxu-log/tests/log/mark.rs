//! The tail mark: under Strict it covers whatever was acknowledged, at every moment; under Lazy it
//! says what it does not cover.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use noxu_log::env::{Env, EnvFile, Fault, FaultEnv, LockGuard, OpenMode, Survivors};
use noxu_log::{Cut, Log, LogConfig, LogError, MarkPolicy, MarkRead, Mutant, TailMark};
use noxu_util::{NULL_VLSN, Vlsn};
use parking_lot::{Condvar, Mutex};

use crate::rig::{append, bodies, body, dir, fill, is_damage, open, quiet, try_open, vlsn_of};

fn lazy() -> LogConfig {
    let lazy_mark_delay = Duration::from_millis(1);
    LogConfig { tail_mark: MarkPolicy::Lazy, lazy_mark_delay, ..quiet() }
}

/// Everything through it is covered by the mark on the disk.
fn marked(env: &FaultEnv) -> Vlsn {
    match TailMark::inspect(env, dir()) {
        Ok(MarkRead::Valid(mark)) => mark.vlsn,
        Ok(MarkRead::Absent) => NULL_VLSN,
        other => panic!("{other:?}"),
    }
}

const SURVIVORS: [Survivors; 5] = [
    Survivors::None,
    Survivors::All,
    Survivors::Random(1),
    Survivors::Random(2),
    Survivors::Random(3),
];

/// Highest VLSN that a log told anybody is durable.
fn told(log: &Log) -> Arc<AtomicI64> {
    let told = Arc::new(AtomicI64::new(0));
    let hook = Arc::clone(&told);
    log.on_durable(move |vlsn| {
        hook.fetch_max(vlsn.sequence(), Ordering::SeqCst);
    });
    told
}

/// Appends, syncs, rolls and truncates until the machine stops; what was acknowledged then, and
/// still stands.
fn acknowledged(env: &FaultEnv) -> Vlsn {
    let mut acknowledged = NULL_VLSN;
    let mut work = || -> noxu_log::Result<()> {
        let log = try_open(env, quiet())?;
        let told = told(&log);
        for round in 1..=6 {
            for tag in 0..round {
                append(&log, 1, &body(tag, 300 * round as usize))?;
            }
            acknowledged = log.sync_now()?;
            assert_eq!(told.load(Ordering::SeqCst), acknowledged.sequence());
            if round == 3 {
                let cut = acknowledged.prev().prev();
                acknowledged = acknowledged.min(cut);
                log.truncate_after(cut, Cut::Discard)?;
                told.store(0, Ordering::SeqCst);
            }
        }
        log.close()
    };
    let _ = work();
    acknowledged
}

/// Crashes at every call: how many ended with a mark below what was acknowledged.
fn crashes_that_lose_the_mark() -> usize {
    let calls = {
        let env = FaultEnv::new();
        acknowledged(&env);
        env.calls()
    };
    let (mut crashes, mut lost) = (0, 0);
    for call in 1..=calls {
        let env = FaultEnv::new();
        env.crash_at(call);
        let acknowledged = acknowledged(&env);
        for survivors in SURVIVORS {
            crashes += usize::from(acknowledged > NULL_VLSN);
            lost += usize::from(marked(&env.crash_keeping(survivors)) < acknowledged);
        }
    }
    assert!(crashes > 100, "{crashes} crashes after an acknowledgement");
    lost
}

#[test]
fn after_a_crash_at_any_call_the_strict_mark_covers_all_that_was_acknowledged() {
    assert_eq!(crashes_that_lose_the_mark(), 0);
    let lost = Mutant::with(Some(Mutant::ToldBeforeMark), crashes_that_lose_the_mark);
    assert!(lost > 0, "a mark that is synced too late was not noticed");
}

#[test]
fn after_a_crash_under_many_committers_the_strict_mark_covers_all_that_was_acknowledged() {
    for call in (30..330).step_by(7) {
        let env = FaultEnv::new();
        let log = open(&env);
        let told = told(&log);
        env.crash_at(call);
        std::thread::scope(|scope| {
            for committer in 0..6 {
                let (log, told) = (&log, &told);
                scope.spawn(move || {
                    for round in 0..40 {
                        let Ok(appended) = append(log, 1, &body(committer, 50 + round * 7)) else {
                            return;
                        };
                        if committer % 2 == 0 {
                            log.request_sync();
                        }
                        if log.wait_durable(appended.last).is_err() {
                            return;
                        }
                        told.fetch_max(appended.last.sequence(), Ordering::SeqCst);
                    }
                });
            }
        });
        let told = vlsn_of(told.load(Ordering::SeqCst));
        for survivors in SURVIVORS {
            let after = env.clone_image(survivors);
            let marked = marked(&after);
            assert!(marked >= told, "call {call}, {survivors:?}: {marked} marked, {told} told");
            assert!(open(&after).positions().last >= told);
        }
    }
}

/// Opens the log after its last entry rotted; whether it was cut off as a torn write.
fn is_rot_cut(env: &FaultEnv, lsn_offset: u64, vlsn: Vlsn) -> bool {
    let segment = dir().join("log/0000000001.nlog");
    env.corrupt(&segment, lsn_offset + 40, 0x10).unwrap();
    match try_open(env, quiet()) {
        Ok(log) => log.positions().last < vlsn,
        Err(error) => {
            assert!(is_damage(&error), "{error}");
            false
        }
    }
}

#[test]
fn a_rotten_acknowledged_batch_is_never_cut_as_torn_under_strict() {
    for batches in 1..=4 {
        let env = FaultEnv::new();
        let log = open(&env);
        let mut last = None;
        for batch in 1..=batches {
            fill(&log, 2 * batch - 1, 2 * batch - 1, 100);
            last = Some(append(&log, 1, &body(9, 100)).unwrap());
            log.wait_durable(vlsn_of(2 * batch)).unwrap();
        }
        let last = last.unwrap();
        for survivors in SURVIVORS {
            let after = env.clone_image(survivors);
            assert!(!is_rot_cut(&after, u64::from(last.last_lsn.offset()), last.last));
        }
    }
}

#[test]
fn a_rotten_slot_of_the_mark_lets_no_acknowledged_entry_be_cut() {
    for slot in [0, 4096] {
        let env = FaultEnv::new();
        let log = open(&env);
        for vlsn in 1..=5 {
            fill(&log, vlsn, vlsn, 100);
            log.sync_now().unwrap();
        }
        let after = env.clone_image(Survivors::None);
        after.corrupt(&dir().join("tail-mark"), slot + 30, 1).unwrap();
        let (log, report) = Log::open(Arc::new(after), dir(), quiet()).unwrap();
        assert!(report.head_uncertain, "slot at {slot}");
        assert_eq!(log.positions().last, vlsn_of(5));
    }
}

#[test]
fn a_failed_sync_of_the_mark_tells_nobody_and_stops_the_log() {
    let env = FaultEnv::new();
    let log = open(&env);
    let told = told(&log);
    fill(&log, 1, 1, 10);
    log.sync_now().unwrap();
    append(&log, 1, &body(2, 10)).unwrap();
    // Data written, data synced, mark written, mark synced.
    env.fail_at(env.calls() + 4, Fault::IO);
    let error = log.wait_durable(vlsn_of(2)).unwrap_err();
    assert!(error.to_string().contains("tail-mark"), "{error}");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(log.positions().durable, vlsn_of(1));
    assert!(matches!(log.sync_now(), Err(LogError::Poisoned { .. })));
}

#[test]
fn a_lone_committer_writes_syncs_and_marks_in_its_own_thread() {
    for tail_mark in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        let log = try_open(&FaultEnv::new(), LogConfig { tail_mark, ..quiet() }).unwrap();
        let me = std::thread::current().id();
        let told = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&told);
        log.on_durable(move |vlsn| hook.lock().push((vlsn, std::thread::current().id())));
        for vlsn in 1..=20 {
            fill(&log, vlsn, vlsn, 500);
            log.wait_durable(vlsn_of(vlsn)).unwrap();
        }
        let expected: Vec<_> = (1..=20).map(|vlsn| (vlsn_of(vlsn), me)).collect();
        assert_eq!(*told.lock(), expected, "{tail_mark}");
    }
}

#[test]
fn the_next_batch_is_written_and_synced_while_the_mark_of_the_last_one_is() {
    let env = GatedMarks::new();
    let log = open(&env);
    let told = told(&log);
    fill(&log, 1, 1, 100);
    log.sync_now().unwrap();
    env.gate.close();
    std::thread::scope(|scope| {
        append(&log, 1, &body(2, 100)).unwrap();
        let first = scope.spawn(|| log.wait_durable(vlsn_of(2)));
        env.gate.wait_for_somebody();
        append(&log, 1, &body(3, 100)).unwrap();
        let syncs = env.data_syncs();
        let second = scope.spawn(|| log.wait_durable(vlsn_of(3)));
        while env.data_syncs() == syncs {
            std::thread::yield_now();
        }
        let positions = log.positions();
        assert_eq!((positions.written, positions.durable), (vlsn_of(3), vlsn_of(1)));
        assert_eq!(told.load(Ordering::SeqCst), 1, "nobody is told before the mark is synced");
        env.gate.open();
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(marked(&env.inner.clone_image(Survivors::None)), vlsn_of(3));
}

#[test]
fn requests_alone_keep_both_stages_busy() {
    let env = GatedMarks::new();
    let log = open(&env);
    env.gate.close();
    append(&log, 1, &body(1, 100)).unwrap();
    log.request_sync();
    env.gate.wait_for_somebody();
    append(&log, 1, &body(2, 100)).unwrap();
    let syncs = env.data_syncs();
    log.request_sync();
    while env.data_syncs() == syncs {
        std::thread::yield_now();
    }
    assert_eq!(log.positions().durable, NULL_VLSN);
    env.gate.open();
    log.wait_durable(vlsn_of(2)).unwrap();
}

#[test]
fn a_truncation_waits_until_no_mark_is_being_made() {
    let env = GatedMarks::new();
    let log = open(&env);
    fill(&log, 1, 3, 100);
    log.sync_now().unwrap();
    env.gate.close();
    std::thread::scope(|scope| {
        append(&log, 1, &body(4, 100)).unwrap();
        let committer = scope.spawn(|| log.sync_now());
        env.gate.wait_for_somebody();
        let truncation = scope.spawn(|| log.truncate_after(vlsn_of(2), Cut::Discard));
        assert!(!truncation.is_finished());
        assert!(log.control().state().truncate_intent.is_none());
        env.gate.open();
        committer.join().unwrap().unwrap();
        truncation.join().unwrap().unwrap();
    });
    let status = log.mark_status();
    assert_eq!((status.marked, status.durable), (vlsn_of(2), vlsn_of(2)));
    assert_eq!(marked(&env.inner.clone_image(Survivors::None)), vlsn_of(2));
}

#[test]
fn a_log_cut_below_its_mark_and_grown_beyond_it_opens_after_a_crash() {
    for tail_mark in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        let env = FaultEnv::new();
        let log = try_open(&env, LogConfig { tail_mark, ..quiet() }).unwrap();
        fill(&log, 1, 100, 20);
        log.sync_now().unwrap();
        log.truncate_after(vlsn_of(90), Cut::Discard).unwrap();
        fill(&log, 91, 101, 30);
        for seed in 0..20 {
            let log = open(&env.clone_image(Survivors::Random(seed)));
            assert!(log.positions().last >= vlsn_of(90), "{tail_mark}, seed {seed}");
        }
        log.sync_now().unwrap();
        let after = open(&env.clone_image(Survivors::None));
        assert_eq!(after.positions().last, vlsn_of(101), "{tail_mark}");
        assert_eq!(bodies(&after), bodies(&log), "{tail_mark}");
    }
}

#[test]
fn a_lazy_mark_delays_nobody_says_what_it_leaves_open_and_follows() {
    let env = GatedMarks::new();
    let log = try_open(&env, lazy()).unwrap();
    let told = told(&log);
    fill(&log, 1, 2, 100);
    log.wait_durable(vlsn_of(2)).unwrap();
    while log.mark_status().exempt() > 0 {
        std::thread::yield_now();
    }
    env.gate.close();
    let last = {
        fill(&log, 3, 4, 100);
        log.wait_durable(vlsn_of(4)).unwrap();
        // The mark is being synced; commits go on.
        env.gate.wait_for_somebody();
        fill(&log, 5, 5, 100);
        let last = append(&log, 1, &body(6, 100)).unwrap();
        log.wait_durable(last.last).unwrap();
        last
    };
    assert_eq!(told.load(Ordering::SeqCst), 6);
    let status = log.mark_status();
    assert_eq!(status.policy, MarkPolicy::Lazy);
    assert_eq!((status.marked, status.durable, status.exempt()), (vlsn_of(2), vlsn_of(6), 4));
    // That is the exemption: rot in what was acknowledged, taken for a torn write.
    let after = env.inner.clone_image(Survivors::None);
    assert_eq!(open(&after.clone_image(Survivors::None)).positions().last, vlsn_of(6));
    assert!(is_rot_cut(&after, u64::from(last.last_lsn.offset()), last.last));
    env.gate.open();
    while log.mark_status().exempt() > 0 {
        std::thread::yield_now();
    }
    let after = env.inner.clone_image(Survivors::None);
    assert_eq!(marked(&after), vlsn_of(6));
    assert!(!is_rot_cut(&after, u64::from(last.last_lsn.offset()), last.last));
}

#[test]
fn closing_leaves_nothing_exempt() {
    for tail_mark in [MarkPolicy::Strict, MarkPolicy::Lazy] {
        let env = FaultEnv::new();
        let log = try_open(&env, LogConfig { tail_mark, ..quiet() }).unwrap();
        fill(&log, 1, 7, 100);
        log.close().unwrap();
        assert_eq!(marked(&env.clone_image(Survivors::None)), vlsn_of(7), "{tail_mark}");
    }
}

#[test]
fn every_sync_is_timed() {
    let log = open(&FaultEnv::new());
    for vlsn in 1..=9 {
        fill(&log, vlsn, vlsn, 10);
        log.sync_now().unwrap();
    }
    let took = log.sync_latencies();
    assert_eq!((took.data.count(), took.mark.count()), (9, 9));
    assert!(took.data.quantile(1.0) > Duration::ZERO);
}

/// A file system in which syncs of the tail mark wait at a gate.
#[derive(Debug, Clone)]
struct GatedMarks {
    inner: FaultEnv,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    waiting: usize,
}

impl Gate {
    fn close(&self) {
        self.state.lock().closed = true;
    }

    fn open(&self) {
        self.state.lock().closed = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.closed {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
    }

    fn wait_for_somebody(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 {
            self.changed.wait(&mut state);
        }
    }
}

impl GatedMarks {
    fn new() -> Self {
        Self { inner: FaultEnv::new(), gate: Arc::default() }
    }

    fn data_syncs(&self) -> usize {
        let is_data = |path: &Path| path.extension().is_some_and(|suffix| suffix == "nlog");
        let trace = self.inner.trace();
        trace.iter().filter(|call| call.function == "sync_data" && is_data(&call.path)).count()
    }
}

impl Env for GatedMarks {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn EnvFile>> {
        let file = self.inner.open(path, mode)?;
        if path.file_name().is_some_and(|name| name == "tail-mark.new" || name == "tail-mark") {
            return Ok(Arc::new(GatedFile { file, gate: Arc::clone(&self.gate) }));
        }
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.inner.lock(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.inner.free_bytes(dir)
    }
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn EnvFile>,
    gate: Arc<Gate>,
}

impl EnvFile for GatedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(parts, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass();
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
