//! Door: where clients talk to a node, in RESP2 (the Redis protocol).
//!
//! One blocking thread per connection, a bounded number of them, bounded bytes each and in all. A
//! malformed request is answered with an error and closes its own connection only.
//!
//! # Not here: what a key is and how it gets durable ([`Backend`]).

mod backend;
mod command;
mod connection;
mod info;
mod pattern;
mod request;
mod scan_cursors;
mod store;

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

pub use backend::{
    Backend, BackendError, BadDurability, Committed, DurabilityName, InfoLine, InfoSection,
    PendingCommit, RoleReply, Transaction,
};
pub use request::{Malformed, RequestLimits, RequestScanner};

pub use store::StoreBackend;

use scan_cursors::ScanCursors;

/// Limits of a door.
#[derive(Debug, Clone, Copy)]
pub struct DoorConfig {
    /// Connections at a time; further ones are told so and closed.
    pub max_connections: usize,
    /// Caps on one request.
    pub limits: RequestLimits,
    /// Bytes of unfinished requests, all connections together, beyond [`FREE_BUFFER_BYTES`] each.
    pub buffer_budget_bytes: usize,
    /// Answers of one connection that may wait for their commits.
    pub max_pending_replies: usize,
    /// How long a request may take to arrive once it has begun, and an answer to be taken.
    pub transfer_timeout: Duration,
    /// Durability of a new connection.
    pub durability: DurabilityName,
}

/// Bytes that a connection may buffer without asking the common budget.
pub const FREE_BUFFER_BYTES: usize = 64 * 1024;

impl Default for DoorConfig {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            limits: RequestLimits {
                arguments: 128 * 1024,
                argument_bytes: 64 << 20,
                request_bytes: (64 << 20) + (64 << 10),
            },
            buffer_budget_bytes: 256 << 20,
            max_pending_replies: 4096,
            transfer_timeout: Duration::from_secs(30),
            durability: DurabilityName::default(),
        }
    }
}

/// A listening door. Dropping it closes it.
#[derive(Debug)]
pub struct Door {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

/// What the connections share.
pub(crate) struct Shared {
    config: DoorConfig,
    backend: Arc<dyn Backend>,
    cursors: Mutex<ScanCursors>,
    buffered_bytes: AtomicUsize,
    closing: AtomicBool,
    next_id: AtomicU64,
    requests: AtomicU64,
    connections: Mutex<HashMap<u64, Open>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

/// An open connection, as the door sees it.
struct Open {
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Binds `addr` and serves `backend` there.
    pub fn open(
        addr: impl ToSocketAddrs,
        backend: Arc<dyn Backend>,
        config: DoorConfig,
    ) -> std::io::Result<Self> {
        Self::on(TcpListener::bind(addr)?, backend, config)
    }

    /// Serves `backend` on a bound listener.
    pub fn on(
        listener: TcpListener,
        backend: Arc<dyn Backend>,
        config: DoorConfig,
    ) -> std::io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            config,
            backend,
            cursors: Mutex::new(ScanCursors::new()),
            buffered_bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            requests: AtomicU64::new(0),
            connections: Mutex::new(HashMap::new()),
        });
        let accepting = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("door".to_owned())
                .spawn(move || shared.accept_all(&listener))?
        };
        Ok(Self { shared, local_addr, accepting: Some(accepting) })
    }

    /// The address that it listens on.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Requests served so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Stops listening and closes all connections. A thread that waits for the backend goes on waiting:
    /// [`Door::close`] waits for it, and had better be called when the backend is closed.
    pub fn hang_up(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.closing.store(true, Ordering::SeqCst);
        // The accepting thread sits in `accept`; a connection of our own wakes it.
        let mut wake = self.local_addr;
        if wake.ip().is_unspecified() {
            wake.set_ip(match wake {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        drop(TcpStream::connect_timeout(&wake, Duration::from_secs(1)));
        let _ = accepting.join();
        for connection in self.shared.connections.lock().values() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Hangs up, if that was not done before, and waits for the threads of all connections.
    pub fn close(&mut self) {
        self.hang_up();
        let open: Vec<Open> =
            self.shared.connections.lock().drain().map(|(_, open)| open).collect();
        for connection in open {
            if let Some(thread) = connection.thread {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => {
                    // Out of file descriptors, mostly: closing connections frees some. Without a
                    // pause this thread would take a processor until then.
                    tracing::warn!(%error, "door: accept failed");
                    std::thread::park_timeout(Duration::from_millis(50));
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, mut stream: TcpStream) {
        let timeout = Some(self.config.transfer_timeout);
        let ready = stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(timeout));
        let Ok(kept) = ready.and_then(|()| stream.try_clone()) else { return };
        let mut connections = self.connections.lock();
        if connections.len() >= self.config.max_connections {
            drop(connections);
            let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
            return;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // The entry goes in before the thread starts, and under the lock, so that the thread's own
        // removal at its end finds it.
        let shared = self.clone();
        let spawned = std::thread::Builder::new().name(format!("client-{id}")).spawn(move || {
            connection::serve(&shared, stream);
            shared.connections.lock().remove(&id);
        });
        match spawned {
            Ok(thread) => {
                connections.insert(id, Open { stream: kept, thread: Some(thread) });
            }
            Err(error) => tracing::warn!(%error, "door: no thread for a connection"),
        }
    }
}
