//! Force-restore: sets aside everything of a stopped node, so that it starts anew and is rebuilt.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use noxu_log::env::{Env, RealEnv};
use noxu_log::inspect::Inspection;

use super::set_aside::{Stopped, is_unfinished};
use crate::cli::error::CliError;
use crate::cli::out::print_line;

/// Set aside everything of a stopped node, so that it starts anew and is rebuilt from its peers
#[derive(Debug, Args)]
#[command(
    after_help = "For a node that is refused, once you have decided that the others' history is right: see
docs/recovery.md. Its log, state and identity are moved to DIR/set-aside-TIME, where noxu log shows them, and
nothing is removed. The node is to be started as before; it joins as one whose directory was wiped: rebuilt,
and without a vote. If anything interrupts this, run it again; the node does not start before.

A node that runs and can be reached is rebuilt with noxu admin restore, which keeps its vote.

Examples:
  noxu admin force-restore data/n3
  noxu admin force-restore --yes-discard data/n3"
)]
pub(super) struct ForceRestore {
    /// The node's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Do not ask: the node's vote and what only it holds are given up
    #[arg(long)]
    yes_discard: bool,
}

impl ForceRestore {
    pub(super) fn run(self) -> Result<(), CliError> {
        let env: Arc<dyn Env> = Arc::new(RealEnv::new());
        let dir = &self.dir;
        if !dir.is_dir() {
            return Err(CliError::Usage(format!("{}: a directory is expected", dir.display())));
        }
        let goes_on = is_unfinished(&*env, dir)?;
        if !goes_on && !dir.join("control").exists() && !dir.join("log").exists() {
            return Err(CliError::Usage(format!("{} holds no node", dir.display())));
        }
        let stopped = Stopped::lock(&*env, dir)?;
        if goes_on {
            print_line!("{}: goes on with what was begun before", dir.display())?;
        }
        print_line!("{}", describe(&env, dir))?;
        print_line!("to be moved to {}: {}", dir.join("set-aside-TIME").display(), {
            stopped.parts()?.join(", ")
        })?;
        print_line!(
            "the node then starts as a new one: rebuilt from its peers, without a vote; what only it \
             holds is in no node's log any more"
        )?;
        // It was agreed to when it was begun.
        if !self.yes_discard && !goes_on {
            ask()?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let aside = stopped.set_aside(now.as_millis() as u64)?;
        print_line!("set aside: {} (noxu log stat shows it)", aside.display())
    }
}

/// Whose directory it is, as far as that can be read.
fn describe(env: &Arc<dyn Env>, dir: &Path) -> String {
    let found = Inspection::open(Arc::clone(env), dir);
    let control = found.as_ref().ok().and_then(|log| log.control.as_ref()?.as_ref().ok());
    match control {
        Some(control) => {
            let name = |name: Option<&str>| name.unwrap_or("without a name").to_owned();
            format!(
                "{}: node {}, group {}, term {}, durable on a majority through entry {} at least",
                dir.display(),
                name(control.node.as_ref().map(noxu_util::Name::as_str)),
                name(control.group.as_ref().map(|group| group.name.as_str())),
                control.term,
                control.commit_floor
            )
        }
        None => format!("{}: a node whose control file cannot be read, or is gone", dir.display()),
    }
}

/// Wants a yes from whoever sits at the terminal.
fn ask() -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "nobody to ask at standard input: --yes-discard is expected".to_owned(),
        ));
    }
    let mut out = std::io::stdout().lock();
    write!(out, "discard this node's vote and history? type yes: ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(CliError::Failed(format!("{:?} found, yes expected: nothing was done", answer.trim())))
}
