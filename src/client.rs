//! Client: a blocking connection to a node's door, for the command line, the demo and tests.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes_mut;
use redis_protocol::resp2::types::BytesFrame;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A short text, such as `OK`.
    Status(String),
    /// A number.
    Integer(i64),
    /// A value, or none.
    Value(Option<Bytes>),
    /// Several answers.
    Array(Vec<Answer>),
    /// The node said no; its one-line reason.
    Error(String),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection.
    #[error("no connection to {addr}: {source}")]
    Connect {
        /// The address.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke or timed out.
    #[error("connection to {addr}: {source}")]
    Io {
        /// The address.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node answered with an error.
    #[error("{addr} answered: {reason}")]
    Refused {
        /// The address.
        addr: String,
        /// Its reason.
        reason: String,
    },
    /// The node answered something else than the command's answer.
    #[error("{addr} answered {found}, expected {expected}")]
    Unexpected {
        /// The address.
        addr: String,
        /// Found.
        found: String,
        /// Expected.
        expected: &'static str,
    },
}

/// A connection to a door.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    addr: String,
    input: BytesMut,
    output: Vec<u8>,
}

/// Largest answer taken.
const MAX_ANSWER_BYTES: usize = 256 << 20;

impl Client {
    /// Connects; `timeout` bounds the connection's making and each wait for an answer.
    pub fn connect(addr: &str, timeout: Duration) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { addr: addr.to_owned(), source };
        let mut last = std::io::Error::other("the name has no address");
        for candidate in addr.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&candidate, timeout) {
                Ok(stream) => {
                    stream
                        .set_nodelay(true)
                        .and_then(|()| stream.set_read_timeout(Some(timeout)))
                        .and_then(|()| stream.set_write_timeout(Some(timeout)))
                        .map_err(failed)?;
                    return Ok(Self {
                        stream,
                        addr: addr.to_owned(),
                        input: BytesMut::new(),
                        output: Vec::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// An answer may take as long as it takes from now on.
    pub fn wait_without_limit(&self) -> Result<(), ClientError> {
        self.stream.set_read_timeout(None).map_err(|source| self.io(source))
    }

    /// The address it is connected to.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Adds a request to what [`Client::flush`] will send.
    pub fn queue(&mut self, arguments: &[&[u8]]) {
        // A request is an array of bulk strings; writing it takes no frame type.
        let _ = write!(self.output, "*{}\r\n", arguments.len());
        for argument in arguments {
            let _ = write!(self.output, "${}\r\n", argument.len());
            self.output.extend_from_slice(argument);
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// Sends the queued requests.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let sent = self.stream.write_all(&self.output);
        self.output.clear();
        sent.map_err(|source| self.io(source))
    }

    /// The next answer, in the order of the requests.
    pub fn receive(&mut self) -> Result<Answer, ClientError> {
        loop {
            match decode_bytes_mut(&mut self.input) {
                Ok(Some((frame, _, _))) => return Ok(answer(frame)),
                Ok(None) => {}
                Err(error) => return Err(self.io(std::io::Error::other(error.to_string()))),
            }
            if self.input.len() > MAX_ANSWER_BYTES {
                return Err(self.unexpected("a longer answer", "at most 256 MiB"));
            }
            let filled = self.input.len();
            self.input.resize(filled + 64 * 1024, 0);
            let count = self.stream.read(&mut self.input[filled..]);
            self.input.truncate(filled + *count.as_ref().unwrap_or(&0));
            match count {
                Ok(0) => return Err(self.io(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    /// Sends one request and waits for its answer; an error answer is an `Err`.
    pub fn call(&mut self, arguments: &[&[u8]]) -> Result<Answer, ClientError> {
        self.queue(arguments);
        self.flush()?;
        match self.receive()? {
            Answer::Error(reason) => Err(ClientError::Refused { addr: self.addr.clone(), reason }),
            answer => Ok(answer),
        }
    }

    /// [`Client::call`] of a command whose answer is a number.
    pub fn call_integer(&mut self, arguments: &[&[u8]]) -> Result<i64, ClientError> {
        match self.call(arguments)? {
            Answer::Integer(number) => Ok(number),
            other => Err(self.unexpected(&format!("{other:?}"), "a number")),
        }
    }

    /// [`Client::call`] of a command whose answer is a value.
    pub fn call_value(&mut self, arguments: &[&[u8]]) -> Result<Option<Bytes>, ClientError> {
        match self.call(arguments)? {
            Answer::Value(value) => Ok(value),
            other => Err(self.unexpected(&format!("{other:?}"), "a value")),
        }
    }

    /// [`Client::call`] of a command whose answer is text.
    pub fn call_text(&mut self, arguments: &[&[u8]]) -> Result<String, ClientError> {
        match self.call(arguments)? {
            Answer::Value(Some(text)) => Ok(String::from_utf8_lossy(&text).into_owned()),
            Answer::Status(text) => Ok(text),
            other => Err(self.unexpected(&format!("{other:?}"), "a text")),
        }
    }

    /// One step of `SCAN`: the next cursor (0 at the end) and keys.
    pub fn scan_step(
        &mut self,
        cursor: &str,
        pattern: Option<&str>,
        count: usize,
    ) -> Result<(String, Vec<Bytes>), ClientError> {
        let count = count.to_string();
        let mut arguments: Vec<&[u8]> =
            vec![b"SCAN", cursor.as_bytes(), b"COUNT", count.as_bytes()];
        if let Some(pattern) = pattern {
            arguments.extend([&b"MATCH"[..], pattern.as_bytes()]);
        }
        let found = self.call(&arguments)?;
        if let Answer::Array(parts) = &found
            && let [Answer::Value(Some(next)), Answer::Array(keys)] = &parts[..]
        {
            let keys = keys.iter().map(|key| match key {
                Answer::Value(Some(key)) => Ok(key.clone()),
                other => Err(self.unexpected(&format!("{other:?}"), "a key")),
            });
            let keys = keys.collect::<Result<_, _>>()?;
            return Ok((String::from_utf8_lossy(next).into_owned(), keys));
        }
        Err(self.unexpected(&format!("{found:?}"), "a cursor and keys"))
    }

    fn io(&self, source: std::io::Error) -> ClientError {
        ClientError::Io { addr: self.addr.clone(), source }
    }

    fn unexpected(&self, found: &str, expected: &'static str) -> ClientError {
        let found = found.chars().take(100).collect();
        ClientError::Unexpected { addr: self.addr.clone(), found, expected }
    }
}

fn answer(frame: BytesFrame) -> Answer {
    match frame {
        BytesFrame::SimpleString(text) => {
            Answer::Status(String::from_utf8_lossy(&text).into_owned())
        }
        BytesFrame::Error(text) => Answer::Error(text.to_string()),
        BytesFrame::Integer(number) => Answer::Integer(number),
        BytesFrame::BulkString(value) => Answer::Value(Some(value)),
        BytesFrame::Array(frames) => Answer::Array(frames.into_iter().map(answer).collect()),
        BytesFrame::Null => Answer::Value(None),
    }
}
