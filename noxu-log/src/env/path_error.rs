//! PathError: a file system error together with what it was about.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of `action` on `path`; its source is the error as it came.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = .path.display())]
struct PathError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Adds action and path to an error and keeps its kind: for `map_err`.
pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |source| io::Error::new(source.kind(), PathError { action, path: path.to_owned(), source })
}
