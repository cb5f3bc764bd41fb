//! Floor: what commits cost on this machine without any of our code. Three processes write, sync and
//! acknowledge the same bytes in the same places, one round after the other, and do nothing else; a round
//! carries one commit of each client. What a commit of ours takes beyond that is our own doing; the noise of
//! the machine can make it less.
//!
//! Rounds do not overlap, as those of a log may: with many clients the floor is no bound.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use noxu_log::{ENTRY_HEADER_BYTES, MarkPolicy};
use noxu_rep::SyncPolicy;
use rustix::event::{PollFd, PollFlags, poll};

use super::Setting;
use super::report::Measured;
use super::work::{Commits, Work};
use crate::cli::child::ChildProcess;
use crate::cli::error::CliError;
use crate::cli::out::print_line;
use crate::workload::clients::{Clients, Latencies};
use crate::workload::{KEY_BYTES, VALUE_BYTES};

/// Bytes of a commit in the log.
const COMMIT_BYTES: usize = ENTRY_HEADER_BYTES + KEY_BYTES + VALUE_BYTES;
/// Length of the file that is written, filled before as a segment is.
const FILE_BYTES: usize = 64 << 20;
/// Bytes of a tail mark.
const MARK_BYTES: usize = 512;

/// Measures the floor of `commits` with so many of them in a round.
pub(super) fn measure(
    work: Work,
    commits: Commits,
    clients: Clients,
    setting: &Setting,
) -> Result<Measured, CliError> {
    let dir = setting.temporary_dir()?;
    let syncs = syncs_of(commits);
    let mut replicas = Vec::new();
    for number in 2..=commits.nodes() {
        let dir = dir.path().join(format!("n{number}"));
        std::fs::create_dir(&dir).map_err(CliError::file(&dir))?;
        replicas.push(Replica::spawn(&dir, syncs)?);
    }
    let failed = |cause| CliError::Failed(format!("the floor: {cause}"));
    let mut disk = Disk::create(dir.path(), syncs).map_err(failed)?;
    let each = match clients {
        Clients::Threads(count) | Clients::Handles(count) => count,
    };
    let bytes = vec![7; each * COMMIT_BYTES];
    let frame = [&(bytes.len() as u32).to_le_bytes(), &bytes[..]].concat();
    let mut latencies = Latencies::over(setting.time);
    let begin = Instant::now() + setting.warm_up;
    let end = begin + setting.time;
    for round in 1.. {
        let began = Instant::now();
        if began >= end {
            break;
        }
        for replica in &mut replicas {
            replica.stream.write_all(&frame).map_err(failed)?;
        }
        disk.take(&bytes).map_err(failed)?;
        await_one(&mut replicas, round).map_err(failed)?;
        if began >= begin {
            latencies.record(began.elapsed());
        }
    }
    Ok(Measured::commits(work, clients, &latencies, "commits/s", each))
}

/// How often a node syncs for a commit: never, its log, its log and then its tail mark.
fn syncs_of(commits: Commits) -> u8 {
    match (commits.durability().local, commits.tail_mark()) {
        (SyncPolicy::Sync, MarkPolicy::Strict) => 2,
        (SyncPolicy::Sync, MarkPolicy::Lazy) => 1,
        (SyncPolicy::WriteNoSync | SyncPolicy::NoSync, _) => 0,
    }
}

/// Waits until one replica has acknowledged this round: with the node here that is a majority of three.
fn await_one(replicas: &mut [Replica], round: u64) -> std::io::Result<()> {
    while !replicas.iter().any(|replica| replica.acked >= round) {
        let mut waiting: Vec<_> =
            replicas.iter().map(|replica| PollFd::new(&replica.stream, PollFlags::IN)).collect();
        poll(&mut waiting, None)?;
        let ready: Vec<_> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (replica, _) in replicas.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            replica.stream.read_exact(&mut [0])?;
            replica.acked += 1;
        }
    }
    Ok(())
}

/// A log and a mark without a meaning.
struct Disk {
    log: File,
    mark: File,
    at: usize,
    syncs: u8,
}

impl Disk {
    fn create(dir: &Path, syncs: u8) -> std::io::Result<Self> {
        let filled = |name: &str, bytes: usize| {
            let mut file = File::create(dir.join(name))?;
            file.write_all(&vec![0; bytes])?;
            file.sync_all()?;
            std::io::Result::Ok(file)
        };
        let (log, mark) = (filled("log", FILE_BYTES)?, filled("mark", MARK_BYTES)?);
        Ok(Self { log, mark, at: 0, syncs })
    }

    fn take(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.at + bytes.len() > FILE_BYTES {
            self.at = 0;
        }
        self.log.write_all_at(bytes, self.at as u64)?;
        self.at += bytes.len();
        if self.syncs > 0 {
            self.log.sync_data()?;
        }
        if self.syncs > 1 {
            self.mark.write_all_at(&[7; MARK_BYTES], 0)?;
            self.mark.sync_data()?;
        }
        Ok(())
    }
}

/// A replica in a process of its own, which ends with its connection.
struct Replica {
    stream: TcpStream,
    acked: u64,
    // Its files are about to be removed: an ordered end would be for nothing.
    _child: ChildProcess,
}

impl Replica {
    fn spawn(dir: &Path, syncs: u8) -> Result<Self, CliError> {
        let mut child = ChildProcess::spawn(|command| {
            command.args(["bench", "--floor-syncs", &syncs.to_string(), "--floor-dir"]).arg(dir)
        })?;
        let mut connect = || {
            let port = child.read_line()?.unwrap_or_default();
            let port = port.parse().map_err(std::io::Error::other)?;
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_nodelay(true)?;
            std::io::Result::Ok(stream)
        };
        match connect() {
            Ok(stream) => Ok(Self { stream, acked: 0, _child: child }),
            Err(cause) => Err(CliError::Failed(format!("a replica of the floor: {cause}"))),
        }
    }
}

/// Arguments with which this program is a replica of the floor.
#[derive(Debug, Args)]
pub(super) struct FloorArguments {
    #[arg(long, hide = true, value_name = "DIR", requires = "floor_syncs")]
    floor_dir: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "N")]
    floor_syncs: Option<u8>,
}

impl FloorArguments {
    /// The replica's process, if it is to be one; it ends with the connection.
    pub(super) fn run(&self) -> Option<Result<(), CliError>> {
        let (dir, syncs) = (self.floor_dir.as_ref()?, self.floor_syncs?);
        Some(serve(dir, syncs))
    }
}

fn serve(dir: &Path, syncs: u8) -> Result<(), CliError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut disk = Disk::create(dir, syncs)?;
    print_line!("{}", listener.local_addr()?.port())?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut frames = BufReader::with_capacity(1 << 20, stream.try_clone()?);
    let (mut length, mut bytes) = ([0; 4], Vec::new());
    loop {
        if frames.read_exact(&mut length).is_err() {
            return Ok(()); // whoever measures has ended
        }
        bytes.resize(u32::from_le_bytes(length) as usize, 0);
        frames.read_exact(&mut bytes)?;
        disk.take(&bytes)?;
        stream.write_all(&[1])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_often_is_synced_as_a_commit_asks_for() {
        let syncs = [Commits::SyncMajority, Commits::SyncMajorityLazy, Commits::NosyncMajority];
        assert_eq!(syncs.map(syncs_of), [2, 1, 0]);
    }
}
