//! Demo: every scene that exists, on real files and processes, with what it promises checked.

mod failover;
mod group;
mod input;
mod load;
pub(super) mod process;
mod single_log;
mod table;
mod verify;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use self::group::Group;
use self::input::Input;
use self::table::Table;
use super::error::CliError;
use super::out::print_line;
use super::sizes::{parse_bytes, show_bytes, show_count};

/// Show Noxu at work on real files, with failures, and check every promise
#[derive(Debug, Args)]
#[command(
    after_help = "Everything happens in a temporary directory, which is removed if all is well
and kept, with its path printed, if anything differs; the exit code is then 3.

Examples:
  noxu demo
  noxu demo --input ~/documents
  noxu demo --commits 2000 --size 4MiB        # a short one"
)]
pub(super) struct Demo {
    /// Load every file below this path, build outputs excepted
    #[arg(long, value_name = "PATH", default_value = ".")]
    input: PathBuf,
    /// Load, in rounds over the input, at least so many commits ...
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    commits: u64,
    /// ... and at least so many bytes
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    size: u64,
    /// Restore at least so many bytes over the network
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    restore_size: u64,
    /// Kill, close and hang the master so many times each
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    failover_rounds: u32,
    /// Keep the directory in any case
    #[arg(long)]
    keep: bool,
    /// Work in this process's part of a scene: load a log until killed
    #[arg(long, hide = true, value_name = "DIR")]
    load_log: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self) -> Result<(), CliError> {
        let input = Input::find(&self.input)?;
        if let Some(dir) = &self.load_log {
            return single_log::load_until_killed(dir, &input, self.commits);
        }
        print_line!(
            "input: {} files, {}, in rounds until {} commits and {}",
            show_count(input.len() as u64),
            show_bytes(input.bytes),
            show_count(self.commits),
            show_bytes(self.size)
        )?;
        let dir = tempfile::Builder::new()
            .prefix("noxu-demo-")
            .tempdir()
            .map_err(CliError::file(std::env::temp_dir()))?;
        let mut table = Table::default();
        let started = Instant::now();
        let done = self.scenes(&input, dir.path(), &mut table);
        table.time("all of it", started.elapsed());
        if matches!(done, Err(CliError::Output(_))) && !self.keep {
            // Nobody is there any more to look at it.
            return done;
        }
        let shown = print_line!("\n{table}");
        if done.is_err() || self.keep {
            print_line!("kept: {}", dir.keep().display())?;
        }
        done?;
        shown?;
        print_line!("everything checked is as promised")
    }

    fn scenes(
        &self,
        input: &Input,
        dir: &std::path::Path,
        table: &mut Table,
    ) -> Result<(), CliError> {
        single_log::scene(self, input, &self.input, &dir.join("log"), table)?;
        Group::new(self, input, dir).play(table)
    }
}

/// Announces a scene.
fn scene_title(number: usize, title: &str) -> Result<(), CliError> {
    print_line!("\n{number}. {title}")
}

/// Says what was just seen.
macro_rules! say {
    ($($part:tt)*) => { $crate::cli::out::print_line!("   {}", format_args!($($part)*)) };
}
use say;
