//! Writing: how entries get from the tail to the disk, and who waits for that.
//!
//! `tail` holds the recent end in memory; `group_commit` writes and syncs it, `marker` then marks it
//! (`tail_mark` is that file), `flusher` has the threads that do so for others, `waiters` those who
//! sleep until it is done, `sync_clock` how long syncs take. `prefill` makes syncs cheap, `full_disk` says what happens without room.

pub(crate) mod flusher;
pub(crate) mod full_disk;
pub(crate) mod group_commit;
pub(crate) mod marker;
pub(crate) mod prefill;
pub(crate) mod sync_clock;
pub(crate) mod tail;
pub(crate) mod tail_mark;
pub(crate) mod waiters;
