//! Table: medians and their ratios, as cells of a Markdown table.

use crate::rounds::Slice;

/// Rates and processor times of contenders, as the cells between two bars.
pub(crate) fn rates<const N: usize>(all: [&Vec<Slice>; N]) -> String {
    let cells = all.map(|slices| {
        let rate = median(slices.iter().map(|slice| slice.rate));
        let cpu_ns = median(slices.iter().map(|slice| slice.cpu_ns));
        format!("{} ({cpu_ns:.0})", show(rate))
    });
    cells.join(" | ")
}

/// One contender's rate divided by another's, round by round.
pub(crate) fn ratio(of: &[Slice], to: &[Slice]) -> String {
    format!("{:.2}", median(of.iter().zip(to).map(|(of, to)| of.rate / to.rate)))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn show(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate => format!("{:.1} k", rate / 1e3),
    }
}

/// The most memory that this process ever used, in KiB; 0 where the kernel does not tell.
pub(crate) fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}
