//! Input: the files that the demo loads, cut into pieces that become keys and values.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::error::CliError;

/// Directories that are build outputs or history, not input.
const SKIPPED: &[&str] = &["target", ".git", "node_modules"];
/// Largest value made of a file.
const PIECE_BYTES: usize = 4096;

/// The files below a path, in order.
#[derive(Debug)]
pub(super) struct Input {
    files: Vec<(String, PathBuf)>,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Round, path and place in the file.
    pub(super) key: String,
    /// Content.
    pub(super) value: Vec<u8>,
}

impl Input {
    /// Finds the files below `root`, which may also be a file.
    pub(super) fn find(root: &Path) -> Result<Self, CliError> {
        let metadata = fs::metadata(root).map_err(|source| {
            CliError::Failed(format!(
                "--input {}: a file or directory expected, {source}",
                root.display()
            ))
        })?;
        let mut input = Self { files: Vec::new(), bytes: 0 };
        if metadata.is_dir() {
            input.walk(root, "")?;
        } else {
            let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            input.bytes = metadata.len();
            input.files.push((name, root.to_owned()));
        }
        if input.bytes == 0 {
            return Err(CliError::Failed(format!(
                "--input {}: files with content expected, none found",
                root.display()
            )));
        }
        Ok(input)
    }

    /// Number of files.
    pub(super) const fn len(&self) -> usize {
        self.files.len()
    }

    fn walk(&mut self, dir: &Path, prefix: &str) -> Result<(), CliError> {
        let mut children = fs::read_dir(dir)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(CliError::file(dir))?;
        children.sort_by_key(fs::DirEntry::file_name);
        for child in children {
            let name = child.file_name().to_string_lossy().into_owned();
            let kind = child.file_type().map_err(CliError::file(child.path()))?;
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                self.walk(&child.path(), &format!("{prefix}{name}/"))?;
            } else if kind.is_file() {
                // Empty files have no pieces; symbolic links may lead anywhere, also in circles.
                let bytes = child.metadata().map_err(CliError::file(child.path()))?.len();
                self.bytes += bytes;
                if bytes > 0 {
                    self.files.push((format!("{prefix}{name}"), child.path()));
                }
            }
        }
        Ok(())
    }

    /// The pieces of all files, round after round, for ever.
    pub(super) fn pieces(&self) -> Pieces<'_> {
        Pieces { input: self, round: 0, next_file: 0, content: Vec::new(), at: 0 }
    }
}

/// Where in the rounds a reader stands.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    input: &'a Input,
    /// Rounds finished.
    pub(super) round: usize,
    next_file: usize,
    content: Vec<u8>,
    at: usize,
}

impl Pieces<'_> {
    /// The next piece; an error if its file can no longer be read.
    pub(super) fn next_piece(&mut self) -> Result<Piece, CliError> {
        // A file may have become empty; a whole round without content must not go on for ever.
        for _ in 0..=self.input.files.len() {
            if self.at < self.content.len() {
                break;
            }
            if self.next_file == self.input.files.len() {
                self.next_file = 0;
                self.round += 1;
            }
            let (_, path) = &self.input.files[self.next_file];
            self.content = fs::read(path).map_err(CliError::file(path))?;
            self.next_file += 1;
            self.at = 0;
        }
        if self.at >= self.content.len() {
            return Err(CliError::Failed("the input's files have become empty".to_owned()));
        }
        let (name, _) = &self.input.files[self.next_file - 1];
        let end = (self.at + PIECE_BYTES).min(self.content.len());
        let piece = Piece {
            key: format!("{:04}/{name}#{:06}", self.round, self.at / PIECE_BYTES),
            value: self.content[self.at..end].to_vec(),
        };
        self.at = end;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_below_a_path_without_build_outputs() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a/b", "target/debug", ".git"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("a/b/x"), vec![1; PIECE_BYTES + 1]).unwrap();
        fs::write(dir.path().join("z"), b"zz").unwrap();
        fs::write(dir.path().join("empty"), b"").unwrap();
        fs::write(dir.path().join("target/debug/out"), b"out").unwrap();
        let input = Input::find(dir.path()).unwrap();
        assert_eq!((input.len(), input.bytes), (2, PIECE_BYTES as u64 + 3));
        let mut pieces = input.pieces();
        let keys: Vec<String> = (0..4).map(|_| pieces.next_piece().unwrap().key).collect();
        assert_eq!(
            keys,
            ["0000/a/b/x#000000", "0000/a/b/x#000001", "0000/z#000000", "0001/a/b/x#000000"]
        );
    }

    #[test]
    fn a_missing_or_empty_input_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Input::find(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(missing.contains("nowhere") && missing.contains("expected"), "{missing}");
        assert!(Input::find(dir.path()).unwrap_err().to_string().contains("none found"));
    }
}
