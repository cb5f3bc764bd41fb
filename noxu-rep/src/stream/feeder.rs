//! Feeder stream: ships the log to one replica over a blocking channel.
//!
//! Two threads: the sender takes contiguous byte ranges and never waits for the local fsync; the
//! ack reader drains what the replica says at all times, so that neither side can block the other.
//!
//! # Lock order
//! `core` is a leaf: held for one decision, never during input or output.

use std::time::Duration;

use noxu_log::{EntryRun, Log, Reader, Until};
use noxu_util::{Fingerprint, NULL_VLSN, Vlsn};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::core::feeder::{Feeder, FeederOutput, Lag};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::wire::message::{
    Ack, Dtvlsn, FRAGMENT_HEAD_BYTES, HEAD_BYTES, Head, MAX_MESSAGE_BYTES, Position, StreamMessage,
};
use noxu_util::Term;

/// What a feeder asks of the node it belongs to.
pub trait FeederHost: Send + Sync {
    /// Highest VLSN known durable on a majority.
    fn dtvlsn(&self) -> Vlsn;

    /// Whether a committer waits for acknowledgements that precede the replicas' fsync.
    fn wants_received(&self) -> bool;

    /// A replica's positions moved.
    fn handle_ack(&self, ack: Ack);

    /// Whether the stream is to end in good order.
    fn is_closing(&self) -> bool;
}

/// One replica's stream on the master's side, past handshake and syncup.
pub struct FeederStream<'a> {
    term: Term,
    log: &'a Log,
    channel: &'a dyn Channel,
    host: &'a dyn FeederHost,
    clock: Clock,
    core: &'a Mutex<Feeder>,
    reader: Reader,
}

impl<'a> FeederStream<'a> {
    /// A stream over `channel` whose `core` was told where to start.
    pub fn new(
        term: Term,
        log: &'a Log,
        channel: &'a dyn Channel,
        host: &'a dyn FeederHost,
        clock: Clock,
        core: &'a Mutex<Feeder>,
    ) -> Self {
        Self { term, log, channel, host, clock, core, reader: log.reader() }
    }

    /// The sender: ships entries as they are appended, until the host closes the stream or
    /// something fails. The channel is closed when it returns.
    pub fn run_sender(&self) -> Result<()> {
        let outcome = self.send_all();
        self.core.lock().handle_closed();
        self.channel.close();
        outcome
    }

    /// The ack reader: hands on what the replica acknowledges. The channel is closed when it
    /// returns, and the sender with it.
    pub fn run_ack_reader(&self) -> Result<()> {
        let outcome = self.read_acks();
        self.core.lock().handle_closed();
        self.channel.close();
        self.reader.wake();
        outcome
    }

    fn send_all(&self) -> Result<()> {
        let mut announced = Dtvlsn::default();
        // What has gathered for long enough.
        let mut gathered = NULL_VLSN;
        loop {
            // Taken before anything is looked at, so that a wake between the look and the wait
            // ends the wait.
            let moment = self.reader.moment();
            let closing = self.host.is_closing();
            let now = self.clock.now();
            let (next, enough, due) = {
                let core = self.core.lock();
                let Some(next) = core.next() else { return Ok(()) };
                (next, core.gathers(moment.last), core.poll_timeout())
            };
            let wait = due.unwrap_or(now).saturating_sub(now);
            if closing {
                // Nobody else could tell the replica before there is a new master.
                let dtvlsn = self.dtvlsn(announced)?;
                if dtvlsn.vlsn > announced.vlsn {
                    self.send_position(next.prev(), dtvlsn, false)?;
                }
                return self.channel.send(&StreamMessage::Goodbye.encode());
            }
            if let Some(enough) = enough
                && next > gathered
            {
                self.reader.wait(Until::CueOrBeyond(enough), moment, wait)?;
                gathered = self.reader.moment().last;
                continue;
            }
            if moment.last >= next {
                let Some(run) = self.log.read(next, MAX_MESSAGE_BYTES - HEAD_BYTES)? else {
                    continue; // cut off meanwhile
                };
                announced = self.dtvlsn(announced)?;
                // Before the bytes leave: their acknowledgement may be here before `send` returns.
                self.core.lock().handle_sent(now, run.last, announced.vlsn);
                self.send_run(&run, announced)?;
                continue;
            }
            let output = self.core.lock().poll_output(now, self.host.dtvlsn());
            match output {
                Some(FeederOutput::SendPosition { answer }) => {
                    announced = self.dtvlsn(announced)?;
                    self.send_position(next.prev(), announced, answer)?;
                }
                Some(FeederOutput::CloseSilent(silent)) => return Err(self.silent(silent)),
                None => self.reader.wait(Until::Beyond(next.prev()), moment, wait)?,
            }
        }
    }

    fn send_run(&self, run: &EntryRun, dtvlsn: Dtvlsn) -> Result<()> {
        let head = Head {
            term: self.term,
            first: run.first,
            previous_fingerprint: run.previous_fingerprint,
            dtvlsn,
            want_received: self.host.wants_received(),
        };
        if run.byte_len() <= MAX_MESSAGE_BYTES - HEAD_BYTES {
            let head = head.encode_entries();
            let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + run.parts.len());
            parts.push(&head);
            parts.extend(run.parts.iter().map(|part| &part[..]));
            return self.channel.send_vectored(&parts);
        }
        // Only an entry that fits in no message comes alone and longer than asked for.
        assert_eq!(run.first, run.last, "{} bytes of more than one entry", run.byte_len());
        let total = run.byte_len() as u32;
        let mut offset = 0;
        for part in &run.parts {
            for piece in part.chunks(MAX_MESSAGE_BYTES - FRAGMENT_HEAD_BYTES) {
                let head = head.encode_fragment(total, offset);
                self.channel.send_vectored(&[&head, piece])?;
                offset += piece.len() as u32;
            }
        }
        Ok(())
    }

    fn send_position(&self, last: Vlsn, dtvlsn: Dtvlsn, answer: bool) -> Result<()> {
        let position = Position {
            term: self.term,
            last,
            dtvlsn,
            want_received: self.host.wants_received(),
            answer,
        };
        self.core.lock().handle_sent(self.clock.now(), last, dtvlsn.vlsn);
        self.channel.send(&StreamMessage::Position(position).encode())
    }

    /// The DTVLSN to announce, with its fingerprint; the one before if that cannot be looked up any
    /// more because the log's front has passed it.
    fn dtvlsn(&self, announced: Dtvlsn) -> Result<Dtvlsn> {
        let vlsn = self.host.dtvlsn();
        if vlsn <= announced.vlsn {
            return Ok(announced);
        }
        Ok(fingerprint_at(self.log, vlsn)?
            .map_or(announced, |fingerprint| Dtvlsn { vlsn, fingerprint }))
    }

    fn read_acks(&self) -> Result<()> {
        loop {
            let now = self.clock.now();
            let wait = {
                let core = self.core.lock();
                if let Some(silent) = core.handle_timeout(now) {
                    return Err(self.silent(silent));
                }
                let Some(due) = core.silence_ends() else { return Ok(()) };
                due.saturating_sub(now)
            };
            let Some(frame) = self.channel.receive(wait)? else { continue };
            match StreamMessage::decode(&frame)? {
                StreamMessage::Ack(ack) => {
                    let moved = self.core.lock().handle_ack(self.clock.now(), ack)?;
                    if let Some(ack) = moved {
                        // The sender first: what has gathered is on its way while others are told.
                        self.reader.cue();
                        self.host.handle_ack(ack);
                    }
                }
                StreamMessage::Goodbye => return Ok(()),
                other @ (StreamMessage::Entries { .. }
                | StreamMessage::Fragment { .. }
                | StreamMessage::Position(_)) => {
                    return Err(RepError::protocol(self.channel.peer(), "Ack", other.name()));
                }
            }
        }
    }

    /// How far the replica is behind.
    pub fn lag(&self) -> Lag {
        self.core.lock().lag(self.clock.now(), self.log.positions().last)
    }

    fn silent(&self, waited: Duration) -> RepError {
        RepError::silent(self.channel.peer(), "an acknowledgement", waited)
    }
}

/// Fingerprint of the entry at `vlsn`, if this log still knows it.
pub(crate) fn fingerprint_at(log: &Log, vlsn: Vlsn) -> Result<Option<Fingerprint>> {
    if let Some((header, _)) = log.header(vlsn)? {
        return Ok(Some(header.fingerprint));
    }
    let anchor = log.positions().anchor;
    Ok((anchor.vlsn == vlsn && !vlsn.is_null()).then_some(anchor.fingerprint))
}
