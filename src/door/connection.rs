//! Connection: one client of the door.
//!
//! # Invariants
//! - Answers leave in the order of the requests.
//! - A read sees every write that the same connection sent before it: it waits for them first.
//! - Writes that arrive together are submitted together; only then are they waited for, so that one
//!   group commit carries a whole pipeline.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::encode::extend_encode;
use redis_protocol::resp2::types::BytesFrame;

use super::backend::{BackendError, Committed, DurabilityName, InfoLine, PendingCommit, RoleReply};
use super::command::{COMMANDS, Command, DataCommand, EmptyReply};
use super::request::RequestScanner;
use super::{FREE_BUFFER_BYTES, Shared, pattern};

/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of answers collected before they are sent though more requests are at hand.
const FLUSH_BYTES: usize = 256 * 1024;
/// Commands that `MULTI` queues, and their bytes.
const MAX_QUEUED: usize = 16 * 1024;
/// Tries of a transaction that reads before it writes, until its conflict is the client's.
const CONFLICT_TRIES: usize = 16;

/// Serves a client until it leaves, errs or the door closes.
pub(super) fn serve(shared: &Shared, stream: TcpStream) {
    let mut connection = Connection {
        shared,
        durability: shared.config.durability,
        stream,
        replies: VecDeque::new(),
        out: BytesMut::new(),
        transaction: Multi::Off,
        last_commit: Committed::default(),
        visible_vlsn: 0,
        budget_bytes: 0,
    };
    connection.run();
    connection.reserve(0);
    let _ = connection.stream.shutdown(Shutdown::Both);
}

struct Connection<'a> {
    shared: &'a Shared,
    durability: DurabilityName,
    stream: TcpStream,
    replies: VecDeque<Reply>,
    out: BytesMut,
    transaction: Multi,
    last_commit: Committed,
    /// Everything through it is known to be visible here.
    visible_vlsn: i64,
    /// Bytes taken from the door's common budget.
    budget_bytes: usize,
}

/// Looks now and then whether the client of something long is there still.
struct ClientWatch<'a> {
    stream: &'a TcpStream,
    is_there: bool,
    looked: Instant,
}

/// How often it looks.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

impl<'a> ClientWatch<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, is_there: true, looked: Instant::now() }
    }

    /// False once the client has hung up or the door closes; a client that sent more requests is there.
    fn is_there(&mut self) -> bool {
        if self.is_there && self.looked.elapsed() >= WATCH_PAUSE {
            self.looked = Instant::now();
            let peek = || {
                self.stream.set_nonblocking(true)?;
                let peeked = self.stream.peek(&mut [0]);
                self.stream.set_nonblocking(false)?;
                peeked
            };
            self.is_there = match peek() {
                Ok(bytes) => bytes > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
        }
        self.is_there
    }
}

/// What `MULTI` has begun.
enum Multi {
    /// Nothing.
    Off,
    /// Commands are queued.
    Queued(Vec<DataCommand>),
    /// A command was refused: `EXEC` will do nothing.
    Refused,
}

/// An answer in its place.
enum Reply {
    /// Ready.
    Ready(BytesFrame),
    /// The frame, once the commit has met its durability; an error otherwise.
    After(Box<dyn PendingCommit>, BytesFrame),
}

/// Whether the connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Serve,
    Close,
}

impl Connection<'_> {
    fn run(&mut self) {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut scanner = RequestScanner::new(self.shared.config.limits);
        loop {
            match scanner.next_request(&mut buffer) {
                Ok(Some(arguments)) => {
                    if self.handle_request(&arguments) == Next::Close {
                        let _ = self.flush();
                        return;
                    }
                }
                Ok(None) => {
                    if self.flush().is_err() || !self.read_more(&mut buffer) {
                        return;
                    }
                }
                Err(malformed) => {
                    self.push(error_frame(&format!("ERR {malformed}")));
                    let _ = self.flush();
                    self.drain_then_close();
                    return;
                }
            }
        }
    }

    /// Reads what the socket has; false when the connection is over.
    fn read_more(&mut self, buffer: &mut BytesMut) -> bool {
        if !self.reserve(buffer.len().saturating_sub(FREE_BUFFER_BYTES)) {
            self.push(error_frame("ERR too many bytes of unfinished requests in this node"));
            let _ = self.flush();
            return false;
        }
        // An idle client may stay; one that stops in the middle of a request may not.
        let timeout = (!buffer.is_empty()).then_some(self.shared.config.transfer_timeout);
        if self.stream.set_read_timeout(timeout).is_err() {
            return false;
        }
        let filled = buffer.len();
        buffer.resize(filled + READ_BYTES, 0);
        loop {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return false,
                Ok(count) => {
                    buffer.truncate(filled + count);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    self.push(error_frame("ERR a request took too long to arrive"));
                    let _ = self.flush();
                    return false;
                }
                Err(_) => return false,
            }
        }
    }

    /// Takes `bytes` of the common budget instead of what this connection had of it.
    fn reserve(&mut self, bytes: usize) -> bool {
        let buffered = &self.shared.buffered_bytes;
        if bytes > self.budget_bytes {
            let more = bytes - self.budget_bytes;
            let before = buffered.fetch_add(more, Ordering::Relaxed);
            self.budget_bytes = bytes;
            return before + more <= self.shared.config.buffer_budget_bytes;
        }
        buffered.fetch_sub(self.budget_bytes - bytes, Ordering::Relaxed);
        self.budget_bytes = bytes;
        true
    }

    /// Lets the error answer reach the client: closing with unread bytes would reset the connection
    /// and could take the answer with it. Bounded in bytes and time.
    fn drain_then_close(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.set_read_timeout(Some(std::time::Duration::from_millis(200)));
        let mut sink = [0; 4096];
        for _ in 0..256 {
            if !matches!(self.stream.read(&mut sink), Ok(count) if count > 0) {
                return;
            }
        }
    }

    fn push(&mut self, frame: BytesFrame) {
        self.replies.push_back(Reply::Ready(frame));
    }

    /// Waits for the commits in front and moves all answers into the output.
    fn settle(&mut self) {
        while let Some(reply) = self.replies.pop_front() {
            let frame = match reply {
                Reply::Ready(frame) => frame,
                Reply::After(commit, frame) => match commit.wait() {
                    Ok(committed) => {
                        if committed.vlsn > 0 {
                            self.last_commit = committed;
                        }
                        frame
                    }
                    Err(error) => error_frame(&error.to_string()),
                },
            };
            if extend_encode(&mut self.out, &frame, false).is_err() {
                self.out.extend_from_slice(b"-ERR the answer could not be encoded\r\n");
            }
        }
    }

    /// Settles, and waits until this connection's own commits can be read: a commit of a weak
    /// durability may return before commits below it have met theirs.
    fn settle_for_reading(&mut self) -> Result<(), BackendError> {
        self.settle();
        if self.last_commit.vlsn > self.visible_vlsn {
            let wait = self.shared.config.transfer_timeout;
            self.visible_vlsn = self.shared.backend.wait_applied(self.last_commit.vlsn, wait)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.settle();
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.stream.write_all(&self.out);
        self.out.clear();
        written
    }

    fn handle_request(&mut self, arguments: &[Bytes]) -> Next {
        if arguments.is_empty() {
            return Next::Serve;
        }
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let command = match Command::parse(arguments) {
            Ok(command) => command,
            Err(bad) => {
                if !matches!(self.transaction, Multi::Off) {
                    self.transaction = Multi::Refused;
                }
                self.push(error_frame(&bad.to_string().replacen("ERR NOPROTO", "NOPROTO", 1)));
                return Next::Serve;
            }
        };
        if !matches!(self.transaction, Multi::Off) {
            return self.handle_in_transaction(command);
        }
        if command == Command::Quit {
            self.push(ok());
            return Next::Close;
        }
        self.handle_command(command);
        let bytes: usize = self.out.len();
        if self.replies.len() >= self.shared.config.max_pending_replies || bytes >= FLUSH_BYTES {
            return if self.flush().is_ok() { Next::Serve } else { Next::Close };
        }
        Next::Serve
    }

    fn handle_in_transaction(&mut self, command: Command) -> Next {
        let frame = match command {
            Command::Data(data) => match &mut self.transaction {
                Multi::Queued(queue) if queue.len() >= MAX_QUEUED => {
                    self.transaction = Multi::Refused;
                    error_frame(&format!("ERR more than {MAX_QUEUED} commands in one MULTI"))
                }
                Multi::Queued(queue) => {
                    queue.push(data);
                    simple("QUEUED")
                }
                Multi::Off | Multi::Refused => simple("QUEUED"),
            },
            Command::Exec => {
                match std::mem::replace(&mut self.transaction, Multi::Off) {
                    Multi::Queued(queue) => self.transact(&queue, BytesFrame::Array),
                    Multi::Off | Multi::Refused => self.push(error_frame(
                        "EXECABORT a queued command was refused, nothing was done",
                    )),
                }
                return Next::Serve;
            }
            Command::Discard => {
                self.transaction = Multi::Off;
                ok()
            }
            Command::Quit => {
                self.push(ok());
                return Next::Close;
            }
            Command::Multi => error_frame("ERR MULTI inside MULTI"),
            _ => {
                self.transaction = Multi::Refused;
                error_frame("ERR only GET, MGET, EXISTS, SET, MSET and DEL can be in a MULTI")
            }
        };
        self.push(frame);
        Next::Serve
    }

    fn handle_command(&mut self, command: Command) {
        let backend = &self.shared.backend;
        let frame = match command {
            Command::Data(data) if data.is_write() => {
                let unwrapped = |mut frames: Vec<BytesFrame>| frames.remove(0);
                self.transact(&[data], unwrapped);
                return;
            }
            Command::Data(data) => self
                .settle_for_reading()
                .and_then(|()| read_frame(&data, |keys| backend.read(keys))),
            Command::Scan { cursor, pattern, count } => {
                self.settle_for_reading().and_then(|()| self.scan(cursor, pattern.as_ref(), count))
            }
            Command::DbSize => self
                .settle_for_reading()
                .and_then(|()| backend.count())
                .map(|count| BytesFrame::Integer(count as i64)),
            Command::Multi => {
                self.transaction = Multi::Queued(Vec::new());
                Ok(ok())
            }
            Command::Exec | Command::Discard => Ok(error_frame("ERR no MULTI was sent before")),
            Command::Ping(None) => Ok(simple("PONG")),
            Command::Ping(Some(message)) | Command::Echo(message) => {
                Ok(BytesFrame::BulkString(message))
            }
            Command::Quit => unreachable!("handled before"),
            Command::Accepted => Ok(ok()),
            Command::Empty(EmptyReply::Array) => Ok(BytesFrame::Array(Vec::new())),
            Command::Empty(EmptyReply::Null) => Ok(BytesFrame::Null),
            Command::Empty(EmptyReply::One) => Ok(BytesFrame::Integer(1)),
            Command::Hello => Ok(hello_frame()),
            Command::Table => Ok(command_table()),
            Command::TableSize => Ok(BytesFrame::Integer(COMMANDS.len() as i64)),
            Command::Role => Ok(role_frame(backend.role())),
            Command::Info(section) => {
                self.settle();
                Ok(self.info_frame(section.as_deref()))
            }
            Command::ShowDurability => Ok(bulk(self.durability.as_str())),
            Command::SetDurability(durability) => {
                self.durability = durability;
                Ok(ok())
            }
            Command::Token => {
                self.settle();
                Ok(bulk(&self.last_commit.to_string()))
            }
            Command::Wait { vlsn, timeout } => {
                self.settle();
                backend.wait_applied(vlsn, timeout).map(BytesFrame::Integer)
            }
            Command::Master { timeout } => {
                self.settle();
                Ok(match backend.master(timeout) {
                    Some(address) => bulk(&address),
                    None => BytesFrame::Null,
                })
            }
            Command::Outcome { commit, timeout } => {
                self.settle();
                backend.outcome(commit, timeout).map(bulk)
            }
            Command::Checkpoint => {
                self.settle();
                backend.checkpoint().map(BytesFrame::Integer)
            }
            Command::DropFront => {
                self.settle();
                backend.drop_front().map(BytesFrame::Integer)
            }
            Command::Scrub { bytes_per_second } => {
                self.settle();
                let mut client = ClientWatch::new(&self.stream);
                let came_of_it = backend.scrub(bytes_per_second, &mut || client.is_there());
                came_of_it.map(|lines| bulk(&text_of(&lines)))
            }
            Command::Restore => {
                self.settle();
                backend.restore().map(|is_new| bulk(if is_new { "begun" } else { "under way" }))
            }
        };
        self.push(frame.unwrap_or_else(|error| error_frame(&error.to_string())));
    }

    /// Runs `commands` as one transaction and puts its answer, made by `wrap` of the commands' own
    /// answers, in its place.
    fn transact(&mut self, commands: &[DataCommand], wrap: impl Fn(Vec<BytesFrame>) -> BytesFrame) {
        if !commands.iter().all(DataCommand::is_blind_write) {
            // It reads: it must see, and not conflict with, what this connection has in flight.
            if let Err(error) = self.settle_for_reading() {
                self.push(error_frame(&error.to_string()));
                return;
            }
        }
        let mut tries = 0;
        let reply = loop {
            tries += 1;
            match self.submit(commands) {
                Ok((commit, frames)) => break Reply::After(commit, wrap(frames)),
                Err(BackendError::Conflict { newer }) if tries < CONFLICT_TRIES => {
                    self.settle();
                    let wait = self.shared.config.transfer_timeout;
                    if let Err(error) = self.shared.backend.wait_applied(newer, wait) {
                        break Reply::Ready(error_frame(&error.to_string()));
                    }
                }
                Err(error) => break Reply::Ready(error_frame(&error.to_string())),
            }
        };
        self.replies.push_back(reply);
    }

    fn submit(
        &self,
        commands: &[DataCommand],
    ) -> Result<(Box<dyn PendingCommit>, Vec<BytesFrame>), BackendError> {
        let mut transaction = self.shared.backend.begin()?;
        let mut frames = Vec::with_capacity(commands.len());
        for command in commands {
            frames.push(match command {
                DataCommand::Set { key, value, only_if } => {
                    let lawful = match only_if {
                        None => true,
                        Some(present) => transaction.get(key)?.is_some() == *present,
                    };
                    if lawful {
                        transaction.put(key, value)?;
                        ok()
                    } else {
                        BytesFrame::Null
                    }
                }
                DataCommand::MSet(pairs) => {
                    for (key, value) in pairs {
                        transaction.put(key, value)?;
                    }
                    ok()
                }
                DataCommand::Del(keys) => {
                    let mut removed = 0;
                    for key in keys {
                        if transaction.get(key)?.is_some() {
                            transaction.delete(key)?;
                            removed += 1;
                        }
                    }
                    BytesFrame::Integer(removed)
                }
                read => {
                    read_frame(read, |keys| keys.iter().map(|key| transaction.get(key)).collect())?
                }
            });
        }
        Ok((transaction.commit(self.durability)?, frames))
    }

    fn scan(
        &self,
        cursor: u64,
        pattern: Option<&Bytes>,
        count: usize,
    ) -> Result<BytesFrame, BackendError> {
        let after = match cursor {
            0 => None,
            _ => Some(self.shared.cursors.lock().key(cursor).ok_or_else(|| {
                BackendError::Refused {
                    reason: format!("cursor {cursor} is not known (any more), start again at 0"),
                }
            })?),
        };
        let keys = self.shared.backend.keys_after(after.as_deref(), count)?;
        let next = match keys.last() {
            // A copy: a cursor must not keep alive whatever larger piece the key is a part of.
            Some(last) if keys.len() == count => {
                self.shared.cursors.lock().remember(Bytes::copy_from_slice(last))
            }
            _ => 0,
        };
        let matching = keys
            .into_iter()
            .filter(|key| pattern.is_none_or(|pattern| pattern::matches(pattern, key)))
            .map(BytesFrame::BulkString)
            .collect();
        Ok(BytesFrame::Array(vec![bulk(&next.to_string()), BytesFrame::Array(matching)]))
    }

    fn info_frame(&self, wanted: Option<&str>) -> BytesFrame {
        use std::fmt::Write as _;
        let all = matches!(wanted, None | Some("all" | "default" | "everything"));
        let mut text = String::new();
        let mut section = |title: &str, lines: &[InfoLine]| {
            if all || wanted == Some(title.to_ascii_lowercase().as_str()) {
                let _ = write!(text, "# {title}\r\n");
                text.push_str(&text_of(lines));
                text.push_str("\r\n");
            }
        };
        let line = |key: &str, value: String| (key.to_owned(), value);
        section(
            "Server",
            &[
                line("noxu_version", env!("CARGO_PKG_VERSION").to_owned()),
                // Clients choose features by this; it names the Redis whose answers ours look like.
                line("redis_version", "6.0.0".to_owned()),
                line("process_id", std::process::id().to_string()),
            ],
        );
        section(
            "Clients",
            &[
                line("connected_clients", self.shared.connections.lock().len().to_string()),
                line("requests_served", self.shared.requests.load(Ordering::Relaxed).to_string()),
            ],
        );
        for (title, lines) in self.shared.backend.info() {
            section(title, &lines);
        }
        bulk(&text)
    }
}

/// The answer to a command that only reads, given a way to read keys.
fn read_frame(
    command: &DataCommand,
    read: impl FnOnce(&[Bytes]) -> Result<Vec<Option<Bytes>>, BackendError>,
) -> Result<BytesFrame, BackendError> {
    let frame = |value: Option<Bytes>| value.map_or(BytesFrame::Null, BytesFrame::BulkString);
    Ok(match command {
        DataCommand::Get(key) => {
            let mut values = read(std::slice::from_ref(key))?;
            frame(values.pop().flatten())
        }
        DataCommand::MGet(keys) => BytesFrame::Array(read(keys)?.into_iter().map(frame).collect()),
        DataCommand::Exists(keys) => {
            BytesFrame::Integer(read(keys)?.iter().flatten().count() as i64)
        }
        DataCommand::Set { .. } | DataCommand::MSet(_) | DataCommand::Del(_) => {
            unreachable!("writes go through a transaction")
        }
    })
}

fn ok() -> BytesFrame {
    simple("OK")
}

fn simple(text: &'static str) -> BytesFrame {
    BytesFrame::SimpleString(Bytes::from_static(text.as_bytes()))
}

fn text_of(lines: &[InfoLine]) -> String {
    lines.iter().flat_map(|(key, value)| [key, ":", value, "\r\n"]).collect()
}

fn bulk(text: &str) -> BytesFrame {
    BytesFrame::BulkString(Bytes::copy_from_slice(text.as_bytes()))
}

/// An error answer. It is one line by protocol, whatever is quoted in it.
fn error_frame(text: &str) -> BytesFrame {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    BytesFrame::Error(line.into())
}

fn hello_frame() -> BytesFrame {
    BytesFrame::Array(vec![
        bulk("server"),
        bulk("noxu"),
        bulk("version"),
        bulk(env!("CARGO_PKG_VERSION")),
        bulk("proto"),
        BytesFrame::Integer(2),
    ])
}

fn command_table() -> BytesFrame {
    let row = |&(name, arity, flags, first, last, step): &super::command::CommandRow| {
        BytesFrame::Array(vec![
            bulk(name),
            BytesFrame::Integer(arity),
            BytesFrame::Array(flags.iter().map(|flag| bulk(flag)).collect()),
            BytesFrame::Integer(first),
            BytesFrame::Integer(last),
            BytesFrame::Integer(step),
        ])
    };
    BytesFrame::Array(COMMANDS.iter().map(row).collect())
}

fn role_frame(role: RoleReply) -> BytesFrame {
    match role {
        RoleReply::Master { last, replicas } => {
            let replicas = replicas
                .into_iter()
                .map(|(host, port, durable)| {
                    let fields = [host, port.to_string(), durable.to_string()];
                    BytesFrame::Array(fields.iter().map(|field| bulk(field)).collect())
                })
                .collect();
            BytesFrame::Array(vec![
                bulk("master"),
                BytesFrame::Integer(last),
                BytesFrame::Array(replicas),
            ])
        }
        RoleReply::Replica { master, connected, last } => {
            let (host, port) = master.unwrap_or_default();
            BytesFrame::Array(vec![
                bulk("slave"),
                bulk(&host),
                BytesFrame::Integer(i64::from(port)),
                bulk(if connected { "connected" } else { "connect" }),
                BytesFrame::Integer(last),
            ])
        }
    }
}
