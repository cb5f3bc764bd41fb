//! Parts: what one append into the tail consists of, each part timed by itself.

use std::hint::black_box;
use std::io::{Seek, SeekFrom, Write};
use std::time::Instant;

use noxu_log::{ENTRY_HEADER_BYTES, EntryFlags, EntryKind, NewEntry};
use noxu_util::{Fingerprint, Term, Vlsn};

use crate::BODY_BYTES;
use crate::contender::bodies;
use crate::noxu::{How, Noxu};
use crate::page::Page;
use crate::rounds::{Plan, run};
use crate::table::{median, show_ns};

/// Entries of one pass; their bytes are what the flusher writes at once.
const ENTRIES: usize = 8192;
const ENTRY_BYTES: usize = ENTRY_HEADER_BYTES + BODY_BYTES;
/// Bytes through which the copies go round: those of the tail.
const TAIL_BYTES: usize = 64 << 20;

/// Prints what each part of an append takes, and the whole.
pub(crate) fn measure(plan: Plan, page: &mut Page) {
    let bodies = bodies(ENTRIES);
    let new = |body| NewEntry::new(EntryKind(16), EntryFlags::COMMIT, body);
    let entries: Vec<_> = bodies.iter().map(|body| new(body)).collect();
    let hash = best_ns(plan, || {
        for body in &bodies {
            black_box(new(body));
        }
    });
    let mut fingerprint = Fingerprint::ZERO;
    let chain = best_ns(plan, || {
        for entry in &entries {
            fingerprint =
                black_box(entry.place(Vlsn::new(1), Term::new(1), fingerprint)).1.fingerprint;
        }
    });
    let (mut tail, mut at) = (vec![1_u8; TAIL_BYTES], 0);
    let copy = best_ns(plan, || {
        for body in &bodies {
            at = if at + ENTRY_BYTES > TAIL_BYTES { 0 } else { at };
            tail[at..at + ENTRY_HEADER_BYTES].fill(7);
            tail[at + ENTRY_HEADER_BYTES..at + ENTRY_BYTES].copy_from_slice(body);
            at += ENTRY_BYTES;
        }
        black_box(&tail);
    });
    let mut file = tempfile::tempfile().expect("a temporary file");
    let bytes = &tail[..ENTRIES * ENTRY_BYTES];
    let mut written = 0;
    let write = best_ns(plan, || {
        if written + bytes.len() > TAIL_BYTES {
            file.seek(SeekFrom::Start(0)).expect("sought");
            written = 0;
        }
        file.write_all(bytes).expect("written");
        written += bytes.len();
    });
    let [slices] = run([&Noxu::new(How::IntoTheTail)], 1, 1, plan);
    let own = median(slices.iter().map(|slice| slice.own_ns));
    let behind = median(slices.iter().map(|slice| slice.behind_ns));
    page.line(format_args!(
        "## Where the time of an append goes\n\n\
         One entry into the tail, alone in its batch. Each part by itself, at its best:\n\n\
         | part | processor time |\n|---|---:|\n\
         | checksum and hash of the body, before the lock | {} |\n\
         | chain step, header and its checksum, inside the lock | {} |\n\
         | copy into a tail of {} MiB | {} |\n\
         | lock, index, positions, memory that the caches lost: the rest of the whole | {} |\n\
         | **the whole, in the thread that appends** | **{}** |\n\
         | its share of a write of {} KiB into the page cache | {} |\n\
         | **the whole, in the threads behind** | **{}** |\n\n\
         Without sync, an append is a pass over its bytes for the checksum and one copy; behind it, the\n\
         kernel's copy into the page cache is nearly all. With a write per batch, the system call is\n\
         most of it up to some dozen entries. With sync, it is the device, and from 8 threads up the\n\
         wake-ups. With many entries on their way, the loop beside it writes into a file that was filled\n\
         before, while the log's keeper fills the next segment on the same processors. To look closer:\n\n\
         ```sh\n\
         perf record -F 999 -g benches/peers/target/release/noxu-peers alone tail 1   # or: write 16, sync 8, handles 1\n\
         perf report --no-children -g none --sort comm,symbol   # comm: appender, noxu-flusher, ...\n\
         ```\n",
        show_ns(hash),
        show_ns(chain),
        TAIL_BYTES >> 20,
        show_ns(copy),
        show_ns((own - hash - chain - copy).max(0.0)),
        show_ns(own),
        (ENTRIES * ENTRY_BYTES) >> 10,
        show_ns(write),
        show_ns(behind)
    ));
}

/// The best pass over all entries, as time of one.
fn best_ns(plan: Plan, mut pass: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < plan.slice {
        let begin = Instant::now();
        pass();
        best = best.min(begin.elapsed().as_nanos() as f64 / ENTRIES as f64);
    }
    best
}
