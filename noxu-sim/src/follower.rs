//! Follower: the task that finds the master a node is told to follow, and follows it: what the thread
//! of the same name does in a program.
//!
//! # Not here: one conversation, whom to ask next (noxu-rep), whom to follow (the core of the node).

use std::sync::Arc;
use std::time::Duration;

use noxu_rep::core::search::{Attempt, Search};
use noxu_rep::driver::following::is_final;
use noxu_rep::driver::life::{Life, Target};
use noxu_rep::net::channel::Channel;
use noxu_util::Name;
use parking_lot::Mutex;

use crate::baton;
use crate::disk::Disk;
use crate::network::Network;
use crate::outside::Outside;

/// Longest wait of a follower that nobody wakes.
const IDLE: Duration = Duration::from_hours(1);

/// One life's follower.
pub(crate) struct Follower {
    pub(crate) life: Arc<Life>,
    pub(crate) outside: Arc<Outside>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) dial_timeout: Duration,
    pub(crate) peers: Vec<String>,
    pub(crate) search: Search,
}

impl Follower {
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
        let own = Network::address(self.outside.host);
        while self.outside.stands(number) && !self.life.is_over() && !baton::is_cancelled() {
            let known = self.known();
            self.search.begin_round(&own, known);
            while let Some(address) = self.search.poll_candidate() {
                let attempt = self.attempt(number, &address, None);
                self.search.handle_attempt(&address, attempt);
                if !self.outside.stands(number) || baton::is_cancelled() {
                    return;
                }
            }
            let rest = self.search.end_round(self.outside.draw());
            self.outside.sleep(number, rest);
        }
    }

    /// Where somebody may know: where the master was last, first.
    fn known(&self) -> Vec<String> {
        let mut known: Vec<String> = self.life.master_address().into_iter().collect();
        known.extend_from_slice(&self.peers);
        if let Some(Target::Seek { hints }) = &self.outside.notes().order.1 {
            known.extend_from_slice(hints);
        }
        known
    }

    /// One conversation with the node at `address`.
    fn attempt(&self, number: u64, address: &str, master: Option<&Name>) -> Attempt {
        let Some(to) = Network::host_of(address) else {
            return Attempt::NotThis { instead: None };
        };
        let wanted = || self.outside.stands(number);
        let next_life = || self.outside.notes().restored = true;
        let dialled = self.outside.dial_feeder(to, self.dial_timeout);
        let outcome = dialled.and_then(|channel| {
            let (disk, agenda) = (Arc::clone(&self.disk), self.outside.agenda.clone());
            channel.take_time(move || disk.lock().sync_takes(agenda.now()));
            let channel: Arc<dyn Channel> = Arc::new(channel);
            let outcome = self.life.converse(Arc::clone(&channel), address, &wanted, &next_life);
            channel.close();
            outcome
        });
        let stands = wanted();
        if let Err(cause) = &outcome {
            self.outside.notes().ended.push(cause.to_string());
            if is_final(cause) && stands && !self.life.is_over() {
                self.outside.fail(&cause.to_string());
                return Attempt::Followed;
            }
        }
        self.life.handle_conversation_ended(master.filter(|_| stands), outcome)
    }
}
