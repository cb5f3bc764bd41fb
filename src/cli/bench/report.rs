//! Report: what was measured, as lines for programs and as a table for people.

use std::fmt::Write;

use super::work::Work;
use crate::cli::sizes::show_count;
use crate::workload::clients::{Clients, Latencies};

/// Figures of one work with one number of clients.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) work: Work,
    pub(super) clients: Option<Clients>,
    pub(super) figures: Vec<Figure>,
}

/// One number.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// What of the work: ops, p50, p99, rate, or one of these with more before it.
    pub(super) metric: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
}

impl Figure {
    pub(super) const fn new(metric: &'static str, value: f64, unit: &'static str) -> Self {
        Self { metric, value, unit }
    }

    /// The number as it is printed: no more digits than the measurement has.
    fn digits(&self) -> String {
        match self.value {
            value if value >= 1_000.0 => show_count(value.round() as u64),
            value if value >= 10.0 || value.fract() == 0.0 => trimmed(value, 1),
            value => trimmed(value, 3),
        }
    }
}

fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

impl Measured {
    /// Operations per second and their latencies.
    pub(super) fn commits(
        work: Work,
        clients: Clients,
        latencies: &Latencies,
        unit: &'static str,
        each: usize,
    ) -> Self {
        let figures = vec![
            Figure::new("ops", latencies.per_second() * each as f64, unit),
            Figure::new("p50", latencies.micros(0.5), "us"),
            Figure::new("p99", latencies.micros(0.99), "us"),
        ];
        Self { work, clients: Some(clients), figures }
    }

    /// Figures that have nothing to do with clients.
    pub(super) fn alone(work: Work, figures: Vec<Figure>) -> Self {
        Self { work, clients: None, figures }
    }

    /// One line per figure.
    pub(super) fn plain(&self) -> String {
        let mut lines = String::new();
        for figure in &self.figures {
            let name = self.name();
            let Figure { metric, unit, .. } = figure;
            let value = figure.digits().replace(',', "");
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "noxu {name}_{metric} {value} {unit}");
        }
        lines
    }

    /// Work and clients.
    pub(super) fn name(&self) -> String {
        match self.clients {
            Some(clients) => format!("{}_{clients}", self.work),
            None => self.work.to_string(),
        }
    }

    /// Its figures in words.
    pub(super) fn cells(&self) -> Vec<String> {
        let cell = |figure: &Figure| match figure.metric {
            "ops" | "rate" | "round_trips" => format!("{} {}", figure.digits(), figure.unit),
            metric => {
                let metric = metric.trim_end_matches("_rate").replace('_', " ");
                format!("{metric} {} {}", figure.digits(), figure.unit)
            }
        };
        self.figures.iter().map(cell).collect()
    }
}

/// All of it in columns.
pub(super) fn table(all: &[Measured]) -> String {
    let name_width = all.iter().map(|measured| measured.name().len()).max().unwrap_or(0);
    let mut text = String::new();
    for measured in all {
        let cells: Vec<_> = measured.cells().iter().map(|cell| format!("{cell:>22}")).collect();
        let _ = writeln!(text, "  {:<name_width$}  {}", measured.name(), cells.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_name_a_number_and_a_unit() {
        let measured = Measured {
            work: Work::Syncup { depth: 1000 },
            clients: Some(Clients::Handles(1024)),
            figures: vec![
                Figure::new("ops", 1_234_567.8, "commits/s"),
                Figure::new("p50", 204.86, "us"),
                Figure::new("p99", 0.123_45, "ms"),
                Figure::new("round_trips", 3.0, "trips"),
            ],
        };
        assert_eq!(
            measured.plain(),
            "noxu syncup_1000_h1024_ops 1234568 commits/s\n\
             noxu syncup_1000_h1024_p50 204.9 us\n\
             noxu syncup_1000_h1024_p99 0.123 ms\n\
             noxu syncup_1000_h1024_round_trips 3 trips\n"
        );
    }
}
