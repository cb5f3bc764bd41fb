//! Ending: whether the group has become one again, and what is judged then.
//!
//! # Not here: the rules themselves (invariants, oracle.rs, embed.rs, excuse.rs).

use std::collections::BTreeMap;
use std::sync::Arc;

use noxu_log::inspect::Inspection;
use noxu_util::Vlsn;

use super::{PATIENCE, World};
use crate::embed::{Embedded, Ending};
use crate::event::Host;
use crate::excuse::Excuse;
use crate::invariants::i14_convergence::{self, NodeEnd};
use crate::invariants::{Violation, i06_intact_copy};
use crate::ledger::Record;
use crate::oracle::Witness;
use crate::workload::Client;

impl<E: Embedded> World<E> {
    /// Whether the group has become one: nobody is missing, somebody is master, and all have the same
    /// and have applied it.
    pub(super) fn is_one(&self) -> bool {
        let mut hosts = self.plan.hosts();
        let here = hosts.all(|host| self.refused.contains_key(&host) || self.is_up(host));
        let ends = self.ends();
        here && ends.iter().all(|end| end.applied == end.last)
            && !self.clients.iter().any(Client::is_waiting)
            && i14_convergence::check(&ends).is_ok()
            && self.is_mended()
    }

    /// Whether everybody has looked at what is sealed on its disk, and nothing is damaged that another
    /// one could give.
    fn is_mended(&self) -> bool {
        let running: Vec<_> = self.nodes.iter().filter_map(|node| node.process.as_ref()).collect();
        running.iter().all(|process| {
            let mut others = running.iter().filter(|other| !std::ptr::eq(*process, **other));
            process.scrubbed && !others.any(|other| process.could_be_mended_by(other))
        })
    }

    /// How the nodes that run are at the moment. States are compared only if the logs are equal.
    pub(super) fn ends(&self) -> Vec<NodeEnd> {
        let mut ends: Vec<NodeEnd> = Vec::new();
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            let positions = process.life.log().positions();
            let mastership = process.life.mastership();
            ends.push(NodeEnd {
                host: node.host,
                master_of: mastership.map(|master| master.term()),
                last: positions.last,
                fingerprint: positions.last_fingerprint,
                applied: process.life.applier().applied(),
                state: 0,
            });
        }
        if i14_convergence::check(&ends).is_ok() {
            for end in &mut ends {
                end.state = self.state_of(end.host);
            }
        }
        ends
    }

    /// Digest of a node's state; 0 if it cannot be read.
    fn state_of(&self, host: Host) -> u64 {
        let process = self.nodes[host.0].process.as_ref();
        process.and_then(|process| self.embedded.digest(&process.engine)).unwrap_or_default()
    }

    /// The group is one: everything that was said is judged.
    pub(super) fn judge(&mut self) -> Result<(), Violation> {
        self.judge_safety()?;
        let committed = self.oracle.judge(&self.witnesses())?;
        let mut nodes = Vec::new();
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            if self.embedded.digest(&process.engine).is_none() {
                return Err(Violation::new("I14", format!("{} cannot be read", node.host)));
            }
            nodes.push((node.host, &process.engine));
        }
        self.embedded.judge(&Ending { committed, nodes })
    }

    pub(super) fn judge_safety(&mut self) -> Result<(), Violation> {
        i06_intact_copy::check(self.watch.ledger(), &self.atlas, Vlsn::new(1))?;
        for node in &self.nodes {
            if let Some(process) = &node.process {
                process.life.check_invariants();
            }
        }
        for host in self.plan.hosts() {
            if !self.rotten.contains(&host) {
                self.verify(host)?;
            }
        }
        Ok(())
    }

    /// Reads all of a log and computes its fingerprints again.
    fn verify(&mut self, host: Host) -> Result<(), Violation> {
        let (env, dir) = {
            let disk = self.nodes[host.0].disk.lock();
            (disk.env(), disk.dir().to_owned())
        };
        let walked = Inspection::open(Arc::new(env), &dir).and_then(|log| log.verify(|_, _| ()));
        let wrong = match walked {
            Ok(walk) => walk.faults.first().map(|fault| format!("{fault:?}")),
            Err(cause) => Some(cause.to_string()),
        };
        self.watch.enter(&Record::Verified { host, wrong })
    }

    /// What clients wrote that is durable, or in the log that the group ended with.
    fn witnesses(&self) -> BTreeMap<Vlsn, Witness> {
        let ledger = self.watch.ledger();
        let longest = self.nodes.iter().filter_map(|node| node.process.as_ref().map(|_| node.host));
        let longest = longest.filter_map(|host| ledger.log(host)).max_by_key(|log| log.last());
        let mut log = BTreeMap::new();
        for place in self.oracle.places() {
            let durable = ledger.durable(place.vlsn);
            let held = durable.or_else(|| longest.and_then(|log| log.at(place.vlsn)));
            if let Some(held) = held
                && held.fingerprint == place.fingerprint
            {
                log.insert(place.vlsn, Witness { term: held.term, fingerprint: held.fingerprint });
            }
        }
        log
    }

    /// The group has not become one: lawful, or not.
    pub(super) fn judge_stall(&mut self) -> Result<Option<Excuse>, Violation> {
        self.judge_safety()?;
        if let Some(excuse) = Excuse::find(&self.atlas, &self.plan, &self.refused) {
            return Ok(Some(excuse));
        }
        let ends = self.ends();
        let why = i14_convergence::check(&ends).err();
        let why = match why {
            Some(violation) => violation.found,
            None if self.is_mended() => "no commit succeeds".to_owned(),
            None => "what is damaged is not mended".to_owned(),
        };
        let mut roles = String::new();
        for node in &self.nodes {
            let role = node.process.as_ref().map(|process| {
                let (role, term) = process.life.role();
                let positions = process.life.log().positions();
                format!(
                    "{role} in term {term}, log {}..{}, durable {}, applied {}, damaged {:?}",
                    positions.anchor.vlsn.next(),
                    positions.last,
                    positions.durable,
                    process.life.applier().applied(),
                    process.life.damage().open
                )
            });
            roles.push_str(
                "
  ",
            );
            roles.push_str(&node.host.to_string());
            roles.push_str(": ");
            roles.push_str(role.as_deref().unwrap_or("down"));
        }
        Err(Violation::new("I14", format!("not one group after {PATIENCE:?}: {why}{roles}")))
    }
}
