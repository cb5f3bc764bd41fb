//! Relay: a channel that alters the answers about the state that pass, and counts what is under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{RepError, Result};
use crate::net::channel::Channel;
use crate::wire::restore::RestoreMsg;

/// What becomes of the answers of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    /// Nothing.
    None,
    /// The connection breaks in the place of the answer of this number, from 0 on.
    BreaksAt(usize),
    /// One bit of the answer of this number is another one.
    FlipsIn(usize),
    /// The answer of this number is empty, and has the digest of that.
    Empties(usize),
    /// Each comes twice, with the one before it between.
    Repeats,
    /// Entries of the log come after the state.
    HoldsEntries,
}

/// What was seen of the conversation about the state.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    under_way: AtomicUsize,
    pub(super) most_under_way: AtomicUsize,
    pub(super) longest: AtomicUsize,
    /// How often harm was done.
    pub(super) harmed: AtomicUsize,
}

/// A channel to a source.
pub(super) struct Relay {
    pub(super) inner: Arc<dyn Channel>,
    pub(super) harm: Harm,
    pub(super) seen: Arc<Seen>,
    pub(super) due: Mutex<VecDeque<Vec<u8>>>,
    pub(super) last: Mutex<Vec<u8>>,
    /// Entries that wait.
    pub(super) held: Mutex<Vec<Vec<u8>>>,
}

impl Relay {
    /// Whether the state has come, as far as it was asked for.
    fn is_quiet(&self) -> bool {
        let seen = &*self.seen;
        seen.answers.load(Ordering::Relaxed) > 0 && seen.under_way.load(Ordering::Relaxed) == 0
    }

    fn pass(&self, frame: Vec<u8>) -> Result<()> {
        if self.harm == Harm::HoldsEntries
            && !self.is_quiet()
            && matches!(RestoreMsg::decode(&frame)?, RestoreMsg::LiveRun { .. })
        {
            self.seen.harmed.fetch_add(1, Ordering::Relaxed);
            self.held.lock().push(frame);
            return Ok(());
        }
        let RestoreMsg::StateAnswer { request, vlsn, fingerprint, bytes, .. } =
            RestoreMsg::decode(&frame)?
        else {
            self.due.lock().push_back(frame);
            return Ok(());
        };
        let seen = &*self.seen;
        let number = seen.answers.fetch_add(1, Ordering::Relaxed);
        seen.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        seen.longest.fetch_max(bytes.len(), Ordering::Relaxed);
        seen.under_way.fetch_sub(1, Ordering::Relaxed);
        let last = std::mem::replace(&mut *self.last.lock(), frame.clone());
        let mut due = self.due.lock();
        let is_harmed = match self.harm {
            Harm::BreaksAt(at) if at == number => {
                seen.harmed.fetch_add(1, Ordering::Relaxed);
                self.inner.close();
                return Err(RepError::Closed { peer: self.inner.peer() });
            }
            Harm::FlipsIn(at) if at == number => {
                let mut changed = frame;
                // The answer is what the frame ends with.
                let middle = changed.len() - 1 - bytes_of_half(&changed);
                changed[middle] ^= 0x10;
                due.push_back(changed);
                true
            }
            Harm::Empties(at) if at == number => {
                let digest = *blake3::hash(&[]).as_bytes();
                let empty: &[u8] = &[];
                let bytes = empty.into();
                let empty = RestoreMsg::StateAnswer { request, vlsn, fingerprint, digest, bytes };
                due.push_back(empty.encode());
                true
            }
            Harm::Repeats => {
                due.push_back(frame.clone());
                if !last.is_empty() {
                    due.push_back(last);
                }
                due.push_back(frame);
                true
            }
            _ => {
                due.push_back(frame);
                false
            }
        };
        seen.harmed.fetch_add(usize::from(is_harmed), Ordering::Relaxed);
        Ok(())
    }
}

/// How far from its end a frame is changed: inside the answer, whatever comes before that.
fn bytes_of_half(frame: &[u8]) -> usize {
    match RestoreMsg::decode(frame) {
        Ok(RestoreMsg::StateAnswer { bytes, .. }) => bytes.len().saturating_sub(1) / 2,
        _ => 0,
    }
}

impl Channel for Relay {
    fn send(&self, frame: &[u8]) -> Result<()> {
        if matches!(RestoreMsg::decode(frame)?, RestoreMsg::StateRequest { .. }) {
            let under_way = self.seen.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            self.seen.most_under_way.fetch_max(under_way, Ordering::Relaxed);
        }
        self.inner.send(frame)
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        if self.is_quiet() {
            self.due.lock().extend(self.held.lock().drain(..));
        }
        if self.due.lock().is_empty()
            && let Some(frame) = self.inner.receive(timeout)?
        {
            self.pass(frame)?;
        }
        Ok(self.due.lock().pop_front())
    }

    fn close(&self) {
        self.inner.close();
    }

    fn peer(&self) -> String {
        self.inner.peer()
    }
}
