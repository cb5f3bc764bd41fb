//! Front: how far the segments of a restore are verified, each entry of them.

use std::path::Path;

use noxu_log::env::Env;
use noxu_log::install::{ExpectedSegment, stage_segment};
use noxu_log::segment::side_file::Digests;
use noxu_log::{Anchor, ChainState, GroupIdentity};
use noxu_util::{Lsn, Vlsn};

use super::super::manifest::Verified;
use crate::error::Result;
use crate::wire::restore::SegmentOffer;

/// The end of the segments that are verified, from the anchor on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    /// How many they are.
    pub(super) segments: usize,
    /// Their last entry; the anchor if there is none.
    pub(super) end: ChainState,
    /// Where it stands.
    pub(super) end_lsn: Lsn,
    last_sync: Vlsn,
    last_txn_end: Vlsn,
}

impl Front {
    pub(super) fn behind(anchor: &Anchor) -> Self {
        let Anchor { vlsn, lsn, .. } = *anchor;
        let end = anchor.chain();
        Self { segments: 0, end, end_lsn: lsn, last_sync: vlsn, last_txn_end: vlsn }
    }

    /// The first `segments` of an offer, which an earlier session verified.
    pub(super) const fn known(segments: usize, known: &Verified) -> Self {
        let Verified { end, end_lsn, last_sync, last_txn_end, .. } = *known;
        Self { segments, end, end_lsn, last_sync, last_txn_end }
    }

    /// As it is noted, with the names of its segments, of the machine that was started as `boot`.
    pub(super) const fn noted(&self, boot: u64, segments: Vec<(u32, [u8; 32])>) -> Verified {
        let Self { end, end_lsn, last_sync, last_txn_end, .. } = *self;
        Verified { boot, segments, end, end_lsn, last_sync, last_txn_end }
    }

    /// Verifies the next segment, whose blocks are those of the offer, and writes its side file, durably.
    ///
    /// # Errors
    /// `Log` naming the place where it is not what it ought to be, and for the disk.
    pub(super) fn stage(
        &mut self,
        env: &dyn Env,
        dir: &Path,
        group: &GroupIdentity,
        segment: &SegmentOffer,
    ) -> Result<()> {
        let expected = ExpectedSegment {
            number: segment.number,
            group: group.clone(),
            after: self.end,
            last_sync: self.last_sync,
            last_txn_end: self.last_txn_end,
            bytes: segment.bytes,
            digests: digests(segment),
        };
        let summary = stage_segment(env, dir, &expected)?;
        self.segments += 1;
        self.end = summary.last;
        self.end_lsn = Lsn::new(segment.number, summary.last_offset);
        (self.last_sync, self.last_txn_end) = (summary.last_sync, summary.last_txn_end);
        Ok(())
    }
}

fn digests(segment: &SegmentOffer) -> Digests {
    Digests {
        segment: blake3::Hash::from_bytes(segment.digest),
        blocks: segment.blocks.iter().map(|digest| blake3::Hash::from_bytes(*digest)).collect(),
    }
}
