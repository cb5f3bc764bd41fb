//! Child: this very program in a process of its own, killed when dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::error::CliError;

/// A process that runs this program, with pipes for its standard input and output.
#[derive(Debug)]
pub(in crate::cli) struct ChildProcess {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl ChildProcess {
    /// Starts one with the arguments, and whatever else, that `configure` gives it.
    pub(in crate::cli) fn spawn(
        configure: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(CliError::file("this program"))?;
        let mut command = Command::new(&program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = configure(&mut command).spawn().map_err(CliError::file(program))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
            }
            _ => unreachable!("both are piped"),
        }
    }

    /// Writes a line to its standard input.
    pub(in crate::cli) fn tell(&mut self, line: &str) -> std::io::Result<()> {
        writeln!(self.stdin, "{line}")
    }

    /// Reads a line of its standard output, without its end; `None` once that is closed.
    pub(in crate::cli) fn read_line(&mut self) -> std::io::Result<Option<String>> {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line)?;
        line.truncate(line.trim_end().len());
        Ok((read > 0).then_some(line))
    }

    /// Sends it a signal.
    pub(in crate::cli) fn signal(&self, signal: Signal) -> std::io::Result<()> {
        Pid::from_raw(self.child.id() as i32)
            .map_or(Ok(()), |pid| kill_process(pid, signal).map_err(Into::into))
    }

    /// Waits until it has ended by itself.
    pub(in crate::cli) fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Ends it at once, as a crash would (SIGKILL); it is gone on return.
    pub(in crate::cli) fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.kill(); // it may be gone
    }
}
