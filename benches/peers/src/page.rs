//! Page: what the run says, printed as it is known and kept for the document.

use std::fmt::{Arguments, Write};

use crate::BODY_BYTES;
use crate::rounds::Plan;

/// Everything said so far.
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// What is measured, on which machine.
    pub(crate) fn begin(plan: Plan) -> Self {
        let mut page = Self { text: String::new() };
        page.line(format_args!(
            "# The log beside its peers\n\n\
             Written by `cargo run --release --manifest-path benches/peers/Cargo.toml -- --write-docs`\n\
             from one run; do not edit. On {}, {} cores, {}.\n\n\
             Entries of {BODY_BYTES} B. Cells hold entries/s and, in parentheses, the processor time of\n\
             one entry: in the threads that append + in those behind them, the kernel's part\n\
             included. The contenders take turns of {} ms; cells are medians of {} rounds, ratios\n\
             medians of each round's ratio. With one writer and no waiting for others, rates are\n\
             bounded by the larger of the two processor times.\n",
            field_of("/proc/cpuinfo", "model name"),
            std::thread::available_parallelism().map_or(0, usize::from),
            kernel(),
            plan.slice.as_millis(),
            plan.rounds
        ));
        page
    }

    /// Prints a line, and keeps it.
    pub(crate) fn line(&mut self, line: Arguments<'_>) {
        println!("{line}");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// All lines.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// What stands behind the colon of the first line of `path` that begins with `field`.
fn field_of(path: &str, field: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}

/// The most memory that this process ever used, in KiB; 0 where the kernel does not tell.
pub(crate) fn peak_memory_kib() -> u64 {
    let peak = field_of("/proc/self/status", "VmHWM");
    peak.strip_suffix(" kB").and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
