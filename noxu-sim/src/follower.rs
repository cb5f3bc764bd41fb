//! Follower: the task that finds the master a node is told to follow, and follows it: what the thread
//! of the same name does in a program.
//!
//! # Not here: one conversation (noxu-rep), whom to follow (the core of the node).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use noxu_rep::core::node::Ended;
use noxu_rep::core::replica::StreamFault;
use noxu_rep::driver::following::Established;
use noxu_rep::driver::life::{Life, Target};
use noxu_rep::error::RepError;
use noxu_rep::net::channel::Channel;
use noxu_rep::stream::replica::ended;
use noxu_rep::wire::handshake::RejectReason;
use noxu_util::Name;
use parking_lot::Mutex;

use crate::baton;
use crate::disk::Disk;
use crate::event::Host;
use crate::network::Network;
use crate::outside::Outside;

/// First and longest wait between two rounds in which no peer could be followed.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait of a follower that nobody wakes.
const IDLE: Duration = Duration::from_hours(1);

/// One life's follower.
pub(crate) struct Follower {
    pub(crate) life: Arc<Life>,
    pub(crate) outside: Arc<Outside>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) dial_timeout: Duration,
    pub(crate) peers: Vec<String>,
    pub(crate) wait: Duration,
}

/// How an attempt with one peer ended.
enum Attempt {
    Followed,
    Failed,
    NotThis { instead: Option<String> },
}

impl Follower {
    pub(crate) fn new(
        life: Arc<Life>,
        outside: Arc<Outside>,
        disk: Arc<Mutex<Disk>>,
        dial_timeout: Duration,
        peers: Vec<String>,
    ) -> Self {
        Self { life, outside, disk, dial_timeout, peers, wait: FIRST_WAIT }
    }

    /// The task; ends with the life.
    pub(crate) fn run(mut self) {
        let mut last = 0;
        while !baton::is_cancelled() && !self.life.is_over() {
            let (number, target) = self.outside.notes().order.clone();
            if number == last {
                self.outside.sleep(last, IDLE);
                continue;
            }
            last = number;
            match target {
                None | Some(Target::Nobody) => {}
                Some(Target::Master { name, address, .. }) => {
                    self.attempt(number, &address, Some(&name));
                }
                Some(Target::Seek { .. }) => self.seek(number),
            }
        }
    }

    /// Asks everybody, over and over, as long as the order stands.
    fn seek(&mut self, number: u64) {
        while self.outside.stands(number) && !self.life.is_over() && !baton::is_cancelled() {
            let mut candidates: VecDeque<String> = self.candidates().into();
            let mut hinted = false;
            while let Some(address) = candidates.pop_front() {
                if !self.outside.stands(number) || baton::is_cancelled() {
                    return;
                }
                match self.attempt(number, &address, None) {
                    Attempt::Followed => {
                        self.wait = FIRST_WAIT;
                        break;
                    }
                    Attempt::Failed => break,
                    Attempt::NotThis { instead: Some(master) } if !hinted && master != address => {
                        hinted = true;
                        candidates.push_front(master);
                    }
                    Attempt::NotThis { .. } => {}
                }
            }
            self.outside.sleep(number, self.wait);
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
    }

    fn candidates(&self) -> Vec<String> {
        let hints = match &self.outside.notes().order.1 {
            Some(Target::Seek { hints }) => hints.clone(),
            Some(Target::Nobody | Target::Master { .. }) | None => Vec::new(),
        };
        let last = self.life.master_address();
        let own = Network::address(self.outside.host);
        let mut all: Vec<String> = Vec::new();
        for address in last.iter().chain(&self.peers).chain(&hints) {
            if *address != own && !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// One conversation with the node at `address`.
    fn attempt(&mut self, number: u64, address: &str, master: Option<&Name>) -> Attempt {
        let Some(to) = Network::host_of(address) else {
            return Attempt::NotThis { instead: None };
        };
        let conversed = self.converse(to, address);
        let stands = self.outside.stands(number);
        let (attempt, why) = match conversed {
            Ok(Some(why)) => (Attempt::Followed, why),
            Ok(None) => (Attempt::NotThis { instead: None }, Ended::Fault),
            Err(cause) => {
                self.outside.notes().ended.push(cause.to_string());
                if is_final(&cause) && stands && !self.life.is_over() {
                    self.outside.fail(&cause.to_string());
                    return Attempt::Followed;
                }
                let instead = match &cause {
                    RepError::Rejected(RejectReason::NotMaster { master }) => master.clone(),
                    _ => None,
                };
                (Attempt::NotThis { instead }, ended(&Err(cause)))
            }
        };
        let met = self.life.handle_conversation_ended(master.filter(|_| stands), why);
        match attempt {
            Attempt::NotThis { .. } if met => Attempt::Failed,
            other => other,
        }
    }

    fn converse(&self, to: Host, address: &str) -> noxu_rep::Result<Option<Ended>> {
        let channel = self.outside.dial_feeder(to, self.dial_timeout)?;
        let disk = Arc::clone(&self.disk);
        let agenda = self.outside.agenda.clone();
        channel.take_time(move || disk.lock().sync_takes(agenda.now()));
        let channel: Arc<dyn Channel> = Arc::new(channel);
        let outcome = match self.life.establish(Arc::clone(&channel), address, &|| true) {
            Ok(Established::NotThis) => Ok(None),
            Ok(Established::Stream(stream)) => {
                let outcome = stream.run();
                let why = ended(&outcome);
                outcome.map(|_| Some(why))
            }
            Ok(Established::Restore(from)) => {
                let restored = self.life.restore(&from);
                if restored.as_ref().is_ok_and(|done| *done) {
                    self.outside.notes().restored = true;
                }
                restored.map(|_| Some(Ended::Fault))
            }
            Err(cause) => Err(cause),
        };
        channel.close();
        outcome
    }
}

/// What no retry can mend: the node stops and says so.
fn is_final(cause: &RepError) -> bool {
    matches!(
        cause,
        RepError::Stream(StreamFault::DurableFork { .. })
            | RepError::StateMachine { .. }
            | RepError::Log(_)
            | RepError::Stopped { .. }
    )
}
