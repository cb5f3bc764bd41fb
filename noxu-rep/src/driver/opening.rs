//! Opening: a node's directory, made ready for a life: a restore that a crash cut short is finished,
//! the log is recovered, the directory is claimed, the state machine is opened.
//!
//! # Not here: what a node does with them (life.rs).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::env::Env;
use noxu_log::install::lock_dir;
use noxu_log::{Log, LogError, OpenReport};
use noxu_util::{NULL_VLSN, Name, Vlsn};
use parking_lot::RwLock;

use crate::clock::Clock;
use crate::config::{GroupChoice, NodeConfig};
use crate::driver::housekeeper::Housekeeper;
use crate::error::{RepError, Result};
use crate::group::{Electorate, MAX_MEMBERS, quorums_of};
use crate::restore::install::{self, Left};
use crate::sync::StateMachine;
use crate::wire::handshake::NodeKind;

/// The housekeeper of the present life, for the state machine; none while there is no log.
pub(crate) type HousekeeperSlot = Arc<RwLock<Option<Arc<Housekeeper>>>>;

/// What a state machine may need as long as it lives.
#[derive(Clone)]
pub struct NodeContext {
    env: Arc<dyn Env>,
    state_dir: PathBuf,
    housekeeper: HousekeeperSlot,
}

impl NodeContext {
    /// The file system that the node lives on.
    pub fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }

    /// Directory for the state machine's files. It may not exist yet.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    /// Highest VLSN known durable on a quorum: never rolled back. NULL while the log is being
    /// replaced by a restore.
    pub fn dtvlsn(&self) -> Vlsn {
        self.housekeeper.read().as_ref().map_or(NULL_VLSN, |housekeeper| housekeeper.dtvlsn())
    }

    /// Everything through `vlsn` is in a checkpoint that the state machine has taken by itself: its
    /// log is not needed for another open. Nothing happens while the log is being replaced by a
    /// restore.
    pub fn note_checkpoint(&self, vlsn: Vlsn) {
        if let Some(housekeeper) = &*self.housekeeper.read() {
            housekeeper.handle_checkpoint(vlsn);
        }
    }

    /// Makes durable, before a checkpoint at `vlsn`, that nothing at or below it may be rolled back.
    /// `vlsn` must be at or below [`NodeContext::dtvlsn`].
    ///
    /// # Errors
    /// The control file's; `Stopped` while the log is being replaced by a restore.
    pub fn raise_commit_floor(&self, vlsn: Vlsn) -> Result<()> {
        // Held meanwhile, so that the log is not replaced under it.
        match &*self.housekeeper.read() {
            Some(housekeeper) => housekeeper.raise_floor(vlsn),
            None => Err(RepError::Stopped { cause: "the log is being restored".to_owned() }),
        }
    }
}

/// What a life begins with.
pub(crate) struct Opened {
    pub(crate) env: Arc<dyn Env>,
    pub(crate) config: NodeConfig,
    pub(crate) clock: Clock,
    pub(crate) log: Log,
    pub(crate) report: OpenReport,
    pub(crate) housekeeper: Arc<Housekeeper>,
    pub(crate) slot: HousekeeperSlot,
    pub(crate) machine: Arc<dyn StateMachine>,
}

/// Makes the directory of `config` ready, with the state machine that `open` opens.
///
/// # Errors
/// `BadConfig`, `WrongDirectory`; the log's; the state machine's.
pub(crate) fn open_directory(
    env: Arc<dyn Env>,
    config: NodeConfig,
    clock: Clock,
    open: impl FnOnce(&NodeContext) -> Result<Arc<dyn StateMachine>>,
) -> Result<Opened> {
    check_config(&config)?;
    let slot = HousekeeperSlot::default();
    let context = NodeContext {
        env: Arc::clone(&env),
        state_dir: config.dir.join("state"),
        housekeeper: Arc::clone(&slot),
    };
    let mut open = Some(open);
    let mut machine = None;
    // Before anything else: until a restore is finished there is no log to open.
    if install::look(&*env, &config.dir)? == Left::Committed {
        // The state machine is opened before a log is: not where another process has both.
        drop(lock_dir(&*env, &config.dir)?);
        let opened = open.take().map(|open| open(&context)).transpose()?;
        if let Some(machine) = &opened {
            let restored = install::install(
                &env,
                &config.dir,
                &config.log,
                &config.sync,
                &**machine,
                true,
                &clock,
            )?;
            tracing::info!(node = %config.name, ?restored, "finished a restore");
        }
        machine = opened;
    }
    let (log, report) = open_log(&env, &config)?;
    tracing::info!(node = %config.name, dir = %config.dir.display(), ?report, "log opened");
    let mut begin = || {
        claim_directory(&log, &config)?;
        let housekeeper = Arc::new(Housekeeper::new(log.clone(), clock.clone()));
        *slot.write() = Some(Arc::clone(&housekeeper));
        let opened = open.take().map(|open| open(&context)).transpose()?;
        if let (Some(machine), Left::Nothing) = (&opened, install::look(&*env, &config.dir)?) {
            // It takes room, and nobody is harmed by it.
            install::clear_up(&*env, &config.dir, &**machine).unwrap_or_else(
                |cause| tracing::warn!(node = %config.name, "what a restore left stays: {cause}"),
            );
        }
        Ok((housekeeper, opened))
    };
    match begin() {
        Ok((housekeeper, opened)) => {
            let machine = machine.or(opened).expect("opened before or now");
            Ok(Opened { env, config, clock, log, report, housekeeper, slot, machine })
        }
        Err(cause) => {
            let _ = log.close(); // what opening failed for says more
            Err(cause)
        }
    }
}

/// Opens the log of a node. Entries that cannot be read are taken back from others: they count as
/// present, and nothing from them on is acknowledged, applied or shipped before. Where there are no
/// others the log is refused, for an operator to look at.
pub(crate) fn open_log(env: &Arc<dyn Env>, config: &NodeConfig) -> Result<(Log, OpenReport)> {
    let (log, report) = Log::open(Arc::clone(env), &config.dir, config.log.clone())?;
    let Some(faulty) = report.faulty.first() else { return Ok((log, report)) };
    let refused = LogError::from(faulty);
    let group = log.control().state().group_config;
    let others = Electorate::decode(&group)
        .is_ok_and(|group| group.voters.iter().any(|voter| voter.name != config.name));
    if others {
        tracing::error!(node = %config.name, "ALARM: {refused}; it is to be had from others");
        return Ok((log, report));
    }
    let _ = log.close(); // what it is refused for says more
    Err(refused.into())
}

fn check_config(config: &NodeConfig) -> Result<()> {
    let GroupChoice::Create { members, q_rep, q_elect, .. } = &config.group else { return Ok(()) };
    let names: Vec<_> = members.iter().map(Name::as_str).collect();
    if !members.contains(&config.name) {
        return Err(RepError::BadConfig {
            field: "members",
            found: names.join(", "),
            expected: format!("this node, {}, among them", config.name),
        });
    }
    let mut known = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !known.insert(**name)) {
        return Err(RepError::BadConfig {
            field: "members",
            found: format!("{twice} twice"),
            expected: "each member once".to_owned(),
        });
    }
    if members.len() > MAX_MEMBERS {
        return Err(RepError::BadConfig {
            field: "members",
            found: members.len().to_string(),
            expected: format!("at most {MAX_MEMBERS}"),
        });
    }
    if config.kind != NodeKind::Electable {
        return Err(RepError::BadConfig {
            field: "kind",
            found: format!("{:?}", config.kind),
            expected: "an electable node, because it is to found a group".to_owned(),
        });
    }
    if let Err(bad) = quorums_of(members.len(), *q_rep, *q_elect) {
        return Err(RepError::BadConfig {
            field: "quorums",
            found: format!("q_rep {q_rep} and q_elect {q_elect} of {} members", members.len()),
            expected: bad.to_string(),
        });
    }
    Ok(())
}

/// The name of the group that the node may belong to; `None` for any.
pub(crate) fn wanted_group(config: &NodeConfig) -> Option<Name> {
    match &config.group {
        GroupChoice::Create { name, .. } => Some(name.clone()),
        GroupChoice::Join { name } => name.clone(),
    }
}

/// Makes sure that the directory is this node's, and this group's if it has one.
fn claim_directory(log: &Log, config: &NodeConfig) -> Result<()> {
    let control = log.control().state();
    let wrong = |what, found: &Name, expected: &Name| RepError::WrongDirectory {
        dir: log.dir().display().to_string(),
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    };
    match &control.node {
        Some(node) if *node != config.name => return Err(wrong("node", node, &config.name)),
        Some(_) => {}
        None => log.control().update(|control| control.node = Some(config.name.clone()))?,
    }
    match (&control.group, wanted_group(config)) {
        (Some(group), Some(wanted)) if group.name != wanted => {
            Err(wrong("group", &group.name, &wanted))
        }
        _ => Ok(()),
    }
}
