//! Table: medians and their ratios, as cells of a Markdown table.

use crate::rounds::Slice;

/// Rates and processor times of contenders, as the cells between two bars.
pub(crate) fn rates<const N: usize>(all: [&Vec<Slice>; N]) -> String {
    let cells = all.map(|slices| {
        let rate = median(slices.iter().map(|slice| slice.rate));
        let own = show_ns(median(slices.iter().map(|slice| slice.own_ns)));
        let behind = show_ns(median(slices.iter().map(|slice| slice.behind_ns)));
        format!("{} ({own} + {behind})", show(rate))
    });
    cells.join(" | ")
}

/// One contender's rate divided by another's, round by round.
pub(crate) fn ratio(of: &[Slice], to: &[Slice]) -> String {
    format!("{:.2}", median(of.iter().zip(to).map(|(of, to)| of.rate / to.rate)))
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
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

pub(crate) fn show_ns(ns: f64) -> String {
    match ns {
        ns if ns >= 10_000.0 => format!("{:.0} us", ns / 1e3),
        ns if ns >= 1_000.0 => format!("{:.1} us", ns / 1e3),
        ns => format!("{ns:.0} ns"),
    }
}
