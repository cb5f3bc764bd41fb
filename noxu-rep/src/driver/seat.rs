//! Seat: where a node's present life is found. A network restore ends one life, its log closed and
//! replaced, and begins the next with the same state machine, port and handles: the application
//! notices nothing but a pause.
//!
//! # Lock order
//! `restorer` -> `current`. Neither is held while a life is opened or ended.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use noxu_log::env::Env;
use noxu_log::install::lock_dir;
use parking_lot::{Condvar, Mutex, RwLock};

use super::housekeeper::Housekeeper;
use super::opening::{HousekeeperSlot, Opened, open_log};
use super::running::Running;
use crate::error::{RepError, Result};
use crate::restore::install;

/// Where a node's present life is found.
pub(crate) struct Seat {
    env: Arc<dyn Env>,
    housekeeper: HousekeeperSlot,
    current: RwLock<Arc<Running>>,
    restorer: Mutex<Restorer>,
    /// The node shuts down.
    stops: Condvar,
}

/// How long an installation waits for room on the disk before it tries again.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

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
        first: &Arc<Running>,
    ) -> Arc<Self> {
        let seat = Arc::new(Self {
            env,
            housekeeper,
            current: RwLock::new(Arc::clone(first)),
            restorer: Mutex::default(),
            stops: Condvar::new(),
        });
        first.take_seat(&seat);
        seat
    }

    /// The present life.
    pub(crate) fn current(&self) -> Arc<Running> {
        Arc::clone(&self.current.read())
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
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => old.end_retired(),
                Ok(Err(cause)) => old.life.die(&format!("restoring: {cause}")),
                Err(_) => old.life.die("the thread restore panicked"),
            }
        };
        match std::thread::Builder::new().name("noxu-restore".to_owned()).spawn(run) {
            Ok(thread) => restorer.thread = Some(thread),
            Err(cause) => {
                drop(restorer);
                self.current().life.fail(&format!("no thread for the restore: {cause}"));
            }
        }
    }

    /// Ends a life and begins the next; false if the node shuts down before.
    fn next_life(self: &Arc<Self>, old: &Arc<Running>) -> Result<bool> {
        let life = &old.life;
        let _files = life.hold_restore_files();
        // Else the state machine was cleared for the restore before, and it is no rot that recurs.
        let may_clear = life.check_state().is_ok();
        old.retire()?;
        let machine = Arc::clone(life.applier.machine());
        let (config, clock) = (life.config.clone(), life.clock.clone());
        let restored = loop {
            let (dir, log) = (&config.dir, &config.log);
            let (sync, machine) = (&config.sync, &*machine);
            match install::install(&self.env, dir, log, sync, machine, may_clear, &clock) {
                Err(cause) if cause.is_storage_full() => {
                    life.note_error(&RepError::NoRoom(Box::new(cause)));
                    if !self.wait_for_room(dir)? {
                        return Ok(false);
                    }
                }
                installed => break installed?,
            }
        };
        tracing::info!(node = %config.name, ?restored, "restored");
        let (log, report) = open_log(&self.env, &config)?;
        let housekeeper = Arc::new(Housekeeper::new(log.clone(), clock.clone()));
        *self.housekeeper.write() = Some(Arc::clone(&housekeeper));
        let (env, slot) = (Arc::clone(&self.env), Arc::clone(&self.housekeeper));
        let opened = Opened { env, config, clock, log, report, housekeeper, slot, machine };
        let next = Running::new(opened, old.dispatcher())?;
        next.life.note_restored(life, restored);
        next.take_seat(self);
        *self.current.write() = Arc::clone(&next);
        life.handle_replaced();
        next.start();
        Ok(true)
    }

    /// Waits until it is worth while to look for room again; false if the node shuts down. The directory
    /// stays this node's meanwhile.
    ///
    /// # Errors
    /// `Log` if it is not.
    fn wait_for_room(&self, dir: &Path) -> Result<bool> {
        let _lock = lock_dir(&*self.env, dir)?;
        let mut restorer = self.restorer.lock();
        self.stops.wait_while_for(&mut restorer, |restorer| !restorer.stopping, ROOM_PAUSE);
        Ok(!restorer.stopping)
    }

    /// Ends the present life for good. Idempotent.
    ///
    /// # Errors
    /// The log's, or what stopped the node before.
    pub(crate) fn shutdown(&self) -> Result<()> {
        let thread = {
            let mut restorer = self.restorer.lock();
            restorer.stopping = true;
            self.stops.notify_all();
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
