//! Feeder: the master's half of one replica's stream.
//!
//! # Invariants          (each is asserted in `check_invariants`)
//! - `durable <= received <= sent`: a replica cannot acknowledge what was never sent, nor sync
//!   what it did not receive. `applied <= received`.
//! - Positions acknowledged on one session never move back.
//! - Nothing is sent but in `State::Streaming`, and what is sent continues what was sent.
//! - Whoever has no vote is sent nothing beyond DTVLSN, so that it never has to roll back.
//!
//! # Clock
//! A stream clocks itself: while the replica owes an answer, few entries gather, to leave together
//! with the answer or with the local log's next turn, whichever is first. DTVLSN rides with the
//! entries; it travels alone only when nothing else is to come. So a busy stream costs a few
//! frames and wake-ups per fsync, and a lone commit waits for nothing.
//!
//! # States
//! Handshake -> Syncup -> Streaming -> Closed          any -> Closed on error, silence or goodbye
//!
//! # Not here: reading the log and the channel (stream/feeder.rs), counting quorums
//! (core/commits.rs).
//! # See: docs/protocol.md#stream

use std::collections::VecDeque;
use std::time::Duration;

use noxu_util::{NULL_VLSN, Vlsn};

use crate::core::commits::Now;
use crate::core::replica::{StreamFault, check_era};
use crate::wire::handshake::NodeKind;
use crate::wire::message::{Ack, Era};

/// How long either side of a stream waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTiming {
    /// A feeder that sent nothing for so long sends its position.
    pub heartbeat: Duration,
    /// A peer that sent nothing for so long is taken for gone.
    pub silence: Duration,
}

impl Default for StreamTiming {
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100), silence: Duration::from_secs(5) }
    }
}

/// How much of the log a replica is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedLimit {
    /// All of it, as soon as it is there.
    All,
    /// What can no longer be rolled back.
    Dtvlsn,
}

impl FeedLimit {
    /// For a node of this kind.
    pub const fn of(kind: NodeKind) -> Self {
        match kind {
            NodeKind::Electable | NodeKind::Arbiter => Self::All,
            NodeKind::Secondary | NodeKind::Monitor => Self::Dtvlsn,
        }
    }
}

/// The master's half of one replica's stream.
#[derive(Debug)]
pub struct Feeder {
    era: Era,
    timing: StreamTiming,
    limit: FeedLimit,
    state: State,
}

#[derive(Debug)]
enum State {
    Handshake,
    Syncup,
    Streaming(Streaming),
    Closed,
}

#[derive(Debug)]
struct Streaming {
    sent: Vlsn,
    /// DTVLSN as the replica was told.
    announced: Vlsn,
    /// The replica is known to have received everything through it.
    answered: Vlsn,
    acked: Ack,
    /// The replica wants to know where the log ends.
    head_asked: Option<u64>,
    last_sent: Now,
    last_heard: Now,
    /// When what was sent: (last VLSN of a frame, time), oldest unacknowledged first.
    unacked: VecDeque<(Vlsn, Now)>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeederOutput {
    /// Send the master's position. With `answer` the replica is to say something too.
    SendPosition {
        /// Nothing was sent for a heartbeat's time.
        answer: bool,
    },
    /// Close: the replica was silent for so long.
    CloseSilent(Duration),
}

/// How far behind a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Sent and not acknowledged as durable, or not even sent.
    pub entries: u64,
    /// Age of the oldest frame that is not acknowledged as durable.
    pub time: Duration,
}

/// More entries than these do not wait for others to leave with them.
const ENOUGH_ENTRIES: i64 = 256;

/// Most frames whose sending time is remembered; beyond that the newest sample is widened.
const MOST_SAMPLES: usize = 1024;

impl Feeder {
    /// A feeder whose replica has just connected.
    pub fn new(era: Era, timing: StreamTiming, limit: FeedLimit) -> Self {
        Self { era, timing, limit, state: State::Handshake }
    }

    /// The mastership it feeds in.
    pub fn era(&self) -> Era {
        self.era
    }

    /// Through where a log that ends at `last` may be sent, now that `dtvlsn` is known.
    pub fn may_send(&self, last: Vlsn, dtvlsn: Vlsn) -> Vlsn {
        match self.limit {
            FeedLimit::All => last,
            FeedLimit::Dtvlsn => last.min(dtvlsn),
        }
    }

    /// The handshake succeeded.
    pub fn handle_welcomed(&mut self) {
        match self.state {
            State::Handshake => self.state = State::Syncup,
            State::Syncup | State::Streaming(_) | State::Closed => {
                panic!("welcomed in {:?}", self.state)
            }
        }
    }

    /// The syncup succeeded; the stream begins with `start`. The replica holds what is before it.
    pub fn handle_synced_up(&mut self, now: Now, start: Vlsn) {
        match self.state {
            State::Syncup => {
                self.state = State::Streaming(Streaming {
                    sent: start.prev(),
                    announced: NULL_VLSN,
                    answered: start.prev(),
                    acked: Ack { era: self.era, ..Ack::default() },
                    head_asked: None,
                    last_sent: now,
                    last_heard: now,
                    unacked: VecDeque::new(),
                });
            }
            State::Handshake | State::Streaming(_) | State::Closed => {
                panic!("synced up in {:?}", self.state)
            }
        }
    }

    /// The next VLSN to send; `None` unless streaming.
    pub fn next(&self) -> Option<Vlsn> {
        self.streaming().map(|s| s.sent.next())
    }

    /// Whether entries through `last` had better wait for the replica's answer to what was sent;
    /// then the VLSN beyond which they wait no more.
    pub fn gathers(&self, last: Vlsn) -> Option<Vlsn> {
        let streaming = self.streaming()?;
        let enough = Vlsn::new(streaming.sent.sequence() + ENOUGH_ENTRIES);
        let few = last > streaming.sent && last <= enough;
        (few && streaming.answered < streaming.sent).then_some(enough)
    }

    /// Entries through `last`, or just the position, go out now, with `dtvlsn`. Said before the
    /// first byte leaves, because their acknowledgement may arrive before the call that sends them
    /// has returned.
    pub fn handle_sent(&mut self, now: Now, last: Vlsn, dtvlsn: Vlsn) {
        let State::Streaming(streaming) = &mut self.state else { return };
        assert!(last >= streaming.sent, "sent {last} after {}", streaming.sent);
        streaming.last_sent = now;
        streaming.announced = streaming.announced.max(dtvlsn);
        if last > streaming.sent {
            streaming.sent = last;
            if streaming.unacked.len() < MOST_SAMPLES {
                streaming.unacked.push_back((last, now));
            } else if let Some(sample) = streaming.unacked.back_mut() {
                sample.0 = last;
            }
        }
    }

    /// What is to be sent though there are no entries to send, at a time when `dtvlsn` is known.
    pub fn poll_output(&self, now: Now, dtvlsn: Vlsn) -> Option<FeederOutput> {
        let State::Streaming(streaming) = &self.state else { return None };
        if let Some(silent) = self.handle_timeout(now) {
            return Some(FeederOutput::CloseSilent(silent));
        }
        if now.saturating_sub(streaming.last_sent) >= self.timing.heartbeat {
            return Some(FeederOutput::SendPosition { answer: true });
        }
        // What is sent and not durable yet will bring DTVLSN further.
        let news = dtvlsn > streaming.announced && dtvlsn >= streaming.sent;
        news.then_some(FeederOutput::SendPosition { answer: false })
    }

    /// An acknowledgement arrived. `Some` if the positions that count moved.
    pub fn handle_ack(&mut self, now: Now, ack: Ack) -> Result<Option<Ack>, StreamFault> {
        let State::Streaming(streaming) = &mut self.state else { return Ok(None) };
        check_era(ack.era, self.era)?;
        let before = streaming.acked;
        let lawful = ack.durable <= ack.received
            && ack.applied <= ack.received
            && ack.received <= streaming.sent
            && ack.received >= before.received
            && ack.durable >= before.durable;
        if !lawful {
            return Err(StreamFault::BadAck { found: ack, before, sent: streaming.sent });
        }
        streaming.last_heard = now;
        streaming.acked = ack;
        streaming.answered = streaming.answered.max(ack.received);
        while streaming.unacked.front().is_some_and(|(last, _)| *last <= ack.durable) {
            streaming.unacked.pop_front();
        }
        let moved = ack.received > before.received || ack.durable > before.durable;
        Ok(moved.then_some(ack))
    }

    /// The replica asks where the log ends. An earlier question is void.
    pub fn handle_head_ask(&mut self, now: Now, nonce: u64) {
        let State::Streaming(streaming) = &mut self.state else { return };
        streaming.last_heard = now;
        streaming.head_asked = Some(nonce);
    }

    /// The question to be answered, once.
    pub fn poll_head_asked(&mut self) -> Option<u64> {
        let State::Streaming(streaming) = &mut self.state else { return None };
        streaming.head_asked.take()
    }

    /// When the replica was last heard; `None` unless streaming.
    pub fn last_heard(&self) -> Option<Now> {
        self.streaming().map(|s| s.last_heard)
    }

    /// How long the replica has been silent, if that is too long.
    pub fn handle_timeout(&self, now: Now) -> Option<Duration> {
        let silent = now.saturating_sub(self.streaming()?.last_heard);
        (silent >= self.timing.silence).then_some(silent)
    }

    /// When [`Feeder::poll_output`] is due next.
    pub fn poll_timeout(&self) -> Option<Now> {
        let streaming = self.streaming()?;
        let beat = streaming.last_sent + self.timing.heartbeat;
        Some(beat.min(streaming.last_heard + self.timing.silence))
    }

    /// When the replica has been silent for too long; `None` unless streaming.
    pub fn silence_ends(&self) -> Option<Now> {
        self.streaming().map(|s| s.last_heard + self.timing.silence)
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self) {
        self.state = State::Closed;
    }

    /// What the replica acknowledged last.
    pub fn acked(&self) -> Ack {
        self.streaming().map_or_else(Ack::default, |s| s.acked)
    }

    /// Whether a stream is open whose replica does not hold everything through `last` durably.
    pub fn is_streaming_behind(&self, last: Vlsn) -> bool {
        self.streaming().is_some_and(|s| s.acked.durable < last)
    }

    /// Last VLSN sent.
    pub fn sent(&self) -> Vlsn {
        self.streaming().map_or(NULL_VLSN, |s| s.sent)
    }

    /// How far the replica is behind a log that ends at `last`.
    pub fn lag(&self, now: Now, last: Vlsn) -> Lag {
        let Some(streaming) = self.streaming() else { return Lag::default() };
        let oldest = streaming.unacked.front();
        Lag {
            entries: last.since(streaming.acked.durable),
            time: oldest.map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at)),
        }
    }

    fn streaming(&self) -> Option<&Streaming> {
        match &self.state {
            State::Streaming(streaming) => Some(streaming),
            State::Handshake | State::Syncup | State::Closed => None,
        }
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        if let State::Streaming(s) = &self.state {
            assert!(s.acked.durable <= s.acked.received, "{:?}", s.acked);
            assert!(s.acked.applied <= s.acked.received, "{:?}", s.acked);
            assert!(s.acked.received <= s.sent, "{:?} beyond sent {}", s.acked, s.sent);
            assert!(s.unacked.iter().all(|(v, _)| *v > s.acked.durable && *v <= s.sent));
        }
    }
}

#[cfg(test)]
mod tests {
    use noxu_util::Term;

    use super::*;

    const BEAT: Duration = Duration::from_millis(100);
    const SILENCE: Duration = Duration::from_secs(1);

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    const ERA: Era = Era { epoch: 1, term: Term::new(3) };

    fn ack(received: i64, durable: i64) -> Ack {
        Ack { era: ERA, received: v(received), durable: v(durable), applied: NULL_VLSN }
    }

    fn streaming() -> Feeder {
        let timing = StreamTiming { heartbeat: BEAT, silence: SILENCE };
        let mut feeder = Feeder::new(ERA, timing, FeedLimit::All);
        assert_eq!((feeder.next(), feeder.poll_timeout()), (None, None));
        feeder.handle_welcomed();
        feeder.handle_synced_up(ms(0), v(11));
        feeder
    }

    #[test]
    fn a_stream_begins_behind_the_matchpoint_and_continues_what_was_sent() {
        let mut feeder = streaming();
        assert_eq!(feeder.next(), Some(v(11)));
        feeder.handle_sent(ms(1), v(20), NULL_VLSN);
        assert_eq!(feeder.next(), Some(v(21)));
        assert_eq!(feeder.handle_ack(ms(2), ack(20, 10)), Ok(Some(ack(20, 10))));
        assert_eq!(feeder.handle_ack(ms(3), ack(20, 10)), Ok(None));
        assert_eq!(feeder.handle_ack(ms(4), ack(20, 20)), Ok(Some(ack(20, 20))));
        feeder.check_invariants();
        feeder.handle_closed();
        assert_eq!(feeder.next(), None);
    }

    #[test]
    fn an_ack_of_what_was_never_sent_or_of_another_term_is_a_fault() {
        let mut feeder = streaming();
        feeder.handle_sent(ms(1), v(20), NULL_VLSN);
        for bad in [ack(21, 20), ack(19, 20)] {
            assert!(matches!(feeder.handle_ack(ms(2), bad), Err(StreamFault::BadAck { .. })));
        }
        feeder.handle_ack(ms(2), ack(18, 15)).unwrap();
        for back in [ack(17, 15), ack(18, 14)] {
            assert!(matches!(feeder.handle_ack(ms(2), back), Err(StreamFault::BadAck { .. })));
        }
        for term in [2, 4].map(Term::new) {
            let foreign = Ack { era: Era { term, ..ERA }, ..ack(20, 20) };
            let fault = feeder.handle_ack(ms(2), foreign).unwrap_err();
            assert_eq!(fault, StreamFault::ForeignTerm { found: term, expected: ERA.term });
            assert_eq!(fault.newer_term(), (term > ERA.term).then_some(term));
        }
        let foreign = Ack { era: Era { epoch: 2, term: Term::new(9) }, ..ack(20, 20) };
        let fault = feeder.handle_ack(ms(2), foreign).unwrap_err();
        assert_eq!(fault, StreamFault::ForeignEpoch { found: 2, expected: 1 });
        assert_eq!(fault.newer_term(), None, "terms of another epoch are others");
        feeder.check_invariants();
    }

    #[test]
    fn who_has_no_vote_is_sent_nothing_beyond_dtvlsn() {
        let timing = StreamTiming { heartbeat: BEAT, silence: SILENCE };
        let limits = [NodeKind::Electable, NodeKind::Secondary].map(FeedLimit::of);
        assert_eq!(limits, [FeedLimit::All, FeedLimit::Dtvlsn]);
        let [voter, other] = limits.map(|limit| Feeder::new(ERA, timing, limit));
        assert_eq!((voter.may_send(v(9), v(5)), other.may_send(v(9), v(5))), (v(9), v(5)));
        assert_eq!(other.may_send(v(9), v(12)), v(9));
    }

    #[test]
    fn a_question_for_the_logs_end_is_answered_once_and_the_last_one_only() {
        let mut feeder = streaming();
        feeder.handle_head_ask(ms(3), 5);
        feeder.handle_head_ask(ms(4), 6);
        assert_eq!(feeder.last_heard(), Some(ms(4)));
        assert_eq!((feeder.poll_head_asked(), feeder.poll_head_asked()), (Some(6), None));
    }

    #[test]
    fn silence_is_filled_with_positions_and_ends_the_stream_when_the_replica_keeps_it() {
        let mut feeder = streaming();
        assert_eq!(feeder.poll_timeout(), Some(ms(100)));
        assert_eq!(feeder.silence_ends(), Some(ms(1000)));
        assert_eq!(feeder.poll_output(ms(99), NULL_VLSN), None);
        let beat = FeederOutput::SendPosition { answer: true };
        assert_eq!(feeder.poll_output(ms(100), NULL_VLSN), Some(beat));
        feeder.handle_sent(ms(100), v(10), NULL_VLSN);
        assert_eq!(feeder.poll_timeout(), Some(ms(200)));
        feeder.handle_ack(ms(150), ack(10, 10)).unwrap();
        feeder.handle_sent(ms(1100), v(10), NULL_VLSN);
        assert_eq!(feeder.poll_timeout(), Some(ms(1150)));
        let close = FeederOutput::CloseSilent(ms(1000));
        assert_eq!(feeder.poll_output(ms(1150), NULL_VLSN), Some(close));
        assert_eq!(feeder.handle_timeout(ms(1150)), Some(ms(1000)));
    }

    #[test]
    fn few_entries_gather_while_the_replica_owes_an_answer() {
        let mut feeder = streaming();
        assert_eq!(feeder.gathers(v(11)), None, "nothing is under way");
        feeder.handle_sent(ms(1), v(12), NULL_VLSN);
        let enough = v(12 + ENOUGH_ENTRIES);
        assert_eq!(feeder.gathers(v(12)), None, "there is nothing to send");
        assert_eq!(feeder.gathers(v(13)), Some(enough));
        assert_eq!(feeder.gathers(enough.next()), None);
        feeder.handle_ack(ms(2), ack(11, 10)).unwrap();
        assert_eq!(feeder.gathers(v(13)), Some(enough));
        feeder.handle_ack(ms(3), ack(12, 10)).unwrap();
        assert_eq!(feeder.gathers(v(13)), None);
    }

    #[test]
    fn dtvlsn_travels_alone_once_it_reaches_what_was_sent_and_rides_with_entries_before() {
        let mut feeder = streaming();
        feeder.handle_sent(ms(1), v(20), v(10));
        assert_eq!(feeder.poll_output(ms(2), v(10)), None);
        assert_eq!(feeder.poll_output(ms(2), v(15)), None);
        let alone = FeederOutput::SendPosition { answer: false };
        assert_eq!(feeder.poll_output(ms(2), v(20)), Some(alone));
        feeder.handle_sent(ms(3), v(25), v(20));
        assert_eq!(feeder.poll_output(ms(4), v(20)), None);
        feeder.handle_sent(ms(5), v(25), v(25));
        assert_eq!(feeder.poll_output(ms(6), v(25)), None);
    }

    #[test]
    fn lag_is_counted_from_the_durable_position() {
        let mut feeder = streaming();
        feeder.handle_sent(ms(10), v(20), NULL_VLSN);
        feeder.handle_sent(ms(30), v(40), NULL_VLSN);
        feeder.handle_ack(ms(35), ack(40, 20)).unwrap();
        assert_eq!(feeder.lag(ms(50), v(100)), Lag { entries: 80, time: ms(20) });
        feeder.handle_ack(ms(60), ack(40, 40)).unwrap();
        assert_eq!(feeder.lag(ms(90), v(40)), Lag::default());
    }
}
