use std::path::Path;
use std::sync::mpsc;

use noxu_log::env::MemoryEnv;
use noxu_log::{GroupIdentity, LogConfig};
use noxu_util::{Incarnation, Name};
use parking_lot::Mutex;

use super::*;
use crate::core::search::Attempt;
use crate::driver::following::Established;
use crate::group::{Voter, VoterKind};
use crate::net::channel::LocalChannelPair;
use crate::no_state::NoState;
use crate::wire::election::{Body, LeadPhase};
use crate::wire::handshake::{VersionRange, Welcome, handshake_as_feeder};

/// A world that remembers what it was told last.
#[derive(Default)]
struct Alone {
    target: Mutex<Option<Target>>,
}

impl Surroundings for Alone {
    fn post(&self, _: Input) {}
    fn set_timer(&self, _: Option<Now>) {}
    fn send(&self, _: &Name, _: &ElectionMsg) {}
    fn follow(&self, target: Target) {
        *self.target.lock() = Some(target);
    }
    fn meet(&self, _: Vec<String>) {}
    fn tell(&self, _: StateChange) {}
    fn tell_damage(&self, _: DamageEvent) {}
    fn mend_disk(&self) {}
    fn look_again(&self) {}
    fn handle_failed(&self) {}
    fn dial(&self, address: &str, _: &str, _: Duration) -> Result<Arc<dyn Channel>> {
        Err(RepError::Closed { peer: address.to_owned() })
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// n1 of a group of n1 and n2.
fn life(around: &Arc<Alone>) -> Arc<Life> {
    let env: Arc<dyn Env> = Arc::new(MemoryEnv::new());
    let voter = |n: u64| Voter {
        name: name(&format!("n{n}")),
        incarnation: Incarnation::from_u64(n),
        kind: VoterKind::Data,
        address: format!("n{n}:1"),
    };
    let electorate = Electorate { voters: vec![voter(1), voter(2)], q_rep: 0, q_elect: 0 };
    let config = LogConfig { prefill: false, ..LogConfig::default() };
    let (log, _) = Log::open(Arc::clone(&env), Path::new("/n1"), config.clone()).unwrap();
    log.found(group()).unwrap();
    log.control()
        .update(|control| {
            control.node = Some(name("n1"));
            control.incarnation = Incarnation::from_u64(1);
            control.group_config = electorate.encode().into();
        })
        .unwrap();
    log.close().unwrap();
    drop(log);
    let config = NodeConfig { log: config, ..NodeConfig::new(name("n1"), "/n1") };
    let around = Arc::clone(around) as Arc<dyn Surroundings>;
    let machine = |_: &NodeContext| Ok(Arc::new(NoState) as Arc<dyn StateMachine>);
    let life = Life::open(env, config, "n1:1".to_owned(), Clock::start(), around, machine).unwrap();
    life.start();
    life
}

fn group() -> GroupIdentity {
    GroupIdentity { id: GroupId::from_bytes([7; 16]), name: name("g"), segment_bytes: 1 << 20 }
}

fn welcome(term: u32) -> Welcome {
    Welcome {
        version: VersionRange::SPOKEN.highest,
        group: group().id,
        group_name: group().name,
        segment_bytes: group().segment_bytes,
        log_format: 1,
        node: name("n2"),
        incarnation: Incarnation::from_u64(2),
        term: Term::new(term),
        capabilities: Capabilities::OURS,
        clock_skew_ms: None,
        epoch: 0,
        established: true,
    }
}

/// A node that looks for a master has asked n2, and before that answers, n2 makes itself known as the
/// master: the conversation is broken off for another. What comes of it late must not count as the
/// master's end.
#[test]
fn a_conversation_that_was_broken_off_is_not_taken_up_by_a_late_welcome() {
    let around = Arc::<Alone>::default();
    let life = life(&around);
    let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
    let (asked, was_asked) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = handshake_as_feeder(&channel_b, &|_| {
                asked.send(()).unwrap();
                gone_on.recv().unwrap();
                Ok(welcome(1))
            });
        });
        let ours = &life;
        let asking = scope.spawn(move || {
            let channel: Arc<dyn Channel> = Arc::new(channel_a);
            let outcome = ours.establish(channel, "n2:1", &|| true);
            let broken = Err(RepError::Closed { peer: "n2:1".to_owned() });
            assert_eq!(
                ours.handle_conversation_ended(None, broken),
                Attempt::NotThis { instead: None }
            );
            outcome.is_ok_and(|outcome| !matches!(outcome, Established::NotThis))
        });
        was_asked.recv().unwrap();
        let n2 = Peer { name: name("n2"), incarnation: Incarnation::from_u64(2) };
        let lead = Body::Lead { address: "n2:1".to_owned(), phase: LeadPhase::Established };
        let message = ElectionMsg { epoch: 0, term: Term::new(1), body: lead };
        life.handle(Input::Message { from: n2, message });
        go_on.send(()).unwrap();
        assert!(!asking.join().unwrap(), "established though it was broken off");
    });
    // It still is to dial the master, and does not campaign against it.
    let target = around.target.lock().clone();
    let expected =
        Target::Master { name: name("n2"), address: "n2:1".to_owned(), term: Term::new(1) };
    assert_eq!(target, Some(expected));
    assert_eq!(life.role().1, Term::ZERO, "nothing was adopted");
}

#[test]
fn a_channel_that_is_not_the_conversations_adopts_no_term() {
    let life = life(&Arc::default());
    let LocalChannelPair { channel_a, .. } = LocalChannelPair::new();
    let stray: Arc<dyn Channel> = Arc::new(channel_a);
    assert!(!life.ask_term(&stray, Term::new(3), &name("n2"), "n2:1", Heard::default()));
    assert!(life.adopt_channel(&stray));
    assert!(life.ask_term(&stray, Term::new(3), &name("n2"), "n2:1", Heard::default()));
    assert_eq!(life.log().control().ballot().term, Term::new(3));
    assert_eq!(life.close_conversation(), Some(name("n2")));
    assert!(!life.ask_term(&stray, Term::new(3), &name("n2"), "n2:1", Heard::default()));
}
