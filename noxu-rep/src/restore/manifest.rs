//! Manifest, MARKER and COMMIT: the small files of a restore.

use std::path::Path;

use noxu_log::env::{Env, read_whole, write_whole};
use noxu_log::{ChainState, LogError};
use noxu_util::checksum::crc;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Lsn, Term, Vlsn};

use crate::error::Result;
use crate::wire::restore::{ManifestHead, SegmentOffer};

pub(super) const MARKER: &str = "MARKER";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const BITMAP: &str = "bitmap";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const TAIL: &str = "tail";
pub(super) const COMMIT: &str = "COMMIT";

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) head: ManifestHead,
    pub(super) segments: Vec<SegmentOffer>,
}

impl Manifest {
    /// A number that stands for the segments: two manifests with the same one have the same blocks.
    pub(super) fn segments_id(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for segment in &self.segments {
            let mut bytes = Vec::new();
            segment.put(&mut bytes);
            hasher.update(&bytes);
        }
        let hash = hasher.finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(id)
    }

    pub(super) fn blocks(&self) -> u32 {
        self.segments.iter().map(|segment| segment.blocks.len() as u32).sum()
    }

    pub(super) fn save(&self, env: &dyn Env, dir: &Path) -> Result<()> {
        let mut out = Vec::new();
        self.head.put(&mut out);
        for segment in &self.segments {
            segment.put(&mut out);
        }
        save(env, &dir.join(MANIFEST), *b"NXMF", &out)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(MANIFEST), *b"NXMF", |r| {
            let head = ManifestHead::read(r)?;
            let mut segments = Vec::new();
            for _ in 0..head.segments {
                segments.push(SegmentOffer::read(r)?);
            }
            Ok(Self { head, segments })
        })
    }
}

/// A restore was begun: its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) session: u64,
}

impl Marker {
    pub(super) fn save(self, env: &dyn Env, dir: &Path) -> Result<()> {
        save(env, &dir.join(MARKER), *b"NXMK", &self.session.to_le_bytes())
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(MARKER), *b"NXMK", |r| Ok(Self { session: r.u64("session")? }))
    }
}

/// Everything is fetched, verified and synced: what there is besides the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Commit {
    /// The session that fetched it: another session's `COMMIT` means nothing.
    pub(super) session: u64,
    /// The end of the last segment.
    pub(super) base: ChainState,
    pub(super) base_lsn: Lsn,
    /// The last entry of the tail.
    pub(super) last: Vlsn,
    pub(super) checkpoint_bytes: u64,
    pub(super) checkpoint_digest: [u8; 32],
    pub(super) tail_bytes: u64,
}

impl Commit {
    pub(super) fn save(&self, env: &dyn Env, dir: &Path) -> Result<()> {
        let mut out = Vec::new();
        out.put_u64(self.session);
        out.put_vlsn(self.base.vlsn);
        out.put_u32(self.base.term.number());
        out.put_u64(self.base.fingerprint.as_u64());
        out.put_u64(self.base_lsn.as_u64());
        out.put_vlsn(self.last);
        out.put_u64(self.checkpoint_bytes);
        out.put_bytes(&self.checkpoint_digest);
        out.put_u64(self.tail_bytes);
        save(env, &dir.join(COMMIT), *b"NXCM", &out)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(COMMIT), *b"NXCM", |r| {
            Ok(Self {
                session: r.u64("session")?,
                base: ChainState {
                    vlsn: r.vlsn("base VLSN")?,
                    term: Term::new(r.u32("base term")?),
                    fingerprint: Fingerprint::from_u64(r.u64("base fingerprint")?),
                },
                base_lsn: Lsn::from_u64(r.u64("base LSN")?),
                last: r.vlsn("last VLSN")?,
                checkpoint_bytes: r.u64("checkpoint bytes")?,
                checkpoint_digest: r.array("checkpoint digest")?,
                tail_bytes: r.u64("tail bytes")?,
            })
        })
    }
}

/// Magic, crc32c of the rest, then the body; written so that the file is there whole or not at all.
fn save(env: &dyn Env, path: &Path, magic: [u8; 4], body: &[u8]) -> Result<()> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.put_bytes(&magic);
    out.put_u32(crc(body));
    out.put_bytes(body);
    Ok(write_whole(env, path, &out)?)
}

fn load<T>(
    env: &dyn Env,
    path: &Path,
    magic: [u8; 4],
    decode: impl FnOnce(&mut Reader<'_>) -> Result<T, CodecError>,
) -> Result<Option<T>> {
    if !env.exists(path).map_err(|e| LogError::io("look for", path, e))? {
        return Ok(None);
    }
    let bytes = read_whole(env, path)?;
    let damaged = |reason: String| LogError::DamagedFile { path: path.to_owned(), reason };
    let Some((head, body)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(format!("{} bytes found, at least 8 expected", bytes.len())).into());
    };
    let sum = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if head[..4] != magic || sum != crc(body) {
        return Err(damaged("its magic or checksum is wrong".to_owned()).into());
    }
    let mut reader = Reader::new(body);
    let value = decode(&mut reader).and_then(|value| reader.finish("file").map(|()| value));
    Ok(Some(value.map_err(|e| damaged(e.to_string()))?))
}
