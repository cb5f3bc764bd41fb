//! Channel: a blocking, frame-oriented, full-duplex pipe to one peer.
//!
//! # Invariants
//! - A frame arrives whole, in order, once, or not at all.
//! - One thread may send while another receives; neither direction waits for the other.
//! - `close` wakes both at once. Frames sent before it may still be received, then
//!   [`RepError::Closed`].
//! - What a channel buffers is bounded, in frames and in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select};
use parking_lot::{Condvar, Mutex};

use crate::error::{RepError, Result};

/// A blocking, frame-oriented, full-duplex pipe to one peer.
pub trait Channel: Send + Sync {
    /// Sends one frame; waits while the peer does not take what was sent before.
    fn send(&self, frame: &[u8]) -> Result<()>;

    /// The next frame, or `None` when none came within `timeout`. A timeout loses nothing: bytes
    /// of a frame that came in part are kept for the next call.
    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>>;

    /// Closes both directions and wakes whoever waits in them. Idempotent.
    fn close(&self);

    /// Sends one frame that consists of `parts`, without joining them where the transport can.
    fn send_vectored(&self, parts: &[&[u8]]) -> Result<()> {
        self.send(&parts.concat())
    }

    /// Replaces the contents of `frame` by the next frame and says true, or says false when none
    /// came within `timeout`; `frame`'s contents are then unspecified. Reuses `frame`'s memory
    /// where the transport can.
    fn receive_into(&self, frame: &mut Vec<u8>, timeout: Duration) -> Result<bool> {
        match self.receive(timeout)? {
            Some(received) => {
                *frame = received;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Who is at the other end, for messages to people.
    fn peer(&self) -> String {
        "peer".to_owned()
    }
}

/// Frames that a [`LocalChannel`] holds per direction before `send` waits.
pub const LOCAL_FRAMES: usize = 256;

/// Bytes that a [`LocalChannel`] holds per direction before `send` waits. A larger frame passes
/// alone.
pub const LOCAL_BYTES: usize = 8 << 20;

/// Two ends of an in-process channel: what tests and in-process groups use.
#[derive(Debug)]
pub struct LocalChannelPair {
    /// One end.
    pub channel_a: LocalChannel,
    /// The other end.
    pub channel_b: LocalChannel,
}

impl LocalChannelPair {
    /// Connects two new ends.
    #[allow(clippy::new_without_default)] // a default pair of connected things would surprise
    pub fn new() -> Self {
        let (a_to_b, from_a) = bounded(LOCAL_FRAMES);
        let (b_to_a, from_b) = bounded(LOCAL_FRAMES);
        let room_at_b = Arc::new(Room::default());
        let room_at_a = Arc::new(Room::default());
        let (alive, on_close) = bounded(0);
        let link = Arc::new(Link {
            closed: AtomicBool::new(false),
            alive: Mutex::new(Some(alive)),
            rooms: [Arc::clone(&room_at_a), Arc::clone(&room_at_b)],
        });
        Self {
            channel_a: LocalChannel {
                name: "local channel b",
                outgoing: a_to_b,
                outgoing_room: Arc::clone(&room_at_b),
                incoming: from_b,
                incoming_room: Arc::clone(&room_at_a),
                on_close: on_close.clone(),
                link: Arc::clone(&link),
            },
            channel_b: LocalChannel {
                name: "local channel a",
                outgoing: b_to_a,
                outgoing_room: room_at_a,
                incoming: from_a,
                incoming_room: room_at_b,
                on_close,
                link,
            },
        }
    }
}

/// One end of a [`LocalChannelPair`]. Dropping it closes the pair.
#[derive(Debug)]
pub struct LocalChannel {
    name: &'static str,
    outgoing: Sender<Vec<u8>>,
    outgoing_room: Arc<Room>,
    incoming: Receiver<Vec<u8>>,
    incoming_room: Arc<Room>,
    /// Never carries a value: disconnected by `close`.
    on_close: Receiver<()>,
    link: Arc<Link>,
}

/// What both ends share.
#[derive(Debug)]
struct Link {
    closed: AtomicBool,
    /// Dropped by `close`, which disconnects every `on_close`.
    alive: Mutex<Option<Sender<()>>>,
    rooms: [Arc<Room>; 2],
}

impl Link {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Bytes under way in one direction.
#[derive(Debug, Default)]
struct Room {
    bytes: Mutex<usize>,
    freed: Condvar,
}

impl Room {
    /// Waits until `count` bytes fit, or nothing is under way. False when the link closed.
    fn take(&self, count: usize, link: &Link) -> bool {
        let mut bytes = self.bytes.lock();
        loop {
            if link.is_closed() {
                return false;
            }
            if *bytes == 0 || bytes.saturating_add(count) <= LOCAL_BYTES {
                *bytes += count;
                return true;
            }
            self.freed.wait(&mut bytes);
        }
    }

    fn give_back(&self, count: usize) {
        *self.bytes.lock() -= count;
        self.freed.notify_all();
    }
}

impl LocalChannel {
    fn closed(&self) -> RepError {
        RepError::Closed { peer: self.peer() }
    }

    fn taken(&self, frame: Vec<u8>) -> Vec<u8> {
        self.incoming_room.give_back(frame.len());
        frame
    }

    fn send_owned(&self, frame: Vec<u8>) -> Result<()> {
        let len = frame.len();
        if !self.outgoing_room.take(len, &self.link) {
            return Err(self.closed());
        }
        select! {
            send(self.outgoing, frame) -> sent => sent.map_err(|_| self.closed()),
            recv(self.on_close) -> _ => {
                self.outgoing_room.give_back(len);
                Err(self.closed())
            }
        }
    }
}

impl Channel for LocalChannel {
    fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_owned(frame.to_vec())
    }

    fn send_vectored(&self, parts: &[&[u8]]) -> Result<()> {
        self.send_owned(parts.concat())
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        // Frames first: what was sent before a close is still delivered.
        let woken = match self.incoming.try_recv() {
            Ok(frame) => return Ok(Some(self.taken(frame))),
            Err(TryRecvError::Disconnected) => return Err(self.closed()),
            Err(TryRecvError::Empty) => select! {
                recv(self.incoming) -> frame => frame.map_err(|_| RecvTimeoutError::Disconnected),
                recv(self.on_close) -> _ => {
                    self.incoming.try_recv().map_err(|_| RecvTimeoutError::Disconnected)
                }
                default(timeout) => Err(RecvTimeoutError::Timeout),
            },
        };
        match woken {
            Ok(frame) => Ok(Some(self.taken(frame))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.closed()),
        }
    }

    fn close(&self) {
        self.link.closed.store(true, Ordering::Release);
        *self.link.alive.lock() = None;
        for room in &self.link.rooms {
            // Under the lock, so that a sender between its check and its wait is not missed.
            let _bytes = room.bytes.lock();
            room.freed.notify_all();
        }
    }

    fn peer(&self) -> String {
        self.name.to_owned()
    }
}

impl Drop for LocalChannel {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
