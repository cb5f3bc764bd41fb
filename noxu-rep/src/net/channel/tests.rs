//! Tests of the local channel; the same promises are tested for TCP in `net/tcp/tests.rs`.

use std::thread;
use std::time::{Duration, Instant};

use super::*;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

fn pair() -> (LocalChannel, LocalChannel) {
    let pair = LocalChannelPair::new();
    (pair.channel_a, pair.channel_b)
}

#[test]
fn frames_arrive_whole_in_order_and_once() {
    let (a, b) = pair();
    a.send(b"one").unwrap();
    a.send_vectored(&[b"t", b"", b"wo"]).unwrap();
    a.send(b"").unwrap();
    assert_eq!(b.receive(LONG).unwrap().as_deref(), Some(&b"one"[..]));
    let mut frame = vec![9; 100];
    assert!(b.receive_into(&mut frame, LONG).unwrap());
    assert_eq!(frame, b"two");
    assert_eq!(b.receive(LONG).unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(b.receive(SOON).unwrap(), None);
    assert!(!b.receive_into(&mut frame, Duration::ZERO).unwrap());
}

#[test]
fn sends_and_receives_run_at_the_same_time_with_a_backlog_both_ways() {
    let (a, b) = pair();
    let count = 20_000u32;
    let echo = |channel: LocalChannel| {
        thread::spawn(move || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..count {
                        channel.send(&n.to_le_bytes()).unwrap();
                    }
                });
                for n in 0..count {
                    let frame = channel.receive(LONG).unwrap().unwrap();
                    assert_eq!(frame, n.to_le_bytes());
                }
            });
            channel // kept open until both have read all
        })
    };
    let (a, b) = (echo(a), echo(b));
    drop((a.join().unwrap(), b.join().unwrap()));
}

#[test]
fn close_wakes_a_blocked_sender_and_a_blocked_receiver_at_once() {
    for by_peer in [false, true] {
        let (a, b) = pair();
        thread::scope(|scope| {
            let receiver = scope.spawn(|| a.receive(LONG));
            let sender = scope.spawn(|| {
                let frame = vec![0; 1 << 20];
                loop {
                    if let Err(err) = a.send(&frame) {
                        return err;
                    }
                }
            });
            thread::sleep(SOON); // lets both block; the test holds without it too
            let begin = Instant::now();
            let closer = if by_peer { &b } else { &a };
            closer.close();
            assert!(matches!(receiver.join().unwrap(), Err(RepError::Closed { .. })));
            assert!(matches!(sender.join().unwrap(), RepError::Closed { .. }));
            assert!(begin.elapsed() < LONG / 10);
        });
    }
}

#[test]
fn frames_sent_before_a_close_are_received_and_then_closed_is_reported() {
    let (a, b) = pair();
    a.send(b"last words").unwrap();
    drop(a);
    assert_eq!(b.receive(LONG).unwrap().as_deref(), Some(&b"last words"[..]));
    assert!(matches!(b.receive(LONG), Err(RepError::Closed { .. })));
    assert!(matches!(b.send(b"x"), Err(RepError::Closed { .. })));
}

#[test]
fn bytes_under_way_are_bounded_and_a_larger_frame_passes_alone() {
    let (a, b) = pair();
    a.send(&vec![1; LOCAL_BYTES * 2]).unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| a.send(&[2]));
        thread::sleep(SOON);
        assert!(!second.is_finished(), "a second frame passed beyond the bound");
        assert_eq!(b.receive(LONG).unwrap().unwrap().len(), LOCAL_BYTES * 2);
        second.join().unwrap().unwrap();
    });
    assert_eq!(b.receive(LONG).unwrap(), Some(vec![2]));
}
