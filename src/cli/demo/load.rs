//! Load: writing pieces through the master's door from several connections, many in flight each.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use hdrhistogram::Histogram;
use noxu_util::Fingerprint;
use parking_lot::Mutex;

use super::input::Piece;
use super::process::NodeProcess;
use crate::cli::error::CliError;
use crate::client::{Answer, Client};

/// Connections that load.
pub(super) const CONNECTIONS: usize = 4;
/// Requests that each keeps in flight.
pub(super) const IN_FLIGHT: usize = 64;

/// What must be there: key -> hash of its value.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Acknowledged with the durability of a majority.
    pub(super) majority: HashMap<String, u64>,
    /// Acknowledged with the durability of one node.
    pub(super) local: HashMap<String, u64>,
}

/// Hash under which a value is remembered.
pub(super) fn hash(value: &[u8]) -> u64 {
    Fingerprint::of_body(value)
}

/// What a load took.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Transactions acknowledged.
    pub(super) commits: u64,
    /// Bytes of their values.
    pub(super) bytes: u64,
    /// From the first request to the last answer.
    pub(super) time: Duration,
    /// From sending a request to its answer, in microseconds.
    pub(super) micros: Histogram<u64>,
}

/// An acknowledged write.
struct Done {
    key: String,
    hash: u64,
    bytes: u64,
    micros: u64,
}

/// Where pieces come from, until there are enough.
pub(super) type Source<'a> = dyn FnMut() -> Result<Option<Piece>, CliError> + Send + 'a;

/// Writes what `source` gives to `node` with `durability`; after each acknowledged commit, `progress`
/// hears how many commits and bytes there are (in this thread, while the others go on).
pub(super) fn load(
    node: &NodeProcess,
    durability: &str,
    source: &mut Source<'_>,
    acknowledged: &mut HashMap<String, u64>,
    mut progress: impl FnMut(&Loaded) -> Result<(), CliError>,
) -> Result<Loaded, CliError> {
    let micros = Histogram::new(3).map_err(|e| CliError::Failed(format!("histogram: {e}")))?;
    let mut loaded = Loaded { commits: 0, bytes: 0, time: Duration::ZERO, micros };
    let started = Instant::now();
    let source = Mutex::new(source);
    std::thread::scope(|scope| {
        let (report, done) = bounded::<Result<Done, CliError>>(CONNECTIONS * IN_FLIGHT * 4);
        for _ in 0..CONNECTIONS {
            let mut client = node.client()?;
            client.call(&[b"NOXU", b"DURABILITY", durability.as_bytes()])?;
            let (report, source) = (report.clone(), &source);
            scope.spawn(move || {
                if let Err(error) = drive(client, source, &report) {
                    let _ = report.send(Err(error));
                }
            });
        }
        drop(report);
        for finished in done {
            let finished = finished?;
            loaded.commits += 1;
            loaded.bytes += finished.bytes;
            let _ = loaded.micros.record(finished.micros);
            acknowledged.insert(finished.key, finished.hash);
            progress(&loaded)?;
        }
        Ok::<(), CliError>(())
    })?;
    loaded.time = started.elapsed();
    Ok(loaded)
}

/// One connection: keeps requests in flight until the source ends.
fn drive(
    mut client: Client,
    source: &Mutex<&mut Source<'_>>,
    report: &Sender<Result<Done, CliError>>,
) -> Result<(), CliError> {
    let mut in_flight: VecDeque<(Done, Instant)> = VecDeque::new();
    let mut more = true;
    while more || !in_flight.is_empty() {
        while more && in_flight.len() < IN_FLIGHT {
            let Some(piece) = (source.lock())()? else {
                more = false;
                break;
            };
            client.queue(&[b"SET", piece.key.as_bytes(), &piece.value]);
            let (hash, bytes) = (hash(&piece.value), piece.value.len() as u64);
            in_flight.push_back((Done { key: piece.key, hash, bytes, micros: 0 }, Instant::now()));
        }
        client.flush()?;
        let keep = if more { IN_FLIGHT / 2 } else { 0 };
        while in_flight.len() > keep {
            let answer = client.receive()?;
            let Some((mut done, sent)) = in_flight.pop_front() else { break };
            match answer {
                Answer::Status(_) => {}
                other => {
                    let what =
                        format!("{}: write of {} answered {other:?}", client.addr(), done.key);
                    return Err(CliError::Failed(what));
                }
            }
            done.micros = sent.elapsed().as_micros() as u64;
            if report.send(Ok(done)).is_err() {
                return Ok(()); // the load was given up
            }
        }
    }
    Ok(())
}
