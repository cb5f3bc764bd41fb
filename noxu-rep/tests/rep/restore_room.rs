//! Restores on disks that have no room for them.

use noxu_log::env::{Env, FaultEnv};
use noxu_rep::{Durability, Role, Status};

use crate::elections::{Group, SOON};
use crate::support::{assert_same_logs, entry, eventually};

/// Its disk is the one that is full.
const FULL: usize = 2;

/// A group of three that has committed something; its master, and the bytes of its sealed segments.
fn group_on(disk: &FaultEnv) -> (Group, usize, u64) {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = SOON;
    group.segment_bytes = 4 << 10;
    group.start(0);
    group.start(1);
    group.start_on(disk, FULL);
    let master = group.await_master();
    for number in 0..200 {
        let body = format!("body number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], Durability::ALL).unwrap();
    }
    let sealed = || group.node(master).log().sealed_segments();
    eventually("segments are sealed", || sealed().len() > 1);
    let bytes = sealed().iter().map(|segment| u64::from(segment.bytes)).sum();
    (group, master, bytes)
}

/// The node is restored; its log is the master's.
fn await_restored(group: &Group, master: usize) {
    eventually("it is restored", || group.node(FULL).status().last_restore.is_some());
    group.await_everywhere("meanwhile");
    assert_same_logs(&group.node(FULL).log(), &group.node(master).log());
}

fn finds_no_room(status: &Status) -> bool {
    let says = |error: &String| error.contains("a restore finds no room");
    status.last_error.as_ref().is_some_and(says)
}

/// `room` is what is left on its disk, as a multiple of the bytes that are to come.
fn is_restored_once_there_is_room(room: f64) {
    let disk = FaultEnv::new();
    let (group, master, bytes) = group_on(&disk);
    disk.set_capacity(Some(disk.used_bytes() + (bytes as f64 * room) as u64));
    assert!(group.node(FULL).request_restore().unwrap());
    let status = || group.node(FULL).status();
    eventually("it says so", || finds_no_room(&status()));
    eventually("its master says so", || {
        let recoveries = group.node(master).status().recoveries;
        recoveries.iter().any(|(_, shown)| shown.to_string() == "degraded: no space on its disk")
    });
    assert_eq!(group.commit("meanwhile"), master);
    assert_ne!(status().role, Role::Stopped, "{:?}", status());
    assert!(status().last_restore.is_none() && group.node(FULL).restore_pending().unwrap());
    disk.set_capacity(None);
    await_restored(&group, master);
}

#[test]
fn a_restore_that_would_find_no_room_for_the_log_waits_for_it() {
    is_restored_once_there_is_room(0.5);
}

#[test]
fn a_restore_that_finds_no_room_on_its_way_waits_for_it() {
    is_restored_once_there_is_room(1.02);
}

/// The room of `disk` goes when all of a restore is fetched, and only log and state are left to be replaced.
/// The node waits for it.
fn await_no_room_to_install(group: &Group, master: usize, disk: &FaultEnv) {
    let commit = group.node(FULL).log().dir().join("restore/COMMIT.tmp");
    assert!(group.node(FULL).request_restore().unwrap());
    let mut renames = disk.hold_next("rename");
    renames.wait_until_met();
    while !disk.exists(&commit).unwrap() {
        let next = disk.hold_next("rename");
        drop(renames);
        next.wait_until_met();
        renames = next;
    }
    disk.set_full(true);
    drop(renames);
    let status = || group.node(FULL).status();
    eventually("it says so", || finds_no_room(&status()));
    assert_eq!(group.commit("meanwhile"), master);
    assert_eq!(status().role, Role::Restoring, "{:?}", status());
}

#[test]
fn a_restore_that_finds_no_room_to_be_installed_waits_for_it() {
    let disk = FaultEnv::new();
    let (group, master, _) = group_on(&disk);
    await_no_room_to_install(&group, master, &disk);
    disk.set_full(false);
    await_restored(&group, master);
}

#[test]
fn a_node_that_waits_for_room_can_be_shut_down_and_goes_on_at_its_next_start() {
    let disk = FaultEnv::new();
    let (mut group, master, _) = group_on(&disk);
    await_no_room_to_install(&group, master, &disk);
    group.node(FULL).shutdown().unwrap();
    assert_eq!(group.node(FULL).status().role, Role::Stopped);
    group.stop(FULL);
    disk.set_full(false);
    group.start_on(&disk, FULL);
    group.await_everywhere("meanwhile");
    assert!(!group.node(FULL).restore_pending().unwrap());
    assert_same_logs(&group.node(FULL).log(), &group.node(master).log());
}
