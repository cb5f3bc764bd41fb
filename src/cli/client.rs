//! Put, get, scan: a client of one node.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use clap::Args;

use super::error::CliError;
use crate::client::Client;
use crate::door::DurabilityName;

/// Where the node is and how long to wait for it.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Address of the node's client door, as its readiness line shows it
    #[arg(
        long,
        short,
        value_name = "HOST:PORT",
        env = "NOXU_ADDR",
        default_value = "127.0.0.1:7379"
    )]
    addr: String,
    /// How long to wait for the connection and for each answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,
}

impl Target {
    pub(super) fn connect(&self) -> Result<Client, CliError> {
        let timeout = Duration::try_from_secs_f64(self.timeout)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| {
                CliError::Usage(format!("--timeout {} found, more than 0 expected", self.timeout))
            })?;
        Ok(Client::connect(&self.addr, timeout)?)
    }
}

/// Write a key
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  noxu put greeting hello
  noxu put --durability all config - < settings.json
  noxu put --addr 127.0.0.1:7380 greeting hello     # on a replica: an error that names the master")]
pub(super) struct Put {
    /// The key
    key: String,
    /// The value; `-` reads it from standard input
    value: String,
    /// When the write counts as done: majority, write-majority, no-sync-majority, all or local
    #[arg(long, value_name = "NAME", default_value = "majority")]
    durability: DurabilityName,
    #[command(flatten)]
    target: Target,
}

impl Put {
    pub(super) fn run(self) -> Result<(), CliError> {
        let value = if self.value == "-" {
            let mut value = Vec::new();
            std::io::stdin().read_to_end(&mut value).map_err(CliError::file("standard input"))?;
            value
        } else {
            self.value.into_bytes()
        };
        let mut client = self.target.connect()?;
        client.call(&[b"NOXU", b"DURABILITY", self.durability.as_str().as_bytes()])?;
        client.call(&[b"SET", self.key.as_bytes(), &value])?;
        let token = client.call_text(&[b"NOXU", b"TOKEN"])?;
        let vlsn = token.split(':').next().unwrap_or_default();
        let mut out = std::io::stdout().lock();
        writeln!(out, "written at VLSN {vlsn} ({})", self.durability.as_str())?;
        Ok(out.flush()?)
    }
}

/// Read a key
#[derive(Debug, Args)]
#[command(after_help = "The value goes to standard output as it is. Exit code 1 if there is none.

Examples:
  noxu get greeting
  noxu get --addr 127.0.0.1:7380 config > settings.json")]
pub(super) struct Get {
    /// The key
    key: String,
    #[command(flatten)]
    target: Target,
}

impl Get {
    pub(super) fn run(self) -> Result<(), CliError> {
        let value = self.target.connect()?.call_value(&[b"GET", self.key.as_bytes()])?;
        let value = value
            .ok_or_else(|| CliError::Failed(format!("no value under the key {:?}", self.key)))?;
        let mut out = std::io::stdout().lock();
        out.write_all(&value)?;
        // A reader at a terminal wants the prompt on a line of its own; a pipe wants the bytes.
        if out.is_terminal() {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }
}

/// List keys in order
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  noxu scan
  noxu scan --match 'user:*' --limit 100
  noxu scan --match 'user:*' --values")]
pub(super) struct Scan {
    /// Only keys that match this pattern (`*`, `?`, `[a-c]`)
    #[arg(long = "match", value_name = "PATTERN")]
    pattern: Option<String>,
    /// Stop after so many keys
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print values too: key, TAB, value, with bytes that are not printable as \x..
    #[arg(long)]
    values: bool,
    #[command(flatten)]
    target: Target,
}

impl Scan {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut client = self.target.connect()?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut left = self.limit.unwrap_or(usize::MAX);
        let mut cursor = "0".to_owned();
        loop {
            let (next, mut keys) = client.scan_step(&cursor, self.pattern.as_deref(), 1000)?;
            keys.truncate(left);
            left -= keys.len();
            for key in &keys {
                write!(out, "{}", key.escape_ascii())?;
                if self.values {
                    let value = client.call_value(&[b"GET", key])?;
                    write!(out, "\t{}", value.unwrap_or_default().escape_ascii())?;
                }
                writeln!(out)?;
            }
            cursor = next;
            if cursor == "0" || left == 0 {
                out.flush()?;
                return Ok(());
            }
        }
    }
}
