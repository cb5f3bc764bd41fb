//! Sealing: a finished segment is cut to its last entry, digested and given a side file.
//!
//! It is sealed only once the first entry of its successor can no longer be rolled back: until then
//! what closed it might go away, and a smaller entry might still fit in.
//!
//! A damaged segment is never sealed: its file is verified as it is digested. Entries that were
//! acknowledged may be damaged in it, so it is left as it is, for the next open or [`Log::examine`]
//! to find.
//!
//! # Crash argument
//! The file is first cut to its end and synced, which changes no entry; then the side file appears
//! whole or not at all. Until then the segment is scanned at the next open, as an unsealed one is.

use std::sync::Arc;

use noxu_util::Vlsn;

use crate::error::{LogError, Result};
use crate::keeping::retention::{finishes_blocked, frees_front};
use crate::log::{Log, Segment, Shared, State};
use crate::mutant::{self, Mutant};
use crate::segment::side_file::{Digests, SideFile};

/// A sealed segment: a file that will never change, the same on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its number.
    pub number: u32,
    /// Its first entry.
    pub first: Vlsn,
    /// Its last entry.
    pub last: Vlsn,
    /// Length of the file.
    pub bytes: u32,
    /// BLAKE3 digest of the file.
    pub digest: blake3::Hash,
}

impl Log {
    /// Notes that everything through `vlsn` will never be rolled back, and lets the keeper thread
    /// seal what that finishes. Returns at once.
    pub fn settle(&self, vlsn: Vlsn) {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        if vlsn > state.settled {
            let before = std::mem::replace(&mut state.settled, vlsn);
            if frees_front(&state, before, vlsn) || finishes_blocked(&state, before, vlsn) {
                shared.keeper.request_retention();
            }
            // A damaged one is not read again at every commit only to fail again.
            let due = first_to_seal(&state).map(|at| state.segments[at].number());
            if due.is_some() && due != state.unsealable {
                shared.keeper.request(|request| request.seal = true);
            }
        }
    }

    /// Notes that everything through `vlsn` will never be rolled back, and seals in this thread
    /// what that finishes.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Poisoned`, `Closed`.
    pub fn seal_through(&self, vlsn: Vlsn) -> Result<()> {
        {
            let mut state = self.shared.state.lock();
            state.settled = state.settled.max(vlsn);
        }
        self.shared.seal_finished()?;
        self.shared.keeper.request_retention();
        Ok(())
    }

    /// Registers a function to be called once for every finished segment that turns out to be damaged
    /// when it is to be sealed, by the thread that was to seal it, with no lock of the log held.
    /// [`Log::examine`] tells what is damaged in it.
    pub fn on_unsealable(&self, hook: impl Fn(u32) + Send + Sync + 'static) {
        self.shared.hooks.write().unsealable.push(Arc::new(hook));
    }

    /// The sealed segments, oldest first.
    pub fn sealed_segments(&self) -> Vec<SealedSegment> {
        let state = self.shared.state.lock();
        let sealed = state.segments.iter().map_while(|segment| match segment {
            Segment::Sealed(sealed) => Some(sealed),
            Segment::Open(_) => None,
        });
        sealed
            .map(|sealed| SealedSegment {
                number: sealed.header.number,
                first: sealed.header.first,
                last: sealed.last.vlsn,
                bytes: sealed.end,
                digest: sealed.digest,
            })
            .collect()
    }

    /// The digests of a sealed segment's blocks.
    ///
    /// # Errors
    /// `NotSealed` if there is no such sealed segment; `Corrupt` if its side file must be rebuilt
    /// and the segment is damaged; `Io`.
    pub fn block_digests(&self, number: u32) -> Result<Digests> {
        Ok(self.shared.sides.open(&self.shared, number)?.digests.clone())
    }
}

/// Position of the first unsealed segment, if it may be sealed.
fn first_to_seal(state: &State) -> Option<usize> {
    let at = state.segments.partition_point(Segment::is_sealed);
    let successor = state.segments.get(at + 1)?;
    let first = successor.header().first;
    let number = state.segments[at].number();
    if state.faulty.iter().any(|faulty| faulty.segment == number) {
        return None;
    }
    let durable = first <= state.durable || mutant::is_on(Mutant::SealedBeforeSuccessorDurable);
    (first <= state.settled && durable).then_some(at)
}

impl Shared {
    /// Seals every segment that may be; tells who wants to know of one that cannot be.
    pub(crate) fn seal_finished(&self) -> Result<()> {
        let known = self.state.lock().unsealable;
        let sealed = self.seal_all();
        let unsealable = self.state.lock().unsealable;
        if let Some(number) = unsealable
            && unsealable != known
        {
            let hooks = self.hooks.read().unsealable.clone();
            for hook in hooks {
                hook(number);
            }
        }
        sealed
    }

    fn seal_all(&self) -> Result<()> {
        let _alone = self.maintenance.lock();
        loop {
            self.check_running()?;
            let summary = {
                let state = self.state.lock();
                let Some(at) = first_to_seal(&state) else { return Ok(()) };
                match &state.segments[at] {
                    Segment::Open(builder) => builder.summary(),
                    Segment::Sealed(_) => unreachable!("the first unsealed segment is open"),
                }
            };
            let number = summary.header.number;
            let made = SideFile::make(&*self.env, &self.dir, summary);
            let mut state = self.state.lock();
            state.unsealable = matches!(made, Err(LogError::Corrupt { .. })).then_some(number);
            let side = made?;
            let at = state.segments.partition_point(Segment::is_sealed);
            state.segments[at] = Segment::Sealed(side.sealed());
            self.scrubber.note_verified(number);
        }
    }
}
