//! Disks that rot under running nodes: what is sealed comes back from whoever has it, while writers go on.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use noxu_log::segment::name::segment_name;
use noxu_log::{LogConfig, ScrubConfig};
use noxu_rep::{DamageEvent, Damaged, Durability, NodeConfig, Role, ScrubSummary, Unmended};

use crate::rig::{Disk, Options, Rig, eventually};
use crate::support::MASTER_PRIORITY;

type Told = Arc<Mutex<Vec<DamageEvent>>>;

fn options(scrub: Option<ScrubConfig>) -> Options {
    let log = LogConfig { tail_bytes: 16 << 10, prefill: false, scrub, ..LogConfig::default() };
    Options { disk: Disk::Fault, segment_bytes: 4 << 10, log, ..Options::default() }
}

/// Three nodes with several sealed segments each, and what each is told of damage.
fn rig(options: Options) -> (Rig, Vec<Told>) {
    let mut rig = Rig::new(options);
    let told: Vec<Told> = (0..3).map(|_| Told::default()).collect();
    (0..3).for_each(|number| start(&mut rig, number, &told));
    (1..3).for_each(|number| rig.await_fed(number));
    for n in 0..40 {
        rig.put(0, &format!("key {n}"), &[n; 500], Durability::ALL).unwrap();
    }
    (1..3).for_each(|number| rig.await_fed(number));
    for number in 0..3 {
        eventually("segments are sealed", || rig.log(number).sealed_segments().len() > 3);
    }
    (rig, told)
}

fn start(rig: &mut Rig, number: usize, told: &[Told]) {
    let told = Arc::clone(&told[number]);
    let priority = if number == 0 { MASTER_PRIORITY } else { 0 };
    let config = NodeConfig {
        on_damage: Some(Arc::new(move |event| told.lock().unwrap().push(event.clone()))),
        ..rig.config(number, priority)
    };
    rig.start(number, config).unwrap();
}

fn rot(rig: &Rig, number: usize, segment: u32, offset: u64) {
    rig.fault_disk(number).corrupt(&path(rig, number, segment), offset, 0x10).unwrap();
}

fn path(rig: &Rig, number: usize, segment: u32) -> PathBuf {
    rig.dir(number).join("log").join(segment_name(segment))
}

fn scrub(rig: &Rig, number: usize) -> ScrubSummary {
    rig.node(number).scrub(u64::MAX, |_| ControlFlow::Continue(())).unwrap()
}

/// Which segments came from whom.
fn mended(told: &Told) -> Vec<(u32, String)> {
    let told = told.lock().unwrap();
    let mended = told.iter().filter_map(|event| match event {
        DamageEvent::Mended { what: what @ Damaged::Block { .. }, from } => {
            Some((what.segment(), from.clone()))
        }
        _ => None,
    });
    mended.collect()
}

/// Replica and master are damaged, one of the segments on both, and nobody stops writing for it.
#[test]
fn sealed_segments_that_rot_on_replica_and_master_come_back_while_writers_go_on() {
    let (rig, told) = rig(options(None));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !done.load(Ordering::Acquire) || written < 50 {
                let key = format!("meanwhile {written}");
                rig.put(0, &key, &[9; 300], Durability::MAJORITY).unwrap();
                written += 1;
            }
        });
        rot(&rig, 1, 1, 70);
        rot(&rig, 1, 3, 900);
        rot(&rig, 0, 2, 700);
        rot(&rig, 0, 3, 300);
        rig.env(0).remove(&path(&rig, 0, 1)).unwrap();
        let replica = scrub(&rig, 1);
        let master = scrub(&rig, 0);
        done.store(true, Ordering::Release);
        writer.join().unwrap();
        assert_eq!((replica.read.damaged, replica.mended_blocks), (2, 2));
        assert_eq!((master.read.damaged, master.mended_blocks), (3, 3));
        assert_eq!((replica.open, master.open), (vec![], vec![]));
    });
    (1..3).for_each(|number| rig.await_fed(number));
    rig.assert_logs_equal(&[0, 1, 2]);
    assert_eq!(rig.map(0).content(), rig.map(1).content());
    eventually("it is told", || mended(&told[1]).len() == 2 && mended(&told[0]).len() == 3);
    assert_eq!(mended(&told[1]), [(1, "n3".to_owned()), (3, "n3".to_owned())], "not the master");
    let segments: Vec<_> = mended(&told[0]).into_iter().map(|(segment, _)| segment).collect();
    assert_eq!(segments, [1, 2, 3]);
    assert!(told[2].lock().unwrap().is_empty());
    for number in 0..2 {
        assert_eq!(scrub(&rig, number).read.damaged, 0);
        assert_eq!(rig.status(number).damage.open, []);
    }
    assert_eq!(rig.node(0).role(), Role::Master, "it never made way");
    assert_eq!(rig.status(0).term, rig.status(1).term);
}

#[test]
fn the_background_scrub_has_what_it_finds_mended_by_itself() {
    let every = ScrubConfig {
        bytes_per_second: u64::MAX,
        interval: Duration::from_millis(20),
        delay: Duration::ZERO,
    };
    let (mut rig, told) = rig(options(Some(every)));
    // One that has nothing to read looks again after a minute.
    for number in 1..3 {
        rig.stop(number);
        start(&mut rig, number, &told);
        rig.await_fed(number);
    }
    rot(&rig, 1, 2, 100);
    rot(&rig, 2, 3, 100);
    eventually("both are whole", || mended(&told[1]).len() == 1 && mended(&told[2]).len() == 1);
    rig.put(0, "after", b"1", Durability::ALL).unwrap();
    (1..3).for_each(|number| rig.await_fed(number));
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn what_nobody_has_is_shown_and_comes_when_a_peer_does() {
    let (mut rig, told) = rig(options(None));
    rig.stop(1);
    rot(&rig, 0, 2, 100);
    rot(&rig, 2, 2, 100);
    let found = scrub(&rig, 2);
    assert_eq!((found.read.damaged, found.mended_blocks), (1, 0));
    let [open] = &found.open[..] else { panic!("{found:?}") };
    assert_eq!((open.what.segment(), &open.why), (2, &Some(Unmended::WrongBytes)));
    assert!(open.attempts > 0 && open.again_in > Duration::ZERO);
    let found = scrub(&rig, 0);
    assert_eq!((found.read.damaged, found.mended_blocks, found.open.len()), (1, 0, 1));
    rig.put(0, "meanwhile", b"1", Durability::MAJORITY).unwrap();
    start(&mut rig, 1, &told);
    for number in [0, 2] {
        eventually("it is whole", || rig.status(number).damage.open.is_empty());
    }
    assert!(!mended(&told[0]).is_empty());
    rig.put(0, "after", b"1", Durability::ALL).unwrap();
    (1..3).for_each(|number| rig.await_fed(number));
    rig.assert_logs_equal(&[0, 1, 2]);
    assert_eq!(rig.node(0).role(), Role::Master, "it never made way");
}
