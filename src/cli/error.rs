//! Errors of the command line: each is one line that names what was found and what was expected.

use std::path::PathBuf;

use noxu_log::LogError;

use crate::client::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// A node's door.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file or directory.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
    /// Arguments or configuration that make no sense, in words.
    #[error("{0}")]
    Usage(String),
    /// It could not be done, in words.
    #[error("{0}")]
    Failed(String),
    /// Done, and something differs from what was promised.
    #[error("{0}")]
    Differs(String),
}

impl CliError {
    /// What the process exits with.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Differs(_) => 3,
            _ => 1,
        }
    }

    /// An error of a file or directory.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }
}

impl From<LogError> for CliError {
    fn from(error: LogError) -> Self {
        Self::Failed(error.to_string())
    }
}
