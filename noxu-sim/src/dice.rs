//! Dice: random numbers from one seed, a stream of its own for each concern.
//!
//! A concern that draws more often changes nothing for the others: so a run from which one fault is
//! left out stays as it was up to that fault.

pub use fastrand::Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Where all random numbers of a run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dice {
    seed: u64,
}

impl Dice {
    /// Those of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The number they were made of.
    pub const fn seed(self) -> u64 {
        self.seed
    }

    /// The stream of one concern. The same name gives the same stream, from its beginning.
    pub fn stream(self, concern: &str) -> Rng {
        Rng::with_seed(self.number(concern))
    }

    /// One number for one concern.
    pub fn number(self, concern: &str) -> u64 {
        xxh3_64_with_seed(concern.as_bytes(), self.seed)
    }
}

/// Draws that plans are made of.
pub trait Draw {
    /// True with this probability, 0 to 1.
    fn hit(&mut self, probability: f64) -> bool;
    /// One of these, each as likely as its weight says.
    ///
    /// # Panics
    /// If all weights are 0.
    fn weighted<T: Copy>(&mut self, choices: &[(u32, T)]) -> T;
    /// A number between both, the small ones as likely as the large ones in orders of magnitude.
    fn spread(&mut self, low: u64, high: u64) -> u64;
}

impl Draw for Rng {
    fn hit(&mut self, probability: f64) -> bool {
        self.f64() < probability
    }

    fn weighted<T: Copy>(&mut self, choices: &[(u32, T)]) -> T {
        let total: u32 = choices.iter().map(|(weight, _)| weight).sum();
        assert!(total > 0, "no choice has a weight");
        let mut drawn = self.u32(..total);
        for (weight, choice) in choices {
            if drawn < *weight {
                return *choice;
            }
            drawn -= weight;
        }
        unreachable!("{drawn} is below the sum of the weights")
    }

    fn spread(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} to {high}");
        let (from, to) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
        let drawn = (from + (to - from) * self.f64()).exp().round() as u64;
        drawn.clamp(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concern_draws_the_same_whatever_the_others_draw() {
        let dice = Dice::new(7);
        let first = dice.stream("net").u64(..);
        let mut disk = dice.stream("disk");
        assert_ne!(disk.u64(..), first);
        assert_eq!(dice.stream("net").u64(..), first);
        assert_ne!(Dice::new(8).stream("net").u64(..), first);
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut rng = Dice::new(1).stream("a");
        for _ in 0..1_000 {
            assert!((4..=64).contains(&rng.spread(4, 64)));
            assert!([2, 3].contains(&rng.weighted(&[(0, 1), (5, 2), (1, 3)])));
        }
        assert!(!rng.hit(0.0) && rng.hit(1.0));
    }
}
