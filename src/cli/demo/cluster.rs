//! Cluster: the demo's node processes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::error::CliError;
use crate::client::Client;

/// Longest wait for anything that a healthy node does.
const PATIENCE: Duration = Duration::from_mins(1);

/// Size of the log's segments: small, so that many are sealed.
pub(super) const SEGMENT_BYTES: u32 = 4 << 20;

/// Names of the nodes.
pub(super) const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// A running node process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct NodeProcess {
    pub(super) name: &'static str,
    /// Address for the other nodes.
    pub(super) peer_addr: String,
    /// Address of its client door.
    pub(super) client_addr: String,
    child: Child,
    /// The node ends when this closes, so that none outlives the demo.
    _stdin: Option<ChildStdin>,
}

/// What a node is started as.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartAs<'a> {
    /// Founder of the group.
    Founder,
    /// Master of a later term.
    Master { term: u32, peer: Option<&'a str> },
    /// Replica of whoever is master, looking for it at this address.
    Replica { peer: &'a str },
}

/// Where a node of the demo keeps its files.
pub(super) fn node_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

impl NodeProcess {
    /// Starts a node and waits for its readiness line.
    pub(super) fn start(
        dir: &Path,
        name: &'static str,
        start_as: StartAs<'_>,
    ) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(CliError::file("this program"))?;
        let report = dir.join(format!("{name}.err"));
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&report)
            .map_err(CliError::file(&report))?;
        let mut command = Command::new(program);
        command
            .args(["node", "--exit-with-stdin", "--name", name, "--dir"])
            .arg(node_dir(dir, name))
            .args(["--listen", "127.0.0.1:0", "--client-listen", "127.0.0.1:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        match start_as {
            StartAs::Founder => {
                command
                    .args(["--role", "master", "--term", "1", "--create-group", "demo"])
                    .args(["--members", &NAMES.join(",")])
                    .args(["--segment-size", &SEGMENT_BYTES.to_string()]);
            }
            StartAs::Master { term, peer } => {
                command.args(["--role", "master", "--term", &term.to_string()]);
                if let Some(peer) = peer {
                    command.args(["--peer", peer]);
                }
            }
            StartAs::Replica { peer } => {
                command.args(["--peer", peer]);
            }
        }
        let mut child = command.spawn().map_err(CliError::file("this program"))?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let mut node = Self {
            name,
            peer_addr: field(&line, "listen"),
            client_addr: field(&line, "client"),
            child,
            _stdin: stdin,
        };
        if node.peer_addr.is_empty() || node.client_addr.is_empty() {
            let _ = node.child.wait();
            let said = std::fs::read_to_string(&report).unwrap_or_default();
            let said = said.lines().last().unwrap_or("nothing").to_owned();
            return Err(CliError::Failed(format!("{name} did not start; it said: {said}")));
        }
        Ok(node)
    }

    /// A connection to its door.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        Ok(Client::connect(&self.client_addr, PATIENCE)?)
    }

    /// What its `INFO` says, key by key.
    pub(super) fn info(&self) -> Result<HashMap<String, String>, CliError> {
        let text = self.client()?.call_text(&[b"INFO"])?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    /// A number of its `INFO`; 0 if it is not there.
    pub(super) fn info_number(&self, key: &str) -> Result<i64, CliError> {
        Ok(self.info()?.get(key).and_then(|value| value.parse().ok()).unwrap_or(0))
    }

    /// Waits until it has applied everything through `vlsn`.
    pub(super) fn wait_applied(&self, vlsn: i64) -> Result<(), CliError> {
        let millis = PATIENCE.as_millis().to_string();
        self.client()?.call(&[b"NOXU", b"WAIT", vlsn.to_string().as_bytes(), millis.as_bytes()])?;
        Ok(())
    }

    /// SIGKILL: no chance to do anything in order.
    pub(super) fn kill(mut self) -> Result<(), CliError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the orderly end.
    pub(super) fn stop(mut self) -> Result<Duration, CliError> {
        let started = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|e| CliError::Failed(format!("SIGTERM to {}: {e}", self.name)))?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(CliError::Differs(format!(
                "{} was stopped in order and ended with {status}",
                self.name
            )));
        }
        Ok(started.elapsed())
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of `key=value` in a readiness line; empty if it is not there.
fn field(line: &str, key: &str) -> String {
    let fields = line.split_whitespace().filter_map(|word| word.split_once('='));
    fields
        .filter(|(found, _)| *found == key)
        .map(|(_, value)| value.to_owned())
        .next()
        .unwrap_or_default()
}
