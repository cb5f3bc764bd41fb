//! Checkpoint: the store's content at one VLSN as a stream, and its way back into a table.
//!
//! ```text
//! magic "NOXUKVCP" · version u32 · VLSN i64 · term u32 · fingerprint u64
//! 1 · key_len u16 · value_len u32 · key · value        per key, in ascending order
//! 0 · keys u64 · BLAKE3 of everything before (32 bytes)
//! ```
//! Little endian; keys are the table's. Only the newest version of each key is in it, so two nodes
//! that stream the same VLSN send the same bytes.

use std::io::Read;

use noxu_util::codec::{Put, Reader};
use noxu_util::{Fingerprint, Term, Vlsn};

use crate::error::{KvError, Result};
use crate::snapshot::{Snapshot, SnapshotItems};
use crate::table::{KeyRange, Mark, RESERVED_PREFIX, SealedContent, Table};
use crate::value::{Value, shown};
use crate::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// The store's content at one VLSN, read piece by piece while writes go on.
pub(crate) struct CheckpointStream {
    mark: Mark,
    items: SnapshotItems,
    hasher: blake3::Hasher,
    keys: u64,
    /// Encoded and not handed out yet, from `taken` on.
    pending: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl CheckpointStream {
    /// `mark` is the position that `snapshot` shows.
    pub(crate) fn open(snapshot: &Snapshot, mark: Mark) -> Result<Self> {
        debug_assert_eq!(snapshot.vlsn(), mark.vlsn, "the snapshot is of the mark");
        let mut pending = MAGIC.to_vec();
        pending.put_u32(FORMAT_VERSION);
        pending.put_vlsn(mark.vlsn);
        pending.put_u32(mark.term.number());
        pending.put_u64(mark.fingerprint.as_u64());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&pending);
        let items = snapshot.items(&KeyRange::everything())?;
        Ok(Self { mark, items, hasher, keys: 0, pending, taken: 0, ended: false })
    }

    /// The VLSN whose content it is.
    pub(crate) fn vlsn(&self) -> Vlsn {
        self.mark.vlsn
    }

    /// Appends up to `max` bytes of the stream to `buf`; false when the stream has ended.
    pub(crate) fn read(&mut self, buf: &mut Vec<u8>, max: usize) -> Result<bool> {
        let mut room = max;
        loop {
            let rest = self.pending.get(self.taken..).unwrap_or_default();
            let piece = rest.get(..room).unwrap_or(rest);
            buf.extend_from_slice(piece);
            room -= piece.len();
            self.taken += piece.len();
            let drained = self.taken == self.pending.len();
            if drained && self.ended {
                return Ok(false);
            }
            if room == 0 {
                return Ok(true);
            }
            self.encode_more()?;
        }
    }

    fn encode_more(&mut self) -> Result<()> {
        self.pending.clear();
        self.taken = 0;
        while self.pending.len() < PIECE_BYTES {
            let Some(item) = self.items.next() else {
                self.pending.put_u8(END);
                self.pending.put_u64(self.keys);
                self.hasher.update(&self.pending);
                self.pending.put_bytes(self.hasher.finalize().as_bytes());
                self.ended = true;
                return Ok(());
            };
            let (key, value) = item?;
            self.keys += 1;
            self.pending.put_u8(KEY);
            self.pending.put_u16(u16::try_from(key.len()).expect("a key is at most 60,001 bytes"));
            self.pending.put_u32(u32::try_from(value.len()).expect("a value is at most 64 MiB"));
            self.pending.put_bytes(&key);
            self.pending.put_bytes(&value);
        }
        self.hasher.update(&self.pending);
        Ok(())
    }
}

/// Makes content for `table` of a checkpoint of VLSN `expected`. There is none unless the whole stream
/// arrives and its digest is right.
pub(crate) fn ingest(
    table: &dyn Table,
    expected: Vlsn,
    source: &mut dyn Read,
) -> Result<SealedContent> {
    let mut source = Hashing { source, hasher: blake3::Hasher::new() };
    let header: [u8; HEADER_BYTES] = source.array("its header")?;
    let mut fields = Reader::new(&header);
    let bad =
        |cause: noxu_util::codec::CodecError| KvError::BadCheckpoint { cause: cause.to_string() };
    let magic = fields.bytes("magic", MAGIC.len()).map_err(bad)?;
    let version = fields.u32("version").map_err(bad)?;
    let mark = Mark {
        vlsn: fields.vlsn("VLSN").map_err(bad)?,
        term: Term::new(fields.u32("term").map_err(bad)?),
        fingerprint: Fingerprint::from_u64(fields.u64("fingerprint").map_err(bad)?),
    };
    check(magic == MAGIC, || format!("magic {magic:02x?} found, {MAGIC:02x?} expected"))?;
    check(version == FORMAT_VERSION, || {
        format!("format version {version} found, {FORMAT_VERSION} expected")
    })?;
    check(mark.vlsn == expected, || {
        format!("it is of VLSN {}, one of VLSN {expected} was expected", mark.vlsn)
    })?;

    let mut ingest = table.ingest()?;
    let mut keys = 0u64;
    let mut last: Option<Value> = None;
    loop {
        match source.array::<1>("the next key")? {
            [KEY] => {
                let key_bytes = usize::from(u16::from_le_bytes(source.array("a key's length")?));
                let value_bytes = u32::from_le_bytes(source.array("a value's length")?) as usize;
                check_lengths(key_bytes, value_bytes)?;
                let key = Value::from(source.bytes("a key", key_bytes)?);
                let value = Value::from(source.bytes("a value", value_bytes)?);
                check_order(&key, last.as_ref())?;
                last = Some(key.clone());
                keys += 1;
                ingest.put(key, value)?;
            }
            [END] => break,
            [other] => check(false, || format!("tag {other} found, 0 or 1 expected"))?,
        }
    }
    let counted = u64::from_le_bytes(source.array("the number of keys")?);
    check(counted == keys, || format!("{keys} keys found, {counted} expected"))?;
    let computed = *source.hasher.finalize().as_bytes();
    let stored: [u8; 32] = source.array("the digest")?;
    check(stored == computed, || "its digest does not match its content".to_owned())?;
    ingest.seal(mark)
}

/// Whether a pair of the table can have these lengths.
pub(crate) fn check_lengths(key_bytes: usize, value_bytes: usize) -> Result<()> {
    check((2..=MAX_KEY_BYTES + 1).contains(&key_bytes), || {
        format!("a key of {key_bytes} bytes found, 2 to {} expected", MAX_KEY_BYTES + 1)
    })?;
    check(value_bytes <= MAX_VALUE_BYTES, || {
        format!("a value of {value_bytes} bytes found, at most {MAX_VALUE_BYTES} expected")
    })
}

/// Whether a key of the table can come after `last`.
pub(crate) fn check_order(key: &Value, last: Option<&Value>) -> Result<()> {
    check(key.first() != Some(&RESERVED_PREFIX), || {
        format!("key {} belongs to the table itself", shown(key))
    })?;
    check(last.is_none_or(|last| last < key), || {
        format!("key {} does not come after the one before it", shown(key))
    })
}

fn check(lawful: bool, cause: impl FnOnce() -> String) -> Result<()> {
    if lawful { Ok(()) } else { Err(KvError::BadCheckpoint { cause: cause() }) }
}

/// A source that hashes what is read from it.
struct Hashing<'a> {
    source: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Hashing<'_> {
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.source.read_exact(&mut out).map_err(|cause| short(what, &cause))?;
        self.hasher.update(&out);
        Ok(out)
    }

    /// Memory grows with what arrives, not with what is announced.
    fn bytes(&mut self, what: &str, count: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(count.min(PIECE_BYTES));
        let got = (&mut *self.source)
            .take(count as u64)
            .read_to_end(&mut out)
            .map_err(|cause| short(what, &cause))?;
        check(got == count, || format!("it ends inside {what}: {got} of {count} bytes"))?;
        self.hasher.update(&out);
        Ok(out)
    }
}

fn short(what: &str, cause: &std::io::Error) -> KvError {
    KvError::BadCheckpoint { cause: format!("reading {what}: {cause}") }
}

const MAGIC: &[u8; 8] = b"NOXUKVCP";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const KEY: u8 = 1;
const END: u8 = 0;
const PIECE_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::View;
    use crate::table::Version;
    use crate::table::lsm::LsmTable;
    use crate::table::memory::{MemoryImage, MemoryTable};
    use crate::value::table_key;

    fn memory() -> Box<dyn Table> {
        Box::new(MemoryTable::open(MemoryImage::default()))
    }

    fn stream(pairs: &[(&[u8], Vec<u8>)], vlsn: i64, max: usize) -> Vec<u8> {
        let view = View::new(memory());
        let at = Vlsn::new(vlsn);
        let version = |(key, value): &(&[u8], Vec<u8>)| Version {
            key: table_key(key),
            value: Some(Value::from(value.clone())),
            at,
        };
        view.table.insert(&mut pairs.iter().map(version).collect());
        view.publish(at);
        let mark =
            Mark { vlsn: at, term: Term::new(3), fingerprint: Fingerprint::from_u64(0xabcd) };
        let snapshot = view.open_snapshot(None).unwrap();
        let mut checkpoint = CheckpointStream::open(&snapshot, mark).unwrap();
        let mut out = Vec::new();
        loop {
            let before = out.len();
            let more = checkpoint.read(&mut out, max).unwrap();
            assert!(out.len() - before <= max);
            if !more {
                return out;
            }
        }
    }

    fn contents(table: &dyn Table, at: i64) -> Vec<(Vec<u8>, Vec<u8>)> {
        table
            .range(&KeyRange::everything(), Vlsn::new(at))
            .map(|item| item.map(|(k, v)| (k[1..].to_vec(), v.to_vec())).unwrap())
            .collect()
    }

    #[test]
    fn a_checkpoint_installed_elsewhere_holds_the_same_content() {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..3000u32)
            .map(|n| (format!("key{n:05}").into_bytes(), vec![n as u8; (n % 700) as usize]))
            .chain([(b"zzz".to_vec(), vec![9; 3 << 20])])
            .collect();
        let borrowed: Vec<(&[u8], Vec<u8>)> =
            pairs.iter().map(|(k, v)| (k.as_slice(), v.clone())).collect();
        let whole = stream(&borrowed, 44, usize::MAX);
        assert_eq!(stream(&borrowed, 44, 1000), whole, "the pieces' size does not matter");
        let dir = tempfile::tempdir().unwrap();
        let lsm: Box<dyn Table> = Box::new(LsmTable::open(dir.path(), 1 << 20).unwrap());
        for table in [memory(), lsm] {
            let sealed = ingest(&*table, Vlsn::new(44), &mut whole.as_slice()).unwrap();
            let mark = sealed.mark;
            table.adopt(sealed).unwrap();
            assert_eq!((mark.vlsn, mark.term), (Vlsn::new(44), Term::new(3)));
            assert_eq!(table.flushed(), mark);
            assert_eq!(contents(&*table, 44), pairs);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused_and_changes_nothing() {
        let whole = stream(&[(b"a", b"1".to_vec()), (b"b", b"22".to_vec())], 7, 100);
        let table = memory();
        let refused = |bytes: &[u8]| {
            let error = ingest(&*table, Vlsn::new(7), &mut &*bytes).unwrap_err();
            assert!(matches!(error, KvError::BadCheckpoint { .. }), "{error}");
            assert_eq!(table.flushed(), Mark::default());
        };
        for cut in 0..whole.len() {
            refused(&whole[..cut]);
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            refused(&bad);
        }
        assert!(ingest(&*table, Vlsn::new(8), &mut whole.as_slice()).is_err(), "another VLSN");
        let sealed = ingest(&*table, Vlsn::new(7), &mut whole.as_slice()).unwrap();
        table.adopt(sealed).unwrap();
    }
}
