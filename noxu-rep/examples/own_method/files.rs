//! FileSync: the method. The head of an offer is the list; a question names documents, and the answer is these.
//!
//! A document is known by its digest: any source can give it, and one that is here already, from an earlier
//! session or another source, is not asked for again.
//!
//! # Crash argument
//! 1. A document is written aside, synced, then renamed to its digest: a file of that name is whole, or rot.
//! 2. Its list is saved before its first document is asked for. What is had is not noted anywhere: the
//!    files say it, and each is verified when a session begins.
//! 3. It is whole once every document of the list was written or verified by this session.
//! 4. The installation puts the files in their place first and the list last ([`Shelf::replace`]).
//!
//! ```text
//! question: digests, 32 bytes each
//! answer:   u32 | bytes, for each of them
//! head:     the list
//! ```

use std::collections::{BTreeMap, BTreeSet};

use noxu_log::env::{read_whole, write_whole};
use noxu_rep::sync::method::{
    Answer, LogPart, MAX_HEAD_BYTES, Offer, Opened, Proof, SessionHost, StateSync, SyncNode,
    SyncOrder, SyncProgress, SyncProvider, SyncSession,
};
use noxu_rep::sync::{LogReader, StateMachine};
use noxu_rep::{RepError, Result};
use noxu_util::codec::{Put, Reader};
use noxu_util::{Name, Vlsn};
use parking_lot::Mutex;

use crate::shelf::{Digest, List, Shelf, path_of};

/// The method.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileSync {
    /// Documents in one question.
    pub(crate) files_at_once: usize,
}

impl StateSync for FileSync {
    fn name(&self) -> Name {
        "files".parse().expect("a lawful name")
    }

    fn signature(&self) -> u64 {
        0x6669_6c65_7331
    }

    fn log_part(&self) -> LogPart {
        LogPart::Newest
    }

    fn is_for(&self, machine: &dyn StateMachine) -> bool {
        shelf(machine).is_ok()
    }

    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider> {
        Box::new(FileProvider { node: node.clone(), open: Mutex::default() })
    }

    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> Result<Box<dyn SyncSession>> {
        Ok(Box::new(FileSession {
            files_at_once: self.files_at_once.max(1),
            order: order.clone(),
            wanted: saved.and_then(|saved| Wanted::decode(saved).ok()),
            has_begun: false,
            missing: BTreeSet::new(),
            asked: BTreeMap::new(),
            number: 0,
            progress: SyncProgress::default(),
        }))
    }

    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        _log: &dyn LogReader,
    ) -> Result<()> {
        let list = List::decode(sealed)?;
        shelf(machine)?.replace(list, |digest| {
            let bytes = read_whole(&*order.env, &path_of(&order.dir, digest))?;
            if blake3::hash(&bytes).as_bytes() != digest {
                return Err(RepError::state_machine("a document that came is another one by now"));
            }
            Ok(bytes)
        })
    }
}

fn shelf(machine: &dyn StateMachine) -> Result<&Shelf> {
    let shelf = machine.as_any().and_then(|machine| machine.downcast_ref());
    shelf.ok_or_else(|| RepError::state_machine("this method is for a shelf"))
}

/// The half that gives: lists whose files are held, by their numbers.
struct FileProvider {
    node: SyncNode,
    open: Mutex<BTreeMap<u64, List>>,
}

impl SyncProvider for FileProvider {
    fn open(&self) -> Result<Offer> {
        let list = shelf(&*self.node.machine)?.hold()?;
        let id = self.node.env.entropy().max(1);
        let (through, head) = (list.through, list.encode());
        self.open.lock().insert(id, list);
        if head.len() > MAX_HEAD_BYTES {
            self.release(id);
            return Err(RepError::state_machine("the list is longer than a head"));
        }
        Ok(Offer { id, through, head })
    }

    fn resume(&self, id: u64) -> Option<Offer> {
        let open = self.open.lock();
        let list = open.get(&id)?;
        Some(Offer { id, through: list.through, head: list.encode() })
    }

    fn read(&self, id: u64, question: &[u8], answer: &mut Vec<u8>) -> Result<Option<Vlsn>> {
        let named = self.open.lock().get(&id).map(List::documents).unwrap_or_default();
        let mut r = Reader::new(question);
        while r.remaining() > 0 {
            let digest: Digest = r.array("digest")?;
            if !named.contains(&digest) {
                let found = blake3::Hash::from_bytes(digest).to_string();
                return Err(RepError::protocol("", "a document that was offered", found));
            }
            let document = shelf(&*self.node.machine)?.document(&digest)?;
            answer.put_u32(document.len() as u32);
            answer.put_bytes(&document);
        }
        Ok(None)
    }

    fn release(&self, id: u64) {
        let released = self.open.lock().remove(&id);
        if let (Some(list), Ok(shelf)) = (released, shelf(&*self.node.machine)) {
            shelf.release(&list);
        }
    }
}

/// A list that is being fetched.
struct Wanted {
    source: Name,
    id: u64,
    proof: Proof,
    list: List,
}

impl Wanted {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_text(self.source.as_str());
        out.put_u64(self.id);
        self.proof.put(&mut out);
        out.put_bytes(&self.list.encode());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let (source, id) = (r.name("source")?, r.u64("offer")?);
        let proof = Proof::read(&mut r, "proof")?;
        let list = List::decode(r.bytes("list", r.remaining())?)?;
        Ok(Self { source, id, proof, list })
    }
}

/// The half that takes.
struct FileSession {
    files_at_once: usize,
    order: SyncOrder,
    wanted: Option<Wanted>,
    has_begun: bool,
    /// Neither here nor asked for.
    missing: BTreeSet<Digest>,
    asked: BTreeMap<u64, Vec<Digest>>,
    number: u64,
    progress: SyncProgress,
}

impl SyncSession for FileSession {
    fn earlier(&self) -> Option<(Name, u64)> {
        self.wanted.as_ref().map(|wanted| (wanted.source.clone(), wanted.id))
    }

    fn begin(&mut self, opened: &Opened<'_>, host: &mut dyn SessionHost) -> Result<bool> {
        let list = List::decode(opened.head)?;
        if list.through != opened.proof.vlsn {
            return Ok(false);
        }
        self.progress = SyncProgress::default();
        self.missing.clear();
        self.asked.clear();
        for digest in list.documents() {
            let there = read_whole(&*self.order.env, &path_of(&self.order.dir, &digest));
            match there.ok().filter(|bytes| blake3::hash(bytes).as_bytes() == &digest) {
                Some(bytes) => self.progress.reused += bytes.len() as u64,
                None => _ = self.missing.insert(digest),
            }
        }
        self.progress.bytes = self.progress.reused;
        let (source, id, proof) = (opened.source.clone(), opened.id, opened.proof);
        let wanted = Wanted { source, id, proof, list };
        host.save(&wanted.encode())?;
        (self.wanted, self.has_begun) = (Some(wanted), true);
        Ok(true)
    }

    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        while self.has_begun && !self.missing.is_empty() {
            let next: Vec<_> = self.missing.iter().take(self.files_at_once).copied().collect();
            if !host.ask(self.number, &next.concat())? {
                break;
            }
            for digest in &next {
                self.missing.remove(digest);
            }
            self.asked.insert(self.number, next);
            self.number += 1;
        }
        Ok(())
    }

    fn take(&mut self, answer: &Answer<'_>, _host: &mut dyn SessionHost) -> Result<()> {
        let Some(digests) = self.asked.get(&answer.number) else { return Ok(()) };
        let mut r = Reader::new(answer.bytes);
        for digest in digests {
            let len = r.u32("document")? as usize;
            let document = r.bytes("document", len)?;
            if blake3::hash(document).as_bytes() != digest {
                let found = format!("{len} bytes of another one");
                return Err(RepError::protocol("", "a document", found));
            }
            write_whole(&*self.order.env, &path_of(&self.order.dir, digest), document)?;
            self.progress.bytes += len as u64;
        }
        r.finish("documents")?;
        self.asked.remove(&answer.number);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.has_begun && self.missing.is_empty() && self.asked.is_empty()
    }

    fn proofs(&self) -> Vec<Proof> {
        self.wanted.iter().map(|wanted| wanted.proof).collect()
    }

    /// The list is void; its documents may be wanted by the next one.
    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()> {
        (self.wanted, self.has_begun) = (None, false);
        host.save(&[])
    }

    fn progress(&self) -> SyncProgress {
        self.progress
    }

    fn seal(&self) -> Vec<u8> {
        self.wanted.as_ref().map(|wanted| wanted.list.encode()).unwrap_or_default()
    }
}
