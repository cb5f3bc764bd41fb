//! Session: the restoring node's half. Fetches everything into `restore/`, verified, and commits.
//!
//! One session has one master, which says what there is (session/opening.rs). Then everything comes at
//! once, each from who has it (session/transfer.rs): blocks of sealed segments from any node, the
//! state from one of them (session/state_lane.rs), and from the master the entries that come after the segments, so that
//! the master's log need not wait for a slow copy.
//!
//! # Invariants
//! - Nothing outside `restore/` is written.
//! - What is claimed or acknowledged was synced before.
//! - `COMMIT` is written after everything else is verified and durable, and only for a log that
//!   reaches the master's last entry as of the session's first answer: so a voter never ends up
//!   behind what it once acknowledged; and only with leave, for a node that does not follow the
//!   master of that term any more must keep the log that it votes with.

mod opening;
mod sources;
mod state_lane;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use noxu_log::env::Env;
use noxu_log::{LogConfig, LogError, RetentionConfig};
use noxu_util::{GroupId, Name, Term};

use self::opening::Opening;
#[cfg(test)]
pub(super) use self::sources::{PATIENCE, STATE_PATIENCE};
use self::transfer::{Transfer, Transferred};
use super::manifest::{COMMIT, Commit, MARKER, Marker};
use super::{Phase, Progress, restore_dir};
use crate::clock::Clock;
use crate::core::recovery::RecoveryId;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::sync::StateMachine;
use crate::sync::method::StateSync;
use crate::sync::ranges::RangeSync;
use crate::sync::stream::StreamSync;
use crate::wire::handshake::NodeKind;
use crate::wire::restore::{Abandoned, MethodId, RestoreMsg};

/// Who restores, and how.
#[derive(Debug, Clone)]
pub struct Restoring {
    /// The node's name.
    pub node: Name,
    /// What it is for. Default [`NodeKind::Electable`].
    pub kind: NodeKind,
    /// Its group; `None` if it has none yet.
    pub group: Option<GroupId>,
    /// The newest term it knows: an older master's data is refused.
    pub term: Term,
    /// The session of the master's verdict; `NONE` if the node comes by itself.
    pub recovery: RecoveryId,
    /// Its log, as it is opened otherwise.
    pub log: LogConfig,
    /// How it is done.
    pub limits: RestoreLimits,
    /// By which methods its state may come, those it prefers first, all of them for its state machine
    /// ([`StateSync::is_for`]). Default [`default_methods`].
    pub methods: Vec<Arc<dyn StateSync>>,
    #[cfg(test)]
    pub(super) mutation: super::base::Mutation,
}

/// How much of what a restore takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreLimits {
    /// How long to wait for one answer of one source. Default 30 s.
    pub answer_timeout: Duration,
    /// Blocks of 256 KiB that each source is asked for at once. Default 16.
    pub window: usize,
    /// Most sources besides the master. Default 3.
    pub sources: usize,
    /// Most bytes of segments that are written and not synced: as much is fetched again after a crash.
    /// Half of it is synced while the other half comes. Default 64 MiB.
    pub sync_bytes: u64,
    /// Most bytes of segments and checkpoint a second, from all sources; `None` for as many as come.
    pub bytes_per_second: Option<u64>,
}

impl Default for RestoreLimits {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(30),
            window: 16,
            sources: 3,
            sync_bytes: 64 << 20,
            bytes_per_second: None,
        }
    }
}

/// The methods that ship with Noxu; a node does without those that are not for its state machine.
pub fn default_methods() -> Vec<Arc<dyn StateSync>> {
    let ranges = RangeSync::default();
    vec![Arc::new(StreamSync::SEGMENTS), Arc::new(StreamSync::SNAPSHOT), Arc::new(ranges)]
}

impl Restoring {
    /// With the usual limits.
    pub fn new(node: Name, group: Option<GroupId>, term: Term) -> Self {
        Self {
            node,
            kind: NodeKind::Electable,
            group,
            term,
            recovery: RecoveryId::NONE,
            log: LogConfig::default(),
            limits: RestoreLimits::default(),
            methods: default_methods(),
            #[cfg(test)]
            mutation: super::base::Mutation::None,
        }
    }

    /// What the methods are called.
    fn method_ids(&self) -> Vec<MethodId> {
        let id = |method: &Arc<dyn StateSync>| MethodId {
            name: method.name(),
            signature: method.signature(),
        };
        self.methods.iter().map(id).collect()
    }

    /// How the log of the entries after the segments is opened: nothing of it is ever dropped, filled
    /// ahead or read again.
    fn staged_config(&self) -> LogConfig {
        LogConfig {
            prefill: false,
            scrub: None,
            retention: RetentionConfig {
                byte_budget: None,
                age_budget: None,
                ..RetentionConfig::default()
            },
            ..self.log.clone()
        }
    }
}

/// What goes on beside a session.
pub type Work = Box<dyn FnOnce() + Send>;

/// The node that restores, as a session sees it.
pub trait RestoreHost: Sync {
    /// Connects to the restore service of another node.
    ///
    /// # Errors
    /// The network's, or the other node's refusal.
    fn dial(&self, address: &str) -> Result<Arc<dyn Channel>>;

    /// How far the restore is. Called at every turn, so it had better return at once.
    fn note(&self, progress: &Progress);

    /// Whether what came from the master of `term` may replace the log. Asked once, at the end.
    fn permit(&self, term: Term) -> bool;

    /// Its clock.
    fn clock(&self) -> &Clock;

    /// Its state machine, for what can be done ahead of the installation; `None` if nothing is to be.
    fn machine(&self) -> Option<Arc<dyn StateMachine>> {
        None
    }

    /// Runs `work`, which may take long: beside the session if there are threads, else at once. Gives it
    /// back, not begun, if a thread was wanted and not to be had.
    fn run_beside(&self, work: Work) -> Option<Work> {
        work();
        None
    }

    /// Whether there are threads: what runs beside may wait for the session then.
    fn has_threads(&self) -> bool {
        false
    }
}

/// Fetches everything from the master at the other end of `channel`, and from the nodes that it names,
/// into the `restore/` directory of `node_dir`, resuming what an earlier call left. Then `host` is
/// asked whether it may replace the log; if so it is committed there, else `None` is returned. The
/// channel is closed.
///
/// # Errors
/// `ProtocolError`, `NetworkError`, `Closed` for the connection; `RestoreRefused` with the
/// provider's reason; `Log` for the disk and for bytes that do not verify; `StateMachine` for a state that
/// cannot be made ready a second time, and if a thread of it panicked; what
/// [`RepError::is_storage_full`] says of if the disk has no room.
pub fn fetch(
    env: &Arc<dyn Env>,
    node_dir: &Path,
    restoring: &Restoring,
    channel: &Arc<dyn Channel>,
    host: &dyn RestoreHost,
) -> Result<Option<Progress>> {
    let fetched = Fetch::begin(env, node_dir, restoring, channel, host).and_then(Fetch::run);
    let why = match &fetched {
        Err(cause) if cause.is_storage_full() => Some(Abandoned::NoSpace),
        Err(RepError::Log(_) | RepError::BadEntry { .. }) => Some(Abandoned::Corrupt),
        Ok(None) => Some(Abandoned::Superseded),
        _ => None,
    };
    if let Some(why) = why {
        let _ = channel.send(&RestoreMsg::Abandon { why }.encode());
    }
    channel.close();
    fetched.map_err(|error| error.with_peer(|| channel.peer()))
}

/// A session, from its marker on.
struct Fetch<'a> {
    env: &'a Arc<dyn Env>,
    node_dir: &'a Path,
    dir: PathBuf,
    restoring: &'a Restoring,
    channel: &'a Arc<dyn Channel>,
    host: &'a dyn RestoreHost,
    marker: Marker,
}

impl<'a> Fetch<'a> {
    fn begin(
        env: &'a Arc<dyn Env>,
        node_dir: &'a Path,
        restoring: &'a Restoring,
        channel: &'a Arc<dyn Channel>,
        host: &'a dyn RestoreHost,
    ) -> Result<Self> {
        let dir = restore_dir(node_dir);
        let marker = if let Some(marker) = Marker::load(&**env, &dir)? {
            marker
        } else {
            // Left over from a restore that ended: gone before a marker could bring it back.
            env.remove_dir_all(&dir).map_err(|e| LogError::io("remove", &dir, e))?;
            env.create_dir_all(&dir).map_err(|e| LogError::io("create directory", &dir, e))?;
            env.sync_dir(node_dir).map_err(|e| LogError::io("sync directory", node_dir, e))?;
            let marker = Marker { session: env.entropy(), recovery: restoring.recovery };
            marker.save(&**env, &dir)?;
            marker
        };
        Ok(Self { env, node_dir, dir, restoring, channel, host, marker })
    }

    fn run(self) -> Result<Option<Progress>> {
        let env = &**self.env;
        if let Some(commit) = Commit::load(env, &self.dir)?
            && commit.session == self.marker.session
        {
            let progress = Progress { phase: Phase::Committed, ..Progress::default() };
            self.host.note(&progress);
            return Ok(Some(progress));
        }
        let mut opening = Opening::ask(&self)?;
        let staged = opening.take_up_staged(&self)?;
        let manifest = &opening.manifest;
        let transfer = Transfer::begin(&self, manifest, staged, opening.requests)?;
        let Transferred { mut progress, commit, needed } = transfer.run()?;
        let durable = commit.last.vlsn;
        // Who has leave is silent until it has committed: that is not to fail for want of room.
        let path = Commit::path(&self.dir);
        let commit = commit.write_aside(env, &path)?;
        // What it reaches was compared with what was known when the session began.
        opening.check(&self)?;
        if !self.host.permit(manifest.head.term) {
            return Ok(None);
        }
        commit.put_in_place()?;
        progress.phase = Phase::Committed;
        self.host.note(&progress);
        // The provider need not hear of it: its pin goes with the connection.
        let _ = self.channel.send(&RestoreMsg::Done { needed, durable }.encode());
        Ok(Some(progress))
    }

    /// The next message of the master, in `frame`.
    fn receive<'f>(&self, frame: &'f mut Vec<u8>) -> Result<RestoreMsg<'f>> {
        let timeout = self.restoring.limits.answer_timeout;
        if self.channel.receive_into(frame, timeout)? {
            return decode(frame, &**self.channel);
        }
        Err(RepError::silent(self.channel.peer(), "an answer", timeout))
    }
}

/// A message, unless it says that the session is over.
fn decode<'a>(frame: &'a [u8], from: &dyn Channel) -> Result<RestoreMsg<'a>> {
    match RestoreMsg::decode(frame)? {
        RestoreMsg::Failure { reason } => {
            Err(RepError::RestoreRefused { peer: from.peer(), reason })
        }
        message => Ok(message),
    }
}

/// Whether a restore of `node_dir` was begun and not finished.
///
/// # Errors
/// `Log` if that cannot be found out.
pub fn is_pending(env: &dyn Env, node_dir: &Path) -> Result<bool> {
    let path = restore_dir(node_dir).join(MARKER);
    Ok(env.exists(&path).map_err(|e| LogError::io("look for", &path, e))?)
}

/// The session of the verdict that a restore of `node_dir` was begun for, if it was begun and not
/// finished.
///
/// # Errors
/// `Log` if that cannot be found out.
pub fn pending_recovery(env: &dyn Env, node_dir: &Path) -> Result<Option<RecoveryId>> {
    let dir = restore_dir(node_dir);
    Ok(Marker::load(env, &dir)?.map(|marker| marker.recovery))
}

/// Whether it was committed, and only [`super::install::install`] is left to do.
///
/// # Errors
/// `Log` if that cannot be found out.
pub fn is_committed(env: &dyn Env, node_dir: &Path) -> Result<bool> {
    let dir = restore_dir(node_dir);
    let committed = dir.join(COMMIT);
    if !is_pending(env, node_dir)?
        || !env.exists(&committed).map_err(|e| LogError::io("look for", &committed, e))?
    {
        return Ok(false);
    }
    let (marker, commit) = (Marker::load(env, &dir)?, Commit::load(env, &dir)?);
    Ok(marker.map(|marker| marker.session) == commit.map(|commit| commit.session))
}
