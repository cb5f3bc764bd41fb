//! Stream: the state as one stream of bytes, the state machine's own checkpoint, read from the front.
//! Two methods do it, which differ in the log that comes along: [`StreamSync::SEGMENTS`] brings all of it,
//! [`StreamSync::SNAPSHOT`] only the newest entries.
//!
//! A question names an offset and a length, and how much is durable at the taker, so that nothing before
//! it need be held for him. A checkpoint is read once; who is asked for what was read before answers
//! from what it holds.
//!
//! ```text
//! question: offset u64 | bytes u32 | durable u64
//! answer:   last u8 | bytes
//! head:     first offset that can be asked for u64
//! ```

mod giving;
mod taking;

use noxu_util::Name;
use noxu_util::codec::{CodecError, Put, Reader};

use self::giving::StreamProvider;
use self::taking::{Sealed, StreamSession, install, prepare};
use super::method::{Coming, LogPart, StateSync, SyncNode, SyncOrder, SyncProvider, SyncSession};
use super::{LogReader, StateMachine};
use crate::error::Result;

/// Most bytes of a piece.
const MAX_PIECE_BYTES: u32 = 1 << 20;

/// The form of questions, answers and heads. The checkpoint's own is the state machine's affair.
const SIGNATURE: u64 = 0x6e6f_7875_7374_7232;

/// A method that streams the state machine's checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSync {
    name: &'static str,
    log_part: LogPart,
    piece_bytes: u32,
    sync_bytes: u64,
}

impl StreamSync {
    /// All of the log, and the checkpoint if the log does not begin with the group's first entry. The
    /// default.
    pub const SEGMENTS: Self = Self::new("segments", LogPart::Whole);

    /// The checkpoint, and the log from the finished segments on.
    pub const SNAPSHOT: Self = Self::new("snapshot", LogPart::Newest);

    const fn new(name: &'static str, log_part: LogPart) -> Self {
        Self { name, log_part, piece_bytes: MAX_PIECE_BYTES, sync_bytes: 16 << 20 }
    }

    /// Asks for pieces of `piece_bytes`, at least 1 and at most 1 MiB, which is the default, and syncs after
    /// `sync_bytes`; as much is fetched again after a crash. Default 16 MiB.
    #[must_use]
    pub const fn with_tuning(self, piece_bytes: u32, sync_bytes: u64) -> Self {
        let piece_bytes = match piece_bytes {
            0 => 1,
            1..=MAX_PIECE_BYTES => piece_bytes,
            _ => MAX_PIECE_BYTES,
        };
        Self { piece_bytes, sync_bytes, ..self }
    }
}

impl StateSync for StreamSync {
    fn name(&self) -> Name {
        self.name.parse().expect("a lawful name")
    }

    fn signature(&self) -> u64 {
        SIGNATURE
    }

    fn log_part(&self) -> LogPart {
        self.log_part
    }

    fn provider(&self, node: &SyncNode) -> Box<dyn SyncProvider> {
        Box::new(StreamProvider::new(node.clone()))
    }

    fn session(&self, order: &SyncOrder, saved: Option<&[u8]>) -> Result<Box<dyn SyncSession>> {
        Ok(Box::new(StreamSession::new(*self, order, saved)))
    }

    fn prepare(
        &self,
        order: &SyncOrder,
        coming: &Coming,
        machine: &dyn StateMachine,
    ) -> Result<()> {
        prepare(order, coming, machine)
    }

    fn install(
        &self,
        order: &SyncOrder,
        sealed: &[u8],
        machine: &dyn StateMachine,
        _log: &dyn LogReader,
    ) -> Result<()> {
        install(order, &Sealed::decode(sealed)?, machine)
    }
}

/// What is asked of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    /// Where to begin.
    offset: u64,
    /// How many bytes, fewer only at the end.
    bytes: u32,
    /// Nothing before it is asked for any more.
    durable: u64,
}

impl Question {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20);
        out.put_u64(self.offset);
        out.put_u32(self.bytes);
        out.put_u64(self.durable);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(bytes);
        let question = Self {
            offset: r.u64("question.offset")?,
            bytes: r.u32("question.bytes")?,
            durable: r.u64("question.durable")?,
        };
        r.finish("question")?;
        Ok(question)
    }
}
