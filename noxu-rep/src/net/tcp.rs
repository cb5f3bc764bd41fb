//! TcpChannel: frames over one TCP connection.
//!
//! # Invariants
//! - The two directions have a lock each and never wait for one another.
//! - A receive that times out in the middle of a frame keeps what came; the next one goes on there.
//! - A send that fails in the middle of a frame closes the channel: the peer could not tell where
//!   the next frame begins.
//! - Memory for a frame grows with the bytes that arrive, not with the length announced.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};

use super::channel::Channel;
use crate::error::{RepError, Result};
use crate::wire::frame::{FRAME_LENGTH_BYTES, OverCap, decode_length, encode_length};

/// Limits and deadlines of a [`TcpChannel`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConfig {
    /// Longest frame, sent or received.
    pub max_frame_bytes: u32,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time for which a send makes no progress at all before the peer counts as gone.
    pub write_timeout: Duration,
    /// Silence after which the kernel asks whether the peer's host is still there.
    pub keepalive: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            max_frame_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(3),
            write_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(10),
        }
    }
}

/// A channel over one TCP connection. Dropping it closes the connection.
pub struct TcpChannel {
    stream: TcpStream,
    peer: String,
    max_frame_bytes: AtomicU32,
    write_timeout: Duration,
    closed: AtomicBool,
    /// Held for one whole frame at a time.
    sending: Mutex<()>,
    receiving: Mutex<Inbound>,
}

/// The receiving direction between two calls.
struct Inbound {
    /// Bytes read but not yet handed out: `buffer[start..end]`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The length field of the frame under way, and how much of it came.
    field: [u8; FRAME_LENGTH_BYTES],
    field_filled: usize,
    /// Length of that frame, once the field is complete.
    expected: Option<usize>,
    /// How many of its bytes came.
    filled: usize,
    /// Where they are between two calls.
    partial: Vec<u8>,
    /// The read timeout that the socket has now.
    timeout: Option<Duration>,
}

/// Small frames are read many at a time through a buffer of this size; what a larger one still
/// lacks is read straight into its destination.
const BUFFER_BYTES: usize = 64 << 10;

/// Memory taken for a frame ahead of its bytes.
const AHEAD_BYTES: usize = 1 << 20;

impl TcpChannel {
    /// Connects to `address` ("host:port", resolved anew), trying each address it stands for.
    pub fn connect(address: &str, config: &TcpConfig) -> Result<Self> {
        let failed = |cause| RepError::network(address, "connecting to", cause);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name stands for no address");
        for resolved in address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&resolved, config.connect_timeout) {
                Ok(stream) => return Self::new(stream, address.to_owned(), config),
                Err(err) => last = err,
            }
        }
        Err(failed(last))
    }

    /// Takes over an accepted connection.
    pub fn from_stream(stream: TcpStream, config: &TcpConfig) -> Result<Self> {
        let peer =
            stream.peer_addr().map_or_else(|_| "a vanished peer".to_owned(), |at| at.to_string());
        Self::new(stream, peer, config)
    }

    fn new(stream: TcpStream, peer: String, config: &TcpConfig) -> Result<Self> {
        let set_up = || {
            stream.set_nonblocking(false)?;
            // A frame is sent in one call: waiting for more to fill a packet only delays acks.
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(config.write_timeout))?;
            let keepalive = TcpKeepalive::new()
                .with_time(config.keepalive)
                .with_interval((config.keepalive / 4).max(Duration::from_secs(1)));
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)
        };
        set_up().map_err(|cause| {
            RepError::network(peer.clone(), "setting up the connection to", cause)
        })?;
        Ok(Self {
            stream,
            peer,
            max_frame_bytes: AtomicU32::new(config.max_frame_bytes),
            write_timeout: config.write_timeout,
            closed: AtomicBool::new(false),
            sending: Mutex::new(()),
            receiving: Mutex::new(Inbound {
                buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
                start: 0,
                end: 0,
                field: [0; FRAME_LENGTH_BYTES],
                field_filled: 0,
                expected: None,
                filled: 0,
                partial: Vec::new(),
                timeout: None,
            }),
        })
    }

    /// The peer's socket address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Changes the longest frame, as trust in the peer grows.
    pub fn limit_frames(&self, max_frame_bytes: u32) {
        self.max_frame_bytes.store(max_frame_bytes, Ordering::Relaxed);
    }

    fn frame_cap(&self) -> u32 {
        self.max_frame_bytes.load(Ordering::Relaxed)
    }

    fn closed(&self) -> RepError {
        RepError::Closed { peer: self.peer.clone() }
    }

    fn over_cap(&self, over: OverCap) -> RepError {
        RepError::FrameTooLarge {
            peer: self.peer.clone(),
            bytes: over.bytes,
            cap: u64::from(over.cap),
        }
    }

    /// What an input or output error means, given that `close` makes them too.
    fn failed(&self, action: &'static str, cause: io::Error) -> RepError {
        if self.closed.load(Ordering::Acquire) {
            self.closed()
        } else {
            RepError::network(self.peer.clone(), action, cause)
        }
    }

    fn send_parts(&self, parts: &[&[u8]]) -> Result<()> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let length = encode_length(bytes, self.frame_cap()).map_err(|over| self.over_cap(over))?;
        // Small frames are joined: one copy costs less than a longer vector.
        let mut joined = [0; 256];
        let whole = FRAME_LENGTH_BYTES + bytes;
        let _sending = self.sending.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        let sent = if whole <= joined.len() {
            joined[..FRAME_LENGTH_BYTES].copy_from_slice(&length);
            let mut at = FRAME_LENGTH_BYTES;
            for part in parts {
                joined[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            (&self.stream).write_all(&joined[..whole])
        } else {
            let mut slices = Vec::with_capacity(parts.len() + 1);
            slices.push(IoSlice::new(&length));
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            self.write_all_vectored(&mut slices)
        };
        sent.map_err(|cause| {
            let cause = match cause.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("it took no bytes for {:?}", self.write_timeout),
                ),
                _ => cause,
            };
            let failed = self.failed("sending to", cause);
            self.close();
            failed
        })
    }

    fn write_all_vectored(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Empty parts in front would make a whole write look like one that wrote nothing.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&self.stream).write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Reads once, waiting until `deadline`, into the empty buffer or straight into `to`. None:
    /// nothing came in time.
    fn read(
        &self,
        inbound: &mut Inbound,
        mut to: Option<&mut [u8]>,
        deadline: Instant,
    ) -> Result<Option<usize>> {
        let action = "receiving from";
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Only what is already there; a socket knows no timeout of zero.
                let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
                let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
                    .map_err(|cause| self.failed(action, cause.into()))?;
                if ready == 0 {
                    return Ok(None);
                }
            } else {
                let timeout = whole_millis(left);
                if inbound.timeout != Some(timeout) {
                    let set = self.stream.set_read_timeout(Some(timeout));
                    set.map_err(|cause| self.failed(action, cause))?;
                    inbound.timeout = Some(timeout);
                }
            }
            let read = match &mut to {
                Some(to) => (&self.stream).read(to),
                None => (&self.stream).read(&mut inbound.buffer),
            };
            match read {
                Ok(0) => return Err(self.ended(inbound)),
                Ok(count) => {
                    if to.is_none() {
                        (inbound.start, inbound.end) = (0, count);
                    }
                    return Ok(Some(count));
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if is_timeout(&err) => return Ok(None),
                Err(err) => return Err(self.failed(action, err)),
            }
        }
    }

    /// The peer closed: in good order between frames, a broken frame otherwise.
    fn ended(&self, inbound: &Inbound) -> RepError {
        let cause =
            io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a frame");
        let err = if inbound.field_filled == 0 {
            self.closed()
        } else {
            self.failed("receiving from", cause)
        };
        // A peer closes both directions, so nobody will ever take what our sender waits to send.
        self.close();
        err
    }

    /// The next frame into `frame`. False: not whole before `deadline`; what came is kept.
    fn receive_frame(&self, frame: &mut Vec<u8>, timeout: Duration) -> Result<bool> {
        let mut inbound = self.receiving.lock();
        let inbound = &mut *inbound;
        let deadline = Instant::now() + timeout;
        if inbound.expected.is_some() {
            std::mem::swap(frame, &mut inbound.partial);
        }
        let whole = self.grow(inbound, frame, deadline)?;
        if !whole && inbound.expected.is_some() {
            std::mem::swap(frame, &mut inbound.partial);
        }
        Ok(whole)
    }

    fn grow(&self, inbound: &mut Inbound, frame: &mut Vec<u8>, deadline: Instant) -> Result<bool> {
        let expected = loop {
            if let Some(expected) = inbound.expected {
                break expected;
            }
            if inbound.start == inbound.end && self.read(inbound, None, deadline)?.is_none() {
                return Ok(false);
            }
            let mut field = inbound.field;
            inbound.field_filled += inbound.take(&mut field[inbound.field_filled..]);
            inbound.field = field;
            if inbound.field_filled == FRAME_LENGTH_BYTES {
                let length = decode_length(inbound.field, self.frame_cap());
                inbound.expected = Some(length.map_err(|over| {
                    // Where the next frame begins is unknown from here on.
                    self.close();
                    self.over_cap(over)
                })?);
            }
        };
        while inbound.filled < expected {
            // Bytes of an earlier frame in `frame` are overwritten; only growth costs zeroing.
            let target = expected.min(inbound.filled + AHEAD_BYTES);
            if frame.len() < target {
                frame.reserve_exact(target - frame.len());
                frame.resize(target, 0);
            }
            let lacking = &mut frame[inbound.filled..target];
            inbound.filled += if inbound.start < inbound.end {
                inbound.take(lacking)
            } else if lacking.len() >= BUFFER_BYTES {
                let Some(count) = self.read(inbound, Some(lacking), deadline)? else {
                    return Ok(false);
                };
                count
            } else if self.read(inbound, None, deadline)?.is_some() {
                0
            } else {
                return Ok(false);
            };
        }
        frame.truncate(expected);
        inbound.expected = None;
        inbound.filled = 0;
        inbound.field_filled = 0;
        Ok(true)
    }
}

impl Inbound {
    /// Moves as many buffered bytes to `to` as there are and as fit.
    fn take(&mut self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.end - self.start);
        to[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        count
    }
}

/// A socket whose timeout passed says one or the other, by platform.
fn is_timeout(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Channel for TcpChannel {
    fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_parts(&[frame])
    }

    fn send_vectored(&self, parts: &[&[u8]]) -> Result<()> {
        self.send_parts(parts)
    }

    fn receive(&self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        let mut frame = Vec::new();
        Ok(self.receive_frame(&mut frame, timeout)?.then_some(frame))
    }

    fn receive_into(&self, frame: &mut Vec<u8>, timeout: Duration) -> Result<bool> {
        self.receive_frame(frame, timeout)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Wakes a blocked read and a blocked write; an error means that it is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}

impl Drop for TcpChannel {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for TcpChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpChannel").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Rounded up to milliseconds, so that the same timeout again costs no system call; never nothing, which a
/// socket knows no timeout of.
fn whole_millis(left: Duration) -> Duration {
    Duration::from_millis(left.as_nanos().div_ceil(1_000_000) as u64)
}

#[cfg(test)]
mod tests;
