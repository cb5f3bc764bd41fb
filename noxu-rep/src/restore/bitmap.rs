//! Bitmap: which blocks of a restore are on disk.
//!
//! Two slots in one file, written in turn; the data of every block that a slot claims was synced
//! before the slot is written, while more came, of which it says nothing. So a claim is true after any
//! crash, as far as the disk keeps its word. Both slots bad, or of another manifest: nothing is claimed.
//!
//! ```text
//! slot: crc32c u32 | sequence u64 | manifest u64 | blocks u32 | bits
//! ```

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{Env, EnvFile, OpenMode};
use noxu_util::checksum::crc;
use noxu_util::codec::{CodecError, Put, Reader};
use parking_lot::Mutex;

use crate::error::Result;

const HEAD_BYTES: usize = 24;
/// Slots begin at multiples of this: they share no sector, and a longer bitmap takes the place of a shorter
/// one without writing over its newest slot, up to 128 GiB of segments.
pub(super) const ALIGN: usize = 64 << 10;

/// Which blocks are had, in memory.
pub(super) struct Bitmap {
    bits: Vec<u8>,
    slots: Arc<Slots>,
}

/// Which blocks are claimed, in its file.
pub(super) struct Slots {
    file: Arc<dyn EnvFile>,
    path: PathBuf,
    manifest: u64,
    blocks: u32,
    /// That of the newest slot.
    sequence: Mutex<u64>,
}

impl Bitmap {
    /// Opens the bitmap at `path` for a manifest of `blocks` blocks, with what it claims.
    pub(super) fn open(env: &dyn Env, path: &Path, manifest: u64, blocks: u32) -> Result<Self> {
        let wrap = |e| LogError::io("open", path, e);
        let file = env.open(path, OpenMode::CreateOrOpen).map_err(wrap)?;
        let path = path.to_owned();
        let mut slots = Slots { file, path, manifest, blocks, sequence: Mutex::new(0) };
        let (mut newest, mut bits) = (0, vec![0; slots.bits_len()]);
        for slot in 0..2 {
            let mut bytes = vec![0; HEAD_BYTES + slots.bits_len()];
            let at = (slot * slots.slot_bytes()) as u64;
            let read = slots.file.read_at(&mut bytes, at).map_err(wrap)?;
            if let Ok((sequence, claimed)) = slots.decode(&bytes[..read])
                && sequence > newest
            {
                (newest, bits) = (sequence, claimed.to_vec());
            }
        }
        slots.sequence = Mutex::new(newest);
        Ok(Self { bits, slots: Arc::new(slots) })
    }

    /// Goes on as that of another manifest, and claims nothing of it. The newest slot of the old one stays
    /// until the second save.
    pub(super) fn begin_anew(&mut self, manifest: u64, blocks: u32) {
        let Slots { file, path, sequence, .. } = &*self.slots;
        let (file, path) = (Arc::clone(file), path.clone());
        let sequence = Mutex::new(*sequence.lock());
        self.slots = Arc::new(Slots { file, path, manifest, blocks, sequence });
        self.bits = vec![0; self.slots.bits_len()];
    }

    pub(super) fn has(&self, block: u32) -> bool {
        self.bits[block as usize / 8] & (1 << (block % 8)) != 0
    }

    pub(super) fn set(&mut self, block: u32, had: bool) {
        let bit = 1 << (block % 8);
        let byte = &mut self.bits[block as usize / 8];
        *byte = if had { *byte | bit } else { *byte & !bit };
    }

    /// How many blocks are had.
    pub(super) fn count(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Writes and syncs the next slot. The data of all blocks that are had has been synced.
    pub(super) fn save(&self) -> Result<()> {
        self.slots.save(&self.bits)
    }

    /// Its file, and what there is to claim by now.
    pub(super) fn claims(&self) -> (Arc<Slots>, Vec<u8>) {
        (Arc::clone(&self.slots), self.bits.clone())
    }
}

impl Slots {
    /// Writes and syncs the next slot. The data of all blocks in it has been synced.
    pub(super) fn save(&self, bits: &[u8]) -> Result<()> {
        let mut sequence = self.sequence.lock();
        *sequence += 1;
        let mut slot = Vec::with_capacity(HEAD_BYTES + bits.len());
        slot.put_u32(0);
        slot.put_u64(*sequence);
        slot.put_u64(self.manifest);
        slot.put_u32(self.blocks);
        slot.put_bytes(bits);
        let sum = crc(&slot[4..]);
        slot[..4].copy_from_slice(&sum.to_le_bytes());
        let at = (*sequence as usize % 2 * self.slot_bytes()) as u64;
        let wrap = |e| LogError::io("write", &self.path, e);
        self.file.write_at(&[IoSlice::new(&slot)], at).map_err(wrap)?;
        self.file.sync_data().map_err(wrap)?;
        Ok(())
    }

    fn slot_bytes(&self) -> usize {
        (HEAD_BYTES + self.bits_len()).next_multiple_of(ALIGN)
    }

    const fn bits_len(&self) -> usize {
        self.blocks.div_ceil(8) as usize
    }

    fn decode<'a>(&self, slot: &'a [u8]) -> Result<(u64, &'a [u8]), CodecError> {
        let bad = |what| CodecError::OutOfRange { what, found: String::new(), expected: "" };
        let mut r = Reader::new(slot);
        let sum = r.u32("crc")?;
        if sum != crc(&slot[4..]) {
            return Err(bad("crc"));
        }
        let sequence = r.u64("sequence")?;
        if r.u64("manifest")? != self.manifest || r.u32("blocks")? != self.blocks {
            return Err(bad("manifest"));
        }
        Ok((sequence, r.bytes("bits", self.bits_len())?))
    }
}

#[cfg(test)]
mod tests {
    use noxu_log::env::{FaultEnv, Survivors};

    use super::*;

    const PATH: &str = "/bitmap";

    fn open(env: &FaultEnv, manifest: u64) -> Bitmap {
        Bitmap::open(env, Path::new(PATH), manifest, 100).unwrap()
    }

    #[test]
    fn what_was_saved_is_claimed_again_for_the_same_manifest_only() {
        let env = FaultEnv::new();
        let mut bitmap = open(&env, 7);
        assert_eq!(bitmap.count(), 0);
        for block in [0, 9, 99] {
            bitmap.set(block, true);
            bitmap.save().unwrap();
        }
        bitmap.set(9, false);
        bitmap.save().unwrap();
        let bitmap = open(&env, 7);
        assert!(bitmap.has(0) && bitmap.has(99) && !bitmap.has(9) && bitmap.count() == 2);
        assert_eq!(open(&env, 8).count(), 0);
    }

    #[test]
    fn the_old_claims_stay_until_the_new_ones_are_saved_twice() {
        let env = FaultEnv::new();
        let mut bitmap = open(&env, 7);
        for block in 0..3 {
            bitmap.set(block, true);
            bitmap.save().unwrap();
        }
        bitmap.begin_anew(8, 300_000);
        assert_eq!(bitmap.count(), 0);
        bitmap.set(299_999, true);
        bitmap.save().unwrap();
        let other = || Bitmap::open(&env, Path::new(PATH), 8, 300_000).unwrap();
        assert_eq!((open(&env, 7).count(), other().count()), (3, 1), "the newest of the old");
        bitmap.save().unwrap();
        assert_eq!((open(&env, 7).count(), other().count()), (0, 1));
    }

    #[test]
    fn a_torn_or_rotten_slot_leaves_the_other_and_two_leave_nothing() {
        let env = FaultEnv::new();
        let mut bitmap = open(&env, 7);
        for block in 0..2 {
            bitmap.set(block, true);
            bitmap.save().unwrap();
        }
        env.corrupt(Path::new(PATH), 30, 1).unwrap(); // the newer slot: sequence 2
        assert_eq!(open(&env, 7).count(), 1);
        env.corrupt(Path::new(PATH), ALIGN as u64 + 30, 1).unwrap();
        assert_eq!(open(&env, 7).count(), 0);
        let env = FaultEnv::new();
        open(&env, 7).save().unwrap();
        let _ = env.clone_image(Survivors::None);
    }
}
