//! Shelf: the state machine. Documents in files that are named by the digest of their content and never change;
//! a list says which one is in which place.
//!
//! # Invariants
//! - A list on disk names only files that were durable before it was. What a list does not name any more is
//!   removed once the list is durable and nobody reads it; a crash between the two leaves a file that is
//!   used again if its document comes again.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::env::{Env, read_whole, write_whole};
use noxu_log::{EntryRun, LogError};
use noxu_rep::sync::{Checkpoint, LogReader, MemoryCheckpoint, StateMachine};
use noxu_rep::{RepError, Result};
use noxu_util::Vlsn;
use noxu_util::codec::{Put, Reader};
use parking_lot::Mutex;

/// What a document is called: its BLAKE3.
pub(crate) type Digest = [u8; 32];

/// Which document is in which place, through which entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) through: Vlsn,
    pub(crate) places: BTreeMap<String, Digest>,
}

/// The state machine.
pub(crate) struct Shelf {
    env: Arc<dyn Env>,
    dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    list: List,
    /// Documents that are in no file yet.
    fresh: BTreeMap<Digest, Vec<u8>>,
    /// Through where the list on disk goes.
    durable: Vlsn,
    /// Files that a checkpoint or an offer reads, and how many do: they are not swept up.
    held: BTreeMap<Digest, usize>,
}

/// The body of an entry that puts `document` in `place`.
pub(crate) fn encode_place(place: &str, document: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_text(place);
    out.put_bytes(document);
    out
}

impl List {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_vlsn(self.through);
        for (place, digest) in &self.places {
            out.put_text(place);
            out.put_bytes(digest);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let mut list = Self { through: r.vlsn("through")?, places: BTreeMap::new() };
        while r.remaining() > 0 {
            let place = r.text("place", 255)?.to_owned();
            list.places.insert(place, r.array("digest")?);
        }
        Ok(list)
    }

    /// Its documents, each once.
    pub(crate) fn documents(&self) -> BTreeSet<Digest> {
        self.places.values().copied().collect()
    }
}

/// Where a document is in `dir`.
pub(crate) fn path_of(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(blake3::Hash::from_bytes(*digest).to_hex().as_str())
}

impl Shelf {
    pub(crate) fn open(env: &Arc<dyn Env>, dir: &Path) -> Result<Arc<Self>> {
        let wrap = |e| LogError::io("open", dir, e);
        env.create_dir_all(dir).map_err(wrap)?;
        if let Some(above) = dir.parent() {
            env.sync_dir(above).map_err(wrap)?;
        }
        let path = dir.join(LIST);
        let there = env.exists(&path).map_err(wrap)?;
        let list = if there { List::decode(&read_whole(&**env, &path)?)? } else { List::default() };
        let durable = list.through;
        let inner = Mutex::new(Inner { list, durable, ..Inner::default() });
        Ok(Arc::new(Self { env: Arc::clone(env), dir: dir.to_owned(), inner }))
    }

    /// Everything in its places.
    pub(crate) fn content(&self) -> Result<Vec<u8>> {
        let inner = self.inner.lock();
        let mut out = inner.list.encode();
        for digest in inner.list.documents() {
            out.put_bytes(&self.read(&inner, &digest)?);
        }
        Ok(out)
    }

    /// The list, with every document of it in a file that stays until [`Shelf::release`].
    pub(crate) fn hold(&self) -> Result<List> {
        self.checkpoint()?;
        let mut inner = self.inner.lock();
        let list = inner.list.clone();
        for digest in list.documents() {
            *inner.held.entry(digest).or_default() += 1;
        }
        Ok(list)
    }

    /// Nobody reads the files of a held list any more.
    pub(crate) fn release(&self, list: &List) {
        let mut inner = self.inner.lock();
        for digest in list.documents() {
            if let Some(count) = inner.held.get_mut(&digest) {
                *count -= 1;
            }
        }
        inner.held.retain(|_, count| *count > 0);
        if inner.durable != inner.list.through {
            return; // the list on disk may name them: the next checkpoint sees to it
        }
        let named = inner.list.documents();
        for digest in list.documents().difference(&named) {
            if !inner.held.contains_key(digest) && !inner.fresh.contains_key(digest) {
                // If it stays, it only takes space.
                let _ = self.env.remove(&path_of(&self.dir, digest));
            }
        }
    }

    /// A document of a held list.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        Ok(read_whole(&*self.env, &path_of(&self.dir, digest))?)
    }

    /// Whether a document is in a file here, whole.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.document(digest).is_ok_and(|bytes| blake3::hash(&bytes).as_bytes() == digest)
    }

    /// Replaces all of it by `list`, whose documents `find` gives.
    pub(crate) fn replace(
        &self,
        list: List,
        mut find: impl FnMut(&Digest) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let mut inner = self.inner.lock();
        for digest in list.documents() {
            if !self.has(&digest) {
                write_whole(&*self.env, &path_of(&self.dir, &digest), &find(&digest)?)?;
            }
        }
        self.save(&mut inner, list)?;
        inner.fresh.clear();
        Ok(())
    }

    fn read(&self, inner: &Inner, digest: &Digest) -> Result<Vec<u8>> {
        match inner.fresh.get(digest) {
            Some(fresh) => Ok(fresh.clone()),
            None => self.document(digest),
        }
    }

    /// Puts a list in force whose documents are in files; sweeps up those that it does not name.
    fn save(&self, inner: &mut Inner, list: List) -> Result<()> {
        write_whole(&*self.env, &self.dir.join(LIST), &list.encode())?;
        let named = list.documents();
        let gone: Vec<_> =
            inner.list.documents().into_iter().filter(|old| !named.contains(old)).collect();
        inner.durable = list.through;
        inner.list = list;
        for digest in gone.iter().filter(|digest| !inner.held.contains_key(*digest)) {
            let path = path_of(&self.dir, digest);
            let exists = self.env.exists(&path);
            if exists.map_err(|e| LogError::io("look for", &path, e))? {
                self.env.remove(&path).map_err(|e| LogError::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

impl StateMachine for Shelf {
    fn applied(&self) -> Vlsn {
        self.inner.lock().list.through
    }

    fn apply(&self, run: &EntryRun, through: Vlsn) -> Result<()> {
        let mut inner = self.inner.lock();
        for entry in run.entries() {
            let vlsn = entry.header.vlsn;
            if vlsn <= inner.list.through || vlsn > through {
                continue;
            }
            if entry.header.kind.0 == 16 {
                let mut r = Reader::new(entry.body);
                let place = r.text("place", 255)?.to_owned();
                let document = r.bytes("document", r.remaining())?;
                let digest = *blake3::hash(document).as_bytes();
                inner.fresh.insert(digest, document.to_vec());
                inner.list.places.insert(place, digest);
            }
            inner.list.through = vlsn;
        }
        Ok(())
    }

    fn roll_back_to(&self, matchpoint: Vlsn, replay: &dyn LogReader) -> Result<()> {
        if self.applied() <= matchpoint {
            return Ok(());
        }
        // All of it again: a shelf is small, and nothing older than its list is kept.
        self.replace(List::default(), |_| Ok(Vec::new()))?;
        while self.applied() < matchpoint {
            let Some(run) = replay.read(self.applied().next(), 1 << 20)? else { break };
            self.apply(&run, matchpoint)?;
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.replace(List::default(), |_| Ok(Vec::new()))
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn checkpointed(&self) -> Vlsn {
        self.inner.lock().durable
    }

    fn checkpoint(&self) -> Result<Vlsn> {
        let mut inner = self.inner.lock();
        let list = inner.list.clone();
        for digest in list.documents() {
            if let Some(fresh) = inner.fresh.get(&digest) {
                write_whole(&*self.env, &path_of(&self.dir, &digest), fresh)?;
            }
        }
        // What the list on disk named, and this one does not.
        let path = self.dir.join(LIST);
        let there = self.env.exists(&path).map_err(|e| LogError::io("look for", &path, e))?;
        if there {
            inner.list = List::decode(&read_whole(&*self.env, &path)?)?;
        }
        let saved = self.save(&mut inner, list.clone());
        inner.list = list;
        saved?;
        inner.fresh.clear();
        Ok(inner.durable)
    }

    /// For a node that has no method but those of Noxu: list and documents in one stream.
    fn open_checkpoint(&self) -> Result<Box<dyn Checkpoint>> {
        let list = self.hold()?;
        let mut out = Vec::new();
        let head = list.encode();
        out.put_u32(head.len() as u32);
        out.put_bytes(&head);
        for digest in list.documents() {
            let document = self.document(&digest)?;
            out.put_u32(document.len() as u32);
            out.put_bytes(&document);
        }
        self.release(&list);
        Ok(Box::new(MemoryCheckpoint::new(list.through, out)))
    }

    fn install_checkpoint(&self, _vlsn: Vlsn, source: &mut dyn Read) -> Result<()> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(RepError::state_machine)?;
        let mut r = Reader::new(&bytes);
        let len = r.u32("list")? as usize;
        let list = List::decode(r.bytes("list", len)?)?;
        let mut documents = BTreeMap::new();
        for digest in list.documents() {
            let len = r.u32("document")? as usize;
            documents.insert(digest, r.bytes("document", len)?.to_vec());
        }
        self.replace(list, |digest| Ok(documents.remove(digest).unwrap_or_default()))
    }
}

const LIST: &str = "list";
