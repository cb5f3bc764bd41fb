//! Info: what a node says about itself, as the commands read it.

use super::error::CliError;
use crate::client::Client;

/// An answer to `INFO`, or another one in lines of that form.
#[derive(Debug)]
pub(in crate::cli) struct Info(String);

impl Info {
    /// Asks for it.
    pub(in crate::cli) fn ask(client: &mut Client) -> Result<Self, CliError> {
        Ok(Self(client.call_text(&[b"INFO"])?))
    }

    /// What was answered in this form.
    pub(in crate::cli) const fn of(text: String) -> Self {
        Self(text)
    }

    /// The value of a line.
    pub(in crate::cli) fn text(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
    }

    /// The number of a line.
    pub(in crate::cli) fn number(&self, key: &str) -> Option<i64> {
        self.text(key)?.parse().ok()
    }

    /// What follows `prefix` in the keys that begin with it, and their values.
    pub(in crate::cli) fn all<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.lines().filter_map(move |line| line.strip_prefix(prefix)?.split_once(':'))
    }
}
