//! Ranges: the state as pairs of keys and values, asked for by ranges of keys. A fuzzy copy and a redo.
//!
//! A question names a key to begin at and one to end before. It is answered from the state as it is at that
//! moment: nothing is held at the source between two questions, and any source goes on where another one
//! stopped. What came is a copy in which every key is of a moment of its own; applying the log over it
//! makes it one state.
//!
//! # Why that is right
//! Each answer says of which moment it is: an entry behind which no transaction is open and which is not
//! rolled back any more. MIN is the oldest of these moments, MAX the newest.
//! 1. Entries are absolute: a transaction puts values and deletes keys, whatever was there before. So what a
//!    key holds after MAX is what the last entry up to MAX that names it says.
//! 2. A key that no entry of (MIN, MAX] names is the same at every moment from MIN to MAX: what was copied
//!    of it, a value or nothing, is right.
//! 3. Of any other key the last entry in (MIN, MAX] decides, and the redo applies that over whatever was
//!    copied: a newer value, an older one, one of a key that was deleted, none of a key that was put, or, of
//!    a value that came in several answers, pieces of two. The live entry always wins.
//! 4. No transaction is cut: each is wholly at or below MIN, or the log from MIN + 1 on holds all of it.
//! 5. The restored log holds the entries from MIN + 1 through MAX, and they are those of the sources: it
//!    begins at or before MIN, ends at or behind MAX, and has the fingerprint of each moment. Else what came
//!    is discarded.
//! 6. Between MIN and MAX the copy is no state that ever was, so nobody may see it: the engine replaces its
//!    state in one step, redo included, and is then durable through MAX ([`RangedState::replace`]). Were the copy
//!    durable first and the redo left to a later start, that start would show it, and a rollback to between the
//!    two would leave what came after it.
//!
//! ```text
//! question: below, empty for none (u16, bytes) | from (u16, bytes) | value bytes had u64 | bytes u32
//! answer:   token (u16, bytes) | is the range at its end u8 | pieces
//! piece:    does the value go on in the next answer u8 | key (u16, bytes) | bytes of the value (u32, bytes)
//! head:     split points u16 | (u16, bytes) each, ascending
//! ```

mod giving;
mod kept;
mod splits;
mod taking;

use noxu_log::EntryRun;
use noxu_util::codec::{CodecError, Put, Reader};
use noxu_util::{Name, Vlsn};

use self::giving::RangeProvider;
use self::taking::RangeSession;
use super::method::{
    Coming, LogPart, StateSync, SyncNode, SyncOrder, SyncProvider, SyncSession, check_room,
};
use super::{LogReader, StateMachine};
use crate::error::{RepError, Result};

/// Most bytes of a key that this method carries.
pub const MAX_RANGE_KEY_BYTES: usize = 61_440;

/// Most bytes of a [`Moment::token`].
pub const MAX_TOKEN_BYTES: usize = 255;

/// What a state machine can do whose state is pairs of keys and values, in the order of the keys, and whose
/// entries put values and delete keys, whatever was there before.
pub trait RangedState: Send + Sync {
    /// Sees to it that what [`RangedState::read`] shows is as new as it gets. Returns of which moment it is
    /// now, at least. Called once by each node that takes.
    ///
    /// # Errors
    /// `StateMachine`.
    fn freshen(&self) -> Result<Vlsn>;

    /// The lowest key at or above `from`.
    ///
    /// # Errors
    /// `StateMachine`.
    fn first_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The highest key below `below`, or of all.
    ///
    /// # Errors
    /// `StateMachine`.
    fn last_key(&self, below: Option<&[u8]>) -> Result<Option<Vec<u8>>>;

    /// Gives the pairs of a range to `sink`, in ascending order of the keys, until that returns false. All of
    /// them are as they were at the moment that it returns: behind an entry that leaves no transaction open
    /// and that cannot be rolled back any more. Keys have at most [`MAX_RANGE_KEY_BYTES`].
    ///
    /// # Errors
    /// `StateMachine`.
    fn read(
        &self,
        range: &KeyRange<'_>,
        sink: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<Moment>;

    /// Replaces all state by `copy`, over which the entries of `redo` are applied. In one step, as far as
    /// anybody can see who reads it, or opens it after a crash: afterwards it is durable, and applied,
    /// through [`Redo::through`]. A value of `copy` that the redo replaces may be anything.
    ///
    /// # Errors
    /// `StateMachine`, and those of `copy` and `redo`; then nothing has changed.
    fn replace(&self, copy: &mut dyn Pairs, redo: &Redo<'_>) -> Result<()>;
}

/// Keys at or above `from`, and below `below` unless it is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// The first key that may be in it.
    pub from: &'a [u8],
    /// The first one behind it.
    pub below: Option<&'a [u8]>,
}

/// What was read goes through this entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The entry.
    pub vlsn: Vlsn,
    /// What else the engine likes to know of it; it comes back in [`Redo::after`]. At most
    /// [`MAX_TOKEN_BYTES`].
    pub token: Vec<u8>,
}

/// Pairs in ascending order of the keys.
pub trait Pairs {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// `Log` if what is on disk is not what was sealed.
    fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<u8>)>>;
}

/// What is applied over a copy.
pub struct Redo<'a> {
    /// The oldest moment of the copy: entries behind it.
    pub after: Moment,
    /// The newest one: entries through it.
    pub through: Vlsn,
    log: &'a dyn LogReader,
}

impl<'a> Redo<'a> {
    /// The entries of `log` behind `after` through `through`.
    #[must_use]
    pub const fn new(after: Moment, through: Vlsn, log: &'a dyn LogReader) -> Self {
        Self { after, through, log }
    }

    /// Calls `apply` with runs that continue one another; the last one may go on behind [`Redo::through`].
    ///
    /// # Errors
    /// Those of `apply` and of the log; `ProtocolError` if entries are missing.
    pub fn each(&self, mut apply: impl FnMut(&EntryRun) -> Result<()>) -> Result<()> {
        let mut done = self.after.vlsn;
        while done < self.through {
            let run = self.log.read(done.next(), REDO_BYTES)?;
            let Some(run) = run.filter(|run| run.first == done.next()) else {
                let expected = format!("entries {} to {}", done.next(), self.through);
                return Err(RepError::protocol("", expected, "none".to_owned()));
            };
            apply(&run)?;
            done = run.last;
        }
        Ok(())
    }
}

/// The method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeSync {
    /// About as many bytes are asked for at once; at most [`MAX_PIECE_BYTES`] are given. Default 1 MiB.
    pub piece_bytes: u32,
    /// Bytes between two syncs; as much is fetched again after a crash. Default 8 MiB.
    pub sync_bytes: u64,
    /// In how many parts the keys are asked for. Default 16.
    pub parts: u16,
}

/// Most bytes of pairs in one answer, but for the key of the first one.
pub const MAX_PIECE_BYTES: u32 = 2 << 20;

impl Default for RangeSync {
    fn default() -> Self {
        Self { piece_bytes: 1 << 20, sync_bytes: 8 << 20, parts: 16 }
    }
}

impl StateSync for RangeSync {
    fn name(&self) -> Name {
        "ranges".parse().expect("a lawful name")
    }

    fn signature(&self) -> u64 {
        SIGNATURE
    }

    fn log_part(&self) -> LogPart {
        LogPart::Newest
    }

    fn is_for(&self, machine: &dyn StateMachine) -> bool {
        machine.ranges().is_some()
    }

    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider> {
        Box::new(RangeProvider::new(node.clone(), self.parts))
    }

    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> Result<Box<dyn SyncSession>> {
        Ok(Box::new(RangeSession::new(*self, order, saved)))
    }

    /// Reads all of it, as the installation will; another state of that size is made then.
    fn prepare(&self, order: &SyncOrder, coming: &Coming, _: &dyn StateMachine) -> Result<()> {
        let sealed = kept::Sealed::decode(&coming.sealed()?)?;
        let mut copy = kept::Copied::open(order, &sealed, Some(coming))?;
        let mut last: Option<Vec<u8>> = None;
        while let Some((key, value)) = copy.next()? {
            if last.as_ref().is_some_and(|last| *last >= key) {
                let found = format!("{key:?} behind {last:?}");
                return Err(RepError::protocol("", "keys in their order", found));
            }
            coming.check()?;
            coming.advance((key.len() + value.len()) as u64);
            last = Some(key);
        }
        check_room(&*order.env, &order.dir, sealed.bytes, "the state")
    }

    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        log: &dyn LogReader,
    ) -> Result<()> {
        let state = ranges(machine)?;
        let sealed = kept::Sealed::decode(sealed)?;
        let mut copy = kept::Copied::open(order, &sealed, None)?;
        let through = sealed.through;
        state.replace(&mut copy, &Redo::new(sealed.after, through, log))?;
        if machine.applied() != through {
            let found = machine.applied();
            let cause =
                format!("it is applied through {found} after a replacement through {through}");
            return Err(RepError::state_machine(cause));
        }
        Ok(())
    }
}

/// The ranges of a state machine that has some.
fn ranges(machine: &dyn StateMachine) -> Result<&dyn RangedState> {
    machine.ranges().ok_or_else(|| RepError::BadConfig {
        field: "sync",
        found: "ranges".to_owned(),
        expected: "a method for a state machine without ranges of keys".to_owned(),
    })
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question<'a> {
    range: KeyRange<'a>,
    /// Bytes of the value of the first key that are here.
    had: u64,
    bytes: u32,
}

impl<'a> Question<'a> {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_short_bytes(self.range.below.unwrap_or_default());
        out.put_short_bytes(self.range.from);
        out.put_u64(self.had);
        out.put_u32(self.bytes);
        out
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let below = r.short_bytes("question.below", MAX_SPLIT_BYTES)?;
        let from = r.short_bytes("question.from", MAX_RANGE_KEY_BYTES + 1)?;
        let below = Some(below).filter(|below| !below.is_empty());
        let (had, bytes) = (r.u64("question.had")?, r.u32("question.bytes")?);
        r.finish("question")?;
        Ok(Self { range: KeyRange { from, below }, had, bytes })
    }
}

/// A key and some of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece<'a> {
    goes_on: bool,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Bytes that it takes besides those of key and value.
    const OVERHEAD: usize = 7;

    fn put(&self, out: &mut Vec<u8>) {
        out.put_bool(self.goes_on);
        out.put_short_bytes(self.key);
        out.put_u32(self.value.len() as u32);
        out.put_bytes(self.value);
    }

    fn read(r: &mut Reader<'a>) -> Result<Self, CodecError> {
        let goes_on = r.bool("piece.goes_on")?;
        let key = r.short_bytes("piece.key", MAX_RANGE_KEY_BYTES)?;
        let len = r.u32("piece.value")? as usize;
        Ok(Self { goes_on, key, value: r.bytes("piece.value", len)? })
    }
}

/// The least key above `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Most bytes of a split point: a question holds one beside a key.
const MAX_SPLIT_BYTES: usize = 1024;

/// Most parts that a session asks for.
const MAX_PARTS: usize = 256;

/// Bytes of log that are redone at a time.
const REDO_BYTES: usize = 1 << 20;

/// The form of questions, answers and heads.
const SIGNATURE: u64 = 0x6e6f_7875_726e_6731;
