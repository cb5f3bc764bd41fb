//! Coverage: how often each kind of thing happened, so that a search shows what it never tried.

use std::collections::BTreeMap;
use std::fmt;

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
        *self.counts.entry(name).or_default() += 1;
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
