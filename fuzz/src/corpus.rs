//! Corpus: the committed inputs, one folder a target.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Inputs of one target, by file name.
///
/// # Errors
/// If the folder cannot be read.
pub fn read(corpus: &Path, target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(corpus.join(target))? {
        let path = entry?.path();
        inputs.push((path.clone(), fs::read(path)?));
    }
    inputs.sort();
    Ok(inputs)
}
