//! Scrub: has a node that runs read all its finished log files, and shows what was damaged and what came
//! back from other nodes.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::error::CliError;
use crate::cli::info::Info;
use crate::cli::out::print_line;
use crate::cli::progress::byte_bar;
use crate::cli::sizes::{parse_bytes, show_bytes};
use crate::client::Client;

/// Read all finished log files of a running node now, and take back what is damaged
#[derive(Debug, Args)]
#[command(
    after_help = "Each file is compared with the digests that it had when it was finished; what is damaged is asked of all
other nodes and replaced, while reads and writes go on. The node does the same in the background at its own
rate (noxu node --scrub-rate, --scrub-interval). Interrupted, it stops reading; what it found stays known.
Fails if something is damaged that nobody could give.

Examples:
  noxu admin scrub 127.0.0.1:7380
  noxu admin scrub --rate 100MiB 127.0.0.1:7380"
)]
pub(super) struct Scrub {
    /// Address of the node's client door
    #[arg(value_name = "HOST:PORT")]
    addr: String,
    /// Most bytes read a second [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    rate: Option<u64>,
    /// How long the node may be out of reach before waiting for it is given up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u32,
}

/// Pause between two questions how far it is.
const PAUSE: Duration = Duration::from_millis(100);

impl Scrub {
    pub(super) fn run(self) -> Result<(), CliError> {
        if self.rate == Some(0) {
            return Err(CliError::Usage("--rate 0 found, 1 or more expected".to_owned()));
        }
        let summary = self.wait()?;
        let figure = |key: &str| summary.number(key).unwrap_or(0).max(0) as u64;
        let (bytes, ms) = (figure("bytes"), figure("ms"));
        let rate = bytes.saturating_mul(1000) / ms.max(1);
        print_line!(
            "{}: {} finished log files, {} read in {:.1?} ({}/s)",
            self.addr,
            figure("segments"),
            show_bytes(bytes),
            Duration::from_millis(ms),
            show_bytes(rate)
        )?;
        let (damaged, runs) = (figure("damaged_blocks"), figure("repaired_runs"));
        if damaged + figure("repaired_blocks") + runs == 0 {
            print_line!("  nothing damaged in them")?;
        } else {
            let blocks = figure("repaired_blocks");
            print_line!(
                "  damaged blocks: {damaged}; back from other nodes: blocks {blocks}, runs of entries {runs}"
            )?;
        }
        for (_, what) in summary.all("unrepaired").filter(|(index, _)| !index.is_empty()) {
            print_line!("  {what}")?;
        }
        match figure("unrepaired") {
            0 => Ok(()),
            left => Err(CliError::Failed(format!(
                "damaged in {left} places still; the node goes on asking for what was there"
            ))),
        }
    }

    /// Orders it, and shows how far it is until it has ended.
    fn wait(&self) -> Result<Info, CliError> {
        let patience = Duration::from_secs(u64::from(self.patience.max(1)));
        let mut asking = Client::connect(&self.addr, patience)?;
        let mut ordering = Client::connect(&self.addr, patience)?;
        ordering.wait_without_limit()?;
        let rate = self.rate.map(|rate| rate.to_string());
        let (ended, end) = channel();
        // It is left behind if the node is given up.
        thread::spawn(move || {
            let mut command: Vec<&[u8]> = vec![b"NOXU", b"SCRUB"];
            command.extend(rate.as_ref().map(String::as_bytes));
            let _ = ended.send(ordering.call_text(&command));
        });
        let bar = byte_bar("scrub", 0);
        let mut heard = Instant::now();
        loop {
            match end.recv_timeout(PAUSE) {
                Ok(answer) => {
                    bar.finish_and_clear();
                    return Ok(Info::of(answer?));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(CliError::Failed("the order was lost".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            match Info::ask(&mut asking) {
                Ok(info) => {
                    heard = Instant::now();
                    if let Some((done, all)) = info.text("scrub_pass").and_then(progress_of) {
                        bar.set_length(all);
                        bar.set_position(done);
                    }
                }
                Err(cause) if heard.elapsed() >= patience => {
                    bar.finish_and_clear();
                    return Err(cause);
                }
                Err(_) => {
                    if let Ok(client) = Client::connect(&self.addr, patience) {
                        asking = client;
                    }
                }
            }
        }
    }
}

/// Bytes read, and bytes to read.
fn progress_of(pass: &str) -> Option<(u64, u64)> {
    let mut fields = pass.split(',').map(|field| field.split_once('='));
    let mut number = || fields.next()??.1.parse().ok();
    Some((number()?, number()?))
}
