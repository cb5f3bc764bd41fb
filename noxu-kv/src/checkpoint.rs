//! Checkpoint: the store's content at one VLSN as a stream, and its way back into a table.
//!
//! ```text
//! magic "NOXUKVCP" · version u32 · VLSN i64 · term u32 · fingerprint u64 · crc32c u32 of these
//! bytes u32 · crc32c u32 · pairs      per chunk
//! 0 u32 · crc32c u32 · pairs u64      at the end: how many there were
//! pair: key_len u16 · value_len u32 · key · value, in ascending order of the keys
//! ```
//! Little endian; keys are the table's. A checksum goes on from the one before it and covers the length and
//! what follows, so that chunks have one place only. Only the newest version of each key is there, so two
//! nodes that stream the same VLSN send the same bytes. The way between them has digests of its own.

use std::io::{self, Read};

use noxu_rep::sync::CheckpointSource;
use noxu_util::checksum::{crc, crc_append};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Term, Vlsn};

use crate::error::{KvError, Result};
use crate::snapshot::{Snapshot, SnapshotItems};
use crate::table::{Ingest, KeyRange, Mark, RESERVED_PREFIX, SealedContent, Table};
use crate::value::{Value, shown};
use crate::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// The store's content at one VLSN, read piece by piece while writes go on.
pub(crate) struct CheckpointStream {
    mark: Mark,
    items: SnapshotItems,
    /// The checksum last written.
    crc: u32,
    pairs: u64,
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
        let crc = crc(&pending);
        pending.put_u32(crc);
        let items = snapshot.items(&KeyRange::everything())?;
        Ok(Self { mark, items, crc, pairs: 0, pending, taken: 0, ended: false })
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
            self.encode_chunk()?;
        }
    }

    fn encode_chunk(&mut self) -> Result<()> {
        self.pending.clear();
        self.pending.put_bytes(&[0; CHUNK_HEAD_BYTES]);
        self.taken = 0;
        let mut bytes = 0;
        while bytes < CHUNK_BYTES {
            let Some(item) = self.items.next() else { break };
            let (key, value) = item?;
            self.pairs += 1;
            self.pending.put_u16(u16::try_from(key.len()).expect("a key is at most 60,001 bytes"));
            self.pending.put_u32(u32::try_from(value.len()).expect("a value is at most 64 MiB"));
            self.pending.put_bytes(&key);
            self.pending.put_bytes(&value);
            bytes = self.pending.len() - CHUNK_HEAD_BYTES;
        }
        if bytes == 0 {
            self.pending.put_u64(self.pairs);
            self.ended = true;
        }
        let (head, body) = self.pending.split_at_mut(CHUNK_HEAD_BYTES);
        let length = u32::try_from(bytes).expect("a pair more than a chunk's bytes").to_le_bytes();
        self.crc = crc_append(crc_append(self.crc, &length), body);
        head[..4].copy_from_slice(&length);
        head[4..].copy_from_slice(&self.crc.to_le_bytes());
        Ok(())
    }
}

/// Makes content for `table` of a checkpoint of VLSN `expected`. There is none unless the whole stream
/// arrives and its checksums are right.
pub(crate) fn ingest(
    table: &dyn Table,
    expected: Vlsn,
    source: &mut dyn Read,
) -> Result<SealedContent> {
    let source = &mut Unplaced(source);
    let made = Made::begin(expected, source)?;
    made.go_on(table.ingest()?, source)
}

/// The same of checkpoint `id`, behind what was made of it before.
pub(crate) fn ingest_of(
    table: &dyn Table,
    id: &[u8; 32],
    expected: Vlsn,
    source: &mut dyn CheckpointSource,
) -> Result<SealedContent> {
    let (mut content, noted) = table.ingest_of(id)?;
    if let Some(noted) = noted {
        let noted = Made::decode(&noted).ok().filter(|(made, _)| made.mark.vlsn == expected);
        if let Some((made, place)) = noted
            && source.go_on_at(&place).map_err(|cause| short("where it was left", &cause))?
        {
            return made.go_on(content, source);
        }
        // It holds what nothing stands for.
        drop(content);
        table.discard_made()?;
        content = table.ingest_of(id)?.0;
    }
    Made::begin(expected, source)?.go_on(content, source)
}

/// A source that can only be read from the front.
struct Unplaced<'a>(&'a mut dyn Read);

impl Read for Unplaced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl CheckpointSource for Unplaced<'_> {
    fn place(&self) -> Option<Vec<u8>> {
        None
    }

    fn go_on_at(&mut self, _place: &[u8]) -> io::Result<bool> {
        Ok(false)
    }
}

/// How much of a checkpoint was read: whole chunks.
struct Made {
    mark: Mark,
    /// The checksum of the last chunk.
    crc: u32,
    pairs: u64,
    last: Option<Value>,
}

impl Made {
    /// Reads the header.
    fn begin(expected: Vlsn, source: &mut dyn Read) -> Result<Self> {
        let mut header = [0; HEADER_BYTES];
        source.read_exact(&mut header).map_err(|cause| short("its header", &cause))?;
        let mut fields = Reader::new(&header);
        let magic = fields.bytes("magic", MAGIC.len()).map_err(bad)?;
        let version = fields.u32("version").map_err(bad)?;
        check(magic == MAGIC, || format!("magic {magic:02x?} found, {MAGIC:02x?} expected"))?;
        check(version == FORMAT_VERSION, || {
            format!("format version {version} found, {FORMAT_VERSION} expected")
        })?;
        let mark = Mark {
            vlsn: fields.vlsn("VLSN").map_err(bad)?,
            term: Term::new(fields.u32("term").map_err(bad)?),
            fingerprint: Fingerprint::from_u64(fields.u64("fingerprint").map_err(bad)?),
        };
        let computed = crc(&header[..HEADER_BYTES - 4]);
        check(fields.u32("checksum").map_err(bad)? == computed, || {
            "its header's checksum does not match".to_owned()
        })?;
        check(mark.vlsn == expected, || {
            format!("it is of VLSN {}, one of VLSN {expected} was expected", mark.vlsn)
        })?;
        Ok(Self { mark, crc: computed, pairs: 0, last: None })
    }

    /// Reads the chunks that follow, into `content`, and notes there how far it is.
    fn go_on(
        mut self,
        mut content: Box<dyn Ingest + '_>,
        source: &mut dyn CheckpointSource,
    ) -> Result<SealedContent> {
        let mut chunk = Vec::new();
        while self.read_chunk(source, &mut chunk)? {
            let mut r = Reader::new(&chunk);
            while r.remaining() > 0 {
                let key_bytes = usize::from(r.u16("a key's length").map_err(bad)?);
                let value_bytes = r.u32("a value's length").map_err(bad)? as usize;
                check_lengths(key_bytes, value_bytes)?;
                let key = Value::from(r.bytes("a key", key_bytes).map_err(bad)?);
                let value = Value::from(r.bytes("a value", value_bytes).map_err(bad)?);
                check_order(&key, self.last.as_ref())?;
                self.last = Some(key.clone());
                self.pairs += 1;
                content.put(key, value)?;
            }
            if content.is_note_due()
                && let Some(place) = source.place()
            {
                content.note(&self.encode(&place))?;
            }
        }
        content.seal(self.mark)
    }

    /// The pairs of the next chunk; false at the end.
    fn read_chunk(&mut self, source: &mut dyn Read, chunk: &mut Vec<u8>) -> Result<bool> {
        let mut head = [0; CHUNK_HEAD_BYTES];
        source.read_exact(&mut head).map_err(|cause| short("the next chunk", &cause))?;
        let mut fields = Reader::new(&head);
        let bytes = fields.u32("a chunk's length").map_err(bad)?;
        let stored = fields.u32("a chunk's checksum").map_err(bad)?;
        let is_end = bytes == 0;
        let count = if is_end { END_BYTES } else { bytes as usize };
        check(count <= MAX_CHUNK_BYTES, || {
            format!("a chunk of {count} bytes found, at most {MAX_CHUNK_BYTES} expected")
        })?;
        // Memory grows with what arrives, not with what is announced.
        chunk.clear();
        let got = source.take(count as u64).read_to_end(chunk);
        let got = got.map_err(|cause| short("a chunk", &cause))?;
        check(got == count, || format!("it ends inside a chunk: {got} of {count} bytes"))?;
        self.crc = crc_append(crc_append(self.crc, &bytes.to_le_bytes()), chunk);
        check(stored == self.crc, || "a chunk's checksum does not match its content".to_owned())?;
        if is_end {
            let (counted, pairs) =
                (Reader::new(chunk).u64("the number of keys").map_err(bad)?, self.pairs);
            check(counted == pairs, || format!("{pairs} keys found, {counted} expected"))?;
        }
        Ok(!is_end)
    }

    /// As it is noted, with where its source is.
    fn encode(&self, place: &[u8]) -> Vec<u8> {
        let mut out = self.mark.encode();
        out.put_u32(self.crc);
        out.put_u64(self.pairs);
        let last = self.last.as_deref().unwrap_or_default();
        out.put_u32(last.len() as u32);
        out.put_bytes(last);
        out.put_bytes(place);
        out
    }

    /// What was noted, and where its source was.
    fn decode(noted: &[u8]) -> std::result::Result<(Self, Vec<u8>), CodecError> {
        let mut r = Reader::new(noted);
        let mark = Mark::decode(r.bytes("mark", Mark::ENCODED_BYTES)?)?;
        let (crc, pairs) = (r.u32("checksum")?, r.u64("pairs")?);
        let last_bytes = r.u32("length of the last key")? as usize;
        let last = r.bytes("last key", last_bytes)?;
        let last = (!last.is_empty()).then(|| Value::from(last));
        let left = r.remaining();
        let place = r.bytes("place", left)?.to_vec();
        Ok((Self { mark, crc, pairs, last }, place))
    }
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

#[expect(clippy::needless_pass_by_value, reason = "a function to map errors with")]
fn bad(cause: CodecError) -> KvError {
    KvError::BadCheckpoint { cause: cause.to_string() }
}

fn short(what: &str, cause: &std::io::Error) -> KvError {
    KvError::BadCheckpoint { cause: format!("reading {what}: {cause}") }
}

const MAGIC: &[u8; 8] = b"NOXUKVCP";
const FORMAT_VERSION: u32 = 2;
const HEADER_BYTES: usize = 36;
const CHUNK_HEAD_BYTES: usize = 8;
const END_BYTES: usize = 8;
/// A chunk ends behind the pair with which it has as many bytes.
const CHUNK_BYTES: usize = 256 << 10;
const MAX_CHUNK_BYTES: usize = CHUNK_BYTES + 6 + MAX_KEY_BYTES + 1 + MAX_VALUE_BYTES;

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

    /// Keys in their order, each with a value of so many bytes.
    fn pairs(count: u32, value_bytes: impl Fn(u32) -> usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pair = |n| (format!("key{n:05}").into_bytes(), vec![n as u8; value_bytes(n)]);
        (0..count).map(pair).collect()
    }

    fn borrowed(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<(&[u8], Vec<u8>)> {
        pairs.iter().map(|(key, value)| (key.as_slice(), value.clone())).collect()
    }

    fn stream_of(pairs: &[(Vec<u8>, Vec<u8>)], vlsn: i64) -> Vec<u8> {
        stream(&borrowed(pairs), vlsn, usize::MAX)
    }

    /// One that ends with an error once so many bytes were read.
    struct Cut<'a> {
        bytes: &'a [u8],
        left: usize,
    }

    impl Read for Cut<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let most = buf.len().min(self.left);
            let read = self.bytes.read(&mut buf[..most])?;
            self.left -= read;
            Ok(read)
        }
    }

    impl CheckpointSource for Cut<'_> {
        fn place(&self) -> Option<Vec<u8>> {
            self.bytes.place()
        }

        fn go_on_at(&mut self, place: &[u8]) -> io::Result<bool> {
            self.bytes.go_on_at(place)
        }
    }

    /// Each time a process comes less far than the whole checkpoint, and is killed.
    #[test]
    fn what_was_made_of_a_checkpoint_is_not_made_again() {
        let pairs = pairs(4000, |n| (n % 1500) as usize);
        let whole = stream_of(&pairs, 44);
        let dir = tempfile::tempdir().unwrap();
        let open = || LsmTable::open(dir.path(), 1 << 20).unwrap().with_ingest_bytes(400 << 10);
        let at = Vlsn::new(44);
        let most = 900 << 10;
        let mut lives = 0;
        let (table, made) = loop {
            lives += 1;
            let table = open();
            let mut source = Cut { bytes: &whole, left: most };
            match ingest_of(&table, &[7; 32], at, &mut source) {
                Ok(made) => break (table, made),
                Err(cause) => assert!(cause.to_string().contains("abort"), "{cause}"),
            }
            assert!(lives < 20, "it does not get further");
        };
        assert!(lives >= 4, "{lives}");
        table.adopt(made).unwrap();
        assert!(contents(&table, 44) == pairs);
        drop(table);
        assert!(contents(&open(), 44) == pairs);
    }

    #[test]
    fn a_place_that_the_source_does_not_know_and_another_vlsn_begin_anew() {
        let pairs = pairs(900, |_| 1000);
        let whole = stream_of(&pairs, 44);
        let dir = tempfile::tempdir().unwrap();
        let open = || LsmTable::open(dir.path(), 1 << 20).unwrap().with_ingest_bytes(300 << 10);
        let at = Vlsn::new(44);
        let begin = |table: &LsmTable| {
            let mut source = Cut { bytes: &whole, left: whole.len() - 1 };
            assert!(ingest_of(table, &[7; 32], at, &mut source).is_err());
            assert!(table.ingest_of(&[7; 32]).unwrap().1.is_some(), "something is noted");
        };
        let table = open();
        begin(&table);
        let made = ingest_of(&table, &[7; 32], at, &mut Unplaced(&mut whole.as_slice())).unwrap();
        table.adopt(made).unwrap();
        assert!(contents(&table, 44) == pairs);
        begin(&table);
        let later = stream_of(&pairs[..500], 45);
        let made = ingest_of(&table, &[7; 32], Vlsn::new(45), &mut later.as_slice()).unwrap();
        table.adopt(made).unwrap();
        assert!(contents(&table, 45) == pairs[..500]);
    }

    fn contents(table: &dyn Table, at: i64) -> Vec<(Vec<u8>, Vec<u8>)> {
        table
            .range(&KeyRange::everything(), Vlsn::new(at))
            .map(|item| item.map(|(k, v)| (k[1..].to_vec(), v.to_vec())).unwrap())
            .collect()
    }

    #[test]
    fn a_checkpoint_installed_elsewhere_holds_the_same_content() {
        let mut pairs = pairs(3000, |n| (n % 700) as usize);
        pairs.push((b"zzz".to_vec(), vec![9; 3 << 20]));
        let whole = stream_of(&pairs, 44);
        assert_eq!(stream(&borrowed(&pairs), 44, 1000), whole, "the pieces' size does not matter");
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
    fn chunks_have_one_place_only() {
        let value = || vec![7; CHUNK_BYTES];
        let whole = stream(&[(b"a", value()), (b"b", value()), (b"c", value())], 7, 1 << 20);
        // Of one length, so that the head of each is known.
        let bytes = (whole.len() - HEADER_BYTES - CHUNK_HEAD_BYTES - END_BYTES) / 3;
        let (head, chunks) = whole.split_at(HEADER_BYTES);
        let (chunks, end) = chunks.split_at(3 * bytes);
        let of = |order: &[usize]| {
            let chunks = order.iter().flat_map(|n| &chunks[n * bytes..(n + 1) * bytes]);
            head.iter().chain(chunks).chain(end).copied().collect::<Vec<u8>>()
        };
        assert_eq!(of(&[0, 1, 2]), whole);
        for order in [&[1, 0, 2][..], &[0, 2, 1], &[0, 0, 1], &[0, 2], &[0, 1, 2, 2]] {
            let refused = ingest(&*memory(), Vlsn::new(7), &mut of(order).as_slice()).unwrap_err();
            assert!(refused.to_string().contains("checksum"), "{order:?}: {refused}");
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
