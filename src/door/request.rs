//! Request: finding whole requests in the bytes of a connection, within limits.
//!
//! A scanner runs before the RESP2 decoder and lets only arrays of bulk strings through to it, whole
//! and below the caps: the decoder then never sees nesting (it recurses), half a frame (it would start
//! over at every read) or a length nobody vouched for.

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2::decode::decode_bytes;
use redis_protocol::resp2::types::BytesFrame;

/// Caps on one request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Arguments, the command's name included.
    pub arguments: usize,
    /// Bytes of one argument.
    pub argument_bytes: usize,
    /// Bytes of the whole request.
    pub request_bytes: usize,
}

/// Bytes that are no request; the connection that sent them is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A byte where another one was expected.
    #[error("Protocol error: expected '{expected}', found {found:?}")]
    UnexpectedByte {
        /// Expected.
        expected: char,
        /// Found.
        found: char,
    },
    /// A length that is no number, or none within its cap.
    #[error("Protocol error: {what} is {found:?}, expected 0 to {cap}")]
    BadLength {
        /// Which length.
        what: &'static str,
        /// Found.
        found: String,
        /// The cap.
        cap: usize,
    },
    /// The request is too long.
    #[error("Protocol error: a request of more than {cap} bytes")]
    TooLong {
        /// The cap.
        cap: usize,
    },
    /// The frame decoder did not like it.
    #[error("Protocol error: {reason}")]
    Undecodable {
        /// Its reason.
        reason: String,
    },
}

/// Longest line with a length: a type byte, 20 digits, CR LF.
const LENGTH_LINE_BYTES: usize = 23;
/// Longest inline command (what a person types into telnet).
const INLINE_BYTES: usize = 64 * 1024;

/// Scans for the end of the next request; remembers how far it came, so that no byte is looked at
/// twice however slowly the request arrives.
#[derive(Debug)]
pub struct RequestScanner {
    limits: RequestLimits,
    /// Bytes of the current request already scanned.
    scanned: usize,
    /// Arguments still to come; `None` before the array's header.
    arguments_left: Option<usize>,
}

impl RequestScanner {
    /// A scanner at the start of a request.
    pub const fn new(limits: RequestLimits) -> Self {
        Self { limits, scanned: 0, arguments_left: None }
    }

    /// Takes the next whole request off the front of `buffer`: its arguments. `None` if there is
    /// none yet; an empty request (a bare line end) has no arguments.
    pub fn next_request(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, Malformed> {
        match buffer.first() {
            None => Ok(None),
            Some(b'*') => {
                let Some(len) = self.scan_array(buffer)? else { return Ok(None) };
                *self = Self::new(self.limits);
                decode_array(&buffer.split_to(len).freeze()).map(Some)
            }
            Some(_) => self.next_inline(buffer),
        }
    }

    fn scan_array(&mut self, buffer: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut left = match self.arguments_left {
            Some(left) => left,
            None => match length_line(buffer, '*', "the argument count", self.limits.arguments)? {
                None => return Ok(None),
                Some((count, line_bytes)) => {
                    self.scanned = line_bytes;
                    count
                }
            },
        };
        while left > 0 {
            self.arguments_left = Some(left);
            let rest = &buffer[self.scanned..];
            let cap = self.limits.argument_bytes;
            let Some((len, line_bytes)) = length_line(rest, '$', "an argument's length", cap)?
            else {
                return Ok(None);
            };
            let end = self.scanned + line_bytes + len + 2;
            if end > self.limits.request_bytes {
                return Err(Malformed::TooLong { cap: self.limits.request_bytes });
            }
            if buffer.len() < end {
                return Ok(None);
            }
            for (at, expected) in [(end - 2, '\r'), (end - 1, '\n')] {
                if buffer[at] != expected as u8 {
                    let found = char::from(buffer[at]);
                    return Err(Malformed::UnexpectedByte { expected, found });
                }
            }
            self.scanned = end;
            left -= 1;
        }
        Ok(Some(self.scanned))
    }

    fn next_inline(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, Malformed> {
        let Some(end) = buffer[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = buffer.len();
            if buffer.len() > INLINE_BYTES {
                return Err(Malformed::TooLong { cap: INLINE_BYTES });
            }
            return Ok(None);
        };
        let line = buffer.split_to(self.scanned + end + 1).freeze();
        *self = Self::new(self.limits);
        // Binary garbage with a line end in it is no command that somebody typed.
        if let Some(byte) =
            line.iter().find(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
        {
            return Err(Malformed::UnexpectedByte { expected: '*', found: char::from(*byte) });
        }
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
    }
}

/// A line of `kind`, decimal digits, CR LF at the front of `bytes`: the number and the line's length.
fn length_line(
    bytes: &[u8],
    kind: char,
    what: &'static str,
    cap: usize,
) -> Result<Option<(usize, usize)>, Malformed> {
    match bytes.first() {
        None => return Ok(None),
        Some(byte) if *byte == kind as u8 => {}
        Some(byte) => {
            return Err(Malformed::UnexpectedByte { expected: kind, found: char::from(*byte) });
        }
    }
    let window = &bytes[1..bytes.len().min(LENGTH_LINE_BYTES)];
    let bad = |found: &[u8]| Malformed::BadLength {
        what,
        found: String::from_utf8_lossy(found).into_owned(),
        cap,
    };
    let Some(end) = window.iter().position(|byte| *byte == b'\r') else {
        let wrong = window.iter().any(|byte| !byte.is_ascii_digit());
        return if wrong || bytes.len() >= LENGTH_LINE_BYTES { Err(bad(window)) } else { Ok(None) };
    };
    let digits = &window[..end];
    match bytes.get(end + 2) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(byte) => {
            return Err(Malformed::UnexpectedByte { expected: '\n', found: char::from(*byte) });
        }
    }
    if digits.is_empty() || digits.iter().any(|byte| !byte.is_ascii_digit()) {
        return Err(bad(digits));
    }
    let number = digits.iter().try_fold(0_usize, |number, digit| {
        number.checked_mul(10)?.checked_add(usize::from(digit - b'0'))
    });
    match number {
        Some(number) if number <= cap => Ok(Some((number, end + 3))),
        _ => Err(bad(digits)),
    }
}

fn decode_array(frame: &Bytes) -> Result<Vec<Bytes>, Malformed> {
    let undecodable = |reason: String| Malformed::Undecodable { reason };
    match decode_bytes(frame).map_err(|e| undecodable(e.to_string()))? {
        Some((BytesFrame::Array(frames), _)) => frames
            .into_iter()
            .map(|argument| match argument {
                BytesFrame::BulkString(bytes) => Ok(bytes),
                other => Err(undecodable(format!("expected a bulk string, found {other:?}"))),
            })
            .collect(),
        other => Err(undecodable(format!("expected an array, found {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits =
        RequestLimits { arguments: 4, argument_bytes: 100, request_bytes: 250 };

    fn scan(bytes: &[u8]) -> Result<Option<Vec<Bytes>>, Malformed> {
        RequestScanner::new(LIMITS).next_request(&mut BytesMut::from(bytes))
    }

    #[test]
    fn a_request_is_found_however_it_is_cut() {
        let whole = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n";
        let mut scanner = RequestScanner::new(LIMITS);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in whole {
            buffer.extend_from_slice(&[*byte]);
            while let Some(request) = scanner.next_request(&mut buffer).unwrap() {
                found.push(request);
            }
        }
        assert_eq!(found, [vec!["SET", "k", ""], vec!["PING"]]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn inline_commands_are_words_of_a_line() {
        assert_eq!(scan(b"SET  a b\r\n").unwrap().unwrap(), ["SET", "a", "b"]);
        assert_eq!(scan(b"\r\n").unwrap().unwrap(), Vec::<Bytes>::new());
        assert_eq!(scan(b"PING").unwrap(), None);
        assert!(matches!(scan(b"\x16\x03\x01\n"), Err(Malformed::UnexpectedByte { .. })));
    }

    #[test]
    fn what_is_no_request_is_named() {
        let nested = b"*1\r\n*1\r\n";
        assert_eq!(scan(nested), Err(Malformed::UnexpectedByte { expected: '$', found: '*' }));
        assert!(matches!(scan(b"*5\r\n"), Err(Malformed::BadLength { cap: 4, .. })));
        assert!(matches!(scan(b"*-1\r\n"), Err(Malformed::BadLength { .. })));
        assert!(matches!(scan(b"*99999999999999999999999999"), Err(Malformed::BadLength { .. })));
        assert!(matches!(scan(b"*1\r\n$101\r\n"), Err(Malformed::BadLength { cap: 100, .. })));
        let long =
            [&b"*3\r\n$100\r\n"[..], &[b'x'; 100], b"\r\n$100\r\n", &[b'x'; 100], b"\r\n$100\r\n"]
                .concat();
        assert_eq!(scan(&long), Err(Malformed::TooLong { cap: 250 }));
        assert!(matches!(scan(b"*1\r\n$1\r\nxyz"), Err(Malformed::UnexpectedByte { .. })));
        assert!(matches!(scan(b"*1\r3"), Err(Malformed::UnexpectedByte { expected: '\n', .. })));
    }

    #[test]
    fn no_bytes_make_the_scanner_panic_or_loop() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let alphabet = b"*$\r\n0123456789-PING \0\xff";
        for _ in 0..20_000 {
            let len = random.usize(0..60);
            let bytes: Vec<u8> =
                (0..len).map(|_| alphabet[random.usize(0..alphabet.len())]).collect();
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut scanner = RequestScanner::new(LIMITS);
            let mut requests = 0;
            while let Ok(Some(_)) = scanner.next_request(&mut buffer) {
                requests += 1;
                assert!(requests <= len, "seed {seed}: {bytes:?}");
            }
        }
    }
}
