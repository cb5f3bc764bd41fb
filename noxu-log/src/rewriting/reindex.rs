//! Reindex: the index of an unsealed segment, built again from its file.

use noxu_util::Vlsn;

use crate::env::OpenMode;
use crate::error::{LogError, Result};
use crate::log::{Shared, State};
use crate::rewriting::repair::Faulty;
use crate::segment::header::SegmentHeader;
use crate::segment::scan::{ScanEnd, SummaryBuilder, scan_entries};

impl State {
    /// Position of segment `number`, which the log must hold.
    pub(crate) fn position_of(&self, number: u32) -> usize {
        self.segments.partition_point(|segment| segment.number() < number)
    }
}

impl Shared {
    /// Reads a segment from its first entry to its end, passing over what is faulty. Everything
    /// through `through`, or the segment's end, must be there.
    ///
    /// # Errors
    /// `Corrupt` if it is not: it was damaged since it was read last; `Io`.
    pub(crate) fn reindex(
        &self,
        header: SegmentHeader,
        last_sync: Vlsn,
        last_txn_end: Vlsn,
        faulty: &[Faulty],
        through: Vlsn,
    ) -> Result<SummaryBuilder> {
        let path = self.segment_path(header.number);
        let wrap = |e| LogError::io("read", &path, e);
        let file = self.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let len = file.len().map_err(wrap)?;
        let mut builder = SummaryBuilder::new(header, last_sync, last_txn_end);
        for range in faulty.iter().filter(|range| range.segment == header.number) {
            let (offset, chain) = (builder.end(), *builder.last());
            let end = scan_entries(&*file, offset, range.offset.into(), chain, |offset, entry| {
                builder.push(offset, &entry.header);
            })
            .map_err(wrap)?;
            if end.offset != range.offset || end.chain != range.before {
                return Err(damaged(header.number, &end));
            }
            let last_offset = range.last_offset.unwrap_or(range.offset);
            let Some(behind) = range.behind else {
                builder.skip_to(range.after, last_offset, range.offset);
                return Ok(builder);
            };
            builder.skip_to(range.after, last_offset, behind);
        }
        let (offset, chain) = (builder.end(), *builder.last());
        let end = scan_entries(&*file, offset, len, chain, |offset, entry| {
            builder.push(offset, &entry.header);
        })
        .map_err(wrap)?;
        if builder.last().vlsn < through { Err(damaged(header.number, &end)) } else { Ok(builder) }
    }
}

fn damaged(segment: u32, end: &ScanEnd) -> LogError {
    let found = end.fault.as_ref().map_or("the end of it".into(), ToString::to_string);
    LogError::Corrupt {
        segment,
        offset: end.offset.into(),
        expected: format!("entry {}", end.chain.vlsn.next()),
        found,
    }
}
