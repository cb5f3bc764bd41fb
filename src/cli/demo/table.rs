//! Table: the figures that the demo ends with.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::cli::sizes::show_count;

/// Rows of what was measured.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<(String, String)>,
}

impl Table {
    /// Adds a figure.
    pub(super) fn row(&mut self, what: impl Into<String>, figure: impl Into<String>) {
        self.rows.push((what.into(), figure.into()));
    }

    /// Adds how many per second.
    pub(super) fn rate(&mut self, what: impl Into<String>, count: u64, unit: &str, time: Duration) {
        let rate = count as f64 / time.as_secs_f64().max(1e-9);
        self.row(what, format!("{} {unit}/s", show_count(rate as u64)));
    }

    /// Adds how many MB (10^6 bytes) per second.
    pub(super) fn throughput(&mut self, what: impl Into<String>, bytes: u64, time: Duration) {
        let rate = bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9);
        self.row(what, format!("{rate:.0} MB/s"));
    }

    /// Adds the median and the 99th percentile of latencies in microseconds.
    pub(super) fn latency(&mut self, what: impl Into<String>, micros: &Histogram<u64>) {
        let at = |quantile| show_micros(micros.value_at_quantile(quantile));
        self.row(what, format!("p50 {}, p99 {}", at(0.5), at(0.99)));
    }

    /// Adds a time.
    pub(super) fn time(&mut self, what: impl Into<String>, time: Duration) {
        self.row(what, show_micros(time.as_micros() as u64));
    }
}

/// A time with three digits.
pub(super) fn show_micros(micros: u64) -> String {
    match micros as f64 {
        t if t < 1e3 => format!("{t} us"),
        t if t < 1e4 => format!("{:.2} ms", t / 1e3),
        t if t < 1e5 => format!("{:.1} ms", t / 1e3),
        t if t < 1e6 => format!("{:.0} ms", t / 1e3),
        t => format!("{:.2} s", t / 1e6),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        for (what, figure) in &self.rows {
            writeln!(f, "  {what:<width$}   {figure:>24}")?;
        }
        Ok(())
    }
}
