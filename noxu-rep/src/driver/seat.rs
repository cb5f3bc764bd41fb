//! Seat: where a node's present life is found. A network restore ends one life, its log closed and
//! replaced, and begins the next with the same state machine, port and handles: the application
//! notices nothing but a pause.
//!
//! # Lock order
//! `restorer` -> `current`. Neither is held while a life is opened or ended.

use std::sync::Arc;
use std::thread::JoinHandle;

use noxu_log::env::Env;
use noxu_log::{Log, LogError, OpenReport};
use parking_lot::{Mutex, RwLock};

use crate::config::{NodeConfig, RoleConfig};
use crate::driver::housekeeper::Housekeeper;
use crate::error::{RepError, Result};
use crate::node::Inner;
use crate::restore::install;

/// Opens the log of a node. One with entries that cannot be read is refused: a node must not
/// acknowledge, ship or vote on what it does not have.
pub(crate) fn open_sound(env: &Arc<dyn Env>, config: &NodeConfig) -> Result<(Log, OpenReport)> {
    let (log, report) = Log::open(Arc::clone(env), &config.dir, config.log.clone())?;
    let Some(faulty) = report.faulty.first() else { return Ok((log, report)) };
    let refused = LogError::from(faulty);
    let _ = log.close(); // what it is refused for says more
    Err(refused.into())
}

/// The housekeeper of the present life, for the state machine; none while there is no log.
pub(crate) type HousekeeperSlot = Arc<RwLock<Option<Arc<Housekeeper>>>>;

/// Where a node's present life is found.
pub(crate) struct Seat {
    env: Arc<dyn Env>,
    housekeeper: HousekeeperSlot,
    current: RwLock<Arc<Inner>>,
    restorer: Mutex<Restorer>,
}

#[derive(Default)]
struct Restorer {
    /// The node shuts down: no new life.
    stopping: bool,
    thread: Option<JoinHandle<()>>,
}

impl Seat {
    pub(crate) fn new(
        env: Arc<dyn Env>,
        housekeeper: HousekeeperSlot,
        first: &Arc<Inner>,
    ) -> Arc<Self> {
        let seat = Arc::new(Self {
            env,
            housekeeper,
            current: RwLock::new(Arc::clone(first)),
            restorer: Mutex::default(),
        });
        first.take_seat(&seat);
        seat
    }

    /// The present life.
    pub(crate) fn current(&self) -> Arc<Inner> {
        Arc::clone(&self.current.read())
    }

    pub(crate) fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }

    /// A restore was fetched and committed: ends the present life and begins the next, in a thread
    /// of its own, because the caller is a thread of the life that ends.
    pub(crate) fn begin_next_life(self: &Arc<Self>) {
        let mut restorer = self.restorer.lock();
        if restorer.stopping {
            return;
        }
        let seat = Arc::clone(self);
        let run = move || {
            let old = seat.current();
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seat.next_life(&old)));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => old.die(&format!("restoring: {cause}")),
                Err(_) => old.die("the thread restore panicked"),
            }
        };
        match std::thread::Builder::new().name("noxu-restore".to_owned()).spawn(run) {
            Ok(thread) => restorer.thread = Some(thread),
            Err(cause) => {
                drop(restorer);
                self.current().fail(&format!("no thread for the restore: {cause}"));
            }
        }
    }

    fn next_life(self: &Arc<Self>, old: &Arc<Inner>) -> Result<()> {
        *self.housekeeper.write() = None;
        old.retire()?;
        let machine = Arc::clone(old.applier.machine());
        let mut config = old.config.clone();
        // Whatever it was opened as: a restored log is not one to be master with at once.
        config.role = RoleConfig::Replica;
        let clock = old.clock.clone();
        let restored = install::install(&self.env, &config.dir, &config.log, &*machine, &clock)?;
        tracing::info!(node = %config.name, ?restored, "restored");
        let (log, _) = open_sound(&self.env, &config)?;
        let housekeeper = Arc::new(Housekeeper::new(log.clone(), clock.clone()));
        *self.housekeeper.write() = Some(Arc::clone(&housekeeper));
        let next = Inner::new(log, clock, housekeeper, config, machine, old.dispatcher());
        next.note_restored(old, restored);
        next.take_seat(self);
        *self.current.write() = Arc::clone(&next);
        old.handle_replaced();
        let started = next.start();
        if let Err(cause) = &started {
            next.fail(&format!("starting after a restore: {cause}"));
        }
        Ok(())
    }

    /// Ends the present life for good. Idempotent.
    ///
    /// # Errors
    /// The log's, or what stopped the node before.
    pub(crate) fn shutdown(&self) -> Result<()> {
        let thread = {
            let mut restorer = self.restorer.lock();
            restorer.stopping = true;
            restorer.thread.take()
        };
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join(); // its panic has been reported
        }
        self.current().shutdown()
    }

    /// The seat of a life that has been given one.
    pub(crate) fn gone() -> RepError {
        RepError::Stopped { cause: "the node has been shut down".to_owned() }
    }
}
