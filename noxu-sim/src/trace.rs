//! Trace: what happened, as a number to compare runs by and as lines for people.
//!
//! Every event goes into the hash; only the last lines are kept.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

use xxhash_rust::xxh3::Xxh3;

use crate::event::Nanos;

/// Lines that are kept unless told otherwise.
pub const KEPT_LINES: usize = 200;

/// What happened in one run.
pub struct Trace {
    hasher: Xxh3,
    events: u64,
    kept: usize,
    lines: VecDeque<String>,
    buffer: String,
}

impl Trace {
    /// An empty one that keeps the last `kept` lines.
    pub fn keeping(kept: usize) -> Self {
        Self { hasher: Xxh3::new(), events: 0, kept, lines: VecDeque::new(), buffer: String::new() }
    }

    /// One event. `what` must follow from the seed alone: no address, no thread, no real time.
    pub fn note(&mut self, now: Nanos, what: fmt::Arguments<'_>) {
        self.buffer.clear();
        let Nanos(ns) = now;
        let (ms, rest) = (ns / 1_000_000, ns % 1_000_000);
        write!(self.buffer, "{ms:>7}.{rest:06} {what}").expect("a String takes everything");
        self.hasher.update(self.buffer.as_bytes());
        self.hasher.update(b"\n");
        self.events += 1;
        if self.kept == 0 {
            return;
        }
        let mut line = if self.lines.len() == self.kept {
            self.lines.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        line.push_str(&self.buffer);
        self.lines.push_back(line);
    }

    /// Bytes that a run must end with again, such as the digest of a disk.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// A number that two runs share only if the same happened in the same order.
    pub fn hash(&self) -> u64 {
        self.hasher.digest()
    }

    /// The last lines, the oldest first: milliseconds and what happened.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::keeping(KEPT_LINES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_what_happened_and_in_which_order() {
        let of = |events: &[(u64, &str)]| {
            let mut trace = Trace::keeping(2);
            for (at, what) in events {
                trace.note(Nanos(*at), format_args!("{what}"));
            }
            trace
        };
        let trace = of(&[(1, "a"), (2_000_001, "b"), (3_000_000, "c")]);
        assert_eq!(trace.hash(), of(&[(1, "a"), (2_000_001, "b"), (3_000_000, "c")]).hash());
        assert_ne!(trace.hash(), of(&[(1, "a"), (3_000_000, "c"), (2_000_001, "b")]).hash());
        assert_ne!(of(&[(1, "ab")]).hash(), of(&[(1, "a"), (1, "b")]).hash());
        let lines: Vec<_> = trace.lines().collect();
        assert_eq!(lines, ["      2.000001 b", "      3.000000 c"]);
        assert_eq!(trace.events(), 3);
    }
}
