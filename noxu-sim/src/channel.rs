//! Channel: one end of a simulated connection, as the code under test has it.
//!
//! A receive waits only in a task (baton.rs). Steps of a node, which run in the world's own thread,
//! take what is there and never wait.
//!
//! # Not here: what becomes of a frame on its way (network.rs).

use std::time::Duration;

use noxu_rep::error::{RepError, Result};
use noxu_rep::net::channel::Channel;
use parking_lot::Mutex;

use crate::baton;
use crate::event::{Host, Nanos};
use crate::network::{EndId, Network};

/// One end of a connection. Dropping it closes the connection.
pub struct SimChannel {
    network: Network,
    end: EndId,
    peer: Host,
    lull: Mutex<Lull>,
}

/// How long a receive that would not wait waits all the same.
#[derive(Default)]
struct Lull {
    draw: Option<Box<dyn Fn() -> Duration + Send>>,
    until: Option<Nanos>,
}

impl SimChannel {
    pub(crate) fn new(network: Network, end: EndId, peer: Host) -> Self {
        Self { network, end, peer, lull: Mutex::default() }
    }

    /// From now on a task that finds nothing to receive, and would go on at once, does so only after
    /// what `draw` says: the time that the disk takes for what the task does next.
    pub fn take_time(&self, draw: impl Fn() -> Duration + Send + 'static) {
        self.lull.lock().draw = Some(Box::new(draw));
    }

    /// Until when a receive may wait.
    fn deadline(&self, timeout: Duration) -> Nanos {
        let now = self.network.now();
        if !timeout.is_zero() {
            return now + timeout;
        }
        let mut lull = self.lull.lock();
        let lasts = lull.draw.as_ref().map_or(Duration::ZERO, |draw| draw());
        // Frames that come meanwhile do not put it off.
        *lull.until.get_or_insert(now + lasts)
    }

    /// From now on whatever happens at this end is told to the world as `listener`'s. True if
    /// something has happened already.
    pub fn listen(&self, listener: u64) -> bool {
        self.network.listen(self.end, listener);
        self.network.is_ready(self.end)
    }

    /// The next frame if one has arrived; an error if none comes any more.
    pub fn try_receive(&self) -> Result<Option<Vec<u8>>> {
        if baton::is_cancelled() {
            return Err(self.closed());
        }
        self.network.take(self.end).map_err(|()| self.closed())
    }

    /// Bytes that were sent and that the peer has not taken.
    pub fn backlog(&self) -> usize {
        self.network.backlog(self.end)
    }

    /// Which end it is.
    pub const fn end(&self) -> EndId {
        self.end
    }

    fn closed(&self) -> RepError {
        RepError::Closed { peer: self.peer() }
    }
}

impl Channel for SimChannel {
    fn send(&self, frame: &[u8]) -> Result<()> {
        if !baton::is_cancelled() && self.network.send(self.end, frame.to_vec()) {
            return Ok(());
        }
        self.close();
        Err(self.closed())
    }

    /// # Panics
    /// If there is nothing to receive, `timeout` is not zero and the caller is no task.
    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        if let Some(frame) = self.try_receive()? {
            return Ok(Some(frame));
        }
        if timeout.is_zero() && baton::next_wait().is_none() {
            return Ok(None);
        }
        let deadline = self.deadline(timeout);
        while self.network.wait_at(self.end, deadline) {
            if let Some(frame) = self.try_receive()? {
                return Ok(Some(frame));
            }
        }
        self.lull.lock().until = None;
        self.try_receive()
    }

    fn close(&self) {
        self.network.close(self.end);
    }

    fn peer(&self) -> String {
        Network::address(self.peer)
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        self.close();
    }
}
