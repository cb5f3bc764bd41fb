//! Processes: the demo's nodes, each a `noxu node` of this very program.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cli::child::ChildProcess;
use crate::cli::error::CliError;
use crate::cli::info::Info;
use crate::client::Client;

/// How long anything in the demo may take before it counts as failed.
pub(in crate::cli) const PATIENCE: Duration = Duration::from_mins(1);

/// A node, running or not. Killed when dropped.
#[derive(Debug)]
pub(in crate::cli) struct NodeProcess {
    /// Its name.
    pub(in crate::cli) name: &'static str,
    /// Its directory.
    pub(in crate::cli) dir: PathBuf,
    /// Where its peers reach it; the port is chosen at the first start and kept.
    pub(in crate::cli) peer_addr: String,
    /// Where its clients reach it; kept likewise.
    pub(in crate::cli) client_addr: String,
    /// It ends with its standard input, which is open as long as this process lives.
    running: Option<ChildProcess>,
}

impl NodeProcess {
    /// A node that has not been started yet.
    pub(in crate::cli) fn new(name: &'static str, parent: &Path) -> Self {
        Self {
            name,
            dir: parent.join(name),
            peer_addr: "127.0.0.1:0".to_owned(),
            client_addr: "127.0.0.1:0".to_owned(),
            running: None,
        }
    }

    /// Starts it with further arguments of `noxu node` and waits until it is ready.
    pub(in crate::cli) fn start(&mut self, arguments: &[&str]) -> Result<Duration, CliError> {
        assert!(self.running.is_none(), "{} is running", self.name);
        let errors_path = self.dir.with_extension("stderr");
        let errors = File::options()
            .create(true)
            .append(true)
            .open(&errors_path)
            .map_err(CliError::file(&errors_path))?;
        let started = Instant::now();
        let mut child = ChildProcess::spawn(|command| {
            command
                .args(["node", "--exit-with-stdin", "--name", self.name, "--dir"])
                .arg(&self.dir)
                .args(["--listen", &self.peer_addr, "--client-listen", &self.client_addr])
                .args(arguments)
                .stderr(errors)
        })?;
        let line = child.read_line()?.unwrap_or_default();
        let Some(fields) = line.strip_prefix("noxu ready ") else {
            let said = std::fs::read_to_string(&errors_path).unwrap_or_default();
            return Err(CliError::Failed(format!(
                "{} did not get ready: {}",
                self.name,
                said.lines().last().unwrap_or("it said nothing")
            )));
        };
        for field in fields.split_whitespace() {
            match field.split_once('=') {
                Some(("listen", addr)) => addr.clone_into(&mut self.peer_addr),
                Some(("client", addr)) => addr.clone_into(&mut self.client_addr),
                _ => {}
            }
        }
        self.running = Some(child);
        Ok(started.elapsed())
    }

    /// Ends it at once, as a crash would (SIGKILL).
    pub(in crate::cli) fn kill(&mut self) {
        self.running = None;
    }

    /// Asks it to end in order (SIGTERM); [`NodeProcess::stop`] waits for it.
    pub(in crate::cli) fn ask_to_stop(&self) -> Result<(), CliError> {
        self.signal(Signal::TERM)
    }

    /// Stops it where it is, its connections open (SIGSTOP), until [`NodeProcess::resume`].
    pub(in crate::cli) fn pause(&self) -> Result<(), CliError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    pub(in crate::cli) fn resume(&self) -> Result<(), CliError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), CliError> {
        let Some(running) = &self.running else { return Ok(()) };
        running
            .signal(signal)
            .map_err(|e| CliError::Failed(format!("{signal:?} to {}: {e}", self.name)))
    }

    /// Asks it to end in order and waits for it.
    pub(in crate::cli) fn stop(&mut self) -> Result<(), CliError> {
        self.ask_to_stop()?;
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let status = running.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(CliError::Failed(format!("{} ended with {status}: {}", self.name, self.last_words())))
    }

    /// The last line that it has written to its standard error.
    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(self.dir.with_extension("stderr")).unwrap_or_default();
        said.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// It was asked something and did not answer.
    pub(in crate::cli) fn silent(&self, cause: &CliError) -> CliError {
        CliError::Failed(format!("{}: {cause}; it said last: {}", self.name, self.last_words()))
    }

    /// Whether it runs.
    pub(in crate::cli) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// A client of it.
    pub(in crate::cli) fn client(&self) -> Result<Client, CliError> {
        Ok(Client::connect(&self.client_addr, PATIENCE)?)
    }

    /// What it says about itself.
    pub(in crate::cli) fn info(&self) -> Result<Info, CliError> {
        Info::ask(&mut self.client()?)
    }

    /// Waits until everything through `vlsn` can be read there.
    pub(in crate::cli) fn wait_applied(&self, vlsn: i64) -> Result<(), CliError> {
        let patience = PATIENCE.as_millis().to_string();
        let vlsn = vlsn.to_string();
        let wait: [&[u8]; 4] = [b"NOXU", b"WAIT", vlsn.as_bytes(), patience.as_bytes()];
        Ok(self.client()?.call_integer(&wait).map(drop)?)
    }

    /// Waits until what it says about itself satisfies `enough`.
    pub(in crate::cli) fn wait_for<T>(
        &self,
        what: &str,
        mut enough: impl FnMut(&Info) -> Option<T>,
    ) -> Result<T, CliError> {
        let started = Instant::now();
        let mut client = self.client()?;
        loop {
            let info = Info::ask(&mut client)?;
            if let Some(found) = enough(&info) {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                let state = info.text("last_error").or(info.text("reason")).unwrap_or_default();
                return Err(CliError::Failed(format!(
                    "{}: no {what} within {PATIENCE:?}; it says: {state}",
                    self.name
                )));
            }
            // A question to another process, not an event of ours: nothing to wait for but time.
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}
