//! Door: where a node is reached, whatever port it listens on after its latest start; and the
//! network's failures: shut, cut, or silent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

use crate::support::PATIENCE;

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    FlippedBit,
    Cut,
}

/// A forwarding listener with a fixed address.
pub(crate) struct Door {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    target: Option<SocketAddr>,
    silent: bool,
    gone: bool,
    streams: Vec<TcpStream>,
    /// Connections on which the node may still be heard.
    heard: usize,
    /// Bytes that still pass towards the one who dialled before it happens, once.
    trouble: Option<(usize, Trouble)>,
}

impl Door {
    /// A door that leads nowhere yet: who connects is hung up on.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::<Shared>::default();
        let doorman = Arc::clone(&shared);
        thread::spawn(move || doorman.accept(&listener));
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Leads new connections to `target`, or nowhere; those that are open are cut.
    pub(crate) fn lead_to(&self, target: Option<SocketAddr>) {
        self.shared.state.lock().target = target;
        self.cut();
    }

    /// The node has closed: leads nowhere once what it said last has passed.
    pub(crate) fn close_behind(&self) {
        let mut state = self.shared.state.lock();
        state.target = None;
        while state.heard > 0 && !state.silent {
            let waited = self.shared.changed.wait_for(&mut state, PATIENCE);
            assert!(!waited.timed_out(), "a node that has closed still holds a connection");
        }
        drop(state);
        self.cut();
    }

    /// Ends every open connection; new ones may come at once.
    pub(crate) fn cut(&self) {
        let streams = std::mem::take(&mut self.shared.state.lock().streams);
        for stream in streams {
            let _ = stream.shutdown(Shutdown::Both); // it may be gone already
        }
        self.shared.changed.notify_all();
    }

    /// While silent, nothing passes in either direction and nothing is closed.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.shared.state.lock().silent = silent;
        self.shared.changed.notify_all();
    }

    /// Once `bytes` more have passed from the node towards those who dialled it.
    pub(crate) fn trouble_after(&self, bytes: usize, trouble: Trouble) {
        self.shared.state.lock().trouble = Some((bytes, trouble));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.gone = true;
            state.silent = false;
        }
        self.cut();
        drop(TcpStream::connect(self.address)); // wakes the doorman
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for incoming in listener.incoming() {
            let target = {
                let state = self.state.lock();
                if state.gone {
                    return;
                }
                state.target
            };
            let (Ok(outside), Some(target)) = (incoming, target) else { continue };
            let Ok(inside) = TcpStream::connect(target) else { continue };
            let pairs = [(clone(&outside), clone(&inside)), (clone(&inside), clone(&outside))];
            for stream in [&outside, &inside] {
                let _ = stream.set_nodelay(true); // a test of latency would show it
            }
            {
                let mut state = self.state.lock();
                if state.target != Some(target) {
                    continue;
                }
                state.streams.extend([outside, inside]);
                state.heard += 1;
            }
            for (n, (from, to)) in pairs.into_iter().enumerate() {
                let shared = Arc::clone(self);
                thread::spawn(move || {
                    let outwards = n == 1;
                    shared.pass(from, to, outwards);
                    shared.state.lock().heard -= usize::from(outwards);
                    shared.changed.notify_all();
                });
            }
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, outwards: bool) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            let mut cut = None;
            {
                let mut state = self.state.lock();
                while state.silent {
                    self.changed.wait(&mut state);
                }
                match &mut state.trouble {
                    Some((left, _)) if outwards && *left >= count => *left -= count,
                    Some((left, trouble)) if outwards => {
                        match trouble {
                            Trouble::FlippedBit => buffer[*left] ^= 0x10,
                            Trouble::Cut => cut = Some(*left),
                        }
                        state.trouble = None;
                    }
                    _ => {}
                }
            }
            if let Some(left) = cut {
                let _ = to.write_all(&buffer[..left]); // it is broken either way
                for stream in [from, to] {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // What goes the other way still passes.
        let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a descriptor")
}
