//! Load: writes through a node's door, many in flight, and remembers what was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::input::Piece;
use crate::cli::error::CliError;
use crate::client::{Answer, Client};

/// Requests sent and not answered.
const WINDOW: usize = 64;

/// Keys with the digests of their values.
pub(super) type Contents = BTreeMap<Vec<u8>, blake3::Hash>;

/// A connection that loads.
pub(super) struct Loader {
    client: Client,
    in_flight: VecDeque<(Piece, Instant)>,
    /// What was acknowledged.
    pub(super) acknowledged: Contents,
    /// Bytes of the values acknowledged.
    pub(super) bytes: u64,
    latency_us: Histogram<u64>,
    started: Instant,
}

impl Loader {
    /// Loads through `client` with `durability`.
    pub(super) fn new(mut client: Client, durability: &str) -> Result<Self, CliError> {
        client.call(&[b"NOXU", b"DURABILITY", durability.as_bytes()])?;
        Ok(Self {
            client,
            in_flight: VecDeque::with_capacity(WINDOW),
            acknowledged: Contents::new(),
            bytes: 0,
            latency_us: Histogram::new(3).map_err(|e| CliError::Failed(e.to_string()))?,
            started: Instant::now(),
        })
    }

    /// Writes a piece; waits only while the window is full.
    pub(super) fn put(&mut self, piece: Piece) -> Result<(), CliError> {
        self.client.queue(&[b"SET", piece.key.as_bytes(), &piece.value]);
        self.in_flight.push_back((piece, Instant::now()));
        if self.in_flight.len() >= WINDOW {
            self.client.flush()?;
            // Half of the window, so that requests travel in groups.
            while self.in_flight.len() > WINDOW / 2 {
                self.answer()?;
            }
        }
        Ok(())
    }

    /// Waits for all answers.
    pub(super) fn finish(&mut self) -> Result<(), CliError> {
        self.client.flush()?;
        while !self.in_flight.is_empty() {
            self.answer()?;
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<(), CliError> {
        let answer = self.client.receive()?;
        let Some((piece, sent)) = self.in_flight.pop_front() else {
            return Err(CliError::Failed("an answer to no request".to_owned()));
        };
        match answer {
            Answer::Status(ok) if ok == "OK" => {
                self.latency_us.saturating_record(sent.elapsed().as_micros() as u64);
                self.bytes += piece.value.len() as u64;
                self.acknowledged.insert(piece.key.into_bytes(), blake3::hash(&piece.value));
                Ok(())
            }
            other => Err(CliError::Failed(format!("SET {} was answered {other:?}", piece.key))),
        }
    }

    /// Transactions acknowledged.
    pub(super) fn commits(&self) -> u64 {
        self.latency_us.len()
    }

    /// Time since it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Microseconds within which this share of the commits was acknowledged.
    pub(super) fn quantile_us(&self, share: f64) -> u64 {
        self.latency_us.value_at_quantile(share)
    }

    /// VLSN of the last commit.
    pub(super) fn last_vlsn(&mut self) -> Result<i64, CliError> {
        let token = self.client.call_text(&[b"NOXU", b"TOKEN"])?;
        Ok(token.split(':').next().and_then(|vlsn| vlsn.parse().ok()).unwrap_or(0))
    }
}

/// All that a node holds, read through its door.
pub(super) fn contents(client: &mut Client) -> Result<Contents, CliError> {
    let mut all = Contents::new();
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = client.scan_step(&cursor, None, 500)?;
        let mut request: Vec<&[u8]> = vec![b"MGET"];
        request.extend(keys.iter().map(|key| &key[..]));
        if !keys.is_empty() {
            let Answer::Array(values) = client.call(&request)? else {
                return Err(CliError::Failed("MGET was not answered with an array".to_owned()));
            };
            for (key, value) in keys.iter().zip(values) {
                if let Answer::Value(Some(value)) = value {
                    all.insert(key.to_vec(), blake3::hash(&value));
                }
            }
        }
        cursor = next;
        if cursor == "0" {
            return Ok(all);
        }
    }
}
