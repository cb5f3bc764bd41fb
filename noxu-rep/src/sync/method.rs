//! Method: how the state of a node that restores is brought level. Blocking, object safe.
//!
//! A restore replaces a node's log and its state. The log is always Noxu's own affair; how the state
//! comes is a *method*, a [`StateSync`], and an application may bring its own. Every node of a group
//! has the methods of its configuration. A node that restores names those that it has, in the order in
//! which it prefers them; the master takes the first that it has with the same signature.
//!
//! # Who does what
//! - A [`SyncProvider`] lives on every node, as long as the node: it opens *offers* of the state and
//!   answers questions about them.
//! - A [`SyncSession`] lives on the node that restores, as long as its connection with the master. It
//!   asks one source at a time, the master last, and keeps what comes in a directory of its own; the
//!   next session goes on from there, with the same source or another.
//! - Noxu carries questions and answers, verifies their digests, throttles, gives up on sources that
//!   are silent, keeps an offer for a node that returns soon, fetches the log, decides when everything
//!   is there, and commits. Only then [`StateSync::install`] replaces the state.
//!
//! # What makes a state right
//! Each part of it says through which entry it goes, and which entry that was: a [`Proof`]. A restore is
//! committed only if the restored log holds all of those entries. From the log's first entry on
//! everything can be applied again, so parts may be of different moments.
//!
//! # See: `noxu_rep::conformance`, which tests any method; docs/recovery.md

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noxu_log::LogError;
use noxu_log::env::Env;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Fingerprint, Name, Vlsn};

pub use super::coming::Coming;
use super::{LogReader, StateMachine};
use crate::error::Result;

/// A way to bring the state of a node level.
pub trait StateSync: Debug + Send + Sync {
    /// What both sides call it.
    fn name(&self) -> Name;

    /// Stands for the form of what its providers send, and for nothing else: two nodes with the same
    /// one understand each other, however they are tuned.
    fn signature(&self) -> u64;

    /// How much of the log comes with it. Default [`LogPart::Whole`].
    fn log_part(&self) -> LogPart {
        LogPart::Whole
    }

    /// Whether a node with this state machine can give and take by it: else the node does as if it did not
    /// have it. Default true.
    fn is_for(&self, _machine: &dyn StateMachine) -> bool {
        true
    }

    /// The half of it that gives, on a node with this state machine.
    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider>;

    /// The half that takes; `saved` is what an earlier session of this method and signature saved.
    ///
    /// # Errors
    /// `Log` for the disk. What is merely damaged is had again.
    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> Result<Box<dyn SyncSession>>;

    /// Does as much of [`StateSync::install`] ahead as leaves the state of `machine` as it is, while state
    /// and log are still fetched, as far as a node has threads: the longer the installation takes, the
    /// more log the master must keep for this node. Best looks whether what came is still what it was, and
    /// whether there is room for it: an installation that fails has no old log to go back to. Default:
    /// nothing.
    ///
    /// # Errors
    /// As [`StateSync::install`]. What came is discarded then, and fetched again, once in a session; but
    /// not if [`RepError::is_storage_full`](crate::error::RepError::is_storage_full): then the restore
    /// waits for room.
    fn prepare(
        &self,
        order: &SyncOrder,
        coming: &Coming,
        machine: &dyn StateMachine,
    ) -> Result<()> {
        let _ = (order, coming, machine);
        Ok(())
    }

    /// Replaces the state of `machine` by what a session sealed, durably. `log` is the restored log; all
    /// of it may be applied through the entry of the newest proof. May be repeated after a crash.
    ///
    /// # Errors
    /// `Log` or `StateMachine` if what is on disk is not what was sealed, and for what the state machine says.
    /// The state machine is cleared then, and the node restored anew, once in a row. But if the error comes
    /// from an [`std::io::Error`] of the system other than a missing or damaged file, what came stays: a full
    /// disk is waited for, and for anything else the node ends, and installs it when it is started again.
    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        log: &dyn LogReader,
    ) -> Result<()>;
}

/// A disk that cannot hold all of `what` is not filled with a part of it: others may need its room.
///
/// # Errors
/// `Io` of the kind `StorageFull`.
pub(crate) fn check_room(env: &dyn Env, dir: &Path, needed: u64, what: &str) -> Result<()> {
    let free = env.free_bytes(dir).map_err(|cause| LogError::io("look up", dir, cause))?;
    if free >= needed {
        return Ok(());
    }
    let found = format!("{free} bytes are free, {needed} are needed for {what} alone");
    let full = io::Error::new(io::ErrorKind::StorageFull, found);
    Err(LogError::io("make room in", dir, full).into())
}

/// How much of the log comes with a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPart {
    /// All that the master has, so that the restored node can give it to others as well. If that begins
    /// with the group's first entry no state is fetched at all: it is replayed.
    Whole,
    /// Only what follows the finished segments. Less to fetch where the log is longer than the state.
    Newest,
}

/// A node that gives.
#[derive(Clone)]
pub struct SyncNode {
    /// Its file system, and where random numbers come from.
    pub env: Arc<dyn Env>,
    /// Its state.
    pub machine: Arc<dyn StateMachine>,
}

/// What a session and an installation are to work with.
#[derive(Debug, Clone)]
pub struct SyncOrder {
    /// The file system.
    pub env: Arc<dyn Env>,
    /// The method's directory in it; nothing else is written. It is there, and removed with all that is
    /// in it once the restore is over or another method takes its place.
    pub dir: PathBuf,
}

/// An entry, and which one it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Everything through it is in the part that it speaks of.
    pub vlsn: Vlsn,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

impl Proof {
    /// Bytes on a method's disk or wire: the VLSN, and the fingerprint as a u64.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_vlsn(self.vlsn);
        out.put_u64(self.fingerprint.as_u64());
    }

    /// What [`Proof::put`] wrote; `what` names it in errors.
    ///
    /// # Errors
    /// `Truncated` if the bytes end before it does.
    pub fn read(r: &mut Reader<'_>, what: &'static str) -> std::result::Result<Self, CodecError> {
        let vlsn = r.vlsn(what)?;
        Ok(Self { vlsn, fingerprint: Fingerprint::from_u64(r.u64(what)?) })
    }
}

/// What a provider offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its number, never given twice by any provider ([`Env::entropy`]) and never 0.
    pub id: u64,
    /// Everything through it is in what is offered.
    pub through: Vlsn,
    /// What else the session needs to know; at most [`MAX_HEAD_BYTES`].
    pub head: Vec<u8>,
}

/// Most bytes of an [`Offer::head`].
pub const MAX_HEAD_BYTES: usize = 1 << 20;

/// Most bytes of a question.
pub const MAX_QUESTION_BYTES: usize = 64 << 10;

/// Most bytes of an answer; about as much memory is taken for each question that is under way.
pub const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The half that gives. Used by several sessions at a time.
pub trait SyncProvider: Send + Sync {
    /// Opens an offer of the state as it is.
    ///
    /// # Errors
    /// `StateMachine`.
    fn open(&self) -> Result<Offer>;

    /// An offer that was opened and not released, once more; `None` if there is none of that number.
    fn resume(&self, id: u64) -> Option<Offer>;

    /// Appends the answer to a question about offer `id` to `answer`. Returns through where what it says
    /// goes, if not through where the offer does.
    ///
    /// # Errors
    /// `ProtocolError` for a question that makes no sense; `StateMachine`.
    fn read(&self, id: u64, question: &[u8], answer: &mut Vec<u8>) -> Result<Option<Vlsn>>;

    /// Nobody asks for it any more.
    fn release(&self, id: u64);
}

/// What a source has opened for a session.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// Who.
    pub source: &'a Name,
    /// The number of the offer.
    pub id: u64,
    /// Through where it goes.
    pub proof: Proof,
    /// [`Offer::head`].
    pub head: &'a [u8],
}

/// What a source has answered.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The number that the session gave the question.
    pub number: u64,
    /// Through where it goes.
    pub proof: Proof,
    /// What [`SyncProvider::read`] said.
    pub bytes: &'a [u8],
    /// BLAKE3 of `bytes`: it was compared, and need not be computed again.
    pub digest: [u8; 32],
}

/// What a session may use while it is called.
pub trait SessionHost {
    /// Sends a question to the source, unless there is no room for one just now, and says whether it
    /// did. `number` comes back with its answer; answers come in the order of their questions.
    ///
    /// # Errors
    /// The connection's.
    fn ask(&mut self, number: u64, question: &[u8]) -> Result<bool>;

    /// Leaves a copy of what was written to whoever makes it ready ([`StateSync::prepare`]), if somebody
    /// does and there is room. `at` is where it begins, for both to agree on.
    fn hand_over(&mut self, at: u64, bytes: &[u8], digest: [u8; 32]) {
        let _ = (at, bytes, digest);
    }

    /// Keeps `bytes` for the next session, in place of what was kept before. Durable on return; what it
    /// speaks of had better be, before.
    ///
    /// # Errors
    /// `Log`.
    fn save(&mut self, bytes: &[u8]) -> Result<()>;
}

/// The half that takes. An error of the kind `Log` is this node's disk; any other one is the source's
/// fault, and costs it.
pub trait SyncSession: Send {
    /// Whose offer it would like to go on with.
    fn earlier(&self) -> Option<(Name, u64)>;

    /// A source has opened an offer, and is asked from now on; whatever the one before was asked is
    /// void. False if nothing can be done with it, when another one is opened.
    ///
    /// # Errors
    /// See [`SyncSession`].
    fn begin(&mut self, opened: &Opened<'_>, host: &mut dyn SessionHost) -> Result<bool>;

    /// Asks for as much as there is room for. Called often.
    ///
    /// # Errors
    /// See [`SyncSession`].
    fn ask(&mut self, host: &mut dyn SessionHost) -> Result<()>;

    /// Takes an answer.
    ///
    /// # Errors
    /// See [`SyncSession`].
    fn take(&mut self, answer: &Answer<'_>, host: &mut dyn SessionHost) -> Result<()>;

    /// Whether everything is here and durable.
    fn is_whole(&self) -> bool;

    /// The entries that the restored log must hold for what is here to be right.
    fn proofs(&self) -> Vec<Proof>;

    /// What is here is not right: nothing of it counts any more.
    ///
    /// # Errors
    /// `Log`.
    fn discard(&mut self, host: &mut dyn SessionHost) -> Result<()>;

    /// Bytes had, and how many of them an earlier session had fetched.
    fn progress(&self) -> SyncProgress;

    /// What [`StateSync::install`] needs to know, once it is whole; after [`SyncSession::begin`], what
    /// [`StateSync::prepare`] can know by then ([`Coming::first`]).
    fn seal(&self) -> Vec<u8>;
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncProgress {
    /// Bytes had.
    pub bytes: u64,
    /// Of these, those that an earlier session had fetched.
    pub reused: u64,
}
