//! Services: what a node answers on its port.
//!
//! # Not here: the port itself (net/dispatcher.rs); links for elections (links.rs).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use noxu_util::{Name, Vlsn};

use super::feeding::Feeding;
use super::life::Life;
use super::links;
use super::master::Master;
use super::running::Running;
use crate::core::commits::Now;
use crate::core::recovery::{self, RecoveryId};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::net::dispatcher::{
    Dispatcher, ELECTION_SERVICE_NAME, FEEDER_SERVICE_NAME, RESTORE_SERVICE_NAME,
    STATUS_SERVICE_NAME, SYNCUP_SERVICE_NAME,
};
use crate::restore::provider::{ProviderHost, RestoreEnd, RestoreProvider, Serving};
use crate::stream::log_view::LogView;
use crate::stream::syncup_protocol::{SyncupOptions, feeder_syncup};
use crate::wire::probe::{ProbeAnswer, decode_question};

/// Version of the log format that this build reads and writes.
pub(crate) const LOG_FORMAT: u16 = 1;

/// How long a status question may take to come.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves one connection.
type Serve = fn(&Arc<Running>, &Arc<dyn Channel>) -> Result<()>;

/// Registers a node's services.
pub(crate) fn register(dispatcher: &Dispatcher, node: &Weak<Running>) {
    let services: [(&'static str, Serve); 4] = [
        (FEEDER_SERVICE_NAME, serve_feeder),
        (SYNCUP_SERVICE_NAME, serve_syncup),
        (STATUS_SERVICE_NAME, serve_status),
        (ELECTION_SERVICE_NAME, links::serve),
    ];
    for (name, serve) in services {
        let node = Weak::clone(node);
        let handler = move |channel: Arc<dyn Channel>| {
            let Some(node) = node.upgrade() else { return };
            let life = &node.life;
            let peer = channel.peer();
            match catch_unwind(AssertUnwindSafe(|| serve(&node, &channel))) {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => {
                    tracing::info!(node = %life.config.name, %peer, service = name, "{cause}");
                    life.note_error(&cause);
                }
                Err(_) => life.fail(&format!("the thread serving {name} to {peer} panicked")),
            }
        };
        dispatcher.register(name, Arc::new(handler));
    }
}

/// Registers what gives restoring nodes the log and state of `node`.
pub(crate) fn register_restore(dispatcher: &Dispatcher, node: &Arc<Running>) {
    dispatcher.register(RESTORE_SERVICE_NAME, Arc::new(node.life.restore_provider()));
}

fn serve_status(node: &Arc<Running>, channel: &Arc<dyn Channel>) -> Result<()> {
    node.life.serve_status(&**channel)
}

impl Life {
    /// What gives restoring nodes the log and the state of this one.
    pub fn restore_provider(self: &Arc<Self>) -> RestoreProvider {
        let host = Giving { life: Arc::downgrade(self) };
        let machine = Arc::clone(self.applier.machine());
        let (name, log) = (self.config.name.clone(), self.log.clone());
        RestoreProvider::new(name, log, machine, Arc::clone(&self.kept_checkpoints), Box::new(host))
    }

    /// Tells whoever asks over `channel` what this node is and what its log holds, until it is closed
    /// or nobody asks for some seconds.
    ///
    /// # Errors
    /// The channel's; `Wire` for a question that makes no sense.
    pub fn serve_status(&self, channel: &dyn Channel) -> Result<()> {
        while let Some(frame) = channel.receive(QUESTION_TIMEOUT)? {
            decode_question(&frame)?;
            let positions = self.log.positions();
            let answer = ProbeAnswer {
                is_master: self.mastership().is_some(),
                term: self.log.control().ballot().term,
                first: positions.anchor.vlsn.next(),
                last: positions.last,
                dtvlsn: self.dtvlsn(),
                node: self.config.name.clone(),
                master: self.master_address().unwrap_or_default(),
            };
            channel.send(&answer.encode())?;
        }
        Ok(())
    }
}

/// A node as those see it who are given its log and state.
struct Giving {
    life: Weak<Life>,
}

impl Giving {
    /// Tells the engine of the present mastership, if there is one.
    fn with_recovering<T>(&self, tell: impl FnOnce(&Master, Now) -> T) -> Option<T> {
        let life = self.life.upgrade()?;
        let master = life.mastership()?;
        Some(tell(&master, life.clock.now()))
    }
}

impl ProviderHost for Giving {
    fn serving(&self) -> Result<Serving> {
        let life = self.life.upgrade();
        match life.as_ref().and_then(|life| life.mastership()) {
            Some(master) => Ok(Serving { term: master.term(), dtvlsn: master.dtvlsn() }),
            None => Err(RepError::NotMaster { master: life.and_then(|l| l.master_address()) }),
        }
    }

    fn sources(&self) -> Vec<(Name, String)> {
        let master = self.life.upgrade().and_then(|life| life.mastership());
        let replicas = master.map(|master| master.replicas()).unwrap_or_default();
        let streaming = replicas.into_iter().filter(|replica| !replica.sent.is_null());
        streaming.map(|replica| (replica.name, replica.address)).collect()
    }

    fn handle_begun(&self, node: &Name, recovery: RecoveryId) {
        self.with_recovering(|master, now| {
            let errands = master.recovering.handle_accepted(now, node, recovery);
            master.run_errands(errands);
        });
    }

    fn handle_progress(
        &self,
        node: &Name,
        recovery: RecoveryId,
        progress: recovery::Progress,
    ) -> Result<Option<Vlsn>> {
        let told = self.with_recovering(|master, now| {
            let bounds = master.recovery_bounds();
            let (ends, errands) =
                master.recovering.handle_restore(now, node, recovery, progress, bounds);
            master.run_errands(errands);
            ends
        });
        let refused = |_| {
            let reason = "it does not get on, or another one has begun".to_owned();
            RepError::RestoreRefused { peer: node.to_string(), reason }
        };
        told.map_or(Ok(None), |told| told.map_err(refused))
    }

    fn expect_timeout(&self, due: Now) {
        if let Some(life) = self.life.upgrade() {
            life.housekeeper.arm(due);
        }
    }

    fn handle_ended(&self, node: &Name, recovery: RecoveryId, how: RestoreEnd) {
        self.with_recovering(|master, now| {
            let recovering = &master.recovering;
            master.run_errands(match how {
                RestoreEnd::Done(durable) => {
                    recovering.handle_restored(now, node, recovery, durable)
                }
                RestoreEnd::Failed(why) => {
                    recovering.handle_restore_ended(now, node, recovery, Some(why))
                }
                RestoreEnd::BrokenOff => recovering.handle_restore_ended(now, node, recovery, None),
            });
        });
    }

    fn handle_failed(&self, cause: &RepError) {
        if let Some(life) = self.life.upgrade() {
            life.look_for_damage(cause);
        }
    }
}

fn serve_syncup(node: &Arc<Running>, channel: &Arc<dyn Channel>) -> Result<()> {
    let view = LogView::new(&node.life.log);
    feeder_syncup(&**channel, &view, &SyncupOptions::default()).map(|_| ())
}

fn serve_feeder(node: &Arc<Running>, channel: &Arc<dyn Channel>) -> Result<()> {
    let Some(feeding) = node.life.accept(channel)? else { return Ok(()) };
    let outcome = stream(node, &feeding);
    channel.close();
    feeding.finish(outcome)
}

/// Two threads, so that neither side of the stream blocks the other: this one reads what the replica
/// acknowledges.
fn stream(node: &Arc<Running>, feeding: &Feeding) -> Result<()> {
    let (stream, replica) = (&feeding.stream, feeding.replica());
    std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .name(format!("feed-{replica}"))
            .spawn_scoped(scope, || stream.run_sender())
            .map_err(|cause| RepError::network(replica.as_str(), "starting a thread for", cause))?;
        let acks = stream.run_ack_reader();
        let sent = sender.join().unwrap_or_else(|_| {
            node.life.fail(&format!("the thread feeding {replica} panicked"));
            Ok(())
        });
        // The one that failed first closed the channel under the other's hands.
        match (acks, sent) {
            (Err(a), Err(s)) => Err(if matches!(a, RepError::Closed { .. }) { s } else { a }),
            (a, s) => a.and(s),
        }
    })
}
