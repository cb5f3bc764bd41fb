//! Series: values that follow from their numbers, so that what was acknowledged is known without being
//! remembered.
//!
//! # Invariants
//! - What is acknowledged of a series are the numbers below a count: one connection writes them in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cli::demo::process::NodeProcess;
use crate::cli::error::CliError;
use crate::cli::progress::byte_bar;
use crate::client::{Answer, Client};

/// Requests in flight of one series.
const IN_FLIGHT: usize = 32;
/// Longest pause of a writer that is ahead of its pace.
const PAUSE: Duration = Duration::from_millis(20);
/// Keys that are read at a time.
const READ_KEYS: u64 = 64;

/// Keys of one prefix, written in order.
#[derive(Debug)]
pub(super) struct Series {
    prefix: String,
    value_bytes: usize,
    acknowledged: AtomicU64,
}

impl Series {
    /// One of which nothing is written.
    pub(super) fn new(prefix: &str, value_bytes: usize) -> Self {
        Self { prefix: prefix.to_owned(), value_bytes, acknowledged: AtomicU64::new(0) }
    }

    /// How many were acknowledged by a majority.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Bytes of their values.
    pub(super) fn bytes(&self) -> u64 {
        self.acknowledged() * self.value_bytes as u64
    }

    fn key(&self, number: u64) -> String {
        format!("{}/{number:012}", self.prefix)
    }

    fn value(&self, number: u64) -> Vec<u8> {
        let mut value = vec![0; self.value_bytes];
        let seed = self.prefix.bytes().fold(number, |seed, byte| {
            seed.wrapping_mul(0x0100_0000_01b3).wrapping_add(u64::from(byte))
        });
        fastrand::Rng::with_seed(seed).fill(&mut value);
        value
    }

    /// Writes what comes next at `node`, the master, at most `pace` bytes a second, until `bytes` of values
    /// are acknowledged or `stop` is set; each is acknowledged by a majority.
    pub(super) fn write(
        &self,
        node: &NodeProcess,
        (bytes, pace): (u64, u64),
        stop: &AtomicBool,
    ) -> Result<(), CliError> {
        let mut client = node.client()?;
        client.call(&[b"NOXU", b"DURABILITY", b"majority"])?;
        let mut next = self.acknowledged();
        let (first, began) = (next, Instant::now());
        let end = bytes.div_ceil(self.value_bytes as u64);
        let mut in_flight = VecDeque::new();
        loop {
            let more = next < end && !stop.load(Ordering::Acquire);
            let ahead = ((next - first) * self.value_bytes as u64) as f64 / pace as f64;
            let early = || Duration::from_secs_f64(ahead).saturating_sub(began.elapsed());
            while !early().is_zero() && !stop.load(Ordering::Acquire) {
                std::thread::park_timeout(early().min(PAUSE)); // nothing to wait for but time
            }
            while more && next < end && in_flight.len() < IN_FLIGHT {
                client.queue(&[b"SET", self.key(next).as_bytes(), &self.value(next)]);
                in_flight.push_back(next);
                next += 1;
            }
            client.flush()?;
            let keep = if more { IN_FLIGHT / 2 } else { 0 };
            while in_flight.len() > keep {
                match client.receive()? {
                    Answer::Status(_) => {}
                    other => {
                        return Err(CliError::Failed(format!(
                            "{}: a write of {} answered {other:?}",
                            client.addr(),
                            self.prefix
                        )));
                    }
                }
                if let Some(number) = in_flight.pop_front() {
                    self.acknowledged.store(number + 1, Ordering::Release);
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Everything that was acknowledged is at `node`, as it was written.
    pub(super) fn check(&self, node: &NodeProcess) -> Result<(), CliError> {
        let mut client = node.client()?;
        let count = self.acknowledged();
        let bar = byte_bar(&format!("{}: reading {}", node.name, self.prefix), self.bytes());
        let mut at = 0;
        while at < count {
            let end = (at + READ_KEYS).min(count);
            self.check_some(node, &mut client, at..end)?;
            at = end;
            bar.set_position(at * self.value_bytes as u64);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn check_some(
        &self,
        node: &NodeProcess,
        client: &mut Client,
        numbers: std::ops::Range<u64>,
    ) -> Result<(), CliError> {
        let keys: Vec<String> = numbers.clone().map(|number| self.key(number)).collect();
        let mut request: Vec<&[u8]> = vec![b"MGET"];
        request.extend(keys.iter().map(String::as_bytes));
        let Answer::Array(values) = client.call(&request)? else {
            return Err(CliError::Failed(format!("{}: MGET answered no array", node.name)));
        };
        for (number, value) in numbers.zip(values) {
            let found = match value {
                Answer::Value(Some(value)) if value[..] == self.value(number) => continue,
                Answer::Value(Some(_)) => "another value",
                _ => "nothing",
            };
            return Err(CliError::Differs(format!(
                "{}: {found} under {}, which a majority acknowledged",
                node.name,
                self.key(number)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_from_prefix_and_number_and_differ_with_both() {
        let (one, other) = (Series::new("a", 100), Series::new("b", 100));
        assert_eq!(one.value(7), Series::new("a", 100).value(7));
        assert_ne!(one.value(7), one.value(8));
        assert_ne!(one.value(7), other.value(7));
        assert!(one.key(9) < one.key(10), "in order");
    }
}
