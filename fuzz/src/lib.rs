//! Fuzz targets: what reads bytes from disk or wire, as functions that take any bytes.
//!
//! The same functions run under cargo-fuzz (`fuzz_targets/`), in the seeded search that needs no
//! nightly compiler (`search.rs`), and as plain tests over the committed corpus (`tests/fuzz.rs` of
//! the repository, which includes this file as a module).

pub mod corpus;
pub mod mutate;
pub mod targets;

/// Hands `input` to the target of this name; returns whether it was accepted as valid.
///
/// # Panics
/// If there is no such target, or the target finds a bug.
pub fn run(name: &str, input: &[u8]) -> bool {
    let target = targets::ALL.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(input)
}
