//! One node with damage on its disk, and peers of all kinds.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv, Survivors, read_whole};
use noxu_log::segment::name::{segment_name, side_name};
use noxu_log::{EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, NewEntry, ScrubConfig};
use noxu_util::{Incarnation, Name, Term, Vlsn};

use super::*;
use crate::clock::{Clock, ClockHand};
use crate::config::NodeConfig;
use crate::driver::life::{Surroundings, Target};
use crate::driver::opening::NodeContext;
use crate::error::RepError;
use crate::group::{Electorate, Voter, VoterKind};
use crate::net::channel::LocalChannelPair;
use crate::no_state::NoState;
use crate::status::StateChange;
use crate::sync::StateMachine;
use crate::wire::election::ElectionMsg;
use crate::wire::election::link::Introduction;
use crate::wire::handshake::Capabilities;
use crate::wire::restore::{BLOCK_BYTES, RestoreMsg};

/// Two blocks and a bit to a segment, an entry across each border.
const SEGMENT_BYTES: u32 = 2 * BLOCK_BYTES + 100_000;
const BODY_BYTES: usize = 20_000;
/// Of which the first three segments are sealed.
const ENTRIES: u8 = 100;

type Dial = Box<dyn Fn() -> Option<Arc<dyn Channel>> + Send + Sync>;

/// A world of peers that are dialled, and that remembers what it was told.
#[derive(Default)]
struct Peers {
    at: Mutex<BTreeMap<String, Dial>>,
    told: Mutex<Vec<DamageEvent>>,
    posted: Mutex<Vec<Input>>,
    wanted: AtomicBool,
}

impl Surroundings for Peers {
    fn post(&self, input: Input) {
        self.posted.lock().push(input);
    }
    fn set_timer(&self, _: Option<Now>) {}
    fn send(&self, _: &Name, _: &ElectionMsg) {}
    fn follow(&self, _: Target) {}
    fn meet(&self, _: Vec<String>) {}
    fn tell(&self, _: StateChange) {}
    fn tell_damage(&self, event: DamageEvent) {
        self.told.lock().push(event);
    }
    fn mend_disk(&self) {
        let twice = self.wanted.swap(true, Ordering::AcqRel);
        assert!(!twice, "wanted twice at once");
    }
    fn look_again(&self) {}
    fn handle_failed(&self) {}
    fn dial(&self, address: &str, service: &str, _: Duration) -> Result<Arc<dyn Channel>> {
        assert_eq!(service, RESTORE_SERVICE_NAME);
        let dialled = self.at.lock().get(address).and_then(|dial| dial());
        dialled.ok_or_else(|| RepError::Closed { peer: address.to_owned() })
    }
}

struct TestNode {
    env: FaultEnv,
    life: Arc<Life>,
    around: Arc<Peers>,
    hand: ClockHand,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn config() -> LogConfig {
    LogConfig { prefill: false, scrub: None, tail_bytes: 0, ..LogConfig::default() }
}

/// The disk of node `n` of three, with everything on it and nothing damaged.
fn disk(n: u64) -> FaultEnv {
    let env = FaultEnv::new();
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config()).unwrap();
    let id = GroupId::from_bytes([7; 16]);
    log.found(GroupIdentity { id, name: name("g"), segment_bytes: SEGMENT_BYTES }).unwrap();
    let voter = |n: u64| Voter {
        name: name(&format!("n{n}")),
        incarnation: Incarnation::from_u64(n),
        kind: VoterKind::Data,
        address: format!("n{n}:1"),
    };
    let electorate = Electorate { voters: (1..=3).map(voter).collect(), q_rep: 0, q_elect: 0 };
    for n in 0..ENTRIES {
        let body = vec![n; BODY_BYTES];
        let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)];
        log.append(Term::new(1), &entry).unwrap();
    }
    log.sync_now().unwrap();
    log.control()
        .update(|control| {
            control.node = Some(name(&format!("n{n}")));
            control.incarnation = Incarnation::from_u64(n);
            control.group_config = electorate.encode().into();
            control.term = Term::new(1);
            control.commit_floor = Vlsn::new(ENTRIES.into());
        })
        .unwrap();
    log.seal_through(Vlsn::new(ENTRIES.into())).unwrap();
    assert_eq!(log.sealed_segments().len(), 3);
    log.close().unwrap();
    env
}

fn dir() -> &'static Path {
    Path::new("/n")
}

fn path(segment: u32) -> std::path::PathBuf {
    dir().join("log").join(segment_name(segment))
}

impl TestNode {
    fn new(n: u64) -> Self {
        Self::on(n, disk(n))
    }

    fn on(n: u64, env: FaultEnv) -> Self {
        let node = NodeConfig { log: config(), ..NodeConfig::new(name(&format!("n{n}")), dir()) };
        let around = Arc::<Peers>::default();
        let (clock, hand) = Clock::manual();
        let machine = |_: &NodeContext| Ok(Arc::new(NoState) as Arc<dyn StateMachine>);
        let disk: Arc<dyn Env> = Arc::new(env.clone());
        let world = Arc::clone(&around) as Arc<dyn Surroundings>;
        let life = Life::open(disk, node, format!("n{n}:1"), clock, world, machine).unwrap();
        life.start();
        Self { env, life, around, hand }
    }

    fn log(&self) -> &Log {
        self.life.log()
    }

    fn rot(&self, segment: u32, offset: u32) {
        self.env.corrupt(&path(segment), offset.into(), 0x10).unwrap();
    }

    fn scrub(&self) -> u64 {
        let fast = ScrubConfig { bytes_per_second: u64::MAX, ..ScrubConfig::default() };
        let all = |_: &noxu_log::ScrubProgress| std::ops::ControlFlow::Continue(());
        self.log().scrub(&fast, all).unwrap().damaged
    }

    /// What its thread would do, if it is to do anything.
    fn mend(&self) -> bool {
        let wanted = self.around.wanted.swap(false, Ordering::AcqRel);
        if wanted {
            self.life.mend_disk();
        }
        wanted
    }

    /// At `seconds` since it was opened, it is looked what is due.
    fn at(&self, seconds: u64) {
        self.hand.set(Duration::from_secs(seconds));
        self.life.keep_house().unwrap();
    }

    /// This node is reached by `other` from now on.
    fn serve(&self, other: &Self) {
        let (life, to) = (Arc::downgrade(&self.life), self.life.address.clone());
        let dial = move || {
            let life = life.upgrade()?;
            let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
            thread::spawn(move || drop(life.restore_provider().run(&channel_b)));
            Some(Arc::new(channel_a) as Arc<dyn Channel>)
        };
        other.around.at.lock().insert(to, Box::new(dial));
    }

    fn take_told(&self) -> Vec<DamageEvent> {
        std::mem::take(&mut *self.around.told.lock())
    }

    fn bytes(&self, segment: u32) -> Vec<u8> {
        read_whole(&self.env, &path(segment)).unwrap()
    }

    fn assert_same(&self, other: &Self) {
        for segment in 1..=3 {
            assert!(self.bytes(segment) == other.bytes(segment), "segment {segment}");
        }
        assert_eq!(self.scrub(), 0);
        assert_eq!((self.log().damaged_blocks(), self.log().faulty()), (vec![], vec![]));
        assert_eq!(self.log().sealed_segments(), other.log().sealed_segments());
    }
}

/// What another thread is about to do.
fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !met() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

fn mended(told: &[DamageEvent]) -> Vec<(u32, &str)> {
    let mended = told.iter().filter_map(|event| match event {
        DamageEvent::Mended { what, from } => Some((what.segment(), from.as_str())),
        _ => None,
    });
    mended.collect()
}

/// A peer that answers each question as `answer` says; `None` ends the connection. What it was told in
/// doubt is kept.
fn peer(
    answer: impl Fn(&RestoreMsg<'_>) -> Option<Vec<u8>> + Send + Sync + 'static,
    doubted: &Arc<Mutex<Vec<(u32, u32)>>>,
) -> Dial {
    let (answer, doubted) = (Arc::new(answer), Arc::clone(doubted));
    Box::new(move || {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let (answer, doubted) = (Arc::clone(&answer), Arc::clone(&doubted));
        thread::spawn(move || {
            while let Ok(Some(frame)) = channel_b.receive(Duration::from_secs(10)) {
                let question = RestoreMsg::decode(&frame).unwrap();
                if let RestoreMsg::Doubt { segment, block } = question {
                    doubted.lock().push((segment, block));
                    continue;
                }
                let Some(message) = answer(&question) else { break };
                let _ = channel_b.send(&message);
            }
            channel_b.close();
        });
        Some(Arc::new(channel_a))
    })
}

fn holdings(of: &TestNode) -> Vec<u8> {
    let sealed = of.log().sealed_segments();
    let segments = sealed.iter().map(|sealed| (sealed.number, *sealed.digest.as_bytes()));
    let (segments, others) = (segments.collect(), vec![]);
    RestoreMsg::Holdings { state: false, segments, others }.encode()
}

#[test]
fn damaged_blocks_come_from_whoever_has_them_and_every_step_is_told() {
    let (node, other) = (TestNode::new(1), TestNode::new(3));
    other.serve(&node);
    node.rot(1, 70);
    node.rot(1, BLOCK_BYTES + 9);
    node.rot(3, 2 * BLOCK_BYTES + 50_000);
    assert!(!node.mend(), "nobody knows yet");
    assert_eq!(node.scrub(), 3);
    assert!(node.mend());
    let told = node.take_told();
    let found: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            DamageEvent::Found(Damaged::Block { segment, block, .. }) => Some((*segment, *block)),
            _ => None,
        })
        .collect();
    assert_eq!(found, [(1, 0), (1, 1), (3, 2)]);
    assert_eq!(mended(&told), [(1, "n3"), (1, "n3"), (3, "n3")]);
    assert_eq!(told.len(), 6);
    let report = node.life.damage();
    assert_eq!((report.found, report.mended_blocks, report.open), (3, 3, vec![]));
    node.assert_same(&other);
    assert!(!node.mend(), "and that is all");
}

#[test]
fn a_peer_that_sends_something_else_is_told_and_another_one_is_asked() {
    let (node, other) = (TestNode::new(1), TestNode::new(3));
    let doubted = Arc::default();
    let lies = holdings(&other);
    let liar = move |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => Some(lies.clone()),
        RestoreMsg::BlockRequest { request, .. } => {
            let bytes = vec![3; BLOCK_BYTES as usize].into();
            Some(RestoreMsg::Block { request: *request, bytes }.encode())
        }
        _ => None,
    };
    node.around.at.lock().insert("n2:1".to_owned(), peer(liar, &doubted));
    let rotten = node.bytes(2);
    node.rot(2, 70);
    node.scrub();
    node.mend();
    let told = node.take_told();
    let [DamageEvent::Found(what), DamageEvent::NotYet { why, .. }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((what.segment(), why), (2, &Unmended::WrongBytes));
    assert!(node.bytes(2) != rotten, "what came was not written");
    eventually("it hears of it", || *doubted.lock() == [(2, 0)]);
    other.serve(&node);
    node.at(1);
    node.mend();
    assert_eq!(mended(&node.take_told()), [(2, "n3")]);
    node.assert_same(&other);
}

#[test]
fn whoever_breaks_off_or_has_another_segment_is_passed_over() {
    let (node, other) = (TestNode::new(1), TestNode::new(3));
    let doubted = Arc::default();
    let all = holdings(&other);
    let breaks_off = move |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => Some(all.clone()),
        _ => None,
    };
    node.around.at.lock().insert("n2:1".to_owned(), peer(breaks_off, &doubted));
    node.rot(2, 70);
    node.scrub();
    node.mend();
    let [_, DamageEvent::NotYet { why: Unmended::Unreachable, .. }] = node.take_told()[..] else {
        panic!("it broke off")
    };
    let other_history = |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => {
            let (segments, others) = (vec![(1, [1; 32]), (2, [2; 32])], vec![]);
            Some(RestoreMsg::Holdings { state: false, segments, others }.encode())
        }
        _ => panic!("asked {question:?} for what it does not have"),
    };
    node.around.at.lock().insert("n2:1".to_owned(), peer(other_history, &doubted));
    node.at(1);
    node.mend();
    let [DamageEvent::NotYet { why: Unmended::NobodyHasIt, .. }] = node.take_told()[..] else {
        panic!("it has another one")
    };
    other.serve(&node);
    node.at(3);
    node.mend();
    node.assert_same(&other);
}

#[test]
fn what_nobody_has_is_shown_and_asked_for_again_when_it_is_time_or_a_peer_comes() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    node.rot(2, 70);
    node.scrub();
    let mut now = 0;
    for wait in [1, 2, 4, 8] {
        node.at(now);
        assert!(node.mend());
        let last = node.take_told().pop().unwrap();
        let DamageEvent::NotYet { why: Unmended::Unreachable, again_in, .. } = last else {
            panic!("{last:?}")
        };
        assert_eq!(again_in, Duration::from_secs(wait));
        let [open] = &node.life.damage().open[..] else { panic!("one block") };
        assert_eq!((open.why.as_ref(), open.again_in), (Some(&Unmended::Unreachable), again_in));
        now += wait;
        node.at(now - 1 + u64::from(wait == 1));
        assert_eq!(wait == 1, node.around.wanted.load(Ordering::Acquire), "not before");
    }
    other.serve(&node);
    node.life.handle(Input::LinkUp(
        Introduction {
            epoch: 0,
            term: Term::new(1),
            versions: crate::wire::election::link::LINK_VERSIONS,
            group: Some(GroupId::from_bytes([7; 16])),
            group_name: Some(name("g")),
            peer: other.life.me().clone(),
            kind: crate::wire::handshake::NodeKind::Electable,
            priority: 1,
            address: "n2:1".to_owned(),
            capabilities: Capabilities::OURS,
        }
        .into(),
    ));
    node.life.keep_house().unwrap();
    assert!(node.mend(), "eight seconds early");
    assert_eq!(mended(&node.take_told()), [(2, "n2")]);
    node.assert_same(&other);
}

#[test]
fn two_nodes_that_are_damaged_in_different_places_mend_one_another() {
    let (one, two) = (TestNode::new(1), TestNode::new(2));
    one.serve(&two);
    two.serve(&one);
    one.rot(1, 70);
    one.rot(2, BLOCK_BYTES + 70);
    two.rot(1, BLOCK_BYTES + 70);
    two.rot(2, 70);
    one.scrub();
    one.mend();
    two.scrub();
    two.mend();
    one.assert_same(&two);
    two.assert_same(&one);
}

/// Who asks for a block that is rotten at its peer as well says so, and the peer looks for help too.
#[test]
fn what_two_nodes_have_rotten_they_both_take_from_the_third() {
    let (one, two, three) = (TestNode::new(1), TestNode::new(2), TestNode::new(3));
    two.serve(&one);
    three.serve(&one);
    three.serve(&two);
    one.rot(1, 70);
    two.rot(1, 90);
    one.scrub();
    one.mend();
    assert_eq!(mended(&one.take_told()), [(1, "n3")]);
    one.assert_same(&three);
    eventually("the peer looks", || two.mend());
    assert_eq!(mended(&two.take_told()), [(1, "n3")]);
    two.assert_same(&three);
}

#[test]
fn a_segment_whose_file_or_digests_are_lost_is_copied_whole() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    other.serve(&node);
    let side = |segment: u32| dir().join("log").join(side_name(segment));
    node.env.remove(&path(1)).unwrap();
    node.env.remove(&path(2)).unwrap();
    node.env.remove(&side(2)).unwrap();
    node.env.remove(&side(3)).unwrap();
    node.rot(3, BLOCK_BYTES + 7);
    assert!(node.scrub() > 0);
    node.mend();
    let told = node.take_told();
    assert_eq!(mended(&told).len(), 3 + 1 + 1, "{told:?}");
    node.assert_same(&other);
}

#[test]
fn entries_that_cannot_be_read_come_from_a_peers_sealed_segment_if_the_chain_agrees() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    // One of them lies across the border of two blocks.
    for offset in [500, BLOCK_BYTES - 5, 2 * BLOCK_BYTES + 60_000] {
        node.rot(2, offset);
    }
    assert!(node.log().examine(2).unwrap());
    let runs = node.log().faulty().len() as u64;
    assert!(runs >= 2, "{:?}", node.log().faulty());
    assert_eq!(node.log().sealed_segments().len(), 1);
    let (doubted, lies) = (Arc::default(), holdings(&other));
    let mut wrong = other.bytes(2);
    wrong.iter_mut().skip(120).step_by(1000).for_each(|byte| *byte ^= 1);
    let liar = move |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => Some(lies.clone()),
        RestoreMsg::BlockRequest { request, block, .. } => {
            let bytes = wrong.chunks(BLOCK_BYTES as usize).nth(*block as usize)?.into();
            Some(RestoreMsg::Block { request: *request, bytes }.encode())
        }
        _ => None,
    };
    node.around.at.lock().insert("n3:1".to_owned(), peer(liar, &doubted));
    node.life.request_disk_mending();
    node.mend();
    assert!(mended(&node.take_told()).is_empty(), "left to the next conversation for a moment");
    node.at(1);
    node.mend();
    let told = node.take_told();
    let wrong = |event: &DamageEvent| {
        matches!(event, DamageEvent::NotYet { why: Unmended::WrongBytes, .. })
    };
    assert_eq!(told.iter().filter(|event| wrong(event)).count() as u64, runs, "{told:?}");
    eventually("it hears of it", || doubted.lock().len() as u64 == runs);
    other.serve(&node);
    node.at(2);
    node.mend();
    assert_eq!(mended(&node.take_told()), vec![(2, "n2"); runs as usize]);
    assert_eq!(node.life.damage().mended_runs, runs);
    node.assert_same(&other);
}

/// Who reads a sealed segment and cannot has it mended at once, or, if nobody has it, as entries.
#[test]
fn what_is_needed_and_nobody_has_counts_as_entries_that_cannot_be_read() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    node.rot(2, 70);
    let read = || node.log().read(Vlsn::new(32), 1);
    let lsn = |n: i64| node.log().header(Vlsn::new(n)).map(|found| found.map(|(_, lsn)| lsn));
    let first = (1..=60).find(|n| lsn(*n).map_or(true, |lsn| lsn.unwrap().segment() == 2)).unwrap();
    let cause = node.log().read(Vlsn::new(first), 1).unwrap_err();
    assert!(node.life.handle_rot(&cause));
    assert!(node.log().faulty().is_empty(), "asked for as a block first");
    assert!(node.mend());
    assert!(node.around.posted.lock().contains(&Input::Unreadable));
    assert_eq!(node.log().faulty().len(), 1);
    assert!(node.log().damaged_blocks().is_empty(), "it is not sealed any more");
    other.serve(&node);
    node.at(5);
    node.mend();
    node.assert_same(&other);
    assert!(read().is_ok());
    // And with somebody who has it, none of that.
    node.around.posted.lock().clear();
    node.rot(2, 70);
    let cause = node.log().read(Vlsn::new(first), 1).unwrap_err();
    assert!(node.life.handle_rot(&cause));
    assert!(node.mend());
    // Another one had failed on the same bytes, and says so only now.
    assert!(node.life.handle_rot(&cause));
    assert!(!node.mend());
    assert_eq!(node.around.posted.lock().len(), 0);
    node.hand.set(Duration::from_secs(7));
    assert!(!node.life.handle_rot(&cause), "nothing is wrong with it, and nothing was lately");
    node.assert_same(&other);
}

/// Between the moment when a block is whole again and the one when that is noted.
#[test]
fn who_could_not_read_what_is_just_being_mended_is_told_to_look_again() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    node.rot(2, 70);
    let first = node.log().sealed_segments()[1].first;
    let cause = Arc::new(node.log().read(first, 1).unwrap_err());
    let (life, whole, asked) = (Arc::downgrade(&node.life), other.bytes(2), Arc::default());
    let (has, was_asked) = (holdings(&other), Arc::clone(&asked));
    let met = Arc::clone(&cause);
    let answer = move |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => Some(has.clone()),
        RestoreMsg::BlockRequest { segment, block: 0, .. } => {
            let life = life.upgrade()?;
            life.log().replace_block(*segment, 0, &whole[..BLOCK_BYTES as usize]).unwrap();
            let asked: &AtomicBool = &was_asked;
            asked.store(life.handle_rot(&met), Ordering::Release);
            None
        }
        _ => None,
    };
    node.around.at.lock().insert("n2:1".to_owned(), peer(answer, &Arc::default()));
    assert!(node.life.handle_rot(&cause));
    assert!(node.mend());
    eventually("it was told", || asked.load(Ordering::Acquire));
    assert_eq!(node.around.posted.lock().len(), 0);
    node.assert_same(&other);
}

/// A replica is not told who else follows its master, but may ask it.
#[test]
fn who_is_known_only_to_those_who_are_asked_is_asked_too() {
    let (node, other, fourth) = (TestNode::new(1), TestNode::new(3), TestNode::on(4, disk(4)));
    let others = vec![
        (name("n1"), "n1:1".to_owned()),
        (name("n3"), "n3:1".to_owned()),
        (name("n4"), "n4:1".to_owned()),
    ];
    let attached = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&attached);
    let knows_others = move |question: &RestoreMsg<'_>| match question {
        RestoreMsg::Attach { .. } => {
            count.fetch_add(1, Ordering::Relaxed);
            let (segments, others) = (vec![], others.clone());
            Some(RestoreMsg::Holdings { state: false, segments, others }.encode())
        }
        _ => panic!("asked {question:?} for what it does not have"),
    };
    let knows_others = peer(knows_others, &Arc::default());
    node.around.at.lock().insert("n2:1".to_owned(), knows_others);
    fourth.serve(&node);
    node.rot(2, 70);
    node.scrub();
    node.mend();
    assert_eq!(mended(&node.take_told()), [(2, "n4")]);
    assert_eq!(attached.load(Ordering::Relaxed), 1);
    node.assert_same(&other);
}

#[test]
fn a_finished_segment_that_cannot_be_sealed_is_mended_and_sealed() {
    let (node, other) = (TestNode::new(1), TestNode::new(2));
    other.serve(&node);
    for log in [node.log(), other.log()] {
        for n in 0..ENTRIES {
            let body = vec![n; BODY_BYTES];
            let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)];
            log.append(Term::new(1), &entry).unwrap();
        }
        log.sync_now().unwrap();
        log.control().update(|c| c.commit_floor = Vlsn::new(2 * i64::from(ENTRIES))).unwrap();
    }
    node.rot(4, BLOCK_BYTES + 70);
    let last = Vlsn::new(2 * i64::from(ENTRIES));
    other.log().seal_through(last).unwrap();
    node.log().seal_through(last).unwrap_err();
    assert_eq!(node.log().faulty().len(), 1);
    node.mend();
    node.at(1);
    node.mend();
    assert_eq!(mended(&node.take_told()), [(4, "n2")]);
    node.assert_same(&other);
}

#[test]
fn a_crash_at_any_call_of_the_mending_loses_nothing_and_the_next_life_goes_on_with_it() {
    let other = TestNode::new(2);
    let damaged = disk(1);
    let side = dir().join("log").join(side_name(2));
    let mut number = 0;
    loop {
        number += 1;
        let node = TestNode::on(1, damaged.clone_image(Survivors::All));
        other.serve(&node);
        node.rot(1, 70);
        node.rot(3, BLOCK_BYTES + 9);
        node.env.remove(&side).unwrap();
        node.rot(2, BLOCK_BYTES + 9);
        assert_eq!(node.scrub(), 3);
        node.env.crash_at(node.env.calls() + number);
        node.mend();
        let crashed = node.env.has_crashed();
        let survived = node.env.crash(number);
        drop(node);
        // The next life may crash at it too.
        for again in [3, 9, u64::MAX] {
            let node = TestNode::on(1, survived.clone_image(Survivors::All));
            other.serve(&node);
            node.scrub();
            if again < u64::MAX {
                node.env.crash_at(node.env.calls() + again);
            }
            node.mend();
            if node.env.has_crashed() {
                let env = node.env.crash(again);
                drop(node);
                let node = TestNode::on(1, env);
                other.serve(&node);
                settle(&node, &other);
            } else {
                node.env.crash_at(u64::MAX);
                settle(&node, &other);
            }
        }
        if !crashed {
            assert!(number > 20, "{number} calls");
            break;
        }
    }
}

/// Everything is mended in the end.
fn settle(node: &TestNode, other: &TestNode) {
    node.scrub();
    for second in 1..10 {
        node.mend();
        node.at(second);
    }
    node.assert_same(other);
}
