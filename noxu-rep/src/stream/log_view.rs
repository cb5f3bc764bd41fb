//! LogView: a log as the syncup sees it.

use noxu_log::Log;
use noxu_util::{Term, Vlsn};

use super::syncup::{SyncupView, VlsnEntry};

/// A log as the syncup sees it. An entry that cannot be read counts as not held.
pub struct LogView<'a> {
    log: &'a Log,
}

impl<'a> LogView<'a> {
    /// A view of `log`.
    pub fn new(log: &'a Log) -> Self {
        Self { log }
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
        self.log.positions().first
    }

    fn entry(&self, vlsn: Vlsn) -> Option<VlsnEntry> {
        let anchor = self.log.positions().anchor;
        if vlsn == anchor.vlsn && !vlsn.is_null() {
            return Some(VlsnEntry {
                lsn: anchor.lsn.as_u64(),
                fingerprint: anchor.fingerprint.as_u64(),
                is_sync: true,
            });
        }
        let (header, lsn) = self.log.header(vlsn).ok().flatten()?;
        Some(VlsnEntry {
            lsn: lsn.as_u64(),
            fingerprint: header.fingerprint.as_u64(),
            is_sync: header.is_sync(),
        })
    }

    fn last_vlsn(&self) -> Vlsn {
        self.log.positions().last
    }

    fn sync_at_or_before(&self, vlsn: Vlsn) -> Option<Vlsn> {
        if let Some((header, _)) = self.log.sync_at_or_before(vlsn).ok().flatten() {
            return Some(header.vlsn);
        }
        let anchor = self.log.positions().anchor.vlsn;
        (!anchor.is_null() && vlsn >= anchor).then_some(anchor)
    }

    fn term_table(&self) -> Vec<(Term, Vlsn)> {
        self.log.term_table()
    }
}
