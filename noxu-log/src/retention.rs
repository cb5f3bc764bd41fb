//! Retention: dropping the front of the log, whole sealed segments at a time.
//!
//! # Crash argument
//! The anchor is made durable in the control file, then files are removed, the oldest first; what a
//! crash leaves of them the next open removes.

use noxu_util::{Lsn, Vlsn};

use crate::control_file::Anchor;
use crate::error::{LogError, Result};
use crate::log::{Log, Segment, Shared};
use crate::mutant::{self, Mutant};
use crate::segment::header::SEGMENT_HEADER_BYTES;
use crate::segment::name::{log_dir, segment_name, side_name};

impl Log {
    /// Drops whole sealed segments from the front whose entries are all at or below `vlsn`, which
    /// is at or below the state machine's checkpoint. Never drops what might be rolled back.
    /// `config_at` gives the group configuration in force at the new anchor. Returns the anchor's
    /// VLSN: everything at or below it is gone.
    ///
    /// # Errors
    /// `Io`, `Poisoned`, `Closed`.
    pub fn drop_front(&self, vlsn: Vlsn, config_at: impl FnOnce(Vlsn) -> Vec<u8>) -> Result<Vlsn> {
        let shared = &*self.shared;
        let _alone = shared.maintenance.lock();
        shared.check_running()?;
        let (doomed, last, next) = {
            let state = shared.state.lock();
            let limit = vlsn.min(state.settled).min(state.durable);
            let doomed: Vec<u32> = state
                .segments
                .iter()
                .take_while(|segment| segment.is_sealed() && segment.last().vlsn <= limit)
                .map(Segment::number)
                .collect();
            // The last segment is never sealed, so one always follows the last that goes.
            let Some(last) = doomed.len().checked_sub(1).and_then(|at| state.segments.get(at))
            else {
                return Ok(state.anchor.vlsn);
            };
            (doomed.clone(), *last.last(), last.number() + 1)
        };
        let side = shared.sides.open(shared, next - 1)?;
        let anchor = Anchor {
            vlsn: last.vlsn,
            lsn: Lsn::new(next - 1, side.summary.last_offset),
            term: last.term,
            fingerprint: last.fingerprint,
            next_lsn: Lsn::new(next, SEGMENT_HEADER_BYTES),
            group_config: config_at(last.vlsn),
        };
        if mutant::is_on(Mutant::AnchorAfterDelete) {
            shared.remove_segments(&doomed)?;
        }
        shared.control.update(|control| control.anchor = anchor.clone())?;
        {
            let mut state = shared.state.lock();
            state.segments.drain(..doomed.len());
            let first = anchor.vlsn.next();
            let begun = state.terms.partition_point(|(_, begins)| *begins <= first);
            state.terms.drain(..begun.saturating_sub(1));
            if let Some((_, begins)) = state.terms.first_mut() {
                *begins = (*begins).max(first);
            }
            state.anchor = anchor.clone();
            state.check_invariants();
        }
        shared.files.clear();
        shared.sides.clear();
        shared.remove_segments(&doomed)?;
        Ok(anchor.vlsn)
    }
}

impl Shared {
    /// Removes segments and their side files, the oldest first; durable on return.
    fn remove_segments(&self, numbers: &[u32]) -> Result<()> {
        let dir = log_dir(&self.dir);
        for number in numbers {
            for name in [segment_name(*number), side_name(*number)] {
                let path = dir.join(name);
                match self.env.remove(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(LogError::io("remove", &path, e));
                    }
                    _ => {}
                }
            }
        }
        self.env.sync_dir(&dir).map_err(|e| LogError::io("sync directory", &dir, e))
    }
}
