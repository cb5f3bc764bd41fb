//! Taking: a copy on its way to the disk, each part of the keys by itself. A later session, or another source,
//! goes on where the last answer ended.
//!
//! # Invariants
//! - What is saved as had was synced before; it is a hint, and verified before it is gone on with.
//! - Of each part one question is under way, and it begins where what is here of that part ends.

use std::io::{self, IoSlice};
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{EnvFile, OpenMode};
use noxu_util::Name;
use noxu_util::codec::Reader;

use super::kept::{Had, Part, frame_head, path, read_splits};
use super::{KeyRange, MAX_TOKEN_BYTES, Piece, Question, RangeSync, successor};
use crate::error::{RepError, Result};
use crate::sync::method::{
    Answer, Opened, Proof, SessionHost, SyncOrder, SyncProgress, SyncSession,
};

/// Bytes that are read from disk at once.
const READ_BYTES: usize = 1 << 20;

/// A copy that is being fetched.
pub(super) struct RangeSession {
    tuning: RangeSync,
    order: SyncOrder,
    /// How far it is; what an earlier session saved, as long as there is no file.
    had: Option<Had>,
    /// `None` until a source has opened an offer.
    file: Option<Arc<dyn EnvFile>>,
    /// Of what is in the file.
    hasher: blake3::Hasher,
    durable: u64,
    /// The parts that a question is under way for.
    asked: Vec<bool>,
    reused: u64,
    is_whole: bool,
}

impl RangeSession {
    pub(super) fn new(tuning: RangeSync, order: &SyncOrder, saved: Option<&[u8]>) -> Self {
        Self {
            tuning,
            order: order.clone(),
            had: saved.and_then(|saved| Had::decode(saved).ok()),
            file: None,
            hasher: blake3::Hasher::new(),
            durable: 0,
            asked: Vec::new(),
            reused: 0,
            is_whole: false,
        }
    }

    /// Opens the file, with what an earlier session had in it if that is there, else for parts divided by
    /// `splits`.
    fn open(&mut self, splits: Vec<Vec<u8>>, host: &mut dyn SessionHost) -> Result<()> {
        let path = path(&self.order);
        let wrap = |e| LogError::io("open", &path, e);
        let file = self.order.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
        let mut kept = None;
        if let Some(had) = self.had.take() {
            let hasher = digest_front(&*file, had.bytes).map_err(wrap)?;
            if *hasher.finalize().as_bytes() == had.digest {
                kept = Some((had, hasher));
            }
        }
        let (had, hasher) = if let Some(kept) = kept {
            kept
        } else {
            let had = Had::nothing(splits);
            host.save(&had.encode())?;
            (had, blake3::Hasher::new())
        };
        // What is behind it on disk belongs to nothing.
        file.set_len(had.bytes).map_err(wrap)?;
        (self.durable, self.reused) = (had.bytes, had.bytes);
        (self.had, self.file, self.hasher) = (Some(had), Some(file), hasher);
        Ok(())
    }

    /// Makes what came durable, then says so.
    fn sync(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        let (Some(had), Some(file)) = (&mut self.had, &self.file) else { return Ok(()) };
        let path = path(&self.order);
        file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        if self.durable == 0 {
            // A file without a name is no file.
            let dir = &self.order.dir;
            let synced = self.order.env.sync_dir(dir);
            synced.map_err(|e| LogError::io("sync directory", dir, e))?;
        }
        had.digest = *self.hasher.finalize().as_bytes();
        host.save(&had.encode())?;
        self.durable = had.bytes;
        Ok(())
    }
}

impl SyncSession for RangeSession {
    /// Any source will do.
    fn earlier(&self) -> Option<(Name, u64)> {
        None
    }

    fn begin(&mut self, opened: &Opened<'_>, host: &mut dyn SessionHost) -> Result<bool> {
        let mut r = Reader::new(opened.head);
        let splits = read_splits(&mut r)?;
        r.finish("head")?;
        if self.file.is_none() {
            self.open(splits, host)?;
        }
        let parts = self.had.as_ref().map_or(0, |had| had.parts.len());
        self.asked = vec![false; parts];
        self.is_whole =
            self.had.as_ref().is_some_and(|had| had.parts.iter().all(|part| part.is_done));
        Ok(true)
    }

    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        let Some(had) = self.had.as_ref().filter(|_| self.file.is_some() && !self.is_whole) else {
            return Ok(());
        };
        for (number, part) in had.parts.iter().enumerate() {
            if part.is_done || self.asked[number] {
                continue;
            }
            let range = KeyRange { from: &part.from, below: had.below(number) };
            let bytes = self.tuning.piece_bytes;
            let question = Question { range, had: part.had, bytes }.encode();
            if !host.ask(number as u64, &question)? {
                break;
            }
            self.asked[number] = true;
        }
        Ok(())
    }

    fn take(&mut self, answer: &Answer<'_>, host: &mut dyn SessionHost) -> Result<()> {
        let (Some(had), Some(file)) = (&mut self.had, &self.file) else { return Ok(()) };
        let number = answer.number as usize;
        if !self.asked.get(number).copied().unwrap_or(false) {
            return Ok(());
        }
        let (token, next, pieces) = check(answer.bytes, &had.parts[number], had.below(number))?;
        let (at, head) = (had.bytes, frame_head(number, pieces.len()));
        let path = path(&self.order);
        file.write_at(&[IoSlice::new(&head), IoSlice::new(pieces)], at)
            .map_err(|e| LogError::io("write", &path, e))?;
        self.hasher.update(&head).update(pieces);
        had.bytes += (head.len() + pieces.len()) as u64;
        had.note(answer.proof, token);
        had.parts[number] = next;
        self.asked[number] = false;
        let is_whole = had.parts.iter().all(|part| part.is_done);
        if is_whole || had.bytes - self.durable >= self.tuning.sync_bytes {
            self.sync(host)?;
        }
        self.is_whole = is_whole;
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn proofs(&self) -> Vec<Proof> {
        self.had.iter().flat_map(|had| had.seen.iter().map(|seen| seen.proof)).collect()
    }

    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        (self.had, self.file, self.is_whole) = (None, None, false);
        self.asked.clear();
        host.save(&[])
    }

    fn progress(&self) -> SyncProgress {
        let begun = self.had.as_ref().filter(|_| self.file.is_some());
        SyncProgress { bytes: begun.map_or(0, |had| had.bytes), reused: self.reused }
    }

    fn seal(&self) -> Vec<u8> {
        self.had.as_ref().map_or_else(Vec::new, |had| had.seal().encode())
    }
}

/// The token of an answer, where its part goes on, and its pieces, if it answers the question that the part asks.
fn check<'a>(
    answer: &'a [u8],
    part: &Part,
    below: Option<&[u8]>,
) -> Result<(&'a [u8], Part, &'a [u8])> {
    let mut r = Reader::new(answer);
    let token = r.short_bytes("answer.token", MAX_TOKEN_BYTES)?;
    let at_end = r.bool("answer.at_end")?;
    let pieces = &answer[answer.len() - r.remaining()..];
    let wrong = |found: &str| {
        let expected = format!("keys from {:02x?} on, below {below:02x?}", part.from);
        RepError::protocol("", expected, found.to_owned())
    };
    let mut last: Option<Piece<'_>> = None;
    while r.remaining() > 0 {
        let piece = Piece::read(&mut r)?;
        if last.is_some_and(|last| last.goes_on || last.key >= piece.key) {
            return Err(wrong("keys out of order"));
        }
        if piece.key < part.from.as_slice() || below.is_some_and(|below| piece.key >= below) {
            return Err(wrong("a key beside them"));
        }
        last = Some(piece);
    }
    let next = match last {
        Some(last) if at_end && last.goes_on => return Err(wrong("an end inside a value")),
        None if !at_end => return Err(wrong("nothing, and not the end")),
        _ if at_end => Part { from: part.from.clone(), had: 0, is_done: true },
        Some(last) if last.goes_on => {
            let before = if last.key == part.from { part.had } else { 0 };
            if last.value.is_empty() {
                return Err(wrong("nothing of a value"));
            }
            let had = before + last.value.len() as u64;
            Part { from: last.key.to_vec(), had, is_done: false }
        }
        last => {
            let from = last.map_or_else(|| part.from.clone(), |last| successor(last.key));
            Part { from, had: 0, is_done: false }
        }
    };
    Ok((token, next, pieces))
}

/// The digest of the first `len` bytes of a file, or of all if it is shorter.
fn digest_front(file: &dyn EnvFile, len: u64) -> io::Result<blake3::Hasher> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut buffer) = (0, vec![0; READ_BYTES]);
    while at < len {
        let most = (len - at).min(buffer.len() as u64) as usize;
        let read = file.read_passing(&mut buffer[..most], at)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hasher)
}
