//! Mending: an elected master's log is mended before its term begins, or later where only replicas
//! need what is damaged; and others are helped to mend theirs.
//!
//! # Not here: what is asked, answered and cut off (core/repair.rs).

use noxu_util::Term;

use super::{Facts, Mastership, NodeCore, Output, State};
use crate::core::commits::Now;
use crate::core::repair::{Damage, Repair, RepairOutput, RepairSetup};
use crate::wire::election::{Body, Peer, Phase, Purpose, RepairAnswer, RepairAsk};

impl NodeCore {
    pub(super) fn handle_repair_ask(
        &mut self,
        now: Now,
        facts: &Facts,
        from: &Peer,
        term: Term,
        ask: RepairAsk,
    ) {
        if self.is_silent() {
            return;
        }
        match ask.purpose {
            Purpose::Mending => {}
            Purpose::Repairing => {
                if !self.is_voter() {
                    return;
                }
                if term < self.promised.term {
                    let standing = self.standing(facts); // tells it the newer term
                    self.send(&from.name, Body::Standing(standing));
                    return;
                }
                let wait = now + self.setup.timing.failure_timeout;
                if term > self.promised.term {
                    // The answer promises never to take the entry from an older master.
                    self.raise(term, None);
                    self.become_follower(now, None, wait, 0, "a newer master mends its log");
                }
                self.hold_back(now, Phase::Real);
                assert!(self.fenced_at >= term, "a nack before the fence");
            }
        }
        self.outputs.push_back(Output::AnswerRepair { to: from.name.clone(), ask });
    }

    pub(super) fn handle_repair_answer(
        &mut self,
        now: Now,
        from: &Peer,
        term: Term,
        answer: &RepairAnswer,
    ) {
        self.handle_term_met(now, term, from);
        match &mut self.state {
            State::Repairing(repairing) if repairing.term == term => {
                repairing.repair.handle_answer(from, answer);
            }
            // The chain proves what comes, in whichever term.
            State::Master(Mastership { mending: Some(mending), .. }) => {
                mending.handle_answer(from, answer);
            }
            _ => return,
        }
        self.drain_repair(now);
    }

    pub(super) fn handle_mended(&mut self, now: Now, facts: &Facts, fitted: bool) {
        match &mut self.state {
            State::Repairing(repairing) => {
                repairing.repair.handle_done(now, &facts.damaged, fitted);
            }
            State::Master(Mastership { mending: Some(mending), .. }) => {
                mending.handle_done(now, &facts.faulty, fitted);
            }
            _ => return, // it stepped down meanwhile
        }
        self.drain_repair(now);
    }

    /// A replica needs entries that cannot be read. Whoever is level can give them to it, and takes
    /// the mastership over; if nobody is, this log is mended while it is the master's.
    pub(super) fn handle_unreadable(&mut self, now: Now, facts: &Facts) {
        let State::Master(mastership) = &self.state else { return };
        let mends = mastership.mending.is_some();
        if !mends {
            self.alarm("a replica needs entries of this log that cannot be read".to_owned());
        }
        // Also when this log is being mended: what is asked for may be nowhere.
        if let Some(successor) = self.successor(now, facts) {
            let at = now + self.setup.timing.failure_timeout * 2;
            self.step_down(now, at, "a replica needs what cannot be read", Some(successor));
        } else if !mends && !facts.faulty.is_empty() {
            let begun = self.repair(now, facts, Purpose::Mending, &facts.faulty);
            if let State::Master(mastership) = &mut self.state {
                mastership.mending = Some(begun);
            }
            self.drain_repair(now);
        }
    }

    pub(super) fn repair(
        &mut self,
        now: Now,
        facts: &Facts,
        purpose: Purpose,
        damages: &[Damage],
    ) -> Repair {
        let setup = RepairSetup {
            quorums: self.quorums(),
            others: self.other_voters(),
            retry: self.setup.timing.repair_retry,
            max_bytes: self.setup.max_repair_bytes,
            nonce: self.rng.u64(..),
            floor: facts.commit_floor.max(facts.dtvlsn),
            purpose,
        };
        Repair::new(now, setup, damages)
    }

    pub(super) fn drain_repair(&mut self, now: Now) {
        loop {
            let repair = match &mut self.state {
                State::Repairing(repairing) => &mut repairing.repair,
                State::Master(Mastership { mending: Some(mending), .. }) => mending,
                _ => return,
            };
            match repair.poll_output() {
                None => break,
                Some(RepairOutput::Ask { to, ask }) => self.send(&to, Body::RepairAsk(ask)),
                Some(RepairOutput::Step(step)) => self.outputs.push_back(Output::Mend(step)),
                Some(RepairOutput::Never) => {
                    let at = now + self.between(self.setup.timing.retry);
                    self.step_down(now, at, "entries that nobody else ever had are damaged", None);
                    return;
                }
                Some(RepairOutput::Alarm(text)) => self.alarm(text),
            }
        }
        if let State::Master(mastership) = &mut self.state {
            mastership.mending.take_if(|mending| mending.is_finished());
        }
    }

    pub(super) fn look_at_repair(&mut self, now: Now, facts: &Facts, term: Term) {
        let State::Repairing(repairing) = &self.state else { return };
        let since = repairing.since;
        if repairing.repair.is_finished() {
            assert!(facts.damaged.is_empty(), "finished with {:?}", facts.damaged);
            let granted = repairing.granted.clone();
            self.become_master(now, facts, term, granted);
        } else if now >= since + self.setup.timing.repair_patience {
            // The others waited for this node until now, and each of them is to have its turn.
            let at = now + self.setup.timing.failure_timeout * 2 + self.retry_wait(0);
            self.alarm("damaged entries are nowhere to be had; making way".to_owned());
            self.become_follower(now, None, at, 0, "the log cannot be mended");
        } else if facts.stalled_for >= self.setup.timing.disk_stall {
            let at = now + self.setup.timing.disk_stall;
            self.become_follower(now, None, at, 0, "the disk does not answer");
        }
    }
}
