//! Tests of the TCP channel against another one and against raw sockets.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

/// A channel and the raw socket at its other end.
fn half_raw(config: &TcpConfig) -> (TcpChannel, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let channel = TcpChannel::connect(&address, config).unwrap();
    let (raw, _) = listener.accept().unwrap();
    raw.set_nodelay(true).unwrap();
    (channel, raw)
}

fn pair() -> (TcpChannel, TcpChannel) {
    let config = TcpConfig::default();
    let (near, raw) = half_raw(&config);
    (near, TcpChannel::from_stream(raw, &config).unwrap())
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn frames_of_every_size_arrive_whole_and_in_order() {
    let (a, b) = pair();
    let sizes = [
        0,
        1,
        3,
        251,
        252,
        253,
        4096,
        BUFFER_BYTES - 5,
        BUFFER_BYTES,
        BUFFER_BYTES + 1,
        1 << 20,
        3 << 20,
    ];
    thread::scope(|scope| {
        scope.spawn(|| {
            for size in sizes {
                let bytes = payload(size);
                a.send(&bytes).unwrap();
                let (head, tail) = bytes.split_at(size / 3);
                a.send_vectored(&[head, &[], tail]).unwrap();
            }
        });
        let mut frame = Vec::new();
        for size in sizes {
            assert_eq!(b.receive(LONG).unwrap().unwrap(), payload(size), "{size}");
            assert!(b.receive_into(&mut frame, LONG).unwrap());
            assert_eq!(frame, payload(size), "{size}");
        }
    });
    assert_eq!(b.receive(SOON).unwrap(), None);
    assert_eq!(b.receive(Duration::ZERO).unwrap(), None);
    a.send(b"now").unwrap();
    while b.receive(Duration::ZERO).unwrap().is_none() {
        thread::yield_now();
    }
}

#[test]
fn a_receive_timeout_in_the_middle_of_a_frame_loses_nothing() {
    let (channel, mut raw) = half_raw(&TcpConfig::default());
    let small = payload(10);
    let large = payload(300_000);
    let mut bytes = Vec::new();
    for frame in [&small, &large, &small] {
        bytes.extend((frame.len() as u32).to_le_bytes());
        bytes.extend(frame);
    }
    let mut received = Vec::new();
    let mut reused = vec![0xee; 77];
    for (n, piece) in [
        &bytes[..1],
        &bytes[1..3],
        &bytes[3..9],
        &bytes[9..15],
        &bytes[15..40],
        &bytes[40..200_000],
        &bytes[200_000..],
    ]
    .into_iter()
    .enumerate()
    {
        raw.write_all(piece).unwrap();
        // Both ways of receiving, taking turns in the middle of frames.
        loop {
            if n % 2 == 0 {
                let Some(frame) = channel.receive(SOON).unwrap() else { break };
                received.push(frame);
            } else {
                if !channel.receive_into(&mut reused, SOON).unwrap() {
                    break;
                }
                received.push(reused.clone());
            }
        }
    }
    assert_eq!(received, [small.clone(), large, small]);
}

#[test]
fn sends_and_receives_run_at_the_same_time_with_a_backlog_both_ways() {
    let (a, b) = pair();
    // Each side sends more than socket buffers hold before it takes in anything; a channel that
    // let one direction wait for the other would hang here.
    let count = 400;
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for channel in [&a, &b] {
            scope.spawn(|| {
                let frame = payload(100_000);
                for _ in 0..count {
                    channel.send(&frame).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                let mut frame = Vec::new();
                for _ in 0..count {
                    assert!(channel.receive_into(&mut frame, LONG).unwrap());
                    assert_eq!(frame.len(), 100_000);
                }
            });
        }
    });
    assert_eq!(sent.into_inner(), 2 * count);
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
            let received = receiver.join().unwrap();
            let send_error = sender.join().unwrap();
            assert!(received.as_ref().is_err_and(RepError::is_disconnect), "{received:?}");
            assert!(send_error.is_disconnect(), "{send_error}");
            if !by_peer {
                assert!(matches!(received, Err(RepError::Closed { .. })), "{received:?}");
                assert!(matches!(send_error, RepError::Closed { .. }), "{send_error}");
            }
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
}

#[test]
fn a_connection_that_ends_inside_a_frame_is_a_network_error_that_names_the_peer() {
    let (channel, mut raw) = half_raw(&TcpConfig::default());
    raw.write_all(&[5, 0, 0, 0, 1, 2]).unwrap();
    let peer = raw.local_addr().unwrap().to_string();
    drop(raw);
    let err = channel.receive(LONG).unwrap_err();
    assert!(matches!(&err, RepError::NetworkError(_)), "{err:?}");
    let text = err.to_string();
    assert!(text.contains(&peer) && text.contains("inside a frame"), "{text}");
}

#[test]
fn a_frame_over_the_cap_is_refused_before_any_memory_is_taken() {
    let config = TcpConfig { max_frame_bytes: 1000, ..TcpConfig::default() };
    let (channel, mut raw) = half_raw(&config);
    let err = channel.send(&[0; 1001]).unwrap_err();
    assert!(matches!(err, RepError::FrameTooLarge { bytes: 1001, cap: 1000, .. }), "{err}");
    channel.send(&[0; 1000]).unwrap(); // the refused one left no trace on the wire
    let mut field = [0; 4];
    raw.read_exact(&mut field).unwrap();
    assert_eq!(u32::from_le_bytes(field), 1000);
    raw.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut frame = Vec::new();
    let err = channel.receive_into(&mut frame, LONG).unwrap_err();
    assert!(matches!(err, RepError::FrameTooLarge { cap: 1000, .. }), "{err}");
    assert_eq!(frame.capacity(), 0);
    assert!(channel.receive(SOON).is_err() && channel.send(b"x").is_err());
}

#[test]
fn memory_for_a_frame_follows_the_bytes_that_arrive() {
    let config = TcpConfig { max_frame_bytes: u32::MAX, ..TcpConfig::default() };
    let (channel, mut raw) = half_raw(&config);
    raw.write_all(&(3u32 << 30).to_le_bytes()).unwrap();
    raw.write_all(&[1; 1000]).unwrap();
    assert_eq!(channel.receive(SOON).unwrap(), None);
    let held = channel.receiving.lock().partial.capacity();
    assert!(held <= 2 * AHEAD_BYTES, "{held} bytes held");
}

#[test]
fn a_peer_that_takes_nothing_fails_the_send_after_the_write_timeout() {
    let config = TcpConfig { write_timeout: Duration::from_millis(100), ..TcpConfig::default() };
    let (channel, _raw) = half_raw(&config);
    let frame = vec![0; 1 << 20];
    let err = loop {
        if let Err(err) = channel.send(&frame) {
            break err;
        }
    };
    let RepError::NetworkError(failure) = err else { panic!("{err}") };
    assert_eq!(failure.cause.kind(), io::ErrorKind::TimedOut);
    // A frame was cut in the middle: the channel is of no more use.
    assert!(matches!(channel.send(b"x"), Err(RepError::Closed { .. })));
}

#[test]
fn a_refused_connection_and_an_unknown_name_are_network_errors_that_name_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for address in [&free[..], "no port here", "name.invalid:1"] {
        let err = TcpChannel::connect(address, &TcpConfig::default()).unwrap_err();
        assert!(matches!(err, RepError::NetworkError(_)), "{err}");
        assert!(err.to_string().contains(address), "{err}");
    }
}

#[test]
fn a_lone_small_frame_is_answered_without_delay() {
    let (a, b) = pair();
    let rounds = 200u32;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                let frame = b.receive(LONG).unwrap().unwrap();
                // In two sends: Nagle's algorithm would hold the second one back.
                b.send(&frame).unwrap();
                b.send(&frame).unwrap();
            }
        });
        let begin = Instant::now();
        for _ in 0..rounds {
            a.send(b"commit").unwrap();
            assert!(a.receive(LONG).unwrap().is_some() && a.receive(LONG).unwrap().is_some());
        }
        let each = begin.elapsed() / rounds;
        assert!(each < Duration::from_millis(10), "{each:?} for a round trip");
    });
}

#[test]
fn many_threads_may_send_on_one_channel_and_frames_stay_whole() {
    let (a, b) = pair();
    let a = Arc::new(a);
    thread::scope(|scope| {
        for n in 1..=4u8 {
            let a = Arc::clone(&a);
            scope.spawn(move || {
                for len in [10, 1000, 100_000] {
                    for _ in 0..20 {
                        a.send_vectored(&[&vec![n; len], &vec![n; len]]).unwrap();
                    }
                }
            });
        }
        for _ in 0..240 {
            let frame = b.receive(LONG).unwrap().unwrap();
            assert!(frame.iter().all(|byte| *byte == frame[0]));
        }
    });
}

#[test]
fn a_moment_that_is_left_is_a_timeout_that_a_socket_takes() {
    let whole = |nanos| whole_millis(Duration::from_nanos(nanos));
    assert_eq!(whole(1), Duration::from_millis(1));
    assert_eq!(whole(1_000_000), Duration::from_millis(1));
    assert_eq!(whole(1_000_001), Duration::from_millis(2));
}
