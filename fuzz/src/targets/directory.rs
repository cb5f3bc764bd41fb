//! Directory: the files of node directories in many states, and the edits that a fuzzer makes.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use noxu_log::env::{Env, FaultEnv, MemoryEnv, OpenMode, Survivors, read_whole};
use noxu_log::segment::SegmentHeader;
use noxu_log::{
    ChainState, Cut, EntryFlags, EntryKind, GroupIdentity, Log, LogConfig, LostNote, NewEntry,
};
use noxu_util::codec::Put;
use noxu_util::{GroupId, Incarnation, Term, Vlsn, checksum};

/// The node directory.
pub fn dir() -> &'static Path {
    Path::new("/n1")
}

/// A configuration in which nothing happens by itself.
pub fn quiet() -> LogConfig {
    LogConfig {
        sync_interval: Duration::from_hours(1),
        prefill: false,
        tail_bytes: 4096,
        max_body_bytes: 64 << 10,
        ..LogConfig::default()
    }
}

/// Files of a node directory, by path below it.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Places `files` in a file system of its own.
pub fn place(files: &Files) -> MemoryEnv {
    let env = MemoryEnv::new();
    for (name, bytes) in files {
        let path = dir().join(name);
        env.create_dir_all(path.parent().expect("below the directory")).expect("in memory");
        let file = env.open(&path, OpenMode::CreateOrOpen).expect("in memory");
        file.write_at(&[IoSlice::new(bytes)], 0).expect("in memory");
    }
    env
}

/// Reads every file of the node directory, less its lock.
pub fn files_of(env: &dyn Env) -> Files {
    let mut files = Files::new();
    for sub in ["", "log", "lost"] {
        for name in env.list(&dir().join(sub)).unwrap_or_default() {
            let path: PathBuf = Path::new(sub).join(&name);
            if matches!(name.as_str(), "log" | "lost" | "LOCK") {
                continue;
            }
            let bytes = read_whole(env, &dir().join(&path)).expect("in memory");
            files.insert(path.to_string_lossy().into_owned(), bytes);
        }
    }
    files
}

/// Node directories to begin with.
pub fn bases() -> &'static [Files] {
    static BASES: OnceLock<Vec<Files>> = OnceLock::new();
    BASES.get_or_init(|| {
        vec![Files::new(), small(), sealed_and_dropped(), mid_truncation(), unsynced_tail()]
    })
}

fn open(env: &FaultEnv) -> Log {
    let (log, _) = Log::open(Arc::new(env.clone()), dir(), quiet()).expect("opens");
    log.control()
        .update(|control| {
            control.incarnation = Incarnation::from_u64(1);
            control.node = Some("n1".parse().expect("a name"));
            control.group_config = b"config".to_vec().into();
        })
        .expect("written");
    log.found(GroupIdentity {
        id: GroupId::from_bytes(*b"a group of fuzz."),
        name: "fuzz".parse().expect("a name"),
        segment_bytes: 4096,
    })
    .expect("founded");
    log
}

fn fill(log: &Log, count: u64, len: usize) {
    for n in 0..count {
        let (kind, flags) = match n % 5 {
            0 => (EntryKind::TERM, EntryFlags::SYNC),
            4 => (EntryKind(16), EntryFlags::COMMIT),
            _ => (EntryKind(17), EntryFlags::NONE),
        };
        let mut body = 1_700_000_000_000_u64.to_le_bytes().to_vec();
        body.resize(8 + len + n as usize % 7, n as u8);
        let term = log.positions().last_term.number() + u32::from(n % 10 == 0);
        log.append(Term::new(term), &[NewEntry::new(kind, flags, &body)]).expect("appended");
    }
}

/// One short segment, closed in order.
fn small() -> Files {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 4, 20);
    log.close().expect("closed");
    files_of(&env)
}

/// Segments of which the first are dropped, the next sealed and the last open.
fn sealed_and_dropped() -> Files {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 40, 400);
    let last = log.sync_now().expect("synced");
    log.seal_through(last).expect("sealed");
    log.drop_front(Vlsn::new(12), |_| b"config".to_vec()).expect("dropped");
    log.close().expect("closed");
    files_of(&env)
}

/// A crash in the middle of a truncation over a segment border.
fn mid_truncation() -> Files {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 16, 400);
    log.sync_now().expect("synced");
    // The rename is the first step that needs the intent.
    env.fail_next("rename", noxu_log::env::Fault::IO);
    let cut = Cut::Save { name: "cut".into(), note: LostNote::default() };
    log.truncate_after(Vlsn::new(5), cut).expect_err("the disk failed");
    drop(log);
    files_of(&env.clone_image(Survivors::All))
}

/// Entries that were written and survived, but that no mark speaks of.
fn unsynced_tail() -> Files {
    let env = FaultEnv::new();
    let log = open(&env);
    fill(&log, 12, 300);
    log.sync_now().expect("synced");
    fill(&log, 8, 300);
    log.write_now().expect("written");
    files_of(&env.clone_image(Survivors::All))
}

/// The bytes of an edit program, read to their end.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.u8()?, self.u8()?]))
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }
}

/// Names that a file may be given beside those there are.
const OTHER_NAMES: [&str; 8] = [
    "control",
    "tail-mark",
    "log/0000000001.nlog",
    "log/0000000001.nside",
    "log/0000000009.nlog",
    "log/4294967295.nlog",
    "log/spare",
    "lost/cut.nlost",
];

const NUMBERS: [u64; 10] = [
    0,
    1,
    2,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    u64::MAX,
];

/// Directory edits. The first byte chooses the base, the rest is a program:
/// see the `match` for its operations.
pub fn edited(program: &[u8]) -> Files {
    let mut p = Program(program);
    let base = p.u8().map_or(0, usize::from) % bases().len();
    let mut files = bases()[base].clone();
    while edit(&mut p, &mut files).is_some() {}
    files
}

fn edit(p: &mut Program<'_>, files: &mut Files) -> Option<()> {
    let operation = p.u8()? % 12;
    let number = usize::from(p.u8()?);
    let count = files.len() + OTHER_NAMES.len();
    let names: Vec<String> =
        files.keys().cloned().chain(OTHER_NAMES.map(ToOwned::to_owned)).collect();
    let name = names[number % count].clone();
    match operation {
        0 => {
            let (at, len) = (usize::from(p.u16()?), usize::from(p.u8()?));
            let bytes = p.bytes(len);
            let file = files.entry(name).or_default();
            let at = at % (file.len() + 16);
            file.resize(file.len().max(at + bytes.len()), 0);
            file[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        1 => {
            let (at, mask) = (usize::from(p.u16()?), p.u8()?);
            if let Some(file) = files.get_mut(&name).filter(|file| !file.is_empty()) {
                let at = at % file.len();
                file[at] ^= mask;
            }
        }
        2 => {
            let len = usize::from(p.u16()?);
            let file = files.entry(name).or_default();
            file.resize(len % (file.len() + 64), 0);
        }
        3 => drop(files.remove(&name)),
        4 => {
            let from = &names[usize::from(p.u8()?) % count];
            if let Some(bytes) = files.get(from).cloned() {
                files.insert(name, bytes);
            }
        }
        5 => {
            let (at, len) = (usize::from(p.u16()?), usize::from(p.u16()?));
            if let Some(file) = files.get_mut(&name).filter(|file| !file.is_empty()) {
                let at = at % file.len();
                let end = (at + len).min(file.len());
                file[at..end].fill(0);
            }
        }
        6 => {
            let (one, two) = (usize::from(p.u8()?) * 512, usize::from(p.u8()?) * 512);
            if let Some(file) = files.get_mut(&name)
                && file.len() >= one.max(two) + 512
            {
                for at in 0..512 {
                    file.swap(one + at, two + at);
                }
            }
        }
        7 => {
            if let Some(file) = files.get_mut(&name) {
                seal(&name, file);
            }
        }
        8 => {
            if let Some(file) = files.get_mut(&name) {
                chain_again(file);
            }
        }
        9 => {
            let (at, which) = (usize::from(p.u16()?), usize::from(p.u8()?));
            let wide = which & 0x80 == 0;
            let number = NUMBERS[which % NUMBERS.len()].to_le_bytes();
            if let Some(file) = files.get_mut(&name)
                && file.len() >= 8
            {
                let at = at % (file.len() - 7);
                let len = if wide { 8 } else { 4 };
                file[at..at + len].copy_from_slice(&number[..len]);
                seal(&name, file);
            }
        }
        10 => {
            let (flags, len) = (p.u8()?, p.u8()?);
            let body = p.bytes(usize::from(len));
            if let Some(file) = files.get_mut(&name) {
                append_entry(file, EntryFlags::from_u8(flags % 4).unwrap_or_default(), &body);
            }
        }
        _ => {
            let last = names[files.len().saturating_sub(1)].clone();
            if let Some(bytes) = files.remove(&last) {
                files.insert(name, bytes);
            }
        }
    }
    Some(())
}

/// Whether a file's name ends with `.suffix`.
pub fn has_suffix(name: &str, suffix: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == suffix)
}

/// Makes the checksums of a file right again, so that what is wrong beneath them is looked at.
pub fn seal(name: &str, file: &mut Vec<u8>) {
    let put = |file: &mut Vec<u8>, at: usize, range: std::ops::Range<usize>| {
        if file.len() >= range.end.max(at + 4) {
            let crc = checksum::crc(&file[range]).to_le_bytes();
            file[at..at + 4].copy_from_slice(&crc);
        }
    };
    if name == "control" {
        for slot in (0..4).map(|slot| slot * 4096) {
            put(file, slot, slot + 4..slot + 4096);
        }
    } else if name == "tail-mark" {
        for slot in [0, 4096] {
            put(file, slot, slot + 4..slot + 512);
        }
    } else if has_suffix(name, "nside") && file.len() >= 4 {
        put(file, 72, 12..72);
        let end = file.len() - 4;
        put(file, end, 0..end);
    } else if has_suffix(name, "nlost") && file.len() >= 16 {
        let len = u32::from_le_bytes([file[12], file[13], file[14], file[15]]) as usize;
        put(file, 16 + len, 0..16 + len);
    } else if has_suffix(name, "nlog") {
        put(file, 60, 0..60);
        seal_entries(file);
    }
}

/// Gives each entry of a segment the checksum of its bytes, as far as their lengths lead.
fn seal_entries(file: &mut [u8]) {
    let mut at = 64;
    while let Some(len) = entry_len(file, at) {
        let body = checksum::crc(&file[at + 32..at + len]);
        let crc = checksum::crc_append(body, &file[at + 4..at + 32]).to_le_bytes();
        file[at..at + 4].copy_from_slice(&crc);
        at += len;
    }
}

fn entry_len(file: &[u8], at: usize) -> Option<usize> {
    let header = file.get(at..at + 32)?;
    let body = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let unwritten = header.iter().all(|byte| *byte == 0);
    (!unwritten && body <= file.len() - at - 32).then_some(32 + body)
}

/// Writes each entry of a segment again as the next of one history: every check passes.
fn chain_again(file: &mut Vec<u8>) {
    let Ok(header) = SegmentHeader::decode(file) else { return };
    let mut chain = header.chain_before();
    let mut at = 64;
    while let Some(len) = entry_len(file, at) {
        let (kind, flags) = (EntryKind(file[at + 20]), EntryFlags::from_u8(file[at + 21]));
        let Some(flags) = flags else { return };
        let term = u32::from_le_bytes([file[at + 16], file[at + 17], file[at + 18], file[at + 19]]);
        let body = file[at + 32..at + len].to_vec();
        write_entry(file, at, &mut chain, Term::new(term), &NewEntry::new(kind, flags, &body));
        at += len;
    }
}

/// Adds one entry that continues a segment, over the zeros behind it.
fn append_entry(file: &mut Vec<u8>, flags: EntryFlags, body: &[u8]) {
    let Ok(header) = SegmentHeader::decode(file) else { return };
    let mut chain = header.chain_before();
    let mut at = 64;
    while let Some(bytes) = file.get(at..)
        && let Ok(entry) = chain.check_next(bytes, u32::MAX)
    {
        at += entry.header.entry_bytes();
    }
    let term = chain.term;
    write_entry(file, at, &mut chain, term, &NewEntry::new(EntryKind(20), flags, body));
}

fn write_entry(
    file: &mut Vec<u8>,
    at: usize,
    chain: &mut ChainState,
    term: Term,
    entry: &NewEntry<'_>,
) {
    if chain.vlsn.sequence() == i64::MAX {
        return;
    }
    let vlsn = chain.vlsn.next();
    let (header, fields) = entry.place(vlsn, term, chain.fingerprint);
    file.resize(file.len().max(at + entry.entry_bytes()), 0);
    file[at..at + 32].copy_from_slice(&header);
    file[at + 32..at + entry.entry_bytes()].copy_from_slice(entry.body());
    *chain = ChainState { vlsn, term, fingerprint: fields.fingerprint };
}

/// An edit program of one operation on the `file`-th file of base `base`.
pub fn one_edit(base: u8, operation: u8, file: u8, rest: &[u8]) -> Vec<u8> {
    let mut program = vec![base, operation, file];
    program.put_bytes(rest);
    program
}
