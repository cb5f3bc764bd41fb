//! Machine: what the figures were measured on, asked of the machine itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Setting;
use crate::cli::error::CliError;
use crate::cli::sizes::show_bytes;
use crate::workload::clients::Latencies;

/// What it is, line by line.
pub(super) struct Machine {
    pub(super) lines: Vec<(&'static str, String)>,
}

impl Machine {
    pub(super) fn describe(setting: &Setting) -> Result<Self, CliError> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let (sync, loopback) = (measure_sync(setting)?, measure_loopback()?);
        let quantiles =
            |l: &Latencies| format!("p50 {:.1} us, p99 {:.1} us", l.micros(0.5), l.micros(0.99));
        Ok(Self {
            lines: vec![
                ("processor", processor()),
                ("cores", cores.to_string()),
                ("memory", memory()),
                ("kernel", kernel()),
                ("file system", file_system(&setting.dir)),
                ("132 B written and fdatasynced, file filled before", quantiles(&sync)),
                ("round trip over loopback TCP", quantiles(&loopback)),
                ("noxu", version()),
            ],
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.lines.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
        for (what, found) in &self.lines {
            writeln!(f, "  {what:<width$}  {found}")?;
        }
        Ok(())
    }
}

const UNKNOWN: &str = "unknown";

fn version() -> String {
    let build = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    format!("{} ({build})", env!("CARGO_PKG_VERSION"))
}

/// What stands behind the colon of the first line of `path` that begins with `field`.
fn field_of(path: &str, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor() -> String {
    field_of("/proc/cpuinfo", "model name").unwrap_or_else(|| UNKNOWN.to_owned())
}

fn memory() -> String {
    let total = field_of("/proc/meminfo", "MemTotal");
    let kib = total.and_then(|total| total.split(' ').next()?.parse::<u64>().ok());
    kib.map_or_else(|| UNKNOWN.to_owned(), |kib| show_bytes(kib << 10))
}

fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

/// Kind of the file system that holds `dir`: of the mount with the longest path above it.
fn file_system(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let above = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        dir.starts_with(at).then_some((at.len(), kind))
    });
    // The last of equals: a later mount hides an earlier one.
    let nearest = above.max_by_key(|(length, _)| *length);
    nearest.map_or_else(|| UNKNOWN.to_owned(), |(_, kind)| kind.to_owned())
}

/// How often each of these is measured.
const REPETITIONS: u64 = 500;

fn measure_sync(setting: &Setting) -> Result<Latencies, CliError> {
    let mut file = tempfile::tempfile_in(&setting.dir).map_err(CliError::file(&setting.dir))?;
    let mut latencies = Latencies::over(setting.time);
    let mut run = || {
        file.write_all(&vec![0; 1 << 20])?;
        file.sync_all()?;
        for at in 0..REPETITIONS {
            let begin = Instant::now();
            file.write_all_at(&[7; 132], at * 132)?;
            file.sync_data()?;
            latencies.record(begin.elapsed());
        }
        Ok(())
    };
    run().map_err(CliError::file(&setting.dir))?;
    Ok(latencies)
}

fn measure_loopback() -> Result<Latencies, CliError> {
    let mut latencies = Latencies::over(Duration::from_secs(1));
    let mut run = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut here = TcpStream::connect(listener.local_addr()?)?;
        let (mut there, _) = listener.accept()?;
        here.set_nodelay(true)?;
        there.set_nodelay(true)?;
        let echo = std::thread::spawn(move || {
            let mut byte = [0];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        for _ in 0..REPETITIONS {
            let begin = Instant::now();
            here.write_all(&[7])?;
            here.read_exact(&mut [0])?;
            latencies.record(begin.elapsed());
        }
        drop(here);
        let _ = echo.join();
        std::io::Result::Ok(())
    };
    run().map_err(|cause| CliError::Failed(format!("the loopback interface: {cause}")))?;
    Ok(latencies)
}
