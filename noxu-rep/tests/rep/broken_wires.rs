//! Broken wires: whole nodes whose connections corrupt and break, and peers of other versions.

use std::time::Duration;

use noxu_rep::net::dispatcher::{FEEDER_SERVICE_NAME, dial};
use noxu_rep::wire::handshake::{RejectReason, VersionRange, handshake_as_replica};
use noxu_rep::{Durability, RepError};

use crate::door::Trouble;
use crate::rig::{Disk, Options, Rig, SOON, eventually, v};
use crate::state_map::{parse_put, put_body, put_entry};
use crate::support::hello;

fn pair() -> Options {
    Options { members: 2, ..Options::default() }
}

#[test]
fn an_entry_corrupted_on_the_wire_costs_one_connection_and_nothing_else() {
    let rig = Rig::running(pair());
    for n in 0..8 {
        rig.door(0).trouble_after(20_000 + n * 20_000, Trouble::FlippedBit);
        rig.put(0, &format!("k{n}"), &vec![n as u8; 200_000], Durability::ALL).unwrap();
        let error = rig.status(1).last_error.expect("the connection ended with an error");
        assert!(error.contains("crc"), "{error}");
    }
    rig.await_fed(1);
    assert_eq!(rig.node(1).failure(), None);
    assert_eq!(rig.status(1).last_rollback, None);
    assert_eq!(rig.map(1).content(), rig.map(0).content());
    rig.assert_logs_equal(&[0, 1]);
}

#[test]
fn an_entry_of_many_frames_arrives_whole_though_the_connection_breaks_in_it() {
    let rig = Rig::running(pair());
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (n, at) in [1_000, 100_000, 1_048_570, 2_500_000, 4_990_000].into_iter().enumerate() {
        rig.put(0, "small", b"1", Durability::ALL).unwrap();
        rig.door(0).trouble_after(at, Trouble::Cut);
        rig.put(0, &format!("k{n}"), &large, Durability::ALL).unwrap();
    }
    rig.await_fed(1);
    assert_eq!(rig.map(1).value("k4").as_deref(), Some(&large[..]));
    assert_eq!(rig.map(1).content(), rig.map(0).content());
    rig.assert_logs_equal(&[0, 1]);
}

#[test]
fn committers_in_any_number_get_their_places_in_log_order_and_both_replicas_the_same_files() {
    for committers in [1, 8, 64] {
        let rig = Rig::running(Options { disk: Disk::Real, ..Options::default() });
        std::thread::scope(|scope| {
            for committer in 0..committers {
                let rig = &rig;
                scope.spawn(move || {
                    let mut before = v(0);
                    for n in 0..256 / committers {
                        let bodies = ["a", "b"].map(|part| {
                            put_body(&format!("{committer}-{n}-{part}"), &vec![1; n * 13 % 700])
                        });
                        let batch = [put_entry(&bodies[0], false), put_entry(&bodies[1], true)];
                        let done = rig.node(0).commit(&batch, Durability::MAJORITY).unwrap();
                        assert!(done.vlsn() > before.next(), "both entries after {before}");
                        before = done.vlsn();
                        // The place it was told is where its transaction stands, unbroken.
                        let run = rig.log(0).read(before.prev(), 1 << 16).unwrap().unwrap();
                        for (entry, body) in run.entries().zip(&bodies) {
                            assert_eq!(parse_put(entry.body), parse_put(body));
                        }
                    }
                });
            }
        });
        for number in [1, 2] {
            rig.await_fed(number);
            assert_eq!(rig.map(number).content(), rig.map(0).content());
        }
        rig.assert_logs_equal(&[0, 1, 2]);
    }
}

#[test]
fn another_version_is_spoken_if_both_can_and_a_clock_that_is_off_only_warns() {
    let rig = Rig::with_lone_master(pair());
    let connect = |lowest, highest| {
        let channel = dial(&rig.door(0).address(), FEEDER_SERVICE_NAME, SOON).unwrap();
        let mut hello = hello("n2", 5);
        hello.versions = VersionRange { lowest, highest };
        handshake_as_replica(&*channel, &hello)
    };
    let spoken = VersionRange::SPOKEN.highest;
    for (lowest, highest) in [(1, spoken), (spoken, spoken), (spoken, spoken + 1)] {
        let welcome = connect(lowest, highest).unwrap();
        assert_eq!(welcome.version, spoken);
        let skew = welcome.clock_skew_ms.expect("a clock that says 1970");
        assert!(skew < -Duration::from_hours(24).as_millis().cast_signed() as i64, "{skew}");
    }
    for (lowest, highest) in [(1, spoken - 1), (spoken + 1, spoken + 2)] {
        let error = connect(lowest, highest).unwrap_err();
        assert!(matches!(error, RepError::Rejected(RejectReason::Version { .. })), "{error}");
    }
    eventually("the sessions end", || rig.status(0).replicas.is_empty());
}
