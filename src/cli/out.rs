//! Out: lines on standard output, which whoever reads them may have closed: `noxu demo | head`.
//!
//! `println!` panics then; here it is an error like any other, with which the command ends, and for
//! which [`super::main`] has no words.

use std::fmt;
use std::io::Write;

use super::error::CliError;

/// Prints a line at once.
///
/// # Errors
/// `Output`.
pub(super) fn write_line(line: fmt::Arguments<'_>) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// As `println!`, with a result.
macro_rules! print_line {
    ($($part:tt)*) => { $crate::cli::out::write_line(format_args!($($part)*)) };
}
pub(super) use print_line;
