//! Reindex: the index of an unsealed segment, built again from its file.

use noxu_util::Vlsn;

use crate::env::OpenMode;
use crate::error::{LogError, Result};
use crate::log::{Shared, State};
use crate::repair::Faulty;
use crate::segment::header::SegmentHeader;
use crate::segment::scan::{SummaryBuilder, scan_entries};

impl State {
    /// Position of segment `number`, which the log must hold.
    pub(crate) fn position_of(&self, number: u32) -> usize {
        self.segments.partition_point(|segment| segment.number() < number)
    }
}

impl Shared {
    /// Reads a segment from its first entry to its end, passing over what is faulty.
    pub(crate) fn reindex(
        &self,
        header: SegmentHeader,
        last_sync: Vlsn,
        last_txn_end: Vlsn,
        faulty: &[Faulty],
    ) -> Result<SummaryBuilder> {
        let path = self.segment_path(header.number);
        let wrap = |e| LogError::io("read", &path, e);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let len = file.len().map_err(wrap)?;
        let mut builder = SummaryBuilder::new(header, last_sync, last_txn_end);
        for range in faulty.iter().filter(|range| range.segment == header.number) {
            let (offset, chain) = (builder.end(), *builder.last());
            scan_entries(&*file, offset, range.offset.into(), chain, |offset, entry| {
                builder.push(offset, &entry.header);
            })
            .map_err(wrap)?;
            let Some(behind) = range.behind else {
                builder.skip_to(range.after, range.offset, range.offset);
                return Ok(builder);
            };
            builder.skip_to(range.after, range.offset, behind);
        }
        let (offset, chain) = (builder.end(), *builder.last());
        scan_entries(&*file, offset, len, chain, |offset, entry| {
            builder.push(offset, &entry.header);
        })
        .map_err(wrap)?;
        Ok(builder)
    }
}
