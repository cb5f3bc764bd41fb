//! Taking: a checkpoint on its way to the disk. It comes from one source; a later session goes on where
//! the last sync was, as long as that source keeps it.
//!
//! # Invariants
//! - What is saved as had was synced before; it is a hint, and verified before it is gone on with.

use std::io::{self, BufReader, IoSlice, Read};
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{EnvFile, OpenMode};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Name, Vlsn};

use super::{Question, StreamSync};
use crate::error::{RepError, Result};
use crate::sync::StateMachine;
use crate::sync::method::{
    Answer, Opened, Pace, Proof, SessionHost, SyncOrder, SyncProgress, SyncSession,
};

/// Bytes that are read from disk at once.
const READ_BYTES: usize = 1 << 20;

/// Pieces that are asked for ahead.
const PIECES: u64 = 4;

/// A checkpoint, and how much of it is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    source: Name,
    /// Its number there.
    id: u64,
    proof: Proof,
    /// Bytes from its front on.
    durable: u64,
    /// BLAKE3 of these.
    digest: [u8; 32],
}

impl Part {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_text(self.source.as_str());
        out.put_u64(self.id);
        self.proof.put(&mut out);
        out.put_u64(self.durable);
        out.put_bytes(&self.digest);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let part = Self {
            source: r.name("source")?,
            id: r.u64("checkpoint")?,
            proof: Proof::read(&mut r, "checkpoint proof")?,
            durable: r.u64("checkpoint bytes")?,
            digest: r.array("checkpoint digest")?,
        };
        r.finish("checkpoint")?;
        Ok(part)
    }
}

/// A checkpoint that is being fetched.
pub(super) struct StreamSession {
    tuning: StreamSync,
    order: SyncOrder,
    /// Which it is; `None` for none.
    part: Option<Part>,
    /// `None` until a source has opened it.
    file: Option<Arc<dyn EnvFile>>,
    written: u64,
    /// Pieces before this offset were asked for.
    asked: u64,
    reused: u64,
    hasher: blake3::Hasher,
    is_whole: bool,
}

impl StreamSession {
    pub(super) fn new(tuning: StreamSync, order: &SyncOrder, saved: Option<&[u8]>) -> Self {
        Self {
            tuning,
            order: order.clone(),
            part: saved.and_then(|saved| Part::decode(saved).ok()),
            file: None,
            written: 0,
            asked: 0,
            reused: 0,
            hasher: blake3::Hasher::new(),
            is_whole: false,
        }
    }
}

impl SyncSession for StreamSession {
    fn earlier(&self) -> Option<(Name, u64)> {
        self.part.as_ref().map(|part| (part.source.clone(), part.id))
    }

    fn begin(&mut self, opened: &Opened<'_>, host: &mut dyn SessionHost) -> Result<bool> {
        let mut r = Reader::new(opened.head);
        let first = r.u64("first offset")?;
        r.finish("head")?;
        let path = path(&self.order);
        let wrap = |e| LogError::io("open", &path, e);
        let file = self.order.env.open(&path, OpenMode::CreateOrOpen).map_err(wrap)?;
        let (mut kept, mut hasher) = (0, blake3::Hasher::new());
        if let Some(part) = &self.part
            && (&part.source, part.id) == (opened.source, opened.id)
            && part.durable >= first
        {
            hasher = digest_front(&*file, part.durable).map_err(wrap)?;
            kept = part.durable;
            if *hasher.finalize().as_bytes() != part.digest {
                (kept, hasher) = (0, blake3::Hasher::new());
            }
        }
        if kept < first {
            return Ok(false);
        }
        // What is behind it on disk belongs to nothing.
        let part = Part {
            source: opened.source.clone(),
            id: opened.id,
            proof: opened.proof,
            durable: kept,
            digest: *hasher.finalize().as_bytes(),
        };
        host.save(&part.encode())?;
        file.set_len(kept).map_err(wrap)?;
        (self.part, self.file, self.hasher) = (Some(part), Some(file), hasher);
        (self.written, self.asked, self.reused) = (kept, kept, kept);
        self.is_whole = false;
        Ok(true)
    }

    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        let Some(part) = self.part.as_ref().filter(|_| !self.is_whole) else { return Ok(()) };
        let bytes = self.tuning.piece_bytes;
        while self.asked < self.written + PIECES * u64::from(bytes) {
            let (offset, durable) = (self.asked, part.durable);
            if !host.ask(offset, &Question { offset, bytes, durable }.encode())? {
                break;
            }
            self.asked += u64::from(bytes);
        }
        Ok(())
    }

    fn take(&mut self, answer: &Answer<'_>, host: &mut dyn SessionHost) -> Result<()> {
        let (Some(part), Some(file)) = (&mut self.part, &self.file) else { return Ok(()) };
        let Some((is_last, bytes)) = decode_piece(answer.bytes) else {
            let found = format!("{} bytes that are none", answer.bytes.len());
            return Err(RepError::protocol("", "a piece of the checkpoint", found));
        };
        // Behind the end there were questions too.
        if self.is_whole || answer.number != self.written {
            return Ok(());
        }
        if answer.proof != part.proof
            || (bytes.len() < self.tuning.piece_bytes as usize && !is_last)
        {
            let found = format!("{} bytes through {}", bytes.len(), answer.proof.vlsn);
            return Err(RepError::protocol("", "a piece of the checkpoint", found));
        }
        let path = path(&self.order);
        file.write_passing(&[IoSlice::new(bytes)], self.written)
            .map_err(|e| LogError::io("write", &path, e))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        if is_last || self.written - part.durable >= self.tuning.sync_bytes {
            file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
            if part.durable == 0 {
                // A file without a name is no file.
                let dir = &self.order.dir;
                let sync = self.order.env.sync_dir(dir);
                sync.map_err(|e| LogError::io("sync directory", dir, e))?;
            }
            part.durable = self.written;
            part.digest = *self.hasher.finalize().as_bytes();
            host.save(&part.encode())?;
        }
        self.is_whole = is_last;
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn proofs(&self) -> Vec<Proof> {
        self.part.iter().map(|part| part.proof).collect()
    }

    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        (self.part, self.file, self.is_whole) = (None, None, false);
        host.save(&[])
    }

    fn progress(&self) -> SyncProgress {
        SyncProgress { bytes: self.written, reused: self.reused }
    }

    fn seal(&self) -> Vec<u8> {
        let Some(part) = &self.part else { return Vec::new() };
        let digest = *self.hasher.finalize().as_bytes();
        Sealed { vlsn: part.proof.vlsn, bytes: self.written, digest }.encode()
    }
}

/// Whether it is the last one, and its bytes.
fn decode_piece(answer: &[u8]) -> Option<(bool, &[u8])> {
    let (is_last, bytes) = answer.split_first()?;
    (*is_last <= 1).then_some((*is_last == 1, bytes))
}

fn path(order: &SyncOrder) -> PathBuf {
    order.dir.join("checkpoint")
}

/// The digest of the first `len` bytes of a file, or of all if it is shorter.
pub(in crate::sync) fn digest_front(file: &dyn EnvFile, len: u64) -> io::Result<blake3::Hasher> {
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

/// A whole checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    vlsn: Vlsn,
    bytes: u64,
    /// BLAKE3 of these.
    digest: [u8; 32],
}

impl Sealed {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_vlsn(self.vlsn);
        out.put_u64(self.bytes);
        out.put_bytes(&self.digest);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let sealed = Self {
            vlsn: r.vlsn("checkpoint VLSN")?,
            bytes: r.u64("checkpoint bytes")?,
            digest: r.array("checkpoint digest")?,
        };
        r.finish("checkpoint")?;
        Ok(sealed)
    }
}

pub(super) fn prepare(
    order: &SyncOrder,
    sealed: &Sealed,
    machine: &dyn StateMachine,
    pace: &Pace,
) -> Result<()> {
    let mut source = Verified::open(order, sealed, Some(pace))?;
    machine.prepare_checkpoint(&sealed.digest, sealed.vlsn, &mut source)?;
    read_rest(order, &mut source)
}

pub(super) fn install(
    order: &SyncOrder,
    sealed: &Sealed,
    machine: &dyn StateMachine,
) -> Result<()> {
    if machine.install_prepared(&sealed.digest)? {
        return Ok(());
    }
    let mut source = Verified::open(order, sealed, None)?;
    machine.install_checkpoint(sealed.vlsn, &mut source)?;
    read_rest(order, &mut source)
}

/// What the machine left unread is verified too.
fn read_rest(order: &SyncOrder, source: &mut impl Read) -> Result<()> {
    io::copy(source, &mut io::sink()).map_err(|e| LogError::io("read", &path(order), e))?;
    Ok(())
}

/// Reads a file and fails at its end if its digest is not the expected one.
struct Verified<'a> {
    file: Arc<dyn EnvFile>,
    at: u64,
    len: u64,
    hasher: blake3::Hasher,
    expected: [u8; 32],
    pace: Option<&'a Pace>,
}

impl<'a> Verified<'a> {
    fn open(order: &SyncOrder, sealed: &Sealed, pace: Option<&'a Pace>) -> Result<BufReader<Self>> {
        let path = path(order);
        let file =
            order.env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        let Sealed { bytes: len, digest: expected, .. } = *sealed;
        let hasher = blake3::Hasher::new();
        let verified = Self { file, at: 0, len, hasher, expected, pace };
        Ok(BufReader::with_capacity(READ_BYTES, verified))
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.pace.is_some_and(Pace::is_cancelled) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let wanted = (self.len - self.at).min(buf.len() as u64) as usize;
        if wanted == 0 {
            if self.at == self.len && self.hasher.finalize() != self.expected && !buf.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checkpoint's bytes have another digest than those that came",
                ));
            }
            return Ok(0);
        }
        let read = self.file.read_passing(&mut buf[..wanted], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buf[..read]);
        self.at += read as u64;
        if let Some(pace) = self.pace {
            pace.advance(read as u64);
        }
        Ok(read)
    }
}
