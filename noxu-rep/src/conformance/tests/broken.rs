//! Broken: a small method of its own, right without a bug: the checkpoint in pieces, each appended to a file,
//! what is had saved after a sync. Each bug is one that somebody might write.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::{EnvFile, OpenMode, read_whole};
use noxu_util::codec::{Put, Reader};
use noxu_util::{Name, Vlsn};
use parking_lot::Mutex;

use crate::error::{RepError, Result};
use crate::sync::method::*;
use crate::sync::{LogReader, StateMachine};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Break {
    None,
    /// It says that it is whole one answer before it is.
    WholeTooEarly,
    /// The last byte of each answer is not written.
    TailIgnored,
    /// What is had is saved before it is synced, and believed.
    SavedBeforeSynced,
    /// An answer of any length will do.
    TakesAnyAnswer,
    /// All of it is held in memory until the end.
    Hoards,
    /// The state stays what it was.
    InstallsNothing,
    /// What is there when it begins to make the state ready is taken for all of it.
    ReadiesTheFirst,
    /// To make the state ready is to install it.
    InstallsAhead,
    /// What it installs is taken for what came.
    TrustsItsDisk,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Broken {
    pub(super) bug: Break,
}

const PIECE: usize = 1024;

impl StateSync for Broken {
    fn name(&self) -> Name {
        "pieces".parse().unwrap()
    }

    fn signature(&self) -> u64 {
        1
    }

    fn log_part(&self) -> LogPart {
        LogPart::Newest
    }

    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider> {
        Box::new(Provider { node: node.clone(), open: Mutex::default() })
    }

    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> Result<Box<dyn SyncSession>> {
        let had = saved.and_then(|saved| Had::decode(saved).ok());
        Ok(Box::new(Session {
            bug: self.bug,
            order: order.clone(),
            had,
            file: None,
            asked: 0,
            hoard: Vec::new(),
            reused: 0,
        }))
    }

    fn prepare(
        &self,
        order: &SyncOrder,
        coming: &Coming,
        machine: &dyn StateMachine,
    ) -> Result<()> {
        let sealed = match self.bug {
            Break::ReadiesTheFirst => coming.first().to_vec(),
            _ => coming.sealed()?,
        };
        let had = Had::decode(&sealed)?;
        let mut bytes = read_whole(&*order.env, &path(order))?;
        bytes.truncate(had.bytes as usize);
        if bytes.len() as u64 != had.total {
            return Err(RepError::state_machine(format!("{} of {} bytes", bytes.len(), had.total)));
        }
        if self.bug == Break::InstallsAhead {
            machine.install_checkpoint(had.proof.vlsn, &mut &bytes[..])?;
        }
        Ok(())
    }

    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        _log: &dyn LogReader,
    ) -> Result<()> {
        if self.bug == Break::InstallsNothing {
            return Ok(());
        }
        let had = Had::decode(sealed)?;
        let mut bytes = read_whole(&*order.env, &path(order))?;
        bytes.truncate(had.bytes as usize);
        if blake3::hash(&bytes) != had.digest && self.bug != Break::TrustsItsDisk {
            return Err(RepError::state_machine("it is not what came"));
        }
        machine.install_checkpoint(had.proof.vlsn, &mut &bytes[..])
    }
}

/// What is offered, by its number.
type Offered = Vec<(u64, Vlsn, Vec<u8>)>;

struct Provider {
    node: SyncNode,
    open: Mutex<Offered>,
}

impl SyncProvider for Provider {
    fn open(&self) -> Result<Offer> {
        let mut checkpoint = self.node.machine.open_checkpoint()?;
        let mut bytes = Vec::new();
        while checkpoint.read(&mut bytes, 1 << 20)? {}
        let (id, vlsn) = (self.node.env.entropy().max(1), checkpoint.vlsn());
        let offer = offer(id, vlsn, &bytes);
        self.open.lock().push((id, vlsn, bytes));
        Ok(offer)
    }

    fn resume(&self, id: u64) -> Option<Offer> {
        let open = self.open.lock();
        open.iter().find(|(of, ..)| *of == id).map(|(id, vlsn, bytes)| offer(*id, *vlsn, bytes))
    }

    fn read(&self, id: u64, question: &[u8], answer: &mut Vec<u8>) -> Result<Option<Vlsn>> {
        let mut r = Reader::new(question);
        let at = r.u64("at")? as usize;
        let open = self.open.lock();
        let found = open.iter().find(|(of, _, bytes)| *of == id && at <= bytes.len());
        let (_, _, bytes) =
            found.ok_or_else(|| RepError::protocol("", "an offer", id.to_string()))?;
        answer.put_bytes(&bytes[at..bytes.len().min(at + PIECE)]);
        Ok(None)
    }

    fn release(&self, id: u64) {
        self.open.lock().retain(|(of, ..)| *of != id);
    }
}

fn offer(id: u64, through: Vlsn, bytes: &[u8]) -> Offer {
    let mut head = blake3::hash(bytes).as_bytes().to_vec();
    head.put_u64(bytes.len() as u64);
    Offer { id, through, head }
}

#[derive(Debug, Clone)]
struct Had {
    source: Name,
    id: u64,
    proof: Proof,
    digest: blake3::Hash,
    bytes: u64,
    total: u64,
}

impl Had {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_text(self.source.as_str());
        out.put_u64(self.id);
        self.proof.put(&mut out);
        out.put_bytes(self.digest.as_bytes());
        out.put_u64(self.bytes);
        out.put_u64(self.total);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        Ok(Self {
            source: r.name("source")?,
            id: r.u64("id")?,
            proof: Proof::read(&mut r, "proof")?,
            digest: r.array("digest")?.into(),
            bytes: r.u64("bytes")?,
            total: r.u64("total")?,
        })
    }
}

struct Session {
    bug: Break,
    order: SyncOrder,
    had: Option<Had>,
    file: Option<Arc<dyn EnvFile>>,
    asked: u64,
    hoard: Vec<u8>,
    reused: u64,
}

fn path(order: &SyncOrder) -> PathBuf {
    order.dir.join("pieces")
}

impl SyncSession for Session {
    fn earlier(&self) -> Option<(Name, u64)> {
        self.had.as_ref().map(|had| (had.source.clone(), had.id))
    }

    fn begin(&mut self, opened: &Opened<'_>, host: &mut dyn SessionHost) -> Result<bool> {
        let path = path(&self.order);
        let file = self.order.env.open(&path, OpenMode::CreateOrOpen);
        let file = file.map_err(|e| LogError::io("open", &path, e))?;
        let same = |had: &&Had| (&had.source, had.id) == (opened.source, opened.id);
        let had = self.had.as_ref().filter(same).map_or(0, |had| had.bytes);
        let had = if self.bug == Break::Hoards { 0 } else { had };
        let mut head = Reader::new(opened.head);
        let (digest, total) = (head.array("digest")?.into(), head.u64("total")?);
        let (source, id, proof) = (opened.source.clone(), opened.id, opened.proof);
        let had = Had { source, id, proof, digest, bytes: had, total };
        host.save(&had.encode())?;
        (self.asked, self.reused) = (had.bytes, had.bytes);
        self.hoard.clear();
        (self.had, self.file) = (Some(had), Some(file));
        Ok(true)
    }

    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        let total = self.had.as_ref().map_or(0, |had| had.total);
        while self.asked < total && host.ask(self.asked, &self.asked.to_le_bytes())? {
            self.asked += PIECE as u64;
        }
        Ok(())
    }

    fn take(&mut self, answer: &Answer<'_>, host: &mut dyn SessionHost) -> Result<()> {
        let (Some(had), Some(file)) = (&mut self.had, &self.file) else { return Ok(()) };
        let expected = (had.total - answer.number).min(PIECE as u64);
        if answer.bytes.len() as u64 != expected && self.bug != Break::TakesAnyAnswer {
            let found = format!("{} bytes", answer.bytes.len());
            return Err(RepError::protocol("", format!("{expected} bytes"), found));
        }
        let tail = usize::from(self.bug == Break::TailIgnored);
        let bytes = &answer.bytes[..answer.bytes.len() - tail];
        had.bytes = answer.number + expected;
        let path = path(&self.order);
        let wrap = |e| LogError::io("write", &path, e);
        if self.bug == Break::Hoards {
            self.hoard.extend_from_slice(bytes);
            if had.bytes < had.total {
                return Ok(());
            }
            file.write_at(&[IoSlice::new(&self.hoard)], 0).map_err(wrap)?;
        } else {
            file.write_at(&[IoSlice::new(bytes)], answer.number).map_err(wrap)?;
        }
        if self.bug == Break::SavedBeforeSynced {
            host.save(&had.encode())?;
        }
        file.sync_data().map_err(wrap)?;
        self.order.env.sync_dir(&self.order.dir).map_err(wrap)?;
        if self.bug != Break::SavedBeforeSynced {
            host.save(&had.encode())?;
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        let early = if self.bug == Break::WholeTooEarly { PIECE as u64 } else { 0 };
        self.had.as_ref().is_some_and(|had| self.file.is_some() && had.bytes + early >= had.total)
    }

    fn proofs(&self) -> Vec<Proof> {
        self.had.iter().map(|had| had.proof).collect()
    }

    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        (self.had, self.file) = (None, None);
        host.save(&[])
    }

    fn progress(&self) -> SyncProgress {
        let bytes = self.had.as_ref().map_or(0, |had| had.bytes);
        SyncProgress { bytes, reused: self.reused }
    }

    fn seal(&self) -> Vec<u8> {
        self.had.as_ref().map(Had::encode).unwrap_or_default()
    }
}
