//! Programs: running `noxu` as a user would, and node processes that end with their test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use noxu::client::Client;
use rustix::process::Signal;

/// Any free port.
pub(crate) const FREE: &str = "127.0.0.1:0";

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `noxu` with `arguments` to its end.
pub(crate) fn noxu(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_noxu"))
        .args(arguments)
        .env_remove("NOXU_ADDR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `noxu`, which must fail with `code` and one line on standard error that holds all `parts`.
#[track_caller]
pub(crate) fn fails(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = noxu(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    // Events that a node logs stand before it.
    let said = said.lines().filter(|line| !is_event(line)).collect::<Vec<_>>().join("\n");
    assert_eq!(said.lines().count(), 1, "{arguments:?} said more than one line: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?}: {part:?} is not in {said}");
    }
}

/// A line that begins with a time, as those of the event log do, with or without colours.
fn is_event(line: &str) -> bool {
    let digits = line.trim_start_matches("\u{1b}[2m");
    digits.starts_with("20") && digits.contains('T')
}

/// A node process; killed when dropped.
pub(crate) struct NodeProcess {
    child: Child,
    /// The node ends when it closes.
    _stdin: Option<ChildStdin>,
    pub(crate) peer_addr: String,
    pub(crate) client_addr: String,
}

impl NodeProcess {
    /// Starts a node on ports of its choice and waits for its readiness line.
    pub(crate) fn start(name: &str, dir: &Path, arguments: &[&str]) -> Self {
        Self::start_at(name, dir, (FREE, FREE), arguments)
    }

    /// [`NodeProcess::start`] with given addresses for peers and clients.
    pub(crate) fn start_at(
        name: &str,
        dir: &Path,
        (listen, client_listen): (&str, &str),
        arguments: &[&str],
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_noxu"))
            .args(["node", "--exit-with-stdin", "--name", name, "--dir"])
            .arg(dir)
            .args(["--listen", listen, "--client-listen", client_listen])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_else(|| panic!("no {name} in the readiness line {line:?}"))
                .to_owned()
        };
        assert!(line.starts_with("noxu ready "), "{line:?}");
        let (peer_addr, client_addr) = (field("listen"), field("client"));
        Self { _stdin: child.stdin.take(), child, peer_addr, client_addr }
    }

    /// Starts the founder of a group named `g`, which begins when all `members` have come. It is to
    /// be the master, and stays it for a minute though it is alone.
    pub(crate) fn found(name: &str, dir: &Path, members: &str) -> Self {
        let create = ["--create-group", "g", "--members", members, "--segment-size", "1MiB"];
        let lead = ["--priority", "9", "--quorum-timeout", "60000"];
        Self::start(name, dir, &[&create[..], &lead[..]].concat())
    }

    /// The only node of a group, and its master.
    pub(crate) fn alone(name: &str, dir: &Path) -> Self {
        let node = Self::found(name, dir, name);
        node.wait_master();
        node
    }

    /// Starts a node that knows another and, with that one there, does not strive to be master.
    pub(crate) fn join(name: &str, dir: &Path, other: &Self) -> Self {
        Self::start(name, dir, &["--peer", &other.peer_addr, "--priority", "0"])
    }

    /// A group of n1 and n2 in directories below `dir`; n1 is master.
    pub(crate) fn pair(dir: &Path) -> [Self; 2] {
        let n1 = Self::found("n1", &dir.join("n1"), "n1,n2");
        let n2 = Self::join("n2", &dir.join("n2"), &n1);
        n1.wait_master();
        [n1, n2]
    }

    /// A group of n1, n2 and n3 in directories below `dir`; n1 is master.
    pub(crate) fn group(dir: &Path) -> [Self; 3] {
        let n1 = Self::found("n1", &dir.join("n1"), "n1,n2,n3");
        let [n2, n3] = ["n2", "n3"].map(|name| Self::join(name, &dir.join(name), &n1));
        n1.wait_master();
        [n1, n2, n3]
    }

    #[track_caller]
    pub(crate) fn wait_master(&self) {
        self.wait_for("role", |role| role == "master");
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.client_addr, PATIENCE).unwrap()
    }

    /// A line of `INFO`.
    pub(crate) fn info(&self, key: &str) -> Option<String> {
        let text = self.client().call_text(&[b"INFO"]).unwrap();
        let prefix = format!("{key}:");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    }

    /// Asks until a line of `INFO` satisfies `enough`.
    #[track_caller]
    pub(crate) fn wait_for(&self, key: &str, enough: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let found = self.info(key);
            if let Some(found) = found.as_ref().filter(|found| enough(found)) {
                return found.clone();
            }
            assert!(started.elapsed() < PATIENCE, "{key} stays {found:?}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Waits until everything through `vlsn` can be read here.
    pub(crate) fn wait_applied(&self, vlsn: &str) {
        self.client().call(&[b"NOXU", b"WAIT", vlsn.as_bytes(), b"30000"]).unwrap();
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; the exit code.
    pub(crate) fn wait_end(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
