//! Taking: a checkpoint on its way to the disk. It comes from one source; a later session goes on where
//! the last sync was, as long as that source keeps it.
//!
//! # Invariants
//! - What is saved as had was synced before. After the power went it is a hint, and verified before it is
//!   gone on with; it always is before it is committed, where it is made ready.

use std::io::{self, IoSlice, Read};
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{EnvFile, OpenMode};
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Name, Vlsn};

use super::{Question, StreamSync};
use crate::error::{RepError, Result};
use crate::sync::method::{
    Answer, Coming, Opened, Proof, SessionHost, SyncOrder, SyncProgress, SyncSession,
};
use crate::sync::{CheckpointSource, StateMachine};

/// Pieces that are asked for ahead.
const PIECES: u64 = 4;

/// What stands for the answers so far: each digest goes over the one before it and that of the next
/// answer, so that whoever goes on need not read what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Chain([u8; 32]);

impl Chain {
    fn push(&mut self, digest: &[u8; 32]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(digest);
        self.0 = *hasher.finalize().as_bytes();
    }

    /// The answer that brought `piece`.
    fn push_piece(&mut self, is_last: bool, piece: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[u8::from(is_last)]).update(piece);
        self.push(hasher.finalize().as_bytes());
    }
}

/// A checkpoint, and how much of it is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    source: Name,
    /// Its number there.
    id: u64,
    proof: Proof,
    piece_bytes: u32,
    /// Bytes from its front on: whole pieces, but for the last one.
    durable: u64,
    /// Where the last piece, which may be empty, begins; `None` as long as it has not come.
    last: Option<u64>,
    /// Over these.
    chain: Chain,
    /// The machine's start ([`Env::boot`](noxu_log::env::Env::boot)) since when they are: until the next one
    /// they are not read again.
    boot: Option<u64>,
}

impl Part {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_text(self.source.as_str());
        out.put_u64(self.id);
        self.proof.put(&mut out);
        out.put_u32(self.piece_bytes);
        out.put_u64(self.durable);
        out.put_bytes(&self.chain.0);
        for of in [self.last, self.boot] {
            out.put_bool(of.is_some());
            out.put_u64(of.unwrap_or_default());
        }
        out
    }

    /// Stands for what is fetched.
    fn offer(&self) -> [u8; 32] {
        let mut of = Vec::new();
        of.put_text(self.source.as_str());
        of.put_u64(self.id);
        self.proof.put(&mut of);
        *blake3::hash(&of).as_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let part = Self {
            source: r.name("source")?,
            id: r.u64("checkpoint")?,
            proof: Proof::read(&mut r, "checkpoint proof")?,
            piece_bytes: r.u32("piece bytes")?,
            durable: r.u64("checkpoint bytes")?,
            chain: Chain(r.array("checkpoint chain")?),
            last: read_option(&mut r, "last piece")?,
            boot: read_option(&mut r, "boot")?,
        };
        r.finish("checkpoint")?;
        Ok(part)
    }
}

fn read_option(r: &mut Reader<'_>, what: &'static str) -> Result<Option<u64>, CodecError> {
    let is_some = r.bool(what)?;
    Ok(Some(r.u64(what)?).filter(|_| is_some))
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
    /// Over what is written.
    chain: Chain,
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
            chain: Chain::default(),
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
        let boot = self.order.env.boot();
        let (mut kept, mut last, mut chain) = (0, None, Chain::default());
        if let Some(part) = &self.part
            && (&part.source, part.id) == (opened.source, opened.id)
            && part.piece_bytes == self.tuning.piece_bytes
            && part.durable >= first
        {
            let is_known =
                boot.is_some() && part.boot == boot && file.len().map_err(wrap)? >= part.durable;
            if is_known || chain_front(&*file, part).map_err(wrap)? == part.chain {
                (kept, last, chain) = (part.durable, part.last, part.chain);
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
            piece_bytes: self.tuning.piece_bytes,
            durable: kept,
            last,
            chain,
            boot,
        };
        host.save(&part.encode())?;
        file.set_len(kept).map_err(wrap)?;
        (self.part, self.file, self.chain) = (Some(part), Some(file), chain);
        (self.written, self.asked, self.reused) = (kept, kept, kept);
        Ok(true)
    }

    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        let Some(part) = self.part.as_ref().filter(|part| part.last.is_none()) else {
            return Ok(());
        };
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
        let most = self.tuning.piece_bytes as usize;
        // Behind the end there were questions too.
        if part.last.is_some() || answer.number != self.written {
            return Ok(());
        }
        if answer.proof != part.proof || bytes.len() > most || (bytes.len() < most && !is_last) {
            let found = format!("{} bytes through {}", bytes.len(), answer.proof.vlsn);
            return Err(RepError::protocol("", "a piece of the checkpoint", found));
        }
        let path = path(&self.order);
        file.write_passing(&[IoSlice::new(bytes)], self.written)
            .map_err(|e| LogError::io("write", &path, e))?;
        host.hand_over(self.written, bytes, answer.digest);
        self.chain.push(&answer.digest);
        part.last = is_last.then_some(self.written);
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
            part.chain = self.chain;
            host.save(&part.encode())?;
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.last.is_some())
    }

    fn proofs(&self) -> Vec<Proof> {
        self.part.iter().map(|part| part.proof).collect()
    }

    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        (self.part, self.file) = (None, None);
        host.save(&[])
    }

    fn progress(&self) -> SyncProgress {
        SyncProgress { bytes: self.written, reused: self.reused }
    }

    fn seal(&self) -> Vec<u8> {
        let Some(part) = &self.part else { return Vec::new() };
        let Part { piece_bytes, last, .. } = *part;
        let (bytes, last, chain) = (self.written, last.unwrap_or(self.written), self.chain);
        let (offer, vlsn) = (part.offer(), part.proof.vlsn);
        Sealed { offer, vlsn, piece_bytes, bytes, last, chain }.encode()
    }
}

fn path(order: &SyncOrder) -> PathBuf {
    order.dir.join("checkpoint")
}

/// Whether it is the last one, and its bytes.
fn decode_piece(answer: &[u8]) -> Option<(bool, &[u8])> {
    let (is_last, bytes) = answer.split_first()?;
    (*is_last <= 1).then_some((*is_last == 1, bytes))
}

/// The chain over what is durable of `part`, or over as much of it as the file has.
fn chain_front(file: &dyn EnvFile, part: &Part) -> io::Result<Chain> {
    let (mut chain, mut at, mut piece) = (Chain::default(), 0, vec![0; part.piece_bytes as usize]);
    while at < part.durable || part.last == Some(at) {
        let most = part.durable.saturating_sub(at).min(piece.len() as u64) as usize;
        let read = file.read_passing(&mut piece[..most], at)?;
        chain.push_piece(part.last == Some(at), &piece[..read]);
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(chain)
}

/// A checkpoint that is whole, or as much of it as was written when this was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    /// Stands for whose it is, and of what: the same from the beginning on.
    offer: [u8; 32],
    vlsn: Vlsn,
    piece_bytes: u32,
    bytes: u64,
    /// Where the last piece begins.
    last: u64,
    chain: Chain,
}

impl Sealed {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_bytes(&self.offer);
        out.put_vlsn(self.vlsn);
        out.put_u32(self.piece_bytes);
        out.put_u64(self.bytes);
        out.put_u64(self.last);
        out.put_bytes(&self.chain.0);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let sealed = Self {
            offer: r.array("offer")?,
            vlsn: r.vlsn("checkpoint VLSN")?,
            piece_bytes: r.u32("piece bytes")?,
            bytes: r.u64("checkpoint bytes")?,
            last: r.u64("last piece")?,
            chain: Chain(r.array("checkpoint chain")?),
        };
        r.finish("checkpoint")?;
        Ok(sealed)
    }
}

pub(super) fn prepare(
    order: &SyncOrder,
    coming: &Coming,
    machine: &dyn StateMachine,
) -> Result<()> {
    let first = Sealed::decode(coming.first())?;
    let mut source = Verified::open(order, first, Some(coming))?;
    machine.prepare_checkpoint(&first.offer, first.vlsn, &mut source)?;
    read_rest(order, &mut source)
}

pub(super) fn install(
    order: &SyncOrder,
    sealed: &Sealed,
    machine: &dyn StateMachine,
) -> Result<()> {
    if machine.install_prepared(&sealed.offer)? {
        return Ok(());
    }
    // A process that was killed goes on with what it had made ready: so an installation that takes longer
    // than a node is left alone ends too.
    let mut source = Verified::open(order, *sealed, None)?;
    machine.prepare_checkpoint(&sealed.offer, sealed.vlsn, &mut source)?;
    if source.was_read() {
        read_rest(order, &mut source)?;
        if machine.install_prepared(&sealed.offer)? {
            return Ok(());
        }
        source = Verified::open(order, *sealed, None)?;
    }
    machine.install_checkpoint(sealed.vlsn, &mut source)?;
    read_rest(order, &mut source)
}

/// What the machine left unread is verified too.
fn read_rest(order: &SyncOrder, source: &mut impl Read) -> Result<()> {
    io::copy(source, &mut io::sink()).map_err(|e| LogError::io("read", &path(order), e))?;
    Ok(())
}

/// Reads a checkpoint piece by piece, as far as it is there, and fails at its end if what stands for the
/// pieces is not what is expected.
struct Verified<'a> {
    file: Arc<dyn EnvFile>,
    sealed: Sealed,
    /// Whether that is of all of it: else the rest is waited for.
    is_whole: bool,
    /// Where it comes from, and where is told how much was read.
    coming: Option<&'a Coming>,
    /// The piece that was read last, where it begins, the chain before it, and how much of it was handed out.
    piece: Vec<u8>,
    piece_at: u64,
    chain_before: Chain,
    taken: usize,
    /// Where the next one begins.
    at: u64,
    chain: Chain,
    has_ended: bool,
}

impl<'a> Verified<'a> {
    /// Opens what is sealed, or with `coming` what will be.
    fn open(order: &SyncOrder, sealed: Sealed, coming: Option<&'a Coming>) -> Result<Self> {
        let path = path(order);
        let file =
            order.env.open(&path, OpenMode::Read).map_err(|e| LogError::io("open", &path, e))?;
        Ok(Self {
            file,
            sealed,
            is_whole: coming.is_none(),
            coming,
            piece: Vec::new(),
            piece_at: 0,
            chain_before: Chain::default(),
            taken: 0,
            at: 0,
            chain: Chain::default(),
            has_ended: false,
        })
    }

    /// Reads the next piece; none at the end.
    fn read_piece(&mut self) -> io::Result<()> {
        self.await_piece()?;
        let piece_bytes = u64::from(self.sealed.piece_bytes);
        let left = if self.is_whole {
            self.sealed.bytes.checked_sub(self.at).ok_or(io::ErrorKind::InvalidData)?
        } else {
            piece_bytes
        };
        let wanted = left.min(piece_bytes) as usize;
        let is_last = self.is_whole && self.at == self.sealed.last;
        self.piece.clear();
        (self.piece_at, self.chain_before, self.taken) = (self.at, self.chain, 0);
        if wanted == 0 && (self.has_ended || !is_last) {
            return self.check_end();
        }
        if let Some(handed) = self.coming.and_then(|coming| coming.take_over(self.at, wanted)) {
            self.chain.push(&handed.digest);
            self.piece = handed.bytes;
        } else {
            self.piece.resize(wanted, 0);
            if self.file.read_passing(&mut self.piece, self.at)? < wanted {
                self.piece.clear();
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.chain.push_piece(is_last, &self.piece);
        }
        self.at += wanted as u64;
        if let Some(coming) = self.coming {
            coming.advance(wanted as u64);
        }
        if wanted == 0 { self.check_end() } else { Ok(()) }
    }

    /// Waits until the next piece is there, or all of it.
    fn await_piece(&mut self) -> io::Result<()> {
        let Some(coming) = self.coming else { return Ok(()) };
        coming.check().map_err(io::Error::other)?;
        if !self.is_whole {
            let through = self.at + u64::from(self.sealed.piece_bytes);
            if let Some(sealed) = coming.wait_for(through).map_err(io::Error::other)? {
                self.sealed = Sealed::decode(&sealed).map_err(io::Error::other)?;
                self.is_whole = true;
            }
        }
        Ok(())
    }

    const fn was_read(&self) -> bool {
        self.at > 0 || self.has_ended
    }

    fn check_end(&mut self) -> io::Result<()> {
        self.has_ended = true;
        if self.chain == self.sealed.chain {
            return Ok(());
        }
        let what = "the checkpoint's bytes have another digest than those that came";
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

/// A place is that of a piece, the chain before it, and how much of it was handed out.
impl CheckpointSource for Verified<'_> {
    fn place(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        out.put_u32(self.sealed.piece_bytes);
        out.put_u64(self.piece_at);
        out.put_bytes(&self.chain_before.0);
        out.put_u32(self.taken as u32);
        Some(out)
    }

    fn go_on_at(&mut self, place: &[u8]) -> io::Result<bool> {
        let mut r = Reader::new(place);
        let mut fields = || {
            let piece_bytes = r.u32("piece bytes")?;
            let at = r.u64("piece")?;
            let chain = Chain(r.array("chain")?);
            let taken = r.u32("taken")? as usize;
            r.clone().finish("place")?;
            Ok::<_, CodecError>((piece_bytes, at, chain, taken))
        };
        let Ok((piece_bytes, at, chain, taken)) = fields() else { return Ok(false) };
        let is_past = self.is_whole && at > self.sealed.bytes;
        if self.was_read() || piece_bytes != self.sealed.piece_bytes || is_past {
            return Ok(false);
        }
        (self.at, self.chain) = (at, chain);
        self.read_piece()?;
        if taken > self.piece.len() {
            let found = format!("a piece of {} bytes, of which {taken} were had", self.piece.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, found));
        }
        self.taken = taken;
        Ok(true)
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.piece.len() && !buf.is_empty() {
            self.read_piece()?;
        }
        let rest = &self.piece[self.taken..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use noxu_log::env::FaultEnv;

    use super::*;

    const PIECE: usize = 100;

    /// An order with a checkpoint of 950 bytes on its disk, and what seals it.
    fn checkpoint(env: &FaultEnv) -> (SyncOrder, Sealed, Vec<u8>) {
        let order = SyncOrder { env: Arc::new(env.clone()), dir: "/state".into() };
        order.env.create_dir_all(&order.dir).unwrap();
        let bytes: Vec<u8> = (0..950u32).map(|n| (n % 251) as u8).collect();
        let file = order.env.open(&path(&order), OpenMode::CreateOrOpen).unwrap();
        file.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
        let (mut chain, last) = (Chain::default(), 900);
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            chain.push_piece(at * PIECE == last, piece);
        }
        let (vlsn, piece_bytes) = (Vlsn::new(7), PIECE as u32);
        let (bytes_len, last) = (bytes.len() as u64, last as u64);
        let offer = [1; 32];
        (order, Sealed { offer, vlsn, piece_bytes, bytes: bytes_len, last, chain }, bytes)
    }

    fn read(source: &mut Verified<'_>, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        source.take(count as u64).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_source_goes_on_at_any_place_of_another_one_and_verifies_the_rest() {
        let env = FaultEnv::new();
        let (order, sealed, bytes) = checkpoint(&env);
        for read_before in 0..=bytes.len() {
            let mut first = Verified::open(&order, sealed, None).unwrap();
            assert!(read(&mut first, read_before) == bytes[..read_before]);
            let place = first.place().unwrap();
            for coming in [None, Some(Coming::whole(sealed.encode()))] {
                let mut next = Verified::open(&order, sealed, coming.as_ref()).unwrap();
                assert!(next.go_on_at(&place).unwrap());
                assert!(read(&mut next, 1000) == bytes[read_before..], "{read_before}");
                assert!(!next.go_on_at(&place).unwrap(), "it has been read");
            }
        }
    }

    #[test]
    fn what_rotted_behind_a_place_is_found_and_a_place_of_other_pieces_is_none() {
        let env = FaultEnv::new();
        let (order, sealed, _) = checkpoint(&env);
        let mut first = Verified::open(&order, sealed, None).unwrap();
        read(&mut first, 420);
        let place = first.place().unwrap();
        let open = |sealed| Verified::open(&order, sealed, None).unwrap();
        for other in [&place[1..], b"", &[&place[..], b"."].concat()] {
            assert!(!open(sealed).go_on_at(other).unwrap());
        }
        let other = Sealed { piece_bytes: 50, ..sealed };
        assert!(!open(other).go_on_at(&place).unwrap());
        let shorter = Sealed { bytes: 300, last: 200, ..sealed };
        assert!(!open(shorter).go_on_at(&place).unwrap());
        for (at, is_found) in [(100, false), (410, true), (700, true)] {
            env.corrupt(&path(&order), at, 1).unwrap();
            let mut next = open(sealed);
            assert!(next.go_on_at(&place).unwrap());
            let ended = next.read_to_end(&mut Vec::new());
            assert_eq!(ended.is_err(), is_found, "byte {at}");
            env.corrupt(&path(&order), at, 1).unwrap();
        }
    }
}
