//! Batch: writes that depend on nothing read.

use crate::MAX_VALUE_BYTES;
use crate::encode::encode;
use crate::error::{KvError, Result};
use crate::snapshot::check_key;
use crate::value::{Value, table_key};

/// Writes that depend on nothing read. A later write of a key replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writes: Vec<(Value, Option<Value>)>,
    bytes: u64,
}

impl Batch {
    /// The writes so far, oldest first: key, and the value or `None` for a deletion.
    pub fn writes(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        // Table keys begin with the byte of their keyspace.
        self.writes.iter().map(|(key, value)| (&key[1..], value.as_deref()))
    }

    /// Sets a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(KvError::ValueTooLong { bytes: value.len() });
        }
        self.write(key, Some(value))
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.write(key, None)
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let key = table_key(check_key(key)?);
        self.bytes += (key.len() + value.map_or(0, <[u8]>::len)) as u64;
        self.writes.push((key, value.map(Value::from)));
        Ok(())
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of its keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The table's keys that it writes.
    pub(crate) fn written_keys(&self) -> impl Iterator<Item = &Value> {
        self.writes.iter().map(|(key, _)| key)
    }

    /// The bodies of the entries to write.
    pub(crate) fn encode(&self, wall_ms: u64) -> Vec<Vec<u8>> {
        encode(self.writes.iter().map(|(key, value)| (&**key, value.as_deref())), wall_ms)
    }
}
