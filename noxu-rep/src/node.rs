//! Node: one member of a group, in one process, as its owner sees it: opened, written to, asked,
//! shut down.
//!
//! # Not here: its directory (driver/opening.rs), what it does by itself (driver/life.rs), its
//! threads (driver/running.rs), the changing of lives when its log is replaced (driver/seat.rs).

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noxu_log::env::Env;
use noxu_log::{Log, NewEntry, ScrubConfig, ScrubProgress};
use noxu_util::{Name, Vlsn};

use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::core::durability::Durability;
use crate::driver::life::Life;
use crate::driver::master::{Admission, Submitted};
use crate::driver::opening::{NodeContext, open_directory};
use crate::driver::running::Running;
use crate::driver::seat::Seat;
use crate::error::{RepError, Result};
use crate::net::dispatcher::{Dispatcher, DispatcherConfig};
use crate::outcome::{CommitId, CommitOutcome};
use crate::status::{Role, ScrubSummary, Status};
use crate::sync::StateMachine;

/// A member of a group. Cheap to clone; the last handle dropped shuts the node down.
#[derive(Clone)]
pub struct Node {
    owner: Arc<Owner>,
}

/// Shuts the node down when the last handle goes. The node's own threads hold `Running`, not this.
struct Owner {
    seat: Arc<Seat>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(cause) = self.seat.shutdown() {
            let name = &self.seat.current().life.config.name;
            tracing::error!(node = %name, "shutting down: {cause}");
        }
    }
}

impl Node {
    /// Opens the node in its directory: recovers the log, opens the state machine with `open` and
    /// listens. The group finds its master by itself: [`Node::wait_role`] tells when.
    ///
    /// # Errors
    /// The log's; `Bind`; `BadConfig`, `WrongDirectory`.
    pub fn open(
        env: Arc<dyn Env>,
        config: NodeConfig,
        open: impl FnOnce(&NodeContext) -> Result<Arc<dyn StateMachine>>,
    ) -> Result<Self> {
        let opened = open_directory(Arc::clone(&env), config, Clock::start(), open)?;
        let (log, slot) = (opened.log.clone(), Arc::clone(&opened.slot));
        let begin = || {
            let dispatcher = Dispatcher::bind(&opened.config.listen, DispatcherConfig::default())?;
            Running::new(opened, Arc::new(dispatcher))
        };
        match begin() {
            Ok(running) => {
                let seat = Seat::new(env, slot, &running);
                let node = Self { owner: Arc::new(Owner { seat }) };
                running.start();
                Ok(node)
            }
            Err(cause) => {
                let _ = log.close(); // what opening failed for says more
                Err(cause)
            }
        }
    }

    fn life(&self) -> Arc<Life> {
        Arc::clone(&self.owner.seat.current().life)
    }

    /// Waits until a commit under `durability` may be written, and gives leave to write it: for
    /// callers that decide under a lock of their own what to write.
    ///
    /// # Errors
    /// `NotMaster`, `InsufficientReplicas`, `Stopped`.
    pub fn admit(&self, durability: Durability) -> Result<Admission> {
        self.life().sitting_master()?.admit(durability)
    }

    /// Writes `batch`, the entries of one transaction whose last is a commit, and returns a handle
    /// to wait for `durability` with.
    ///
    /// # Errors
    /// With nothing written: `NotMaster`, `InsufficientReplicas`, `Stopped`, the log's.
    ///
    /// # Panics
    /// If the batch does not end in a commit.
    pub fn submit(&self, batch: &[NewEntry<'_>], durability: Durability) -> Result<Submitted> {
        let submitted = self.admit(durability)?.write(batch)?;
        submitted.start();
        Ok(submitted)
    }

    /// [`Node::submit`] and [`Submitted::wait`] in one, which may save a wake-up.
    ///
    /// # Errors
    /// Those of both.
    ///
    /// # Panics
    /// If the batch does not end in a commit.
    pub fn commit(&self, batch: &[NewEntry<'_>], durability: Durability) -> Result<Submitted> {
        let submitted = self.admit(durability)?.write(batch)?;
        submitted.wait()?;
        Ok(submitted)
    }

    /// The address the node listens on, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.owner.seat.current().dispatcher().local_addr()
    }

    /// The node's name.
    pub fn name(&self) -> Name {
        self.life().config.name.clone()
    }

    /// What the node does.
    pub fn role(&self) -> Role {
        self.life().role().0
    }

    /// Blocks until the node is `role`; false if the time is up or the node stops before.
    pub fn wait_role(&self, role: Role, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let life = self.life();
            let left = deadline.saturating_duration_since(Instant::now());
            if life.wait_role(role, left) {
                return true;
            }
            // It may have ended because another life has begun.
            if left.is_zero() || Arc::ptr_eq(&life, &self.life()) {
                return false;
            }
        }
    }

    /// Where the master is reached by its peers, this node itself included; waits for word of it at
    /// most `timeout`.
    pub fn wait_master(&self, timeout: Duration) -> Option<String> {
        self.life().wait_master(timeout)
    }

    /// The log. A network restore replaces it: ask again rather than keep it.
    pub fn log(&self) -> Log {
        self.life().log.clone()
    }

    /// The state machine.
    pub fn machine(&self) -> Arc<dyn StateMachine> {
        Arc::clone(self.life().applier.machine())
    }

    /// Highest VLSN known durable on a quorum.
    pub fn dtvlsn(&self) -> Vlsn {
        self.life().dtvlsn()
    }

    /// Everything through it is applied.
    pub fn applied(&self) -> Vlsn {
        self.life().applier.applied()
    }

    /// Blocks until a quorum is known to hold everything through `vlsn` durably; false if the
    /// time is up or the node stops before.
    pub fn wait_durable(&self, vlsn: Vlsn, timeout: Duration) -> bool {
        self.life().housekeeper.wait_dtvlsn(vlsn, timeout)
    }

    /// Blocks until everything through `vlsn` is applied here; false if the time is up before.
    ///
    /// # Errors
    /// The state machine's failure.
    pub fn wait_applied(&self, vlsn: Vlsn, timeout: Duration) -> Result<bool> {
        self.life().applier.wait_applied(vlsn, timeout)
    }

    /// Makes the state durable and drops what may go of the log below it and below `keep_from`,
    /// whatever the configuration would keep: whole sealed segments that no connected replica and no
    /// restore under way needs. Members that are away lose their places. Nobody has to call it: the
    /// log is dropped by itself as [`LogConfig::retention`](noxu_log::LogConfig::retention) says.
    /// Returns the VLSN through which the log is gone.
    ///
    /// # Errors
    /// The state machine's and the log's.
    pub fn drop_front(&self, keep_from: Vlsn) -> Result<Vlsn> {
        self.life().drop_front(keep_from)
    }

    /// Has log and state of this node replaced by those of its peers, whatever they look like: makes
    /// that durable, ends the stream from the master and returns; the next conversation with a master
    /// begins the restore. Until that commits, the node votes with its old log; it keeps term, vote and
    /// incarnation. Entries above what is known durable are kept in a lost-entries file. False if a
    /// restore was asked for or begun before: that one goes on.
    ///
    /// # Errors
    /// `IsMaster`; `Stopped`; `Log` for the disk.
    pub fn request_restore(&self) -> Result<bool> {
        loop {
            let life = self.life();
            match life.request_restore() {
                // It has ended because another life has begun.
                Err(RepError::Stopped { .. }) if !Arc::ptr_eq(&life, &self.life()) => {}
                asked => return asked,
            }
        }
    }

    /// Whether a restore was asked for or begun, and has not ended. It survives the process.
    ///
    /// # Errors
    /// `Log` if that cannot be found out.
    pub fn restore_pending(&self) -> Result<bool> {
        self.life().restore_pending()
    }

    /// What became of a commit that was left without an answer; waits at most `timeout` until that
    /// is certain. Any node of the group may be asked.
    ///
    /// # Errors
    /// The log's, if the entry that tells cannot be read.
    pub fn outcome(&self, commit: &CommitId, timeout: Duration) -> Result<CommitOutcome> {
        self.life().wait_outcome(commit, timeout)
    }

    /// A snapshot of everything the node can say about itself.
    pub fn status(&self) -> Status {
        self.life().status()
    }

    /// Reads every sealed segment now, in the caller's thread, at most `bytes_per_second` (`u64::MAX` for
    /// as fast as it goes), and compares it with its digests; what is damaged is asked of all other
    /// nodes, once each, and replaced. `progress` is called after every block of 256 KiB; if it breaks,
    /// the reading ends there. Everything else goes on meanwhile.
    ///
    /// The newest segments, which are not sealed yet, are not read: they are when they are sealed.
    ///
    /// # Errors
    /// The log's: `Closed` if the node stops or its log is replaced, `Io`. Damage is no error.
    pub fn scrub(
        &self,
        bytes_per_second: u64,
        progress: impl FnMut(&ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubSummary> {
        let life = self.life();
        let before = life.damage();
        let config = ScrubConfig { bytes_per_second, ..ScrubConfig::default() };
        let read = life.log.scrub(&config, progress)?;
        life.mend_disk_now();
        let after = life.damage();
        Ok(ScrubSummary {
            read,
            mended_blocks: after.mended_blocks - before.mended_blocks,
            mended_runs: after.mended_runs - before.mended_runs,
            open: after.open,
        })
    }

    /// What stopped the node, if it was not asked to stop.
    pub fn failure(&self) -> Option<String> {
        self.life().failure()
    }

    /// Blocks until the node stops, whether asked to or by a failure; false if the time is up.
    pub fn wait_stopped(&self, timeout: Duration) -> bool {
        self.wait_role(Role::Stopped, timeout)
    }

    /// Shuts down in order: no more writes; a moment for the replicas to have everything; the
    /// streams end with a goodbye; every thread is joined; the log is synced and closed.
    /// Idempotent.
    ///
    /// # Errors
    /// The log's, or what stopped the node before.
    pub fn shutdown(&self) -> Result<()> {
        self.owner.seat.shutdown()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name())
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}
