//! Manifest, MARKER, COMMIT and what is had of the state: the small files of a restore.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use noxu_log::env::{Aside, Env, read_whole, write_aside, write_whole};
use noxu_log::{ChainState, LogError};
use noxu_util::checksum::crc;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Lsn, Name, Term, Vlsn};

use crate::core::recovery::RecoveryId;
use crate::error::{RepError, Result};
use crate::sync::method::StateSync;
use crate::wire::restore::{ManifestHead, SegmentOffer};

pub(super) const MARKER: &str = "MARKER";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const BITMAP: &str = "bitmap";
pub(super) const VERIFIED: &str = "verified";
/// The directory of the method by which the state comes.
pub(super) const STATE: &str = "state";
pub(super) const LIVE: &str = "live";
const SAVED: &str = "state.saved";
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
        save(env, &dir.join(MANIFEST), *b"NXM3", &out)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(MANIFEST), *b"NXM3", |r| {
            let head = ManifestHead::read(r)?;
            let mut segments = Vec::new();
            for _ in 0..head.segments {
                segments.push(SegmentOffer::read(r)?);
            }
            Ok(Self { head, segments })
        })
    }
}

/// Segments from the front that were whole, verified and synced, and the machine's start since when they
/// are: until the next one nothing but a disk that rots can have changed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) boot: u64,
    /// Their numbers and digests, in their order.
    pub(super) segments: Vec<(u32, [u8; 32])>,
    /// The end of the last of them.
    pub(super) end: ChainState,
    pub(super) end_lsn: Lsn,
    pub(super) last_sync: Vlsn,
    pub(super) last_txn_end: Vlsn,
}

impl Verified {
    pub(super) fn save(&self, env: &dyn Env, dir: &Path) -> Result<()> {
        let mut out = Vec::new();
        out.put_u64(self.boot);
        out.put_u32(self.segments.len() as u32);
        for (number, digest) in &self.segments {
            out.put_u32(*number);
            out.put_bytes(digest);
        }
        put_end(&mut out, &self.end, self.end_lsn);
        out.put_vlsn(self.last_sync);
        out.put_vlsn(self.last_txn_end);
        save(env, &dir.join(VERIFIED), *b"NXV1", &out)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        let loaded = load(env, &dir.join(VERIFIED), *b"NXV1", |r| {
            let boot = r.u64("boot")?;
            let mut segments = Vec::new();
            for _ in 0..r.u32("segments")? {
                segments.push((r.u32("segment")?, r.array("digest")?));
            }
            let (end, end_lsn) = read_end(r)?;
            let (last_sync, last_txn_end) = (r.vlsn("sync")?, r.vlsn("transaction end")?);
            Ok(Self { boot, segments, end, end_lsn, last_sync, last_txn_end })
        });
        hint(loaded)
    }
}

/// A restore was begun: its number, and that of the master's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) session: u64,
    pub(super) recovery: RecoveryId,
}

impl Marker {
    pub(super) fn save(self, env: &dyn Env, dir: &Path) -> Result<()> {
        let mut out = Vec::new();
        out.put_u64(self.session);
        out.put_u64(self.recovery.0);
        save(env, &dir.join(MARKER), *b"NXM1", &out)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(MARKER), *b"NXM1", |r| {
            Ok(Self { session: r.u64("session")?, recovery: RecoveryId(r.u64("recovery")?) })
        })
    }
}

/// What a session of a method keeps for the next one.
#[derive(Debug)]
pub(super) struct Saved {
    env: Arc<dyn Env>,
    dir: PathBuf,
    method: Name,
    signature: u64,
}

impl Saved {
    pub(super) fn new(env: Arc<dyn Env>, dir: &Path, method: &dyn StateSync) -> Self {
        let (method, signature) = (method.name(), method.signature());
        Self { env, dir: dir.to_owned(), method, signature }
    }

    /// Replaces what was kept; durable on return.
    pub(super) fn save(&self, bytes: &[u8]) -> Result<()> {
        let mut out = Vec::new();
        out.put_text(self.method.as_str());
        out.put_u64(self.signature);
        out.put_bytes(bytes);
        save(&*self.env, &self.dir.join(SAVED), *b"NXS1", &out)
    }

    /// What is kept of the same method in the same form. It is a hint: damaged, there is none.
    pub(super) fn load(&self) -> Result<Option<Vec<u8>>> {
        let loaded = load(&*self.env, &self.dir.join(SAVED), *b"NXS1", |r| {
            let of = (r.name("method")?, r.u64("signature")?);
            let bytes = r.bytes("saved", r.remaining())?;
            Ok((of, bytes.to_vec()))
        });
        let ours = |((name, signature), bytes): ((Name, u64), Vec<u8>)| {
            (name == self.method && signature == self.signature).then_some(bytes)
        };
        Ok(hint(loaded)?.and_then(ours))
    }
}

/// The whole state, as its method knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommittedState {
    pub(super) method: Name,
    /// All of it is right once the log is applied through it.
    pub(super) through: Vlsn,
    /// What the method needs to know to install it.
    pub(super) sealed: Vec<u8>,
}

/// Everything is fetched, verified and synced: what there is besides the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    /// The session that fetched it: another session's `COMMIT` means nothing.
    pub(super) session: u64,
    /// The end of the last segment.
    pub(super) base: ChainState,
    pub(super) base_lsn: Lsn,
    /// The end of the log behind the segments; the same if that is empty.
    pub(super) last: ChainState,
    pub(super) last_lsn: Lsn,
    /// The configuration of the group at the end.
    pub(super) group_config: Bytes,
    /// `None` if the log is whole and the state begins with it.
    pub(super) state: Option<CommittedState>,
}

impl Commit {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join(COMMIT)
    }

    /// Writes it into `path`, [`Commit::path`], whole but for the name: what is left to do needs no room.
    pub(super) fn write_aside<'a>(&self, env: &'a dyn Env, path: &'a Path) -> Result<Aside<'a>> {
        let mut out = Vec::new();
        out.put_u64(self.session);
        for (chain, lsn) in [(&self.base, self.base_lsn), (&self.last, self.last_lsn)] {
            put_end(&mut out, chain, lsn);
        }
        out.put_short_bytes(&self.group_config);
        out.put_bool(self.state.is_some());
        if let Some(state) = &self.state {
            out.put_text(state.method.as_str());
            out.put_vlsn(state.through);
            out.put_u32(state.sealed.len() as u32);
            out.put_bytes(&state.sealed);
        }
        Ok(write_aside(env, path, &framed(*b"NXC4", &out))?)
    }

    pub(super) fn load(env: &dyn Env, dir: &Path) -> Result<Option<Self>> {
        load(env, &dir.join(COMMIT), *b"NXC4", |r| {
            let session = r.u64("session")?;
            let (base, base_lsn) = read_end(r)?;
            let (last, last_lsn) = read_end(r)?;
            let most = noxu_log::MAX_GROUP_CONFIG_BYTES;
            let group_config = Bytes::copy_from_slice(r.short_bytes("configuration", most)?);
            let state = if r.bool("state")? {
                let (method, through) = (r.name("method")?, r.vlsn("state VLSN")?);
                let len = r.u32("sealed")? as usize;
                let sealed = r.bytes("sealed", len)?.to_vec();
                Some(CommittedState { method, through, sealed })
            } else {
                None
            };
            Ok(Self { session, base, base_lsn, last, last_lsn, group_config, state })
        })
    }
}

fn put_end(out: &mut Vec<u8>, chain: &ChainState, lsn: Lsn) {
    out.put_vlsn(chain.vlsn);
    out.put_u32(chain.term.number());
    out.put_u64(chain.fingerprint.as_u64());
    out.put_u64(lsn.as_u64());
}

fn read_end(r: &mut Reader<'_>) -> Result<(ChainState, Lsn), CodecError> {
    let chain = ChainState {
        vlsn: r.vlsn("VLSN")?,
        term: Term::new(r.u32("term")?),
        fingerprint: Fingerprint::from_u64(r.u64("fingerprint")?),
    };
    Ok((chain, Lsn::from_u64(r.u64("LSN")?)))
}

/// What says only what is had is a hint: damaged, it says nothing.
pub(super) fn hint<T>(loaded: Result<Option<T>>) -> Result<Option<T>> {
    match loaded {
        Err(RepError::Log(LogError::DamagedFile { path, reason })) => {
            tracing::warn!(path = %path.display(), reason, "the restore does without it");
            Ok(None)
        }
        loaded => loaded,
    }
}

/// Written so that the file is there whole or not at all.
fn save(env: &dyn Env, path: &Path, magic: [u8; 4], body: &[u8]) -> Result<()> {
    Ok(write_whole(env, path, &framed(magic, body))?)
}

/// Magic, crc32c of the rest, then the body.
fn framed(magic: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + body.len());
    out.put_bytes(&magic);
    out.put_u32(crc(body));
    out.put_bytes(body);
    out
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
