use noxu_rep::net::channel::Channel as _;
use noxu_rep::net::dispatcher::FEEDER_SERVICE_NAME;
use noxu_rep::wire::election::LogEnd;
use noxu_rep::wire::message::StreamMessage;

use super::*;
use crate::channel::SimChannel;
use crate::clock::MachineClock;
use crate::dice::Dice;
use crate::stage::{Happened, Stage};

const A: Host = Host(0);
const B: Host = Host(1);
const SECOND: Duration = Duration::from_secs(1);

type Slot<T> = Arc<Mutex<Option<T>>>;
/// What a receive came to, and after how many milliseconds.
type Seen = (u64, Option<Vec<u8>>);

fn stage(plan: NetPlan) -> Stage {
    let clocks = (0..2).map(|_| MachineClock::new(0, 0)).collect();
    Stage::new(Dice::new(1), plan, clocks)
}

/// Runs until nothing is to happen; who knocks is let in.
fn run(stage: &mut Stage) -> Vec<SimChannel> {
    let mut accepted = Vec::new();
    while let Some(happened) = stage.step() {
        if let Happened::News(News::Knock { end, .. }) = happened {
            accepted.push(stage.network.accept(end));
        }
    }
    accepted
}

fn connect(stage: &mut Stage) -> (SimChannel, SimChannel) {
    connect_for(stage, "TEST")
}

fn connect_for(stage: &mut Stage, service: &'static str) -> (SimChannel, SimChannel) {
    let slot = Slot::default();
    let (network, theirs) = (stage.network.clone(), Arc::clone(&slot));
    stage.begin_task(A, move || {
        *theirs.lock() = Some(network.dial(A, B, service, SECOND).unwrap());
    });
    let b = run(stage).pop().expect("B was dialled");
    let a = slot.lock().take().expect("A has dialled");
    (a, b)
}

fn received(channel: &SimChannel) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| channel.try_receive().ok().flatten()).collect()
}

fn numbered(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|n| vec![n]).collect()
}

#[test]
fn frames_of_a_connection_arrive_in_order_whatever_they_weigh() {
    let mut stage = stage(NetPlan { jitter: SECOND, ..NetPlan::default() });
    let (a, b) = connect(&mut stage);
    stage.network.slow_down(A, B, true);
    let frames: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 1_000 * usize::from(n % 7)]).collect();
    let began = stage.now();
    for frame in &frames {
        a.send(frame).unwrap();
    }
    assert!(a.backlog() > 100_000);
    run(&mut stage);
    assert_eq!(received(&b), frames);
    assert_eq!(a.backlog(), 0);
    let bytes: usize = frames.iter().map(Vec::len).sum();
    assert!(stage.now().since(began) >= SECOND * (bytes >> 16) as u32, "the line is slow");
}

/// What a scenario calls a head.
fn head_answer(nonce: u64) -> Vec<u8> {
    StreamMessage::HeadAnswer { nonce, head: LogEnd::default() }.encode()
}

#[test]
fn a_held_frame_stops_what_comes_behind_it_until_it_is_released() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect_for(&mut stage, FEEDER_SERVICE_NAME);
    stage.network.hold("h", Kind::Heads, &[(A, B)]);
    a.send(b"before").unwrap();
    run(&mut stage);
    assert!(!stage.network.has_held("h"));
    let sent = [head_answer(1), b"behind".to_vec()];
    for frame in &sent {
        a.send(frame).unwrap();
    }
    b.send(&head_answer(2)).unwrap();
    run(&mut stage);
    assert_eq!((received(&b), received(&a)), (vec![b"before".to_vec()], vec![head_answer(2)]));
    assert!(stage.network.has_held("h") && stage.network.end_hold("h"));
    a.send(b"later").unwrap();
    run(&mut stage);
    assert_eq!(received(&b), [b""; 0], "it would overtake");
    assert!(stage.network.release("h", true) && !stage.network.release("h", true));
    run(&mut stage);
    let [first, second] = sent;
    assert_eq!(received(&b), [first, second, b"later".to_vec()]);
}

#[test]
fn a_held_frame_is_replayed_on_the_newest_connection() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect_for(&mut stage, FEEDER_SERVICE_NAME);
    stage.network.hold("h", Kind::Heads, &[(A, B)]);
    a.send(&head_answer(1)).unwrap();
    drop((a, b));
    run(&mut stage);
    assert!(!stage.network.replay("none"));
    let (a, b) = connect_for(&mut stage, FEEDER_SERVICE_NAME);
    assert!(stage.network.replay("h"));
    run(&mut stage);
    assert_eq!((received(&b), a.backlog()), (vec![head_answer(1)], 0));
}

#[test]
fn a_blocked_way_holds_frames_and_loses_datagrams() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    stage.network.block(A, B);
    a.send(b"waits").unwrap();
    stage.network.send_datagram(A, B, b"gone".to_vec());
    b.send(b"passes").unwrap();
    run(&mut stage);
    assert_eq!(received(&a), [b"passes"]);
    assert_eq!(received(&b), [b""; 0]);
    stage.network.free(A, B);
    stage.network.send_datagram(A, B, b"here".to_vec());
    let mut datagrams = Vec::new();
    while let Some(happened) = stage.step() {
        if let Happened::News(News::Datagram { from, to, bytes }) = happened {
            datagrams.push((from, to, bytes));
        }
    }
    assert_eq!(received(&b), [b"waits"]);
    assert_eq!(datagrams, [(A, B, b"here".to_vec())]);
}

#[test]
fn what_was_sent_before_a_close_still_arrives_and_then_the_close() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    a.send(b"last words").unwrap();
    a.close();
    assert!(a.send(b"x").is_err() && a.try_receive().is_err());
    run(&mut stage);
    assert_eq!(b.try_receive().unwrap(), Some(b"last words".to_vec()));
    assert!(b.try_receive().is_err());
    drop(b);
    run(&mut stage);
    assert_eq!(stage.network.connections(), 0);
}

#[test]
fn a_dark_machine_is_silent_and_resets_old_connections_once_it_is_back() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    stage.network.handle_dark(B);
    assert!(b.try_receive().is_err());
    a.send(b"into the dark").unwrap();
    run(&mut stage);
    assert_eq!(a.try_receive().unwrap(), None, "nobody learns of it");
    stage.network.handle_light(B);
    a.send(b"hello?").unwrap();
    run(&mut stage);
    assert!(a.try_receive().is_err());
}

#[test]
fn a_killed_process_closes_and_a_reset_cuts_both_ends() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    stage.network.handle_killed(B);
    run(&mut stage);
    assert!(a.try_receive().is_err() && b.try_receive().is_err());
    let (a, b) = connect(&mut stage);
    a.send(b"under way").unwrap();
    run(&mut stage);
    stage.network.reset(A, B);
    run(&mut stage);
    assert!(a.try_receive().is_err() && b.try_receive().is_err());
}

#[test]
fn dialling_fails_at_once_where_nobody_listens_and_in_time_where_nobody_is() {
    for (dark, least, most) in [(false, Duration::ZERO, SECOND / 10), (true, SECOND, SECOND)] {
        let mut stage = stage(NetPlan::default());
        if dark {
            stage.network.handle_dark(B);
        }
        let took: Slot<Duration> = Slot::default();
        let (network, theirs) = (stage.network.clone(), Arc::clone(&took));
        stage.begin_task(A, move || {
            let began = network.now();
            assert!(network.dial(A, B, "TEST", SECOND).is_err());
            *theirs.lock() = Some(network.now().since(began));
        });
        while let Some(happened) = stage.step() {
            if let Happened::News(News::Knock { end, from, to, service }) = happened {
                assert_eq!((from, to, service), (A, B, "TEST"));
                stage.network.refuse(end);
            }
        }
        let took = took.lock().take().unwrap();
        assert!((least..=most).contains(&took), "{took:?}");
        assert!(stage.tasks.is_empty());
    }
}

#[test]
fn a_receive_in_a_task_ends_with_a_frame_or_in_time() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let (network, theirs) = (stage.network.clone(), Arc::clone(&seen));
    let began = stage.now();
    stage.begin_task(B, move || {
        while let Ok(frame) = b.receive(SECOND) {
            theirs.lock().push((network.now().since(began).as_millis() as u64, frame));
        }
    });
    a.send(b"one").unwrap();
    let mut steps = 0;
    while stage.step().is_some() {
        steps += 1;
        if steps == 5 {
            a.close();
        }
    }
    let seen = seen.lock();
    assert_eq!(seen[0], (0, Some(b"one".to_vec())));
    assert_eq!(seen[1], (1_000, None));
}

#[test]
fn a_paused_machine_finds_everything_when_it_goes_on() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    stage.pause(B);
    for frame in numbered(3) {
        a.send(&frame).unwrap();
    }
    run(&mut stage);
    assert_eq!(received(&b), numbered(0));
    stage.go_on(B);
    run(&mut stage);
    assert_eq!(received(&b), numbered(3));
}

#[test]
fn whoever_listens_is_told_of_frames_and_of_the_end() {
    let mut stage = stage(NetPlan::default());
    let (a, b) = connect(&mut stage);
    assert!(!b.listen(7));
    a.send(b"x").unwrap();
    a.close();
    let mut told = 0;
    while let Some(happened) = stage.step() {
        if happened != Happened::Nothing {
            assert_eq!(happened, Happened::News(News::Listener { host: B, listener: 7 }));
            told += 1;
        }
    }
    assert_eq!(told, 2);
}

#[test]
fn garbled_frames_and_lost_datagrams_are_counted() {
    let plan = NetPlan { garble: 0.5, loss: 0.5, repeat: 0.5, straggle: 0.5, ..NetPlan::default() };
    let mut stage = stage(plan);
    let (a, b) = connect(&mut stage);
    let frame = vec![1; 300];
    (0..100).for_each(|_| a.send(&frame).unwrap());
    (0..100).for_each(|_| stage.network.send_datagram(A, B, vec![1]));
    run(&mut stage);
    assert!(received(&b).iter().any(|got| *got != frame));
    let coverage = stage.network.coverage();
    for name in [
        "net: frame cut",
        "net: frame twice",
        "net: frame left out",
        "net: frame damaged",
        "net: frame replaced",
        "net: datagram lost",
        "net: datagram twice",
        "net: datagram late",
    ] {
        assert!(coverage.of(name) > 0, "{name}");
    }
}
