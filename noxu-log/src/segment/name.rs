//! Name: file names in a node directory.

use std::path::{Path, PathBuf};

/// Suffix of segment files.
pub const SEGMENT_SUFFIX: &str = ".nlog";
/// Suffix of side files.
pub const SIDE_SUFFIX: &str = ".nside";
/// The zero-filled file that becomes the next segment.
pub const SPARE_NAME: &str = "spare";

/// `0000000001.nlog`
pub fn segment_name(number: u32) -> String {
    format!("{number:010}{SEGMENT_SUFFIX}")
}

/// `0000000001.nside`
pub fn side_name(number: u32) -> String {
    format!("{number:010}{SIDE_SUFFIX}")
}

/// The number in a segment file's name; `None` for any other file.
pub fn parse_segment_name(name: &str) -> Option<u32> {
    parse(name, SEGMENT_SUFFIX)
}

/// The number in a side file's name; `None` for any other file.
pub fn parse_side_name(name: &str) -> Option<u32> {
    parse(name, SIDE_SUFFIX)
}

fn parse(name: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_suffix(suffix)?;
    if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| *number > 0)
}

/// Where the segments of a node directory lie.
pub fn log_dir(node_dir: &Path) -> PathBuf {
    node_dir.join("log")
}

/// Where the lost-entries files of a node directory lie.
pub fn lost_dir(node_dir: &Path) -> PathBuf {
    node_dir.join("lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        assert_eq!(segment_name(1), "0000000001.nlog");
        assert_eq!(side_name(u32::MAX), "4294967295.nside");
        assert_eq!(parse_segment_name("0000000001.nlog"), Some(1));
        for other in ["1.nlog", "0000000000.nlog", "0000000001.nside", "spare", "9999999999.nlog"] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }
}
