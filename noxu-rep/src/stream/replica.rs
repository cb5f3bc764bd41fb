//! Replica stream: receives the log from a feeder over a channel.
//!
//! Everything it does is a step: [`ReplicaStream::handle_frame`] for what the master says,
//! [`ReplicaStream::sync`] when nothing more has arrived, [`ReplicaStream::handle_timeout`].
//! One thread receives, verifies and appends. When nothing more has arrived it syncs what it has, if
//! nobody else is at it, so the group fsync is clocked by itself and a lone commit costs no wake-up.
//! While more keeps arriving, and where committers wait for acknowledgements that precede the fsync,
//! the log's flushers sync instead, so that the next frame does not wait for the disk; whoever owns
//! the stream calls [`ReplicaStream::handle_durable`] from the log's hook, which acknowledges that.
//!
//! # Lock order
//! `receiving` -> `core` -> the channel's sending lock: an acknowledgement is sent under `core`, so that
//! acknowledgements leave in the order in which they were made. They are small; a peer that does
//! not take them is gone after the channel's write deadline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noxu_log::{ChainState, EntryRun, Log};
use noxu_util::{Term, Vlsn};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::core::commits::Now;
use crate::core::feeder::StreamTiming;
use crate::core::replica::Replica;
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::stream::feeder::fingerprint_at;
use crate::stream::frames::Frames;
use crate::wire::message::{Ack, Dtvlsn, Head, StreamMessage};

/// What a replica's stream asks of the node it belongs to.
pub trait ReplicaHost: Send + Sync {
    /// Everything through `limit` may be applied.
    fn handle_may_apply(&self, limit: Vlsn);

    /// The master announced this DTVLSN, and the logs agree there as far as this one goes.
    fn handle_dtvlsn(&self, dtvlsn: Vlsn);

    /// Everything through it is applied.
    fn applied(&self) -> Vlsn;

    /// Entries were appended.
    fn handle_appended(&self, run: &EntryRun);
}

/// Bytes received at which the flushers are asked to sync although more has arrived.
const SYNC_BYTES: usize = 8 << 20;

/// One stream on the replica's side, past handshake and syncup.
pub struct ReplicaStream {
    log: Log,
    channel: Arc<dyn Channel>,
    host: Arc<dyn ReplicaHost>,
    clock: Clock,
    core: Mutex<Replica>,
    /// Held while a frame is handled: one after the other.
    receiving: Mutex<Receiving>,
}

/// How far the log was received.
struct Receiving {
    /// What came last.
    chain: ChainState,
    /// Bytes received since the last sync was begun.
    unsynced: usize,
}

/// What a frame was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Part of the stream.
    Frame,
    /// The master leaves.
    Goodbye,
}

impl ReplicaStream {
    /// A stream from the master of `term` over `channel`, once the syncup is over and `log` is a
    /// prefix of the master's. `known_dtvlsn` is what this node heard of before.
    pub fn new(
        term: Term,
        timing: StreamTiming,
        log: Log,
        channel: Arc<dyn Channel>,
        host: Arc<dyn ReplicaHost>,
        clock: Clock,
        known_dtvlsn: Vlsn,
    ) -> Self {
        let max_entry_bytes = log.config().max_body_bytes as usize + noxu_log::ENTRY_HEADER_BYTES;
        let mut core = Replica::new(term, timing, max_entry_bytes);
        let positions = log.positions();
        core.handle_welcomed();
        core.handle_synced_up(
            clock.now(),
            positions.last,
            positions.last_fingerprint,
            positions.durable,
            known_dtvlsn,
        );
        let receiving = Mutex::new(Receiving {
            chain: positions.chain(),
            // An earlier stream may have ended between an append and its sync.
            unsynced: usize::from(positions.durable < positions.last),
        });
        Self { log, channel, host, clock, core: Mutex::new(core), receiving }
    }

    /// Receives until the master leaves or something fails. The channel is closed when it returns.
    /// What is synced by others is acknowledged only by [`ReplicaStream::handle_durable`].
    ///
    /// # Errors
    /// Whatever ended the stream; `Ok` if the master said goodbye.
    pub fn run(&self) -> Result<()> {
        let outcome = self.receive_all();
        self.handle_closed();
        outcome
    }

    /// The stream is over, for whatever reason. Idempotent.
    pub fn handle_closed(&self) {
        self.core.lock().handle_closed();
        self.channel.close();
    }

    /// The log is synced through `durable`, by whichever thread did it.
    ///
    /// # Errors
    /// The channel's, if an acknowledgement cannot be sent.
    pub fn handle_durable(&self, durable: Vlsn) -> Result<()> {
        let mut core = self.core.lock();
        if core.is_closed() {
            return Ok(());
        }
        core.handle_synced(durable);
        core.handle_applied(self.host.applied());
        let ack = core.poll_ack();
        self.send_ack(ack)
    }

    fn receive_all(&self) -> Result<()> {
        self.begin()?;
        let (frames, mut buffer) = (Frames::default(), Vec::new());
        while let Some(due) = self.handle_timeout()? {
            let unsynced = self.is_unsynced();
            let wait = if unsynced { Duration::ZERO } else { due.saturating_sub(self.clock.now()) };
            if self.channel.receive_into(&mut buffer, wait)? {
                match self.handle_frame(&frames.share(&mut buffer))? {
                    Handled::Frame => {}
                    Handled::Goodbye => return Ok(()),
                }
            } else if unsynced {
                self.sync()?;
            }
        }
        Ok(())
    }

    /// The first step: tells the master where this node stands.
    ///
    /// # Errors
    /// The channel's.
    pub fn begin(&self) -> Result<()> {
        self.handle_durable(self.log.positions().durable)?;
        self.raise_limit();
        Ok(())
    }

    /// When the master will have been silent for too long; `None` once the stream has ended.
    ///
    /// # Errors
    /// It has been silent for too long.
    pub fn handle_timeout(&self) -> Result<Option<Now>> {
        let core = self.core.lock();
        match core.handle_timeout(self.clock.now()) {
            Some(silent) => Err(RepError::silent(self.channel.peer(), "a message", silent)),
            None => Ok(core.poll_timeout()),
        }
    }

    /// Whether something was received that no sync was begun for: [`ReplicaStream::sync`] is due
    /// when nothing more has arrived.
    pub fn is_unsynced(&self) -> bool {
        self.receiving.lock().unsynced > 0
    }

    /// A frame arrived. While more keeps arriving, the flushers are asked to sync now and then.
    ///
    /// # Errors
    /// What came is not lawful, or cannot be taken; the stream has to end.
    pub fn handle_frame(&self, frame: &Bytes) -> Result<Handled> {
        let mut receiving = self.receiving.lock();
        match self.handle_message(frame, &mut receiving.chain)? {
            Received::Bytes(0) => self.check_room()?,
            Received::Bytes(count) => {
                receiving.unsynced += count;
                if receiving.unsynced >= SYNC_BYTES {
                    receiving.unsynced = 0;
                    self.acknowledge_received()?;
                    self.log.request_sync();
                    self.raise_limit();
                }
            }
            Received::Goodbye => return Ok(Handled::Goodbye),
        }
        Ok(Handled::Frame)
    }

    /// Makes what was received durable and acknowledges it, or leaves both to the flushers.
    ///
    /// # Errors
    /// The log's, the channel's.
    pub fn sync(&self) -> Result<()> {
        self.receiving.lock().unsynced = 0;
        let durable = if self.acknowledge_received()? {
            self.log.request_sync();
            // The flusher may have been there already; then nobody calls the hook again.
            self.log.positions().durable
        } else {
            let last = self.log.positions().last;
            self.log.help_sync(last)?
        };
        self.handle_durable(durable)?;
        self.check_room()?;
        self.raise_limit();
        Ok(())
    }

    /// Sends the acknowledgement that precedes the fsync, if a committer waits for it; whether one did.
    fn acknowledge_received(&self) -> Result<bool> {
        let mut core = self.core.lock();
        core.handle_applied(self.host.applied());
        let ack = core.poll_received_ack();
        self.send_ack(ack)?;
        Ok(ack.is_some())
    }

    /// A disk without room for what was received ends the stream: the master would wait for
    /// acknowledgements that do not come.
    fn check_room(&self) -> Result<()> {
        if self.core.lock().sync_due()
            && let Some(full) = self.log.read_only()
        {
            return Err(full.into());
        }
        Ok(())
    }

    fn raise_limit(&self) {
        let limit = self.core.lock().may_apply();
        self.host.handle_may_apply(limit);
    }

    fn handle_message(&self, frame: &Bytes, chain: &mut ChainState) -> Result<Received> {
        let now = self.clock.now();
        let message = StreamMessage::decode(frame).map_err(|bad| self.name_peer(bad.into()))?;
        match message {
            StreamMessage::Entries { head, bytes } => {
                {
                    let mut core = self.core.lock();
                    core.handle_head(now, &head)?;
                    core.handle_whole(head.first)?;
                }
                let count = bytes.len();
                self.append(frame.slice_ref(bytes), &head, chain)?;
                Ok(Received::Bytes(count))
            }
            StreamMessage::Fragment { head, total, offset, bytes } => {
                let whole = {
                    let mut core = self.core.lock();
                    core.handle_head(now, &head)?;
                    core.handle_fragment(head.first, total, offset, bytes)?
                };
                let Some(whole) = whole else { return Ok(Received::Bytes(0)) };
                let count = whole.len();
                self.append(whole.into(), &head, chain)?;
                Ok(Received::Bytes(count))
            }
            StreamMessage::Position(position) => {
                let answer = {
                    let mut core = self.core.lock();
                    core.handle_position(now, &position)?;
                    core.handle_applied(self.host.applied());
                    core.poll_ack()
                };
                self.handle_dtvlsn(position.dtvlsn)?;
                self.raise_limit();
                self.send_ack(answer)?;
                Ok(Received::Bytes(0))
            }
            StreamMessage::Goodbye => Ok(Received::Goodbye),
            StreamMessage::Ack(_) => {
                Err(RepError::protocol(self.channel.peer(), "Entries or Position", "Ack"))
            }
        }
    }

    fn append(&self, bytes: Bytes, head: &Head, chain: &mut ChainState) -> Result<()> {
        let max_body = self.log.config().max_body_bytes;
        let run = EntryRun::verify(bytes, *chain, max_body)
            .map_err(|fault| RepError::BadEntry { peer: self.channel.peer(), fault })?;
        if run.last_term > head.term {
            return Err(crate::core::replica::StreamFault::ForeignTerm {
                found: run.last_term,
                expected: head.term,
            }
            .into());
        }
        self.log.append_run(&run)?;
        self.host.handle_appended(&run);
        *chain =
            ChainState { vlsn: run.last, term: run.last_term, fingerprint: run.last_fingerprint };
        self.core.lock().handle_appended(run.last, run.last_fingerprint);
        self.handle_dtvlsn(head.dtvlsn)
    }

    fn handle_dtvlsn(&self, announced: Dtvlsn) -> Result<()> {
        if !self.core.lock().is_new_dtvlsn(announced.vlsn) {
            return Ok(());
        }
        let here = fingerprint_at(&self.log, announced.vlsn)?;
        self.core.lock().handle_dtvlsn(announced, here)?;
        self.host.handle_dtvlsn(announced.vlsn);
        Ok(())
    }

    fn send_ack(&self, ack: Option<Ack>) -> Result<()> {
        match ack {
            Some(ack) => self.channel.send(&StreamMessage::Ack(ack).encode()),
            None => Ok(()),
        }
    }

    fn name_peer(&self, error: RepError) -> RepError {
        error.with_peer(|| self.channel.peer())
    }
}

enum Received {
    Bytes(usize),
    Goodbye,
}
