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
//! `receiving` -> `core` -> the channel's sending lock, the log's own: an acknowledgement is sent
//! under `core`, so that acknowledgements leave in the order in which they were made. They are
//! small; a peer that does not take them is gone after the channel's write deadline. The gate, which
//! holds both, is taken by whoever gives a vote: nothing that holds either waits for that thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use noxu_log::{ChainState, EntryRun, Log};
use noxu_util::{Term, Vlsn};
use parking_lot::{Mutex, MutexGuard};

use crate::clock::Clock;
use crate::core::commits::Now;
use crate::core::feeder::StreamTiming;
use crate::core::node::Ended;
use crate::core::replica::{Replica, StreamFault};
use crate::error::{RepError, Result};
use crate::mutant::{self, Mutant};
use crate::net::channel::Channel;
use crate::stream::feeder::fingerprint_at;
use crate::stream::frames::Frames;
use crate::wire::election::LogEnd;
use crate::wire::message::{Ack, Dtvlsn, Era, Farewell, Head, StreamMessage};

/// What a replica's stream asks of the node it belongs to. What is told is told under the stream's
/// locks or may be: it is only noted, and nothing there waits for who uses [`ReplicaStream::gate`].
pub trait ReplicaHost: Send + Sync {
    /// Everything through `limit` may be applied.
    fn handle_may_apply(&self, limit: Vlsn);

    /// The master announced this DTVLSN, and the logs agree there as far as this one goes.
    fn handle_dtvlsn(&self, dtvlsn: Vlsn);

    /// Everything through it is applied.
    fn applied(&self) -> Vlsn;

    /// Entries were appended.
    fn handle_appended(&self, run: &EntryRun);

    /// The master's log ended at `head` after it was asked with `nonce`, and everything through it
    /// is durable here, received or verified on this stream.
    fn handle_head_confirmed(&self, nonce: u64, head: LogEnd);
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// Part of the stream.
    Frame,
    /// The master leaves.
    Goodbye(Farewell),
}

/// While it is held no frame is handled and no acknowledgement leaves. Whoever compares the log's
/// end with another's, to vote or to say that an entry was never here, takes it before it looks and
/// keeps it until the new term is durable and the fence is up.
pub struct AckGate<'a> {
    core: MutexGuard<'a, Replica>,
    _receiving: MutexGuard<'a, Receiving>,
}

impl AckGate<'_> {
    /// From now on nothing of a term below `below` is taken or acknowledged. On a stream of such a
    /// term the next frame is an error.
    pub fn fence(&mut self, below: Term) {
        self.core.handle_fence(below);
    }

    /// The highest VLSN that was ever acknowledged as durable on this stream.
    pub fn acked(&self) -> Vlsn {
        self.core.acked().durable
    }
}

/// What the end of a stream says about its master.
pub fn ended(outcome: &Result<Option<Farewell>>) -> Ended {
    match outcome {
        Ok(Some(Farewell { successor, .. })) => Ended::Goodbye { successor: successor.clone() },
        Ok(None) => Ended::Broken,
        Err(RepError::Rejected(reason)) => Ended::Refused(reason.clone()),
        Err(cause) if cause.is_silence() => Ended::Silent,
        Err(cause) if cause.is_disconnect() => Ended::Broken,
        Err(_) => Ended::Fault,
    }
}

impl ReplicaStream {
    /// A stream from the master of `era` over `channel`, once the syncup is over and `log` is a
    /// prefix of the master's. `known_dtvlsn` is what this node heard of before.
    pub fn new(
        era: Era,
        timing: StreamTiming,
        log: Log,
        channel: Arc<dyn Channel>,
        host: Arc<dyn ReplicaHost>,
        clock: Clock,
        known_dtvlsn: Vlsn,
    ) -> Self {
        let max_entry_bytes = log.config().max_body_bytes as usize + noxu_log::ENTRY_HEADER_BYTES;
        let mut core = Replica::new(era, timing, max_entry_bytes);
        let positions = log.positions();
        core.handle_welcomed();
        core.handle_synced_up(
            clock.now(),
            positions.last,
            positions.last_fingerprint,
            positions.durable,
            known_dtvlsn,
        );
        core.handle_damaged(log.first_damaged());
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
    /// Returns the master's farewell; `None` if the stream was closed on this side.
    ///
    /// # Errors
    /// Whatever else ended the stream.
    pub fn run(&self) -> Result<Option<Farewell>> {
        let outcome = self.receive_all().or_else(|cause| self.last_words(cause));
        self.handle_closed();
        outcome
    }

    /// A master that closes sends what is durable and its farewell first: who meets the closed channel
    /// with an acknowledgement has both still to read, and answers nothing any more.
    fn last_words(&self, cause: RepError) -> Result<Option<Farewell>> {
        if cause.is_disconnect() {
            while let Ok(Some(frame)) = self.channel.receive(Duration::ZERO) {
                match self.handle_frame(&frame.into()) {
                    Ok(Handled::Goodbye(farewell)) => return Ok(Some(farewell)),
                    Ok(Handled::Frame) => {}
                    Err(unanswered) if unanswered.is_disconnect() => {}
                    Err(cause) => return Err(cause),
                }
            }
        }
        Err(cause)
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
        let confirmed = {
            let mut core = self.core.lock();
            if core.is_closed() {
                return Ok(());
            }
            // The log mends, and somebody may have met rot in it since.
            core.handle_damaged(self.log.first_damaged());
            core.handle_synced(durable);
            core.handle_applied(self.host.applied());
            let ack = core.poll_ack(self.clock.now());
            self.send_ack(ack)?;
            core.poll_head_confirmed()
        };
        self.confirm(confirmed)
    }

    /// Keeps frames and acknowledgements back. Waits for the frame that is being handled.
    pub fn gate(&self) -> AckGate<'_> {
        let receiving = self.receiving.lock();
        AckGate { core: self.core.lock(), _receiving: receiving }
    }

    /// [`AckGate::fence`], for a term that nothing is compared for.
    pub fn fence(&self, below: Term) {
        self.gate().fence(below);
    }

    /// Ends the stream. On return no frame of it is handled any more.
    pub fn halt(&self) {
        self.channel.close();
        self.fence(Term::new(u32::MAX));
    }

    /// When the master was last heard; `None` once the stream has ended.
    pub fn heard(&self) -> Option<Now> {
        self.core.lock().last_heard()
    }

    /// Asks the master where its log ends. Once what it answers is durable here, received on this
    /// stream, the host is told by [`ReplicaHost::handle_head_confirmed`]. Only the last question
    /// counts.
    ///
    /// # Errors
    /// The channel's.
    pub fn ask_head(&self, nonce: u64) -> Result<()> {
        let mut core = self.core.lock();
        if core.is_closed() {
            return Ok(());
        }
        core.handle_head_asked(nonce);
        self.channel.send(&StreamMessage::HeadAsk { nonce }.encode())
    }

    fn confirm(&self, confirmed: Option<(u64, LogEnd)>) -> Result<()> {
        let Some((nonce, head)) = confirmed else { return Ok(()) };
        if let Some(here) = fingerprint_at(&self.log, head.vlsn)?
            && here != head.fingerprint
        {
            return Err(StreamFault::ForeignHead { head, here }.into());
        }
        self.host.handle_head_confirmed(nonce, head);
        Ok(())
    }

    fn receive_all(&self) -> Result<Option<Farewell>> {
        self.begin()?;
        let (frames, mut buffer) = (Frames::default(), Vec::new());
        while let Some(due) = self.handle_timeout()? {
            let unsynced = self.is_unsynced();
            let wait = if unsynced { Duration::ZERO } else { due.saturating_sub(self.clock.now()) };
            if self.channel.receive_into(&mut buffer, wait)? {
                match self.handle_frame(&frames.share(&mut buffer))? {
                    Handled::Frame => {}
                    Handled::Goodbye(farewell) => return Ok(Some(farewell)),
                }
            } else if unsynced {
                self.sync()?;
            }
        }
        Ok(None)
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
            Received::Goodbye(farewell) => return Ok(Handled::Goodbye(farewell)),
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

    /// Sends the acknowledgement that precedes the fsync, if a committer waits for it; whether one
    /// did. Else a sign of life, if that is due: the disk may take its time.
    fn acknowledge_received(&self) -> Result<bool> {
        let now = self.clock.now();
        let mut core = self.core.lock();
        core.handle_applied(self.host.applied());
        let awaited = core.poll_received_ack(now);
        self.send_ack(awaited.or_else(|| core.poll_life_sign(now)))?;
        Ok(awaited.is_some())
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
                self.core.lock().handle_position(now, &position)?;
                self.handle_dtvlsn(position.dtvlsn)?;
                self.raise_limit();
                let mut core = self.core.lock();
                core.handle_applied(self.host.applied());
                let answer = core.poll_ack(now);
                self.send_ack(answer)?;
                Ok(Received::Bytes(0))
            }
            StreamMessage::HeadAnswer { nonce, head } => {
                let confirmed = {
                    let mut core = self.core.lock();
                    core.handle_head_answer(now, nonce, head);
                    core.poll_head_confirmed()
                };
                self.confirm(confirmed)?;
                Ok(Received::Bytes(0))
            }
            StreamMessage::Goodbye(farewell) => Ok(Received::Goodbye(farewell)),
            other @ (StreamMessage::Ack(_) | StreamMessage::HeadAsk { .. }) => {
                Err(RepError::protocol(self.channel.peer(), "Entries or Position", other.name()))
            }
        }
    }

    fn append(&self, bytes: Bytes, head: &Head, chain: &mut ChainState) -> Result<()> {
        let max_body = self.log.config().max_body_bytes;
        let mut before = *chain;
        if mutant::is_on(Mutant::PreviousNotChecked) {
            before.fingerprint = head.previous_fingerprint;
        }
        let run = EntryRun::verify(bytes, before, max_body)
            .map_err(|fault| RepError::BadEntry { peer: self.channel.peer(), fault })?;
        if run.last_term > head.era.term {
            let (found, expected) = (run.last_term, head.era.term);
            return Err(StreamFault::ForeignTerm { found, expected }.into());
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
    Goodbye(Farewell),
}

#[cfg(test)]
mod tests {
    use noxu_util::{Fingerprint, NULL_VLSN};

    use super::*;
    use noxu_log::segment::name::{log_dir, segment_name};
    use noxu_log::{EntryFlags, EntryKind, NewEntry};

    use crate::damaged_log::{append, damaged, sealed, whole};
    use crate::net::channel::LocalChannelPair;
    use crate::wire::message::Position;

    struct Nobody;

    impl ReplicaHost for Nobody {
        fn handle_may_apply(&self, _: Vlsn) {}

        fn handle_dtvlsn(&self, _: Vlsn) {}

        fn applied(&self) -> Vlsn {
            NULL_VLSN
        }

        fn handle_appended(&self, _: &EntryRun) {}

        fn handle_head_confirmed(&self, _: u64, _: LogEnd) {}
    }

    const ERA: Era = Era { epoch: 0, term: Term::new(1) };

    /// A stream of `log`, and its master's end of the channel.
    fn stream(log: &Log) -> (ReplicaStream, Arc<dyn Channel>) {
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let (timing, clock) = (StreamTiming::default(), Clock::start());
        let (channel, host) = (Arc::new(channel_a), Arc::new(Nobody));
        let stream = ReplicaStream::new(ERA, timing, log.clone(), channel, host, clock, NULL_VLSN);
        stream.begin().unwrap();
        (stream, Arc::new(channel_b))
    }

    fn durable(master: &Arc<dyn Channel>) -> i64 {
        let frame = master.receive(Duration::ZERO).unwrap().expect("an acknowledgement");
        match StreamMessage::decode(&frame).unwrap() {
            StreamMessage::Ack(ack) => ack.durable.sequence(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn damage_keeps_acknowledgements_back_until_it_is_mended_or_a_checkpoint_holds_it() {
        let (log, entry) = damaged();
        let (mended, master) = stream(&log);
        assert_eq!(durable(&master), 4);
        mended.handle_durable(Vlsn::new(10)).unwrap();
        assert_eq!(master.receive(Duration::ZERO).unwrap(), None);
        log.repair(&entry).unwrap();
        mended.handle_durable(Vlsn::new(10)).unwrap();
        assert_eq!(durable(&master), 10);

        let (log, _) = damaged();
        log.set_checkpoint(Vlsn::new(5));
        assert_eq!((log.first_damaged(), log.faulty().len()), (None, 1));
        assert_eq!(durable(&stream(&log).1), 10);
    }

    #[test]
    fn rot_that_is_met_while_the_stream_runs_keeps_acknowledgements_back_from_then_on() {
        let (env, log) = sealed();
        let (stream, master) = stream(&log);
        let last = log.positions().last;
        assert_eq!(durable(&master), last.sequence());
        let first = log.sealed_segments()[0].number;
        let path = log_dir(log.dir()).join(segment_name(first));
        env.corrupt(&path, 200, 0x10).unwrap();
        let next = append(&log, 10);
        stream.core.lock().handle_appended(next.last, next.last_fingerprint);
        assert!(log.examine(first).unwrap());
        log.sync_now().unwrap();
        stream.handle_durable(next.last).unwrap();
        assert_eq!(master.receive(Duration::ZERO).unwrap(), None);
    }

    #[test]
    fn a_damaged_entry_that_the_master_names_as_durable_is_no_fork_and_no_failure() {
        let (log, _) = damaged();
        let (stream, master) = stream(&log);
        assert_eq!(durable(&master), 4);
        let dtvlsn = Dtvlsn { vlsn: Vlsn::new(5), fingerprint: Fingerprint::from_u64(9) };
        let last = Vlsn::new(10);
        let position = Position { era: ERA, last, dtvlsn, want_received: false, answer: true };
        let frame = StreamMessage::Position(position).encode();
        assert_eq!(stream.handle_frame(&frame.into()).unwrap(), Handled::Frame);
        assert_eq!(durable(&master), 4, "and the question is answered");
    }

    /// Syncs and tells the stream, as a flusher may at any moment: here, when DTVLSN moves.
    #[derive(Default)]
    struct Flushes {
        stream: std::sync::OnceLock<std::sync::Weak<ReplicaStream>>,
    }

    impl ReplicaHost for Flushes {
        fn handle_may_apply(&self, _: Vlsn) {}
        fn handle_dtvlsn(&self, _: Vlsn) {
            let stream = self.stream.get().unwrap().upgrade().unwrap();
            stream.log.sync_now().unwrap();
            stream.handle_durable(stream.log.positions().durable).unwrap();
        }
        fn applied(&self) -> Vlsn {
            NULL_VLSN
        }
        fn handle_appended(&self, _: &EntryRun) {}
        fn handle_head_confirmed(&self, _: u64, _: LogEnd) {}
    }

    #[test]
    fn an_answer_to_a_position_does_not_leave_behind_a_newer_acknowledgement() {
        let (log, masters) = (whole(), whole());
        for n in 0..2_u8 {
            let body = [n; 10];
            let entry = [NewEntry::new(EntryKind(16), EntryFlags::COMMIT, &body)];
            masters.append(Term::new(1), &entry).unwrap();
        }
        let LocalChannelPair { channel_a, channel_b } = LocalChannelPair::new();
        let host = Arc::new(Flushes::default());
        let stream = Arc::new(ReplicaStream::new(
            ERA,
            StreamTiming::default(),
            log,
            Arc::new(channel_a),
            Arc::clone(&host) as _,
            Clock::start(),
            NULL_VLSN,
        ));
        host.stream.set(Arc::downgrade(&stream)).unwrap();
        stream.begin().unwrap();
        let master: Arc<dyn Channel> = Arc::new(channel_b);
        assert_eq!(durable(&master), 10);
        let run = masters.read(Vlsn::new(11), 1 << 20).unwrap().unwrap();
        let head = Head {
            era: ERA,
            first: run.first,
            previous_fingerprint: run.previous_fingerprint,
            dtvlsn: Dtvlsn::default(),
            want_received: false,
        };
        let frame = [&head.encode_entries()[..], &run.parts.concat()].concat();
        stream.handle_frame(&frame.into()).unwrap();
        let fingerprint = masters.header(Vlsn::new(11)).unwrap().unwrap().0.fingerprint;
        let dtvlsn = Dtvlsn { vlsn: Vlsn::new(11), fingerprint };
        let position =
            Position { era: ERA, last: Vlsn::new(12), dtvlsn, want_received: false, answer: true };
        stream.handle_frame(&StreamMessage::Position(position).encode().into()).unwrap();
        assert_eq!(durable(&master), 12);
        let later = master.receive(Duration::ZERO).unwrap();
        assert!(later.is_none(), "an older acknowledgement left behind it: {later:?}");
    }
}
