//! Feeder stream: ships the log to one replica over a channel.
//!
//! Everything it does is a step that waits for nothing but the channel's own sending:
//! [`FeederStream::send_some`], and [`FeederStream::handle_frame`] for what the replica says. Two
//! threads call them, so that neither side can block the other: the sender takes contiguous byte
//! ranges and never waits for the local fsync, the ack reader drains what the replica says at all
//! times.
//!
//! # Lock order
//! `sending` -> `core`, which is a leaf: held for one decision, never during input or output.

use std::sync::Arc;
use std::time::Duration;

use noxu_log::{EntryRun, Log, LogError, Moment, Reader, Until};
use noxu_util::{Fingerprint, Vlsn};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::core::commits::Now;
use crate::core::feeder::{Feeder, FeederOutput, Lag};
use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::wire::election::LogEnd;
use crate::wire::message::{
    Ack, Dtvlsn, Era, FRAGMENT_HEAD_BYTES, Farewell, HEAD_BYTES, Head, Leaving, MAX_MESSAGE_BYTES,
    Position, StreamMessage,
};

/// What a feeder asks of the node it belongs to.
pub trait FeederHost: Send + Sync {
    /// Highest VLSN known durable on a majority.
    fn dtvlsn(&self) -> Vlsn;

    /// Whether a committer waits for acknowledgements that precede the replicas' fsync.
    fn wants_received(&self) -> bool;

    /// A replica's positions moved.
    fn handle_ack(&self, ack: Ack);

    /// The last word, once the stream is to end in good order. Asked at each step.
    fn closing(&self) -> Option<Farewell>;
}

/// One replica's stream on the master's side, past handshake and syncup.
pub struct FeederStream {
    era: Era,
    log: Log,
    channel: Arc<dyn Channel>,
    host: Arc<dyn FeederHost>,
    clock: Clock,
    core: Arc<Mutex<Feeder>>,
    reader: Reader,
    sending: Mutex<Sending>,
}

/// What the sender keeps from step to step.
#[derive(Default)]
struct Sending {
    announced: Dtvlsn,
    /// What has gathered for long enough.
    gathered: Vlsn,
    /// The last step left entries to gather.
    gathering: bool,
}

/// What a step of the sender came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStep {
    /// Something was sent, and there may be more.
    Sent,
    /// Nothing is to be sent before one of these comes to pass. An early call does no harm.
    Wait {
        /// The log's end moves, or a cue comes.
        until: Until,
        /// Since this moment.
        since: Moment,
        /// At this time in any case.
        due: Now,
    },
    /// The stream has ended in good order.
    Ended,
}

impl FeederStream {
    /// A stream over `channel` whose `core` was told where to start.
    pub fn new(
        log: Log,
        channel: Arc<dyn Channel>,
        host: Arc<dyn FeederHost>,
        clock: Clock,
        core: Arc<Mutex<Feeder>>,
    ) -> Self {
        let (reader, era) = (log.reader(), core.lock().era());
        Self { era, log, channel, host, clock, core, reader, sending: Mutex::default() }
    }

    /// The sender: ships entries as they are appended, until the host closes the stream or
    /// something fails. The channel is closed when it returns.
    pub fn run_sender(&self) -> Result<()> {
        let outcome = self.send_all();
        self.handle_closed();
        outcome
    }

    /// The ack reader: hands on what the replica acknowledges. The channel is closed when it
    /// returns, and the sender with it.
    pub fn run_ack_reader(&self) -> Result<()> {
        let outcome = self.read_acks();
        self.handle_closed();
        self.reader.wake();
        outcome
    }

    /// The stream is over, for whatever reason. Idempotent.
    pub fn handle_closed(&self) {
        self.core.lock().handle_closed();
        self.channel.close();
    }

    fn send_all(&self) -> Result<()> {
        loop {
            match self.send_some()? {
                SendStep::Sent => {}
                SendStep::Wait { until, since, due } => {
                    self.reader.wait(until, since, due.saturating_sub(self.clock.now()))?;
                }
                SendStep::Ended => return Ok(()),
            }
        }
    }

    /// One step of the sender. Called again after [`SendStep::Wait`], it takes what has gathered
    /// until then.
    ///
    /// # Errors
    /// Whatever ends the stream.
    pub fn send_some(&self) -> Result<SendStep> {
        let mut sending = self.sending.lock();
        loop {
            // Taken before anything is looked at, so that a wake between the look and the wait
            // ends the wait.
            let since = self.reader.moment();
            let closing = self.host.closing();
            let (now, dtvlsn) = (self.clock.now(), self.host.dtvlsn());
            let (next, limit, enough, due, head_asked) = {
                let mut core = self.core.lock();
                let Some(next) = core.next() else { return Ok(SendStep::Ended) };
                let limit = core.may_send(since.last, dtvlsn);
                let asked = core.poll_head_asked();
                (next, limit, core.gathers(limit), core.poll_timeout(), asked)
            };
            if std::mem::take(&mut sending.gathering) {
                sending.gathered = limit;
            }
            let due = due.unwrap_or(now);
            // Who stops in order sends all that it has first, as long as it is let.
            let sends_on = limit >= next
                && closing.as_ref().is_some_and(|farewell| farewell.why == Leaving::Closing);
            if let Some(farewell) = closing
                && !sends_on
            {
                // Nobody else could tell the replica before there is a new master.
                let dtvlsn = self.dtvlsn(sending.announced)?;
                if dtvlsn.vlsn > sending.announced.vlsn {
                    self.send_position(next.prev(), dtvlsn, false)?;
                }
                self.channel.send(&StreamMessage::Goodbye(farewell).encode())?;
                return Ok(SendStep::Ended);
            }
            if let Some(nonce) = head_asked {
                let ends = self.log.positions();
                let (term, vlsn) = (ends.last_term, ends.last);
                let head = LogEnd { term, vlsn, fingerprint: ends.last_fingerprint };
                self.channel.send(&StreamMessage::HeadAnswer { nonce, head }.encode())?;
                return Ok(SendStep::Sent);
            }
            if let Some(enough) = enough
                && next > sending.gathered
                && !sends_on
            {
                sending.gathering = true;
                return Ok(SendStep::Wait { until: Until::CueOrBeyond(enough), since, due });
            }
            if limit >= next {
                let most = MAX_MESSAGE_BYTES - HEAD_BYTES;
                let Some(run) = self.log.read_through(next, limit, most)? else {
                    continue; // cut off meanwhile
                };
                sending.announced = self.dtvlsn(sending.announced)?;
                // Before the bytes leave: their acknowledgement may be here before `send` returns.
                self.core.lock().handle_sent(now, run.last, sending.announced.vlsn);
                self.send_run(&run, sending.announced)?;
                return Ok(SendStep::Sent);
            }
            let output = self.core.lock().poll_output(now, dtvlsn);
            match output {
                Some(FeederOutput::SendPosition { answer }) => {
                    sending.announced = self.dtvlsn(sending.announced)?;
                    self.send_position(next.prev(), sending.announced, answer)?;
                    return Ok(SendStep::Sent);
                }
                Some(FeederOutput::CloseSilent(silent)) => return Err(self.silent(silent)),
                None => {
                    // Where the log goes on beyond what may be sent, what is appended next, or the
                    // lack of it, brings DTVLSN further.
                    let until = Until::Beyond(next.prev().max(since.last));
                    return Ok(SendStep::Wait { until, since, due });
                }
            }
        }
    }

    fn send_run(&self, run: &EntryRun, dtvlsn: Dtvlsn) -> Result<()> {
        let head = Head {
            era: self.era,
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
            era: self.era,
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
        Ok(fingerprint_at(&self.log, vlsn)?
            .map_or(announced, |fingerprint| Dtvlsn { vlsn, fingerprint }))
    }

    fn read_acks(&self) -> Result<()> {
        while let Some(due) = self.handle_timeout()? {
            let wait = due.saturating_sub(self.clock.now());
            if let Some(frame) = self.channel.receive(wait)?
                && !self.handle_frame(&frame)?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// When the replica will have been silent for too long; `None` once the stream has ended.
    ///
    /// # Errors
    /// It has been silent for too long.
    pub fn handle_timeout(&self) -> Result<Option<Now>> {
        let core = self.core.lock();
        match core.handle_timeout(self.clock.now()) {
            Some(silent) => Err(self.silent(silent)),
            None => Ok(core.silence_ends()),
        }
    }

    /// The replica said something. False if that was a goodbye.
    ///
    /// # Errors
    /// What it said is not lawful; the stream has to end.
    pub fn handle_frame(&self, frame: &[u8]) -> Result<bool> {
        match StreamMessage::decode(frame)? {
            StreamMessage::Ack(ack) => {
                let moved = self.core.lock().handle_ack(self.clock.now(), ack)?;
                if let Some(ack) = moved {
                    // The sender first: what has gathered is on its way while others are told.
                    self.reader.cue();
                    self.host.handle_ack(ack);
                }
                Ok(true)
            }
            StreamMessage::HeadAsk { nonce } => {
                self.core.lock().handle_head_ask(self.clock.now(), nonce);
                // The sender answers: whoever reads acknowledgements never waits to send.
                self.reader.wake();
                Ok(true)
            }
            StreamMessage::Goodbye(_) => Ok(false),
            other @ (StreamMessage::Entries { .. }
            | StreamMessage::Fragment { .. }
            | StreamMessage::Position(_)
            | StreamMessage::HeadAnswer { .. }) => {
                Err(RepError::protocol(self.channel.peer(), "Ack", other.name()))
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

/// Fingerprint of the entry at `vlsn`, if this log still knows it, and can read it.
pub(crate) fn fingerprint_at(log: &Log, vlsn: Vlsn) -> Result<Option<Fingerprint>> {
    match log.header(vlsn) {
        Ok(Some((header, _))) => return Ok(Some(header.fingerprint)),
        Ok(None) => {}
        Err(LogError::Faulty { .. }) => return Ok(None),
        Err(cause) => return Err(cause.into()),
    }
    let anchor = log.positions().anchor;
    Ok((anchor.vlsn == vlsn && !vlsn.is_null()).then_some(anchor.fingerprint))
}
