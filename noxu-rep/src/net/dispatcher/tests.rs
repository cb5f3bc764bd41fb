//! Tests of the dispatcher over real sockets.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn local(config: DispatcherConfig) -> (Dispatcher, String) {
    let dispatcher = Dispatcher::bind("127.0.0.1:0", config).unwrap();
    let address = dispatcher.local_addr().to_string();
    (dispatcher, address)
}

/// Answers every frame with the service's name before it.
fn echo(name: &'static str) -> Arc<dyn ServiceHandler> {
    Arc::new(move |channel: Arc<dyn Channel>| {
        while let Ok(Some(frame)) = channel.receive(LONG) {
            if channel.send_vectored(&[name.as_bytes(), &frame]).is_err() {
                return;
            }
        }
    })
}

fn ask(channel: &TcpChannel, frame: &[u8]) -> Vec<u8> {
    channel.send(frame).unwrap();
    channel.receive(LONG).unwrap().unwrap()
}

struct Doorkeeper(Admission);

impl ServiceHandler for Doorkeeper {
    fn admit(&self, peer: &str) -> Admission {
        assert!(peer.starts_with("127.0.0.1:"));
        self.0.clone()
    }

    fn serve(&self, _channel: Arc<dyn Channel>) {}
}

#[test]
fn one_port_serves_many_services_by_name() {
    let (dispatcher, address) = local(DispatcherConfig::default());
    dispatcher.register(FEEDER_SERVICE_NAME, echo("feeder:"));
    dispatcher.register(STATUS_SERVICE_NAME, echo("status:"));
    let feeder = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
    let status = dial(&address, STATUS_SERVICE_NAME, LONG).unwrap();
    assert_eq!(ask(&feeder, b"x"), b"feeder:x");
    assert_eq!(ask(&status, b"y"), b"status:y");
    // Frames far above the cap for requests pass once the service is given.
    assert_eq!(ask(&feeder, &vec![1; 1 << 20]).len(), (1 << 20) + 7);
}

#[test]
fn unknown_busy_and_refused_are_answers_with_their_reason() {
    let (dispatcher, address) = local(DispatcherConfig::default());
    dispatcher.register(GROUP_SERVICE_NAME, Arc::new(Doorkeeper(Admission::Busy)));
    let reason = "this node is restoring".to_owned();
    dispatcher.register(FEEDER_SERVICE_NAME, Arc::new(Doorkeeper(Admission::Refuse(reason))));
    for (service, words) in [
        (ELECTION_SERVICE_NAME, "does not serve REP_ELECTION: it has no such service"),
        (GROUP_SERVICE_NAME, "does not serve REP_GROUP: it is busy"),
        (FEEDER_SERVICE_NAME, "does not serve REP_FEEDER: refused: this node is restoring"),
    ] {
        let err = dial(&address, service, LONG).unwrap_err();
        assert!(matches!(err, RepError::ServiceRefused { .. }), "{err:?}");
        assert_eq!(err.to_string(), format!("{address} {words}"));
    }
    dispatcher.unregister(GROUP_SERVICE_NAME);
    let err = dial(&address, GROUP_SERVICE_NAME, LONG).unwrap_err();
    assert!(matches!(err, RepError::ServiceRefused { refusal: Refusal::Unknown, .. }), "{err}");
}

#[test]
fn a_busy_port_is_an_error_that_names_the_address_and_says_so() {
    let (_dispatcher, address) = local(DispatcherConfig::default());
    let err = Dispatcher::bind(&address, DispatcherConfig::default()).unwrap_err();
    assert_eq!(
        err.to_string(),
        format!("cannot listen on {address}: the address is in use by another process")
    );
    let err = Dispatcher::bind("no port here", DispatcherConfig::default()).unwrap_err();
    assert!(matches!(&err, RepError::Bind { address, .. } if address == "no port here"), "{err}");
}

#[test]
fn a_thousand_connections_that_send_garbage_or_nothing_do_not_keep_a_peer_out() {
    let config = DispatcherConfig { max_pending: 16, ..DispatcherConfig::default() };
    let (dispatcher, address) = local(config);
    dispatcher.register(FEEDER_SERVICE_NAME, echo(""));
    let steady = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
    let mut held = Vec::new();
    for n in 0..1000usize {
        let mut stream = TcpStream::connect(&address).unwrap();
        let _ = match n % 4 {
            0 => Ok(()),                                                  // nothing
            1 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n"),             // over the cap
            2 => stream.write_all(&[3, 0]),                               // half a length
            _ => stream.write_all(&[8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), // a frame of nonsense
        };
        held.push(stream);
        if n % 100 == 50 {
            assert_eq!(ask(&steady, b"still here"), b"still here");
            let fresh = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
            assert_eq!(ask(&fresh, b"let in"), b"let in");
        }
        let pending = dispatcher.shared.state.lock().pending.len();
        assert!(pending <= 16, "{pending} pending");
    }
    dispatcher.stop();
    // Every one of them was closed by the dispatcher.
    for mut stream in held {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut byte = [0];
        let end = stream.read(&mut byte);
        assert!(
            matches!(end, Ok(0))
                || end.is_err_and(|err| err.kind() == io::ErrorKind::ConnectionReset)
        );
    }
}

#[test]
fn a_connection_that_names_no_service_is_closed_after_the_deadline() {
    let config = DispatcherConfig {
        request_timeout: Duration::from_millis(50),
        ..DispatcherConfig::default()
    };
    let (_dispatcher, address) = local(config);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(&[20]).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_being_served_are_bounded_and_their_places_are_given_back() {
    let config = DispatcherConfig { max_connections: 2, ..DispatcherConfig::default() };
    let (dispatcher, address) = local(config);
    dispatcher.register(FEEDER_SERVICE_NAME, echo(""));
    let first = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
    let _second = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
    let err = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap_err();
    assert!(matches!(err, RepError::ServiceRefused { refusal: Refusal::Busy, .. }), "{err}");
    first.close();
    let deadline = Instant::now() + LONG;
    while dial(&address, FEEDER_SERVICE_NAME, LONG).is_err() {
        assert!(Instant::now() < deadline, "the place of a closed connection is not given back");
        thread::yield_now();
    }
}

#[test]
fn stop_closes_what_is_served_and_waits_for_its_threads() {
    let (dispatcher, address) = local(DispatcherConfig::default());
    let ended = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&ended);
    dispatcher.register(
        FEEDER_SERVICE_NAME,
        Arc::new(move |channel: Arc<dyn Channel>| {
            let end = channel.receive(LONG);
            assert!(matches!(end, Err(RepError::Closed { .. })), "{end:?}");
            counter.fetch_add(1, Ordering::SeqCst);
        }),
    );
    let channels: Vec<_> =
        (0..5).map(|_| dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap()).collect();
    dispatcher.stop();
    assert_eq!(ended.load(Ordering::SeqCst), 5);
    for channel in channels {
        assert!(channel.receive(LONG).is_err());
    }
    assert!(dial(&address, FEEDER_SERVICE_NAME, Duration::from_millis(200)).is_err());
    // The port is free again.
    Dispatcher::bind(&address, DispatcherConfig::default()).unwrap();
}

#[test]
fn a_handler_that_panics_loses_its_own_connection_only() {
    let (dispatcher, address) = local(DispatcherConfig::default());
    dispatcher
        .register(STATUS_SERVICE_NAME, Arc::new(|_: Arc<dyn Channel>| panic!("a handler's bug")));
    dispatcher.register(FEEDER_SERVICE_NAME, echo(""));
    let unlucky = dial(&address, STATUS_SERVICE_NAME, LONG).unwrap();
    assert!(unlucky.receive(LONG).is_err());
    let lucky = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap();
    assert_eq!(ask(&lucky, b"x"), b"x");
}

#[test]
fn a_server_that_is_no_dispatcher_is_a_typed_error_that_names_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        for answer in
            [&b"HTTP/1.1 400 Bad Request\r\n"[..], &[1, 0, 0, 0, 9], &[3, 0, 0, 0, 9, 0, 0]]
        {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let _ = stream.read(&mut request);
            stream.write_all(answer).unwrap();
        }
        listener // and a last connection that is never answered
    });
    for _ in 0..3 {
        let err = dial(&address, FEEDER_SERVICE_NAME, LONG).unwrap_err();
        let typed = matches!(err, RepError::FrameTooLarge { .. } | RepError::ProtocolError(_));
        assert!(typed && err.to_string().contains(&address), "{err}");
    }
    let _listener = server.join().unwrap();
    let err = dial(&address, FEEDER_SERVICE_NAME, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(err, RepError::NetworkError(_)), "{err}");
}

#[test]
fn requests_and_answers_have_their_golden_bytes() {
    assert_eq!(encode_request("REP_FEEDER"), b"NOXU\x01\x0a\0REP_FEEDER");
    assert_eq!(decode_request(b"NOXU\x01\x0a\0REP_FEEDER").unwrap(), "REP_FEEDER");
    let refused = Refusal::Refused("no".to_owned());
    for (answer, bytes) in [
        (None, &b"\0\0\0"[..]),
        (Some(Refusal::Busy), b"\x01\0\0"),
        (Some(Refusal::Unknown), b"\x02\0\0"),
        (Some(refused), b"\x03\x02\0no"),
    ] {
        assert_eq!(encode_answer(answer.as_ref()), bytes);
        assert_eq!(decode_answer(bytes).unwrap(), answer);
    }
    for bad in [&b"NOXU\x02\x01\0x"[..], b"NOXA\x01\x01\0x", b"NOXU\x01\x21\0", b"NOXU\x01\x01\0xy"]
    {
        assert!(decode_request(bad).is_err(), "{bad:?}");
    }
    let service_names = [
        SYNCUP_SERVICE_NAME,
        FEEDER_SERVICE_NAME,
        RESTORE_SERVICE_NAME,
        ELECTION_SERVICE_NAME,
        GROUP_SERVICE_NAME,
        STATUS_SERVICE_NAME,
    ];
    assert!(service_names.iter().all(|name| name.len() <= MAX_SERVICE_NAME_BYTES));
}
