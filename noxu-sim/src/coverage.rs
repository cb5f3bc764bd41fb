//! Coverage: how often each kind of thing happened, so that a search shows what it never tried.

use std::collections::BTreeMap;
use std::fmt;

/// What a long search has to have met besides faults: each trick of the network, each way in which
/// a log was recovered or changed, each role.
pub const EXPECTED: [&str; 45] = [
    "client: conflict",
    "client: master gone",
    "client: no answer",
    "client: not the master",
    "client: too few replicas",
    "client: told durable",
    "client: told weak",
    "client: written",
    "disk: block mended",
    "disk: entries mended",
    "fault: kill after a vote",
    "fault: kill of a new master",
    "left in order",
    "log: damaged entries found",
    "log: damaged entries mended",
    "log: front dropped",
    "log: head uncertain",
    "log: header made again",
    "log: opened after a crash",
    "log: opened after an orderly end",
    "log: rolled back",
    "log: segments scanned",
    "log: torn end cut",
    "log: truncation finished",
    "net: datagram late",
    "net: datagram lost",
    "net: datagram twice",
    "net: delivered after a block",
    "net: frame cut",
    "net: frame damaged",
    "net: frame left out",
    "net: frame replaced",
    "net: frame twice",
    "net: held or lost by a block",
    "net: reset",
    "net: slow line",
    "net: way blocked",
    "node could not start yet",
    "node stopped itself",
    "restored",
    "role: master",
    "role: replica",
    "role: unknown",
    "secondary starts",
    "syncup",
];

/// Counters by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Counters that show as zero until something is counted.
    pub fn expecting(names: &[&'static str]) -> Self {
        Self { counts: names.iter().map(|name| (*name, 0)).collect() }
    }

    /// It happened.
    pub fn count(&mut self, name: &'static str) {
        self.count_times(name, 1);
    }

    /// It happened so many times.
    pub fn count_times(&mut self, name: &'static str, times: u64) {
        *self.counts.entry(name).or_default() += times;
    }

    /// How often it happened.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or_default()
    }

    /// What happened in another run as well.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        self.counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.counts {
            writeln!(f, "{count:>12}  {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_named() {
        let mut coverage = Coverage::expecting(&["kill", "pause"]);
        coverage.count("kill");
        let mut other = Coverage::default();
        other.count("kill");
        other.count("reset");
        coverage.add(&other);
        assert_eq!((coverage.of("kill"), coverage.of("reset")), (2, 1));
        assert_eq!(coverage.missing(), ["pause"]);
        assert!(coverage.to_string().contains("           2  kill\n"));
    }
}
