//! Copy: what bringing files to another node costs on this machine without any of our code. One thread
//! reads them and sends them over the loopback interface, another writes them; nothing is verified. All are
//! synced at the end, or each, as soon as it is there, by a third thread.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use crate::cli::error::CliError;

/// Bytes that are read and written at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A file's first bytes, so many of them.
pub(super) struct Piece {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// When the files of a copy are synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syncing {
    /// All of them at the end.
    AtEnd,
    /// Each when it is whole, while the next one comes.
    Beside,
}

/// All files below `dir`, whole. A store may be at work on them: what is gone by now is not among them.
pub(super) fn files_below(dir: &Path) -> Result<Vec<Piece>, CliError> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).map_err(CliError::file(&dir))? {
            let path = entry.map_err(CliError::file(&dir))?.path();
            let about = match std::fs::metadata(&path) {
                Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
                about => about.map_err(CliError::file(&path))?,
            };
            if about.is_dir() {
                left.push(path);
            } else {
                found.push(Piece { path, bytes: about.len() });
            }
        }
    }
    Ok(found)
}

/// Copies `pieces` into `target`, a directory that does not exist. Returns how many bytes and how long it
/// took until they were durable there.
pub(super) fn copy(
    pieces: &[Piece],
    target: &Path,
    syncing: Syncing,
) -> Result<(u64, Duration), CliError> {
    std::fs::create_dir(target).map_err(CliError::file(target))?;
    // All of them first: one that is removed later stays what it is.
    let opened = |piece: &Piece| match File::open(&piece.path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        file => Ok(Some((file.map_err(CliError::file(&piece.path))?, piece.bytes))),
    };
    let files = pieces.iter().map(opened).filter_map(Result::transpose);
    let files = files.collect::<Result<Vec<_>, CliError>>()?;
    let failed = |cause: std::io::Error| CliError::Failed(format!("the bare copy: {cause}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let begin = Instant::now();
    let written = std::thread::scope(|scope| {
        let sender = scope.spawn(move || send(files, TcpStream::connect(address)?));
        let written = listener.accept().and_then(|(stream, _)| receive(stream, target, syncing));
        let sent = sender.join().unwrap_or_else(|_| Err(std::io::Error::other("it panicked")));
        sent.and(written)
    });
    Ok((written.map_err(failed)?, begin.elapsed()))
}

/// Each file as its length and its bytes.
fn send(files: Vec<(File, u64)>, mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    for (mut file, mut left) in files {
        stream.write_all(&left.to_le_bytes())?;
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            file.read_exact(&mut buffer[..most])?;
            stream.write_all(&buffer[..most])?;
            left -= most as u64;
        }
    }
    Ok(())
}

/// Writes what comes to files of `target`; they are durable on return.
fn receive(stream: TcpStream, target: &Path, syncing: Syncing) -> std::io::Result<u64> {
    let (whole, finished) = unbounded::<File>();
    let written = std::thread::scope(|scope| {
        let sync_all = move || finished.iter().try_for_each(|file| file.sync_data());
        let beside = match syncing {
            Syncing::AtEnd => None,
            Syncing::Beside => Some(scope.spawn(sync_all.clone())),
        };
        let written = write_all(stream, target, &whole);
        drop(whole);
        let synced = match beside {
            None => sync_all(),
            Some(beside) => {
                beside.join().unwrap_or_else(|_| Err(std::io::Error::other("it panicked")))
            }
        };
        synced.and(written)
    })?;
    File::open(target)?.sync_all()?;
    Ok(written)
}

/// Writes what comes to files of `target`, and hands each over when it is whole.
fn write_all(stream: TcpStream, target: &Path, whole: &Sender<File>) -> std::io::Result<u64> {
    let mut stream = BufReader::new(stream);
    let (mut length, mut buffer) = ([0; 8], vec![0; PIECE_BYTES]);
    let mut written = 0;
    for number in 0.. {
        match stream.read_exact(&mut length) {
            Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let mut left = u64::from_le_bytes(length);
        written += left;
        let mut file = File::create(target.join(number.to_string()))?;
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            stream.read_exact(&mut buffer[..most])?;
            file.write_all(&buffer[..most])?;
            left -= most as u64;
        }
        let _ = whole.send(file); // whoever syncs has failed, and says so
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_first_bytes_of_each_file() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("deeper")).unwrap();
        let long: Vec<u8> = (0..PIECE_BYTES * 2 + 7).map(|at| at as u8).collect();
        std::fs::write(from.join("deeper/long"), &long).unwrap();
        std::fs::write(from.join("empty"), b"").unwrap();
        let mut pieces = files_below(&from).unwrap();
        pieces.sort_by_key(|piece| piece.bytes);
        assert_eq!(
            pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>(),
            [0, long.len() as u64]
        );
        pieces[1].bytes -= 3;
        pieces.push(Piece { path: from.join("gone"), bytes: 9 });
        for (name, syncing) in [("end", Syncing::AtEnd), ("beside", Syncing::Beside)] {
            let to = dir.path().join(name);
            let (bytes, _) = copy(&pieces, &to, syncing).unwrap();
            assert_eq!(bytes, long.len() as u64 - 3);
            assert_eq!(std::fs::read(to.join("0")).unwrap(), b"");
            assert_eq!(std::fs::read(to.join("1")).unwrap(), long[..long.len() - 3]);
        }
    }
}
