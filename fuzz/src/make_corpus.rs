//! Writes the generated part of the corpus: `valid-*`, which the target accepts, and damaged copies
//! of them. Files of other names (`found-*`: inputs that once found a bug) stay as they are.

use std::fs;
use std::path::Path;

use noxu_fuzz::{mutate, targets};

/// Damaged copies of each valid input.
const DAMAGED: usize = 2;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in targets::ALL {
        let folder = corpus.join(target.name);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("valid-") || name.starts_with("damaged-") {
                fs::remove_file(path)?;
            }
        }
        let seeds = (target.seeds)();
        let mut rng = fastrand::Rng::with_seed(1);
        for (at, seed) in seeds.iter().enumerate() {
            assert!((target.run)(seed), "{} refuses its seed {at}", target.name);
            fs::write(folder.join(format!("valid-{at:02}")), seed)?;
            let other = &seeds[rng.usize(..seeds.len())];
            for copy in 0..DAMAGED {
                let damaged = if copy == 0 {
                    seed[..rng.usize(..=seed.len())].to_vec()
                } else {
                    mutate::mutated(seed, other, &mut rng)
                };
                fs::write(folder.join(format!("damaged-{at:02}-{copy}")), damaged)?;
            }
        }
    }
    Ok(())
}
