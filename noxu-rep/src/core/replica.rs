//! Replica: the receiving half of a stream.
//!
//! # Invariants          (each is asserted in `check_invariants`)
//! - `durable <= received`, and an acknowledgement names only what was verified in this mastership
//!   and, as durable, only what was fsynced before and lies below the first damaged entry.
//! - Frames continue the log exactly: next VLSN, equal previous fingerprint, same epoch and term.
//! - Once the stream is fenced nothing of it is taken or acknowledged any more.
//! - `may_apply <= min(DTVLSN, received)`: what is applied can no longer be rolled back.
//! - A reassembled entry is never longer than announced, and memory grows only as bytes arrive.
//!
//! # States
//! Handshake -> Syncup -> Streaming -> Closed          any -> Closed on error, silence or goodbye
//!
//! # Not here: bytes (stream/replica.rs), what to do with an own tail (core/rollback.rs).
//! # See: CONSENSUS.md A1, A2, C3, C5; docs/protocol.md#stream

use std::time::Duration;

use noxu_util::{Fingerprint, Term, Vlsn};

use crate::core::commits::Now;
use crate::core::feeder::StreamTiming;
use crate::mutant::{self, Mutant};
use crate::wire::election::LogEnd;
use crate::wire::message::{Ack, Dtvlsn, Era, Head, Position};

/// How a peer broke the rules of a stream. Its connection is closed; nothing else is harmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamFault {
    /// Entries are missing between what was received and what came.
    #[error("entries missing: VLSN {found} came, {expected} is next")]
    Gap {
        /// First VLSN that came.
        found: Vlsn,
        /// The one that continues the log.
        expected: Vlsn,
    },
    /// Entries came that were received before.
    #[error("entries came twice: VLSN {found} came, {expected} is next")]
    Duplicate {
        /// First VLSN that came.
        found: Vlsn,
        /// The one that continues the log.
        expected: Vlsn,
    },
    /// The entries belong to another history.
    #[error("VLSN {vlsn} follows fingerprint {found} at the master, {expected} here")]
    Fork {
        /// First VLSN that came.
        vlsn: Vlsn,
        /// Fingerprint before it, as sent.
        found: Fingerprint,
        /// Fingerprint of this log's end.
        expected: Fingerprint,
    },
    /// The message is of another epoch than the stream.
    #[error("message of epoch {found} on a stream of epoch {expected}")]
    ForeignEpoch {
        /// Epoch of the message.
        found: u32,
        /// Epoch of the stream.
        expected: u32,
    },
    /// The message is of another term than the stream.
    #[error("message of term {found} on a stream of term {expected}")]
    ForeignTerm {
        /// Term of the message.
        found: Term,
        /// Term of the stream.
        expected: Term,
    },
    /// The node has promised itself to a newer term than the stream's.
    #[error("a stream of term {term} goes on in term {below}")]
    Fenced {
        /// Term of the stream.
        term: Term,
        /// The node's.
        below: Term,
    },
    /// The entries differ at what the master says is the end of its log.
    #[error("{head} is the end of the master's log; the fingerprint there is {here} here")]
    ForeignHead {
        /// The master's end.
        head: LogEnd,
        /// Fingerprint in this log.
        here: Fingerprint,
    },
    /// An acknowledgement that cannot be true.
    #[error("impossible acknowledgement {found:?}: sent through {sent}, acknowledged {before:?}")]
    BadAck {
        /// As it came.
        found: Ack,
        /// The one before it.
        before: Ack,
        /// Last VLSN sent.
        sent: Vlsn,
    },
    /// A fragment does not continue the entry that is being put together.
    #[error("fragment of VLSN {vlsn} at byte {offset} of {total}; expected {expected}")]
    Fragment {
        /// The entry.
        vlsn: Vlsn,
        /// Where the fragment begins.
        offset: u32,
        /// Length of the entry.
        total: u32,
        /// What would have been lawful.
        expected: String,
    },
    /// What the group made durable has another fingerprint here: one of both logs is wrong.
    #[error(
        "ALARM: durable entry {vlsn} has fingerprint {here} here and {at_master} at the master; \
         this node stops and an operator must decide"
    )]
    DurableFork {
        /// The DTVLSN.
        vlsn: Vlsn,
        /// Fingerprint in this log.
        here: Fingerprint,
        /// Fingerprint announced.
        at_master: Fingerprint,
    },
}

impl StreamFault {
    /// The term of the peer, if it has a newer one than the stream: a master makes way for it.
    pub fn newer_term(&self) -> Option<Term> {
        match self {
            Self::ForeignTerm { found, expected } if found > expected => Some(*found),
            Self::ForeignTerm { .. }
            | Self::Gap { .. }
            | Self::Duplicate { .. }
            | Self::Fork { .. }
            | Self::ForeignEpoch { .. }
            | Self::Fenced { .. }
            | Self::ForeignHead { .. }
            | Self::BadAck { .. }
            | Self::Fragment { .. }
            | Self::DurableFork { .. } => None,
        }
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct Replica {
    era: Era,
    timing: StreamTiming,
    max_entry_bytes: usize,
    state: State,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one for each stream, which streams most of its life"
)]
enum State {
    Handshake,
    Syncup,
    Streaming(Streaming),
    Closed,
}

#[derive(Debug)]
struct Streaming {
    received: Vlsn,
    fingerprint: Fingerprint,
    durable: Vlsn,
    applied: Vlsn,
    dtvlsn: Vlsn,
    want_received: bool,
    /// The feeder wants to hear something although nothing moved.
    answer_due: bool,
    /// First entry that is in the log and cannot be read.
    damaged: Option<Vlsn>,
    /// The term that ended this stream's.
    fenced: Option<Term>,
    head: HeadQuestion,
    acked: Ack,
    last_heard: Now,
    last_said: Now,
    partial: Option<Partial>,
}

/// Where the master's log ends: whoever may have lost the end of its own asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadQuestion {
    None,
    Asked { nonce: u64 },
    Answered { nonce: u64, head: LogEnd },
}

#[derive(Debug)]
struct Partial {
    vlsn: Vlsn,
    total: u32,
    bytes: Vec<u8>,
}

impl Replica {
    /// A replica that has just connected to the master of `era`.
    pub fn new(era: Era, timing: StreamTiming, max_entry_bytes: usize) -> Self {
        Self { era, timing, max_entry_bytes, state: State::Handshake }
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

    /// The syncup succeeded and the own log, which ends at `last` with `fingerprint` and is synced
    /// through `durable`, is a prefix of the master's.
    pub fn handle_synced_up(
        &mut self,
        now: Now,
        last: Vlsn,
        fingerprint: Fingerprint,
        durable: Vlsn,
        dtvlsn: Vlsn,
    ) {
        match self.state {
            State::Syncup => {
                self.state = State::Streaming(Streaming {
                    received: last,
                    fingerprint,
                    durable: durable.min(last),
                    applied: noxu_util::NULL_VLSN,
                    dtvlsn,
                    want_received: false,
                    // The first acknowledgement tells the master where this node stands.
                    answer_due: true,
                    damaged: None,
                    fenced: None,
                    head: HeadQuestion::None,
                    acked: Ack { era: self.era, ..Ack::default() },
                    last_heard: now,
                    last_said: now,
                    partial: None,
                });
            }
            State::Handshake | State::Streaming(_) | State::Closed => {
                panic!("synced up in {:?}", self.state)
            }
        }
    }

    /// Checks that entries behind `head` would continue the log.
    pub fn handle_head(&mut self, now: Now, head: &Head) -> Result<(), StreamFault> {
        self.check_era(head.era)?;
        self.check_open()?;
        let s = self.streaming_mut();
        s.last_heard = now;
        let expected = s.received.next();
        if head.first > expected {
            return Err(StreamFault::Gap { found: head.first, expected });
        }
        if head.first < expected {
            return Err(StreamFault::Duplicate { found: head.first, expected });
        }
        if head.previous_fingerprint != s.fingerprint && !mutant::is_on(Mutant::PreviousNotChecked)
        {
            return Err(StreamFault::Fork {
                vlsn: head.first,
                found: head.previous_fingerprint,
                expected: s.fingerprint,
            });
        }
        s.want_received |= head.want_received;
        Ok(())
    }

    /// Whole entries come while an entry is being put together: not lawful.
    pub fn handle_whole(&mut self, first: Vlsn) -> Result<(), StreamFault> {
        match &self.streaming_mut().partial {
            None => Ok(()),
            Some(partial) => Err(StreamFault::Fragment {
                vlsn: first,
                offset: 0,
                total: partial.total,
                expected: format!("byte {} of VLSN {}", partial.bytes.len(), partial.vlsn),
            }),
        }
    }

    /// Part of a large entry came, its head checked; the whole entry once it is complete.
    pub fn handle_fragment(
        &mut self,
        vlsn: Vlsn,
        total: u32,
        offset: u32,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, StreamFault> {
        let max = self.max_entry_bytes;
        let fault = |expected: String| StreamFault::Fragment { vlsn, offset, total, expected };
        if total as usize > max {
            return Err(fault(format!("an entry of at most {max} bytes")));
        }
        let s = self.streaming_mut();
        let mut partial = match s.partial.take() {
            None => Partial { vlsn, total, bytes: Vec::new() },
            Some(partial) => partial,
        };
        if partial.total != total || partial.bytes.len() != offset as usize {
            return Err(fault(format!("byte {} of {}", partial.bytes.len(), partial.total)));
        }
        if bytes.len() > total as usize - partial.bytes.len() {
            return Err(fault("no more than the entry holds".to_owned()));
        }
        partial.bytes.extend_from_slice(bytes);
        if partial.bytes.len() == total as usize {
            return Ok(Some(partial.bytes));
        }
        s.partial = Some(partial);
        Ok(None)
    }

    /// Entries through `last` were verified and appended.
    ///
    /// # Panics
    /// If they are not new, or the stream was fenced before.
    pub fn handle_appended(&mut self, last: Vlsn, fingerprint: Fingerprint) {
        let s = self.streaming_mut();
        assert!(last > s.received, "appended {last} after {}", s.received);
        assert_eq!(s.fenced, None, "appended {last} behind the fence");
        s.received = last;
        s.fingerprint = fingerprint;
    }

    /// The log is fsynced through `durable`.
    pub fn handle_synced(&mut self, durable: Vlsn) {
        let s = self.streaming_mut();
        s.durable = s.durable.max(durable.min(s.received));
    }

    /// `first` is the first damaged entry that the state machine's checkpoint does not hold; `None`
    /// once all are whole.
    pub fn handle_damaged(&mut self, first: Option<Vlsn>) {
        self.streaming_mut().damaged = first;
    }

    /// The node's term has become `below`. Nothing of an older term is taken or acknowledged.
    pub fn handle_fence(&mut self, below: Term) {
        if let State::Streaming(s) = &mut self.state
            && self.era.term < below
            && !mutant::is_on(Mutant::AckAfterGrant)
        {
            s.fenced = Some(below);
        }
    }

    /// The master is asked where its log ends. An earlier question is void.
    pub fn handle_head_asked(&mut self, nonce: u64) {
        self.streaming_mut().head = HeadQuestion::Asked { nonce };
    }

    /// The master's answer. An answer to anything but the last question says nothing.
    pub fn handle_head_answer(&mut self, now: Now, nonce: u64, head: LogEnd) {
        let s = self.streaming_mut();
        s.last_heard = now;
        let asked = s.head == HeadQuestion::Asked { nonce };
        if asked || mutant::is_on(Mutant::ClearWithoutNonce) {
            s.head = HeadQuestion::Answered { nonce, head };
        }
    }

    /// The answer, once, when everything up to it is durable here and was verified on this stream.
    pub fn poll_head_confirmed(&mut self) -> Option<(u64, LogEnd)> {
        let sound = self.sound();
        let s = self.streaming_mut();
        match s.head {
            HeadQuestion::Answered { nonce, head } if sound >= head.vlsn && s.fenced.is_none() => {
                s.head = HeadQuestion::None;
                Some((nonce, head))
            }
            HeadQuestion::None | HeadQuestion::Asked { .. } | HeadQuestion::Answered { .. } => None,
        }
    }

    /// The state machine has applied everything through `applied`.
    pub fn handle_applied(&mut self, applied: Vlsn) {
        let s = self.streaming_mut();
        s.applied = s.applied.max(applied.min(s.received));
    }

    /// The master's position came, in silence or because DTVLSN moved.
    pub fn handle_position(&mut self, now: Now, position: &Position) -> Result<(), StreamFault> {
        self.check_era(position.era)?;
        self.check_open()?;
        let s = self.streaming_mut();
        s.last_heard = now;
        s.want_received |= position.want_received;
        s.answer_due |= position.answer;
        Ok(())
    }

    /// The DTVLSN of a message, with the fingerprint that this log has there, if it holds that
    /// entry. Returns the highest VLSN that may be applied.
    pub fn handle_dtvlsn(
        &mut self,
        announced: Dtvlsn,
        here: Option<Fingerprint>,
    ) -> Result<Vlsn, StreamFault> {
        let s = self.streaming_mut();
        if announced.vlsn <= s.received
            && let Some(here) = here
            && here != announced.fingerprint
        {
            return Err(StreamFault::DurableFork {
                vlsn: announced.vlsn,
                here,
                at_master: announced.fingerprint,
            });
        }
        s.dtvlsn = s.dtvlsn.max(announced.vlsn);
        Ok(s.dtvlsn.min(s.received))
    }

    /// Whether an announced DTVLSN is new, so that its fingerprint is worth looking up.
    pub fn is_new_dtvlsn(&self, announced: Vlsn) -> bool {
        self.streaming().is_some_and(|s| announced > s.dtvlsn)
    }

    /// Highest VLSN that may be applied.
    pub fn may_apply(&self) -> Vlsn {
        let beyond = mutant::is_on(Mutant::AppliesBeyondDtvlsn);
        let limit = |s: &Streaming| if beyond { s.received } else { s.dtvlsn.min(s.received) };
        self.streaming().map_or(noxu_util::NULL_VLSN, limit)
    }

    /// Whether entries wait for their fsync.
    pub fn sync_due(&self) -> bool {
        self.streaming().is_some_and(|s| s.durable < s.received)
    }

    /// The acknowledgement that is due before the fsync, if a committer waits for it.
    pub fn poll_received_ack(&mut self, now: Now) -> Option<Ack> {
        let s = self.streaming_mut();
        let due = s.want_received && s.received > s.acked.received;
        if due { self.ack(now) } else { None }
    }

    /// The acknowledgement that is due after the fsync: what is durable moved, or an answer is due.
    pub fn poll_ack(&mut self, now: Now) -> Option<Ack> {
        let sound = self.sound();
        let s = self.streaming_mut();
        let due = sound > s.acked.durable || s.answer_due;
        if due { self.ack(now) } else { None }
    }

    /// The acknowledgement that is due before an fsync that may take long, if little was said of
    /// late: a master that ships all the time asks for no answer, and a slow disk is not to look
    /// like a dead node.
    pub fn poll_life_sign(&mut self, now: Now) -> Option<Ack> {
        let quiet = now.saturating_sub(self.streaming()?.last_said);
        if quiet >= 2 * self.timing.heartbeat { self.ack(now) } else { None }
    }

    fn ack(&mut self, now: Now) -> Option<Ack> {
        let (era, durable) = (self.era, self.sound());
        let s = self.streaming_mut();
        // What was acknowledged before may have turned out to be damaged: no answer is better than one
        // that takes back a promise, and the stream is at its end.
        if s.fenced.is_some() || durable < s.acked.durable {
            return None;
        }
        s.answer_due = false;
        s.want_received = false;
        s.last_said = now;
        s.acked = Ack { era, received: s.received, durable, applied: s.applied };
        Some(s.acked)
    }

    /// What may be acknowledged as durable.
    fn sound(&self) -> Vlsn {
        let Some(s) = self.streaming() else { return noxu_util::NULL_VLSN };
        if mutant::is_on(Mutant::AckBeforeSync) {
            return s.received;
        }
        s.damaged.map_or(s.durable, |first| s.durable.min(first.prev()))
    }

    /// The last acknowledgement that left; none of the whole stream was higher.
    pub fn acked(&self) -> Ack {
        self.streaming().map_or_else(Ack::default, |s| s.acked)
    }

    /// When the master was last heard; `None` unless streaming.
    pub fn last_heard(&self) -> Option<Now> {
        self.streaming().map(|s| s.last_heard)
    }

    /// How long the master has been silent, if that is too long.
    pub fn handle_timeout(&self, now: Now) -> Option<Duration> {
        let silent = now.saturating_sub(self.streaming()?.last_heard);
        (silent >= self.timing.silence).then_some(silent)
    }

    /// When [`Replica::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Now> {
        Some(self.streaming()?.last_heard + self.timing.silence)
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self) {
        self.state = State::Closed;
    }

    fn check_era(&self, found: Era) -> Result<(), StreamFault> {
        check_era(found, self.era)
    }

    fn check_open(&self) -> Result<(), StreamFault> {
        match self.streaming().and_then(|s| s.fenced) {
            Some(below) => Err(StreamFault::Fenced { term: self.era.term, below }),
            None => Ok(()),
        }
    }

    fn streaming(&self) -> Option<&Streaming> {
        match &self.state {
            State::Streaming(streaming) => Some(streaming),
            State::Handshake | State::Syncup | State::Closed => None,
        }
    }

    fn streaming_mut(&mut self) -> &mut Streaming {
        match &mut self.state {
            State::Streaming(streaming) => streaming,
            other @ (State::Handshake | State::Syncup | State::Closed) => {
                panic!("a stream event in {other:?}")
            }
        }
    }

    /// Asserts what the header promises.
    ///
    /// # Panics
    /// On a bug.
    pub fn check_invariants(&self) {
        if let Some(s) = self.streaming() {
            assert!(s.durable <= s.received, "durable {} beyond {}", s.durable, s.received);
            assert!(s.acked.received <= s.received, "{:?} beyond {}", s.acked, s.received);
            // Not `sound()`: what was sound when it was acknowledged may have rotted.
            assert!(s.acked.durable <= s.durable, "{:?} beyond {}", s.acked, s.durable);
            assert!(self.may_apply() <= s.dtvlsn && self.may_apply() <= s.received);
            if let Some(partial) = &s.partial {
                assert!(partial.bytes.len() < partial.total as usize);
            }
        }
    }
}

/// Whether a message of `found` belongs on a stream of `expected`.
pub(crate) fn check_era(found: Era, expected: Era) -> Result<(), StreamFault> {
    if found.epoch != expected.epoch {
        return Err(StreamFault::ForeignEpoch { found: found.epoch, expected: expected.epoch });
    }
    if found.term != expected.term && !mutant::is_on(Mutant::LeaveOthersTermFrames) {
        return Err(StreamFault::ForeignTerm { found: found.term, expected: expected.term });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use noxu_util::NULL_VLSN;

    fn v(n: i64) -> Vlsn {
        Vlsn::new(n)
    }

    fn fp(n: u64) -> Fingerprint {
        Fingerprint::from_u64(n)
    }

    fn ms(n: u64) -> Now {
        Duration::from_millis(n)
    }

    const ERA: Era = Era { epoch: 1, term: Term::new(3) };

    /// A replica whose log ends at 10 with fingerprint 10, synced through 8.
    fn streaming() -> Replica {
        let timing = StreamTiming { heartbeat: ms(100), silence: ms(1000) };
        let mut replica = Replica::new(ERA, timing, 100);
        replica.handle_welcomed();
        replica.handle_synced_up(ms(0), v(10), fp(10), v(8), v(5));
        replica
    }

    fn head(first: i64, previous: u64) -> Head {
        Head {
            era: ERA,
            first: v(first),
            previous_fingerprint: fp(previous),
            dtvlsn: Dtvlsn::default(),
            want_received: false,
        }
    }

    fn ack(received: i64, durable: i64) -> Ack {
        Ack { era: ERA, received: v(received), durable: v(durable), applied: NULL_VLSN }
    }

    #[test]
    fn the_first_ack_tells_where_the_replica_stands() {
        let mut replica = streaming();
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 8)));
        assert_eq!(replica.poll_ack(ms(1)), None);
        replica.check_invariants();
    }

    #[test]
    fn an_ack_follows_the_fsync() {
        let mut replica = streaming();
        replica.poll_ack(ms(1));
        replica.handle_head(ms(1), &head(11, 10)).unwrap();
        replica.handle_appended(v(20), fp(20));
        assert!(replica.sync_due());
        assert_eq!((replica.poll_received_ack(ms(1)), replica.poll_ack(ms(1))), (None, None));
        replica.handle_synced(v(20));
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(20, 20)));
        assert!(!replica.sync_due());
    }

    #[test]
    fn an_ack_precedes_the_fsync_only_if_somebody_waits_for_it() {
        let mut replica = streaming();
        replica.poll_ack(ms(1));
        let wanted = Head { want_received: true, ..head(11, 10) };
        replica.handle_head(ms(1), &wanted).unwrap();
        replica.handle_appended(v(20), fp(20));
        assert_eq!(replica.poll_received_ack(ms(1)), Some(ack(20, 8)));
        assert_eq!(replica.poll_received_ack(ms(1)), None);
        replica.handle_synced(v(20));
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(20, 20)));
    }

    #[test]
    fn frames_that_do_not_continue_the_log_are_refused_by_name() {
        let mut replica = streaming();
        let (gap, duplicate) = (head(12, 10), head(10, 9));
        assert_eq!(
            replica.handle_head(ms(1), &gap),
            Err(StreamFault::Gap { found: v(12), expected: v(11) })
        );
        assert_eq!(
            replica.handle_head(ms(1), &duplicate),
            Err(StreamFault::Duplicate { found: v(10), expected: v(11) })
        );
        assert_eq!(
            replica.handle_head(ms(1), &head(11, 77)),
            Err(StreamFault::Fork { vlsn: v(11), found: fp(77), expected: fp(10) })
        );
        for term in [2, 4] {
            let term = Term::new(term);
            let fault = StreamFault::ForeignTerm { found: term, expected: ERA.term };
            assert_eq!(fault.newer_term(), (term > ERA.term).then_some(term));
            let foreign = Head { era: Era { term, ..ERA }, ..head(11, 10) };
            assert_eq!(replica.handle_head(ms(1), &foreign), Err(fault));
        }
        let foreign = Head { era: Era { epoch: 2, ..ERA }, ..head(11, 10) };
        let fault = StreamFault::ForeignEpoch { found: 2, expected: 1 };
        assert_eq!(replica.handle_head(ms(1), &foreign), Err(fault));
    }

    #[test]
    fn only_what_is_both_received_and_durable_on_a_majority_may_be_applied() {
        let mut replica = streaming();
        assert_eq!(replica.may_apply(), v(5));
        let at = |vlsn, print| Dtvlsn { vlsn: v(vlsn), fingerprint: fp(print) };
        assert_eq!(replica.handle_dtvlsn(at(9, 9), Some(fp(9))), Ok(v(9)));
        assert_eq!(replica.handle_dtvlsn(at(15, 15), None), Ok(v(10)));
        replica.handle_appended(v(20), fp(20));
        assert_eq!(replica.may_apply(), v(15));
        // An announcement that was overtaken changes nothing.
        assert_eq!(replica.handle_dtvlsn(at(12, 12), Some(fp(12))), Ok(v(15)));
    }

    #[test]
    fn a_durable_entry_with_another_fingerprint_is_an_alarm() {
        let mut replica = streaming();
        let announced = Dtvlsn { vlsn: v(9), fingerprint: fp(9) };
        assert_eq!(
            replica.handle_dtvlsn(announced, Some(fp(99))),
            Err(StreamFault::DurableFork { vlsn: v(9), here: fp(99), at_master: fp(9) })
        );
    }

    #[test]
    fn fragments_make_an_entry_and_cannot_make_more() {
        let mut replica = streaming();
        assert_eq!(replica.handle_fragment(v(11), 5, 0, b"ab"), Ok(None));
        assert!(matches!(replica.handle_whole(v(11)), Err(StreamFault::Fragment { .. })));
        assert_eq!(replica.handle_fragment(v(11), 5, 2, b"cde"), Ok(Some(b"abcde".to_vec())));
        assert_eq!(replica.handle_whole(v(11)), Ok(()));
        for (total, offset, bytes) in [(101, 0, "x"), (5, 1, "x"), (2, 0, "xyz")] {
            let fault = replica.handle_fragment(v(11), total, offset, bytes.as_bytes());
            assert!(matches!(fault, Err(StreamFault::Fragment { .. })), "{total} {offset}");
        }
        replica.handle_fragment(v(11), 5, 0, b"ab").unwrap();
        assert!(replica.handle_fragment(v(11), 6, 2, b"c").is_err());
    }

    #[test]
    fn a_silent_master_is_noticed_and_a_heartbeat_is_answered() {
        let mut replica = streaming();
        replica.poll_ack(ms(1));
        assert_eq!(replica.poll_timeout(), Some(ms(1000)));
        let position = Position {
            era: ERA,
            last: v(10),
            dtvlsn: Dtvlsn::default(),
            want_received: false,
            answer: true,
        };
        replica.handle_position(ms(500), &position).unwrap();
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 8)));
        assert_eq!(replica.handle_timeout(ms(1499)), None);
        assert_eq!(replica.handle_timeout(ms(1500)), Some(ms(1000)));
        replica.handle_closed();
        assert_eq!(replica.poll_timeout(), None);
    }

    #[test]
    fn nothing_is_taken_or_acknowledged_behind_the_fence() {
        let mut replica = streaming();
        replica.poll_ack(ms(1));
        replica.handle_fence(ERA.term);
        replica.handle_head(ms(1), &Head { want_received: true, ..head(11, 10) }).unwrap();
        replica.handle_appended(v(20), fp(20));
        let below = Term::new(4);
        replica.handle_fence(below);
        replica.handle_synced(v(20));
        assert_eq!((replica.poll_received_ack(ms(1)), replica.poll_ack(ms(1))), (None, None));
        assert_eq!(replica.poll_life_sign(ms(900)), None);
        let fenced = Err(StreamFault::Fenced { term: ERA.term, below });
        assert_eq!(replica.handle_head(ms(2), &head(21, 20)), fenced);
        assert_eq!(replica.acked(), ack(10, 8), "what left before the fence");
        replica.check_invariants();
    }

    #[test]
    fn nothing_from_the_first_damaged_entry_on_is_acknowledged_as_durable() {
        let mut replica = streaming();
        replica.handle_damaged(Some(v(7)));
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 6)));
        replica.handle_synced(v(10));
        assert_eq!(replica.poll_ack(ms(1)), None);
        replica.check_invariants();
        replica.handle_damaged(Some(v(9)));
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 8)));
        replica.handle_damaged(None);
        assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 10)));
        replica.handle_damaged(Some(v(5)));
        replica.handle_appended(v(12), fp(12));
        replica.handle_synced(v(12));
        assert_eq!(replica.poll_ack(ms(2)), None, "what rots later is not acknowledged again");
        assert_eq!(replica.poll_life_sign(ms(9_000)), None);
        replica.check_invariants();
    }

    #[test]
    fn the_masters_log_end_is_confirmed_once_and_only_when_it_is_durable_here() {
        let end = |vlsn| LogEnd { term: ERA.term, vlsn: v(vlsn), fingerprint: fp(1) };
        let mut replica = streaming();
        replica.handle_head_answer(ms(1), 5, end(8));
        assert_eq!(replica.poll_head_confirmed(), None, "nobody asked");
        replica.handle_head_asked(5);
        replica.handle_head_asked(6);
        replica.handle_head_answer(ms(1), 5, end(8));
        assert_eq!(replica.poll_head_confirmed(), None, "an answer to an earlier question");
        replica.handle_head_answer(ms(2), 6, end(12));
        assert_eq!(replica.last_heard(), Some(ms(2)));
        replica.handle_synced(v(10));
        assert_eq!(replica.poll_head_confirmed(), None);
        replica.handle_appended(v(12), fp(12));
        assert_eq!(replica.poll_head_confirmed(), None, "received, and not durable");
        replica.handle_damaged(Some(v(3)));
        replica.handle_synced(v(12));
        assert_eq!(replica.poll_head_confirmed(), None, "damaged below");
        replica.handle_damaged(None);
        assert_eq!(replica.poll_head_confirmed(), Some((6, end(12))));
        assert_eq!(replica.poll_head_confirmed(), None);
    }

    #[test]
    fn who_has_been_quiet_for_two_heartbeats_says_something_before_a_sync() {
        let mut replica = streaming();
        replica.poll_ack(ms(100));
        assert_eq!(replica.poll_life_sign(ms(299)), None);
        assert_eq!(replica.poll_life_sign(ms(300)), Some(ack(10, 8)));
        assert_eq!(replica.poll_life_sign(ms(301)), None);
    }

    #[test]
    fn each_deliberate_bug_of_a_replica_breaks_its_rule() {
        let wrong = Head { previous_fingerprint: fp(77), ..head(11, 10) };
        Mutant::with(Some(Mutant::PreviousNotChecked), || {
            assert_eq!(streaming().handle_head(ms(1), &wrong), Ok(()));
        });
        let foreign = Head { era: Era { term: Term::new(2), ..ERA }, ..head(11, 10) };
        Mutant::with(Some(Mutant::LeaveOthersTermFrames), || {
            assert_eq!(streaming().handle_head(ms(1), &foreign), Ok(()));
        });
        Mutant::with(Some(Mutant::AckBeforeSync), || {
            assert_eq!(streaming().poll_ack(ms(1)), Some(ack(10, 10)));
        });
        Mutant::with(Some(Mutant::AppliesBeyondDtvlsn), || {
            assert_eq!(streaming().may_apply(), v(10));
        });
        Mutant::with(Some(Mutant::AckAfterGrant), || {
            let mut replica = streaming();
            replica.handle_fence(Term::new(4));
            assert_eq!(replica.poll_ack(ms(1)), Some(ack(10, 8)));
        });
        Mutant::with(Some(Mutant::ClearWithoutNonce), || {
            let mut replica = streaming();
            replica.handle_head_answer(ms(1), 5, LogEnd::default());
            assert_eq!(replica.poll_head_confirmed(), Some((5, LogEnd::default())));
        });
    }
}
