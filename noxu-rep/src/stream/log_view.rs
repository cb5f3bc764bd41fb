//! LogView: a log as the syncup sees it.

use noxu_log::{Log, LogError};
use noxu_util::{Term, Vlsn};
use parking_lot::Mutex;

use super::syncup::{SyncupView, VlsnEntry};
use crate::error::Result;

/// A log as the syncup sees it. An entry that cannot be read ends the syncup: were it taken for one
/// that is not held, a damaged sector would send a healthy replica to restore.
pub struct LogView<'a> {
    log: &'a Log,
    failure: Mutex<Option<LogError>>,
}

impl<'a> LogView<'a> {
    /// A view of `log`.
    pub fn new(log: &'a Log) -> Self {
        Self { log, failure: Mutex::new(None) }
    }

    fn read<T>(&self, read: noxu_log::Result<Option<T>>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.failure.lock().get_or_insert(error);
            None
        })
    }
}

impl SyncupView for LogView<'_> {
    fn last_sync(&self) -> Vlsn {
        let positions = self.log.positions();
        if positions.last_sync.is_null() { positions.anchor.vlsn } else { positions.last_sync }
    }

    fn last_txn_end(&self) -> Vlsn {
        self.log.positions().last_txn_end
    }

    fn first_vlsn(&self) -> Vlsn {
        self.log.positions().anchor.vlsn.next()
    }

    fn entry(&self, vlsn: Vlsn) -> Option<VlsnEntry> {
        if let Some((header, lsn)) = self.read(self.log.header(vlsn)) {
            return Some(VlsnEntry {
                lsn: lsn.as_u64(),
                fingerprint: header.fingerprint.as_u64(),
                is_sync: header.is_sync(),
            });
        }
        let anchor = self.log.positions().anchor;
        (vlsn == anchor.vlsn && !vlsn.is_null()).then(|| VlsnEntry {
            lsn: anchor.lsn.as_u64(),
            fingerprint: anchor.fingerprint.as_u64(),
            is_sync: true,
        })
    }

    fn last_vlsn(&self) -> Vlsn {
        self.log.positions().last
    }

    fn sync_at_or_before(&self, vlsn: Vlsn) -> Option<Vlsn> {
        if let Some((header, _)) = self.read(self.log.sync_at_or_before(vlsn)) {
            return Some(header.vlsn);
        }
        let anchor = self.log.positions().anchor.vlsn;
        (!anchor.is_null() && vlsn >= anchor).then_some(anchor)
    }

    fn term_table(&self) -> Vec<(Term, Vlsn)> {
        self.log.term_table()
    }

    fn check(&self) -> Result<()> {
        match self.failure.lock().take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
