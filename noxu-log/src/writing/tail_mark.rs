//! TailMark: how far the log was synced, in a small file of its own.
//!
//! Two slots of one sector each, written in turn. A crash leaves a slot old or new, because a
//! sector is written whole or not at all; so a slot that fails its checksum is rot, and the mark it
//! held might have been the newest: one bad slot makes the mark unreadable.
//!
//! # Slot, 512 bytes at 0 and at 4,096, little endian
//! crc32c u32 over all that follows · magic 8 bytes · format version u16 · zero u16 · sequence u64
//! (the slot is `sequence % 2`) · VLSN u64 · LSN u64 · fingerprint u64 · term u32 · zeros

use std::io;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_util::codec::{CodecError, Put, Reader, u32_at};
use noxu_util::{Fingerprint, Lsn, Term, Vlsn, checksum};
use parking_lot::Mutex;

use crate::entry::ChainState;
use crate::env::{Env, EnvFile, OpenMode};
use crate::error::{LogError, Result};

/// Everything through this entry was synced when the mark was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The entry's term.
    pub term: Term,
    /// The entry.
    pub vlsn: Vlsn,
    /// Where it begins.
    pub lsn: Lsn,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl Mark {
    /// The chain through the entry.
    pub const fn chain(&self) -> ChainState {
        ChainState { vlsn: self.vlsn, term: self.term, fingerprint: self.fingerprint }
    }
}

/// What the mark's file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkRead {
    /// There is no mark: none was ever written here.
    Absent,
    /// The newest mark.
    Valid(Mark),
    /// A slot is rotten: the newest mark may have been in it.
    Unreadable {
        /// What is wrong, and where.
        reason: String,
    },
}

const FILE_NAME: &str = "tail-mark";
const TEMP_NAME: &str = "tail-mark.new";
const MAGIC: &[u8; 8] = b"NOXUMARK";
const FORMAT_VERSION: u16 = 1;
const SLOT_BYTES: usize = 512;
/// Slots lie this far apart, so that they share no physical sector.
const SLOT_STRIDE: usize = 4096;

/// The tail mark of an open node directory. Usable from many threads.
#[derive(Debug)]
pub struct TailMark {
    env: Arc<dyn Env>,
    dir: PathBuf,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// The open file and the newest sequence in it; `None` if the file is absent or unreadable.
    file: Option<(Arc<dyn EnvFile>, u64)>,
    read: MarkRead,
    failed: Option<LogError>,
}

impl TailMark {
    /// Opens the mark of `dir`, which must exist and be locked by the caller. Writes nothing.
    pub fn open(env: Arc<dyn Env>, dir: &Path) -> Result<Self> {
        let writer = match read_file(&*env, dir, OpenMode::ReadWrite)? {
            None => Writer { file: None, read: MarkRead::Absent, failed: None },
            Some((file, Ok((mark, sequence)))) => {
                Writer { file: Some((file, sequence)), read: MarkRead::Valid(mark), failed: None }
            }
            Some((_, Err(reason))) => {
                Writer { file: None, read: MarkRead::Unreadable { reason }, failed: None }
            }
        };
        Ok(Self { env, dir: dir.to_owned(), writer: Mutex::new(writer) })
    }

    /// Reads the mark without opening it for writing; for tools.
    pub fn inspect(env: &dyn Env, dir: &Path) -> Result<MarkRead> {
        Ok(match read_file(env, dir, OpenMode::Read)? {
            None => MarkRead::Absent,
            Some((_, Ok((mark, _)))) => MarkRead::Valid(mark),
            Some((_, Err(reason))) => MarkRead::Unreadable { reason },
        })
    }

    /// Its file.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// The newest mark: as found at open, or as written since.
    pub fn read(&self) -> MarkRead {
        self.writer.lock().read.clone()
    }

    /// Writes a mark without syncing it: a crash leaves it or an earlier one. The caller has synced
    /// the data it speaks of.
    ///
    /// An absent or unreadable mark is replaced by a new file, durably: over an unreadable one the
    /// caller has recorded first that its head is uncertain.
    ///
    /// # Errors
    /// `Io`. If the disk is full, the mark is what it was and can be written again; any other failure
    /// is the last word, and `Poisoned` the answer to every later call.
    pub fn write(&self, mark: Mark) -> Result<()> {
        let path = self.path();
        self.guarded("write", true, &path, |writer| {
            if let Some((file, sequence)) = &mut writer.file {
                let next = *sequence + 1;
                let offset = slot_offset(next) as u64;
                file.write_at(&[IoSlice::new(&encode_slot(&mark, next))], offset)?;
                *sequence = next;
            } else {
                writer.file = Some(create(&*self.env, &self.dir, &mark)?);
            }
            writer.read = MarkRead::Valid(mark);
            Ok(())
        })
    }

    /// Makes the mark written last durable.
    pub fn sync(&self) -> Result<()> {
        let path = self.path();
        self.guarded("sync", false, &path, |writer| match &writer.file {
            Some((file, _)) => file.sync_data(),
            None => Ok(()),
        })
    }

    fn guarded(
        &self,
        action: &'static str,
        retry_if_full: bool,
        path: &Path,
        act: impl FnOnce(&mut Writer) -> io::Result<()>,
    ) -> Result<()> {
        let mut writer = self.writer.lock();
        if let Some(failed) = &writer.failed {
            return Err(failed.poisoned());
        }
        act(&mut writer).map_err(|error| {
            let error = LogError::io(action, path, error);
            if !(retry_if_full && error.is_storage_full()) {
                writer.failed = Some(error.clone());
            }
            error
        })
    }
}

type Slots = std::result::Result<(Mark, u64), String>;

fn read_file(
    env: &dyn Env,
    dir: &Path,
    mode: OpenMode,
) -> Result<Option<(Arc<dyn EnvFile>, Slots)>> {
    let path = dir.join(FILE_NAME);
    let file = match env.open(&path, mode) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("open", &path, error)),
    };
    let mut bytes = [0; SLOT_STRIDE + SLOT_BYTES];
    let count = file.read_at(&mut bytes, 0).map_err(|e| LogError::io("read", &path, e))?;
    let slots = newest_of(&bytes[..count], &path)?;
    Ok(Some((file, slots)))
}

fn newest_of(bytes: &[u8], path: &Path) -> Result<Slots> {
    let mut newest: Option<(Mark, u64)> = None;
    for index in 0..2 {
        let start = index * SLOT_STRIDE;
        let Some(slot) = bytes.get(start..start + SLOT_BYTES) else {
            return Ok(Err(format!("slot {index} is missing from {}", path.display())));
        };
        if checksum::crc(&slot[4..]) != u32_at(slot, 0) {
            return Ok(Err(format!("slot {index} of {} fails its checksum", path.display())));
        }
        match decode_slot(&slot[4..]) {
            Ok((FORMAT_VERSION, mark, sequence))
                if slot_offset(sequence) == start && sequence < u64::MAX / 2 =>
            {
                if newest.is_none_or(|(_, found)| found < sequence) {
                    newest = Some((mark, sequence));
                }
            }
            Ok((FORMAT_VERSION, _, sequence)) => {
                let place = path.display();
                return Ok(Err(format!("slot {index} of {place} holds sequence {sequence}")));
            }
            Ok((found, ..)) => {
                let path = path.to_owned();
                return Err(LogError::FormatVersion { path, found, expected: FORMAT_VERSION });
            }
            Err(error) => {
                return Ok(Err(format!("slot {index} of {}: {error}", path.display())));
            }
        }
    }
    Ok(newest.ok_or_else(|| format!("{} has no slot", path.display())))
}

/// Crash-safe: the name appears, durably, only over a whole and synced file.
fn create(env: &dyn Env, dir: &Path, mark: &Mark) -> io::Result<(Arc<dyn EnvFile>, u64)> {
    let temp = dir.join(TEMP_NAME);
    let file = env.open(&temp, OpenMode::CreateOrOpen)?;
    file.set_len(0)?;
    for sequence in [1, 2] {
        let offset = slot_offset(sequence) as u64;
        file.write_at(&[IoSlice::new(&encode_slot(mark, sequence))], offset)?;
    }
    file.sync_data()?;
    env.rename(&temp, &dir.join(FILE_NAME))?;
    env.sync_dir(dir)?;
    Ok((file, 2))
}

fn slot_offset(sequence: u64) -> usize {
    if sequence.is_multiple_of(2) { 0 } else { SLOT_STRIDE }
}

fn encode_slot(mark: &Mark, sequence: u64) -> Vec<u8> {
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.put_u32(0);
    slot.put_bytes(MAGIC);
    slot.put_u16(FORMAT_VERSION);
    slot.put_u16(0);
    slot.put_u64(sequence);
    slot.put_vlsn(mark.vlsn);
    slot.put_u64(mark.lsn.as_u64());
    slot.put_u64(mark.fingerprint.as_u64());
    slot.put_u32(mark.term.number());
    slot.resize(SLOT_BYTES, 0);
    let crc = checksum::crc(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// Format version, mark and sequence of a slot without its checksum.
fn decode_slot(bytes: &[u8]) -> std::result::Result<(u16, Mark, u64), CodecError> {
    let mut r = Reader::new(bytes);
    let magic: [u8; 8] = r.array("magic")?;
    if magic != *MAGIC {
        let found = String::from_utf8_lossy(&magic).into_owned();
        return Err(CodecError::OutOfRange { what: "magic", found, expected: "NOXUMARK" });
    }
    let format = r.u16("format version")?;
    r.u16("reserved")?;
    let sequence = r.u64("sequence")?;
    let mark = Mark {
        vlsn: r.vlsn("VLSN")?,
        lsn: Lsn::from_u64(r.u64("LSN")?),
        fingerprint: Fingerprint::from_u64(r.u64("fingerprint")?),
        term: Term::new(r.u32("term")?),
    };
    Ok((format, mark, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Fault, FaultEnv, Survivors};

    fn dir() -> &'static Path {
        Path::new("/n1")
    }

    fn new_env() -> FaultEnv {
        let env = FaultEnv::new();
        env.create_dir_all(dir()).unwrap();
        env
    }

    fn open(env: &FaultEnv) -> TailMark {
        TailMark::open(Arc::new(env.clone()), dir()).unwrap()
    }

    fn mark(vlsn: i64) -> Mark {
        Mark {
            term: Term::new(3),
            vlsn: Vlsn::new(vlsn),
            lsn: Lsn::new(1, 64 + vlsn as u32),
            fingerprint: Fingerprint::from_u64(vlsn as u64 * 77),
        }
    }

    #[test]
    fn the_newest_mark_is_read_back_even_if_it_is_lower() {
        let env = new_env();
        assert_eq!(open(&env).read(), MarkRead::Absent);
        for vlsn in [100, 200, 90, 101] {
            open(&env).write(mark(vlsn)).unwrap();
            assert_eq!(open(&env).read(), MarkRead::Valid(mark(vlsn)));
        }
        assert_eq!(TailMark::inspect(&env, dir()).unwrap(), MarkRead::Valid(mark(101)));
    }

    #[test]
    fn a_crash_leaves_the_synced_mark_or_a_later_one() {
        let env = new_env();
        let tail_mark = open(&env);
        tail_mark.write(mark(1)).unwrap();
        tail_mark.write(mark(2)).unwrap();
        tail_mark.sync().unwrap();
        tail_mark.write(mark(3)).unwrap();
        tail_mark.write(mark(4)).unwrap();
        tail_mark.write(mark(5)).unwrap();
        let mut seen = Vec::new();
        for seed in 0..100 {
            let MarkRead::Valid(found) = open(&env.clone_image(Survivors::Random(seed))).read()
            else {
                panic!("seed {seed}")
            };
            assert!(found.vlsn >= Vlsn::new(2), "seed {seed}: {found:?}");
            seen.push(found.vlsn.sequence());
        }
        for vlsn in 2..=5 {
            assert!(seen.contains(&vlsn), "{vlsn} in {seen:?}");
        }
    }

    #[test]
    fn a_crash_at_any_call_of_the_first_write_leaves_no_mark_or_that_one() {
        let mut call = 1;
        loop {
            let env = new_env();
            let tail_mark = open(&env);
            env.crash_at(env.calls() + call);
            if tail_mark.write(mark(9)).is_ok() {
                break;
            }
            for seed in 0..30 {
                let read = open(&env.clone_image(Survivors::Random(seed))).read();
                assert!(matches!(read, MarkRead::Absent) || read == MarkRead::Valid(mark(9)));
            }
            call += 1;
        }
        assert!(call > 6);
    }

    #[test]
    fn one_rotten_byte_in_either_slot_makes_the_mark_unreadable() {
        let path = dir().join(FILE_NAME);
        for slot in [0, SLOT_STRIDE] {
            for byte in 0..SLOT_BYTES {
                let env = new_env();
                open(&env).write(mark(1)).unwrap();
                env.corrupt(&path, (slot + byte) as u64, 4).unwrap();
                let read = open(&env).read();
                assert!(matches!(read, MarkRead::Unreadable { .. }), "byte {byte}: {read:?}");
            }
        }
    }

    #[test]
    fn a_file_cut_short_is_unreadable_and_the_next_write_replaces_it() {
        let env = new_env();
        open(&env).write(mark(1)).unwrap();
        let file = env.open(&dir().join(FILE_NAME), OpenMode::ReadWrite).unwrap();
        file.set_len(SLOT_STRIDE as u64 + 10).unwrap();
        let tail_mark = open(&env);
        assert!(matches!(tail_mark.read(), MarkRead::Unreadable { .. }));
        tail_mark.write(mark(2)).unwrap();
        assert_eq!(tail_mark.read(), MarkRead::Valid(mark(2)));
        assert_eq!(open(&env).read(), MarkRead::Valid(mark(2)));
    }

    #[test]
    fn a_failed_sync_poisons_the_mark() {
        let env = new_env();
        let tail_mark = open(&env);
        tail_mark.write(mark(1)).unwrap();
        env.fail_next("sync_data", Fault::IO);
        assert!(matches!(tail_mark.sync(), Err(LogError::Io { .. })));
        assert!(matches!(tail_mark.sync(), Err(LogError::Poisoned { .. })));
        assert!(matches!(tail_mark.write(mark(2)), Err(LogError::Poisoned { .. })));
    }
}
