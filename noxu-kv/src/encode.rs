//! Entry bodies: how a transaction stands in the log.
//!
//! A transaction is a run of entries of kind [`KIND_WRITES`]; the last one carries the COMMIT flag
//! and its body begins with the master's wall clock. A transaction of one write is one entry.
//!
//! ```text
//! body of an entry without COMMIT      write*
//! body of an entry with COMMIT         wall clock u64 (ms since 1970) · write*
//! write                                0 · key_len u16 · key                      (delete)
//!                                      1 · key_len u16 · key · value_len u32 · value   (put)
//! ```
//! Little endian. A key is the table's key: a byte that names the keyspace, then the caller's key.
//! A change of this layout takes a new kind.

use noxu_util::codec::{CodecError, Put, Reader};

use crate::table::RESERVED_PREFIX;
use crate::value::Value;
use crate::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// Kind of an entry that holds writes of a transaction.
pub const KIND_WRITES: u8 = 16;

/// What tools call a kind of entry that is the store's; `None` for any other.
pub const fn kind_name(kind: u8) -> Option<&'static str> {
    match kind {
        KIND_WRITES => Some("writes"),
        _ => None,
    }
}

/// A write of a transaction: the table's key and its new value, or none to delete it.
pub(crate) type Write = (Value, Option<Value>);

/// The bodies of a transaction's entries, in order; the last is the commit's.
///
/// A body is closed when it holds [`SPLIT_BYTES`]; each write is copied once.
///
/// # Panics
/// If there is no write, or a key or value is longer than the limits: callers check.
pub(crate) fn encode<'a>(
    writes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    wall_ms: u64,
) -> Vec<Vec<u8>> {
    let sizes = body_sizes(writes.clone());
    assert!(!sizes.is_empty(), "a transaction in the log has a write");
    let last = sizes.len() - 1;
    let mut writes = writes;
    let encode_body = |(at, BodySize { count, bytes }): (usize, BodySize)| {
        let mut body = Vec::with_capacity(bytes + WALL_CLOCK_BYTES);
        if at == last {
            body.put_u64(wall_ms);
        }
        for (key, value) in writes.by_ref().take(count) {
            body.put_u8(if value.is_some() { PUT } else { DELETE });
            body.put_short_bytes(key);
            if let Some(value) = value {
                body.put_u32(u32::try_from(value.len()).expect("a value is at most 64 MiB"));
                body.put_bytes(value);
            }
        }
        body
    };
    sizes.into_iter().enumerate().map(encode_body).collect()
}

struct BodySize {
    count: usize,
    bytes: usize,
}

fn body_sizes<'a>(writes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<BodySize> {
    let mut sizes: Vec<BodySize> = Vec::with_capacity(1);
    for (key, value) in writes {
        let bytes = 3 + key.len() + value.map_or(0, |value| 4 + value.len());
        match sizes.last_mut() {
            Some(body) if body.bytes + bytes <= SPLIT_BYTES => {
                body.count += 1;
                body.bytes += bytes;
            }
            _ => sizes.push(BodySize { count: 1, bytes }),
        }
    }
    sizes
}

/// The wall clock of a commit's body and the writes behind it.
pub(crate) fn decode_commit(body: &[u8]) -> Result<(u64, Writes<'_>), CodecError> {
    let mut reader = Reader::new(body);
    let wall_ms = reader.u64("wall clock")?;
    Ok((wall_ms, Writes { reader }))
}

/// The writes of a body without COMMIT.
pub(crate) fn decode_part(body: &[u8]) -> Writes<'_> {
    Writes { reader: Reader::new(body) }
}

/// Writes of one body, checked one by one. Ends after the first error.
#[derive(Debug)]
pub(crate) struct Writes<'a> {
    reader: Reader<'a>,
}

impl<'a> Writes<'a> {
    fn write(&mut self) -> Result<(&'a [u8], Option<&'a [u8]>), CodecError> {
        let operation = self.reader.u8("operation")?;
        if operation != PUT && operation != DELETE {
            return Err(CodecError::OutOfRange {
                what: "operation",
                found: operation.to_string(),
                expected: "0 (delete) or 1 (put)",
            });
        }
        let key = self.reader.short_bytes("key", MAX_KEY_BYTES + 1)?;
        if key.len() < 2 || key[0] == RESERVED_PREFIX {
            return Err(CodecError::OutOfRange {
                what: "key",
                found: format!("{} bytes that begin with {:?}", key.len(), key.first()),
                expected: "a keyspace other than 0 and at least one byte",
            });
        }
        if operation == DELETE {
            return Ok((key, None));
        }
        let length = self.reader.u32("length of the value")? as usize;
        if length > MAX_VALUE_BYTES {
            return Err(CodecError::OutOfRange {
                what: "length of the value",
                found: length.to_string(),
                expected: "at most 64 MiB",
            });
        }
        Ok((key, Some(self.reader.bytes("value", length)?)))
    }
}

impl<'a> Iterator for Writes<'a> {
    type Item = Result<(&'a [u8], Option<&'a [u8]>), CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.remaining() == 0 {
            return None;
        }
        let write = self.write();
        if write.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(write)
    }
}

const DELETE: u8 = 0;
const PUT: u8 = 1;
const WALL_CLOCK_BYTES: usize = 8;

/// Size from which a body takes no further write. A single larger write gets a body of its own.
const SPLIT_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::table_key;

    type Owned = Vec<(Vec<u8>, Option<Vec<u8>>)>;

    fn encode_owned(writes: &Owned, wall_ms: u64) -> Vec<Vec<u8>> {
        encode(writes.iter().map(|(k, v)| (k.as_slice(), v.as_deref())), wall_ms)
    }

    fn decode(bodies: &[Vec<u8>]) -> Result<(u64, Owned), CodecError> {
        let (last, parts) = bodies.split_last().unwrap();
        let mut all = Vec::new();
        let mut take = |writes: Writes<'_>| {
            for write in writes {
                let (key, value) = write?;
                all.push((key.to_vec(), value.map(<[u8]>::to_vec)));
            }
            Ok::<(), CodecError>(())
        };
        for part in parts {
            take(decode_part(part))?;
        }
        let (wall_ms, writes) = decode_commit(last)?;
        take(writes)?;
        Ok((wall_ms, all))
    }

    #[test]
    fn a_single_put_is_one_body_with_these_bytes() {
        let bodies = encode_owned(&vec![(b"\x01k".to_vec(), Some(b"v1".to_vec()))], 0x0102);
        assert_eq!(
            bodies,
            [[&[2, 1, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 1, b'k', 2, 0, 0, 0], b"v1"].concat()]
        );
    }

    #[test]
    fn large_transactions_are_split_and_large_values_stand_alone() {
        let value = |bytes| Some(vec![7; bytes]);
        let writes = vec![
            (b"\x01a".to_vec(), value(10)),
            (b"\x01b".to_vec(), value(MAX_VALUE_BYTES)),
            (b"\x01c".to_vec(), value(SPLIT_BYTES / 2)),
            (b"\x01d".to_vec(), value(SPLIT_BYTES / 3)),
            (b"\x01e".to_vec(), value(SPLIT_BYTES / 3)),
            ([&[1][..], &[b'z'; MAX_KEY_BYTES]].concat(), None),
        ];
        let bodies = encode_owned(&writes, 9);
        let counts: Vec<usize> = bodies.iter().map(Vec::len).map(|len| len >> 19).collect();
        assert_eq!(counts, [0, 128, 1, 0]);
        assert!(bodies.iter().all(|body| body.len() == body.capacity()
            || body.capacity() - body.len() == WALL_CLOCK_BYTES));
        assert_eq!(decode(&bodies).unwrap(), (9, writes));
    }

    #[test]
    fn bad_bodies_are_errors_that_name_the_field() {
        let error = |body: &[u8]| decode_part(body).find_map(Result::err).unwrap().to_string();
        assert!(error(&[2, 2, 0, 1, b'k']).contains("operation: 2 found"));
        assert!(error(&[0, 1, 0, 1]).contains("key"));
        assert!(error(&[0, 2, 0, 0, b'k']).contains("keyspace other than 0"));
        assert!(error(&[0, 0xff, 0xff, 1]).contains("key: 65535 bytes found"));
        assert!(error(&[1, 2, 0, 1, b'k', 1, 0, 0, 4]).contains("at most 64 MiB"));
        assert!(error(&[1, 2, 0, 1, b'k', 9, 0, 0, 0, 1]).contains("value: 9 bytes expected"));
        assert!(decode_commit(&[0; 7]).unwrap_err().to_string().contains("wall clock"));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            writes in prop::collection::btree_map(
                prop::collection::vec(any::<u8>(), 1..40),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..90)),
                1..40,
            ),
            wall_ms: u64,
        ) {
            let writes: Owned =
                writes.into_iter().map(|(key, value)| (table_key(&key).to_vec(), value)).collect();
            prop_assert_eq!(decode(&encode_owned(&writes, wall_ms)).unwrap(), (wall_ms, writes));
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _parts = decode_part(&body).count();
            if let Ok((_, writes)) = decode_commit(&body) {
                let _writes = writes.count();
            }
        }
    }
}
