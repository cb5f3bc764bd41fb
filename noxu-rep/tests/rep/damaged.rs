//! Damaged logs: entries that rotted while their node was down, taken back from others or cut off.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::ENTRY_HEADER_BYTES;
use noxu_rep::{Durability, Role};

use noxu_util::NULL_VLSN;

use crate::elections::{Group, SOON};
use crate::support::{Ledger, assert_same_logs, entry, eventually};

/// Flips a bit in the middle of the only occurrence of `body` in the log of node `n`, which is down.
pub(crate) fn rot(group: &Group, n: usize, body: &str) {
    damage(group, n, body, |bytes, at| bytes[at + body.len() / 2] ^= 0x10);
}

/// Nothing but zeros stands where the entry with `body` was: not even its length can be read.
fn wipe_out(group: &Group, n: usize, body: &str) {
    damage(group, n, body, |bytes, at| bytes[at - ENTRY_HEADER_BYTES..at + body.len()].fill(0));
}

fn damage(group: &Group, n: usize, body: &str, inflict: impl Fn(&mut [u8], usize)) {
    let mut found = 0;
    for file in segments(group, n) {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.windows(body.len()).position(|window| window == body.as_bytes());
        if let Some(at) = at {
            inflict(&mut bytes, at);
            fs::write(&file, &bytes).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "{body:?} in the log of n{}", n + 1);
}

/// Every entry of segment `number` in the log of node `n` is rotten.
fn rot_all_over(group: &Group, n: usize, number: u32) {
    let file = group.config(n).dir.join(format!("log/{number:010}.nlog"));
    let mut bytes = fs::read(&file).unwrap();
    bytes.iter_mut().skip(100).step_by(40).for_each(|byte| *byte ^= 0x10);
    fs::write(&file, &bytes).unwrap();
}

fn segments(group: &Group, n: usize) -> Vec<PathBuf> {
    let dir = group.config(n).dir.join("log");
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|kind| kind == "nlog")).collect()
}

/// Commits "body number 0000" and so on through 0199, which fill several segments of 4 KiB.
fn commit_bodies(group: &Group, master: usize, durability: Durability) {
    for number in 0..200 {
        let body = format!("body number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], durability).unwrap();
    }
}

fn three_with(bodies: u32) -> (Group, usize) {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = SOON;
    (0..3).for_each(|n| group.start(n));
    let master = group.await_master();
    for number in 0..bodies {
        let body = format!("body number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], Durability::MAJORITY).unwrap();
    }
    group.await_everywhere(&format!("body number {:04}", bodies - 1));
    (group, master)
}

#[test]
fn a_replica_takes_a_rotten_entry_back_from_its_master() {
    let (mut group, master) = three_with(40);
    let replica = (master + 1) % 3;
    group.stop(replica);
    rot(&group, replica, "body number 0007");
    group.start(replica);
    group.commit("after");
    group.await_everywhere("after");
    assert_eq!(group.ledger(replica).bodies(), group.ledger(master).bodies());
    assert_same_logs(&group.node(replica).log(), &group.node(master).log());
    assert_eq!(group.node(replica).log().faulty(), []);
}

#[test]
fn a_replica_takes_back_what_it_does_not_need_itself_any_more() {
    let (mut group, master) = three_with(40);
    let replica = (master + 1) % 3;
    let machine = Arc::clone(group.ledger(replica));
    machine.take_checkpoint();
    group.stop(replica);
    rot(&group, replica, "body number 0007");
    group.start_over(replica, machine);
    group.commit("after");
    group.await_everywhere("after");
    assert_eq!(group.node(replica).log().faulty(), []);
    assert_same_logs(&group.node(replica).log(), &group.node(master).log());
}

#[test]
fn a_rotten_last_entry_counts_as_present_and_is_taken_back_by_whoever_is_elected_with_it() {
    let (mut group, _) = three_with(40);
    (0..3).for_each(|n| group.stop(n));
    // Every node is damaged somewhere, and each entry is whole on two of them.
    rot(&group, 0, "body number 0039");
    rot(&group, 1, "body number 0020");
    rot(&group, 2, "body number 0003");
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("after");
    group.await_everywhere("after");
    for n in 0..3 {
        assert_eq!(group.ledger(n).bodies().len(), 41, "n{}", n + 1);
        assert_eq!(group.node(n).log().faulty(), []);
        assert_same_logs(&group.node(n).log(), &group.node(master).log());
    }
}

#[test]
fn a_rotten_entry_that_nobody_else_ever_had_goes_with_the_rollback() {
    let (mut group, master) = three_with(10);
    group.leave_alone(master);
    for body in ["lost and whole", "lost and rotten", "lost behind it"] {
        group.node(master).commit(&[entry(body.as_bytes())], Durability::LOCAL).unwrap();
    }
    group.stop(master);
    rot(&group, master, "lost and rotten");
    (0..3).filter(|n| *n != master).for_each(|n| group.start(n));
    let next = group.commit("after");
    group.start(master);
    group.await_everywhere("after");
    let bodies = group.ledger(master).bodies();
    assert!(!bodies.iter().any(|body| body.starts_with(b"lost")), "{bodies:?}");
    assert_same_logs(&group.node(master).log(), &group.node(next).log());
}

/// Three nodes, all down. The first, whose log ends with "shared", which the second has too, and "own",
/// cannot read either: it does not know where the one ends. The third has neither.
fn two_entries_of_which_another_has_the_first() -> (Group, [usize; 3]) {
    let (mut group, master) = three_with(10);
    let (second, third) = ((master + 1) % 3, (master + 2) % 3);
    group.stop(third);
    group.node(master).commit(&[entry(b"shared")], Durability::MAJORITY).unwrap();
    group.stop(second);
    eventually("it is alone", || group.node(master).status().replicas.is_empty());
    group.node(master).commit(&[entry(b"own")], Durability::LOCAL).unwrap();
    group.stop(master);
    wipe_out(&group, master, "shared");
    wipe_out(&group, master, "own");
    (group, [master, second, third])
}

#[test]
fn who_is_elected_takes_back_what_a_node_that_lags_has_of_a_damaged_range() {
    let (mut group, [first, second, third]) = two_entries_of_which_another_has_the_first();
    group.start(first);
    group.start(third);
    eventually("elected, and waits", || {
        group.node(first).status().term > group.node(third).log().positions().last_term
    });
    assert_ne!(group.node(first).status().role, Role::Master, "the durable entry may be elsewhere");
    group.start(second);
    group.commit("after");
    group.await_everywhere("after");
    for n in [first, second, third] {
        let bodies = group.ledger(n).bodies();
        assert!(bodies.iter().any(|body| body == b"shared"), "n{}: {bodies:?}", n + 1);
        assert_eq!(group.node(n).log().faulty(), []);
        assert_same_logs(&group.node(n).log(), &group.node(first).log());
    }
}

#[test]
fn a_replica_takes_back_what_its_master_has_of_a_damaged_range_and_the_rest_is_cut_off() {
    let (mut group, [first, second, third]) = two_entries_of_which_another_has_the_first();
    group.start(second);
    group.start(third);
    let next = group.commit("after");
    group.start(first);
    group.await_everywhere("after");
    let bodies = group.ledger(first).bodies();
    let has = |wanted: &[u8]| bodies.iter().any(|body| body == wanted);
    assert!(has(b"shared") && !has(b"own"), "{bodies:?}");
    assert_same_logs(&group.node(first).log(), &group.node(next).log());
    assert_eq!(group.node(first).log().faulty(), []);
}

/// What was written long ago is not read when a node starts, but when its log is compared with the
/// master's.
#[test]
fn old_entries_that_are_met_rotten_in_the_comparison_are_taken_back() {
    let mut group = Group::of(3);
    group.timing.quorum_timeout = SOON;
    group.segment_bytes = 4 << 10;
    (0..3).for_each(|n| group.start(n));
    let master = group.await_master();
    commit_bodies(&group, master, Durability::ALL);
    let sealed = |group: &Group| group.node(master).log().sealed_segments();
    eventually("segments are sealed", || sealed(&group).len() > 1);
    group.leave_alone(master);
    // Logs that part are searched for where they do.
    for number in 0..50 {
        let body = format!("lost number {number:04}");
        group.node(master).commit(&[entry(body.as_bytes())], Durability::LOCAL).unwrap();
    }
    let machine = Arc::clone(group.ledger(master));
    let rotten: Vec<_> = sealed(&group).iter().map(|segment| segment.number).collect();
    group.stop(master);
    for number in rotten {
        rot_all_over(&group, master, number);
    }
    (0..3).filter(|n| *n != master).for_each(|n| group.start(n));
    let next = group.commit("after");
    group.start_over(master, machine);
    group.await_everywhere("after");
    assert_eq!(group.node(master).log().faulty(), []);
    assert_same_logs(&group.node(master).log(), &group.node(next).log());
}

/// Sealed segments are not read when a node starts, but when the state machine is brought up.
#[test]
fn old_entries_that_the_state_machine_meets_rotten_are_taken_back() {
    let mut group = Group::of(3);
    group.segment_bytes = 4 << 10;
    (0..3).for_each(|n| group.start(n));
    let master = group.await_master();
    commit_bodies(&group, master, Durability::ALL);
    for rotten in [(master + 1) % 3, master] {
        let sealed = || group.node(rotten).log().sealed_segments();
        eventually("segments are sealed", || sealed().len() > 1);
        group.await_everywhere("body number 0199");
        group.stop(rotten);
        rot(&group, rotten, "body number 0007");
        group.start(rotten);
        group.commit("after");
        group.await_everywhere("after");
        assert_eq!(group.node(rotten).log().faulty(), []);
        assert!(group.node(rotten).status().last_restore.is_none());
    }
}

/// Others have the same segments sealed, so that nobody need make way.
#[test]
fn a_master_that_cannot_read_what_is_sealed_of_its_log_takes_it_back_and_stays_master() {
    let (mut group, [master, away]) = three_of_which_one_is_to_go(4 << 10);
    let machine = Arc::clone(group.ledger(away));
    group.stop(away);
    commit_bodies(&group, master, Durability::MAJORITY);
    let sealed = || group.node(master).log().sealed_segments();
    eventually("segments are sealed", || sealed().len() > 1);
    let rotten = sealed();
    let other = 3 - master - away;
    let has_all = || group.node(other).log().sealed_segments().len() >= rotten.len();
    eventually("the other has as many", has_all);
    for segment in &rotten {
        rot_all_over(&group, master, segment.number);
    }
    comes_back(&mut group, away, machine);
    assert_eq!(group.commit("after"), master);
    group.await_everywhere("after");
    let status = group.node(master).status();
    assert!(status.damage.mended_blocks >= rotten.len() as u64, "{:?}", status.damage);
    assert_eq!((status.damage.open, status.damage.mended_runs), (vec![], 0));
}

/// The same where nothing is sealed yet: entries still come to the segment that has rotted.
#[test]
fn a_master_that_cannot_read_the_segment_that_it_writes_makes_way_for_one_that_can() {
    let (mut group, [master, away]) = three_of_which_one_is_to_go(1 << 20);
    let machine = Arc::clone(group.ledger(away));
    group.stop(away);
    commit_bodies(&group, master, Durability::MAJORITY);
    rot_all_over(&group, master, 1);
    comes_back(&mut group, away, machine);
    assert_ne!(group.commit("after"), master);
    group.await_everywhere("after");
}

/// Three nodes that have one entry, and read little of their logs in memory. Returns the master and
/// another.
fn three_of_which_one_is_to_go(segment_bytes: u32) -> (Group, [usize; 2]) {
    let mut group = Group::of(3);
    group.segment_bytes = segment_bytes;
    group.tail_bytes = 4 << 10;
    (0..3).for_each(|n| group.start(n));
    let master = group.commit("begun");
    group.await_everywhere("begun");
    (group, [master, (master + 1) % 3])
}

fn comes_back(group: &mut Group, away: usize, machine: Arc<Ledger>) {
    group.start_over(away, machine);
    eventually("it has everything", || {
        group.ledger(away).bodies().contains(&b"body number 0199".to_vec())
    });
}

/// Three nodes, of which the first, which has `rotten` damaged below its checkpoint and holds more than
/// the second, is elected, and the third has to be restored. Returns who is which.
fn a_master_with_damage_that_it_does_not_need_itself(rotten: &str) -> (Group, [usize; 3]) {
    let mut group = Group::of(3);
    group.segment_bytes = 4 << 10;
    (0..3).for_each(|n| group.start(n));
    let first = group.await_master();
    let (second, third) = ((first + 1) % 3, (first + 2) % 3);
    commit_bodies(&group, first, Durability::ALL);
    group.await_everywhere("body number 0199");
    for n in [first, second] {
        eventually("segments are sealed", || group.node(n).log().sealed_segments().len() > 1);
        let dropped = || group.node(n).drop_front(NULL_VLSN).unwrap() > NULL_VLSN;
        eventually("the front is dropped", dropped);
    }
    let machines = [first, second].map(|n| (n, Arc::clone(group.ledger(n))));
    for (_, machine) in &machines {
        machine.take_checkpoint();
    }
    // Who holds more than the others is elected.
    group.stop(third);
    group.stop(second);
    eventually("it is alone", || group.node(first).status().replicas.is_empty());
    group.node(first).commit(&[entry(b"own")], Durability::LOCAL).unwrap();
    group.stop(first);
    rot(&group, first, rotten);
    for (n, machine) in machines {
        group.start_over(n, machine);
    }
    assert_eq!(group.await_master(), first);
    fs::remove_dir_all(group.config(third).dir).unwrap();
    group.start_joining(third);
    (group, [first, second, third])
}

#[test]
fn a_master_that_cannot_give_all_of_its_log_away_makes_way_for_one_that_can() {
    let (group, [first, _, third]) =
        a_master_with_damage_that_it_does_not_need_itself("body number 0190");
    eventually("it was restored", || group.node(third).status().last_restore.is_some());
    assert_ne!(group.commit("after"), first);
    group.await_everywhere("after");
    assert_eq!(group.node(first).log().faulty(), []);
}

/// The second's log ends with the damaged entry, so nobody can be brought level before it is mended.
#[test]
fn a_master_takes_back_what_it_does_not_need_itself_when_nobody_else_could_be_master() {
    let (group, [first, _, third]) =
        a_master_with_damage_that_it_does_not_need_itself("body number 0199");
    eventually("it was restored", || group.node(third).status().last_restore.is_some());
    group.commit("after");
    group.await_everywhere("after");
    assert_eq!(group.node(first).log().faulty(), []);
}

/// Two of three are up and the entry is damaged on both: it may be durable, so nobody may go on
/// without the third.
#[test]
fn a_durable_entry_that_is_rotten_on_all_that_are_there_is_waited_for() {
    let (mut group, _) = three_with(10);
    (0..3).for_each(|n| group.stop(n));
    rot(&group, 0, "body number 0009");
    rot(&group, 1, "body number 0009");
    group.start(0);
    group.start(1);
    eventually("one mends its log", || {
        group.running().any(|(_, node)| node.status().reason.contains("mends"))
    });
    for (n, node) in group.running() {
        assert_ne!(node.role(), Role::Master, "n{} is master without a durable entry", n + 1);
    }
    group.start(2);
    group.commit("after");
    group.await_everywhere("after");
    for n in 0..3 {
        assert_eq!(group.ledger(n).bodies().len(), 11, "n{}", n + 1);
    }
}
