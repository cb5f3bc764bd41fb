//! Full disks: whoever has one stops taking or acknowledging, says so, and goes on by itself.

use noxu_rep::{Durability, RepError, Role};

use crate::rig::{Disk, Options, Rig, eventually};

fn rig() -> Rig {
    Rig::running(Options { disk: Disk::Fault, ..Options::default() })
}

/// Writes as few bytes as fit into nothing that has room yet: sectors are whole.
const VALUE: [u8; 600] = [7; 600];

#[test]
fn a_replica_with_a_full_disk_stops_acknowledging_and_catches_up_by_itself() {
    let rig = rig();
    rig.put(0, "before", &VALUE, Durability::ALL).unwrap();
    rig.fault_disk(2).set_full(true);
    for n in 0..20 {
        rig.put(0, &format!("{n}"), &VALUE, Durability::MAJORITY).unwrap();
    }
    eventually("it says that its disk is full", || rig.status(2).read_only.is_some());
    let stuck = rig.status(2).positions.durable;
    assert!(stuck < rig.last(0));
    eventually("the master does without it", || rig.status(0).replicas.len() == 1);
    assert_eq!(rig.node(2).failure(), None, "it did not stop");
    eventually("it follows nobody meanwhile", || rig.status(2).role == Role::Unknown);
    let reason = rig.status(2).last_error.unwrap_or_default();
    assert!(reason.contains("read-only"), "{reason}");
    rig.put(0, "meanwhile", &VALUE, Durability::MAJORITY).unwrap();
    rig.fault_disk(2).set_full(false);
    rig.put(0, "after", &VALUE, Durability::ALL).unwrap();
    rig.await_fed(2);
    assert_eq!(rig.status(2).read_only, None);
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn a_master_with_a_full_disk_refuses_writes_clearly_and_takes_them_again_by_itself() {
    let rig = rig();
    rig.put(0, "before", &VALUE, Durability::ALL).unwrap();
    rig.fault_disk(0).set_full(true);
    let mut taken = 0;
    let refused = loop {
        // What was assigned before the disk was found full reaches the two others all the same.
        match rig.put(0, &format!("{taken}"), &VALUE, Durability::WRITE_MAJORITY) {
            Ok(_) => taken += 1,
            Err(cause) => break cause,
        }
    };
    assert!(matches!(refused, RepError::ReadOnly(_)), "{refused}");
    assert!(refused.to_string().contains("nothing was written"), "{refused}");
    let status = rig.status(0);
    assert_eq!((status.role, status.read_only.is_some()), (Role::Master, true));
    let last = rig.last(0);
    rig.await_applied(1, last);
    assert!(status.positions.durable < last, "its own disk has no room for that");
    rig.fault_disk(0).set_full(false);
    eventually("it takes writes", || rig.status(0).read_only.is_none());
    let next = rig.put(0, "after", &VALUE, Durability::ALL).unwrap().vlsn();
    assert_eq!(next, last.next(), "no VLSN is left out or given twice");
    for number in [1, 2] {
        rig.await_fed(number);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn a_group_whose_disks_are_all_full_keeps_its_master_and_goes_on_when_there_is_room() {
    let rig = rig();
    rig.put(0, "before", &VALUE, Durability::ALL).unwrap();
    for number in 0..3 {
        rig.fault_disk(number).set_full(true);
    }
    eventually("the master refuses writes", || {
        let refused = rig.node(0).submit(
            &[crate::state_map::put_entry(&crate::state_map::put_body("k", &VALUE), true)],
            Durability::LOCAL,
        );
        matches!(refused, Err(RepError::ReadOnly(_)))
    });
    assert_eq!(rig.status(0).role, Role::Master);
    for number in 0..3 {
        assert_eq!(rig.node(number).failure(), None);
        rig.fault_disk(number).set_full(false);
    }
    eventually("it takes writes", || rig.status(0).read_only.is_none());
    rig.put(0, "after", &VALUE, Durability::ALL).unwrap();
    for number in [1, 2] {
        rig.await_fed(number);
    }
    rig.assert_logs_equal(&[0, 1, 2]);
}

#[test]
fn a_deposed_master_with_a_full_disk_rolls_back_and_follows_when_there_is_room() {
    let mut rig = rig();
    rig.put(0, "shared", &VALUE, Durability::ALL).unwrap();
    rig.stop(1);
    rig.stop(2);
    for n in 0..3 {
        rig.put(0, &format!("lost {n}"), &VALUE, Durability::LOCAL).unwrap();
    }
    rig.stop(0);
    rig.start_master(1);
    rig.start_replica(2);
    rig.put(1, "kept", &VALUE, Durability::MAJORITY).unwrap();
    let room = 16 << 10; // for the lost entries and the control file's neighbours
    let used = rig.fault_disk(0).used_bytes();
    rig.fault_disk(0).set_capacity(Some(used + room));
    rig.start_replica(0);
    eventually("it rolls back", || rig.status(0).last_rollback.is_some());
    assert_eq!(rig.lost_keys(0).len(), 3);
    for n in 0..100 {
        rig.put(1, &format!("more {n}"), &VALUE, Durability::MAJORITY).unwrap();
    }
    eventually("its disk is full", || rig.status(0).read_only.is_some());
    rig.fault_disk(0).set_capacity(None);
    rig.await_fed(0);
    rig.assert_logs_equal(&[0, 1, 2]);
}
