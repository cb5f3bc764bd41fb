//! Lot: decides, piece by piece, what of the unsynced a crash leaves.
//!
//! A piece is a change of names, the length of a file, or a sector; it survives in one of the
//! versions it had since the last sync, or stays as it was. The pieces are asked for in a fixed
//! order, so that the same choice gives the same image.

use fastrand::Rng;

use super::Survivors;

pub(super) struct Lot {
    choice: Choice,
    rng: Rng,
    odds: f64,
}

enum Choice {
    None,
    All,
    Random,
    /// What is left of the number, whose digits choose the versions, the first piece's first.
    Nth(u64),
    /// Nothing survives; multiplies the choices there are.
    Count(u64),
}

impl Lot {
    pub(super) fn new(survivors: Survivors) -> Self {
        let (choice, seed) = match survivors {
            Survivors::None => (Choice::None, 0),
            Survivors::All => (Choice::All, 0),
            Survivors::Random(seed) => (Choice::Random, seed),
            Survivors::Nth(number) => (Choice::Nth(number), 0),
        };
        let mut lot = Self { choice, rng: Rng::with_seed(seed), odds: 0.5 };
        lot.draw_odds();
        lot
    }

    /// One that only counts: [`Lot::counted`].
    pub(super) fn counting() -> Self {
        Self { choice: Choice::Count(1), rng: Rng::with_seed(0), odds: 0.0 }
    }

    /// How many choices there were, at most `u64::MAX`.
    pub(super) const fn counted(&self) -> u64 {
        match self.choice {
            Choice::Count(count) => count,
            _ => 1,
        }
    }

    /// All, none and anything between must be likely, for few and for many pieces.
    pub(super) fn draw_odds(&mut self) {
        self.odds = match self.rng.u8(..4) {
            0 => 0.0,
            1 => 1.0,
            _ => self.rng.f64(),
        };
    }

    /// Whether a piece survives that has one new version.
    pub(super) fn survives(&mut self) -> bool {
        self.pick(&[()]).is_some()
    }

    /// The version that survives, the oldest first; `None` if it is the durable one.
    pub(super) fn pick<'a, T>(&mut self, versions: &'a [T]) -> Option<&'a T> {
        let newest = versions.last()?;
        match &mut self.choice {
            Choice::None => None,
            Choice::Count(count) => {
                *count = count.saturating_mul(versions.len() as u64 + 1);
                None
            }
            Choice::Nth(rest) => {
                let choices = versions.len() as u64 + 1;
                let chosen = *rest % choices;
                *rest /= choices;
                versions.get((chosen as usize).checked_sub(1)?)
            }
            Choice::Random if self.rng.f64() >= self.odds => None,
            // Older versions reach the disk now and then; mostly it is the newest.
            Choice::Random if versions.len() > 1 && self.rng.u8(..4) == 0 => {
                self.rng.choice(versions)
            }
            Choice::All | Choice::Random => Some(newest),
        }
    }
}
