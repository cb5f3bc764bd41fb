//! Node: one process that is a member of a group and has a client door.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use noxu_kv::{Config, KvError, Store};
use noxu_log::env::RealEnv;
use noxu_log::{LogConfig, RetentionConfig};
use noxu_rep::{GroupChoice, NodeConfig, NodeKind, RepError};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::admin::has_unfinished_set_aside;
use super::config::{GroupSetting, KindName, NodeFlags, NodeSettings};
use super::error::CliError;
use crate::door::{Door, DoorConfig, StoreBackend};

/// Run one node of a group until SIGTERM
#[derive(Debug, Args)]
#[command(after_help = "When it is ready, the node prints one line:
  noxu ready name=n1 role=unknown listen=127.0.0.1:7001 client=127.0.0.1:7379 group=none dir=data/n1
Its role is what it knows at that moment: the group chooses its master by itself, and INFO tells.
SIGTERM and SIGINT shut it down in order. RUST_LOG sets what it reports to standard error.

Examples:
  noxu node --name n1 --dir data/n1 --create-group orders --members n1,n2,n3
  noxu node --name n2 --dir data/n2 --listen 127.0.0.1:7002 --client-listen 127.0.0.1:7380 --peer 127.0.0.1:7001
  noxu node --config n3.toml

A file may hold the same settings, with _ for -:
  name = \"n3\"
  dir = \"data/n3\"
  listen = \"127.0.0.1:7003\"
  client_listen = \"127.0.0.1:7381\"
  peers = [\"127.0.0.1:7001\"]")]
pub(super) struct NodeCommand {
    #[command(flatten)]
    flags: NodeFlags,
}

impl From<KvError> for CliError {
    fn from(error: KvError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<RepError> for CliError {
    fn from(error: RepError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl NodeCommand {
    pub(super) fn run(self) -> Result<(), CliError> {
        let settings = self.flags.settings()?;
        if has_unfinished_set_aside(&RealEnv::new(), &settings.dir)? {
            let dir = settings.dir.display();
            return Err(CliError::Failed(format!(
                "{dir}: a force-restore was begun and not finished; run noxu admin force-restore {dir}"
            )));
        }
        // Before anything is opened, so that no signal finds the default handler.
        let mut signals = Signals::new([SIGTERM, SIGINT])
            .map_err(|e| CliError::Failed(format!("signal handlers: {e}")))?;
        let clients = TcpListener::bind(&settings.client_listen).map_err(|e| {
            CliError::Failed(format!("--client-listen {}: {e}", settings.client_listen))
        })?;
        let store = Store::open(Config::new(node_config(&settings)))?;
        let backend = Arc::new(StoreBackend::new(store.clone()));
        let config = DoorConfig {
            max_connections: settings.max_clients,
            durability: settings.durability,
            ..DoorConfig::default()
        };
        let mut door = Door::on(clients, backend, config)
            .map_err(|e| CliError::Failed(format!("client door: {e}")))?;
        announce(&store, &door, &settings)?;

        let handle = signals.handle();
        if self.flags.exit_with_stdin {
            let handle = handle.clone();
            watch_stdin(move || handle.close())?;
        }
        // A node that fails ends its process, so that whoever supervises it notices.
        let watching = {
            let (node, handle) = (store.node().clone(), handle.clone());
            std::thread::spawn(move || {
                while !node.wait_stopped(Duration::from_hours(1)) {}
                handle.close();
            })
        };
        let signal = signals.forever().next();
        tracing::info!(?signal, "shutting down");
        let failure = store.node().failure();
        door.hang_up();
        // Ends what clients wait for: a master that leaves hands over at once.
        let closed = store.close();
        door.close();
        let _ = watching.join();
        if let Some(cause) = failure {
            return Err(CliError::Failed(format!("the node stopped: {cause}")));
        }
        Ok(closed?)
    }
}

/// Calls `ended` when standard input ends.
fn watch_stdin(ended: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    let watch = move || {
        let mut sink = [0; 64];
        while matches!(std::io::stdin().read(&mut sink), Ok(1..)) {}
        ended();
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(watch)
        .map_err(|e| CliError::Failed(format!("a thread for standard input: {e}")))?;
    Ok(())
}

/// The readiness line.
fn announce(store: &Store, door: &Door, settings: &NodeSettings) -> Result<(), CliError> {
    let status = store.node().status();
    let group = status.group.map_or_else(|| "none".to_owned(), |group| group.name.to_string());
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "noxu ready name={} role={} listen={} client={} group={group} dir={}",
        settings.name,
        status.role,
        store.node().local_addr(),
        door.local_addr(),
        settings.dir.display()
    )?;
    Ok(out.flush()?)
}

fn node_config(settings: &NodeSettings) -> NodeConfig {
    let group = match &settings.group {
        GroupSetting::Create { name, members, segment_bytes, q_rep, q_elect } => {
            GroupChoice::Create {
                name: name.clone(),
                members: members.clone(),
                segment_bytes: *segment_bytes,
                q_rep: *q_rep,
                q_elect: *q_elect,
            }
        }
        GroupSetting::Join { name } => GroupChoice::Join { name: name.clone() },
    };
    let kept = &settings.kept;
    let retention = RetentionConfig {
        keep_bytes: kept.keep_bytes,
        keep_age: kept.keep_age,
        byte_budget: kept.max_bytes,
        age_budget: kept.max_age,
        ..RetentionConfig::default()
    };
    NodeConfig {
        log: LogConfig {
            retention,
            tail_mark: settings.tail_mark,
            scrub: settings.scrub.clone(),
            ..LogConfig::default()
        },
        absence_grace: kept.absence_grace,
        restore: settings.restore,
        sync: settings.restore_method.preferred(),
        listen: settings.listen.clone(),
        kind: match settings.kind {
            KindName::Electable => NodeKind::Electable,
            KindName::Secondary => NodeKind::Secondary,
        },
        priority: settings.priority,
        election: settings.election,
        peers: settings.peers.clone(),
        group,
        ..NodeConfig::new(settings.name.clone(), &settings.dir)
    }
}
