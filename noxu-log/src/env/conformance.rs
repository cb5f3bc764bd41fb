//! Conformance: what each environment must do alike, as one checklist that their tests run.

use std::io;
use std::io::IoSlice;
use std::path::Path;

use super::{Env, OpenMode};

/// Runs the checklist in `dir`, which must exist and be empty.
pub(crate) fn check(env: &dyn Env, dir: &Path) {
    open_modes(env, &dir.join("modes"));
    reads_and_writes(env, &dir.join("bytes"));
    names(env, &dir.join("names"));
    locks(env, &dir.join("locks"));
    assert!(env.free_bytes(dir).unwrap() > 0);
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

fn open_modes(env: &dyn Env, dir: &Path) {
    let path = dir.join("f");
    assert_eq!(kind(env.open(&path, OpenMode::CreateNew)), io::ErrorKind::NotFound);
    env.create_dir_all(dir).unwrap();
    assert_eq!(kind(env.open(&path, OpenMode::Read)), io::ErrorKind::NotFound);
    assert_eq!(kind(env.open(&path, OpenMode::ReadWrite)), io::ErrorKind::NotFound);
    env.open(&path, OpenMode::CreateNew).unwrap().write_at(&[IoSlice::new(b"x")], 0).unwrap();
    assert_eq!(kind(env.open(&path, OpenMode::CreateNew)), io::ErrorKind::AlreadyExists);
    assert_eq!(env.open(&path, OpenMode::CreateOrOpen).unwrap().len().unwrap(), 1);
    let reader = env.open(&path, OpenMode::Read).unwrap();
    assert!(reader.write_at(&[IoSlice::new(b"y")], 0).is_err(), "opened for reading only");
    assert!(reader.set_len(0).is_err(), "opened for reading only");
    assert!(!reader.is_empty().unwrap());
}

fn reads_and_writes(env: &dyn Env, dir: &Path) {
    env.create_dir_all(dir).unwrap();
    let file = env.open(&dir.join("f"), OpenMode::CreateNew).unwrap();
    let parts = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
    file.write_at(&parts, 600).unwrap();
    assert_eq!(file.len().unwrap(), 605);
    let mut buf = [9; 10];
    assert_eq!(file.read_at(&mut buf, 598).unwrap(), 7);
    assert_eq!(&buf, b"\0\0abcde\x09\x09\x09");
    assert_eq!(file.read_at(&mut buf, 605).unwrap(), 0);
    assert_eq!(file.read_at(&mut buf, 1 << 40).unwrap(), 0);

    let other = env.open(&dir.join("f"), OpenMode::ReadWrite).unwrap();
    other.write_at(&[IoSlice::new(b"Z")], 602).unwrap();
    file.read_at(&mut buf[..3], 601).unwrap();
    assert_eq!(&buf[..3], b"bZd", "handles share the file");

    file.set_len(602).unwrap();
    file.set_len(700).unwrap();
    let mut tail = [9; 100];
    assert_eq!(file.read_at(&mut tail, 600).unwrap(), 100);
    assert_eq!(&tail[..2], b"ab");
    assert!(tail[2..].iter().all(|b| *b == 0), "what was cut off does not come back");

    file.allocate(5_000).unwrap();
    assert_eq!(file.len().unwrap(), 5_000);
    file.allocate(100).unwrap();
    assert_eq!(file.len().unwrap(), 5_000, "allocate never cuts");
    file.sync_data().unwrap();
}

fn names(env: &dyn Env, dir: &Path) {
    assert_eq!(kind(env.list(dir)), io::ErrorKind::NotFound);
    assert!(!env.exists(dir).unwrap());
    env.create_dir_all(&dir.join("sub/deep")).unwrap();
    env.create_dir_all(&dir.join("sub/deep")).unwrap();
    for name in ["b", "a", "sub/deep/c"] {
        let file = env.open(&dir.join(name), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(name.as_bytes())], 0).unwrap();
    }
    assert_eq!(env.list(dir).unwrap(), ["a", "b", "sub"]);
    assert!(env.exists(&dir.join("a")).unwrap() && env.exists(&dir.join("sub")).unwrap());

    let held = env.open(&dir.join("a"), OpenMode::Read).unwrap();
    env.rename(&dir.join("b"), &dir.join("a")).unwrap();
    assert_eq!(env.list(dir).unwrap(), ["a", "sub"]);
    let mut byte = [0];
    env.open(&dir.join("a"), OpenMode::Read).unwrap().read_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"b", "the renamed file replaces the other");
    held.read_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"a", "an open file outlives its name");
    assert_eq!(kind(env.rename(&dir.join("b"), &dir.join("x"))), io::ErrorKind::NotFound);

    env.rename(&dir.join("sub"), &dir.join("moved")).unwrap();
    assert_eq!(env.list(&dir.join("moved/deep")).unwrap(), ["c"]);
    env.sync_dir(dir).unwrap();

    env.remove(&dir.join("a")).unwrap();
    assert_eq!(kind(env.remove(&dir.join("a"))), io::ErrorKind::NotFound);
    env.remove_dir_all(&dir.join("moved")).unwrap();
    env.remove_dir_all(&dir.join("moved")).unwrap();
    assert_eq!(env.list(dir).unwrap(), Vec::<String>::new());
}

fn locks(env: &dyn Env, dir: &Path) {
    env.create_dir_all(dir).unwrap();
    let path = dir.join("LOCK");
    let guard = env.lock(&path).unwrap();
    assert_eq!(kind(env.lock(&path)), io::ErrorKind::WouldBlock);
    drop(env.lock(&dir.join("OTHER")).unwrap());
    drop(guard);
    drop(env.lock(&path).unwrap());
    assert!(env.exists(&path).unwrap());
}
