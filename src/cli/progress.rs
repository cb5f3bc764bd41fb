//! Progress: one look for all progress bars. They go to standard error and vanish where that is no
//! terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes.
pub(super) fn byte_bar(label: &str, bytes: u64) -> ProgressBar {
    bar(label, bytes, "{bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar over things.
pub(super) fn count_bar(label: &str, count: u64) -> ProgressBar {
    bar(label, count, "{human_pos}/{human_len} {per_sec}")
}

fn bar(label: &str, length: u64, figures: &str) -> ProgressBar {
    let template = format!("  {{msg:28}} [{{bar:30}}] {figures} {{eta}}");
    let style = ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(length).with_style(style).with_message(label.to_owned())
}
