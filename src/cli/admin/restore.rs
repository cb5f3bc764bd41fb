//! Restore: has a node that runs replaced log and state by those of its peers, and shows how far it is.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;

use crate::cli::error::CliError;
use crate::cli::info::Info;
use crate::cli::out::print_line;
use crate::cli::progress::byte_bar;
use crate::cli::sizes::{show_bytes, show_count};
use crate::client::Client;

/// Replace the log and state of a running replica by those of its peers
#[derive(Debug, Args)]
#[command(
    after_help = "For a node whose state or log is not to be trusted. It keeps its vote, and votes with its old log
until the new one is there. Until then nothing of the old data is touched, and the disk holds both. Entries
above what is known durable are kept in lost/. The order is durable: it survives crashes of the node, which
goes on when it is started. The master is refused: stop it first, so that another node becomes master.

Examples:
  noxu admin restore 127.0.0.1:7380
  noxu admin restore --no-wait 127.0.0.1:7380      # then: noxu status --addr 127.0.0.1:7380"
)]
pub(super) struct Restore {
    /// Address of the node's client door
    #[arg(value_name = "HOST:PORT")]
    addr: String,
    /// Return when the order is durable, not when the node follows again
    #[arg(long)]
    no_wait: bool,
    /// How long the node may be out of reach before waiting for it is given up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u32,
}

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause between two lines about the same phase, where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// Bytes of a block.
const BLOCK_BYTES: u64 = 256 << 10;

impl Restore {
    pub(super) fn run(self) -> Result<(), CliError> {
        let patience = Duration::from_secs(u64::from(self.patience.max(1)));
        let mut client = Client::connect(&self.addr, patience)?;
        let answer = client.call_text(&[b"NOXU", b"RESTORE"])?;
        print_line!("{}: the restore is {answer}", self.addr)?;
        if self.no_wait {
            return Ok(());
        }
        let began = Instant::now();
        let restored = self.wait(patience)?;
        let figure = |key: &str| restored.number(key).unwrap_or(0).max(0) as u64;
        print_line!(
            "{}: follows again after {:.1?}: {} fetched, log through entry {}",
            self.addr,
            began.elapsed(),
            show_bytes(figure("restore_bytes_fetched")),
            show_count(figure("restored_last_vlsn"))
        )?;
        for (source, given) in restored.all("restore_from_") {
            print_line!("  from {source}: {given}")?;
        }
        Ok(())
    }

    /// Shows how far it is until the node follows a master and nothing of a restore is left to be done.
    fn wait(&self, patience: Duration) -> Result<Info, CliError> {
        let mut shown = Shown::new();
        let mut heard = Instant::now();
        let mut client = None;
        loop {
            match ask(&self.addr, &mut client, patience) {
                Ok(info) => {
                    heard = Instant::now();
                    let is_done = info.text("restore_pending") == Some("no")
                        && info.text("noxu_role") == Some("replica");
                    if is_done {
                        shown.bar.finish_and_clear();
                        return Ok(info);
                    }
                    shown.show(&Step::of(&info))?;
                }
                Err(cause) if heard.elapsed() >= patience => {
                    shown.bar.finish_and_clear();
                    return Err(CliError::Failed(format!(
                        "{cause}; the restore goes on when the node runs again"
                    )));
                }
                Err(_) => client = None,
            }
            // A question to another process: nothing to wait for but time.
            std::thread::park_timeout(PAUSE);
        }
    }
}

fn ask(addr: &str, client: &mut Option<Client>, patience: Duration) -> Result<Info, CliError> {
    let connected = match client {
        Some(client) => client,
        None => client.insert(Client::connect(addr, patience)?),
    };
    Info::ask(connected)
}

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    phase: String,
    /// Bytes of segments and checkpoint that are there, of those that are known to be wanted.
    bytes: (u64, u64),
    per_second: u64,
    seconds_left: Option<u64>,
}

impl Step {
    fn of(info: &Info) -> Self {
        let number = |key| info.number(key).unwrap_or(0).max(0) as u64;
        let is_restoring = info.text("noxu_role") == Some("restoring");
        let phase = match info.text("restore_phase") {
            Some(phase) if is_restoring => phase.to_lowercase(),
            _ if is_restoring => "begins".to_owned(),
            _ => match info.text("last_error") {
                Some(error) => format!("waits: {error}"),
                None => format!("waits: {}", info.text("reason").unwrap_or("no master")),
            },
        };
        let blocks = info.text("restore_blocks").and_then(|blocks| {
            let (had, all) = blocks.split_once(" of ")?;
            Some((had.parse::<u64>().ok()?, all.parse::<u64>().ok()?))
        });
        let (had, all) = blocks.filter(|_| is_restoring).unwrap_or_default();
        let checkpoint = if is_restoring { number("restore_checkpoint_bytes") } else { 0 };
        Self {
            phase,
            bytes: (had * BLOCK_BYTES + checkpoint, all * BLOCK_BYTES + checkpoint),
            per_second: if is_restoring { number("restore_bytes_per_second") } else { 0 },
            seconds_left: info.number("restore_seconds_left").map(|left| left.max(0) as u64),
        }
    }

    fn line(&self) -> String {
        let (had, all) = self.bytes;
        let mut parts = vec![self.phase.clone()];
        if all > 0 {
            parts.push(format!("{} of {}", show_bytes(had), show_bytes(all)));
        }
        if self.per_second > 0 {
            parts.push(format!("{}/s", show_bytes(self.per_second)));
        }
        if let Some(left) = self.seconds_left.filter(|left| *left > 0 && self.per_second > 0) {
            parts.push(format!("{left} s left"));
        }
        parts.join(", ")
    }
}

/// A bar on a terminal, a line now and then elsewhere.
struct Shown {
    bar: ProgressBar,
    lines: bool,
    last: Option<(String, Instant)>,
}

impl Shown {
    fn new() -> Self {
        let lines = !std::io::stderr().is_terminal();
        Self { bar: byte_bar("restore", 0), lines, last: None }
    }

    fn show(&mut self, step: &Step) -> Result<(), CliError> {
        if !self.lines {
            let (had, all) = step.bytes;
            self.bar.set_length(all);
            self.bar.set_position(had);
            self.bar.set_message(step.phase.clone());
            return Ok(());
        }
        let is_due = self
            .last
            .as_ref()
            .is_none_or(|(phase, at)| *phase != step.phase || at.elapsed() >= LINE_PAUSE);
        if is_due {
            self.last = Some((step.phase.clone(), Instant::now()));
            print_line!("  {}", step.line())?;
        }
        Ok(())
    }
}
