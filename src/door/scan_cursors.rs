//! Scan cursors: Redis cursors are numbers, ours are keys; this remembers which is which.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// The most recent cursors given out, all connections together (clients scan through pools).
#[derive(Debug, Default)]
pub(super) struct ScanCursors {
    keys: HashMap<u64, Bytes>,
    oldest_first: VecDeque<u64>,
    last: u64,
}

/// Scans that can be under way at a time; beyond it the oldest one has to start over.
const MAX_CURSORS: usize = 4096;

impl ScanCursors {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A cursor that continues after `key`.
    pub(super) fn remember(&mut self, key: Bytes) -> u64 {
        if self.oldest_first.len() == MAX_CURSORS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.keys.remove(&oldest);
        }
        self.last += 1;
        self.keys.insert(self.last, key);
        self.oldest_first.push_back(self.last);
        self.last
    }

    /// The key a cursor continues after. It stays known: a client may ask again.
    pub(super) fn key(&self, cursor: u64) -> Option<Bytes> {
        self.keys.get(&cursor).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_cursor_is_forgotten_beyond_the_limit() {
        let mut cursors = ScanCursors::new();
        let first = cursors.remember(Bytes::from_static(b"a"));
        for _ in 1..MAX_CURSORS {
            cursors.remember(Bytes::from_static(b"b"));
        }
        assert!(cursors.key(first).is_some());
        cursors.remember(Bytes::from_static(b"c"));
        assert_eq!(cursors.key(first), None);
        assert_eq!(cursors.keys.len(), MAX_CURSORS);
    }
}
