//! Kept: what a session has of a state: one file of answers as they came, and how far it is with each part of
//! the keys.
//!
//! ```text
//! file: part u16 | bytes u32 | pieces     for each answer
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{EnvFile, OpenMode};
use noxu_util::Vlsn;
use noxu_util::codec::{CodecError, Put, Reader};

use super::{
    MAX_PARTS, MAX_RANGE_KEY_BYTES, MAX_SPLIT_BYTES, MAX_TOKEN_BYTES, Moment, Pairs, Piece,
};
use crate::error::Result;
use crate::sync::method::{Coming, MAX_ANSWER_BYTES, Proof, SyncOrder};

/// Of which moment an answer was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) proof: Proof,
    pub(super) token: Vec<u8>,
}

impl Seen {
    fn put(&self, out: &mut Vec<u8>) {
        self.proof.put(out);
        out.put_short_bytes(&self.token);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, CodecError> {
        let proof = Proof::read(r, "seen.proof")?;
        Ok(Self { proof, token: r.short_bytes("seen.token", MAX_TOKEN_BYTES)?.to_vec() })
    }
}

/// How far a session is with one part of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Where the next question begins.
    pub(super) from: Vec<u8>,
    /// Bytes that are here of the value of that key.
    pub(super) had: u64,
    pub(super) is_done: bool,
}

/// How far a session is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Had {
    /// Where one part ends and the next begins.
    pub(super) splits: Vec<Vec<u8>>,
    /// One more than there are split points.
    pub(super) parts: Vec<Part>,
    /// Of which moments the answers are, each once.
    pub(super) seen: Vec<Seen>,
    /// Bytes of the file, and their BLAKE3.
    pub(super) bytes: u64,
    pub(super) digest: [u8; 32],
}

impl Had {
    /// Nothing yet, of parts that are divided by `splits`.
    pub(super) fn nothing(splits: Vec<Vec<u8>>) -> Self {
        let from = std::iter::once(Vec::new()).chain(splits.iter().cloned());
        let parts = from.map(|from| Part { from, had: 0, is_done: false }).collect();
        let digest = *blake3::Hasher::new().finalize().as_bytes();
        Self { splits, parts, seen: Vec::new(), bytes: 0, digest }
    }

    /// Where a part ends; `None` for the last one.
    pub(super) fn below(&self, part: usize) -> Option<&[u8]> {
        self.splits.get(part).map(Vec::as_slice)
    }

    /// An answer is of this moment.
    pub(super) fn note(&mut self, proof: Proof, token: &[u8]) {
        if self.seen.iter().all(|seen| seen.proof != proof) {
            self.seen.push(Seen { proof, token: token.to_vec() });
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_splits(&self.splits, &mut out);
        for part in &self.parts {
            out.put_short_bytes(&part.from);
            out.put_u64(part.had);
            out.put_bool(part.is_done);
        }
        out.put_u32(self.seen.len() as u32);
        self.seen.iter().for_each(|seen| seen.put(&mut out));
        out.put_u64(self.bytes);
        out.put_bytes(&self.digest);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let splits = read_splits(&mut r)?;
        let mut parts = Vec::new();
        for _ in 0..=splits.len() {
            parts.push(Part {
                from: r.short_bytes("part.from", MAX_RANGE_KEY_BYTES + 1)?.to_vec(),
                had: r.u64("part.had")?,
                is_done: r.bool("part.is_done")?,
            });
        }
        let mut seen = Vec::new();
        for _ in 0..r.u32("moments")? {
            seen.push(Seen::read(&mut r)?);
        }
        let had = Self { splits, parts, seen, bytes: r.u64("bytes")?, digest: r.array("digest")? };
        r.finish("what is had")?;
        Ok(had)
    }

    pub(super) fn seal(&self) -> Sealed {
        let oldest = self.seen.iter().min_by_key(|seen| seen.proof.vlsn);
        let after = oldest.map(|seen| Moment { vlsn: seen.proof.vlsn, token: seen.token.clone() });
        let through = self.seen.iter().map(|seen| seen.proof.vlsn).max().unwrap_or_default();
        Sealed {
            after: after.unwrap_or(Moment { vlsn: through, token: Vec::new() }),
            through,
            parts: self.parts.len() as u16,
            bytes: self.bytes,
            digest: self.digest,
        }
    }
}

pub(super) fn put_splits(splits: &[Vec<u8>], out: &mut Vec<u8>) {
    out.put_u16(splits.len() as u16);
    for split in splits {
        out.put_short_bytes(split);
    }
}

/// Split points, if they are ascending.
pub(super) fn read_splits(r: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, CodecError> {
    let count = usize::from(r.u16("split points")?);
    let wrong =
        |found: String, expected| CodecError::OutOfRange { what: "split points", found, expected };
    if count >= MAX_PARTS {
        return Err(wrong(count.to_string(), "less than 256"));
    }
    let mut splits: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count {
        let split = r.short_bytes("split point", MAX_SPLIT_BYTES)?.to_vec();
        if splits.last().map_or(&[][..], Vec::as_slice) >= split.as_slice() {
            return Err(wrong(format!("{split:02x?}"), "each above the one before"));
        }
        splits.push(split);
    }
    Ok(splits)
}

/// A whole copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) after: Moment,
    pub(super) through: Vlsn,
    parts: u16,
    pub(super) bytes: u64,
    digest: [u8; 32],
}

impl Sealed {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_vlsn(self.after.vlsn);
        out.put_short_bytes(&self.after.token);
        out.put_vlsn(self.through);
        out.put_u16(self.parts);
        out.put_u64(self.bytes);
        out.put_bytes(&self.digest);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let vlsn = r.vlsn("sealed.after")?;
        let token = r.short_bytes("sealed.token", MAX_TOKEN_BYTES)?.to_vec();
        let sealed = Self {
            after: Moment { vlsn, token },
            through: r.vlsn("sealed.through")?,
            parts: r.u16("sealed.parts")?,
            bytes: r.u64("sealed.bytes")?,
            digest: r.array("sealed.digest")?,
        };
        r.finish("sealed")?;
        Ok(sealed)
    }
}

/// The file of a session.
pub(super) fn path(order: &SyncOrder) -> PathBuf {
    order.dir.join("ranges")
}

/// An answer in the file.
pub(super) fn frame_head(part: usize, bytes: usize) -> [u8; FRAME_HEAD_BYTES] {
    let mut head = [0; FRAME_HEAD_BYTES];
    head[..2].copy_from_slice(&(part as u16).to_le_bytes());
    head[2..].copy_from_slice(&(bytes as u32).to_le_bytes());
    head
}

pub(super) const FRAME_HEAD_BYTES: usize = 6;

/// Where the pieces of an answer are in the file, and their BLAKE3.
struct Frame {
    at: u64,
    len: usize,
    digest: blake3::Hash,
}

/// The pairs of a whole copy, in order. Each byte is verified before the first pair, and again when it is
/// read.
pub(super) struct Copied {
    path: PathBuf,
    file: Arc<dyn EnvFile>,
    /// By their parts, and in these as they came; the next one last.
    frames: Vec<Frame>,
    /// The pieces of the frame that is being read, from `at` on.
    pieces: Vec<u8>,
    at: usize,
    /// A pair whose value goes on.
    open: Option<(Vec<u8>, Vec<u8>)>,
}

impl Copied {
    pub(super) fn open(
        order: &SyncOrder,
        sealed: &Sealed,
        coming: Option<&Coming>,
    ) -> Result<Self> {
        let path = path(order);
        let wrap = |e| LogError::io("read", &path, e);
        let file = order.env.open(&path, OpenMode::Read).map_err(wrap)?;
        let damaged = |reason: String| LogError::DamagedFile { path: path.clone(), reason };
        let mut hasher = blake3::Hasher::new();
        let mut parts: Vec<Vec<Frame>> = (0..sealed.parts).map(|_| Vec::new()).collect();
        let (mut at, mut pieces) = (0, Vec::new());
        while at < sealed.bytes {
            let mut head = [0; FRAME_HEAD_BYTES];
            read_exact(&*file, &mut head, at).map_err(wrap)?;
            let part = usize::from(u16::from_le_bytes([head[0], head[1]]));
            let len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
            if len > MAX_ANSWER_BYTES || part >= parts.len() {
                return Err(damaged(format!("an answer of {len} bytes about part {part}")).into());
            }
            at += FRAME_HEAD_BYTES as u64;
            pieces.resize(len, 0);
            read_exact(&*file, &mut pieces, at).map_err(wrap)?;
            hasher.update(&head).update(&pieces);
            coming.map_or(Ok(()), Coming::check)?;
            parts[part].push(Frame { at, len, digest: blake3::hash(&pieces) });
            at += len as u64;
        }
        if at != sealed.bytes || *hasher.finalize().as_bytes() != sealed.digest {
            return Err(damaged("its bytes have another digest than those that came".into()).into());
        }
        let mut frames: Vec<Frame> = parts.into_iter().flatten().collect();
        frames.reverse();
        Ok(Self { path, file, frames, pieces: Vec::new(), at: 0, open: None })
    }

    /// Reads the next frame; false if there is none.
    fn next_frame(&mut self) -> Result<bool> {
        let Some(frame) = self.frames.pop() else { return Ok(false) };
        self.pieces.resize(frame.len, 0);
        self.at = 0;
        read_exact(&*self.file, &mut self.pieces, frame.at)
            .map_err(|e| LogError::io("read", &self.path, e))?;
        if blake3::hash(&self.pieces) != frame.digest {
            let reason = format!("other bytes at {} than a moment ago", frame.at);
            return Err(LogError::DamagedFile { path: self.path.clone(), reason }.into());
        }
        Ok(true)
    }
}

impl Pairs for Copied {
    fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        loop {
            if self.at == self.pieces.len() {
                if self.next_frame()? {
                    continue;
                }
                return Ok(self.open.take());
            }
            let mut r = Reader::new(&self.pieces[self.at..]);
            let piece = Piece::read(&mut r)?;
            if self.open.as_ref().is_some_and(|(key, _)| key != piece.key) {
                // The rest of it was gone when it was asked for.
                return Ok(self.open.take());
            }
            let (goes_on, end) = (piece.goes_on, self.pieces.len() - r.remaining());
            let (_, value) = self.open.get_or_insert_with(|| (piece.key.to_vec(), Vec::new()));
            value.extend_from_slice(piece.value);
            self.at = end;
            if !goes_on {
                return Ok(self.open.take());
            }
        }
    }
}

fn read_exact(file: &dyn EnvFile, buf: &mut [u8], at: u64) -> std::io::Result<()> {
    let mut had = 0;
    while had < buf.len() {
        match file.read_at(&mut buf[had..], at + had as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => had += read,
        }
    }
    Ok(())
}
