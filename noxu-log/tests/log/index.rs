//! Index: every lookup against a plain vector, through random appends, truncations, seals, front
//! drops, lost side files, reopenings and crashes.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::{Env, FaultEnv, MemoryEnv, OpenMode};
use noxu_log::{
    ChainState, Cut, EntryFlags, EntryKind, EntryRun, GroupIdentity, Log, LogConfig, LogError,
    NewEntry,
};
use noxu_util::{Fingerprint, Lsn, NULL_VLSN, Term, Vlsn};
use proptest::prelude::*;

use crate::rig::{SEGMENT_BYTES, dir, group, quiet, try_open, vlsn_of};

/// Buffers that end before, at and behind a header, an entry, a sample's distance and a segment.
const BUFFERS: [usize; 11] =
    [0, 1, 31, 33, 200, 1000, 4032, 4096, 5000, (16 << 10) + 32, usize::MAX >> 1];

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    /// Entries with these kinds, flags and body lengths, `term_up` terms later; `as_run` as they
    /// come from another node.
    Append {
        entries: Vec<(u8, u8, usize)>,
        term_up: u32,
        as_run: bool,
    },
    Write,
    Sync,
    /// Look the newest entries up, which freezes what is in the tail's open buffer.
    Look {
        newest: usize,
    },
    /// Cut so many entries off the end, but never below what is settled.
    Truncate {
        entries: usize,
    },
    /// Everything but so many entries is settled: seal what that finishes.
    Seal {
        unsettled: usize,
    },
    /// Drop what may go of all but so many entries.
    DropFront {
        keep: usize,
    },
    /// Remove or damage one side file, under the open log.
    LoseSide {
        which: usize,
        damage: Option<u64>,
    },
    Reopen,
    Crash {
        seed: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        12 => 0..120usize,
        4 => 120..1200usize,
        2 => 4000..4070usize,
        1 => 4070..20_000usize,
    ];
    // Mostly within transactions, so that sync entries are rarer than samples.
    let flags = prop_oneof![12 => Just(0u8), 1 => Just(1), 1 => Just(3)];
    let kind = prop_oneof![1 => 0..3u8, 6 => 16..20u8];
    let entry = (kind, flags, len);
    let small = (16..18u8, prop_oneof![80 => Just(0u8), 1 => Just(1)], 0..40usize);
    let batch = prop_oneof![
        4 => prop::collection::vec(entry, 1..6),
        1 => prop::collection::vec(small, 60..200),
    ];
    let term_up = prop_oneof![5 => Just(0), 1 => 1..4u32];
    prop_oneof![
        12 => (batch, term_up, prop::bool::weighted(0.3))
            .prop_map(|(entries, term_up, as_run)| Step::Append { entries, term_up, as_run }),
        3 => Just(Step::Write),
        3 => Just(Step::Sync),
        4 => (1..8usize).prop_map(|newest| Step::Look { newest }),
        2 => prop_oneof![0..6usize, 0..120usize].prop_map(|entries| Step::Truncate { entries }),
        2 => (0..12usize).prop_map(|unsettled| Step::Seal { unsettled }),
        1 => (0..80usize).prop_map(|keep| Step::DropFront { keep }),
        1 => (0..9usize, prop::option::of(0..400u64))
            .prop_map(|(which, damage)| Step::LoseSide { which, damage }),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

/// An entry as the model keeps it: all there is to know of it.
#[derive(Debug, Clone)]
struct Kept {
    vlsn: Vlsn,
    term: Term,
    is_sync: bool,
    is_txn_end: bool,
    lsn: Lsn,
    fingerprint: Fingerprint,
    bytes: Vec<u8>,
}

/// The plain vector. `entries[i]` is VLSN `i + 1`; the first `front` of them are dropped.
#[derive(Debug, Default)]
struct Model {
    entries: Vec<Kept>,
    front: usize,
    durable: usize,
    settled: usize,
    term: u32,
    made: u64,
}

impl Model {
    fn last(&self) -> usize {
        self.entries.len()
    }

    fn chain(&self) -> ChainState {
        self.entries.last().map_or_else(ChainState::default, |kept| ChainState {
            vlsn: kept.vlsn,
            term: kept.term,
            fingerprint: kept.fingerprint,
        })
    }

    /// Where an entry of `bytes` comes to stand.
    fn place(&self, bytes: usize) -> Lsn {
        let Some(before) = self.entries.last() else { return Lsn::new(1, 64) };
        if self.last() == self.front {
            return Lsn::new(before.lsn.segment() + 1, 64);
        }
        let end = before.lsn.offset() as usize + before.bytes.len();
        if end + bytes <= SEGMENT_BYTES as usize {
            Lsn::new(before.lsn.segment(), end as u32)
        } else {
            Lsn::new(before.lsn.segment() + 1, 64)
        }
    }

    fn push(&mut self, entry: &NewEntry<'_>) {
        let chain = self.chain();
        let (vlsn, term) = (chain.vlsn.next(), Term::new(self.term));
        let (header, fields) = entry.place(vlsn, term, chain.fingerprint);
        let is_sync = entry.flags().is_sync();
        self.entries.push(Kept {
            vlsn,
            term,
            is_sync,
            is_txn_end: entry.flags().is_commit() || (is_sync && entry.kind().is_engine()),
            lsn: self.place(entry.entry_bytes()),
            fingerprint: fields.fingerprint,
            bytes: [&header, entry.body()].concat(),
        });
    }

    fn held(&self) -> &[Kept] {
        &self.entries[self.front..]
    }

    fn newest(&self, through: usize, what: impl Fn(&Kept) -> bool) -> Vlsn {
        let through = through.clamp(self.front, self.last());
        let held = &self.entries[self.front..through];
        held.iter().rev().find(|kept| what(kept)).map_or(NULL_VLSN, |kept| kept.vlsn)
    }

    fn terms(&self) -> Vec<(Term, Vlsn)> {
        let mut terms: Vec<(Term, Vlsn)> = Vec::new();
        for kept in self.held() {
            if terms.last().is_none_or(|(term, _)| *term != kept.term) {
                terms.push((kept.term, kept.vlsn));
            }
        }
        terms
    }

    fn cut(&mut self, last: usize) {
        self.entries.truncate(last);
        self.durable = self.durable.min(last);
    }

    /// Positions and term table.
    fn check_positions(&self, log: &Log) {
        let found = log.positions();
        let first = self.held().first().map_or(NULL_VLSN, |kept| kept.vlsn);
        assert_eq!((found.first, found.anchor.vlsn), (first, vlsn_of(self.front as i64)));
        assert_eq!(found.chain(), self.chain());
        assert_eq!(found.last_lsn, self.entries.last().map_or(Lsn::default(), |kept| kept.lsn));
        assert_eq!(found.last_sync, self.newest(self.last(), |kept| kept.is_sync));
        assert_eq!(found.last_txn_end, self.newest(self.last(), |kept| kept.is_txn_end));
        assert!(found.durable >= vlsn_of(self.durable as i64), "{found:?}");
        assert!(found.durable <= found.written && found.written <= found.last, "{found:?}");
        for (low, high) in [
            (found.first, found.last_txn_end),
            (found.last_txn_end, found.last_sync),
            (found.last_sync, found.last),
        ] {
            assert!(low <= high || high.is_null(), "{found:?}");
        }
        assert_eq!(log.term_table(), self.terms());
    }

    /// Header, LSN, fingerprint and the sync entry at or before `vlsn`.
    fn check_lookup(&self, log: &Log, vlsn: usize) {
        let at = vlsn_of(vlsn as i64);
        let held = vlsn > self.front && vlsn <= self.last();
        let found = log.header(at).unwrap();
        if held {
            let kept = &self.entries[vlsn - 1];
            let (header, lsn) = found.unwrap_or_else(|| panic!("no entry {vlsn}"));
            assert_eq!((header.vlsn, header.term, lsn), (at, kept.term, kept.lsn));
            assert_eq!(header.fingerprint, kept.fingerprint, "fingerprint at {vlsn}");
            assert_eq!(header.entry_bytes(), kept.bytes.len());
        } else {
            assert_eq!(found, None, "entry {vlsn} of {}..={}", self.front + 1, self.last());
        }
        let sync = log.sync_at_or_before(at).unwrap();
        let expected = self.newest(vlsn, |kept| kept.is_sync);
        assert_eq!(sync.map_or(NULL_VLSN, |(h, _)| h.vlsn), expected, "sync entry for {vlsn}");
        if let Some((header, lsn)) = sync {
            let kept = &self.entries[header.vlsn.sequence() as usize - 1];
            assert_eq!((header.fingerprint, lsn), (kept.fingerprint, kept.lsn));
        }
    }

    /// One read at `vlsn` for each buffer.
    fn check_read(&self, log: &Log, vlsn: usize, buffers: &[usize]) {
        let from = vlsn_of(vlsn as i64);
        for max_bytes in buffers.iter().copied() {
            let found = log.read(from, max_bytes);
            if vlsn <= self.front {
                let first = vlsn_of(self.front as i64 + 1);
                let lawful = matches!(found, Err(LogError::Gap { requested, first: named })
                    if requested == from && named == first);
                assert!(lawful, "a read at {vlsn} below {first} gave {found:?}");
                continue;
            }
            let run = found.unwrap_or_else(|error| panic!("{max_bytes} bytes at {vlsn}: {error}"));
            if vlsn > self.last() {
                assert!(run.is_none(), "{run:?} beyond the end");
                continue;
            }
            let run = run.unwrap_or_else(|| panic!("nothing at {vlsn}, {max_bytes} bytes"));
            assert_eq!(run.first, from);
            let last = &self.entries[run.last.sequence() as usize - 1];
            assert!(run.byte_len() <= max_bytes || run.count() == 1, "more than {max_bytes}");
            let before = self.entries[..vlsn - 1].last();
            let before = before.map_or(Fingerprint::ZERO, |kept| kept.fingerprint);
            assert_eq!(run.previous_fingerprint, before);
            assert_eq!((run.last_fingerprint, run.last_term), (last.fingerprint, last.term));
            let expected = &self.entries[vlsn - 1..run.last.sequence() as usize];
            assert_eq!(run.entries().count(), expected.len());
            let expected = expected.iter().flat_map(|kept| &kept.bytes);
            assert!(run.parts.iter().flatten().eq(expected), "other bytes at {vlsn}");
        }
    }

    fn check_all(&self, log: &Log) {
        self.check_positions(log);
        for vlsn in 0..=self.last() + 2 {
            self.check_lookup(log, vlsn);
            self.check_read(log, vlsn, &BUFFERS);
        }
    }
}

struct Run {
    env: FaultEnv,
    log: Log,
    config: LogConfig,
    model: Model,
}

impl Run {
    fn new(tail_bytes: usize) -> Self {
        let config = LogConfig { tail_bytes, ..quiet() };
        let env = FaultEnv::new();
        let log = try_open(&env, config.clone()).unwrap();
        Self { env, log, config, model: Model { term: 1, ..Model::default() } }
    }

    fn take(&mut self, step: &Step) {
        let last = self.model.last();
        match step {
            Step::Append { entries, term_up, as_run } => self.append(entries, *term_up, *as_run),
            Step::Write => self.log.write_now().unwrap(),
            Step::Sync => {
                assert_eq!(self.log.sync_now().unwrap(), vlsn_of(last as i64));
                self.model.durable = last;
            }
            Step::Look { newest } => {
                for vlsn in last.saturating_sub(*newest)..=last + 1 {
                    self.model.check_lookup(&self.log, vlsn);
                    self.model.check_read(&self.log, vlsn, &[0, 300, 5000]);
                }
            }
            Step::Truncate { entries } => {
                let keep = last.saturating_sub(*entries).max(self.model.settled);
                let cut = self.log.truncate_after(vlsn_of(keep as i64), Cut::Discard).unwrap();
                assert_eq!(cut.entries, (last - keep) as u64);
                self.model.cut(keep);
                self.model.check_all(&self.log);
            }
            Step::Seal { unsettled } => {
                self.log.sync_now().unwrap();
                self.model.durable = last;
                self.model.settled = self.model.settled.max(last.saturating_sub(*unsettled));
                self.log.seal_through(vlsn_of(self.model.settled as i64)).unwrap();
            }
            Step::DropFront { keep } => {
                let limit = vlsn_of(last.saturating_sub(*keep) as i64);
                let anchor = self.log.drop_front(limit, |_| Vec::new()).unwrap();
                let anchor = anchor.sequence() as usize;
                assert!(anchor <= self.model.settled && anchor >= self.model.front);
                if anchor > self.model.front {
                    let [before, after] = &self.model.entries[anchor - 1..=anchor] else {
                        panic!("an entry follows the anchor {anchor}");
                    };
                    assert!(before.lsn.segment() < after.lsn.segment(), "whole segments go");
                }
                self.model.front = anchor;
            }
            Step::LoseSide { which, damage } => self.lose_side(*which, *damage),
            Step::Reopen => {
                self.log.close().unwrap();
                self.model.durable = last;
                self.reopen(self.env.clone());
            }
            Step::Crash { seed } => self.reopen(self.env.crash(*seed)),
        }
        self.model.check_positions(&self.log);
    }

    fn append(&mut self, entries: &[(u8, u8, usize)], term_up: u32, as_run: bool) {
        let model = &mut self.model;
        model.term += term_up;
        let after = model.chain();
        let mut bodies = Vec::with_capacity(entries.len());
        for (_, _, len) in entries {
            model.made += 1;
            bodies.push(crate::rig::body(model.made, *len));
        }
        let new: Vec<_> = entries
            .iter()
            .zip(&bodies)
            .map(|((kind, flags, _), body)| {
                let flags = EntryFlags::from_u8(*flags).expect("flags there are");
                NewEntry::new(EntryKind(*kind), flags, body)
            })
            .collect();
        for entry in &new {
            model.push(entry);
        }
        let appended = if as_run {
            let added = &model.entries[after.vlsn.sequence() as usize..];
            let bytes: Vec<u8> = added.iter().flat_map(|kept| kept.bytes.clone()).collect();
            let run = EntryRun::verify(Bytes::from(bytes), after, 1 << 20).unwrap();
            self.log.append_run(&run).unwrap()
        } else {
            self.log.append(Term::new(model.term), &new).unwrap()
        };
        let last = model.entries.last().expect("appended");
        assert_eq!((appended.last, appended.last_lsn), (last.vlsn, last.lsn));
    }

    fn lose_side(&self, which: usize, damage: Option<u64>) {
        let mut sides = side_files(&self.env);
        if sides.is_empty() {
            return;
        }
        let path = sides.swap_remove(which % sides.len());
        match damage {
            // Beyond the file's end is nothing to damage.
            Some(offset) => drop(self.env.corrupt(&path, offset, 0x40)),
            None => self.env.remove(&path).unwrap(),
        }
    }

    /// Opens what is left, which is everything durable and a prefix of the rest.
    fn reopen(&mut self, env: FaultEnv) {
        self.env = env;
        // The old handle gives its lock back before the new one takes it.
        let unopened = try_open(&FaultEnv::new(), self.config.clone()).unwrap();
        drop(std::mem::replace(&mut self.log, unopened));
        self.log = try_open(&self.env, self.config.clone()).unwrap();
        let last = self.log.positions().last.sequence() as usize;
        assert!((self.model.durable..=self.model.last()).contains(&last), "ends with {last}");
        self.model.cut(last);
        self.model.durable = last;
        self.model.term = self.model.chain().term.number().max(1);
        self.model.check_all(&self.log);
    }
}

fn side_files(env: &FaultEnv) -> Vec<PathBuf> {
    let log_dir = dir().join("log");
    let names = env.list(&log_dir).unwrap();
    let paths = names.iter().map(|name| log_dir.join(name));
    paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "nside")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_log_answers_as_a_plain_vector_does(
        tail_bytes in prop_oneof![Just(0usize), Just(3000), Just(64 << 20)],
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut run = Run::new(tail_bytes);
        for step in &steps {
            run.take(step);
        }
        run.model.check_all(&run.log);
    }
}

#[test]
fn looking_up_each_entry_of_a_log_without_sync_entries_takes_no_longer_than_with_them() {
    let mut run = Run::new(64 << 20);
    for _ in 0..150 {
        // Each look freezes a piece of one entry.
        run.take(&Step::Append { entries: vec![(16, 0, 5)], term_up: 0, as_run: false });
        run.take(&Step::Look { newest: 1 });
    }
    run.model.check_all(&run.log);
}

/// A log of `entries` entries with 100-byte bodies in segments of `segment_bytes`, with the side
/// files' bytes if it was sealed.
fn filled(entries: u64, segment_bytes: u32, seal: bool) -> (MemoryEnv, Log, u64) {
    let env = MemoryEnv::new();
    let config = LogConfig { tail_bytes: 0, ..quiet() };
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), config).unwrap();
    log.found(GroupIdentity { segment_bytes, ..group() }).unwrap();
    let body = [7; 100];
    let batch = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body); 100];
    for _ in 0..entries / 100 {
        log.append(Term::new(1), &batch).unwrap();
    }
    let last = log.sync_now().unwrap();
    if seal {
        log.seal_through(last).unwrap();
    }
    let log_dir = dir().join("log");
    let names = env.list(&log_dir).unwrap();
    let sizes = names.iter().map(|name| log_dir.join(name)).map(|path| {
        let is_side = path.extension().is_some_and(|suffix| suffix == "nside");
        if is_side { env.open(&path, OpenMode::Read).unwrap().len().unwrap() } else { 0 }
    });
    let side_bytes = sizes.sum();
    (env, log, side_bytes)
}

/// `cargo test -p noxu-log --test log index::bytes -- --nocapture` prints the figures.
#[test]
fn bytes_per_million_entries_are_bounded_in_memory_and_on_disk() {
    const ENTRIES: u64 = 200_000;
    let per_million = |bytes: usize| bytes as u64 * 1_000_000 / ENTRIES;
    let (_env, log, _) = filled(ENTRIES, 64 << 20, false);
    let unsealed = per_million(log.index_memory().total_bytes());
    let (_env, log, side_bytes) = filled(ENTRIES, 1 << 20, true);
    let on_disk = per_million(side_bytes as usize);
    let last = log.positions().last.sequence();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..1000 {
        log.header(vlsn_of(rng.i64(1..=last))).unwrap().unwrap();
    }
    let looked_up = per_million(log.index_memory().total_bytes());
    println!(
        "index of 100-byte entries, bytes per million: {unsealed} in memory unsealed, \
         {on_disk} on disk sealed, {looked_up} in memory sealed once all side files are cached"
    );
    // A sample is 32 bytes for 64 entries; a vector may have grown to twice its need.
    assert!((500_000..1_100_000).contains(&unsealed), "{unsealed}");
    // A sample is 28 bytes, and 32 bytes of digest are kept for 256 KiB.
    assert!((430_000..500_000).contains(&on_disk), "{on_disk}");
    assert!(looked_up < 1_100_000, "{looked_up}");
}

#[test]
fn memory_is_small_while_thousands_of_sealed_segments_are_read_at_random() {
    let (_env, log, side_bytes) = filled(200_000, 4 << 10, true);
    let segments = log.sealed_segments().len();
    let last = log.positions().last.sequence();
    let mut rng = fastrand::Rng::with_seed(2);
    for _ in 0..20_000 {
        let vlsn = vlsn_of(rng.i64(1..=last));
        assert_eq!(log.header(vlsn).unwrap().unwrap().0.vlsn, vlsn);
    }
    let memory = log.index_memory();
    println!("{segments} sealed segments, {side_bytes} bytes of side files: {memory:?}");
    assert!(segments > 6_000);
    assert!(memory.side_bytes > side_bytes as usize && memory.side_bytes <= 16 << 20, "{memory:?}");
    assert!(memory.segment_bytes / segments <= 512, "{memory:?}");
    assert!(memory.sample_bytes < 4096, "only the open segment's: {memory:?}");
}
