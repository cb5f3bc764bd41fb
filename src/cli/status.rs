//! Status: what nodes say about themselves.

use std::io::Write;

use clap::Args;

use super::client::Target;
use super::error::CliError;

/// Show a node's role, positions and replicas
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  noxu status
  noxu status --addr 127.0.0.1:7380
  noxu status --section replication")]
pub(super) struct Status {
    /// Only this section (server, clients, replication, log, store)
    #[arg(long, value_name = "NAME")]
    section: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Status {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut client = self.target.connect()?;
        let mut arguments: Vec<&[u8]> = vec![b"INFO"];
        arguments.extend(self.section.as_ref().map(String::as_bytes));
        let text = client.call_text(&arguments)?;
        if text.is_empty() {
            let section = self.section.unwrap_or_default();
            return Err(CliError::Usage(format!("the node has no section {section:?}")));
        }
        let mut out = std::io::stdout().lock();
        for line in text.lines() {
            match (line.strip_prefix("# "), line.split_once(':')) {
                (Some(title), _) => writeln!(out, "{title}")?,
                (None, Some((key, value))) => {
                    writeln!(out, "  {:<28} {value}", key.replace('_', " "))?;
                }
                (None, None) => writeln!(out)?,
            }
        }
        Ok(out.flush()?)
    }
}
