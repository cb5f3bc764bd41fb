//! Dispatcher: one port, many services.
//!
//! A connection names the service it wants; the answer is OK, BUSY, UNKNOWN or REFUSED with a
//! reason, and after OK it belongs to the service's handler.
//!
//! # Invariants
//! - A connection that has not named a service holds one of `max_pending` places. When they are
//!   all taken the oldest is closed: whoever speaks at once gets through, however many do not.
//! - No request makes the node take more than [`MAX_REQUEST_BYTES`] of memory for it.
//! - After `stop` returns no thread of the dispatcher runs and every connection is closed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use noxu_util::codec::{CodecError, Put, Reader};
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::channel::Channel;
use super::tcp::{TcpChannel, TcpConfig};
use crate::error::{RepError, Result};

/// Service that runs a syncup alone.
pub const SYNCUP_SERVICE_NAME: &str = "REP_SYNCUP";
/// Service that feeds a replica: handshake, syncup, stream.
pub const FEEDER_SERVICE_NAME: &str = "REP_FEEDER";
/// Service that gives a restoring node segments and checkpoints.
pub const RESTORE_SERVICE_NAME: &str = "REP_RESTORE";
/// Service for elections.
pub const ELECTION_SERVICE_NAME: &str = "REP_ELECTION";
/// Service for group membership.
pub const GROUP_SERVICE_NAME: &str = "REP_GROUP";
/// Service that tells a node's status.
pub const STATUS_SERVICE_NAME: &str = "REP_STATUS";

/// Longest request for a service.
pub const MAX_REQUEST_BYTES: u32 = 64;

const MAX_SERVICE_NAME_BYTES: usize = 32;
const MAX_REASON_BYTES: usize = 1024;
const MAX_ANSWER_BYTES: usize = 3 + MAX_REASON_BYTES;
const MAGIC: [u8; 4] = *b"NOXU";
const REQUEST_VERSION: u8 = 1;

const OK: u8 = 0;
const BUSY: u8 = 1;
const UNKNOWN: u8 = 2;
const REFUSED: u8 = 3;

/// What serves the connections of one service.
pub trait ServiceHandler: Send + Sync {
    /// Whether to take a connection from `peer`; asked before the connection is answered.
    fn admit(&self, peer: &str) -> Admission {
        let _ = peer;
        Admission::Accept
    }

    /// Serves one connection, in a thread of its own. The channel is closed when this returns, and
    /// it is closed under the handler's hands when the dispatcher stops.
    fn serve(&self, channel: Arc<dyn Channel>);
}

impl<F: Fn(Arc<dyn Channel>) + Send + Sync> ServiceHandler for F {
    fn serve(&self, channel: Arc<dyn Channel>) {
        self(channel);
    }
}

/// A handler's word on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Served.
    Accept,
    /// Not now.
    Busy,
    /// Not at all, for this reason.
    Refuse(String),
}

/// Why a service did not take a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many connections; try again.
    #[error("it is busy")]
    Busy,
    /// The node has no such service.
    #[error("it has no such service")]
    Unknown,
    /// The service does not want this connection.
    #[error("refused: {0}")]
    Refused(String),
}

/// Limits of a [`Dispatcher`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatcherConfig {
    /// Limits and deadlines of accepted connections.
    pub tcp: TcpConfig,
    /// Time for a connection to name its service.
    pub request_timeout: Duration,
    /// Most connections that have not named a service.
    pub max_pending: usize,
    /// Most connections being served.
    pub max_connections: usize,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            tcp: TcpConfig::default(),
            request_timeout: Duration::from_secs(3),
            max_pending: 64,
            max_connections: 256,
        }
    }
}

/// One listening port and the services behind it. Dropping it stops it.
pub struct Dispatcher {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    /// Wakes the accepting thread when dropped.
    waker: Mutex<Option<UnixStream>>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    config: DispatcherConfig,
    services: RwLock<HashMap<&'static str, Arc<dyn ServiceHandler>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    next_id: u64,
    /// Connections that have not named a service, oldest first; the streams are for closing them.
    pending: BTreeMap<u64, TcpStream>,
    serving: BTreeMap<u64, Arc<TcpChannel>>,
    threads: BTreeMap<u64, JoinHandle<()>>,
}

impl Dispatcher {
    /// Listens on `address` ("host:port"; port 0 for any). [`RepError::Bind`] if that cannot be.
    pub fn bind(address: &str, config: DispatcherConfig) -> Result<Self> {
        let failed = |cause| RepError::Bind { address: address.to_owned(), cause };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let (waker, on_wake) = UnixStream::pair().map_err(failed)?;
        let shared =
            Arc::new(Shared { config, services: RwLock::default(), state: Mutex::default() });
        let acceptor = {
            let shared = Arc::clone(&shared);
            let accept = move || accept_loop(&shared, &listener, &on_wake);
            thread::Builder::new().name("noxu-listener".to_owned()).spawn(accept).map_err(failed)?
        };
        Ok(Self {
            shared,
            local_addr,
            waker: Mutex::new(Some(waker)),
            acceptor: Mutex::new(Some(acceptor)),
        })
    }

    /// The address listened on, with the port that was chosen.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `service` by `handler` from now on, in place of an earlier handler.
    pub fn register(&self, service: &'static str, handler: Arc<dyn ServiceHandler>) {
        self.shared.services.write().insert(service, handler);
    }

    /// Serves `service` no more. Connections being served are left alone.
    pub fn unregister(&self, service: &str) {
        self.shared.services.write().remove(service);
    }

    /// Closes the port and every connection, and waits for the threads that served them. Called
    /// from one of these it does not wait for that one.
    pub fn stop(&self) {
        self.shared.state.lock().stopping = true;
        drop(self.waker.lock().take());
        let acceptor = self.acceptor.lock().take();
        if let Some(acceptor) = acceptor {
            let _ = acceptor.join(); // its panic has been reported
        }
        let (pending, serving, threads) = {
            let mut state = self.shared.state.lock();
            (
                std::mem::take(&mut state.pending),
                std::mem::take(&mut state.serving),
                std::mem::take(&mut state.threads),
            )
        };
        for stream in pending.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for channel in serving.values() {
            channel.close();
        }
        for thread in threads.into_values() {
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// Pause after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener, on_wake: &UnixStream) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(on_wake, PollFlags::IN)];
        // An interrupted poll has nothing ready: round again.
        let _ = poll(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => shared.take_in(stream),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => {
                tracing::warn!("accepting a connection: {err}");
                // The connection stays ready, so that without a pause this would spin.
                let mut fds = [PollFd::new(on_wake, PollFlags::IN)];
                if poll(&mut fds, Some(&ACCEPT_PAUSE)).is_ok_and(|ready| ready > 0) {
                    return;
                }
            }
        }
    }
}

impl Shared {
    /// Gives a new connection a pending place and a thread.
    fn take_in(self: &Arc<Self>, stream: TcpStream) {
        let Ok(for_closing) = stream.try_clone() else { return };
        // Under the lock until its handle is stored: the thread removes it when it ends.
        let mut state = self.state.lock();
        if state.stopping {
            return;
        }
        while state.pending.len() >= self.config.max_pending.max(1) {
            if let Some((_, oldest)) = state.pending.pop_first() {
                let _ = oldest.shutdown(Shutdown::Both);
            }
        }
        let id = state.next_id;
        state.next_id += 1;
        let shared = Arc::clone(self);
        let serve = move || {
            let place = Place { shared, id };
            place.shared.serve(id, stream);
        };
        match thread::Builder::new().name("noxu-service".to_owned()).spawn(serve) {
            Ok(thread) => {
                state.pending.insert(id, for_closing);
                state.threads.insert(id, thread);
            }
            Err(err) => tracing::warn!("no thread for a connection: {err}"),
        }
    }

    fn serve(&self, id: u64, stream: TcpStream) {
        let config = TcpConfig { max_frame_bytes: MAX_REQUEST_BYTES, ..self.config.tcp.clone() };
        let Ok(channel) = TcpChannel::from_stream(stream, &config) else { return };
        let service = match channel.receive(self.config.request_timeout) {
            Ok(Some(frame)) => match decode_request(&frame) {
                Ok(service) => service,
                Err(err) => {
                    tracing::debug!("{}: no request for a service: {err}", channel.peer());
                    return;
                }
            },
            Ok(None) | Err(_) => return,
        };
        channel.limit_frames(self.config.tcp.max_frame_bytes);
        let channel = Arc::new(channel);
        let handler = self.services.read().get(service.as_str()).cloned();
        let refusal = match &handler {
            None => Some(Refusal::Unknown),
            Some(handler) => match handler.admit(&channel.peer()) {
                Admission::Accept => None,
                Admission::Busy => Some(Refusal::Busy),
                Admission::Refuse(reason) => Some(Refusal::Refused(reason)),
            },
        };
        let refusal = refusal.or_else(|| {
            let mut state = self.state.lock();
            // No place: thrown out while it spoke, or the dispatcher stops.
            let thrown_out = state.pending.remove(&id).is_none() || state.stopping;
            if thrown_out || state.serving.len() >= self.config.max_connections {
                return Some(Refusal::Busy);
            }
            state.serving.insert(id, Arc::clone(&channel));
            None
        });
        if channel.send(&encode_answer(refusal.as_ref())).is_err() {
            return;
        }
        if let (Some(handler), None) = (handler, refusal) {
            handler.serve(channel);
        }
    }
}

/// A connection's place in the books, given back when its thread ends, even by a panic.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.pending.remove(&self.id);
        let served = state.serving.remove(&self.id);
        state.threads.remove(&self.id);
        drop(state);
        if let Some(channel) = served {
            channel.close();
        }
    }
}

/// Connects to `address` and asks for `service`. [`RepError::ServiceRefused`] if it is not given.
pub fn dial(address: &str, service: &str, timeout: Duration) -> Result<Arc<TcpChannel>> {
    dial_with(address, service, timeout, &TcpConfig::default())
}

/// As [`dial`], with limits and deadlines for the connection.
pub fn dial_with(
    address: &str,
    service: &str,
    timeout: Duration,
    config: &TcpConfig,
) -> Result<Arc<TcpChannel>> {
    let deadline = Instant::now() + timeout;
    let connect_timeout = config.connect_timeout.min(timeout).max(Duration::from_millis(1));
    let max_frame_bytes = MAX_ANSWER_BYTES as u32;
    let connecting = TcpConfig { max_frame_bytes, connect_timeout, ..config.clone() };
    let channel = TcpChannel::connect(address, &connecting)?;
    channel.send(&encode_request(service))?;
    let answer = channel.receive(deadline.saturating_duration_since(Instant::now()))?;
    let Some(answer) = answer else {
        return Err(RepError::silent(address, "an answer to a service request", timeout));
    };
    match decode_answer(&answer)
        .map_err(|err| RepError::from(err).with_peer(|| address.to_owned()))?
    {
        None => {
            channel.limit_frames(config.max_frame_bytes);
            Ok(Arc::new(channel))
        }
        Some(refusal) => Err(RepError::ServiceRefused {
            peer: address.to_owned(),
            service: service.to_owned(),
            refusal,
        }),
    }
}

fn encode_request(service: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX_REQUEST_BYTES as usize);
    out.put_bytes(&MAGIC);
    out.put_u8(REQUEST_VERSION);
    out.put_text(service);
    out
}

fn decode_request(frame: &[u8]) -> Result<String, CodecError> {
    let mut reader = Reader::new(frame);
    let magic: [u8; 4] = reader.array("magic")?;
    let version = reader.u8("request version")?;
    if magic != MAGIC || version != REQUEST_VERSION {
        return Err(CodecError::OutOfRange {
            what: "request",
            found: format!("{:?} version {version}", magic.escape_ascii().to_string()),
            expected: "\"NOXU\" version 1",
        });
    }
    let service = reader.text("service", MAX_SERVICE_NAME_BYTES)?.to_owned();
    reader.finish("service request")?;
    Ok(service)
}

fn encode_answer(refusal: Option<&Refusal>) -> Vec<u8> {
    let (code, reason) = match refusal {
        None => (OK, ""),
        Some(Refusal::Busy) => (BUSY, ""),
        Some(Refusal::Unknown) => (UNKNOWN, ""),
        Some(Refusal::Refused(reason)) => (REFUSED, reason.as_str()),
    };
    let mut out = Vec::new();
    out.put_u8(code);
    out.put_text(&reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]);
    debug_assert!(out.len() <= MAX_ANSWER_BYTES, "an answer is short");
    out
}

fn decode_answer(frame: &[u8]) -> Result<Option<Refusal>, CodecError> {
    let mut reader = Reader::new(frame);
    let code = reader.u8("service answer")?;
    let reason = reader.text("service answer reason", MAX_REASON_BYTES)?.to_owned();
    reader.finish("service answer")?;
    match code {
        OK => Ok(None),
        BUSY => Ok(Some(Refusal::Busy)),
        UNKNOWN => Ok(Some(Refusal::Unknown)),
        REFUSED => Ok(Some(Refusal::Refused(reason))),
        other => Err(CodecError::OutOfRange {
            what: "service answer",
            found: other.to_string(),
            expected: "0 to 3",
        }),
    }
}

#[cfg(test)]
mod tests;
