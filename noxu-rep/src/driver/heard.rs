//! Heard: when a conversation was last heard, whatever was said. Both sides of it go by that: who speaks
//! lives, and follows, or is followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Result;
use crate::net::channel::Channel;

/// When something arrived last, in nanoseconds of the node's clock.
pub(super) type Heard = Arc<AtomicU64>;

/// A channel that tells when something arrived on it last.
pub(super) struct HeardChannel {
    channel: Arc<dyn Channel>,
    clock: Clock,
    heard: Heard,
}

impl HeardChannel {
    /// Around `channel`; `heard` is raised whenever something arrives.
    pub(super) fn new(channel: Arc<dyn Channel>, clock: Clock, heard: Heard) -> Self {
        Self { channel, clock, heard }
    }

    fn note(&self) {
        let now = self.clock.now().as_nanos() as u64;
        self.heard.fetch_max(now, Ordering::AcqRel);
    }
}

impl Channel for HeardChannel {
    fn send(&self, frame: &[u8]) -> Result<()> {
        self.channel.send(frame)
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let frame = self.channel.receive(timeout)?;
        if frame.is_some() {
            self.note();
        }
        Ok(frame)
    }

    fn close(&self) {
        self.channel.close();
    }

    fn send_vectored(&self, parts: &[&[u8]]) -> Result<()> {
        self.channel.send_vectored(parts)
    }

    fn receive_into(&self, frame: &mut Vec<u8>, timeout: Duration) -> Result<bool> {
        let received = self.channel.receive_into(frame, timeout)?;
        if received {
            self.note();
        }
        Ok(received)
    }

    fn peer(&self) -> String {
        self.channel.peer()
    }
}
